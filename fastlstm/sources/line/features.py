"""Layers of the features of a step alone: functions, scales and normalisations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastlstm import chain as spec
from fastlstm.chain.functions import ROWWISE
from fastlstm.errors import ConvertError
from fastlstm.sources.line.axes import FEATURES, POSITION, Group, settle, size_of
from fastlstm.sources.line.chain import order, row_size
from fastlstm.sources.line.nodes import (
    Absorbing,
    Activated,
    Array,
    Constant,
    Node,
    Part,
    Scaled,
    Value,
)
from fastlstm.sources.line.views import Views

__all__ = ["Features"]

# Functions that no layer has, and what they are part of.
_PARTS = {"erf": "0.5 * x * (1 + erf(x / sqrt(2)))", "abs": "x / (1 + abs(x))"}


class Features(Views):
    """The part of :class:`~fastlstm.sources.line.Line` that works on each step by itself."""

    def _read(self, x: Value, axes: Sequence[int], size: int | None, name: str) -> list[Group]:
        """Settle which axes of a value hold its features, of which there must be `size`."""
        places = [self._axis(x, axis, name) for axis in axes]
        groups = [x.axes[place] for place in places]
        for place, group in enumerate(x.axes):
            settle(group, FEATURES if place in places else POSITION, name)
        have = size_of(sum(groups, ()))
        if size is not None and have != size:
            raise ConvertError(
                f"{name!r:.200} takes {size} features; the array of shape {x.shape} it is given "
                f"has {have} along axis {', '.join(map(str, axes))}"
            )
        return groups

    def activation(self, x: Value, function: str, name: str, axis: int = -1) -> Value:
        """A function of :mod:`fastlstm.chain.functions`, or erf or abs, which make others.

        `axis` is that of a softmax.
        """
        row = x.node.row
        if function in _PARTS:
            node = Activated(name, row, x, unfinished=_PARTS[function], function=function)
            return Value(node, x.axes)
        groups = list(x.axes)
        if function in ROWWISE:
            groups = [groups[self._axis(x, axis, name)]]
            settle(groups[0], FEATURES, name)

        def make(layer: str) -> Part:
            order(row, groups, name)
            return spec.Activation(layer, function, row_size(row)), {}

        return Value(Activated(name, row, x, make, function=function), x.axes)

    def scale(self, x: Value, weight: Array | float, bias: Array | float, name: str) -> Value:
        """``x * weight + bias``, element by element; both are broadcast to x as NumPy does."""
        w = _broadcast(x, np.asarray(weight, np.float64), name)
        b = _broadcast(x, np.asarray(bias, np.float64), name)
        if isinstance(x.node, Constant):
            return self.constant(x.node.array * w + b)
        before, step, factor, shift = x.node, x, w, b
        if isinstance(before, Scaled) and before.source and before.source.axes == x.axes:
            x, w, b = before.source, before.weight * w, before.bias * w + b
        if (w == 1).all() and (b == 0).all():
            return x

        if isinstance(x.node, Absorbing) and (absorbed := x.node.absorb(x, w, b)):
            return Value(absorbed, x.axes)

        def make(layer: str) -> Part:
            shape = [row_size(group) for group in x.axes]
            rows = [np.broadcast_to(array, shape).reshape(-1) for array in (w, b)]
            places = order(x.node.row, x.axes, name)
            if places is not None:
                rows = [row[places] for row in rows]
            tensors = dict(zip(("weight", "bias"), map(narrowed, rows), strict=True))
            return spec.Scale(layer, rows[0].size), tensors

        node = Scaled(
            name, x.node.row, x, make, weight=w, bias=b, step=step, factor=factor, shift=shift
        )
        return Value(node, x.axes)

    def prelu(self, x: Value, weight: Array, name: str, axis: int = 1) -> Value:
        """``torch.nn.PReLU``: one weight, or one for each channel on an axis."""
        slopes = weight.reshape(-1)
        if slopes.size > 1:
            channels = self._channels(x, axis, slopes.size, name)

        def make(layer: str) -> Part:
            if slopes.size > 1:
                _refuse_inner(x, channels, name)
            return spec.PReLU(layer, row_size(x.node.row), slopes.size), {"weight": slopes}

        return Value(Node(name, x.node.row, x, make), x.axes)

    def batch_norm(
        self,
        x: Value,
        mean: Array,
        var: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        name: str,
    ) -> Value:
        """``torch.nn.BatchNorm1d`` by its running statistics, of the channels on axis 1."""
        for array in (mean, var, weight, bias):
            if array is not None and array.shape != mean.shape:
                raise ConvertError(
                    f"{name!r:.200} has tensors of shapes {mean.shape} and {array.shape}; expected "
                    f"one number a channel"
                )
        channels = self._channels(x, 1 if x.ndim > 1 else 0, mean.size, name)

        def make(layer: str) -> Part:
            _refuse_inner(x, channels, name)
            tensors = {"running_mean": mean, "running_var": var}
            affine = weight is not None or bias is not None
            if affine:
                tensors["weight"] = np.ones_like(mean) if weight is None else weight
                tensors["bias"] = np.zeros_like(mean) if bias is None else bias
            width = row_size(x.node.row) // mean.size
            return spec.BatchNorm1d(layer, mean.size, eps, affine, width=width), tensors

        return Value(Node(name, x.node.row, x, make), x.axes)

    def _channels(self, x: Value, axis: int, size: int, name: str) -> Group:
        channels = x.axes[self._axis(x, axis, name)]
        settle(channels, FEATURES, name)
        if size_of(channels) != size:
            raise ConvertError(
                f"{name!r:.200} has numbers for {size} channels; the array of shape {x.shape} it "
                f"is given has {size_of(channels)} on axis {axis}"
            )
        return channels

    def layer_norm(
        self,
        x: Value,
        normalized_shape: Sequence[int],
        weight: Array | None,
        bias: Array | None,
        eps: float,
        name: str,
    ) -> Value:
        """``torch.nn.LayerNorm`` over the last axes."""
        axes = list(range(-len(normalized_shape), 0))
        sizes = tuple(normalized_shape)
        if not axes or x.shape[axes[0] :] != sizes:
            raise ConvertError(
                f"{name!r:.200} normalises {sizes}, the array it is given has "
                f"shape {x.shape}; expected its last axes"
            )
        read = self._read(x, axes, None, name)

        def normed(weight: Array | None, bias: Array | None) -> Absorbing:
            def make(layer: str) -> Part:
                places = order(x.node.row, read, name)
                given = {"weight": weight, "bias": bias}
                if weight is None and bias is not None:
                    given["weight"] = np.ones_like(bias)
                tensors = {suffix: a.reshape(-1) for suffix, a in given.items() if a is not None}
                if places is not None:
                    tensors = {suffix: array[places] for suffix, array in tensors.items()}
                affine = "weight" in tensors
                size = row_size(x.node.row)
                return spec.LayerNorm(layer, size, eps, affine, "bias" in tensors), tensors

            def absorb(seen: Value, w: Array, b: Array) -> Absorbing | None:
                inner = -len(axes)
                outer = w.shape[:inner] + b.shape[:inner]
                # A factor for all may be part of what a function is written as.
                alike = w.size == 1 and (w != 1).any()
                if list(seen.axes[inner:]) != read or math.prod(outer) != 1 or alike:
                    return None
                factor, addend = (
                    np.broadcast_to(a.reshape(a.shape[inner:]), sizes) for a in (w, b)
                )
                return normed(
                    narrowed(factor if weight is None else weight * factor),
                    narrowed(addend if bias is None else bias * factor + addend),
                )

            return Absorbing(name, x.node.row, x, make, absorb=absorb)

        return Value(normed(weight, bias), x.axes)


def _refuse_inner(x: Value, channels: Group, name: str) -> None:
    """Check that channels are the outermost features of the row."""
    if order(x.node.row, [channels, *(g for g in x.axes if g != channels)], name) is not None:
        raise ConvertError(
            f"{name!r:.200} has a number for each position within a frame; expected one for each "
            f"of its channels"
        )


def _broadcast(x: Value, array: Array, name: str) -> Array:
    """A constant with as many axes as x, those that are not of size 1 settled as features."""
    more = x.ndim - array.ndim
    shape = (1,) * more + array.shape[max(-more, 0) :]
    fits = all(n in (1, size) for n, size in zip(shape, x.shape, strict=True))
    if not fits or math.prod(array.shape[: max(-more, 0)]) != 1:
        raise ConvertError(
            f"{name!r:.200} combines a constant of shape {array.shape} with an array of shape "
            f"{x.shape}; expected one that can be repeated to that shape"
        )
    for group, n in zip(x.axes, shape, strict=True):
        if n != 1:
            settle(group, FEATURES, name)
    return array.reshape(shape)


def narrowed(array: Array) -> Array:
    """In float32, as most constants come, where that holds the same numbers."""
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    return narrow if np.array_equal(narrow, array, equal_nan=True) else array
