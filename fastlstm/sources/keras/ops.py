"""Operations of Keras 3 (``keras.ops``) among the calls of a model: arithmetic, slices, reductions.

The classes are those of keras/src/ops/numpy.py, nn.py and core.py. Their axes count the batch. They
hand no masks on; where a layer is called with a mask, it is they that compute it.
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
    Builder,
    Site,
    Value,
    WholeSequenceError,
    leading,
    shown,
)
from fastlstm.sources.keras.config import Entry, Functions, named_function
from fastlstm.sources.keras.joins import concatenated, same_order
from fastlstm.sources.keras.movement import reshaped_to

__all__ = ["OPS", "is_op"]

_BINARY = {
    **{"Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Divide": "divide"},
    **{"TrueDivide": "divide", "Maximum": "maximum", "Minimum": "minimum", "Power": "power"},
    **{"LogicalOr": "maximum", "LogicalAnd": "minimum", "Where": "where"},
}
_COMPARISONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Equal": ("equal", np.equal),
    "NotEqual": ("not_equal", np.not_equal),
    "Less": ("less", np.less),
    "LessEqual": ("less_equal", np.less_equal),
    "Greater": ("greater", np.greater),
    "GreaterEqual": ("greater_equal", np.greater_equal),
}
_UNARY: dict[str, Functions] = {
    **{name: (name.lower(),) for name in ("Exp", "Log", "Sqrt", "Square", "Sign", "Floor")},
    **{name: (name.lower(),) for name in ("Sin", "Cos", "Tanh", "Reciprocal", "Abs")},
    "Absolute": ("abs",),
    "Negative": ("affine(-1.0, 0.0)",),
    "Rsqrt": ("sqrt", "reciprocal"),
    "LogicalNot": ("affine(-1.0, 1.0)",),
    **dict.fromkeys(("StopGradient", "Copy", "Identity"), ()),
}
# Of keras/src/ops/nn.py, by the name of the activation that they are.
_NAMED = {
    **{name: name.lower() for name in ("Relu", "Relu6", "Sigmoid", "Softplus", "Softsign")},
    **{"Silu": "silu", "LogSigmoid": "log_sigmoid", "HardSigmoid": "hard_sigmoid"},
    **{"HardSilu": "hard_silu", "Selu": "selu", "TanhShrink": "tanh_shrink"},
    "HardTanh": "hard_tanh",
}
_REDUCTIONS = {"Sum": "sum", "Mean": "mean", "Max": "max", "Min": "min", "Any": "max", "All": "min"}


def is_op(entry: Entry) -> bool:
    """Whether a call is of an operation: some have the names of layers, which can be trained."""
    module = entry.module
    if not entry.version.startswith("3"):
        return False
    if module:
        return module.startswith("keras.src.ops.")
    return entry.class_name in OPS and "trainable" not in entry.config


def _values(model: Builder, site: Site, *names: str) -> list[Value]:
    """Its arguments, by place or by name, with constants for numbers."""
    given = [*site.arguments, *(site.named[name] for name in names if name in site.named)]
    return [_value(model, site, one) for one in given]


def _value(model: Builder, site: Site, given: Any) -> Value:
    if isinstance(given, Value):
        return given
    number = isinstance(given, int | float) and abs(given) < 1e300  # of a bool too
    if not number:
        raise ConvertError(f"{site.what} is called with {given!r:.80}; expected a tensor or number")
    return model.constant(f"{site.name}.number", np.array(given, np.float32))


def _binary(model: Builder, site: Site) -> Value:
    values = same_order(site, _values(model, site, "x2", "x3"))
    operation = _BINARY[site.entry.class_name]
    if len(values) != spec.OPERATIONS[operation]:
        raise ConvertError(
            f"{site.what} is called with {len(values)} values; expected "
            f"{spec.OPERATIONS[operation]}"
        )
    return model.arithmetic(site.name, operation, *values)


def _comparison(model: Builder, site: Site) -> Value:
    operation, compared = _COMPARISONS[site.entry.class_name]
    given = [*site.arguments, *site.named.values()]
    if len(given) == 2 and isinstance(given[0], Value) and type(given[1]) is int:
        value = given[0]
        if value.source in model.tokens:
            # Of tokens: as an embedding with a number for each.
            count, _ = model.tokens[value.source]
            table = compared(np.arange(count), given[1]).astype(np.float32).reshape(-1, 1)
            layer = spec.Embedding(model.unique(f"{site.name}.each"), count, 1)
            each = value.of_row(model.add(layer, value, weight=table), (*value.own, 1))
            return model.reshaped(site.name, each, value.own)
    values = same_order(site, _values(model, site, "x2"))
    if len(values) != 2:
        raise ConvertError(f"{site.what} is called with {len(values)} values; expected 2")
    return model.arithmetic(site.name, operation, *values)


def _unary(model: Builder, site: Site) -> Value:
    kind, options = site.entry.class_name, site.options
    value = site.value
    if kind in _UNARY:
        functions = _UNARY[kind]
    elif kind in _NAMED:
        functions = named_function(_NAMED[kind], site.what, model.version)
    elif kind == "LeakyRelu":
        functions = (f"leaky_relu({options.number('negative_slope')!r})",)
    elif kind in ("Elu", "Celu"):
        if (alpha := options.number("alpha", 1.0)) != 1 and kind == "Celu":
            raise options.refused("alpha", alpha, "1")
        functions = (f"elu({alpha!r})",)
    elif kind == "Gelu":
        functions = ("gelu_tanh" if options.flag("approximate", True) else "gelu",)
    elif kind == "Clip":
        functions = (f"clip({options.number('x_min')!r}, {options.number('x_max')!r})",)
    else:
        dtype = options.take("dtype", "")
        if not str(dtype).startswith("float"):
            raise options.refused("dtype", dtype, "one of floating-point numbers")
        functions = ()
    return model.activate(site.name, value, functions)


def _softmax(model: Builder, site: Site) -> Value:
    value = site.value
    (axis,) = _axes(site, value)
    if axis == _time(value):
        raise WholeSequenceError(f"{site.what} goes over the steps of a sequence; {FIXED}")
    log = site.entry.class_name != "Softmax"
    return value.but(model.add(spec.Softmax(model.unique(site.name), axis=axis, log=log), value))


def _time(value: Value) -> int | None:
    """The axis of time, counted from the last, if there is one."""
    return -len(value.axes) if value.timed else None


def _axis(site: Site, axis: object, ndim: int) -> int:
    """An axis that may count the batch, counted from the last of so many behind the batch."""
    at = axis - ndim - 1 if isinstance(axis, int) and axis >= 0 else axis
    if type(at) is not int or not -ndim <= at < 0:
        raise ConvertError(
            f"{site.what} goes over axis {axis!r:.80}; expected one of the {ndim} behind the batch"
        )
    return at


def _axes(site: Site, value: Value) -> tuple[int, ...]:
    axis = site.options.take("axis")
    listed = axis if isinstance(axis, list) else [axis]
    return tuple(_axis(site, one, len(value.axes)) for one in listed)


def _reduction(model: Builder, site: Site) -> Value:
    value, function = site.value, _REDUCTIONS[site.entry.class_name]
    axes, keep = set(_axes(site, value)), site.options.flag("keepdims", False)
    site.options.take("initial", None)
    time = _time(value)
    made = value
    if within := tuple(sorted(axes - {time})):
        name = model.unique(f"{site.name}.within" if time in axes else site.name)
        model.add(spec.Reduce(name, function, axes=within, keepdim=keep), value)
        n = len(value.own)
        own = tuple(
            1 if at - n in within else size
            for at, size in enumerate(value.own)
            if keep or at - n not in within
        )
        made = value.of_row(name, own)
    if time in axes:
        made = model.folded(site.name, function, made)
        if keep:
            made = model.reshaped(f"{site.name}.axes", made, (1, *made.own))
    return made


def _concatenate(model: Builder, site: Site) -> Value:
    values = _listed(model, site)
    return concatenated(model, site, values, _axis_of(site, values[0]))


def _listed(model: Builder, site: Site) -> list[Value]:
    given = site.arguments[0] if site.arguments else None
    if not isinstance(given, list) or not given:
        raise ConvertError(f"{site.what} is called with {given!r:.80}; expected a list of tensors")
    return same_order(site, [_value(model, site, one) for one in given])


def _axis_of(site: Site, value: Value, more: int = 0) -> int:
    return _axis(site, site.options.take("axis", 0), len(value.axes) + more)


def _stack(model: Builder, site: Site) -> Value:
    values = _listed(model, site)
    axis = _axis_of(site, values[0], 1)
    first = leading(values)
    if first.timed and axis == -len(first.axes) - 1:
        raise WholeSequenceError(f"{site.what} puts whole sequences in a row; {FIXED}")
    if len({value.own for value in values}) > 1:
        raise ConvertError(f"{site.what} stacks rows of other axes; expected the same")
    name, row = model.moved(site.name, values, lambda *places: np.stack(places, axis=axis))
    return first.of_row(name, row)


def _reshape(model: Builder, site: Site) -> Value:
    target = site.options.take("newshape")
    if not isinstance(target, list) or len(target) < 2 or target[0] not in (-1, None):
        raise site.options.refused("newshape", target, "(-1, ...), the batch first")
    rest = [-1 if n is None else n for n in target[1:]]
    return reshaped_to(model, site, site.value, rest)


def _transpose(model: Builder, site: Site) -> Value:
    value, axes = site.value, site.options.take("axes")
    n = len(value.axes)
    whole = isinstance(axes, list) and all(type(axis) is int for axis in axes)
    if not whole or sorted(axes) != list(range(n + 1)) or axes[0] != 0:
        raise site.options.refused("axes", axes, f"those from 0 to {n}, the batch first")
    if value.timed and axes[1] != 1:
        raise WholeSequenceError(f"{site.what} moves the axis of the steps; {FIXED}")
    order = [axis - 2 for axis in axes[2:]] if value.timed else [axis - 1 for axis in axes[1:]]
    return model.transposed(site.name, value, order)


def _expand(model: Builder, site: Site) -> Value:
    value = site.value
    axis = _axis_of(site, value, 1)
    own = [*value.own]
    if value.timed and -axis > len(own) + 1:
        raise WholeSequenceError(f"{site.what} puts an axis before the steps; {FIXED}")
    own.insert(len(own) + 1 + axis, 1)
    return model.reshaped(site.name, value, own)


def _squeeze(model: Builder, site: Site) -> Value:
    value = site.value
    axes = _axes(site, value)
    if _time(value) in axes or any(value.own[axis] != 1 for axis in axes):
        raise WholeSequenceError(
            f"{site.what} takes axes {axes} out of {shown(value.axes)}; expected axes of size 1"
        )
    n = len(value.own)
    own = [size for at, size in enumerate(value.own) if at - n not in axes]
    return model.reshaped(site.name, value, own)


def _flip(model: Builder, site: Site) -> Value:
    value = site.value
    axes = _axes(site, value)
    if _time(value) in axes:
        value = value.but(value.name, backwards=not value.backwards)
    within = [axis for axis in axes if axis != _time(site.value)]
    for axis in within:
        name, row = model.moved(site.name, [value], lambda x, a=axis: np.flip(x, a))
        value = value.of_row(name, row)
    return value.but(value.name, mask=None)


def _like(model: Builder, site: Site) -> Value:
    """Zeros or ones of the axes of a tensor."""
    value, number = site.value, float(site.entry.class_name == "OnesLike")
    site.options.take("dtype", None)
    model.room(site.what, *value.row)
    made = model.constant(site.name, np.full(value.row, number, np.float32))
    return value.of_row(made.name, value.own, mask=None)


def _matmul(model: Builder, site: Site) -> Value:
    values = same_order(site, _values(model, site, "x2"))
    if len(values) != 2 or (values[1].timed and len(values[1].own) < 2) or not values[0].own:
        raise WholeSequenceError(f"{site.what} multiplies steps with each other; {FIXED}")
    name = model.add(spec.MatMul(model.unique(site.name)), *values)
    row = np.matmul(*(np.broadcast_to(np.int8(0), value.own) for value in values)).shape
    return leading(values).of_row(name, row, mask=None)


def _split(model: Builder, site: Site) -> tuple[Value, ...]:
    value = site.value
    (axis,) = _axes(site, value)
    if axis == _time(value):
        raise WholeSequenceError(f"{site.what} takes a sequence apart; {FIXED}")
    sections = site.options.take("indices_or_sections")
    size, places = value.own[axis], []
    if type(sections) is int and 1 <= sections <= 1024 and size % sections == 0:
        places = [n * size // sections for n in range(1, sections)]
    elif isinstance(sections, list) and all(type(n) is int and 0 < n < size for n in sections):
        places = sections
    else:
        raise site.options.refused("indices_or_sections", sections, f"places up to {size}")
    made = []
    for n, (start, end) in enumerate(zip([0, *places], [*places, size], strict=True)):
        name, row = model.moved(
            f"{site.name}.{n + 1}",
            [value],
            lambda x, s=start, e=end: x[(..., slice(s, e), *[slice(None)] * (-axis - 1))],
        )
        made.append(value.of_row(name, row, mask=None))
    return tuple(made)


def _get_item(model: Builder, site: Site) -> Value:
    value = site.inputs[0]
    key = site.arguments[1] if len(site.arguments) > 1 else site.named.get("key")
    parts = [_part(site, one) for one in (key if isinstance(key, list) else [key])]
    n = len(value.axes) + 1
    given = sum(1 for part in parts if part is not None and part is not ...)
    if given > n or parts.count(...) > 1:
        raise ConvertError(f"{site.what} takes {key!r:.80} of {n} axes")
    if ... in parts:
        at = parts.index(...)
        parts[at : at + 1] = [slice(None)] * (n - given)
    else:
        parts += [slice(None)] * (n - given)
    if parts[0] != slice(None):
        raise ConvertError(f"{site.what} takes some rows of the batch; expected all of them")
    parts = parts[1:]
    if value.timed:
        if parts[0] is None:
            raise WholeSequenceError(f"{site.what} puts an axis before the steps; {FIXED}")
        value = _steps(model, site, value, parts[0])
        parts = parts[1:]
    if all(part == slice(None) for part in parts):
        return value.but(value.name, mask=None, source=value.source)
    name, row = model.moved(site.name, [value], lambda x: x[tuple(parts)])
    return value.of_row(name, row, mask=None, source=value.source)


def _part(site: Site, part: Any) -> Any:
    kind = part.get("class_name") if isinstance(part, dict) else None
    if kind == "__ellipsis__":
        return ...
    if kind == "__slice__" and isinstance(config := part.get("config"), dict):
        ends = [config.get(end) for end in ("start", "stop", "step")]
        if all(end is None or type(end) is int for end in ends) and ends[2] != 0:
            return slice(*ends)
    elif part is None or type(part) is int:
        return part
    raise ConvertError(f"{site.what} takes {part!r:.80}; expected integers and slices")


def _steps(model: Builder, site: Site, value: Value, part: Any) -> Value:
    """One step of a sequence, or some of them."""
    if part == slice(None):
        return value
    if part == slice(None, None, -1):
        return value.but(value.name, backwards=not value.backwards)
    model.in_order(site, value)
    start, end, step, last = 0, 0, 1, ""
    if type(part) is int:
        start, end, last = (part, 0, "first") if part >= 0 else (0, -part - 1, "last")
    else:
        start, stop, step = part.start or 0, part.stop, part.step or 1
        if value.steps is not None:
            start, stop, _ = slice(start, stop).indices(value.steps)
            stop -= value.steps
            model.notes.append(
                f"{site.what} takes steps of sequences of {value.steps}, which the file tells: "
                f"this model is for those"
            )
        end = -(stop or 0)
    if min(start, end) < 0 or step < 1 or max(start, end, step) > 2**20:
        raise WholeSequenceError(f"{site.what} takes steps from the end of a sequence; {FIXED}")
    if start or end or step > 1:
        layer = spec.Slice(model.unique(f"{site.name}.steps"), start=start, end=end, step=step)
        steps = value.steps
        if steps is not None:
            steps = max(0, math.ceil((steps - start - end) / step))
        value = value.but(model.add(layer, value), steps=steps, mask=None)
    return model.folded(f"{site.name}.{last}", last, value) if last else value


OPS: dict[str, Callable[[Builder, Site], Value | tuple[Value, ...]]] = {
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_COMPARISONS, _comparison),
    **dict.fromkeys((*_UNARY, *_NAMED, "LeakyRelu", "Elu", "Celu", "Gelu", "Clip", "Cast"), _unary),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("ZerosLike", "OnesLike"), _like),
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "ExpandDims": _expand,
    "Squeeze": _squeeze,
    "Flip": _flip,
    "Matmul": _matmul,
    "Split": _split,
    "GetItem": _get_item,
}
