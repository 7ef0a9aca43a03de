"""``fastlstm verify``: a model's numbers against torch's and the exact ones."""

from __future__ import annotations

import argparse

import fastlstm
from fastlstm.commands import terminal, verification
from fastlstm.commands.arguments import (
    add_model,
    exit_code,
    load_model,
    not_negative,
    number,
    positive,
)

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "compare a model with torch and with a float64 evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Run a long random sequence in calls that carry the state on, and step by step, and "
        "compare it with a float64 evaluation of the same weights. The engine passes if its "
        "largest error is at most 1.5 times that of torch (4 times that of NumPy in the same "
        "precision, if torch is not installed), or within the tolerance."
    )
    add_model(parser)
    parser.add_argument(
        "--steps", type=positive, help="length (default 2000, or less if the model is very large)"
    )
    parser.add_argument("--batch", type=positive, default=4, help="rows (default %(default)s)")
    parser.add_argument(
        "--seed", type=not_negative, default=0, help="of the sequence (default %(default)s)"
    )
    parser.add_argument(
        "--tolerance",
        type=number,
        help="error that passes in any case, relative to the largest output (default 1e-5, or "
        "1e-12 for a float64 model)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare, show the errors, and fail if the engine's is too large."""
    # Unchecked, so that a file whose self-check fails is told here as a failed check.
    model = load_model(arguments, check=False)
    self_check = "passed"
    try:
        model.check()
    except fastlstm.FormatError as error:
        self_check = str(error)
    steps = arguments.steps or verification.default_steps(model)
    with terminal.progress("verifying", 3 * steps) as advance:
        found = verification.verify(
            model,
            steps=steps,
            batch_size=arguments.batch,
            seed=arguments.seed,
            tolerance=arguments.tolerance,
            advance=advance,
        )
    passed = found.passed and self_check == "passed"
    if arguments.json:
        terminal.write_json(
            {
                "passed": passed,
                "self_check": self_check,
                "model": arguments.model,
                "isa": model.isa,
                "dtype": model.dtype.name,
                "steps": steps,
                "steps_compared": found.steps,
                "batch_size": found.batch_size,
                "seed": arguments.seed,
                "yardstick_name": found.yardstick_name,
                "sequence": vars(found.sequence),
                "stepwise": found.stepwise and vars(found.stepwise),
                "yardstick": vars(found.yardstick),
                "ratio": found.ratio,
                "most_ratio": found.most_ratio,
                "limit": found.limit,
                "tolerance": found.tolerance,
                "scale": found.scale,
                "restart_steps": found.restart_steps,
            }
        )
        return exit_code(passed)
    page = terminal.open_page()
    evaluations = {
        "engine, sequences": found.sequence,
        "engine, step by step": found.stepwise,
        f"{found.yardstick_name}, {model.dtype}": found.yardstick,
    }
    page.heading("largest absolute error against a float64 evaluation")
    page.table(
        ("", "error", "step", "row", "feature"),
        [
            (name, f"{e.error:.2e}", f"{e.step}", f"{e.row}", f"{e.feature}")
            for name, e in evaluations.items()
            if e is not None
        ],
        right="error step row feature",
    )
    page.text("")
    ratio = f"{found.ratio:.2f} times the error of {found.yardstick_name}"
    if not found.yardstick.error > 0:
        ratio = f"none: {found.yardstick_name} made no error"
    state = "state carried on"
    if found.restart_steps:
        state = f"a chaotic model: state taken anew every {found.restart_steps} steps"
    page.pairs(
        {
            "compared": f"{found.steps} of {steps} random steps, {found.batch_size} rows, {state}",
            "largest output": f"{found.scale:.3g}",
            "ratio": ratio,
            "limit": f"{found.limit:.2e}: the larger of {found.most_ratio} times that error "
            f"and {found.tolerance:.0e} of the largest output",
            "instruction set": model.isa,
            "self-check": self_check,
        }
    )
    if not found.steps:
        page.verdict(False, "the outputs are not finite from the first step: nothing to compare")
    elif not found.passed:
        page.verdict(False, f"the engine is off by {found.error:.2e}, more than {found.limit:.2e}")
    elif not passed:
        page.verdict(False, "the model does not give the output that its file records")
    else:
        page.verdict(True, f"the engine is off by at most {found.error:.2e}")
    return exit_code(passed)
