"""From whatever was saved to the model's own tensors, under flat dotted names.

A checkpoint is a nest of mappings and lists: the model's state dict sits somewhere in it, with the
optimizer's state, counters and settings beside it. This file finds the state dict, and reads a
tensor of any library and float dtype into an array.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.checkpoint import Opaque, StoredModule, StoredTensor
from fastlstm.sources.pytorch.sets import STATISTICS, in_order, refuse_several

__all__ = [
    "RECURRENT",
    "StateDict",
    "Tensor",
    "described",
    "find_state_dict",
    "is_parameter",
    "listing",
    "to_array",
]

# The names torch.nn.LSTM, GRU and RNN give their tensors, and (without "_l0") those of the cells.
RECURRENT = re.compile(
    r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(0|[1-9]\d{0,3})(_reverse)?)?"
)

# Keys under which training scripts put the model's state dict beside other things.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net"),
    *("network", "module", "weights", "params"),
)

_QUANTIZED = re.compile(
    r"(?:.*\.)?(?:_packed_params|_all_weight_values|_packed_weight_(?:ih|hh))(?:\..*)?"
)
_PACKED = (
    "weights are packed for one kernel; expected float weights: convert the model before "
    "quantising it"
)

_FLOATS = ("float16", "bfloat16", "float32", "float64")

# A pickle may hold the same container many times over, or itself; no honest one is nested deeper
# or holds more entries than this.
MAX_NESTING = 128
MAX_ENTRIES = 500_000


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A named tensor that has not been read yet: ``value`` is what :func:`to_array` reads.

    ``dtype`` is torch's name of the dtype it is stored in.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    value: Any


@dataclass(frozen=True, slots=True)
class StateDict:
    """A model's tensors by name, in file order, and what was found with them.

    Parameters
    ----------
    tensors : dict of str to Tensor
    others : dict of str to object
        By name, what stands among the tensors that is none.
    modules : dict of str to StoredModule
        By path, the modules that hold them, if whole modules were saved.
    notes : tuple of str
        What was left out.
    unverified : tuple of str
        What is taken without a check.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Any]
    modules: dict[str, StoredModule]
    notes: tuple[str, ...]
    unverified: tuple[str, ...] = ()

    def refuse_unreadable(self, ignored: frozenset[str]) -> None:
        """Refuse weights that are there, but not as tensors.

        Raises
        ------
        ConvertError
            Naming a quantised weight, or a record where a weight belongs.
        """
        for name in (name for name in (*self.tensors, *self.others) if name not in ignored):
            if _QUANTIZED.fullmatch(name):
                raise ConvertError(f"{name!r:.200} belongs to a quantised module, whose {_PACKED}")
        for name, value in self.others.items():
            # True, 4 or None under such a name is an option of a module ("bias": True).
            if name not in ignored and is_parameter(name) and not _is_plain(value):
                raise ConvertError(
                    f"{name!r:.200} is {described(value)}; expected a tensor, since that is the "
                    f"name of a weight"
                )


def listing(tensors: Iterable[Tensor], most: int = 20) -> str:
    """Name, dtype and shape of each tensor, one a line; the first ``most`` and their number."""
    all_ = list(tensors)
    lines = [f"  {t.name!r:.120}: {t.dtype} {t.shape}" for t in all_[:most]]
    if len(all_) > most:
        lines.append(f"  and {len(all_) - most} more ({len(all_)} in all)")
    return "\n".join(lines)


def described(value: object) -> str:
    """What something is that is no tensor, for a message, in words of its file."""
    if isinstance(value, Opaque):
        what = f"{value.module}.{value.name}".removeprefix("builtins.")
        return f"{value.reason or f'an object of class {what}'!s:.200}"
    if isinstance(value, StoredModule):
        return f"a module of class {value.class_name:.100}"
    return f"{value!r:.100}"


def _kind(value: object) -> str:
    """The same in one word."""
    if isinstance(value, Opaque):
        return value.name[:80] if value.reason is None else "array that is not read"
    return type(value).__name__


class _Optimizer:
    """Stands for the state of a torch optimizer, which is never descended into."""


