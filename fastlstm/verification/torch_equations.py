"""The equations in torch: an evaluation by other code in the model's own dtype.

Time, states and movement are the reference's, which copy numbers; what computes with them is torch.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastlstm import reference, spec
from fastlstm.reference.recurrent import Recurrence, along_positions
from fastlstm.reference.sliding import SlidingOverTime, within_step

__all__ = ["ONE_AT_A_TIME", "TorchStream", "missing"]

Array = npt.NDArray[Any]
Tensor = Any
Weights = Mapping[str, Array]

# The filters of warnings, and torch's default dtype, are those of the whole process: two threads
# that set and restore them by turns would leave one's setting behind.
ONE_AT_A_TIME = threading.RLock()


def missing(layers: Iterable[spec.Layer]) -> str:
    """What torch has not, as ``a layer like 'name': ...``; "" if it has all."""
    for layer in layers:
        if isinstance(layer, spec.Recurrent) and layer != _plain(layer):
            return f"a layer like {layer.name!r}: {layer.describe()}"
    return ""


def _plain(layer: spec.Recurrent) -> spec.Recurrent:
    """The layer without all that torch's have not."""
    told = ("weights", "tensor_names", "num_layers", "bias", "bidirectional")
    options: dict[str, Any] = {
        name: getattr(layer, name) for name in (*told, "along", "reverse", "initial_state")
    }
    if isinstance(layer, spec.LSTM):
        options["proj_size"] = layer.proj_size
    if isinstance(layer, spec.RNN) and layer.nonlinearity in ("tanh", "relu"):
        options["nonlinearity"] = layer.nonlinearity
    return type(layer)(layer.name, layer.input_size, layer.hidden_size, **options)


@contextlib.contextmanager
def _in_torch() -> Iterator[None]:
    """Without gradients, and without torch's word that it takes a slower way."""
    import torch

    with ONE_AT_A_TIME, torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        yield


def _tensor(array: Array) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _stack(
    layer: spec.Recurrent, w: Weights, x: Array, mask: Array | None, state: dict[str, Array]
) -> Array:
    """As :func:`fastlstm.reference.recurrent.stack`, without a mask."""
    import torch

    assert mask is None
    weights = [_tensor(array) for name, array in w.items() if name not in ("h_0", "c_0")]
    names = ["h", "c"] if layer.has_cell_state else ["h"]
    # Positions are as good as rows of a batch.
    rows = x.reshape(len(x), -1, x.shape[-1])
    if not rows.size:
        return np.zeros((*x.shape[:-1], layer.output_size), x.dtype)
    start = [_tensor(state[n].reshape(layer.depth, rows.shape[1], -1)) for n in names]
    run: Any = {
        "lstm": lambda x, *more: torch.lstm(x, start, *more),
        "gru": lambda x, *more: torch.gru(x, start[0], *more),
        "rnn": lambda x, *more: getattr(torch, f"rnn_{layer.nonlinearity}")(x, start[0], *more),  # type: ignore[attr-defined]
    }[layer.kind]
    given = _tensor(rows)
    y, *end = run(
        given.flip(0) if layer.reverse else given,
        weights,
        layer.bias,
        layer.num_layers,
        0.0,  # dropout
        False,  # training
        layer.bidirectional,
        False,  # batch first
    )
    for name, after in zip(names, end, strict=True):
        state[name][...] = after.numpy().reshape(state[name].shape)
    made: Array = (y.flip(0) if layer.reverse else y).numpy()
    return made.reshape(*x.shape[:-1], layer.output_size)


class _Recurrence(Recurrence):
    stack = staticmethod(_stack)


def _slid(layer: spec.Sliding, w: Weights, x: Array, padding: Any, real: Array | None) -> Array:
    from torch.nn import functional as f

    if not isinstance(layer, spec.Convolution) or layer.transposed:
        return SlidingOverTime.slid(layer, w, x, padding, real)
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    run: Any = {1: f.conv1d, 2: f.conv2d, 3: f.conv3d}[len(layer.kernel_size)]
    bias = _tensor(w["bias"]) if layer.bias else None
    y: Array = run(
        _tensor(padded), _tensor(w["weight"]), bias, layer.strides, 0, layer.dilations, layer.groups
    ).numpy()
    return y


class _SlidingOverTime(SlidingOverTime):
    slid = staticmethod(_slid)


