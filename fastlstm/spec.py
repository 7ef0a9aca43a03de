"""The vocabulary: layer kinds, gate order, tensor names and shapes, and the check of a model.

A model is an ordered list of layers. A layer is a frozen dataclass whose fields carry PyTorch's
names; it knows the tensors it needs (PyTorch's names and shapes under the layer's own name) and the
state one stream keeps for it. Nothing here touches an array.

Dimension letters: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``O`` output, ``G`` gates,
``D`` directions, ``N`` layers of a stack.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

__all__ = [
    "ACTIVATIONS",
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "ConvertError",
    "Embedding",
    "Layer",
    "Linear",
    "OneHot",
    "Recurrent",
    "check_layers",
    "check_tensors",
    "layer_from_dict",
]

ACTIVATIONS = ("relu", "tanh", "sigmoid", "softmax", "log_softmax")

# Sizes are stored as 32-bit integers by some readers of the file; a product of three stays in 96
# bits, and every product here is a Python integer, so nothing can wrap.
MAX_SIZE = 2**31 - 1

# num_layers alone decides how many tensor names a stack asks for: bounded before they are listed,
# so that a file of a few bytes cannot ask for 2**31 of them.
MAX_DEPTH = 4096

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


class ConvertError(ValueError):
    """A checkpoint, module or mapping cannot be turned into a model; the message says why."""


@dataclass(frozen=True)
class Layer:
    """One layer of a model: its options, the tensors it needs and the state it keeps.

    Parameters
    ----------
    name : str
        Unique within the model; tensors are called ``<name>.<suffix>`` and state arrays
        ``<name>.h`` and ``<name>.c``.
    """

    name: str
    kind: ClassVar[str]
    takes_tokens: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"layer name {self.name!r:.80} is not usable; expected 1 to 200 letters, digits, "
                f"'_', '.' or '-', not starting with '.' or '-'"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "proj_size" else 1
            if field.type == "int":
                if hasattr(value, "__index__") and not isinstance(value, bool):
                    # A size that was read from an array is NumPy's integer.
                    object.__setattr__(self, field.name, value := operator.index(value))
                if type(value) is not int or not least <= value <= MAX_SIZE:
                    raise ValueError(
                        f"layer {self.name!r}: {field.name} is {value!r:.80}; "
                        f"expected an integer from {least} to {MAX_SIZE}"
                    )
            elif field.type == "bool" and type(value) is not bool:
                raise ValueError(
                    f"layer {self.name!r}: {field.name} is {value!r:.80}; expected true or false"
                )

    if TYPE_CHECKING:  # a property here would become the default of a field of the same name

        @property
        def input_size(self) -> int:
            """Features a step of this layer reads (for a token layer, the tokens it knows)."""

        @property
        def output_size(self) -> int:
            """Features a step of this layer writes."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Full tensor name -> shape, in PyTorch's order."""
        return {}

    def state(self) -> dict[str, tuple[int, int]]:
        """Full state name -> (N * D, size) for one stream; empty for a layer without state."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON values, ``kind`` first."""
        return {"kind": self.kind} | {f.name: getattr(self, f.name) for f in fields(self)}

    def describe(self) -> str:
        """Options in the style of ``repr`` of a torch module, without the name."""
        inside = ", ".join(f"{k}={v}" for k, v in self.to_dict().items() if k not in _SILENT)
        return f"{self.kind}({inside})"


_SILENT = ("kind", "name")


@dataclass(frozen=True)
class OneHot(Layer):
    """Token in ``[0, num_classes)`` -> one-hot vector (``torch.nn.functional.one_hot``)."""

    num_classes: int
    kind: ClassVar[str] = "one_hot"
    takes_tokens: ClassVar[bool] = True

    @property
    def input_size(self) -> int:
        return self.num_classes

    @property
    def output_size(self) -> int:
        return self.num_classes


