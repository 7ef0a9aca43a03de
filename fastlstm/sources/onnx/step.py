"""A node of an ONNX graph as its operator sees it: attributes and inputs of checked types."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.line import Line, Value
from fastlstm.sources.onnx.file import ATTRIBUTE_KINDS, Array, Constants, Node

__all__ = ["Known", "Step"]

# What is known of an array: its numbers, among which there may be sizes that are not known, or
# where it is on the line; None for an input that is left out.
Known = Array | Value | None

Option = TypeVar("Option", int, float, str)

# Operators of which PyTorch names a node after the path of a module: "/encoder/lstm/LSTM".
OWN_LAYER = {
    *("BatchNormalization", "Conv", "Elu", "GRU", "Gather", "Gelu", "Gemm", "HardSigmoid", "LSTM"),
    *("LayerNormalization", "LeakyRelu", "LogSoftmax", "MatMul", "PRelu", "RNN", "Relu"),
    *("Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh"),
}


class Step:
    """A node in use. Its methods raise ConvertError, naming the node, where the types are wrong."""

    def __init__(
        self,
        node: Node,
        version: int,
        line: Line,
        inputs: Sequence[Known],
        constants: Constants,
        used: Callable[[str], bool],
    ) -> None:
        self.node = node
        self.version = version
        self.line = line
        self.inputs = inputs
        self.constants = constants
        self.notes: list[str] = []
        self._attributes = dict(node.attributes)
        self._used = used
        self.name = _layer_name(node)

    def refuse(self, text: str) -> ConvertError:
        return ConvertError(f"{self.node.label} {text}")

    def reserve(self, numbers: int) -> None:
        """Take so many numbers out of what may be computed from constants."""
        self.constants.left -= numbers
        if self.constants.left < 0:
            raise self.refuse(
                "computes more numbers from constants than the file holds; expected a model whose "
                "weights are stored"
            )

    def gives(self, index: int) -> bool:
        """Whether an output is there, and something needs it."""
        return index < len(self.node.outputs) and self._used(self.node.outputs[index])

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def known(self, index: int) -> Array | Value:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise self.refuse(f"has no input number {index}; expected it")
        return found

    def value(self, index: int) -> Value:
        """An input that is computed from the model's inputs."""
        found = self.known(index)
        if not isinstance(found, Value):
            raise self.refuse(
                f"reads the constant {self.node.inputs[index]!r:.200} as its input number {index}; "
                f"expected what is computed from the model's input"
            )
        return found

    def either(self, index: int) -> Value:
        """An input as a value, which it may be a constant of."""
        found = self.known(index)
        return found if isinstance(found, Value) else self.line.constant(self.numbers(index))

    def numbers(self, index: int) -> Array:
        """An input that is constant."""
        found = self.known(index)
        if isinstance(found, Value) or found.dtype == object:
            raise self.refuse(
                f"has computed numbers for its input number {index}, "
                f"{self.node.inputs[index]!r:.200}; expected a constant"
            )
        return found

    def weight(self, index: int, *ndim: int) -> Array:
        """An input that is constant, of floats, and of as many axes."""
        array = self.numbers(index)
        if array.dtype.kind != "f" or (ndim and array.ndim not in ndim):
            raise self.refuse(
                f"has for its input number {index}, {self.node.inputs[index]!r:.200}, an array of "
                f"{array.dtype} and shape {array.shape}; expected floats"
                + (f" of {' or '.join(map(str, ndim))} axes" if ndim else "")
            )
        return array

    def integers(self, index: int) -> list[int]:
        """An input that is a constant integer or a list of them."""
        array = self.numbers(index)
        if array.dtype.kind not in "iu" or array.ndim > 1:
            raise self.refuse(
                f"has for its input number {index} an array of {array.dtype} and shape "
                f"{array.shape}; expected integers"
            )
        return [int(n) for n in array.reshape(-1)]

    def scalar(self, index: int) -> float:
        array = self.numbers(index)
        if array.size != 1:
            raise self.refuse(
                f"has for its input number {index} an array of shape {array.shape}; expected one "
                f"number"
            )
        return float(array.reshape(-1)[0])

    def _attribute(self, name: str, kind: str) -> Any:
        attribute = self._attributes.pop(name, None)
        if attribute is None:
            return None
        code = attribute.type
        if code >= len(ATTRIBUTE_KINDS) or ATTRIBUTE_KINDS[code] != kind or attribute.ref_attr_name:
            given = ATTRIBUTE_KINDS[code] if code < len(ATTRIBUTE_KINDS) else f"type {code}"
            raise self.refuse(
                f"has the attribute {name!r} of type {given}; expected it of type {kind}"
            )
        return attribute

    def option(self, name: str, default: Option) -> Option:
        """An attribute of the type of its default: an integer, a float or a string."""
        kind = {int: "int", float: "float", str: "string"}[type(default)]
        found = self._attribute(name, kind)
        return default if found is None else type(default)(self._plain(found, kind))

    def flag(self, name: str, default: bool = False) -> bool:
        """An attribute that is 0 or 1."""
        number = self.option(name, int(default))
        if number not in (0, 1):
            raise self.refuse(f"has the attribute {name!r} of {number}; expected 0 or 1")
        return bool(number)

    def options(self, name: str, of: type[Option]) -> list[Option] | None:
        """An attribute that is a list; None if it is left out."""
        kind = {int: "int", float: "float", str: "string"}[of]
        found = self._attribute(name, f"{kind}s")
        if found is None:
            return None
        return [of(self._plain(value, kind)) for value in getattr(found, f"{kind}s")]

    def tensor(self, name: str) -> Array | None:
        found = self._attribute(name, "tensor")
        if found is None:
            return None
        return self.constants.array(found.t, f"{self.node.label}: attribute {name!r}")

    def _plain(self, value: Any, kind: str) -> Any:
        """A number or text of an attribute, or what the attribute itself holds."""
        value = getattr(value, kind[0], value)
        if kind == "float":
            # Of 32 bits: 0.01 is the shortest text for the nearest of these.
            return str(np.float32(value))
        if kind == "string":
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise self.refuse(f"has the text {value[:40]!r}; expected UTF-8") from None
        return value

    def no_effect(self, *names: str) -> None:
        """Attributes that change nothing at inference."""
        for name in names:
            self._attributes.pop(name, None)

    def done(self) -> None:
        """Refuse attributes that nothing has asked for."""
        for name in self._attributes:
            raise self.refuse(f"has the attribute {name!r:.80}, which is not supported")


def _layer_name(node: Node) -> str:
    """What its layer is called: the path of its weight, or its own, as PyTorch writes paths."""
    for name in node.inputs[1:2]:
        path, _, last = name.rpartition(".")
        if path and last == "weight":
            return path
    name = node.name.replace("/", ".").strip(".")
    if node.op in OWN_LAYER:
        name = re.sub(rf"\.{node.op}(_\d+)?$", r"\1", name)
    return name
