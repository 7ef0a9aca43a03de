"""A robot's walking policy, ``unitree/motion.pt``: an LSTM, and a perceptron behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastlstm import spec

__all__ = ["policy"]


def policy(path: Path) -> tuple[spec.Graph, dict[str, npt.NDArray[Any]]]:
    """The policy as a graph; the tensors are those of the file, under its names.

    ``forward`` reads h and c from two buffers and writes them back: a sequence starts from what
    the file has in them.
    """
    state = torch.jit.load(path, map_location="cpu").state_dict()
    tensors = {name: tensor.numpy() for name, tensor in state.items()}
    batched, unbatched = (1, 1, 64), np.arange(64).reshape(1, 64)
    nodes = (
        spec.Node(spec.Constant("hidden_state", batched), ()),
        spec.Node(spec.Index.of("h", unbatched), ("hidden_state",)),
        spec.Node(spec.Constant("cell_state", batched), ()),
        spec.Node(spec.Index.of("c", unbatched), ("cell_state",)),
        spec.Node(spec.LSTM("memory", 47, 64, initial_state="given"), ("obs", "h", "c")),
        spec.Node(spec.Linear("actor.0", 64, 32), ("memory",)),
        spec.Node(spec.Activation("actor.1", "elu(1.0)"), ("actor.0",)),
        spec.Node(spec.Linear("actor.2", 32, 12), ("actor.1",)),
    )
    return spec.Graph((spec.Input("obs", (47,)),), nodes, {"actions": "actor.2"}), tensors
