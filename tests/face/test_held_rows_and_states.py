"""Rows that are held for a sequence, given again beside a state that holds them."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import Model, spec
from fastlstm.format import ModelFile


@pytest.fixture
def model():
    graph = spec.Graph(
        (spec.Input("x", (3,)), spec.Input("gain", (3,), held=True)),
        (
            spec.Node(spec.Activation("bounded", "tanh"), ("gain",)),
            spec.Node(spec.Arithmetic("scaled", "multiply"), ("x", "bounded")),
            spec.Node(spec.Fold("y", "sum", cumulative=True), ("scaled",)),
        ),
        {"y": "y"},
    )
    return Model(ModelFile(graph, {}))


def test_the_same_rows_or_none_go_with_a_state(model, rng):
    x, gain = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 3), (3,)))
    y, _ = model({"x": x, "gain": gain})
    _, state = model({"x": x[:4], "gain": gain})
    assert np.array_equal(model({"x": x[4:]}, state)[0], y[4:])
    assert np.array_equal(model({"x": x[4:], "gain": gain}, state)[0], y[4:])


def test_other_rows_are_refused(model, rng):
    x, gain = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 3), (3,)))
    _, state = model({"x": x, "gain": gain})
    with pytest.raises(ValueError, match="other rows of what is held for a sequence"):
        model({"x": x, "gain": gain + 1}, state)
