"""A node of an ONNX graph as its operator sees it: attributes and inputs of checked types."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.arrays.core import check_size
from fastlstm.sources.onnx.graph import Node
from fastlstm.sources.onnx.tensors import Array, Tensors

__all__ = ["Known", "Lengths", "Step", "refused", "shape_of"]


@dataclass(frozen=True)
class Lengths:
    """In place of an array: how many steps each row has, which the model is told by itself."""

    name: str


# What is known of an array; a list is a sequence of arrays.
Known = Value | Array | Lengths | list[Any] | None

ATTRIBUTE_KINDS = ("none", "float", "int", "string", "tensor", "graph", "floats", "ints", "strings")
_FIELDS = {"float": "f", "int": "i", "string": "s", "tensor": "t"}

# Operators of which PyTorch names a node after the path of a module: "/encoder/lstm/LSTM".
OWN_LAYER = {
    *("BatchNormalization", "Conv", "Elu", "GRU", "Gather", "Gelu", "Gemm", "HardSigmoid", "LSTM"),
    *("LayerNormalization", "LeakyRelu", "LogSoftmax", "MatMul", "PRelu", "RNN", "Relu"),
    *("Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh"),
}


@dataclass
class Budget:
    """Numbers that a run may compute from constants: so many, and so many times those stored.

    A small file can ask for any number of them.
    """

    tensors: Tensors
    spent: int = 0
    notes: dict[str, None] = field(default_factory=dict)

    SPARE, TIMES = 2**20, 4

    def take(self, numbers: int) -> None:
        self.spent += numbers
        if self.spent > self.SPARE + self.TIMES * self.tensors.count:
            raise ConvertError(
                "computes more numbers from constants than the file holds; expected a model whose "
                "weights are stored"
            )


class Step:
    """A node in use. Its methods raise ConvertError, naming the node, where the types are wrong.

    Parameters
    ----------
    node : Node
    version : int
        Of the set of operators.
    builder : Builder
    inputs : sequence of Value, array, Lengths, list or None
    tensors : Tensors
    budget : Budget
    used : callable
        Whether something needs an output of this name.
    """

    def __init__(
        self,
        node: Node,
        version: int,
        builder: Builder,
        inputs: Sequence[Known],
        tensors: Tensors,
        budget: Budget,
        used: Callable[[str], bool],
    ) -> None:
        self.node, self.version, self.b = node, version, builder
        self.inputs, self.tensors, self.budget = inputs, tensors, budget
        self._used = used
        self._defaults = _schema(node, version)
        self._left = dict(node.attributes)
        unknown = [name for name in (*node.attributes, *node.bodies) if name not in self._defaults]
        if unknown:
            raise self.refuse(f"has the attribute {unknown[0]!r:.80}, which is not supported")

    def refuse(self, text: str) -> ConvertError:
        return refused(self.node, text)

    def note(self, text: str) -> None:
        self.b.note(f"{self.node.label} {text}")

    # Outputs

    def gives(self, index: int) -> bool:
        """Whether an output is there, and something needs it."""
        return index < len(self.node.outputs) and self._used(self.node.outputs[index])

    def room(self, shape: Sequence[int], *arrays: Known) -> None:
        """Check that an array of a shape may be made of others, before it is."""
        if any(isinstance(array, Value) for array in arrays):
            check_size(shape)
            return
        try:
            self.budget.take(math.prod(shape))
        except ConvertError as error:
            raise self.refuse(str(error)) from None

    def move(self, function: Callable[..., Any], *arrays: Known) -> Any:
        """What a movement makes of arrays, be they constant or not."""
        return self.b.move(function, *arrays)

    # Inputs

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def any(self, index: int) -> Value | Array:
        """An input that is an array."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise self.refuse(f"has no input number {index}; expected it")
        if isinstance(found, Lengths):
            raise self.refuse(
                f"computes with {found.name!r:.200}, the lengths of the rows; expected recurrent "
                f"layers alone to read them"
            )
        if isinstance(found, list):
            raise self.refuse(f"has a sequence for its input number {index}; expected an array")
        return found

    def all(self) -> list[Value | Array]:
        """All inputs, of which there must be one."""
        self.any(0)
        return [self.any(index) for index in range(len(self.inputs))]

    def value(self, index: int) -> Value:
        """An input that is computed from the model's inputs."""
        found = self.any(index)
        if not isinstance(found, Value):
            raise self.refuse(
                f"reads the constant {self.node.inputs[index]!r:.200} as its input number {index}; "
                f"expected what is computed from the model's input"
            )
        return found

    def constant(self, index: int) -> Array:
        """An input that is constant."""
        found = self.any(index)
        if isinstance(found, Value):
            raise self.refuse(
                f"has computed numbers for its input number {index}, "
                f"{self.node.inputs[index]!r:.200}; expected a constant"
            )
        return found

    def weight(self, index: int, *ndim: int) -> Array:
        """An input that is constant, of floats, and of as many axes."""
        array = self.constant(index)
        if array.dtype.kind != "f" or (ndim and array.ndim not in ndim):
            raise self.refuse(
                f"has for its input number {index}, {self.node.inputs[index]!r:.200}, an array of "
                f"{array.dtype} and shape {array.shape}; expected floats"
                + (f" of {' or '.join(map(str, ndim))} axes" if ndim else "")
            )
        return array

    def integers(self, index: int) -> list[int]:
        """An input that is a constant integer or a list of them."""
        array = self.constant(index)
        if array.dtype.kind not in "iu" or array.ndim > 1:
            raise self.refuse(
                f"has for its input number {index} an array of {array.dtype} and shape "
                f"{array.shape}; expected integers"
            )
        return [int(n) for n in array.reshape(-1)]

    def integer(self, index: int) -> int:
        numbers = self.integers(index)
        if len(numbers) != 1:
            raise self.refuse(
                f"has {len(numbers)} integers for its input number {index}; expected one"
            )
        return numbers[0]

    def scalar(self, index: int) -> float:
        array = self.constant(index)
        if array.size != 1:
            raise self.refuse(
                f"has for its input number {index} an array of shape {array.shape}; expected one "
                f"number"
            )
        return float(array.reshape(-1)[0])

    def axis(self, axis: int, ndim: int) -> int:
        """An axis, counted from the first."""
        if not -ndim <= axis < ndim:
            raise self.refuse(f"works on axis {axis} of an array of {ndim}; expected one it has")
        return axis % ndim

    def axes(self, index: int, since: int) -> list[int] | None:
        """Axes, which are an attribute in older versions of an operator and then an input."""
        if self.version < since:
            return self.option("axes")  # type: ignore[no-any-return]
        return self.integers(index) if self.has(index) else None

    # Attributes

    def option(self, name: str) -> Any:
        """An attribute, or its default in the operator's version; None if it has neither.

        An integer, a float, a text, a list of these, or an array.
        """
        attribute = self._left.pop(name, None)
        default = self._defaults.get(name)
        if attribute is None:
            return None if default is None else self._plain(default, ATTRIBUTE_KINDS[default.type])
        kind = _kind(attribute.type)
        wanted = self._kinds.get(name, kind)
        if kind != wanted or kind == "none" or attribute.ref_attr_name:
            raise self.refuse(
                f"has the attribute {name!r} of type {kind}; expected it of type {wanted}"
            )
        return self._plain(attribute, kind)

    def flag(self, name: str) -> bool:
        """An attribute that is 0 or 1; 0 if it is left out."""
        number = self.option(name) or 0
        if number not in (0, 1):
            raise self.refuse(f"has the attribute {name!r} of {number}; expected 0 or 1")
        return bool(number)

    def no_effect(self, *names: str) -> None:
        """Attributes that change nothing at inference."""
        for name in names:
            self._left.pop(name, None)

    def done(self) -> None:
        """Refuse attributes that nothing has asked for."""
        for name in self._left:
            raise self.refuse(f"has the attribute {name!r:.80}, which is not supported")

    @property
    def _kinds(self) -> dict[str, str]:
        return _SCHEMAS[self.node.op, self.version][1]

    def _plain(self, attribute: Any, kind: str) -> Any:
        if kind == "tensor":
            name = f"{self.node.label}: attribute {attribute.name!r}"
            return self.tensors.array(attribute.t, name)
        if kind.endswith("s"):
            return [self._one(value, kind[:-1]) for value in getattr(attribute, kind)]
        if kind not in _FIELDS:
            raise self.refuse(f"has the attribute {attribute.name!r:.80} of type {kind}")
        return self._one(getattr(attribute, _FIELDS[kind]), kind)

    def _one(self, value: Any, kind: str) -> Any:
        if kind == "float":
            # Of 32 bits: 0.01 is the shortest text for the nearest of these.
            return float(str(np.float32(value)))
        if kind == "string":
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise self.refuse(f"has the text {value[:40]!r}; expected UTF-8") from None
        return value


