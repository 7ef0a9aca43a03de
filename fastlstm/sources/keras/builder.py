"""The graph that a Keras model becomes, and what is known of its tensors on the way.

A tensor of Keras is (batch, ...). Its first axis behind the batch may be time, which a graph does
not have: a value is one row of it a step. All other axes are those of a row, in Keras's order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.config import Both, Entry, Functions, Options
from fastlstm.sources.keras.file import Weights

__all__ = [
    "FIXED",
    "Axes",
    "Builder",
    "Mask",
    "Site",
    "Value",
    "WholeSequenceError",
    "leading",
    "shown",
    "take",
]

Array = npt.NDArray[Any]
Axes = tuple[int | None, ...]

# What a graph may have; a file of a few bytes can ask for any of it.
MAX_NODES, MAX_ROW, MAX_MOVED = 2**12, 2**20, 2**24


# What leaves the numbers of a model as they are.
FIXED = (
    "expected a fixed number of steps, as keras.Input((steps, features)) in front of the same "
    "layers gives it"
)


class WholeSequenceError(ConvertError):
    """A layer needs all steps of a sequence at once.

    Where the file says how many there are, the sequence is one row of so many positions.
    """


class Mask:
    """Which steps or positions count: rows of one number, 0 where they do not.

    The nodes that compute it are made where something reads them.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make

    @cached_property
    def value(self) -> Value:
        return self._make()


@dataclass(frozen=True)
class Value:
    """A tensor of Keras, as a value of the graph.

    Parameters
    ----------
    name : str
        Of the value.
    axes : tuple of int or None
        Behind the batch; None is time, and can only be the first.
    lead : tuple of int
        Axes between the batch and these, over which a layer is applied to each position.
    steps : int or None
        How many there are, where the file says it and there is time.
    mask : Mask or None
    backwards : bool
        Whether the tensor of Keras has the last step first.
    padding : (int, int)
        Steps of zeros that the tensor of Keras has before and behind the rows.
    source : str
        The input whose numbers these are, moved at most: they may be tokens.
    folded : bool
        Whether there is one row for a whole sequence, made of all its steps.
    """

    name: str
    axes: Axes
    lead: tuple[int, ...] = ()
    steps: int | None = None
    mask: Mask | None = None
    backwards: bool = False
    padding: tuple[int, int] = (0, 0)
    source: str = ""
    folded: bool = False

    @property
    def timed(self) -> bool:
        return self.axes[:1] == (None,)

    @property
    def own(self) -> tuple[int, ...]:
        """The axes of a row that a layer sees."""
        return tuple(n for n in self.axes if n is not None)

    @property
    def row(self) -> tuple[int, ...]:
        """The axes of a row."""
        return self.lead + self.own

    def but(self, name: str, **changes: Any) -> Value:
        """The same but for its name and what else is given; its numbers are no input's."""
        return dataclasses.replace(self, name=name, **({"source": ""} | changes))

    def with_steps(self, steps: int | None) -> Value:
        """The same with another number of steps, as far as it is known."""
        return dataclasses.replace(self, steps=steps)

    def of_row(self, name: str, own: Sequence[int], **changes: Any) -> Value:
        """Another row at each step, of these axes."""
        return self.but(name, axes=(None,) * self.timed + tuple(own), **changes)


@dataclass(frozen=True)
class Site:
    """A call of a layer.

    Parameters
    ----------
    entry : Entry
    options : Options
        Of the layer.
    name : str
        What nodes of this call are called, or begin with.
    tensors : str
        What its tensors begin with: all calls of a layer share them.
    weights : Weights
    inputs : list of Value
        All tensors among its arguments by place, in order.
    named : mapping of str to any
        Arguments by name, with values for tensors.
    arguments : list
        Arguments by place, with values for tensors.
    used : set of int
        Which of the tensors that it gives something reads.
    own_state : bool
        Whether its initial states are those that the last call of the model ended with.
    """

    entry: Entry
    options: Options
    name: str
    tensors: str
    weights: Weights
    inputs: list[Value]
    named: Mapping[str, Any]
    arguments: list[Any]
    used: frozenset[int] = frozenset({0})
    own_state: bool = False

    @property
    def what(self) -> str:
        return self.entry.what

    @property
    def value(self) -> Value:
        """Its only input."""
        if len(self.inputs) != 1:
            raise ConvertError(f"{self.what} is called with {len(self.inputs)} tensors; expected 1")
        return self.inputs[0]

    def take(self, shapes: Mapping[str, Axes], unread: Sequence[str] = ()) -> dict[str, Array]:
        """The weights of these names and shapes; see :func:`take`."""
        return take(self.what, self.weights, shapes, unread)


