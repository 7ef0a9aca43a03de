"""Equations of the recurrent layers: along time and along the positions of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.reference.functions import Array, apply, clip, normalise
from fastlstm.reference.over_time import OverTime, State
from fastlstm.reference.products import Weights, times

__all__ = ["Recurrence", "along_positions"]

Cell = Callable[[Array, Array, Array, Weights], tuple[Array, Array]]
Stack = Callable[[spec.Recurrent, Weights, Array, Array | None, State], Array]


def lstm_cell(
    x: Array, h: Array, c: Array, w: Weights, layer: spec.LSTM, direction: int
) -> tuple[Array, Array]:
    """``torch.nn.LSTM``'s step and its variants: x (..., I), h (..., O), c (..., H) -> h, c."""
    of_gates, of_candidate, of_c = layer.functions(direction)
    from_x, from_h = times(x, w["weight_ih"]), times(h, w["weight_hh"])
    bias = w["bias_ih"] + w["bias_hh"]
    if layer.layer_norm == "product":
        eps = layer.layer_norm_eps
        from_x = normalise(from_x, eps) * w["weight_norm_ih"] + w["bias_norm_ih"]
        from_h = normalise(from_h, eps) * w["weight_norm_hh"] + w["bias_norm_hh"]
    names = "igo" if layer.coupled else "ifgo"
    n = len(names)
    z = dict(zip(names, np.split(from_x + from_h, n, axis=-1), strict=True))
    b = dict(zip(names, np.split(bias, n), strict=True))
    peep = names.replace("g", "") if layer.peepholes else ""
    p = dict(zip(peep, np.split(w["weight_peephole"], n - 1) if peep else [], strict=True))
    scale = np.split(w["weight_norm"], n) if layer.layer_norm == "gate" else [None] * n
    s = dict(zip(names, scale, strict=True))

    def gate(name: str, function: spec.Function, seen: Array) -> Array:
        total = z[name] + (p[name] * seen if name in p else 0)
        if layer.layer_norm == "gate":
            total = normalise(total, layer.layer_norm_eps) * s[name]
        return apply(function, clip(total + b[name], layer.clip))

    i, g = gate("i", of_gates, c), gate("g", of_candidate, c)
    f = 1 - i if layer.coupled else gate("f", of_gates, c)
    c = f * c + i * g
    if layer.layer_norm == "product":
        c = normalise(c, layer.layer_norm_eps) * w["weight_norm_c"] + w["bias_norm_c"]
    c = clip(c, layer.cell_clip)
    h = gate("o", of_gates, c) * apply(of_c, clip(c, layer.clip))
    return (times(h, w["weight_hr"]) if layer.projection else h), c


def gru_cell(
    x: Array, h: Array, c: Array, w: Weights, layer: spec.GRU, direction: int
) -> tuple[Array, Array]:
    """``torch.nn.GRU``'s step, or the form that resets before the product; c is passed through."""
    of_gates, of_candidate = layer.functions(direction)
    H = layer.hidden_size
    r_x, z_x, n_x = np.split(times(x, w["weight_ih"]) + w["bias_ih"], 3, axis=-1)
    r_h, z_h, n_h = np.split(times(h, w["weight_hh"]) + w["bias_hh"], 3, axis=-1)
    r = apply(of_gates, clip(r_x + r_h, layer.clip))
    z = apply(of_gates, clip(z_x + z_h, layer.clip))
    if not layer.reset_after:
        n_h = (times(r * h, w["weight_hh"]) + w["bias_hh"])[..., 2 * H :]
    n = apply(of_candidate, clip(n_x + (r * n_h if layer.reset_after else n_h), layer.clip))
    return (1 - z) * n + z * h, c


def rnn_cell(
    x: Array, h: Array, c: Array, w: Weights, layer: spec.RNN, direction: int
) -> tuple[Array, Array]:
    """``torch.nn.RNN``'s step; c is passed through."""
    (function,) = layer.functions(direction)
    before = times(x, w["weight_ih"]) + times(h, w["weight_hh"]) + w["bias_ih"] + w["bias_hh"]
    return apply(function, clip(before, layer.clip)), c


def _cell(layer: spec.Recurrent, direction: int) -> Cell:
    cells: dict[type[spec.Recurrent], Callable[..., tuple[Array, Array]]]
    cells = {spec.LSTM: lstm_cell, spec.GRU: gru_cell, spec.RNN: rnn_cell}
    return functools.partial(cells[type(layer)], layer=layer, direction=direction)


def _cell_weights(layer: spec.Recurrent, w: Weights, suffix: str, dtype: Any) -> Weights:
    """One layer and direction's tensors without its suffix, absent biases as zeros."""
    found = {
        name.removesuffix(suffix): tensor for name, tensor in w.items() if name.endswith(suffix)
    }
    no_bias = np.zeros(layer.gate_count * layer.hidden_size, dtype)
    return {"bias_ih": no_bias, "bias_hh": no_bias} | found


