"""Numbers over some axes made into one: within a step, or over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.core import Core, Operand, Value
from fastlstm.sources.arrays.places import ANY, FILL, Frame
from fastlstm.sources.arrays.rows import MOST_LAGS, Made

__all__ = ["Folds"]

Array = npt.NDArray[Any]


class Folds(Core):
    """The part of :class:`~fastlstm.sources.arrays.Builder` for sums, means and attention."""

    def reduce(
        self, function: str, x: Operand, axes: Sequence[int] | None = None, keepdim: bool = False
    ) -> Any:
        """``"sum"``, ``"mean"``, ``"max"``, ``"min"`` or ``"l2"`` over axes; over all if None."""
        ndim = x.ndim if isinstance(x, Value) else np.ndim(x)
        over = tuple(sorted({a % ndim for a in axes})) if axes is not None else tuple(range(ndim))
        if not isinstance(x, Value):
            return _reduced(function, np.asarray(x, np.float64), over, keepdim)
        self.count()
        time = [axis for axis in over if self._kind(x.places, axis) == "time"]
        made = x
        within = tuple(axis for axis in over if axis not in time and x.shape[axis] > 1)
        if time and within and function not in ("sum", "mean", "max", "min"):
            raise ConvertError(f"{function} over time and features together")
        if within:
            made = self._fold_within(function, made, within)
        for axis in time:
            made = self._fold_time(function, made, axis)
        gone = [axis for axis in over if axis not in within and axis not in time]
        if gone and function == "l2" and not within and not time:
            made = self._function("abs", made)
        if keepdim:
            return made
        return self.move(lambda p: np.squeeze(p, axis=over), made)

    def _function(self, function: str, x: Value) -> Value:
        return self.layer(spec.Activation(self.layer_name, function), [x.places])

    def _kind(self, places: Array, axis: int) -> str:
        """What an axis is: "batch", "time" or "row"."""
        if places.shape[axis] == 1:
            return "row"
        kinds = {part.kind for part in self.frame([places]).axes[axis]}
        if len(kinds) > 1:
            raise ConvertError("an axis that is time and something else is made into one number")
        (kind,) = kinds
        if kind == "batch":
            raise ConvertError("rows of the batch are made into one number")
        return kind

    def _fold_within(self, function: str, x: Value, axes: tuple[int, ...]) -> Value:
        """Over axes of a row, which stay, of size 1."""
        n = len(axes)
        last = np.moveaxis(x.places, axes, range(-n, 0))
        layer = spec.Reduce(self.layer_name, function, axes=tuple(range(-n, 0)))
        made = self.layer(layer, [last], core=n)
        return self.move(lambda p: np.expand_dims(p, axes), made)  # type: ignore[no-any-return]

    def _fold_time(self, function: str, x: Value, axis: int) -> Value:
        """Over all steps, of which an axis of size 1 stays."""
        if (made := self._attention(function, x, axis)) is not None:
            return made
        first = np.moveaxis(x.places, axis, 0)
        given = self.frame([first])
        reads, _ = self.reads(given, [first])
        node = self.rows.node(spec.Fold(self.layer_name, function), reads, {}, 0)
        made_places = self.back(_without_time(given), node)
        return Value(np.moveaxis(made_places, 0, axis))

    def cumulative(self, function: str, x: Operand, axis: int) -> Any:
        """``"sum"``, ``"max"`` or ``"min"`` of all up to each place of an axis."""
        ufunc = {"sum": np.add, "max": np.maximum, "min": np.minimum}[function]
        if not isinstance(x, Value):
            return ufunc.accumulate(np.asarray(x), axis=axis)
        axis %= x.ndim
        if self._kind(x.places, axis) == "time":
            layer = spec.Fold(self.layer_name, function, cumulative=True)
            return self.layer(layer, [x.places])
        operation = {"sum": "add", "max": "maximum", "min": "minimum"}[function]
        parts = [self.move(lambda p, n=n: np.take(p, [n], axis), x) for n in range(x.shape[axis])]
        for n in range(1, len(parts)):
            layers = spec.Arithmetic(self.layer_name, operation)
            parts[n] = self.layer(layers, [parts[n - 1].places, parts[n].places])
        return self.move(lambda *p: np.concatenate(p, axis), *parts)

    def folded(self, wanted: at.Columns) -> at.Columns:
        """The first or last row of a whole sequence of each row that is read at one step."""
        row, offset, lag = wanted.row.copy(), wanted.offset.copy(), wanted.lag.copy()
        for number in np.unique(row[(row >= 0) & (lag != ANY)]):
            made = self.rows.of(int(number))
            lags = np.unique(lag[(row == number) & (lag != ANY)])
            if len(lags) > MOST_LAGS:
                here = (row == number) & (wanted.lag != ANY)
                flat = self._flattened(made, lags)
                row[here] = self.rows.number(flat.name)
                offset[here] += lag[here] * math.prod(made.shape)
                continue
            for one in lags:
                here = (row == number) & (lag == one) & (wanted.lag != ANY)
                name, ends = made.name, 2 * int(one) >= made.steps
                left = made.steps - 1 - int(one) if ends else int(one)
                if left < 0 or one < 0:
                    raise ConvertError("a row from before the sequence is taken for all of it")
                if left:
                    cut = spec.Slice(
                        f"{name}.slice", start=0 if ends else left, end=left if ends else 0
                    )
                    name = self.rows.node(cut, [name]).name
                function = "last" if ends else "first"
                fold = self.rows.node(spec.Fold(f"{made.name}.{function}", function), [name], {}, 0)
                row[here] = self.rows.number(fold.name)
        return wanted._replace(row=row, offset=offset, lag=np.full_like(lag, ANY), steps=0)

    def _flattened(self, made: Made, lags: Array) -> Made:
        """All steps of a sequence, side by side."""
        if lags[0] < 0 or lags[-1] >= made.steps:
            raise ConvertError("a row from before the sequence is taken for all of it")
        self.flattens = True
        window = self.rows.node(spec.Window(f"{made.name}.steps", made.steps), [made.name])
        layer = spec.Fold(f"{made.name}.whole", "last")
        return self.rows.node(layer, [window.name], {}, 0)

    # Attention over time: a softmax over all steps weighs values, whose sum is one row. The
    # softmax itself is no row of a stream, so that what it gives is read by nothing else.

    def softmax_over_time(self, x: Value, axis: int) -> Value:
        """The weights that attention over time gives to values."""
        made = self.layer(spec.Activation(self.layer_name, "affine(1.0, 0.0)"), [x.places])
        for number in np.unique(at.row_of(made.places[made.places != FILL])):
            self.rows.weights.add(self.rows.of(int(number)).name)
        return made

    def _attention(self, function: str, x: Value, axis: int) -> Value | None:
        """A sum over time of weights, or of their products with values, as attention."""
        numbers = np.unique(at.row_of(x.places[x.places != FILL]))
        names = {self.rows.of(int(n)).name for n in numbers}
        if function != "sum" or len(names) != 1:
            return None
        (name,) = names
        node = self.rows.row(name).node
        if node is None or not isinstance(node.layer, spec.Arithmetic):
            return None
        if node.layer.operation != "multiply":
            return None
        weighs = [read for read in node.reads if self._weights(read)]
        if len(weighs) != 1:
            return None
        values = next(read for read in node.reads if read != weighs[0])
        first = np.moveaxis(x.places, axis, 0)
        given = self.frame([first])
        if self.reads(given, [first])[0] != [name]:
            return None
        scores = self._scores(weighs[0])
        made = self.rows.node(spec.Attention(self.layer_name), [scores, values], {}, 0)
        return Value(np.moveaxis(self.back(_without_time(given), made), 0, axis))

    def _weights(self, name: str) -> bool:
        """Whether a row is one of weights over time, moved within a step or not."""
        if name in self.rows.weights:
            return True
        node = self.rows.row(name).node
        moved = node is not None and isinstance(node.layer, spec.Index) and len(node.reads) == 1
        return moved and self._weights(node.reads[0])  # type: ignore[union-attr]

    def _scores(self, name: str) -> str:
        """The row of scores that weights were made of."""
        node = self.rows.row(name).node
        assert node is not None
        if name in self.rows.weights:
            return node.reads[0]
        return self.rows.node(node.layer, [self._scores(node.reads[0])]).name

    def attended(self, first: Array, second: Array) -> Value | None:
        """The product of weights (..., n, time) and values (..., time, p); None if it is none."""
        if self.steps == 0 or first.shape[-1] == 1:
            return None
        if self._kind(second, second.ndim - 2) != "time":
            return None
        shape = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
        weights = np.broadcast_to(first, (*shape, *first.shape[-2:]))[..., None]
        values = np.broadcast_to(second, (*shape, *second.shape[-2:]))[..., None, :, :]
        product = self.layer(
            spec.Arithmetic(self.layer_name, "multiply"),
            [np.ascontiguousarray(weights), np.ascontiguousarray(values)],
        )
        made = self._attention("sum", product, product.ndim - 2)
        if made is None:
            made = self._fold_time("sum", product, product.ndim - 2)
        return self.move(lambda p: p[..., 0, :], made)  # type: ignore[no-any-return]


def _without_time(given: Frame) -> Frame:
    return given.with_steps(1)


def _reduced(function: str, array: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
    if function == "l2":
        return np.asarray(np.sqrt(np.square(array).sum(axis=axes, keepdims=keepdim)))
    folds: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}
    made = folds[function]
    return np.asarray(made(array, axis=axes, keepdims=keepdim))
