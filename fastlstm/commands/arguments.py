"""Arguments that commands share: their types, the model, the exit code."""

from __future__ import annotations

import argparse
import math

import fastlstm
from fastlstm import Model

__all__ = [
    "add_model",
    "exit_code",
    "load_model",
    "not_negative",
    "number",
    "positive",
    "tokens",
]


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The arguments of a command that runs a model."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="a file that fastlstm convert wrote",
    )
    parser.add_argument("--isa", help="instruction set to run on (see fastlstm doctor)")
    parser.add_argument(
        "--threads", type=positive, default=1, help="a call may use (default %(default)s)"
    )


def load_model(arguments: argparse.Namespace, check: bool = True) -> Model:
    """The model that :func:`add_model` asked for."""
    return fastlstm.load(arguments.model, threads=arguments.threads, isa=arguments.isa, check=check)


def exit_code(passed: bool) -> int:
    """Of a command that checks something."""
    return 0 if passed else 1


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _integer(text, 1)


def not_negative(text: str) -> int:
    """An integer of at least 0."""
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r}; expected an integer of at least {least}")
    return number


def number(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a finite number of at least 0")
    return value


def tokens(text: str) -> list[int]:
    """Integers of at least 0 with commas between."""
    return [not_negative(token) for token in text.split(",")]
