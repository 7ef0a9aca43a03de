"""The engine's numbers of matrices in fewer bytes are those of the reference, on every kernel."""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import EXAMPLES, draw, graph_of, inputs_of
from quantised import float32_model, in_precision
from random_graphs import random_graph, random_inputs

import fastlstm
from fastlstm import _engine, reference, spec
from fastlstm.format import ModelFile

PRECISIONS = spec.PRECISIONS[1:]
ISAS = [name for name, _ in _engine.kernels(4)]
NAMES = [
    name
    for name, one in EXAMPLES.items()
    if one.layer.matrices() and not all(n in one.held for n in range(len(one.shapes)))
]


def as_float32(x):
    return {n: a if a.dtype.kind == "i" else a.astype(np.float32) for n, a in x.items()}


def named(model, y):
    return y if isinstance(y, dict) else {next(iter(model.outputs)): y}


def assert_as_the_reference(graph, tensors, x, isa, flips=0.0):
    """To rounding of float32, but for `flips`, a part of the largest number."""
    model = fastlstm.Model(ModelFile(graph, tensors), isa=isa)
    exact = reference.forward(graph, tensors, x, dtype=np.float32)
    y, _ = model(x)
    for name, made in named(model, y).items():
        size = max(1.0, np.abs(exact[name]).max(initial=0.0))
        np.testing.assert_allclose(
            made.reshape(exact[name].shape), exact[name], rtol=0, atol=(3e-6 + flips) * size
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_layer(name, precision, isa, rng):
    """One step, and a few more: an activation is seldom where rounding makes two integers of it."""
    one = EXAMPLES[name]
    graph = graph_of(one.layer, one.shapes, one.held, one.tokens)
    tensors = in_precision(graph, draw(graph, rng), precision)
    x = as_float32(inputs_of(graph, 5, 3, rng))
    assert_as_the_reference(graph, tensors, x, isa, flips=0.02 * (precision == "int8"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 15, 64, 129, 1000])
def test_a_product_of_integers_is_exact(size, isa, rng):
    """Of inputs that are what they are in float32 the integers are equal, and so is each bit."""
    graph = spec.Graph.chain([spec.Linear("o", size, 37, bias=False)])
    tensors = in_precision(graph, draw(graph, rng), "int8")
    model = fastlstm.Model(ModelFile(graph, tensors), isa=isa)
    x = (rng.standard_normal((6, size)) * 10.0 ** rng.integers(-9, 9, (6, 1))).astype(np.float32)
    x[2] = 0
    x[3, 0], x[4, -1] = np.nan, -np.inf
    exact = reference.forward(graph, tensors, {"input": x[:, None]}, dtype=np.float32)["output"]
    np.testing.assert_array_equal(model(x)[0], exact[:, 0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed, isa):
    graph, drawn = random_graph(np.random.default_rng(seed))
    tensors = in_precision(graph, drawn, PRECISIONS[seed % 3])
    if all(one.held for one in graph.inputs):
        pytest.skip("all inputs are held")
    x = as_float32(random_inputs(np.random.default_rng([seed, 3]), graph, 9, 2))
    exact = reference.forward(graph, tensors, x, dtype=np.float32)
    if not all(np.isfinite(y).all() and y.size for y in exact.values()):
        pytest.skip("no rows, or numbers beyond float32")
    assert_as_the_reference(graph, tensors, x, isa, flips=0.05)


@pytest.mark.parametrize("isa", ISAS)
def test_errors_are_those_that_were_measured(isa, rng):
    """Over as many chained steps of other inputs, whatever the kernel."""
    graph = spec.Graph.chain([spec.LSTM("l", 12, 40), spec.Linear("o", 40, 5)])
    model = float32_model(graph, rng, isa=isa)
    made = fastlstm.quantize(model, "int8")
    (errors,) = made.measured.outputs.values()
    x = rng.standard_normal((made.measured.steps, 12)).astype(np.float32)
    exact = reference.forward(graph, model.tensors, {"input": x[:, None]})["output"][:, 0]
    off = np.abs(made(x)[0] - exact)
    assert off.max() < 2 * errors.largest
    assert 0.5 * errors.rms < np.sqrt(np.square(off).mean()) < 2 * errors.rms
