"""What follows a forward: each call of a module and each operation on a stand-in, onto a line."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.line import Line, Value
from fastlstm.sources.line.axes import Axis, Size
from fastlstm.sources.pytorch.module import SHELLS, class_path, is_torchs
from fastlstm.sources.pytorch.state_dict import Tensor, to_array
from fastlstm.sources.trace.functions import FUNCTIONS
from fastlstm.sources.trace.queries import CASTS, QUERIES, is_float_as
from fastlstm.sources.trace.recurrent import run_recurrent
from fastlstm.sources.trace.stand_in import (
    AS_NUMBER,
    InputKnown,
    Memory,
    Packed,
    Stand,
    stand_in,
    stand_of,
)
from fastlstm.sources.trace.step import Step, number
from fastlstm.sources.trace.views import MAKERS, VIEWS

__all__ = ["Event", "Follower", "called"]

Array = npt.NDArray[Any]

OPERATIONS = FUNCTIONS | VIEWS | MAKERS

MAX_CODE = 100  # characters of code that are shown

# What torch.nn.utils.weight_norm, spectral_norm and prune leave on a module: before each call, it
# computes the weight from its parts.
REPARAMETRISING = (
    "torch.nn.utils.weight_norm.WeightNorm",
    "torch.nn.utils.spectral_norm.SpectralNorm",
    "torch.nn.utils.prune.BasePruningMethod",
)

RECURRENT_MODULES = "torch.nn.modules.rnn"

_NO_MATTER = {
    "batch_first": "batch_first changes no weight and is not stored",
    "dropout": "dropout has no effect at inference",
}


@dataclass
class Event:
    """A module of torch's that ran, or an operation outside of one.

    Parameters
    ----------
    text : str
        What it is.
    names : list of str
        Those its layers were to have.
    no_effect : bool
    """

    text: str
    names: list[str] = field(default_factory=list)
    no_effect: bool = False


@dataclass
class _Running:
    """A module that is running, with the event that it is if it is one of torch's own."""

    module: Any
    path: str
    event: Event | None


