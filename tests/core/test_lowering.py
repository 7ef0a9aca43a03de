"""The graph that a chain of layers is lowered to: its equations, whole and streamed, and back."""

from __future__ import annotations

import json

import chain
import numpy as np
import pytest
from chain.lower import lowered, raised
from chain.reference import forward
from conftest import SEED
from models import every_model, random_tensors
from test_random_models import VOCABULARY, Draw, tensors_of

from fastlstm import reference, spec

MODELS = every_model(4)


def in_pieces(graph, tensors, x, rng):
    """The rows of a stream of the graph, in pieces of random sizes, then those of its end."""
    stream = reference.Stream(graph, tensors, x.shape[1])
    rows, t = [], 0
    while t < len(x):
        n = int(rng.integers(0, 9))
        rows.append(stream.run({"input": x[t : t + n]})["output"])
        t += n
    return np.concatenate(rows) if rows else stream.run({"input": x})["output"], stream.flush()


def check_same(layers, tensors, x, rng):
    """The formulas of a whole sequence give what the graph's stream gives, in any pieces."""
    graph = lowered(layers)
    facts = spec.check(graph)
    shapes = {name: array.shape for name, array in tensors.items()}
    spec.check_tensors(facts, shapes)
    exact, _ = forward(layers, tensors, x)
    y = reference.forward(graph, tensors, {"input": x})["output"]
    assert y.shape == exact.shape
    size = np.abs(exact).max(initial=1)
    if not np.isfinite(size) or size > 1e6:
        pytest.skip("its numbers grow")
    np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-8 * size)
    # A convolution that is padded behind the sequence streams too, late.
    assert chain.looks_ahead(layers) or not facts.looks_ahead
    if facts.looks_ahead:
        return
    pieces, due = in_pieces(graph, tensors, x, rng)
    if any(layer.pools for layer in layers):
        streamed, _ = forward(layers, tensors, x, streaming=True)
        np.testing.assert_allclose(pieces, streamed, rtol=1e-6, atol=1e-8 * size)
    else:
        together = np.concatenate([pieces, due["output"]])
        np.testing.assert_allclose(together, y, rtol=1e-6, atol=1e-8 * size)


def tokens_or_features(layers, rng, T, B):
    first = layers[0]
    if first.takes_tokens:
        return rng.integers(0, first.input_size, (T, B))
    return rng.standard_normal((T, B, first.input_size))


class TestEquations:
    @pytest.mark.parametrize("name", MODELS)
    def test_of_every_kind(self, name):
        rng = np.random.default_rng(SEED)
        layers = MODELS[name]
        tensors = random_tensors(layers, rng, np.float64)
        check_same(layers, tensors, tokens_or_features(layers, rng, 23, 2), rng)

    @pytest.mark.parametrize("seed", range(SEED, SEED + 150))
    def test_of_a_random_model(self, seed):
        rng = np.random.default_rng(seed)
        layers = Draw(rng).model()
        tensors = tensors_of(layers, rng, np.float64)
        T, B = int(rng.integers(1, 40)), int(rng.integers(1, 4))
        assert VOCABULARY
        check_same(layers, tensors, tokens_or_features(layers, rng, T, B), rng)


class TestThereAndBack:
    @pytest.mark.parametrize("name", MODELS)
    def test_of_every_kind(self, name):
        assert raised(lowered(MODELS[name])) == MODELS[name]

    @pytest.mark.parametrize("seed", range(SEED, SEED + 150))
    def test_of_a_random_model(self, seed):
        layers = Draw(np.random.default_rng(seed)).model()
        graph = lowered(layers)
        assert spec.Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph
        again = raised(graph)
        assert lowered(again) == graph
        # A frame that is not padded has no way of padding, and comes back as padded by zeros.
        assert [layer.name for layer in again] == [layer.name for layer in layers]

    @pytest.mark.parametrize(
        "layers",
        [
            (chain.Linear("input", 2, 2), chain.Linear("output", 2, 2)),
            (chain.Residual("r", (chain.Linear("input", 2, 2),)), chain.Linear("x", 2, 2)),
            (chain.CombineHalves("a", "glu", 4), chain.Linear("a--first", 2, 2)),
            (chain.PReLU("a", 2), chain.Linear("a.weight", 2, 2)),
            (chain.Scale("a", 2), chain.Activation("a.bias", "tanh", 2)),
        ],
    )
    def test_of_layers_called_like_parts_of_others(self, layers):
        graph = lowered(layers)
        assert spec.check(graph).tensors == {
            name: shape for layer in layers for name, shape in layer.tensors().items()
        }
        assert raised(graph) == layers
        tensors = {n: np.ones(s) for layer in layers for n, s in layer.tensors().items()}
        x = np.ones((3, 2, layers[0].input_size))
        y, _ = forward(layers, tensors, x)
        exact = reference.forward(graph, tensors, {graph.inputs[0].name: x})["output"]
        np.testing.assert_allclose(y, exact)

    @pytest.mark.parametrize("mode", ["reflect", "replicate"])
    @pytest.mark.parametrize("left", [0, 1, 2, 3])
    @pytest.mark.parametrize("right", [0, 1, 3])
    def test_of_every_padding(self, mode, left, right):
        if left + right == 0:
            mode = "zeros"
        layer = chain.FrameConv1d(
            "c", 2, 3, 4, width=5, padding_left=left, padding_right=right, padding_mode=mode
        )
        assert raised(lowered((layer,))) == (layer,)

    def test_what_is_no_chain(self):
        graph = spec.Graph(
            [spec.Input("x", (3,))],
            [
                spec.Node(spec.Activation("a", "tanh"), ("x",)),
                spec.Node(spec.Activation("b", "sigmoid"), ("x",)),
                spec.Node(spec.Arithmetic("c", "multiply"), ("a", "b")),
            ],
            {"y": "c"},
        )
        spec.check(graph)
        with pytest.raises(ValueError, match="not a chain of layers"):
            raised(graph)
