"""``fastlstm info``: what a model file holds."""

from __future__ import annotations

import argparse
import math
import os

from fastlstm import Model
from fastlstm.commands import terminal
from fastlstm.commands.arguments import add_model, load_model

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "describe a model file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the layers, sizes and notes."""
    model = load_model(arguments)
    sizes = [sum(map(math.prod, layer.tensors().values())) for layer in model.layers]
    state_bytes = sum(array.nbytes for array in model.initial_state().values())
    file_bytes = os.path.getsize(arguments.model)
    if arguments.json:
        terminal.write_json(
            {
                "model": arguments.model,
                "layers": [
                    layer.to_dict() | {"parameters": size}
                    for layer, size in zip(model.layers, sizes, strict=True)
                ],
                "input_size": model.input_size,
                "output_size": model.output_size,
                "takes_tokens": model.takes_tokens,
                "parameters": sum(sizes),
                "dtype": model.dtype.name,
                "isa": model.isa,
                "file_bytes": file_bytes,
                "packed_bytes": model.nbytes,
                "state_bytes": state_bytes,
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
    rows = [
        (layer.name, layer.describe(), f"{size:,}")
        for layer, size in zip(model.layers, sizes, strict=True)
    ]
    page.table(("name", "layer", "parameters"), rows, right="parameters")
    page.text("")
    takes = f"{model.input_size} features"
    if model.takes_tokens:
        takes = f"tokens 0 to {model.input_size - 1}"
    stream = f"{terminal.byte_count(state_bytes)} of state"
    if model.looks_ahead:
        stream = f"cannot be: {model.looks_ahead}"
    page.pairs(
        {
            "input": takes,
            "output": f"{model.output_size} features",
            "parameters": f"{sum(sizes):,}",
            "precision": model.dtype.name,
            "instruction set": model.isa,
            "file": terminal.byte_count(file_bytes),
            "packed in memory": terminal.byte_count(model.nbytes),
            "outputs": _outputs_line(model),
            "a stream needs": stream,
            "vocabulary": _vocabulary_line(model),
            **{f"source: {key}": note for key, note in model.source.items()},
        }
    )
    return 0


def _outputs_line(model: Model) -> str:
    if model.pools_over_time:
        return "one for a whole sequence; a stream gives it anew after each step"
    after = f", the first after {model.delay + 1} steps" if model.delay else ""
    each = f"one for every {model.step_stride} steps" if model.step_stride > 1 else "one a step"
    return each + after


def _vocabulary_line(model: Model) -> str:
    if model.vocabulary is None:
        return "none"
    shown = ", ".join(repr(string) for string in model.vocabulary[:6])
    more = ", …" if len(model.vocabulary) > 6 else ""
    return f"{len(model.vocabulary)} strings: {shown}{more}"
