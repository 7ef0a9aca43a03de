"""``fastlstm verify``: a model's numbers against the exact ones, torch's and its source's."""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
from pathlib import Path
from typing import Any

import fastlstm
from fastlstm import Model
from fastlstm.commands import plot, terminal
from fastlstm.commands.arguments import (
    add_model,
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
    open_module,
    runner_of,
    verify,
)

__all__ = ["SUMMARY", "add_arguments", "next_command", "run"]

SUMMARY = "compare a model with its equations, and with what it was made of"

# Files of weights whose module their owner can have.
CHECKPOINTS = {".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors"}

EXIT_CODES = {"ok": 0, "differs": 1, "not compared": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Run a long random sequence in calls that carry the state on, and step by step, and "
        "compare it with the equations in float64 (in extended precision, for a float64 model) "
        "and the same weights. The engine passes if its "
        "largest error is at most 1.5 times that of torch (4 times that of NumPy in the same "
        "precision, if torch is not installed or lacks a layer), or within the tolerance. What "
        "the model was made of is run on the same numbers, if it is given: only then is it known "
        "whether the conversion is right."
    )
    parser.epilog = (
        "exit codes: 0 the original was run and nothing differs; 1 something differs; 2 bad usage "
        "or a bad file; 3 not compared: nothing was run that the model was made of, or it lacks "
        "an output"
    )
    add_model(parser)
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        help="what the model was made of: an .onnx file, a TorchScript archive, a .pt2, "
        ".keras or .h5 file, which onnxruntime, torch or keras runs, with what is in it; or a "
        "checkpoint, which is converted again and must have the same weights, or of a quantised "
        "model the model file it was made of",
    )
    parser.add_argument(
        "--module",
        metavar="FILE.py:CLASS",
        help="the PyTorch module that the checkpoint --against is of: a class, a module, or a "
        "function that makes one without arguments. This imports FILE.py and runs what is in it: "
        "your own code, or code that you trust",
    )
    parser.add_argument(
        "--recorded",
        metavar="FILE.npz",
        help="numbers of the original: arrays x and y, or each input and output under its name, "
        "(T, ...), (T, B, ...) or (B, T, ...); and the model's states, under their names, where "
        "it did not begin as the model does",
    )
    parser.add_argument(
        "--steps", type=positive, default=STEPS, help="length (default %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=positive,
        help=f"rows (default {BATCH_SIZE}, or what a source is made for)",
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
    against, unused = _source(arguments, model)
    unquantised = _unquantised(arguments, model, against)
    with terminal.progress("verifying", arguments.steps) as advance:
        found = verify(
            model,
            against,
            recorded=arguments.recorded,
            steps=arguments.steps,
            batch_size=arguments.batch,
            seed=arguments.seed,
            tolerance=arguments.tolerance,
            seconds=arguments.seconds,
            advance=advance,
            unquantised=unquantised,
        )
    outcome = found.outcome if self_check == "passed" else "differs"
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
                "module": arguments.module,
                "recorded": arguments.recorded,
                "isa": model.isa,
                "dtype": model.dtype.name,
                "seed": arguments.seed,
                "self_check": self_check,
            }
            | found.facts()
            | {"outcome": outcome, "passed": outcome == "ok", "plot": arguments.plot}
            | ({"unused": unused} if unused else {})
        )
        return EXIT_CODES[outcome]
    _show(model, found, self_check, arguments.plot, unused)
    return EXIT_CODES[outcome]


def next_command(source: str, destination: str, model: Model) -> str:
    """The command that verifies what was converted, to be told by whoever did."""
    written, original = shlex.quote(destination), shlex.quote(source)
    if _runs(source, model):
        return f"fastlstm verify {written} --against {original}"
    if Path(source).suffix.lower() in CHECKPOINTS:
        return f"fastlstm verify {written} --module FILE.py:CLASS --against {original}"
    return f"fastlstm verify {written} --recorded FILE.npz"


def _runs(source: str, model: Model) -> bool:
    """Whether a source can be run beside the model that was made of it.

    A file of Keras that holds weights alone was not followed, and so has no call.
    """
    runner = runner_of(source)
    return runner != "" and (runner != "keras" or "call" in model.source)


def _source(arguments: argparse.Namespace, model: Model) -> tuple[Any, list[str]]:
    """What to verify against, as the library takes it, and the options that it does not need."""
    source, options = arguments.against, given_options(arguments)
    if arguments.module is not None:
        return open_module(arguments.module, source), options
    if source is None:
        if options:
            raise ValueError(
                f"{options[0]} is of a SOURCE that is converted again; expected it with --against "
                f"and a checkpoint"
            )
        return None, []
    if _runs(source, model):
        return source, options
    return _converted(arguments, model), []


