"""A model's tensors as the arrays of a file: of those in fewer bytes numbers, and perhaps scales.

The scales of an int8 tensor are an array of float32 beside it. Which axis they are of is in no
file: the graph tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.container import Tensor as Entry
from fastlstm.reduced import Reduced, Tensor, Tensors

__all__ = ["REDUCED", "SCALE", "arrays_of", "check_reduced", "tensors_of"]

Array = npt.NDArray[Any]

SCALE = "stored_scale."  # stands before the name of the tensor

# dtype code of a file -> the precision that it is of.
REDUCED = {"I8": "int8", "F16": "float16", "BF16": "bfloat16"}

_PRECISIONS = {np.dtype(np.int8): "int8", np.dtype(np.float16): "float16"}
_PRECISIONS |= {np.dtype(np.uint16): "bfloat16"}


def arrays_of(tensors: Tensors) -> dict[str, Array]:
    """The arrays that a file holds of tensors."""
    arrays: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Reduced):
            arrays[name] = tensor.numbers
            if tensor.scale is not None:
                arrays[SCALE + name] = tensor.scale
        else:
            arrays[name] = tensor
    return arrays


def tensors_of(
    graph: spec.Graph, facts: spec.Facts, arrays: Mapping[str, Array]
) -> dict[str, Tensor]:
    """The inverse of :func:`arrays_of`, for the tensors of a graph that :func:`check_reduced` saw.

    Raises
    ------
    ValueError
        If a tensor has numbers or scales that there cannot be.
    """
    tensors: dict[str, Tensor] = {name: arrays[name] for name in facts.tensors}
    reduced = {n: kind for n in tensors if (kind := _PRECISIONS.get(arrays[n].dtype))}
    axes = _axes(spec.stored(graph, facts.tensors)) if reduced else {}
    for name, kind in reduced.items():
        axis = axes[name] if kind == "int8" else 0
        try:
            tensors[name] = Reduced(kind, arrays[name], arrays.get(SCALE + name), axis)
        except ValueError as error:
            raise ValueError(f"tensor {name!r:.200}: {error}") from None
    return tensors


def check_reduced(
    graph: spec.Graph,
    facts: spec.Facts,
    table: Mapping[str, Entry],
    weights: Mapping[str, Entry],
) -> dict[str, str]:
    """Check what a header says of tensors in fewer bytes, and of their scales.

    Parameters
    ----------
    graph : spec.Graph
    facts : spec.Facts
    table : mapping of str to Entry
        All of the header.
    weights : mapping of str to Entry
        The tensors of the graph among it.

    Returns
    -------
    dict of str to str
        Name of each tensor in fewer bytes -> its precision.

    Raises
    ------
    ValueError
        Naming the tensor, or the scales, that cannot be.
    """
    reduced = {n: REDUCED[entry.code] for n, entry in weights.items() if entry.code in REDUCED}
    expected: dict[str, tuple[str, spec.Shape]] = {}
    if reduced:
        known = spec.stored(graph, facts.tensors)
        spec.check_precisions(known, reduced)
        for name, axis in _axes(known).items():
            if reduced.get(name) == "int8":
                expected[SCALE + name] = ("F32", (facts.tensors[name][axis],))
    found = {n: (e.code, tuple(e.shape)) for n, e in table.items() if n.startswith(SCALE)}
    if found != expected:
        name = min(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        raise ValueError(
            f"the scales {name!r:.200} are {found.get(name, 'missing')}; expected "
            f"{expected.get(name, 'none, for there is no such int8 tensor')}"
        )
    return reduced


def _axes(known: list[spec.Stored]) -> dict[str, int]:
    return {name: axis for one in known for name, axis in one.axes.items()}
