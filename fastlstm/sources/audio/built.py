"""A graph that is built value by value, with its tensors, from input to output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.conversion import Conversion, conversions
from fastlstm.sources.pytorch.state_dict import Tensor, to_array

__all__ = ["INPUT", "Built"]

Array = npt.NDArray[Any]

INPUT = "input"


class Built:
    """The nodes and tensors so far.

    Parameters
    ----------
    input_size : int
        Features of a step of the one input, ``"input"``.
    """

    def __init__(self, input_size: int) -> None:
        self.nodes: list[spec.Node] = []
        self.tensors: dict[str, Array] = {}
        self.input = spec.Input(INPUT, (input_size,))

    def add(self, layer: spec.Layer, *reads: str, **tensors: Array) -> str:
        """Add a layer and its tensors, by suffix; the name of the value it gives."""
        names = layer.names()
        self.tensors |= {names[suffix]: array for suffix, array in tensors.items()}
        self.nodes.append(layer(*reads))
        return layer.name

    def constant(self, name: str, value: Array) -> str:
        return self.add(spec.Constant(name, value.shape), value=value)

    def conversion(self, at: str, dtype: str, report: Iterable[str]) -> Conversion:
        """The model whose output is the value `at`.

        Raises
        ------
        ConvertError
            If the layers make no model, or a tensor has a wrong shape.
        """
        graph = spec.Graph((self.input,), tuple(self.nodes), {"output": at})
        try:
            facts = spec.check(graph)
            spec.check_tensors(facts, {name: array.shape for name, array in self.tensors.items()})
        except ValueError as error:
            raise ConvertError(f"the layers make no model: {error}") from None
        stored = [Tensor(name, a.shape, str(a.dtype), a) for name, a in self.tensors.items()]
        layers = [f"layer {node.name!r}: {node.layer.describe()}" for node in self.nodes]
        return Conversion(
            graph,
            {tensor.name: to_array(tensor, dtype) for tensor in stored},
            (*layers, *report, *conversions(stored, dtype)),
        )
