"""Tensors in fewer bytes than float32: halves of it, and integers with a scale for each output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "MOST",
    "Reduced",
    "Tensor",
    "Tensors",
    "computed_in",
    "kept",
    "precision_of",
    "same",
    "widened",
]

Array = npt.NDArray[Any]

# What each precision's numbers are kept as. NumPy has no bfloat16: its bits stand for it.
_KEPT = {"int8": np.dtype(np.int8), "float16": np.dtype(np.float16), "bfloat16": np.dtype("u2")}

MOST = 127  # the largest integer; -128, which has no opposite, is never one

# The least scale: below it float32 is not normal, and some processors take it for 0.
_LEAST_SCALE = np.finfo(np.float32).tiny


@dataclass(frozen=True, eq=False)
class Reduced:
    """A tensor whose numbers are stored in another type than the one that is computed in.

    Parameters
    ----------
    precision : {"int8", "float16", "bfloat16"}
    numbers : array
        In the tensor's shape: int8 from -127 to 127, float16, or uint16, the bits of bfloat16.
    scale : float32 array (n,), optional
        Of int8 what the numbers of each output are multiplied with, positive and finite.
    axis : int, default 0
        Of int8 the axis that the n outputs are.

    Raises
    ------
    ValueError
        If these do not fit together.
    """

    precision: str
    numbers: Array
    scale: Array | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        kept, shape = _KEPT.get(self.precision), self.numbers.shape
        if kept is None:
            raise ValueError(f"precision is {self.precision!r:.80}; expected {', '.join(_KEPT)}")
        if self.numbers.dtype != kept:
            raise ValueError(f"the numbers are {self.numbers.dtype}; {self.precision} has {kept}")
        if self.precision != "int8":
            if self.scale is not None:
                raise ValueError(f"there are scales; {self.precision} has none")
            return
        if self.numbers.min(initial=0) < -MOST:
            raise ValueError(f"a number is -128; expected integers from {-MOST} to {MOST}")
        if self.scale is None or self.scale.dtype != np.float32:
            raise ValueError("int8 numbers have no scales of float32; expected one for each output")
        if self.scale.shape != (expected := shape[self.axis : self.axis + 1]) or not expected:
            raise ValueError(f"the scales have shape {self.scale.shape}; expected {expected}")
        if not (np.isfinite(self.scale) & (self.scale >= _LEAST_SCALE)).all():
            raise ValueError("a scale is not a positive normal number of float32")

    @classmethod
    def of(cls, array: Array, precision: str, axis: int = 0) -> Reduced:
        """A float32 array in another precision, each number rounded to the nearest, half to even.

        The scale of an int8 output is its largest number over 127; of zeros alone it is 1.

        Raises
        ------
        ValueError
            If a number is not finite, or too large for the precision.
        """
        array = np.asarray(array, np.float32, order="C")
        if not np.isfinite(array).all():
            raise ValueError(f"it has NaN or infinity in it; {precision} can hold neither")
        if precision == "int8":
            moved = np.moveaxis(array, axis, 0)
            others = tuple(range(1, array.ndim))
            largest = np.abs(moved).max(axis=others, initial=0, keepdims=True)
            scale = np.maximum(largest / np.float32(MOST), _LEAST_SCALE)
            scale = np.where(largest == 0, np.float32(1), scale)
            numbers = np.rint(moved / scale.astype(np.float64)).astype(np.int8)
            return cls("int8", np.ascontiguousarray(np.moveaxis(numbers, 0, axis)),
                       scale.ravel(), axis)  # fmt: skip
        if precision == "float16":
            with np.errstate(over="ignore"):
                made = cls(precision, array.astype(np.float16))
        else:
            bits = array.view(np.uint32)
            upper = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)  # half to even
            made = cls(precision, (upper >> 16).astype(np.uint16))
        if not np.isfinite(made.widened(np.float32)).all():
            raise ValueError(
                f"its largest number is {np.abs(array).max():.3g}, too large for {precision}; "
                f"expected another precision for it"
            )
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    @property
    def size(self) -> int:
        return self.numbers.size

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers and of the scales."""
        return self.numbers.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @property
    def outputs(self) -> Array | None:
        """The scales with axes to broadcast over the numbers, if there are some."""
        if self.scale is None:
            return None
        behind = self.numbers.ndim - 1 - self.axis
        return self.scale.reshape(-1, *(1,) * behind)

    def widened(self, dtype: npt.DTypeLike = np.float64) -> Array:
        """The numbers as they stand for others, which float64 holds exactly.

        So does float32, but for int8, whose products with their scales are rounded.
        """
        if self.precision == "bfloat16":
            return (self.numbers.astype(np.uint32) << 16).view(np.float32).astype(dtype)
        if (scale := self.outputs) is None:
            return self.numbers.astype(dtype)
        return (self.numbers * scale.astype(np.float64)).astype(dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return self.widened(np.float64 if dtype is None else dtype)

    def with_numbers(self, numbers: Array, scale: Array | None) -> Reduced:
        """The same tensor with its numbers, and scales, in other memory."""
        return Reduced(self.precision, numbers, scale, self.axis)


Tensor = Array | Reduced
Tensors = Mapping[str, Tensor]


def kept(tensor: Tensor) -> Array:
    """The array in which a tensor's numbers are stored."""
    return tensor.numbers if isinstance(tensor, Reduced) else tensor


def computed_in(tensor: Tensor) -> np.dtype[Any]:
    """What a model computes in that has the tensor."""
    return np.dtype(np.float32) if isinstance(tensor, Reduced) else tensor.dtype


def precision_of(tensor: Tensor) -> str:
    """What a tensor's numbers are stored as."""
    return tensor.precision if isinstance(tensor, Reduced) else tensor.dtype.name


def widened(tensor: Tensor) -> Array:
    """The tensor as float32, if it is not an array already."""
    return tensor.widened(np.float32) if isinstance(tensor, Reduced) else tensor


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are stored alike, and are the same in every bit."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return False
    scales = [None if scale is None else scale.tobytes() for scale in (one.scale, other.scale)]
    return (
        (one.precision, one.axis) == (other.precision, other.axis)
        and scales[0] == scales[1]
        and one.numbers.tobytes() == other.numbers.tobytes()
    )
