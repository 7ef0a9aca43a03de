"""Lowerings of window, delay, rates, folds and attention over time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.planner import Lower, Planner
from fastlstm.plan.view import Places, Stored, View, axes_of

__all__ = ["LOWERS", "windowed"]


def windowed(
    planner: Planner,
    name: str,
    view: View,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    before: int,
    ahead: int = 0,
    behind: int = 0,
    fill: float = 0.0,
) -> View:
    """A window over the rows of a view, kept in the state of the node of a name: (size, ...)."""
    stored, order = planner.lying(view)
    reach = dilation * (size - 1)
    line = stored.line
    if (stride, before, behind) != (1, reach + ahead, 0):
        line = planner.line("window", line, stride, before - reach, ahead, behind)
    made = planner.store(size * stored.count, line)
    ring = position = op.NONE
    if reach + ahead:
        part = planner.ring(f"{name}.x", _kept(order))
        ring, position = part.offset, part.position
    rows = planner.offset(f"{name}.count")
    planner.add(
        op.Window(
            *(stored, made, size, stride, dilation, before, ahead, behind, fill),
            *(ring, position, rows),
        )
    )
    places = stored.count * np.arange(size)[:, None] + order
    return View((made,), places.reshape(size, *view.shape))


def _kept(order: Places) -> Places | None:
    """The order of a row that is kept, if it is not that of the row by name."""
    return None if np.array_equal(order, np.arange(len(order))) else order


def window(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    return windowed(
        planner,
        node.name,
        views[0],
        *(layer.size, layer.stride, layer.dilation),
        before=layer.padding,
    )


def some_rows(planner: Planner, node: spec.Node, views: list[View]) -> View:
    """Slice: a window of one row."""
    layer: Any = node.layer
    if (layer.start, layer.end, layer.step) == (0, 0, 1):
        return views[0]
    made = windowed(
        planner, node.name, views[0], 1, layer.step, before=-layer.start, ahead=layer.end
    )
    return made.at(made.places[0])


def delay(planner: Planner, node: spec.Node, views: list[View]) -> View:
    stored, order = planner.lying(views[0])
    part = planner.ring(f"{node.name}.x", _kept(order))
    planner.start(node, part, views[1:])
    made = planner.store(stored.count, stored.line)
    planner.add(op.Delay(stored, made, part.rows, part.offset, part.position))
    return View.of(made, views[0].shape, order)


def _spread(planner: Planner, stored: Stored, times: int, stride: int) -> Stored:
    line = planner.line("spread", stored.line, times)
    made = planner.store(stored.count // times if stride else stored.count, line)
    planner.add(op.Spread(stored, made, times, stride))
    return made


def repeat(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    if layer.times == 1:
        return views[0]
    stored, order = planner.lying(views[0])
    return View.of(_spread(planner, stored, layer.times, 0), views[0].shape, order)


def spread(planner: Planner, node: spec.Node, views: list[View]) -> View:
    view = views[0].cut
    if view.shape[0] == 1:
        return view.at(view.places[0])
    order = axes_of(view)
    stored = view.sources[0] if order and order[0] == 0 else planner.move(view)
    places = view.places[0] if stored is view.sources[0] else None
    made = _spread(planner, stored, view.shape[0], stored.count // view.shape[0])
    return View.of(made, view.shape[1:], places)


def _folded(planner: Planner, line: int, folds: bool) -> int:
    """The line of what all rows so far give: of a whole sequence one row, or as many as it."""
    return planner.line("fold", line) if folds else line


def fold(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    stored, order = planner.lying(views[0])
    name = f"{node.name}.total"
    total = planner.kept(name, _kept(order)) if name in planner.parts else None
    planner.add(
        op.Fold(
            stored,
            made := planner.store(stored.count, _folded(planner, stored.line, layer.folds)),
            layer.function,
            int(layer.folds),
            total.offset if total else planner.row_beside(name, stored.count),
            planner.row_beside(f"{node.name}.rest", stored.count)
            if layer.function == "mean"
            else op.NONE,
            planner.counted(node.name),
        )
    )
    return View.of(made, views[0].shape, order)


def attention(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    (scores, score_at), (values, value_at) = map(planner.lying, views)
    shape = np.broadcast_shapes(*(view.shape for view in views))
    score_of, value_of = (
        _kept(np.broadcast_to(at.reshape(view.shape), shape).ravel())
        if at.size == math.prod(shape)
        else np.broadcast_to(at.reshape(view.shape), shape).ravel()
        for at, view in ((score_at, views[0]), (value_at, views[1]))
    )
    largest, weight = (
        planner.kept(f"{node.name}.{suffix}", _kept(score_at)) for suffix in ("largest", "weight")
    )
    planner.begin_with(largest.offset, np.full(scores.count, -np.inf))
    line = _folded(planner, max(scores.line, values.line), layer.folds)
    made = planner.store(math.prod(shape), line)
    planner.add(
        op.Attention(
            *(scores, values, made, int(layer.folds)),
            *(score_of, value_of),
            *(largest.offset, weight.offset, planner.offset(f"{node.name}.total")),
            planner.counted(node.name),
        )
    )
    return View.of(made, shape)


LOWERS: dict[type[spec.Layer], Lower] = {
    spec.Window: window,
    spec.Slice: some_rows,
    spec.Delay: delay,
    spec.Repeat: repeat,
    spec.Spread: spread,
    spec.Fold: fold,
    spec.Attention: attention,
}
