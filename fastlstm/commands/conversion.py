"""What a source does not tell about the model in it: the options of whatever converts one."""

from __future__ import annotations

import argparse
from typing import Any

from fastlstm.commands.arguments import number

__all__ = [
    "add_conversion",
    "add_precision",
    "conversion_options",
    "given_options",
    "precision_options",
]


def add_conversion(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare them."""
    parser.add_argument(
        "--layers",
        help="the order of the layers, such as 'embedding, lstm, linear', or with the prefix of "
        "each one's tensors, 'lstm:encoder.rnn, relu, linear:head'; docs/layers.md has all words",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="of cells written by hand, which tensor is which gate: a built-in recipe, as keras, "
        "tf1, gluon or d2l, or the path of a .toml file (docs/recipes.md has all of both)",
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
        "--input",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="of an ONNX model, an input that is the same in every call, as sr=16000, or the shape "
        "of one, as x=1x576, with ? for a size that stays open; may be given again",
    )
    parser.add_argument(
        "--output",
        metavar="LAYER",
        action="append",
        default=[],
        help="a layer whose rows the model gives instead of the last one's; may be given again",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Declare what the matrices are stored in."""
    parser.add_argument(
        "--precision",
        metavar="P",
        action="append",
        default=[],
        help="what to store matrices in: int8, float16 or bfloat16; or of one layer, LAYER=P, the "
        "others staying float32, which may be given again",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE.npz",
        help="inputs to measure the error with, the array of each under its name, (T, ...) or "
        "(T, B, ...), or the one there is; without it they are random",
    )
    parser.add_argument(
        "--target-error",
        metavar="E",
        type=number,
        help="choose how each layer is stored, so that the largest error of an output stays at or "
        "below E and a step reads few bytes",
    )


def precision_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """As ``fastlstm.convert`` and ``fastlstm.quantize`` take them."""
    given: list[str] = arguments.precision
    layers = dict(text.rpartition("=")[::2] for text in given if "=" in text)
    if len(given) > 1 and len(layers) < len(given):
        raise ValueError(
            f"--precision is {' and '.join(given):.100}; expected one for all layers, or one for "
            f"each of several, as LAYER=int8"
        )
    precision = layers or (given[0] if given else None)
    return {
        "precision": precision,
        "calibrate": arguments.calibrate,
        "target_error": arguments.target_error,
    }


def conversion_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """As ``fastlstm.convert`` and ``fastlstm.from_torch`` take them."""
    return {
        "layers": arguments.layers,
        "recipe": arguments.recipe,
        "prefix": arguments.prefix,
        "nonlinearity": arguments.nonlinearity,
        "ignore": arguments.ignore,
        "inputs": _inputs(arguments.input),
        "outputs": arguments.output,
    }


def _inputs(texts: list[str]) -> dict[str, str]:
    """Names and values; a name may have a = in it, and a value has none."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise ValueError(f"--input is {text!r:.100}; expected NAME=VALUE, as in sr=16000")
        if name in values:
            raise ValueError(f"--input names {name!r:.100} twice")
        values[name] = value
    return values


def given_options(arguments: argparse.Namespace) -> list[str]:
    """Those that were given, as they are called."""
    given = conversion_options(arguments)
    given["output"], given["input"] = given.pop("outputs"), given.pop("inputs")
    return [f"--{name}" for name, value in given.items() if value]
