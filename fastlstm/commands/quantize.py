"""``fastlstm quantize``: a model file in fewer bytes."""

from __future__ import annotations

import argparse
import contextlib
import os

import fastlstm
from fastlstm.commands import terminal
from fastlstm.commands.arguments import add_model, load_model
from fastlstm.commands.conversion import add_precision, precision_options
from fastlstm.commands.precision import show_measured

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "store a model's matrices in fewer bytes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Store a model's matrices as int8, float16 or bfloat16, and measure what that costs: the "
        "errors against the equations in float64 with the weights that MODEL has. What is computed "
        "stays float32."
    )
    add_model(parser)
    parser.add_argument("destination", metavar="DESTINATION", help="the file to write or replace")
    add_precision(parser)


def run(arguments: argparse.Namespace) -> int:
    """Quantise, measure and write."""
    source, destination = arguments.model, arguments.destination
    with contextlib.suppress(OSError):
        if os.path.samefile(source, destination):
            raise ValueError(f"{destination!r} is MODEL itself; expected another destination")
    options = precision_options(arguments)
    if options["precision"] is None and options["target_error"] is None:
        raise ValueError("expected --precision int8, float16 or bfloat16, or --target-error E")
    model = fastlstm.quantize(load_model(arguments), **options)
    model.check()
    model.save(destination)
    before, size = os.path.getsize(source), os.path.getsize(destination)
    if arguments.json:
        terminal.write_json(
            {
                "model": source,
                "destination": destination,
                "bytes": size,
                "bytes_before": before,
                "precision": model.precision,
                "measured": model.measured and model.measured.to_dict(),
            }
        )
        return 0
    page = terminal.open_page()
    page.text(model.source["precision"])
    show_measured(page, model)
    page.text("")
    sizes = f"{terminal.byte_count(size)} of {terminal.byte_count(before)}"
    page.verdict(True, f"wrote {destination}: {sizes}")
    return 0
