"""The equations of a chain of layers: those of the graph it is lowered to, with its own states.

The states are those of today's engine: a convolution over time keeps its last inputs in a ring,
step t in row t % reach, and a mean over time keeps the mean and not the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import chain
from chain.lower import OUTPUT, lowered
from fastlstm import reference as of_graph
from fastlstm import spec

__all__ = ["forward", "start_state"]

Array = npt.NDArray[Any]


def start_state(
    layers: Sequence[chain.Layer],
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
    layers: Sequence[chain.Layer],
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
    layers : sequence of chain.Layer
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
    new_state = start_state(layers, tensors, x.shape[1], dtype)
    for name, value in (state or {}).items():
        new_state[name][...] = value
    if lengths is None and _in_step(layers, new_state):
        return _run(layers, tensors, x, new_state, dtype, streaming), new_state
    # Each row by itself: they end at different steps, or their convolutions are not in step.
    rows, ends = [], [len(x)] * x.shape[1] if lengths is None else lengths
    for b, end in enumerate(ends):
        row = {name: value[:, b : b + 1] for name, value in new_state.items()}
        steps = _rows_read(layers, len(x), row)[""]
        rows.append(_run(layers, tensors, x[:end, b : b + 1], row, dtype, streaming))
    y = np.zeros((steps, x.shape[1], layers[-1].output_size), dtype)
    for b, one in enumerate(rows):
        y[: len(one), b : b + 1] = one
    return y, new_state


def _in_step(layers: Sequence[chain.Layer], state: Mapping[str, Array]) -> bool:
    """Whether all rows of the batch have read as many steps, as far as a layer counts them."""
    counts = [state[name] for layer in layers for name in layer.counts()]
    return all((count == count[:, :1]).all() for count in counts)


@functools.lru_cache(maxsize=8)
def _graph(layers: tuple[chain.Layer, ...]) -> spec.Graph:
    return lowered(layers)


def _run(
    layers: Sequence[chain.Layer],
    tensors: Mapping[str, Array],
    x: Array,
    state: dict[str, Array],
    dtype: npt.DTypeLike,
    streaming: bool,
) -> Array:
    """The rows that x gives after a state, which is advanced in place."""
    graph = _graph(tuple(layers))
    stream = of_graph.Stream(graph, tensors, x.shape[1], dtype=dtype)
    read = _rows_read(layers, len(x), state)
    with np.errstate(invalid="ignore", over="ignore"):
        for layer in chain.walk(layers):
            given = _to_graph(layer, state)
            stream.state |= {name: given[name] for name in given.keys() & stream.state.keys()}
        pieces = streaming and not stream.facts.looks_ahead
        y = (stream.run if pieces else stream.finish)({graph.inputs[0].name: x})[OUTPUT]
        for layer in chain.walk(layers):
            _from_graph(layer, stream.state, state, read.get(layer.name, 0))
    return y[-1:] if any(layer.pools for layer in layers) and not streaming else y


def _rows_read(layers: Sequence[chain.Layer], T: int, state: Mapping[str, Array]) -> dict[str, int]:
    """Name of a layer -> rows that it reads of T steps after a state; "" -> those of the output."""
    read: dict[str, int] = {}
    for layer in layers:
        # What a residual holds gives a row for each that it reads.
        read |= {inner.name: T for inner in chain.walk([layer])}
        count = state.get(f"{layer.name}.count")
        if isinstance(layer, chain.Conv1d) and count is not None and count.size:
            n = int(count.flat[0])
            begin = max(layer.first - n - 1, (layer.first - n - 1) % layer.stride)
            T = len(range(begin, T, layer.stride))
        else:
            T = layer.steps(T)
    return read | {"": T}


def _to_graph(layer: chain.Layer, state: Mapping[str, Array]) -> dict[str, Array]:
    """A layer's state, as the stream of the graph has it."""
    own = {name: np.array(state[name]) for name in layer.state()}
    if isinstance(layer, chain.Residual):
        return {}
    if isinstance(layer, chain.Conv1d) and own:
        n = int(own[f"{layer.name}.count"].flat[0])
        if f"{layer.name}.x" in own:
            order = (n + np.arange(layer.reach)) % layer.reach
            own[f"{layer.name}.x"] = own[f"{layer.name}.x"][order]
        own[f"{layer.name}.count"] = np.full(own[f"{layer.name}.count"].shape[:2], n)
    if isinstance(layer, chain.Pool) and own:
        mean, count = own[f"{layer.name}.mean"], own[f"{layer.name}.count"].astype(np.float64)
        rows = count[0] + layer.counts()[f"{layer.name}.count"] * count[1]
        total = np.where(rows == 0, 0, (mean[0] + mean[1]) * rows)
        own = {f"{layer.name}.total": total[None].astype(mean.dtype)}
        own[f"{layer.name}.count"] = rows.T.astype(np.int64)
    return own


def _from_graph(
    layer: chain.Layer, stream: Mapping[str, Array], state: dict[str, Array], read: int
) -> None:
    """Put a layer's state, as the graph's stream has it `read` rows later, into the chain's."""
    names = layer.state()
    if isinstance(layer, chain.Residual):
        return
    if isinstance(layer, chain.Conv1d) and names:
        count = state[f"{layer.name}.count"]
        n = int(count.flat[0]) + read
        if f"{layer.name}.x" in names:
            order = (n + np.arange(layer.reach)) % layer.reach
            state[f"{layer.name}.x"][order] = stream[f"{layer.name}.x"]
        around = (n - layer.first) % layer.period
        count[...] = n if n < layer.first + layer.period else layer.first + around
    elif isinstance(layer, chain.Pool) and names:
        mean, count = state[f"{layer.name}.mean"], state[f"{layer.name}.count"]
        base = layer.counts()[f"{layer.name}.count"]
        rows = np.minimum(stream[f"{layer.name}.count"].T, base**2 - 1)
        mean[0] = np.where(rows == 0, 0, stream[f"{layer.name}.total"][0] / np.maximum(rows, 1))
        mean[1], count[0], count[1] = 0, rows % base, rows // base
    else:
        for name in names:
            state[name][...] = stream[name]