FUNCTIONS: dict[str, Callable[[Any, Tensor, float, float], Tensor]] = {
    "relu": lambda t, x, a, b: t.relu(x),
    "tanh": lambda t, x, a, b: t.tanh(x),
    "sigmoid": lambda t, x, a, b: t.sigmoid(x),
    "softsign": lambda t, x, a, b: t.nn.functional.softsign(x),
    # Not softplus, which is the identity from 20 on.
    "softplus": lambda t, x, a, b: t.logaddexp(x, t.zeros_like(x)),
    "silu": lambda t, x, a, b: t.nn.functional.silu(x),
    "gelu": lambda t, x, a, b: t.nn.functional.gelu(x),
    "gelu_tanh": lambda t, x, a, b: t.nn.functional.gelu(x, approximate="tanh"),
    "affine": lambda t, x, a, b: a * x + b,
    "elu": lambda t, x, a, b: t.nn.functional.elu(x, a),
    "leaky_relu": lambda t, x, a, b: t.nn.functional.leaky_relu(x, a),
    "thresholded_relu": lambda t, x, a, b: t.nn.functional.threshold(x, a, 0.0),
    "hard_sigmoid": lambda t, x, a, b: t.clamp(a * x + b, 0.0, 1.0),
    "scaled_tanh": lambda t, x, a, b: a * t.tanh(b * x),
    "clip": lambda t, x, a, b: t.clamp(x, a, b),
    "abs": lambda t, x, a, b: t.abs(x),
    "sign": lambda t, x, a, b: t.sign(x),
    "floor": lambda t, x, a, b: t.floor(x),
    "sqrt": lambda t, x, a, b: t.sqrt(x),
    "square": lambda t, x, a, b: t.square(x),
    "reciprocal": lambda t, x, a, b: t.reciprocal(x),
    "exp": lambda t, x, a, b: t.exp(x),
    "log": lambda t, x, a, b: t.log(x),
    "sin": lambda t, x, a, b: t.sin(x),
    "cos": lambda t, x, a, b: t.cos(x),
}


def _activation(t: Any, layer: spec.Activation, w: Any, x: Tensor) -> Tensor:
    function = spec.parse_function(layer.function)
    return FUNCTIONS[function.name](t, x, function.alpha, function.beta)


def _matmul(t: Any, layer: spec.MatMul, w: Any, a: Tensor, b: Tensor) -> Tensor:
    row, column = a.ndim == 3, b.ndim == 3  # of one axis, beside time and the batch
    a, b = a[..., None, :] if row else a, b[..., None] if column else b
    ndim = max(a.ndim, b.ndim)
    a, b = (x.reshape(*x.shape[:2], *(1,) * (ndim - x.ndim), *x.shape[2:]) for x in (a, b))
    y = t.matmul(a, b.mT if layer.transposed else b)
    y = y[..., 0] if column else y
    return (y[..., 0] if column else y[..., 0, :]) if row else y


def _softmax(t: Any, layer: spec.Softmax, w: Any, x: Tensor) -> Tensor:
    return (t.log_softmax if layer.log else t.softmax)(x, layer.axis)


def _group_norm(t: Any, layer: spec.GroupNorm, w: Any, x: Tensor) -> Tensor:
    y = t.nn.functional.group_norm(
        x.flatten(0, 1), layer.num_groups, w.get("weight"), w.get("bias"), layer.eps
    )
    return y.reshape(x.shape)


def _batch_norm(t: Any, layer: spec.BatchNorm, w: Any, x: Tensor) -> Tensor:
    frames = x.flatten(0, 1)
    channels = frames if layer.axis == 0 else frames.movedim(-1, 1)
    y = t.nn.functional.batch_norm(
        channels, w["running_mean"], w["running_var"], w.get("weight"), w.get("bias"), eps=layer.eps
    )
    return (y if layer.axis == 0 else y.movedim(1, -1)).reshape(x.shape)


# What is not here copies numbers, or adds and multiplies them one by one, which NumPy rounds alike.
EQUATIONS: dict[type[spec.Layer], Callable[..., Tensor]] = {
    spec.Linear: lambda t, la, w, x: t.nn.functional.linear(x, w["weight"], w.get("bias")),
    spec.MatMul: _matmul,
    spec.Activation: _activation,
    spec.Softmax: _softmax,
    spec.LayerNorm: lambda t, la, w, x: t.nn.functional.layer_norm(
        x, la.normalized_shape, w.get("weight"), w.get("bias"), la.eps
    ),
    spec.RMSNorm: lambda t, la, w, x: t.nn.functional.rms_norm(
        x, la.normalized_shape, w.get("weight"), la.eps
    ),
    spec.GroupNorm: _group_norm,
    spec.BatchNorm: _batch_norm,
}


def _equation(made: Callable[..., Tensor], layer: Any, w: Weights, *xs: Array) -> Array:
    import torch

    weights = {name: _tensor(array) for name, array in w.items()}
    y: Array = made(torch, layer, weights, *map(_tensor, xs)).numpy()
    return y


_RECURRENT = (spec.LSTM, spec.GRU, spec.RNN)


class TorchStream(reference.Stream):
    """The reference's stream, whose layers compute in torch; of layers of which none is missing."""

    over_time: ClassVar[Any] = {
        **reference.Stream.over_time,
        **dict.fromkeys(_RECURRENT, _Recurrence),
        spec.Convolution: _SlidingOverTime,
    }
    within_step: ClassVar[Any] = {
        **reference.Stream.within_step,
        **{kind: functools.partial(_equation, made) for kind, made in EQUATIONS.items()},
        **dict.fromkeys(_RECURRENT, functools.partial(along_positions, stack=_stack)),
        spec.Convolution: functools.partial(within_step, slid=_slid),
    }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with _in_torch():
            return super().run(inputs)

    def finish(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with _in_torch():
            return super().finish(inputs)