@dataclass(frozen=True)
class Embedding(Layer):
    """Token -> row of a table (``torch.nn.Embedding``)."""

    num_embeddings: int
    embedding_dim: int
    kind: ClassVar[str] = "embedding"
    takes_tokens: ClassVar[bool] = True

    @property
    def input_size(self) -> int:
        return self.num_embeddings

    @property
    def output_size(self) -> int:
        return self.embedding_dim

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}.weight": (self.num_embeddings, self.embedding_dim)}


@dataclass(frozen=True)
class Linear(Layer):
    """``y = x W^T + b`` (``torch.nn.Linear``)."""

    in_features: int
    out_features: int
    bias: bool = True
    kind: ClassVar[str] = "linear"

    @property
    def input_size(self) -> int:
        return self.in_features

    @property
    def output_size(self) -> int:
        return self.out_features

    def tensors(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.name}.weight": (self.out_features, self.in_features)
        }
        if self.bias:
            shapes[f"{self.name}.bias"] = (self.out_features,)
        return shapes


@dataclass(frozen=True)
class Activation(Layer):
    """An elementwise function, or a (log-)softmax over the features, of ``size`` features."""

    function: str
    size: int
    kind: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.function not in ACTIVATIONS:
            raise ValueError(
                f"layer {self.name!r}: function is {self.function!r:.80}; "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def input_size(self) -> int:
        return self.size

    @property
    def output_size(self) -> int:
        return self.size


@dataclass(frozen=True)
class Recurrent(Layer):
    """What LSTM, GRU and RNN share: a stack of ``num_layers`` layers in one or two directions.

    Gate blocks are stacked along the first axis of every weight and bias in PyTorch's order, given
    by ``gates``.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    gates: ClassVar[str]
    has_cell_state: ClassVar[bool] = False

    @property
    def directions(self) -> int:
        """``D``: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def projection(self) -> int:
        """LSTM ``proj_size``; 0 where h is not projected."""
        return 0

    @property
    def h_size(self) -> int:
        """Size of ``h`` in one direction: ``proj_size`` if there is one, else ``hidden_size``."""
        return self.projection or self.hidden_size

    @property
    def output_size(self) -> int:
        return self.h_size * self.directions

    def sizes(self) -> list[tuple[str, int]]:
        """(tensor suffix such as ``_l1_reverse``, input size) per layer and direction, in order."""
        return [
            (f"_l{n}{reverse}", self.input_size if n == 0 else self.output_size)
            for n in range(self.num_layers)
            for reverse in ("", "_reverse")[: self.directions]
        ]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        rows = len(self.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for suffix, input_size in self.sizes():
            shapes[f"{self.name}.weight_ih{suffix}"] = (rows, input_size)
            shapes[f"{self.name}.weight_hh{suffix}"] = (rows, self.h_size)
            if self.bias:
                shapes[f"{self.name}.bias_ih{suffix}"] = (rows,)
                shapes[f"{self.name}.bias_hh{suffix}"] = (rows,)
            if self.projection:
                shapes[f"{self.name}.weight_hr{suffix}"] = (self.projection, self.hidden_size)
        return shapes

    def state(self) -> dict[str, tuple[int, int]]:
        depth = self.num_layers * self.directions
        shapes = {f"{self.name}.h": (depth, self.h_size)}
        if self.has_cell_state:
            shapes[f"{self.name}.c"] = (depth, self.hidden_size)
        return shapes


@dataclass(frozen=True)
class LSTM(Recurrent):
    """``torch.nn.LSTM``; with ``proj_size``, h is projected (https://arxiv.org/abs/1402.1128)."""

    proj_size: int = 0
    kind: ClassVar[str] = "lstm"
    gates: ClassVar[str] = "ifgo"
    has_cell_state: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"layer {self.name!r}: proj_size is {self.proj_size}; "
                f"expected less than hidden_size, which is {self.hidden_size}"
            )

    @property
    def projection(self) -> int:
        return self.proj_size


@dataclass(frozen=True)
class GRU(Recurrent):
    """``torch.nn.GRU``: the reset gate is applied after the recurrent product."""

    kind: ClassVar[str] = "gru"
    gates: ClassVar[str] = "rzn"


@dataclass(frozen=True)
class RNN(Recurrent):
    """``torch.nn.RNN``: an Elman network with tanh or relu."""

    nonlinearity: str = "tanh"
    kind: ClassVar[str] = "rnn"
    gates: ClassVar[str] = "h"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"layer {self.name!r}: nonlinearity is {self.nonlinearity!r:.80}; "
                f"expected 'tanh' or 'relu'"
            )


