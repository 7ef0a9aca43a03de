"""The forward of an archive as a program of arrays."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.aten import Aten, Unknown
from fastlstm.sources.aten.forward import Input, Ran, flat
from fastlstm.sources.aten.table import is_array
from fastlstm.sources.torchscript.archive import Archived, ScriptObject
from fastlstm.sources.torchscript.code import Code
from fastlstm.sources.torchscript.interpreter import Interpreter
from fastlstm.sources.torchscript.types import nested, places

__all__ = ["ScriptForward"]

Array = npt.NDArray[Any]
MAX_DEPTH = 40


class ScriptForward:
    """The forward of the module that an archive holds.

    Parameters
    ----------
    archived : Archived

    Attributes
    ----------
    inputs, outputs, attributes, dtypes
        As :class:`~fastlstm.sources.aten.forward.Forward` has them.
    """

    def __init__(self, archived: Archived) -> None:
        self.archived = archived
        self.code = Code(archived.code, archived.budget)
        self.dtypes: Mapping[int, str] = archived.dtypes
        # A module of torch's own that was scripted alone has a forward for each type of its
        # input: the first one is that of arrays.
        known = self.code.script_class(archived.root.type).methods
        self._name = "forward" if "forward" in known else "forward__0"
        forward = self.code.method(archived.root.type, self._name)
        if forward is None:
            raise ConvertError("the archive holds a module without a forward")
        self._given: dict[str, str] = {}  # arguments that have to be given, and their types
        self._absent: dict[str, Any] = {}
        for name, kind, default in forward.parameters[1:]:
            if default is None or kind.startswith("Optional["):
                self._given[name] = kind
            if default is None and kind.startswith("Optional["):
                self._absent[name] = None
        inputs = [
            Input(name + place, optional=kind.startswith("Optional["))
            for name, kind in self._given.items()
            for place in self._arrays(name, kind)
        ]
        if len(archived.example) == len(inputs):
            inputs = [
                replace(one, shape=shape, kind=of, example=True)
                for one, (shape, of) in zip(inputs, archived.example, strict=True)
            ]
        self.inputs = tuple(inputs)
        self.outputs = tuple(
            place or "output" for place, kind in places(forward.returns) if kind == "Tensor"
        )
        self.attributes = dict(_attributes(archived.root))

    def _arrays(self, name: str, kind: str) -> Iterator[str]:
        parts = list(places(kind))
        if kind.startswith("Optional[") and any(one != "Tensor" for _, one in parts):
            return  # it is left out
        for place, one in parts:
            if one != "Tensor":
                raise ConvertError(
                    f"forward needs an argument {name + place!r:.80} of type {one:.80}; expected "
                    f"arrays, and defaults for all else"
                )
            yield place

    def __call__(
        self, builder: Builder, given: Mapping[str, Any], states: Mapping[str, Any]
    ) -> Ran:
        """Follow it once, with these inputs and what these attributes hold."""
        aten = Aten(builder)
        root, paths = _copied(self.archived.root)
        for path, value in self.attributes.items():
            if isinstance(value, np.ndarray):
                builder.name(value, path)
        for path, value in states.items():
            own: Any = value
            if isinstance(value, Value):
                own = Value(value.places.copy(), value.kind)
            _holder(root, path).fields[path.rpartition(".")[2]] = own
        before = dict(_attributes(root))
        kept = {p: v.places.copy() for p, v in before.items() if isinstance(v, Value)}
        interpreter = Interpreter(self.code, self.archived.constants, aten, paths)
        named = {
            name: nested(kind, name, given)
            for name, kind in self._given.items()
            if any(one == name or one.startswith(f"{name}[") for one in given)
        }
        try:
            returned = interpreter.method(root, self._name, (), self._absent | named)
        except RecursionError:
            raise ConvertError("the code is nested too deep to be followed") from None
        written = {}
        for path, value in _attributes(root):
            now = aten.memory.current(value)
            old: Any = before.get(path)
            if isinstance(now, Value):
                changed = now is not old or not np.array_equal(now.places, kept[path])
            elif is_array(now):
                changed = now is not old and not (
                    isinstance(old, np.ndarray) and np.array_equal(now, old)
                )
            else:
                changed = type(now) is not type(old) or (_plain(now) and now != old)
            if changed:
                written[path] = now
        return Ran(dict(flat(_settled(aten, returned))), written)

    def may_write(self) -> dict[str, Array]:
        """By path, arrays of the modules that some method assigns to or writes into, as it seems.

        It is found in the text, a line at a time: what a run writes to is known after it alone.
        """
        found: dict[str, Array] = {}
        for path, one in _objects(self.archived.root):
            arrays = {n for n, v in one.fields.items() if isinstance(v, np.ndarray)}
            if not arrays or one.type not in self.code:
                continue
            known = self.code.script_class(one.type)
            parameters = _names_in(known.attributes.get("__parameters__", ("", None))[1])
            for text in known.methods.values():
                written = _written_names(text) & arrays - parameters
                for name in (n for n in one.fields if n in written):
                    found[f"{path}.{name}" if path else name] = one.fields[name]
        return found


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str | bool | None)


def _settled(aten: Aten, value: Any) -> Any:
    """What was returned, with what was written into arrays."""
    if isinstance(value, dict):
        return {key: _settled(aten, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_settled(aten, item) for item in value]
    return value if isinstance(value, Unknown) else aten.memory.current(value)


def _objects(root: ScriptObject) -> Iterator[tuple[str, ScriptObject]]:
    """Path and object, each object once."""
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        path, one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield path, one
        for name, value in one.fields.items():
            if isinstance(value, ScriptObject):
                waiting.append((f"{path}.{name}" if path else name, value))


def _attributes(root: ScriptObject) -> Iterator[tuple[str, Any]]:
    """Path and value of all that modules hold and that is no module."""
    for path, one in _objects(root):
        for name, value in one.fields.items():
            if not isinstance(value, ScriptObject):
                yield f"{path}.{name}" if path else name, value


def _names_in(node: ast.expr | None) -> set[str]:
    """The strings of a list of them."""
    items = node.elts if isinstance(node, ast.List) else []
    return {i.value for i in items if isinstance(i, ast.Constant) and isinstance(i.value, str)}


def _written_names(text: str) -> set[str]:
    """Attributes of ``self`` that a method sets, or may write into."""
    head = re.match(r"\s*def \w+\((\w+)", text)
    own = re.escape(head[1]) if head else "self"
    found: set[str] = set()
    views: dict[str, set[str]] = {}  # local variable -> attributes whose memory it may be
    for line in text.split("\n"):
        if match := re.match(rf"\s*\(?{own}\)?\.(\w+) = ", line):
            found.add(match[1])
        mentioned = set(re.findall(rf"\b{own}\)?\.(\w+)", line))
        for name in re.findall(r"\b\w+\b", line):
            mentioned |= views.get(name, set())
        if mentioned and re.search(r"\btorch\.\w*[a-z]_\(", line):
            found |= mentioned
        if mentioned and (match := re.match(r"\s*(\w+) = ", line)):
            views[match[1]] = views.get(match[1], set()) | mentioned
    return found


def _copied(root: ScriptObject) -> tuple[ScriptObject, dict[int, str]]:
    """The same objects, whose attributes can be set, and where each of them is."""
    done: dict[int, Any] = {}
    paths: dict[int, str] = {}

    def copied(value: Any, path: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ConvertError(f"modules of the archive are nested more than {MAX_DEPTH} deep")
        if id(value) in done:
            return done[id(value)]
        if isinstance(value, ScriptObject):
            made = done[id(value)] = ScriptObject(value.type, {})
            paths[id(made)] = path
            for name, item in value.fields.items():
                full = f"{path}.{name}" if path else name
                made.fields[name] = copied(item, full, depth + 1)
            return made
        if isinstance(value, list):
            done[id(value)] = [copied(item, path, depth + 1) for item in value]
        elif isinstance(value, tuple) and type(value) is tuple:
            done[id(value)] = tuple([copied(item, path, depth + 1) for item in value])
        elif isinstance(value, dict):
            done[id(value)] = {k: copied(v, path, depth + 1) for k, v in value.items()}
        else:
            return value
        return done[id(value)]

    made = copied(root, "", 0)
    assert isinstance(made, ScriptObject)
    return made, paths


def _holder(root: ScriptObject, path: str) -> ScriptObject:
    """The object that holds what is at a path."""
    for name in path.split(".")[:-1]:
        root = root.fields[name]
    return root
