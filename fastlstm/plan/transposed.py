"""Transposed kernels: each of their outputs is a product too, of the inputs that reach it.

Along an axis with stride s, output s * j - late + r, counted before anything is cut off, is made of
inputs j - m by the taps of *phase* r, of which each has its own. So the outputs of all phases at
block j are rows of one matrix, and the outputs are those of all blocks, interleaved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.planner import Planner
from fastlstm.plan.view import Block, Matrix, Numbers, Places, View
from fastlstm.spec import FILL

__all__ = ["Axis", "axis_of_step", "axis_of_time", "phases"]


@dataclass(frozen=True)
class Axis:
    """One axis of a transposed kernel.

    Parameters
    ----------
    taps : int array (phases, offsets)
        The number of the tap by which a phase takes the input so many positions before; -1: none.
    inputs : int array (blocks, offsets)
        The number of that input; -1 where there is none.
    cut, size : int
        Outputs that are left out before the first, and those that are kept.
    """

    taps: Places
    inputs: Places
    cut: int
    size: int


def _taps(layer: spec.Convolution, axis: int, late: int) -> Places:
    kernel, dilation, stride = layer.kernel_size[axis], layer.dilations[axis], layer.strides[axis]
    offsets = (layer.reaches[axis] + late) // stride + 1
    at = stride * np.arange(offsets) - late + np.arange(stride)[:, None]
    there = (at >= 0) & (at % dilation == 0) & (at < kernel * dilation)
    return np.where(there, at // dilation, FILL)


def axis_of_step(layer: spec.Convolution, axis: int, inputs: int, size: int) -> Axis:
    """An axis of so many inputs and outputs of one step."""
    taps, stride, before = _taps(layer, axis, 0), layer.strides[axis], layer.paddings[axis][0]
    first = before // stride
    blocks = np.arange(first, (before + size - 1) // stride + 1)
    at = blocks[:, None] - np.arange(taps.shape[1])
    there = (at >= 0) & (at < inputs)
    return _without_idle(Axis(taps, np.where(there, at, FILL), before - first * stride, size))


def axis_of_time(layer: spec.Convolution, late: int) -> tuple[Axis, int, int]:
    """The axis of time: one block of outputs, of the rows of a window.

    Returns
    -------
    axis : Axis
    size, dilation : int
        Of the window, whose first row is the oldest that the layer keeps.
    """
    taps, kept = _taps(layer, 0, late), layer.kept
    used = np.flatnonzero((taps >= 0).any(axis=0))
    dilation = math.gcd(kept, *used.tolist()) or 1
    inputs = (kept - used) // dilation
    axis = Axis(taps[:, used], inputs[None], 0, layer.strides[0])
    return axis, kept // dilation + 1, dilation


def _without_idle(axis: Axis) -> Axis:
    """The axis without inputs that no output has a tap for."""
    used = np.flatnonzero((axis.taps >= 0).any(axis=0) & (axis.inputs >= 0).any(axis=0))
    used = used if len(used) else np.array([0])
    return Axis(axis.taps[:, used], axis.inputs[:, used], axis.cut, axis.size)


def phases(
    planner: Planner, layer: spec.Convolution, weight: str, bias: Numbers | None, x: View,
    axes: Sequence[Axis],
) -> View:  # fmt: skip
    """The outputs (out_channels, sizes of the axes) of inputs x (in_channels, *axes)."""
    strides = [int(np.prod(layer.kernel_size[n + 1 :])) for n in range(len(axes))]
    taps = _joined([axis.taps for axis in axes], strides)  # (phases of all axes, offsets)
    padded = np.pad(x.places, [(0, 0)] + [(0, 1)] * len(axes), constant_values=FILL)
    at = np.ix_(np.arange(len(padded)), *(axis.inputs.ravel() for axis in axes))
    blocks = [len(axis.inputs) for axis in axes]
    seen = padded[at].reshape(len(padded), *itertools.chain(*(axis.inputs.shape for axis in axes)))
    n = len(axes)
    seen = seen.transpose(*range(1, 2 * n, 2), 0, *range(2, 2 * n + 1, 2))
    seen = seen.reshape(math.prod(blocks), len(padded), taps.shape[1])
    if layer.depthwise:
        y = _by_taps(planner, layer, weight, bias, x.at(seen.transpose(0, 2, 1)), taps)
    else:
        y = _by_products(planner, layer, weight, bias, x.at(seen), taps)
    counts = [len(axis.taps) for axis in axes]
    places = y.places.reshape(*blocks, *counts, layer.out_channels)
    places = places.transpose(2 * n, *itertools.chain(*((i, n + i) for i in range(n))))
    places = places.reshape(-1, *(b * r for b, r in zip(blocks, counts, strict=True)))
    kept = (slice(axis.cut, axis.cut + axis.size) for axis in axes)
    return y.at(places[(slice(None), *kept)])


def _joined(numbers: Sequence[Places], strides: Sequence[int]) -> Places:
    """Numbers (phases, offsets) of each axis as those of all axes at once; -1 where one is -1."""
    total = np.zeros((1, 1), np.int64)
    for one, stride in zip(numbers, strides, strict=True):
        there = (total >= 0)[:, None, :, None] & (one >= 0)[:, None]
        both = np.where(there, total[:, None, :, None] + stride * one[:, None], FILL)
        total = both.reshape(len(total) * len(one), -1)
    return total


def _by_taps(
    planner: Planner, layer: spec.Convolution, weight: str, bias: Numbers | None, seen: View,
    taps: Places,
) -> View:  # fmt: skip
    """As many groups as channels: seen (blocks, offsets, C) -> (blocks, phases, C)."""
    C, kernel = layer.out_channels, math.prod(layer.kernel_size)
    made, parts, start = [], [], 0
    for phase in taps:
        used = np.flatnonzero(phase >= 0)
        rows = [Block(row, 1, 0, C, weight, int(phase[m]), 0, kernel) for row, m in enumerate(used)]
        used = used if len(used) else np.array([0])  # of which the one weight is 0
        at = seen.places[:, used]
        y = planner.store(len(at) * C, seen.line)
        matrix = Matrix(len(used), C, tuple(rows))
        planner.add(
            op.Taps(
                *(list(seen.sources), y, matrix, bias, None, None, op.IDENTITY),
                *(len(at), at[:, :, 0]),
            )
        )
        made.append(y)
        parts.append(start + np.arange(y.count).reshape(len(at), 1, C))
        start += y.count
    return View(tuple(made), np.concatenate(parts, axis=1))


def _by_products(
    planner: Planner, layer: spec.Convolution, weight: str, bias: Numbers | None, seen: View,
    taps: Places,
) -> View:  # fmt: skip
    """Seen (blocks, C, offsets) -> (blocks, phases, O)."""
    groups, kernel = layer.groups, math.prod(layer.kernel_size)
    inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
    channels = np.arange(inputs)[:, None] * (outputs * kernel)
    columns = np.where(taps[:, None] >= 0, channels + taps[:, None], FILL)
    columns = columns.reshape(len(taps), -1)
    matrices = [
        Matrix(
            len(taps) * outputs,
            columns.shape[1],
            tuple(_blocks(columns, weight, group * inputs * outputs * kernel, outputs, kernel)),
        )
        for group in range(groups)
    ]
    if bias is not None and len(taps) > 1:
        each = bias.array.reshape(groups, 1, outputs)
        bias = Numbers(np.broadcast_to(each, (groups, len(taps), outputs)).ravel())
    places = seen.places.reshape(len(seen.places), groups, -1)
    y = planner.product(seen.sources, places, matrices, bias)
    made = np.arange(y.count).reshape(len(places), groups, len(taps), outputs)
    return View.of(y, (len(places), len(taps), layer.out_channels), made.swapaxes(1, 2))


def _blocks(columns: Places, weight: str, first: int, outputs: int, kernel: int) -> list[Block]:
    """A block for each phase; one for several, where they are as good as outputs of one."""
    blocks, start = [], 0
    for phase in range(1, len(columns) + 1):
        if phase < len(columns) and outputs == 1:
            before, now = columns[phase - 1], columns[phase]
            same = np.array_equal(before < 0, now < 0)
            if same and (now - before)[now >= 0].tolist() == [1] * int((now >= 0).sum()):
                continue
        rows, stride = ((phase - start), 1) if outputs == 1 else (outputs, kernel)
        order = columns[start]
        if (order >= 0).any():
            blocks.append(
                Block(start * outputs, rows, 0, len(order), weight, first, stride, 0, order)
            )
        start = phase
    return blocks
