"""Operators of TorchScript on numbers, strings, lists and dicts, which are no arrays.

They have the names that the code prints after ``torch.``; which is meant, that or an operator of
ATen of the same name, the first argument tells. What grows is bounded: code may double a list as
often as it likes.
"""

from __future__ import annotations

import math
import operator as op
from collections.abc import Callable
from typing import Any

from fastlstm.errors import ConvertError

__all__ = ["ANYTHING", "CONTAINERS", "NUMBERS", "Record"]

MAX_ITEMS = 1 << 20
MAX_TEXT = 1 << 16


class Record(tuple[Any, ...]):
    """A named tuple of a class in the archive."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: tuple[str, ...], values: tuple[Any, ...]) -> Record:
        made = cls(values)
        made.names = names
        return made


def _number(value: Any) -> Any:
    """A number of TorchScript, whose whole numbers have 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConvertError("a whole number of the code has more than 64 bits")
    return value


def _bounded(value: Any) -> Any:
    most = MAX_TEXT if isinstance(value, str) else MAX_ITEMS
    if len(value) > most:
        raise ConvertError(f"the code makes a {type(value).__name__} of more than {most} items")
    return value


def _power(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int) and abs(a) > 1 and b > 64:
        raise ConvertError("a whole number of the code has more than 64 bits")
    return a**b


def _format(text: str, *values: Any) -> str:
    parts = text.split("{}")
    shown = [f"{v!s:.200}" if isinstance(v, int | float | str | list | tuple) else
             f"a {type(v).__name__}" for v in values]  # fmt: skip
    shown += [""] * (len(parts) - 1 - len(shown))
    return "".join(p + v for p, v in zip(parts, [*shown, ""], strict=False))


def _round(x: float) -> float:
    return float(round(x))


# On numbers and bools.
NUMBERS: dict[str, Callable[..., Any]] = {
    "add": op.add, "sub": op.sub, "mul": op.mul, "div": op.truediv, "floordiv": op.floordiv,
    "remainder": op.mod, "fmod": math.fmod, "pow": _power, "neg": op.neg, "abs": abs,
    "eq": op.eq, "ne": op.ne, "lt": op.lt, "le": op.le, "gt": op.gt, "ge": op.ge,
    "__and__": op.and_, "__or__": op.or_, "__xor__": op.xor, "__not__": op.not_,
    "bitwise_not": op.invert, "sqrt": math.sqrt, "exp": math.exp, "log": math.log,
    "log10": math.log10, "log2": math.log2, "sin": math.sin, "cos": math.cos, "tanh": math.tanh,
    "floor": math.floor, "ceil": math.ceil, "round": _round, "isnan": math.isnan,
    "isinf": math.isinf, "isfinite": math.isfinite, "gcd": math.gcd, "min": min, "max": max,
    "Int": int, "Float": float, "Bool": bool, "str": str, "floor_divide": op.floordiv,
    "true_divide": op.truediv, "trunc": math.trunc, "fabs": math.fabs, "degrees": math.degrees,
    "radians": math.radians, "item": lambda x: x, "chr": chr,
    "__range_length": lambda lo, hi, step: len(range(lo, hi, step)),
    "__derive_index": lambda i, start, step: start + i * step,
}  # fmt: skip


def _slice(x: Any, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return x[start:end:step]


def _append(x: list[Any], item: Any) -> list[Any]:
    x.append(item)
    return _bounded(x)  # type: ignore[no-any-return]


def _extend(x: list[Any], items: list[Any]) -> None:
    x[:] = _joined(x, items)


def _repeated(x: Any, n: Any) -> Any:
    x, n = (n, x) if isinstance(x, int) else (x, n)
    if len(x) * n > (MAX_TEXT if isinstance(x, str) else MAX_ITEMS):
        raise ConvertError("the code repeats a list or a string too often")
    return x * n


def _joined(a: Any, b: Any) -> Any:
    if len(a) + len(b) > (MAX_TEXT if isinstance(a, str) else MAX_ITEMS):
        raise ConvertError("the code makes a list or a string that is too long")
    return a + b


def _set_item(x: Any, key: Any, value: Any) -> Any:
    x[key] = value
    return _bounded(x)


# On lists, tuples, strings and dicts.
CONTAINERS: dict[str, Callable[..., Any]] = {
    "len": len, "append": _append, "extend": _extend, "add": _joined, "add_": _joined,
    "mul": _repeated, "slice": _slice, "list": lambda x: _bounded(list(x)),
    "pop": lambda x, *at: x.pop(*at), "insert": lambda x, at, item: x.insert(at, item),
    "reverse": lambda x: x.reverse(), "clear": lambda x: x.clear(), "copy": lambda x: x.copy(),
    "remove": lambda x, item: x.remove(item), "count": lambda x, item: x.count(item),
    "index": lambda x, item: x.index(item),
    "sort": lambda x, reverse=False: x.sort(reverse=reverse),
    "sorted": sorted, "min": min, "max": max, "sum": sum, "any": any, "all": all,
    "eq": op.eq, "ne": op.ne, "lt": op.lt, "le": op.le, "gt": op.gt, "ge": op.ge,
    "__contains__": lambda x, item: item in x, "__getitem__": lambda x, at: x[at],
    "_set_item": _set_item, "Delete": lambda x, at: x.__delitem__(at),
    "__not__": op.not_, "prod": math.prod, "numel": math.prod,
    "keys": lambda x: list(x.keys()), "values": lambda x: list(x.values()),
    "items": lambda x: list(x.items()), "get": lambda x, key, *rest: x.get(key, *rest),
    "update": lambda x, other: x.update(other),
    "setdefault": lambda x, key, value: x.setdefault(key, value),
    "format": _format, "join": lambda x, parts: _bounded(x.join(parts)),
    "lower": lambda x: x.lower(), "upper": lambda x: x.upper(), "strip": lambda x: x.strip(),
    "startswith": lambda x, part: x.startswith(part), "endswith": lambda x, part: x.endswith(part),
    "split": lambda x, *by: x.split(*by), "replace": lambda x, a, b: _bounded(x.replace(a, b)),
    "find": lambda x, part: x.find(part), "Int": int, "Float": float, "str": str, "ord": ord,
}  # fmt: skip

# Of which the first argument can be anything.
ANYTHING: dict[str, Callable[..., Any]] = {
    "__is__": op.is_,
    "__isnot__": op.is_not,
    "device": lambda *name: "cpu",
    "warn": lambda *text: None,
    # Modules of torch take a fused way of the same numbers where no gradient is asked for.
    "is_grad_enabled": lambda: True,
    "is_autocast_enabled": lambda: False,
    "is_autocast_cpu_enabled": lambda: False,
    "_set_grad_enabled": lambda value: None,
    "is_scripting": lambda: True,
    "is_tracing": lambda: False,
    "dict": lambda *pairs: dict(*pairs),
    "get_num_threads": lambda: 1,
    "no_grad": lambda: None,
    "manual_seed": lambda seed: None,
    "_get_tracing_state": lambda: None,
}
