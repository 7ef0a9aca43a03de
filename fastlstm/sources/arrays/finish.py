"""From the rows of a run to a graph: what outputs read, without what nobody does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.core import Value
from fastlstm.sources.arrays.places import ANY
from fastlstm.sources.arrays.rows import Made, Rows

__all__ = ["Finished", "finish", "plain_name"]

Array = npt.NDArray[Any]
NOT_IN_NAMES = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029], "_")


@dataclass(frozen=True)
class Finished:
    """A graph, its tensors, and the axes of each output as the program gives it."""

    graph: spec.Graph
    tensors: dict[str, Array]
    axes: dict[str, tuple[str | int, ...]]


@dataclass
class _Node:
    layer: spec.Layer
    reads: list[str]
    tensors: dict[str, Array]


def finish(builder: Any, outputs: Mapping[str, Value], inputs: Iterable[str]) -> Finished:
    """The graph of some outputs.

    Parameters
    ----------
    builder : Builder
    outputs : mapping of str to Value
    inputs : iterable of str
        Rows that are inputs of the graph, in order; those that nothing reads are left out.

    Raises
    ------
    ConvertError
        If an output is constant, or is no row of a step and none of a whole sequence.
    """
    reads: dict[str, str] = {}
    axes: dict[str, tuple[str | int, ...]] = {}
    for name, value in outputs.items():
        reads[name], axes[name] = _output(builder, name, value)
    made = _Graph(builder.rows, reads)
    for step in (made.trim, made.direct, made.biases, made.stacks, made.folds_first, made.direct):
        step()
    return Finished(*made.graph([*inputs]), axes)


def _output(builder: Any, name: str, value: Value) -> tuple[str, tuple[str | int, ...]]:
    """The row that an output is of, and what its axes are."""
    with builder.at(f"output {name}", f"output {name!r:.200}"):
        places = builder.rolled(value.places)
        given, columns, core = _taken_apart(builder, places)
        row = (*(n for n in given.row if n != 1), *core)
        timed = (columns.lag != ANY).any()
        if timed and not columns.steps:
            if builder.steps:
                columns = builder.folded(columns)
            else:
                columns = builder._at_moment(columns, max(0, int(columns.lag.max())))
        read = builder.rows.read(columns, row, name)
        kinds: list[str | int] = []
        for axis in given.axes:
            parts = [p for p in axis if p.size > 1] or list(axis[:1])
            if len(parts) > 1:
                raise ConvertError("an axis is time or the batch together with something else")
            kinds.append(parts[0].size if parts[0].kind == "row" else parts[0].kind)
        return read, (*kinds, *core)


def _taken_apart(builder: Any, places: Array) -> tuple[at.Frame, at.Columns, tuple[int, ...]]:
    """What the axes of an output are, the columns of its row, and axes known to be of a row.

    The two ends of a sequence side by side, as two directions leave them, look like two steps: they
    are taken for the features of one row where they are no steps.
    """
    failed: ConvertError | None = None
    for core in (0, 1)[: 1 + (places.ndim > 0)]:
        try:
            given = builder.frame([places], core)
            columns = at.columns(
                given.apart(places), batch=builder.batch, counts=builder.rows.counts
            )
        except ConvertError as error:
            failed = failed or error
        else:
            return given, columns, places.shape[places.ndim - core :]
    assert failed is not None
    raise failed


class _Graph:
    """Nodes that outputs need, as they are put in their last form."""

    def __init__(self, rows: Rows, outputs: dict[str, str]) -> None:
        self.rows, self.outputs = rows, outputs
        self.nodes: dict[str, _Node] = {}
        left = list(outputs.values())
        while left:
            name = left.pop()
            made = rows.made.get(name)
            if made is None:
                raise ConvertError(
                    f"{name!r:.200} of the step before is read, and is not computed in this one"
                )
            if made.node is None or name in self.nodes:
                continue
            self.nodes[name] = _Node(made.node.layer, [*made.node.reads], dict(made.tensors))
            left += made.node.reads
        # In the order in which they were made.
        self.nodes = {name: self.nodes[name] for name in rows.made if name in self.nodes}

    def readers(self) -> dict[str, list[str]]:
        """Row -> the nodes that read it, and "" for each output."""
        found: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            for read in node.reads:
                found.setdefault(read, []).append(name)
        for read in self.outputs.values():
            found.setdefault(read, []).append("")
        return found

    def replace(self, old: str, new: str) -> None:
        """Have whoever reads a row read another one."""
        for node in self.nodes.values():
            node.reads = [new if read == old else read for read in node.reads]
        self.outputs = {k: new if v == old else v for k, v in self.outputs.items()}

    def size(self, name: str) -> int:
        node = self.nodes.get(name)
        if node is not None and isinstance(node.layer, spec.LSTM):
            positions = math.prod(self.rows.row(node.reads[0]).shape[:-1])
            return positions * node.layer.output_size
        return math.prod(self.rows.row(name).shape)

    def trim(self) -> None:
        """The cell states of an LSTM are no part of its rows where nobody reads them."""
        readers = self.readers()
        for name, node in list(self.nodes.items()):
            layer = node.layer
            if not isinstance(layer, spec.LSTM) or not layer.cell_output:
                continue
            wide, narrow = layer.output_size, layer.directions * layer.h_size
            positions = math.prod(self.rows.row(node.reads[0]).shape[:-1])
            using = readers.get(name, [])
            if "" in using or not all(isinstance(self.nodes[u].layer, spec.Index) for u in using):
                continue
            moved = {}
            for user in using:
                places = self._places(self.nodes[user])
                at_ = 0
                for read in self.nodes[user].reads:
                    size = self.size(read)
                    if read == name:
                        mine = (places >= at_) & (places < at_ + size)
                        local = places[mine] - at_
                        if (local % wide >= narrow).any():
                            break
                        places[mine] = at_ + local // wide * narrow + local % wide
                        size = positions * narrow
                        # What stands behind this row moves to the front.
                        behind = (places >= at_ + positions * wide) & ~mine
                        places[behind] -= positions * (wide - narrow)
                    at_ += size
                else:
                    moved[user] = places
                    continue
                break
            if len(moved) < len(set(using)):
                continue
            node.layer = dataclasses.replace(layer, cell_output=False)
            for user, places in moved.items():
                self._move(user, places)

    def _places(self, node: _Node) -> Array:
        layer = node.layer
        assert isinstance(layer, spec.Index)
        return np.array(layer.places(), np.int64)

    def _move(self, name: str, places: Array) -> None:
        layer = self.nodes[name].layer
        assert isinstance(layer, spec.Index)
        self.nodes[name].layer = spec.Index.of(name, places.reshape(layer.shape), layer.fill)

    def direct(self) -> None:
        """An index that moves nothing is its input."""
        for name, node in list(self.nodes.items()):
            layer = node.layer
            if not isinstance(layer, spec.Index) or len(node.reads) != 1:
                continue
            (read,) = node.reads
            if layer.runs != ((0, 1, math.prod(layer.shape)),) and layer.shape != (1,):
                continue
            if self._shape(read) == layer.shape and list(layer.places()) == [
                *range(self.size(read))
            ]:
                self.replace(name, read)
                del self.nodes[name]

    def _shape(self, name: str) -> spec.Shape:
        node = self.nodes.get(name)
        if node is not None and isinstance(node.layer, spec.LSTM):
            return (*self.rows.row(node.reads[0]).shape[:-1], node.layer.output_size)
        return self.rows.row(name).shape

    def biases(self) -> None:
        """A constant that is added to what a matrix or kernel gives is its bias."""
        readers = self.readers()
        for name, node in list(self.nodes.items()):
            layer = node.layer
            if not isinstance(layer, spec.Arithmetic) or layer.operation != "add":
                continue
            for product, constant in (node.reads, node.reads[::-1]):
                first, second = self.nodes.get(product), self.nodes.get(constant)
                if first is None or second is None or not isinstance(second.layer, spec.Constant):
                    continue
                own = first.layer
                if not isinstance(own, spec.Linear | spec.Convolution) or own.bias:
                    continue
                out = own.out_features if isinstance(own, spec.Linear) else own.out_channels
                value = second.tensors["value"]
                ndim = len(self.rows.row(product).shape)
                axis = ndim - 1 if isinstance(own, spec.Linear) else 0
                shape = (1,) * (ndim - value.ndim) + value.shape
                expected = tuple(out if n == axis else 1 for n in range(ndim))
                if shape != expected or len(readers[product]) > 1:
                    continue
                bias = value if value.ndim == 1 else value.reshape(out)
                known = self.rows.names.get(id(value), (value, ""))[1]
                self.rows.names.setdefault(id(bias), (bias, known))
                first.layer = dataclasses.replace(own, bias=True)
                first.tensors["bias"] = bias
                self.replace(name, product)
                del self.nodes[name]
                break
        self._drop_unread()

    def _drop_unread(self) -> None:
        while True:
            readers = self.readers()
            gone = [name for name in self.nodes if name not in readers]
            if not gone:
                return
            for name in gone:
                del self.nodes[name]

    def stacks(self) -> None:
        """Recurrent layers of the same kind, each read by the next alone, are one stack."""
        self.direct()
        merged = True
        while merged:
            merged = False
            readers = self.readers()
            for name, node in list(self.nodes.items()):
                before = self.nodes.get(node.reads[0]) if node.reads else None
                if before is None or readers[node.reads[0]] != [name]:
                    continue
                one, two = before.layer, node.layer
                if not isinstance(one, spec.Recurrent) or not _stack(one, two):
                    continue
                depth = one.num_layers
                more = {
                    s.replace("_l0", f"_l{depth}"): tensor for s, tensor in node.tensors.items()
                }
                before.layer = dataclasses.replace(one, num_layers=depth + 1)
                before.tensors |= more
                self.replace(name, node.reads[0])
                del self.nodes[name]
                merged = True
                break

    def folds_first(self) -> None:
        """What is computed of one row of a sequence is computed once, behind the fold."""
        changed = True
        while changed:
            changed = False
            readers = self.readers()
            for name, node in list(self.nodes.items()):
                fold = node.layer
                if not isinstance(fold, spec.Fold) or fold.function not in ("first", "last"):
                    continue
                if fold.cumulative or readers.get(node.reads[0]) != [name]:
                    continue
                inner = self.nodes.get(node.reads[0])
                if inner is None or not self._is_of_one_step(inner):
                    continue
                reads = [self._folded(read, fold.function) for read in inner.reads]
                self.nodes[node.reads[0]] = _Node(inner.layer, reads, inner.tensors)
                self.replace(name, node.reads[0])
                del self.nodes[name]
                changed = True
                break

    def _is_of_one_step(self, node: _Node) -> bool:
        layer = node.layer
        if layer.over_time or layer.folds or isinstance(layer, spec.Constant):
            return False
        return bool(node.reads) and all(
            self._steps(read) or self._fixed(read) for read in node.reads
        )

    def _steps(self, name: str) -> bool:
        return self.rows.row(name).steps > 0

    def _fixed(self, name: str) -> bool:
        node = self.nodes.get(name)
        return node is not None and isinstance(node.layer, spec.Constant)

    def _folded(self, name: str, function: str) -> str:
        if not self._steps(name):
            return name
        made = f"{name}.{function}"
        if made not in self.nodes:
            self.nodes[made] = _Node(spec.Fold(made, function), [name], {})
            self.rows.made[made] = Made(made, self.rows.row(name).shape, 0)
        return made

    def _in_order(self) -> list[str]:
        """The nodes, each behind what it reads, but for what it reads of the step before."""
        ordered: dict[str, None] = {}
        for first in self.nodes:
            left = [first]
            while left:
                node = self.nodes[left[-1]]
                reads = () if isinstance(node.layer, spec.Delay) else node.reads
                waits = [r for r in reads if r in self.nodes and r not in ordered]
                if left[-1] not in ordered and (waits := [r for r in waits if r not in left]):
                    left.append(waits[0])
                else:
                    ordered.setdefault(left.pop())
        return [*ordered]

    def graph(self, inputs: list[str]) -> tuple[spec.Graph, dict[str, Array]]:
        self._drop_unread()
        read = {r for node in self.nodes.values() for r in node.reads} | {*self.outputs.values()}
        given = []
        for name in inputs:
            if name not in read:
                continue
            row = self.rows.row(name)
            if row.tokens == 0:
                raise ConvertError(
                    f"input {name!r:.200} is integers, and nothing looks them up in a table"
                )
            held = row.steps == 0
            given.append(spec.Input(plain_name(name), row.shape, row.tokens or 0, held))
        names = _Names()
        nodes = []
        for name in self._in_order():
            node = self.nodes[name]
            layer = dataclasses.replace(node.layer, name=plain_name(name))
            named = names.of(layer, node.tensors, self.rows)
            nodes.append(
                spec.Node(
                    dataclasses.replace(layer, tensor_names=named),
                    tuple(map(plain_name, node.reads)),
                )
            )
        outputs = {plain_name(k): plain_name(v) for k, v in self.outputs.items()}
        missing = read - set(self.nodes) - set(inputs)
        if missing:
            raise ConvertError(f"{min(missing)!r:.200} is read, and nothing gives it")
        graph = spec.Graph(tuple(given), tuple(nodes), outputs)
        try:
            spec.check(graph)
        except ValueError as error:
            raise ConvertError(str(error)) from None
        return graph, names.tensors


class _Names:
    """What tensors are called: as their source calls them, if it does."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self._given: dict[int, str] = {}

    def of(
        self, layer: spec.Layer, tensors: Mapping[str, Array], rows: Rows
    ) -> tuple[tuple[str, str], ...]:
        own = dataclasses.replace(layer, tensor_names=()).names()
        others = []
        for suffix, default in own.items():
            array = tensors[suffix]
            known = rows.names.get(id(array), (array, ""))[1]
            name = self._given.get(id(array)) or self._free(plain_name(known), default)
            self._given[id(array)] = name
            self.tensors[name] = array
            if name != default:
                others.append((suffix, name))
        return tuple(others)

    def _free(self, known: str, default: str) -> str:
        for name in (known, default):
            if name and name not in self.tensors:
                return name
        n = 2
        while f"{default}.{n}" in self.tensors:
            n += 1
        return f"{default}.{n}"


def _stack(one: spec.Recurrent, two: spec.Layer) -> bool:
    """Whether a layer can be the next of a stack."""
    if type(one) is not type(two) or not isinstance(two, spec.Recurrent) or two.num_layers > 1:
        return False
    if one.initial_state or two.initial_state or one.hold or two.hold:
        return False
    if getattr(one, "cell_output", False) or getattr(two, "cell_output", False):
        return False
    if getattr(one, "layer_norm", ""):
        return False
    same = dataclasses.replace(
        two, name=one.name, input_size=one.input_size, num_layers=one.num_layers
    )
    return same == one and two.input_size == one.output_size


def plain_name(name: str) -> str:
    """A name without characters that no name in a file may have."""
    return name.translate(NOT_IN_NAMES)[:255]
