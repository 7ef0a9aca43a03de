"""What a forward may ask of a tensor, and the methods that give the same values again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.line import Value
from fastlstm.sources.line.axes import Size
from fastlstm.sources.trace.stand_in import Length, Stand, stand_of

__all__ = ["CASTS", "QUERIES", "is_float_as"]

# Called with what a stand-in stands for, a weight, whose dtype and device all arrays have, and the
# arguments.
QUERIES: dict[str, Callable[..., Any]] = {
    "size": lambda stand, weight, dim=None: _shape(stand) if dim is None else _shape(stand)[dim],
    "shape": lambda stand, weight: _shape(stand),
    "numel": lambda stand, weight: math.prod(_shape(stand), start=1),
    "dtype": lambda stand, weight: _dtype(stand, weight),
    "device": lambda stand, weight: _device(weight),
    "is_cuda": lambda stand, weight: _device(weight).type == "cuda",
    "is_floating_point": lambda stand, weight: stand.is_float,
    "is_contiguous": lambda stand, weight, memory_format=None: True,
    "is_leaf": lambda stand, weight: True,
    "grad_fn": lambda stand, weight: None,
    "requires_grad": lambda stand, weight: False,
    "requires_grad=": lambda stand, weight, value: None,
}
QUERIES |= dict.fromkeys(("dim", "ndim", "ndimension"), lambda stand, weight: len(_shape(stand)))
QUERIES |= dict.fromkeys(
    ("is_complex", "is_sparse", "is_quantized", "is_nested", "is_meta", "is_mps"),
    lambda stand, weight: False,
)
QUERIES |= dict.fromkeys(("__repr__", "__str__", "__format__"), lambda stand, *rest: "a tensor")
QUERIES["nelement"] = QUERIES["numel"]

# Methods that give the tensor itself or a copy, perhaps in another place or dtype.
CASTS = frozenset({
    *("clone", "contiguous", "cpu", "cuda", "data", "detach", "pin_memory", "positive"),
    *("requires_grad", "retain_grad", "to", "type", "type_as"),
    *("bfloat16", "bool", "double", "float", "half", "int", "long", "short"),
})  # fmt: skip

_KINDS = {
    **dict.fromkeys(("float", "double", "float32", "float64", "FloatTensor", "DoubleTensor"), True),
    **dict.fromkeys(("long", "int", "int64", "int32", "LongTensor", "IntTensor"), False),
}


def _shape(stand: Stand) -> tuple[int | Length, ...]:
    value = stand.value
    if value is None:
        raise ConvertError(
            f"argument {stand.argument!r} is asked for its shape; expected a state or lengths, "
            f"which are only handed on to a recurrent layer"
        )
    return tuple(length_of(value, axis) for axis in range(value.ndim))


def length_of(value: Value, axis: int) -> int | Length:
    size = value.size(axis)
    return Length(size) if isinstance(size, Size) else size


def _dtype(stand: Stand, weight: Any) -> Any:
    import torch

    if not stand.is_float:
        return torch.int64
    return torch.float32 if weight is None else weight.dtype


def _device(weight: Any) -> Any:
    import torch

    return torch.device("cpu") if weight is None else weight.device


def is_float_as(stand: Stand, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a method of CASTS leaves floats; `args` are those behind the tensor itself.

    Raises
    ------
    ConvertError
        If it rounds values.
    """
    import torch

    asked = [name] if name in _KINDS or name in ("half", "bfloat16", "bool", "short") else []
    for value in (*args, *kwargs.values()):
        other = stand_of(value)
        if other is not None:
            asked.append("float" if other.is_float else "long")
        elif isinstance(value, torch.dtype):
            asked.append(str(value).removeprefix("torch."))
        elif name in ("to", "type_as") and isinstance(value, torch.Tensor):
            asked.append(str(value.dtype).removeprefix("torch."))
        elif name == "type":
            asked.append(str(getattr(value, "__name__", value)).rpartition(".")[2])
    is_float = stand.is_float
    for kind in asked:
        if kind not in _KINDS or (is_float and not _KINDS[kind]):
            raise ConvertError(
                f"a tensor is turned to {kind}, which rounds its values; expected float32 or "
                f"float64 throughout, and tokens as integers"
            )
        is_float = _KINDS[kind]
    return is_float
