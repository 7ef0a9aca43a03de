"""One sequence through several evaluations, call by call, each compared with the exact one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastlstm.model import Model
from fastlstm.verification.errors import LEAST_DRIFT, Errors, errors_of, joined
from fastlstm.verification.evaluations import Run, outputs_known, steps_to_output

__all__ = ["RESTART_STEPS", "Comparison", "Starts", "compare", "cut"]

Array = npt.NDArray[Any]
Advance = Callable[[int], None]

# Where a call starts from: where the last one ended, where the exact one ended, or the beginning.
Starts = Literal["carried", "restarted", "anew"]

# Lengths of the first calls: one step, two, and what no vector or block is a multiple of.
FIRST_CALLS = (1, 2, 17, 128, 256, 512)

# Steps between restarts for a chaotic model: few, so that the error of the first has not grown by
# much more in one evaluation than in another when the last is judged.
RESTART_STEPS = 4

# A sequence is cut into at least so many calls where only the last step of each has an output.
LEAST_OUTPUTS = LEAST_DRIFT

# Outputs times rows times features of a call: 32 MB in float64.
MOST_NUMBERS = 2**22


@dataclass(frozen=True, eq=False)
class Comparison:
    """Errors of several evaluations over one sequence.

    Attributes
    ----------
    starts : {"carried", "restarted", "anew"}
        Whether each evaluation went on from its own state from call to call, took the exact one at
        every call, or began each call anew.
    calls : tuple of int
        Steps of each call.
    batch_size, outputs : int
        What was compared: the outputs before the exact one or the yardstick left the range of the
        model's dtype.
    scale : float
        The largest output.
    errors : dict of str to Errors
        By the name of the evaluation.
    """

    starts: Starts
    calls: tuple[int, ...]
    batch_size: int
    outputs: int
    scale: float
    errors: dict[str, Errors]

    @property
    def steps(self) -> int:
        """Of the input."""
        return sum(self.calls)


def cut(
    model: Model,
    steps: int,
    batch_size: int,
    starts: Starts,
    *,
    unit: int = 1,
    longest: int | None = None,
) -> list[int]:
    """`steps` as the lengths of calls, all multiples of `unit`; at least one.

    What is left at the end is dropped where it is too short for a call.
    """
    # A call too short to give an output would have nothing to pool, and torch refuses it.
    least = 1
    if starts == "anew":
        least = max(steps_to_output(model), model.step_stride)
    elif model.pools_over_time:
        least = max(model.delay + 1, model.step_stride)
    most = max(1, MOST_NUMBERS // (batch_size * model.output_size))
    if longest is not None:
        most = min(most, longest)
    if model.pools_over_time and starts == "carried":
        most = min(most, max(steps // LEAST_OUTPUTS, 1))
    calls: list[int] = []
    left = steps
    while not calls or left >= max(unit, least):
        number = len(calls)
        wanted = FIRST_CALLS[min(number, len(FIRST_CALLS) - 1)]
        if starts == "anew" and number >= len(FIRST_CALLS):
            # Nothing but its length tells how far one that begins anew has come.
            wanted *= 2 ** (number - len(FIRST_CALLS) + 1)
        length = max(min(wanted, most, left), least)
        calls.append(math.ceil(length / unit) * unit)
        left -= calls[-1]
    return calls


def compare(
    model: Model,
    exactly: Run,
    evaluations: Mapping[str, Run],
    yardstick: str,
    x: Array,
    calls: Sequence[int],
    starts: Starts,
    advance: Advance = lambda steps: None,
) -> Comparison:
    """Run them all, side by side.

    Parameters
    ----------
    model : Model
        Whose graph tells when an output comes.
    exactly : Run
        The truth.
    evaluations : mapping of str to Run
    yardstick : str
        Which of them tells how far the dtype goes.
    x : array (T, B, I) or tokens (T, B)
    calls : sequence of int
        Lengths, T in all.
    starts : Starts
    advance : callable of int, optional
        Told of the steps of every call.
    """
    parts: dict[str, list[Errors]] = {name: [] for name in evaluations}
    sizes: list[Array] = []
    states: dict[str, Any] = dict.fromkeys(evaluations)
    true_state: Any = None
    at = outputs = 0
    for length in calls:
        chunk = x[at : at + length]
        if starts == "anew":
            true_state, states = None, dict.fromkeys(evaluations)
        elif starts == "restarted":
            states = dict.fromkeys(evaluations, _rounded(true_state, model.dtype))
        exact, true_state = exactly(chunk, true_state, starts == "anew")
        steps = _known_at(model, len(exact), at, length, 0 if starts == "anew" else outputs, starts)
        for name, run in evaluations.items():
            y, states[name] = run(chunk, states[name], starts == "anew")
            parts[name].append(errors_of(y, exact, steps))
        with np.errstate(invalid="ignore"):
            sizes.append(np.abs(exact).max(axis=(1, 2)))
        at += length
        outputs += len(exact)
        advance(length)
    errors = {name: joined(found) for name, found in parts.items()}
    size = np.concatenate(sizes)
    finite = np.isfinite(size) & np.isfinite(errors[yardstick].largest)
    end = len(finite) if finite.all() else int(finite.argmin())
    return Comparison(
        starts=starts,
        calls=tuple(calls),
        batch_size=x.shape[1],
        outputs=end,
        scale=float(size[:end].max(initial=0.0)),
        errors={name: found.first(end) for name, found in errors.items()},
    )


def _rounded(state: Mapping[str, Array] | None, dtype: np.dtype[Any]) -> dict[str, Array] | None:
    with np.errstate(over="ignore"):
        return (
            None
            if state is None
            else {name: a if a.dtype == np.int64 else a.astype(dtype) for name, a in state.items()}
        )


def _known_at(model: Model, n: int, at: int, length: int, before: int, starts: Starts) -> Array:
    """The steps after which the `n` outputs of a call are known, `before` of them before it."""
    if model.pools_over_time:
        return np.full(n, at + length - 1)
    steps = outputs_known(model, before, before + n)
    known: Array = np.minimum(steps + (at if starts == "anew" else 0), at + length - 1)
    return known
