"""Tensors that stand for a module's input while its forward runs, so that it tells what it does.

A stand-in is a torch tensor without values. What torch is asked to do with one it hands on, by
``__torch_function__``, its own way of being extended, to the :class:`Listener` of the moment; and
so what is asked of a :class:`Length`, a size that only the input tells.
"""

from __future__ import annotations

import contextvars
import functools
from dataclasses import dataclass
from typing import Any, Protocol

from fastlstm.errors import ConvertError
from fastlstm.sources.line import Value
from fastlstm.sources.line.axes import Size

__all__ = [
    "AS_NUMBER",
    "ImpossibleError",
    "InputKnown",
    "Length",
    "Listener",
    "Memory",
    "Packed",
    "Stand",
    "found_in",
    "listening",
    "stand_in",
    "stand_of",
]

AS_NUMBER = (
    "a length that only the input tells is used as a number, as in a loop over time, a condition "
    "or a slice of a table; expected one call of a layer for a whole sequence: convert the layers "
    "of the module with layers=, or the cell that a loop runs with prefix="
)


class ImpossibleError(ConvertError):
    """What a module itself would not take: another kind of input may do."""


class InputKnown(Exception):  # noqa: N818
    """Running told the size of an axis of the input, with which to start again."""

    def __init__(self, axis: int, size: int) -> None:
        super().__init__()
        self.axis, self.size = axis, size


class Listener(Protocol):
    """What follows a forward: it is told each call that has a stand-in among its arguments."""

    def operation(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Of a function, method or property of torch."""

    def module(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Of a module."""

    def recurrent(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Of the forward of torch's own LSTM, GRU or RNN, or of one of their cells."""

    def compare(self, size: Size, other: int) -> None:
        """Of a size that is not known with a number."""


listening: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener")


class Memory:
    """What several stand-ins may share, as views of one tensor: how often it was written to."""

    def __init__(self) -> None:
        self.version = 0


@dataclass
class Stand:
    """What a stand-in stands for.

    Parameters
    ----------
    value : Value, or None
        None for an argument of forward, of which only its use tells what it is.
    is_float : bool
        Whether its dtype is that of the weights; else it holds integers.
    memory : Memory
    version : int
        The version of the memory when this was made; it is of no use once that has changed.
    argument : str
        The name of the argument.
    """

    value: Value | None
    is_float: bool
    memory: Memory
    version: int
    argument: str = ""


class Length:
    """A size that only the input tells, and `more` added to it."""

    def __init__(self, size: Size, more: int = 0) -> None:
        self.size, self.more = size, more

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _operation(function, args, kwargs)

    def __repr__(self) -> str:
        return "?"

    def _whole(self) -> Size:
        if self.more:
            raise ConvertError(AS_NUMBER)
        return self.size

    def __mul__(self, other: object) -> Length | int:
        if isinstance(other, Length):
            return Length(self._whole() * other._whole())
        if isinstance(other, int):
            return Length(self._whole() * other) if other else 0
        return NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Length | int:
        if not isinstance(other, int | Length):
            return NotImplemented
        rest = self._whole() / (other._whole() if isinstance(other, Length) else other)
        if rest is None:
            raise ConvertError(AS_NUMBER)
        return Length(rest) if rest.unknown else rest.number

    def __add__(self, other: object) -> Length:
        return Length(self.size, self.more + other) if isinstance(other, int) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: object) -> Length | int:
        if isinstance(other, Length) and other.size == self.size:
            return self.more - other.more
        return Length(self.size, self.more - other) if isinstance(other, int) else NotImplemented

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Length) and other.size == self.size:
            return self.more == other.more
        listener = listening.get(None)
        if listener and isinstance(other, int) and not self.more:
            listener.compare(self.size, other)
        raise ConvertError(AS_NUMBER)

    def __hash__(self) -> int:
        return hash((self.size, self.more))

    def _refused(self, *others: object) -> Any:
        raise ConvertError(AS_NUMBER)

    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __mod__ = __rsub__ = __neg__ = _refused
    __index__ = __int__ = __float__ = __truediv__ = __rtruediv__ = __rfloordiv__ = _refused


@dataclass(frozen=True)
class Packed:
    """What ``pack_padded_sequence`` made of a stand-in, and ``pad_packed_sequence`` unmakes."""

    data: Any
    lengths: Any
    batch_first: bool


def _operation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    listener = listening.get(None)
    if listener is None:
        raise ConvertError(
            "the module kept a tensor of a conversion and used it later; expected a forward that "
            "keeps none: convert a copy of the module"
        )
    return listener.operation(function, args, kwargs or {})


@functools.cache
def _tensor_class() -> Any:
    """A class of tensors all of whose operations are handed on."""
    import torch

    def torch_function(
        cls: Any, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _operation(function, args, kwargs)

    return type("StandIn", (torch.Tensor,), {"__torch_function__": classmethod(torch_function)})


def stand_in(stand: Stand) -> Any:
    """A tensor that stands for something; without values, on the meta device."""
    import torch

    tensor = torch.empty(0, device="meta").as_subclass(_tensor_class())
    tensor._stand = stand
    return tensor


def stand_of(value: object) -> Stand | None:
    """What a tensor stands for; None for anything else."""
    return getattr(value, "_stand", None) if isinstance(value, _tensor_class()) else None


def found_in(*values: object) -> bool:
    """Whether there is a stand-in among values, or in a tuple, list or dict of them."""
    return any(
        found_in(*value) if isinstance(value, tuple | list)
        else found_in(*value.values()) if isinstance(value, dict)
        else isinstance(value, Packed) or stand_of(value) is not None
        for value in values
    )  # fmt: skip
