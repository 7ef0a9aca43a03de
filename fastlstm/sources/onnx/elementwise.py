"""ONNX's operators on each number: arithmetic of constants by NumPy, of anything else by layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastlstm.sources.arrays import Value
from fastlstm.sources.onnx.gelu import GELU
from fastlstm.sources.onnx.step import Step, shape_of
from fastlstm.sources.onnx.tensors import Array

__all__ = ["ELEMENTWISE", "apply", "combine", "scaled"]


def _divide(a: Array, b: Array) -> Array:
    # Of integers, towards zero.
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.abs(a) // np.abs(b) * (np.sign(a) * np.sign(b)))


# Operator -> what NumPy computes of constants, and the operation of the vocabulary.
OPERATIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "Add": (np.add, "add"),
    "Sub": (np.subtract, "subtract"),
    "Mul": (np.multiply, "multiply"),
    "Div": (_divide, "divide"),
    "Pow": (np.power, "power"),
    "Equal": (np.equal, "equal"),
    "Less": (np.less, "less"),
    "LessOrEqual": (np.less_equal, "less_equal"),
    "Greater": (np.greater, "greater"),
    "GreaterOrEqual": (np.greater_equal, "greater_equal"),
    "And": (np.logical_and, "multiply"),
    "Or": (np.logical_or, "maximum"),
    "Xor": (np.logical_xor, "not_equal"),
    "Min": (np.minimum, "minimum"),
    "Max": (np.maximum, "maximum"),
    "Sum": (np.add, "add"),
}

# Operator -> what NumPy computes of constants, where it gives their dtype, and the function.
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "Abs": (np.abs, "abs"),
    "Cos": (np.cos, "cos"),
    "Exp": (np.exp, "exp"),
    "Floor": (np.floor, "floor"),
    "Log": (np.log, "log"),
    "Neg": (np.negative, "affine(-1.0, 0.0)"),
    "Reciprocal": (np.reciprocal, "reciprocal"),
    "Sign": (np.sign, "sign"),
    "Sin": (np.sin, "sin"),
    "Sqrt": (np.sqrt, "sqrt"),
}

# Operator -> the function, and the attributes that are its parameters.
ACTIVATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Elu": ("elu", ("alpha",)),
    GELU: ("gelu", ()),
    "HardSigmoid": ("hard_sigmoid", ("alpha", "beta")),
    "LeakyRelu": ("leaky_relu", ("alpha",)),
    "Relu": ("relu", ()),
    "Sigmoid": ("sigmoid", ()),
    "Softplus": ("softplus", ()),
    "Softsign": ("softsign", ()),
    "Tanh": ("tanh", ()),
    "ThresholdedRelu": ("thresholded_relu", ("alpha",)),
}

# Of constants alone.
OF_CONSTANTS: dict[str, Callable[[Array], Array]] = {
    "Ceil": np.ceil,
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
    "IsInf": np.isinf,
    "IsNaN": np.isnan,
    "Round": np.round,
    "Tan": np.tan,
}


def _like(made: Any, *given: Array) -> Array:
    """A result in the dtype of what it was made of, but for truth."""
    made = np.asarray(made)
    kept: Array = made if made.dtype == bool else made.astype(given[0].dtype)
    return kept


def combine(at: Step, operation: str, *operands: Any) -> Any:
    """An operation of the vocabulary between arrays."""
    return at.b.arithmetic(operation, *operands)


def apply(at: Step, function: str, x: Any) -> Any:
    """A function of the vocabulary of each number; of constants in their dtype."""
    if isinstance(x, Value):
        return at.b.activation(function, x)
    at.room(x.shape)
    return _like(at.b.activation(function, x), x)


def scaled(at: Step, x: Any, factor: float, offset: float = 0.0) -> Any:
    return apply(at, f"affine({factor!r}, {offset!r})", x)


def _aligned(at: Step, a: Any, b: Any) -> tuple[Any, Any]:
    """Two inputs, the second one with the axes that old versions tell apart by an attribute."""
    if at.version >= 7:
        return a, b
    at.no_effect("broadcast", "consumed_inputs")
    axis = at.option("axis")
    ndim = len(shape_of(a))
    if axis is None or axis < 0 or len(shape_of(b)) == ndim:
        return a, b
    wanted = (*shape_of(b), *[1] * (ndim - len(shape_of(b)) - axis))
    return a, at.move(lambda p: np.reshape(p, wanted), b)


def operation(at: Step) -> Any:
    """Of two inputs, or one after the other of any number of them."""
    op = "Sum" if at.node.op == "Mean" else at.node.op
    function, name = OPERATIONS[op]
    made, *others = at.all()
    at.no_effect("consumed_inputs")
    for other in others:
        if op not in ("Min", "Max", "Sum"):
            made, other = _aligned(at, made, other)
        made = _combined(at, function, name, made, other)
    return made


def _combined(at: Step, function: Callable[..., Any], name: str, a: Any, b: Any) -> Any:
    if not isinstance(a, Value) and not isinstance(b, Value):
        try:
            at.room(np.broadcast_shapes(a.shape, b.shape))
        except ValueError:
            raise at.refuse(
                f"combines arrays of shapes {a.shape} and {b.shape}; expected ones that can be "
                f"repeated to one shape"
            ) from None
        return _like(function(a, b), a)
    kinds = {x.kind if isinstance(x, Value) else x.dtype.kind for x in (a, b)}
    if at.node.op == "Div" and not kinds & {"float", "f"}:
        raise at.refuse("divides integers that are computed, and drops what is behind the point")
    made = combine(at, name, a, b)
    logical = at.node.op in ("And", "Or", "Xor")
    return Value(made.places, "bool") if logical and isinstance(made, Value) else made


def mean(at: Step) -> Any:
    total, n = operation(at), len(at.inputs)
    return scaled(at, total, 1 / n) if isinstance(total, Value) else total / n


def modulo(at: Step) -> Array:
    a, b = at.constant(0), at.constant(1)
    at.room(np.broadcast_shapes(a.shape, b.shape))
    return _like(np.fmod(a, b) if at.flag("fmod") else np.mod(a, b), a)


def negation(at: Step) -> Any:
    x = at.any(0)
    if not isinstance(x, Value):
        return np.logical_not(x)
    return Value(combine(at, "equal", x, np.zeros(())).places, "bool")


def where(at: Step) -> Any:
    """Of a constant condition a movement."""
    condition, a, b = (at.any(index) for index in range(3))
    shapes = [shape_of(x) for x in (condition, a, b)]
    try:
        whole = np.broadcast_shapes(*shapes)
    except ValueError:
        raise at.refuse(
            f"combines arrays of shapes {' and '.join(map(str, shapes))}; expected ones that can "
            f"be repeated to one shape"
        ) from None
    at.room(whole, condition, a, b)
    if isinstance(condition, Value):
        return combine(at, "where", condition, a, b)
    return at.move(lambda p, q: np.where(condition, p, q), a, b)


def function(at: Step) -> Any:
    """A function without parameters."""
    at.no_effect("consumed_inputs")
    numpy, text = FUNCTIONS[at.node.op]
    x = at.any(0)
    if isinstance(x, Value):
        return at.b.activation(text, x)
    at.room(x.shape)
    return _like(numpy(x), x)


def activation(at: Step) -> Any:
    at.no_effect("consumed_inputs")
    name, parameters = ACTIVATIONS[at.node.op]
    values = [repr(float(at.option(parameter))) for parameter in parameters]
    return apply(at, f"{name}({', '.join(values)})" if values else name, at.any(0))


def of_constants(at: Step) -> Array:
    x = at.any(0)
    if isinstance(x, Value):
        if at.node.op == "Ceil":
            return scaled(at, apply(at, "floor", scaled(at, x, -1.0)), -1.0)  # type: ignore[no-any-return]
        raise at.refuse("is of an operator that no layer computes, and depends on an input")
    at.no_effect("detect_negative", "detect_positive")
    at.room(x.shape)
    return _like(OF_CONSTANTS[at.node.op](x), x)


def gelu(at: Step) -> Any:
    how = at.option("approximate")
    if how not in ("none", "tanh"):
        raise at.refuse(f"has approximate {how!r:.40}; expected 'none' or 'tanh'")
    return apply(at, "gelu" if how == "none" else "gelu_tanh", at.any(0))


def swish(at: Step) -> Any:
    alpha, x = float(at.option("alpha")), at.any(0)
    if alpha == 1:
        return apply(at, "silu", x)
    return combine(at, "multiply", x, apply(at, "sigmoid", scaled(at, x, alpha)))


def hard_swish(at: Step) -> Any:
    x = at.any(0)
    return combine(at, "multiply", x, apply(at, f"hard_sigmoid({1 / 6!r}, 0.5)", x))


def mish(at: Step) -> Any:
    x = at.any(0)
    return combine(at, "multiply", x, apply(at, "tanh", apply(at, "softplus", x)))


def selu(at: Step) -> Any:
    at.no_effect("consumed_inputs")
    alpha, gamma = float(at.option("alpha")), float(at.option("gamma"))
    return scaled(at, apply(at, f"elu({alpha!r})", at.any(0)), gamma)


def celu(at: Step) -> Any:
    alpha = float(at.option("alpha"))
    if not alpha:
        raise at.refuse("has alpha 0; expected another number")
    return scaled(at, apply(at, "elu(1.0)", scaled(at, at.any(0), 1 / alpha)), alpha)


def prelu(at: Step) -> Any:
    x, slope = at.any(0), at.any(1)
    at.no_effect("consumed_inputs")
    if at.version < 7 and len(shape_of(slope)) == 1 and shape_of(slope)[0] > 1:
        wanted = (-1, *(1,) * (len(shape_of(x)) - 2))
        slope = at.move(lambda p: np.reshape(p, wanted), slope)
    if not isinstance(slope, Value) and slope.size == 1:
        return apply(at, f"leaky_relu({float(slope.reshape(-1)[0])!r})", x)
    # Where relu(x) is not 0, x is above 0 or NaN.
    return combine(at, "where", apply(at, "relu", x), x, combine(at, "multiply", slope, x))


def clip(at: Step) -> Any:
    x = at.any(0)
    at.no_effect("consumed_inputs")
    if at.version < 11:
        low, high = at.option("min"), at.option("max")
        bounds: list[Any] = [
            None if b is None or abs(b) > 3.4e38 else np.array(b) for b in (low, high)
        ]
    else:
        bounds = [at.any(n) if at.has(n) else None for n in (1, 2)]
    known = [
        float(b.reshape(-1)[0])
        if b is not None and not isinstance(b, Value) and b.size == 1
        else None
        for b in bounds
    ]
    if known == [0, None]:
        return apply(at, "relu", x)
    if all(b is not None and math.isfinite(b) for b in known):
        return apply(at, f"clip({known[0]!r}, {known[1]!r})", x)
    for name, bound in zip(("maximum", "minimum"), bounds, strict=True):
        if bound is not None:
            x = combine(at, name, x, bound)
    return x


ELEMENTWISE: Mapping[str, Callable[[Step], Any]] = {
    **dict.fromkeys(OPERATIONS, operation),
    **dict.fromkeys(FUNCTIONS, function),
    **dict.fromkeys(ACTIVATIONS, activation),
    **dict.fromkeys(OF_CONSTANTS, of_constants),
    "Celu": celu,
    "Clip": clip,
    "Gelu": gelu,
    "HardSwish": hard_swish,
    "Mean": mean,
    "Mish": mish,
    "Mod": modulo,
    "Not": negation,
    "PRelu": prelu,
    "Selu": selu,
    "Swish": swish,
    "Where": where,
}
