"""Writing into arrays: what an in-place operator changes, every view of the same memory sees.

The arrays of a program share memory as those of torch do: a slice, a transpose, a reshape that need
not copy are NumPy views. Writing numbers of the input into memory that was constant makes places
of it: a constant array is then looked up here by the memory that it is a view of, so that nothing
of a source is ever written to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.table import Array, Builder, Operand, Value, kind_of, shape_of

__all__ = ["Memory"]


class Memory:
    """What constant arrays hold after they were written to, in one run of a program."""

    def __init__(self) -> None:
        # By the id of the array that owns the memory: itself, so that the id stays its own, what
        # it holds now, flat in the order of the memory, and its kind, "" where that is constant.
        self._now: dict[int, tuple[Array, Array, str]] = {}

    def current(self, x: Any) -> Any:
        """What an array holds now: a `Value` where numbers of the input were written to it."""
        if not isinstance(x, np.ndarray) or not self._now:
            return x
        owner = _owner(x)
        if id(owner) not in self._now:
            return x
        _, now, kind = self._now[id(owner)]
        view = _same_view(x, owner, now)
        return Value(view, kind) if kind else view

    def write(self, b: Builder, target: Any, new: Operand) -> Any:
        """Write into an array; what it holds then."""
        shape = shape_of(target)
        if np.broadcast_shapes(shape, shape_of(new)) != shape:
            raise ConvertError(f"an array of shape {shape_of(new)} is written into one of {shape}")
        if isinstance(new, Value) and kind_of(new) == "float" and kind_of(target) != "float":
            raise ConvertError(f"numbers are written into an array of type {kind_of(target)}")
        if isinstance(target, np.ndarray):
            self._own(b, target, new)
            target = self.current(target)
        if not isinstance(target, Value):
            target[...] = new
            return target
        if not target.places.flags.writeable:
            raise ConvertError("an array that was expanded is written to; call .clone() before")
        if not isinstance(new, Value) or new is not target:
            given = b.move(lambda _, n: np.broadcast_to(n, shape), target, np.asarray(new)
                           if not isinstance(new, Value) else new)  # fmt: skip
            target.places[...] = np.array(given.places)
        return target

    def _own(self, b: Builder, target: Array, new: Operand) -> None:
        """Keep what the memory of a constant array holds here, as places if it has to be."""
        owner = _owner(target)
        _, now, kind = self._now.get(id(owner), (owner, owner.ravel(order="K").copy(), ""))
        if not kind and isinstance(new, Value):
            kind = kind_of(target)
            now = np.array(b.move(lambda n, _: n, now, new).places)
        self._now[id(owner)] = (owner, now, kind)


def _owner(x: Array) -> Array:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def _same_view(x: Array, owner: Array, now: Array) -> Array:
    """Of another array of as many numbers, what `x` is of its owner."""
    begin = (_address(x) - _address(owner)) // owner.itemsize
    strides = [step // owner.itemsize * now.itemsize for step in x.strides]
    if x.size == 0:
        return now[:0].reshape(x.shape)
    return np.lib.stride_tricks.as_strided(now[begin:], x.shape, strides)


def _address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])
