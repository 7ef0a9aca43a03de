"""Ways to evaluate a model, all called alike: the engine's two, and the equations in NumPy.

Dimension letters: ``T`` steps, ``N`` rows of an output, ``B`` batch, ``O`` numbers of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm import reference, spec
from fastlstm.model import Model
from fastlstm.reduced import Tensors

__all__ = [
    "Arrays",
    "Equations",
    "Run",
    "Source",
    "cut_out",
    "drawn",
    "equations",
    "last_only",
    "moving",
    "outputs_known",
    "pieces_of_whole",
    "random_input",
    "rows_of",
    "sequences",
    "size_of",
    "steps_to_output",
    "stepwise",
    "waits_for_end",
]

Array = npt.NDArray[Any]

# Inputs by name, (T, B, ...) each, and (B, ...) of what is held for a sequence; or rows by the name
# of the output, (N, B, O) each.
Arrays = Mapping[str, Array]


class Run(Protocol):
    """A way to evaluate a model."""

    def __call__(self, x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        """The rows (N, B, O) that inputs give, by the name of the output.

        `state` is what the last call returned, or None at the start of a sequence; for the engine
        and the equations it is a model's state, of which that of the equations has what
        :func:`fastlstm.spec.check` lists. With `whole` the sequence ends with x, and the outputs
        have the rows that are due at its end too. What has one row for all steps so far has the
        last of them.
        """


class Source(Protocol):
    """What a model was made of, or is said to be: judged by whether it computes the same.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        Of its arithmetic, or of the weights that it shares with the model if that is coarser.
    outputs : tuple of str
        Those of the model that it gives.
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
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def length(self) -> int | None: ...
    @property
    def chains(self) -> bool: ...
    @property
    def carries(self) -> bool: ...

    def run(self, x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        """A sequence from its start: `state` is None."""

    def carry(self, x: Arrays) -> Run:
        """A run that goes on along this very sequence from call to call."""


@dataclass(frozen=True, eq=False)
class Equations:
    """A graph and its tensors, evaluated in NumPy in float64: a `Source` too."""

    name: str
    graph: spec.Graph
    tensors: Tensors
    dtype: np.dtype[Any]
    batch_size: int | None = None
    length: int | None = None
    chains: bool = True
    carries: bool = True

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.graph.outputs)

    def run(self, x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        return equations(self.graph, self.tensors, np.float64)(x, state, whole)

    def carry(self, x: Arrays) -> Run:
        return self.run


# Of a model


def row_of(model: Model, output: str) -> spec.Row:
    """What is known of an output."""
    return model.facts.rows[model.graph.outputs[output]]


def last_only(row: spec.Row) -> bool:
    """Whether a sequence has one row of a value."""
    return row.folded or row.held


def size_of(model: Model) -> int:
    """Numbers of a row of all outputs."""
    return sum(row_of(model, output).size for output in model.outputs)


def steps_to_output(model: Model) -> int:
    """Those of the shortest whole sequence that has a row of every output."""
    timings = [row_of(model, output).timing for output in model.outputs]
    return max((int(timing.rows.least()) for timing in timings if timing), default=1)


def waits_for_end(model: Model) -> bool:
    """Whether some rows of a sequence come of its end only, where a stream flushes them."""
    timings = [row_of(model, output).timing for output in model.outputs]
    return any(timing is not None and timing.ready != {timing.rows} for timing in timings)


def outputs_known(model: Model, output: str, first: int, end: int) -> Array:
    """The steps of a stream after which its rows from `first` to before `end` are known."""
    timing = row_of(model, output).timing
    if timing is None or timing == spec.Timing():
        return np.arange(first, end)
    known = [max(c.least(n) for c in timing.ready) - 1 for n in range(first + 1, end + 1)]
    return np.array(known, np.intp)


# Of inputs


def moving(graph: spec.Graph, x: Arrays) -> tuple[int, int]:
    """T and B of inputs."""
    first = next(given.name for given in graph.inputs if not given.held)
    return x[first].shape[0], x[first].shape[1]


def cut_out(graph: spec.Graph, x: Arrays, begin: int, end: int) -> dict[str, Array]:
    """The steps from `begin` to before `end`; what is held stays."""
    return {i.name: x[i.name] if i.held else x[i.name][begin:end] for i in graph.inputs}


def drawn(model: Model, shape: tuple[int, ...], seed: int) -> dict[str, Array]:
    """Standard normal numbers, or uniform tokens, (*shape, ...) for each input of a model.

    What is held has no steps, the first axis of `shape`.
    """
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for given in model.graph.inputs:
        axes = (*(shape[1:] if given.held else shape), *given.shape)
        if given.tokens:
            made[given.name] = rng.integers(0, given.tokens, axes)
        else:
            made[given.name] = rng.standard_normal(axes).astype(model.dtype)
    return made


def random_input(model: Model, shape: tuple[int, ...], seed: int) -> Any:
    """Standard normal features ``(*shape, I)``, or uniform tokens ``shape``, for a model.

    For a model of several inputs, or a held one, a mapping of such arrays by name; what is held has
    no steps, the first axis of `shape`.
    """
    made = drawn(model, shape, seed)
    return made.popitem()[1] if len(made) == 1 else made


def rows_of(graph: spec.Graph, facts: spec.Facts, made: Arrays) -> dict[str, Array]:
    """Outputs (N, B, ...) as (N, B, O); of those with one row for a sequence the last one."""
    found = {}
    for name, y in made.items():
        y = y[-1:] if last_only(facts.rows[graph.outputs[name]]) else y
        found[name] = y if y.ndim == 3 else y.reshape(*y.shape[:2], -1 if y.size else 0)
    return found


# Evaluations


def equations(
    graph: spec.Graph,
    tensors: Tensors,
    dtype: npt.DTypeLike,
    made: type[reference.Stream] = reference.Stream,
) -> Run:
    """The equations in NumPy, rounded to a precision at every step; or those of another stream."""

    def run(x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        held = {given.name: x[given.name] for given in graph.inputs if given.held}
        rows = {name: array for name, array in x.items() if name not in held}
        stream = made(graph, tensors, moving(graph, x)[1], held=held, dtype=dtype)
        if state is not None:
            stream.state = {
                name: value if value.dtype.kind == "i" else value.astype(dtype)
                for name, value in state.items()
            }
        y = (stream.finish if whole else stream.run)(rows)
        return rows_of(graph, stream.facts, y), stream.state

    return run


def sequences(model: Model) -> Run:
    """The engine, a call for a whole sequence."""

    def run(x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        held = _held(model, x)
        if not whole and waits_for_end(model):
            # A whole sequence ends with x; a block of a stream does not.
            stream = model.stream(moving(model.graph, x)[1], held=held)
            if state is not None:
                stream.state = _completed(model, state, x)
            rows = {name: array for name, array in x.items() if name not in (held or {})}
            return rows_of(model.graph, model.facts, _named(model, stream.run(_only(rows)))), (
                stream.state
            )
        y, after = model(_only(x), _completed(model, state, x))
        made = _named(model, y)
        one = {name for name in model.outputs if last_only(row_of(model, name))}
        made = {name: rows[None] if name in one else rows for name, rows in made.items()}
        return rows_of(model.graph, model.facts, made), after

    return run


def stepwise(model: Model) -> Run | None:
    """The engine, a call for each step; None if the model cannot stream."""
    if model.looks_ahead:
        return None
    timings = [row_of(model, output).timing for output in model.outputs]
    # A step gives no row or one, or as many each time; where it does not, a block of one step does.
    by_step = all(t is None or t.burst <= 1 or t.rate.steps == 1 for t in timings)
    stream: Any = None

    def one(x: Arrays) -> dict[str, Array | None]:
        if not by_step:
            return _named(model, stream.run(_only({n: a[None] for n, a in x.items()})))
        made = _named(model, stream.step(_only(x)))
        several = {n for n, t in zip(model.outputs, timings, strict=True) if t and t.burst > 1}
        return {n: y if y is None or n in several else y[None] for n, y in made.items()}

    def run(x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        nonlocal stream
        T, B = moving(model.graph, x)
        held = _held(model, x)
        if stream is None or stream.batch_size != B:
            stream = model.stream(B, held=held)
        stream.reset(held=held)
        if state is not None:
            stream.state = _completed(model, state, x)
        made: dict[str, list[Array]] = {
            name: [np.empty((0, B, *shape), model.dtype)] for name, shape in model.outputs.items()
        }
        rows = {name: array for name, array in x.items() if name not in (held or {})}
        for t in range(T):
            for name, y in one({n: array[t] for n, array in rows.items()}).items():
                made[name] += [] if y is None else [y]
        if whole and waits_for_end(model):
            for name, y in _named(model, stream.flush()).items():
                made[name].append(y)
        joined = {name: np.concatenate(steps) for name, steps in made.items()}
        return rows_of(model.graph, model.facts, joined), stream.state

    return run


def _only(x: Arrays) -> Any:
    """The only input itself, or all by name."""
    return x if len(x) > 1 else next(iter(x.values()))


def _named(model: Model, y: Any) -> dict[str, Any]:
    """What a model gives, by the name of the output."""
    return y if len(model.outputs) > 1 else {next(iter(model.outputs)): y}


def _held(model: Model, x: Arrays) -> dict[str, Array] | None:
    return {given.name: x[given.name] for given in model.graph.inputs if given.held} or None


def _completed(model: Model, state: Any, x: Arrays) -> Any:
    """A state of the equations with all that the engine's has, as it is where a sequence starts."""
    if state is None:
        return None
    B = moving(model.graph, x)[1]
    start = model.stream(B, held=_held(model, x)).state
    if state.keys() == start.keys():
        return state
    made = start | {name: state[name] for name in start.keys() & state.keys()}
    if "rest" in {name.rpartition(".")[2] for name in made.keys() - state.keys()}:
        # The equations keep the total of a mean, and the engine the mean itself and its rest.
        for node in model.graph.nodes:
            if isinstance(node.layer, spec.Fold) and node.layer.function == "mean":
                count, total = f"{node.name}.count", f"{node.name}.total"
                rows = np.maximum(made[count], 1).reshape(1, B, *[1] * (made[total].ndim - 2))
                made[total] = (made[total] / rows).astype(model.dtype)
    return made


def pieces_of_whole(model: Model, outputs: Arrays, steps: int) -> Run:
    """A run whose outputs of `steps` are known as a whole; its state is the number of them read.

    An output of another number of rows than the model's gives none.
    """
    timings = {name: row_of(model, name).timing for name in outputs}
    outputs = {
        name: rows if (t := timings[name]) is None or len(rows) == t.rows(steps) else rows[:0]
        for name, rows in outputs.items()
    }

    def run(x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        begin = state or 0
        end = begin + moving(model.graph, x)[0]
        made = {}
        for name, rows in outputs.items():
            timing = timings[name]
            if timing is None:
                made[name] = rows
                continue
            last = timing.rows(end) if whole else timing.after(end)
            made[name] = rows[timing.after(begin) : last]
        return made, end

    return run
