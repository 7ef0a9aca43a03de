"""Recurrent layers on a line: what their axes are, what they start from, and how they end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.line.axes import (
    BATCH,
    FEATURES,
    POSITION,
    TIME,
    Axis,
    Group,
    Role,
    significant,
)
from fastlstm.sources.line.chain import Made, order
from fastlstm.sources.line.nodes import (
    Array,
    Constant,
    Final,
    Joined,
    Lengths,
    Node,
    Part,
    State,
    Value,
    Zeros,
)
from fastlstm.sources.line.pairs import Pairs

__all__ = ["Recurrence", "Recurrences"]


class Recurrence(NamedTuple):
    """What a recurrent layer gives; `c_n` only of an LSTM.

    The features of `output` are those of the directions, one behind the other; `h_n` and `c_n` have
    the axes (num_layers * directions, batch, units), or no batch where the input has none.
    """

    output: Value
    h_n: Value
    c_n: Value | None


class Recurrences(Pairs):
    """The part of :class:`~fastlstm.sources.line.Line` that goes over time with a state."""

    def __init__(self) -> None:
        super().__init__()
        self._lengths_of: dict[str, Lengths | None] = {}  # by recurrent layer
        self._single_step = ""  # a recurrent layer that runs one step of a stream
        self._started: dict[str, str] = {}  # by part of an input, the state that starts from it

    def state_input(self, shape: Sequence[int | None], name: str = "a state") -> Value:
        """An input that carries states in, which recurrent layers start from."""
        unfinished = "a recurrent layer to start from it"
        axes = [() if size == 1 else (Axis(size, Role()),) for size in shape]
        return Value(State(name, (), unfinished=unfinished), axes)

    def lengths_input(self, shape: Sequence[int | None], name: str = "lengths") -> Value:
        """An input that holds the steps of each row."""
        axes = [(Axis(size, Role(POSITION)),) for size in shape]
        return Value(Lengths(name, ()), axes)

    def recurrent(
        self,
        x: Value,
        layer: spec.Recurrent,
        tensors: Mapping[str, Array],
        *,
        time_axis: int,
        batch_axis: int | None,
        name: str,
        h_0: Value | None = None,
        c_0: Value | None = None,
        lengths: Value | None = None,
    ) -> Recurrence:
        """A recurrent layer, whose own name does not matter; its tensors go by their suffixes.

        The output has the axes of `x`. A time axis of size 1 that is none of the input's is the one
        step of a stream: then the state comes in by :meth:`state_input`.
        """
        if x.ndim != 2 + (batch_axis is not None):
            raise ConvertError(
                f"{name!r:.200} is given an array of shape {x.shape}; expected time, features"
                + (" and batch" if batch_axis is not None else "")
            )
        places = {self._axis(x, a, name) for a in (time_axis, batch_axis) if a is not None}
        ((place, read),) = [(i, group) for i, group in enumerate(x.axes) if i not in places]
        self._read(x, [place], layer.input_size, name)
        carried, starts = self._starts(layer, h_0, c_0, name)
        self._settle_steps(x, layer, time_axis, batch_axis, carried, name)
        if lengths is not None and not isinstance(lengths.node, Lengths):
            raise ConvertError(f"{name!r:.200} computes its lengths; expected an input of them")
        self._lengths_of[name] = lengths.node if lengths else None  # type: ignore[assignment]
        if starts:
            layer = dataclasses.replace(layer, initial_state=True)

        def make(own: str) -> Part:
            columns = order(x.node.row, [read], name)
            arrays = {**tensors, **starts}
            if columns is not None:
                for suffix in ("weight_ih_l0", "weight_ih_l0_reverse")[: layer.directions]:
                    arrays[suffix] = arrays[suffix][:, columns]
            return dataclasses.replace(layer, name=own), arrays

        directions = tuple(Axis(2, Role(FEATURES)) for _ in range(layer.directions - 1))
        h_units = Axis(layer.h_size, Role(FEATURES))
        c_units = Axis(layer.hidden_size, Role(FEATURES)) if layer.projection else h_units
        node = Node(name, (*directions, h_units), x, make)
        axes = list(x.axes)
        axes[place] = node.row
        output = Value(node, axes)
        batch = [] if batch_axis is None else [x.axes[batch_axis]]

        def final(which: str, units: Axis) -> Value:
            row = (*directions, units)
            pool = functools.partial(self._final, layer, which, name)
            last = Final(f"{name}.{which}_n", row, output, pool, backwards=layer.reverse)
            if layer.num_layers == 1:
                return Value(last, [directions, *batch, (units,)])
            layers = Axis(layer.num_layers, Role(FEATURES))
            of_last = Value(last, [directions, *batch, (units,)])
            all_ = Final(
                f"{name}.{which}_n",
                row,
                output,
                unfinished="the state of its last layer alone, such as h_n[-1]",
                backwards=layer.reverse,
                layers=layers,
                last=of_last,
            )
            return Value(all_, [(layers, *directions), *batch, (units,)])

        c_n = final("c", c_units) if layer.has_cell_state else None
        return Recurrence(output, final("h", h_units), c_n)

    def _starts(
        self, layer: spec.Recurrent, h_0: Value | None, c_0: Value | None, name: str
    ) -> tuple[bool, dict[str, Array]]:
        """Whether the states come in from an input, else the tensors they start from, if any."""
        shapes = list(layer.state().values())
        if c_0 is not None and len(shapes) == 1:
            raise ConvertError(f"{name!r:.200} has no cell state; expected no c_0")
        carried = False
        starts: dict[str, Array] = {}
        for which, value, (depth, size) in zip("hc", (h_0, c_0), shapes, strict=False):
            starts[f"{which}_0"] = np.zeros((depth, size), np.float32)
            if value is None or isinstance(value.node, Zeros):
                continue
            if value.ndim not in (2, 3) or (value.shape[0], value.shape[-1]) != (depth, size):
                raise ConvertError(
                    f"{name!r:.200} starts from {which}_0 of shape {value.shape}; expected "
                    f"({depth}, batch, {size})"
                )
            if isinstance(value.node, Constant):
                array = value.node.array
                rows = array.reshape(array.shape[0], -1, array.shape[-1])
                if (rows != rows[:, :1]).any():
                    raise ConvertError(
                        f"{name!r:.200} starts each row of a batch from another {which}_0; "
                        f"expected the same for all, or an input"
                    )
                starts[f"{which}_0"] = np.broadcast_to(rows[:, 0], (depth, size))
            elif isinstance(value.node, State):
                carried = True
                own = f"{name}.{which}"
                earlier = self._started.setdefault(value.node.name, own)
                if earlier != own:
                    raise ConvertError(
                        f"{own!r:.200} and {earlier!r:.200} start from the same "
                        f"{value.node.name!r:.200}; expected a state for each"
                    )
            else:
                raise ConvertError(
                    f"{name!r:.200} starts from {which}_0 that {value.node.name!r:.200} computes; "
                    f"expected zeros, a constant or an input"
                )
        learned = any(start.any() for start in starts.values())
        if carried and learned:
            raise ConvertError(
                f"{name!r:.200} starts one state from an input and another from a constant; "
                f"expected both from the same"
            )
        return carried, starts if learned else {}

    def _settle_steps(
        self,
        x: Value,
        layer: spec.Recurrent,
        time_axis: int,
        batch_axis: int | None,
        carried: bool,
        name: str,
    ) -> None:
        """Settle time and batch, or note that this is one step of a stream."""

        def those(axis: int, role: frozenset[str]) -> Group:
            group = x.axes[axis]
            found = significant(group) or tuple(a for a in group if a.role.possible & role)[:1]
            if len(found) > 1:
                raise ConvertError(
                    f"{name!r:.200} takes as {' or '.join(role)} an axis that was merged of "
                    f"{len(found)}; expected one of them"
                )
            return found

        over = those(time_axis, TIME)
        for axis in over:
            axis.role.settle(TIME, name)
        if batch_axis is not None:
            for axis in those(batch_axis, BATCH):
                axis.role.settle(BATCH, name)
        if not over:
            if not carried:
                raise ConvertError(
                    f"{name!r:.200} runs over a single step, not over time, and its state is no "
                    f"input; expected a time axis, or states as inputs and outputs"
                )
            if layer.bidirectional or layer.reverse:
                raise ConvertError(
                    f"{name!r:.200} runs backwards over a single step; expected only forwards, as "
                    f"a stream runs"
                )
            self._single_step = self._single_step or name

    def _final(self, layer: spec.Recurrent, which: str, name: str, own: str) -> Part | None:
        """What takes the final state as the output of a model."""
        if which == "c":
            raise ConvertError(
                f"the cell state of {name!r:.200} is passed on as features; expected its h alone"
            )
        if self._single_step:
            return None
        if layer.reverse:
            raise ConvertError(
                f"the last state of {name!r:.200}, which runs backwards, is that of the first "
                f"step; expected its output, or a layer that runs forwards"
            )
        function = "final" if layer.bidirectional else "last"
        return spec.Pool(own, function, layer.output_size), {}

    def carried(self, made: Made) -> list[str]:
        """Which part of an input each state of the model is."""
        sentences = []
        for part, state in self._started.items():
            name, _, which = state.rpartition(".")
            sentences.append(f"state '{made.became.get(name, name)}.{which}' is {part!r:.200}")
        return sentences

    def whole(self, x: Value) -> Value | None:
        """The output of the layer whose last states these are, if it runs backwards.

        No row that a model gives at the end of a sequence is that of its first step.
        """
        return x.node.source if isinstance(x.node, Final) and x.node.backwards else None

    def is_state(self, x: Value) -> bool:
        """Whether a value is made of nothing but the last states of recurrent layers."""
        if isinstance(x.node, Joined) and x.node.joint:
            return all(map(self.is_state, x.node.values))
        return isinstance(x.node, Final)

    def _refuse_lengths(self, made: Made) -> None:
        """With lengths, nothing may look at what lies behind them as the graph does."""
        given = {name: node for name, node in self._lengths_of.items() if name in made.became}
        if not any(given.values()):
            return
        if len(set(map(id, given.values()))) > 1:
            raise ConvertError(
                f"{', '.join(map(repr, given))} are given different lengths; expected all the same"
            )
        for layer in spec.walk(made.layers):
            of_state = layer.name in [made.became.get(f"{name}.h_n") for name in given]
            over_time = isinstance(layer, spec.Conv1d) and layer.kernel_size > 1
            if over_time or (isinstance(layer, spec.Pool) and not of_state):
                raise ConvertError(
                    f"layer {layer.name!r} ({layer.kind}) goes over what lies behind the lengths "
                    f"of the rows; expected recurrent layers, and their last state, alone"
                )
