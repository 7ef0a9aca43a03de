"""Programs of torch: a live module, a TorchScript archive, and what ``torch.export`` saved."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.verification.program import reason
from fastlstm.verification.torch_equations import ONE_AT_A_TIME

__all__ = ["TorchProgram", "declared", "open_archive"]

Array = npt.NDArray[Any]

PLACE = re.compile(r"\[(\d+)\]")


class TorchProgram:
    """A copy of a module, in evaluation and in one precision.

    An exported program keeps its own precision, and may say sizes that it was exported for.

    Its arguments are those of its forward, by name; of a tuple the parts, as ``"hx[0]"``. What it
    returns is called by its place, ``""`` being all of it.

    Parameters
    ----------
    module : torch.nn.Module, live or of TorchScript, or torch.export.ExportedProgram
    name : str
    dtype : numpy.dtype
        Of the model's weights, to which those of the module are rounded first.
    precision : str, optional
        "float32" or "float64"; without it the module keeps its own.
    """

    def __init__(
        self, module: Any, name: str, dtype: np.dtype[Any], precision: str | None = None
    ) -> None:
        import torch

        self._sizes: dict[str, tuple[int | None, ...]] = {}
        if isinstance(module, torch.export.ExportedProgram):
            self._sizes, module, precision = _sizes_of(module), module.module(), None
        own = _copied(module)
        self.parameters, self.may_be_states = declared(own)
        self.dtype = dtype
        if precision is None:
            numbers = [t for t in own.state_dict().values() if t.is_floating_point()]
            self._torch_dtype = numbers[0].dtype if numbers else torch.float32
        else:
            self._torch_dtype = getattr(torch, precision)
            with _quietly():
                own = own.cpu().eval().to(getattr(torch, dtype.name)).to(self._torch_dtype)
        self.name = f"{name}, {str(self._torch_dtype).removeprefix('torch.')}"
        if self._torch_dtype == torch.float32:
            self.dtype = np.dtype(np.float32)
        self._module = own

    def start(self) -> Any:
        # A module may keep states of its own: each sequence has a copy.
        return _copied(self._module)

    def size_of(self, argument: str, axis: int) -> int | None:
        sizes = self._sizes.get(PLACE.sub(r"_\1", argument), ())
        return sizes[axis] if axis < len(sizes) else None

    def call(self, session: Any, arguments: Mapping[str, Any]) -> dict[str, Array]:
        import torch

        nested: dict[str, Any] = {}
        for name, value in arguments.items():
            _put(nested, name, self._tensor(name, value))
        given = {name: _tuples(value) for name, value in nested.items()}
        order = list(self.parameters)
        positional = [given[name] for name in order if name in given]
        if set(order[: len(positional)]) == set(given):
            named: dict[str, Any] = {}
        else:
            positional, named = [], given
        with _quietly(), torch.no_grad(), _default_dtype(self._torch_dtype):
            result = session(*positional, **named)
        return {
            place: tensor.detach().cpu().resolve_conj().numpy().copy()
            for place, tensor in _leaves(result)
        }

    def _tensor(self, name: str, value: Any) -> Any:
        import torch

        if not isinstance(value, np.ndarray):
            wants = self.parameters.get(name.partition("[")[0], "")
            if isinstance(value, list) or "Tensor" in wants:
                return torch.tensor(value)
            return value
        tensor = torch.from_numpy(np.array(value))
        return tensor.to(self._torch_dtype) if tensor.is_floating_point() else tensor


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What torch and a module warn of is no news to who trained it."""
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _copied(module: Any) -> Any:
    try:
        with _quietly():
            return copy.deepcopy(module)
    except Exception as error:  # of torch, or of its own code
        raise ValueError(f"the module cannot be copied: {reason(error)}") from None


def declared(module: Any) -> tuple[dict[str, str], dict[str, bool]]:
    """Of a forward the parameters, and what each says it is, "" if nothing.

    And those that may be states: whether one must be given.
    """
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward.schema  # type: ignore[attr-defined]
        arguments = schema.arguments[1:]  # behind the module itself
        needed = {
            a.name: not a.has_default_value()
            for a in arguments
            if not a.has_default_value() or a.default_value is None
        }
        return {a.name: str(a.type) for a in arguments}, needed
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [
        p
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind in kinds and p.name != "self"
    ]
    empty = inspect.Parameter.empty
    wants = {p.name: "" if p.annotation is empty else str(p.annotation) for p in parameters}
    needed = {p.name: p.default is empty for p in parameters if p.default in (empty, None)}
    return wants, needed


def _sizes_of(program: Any) -> dict[str, tuple[int | None, ...]]:
    """The sizes of the inputs of an exported program; None for each that is open."""
    inputs = set(program.graph_signature.user_inputs)

    def fixed(size: Any) -> int | None:
        # A symbol that a guard made constant is one still, in a program that was not saved.
        return size if isinstance(size, int) else size.node.maybe_as_int()

    return {
        node.name: tuple(map(fixed, node.meta["val"].shape))
        for node in program.graph.nodes
        if node.name in inputs and hasattr(node.meta.get("val"), "shape")
    }


def open_archive(path: str) -> Any:
    """The module in a TorchScript archive, or the program in a file of ``torch.export``.

    Raises
    ------
    ValueError
        If torch cannot load it.
    """
    import torch

    try:
        with _quietly():
            if path.lower().endswith(".pt2"):
                return torch.export.load(path)
            return torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except OSError:
        raise
    except Exception as error:  # whatever torch makes of a file that it cannot read
        raise ValueError(f"torch cannot load {path!r:.200}: {reason(error)}") from None


def _put(nested: dict[str, Any], name: str, value: Any) -> None:
    """Put an argument, ``"hx"`` or ``"hx[1][0]"``, into its place."""
    base = name.partition("[")[0]
    places = [int(place) for place in PLACE.findall(name)]
    if not places:
        nested[base] = value
        return
    at = nested.setdefault(base, {})
    for place in places[:-1]:
        at = at.setdefault(place, {})
    at[places[-1]] = value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(_tuples(value[place]) for place in sorted(value))
    return value


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor in what a module returned, with its place."""
    import torch

    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for n, item in enumerate(value):
            yield from _leaves(item, f"{place}[{n}]")


@contextlib.contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """What a forward makes by itself, such as a state of zeros, comes in the dtype of its input."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
