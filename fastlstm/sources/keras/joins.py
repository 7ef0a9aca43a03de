"""Layers of Keras that make one tensor of several: sums, products, concatenations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import (
    FIXED,
    Builder,
    Mask,
    Site,
    Value,
    WholeSequenceError,
    leading,
    shown,
)
from fastlstm.sources.keras.rows import normalised

__all__ = ["JOINS", "concatenated", "same_order"]

_OPERATIONS = {
    **{"Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Average": "add"},
    **{"Maximum": "maximum", "Minimum": "minimum"},
}


def _several(site: Site) -> list[Value]:
    if len(site.inputs) < 2:
        raise ConvertError(
            f"{site.what} is called with {len(site.inputs)} tensor; expected 2 or more"
        )
    return same_order(site, site.inputs)


def same_order(site: Site, values: list[Value]) -> list[Value]:
    """Values whose steps are in the same order, and of which none is steps and another is not."""
    timed = [value for value in values if value.timed]
    if len({value.backwards for value in timed}) > 1:
        raise WholeSequenceError(
            f"{site.what} joins steps of which some are the last first, as go_backwards=True gives "
            f"them; {FIXED}"
        )
    if len({len(value.axes) for value in timed}) > 1:
        raise WholeSequenceError(
            f"{site.what} joins {' and '.join(shown(value.axes) for value in values)}, of "
            f"which not all have as many axes; {FIXED}"
        )
    ndim = max((len(value.axes) for value in timed), default=0)
    if ndim and any(len(value.axes) == ndim and not value.timed for value in values):
        raise WholeSequenceError(
            f"{site.what} joins {' and '.join(shown(value.axes) for value in values)}, steps and "
            f"what is of a fixed size; {FIXED}"
        )
    return values


def _mask_of(model: Builder, name: str, values: Sequence[Value]) -> Mask | None:
    """What the merging layers make of masks: all must count, or in Keras 3 one of them."""
    masks = list(dict.fromkeys(value.mask for value in values if value.mask))
    if not masks or (not model.old and any(value.mask is None for value in values)):
        return None
    if len(masks) == 1:
        return masks[0]
    operation = "minimum" if model.old else "maximum"

    def make() -> Value:
        return functools.reduce(
            lambda a, b: model.arithmetic(f"{name}.mask", operation, a, b),
            [mask.value for mask in masks],
        )

    return Mask(make)


def _elementwise(model: Builder, site: Site) -> Value:
    kind, values = site.entry.class_name, _several(site)
    operation, mask = _OPERATIONS[kind], _mask_of(model, site.name, values)
    if kind == "Subtract" and len(values) != 2:
        raise ConvertError(f"{site.what} is called with {len(values)} tensors; expected 2")
    if (
        kind in ("Maximum", "Minimum", "Multiply")
        and not model.old
        and any(value.mask for value in values)
    ):
        raise ConvertError(
            f"{site.what} leaves out what a Masking or an Embedding with mask_zero marks, "
            f"otherwise from version to version of Keras 3, which is not supported"
        )
    total = values[0]
    for number, value in enumerate(values[1:], 2):
        last = number == len(values) and kind != "Average"
        total = model.arithmetic(
            site.name if last else f"{site.name}.{number}", operation, total, value
        )
    if kind == "Average":
        total = model.activate(site.name, total, (f"affine({1 / len(values)!r}, 0.0)",))
    return total.but(total.name, mask=mask)


def _concatenate(model: Builder, site: Site) -> Value:
    values = _several(site)
    first = leading(values)
    ndim = len(first.axes)
    if any(len(value.axes) != ndim for value in values):
        given = " and ".join(shown(value.axes) for value in values)
        raise ConvertError(f"{site.what} joins {given}; expected as many axes in each")
    (axis,) = site.options.axes("axis", ndim)
    made = concatenated(model, site, values, axis)
    return made.but(made.name, mask=_mask_of(model, site.name, values))


def concatenated(model: Builder, site: Site, values: list[Value], axis: int) -> Value:
    """Rows one behind the other along an axis, counted from the last."""
    first = leading(values)
    if -axis > len(first.own):
        raise WholeSequenceError(
            f"{site.what} puts steps of several sequences one behind the other; {FIXED}"
        )
    name, row = model.moved(site.name, values, lambda *places: np.concatenate(places, axis=axis))
    return first.of_row(name, row[len(first.lead) :], mask=None)


def _dot(model: Builder, site: Site) -> Value:
    """The products over one axis of each of two tensors (``batch_dot``)."""
    first, second = _several(site)[:2]
    axes = site.options.take("axes")
    pair = [axes, axes] if type(axes) is int else axes
    if not isinstance(pair, list) or len(pair) != 2 or any(type(n) is not int for n in pair):
        raise site.options.refused("axes", axes, "an axis, or one of each tensor")
    rows = []
    for value, axis in zip((first, second), pair, strict=True):
        ndim = len(value.axes)
        at = axis - ndim - 1 if axis > 0 else axis
        if not -ndim <= at < 0:
            raise site.options.refused("axes", axes, f"one of the axes of {shown(value.axes)}")
        if -at > len(value.own):
            raise WholeSequenceError(f"{site.what} sums over the steps of a sequence; {FIXED}")
        rows.append((value, at))
    if first.timed and second.timed:
        raise WholeSequenceError(f"{site.what} multiplies each step with each other; {FIXED}")
    normalise = site.options.flag("normalize", False)
    parts, sizes = [], []
    for number, (value, at) in enumerate(rows):
        name = f"{site.name}.{number + 1}"
        if normalise:
            value = normalised(model, f"{name}.unit", value, (at,))
        n = len(value.own)
        order = [*(i for i in range(n) if i != n + at), n + at]
        moved = model.transposed(f"{name}.last", value, order)
        sizes.append(moved.own[:-1])
        parts.append(
            model.reshaped(f"{name}.rows", moved, (math.prod(moved.own[:-1]), moved.own[-1]))
        )
    if parts[0].own[-1] != parts[1].own[-1]:
        raise ConvertError(
            f"{site.what} multiplies {shown(first.axes)} and {shown(second.axes)}; expected as "
            f"many numbers in the axes {pair}"
        )
    name = model.add(spec.MatMul(model.unique(f"{site.name}.product"), transposed=True), *parts)
    shape = (parts[0].own[0], parts[1].own[0])
    made = leading([first, second]).of_row(name, shape, mask=None)
    own = (*sizes[0], *sizes[1])
    return model.reshaped(site.name, made, own or (() if made.timed else (1,)))


JOINS: dict[str, Callable[[Builder, Site], Value]] = {
    **dict.fromkeys(_OPERATIONS, _elementwise),
    "Concatenate": _concatenate,
    "Dot": _dot,
}
