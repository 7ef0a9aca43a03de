"""What is said of a module that was converted: how its arrays lie, and what became of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastlstm.sources.aten.forward import Zeros
from fastlstm.sources.conversion import BATCH, TIME, Argument, Conversion, joined
from fastlstm.sources.live.forward import LiveForward
from fastlstm.sources.live.subject import Subject

__all__ = ["lines", "used"]

_IDENTITY = "torch.nn.modules.linear.Identity"
_LETTERS = {TIME: "T", BATCH: "B"}


def lines(forward: LiveForward, made: Conversion) -> Iterator[str]:
    """Sentences on a conversion."""
    yield from _layout(made)
    yield from _states(forward, made)
    yield from _parts(forward.subject)
    for dtype in dict.fromkeys(forward.subject.widened.values()):
        names = [name for name, own in forward.subject.widened.items() if own == dtype]
        yield f"widened from {dtype} to float32: {joined(names)}"


def used(subject: Subject) -> tuple[str, ...]:
    """Names of the weights and buffers that forward computes with."""
    held = (*subject.module.named_parameters(), *subject.module.named_buffers())
    return tuple(name for name, tensor in held if id(tensor) in subject.used)


def _layout(made: Conversion) -> Iterator[str]:
    assert made.call is not None
    inputs = {one.name: one for one in made.graph.inputs}
    timed = any(TIME in one.axes for one in made.call.arguments)
    for one in made.call.arguments:
        if one.role == "lengths":
            yield f"argument {one.name!r:.200} is the lengths of the rows: lengths= of the model"
        if one.role != "rows":
            continue
        own = inputs[one.value]
        what = "tokens" if own.tokens else "rows"
        called = "" if one.value == "input" else f"input {one.value!r:.200}: "
        row = [] if own.tokens else [str(n) for n in own.shape]
        model = ["B", *row] if own.held else ["T", "B", *row]
        text = f"{called}{what} as ({', '.join(model)}); the module took {one.name!r:.200} as "
        yield text + _axes(one) + _first(one, timed, own.held)
    for one in made.call.outputs:
        if one.role == "rows":
            yield f"output {one.name!r:.200} of the module is {_axes(one)}"


def _axes(one: Argument) -> str:
    letters = ", ".join(_LETTERS.get(str(axis), str(axis)) for axis in one.axes)
    return f"({letters}{',' * (len(one.axes) == 1)})"


def _first(one: Argument, timed: bool, held: bool) -> str:
    if held:
        return ", the same for all steps of a sequence"
    if not timed:
        return ", one step a call"
    if BATCH not in one.axes:
        return ", a sequence at a time"
    return ": batch_first=True" * (one.axes.index(BATCH) < one.axes.index(TIME))


def _states(forward: LiveForward, made: Conversion) -> Iterator[str]:
    assert made.call is not None
    for place, start in ((p, s) for state in forward.states for p, s in state.starts.items()):
        begins = "zeros" if isinstance(start, Zeros) or not start.any() else "what it holds now"
        yield f"attribute {place!r:.200} is a state of the model, which starts from {begins}"
    for one in made.call.arguments:
        if one.role == "state":
            yield (
                f"argument {one.name!r:.200} is a state of the model: what the call before "
                f"returned as {one.value!r:.200}"
            )


def _parts(subject: Subject) -> Iterator[str]:
    """What modules are left out, or are other than their parameters tell."""
    for path, part in subject.module.named_modules():
        name = f"{path!r:.200} ({type(part).__name__:.100})" if path else "the module"
        own = {id(tensor) for tensor in part.parameters(recurse=False)}
        own |= {id(t) for p in getattr(part, "parametrizations", {}).values()
                for t in p.parameters()}  # fmt: skip
        if own and not own & subject.used:
            yield f"{name} is not run by forward and was left out"
            continue
        kind = f"{type(part).__module__}.{type(part).__name__}"
        if kind.startswith("torch.nn.modules.dropout.") or kind == _IDENTITY:
            yield f"{name} has no effect at inference and was left out"
        elif getattr(part, "dropout", 0.0) and isinstance(getattr(part, "dropout", 0), float):
            yield f"{name}: dropout has no effect at inference and was left out"
        yield from _hooks(name, part)


def _hooks(name: str, part: Any) -> Iterator[str]:
    hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
    of_weights = [h for h in hooks if type(h).__module__.startswith("torch.nn.utils")]
    if of_weights or hasattr(part, "parametrizations"):
        yield (
            f"{name} computes its weights from others (weight norm or the like); what they are now "
            f"was taken"
        )
    if others := [hook for hook in hooks if hook not in of_weights]:
        names = joined([getattr(hook, "__qualname__", type(hook).__qualname__) for hook in others])
        yield f"{name} has forward hooks, which were followed: {names}"
