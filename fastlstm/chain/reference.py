"""Every layer's equations in NumPy, in any float dtype: the specification in code.

This is the truth the kernels are tested against (in float64) and the self-check of a model file is
computed with. It is written to be read, one line an equation, not to be fast.

Shapes: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``O`` output of one direction (``H``, or
``proj_size``), ``D`` directions, ``N`` layers of a stack, ``C`` channels, ``W`` width of a frame,
``K`` size of a kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec

__all__ = ["forward", "start_state"]

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


def times_gate(x: Array, gate: Array) -> Array:
    """x * gate, where the gate closes faster than x grows: 0 for x of minus infinity."""
    y: Array = np.where(np.isneginf(x), x.dtype.type(0), x * gate)
    return y


def gelu(x: Array) -> Array:
    # x Phi(x), by the complementary error function: no cancellation where x is far below zero.
    # A NumPy without SciPy has it in the standard library only, a number at a time.
    phi = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[x.dtype])
    return times_gate(x, phi(x))


def gelu_tanh(x: Array) -> Array:
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return times_gate(x, 0.5 * (1 + np.tanh(u)))


def softsign(x: Array) -> Array:
    y: Array = np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x)))
    return y


FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "relu": lambda x, a, b: np.maximum(x, 0),
    "tanh": lambda x, a, b: np.tanh(x),
    "sigmoid": lambda x, a, b: sigmoid(x),
    "softsign": lambda x, a, b: softsign(x),
    "softplus": lambda x, a, b: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "silu": lambda x, a, b: times_gate(x, sigmoid(x)),
    "gelu": lambda x, a, b: gelu(x),
    "gelu_tanh": lambda x, a, b: gelu_tanh(x),
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "thresholded_relu": lambda x, a, b: np.where(x <= a, 0, x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "hardtanh": lambda x, a, b: np.clip(x, a, b),
    "softmax": lambda x, a, b: softmax(x),
    "log_softmax": lambda x, a, b: log_softmax(x),
}


def apply(function: spec.Function, x: Array) -> Array:
    """A function, its parameters rounded to the dtype of x as the kernels have them.

    Of an infinite number it is the limit, also where PyTorch gives NaN.
    """
    alpha, beta = x.dtype.type(function.alpha), x.dtype.type(function.beta)
    return FUNCTIONS[function.name](x, alpha, beta)


def normalise(x: Array, eps: float) -> Array:
    """To mean 0 and variance 1 along the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    # What rounding left the mean off by would be all there is of numbers that are equal.
    mean += (x - mean).mean(axis=-1, keepdims=True)
    centred = x - mean
    y: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    return y


def clip(x: Array, bound: float) -> Array:
    return np.clip(x, -bound, bound) if bound else x


Cell = Callable[[Array, Array, Array, Mapping[str, Array]], tuple[Array, Array]]


def lstm_cell(
    x: Array, h: Array, c: Array, w: Mapping[str, Array], layer: spec.LSTM, direction: int
) -> tuple[Array, Array]:
    """``torch.nn.LSTM``'s step and its variants: x (B, I), h (B, O), c (B, H) -> new h, new c."""
    of_gates, of_candidate, of_c = layer.functions(direction)
    from_x, from_h, bias = x @ w["weight_ih"].T, h @ w["weight_hh"].T, w["bias_ih"] + w["bias_hh"]
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
    return (h @ w["weight_hr"].T if layer.projection else h), c


def gru_cell(
    x: Array, h: Array, c: Array, w: Mapping[str, Array], layer: spec.GRU, direction: int
) -> tuple[Array, Array]:
    """``torch.nn.GRU``'s step, or the form that resets before the product; c is passed through."""
    of_gates, of_candidate = layer.functions(direction)
    H = layer.hidden_size
    r_x, z_x, n_x = np.split(x @ w["weight_ih"].T + w["bias_ih"], 3, axis=-1)
    r_h, z_h, n_h = np.split(h @ w["weight_hh"].T + w["bias_hh"], 3, axis=-1)
    r = apply(of_gates, clip(r_x + r_h, layer.clip))
    z = apply(of_gates, clip(z_x + z_h, layer.clip))
    if not layer.reset_after:
        n_h = (r * h) @ w["weight_hh"][2 * H :].T + w["bias_hh"][2 * H :]
    n = apply(of_candidate, clip(n_x + (r * n_h if layer.reset_after else n_h), layer.clip))
    return (1 - z) * n + z * h, c


