"""What is said of a source's inputs at conversion: numbers that never change, or sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError

__all__ = ["Sizes", "given_inputs"]

Array = npt.NDArray[Any]
Sizes = tuple[int | None, ...]

_SIZES = re.compile(r"(\d+|\?)(x(\d+|\?))+|(\d+|\?)x")


def given_inputs(inputs: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, Sizes]]:
    """Inputs that are the same in every call, and the sizes of others.

    Parameters
    ----------
    inputs : mapping of str to number, array, tuple or str
        A number or an array is the input itself. A tuple of integers is its shape, None for what
        stays open. A text is either: ``"16000"``, ``"0.5"``, or ``"1x576"``, ``"?x576"``.

    Raises
    ------
    ConvertError
        If a text is neither.
    TypeError
        If a value is nothing of these.
    """
    constants: dict[str, Array] = {}
    shapes: dict[str, Sizes] = {}
    if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
        raise TypeError(f"inputs is {inputs!r:.100}; expected a mapping of names to values")
    for name, value in inputs.items():
        if isinstance(value, str):
            value = _of_text(name, value)
        if isinstance(value, tuple):
            sizes = [n if n is None else _size(name, n) for n in value]
            shapes[name] = tuple(sizes)
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"inputs[{name!r:.80}] is {value!r:.80}; expected a number, an array of numbers or "
                f"a tuple of sizes"
            )
        constants[name] = array
    return constants, shapes


def _of_text(name: str, text: str) -> Any:
    plain = text.strip()
    if _SIZES.fullmatch(plain):
        return tuple(None if part == "?" else int(part) for part in plain.split("x") if part)
    try:
        return int(plain)
    except ValueError:
        pass
    try:
        return float(plain)
    except ValueError:
        raise ConvertError(
            f"input {name!r:.80} is given {text!r:.80}; expected a number, as in 16000, or a "
            f"shape, as in 1x576, with ? for a size that stays open"
        ) from None


def _size(name: str, size: Any) -> int:
    if not hasattr(size, "__index__") or isinstance(size, bool) or int(size) < 1:
        raise TypeError(
            f"inputs[{name!r:.80}] has the size {size!r:.80}; expected positive integers, and None "
            f"for a size that stays open"
        )
    return int(size)
