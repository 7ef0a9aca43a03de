"""A graph run in NumPy: a whole sequence at once, or a stream in any pieces."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.reduced import Tensors
from fastlstm.reference import recurrent, sliding, time
from fastlstm.reference.functions import Array
from fastlstm.reference.over_time import OverTime, State
from fastlstm.reference.products import Weights, weight_of
from fastlstm.reference.rows import EQUATIONS

__all__ = ["Stream", "forward"]

OVER_TIME: dict[type[spec.Layer], type[OverTime]] = {
    spec.LSTM: recurrent.Recurrence,
    spec.GRU: recurrent.Recurrence,
    spec.RNN: recurrent.Recurrence,
    spec.Convolution: sliding.SlidingOverTime,
    spec.Pooling: sliding.SlidingOverTime,
    spec.Window: time.WindowOverTime,
    spec.Delay: time.DelayOverTime,
    spec.Slice: time.SliceOverTime,
    spec.Repeat: time.RepeatOverTime,
    spec.Spread: time.SpreadOverTime,
    spec.Fold: time.FoldOverTime,
    spec.Attention: time.AttentionOverTime,
}
WITHIN_STEP = EQUATIONS | {
    spec.LSTM: recurrent.along_positions,
    spec.GRU: recurrent.along_positions,
    spec.RNN: recurrent.along_positions,
    spec.Convolution: sliding.within_step,
    spec.Pooling: sliding.within_step,
}

Values = dict[str, Array]
Queues = dict[tuple[str, int], Array]


class Stream:
    """Sequences of one batch, from their start on.

    Parameters
    ----------
    graph : spec.Graph
    tensors : mapping of str to array or Reduced
        Its tensors, any float dtype. Of those that are stored in another precision, integers make
        their products by themselves, in float32; the others are what they stand for.
    batch_size : int, default 1
    held : mapping of str to array (B, *shape), optional
        The inputs that are held, each a row for the whole sequence.
    dtype : dtype, default float64
        What to compute in; everything is converted to it first.

    Attributes
    ----------
    state : dict of str to array
        What ``spec.check`` lists, the batch behind the first axis, and the rows that wait for
        others. It can be copied and put back.
    over_time, within_step : mapping of type of layer to equations
        A subclass may have others.
    """

    over_time: ClassVar[Mapping[type[spec.Layer], type[OverTime]]] = OVER_TIME
    within_step: ClassVar[Mapping[type[spec.Layer], Callable[..., Array]]] = WITHIN_STEP

    def __init__(
        self,
        graph: spec.Graph,
        tensors: Tensors,
        batch_size: int = 1,
        *,
        held: Mapping[str, Array] | None = None,
        dtype: npt.DTypeLike = np.float64,
    ) -> None:
        self.graph, self.facts = graph, spec.check(graph)
        self.batch_size, self.dtype = batch_size, np.dtype(dtype)
        self._made: dict[str, OverTime] = {}
        self._weights: dict[str, Weights] = {}
        rows = self.facts.rows
        for node in (node for group in self.facts.groups for node in group.nodes):
            w = {
                suffix: weight_of(tensors[name], self.dtype)
                for suffix, name in node.layer.names().items()
            }
            self._weights[node.name] = w
            if node.layer.over_time:
                reads = [rows[name] for name in node.reads]
                equations = self.over_time[type(node.layer)]
                self._made[node.name] = equations(node.layer, w, reads, self.dtype)
        self._held = self._inputs(held or {}, held=True)
        with _quietly():
            for group in self.facts.groups:
                for node in group.nodes:
                    if rows[node.name].held:
                        y = self._of_step(node, self._held)  # of constants, one for all of a batch
                        self._held[node.name] = np.broadcast_to(y, (1, batch_size, *y.shape[2:]))
            self.state: dict[str, Array] = {}
            for name, made in self._made.items():
                self._put(name, made.start(batch_size, self._starts(name)))

    def run(self, inputs: Mapping[str, Array]) -> Values:
        """The rows that the next steps give.

        Parameters
        ----------
        inputs : mapping of str to array (T, B, *shape)
            Of every input that is not held.

        Returns
        -------
        dict of str to array (T', B, *shape)
            Of every output; (1, B, *shape) if it is held. Of a fold, what each of these steps
            would be the end of.
        """
        if self.facts.looks_ahead:
            raise ValueError(f"the model cannot be streamed: {self.facts.looks_ahead}")
        with _quietly():
            return self._outputs(self._advance(self._inputs(inputs, held=False), ends=False))

    def finish(self, inputs: Mapping[str, Array]) -> Values:
        """The rows that the last steps of a sequence give, and those that are due at its end.

        What :meth:`run` and then :meth:`flush` give, but also of a graph that cannot be streamed,
        whose recurrences then start where the state has them. The state is that of the end.
        """
        with _quietly():
            return self._outputs(self._advance(self._inputs(inputs, held=False), ends=True))

    def flush(self) -> Values:
        """The rows that are due at the end of the sequence; the state stays as it is."""
        kept = copy.deepcopy(self.state)
        try:
            with _quietly():
                empty = {
                    i.name: np.zeros(
                        (0, self.batch_size, *i.shape), np.int64 if i.tokens else self.dtype
                    )
                    for i in self.graph.inputs
                    if not i.held
                }
                return self._outputs(self._advance(empty, ends=True))
        finally:
            self.state = kept

    def whole(self, inputs: Mapping[str, Array]) -> Values:
        """The rows of a whole sequence, from its start, by the formulas for it.

        The stream must be new, and is of no use afterwards.
        """
        rows, values = self.facts.rows, self._inputs(inputs, held=False) | self._held
        with _quietly():
            for group in self.facts.groups:
                if group.loops:
                    self._loop(group, values)
                    continue
                (node,) = group.nodes
                if rows[node.name].held:
                    continue
                if node.layer.over_time:
                    moving = self._moving(node, values)
                    made, state = self._made[node.name], self._take(node.name)
                    y = made.whole(state, *moving) if len(moving[0]) else self._none(node)
                    values[node.name] = y.astype(self.dtype, copy=False)
                else:
                    values[node.name] = self._of_step(node, values)
        return self._outputs(values)

    def _inputs(self, inputs: Mapping[str, Array], held: bool) -> Values:
        wanted = {i.name: i for i in self.graph.inputs if i.held == held}
        if wrong := sorted(wanted.keys() ^ inputs.keys()):
            raise ValueError(f"expected inputs {sorted(wanted)}; missing or unknown: {wrong}")
        values = {}
        for name, given in wanted.items():
            x = np.asarray(inputs[name])
            x = x[None] if held else x
            if x.shape[1:] != (self.batch_size, *given.shape):
                axes = ", ".join(map(str, ["T"] * (not held) + [self.batch_size, *given.shape]))
                raise ValueError(
                    f"input {name!r} has shape {np.shape(inputs[name])}; expected ({axes})"
                )
            if given.tokens and not (
                np.issubdtype(x.dtype, np.integer) and np.all((x >= 0) & (x < given.tokens))
            ):
                raise ValueError(
                    f"input {name!r} is {x.dtype} numbers of which some are no token; expected "
                    f"integers from 0 to {given.tokens - 1}"
                )
            values[name] = x if given.tokens else x.astype(self.dtype)
        if len({len(x) for x in values.values()}) > 1:
            steps = ", ".join(f"{name!r} has {len(x)}" for name, x in values.items())
            raise ValueError(f"inputs have as many steps each, but {steps}")
        return values

    def _outputs(self, values: Values) -> Values:
        return {name: values[value] for name, value in self.graph.outputs.items()}

    def _none(self, node: spec.Node) -> Array:
        """No rows of what a node gives."""
        row = self.facts.rows[node.name]
        dtype = np.dtype(np.int64) if row.tokens else self.dtype
        return np.zeros((0, self.batch_size, *row.shape), dtype)

    def _of_step(self, node: spec.Node, values: Values) -> Array:
        """What a layer of one step gives for its reads."""
        if any(len(values[name]) == 0 for name in node.reads):
            return self._none(node)
        equation = self.within_step[type(node.layer)]
        y = equation(node.layer, self._weights[node.name], *(values[name] for name in node.reads))
        if self.facts.rows[node.name].tokens:
            return y
        return y.astype(self.dtype, copy=False)

    def _moving(self, node: spec.Node, values: Values) -> list[Array]:
        """What a layer over time reads of each step, as many rows of each."""
        names = node.reads[: len(node.reads) - node.layer.starts]
        T = next(len(values[name]) for name in names if not self.facts.rows[name].held)
        return [
            np.broadcast_to(values[name], (T, *values[name].shape[1:]))
            if self.facts.rows[name].held
            else values[name]
            for name in names
        ]

    def _starts(self, name: str) -> list[Array]:
        node = next(node for node in self.graph.nodes if node.name == name)
        starts = node.reads[len(node.reads) - node.layer.starts :]
        shape = [self.facts.rows[read].shape for read in starts]
        return [
            np.broadcast_to(self._held[read], (1, self.batch_size, *axes))
            for read, axes in zip(starts, shape, strict=True)
        ]

    def _take(self, name: str) -> State:
        names = self._made[name].layer.state(self._made[name].reads)
        return {suffix: self.state[f"{name}.{suffix}"] for suffix in names}

    def _put(self, name: str, state: State) -> None:
        self.state |= {f"{name}.{suffix}": value for suffix, value in state.items()}

    def _queued(self, reads: Sequence[tuple[str, int, str]], values: Values) -> list[Array]:
        """As many new rows of each value as there are of all of them; the others wait.

        Parameters
        ----------
        reads : sequence of (node, place, name)
            Which node reads the value, as which of its reads, and the value.
        """
        if len(reads) == 1:
            return [values[reads[0][2]]]
        lines = []
        for node, place, name in reads:
            waiting = self.state.get(f"{node}.queue.{place}")
            new = values[name]
            lines.append(new if waiting is None else np.concatenate([waiting, new]))
        n = min(map(len, lines))
        for (node, place, _), line in zip(reads, lines, strict=True):
            self.state[f"{node}.queue.{place}"] = line[n:]
        return [line[:n] for line in lines]

    def _meeting(self, nodes: Sequence[spec.Node], values: Values) -> Values:
        """The values that a node, or the nodes of a loop, can read, as many rows of each."""
        rows, inside = self.facts.rows, {node.name for node in nodes}
        reads = [
            (node.name, place, name)
            for node in nodes
            for place, name in enumerate(node.reads)
            if name not in inside and not rows[name].held
        ]
        first: dict[str, tuple[str, int, str]] = {}
        for read in reads:  # a value that is read twice waits in one queue
            first.setdefault(read[2], read)
        if rows[nodes[0].name].looks_ahead and any(rows[name].folded for name in first):
            # They may come of unlike numbers of rows: those of the end of the sequence meet.
            return {name: values[name][-1:] for name in first}
        taken = self._queued(list(first.values()), values) if first else []
        return dict(zip(first, taken, strict=True))

    def _advance(self, values: Values, ends: bool) -> Values:
        """New rows of every value; with `ends`, what the end of the sequence gives."""
        rows, values = self.facts.rows, values | self._held
        for group in self.facts.groups:
            if rows[group.nodes[0].name].held:
                continue
            met = self._held | self._meeting(group.nodes, values)
            if group.loops:
                self._loop(group, met)
                values |= {node.name: met[node.name] for node in group.nodes}
                continue
            (node,) = group.nodes
            if not node.layer.over_time:
                values[node.name] = self._of_step(node, met)
                continue
            made, state, moving = (
                self._made[node.name],
                self._take(node.name),
                self._moving(node, met),
            )
            y = made.run(state, *moving) if len(moving[0]) else self._none(node)
            if ends and (due := made.flush(state)) is not None:
                y = np.concatenate([y, due])
            self._put(node.name, state)
            values[node.name] = y.astype(self.dtype, copy=False)
        return values

    def _loop(self, group: spec.Group, values: Values) -> None:
        """Run the nodes of a loop row by row; their rows are added to `values`."""
        rows, inside = self.facts.rows, {node.name for node in group.nodes}
        outside = {name for node in group.nodes for name in node.reads} - inside
        moving = [name for name in outside if not rows[name].held]
        T = len(values[moving[0]])
        states = {node.name: self._take(node.name) for node in group.nodes if node.layer.over_time}
        made: dict[str, list[Array]] = {name: [] for name in inside}
        for t in range(T):
            now = {name: values[name][t : t + 1] for name in moving}
            now |= {name: values[name] for name in outside if rows[name].held}
            for node in group.nodes:
                equations = self._made.get(node.name)
                if isinstance(equations, time.DelayOverTime):
                    now[node.name] = equations.give(states[node.name])
                elif equations is not None:
                    y = equations.run(states[node.name], *self._moving(node, now))
                    now[node.name] = y.astype(self.dtype, copy=False)
                else:
                    now[node.name] = self._of_step(node, now)
            for node in group.nodes:
                equations = self._made.get(node.name)
                if isinstance(equations, time.DelayOverTime):
                    equations.take(states[node.name], now[node.reads[0]])
                made[node.name].append(now[node.name])
        for name, state in states.items():
            self._put(name, state)
        for node in group.nodes:
            steps = made[node.name]
            values[node.name] = np.concatenate(steps) if steps else self._none(node)


def forward(
    graph: spec.Graph,
    tensors: Tensors,
    inputs: Mapping[str, Array],
    *,
    dtype: npt.DTypeLike = np.float64,
) -> Values:
    """Run a whole sequence through a graph.

    Parameters
    ----------
    graph : spec.Graph
    tensors : mapping of str to array or Reduced
        Its tensors, any float dtype. Of those that are stored in another precision, integers make
        their products by themselves, in float32; the others are what they stand for.
    inputs : mapping of str to array
        Of every input: (T, B, *shape), or (B, *shape) if it is held.
    dtype : dtype, default float64
        What to compute in; everything is converted to it first.

    Returns
    -------
    dict of str to array of `dtype`
        Of every output: (T', B, *shape); T' is 1 if it is held or a fold.
    """
    held = {i.name: inputs[i.name] for i in graph.inputs if i.held and i.name in inputs}
    moving = {name: x for name, x in inputs.items() if name not in held}
    shapes = {i.name: len(i.shape) for i in graph.inputs}
    batch = {
        np.shape(x)[name not in held]
        for name, x in inputs.items()
        if name in shapes and np.ndim(x) == shapes[name] + (2 if name not in held else 1)
    }
    if len(batch) != 1:
        raise ValueError(f"the inputs have batches of {sorted(batch)} rows; expected one size")
    return Stream(graph, tensors, batch.pop(), held=held, dtype=dtype).whole(moving)


def _quietly() -> Any:
    """No warnings of infinities.

    They are legal inputs, and meet 0 * inf and inf - inf on their way to the same NaN that PyTorch
    gives.
    """
    return np.errstate(invalid="ignore", over="ignore", under="ignore", divide="ignore")
