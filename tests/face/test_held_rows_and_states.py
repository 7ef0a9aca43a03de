"""Rows that are held for a sequence, given again beside a state that holds them."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import Model, _engine, spec
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


def test_a_row_that_starts_anew_needs_what_is_held(model, rng):
    x, gain = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 3), (3,)))
    _, state = model({"x": x, "gain": gain})
    reset = np.arange(6) == 4
    with pytest.raises(ValueError, match="x lacks 'gain', which a row needs where it starts anew"):
        model({"x": x}, state, reset=reset)
    y, _ = model({"x": x, "gain": gain}, state, reset=reset)
    assert np.array_equal(y[4:], model({"x": x[4:], "gain": gain})[0])


def test_a_count_that_is_none_is_an_error_and_not_what_was_in_memory(model, rng):
    stream = model.stream(held={"gain": rng.standard_normal(3).astype(np.float32)})
    refused = []
    for n in range(model._network.state_size):
        block = stream.read_block()
        block[0, n] = -1.5
        other = stream.clone()
        other.write_block(block)
        try:
            assert set(other.state) == set(stream.state)
        except ValueError as error:
            refused.append(str(error))
    counts = sum(_engine.part_counts(model._network))
    assert counts
    assert len(refused) >= counts
    assert all("state" in text for text in refused)
