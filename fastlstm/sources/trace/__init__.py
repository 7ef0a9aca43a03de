"""A live torch module as layers: its forward runs once, on a stand-in for its input.

What the forward asks of the stand-in becomes a line of layers, as torch.fx would record it. But
sizes that are known are known while it runs, so that ``if x.dim() == 3`` and
``torch.zeros(1, x.size(0), 8)`` are no riddles. The module runs as in evaluation and without its
hooks, and is left as it was.
"""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.line import Made, Value
from fastlstm.sources.line.axes import FEATURES
from fastlstm.sources.pytorch.module import SHELLS, class_path, word_of
from fastlstm.sources.pytorch.state_dict import Tensor, to_array
from fastlstm.sources.trace.follower import Follower, called
from fastlstm.sources.trace.following import following
from fastlstm.sources.trace.stand_in import ImpossibleError, InputKnown, Packed, stand_of

__all__ = ["Traced", "trace"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Traced:
    """What a module became.

    Parameters
    ----------
    layers : tuple of spec.Layer
    tensors : dict of str to array
        Exactly those the layers ask for, of the dtype asked for.
    report : tuple of str
        What each module and operation became.
    read : dict of str to Tensor
        The weights that were read, by the names they have in the module.
    """

    layers: tuple[spec.Layer, ...]
    tensors: dict[str, Array]
    report: tuple[str, ...]
    read: dict[str, Tensor]


class _Input(NamedTuple):
    """A kind of array that a forward may take."""

    ndim: int
    tokens: bool


# In the order in which they are tried: the first that a forward makes sense of is what it takes.
_INPUTS = (
    *(_Input(3, False), _Input(2, True), _Input(2, False), _Input(1, True), _Input(1, False)),
    _Input(4, False),
)

# What another argument of forward may be: a state or lengths, or the two states of an LSTM.
_TENSOR, _PAIR = "tensor", "pair"


def trace(
    source: Any,
    dtype: str,
    prefix: str = "",
    nonlinearity: str | None = None,
    input_size: int | None = None,
) -> Traced:
    """Follow the forward of a module.

    Parameters
    ----------
    source : torch.nn.Module
    dtype : {"float32", "float64"}
        What its weights are read as.
    prefix : str
        The path of the part of it that is followed, "" for the whole.
    nonlinearity : str, optional
        What RNNs are said to have, which is checked.
    input_size : int, optional
        Features of a step, where forward does not tell: the samples of a frame.

    Raises
    ------
    ConvertError
        If the forward is no straight line that layers can compute; the message names the module or
        operation and the line of code, and says which arguments help.
    """
    root = source.get_submodule(prefix)
    while (own := class_path(root)) in SHELLS:
        root = getattr(root, SHELLS[own])
    names = {id(t): n for n, t in (*source.named_buffers(), *source.named_parameters())}
    weights: dict[int, Array] = {}
    failures: list[_Failure] = []
    for others, kind in itertools.product(_others(root), _INPUTS):
        shape: tuple[int | None, ...] = (None,) * kind.ndim
        if not kind.tokens:
            shape = (*shape[:-1], input_size)
        while True:
            follower = Follower(root, dtype, prefix, shape, kind.tokens, names, weights)
            try:
                traced = _traced(root, follower, others, dtype)
            except InputKnown as told:
                # It starts again with what it now knows of the input from the beginning.
                shape = (*shape[: told.axis], told.size, *shape[told.axis + 1 :])
            except ConvertError as error:
                failures.append(_Failure(follower.count, kind.tokens, error))
                break
            else:
                _refuse_other(nonlinearity, traced.layers)
                return traced
    furthest = max(failures, key=_Failure.progress)
    what, why = called(root, prefix), str(furthest.error)
    raise ConvertError(
        f"{what} is not converted: {why.removeprefix(what).lstrip()}{_ways_out(root)}"
    )


class _Failure(NamedTuple):
    """Why an input of one kind could not be followed."""

    operations: int
    tokens: bool
    error: ConvertError

    def progress(self) -> tuple[int, bool]:
        """How far it came; what torch would refuse as well tells least of the module."""
        if isinstance(self.error, ImpossibleError) or (self.tokens and not self.operations):
            return -1, False
        return self.operations, self.error.__cause__ is None


def _refuse_other(nonlinearity: str | None, layers: Sequence[spec.Layer]) -> None:
    """Check that RNNs have the nonlinearity they are said to have, and that there is one."""
    found = {layer.name: layer.nonlinearity for layer in spec.walk(layers)
             if isinstance(layer, spec.RNN)}  # fmt: skip
    for name, own in found.items():
        if nonlinearity not in (None, own):
            raise ConvertError(
                f"nonlinearity={nonlinearity!r} was given, but the RNN {name!r} has {own!r}; leave "
                f"nonlinearity= out"
            )
    if nonlinearity is not None and not found:
        raise ConvertError(
            f"nonlinearity={nonlinearity!r} was given, but there is no RNN among the layers "
            f"({', '.join(layer.kind for layer in layers)}); leave it out"
        )


def _parameters(root: Any) -> list[inspect.Parameter]:
    """What forward takes by name, `self` aside."""
    every = inspect.signature(root.forward).parameters.values()
    return [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _others(root: Any) -> Iterator[dict[str, str]]:
    """What may be given for the arguments of forward behind the first, as often as is worth trying.

    Those with a default are left at it; one that is None may also be given.
    """
    others = _parameters(root)[1:]
    needed = [p.name for p in others if p.default is p.empty]
    optional = [p.name for p in others if p.default is None]
    given = [needed, *([*needed, name] for name in optional)]
    if len(optional) > 1:
        given.append([*needed, *optional])
    for names in given:
        for kinds in itertools.product((_TENSOR, _PAIR), repeat=len(names)):
            if kinds.count(_PAIR) < 2:
                yield dict(zip(names, kinds, strict=True))


def _traced(root: Any, follower: Follower, others: Mapping[str, str], dtype: str) -> Traced:
    """What one run gives.

    Raises
    ------
    InputKnown
        If it should start again.
    ConvertError
        If it cannot be followed, or makes no layers.
    """
    parameters = _parameters(root)
    if not parameters:
        raise ConvertError("its forward takes no array by name; expected one, and states behind it")
    given: dict[str, Any] = {parameters[0].name: follower.new(follower.input, not follower.tokens)}
    for name, kind in others.items():
        if kind == _PAIR:
            given[name] = tuple(follower.new(None, True, f"{name}[{n}]") for n in range(2))
        else:
            given[name] = follower.new(None, True, name)
    try:
        with following(root, follower):
            result = follower.run((), given)
    except InputKnown:
        raise
    except ConvertError as error:
        raise type(error)(f"{follower.named(error)}{_place(error)}") from None
    except Exception as error:
        raise ConvertError(
            f"its forward fails on a stand-in for the input, {type(error).__name__}: "
            f"{str(error)[:300]}{_place(error)}"
        ) from error
    output, states = _outputs(result)
    try:
        line = follower.line.finish(output, state_outputs=states)
    except ConvertError as error:
        raise ConvertError(follower.named(error)) from None
    if follower.tokens and not line.layers[0].takes_tokens:
        raise ImpossibleError("its forward does not take integers")
    tensors = {
        name: to_array(Tensor(name, array.shape, str(array.dtype), array), dtype)
        for name, array in line.tensors.items()
    }
    report = [
        _described(parameters[0].name, follower),
        *_became(follower, line),
        *follower.notes,
        *_not_run(root, follower),
    ]
    return Traced(line.layers, tensors, tuple(report), follower.read)


def _outputs(result: Any) -> tuple[Value, dict[str, Value]]:
    """The output that a forward returns, and the states behind it."""
    parts = list(result) if isinstance(result, tuple | list) else [result]
    first = parts[0].data if parts and isinstance(parts[0], Packed) else (parts or [None])[0]
    stand = stand_of(first)
    if stand is None or stand.value is None:
        raise ConvertError(
            f"its forward returns {_kind(result)}; expected an array made of the input, or a "
            f"tuple of that and states"
        )
    states: dict[str, Value] = {}
    waiting = [(f"[{n}]", part) for n, part in enumerate(parts)][:0:-1]
    while waiting:
        name, part = waiting.pop()
        if isinstance(part, tuple | list):
            waiting += [(f"{name}[{n}]", inner) for n, inner in enumerate(part)][::-1]
        elif state := stand_of(part):
            # What came in and is returned as it was is no state of the model.
            if state.value is not None and not state.argument:
                states[name] = state.value
        elif part is not None:
            raise ConvertError(
                f"its forward returns {_kind(part)} as {name}; expected states behind the output"
            )
    return stand.value, states


def _kind(value: object) -> str:
    known = isinstance(value, tuple | list | dict) or value is None
    return repr(type(value).__name__ if known or stand_of(value) is None else "an argument")


def _described(name: str, follower: Follower) -> str:
    """What the input was taken for."""
    words = []
    for (axis,) in follower.input.axes:
        roles = " or ".join(sorted(axis.role.possible))
        features = axis.role.is_(FEATURES)
        words.append(f"{axis.size} {roles}" if features else roles)
    kind = "tokens" if follower.tokens else "an array"
    return f"{name!r} was taken for {kind} ({', '.join(words)})"


def _became(follower: Follower, made: Made) -> Iterator[str]:
    """What each module and operation became."""
    layers = {layer.name: layer for layer in spec.walk(made.layers)}
    for event in follower.events:
        own = [
            layer
            for origin, layer in made.became.items()
            if any(origin == name or origin.startswith(f"{name}.") for name in event.names)
        ]
        for name in own:
            yield f"{event.text} -> layer {name!r}: {layers[name].describe()}"
        if event.no_effect:
            yield f"{event.text} has no effect at inference and was left out"
        elif not own:
            yield f"{event.text} -> no layer of its own"


def _not_run(root: Any, follower: Follower) -> Iterator[str]:
    """The modules whose weights forward does not use."""
    for path, module in root.named_modules():
        own = {id(tensor) for tensor in module.parameters(recurse=False)}
        if own and id(module) not in follower.seen and not own & follower.seen and word_of(module):
            yield f"{called(module, path)} is not run by forward and was left out"


def _place(error: BaseException) -> str:
    """Where in the module's own code an error came up."""
    place, tb = "", error.__traceback__
    while tb:
        name = str(tb.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if name not in ("torch", "fastlstm", "contextlib"):
            file = os.path.basename(tb.tb_frame.f_code.co_filename)
            place = f" ({file}, line {tb.tb_lineno})"
        tb = tb.tb_next
    return place


def _ways_out(root: Any) -> str:
    """What to do about a module that cannot be followed."""
    parts = [(path, word) for path, part in root.named_modules() if (word := word_of(part))]
    if not parts or not parts[0][0]:
        return ""
    words = ", ".join(f"{word}:{path}" for path, word in parts[:8])
    return (
        f". Say which layers it runs with layers=, for example layers={words!r}, or convert one "
        f"part of it with prefix=, for example prefix={parts[0][0]!r}"
    )