def refused(node: Node, text: str) -> ConvertError:
    """An error that says which node it is about."""
    error = ConvertError(f"{node.label} {text}")
    error.placed = True  # type: ignore[attr-defined]
    return error


def shape_of(array: Value | Array) -> tuple[int, ...]:
    return tuple(array.shape)


def layer_name(node: Node) -> str:
    """What its layer is called: the path of its weight, or its own, as PyTorch writes paths."""
    for name in node.inputs[1:2]:
        path, _, last = name.rpartition(".")
        if path and last == "weight":
            return path
    name = node.name.replace("/", ".").strip(".")
    if node.op in OWN_LAYER:
        name = re.sub(rf"\.{node.op}(_\d+)?$", r"\1", name)
    return name or node.op


def _kind(code: int) -> str:
    """What an attribute is, by the number of its type."""
    return ATTRIBUTE_KINDS[code] if code < len(ATTRIBUTE_KINDS) else f"type {code}"


# By operator and version: attributes with their defaults, None where there is none, and types.
_SCHEMAS: dict[tuple[str, int], tuple[dict[str, Any], dict[str, str]]] = {}


def _schema(node: Node, version: int) -> dict[str, Any]:
    key = (node.op, version)
    if key not in _SCHEMAS:
        import onnx

        op = "Gelu" if node.op.startswith("Gelu by") else node.op
        try:
            schema = onnx.defs.get_schema(op, max(version, 20) if op != node.op else version)
        except onnx.defs.SchemaError:
            raise refused(
                node, f"is of no operator of ONNX's version {version}; expected one that it has"
            ) from None
        defaults = {
            name: a.default_value if a.default_value.name else None
            for name, a in schema.attributes.items()
        }
        attributes: dict[str, Any] = dict(schema.attributes)
        kinds = {name: _kind(a.type.value) for name, a in attributes.items()}
        _SCHEMAS[key] = defaults, kinds
    return _SCHEMAS[key][0]
