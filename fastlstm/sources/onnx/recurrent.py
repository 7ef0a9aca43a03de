"""ONNX's LSTM, GRU and RNN operators, in all their versions.

Their gates are stacked in the orders i o f c and z r h, and their biases one behind the other; the
functions of gates and their parameters are lists that are consumed in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.sources.arrays import Value
from fastlstm.sources.onnx.step import Lengths, Step
from fastlstm.sources.onnx.tensors import Array

__all__ = ["recurrent"]

# Of each operator: the order of its gates, the functions of a direction, and how often biases are
# kept for all gates.
LENGTHS = 4  # by number, the input of them
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


def recurrent(at: Step) -> list[Any]:
    """Y, Y_h and, of an LSTM, Y_c."""
    op = at.node.op
    direction = at.option("direction").lower()
    if op == "GRU" and at.version < 3 and direction == "foward":  # the default of the first version
        direction = "forward"
    if direction not in ("forward", "reverse", "bidirectional"):
        raise at.refuse(
            f"has the direction {direction!r:.40}; expected 'forward', 'reverse' or 'bidirectional'"
        )
    directions = 1 + (direction == "bidirectional")
    batch_first = at.version >= 14 and at.flag("layout")
    if at.version < 7 and not at.flag("output_sequence") and at.gives(0):
        raise at.refuse("gives a sequence that output_sequence=0 leaves out; expected 1 there")
    x = at.value(0)
    if x.ndim != 3:
        raise at.refuse(f"is given an array of shape {x.shape}; expected three axes")
    H = _hidden_size(at)
    functions = _functions(at, directions)
    clip = float(at.option("clip") or 0.0)
    if clip < 0 or not math.isfinite(clip):
        raise at.refuse(f"has clip {clip}; expected a finite number of at least 0")
    coupled = op == "LSTM" and at.flag("input_forget")
    layers = [_weights(at, directions, H, coupled)]
    options: dict[str, Any] = {"reverse": direction == "reverse", "clip": clip}
    if op == "LSTM":
        options |= {"activations": functions, "coupled": coupled}
    elif op == "GRU":
        after = at.version >= 3 and at.flag("linear_before_reset")
        options |= {"activations": functions, "reset_after": after}
    else:
        reverse = functions[1] if directions == 2 else ""
        options |= {"nonlinearity": functions[0], "nonlinearity_reverse": reverse}
    _check_lengths(at, x.shape[1 if batch_first else 0])
    if batch_first:
        x = at.move(lambda p: p.swapaxes(0, 1), x)
    h_0 = _start(at, 5, batch_first)
    c_0 = _start(at, 6, batch_first) if op == "LSTM" else None
    y, *states = at.b.recurrent(op.lower(), x, layers, h_0, c_0, **options)
    shape = (*y.shape[:2], directions, H)
    order = (1, 0, 2, 3) if batch_first else (0, 2, 1, 3)
    made = [at.move(lambda p: p.reshape(shape).transpose(order), y)]
    for state in states:
        if state is not None and batch_first:
            state = at.move(lambda p: p.swapaxes(0, 1), state)
        made.append(state)
    return made


def _hidden_size(at: Step) -> int:
    R = at.weight(2, 3)
    H = at.option("hidden_size")
    H = int(R.shape[2]) if H is None else H
    if H < 1 or R.shape[2] != H:
        raise at.refuse(f"has hidden_size {H} and R of shape {R.shape}; expected (..., {H})")
    return H


def _weights(at: Step, D: int, H: int, coupled: bool) -> list[dict[str, Array]]:
    """W, R, B and P of each direction, of checked shapes, in the order of gates used here."""
    gates = GATES[at.node.op]
    G = len(gates)
    W = at.weight(1, 3)
    shapes = {"W": (D, G * H, W.shape[2]), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
    arrays: dict[str, Array] = {}
    for letter, index in (("W", 1), ("R", 2), ("B", 3), ("P", 7)):
        if index < 3 or (at.has(index) and (letter != "P" or at.node.op == "LSTM")):
            array = at.weight(index)
            if array.shape != shapes[letter] or 0 in array.shape:
                raise at.refuse(f"has {letter} of shape {array.shape}; expected {shapes[letter]}")
            arrays[letter] = array
    kinds: dict[str, type[spec.Recurrent]]
    kinds = {"LSTM": spec.LSTM, "GRU": spec.GRU, "RNN": spec.RNN}
    own = kinds[at.node.op].gates
    order = [gates.index(gate) for gate in own.replace("f" if coupled else " ", "")]
    # P holds i o f; here it is i f o, without f where that is coupled.
    names = {
        "weight_ih": ("W", order),
        "weight_hh": ("R", order),
        "bias_ih": ("B", order),
        "bias_hh": ("B", [G + n for n in order]),
        "weight_peephole": ("P", [0, 1] if coupled else [0, 2, 1]),
    }

    def blocks(array: Array, d: int, which: list[int]) -> Array:
        """Blocks of as many rows as there are units, in another order."""
        parts = array[d].reshape(-1, H, *array.shape[2:])
        return np.asarray(parts[which].reshape(-1, *array.shape[2:]))

    def ordered(letter: str, d: int, which: list[int]) -> Array:
        return at.b.derived(arrays[letter], f"{d} {which}", lambda a: blocks(a, d, which))

    return [
        {n: ordered(letter, d, which) for n, (letter, which) in names.items() if letter in arrays}
        for d in range(D)
    ]


def _functions(at: Step, directions: int) -> tuple[str, ...]:
    """The functions of all directions, each with the next of the parameters it takes."""
    default = FUNCTIONS[at.node.op] * directions
    # The default of an RNN's, in the operators' own description, is that of two directions.
    given = at.option("activations") if "activations" in at.node.attributes else None
    names = given or list(default)
    alphas = iter(at.option("activation_alpha") or [])
    betas = iter(at.option("activation_beta") or [])
    if len(names) != len(default):
        raise at.refuse(f"has {len(names)} activations; expected {len(default)}")
    made = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise at.refuse(
                f"has the activation {name!r:.80}; expected one of {', '.join(ACTIVATIONS)}"
            )
        function, defaults = ACTIVATIONS[name.lower()]
        pairs = zip((alphas, betas), defaults, strict=False)
        values = [next(numbers, default) for numbers, default in pairs]
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


def _start(at: Step, index: int, batch_first: bool) -> Any:
    if not at.has(index):
        return None
    start = at.any(index)
    if not isinstance(start, Value):
        start = at.weight(index, 3)
    return at.move(lambda p: p.swapaxes(0, 1), start) if batch_first else start


def _check_lengths(at: Step, steps: int) -> None:
    """An input of lengths, or a constant that says what is so without it."""
    given = at.inputs[4] if len(at.inputs) > 4 else None
    if given is None or isinstance(given, Lengths):
        return
    if isinstance(given, Value):
        raise at.refuse(
            f"reads lengths that are computed, {at.node.inputs[4]!r:.200}; expected an input"
        )
    if set(at.integers(4)) != {steps}:
        raise at.refuse(
            f"has the constant sequence_lens {at.integers(4)[:8]}, and {steps} steps; "
            f"expected as many for each row, or an input of lengths"
        )
