"""Ways to evaluate a model, all called alike: the engine's two, and the equations in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm import reference, spec
from fastlstm.model import Model

__all__ = [
    "Equations",
    "Run",
    "Source",
    "equations",
    "outputs_known",
    "pieces_of_whole",
    "random_input",
    "sequences",
    "steps_to_output",
    "stepwise",
    "waits_for_end",
]

Array = npt.NDArray[Any]


class Run(Protocol):
    """A way to evaluate a model of one input and one output."""

    def __call__(self, x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        """The rows y (N, B, O) of an input x (T, B, ...), O numbers each.

        `state` is what the last call returned, or None at the start of a sequence; for the engine
        and the equations it is a model's state, of which that of the equations has what
        :func:`fastlstm.spec.check` lists. With `whole` the sequence ends with x, and y has the rows
        that are due at its end too.
        """


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

    def run(self, x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        """A sequence from its start: `state` is None."""

    def carry(self, x: Array) -> Run:
        """A run that goes on along this very sequence from call to call."""


@dataclass(frozen=True, eq=False)
class Equations:
    """A graph and its tensors, evaluated in NumPy in some precision: a `Source` too."""

    name: str
    graph: spec.Graph
    tensors: Mapping[str, Array]
    dtype: np.dtype[Any]
    batch_size: int | None = None
    length: int | None = None
    chains: bool = True
    carries: bool = True

    def run(self, x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        return equations(self.graph, self.tensors, np.float64)(x, state, whole)

    def carry(self, x: Array) -> Run:
        return self.run


def equations(graph: spec.Graph, tensors: Mapping[str, Array], dtype: npt.DTypeLike) -> Run:
    """The equations in NumPy, rounded to a precision at every step."""
    (name,), (output,) = (given.name for given in graph.inputs), graph.outputs

    def run(x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        stream = reference.Stream(graph, tensors, x.shape[1], dtype=dtype)
        if state is not None:
            stream.state = {
                key: value if key.endswith("count") else value.astype(dtype)
                for key, value in state.items()
            }
        y = (stream.finish if whole else stream.run)({name: x})[output]
        folded = stream.facts.rows[graph.outputs[output]].folded
        return _flat(y[-1:] if folded else y), stream.state

    return run


def sequences(model: Model) -> Run:
    """The engine, a call for a whole sequence."""

    def run(x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        y, after = model(x, _completed(model, state, x.shape[1]))
        y = y[None] if model.pools_over_time else y
        if not whole and waits_for_end(model):
            # A stream in the state after these steps tells which rows come of their end only.
            stream = model.stream(batch_size=x.shape[1])
            stream.state = after
            y = y[: len(y) - len(stream.flush())]
        return _flat(y), after

    return run


def stepwise(model: Model, batch_size: int) -> Run | None:
    """The engine, a call for each step; None if the model cannot stream."""
    if model.looks_ahead:
        return None
    stream = model.stream(batch_size=batch_size)
    rows, steps = _output_row(model).timing.rate

    def one(x: Array) -> Array | None:
        if rows <= steps:
            y = stream.step(x)
            return None if y is None else y[None]
        block: Array = stream.run(x[None])
        return block

    def run(x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        if state is None:
            stream.reset()
        else:
            stream.state = _completed(model, state, batch_size)
        outputs = [y for step in x if (y := one(step)) is not None]
        if whole and waits_for_end(model):
            outputs.append(stream.flush())
        if not outputs:
            (shape,) = model.outputs.values()
            outputs = [np.empty((0, batch_size, *shape), model.dtype)]
        y = np.concatenate(outputs)
        return _flat(y[-1:] if model.pools_over_time else y), stream.state

    return run


def _flat(y: Array) -> Array:
    """Rows (N, B, ...) as (N, B, O)."""
    return y if y.ndim == 3 else y.reshape(*y.shape[:2], -1 if y.size else 0)


def _completed(model: Model, state: Any, batch_size: int) -> Any:
    """A state of the equations with all that the engine's has, as it is where a sequence starts."""
    if state is None:
        return None
    start = model.initial_state(batch_size)
    made = start | {name: state[name] for name in start.keys() & state.keys()}
    if "rest" in {name.rpartition(".")[2] for name in made.keys() - state.keys()}:
        # The equations keep the total of a mean, and the engine the mean itself and its rest.
        for node in model.graph.nodes:
            if isinstance(node.layer, spec.Fold) and node.layer.function == "mean":
                count, total = f"{node.name}.count", f"{node.name}.total"
                rows = np.maximum(made[count], 1).reshape(
                    1, batch_size, *[1] * (made[total].ndim - 2)
                )
                made[total] = (made[total] / rows).astype(model.dtype)
    return made


def _output_row(model: Model) -> Any:
    (value,) = model.graph.outputs.values()
    return model.facts.rows[value]


def waits_for_end(model: Model) -> bool:
    """Whether some rows of a sequence come of its end only, where a stream flushes them."""
    timing = _output_row(model).timing
    return bool(timing.ready != {timing.rows})


def pieces_of_whole(model: Model, outputs: Array) -> Run:
    """A run whose output is known as a whole; its state is the number of steps read."""
    timing = _output_row(model).timing

    def run(x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        begin = state or 0
        end = begin + len(x)
        last = timing.rows(end) if whole else timing.after(end)
        return outputs[timing.after(begin) : last], end

    return run


def steps_to_output(model: Model) -> int:
    """Those of the shortest whole sequence that has an output."""
    return int(_output_row(model).timing.rows.least())


def outputs_known(model: Model, first: int, end: int) -> Array:
    """The steps of a stream after which its outputs from `first` to before `end` are known."""
    timing = _output_row(model).timing
    if timing == spec.Timing():
        return np.arange(first, end)
    known = [max(c.least(n) for c in timing.ready) - 1 for n in range(first + 1, end + 1)]
    return np.array(known, np.intp)


def random_input(model: Model, shape: tuple[int, ...], seed: int) -> Any:
    """Standard normal features ``(*shape, I)``, or uniform tokens ``shape``, for a model.

    For a model of several inputs, or a held one, a mapping of such arrays by name; what is held has
    no steps, the first axis of `shape`.
    """
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for given in model.graph.inputs:
        axes = (*(shape[1:] if given.held else shape), *given.shape)
        if given.tokens:
            made[given.name] = rng.integers(0, given.tokens, axes)
        else:
            made[given.name] = rng.standard_normal(axes).astype(model.dtype)
    single = len(made) == 1 and not model.graph.inputs[0].held
    return made.popitem()[1] if single else made
