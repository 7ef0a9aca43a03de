"""Operations on two arrays, and the layers that graphs write as several operations.

``x * sigmoid(x)`` is silu, the root of a sum of squares is a magnitude: such a layer is recognised
when the last of its operations comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.line.axes import (
    FEATURES,
    POSITION,
    TIME,
    Axis,
    Role,
    leaves,
    settle,
    significant,
    size_of,
)
from fastlstm.sources.line.chain import row_size
from fastlstm.sources.line.features import Features
from fastlstm.sources.line.nodes import (
    Activated,
    Centred,
    Constant,
    Deviation,
    End,
    Half,
    Joined,
    Node,
    Part,
    Power,
    Scaled,
    SquareSum,
    Statistic,
    Value,
    Zeros,
    same,
)
from fastlstm.sources.line.views import half

__all__ = ["Pairs"]

# Constants such as the root of 2 come rounded to float32.
ROUNDING = 1e-6

_SQUARES = "the root of the squares of two halves, added"
_NORM = "a layer normalisation: (x - mean) / sqrt(mean of squares + eps)"


class Pairs(Features):
    """The part of :class:`~fastlstm.sources.line.Line` that combines arrays."""

    def __init__(self) -> None:
        self._joints: list[Axis] = []  # of what was concatenated

    def add(self, a: Value, b: Value, name: str) -> Value:
        """A constant added, two halves, or a block's input to its output."""
        if isinstance(a.node, Constant):
            a, b = b, a
        if isinstance(b.node, Constant):
            return self.scale(a, 1.0, b.node.array, name)
        if made := self._halves("sum", a, b, name):
            return made
        squared = [_powered(value, 2) for value in (a, b)]
        if squared[0] and squared[1]:
            root = self._halves("magnitude", squared[0], squared[1], name)
            if root:
                node = SquareSum(name, root.node.row, root, unfinished=_SQUARES, root=root)
                return Value(node, root.axes)
        self._refuse_unequal(a, b, None, name)
        return Value(Joined(name, a.node.row, values=(a, b)), a.axes)

    def sub(self, a: Value, b: Value, name: str) -> Value:
        """A constant subtracted, or from a constant."""
        if isinstance(b.node, Constant):
            return self.scale(a, 1.0, -b.node.array, name)
        if isinstance(a.node, Constant):
            return self.scale(b, -1.0, a.node.array, name)
        if isinstance(b.node, Statistic) and same(b.node.source, a):
            node = Centred(name, a.node.row, a, unfinished=_NORM)
            return Value(node, a.axes)
        raise ConvertError(f"{name!r:.200} subtracts two computed arrays; expected a constant")

    def mul(self, a: Value, b: Value, name: str) -> Value:
        """A constant factor, two halves, a square, or what silu, glu and gelu are written as."""
        if isinstance(a.node, Constant):
            a, b = b, a
        if isinstance(b.node, Constant):
            return self.scale(a, b.node.array, 0.0, name)
        if same(a, b):
            return self.power(a, 2, name)
        for x, other in ((a, b), (b, a)):
            gate = other.node
            if isinstance(gate, Activated) and gate.function == "sigmoid" and gate.source:
                of = Value(gate.source.node, gate.source.axes)
                if same(x, of):
                    return self.activation(x, "silu", name)
                if made := self._halves("glu", x, of, name):
                    return made
            if same(_powered(other, 2), x):
                return self._power(x, 3, name)
            if made := self._gelu(x, other, name):
                return made
        if made := self._halves("product", a, b, name):
            return made
        raise ConvertError(
            f"{name!r:.200} multiplies two computed arrays; expected a constant, two halves of the "
            f"channels, or a function such as silu, gelu or glu"
        )

    def div(self, a: Value, b: Value, name: str) -> Value:
        """A constant divisor other than 0, or what softsign is written as."""
        if isinstance(b.node, Constant):
            if (b.node.array == 0).any():
                raise ConvertError(f"{name!r:.200} divides by 0; expected another constant")
            return self.scale(a, 1 / b.node.array.astype(np.float64), 0.0, name)
        if isinstance(b.node, Deviation) and same(b.node.source, a) and a.node.source:
            x = a.node.source
            return self.layer_norm(x, [x.shape[-1] or 0], None, None, b.node.eps, name)
        bent, *shifted = _affine(b)
        absolute = isinstance(bent.node, Activated) and bent.node.function == "abs"
        if absolute and same(bent.node.source, a) and shifted == [1, 1]:
            return self.activation(a, "softsign", name)
        raise ConvertError(f"{name!r:.200} divides by a computed array; expected a constant")

    def power(self, x: Value, exponent: float, name: str) -> Value:
        """A square, which only a magnitude is made of, a cube, or a root."""
        if isinstance(x.node, Constant):
            return self.constant(x.node.array**exponent)
        if exponent == 1:
            return x
        if exponent == 0.5:
            return self.sqrt(x, name)
        if exponent not in (2, 3):
            raise ConvertError(f"{name!r:.200} has the exponent {exponent}; expected 2, or 0.5")
        return self._power(x, int(exponent), name)

    def _power(self, x: Value, exponent: int, name: str) -> Value:
        expected = _SQUARES if exponent == 2 else "gelu's approximation by tanh"
        node = Power(name, x.node.row, x, unfinished=expected, exponent=exponent)
        return Value(node, x.axes)

    def sqrt(self, x: Value, name: str) -> Value:
        """The root of the sum of squares of two halves."""
        if isinstance(x.node, Constant):
            return self.constant(np.sqrt(x.node.array))
        if made := _deviation(x, name):
            return made
        if not isinstance(x.node, SquareSum):
            raise ConvertError(f"{name!r:.200} takes a root; expected {_SQUARES}")
        root = x.node.root.node
        return Value(Node(name, root.row, root.source, root.make), x.axes)

    def sum(self, x: Value, axis: int, keepdim: bool, name: str) -> Value:
        """Of an axis that holds two halves, or their squares."""
        axis = self._axis(x, axis, name)
        squared = _powered(x, 2)
        first, second = (half(squared or x, axis, which, name) for which in (0, 1))
        if not first or not second or x.shape[axis] != 2:
            raise ConvertError(
                f"{name!r:.200} sums along axis {axis} of an array of shape {x.shape}; expected an "
                f"axis of size 2, that of two halves"
            )
        if squared:
            first, second = self._power(first, 2, name), self._power(second, 2, name)
        made = self.add(first, second, name)
        return made if keepdim else self.squeeze(made, axis, name)

    def mean(self, x: Value, axis: int, keepdim: bool, name: str) -> Value:
        """Over time, over features for a normalisation, or of an axis that holds two halves."""
        axis = self._axis(x, axis, name)
        group = x.axes[axis]
        over = significant(group) or tuple(a for a in group if a.role.is_(TIME))
        features = bool(over) and all(a.role.is_(FEATURES) for a in over)
        elsewhere = any(a.role.is_length or a.role.is_(POSITION) for a in over)
        innermost = keepdim and axis == x.ndim - 1 and x.shape[axis] != 2
        if innermost and over and (features or not elsewhere):
            settle(over, FEATURES, name)
            node = Statistic(name, (), x, unfinished=_NORM)
            return Value(node, [*x.axes[:axis], ()])
        if features:
            return self.scale(self.sum(x, axis, keepdim, name), 0.5, 0.0, f"{name}.half")
        made = x
        if over:
            for position in over:
                position.role.settle(TIME, name)
            row = tuple(a for a in leaves(x.node.row) if a not in over)

            def make(layer: str) -> Part:
                return spec.Pool(layer, "mean", row_size(row)), {}

            axes = [*x.axes[:axis], (), *x.axes[axis + 1 :]]
            made = Value(Node(name, row, x, make), axes)
        return made if keepdim else self.squeeze(made, axis, name)

    def concat(self, values: Sequence[Value], axis: int, name: str) -> Value:
        """Two halves in order, a block's input and output, states, or zeros before an array."""
        first = values[0]
        axis = self._axis(first, axis, name)
        if len(values) == 1:
            return first
        if all(isinstance(value.node, Constant) for value in values):
            arrays = [value.node.array for value in values]  # type: ignore[attr-defined]
            return self.constant(np.concatenate(arrays, axis))
        if any(value.ndim != first.ndim for value in values):
            raise ConvertError(
                f"{name!r:.200} concatenates arrays of {[value.ndim for value in values]} axes; "
                f"expected as many of each"
            )
        sizes = [value.shape[axis] for value in values]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        if all(isinstance(value.node, Zeros) for value in values):
            shape = [*first.shape[:axis], total, *first.shape[axis + 1 :]]
            return self.zeros(shape)
        if len(values) == 2 and (made := self._rejoined(first, values[1], axis, name)):
            return made
        for value in values[1:]:
            self._refuse_unequal(first, value, axis, name)
        joint = Axis(total, Role())
        self._joints.append(joint)
        rest = tuple(a for a in significant(first.node.row) if a not in first.axes[axis])
        node = Joined(name, (joint, *rest), values=tuple(values), axis=axis, joint=joint)
        return Value(node, [*first.axes[:axis], (joint,), *first.axes[axis + 1 :]])

    def _rejoined(self, a: Value, b: Value, axis: int, name: str) -> Value | None:
        """The array whose two halves these are, or the states that two directions end with."""
        if not (isinstance(a.node, Half) and isinstance(b.node, Half) and a.axes == b.axes):
            return None
        of, other, whole = a.node.source, b.node.source, a.node.axis
        if not of or not other or (a.node.which, b.node.which) != (0, 1) or b.node.axis != whole:
            return None
        left = significant(whole.half)
        group = significant(a.axes[axis])
        if group[: len(left)] != left:
            return None
        axes = [*a.axes[:axis], (whole, *group[len(left) :]), *a.axes[axis + 1 :]]
        if of.node is other.node:
            return Value(of.node, axes)
        if not (isinstance(of.node, End) and isinstance(other.node, End)):
            return None
        before = of.node.source
        ends = (of.node.last, other.node.last)
        if not before or not same(before, other.node.source) or ends != (True, False):
            return None

        def make(layer: str) -> Part:
            return spec.Pool(layer, "final", row_size(of.node.row)), {}

        return Value(Node(name, of.node.row, before, make), axes)

    def _halves(self, function: str, a: Value, b: Value, name: str) -> Value | None:
        """Two halves of one array combined; None if that is not what they are."""
        if not (isinstance(a.node, Half) and isinstance(b.node, Half)) or a.axes != b.axes:
            return None
        if a.node.which and function != "glu":
            a, b = b, a
        of, whole, row = a.node.source, a.node.axis, a.node.row  # type: ignore[attr-defined]
        if (a.node.which, b.node.which) != (0, 1) or b.node.axis is not whole:  # type: ignore[attr-defined]
            return None
        if not of or not b.node.source or of.node is not b.node.source.node:
            return None

        def make(layer: str) -> Part:
            before = [axis for axis in significant(of.node.row) if axis.role.is_(FEATURES)]
            if before[0] is not whole:
                raise ConvertError(
                    f"{name!r:.200} combines two halves of the inner axis of a frame; expected "
                    f"those of its channels"
                )
            width = row_size(tuple(before[1:]))
            return spec.CombineHalves(layer, function, whole.size or 0, width=width), {}

        return Value(Node(name, row, of, make), a.axes)

    def _gelu(self, x: Value, other: Value, name: str) -> Value | None:
        """``k x (1 + erf(x / sqrt(2)))``, or its approximation by tanh."""
        bent, factor, shift = _affine(other)
        node = bent.node
        if factor != shift or not isinstance(node, Activated) or not node.source:
            return None
        argument: Value | None = None
        function = "gelu"
        if node.function == "erf":
            argument = node.source
            ratio = _ratio(x, argument) / math.sqrt(2)
        elif node.function == "tanh" and (argument := _cubic(node.source)):
            function = "gelu_tanh"
            ratio = _ratio(x, argument)
        times = round(ratio, 6) if argument and math.isfinite(ratio) else 0.0
        if not times or not math.isclose(ratio, times, rel_tol=ROUNDING):
            return None
        argument = x if times == 1 else self.scale(x, 1 / times, 0.0, f"{name}.argument")
        made = self.activation(argument, function, name)
        return self.scale(made, 2 * factor * times, 0.0, f"{name}.factor")

    def _refuse_unequal(self, a: Value, b: Value, but: int | None, name: str) -> None:
        """Check that two arrays have the same shape, step by step, `but` for one axis."""
        alike = a.ndim == b.ndim
        for place, (mine, yours) in enumerate(zip(a.axes, b.axes, strict=False)):
            if place == but or significant(mine) == significant(yours):
                continue
            sizes = size_of(mine), size_of(yours)
            alike = alike and None not in sizes and sizes[0] == sizes[1]
            if alike:
                settle((*mine, *yours), FEATURES, name)
        if not alike:
            raise ConvertError(
                f"{name!r:.200} joins arrays of shapes {a.shape} and {b.shape}; expected equal "
                f"ones, of the same steps" + ("" if but is None else f", but for axis {but}")
            )


