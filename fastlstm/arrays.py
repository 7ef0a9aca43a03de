"""Arrays as people have them: torch tensors, pandas objects, buffers; none of them imported.

An array of NumPy goes to the engine as it is. Only what is none comes here, so that a step of
NumPy arrays is not slower for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm import _engine

__all__ = ["Network", "offered", "offers"]


def offers(x: Any) -> bool:
    """Whether an object is an array, or offers one."""
    if isinstance(x, np.ndarray):
        return True
    return not isinstance(x, np.generic) and _way(x) != ""


def offered(name: str, x: Any) -> Any:
    """The array that an object offers, of the same memory where it can be; else the object itself.

    Parameters
    ----------
    name : str
        What it is called in an error.
    x : object
        What has ``__array__``, ``__dlpack__`` or the buffer protocol. A tensor that requires a
        gradient is detached.

    Raises
    ------
    TypeError
        If it has a mask, or does not give the array that it offers: it is on another device, for
        example.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a {_kind(x)}; expected a NumPy array without a mask: say what stands "
            f"where it masks, as {name}.filled(0.0) does, or leave those steps out"
        )
    if isinstance(x, np.ndarray | np.generic):
        return x
    way = _way(x)
    if not way:
        return x
    if getattr(x, "requires_grad", False) is True and hasattr(x, "detach"):
        x = x.detach()
    try:
        if way == "array":
            return np.asarray(x)
        return np.from_dlpack(x) if way == "dlpack" else np.asarray(memoryview(x))
    except Exception as error:  # whatever the other side makes of it
        device, dtype = getattr(x, "device", None), str(getattr(x, "dtype", ""))
        fix = f"; it is on the device {device}: pass {name}.cpu()" * _is_elsewhere(device)
        fix = fix or f"; NumPy has no bfloat16: pass {name}.float()" * dtype.endswith("bfloat16")
        raise TypeError(
            f"{name} is a {_kind(x)}, which gives no array: {error!s:.200}{fix}"
        ) from error


def _way(x: Any) -> str:
    """How an object offers an array; "" if it does not."""
    kind = type(x)
    if isinstance(x, bytes | bytearray):
        return ""  # text of some encoding as often as numbers
    if hasattr(kind, "__array__") or hasattr(kind, "__array_interface__"):
        return "array"
    if hasattr(kind, "__dlpack__"):
        return "dlpack"
    try:
        memoryview(x).release()
    except TypeError:
        return ""
    return "buffer"


def _is_elsewhere(device: object) -> bool:
    return device is not None and str(device) != "cpu"


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


class Network(_engine.Network):
    """The engine's network, which takes what offers an array wherever one is given."""

    def as_rows(
        self,
        port: _engine.Port,
        x: Any,
        leading: tuple[int | None, ...],
        check: bool = True,
        contiguous: bool = True,
    ) -> Any:
        if type(x) is np.ndarray:
            return super().as_rows(port, x, leading, check, contiguous)
        name = "x" if len(self.inputs) == 1 else repr(port.name)
        array = offered(name, x)
        if array is not x and not port.tokens and array.dtype != self.dtype:
            raise TypeError(
                f"{name} is a {_kind(x)} of {array.dtype}; expected {self.dtype}, which the model "
                f"computes in: pass np.asarray({_detached(name, x)}).astype(np.{self.dtype})"
            )
        return super().as_rows(port, array, leading, check, contiguous)


def _detached(name: str, x: Any) -> str:
    return f"{name}.detach()" if getattr(x, "requires_grad", False) is True else name
