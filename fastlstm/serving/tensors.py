"""Tensors of the Open Inference Protocol, and arrays."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.serving.requests import Kind, RequestError

__all__ = ["Tensor", "as_array", "as_bytes", "from_numbers"]

Array = npt.NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
}
MOST_AXES = 16


@dataclass(frozen=True)
class Tensor:
    """An input or output, as metadata tell it.

    Parameters
    ----------
    name : str
    datatype : str
        As the protocol calls it.
    shape : tuple of int
        -1 where any number of steps is taken.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        return DATATYPES[self.datatype]

    @functools.cached_property
    def row(self) -> tuple[int, ...]:
        """The axes behind that of the steps."""
        return self.shape[1:] if self.shape[:1] == (-1,) else self.shape

    @functools.cached_property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Refuse a client's tensor that is not such a one."""
        found = tuple(shape)
        steps = found[:1] if self.shape[:1] == (-1,) and found and found[0] >= 0 else ()
        if datatype != self.datatype or found != (*steps, *self.row):
            given = f"{datatype} {list(found[:MOST_AXES])}"
            raise RequestError(
                Kind.INVALID,
                f"input {self.name!r} is {given:.200}; expected {self.datatype} {list(self.shape)}"
                f"{', where -1 is the number of steps' * (-1 in self.shape)}",
            )


def as_array(tensor: Tensor, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """What a client sent as bytes, checked and not copied."""
    tensor.check(datatype, shape)
    size = tensor.dtype.itemsize * math.prod(shape)
    if len(data) != size:
        raise RequestError(
            Kind.INVALID,
            f"input {tensor.name!r} has {len(data)} bytes; expected {size} for shape {list(shape)}",
        )
    return np.frombuffer(data, tensor.dtype).reshape(tuple(shape))


def from_numbers(tensor: Tensor, datatype: str, shape: Sequence[int], numbers: Any) -> Array:
    """What a client sent number by number, flat or in nested lists."""
    tensor.check(datatype, shape)
    whole = tensor.dtype.kind in "iu"
    try:
        found = np.array(numbers)
        if found.size and found.dtype.kind not in ("iu" if whole else "iuf"):
            raise TypeError(f"they are of {found.dtype}")
        if (
            whole
            and found.size
            and not (
                np.iinfo(tensor.dtype).min <= found.min()
                and found.max() <= np.iinfo(tensor.dtype).max
            )
        ):
            raise ValueError("one is out of range")
        if found.size != math.prod(shape) or (found.ndim > 1 and found.shape != tuple(shape)):
            raise ValueError(f"they have shape {list(found.shape)}")
        with np.errstate(over="ignore"):  # too large for float32 is infinite, as in any conversion
            return found.astype(tensor.dtype).reshape(tuple(shape))
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            Kind.INVALID,
            f"the numbers of input {tensor.name!r} do not fit, {str(error)[:200]}; expected "
            f"{math.prod(shape)} for {datatype} {list(shape)}",
        ) from None


def as_bytes(array: Array) -> bytes:
    """An array's numbers in order, little endian."""
    return array.tobytes() if sys.byteorder == "little" else array.byteswap().tobytes()
