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
    parser.add_argument(
        "--specialise",
        action="store_true",
        help="C whose sizes and weights are constants: for small models and microcontrollers",
    )
    parser.add_argument(
        "--isa",
        metavar="NAME",
        help="the instruction set of a specialised model, which this processor need not have: "
        "avx512vnni, avx512, avxvnni, avx2, neondot, neon, simd128, fused (a microcontroller with "
        "fused multiply-adds) or scalar",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="what a specialised model is called in C (default: model)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what to do with it."""
    model = fastlstm.load(arguments.model)
    fastlstm.export(
        model,
        arguments.directory,
        apart=arguments.apart,
        specialise=arguments.specialise,
        isa=arguments.isa,
        name=arguments.name,
    )
    command = f"make -C {shlex.quote(arguments.directory)}"
    if arguments.json:
        files = sorted(os.listdir(arguments.directory))
        terminal.write_json({"directory": arguments.directory, "files": files, "build": command})
        return 0
    page = terminal.open_page()
    page.verdict(True, f"wrote {arguments.directory}")
    page.text(f"build it: {command}")
    return 0
