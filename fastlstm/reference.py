"""Every layer's equations in NumPy, in any float dtype: the specification in code.

This is the truth the kernels are tested against (in float64) and the self-check of a model file is
computed with. It is written to be read, one line an equation, not to be fast.

Shapes: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``O`` output of one direction (``H``, or
``proj_size``), ``D`` directions, ``N`` layers of a stack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec

__all__ = ["forward", "zero_state"]

Array = npt.NDArray[Any]


def sigmoid(x: Array) -> Array:
    # exp of a non-positive number cannot overflow, and keeps full relative precision on both sides.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def softmax(x: Array) -> Array:
    e: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Array = e / e.sum(axis=-1, keepdims=True)
    return y


def log_softmax(x: Array) -> Array:
    shifted: Array = x - x.max(axis=-1, keepdims=True)
    y: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return y


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "log_softmax": log_softmax,
}


def lstm_cell(x: Array, h: Array, c: Array, w: Mapping[str, Array]) -> tuple[Array, Array]:
    """``torch.nn.LSTM``'s step: x (B, I), h (B, O), c (B, H) -> new h, new c."""
    gates = x @ w["ih"].T + h @ w["hh"].T + w["b_ih"] + w["b_hh"]
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h @ w["hr"].T if "hr" in w else h), c


def gru_cell(x: Array, h: Array, c: Array, w: Mapping[str, Array]) -> tuple[Array, Array]:
    """``torch.nn.GRU``'s step; c is passed through."""
    r_x, z_x, n_x = np.split(x @ w["ih"].T + w["b_ih"], 3, axis=-1)
    r_h, z_h, n_h = np.split(h @ w["hh"].T + w["b_hh"], 3, axis=-1)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    n = np.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h, c


def rnn_cell(
    x: Array, h: Array, c: Array, w: Mapping[str, Array], nonlinearity: str
) -> tuple[Array, Array]:
    """``torch.nn.RNN``'s step; c is passed through."""
    before = x @ w["ih"].T + h @ w["hh"].T + w["b_ih"] + w["b_hh"]
    return ACTIVATIONS[nonlinearity](before), c


def _cell(layer: spec.Recurrent) -> Callable[..., tuple[Array, Array]]:
    if isinstance(layer, spec.LSTM):
        return lstm_cell
    if isinstance(layer, spec.GRU):
        return gru_cell
    if isinstance(layer, spec.RNN):
        return functools.partial(rnn_cell, nonlinearity=layer.nonlinearity)
    raise TypeError(f"no equations for {layer.kind}")


def _cell_weights(
    layer: spec.Recurrent, tensors: Mapping[str, Array], suffix: str
) -> dict[str, Array]:
    """One layer and direction's tensors under short names, absent biases as zeros."""
    names = {"ih": "weight_ih", "hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    if layer.projection:
        names["hr"] = "weight_hr"
    dtype = tensors[f"{layer.name}.weight_ih{suffix}"].dtype
    no_bias = np.zeros(len(layer.gates) * layer.hidden_size, dtype=dtype)
    return {
        short: tensors.get(f"{layer.name}.{long}{suffix}", no_bias) for short, long in names.items()
    }


def _recurrent(
    layer: spec.Recurrent, tensors: Mapping[str, Array], x: Array, state: dict[str, Array]
) -> Array:
    """A stack over a whole sequence: x (T, B, I) -> y (T, B, D * O); `state` is advanced."""
    cell = _cell(layer)
    h_all = state[f"{layer.name}.h"]
    c_all = state.get(f"{layer.name}.c", h_all)
    sizes = layer.sizes()
    for n in range(layer.num_layers):
        outputs = []
        for direction in range(layer.directions):
            depth = n * layer.directions + direction
            w = _cell_weights(layer, tensors, sizes[depth][0])
            h, c = h_all[depth], c_all[depth]
            y = np.empty((*x.shape[:2], layer.h_size), dtype=x.dtype)
            for t in range(len(x))[:: -1 if direction else 1]:
                h, c = cell(x[t], h, c, w)
                y[t] = h
            outputs.append(y)
            h_all[depth] = h
            if layer.has_cell_state:
                c_all[depth] = c
        x = np.concatenate(outputs, axis=-1)
    return x


def zero_state(layers: Sequence[spec.Layer], batch_size: int, dtype: npt.DTypeLike) -> Any:
    """The state every sequence starts from: name -> zeros (N * D, B, size)."""
    return {
        name: np.zeros((depth, batch_size, size), dtype=dtype)
        for layer in layers
        for name, (depth, size) in layer.state().items()
    }


def forward(
    layers: Sequence[spec.Layer],
    tensors: Mapping[str, Array],
    x: Array,
    state: Mapping[str, Array] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> tuple[Array, dict[str, Array]]:
    """Run a whole sequence through a model.

    Parameters
    ----------
    layers : sequence of spec.Layer
        The model, already checked.
    tensors : mapping of str to array
        Its tensors under PyTorch's names, any float dtype.
    x : array, shape (T, B, I), or integer (T, B) for a token model
        The input.
    state : mapping of str to array (N * D, B, size), optional
        Where to start from; zeros if not given.
    dtype : dtype, default float64
        What to compute in; everything is converted to it first.

    Returns
    -------
    y : array (T, B, output_size) of `dtype`
    state : dict of str to array (N * D, B, size) of `dtype`
    """
    tensors = {name: np.asarray(value).astype(dtype) for name, value in tensors.items()}
    new_state = zero_state(layers, x.shape[1], dtype)
    for name, value in (state or {}).items():
        new_state[name][...] = value
    if not layers[0].takes_tokens:
        x = x.astype(dtype)
    # Infinities are legal inputs and meet 0 * inf and inf - inf on their way to the same NaN that
    # PyTorch gives; NumPy need not warn about each.
    with np.errstate(invalid="ignore", over="ignore", under="ignore", divide="ignore"):
        for layer in layers:
            if isinstance(layer, spec.OneHot):
                x = np.eye(layer.num_classes, dtype=dtype)[x]
            elif isinstance(layer, spec.Embedding):
                x = tensors[f"{layer.name}.weight"][x]
            elif isinstance(layer, spec.Linear):
                x = x @ tensors[f"{layer.name}.weight"].T
                if layer.bias:
                    x = x + tensors[f"{layer.name}.bias"]
            elif isinstance(layer, spec.Activation):
                x = ACTIVATIONS[layer.function](x)
            elif isinstance(layer, spec.Recurrent):
                x = _recurrent(layer, tensors, x, new_state)
            else:
                raise TypeError(f"no equations for {layer.kind}")
    return x, new_state
