"""One operation of a forward that is followed, as the tables of torch's operations see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.line import Line, Value
from fastlstm.sources.line.axes import Axis, Size

__all__ = ["Operation", "Step", "number", "register"]

Array = npt.NDArray[Any]

# Takes a step and then torch's own arguments, with a Value for every stand-in; other tensors are
# constants.
Operation = Callable[..., Any]

_Operation = TypeVar("_Operation", bound=Operation)


class Step:
    """An operation that is followed.

    Parameters
    ----------
    line : Line
    text : str
        What it is, for messages.
    source : str
        The code of it, or the path of its module: its name for the line, where it makes no layer.
    claim : callable
        Gives the name of the layer it makes.
    read : callable
        Reads a tensor of weights, under the name it has for the step.
    tell : callable
        Says the size that an axis must have.
    note : callable
        Says something in the report.
    """

    def __init__(
        self,
        line: Line,
        text: str,
        source: str,
        claim: Callable[[], str],
        read: Callable[[Any, str], Array],
        tell: Callable[[Axis, int], None],
    ) -> None:
        self.line, self.text, self.source = line, text, source
        self._claim, self._read, self._tell = claim, read, tell
        self._name = ""

    @property
    def name(self) -> str:
        """The name of the layer it makes."""
        self._name = self._name or self._claim()
        return self._name

    def weight(self, tensor: Any, suffix: str = "weight") -> Array:
        return self._read(tensor, suffix)

    def optional(self, tensor: Any, suffix: str = "bias") -> Array | None:
        return None if tensor is None else self._read(tensor, suffix)

    def refused(self, reason: str) -> ConvertError:
        return ConvertError(f"{self.text} {reason}")

    def value(self, x: Any) -> Value:
        """A value, or a constant as one."""
        return x if isinstance(x, Value) else self.line.constant(number(x))

    def expect(self, x: Value, axis: int, size: int) -> None:
        """Say that an axis must have a size, should that not be known yet."""
        if -x.ndim <= axis < x.ndim and x.shape[axis] is None:
            have = Size.of(x.axes[axis])
            if have.number == 1 and len(have.unknown) == 1:
                self._tell(have.unknown[0], size)
            raise self.refused(
                f"reads {size} numbers along an axis whose size depends on that of the input, "
                f"which nothing tells; expected a forward that checks it first, as in "
                f"'assert x.shape[-1] == 512'"
            )


def number(x: Any) -> Array:
    """A constant, a tensor or a number, in float64."""
    if hasattr(x, "detach"):
        if x.device.type == "meta":
            raise ConvertError(
                "a tensor on the meta device, without values, is used; expected weights that are "
                "loaded, and no copy of the input by torch.tensor()"
            )
        x = x.detach().double().numpy(force=True)
    return np.asarray(x, np.float64)


def register(table: dict[str, Operation]) -> Callable[..., Callable[[_Operation], _Operation]]:
    """A decorator that enters a function in a table under names of torch's."""

    def named(*names: str) -> Callable[[_Operation], _Operation]:
        def entered(function: _Operation) -> _Operation:
            table.update(dict.fromkeys(names, function))
            return function

        return entered

    return named
