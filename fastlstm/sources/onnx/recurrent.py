"""ONNX's LSTM, GRU and RNN operators, in all their versions.

Their gates are stacked in the orders i o f c and z r h, and their biases one behind the other; the
functions of gates and their parameters are lists that are consumed in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm import chain as spec
from fastlstm.sources.line import Recurrence, Value
from fastlstm.sources.onnx.file import Array
from fastlstm.sources.onnx.step import Step

__all__ = ["recurrent"]

# Of each operator: the order of its gates, the functions of a direction, and how often biases are
# kept for all gates.
GATES = {"LSTM": "iofg", "GRU": "zrn", "RNN": "h"}
FUNCTIONS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}

# Name in ONNX, in lower case -> name here and, of alpha and beta, the defaults of the operator of
# that name; nan where there is no such operator any more.
ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "relu": ("relu", ()),
    "tanh": ("tanh", ()),
    "sigmoid": ("sigmoid", ()),
    "softsign": ("softsign", ()),
    "softplus": ("softplus", ()),
    "affine": ("affine", (math.nan, math.nan)),
    "leakyrelu": ("leaky_relu", (0.01,)),
    "thresholdedrelu": ("thresholded_relu", (1.0,)),
    "scaledtanh": ("scaled_tanh", (math.nan, math.nan)),
    "hardsigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "elu": ("elu", (1.0,)),
}


def recurrent(at: Step) -> list[Value | None]:
    """Y, Y_h and, of an LSTM, Y_c."""
    op = at.node.op
    direction = at.option("direction", "forward").lower()
    if op == "GRU" and at.version < 3 and direction == "foward":  # the default of the first version
        direction = "forward"
    if direction not in ("forward", "reverse", "bidirectional"):
        raise at.refuse(
            f"has the direction {direction!r:.40}; expected 'forward', 'reverse' or 'bidirectional'"
        )
    directions = 1 + (direction == "bidirectional")
    batch_first = at.flag("layout") if at.version >= 14 else False
    if at.version < 7 and not at.flag("output_sequence") and at.gives(0):
        raise at.refuse("gives a sequence that output_sequence=0 leaves out; expected 1 there")
    x = at.value(0)
    H = _hidden_size(at)
    functions = _functions(at, directions)
    clip = at.option("clip", 0.0)
    if clip < 0 or not math.isfinite(clip):
        raise at.refuse(f"has clip {clip}; expected a finite number of at least 0")
    coupled = op == "LSTM" and at.flag("input_forget")
    weights = _Weights(at, directions, H, coupled)
    options: dict[str, Any] = {
        "bias": weights.has_bias,
        "bidirectional": directions == 2,
        "reverse": direction == "reverse",
        "clip": clip,
    }
    sizes = (at.name, weights.input_size, H, 1)
    layer: spec.Recurrent
    if op == "LSTM":
        layer = spec.LSTM(
            *sizes, **options, activations=functions, peepholes=at.has(7), coupled=coupled
        )
    elif op == "GRU":
        after = at.flag("linear_before_reset") if at.version >= 3 else False
        layer = spec.GRU(*sizes, **options, activations=functions, reset_after=after)
    else:
        reverse = functions[1] if directions == 2 else ""
        layer = spec.RNN(*sizes, **options, nonlinearity=functions[0], nonlinearity_reverse=reverse)
    time_axis, batch_axis = (1, 0) if batch_first else (0, 1)
    made = at.line.recurrent(
        x,
        layer,
        weights.tensors(),
        time_axis=time_axis,
        batch_axis=batch_axis,
        name=at.name,
        h_0=_start(at, 5, batch_first),
        c_0=_start(at, 6, batch_first) if op == "LSTM" else None,
        lengths=_lengths(at, x, time_axis),
    )
    return _outputs(at, made, directions, H, batch_first)


def _hidden_size(at: Step) -> int:
    R = at.weight(2, 3)
    H = at.option("hidden_size", int(R.shape[2]))
    if H < 1 or R.shape[2] != H:
        raise at.refuse(f"has hidden_size {H} and R of shape {R.shape}; expected (..., {H})")
    return H


class _Weights:
    """W, R, B and P of both directions, of checked shapes, in the order of gates used here."""

    def __init__(self, at: Step, directions: int, H: int, coupled: bool) -> None:
        gates = GATES[at.node.op]
        G, D = len(gates), directions
        W = at.weight(1, 3)
        self.input_size = W.shape[2]
        self.has_bias = at.has(3)
        shapes = {"W": (D, G * H, self.input_size), "R": (D, G * H, H), "B": (D, 2 * G * H)}
        shapes |= {"P": (D, 3 * H)}
        self._arrays: dict[str, Array] = {}
        for letter, index in (("W", 1), ("R", 2), ("B", 3), ("P", 7)):
            if index < 3 or (at.has(index) and (letter != "P" or at.node.op == "LSTM")):
                array = at.weight(index)
                if array.shape != shapes[letter] or 0 in array.shape:
                    raise at.refuse(
                        f"has {letter} of shape {array.shape}; expected {shapes[letter]}"
                    )
                self._arrays[letter] = array
        cls: dict[str, type[spec.Recurrent]]
        cls = {"LSTM": spec.LSTM, "GRU": spec.GRU, "RNN": spec.RNN}
        kept = cls[at.node.op].gates.replace("f" if coupled else " ", "")
        self._order = [gates.index(gate) for gate in kept]
        # P holds i o f; here it is i f o, without f where that is coupled.
        self._peepholes = [0, 1] if coupled else [0, 2, 1]
        self._hidden_size = H

    def _rows(self, array: Array, blocks: list[int]) -> Array:
        """Blocks of as many rows as there are units, in another order."""
        parts = array.reshape(-1, self._hidden_size, *array.shape[1:])
        return parts[blocks].reshape(-1, *array.shape[1:])

    def tensors(self) -> dict[str, Array]:
        made = {}
        for d, suffix in zip(range(len(self._arrays["W"])), ("_l0", "_l0_reverse"), strict=False):
            made[f"weight_ih{suffix}"] = self._rows(self._arrays["W"][d], self._order)
            made[f"weight_hh{suffix}"] = self._rows(self._arrays["R"][d], self._order)
            if "B" in self._arrays:
                of_x, of_h = np.split(self._arrays["B"][d], 2)
                made[f"bias_ih{suffix}"] = self._rows(of_x, self._order)
                made[f"bias_hh{suffix}"] = self._rows(of_h, self._order)
            if "P" in self._arrays:
                made[f"weight_peephole{suffix}"] = self._rows(self._arrays["P"][d], self._peepholes)
        return made


def _functions(at: Step, directions: int) -> tuple[str, ...]:
    """The functions of all directions, each with the next of the parameters it takes."""
    default = FUNCTIONS[at.node.op] * directions
    names = at.options("activations", str) or list(default)
    alphas = iter(at.options("activation_alpha", float) or [])
    betas = iter(at.options("activation_beta", float) or [])
    if len(names) != len(default):
        raise at.refuse(f"has {len(names)} activations; expected {len(default)}")
    made = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise at.refuse(
                f"has the activation {name!r:.80}; expected one of {', '.join(ACTIVATIONS)}"
            )
        function, defaults = ACTIVATIONS[name.lower()]
        given = zip((alphas, betas), defaults, strict=False)
        values = [next(numbers, default) for numbers, default in given]
        if any(map(math.isnan, values)):
            raise at.refuse(
                f"has the activation {name!r:.80} without an alpha or beta, for which there is no "
                f"default; expected both"
            )
        made.append(f"{function}({', '.join(map(repr, values))})" if values else function)
    if (left := len([*alphas, *betas])) > 0:
        raise at.refuse(
            f"has {left} more numbers in activation_alpha and activation_beta than its activations "
            f"{', '.join(names)} take; expected as many"
        )
    return tuple(made)


def _start(at: Step, index: int, batch_first: bool) -> Value | None:
    if not at.has(index):
        return None
    start = at.either(index)
    return at.line.transpose(start, (1, 0, 2), at.name) if batch_first else start


def _lengths(at: Step, x: Value, time_axis: int) -> Value | None:
    """The input of lengths; a constant must say what is so without it."""
    if not at.has(4):
        return None
    given = at.known(4)
    if isinstance(given, Value):
        return given
    if set(at.integers(4)) != {x.shape[time_axis]}:
        raise at.refuse(
            f"has the constant sequence_lens {at.integers(4)[:8]}, and {x.shape[time_axis]} steps; "
            f"expected as many for each row, or an input of lengths"
        )
    return None


def _outputs(
    at: Step, made: Recurrence, directions: int, H: int, batch_first: bool
) -> list[Value | None]:
    line = at.line
    sizes = [made.output.size(axis) for axis in (0, 1)]
    y = line.reshape(made.output, [*sizes, directions, H], at.name)
    if not batch_first:
        y = line.transpose(y, (0, 2, 1, 3), at.name)
    states = [made.h_n, made.c_n]
    if batch_first:
        states = [state and line.transpose(state, (1, 0, 2), at.name) for state in states]
    return [y, *states]