def stack(layer: spec.Recurrent, w: Weights, x: Array, mask: Array | None, state: State) -> Array:
    """A stack along the first axis of x.

    Parameters
    ----------
    x : array (S, ..., I)
    mask : array (S, ..., 1), optional
        Where it is 0, a layer with `hold` holds what it has.
    state : dict of array (N * D, ..., size)
        h, of an LSTM c, with `hold` the last output y; advanced.

    Returns
    -------
    y : array (S, ..., D * O); with `cell_output`, c of each direction stands behind
    """
    cells: list[Array] = []  # c of each direction of the last layer, after each step
    sizes = layer.sizes()
    for n in range(layer.num_layers):
        outputs = []
        for direction in range(layer.directions):
            depth = n * layer.directions + direction
            cell, cw = _cell(layer, direction), _cell_weights(layer, w, sizes[depth][0], x.dtype)
            h, c = state["h"][depth], state.get("c", state["h"])[depth]
            last = state["y"][depth] if layer.hold else h
            y = np.empty((*x.shape[:-1], layer.h_size), dtype=x.dtype)
            seen = np.empty((*x.shape[:-1], layer.hidden_size), dtype=x.dtype)
            for t in range(len(x))[:: -1 if direction or layer.reverse else 1]:
                new_h, new_c = cell(x[t], h, c, cw)
                if mask is None:
                    h, c, last = new_h, new_c, new_h
                else:
                    counts = mask[t] != 0
                    h, c = np.where(counts, new_h, h), np.where(counts, new_c, c)
                    last = np.where(counts, new_h, last)
                y[t] = last
                seen[t] = c if layer.has_cell_state else 0
            outputs.append(y)
            cells = [*cells, seen][-layer.directions :]
            state["h"][depth] = h
            if layer.has_cell_state:
                state["c"][depth] = c
            if layer.hold:
                state["y"][depth] = last
        x = np.concatenate(outputs, axis=-1)
    if isinstance(layer, spec.LSTM) and layer.cell_output:
        x = np.concatenate([x, *cells], axis=-1)
    return x


class Recurrence(OverTime):
    """A recurrent layer along time; positions of a step are as good as rows of a batch."""

    layer: spec.Recurrent
    stack = staticmethod(stack)

    def start(self, B: int, given: Sequence[Array]) -> State:
        state = super().start(B, given)
        for suffix, value in zip(state, given, strict=False):
            # (B, N * D, ...) as (N * D, B, ...)
            state[suffix][...] = (
                value[0].reshape(B, *np.delete(state[suffix].shape, 1)).swapaxes(0, 1)
            )
        for suffix, tensor in self.layer.initial().items():
            learned = self.w[tensor]
            middle = (1,) * (state[suffix].ndim - 2)
            state[suffix][...] = learned.reshape(len(learned), *middle, -1)
        return state

    def run(self, state: State, *xs: Array) -> Array:
        x, mask = xs[0], xs[1] if self.layer.hold else None
        if mask is not None and mask.ndim < x.ndim:
            mask = mask.reshape(*mask.shape[:2], *(1,) * (x.ndim - 3), 1)
        return self.stack(self.layer, self.w, x, mask, state)


def along_positions(layer: spec.Recurrent, w: Weights, *xs: Array, stack: Stack = stack) -> Array:
    """A recurrent layer along the last axis before the features, anew in each step."""
    steps = np.broadcast_shapes(*(x.shape[:2] for x in xs))  # a value that is held has one
    x, *rest = (np.broadcast_to(x, (*steps, *x.shape[2:])) for x in xs)
    S = x.shape[-2]
    moved = np.moveaxis(x, -2, 0)  # (S, T, B, ..., I)
    mask = None
    if layer.hold:
        mask = rest.pop(0)
        if mask.ndim < x.ndim:
            mask = mask.reshape(*mask.shape[:2], *(1,) * (x.ndim - 3), 1)
        mask = np.moveaxis(np.broadcast_to(mask, (*x.shape[:-1], 1)), -2, 0)
    sizes = {"h": layer.h_size} | ({"c": layer.hidden_size} if layer.has_cell_state else {})
    sizes |= {"y": layer.h_size} if layer.hold else {}
    state = {}
    for suffix, size in sizes.items():
        value = np.zeros((layer.depth, *moved.shape[1:-1], size), x.dtype)
        if suffix != "y" and layer.initial_state == "learned":
            learned = w[f"{suffix}_0"]
            value[...] = learned.reshape(len(learned), *(1,) * (value.ndim - 2), -1)
        if suffix != "y" and layer.initial_state == "given":
            given = rest.pop(0)  # (T, B, N * D, ..., size)
            given = given.reshape(*given.shape[:2], layer.depth, *value.shape[3:])
            value[...] = np.moveaxis(given, 2, 0)
        state[suffix] = value
    y = stack(layer, w, moved, mask, state) if S else moved
    return np.moveaxis(y, 0, -2)