def rnn_cell(
    x: Array, h: Array, c: Array, w: Mapping[str, Array], layer: spec.RNN, direction: int
) -> tuple[Array, Array]:
    """``torch.nn.RNN``'s step; c is passed through."""
    (function,) = layer.functions(direction)
    before = x @ w["weight_ih"].T + h @ w["weight_hh"].T + w["bias_ih"] + w["bias_hh"]
    return apply(function, clip(before, layer.clip)), c


def _cell(layer: spec.Recurrent, direction: int) -> Cell:
    cells: dict[type[spec.Recurrent], Callable[..., tuple[Array, Array]]]
    cells = {spec.LSTM: lstm_cell, spec.GRU: gru_cell, spec.RNN: rnn_cell}
    return functools.partial(cells[type(layer)], layer=layer, direction=direction)


def _cell_weights(
    layer: spec.Recurrent, tensors: Mapping[str, Array], suffix: str
) -> dict[str, Array]:
    """One layer and direction's tensors without its suffix, absent biases as zeros."""
    first = f"{layer.name}."
    found = {
        name.removeprefix(first).removesuffix(suffix): tensors[name]
        for name in layer.tensors()
        if name.endswith(suffix)
    }
    no_bias = np.zeros(layer.gate_count * layer.hidden_size, found["weight_ih"].dtype)
    return {"bias_ih": no_bias, "bias_hh": no_bias} | found


def _recurrent(
    layer: spec.Recurrent, tensors: Mapping[str, Array], x: Array, state: dict[str, Array]
) -> Array:
    """A stack over a whole sequence: x (T, B, I) -> y (T, B, D * O); `state` is advanced."""
    h_all = state[f"{layer.name}.h"]
    c_all = state.get(f"{layer.name}.c", h_all)
    sizes = layer.sizes()
    for n in range(layer.num_layers):
        outputs = []
        for direction in range(layer.directions):
            depth = n * layer.directions + direction
            cell = _cell(layer, direction)
            w = _cell_weights(layer, tensors, sizes[depth][0])
            h, c = h_all[depth], c_all[depth]
            y = np.empty((*x.shape[:2], layer.h_size), dtype=x.dtype)
            for t in range(len(x))[:: -1 if direction or layer.reverse else 1]:
                h, c = cell(x[t], h, c, w)
                y[t] = h
            outputs.append(y)
            h_all[depth] = h
            if layer.has_cell_state:
                c_all[depth] = c
        x = np.concatenate(outputs, axis=-1)
    return x


def convolve(
    layer: spec.Conv1d | spec.FrameConv1d,
    tensors: Mapping[str, Array],
    x: Array,
    starts: Sequence[int],
) -> Array:
    """Outputs of a kernel that starts at positions `starts` of x (positions, C): (starts, O)."""
    weight = tensors[f"{layer.name}.weight"]  # (O, C / groups, K)
    bias = tensors.get(f"{layer.name}.bias", np.zeros(layer.out_channels, x.dtype))
    taps = layer.dilation * np.arange(layer.kernel_size)
    y = np.empty((len(starts), layer.out_channels), x.dtype)
    for row, start in zip(y, starts, strict=True):
        touched = x[start + taps].T  # (C, K)
        for kernels, channels, out in zip(
            np.split(weight, layer.groups),
            np.split(touched, layer.groups),
            np.split(row, layer.groups),
            strict=True,
        ):
            out[:] = kernels.reshape(len(kernels), -1) @ channels.reshape(-1)
    return y + bias


def _frame_convolution(layer: spec.FrameConv1d, tensors: Mapping[str, Array], x: Array) -> Array:
    """x (T, B, C * W) -> y (T, B, out_channels * out_width)."""
    mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}[layer.padding_mode]
    padding = ((0, 0), (layer.padding_left, layer.padding_right))
    y = np.empty((*x.shape[:2], layer.output_size), x.dtype)
    starts = range(0, layer.stride * layer.out_width, layer.stride)
    for at in np.ndindex(x.shape[:2]):
        frame = np.pad(x[at].reshape(layer.in_channels, layer.width), padding, mode=mode)  # type: ignore[call-overload]
        y[at] = convolve(layer, tensors, frame.T, starts).T.reshape(-1)
    return y


def _ends(layer: spec.Conv1d, T: int, count: int) -> range:
    """Those of T steps, of which `count` came before, that an output ends at."""
    begin = max(layer.first - count - 1, (layer.first - count - 1) % layer.stride)
    return range(begin, T, layer.stride)


