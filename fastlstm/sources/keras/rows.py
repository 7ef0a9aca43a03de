"""Layers of Keras that look at the numbers of one step: products, functions and norms.

The conventions are Keras's own (keras/src/layers): features last, kernels (inputs, outputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import (
    FIXED,
    Array,
    Axes,
    Builder,
    Mask,
    Site,
    Value,
    WholeSequenceError,
    shown,
)
from fastlstm.sources.keras.config import Options, layer_functions

__all__ = ["ROWS", "features", "normalised"]

Translate = Callable[[Builder, Site], Value]

# What Normalization divides by at least: keras.config.epsilon(), unless that is set.
EPSILON = 1e-7
LARGEST = float(np.finfo(np.float32).max)


def features(site: Site, value: Value) -> int:
    """The size of the last axis, which is not time."""
    if not value.own:
        raise WholeSequenceError(
            f"{site.what} reads {shown(value.axes)}, all steps of a sequence at once; {FIXED}"
        )
    return value.own[-1]


def _dense(model: Builder, site: Site) -> Value:
    options, value = site.options, site.value
    size, units, bias = features(site, value), options.size("units"), options.flag("use_bias")
    shapes: dict[str, Axes] = {"kernel": (size, units)} | ({"bias": (units,)} if bias else {})
    arrays = site.take(shapes)
    arrays["weight"] = arrays.pop("kernel").T
    layer = spec.Linear(model.unique(site.name), size, units, bias, weights=site.tensors)
    made = value.of_row(model.add(layer, value, **arrays), (*value.own[:-1], units))
    return model.activate(f"{site.name}.activation", made, options.activation())


def _embedding(model: Builder, site: Site) -> Value:
    options, value = site.options, site.value
    count, size = options.size("input_dim"), options.size("output_dim")
    if not value.source:
        raise ConvertError(
            f"{site.what} reads what other layers compute; expected the tokens of an input"
        )
    known, reader = model.tokens.setdefault(value.source, (count, site.what))
    model.tokens[value.source] = (known, reader or site.what)
    if known != count:
        raise ConvertError(
            f"{site.what} knows {count} tokens and {reader or 'another'} {known}, and both read "
            f"the input {value.source!r:.80}; expected the same input_dim, or two inputs"
        )
    arrays = site.take({"embeddings": (count, size)})
    layer = spec.Embedding(model.unique(site.name), count, size, weights=site.tensors)
    name = model.add(layer, value, weight=arrays["embeddings"])

    def counts() -> Value:
        table = np.ones((count, 1), np.float32)
        table[0] = 0
        lookup = spec.Embedding(model.unique(f"{site.name}.mask"), count, 1)
        return value.of_row(model.add(lookup, value, weight=table), (*value.own, 1))

    mask = Mask(counts) if options.flag("mask_zero", False) else None
    return value.of_row(name, (*value.own, size), mask=mask)


def _masking(model: Builder, site: Site) -> Value:
    value, number = site.value, site.options.number("mask_value")
    features(site, value)
    constant = model.constant(f"{site.name}.value", np.array([number], np.float32))
    differs = model.arithmetic(f"{site.name}.differs", "not_equal", value, constant)
    name = model.unique(f"{site.name}.mask")
    model.add(spec.Reduce(name, "max", keepdim=True), differs)
    counts = value.of_row(name, (*value.own[:-1], 1), mask=None)
    made = model.arithmetic(site.name, "multiply", value, counts)
    return made.but(made.name, mask=Mask(lambda: counts))


def _function(model: Builder, site: Site) -> Value:
    value = site.value
    if site.entry.class_name != "Softmax":
        functions = layer_functions(site.entry.class_name, site.options)
        if functions and str(functions[-1]).endswith("softmax"):
            features(site, value)
        return model.activate(site.name, value, functions)
    (axis,) = _row_axes(site, value)
    if value.mask:
        raise ConvertError(
            f"{site.what} leaves out what a Masking or an Embedding with mask_zero marks, "
            f"which is not supported"
        )
    return value.but(model.add(spec.Softmax(model.unique(site.name), axis=axis), value))


def _row_axes(site: Site, value: Value, key: str = "axis") -> tuple[int, ...]:
    """The axes that an option names, counted from the last, of which none is time."""
    axes = site.options.axes(key, len(value.axes))
    if not axes or -axes[0] > len(value.own):
        raise WholeSequenceError(
            f"{site.what} goes over the steps of {shown(value.axes)}, all of them at once; {FIXED}"
        )
    return axes


def _batch_normalization(model: Builder, site: Site) -> Value:
    value = site.value
    (axis,) = _row_axes(site, value)
    size = value.own[axis]
    mean, variance, scale, offset = _statistics(site, size, ("moving_mean", "moving_variance"))
    affine = {}
    if scale is not None or offset is not None:
        affine["weight"] = np.ones_like(mean) if scale is None else scale
        affine["bias"] = np.zeros_like(mean) if offset is None else offset
    layer = spec.BatchNorm(
        *(model.unique(site.name), size, site.options.number("epsilon"), bool(affine)),
        axis=-1,
        weights=site.tensors,
    )
    return _of_last(
        model,
        site,
        axis,
        lambda v: v.but(model.add(layer, v, **affine, running_mean=mean, running_var=variance)),
    )


def _of_last(model: Builder, site: Site, axis: int, apply: Callable[[Value], Value]) -> Value:
    """What is computed with an axis as the last one, put back to where it was."""
    value = site.value
    n = len(value.own)
    order = [*(i for i in range(n) if i != n + axis), n + axis]
    there = model.transposed(f"{site.name}.last", value, order)
    back = [order.index(i) for i in range(n)]
    return model.transposed(f"{site.name}.back", apply(there), back)


def _statistics(site: Site, size: int, further: tuple[str, ...]) -> tuple[Any, ...]:
    """Further weights of a norm of so many features, then gamma and beta or None."""
    has = {"gamma": site.options.flag("scale", True), "beta": site.options.flag("center", True)}
    names = [name for name, there in has.items() if there]
    arrays = site.take(dict.fromkeys((*names, *further), (size,)))
    return (*(arrays[name] for name in further), arrays.get("gamma"), arrays.get("beta"))


def _layer_normalization(model: Builder, site: Site) -> Value:
    value, axes = site.value, _row_axes(site, site.value)
    if axes != tuple(range(-len(axes), 0)):
        raise site.options.refused("axis", list(axes), "the last axes")
    shape = value.own[-len(axes) :]
    size = shape[0] if len(shape) == 1 else None
    if size is None:
        has = {"gamma": site.options.flag("scale"), "beta": site.options.flag("center")}
        arrays = site.take(dict.fromkeys((n for n, there in has.items() if there), shape))
        scale, offset = arrays.get("gamma"), arrays.get("beta")
    else:
        scale, offset = _statistics(site, size, ())
    affine = {}
    if scale is not None or offset is not None:
        affine["weight"] = np.ones(shape, np.float32) if scale is None else scale
    if offset is not None:
        affine["bias"] = offset
    eps = site.options.number("epsilon")
    layer = spec.LayerNorm(
        *(model.unique(site.name), shape, eps, "weight" in affine, "bias" in affine),
        weights=site.tensors if affine else "",
    )
    return value.but(model.add(layer, value, **affine))


def _rms_normalization(model: Builder, site: Site) -> Value:
    value, axes = site.value, _row_axes(site, site.value)
    if axes != (-1,):
        raise site.options.refused("axis", list(axes), "-1")
    scale = site.take({"scale": value.own[-1:]})["scale"]
    layer = spec.RMSNorm(
        *(model.unique(site.name), value.own[-1:], site.options.number("epsilon"), True),
        weights=site.tensors,
    )
    return value.but(model.add(layer, value, weight=scale))


def _group_normalization(model: Builder, site: Site) -> Value:
    """Over the positions of groups of channels, which must all be those of one step."""
    value, (axis,) = site.value, _row_axes(site, site.value)
    if value.timed:
        raise WholeSequenceError(f"{site.what} goes over all steps at once; {FIXED}")
    if value.lead:
        raise ConvertError(f"{site.what} is within TimeDistributed over positions of a step")
    n = len(value.own)
    order = [n + axis, *(i for i in range(n) if i != n + axis)]
    first = model.transposed(f"{site.name}.first", value, order)
    size, groups = value.own[axis], site.options.take("groups")
    groups = size if groups == -1 else groups
    if type(groups) is not int or groups < 1 or size % groups:
        raise site.options.refused("groups", groups, f"a divisor of {size}, or -1")
    scale, offset = _statistics(site, size, ())
    affine = {}
    if scale is not None or offset is not None:
        affine["weight"] = np.ones(size, np.float32) if scale is None else scale
        affine["bias"] = np.zeros(size, np.float32) if offset is None else offset
    layer = spec.GroupNorm(
        *(model.unique(site.name), groups, size, site.options.number("epsilon"), bool(affine)),
        weights=site.tensors if affine else "",
    )
    made = first.but(model.add(layer, first, **affine))
    return model.transposed(f"{site.name}.back", made, [order.index(i) for i in range(n)])


def normalised(model: Builder, name: str, value: Value, axes: tuple[int, ...]) -> Value:
    """Divided by the root of the sum of its squares over some axes, or by the least that is used.

    Keras 3 bounds the root, and Keras 2 the sum (``tf.math.l2_normalize``).
    """
    root = model.unique(f"{name}.root")
    model.add(spec.Reduce(root, "l2", axes=axes, keepdim=True), value)
    kept = tuple(1 if i - len(value.own) in axes else n for i, n in enumerate(value.own))
    least = 1e-6 if model.old else 1e-12
    bounded = model.activate(
        f"{name}.bounded", value.of_row(root, kept), (f"clip({least!r}, {LARGEST!r})",)
    )
    return model.arithmetic(name, "divide", value, bounded)


def _unit_normalization(model: Builder, site: Site) -> Value:
    return normalised(model, site.name, site.value, _row_axes(site, site.value))


def _normalization(model: Builder, site: Site) -> Value:
    value, size = site.value, 1
    if site.options.has("axis") and site.entry.config["axis"] != []:
        if (axes := _row_axes(site, value)) != (-1,):
            raise site.options.refused("axis", list(axes), "-1 or None")
        size = value.own[-1]
    else:
        site.options.take("axis", None)
    mean, variance = (_numbers(site.options, key, size) for key in ("mean", "variance"))
    if mean is None or variance is None:
        mean, variance = (
            _wide(site, array, size)
            for array in site.weights.take(("mean", "variance"), ("count",))
        )
    with np.errstate(invalid="ignore"):  # a negative variance gives NaN, as in Keras
        deviation = np.maximum(np.sqrt(variance), EPSILON)
    if site.options.flag("invert", False):
        return _scaled(model, site, "multiply", deviation, "add", mean)
    return _scaled(model, site, "subtract", mean, "divide", deviation)


def _rescaling(model: Builder, site: Site) -> Value:
    size = site.value.own[-1] if site.value.own else 1
    scale, offset = (_numbers(site.options, key, size) for key in ("scale", "offset"))
    if scale is None or offset is None:
        raise ConvertError(f"{site.what} lacks its scale or its offset; expected numbers")
    return _scaled(model, site, "multiply", scale, "add", offset)


def _scaled(model: Builder, site: Site, first: str, one: Array, second: str, other: Array) -> Value:
    """Two operations with numbers, as Keras does them one after the other."""
    dtype = np.float64 if site.options.computed_in() == "float64" else np.float32
    value = site.value
    for n, (operation, array) in enumerate(((first, one), (second, other))):
        number = model.constant(f"{site.tensors}.{operation}", array.astype(dtype))
        name = site.name if n else f"{site.name}.{operation}ed"
        value = model.arithmetic(name, operation, value, number)
    return value


def _numbers(options: Options, key: str, size: int) -> Array | None:
    """A number, or one for each feature, as float64 (1,) or (size,)."""
    value = options.take(key, None)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    while len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = numbers[0]
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not plain or len(numbers) not in (1, size) or not all(abs(n) < 1e300 for n in numbers):
        raise options.refused(key, value, f"a finite number, or one for each of {size} features")
    return np.array(numbers, np.float64)


def _wide(site: Site, array: Array, size: int) -> Array:
    if math.prod(array.shape) not in (1, size):
        raise ConvertError(f"{site.what} has statistics of shape {array.shape}; expected ({size},)")
    return array.reshape(-1).astype(np.float64)


def _prelu(model: Builder, site: Site) -> Value:
    value = site.value
    site.options.take("shared_axes", None)  # the shape of the weight tells
    (slopes,) = site.weights.take(("alpha",))
    own, shape = value.own, slopes.shape
    if value.timed:
        if shape[:1] != (1,):
            raise WholeSequenceError(
                f"{site.what} has slopes of shape {shape}, others at each step; {FIXED}"
            )
        shape = shape[1:]
    if len(shape) != len(own) or any(a not in (1, b) for a, b in zip(shape, own, strict=True)):
        raise ConvertError(f"{site.what} has slopes of shape {slopes.shape}; expected {own}")
    slope = model.constant(f"{site.tensors}.weight", slopes.reshape(shape))
    # Where relu(x) is not 0, x is above 0 or NaN.
    above = model.activate(f"{site.name}.above", value, ("relu",))
    below = model.arithmetic(f"{site.name}.below", "multiply", value, slope)
    return model.arithmetic(site.name, "where", above, value, below)


ROWS: dict[str, Translate] = {
    "Dense": _dense,
    "Embedding": _embedding,
    "Masking": _masking,
    **dict.fromkeys(
        ("Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Softmax"), _function
    ),
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "GroupNormalization": _group_normalization,
    "UnitNormalization": _unit_normalization,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "PReLU": _prelu,
}
