"""Where each number of an array stands: in which row, of which step, of which row of the batch.

An array program is followed with arrays of *places* in place of numbers. A place is one integer
that names a row of the graph, a number in it, a row of the batch and a step. To move numbers is to
move their places, so every movement is NumPy's own; only what computes something reads rows, and
finds out from the places which axis of an array is time, which is the batch, and how many steps ago
its numbers were made.

Sizes are those of one run, of small batch and few steps. What is made of a program must not depend
on them, which a second run with other sizes shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError

__all__ = [
    "ANY",
    "FILL",
    "ROW_SHIFT",
    "Axis",
    "Columns",
    "Frame",
    "batch_of",
    "columns",
    "frame",
    "packed",
]
__all__ += ["offset_of", "row_of", "shifted", "steps_of"]

Array = npt.NDArray[Any]

FILL = -1  # the place of a zero

_STEP_BITS, _BATCH_BITS, _OFFSET_BITS = 20, 4, 20
_ZERO_STEP = 1 << (_STEP_BITS - 1)
_STEPS, _BATCH, _OFFSETS = ((1 << n) - 1 for n in (_STEP_BITS, _BATCH_BITS, _OFFSET_BITS))
ROW_SHIFT = _STEP_BITS + _BATCH_BITS + _OFFSET_BITS

# The step of what is the same in all steps, and the row of what is the same in the whole batch.
ANY = -_ZERO_STEP
_ANY_BATCH = _BATCH
MAX_BATCH = _BATCH - 1
MAX_ROW = 1 << _OFFSET_BITS  # numbers
MAX_STEPS = _ZERO_STEP // 2


def packed(row: int, offset: Any, batch: Any, step: Any) -> Any:
    """Places of numbers; `batch` is None for what all rows of the batch share."""
    row_of_batch = _ANY_BATCH if batch is None else batch
    return (
        (row << ROW_SHIFT)
        | (offset << (_STEP_BITS + _BATCH_BITS))
        | (row_of_batch << _STEP_BITS)
        | (step + _ZERO_STEP)
    )


def row_of(places: Array) -> Array:
    """The number of the row of each place; -1 of a zero."""
    return places >> ROW_SHIFT


def offset_of(places: Array) -> Array:
    """Which number of its row each place is."""
    return (places >> (_STEP_BITS + _BATCH_BITS)) & _OFFSETS


def batch_of(places: Array) -> Array:
    """The row of the batch of each place; `_ANY_BATCH` where it is the same in all."""
    return (places >> _STEP_BITS) & _BATCH


def steps_of(places: Array) -> Array:
    """The step of each place, `ANY` where it is the same in all."""
    return (places & _STEPS) - _ZERO_STEP


def shifted(places: Array, steps: Any) -> Array:
    """The same places so many steps ago."""
    moves = (places != FILL) & (steps_of(places) != ANY)
    return places - np.where(moves, steps, 0)


class Axis(NamedTuple):
    """A part of an axis of an array: `kind` is "batch", "time" or "row"."""

    size: int
    kind: str


class Frame(NamedTuple):
    """What the first axes of an array are, each taken apart into batch, time, and axes of a row.

    The axes behind them are axes of a row, of which an operation knows what they are.
    """

    axes: tuple[tuple[Axis, ...], ...]

    @property
    def parts(self) -> list[Axis]:
        return [part for axis in self.axes for part in axis]

    def size(self, kind: str) -> int:
        """Of the batch, or of time; 1 where there is none."""
        return math.prod(part.size for part in self.parts if part.kind == kind)

    @property
    def row(self) -> tuple[int, ...]:
        """The axes of a row that stand before those that an operation knows."""
        return tuple(part.size for part in self.parts if part.kind == "row")

    def with_steps(self, steps: int) -> Frame:
        """The same with another number of steps."""
        return Frame(
            tuple(
                tuple(p._replace(size=steps) if p.kind == "time" else p for p in axis)
                for axis in self.axes
            )
        )

    def _order(self) -> list[int]:
        """The parts with the batch first, then time, then those of a row."""
        kinds = [part.kind for part in self.parts]
        return sorted(range(len(kinds)), key=lambda n: ("batch", "time", "row").index(kinds[n]))

    def apart(self, array: Array) -> Array:
        """An array of these axes, or of 1 in place of some, as (batch, time, row ...)."""
        n = len(self.axes)
        shape: list[int] = []
        for size, axis in zip(array.shape[:n], self.axes, strict=True):
            shape += [1] * len(axis) if size == 1 else [part.size for part in axis]
        core = array.shape[n:]
        order = self._order()
        behind = range(len(shape), len(shape) + len(core))
        moved = array.reshape(*shape, *core).transpose([*order, *behind])
        kinds = [self.parts[n].kind for n in order]
        lead = [moved.shape[kinds.index(k)] if k in kinds else 1 for k in ("batch", "time")]
        return moved.reshape(*lead, *moved.shape[sum(k != "row" for k in kinds) :])

    def together(self, array: Array, core: int) -> Array:
        """The inverse of :meth:`apart`, of an array with so many axes that an operation knows."""
        order = self._order()
        behind = array.shape[array.ndim - core :]
        sizes = [self.parts[n].size for n in order]
        places = [int(n) for n in np.argsort(order)] + list(range(len(order), len(order) + core))
        moved = array.reshape(*sizes, *behind).transpose(places)
        whole = [math.prod(part.size for part in axis) for axis in self.axes]
        return moved.reshape(*whole, *behind)


def frame(
    arrays: Sequence[Array],
    *,
    batch: int,
    counts: Callable[[Array], Array] | None,
    core: int = 0,
) -> Frame:
    """What the axes are of arrays that broadcast, but for their last ones.

    Parameters
    ----------
    arrays : sequence of int array
        Of places, with as many axes.
    batch : int
        Rows of the batch.
    counts : function of an int array, or None
        The number of steps of rows of these numbers. None where a call is one step: steps that
        differ are those before it.
    core : int
        The last axes, which are those of a row.

    Raises
    ------
    ConvertError
        If the batch or time is where it cannot be.
    """
    n = arrays[0].ndim - core
    shape = np.broadcast_shapes(*(a.shape[:n] for a in arrays))
    found = [_axis(arrays, axis, size, batch, counts) for axis, size in enumerate(shape)]
    times = [(part.size, n) for n, axis in enumerate(found) for part in axis if part.kind == "time"]
    # Of several axes along which steps differ, the shorter ones are those of windows.
    chosen = max(times, default=None)
    axes = tuple(
        tuple(
            Axis(part.size, "row") if part.kind == "time" and (part.size, n) != chosen else part
            for part in axis
        )
        for n, axis in enumerate(found)
    )
    made = Frame(axes)
    for kind in ("batch", "time"):
        if sum(part.kind == kind for part in made.parts) > 1:
            raise ConvertError(f"several axes of an array of shape {shape} are {kind}")
    return made


def _axis(
    arrays: Sequence[Array],
    axis: int,
    size: int,
    batch: int,
    counts: Callable[[Array], Array] | None,
) -> tuple[Axis, ...]:
    """The parts of one axis."""
    if size == 1:
        return (Axis(1, "row"),)
    cuts: dict[int, str] = {}  # size of what is within a part -> its kind; and of the part -> ""
    for array in arrays:
        if array.shape[axis] != size:
            continue
        line = _line(array, axis)
        if line is None:
            continue
        valid = line != FILL
        row = np.where(valid & (batch_of(line) != _ANY_BATCH), batch_of(line), -1)
        step = np.where(valid & (steps_of(line) != ANY), steps_of(line), ANY)
        if batch > 1:
            _cut(cuts, row, -1, "batch", lambda n: n == batch)
        if counts is not None:
            # What runs through few steps of a row is no time: the last rows, side by side.
            most = int(counts(row_of(line[valid])).max())
            _cut(cuts, step, ANY, "time", lambda n, most=most: 2 * n > most)  # type: ignore[misc]
    ends = sorted({1, size, *cuts})
    if any(b % a for a, b in itertools.pairwise(ends)) or size % ends[-1]:
        return (Axis(size, "row"),)
    parts = [Axis(b // a, cuts.get(a, "") or "row") for a, b in itertools.pairwise(ends)]
    return tuple(reversed(parts))


def _line(array: Array, axis: int) -> Array | None:
    """The places along an axis, where the fewest of them are zeros."""
    lines = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    valid = (lines != FILL) & (steps_of(lines) != ANY)
    best = int(valid.sum(axis=1).argmax())
    line: Array = lines[best]
    return line if (line != FILL).any() else None


def _cut(
    cuts: dict[int, str], values: Array, missing: int, kind: str, whole: Callable[[int], bool]
) -> None:
    """Note where an axis is to be cut, so that one part runs through values that grow evenly."""
    known = np.flatnonzero(values != missing)
    if len(known) < 2 or (values[known] == values[known[0]]).all():
        return
    size = len(values)
    if len(known) < size:
        # Zeros before and behind: the whole axis, if it is even where it is known.
        gaps = np.diff(values[known])
        even = (np.diff(known) == 1).all() and gaps.all() and len(set(gaps.tolist())) == 1
        if kind == "time" and even and whole(abs(int(gaps[0])) * len(known)):
            cuts.setdefault(1, kind)
            cuts.setdefault(size, "")
        return
    inner = int(np.flatnonzero(values != values[0])[0])
    step = int(values[inner] - values[0])
    heads = values[::inner]
    if size % inner or (values.reshape(-1, inner) != heads[:, None]).any():
        return
    even = np.flatnonzero(np.diff(heads) != step)
    n = int(even[0]) + 1 if len(even) else len(heads)
    if kind == "time" and n == 2 and abs(step) > 2:
        return  # the last step of one thing and the first of another
    if n < 2 or len(heads) % n or not whole(abs(step) * n):
        return
    if (heads.reshape(-1, n) != heads[:n]).any():
        return
    cuts[inner] = kind
    cuts.setdefault(inner * n, "")


class Columns(NamedTuple):
    """Where the numbers of a row come from, each array of one axis, in their order.

    Parameters
    ----------
    row, offset : int array
        -1 where it is zero.
    lag : int array
        Of the step ``stride * t + lag`` of that row, t counting the steps of the array; `ANY` of
        what is the same in all.
    stride : int
    steps : int
        Steps of the array; 0 where time is no axis of it, and `lag` is the step itself.
    """

    row: Array
    offset: Array
    lag: Array
    stride: int
    steps: int


def columns(array: Array, *, batch: int, counts: Callable[[Array], Array]) -> Columns:
    """Of places (batch, time, ...), or of 1 in place of either.

    Parameters
    ----------
    array : int array
    batch : int
        Rows of the batch.
    counts : function of an int array
        The number of steps of rows of these numbers.

    Raises
    ------
    ConvertError
        If a number of a row comes from several rows, or its steps are not even.
    """
    nb, nt = array.shape[:2]
    flat = array.reshape(nb, nt, -1)
    valid = flat != FILL
    by_place = valid.reshape(nb * nt, -1)
    some = by_place.any(axis=0)
    first = by_place.argmax(axis=0)
    places = flat.reshape(nb * nt, -1)[first, np.arange(flat.shape[2])]
    row = np.where(some, row_of(places), FILL)
    offset = np.where(some, offset_of(places), FILL)
    if (valid & ((row_of(flat) != row) | (offset_of(flat) != offset))).any():
        raise ConvertError(
            "a number is computed differently in different steps; expected the same in each"
        )
    rows = batch_of(flat)
    own = np.arange(nb).reshape(-1, 1, 1) if nb == batch else np.full((1, 1, 1), -2)
    if (valid & (rows != _ANY_BATCH) & (rows != own)).any():
        raise ConvertError("rows of the batch are mixed, or one of them is taken alone")
    steps = steps_of(flat)
    timed = valid & (steps != ANY)
    if not timed.any():
        return Columns(row, offset, np.full(len(row), ANY), 1, 0)
    at = np.arange(nt).reshape(1, -1, 1)
    if nt == 1:
        lag = np.where(timed.any(axis=(0, 1)), steps[first // nt, 0, np.arange(len(row))], ANY)
        if (timed & (steps != lag)).any():
            raise ConvertError("rows of the batch are of different steps")
        return Columns(row, offset, lag, 1, 0)
    stride = _stride(steps, timed)
    own_lag = steps - stride * at
    has = timed.any(axis=(0, 1))
    low = np.where(timed, own_lag, MAX_STEPS).min(axis=(0, 1))
    high = np.where(timed, own_lag, -MAX_STEPS).max(axis=(0, 1))
    if (has & (low != high)).any():
        raise ConvertError("the steps of an array are taken in no even order")
    lag = np.where(has, low, ANY)
    expected = stride * at + lag
    count = counts(row)
    if (~valid & has & (expected >= 0) & (expected < count)).any():
        raise ConvertError("some steps of an array are replaced by zeros")
    if (~valid & has & (expected >= count)).any():
        raise ConvertError("an array is padded behind its last step")
    return Columns(row, offset, lag, stride, nt)


def _stride(steps: Array, timed: Array) -> int:
    """From one step of an array to the next."""
    both = timed[:, 1:] & timed[:, :-1]
    gaps = (steps[:, 1:] - steps[:, :-1])[both]
    if not gaps.size or (gaps != gaps[0]).any():
        raise ConvertError("the steps of an array are taken in no even order")
    return int(gaps[0])
