"""The self-check: a short input with the reference's output, which a file carries and load runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import format, spec
from fastlstm.measured import Measured
from fastlstm.reduced import Reduced, Tensor, Tensors

__all__ = ["TOLERANCE", "drawn", "largest_error", "make", "tolerance"]

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# A token model's check takes as many different tokens, so that it reads their rows of a table.
STEPS = 8
TOKENS = 32
NUMBERS = 2**18  # at most in a layer's output, but for what one step needs
SEED = 20261121

# Largest error of the engine, relative to the largest output. A check is as long as rounding, in
# every way it was tried, stays within a tenth of that: a chaotic model soon does not, with any
# kernel, and one way alone may be off by a tenth of what the next machine's is.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
DRAWS = 2  # of weights with other last bits


def tolerance(
    dtype: np.dtype[Any], precision: Mapping[str, str], measured: Measured | None
) -> float:
    """The largest error with which a check passes, relative to the largest output.

    Where float32 and float64 differ in a last bit, an activation may be rounded to another integer.
    That is as far off as those that were when the error of int8 was measured.
    """
    least = TOLERANCE[dtype.name]
    integers = measured is not None and "int8" in precision.values()
    return max(least, measured.relative(1.0)) if measured and integers else least


def make(
    graph: spec.Graph,
    facts: spec.Facts,
    tensors: Tensors,
    dtype: np.dtype[Any],
    tolerance: float,
    begins: Mapping[str, Array] | None = None,
) -> tuple[Arrays, Arrays] | None:
    """An input and the float64 output of the reference for it; None of a model of too much work.

    Parameters
    ----------
    graph, facts, tensors
        The model.
    dtype : dtype
        What it computes in.
    tolerance : float
        The largest error with which it passes, relative to the largest output.
    begins : mapping of str to array (T, ...), optional
        Of each input what the check begins with, if it is not to be random; without T if held.

    Returns
    -------
    inputs : dict of str to array (T, ...) of `dtype` or int64, without T of what is held
    outputs : dict of str to float64 array (T', ...)
    """
    from fastlstm import reference  # what running a model does not need

    timings = [row.timing for v in graph.outputs.values() if (row := facts.rows[v]).timing]
    least = max((timing.delay for timing in timings), default=0) + 1
    longest = format.check_steps(facts)
    if least > longest:
        return None
    rng = np.random.default_rng(SEED)
    steps = _steps(graph, facts, least, longest)
    inputs = drawn(graph, steps, dtype, rng)
    if begins is not None:
        for i in graph.inputs:
            inputs[i.name] = begins[i.name] if i.held else begins[i.name][:steps]

    def outputs(weights: Tensors, kind: npt.DTypeLike) -> Arrays:
        batch = {
            i.name: inputs[i.name][None] if i.held else inputs[i.name][:, None]
            for i in graph.inputs
        }
        made = reference.forward(graph, weights, batch, dtype=kind)
        return {name: array[:, 0].astype(np.float64) for name, array in made.items()}  # tokens too

    with np.errstate(all="ignore"):  # weights that are not finite stay what they are
        truth = outputs(tensors, np.float64)
        others = [outputs(tensors, dtype)]
        others += [outputs(_with_other_bits(tensors, rng), np.float64) for _ in range(DRAWS)]
        steps = len(next(inputs[i.name] for i in graph.inputs if not i.held))
        for name, value in graph.outputs.items():
            limit = 0.1 * tolerance * np.abs(truth[name]).max(initial=0)
            off = np.any([np.abs(truth[name] - other[name]) > limit for other in others], axis=0)
            lost = np.flatnonzero(off.reshape(len(off), -1).any(axis=1))
            timing = facts.rows[value].timing
            if lost.size and timing and not facts.rows[value].folded:
                steps = min(steps, timing.rows.least(max(1, int(lost[0]))))
        if steps < len(next(inputs[i.name] for i in graph.inputs if not i.held)):
            steps = max(steps, least)
            for given in graph.inputs:
                if not given.held:
                    inputs[given.name] = inputs[given.name][:steps]
            truth = outputs(tensors, np.float64)
    return inputs, truth


def _steps(graph: spec.Graph, facts: spec.Facts, least: int, longest: int) -> int:
    """So many steps as show enough of the model."""
    moving = [given for given in graph.inputs if not given.held]
    if len(moving) == 1 and moving[0].tokens and not moving[0].shape:
        return min(max(min(moving[0].tokens, TOKENS), least), longest)
    rates = [row.timing.rate for v in graph.outputs.values() if (row := facts.rows[v]).timing]
    stride = max((rate.steps for rate in rates), default=1)
    widest = max(row.size for row in facts.rows.values())
    steps = least - 1 + STEPS * stride
    return min(max(min(steps, max(NUMBERS // widest, 1)), least), longest)


def drawn(graph: spec.Graph, steps: int, dtype: np.dtype[Any], rng: np.random.Generator) -> Arrays:
    """Random inputs (steps, ...) of a model, those that are held without steps."""
    inputs: Arrays = {}
    for given in graph.inputs:
        shape = given.shape if given.held else (steps, *given.shape)
        if not given.tokens:
            inputs[given.name] = rng.standard_normal(shape).astype(dtype)
        elif shape == (steps,) and steps <= given.tokens:
            inputs[given.name] = rng.choice(given.tokens, steps, replace=False)
        else:
            inputs[given.name] = rng.integers(given.tokens, size=shape)
    return inputs


def _with_other_bits(tensors: Tensors, rng: np.random.Generator) -> dict[str, Tensor]:
    """Weights of which every other one is less by its last two bits or so.

    The same ones for all outputs of a matrix: it is as if its inputs were rounded another way.
    Those in fewer bytes stay what they are.
    """
    found = dict(tensors)
    for name, tensor in tensors.items():
        if isinstance(tensor, Reduced):
            continue
        less = 2 * np.finfo(tensor.dtype).eps * rng.integers(2, size=tensor.shape[-1:])
        found[name] = tensor * (1 - less).astype(tensor.dtype)
    return found


def largest_error(truth: Mapping[str, Array], made: Mapping[str, Array]) -> float:
    """The largest error of outputs, relative to the largest number of each; NaN: other infinities.

    Parameters
    ----------
    truth : mapping of str to float64 array
    made : mapping of str to array
        As many numbers under the same names.
    """
    largest = 0.0
    for name, exact in truth.items():
        y = made[name].reshape(exact.shape)
        with np.errstate(all="ignore"):
            expected = exact.astype(y.dtype)
            finite = np.isfinite(expected)
            if not np.array_equal(y[~finite], expected[~finite], equal_nan=True):
                return float("nan")
            size = max(1.0, float(np.abs(expected[finite]).max(initial=0.0)))
            largest = max(
                largest, float(np.abs(y[finite] - expected[finite]).max(initial=0)) / size
            )
    return largest
