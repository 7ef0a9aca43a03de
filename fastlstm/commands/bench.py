"""``fastlstm bench``: the speed of a model on this machine, or of each kind of cell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastlstm import Model, processors
from fastlstm.commands import cells, latency, machine, plot, terminal
from fastlstm.commands.arguments import add_model, load_model, number, positive
from fastlstm.verification import random_input

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "measure the speed of a model on this machine"

INPUT_SIZE, HIDDEN_SIZE = 40, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Measure the speed of a model on this machine; or, with --compare-cells, what the kind of "
        "a cell costs: RNN, GRU and LSTM of random weights, at equal hidden size and with as many "
        "parameters as the LSTM, in turns."
    )
    add_model(parser, optional=True)
    parser.add_argument(
        "--compare-cells", action="store_true", help="compare the kinds of cells; takes no MODEL"
    )
    parser.add_argument(
        "--input-size",
        type=positive,
        metavar="I",
        help=f"of the cells compared (default {INPUT_SIZE})",
    )
    parser.add_argument(
        "--hidden-size",
        type=positive,
        metavar="H",
        help=f"of the cells compared (default {HIDDEN_SIZE})",
    )
    parser.add_argument(
        "--steps", type=positive, default=100_000, help="to time (default %(default)s)"
    )
    parser.add_argument(
        "--length", type=positive, default=1000, help="of a whole sequence (default %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=number,
        default=2.0,
        help="at most so long for the steps of a model, and half of it for sequences "
        "(default %(default)s)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the times")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show the times, and draw them if asked."""
    if arguments.compare_cells == (arguments.model is not None):
        given = "both are" if arguments.compare_cells else "neither is"
        raise ValueError(f"expected either a MODEL or --compare-cells; {given} given")
    sizes = {"--input-size": arguments.input_size, "--hidden-size": arguments.hidden_size}
    for option, size in sizes.items():
        if size is not None and not arguments.compare_cells:
            raise ValueError(f"{option} is of --compare-cells; a MODEL has its own sizes")
    if arguments.plot and not plot.is_available():
        raise ValueError(plot.MISSING)
    return _compare_cells(arguments) if arguments.compare_cells else _time_model(arguments)


def _time_model(arguments: argparse.Namespace) -> int:
    model = load_model(arguments)
    streams = not model.looks_ahead
    if arguments.plot and not streams:
        raise ValueError(
            f"--plot draws the times of steps, and this model has none: {model.looks_ahead}"
        )
    timer_us = latency.timer_ns() / 1000
    # No progress bar: its thread would wake up in the middle of a step.
    steps = None
    if streams:
        x = random_input(model, (cells.ROWS,), seed=0)
        steps = latency.time_steps(model, x, steps=arguments.steps, seconds=arguments.seconds)
    x = random_input(model, (arguments.length,), seed=0)
    runs = latency.time_sequences(model, x, seconds=arguments.seconds / 2)
    fastest_us = float(runs.nanoseconds.min()) / 1000 / arguments.length
    sequence_us = runs.microseconds()["p50"] / arguments.length
    name = machine.cpu_name()
    if arguments.plot and steps is not None:
        plot.save_latency(
            arguments.plot,
            steps,
            title=f"{Path(arguments.model).name}: time of one step, one row, from Python",
            subtitle=f"{len(steps.nanoseconds):,} steps, {model.isa}, {model.dtype}, {name}; "
            f"the clock adds {timer_us:.2f} µs to each",
        )
    if arguments.json:
        terminal.write_json(
            {
                "model": arguments.model,
                "cpu": name,
                "allowed_cpus": processors.available(),
                "isa": model.isa,
                "dtype": model.dtype.name,
                "threads": model.threads,
                "timer_us": timer_us,
                "step": steps and {"steps": len(steps.nanoseconds)} | latency.latency_facts(steps),
                "sequence": {
                    "length": arguments.length,
                    "runs": len(runs.nanoseconds),
                    "step_us": sequence_us,
                    "fastest_step_us": fastest_us,
                    "steps_per_second": 1e6 / sequence_us,
                },
                "plot": arguments.plot,
            }
        )
        return 0
    page = terminal.open_page()
    page.pairs(
        {
            "model": f"{arguments.model}: {_kinds(model)}",
            "machine": f"{name}, {processors.available()} CPUs",
            "runs on": f"{model.isa}, {model.dtype}, threads: {model.threads}",
        }
    )
    if steps is None:
        page.heading("one step")
        page.text(f"There is no step: {model.looks_ahead}.")
    else:
        page.heading(
            f"one step of one row: {latency.step_call(model)}, {len(steps.nanoseconds):,} times"
        )
        page.pairs(latency.latency_lines(steps))
        page.text(f"(the clock itself adds about {timer_us:.2f} µs to each; nothing is subtracted)")
    page.heading(
        f"a sequence of {arguments.length:,} steps: model(x), {len(runs.nanoseconds)} times"
    )
    page.pairs(
        {
            "a step, median": f"{sequence_us:.3f} µs",
            "a step, fastest": f"{fastest_us:.3f} µs",
            "steps per second": f"{1e6 / sequence_us:,.0f}",
        }
    )
    if arguments.plot:
        page.text("")
        page.verdict(True, f"wrote {arguments.plot}")
    return 0


