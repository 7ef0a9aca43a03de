"""Really trained checkpoints by words, beside their equations in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_a3c_graph import by_torch, random_frames, screens
from trained import assert_close, check_graph, trained

from fastlstm.sources import read

torch: Any = pytest.importorskip("torch")

POLICY = ", ".join(
    [
        "input(1, 80, 80)",
        *(f"conv2d(stride=2, padding=1):conv{n}, elu" for n in range(1, 5)),
        *("flatten", "gru", "[linear:critic_linear | linear:actor_linear]"),
    ]
)


@pytest.mark.parametrize("frames_of", [random_frames, screens])
def test_a_policy_of_two_outputs(frames_of: Any, rng: np.random.Generator) -> None:
    path = trained("baby_a3c/model.80.tar")
    conversion = read(path, layers=POLICY)
    frames = frames_of(rng).astype(np.float32)
    outputs, h = by_torch(path, frames)
    expected = {"critic_linear": outputs["value"], "actor_linear": outputs["actions"]}
    states = check_graph(conversion.graph, conversion.tensors, {"input": frames}, expected, rng)
    assert_close(states[np.dtype(np.float64)]["gru.h"][0], h, 1e-12)


def test_a_forecast_of_a_river(rng: np.random.Generator) -> None:
    path = trained("noaa/model_epoch009.pt")
    conversion = read(path, layers="lstm, linear")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    weights = {name: tensor.double() for name, tensor in saved.items()}
    lstm = torch.nn.LSTM(4, 126).double()
    lstm.load_state_dict(
        {n.removeprefix("lstm."): w for n, w in weights.items() if n.startswith("lstm.")}
    )
    x = rng.standard_normal((300, 2, 4))
    with torch.no_grad():
        out = lstm(torch.from_numpy(x))[0]
        y = out @ weights["head.net.0.weight"].T + weights["head.net.0.bias"]
    check_graph(conversion.graph, conversion.tensors, {"input": x}, {"output": y.numpy()}, rng)