_Path = tuple[str, ...]


def find_state_dict(tree: Mapping[Any, Any], prefix: str | None) -> StateDict:
    """Find the model's tensors in a nest of mappings and lists.

    Parameters
    ----------
    tree : mapping
        What a checkpoint holds, or a state dict itself.
    prefix : str or None
        Take only the tensors under this dotted prefix, counted from the top or from the state
        dict; "" takes everything. None looks for the state dict under its usual names.

    Raises
    ------
    ConvertError
        If several state dicts lie side by side, nothing lies under the prefix, there is no tensor,
        two tensors have one name, or a module is quantised.
    """
    leaves, modules = _flatten(tree)
    prefix = prefix and prefix.removesuffix(".")
    wrapper: tuple[str, ...] = ()
    chosen = leaves if prefix == "" else _under(leaves, prefix)
    if not chosen:
        wrapper = _wrapper(leaves, modules)
        inner = {p[len(wrapper) :]: v for p, v in leaves.items() if p[: len(wrapper)] == wrapper}
        chosen = inner if prefix is None else _under(inner, prefix)
    if prefix is None:
        own = {(*wrapper, *path) for path in chosen}
        beside = {path: value for path, value in leaves.items() if path not in own}
        refuse_several(_shapes(chosen), _shapes(beside), wrapper)
    named = _named_as_model(chosen, leaves, modules) if prefix else {}
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    entries = named.items() or [(".".join(path), value) for path, value in chosen.items()]
    for name, value in entries:
        if name in tensors or name in others:
            raise ConvertError(f"two entries are called {name!r:.200}; expected one")
        tensor = _as_tensor(name, value)
        if tensor is not None:
            tensors[name] = tensor
        elif value is not None:
            others[name] = value
    inside = _modules_in(modules, wrapper, prefix or "")
    if not tensors:
        StateDict({}, others, {}, ()).refuse_unreadable(frozenset())
        there = listing(t for p, v in leaves.items() if (t := _as_tensor(".".join(p), v)))
        where = f" under the prefix {prefix!r:.200}" if prefix else ""
        raise ConvertError(
            f"there is no tensor{where}; expected a state dict, or a mapping that holds one. "
            + (f"Tensors seen:\n{there}" if there else f"Entries seen: {_entries(leaves, 0)}")
        )

    notes = []
    outside = leaves.keys() - ((*wrapper, *path) for path in chosen)
    if outside:
        beside = {path: value for path, value in leaves.items() if path in outside}
        why = f"outside the prefix {prefix!r}" if prefix else "beside the model"
        notes.append(f"left out, {why}: {_entries(beside, 0 if prefix else len(wrapper) - 1)}")
    if others:
        among: dict[_Path, Any] = {(name,): value for name, value in others.items()}
        notes.append(f"left out, not a tensor: {_entries(among, 0)}")
    unverified = []
    if named:
        unverified.append(
            f"{prefix!r:.200} is a list without names; its tensors were taken for the model's, "
            f"one after the other"
        )
    return StateDict(tensors, others, inside, tuple(notes), tuple(unverified))


def _shapes(leaves: Mapping[_Path, Any]) -> dict[_Path, tuple[int, ...]]:
    """The shapes of those that are tensors; of tied weights, which are one, the first."""
    own: dict[int, _Path] = {}
    for path, value in leaves.items():
        if _is_tensor(value):
            own.setdefault(id(value), path)
    return {path: _shape(leaves[path]) for path in leaves if own.get(id(leaves[path])) == path}


def _shape(value: Any) -> tuple[int, ...]:
    if _is_uninitialized(value):
        return ()
    return tuple(int(n) for n in getattr(value, "array", value).shape)


