"""Movement of numbers within a step: one index says which number of the input is where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any, ClassVar

from fastlstm.spec.frozen import extra, frozen
from fastlstm.spec.layer import MAX_SIZE, Layer
from fastlstm.spec.row import Row, Shape

__all__ = ["FILL", "Index"]

FILL = -1  # the place of a number that comes from no input

Run = tuple[int, int, int]


@frozen
class Index(Layer):
    """Each number of the output is one of the inputs', or `fill`.

    Slices, pads (with a constant, by reflection or replication), transposes, reshapes, flips,
    expansions, splits, concatenations and unfolding are all of them an index; several in a row are
    one again. The numbers of all values that it reads are counted on, each value's in the order in
    which PyTorch lays out its axes. Moving an array of those places by NumPy gives the index of
    the same movement: :meth:`of` takes it.

    Parameters
    ----------
    shape : tuple of int
        The axes of the output.
    runs : tuple of (start, stride, count)
        The places of the output's numbers in their order: of each run `count` places, the first is
        `start`, each next one `stride` further on. The start -1, with a stride of 0, is `fill`.
    fill : float
        What padding has.
    """

    shape: tuple[int, ...]
    runs: tuple[tuple[int, int, int], ...] = field(metadata={"least": -MAX_SIZE})
    fill: float = extra(default=0.0, least=-math.inf)
    kind: ClassVar[str] = "index"
    takes_tokens: ClassVar[bool] = True
    keeps_tokens: ClassVar[bool] = True

    @classmethod
    def of(cls, name: str, places: Any, fill: float = 0.0) -> Index:
        """The layer of an integer array of places: of its shape, -1 where `fill` is to be.

        Parameters
        ----------
        name : str
            Of the layer.
        places : integer array
            Places among the numbers of all values that it will read.
        fill : float
            What stands where the place is -1.
        """
        if places.dtype.kind not in "iu" or (places.size and places.min() < FILL):
            raise ValueError(
                f"layer {name!r}: its places are of {places.dtype}, from {places.min()}; expected "
                f"integers from -1"
            )
        signed = places.astype("int64") if places.dtype.kind == "u" else places
        return cls(name, tuple(places.shape), tuple(_runs(signed.ravel())), fill=fill)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fill == 0:
            object.__setattr__(self, "fill", 0.0)  # not -0.0, which JSON would keep
        total = 0
        for start, stride, count in self.runs:
            if start < FILL or count < 1 or (start == FILL and stride != 0):
                raise self._refused("runs", "places from 0, or -1 with a stride of 0, and counts")
            if start >= 0 and start + stride * (count - 1) < 0:
                raise self._refused("runs", "places from 0")
            total += count
        if total != math.prod(self.shape):
            raise self._refused("runs", f"{math.prod(self.shape)} places in all, not {total}")

    @property
    def fills(self) -> bool:
        """Whether some of its numbers come from no input."""
        return any(start == FILL for start, _, _ in self.runs)

    def places(self) -> list[int]:
        """The place of each number of the output, in order; -1 where `fill` is."""
        return [start + i * stride for start, stride, count in self.runs for i in range(count)]

    def output(self, reads: Sequence[Row]) -> Shape:
        if not reads:
            raise ValueError("it reads nothing; expected the values whose numbers it moves")
        total = sum(row.size for row in reads)
        last = max(max(start, start + stride * (count - 1)) for start, stride, count in self.runs)
        if last >= total:
            raise ValueError(f"it moves number {last}, and is given {total} of them")
        if len({row.tokens for row in reads}) > 1:
            raise ValueError("it moves tokens together with numbers, or with other tokens")
        if any(row.tokens for row in reads) and self.fills:
            raise ValueError("it fills up with a number that is no token")
        return self.shape


def _runs(places: Any) -> Iterator[Run]:
    """Runs of equal strides, each as long as can be, of an integer array of one axis.

    Python sees only where a stride changes: a row of a million numbers may have one run.
    """
    n, begin, first = len(places), 0, 0  # where the next run begins, and the next equal strides
    strides = places[1:] - places[:-1]
    crosses = (places[1:] == FILL) != (places[:-1] == FILL)  # from numbers to padding: no run does
    changes = strides[1:] != strides[:-1]
    del strides
    changes |= crosses[1:]
    changes |= crosses[:-1]
    for last in [*changes.nonzero()[0].tolist(), *[n - 2] * (n > 1)]:
        if not crosses[first] and begin <= last:
            start = int(places[begin])
            yield start, int(places[begin + 1]) - start, last + 2 - begin
            begin = last + 2
        elif crosses[first] and begin == first:
            yield int(places[begin]), 0, 1
            begin += 1
        first = last + 1
    if begin < n:
        yield int(places[begin]), 0, 1
