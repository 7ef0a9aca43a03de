"""Rows times a matrix, which may be stored as integers: then the row is made of integers too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastlstm.reduced import MOST, Reduced, Tensor
from fastlstm.reference.functions import Array

__all__ = [
    "Integers",
    "Weight",
    "Weights",
    "grouped",
    "looked_up",
    "products",
    "times",
    "weight_of",
]

# Of the largest number of a row: below it, its integers are 0.
LEAST = np.float32(2.0**-100)


class Integers(NamedTuple):
    """A matrix of integers, in float64, in which their products and sums are exact.

    Parameters
    ----------
    numbers : float64 array (O, ...), or, of a transposed kernel, (I, O, ...)
    scale : float32 array (O,)
    """

    numbers: Array
    scale: Array


Weight = Array | Integers
Weights = Mapping[str, Any]  # arrays, and Integers among the matrices


def weight_of(tensor: Tensor, dtype: npt.DTypeLike) -> Weight:
    """A tensor as the equations take it: in the dtype they compute in, but for integers."""
    if isinstance(tensor, Reduced) and tensor.scale is not None:
        return Integers(tensor.numbers.astype(np.float64), tensor.scale)
    return np.asarray(tensor).astype(dtype)


def times(x: Array, weight: Weight) -> Array:
    """``x W^T`` of rows x (..., I) and a matrix W (O, I): (..., O)."""
    if isinstance(weight, Integers):
        return products(x, *weight)
    y: Array = x @ weight.T
    return y


def grouped(x: Array, weight: Weight) -> Array:
    """Products of rows x (G, N, I) and as many matrices, which are a tensor (G * O, ...).

    Returns
    -------
    array (G, N, O)
    """
    G, _, width = x.shape
    if isinstance(weight, Integers):
        return products(x, weight.numbers.reshape(G, -1, width), weight.scale.reshape(G, 1, -1))
    y: Array = x @ weight.reshape(G, -1, width).swapaxes(-1, -2)
    return y


def looked_up(weight: Weight, tokens: Array) -> Array:
    """Rows of a table (N, I)."""
    if isinstance(weight, Integers):
        y: Array = weight.numbers[tokens].astype(np.float32) * weight.scale[tokens][..., None]
        return y
    return weight[tokens]


def products(x: Array, numbers: Array, scale: Array) -> Array:
    """Products of rows with integers, in float32, whatever else is computed in.

    The largest number of a row decides which integers stand for it. A row that has NaN or infinity
    in it has none: its products are NaN.

    Parameters
    ----------
    x : array (..., I)
    numbers : float64 array (O, I), or (G, O, I) if x is (G, N, I)
    scale : float32 array (O,), or (G, 1, O)
    """
    rows = x.astype(np.float32)
    largest = np.abs(rows).max(axis=-1, initial=0, keepdims=True)
    finite, seen = np.isfinite(largest), largest >= LEAST
    by = np.float32(MOST) / np.where(finite & seen, largest, np.float32(1))
    integers = np.rint(np.where(finite & seen, rows, np.float32(0)) * by)
    sums = integers.astype(np.float64) @ numbers.swapaxes(-1, -2)
    y = sums.astype(np.float32) * (largest / np.float32(MOST) * scale)
    return np.where(finite, np.where(seen, y, np.float32(0)), np.float32(np.nan)).astype(x.dtype)
