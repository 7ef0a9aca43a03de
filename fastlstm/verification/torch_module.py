"""A live torch module, beside the model that was made of it.

It takes whole sequences, or a sequence or a step and the states behind it, which it then gives back
behind its output.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.model import Model
from fastlstm.verification.arrangement import Arrangement, fitting, nearest
from fastlstm.verification.evaluations import (
    Run,
    pieces_of_whole,
    random_input,
    steps_to_output,
    waits_for_end,
)
from fastlstm.verification.torch_layers import ONE_AT_A_TIME

__all__ = ["TorchModule", "torch_modules"]

Array = npt.NDArray[Any]

# The states of so many rows that a sequence starts from, in the order of the arguments: tensors, or
# pairs of them for an LSTM.
Start = Callable[[int], list[Any]]

# Rows and, beyond those that it needs for an output, steps of the input that tells the axes apart.
ROWS, STEPS = 3, 7
SEED = 20261121


@dataclass(frozen=True)
class Signature:
    """How a module is called: its input, and by name the arguments that are states."""

    arrangement: Arrangement
    states: tuple[str, ...] = ()
    start: Start = lambda batch_size: []

    @property
    def batch_size(self) -> int | None:
        return None if "b" in self.arrangement.order else 1

    @property
    def length(self) -> int | None:
        return None if "t" in self.arrangement.order else 1


class TorchModule:
    """A copy of a module, in evaluation and in one precision: a `Source`."""

    def __init__(self, module: Any, model: Model, precision: str) -> None:
        import torch

        self.name = f"module, {precision}"
        # Wider arithmetic does not undo that the weights are the model's.
        self.dtype = model.dtype
        self.signature = Signature(Arrangement("", ()))
        self._model = model
        self._torch_dtype = getattr(torch, precision)
        try:
            own = copy.deepcopy(module)
        except Exception as error:  # of torch, or of its own code
            raise ValueError(f"the module cannot be copied: {_first_line(error)}") from None
        rounded = own.cpu().eval().to(getattr(torch, model.dtype.name))
        self._module = rounded.to(self._torch_dtype)

    @property
    def batch_size(self) -> int | None:
        return self.signature.batch_size

    @property
    def length(self) -> int | None:
        return self.signature.length

    @property
    def chains(self) -> bool:
        return self.length is None or bool(self.signature.states)

    @property
    def carries(self) -> bool:
        if self._model.looks_ahead or self._model.pools_over_time:
            return False
        # A call of a module that keeps states pads each of its pieces.
        return self.chains and not (self.signature.states and waits_for_end(self._model))

    def carry(self, x: Array) -> Run:
        if self.signature.states:
            return self.run
        return pieces_of_whole(self._model, self.run(x, None)[0])

    def run(self, x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        length, rows = self.length or len(x), []
        for at in range(0, len(x), length):
            outputs, state = self.call(self.signature, x[at : at + length], state)
            rows.append(self.signature.arrangement.rows(outputs, self._model.output_size))
        return np.concatenate(rows[-1:] if self._model.pools_over_time else rows), state

    def call(self, signature: Signature, x: Array, state: Any) -> tuple[list[Array], Any]:
        """All outputs of one call of the module, and the states that it gave back."""
        import torch

        value = torch.from_numpy(signature.arrangement.arrange(x))
        if value.is_floating_point():
            value = value.to(self._torch_dtype)
        given = signature.start(x.shape[1]) if state is None else state
        given = _converted(given, self._torch_dtype)
        with (
            ONE_AT_A_TIME,
            torch.inference_mode(),
            _default_dtype(self._torch_dtype),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # what a module warns of is no news to who trained it
            result = self._module(value, **dict(zip(signature.states, given, strict=True)))
        after = None
        if signature.states:
            result, after = _split(result, len(signature.states))
        tensors = [tensor for tensor in _tensors(result) if tensor.is_floating_point()]
        return [tensor.detach().cpu().numpy() for tensor in tensors], after


def torch_modules(module: Any, model: Model, exactly: Run) -> tuple[list[TorchModule], list[str]]:
    """A module in the model's dtype and, if it runs in that, in float64; and notes.

    Raises
    ------
    ValueError
        If it does not give the model's output, whichever way its input is arranged.
    """
    own = TorchModule(module, model, model.dtype.name)
    own.signature = _found_signature(own, module, model, exactly)
    given = ", ".join((f"({own.signature.arrangement})", *own.signature.states))
    notes = [f"the module was given {given}"]
    if model.dtype == np.float64:
        return [own], notes
    wide = TorchModule(module, model, "float64")
    wide.signature = own.signature
    steps = STEPS + steps_to_output(model)
    try:
        wide.run(random_input(model, (steps, wide.batch_size or ROWS), SEED), None)
    except Exception as error:  # a tensor that its code makes in float32, for example
        return [own], [*notes, f"the module does not run in float64: {_first_line(error)}"]
    return [own, wide], notes


def _found_signature(source: TorchModule, module: Any, model: Model, exactly: Run) -> Signature:
    """The one whose output is nearest to the model's."""
    found: list[tuple[float, Arrangement, Signature]] = []
    refusals: list[str] = []
    for signature in _signatures(module, model):
        steps = signature.length or STEPS + steps_to_output(model)
        x = random_input(model, (steps, signature.batch_size or ROWS), SEED)
        exact, _ = exactly(x, None)
        given = signature.arrangement
        tried = ", ".join([str(given.arrange(x).shape), *signature.states])
        try:
            outputs, _ = source.call(signature, x, None)
        except Exception as error:  # whatever the code of others raises for a wrong shape
            refusals.append(f"{tried}: {_first_line(error)}")
            continue
        fits = list(fitting(given.order, given.features, outputs, exact))
        if not fits:
            refusals.append(f"{tried}: gives {', '.join(str(y.shape) for y in outputs)}")
        found += [(error, arrangement, signature) for error, arrangement in fits]
    if not found:
        shown = "".join(f"\n  {refusal}" for refusal in refusals)
        raise ValueError(
            f"the module gives {model.output_size} features a step for none of these inputs; "
            f"expected one that takes a sequence, or a batch of them, and states at most:{shown}"
        )
    arrangement, signature = nearest(found)
    return Signature(arrangement, signature.states, signature.start)


