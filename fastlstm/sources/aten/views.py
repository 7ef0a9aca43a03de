"""Operators whose result is a view of their argument, as it is in torch: NumPy's is one too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import SizeError
from fastlstm.sources.aten.table import (
    Builder,
    Operand,
    axis_of,
    operator,
    rank_of,
    shape_of,
    whole,
)


@operator()
def reshape(b: Builder, self: Operand, shape: Sequence[Any]) -> Operand:
    sizes = [whole(n, "the size of an axis") for n in shape]
    _check_sizes(shape_of(self), sizes)
    return b.move(lambda a: a.reshape(sizes), self)


@operator("view", "_unsafe_view")
def view(b: Builder, self: Operand, size: Sequence[Any]) -> Operand:
    return reshape(b, self, size)


def _check_sizes(shape: tuple[int, ...], sizes: list[int]) -> None:
    """Check that an array can have these sizes; which axis contradicts them, if one does."""
    total, known = math.prod(shape), math.prod(n for n in sizes if n != -1)
    free = sizes.count(-1)
    if free == 0 and known == total:
        return
    if free == 1 and known and total % known == 0:
        return
    text = f"an array of shape {shape} cannot be one of {tuple(sizes)}"
    last = next((n for n in reversed(sizes) if n > 0), 0)
    if shape and last and len(shape) == len(sizes) and shape[-1] != sizes[-1] > 0:
        raise SizeError(text, shape[-1], sizes[-1])
    if shape and free and last and shape[-1] != last:
        raise SizeError(text, shape[-1], last)
    raise SizeError(text, total, known)


@operator("view_as", "reshape_as")
def view_as(b: Builder, self: Operand, other: Operand) -> Operand:
    return reshape(b, self, shape_of(other))


@operator()
def flatten(b: Builder, self: Operand, start_dim: int = 0, end_dim: int = -1) -> Operand:
    shape = shape_of(self)
    start, end = axis_of(self, start_dim), axis_of(self, end_dim)
    return reshape(b, self, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@operator()
def ravel(b: Builder, self: Operand) -> Operand:
    return reshape(b, self, (-1,))


@operator()
def unflatten(b: Builder, self: Operand, dim: int, sizes: Sequence[int]) -> Operand:
    shape, axis = shape_of(self), axis_of(self, dim)
    return reshape(b, self, (*shape[:axis], *sizes, *shape[axis + 1 :]))


@operator("transpose", "swapdims")
def transpose(b: Builder, self: Operand, dim0: int, dim1: int) -> Operand:
    first, second = axis_of(self, dim0), axis_of(self, dim1)
    return b.move(lambda a: a.swapaxes(first, second) if a.ndim else a, self)


@operator()
def swapaxes(b: Builder, self: Operand, axis0: int, axis1: int) -> Operand:
    return transpose(b, self, axis0, axis1)


@operator()
def permute(b: Builder, self: Operand, dims: Sequence[int]) -> Operand:
    order = [axis_of(self, dim) for dim in dims]
    return b.move(lambda a: a.transpose(order), self)


@operator("t", "numpy_T", "matrix_H", "mT", "mH", "adjoint")
def t(b: Builder, self: Operand) -> Operand:
    return b.move(lambda a: a.swapaxes(-1, -2) if a.ndim > 1 else a, self)


@operator("movedim", "moveaxis")
def movedim(b: Builder, self: Operand, source: Any, destination: Any) -> Operand:
    return b.move(lambda a: np.moveaxis(a, source, destination), self)


@operator()
def unsqueeze(b: Builder, self: Operand, dim: int) -> Operand:
    axis = axis_of(self, dim, more=1)
    return b.move(lambda a: np.expand_dims(a, axis), self)


@operator()
def squeeze(b: Builder, self: Operand, dim: int | Sequence[int] | None = None) -> Operand:
    shape = shape_of(self)
    if dim is None:
        axes = list(range(len(shape)))
    else:
        axes = [axis_of(self, d) for d in ((dim,) if isinstance(dim, int) else dim)]
    gone = tuple(axis for axis in axes if shape and shape[axis] == 1)
    return b.move(lambda a: np.squeeze(a, gone), self)


@operator()
def expand(b: Builder, self: Operand, size: Sequence[int], implicit: bool = False) -> Operand:
    shape = shape_of(self)
    sizes = [whole(n, "the size of an axis") for n in size]
    new = len(sizes) - len(shape)
    if new < 0:
        raise ConvertError(f"an array of shape {shape} is expanded to {tuple(sizes)}")
    for at, one in enumerate(shape, new):
        if sizes[at] == -1:
            sizes[at] = one
        elif one not in (1, sizes[at]):
            text = f"an array of shape {shape} is expanded to {tuple(sizes)}"
            raise SizeError(text, one, sizes[at])
    return b.move(lambda a: np.broadcast_to(a, sizes), self)


@operator()
def expand_as(b: Builder, self: Operand, other: Operand) -> Operand:
    return expand(b, self, shape_of(other))


@operator()
def broadcast_to(b: Builder, self: Operand, size: Sequence[int]) -> Operand:
    return expand(b, self, size)


@operator()
def broadcast_tensors(b: Builder, tensors: Sequence[Operand]) -> list[Operand]:
    shape = np.broadcast_shapes(*map(shape_of, tensors))
    return [expand(b, x, shape) for x in tensors]


@operator()
def select(b: Builder, self: Operand, dim: int, index: Any) -> Operand:
    shape, axis, at = shape_of(self), axis_of(self, dim), whole(index, "an index")
    if not -shape[axis] <= at < shape[axis]:
        raise ConvertError(f"index {at} of an axis of {shape[axis]}")
    return b.move(lambda a: a[(slice(None),) * axis + (at,)], self)


@operator("slice")
def slice_(
    b: Builder,
    self: Operand,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Operand:
    axis = axis_of(self, dim)
    cut = slice(
        None if start is None else whole(start, "an index"),
        None if end is None else whole(end, "an index"),
        whole(step, "a step"),
    )
    return b.move(lambda a: a[(slice(None),) * axis + (cut,)], self)


@operator()
def narrow(b: Builder, self: Operand, dim: int, start: Any, length: int) -> Operand:
    begin = whole(start, "an index")
    begin += shape_of(self)[axis_of(self, dim)] if begin < 0 else 0
    return slice_(b, self, dim, begin, begin + length)


@operator("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(
    b: Builder, self: Operand, split_sizes: Sequence[int], dim: int = 0
) -> list[Operand]:
    size = shape_of(self)[axis_of(self, dim)]
    if sum(split_sizes) != size:
        text = f"an axis of {size} is split into parts of {list(split_sizes)}"
        raise SizeError(text, size, sum(split_sizes))
    ends = np.cumsum([0, *split_sizes]).tolist()
    return [slice_(b, self, dim, a, z) for a, z in pairwise(ends)]


@operator("split", "unsafe_split")
def split(
    b: Builder, self: Operand, split_size: int | Sequence[int], dim: int = 0
) -> list[Operand]:
    if not isinstance(split_size, int):
        return split_with_sizes(b, self, split_size, dim)
    size = shape_of(self)[axis_of(self, dim)]
    starts = range(0, max(size, 1), max(split_size, 1))
    return [slice_(b, self, dim, start, start + split_size) for start in starts]


@operator("chunk", "unsafe_chunk")
def chunk(b: Builder, self: Operand, chunks: int, dim: int = 0) -> list[Operand]:
    size = shape_of(self)[axis_of(self, dim)]
    return split(b, self, -(-size // chunks), dim)


@operator()
def tensor_split(
    b: Builder,
    self: Operand,
    indices: int | Sequence[int] | None = None,
    dim: int = 0,
    sections: int | None = None,
) -> list[Operand]:
    given = sections if indices is None else indices
    size = shape_of(self)[axis_of(self, dim)]
    if isinstance(given, int):
        less, more = divmod(size, given)
        given = np.cumsum([less + 1] * more + [less] * (given - more))[:-1].tolist()
    ends = [0, *(given or ()), size]
    return [slice_(b, self, dim, a, z) for a, z in pairwise(ends)]


@operator()
def unbind(b: Builder, self: Operand, dim: int = 0) -> list[Operand]:
    return [select(b, self, dim, at) for at in range(shape_of(self)[axis_of(self, dim)])]


@operator()
def unfold(b: Builder, self: Operand, dimension: int, size: int, step: int) -> Operand:
    axis = axis_of(self, dimension)
    if size > shape_of(self)[axis]:
        raise ConvertError(f"windows of {size} of an axis of {shape_of(self)[axis]}")

    def windows(a: Any) -> Any:
        every = np.lib.stride_tricks.sliding_window_view(a, size, axis)
        return every[(slice(None),) * axis + (slice(None, None, step),)]

    return b.move(windows, self)


@operator()
def diagonal(b: Builder, self: Operand, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Operand:
    return b.move(lambda a: np.diagonal(a, offset, dim1, dim2), self)


@operator("detach", "alias", "lift_fresh", "lift", "requires_grad", "real", "resolve_conj",
          "resolve_neg", "data", "cpu", "to_dense")  # fmt: skip
def detach(b: Builder, self: Operand, *unused: Any) -> Operand:
    return self


@operator("atleast_1d")
def atleast_1d(b: Builder, self: Operand) -> Operand:
    return self if rank_of(self) else reshape(b, self, (1,))
