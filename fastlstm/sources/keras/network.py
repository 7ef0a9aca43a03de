"""How the layers of a Keras model call each other: a graph of calls, in an order they can run in.

The layouts are those of keras/src/models (``Sequential.get_config``, ``Functional.get_config``),
and of the same files of Keras 2. A model may be a layer of another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from fastlstm.errors import ConvertError
from fastlstm.sources.keras.config import Entry, refuse_foreign

__all__ = ["MODELS", "Call", "Network", "Tensor", "inner_network", "read_network", "tensors_in"]

MODELS = ("Sequential", "Functional", "Model")

# Names of the first argument of layers, by which it may be given.
_FIRST = ("inputs", "sequences", "query")

MAX_ARGUMENTS = 2**10  # of a call, tensors or not


class Tensor(NamedTuple):
    """One of the tensors that one of the calls of a layer gives."""

    layer: str
    call: int = 0
    place: int = 0


@dataclass(frozen=True)
class Call:
    """A layer, and what it is called with: a tree of values, among which are tensors.

    Parameters
    ----------
    entry : Entry
    number : int
        Which of the calls of this layer it is.
    arguments : list
        By place.
    named : dict
        By name, those that are neither None nor False.
    """

    entry: Entry
    number: int
    arguments: list[Any]
    named: dict[str, Any]

    @cached_property
    def reads(self) -> list[Tensor]:
        """All tensors among its arguments."""
        return [*tensors_in(self.arguments), *tensors_in(self.named)]


@dataclass(frozen=True)
class Network:
    """A model: its layers, their calls, inputs and outputs.

    Parameters
    ----------
    what : str
        The model in messages.
    entries : list of Entry
        Its layers, as the file lists them.
    calls : list of Call
        In an order in which they can run, without those of the inputs.
    inputs, outputs : list of (str, Tensor)
        Under the names that the model has for them.
    shapes : list
        Of each input with the batch, as the file says it, not checked; None where it does not.
    """

    what: str
    entries: list[Entry]
    calls: list[Call]
    inputs: list[tuple[str, Tensor]]
    outputs: list[tuple[str, Tensor]]
    shapes: list[object]

    @cached_property
    def readers(self) -> dict[Tensor, list[Call]]:
        """The calls that read each tensor."""
        found: dict[Tensor, list[Call]] = {}
        for call in self.calls:
            for tensor in dict.fromkeys(call.reads):
                found.setdefault(tensor, []).append(call)
        return found


def inner_network(entry: Entry) -> Network:
    """The calls of a model that is a layer, read once."""
    if entry.inner is None:
        config = {"class_name": entry.class_name, "config": entry.config}
        entry.inner = read_network(config, entry.version)
    made: Network = entry.inner
    return made


def read_network(config: Mapping[str, Any], version: str) -> Network:
    """The calls of a model.

    Raises
    ------
    ConvertError
        If it is no Sequential or functional model, or its calls make no graph.
    """
    if version and not re.match(r"[23]\.", version):
        raise ConvertError(
            f"the file was written by Keras {version!r:.20}; expected Keras 2 or 3, which name "
            f"weights and options in the same way: load it with one of them and save it again"
        )
    kind, inner = config.get("class_name"), config.get("config")
    what = f"the model, of class {kind!r:.80},"
    refuse_foreign(config, what)
    # The first versions of Keras 2 have the list alone.
    options = inner if isinstance(inner, dict) else {"layers": inner}
    if kind not in MODELS:
        raise ConvertError(
            f"{what} is not Sequential or Functional; what it computes is code, which the file "
            f"does not hold"
        )
    listed = options.get("layers")
    if not isinstance(listed, list) or not listed:
        raise ConvertError(f"{what} has the layers {listed!r:.80}; expected a list of them")
    entries = [Entry(entry, version) for entry in listed]
    if len({entry.name for entry in entries}) < len(entries):
        raise ConvertError(f"{what} has two layers of one name; expected different names")
    if kind == "Sequential":
        return _sequential(what, entries, options)
    return _functional(what, entries, options)


def _sequential(what: str, entries: list[Entry], options: Mapping[str, Any]) -> Network:
    shape = entries[0].input_shape or options.get("build_input_shape")
    given = [entry for entry in entries[:1] if entry.class_name == "InputLayer"]
    at = first = Tensor(given[0].name if given else "input")
    calls = []
    for entry in entries[len(given) :]:
        calls.append(Call(entry, 0, [at], {}))
        at = Tensor(entry.name)
    return Network(what, entries, calls, [(first.layer, first)], [(at.layer, at)], [shape])


def _functional(what: str, entries: list[Entry], options: Mapping[str, Any]) -> Network:
    inputs = _ends(what, options, "input_layers")
    outputs = _ends(what, options, "output_layers")
    given = {entry.name: entry for entry in entries if entry.class_name == "InputLayer"}
    for name, tensor in inputs:
        if tensor.layer not in given or tensor[1:] != (0, 0):
            raise ConvertError(f"{what} has the input {name!r:.80}, which is no InputLayer")
    calls = [call for entry in entries if entry.name not in given for call in _calls(entry)]
    shapes = [given[tensor.layer].input_shape for _, tensor in inputs]
    return Network(
        what, entries, _ordered(calls, {t.layer for _, t in inputs}), inputs, outputs, shapes
    )


def _ends(what: str, options: Mapping[str, Any], key: str) -> list[tuple[str, Tensor]]:
    """Inputs or outputs: one ``[name, 0, 0]``, a list of such, or a mapping of such."""
    value = options.get(key)
    if isinstance(value, dict):
        named = [(str(name), _tensor(where)) for name, where in value.items()]
    else:
        listed = [value] if _tensor(value) else value if isinstance(value, list) else []
        named = [("", _tensor(where)) for where in listed]
    found: list[tuple[str, Tensor]] = []
    names: set[str] = set()
    for name, tensor in named:
        if tensor is None:
            named = []
            break
        own = name or tensor.layer + (f"_{tensor.place}" if tensor.place else "")
        while own in names:
            own += "_"
        names.add(own)
        found.append((own, tensor))
    if not named:
        raise ConvertError(
            f"{what} has the {key} {value!r:.100}; expected a list of [layer, call, tensor]"
        )
    return found


def _tensor(value: object) -> Tensor | None:
    """What ``[name, call, place]`` refers to, if it is that."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        name, call, place = value
        if type(call) is int and type(place) is int and call >= 0 and place >= 0:
            return Tensor(name, call, place)
    return None


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in a tree of values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


