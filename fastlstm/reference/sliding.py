"""Equations of the kernels that slide over positions, over time, or over both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastlstm import spec
from fastlstm.reference.functions import Array
from fastlstm.reference.over_time import OverTime, State, read_before
from fastlstm.reference.products import Integers, Weights, grouped
from fastlstm.reference.transposed import transposed_of_integers

__all__ = ["SlidingOverTime", "within_step"]

Pairs = Sequence[tuple[int, int]]
Slid = Callable[[spec.Sliding, Weights, Array, Pairs, Array | None], Array]


def windows(layer: spec.Sliding, x: Array) -> Array:
    """What each place of the kernel sees of x (N, C, *axes): (N, C, *places, *kernel_size)."""
    n = len(layer.kernel_size)
    spans = tuple(reach + 1 for reach in layer.reaches)
    seen: Array = sliding_window_view(x, spans, axis=tuple(range(2, 2 + n)))
    steps = (*layer.strides, *layer.dilations)
    return seen[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]


def convolve(layer: spec.Convolution, w: Weights, x: Array) -> Array:
    """A convolution of what is padded already: x (N, C, *axes) -> y (N, O, *places)."""
    n, groups = len(layer.kernel_size), layer.groups
    seen = windows(layer, x)
    places = seen.shape[2 : 2 + n]
    seen = seen.reshape(len(x), groups, -1, *seen.shape[2:])  # (N, G, C / G, *places, *taps)
    rows = np.moveaxis(np.moveaxis(seen, 1, 0), 2, 2 + n)  # (G, N, *places, C / G, *taps)
    width = math.prod(rows.shape[2 + n :])
    y = grouped(rows.reshape(groups, -1, width), w["weight"])
    y = np.moveaxis(y.reshape(groups, len(x), *places, y.shape[-1]), (0, -1), (1, 2))
    return _with_bias(layer, w, y.reshape(len(x), layer.out_channels, *places))


def convolve_transposed(layer: spec.Convolution, w: Weights, x: Array) -> Array:
    """Before anything is cut off: x (N, C, *axes) -> y (N, O, *places)."""
    if isinstance(w["weight"], Integers):
        return _with_bias(layer, w, transposed_of_integers(layer, w["weight"], x))
    groups, axes = layer.groups, x.shape[2:]
    sizes = [
        (size - 1) * stride + reach + 1 + extra
        for size, stride, reach, extra in zip(
            axes, layer.strides, layer.reaches, layer.output_paddings, strict=True
        )
    ]
    grouped = x.reshape(len(x), groups, -1, *axes)
    weight = w["weight"].reshape(groups, -1, *w["weight"].shape[1:])  # (g, C / g, O / g, *taps)
    y = np.zeros((len(x), groups, layer.out_channels // groups, *sizes), x.dtype)
    for tap in np.ndindex(layer.kernel_size):
        at = (slice(None),) * 3 + tuple(
            slice(d * k, d * k + s * (size - 1) + 1, s)
            for d, k, s, size in zip(layer.dilations, tap, layer.strides, axes, strict=True)
        )
        part = np.einsum("ngc...,gco->ngo...", grouped, weight[(..., *tap)])
        y[at] += part
    return _with_bias(layer, w, y.reshape(len(x), layer.out_channels, *sizes))


def _with_bias(layer: spec.Convolution, w: Weights, y: Array) -> Array:
    return y + w["bias"].reshape(-1, *(1,) * (y.ndim - 2)) if layer.bias else y


def pool(layer: spec.Pooling, x: Array, real: Array) -> Array:
    """A pooling of what is padded already.

    Parameters
    ----------
    x : array (N, C, *axes)
    real : boolean array (*axes)
        What of it is no padding.
    """
    n = len(layer.kernel_size)
    taps = tuple(range(-n, 0))
    if layer.function == "max":
        y: Array = windows(layer, np.where(real, x, -np.inf).astype(x.dtype)).max(axis=taps)
        return y
    y = windows(layer, np.where(real, x, 0)).sum(axis=taps)
    if layer.count_include_pad:
        y /= x.dtype.type(math.prod(layer.kernel_size))
    else:
        y /= windows(layer, real[None, None]).sum(axis=taps).astype(x.dtype)
    return y


def _padded(x: Array, padding: Pairs) -> tuple[Array, Array]:
    """x (N, C, *axes) with zeros around its axes, and what of them is no padding."""
    real = np.pad(np.ones(x.shape[2:], bool), padding)
    return np.pad(x, [(0, 0), (0, 0), *padding]), real


def _cut(y: Array, padding: Pairs) -> Array:
    """y (N, O, *axes) without what is cut off at both ends of its axes."""
    ends = zip(y.shape[2:], padding, strict=True)
    kept = (slice(before, size - behind) for size, (before, behind) in ends)
    return y[(slice(None), slice(None), *kept)]


def _slid(layer: spec.Sliding, w: Weights, x: Array, padding: Pairs, real: Array | None) -> Array:
    """x (N, C, *axes) -> y, by the kernel, with so much padding, or cut off if it is transposed.

    `real` tells what of the axes as they are given is no padding, if not all of it.
    """
    if isinstance(layer, spec.Convolution) and layer.transposed:
        return _cut(convolve_transposed(layer, w, x), padding)
    padded, there = _padded(x, padding)
    if isinstance(layer, spec.Convolution):
        return convolve(layer, w, padded)
    assert isinstance(layer, spec.Pooling)
    if real is not None:
        there &= np.pad(real, padding)
    return pool(layer, padded, there)


def within_step(layer: spec.Sliding, w: Weights, x: Array, slid: Slid = _slid) -> Array:
    """A kernel over the positions of a step: x (T, B, C, *axes) -> y (T, B, O, *axes)."""
    y = slid(layer, w, x.reshape(-1, *x.shape[2:]), layer.paddings, None)
    return y.reshape(*x.shape[:2], *y.shape[1:])


class SlidingOverTime(OverTime):
    """A kernel over time, and over positions too: x (T, B, C, *axes) -> y (T', B, O, *axes)."""

    layer: spec.Sliding
    slid = staticmethod(_slid)

    def whole(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        whole, _ = self.layer.terms
        if not whole(len(x)):
            return self._none(x)
        return _as_steps(self.slid(self.layer, self.w, _as_axis(x), self.layer.paddings, None))

    def run(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        _, stream = self.layer.terms
        kept = self.layer.kept
        # Where the number of steps before does not matter, it is taken to be that of the rows kept.
        n = read_before(state) if "count" in state else kept
        joined = np.concatenate([state["x"], x]) if kept else x
        y = self._rows(joined, n - kept, stream(n), stream(n + len(x)))
        if kept:
            state["x"] = joined[len(joined) - kept :]
        if "count" in state:
            state["count"] = state["count"] + len(x)
        return y

    def flush(self, state: State) -> Array | None:
        whole, stream = self.layer.terms
        if whole == stream:
            return None
        n = read_before(state)
        joined = state["x"]
        return self._rows(joined, n - len(joined), stream(n), whole(n), end=n)

    def _rows(
        self, joined: Array, start: int, begin: int, stop: int, end: int | None = None
    ) -> Array:
        """Outputs `begin` to `stop` of rows of which the first is number `start` of the stream.

        Those below number 0 are the padding before a sequence, those from `end` on, if it has one,
        the padding behind.
        """
        if stop <= begin:
            return self._none(joined)
        layer = self.layer
        before, stride, reach = layer.paddings[0][0], layer.strides[0], layer.reaches[0]
        if isinstance(layer, spec.Convolution) and layer.transposed:
            full = convolve_transposed(layer, self.w, _as_axis(joined))
            at = before - start * stride
            kept = [(at + begin, full.shape[2] - (at + stop)), *layer.paddings[1:]]
            return _as_steps(_cut(full, kept))
        first, last = begin * stride - before, (stop - 1) * stride - before + reach
        behind = max(0, last - (start + len(joined) - 1))
        seen = np.pad(joined, [(0, behind), *[(0, 0)] * (joined.ndim - 1)])
        seen = seen[first - start : last - start + 1]
        numbers = np.arange(first, last + 1)
        real = (numbers >= 0) & (numbers < (numbers[-1] + 1 if end is None else end))
        axes = seen.shape[3:]
        real = np.broadcast_to(real.reshape(-1, *(1,) * len(axes)), (len(real), *axes))
        padding = [(0, 0), *layer.paddings[1:]]
        return _as_steps(self.slid(layer, self.w, _as_axis(seen), padding, real))

    def _none(self, x: Array) -> Array:
        return np.zeros((0, x.shape[1], *self.layer.output(self.reads)), x.dtype)


def _as_axis(x: Array) -> Array:
    """(T, B, C, *axes) as (B, C, T, *axes)."""
    return np.moveaxis(x, 0, 2)


def _as_steps(y: Array) -> Array:
    """(B, C, T, *axes) as (T, B, C, *axes)."""
    return np.moveaxis(y, 2, 0)
