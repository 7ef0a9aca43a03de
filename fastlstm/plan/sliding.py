"""Lowerings of kernels that slide over the positions of a step, over time, or over both.

What a kernel sees is an index: over the positions of a step that of its windows, and over time that
of the rows that a window operation has side by side. What is left is a product or a reduction.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.elementwise import elementwise
from fastlstm.plan.planner import Lower, Planner
from fastlstm.plan.time import windowed
from fastlstm.plan.transposed import axis_of_step, axis_of_time, phases
from fastlstm.plan.view import Block, Matrix, Numbers, Places, Stored, View, axes_of
from fastlstm.spec import FILL, Function

__all__ = ["LOWERS"]

# What a kernel sees is listed number by number, 8 bytes each: a few weights at many positions could
# else ask for any memory.
MOST_PLACES = 2**26


def windows(layer: spec.Sliding, places: Places, first: int = 0) -> Places:
    """What each place of a kernel sees of places (C, *axes): (C, *positions, *taps).

    `first` is the number of axes, of time, of which the places are those of one kernel already.
    """
    padding = [(0, 0), *[(0, 0)] * first, *layer.paddings[first:]]
    padded = np.pad(places, padding, constant_values=FILL)
    spans = [
        n if axis < first else layer.reaches[axis] + 1 for axis, n in enumerate(places.shape[1:])
    ]
    seen = sliding_window_view(padded, spans, axis=tuple(range(1, 1 + len(spans))))
    steps = [*[1] * first, *layer.strides[first:], *[1] * first, *layer.dilations[first:]]
    seen = seen[(slice(None), *(slice(None, None, step) for step in steps))]
    if seen.size > MOST_PLACES:
        raise MemoryError(
            f"the kernel of layer {layer.name!r} sees {seen.size} numbers in all its places; at "
            f"most {MOST_PLACES} are supported"
        )
    return seen


def filled(planner: Planner, x: View, fill: float) -> View:
    """The view, which has no filled numbers but `fill`."""
    if (x.places < 0).any() and x.fill != fill:
        x = View.of(planner.move(x), x.shape)
    return replace(x, fill=fill)


def over_time(planner: Planner, layer: spec.Sliding, x: View, fill: float, name: str = "") -> View:
    """What a kernel sees of rows x (...): (kernel_size over time, ...), kept under a name."""
    size, stride, dilation = layer.kernel_size[0], layer.strides[0], layer.dilations[0]
    if (size, stride) == (1, 1):
        return x.at(x.places[None])
    before, behind = layer.paddings[0]
    name = name or layer.name
    return windowed(
        planner, name, x, size, stride, dilation, before=before, behind=behind, fill=fill
    )


def convolution(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    names = layer.names()
    bias = planner.vector(names["bias"]) if layer.bias else None
    x = filled(planner, views[0], 0.0).cut
    if (layer.depthwise and not _adjacent(x.places)) or (layer.over_time and not x.whole):
        lying = planner.move(x.at(np.moveaxis(x.places, 0, -1)))
        at = np.arange(lying.count).reshape(*x.shape[1:], x.shape[0])
        x = View.of(lying, x.shape, np.moveaxis(at, -1, 0))
    if layer.transposed:
        made = _transposed_over_time if layer.over_time else _transposed
        return made(planner, layer, names["weight"], bias, x)
    if layer.over_time:
        seen = over_time(planner, layer, x, 0.0)
        x = seen.at(np.moveaxis(seen.places, 0, 1))
    seen = x.at(windows(layer, x.places, int(layer.over_time)))
    n, (C, *axes) = len(layer.kernel_size), seen.shape
    positions = axes[layer.over_time : n]
    places = seen.places.reshape(C, math.prod(positions), -1)
    if layer.depthwise:
        y = _depthwise(planner, names["weight"], bias, seen.at(places.transpose(1, 2, 0)))
    else:
        y = _product(planner, layer, names["weight"], bias, seen.at(places.swapaxes(0, 1)))
    made_places = np.arange(y.count).reshape(*positions, layer.out_channels)
    return View.of(y, (layer.out_channels, *positions), np.moveaxis(made_places, -1, 0))


def _adjacent(places: Places) -> bool:
    """Whether the channels of every position of places (C, ...) lie one behind the other."""
    behind = places[0] + np.arange(len(places)).reshape(-1, *(1,) * (places.ndim - 1))
    return bool(np.array_equal(places, np.where(places[0] < 0, FILL, behind)))


def _depthwise(planner: Planner, weight: str, bias: Numbers | None, seen: View) -> Stored:
    """Of what is seen (positions, taps, C), a tap having one weight for each channel."""
    positions, taps, C = seen.shape
    y = planner.store(positions * C, seen.line)
    matrix = Matrix(taps, C, (Block(0, taps, 0, C, weight, 0, 1, taps),))
    planner.add(
        op.Taps(
            *(list(seen.sources), y, matrix, bias, None, None, op.IDENTITY),
            *(positions, seen.places[:, :, 0]),
        )
    )
    return y


def _product(
    planner: Planner, layer: spec.Convolution, weight: str, bias: Numbers | None, seen: View
) -> Stored:
    """Of what is seen (positions, C, taps)."""
    places = seen.places.reshape(len(seen.places), layer.groups, -1)
    outputs, columns = layer.out_channels // layer.groups, places.shape[-1]
    matrices = [
        Matrix.of(weight, outputs, columns, group * outputs * columns)
        for group in range(layer.groups)
    ]
    # A kernel may be larger than what it slides over.
    used = np.asarray((places >= 0).any(axis=(0, 1)))
    used[0] |= not used.any()
    if not used.all():
        matrices = [matrix.take(np.flatnonzero(used)) for matrix in matrices]
    return planner.product(seen.sources, places[:, :, used], matrices, bias)


def _transposed(
    planner: Planner, layer: spec.Convolution, weight: str, bias: Numbers | None, x: View
) -> View:
    sizes = zip(x.shape[1:], layer.moved(x.shape), strict=True)
    axes = [axis_of_step(layer, axis, *both) for axis, both in enumerate(sizes)]
    return phases(planner, layer, weight, bias, x, axes)


def _transposed_over_time(
    planner: Planner, layer: spec.Convolution, weight: str, bias: Numbers | None, x: View
) -> View:
    """A window, whose last rows make those of one stride, which are spread over time and cut.

    `end` is the number of rows, before anything is cut off, that a sequence has beyond a stride for
    each row read; where it is below 0, the stream waits, so that it never gives one too many.
    """
    stride, before, kept = layer.strides[0], layer.paddings[0][0], layer.kept
    end = layer.tail(0) + before
    late, behind = max(-end, 0), -(-max(end, 0) // stride)
    cut, left = before + late, behind * stride - max(end, 0)
    of_time, size, dilation = axis_of_time(layer, late)
    seen, name = x.at(x.places[None]), layer.name
    if kept:
        seen = windowed(planner, name, x, size, 1, dilation, before=kept, behind=behind)
    both = zip(x.shape[1:], layer.moved(x.shape), strict=True)
    axes = [of_time]
    axes += [axis_of_step(layer, axis, *sizes) for axis, sizes in enumerate(both, 1)]
    made = phases(planner, layer, weight, bias, seen.at(np.moveaxis(seen.places, 0, 1)), axes)
    made = made.at(np.moveaxis(made.places, 1, 0))  # (stride, out_channels, *axes)
    made = spread_rows(planner, made) if stride > 1 else made.at(made.places[0])
    if cut or left:
        if kept:
            name = counted(planner, f"{name}.given")  # other rows than the window before
        made = windowed(planner, name, made, 1, before=-cut, behind=-left)
        made = made.at(made.places[0])
    return made


def counted(planner: Planner, name: str) -> str:
    """A name, under which the state has a count of rows beside what the vocabulary lists."""
    while f"{name}.count" in planner.parts or f"{name}.x" in planner.parts:
        name += "'"
    planner.parts[f"{name}.count"] = op.Part("count", planner.elements(1), 1, 1)
    return name


def spread_rows(planner: Planner, x: View) -> View:
    """Rows x (n, ...) as n rows (...) each."""
    n, *shape = x.shape
    x = x.cut
    rows = x.places.reshape(n, -1)
    order, step, stored = rows[0], int(rows[1, 0] - rows[0, 0]), x.sources[0]
    adjacent = len(x.sources) == 1 and np.array_equal(rows, order + step * np.arange(n)[:, None])
    if not (adjacent and np.array_equal(np.sort(order), np.arange(len(order)))):
        order, step, stored = np.arange(len(order)), len(order), planner.in_order(x)
    y = planner.store(len(order), planner.line("spread", stored.line, n))
    planner.add(op.Spread(stored, y, n, step))
    return View.of(y, tuple(shape), order)


# ---- Poolings.


def pooling(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    average = layer.function == "average"
    padded = average and not layer.count_include_pad and any(map(any, layer.paddings))
    fill = 0.0 if average else -math.inf
    how = "max" if not average else "sum" if padded else "mean"
    x = filled(planner, views[0], fill)
    counts: list[View] = []
    if layer.over_time:
        if padded and any(layer.paddings[0]):
            counts.append(_real_rows(planner, layer, x))
        elif padded:
            counts.append(planner.constant(np.full(1, layer.kernel_size[0])))
        seen = over_time(planner, layer, x, fill)
        x = _reduced(planner, how, seen, 0)
    for axis in range(layer.over_time, len(layer.kernel_size)):
        at = axis - layer.over_time + 1
        seen = x.at(_windows_of_axis(layer, axis, x.places, at))
        if padded:
            real = (_windows_of_axis(layer, axis, np.arange(x.shape[at]), 0) >= 0).sum(axis=-1)
            shape = [1] * x.places.ndim
            shape[at] = len(real)
            counts.append(planner.constant(real.reshape(shape)))
        x = _reduced(planner, how, replace(seen, fill=fill), seen.places.ndim - 1)
    for count in counts:
        x = elementwise(planner, Function("divide"), [x, count], x.shape)
    return x


def _windows_of_axis(layer: spec.Sliding, axis: int, places: Places, at: int) -> Places:
    """What a kernel sees along one of its axes, axis `at` of the places: (..., taps)."""
    padding = [(0, 0)] * places.ndim
    padding[at] = layer.paddings[axis]
    padded = np.pad(places, padding, constant_values=FILL)
    seen = sliding_window_view(padded, layer.reaches[axis] + 1, axis=at)
    kept = [slice(None)] * places.ndim
    kept[at] = slice(None, None, layer.strides[axis])
    return seen[(*kept, slice(None, None, layer.dilations[axis]))]


def _reduced(planner: Planner, how: str, x: View, axis: int) -> View:
    """The reduction of an axis."""
    n = x.shape[axis]
    if n == 1:
        return x.at(np.squeeze(x.places, axis))
    x = x.cut
    if (order := axes_of(x)) is None:  # it must be moved: the others stay in the order they have
        others = [other for other in range(x.places.ndim) if other != axis]
        step = {a: np.median(np.diff(x.places, axis=a)) if x.shape[a] > 1 else 0 for a in others}
        order = [axis, *sorted(others, key=lambda other: -step[other])]
    stored = planner.in_order(x.at(x.places.transpose(order)))
    before, behind = order[: order.index(axis)], order[order.index(axis) + 1 :]
    outer, inner = (math.prod(x.shape[other] for other in some) for some in (before, behind))
    y = planner.store(outer * inner, x.line)
    planner.add(op.Reduce(stored, y, how, outer, n, inner))
    left = before + behind
    places = np.arange(y.count).reshape([x.shape[other] for other in left])
    places = places.transpose(np.argsort(left))
    return View.of(y, places.shape, places.ravel())


def _real_rows(planner: Planner, layer: spec.Pooling, x: View) -> View:
    """How many of the rows that a kernel over time sees are no padding: (1,)."""
    ones, reach = planner.store(1, x.line), layer.reaches[0]
    planner.add(op.Move(x.sources, ones, np.array([FILL, 0, 1]), 1.0))
    name = counted(planner, f"{layer.name}.real")
    planner.parts[f"{name}.x"] = op.Part("plain", planner.elements(reach), reach, 1)
    seen = over_time(planner, layer, View.of(ones, (1,)), 0.0, name)
    return _reduced(planner, "sum", seen, 0)


LOWERS: dict[type[spec.Layer], Lower] = {
    spec.Convolution: convolution,
    spec.Pooling: pooling,
}
