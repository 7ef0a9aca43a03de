"""ONNX's operators whose arrays are known at conversion: constants, and shapes of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from fastlstm.sources.onnx.step import Step, shape_of
from fastlstm.sources.onnx.tensors import DTYPES, MAX_RANK, Array

__all__ = ["KNOWN"]


def shape(at: Step) -> Array:
    sizes = shape_of(at.any(0))
    start, end = at.option("start") or 0, at.option("end")
    return np.array(sizes[slice(start, MAX_RANK if end is None else end)], np.int64)


def size(at: Step) -> Array:
    return np.array(math.prod(shape_of(at.any(0))), np.int64)


def constant(at: Step) -> Array:
    made = at.option("value")
    if made is not None:
        return made  # type: ignore[no-any-return]
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for key in (name, f"{name}s"):
            if key in at.node.attributes:
                return np.array(at.option(key), dtype)
    raise at.refuse("is no array of numbers; expected a tensor")


def constant_of_shape(at: Step) -> Array:
    sizes, value = at.integers(0), at.option("value")
    fill = np.zeros(1, np.float32) if value is None else value.reshape(-1)
    if fill.size != 1 or len(sizes) > MAX_RANK:
        raise at.refuse(f"fills {len(sizes)} axes with {fill.size} numbers; expected one number")
    if any(n < 0 for n in sizes):
        raise at.refuse(f"fills the shape {tuple(sizes)}; expected sizes of at least 0")
    at.room(sizes)
    return np.full(sizes, fill[0], fill.dtype)


def arange(at: Step) -> Array:
    start, stop, step = (at.constant(index).reshape(-1)[0] for index in range(3))
    if step == 0:
        raise at.refuse("counts in steps of 0")
    count = max(math.ceil((float(stop) - float(start)) / float(step)), 0)
    at.room([count])
    return np.asarray(start + step * np.arange(count), at.constant(0).dtype)


def eye_like(at: Step) -> Array:
    code, k = at.option("dtype") or 1, at.option("k") or 0
    sizes = shape_of(at.any(0))
    if len(sizes) != 2 or code not in DTYPES:
        raise at.refuse(f"makes a matrix of an array of shape {sizes}; expected two axes")
    at.room(sizes)
    return np.eye(*sizes, k=k, dtype=DTYPES[code])


def non_zero(at: Step) -> Array:
    return np.array(np.nonzero(at.constant(0)), np.int64)


KNOWN: Mapping[str, Callable[[Step], Array]] = {
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "EyeLike": eye_like,
    "NonZero": non_zero,
    "Range": arange,
    "Shape": shape,
    "Size": size,
}
