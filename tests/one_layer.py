"""Graphs of one layer, for the tests of the reference's equations.

Nothing here is under test.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastlstm import reference, spec


class Example(NamedTuple):
    """A layer, the axes of the rows that it reads, and which of them are held."""

    layer: spec.Layer
    shapes: tuple[tuple[int, ...], ...]
    held: tuple[int, ...] = ()
    tokens: int = 0


def graph_of(
    layer: spec.Layer,
    shapes: Sequence[tuple[int, ...]],
    held: Collection[int] = (),
    tokens: int = 0,
) -> spec.Graph:
    """The graph of one layer, which reads inputs ``x0``, ``x1``, … and gives ``y``."""
    inputs = [spec.Input(f"x{i}", shape, tokens, i in held) for i, shape in enumerate(shapes)]
    return spec.Graph(inputs, [layer(*(i.name for i in inputs))], {"y": layer.name})


def draw(graph: spec.Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random value for every tensor of a graph; variances are positive."""
    tensors = {
        name: rng.standard_normal(shape) for name, shape in spec.check(graph).tensors.items()
    }
    return {n: np.abs(x) + 0.1 if n.endswith("running_var") else x for n, x in tensors.items()}


def inputs_of(graph: spec.Graph, T: int, B: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random rows of every input: T of them, or one where it is held."""
    values = {}
    for given in graph.inputs:
        shape = (B, *given.shape) if given.held else (T, B, *given.shape)
        values[given.name] = (
            rng.integers(0, given.tokens, shape) if given.tokens else rng.standard_normal(shape)
        )
    return values


def forward(
    layer: spec.Layer,
    tensors: Mapping[str, np.ndarray],
    *xs: np.ndarray,
    held: Collection[int] = (),
    tokens: int = 0,
    dtype: Any = np.float64,
) -> np.ndarray:
    """The reference's rows of one layer; xs are (T, B, *shape), those that are held (B, *shape)."""
    shapes = [x.shape[1 if i in held else 2 :] for i, x in enumerate(xs)]
    graph = graph_of(layer, shapes, held, tokens)
    given = {f"x{i}": x for i, x in enumerate(xs)}
    return reference.forward(graph, tensors, given, dtype=dtype)["y"]


def in_pieces(
    graph: spec.Graph,
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    dtype: Any = np.float64,
) -> dict[str, np.ndarray]:
    """What a stream of the reference gives in pieces of random sizes, and then at its end."""
    held = {i.name: inputs[i.name] for i in graph.inputs if i.held}
    moving = {name: x for name, x in inputs.items() if name not in held}
    T, B = next(iter(moving.values())).shape[:2]
    stream = reference.Stream(graph, tensors, B, held=held, dtype=dtype)
    given = []
    t = 0
    while t < T or not given:
        n = int(rng.integers(0, 6))
        given.append(stream.run({name: x[t : t + n] for name, x in moving.items()}))
        t += n
    given.append(stream.flush())
    return {name: np.concatenate([piece[name] for piece in given]) for name in graph.outputs}


_PLACES = np.arange(24).reshape(2, 3, 4)

# Every kind of layer, and every way in which one treats time.
EXAMPLES: dict[str, Example] = {
    "lstm": Example(spec.LSTM("n", 3, 4, 2), ((3,),)),
    "lstm variants": Example(
        spec.LSTM(
            *("n", 3, 4),
            proj_size=2,
            peepholes=True,
            coupled=True,
            clip=2.0,
            cell_clip=1.5,
            layer_norm="gate",
            cell_output=True,
        ),
        ((2, 3),),
    ),
    "lstm product norm": Example(spec.LSTM("n", 3, 4, layer_norm="product"), ((3,),)),
    "lstm given": Example(
        spec.LSTM("n", 3, 4, initial_state="given"), ((3,), (1, 4), (1, 4)), (1, 2)
    ),
    "lstm hold": Example(spec.LSTM("n", 3, 4, hold=True), ((2, 3), (2, 1))),
    "lstm both ways": Example(spec.LSTM("n", 3, 4, bidirectional=True), ((3,),)),
    "lstm positions": Example(
        spec.LSTM("n", 3, 4, bidirectional=True, along="positions"), ((5, 3),)
    ),
    "gru": Example(spec.GRU("n", 3, 4, initial_state="learned"), ((2, 3),)),
    "gru before": Example(spec.GRU("n", 3, 4, reset_after=False), ((3,),)),
    "rnn": Example(spec.RNN("n", 3, 4, nonlinearity="hard_sigmoid(0.2, 0.5)"), ((3,),)),
    "constant": Example(spec.Constant("n", (2, 3)), ()),
    "embedding": Example(spec.Embedding("n", 7, 3), ((2,),), (), 7),
    "linear": Example(spec.Linear("n", 3, 2), ((4, 3),)),
    "matmul": Example(spec.MatMul("n", transposed=True), ((2, 3), (4, 3))),
    "matmul held": Example(spec.MatMul("n"), ((2, 3), (3,)), (1,)),
    "one hot": Example(spec.OneHot("n", 5), ((2,),), (), 5),
    "convolution": Example(
        spec.Convolution("n", 2, 3, (3, 2), padding=((1, 0), (0, 1))), ((2, 4, 5),)
    ),
    "convolution over time": Example(
        spec.Convolution("n", 2, 3, (3,), padding=((2, 1),), over_time=True), ((2,),)
    ),
    "convolution both": Example(
        spec.Convolution("n", 2, 4, (3, 2), 2, stride=(2, 1), dilation=(2, 1), over_time=True),
        ((2, 4),),
    ),
    "transposed": Example(
        spec.Convolution(
            *("n", 2, 3, (4,)), stride=(2,), padding=((1, 1),), over_time=True, transposed=True
        ),
        ((2,),),
    ),
    "pooling": Example(spec.Pooling("n", "max", (2, 2)), ((2, 4, 5),)),
    "pooling over time": Example(
        spec.Pooling(
            "n", "average", (3,), padding=((1, 2),), over_time=True, count_include_pad=False
        ),
        ((2,),),
    ),
    "index": Example(
        spec.Index.of("n", np.pad(_PLACES, 1, constant_values=-1)[..., ::-1], 0.5), ((2, 3, 4),)
    ),
    "activation": Example(spec.Activation("n", "gelu"), ((3,),)),
    "arithmetic": Example(spec.Arithmetic("n", "where"), ((3,), (2, 1), (1, 3)), (1,)),
    "reduce": Example(spec.Reduce("n", "l2", axes=(-1, -2)), ((2, 3),)),
    "softmax": Example(spec.Softmax("n", axis=-2, log=True), ((2, 3),)),
    "batch norm": Example(spec.BatchNorm("n", 3, axis=-1), ((2, 3),)),
    "group norm": Example(spec.GroupNorm("n", 2, 4), ((4, 3),)),
    "layer norm": Example(spec.LayerNorm("n", (2, 3)), ((4, 2, 3),)),
    "rms norm": Example(spec.RMSNorm("n", (3,)), ((2, 3),)),
    "attention": Example(spec.Attention("n"), ((2, 1), (2, 3))),
    "attention so far": Example(spec.Attention("n", cumulative=True), ((), (3,))),
    "delay": Example(spec.Delay("n", (2, 3), 3), ((2, 3),)),
    "delay learned": Example(spec.Delay("n", (3,), 2, initial_state="learned"), ((3,),)),
    "delay given": Example(spec.Delay("n", (3,), 2, initial_state="given"), ((3,), (2, 3)), (1,)),
    "fold": Example(spec.Fold("n", "mean"), ((2, 3),)),
    "fold so far": Example(spec.Fold("n", "max", cumulative=True), ((2, 3),)),
    "fold last": Example(spec.Fold("n", "last"), ((2,),)),
    "repeat": Example(spec.Repeat("n", 3), ((2,),)),
    "slice": Example(spec.Slice("n", start=2, end=3, step=2), ((2,),)),
    "spread": Example(spec.Spread("n", 3), ((3, 2),)),
    "window": Example(spec.Window("n", 3, stride=2, dilation=2, padding=1), ((2,),)),
}