_KINDS: dict[str, type[Layer]] = {
    cls.kind: cls for cls in (OneHot, Embedding, Linear, Activation, LSTM, GRU, RNN)
}


def layer_from_dict(entry: object) -> Layer:
    """The inverse of :meth:`Layer.to_dict`, strict: every field present, no other one.

    Raises
    ------
    ValueError
        If the entry is not a mapping, its kind is unknown, a field is missing, unknown or of the
        wrong type, or its value is out of range.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"a layer is {type(entry).__name__}; expected a mapping with a 'kind'")
    kind = entry.get("kind")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"layer kind {kind!r:.80} is unknown; expected one of {', '.join(_KINDS)}")
    options = {k: v for k, v in entry.items() if k != "kind"}
    known = {f.name for f in fields(cls)}
    if options.keys() != known:
        wrong = sorted(str(k) for k in options.keys() ^ known)
        raise ValueError(f"layer kind {kind!r}: missing or unknown fields {', '.join(wrong)[:200]}")
    return cls(**options)


def check_layers(layers: Sequence[Layer]) -> None:
    """Check that the layers make a model: at least one, unique names, sizes that chain.

    Raises
    ------
    ValueError
        Naming the first layer that does not fit and the sizes on both sides.
    """
    if not layers:
        raise ValueError("a model needs at least one layer; the list is empty")
    depth = sum(getattr(layer, "num_layers", 1) for layer in layers)
    if depth > MAX_DEPTH:
        raise ValueError(f"the model is {depth} layers deep; at most {MAX_DEPTH} are supported")
    seen: set[str] = set()
    for layer in layers:
        if layer.name in seen:
            raise ValueError(f"two layers are called {layer.name!r}; names must be unique")
        seen.add(layer.name)
    for position, layer in enumerate(layers):
        if layer.takes_tokens and position > 0:
            raise ValueError(
                f"layer {layer.name!r} ({layer.kind}) takes tokens, so it can only come first; "
                f"it is number {position + 1}"
            )
    if isinstance(layers[0], OneHot) and (
        len(layers) == 1 or not isinstance(layers[1], Linear | Recurrent)
    ):
        raise ValueError(
            f"layer {layers[0].name!r} (one_hot) must be followed by a linear or recurrent layer"
        )
    for before, after in itertools.pairwise(layers):
        if before.output_size != after.input_size:
            raise ValueError(
                f"layer {after.name!r} ({after.kind}) takes {after.input_size} features but "
                f"{before.name!r} ({before.kind}) before it gives {before.output_size}; "
                f"check the order of the layers"
            )


def check_tensors(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the tensors are exactly those the layers need, each with its shape.

    Parameters
    ----------
    layers : sequence of Layer
        Already checked by :func:`check_layers`.
    shapes : mapping of str to tuple of int
        The shape of every tensor there is.

    Raises
    ------
    ValueError
        Naming the tensor that is missing, left over or of the wrong shape.
    """
    wanted = {name: shape for layer in layers for name, shape in layer.tensors().items()}
    for name, shape in wanted.items():
        if name not in shapes:
            raise ValueError(f"tensor {name!r} of shape {shape} is missing")
        if tuple(shapes[name]) != shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(shapes[name])}; the layers ask for {shape}"
            )
    for name in shapes:
        if name not in wanted:
            raise ValueError(f"tensor {name!r:.200} belongs to no layer")