class Follower:
    """Follows one run of a forward; what it is told is described in `stand_in.Listener`.

    Parameters
    ----------
    root : torch.nn.Module
    dtype : str
        What weights are read as.
    path : str
        Of the root, in the module that it is a part of.
    shape : sequence of int or None
        That of the input.
    tokens : bool
        Whether the input is integers.
    names : mapping of int to str
        By the id of a tensor of the module, its name.
    weights : dict of int to array
        By the same, those that have been read before.
    """

    def __init__(
        self,
        root: Any,
        dtype: str,
        path: str,
        shape: Sequence[int | None],
        tokens: bool,
        names: Mapping[int, str],
        weights: dict[int, Array],
    ) -> None:
        self.line = Line()
        self.input = self.line.input(shape, tokens=tokens)
        self.tokens = tokens
        self.events: list[Event] = []
        self.notes: dict[str, None] = {}
        self.read: dict[str, Tensor] = {}
        self.seen: set[int] = set()  # the modules and tensors of the root that were used
        self.count = 0
        # A module of torch's own that is the root gets the last part of its path for a name.
        self._root, self._dtype, self._name = root, dtype, path.rpartition(".")[2]
        self._input_axes = [axis for (axis,) in self.input.axes]
        self._example = next((p for p in root.parameters() if p.is_floating_point()), None)
        self._names, self._weights = names, weights
        self._claimed: set[str] = set()
        self._running: list[_Running] = []

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the root gives."""
        result = self._called(self._root, "", tuple(args), kwargs)
        self._refuse_stale(result)
        return result

    def new(self, value: Value | None, is_float: bool, argument: str = "") -> Any:
        """A stand-in with a memory of its own."""
        memory = Memory()
        return stand_in(Stand(value, is_float, memory, memory.version, argument))

    # Modules

    def module(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._called(module, self._path(module), args, kwargs)

    def _path(self, module: Any) -> str:
        """Of a module that is called: in the module that runs, which may be in several places."""
        running = self._running[-1] if self._running else None
        holder, above = (running.module, running.path) if running else (self._root, "")
        inside = paths(holder).get(id(module))
        if inside is None:
            return paths(self._root).get(id(module), "")
        return f"{above}.{inside}".strip(".")

    def _called(self, module: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = class_path(module)
        if own in SHELLS:
            return self._called(getattr(module, SHELLS[own]), path, args, kwargs)
        text = called(module, path)
        if not own:
            raise ConvertError(f"{text} is scripted; expected the module it was scripted from")
        self._prepare(module, text)
        self.seen.add(id(module))
        if own == "torch.nn.modules.container.Sequential":
            return self._sequence(module, path, *args, **kwargs)
        event = Event(text) if is_torchs(own) else None
        if event:
            self.events.append(event)
        self._running.append(_Running(module, path, event))
        result = module.forward(*args, **kwargs)
        self._running.pop()
        if event and args and result is args[0]:
            event.no_effect = True
        return result

    def _sequence(self, module: Any, path: str, input: Any) -> Any:
        """A Sequential, each of whose modules has its own path even if it is there twice."""
        before = ""
        for key, part in module._modules.items():
            inner = f"{path}.{key}".removeprefix(".")
            if isinstance(input, tuple) and is_torchs(class_path(part)):
                self._note(f"{before} passes its output, without its state, to the next layer")
                input = input[0]
            input = self._called(part, inner, (input,), {})
            before = called(part, inner)
        return input

    def _prepare(self, module: Any, text: str) -> None:
        """Note hooks, and have those run that compute weights from parts."""
        before = dict(getattr(module, "_forward_pre_hooks", {}))
        computing = [hook for hook in before.values() if _computes_weights(hook)]
        for hook in computing:
            hook(module, ())
        if computing or hasattr(module, "parametrizations"):
            self._note(
                f"{text} computes its weights from others (weight norm or the like); what they "
                f"are now was taken"
            )
        if len(before) > len(computing) or getattr(module, "_forward_hooks", {}):
            self._note(f"{text} has forward hooks, which are not run")

    def _note(self, text: str) -> None:
        self.notes[text] = None

    def recurrent(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = next(b.__name__ for b in type(module).__mro__ if b.__module__ == RECURRENT_MODULES)
        step, _ = self._step(own.lower().removesuffix("cell"), module)
        for option in ("batch_first", "dropout"):
            if getattr(module, option, None):
                self._note(f"{step.text}: {_NO_MATTER[option]}")
        if own.endswith("Cell"):
            self._note(
                f"{step.text}: weight_ih (now weight_ih_l0) and the others are named as in a stack"
            )
        self._refuse_stale((args, kwargs))
        result = run_recurrent(step, module, self._given, *args, **kwargs)
        self.count += 1
        return _mapped(result, lambda value: self._tensor(value))

    def _given(self, tensor: Any, shape: tuple[int | None, ...]) -> Value | None:
        """A tensor that a recurrent layer is given, as a value; an argument gets the shape."""
        stand = stand_of(tensor)
        if tensor is None:
            return None
        if stand is None:
            self.seen.add(id(tensor))
            return self.line.constant(number(tensor))
        if stand.value is None:
            new = self.line.state_input if len(shape) > 1 else self.line.lengths_input
            stand.value = new(shape, stand.argument)
        return stand.value

    # Operations

    def operation(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._refuse_stale((args, kwargs))
        name = _name_of(function)
        stand = stand_of(args[0]) if args else None
        if stand and name in QUERIES:
            return QUERIES[name](stand, self._example, *args[1:], **kwargs)
        in_place = bool(kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
        name = name if name.endswith("__") else name.removesuffix("_")
        if stand and name in CASTS:
            is_float = is_float_as(stand, name, args[1:], kwargs)
            if stand.value is None or in_place:
                return args[0]
            memory = Memory() if name == "clone" else stand.memory
            return stand_in(Stand(stand.value, is_float, memory, memory.version))
        return self._operate(name, in_place, args, kwargs)

    def _operate(
        self, name: str, in_place: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        step, event = self._step(name)
        operation = OPERATIONS.get(name)
        if operation is None:
            raise step.refused(f"computes {name!r}, which no layer does")
        if "input" in kwargs:
            args = (kwargs.pop("input"), *args)
        # Torch takes NumPy's names too.
        kwargs = {{"axis": "dim", "keepdims": "keepdim"}.get(k, k): v for k, v in kwargs.items()}
        stand = stand_of(args[0]) if args else None
        if in_place and stand is None:
            raise step.refused("writes into a tensor of the module; expected it to be left alone")
        values = _mapped((args, kwargs), self._value)
        try:
            bound = inspect.signature(operation).bind(step, *values[0], **values[1])
        except TypeError as error:
            raise step.refused(f"calls {name!r} in a way that is not known: {error}") from None
        result = operation(*bound.args, **bound.kwargs)
        self.count += 1
        if in_place and stand:
            stand.memory.version += 1
            stand.version = stand.memory.version
            stand.value = result
            return args[0]
        if stand and result is stand.value:
            event.no_effect |= name not in VIEWS
            return args[0]
        shared = stand.memory if stand and name in VIEWS else None
        is_float = name != "one_hot" and (not shared or bool(stand and stand.is_float))
        return _mapped(result, lambda value: self._tensor(value, is_float, shared))

    def _tensor(self, value: Any, is_float: bool = True, memory: Memory | None = None) -> Any:
        """A stand-in for what is a value; everything else is itself."""
        if not isinstance(value, Value):
            return value
        memory = memory or Memory()
        return stand_in(Stand(value, is_float, memory, memory.version))

    def _value(self, tensor: Any) -> Any:
        """The value of what is a stand-in; everything else is itself."""
        stand = stand_of(tensor)
        if stand is None:
            self.seen.add(id(tensor))
            return tensor
        if stand.value is None:
            raise ConvertError(
                f"argument {stand.argument!r} is used as an array beside the input; expected one "
                f"input, and states or lengths that are only handed on to a recurrent layer"
            )
        return stand.value

    def _refuse_stale(self, tensors: Any) -> None:
        for stand in filter(None, map(stand_of, _flat(tensors))):
            if stand.version != stand.memory.version:
                raise ConvertError(
                    "an array is used that was changed in place through another view of it; "
                    "expected no operation in place where there are two"
                )

    def compare(self, size: Size, other: int) -> None:
        """Take a size that the forward expects of the last axis of the input as the one it has.

        Torch's own modules may expect one of any axis.
        """
        torchs = bool(self._running and self._running[-1].event)
        for place, axis in enumerate(self._input_axes):
            last = place == len(self._input_axes) - 1
            if size == Size.of((axis,)) and other > 1 and (torchs or last):
                raise InputKnown(place, other)
        raise ConvertError(AS_NUMBER)

    def named(self, error: ConvertError) -> str:
        """A message in which operations are called by their code, not by the names of layers."""
        text = str(error)
        for event in self.events:
            for name in event.names:
                own = event.text if event.text.startswith(f"{name!r} (") else repr(event.text)
                quoted = rf"(?<!layer ){re.escape(repr(name))}"
                text = re.sub(quoted, own.replace("\\", r"\\"), text)
        return text

    def _expect(self, axis: Axis, size: int) -> None:
        if axis in self._input_axes:
            raise InputKnown(self._input_axes.index(axis), size)

    def _step(self, operation: str, module: Any = None) -> tuple[Step, Event]:
        """The step that an operation is, of the module of torch's that runs or on its own."""
        running = self._running[-1] if self._running else None
        path = running.path if running else ""
        event = running.event if running else None
        operation = "last" if operation in ("__getitem__", "select") else operation.strip("_")
        if event:
            text, source = event.text, path or event.text
            base = path or self._name or operation
        else:
            source = _code() or operation
            text = repr(source)
            event = Event(source)
            self.events.append(event)
            base = path if module is not None and path else f"{path}.{operation}".lstrip(".")
        names = event.names

        def claim() -> str:
            number, name = 1, base
            while name in self._claimed:
                number += 1
                name = f"{base}_{number}"
            self._claimed.add(name)
            names.append(name)
            return name

        def read(tensor: Any, suffix: str) -> Array:
            self.seen.add(id(tensor))
            own = self._names.get(id(tensor))
            dtype = str(tensor.dtype).removeprefix("torch.")
            name = own or f"{path}.{suffix}".lstrip(".")
            self.read[name] = Tensor(name, tuple(tensor.shape), dtype, tensor)
            if own is None:
                return to_array(self.read[name], self._dtype)
            if id(tensor) not in self._weights:
                self._weights[id(tensor)] = to_array(self.read[name], self._dtype)
            return self._weights[id(tensor)]

        return Step(self.line, text, source, claim, read, self._expect), event


