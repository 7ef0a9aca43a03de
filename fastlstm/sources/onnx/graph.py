"""An ONNX model as a checked graph: its nodes, inputs and tensors. Nothing of it is run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.onnx.functions import inlined
from fastlstm.sources.onnx.gelu import with_gelu
from fastlstm.sources.onnx.tensors import FLOATS, INTEGERS, MAX_RANK, Tensors, text_of
from fastlstm.sources.onnx.wire import check_wire
from fastlstm.spec import MAX_SIZE

__all__ = ["Body", "Graph", "Node", "Port", "is_model", "open_graph"]

# protobuf itself reads no larger message.
MAX_FILE = 2**31 - 1
MAX_NODES = 5000  # in all bodies
MAX_NESTING = 8  # of bodies within one another

KINDS = dict.fromkeys(FLOATS, "float") | dict.fromkeys(INTEGERS, "int") | {9: "bool"}

_INSTALL = "reading ONNX needs the onnx package: pip install 'fastlstm[onnx]'"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Parameters
    ----------
    name : str
    shape : tuple of int or None, or None
        None for each size that is not known; None as a whole where the number of axes is not.
    kind : str
        "float", "int" or "bool"; "" where it is not told.
    """

    name: str
    shape: tuple[int | None, ...] | None
    kind: str


