"""Layers of Keras that move numbers or steps, and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import FIXED, Builder, Site, Value, WholeSequenceError, shown

__all__ = ["MOVEMENT", "reshaped_to"]


def _flatten(model: Builder, site: Site) -> Value:
    value = site.value
    data = site.options.take("data_format", None)
    if data == "channels_first" and len(value.axes) > 1:
        raise site.options.refused("data_format", data, "'channels_last'")
    if value.timed:
        raise WholeSequenceError(
            f"{site.what} makes one row of all steps of {shown(value.axes)}; {FIXED}"
        )
    return model.reshaped(site.name, value.but(value.name, mask=None), (math.prod(value.own),))


def _reshape(model: Builder, site: Site) -> Value:
    return reshaped_to(model, site, site.value, site.options.take("target_shape"))


def reshaped_to(model: Builder, site: Site, value: Value, target: Any) -> Value:
    """The numbers of a tensor in the axes of `target` behind the batch, of which one may be -1."""
    value = value.but(value.name, mask=None, source=value.source)
    good = isinstance(target, list) and all(type(n) is int and (n > 0 or n == -1) for n in target)
    if not good or target.count(-1) > 1:
        raise site.options.refused("shape", target, "sizes, of which one may be -1")
    size = math.prod(value.own)
    if not value.timed:
        return model.reshaped(site.name, value, _resolved(site, target, size))
    fixed = math.prod(n for n in target[1:] if n != -1)
    steps = value.steps
    if steps is not None:
        whole = _resolved(site, target, steps * size)
        steps, own = whole[0], whole[1:]
    elif target[:1] == [-1]:
        own = tuple(target[1:])
    elif -1 in target[1:] or fixed != size:
        raise _over_time(site, value, target)
    else:  # as many steps as it names
        own = tuple(target[1:])
    row = math.prod(own)
    if row == size:
        return model.reshaped(site.name, value, own).with_steps(steps)
    model.in_order(site, value)
    if row % size == 0:  # several steps are one
        count = row // size
        window = spec.Window(model.unique(f"{site.name}.window"), count, stride=count)
        joined = value.of_row(model.add(window, value), (count, *value.own))
        return model.reshaped(site.name, joined, own).with_steps(steps)
    if size % row == 0:  # each step is several
        parts = model.reshaped(f"{site.name}.parts", value, (size // row, *own))
        spread = spec.Spread(model.unique(site.name), size // row)
        return value.of_row(model.add(spread, parts), own).with_steps(steps)
    raise _over_time(site, value, target)


def _over_time(site: Site, value: Value, target: list[int]) -> WholeSequenceError:
    return WholeSequenceError(f"{site.what} turns {shown(value.axes)} into {target!r:.80}; {FIXED}")


def _resolved(site: Site, target: list[int], size: int) -> tuple[int, ...]:
    """The axes with the number that -1 stands for."""
    fixed = math.prod(n for n in target if n != -1)
    own = tuple(size // fixed if n == -1 else n for n in target)
    if math.prod(own) != size:
        raise ConvertError(f"{site.what} makes {target!r:.80} of {size} numbers; they do not fit")
    return own


def _permute(model: Builder, site: Site) -> Value:
    value, dims = site.value, site.options.take("dims")
    n = len(value.axes)
    whole = isinstance(dims, list) and all(type(axis) is int for axis in dims)
    if not whole or sorted(dims) != list(range(1, n + 1)):
        raise site.options.refused("dims", dims, f"the axes from 1 to {n} in another order")
    if value.timed:
        if dims[0] != 1:
            raise WholeSequenceError(f"{site.what} moves the axis of the steps; {FIXED}")
        dims = [axis - 1 for axis in dims[1:]]
    value = value.but(value.name, mask=None, source=value.source)
    return model.transposed(site.name, value, [axis - 1 for axis in dims])


def _repeat_vector(model: Builder, site: Site) -> Value:
    value, count = site.value, site.options.size("n")
    if value.timed or len(value.own) != 1:
        raise ConvertError(f"{site.what} reads {shown(value.axes)}; expected (features,)")
    if count == model.steps and not value.folded:
        # The same at every step of what it will be joined with.
        return value.but(value.name, axes=(None, *value.own), steps=count, mask=None)
    n = len(value.lead)
    model.room(site.what, *value.row, count)
    name, row = model.moved(
        site.name, [value], lambda x: np.repeat(np.expand_dims(x, n), count, axis=n)
    )
    return value.of_row(name, row[n:], mask=None)


def _pair(site: Site, key: str, axes: int) -> list[tuple[int, int]]:
    """Before and behind each axis, of a number, a number an axis or a pair an axis."""
    value = site.options.take(key)
    given: Any = [value] * axes if type(value) is int else value
    if axes == 1 and isinstance(given, list) and len(given) == 2 and type(given[0]) is int:
        given = [given]
    pairs = [[n, n] if type(n) is int else n for n in given] if isinstance(given, list) else []
    good = len(pairs) == axes and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)
        for pair in pairs
    )
    if not good or max(max(pair) for pair in pairs) > 2**20:
        raise site.options.refused(key, value, "numbers of positions before and behind each axis")
    return [(pair[0], pair[1]) for pair in pairs]


def _spatial(site: Site) -> tuple[Value, int]:
    """Its input (..., features), and the number of its axes before the features."""
    value, axes = site.value, int(site.entry.class_name[-2])
    site.options.must_be("data_format", "channels_last", ": features last")
    if len(value.axes) != axes + 1:
        raise ConvertError(f"{site.what} reads {shown(value.axes)}; expected {axes + 1} axes")
    return value.but(value.name, mask=None, source=value.source), axes


def _zero_padding(model: Builder, site: Site) -> Value:
    value, axes = _spatial(site)
    pairs = _pair(site, "padding", axes)
    if value.timed:
        model.in_order(site, value)
        (before, behind), pairs = pairs[0], pairs[1:]
        padding = (value.padding[0] + before, value.padding[1] + behind)
        value = value.but(value.name, padding=padding)
    if any(map(any, pairs)):
        pads = [(0, 0)] * len(value.lead) + pairs + [(0, 0)]
        model.room(site.what, *(n + sum(p) for n, p in zip(value.row, pads, strict=True)))
        name, row = model.moved(
            site.name, [value], lambda x: np.pad(x, pads, constant_values=spec.FILL)
        )
        value = value.of_row(name, row[len(value.lead) :])
    return value


def _cropping(model: Builder, site: Site) -> Value:
    value, axes = _spatial(site)
    pairs = _pair(site, "cropping", axes)
    for pair, size in zip(pairs, value.axes, strict=False):
        if size is not None and sum(pair) >= size:
            raise ConvertError(f"{site.what} cuts off all of {shown(value.axes)}")
    if value.timed:
        model.in_order(site, value)
        (start, end), pairs = pairs[0], pairs[1:]
        if start or end:
            name = model.add(
                spec.Slice(model.unique(f"{site.name}.steps"), start=start, end=end), value
            )
            steps = None if value.steps is None else value.steps - start - end
            value = value.but(name, steps=steps)
    if any(map(any, pairs)):
        cut = tuple(slice(a, n - b) for (a, b), n in zip(pairs, value.own, strict=False))
        places = (slice(None),) * len(value.lead) + cut
        name, row = model.moved(site.name, [value], lambda x: x[places])
        value = value.of_row(name, row[len(value.lead) :])
    return value


def _up_sampling(model: Builder, site: Site) -> Value:
    value, axes = _spatial(site)
    sizes = list(site.options.sizes("size", axes))
    site.options.must_be("interpolation", "nearest")
    if value.timed:
        model.in_order(site, value)
        times = sizes.pop(0)
        if times > 1:
            name = model.add(spec.Repeat(model.unique(f"{site.name}.steps"), times), value)
            value = value.but(name, steps=None if value.steps is None else value.steps * times)
    for axis, times in enumerate(sizes, len(value.lead)):
        if times > 1:
            model.room(site.what, *value.row, times)
            name, row = model.moved(
                f"{site.name}.{axis}", [value], lambda x, a=axis, t=times: x.repeat(t, a)
            )
            value = value.of_row(name, row[len(value.lead) :])
    return value


MOVEMENT: dict[str, Callable[[Builder, Site], Value]] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "RepeatVector": _repeat_vector,
    **{f"ZeroPadding{n}D": _zero_padding for n in (1, 2, 3)},
    **{f"Cropping{n}D": _cropping for n in (1, 2, 3)},
    **{f"UpSampling{n}D": _up_sampling for n in (1, 2, 3)},
}
