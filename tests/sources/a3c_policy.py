"""A policy that plays from the screen, ``baby_a3c/model.80.tar``: kernels, a GRU, two heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.sources.pytorch.checkpoint import StoredTensor, read_checkpoint

__all__ = ["ACTIONS", "FRAME", "policy"]

FRAME = (1, 80, 80)
CHANNELS, SIDE, UNITS, ACTIONS = 32, 5, 256, 6


def policy(path: Path) -> tuple[spec.Graph, dict[str, npt.NDArray[Any]]]:
    """The policy as a graph: from ``frame`` to ``value``, and ``actions`` before their softmax."""
    saved = read_checkpoint(path)
    assert isinstance(saved, dict)
    tensors = {}
    for name, tensor in saved.items():
        assert isinstance(tensor, StoredTensor)
        tensors[name] = tensor.array
    nodes: list[spec.Node] = []
    read, channels = "frame", FRAME[0]
    for n in range(1, 5):
        kernel = spec.Convolution(
            f"conv{n}", channels, CHANNELS, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1))
        )
        elu = spec.Activation(f"elu{n}", "elu(1.0)")
        nodes += [kernel(read), elu(kernel.name)]
        read, channels = elu.name, CHANNELS
    size = CHANNELS * SIDE * SIDE
    # The file has a GRUCell, whose tensors have no layer in their names.
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    of_cell = tuple((f"{part}_l0", f"gru.{part}") for part in parts)
    nodes += [
        spec.Index.of("flat", np.arange(size))(read),
        spec.GRU("gru", size, UNITS, tensor_names=of_cell)("flat"),
        spec.Linear("critic_linear", UNITS, 1)("gru"),
        spec.Linear("actor_linear", UNITS, ACTIONS)("gru"),
    ]
    outputs = {"value": "critic_linear", "actions": "actor_linear"}
    return spec.Graph((spec.Input("frame", FRAME),), tuple(nodes), outputs), tensors
