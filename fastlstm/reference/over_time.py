"""What the equations of every layer that looks at more than one step have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.reference.functions import Array

__all__ = ["OverTime", "State", "read_before", "side_by_side"]

State = dict[str, Array]


class OverTime:
    """A layer with its tensors: a whole sequence by one formula, or a stream in any pieces.

    Parameters
    ----------
    layer : spec.Layer
    w : mapping of str to array
        Its tensors by suffix.
    reads : sequence of spec.Row
        What is known of the values it reads.
    dtype : dtype
        What to compute in.
    """

    def __init__(
        self, layer: Any, w: Mapping[str, Any], reads: Sequence[spec.Row], dtype: Any
    ) -> None:
        self.layer, self.w, self.reads, self.dtype = layer, w, reads, dtype

    def start(self, B: int, given: Sequence[Array]) -> State:
        """The state of a new stream.

        Parameters
        ----------
        B : int
            Rows of the batch.
        given : sequence of array (1, B, ...)
            Values that a sequence starts from, if the layer reads some.
        """
        state = {
            suffix: np.zeros((shape[0], B, *shape[1:]), self.dtype)
            for suffix, shape in self.layer.state(self.reads).items()
        }
        if "count" in state:
            state["count"] = state["count"].astype(np.int64)
        return state

    def run(self, state: State, *xs: Array) -> Array:
        """Rows that the next T rows of a stream give; `state` is advanced."""
        raise NotImplementedError

    def flush(self, state: State) -> Array | None:
        """Rows that the end of a sequence still gives, of a layer that waits for later ones."""
        return None

    def whole(self, state: State, *xs: Array) -> Array:
        """Rows of a whole sequence, from a new state; `state` need not be advanced."""
        return self.run(state, *xs)


def read_before(state: State) -> int:
    """Rows that a stream has read, of a layer that counts them; all of its batch as many."""
    counts = np.unique(state["count"])
    if len(counts) != 1:
        raise ValueError(f"rows of one call have read {counts} steps; expected as many for each")
    return int(counts[0])


def side_by_side(*xs: Array) -> list[Array]:
    """Values (T, B, axes of a row) with as many axes each, so that rows broadcast from the last.

    Time and the batch stay the first two axes.
    """
    ndim = max(x.ndim for x in xs)
    return [x.reshape(*x.shape[:2], *(1,) * (ndim - x.ndim), *x.shape[2:]) for x in xs]
