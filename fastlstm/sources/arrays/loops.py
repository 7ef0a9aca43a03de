"""A loop over the steps of a sequence, as what each step computes from the step before.

A program that loops over time computes a row of step 0 from what it starts with, one of step 1 from
that, one of step 2 from that again. Soon what is computed is what was computed before with
everything a step later, and that says what every step computes: a row that reads itself a step ago.
Whether it starts as the loop does is tried out in numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays.rows import Made, Rows

__all__ = ["Loops"]

Array = npt.NDArray[Any]

# A turn, the one before and the one before that have read what turns make: what a row reads of the
# first turn may be computed otherwise, of what the loop starts with.
TURN = 3
STEPS = 6  # that are tried out
TOLERANCE = 1e-9
MOST_OUTPUTS = 48  # of one graph that is tried out


class Loops:
    """Finds loops among the rows of one run.

    Parameters
    ----------
    rows : Rows
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._made_at: dict[str, int] = {}
        self._alike: dict[Any, list[str]] = {}
        self._every: set[str] = set()  # rows of every step that loops gave
        # (row, step) -> the row of every step of which that is one.
        self.same: dict[tuple[str, int], str] = {}
        # The same of rows that are of every step themselves, beside which these may stand.
        self.begins: dict[tuple[str, int], str] = {}
        self.first: dict[str, str] = {}  # row of every step -> the row of the first turn

    def row(self, made: Made, moment: int) -> Made:
        """A row that was computed for one step alone; that of every step, if a loop gives it."""
        if made.name in self._made_at or made.name in self._every or made.node is None:
            return made
        self._made_at[made.name] = moment
        layer = dataclasses.replace(made.node.layer, name="x", weights="", tensor_names=())
        key = (layer, tuple(map(id, made.tensors.values())), len(made.node.reads))
        before = [name for name in self._alike.get(key, []) if self._made_at[name] == moment - 1]
        self._alike.setdefault(key, []).append(made.name)
        if moment != TURN or not before:
            return made
        read = self._read_before(made.name)
        for name in before:
            if name in read:
                rolled = _rolled(self._rows, self._made_at, name, made.name)
                if rolled is not None:
                    self._note(rolled)
                    return self._rows.row(rolled.names[made.name])
        return made

    def _read_before(self, name: str) -> set[str]:
        """The rows that a row depends on through a step before."""
        found: set[str] = set()
        for row in _behind(self._rows, [name]):
            node = self._rows.row(row).node
            if node is not None and isinstance(node.layer, spec.Delay):
                found |= _behind(self._rows, node.reads)
        return found

    def _note(self, turn: _Turn) -> None:
        self._every |= turn.turning
        for members in turn.classes():
            rolled = turn.names[members[-1]]
            for name, moment in turn.moments(members):
                self.same[name, moment] = rolled
            self.first[rolled] = members[0]
        for name, rolled in turn.names.items():
            if name != rolled and name in self._made_at:
                self.same[name, self._made_at[name]] = rolled
        self.begins |= turn.begins
        # What was made of the rows of turns is made of those of every step too.
        for known in (self.same, self.same | self.begins):
            for name, moment in list(self._made_at.items()):
                if (name, moment) in known:
                    continue
                if (made := self._of_every(name, moment, known)) != name:
                    kept = self.same if known is self.same else self.begins
                    kept[name, moment] = made

    def _of_every(self, name: str, moment: int, known: Mapping[tuple[str, int], str]) -> str:
        """A row of one step, as it is made of rows of every step, of which some are known."""
        if every := known.get((name, moment)):
            return every
        made = self._rows.row(name)
        if moment < 0 or name in self._every or made.node is None or not made.node.reads:
            return name
        layer, reads = made.node.layer, made.node.reads
        if isinstance(layer, spec.Delay) and layer.steps == 1:
            before = self._of_every(reads[0], moment - 1, known)
            if before == reads[0]:
                return name
            return self._rows.before(self._rows.row(before), 1)
        if layer.over_time:
            return name
        rows = [self._of_every(read, moment, known) for read in reads]
        if rows == [*reads]:
            return name
        return self._rows.node(layer, rows, made.tensors, made.steps).name


