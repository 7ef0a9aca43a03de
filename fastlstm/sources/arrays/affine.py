"""Rows of a graph as affine functions of other rows, worked out in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastlstm import spec

__all__ = ["Affine", "Affines", "NoMatch", "Source"]

Array = npt.NDArray[Any]

MAX_UNITS = 4096
MAX_ENTRIES = 2**26  # of a matrix that is worked out


class Source(NamedTuple):
    """A row, so many steps before."""

    name: str
    steps: int


@dataclass
class Affine:
    """``sum of matrix[source] @ source + constant``."""

    matrices: dict[Source, Array]
    constant: Array

    def plus(self, other: Affine, factor: float = 1.0) -> Affine:
        made = dict(self.matrices)
        for source, matrix in other.matrices.items():
            own = made.get(source)
            made[source] = factor * matrix if own is None else own + factor * matrix
        return Affine(made, self.constant + factor * other.constant)

    def times(self, matrix: Array) -> Affine:
        return Affine({s: matrix @ m for s, m in self.matrices.items()}, matrix @ self.constant)

    def scaled(self, by: Array | float) -> Affine:
        column = by if isinstance(by, float) else by[:, None]
        return Affine({s: column * m for s, m in self.matrices.items()}, by * self.constant)

    def shifted(self, steps: int) -> Affine:
        return Affine(
            {s._replace(steps=s.steps + steps): m for s, m in self.matrices.items()}, self.constant
        )

    def rows(self, places: Array) -> Affine:
        return Affine({s: m[places] for s, m in self.matrices.items()}, self.constant[places])


class NoMatch(Exception):  # noqa: N818
    """What is there is no such cell."""


class Affines:
    """What the rows of a graph are of each other.

    Parameters
    ----------
    graph : spec.Graph
    tensors : dict of str to array
    """

    def __init__(self, graph: spec.Graph, tensors: dict[str, Array]) -> None:
        self.tensors = tensors
        self.nodes = {node.name: node for node in graph.nodes}
        self._rows = spec.check(graph).rows
        self._known: dict[str, Affine] = {}

    def keep(self, name: str) -> None:
        """Take a row for no function of others, even if it is one: as a state that is kept."""
        size = self.size(name)
        self._known = {name: Affine({Source(name, 0): np.eye(size)}, np.zeros(size))}

    def size(self, name: str) -> int:
        row = self._rows[name]
        if row.tokens or len(row.shape) != 1:
            raise NoMatch
        return row.shape[0]

    def layer(self, name: str) -> Any:
        return self.nodes[name].layer if name in self.nodes else None

    def constant(self, name: str) -> Array | None:
        """The numbers of a row that never changes."""
        node = self.nodes.get(name)
        if node is None or not isinstance(node.layer, spec.Constant):
            return None
        return np.asarray(self.tensors[node.layer.names()["value"]], np.float64)

    def before(self, name: str) -> str | None:
        """The row that this one was a step ago, from zeros or from a start that is learned."""
        node = self.nodes.get(name)
        if node is None or not isinstance(node.layer, spec.Delay) or node.layer.steps != 1:
            return None
        return node.reads[0] if node.layer.initial_state != "given" else None

    def affine(self, name: str) -> Affine:
        """A row as an affine function of rows that are none themselves."""
        if name not in self._known:
            self._known[name] = self._worked_out(name)
        return self._known[name]

    def _worked_out(self, name: str) -> Affine:
        size = self.size(name)
        node = self.nodes.get(name)
        own = Affine({Source(name, 0): np.eye(size)}, np.zeros(size))
        if size > MAX_UNITS * 4:
            raise NoMatch
        if node is None:
            return own
        layer, reads = node.layer, node.reads
        if isinstance(layer, spec.Constant):
            return Affine({}, np.asarray(self.constant(name)).reshape(size))
        if isinstance(layer, spec.Linear):
            names = layer.names()
            matrix = np.asarray(self.tensors[names["weight"]], np.float64)
            made = self.affine(reads[0]).times(matrix)
            if layer.bias:
                made.constant = made.constant + self.tensors[names["bias"]]
            return made
        if isinstance(layer, spec.Index) and layer.fill == 0:
            if any(len(self._rows[read].shape) != 1 for read in reads):
                return own
            return self._moved(layer, reads)
        if isinstance(layer, spec.Activation) and layer.function.startswith("affine("):
            function = spec.parse_function(layer.function)
            made = self.affine(reads[0]).scaled(float(function.alpha))
            made.constant = made.constant + function.beta
            return made
        if isinstance(layer, spec.Arithmetic):
            made_ = self._arithmetic(layer, reads, size)
            return own if made_ is None else made_
        before = self.before(name)
        if before is None:
            return own
        if self._is_state(before) or self.affine(before).matrices.keys() == {Source(before, 0)}:
            return Affine({Source(before, 1): np.eye(size)}, np.zeros(size))
        return self._delayed(name, before, own)

    def _is_state(self, name: str) -> bool:
        """Whether a row is no affine function: then it is what is kept, and not what it reads."""
        layer = self.layer(name)
        if isinstance(layer, spec.Linear | spec.Index):
            return False
        return not (isinstance(layer, spec.Activation) and layer.function.startswith("affine("))

    def _delayed(self, name: str, before: str, own: Affine) -> Affine:
        """An affine function a step ago, where its start is what it gives for states of zero."""
        made = self.affine(before)
        start = np.zeros(self.size(name))
        layer = self.layer(name)
        if layer.initial_state == "learned":
            start = np.asarray(self.tensors[layer.names()["x_0"]], np.float64).reshape(-1)
        if not np.allclose(start, made.constant, rtol=1e-6, atol=1e-9):
            return own
        return made.shifted(1)

    def _moved(self, layer: spec.Index, reads: Sequence[str]) -> Affine:
        parts = [self.affine(read) for read in reads]
        total = np.concatenate([part.constant for part in parts])
        places = np.array(layer.places())
        filled = places < 0
        at = np.cumsum([0, *(len(part.constant) for part in parts)])
        made = Affine({}, np.where(filled, 0.0, total[places]))
        for start, part in zip(at, parts, strict=False):
            here = np.flatnonzero((places >= start) & (places < start + len(part.constant)))
            for source, matrix in part.matrices.items():
                if len(places) * matrix.shape[1] > MAX_ENTRIES:
                    raise NoMatch
                whole = np.zeros((len(places), matrix.shape[1]))
                whole[here] = matrix[places[here] - start]
                known = made.matrices.get(source)
                made.matrices[source] = whole if known is None else known + whole
        return made

    def _arithmetic(self, layer: spec.Arithmetic, reads: Sequence[str], size: int) -> Affine | None:
        if layer.operation in ("add", "subtract"):
            if any(self.size(read) != size for read in reads):
                return None
            factor = 1.0 if layer.operation == "add" else -1.0
            return self.affine(reads[0]).plus(self.affine(reads[1]), factor)
        if layer.operation == "multiply":
            for one, other in (reads, reads[::-1]):
                constant = self.constant(one)
                if constant is not None and self.size(other) == size:
                    return self.affine(other).scaled(np.broadcast_to(constant, (size,)))
        return None
