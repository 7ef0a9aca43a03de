"""What a plan speaks of until it is a program: rows that are stored, and views of them.

A *view* is a row of the graph: it says of each of its numbers where that lies among the numbers of
some stored rows. Whatever moves numbers makes another view and no operation; it is left to the
operation that reads a view whether it can read the numbers where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.plan import operations as op
from fastlstm.spec import FILL, Index, Shape

__all__ = [
    "ROWS",
    "Array",
    "Block",
    "Matrix",
    "Numbers",
    "Places",
    "Step",
    "Stored",
    "View",
    "axes_of",
    "composed",
    "fields_of",
    "moved",
    "rows_of",
]

Array = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

ROWS = ("value", "some_value")  # the types of fields that are a row


class Numbers:
    """A vector: some numbers of a tensor, or, where there is no tensor, numbers of the plan's own.

    Parameters
    ----------
    array : array
        The numbers.
    tensor : str, optional
        The tensor that they are, from its number `first` on.
    first : int
    """

    def __init__(self, array: Any, tensor: str = "", first: int = 0) -> None:
        self._given, self.tensor, self.first = array, tensor, first

    @property
    def array(self) -> Array:
        """(count,), in float64."""
        return np.asarray(self._given, np.float64).ravel()

    def __len__(self) -> int:
        return int(np.size(self._given))


@dataclass(frozen=True)
class Block:
    """A piece of a matrix: number first + r * row_stride + c * column_stride of a tensor.

    The number of column c is counted by ``order[c]`` instead, if there is an order; -1 in it is a
    column of zeros. `tensor` is a tensor's name, or an array of the plan's own numbers.
    """

    row: int
    rows: int
    column: int
    columns: int
    tensor: str | Array
    first: int
    row_stride: int
    column_stride: int
    order: Places | None = None


@dataclass(frozen=True)
class Matrix:
    """(rows, columns): the sum of blocks, which do not overlap."""

    rows: int
    columns: int
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, tensor: str | Array, rows: int, columns: int, first: int = 0) -> Matrix:
        """A matrix that lies in a tensor row by row."""
        return cls(rows, columns, (Block(0, rows, 0, columns, tensor, first, columns, 1),))

    @classmethod
    def of_constant(cls, view: View) -> Matrix:
        """A constant (rows, columns); of a tensor that it takes at equal steps, a part of that."""
        rows, columns = view.shape
        places, numbers = view.places, view.sources[0].numbers
        first = int(places[0, 0])
        down, right = int(places[-1, 0]) - first, int(places[0, -1]) - first
        row_stride, column_stride = down // max(rows - 1, 1), right // max(columns - 1, 1)
        grid = np.arange(rows)[:, None] * row_stride + np.arange(columns) * column_stride
        lies = len(view.sources) == 1 and right >= 0 and np.array_equal(places, first + grid)
        if numbers is None or not numbers.tensor or not lies:
            return cls.of(view.array, rows, columns)
        begin = numbers.first + first
        block = Block(0, rows, 0, columns, numbers.tensor, begin, row_stride, column_stride)
        return cls(rows, columns, (block,))

    def take(self, order: Places) -> Matrix:
        """The columns in another order: column c is the one that was number ``order[c]``."""
        if np.array_equal(order, np.arange(self.columns)):
            return self
        blocks = []
        for block in self.blocks:
            at = np.full(self.columns, FILL, np.int64)
            # Numbers of columns are counted from the first one, wherever the stride goes.
            behind = min(0, block.column_stride * (block.columns - 1))
            own = np.arange(block.columns) * block.column_stride - behind
            if block.order is not None:
                behind, own = 0, block.order
            at[block.column : block.column + block.columns] = own
            whole = (block.row, block.rows, 0, len(order), block.tensor)
            blocks.append(Block(*whole, block.first + behind, block.row_stride, 0, at[order]))
        return Matrix(self.rows, len(order), tuple(blocks))


@dataclass(eq=False)
class Step:
    """An operation of the plan; None where it became a part of a later one.

    `body` has those of a loop. In the fields of an operation stand :class:`Stored`,
    :class:`Numbers`, :class:`Matrix` and arrays, for which a program has numbers.
    """

    operation: Any
    body: list[Step] = field(default_factory=list)


@dataclass(eq=False)
class Stored:
    """A row that lies somewhere.

    Parameters
    ----------
    count : int
        Its numbers.
    line : int
        Values of one line have as many rows; -1 of what is held, and of constants.
    place : str
        Where it lies, as a program has it; what shall be in a buffer may find a better place.
    number : int
    tokens : int
        How many different ones there are, if they are tokens.
    numbers : Numbers or None
        Those of a constant.
    maker : Step or None
        What makes it.
    section : object
        The list of operations that `maker` stands in.
    of : Stored or None
        The row that it is a stretch of, which may be one too.
    first : int
        The number of that row which it begins with.
    """

    count: int
    line: int
    place: str = "buffer"
    number: int = 0
    tokens: int = 0
    numbers: Numbers | None = None
    maker: Step | None = None
    section: object = None
    of: Stored | None = None
    first: int = 0
    _stretches: dict[tuple[int, int], Stored] = field(default_factory=dict, repr=False)

    def stretch(self, first: int, count: int) -> Stored:
        """The row of `count` of its numbers, from number `first` on; the same one each time."""
        if (first, count) == (0, self.count):
            return self
        if (first, count) not in self._stretches:
            made = Stored(count, self.line, "stretch", of=self, first=first)
            self._stretches[first, count] = made
        return self._stretches[first, count]

    def become(self, of: Stored, first: int) -> None:
        """Be a stretch of another row from now on, which has the same numbers."""
        self.place, self.of, self.first, self.maker = "stretch", of, first, None

    @property
    def root(self) -> Stored:
        """The row that is stored: itself, or what it is a stretch of."""
        return self if self.of is None else self.of.root

    @property
    def begin(self) -> int:
        """Which number of the root it begins with."""
        return self.first if self.of is None else self.of.begin + self.first


def fields_of(operation: Any) -> Iterator[tuple[str, str, Any]]:
    """(type, name, value) of each field of an operation."""
    return zip(op.field_types(type(operation)), operation._fields, operation, strict=True)


def rows_of(operation: Any) -> Iterator[Stored]:
    """All rows that an operation reads or writes; none where there is no operation any more."""
    for kind, name, value in fields_of(operation) if operation is not None else ():
        if kind in ROWS and isinstance(value, Stored):
            yield value
        elif name in ("reads", "ys"):
            yield from value


@dataclass(frozen=True, eq=False)
class View:
    """A row of the graph, by the places of its numbers.

    Parameters
    ----------
    sources : tuple of Stored
    places : int64 array
        Of the row's axes: places among the numbers of the sources, counted on; -1 for `fill`.
    fill : float
    alone : bool
        Whether whoever is given the view is the only one that reads its sources.
    """

    sources: tuple[Stored, ...]
    places: Places
    fill: float = 0.0
    alone: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", np.asarray(self.places))  # of one number, NumPy's scalar

    @classmethod
    def of(cls, stored: Stored, shape: Shape, order: Places | None = None) -> View:
        """A stored row as it is, or, given the place of each number, in another order."""
        places = np.arange(stored.count) if order is None else order
        return cls((stored,), places.reshape(shape))

    @property
    def shape(self) -> Shape:
        return self.places.shape

    @property
    def line(self) -> int:
        """The line of its rows; -1 where it has one row for a whole sequence."""
        return max(source.line for source in self.sources)

    @property
    def tokens(self) -> int:
        return max(source.tokens for source in self.sources)

    @property
    def in_order(self) -> bool:
        """Whether it is all of one stored row, as that lies."""
        return self.one and bool(np.array_equal(self.places.ravel(), np.arange(self.places.size)))

    @property
    def one(self) -> bool:
        """Whether it has as many numbers as the one stored row there is."""
        return len(self.sources) == 1 and self.sources[0].count == self.places.size

    @property
    def whole(self) -> bool:
        """Whether it is all of one stored row, each number once, in any order."""
        flat = self.places.ravel()
        return self.one and flat.min() > FILL and bool((np.bincount(flat) == 1).all())

    @property
    def constant(self) -> bool:
        return all(source.numbers is not None for source in self.sources)

    @property
    def array(self) -> Array:
        """The numbers of a constant."""
        numbers = [s.numbers.array for s in self.sources if s.numbers is not None]
        return np.concatenate([*numbers, [self.fill]])[self.places]

    def at(self, places: Places) -> View:
        """Other places among the same sources."""
        return View(self.sources, places, self.fill, self.alone)

    @property
    def cut(self) -> View:
        """The view of the stretch from its first number to its last, of what is stored in one row.

        It is itself where it has numbers of several rows, constants, tokens, or none at a place.
        """
        (source, *others), first = self.sources, int(self.places.min())
        if others or first < 0 or source.tokens or source.numbers is not None:
            return self
        stretch = source.stretch(first, int(self.places.max()) + 1 - first)
        return View((stretch,), self.places - first, self.fill, self.alone)


def composed(views: Sequence[View], places: Places, fill: float) -> View:
    """The numbers at some places among those of several views, counted on."""
    sources: list[Stored] = []
    parts, fills = [], {fill} if (places == FILL).any() else set()
    for view in views:
        starts = np.cumsum([0, *(source.count for source in sources)])
        first = np.cumsum([0, *(source.count for source in view.sources)])
        moved = np.full(first[-1] + 1, FILL, np.int64)
        for source, begin in zip(view.sources, first, strict=False):
            if source not in sources:
                sources.append(source)
                starts = np.append(starts, starts[-1] + source.count)
            at = starts[sources.index(source)]
            moved[begin : begin + source.count] = np.arange(at, at + source.count)
        parts.append(moved[view.places.ravel()])
        fills |= {view.fill} if (view.places == FILL).any() else set()
    if len(fills) > 1:
        raise ValueError(f"a view has one number where it is filled, not {sorted(fills)}")
    joined = np.concatenate([*parts, [FILL]])[places]
    return _used(View(tuple(sources), joined, fills.pop() if fills else 0.0))


def _used(view: View) -> View:
    """The view without sources of which it has no number, but for one that has as many rows."""
    if len(view.sources) == 1:
        return view
    ends = np.cumsum([source.count for source in view.sources])
    read = set(np.searchsorted(ends, np.unique(view.places[view.places != FILL]), "right").tolist())
    if all(view.sources[number].line < 0 for number in read):
        read |= {max(range(len(ends)), key=lambda number: view.sources[number].line)}
    moved, kept, at = np.full(ends[-1] + 1, FILL, np.int64), [], 0
    for number, source in enumerate(view.sources):
        if number in read:
            end = int(ends[number])
            moved[end - source.count : end] = np.arange(at, at + source.count)
            kept.append(source)
            at += source.count
    return View(tuple(kept), moved[view.places], view.fill, view.alone)


def moved(view: View, made: Stored) -> op.Move:
    """What stores the numbers of a view in their order."""
    runs = np.array(Index.of("moved", view.places.ravel()).runs, np.int64)
    return op.Move(view.sources, made, runs, view.fill)


def axes_of(view: View) -> list[int] | None:
    """The axes of a view in the order in which they lie in its stored row, the outermost first.

    None if it is not all of one stored row with some order of its axes.
    """
    if not view.one:
        return None
    strides = [
        int(view.places[(0,) * axis + (1,) + (0,) * (view.places.ndim - axis - 1)])
        - int(view.places.flat[0])
        if size > 1
        else 0
        for axis, size in enumerate(view.shape)
    ]
    order = sorted(range(len(strides)), key=lambda axis: (-strides[axis], axis))
    lying = np.arange(view.places.size).reshape([view.shape[axis] for axis in order])
    back = np.argsort(order)
    return order if np.array_equal(lying.transpose(back), view.places) else None