def called(module: Any, path: str) -> str:
    """A module in messages."""
    kind = class_path(module).rpartition(".")[2] or "scripted"
    return f"{path!r:.200} ({kind:.100})" if path else f"the module ({kind:.100})"


def paths(root: Any) -> dict[int, str]:
    """The path of each module, by its id, without what wrappers put into it."""
    found = {id(root): ""}
    for path, module in root.named_modules():
        parent, _, name = path.rpartition(".")
        if path:
            holder = root.get_submodule(parent)
            above = found[id(holder)]
            wrapped = class_path(holder) in SHELLS
            found.setdefault(id(module), above if wrapped else f"{above}.{name}".lstrip("."))
    return found


def _computes_weights(hook: Any) -> bool:
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(hook).__mro__)
    return any(name in REPARAMETRISING for name in names)


def _name_of(function: Any) -> str:
    """The name of a function, method or property of torch."""
    name = str(getattr(function, "__name__", function))
    if name in ("__get__", "__set__"):
        name = getattr(function.__self__, "__name__", "property") + "=" * (name == "__set__")
    return name.partition(".")[0]


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """A function of each leaf of a nest of tuples, lists and dicts."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(item, function) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(item, function) for item in tree)
    if isinstance(tree, dict):
        return {key: _mapped(item, function) for key, item in tree.items()}
    if isinstance(tree, Packed):
        return Packed(_mapped(tree.data, function), tree.lengths, tree.batch_first)
    return function(tree)


def _flat(tree: Any) -> Iterator[Any]:
    if isinstance(tree, tuple | list):
        for item in tree:
            yield from _flat(item)
    elif isinstance(tree, dict):
        yield from _flat(list(tree.values()))
    else:
        yield tree.data if isinstance(tree, Packed) else tree


def _code() -> str:
    """The expression that runs, outside of torch and of this package; "" if not known."""
    frame = sys._getframe(1)
    while frame and str(frame.f_globals.get("__name__")).partition(".")[0] in ("torch", "fastlstm"):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    places = list(frame.f_code.co_positions())
    first, last, begin, end = places[frame.f_lasti // 2]
    if first is None or last != first or begin is None or end is None:
        return ""
    line = linecache.getline(frame.f_code.co_filename, first).encode()
    return line[begin:end].decode(errors="replace")[:MAX_CODE]
