"""Operators on constants: the arithmetic of shapes, of initial states and of stored weights.

A size that only the input tells is a :class:`~fastlstm.sources.line.Size` in an array of objects.
Before an array is made that is larger than its operands, its size is taken from a budget.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.line import Size, Value
from fastlstm.sources.onnx.file import FLOATS, INTEGERS, MAX_RANK, Array
from fastlstm.sources.onnx.step import Step

__all__ = ["CONSTANT", "axes_of", "bounds_of", "plain", "sizes_of", "tidy"]

DTYPES = FLOATS | INTEGERS | {9: "bool", 16: "float32"}


def plain(values: list[int | Size]) -> Array:
    """An array of sizes, of integers if they are all known."""
    if all(isinstance(value, int) for value in values):
        return np.array(values, np.int64)
    made = np.empty(len(values), object)
    made[:] = values
    return made


def tidy(found: Array | np.generic | Size | int) -> Array:
    """What NumPy gives as an array: of integers, if it is one of objects that are these."""
    if isinstance(found, np.ndarray):
        array = found
    else:
        array = np.empty((), found.dtype if isinstance(found, np.generic) else object)
        array[()] = found
    if array.dtype != object or any(isinstance(n, Size) and n.unknown for n in array.flat):
        return array
    numbers = [n.number if isinstance(n, Size) else int(n) for n in array.flat]
    return np.array(numbers, np.int64).reshape(array.shape)


def sizes_of(at: Step, index: int) -> list[int | Size]:
    """An input that is a list of sizes."""
    array = at.known(index)
    if isinstance(array, Value) or array.ndim > 1 or array.dtype.kind not in "iuO":
        raise at.refuse(f"has no list of sizes for its input number {index}; expected one")
    return [n if isinstance(n, Size) else int(n) for n in array.reshape(-1)]


def axes_of(at: Step, index: int, since: int) -> list[int] | None:
    """Axes, which are an attribute in older versions of an operator and then an input."""
    if at.version < since:
        return at.options("axes", int)
    return at.integers(index) if at.has(index) else None


def bounds_of(at: Step) -> list[tuple[int, int, int, int]]:
    """Axis, start, stop and step of each axis that a Slice cuts."""
    if at.version < 10:
        starts, stops = at.options("starts", int) or [], at.options("ends", int) or []
        axes, steps = at.options("axes", int), None
    else:
        starts, stops = at.integers(1), at.integers(2)
        axes = at.integers(3) if at.has(3) else None
        steps = at.integers(4) if at.has(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(stops) == len(axes) == len(steps) or 0 in steps:
        raise at.refuse(
            f"has {len(starts)} starts, {len(stops)} ends, {len(axes)} axes and {len(steps)} "
            f"steps; expected as many of each, and no step of 0"
        )
    return list(zip(axes, starts, stops, steps, strict=True))


def _array(at: Step, index: int = 0) -> Array:
    found = at.known(index)
    if isinstance(found, Value):
        raise at.refuse(f"has computed numbers for its input number {index}; expected a constant")
    return found


def _axis(at: Step, array: Array, axis: int) -> int:
    if not -array.ndim <= axis < array.ndim:
        raise at.refuse(f"works on axis {axis} of an array of {array.ndim}; expected one it has")
    return axis % array.ndim


def _together(at: Step, *arrays: Array) -> tuple[int, ...]:
    """The shape that all can be repeated to."""
    try:
        return np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise at.refuse(
            f"combines arrays of shapes {shapes}; expected ones that can be repeated to one shape"
        ) from None


def _elementwise(function: Callable[[Array, Array], Array]) -> Callable[[Step], Array]:
    def run(at: Step) -> Array:
        a, b = _array(at, 0), _array(at, 1)
        at.no_effect("axis", "broadcast")
        at.reserve(math.prod(_together(at, a, b)))
        return function(a, b)

    return run


def _equal(a: Array, b: Array) -> Array:
    if object not in (a.dtype, b.dtype):
        return np.equal(a, b)
    pairs = [(x, y) for x, y in np.broadcast(a, b)]
    for pair in pairs:
        for size, other in (pair, pair[::-1]):
            if isinstance(size, Size) and size.unknown and size != other and other > 0:
                raise ConvertError(
                    f"compares a size that only the input tells with {other}; expected an export "
                    f"in which that size is fixed, or an axis named for squeeze"
                )
    return np.array([x == y for x, y in pairs], bool).reshape(np.broadcast(a, b).shape)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype == object or b.dtype == object:
        divided: Array = np.vectorize(operator.floordiv, otypes=[object])(a, b)
        return divided
    # Of integers, towards zero.
    return a / b if a.dtype.kind == "f" else np.abs(a) // np.abs(b) * (np.sign(a) * np.sign(b))


def _cast(at: Step) -> Array:
    code, array = at.option("to", 1), _array(at)
    at.no_effect("saturate", "round_mode")
    if code not in DTYPES:
        raise at.refuse(f"casts to data type {code}; expected one of {', '.join(DTYPES.values())}")
    return array if array.dtype == object else array.astype(DTYPES[code])


def _constant(at: Step) -> Array:
    made = at.tensor("value")
    if made is not None:
        return made
    for name, kind in (("value_float", float), ("value_int", int)):
        lists = at.options(f"{name}s", kind)
        if lists is not None:
            return np.array(lists, np.float32 if kind is float else np.int64)
        if name in at.node.attributes:
            return np.array(at.option(name, kind()), np.float32 if kind is float else np.int64)
    raise at.refuse("is no array of numbers; expected a tensor")


def _constant_of_shape(at: Step) -> Array | Value:
    shape, value = sizes_of(at, 0), at.tensor("value")
    fill = np.zeros(1, np.float32) if value is None else value.reshape(-1)
    if fill.size != 1 or len(shape) > MAX_RANK:
        raise at.refuse(f"fills {len(shape)} axes with {fill.size} numbers; expected one number")
    known = [n for n in shape if isinstance(n, int)]
    if any(n < 0 for n in known):
        raise at.refuse(f"fills the shape {tuple(known)}; expected sizes of at least 0")
    if len(known) < len(shape):
        if fill[0] == 0:
            return at.line.zeros(shape)
        return at.line.expand(at.line.constant(fill), shape, at.name)
    at.reserve(math.prod(known))
    return np.full(known, fill[0], fill.dtype)


def _expand(at: Step) -> Array | Value:
    array, shape = at.numbers(0), sizes_of(at, 1)
    known = [n for n in shape if isinstance(n, int)]
    if len(known) < len(shape):
        # A size of 1 keeps that of the array.
        own = (1,) * (len(shape) - array.ndim) + array.shape
        wanted = [mine if n == 1 else n for n, mine in zip(shape, own, strict=False)]
        if not array.any():
            return at.line.zeros(wanted)
        return at.line.expand(at.line.constant(array), wanted, at.name)
    whole = _together(at, array, np.broadcast_to(0, known))
    at.reserve(math.prod(whole))
    return np.array(np.broadcast_to(array, whole))


def _gather(at: Step) -> Array:
    array, indices = _array(at, 0), at.numbers(1)
    axis = _axis(at, array, at.option("axis", 0))
    if indices.dtype.kind not in "iu":
        raise at.refuse(f"has indices of {indices.dtype}; expected integers")
    at.reserve(indices.size * (array.size // max(array.shape[axis], 1)))
    return np.take(array, indices, axis)


def _slice(at: Step) -> Array:
    array = _array(at)
    cut = [slice(None)] * array.ndim
    for axis, start, stop, step in bounds_of(at):
        # What reaches before the first element backwards is written as a huge negative number.
        end = None if step < 0 and stop < -array.shape[_axis(at, array, axis)] else stop
        cut[_axis(at, array, axis)] = slice(start, end, step)
    return array[tuple(cut)]


def _squeeze(at: Step) -> Array:
    array, axes = _array(at), axes_of(at, 1, 13)
    return np.squeeze(array, None if axes is None else tuple(axes))


def _reshape(at: Step) -> Array:
    array = _array(at)
    shape = at.options("shape", int) if at.version < 5 else at.integers(1)
    if not at.flag("allowzero"):
        shape = [array.shape[i] if n == 0 else n for i, n in enumerate(shape or [])]
    return array.reshape(shape or [])


def _split(at: Step) -> list[Array]:
    array = _array(at)
    axis = _axis(at, array, at.option("axis", 0))
    parts = at.options("split", int) if at.version < 13 else None
    if at.version >= 13 and at.has(1):
        parts = at.integers(1)
    count = len(at.node.outputs)
    if at.option("num_outputs", count) != count or (parts is None and array.shape[axis] % count):
        raise at.refuse(f"splits axis {axis} of {array.shape} by {count}; expected even parts")
    parts = parts or [array.shape[axis] // count] * count
    if sum(parts) != array.shape[axis] or min(parts) < 0 or len(parts) != count:
        raise at.refuse(f"splits axis {axis} of {array.shape} into {parts}; expected all of it")
    return np.split(array, np.cumsum(parts)[:-1], axis)


def _concat(at: Step) -> Array:
    arrays = [_array(at, index) for index in range(len(at.inputs))]
    at.reserve(sum(array.size for array in arrays))
    return np.concatenate(arrays, at.option("axis", 1))


def _where(at: Step) -> Array:
    arrays = [_array(at, index) for index in range(3)]
    at.reserve(math.prod(_together(at, *arrays)))
    return np.where(arrays[0].astype(bool), arrays[1], arrays[2])


def _range(at: Step) -> Array:
    start, stop, step = (at.scalar(index) for index in range(3))
    count = max(math.ceil((stop - start) / step), 0)
    at.reserve(count)
    return (start + step * np.arange(count)).astype(at.numbers(0).dtype)


def _unsqueeze(at: Step) -> Array:
    return np.expand_dims(_array(at), tuple(axes_of(at, 1, 13) or ()))


def _reduce_prod(at: Step) -> Array:
    array, axes = _array(at), axes_of(at, 1, 18)
    at.no_effect("noop_with_empty_axes")
    kept = at.flag("keepdims", True)
    return np.asarray(np.prod(array, axis=None if axes is None else tuple(axes), keepdims=kept))


def _shape(at: Step) -> Array:
    shape = np.array(_array(at).shape, np.int64)
    return shape[slice(at.option("start", 0), at.option("end", MAX_RANK))]


def _transpose(at: Step) -> Array:
    return np.transpose(_array(at), at.options("perm", int))


# What an operator gives where all it reads is constant.
CONSTANT: Mapping[str, Callable[[Step], Array | Value | list[Array]]] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_divide),
    "Equal": _elementwise(_equal),
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _array,
    "Mul": _elementwise(np.multiply),
    "Neg": lambda at: -_array(at),
    "Pow": _elementwise(np.power),
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": lambda at: np.sqrt(_array(at)),
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
