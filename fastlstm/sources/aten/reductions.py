"""Operators that make one number of those of some axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.arithmetic import add, calculate, mul, sub
from fastlstm.sources.aten.dtypes import cast
from fastlstm.sources.aten.functions import function
from fastlstm.sources.aten.table import (
    Builder,
    Operand,
    Value,
    axis_of,
    operator,
    rank_of,
    shape_of,
)
from fastlstm.sources.aten.views import reshape, unbind, unsqueeze

Dims = int | Sequence[int] | None

_NUMPY: dict[str, Any] = {"mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min}


class Unknown:
    """A result that is not computed; whoever uses it says why.

    Parameters
    ----------
    what : str
    """

    def __init__(self, what: str) -> None:
        self.what = what


def axes_of(x: Operand, dim: Dims) -> list[int]:
    """The axes that a reduction goes over, sorted: all where none is named."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return list(range(rank_of(x)))
    return sorted({axis_of(x, d) for d in ((dim,) if isinstance(dim, int) else dim)})


def reduced(b: Builder, what: str, x: Operand, dim: Dims, keepdim: bool) -> Operand:
    """A reduction of the vocabulary (:class:`fastlstm.spec.Reduce`)."""
    axes = axes_of(x, dim)
    if not isinstance(x, Value):
        if what == "l2":
            return np.sqrt(np.sum(np.square(x), tuple(axes), keepdims=keepdim))
        return np.asarray(_NUMPY[what](x, tuple(axes), keepdims=keepdim))
    return b.reduce(what, x, axes, keepdim) if axes else x


@operator()
def mean(
    b: Builder, self: Operand, dim: Dims = None, keepdim: bool = False, dtype: int | None = None
) -> Operand:
    return reduced(b, "mean", cast(b, self, dtype), dim, keepdim)


@operator("sum")
def sum_(
    b: Builder, self: Operand, dim: Dims = None, keepdim: bool = False, dtype: int | None = None
) -> Operand:
    return reduced(b, "sum", cast(b, self, dtype), dim, keepdim)


@operator()
def amax(b: Builder, self: Operand, dim: Dims = None, keepdim: bool = False) -> Operand:
    return reduced(b, "max", self, dim, keepdim)


@operator()
def amin(b: Builder, self: Operand, dim: Dims = None, keepdim: bool = False) -> Operand:
    return reduced(b, "min", self, dim, keepdim)


@operator("max")
def max_(b: Builder, self: Operand, dim: Any = None, keepdim: bool = False) -> Any:
    return _extreme(b, "max", self, dim, keepdim)


@operator("min")
def min_(b: Builder, self: Operand, dim: Any = None, keepdim: bool = False) -> Any:
    return _extreme(b, "min", self, dim, keepdim)


def _extreme(b: Builder, what: str, x: Operand, dim: Any, keepdim: bool) -> Any:
    """All numbers made one; or over an axis, with where it was; or of two arrays."""
    if dim is None:
        return reduced(b, what, x, None, False)
    if isinstance(dim, Value | np.ndarray):
        return calculate(b, f"{what}imum", x, dim)
    if not isinstance(x, Value):
        where = np.expand_dims((np.argmax if what == "max" else np.argmin)(x, dim), dim)
        values = np.take_along_axis(x, where, dim)
        return (values, where) if keepdim else (values.squeeze(dim), where.squeeze(dim))
    return reduced(b, what, x, dim, keepdim), Unknown(f"where the {what} of an axis is")


@operator("norm", "linalg_vector_norm", "linalg_norm")
def norm(
    b: Builder,
    self: Operand,
    ord: Any = 2,
    dim: Dims = None,
    keepdim: bool = False,
    dtype: int | None = None,
    p: Any = None,
) -> Operand:
    power = ord if p is None else p
    if isinstance(power, str | None) or not isinstance(power, int | float):
        power = 2
    if power == 2:
        return reduced(b, "l2", self, dim, keepdim)
    size = function(b, "abs", self)
    if power in (math.inf, -math.inf):
        return reduced(b, "max" if power > 0 else "min", size, dim, keepdim)
    if power == 1:
        return reduced(b, "sum", size, dim, keepdim)
    if power == 0:
        raise ConvertError("the norm of order 0 is not supported")
    powers = calculate(b, "power", size, float(power))
    return calculate(b, "power", reduced(b, "sum", powers, dim, keepdim), 1 / float(power))


