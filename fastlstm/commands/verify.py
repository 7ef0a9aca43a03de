"""``fastlstm verify``: a model's numbers against the exact ones, torch's and its source's."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import fastlstm
from fastlstm import Model
from fastlstm.commands import plot, terminal
from fastlstm.commands.arguments import (
    add_model,
    exit_code,
    load_model,
    not_negative,
    number,
    positive,
)
from fastlstm.commands.conversion import add_conversion, conversion_options, given_options
from fastlstm.verification import (
    BATCH_SIZE,
    SECONDS,
    STEPS,
    Comparison,
    Verdict,
    Verification,
    verify,
)

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "compare a model with its equations, torch and its source"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Run a long random sequence in calls that carry the state on, and step by step, and "
        "compare it with the equations in float64 (in extended precision, for a float64 model) "
        "and the same weights. The engine passes if its "
        "largest error is at most 1.5 times that of torch (4 times that of NumPy in the same "
        "precision, if torch is not installed or lacks a layer), or within the tolerance."
    )
    add_model(parser)
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        help="what the model was made of: an .onnx file, which onnxruntime runs beside it, or "
        "another file, which is converted again and must have the same weights",
    )
    parser.add_argument(
        "--steps", type=positive, default=STEPS, help="length (default %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=positive,
        help=f"rows (default {BATCH_SIZE}, or what an .onnx file is made for)",
    )
    parser.add_argument(
        "--seed", type=not_negative, default=0, help="of the sequence (default %(default)s)"
    )
    parser.add_argument(
        "--tolerance",
        type=number,
        help="error that passes in any case, relative to the largest output (default 1e-5, or "
        "1e-12 for a float64 model)",
    )
    parser.add_argument(
        "--seconds",
        type=number,
        default=SECONDS,
        help="for the exact evaluation, whose sequence is shorter if need be (default %(default)s)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the errors along the sequence")
    add_conversion(
        parser.add_argument_group("of a SOURCE that is converted, as for fastlstm convert")
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare, show the errors, draw them if asked, and fail if one is too large."""
    if arguments.plot and not plot.is_available():
        raise ValueError(plot.MISSING)
    self_check = "passed"
    try:
        model = load_model(arguments)
    except fastlstm.FormatError as error:
        # What is sound but for its digest or its self-check is compared all the same.
        model = load_model(arguments, check=False)
        self_check = str(error)
    against = _source(arguments, model)
    with terminal.progress("verifying", arguments.steps) as advance:
        found = verify(
            model,
            against,
            steps=arguments.steps,
            batch_size=arguments.batch,
            seed=arguments.seed,
            tolerance=arguments.tolerance,
            seconds=arguments.seconds,
            advance=advance,
        )
    passed = found.passed and self_check == "passed"
    if arguments.plot:
        plot.save_drift(
            arguments.plot,
            found,
            title=f"{Path(arguments.model).name}: error against the equations in {found.exact_in}",
            subtitle=_about(model, found.drift),
        )
    if arguments.json:
        terminal.write_json(
            {
                "model": arguments.model,
                "against": arguments.against,
                "isa": model.isa,
                "dtype": model.dtype.name,
                "seed": arguments.seed,
                "self_check": self_check,
            }
            | found.facts()
            | {"passed": passed, "plot": arguments.plot}
        )
        return exit_code(passed)
    _show(model, found, self_check, arguments.plot)
    return exit_code(passed)


def _source(arguments: argparse.Namespace, model: Model) -> Any:
    """What to verify against, as the library takes it."""
    source, options = arguments.against, given_options(arguments)
    if source is None or source.lower().endswith(".onnx"):
        if options:
            raise ValueError(
                f"{options[0]} is of a SOURCE that is converted again; expected it with --against "
                f"and a checkpoint"
            )
        return source
    return fastlstm.from_torch(source, dtype=model.dtype.name, **conversion_options(arguments))


def _about(model: Model, comparison: Comparison) -> str:
    return f"{_compared(comparison)}; {model.isa}, {model.dtype}"


def _compared(comparison: Comparison) -> str:
    """Steps, rows and where the calls started."""
    calls = comparison.calls
    longest = max(calls)
    starts = {
        "carried": "state carried on",
        "restarted": f"exact state every {longest} steps",
        "anew": f"sequences of {min(calls)} to {longest:,} steps from the start",
    }
    if comparison.starts == "anew" and min(calls) == longest:
        starts["anew"] = f"sequences of {longest} steps from the start"
    rows = "1 row" if comparison.batch_size == 1 else f"{comparison.batch_size} rows"
    text = f"{comparison.steps:,} random steps, {rows}, "
    return text + starts[comparison.starts]


def _show(model: Model, found: Verification, self_check: str, drawn: str | None) -> None:
    page = terminal.open_page()
    for comparison in found.judged:
        page.heading(f"largest error against {found.exact_in}: {_compared(comparison)}")
        page.table(
            ("", "error", "rms", "step", "row", "feature", "limit"),
            [
                (
                    name,
                    f"{errors.worst.error:.2e}",
                    f"{errors.total_rms:.2e}",
                    f"{errors.worst.step}",
                    f"{errors.worst.row}",
                    f"{errors.worst.feature}",
                    f"{found.limit(comparison, name):.2e}" if name != found.yardstick else "",
                )
                for name, errors in comparison.errors.items()
            ],
            right="error rms step row feature limit",
        )
    _show_drift(page, found)
    first = found.judged[0]
    ratio = f"{found.ratio:.2f} times that of {found.yardstick}"
    if math.isnan(found.ratio):
        ratio = f"{found.error:.1e}, and {found.yardstick} made none"
    passes = f"{found.most_ratio:g} times it or {found.floor(first, found.yardstick):.1e} passes"
    page.text("")
    page.pairs(
        {
            "compared": f"{first.outputs:,} outputs, the largest {first.scale:.3g}",
            "engine's error": f"{ratio}; {passes}",
            "instruction set": model.isa,
            "self-check": self_check,
        }
        | ({"notes": "\n".join(found.notes)} if found.notes else {})
    )
    if drawn:
        page.text(f"wrote {drawn}")
    for verdict in _verdicts(found, self_check):
        page.verdict(verdict.passed, verdict.text)


def _show_drift(page: terminal.Page, found: Verification) -> None:
    if found.drift.starts != "carried" or not found.drift.outputs:
        return
    grown = {None: "too short to tell", True: "grows", False: "no"}
    page.heading(f"drift: rms error of each third of {found.drift.outputs:,} outputs")
    page.table(
        ("", "first", "middle", "last", "last/first", "drifts"),
        [
            (
                name,
                *(f"{third:.2e}" for third in errors.thirds),
                "" if math.isnan(errors.growth) else f"{errors.growth:.2f}",
                grown[errors.grows],
            )
            for name, errors in found.drift.errors.items()
        ],
        right="first middle last last/first",
    )
    if found.diverges:
        page.text(
            f"(rounding alone takes {found.yardstick} off by "
            f"{found.drift.errors[found.yardstick].worst.error:.2e}, beyond any tolerance: what is "
            f"judged are sequences of {max(found.judged[0].calls)} steps)"
        )


def _verdicts(found: Verification, self_check: str) -> list[Verdict]:
    verdicts = [*found.verdicts]
    if self_check != "passed":
        verdicts.append(Verdict(False, "the model does not give the output that its file records"))
    return verdicts
