"""A policy that plays from the screen as a graph equals its equations in torch, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from a3c_policy import ACTIONS, FRAME, policy
from trained import Array, assert_close, check_graph, trained

from fastlstm import reference, spec

torch = pytest.importorskip("torch")

STEPS = 50


@pytest.fixture
def path() -> Path:
    return trained("baby_a3c/model.80.tar")


def random_frames(rng: np.random.Generator) -> Array:
    return rng.standard_normal((STEPS, 1, *FRAME))


def screens(rng: np.random.Generator) -> Array:
    """A ball that bounces between two paddles, grey from 0 to 1, as of a game."""
    frames = np.full((STEPS, 1, *FRAME), 0.35)
    y, x = rng.integers(0, 76, 2)
    dy, dx = rng.choice([-3, -2, 2, 3], 2)
    for frame in frames[:, 0, 0]:
        frame[y : y + 3, x : x + 2] = 0.9
        for side, paddle in ((8, y), (70, rng.integers(0, 64))):
            frame[max(0, paddle - 6) : paddle + 6, side : side + 2] = 0.6
        dy, dx = (-d if not 0 <= at + d < 77 else d for at, d in ((y, dy), (x, dx)))
        y, x = y + dy, x + dx
    return frames


def by_torch(path: Path, frames: Array) -> tuple[dict[str, Array], Array]:
    """Frames (T, B, 1, 80, 80) by the equations, in float64: the outputs, and the last h."""
    functional = torch.nn.functional
    # The file is of a torch before 1.6.
    w = {name: t.double() for name, t in torch.load(path, weights_only=True).items()}
    h = torch.zeros(frames.shape[1], 256, dtype=torch.float64)
    values, actions = [], []
    for x in torch.from_numpy(frames).double():
        for n in range(1, 5):
            kernel = w[f"conv{n}.weight"], w[f"conv{n}.bias"]
            x = functional.elu(functional.conv2d(x, *kernel, stride=2, padding=1))
        from_x = functional.linear(x.flatten(1), w["gru.weight_ih"], w["gru.bias_ih"]).chunk(3, 1)
        from_h = functional.linear(h, w["gru.weight_hh"], w["gru.bias_hh"]).chunk(3, 1)
        r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
        h = (1 - z) * torch.tanh(from_x[2] + r * from_h[2]) + z * h
        values.append(functional.linear(h, w["critic_linear.weight"], w["critic_linear.bias"]))
        actions.append(functional.linear(h, w["actor_linear.weight"], w["actor_linear.bias"]))
    outputs = {"value": torch.stack(values).numpy(), "actions": torch.stack(actions).numpy()}
    return outputs, h.numpy()


@pytest.mark.parametrize("frames_of", [random_frames, screens])
def test_policy(path: Path, frames_of: object, rng: np.random.Generator) -> None:
    assert callable(frames_of)
    graph, tensors = policy(path)
    frames = frames_of(rng).astype(np.float32)
    expected, h = by_torch(path, frames)
    assert expected["actions"].shape == (STEPS, 1, ACTIONS)
    states = check_graph(graph, tensors, {"frame": frames}, expected, rng)
    assert_close(states[np.dtype(np.float64)]["gru.h"][0], h, 1e-12)
    exact = reference.forward(graph, tensors, {"frame": frames})
    for name, y in expected.items():
        assert_close(exact[name], y, 1e-12)


def test_all_of_its_state(path: Path) -> None:
    """The kernels are over the positions of a frame: only the GRU keeps anything."""
    facts = spec.check(policy(path)[0])
    assert facts.state == {"gru.h": (1, 256)}
