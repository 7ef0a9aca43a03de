"""Watches a forward while it runs: whether numbers of an input, or chance, decide what it computes.

A record of a forward has the branch that was taken, the number that was read and the number that
was drawn, whatever they are next time. So each tensor that depends on the numbers of an input is
known while the forward runs, and is refused where Python asks what it holds; and so is each call
after which a generator of random numbers is not what it was. Shapes may be asked for: they are
compared by other records of other sizes.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError

__all__ = ["line_of", "settled", "tensors_in", "watching"]

_ASKS = {
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "item"),
    *("tolist", "numpy", "__array__", "is_nonzero", "equal", "allclose", "nonzero", "argwhere"),
    *("unique", "unique_consecutive", "masked_select", "bincount", "data_ptr"),
}
# What these give depends on a shape alone.
_SHAPES = {
    *(
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "storage_offset",
        "is_contiguous",
    ),
    *("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_full"),
    *("new_empty", "__len__", "is_floating_point", "is_complex", "get_device", "element_size"),
    *("type", "__hash__", "__repr__", "__format__", "is_same_size"),
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
def watching(given: Mapping[str, Any], module: Any) -> Iterator[set[int]]:
    """Refuse what no record of a forward has.

    Parameters
    ----------
    given : mapping of str to object
        What forward is given.
    module : torch.nn.Module
        Whose forward it is.

    Yields
    ------
    set of int
        The ids of all tensors that operators were given.

    Raises
    ------
    ConvertError
        Where Python asks for numbers that depend on those of an input, and where random numbers are
        drawn; the message names the call, the module and the line of code.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    known: dict[int, Any] = {id(t): t for t in tensors_in(given)}
    kept: list[Any] = []  # so that an id stays that of one tensor
    used: set[int] = set()
    paths = {id(part): (path, part) for path, part in module.named_modules()}

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            name = str(getattr(func, "__name__", ""))
            own = [*tensors_in([*args, *kwargs.values()])]
            used.update(map(id, own))
            kept.extend(own)
            depends = any(id(t) in known for t in own)
            masked = name == "__getitem__" and any(
                id(t) in known and t.dtype == torch.bool for t in tensors_in(args[1:])
            )
            if depends and (name in _ASKS or masked):
                raise ConvertError(
                    f"{_shown(name)}() of numbers of the input decides what is computed"
                    f"{_where(paths)}; expected the same operations for every input of a shape"
                )
            drawn = torch.get_rng_state()
            made = func(*args, **kwargs)
            if kwargs.get("generator") is not None or not torch.equal(drawn, torch.get_rng_state()):
                raise ConvertError(
                    f"{_shown(name)}() draws random numbers{_where(paths)}; expected a forward "
                    f"that gives the same each time in evaluation"
                )
            if depends and name not in _SHAPES:
                # How many rows a step has, beside packed ones, is no number of theirs.
                of_input = made[:1] if name == "_pack_padded_sequence" else made
                for tensor in tensors_in(of_input):
                    known[id(tensor)] = tensor
                # What is written into an array makes the array depend on it too.
                if name.endswith("_") or name == "__setitem__" or "out" in kwargs:
                    for tensor in tensors_in([*args[:1], kwargs.get("out")]):
                        known[id(tensor)] = tensor
            return made

    others = _others()
    with Watch():
        yield used
    if others != _others():
        raise ConvertError(
            "forward draws random numbers of NumPy or of Python's random; expected a forward that "
            "gives the same each time in evaluation"
        )


def _shown(name: str) -> str:
    """A special method as people write it."""
    return name.strip("_") if name.startswith("__") else name


def _others() -> tuple[Any, ...]:
    """The states of the generators that torch does not have."""
    _, keys, *rest = np.random.get_state()
    return (np.asarray(keys).tobytes(), *rest, random.getstate())


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """One thread of torch, and afterwards the generators of random numbers as they were."""
    import torch

    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # a team of threads takes longer for arrays of these sizes
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def _where(paths: Mapping[int, tuple[str, Any]]) -> str:
    """The module and the line of code that are run, in words."""
    frame: FrameType | None = sys._getframe(1)
    line = called = ""
    while frame is not None and not (line and called):
        holder = paths.get(id(frame.f_locals.get("self")))
        if holder is not None and not called:
            path, part = holder
            called = f" in {path!r:.200} ({type(part).__name__:.100})" if path else " in forward"
        line = line or line_of(frame.f_globals.get("__name__"), frame.f_code.co_filename,
                               frame.f_lineno)  # fmt: skip
        frame = frame.f_back
    return called + line


def line_of(module: Any, path: str, number: int) -> str:
    """A line of code in words; "" of torch's own code and of this package's."""
    if str(module).partition(".")[0] in ("torch", "fastlstm", "contextlib"):
        return ""
    return f" ({path.replace(chr(92), '/').rpartition('/')[2]:.100}, line {number})"
