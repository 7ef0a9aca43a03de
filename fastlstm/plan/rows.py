"""Lowerings of the layers that look at one step, but for kernels and recurrences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.elementwise import elementwise, scaled
from fastlstm.plan.planner import Lower, Planner
from fastlstm.plan.view import Matrix, Numbers, Places, Stored, View, axes_of, composed

__all__ = ["LOWERS"]


def constant(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    return planner.constant(planner.vector(layer.names()["value"]), layer.shape)


def index(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    fills = {view.fill for view in views if (view.places < 0).any()}
    if len(fills | ({layer.fill} if layer.fills else set())) > 1:
        views = [View.of(planner.in_order(view), view.shape) for view in views]
    made = composed(views, _places(layer), layer.fill)
    return dataclasses.replace(made, alone=all(view.alone for view in views))


def _places(layer: spec.Index) -> Places:
    """The place of each number of an index, of its shape."""
    starts, strides, counts = np.array(layer.runs, np.int64).T
    begins = np.cumsum(counts) - counts
    number = np.arange(counts.sum()) - begins.repeat(counts)  # within its run
    places: Places = starts.repeat(counts) + strides.repeat(counts) * number
    return places.reshape(layer.shape)


def activation(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    return elementwise(planner, spec.parse_function(layer.function), views, views[0].shape)


def arithmetic(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    shape = np.broadcast_shapes(*(view.shape for view in views))
    return elementwise(planner, spec.Function(layer.operation), views, shape)


def _along(planner: Planner, view: View, axes: Sequence[int]) -> tuple[Stored, list[int], Any]:
    """A stored row of which some axes of a view lie one behind the other.

    Returns
    -------
    stored : Stored
    order : list of int
        The axes of the view as they lie in it.
    outer, n, inner : int
        Numbers of the axes before, of those, and behind.
    """
    view = view.cut
    order = axes_of(view)
    at = sorted(order.index(axis) for axis in axes) if order is not None else []
    if order is None or at != list(range(at[0], at[0] + len(at))):
        order = [a for a in range(len(view.shape)) if a not in axes] + sorted(axes)
        stored = planner.move(view.at(view.places.transpose(order)))
    else:
        stored = view.sources[0]
    sizes = [view.shape[axis] for axis in order]
    first = min(order.index(axis) for axis in axes)
    ends = (sizes[:first], sizes[first : first + len(axes)], sizes[first + len(axes) :])
    return stored, order, [math.prod(part) for part in ends]


def _lying(stored: Stored, shape: Sequence[int], order: Sequence[int]) -> View:
    """A view of a shape, whose axes lie in some order."""
    lying = np.arange(stored.count).reshape([shape[axis] for axis in order])
    return View((stored,), lying.transpose(np.argsort(order)))


def softmax(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    (view,) = views
    stored, order, sizes = _along(planner, view, [len(view.shape) + layer.axis])
    made = planner.store(stored.count, stored.line)
    planner.add(op.Softmax(stored, made, int(layer.log), *sizes))
    return _lying(made, view.shape, order)


def reduce(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    (view,) = views
    axes = [len(view.shape) + axis for axis in layer.axes]
    stored, order, (outer, n, inner) = _along(planner, view, axes)
    made = planner.store(outer * inner, stored.line)
    planner.add(op.Reduce(stored, made, layer.function, outer, n, inner))
    kept = [1 if axis in axes else size for axis, size in enumerate(view.shape)]
    reduced = _lying(made, kept, order)
    return reduced.at(reduced.places.reshape(layer.of_row(view.shape)))


def norm(planner: Planner, node: spec.Node, views: list[View]) -> View:
    """LayerNorm and RMSNorm."""
    layer: Any = node.layer
    view = views[0].cut
    first = len(view.shape) - len(layer.normalized_shape)
    inside = list(range(first, len(view.shape)))
    order = axes_of(view)
    if order is None or order[first:] != inside:
        order = list(range(len(view.shape)))
        stored = planner.move(view)
    else:
        stored = view.sources[0]
    made = planner.store(stored.count, stored.line)
    n = math.prod(layer.normalized_shape)
    kind = "layer" if isinstance(layer, spec.LayerNorm) else "rms"
    names = layer.names()
    weight, bias = (planner.vector(names[s]) if s in names else None for s in ("weight", "bias"))
    planner.add(op.Norm(stored, made, kind, stored.count // n, n, layer.eps, weight, bias))
    return _lying(made, view.shape, order)


def group_norm(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    (view,) = views
    stored = planner.in_order(view)
    made = planner.store(stored.count, stored.line)
    vectors: list[Numbers | None] = [None, None]
    if layer.affine:
        names, each = layer.names(), stored.count // layer.num_channels
        vectors = [
            Numbers(planner.vector(names[suffix]).array.repeat(each))
            for suffix in ("weight", "bias")
        ]
    n = stored.count // layer.num_groups
    planner.add(op.Norm(stored, made, "layer", layer.num_groups, n, layer.eps, *vectors))
    return View.of(made, view.shape)


def batch_norm(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    w = {suffix: planner.vector(name).array for suffix, name in layer.names().items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 / np.sqrt(w["running_var"] + layer.eps)
        scale = scale * w["weight"] if layer.affine else scale
        shift = (w["bias"] if layer.affine else 0) - w["running_mean"] * scale
    channels = (-1, *(1,) * (len(views[0].shape) - 1)) if layer.axis == 0 else (-1,)
    return scaled(planner, views[0], scale.reshape(channels), shift.reshape(channels))


def linear(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    (view,) = views
    names = layer.names()
    matrix = Matrix.of(names["weight"], layer.out_features, layer.in_features)
    bias = planner.vector(names["bias"]) if layer.bias else None
    view = planner.filled_with_zeros(view)
    places = view.places.reshape(-1, 1, layer.in_features)
    made = planner.product(view.sources, places, [matrix], bias)
    return View.of(made, (*view.shape[:-1], layer.out_features))


def matmul(planner: Planner, node: spec.Node, views: list[View]) -> View:
    """A product with a matrix, where one of the two is constant and has no more axes."""
    layer: Any = node.layer
    shape = layer.output([spec.Row(view.shape) for view in views])
    a, b = views
    a = a if a.places.ndim > 1 else a.at(a.places[None])
    b = b if b.places.ndim > 1 else b.at(b.places[:, None])
    b = b.at(b.places.swapaxes(-1, -2)) if layer.transposed else b
    if b.constant and b.places.ndim == 2:
        made = _times(planner, a, b.at(b.places.T))
    elif a.constant and a.places.ndim == 2:
        # The columns of b are positions: what is made of each is a column of y.
        made = _times(planner, b.at(b.places.swapaxes(-1, -2)), a)
        made = made.at(made.places.swapaxes(-1, -2))
    else:
        made = _between(planner, a, b)
    return made.at(made.places.reshape(shape))


def _times(planner: Planner, x: View, matrix: View) -> View:
    """x (..., k) times the transpose of a constant matrix (rows, k): (..., rows)."""
    x = planner.filled_with_zeros(x)
    places = x.places.reshape(-1, 1, x.shape[-1])
    made = planner.product(x.sources, places, [Matrix.of_constant(matrix)])
    return View.of(made, (*x.shape[:-1], matrix.shape[0]))


def _between(planner: Planner, a: View, b: View) -> View:
    """a (..., n, k) times b (..., k, p)."""
    (n, k), p = a.shape[-2:], b.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    stored, begins = [], []
    for view in (a, b):
        lies, count = planner.in_order(view), view.shape[-2] * view.shape[-1]
        stored.append(lies)
        begin = np.arange(0, lies.count, count).reshape(view.shape[:-2])
        begins.append(np.broadcast_to(begin, batch).ravel())
    made = planner.store(math.prod(batch) * n * p, max(x.line for x in stored))
    planner.add(op.MatMul(stored[0], stored[1], made, n, k, p, np.stack(begins, axis=-1)))
    return View.of(made, (*batch, n, p))


def tokens(planner: Planner, node: spec.Node, views: list[View]) -> View:
    """Embedding and OneHot: one operation for each value that has some of the tokens."""
    layer: Any = node.layer
    (view,) = views
    places, begin = view.places.ravel(), 0
    made: list[Stored] = []
    at = np.empty((len(places), layer.width), np.int64)
    for source in view.sources:
        own = np.flatnonzero((places >= begin) & (places < begin + source.count))
        y = planner.store(len(own) * layer.width, source.line)
        if isinstance(layer, spec.Embedding):
            table = Matrix.of(layer.names()["weight"], layer.num_embeddings, layer.width)
            planner.add(op.Lookup(source, y, table, places[own] - begin))
        else:
            planner.add(op.OneHot(source, y, layer.width, places[own] - begin))
        at[own] = sum(x.count for x in made) + np.arange(y.count).reshape(len(own), -1)
        made.append(y)
        begin += source.count
    return View(tuple(made), at.reshape(*view.shape, layer.width))


LOWERS: dict[type[spec.Layer], Lower] = {
    spec.Constant: constant,
    spec.Index: index,
    spec.Activation: activation,
    spec.Arithmetic: arithmetic,
    spec.BatchNorm: batch_norm,
    spec.Embedding: tokens,
    spec.OneHot: tokens,
    spec.Softmax: softmax,
    spec.Reduce: reduce,
    spec.LayerNorm: norm,
    spec.RMSNorm: norm,
    spec.GroupNorm: group_norm,
    spec.Linear: linear,
    spec.MatMul: matmul,
}
