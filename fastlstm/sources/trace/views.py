"""The functions and methods of torch that rearrange, cut or make arrays, as calls on a `Line`.

They compute nothing. What they take is told in :mod:`.step`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastlstm.sources.line import Value
from fastlstm.sources.line.axes import Size
from fastlstm.sources.trace.stand_in import Length
from fastlstm.sources.trace.step import Operation, Step, register

__all__ = ["MAKERS", "VIEWS", "chunk"]

# Those that give another view of what they take, and those that do not.
VIEWS: dict[str, Operation] = {}
MAKERS: dict[str, Operation] = {}

view = register(VIEWS)
maker = register(MAKERS)

_LOOP = (
    "takes one step after the other, as a loop over time does; expected one call of a layer for "
    "the whole sequence: convert the layers of the module with layers=, or the cell that the loop "
    "runs with prefix="
)


def _place(x: Value, axis: int) -> int:
    return axis % x.ndim if -x.ndim <= axis < x.ndim else axis


def _listed(values: tuple[Any, ...]) -> list[Any]:
    """Sizes or axes given one by one, or all in a tuple."""
    one = len(values) == 1 and isinstance(values[0], tuple | list)
    return list(values[0] if one else values)


def _sizes(at: Step, shape: Iterable[Any]) -> list[int | Size]:
    sizes: list[int | Size] = []
    for size in shape:
        if isinstance(size, Length):
            if size.more:
                raise at.refused(f"has a size that is {size.more} off a length of the input")
            sizes.append(size.size)
        elif hasattr(size, "__index__") and not hasattr(size, "detach"):
            sizes.append(operator.index(size))
        else:
            raise at.refused(f"has {size!r:.80} for a size; expected sizes")
    return sizes


@view("view", "reshape")
def _reshape(at: Step, x: Any, *shape: Any, size: Any = None) -> Value:
    given = _listed(shape) if shape else list(size)
    return at.line.reshape(at.value(x), _sizes(at, given), at.source)


@view("view_as", "reshape_as")
def _reshape_as(at: Step, x: Value, other: Value) -> Value:
    return at.line.reshape(x, [other.size(axis) for axis in range(other.ndim)], at.source)


@view("flatten")
def _flatten(at: Step, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return at.line.flatten(x, start_dim, end_dim, at.source)


@view("unflatten")
def _unflatten(at: Step, x: Value, dim: int, sizes: Any) -> Value:
    place = _place(x, dim)
    shape = [x.size(axis) for axis in range(x.ndim)]
    return at.line.reshape(x, [*shape[:place], *_sizes(at, sizes), *shape[place + 1 :]], at.source)


@view("expand")
def _expand(at: Step, x: Any, *shape: Any, size: Any = None, implicit: bool = False) -> Value:
    value = at.value(x)
    wanted = _sizes(at, _listed(shape) if shape else size)
    more = len(wanted) - value.ndim
    full = [
        value.size(axis - more) if n == -1 and axis >= more else n for axis, n in enumerate(wanted)
    ]
    return at.line.expand(value, full, at.source)


@view("expand_as")
def _expand_as(at: Step, x: Any, other: Value) -> Value:
    return _expand(at, x, [_known(other, axis) for axis in range(other.ndim)])


def _known(x: Value, axis: int) -> int | Length:
    size = x.size(axis)
    return size if isinstance(size, int) else Length(size)


@view("repeat", "tile")
def _repeat(at: Step, x: Any, *repeats: Any) -> Value:
    value, times = at.value(x), _listed(repeats)
    more = len(times) - value.ndim
    shape: list[Any] = []
    for axis, n in enumerate(times):
        size = value.shape[axis - more] if axis >= more else 1
        if size != 1 and n != 1:
            raise at.refused("repeats an axis that is more than one position; expected it to stay")
        shape.append(n if size == 1 else -1)
    return _expand(at, x, shape)


@view("transpose", "swapaxes", "swapdims")
def _transpose(at: Step, x: Value, dim0: int, dim1: int) -> Value:
    order = list(range(x.ndim))
    first, second = _place(x, dim0), _place(x, dim1)
    if max(first, second) >= x.ndim or min(first, second) < 0:
        raise at.refused(f"swaps axes {dim0} and {dim1} of an array of {x.ndim}")
    order[first], order[second] = second, first
    return at.line.transpose(x, order, at.source)


@view("permute")
def _permute(at: Step, x: Value, *order: Any, dims: Any = ()) -> Value:
    return at.line.transpose(x, _listed(order) if order else list(dims), at.source)


@view("movedim", "moveaxis")
def _movedim(at: Step, x: Value, source: int, destination: int) -> Value:
    order = list(range(x.ndim))
    order.insert(_place(x, destination), order.pop(_place(x, source)))
    return at.line.transpose(x, order, at.source)


@view("t", "T")
def _t(at: Step, x: Value) -> Value:
    return at.line.transpose(x, list(range(x.ndim))[::-1], at.source)


VIEWS["mT"] = lambda at, x: _transpose(at, x, -2, -1)


@view("squeeze")
def _squeeze(at: Step, x: Value, dim: Any = None) -> Value:
    if dim is None:
        return at.line.squeeze(x, None, at.source)
    for axis in sorted(_place(x, a) for a in (dim if isinstance(dim, tuple) else (dim,)))[::-1]:
        # As torch does, leave an axis that is more than one position.
        if axis >= x.ndim or x.shape[axis] in (1, None):
            x = at.line.squeeze(x, axis, at.source)
    return x


@view("unsqueeze")
def _unsqueeze(at: Step, x: Value, dim: int) -> Value:
    return at.line.unsqueeze(x, dim, at.source)


@view("select")
def _select(at: Step, x: Value, dim: int, index: Any) -> Value:
    if not isinstance(index, int | Length):
        raise at.refused("takes positions that it computes; expected a fixed one")
    place = _bound(at, x, dim, index)
    if place is None or (isinstance(index, Length) and place == 0):
        raise at.refused("takes a position behind the end of an axis")
    return at.line.select(x, dim, place, at.name)


@view("narrow")
def _narrow(at: Step, x: Value, dim: int, start: Any, length: Any) -> Value:
    return _cut(at, x, _place(x, dim), slice(start, start + length))


@view("chunk")
def chunk(at: Step, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    size = x.shape[dim] if -x.ndim <= dim < x.ndim else None
    if size is None:
        raise at.refused(f"cuts axis {dim}, whose size is not known; expected the channels")
    return _split(at, x, math.ceil(size / chunks), dim)


@view("split")
def _split(at: Step, x: Value, split_size: Any, dim: int = 0) -> tuple[Value, ...]:
    size = x.shape[dim] if -x.ndim <= dim < x.ndim else None
    if size is None:
        raise at.refused(
            f"cuts axis {dim}, whose size is not known; expected the channels, not time"
        )
    if isinstance(split_size, int):
        ends = [*range(split_size, size, split_size), size]
    else:
        ends = list(np.cumsum(split_size).tolist())
    return tuple(
        _cut(at, x, _place(x, dim), slice(start, end))
        for start, end in zip([0, *ends], ends, strict=False)
    )


@view("unbind")
def _unbind(at: Step, x: Value, dim: int = 0) -> tuple[Value, ...]:
    size = x.shape[dim] if -x.ndim <= dim < x.ndim else None
    if size is None:
        raise at.refused(_LOOP)
    return tuple(at.line.select(x, dim, i, at.name) for i in range(size))


@view("__getitem__")
def _getitem(at: Step, table: Any, index: Any) -> Value:
    if not isinstance(table, Value):
        raise at.refused("looks up rows of a table; expected torch.nn.Embedding")
    x = table
    entries = list(index) if isinstance(index, tuple) else [index]
    for entry in entries:
        fixed = entry is None or entry is ... or isinstance(entry, int | slice | Length)
        if not fixed or isinstance(entry, bool):
            raise at.refused("takes positions that it computes; expected fixed ones")
    taken = sum(entry is not None and entry is not ... for entry in entries)
    if taken > x.ndim:
        raise at.refused(f"takes {taken} axes of an array of {x.ndim}")
    rest = [slice(None)] * (x.ndim - taken)
    place = next((i for i, entry in enumerate(entries) if entry is ...), len(entries))
    entries[place : place + 1] = rest
    axis = 0
    for entry in entries:
        if entry is None:
            x = at.line.unsqueeze(x, axis, at.source)
            axis += 1
        elif isinstance(entry, slice):
            x = _cut(at, x, axis, entry)
            axis += 1
        else:
            x = _select(at, x, axis, entry)
    return x


def _cut(at: Step, x: Value, axis: int, part: slice) -> Value:
    start, stop = _bound(at, x, axis, part.start), _bound(at, x, axis, part.stop)
    if isinstance(part.start, Length) and start == 0:
        raise at.refused("takes nothing, from the end of an axis on")
    if isinstance(part.stop, Length) and stop == 0:
        stop = None
    if part.step not in (None, 1) or start is not None or stop is not None:
        return at.line.slice(x, axis, start, stop, part.step or 1, at.name)
    return x


def _bound(at: Step, x: Value, axis: int, bound: Any) -> int | None:
    """A bound of a slice; a length becomes what it is counted from the end of the axis."""
    if not isinstance(bound, Length):
        return None if bound is None else int(bound)
    group = x.axes[axis]
    if len(group) == 1 and bound.size.number == 1 and len(bound.size.unknown) == 1:
        from_end = bound.size.unknown[0].beyond(group[0])
        if from_end is not None and from_end + bound.more <= 0:
            return from_end + bound.more
    raise at.refused("takes positions up to a length that is not its own; expected its own length")


@maker("zeros", "new_zeros")
def _zeros(at: Step, *args: Any, size: Any = None, **options: Any) -> Value:
    # new_zeros is a method, of an array that does not matter.
    given = tuple(a for a in args if not isinstance(a, Value) and not hasattr(a, "detach"))
    return at.line.zeros(_sizes(at, _listed(given) if given else size))


@maker("full", "new_full")
def _full(at: Step, *args: Any, fill_value: float | None = None, **options: Any) -> Value:
    if fill_value is None:
        *args, fill_value = args  # type: ignore[assignment]
    if fill_value:
        raise at.refused(f"makes an array of {fill_value}; expected zeros, to start a state from")
    return _zeros(at, *args, **options)


@maker("zeros_like")
def _zeros_like(at: Step, x: Value, **options: Any) -> Value:
    return at.line.zeros([x.size(axis) for axis in range(x.ndim)])


@maker("zero", "fill")
def _zero(at: Step, x: Value, value: float = 0) -> Value:
    if value:
        raise at.refused(f"fills an array with {value}; expected zeros, to start a state from")
    return _zeros_like(at, x)


@maker("rand", "randn", "rand_like", "randn_like", "normal", "uniform", "bernoulli")
def _random(at: Step, *args: Any, **options: Any) -> Value:
    raise at.refused("is random; expected a forward that gives the same each time")


@maker("__len__")
def _len(at: Step, x: Value) -> int:
    size = x.shape[0]
    if size is None:
        raise at.refused("asks for a length that only the input tells; expected x.size(0)")
    return size


@maker("__setitem__")
def _setitem(at: Step, x: Any, index: Any, value: Any) -> Value:
    raise at.refused("writes into a part of an array; expected it to be left alone")


@maker(
    *("__array__", "__bool__", "__contains__", "__eq__", "__float__", "__ge__", "__gt__"),
    *("__index__", "__int__", "__le__", "__lt__", "__ne__", "all", "allclose", "any", "argmax"),
    *("eq", "equal", "ge", "gt", "isinf", "isnan", "item", "le", "lt", "masked_fill", "ne"),
    *("nonzero", "numpy", "tolist", "where"),
)
def _of_values(at: Step, *args: Any, **options: Any) -> Any:
    raise at.refused(
        "depends on the values of its input; expected a forward that does the same for every input"
    )
