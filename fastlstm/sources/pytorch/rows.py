"""Functions of a row, values that meet, movement within a row, and time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.kinds import OPERATIONS
from fastlstm.sources.pytorch.making import MAX_ROW, Making, MisfitError, Value
from fastlstm.sources.pytorch.state_dict import Tensor

__all__ = ["JOINING", "MAKERS"]


def _function(m: Making) -> Value:
    inside = ", ".join(repr(float(value)) for value in m.settings().values())
    text = f"{m.word.kind}({inside})" if inside else m.word.kind
    return m.add(spec.Activation(m.name, text), m.value)


def _softmax(m: Making) -> Value:
    axis = m.axis(m.settings()["dim"])
    return m.add(spec.Softmax(m.name, axis=axis, log=m.word.kind == "log_softmax"), m.value)


def _glu(m: Making) -> Value:
    axis = m.axis(m.settings()["dim"])
    if m.shape[axis] % 2:
        raise MisfitError(f"it halves axis {axis}, and is given {m.value.row}")
    halves = np.split(m.places(), 2, axis)
    first, second = (
        m.index(f"{m.name}/{name}", half, m.value)
        for name, half in zip(("first", "second"), halves, strict=True)
    )
    gate = m.add(spec.Activation(f"{m.name}/gate", "sigmoid"), second)
    return m.add(spec.Arithmetic(m.name, "multiply"), first, gate)


def _reduce(m: Making) -> Value:
    said = m.settings()
    dims = said["dim"] if isinstance(said["dim"], tuple) else (said["dim"],)
    axes = tuple(m.axis(dim) for dim in dims)
    return m.add(spec.Reduce(m.name, said["function"], axes=axes, keepdim=said["keepdim"]), m.value)


# --- values that meet


def _operation(m: Making) -> Value:
    if len(m.values) > 1:
        if m.word.given or m.word.path is not None:
            raise ConvertError(
                f"layers= has {str(m.word)!r:.100} behind {len(m.values)} branches; expected "
                f"{m.word.kind} alone, which joins them"
            )
        if len(m.values) > 2 and m.word.kind not in ("add", "multiply", "minimum", "maximum"):
            raise ConvertError(
                f"layers= has {m.word.kind} behind {len(m.values)} branches; expected two"
            )
        total = m.values[0]
        for number, value in enumerate(m.values[1:], 2):
            name = m.name if number == len(m.values) else f"{m.name}/{number}"
            total = m.add(spec.Arithmetic(name, m.word.kind), total, value)
        return total
    tensor = m.weights.tensor
    if tensor is not None:
        other = m.constant(f"{m.name}/{tensor.name}"[:255], tensor, _fitted(m, tensor))
    elif m.word.given:
        other = m.constant(f"{m.name}/value", dict(m.word.given)["value"], (1,) * bool(m.shape))
    else:
        raise ConvertError(
            f"layers= has {m.word.kind}, which does not say by what; expected a number, "
            f"{m.word.kind}(2.0), a tensor of the source, {m.word.kind}:name, or branches before "
            f"it, '[lstm | identity], {m.word.kind}'"
        )
    return m.add(spec.Arithmetic(m.name, m.word.kind), m.value, other)


def _fitted(m: Making, tensor: Tensor) -> tuple[int, ...]:
    """The axes of a tensor within a row: without those of batch and time, which are 1."""
    shape, n = tensor.shape, len(m.shape)
    while len(shape) > n and shape[0] == 1:
        shape = shape[1:]
    while len(shape) > n and shape[-1] == 1:  # time last, as before a kernel over time
        shape = shape[:-1]
    ends = m.shape[n - len(shape) :] if len(shape) <= n else ()
    if len(shape) > n or any(a not in (1, b) for a, b in zip(shape, ends, strict=True)):
        raise MisfitError(
            f"tensor {tensor.name!r:.200} has shape {tensor.shape}, and each step here is "
            f"{m.value.row}"
        )
    return shape


def _constant(m: Making) -> Value:
    tensor = m.weights.tensor
    if tensor is None:
        raise ConvertError("layers= has constant, which does not say which; expected constant:name")
    return m.constant(m.name, tensor, tensor.shape)


def _where(m: Making) -> Value:
    if len(m.values) != 3:
        raise ConvertError("layers= has where; expected three branches before it")
    return m.add(spec.Arithmetic(m.name, "where"), *m.values)


def _two(m: Making) -> Value:
    if len(m.values) != 2:
        raise ConvertError(f"layers= has {m.word.kind}; expected two branches before it")
    if m.word.kind == "attention":
        layer: spec.Layer = spec.Attention(m.name, **m.settings())
    else:
        layer = spec.MatMul(m.name, **m.settings())
    return m.add(layer, *m.values)


def _concatenate(m: Making) -> Value:
    if len(m.values) < 2:
        raise ConvertError(
            "layers= has concatenate; expected branches before it, '[lstm | identity], concatenate'"
        )
    axis, begin, parts = m.axis(m.settings()["dim"]), 0, []
    for value in m.values:
        size = value.row.size
        if begin + size > MAX_ROW:
            raise MisfitError(f"it makes rows of more than {MAX_ROW} numbers")
        parts.append(np.arange(begin, begin + size).reshape(value.row.shape))
        begin += size
    return m.index(m.name, np.concatenate(parts, axis), *m.values)


# --- movement within a step


def _flatten(m: Making) -> Value:
    return m.value if len(m.shape) == 1 else m.index(m.name, m.places().ravel(), m.value)


def _moved(m: Making) -> Value:
    places, said = m.places(), m.settings()
    match m.word.kind:
        case "reshape":
            places = places.reshape(said["*sizes"])
        case "permute":
            if sorted(said["*axes"]) != list(range(len(m.shape))):
                raise MisfitError(
                    f"it puts axes {list(said['*axes'])} in order, and is given {m.value.row}"
                )
            places = places.transpose(said["*axes"])
        case "flip":
            places = places[..., ::-1]
        case "features":
            places = places[..., said["start"] : said["stop"]]
            if not places.size:
                raise MisfitError(f"it takes no number of {m.value.row}")
    return m.index(m.name, places, m.value)


def _pad(m: Making) -> Value:
    said = m.settings()
    modes: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    ends = (said["before"], said["behind"])
    if isinstance(said["dim"], tuple) or said["mode"] not in ("constant", *modes) or min(ends) < 0:
        raise ConvertError(
            f"layers= has {str(m.word)!r:.100}; expected numbers from 0, one dim, and mode "
            f"constant, {', '.join(modes)}"
        )
    axis = m.axis(said["dim"])
    size = m.shape[axis]
    if m.value.row.size // size * (size + sum(ends)) > MAX_ROW:
        raise MisfitError(f"it makes rows of more than {MAX_ROW} numbers")
    most = {"reflect": size - 1, "circular": size}.get(said["mode"], MAX_ROW)
    if max(ends) > most:
        raise MisfitError(f"it pads by {ends}, and is given {m.value.row}")
    width = [(0, 0)] * len(m.shape)
    width[axis] = ends
    if said["mode"] == "constant":
        places = np.pad(m.places(), width, constant_values=spec.FILL)
        return m.index(m.name, places, m.value, fill=said["value"])
    return m.index(m.name, np.pad(m.places(), width, mode=modes[said["mode"]]), m.value)


# --- time


def _fold(m: Making) -> Value:
    return m.add(spec.Fold(m.name, m.word.kind, **m.settings()), m.value)


def _final(m: Making) -> Value:
    if not m.shape or m.shape[-1] % 2:
        raise MisfitError(f"it takes both directions beside each other, and is given {m.value.row}")
    ends = [m.add(spec.Fold(f"{m.name}/{end}", end), m.value) for end in ("last", "first")]
    half, places = m.shape[-1] // 2, m.places()
    behind = places[..., half:] + places.size
    return m.index(m.name, np.concatenate([places[..., :half], behind], -1), *ends)


def _of_time(m: Making) -> Value:
    said = m.settings()
    layer: spec.Layer
    match m.word.kind:
        case "delay":
            layer = spec.Delay(m.name, m.shape, said["steps"])
        case "window":
            plain = {n: said[n] for n in ("stride", "dilation", "padding")}
            layer = spec.Window(m.name, said["size"], **plain)
        case "steps":
            layer = spec.Slice(m.name, **said)
        case "repeat":
            layer = spec.Repeat(m.name, said["times"])
        case _:
            layer = spec.Spread(m.name, (*m.shape, 0)[0])
    return m.add(layer, m.value)


def _one_hot(m: Making) -> Value:
    if not m.value.row.tokens:
        raise MisfitError(f"it takes tokens, and is given {m.value.row}; it can only come first")
    return m.add(spec.OneHot(m.name, m.value.row.tokens), m.value)


def _nothing(m: Making) -> Value:
    return m.value


# Words that take several values.
JOINING: dict[str, Callable[[Making], Value]] = {
    **dict.fromkeys(OPERATIONS, _operation),
    "where": _where,
    "matmul": _two,
    "attention": _two,
    "concatenate": _concatenate,
}
MAKERS: dict[str, Callable[[Making], Value]] = {
    **dict.fromkeys(spec.PARAMETERS, _function),
    **JOINING,
    **dict.fromkeys(("first", "last", "sum", "mean", "max", "min"), _fold),
    **dict.fromkeys(("delay", "window", "steps", "repeat", "spread"), _of_time),
    **dict.fromkeys(("reshape", "permute", "flip", "features"), _moved),
    **dict.fromkeys(("dropout", "identity", "input"), _nothing),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    "glu": _glu,
    "reduce": _reduce,
    "constant": _constant,
    "flatten": _flatten,
    "pad": _pad,
    "final": _final,
    "one_hot": _one_hot,
}
