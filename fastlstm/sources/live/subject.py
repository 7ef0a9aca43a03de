"""A module that is read: a copy of it that may run, and is as it was after every run."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.live.watch import tensors_in, watching
from fastlstm.sources.pytorch.module import SHELLS, class_path

__all__ = ["Subject"]

SMALL = 2**16  # numbers that are always written back, whether they seem changed or not


class Subject:
    """A module to be read.

    Parameters
    ----------
    module : torch.nn.Module
    prefix : str
        The path of the part of it that is read.

    Attributes
    ----------
    module : torch.nn.Module
        A copy of that part, in evaluation.
    described : str
        The part, for messages.
    needed, optional : list of str
        Arguments of forward that have no default, and those whose default is None.
    errors : dict of str to None
        What forward raised of the arguments that it did not take.
    widened : dict of str to str
        Weights of less than 32 bits, and their dtypes: what torch rounds with them is not rounded.
    used : set of int
        The ids of the tensors that operators of the last watched run were given.
    """

    def __init__(self, module: Any, prefix: str) -> None:
        own = _without_shells(module.get_submodule(prefix))
        kind = f"({type(own).__name__:.100})"
        self.described = f"{prefix!r:.200} {kind}" if prefix else f"the module {kind}"
        self.module, self.widened = _copied(own)
        self.errors: dict[str, None] = {}
        self.used: set[int] = set()
        signature = inspect.signature(self.module.forward).parameters.values()
        usual = [p for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.needed = [p.name for p in usual if p.default is p.empty]
        self.optional = [p.name for p in usual if p.default is None]
        if not self.needed and usual:
            self.needed = [usual[0].name]
            self.optional = [name for name in self.optional if name != usual[0].name]
        self._dicts = [
            (held, dict(held))
            for part in self.module.modules()
            for held in (vars(part), part._buffers, part._parameters)
        ]
        containers = [v for _, held in self._dicts for v in held.values()]
        self._lists = [(v, [*v]) for v in containers if isinstance(v, list)]
        self._tensors = [
            (t, t.detach().clone(), t._version)
            for t in tensors_in([*map(_values, self.module.modules())])
            if not isinstance(t, _torch().nn.Parameter)
        ]
        self._weights = [(path, p, p._version) for path, p in self.module.named_parameters()]

    @property
    def dtype(self) -> Any:
        """The dtype that it computes in."""
        torch = _torch()
        held = {t.dtype for t in (*self.module.parameters(), *self.module.buffers())}
        return torch.float64 if torch.float64 in held else torch.float32

    def run(self, given: Mapping[str, Any]) -> Any:
        """What forward gives for arguments; the module is put back."""
        with self.as_it_was():
            return self.call(given)

    def call(self, given: Mapping[str, Any]) -> Any:
        """What forward gives for arguments."""
        with _torch().no_grad():
            return self.module(**given)

    def watched(self, given: Mapping[str, Any]) -> Any:
        """What forward gives for arguments, and all that it does watched.

        Raises
        ------
        ConvertError
            If the numbers of an input decide what is computed, or random ones do.
        """
        with self.as_it_was(), watching(given, self.module) as used:
            made = self.call(given)
        self.used = used
        return made

    @contextlib.contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Put back, after this, what modules hold."""
        try:
            yield
        finally:
            for held, before in self._dicts:
                held.clear()
                held.update(before)
            for container, items in self._lists:
                container[:] = items
            for tensor, numbers, version in self._tensors:
                if tensor.numel() <= SMALL or tensor._version != version:
                    tensor.detach().copy_(numbers)
            for path, tensor, version in self._weights:
                if tensor._version != version:
                    raise ConvertError(
                        f"forward writes into the weights {path!r:.200}; expected it to leave "
                        f"them alone in evaluation"
                    )

    # What modules hold

    def held(self) -> dict[str, Any]:
        """By path, what attributes and buffers of the modules are, parameters and modules aside."""
        torch = _torch()
        found: dict[str, Any] = {}
        for path, part in self.module.named_modules():
            internal = vars(torch.nn.Module()).keys() - {"training"}
            for name, value in {**vars(part), **part._buffers}.items():
                if name not in internal and not isinstance(value, torch.nn.Parameter):
                    found[f"{path}.{name}" if path else name] = value
        return found

    def get(self, path: str) -> Any:
        """What an attribute is."""
        part, name = self._holder(path)
        return part._buffers[name] if name in part._buffers else vars(part)[name]

    def put(self, path: str, value: Any) -> None:
        """Have an attribute be this."""
        part, name = self._holder(path)
        if name in part._buffers:
            part._buffers[name] = value
        else:
            vars(part)[name] = value

    def _holder(self, path: str) -> tuple[Any, str]:
        parent, _, name = path.rpartition(".")
        return self.module.get_submodule(parent), name

    def refusal(self) -> str:
        """Why nothing that was tried could be run."""
        shown = "; ".join([*self.errors][:3]) or "none"
        names = ", ".join(map(repr, self.needed)) or "nothing"
        return (
            f"{self.described} is not converted: its forward takes {names:.200}, and none of the "
            f"arrays that were tried, of 1 to 4 axes and the sizes that its layers name. Say their "
            f"shapes with inputs=, None for the batch and for time, for example "
            f"inputs={{{(self.needed or ['x'])[0]!r:.80}: (None, None, 80)}}. Errors were: {shown}"
        )


