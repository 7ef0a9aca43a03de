"""Cells that a program writes out, as the recurrent layers that they are.

A step of an LSTM may be one matrix and a split, four matrices, a matrix of x and h side by side, or
sums in any order. What tells it is what it computes: the state that it reads of the step before,
how the gates meet, and that the input of each gate is an affine function of the input and of h.
That function is worked out in numbers, whatever it was written as, and gives the layer's weights.
A graph runs as well without that: its states are then delays.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.sources.arrays.affine import Affine, Affines, NoMatch, Source

__all__ = ["recognise"]

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


def recognise(graph: spec.Graph, tensors: Tensors) -> tuple[spec.Graph, Tensors, list[str]]:
    """The graph with its written-out cells as layers, its tensors, and what was recognised."""
    notes: list[str] = []
    while True:
        matcher = _Matcher(graph, tensors)
        found = next(matcher.cells(), None)
        if found is None:
            return graph, tensors, notes
        graph, tensors = matcher.replaced(found)
        layer = found.layer
        notes.append(
            f"{found.h!r:.200} and what leads to it is written out, and was recognised as layer "
            f"{layer.name!r:.200}: {layer.describe()}"
        )


@dataclass
class _Cell:
    """A layer, the row of h and of c that it stands for, and what it reads."""

    layer: Any
    tensors: Tensors
    reads: list[Source]
    h: str
    c: str = ""


class _Matcher:
    def __init__(self, graph: spec.Graph, tensors: Tensors) -> None:
        self.graph, self.tensors = graph, tensors
        self.of = Affines(graph, tensors)
        self.nodes = self.of.nodes

    # Cells

    def cells(self) -> Iterator[_Cell]:
        """What is a cell, the states of which a step hands to the next."""
        for name in dict.fromkeys(self._kept()):
            for match in (self._lstm, self._gru, self._rnn):
                try:
                    # The state itself is no sum of others, even if it is one.
                    self.of.keep(name)
                    yield match(name)
                except (NoMatch, KeyError):
                    continue

    def _kept(self) -> Iterator[str]:
        """The rows that a step hands to the next, itself or as functions of them."""
        for node in self.graph.nodes:
            kept = self.of.before(node.name)
            while kept is not None:
                yield kept
                made = self.nodes.get(kept)
                linear = made is not None and isinstance(made.layer, spec.Linear | spec.Index)
                kept = made.reads[0] if made is not None and linear else None

    def _parts(self, name: str, operation: str) -> tuple[str, str]:
        """What an arithmetic operation reads."""
        layer = self.of.layer(name)
        if not isinstance(layer, spec.Arithmetic) or layer.operation != operation:
            raise NoMatch
        one, other = self.nodes[name].reads
        if self.of.size(one) != self.of.size(other):
            raise NoMatch
        return one, other

    def _activated(self, name: str) -> tuple[str, str]:
        """The function that a row is of another, and that row."""
        layer = self.of.layer(name)
        if not isinstance(layer, spec.Activation) or layer.function.startswith("affine("):
            raise NoMatch
        return layer.function, self.nodes[name].reads[0]

    def _gate(self, name: str) -> tuple[str, Affine]:
        """The function and the input of a gate, which may be a part of several at once."""
        layer = self.of.layer(name)
        if isinstance(layer, spec.Index) and len(self.nodes[name].reads) == 1 and not layer.fills:
            function, inner = self._activated(self.nodes[name].reads[0])
            return function, self.of.affine(inner).rows(np.array(layer.places()))
        function, inner = self._activated(name)
        return function, self.of.affine(inner)

    def _lstm(self, c: str) -> _Cell:
        """``c = f c' + i g`` and ``h = o act(c)``; the row is that of c."""
        H = self.of.size(c)
        forms = []
        for keeps, adds in _both(self._parts(c, "add")):
            for f, old in _both(self._parts(keeps, "multiply")):
                if self.of.before(old) == c:
                    forms += [(f, i, g) for i, g in _both(self._parts(adds, "multiply"))]
        for h in self._outputs_of(c):
            for o, shown in _both(self._parts(h, "multiply")):
                try:
                    last, inner = self._activated(shown)
                except NoMatch:
                    continue
                if inner != c:
                    continue
                for f, i, g in forms:
                    with_gates = self._lstm_of(h, c, (i, f, g, o), last, H)
                    if with_gates is not None:
                        return with_gates
        raise NoMatch

    def _outputs_of(self, c: str) -> list[str]:
        """Rows that read a function of a row, and multiply it."""
        shown = [
            n.name
            for n in self.graph.nodes
            if isinstance(n.layer, spec.Activation) and n.reads[0] == c
        ]
        return [
            n.name
            for n in self.graph.nodes
            if isinstance(n.layer, spec.Arithmetic)
            and n.layer.operation == "multiply"
            and set(n.reads) & set(shown)
        ]

    def _lstm_of(
        self, h: str, c: str, gates: tuple[str, str, str, str], last: str, H: int
    ) -> _Cell | None:
        try:
            found = [self._gate(name) for name in gates]
        except NoMatch:
            return None
        functions = [function for function, _ in found]
        if len({functions[0], functions[1], functions[3]}) != 1:
            return None
        affines = [affine for _, affine in found]
        sources = self._inputs(affines, h, c)
        if sources is None:
            return None
        weights = self._weights(affines, sources, h, H)
        layer = spec.LSTM(
            self._name(h),
            sum(self.of.size(s.name) for s in sources),
            H,
            activations=(functions[0], functions[2], last),
            initial_state=self._initial(h, c),
        )
        return _Cell(layer, weights | self._start(h, c), sources, h, c)

    def _gru(self, h: str) -> _Cell:
        """``h = (1 - z) n + z h'``, in each of the ways in which that is written."""
        H = self.of.size(h)
        for z, n in self._mixes(h):
            try:
                gate, z_in = self._signed_gate(z)
                function, inner = self._activated(n)
            except NoMatch:
                continue
            if gate != "sigmoid":
                continue
            for after in (True, False):
                made = self._gru_of(h, z_in, inner, function, after, H)
                if made is not None:
                    return made
        raise NoMatch

    def _mixes(self, h: str) -> Iterator[tuple[tuple[str, float], str]]:
        """(z, 1 or -1) and n of ``z h' + (1 - z) n``, -1 where z is one minus that row."""
        for one, other in _both(self._parts(h, "add")):
            try:
                keeps, adds = self._parts(one, "multiply"), self._parts(other, "multiply")
            except NoMatch:
                # n + z (h' - n), and h' + z (n - h')
                with contextlib.suppress(NoMatch):
                    yield from self._differences(h, one, other)
                continue
            for z, old in _both(keeps):
                for m, n in _both(adds):
                    if self.of.before(old) != h:
                        continue
                    if self._is_rest(m, z):
                        yield (z, 1.0), n
                    elif self._is_rest(z, m):
                        yield (m, -1.0), n

    def _differences(self, h: str, one: str, other: str) -> Iterator[tuple[tuple[str, float], str]]:
        for z, between in _both(self._parts(other, "multiply")):
            try:
                first, second = self._parts(between, "subtract")
            except NoMatch:
                continue
            if self.of.before(first) == h and second == one:
                yield (z, 1.0), one
            if self.of.before(one) == h and self.of.before(second) == h:
                yield (z, -1.0), first

    def _is_rest(self, name: str, of: str) -> bool:
        """Whether a row is one minus another."""
        layer = self.of.layer(name)
        if isinstance(layer, spec.Activation) and layer.function == "affine(-1.0, 1.0)":
            return self.nodes[name].reads[0] == of
        if isinstance(layer, spec.Arithmetic) and layer.operation == "subtract":
            one, other = self.nodes[name].reads
            constant = self.of.constant(one)
            return other == of and constant is not None and bool((constant == 1).all())
        return False

    def _signed_gate(self, gate: tuple[str, float]) -> tuple[str, Affine]:
        name, sign = gate
        function, affine = self._gate(name)
        if sign < 0:  # 1 - sigmoid(a) is sigmoid(-a)
            affine = affine.scaled(-1.0)
        return function, affine

    def _gru_of(
        self, h: str, z: Affine, inner: str, function: str, after: bool, H: int
    ) -> _Cell | None:
        """The layer, with the reset gate behind the recurrent product or before it."""
        for reset, rest in self._resets(inner, h, after):
            try:
                gate, r = self._gate(reset[0])
            except NoMatch:
                continue
            if gate != "sigmoid":
                continue
            of_h, of_x = reset[1], rest
            sources = self._inputs([r, z, of_x], h)
            if sources is None or set(of_h.matrices) - {Source(h, 1)}:
                continue
            if Source(h, 1) in of_x.matrices:
                continue
            n = of_x.plus(of_h)
            weights = self._weights([r, z, n], sources, h, H)
            # Of the candidate, what the reset gate multiplies has a bias of its own.
            bias = weights["bias_hh_l0"]
            bias[2 * H :] = of_h.constant if after else 0.0
            weights["bias_ih_l0"][2 * H :] = of_x.constant + (0.0 if after else of_h.constant)
            layer = spec.GRU(
                self._name(h),
                sum(self.of.size(s.name) for s in sources),
                H,
                reset_after=after,
                activations=("sigmoid", function),
                initial_state=self._initial(h),
            )
            return _Cell(layer, weights | self._start(h), sources, h)
        return None

    def _resets(
        self, inner: str, h: str, after: bool
    ) -> Iterator[tuple[tuple[str, Affine], Affine]]:
        """(r, what it multiplies, as a function of h) and the rest of the candidate's input."""
        whole = self.of.affine(inner)
        for source, matrix in whole.matrices.items():
            if source.steps or not isinstance(self.of.layer(source.name), spec.Arithmetic):
                continue
            rest = Affine({s: m for s, m in whole.matrices.items() if s != source}, whole.constant)
            try:
                pair = self._parts(source.name, "multiply")
            except NoMatch:
                continue
            for r, other in _both(pair):
                if after and np.array_equal(matrix, np.eye(len(matrix))):
                    try:
                        yield (r, self.of.affine(other)), rest
                    except NoMatch:
                        continue
                if not after and self.of.before(other) == h:
                    yield (r, Affine({Source(h, 1): matrix}, np.zeros(len(matrix)))), rest

    def _rnn(self, h: str) -> _Cell:
        """``h = act(W x + U h' + b)``."""
        H = self.of.size(h)
        function, inner = self._activated(h)
        affine = self.of.affine(inner)
        sources = self._inputs([affine], h)
        if sources is None or Source(h, 1) not in affine.matrices:
            raise NoMatch
        weights = self._weights([affine], sources, h, H)
        layer = spec.RNN(
            self._name(h),
            sum(self.of.size(s.name) for s in sources),
            H,
            nonlinearity=function,
            initial_state=self._initial(h),
        )
        return _Cell(layer, weights | self._start(h), sources, h)

    # From gates to a layer

    def _inputs(self, gates: Sequence[Affine], h: str, c: str = "") -> list[Source] | None:
        """The rows that gates read beside h of the step before; None if they read c or h itself."""
        sources = dict.fromkeys(s for gate in gates for s in gate.matrices)
        sources.pop(Source(h, 1), None)
        if not sources:
            return None
        within = self._behind(h)
        for source in sources:
            if source.steps or source.name in within or source.name == c:
                return None
        return list(sources)

    def _behind(self, h: str) -> set[str]:
        """The rows of this step that are computed from a row, or from what it was."""
        readers: dict[str, list[str]] = {}
        for node in self.graph.nodes:
            for read in node.reads:
                readers.setdefault(read, []).append(node.name)
        found: set[str] = set()
        left = [h]
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += readers.get(name, [])
        return found

    def _weights(
        self, gates: Sequence[Affine], sources: Sequence[Source], h: str, H: int
    ) -> Tensors:
        def stacked(source: Source) -> Array:
            size = self.of.size(source.name)
            return np.concatenate([g.matrices.get(source, np.zeros((H, size))) for g in gates])

        bias = np.concatenate([gate.constant for gate in gates])
        return {
            "weight_ih_l0": np.concatenate([stacked(s) for s in sources], axis=1),
            "weight_hh_l0": stacked(Source(h, 1)),
            "bias_ih_l0": bias,
            "bias_hh_l0": np.zeros_like(bias),
        }

    def _delay_of(self, name: str) -> Any:
        for node in self.graph.nodes:
            if self.of.before(node.name) == name:
                return node.layer
        return None

    def _initial(self, *names: str) -> str:
        starts = [self._delay_of(name) for name in names]
        learned = any(s is not None and s.initial_state == "learned" for s in starts)
        return "learned" if learned else ""

    def _start(self, *names: str) -> Tensors:
        if not self._initial(*names):
            return {}
        made = {}
        for suffix, name in zip(("h_0", "c_0"), names, strict=False):
            delay = self._delay_of(name)
            size = self.of.size(name)
            start = np.zeros((1, size))
            if delay is not None and delay.initial_state == "learned":
                start = np.asarray(self.tensors[delay.names()["x_0"]]).reshape(1, size)
            made[suffix] = start
        return made

    def _name(self, h: str) -> str:
        return f"{h}.cell"[-255:]

    def replaced(self, cell: _Cell) -> tuple[spec.Graph, Tensors]:
        """The graph with a layer in place of what it stands for, without what nobody reads then."""
        nodes = {node.name: node for node in self.graph.nodes}
        reads = [source.name for source in cell.reads]
        if len(reads) > 1:
            total = sum(map(self.of.size, reads))
            joined = spec.Index.of(f"{cell.layer.name}.input", np.arange(total))
            nodes[joined.name] = joined(*reads)
            reads = [joined.name]
        layer = cell.layer
        H = layer.hidden_size
        new = {cell.h: layer.name}
        wants_c = cell.c and any(
            cell.c in node.reads and node.name in self._needed_without(cell)
            for node in self.graph.nodes
        )
        if wants_c or cell.c in self.graph.outputs.values():
            layer = dataclasses.replace(layer, cell_output=True)
            for name, first in ((cell.h, 0), (cell.c, H)):
                part = spec.Index.of(f"{layer.name}.{'h' if not first else 'c'}",
                                     np.arange(first, first + H))  # fmt: skip
                nodes[part.name] = part(layer.name)
                new[name] = part.name
        nodes[layer.name] = layer(*reads)
        del nodes[cell.h]
        if cell.c:
            del nodes[cell.c]
        made = [
            spec.Node(node.layer, tuple(new.get(read, read) for read in node.reads))
            for node in nodes.values()
        ]
        outputs = {k: new.get(v, v) for k, v in self.graph.outputs.items()}
        kept = _read_by(made, outputs)
        made = [node for node in made if node.name in kept]
        tensors = {
            name: self.tensors[name]
            for node in made
            for name in node.layer.names().values()
            if name in self.tensors
        }
        tensors |= {f"{layer.name}.{suffix}": array for suffix, array in cell.tensors.items()}
        return spec.Graph(self.graph.inputs, tuple(made), outputs), tensors

    def _needed_without(self, cell: _Cell) -> set[str]:
        """What outputs need if h and c are there."""
        return _read_by(
            [node for node in self.graph.nodes if node.name not in (cell.h, cell.c)],
            self.graph.outputs,
        )


def _both(pair: tuple[str, str]) -> tuple[tuple[str, str], tuple[str, str]]:
    return pair, pair[::-1]


def _read_by(nodes: Sequence[spec.Node], outputs: Mapping[str, str]) -> set[str]:
    """The rows that outputs need."""
    by_name = {node.name: node for node in nodes}
    found: set[str] = set()
    left = list(outputs.values())
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            if name in by_name:
                left += by_name[name].reads
    return found
