"""Functions of one number, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec

__all__ = ["Array", "apply", "clip", "normalise", "sigmoid"]

Array = npt.NDArray[Any]


def sigmoid(x: Array) -> Array:
    # exp of a non-positive number cannot overflow, and keeps full relative precision on both sides.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def times_gate(x: Array, gate: Array) -> Array:
    """x * gate, where the gate closes faster than x grows: 0 for x of minus infinity."""
    y: Array = np.where(np.isneginf(x), x.dtype.type(0), x * gate)
    return y


def gelu(x: Array) -> Array:
    # x Phi(x), by the complementary error function: no cancellation where x is far below zero.
    # A NumPy without SciPy has it in the standard library only, a number at a time.
    phi = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[x.dtype])
    return times_gate(x, phi(x))


def gelu_tanh(x: Array) -> Array:
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return times_gate(x, 0.5 * (1 + np.tanh(u)))


def softsign(x: Array) -> Array:
    y: Array = np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x)))
    return y


FUNCTIONS: dict[str, Callable[[Array, Any, Any], Array]] = {
    "relu": lambda x, a, b: np.maximum(x, 0),
    "tanh": lambda x, a, b: np.tanh(x),
    "sigmoid": lambda x, a, b: sigmoid(x),
    "softsign": lambda x, a, b: softsign(x),
    "softplus": lambda x, a, b: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "silu": lambda x, a, b: times_gate(x, sigmoid(x)),
    "gelu": lambda x, a, b: gelu(x),
    "gelu_tanh": lambda x, a, b: gelu_tanh(x),
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "thresholded_relu": lambda x, a, b: np.where(x <= a, 0, x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "clip": lambda x, a, b: np.clip(x, a, b),
    "abs": lambda x, a, b: np.abs(x),
    "sign": lambda x, a, b: (x > 0).astype(x.dtype) - (x < 0),  # 0 of NaN, as in PyTorch
    "floor": lambda x, a, b: np.floor(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "square": lambda x, a, b: np.square(x),
    "reciprocal": lambda x, a, b: 1 / x,
    "exp": lambda x, a, b: np.exp(x),
    "log": lambda x, a, b: np.log(x),
    "sin": lambda x, a, b: np.sin(x),
    "cos": lambda x, a, b: np.cos(x),
}


def apply(function: spec.Function, x: Array) -> Array:
    """A function, its parameters rounded to the dtype of x as the kernels have them.

    Of an infinite number it is the limit, also where PyTorch gives NaN; but a parameter of 0 times
    it is NaN.
    """
    alpha, beta = x.dtype.type(function.alpha), x.dtype.type(function.beta)
    return FUNCTIONS[function.name](x, alpha, beta)


def clip(x: Array, bound: float) -> Array:
    """Between minus `bound` and `bound`, if it is not 0."""
    return np.clip(x, -bound, bound) if bound else x


def normalise(x: Array, eps: float, axes: tuple[int, ...] = (-1,)) -> Array:
    """To mean 0 and variance 1 over some axes."""
    mean = x.mean(axis=axes, keepdims=True)
    # What rounding left the mean off by would be all there is of numbers that are equal.
    mean += (x - mean).mean(axis=axes, keepdims=True)
    centred = x - mean
    variance = (centred**2).mean(axis=axes, keepdims=True)
    y: Array = centred / np.sqrt(variance + x.dtype.type(eps))
    return y
