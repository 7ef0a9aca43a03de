"""Operators that move numbers into a new array, and creation from what is in it already."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays.core import SizeError, check_size
from fastlstm.sources.aten.table import (
    Array,
    Builder,
    Operand,
    Value,
    axis_of,
    fill_of,
    listed,
    operator,
    rank_of,
    shape_of,
    whole,
)
from fastlstm.sources.aten.views import reshape, unfold, unsqueeze


def moved(b: Builder, function: Callable[[Array], Any], x: Operand) -> Any:
    """An array with memory of its own."""
    return b.move(lambda a: np.array(function(a)), x)


@operator("clone", "lift_fresh_copy")
def clone(b: Builder, self: Operand, memory_format: int | None = None) -> Operand:
    return moved(b, lambda a: a, self)


@operator()
def contiguous(b: Builder, self: Operand, memory_format: int = 0) -> Operand:
    array = self.places if isinstance(self, Value) else np.asarray(self)
    return self if array.flags.c_contiguous else clone(b, self)


@operator("cat", "concat", "concatenate")
def cat(b: Builder, tensors: Sequence[Operand], dim: int = 0) -> Operand:
    # Torch leaves out empty arrays of one axis, whatever the others are.
    some = [x for x in tensors if shape_of(x) != (0,)] or list(tensors)[:1]
    if not some:
        raise ConvertError("an empty list of arrays is concatenated")
    axis = axis_of(some[0], dim)
    for x in some[1:]:
        mine, first = shape_of(x), shape_of(some[0])
        wrong = [n for n in range(len(first)) if n != axis and mine[n : n + 1] != first[n : n + 1]]
        if wrong:
            text = f"arrays of shapes {first} and {mine} are concatenated over axis {axis}"
            raise SizeError(text, mine[wrong[0]] if len(mine) == len(first) else 0, first[wrong[0]])
    check_size((sum(math.prod(shape_of(x)) for x in some),))
    return b.move(lambda *arrays: np.concatenate(arrays, axis), *some)


@operator()
def stack(b: Builder, tensors: Sequence[Operand], dim: int = 0) -> Operand:
    return cat(b, [unsqueeze(b, x, dim) for x in tensors], dim)


@operator()
def hstack(b: Builder, tensors: Sequence[Operand]) -> Operand:
    return cat(b, tensors, 0 if rank_of(tensors[0]) < 2 else 1)


@operator("vstack", "row_stack")
def vstack(b: Builder, tensors: Sequence[Operand]) -> Operand:
    return cat(b, [unsqueeze(b, x, 0) if rank_of(x) == 1 else x for x in tensors], 0)


@operator()
def column_stack(b: Builder, tensors: Sequence[Operand]) -> Operand:
    return cat(b, [unsqueeze(b, x, 1) if rank_of(x) == 1 else x for x in tensors], 1)


@operator()
def flip(b: Builder, self: Operand, dims: Sequence[int]) -> Operand:
    axes = tuple(axis_of(self, dim) for dim in dims)
    return moved(b, lambda a: np.flip(a, axes), self)


@operator()
def fliplr(b: Builder, self: Operand) -> Operand:
    return flip(b, self, (1,))


@operator()
def flipud(b: Builder, self: Operand) -> Operand:
    return flip(b, self, (0,))


@operator()
def roll(
    b: Builder, self: Operand, shifts: int | Sequence[int], dims: int | Sequence[int] = ()
) -> Operand:
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    by = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    return moved(b, lambda a: np.roll(a, by, axes) if axes else np.roll(a, by), self)


@operator()
def repeat(b: Builder, self: Operand, repeats: Sequence[int]) -> Operand:
    counts = [whole(n, "a number of repetitions") for n in repeats]
    check_size((*shape_of(self), *counts))
    return moved(b, lambda a: np.tile(a, counts), self)


@operator()
def tile(b: Builder, self: Operand, dims: Sequence[int]) -> Operand:
    return repeat(b, self, dims)


@operator()
def repeat_interleave(
    b: Builder,
    self: Operand,
    repeats: Any = None,
    dim: int | None = None,
    output_size: int | None = None,
) -> Operand:
    if isinstance(repeats, Value) or repeats is None:
        raise ConvertError("how often numbers are repeated is computed from the input")
    check_size((*shape_of(self), int(np.max(repeats))))
    return moved(b, lambda a: np.repeat(a, repeats, dim), self)


@operator("constant_pad_nd")
def constant_pad(b: Builder, self: Operand, pad: Sequence[int], value: float = 0) -> Operand:
    return _padded(b, self, pad, "constant", value)


@operator("pad")
def pad_(
    b: Builder,
    self: Operand,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Operand:
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "constant": "constant"}
    if mode not in modes:
        raise ConvertError(f"padding of mode {mode!r:.40} is not supported")
    return _padded(b, self, pad, modes[mode], value or 0)


@operator("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def reflection_pad(b: Builder, self: Operand, padding: Sequence[int]) -> Operand:
    return _padded(b, self, padding, "reflect")


@operator("replication_pad1d", "replication_pad2d", "replication_pad3d")
def replication_pad(b: Builder, self: Operand, padding: Sequence[int]) -> Operand:
    return _padded(b, self, padding, "edge")


def _padded(b: Builder, x: Operand, pad: Sequence[int], mode: str, value: float = 0) -> Operand:
    """With so many more before and behind, of the last axis first; fewer where negative."""
    sides = [whole(n, "a padding") for n in pad]
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (rank_of(x) - len(pairs)) + pairs
    shape = shape_of(x)
    if len(pairs) != len(shape):
        raise ConvertError(f"{len(sides)} paddings of an array of {len(shape)} axes")
    cut = tuple(slice(max(-a, 0), n - max(-z, 0)) for (a, z), n in zip(pairs, shape, strict=True))
    added = [(max(a, 0), max(z, 0)) for a, z in pairs]
    check_size([n + a + z for n, (a, z) in zip(shape, added, strict=True)])
    if mode == "reflect" and any(max(s) >= n for s, n in zip(added, shape, strict=True) if any(s)):
        raise ConvertError(f"an array of shape {shape} is padded by {sides} by reflection")
    if mode != "constant":
        return b.move(lambda a: np.pad(a[cut], added, mode), x)  # type: ignore[call-overload]
    if value == 0:
        fill = fill_of(x)
        return b.move(lambda a: np.pad(a[cut], added, constant_values=fill), x)
    return b.move(
        lambda a, v: np.where(
            np.pad(np.ones_like(a[cut], "?"), added), np.pad(a[cut], added), v.reshape(())
        ),
        *(x, np.asarray([value], "f8")),
    )


# Picking by an index that is the same for every input


def _fixed(index: Any) -> Any:
    if isinstance(index, Value):
        raise ConvertError(
            "numbers are picked by an index that is computed from the input; expected one that is "
            "the same for every input"
        )
    return index


@operator()
def index(b: Builder, self: Operand, indices: Sequence[Any]) -> Operand:
    first = indices[0] if len(indices) == 1 else None
    table = isinstance(self, np.ndarray) and self.ndim == 2
    if table and isinstance(first, Value) and first.kind == "int":
        return b.embedding(first, self)
    at = tuple(slice(None) if i is None else _fixed(i) for i in indices)
    return moved(b, lambda a: a[at], self)


@operator()
def index_select(b: Builder, self: Operand, dim: int, index: Operand) -> Operand:
    axis, at = axis_of(self, dim), _fixed(index)
    return moved(b, lambda a: np.take(a, np.atleast_1d(at), axis), self)


@operator()
def gather(
    b: Builder, self: Operand, dim: int, index: Operand, sparse_grad: bool = False
) -> Operand:
    axis, at = axis_of(self, dim), _fixed(index)
    cut = tuple(slice(None) if n == axis else slice(at.shape[n]) for n in range(at.ndim))
    return moved(b, lambda a: np.take_along_axis(a[cut], at, axis), self)


@operator()
def take(b: Builder, self: Operand, index: Operand) -> Operand:
    at = _fixed(index)
    return moved(b, lambda a: a.reshape(-1)[at], self)


@operator()
def take_along_dim(b: Builder, self: Operand, indices: Operand, dim: int | None = None) -> Operand:
    at = _fixed(indices)
    return moved(b, lambda a: np.take_along_axis(a, at, dim), self)


@operator()
def masked_select(b: Builder, self: Operand, mask: Operand) -> Operand:
    where = _fixed(mask)
    return moved(b, lambda a: a[np.broadcast_to(where, a.shape)], self)


@operator()
def tril(b: Builder, self: Operand, diagonal: int = 0) -> Operand:
    fill, kept = fill_of(self), _below(self, diagonal)
    return b.move(lambda a: np.where(kept, a, fill), self)


def _below(x: Operand, diagonal: int) -> Array:
    """Which places of a matrix are on a diagonal or below it."""
    high, wide = shape_of(x)[-2:]
    return np.tri(high, wide, diagonal, dtype=np.bool_)


@operator()
def triu(b: Builder, self: Operand, diagonal: int = 0) -> Operand:
    fill, gone = fill_of(self), _below(self, diagonal - 1)
    return b.move(lambda a: np.where(gone, fill, a), self)


@operator()
def diag_embed(
    b: Builder, self: Operand, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> Operand:
    if (offset, dim1, dim2) != (0, -2, -1):
        raise ConvertError("diag_embed of other axes than the last is not supported")
    n, fill = shape_of(self)[-1], fill_of(self)
    check_size((*shape_of(self), n))
    return b.move(lambda a: np.where(np.eye(n, dtype="?"), a[..., None], fill), self)


# Writing: the functional forms, which the in-place ones write back


@operator()
def copy(b: Builder, self: Operand, src: Operand, non_blocking: bool = False) -> Operand:
    shape = shape_of(self)
    return moved(b, lambda a: np.broadcast_to(a, shape), src)


@operator()
def fill(b: Builder, self: Operand, value: Operand) -> Operand:
    return copy(b, self, value if isinstance(value, Value) else np.asarray(value))


@operator("zero")
def zero(b: Builder, self: Operand) -> Operand:
    return np.zeros(shape_of(self), "f4")


def _put(b: Builder, x: Operand, at: tuple[Any, ...], new: Operand) -> Operand:
    """A copy with other numbers in some places."""
    new = new if isinstance(new, Value) else np.asarray(new)

    def put(a: Array, n: Array) -> Array:
        made = a.copy()
        made[at] = np.broadcast_to(n, made[at].shape)
        return made

    return b.move(put, x, new)


@operator("index_put", "_unsafe_index_put")
def index_put(
    b: Builder,
    self: Operand,
    indices: Sequence[Any],
    values: Operand,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Operand:
    if accumulate:
        raise ConvertError("index_put that adds to what is there is not supported")
    at = tuple(slice(None) if i is None else _fixed(i) for i in indices)
    return _put(b, self, at, values)


@operator()
def select_scatter(b: Builder, self: Operand, src: Operand, dim: int, index: int) -> Operand:
    return _put(b, self, (slice(None),) * axis_of(self, dim) + (index,), src)


@operator()
def slice_scatter(
    b: Builder,
    self: Operand,
    src: Operand,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Operand:
    at = (slice(None),) * axis_of(self, dim) + (slice(start, end, step),)
    return _put(b, self, at, src)


@operator()
def scatter(b: Builder, self: Operand, dim: int, index: Operand, src: Operand) -> Operand:
    axis, at = axis_of(self, dim), _fixed(index)
    where = list(np.indices(at.shape))
    where[axis] = at
    if isinstance(src, Value | np.ndarray):
        cut = tuple(slice(n) for n in at.shape)
        src = b.move(lambda a: a[cut], src)
    return _put(b, self, tuple(where), src)


@operator()
def masked_fill(b: Builder, self: Operand, mask: Operand, value: Operand) -> Operand:
    if isinstance(mask, Value) or isinstance(value, Value) or not np.all(np.asarray(value) == 0):
        return b.arithmetic("where", mask, value, self)
    where, fill = np.asarray(mask), fill_of(self)
    return b.move(lambda a: np.where(where, np.asarray(fill, a.dtype), a), self)


@operator()
def masked_scatter(b: Builder, self: Operand, mask: Operand, source: Operand) -> Operand:
    where = np.broadcast_to(_fixed(mask), shape_of(self))
    taken = b.move(lambda a: a.reshape(-1)[: int(where.sum())], source)
    return _put(b, self, (where,), taken)


# Frames and pixels


@operator()
def im2col(
    b: Builder,
    self: Operand,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Operand:
    if rank_of(self) != 4 or set(listed(dilation, 2)) != {1}:
        raise ConvertError("unfold is supported of (N, C, H, W), without dilation")
    (kh, kw), (ph, pw), (sh, sw) = (listed(p, 2) for p in (kernel_size, padding, stride))
    x = _padded(b, self, (pw, pw, ph, ph), "constant")
    x = unfold(b, unfold(b, x, 2, kh, sh), 3, kw, sw)  # (N, C, H', W', kh, kw)
    n, channels, high, wide = shape_of(x)[:4]
    x = b.move(lambda a: a.transpose(0, 1, 4, 5, 2, 3), x)
    return reshape(b, x, (n, channels * kh * kw, high * wide))


@operator()
def pixel_shuffle(b: Builder, self: Operand, upscale_factor: int) -> Operand:
    *front, channels, high, wide = shape_of(self)
    r = upscale_factor
    x = reshape(b, self, (*front, channels // (r * r), r, r, high, wide))
    n = len(front)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    x = b.move(lambda a: a.transpose(order), x)
    return reshape(b, x, (*front, channels // (r * r), high * r, wide * r))


@operator("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def upsample_nearest(
    b: Builder,
    input: Operand,
    output_size: Sequence[int] | None = None,
    scale_factors: Any = None,
    *scales: float | None,
) -> Operand:
    given = None if scale_factors is None else scale_factors
    given = (given, *scales) if isinstance(given, float) else given
    for n, axis in enumerate(range(2, rank_of(input))):
        size = shape_of(input)[axis]
        scale = None if given is None else given[n]
        to = int(size * (scale or 1)) if output_size is None else int(output_size[n])
        step = 1 / scale if scale else size / to
        at = np.minimum(np.floor(np.arange(to) * step).astype(int), size - 1)
        input = index_select(b, input, axis, at)
    return input
