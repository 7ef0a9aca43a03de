"""Recurrent layers: along time, along positions of a step, or one step a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.core import Core, Operand, SizeError, Value
from fastlstm.sources.arrays.places import FILL
from fastlstm.sources.arrays.rows import Made

__all__ = ["Recurrences"]

Array = npt.NDArray[Any]
Direction = Mapping[str, Array]

KINDS: dict[str, Any] = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}


class Recurrences(Core):
    """The part of :class:`~fastlstm.sources.arrays.Builder` for LSTM, GRU and RNN."""

    def recurrent(
        self,
        kind: str,
        x: Operand,
        layers: Sequence[Sequence[Direction]],
        h_0: Operand | None = None,
        c_0: Operand | None = None,
        *,
        batch_first: bool = False,
        **options: Any,
    ) -> tuple[Any, Any, Any]:
        """A stack of recurrent layers.

        Parameters
        ----------
        kind : {"lstm", "gru", "rnn"}
        x : (T, B, I), (B, T, I) with `batch_first`, or (T, I)
        layers : sequence of sequence of mapping of str to array
            For each layer of the stack, for each direction, tensors by PyTorch's names without
            their endings: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``, ``weight_hr``,
            and those of variants.
        h_0, c_0 : (L * D, B, H), or (L * D, H), optional
        **options
            Fields of :class:`fastlstm.spec.LSTM` and its kin.

        Returns
        -------
        y : (T, B, D * H), and as `x` is
        h_n, c_n : (L * D, B, H)
            c_n is None but of an LSTM.
        """
        if not isinstance(x, Value):
            raise ConvertError("a recurrent layer is given a constant")
        if x.ndim not in (2, 3):
            raise ConvertError(f"a recurrent layer is given an array of {x.ndim} axes")
        unbatched = x.ndim == 2
        if unbatched:
            x = self.move(lambda p: p[:, None], x)
            h_0, c_0 = (
                None if s is None else self.move(lambda p: np.expand_dims(p, 1), s)
                for s in (h_0, c_0)
            )
        elif batch_first:
            x = self.move(lambda p: p.swapaxes(0, 1), x)
        D = len(layers[0])
        ends: list[list[Value]] = [[], []]
        for n, directions in enumerate(layers):
            states = [
                None if s is None else self.move(lambda p, n=n: p[n * D : (n + 1) * D], s)
                for s in (h_0, c_0)[: 1 + (kind == "lstm")]
            ]
            x, last = self._layer(kind, x, directions, states, options)
            for parts, part in zip(ends, last, strict=False):
                parts.append(part)
        y = x
        h_n, c_n = (
            self.move(lambda *p: np.concatenate(p), *parts) if parts else None for parts in ends
        )
        if unbatched:
            y, h_n, c_n = (
                None if v is None else self.move(lambda p: p[:, 0], v) for v in (y, h_n, c_n)
            )
        elif batch_first:
            y = self.move(lambda p: p.swapaxes(0, 1), y)
        return y, h_n, c_n

    def _layer(
        self,
        kind: str,
        x: Value,
        directions: Sequence[Direction],
        states: Sequence[Operand | None],
        options: Mapping[str, Any],
    ) -> tuple[Value, list[Value]]:
        """One layer, x (S, N, I): y (S, N, D * H), and its last states (D, N, H)."""
        self.count()
        own = directions[0]
        I = own["weight_ih"].shape[1]  # noqa: E741
        if x.shape[-1] != I:
            raise SizeError(f"a {kind} of {I} features is given {x.shape}", x.shape[-1], I)
        gates = own["weight_ih"].shape[0]
        H = gates // (3 if options.get("coupled") else {"lstm": 4, "gru": 3, "rnn": 1}[kind])
        fields = dict(options) | {"input_size": I, "hidden_size": H}
        fields |= {"bias": "bias_ih" in own, "bidirectional": len(directions) == 2}
        if kind == "lstm":
            fields |= {"cell_output": True}
        if "weight_hr" in own:
            fields |= {"proj_size": own["weight_hr"].shape[0]}
        if "weight_peephole" in own:
            fields |= {"peepholes": True}
        tensors = {
            f"{name}_l0{'_reverse' * d}": tensor
            for d, direction in enumerate(directions)
            for name, tensor in direction.items()
        }
        parts = self.frame([x.places], core=1).axes
        seq = {part.kind for part in parts[0]}
        if "batch" in seq or len(seq) > 1:
            raise ConvertError("a recurrent layer runs along an axis that is the batch")
        self.count()  # what is wrong from here on is no axis
        if seq == {"time"} or self._is_moment(x.places):
            return self._along_time(kind, x.places, fields, tensors, states)
        return self._along_positions(kind, x.places, fields, tensors, states)

    def _is_moment(self, places: Array) -> bool:
        """Whether an array (1, N, I) is of one step alone."""
        if len(places) != 1:
            return False
        given = self.frame([places], core=1)
        return given.size("time") == 1

    # Along time

    def _along_time(
        self,
        kind: str,
        places: Array,
        fields: dict[str, Any],
        tensors: dict[str, Array],
        states: Sequence[Operand | None],
    ) -> tuple[Value, list[Value]]:
        backwards = self._runs_backwards(places)
        if backwards:
            if fields["bidirectional"]:
                raise ConvertError("a bidirectional layer is given steps in reversed order")
            places = places[::-1]
            fields = fields | {"reverse": not fields.get("reverse", False)}
        given = self.frame([places], core=1)
        reads, moment = self.reads(given, [places], core=1)
        layer = KINDS[kind](self.layer_name, **fields)
        single = moment is not None
        node = self.rows.node(layer, reads, tensors)
        y, last = self._given(given, node, layer, moment)
        before = 1 if single else max(self.rows.row(reads[0]).steps, 1)
        begins = not single or moment == 0
        start = self._start(states, [at.shifted(s, before) for s in last], begins, single)
        left = self.rows.starts.get((node.name, 1))
        if start is None and left is not None and left.any():
            # What the states of the program start from; they stay those of the same row.
            h, c = np.split(left, [layer.directions * layer.h_size])
            begin = {"h_0": h.reshape(layer.directions, -1)}
            if layer.has_cell_state:
                begin["c_0"] = c.reshape(layer.directions, -1)
            started = KINDS[kind](node.name, **fields, initial_state="learned")
            node.node, node.tensors = started(*reads), tensors | begin
        if start is not None:
            if single and moment:
                raise ConvertError(
                    "a recurrent layer runs over one step, and its state is not that of the step "
                    "before"
                )
            more, starts, learned = start
            if single and any(self.rows.row(name).steps for name in starts):
                # One step from a state that is computed anew for each: a sequence of its own.
                return self._along_positions(kind, places, fields, tensors, states)
            layer = KINDS[kind](self.layer_name, **fields, initial_state=learned)
            node = self.rows.node(layer, [*reads, *starts], tensors | more)
            y, last = self._given(given, node, layer, moment)
        if backwards:
            y = y[::-1]
        return Value(y), [Value(s) for s in last]

    def _runs_backwards(self, places: Array) -> bool:
        if len(places) == 1:
            return False
        line = at.steps_of(places.reshape(len(places), -1)[:, 0])
        return bool(line[1] < line[0])

    def _given(
        self, given: at.Frame, node: Made, layer: Any, moment: int | None
    ) -> tuple[Array, list[Array]]:
        """The places of what a layer gives (S, N, D * H), and of its last states (D, N, H)."""
        whole = self.back(given, node, (layer.output_size,), moment)
        h, H, D = layer.h_size, layer.hidden_size, layer.directions
        y = whole[..., : D * h]

        def last(part: Array, size: int) -> Array:
            ends = [
                part[0 if layer.reverse or d else -1][:, d * size : (d + 1) * size]
                for d in range(D)
            ]
            return np.stack(ends)

        states = [last(y, h)]
        if layer.has_cell_state:
            states.append(last(whole[..., D * h :], H))
        return y, states

    def _start(
        self,
        states: Sequence[Operand | None],
        own: Sequence[Array],
        begins: bool,
        single: bool,
    ) -> tuple[dict[str, Array], list[str], str] | None:
        """Tensors or rows that a layer starts from; None where it starts as a stream does.

        Parameters
        ----------
        own : sequence of int array (D, N, H)
            The states that the layer itself has left before.
        begins : bool
            Whether this is the first step there is.
        """
        given = [self._state(state, like) for state, like in zip(states, own, strict=True)]
        if all(g is None for g in given):
            if single and not self.steps:
                raise ConvertError(
                    "a recurrent layer runs over a single step, not over time, and its state is no "
                    "input: each call starts anew"
                )
            return None if begins else ({}, [], "")
        if all(isinstance(g, Value) for g in given):
            values = [g.places for g in given if isinstance(g, Value)]
            if all(np.array_equal(a, b) for a, b in zip(values, own, strict=True)):
                return None
            if self._are_states(values):
                return None
        if not any(isinstance(g, Value) for g in given):
            arrays = [
                np.zeros(o.shape) if g is None else np.asarray(g)
                for g, o in zip(given, own, strict=True)
            ]
            if all((a == a[:, :1]).all() for a in arrays):
                names = ("h_0", "c_0")
                more = {
                    name: self.derived(a, "first of batch", lambda s: s[:, 0])
                    for name, a in zip(names, arrays, strict=False)
                }
                return more, [], "learned"
        rows = [
            self._state_row(np.full(o.shape, FILL) if g is None else self.places(g))
            for g, o in zip(given, own, strict=True)
        ]
        return {}, rows, "given"

    def _state(self, state: Operand | None, like: Array) -> Operand | None:
        """A state of the shape of one (D, N, H); None if it is zeros."""
        if state is None:
            return None
        shape = state.shape if isinstance(state, Value) else np.shape(state)
        if shape != like.shape:
            if len(shape) != 3 or shape[1] not in (1, like.shape[1]) or shape[2] != like.shape[2]:
                raise SizeError(
                    f"a state of {shape} is given where one of {like.shape} is taken",
                    shape[-1] if shape else 1,
                    like.shape[-1],
                )
            state = self.move(lambda p: np.broadcast_to(p, like.shape), state)
        if isinstance(state, Value):
            return None if (state.places == FILL).all() else state
        return state if np.any(state) else None

    def _are_states(self, values: Sequence[Array]) -> bool:
        """Whether arrays are of states whose next values are not known in this run."""
        numbers = np.unique(np.concatenate([at.row_of(v[v != FILL]) for v in values]))
        return bool(len(numbers)) and all(
            self.rows.of(int(n)).name in self.states_of_inputs for n in numbers
        )

    # States of which this run does not know what they become.
    states_of_inputs: frozenset[str] = frozenset()

    def _state_row(self, places: Array) -> str:
        """The row (D, positions ..., H), or without D, of a state (D, N, H)."""
        moved = places.transpose(1, 0, 2)
        given = self.frame([moved], core=2)
        apart = given.apart(moved)
        wanted = at.columns(np.moveaxis(apart, -2, 2), batch=self.batch, counts=self.rows.counts)
        free = [n for n in given.row if n != 1]
        depth = [places.shape[0]] if places.shape[0] > 1 else []
        if (wanted.lag != at.ANY).any():
            wanted = self._last_of(wanted)
        return self.rows.read(wanted, (*depth, *free, places.shape[2]), self.layer_name)

    def _last_of(self, wanted: at.Columns) -> at.Columns:
        """The last row of each of whose last step numbers are, in place of these."""
        return self.folded(wanted) if self.steps else wanted._replace(steps=1)

    # Along positions

    def _along_positions(
        self,
        kind: str,
        places: Array,
        fields: dict[str, Any],
        tensors: dict[str, Array],
        states: Sequence[Operand | None],
    ) -> tuple[Value, list[Value]]:
        moved = places.swapaxes(0, 1)
        given = self.frame([moved], core=2)
        reads, moment = self.reads(given, [moved], core=2)
        fields = fields | {"along": "positions"}
        layer = KINDS[kind](self.layer_name, **fields)
        S, N = places.shape[:2]
        sizes = (layer.h_size, layer.hidden_size)[: 1 + layer.has_cell_state]
        likes = [np.empty((layer.directions, N, size), np.int8) for size in sizes]
        starts = [self._state(s, like) for s, like in zip(states, likes, strict=True)]
        if S == 1 and all(s is None for s in starts):
            self.note(
                f"{self.layer_name!r:.200} ({kind.upper()}) runs over a single step and starts "
                f"anew in each: its state is no input, and nothing is remembered"
            )
        if any(s is not None for s in starts):
            layer = KINDS[kind](self.layer_name, **fields, initial_state="given")
            arrays = [
                np.full(like.shape, FILL) if s is None else self.places(s)
                for s, like in zip(starts, likes, strict=True)
            ]
            core = [
                a.transpose(1, 0, 2)[:, 0] if len(a) == 1 else a.transpose(1, 0, 2) for a in arrays
            ]
            frames = self.frame([moved.reshape(N, -1), *(c.reshape(N, -1) for c in core)], core=1)
            reads, moment = self._read_all(frames, [moved, *core])
            given = frames
        node = self.rows.node(layer, reads, tensors)
        whole = self.back(given, node, (S, layer.output_size), moment).swapaxes(0, 1)
        h, H, D = layer.h_size, layer.hidden_size, layer.directions

        def last(part: Array, size: int) -> Value:
            ends = [
                part[0 if layer.reverse or d else -1][:, d * size : (d + 1) * size]
                for d in range(D)
            ]
            return Value(np.stack(ends))

        y = whole[..., : D * h]
        ends = [last(y, h)] + ([last(whole[..., D * h :], H)] if layer.has_cell_state else [])
        return Value(y), ends

    def _read_all(self, given: at.Frame, arrays: Sequence[Array]) -> tuple[list[str], int | None]:
        """Rows of arrays (N, ...), of which each has axes of its own behind the first."""
        reads, moments = [], []
        for array in arrays:
            names, moment = self.reads(given, [array], core=array.ndim - 1)
            reads += names
            moments.append(moment)
        if len(set(moments)) > 1 and None in moments:
            raise ConvertError("a state of one step meets every step of an array")
        return reads, moments[0]
