"""An ONNX file as a checked graph: its nodes, inputs and constants. Nothing of it is run.

A file is untrusted: every size is checked before an array is made of it, and data beside the file
is read only from its own folder.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.spec import MAX_SIZE

__all__ = ["Graph", "Input", "Node", "is_model", "open_graph"]

Array = npt.NDArray[Any]

# protobuf itself reads no larger message.
MAX_FILE = 2**31 - 1
MAX_NODES = 5000
MAX_RANK = 8
MAX_NESTING = 4  # of an If within an If

# Numbers that may be computed from constants, beside so many times those that are read: a small
# file can ask for any number of them.
SPARE, TIMES = 2**20, 4

FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
INTEGERS = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
INTEGERS |= {12: "uint32", 13: "uint64"}
DTYPES = FLOATS | INTEGERS | {9: "bool"}
# Where a tensor keeps its numbers, if not as raw bytes; the smaller types in 32-bit integers.
_FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data"}
_FIELDS |= {13: "uint64_data"}

ATTRIBUTE_KINDS = ("none", "float", "int", "string", "tensor", "graph", "floats", "ints", "strings")

_INSTALL = "reading ONNX needs the onnx package: pip install 'fastlstm[onnx]'"


@dataclass(frozen=True)
class Input:
    """An input of a graph: None for each size that is not known."""

    shape: tuple[int | None, ...]
    integer: bool


@dataclass(frozen=True)
class Node:
    """One operation. An input or output that is left out has the name "".

    Of an If, `branches` are what it chooses from, and `inputs` holds what they read from outside.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]  # onnx.AttributeProto
    branches: Mapping[str, Branch] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"node {self.name!r:.200} ({self.op:.100})"


@dataclass(frozen=True)
class Branch:
    """The graph of an If: nodes that see the names around it, and its outputs."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """What the outputs of a model are computed from.

    Parameters
    ----------
    version : int
        Of the set of operators.
    inputs : dict of str to Input
        All there are, but those that have a constant value.
    outputs : tuple of str
    nodes : tuple of Node
        Those that the outputs need, in order.
    constants : Constants
    """

    version: int
    inputs: dict[str, Input]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Constants


def is_model(source: object) -> bool:
    """Whether it is an ``onnx.ModelProto``; where onnx was never imported, nothing is."""
    return type(source).__name__ == "ModelProto" and type(source).__module__.startswith("onnx")


def open_graph(source: Any) -> Graph:
    """Check a model, the path of one or an ``onnx.ModelProto``.

    Raises
    ------
    ConvertError
        If it is no ONNX model, contradicts itself, or has control flow or functions of its own.
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
        model = _parsed(path, file.read(MAX_FILE))
    return _graph(model, os.path.dirname(os.path.abspath(path)))


def _parsed(path: str, data: bytes) -> Any:
    try:
        import onnx
    except ImportError:
        raise ConvertError(_INSTALL) from None
    try:
        return onnx.ModelProto.FromString(data)
    except Exception as error:  # of protobuf, whose classes differ between its implementations
        raise ConvertError(
            f"{path!r:.500} is no ONNX model: {str(error)[:200]}; it is damaged, copy it again"
        ) from None


def _graph(model: Any, folder: str | None) -> Graph:
    graph = model.graph
    if not graph.node:
        raise ConvertError("the ONNX model has no nodes; expected a graph")
    if len(graph.node) > MAX_NODES:
        raise ConvertError(
            f"the ONNX model has {len(graph.node)} nodes; at most {MAX_NODES} are supported"
        )
    version = _version(model)
    if graph.sparse_initializer:
        raise ConvertError("the ONNX model has sparse tensors; expected dense ones")
    tensors: dict[str, Any] = {}
    for tensor in graph.initializer:
        if _text(tensor.name) in tensors:
            raise ConvertError(f"two tensors are called {tensor.name!r:.200}; expected one")
        tensors[tensor.name] = tensor
    inputs = dict(_inputs(graph, tensors))
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = _nodes(graph, functions, 0)
    outputs = tuple(_text(value.name) for value in graph.output)
    if not outputs:
        raise ConvertError("the ONNX model has no outputs; expected one")
    needed = tuple(_needed(nodes, {*inputs, *tensors}, outputs))
    return Graph(version, inputs, outputs, needed, Constants(tensors, folder))


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


