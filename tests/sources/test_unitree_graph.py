"""The walking policy of a robot as a graph equals torch.jit, step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trained import ROUNDING, Array, assert_close, check_graph, trained

torch = pytest.importorskip("torch")

from unitree_policy import policy  # noqa: E402

STEPS = 200

# The file is TorchScript, which torch reads and warns of.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def path() -> Path:
    return trained("unitree/motion.pt")


def by_torch(path: Path, obs: Array, start: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Rows (T, 1, 47) through the policy's own program, and its buffers afterwards."""
    net = torch.jit.load(path, map_location="cpu")
    for name, value in start.items():
        getattr(net, name).copy_(torch.from_numpy(value))
    with torch.no_grad():
        actions = np.stack([net(torch.from_numpy(row)).numpy() for row in obs])
    return actions, {name: getattr(net, name).numpy() for name in ("hidden_state", "cell_state")}


@pytest.mark.parametrize("start", ["as in the file", "random"])
def test_policy(path: Path, start: str, rng: np.random.Generator) -> None:
    graph, tensors = policy(path)
    buffers = {}
    if start == "random":
        buffers = {
            name: rng.uniform(-1, 1, tensors[name].shape).astype(np.float32)
            for name in ("hidden_state", "cell_state")
        }
    obs = rng.standard_normal((STEPS, 1, 47)).astype(np.float32)
    actions, ends = by_torch(path, obs, buffers)
    states = check_graph(graph, tensors | buffers, {"obs": obs}, {"actions": actions}, rng)
    for state in states.values():
        assert_close(state["memory.h"], ends["hidden_state"], ROUNDING)
        assert_close(state["memory.c"], ends["cell_state"], ROUNDING)


def test_policy_of_several_robots(path: Path, rng: np.random.Generator) -> None:
    """The program has one state; a batch of the graph is as many robots."""
    graph, tensors = policy(path)
    obs = rng.standard_normal((STEPS, 3, 47)).astype(np.float32)
    each = [by_torch(path, obs[:, [robot]], {})[0] for robot in range(3)]
    check_graph(graph, tensors, {"obs": obs}, {"actions": np.concatenate(each, axis=1)}, rng)
