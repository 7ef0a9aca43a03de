"""Rows that are held for a whole sequence, beside those of its steps."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import reference, spec

T, B = 5, 3


def test_a_constant_has_a_row_for_each_of_a_batch(rng):
    nodes = [
        spec.Node(spec.Constant("c", (2,)), ()),
        spec.Node(spec.Activation("a", "tanh"), ("c",)),
    ]
    graph = spec.Graph([spec.Input("x", (2,))], nodes, {"c": "c", "a": "a", "x": "x"})
    c, x = rng.normal(size=2), rng.normal(size=(T, B, 2))
    whole = reference.forward(graph, {"c": c}, {"x": x})
    assert whole["c"].shape == whole["a"].shape == (1, B, 2)
    np.testing.assert_array_equal(whole["a"], np.tile(np.tanh(c), (1, B, 1)))


@pytest.mark.parametrize("moving", ["mask", "h"])
def test_a_recurrence_along_positions_of_a_held_row_starts_anew_each_step(moving, rng):
    layer = spec.RNN("rnn", 2, 4, along="positions", hold=True, initial_state="given")
    shapes = {"x": (3, 2), "mask": (3, 1), "h": (1, 4)}
    inputs = [spec.Input(name, shape, held=name != moving) for name, shape in shapes.items()]
    graph = spec.Graph(inputs, [spec.Node(layer, tuple(shapes))], {"y": "rnn"})
    tensors = {name: rng.normal(size=shape) for name, shape in spec.check(graph).tensors.items()}
    values = {
        name: rng.integers(0, 2, (T, B, *shape)).astype(float)
        if name == "mask"
        else rng.normal(size=(T, B, *shape))
        for name, shape in shapes.items()
    }
    values = {name: x if name == moving else x[:1].repeat(T, 0) for name, x in values.items()}
    all_moving = spec.Graph(
        [spec.Input(name, shape) for name, shape in shapes.items()], graph.nodes, graph.outputs
    )
    exact = reference.forward(all_moving, tensors, values)["y"]
    given = {name: x if name == moving else x[0] for name, x in values.items()}
    np.testing.assert_allclose(reference.forward(graph, tensors, given)["y"], exact, rtol=1e-12)