def _inputs(graph: Any, tensors: Mapping[str, Any]) -> Iterator[tuple[str, Input]]:
    seen: set[str] = set()
    for value in graph.input:
        what = f"input {_text(value.name)!r:.200}"
        if value.name in seen:
            raise ConvertError(f"two inputs are called {value.name!r:.200}; expected one")
        seen.add(value.name)
        if value.name in tensors:  # its default value, as every tensor was listed before IR 4
            continue
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.elem_type not in FLOATS | INTEGERS:
            raise ConvertError(f"{what} is no array of numbers; expected one of floats or integers")
        if not tensor.HasField("shape") or len(tensor.shape.dim) > MAX_RANK:
            raise ConvertError(
                f"{what} does not say how many axes it has, or has more than {MAX_RANK}; expected "
                f"a shape, in which sizes may be left open"
            )
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if not all(size is None or 1 <= size <= MAX_SIZE for size in sizes):
            raise ConvertError(
                f"{what} has shape {tuple(sizes)}; expected sizes from 1 to {MAX_SIZE}"
            )
        yield value.name, Input(tuple(sizes), tensor.elem_type in INTEGERS)


def _nodes(graph: Any, functions: set[tuple[str, str]], depth: int) -> list[Node]:
    return [_node(number, node, functions, depth) for number, node in enumerate(graph.node)]


def _node(number: int, node: Any, functions: set[tuple[str, str]], depth: int) -> Node:
    inputs, outputs = tuple(map(_text, node.input)), tuple(map(_text, node.output))
    op, domain = _text(node.op_type), _text(node.domain)
    name = _text(node.name) or next(filter(None, outputs), "") or f"number {number}"
    label = f"node {name!r:.200} ({op:.100})"
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        if _text(attribute.name) in attributes:
            raise ConvertError(f"{label} has the attribute {attribute.name!r:.80} twice")
        attributes[attribute.name] = attribute
    if (domain, op) in functions:
        raise ConvertError(
            f"{label} calls a function of the model; expected operators alone: use "
            f"onnx.inliner.inline_local_functions first"
        )
    if domain not in ("", "ai.onnx"):
        raise ConvertError(
            f"{label} is of the domain {domain!r:.100}; expected an operator of ONNX itself"
        )
    if any(attribute.type in (5, 10) for attribute in attributes.values()):
        if op != "If" or depth == MAX_NESTING:
            raise ConvertError(f"{label} runs a graph of its own; expected no control flow")
        branches = {
            key: _branch(label, attribute.g, functions, depth)
            for key, attribute in attributes.items()
        }
        read = {name: None for branch in branches.values() for name in _outside(branch)}
        return Node(name, op, (*inputs[:1], *read), outputs, {}, branches)
    return Node(name, op, inputs, outputs, attributes)


def _text(value: str | bytes) -> str:
    """A name; protobuf gives bytes where they are no UTF-8."""
    if isinstance(value, bytes):
        raise ConvertError(f"the ONNX model holds the name {value[:40]!r}, which is no UTF-8")
    return value


def _branch(label: str, graph: Any, functions: set[tuple[str, str]], depth: int) -> Branch:
    if graph.input or graph.initializer or graph.sparse_initializer:
        raise ConvertError(f"{label} has a branch with inputs or tensors of its own; expected none")
    nodes = tuple(_nodes(graph, functions, depth + 1))
    return Branch(nodes, tuple(_text(value.name) for value in graph.output))


def _outside(branch: Branch) -> Iterator[str]:
    """The names that a branch reads, and does not give itself."""
    own = {name for node in branch.nodes for name in node.outputs}
    for names in (*(node.inputs for node in branch.nodes), branch.outputs):
        yield from (name for name in names if name and name not in own)


def _needed(nodes: list[Node], known: set[str], outputs: tuple[str, ...]) -> list[Node]:
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
        for name in filter(None, node.inputs):
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
            wanted.update(filter(None, node.inputs))
    return needed[::-1]


