"""Recurrent layers of Keras as ours: their directions, states and masks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import (
    FIXED,
    Array,
    Builder,
    Site,
    Value,
    WholeSequenceError,
    shown,
)
from fastlstm.sources.keras.cells import CELLS, Cell, cell_of, cells_of
from fastlstm.sources.keras.config import Entry, Options
from fastlstm.sources.keras.file import Weights
from fastlstm.sources.keras.rows import features

__all__ = ["RECURRENT", "flipped"]

_LAYERS = ("LSTM", "GRU", "SimpleRNN", "RNN", "CuDNNLSTM", "CuDNNGRU")
_MERGES = {"sum": "add", "mul": "multiply", "ave": "add"}


@dataclass(frozen=True)
class _Direction:
    """A recurrent layer, of one cell or of several, each of which reads the one before."""

    cells: list[Cell]
    sequences: bool
    states: bool
    backwards: bool = False
    stateful: bool = False
    zeros: bool = False

    @property
    def units(self) -> int:
        return self.cells[-1].units


def _direction(
    model: Builder, entry: Entry, options: Options, weights: Weights, size: int
) -> _Direction:
    made = _Direction(
        cells=cells_of(model, entry, options, weights, size),
        sequences=options.flag("return_sequences", False),
        states=options.flag("return_state", False),
        backwards=options.flag("go_backwards", False),
        stateful=options.flag("stateful", False),
        zeros=options.flag("zero_output_for_mask", False),
    )
    options.must_be("time_major", False, ": the batch comes first")
    options.finish()
    return made


def _states_of(site_inputs: Sequence[Any], named: Any) -> list[Any]:
    """The initial states that a recurrent layer is called with."""
    given = named.get("initial_state")
    listed = given if isinstance(given, list | tuple) else [] if given is None else [given]
    return [*site_inputs[1:], *listed]


class _Run:
    """One recurrence, of one or two directions, on the input of a call."""

    def __init__(self, model: Builder, site: Site, ways: list[_Direction]) -> None:
        self.model, self.site, self.ways = model, site, ways
        self.value = _sequence(model, site)
        self.given = _states_of(site.inputs, site.named)
        # One position, and a state that the caller hands from call to call: a step of time.
        first = self.value
        alone = not (first.timed or first.mask or first.lead) and first.own[0] == 1
        self.is_step = site.own_state and alone
        if self.is_step:
            row = model.reshaped(f"{site.name}.step", first, first.own[1:])
            self.value = row.but(row.name, axes=(None, *row.own))
        expected = sum(cell.states for way in ways for cell in way.cells)
        if self.given and len(self.given) != expected:
            raise ConvertError(
                f"{site.what} is called with {len(self.given)} initial states; expected "
                f"{expected}, or none"
            )
        for one in self.given:
            if not isinstance(one, Value):
                raise ConvertError(
                    f"{site.what} starts from {one!r:.80}; expected what another layer gives"
                )
        if self.value.timed and any(state.folded for state in self.given):
            raise WholeSequenceError(
                f"{site.what} starts from what another layer makes of a whole sequence; expected "
                f"two models: one of all up to that, and one that is given its states by "
                f"keras.Input; or a fixed number of steps"
            )
        if ways[0].stateful and not self.value.timed:
            raise ConvertError(
                f"{site.what} is stateful, and goes over positions of one step, whose state does "
                f"not go on from call to call here; expected a sequence over time"
            )

    def layer(
        self, name: str, tensors: str, value: Value, cells: list[Cell], reverse: bool, index: int
    ) -> tuple[Value, list[Value]]:
        """Rows and states of one layer, of as many directions as there are cells.

        `index` is the first of its initial states.
        """
        model, site, first = self.model, self.site, cells[0]
        own_state = site.own_state and value.timed
        used = max(site.used) > 0 or (site.own_state and not own_state)
        wants_c = first.kind == "LSTM" and used
        options: dict[str, Any] = first.options | {"bidirectional": len(cells) == 2}
        if first.kind == "SimpleRNN":
            options["nonlinearity"] = first.functions[0]
            options["nonlinearity_reverse"] = cells[1].functions[0] if len(cells) == 2 else ""
        else:
            options["activations"] = sum((cell.functions for cell in cells), ())
        if wants_c:
            options["cell_output"] = True
        starts: list[Value] = []
        if self.given and not own_state:
            options["initial_state"] = "given"
            starts = self._starts(name, value, cells, index)
        reads = [value] + ([value.mask.value] if value.mask else []) + starts
        kind: Any = {"LSTM": spec.LSTM, "GRU": spec.GRU, "SimpleRNN": spec.RNN}[first.kind]
        layer = kind(
            *(model.unique(name), value.own[-1], first.units),
            **options,
            along="time" if value.timed else "positions",
            reverse=reverse and len(cells) == 1,
            hold=value.mask is not None,
            weights=tensors,
        )
        arrays: dict[str, Array] = {}
        for cell, suffix in zip(cells, ("_l0", "_l0_reverse"), strict=False):
            arrays |= {n + suffix: array for n, array in cell.tensors.items()}
        made = model.add(layer, *reads, **arrays)
        whole = value.of_row(made, (*value.own[:-1], layer.output_size))
        if not used:
            return whole, []
        return self._states(name, whole, cells, reverse, wants_c)

    def _starts(self, name: str, value: Value, cells: list[Cell], index: int) -> list[Value]:
        """h and c of all directions, as the layer reads them."""
        states = cells[0].states
        found = []
        for n in range(states):
            each = [self.given[index + n + d * states] for d in range(len(cells))]
            for one in each:
                if one.own != (cells[0].units,):
                    raise ConvertError(
                        f"{self.site.what} starts from "
                        f"{shown(one.axes)}; "
                        f"expected ({cells[0].units},), its units"
                    )
            if len(each) == 1:
                found.append(each[0])
            else:
                made, row = self.model.moved(
                    f"{name}.{'hc'[n]}_0", each, lambda *places: np.stack(places)
                )
                found.append(each[0].of_row(made, row))
        return found

    def _states(
        self, name: str, whole: Value, cells: list[Cell], reverse: bool, wants_c: bool
    ) -> tuple[Value, list[Value]]:
        """What stands for h, and the last states of each direction, of a layer that gives c too."""
        model, units, n = self.model, cells[0].units, len(cells)
        parts = {"h": whole}
        if wants_c:
            h, c = (
                model.moved(f"{name}.{s}", [whole], lambda x, a=a: x[..., a : a + n * units])
                for s, a in (("h", 0), ("c", n * units))
            )
            parts = {"h": whole.of_row(h[0], h[1][len(whole.lead) :])}
            parts["c"] = whole.of_row(c[0], c[1][len(whole.lead) :])
        states = []
        for d in range(n):
            end = "first" if reverse != (d == 1) else "last"
            for s, value in parts.items():
                own = value
                side = f"{name}.{s}" + ("_reverse" if d else "")
                if n == 2:
                    own = _half(model, f"{side}.rows", value, d)
                if self.is_step:
                    states.append(own.but(own.name, axes=own.own))
                else:
                    states.append(model.folded(f"{side}_n", end, own))
        return parts["h"], states

    def stack(self, name: str, d: int, reverse: bool) -> tuple[Value, list[Value]]:
        """Rows and states of one direction."""
        way, at, states = self.ways[d], self.value, list[Value]()
        index = d * sum(cell.states for cell in way.cells)
        tensors = self.site.tensors + name.removeprefix(self.site.name)
        for number, cell in enumerate(way.cells, 1):
            part = f".{number}" if len(way.cells) > 1 else ""
            rows, more = self.layer(name + part, tensors + part, at, [cell], reverse, index)
            states += more
            index += cell.states
            at = rows.but(rows.name, mask=self.value.mask)
        return at, states


def _sequence(model: Builder, site: Site) -> Value:
    """The sequence that it reads: over time, or over the first axis of a step."""
    value = site.inputs[0]
    features(site, value)
    if len(value.axes) != 2:
        raise ConvertError(
            f"{site.what} reads {shown(value.axes)}; expected a sequence, (steps, features): a "
            f"recurrent layer before it gives one with return_sequences=True"
        )
    return model.padded(value)


def _half(model: Builder, name: str, value: Value, d: int) -> Value:
    size = value.own[-1] // 2
    made, row = model.moved(name, [value], lambda x: x[..., d * size : (d + 1) * size])
    return value.of_row(made, row[len(value.lead) :])


def _zeroed(model: Builder, name: str, rows: Value, value: Value) -> Value:
    """Zero where steps do not count."""
    assert value.mask
    return model.arithmetic(name, "multiply", rows, value.mask.value)


def _one_way(model: Builder, site: Site) -> tuple[Value, ...]:
    size = features(site, site.inputs[0])
    way = _direction(model, site.entry, site.options, site.weights, size)
    return _in_one_way(model, site, way)


def _cell_alone(model: Builder, site: Site) -> tuple[Value, ...]:
    """A cell that is called as a layer: one step, and the states behind it."""
    value, size = site.inputs[0], features(site, site.inputs[0])
    if value.timed or len(value.own) != 1:
        raise ConvertError(f"{site.what} reads {shown(value.axes)}; expected (features,)")
    cell = cell_of(model, site.entry, site.options, site.weights, size)
    row = model.reshaped(f"{site.name}.row", value, (1, size))
    site = dataclasses.replace(site, inputs=[row, *site.inputs[1:]])
    way = _Direction([cell], sequences=False, states=True)
    return _in_one_way(model, site, way)


def _in_one_way(model: Builder, site: Site, way: _Direction) -> tuple[Value, ...]:
    run = _Run(model, site, [way])
    value = run.value
    reverse = way.backwards != value.backwards
    rows, states = run.stack(site.name, 0, reverse)
    if way.zeros and value.mask:
        rows = _zeroed(model, f"{site.name}.zeroed", rows, value)
    if run.is_step:
        own = (1, *rows.own) if way.sequences else rows.own
        rows = model.reshaped(f"{site.name}.axes", rows.but(rows.name, axes=rows.own), own)
    elif not way.sequences:
        rows = model.folded(f"{site.name}.last", "first" if reverse else "last", rows)
    elif way.backwards:
        if value.timed:
            if value.mask:
                raise WholeSequenceError(
                    f"{site.what} has go_backwards=True, and skips steps that a mask marks; {FIXED}"
                )
            rows = dataclasses.replace(rows, backwards=not value.backwards)
        else:
            rows = flipped(model, f"{site.name}.flipped", rows)
    mask = value.mask if way.sequences else None
    _note_stateful(model, site, way)
    rows = rows.but(rows.name, mask=mask)
    return (rows, *states) if way.states else (rows,)


def flipped(model: Builder, name: str, value: Value) -> Value:
    """The positions of the first axis that a layer sees, the last first."""
    n = len(value.lead)
    made, row = model.moved(name, [value], lambda x: np.flip(x, n))
    return value.of_row(made, row[n:])


def _note_stateful(model: Builder, site: Site, way: _Direction) -> None:
    if way.stateful:
        model.notes.append(
            f"{site.what} is stateful: in Keras its state goes on from call to call, here a call "
            f"returns it and the next one takes it"
        )


def _bidirectional(model: Builder, site: Site) -> tuple[Value, ...]:
    options, size = site.options, features(site, site.inputs[0])
    merge = options.take("merge_mode", None)
    if merge not in (None, "concat", *_MERGES):
        raise options.refused("merge_mode", merge, f"one of concat, {', '.join(_MERGES)} or none")
    first, second = options.take("layer"), options.take("backward_layer", None)
    forward = Entry(first, site.entry.version)
    backward = Entry(first if second is None else second, site.entry.version)
    for inner in (forward, backward):
        inner.refuse_foreign()
        if inner.class_name not in _LAYERS:
            raise ConvertError(
                f"{site.what} is around {inner.what}; expected one of {', '.join(_LAYERS)}"
            )
    way = _direction(model, forward, forward.options(), site.weights.inside("forward_layer"), size)
    back = _direction(
        model, backward, backward.options(), site.weights.inside("backward_layer"), size
    )
    if (
        any(getattr(way, what) != getattr(back, what) for what in ("sequences", "states"))
        or way.stateful != back.stateful
        or (way.backwards, back.backwards) != (False, second is not None)
    ):
        raise ConvertError(
            f"{site.what} is around {forward.what} and, backwards, {backward.what}, which do not "
            f"give the same, or do not run forwards and backwards; expected two alike, the second "
            f"one with go_backwards=True"
        )
    site = dataclasses.replace(site, own_state=False)
    run = _Run(model, site, [way, back])
    value = model.in_order(site, run.value)
    halves, states = _directions(model, site, run, way, back)
    zero = value.mask and way.sequences and _forces_zeros(model.version)
    if zero:
        halves = [_zeroed(model, f"{site.name}.zeroed", half, value) for half in halves]
    if not way.sequences:
        halves = _ends(model, site, halves)
    mask = value.mask if way.sequences else None
    made = _merged(model, site, merge, halves)
    made = [one.but(one.name, mask=mask) for one in made]
    _note_stateful(model, site, way)
    return (*made, *states) if way.states else tuple(made)


def _directions(
    model: Builder, site: Site, run: _Run, way: _Direction, back: _Direction
) -> tuple[list[Value], list[Value]]:
    """Rows of both directions, in one value where one layer has both; and their states."""
    one, other = way.cells[0], back.cells[0]
    if len(way.cells) == len(back.cells) == 1 and (one.kind, one.units, one.options) == (
        other.kind,
        other.units,
        other.options,
    ):
        rows, states = run.layer(site.name, site.tensors, run.value, [one, other], False, 0)
        return [rows], states
    first, some = run.stack(f"{site.name}.forward", 0, False)
    second, more = run.stack(f"{site.name}.backward", 1, True)
    return [first, second], [*some, *more]


def _ends(model: Builder, site: Site, halves: list[Value]) -> list[Value]:
    """The last row of the forward direction and the first of the backward one."""
    ends = [
        model.folded(f"{site.name}.{end}", end, halves[-1] if d else halves[0])
        for d, end in enumerate(("last", "first"))
    ]
    if len(halves) == 2:
        return ends
    size = ends[0].own[-1] // 2
    name, row = model.moved(
        f"{site.name}.final",
        ends,
        lambda a, b: np.concatenate([a[..., :size], b[..., size:]], axis=-1),
    )
    return [ends[0].of_row(name, row[len(ends[0].lead) :])]


def _merged(model: Builder, site: Site, merge: str | None, halves: list[Value]) -> list[Value]:
    if merge == "concat":
        if len(halves) == 1:
            return halves
        name, row = model.moved(
            f"{site.name}.merge", halves, lambda a, b: np.concatenate([a, b], axis=-1)
        )
        return [halves[0].of_row(name, row[len(halves[0].lead) :])]
    if len(halves) == 1:
        halves = [
            _half(model, f"{site.name}.{side}", halves[0], d)
            for d, side in enumerate(("forward", "backward"))
        ]
    if merge is None:
        return halves
    name = f"{site.name}.merge"
    if merge == "ave":
        total = model.arithmetic(f"{name}.total", "add", *halves)
        return [model.activate(name, total, ("affine(0.5, 0.0)",))]
    return [model.arithmetic(name, _MERGES[merge], *halves)]


def _forces_zeros(version: str) -> bool:
    """Whether a bidirectional layer gives zero where steps do not count, instead of what was last.

    TensorFlow's Keras 2 and Keras 3 do, the Keras 2 of its own up to 2.3 does not.
    """
    old = re.match(r"2\.[0-3]\.", version)
    return not old or version.endswith("-tf")


RECURRENT: dict[str, Callable[[Builder, Site], tuple[Value, ...]]] = {
    **dict.fromkeys(_LAYERS, _one_way),
    **dict.fromkeys(CELLS, _cell_alone),
    "Bidirectional": _bidirectional,
}