def _converted(arguments: argparse.Namespace, model: Model) -> Model:
    """The source as a model: the one it is, if it is a model file, or as it is converted again."""
    with contextlib.suppress(fastlstm.FormatError):
        return fastlstm.load(arguments.against)
    options = conversion_options(arguments)
    return fastlstm.from_torch(arguments.against, dtype=model.dtype.name, **options)


def _unquantised(arguments: argparse.Namespace, model: Model, against: Any) -> Model | None:
    """What a model in fewer bytes was made of, where that was run itself and converts again."""
    if model.measured is None or against is None or isinstance(against, Model):
        return None
    with contextlib.suppress(fastlstm.ConvertError):
        if arguments.module is not None:
            return fastlstm.from_torch(against, **conversion_options(arguments))
        return _converted(arguments, model)
    return None


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


def _show(
    model: Model,
    found: Verification,
    self_check: str,
    drawn: str | None,
    unused: list[str],
) -> None:
    page = terminal.open_page()
    several = len(found.drifts) > 1
    for comparison in found.judged:
        where = f", {comparison.output}" if several else ""
        page.heading(f"largest error against {found.exact_in}: {_compared(comparison)}{where}")
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
    for comparison in found.quantised:
        where = f", {comparison.output}" if several else ""
        page.heading(
            f"errors against float64 with the weights before they were quantised: "
            f"{_compared(comparison)}{where}"
        )
        page.table(
            ("", "error", "rms"),
            [
                (name, f"{errors.worst.error:.2e}", f"{errors.total_rms:.2e}")
                for name, errors in comparison.errors.items()
            ],
            right="error rms",
        )
    for comparison in found.drifts:
        _show_drift(page, found, comparison)
    first = found.judged[0]
    ratio = f"{found.ratio:.2f} times that of {found.yardstick}"
    if math.isnan(found.ratio):
        ratio = f"{found.error:.1e}, and {found.yardstick} made none"
    passes = f"{found.most_ratio:g} times it or {found.floor(first, found.yardstick):.1e} passes"
    notes = [f"{', '.join(unused)} was not needed: the original was run itself"] if unused else []
    page.text("")
    page.pairs(
        {
            "compared": f"{first.outputs:,} outputs, the largest {first.scale:.3g}",
            "engine's error": f"{ratio}; {passes}",
            "instruction set": model.isa,
            "self-check": self_check,
        }
        | ({"notes": "\n".join([*notes, *found.notes])} if notes or found.notes else {})
    )
    page.heading("compared with what the model was made of")
    page.pairs(found.compared)
    page.text("")
    if drawn:
        page.text(f"wrote {drawn}")
    for verdict in _verdicts(found, self_check):
        page.verdict(verdict.passed, verdict.text)
    for line in found.not_verified:
        page.text(f"not verified: {line}")
    if found.passed and self_check == "passed":
        page.verdict(True, found.said)
    for text in found.not_compared:
        page.text(f"not compared: {text}")
    if not found.original:
        page.text(WAYS_ON)


WAYS_ON = (
    "to compare them, give what the model was made of: --against FILE (.onnx, TorchScript, .pt2, "
    ".keras), "
    "--module FILE.py:CLASS --against CHECKPOINT, or numbers of it, --recorded FILE.npz"
)


def _show_drift(page: terminal.Page, found: Verification, drift: Comparison) -> None:
    if drift.starts != "carried" or not drift.outputs:
        return
    grown = {None: "too short to tell", True: "grows", False: "no"}
    where = f", {drift.output}" if len(found.drifts) > 1 else ""
    page.heading(f"drift: rms error of each third of {drift.outputs:,} outputs{where}")
    page.table(
        ("", "first", "middle", "last", "last/first", "drifts"),
        [
            (
                name,
                *(f"{third:.2e}" for third in errors.thirds),
                "" if math.isnan(errors.growth) else f"{errors.growth:.2f}",
                grown[errors.grows],
            )
            for name, errors in drift.errors.items()
        ],
        right="first middle last last/first",
    )
    if found.diverges:
        page.text(
            f"(rounding alone takes {found.yardstick} off by "
            f"{drift.errors[found.yardstick].worst.error:.2e}, beyond any tolerance: what is "
            f"judged are sequences of {max(found.judged[0].calls)} steps)"
        )


def _verdicts(found: Verification, self_check: str) -> list[Verdict]:
    verdicts = [*found.verdicts]
    if self_check != "passed":
        verdicts.append(Verdict(False, "the model does not give the output that its file records"))
    return verdicts
