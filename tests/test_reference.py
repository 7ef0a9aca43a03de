"""The NumPy reference is torch, to 12 digits in float64: the truth the kernels are held to.

Without torch, ``test_cells.py`` holds it to what torch recorded.
"""

from __future__ import annotations

import itertools

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import CELLS, model_file, recurrent, torch_forward

from fastlstm.reference.functions import sigmoid
from fastlstm.reference.recurrent import gru_cell, lstm_cell
from fastlstm.reference.rows import softmax
from fastlstm.spec import Softmax

OPTIONS = [
    {},
    {"num_layers": 3},
    {"bias": False},
    {"bidirectional": True},
    {"bidirectional": True, "num_layers": 2, "bias": False},
]
PROJECTIONS = [o | {"proj_size": 3} for o in OPTIONS]
CASES = [*itertools.product(CELLS, OPTIONS), *(("lstm", o) for o in PROJECTIONS)]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with torch itself")


def assert_equal(got, expected, tolerance: float = 1e-12) -> None:
    y, state = got
    expected_y, expected_state = expected
    np.testing.assert_allclose(y, expected_y, rtol=0, atol=tolerance)
    assert list(state) == list(expected_state)
    for name, array in state.items():
        np.testing.assert_allclose(array, expected_state[name], rtol=0, atol=tolerance)


@pytest.mark.usefixtures("torch")
class TestAgainstTorch:
    @pytest.mark.parametrize(("cell", "options"), CASES)
    def test_cells(self, cell, options, rng):
        for T, B, I, H in ((1, 1, 1, 5), (17, 3, 6, 11)):  # noqa: E741
            file = model_file(recurrent(cell, I, H, **options), rng, np.float64)
            x = rng.standard_normal((T, B, I))
            start = {
                n: rng.standard_normal(a.shape)
                for n, a in reference.start_state(file.layers, file.tensors, B, np.float64).items()
            }
            for state in (None, start):
                assert_equal(
                    reference.forward(file.layers, file.tensors, x, state),
                    torch_forward(file.layers, file.tensors, x, state),
                )

    @pytest.mark.parametrize("function", spec.ACTIVATIONS)
    def test_activations(self, function, rng):
        layer = spec.Activation("f", function, 9)
        x = rng.standard_normal((50, 2, 9)) * 30
        assert_equal(reference.forward([layer], {}, x), torch_forward([layer], {}, x))

    def test_layers_in_a_row(self, rng):
        layers = (
            spec.Embedding("e", 7, 4),
            spec.Linear("in", 4, 6, bias=False),
            spec.Activation("t", "tanh", 6),
            recurrent("gru", 6, 5, "a", bidirectional=True),
            recurrent("lstm", 10, 8, "b", proj_size=3),
            spec.Linear("out", 3, 7),
            spec.Activation("p", "log_softmax", 7),
        )
        file = model_file(layers, rng, np.float64)
        x = rng.integers(0, 7, (9, 3))
        assert_equal(
            reference.forward(layers, file.tensors, x), torch_forward(layers, file.tensors, x)
        )

    def test_one_hot(self, rng):
        layers = (spec.OneHot("o", 7), spec.Linear("a", 7, 3), recurrent("gru", 3, 4))
        file = model_file(layers, rng, np.float64)
        x = rng.integers(0, 7, (5, 2))
        assert_equal(
            reference.forward(layers, file.tensors, x),
            torch_forward(layers, file.tensors, x, dtype="float64"),
        )

    @pytest.mark.parametrize("cell", CELLS)
    def test_in_float32(self, cell, rng):
        """Any float dtype: in float32 it rounds as torch does, give or take."""
        file = model_file(recurrent(cell, 5, 20, num_layers=2), rng)
        x = rng.standard_normal((30, 3, 5)).astype(np.float32)
        got = reference.forward(file.layers, file.tensors, x, dtype=np.float32)
        assert got[0].dtype == np.float32
        assert_equal(got, torch_forward(file.layers, file.tensors, x), 2e-6)


