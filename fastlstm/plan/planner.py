"""The planner: lowers a graph node by node, and has what lowerings of layers need.

The lowering of a kind of layer is a function ``lower(planner, node, views) -> View`` of the views
that the node reads, whose moving rows are met already: they are on one line. It adds operations
whose fields hold :class:`Stored`, :class:`Numbers`, :class:`Matrix` and arrays instead of numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.view import Matrix, Numbers, Places, Step, Stored, View, moved
from fastlstm.reduced import Reduced, Tensors
from fastlstm.reference.products import weight_of
from fastlstm.reference.stream import WITHIN_STEP

__all__ = ["Lower", "Planner"]

Array = npt.NDArray[Any]
Lower = Callable[["Planner", spec.Node, list[View]], View]


class Planner:
    """A plan under way.

    Parameters
    ----------
    graph : spec.Graph
    facts : spec.Facts
        What ``spec.check`` finds of it.
    tensors : mapping of str to array or Reduced
    lowers : mapping of type to function
        Kind of layer -> its lowering.

    Attributes
    ----------
    begin, steps : list of Step
        What runs when a sequence starts, and what runs for each chunk.
    parts : dict of str to op.Part
        Of the state: those of ``facts.state`` in its order, and what the vocabulary does not list.
        Every element belongs to one of them, but for those that count where a ring begins.
    initial : list of (int, Numbers)
        Where a new stream's state is not 0, from which element on.
    inputs, outputs : list of Stored
        Those of the graph; outputs when all its nodes are lowered.
    state_size, lines : int
    """

    def __init__(
        self,
        graph: spec.Graph,
        facts: spec.Facts,
        tensors: Tensors,
        lowers: Mapping[type[spec.Layer], Lower],
    ) -> None:
        self.graph, self.facts, self.tensors, self.lowers = graph, facts, tensors, lowers
        self.begin: list[Step] = []
        self.steps: list[Step] = []
        self.section = self.steps
        self.views: dict[str, View] = {}
        self.parts: dict[str, op.Part] = {}
        self.initial: list[tuple[int, Numbers]] = []
        self.inputs: list[Stored] = []
        self.outputs: list[Stored] = []
        self.state_size, self.lines = 0, 1
        self._lines: dict[Any, int] = {}
        self._moves: dict[Any, Stored] = {}
        # A fold may have read any number of rows; of others so many matter that one element has it.
        counts = {
            f"{node.name}.count": 1 + isinstance(node.layer, spec.Fold)
            for group in facts.groups
            for node in group.nodes
        }
        for name, (rows, *axes) in facts.state.items():
            if name in counts:
                part = op.Part("count", self.elements(counts[name]), counts[name], 1)
            else:
                count = math.prod(axes)
                part = op.Part("plain", self.elements(rows * count), rows, count)
            self.parts[name] = part
        self.readers = Counter(graph.outputs.values())
        for group in facts.groups:
            for node in group.nodes:
                self.readers.update(node.reads)
        for number, given in enumerate(graph.inputs):
            count, line = math.prod(given.shape), -1 if given.held else 0
            stored = Stored(count, line, "input", number, given.tokens)
            self.views[given.name] = View.of(stored, given.shape)
            self.inputs.append(stored)

    # The nodes

    def lower(self) -> None:
        """Lower all nodes of the graph, but those whose rows no call of a stream can give.

        Where no output needs the end of the sequence, nobody reads what does.
        """
        rows, ahead = self.facts.rows, bool(self.facts.looks_ahead)
        for group in self.facts.groups:
            if rows[group.nodes[0].name].looks_ahead and not ahead:
                continue
            views = self._met(group)
            if group.loops:
                self._loop(group, views)
                continue
            (node,) = group.nodes
            self._lower(node, views)

    def _lower(self, node: spec.Node, met: Mapping[str, View]) -> None:
        views = [self._read(met, name) for name in node.reads]
        # What moves numbers stays a view also of constants: of a tensor it copies nothing.
        if views and not isinstance(node.layer, spec.Index) and all(v.constant for v in views):
            self.views[node.name] = self._of_constants(node, views)
        else:
            self.views[node.name] = self.lowers[type(node.layer)](self, node, views)

    def _of_constants(self, node: spec.Node, views: Sequence[View]) -> View:
        """What a layer makes of numbers that never change, in float64."""
        w = {
            suffix: weight_of(self.tensors[name], np.float64)
            for suffix, name in node.layer.names().items()
        }
        with np.errstate(all="ignore"):
            arrays = [view.array[None, None] for view in views]
            y = WITHIN_STEP[type(node.layer)](node.layer, w, *arrays)
        return self.constant(np.asarray(y[0, 0], np.float64))

    def _read(self, views: Mapping[str, View], name: str) -> View:
        view = views.get(name, self.views[name])
        return dataclasses.replace(view, alone=view.alone and self.readers[name] == 1)

    def _loop(self, group: spec.Group, met: Mapping[str, View]) -> None:
        """Delays give their rows first, and take those of the same step at the end."""
        delays = [node for node in group.nodes if isinstance(node.layer, spec.Delay)]
        line = max(view.line for view in met.values())
        loop = Step(op.Loop(0))
        self.steps.append(loop)
        self.section = loop.body
        for node in delays:
            layer: Any = node.layer
            made = self.store(math.prod(layer.shape), line)
            part = self.ring(f"{node.name}.x")
            self.start(node, part, self._starts(node, met))
            self.add(op.Recall(made, part.rows, part.offset, part.position))
            self.views[node.name] = View.of(made, layer.shape)
        for node in group.nodes:
            if node not in delays:
                self._lower(node, met)
        for node in delays:
            part = self.parts[f"{node.name}.x"]
            taken = self.in_order(self._read(met, node.reads[0]))
            self.add(op.Remember(taken, part.rows, part.offset, part.position))
        self.section = self.steps

    def _starts(self, node: spec.Node, met: Mapping[str, View]) -> list[View]:
        names = node.reads[len(node.reads) - node.layer.starts :]
        return [self._read(met, name) for name in names]

    # Rows that meet

    def _met(self, group: spec.Group) -> dict[str, View]:
        """The views that a group reads of what is not its own, on one line."""
        inside = {node.name for node in group.nodes}
        names = [n for node in group.nodes for n in node.reads if n not in inside]
        views = {name: self.views[name] for name in dict.fromkeys(names)}
        lines = {view.line for view in views.values()} - {-1}
        if len(lines) < 2:
            return views
        waiting = self._waiting(group)
        sources: dict[Stored, int] = {}
        for name, view in views.items():
            for source in view.sources:
                if source.line >= 0:
                    sources[source] = max(sources.get(source, 0), waiting[name])
        line = self.line("meet", frozenset((s.line, n) for s, n in sources.items()))
        new = {source: self.store(source.count, line) for source in sources}
        heads = self.elements(2 * len(sources))
        queues = [op.NONE] * len(sources)
        for i, (source, n) in enumerate(sources.items()):
            if n:
                name, head = f"{group.nodes[0].name}.queue.{i}", heads + 2 * i
                ring = op.Part("ring", self.elements(n * source.count), n, source.count, head)
                queues[i] = self.beside(name, ring)
                self.beside(f"{name}.count", op.Part("count", head + 1, 1, 1))
        self.add(op.Meet(list(sources), list(new.values()), list(sources.values()), queues, heads))
        return {
            name: dataclasses.replace(view, sources=tuple(new.get(s, s) for s in view.sources))
            for name, view in views.items()
        }

    def _waiting(self, group: spec.Group) -> dict[str, int]:
        """Name of each value that a group reads -> the most of its rows that wait for others."""
        most: dict[str, int] = {}
        for node in group.nodes:
            for name, rows in zip(node.reads, self.facts.queues[node.name], strict=True):
                most[name] = max(rows, most.get(name, 0))
        return most

    def line(self, *key: Any) -> int:
        """The line of what makes another number of rows; those of the same key make as many."""
        if key not in self._lines:
            self._lines[key] = self.lines
            self.lines += 1
        return self._lines[key]

    # State

    def elements(self, count: int) -> int:
        """More elements of the state; the offset of the first."""
        self.state_size += count
        return self.state_size - count

    def offset(self, name: str) -> int:
        """The offset of a part of the state, -1 if there is no such part."""
        return self.parts[name].offset if name in self.parts else op.NONE

    def ring(self, name: str, order: Places | None = None) -> op.Part:
        """A part that is a ring, of rows whose numbers lie in some order; with what counts it."""
        if self.parts[name].part != "ring":
            self.parts[name] = self.kept(name, order)._replace(
                part="ring", position=self.elements(1)
            )
        return self.parts[name]

    def kept(self, name: str, order: Places | None) -> op.Part:
        """A part whose rows lie in some order."""
        kept: Any = op.NONE if order is None else order
        self.parts[name] = self.parts[name]._replace(order=kept)
        return self.parts[name]

    def beside(self, name: str, part: op.Part) -> int:
        """Have a part that the vocabulary does not list, under a name that is free; its offset."""
        while name in self.parts:
            name += "'"
        self.parts[name] = part
        return part.offset

    def counted(self, name: str) -> int:
        """The offset of the two digits that count the rows which a node has read."""
        offset = self.offset(f"{name}.count")
        if offset != op.NONE:
            return offset
        return self.beside(f"{name}.count", op.Part("count", self.elements(2), 2, 1))

    def row_beside(self, name: str, count: int) -> int:
        """The offset of a row of numbers that the vocabulary does not list."""
        return self.beside(name, op.Part("plain", self.elements(count), 1, count))

    def begin_with(self, offset: int, numbers: Numbers | npt.ArrayLike) -> None:
        """Have a new stream's state begin with numbers, from an element on."""
        known = numbers if isinstance(numbers, Numbers) else Numbers(numbers)
        self.initial.append((offset, known))

    def start(self, node: spec.Node, part: op.Part, given: Sequence[View]) -> None:
        """Have a ring begin with a learned tensor, or with what is given for it."""
        order = slice(None) if part.order is op.NONE else np.argsort(part.order)
        if "x" in node.layer.initial():
            name = node.layer.names()[node.layer.initial()["x"]]
            if part.order is op.NONE:
                self.begin_with(part.offset, self.vector(name))
            else:
                rows = self.vector(name).array.reshape(part.rows, -1)
                self.begin_with(part.offset, rows[:, order])
        for view in given:
            places = view.places.reshape(part.rows, -1)[:, order]
            first_rows = self.in_order(view.at(places))
            if first_rows.numbers is not None:
                self.begin_with(part.offset, first_rows.numbers)
            else:
                self.begin.append(Step(op.Start(first_rows, part.offset)))

    # Tensors

    def array(self, tensor: str) -> Array:
        """A tensor of numbers that are read in the plan."""
        return np.asarray(self.tensors[tensor])

    def vector(self, tensor: str) -> Numbers:
        """All of a tensor."""
        return Numbers(self.tensors[tensor], tensor)

    def stored(self, matrix: Matrix) -> str:
        """How the numbers of a matrix are stored, as a program says it.

        They are stored alike: layers have one precision, and what is joined is of one, too.
        """
        kinds = {_stored(self.tensors, block.tensor) for block in matrix.blocks} or {"real"}
        (kind,) = kinds
        return kind

    def weights(self, node: spec.Node) -> dict[str, str]:
        """Suffix -> name of each tensor of a node."""
        return node.layer.names()

    # Operations

    def store(self, count: int, line: int) -> Stored:
        """A new row, which an operation is to make."""
        return Stored(count, line)

    def constant(self, numbers: Numbers | npt.ArrayLike, shape: spec.Shape | None = None) -> View:
        """A view of numbers that never change."""
        if not isinstance(numbers, Numbers):
            shape = np.shape(numbers) if shape is None else shape
            numbers = Numbers(numbers)
        return View.of(Stored(len(numbers), -1, "vector", numbers=numbers), shape or ())

    def add(self, operation: Any) -> None:
        """Have an operation run: when a sequence starts, if it makes what is held."""
        step, made = Step(operation), getattr(operation, "y", None)
        section = self.begin if made is not None and made.line < 0 else self.section
        section.append(step)
        for stored in [made] if made is not None else getattr(operation, "ys", ()):
            stored.maker, stored.section = step, section

    def replaced(self, view: View, kind: type) -> Step | None:
        """The step of a kind that makes what is viewed, if it can be made a part of a later one.

        That is so where nobody else reads what it makes, of which the view is all, in any order.
        """
        (source, *others) = view.sources
        if others or source.maker is None or not view.alone or not view.whole:
            return None
        here = self.begin if source.line < 0 else self.section
        made = isinstance(source.maker.operation, kind) and source.section is here
        return source.maker if made else None

    def move(self, view: View) -> Stored:
        """The numbers of a view, stored in their order; once, where they are known already."""
        if view.constant:
            return self.constant(view.array.ravel()).sources[0]
        key = (view.sources, np.ascontiguousarray(view.places).tobytes(), view.fill)
        known = self._moves.get(key)
        if known and any(known.section is s for s in (self.begin, self.steps, self.section)):
            return known
        made = self.store(view.places.size, view.line)
        self.add(moved(view, made))
        self._moves[key] = made
        return made

    def in_order(self, view: View) -> Stored:
        """A stored row that has the numbers of a view in their order."""
        cut = view.cut
        return cut.sources[0] if cut.in_order else self.move(view)

    def lying(self, view: View) -> tuple[Stored, Places]:
        """A stored row that has all numbers of a view, each once, and where each of them lies."""
        cut = view.cut
        if cut.whole:
            return cut.sources[0], cut.places.ravel()
        return self.move(view), np.arange(view.places.size)

    def filled_with_zeros(self, view: View) -> View:
        """The view, or one of its numbers stored where it is filled with another number than 0."""
        if view.fill == 0 or view.places.min() >= 0:
            return view
        return View.of(self.move(view), view.shape)

    def product(
        self,
        sources: Sequence[Stored],
        places: Places,
        matrices: Sequence[Matrix],
        bias: Numbers | None = None,
    ) -> Stored:
        """The rows y (positions, groups, outputs) of products with a matrix for each group.

        Parameters
        ----------
        sources : sequence of Stored
            The values that are read.
        places : int array (positions, groups, columns)
            Of what each column is multiplied with, among the numbers of the sources; -1 for 0.
        matrices : sequence of Matrix (outputs, columns)
            One for each group.
        bias : Numbers (groups * outputs,), optional
        """
        if len(sources) == 1:
            read = View(tuple(sources), places).cut
            sources, places = read.sources, read.places
        positions, groups, columns = places.shape
        outputs = sum(matrix.rows for matrix in matrices)
        made = self.store(positions * outputs, max(source.line for source in sources))
        if not (single := len(sources) == groups == 1) or not _is_range(places, sources[0].count):
            order = _columns(places)
            places, matrices = places[..., order], [matrix.take(order) for matrix in matrices]
        piece, begins = columns, None
        if not single or not _is_range(places, sources[0].count):
            piece = _piece(places, [source.count for source in sources])
            begins = places[..., ::piece]
        self.add(
            op.Product(
                sources,
                made,
                matrices,
                bias,
                None,
                None,
                positions=positions,
                piece=piece,
                places=begins,
            )
        )
        return made


