"""Arithmetic between the numbers of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from fastlstm.spec import functions
from fastlstm.spec.frozen import extra, frozen
from fastlstm.spec.layer import Layer, OneRow
from fastlstm.spec.row import Row, Shape, broadcast

__all__ = ["OPERATIONS", "Activation", "Arithmetic", "Reduce", "Softmax"]

# Operation -> how many values it reads. A comparison gives 1 where it holds, else 0; "where" gives
# the second value where the first is not 0, else the third.
OPERATIONS = {
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "power", "minimum", "maximum"), 2),
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"), 2),
    "where": 3,
}


@frozen
class Arithmetic(Layer):
    """An operation between values, whose axes broadcast as NumPy's do.

    `operation` is ``"add"``, ``"subtract"``, ``"multiply"``, ``"divide"``, ``"power"``,
    ``"minimum"``, ``"maximum"``, one of the comparisons ``"equal"``, ``"not_equal"``, ``"less"``,
    ``"less_equal"``, ``"greater"``, ``"greater_equal"``, or ``"where"``. Constants come from a
    :class:`Constant`.
    """

    operation: str
    kind: ClassVar[str] = "arithmetic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operation not in OPERATIONS:
            raise self._refused("operation", f"one of {', '.join(OPERATIONS)}")

    def output(self, reads: Sequence[Row]) -> Shape:
        if len(reads) != OPERATIONS[self.operation]:
            raise ValueError(
                f"{self.operation} takes {OPERATIONS[self.operation]} values, and is given "
                f"{len(reads)}"
            )
        return broadcast([row.shape for row in reads])


@frozen
class Activation(OneRow):
    """A function of each number; :mod:`.functions` has their names."""

    function: str
    kind: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "function", functions.canonical(self.function))
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {error}") from None


def _check_axes(axes: Sequence[int], shape: Shape) -> None:
    """Check that a row has the axes, which count from the last, -1."""
    if any(-axis > len(shape) for axis in axes):
        raise ValueError(f"it goes over axes {list(axes)}, and is given {Row(shape)}")


@frozen
class Softmax(OneRow):
    """``exp(x) / sum(exp(x))`` over an axis, or its logarithm (``torch.nn.Softmax``).

    `axis` counts from the last one, which is -1.
    """

    axis: int = extra(default=-1, least=-6)
    log: bool = extra(default=False)
    kind: ClassVar[str] = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis >= 0:
            raise self._refused("axis", "a negative number: axes count from the last, -1")

    def of_row(self, shape: Shape) -> Shape:
        _check_axes([self.axis], shape)
        return shape


@frozen
class Reduce(OneRow):
    """Numbers over some axes of a step, made into one.

    `function` is ``"sum"``, ``"mean"``, ``"max"``, ``"min"`` or ``"l2"``, the root of the sum of
    squares (``torch.linalg.vector_norm``). `axes` count from the last one, which is -1; they stay,
    of size 1, with `keepdim`.
    """

    function: str
    axes: tuple[int, ...] = extra(default=(-1,), least=-6)
    keepdim: bool = extra(default=False)
    kind: ClassVar[str] = "reduce"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.function not in ("sum", "mean", "max", "min", "l2"):
            raise self._refused("function", "'sum', 'mean', 'max', 'min' or 'l2'")
        if not self.axes or max(self.axes) >= 0 or len(set(self.axes)) < len(self.axes):
            raise self._refused("axes", "different negative numbers: axes count from the last, -1")
        object.__setattr__(self, "axes", tuple(sorted(self.axes)))

    def of_row(self, shape: Shape) -> Shape:
        _check_axes(self.axes, shape)
        over = {len(shape) + axis for axis in self.axes}
        if self.keepdim:
            return tuple(1 if at in over else size for at, size in enumerate(shape))
        return tuple(size for at, size in enumerate(shape) if at not in over)

    def work(self, reads: Sequence[Row]) -> int:
        return math.prod(reads[0].shape)
