"""How far an evaluation is off, output by output.

Dimension letters: ``N`` outputs of a sequence, ``B`` batch, ``O`` features of an output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_DRIFT", "Blocks", "Deviation", "Errors", "deviation", "errors_of", "joined"]

Array = npt.NDArray[Any]

# Outputs below which the thirds of a sequence say more about its beginning than about drift.
LEAST_DRIFT = 300

# An error that does not grow is as large in the last third as in the first, to a few percent; one
# that grows with the root of the time, as a random walk does, is 2.2 times as large.
GROWTH = 1.5


@dataclass(frozen=True)
class Deviation:
    """The largest absolute error of an output (T, B, O), and where it is."""

    error: float
    step: int
    row: int
    feature: int


@dataclass(frozen=True, eq=False)
class Blocks:
    """Errors of consecutive stretches of a sequence: the last step, largest error, RMS of each."""

    steps: Array
    largest: Array
    rms: Array


@dataclass(frozen=True, eq=False)
class Errors:
    """Absolute errors of one evaluation, output by output: arrays (N,).

    Attributes
    ----------
    steps : integer array
        The step of the input after which each output is known.
    largest, rms : float64 array
        Over the rows and features of each output; infinite where it is NaN or infinite.
    rows, features : integer array
        Where the largest is.
    """

    steps: Array
    largest: Array
    rms: Array
    rows: Array
    features: Array

    @property
    def worst(self) -> Deviation:
        """The largest of all; NaN if there are none."""
        if not len(self.largest):
            return Deviation(math.nan, 0, 0, 0)
        at = int(self.largest.argmax())
        where = (int(array[at]) for array in (self.steps, self.rows, self.features))
        return Deviation(float(self.largest[at]), *where)

    @property
    def total_rms(self) -> float:
        """Over all outputs."""
        return _rms(self.rms)

    @property
    def thirds(self) -> tuple[float, float, float]:
        """RMS of the first, the middle and the last third."""
        first, middle, last = map(_rms, np.array_split(self.rms, 3))
        return first, middle, last

    @property
    def growth(self) -> float:
        """RMS of the last third over that of the first; NaN where that is zero or has no limit."""
        first, _, last = self.thirds
        return last / first if 0 < first < math.inf else math.nan

    @property
    def grows(self) -> bool | None:
        """Whether the error drifts; None where that cannot be told."""
        if len(self.rms) < LEAST_DRIFT or not math.isfinite(self.growth):
            return None
        return self.growth > GROWTH

    def first(self, n: int) -> Errors:
        """Those of the first `n` outputs."""
        return Errors(*(array[:n] for array in _arrays(self)))

    def blocks(self, most: int) -> Blocks:
        """At most so many stretches of nearly equal numbers of outputs."""
        count = max(1, min(most, len(self.rms)))
        parts = [part for part in np.array_split(np.arange(len(self.rms)), count) if len(part)]
        return Blocks(
            steps=np.array([self.steps[part[-1]] for part in parts], np.intp),
            largest=np.array([self.largest[part].max() for part in parts], np.float64),
            rms=np.array([_rms(self.rms[part]) for part in parts], np.float64),
        )


def _arrays(errors: Errors) -> tuple[Array, ...]:
    return errors.steps, errors.largest, errors.rms, errors.rows, errors.features


def _rms(values: Array) -> float:
    with np.errstate(over="ignore"):
        return math.sqrt(np.square(values).mean()) if len(values) else math.nan


def errors_of(y: Array, exact: Array, steps: Array) -> Errors:
    """Compare outputs with the exact ones, both (N, B, O); NaN and infinity are infinitely off."""
    if y.shape != exact.shape:
        raise ValueError(f"an output has shape {y.shape}; expected {exact.shape}")
    error = np.full(y.shape, np.inf, np.promote_types(exact.dtype, np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        np.subtract(y, exact, out=error, where=np.isfinite(y))
        flat = np.abs(error).astype(np.float64).reshape(len(y), math.prod(y.shape[1:]))
        rms = np.sqrt(np.square(flat).mean(axis=1))
    at = flat.argmax(axis=1)
    rows, features = np.divmod(at, y.shape[2])
    return Errors(steps, flat[np.arange(len(flat)), at], rms, rows, features)


def joined(parts: Sequence[Errors]) -> Errors:
    """The errors of one stretch after the other; of at least one."""
    return Errors(*map(np.concatenate, zip(*map(_arrays, parts), strict=True)))


def deviation(y: Array, exact: Array) -> Deviation:
    """The largest error of an output (T, B, O), one for each step."""
    return errors_of(y, exact, np.arange(len(y))).worst