def _named_as_model(
    chosen: Mapping[_Path, Any],
    leaves: Mapping[_Path, Any],
    modules: Mapping[_Path, StoredModule],
) -> dict[str, Any]:
    """A list of tensors under the names of the model that has such parameters; {} if none has."""
    if not all(path[-1].isdigit() and _is_tensor(value) for path, value in chosen.items()):
        return {}
    others = {path: value for path, value in leaves.items() if path not in chosen}
    wrapper = _wrapper(others, modules)
    model = {path: v for path, v in others.items() if path[: len(wrapper)] == wrapper}
    shapes = {".".join(p[len(wrapper) :]): shape for p, shape in _shapes(model).items()}
    names = in_order(shapes, [_shape(value) for value in chosen.values()])
    if not names:
        return {}
    # Running statistics are no parameters, and averaged in no list.
    own = {".".join(path[len(wrapper) :]): value for path, value in model.items()}
    statistics = {n: v for n, v in own.items() if n.rpartition(".")[2] in STATISTICS}
    return dict(zip(names, chosen.values(), strict=True)) | statistics


def _flatten(tree: Mapping[Any, Any]) -> tuple[dict[_Path, Any], dict[_Path, StoredModule]]:
    """Every leaf by its path of keys, and every module; a list of plain values is one leaf."""
    leaves: dict[_Path, Any] = {}
    modules: dict[_Path, StoredModule] = {}
    left = MAX_ENTRIES

    def visit(value: Any, path: _Path) -> None:
        nonlocal left
        if isinstance(value, Mapping | list | tuple):
            left -= len(value)
            if left < 0 or len(path) > MAX_NESTING:
                raise ConvertError(
                    f"the checkpoint is nested more than {MAX_NESTING} deep or holds more than "
                    f"{MAX_ENTRIES} entries; expected a state dict: save module.state_dict() alone"
                )
        items: Iterable[tuple[Any, Any]]
        if isinstance(value, Mapping):
            if "state" in value and "param_groups" in value:
                leaves[path] = _Optimizer()
                return
            if isinstance(value, StoredModule):
                modules[path] = value
            items = value.items()
        elif isinstance(value, list | tuple) and any(map(_holds_more, value)):
            items = enumerate(value)
        else:
            if path in leaves:
                raise ConvertError(f"two entries are called {'.'.join(path)!r:.200}; expected one")
            leaves[path] = value
            return
        for key, child in items:
            visit(child, (*path, str(key)))

    visit(tree, ())
    return leaves, modules


