"""Weights of CuDNNLSTM and CuDNNGRU in the layout of LSTM and GRU.

CuDNN's kernels are transposed, gate by gate, those of the input lie in the order of columns, and
there are two biases of each gate (``_convert_rnn_weights`` of keras/src/saving of Keras 2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["is_cudnn", "of_cudnn"]

Array = npt.NDArray[Any]


def is_cudnn(bias: tuple[int, ...], rows: int) -> bool:
    """Whether a bias of this shape, of a cell of so many gates times units, is CuDNN's."""
    return bias == (2 * rows,)


def of_cudnn(arrays: dict[str, Array], gates: int, reset_after: bool) -> dict[str, Array]:
    """kernel, recurrent_kernel and bias; a GRU's two biases stand apart, an LSTM's are added."""

    def each(array: Array, change: Any) -> Array:
        return np.hstack([change(part) for part in np.hsplit(array, gates)])

    bias = arrays["bias"].reshape(2, -1)
    return {
        "kernel": each(arrays["kernel"], lambda k: k.T.reshape(k.shape, order="F")),
        "recurrent_kernel": each(arrays["recurrent_kernel"], lambda k: k.T),
        "bias": bias if reset_after else bias[0] + bias[1],
    }
