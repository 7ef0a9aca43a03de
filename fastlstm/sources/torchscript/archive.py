"""Read an archive of ``torch.jit.save``: the objects in it, its constants and the text of its code.

The layout is that of torch/csrc/jit/serialization/export_module.cpp: ``data.pkl`` holds the module
and all that it holds, with its tensors in ``data/``, ``constants.pkl`` those tensors that the code
names ``CONSTANTS.c0`` and on, in ``constants/``, and ``code/`` what the methods of its classes do.
The file is not trusted: it is read by the reader of checkpoints, and nothing of it is run.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.archive import Archive, Source, opened
from fastlstm.sources.pytorch.checkpoint import SPARE_MEMORY
from fastlstm.sources.pytorch.rebuild import Meaning, StoredModule
from fastlstm.sources.pytorch.storages import RETRY, Storages, StoredTensor
from fastlstm.sources.pytorch.unpickle import Budget, Opaque, load

__all__ = ["Archived", "ScriptObject", "Source", "is_archive", "read_archive"]

CODE = re.compile(r"(?:[^/]+/)?code/(.+)\.py")


class ScriptObject:
    """An object of a class whose code is in the archive, most often a module.

    Parameters
    ----------
    type : str
        The qualified name of its class, as ``"__torch__.torch.nn.modules.linear.Linear"``.
    fields : dict
        Its attributes by name.
    """

    __slots__ = ("fields", "type")

    def __init__(self, type: str, fields: dict[str, Any]) -> None:
        self.type, self.fields = type, fields


@dataclass(frozen=True)
class Archived:
    """What an archive holds.

    Parameters
    ----------
    root : ScriptObject
        The module that was saved.
    constants : tuple
        Of the code.
    code : dict of str to str
        By the qualified name of what a text defines, less the last part: ``"__torch__.models"``.
    dtypes : dict of int to str
        By the id of an array, what it is stored in.
    budget : Budget
        What is left of the memory that reading it may take.
    example : tuple of (shape, kind)
        Of each array that a traced module was given; empty of a scripted one.
    """

    root: ScriptObject
    constants: tuple[Any, ...]
    code: dict[str, str]
    dtypes: dict[int, str]
    budget: Budget
    example: tuple[tuple[tuple[int, ...], str], ...] = ()


class _Objects(Meaning):
    """Keeps of a scripted object all that it has, under the name of its class."""

    def scripted_module(self, node: Opaque, state: dict[Any, Any]) -> StoredModule:
        made = ScriptObject(f"{node.module}.{node.name}", {})
        for name, item in state.items():
            if not isinstance(name, str):
                raise ConvertError(f"an attribute of {made.type!r:.80} has no name; {RETRY}")
            made.fields[name] = self.value(item)
        return made  # type: ignore[return-value]


def is_archive(source: Source) -> bool:
    """Whether a file is a zip archive with code in it, as ``torch.jit.save`` writes it."""
    with opened(source) as (file, size):
        if file.read(4) != b"PK\x03\x04":
            return False
        try:
            members = Archive(file, size, Budget(2 * size + SPARE_MEMORY)).members
        except ConvertError:
            return False  # the reader of checkpoints says what is wrong with it
    return any(map(CODE.fullmatch, members)) and any(m.endswith("data.pkl") for m in members)


def read_archive(source: Source) -> Archived:
    """Read an archive.

    Raises
    ------
    ConvertError
        If it is damaged, or asks for more memory than a file of its size should need.
    OSError
        If it cannot be read.
    """
    with opened(source) as (file, size):
        budget = Budget(2 * size + SPARE_MEMORY)
        archive = Archive(file, size, budget)
        roots = [name for name in archive.members if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(roots) != 1:
            raise ConvertError(f"the archive has {len(roots)} members data.pkl; expected one")
        prefix = roots[0].removesuffix("data.pkl")
        order = "little"
        if prefix + "byteorder" in archive.members:
            order = archive.inflated(prefix + "byteorder").decode("latin-1")
        dtypes: dict[int, str] = {}

        def saved(name: str) -> Any:
            return _saved(file, archive, f"{prefix}{name}", order, budget, dtypes)

        root = saved("data")
        # The first archives of this layout have no member for constants where there are none.
        constants = saved("constants") if f"{prefix}constants.pkl" in archive.members else ()
        example = _example(archive, f"{prefix}traced_inputs.pkl", budget)
        code = {
            match[1].replace("/", "."): archive.inflated(name).decode("utf-8", "replace")
            for name in archive.members
            if (match := CODE.fullmatch(name))
        }
    if not isinstance(root, ScriptObject) or not isinstance(constants, tuple | list):
        raise ConvertError(f"the archive holds no module of TorchScript; {RETRY}")
    return Archived(root, tuple(constants), code, dtypes, budget, example)


def _example(
    archive: Archive, name: str, budget: Budget
) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shape and kind of the arrays that a module was traced with; their numbers are not kept."""
    if name not in archive.members:
        return ()
    storages = Storages()
    pickled = load(io.BytesIO(archive.inflated(name)), budget, storages.reference)
    value = Meaning(budget, storages).value(pickled)
    sizes = {id(tensor): view for view, tensor in storages.tensors.items()}
    found = []
    waiting = [value.get("forward")] if isinstance(value, dict) else []
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list | tuple):
            waiting[:0] = one
        elif isinstance(one, StoredTensor):
            view = sizes[id(one)]
            kind = "float" if "float" in view.dtype else "bool" if view.dtype == "bool" else "int"
            found.append((view.size, kind))
    return tuple(found)


def _saved(
    file: BinaryIO,
    archive: Archive,
    name: str,
    order: str,
    budget: Budget,
    dtypes: dict[int, str],
) -> Any:
    """The object of a pickle in the archive, its tensors as arrays."""
    pickled = archive.inflated(f"{name}.pkl")
    storages = Storages()
    value = _Objects(budget, storages).value(load(io.BytesIO(pickled), budget, storages.reference))
    budget.release(len(pickled))
    storages.read_tensors(file, lambda key: archive.extent(f"{name}/{key}"), order, budget)
    return _with_arrays(value, dtypes, {})


def _with_arrays(value: Any, dtypes: dict[int, str], done: dict[int, Any]) -> Any:
    """A value with an array in place of each tensor, the same one for a tensor that is shared."""
    if id(value) in done:
        return done[id(value)][1]
    made: Any = value
    if isinstance(value, StoredTensor):
        made = value.array
        dtypes[id(made)] = value.dtype
    elif isinstance(value, ScriptObject):
        done[id(value)] = (value, value)
        value.fields = {k: _with_arrays(v, dtypes, done) for k, v in value.fields.items()}
    elif isinstance(value, list | tuple):
        made = type(value)([_with_arrays(item, dtypes, done) for item in value])
    elif isinstance(value, dict):
        made = {k: _with_arrays(v, dtypes, done) for k, v in value.items()}
    if isinstance(made, list | tuple | dict) or made is not value:
        done[id(value)] = (value, made)
    return made
