"""What one word of ``layers=`` is given, and how it makes nodes of that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.blocks import Block
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.state_dict import Tensor
from fastlstm.sources.pytorch.words import Word

__all__ = ["MAX_ROW", "Making", "MisfitError", "Source", "Value", "Weights", "settings"]

MAX_ROW = 2**20  # numbers in a row, as spec.check has it

Array = npt.NDArray[Any]


class MisfitError(ValueError):
    """A word does not fit what is before it, or its weights; another order may."""


class Value(NamedTuple):
    """A value of the graph that is being made."""

    name: str
    row: spec.Row


class Source(NamedTuple):
    """What a tensor of the model is made of: one of the source's, or a number, and its shape."""

    tensor: Tensor | float
    shape: tuple[int, ...]


class Weights(NamedTuple):
    """What a word is bound to: a block, or one tensor; and the layer that has them already."""

    block: Block | None = None
    tensor: Tensor | None = None
    shared: str = ""


def settings(word: Word, known: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a word: as said, else as a module tells them, else PyTorch's.

    Raises
    ------
    ConvertError
        If a parameter must be said, or contradicts the module.
    """
    said, parameters = dict(word.given), word.parameters
    for name, own in known.items():
        if name not in said:
            parameters[name] = own
        # A module's forward may pad or cut by itself; the rest is what the module computes with.
        elif name != "padding" and _plain(said[name]) != _plain(own):
            raise ConvertError(
                f"layers= says {str(word)!r:.100}, but the module has {name}={own}; leave {name} "
                f"out"
            )
    for name, value in parameters.items():
        if value is ...:
            raise ConvertError(
                f"layers= has {str(word)!r:.100}, which does not say its {name.lstrip('*')}; "
                f"expected {KINDS[word.kind].signature}"
            )
    return parameters


def _plain(value: Any) -> Any:
    """A parameter, so that the same one in another spelling is equal: 2 and (2, 2)."""
    return value[0] if isinstance(value, tuple) and len({*value}) == 1 else value


class Making:
    """One word at work."""

    def __init__(
        self,
        word: Word,
        values: Sequence[Value],
        name: str,
        weights: Weights,
        nonlinearity: str | None,
    ) -> None:
        self.word, self.values, self.name, self.weights = word, values, name, weights
        self.nonlinearity = nonlinearity
        self.nodes: list[spec.Node] = []
        self.sources: dict[str, Source] = {}

    @property
    def value(self) -> Value:
        return self.values[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values[0].row.shape

    def settings(self) -> dict[str, Any]:
        block = self.weights.block
        known = block.known.parameters if block is not None and block.known is not None else {}
        parameters = KINDS[self.word.kind].parameters
        return settings(self.word, {n: v for n, v in known.items() if n in parameters})

    def add(self, layer: spec.Layer, *reads: Value) -> Value:
        """A node, whose row is what its layer makes of the rows it reads."""
        rows = [value.row for value in reads]
        if not layer.takes_tokens and any(row.tokens for row in rows):
            raise MisfitError("it takes numbers, and is given tokens")
        tokens = rows[0].tokens if layer.keeps_tokens and rows else 0
        self.nodes.append(layer(*(value.name for value in reads)))
        return Value(layer.name, spec.Row(layer.output(rows), tokens))

    def constant(self, name: str, source: Tensor | float, shape: tuple[int, ...]) -> Value:
        """A row that is the same at every step: a tensor of the source, under its name there."""
        tensor = source.name if isinstance(source, Tensor) else name
        self.sources[tensor] = Source(source, shape)
        return self.add(spec.Constant(name, shape, weights="" if tensor == name else tensor))

    def index(self, name: str, places: Array, *reads: Value, fill: float = 0.0) -> Value:
        return self.add(spec.Index.of(name, places, fill), *reads)

    def places(self) -> Array:
        """The place of each number of the row that is read."""
        if math.prod(self.shape) > MAX_ROW:
            raise MisfitError(f"it moves rows of more than {MAX_ROW} numbers")
        return np.arange(math.prod(self.shape)).reshape(self.shape)

    def axis(self, dim: int) -> int:
        """An axis of the row, counted from the last."""
        n = len(self.shape)
        if not -n <= dim < n:
            raise MisfitError(f"it goes over axis {dim}, and is given {self.value.row}")
        return dim if dim < 0 else dim - n
