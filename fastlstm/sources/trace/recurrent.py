"""Torch's LSTM, GRU and RNN and their cells, as recurrent layers of a `Line`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlstm import chain as spec
from fastlstm.sources.line import Value
from fastlstm.sources.trace.stand_in import ImpossibleError, Packed
from fastlstm.sources.trace.step import Step

__all__ = ["run_recurrent"]

# Of a tensor or an argument of forward, of which the shape is now known; None of None.
Given = Callable[[Any, tuple[int | None, ...]], Value | None]


def run_recurrent(step: Step, module: Any, given: Given, input: Any, hx: Any = None) -> Any:
    """What the forward of a recurrent module gives, with values for tensors.

    Parameters
    ----------
    step : Step
    module : torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
    given : callable
        Turns a tensor that forward is given into a value.
    input, hx
        What forward is given.
    """
    layer = _layer(module)
    states = list(hx) if isinstance(hx, tuple | list) else [hx]
    pair = isinstance(hx, tuple | list)
    if hx is not None and (pair != layer.has_cell_state or len(states) != 1 + pair):
        wanted = "a pair of arrays, h and c" if layer.has_cell_state else "one array"
        count = f"{len(states)} arrays" if pair else "one array"
        raise step.refused(f"starts from {count}; expected {wanted}")
    packed = input if isinstance(input, Packed) else None
    x = given(packed.data if packed else input, (None, None, layer.input_size))
    assert x is not None
    if not hasattr(module, "num_layers"):
        return _run_cell(step, module, layer, given, x, states)

    if x.ndim not in (2, 3) or (x.ndim == 2 and module.batch_first):
        raise ImpossibleError(
            f"{step.text} has batch_first={module.batch_first} and is given an array of {x.ndim} "
            f"axes; expected batch, time and features"
        )
    time = int(packed.batch_first if packed else module.batch_first and x.ndim == 3)
    step.expect(x, -1, layer.input_size)
    starts = [
        given(state, (depth, None, size)[:: 1 if x.ndim == 3 else 2])
        for state, (depth, size) in zip(states, layer.state().values(), strict=False)
    ]
    made = step.line.recurrent(
        x,
        layer,
        _tensors(step, module, layer, ""),
        time_axis=time,
        batch_axis=1 - time if x.ndim == 3 else None,
        name=step.name,
        h_0=starts[0],
        c_0=starts[1] if len(starts) > 1 else None,
        lengths=given(packed.lengths, (None,)) if packed else None,
    )
    output: Any = made.output
    if packed:
        output = Packed(output, packed.lengths, packed.batch_first)
    return output, (made.h_n if made.c_n is None else (made.h_n, made.c_n))


def _run_cell(
    step: Step, module: Any, layer: spec.Recurrent, given: Given, x: Value, states: list[Any]
) -> Any:
    """One step, as a sequence of a single one."""
    line = step.line
    if x.ndim not in (1, 2):
        raise ImpossibleError(
            f"{step.text} is given an array of {x.ndim} axes; expected batch, features"
        )
    step.expect(x, -1, layer.input_size)
    starts = []
    for state in states:
        start = given(state, (None, layer.hidden_size)[2 - x.ndim :])
        starts.append(start and line.unsqueeze(start, 0, step.name))
    made = line.recurrent(
        line.unsqueeze(x, 0, step.name),
        layer,
        _tensors(step, module, layer, "_l0"),
        time_axis=0,
        batch_axis=1 if x.ndim == 2 else None,
        name=step.name,
        h_0=starts[0],
        c_0=starts[1] if len(starts) > 1 else None,
    )
    h = line.squeeze(made.h_n, 0, step.name)
    return h if made.c_n is None else (h, line.squeeze(made.c_n, 0, step.name))


def _layer(module: Any) -> spec.Recurrent:
    import torch

    nn = torch.nn
    sizes = {"input_size": module.input_size, "hidden_size": module.hidden_size}
    options: dict[str, Any] = {"name": "layer", **sizes, "bias": module.bias}
    if hasattr(module, "num_layers"):
        options |= {"num_layers": module.num_layers, "bidirectional": module.bidirectional}
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return spec.LSTM(**options, proj_size=getattr(module, "proj_size", 0))
    if isinstance(module, nn.GRU | nn.GRUCell):
        return spec.GRU(**options)
    return spec.RNN(**options, nonlinearity=module.nonlinearity)


def _tensors(step: Step, module: Any, layer: spec.Recurrent, ending: str) -> dict[str, Any]:
    """The weights by suffix; a cell's names have not the ending that those of a stack have."""
    suffixes = [name.removeprefix("layer.") for name in layer.tensors()]
    return {
        suffix: step.weight(getattr(module, own), own)
        for suffix in suffixes
        for own in (suffix.removesuffix(ending) if ending else suffix,)
    }
