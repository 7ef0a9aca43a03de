"""The meaning of the names in a PyTorch pickle: its tensors, parameters, modules and containers.

`unpickle.load` leaves a graph in which every call is an inert record. Here the records that torch,
NumPy and the standard library's containers write are turned into values by code of ours; the rest
stays inert.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.storages import DTYPES, MAX_DIMENSIONS, RETRY, Storage, Storages
from fastlstm.sources.pytorch.unpickle import Budget, Opaque

__all__ = ["Meaning", "StoredModule", "is_setting"]

MAX_DEPTH = 100
MAX_SETTING = 8  # values in a setting that has several, as a stride an axis


class StoredModule(dict[str, object]):
    """A whole module: its parameters, persistent buffers and submodules under their names.

    Attributes
    ----------
    class_name : str
        The import path of its class, such as ``"torch.nn.modules.rnn.LSTM"``.
    settings : dict
        Its public attributes that are numbers, strings or None, such as ``num_layers``, or a few of
        them, such as ``stride``. TorchScript keeps only what is no constant of the class.
    """

    def __init__(self, class_name: str = "", settings: dict[str, object] | None = None) -> None:
        super().__init__()
        self.class_name = class_name
        self.settings = settings or {}


_UNFINISHED = object()
_ATOMS = frozenset({str, bytes, int, float, complex, bool, type(None)})
# What the graph is made of; everything else is a value already.
_NODES = frozenset({Opaque, Storage, list, tuple, dict, set, frozenset})
_Handler = Callable[["Meaning", Opaque], object]


def is_setting(value: object) -> bool:
    """Whether an attribute of a module is a setting: a number, a text, None, or a few of them."""
    if type(value) is tuple:
        return len(value) <= MAX_SETTING and all(type(item) in _ATOMS for item in value)
    return type(value) in _ATOMS


class Meaning:
    """Turns the graph of a pickle into values.

    Containers are changed in place where they can be, so that a large pickle is not held twice. The
    graph may share parts and contain itself: a shared part is turned once, a reference back to a
    container that is still being turned becomes an `Opaque`, and the size as a tree is counted.
    """

    handlers: ClassVar[dict[str, _Handler]] = {}

    def __init__(self, budget: Budget, storages: Storages) -> None:
        self.budget = budget
        self.storages = storages
        # Without sharing, a graph has fewer nodes than its pickle had opcodes.
        self.nodes_left = 2 * budget.opcodes + 100_000
        self.depth = 0
        # By id: the node itself (so that the id stays its own), its value and its size as a tree.
        self.done: dict[int, tuple[object, object, int]] = {}

    def count(self, nodes: int) -> None:
        self.nodes_left -= nodes
        if self.nodes_left < 0:
            raise ConvertError(
                "its parts contain each other so often that walking through them would not end; "
                "expected a state dict; save only the weights, torch.save(model.state_dict(), path)"
            )

    def value(self, node: object) -> object:
        """The value that a node of the graph stands for.

        Parameters
        ----------
        node : object
            What `unpickle.load` returned, or a part of it.

        Returns
        -------
        object
            As `read_checkpoint` describes it; the arrays of tensors are still to be read.

        Raises
        ------
        ConvertError
            If it is nested too deeply, shared too often, or holds an impossible tensor.
        """
        if type(node) not in _NODES:
            return node
        turned = self.done.get(id(node))
        if turned is not None:
            _, value, nodes = turned
            self.count(nodes)
            if value is _UNFINISHED:
                reason = "refers back to what contains it"
                return Opaque("builtins", type(node).__name__, reason=reason)
            return value
        if self.depth == MAX_DEPTH:
            raise ConvertError(
                f"its containers are nested more than {MAX_DEPTH} deep; expected a state dict; "
                "save only the weights, torch.save(model.state_dict(), path)"
            )
        self.count(1)
        if not node:  # an empty container
            return node
        self.budget.charge(250)
        self.done[id(node)] = (node, _UNFINISHED, 1)
        self.depth += 1
        before = self.nodes_left
        value = self.turned(node)
        self.depth -= 1
        self.done[id(node)] = (node, value, 1 + before - self.nodes_left)
        return value

    def turned(self, node: object) -> object:
        match node:
            case Opaque():
                return self.opaque(node)
            case list():
                self.count(len(node))
                for index, item in enumerate(node):
                    if type(item) not in _ATOMS:
                        node[index] = self.value(item)
                return node
            case tuple():
                self.count(len(node))
                if all(type(item) in _ATOMS for item in node):
                    return node
                return tuple([self.value(item) for item in node])
            case dict():
                return self.mapping(node)
            case set() | frozenset():
                return self.elements(node, type(node))
            case Storage():
                return Opaque("torch", node.dtype, reason="a storage outside a tensor")
        return node

    def mapping(self, node: dict[Any, Any]) -> dict[Any, object]:
        self.count(2 * len(node))
        for key, item in node.items():
            if type(item) not in _ATOMS:
                node[key] = self.value(item)
        if all(type(key) not in _NODES for key in node):
            return node
        self.budget.charge(120 * len(node))
        return {self.key(key): item for key, item in node.items()}

    def key(self, node: object) -> object:
        """The value of a dict key or set element; one that cannot be hashed becomes a record."""
        key = self.value(node)
        if type(key).__hash__ is None:
            key = Opaque("builtins", type(key).__name__, reason="cannot be a key")
        self.budget.admit_key(key)
        return key

    def elements(self, items: Collection[object], kind: Callable[[list[object]], object]) -> object:
        self.count(len(items))
        self.budget.charge(120 * len(items))
        return kind([self.key(item) for item in items])

    def opaque(self, node: Opaque) -> object:
        if node.args is not None:
            path = f"{node.module}.{node.name}"
            handler = self.handlers.get(path)
            value = NotImplemented if handler is None else handler(self, node)
            if value is not NotImplemented:
                return value
            state = node.state
            if isinstance(state, dict):
                if {"_parameters", "_buffers", "_modules"} <= state.keys():
                    return self.module(node, state)
                if node.module.split(".")[0] == "__torch__":
                    return self.scripted_module(node, state)
            node.args = tuple([self.value(arg) for arg in node.args])
            node.state = self.value(node.state)
            if node.items is not None:
                items = self.value(node.items)
                node.items = items if isinstance(items, (dict, list)) else None
        return node

    def module(self, node: Opaque, state: dict[Any, Any]) -> StoredModule:
        module = StoredModule(f"{node.module}.{node.name}", self.settings(state))
        hidden = self.value(state.get("_non_persistent_buffers_set"))
        for group in ("_parameters", "_buffers", "_modules"):
            members = self.value(state[group])
            if not isinstance(members, dict):
                raise ConvertError(f"{group} of {module.class_name!r:.80} are no dict; {RETRY}")
            self.budget.charge(120 * len(members))
            for name, member in members.items():
                if not isinstance(name, str) or name in module:
                    raise ConvertError(f"{group} of {module.class_name!r:.80} repeat {name!r:.80}")
                transient = group == "_buffers" and isinstance(hidden, set) and name in hidden
                if member is not None and not transient:
                    module[name] = member
        return module

    def settings(self, state: dict[Any, Any]) -> dict[str, object]:
        self.budget.charge(120 * len(state))  # a file may give one state to many objects
        return {
            name: item
            for name, item in state.items()
            if isinstance(name, str) and not name.startswith("_") and is_setting(item)
        }

    def scripted_module(self, node: Opaque, state: dict[Any, Any]) -> StoredModule:
        # torch.jit names classes "__torch__.<path>", with "___torch_mangle_7." before the last part
        # when several share a path. Private lists such as _flat_weights only repeat tensors.
        path = f"{node.module}.{node.name}".removeprefix("__torch__.")
        module = StoredModule(re.sub(r"___torch_mangle_\d+\.", "", path), self.settings(state))
        for name, item in state.items():
            if isinstance(name, str) and type(item) not in _ATOMS:
                member = self.value(item)
                if not (name.startswith("_") and type(member) in (list, tuple, dict)):
                    module[name] = member
        return module


def _means(*paths: str) -> Callable[[_Handler], _Handler]:
    """Register what calls of these names mean; a handler may answer NotImplemented."""

    def register(handler: _Handler) -> _Handler:
        Meaning.handlers.update(dict.fromkeys(paths, handler))
        return handler

    return register


@_means("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
def _tensor(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case (Storage() as storage, int(offset), size, stride, *rest):
            # (requires_grad, backward_hooks, metadata); metadata marks lazy conj and neg.
            return _placed(meaning, storage, storage.dtype, offset, size, stride, rest[2:])
    raise ConvertError(f"a tensor in the pickle is not built from a storage; {RETRY}")


@_means("torch._utils._rebuild_tensor_v3")
def _tensor_v3(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case (Storage() as storage, int(offset), size, stride, _, _, Opaque(name=dtype), *rest):
            return _placed(meaning, storage, dtype, offset, size, stride, rest)
    raise ConvertError(f"a tensor in the pickle is not built from a storage; {RETRY}")


def _placed(
    meaning: Meaning,
    storage: Storage,
    dtype: str,
    offset: int,
    size: object,
    stride: object,
    metadata: list[object],
) -> object:
    if dtype not in DTYPES:
        return Opaque(
            "torch", "Tensor", reason=f"a tensor of dtype {dtype[:40]}, which is not read"
        )
    if any(metadata):
        return Opaque("torch", "Tensor", reason="a conjugated or negated tensor, which is not read")
    size, stride = meaning.value(size), meaning.value(stride)
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ConvertError(f"the size of a tensor in the pickle is no tuple; {RETRY}")
    meaning.budget.charge(600 + 100 * len(size))
    return meaning.storages.tensor(storage, dtype, offset, size, stride)


@_means(
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_sparse_csr_tensor",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage",
)
def _unsupported_tensor(meaning: Meaning, call: Opaque) -> object:
    kind = call.name.removeprefix("_rebuild_").split("_")[0].replace("qtensor", "quantised")
    return Opaque(call.module, call.name, reason=f"a {kind} tensor, which is not read")


@_means(
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.jit._pickle.restore_type_tag",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
)
def _first_argument(meaning: Meaning, call: Opaque) -> object:
    return meaning.value(call.args[0]) if call.args else NotImplemented


@_means("torch._tensor._rebuild_from_type_v2")
def _tensor_of_type(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case (Opaque(args=None) as rebuild, _, tuple(args), _):
            return meaning.value(Opaque(rebuild.module, rebuild.name, args))
    return NotImplemented


@_means("copyreg._reconstructor", "copy_reg._reconstructor")
def _object_of_protocol_1(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case (Opaque(args=None) as kind, *_):
            return meaning.value(Opaque(kind.module, kind.name, (), call.state, call.items))
    return NotImplemented


@_means(
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "builtins.dict",
    "__builtin__.dict",
)
def _dict(meaning: Meaning, call: Opaque) -> object:
    items = call.items if isinstance(call.items, dict) else {}
    for arg in call.args or ():
        if isinstance(arg, (dict, list)):  # a list of pairs, as Python 2 wrote an OrderedDict
            pairs = list(arg.items()) if isinstance(arg, dict) else arg
            if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
                return NotImplemented
            meaning.budget.charge(200 * len(pairs))
            for key, item in pairs:
                meaning.budget.admit_key(key)
                items[key] = item
    return meaning.value(items)


@_means("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset")
def _set(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case ():
            return set() if call.name == "set" else frozenset()
        case (list(items),):
            return meaning.elements(items, set if call.name == "set" else frozenset)
    return NotImplemented


@_means("torch.Size")
def _size(meaning: Meaning, call: Opaque) -> object:
    value = meaning.value(call.args[0]) if call.args else ()
    if not isinstance(value, (list, tuple)):
        return NotImplemented
    meaning.budget.charge(8 * len(value))
    return tuple(value)


@_means("builtins.complex", "__builtin__.complex")
def _complex(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case (float(real), float(imaginary)):
            return complex(real, imaginary)
    return NotImplemented


@_means(
    "_codecs.encode",
    "builtins.bytes",
    "__builtin__.bytes",
    "builtins.bytearray",
    "__builtin__.bytearray",
)
def _bytes(meaning: Meaning, call: Opaque) -> object:
    # Protocols 0 to 2 have no opcode for bytes and spell them as Latin-1 text.
    match call.args:
        case ():
            return b""
        case (str(text), "latin1" | "latin-1") if not text or max(text) <= "\xff":
            meaning.budget.charge(len(text))
            return text.encode("latin-1")
        case (argument,) if type(value := meaning.value(argument)) is bytes:
            return value
    return NotImplemented


@_means("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
def _numpy_scalar(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case (dtype, raw):
            array = _numpy_values(meaning, dtype, raw, (), "C")
            return array if array is NotImplemented else array.item()
    return NotImplemented


@_means("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
def _numpy_array(meaning: Meaning, call: Opaque) -> object:
    match call.state:
        case (_, tuple(shape), dtype, fortran, raw):
            return _numpy_values(meaning, dtype, raw, shape, "F" if fortran else "C")
    return NotImplemented


@_means("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
def _numpy_array_of_protocol_5(meaning: Meaning, call: Opaque) -> object:
    match call.args:
        case (raw, dtype, tuple(shape), str(order)):
            return _numpy_values(meaning, dtype, raw, shape, order)
    return NotImplemented


def _numpy_values(
    meaning: Meaning, dtype: object, raw: object, shape: tuple[Any, ...], order: str
) -> Any:
    """A native array of a plain numeric dtype, or NotImplemented."""
    match dtype:
        case Opaque(module="numpy", name="dtype", args=(str(code), *_), state=state):
            pass
        case _:
            return NotImplemented
    data = meaning.value(raw)
    if isinstance(data, str):  # bytes of Python 2 that happen to be text
        data = data.encode("utf-8", "surrogatepass")
    byte_order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    if (
        not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code)
        or byte_order not in ("<", ">", "|")
        or not isinstance(data, bytes)
        or not all(type(length) is int and 0 <= length < 2**31 for length in shape)
        or len(shape) > MAX_DIMENSIONS
        or math.prod(max(1, length) for length in shape) >= 2**58
        or order not in ("C", "F")
    ):
        return NotImplemented
    stored = np.dtype((">" if byte_order == ">" else "<") + code.replace("b", "u"))
    if math.prod(shape) * stored.itemsize != len(data):
        raise ConvertError(f"a NumPy array of shape {shape} in {len(data)} bytes; {RETRY}")
    meaning.budget.charge(2 * len(data))
    native = np.dtype("?") if code == "b1" else stored.newbyteorder("=")
    values: np.ndarray[Any, Any] = np.ndarray(
        shape, stored, data, order="F" if order == "F" else "C"
    )
    return values.astype(native, order="C")