@operator()
def frobenius_norm(b: Builder, self: Operand, dim: Dims = None, keepdim: bool = False) -> Operand:
    return reduced(b, "l2", self, dim, keepdim)


def moments(
    b: Builder, x: Operand, dim: Dims, correction: float, keepdim: bool
) -> tuple[Operand, Operand]:
    """The variance and the mean."""
    axes = axes_of(x, dim)
    count = math.prod(shape_of(x)[axis] for axis in axes)
    if count <= correction:
        raise ConvertError(f"the variance of {count} numbers less {correction:g} is not defined")
    middle = reduced(b, "mean", x, axes, True)
    squares = function(b, "square", sub(b, x, middle))
    spread = reduced(b, "mean", squares, axes, keepdim)
    if correction:
        spread = mul(b, spread, count / (count - correction))
    return spread, middle if keepdim else reduced(b, "mean", x, axes, False)


def _spread(dim: Any, correction: Any, unbiased: Any, keepdim: bool) -> tuple[Dims, float, bool]:
    """The three forms of the arguments of var and std."""
    if isinstance(dim, bool):  # var(unbiased)
        dim, unbiased = None, dim
    if isinstance(correction, bool):  # var(dim, unbiased, keepdim)
        correction, unbiased = None, correction
    if correction is None:
        correction = 0 if unbiased is False else 1
    return dim, float(correction), keepdim


@operator("var_mean")
def var_mean(
    b: Builder,
    self: Operand,
    dim: Any = None,
    correction: Any = None,
    keepdim: bool = False,
    unbiased: Any = None,
) -> tuple[Operand, Operand]:
    return moments(b, self, *_spread(dim, correction, unbiased, keepdim))


@operator()
def var(
    b: Builder,
    self: Operand,
    dim: Any = None,
    correction: Any = None,
    keepdim: bool = False,
    unbiased: Any = None,
) -> Operand:
    return moments(b, self, *_spread(dim, correction, unbiased, keepdim))[0]


@operator()
def std(
    b: Builder,
    self: Operand,
    dim: Any = None,
    correction: Any = None,
    keepdim: bool = False,
    unbiased: Any = None,
) -> Operand:
    return function(b, "sqrt", var(b, self, dim, correction, keepdim, unbiased))


@operator("std_mean")
def std_mean(
    b: Builder,
    self: Operand,
    dim: Any = None,
    correction: Any = None,
    keepdim: bool = False,
    unbiased: Any = None,
) -> tuple[Operand, Operand]:
    spread, middle = var_mean(b, self, dim, correction, keepdim, unbiased)
    return function(b, "sqrt", spread), middle


@operator("logsumexp")
def logsumexp(b: Builder, self: Operand, dim: Dims, keepdim: bool = False) -> Operand:
    most = reduced(b, "max", self, dim, True)
    total = reduced(b, "sum", function(b, "exp", sub(b, self, most)), dim, True)
    made = add(b, function(b, "log", total), most)
    return made if keepdim else reduced(b, "sum", made, dim, False)


@operator()
def prod(
    b: Builder,
    self: Operand,
    dim: int | None = None,
    keepdim: bool = False,
    dtype: int | None = None,
) -> Operand:
    if not isinstance(self, Value):
        return np.asarray(np.prod(self, dim, keepdims=keepdim))
    if dim is None:
        self, dim = reshape(b, self, (-1,)), 0
    factors = unbind(b, self, dim)
    made = factors[0]
    for factor in factors[1:]:
        made = mul(b, made, factor)
    return unsqueeze(b, made, dim) if keepdim else made


def _cumulative(name: str, of_constants: Any) -> None:
    def apply(b: Builder, self: Operand, dim: int, dtype: int | None = None) -> Operand:
        if not isinstance(self, Value):
            return of_constants(self, dim)
        return b.cumulative(name.removeprefix("cum"), self, axis_of(self, dim))

    operator(name)(apply)


_cumulative("cumsum", np.cumsum)


@operator("cummax", "cummin", "sort", "topk", "kthvalue", "median", "mode", "unique")
def ordered(b: Builder, self: Operand, *args: Any, **options: Any) -> Any:
    raise ConvertError("the order of numbers of the input is not supported")


@operator("mse_loss", "l1_loss", "smooth_l1_loss", "cross_entropy_loss", "nll_loss")
def loss(b: Builder, *args: Any, **options: Any) -> Any:
    raise ConvertError("a loss is computed; expected a model that gives its outputs alone")