@dataclass(frozen=True)
class Node:
    """One operation. An input or output that is left out has the name "".

    Parameters
    ----------
    attributes : mapping of str to onnx.AttributeProto
        Those that are no bodies.
    bodies : mapping of str to Body
        By attribute, graphs that it runs.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    bodies: Mapping[str, Body] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"node {self.name!r:.200} ({self.op:.100})"

    @property
    def reads(self) -> list[str]:
        """The names it reads, those included that its bodies take from around them."""
        around = [name for body in self.bodies.values() for name in body.around]
        return [name for name in (*self.inputs, *around) if name]


@dataclass(frozen=True)
class Body:
    """Nodes in order, those that the outputs need, and what they are given.

    Parameters
    ----------
    nodes : tuple of Node
    inputs, outputs : tuple of str
    tensors : dict of str to onnx.TensorProto
        Constants of its own.
    around : tuple of str
        Names that it reads and that are not its own.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Any]
    around: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A model.

    Parameters
    ----------
    version : int
        Of the set of operators.
    inputs, outputs : tuple of Port
        Inputs without those that have a constant value.
    body : Body
    tensors : Tensors
    """

    version: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    body: Body
    tensors: Tensors

    def nodes(self) -> Iterator[Node]:
        """All nodes, those of bodies included."""
        left = [*self.body.nodes]
        while left:
            node = left.pop(0)
            yield node
            left = [inner for body in node.bodies.values() for inner in body.nodes] + left


def is_model(source: object) -> bool:
    """Whether it is an ``onnx.ModelProto``; where onnx was never imported, nothing is."""
    return type(source).__name__ == "ModelProto" and type(source).__module__.startswith("onnx")


def open_graph(source: Any) -> Graph:
    """Check a model, the path of one or an ``onnx.ModelProto``.

    Raises
    ------
    ConvertError
        If it is no ONNX model or contradicts itself.
    OSError
        If the file cannot be read.
    """
    if is_model(source):
        return _graph(source, None)
    path = os.fspath(source)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ConvertError(f"{path!r:.500} is a folder or a device; expected an ONNX file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE:
            raise ConvertError(
                f"{path!r:.500} has {size} bytes; expected at most {MAX_FILE}: save the weights of "
                f"a larger model as external data"
            )
        model = _parsed(path, file.read(size + 1))  # not more: so much is allocated
    return _graph(model, os.path.dirname(os.path.abspath(path)))


def _parsed(path: str, data: bytes) -> Any:
    try:
        import onnx
    except ImportError:
        raise ConvertError(_INSTALL) from None
    try:
        check_wire(data, onnx.ModelProto.DESCRIPTOR)
        return onnx.ModelProto.FromString(data)
    except Exception as error:  # of protobuf, whose classes differ between its implementations
        raise ConvertError(
            f"{path!r:.500} is no ONNX model: {str(error)[:200]}; it is damaged, copy it again"
        ) from None


def _graph(model: Any, folder: str | None) -> Graph:
    graph = model.graph
    if not graph.node:
        raise ConvertError("the ONNX model has no nodes; expected a graph")
    version = _version(model)
    if graph.sparse_initializer:
        raise ConvertError("the ONNX model has sparse tensors; expected dense ones")
    tensors = _tensors(graph)
    inputs = tuple(_inputs(graph, tensors))
    outputs = tuple(map(_output, graph.output))
    if not outputs:
        raise ConvertError("the ONNX model has no outputs; expected one")
    known = {port.name for port in inputs} | {*tensors}
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = inlined(model, MAX_NODES) if functions else graph.node
    reader = _Reader()
    read = reader.nodes(nodes, 0)
    tensors_read = Tensors(tensors, folder)
    read = with_gelu(read, tensors_read)
    names = tuple(port.name for port in outputs)
    needed = _needed(read, known, names)
    body = Body(needed, tuple(port.name for port in inputs), names, {}, ())
    return Graph(version, inputs, outputs, body, tensors_read)


def _version(model: Any) -> int:
    """Of the operators; the other domains count only where a node is of one."""
    import onnx

    versions = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not 1 <= min(versions) <= newest:
        raise ConvertError(
            f"the ONNX model asks for the operators of version "
            f"{', '.join(map(str, sorted(versions))) or 'none'}; expected one from 1 to {newest}, "
            f"which is what the installed onnx package knows"
        )
    return int(min(versions))


def _tensors(graph: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for tensor in graph.initializer:
        if text_of(tensor.name) in tensors:
            raise ConvertError(f"two tensors are called {tensor.name!r:.200}; expected one")
        tensors[tensor.name] = tensor
    return tensors


def _inputs(graph: Any, tensors: Mapping[str, Any]) -> Iterator[Port]:
    seen: set[str] = set()
    for value in graph.input:
        what = f"input {text_of(value.name)!r:.200}"
        if value.name in seen:
            raise ConvertError(f"two inputs are called {value.name!r:.200}; expected one")
        seen.add(value.name)
        if value.name in tensors:  # its default value, as every tensor was listed before IR 4
            continue
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.elem_type not in KINDS:
            raise ConvertError(f"{what} is no array of numbers; expected one of floats or integers")
        shape = _shape(tensor)
        if shape is not None and len(shape) > MAX_RANK:
            raise ConvertError(f"{what} has {len(shape)} axes; expected at most {MAX_RANK}")
        if not all(size is None or 1 <= size <= MAX_SIZE for size in shape or ()):
            raise ConvertError(f"{what} has shape {shape}; expected sizes from 1 to {MAX_SIZE}")
        yield Port(value.name, shape, KINDS[tensor.elem_type])


def _output(value: Any) -> Port:
    tensor = value.type.tensor_type
    return Port(text_of(value.name), _shape(tensor), KINDS.get(tensor.elem_type, ""))


def _shape(tensor: Any) -> tuple[int | None, ...] | None:
    """None for each size that is open, or as a whole."""
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


class _Reader:
    """Nodes, of which there are so many in all bodies."""

    def __init__(self) -> None:
        self.count = 0

    def nodes(self, nodes: Sequence[Any], depth: int) -> list[Node]:
        self.count += len(nodes)
        if self.count > MAX_NODES:
            raise ConvertError(
                f"the ONNX model has {self.count} nodes or more; at most {MAX_NODES} are supported"
            )
        return [self.node(number, node, depth) for number, node in enumerate(nodes)]

    def node(self, number: int, node: Any, depth: int) -> Node:
        inputs, outputs = tuple(map(text_of, node.input)), tuple(map(text_of, node.output))
        op, domain = text_of(node.op_type), text_of(node.domain)
        name = text_of(node.name) or next(filter(None, outputs), "") or f"number {number}"
        label = f"node {name!r:.200} ({op:.100})"
        attributes: dict[str, Any] = {}
        bodies: dict[str, Body] = {}
        if domain not in ("", "ai.onnx"):
            raise ConvertError(
                f"{label} is of the domain {domain!r:.100}; expected an operator of ONNX itself"
            )
        for attribute in node.attribute:
            key = text_of(attribute.name)
            if key in attributes or key in bodies:
                raise ConvertError(f"{label} has the attribute {key!r:.80} twice")
            if attribute.type != 5:  # a graph
                attributes[key] = attribute
                continue
            if depth == MAX_NESTING:
                raise ConvertError(f"{label} is nested more than {MAX_NESTING} deep")
            bodies[key] = self.body(attribute.g, depth + 1)
        return Node(name, op, inputs, outputs, attributes, bodies)

    def body(self, graph: Any, depth: int) -> Body:
        if graph.sparse_initializer:
            raise ConvertError("the ONNX model has sparse tensors; expected dense ones")
        tensors = _tensors(graph)
        inputs = tuple(text_of(value.name) for value in graph.input)
        outputs = tuple(text_of(value.name) for value in graph.output)
        known = {*inputs, *tensors}
        read = self.nodes(graph.node, depth)
        own = known | {name for node in read for name in node.outputs}
        names = [name for node in read for name in node.reads] + [*outputs]
        around = tuple(dict.fromkeys(name for name in names if name not in own))
        needed = _needed(read, known | {*around}, outputs)
        return Body(needed, inputs, outputs, tensors, around)


def _needed(nodes: Sequence[Node], known: set[str], outputs: Sequence[str]) -> tuple[Node, ...]:
    """The nodes that the outputs need, each of which reads only what is there by then."""
    makers: dict[str, Node] = {}
    for node in nodes:
        for output in filter(None, node.outputs):
            if output in makers or output in known:
                raise ConvertError(
                    f"{node.label} gives {output!r:.200}, which is there already; expected each "
                    f"name once"
                )
            makers[output] = node
    there = set(known)
    for node in nodes:
        for name in node.reads:
            if name in there:
                continue
            if name in makers:
                raise ConvertError(
                    f"{node.label} reads {name!r:.200}, which {makers[name].label} gives only "
                    f"later; expected nodes in order, without a cycle"
                )
            raise ConvertError(
                f"{node.label} reads {name!r:.200}, which nothing gives; expected an input, a "
                f"tensor or the output of a node"
            )
        there.update(filter(None, node.outputs))
    wanted: set[str] = set()
    for output in outputs:
        if output not in there:
            raise ConvertError(f"output {output!r:.200} is given by no node; expected one")
        wanted.add(output)
    needed: list[Node] = []
    for node in reversed(nodes):
        if wanted & set(filter(None, node.outputs)):
            needed.append(node)
            wanted.update(node.reads)
    return tuple(needed[::-1])
