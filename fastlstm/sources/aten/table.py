"""The one table of ATen operators: a name, and what it does to the arrays of a builder.

An operator is a function of the builder and of the arguments that torch's own schema of it names,
under those names, so that both positions and keywords can be taken as a program writes them. An
array is a :class:`~fastlstm.sources.arrays.Value`, which depends on the inputs of the
program, or a NumPy array, which does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.arrays.places import FILL

__all__ = [
    "OPERATORS", "Array", "Builder", "Operand", "Size", "TokenError", "Value",
    "as_kind", "axis_of", "fill_of", "is_array", "kind_of", "listed", "operator", "rank_of",
    "shape_of", "whole",
]  # fmt: skip

Array = npt.NDArray[Any]
Operand = Any  # a Value, a NumPy array or a Python number
_Operator = TypeVar("_Operator", bound=Callable[..., Any])

OPERATORS: dict[str, Callable[..., Any]] = {}


class Size(int):
    """The size of an axis, as a program asked for it; a number that is computed of it is none."""


class TokenError(ConvertError):
    """Real numbers are used as tokens; of an input, it tells that it is of tokens.

    Parameters
    ----------
    value : Value
    """

    def __init__(self, value: Value) -> None:
        super().__init__("real numbers are taken as tokens, or made whole, which is not supported")
        self.value = value


def operator(*names: str) -> Callable[[_Operator], _Operator]:
    """Enter a function in the table under its own name, less a closing ``_``, or under `names`."""

    def entered(function: _Operator) -> _Operator:
        for name in names or (function.__name__.removesuffix("_"),):
            assert name not in OPERATORS, f"{name} is in the table twice"
            OPERATORS[name] = function
        return function

    return entered


def is_array(value: object) -> bool:
    """Whether it is an array of the program, and no Python value."""
    return isinstance(value, Value | np.ndarray)


def shape_of(x: Operand) -> tuple[int, ...]:
    return x.shape if isinstance(x, Value) else np.shape(x)


def rank_of(x: Operand) -> int:
    return len(shape_of(x))


def kind_of(x: Operand) -> str:
    """``"float"``, ``"int"`` or ``"bool"``: what torch's promotion of dtypes tells apart."""
    if isinstance(x, Value):
        return x.kind
    return {"b": "bool", "i": "int", "u": "int"}.get(np.asarray(x).dtype.kind, "float")


def as_kind(x: Any, kind: str) -> Any:
    """The same numbers, said to be of another kind; a view."""
    return Value(x.places, kind) if isinstance(x, Value) and x.kind != kind else x


def fill_of(x: Operand) -> Any:
    """What stands for a zero in an array that `Builder.move` hands to a function."""
    return FILL if isinstance(x, Value) else 0


def axis_of(x: Operand, dim: int, more: int = 0) -> int:
    """An axis counted from the first; `more` is 1 where a new one may stand behind the last."""
    rank = max(rank_of(x) + more, 1)
    if not -rank <= dim < rank:
        raise ConvertError(f"axis {dim} of an array of {rank_of(x)} axes")
    return dim % rank


def listed(sizes: int | Sequence[int], n: int) -> tuple[int, ...]:
    """One number for each of `n` axes, given as such or as one for all of them."""
    numbers = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return numbers * n if len(numbers) == 1 else numbers


def whole(value: Any, what: str) -> int:
    """A whole number that the program needs to know, and that no input may decide."""
    if isinstance(value, Value):
        raise ConvertError(f"{what} is computed from the input; expected one that is the same for "
                           f"every input")  # fmt: skip
    return int(value)
