"""What torch and the code of a module see while a forward is followed.

Most of what a forward does with a stand-in tells so itself (:mod:`.stand_in`). What does not is
overridden here for that time, and told or made to tell: calls of modules, recurrent layers, and
functions that look into a tensor before they ask it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.trace.stand_in import (
    Length,
    Listener,
    Packed,
    found_in,
    listening,
    stand_of,
)

__all__ = ["following"]

_Function = Callable[..., Any]

# All threads see what is overridden; to those that follow nothing it makes no difference.
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def following(module: Any, listener: Listener) -> Iterator[None]:
    """Have a listener told what the module does in evaluation; the module is left as it was.

    Modules are called without their hooks.
    """
    import torch

    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        functions = _functions()
        # Scripted modules are refused where they are called.
        for part in (p for p in module.modules() if not hasattr(p, "original_name")):
            stack.enter_context(_preserved(vars(part)))
            for name in ("_parameters", "_buffers", "_modules"):
                stack.enter_context(_preserved(vars(part)[name]))
            part.training = False
        for owner, name, override in _overrides(functions):
            stack.enter_context(_overridden(owner, name, override))
        for namespace in _namespaces(module):
            stack.enter_context(_replaced(namespace, functions))
        stack.enter_context(torch.no_grad())
        token = listening.set(listener)
        try:
            yield
        finally:
            listening.reset(token)


@contextlib.contextmanager
def _preserved(attributes: dict[str, Any]) -> Iterator[None]:
    before = dict(attributes)
    try:
        yield
    finally:
        for name in attributes.keys() - before.keys():
            del attributes[name]
        attributes.update(before)


@contextlib.contextmanager
def _overridden(owner: Any, name: str, override: _Function) -> Iterator[None]:
    own = vars(owner).get(name)
    setattr(owner, name, override)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextlib.contextmanager
def _replaced(namespace: dict[str, Any], functions: dict[_Function, _Function]) -> Iterator[None]:
    """Have code that imported functions by name, or calls ``len``, see their overrides too."""
    names = {n: v for n, v in namespace.items() if inspect.isroutine(v) and v in functions}
    try:
        namespace.update({name: functions[value] for name, value in names.items()})
        if "len" not in names:
            namespace["len"] = functions[len]
        yield
    finally:
        namespace.update(names)
        if "len" not in names:
            del namespace["len"]


def _namespaces(module: Any) -> list[dict[str, Any]]:
    """The global names that methods of the module's own classes see, without torch's."""
    found: dict[int, dict[str, Any]] = {}
    for cls in {base for part in module.modules() for base in type(part).__mro__}:
        for method in vars(cls).values():
            names = getattr(inspect.unwrap(method), "__globals__", {}) if callable(method) else {}
            if names and str(names.get("__name__")).partition(".")[0] != "torch":
                found[id(names)] = names
    return list(found.values())


def _functions() -> dict[_Function, _Function]:
    """Functions of modules, and what they are overridden by."""
    import torch
    from torch.nn.utils import rnn

    made = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)
    return {
        len: _length_of,
        rnn.pack_padded_sequence: _packing(rnn.pack_padded_sequence),
        rnn.pad_packed_sequence: _padding(rnn.pad_packed_sequence),
        **{function: _gathering(function) for function in made},
    }


def _overrides(functions: dict[_Function, _Function]) -> Iterator[tuple[Any, str, _Function]]:
    """Owner, name and override of everything of torch's that is overridden."""
    import torch
    from torch.nn.utils import rnn

    for function, override in functions.items():
        for owner in (torch, rnn):
            if vars(owner).get(function.__name__) is function:
                yield owner, function.__name__, override
    for name in ("expand", "new_empty", "new_ones", "new_zeros"):
        yield torch.Tensor, name, _gathering(getattr(torch.Tensor, name), first=1)
    nn = torch.nn
    for kind in (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        yield kind, "forward", _telling(kind.forward, Listener.recurrent.__name__)
    yield nn.Module, "__call__", _telling(nn.Module.__call__, Listener.module.__name__)
    # torch.autograd.Variable(x), of old, makes a plain tensor of a stand-in; here it is x.
    variables = type(torch.autograd.Variable)
    yield variables, "__call__", _keeping(variables.__call__)


def _telling(method: _Function, told: str) -> _Function:
    """Calls of a method of a module that have a stand-in go to a method of the listener."""

    @functools.wraps(method)
    def override(module: Any, *args: Any, **kwargs: Any) -> Any:
        listener = listening.get(None)
        if listener is None or not found_in(args, kwargs):
            return method(module, *args, **kwargs)
        return getattr(listener, told)(module, args, kwargs)

    return override


def _keeping(constructor: _Function) -> _Function:
    """What is made of a stand-in is the stand-in."""

    def override(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if found_in(args) else constructor(cls, *args, **kwargs)

    return override


def _gathering(function: _Function, first: int = 0) -> _Function:
    """Sizes given one by one are given as a tuple: torch takes a `Length` for all of them."""

    @functools.wraps(function)
    def override(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(arg, Length) for arg in args[first:]):
            args = (*args[:first], args[first:])
        return function(*args, **kwargs)

    return override


def _packing(function: _Function) -> _Function:
    @functools.wraps(function)
    def override(
        input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
    ) -> Any:
        if not found_in(input, lengths):
            return function(input, lengths, batch_first, enforce_sorted)
        return Packed(input, lengths, batch_first)

    return override


def _padding(function: _Function) -> _Function:
    @functools.wraps(function)
    def override(
        sequence: Any,
        batch_first: bool = False,
        padding_value: float = 0.0,
        total_length: Any = None,
    ) -> Any:
        if not isinstance(sequence, Packed):
            return function(sequence, batch_first, padding_value, total_length)
        if padding_value or not isinstance(total_length, Length | None):
            raise ConvertError(
                f"pad_packed_sequence has padding_value={padding_value} and "
                f"total_length={total_length}; expected zeros, up to the longest row"
            )
        data = sequence.data
        if batch_first != sequence.batch_first:
            data = data.transpose(0, 1)
        return data, sequence.lengths

    return override


def _length_of(value: Any) -> Any:
    """``len``, which cannot give a length that is not known."""
    known = stand_of(value) is None or listening.get(None) is None
    return len(value) if known else value.size(0)