def _output_steps(layers: Sequence[spec.Layer], T: int, state: Mapping[str, Array]) -> int:
    """Outputs of T steps that go on from a state."""
    for layer in layers:
        count = state.get(f"{layer.name}.count")
        if isinstance(layer, spec.Conv1d) and count is not None and count.size:
            T = len(_ends(layer, T, int(count.flat[0])))
        else:
            T = layer.steps(T)
    return T


def _time_convolution(
    layer: spec.Conv1d, tensors: Mapping[str, Array], x: Array, state: dict[str, Array]
) -> Array:
    """x (T, B, C) -> y (T', B, out_channels); `state` is advanced, where there is one.

    All rows must have read as many steps, as far as the number of outputs depends on it.
    """
    T, R = len(x), layer.reach
    rows = []
    for b in range(x.shape[1]):
        if layer.looks_ahead:
            padding = ((layer.padding_left, layer.padding_right), (0, 0))
            padded = np.pad(x[:, b], padding)
            starts = range(0, layer.stride * layer.steps(T), layer.stride)
        else:
            count = state.get(f"{layer.name}.count", np.zeros((1, x.shape[1], 1)))[:, b]
            kept = state.get(f"{layer.name}.x", np.zeros((0, *x.shape[1:]), x.dtype))[:, b]
            n = int(count[0, 0])
            order = (n + np.arange(R)) % R if R else np.arange(0)
            padded = np.concatenate([kept[order], x[:, b]])
            # The kernel that ends at step t of x starts at row t of `padded`.
            starts = _ends(layer, T, n)
            if R:
                kept[(n + T + np.arange(R)) % R] = padded[T:]
            n += T
            if n >= layer.first + layer.period:
                n = layer.first + (n - layer.first) % layer.period
            count[0, 0] = n
        rows.append(convolve(layer, tensors, padded, starts))
    return np.stack(rows, axis=1)


def _combine_halves(layer: spec.CombineHalves, x: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)
    y: dict[str, Array] = {
        "sum": a + b,
        "product": a * b,
        "average": (a + b) / 2,
        "magnitude": np.sqrt(a * a + b * b),
        "glu": a * sigmoid(b),
    }
    return y[layer.function]


def _pool(layer: spec.Pool, x: Array, state: dict[str, Array], streaming: bool) -> Array:
    """x (T, B, size) -> (1, B, size), or after each step of a stream what it then is."""
    if layer.function == "mean":
        mean, count = state[f"{layer.name}.mean"], state[f"{layer.name}.count"]
        base = layer.counts()[f"{layer.name}.count"]
        y = np.empty_like(x)
        before = mean[0] + mean[1]
        n = count[0].astype(np.float64) + base * count[1].astype(np.float64)
        for t in range(len(x)):
            n = np.minimum(n + 1, base**2 - 1)
            # What is infinite stays so, as the sum of all rows would.
            share = (x[t] - before) / n.astype(x.dtype)
            y[t] = before = before + np.where(np.isinf(before), x[t], share)
        if len(x):
            mean[0], mean[1] = before, 0
            count[0], count[1] = n % base, n // base
        x = y
    if streaming:
        return x
    if layer.function == "final" and len(x):
        half = layer.size // 2
        return np.concatenate([x[-1:, :, :half], x[:1, :, half:]], axis=-1)
    return x[-1:]


def _batch_norm(layer: spec.BatchNorm1d, tensors: Mapping[str, Array], x: Array) -> Array:
    def wide(suffix: str, default: float) -> Array:
        one = np.full(layer.num_features, default, x.dtype)
        return np.repeat(tensors.get(f"{layer.name}.{suffix}", one), layer.width)

    scale = wide("weight", 1) / np.sqrt(wide("running_var", 1) + x.dtype.type(layer.eps))
    y: Array = (x - wide("running_mean", 0)) * scale + wide("bias", 0)
    return y


def _layer_norm(layer: spec.LayerNorm, tensors: Mapping[str, Array], x: Array) -> Array:
    one, zero = np.ones(layer.size, x.dtype), np.zeros(layer.size, x.dtype)
    y: Array = normalise(x, layer.eps) * tensors.get(f"{layer.name}.weight", one)
    return y + tensors.get(f"{layer.name}.bias", zero)


def _linear(layer: spec.Linear, tensors: Mapping[str, Array], x: Array) -> Array:
    y: Array = x @ tensors[f"{layer.name}.weight"].T
    return y + tensors[f"{layer.name}.bias"] if layer.bias else y


