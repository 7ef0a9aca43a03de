"""``fastlstm convert``: a trained checkpoint to a model file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

import fastlstm
from fastlstm.commands import terminal
from fastlstm.commands.conversion import (
    add_conversion,
    add_precision,
    conversion_options,
    precision_options,
)
from fastlstm.commands.precision import show_measured
from fastlstm.commands.verify import next_command

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "convert a trained model to a model file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Convert a trained model to a model file: a PyTorch checkpoint (.pt, .pth, .bin, .ckpt, "
        ".safetensors or .npz; without torch), an ONNX model (.onnx) or a Keras model (.keras, "
        ".h5; without Keras)."
    )
    parser.add_argument("source", metavar="SOURCE", help="the trained model")
    parser.add_argument("destination", metavar="DESTINATION", help="the file to write or replace")
    add_conversion(parser)
    add_precision(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="what the model is stored and computed in (default %(default)s)",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="the text of each token, one a line, or a .json file with a list of strings",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert, and show what became of every tensor."""
    source, destination = arguments.source, arguments.destination
    with contextlib.suppress(OSError):
        if os.path.samefile(source, destination):
            raise ValueError(f"{destination!r} is the source itself; expected another destination")
    vocabulary = None if arguments.vocabulary is None else _read_vocabulary(arguments.vocabulary)
    model = fastlstm.convert(
        source,
        destination,
        dtype=arguments.dtype,
        vocabulary=vocabulary,
        **precision_options(arguments),
        **conversion_options(arguments),
    )
    size = os.path.getsize(destination)
    if arguments.json:
        terminal.write_json(
            {
                "source": source,
                "destination": destination,
                "bytes": size,
                "dtype": model.dtype.name,
                "precision": model.precision,
                "measured": model.measured and model.measured.to_dict(),
                "graph": model.graph.to_dict(),
                "report": model.source["report"].split("\n"),
                "verify": next_command(source, destination, model),
            }
        )
        return 0
    page = terminal.open_page()
    page.text(model.source["report"])
    show_measured(page, model)
    stored = ", ".join(sorted({*model.precision.values()})) or model.dtype.name
    page.verdict(True, f"wrote {destination}: {terminal.byte_count(size)}, {stored}")
    command = next_command(source, destination, model)
    yours = ", CLASS being the module that it is of" if ":CLASS" in command else ""
    page.text(f"verify it: {command}{yours}")
    return 0


def _read_vocabulary(path: str) -> list[str]:
    """The strings of a .json file's list, or the lines of any other, which keep their spaces."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not path.endswith(".json"):
            return text.removesuffix("\n").split("\n")
        strings = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path!r} is not UTF-8 text or not JSON: {error}") from None
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise ValueError(f"{path!r} does not hold a list of strings; expected a vocabulary")
    return strings
