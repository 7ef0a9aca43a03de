"""Operators that make arrays of nothing, and those that answer what an array is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays.core import check_size
from fastlstm.sources.aten.dtypes import cast, code_of, numpy_dtype
from fastlstm.sources.aten.table import (
    Array,
    Builder,
    Operand,
    Size,
    Value,
    axis_of,
    kind_of,
    operator,
    rank_of,
    shape_of,
    whole,
)

# Arguments that say nothing about numbers: layout, device, pin_memory, memory_format, non_blocking.


def _filled(size: Sequence[Any], value: Any, dtype: int | None, default: str = "f4") -> Array:
    sizes = [whole(n, "the size of an axis") for n in size]
    if any(n < 0 for n in sizes):
        raise ConvertError(f"an array of shape {tuple(sizes)} is made")
    check_size(sizes)
    return np.full(sizes, value, numpy_dtype(dtype, default))


def _of(value: Any) -> str:
    return {bool: "?", int: "i8"}.get(type(value), "f4")


@operator()
def zeros(b: Builder, size: Sequence[Any], dtype: int | None = None, **where: Any) -> Operand:
    return _filled(size, 0, dtype)


@operator()
def ones(b: Builder, size: Sequence[Any], dtype: int | None = None, **where: Any) -> Operand:
    return _filled(size, 1, dtype)


@operator()
def full(
    b: Builder, size: Sequence[Any], fill_value: Any, dtype: int | None = None, **where: Any
) -> Operand:
    return _filled(size, _fixed_number(fill_value), dtype, _of(fill_value))


def _fixed_number(value: Any) -> Any:
    if isinstance(value, Value):
        raise ConvertError("an array is filled with a number that is computed from the input")
    return value


@operator("empty", "empty_permuted")
def empty(b: Builder, size: Sequence[Any], dtype: int | None = None, **where: Any) -> Operand:
    """What memory happens to hold: numbers that nobody may use, which NaN shows."""
    made = numpy_dtype(dtype)
    return _filled(size, math.nan if made.kind == "f" else 0, dtype)


@operator()
def empty_strided(
    b: Builder, size: Sequence[Any], stride: Any, dtype: int | None = None, **where: Any
) -> Operand:
    return empty(b, size, dtype)


def _like(name: str, value: Any) -> None:
    def like(b: Builder, self: Operand, dtype: int | None = None, **where: Any) -> Operand:
        dtype = code_of(self) if dtype is None else dtype
        return _filled(shape_of(self), value if numpy_dtype(dtype).kind == "f" else value == 1,
                       dtype)  # fmt: skip

    def new(
        b: Builder, self: Operand, size: Sequence[Any], dtype: int | None = None, **where: Any
    ) -> Operand:
        dtype = code_of(self) if dtype is None else dtype
        return _filled(size, value if numpy_dtype(dtype).kind == "f" else value == 1, dtype)

    operator(f"{name}_like")(like)
    operator(f"new_{name}")(new)


_like("zeros", 0.0)
_like("ones", 1.0)
_like("empty", math.nan)


@operator()
def full_like(
    b: Builder, self: Operand, fill_value: Any, dtype: int | None = None, **where: Any
) -> Operand:
    dtype = code_of(self) if dtype is None else dtype
    return _filled(shape_of(self), _fixed_number(fill_value), dtype)


@operator()
def new_full(
    b: Builder,
    self: Operand,
    size: Sequence[Any],
    fill_value: Any,
    dtype: int | None = None,
    **where: Any,
) -> Operand:
    dtype = code_of(self) if dtype is None else dtype
    return _filled(size, _fixed_number(fill_value), dtype)


@operator()
def new_tensor(b: Builder, self: Operand, data: Any, dtype: int | None = None, **_: Any) -> Operand:
    return tensor(b, data, code_of(self) if dtype is None else dtype)


@operator("tensor", "as_tensor", "scalar_tensor", "asarray")
def tensor(b: Builder, data: Any, dtype: int | None = None, **where: Any) -> Operand:
    if isinstance(data, Value):
        return cast(b, data, dtype)
    if isinstance(data, np.ndarray):
        return cast(b, data.copy(), dtype)
    found = np.asarray(data)
    if found.dtype.kind not in "biuf":
        raise ConvertError("a tensor is made of numbers that are computed from the input")
    return found.astype(numpy_dtype(dtype, "f4" if found.dtype.kind == "f" else found.dtype.str))


@operator()
def arange(b: Builder, *bounds: Any, dtype: int | None = None, **options: Any) -> Operand:
    given = [options[name] for name in ("start", "end", "step") if name in options]
    numbers = [float(n) if isinstance(n, float) else whole(n, "a bound") for n in (*bounds, *given)]
    start, end, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    if not step:
        raise ConvertError("a range with a step of 0")
    check_size((max(math.ceil((end - start) / step), 0),))
    made = np.arange(start, end, step)
    return made.astype(numpy_dtype(dtype, "f4" if made.dtype.kind == "f" else "i8"))


@operator()
def linspace(
    b: Builder, start: Any, end: Any, steps: int, dtype: int | None = None, **where: Any
) -> Operand:
    check_size((steps,))
    return np.linspace(float(start), float(end), steps).astype(numpy_dtype(dtype))


@operator()
def eye(
    b: Builder, n: int, m: int | None = None, dtype: int | None = None, **where: Any
) -> Operand:
    check_size((n, m or n))
    return np.eye(n, m, dtype=numpy_dtype(dtype))


@operator()
def meshgrid(b: Builder, tensors: Sequence[Operand], indexing: str = "ij") -> list[Operand]:
    if any(isinstance(x, Value) for x in tensors):
        raise ConvertError("meshgrid of numbers of the input is not supported")
    check_size([x.size for x in tensors])
    return [np.array(x) for x in np.meshgrid(*tensors, indexing=indexing)]  # type: ignore[call-overload]


# Dtypes


@operator("to", "_to_copy", "to_copy")
def to(b: Builder, self: Operand, *args: Any, dtype: int | None = None, **where: Any) -> Operand:
    """Of the forms (dtype), (device, dtype), (other) and their keywords, only the dtype matters."""
    for argument in args:
        if isinstance(argument, Value | np.ndarray):
            return cast(b, self, code_of(argument))
        # Bools are the flags non_blocking and copy, and strings are devices.
        if type(argument) is int and dtype is None:
            dtype = argument
    return cast(b, self, dtype)


@operator()
def type_as(b: Builder, self: Operand, other: Operand) -> Operand:
    return cast(b, self, code_of(other))


def _typed(name: str, code: int) -> None:
    def apply(b: Builder, self: Operand, non_blocking: bool = False) -> Operand:
        return cast(b, self, code)

    operator(name)(apply)


for _name, _code in {"_cast_Float": 6, "_cast_Double": 7, "_cast_Long": 4, "_cast_Int": 3}.items():
    _typed(_name, _code)


# Questions


@operator("size", "sym_size")
def size(b: Builder, self: Operand, dim: int | None = None) -> int | list[int]:
    shape = shape_of(self)
    return [Size(n) for n in shape] if dim is None else Size(shape[axis_of(self, dim)])


@operator("dim", "ndimension")
def dim(b: Builder, self: Operand) -> int:
    return rank_of(self)


@operator("numel", "sym_numel")
def numel(b: Builder, self: Operand) -> int:
    return math.prod(shape_of(self))


@operator("len")
def length(b: Builder, self: Operand) -> int:
    return shape_of(self)[0]


@operator()
def is_floating_point(b: Builder, self: Operand) -> bool:
    return kind_of(self) == "float"


@operator("is_complex", "is_sparse", "is_quantized", "is_cuda", "is_conj", "is_neg", "is_inference")
def never(b: Builder, self: Operand) -> bool:
    return False


@operator()
def is_contiguous(b: Builder, self: Operand, **_: Any) -> bool:
    array = self.places if isinstance(self, Value) else np.asarray(self)
    return bool(array.flags.c_contiguous)


@operator("item", "_local_scalar_dense")
def item(b: Builder, self: Operand) -> Any:
    if isinstance(self, Value):
        raise ConvertError("a number of the input is taken out of its array; expected code that "
                           "does not depend on the numbers")  # fmt: skip
    if np.size(self) != 1:
        raise ConvertError(f"an array of shape {shape_of(self)} is taken as one number")
    return np.asarray(self).item()


@operator()
def tolist(b: Builder, self: Operand) -> Any:
    if isinstance(self, Value):
        raise ConvertError("numbers of the input are taken out of their array")
    return self.tolist()


# Random numbers

for _name in (
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal"),
    *("bernoulli", "multinomial", "uniform", "random", "exponential", "geometric", "poisson"),
    *("log_normal", "cauchy", "rrelu_with_noise", "binomial", "_standard_gamma"),
):

    def _refused(b: Builder, *args: Any, _name: str = _name, **options: Any) -> Any:
        raise ConvertError(
            f"{_name} draws random numbers, which are not the same in any two calls; give them to "
            f"the model as an input"
        )

    operator(_name)(_refused)
