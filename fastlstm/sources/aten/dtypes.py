"""Torch's numbers of dtypes (c10/core/ScalarType.h), and what a conversion between them does."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.table import Builder, Operand, TokenError, Value, as_kind, kind_of

__all__ = ["cast", "code_of", "numpy_dtype"]

_NUMPY = {
    **{0: "u1", 1: "i1", 2: "i2", 3: "i4", 4: "i8", 5: "f2", 6: "f4", 7: "f8", 11: "?"},
    # NumPy has no bfloat16: constants of it are widened, as a checkpoint's are.
    15: "f4",
}
_ROUNDED = {5: "float16", 15: "bfloat16"}
_NAMES = {8: "complex32", 9: "complex64", 10: "complex128", 12: "qint8", 13: "quint8", 14: "qint32"}


def numpy_dtype(code: int | None, default: str = "f4") -> np.dtype[Any]:
    """NumPy's dtype of torch's number of one; of none, the default."""
    if code is None:
        return np.dtype(default)
    if code not in _NUMPY:
        raise ConvertError(f"numbers of dtype {_NAMES.get(code, code)} are not supported")
    return np.dtype(_NUMPY[code])


def code_of(x: Operand) -> int:
    """Torch's number of the dtype of an array."""
    if isinstance(x, Value):
        return {"float": 6, "int": 4, "bool": 11}[x.kind]
    codes = {np.dtype(name): code for code, name in _NUMPY.items() if code != 15}
    return codes[np.asarray(x).dtype]


def cast(b: Builder, x: Operand, code: int | None) -> Operand:
    """An array as numbers of another dtype; itself where it has that already."""
    if code is None:
        return x
    dtype = numpy_dtype(code)
    if not isinstance(x, Value):
        return np.asarray(x).astype(dtype, copy=False)
    kind = {"b": "bool", "f": "float"}.get(dtype.kind, "int")
    if code in _ROUNDED and kind_of(x) == "float":
        raise ConvertError(
            f"numbers of the input are rounded to {_ROUNDED[code]}; convert the model in float32 "
            f"(module.float())"
        )
    if kind == "bool" and x.kind != "bool":
        return b.arithmetic("not_equal", x, 0.0)
    if kind == "int" and x.kind == "float":
        raise TokenError(x)
    return as_kind(x, kind)
