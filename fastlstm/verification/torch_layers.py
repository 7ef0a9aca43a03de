"""A model's layers in torch: an evaluation by other code in the model's own dtype."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.chain.lower import lowered
from fastlstm.spec import check
from fastlstm.verification.evaluations import Run

__all__ = ["ONE_AT_A_TIME", "missing", "torch_run"]

Array = npt.NDArray[Any]
Tensor = Any
Function = Callable[[Tensor, float, float], Tensor]

# The filters of warnings, and torch's default dtype, are those of the whole process: two threads
# that set and restore them by turns would leave one's setting behind.
ONE_AT_A_TIME = threading.RLock()


def missing(layers: Sequence[spec.Layer]) -> str:
    """What torch has not, as ``a layer like 'name': ...``; "" if it has all."""
    for layer in spec.walk(layers):
        plain = True
        if isinstance(layer, spec.Recurrent):
            plain = layer.is_plain
        if isinstance(layer, spec.RNN):
            used = {layer.nonlinearity, layer.nonlinearity_reverse or layer.nonlinearity}
            plain = plain and used in ({"tanh"}, {"relu"})
        if not plain:
            return f"a layer like {layer.name!r}: {layer.describe()}"
    return ""


def torch_run(
    layers: Sequence[spec.Layer], tensors: Mapping[str, Array], dtype: np.dtype[Any]
) -> Run:
    """A run of layers of which none is :func:`missing`; states are those of the equations."""
    import torch

    evaluation = _TorchLayers(layers, tensors, dtype)

    def run(x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        with ONE_AT_A_TIME, torch.inference_mode(), warnings.catch_warnings():
            # It says that it takes a slower way, which is no news to who waits for its numbers.
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            value = torch.tensor(x)
            evaluation.whole = whole
            after: dict[str, Array] = {}
            for layer in layers:
                value = evaluation.layer(layer, value, state or {}, after)
            return value.numpy(), after

    return run


@functools.cache
def _functions() -> dict[str, Function]:
    import torch
    from torch.nn import functional as f

    return {
        "relu": lambda x, a, b: torch.relu(x),
        "tanh": lambda x, a, b: torch.tanh(x),
        "sigmoid": lambda x, a, b: torch.sigmoid(x),
        "softsign": lambda x, a, b: f.softsign(x),
        # Not softplus, which is the identity from 20 on.
        "softplus": lambda x, a, b: torch.logaddexp(x, torch.zeros_like(x)),
        "silu": lambda x, a, b: f.silu(x),
        "gelu": lambda x, a, b: f.gelu(x),
        "gelu_tanh": lambda x, a, b: f.gelu(x, approximate="tanh"),
        "affine": lambda x, a, b: a * x + b,
        "elu": lambda x, a, b: f.elu(x, a),
        "leaky_relu": lambda x, a, b: f.leaky_relu(x, a),
        "thresholded_relu": lambda x, a, b: f.threshold(x, a, 0.0),
        "hard_sigmoid": lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0),
        "scaled_tanh": lambda x, a, b: a * torch.tanh(b * x),
        "hardtanh": lambda x, a, b: f.hardtanh(x, a, b),
        "softmax": lambda x, a, b: torch.softmax(x, dim=-1),
        "log_softmax": lambda x, a, b: torch.log_softmax(x, dim=-1),
    }


class _TorchLayers:
    """The weights as torch's tensors and modules. Values are (T, B, features).

    With `whole`, sequences end with what is given, and padding follows.
    """

    def __init__(
        self,
        layers: Sequence[spec.Layer],
        tensors: Mapping[str, Array],
        dtype: np.dtype[Any],
    ) -> None:
        import torch

        self.whole = True
        self.state = check(lowered(tuple(layers))).state
        self.dtype = getattr(torch, dtype.name)
        self.tensors = {name: torch.tensor(array) for name, array in tensors.items()}
        self.modules: dict[str, Any] = {}

    def layer(
        self, layer: spec.Layer, x: Tensor, state: Mapping[str, Array], after: dict[str, Array]
    ) -> Tensor:
        """The output of a layer; `after` gets its state, if it has one."""
        import torch
        from torch.nn import functional as f

        if isinstance(layer, spec.Recurrent):
            return self._recurrent(layer, x, state, after)
        if isinstance(layer, spec.Conv1d):
            return self._conv1d(layer, x, state, after)
        if isinstance(layer, spec.Pool):
            return self._pool(layer, x, state, after)
        if isinstance(layer, spec.Residual):
            y = x
            for inner in layer.layers:
                y = self.layer(inner, y, state, after)
            if layer.combine == "add":
                return x + y
            return torch.cat([x, y] if layer.combine == "input_first" else [y, x], dim=-1)
        if isinstance(layer, spec.OneHot):
            return f.one_hot(x, layer.num_classes).to(self.dtype)
        weight, bias = self._own(layer, "weight"), self._own(layer, "bias")
        if isinstance(layer, spec.Embedding):
            return f.embedding(x, weight)
        if isinstance(layer, spec.Linear):
            return f.linear(x, weight, bias)
        if isinstance(layer, spec.Activation):
            function = spec.parse_function(layer.function)
            return _functions()[function.name](x, function.alpha, function.beta)
        if isinstance(layer, spec.Scale):
            return x * weight + bias
        if isinstance(layer, spec.LayerNorm):
            return f.layer_norm(x, (layer.size,), weight, bias, layer.eps)
        if isinstance(layer, spec.CombineHalves):
            return _combine_halves(layer, x)
        # What is left sees a row of features as channels.
        frames = x.flatten(0, 1)
        if isinstance(layer, spec.PReLU):
            y = f.prelu(frames.unflatten(-1, (layer.num_parameters, -1)), weight)
        elif isinstance(layer, spec.BatchNorm1d):
            mean, variance = (self._own(layer, f"running_{what}") for what in ("mean", "var"))
            channels = frames.unflatten(-1, (layer.num_features, layer.width))
            y = f.batch_norm(channels, mean, variance, weight, bias, eps=layer.eps)
        elif isinstance(layer, spec.FrameConv1d):
            mode = layer.padding_mode.replace("zeros", "constant")
            channels = frames.unflatten(-1, (layer.in_channels, layer.width))
            padded = f.pad(channels, (layer.padding_left, layer.padding_right), mode=mode)
            y = f.conv1d(
                padded, weight, bias, layer.stride, dilation=layer.dilation, groups=layer.groups
            )
        else:
            raise TypeError(f"{layer.kind} is not in torch")
        return y.reshape(*x.shape[:2], layer.output_size)

    def _own(self, layer: spec.Layer, suffix: str) -> Tensor:  # or None, as torch takes it
        return self.tensors.get(f"{layer.name}.{suffix}")

    def _recurrent(
        self, layer: spec.Recurrent, x: Tensor, state: Mapping[str, Array], after: dict[str, Array]
    ) -> Tensor:
        import torch

        module = self.modules.get(layer.name)
        if module is None:
            module = self.modules[layer.name] = self._module(layer)
        start = []
        for name, (depth, size) in layer.state().items():
            if name in state:
                start.append(torch.tensor(state[name]))
            else:
                learned = self.tensors.get(layer.initial().get(name, ""))
                zero = torch.zeros(depth, size, dtype=self.dtype)
                one = zero if learned is None else learned
                start.append(one[:, None].repeat(1, x.shape[1], 1))
        if not len(x):  # which torch refuses
            after |= {n: value.numpy() for n, value in zip(layer.state(), start, strict=True)}
            return x.new_zeros((0, x.shape[1], layer.output_size))
        y, end = module(
            x.flip(0) if layer.reverse else x, tuple(start) if len(start) > 1 else start[0]
        )
        end = end if len(start) > 1 else (end,)
        after |= {name: value.numpy() for name, value in zip(layer.state(), end, strict=True)}
        return y.flip(0) if layer.reverse else y

    def _module(self, layer: spec.Recurrent) -> Any:
        import torch

        options: dict[str, Any] = {
            name: getattr(layer, name) for name in ("num_layers", "bias", "bidirectional")
        }
        if layer.projection:
            options["proj_size"] = layer.projection
        if isinstance(layer, spec.RNN):
            options["nonlinearity"] = layer.nonlinearity
        classes = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
        module = classes[layer.kind](
            layer.input_size, layer.hidden_size, **options, dtype=self.dtype
        )
        learned = set(layer.initial().values())
        names = [name for name in layer.tensors() if name not in learned]
        prefix = f"{layer.name}."
        module.load_state_dict({n.removeprefix(prefix): self.tensors[n] for n in names})
        return module.eval()

    def _conv1d(
        self, layer: spec.Conv1d, x: Tensor, state: Mapping[str, Array], after: dict[str, Array]
    ) -> Tensor:
        import torch
        from torch.nn import functional as f

        # The state: the last R inputs, the oldest first, and the steps read; see spec.
        T, R, stride = len(x), layer.reach, layer.stride
        counted = f"{layer.name}.count" in self.state
        read = int(state[f"{layer.name}.count"].flat[0]) if counted and state else 0
        kept = x.new_zeros(R, *x.shape[1:])
        if R and state:
            kept = torch.tensor(state[f"{layer.name}.x"])
        joined = torch.cat([kept, x])
        if R:
            after[f"{layer.name}.x"] = joined[T:].numpy()
        if counted:
            after[f"{layer.name}.count"] = np.full((1, x.shape[1]), read + T, np.int64)
        behind = layer.padding_right if self.whole and read + T else 0
        # Of the first output of all, the kernel ends so many steps behind the last one read.
        before = layer.reach - layer.padding_left - read
        begin = max(before, before % stride)
        padded = torch.cat([joined, x.new_zeros(behind, *x.shape[1:])])[begin:]
        count = len(range(begin, T + behind, stride))
        if not count:
            return x.new_zeros((0, x.shape[1], layer.out_channels))
        weight, bias = self._own(layer, "weight"), self._own(layer, "bias")
        y = f.conv1d(padded.permute(1, 2, 0), weight, bias, stride, 0, layer.dilation, layer.groups)
        return y.permute(2, 0, 1).contiguous()

    def _pool(
        self, layer: spec.Pool, x: Tensor, state: Mapping[str, Array], after: dict[str, Array]
    ) -> Tensor:
        import torch

        if layer.function == "final":
            half = layer.size // 2
            return torch.cat([x[-1:, :, :half], x[:1, :, half:]], dim=-1)
        if layer.function == "last":
            return x[-1:]
        of_total, of_count = f"{layer.name}.total", f"{layer.name}.count"
        y, before = x.mean(dim=0, keepdim=True), int(state[of_count].flat[0]) if state else 0
        count = before + len(x)
        if before:
            # Not of the totals, whose digits a long sum has lost.
            mean = torch.tensor(state[of_total]) / before
            y = mean * (before / count) + y * (len(x) / count)
        after[of_total] = (y * count).numpy()
        after[of_count] = np.full((1, x.shape[1]), count, np.int64)
        return y


def _combine_halves(layer: spec.CombineHalves, x: Tensor) -> Tensor:
    import torch

    a, b = x.chunk(2, dim=-1)
    if layer.function == "magnitude":
        return torch.sqrt(a * a + b * b)
    if layer.function == "glu":
        return a * torch.sigmoid(b)
    if layer.function == "product":
        return a * b
    return a + b if layer.function == "sum" else (a + b) / 2