def take(
    what: str, weights: Weights, shapes: Mapping[str, Axes | None], unread: Sequence[str] = ()
) -> dict[str, Array]:
    """The weights of these names and shapes, of which None is any size or any shape.

    Raises
    ------
    ConvertError
        If one is missing, cannot be read or is of another shape.
    """
    arrays = dict(zip(shapes, weights.take(tuple(shapes), unread), strict=True))
    for name, array in arrays.items():
        if (shape := shapes[name]) is None:
            continue
        fits = len(array.shape) == len(shape) and all(
            b in (None, a) for a, b in zip(array.shape, shape, strict=True)
        )
        if not fits:
            raise ConvertError(
                f"weight {name!r} of {what} has shape {array.shape}; expected {shown(shape)}"
            )
    return arrays


class Builder:
    """The graph made so far."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.inputs: list[spec.Input] = []
        self.nodes: list[spec.Node] = []
        self.tensors: dict[str, Array] = {}
        self.tokens: dict[str, tuple[int, str]] = {}  # input: how many, and what reads them
        self.steps: int | None = None  # of the inputs, where the file tells
        self.report: list[str] = []
        self.notes: list[str] = []
        self._names: set[str] = set()
        self._moved = 0

    @property
    def old(self) -> bool:
        """Whether Keras 2 wrote the file, or none that it names."""
        return not self.version.startswith("3")

    def unique(self, name: str) -> str:
        """A name that no value has, this one if possible, which is then taken."""
        own, number = name, 1
        while own in self._names:
            number += 1
            own = f"{name}_{number}"
        self._names.add(own)
        return own

    def add(self, layer: spec.Layer, *reads: Value, **tensors: Array) -> str:
        """Add a layer, whose name is unique, and its tensors by their suffix; its name."""
        if len(self.nodes) >= MAX_NODES:
            raise ConvertError(f"the model has more than {MAX_NODES} layers")
        if layer.weights == layer.name:
            layer = dataclasses.replace(layer, weights="")
        self.nodes.append(layer(*(value.name for value in reads)))
        for suffix, name in layer.names().items():
            if suffix in tensors:
                # Of one number, it would make an axis.
                array = tensors[suffix]
                self.tensors[name] = np.ascontiguousarray(array).reshape(array.shape)
        return layer.name

    def constant(self, name: str, array: Array) -> Value:
        """A row that never changes."""
        name = self.unique(name)
        self.add(spec.Constant(name, array.shape), value=array)
        return Value(name, array.shape)

    def moved(
        self,
        name: str,
        values: Sequence[Value],
        move: Callable[..., Any],
        fill: float = 0.0,
    ) -> tuple[str, tuple[int, ...]]:
        """Move the numbers of rows: `move` gets an array of places for each row, and gives one.

        Returns the name of the value, and its axes.
        """
        places, start = [], 0
        for value in values:
            size = self.room(value.name, *value.row)
            places.append(np.arange(start, start + size).reshape(value.row))
            start += size
        moved = np.asarray(move(*places))
        if not moved.size:
            raise ConvertError(f"{name!r:.80} has no numbers: its shape is {moved.shape}")
        layer = spec.Index.of(self.unique(name), moved, fill)
        return self.add(layer, *values), layer.shape

    def room(self, what: str, *sizes: int) -> int:
        """How many numbers there are, if a row can have so many, and all rows together."""
        count = math.prod(sizes)
        self._moved += count
        if count > MAX_ROW or self._moved > MAX_MOVED:
            raise ConvertError(
                f"{what:.80} has rows of {shown(sizes)}; at most {MAX_ROW} numbers are supported, "
                f"and {MAX_MOVED} in all that are moved"
            )
        return count

    def reshaped(self, name: str, value: Value, own: Sequence[int]) -> Value:
        """The same numbers in other axes."""
        if tuple(own) == value.own:
            return value
        row = (*value.lead, *own)
        name, _ = self.moved(name, [value], lambda x: x.reshape(row))
        return value.of_row(name, own, source=value.source)

    def transposed(self, name: str, value: Value, order: Sequence[int]) -> Value:
        """The axes of a row that a layer sees, in another order, counted from 0."""
        if list(order) == list(range(len(order))):
            return value
        n = len(value.lead)
        axes = [*range(n), *(n + axis for axis in order)]
        name, row = self.moved(name, [value], lambda x: x.transpose(axes))
        return value.of_row(name, row[n:], source=value.source)

    def arithmetic(self, name: str, operation: str, *values: Value) -> Value:
        """An operation between rows, whose axes broadcast; what else is known is the first's."""
        name = self.add(spec.Arithmetic(self.unique(name), operation), *values)
        shape = np.broadcast_shapes(*(value.row for value in values))
        first = leading(values)
        return first.of_row(name, shape[len(first.lead) :])

    def activate(self, name: str, value: Value, functions: Functions) -> Value:
        """Apply functions, one after the other."""
        for function in functions:
            if isinstance(function, Both):
                first = self.activate(f"{name}.first", value, function.first)
                second = self.activate(f"{name}.second", value, function.second)
                value = self.arithmetic(name, function.operation, first, second)
            elif function in ("softmax", "log_softmax"):
                layer: spec.Layer = spec.Softmax(self.unique(name), log=function != "softmax")
                value = value.but(self.add(layer, value))
            else:
                value = value.but(self.add(spec.Activation(self.unique(name), function), value))
        return value

    def folded(self, name: str, function: str, value: Value) -> Value:
        """One row of all steps, or of all positions of the first axis that a layer sees."""
        if value.timed:
            name = self.add(spec.Fold(self.unique(name), function), value)
            return dataclasses.replace(Value(name, value.axes[1:]), folded=True)
        if function in ("first", "last"):
            at = 0 if function == "first" else -1
            places = (slice(None),) * len(value.lead) + (at,)
            name, row = self.moved(name, [value], lambda x: x[places])
            return value.but(name, axes=row[len(value.lead) :], mask=None, source=value.source)
        axis = -len(value.own)
        name = self.add(spec.Reduce(self.unique(name), function, axes=(axis,)), value)
        return value.but(name, axes=value.axes[1:], mask=None)

    def padded(self, value: Value) -> Value:
        """The value with its padding made: each row is moved by a kernel that is 1 at one place."""
        before, behind = value.padding
        if not before and not behind:
            return value
        if len(value.own) != 1:
            raise WholeSequenceError(f"{value.name!r:.80} is padded with steps of zeros; {FIXED}")
        (channels,), reach = value.own, before + behind
        self.room(value.name, channels, reach + 1)
        kernel = np.zeros((channels, 1, reach + 1), np.float32)
        kernel[:, :, behind] = 1
        layer = spec.Convolution(
            *(self.unique(f"{value.name}.padded"), channels, channels, (reach + 1,), channels),
            bias=False,
            padding=((reach, reach),),
            over_time=True,
        )
        name = self.add(layer, value, weight=kernel)
        steps = None if value.steps is None else value.steps + reach
        return value.but(name, padding=(0, 0), steps=steps)

    def in_order(self, site: Site, value: Value) -> Value:
        """The value, unless its steps are the last first, which matters to who asks."""
        if value.backwards:
            raise WholeSequenceError(
                f"{site.what} reads the last step first, as go_backwards=True gives it; {FIXED}"
            )
        return value


def leading(values: Sequence[Value]) -> Value:
    """The one that tells when there are rows of what is computed of all of them."""
    return max(values, key=lambda value: (value.timed, value.folded))


def shown(axes: Sequence[int | None]) -> str:
    """The text of a shape."""
    inside = ", ".join("any" if n is None else str(n) for n in axes)
    return f"({inside},)" if len(axes) == 1 else f"({inside})"
