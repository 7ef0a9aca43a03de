"""Where time, batch and features lie in the arrays of somebody else's program.

Nothing in a program tells which axis is which, so the ways there are get tried, and one whose
output is nearest to the model's is taken. A wrong one gives numbers as far off as wrong weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Arrangement", "Order", "fitting", "nearest"]

Array = npt.NDArray[Any]
T = TypeVar("T")

# Axes of an input, "t", "b" and once "f" for all of its features: "btf" is batch first. An axis
# that is left out has one entry.
Order = str

# An error that is surely of rounding, relative to the largest output.
CLOSE = 1e-6


@dataclass(frozen=True)
class Arrangement:
    """How an input is given and where the output is.

    Attributes
    ----------
    order : str
        The axes of the input.
    features : tuple of int
        The shape of a step's features; empty for tokens.
    output : int
        Which of the outputs.
    time, batch : int or None
        Its axes; all others are features.
    """

    order: Order
    features: tuple[int, ...]
    output: int = 0
    time: int | None = None
    batch: int | None = None

    def __str__(self) -> str:
        words = {"t": "time", "b": "batch", "f": ", ".join(["features"] * len(self.features))}
        return ", ".join(filter(None, (words[axis] for axis in self.order)))

    def arrange(self, x: Array) -> Array:
        """An input (T, B, I), or tokens (T, B), as the program takes it."""
        named = {"t": x.shape[:1], "b": x.shape[1:2], "f": self.features}
        left_out = [axis for axis in "tb" if axis not in self.order]
        at = {"t": [0], "b": [1], "f": [2 + n for n in range(len(self.features))]}
        axes = [n for axis in (*left_out, *self.order) for n in at[axis]]
        whole = x.reshape(*x.shape[:2], *self.features).transpose(axes)
        return np.ascontiguousarray(
            whole.reshape([size for axis in self.order for size in named[axis]])
        )

    def rows(self, outputs: Sequence[Array], size: int) -> Array:
        """The output of the program as (N, B, O), O being `size`."""
        y = outputs[self.output]
        first = [axis for axis in (self.time, self.batch) if axis is not None]
        axes = [*first, *(axis for axis in range(y.ndim) if axis not in first)]
        steps = 1 if self.time is None else y.shape[self.time]
        batch = 1 if self.batch is None else y.shape[self.batch]
        if y.size != steps * batch * size:
            raise ValueError(f"the output has shape {y.shape}; expected {size} features a step")
        return y.transpose(axes).reshape(steps, batch, size)


def fitting(
    order: Order, features: tuple[int, ...], outputs: Sequence[Array], exact: Array
) -> Iterator[tuple[float, Arrangement]]:
    """The arrangements in which an output has the shape of `exact`, and their relative errors."""
    size = float(np.abs(exact).max(initial=0.0)) or 1.0
    for number, y in enumerate(outputs):
        for time, batch in _output_axes(y.shape, *exact.shape):
            found = Arrangement(order, features, number, time, batch)
            error = np.abs(found.rows(outputs, exact.shape[2]) - exact).max(initial=0.0) / size
            yield float(np.nan_to_num(error, nan=np.inf)), found


def nearest(found: Sequence[tuple[float, Arrangement, T]]) -> tuple[Arrangement, T]:
    """Of arrangements with their errors, the first with the most axes that is right.

    Right are all that are about as near as the nearest: a sequence, for example, can also be given
    step by step to what keeps nothing from one to the next.
    """
    close = max(100 * min(error for error, _, _ in found), CLOSE)
    right = [(arrangement, what) for error, arrangement, what in found if error <= close]
    return max(right, key=lambda one: len({*one[0].order} & {*"tb"}))


def _output_axes(
    shape: tuple[int, ...], steps: int, batch: int, size: int
) -> Iterator[tuple[int | None, int | None]]:
    """The axes of an output that can be time and batch, of so many steps, rows and features."""
    axes: list[int | None] = [*range(len(shape)), None]

    def are(axis: int | None, length: int) -> bool:
        return length == (1 if axis is None else shape[axis])

    if math.prod(shape) == steps * batch * size:
        for time, row in itertools.product(axes, axes):
            if are(time, steps) and are(row, batch) and (time is None or time != row):
                yield time, row