def _behind(rows: Rows, names: Any) -> set[str]:
    """Rows, and all that they depend on."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            node = rows.row(name).node
            left += node.reads if node is not None else ()
    return found


def _rolled(rows: Rows, made_at: Mapping[str, int], one: str, two: str) -> _Turn | None:
    try:
        return _Turn(rows, made_at, one, two).rolled()
    except _Different:
        return None


class _Turn:
    """Two turns of a loop: a row of one, and that of the next which is computed in the same way."""

    def __init__(self, rows: Rows, made_at: Mapping[str, int], one: str, two: str) -> None:
        self.rows, self._made_at = rows, made_at
        self.begins: dict[tuple[str, int], str] = {}
        self._starts: list[tuple[str, str]] = []  # a row that may be another, a turn before
        self.after: dict[str, str] = {}  # row -> the same of the next turn
        self.names: dict[str, str] = {}  # row -> that of every step
        self._delayed: set[str] = set()
        self.turning: set[str] = set()  # rows of every step that are of the loop
        self._pair(one, two)
        self._root = two

    def _pair(self, one: str, two: str) -> None:
        """Note that a row is another one a turn later, and so what they read."""
        left = [(one, two, False)]
        while left:
            a, b, delayed = left.pop()
            if a == b or self.after.get(a) == b:
                continue
            if a in self.after or self._last(b) == a:
                if delayed:
                    continue
                raise _Different
            first, second = self.rows.row(a).node, self.rows.row(b).node
            if first is not None and second is not None:
                if isinstance(first.layer, spec.Delay) and isinstance(second.layer, spec.Delay):
                    left.append((first.reads[0], second.reads[0], True))
                    continue
                if self._alike(a, b):
                    self.after[a] = b
                    pairs = zip(first.reads, second.reads, strict=True)
                    left += [(p, q, delayed) for p, q in pairs]
                    continue
            # What the first turn reads of the step before is what the loop starts with.
            if not delayed:
                raise _Different
            if self.rows.row(a).shape == self.rows.row(b).shape:
                self._starts.append((a, b))

    def _alike(self, a: str, b: str) -> bool:
        """Whether two rows are of the same layer with the same tensors."""
        one, two = self.rows.row(a), self.rows.row(b)
        assert one.node is not None
        assert two.node is not None
        return (
            _plain(one.node.layer) == _plain(two.node.layer)
            and [*map(id, one.tensors.values())] == [*map(id, two.tensors.values())]
            and len(one.node.reads) == len(two.node.reads)
        )

    def classes(self) -> Iterator[list[str]]:
        """Rows that are the same of one turn after another, in order."""
        for name in self.after.keys() - set(self.after.values()):
            members = [name]
            while members[-1] in self.after:
                members.append(self.after[members[-1]])
            if members[-1] in self.names and members[-1] in self._made_at:
                yield members

    def moments(self, members: list[str]) -> Iterator[tuple[str, int]]:
        """Each of the rows of a class, and the step that it is of."""
        last = self._made_at[members[-1]]
        for ago, name in enumerate(reversed(members)):
            yield name, last - ago

    def _last(self, name: str) -> str:
        while name in self.after:
            name = self.after[name]
        return name

    def rolled(self) -> _Turn | None:
        """This turn, with its rows made of every step; None if it is no loop."""
        known = set(self.rows.made)
        try:
            self._every(self._root)
            self._begin()
            if self._agrees():
                return self
        except (ConvertError, ValueError, _Different):
            pass
        for name in set(self.rows.made) - known:
            self.rows.forget(name)
        return None

    def _changes(self, name: str) -> bool:
        """Whether a row is another one in each turn."""
        turned = set(self.after) | set(self.after.values())
        return bool(_behind(self.rows, [name]) & turned)

    def _every(self, name: str) -> str:
        """The row of every step of which a row is that of one turn."""
        last = self._last(name)
        if last in self.names:
            return self.names[last]
        if not self._changes(last):
            self.names[last] = last
            return last
        made = self.rows.row(last)
        assert made.node is not None
        layer = made.node.layer
        if isinstance(layer, spec.Delay):
            return self._before(layer, made.node.reads[0])
        if last not in self.after.values():
            reads = [self._every(read) for read in made.node.reads]
            self.names[last] = self.rows.node(layer, reads, made.tensors, made.steps).name
            self.turning.add(self.names[last])
            return self.names[last]
        chosen = self.rows.unique(layer.name)
        self.names[last] = chosen
        self.turning.add(chosen)
        row = Made(chosen, made.shape, made.steps, None, made.tensors)
        self.rows.add(row)
        reads = [self._every(read) for read in made.node.reads]
        row.node = dataclasses.replace(layer, name=chosen)(*reads)
        self.rows.remember(row)
        for member in (n for n in self.after if self._last(n) == last):
            self.names[member] = chosen
        return chosen

    def _before(self, layer: spec.Delay, read: str) -> str:
        every = self._every(read)
        if layer.steps != 1:
            raise _Different
        self._delayed.add(every)
        return self.rows.before(self.rows.row(every), 1)

    def _begin(self) -> None:
        """Have rows of the step before start as the loop does."""
        for name in self._delayed:
            start = self._start(name)
            if start is not None and start.any():
                self.rows.start(self.rows.row(name), start)

    def _start(self, name: str) -> Array | None:
        """What a row is before the first step; None if zeros, as those are that are handed on.

        A product that is made of such a row for the next step is what it is of zeros.
        """
        made = self.rows.row(name)
        if made.node is None or not isinstance(made.node.layer, spec.Linear | spec.Index):
            return None
        given: dict[str, Array] = {}
        for read in made.node.reads:
            row = self.rows.row(read)
            if row.steps and read not in self.turning:
                return None  # it is computed from an input too: a state itself
            if row.steps:
                start = self._start(read)
                given[read] = np.zeros(row.shape) if start is None else start
            else:
                given[read] = row.tensors["value"]
        inputs = {n: np.asarray(x, np.float64)[None, None] for n, x in given.items()}
        computed: Array = _computed({name: made}, inputs, {name: name})[name][0, 0]
        return computed

    def _agrees(self) -> bool:
        """Whether the rows of every step are those of the turns, in numbers."""
        rng = np.random.default_rng(0)
        wanted: dict[str, str] = {}
        checks = []
        for members in self.classes():
            every = self.names[members[-1]]
            for name, moment in self.moments(members):
                checks.append((name, every, moment))
                wanted |= {name: name, every: every}
        begun = self._begun()
        for one, every, _ in begun:
            wanted |= {one: one, every: every}
        nodes: dict[str, Made] = {}
        given = {}
        for name in _behind(self.rows, wanted):
            row = self.rows.row(name)
            if row.node is None or isinstance(row.node.layer, spec.Recurrent | spec.Embedding):
                random = rng.normal(size=(STEPS, 1, *row.shape))
                given[name] = np.zeros_like(random) if row.is_state else random
            else:
                nodes[name] = row
        made = _computed(nodes, given, wanted)

        def same(one: str, every: str, step: int) -> bool:
            pair = made[one][step, 0], made[every][step, 0]
            return bool(np.allclose(*pair, rtol=TOLERANCE, atol=TOLERANCE))

        if not checks or not all(same(*check) for check in checks):
            return False
        self.begins = {(one, step): every for one, every, step in begun if same(one, every, step)}
        return True

    def _begun(self) -> list[tuple[str, str, int]]:
        """Rows of the first turn that may be what every step has, and their step."""
        found = []
        for one, two in self._starts:
            step = self._made_at.get(one, self._made_at.get(two, 0) - 1)
            if step >= 0 and self._last(two) in self.names and self.names.get(one, one) == one:
                found.append((one, self.names[self._last(two)], step))
        return found


class _Different(Exception):  # noqa: N818
    """Two turns are not computed in the same way."""


def _plain(layer: spec.Layer) -> spec.Layer:
    return dataclasses.replace(layer, name="x", weights="", tensor_names=())


def _computed(
    nodes: dict[str, Made], given: dict[str, Array], outputs: dict[str, str]
) -> dict[str, Array]:
    """Rows of a few steps, by their equations in float64."""
    if len(outputs) > MOST_OUTPUTS:
        every = [*outputs]
        parts = [every[:MOST_OUTPUTS], every[MOST_OUTPUTS:]]
        first, rest = (_computed(nodes, given, {n: outputs[n] for n in part}) for part in parts)
        return first | rest
    tensors: dict[str, Array] = {}
    made = []
    for name, row in nodes.items():
        assert row.node is not None
        layer = dataclasses.replace(row.node.layer, weights=name, tensor_names=())
        names = layer.names()
        tensors |= {names[s]: np.asarray(a, np.float64) for s, a in row.tensors.items()}
        made.append(layer(*row.node.reads))
    read = {r for node in made for r in node.reads} | set(outputs.values())
    inputs = tuple(spec.Input(n, x.shape[2:]) for n, x in given.items() if n in read)
    if not inputs:
        inputs = (spec.Input("none", (1,)),)
        given = {"none": np.zeros((1, 1, 1))}
    graph = spec.Graph(inputs, tuple(made), outputs)
    used = {one.name: given[one.name] for one in inputs}
    return reference.forward(graph, tensors, used, dtype=np.float64)
