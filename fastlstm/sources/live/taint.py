"""Watches whether the numbers of an input decide what a forward computes.

A record of a forward has the branch that was taken and the number that was read, whatever the input
is next time. So each tensor that depends on the numbers of an input is known while the forward
runs, and is refused where Python asks what it holds. Shapes may be asked for: they are compared by
another record of other sizes.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from fastlstm.errors import ConvertError

__all__ = ["tensors_in", "watching"]

_ASKS = {
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "item"),
    *("tolist", "numpy", "__array__", "is_nonzero", "equal", "allclose", "nonzero", "unique"),
    *("masked_select", "__len_of__", "data_ptr"),
}
# What these give depends on a shape alone.
_SHAPES = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_full"),
    *("new_empty", "__len__", "is_floating_point", "is_complex", "get_device", "element_size"),
    *("rand_like", "randn_like", "type", "__hash__", "__repr__", "__format__", "is_same_size"),
}


def tensors_in(value: Any) -> Iterator[Any]:
    """Tensors in a nest of lists, tuples and mappings."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


@contextlib.contextmanager
def watching(given: Mapping[str, Any]) -> Iterator[None]:
    """Refuse to tell Python a number that depends on the numbers of these tensors."""
    from torch.overrides import TorchFunctionMode

    known: dict[int, Any] = {id(t): t for t in tensors_in(given)}

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            depends = any(id(t) in known for t in tensors_in([*args, *kwargs.values()]))
            if depends and name in _ASKS:
                raise ConvertError(
                    f"what it computes depends on the numbers of its input: {name.strip('_')} of a "
                    f"tensor that is computed{_line()}; expected what depends on shapes alone"
                )
            made = func(*args, **kwargs)
            if name == "__get__":
                depends = depends and getattr(func, "__self__", None) is not None
            if depends and name not in _SHAPES:
                for tensor in tensors_in(made):
                    known[id(tensor)] = tensor
                # What is written into an array makes the array depend on it too.
                if name.endswith("_") or name == "__setitem__":
                    for tensor in tensors_in(args[:1]):
                        known[id(tensor)] = tensor
            return made

    with Watch():
        yield


def _line() -> str:
    """The line of code, outside of torch and of this package, that asks."""
    for frame, line in reversed(list(traceback.walk_stack(sys._getframe(1)))[::-1]):
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if module not in ("torch", "fastlstm", "contextlib"):
            file = frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
            return f" ({file}, line {line})"
    return ""
