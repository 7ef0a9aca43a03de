"""What of a graph can be stored in fewer bytes than float32, and together with what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastlstm.spec.graph import Graph
from fastlstm.spec.row import Shape

__all__ = ["MAX_INT8_WIDTH", "PRECISIONS", "Stored", "check_precisions", "stored"]

PRECISIONS = ("float32", "float16", "bfloat16", "int8")

# Numbers that an int8 output may be a sum over, as core/program.h has it: FL_MOST_INT8_COLUMNS.
MAX_INT8_WIDTH = 2**16


class Stored(NamedTuple):
    """Layers whose matrices have one precision: one layer, or several that share some of them.

    Parameters
    ----------
    layers : tuple of str
        Their names.
    axes : mapping of str to int
        Full name of each matrix -> the axis of its outputs.
    refused : mapping of str to str
        A precision that they cannot have -> why, in words that stand behind their names.
    """

    layers: tuple[str, ...]
    axes: Mapping[str, int]
    refused: Mapping[str, str]


def stored(graph: Graph, shapes: Mapping[str, Shape]) -> list[Stored]:
    """The layers that have matrices, those together whose matrices must be stored alike.

    Parameters
    ----------
    graph : Graph
    shapes : mapping of str to tuple of int
        Of every tensor, as :class:`Facts` has them.
    """
    users: dict[str, list[tuple[str, int | None]]] = {}  # of each tensor: the layer, and the axis
    matrices: dict[str, list[str]] = {}
    for node in graph.nodes:
        axes, names = node.layer.matrices(), node.layer.names()
        for suffix, name in names.items():
            users.setdefault(name, []).append((node.name, axes.get(suffix)))
        if axes:
            matrices[node.name] = [names[suffix] for suffix in axes]
    found, seen = [], set[str]()
    for first in matrices:
        if first in seen:
            continue
        together, tensors = {first: None}, dict[str, int]()
        waiting, refused = [first], dict[str, str]()
        while waiting:
            for name in matrices[waiting.pop()]:
                if name in tensors:
                    continue
                using = users[name]
                tensors[name] = max(axis for _, axis in using if axis is not None)
                more = [layer for layer, _ in using if layer in matrices and layer not in together]
                together |= dict.fromkeys(more)
                waiting += more
                if len({axis for _, axis in using}) > 1:
                    who = " and ".join(repr(layer) for layer, _ in using[:4])
                    why = f"tensor {name!r} is shared by {who}, which use it in different ways"
                    refused = dict.fromkeys(PRECISIONS[1:], why)
        seen |= together.keys()
        if "int8" not in refused:
            why = _no_integers(tensors, shapes)
            refused |= {"int8": why} if why else {}
        found.append(Stored(tuple(together), tensors, refused))
    return found


def _no_integers(axes: Mapping[str, int], shapes: Mapping[str, Shape]) -> str:
    """Why some matrices cannot be int8; "" if they can."""
    for name, axis in axes.items():
        width = math.prod(shapes[name]) // shapes[name][axis]
        if width > MAX_INT8_WIDTH:
            return (
                f"an output of tensor {name!r} is a sum over {width} numbers; sums of int8 "
                f"products are taken over at most {MAX_INT8_WIDTH}"
            )
    return ""


def check_precisions(known: Sequence[Stored], precisions: Mapping[str, str]) -> dict[str, str]:
    """Check that tensors are stored as the plan of their graph can take them.

    Parameters
    ----------
    known : sequence of Stored
        All layers that have matrices.
    precisions : mapping of str to str
        Of every tensor that is not stored as it is computed with, its precision.

    Returns
    -------
    dict of str to str
        Name of each of these layers -> the precision of its matrices.

    Raises
    ------
    ValueError
        Naming a tensor or a layer that is not to be stored so.
    """
    found: dict[str, str] = {}
    left = dict(precisions)
    for one in known:
        kinds = {left.pop(name, "float32") for name in one.axes}
        who = f"layer {one.layers[0]!r}"
        if len(kinds) > 1:
            raise ValueError(
                f"the matrices of {who} are {' and '.join(sorted(kinds))}; expected one precision"
            )
        (kind,) = kinds
        if why := one.refused.get(kind, ""):
            raise ValueError(f"{who} is {kind}, but {why}")
        found |= dict.fromkeys(one.layers, kind)
    if left:
        name, kind = next(iter(left.items()))
        raise ValueError(f"tensor {name!r:.200} is {kind}, and is no matrix; expected float32")
    return found
