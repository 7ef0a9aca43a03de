"""What a line of operations is recorded as: nodes, each an array by the operation that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.sources.line.axes import Axis, Group, Size, leaves, size_of

__all__ = [
    "Absorbing",
    "Activated",
    "Array",
    "Centred",
    "Constant",
    "Convolved",
    "Deviation",
    "End",
    "Final",
    "Half",
    "Joined",
    "Lengths",
    "Node",
    "Padded",
    "Part",
    "Power",
    "Scaled",
    "SquareSum",
    "State",
    "Statistic",
    "Value",
    "Zeros",
    "same",
]

Array = npt.NDArray[Any]
Part = tuple[spec.Layer, Mapping[str, Array]]  # a layer, and its tensors by suffix


class Value:
    """An array on the line: a node, seen through transposes and reshapes.

    Attributes
    ----------
    ndim : int
    shape : tuple of int or None
        None where a size is not known.
    """

    def __init__(self, node: Node, axes: Sequence[Group]) -> None:
        self.node = node
        self._axes = tuple(axes)

    @property
    def axes(self) -> tuple[Group, ...]:
        return tuple(map(leaves, self._axes))

    @property
    def ndim(self) -> int:
        return len(self._axes)

    @property
    def shape(self) -> tuple[int | None, ...]:
        return tuple(map(size_of, self.axes))

    def size(self, axis: int) -> int | Size:
        """The size of an axis; one that is not known can be multiplied and given to a reshape."""
        size = size_of(self.axes[axis])
        return Size.of(self.axes[axis]) if size is None else size


@dataclass(eq=False)
class Node:
    """An array: what made it, and the order of its features in the row of a model.

    Parameters
    ----------
    name : str
        Of the operation, for messages and for its layer.
    row : Group
        The axes of which those that prove to be features make the row, the first one outermost.
    source : Value, optional
        What it was made of.
    make : callable, optional
        Makes the layer of a name; gives None where none is needed. Without it, the node is no step
        of a line on its own.
    unfinished : str
        What is expected of a node without `make`.
    """

    name: str
    row: Group
    source: Value | None = None
    make: Callable[[str], Part | None] | None = None
    unfinished: str = ""


@dataclass(eq=False)
class Constant(Node):
    """An array that depends on no input; axes of size 1 in it may stand for larger ones."""

    array: Array = field(kw_only=True)


@dataclass(eq=False)
class Zeros(Node):
    """Zeros of any shape."""


@dataclass(eq=False)
class State(Node):
    """An input that carries states in, or the part of one that a recurrent layer starts from."""


@dataclass(eq=False)
class Lengths(Node):
    """An input that holds the steps of each row."""


@dataclass(eq=False)
class Final(Node):
    """The last h or c of a recurrent layer: axes layers * directions, batch, units.

    Where there are several `layers`, `last` is that of the last one. One that runs `backwards` ends
    with the first step.
    """

    backwards: bool = field(kw_only=True)
    layers: Axis | None = field(kw_only=True, default=None)
    last: Value | None = field(kw_only=True, default=None)


@dataclass(eq=False)
class End(Node):
    """The first row of a sequence, or the last."""

    last: bool = field(kw_only=True)


@dataclass(eq=False)
class Absorbing(Node):
    """A layer that can take in what is multiplied and added behind it.

    `absorb` makes it again for a view of its output, and a factor and an addend with as many axes;
    None if it cannot.
    """

    absorb: Callable[[Value, Array, Array], Absorbing | None] = field(kw_only=True)


@dataclass(eq=False)
class Statistic(Node):
    """The mean over the last axis, which holds features."""


@dataclass(eq=False)
class Centred(Node):
    """The source without its mean over the last axis."""


@dataclass(eq=False)
class Deviation(Node):
    """The root of the mean square of what is centred, and of `eps`."""

    eps: float = field(kw_only=True)


@dataclass(eq=False)
class Convolved(Node):
    """A convolution, its output running `along` an axis.

    `crop` makes it again, without so many positions on the left and right of its output; None if
    these are more than its padding added.
    """

    along: Group = field(kw_only=True)
    crop: Callable[[int, int], Convolved | None] = field(kw_only=True)


@dataclass(eq=False)
class Padded(Node):
    """Padding of one axis, `before`, which becomes `after`."""

    before: Group = field(kw_only=True)
    after: Group = field(kw_only=True)
    padding: tuple[int, int] = field(kw_only=True)
    mode: str = field(kw_only=True)


@dataclass(eq=False)
class Half(Node):
    """The first (0) or second (1) half of an axis of the source."""

    axis: Axis = field(kw_only=True)
    which: int = field(kw_only=True)


@dataclass(eq=False)
class Power(Node):
    """The source to the power of 2 or 3."""

    exponent: int = field(kw_only=True)


@dataclass(eq=False)
class SquareSum(Node):
    """The sum of squares of two halves, whose root is `root`."""

    root: Value = field(kw_only=True)


@dataclass(eq=False)
class Activated(Node):
    """A function of the source."""

    function: str = field(kw_only=True)


@dataclass(eq=False)
class Scaled(Node):
    """The source times `weight` plus `bias`, which have as many axes as it had then.

    The last of the operations that these were composed of turned `step` into `factor` times that
    plus `shift`.
    """

    weight: Array = field(kw_only=True)
    bias: Array = field(kw_only=True)
    step: Value = field(kw_only=True)
    factor: Array = field(kw_only=True)
    shift: Array = field(kw_only=True)


@dataclass(eq=False)
class Joined(Node):
    """Two values added, or several concatenated along axis number `axis`, which becomes `joint`."""

    values: tuple[Value, ...] = field(kw_only=True)
    axis: int | None = field(kw_only=True, default=None)
    joint: Axis | None = field(kw_only=True, default=None)


def same(a: Value | None, b: Value | None) -> bool:
    """Whether two values are one array."""
    return a is not None and b is not None and a.node is b.node and a.axes == b.axes