def _deviation(x: Value, name: str) -> Value | None:
    """The root of a mean square and a number, which is what a normalisation divides by."""
    mean, factor, eps = _affine(x)
    squares = mean.node.source if isinstance(mean.node, Statistic) else None
    centred = squares and _powered(squares, 2)
    if not centred or not isinstance(centred.node, Centred) or factor != 1:
        return None
    node = Deviation(name, (), centred, unfinished=_NORM, eps=eps)
    return Value(node, mean.axes)


def _affine(x: Value) -> tuple[Value, float, float]:
    """The array that x is so many times, with the factor and what is added."""
    times, plus = 1.0, 0.0
    while isinstance(x.node, Scaled) and x.node.step.axes == x.axes:
        factors, shifts = np.unique(x.node.factor), np.unique(x.node.shift)
        if factors.size != 1 or shifts.size != 1:
            break
        times, plus = times * float(factors[0]), plus + times * float(shifts[0])
        x = x.node.step
    return x, times, plus


def _ratio(x: Value, other: Value) -> float:
    """How many times `other` x is; nan where it is not."""
    base, weight, bias = _affine(x)
    origin, slope, offset = _affine(other)
    ratio = weight / slope if slope and same(base, origin) else math.nan
    return ratio if math.isclose(bias, ratio * offset, rel_tol=ROUNDING) else math.nan


def _cubic(x: Value) -> Value | None:
    """The y that x is ``sqrt(2 / pi) * (y + 0.044715 * y ** 3)`` of."""
    inner, slope, offset = _affine(x)
    node = inner.node
    expected = math.isclose(slope, math.sqrt(2 / math.pi), rel_tol=ROUNDING)
    if offset or not expected or not isinstance(node, Joined) or node.axis is not None:
        return None
    for linear, cubic in (node.values, node.values[::-1]):
        cube, third, shift = _affine(cubic)
        alike = math.isclose(third, 0.044715, rel_tol=ROUNDING) and not shift
        if alike and same(_powered(cube, 3), linear):
            return linear
    return None


def _powered(x: Value, exponent: int) -> Value | None:
    """What x is a power of."""
    node = x.node
    if not isinstance(node, Power) or node.exponent != exponent or node.source is None:
        return None
    return Value(node.source.node, x.axes)