def _stored(tensors: Tensors, which: str | Array) -> str:
    tensor = tensors[which] if isinstance(which, str) else which
    return tensor.precision if isinstance(tensor, Reduced) else "real"


def _is_range(places: Places, count: int) -> bool:
    return places.size == count and bool(np.array_equal(places.ravel(), np.arange(count)))


def _columns(places: Places) -> Places:
    """An order of the columns in which they lie, as far as that is the same at all positions."""
    rows = places.reshape(-1, places.shape[-1])
    fullest = rows[np.argmax((rows >= 0).sum(axis=1))]
    # What is padding there too has no place of its own; it stands where it would be elsewhere.
    return np.lexsort((rows.max(axis=0), np.where(fullest < 0, rows.max(axis=0), fullest)))


def _piece(places: Places, counts: Iterable[int]) -> int:
    """The largest number of columns such that all of a piece lie one behind the other."""
    columns = places.shape[-1]
    rows = places.reshape(-1, columns)
    follows = np.where(rows[:, :-1] < 0, rows[:, 1:] < 0, rows[:, 1:] == rows[:, :-1] + 1)
    starts = np.cumsum([*counts])[:-1]  # of the second value, and of those behind it
    follows &= ~np.isin(rows[:, 1:], starts)
    return math.gcd(columns, *(np.flatnonzero(~follows.all(axis=0)) + 1).tolist())