def _kinds(model: Model) -> str:
    """What its nodes are, each kind once, the first of them."""
    kinds = list(dict.fromkeys(node.layer.kind for node in model.graph.nodes))
    return ", ".join(kinds[:12]) + ", …" * (len(kinds) > 12)


def _compare_cells(arguments: argparse.Namespace) -> int:
    sizes = arguments.input_size or INPUT_SIZE, arguments.hidden_size or HIDDEN_SIZE
    groups = {
        "equal hidden size": cells.equal_hidden_size(*sizes),
        "equal parameters": cells.equal_parameters(*sizes),
    }
    timer_us = latency.timer_ns() / 1000
    # The LSTM is in both groups and measured once.
    distinct = list(dict.fromkeys(cell for group in groups.values() for cell in group))
    timed = cells.time_cells(
        distinct,
        steps=arguments.steps,
        length=arguments.length,
        seconds=arguments.seconds,
        isa=arguments.isa,
        threads=arguments.threads,
    )
    found = {
        title: [timed[distinct.index(cell)] for cell in group] for title, group in groups.items()
    }
    # A kernel may pass over a cell that is far too small for its vectors.
    isa, cpu = ", ".join(dict.fromkeys(one.isa for one in timed)), machine.cpu_name()
    if arguments.plot:
        plot.save_cells(
            arguments.plot,
            found,
            title=f"What a kind of cell costs: {sizes[0]} inputs, one row, float32",
            subtitle=f"medians, {isa}, threads: {arguments.threads}, {cpu}",
        )
    if arguments.json:
        terminal.write_json(
            {
                "cpu": cpu,
                "allowed_cpus": processors.available(),
                "dtype": "float32",
                "threads": arguments.threads,
                "timer_us": timer_us,
                "length": arguments.length,
                "groups": {
                    title: [_cell_facts(one, group[-1]) for one in group]
                    for title, group in found.items()
                },
                "plot": arguments.plot,
            }
        )
        return 0
    page = terminal.open_page()
    page.pairs(
        {
            "machine": f"{cpu}, {processors.available()} CPUs",
            "runs on": f"{isa}, float32, threads: {arguments.threads}",
            "measured": f"one row, {sizes[0]} inputs; medians in µs of stream.step(x, out=y), and "
            f"of a step of model(x) over {arguments.length:,} steps",
        }
    )
    for title, group in found.items():
        page.heading(title)
        page.table(
            ("cell", "H", "parameters", "step", "/LSTM", "in-sequence", "/LSTM", "steps/s"),
            [
                (
                    one.cell.kind,
                    str(one.cell.hidden_size),
                    f"{one.cell.parameters:,}",
                    f"{one.step_us:.2f}",
                    f"{one.step_us / group[-1].step_us:.2f}",
                    f"{one.sequence_step_us:.3f}",
                    f"{one.sequence_step_us / group[-1].sequence_step_us:.2f}",
                    f"{1e6 / one.sequence_step_us:,.0f}",
                )
                for one in group
            ],
            right="H parameters step /LSTM in-sequence steps/s",
        )
    page.text("")
    page.text(
        f"(the clock itself adds about {timer_us:.2f} µs to each step; nothing is subtracted)"
    )
    if arguments.plot:
        page.text("")
        page.verdict(True, f"wrote {arguments.plot}")
    return 0


def _cell_facts(timed: cells.Timed, lstm: cells.Timed) -> dict[str, Any]:
    return {
        "cell": timed.cell.kind,
        "input_size": timed.cell.input_size,
        "hidden_size": timed.cell.hidden_size,
        "parameters": timed.cell.parameters,
        "isa": timed.isa,
        "step": {"steps": len(timed.step.nanoseconds)} | latency.latency_facts(timed.step),
        "step_of_lstm": timed.step_us / lstm.step_us,
        "sequence": {
            "runs": len(timed.sequence.nanoseconds),
            "step_us": timed.sequence_step_us,
            "steps_per_second": 1e6 / timed.sequence_step_us,
        },
        "sequence_of_lstm": timed.sequence_step_us / lstm.sequence_step_us,
    }
