"""Entries of a description of a model, checked one by one; what is wrong is said by its place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError

__all__ = ["Fields", "checked"]

Array = npt.NDArray[Any]


class Fields:
    """A mapping of a file, and what it is called in messages.

    Every method raises ConvertError where an entry is missing or not what is asked for.
    """

    def __init__(self, what: str, entries: object) -> None:
        if not isinstance(entries, Mapping):
            raise ConvertError(f"{what} is {_shown(entries)}; expected a mapping")
        self.what, self.entries = what, entries

    def refused(self, key: str, expected: str) -> ConvertError:
        value = self.entries.get(key)
        said = f"is {_shown(value)}" if key in self.entries else "is missing"
        return ConvertError(f"{key!r} of {self.what} {said}; expected {expected}")

    def size(self, key: str, least: int = 1, default: int | None = None) -> int:
        """An integer; one that is not there is `default`, if that is given."""
        value = self.entries.get(key, default)
        if isinstance(value, np.ndarray) and value.shape == (1,) and value[0] == int(value[0]):
            value = int(value[0])
        if type(value) is not int or not least <= value <= spec.MAX_SIZE:
            raise self.refused(key, f"an integer from {least} to {spec.MAX_SIZE}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, or the text of one."""
        value: Any = self.entries.get(key, default)
        try:
            number = float(value) if isinstance(value, int | float | str) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.refused(key, "a finite number")
        return number

    def text(self, key: str, default: str | None = None) -> str:
        value = self.entries.get(key, default)
        if not isinstance(value, str):
            raise self.refused(key, "a text")
        return value

    def within(self, key: str) -> Fields:
        return Fields(f"{key!r} of {self.what}", self.entries.get(key))

    def arrays(self, key: str) -> list[Array]:
        """A list of arrays."""
        value = self.entries.get(key)
        if not isinstance(value, list | np.ndarray) or not all(
            isinstance(item, np.ndarray) for item in value
        ):
            raise self.refused(key, "a list of nested lists of numbers")
        return list(value)

    def array(self, key: str, shape: Sequence[int]) -> Array:
        return checked(f"{key!r} of {self.what}", self.entries.get(key), shape)


def checked(what: str, value: object, shape: Sequence[int]) -> Array:
    """An array of the shape that it has to have."""
    found = value.shape if isinstance(value, np.ndarray) else None
    if not isinstance(value, np.ndarray) or found != tuple(shape):
        said = f"has shape {found}" if found is not None else f"is {_shown(value)}"
        raise ConvertError(f"{what} {said}; expected numbers of shape {tuple(shape)}")
    return value


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, list) and all(isinstance(item, int | float | None) for item in value[:9]):
        return f"{value!a:.80}"
    if isinstance(value, Mapping | list):
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)} entries"
    return f"{value!a:.80}"
