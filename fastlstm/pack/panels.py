"""A weight matrix in panels, the layout that the kernels read.

A panel holds ``G`` vectors of ``L`` outputs for every input row, ``(P, K, G, L)``, zero padded and
64-byte aligned, so that a kernel reads it once, in order, with full vectors. For the gates of a
cell the ``G`` vectors are those of the same ``L`` hidden units; else they are ``G`` neighbouring
groups of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Panels",
    "aligned_zeros",
    "fill",
    "groups_of",
    "pack_matrix",
    "pack_vector",
    "padded",
    "read",
    "read_matrices",
]

Array = npt.NDArray[Any]

ALIGNMENT = 64  # bytes: a cache line, and one AVX-512 vector
MOST_GROUPS = 4  # vectors of outputs in one panel: what the kernels have accumulators for


@dataclass(eq=False, repr=False)
class Panels:
    """A matrix of K inputs, or `copies` of that shape one after the other.

    ``weights`` are (P, K, G, L), ``bias``, and ``scale`` and ``shift`` of the output (P, G, L). The
    last panel of a plain matrix has ``last_groups`` vectors only; its weights and vectors then are
    flat.
    """

    weights: Array
    bias: Array
    panels: int
    inputs: int
    groups: int
    last_groups: int
    copies: int = 1
    scale: Array | None = None
    shift: Array | None = None

    @classmethod
    def of(cls, weights: Array, bias: Array) -> Panels:
        """Panels that are all of one size."""
        P, K, G, _ = weights.shape
        return cls(weights, bias, P, K, G, G)


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    itemsize = np.dtype(dtype).itemsize
    size = int(np.prod(shape, dtype=object))
    raw = np.zeros(size + ALIGNMENT // itemsize, dtype)
    first = -raw.ctypes.data % ALIGNMENT // itemsize
    return raw[first : first + size].reshape(shape)


def groups_of(outputs: int, lanes: int) -> int:
    """Vectors a panel of a cell without gates: as many as there are accumulators for, unless
    padding then costs a fifth.
    """
    vectors = -(-outputs // lanes)
    least = min(-(-vectors // g) * g for g in range(1, MOST_GROUPS + 1))
    return max(
        g for g in range(1, MOST_GROUPS + 1) if -(-vectors // g) * g <= max(least, vectors * 6 // 5)
    )


def padded(outputs: int, lanes: int) -> int:
    """Outputs of a plain matrix once packed."""
    return -(-outputs // lanes) * lanes


def fill(panels: Array, matrix: Array, first_row: int, units: int, gates: int) -> None:
    """Put ``matrix`` (gates * H, K) into rows [first_row, first_row + K) of ``panels``."""
    K = matrix.shape[1]
    by_gate = matrix.reshape(gates, -1, K)
    for p, panel in enumerate(panels):
        block = by_gate[:, p * units : (p + 1) * units]
        rows = panel[first_row : first_row + K].reshape(K, gates, units)
        rows[:, :, : block.shape[1]] = block.transpose(2, 0, 1)


def read(panels: Array, first_row: int, K: int, units: int, gates: int, outputs: int) -> Array:
    """The inverse of :func:`fill`: (gates * outputs, K)."""
    rows = panels[:, first_row : first_row + K].reshape(len(panels), K, gates, units)
    by_gate = rows.transpose(2, 0, 3, 1).reshape(gates, -1, K)[:, :outputs]
    return np.ascontiguousarray(by_gate.reshape(gates * outputs, K))


def pack_vector(vector: Array, panels: int, groups: int, units: int, gates: int) -> Array:
    """A vector (gates * H,) in the order of panels, (P, G, L)."""
    packed = aligned_zeros((panels, 1, groups, -(-units * gates // groups)), vector.dtype)
    fill(packed, vector[:, None], 0, units, gates)
    return packed[:, 0]


def _plain(outputs: int, K: int, lanes: int) -> tuple[int, int, int]:
    """Of a plain matrix: full panels, vectors of each, and of a narrower one behind them or 0."""
    vectors = -(-outputs // lanes)
    groups = min(vectors, MOST_GROUPS)
    return vectors // groups, groups, vectors % groups


def _parts(weights: Array, outputs: int, K: int, lanes: int) -> tuple[Array, Array]:
    """The full panels, and the narrower one if there is one, of flat weights."""
    full, groups, rest = _plain(outputs, K, lanes)
    cut = full * K * groups * lanes
    first = weights[:cut].reshape(full, K, groups, lanes)
    return first, weights[cut:].reshape(-1 if rest else 0, K, rest or 1, lanes)


def pack_matrix(
    matrices: Sequence[Array],
    lanes: int,
    bias: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
) -> Panels:
    """Plain (O, K) matrices, one behind the other, with vectors of all their outputs."""
    outputs, K = matrices[0].shape
    full, groups, rest = _plain(outputs, K, lanes)
    size, dtype = padded(outputs, lanes), matrices[0].dtype
    weights = aligned_zeros((len(matrices), size * K), dtype)
    units = groups * lanes
    for packed, matrix in zip(weights, matrices, strict=True):
        first, last = _parts(packed, outputs, K, lanes)
        fill(first, matrix[: full * units], 0, units, 1)
        if rest:
            fill(last, matrix[full * units :], 0, rest * lanes, 1)

    def vector(values: Array) -> Array:
        made = aligned_zeros((len(matrices), size), dtype)
        made[:, :outputs] = values.reshape(len(matrices), outputs)
        return made

    made = Panels(
        weights,
        vector(np.zeros(outputs * len(matrices), dtype) if bias is None else bias),
        full + (rest > 0),
        K,
        groups,
        rest or groups,
        len(matrices),
    )
    if scale is not None and shift is not None:
        made.scale, made.shift = vector(scale), vector(shift)
    return made


def read_matrices(panels: Panels, outputs: int, lanes: int) -> list[Array]:
    """The matrices of :func:`pack_matrix`."""
    found = []
    for packed in panels.weights:
        first, last = _parts(packed, outputs, panels.inputs, lanes)
        _, _, groups, _ = first.shape
        own = min(outputs, len(first) * groups * lanes)
        parts = [read(first, 0, panels.inputs, groups * lanes, 1, own)]
        if len(last):
            units = last.shape[2] * lanes
            parts.append(read(last, 0, panels.inputs, units, 1, outputs - own))
        found.append(np.concatenate(parts))
    return found
