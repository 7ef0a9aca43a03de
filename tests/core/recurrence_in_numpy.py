"""One layer and direction of a recurrence, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rows_in_numpy import function

from fastlstm.plan import operations as op
from fastlstm.reference.functions import clip, normalise

__all__ = ["recurrent"]

Array = Any
Call = Any  # of program_in_numpy


class Weights:
    """The matrices and vectors of a recurrence, by the names of their fields."""

    def __init__(self, call: Call, r: op.Recurrent) -> None:
        for name, kind in zip(r._fields, op.field_types(op.Recurrent), strict=True):
            if kind in ("matrix", "vector"):
                setattr(self, name, getattr(call.of, kind)(getattr(r, name)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # a type checker takes the others from here


def recurrent(call: Call, r: op.Recurrent) -> None:
    w = Weights(call, r)
    T, B, P, S = call.rows_now(r.y), len(call.state), r.positions, r.steps

    def steps_first(x: Array) -> Array:
        """(T, B, P * S * n) as (steps, all else, n): steps of time, or S of each row."""
        x = np.broadcast_to(x, (T, B, x.shape[-1])).reshape(T, B, P, S, x.shape[-1] // (P * S))
        return np.moveaxis(x, 3, 0) if r.along_positions else x[:, :, :, 0]

    x, mask = steps_first(call.get(r.x)), None
    if r.mask >= 0:
        given = call.get(r.mask)
        whole = np.broadcast_to(given, (*given.shape[:2], P * S))
        mask = steps_first(whole) != 0
    from_x = products_of_x(r, w, x)
    beside = from_x.shape[1:-1]  # of a state: (B, P), or (T, B, P)
    h, c, last = (
        initial(call, beside, size, *where)
        for size, *where in (
            (r.h_size, r.h, r.start_h, w.h_0),
            (r.hidden_size, r.c, r.start_c, w.c_0),
            (r.h_size, r.held, op.NONE, None),
        )
    )
    hs, cs = (np.empty((len(from_x), *x.shape), from_x.dtype) for x in (h, c))
    for t in range(len(from_x))[:: -1 if r.reverse else 1]:
        new_h, new_c = CELLS[r.cell](r, w, from_x[t], h, c)
        if mask is None:
            h, c, last = new_h, new_c, new_h
        else:
            h, c = np.where(mask[t], new_h, h), np.where(mask[t], new_c, c)
            last = np.where(mask[t], new_h, last)
        hs[t], cs[t] = last, c
    for offset, value in ((r.h, h), (r.c, c), (r.held, last)):
        if offset >= 0:
            call.state[:, offset : offset + P * value.shape[-1]] = value.reshape(B, -1)
    y = call.written_in_part(r.y).reshape(T, B, P, S, r.width)
    for column, made in ((r.h_column, hs), (r.c_column, cs)):
        if column >= 0:
            made = np.moveaxis(made, 0, 3) if r.along_positions else made[..., None, :]
            y[..., column : column + made.shape[-1]] = made
    call.put(r.y, y)


def products_of_x(r: op.Recurrent, w: Weights, x: Array) -> Array:
    """(..., G * hidden_size), with the biases unless a norm comes first."""
    if np.issubdtype(x.dtype, np.integer):
        rows = w.input.T if w.table is None else w.table
        x = x[..., 0]
        x = rows[np.where((x >= 0) & (x < len(rows)), x, 0)]
        y = x if w.table is None else x @ w.input.T
    else:
        y = x @ w.input.T
    return y if w.bias is None or r.norm != "none" else w.bias + y


def initial(call: Call, beside: Any, size: int, offset: int, value: int, vector: Array) -> Array:
    """A state (*beside, size) as a recurrence begins: of the stream, or as it is given."""
    if offset >= 0:
        return call.state[:, offset : offset + beside[-1] * size].reshape(*beside, size)
    if value >= 0:
        given = call.get(value)
        return np.broadcast_to(
            given.reshape(*given.shape[:2], beside[-1], size), (*beside, size)
        ).copy()
    made = call.of.arrays.zeros((*beside, size), call.of.dtype)
    return made if vector is None else made + vector


def lstm(r: op.Recurrent, w: Weights, from_x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    from_h = h @ w.hidden.T
    if r.norm == "product":
        from_x = normalise(from_x, r.eps) * w.norm_x_weight + w.norm_x_bias
        from_h = normalise(from_h, r.eps) * w.norm_h_weight + w.norm_h_bias
    names = "igo" if r.coupled else "ifgo"

    def of_gates(vector: Array, names: str) -> dict[str, Array]:
        parts = np.split(vector, len(names), axis=-1) if vector is not None else [0] * len(names)
        return dict(zip(names, parts, strict=True))

    z, peephole = of_gates(from_x + from_h, names), of_gates(w.peepholes, names.replace("g", ""))
    scale = of_gates(w.norm_x_weight if r.norm == "gate" else None, names)
    bias = of_gates(None if r.norm == "none" else w.bias, names)

    def gate(name: str, f: Any, seen: Array) -> Array:
        total = z[name] + peephole.get(name, 0) * seen
        if r.norm == "gate":
            total = normalise(total, r.eps) * scale[name]
        return function(f, clip(total + bias[name], r.clip))

    i, g = gate("i", r.function_0, c), gate("g", r.function_1, c)
    f = 1 - i if r.coupled else gate("f", r.function_0, c)
    c = f * c + i * g
    if r.norm == "product":
        c = normalise(c, r.eps) * w.norm_c_weight + w.norm_c_bias
    c = clip(c, r.cell_clip)
    h = gate("o", r.function_0, c) * function(r.function_2, clip(c, r.clip))
    return (h if w.projection is None else h @ w.projection.T), c


def gru(r: op.Recurrent, w: Weights, from_x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    h_bias = 0 if w.h_bias is None else w.h_bias
    r_x, z_x, n_x = np.split(from_x, 3, axis=-1)
    r_h, z_h, n_h = np.split(h @ w.hidden.T, 3, axis=-1)
    reset = function(r.function_0, clip(r_x + r_h, r.clip))
    update = function(r.function_0, clip(z_x + z_h, r.clip))
    if r.reset_after:
        n_h = reset * (h_bias + n_h)
    else:
        n_h = h_bias + (reset * h) @ w.hidden[2 * r.hidden_size :].T
    n = function(r.function_1, clip(n_x + n_h, r.clip))
    return (1 - update) * n + update * h, c


def rnn(r: op.Recurrent, w: Weights, from_x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    return function(r.function_0, clip(from_x + h @ w.hidden.T, r.clip)), c


CELLS: dict[str, Callable[..., tuple[Array, Array]]] = {"lstm": lstm, "gru": gru, "rnn": rnn}
