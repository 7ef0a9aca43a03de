"""What a model can be fed to try it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import Model

__all__ = ["is_bidirectional", "random_input"]

Array = npt.NDArray[Any]


def random_input(model: Model, shape: tuple[int, ...], seed: int) -> Array:
    """Standard normal features ``(*shape, I)``, or uniform tokens ``shape``, for a model."""
    rng = np.random.default_rng(seed)
    if model.takes_tokens:
        return rng.integers(0, model.input_size, shape)
    return rng.standard_normal((*shape, model.input_size)).astype(model.dtype)


def is_bidirectional(model: Model) -> bool:
    """Whether a layer runs backward too, so that the model has no single step."""
    return any(getattr(layer, "bidirectional", False) for layer in model.layers)
