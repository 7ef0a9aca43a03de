"""Operations on rows, in NumPy: each row of what is made is of the same row of what is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.plan import operations as op
from fastlstm.reference.functions import apply, normalise
from fastlstm.reference.rows import OPERATIONS

Array = Any
Call = Any  # of program_in_numpy


def move(call: Call, m: op.Move) -> None:
    places = call.of.once(("runs", m.runs), lambda: _places(call.of.list(m.runs)))
    call.put(m.y, gather(call.side_by_side(m.reads), places, m.fill))


def _places(runs: Array) -> Array:
    return np.concatenate(
        [start + stride * np.arange(count) for start, stride, count in runs.reshape(-1, 3)]
    )


def gather(x: Array, places: Array, fill: float = 0) -> Array:
    """x (T, B, n) -> (T, B, *places' axes), with `fill` where a place is -1."""
    found = x[..., np.maximum(places, 0)]
    return np.where(places >= 0, found, x.dtype.type(fill)) if places.min() < 0 else found


def function(f: Any, x: Array) -> Array:
    return x if f.name == "identity" else apply(f, x)


def map_numbers(call: Call, m: op.Map) -> None:
    reads = call.of.program.lists[m.reads]
    strides = call.of.list(m.strides).reshape(len(reads), -1)
    grid = call.of.once(
        ("grid", m.shape), lambda: np.indices(call.of.list(m.shape)).reshape(strides.shape[1], -1)
    )
    begins = [0] * len(reads) if m.begins < 0 else call.of.list(m.begins)
    registers = [
        call.get(number)[..., begin + stride @ grid]
        for number, stride, begin in zip(reads, strides, begins, strict=True)
    ]
    code = call.of.once(("code", m.code), lambda: call.of.program.instructions(m.code))
    for f, *numbers in code:
        x = [registers[number] for number in numbers if number >= 0]
        y = OPERATIONS[f.name](*x) if f.name in OPERATIONS else function(f, *x)
        registers.append(y.astype(call.of.dtype))
    call.put(m.y, registers[-1])


def behind(call: Call, one: Any, y: Array) -> None:
    """function(scale (bias + y) + shift) of y (T, B, positions, groups * outputs)."""
    bias, scale, shift = (call.of.vector(number) for number in (one.bias, one.scale, one.shift))
    y = y if bias is None else bias + y
    y = y if scale is None else scale * y + shift
    call.put(one.y, function(one.function, y))


def product(call: Call, p: op.Product) -> None:
    matrices = [call.of.matrix(number) for number in call.of.list(p.matrices)]
    x, columns = call.side_by_side(p.reads), matrices[0].shape[1]
    if p.places < 0:
        seen = x.reshape(*x.shape[:2], p.positions, 1, columns)
    else:
        shape = (p.positions, len(matrices), columns // p.piece, 1)
        places = call.of.list(p.places).reshape(shape)
        places = np.where(places < 0, -1, places + np.arange(p.piece))
        seen = gather(x, places.reshape(p.positions, len(matrices), columns))
    y = np.stack([seen[..., g, :] @ matrix.T for g, matrix in enumerate(matrices)], axis=-2)
    behind(call, p, y.reshape(*y.shape[:3], len(matrices) * len(matrices[0])))


def taps(call: Call, p: op.Taps) -> None:
    x, weight = call.side_by_side(p.reads), call.of.matrix(p.weight)
    places = call.of.list(p.places).reshape(p.positions, len(weight), 1)
    places = np.where(places < 0, -1, places + np.arange(weight.shape[1]))
    behind(call, p, (gather(x, places) * weight).sum(axis=-2))


def matmul(call: Call, m: op.MatMul) -> None:
    places = call.of.list(m.places).reshape(-1, 2)

    def matrices(number: int, first: Array, rows: int, columns: int) -> Array:
        x = call.get(number)
        places = first[:, None] + np.arange(rows * columns)
        return x[..., places].reshape(*x.shape[:2], len(first), rows, columns)

    a = matrices(m.a, places[:, 0], m.n, m.k)
    call.put(m.y, a @ matrices(m.b, places[:, 1], m.k, m.p))


def over(call: Call, one: Any) -> Array:
    x = call.get(one.x)
    return x.reshape(*x.shape[:2], one.outer, one.n, getattr(one, "inner", 1))


def reduce(call: Call, r: op.Reduce) -> None:
    x = over(call, r)
    if r.reduction == "l2":
        # The largest number is taken out, so that no square overflows.
        largest = np.abs(x).max(axis=-2, keepdims=True)
        scale = np.where((largest > 0) & np.isfinite(largest), largest, 1).astype(x.dtype)
        y = scale[..., 0, :] * np.sqrt(np.square(x / scale).sum(axis=-2))
    else:
        y = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}[r.reduction](x, axis=-2)
    call.put(r.y, y)


def softmax(call: Call, s: op.Softmax) -> None:
    x = over(call, s)
    shifted = x - x.max(axis=-2, keepdims=True)
    total = np.exp(shifted).sum(axis=-2, keepdims=True)
    y = shifted - np.log(total) if s.log else np.exp(shifted) / total
    call.put(s.y, y)


def norm(call: Call, n: op.Norm) -> None:
    x = over(call, n)[..., 0]
    weight, bias = (
        None if w is None else w.reshape(-1, n.n)
        for w in (call.of.vector(n.weight), call.of.vector(n.bias))
    )
    if n.norm == "layer":
        y = normalise(x, n.eps)
    else:
        y = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + x.dtype.type(n.eps))
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    call.put(n.y, y)


def lookup(call: Call, look: op.Lookup) -> None:
    table, tokens = call.of.matrix(look.table), call.get(look.x)[..., call.of.list(look.places)]
    y = table[np.where((tokens >= 0) & (tokens < len(table)), tokens, 0)]
    call.put(look.y, y)


def one_hot(call: Call, one: op.OneHot) -> None:
    tokens = call.get(one.x)[..., call.of.list(one.places)]
    y = (tokens[..., None] == np.arange(one.classes)).astype(call.of.dtype)
    call.put(one.y, y)
