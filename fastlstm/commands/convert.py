"""``fastlstm convert``: a trained checkpoint to a model file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

import fastlstm
from fastlstm.commands import terminal

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "convert a trained PyTorch checkpoint to a model file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Convert a trained PyTorch checkpoint (.pt, .pth, .bin, .ckpt or .safetensors) to a model "
        "file, without torch."
    )
    parser.add_argument("source", metavar="SOURCE", help="the checkpoint")
    parser.add_argument("destination", metavar="DESTINATION", help="the file to write or replace")
    parser.add_argument(
        "--layers",
        help="the order of the layers, such as 'embedding, lstm, linear', or with the prefix of "
        "each one's tensors, 'lstm:encoder.rnn, relu, linear:head'",
    )
    parser.add_argument("--prefix", help="take only the tensors whose names start with it")
    parser.add_argument("--nonlinearity", choices=("tanh", "relu"), help="of an RNN")
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="names of tensors that may stay unused; may be given again",
    )
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
        layers=arguments.layers,
        prefix=arguments.prefix,
        nonlinearity=arguments.nonlinearity,
        ignore=arguments.ignore,
        dtype=arguments.dtype,
        vocabulary=vocabulary,
    )
    size = os.path.getsize(destination)
    if arguments.json:
        terminal.write_json(
            {
                "source": source,
                "destination": destination,
                "bytes": size,
                "dtype": model.dtype.name,
                "layers": [layer.to_dict() for layer in model.layers],
                "report": model.source["report"].split("\n"),
            }
        )
        return 0
    page = terminal.open_page()
    page.text(model.source["report"])
    page.verdict(True, f"wrote {destination}: {terminal.byte_count(size)}, {model.dtype}")
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
