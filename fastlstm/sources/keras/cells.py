"""The cells of recurrent layers of Keras, in our conventions.

Kernels are (inputs, gates * units), with the gates in the order i f c o (LSTM) and z r h (GRU), and
h' = z h + (1 - z) n (keras/src/layers/rnn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import Array, Axes, Builder, shown, take
from fastlstm.sources.keras.config import Both, Entry, Options
from fastlstm.sources.keras.cudnn import is_cudnn, of_cudnn
from fastlstm.sources.keras.file import Weights

__all__ = ["CELLS", "Cell", "cell_of", "cells_of"]

CELLS = ("LSTMCell", "GRUCell", "SimpleRNNCell")

# The gates of ours, in our order, by their place in Keras's.
_GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}


@dataclass(frozen=True)
class Cell:
    """A cell in our conventions; tensors by suffix, without ``_l0``."""

    kind: str
    units: int
    options: dict[str, Any]
    functions: tuple[str, ...]
    tensors: dict[str, Array]

    @property
    def states(self) -> int:
        return 1 + (self.kind == "LSTM")


def _cell(
    model: Builder, what: str, kind: str, options: Options, weights: Weights, size: int
) -> Cell:
    name = kind.removeprefix("CuDNN")
    order, units = _GATES[name], options.size("units")
    rows = len(order) * units
    cudnn = name != kind
    bias = cudnn or options.flag("use_bias")
    # Keras 2.1.2 and older have no such option.
    reset_after = name == "GRU" and (cudnn or options.flag("reset_after", False))
    shapes: dict[str, Axes | None]
    shapes = {"kernel": (size, rows), "recurrent_kernel": (units, rows)}
    arrays = take(what, weights, shapes | ({"bias": None} if bias else {}))
    if bias:
        if is_cudnn(arrays["bias"].shape, rows):
            reset_after = name == "GRU"
            arrays = of_cudnn(arrays, len(order), reset_after)
            model.notes.append(
                f"{what} holds its weights as CuDNN has them: its kernels were transposed gate by "
                f"gate, and its two biases {'taken apart' if reset_after else 'added'}"
            )
        expected = (2, rows) if reset_after else (rows,)
        if arrays["bias"].shape != expected:
            raise ConvertError(
                f"weight 'bias' of {what} has shape {arrays['bias'].shape}; expected "
                f"{shown(expected)}"
            )

    def ordered(array: Array) -> Array:
        """(n, rows), or (rows,) for n = 1 -> (rows, n) with the gates in our order."""
        by_gate = np.split(np.atleast_2d(array).T, len(order))
        made = np.empty((rows, by_gate[0].shape[1]), array.dtype)
        return np.concatenate([by_gate[gate] for gate in order], out=made)

    # Taken out of `arrays`, so that not two copies of every weight are held.
    tensors = {
        "weight_ih": ordered(arrays.pop("kernel")),
        "weight_hh": ordered(arrays.pop("recurrent_kernel")),
    }
    if bias:
        both = ordered(arrays["bias"]).T
        tensors["bias_ih"] = both[0]
        tensors["bias_hh"] = both[1] if reset_after else np.zeros_like(both[0])
    if cudnn:
        functions: tuple[str, ...] = ("sigmoid", "tanh", "tanh")[: len(order) - 1]
    else:
        functions = _functions(what, name, options)
    extra = {"reset_after": reset_after} if name == "GRU" else {}
    return Cell(name, units, {"bias": bias} | extra, functions, tensors)


def _functions(what: str, kind: str, options: Options) -> tuple[str, ...]:
    """Of the gates, of the candidate, of c: as many as the cell has."""
    candidate = _single(what, options, "activation")
    if kind == "SimpleRNN":
        return (candidate,)
    of_gates = _single(what, options, "recurrent_activation")
    return (of_gates, candidate, candidate)[: 3 if kind == "LSTM" else 2]


def _single(what: str, options: Options, key: str) -> str:
    functions = options.activation(key)
    if not functions:
        return "affine(1.0, 0.0)"
    first, *more = functions
    if more or isinstance(first, Both) or first.endswith("softmax"):
        names = ", then ".join(f if isinstance(f, str) else f.operation for f in functions)
        raise ConvertError(
            f"{what}: {key} is {names}; expected one function of a single number within a cell"
        )
    return first


def cell_of(model: Builder, entry: Entry, options: Options, weights: Weights, size: int) -> Cell:
    """One of `CELLS`, whose input has so many features."""
    return _cell(model, entry.what, entry.class_name.removesuffix("Cell"), options, weights, size)


def cells_of(
    model: Builder, entry: Entry, options: Options, weights: Weights, size: int
) -> list[Cell]:
    """The cells of a layer, each of which reads what the one before gives.

    Raises
    ------
    ConvertError
        If one is of another kind, or its weights or options do not fit.
    """
    if entry.class_name != "RNN":
        return [_cell(model, entry.what, entry.class_name, options, weights.inside("cell"), size)]
    cell, place = Entry(options.take("cell"), entry.version), weights.inside("cell")
    cell.refuse_foreign()
    own = cell.options()
    listed, places = [cell], [place]
    if cell.class_name == "StackedRNNCells":
        given = own.take("cells")
        if not isinstance(given, list) or not given:
            raise own.refused("cells", given, "a list of cells")
        own.finish()
        listed = [Entry(one, entry.version) for one in given]
        places = place.parts([(one.class_name, one.name) for one in listed], "cells")
    cells = []
    for one, where in zip(listed, places, strict=True):
        one.refuse_foreign()
        if one.class_name not in CELLS:
            raise ConvertError(
                f"{entry.what} has the cell {one.what}; expected {', '.join(CELLS)} or "
                f"StackedRNNCells"
            )
        own = one.options()
        cells.append(cell_of(model, one, own, where, size))
        own.finish()
        size = cells[-1].units
    return cells
