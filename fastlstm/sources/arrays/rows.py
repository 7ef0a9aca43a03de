"""The graph that is being built: its rows, the nodes that make them, and how rows are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.places import ANY, FILL, Columns

__all__ = ["MOST_LAGS", "Made", "Rows"]

Array = npt.NDArray[Any]

MAX_COMPARED = 2**16  # bytes of a constant that is looked for among the others
MOST_LAGS = 2  # of one row, before they are one window


@dataclass
class Made:
    """A row of the graph.

    Parameters
    ----------
    name : str
    shape : tuple of int
    steps : int
        In the run that is followed; 0 of what does not change with the steps.
    node : spec.Node, or None
        What makes it; None of an input, and of a row that is read before it is made.
    tensors : dict of str to array
        By suffix.
    tokens : int or None
        How many there are, 0 before that is known; None of real numbers.
    is_state : bool
        Whether it stands for what the call before has left.
    """

    name: str
    shape: spec.Shape
    steps: int
    node: spec.Node | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)
    tokens: int | None = None
    is_state: bool = False


class Rows:
    """Rows by name and by number.

    Parameters
    ----------
    before : Rows, optional
        Of a run of the same program: what may be read before it is made.
    names : mapping of int to str
        By the id of an array, what its source calls it.
    """

    def __init__(self, before: Rows | None = None) -> None:
        # The numbers of rows are the same in all runs of a program, so that places are.
        self.numbers: dict[str, int] = before.numbers if before else {}
        self._by_number: list[str] = before._by_number if before else []
        self.made: dict[str, Made] = {}
        self.expected = before.made if before else {}
        self.names: dict[int, tuple[Array, str]] = {}  # the array is kept, so that its id is
        self.starts: dict[tuple[str, int], Array] = {}  # of a row, so many steps before the first
        self.weights: set[str] = set()  # rows that stand for a softmax over time
        self._same: dict[Any, str] = {}
        self._one: dict[Any, Array] = {}
        self._used: dict[str, int] = {}  # of each name, how often there is one like it
        self._delayed: dict[str, Made] = {}

    def number(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = len(self.numbers)
            self._by_number.append(name)
        return self.numbers[name]

    def of(self, number: int) -> Made:
        """The row of a number."""
        return self.row(self._by_number[number])

    def counts(self, numbers: Array) -> Array:
        """The steps of rows of these numbers; of -1, none."""
        unique, inverse = np.unique(numbers, return_inverse=True)
        steps = [0 if n < 0 else self.of(int(n)).steps for n in unique]
        return np.asarray(steps, np.int64)[inverse].reshape(np.shape(numbers))

    def tokens(self, places: Array, count: int) -> None:
        """Tell how many tokens there are of which these are some."""
        for number in np.unique(at.row_of(places[places != FILL])):
            made = self.of(int(number))
            if made.tokens is None or made.node is not None:
                raise ConvertError(
                    f"tokens are looked up in a table of {count}, and {made.name!r} is computed"
                )
            if made.tokens not in (0, count):
                raise ConvertError(
                    f"{made.name!r} is looked up in tables of {made.tokens} and of {count} tokens"
                )
            made.tokens = count

    def add(self, made: Made) -> Made:
        """A row that nothing makes, or that a node makes."""
        if math.prod(made.shape) > at.MAX_ROW:
            raise ConvertError(
                f"rows of {made.name!r:.200} have {math.prod(made.shape)} numbers; at most "
                f"{at.MAX_ROW} are supported"
            )
        self.number(made.name)
        self.made[made.name] = made
        return made

    def unique(self, name: str) -> str:
        """A name that no row has."""
        name = name or "row"
        chosen = name
        while chosen in self.made:
            self._used[name] = self._used.get(name, 1) + 1
            chosen = f"{name}.{self._used[name]}"
        return chosen

    def node(
        self,
        layer: spec.Layer,
        reads: Sequence[str],
        tensors: Mapping[str, Array] | None = None,
        steps: int | None = None,
    ) -> Made:
        """The row that a layer makes of rows; an equal one, if there is one already."""
        tensors = {suffix: self.one(array) for suffix, array in (tensors or {}).items()}
        key = self._key(layer, reads, tensors)
        if (same := self._same.get(key)) is not None:
            return self.made[same]
        if (own := self.unique(layer.name)) != layer.name:
            layer = dataclasses.replace(layer, name=own)
        rows = [self.row(name) for name in reads]
        try:
            shape = layer.output([spec.Row(row.shape, row.tokens or 0) for row in rows])
        except ValueError as error:
            raise ConvertError(str(error)) from None
        kept = layer.keeps_tokens and rows and rows[0].tokens is not None
        if steps is None:
            steps = layer.terms[0](max((row.steps for row in rows), default=0))
        made = self.add(Made(layer.name, shape, steps, layer(*reads), tensors))
        made.tokens = rows[0].tokens if kept else None
        for array in tensors.values():
            self.names.setdefault(id(array), (array, ""))
        self._same[key] = made.name
        return made

    def one(self, array: Array) -> Array:
        """The array that stands for all that are the same: a loop cuts them out again each turn."""
        memory = array.__array_interface__["data"][0]
        key: Any = (memory, array.shape, array.strides, array.dtype.str)
        if array.nbytes <= MAX_COMPARED:
            key = (array.shape, array.dtype.str, array.tobytes())
        kept = self._one.setdefault(key, array)
        if kept is not array and id(array) in self.names and id(kept) not in self.names:
            self.names[id(kept)] = (kept, self.names[id(array)][1])
        return kept

    def remember(self, made: Made) -> None:
        """Have a node that is made elsewhere found where an equal one is asked for."""
        assert made.node is not None
        self._same[self._key(made.node.layer, made.node.reads, made.tensors)] = made.name

    def forget(self, name: str) -> None:
        """Take back a row that nothing reads."""
        made = self.made.pop(name)
        self._delayed.pop(name, None)
        if made.node is not None:
            key = self._key(made.node.layer, made.node.reads, made.tensors)
            if self._same.get(key) == name:
                del self._same[key]

    def _key(self, layer: spec.Layer, reads: Sequence[str], tensors: Mapping[str, Array]) -> Any:
        # Its fields, which are checked again wherever a layer is made: an index has many of them.
        options = tuple(
            getattr(layer, field.name)
            for field in dataclasses.fields(layer)
            if field.name not in ("name", "weights", "tensor_names")
        )
        kept = tuple((s, id(a)) for s, a in tensors.items())
        return (type(layer), options, tuple(reads), kept)

    def row(self, name: str) -> Made:
        return self.made.get(name) or self.expected[name]

    def constant(self, array: Array, name: str) -> Made:
        """A row that is an array, without its axes of size 1."""
        known = self.names.get(id(array), (array, ""))[1]
        shape = tuple(n for n in array.shape if n != 1) or (1,)
        kept = array if array.shape == shape else array.reshape(shape)
        kept = self.one(kept)
        self.names.setdefault(id(kept), (kept, known))
        return self.node(spec.Constant(known or name, shape), (), {"value": kept}, 0)

    def read(self, wanted: Columns, shape: spec.Shape, name: str) -> str:
        """The name of a row of these axes that has these numbers."""
        lag, stride, steps = wanted.lag, wanted.stride, wanted.steps
        sources: list[str] = []
        place = np.full(len(lag), spec.FILL)
        total = 0
        for number in np.unique(wanted.row[wanted.row >= 0]):
            mine = wanted.row == number
            made = self.of(int(number))
            lags = np.unique(lag[mine])
            if len(lags) > MOST_LAGS:
                read = self._window(made, lags, stride, steps, name)
                index = (lag[mine] - lags[0]) // _gap(lags)
                place[mine] = total + index * math.prod(made.shape) + wanted.offset[mine]
                sources.append(read)
                total += math.prod(self.row(read).shape)
                continue
            for one in lags:
                here = mine & (lag == one)
                read = self._later(made, int(one), stride, steps)
                place[here] = total + wanted.offset[here]
                sources.append(read)
                total += math.prod(made.shape)
        if not sources:
            zeros = np.zeros(shape or (1,), np.float32)
            return self.constant(zeros, f"{name}.zeros").name
        whole = np.array_equal(place, np.arange(total))
        # One real number is a row of one; one token is a row without axes.
        shape = shape or (() if self.row(sources[0]).tokens is not None else (1,))
        if whole and len(sources) == 1 and self.row(sources[0]).shape == shape:
            return sources[0]
        index_of = spec.Index.of(f"{name}.moved", place.reshape(shape))
        count = {self.row(s).steps for s in sources} - {0}
        if len(count) > 1:
            raise ConvertError(
                f"rows of {' and '.join(map(str, sorted(count)))} steps are taken together"
            )
        return self.node(index_of, sources, {}, max(count, default=0)).name

    def _later(self, made: Made, lag: int, stride: int, steps: int) -> str:
        """The row whose step t is step ``stride * t + lag`` of another; as many as are asked."""
        name = made.name
        if lag == ANY or not made.steps:
            return name
        if stride < 1:
            raise ConvertError("an array is read backwards in time")
        if lag < 0:
            name = self.before(made, -lag)
            lag = 0
        asked = steps or made.steps
        if lag > 0 or stride > 1 or asked < made.steps:
            left = made.steps - lag - stride * (asked - 1) - 1
            end = left // stride * stride if stride > 1 else left
            if end < 0:
                raise ConvertError("more steps are read than there are")
            # A step that would be taken is cut off; what is left over below the stride is not.
            if stride > 1 and left < stride:
                end = 0
            cut = spec.Slice(f"{name}.slice", start=lag, end=end, step=stride)
            name = self.node(cut, (name,)).name
        if self.row(name).steps != asked:
            raise ConvertError("more steps are read than there are")
        return name

    def before(self, made: Made, steps: int) -> str:
        """The row that another was so many steps ago."""
        name = f"{made.name}.before.{steps}"
        if name in self._delayed:
            return name
        start = self._start(made, steps)
        kind = "" if start is None else "learned"
        delay = spec.Delay(name, made.shape, steps, initial_state=kind)
        tensors = {} if start is None else {"x_0": start}
        if start is not None:
            self.names.setdefault(id(start), (start, ""))
        self._delayed[name] = self.add(
            Made(name, made.shape, made.steps, delay(made.name), tensors)
        )
        return name

    def start(self, made: Made, row: Array) -> None:
        """Have a row be another one before the first step."""
        self.starts[made.name, 1] = row
        for name, delayed in list(self._delayed.items()):
            if delayed.node is not None and delayed.node.reads[0] == made.name:
                del self._delayed[name]
                assert isinstance(delayed.node.layer, spec.Delay)
                self.before(made, delayed.node.layer.steps)

    def _start(self, made: Made, steps: int) -> Array | None:
        """The rows before the first, the earliest first; None where they are zeros."""
        if not any(name == made.name for name, _ in self.starts):
            return None
        rows = [
            self.starts.get((made.name, ago), np.zeros(made.shape)) for ago in range(steps, 0, -1)
        ]
        start = np.stack(rows).astype(np.float64)
        return start if start.any() else None

    def _window(self, made: Made, lags: Array, stride: int, steps: int, name: str) -> str:
        """Several steps of a row, side by side."""
        gap = _gap(lags)
        size = int(lags[-1] - lags[0]) // gap + 1
        first, last = int(lags[0]), int(lags[-1])
        if any(start == made.name for start, _ in self.starts):
            raise ConvertError(f"the {size} last rows of {made.name!r} start from other than zeros")
        source, padding = made.name, -first
        if first > 0 or last < 0:
            shift = first if first > 0 else last
            source = self._later(made, shift, 1, made.steps - max(shift, 0) if steps else 0)
            padding = 0 if first > 0 else last - first
        window = spec.Window(
            f"{name}.window", size, stride=stride, dilation=gap, padding=min(padding, last - first)
        )
        read = self.node(window, (source,))
        if steps and read.steps != steps:
            if read.steps < steps:
                raise ConvertError("more steps are read than there are")
            cut = spec.Slice(f"{read.name}.slice", end=read.steps - steps)
            read = self.node(cut, (read.name,))
        return read.name


def _gap(lags: Array) -> int:
    """From each lag to the next."""
    return int(np.gcd.reduce(np.diff(lags)))
