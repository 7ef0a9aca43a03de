"""``fastlstm info``: what a model file holds."""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

from fastlstm import Model
from fastlstm.commands import terminal
from fastlstm.commands.arguments import add_model, load_model
from fastlstm.commands.precision import show_measured

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "describe a model file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the layers, sizes and notes."""
    model = load_model(arguments)
    summary = model.summary()
    file_bytes = os.path.getsize(arguments.model)
    if arguments.json:
        terminal.write_json(
            {
                "model": arguments.model,
                "inputs": [
                    {"name": given.name, "held": given.held} | _row_facts(model, given.name)
                    for given in model.graph.inputs
                ],
                "nodes": [_node_facts(model, node) for node in model.graph.nodes],
                "outputs": [
                    {"name": name, "reads": value} | _row_facts(model, value)
                    for name, value in model.graph.outputs.items()
                ],
                "parameters": summary.parameters,
                "dtype": model.dtype.name,
                "precision": model.precision,
                "measured": model.measured and model.measured.to_dict(),
                "isa": model.isa,
                "file_bytes": file_bytes,
                "packed_bytes": model.nbytes,
                "state_bytes": model.state_nbytes,
                "streams": not model.looks_ahead,
                "delay": model.delay,
                "step_stride": model.step_stride,
                "pools": model.pools_over_time,
                "vocabulary": model.vocabulary,
                "source": model.source,
                "fingerprint": model.fingerprint,
            }
        )
        return 0
    page = terminal.open_page()
    page.table(summary.columns, summary.rows, right="parameters")
    page.text("")
    stream = f"{terminal.byte_count(model.state_nbytes)} of state"
    if model.looks_ahead:
        stream = f"cannot be: {model.looks_ahead}"
    page.pairs(
        {
            "reads": "; ".join(_input_line(given) for given in model.graph.inputs),
            "gives": "; ".join(_output_line(model, *item) for item in model.graph.outputs.items()),
            "parameters": f"{summary.parameters:,}",
            "computed in": model.dtype.name,
            "instruction set": model.isa,
            "file": terminal.byte_count(file_bytes),
            "packed in memory": terminal.byte_count(model.nbytes),
            "a stream needs": stream,
            "vocabulary": _vocabulary_line(model),
            **{f"source: {key}": note for key, note in model.source.items()},
        }
    )
    show_measured(page, model)
    return 0


def _node_facts(model: Model, node: Any) -> dict[str, Any]:
    tensors = node.layer.names().values()
    size = sum(math.prod(model.facts.tensors[name]) for name in tensors)
    facts: dict[str, Any] = node.layer.to_dict() | {"reads": list(node.reads), "parameters": size}
    return facts | _row_facts(model, node.name)


def _row_facts(model: Model, value: str) -> dict[str, Any]:
    row = model.facts.rows[value]
    timing = row.timing
    return {
        "shape": list(row.shape),
        "tokens": row.tokens,
        "rate": None if timing is None else str(timing.rate),
        "delay": None if timing is None or row.looks_ahead else timing.delay,
        "folded": row.folded,
    }


def _input_line(given: Any) -> str:
    axes = " x ".join(map(str, given.shape)) or "1"
    what = f"{axes} features"
    if given.tokens:
        what = f"tokens 0 to {given.tokens - 1}"
        what = what if not given.shape else f"{axes} {what}"
    return f"{given.name}: {what}{', held for a sequence' if given.held else ''}"


def _output_line(model: Model, name: str, value: str) -> str:
    row = model.facts.rows[value]
    line = f"{name}: {' x '.join(map(str, row.shape)) or '1'} features, "
    if row.timing is None:
        return f"{line}held for a sequence"
    if row.folded:
        return f"{line}one for a whole sequence; a stream gives it anew after each step"
    rows, steps = row.timing.rate
    each: str = {(1, 1): "one a step"}.get((rows, steps), f"one for every {steps} steps")
    if rows > 1:
        each = f"{rows} for every {steps} steps" if steps > 1 else f"{rows} a step"
    late = row.timing.delay and not row.looks_ahead
    after = f", the first after {row.timing.delay + 1} steps" if late else ""
    return f"{line}{each}{after}"


def _vocabulary_line(model: Model) -> str:
    if model.vocabulary is None:
        return "none"
    shown = ", ".join(repr(string) for string in model.vocabulary[:6])
    more = ", …" if len(model.vocabulary) > 6 else ""
    return f"{len(model.vocabulary)} strings: {shown}{more}"
