"""The GELU as it was written before ONNX had an operator of that name: a chain with Erf in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fastlstm.sources.onnx.graph import Node
    from fastlstm.sources.onnx.tensors import Array

__all__ = ["GELU", "with_gelu"]

GELU = "Gelu by Erf"  # the operator's name here, in every version


def with_gelu(nodes: Sequence[Node], tensors: Mapping[str, Array]) -> list[Node]:
    """Nodes in which ``x * (1 + erf(x / sqrt(2))) / 2`` is one operator, however it is grouped."""
    if not any(node.op == "Erf" for node in nodes):
        return list(nodes)
    search = _Search(nodes, tensors)
    made = {node.name + node.outputs[0]: search.gelu(node) for node in nodes if node.op == "Erf"}
    found = {whole.outputs[0]: whole for whole in made.values() if whole is not None}
    return [found.get(node.outputs[0], node) if node.outputs else node for node in nodes]


class _Search:
    def __init__(self, nodes: Sequence[Node], tensors: Mapping[str, Array]) -> None:
        self.makers = {name: node for node in nodes for name in node.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.reads:
                self.readers.setdefault(name, []).append(node)
        self.tensors = tensors

    def number(self, name: str) -> float | None:
        """The one number that a constant is."""
        array = None
        if name in self.tensors:
            array = self.tensors[name]
        elif (node := self.makers.get(name)) is not None and node.op == "Constant":
            value = node.attributes.get("value")
            if value is not None and value.type == 4 and math.prod(value.t.dims) == 1:
                array = self.tensors.array(value.t, node.label)  # type: ignore[attr-defined]
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def gelu(self, erf: Node) -> Node | None:
        """The last node of the chain as the whole of it; None if it is no GELU."""
        x = self._halved(erf.inputs[0], math.sqrt(2))
        if x is None:
            return None
        added = self._only(erf.outputs[0], "Add", 1.0)
        if added is None:
            return None
        # Products of 1 + erf, x and a half, in any order.
        at, missing, half = added, [x], False
        while missing or not half:
            readers = self.readers.get(at.outputs[0], [])
            if len(readers) != 1 or readers[0].op not in ("Mul", "Div"):
                return None
            (product,) = readers
            other = product.inputs[1 - product.inputs.index(at.outputs[0])]
            number = self.number(other)
            first = product.inputs[0] == at.outputs[0]
            if number is not None and not half and _is_half(product.op, number, first):
                half = True
            elif product.op == "Mul" and missing and other == x:
                missing = []
            elif product.op == "Mul" and missing and not half and self._is_half_of(other, x):
                missing, half = [], True
            else:
                return None
            at = product
        return dataclasses.replace(at, op=GELU, inputs=(x,), attributes={})

    def _halved(self, name: str, root: float) -> str | None:
        """What is divided by a root, if this is what a name stands for."""
        node = self.makers.get(name)
        if node is None or node.op not in ("Div", "Mul"):
            return None
        for n, read in enumerate(node.inputs):
            number = self.number(read)
            wanted = root if node.op == "Div" else 1 / root
            if number is not None and np.float32(number) == np.float32(wanted):
                return None if node.op == "Div" and n == 0 else node.inputs[1 - n]
        return None

    def _only(self, name: str, op: str, constant: float) -> Node | None:
        """The node that alone reads a value, and adds a number to it."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or readers[0].op != op:
            return None
        other = readers[0].inputs[1 - readers[0].inputs.index(name)]
        return readers[0] if self.number(other) == constant else None

    def _is_half_of(self, name: str, x: str) -> bool:
        node = self.makers.get(name)
        if node is None or node.op not in ("Mul", "Div") or x not in node.inputs:
            return False
        first = node.inputs[0] == x
        number = self.number(node.inputs[1 if first else 0])
        return number is not None and _is_half(node.op, number, first)


def _is_half(op: str, number: float, first: bool) -> bool:
    return number == 0.5 if op == "Mul" else number == 2.0 and first
