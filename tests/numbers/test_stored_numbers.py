"""Models whose matrices are stored in fewer bytes, run by the engine: the rows are the reference's.

Float32 and the reference's float64 round differently, and where a number lies between two integers
that moves a product of int8 by a whole integer. The chains here are short; a single number may be
off by as much.
"""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import EXAMPLES, draw, graph_of, inputs_of
from random_graphs import random_graph, random_inputs, text

from fastlstm import Model, _engine, reference, spec
from fastlstm.format import ModelFile
from fastlstm.reduced import Reduced

PRECISIONS = spec.PRECISIONS[1:]
HERE = [name for name, _ in _engine.kernels(4)]
SAME_BITS = [name for name in HERE if name != "scalar"]
STEPS, B = 7, 3

Tensors = dict[str, np.ndarray | Reduced]


def reduced(graph: spec.Graph, tensors: dict[str, np.ndarray], precision: str) -> Tensors:
    """The tensors, in a precision those that can be."""
    made: Tensors = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    for one in spec.stored(graph, spec.check(graph).tensors):
        if precision not in one.refused:
            axes = one.axes.items()
            made |= {name: Reduced.of(made[name], precision, axis) for name, axis in axes}
    return made


def run(
    graph: spec.Graph, tensors: Tensors, inputs: dict[str, np.ndarray], isa: str
) -> list[np.ndarray]:
    model = Model(ModelFile(graph=graph, tensors=tensors), isa=isa, reproducible=True)
    y, _ = model({name: x if x.dtype == np.int64 else x.astype("f4") for name, x in inputs.items()})
    return [*y.values()] if isinstance(y, dict) else [y]


def check(got: list[np.ndarray], graph: spec.Graph, tensors: Tensors, inputs: dict) -> None:
    """No number is off by more than a few integers may be, and all but a few by rounding only."""
    given = {
        n: x if x.dtype == np.int64 else x.astype("f4").astype(float) for n, x in inputs.items()
    }
    exact = reference.forward(graph, tensors, given)
    for y, truth in zip(got, exact.values(), strict=True):
        size = np.abs(truth).max(initial=1)
        error = np.abs(y.reshape(truth.shape) - truth) / size
        assert error.max(initial=0) < 0.05
        assert np.mean(error > 1e-5) < 0.02, np.sort(error.ravel())[-5:]


LAYERS = [name for name, one in EXAMPLES.items() if one.layer.matrices()]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name, precision, rng):
    one = EXAMPLES[name]
    graph = graph_of(one.layer, one.shapes, one.held, one.tokens)
    tensors, inputs = reduced(graph, draw(graph, rng), precision), inputs_of(graph, STEPS, B, rng)
    for isa in HERE:
        check(run(graph, tensors, inputs, isa), graph, tensors, inputs)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed):
    graph, drawn = random_graph(np.random.default_rng(seed))
    print(text(graph))
    tensors = reduced(graph, drawn, ("int8", "int8", *PRECISIONS)[seed % 5])
    inputs = random_inputs(np.random.default_rng([seed, 9]), graph, 9, 2)
    for isa in HERE:
        check(run(graph, tensors, inputs, isa), graph, tensors, inputs)
