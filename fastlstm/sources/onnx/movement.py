"""ONNX's operators that move numbers, of constants and of what is computed alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.sources.arrays import Value
from fastlstm.sources.onnx.step import Step, shape_of
from fastlstm.sources.onnx.tensors import BOOL, DTYPES, FLOATS, Array

__all__ = ["MOVEMENTS"]


def identity(at: Step) -> Any:
    return at.any(0)


def dropout(at: Step) -> list[Any]:
    at.no_effect("ratio", "seed", "is_test", "consumed_inputs")
    if at.has(2) and at.scalar(2):
        raise at.refuse("is in training mode; expected an export for inference")
    if at.gives(1):
        raise at.refuse("gives its mask; expected its output alone")
    at.note("has no effect at inference and was left out")
    return [at.any(0), None]


def cast(at: Step) -> Any:
    """Of constants as NumPy casts; else a change of type that changes no number."""
    x = at.any(0)
    at.no_effect("saturate", "round_mode")
    if at.node.op == "CastLike":
        like = at.any(1)
        if not isinstance(x, Value) and not isinstance(like, Value):
            return x.astype(like.dtype)
        kind = like.kind if isinstance(like, Value) else _kind_of(like)
        return _of_kind(at, x, kind)
    code = at.option("to")
    if isinstance(code, str):  # in the first versions
        code = next((n for n, name in DTYPES.items() if name == code.lower()), 0)
    if code not in DTYPES:
        raise at.refuse(f"casts to data type {code}; expected one of {', '.join(DTYPES.values())}")
    if not isinstance(x, Value):
        return x.astype("float32" if DTYPES[code] == "bfloat16" else DTYPES[code])
    return _of_kind(at, x, "float" if code in FLOATS else "bool" if code == BOOL else "int")


def _kind_of(array: Array) -> str:
    return {"f": "float", "b": "bool"}.get(array.dtype.kind, "int")


def _of_kind(at: Step, x: Value | Array, kind: str) -> Any:
    if not isinstance(x, Value):
        return x.astype({"float": np.float32, "int": np.int64, "bool": bool}[kind])
    if kind == x.kind:
        at.note("has no effect here and was left out")
        return x
    if kind == "bool":
        return at.b.arithmetic("not_equal", x, np.zeros(()))
    if x.kind == "bool":
        return Value(x.places, "float")
    raise at.refuse(
        f"casts {x.kind}s that are computed to {kind}s, which drops what is behind the point; "
        f"expected one of {', '.join(FLOATS.values())}, as the array is"
        if kind == "int"
        else f"casts {x.kind}s to {kind}s, and these may be tokens; expected an input of floats"
    )


# Axes


def transpose(at: Step) -> Any:
    perm = at.option("perm")
    return at.move(lambda p: np.transpose(p, perm), at.any(0))


def squeeze(at: Step) -> Any:
    axes = at.axes(1, 13)
    return at.move(lambda p: np.squeeze(p, None if axes is None else tuple(axes)), at.any(0))


def unsqueeze(at: Step) -> Any:
    axes = at.axes(1, 13) or []
    return at.move(lambda p: np.expand_dims(p, tuple(axes)), at.any(0))


def reshape(at: Step) -> Any:
    x = at.any(0)
    given = shape_of(x)
    sizes = (at.option("shape") or []) if at.version < 5 else at.integers(1)
    at.no_effect("consumed_inputs")
    if not (at.version >= 14 and at.flag("allowzero")):
        if any(n == 0 for n in sizes[len(given) :]):
            raise at.refuse(f"keeps an axis that an array of shape {given} has not")
        sizes = [given[i] if n == 0 else n for i, n in enumerate(sizes)]
    return at.move(lambda p: np.reshape(p, sizes), x)


def flatten(at: Step) -> Any:
    x, axis = at.any(0), at.option("axis")
    sizes = shape_of(x)
    if not -len(sizes) <= axis <= len(sizes):
        raise at.refuse(
            f"flattens from axis {axis} of an array of {len(sizes)}; expected one it has"
        )
    axis += len(sizes) * (axis < 0)
    whole = math.prod(sizes[:axis]), math.prod(sizes[axis:])
    return at.move(lambda p: np.reshape(p, whole), x)


def expand(at: Step) -> Any:
    x, sizes = at.any(0), at.integers(1)
    wanted = _together(at, shape_of(x), tuple(sizes))
    at.room(wanted, x)
    return at.move(lambda p: np.broadcast_to(p, wanted), x)


def _together(at: Step, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all can be repeated to."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        given = " and ".join(map(str, shapes))
        raise at.refuse(
            f"combines arrays of shapes {given}; expected ones that can be repeated to one shape"
        ) from None


def tile(at: Step) -> Any:
    x = at.any(0)
    sizes = shape_of(x)
    if at.version < 6:
        times, axis = at.integer(1), at.integer(2)
        repeats = [times if n == axis else 1 for n in range(len(sizes))]
    else:
        repeats = at.integers(1)
    if len(repeats) != len(sizes) or min(repeats, default=1) < 0:
        raise at.refuse(f"repeats an array of shape {sizes} {repeats[:8]} times")
    at.room([n * times for n, times in zip(sizes, repeats, strict=True)], x)
    return at.move(lambda p: np.tile(p, repeats), x)


def concat(at: Step) -> Any:
    arrays, axis = at.all(), at.option("axis")
    axis = 1 if axis is None else axis
    at.room([sum(math.prod(shape_of(array)) for array in arrays)], *arrays)
    return at.move(lambda *p: np.concatenate(p, axis), *arrays)


def split(at: Step) -> list[Any]:
    x = at.any(0)
    sizes = shape_of(x)
    axis = at.axis(at.option("axis") or 0, len(sizes))
    n, count = sizes[axis], len(at.node.outputs)
    parts = at.option("split") if 2 <= at.version < 13 else None
    if (at.version >= 13 or at.version < 2) and at.has(1):
        parts = at.integers(1)
    if parts is None:
        told = at.option("num_outputs") if at.version >= 18 else None
        each = -(-n // count)
        even = n % count == 0 or (told is not None and each * (count - 1) < n)
        if (told or count) != count or not even:
            raise at.refuse(f"splits axis {axis} of an array of shape {sizes} by {count}")
        parts = [min(each, n - i * each) for i in range(count)]
    if sum(parts) != n or len(parts) != count or min(parts) < 0:
        raise at.refuse(
            f"splits axis {axis} of an array of shape {sizes} into {parts[:20]}; expected all of it"
        )
    cuts = np.cumsum(parts)[:-1]
    return at.move(lambda p: np.split(p, cuts, axis), x)  # type: ignore[no-any-return]


# Places


def bounds_of(at: Step) -> list[tuple[int, int, int, int]]:
    """Axis, start, stop and step of each axis that a Slice cuts."""
    if at.version < 10:
        starts, stops = at.option("starts") or [], at.option("ends") or []
        axes, steps = at.option("axes"), None
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


def cut(at: Step) -> Any:
    x = at.any(0)
    sizes = shape_of(x)
    cuts = [slice(None)] * len(sizes)
    for axis, start, stop, step in bounds_of(at):
        axis = at.axis(axis, len(sizes))
        # What reaches before the first element backwards is written as a huge negative number.
        end = None if step < 0 and stop < -sizes[axis] else stop
        cuts[axis] = slice(start, end, step)
    return at.move(lambda p: p[tuple(cuts)], x)


def gather(at: Step) -> Any:
    """Positions of an axis, or rows of a table that tokens stand for."""
    data, where = at.any(0), at.any(1)
    sizes = shape_of(data)
    axis = at.axis(at.option("axis") or 0, len(sizes))
    if not isinstance(where, Value):
        if where.dtype.kind not in "iu":
            raise at.refuse(f"has indices of {where.dtype}; expected integers")
        at.room([*where.shape, math.prod(sizes) // max(sizes[axis], 1)], data)
        return at.move(lambda p: np.take(p, where, axis), data)
    if isinstance(data, Value):
        raise at.refuse(
            "takes positions that are computed out of what is computed; expected constant ones"
        )
    if axis != 0 or not 1 <= data.ndim <= 2 or data.dtype.kind != "f":
        raise at.refuse(
            f"looks up axis {axis} of a table of {data.dtype} and shape {data.shape}; expected "
            f"axis 0 of a matrix of floats"
        )
    if data.ndim == 2:
        return at.b.embedding(where, data)
    column = at.b.derived(data, "column", lambda table: table[:, None])
    return at.move(lambda p: p[..., 0], at.b.embedding(where, column))


def gather_elements(at: Step) -> Any:
    x, where, axis = at.any(0), at.constant(1), at.option("axis") or 0
    at.room(where.shape, x)
    return at.move(lambda p: np.take_along_axis(p, where, axis), x)


def gather_nd(at: Step) -> Any:
    x, where = at.any(0), at.constant(1)
    if at.version >= 12 and at.option("batch_dims"):
        raise at.refuse("has batch_dims; expected none")
    if not where.ndim or not 1 <= where.shape[-1] <= len(shape_of(x)):
        raise at.refuse(f"has indices of shape {where.shape} for an array of {shape_of(x)}")
    rest = math.prod(shape_of(x)[where.shape[-1] :])
    at.room([math.prod(where.shape[:-1]), rest], x)
    return at.move(lambda p: p[tuple(np.moveaxis(where, -1, 0))], x)


def scatter_nd(at: Step) -> Any:
    x, where, updates = at.any(0), at.constant(1), at.any(2)
    _no_reduction(at, 16)
    at.room(shape_of(x), x, updates)

    def put(p: Array, q: Array) -> Array:
        made = p.copy()
        made[tuple(np.moveaxis(where, -1, 0))] = q
        return made

    return at.move(put, x, updates)


def scatter_elements(at: Step) -> Any:
    x, where, updates, axis = at.any(0), at.constant(1), at.any(2), at.option("axis") or 0
    _no_reduction(at, 16)
    at.room(shape_of(x), x, updates)

    def put(p: Array, q: Array) -> Array:
        made = p.copy()
        np.put_along_axis(made, where, q, axis)
        return made

    return at.move(put, x, updates)


def _no_reduction(at: Step, since: int) -> None:
    how = at.option("reduction") if at.version >= since else "none"
    if how != "none":
        raise at.refuse(f"has the reduction {how!r:.40}; expected 'none'")


def pad(at: Step) -> Any:
    x, how = at.any(0), at.option("mode")
    ndim = len(shape_of(x))
    modes: list[Any] = ["constant", "reflect", "edge", "wrap"]
    if at.version < 11:
        pads = at.option("pads" if at.version >= 2 else "paddings") or []
        value: Any = np.asarray(at.option("value"), np.float32)
        axes = None
    else:
        pads = at.integers(1)
        value = at.any(2) if at.has(2) else np.zeros((), np.float32)
        axes = at.integers(3) if at.has(3) else None
    places = range(ndim) if axes is None else [at.axis(axis, ndim) for axis in axes]
    if len(pads) != 2 * len(places):
        raise at.refuse(f"has {len(pads)} pads; expected two for each of {len(places)} axes")
    if how not in modes:
        raise at.refuse(f"pads by {how!r:.40}; expected one of {', '.join(modes)}")
    before, behind = [0] * ndim, [0] * ndim
    for n, place in enumerate(places):
        before[place], behind[place] = pads[n], pads[n + len(places)]
    # Negative numbers cut off.
    cuts = tuple(
        slice(max(-b, 0), size - max(-e, 0))
        for b, e, size in zip(before, behind, shape_of(x), strict=True)
    )
    widths = [(max(b, 0), max(e, 0)) for b, e in zip(before, behind, strict=True)]
    at.room([n + sum(w) for n, w in zip(shape_of(x), widths, strict=True)], x)
    if how != "constant":
        return at.move(lambda p: np.pad(p[cuts], widths, mode=how), x)
    if not isinstance(x, Value) and not isinstance(value, Value):
        value = value.astype(x.dtype)

    def padded(p: Array, fill: Array) -> Array:
        return np.pad(p[cuts], widths, constant_values=fill.reshape(-1)[0])

    return at.move(padded, x, value)


def trilu(at: Step) -> Any:
    x, k, upper = at.any(0), at.integer(1) if at.has(1) else 0, at.flag("upper")
    at.room(shape_of(x), x)
    n, m = shape_of(x)[-2:]
    kept = np.tri(n, m, k - 1 if upper else k, dtype=bool) ^ upper
    dtype = np.float32 if isinstance(x, Value) else x.dtype
    return at.move(lambda p, zero: np.where(kept, p, zero), x, np.zeros((), dtype))


def reverse_sequence(at: Step) -> Any:
    x, lengths = at.any(0), at.constant(1)
    time, batch = at.option("time_axis"), at.option("batch_axis")
    if (lengths != shape_of(x)[time]).any() or time == batch:
        raise at.refuse("reverses rows of different lengths; expected all of each")
    return at.move(lambda p: np.flip(p, time), x)


def depth_to_space(at: Step) -> Any:
    x, n, mode = at.any(0), at.option("blocksize"), "DCR"
    if at.version >= 11:
        mode = at.option("mode")
    N, C, H, W = shape_of(x)
    if n < 1 or C % (n * n) or mode not in ("DCR", "CRD"):
        raise at.refuse(f"has blocksize {n} and {C} channels; expected a multiple of its square")
    if mode == "DCR":
        parts, order = (N, n, n, C // n**2, H, W), (0, 3, 4, 1, 5, 2)
    else:
        parts, order = (N, C // n**2, n, n, H, W), (0, 1, 4, 2, 5, 3)
    whole = (N, C // n**2, H * n, W * n)
    return at.move(lambda p: p.reshape(parts).transpose(order).reshape(whole), x)


def space_to_depth(at: Step) -> Any:
    x, n = at.any(0), at.option("blocksize")
    N, C, H, W = shape_of(x)
    if n < 1 or H % n or W % n:
        raise at.refuse(f"has blocksize {n} and an array of {H} x {W}; expected multiples of it")
    parts, order = (N, C, H // n, n, W // n, n), (0, 3, 5, 1, 2, 4)
    whole = (N, C * n * n, H // n, W // n)
    return at.move(lambda p: p.reshape(parts).transpose(order).reshape(whole), x)


def resize(at: Step) -> Any:
    """Each number so many times along some axes."""
    x = at.any(0)
    sizes = shape_of(x)
    if at.node.op == "Upsample":
        scales = at.option("scales") if at.version < 9 else at.constant(1).tolist()
        wanted = [math.floor(n * s) for n, s in zip(sizes, scales or [], strict=True)]
        mode, exact = at.option("mode"), True
    else:
        wanted, exact = _resized(at, sizes)
        mode = at.option("mode")
    if mode != "nearest" or not exact or any(w % n for w, n in zip(wanted, sizes, strict=True)):
        raise at.refuse(
            f"resizes an array of shape {sizes} to {wanted[:8]} by {mode!r:.40}; expected whole "
            f"multiples by 'nearest'"
        )
    at.room(wanted, x)

    def repeated(p: Array) -> Array:
        for axis, (w, n) in enumerate(zip(wanted, sizes, strict=True)):
            p = p.repeat(w // n, axis) if w != n else p
        return p

    return at.move(repeated, x)


def _resized(at: Step, sizes: Sequence[int]) -> tuple[list[int], bool]:
    """The sizes that a Resize makes, and whether each number is then repeated."""
    at.no_effect("roi", "cubic_coeff_a", "exclude_outside", "extrapolation_value", "antialias")
    if at.version < 11:
        return [math.floor(n * s) for n, s in zip(sizes, at.constant(1), strict=True)], True
    policy = at.option("keep_aspect_ratio_policy") if at.version >= 18 else "stretch"
    axes = at.option("axes") if at.version >= 18 else None
    places = range(len(sizes)) if axes is None else [at.axis(a, len(sizes)) for a in axes]
    wanted = list(sizes)
    by_size = at.has(3) and math.prod(shape_of(at.any(3))) > 0
    given = at.integers(3) if by_size else at.constant(2).reshape(-1).tolist()
    for place, n in zip(places, given, strict=True):
        wanted[place] = n if by_size else math.floor(sizes[place] * n)
    how, rounding = at.option("coordinate_transformation_mode"), at.option("nearest_mode")
    halves = how in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")
    near = halves and rounding in ("round_prefer_floor", "round_prefer_ceil")
    return wanted, policy == "stretch" and (near or (how == "asymmetric" and rounding == "floor"))


MOVEMENTS: Mapping[str, Callable[[Step], Any]] = {
    "Cast": cast,
    "CastLike": cast,
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Identity": identity,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "ReverseSequence": reverse_sequence,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
    "Upsample": resize,
}
