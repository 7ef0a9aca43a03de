"""Equations of the layers that look at one step.

Each takes the layer, its tensors by suffix, and the rows it reads, (T, B, axes of a row) each; a
value that is held has T = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.reference.functions import Array, apply, normalise
from fastlstm.reference.over_time import side_by_side
from fastlstm.reference.products import Weights, looked_up, times

__all__ = ["EQUATIONS"]


def linear(layer: spec.Linear, w: Weights, x: Array) -> Array:
    y = times(x, w["weight"])
    return y + w["bias"] if layer.bias else y


def matmul(layer: spec.MatMul, w: Weights, a: Array, b: Array) -> Array:
    row, column = a.ndim == 3, b.ndim == 3  # of one axis, beside time and the batch
    a, b = a[..., None, :] if row else a, b[..., None] if column else b
    a, b = side_by_side(a, b)
    y: Array = a @ (b.swapaxes(-1, -2) if layer.transposed else b)
    y = y[..., 0] if column else y
    return (y[..., 0] if column else y[..., 0, :]) if row else y


def embedding(layer: spec.Embedding, w: Weights, x: Array) -> Array:
    return looked_up(w["weight"], x)


def one_hot(layer: spec.OneHot, w: Weights, x: Array) -> Array:
    y: Array = x[..., None] == np.arange(layer.num_classes)
    return y


def constant(layer: spec.Constant, w: Weights) -> Array:
    value: Array = w["value"]
    return value[None, None]


def index(layer: spec.Index, w: Weights, *xs: Array) -> Array:
    """The numbers of all values side by side, then one more, which is what padding has."""
    T, B = _steps(xs)
    flat = [np.broadcast_to(x, (T, B, *x.shape[2:])).reshape(T, B, -1) for x in xs]
    filled = np.full((T, B, 1), layer.fill, flat[0].dtype)
    places = np.array(layer.places())
    return np.concatenate([*flat, filled], axis=-1)[..., places].reshape(T, B, *layer.shape)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "power": np.power,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "where": lambda condition, a, b: np.where(condition != 0, a, b),
}


def arithmetic(layer: spec.Arithmetic, w: Weights, *xs: Array) -> Array:
    y: Array = OPERATIONS[layer.operation](*side_by_side(*xs))
    return y


def activation(layer: spec.Activation, w: Weights, x: Array) -> Array:
    return apply(spec.parse_function(layer.function), x)


def softmax(layer: spec.Softmax, w: Weights, x: Array) -> Array:
    shifted: Array = x - x.max(axis=layer.axis, keepdims=True)
    total = np.exp(shifted).sum(axis=layer.axis, keepdims=True)
    y: Array = shifted - np.log(total) if layer.log else np.exp(shifted) / total
    return y


def reduce(layer: spec.Reduce, w: Weights, x: Array) -> Array:
    if layer.function == "l2":
        # The largest number is taken out, so that no square overflows.
        largest = np.abs(x).max(axis=layer.axes, keepdims=True)
        scale = np.where((largest > 0) & np.isfinite(largest), largest, 1).astype(x.dtype)
        total = np.square(x / scale).sum(axis=layer.axes, keepdims=True)
        y: Array = scale * np.sqrt(total)
        return y if layer.keepdim else np.squeeze(y, layer.axes)
    function = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}[layer.function]
    z: Array = function(x, axis=layer.axes, keepdims=layer.keepdim)  # type: ignore[operator]
    return z


def layer_norm(layer: spec.LayerNorm, w: Weights, x: Array) -> Array:
    axes = tuple(range(-len(layer.normalized_shape), 0))
    y: Array = normalise(x, layer.eps, axes) * w.get("weight", 1) + w.get("bias", 0)
    return y


def rms_norm(layer: spec.RMSNorm, w: Weights, x: Array) -> Array:
    axes = tuple(range(-len(layer.normalized_shape), 0))
    mean = np.square(x).mean(axis=axes, keepdims=True)
    y: Array = x / np.sqrt(mean + x.dtype.type(layer.eps)) * w.get("weight", 1)
    return y


def group_norm(layer: spec.GroupNorm, w: Weights, x: Array) -> Array:
    groups = x.reshape(*x.shape[:2], layer.num_groups, -1)
    channels = (layer.num_channels, *(1,) * (x.ndim - 3))
    y: Array = normalise(groups, layer.eps).reshape(x.shape)
    if layer.affine:
        y = y * w["weight"].reshape(channels) + w["bias"].reshape(channels)
    return y


def batch_norm(layer: spec.BatchNorm, w: Weights, x: Array) -> Array:
    axes = (1,) * (x.ndim - 3)
    shape = (layer.num_features, *axes) if layer.axis == 0 else (*axes, layer.num_features)
    mean, variance = w["running_mean"].reshape(shape), w["running_var"].reshape(shape)
    y: Array = (x - mean) / np.sqrt(variance + x.dtype.type(layer.eps))
    if layer.affine:
        y = y * w["weight"].reshape(shape) + w["bias"].reshape(shape)
    return y


def _steps(xs: tuple[Array, ...]) -> tuple[int, int]:
    """T and B of rows, of which those that are held have one step and perhaps one row."""
    moving = [len(x) for x in xs if len(x) != 1]
    return (moving or [1])[0], max(x.shape[1] for x in xs)


EQUATIONS: dict[type[spec.Layer], Callable[..., Array]] = {
    spec.Linear: linear,
    spec.MatMul: matmul,
    spec.Embedding: embedding,
    spec.OneHot: one_hot,
    spec.Constant: constant,
    spec.Index: index,
    spec.Arithmetic: arithmetic,
    spec.Activation: activation,
    spec.Softmax: softmax,
    spec.Reduce: reduce,
    spec.LayerNorm: layer_norm,
    spec.RMSNorm: rms_norm,
    spec.GroupNorm: group_norm,
    spec.BatchNorm: batch_norm,
}
