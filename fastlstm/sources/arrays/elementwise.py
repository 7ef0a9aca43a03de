"""Operations on each number of arrays, and on the numbers of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays.core import Operand, SizeError, Value, check_size
from fastlstm.sources.arrays.folds import Folds

__all__ = ["Elementwise"]

Array = npt.NDArray[Any]


class Elementwise(Folds):
    """The part of :class:`~fastlstm.sources.arrays.Builder` for functions and arithmetic."""

    def activation(self, function: str, x: Operand) -> Any:
        """A function of each number, by its text in the vocabulary."""
        if not isinstance(x, Value):
            return _evaluated(spec.Activation("y", function), x)
        return self.layer(spec.Activation(self.layer_name, function), [x.places])

    def arithmetic(self, operation: str, *operands: Operand) -> Any:
        """An operation between arrays that broadcast (:class:`fastlstm.spec.Arithmetic`)."""
        if not any(isinstance(x, Value) for x in operands):
            return _evaluated(spec.Arithmetic("y", operation), *operands)
        _check_shapes(operands)
        simple = self._simplified(operation, operands)
        if simple is not None:
            return simple
        ndim = max(map(_ndim, operands))
        arrays = [self._aligned(o, ndim) for o in operands]
        made = self.layer(spec.Arithmetic(self.layer_name, operation), arrays)
        compares = operation.split("_")[0] in ("equal", "not", "less", "greater")
        return Value(made.places, "bool" if compares else "float")

    def _aligned(self, operand: Operand, ndim: int) -> Array:
        places = self.places(operand)
        return places.reshape((1,) * (ndim - places.ndim) + places.shape)

    def _simplified(self, operation: str, operands: Sequence[Operand]) -> Any:
        """An operation with one constant number, as a function of the other; None if it is none."""
        if len(operands) != 2 or all(isinstance(o, Value) for o in operands):
            return None
        first = not isinstance(operands[0], Value)
        constant, value = operands if first else operands[::-1]
        numbers = np.unique(np.asarray(constant))
        if numbers.size != 1 or not math.isfinite(numbers[0]):
            return None
        text = _function_of(operation, float(numbers[0]), first)
        if text is None:
            return None
        shape = np.broadcast_shapes(value.shape, np.shape(constant))
        if shape != value.shape:
            value = self.move(lambda a: np.broadcast_to(a, shape), value)
        return self.activation(text, value) if text else value

    def softmax(self, x: Operand, axis: int, log: bool = False) -> Any:
        """``exp(x) / sum(exp(x))`` over an axis, or its logarithm."""
        if not isinstance(x, Value):
            array = np.asarray(x, np.float64)
            shifted = array - array.max(axis=axis, keepdims=True)
            total = np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
            return shifted - total if log else np.exp(shifted - total)
        axis %= x.ndim
        if self.steps and self._kind(x.places, axis) == "time":
            if log:
                raise ConvertError("the logarithm of a softmax over time has no row of a step")
            return self.softmax_over_time(x, axis)
        last = self.move(lambda a: np.moveaxis(a, axis, -1), x)
        layer = spec.Softmax(self.layer_name, log=log)
        made = self.layer(layer, [last.places], core=1, gives=last.shape[-1:])
        return self.move(lambda a: np.moveaxis(a, -1, axis), made)


def _evaluated(layer: spec.Layer, *arrays: Any) -> Array:
    """What a layer that works on each number makes of constants, by its equations."""
    arrays = tuple(np.asarray(a, np.float64) for a in arrays)
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    check_size(shape)
    rows = [np.broadcast_to(a, shape).reshape(1, 1, -1) for a in arrays]
    if not rows[0].size:
        return np.zeros(shape)
    names = [f"x{n}" for n in range(len(rows))]
    inputs = tuple(spec.Input(n, r.shape[2:]) for n, r in zip(names, rows, strict=True))
    graph = spec.Graph(inputs, (layer(*names),), {"y": "y"})
    made = reference.forward(graph, {}, dict(zip(names, rows, strict=True)), dtype=np.float64)
    return np.asarray(made["y"]).reshape(shape)


def _ndim(operand: Operand) -> int:
    return operand.ndim if isinstance(operand, Value) else np.ndim(operand)


def _check_shapes(operands: Sequence[Operand]) -> None:
    shapes = [o.shape if isinstance(o, Value) else np.shape(o) for o in operands]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        pairs = zip(*(shape[::-1] for shape in shapes[:2]), strict=False)
        got, needed = next((p for p in pairs if p[0] != p[1] and 1 not in p), (0, 0))
        if not isinstance(operands[0], Value):
            got, needed = needed, got
        raise SizeError(
            f"arrays of shapes {' and '.join(map(str, shapes))} do not broadcast", got, needed
        ) from None


def _function_of(operation: str, constant: float, first: bool) -> str | None:
    """An operation with a constant number as a function; "" if it changes nothing."""
    neutral = {"add": 0.0, "multiply": 1.0, "subtract": 0.0, "divide": 1.0, "power": 1.0}
    if neutral.get(operation) == constant and not (
        first and operation in ("subtract", "divide", "power")
    ):
        return ""
    if operation == "add":
        return f"affine(1.0, {constant!r})"
    if operation == "subtract":
        return f"affine(-1.0, {constant!r})" if first else f"affine(1.0, {-constant!r})"
    if operation == "multiply":
        return f"affine({constant!r}, 0.0)"
    if operation == "power" and not first:
        return {2.0: "square", 0.5: "sqrt", -1.0: "reciprocal"}.get(constant)
    if operation == "divide" and first and constant == 1:
        return "reciprocal"
    return None