def _run(
    layers: Sequence[spec.Layer],
    tensors: Mapping[str, Array],
    x: Array,
    state: dict[str, Array],
    streaming: bool,
) -> Array:
    for layer in layers:
        if isinstance(layer, spec.OneHot):
            dtype = next(iter(tensors.values())).dtype
            x = np.eye(layer.num_classes, dtype=dtype)[x]
        elif isinstance(layer, spec.Embedding):
            x = tensors[f"{layer.name}.weight"][x]
        elif isinstance(layer, spec.Linear):
            x = _linear(layer, tensors, x)
        elif isinstance(layer, spec.Activation):
            x = apply(spec.parse_function(layer.function), x)
        elif isinstance(layer, spec.PReLU):
            slope = tensors[f"{layer.name}.weight"].repeat(layer.size // layer.num_parameters)
            x = np.maximum(x, 0) + slope * np.minimum(x, 0)
        elif isinstance(layer, spec.Scale):
            x = x * tensors[f"{layer.name}.weight"] + tensors[f"{layer.name}.bias"]
        elif isinstance(layer, spec.LayerNorm):
            x = _layer_norm(layer, tensors, x)
        elif isinstance(layer, spec.BatchNorm1d):
            x = _batch_norm(layer, tensors, x)
        elif isinstance(layer, spec.CombineHalves):
            x = _combine_halves(layer, x)
        elif isinstance(layer, spec.FrameConv1d):
            x = _frame_convolution(layer, tensors, x)
        elif isinstance(layer, spec.Conv1d):
            x = _time_convolution(layer, tensors, x, state)
        elif isinstance(layer, spec.Recurrent):
            x = _recurrent(layer, tensors, x, state)
        elif isinstance(layer, spec.Pool):
            x = _pool(layer, x, state, streaming)
        elif isinstance(layer, spec.Residual):
            y = _run(layer.layers, tensors, x, state, streaming)
            if layer.combine == "add":
                x = x + y
            else:
                x = np.concatenate([x, y] if layer.combine == "input_first" else [y, x], axis=-1)
        else:
            raise TypeError(f"no equations for {layer.kind}")
    return x


def start_state(
    layers: Sequence[spec.Layer],
    tensors: Mapping[str, Array],
    batch_size: int,
    dtype: npt.DTypeLike,
) -> dict[str, Array]:
    """The state every sequence starts from: name -> (depth, B, size), zeros or what is learned."""
    state = {
        name: np.zeros((depth, batch_size, size), dtype=dtype)
        for layer in layers
        for name, (depth, size) in layer.state().items()
    }
    for layer in layers:
        for name, tensor in layer.initial().items():
            state[name][...] = tensors[tensor][:, None]
    return state


def forward(
    layers: Sequence[spec.Layer],
    tensors: Mapping[str, Array],
    x: Array,
    state: Mapping[str, Array] | None = None,
    dtype: npt.DTypeLike = np.float64,
    *,
    lengths: Sequence[int] | None = None,
    streaming: bool = False,
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
    state : mapping of str to array (depth, B, size), optional
        Where to start from; the model's own start if not given.
    dtype : dtype, default float64
        What to compute in; everything is converted to it first.
    lengths : sequence of int, optional
        Steps of each row; what lies behind them is not looked at, and gives zeros. Of whole
        sequences only.
    streaming : bool, default False
        Whether a pool gives a row after each step, as a stream does, instead of one at the end.

    Returns
    -------
    y : array (T', B, output_size) of `dtype`
    state : dict of str to array (depth, B, size) of `dtype`
    """
    tensors = {name: np.asarray(value).astype(dtype) for name, value in tensors.items()}
    new_state = start_state(layers, tensors, x.shape[1], dtype)
    for name, value in (state or {}).items():
        new_state[name][...] = value
    if not layers[0].takes_tokens:
        x = x.astype(dtype)
    # Infinities are legal inputs and meet 0 * inf and inf - inf on their way to the same NaN that
    # PyTorch gives; NumPy need not warn about each.
    with np.errstate(invalid="ignore", over="ignore", under="ignore", divide="ignore"):
        if lengths is None:
            return _run(layers, tensors, x, new_state, streaming), new_state
        steps = _output_steps(layers, len(x), new_state)
        y = np.zeros((steps, x.shape[1], layers[-1].output_size), dtype)
        for b, length in enumerate(lengths):
            row = {name: value[:, b : b + 1] for name, value in new_state.items()}
            one = _run(layers, tensors, x[:length, b : b + 1], row, False)
            y[: len(one), b : b + 1] = one
    return y, new_state
