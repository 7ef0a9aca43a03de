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
from fastlstm.verification.evaluations import (
    Arrays,
    Run,
    cut_out,
    last_only,
    moving,
    outputs_known,
    row_of,
    size_of,
    steps_to_output,
)

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
    """Errors of several evaluations over one sequence, in one output.

    Attributes
    ----------
    output : str
        Its name.
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
        By the name of the evaluation; of those that give this output.
    """

    output: str
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
    most = max(1, MOST_NUMBERS // (batch_size * size_of(model)))
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
    x: Arrays,
    calls: Sequence[int],
    starts: Starts,
    advance: Advance = lambda steps: None,
    state: Any = None,
    until: float = math.inf,
) -> tuple[Comparison, ...]:
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
    x : mapping of str to array
        Inputs.
    calls : sequence of int
        Lengths, T in all.
    starts : Starts
    advance : callable of int, optional
        Told of the steps of every call.
    state : mapping of str to array, optional
        What all start from, if it is not the model's own start.
    until : float, optional
        The yardstick's error, relative to the largest output, from which on nothing is compared.

    Returns
    -------
    tuple of Comparison
        One for each output.
    """
    parts: dict[str, dict[str, list[Errors]]] = {name: {} for name in model.outputs}
    sizes: dict[str, list[Array]] = {name: [] for name in model.outputs}
    before = dict.fromkeys(model.outputs, 0)  # rows of the calls so far
    true_state = state
    states: dict[str, Any] = dict.fromkeys(evaluations, _rounded(state, model.dtype))
    at = 0
    for length in calls:
        chunk = cut_out(model.graph, x, at, at + length)
        if starts == "anew" and at:
            true_state, states = None, dict.fromkeys(evaluations)
        elif starts == "restarted":
            states = dict.fromkeys(evaluations, _rounded(true_state, model.dtype))
        exact, true_state = exactly(chunk, true_state, starts == "anew")
        known = {
            name: _known_at(
                model, name, len(y), at, length, 0 if starts == "anew" else before[name], starts
            )
            for name, y in exact.items()
        }
        for name, run in evaluations.items():
            made, states[name] = run(chunk, states[name], starts == "anew")
            for output, y in made.items():
                # Another number of rows is as far off as can be.
                rows = y if y.shape == exact[output].shape else np.full_like(exact[output], np.nan)
                found = errors_of(rows, exact[output], known[output])
                parts[output].setdefault(name, []).append(found)
        for output, y in exact.items():
            with np.errstate(invalid="ignore"):
                sizes[output].append(np.abs(y).max(axis=(1, 2)))
            before[output] += len(y)
        at += length
        advance(length)
    batch_size = moving(model.graph, x)[1]
    return tuple(
        _compared(
            {name: joined(found) for name, found in parts[output].items()},
            np.concatenate(sizes[output]),
            yardstick,
            until,
            output=output,
            starts=starts,
            calls=tuple(calls),
            batch_size=batch_size,
        )
        for output in model.outputs
    )


def _compared(
    errors: dict[str, Errors], size: Array, yardstick: str, until: float, **facts: Any
) -> Comparison:
    """Up to where the exact evaluation and the yardstick are within the range of the dtype."""
    measure = errors[yardstick].largest
    finite = np.isfinite(size) & np.isfinite(measure)
    near = finite & (measure <= until * max(size[finite].max(initial=0.0), 1e-30))
    end = len(near) if near.all() else int(near.argmin())
    return Comparison(
        **facts,
        outputs=end,
        scale=float(size[:end].max(initial=0.0)),
        errors={name: found.first(end) for name, found in errors.items()},
    )


def _rounded(state: Arrays | None, dtype: np.dtype[Any]) -> dict[str, Array] | None:
    with np.errstate(over="ignore"):
        return (
            None
            if state is None
            else {name: a if a.dtype == np.int64 else a.astype(dtype) for name, a in state.items()}
        )


def _known_at(
    model: Model, output: str, n: int, at: int, length: int, before: int, starts: Starts
) -> Array:
    """The steps after which the `n` rows of a call are known, `before` of them before it."""
    if last_only(row_of(model, output)):
        return np.full(n, at + length - 1)
    steps = outputs_known(model, output, before, before + n)
    known: Array = np.minimum(steps + (at if starts == "anew" else 0), at + length - 1)
    return known
