"""A module that is read: a copy of it that may run, and what it holds."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.live.taint import watching

__all__ = ["Subject"]

Array = npt.NDArray[Any]

# Classes that run the one module inside them, and where they keep it.
SHELLS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}


class Subject:
    """A module to be read.

    Parameters
    ----------
    module : torch.nn.Module
    prefix : str
        The path of the part of it that is read.
    """

    def __init__(self, module: Any, prefix: str) -> None:
        try:
            own = module.get_submodule(prefix)
        except AttributeError as error:
            raise ConvertError(f"prefix={prefix!r:.200} names no part of the module: {error}") from None
        while (path := f"{type(own).__module__}.{type(own).__qualname__}") in SHELLS:
            own = getattr(own, SHELLS[path])
        self.described = f"{prefix!r:.200}" if prefix else f"the module ({type(own).__name__})"
        self.module = _copied(own)
        self.module.eval()
        self.errors: dict[str, None] = {}
        signature = inspect.signature(self.module.forward).parameters.values()
        usual = [p for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.needed = [p.name for p in usual if p.default is p.empty]
        self.optional = [p.name for p in usual if p.default is None]
        if not self.needed and usual:
            self.needed, self.optional = [usual[0].name], [n for n in self.optional if n != usual[0].name]
        # Recurrent modules of torch are read by what their names say: forward(input, hx=None).
        self._kept = dict(self._tensors())

    @property
    def double(self) -> bool:
        """Whether its numbers are float64."""
        held = [*self.module.parameters(), *(t for _, t in self._tensors())]
        return any(tensor.dtype == _torch().float64 for tensor in held)

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        """Path and tensor of all that modules hold, parameters aside."""
        torch = _torch()
        for path, part in self.module.named_modules():
            held: dict[str, Any] = {**part._buffers, **vars(part)}
            for name, value in held.items():
                if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                    yield f"{path}.{name}" if path else name, value

    def run(self, given: Mapping[str, Any]) -> Any:
        """What forward gives for arguments, each array of which is watched.

        Raises
        ------
        ConvertError
            If the numbers of an input decide what is computed.
        """
        torch = _torch()
        with torch.no_grad(), watching(given):
            return self.module(**given)

    def changed(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """By path, tensors of modules that a call of forward changes, as they were before."""
        before = {path: (t, t.detach().clone()) for path, t in self._tensors()}
        self.run(given)
        after = dict(self._tensors())
        found = {}
        for path, (tensor, numbers) in before.items():
            now = after.get(path)
            if now is None:
                raise ConvertError(f"forward takes attribute {path!r:.200} away")
            same = now.shape == numbers.shape and bool(
                ((now == numbers) | ((now != now) & (numbers != numbers))).all()  # noqa: PLR0124
            )
            if not same:
                found[path] = numbers.numpy().copy()
            self.put(path, tensor)
            tensor.detach().copy_(numbers)
        for path in after.keys() - before.keys():
            raise ConvertError(
                f"forward sets attribute {path!r:.200}, which was no tensor before; expected a "
                f"buffer, whose value is what a stream starts from"
            )
        return found

    def put(self, path: str, tensor: Any) -> None:
        """Have a module hold a tensor."""
        parent, _, name = path.rpartition(".")
        part = self.module.get_submodule(parent)
        if name in part._buffers:
            part._buffers[name] = tensor
        else:
            vars(part)[name] = tensor

    def tensor(self, path: str) -> Any:
        """What a module holds at a path."""
        parent, _, name = path.rpartition(".")
        part = self.module.get_submodule(parent)
        return part._buffers[name] if name in part._buffers else vars(part)[name]

    def refusal(self) -> str:
        """Why nothing that was tried could be run."""
        shown = "; ".join([*self.errors][:3])
        return (
            f"{self.described} is not converted: its forward takes none of the arrays that were "
            f"tried, of 1 to 4 axes and the sizes that its layers name. Pass input_size= if the "
            f"features of a step are what is not found. Errors were: {shown or 'none'}"
        )


def _copied(module: Any) -> Any:
    """A copy of a module that shares no tensor with it, so that it is left as it was."""
    torch = _torch()
    memo: dict[int, Any] = {}
    # A tensor that was computed cannot be copied by itself.
    for part in module.modules():
        for value in [*vars(part).values(), *part._buffers.values()]:
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # of whatever a module holds
        raise ConvertError(f"the module cannot be copied: {str(error)[:200]}") from error


def _torch() -> Any:
    import torch

    return torch


def numbers_of(tensor: Any) -> Array:
    """A tensor as an array."""
    return np.asarray(tensor.detach().cpu().numpy())