def _count(value: object) -> int:
    """Values in a tree, those that hold others too."""
    if isinstance(value, list):
        return 1 + sum(map(_count, value))
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1


def _calls(entry: Entry) -> Iterator[Call]:
    nodes = entry.nodes
    if not isinstance(nodes, list) or not nodes:
        raise ConvertError(f"{entry.what} is called 0 times; expected once or more")
    for number, node in enumerate(nodes):
        if isinstance(node, dict):  # of Keras 3
            arguments, named = node.get("args"), node.get("kwargs")
            if isinstance(arguments, list) and isinstance(named, dict):
                arguments, named = _tree(arguments), {k: _tree(v) for k, v in named.items()}
        else:
            arguments, named = _of_keras_2(node)
        if not isinstance(arguments, list) or not isinstance(named, dict):
            raise ConvertError(
                f"{entry.what} is called with {node!r:.80}; expected lists of tensors and "
                f"mappings of arguments"
            )
        named = {k: v for k, v in named.items() if v not in (None, [None], [None, None])}
        named = {k: v for k, v in named.items() if v is not False}
        if not arguments and (first := next((n for n in _FIRST if n in named), None)):
            arguments = [named.pop(first)]
        if (count := _count([arguments, named])) > MAX_ARGUMENTS:
            raise ConvertError(
                f"{entry.what} is called with {count} arguments; at most {MAX_ARGUMENTS} are "
                f"supported"
            )
        yield Call(entry, number, arguments, named)


def _of_keras_2(node: object) -> tuple[Any, Any]:
    """Of ``[[layer, call, place, {name: argument}], ...]``; tensors are lists in arguments too."""
    listed = node if isinstance(node, list) else []
    if listed and isinstance(listed[0], str):
        listed = [listed]
    arguments: list[Any] = []
    named: Any = {}
    for number, item in enumerate(listed):
        tensor = _tensor(item[:3]) if isinstance(item, list) else None
        if tensor is None or len(item) > 4:
            return None, None
        arguments.append(tensor)
        if len(item) == 4 and number == 0:
            named = item[3]
            if isinstance(named, dict):
                named = {k: _lists_of_tensors(v) for k, v in named.items()}
    return arguments or None, named


def _lists_of_tensors(value: object) -> Any:
    if (tensor := _tensor(value)) is not None:
        return tensor
    if isinstance(value, list):
        return [_lists_of_tensors(part) for part in value]
    return value


def _tree(value: object) -> Any:
    """A tree of arguments of Keras 3, in which a tensor is a mapping with its history."""
    if isinstance(value, list):
        return [_tree(part) for part in value]
    if isinstance(value, dict):
        config = value.get("config")
        kind = value.get("class_name")
        if kind == "__keras_tensor__" and isinstance(config, dict):
            return _tensor(config.get("keras_history")) or value
        return {key: _tree(part) for key, part in value.items()}
    return value


def _ordered(calls: Sequence[Call], given: set[str]) -> list[Call]:
    """Calls behind those whose tensors they read."""
    waits: dict[tuple[str, int], int] = {}
    readers: dict[tuple[str, int], list[Call]] = {}
    known = {(call.entry.name, call.number) for call in calls}
    ready = []
    for call in calls:
        sources = {tensor[:2] for tensor in call.reads if tensor.layer not in given}
        for source in sources:
            if source not in known:
                raise ConvertError(
                    f"{call.entry.what} reads what call {source[1]} of {source[0]!r:.80} gives, "
                    f"which is not in the file"
                )
            readers.setdefault(source, []).append(call)
        waits[call.entry.name, call.number] = len(sources)
        if not sources:
            ready.append(call)
    order = []
    for call in ready:
        order.append(call)
        for reader in readers.get((call.entry.name, call.number), ()):
            place = (reader.entry.name, reader.number)
            waits[place] -= 1
            if not waits[place]:
                ready.append(reader)
    if len(order) < len(calls):
        stuck = next(call for call in calls if waits[call.entry.name, call.number])
        raise ConvertError(
            f"{stuck.entry.what} reads what depends on its own output; expected a graph without "
            f"loops"
        )
    return order
