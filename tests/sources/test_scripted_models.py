"""Really trained TorchScript archives, converted from their code, equal torch.jit step by step."""

from __future__ import annotations

import numpy as np
import pytest
from trained import ROUNDING, assert_close, in_pieces, trained

from fastlstm import reference
from fastlstm.sources import read

torch = pytest.importorskip("torch")

# torch.jit is no longer developed, and says so.
pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 200


def loaded(path):
    return torch.jit.load(str(path), map_location="cpu").eval()


def check(path, rows, expected, rng):
    """The rows (T, B, I) as a whole and streamed in pieces give what torch.jit gave."""
    model = read(str(path))
    (one,) = model.graph.inputs
    given = {one.name: rows.reshape(*rows.shape[:2], *one.shape)}
    whole = reference.forward(model.graph, model.tensors, given, dtype=np.float64)
    (name,) = whole
    assert_close(whole[name].reshape(expected.shape), expected, ROUNDING)
    stream = reference.Stream(model.graph, model.tensors, rows.shape[1], dtype=np.float64)
    pieces = in_pieces(stream, given, rng)
    assert_close(pieces[name].reshape(expected.shape), expected, ROUNDING)
    return model


def test_a_walking_policy(rng):
    """Its states are buffers that its forward writes into."""
    path = trained("unitree/motion.pt")
    net = loaded(path)
    x = rng.standard_normal((STEPS, 1, 47)).astype(np.float32)
    with torch.no_grad():
        expected = np.stack([net(torch.from_numpy(row)).numpy() for row in x])
    model = check(path, x, expected, rng)
    kinds = [node.layer.kind for node in model.graph.nodes]
    assert kinds == ["lstm", "linear", "activation", "linear"]
    assert "memory.weight_ih_l0" in model.tensors
    assert any("hidden_state, cell_state" in line for line in model.report)


def test_an_actuator_network(rng):
    """Its states are arguments, of two layers, and its input and output are scaled."""
    path = trained("anydrive/anydrive_v3_lstm.pt")
    net = loaded(path)
    x = rng.standard_normal((STEPS, 3, 2)).astype(np.float32)
    state = (torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))
    made = []
    with torch.no_grad():
        for row in x:
            y, state = net(torch.from_numpy(row[:, None]), state)
            made.append(y.numpy().reshape(3, -1))
    model = check(path, x, np.stack(made), rng)
    states = {a.name: a.value for a in model.call.arguments if a.role == "state"}
    assert states == {"hc0[0]": "[1][0]", "hc0[1]": "[1][1]"}


def test_a_river_model(rng):
    """Its forward views a row to one step of one sequence."""
    path = trained("noaa/sugar_creek_trained.pt")
    net = loaded(path)
    x = rng.standard_normal((STEPS, 1, 11)).astype(np.float32)
    h, c = torch.zeros(1, 1, 64), torch.zeros(1, 1, 64)
    made = []
    with torch.no_grad():
        for row in x:
            y, h, c = net(torch.from_numpy(row), h, c)
            made.append(y.numpy().reshape(1, -1))
    model = check(path, x, np.stack(made), rng)
    assert [a.role for a in model.call.arguments] == ["rows", "state", "state"]