class Constants(Mapping[str, Array]):
    """The tensors of a model, read when they are asked for."""

    def __init__(self, tensors: dict[str, Any], folder: str | None) -> None:
        self._tensors = tensors
        self._read: dict[str, Array] = {}
        self._folder = folder
        self._unread: dict[str, int] = {}  # by path, bytes of external data
        self.left = SPARE  # numbers that may be computed from constants

    def __getitem__(self, name: str) -> Array:
        if name not in self._read:
            self._read[name] = self.array(self._tensors[name], f"tensor {name!r:.200}")
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def array(self, tensor: Any, what: str) -> Array:
        """Read an ``onnx.TensorProto``; bfloat16, which NumPy has not, as float32."""
        code, shape = tensor.data_type, tuple(tensor.dims)
        if code not in DTYPES:
            raise ConvertError(
                f"{what} is of data type {code}; expected one of {', '.join(DTYPES.values())}"
            )
        if len(shape) > MAX_RANK or not all(0 <= size <= MAX_SIZE for size in shape):
            raise ConvertError(
                f"{what} has shape {shape[:20]}; expected at most {MAX_RANK} axes, each from 0 to "
                f"{MAX_SIZE}"
            )
        if tensor.HasField("segment"):
            raise ConvertError(f"{what} is a segment of another; expected it whole")
        dtype = np.dtype("uint16" if code == 16 else DTYPES[code]).newbyteorder("<")
        count = math.prod(shape)
        field = _FIELDS.get(code, "int32_data")
        if tensor.data_location == 1:
            flat: Array = np.frombuffer(self._external(tensor, count * dtype.itemsize, what), dtype)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != count * dtype.itemsize:
                raise ConvertError(
                    f"{what} of shape {shape} and {DTYPES[code]} holds {len(tensor.raw_data)} "
                    f"bytes; expected {count * dtype.itemsize}: the file is damaged"
                )
            flat = np.frombuffer(tensor.raw_data, dtype)
        else:
            values = getattr(tensor, field)
            if len(values) != count:
                raise ConvertError(
                    f"{what} of shape {shape} holds {len(values)} numbers; expected {count}: the "
                    f"file is damaged"
                )
            flat = np.array(values, np.float64 if code in (1, 11) else np.int64)
            if code in (10, 16):  # their bits
                flat = flat.astype(np.uint16).view(np.float16 if code == 10 else np.uint16)
        if code == 16:  # the upper half of a float32
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        native = np.dtype("float32" if code == 16 else DTYPES[code])
        self.left += TIMES * count
        with np.errstate(over="ignore"):
            return flat.astype(native).reshape(shape)

    def _external(self, tensor: Any, wanted: int, what: str) -> bytes:
        """The bytes of a tensor that are kept in another file of the model's folder."""
        entries = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
        location = entries.get("location", "")
        if self._folder is None:
            raise ConvertError(
                f"{what} is external data, and this model has no folder; give the path of its file"
            )
        parts = location.replace("\\", "/").split("/")
        if not location or os.path.isabs(location) or ":" in parts[0] or ".." in parts:
            raise ConvertError(
                f"{what} is external data in {location!r:.200}; expected a file in the folder of "
                f"the model"
            )
        folder = os.path.realpath(self._folder)
        path = os.path.realpath(os.path.join(folder, location))
        if os.path.commonpath([folder, path]) != folder:
            raise ConvertError(
                f"{what} is external data in {location!r:.200}, a symbolic link that leads out of "
                f"the folder of the model; expected the file itself there"
            )
        if not os.path.isfile(path):
            raise ConvertError(
                f"{what} is external data in {location!r:.200}, which is no file in the folder of "
                f"the model; copy it there"
            )
        try:
            offset, length = (int(entries.get(key, default)) for key, default in
                              (("offset", 0), ("length", wanted)))  # fmt: skip
        except ValueError:
            offset = length = -1
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            left = self._unread.setdefault(path, size) - length
            if offset < 0 or length != wanted or offset + length > size or left < 0:
                raise ConvertError(
                    f"{what} takes {wanted} bytes, and is external data at offset "
                    f"{entries.get('offset', '0')!r:.30} of length "
                    f"{entries.get('length', 'unknown')!r:.30} in a file of {size} bytes; expected "
                    f"it to fit, and no two tensors to overlap"
                )
            self._unread[path] = left
            file.seek(offset)
            return file.read(length)
