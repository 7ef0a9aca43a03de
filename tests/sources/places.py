"""Rows of a graph that is being built, and where each number of a value stands in them.

Every number of every row has a *place*, which is one integer. A value is an array of places: to
move numbers is to move their places, and only what a layer reads becomes a row, by one index.

A number of a state is one that the step before has left there. It is followed back through the
steps to the row that it comes from, so many steps ago.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec

__all__ = ["Places", "Rows"]

Array = npt.NDArray[Any]

BITS = 20  # a row has at most 2^20 numbers


@dataclass(frozen=True, eq=False)
class Places:
    """A value: the place of each of its numbers, -1 where it is 0."""

    array: Array

    @property
    def shape(self) -> spec.Shape:
        return self.array.shape

    def reshape(self, *shape: int) -> Places:
        return Places(self.array.reshape(shape))


class Rows:
    """The rows there are, the nodes that make them and their tensors.

    Parameters
    ----------
    names : iterable of str
        What rows may be called. Their places depend on the names and on nothing else.
    states : mapping of str to Places, optional
        State -> the value that it is in the next step. In the first step all of it is 0.
    shapes : mapping of str to tuple of int, optional
        Of rows that may be read before they are made: as they were a step ago.
    """

    def __init__(
        self,
        names: Iterable[str],
        states: Mapping[str, Places] | None = None,
        shapes: Mapping[str, spec.Shape] | None = None,
    ) -> None:
        self.names = list(names)
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.next = {
            self.numbers[name]: value.array.ravel() for name, value in (states or {}).items()
        }
        self.expected = shapes or {}
        self.shapes: dict[str, spec.Shape] = {}
        self.nodes: dict[str, spec.Node] = {}
        self.tensors: dict[str, Array] = {}
        self.moved: dict[Any, str] = {}
        self.delayed: dict[str, tuple[spec.Delay, Places]] = {}

    def given(self, name: str, shape: spec.Shape) -> Places:
        """The places of a row that is called so."""
        self.shapes[name] = shape
        return self._places(name, shape)

    def _places(self, name: str, shape: spec.Shape) -> Places:
        first = self.numbers[name] << BITS
        return Places(first + np.arange(math.prod(shape)).reshape(shape))

    def constant(self, name: str, value: Array) -> Places:
        """A row that is an array."""
        self.tensors[name] = value
        return self.add(spec.Constant(name, value.shape))

    def add(self, layer: spec.Layer, *reads: str) -> Places:
        """A row that a layer gives for rows of these names."""
        self.nodes[layer.name] = layer(*reads)
        shape = layer.output([spec.Row(self.shapes[name]) for name in reads])
        return self.given(layer.name, shape)

    def origins(self, value: Places) -> tuple[Array, Array]:
        """The places in rows that a value's numbers come from, and how many steps ago."""
        places = value.array.copy()
        steps = np.zeros_like(places)
        for _ in range(sum(map(len, self.next.values())) + 1):
            states = [number for number in self.next if (places >> BITS == number).any()]
            if not states:
                return places, steps
            for number in states:
                here = places >> BITS == number
                places[here] = self.next[number][places[here] % (1 << BITS)]
                steps[here] += 1
        raise NotImplementedError("a number of a state that no step writes")

    def read(self, value: Places, *shape: int) -> str:
        """The name of a row of these axes, or the value's own, that has its numbers."""
        shape = shape or value.shape
        places, steps = (part.reshape(shape) for part in self.origins(value))
        wanted = np.full(shape, spec.FILL)
        reads: list[str] = []
        total = 0
        for number in np.unique(places[places >= 0] >> BITS):
            for ago in np.unique(steps[places >> BITS == number]):
                reads.append(self._before(self.names[number], int(ago)))
                here = (places >> BITS == number) & (steps == ago)
                wanted[here] = total + places[here] % (1 << BITS)
                total += math.prod(self.shapes[reads[-1]])
        whole = np.array_equal(wanted.ravel(), np.arange(total))
        if whole and len(reads) == 1 and shape == self.shapes[reads[0]]:
            return reads[0]
        key = (shape, wanted.tobytes(), *reads)
        if key not in self.moved:
            name = self.moved[key] = f"moved.{len(self.moved)}"
            self.nodes[name] = spec.Index.of(name, wanted)(*reads)
            self.shapes[name] = shape
        return self.moved[key]

    def _before(self, name: str, steps: int) -> str:
        """The name of a row as it was some steps ago."""
        if not steps:
            return name
        shape = self.shapes.get(name) or self.expected[name]
        delay = spec.Delay(f"{name}.before.{steps}", shape, steps)
        self.delayed[delay.name] = delay, self._places(name, shape)
        self.shapes[delay.name] = shape
        return delay.name

    def graph(
        self, inputs: Iterable[str], outputs: Mapping[str, str]
    ) -> tuple[spec.Graph, dict[str, Array]]:
        """The graph of some rows, without nodes that no output needs, and its tensors."""
        for name, (delay, value) in self.delayed.items():
            self.nodes[name] = delay(self.read(value))
        needed: dict[str, spec.Node] = {}
        left = list(outputs.values())
        while left:
            name = left.pop()
            if name in self.nodes and name not in needed:
                needed[name] = self.nodes[name]
                left += needed[name].reads
        nodes = tuple(node for name, node in self.nodes.items() if name in needed)
        names = [name for node in nodes for name in node.layer.names().values()]
        made = tuple(spec.Input(name, self.shapes[name]) for name in inputs)
        return spec.Graph(made, nodes, outputs), {name: self.tensors[name] for name in names}
