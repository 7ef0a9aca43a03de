"""Layers of Keras that look at one step, at neighbouring steps or at all of them, as ours.

The conventions are Keras's own (keras/src/layers): batch first, features last, kernels (inputs,
outputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.config import Entry, Options
from fastlstm.sources.keras.file import LayerWeights

__all__ = ["LAYERS", "Shape", "Translate", "Translation", "shown", "take"]

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]

# What Normalization divides by at least: keras.config.epsilon(), unless that is set.
EPSILON = 1e-7


class Translation:
    """The layers made so far, and the axes of one row of the batch behind them.

    `axes` is (steps, features), (steps,) of tokens, or (features,) where there are no steps; None
    as long as nothing said what the input is like.
    """

    def __init__(self, axes: Shape | None) -> None:
        self.axes = axes
        self.layers: list[spec.Layer] = []
        self.tensors: dict[str, Array] = {}
        self.notes: list[str] = []
        self.masked: Entry | None = None

    def add(self, layer: spec.Layer, **tensors: Array) -> None:
        """Add a layer and its tensors, by their suffix."""
        self.layers.append(layer)
        for suffix, array in tensors.items():
            self.tensors[f"{layer.name}.{suffix}"] = np.ascontiguousarray(array)

    def activate(self, entry: Entry, name: str, functions: Sequence[str]) -> None:
        """Add functions, one after the other."""
        for number, function in enumerate(functions):
            own = f"{name}.{number + 1}" if number else name
            self.add(spec.Activation(own, function, self.features(entry)))

    def known_axes(self, entry: Entry) -> Shape:
        """The axes, for a layer that does not tell them itself."""
        if self.axes is None or self.axes[-1] is None:
            raise ConvertError(
                f"the file does not say how many features {entry.what} reads; build the model with "
                f"keras.Input((None, features)) in front and save it again"
            )
        return self.axes

    def features(self, entry: Entry) -> int:
        """The size of the last axis."""
        size = self.known_axes(entry)[-1]
        assert size is not None
        return size

    def features_of_steps(self, entry: Entry) -> int | None:
        """The same for a layer that reads a sequence; None if nothing told it."""
        if self.axes is None:
            return None
        if len(self.axes) != 2:
            raise ConvertError(
                f"{entry.what} reads {shown(self.axes)}; expected a sequence, (steps, features): a "
                f"recurrent layer before it gives one with return_sequences=True"
            )
        return self.features(entry)


Translate = Callable[[Translation, Entry, LayerWeights], None]


def shown(axes: Sequence[int | None]) -> str:
    """The text of a shape."""
    inside = ", ".join("any" if n is None else str(n) for n in axes)
    return f"({inside},)" if len(axes) == 1 else f"({inside})"


def take(entry: Entry, weights: LayerWeights, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """The weights of these names and shapes, of which None is any size.

    Raises
    ------
    ConvertError
        If one is missing, cannot be read or is of another shape.
    """
    arrays = dict(zip(shapes, weights.take(tuple(shapes)), strict=True))
    for name, array in arrays.items():
        shape = shapes[name]
        fits = len(array.shape) == len(shape) and all(
            b in (None, a) for a, b in zip(array.shape, shape, strict=True)
        )
        if not fits:
            raise ConvertError(
                f"weight {name!r} of {entry.what} has shape {array.shape}; expected {shown(shape)}"
            )
    return arrays


def _dense(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    options, axes, size = entry.options, model.known_axes(entry), model.features(entry)
    units, bias = options.size("units"), options.flag("use_bias")
    shapes: dict[str, Shape] = {"kernel": (size, units)} | ({"bias": (units,)} if bias else {})
    arrays = take(entry, weights, shapes)
    arrays["weight"] = arrays.pop("kernel").T
    model.add(spec.Linear(entry.name, size, units, bias), **arrays)
    model.axes = (*axes[:-1], units)
    model.activate(entry, f"{entry.name}.activation", options.activation())


def _embedding(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    options, axes = entry.options, model.axes or (None,)
    tokens, size = options.size("input_dim"), options.size("output_dim")
    if model.layers or len(axes) != 1:
        raise ConvertError(
            f"{entry.what} reads {shown(axes)}; expected it to be the first layer, and to read "
            f"tokens, (steps,)"
        )
    arrays = take(entry, weights, {"embeddings": (tokens, size)})
    if options.flag("mask_zero", False):
        model.masked = entry
    model.add(spec.Embedding(entry.name, tokens, size), weight=arrays["embeddings"])
    model.axes = (*axes, size)


def _conv1d(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    options, size = entry.options, model.features_of_steps(entry)
    filters, width = options.size("filters"), options.size("kernel_size")
    stride, dilation = options.size("strides"), options.size("dilation_rate", 1)
    groups, bias = options.size("groups", 1), options.flag("use_bias")
    options.must_be("data_format", "channels_last", ": (steps, features)")
    padding, reach = options.take("padding"), dilation * (width - 1)
    sides = {"valid": (0, 0), "causal": (reach, 0), "same": (reach // 2, reach - reach // 2)}
    if padding == "same" and stride > 1:
        raise options.refused(
            "padding",
            padding,
            f"'causal' or 'valid' with strides={stride}: what 'same' puts on each side then "
            f"depends on the number of steps",
        )
    if not isinstance(padding, str) or padding not in sides:
        raise options.refused("padding", padding, f"one of {', '.join(sides)}")
    of_group = None if size is None else size // groups
    shapes: dict[str, Shape] = {"kernel": (width, of_group, filters)}
    arrays = take(entry, weights, shapes | ({"bias": (filters,)} if bias else {}))
    kernel = arrays.pop("kernel")
    left, right = sides[padding]
    layer = spec.Conv1d(
        *(entry.name, size or kernel.shape[1] * groups, filters, width, stride, dilation),
        *(groups, bias),
        padding_left=left,
        padding_right=right,
    )
    model.add(layer, weight=kernel.transpose(2, 1, 0), **arrays)
    model.axes = (None, filters)
    model.activate(entry, f"{entry.name}.activation", options.activation())


def _batch_normalization(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    size = model.features(entry)
    arrays = _statistics(model, entry, weights, ("moving_mean", "moving_variance"))
    mean, variance = arrays["moving_mean"], arrays["moving_variance"]
    affine = {}
    if len(arrays) > 2:
        affine["weight"] = arrays.get("gamma", np.ones_like(mean))
        affine["bias"] = arrays.get("beta", np.zeros_like(mean))
    layer = spec.BatchNorm1d(entry.name, size, entry.options.number("epsilon"), bool(affine))
    model.add(layer, **affine, running_mean=mean, running_var=variance)


def _layer_normalization(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    size = model.features(entry)
    arrays = _statistics(model, entry, weights, ())
    affine = {}
    if arrays:
        affine["weight"] = arrays.get("gamma", np.ones(size, np.float32))
    if "beta" in arrays:
        affine["bias"] = arrays["beta"]
    eps = entry.options.number("epsilon")
    layer = spec.LayerNorm(entry.name, size, eps, "weight" in affine, "bias" in affine)
    model.add(layer, **affine)


def _statistics(
    model: Translation, entry: Entry, weights: LayerWeights, further: Sequence[str]
) -> dict[str, Array]:
    """The weights of a normalisation of the features: gamma and beta, if it has them, and more."""
    options, axes = entry.options, model.known_axes(entry)
    options.last_axis(len(axes))
    names = ("gamma",) * options.flag("scale") + ("beta",) * options.flag("center")
    return take(entry, weights, dict.fromkeys((*names, *further), axes[-1:]))


def _normalization(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    options, size = entry.options, model.features(entry)
    options.last_axis(len(model.known_axes(entry)), or_none=True)
    mean, variance = (_numbers(options, key, size) for key in ("mean", "variance"))
    if mean is None or variance is None:
        mean, variance = (
            _wide(entry, array, size) for array in weights.take(("mean", "variance"), ("count",))
        )
    with np.errstate(invalid="ignore"):  # a negative variance gives NaN, as in Keras
        deviation = np.maximum(np.sqrt(variance), EPSILON)
    if options.flag("invert", False):
        _scale(model, entry, deviation, mean)
    else:
        _scale(model, entry, 1 / deviation, -mean / deviation)


def _rescaling(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    size = model.features(entry)
    scale, offset = (_numbers(entry.options, key, size) for key in ("scale", "offset"))
    if scale is None or offset is None:
        raise ConvertError(f"{entry.what} lacks its scale or its offset; expected numbers")
    _scale(model, entry, scale, offset)


def _scale(model: Translation, entry: Entry, weight: Array, bias: Array) -> None:
    dtype = np.float64 if entry.options.computed_in() == "float64" else np.float32
    layer = spec.Scale(entry.name, model.features(entry))
    model.add(layer, weight=weight.astype(dtype), bias=bias.astype(dtype))


def _numbers(options: Options, key: str, size: int) -> Array | None:
    """A number, or one for each feature, as float64 (size,)."""
    value = options.take(key, None)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    while len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = numbers[0]
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not plain or len(numbers) not in (1, size) or not all(abs(n) < 1e300 for n in numbers):
        raise options.refused(key, value, f"a finite number, or one for each of {size} features")
    return np.broadcast_to(np.array(numbers, np.float64), (size,))


def _wide(entry: Entry, array: Array, size: int) -> Array:
    if math.prod(array.shape) not in (1, size):
        raise ConvertError(
            f"{entry.what} has statistics of shape {array.shape}; expected ({size},)"
        )
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (size,))


def _prelu(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    axes, size = model.known_axes(entry), model.features(entry)
    entry.options.take("shared_axes", None)  # the shape of the weight tells
    (slopes,) = weights.take(("alpha",))
    each = (*(1,) * (len(axes) - 1), size)
    if slopes.shape not in (each, (*each[:-1], 1)):
        raise ConvertError(
            f"{entry.what} has slopes of shape {slopes.shape}; expected {each}, the same for all "
            f"steps: shared_axes=[1]"
        )
    model.add(spec.PReLU(entry.name, size, slopes.size), weight=slopes.reshape(-1))


def _mean(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    size = model.features_of_steps(entry) or model.features(entry)
    entry.options.must_be("data_format", "channels_last", ": (steps, features)")
    entry.options.must_be("keepdims", False)
    model.add(spec.Pool(entry.name, "mean", size))
    model.axes = (size,)


def _reshape(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    axes = model.known_axes(entry)
    entry.options.take("data_format", None)
    target = [-1] if entry.class_name == "Flatten" else entry.options.take("target_shape")
    # A -1 stands for what is left over, so it leaves things as they are where the others do.
    same = (
        isinstance(target, list)
        and len(target) == len(axes)
        and target.count(-1) <= 1
        and all(n in (-1, axis) for n, axis in zip(target, axes, strict=True))
    )
    if not same:
        raise ConvertError(
            f"{entry.what} turns {shown(axes)} into {target!r:.80}; expected a model without it: "
            f"steps and features stay what they are here"
        )


LAYERS: dict[str, Translate] = {
    "Dense": _dense,
    "Embedding": _embedding,
    "Conv1D": _conv1d,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "PReLU": _prelu,
    "GlobalAveragePooling1D": _mean,
    "Flatten": _reshape,
    "Reshape": _reshape,
}