def _signatures(module: Any, model: Model) -> Iterator[Signature]:
    """The ways in which a module may be called, the usual ones first."""
    declared = [*inspect.signature(module.forward).parameters.values()][1:]
    parameters = [one for one in declared if one.kind == one.POSITIONAL_OR_KEYWORD]
    needed = tuple(one.name for one in parameters if one.default is one.empty)
    optional = tuple(one.name for one in parameters if one.default is None)
    names = dict.fromkeys([needed, *((*needed, name) for name in optional), (*needed, *optional)])
    for states, axes in itertools.product(names, ("bt", "t", "b", "")):
        # Without a state, a step says nothing of a sequence.
        if "t" not in axes and not states:
            continue
        for start in _starts(model, len(states)):
            for order, features in _orders(model, axes):
                yield Signature(Arrangement(order, features), states, start)


def _orders(model: Model, axes: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if model.takes_tokens:
        yield from (("".join(order), ()) for order in itertools.permutations(axes))
        return
    shapes: list[tuple[int, ...]] = [(model.input_size,)]
    if isinstance(first := model.layers[0], spec.FrameConv1d):
        shapes.append((first.in_channels, first.width))
    for features, order in itertools.product(shapes, itertools.permutations(f"{axes}f")):
        yield "".join(order), features


def _starts(model: Model, count: int) -> Iterator[Start]:
    """The model's own start as so many arguments: one a layer, or one an array."""
    layers = [layer for layer in spec.walk(model.layers) if isinstance(layer, spec.Recurrent)]
    groups = [list(layer.state()) for layer in layers]
    depths = {depth for layer in layers for depth, _ in layer.state().values()}
    arguments = {len(groups): groups, sum(map(len, groups)): [[n] for g in groups for n in g]}
    if count == 0:
        yield lambda batch_size: []
    elif count in arguments:
        for cells in (False, True) if depths == {1} else (False,):
            yield lambda batch_size, cells=cells: [  # type: ignore[misc]
                _argument([_initial(model, name, batch_size, cells) for name in group])
                for group in arguments[count]
            ]


def _initial(model: Model, name: str, batch_size: int, cell: bool) -> Any:
    import torch

    array = model.initial_state(batch_size)[name]
    return torch.from_numpy(array[0] if cell else array)


def _argument(arrays: list[Any]) -> Any:
    return tuple(arrays) if len(arrays) > 1 else arrays[0]


def _split(result: Any, states: int) -> tuple[Any, list[Any]]:
    """The output, and as many states as were given."""
    if isinstance(result, tuple | list):
        behind = list(result[1:])
        if len(behind) == 1 and states > 1 and isinstance(behind[0], tuple | list):
            behind = list(behind[0])
        if len(behind) == states:
            return result[0], behind
    raise ValueError(f"it does not give back {states} states behind its output")


def _converted(value: Any, dtype: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_converted(item, dtype) for item in value)
    return value.to(dtype)


def _tensors(value: Any) -> Iterator[Any]:
    """Every tensor in what a module returned."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


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


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0][:200] or type(error).__name__
