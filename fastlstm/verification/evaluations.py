"""Ways to evaluate a model, all called alike: the engine's two, and the equations in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.chain import reference
from fastlstm.model import Model

__all__ = [
    "Equations",
    "Run",
    "Source",
    "equations",
    "pieces_of_whole",
    "random_input",
    "sequences",
    "steps_to_output",
    "stepwise",
]

Array = npt.NDArray[Any]

# x (T, B, I) or tokens (T, B), and what the last call returned or None -> y (N, B, O), and what to
# carry on from: for the engine and the equations, a model's state.
Run = Callable[[Array, Any], tuple[Array, Any]]


class Source(Protocol):
    """What a model was made of, or is said to be: judged by whether it computes the same.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        Of its arithmetic, or of the weights that it shares with the model if that is coarser.
    batch_size : int or None
        The only one it takes.
    length : int or None
        The only number of steps that it takes at once.
    chains : bool
        Whether it can take that often enough to make a longer sequence.
    carries : bool
        Whether it can go on from call to call, as a stream does.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def length(self) -> int | None: ...
    @property
    def chains(self) -> bool: ...
    @property
    def carries(self) -> bool: ...

    def run(self, x: Array, state: Any) -> tuple[Array, Any]:
        """A sequence from its start: `state` is None."""

    def carry(self, x: Array) -> Run:
        """A run that goes on along this very sequence from call to call."""


@dataclass(frozen=True, eq=False)
class Equations:
    """Layers and tensors, evaluated in NumPy in some precision: a `Source` too."""

    name: str
    layers: Sequence[spec.Layer]
    tensors: Mapping[str, Array]
    dtype: np.dtype[Any]
    batch_size: int | None = None
    length: int | None = None
    chains: bool = True
    carries: bool = True

    def run(self, x: Array, state: Any) -> tuple[Array, Any]:
        return reference.forward(self.layers, self.tensors, x, state, np.float64)

    def carry(self, x: Array) -> Run:
        return self.run


def equations(
    layers: Sequence[spec.Layer], tensors: Mapping[str, Array], dtype: npt.DTypeLike
) -> Run:
    """The equations in NumPy, rounded to a precision at every step."""
    return lambda x, state: reference.forward(layers, tensors, x, state, dtype)


def sequences(model: Model) -> Run:
    """The engine, a call for a whole sequence."""

    def run(x: Array, state: Any) -> tuple[Array, Any]:
        y, state = model(x, state)
        return (y[None] if model.pools_over_time else y), state

    return run


def stepwise(model: Model, batch_size: int) -> Run | None:
    """The engine, a call for each step; None if the model cannot stream."""
    if model.looks_ahead:
        return None
    stream = model.stream(batch_size=batch_size)

    def run(x: Array, state: Any) -> tuple[Array, Any]:
        if state is None:
            stream.reset()
        else:
            stream.state = state
        outputs = [y for step in x if (y := stream.step(step)) is not None]
        if model.pools_over_time:
            outputs = outputs[-1:]
        empty = np.empty((0, batch_size, model.output_size), model.dtype)
        return (np.stack(outputs) if outputs else empty), stream.state

    return run


def pieces_of_whole(layers: Sequence[spec.Layer], whole: Array) -> Run:
    """A run whose output is known as a whole; its state is the number of steps read."""

    def run(x: Array, read: int | None) -> tuple[Array, int]:
        begin = read or 0
        end = begin + len(x)
        first, last = (spec.output_steps(layers, n) for n in (begin, end))
        return whole[first:last], end

    return run


def steps_to_output(layers: Sequence[spec.Layer]) -> int:
    """Those of the shortest whole sequence that has an output."""
    return next(n for n in itertools.count(1) if spec.output_steps(layers, n))


def random_input(model: Model, shape: tuple[int, ...], seed: int) -> Array:
    """Standard normal features ``(*shape, I)``, or uniform tokens ``shape``, for a model."""
    rng = np.random.default_rng(seed)
    if model.takes_tokens:
        return rng.integers(0, model.input_size, shape)
    return rng.standard_normal((*shape, model.input_size)).astype(model.dtype)
