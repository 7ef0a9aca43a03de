"""``fastlstm bench``: the speed of a model on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastlstm import processors
from fastlstm.commands import latency, machine, plot, terminal
from fastlstm.commands.arguments import add_model, load_model, number, positive
from fastlstm.commands.inputs import is_bidirectional, random_input

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "measure the speed of a model on this machine"


# Rows of input that steps go round: few, so that they do not take the weights' place in a cache.
ROWS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add_model(parser)
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
        help="at most so long for the steps, and half of it for sequences (default %(default)s)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the times of the steps")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show the times, and draw them if asked."""
    model = load_model(arguments)
    streams = not is_bidirectional(model)
    if arguments.plot and not plot.is_available():
        raise ValueError(plot.MISSING)
    if arguments.plot and not streams:
        raise ValueError("--plot draws the times of steps, and a bidirectional model has none")
    timer_us = latency.timer_ns() / 1000
    # No progress bar: its thread would wake up in the middle of a step.
    steps = None
    if streams:
        x = random_input(model, (ROWS,), seed=0)
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
            "model": f"{arguments.model}: " + ", ".join(layer.kind for layer in model.layers),
            "machine": f"{name}, {processors.available()} CPUs",
            "runs on": f"{model.isa}, {model.dtype}, threads: {model.threads}",
        }
    )
    if steps is None:
        page.heading("one step")
        page.text("A bidirectional model has no step: it needs the whole sequence first.")
    else:
        page.heading(
            f"one step of one row: stream.step(x, out=y), {len(steps.nanoseconds):,} times"
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
