"""The equations in torch, with matrices that torch quantises dynamically to int8."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.reference.recurrent import Recurrence, along_positions
from fastlstm.verification.torch_equations import TorchStream, missing

__all__ = ["dynamic_stream", "lacking"]

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]


def lacking(layers: Iterable[spec.Layer]) -> str:
    """What torch has no dynamic int8 of, in words; "" if it has all."""
    for layer in layers:
        kind = isinstance(layer, spec.LSTM | spec.GRU | spec.Linear)
        projects = isinstance(layer, spec.LSTM) and layer.projection > 0
        if not kind or missing([layer]) or projects:
            return f"a layer like {layer.name!r}: {layer.describe()}"
    return ""


def _quantised(module: Any, w: Weights) -> Any:
    """A module of torch with these weights, quantised."""
    import torch

    module.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in w.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        holder = torch.nn.Sequential(module.eval())
        kinds = {type(module)}
        quantize: Any = torch.ao.quantization.quantize_dynamic
        return quantize(holder, kinds, dtype=torch.qint8)[0]


def _stack(layer: Any, w: Weights, x: Array, mask: Array | None, state: dict[str, Array]) -> Array:
    """As :func:`fastlstm.reference.recurrent.stack`, without a mask."""
    import torch

    kind = torch.nn.LSTM if isinstance(layer, spec.LSTM) else torch.nn.GRU
    module = kind(
        *(layer.input_size, layer.hidden_size, layer.num_layers),
        bias=layer.bias,
        bidirectional=layer.bidirectional,
    )
    made = _quantised(module, {n: a for n, a in w.items() if n not in ("h_0", "c_0")})
    names = ["h", "c"] if layer.has_cell_state else ["h"]
    rows = torch.from_numpy(np.ascontiguousarray(x.reshape(len(x), -1, x.shape[-1])))
    start = [torch.from_numpy(state[n].reshape(layer.depth, rows.shape[1], -1)) for n in names]
    given = rows.flip(0) if layer.reverse else rows
    y, end = made(given, tuple(start) if len(start) > 1 else start[0])
    for name, after in zip(names, end if len(names) > 1 else [end], strict=True):
        state[name][...] = after.numpy().reshape(state[name].shape)
    found: Array = (y.flip(0) if layer.reverse else y).numpy()
    return found.reshape(*x.shape[:-1], layer.output_size)


def _linear(layer: Any, w: Weights, x: Array) -> Array:
    import torch

    module = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias)
    y: Array = _quantised(module, w)(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    return y


def dynamic_stream(names: Iterable[str]) -> type[TorchStream]:
    """A stream whose layers of these names, of which none is lacking, are quantised."""
    wanted = {*names}

    def chosen(
        layer: spec.Recurrent, w: Weights, x: Array, mask: Array | None, state: dict[str, Array]
    ) -> Array:
        plain = TorchStream.over_time[type(layer)].stack
        made: Array = (_stack if layer.name in wanted else plain)(layer, w, x, mask, state)
        return made

    def linear(layer: Any, *rest: Any) -> Array:
        plain = TorchStream.within_step[spec.Linear]
        made: Array = (_linear if layer.name in wanted else plain)(layer, *rest)
        return made

    class Quantised(Recurrence):
        stack = staticmethod(chosen)

    class DynamicStream(TorchStream):
        over_time = TorchStream.over_time | dict.fromkeys((spec.LSTM, spec.GRU), Quantised)
        within_step = TorchStream.within_step | {
            spec.Linear: linear,
            **dict.fromkeys(
                (spec.LSTM, spec.GRU), functools.partial(along_positions, stack=chosen)
            ),
        }

    return DynamicStream