def _values(part: Any) -> list[Any]:
    return [*vars(part).values(), *part._buffers.values()]


def _without_shells(module: Any) -> Any:
    """The module that wrappers run."""
    while (path := class_path(module)) in SHELLS:
        module = getattr(module, SHELLS[path])
    return module


def _refuse(module: Any) -> None:
    """Check that a module has weights, and none that it changes.

    Raises
    ------
    ConvertError
        Naming what is wrong, and what to do.
    """
    for path, part in module.named_modules():
        if getattr(part, "max_norm", None) is not None:
            raise ConvertError(
                f"{path!r:.200} ({type(part).__name__:.100}) has max_norm={part.max_norm}, which "
                f"scales rows when they are looked up; scale the rows of its weight once and set "
                f"max_norm=None"
            )
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ConvertError(
                f"{path!r:.200} is on the meta device, without values; load the weights first"
            )


def _copied(module: Any) -> tuple[Any, dict[str, str]]:
    """A copy of a module on the CPU, in evaluation, that shares no tensor with it.

    What cannot be copied, as a lock or a file, is shared. With it go the names of the weights that
    it has widened, and what they were.
    """
    _refuse(module)
    torch = _torch()
    memo: dict[int, Any] = {}
    parts = [*module.modules()]
    # What is no riddle to copy, and is not copied only to see whether it can be.
    known = {id(one): one for one in (*parts, *module.parameters(), *module.buffers())}
    for part in parts:
        for value in _values(part):
            # A tensor that was computed cannot be copied by itself.
            for tensor in tensors_in(value):
                if not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
    for part in parts:
        for value in vars(part).values():
            plain = value is None or isinstance(value, int | float | str | torch.Tensor | type)
            if not plain and id(value) not in known:
                try:
                    copy.deepcopy(value, {**known, **memo})
                except Exception:  # of whatever a module holds
                    memo[id(value)] = value
    try:
        made = copy.deepcopy(module, memo)
    except Exception as error:  # of whatever a module holds
        raise ConvertError(f"the module cannot be copied: {str(error)[:200]}") from error
    for part in [*made.modules()]:
        for name, child in part._modules.items():
            part._modules[name] = child and _without_shells(child)
    held = (*made.named_parameters(), *made.named_buffers())
    if any(tensor.device.type != "cpu" for _, tensor in held):
        made = made.cpu()
    narrow = (torch.float16, torch.bfloat16)
    widened = {n: str(t.dtype).removeprefix("torch.") for n, t in held if t.dtype in narrow}
    return (made.float() if widened else made).eval(), widened


def _torch() -> Any:
    import torch

    return torch
