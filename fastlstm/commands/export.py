"""``fastlstm export``: a model file to a folder of C."""

from __future__ import annotations

import argparse
import os
import shlex

import fastlstm
from fastlstm.commands import terminal

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "write a model as a folder of C that builds with one make"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Write a folder of C: the engine's sources, the model, and a program that runs it. No "
        "Python is needed from there on."
    )
    parser.add_argument("model", metavar="MODEL", help="a file that fastlstm convert wrote")
    parser.add_argument("directory", metavar="DIR", help="the folder to write, made if need be")
    parser.add_argument(
        "--apart",
        action=argparse.BooleanOptionalAction,
        help="the model beside the sources, as model.flm, and not within, as an array "
        "(default: if it takes more than 4 MiB)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what to do with it."""
    model = fastlstm.load(arguments.model)
    fastlstm.export(model, arguments.directory, apart=arguments.apart)
    command = f"make -C {shlex.quote(arguments.directory)}"
    if arguments.json:
        files = sorted(os.listdir(arguments.directory))
        terminal.write_json({"directory": arguments.directory, "files": files, "build": command})
        return 0
    page = terminal.open_page()
    page.verdict(True, f"wrote {arguments.directory}")
    page.text(f"build it: {command}")
    return 0
