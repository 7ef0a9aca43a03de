"""Operators between the numbers of arrays that broadcast, and products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.dtypes import cast
from fastlstm.sources.aten.table import (
    Array,
    Builder,
    Operand,
    Value,
    as_kind,
    kind_of,
    operator,
)

KINDS = ("float", "int", "bool")

# What NumPy computes of constants, in their own dtypes: a count stays a whole number.
_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.true_divide,
    "power": np.power,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "where": np.where,
}
_WHOLE = ("add", "subtract", "multiply", "minimum", "maximum", "where")


def calculate(b: Builder, operation: str, *operands: Operand) -> Operand:
    """An operation of the vocabulary (:class:`fastlstm.spec.Arithmetic`)."""
    if not any(isinstance(x, Value) for x in operands):
        with np.errstate(all="ignore"):
            return np.asarray(_NUMPY[operation](*_promoted(operands)))
    made = b.arithmetic(operation, *(_as_numbers(x) for x in operands))
    kinds = {kind_of(x) for x in (operands[1:] if operation == "where" else operands)}
    if operation in _WHOLE:
        made = as_kind(made, next(kind for kind in KINDS if kind in kinds))
    return made


def _as_numbers(x: Operand) -> Operand:
    """An operand as the model holds it, which knows no whole numbers and no bools."""
    if isinstance(x, Value) or np.asarray(x).dtype.kind not in "iub":
        return x
    return np.asarray(x, "f8")


def _promoted(operands: tuple[Operand, ...]) -> list[Any]:
    """Constants, whole numbers beside fractions made float32 as torch does."""
    arrays = [np.asarray(x) for x in operands]
    floats = [x.dtype for x in arrays if x.dtype.kind == "f" and x.ndim]
    if not floats:
        return list(operands)
    dtype = max(floats)
    return [x.astype(dtype) if x.dtype.kind in "iuf" else x for x in arrays]


def scaled(b: Builder, x: Operand, by: Operand) -> Operand:
    """A product, or the array itself for a factor of 1."""
    one = not isinstance(by, Value) and np.ndim(by) == 0 and by == 1
    return x if one else calculate(b, "multiply", x, by)


@operator()
def add(b: Builder, self: Operand, other: Operand, alpha: Operand = 1) -> Operand:
    return calculate(b, "add", self, scaled(b, other, alpha))


@operator("sub", "subtract")
def sub(b: Builder, self: Operand, other: Operand, alpha: Operand = 1) -> Operand:
    return calculate(b, "subtract", self, scaled(b, other, alpha))


@operator()
def rsub(b: Builder, self: Operand, other: Operand, alpha: Operand = 1) -> Operand:
    return sub(b, other, self, alpha)


@operator("mul", "multiply")
def mul(b: Builder, self: Operand, other: Operand) -> Operand:
    return calculate(b, "multiply", self, other)


@operator("div", "divide")
def div(b: Builder, self: Operand, other: Operand, rounding_mode: str | None = None) -> Operand:
    quotient = calculate(b, "divide", self, other)
    if rounding_mode is None:
        return quotient
    rounded = floor(b, quotient) if rounding_mode == "floor" else trunc(b, quotient)
    if kind_of(self) == kind_of(other) == "int":
        return cast(b, rounded, 4)
    return rounded


@operator()
def true_divide(b: Builder, self: Operand, other: Operand) -> Operand:
    return div(b, self, other)


@operator()
def floor_divide(b: Builder, self: Operand, other: Operand) -> Operand:
    return div(b, self, other, "floor")


@operator()
def remainder(b: Builder, self: Operand, other: Operand) -> Operand:
    return sub(b, self, mul(b, other, floor_divide(b, self, other)))


@operator()
def fmod(b: Builder, self: Operand, other: Operand) -> Operand:
    return sub(b, self, mul(b, other, div(b, self, other, "trunc")))


@operator("pow", "float_power")
def pow_(b: Builder, self: Operand, exponent: Operand) -> Operand:
    number = not isinstance(exponent, Value) and np.ndim(exponent) == 0
    if number and exponent == 2 and kind_of(self) == "float" and isinstance(self, Value):
        return b.activation("square", self)
    return calculate(b, "power", self, exponent)


@operator("neg", "negative")
def neg(b: Builder, self: Operand) -> Operand:
    return calculate(b, "multiply", self, -1)


@operator("minimum", "fmin")
def minimum(b: Builder, self: Operand, other: Operand) -> Operand:
    return calculate(b, "minimum", self, other)


@operator("maximum", "fmax")
def maximum(b: Builder, self: Operand, other: Operand) -> Operand:
    return calculate(b, "maximum", self, other)


@operator()
def clamp_min(b: Builder, self: Operand, min: Operand) -> Operand:
    return clamp(b, self, min=min)


@operator()
def clamp_max(b: Builder, self: Operand, max: Operand) -> Operand:
    return clamp(b, self, max=max)


@operator("clamp", "clip")
def clamp(
    b: Builder, self: Operand, min: Operand | None = None, max: Operand | None = None
) -> Operand:
    if min is not None:
        self = calculate(b, "maximum", self, min)
    if max is not None:
        self = calculate(b, "minimum", self, max)
    return self


@operator()
def lerp(b: Builder, self: Operand, end: Operand, weight: Operand) -> Operand:
    return add(b, self, mul(b, weight, sub(b, end, self)))


@operator()
def addcmul(
    b: Builder, self: Operand, tensor1: Operand, tensor2: Operand, value: Operand = 1
) -> Operand:
    return add(b, self, mul(b, tensor1, tensor2), value)


@operator()
def addcdiv(
    b: Builder, self: Operand, tensor1: Operand, tensor2: Operand, value: Operand = 1
) -> Operand:
    return add(b, self, div(b, tensor1, tensor2), value)


# Comparisons


def _comparison(name: str, operation: str) -> None:
    def compare(b: Builder, self: Operand, other: Operand) -> Operand:
        return calculate(b, operation, self, other)

    operator(*name.split())(compare)


_comparison("eq", "equal")
_comparison("ne not_equal", "not_equal")
_comparison("lt less", "less")
_comparison("le less_equal", "less_equal")
_comparison("gt greater", "greater")
_comparison("ge greater_equal", "greater_equal")


@operator()
def where(
    b: Builder, condition: Operand, self: Operand | None = None, other: Operand | None = None
) -> Operand:
    if self is None or other is None:
        raise ConvertError("where without values gives places, which depend on the input")
    return calculate(b, "where", condition, self, other)


@operator()
def isnan(b: Builder, self: Operand) -> Operand:
    return calculate(b, "not_equal", self, self)


@operator("logical_not", "__not__")
def logical_not(b: Builder, self: Operand) -> Operand:
    return calculate(b, "equal", self, 0)


@operator()
def logical_and(b: Builder, self: Operand, other: Operand) -> Operand:
    return calculate(b, "multiply", _truth(b, self), _truth(b, other))


@operator()
def logical_or(b: Builder, self: Operand, other: Operand) -> Operand:
    return calculate(b, "maximum", _truth(b, self), _truth(b, other))


@operator()
def logical_xor(b: Builder, self: Operand, other: Operand) -> Operand:
    return calculate(b, "not_equal", _truth(b, self), _truth(b, other))


def _truth(b: Builder, x: Operand) -> Operand:
    return x if kind_of(x) == "bool" else calculate(b, "not_equal", x, 0)


def _bitwise(name: str, of_bools: Callable[..., Any], of_numbers: Callable[..., Any]) -> None:
    def combine(b: Builder, self: Operand, *other: Operand) -> Operand:
        if all(kind_of(x) == "bool" for x in (self, *other)):
            return of_bools(b, self, *other)
        if any(isinstance(x, Value) for x in (self, *other)):
            raise ConvertError("bits of numbers of the input are not supported")
        return of_numbers(self, *other)

    operator(*name.split())(combine)


_bitwise("bitwise_not", logical_not, np.bitwise_not)
_bitwise("bitwise_and __and__", logical_and, np.bitwise_and)
_bitwise("bitwise_or __or__", logical_or, np.bitwise_or)
_bitwise("bitwise_xor __xor__", logical_xor, np.bitwise_xor)


# Rounding


def _function(b: Builder, name: str, x: Operand) -> Operand:
    return b.activation(name, x) if isinstance(x, Value) else getattr(np, name)(x)


@operator()
def floor(b: Builder, self: Operand) -> Operand:
    return self if kind_of(self) != "float" else _function(b, "floor", self)


@operator()
def ceil(b: Builder, self: Operand) -> Operand:
    return self if kind_of(self) != "float" else neg(b, floor(b, neg(b, self)))


@operator("trunc", "fix")
def trunc(b: Builder, self: Operand) -> Operand:
    if kind_of(self) != "float":
        return self
    if not isinstance(self, Value):
        return np.trunc(self)
    return mul(b, _function(b, "sign", self), floor(b, _function(b, "abs", self)))


@operator()
def frac(b: Builder, self: Operand) -> Operand:
    return sub(b, self, trunc(b, self))


# Constants only: what decides which steps a program takes


def constants_only(name: str, function: Callable[..., Any]) -> None:
    """Enter an operator that is known of constants, and refused of what depends on the input."""

    def apply(b: Builder, self: Operand, *args: Any, **options: Any) -> Any:
        if isinstance(self, Value) or any(isinstance(x, Value) for x in args):
            raise ConvertError(f"{name} of numbers that depend on the input is not supported")
        return function(self, *args, **options)

    operator(name)(apply)


def _weight_norm(v: Array, g: Array, dim: int = 0) -> Array:
    """A weight of so long vectors, one for each index of an axis; of -1, a single one."""
    axes = tuple(n for n in range(v.ndim) if n != dim)
    made: Array = v * (g / np.sqrt(np.square(v).sum(axes, keepdims=True)))
    return made


_KNOWN: dict[str, Callable[..., Any]] = {
    "_weight_norm": _weight_norm,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "round": np.round,
    "bincount": np.bincount,
    "argsort": lambda x, dim=-1, descending=False: np.argsort(-x if descending else x, dim),
    "nonzero": lambda x: np.stack(np.nonzero(x), 1),
    "argmax": lambda x, dim=None, keepdim=False: np.argmax(x, dim, keepdims=keepdim),
    "argmin": lambda x, dim=None, keepdim=False: np.argmin(x, dim, keepdims=keepdim),
    "all": lambda x, dim=None, keepdim=False: np.all(x, dim, keepdims=keepdim),
    "any": lambda x, dim=None, keepdim=False: np.any(x, dim, keepdims=keepdim),
    "equal": np.array_equal,
    "is_nonzero": bool,
}
for _name, _of in _KNOWN.items():
    constants_only(_name, _of)
