"""Transposed kernels of integers: rows of numbers are rounded together, and here is which.

A row is what reaches a *block* of outputs, as many along each axis as the stride is: output i is
number r of block j where i = stride * j - late + r, and is made of inputs j - m by the taps
stride * m - late + r, for m from 0 on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlstm import spec
from fastlstm.reference.functions import Array
from fastlstm.reference.products import Integers, products

__all__ = ["transposed_of_integers"]


class _Axis(NamedTuple):
    """One axis of a kernel.

    Parameters
    ----------
    inputs : int array (blocks, offsets)
        The number of each input of a block; one behind the last where there is none.
    taps : int array (r, offsets)
        The tap by which it takes part in number r of the block; -1 for none.
    kept : slice
        The outputs that there are, of those of all blocks.
    """

    inputs: Array
    taps: Array
    kept: slice


def _axis(layer: spec.Convolution, axis: int, size: int) -> _Axis:
    stride, dilation, reach = layer.strides[axis], layer.dilations[axis], layer.reaches[axis]
    late = layer.late if layer.over_time and axis == 0 else 0
    m = np.arange((reach + late) // stride + 1)
    at = stride * m - late + np.arange(stride)[:, None]
    there = (at >= 0) & (at % dilation == 0) & (at <= reach)
    used = there.any(axis=0)
    outputs = (size - 1) * stride + reach + 1 + layer.output_paddings[axis]
    inputs = np.arange((outputs - 1 + late) // stride + 1)[:, None] - m[used]
    inputs = np.where((inputs >= 0) & (inputs < size), inputs, size)
    taps = np.where(there, at // dilation, -1)[:, used]
    return _Axis(inputs, taps, slice(late, late + outputs))


def transposed_of_integers(layer: spec.Convolution, weight: Integers, x: Array) -> Array:
    """All outputs of x (N, C, *axes), before anything is cut off and without the bias: (N, O, ...).

    Parameters
    ----------
    layer : spec.Convolution
    weight : Integers (C, O / G, *kernel_size), with a scale for each of O / G
    x : array
    """
    n, groups, each = x.ndim - 2, layer.groups, x.shape[1] // layer.groups
    axes = [_axis(layer, axis, size) for axis, size in enumerate(x.shape[2:])]
    blocks, strides = [len(one.inputs) for one in axes], [len(one.taps) for one in axes]
    seen, taps = np.pad(x, [(0, 0), (0, 0), *[(0, 1)] * n]), np.zeros((1, 1), np.int64)
    for number, one in enumerate(axes):
        seen = np.take(seen, one.inputs, axis=2 + 2 * number)
        both = (taps >= 0)[:, None, :, None] & (one.taps >= 0)[:, None]
        joined = taps[:, None, :, None] * layer.kernel_size[number] + one.taps[:, None]
        taps = np.where(both, joined, -1).reshape(len(taps) * len(one.taps), -1)
    # seen is (N, C, blocks, offsets, blocks, offsets, ...), taps (numbers of a block, offsets).
    order = (0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))
    rows = seen.transpose(order).reshape(-1, groups, each * taps.shape[1]).swapaxes(0, 1)
    numbers: Array = weight.numbers.reshape(groups, each, len(weight.scale), -1)
    numbers = np.where(taps >= 0, numbers[..., taps], 0).transpose(0, 3, 2, 1, 4)
    numbers = numbers.reshape(groups, -1, rows.shape[-1])
    y = products(rows, numbers, np.tile(weight.scale, len(taps)))
    y = y.reshape(groups, len(x), *blocks, *strides, len(weight.scale))
    beside = (2 + axis + part for axis in range(n) for part in (0, n))
    y = y.transpose(1, 0, 2 + 2 * n, *beside)
    y = y.reshape(len(x), layer.out_channels, *np.multiply(blocks, strides))
    return y[(slice(None), slice(None), *(one.kept for one in axes))]