def _holds_more(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or _is_tensor(value)


def _modules_in(
    modules: Mapping[_Path, StoredModule], wrapper: _Path, prefix: str
) -> dict[str, StoredModule]:
    """The modules below a wrapper and a prefix, by dotted path below the wrapper."""
    inside = {
        ".".join(p[len(wrapper) :]): m for p, m in modules.items() if p[: len(wrapper)] == wrapper
    }
    inside = {p: m for p, m in inside.items() if not prefix or f"{p}.".startswith(f"{prefix}.")}
    for path, module in inside.items():
        if module.class_name.startswith("torch.") and "quantiz" in module.class_name:
            raise ConvertError(
                f"{path or 'the model'!r:.200} is a {module.class_name:.100}, whose {_PACKED}"
            )
    return inside


def _under(leaves: dict[_Path, Any], prefix: str | None) -> dict[_Path, Any]:
    """The leaves below a dotted prefix, which may end inside a key that holds dots; or, where
    there are none, those whose names begin with it.
    """
    if prefix is None:
        return {}
    below = {p: v for p, v in leaves.items() if ".".join(p).startswith(f"{prefix}.")}
    return below or {p: v for p, v in leaves.items() if ".".join(p).startswith(prefix)}


def _wrapper(leaves: Mapping[_Path, Any], modules: Mapping[_Path, StoredModule]) -> _Path:
    """The keys that lead to the state dict or module, () if the whole is one."""
    parameters = [
        path for path, value in leaves.items() if _is_tensor(value) and is_parameter(path[-1])
    ]
    scope: _Path = ()
    while True:
        depth = len(scope)
        heads = list(dict.fromkeys(path[depth] for path in parameters if len(path) > depth + 1))
        direct = any(len(path) == depth + 1 for path in parameters)
        if direct or scope in modules or not any(head in WRAPPERS for head in heads):
            return scope
        if len(heads) > 1:
            choices = [".".join((*scope, head)) for head in heads[:20]]
            raise ConvertError(
                f"several state dicts lie side by side: {', '.join(map(repr, choices))}; expected "
                f"one: choose it, for example with prefix={choices[0]!r}, or take all with "
                f"prefix={'.'.join(scope)!r}"
            )
        scope = (*scope, heads[0])
        parameters = [path for path in parameters if path[: depth + 1] == scope]


def _entries(leaves: Mapping[_Path, Any], depth: int, most: int = 20) -> str:
    """Leaves summed up by their key at a depth: ``'optimizer' (optimizer state), 'step' (int)``."""
    groups: dict[str, list[Any]] = {}
    for path, value in leaves.items():
        groups.setdefault(".".join(path[: max(depth, 0) + 1]), []).append(value)
    texts = []
    for name, values in list(groups.items())[:most]:
        tensors = sum(map(_is_tensor, values))
        if isinstance(values[0], _Optimizer):
            what = "optimizer state"
        elif tensors:
            what = "tensor" if len(values) == 1 else f"{tensors} tensors"
        else:
            what = _kind(values[0]) if len(values) == 1 else f"{len(values)} entries"
        texts.append(f"{name!r:.120} ({what})")
    if len(groups) > most:
        texts.append(f"and {len(groups) - most} more")
    return ", ".join(texts) or "none"


def is_parameter(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in ("weight", "bias") or RECURRENT.fullmatch(last) is not None


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


def _is_tensor(value: Any) -> bool:
    # A torch tensor is recognised by its methods, so that torch need not be there.
    return isinstance(value, StoredTensor | np.ndarray) or (
        hasattr(value, "detach") and hasattr(value, "cpu")
    )


def _is_uninitialized(value: Any) -> bool:
    return type(value).__name__ in ("UninitializedParameter", "UninitializedBuffer")


def _as_tensor(name: str, value: Any) -> Tensor | None:
    if not _is_tensor(value):
        return None
    if isinstance(value, StoredTensor):
        return Tensor(name, tuple(value.array.shape), value.dtype, value.array)
    if _is_uninitialized(value):
        raise ConvertError(
            f"{name!r:.200} belongs to a lazy module that is not initialised, so it has no shape; "
            f"run the module once on an example before converting it"
        )
    dtype = value.dtype.name if isinstance(value, np.ndarray) else str(value.dtype)
    shape = tuple(int(n) for n in value.shape)
    return Tensor(name, shape, dtype.removeprefix("torch."), value)


def to_array(tensor: Tensor, dtype: str) -> npt.NDArray[Any]:
    """Read a tensor into a new C-contiguous array of ``dtype`` ("float32" or "float64").

    Raises
    ------
    ConvertError
        If the tensor is not of a float dtype, holds no data (meta device) or is not dense, or a
        finite value does not fit ``dtype``.
    """
    value = tensor.value
    if tensor.dtype not in _FLOATS:
        raise ConvertError(
            f"tensor {tensor.name!r:.200} has dtype {tensor.dtype}; expected one of "
            f"{', '.join(_FLOATS)}"
            + ("; convert the model before quantising it" if tensor.dtype.startswith("q") else "")
        )
    if not isinstance(value, np.ndarray):
        if value.device.type == "meta":
            raise ConvertError(
                f"tensor {tensor.name!r:.200} is on the meta device and holds no values; load the "
                f"weights into the module before converting it"
            )
        if str(value.layout) != "torch.strided":
            raise ConvertError(
                f"tensor {tensor.name!r:.200} has layout {value.layout}; expected a dense one: "
                f"call its to_dense() first"
            )
        # NumPy has no bfloat16; float32 holds every bfloat16 value. force: detached, on the CPU.
        value = (value.float() if tensor.dtype == "bfloat16" else value).numpy(force=True)
    with np.errstate(over="ignore", under="ignore"):
        array = np.array(value, dtype=dtype, order="C")
    if tensor.dtype == "float64" and dtype == "float32":
        lost = np.isinf(array) & np.isfinite(value)
        if lost.any():
            raise ConvertError(
                f"tensor {tensor.name!r:.200} holds {float(value[lost][0])!r}, which float32 "
                f"cannot hold; store the model as dtype='float64'"
            )
    return array