class TestByItself:
    """What needs no torch to be known."""

    def test_lstm_by_hand(self):
        """One unit, one step, every gate a different known number."""
        w = {
            "weight_ih": np.array([[1.0], [2.0], [3.0], [4.0]]),
            "weight_hh": np.array([[0.1], [0.2], [0.3], [0.4]]),
            "bias_ih": np.array([0.01, 0.02, 0.03, 0.04]),
            "bias_hh": np.array([0.5, 0.6, 0.7, 0.8]),
        }
        x, h, c = np.array([[0.5]]), np.array([[-1.0]]), np.array([[2.0]])
        i, f, g, o = (0.5 * k - 0.1 * k + 0.01 * k + 0.4 + 0.1 * k for k in (1, 2, 3, 4))
        c_new = sigmoid(f) * 2.0 + sigmoid(i) * np.tanh(g)
        got_h, got_c = lstm_cell(x, h, c, w, spec.LSTM("a", 1, 1), 0)
        np.testing.assert_allclose(got_c, [[c_new]], rtol=1e-15)
        np.testing.assert_allclose(got_h, [[sigmoid(o) * np.tanh(c_new)]], rtol=1e-15)

    def test_gru_applies_reset_after_the_product(self):
        """With r = 0 (a very negative gate) only torch's form keeps the input half of n."""
        w = {
            "weight_ih": np.array([[0.0], [0.0], [1.0]]),
            "weight_hh": np.array([[0.0], [0.0], [1.0]]),
            "bias_ih": np.array([-1e9, -1e9, 0.25]),
            "bias_hh": np.array([0.0, 0.0, 7.0]),
        }
        x, h, none = np.array([[0.5]]), np.array([[3.0]]), np.zeros((1, 1))
        new, _ = gru_cell(x, h, none, w, spec.GRU("a", 1, 1), 0)
        np.testing.assert_allclose(new, np.tanh([[0.75]]), rtol=1e-15)
        new, _ = gru_cell(x, h, none, w, spec.GRU("a", 1, 1, reset_after=False), 0)
        np.testing.assert_allclose(new, np.tanh([[7.75]]), rtol=1e-15)

    def test_sigmoid_keeps_relative_precision(self):
        x = np.array([-700.0, -40, -1, 0, 1, 40, 700])
        expected = [np.exp(-700), np.exp(-40), 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-1)), 1, 1]
        np.testing.assert_allclose(sigmoid(x), expected, rtol=1e-15)

    def test_softmax_is_stable_and_sums_to_one(self):
        x = np.array([[1e4, 0.0, -1e4], [-1e300, -1e300, -np.inf], [3.0, 2.0, 1.0]])
        y = softmax(Softmax("s"), {}, x)
        np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-15)
        np.testing.assert_allclose(y[:2], [[1, 0, 0], [0.5, 0.5, 0]])
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(
                softmax(Softmax("s", log=True), {}, x[2]), np.log(y[2]), rtol=1e-14
            )

    @pytest.mark.parametrize("cell", CELLS)
    def test_inputs_are_not_changed(self, cell, rng):
        file = model_file(recurrent(cell, 3, 4, num_layers=2), rng, np.float64)
        x = rng.standard_normal((5, 2, 3))
        state = reference.start_state(file.layers, file.tensors, 2, np.float64)
        copies = [a.copy() for a in (x, *state.values(), *file.tensors.values())]
        reference.forward(file.layers, file.tensors, x, state)
        for now, before in zip((x, *state.values(), *file.tensors.values()), copies, strict=True):
            assert np.array_equal(now, before)

    def test_backward_direction_is_the_reversed_sequence(self, rng):
        both = model_file(recurrent("gru", 3, 4, bidirectional=True), rng, np.float64)
        x = rng.standard_normal((6, 2, 3))
        y, state = reference.forward(both.layers, both.tensors, x)
        one = (recurrent("gru", 3, 4),)
        reverse = {
            n.removesuffix("_reverse"): a for n, a in both.tensors.items() if "_reverse" in n
        }
        y_back, state_back = reference.forward(one, reverse, x[::-1])
        assert np.array_equal(y[..., 4:], y_back[::-1])
        assert np.array_equal(state["rnn.h"][1], state_back["rnn.h"][0])
