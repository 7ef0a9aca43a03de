"""A model: an ordered list of layers, some of which hold a list of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from chain.convolution import Conv1d, FrameConv1d
from chain.features import (
    Activation,
    BatchNorm1d,
    CombineHalves,
    LayerNorm,
    Linear,
    PReLU,
    Scale,
)
from chain.layer import Layer, layer_kind
from chain.recurrent import GRU, LSTM, RNN, Recurrent
from chain.time import Pool
from chain.tokens import Embedding, OneHot

__all__ = [
    "MAX_DEPTH",
    "Residual",
    "check_layers",
    "check_tensors",
    "delay",
    "layer_from_dict",
    "looks_ahead",
    "output_steps",
    "step_stride",
    "walk",
    "work",
]

# num_layers alone decides how many tensor names a stack asks for: bounded before they are listed,
# so that a file of a few bytes cannot ask for 2**31 of them.
MAX_DEPTH = 4096

# Residual layers within each other.
MAX_NESTING = 2

# Numbers in a row that a layer reads or writes, and in the state of a stream: where no tensor
# bounds them, a file of a few bytes must not ask for all the memory there is.
MAX_FEATURES = 2**20
MAX_STATE = 2**24


@layer_kind
class Residual(Layer):
    """A list of layers, whose output is combined with its own input, step by step.

    `combine` is ``"add"`` (https://arxiv.org/abs/1512.03385), ``"input_first"`` or
    ``"output_first"``: the two concatenated in that order. The names of the layers inside are as
    unique in the model as any other's.
    """

    layers: tuple[Layer, ...]
    combine: str = "add"
    kind: ClassVar[str] = "residual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.combine not in ("add", "input_first", "output_first"):
            raise self._refused("combine", "'add', 'input_first' or 'output_first'")
        if not self.layers:
            raise ValueError(f"layer {self.name!r}: layers is empty; expected at least one")
        for layer in self.layers:
            # A step of the input must meet its own step of the output.
            waits = layer.delay and not layer.looks_ahead
            if layer.takes_tokens or layer.pools or waits or layer.steps(2**20) != 2**20:
                raise ValueError(
                    f"layer {self.name!r}: {layer.name!r} ({layer.kind}) within it does not give "
                    f"one output for each step it reads; expected layers that do"
                )
        _check_chain(self.layers)
        if self.combine == "add" and self.layers[-1].output_size != self.input_size:
            raise ValueError(
                f"layer {self.name!r} adds {self.input_size} features to the "
                f"{self.layers[-1].output_size} that {self.layers[-1].name!r} gives; expected as "
                f"many"
            )

    @property
    def input_size(self) -> int:
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        return self.layers[-1].output_size + (0 if self.combine == "add" else self.input_size)

    @property
    def looks_ahead(self) -> str:
        return looks_ahead(self.layers)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for layer in self.layers for name, shape in layer.tensors().items()}

    def state(self) -> dict[str, tuple[int, int]]:
        return {name: shape for layer in self.layers for name, shape in layer.state().items()}

    def initial(self) -> dict[str, str]:
        return {name: tensor for layer in self.layers for name, tensor in layer.initial().items()}

    @property
    def work(self) -> int:
        return work(self.layers) + self.output_size

    def counts(self) -> dict[str, int]:
        return {name: bound for layer in self.layers for name, bound in layer.counts().items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "layers": [layer.to_dict() for layer in self.layers],
            "combine": self.combine,
        }

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Layer:
        if isinstance(options.get("layers"), list):
            inside = tuple(layer_from_dict(entry) for entry in options["layers"])
            options = options | {"layers": inside}
        elif "layers" in options:
            raise ValueError(f"layer kind {cls.kind!r}: layers is not a list")
        return super().from_dict(options)

    def describe(self) -> str:
        inside = ", ".join(layer.describe() for layer in self.layers)
        return f"{self.kind}([{inside}], combine={self.combine})"


_KINDS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        *(OneHot, Embedding, Linear, Activation, PReLU, Scale, LayerNorm, BatchNorm1d),
        *(CombineHalves, Conv1d, FrameConv1d, LSTM, GRU, RNN, Pool, Residual),
    )
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
    return cls.from_dict({k: v for k, v in entry.items() if k != "kind"})


def walk(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Every layer, a residual one before those inside it."""
    for layer in layers:
        yield layer
        if isinstance(layer, Residual):
            yield from walk(layer.layers)


def looks_ahead(layers: Sequence[Layer]) -> str:
    """Why the model cannot be streamed, as ``layer 'name' ...``; "" if it can."""
    for layer in walk(layers):
        if layer.looks_ahead and not isinstance(layer, Residual):
            return f"layer {layer.name!r} {layer.looks_ahead}"
    return ""


def output_steps(layers: Sequence[Layer], T: int) -> int:
    """Outputs of a whole sequence of `T` steps."""
    for layer in layers:
        T = layer.steps(T)
    return T


def step_stride(layers: Sequence[Layer]) -> int:
    """Steps a stream reads for each output after the first."""
    product = 1
    for layer in layers:
        product *= layer.step_stride
    return product


def delay(layers: Sequence[Layer]) -> int:
    """Steps a stream reads before the one that gives its first output."""
    steps, stride = 0, 1
    for layer in layers:
        steps += layer.delay * stride
        stride *= layer.step_stride
    return steps


def work(layers: Sequence[Layer]) -> int:
    """Multiply-adds of a step, at most: those of layers that run on every so many steps, too."""
    return sum(layer.work for layer in layers)


def _check_chain(layers: Sequence[Layer]) -> None:
    for before, after in itertools.pairwise(layers):
        if before.output_size != after.input_size:
            raise ValueError(
                f"layer {after.name!r} ({after.kind}) takes {after.input_size} features but "
                f"{before.name!r} ({before.kind}) before it gives {before.output_size}; "
                f"check the order of the layers"
            )
    for position, layer in enumerate(layers):
        if isinstance(layer, Pool) and layer.function == "final":
            followed = layers[position - 1] if position else layer
            if not isinstance(followed, Recurrent) or not followed.bidirectional:
                raise ValueError(
                    f"layer {layer.name!r} (pool) takes what two directions ended with; expected "
                    f"a bidirectional layer right before it"
                )


def _nesting(layers: Sequence[Layer]) -> int:
    return max(
        (1 + _nesting(layer.layers) for layer in layers if isinstance(layer, Residual)), default=0
    )


def check_layers(layers: Sequence[Layer]) -> None:
    """Check that the layers make a model: at least one, unique names, sizes that chain.

    Raises
    ------
    ValueError
        Naming the first layer that does not fit and the sizes on both sides.
    """
    if not layers:
        raise ValueError("a model needs at least one layer; the list is empty")
    depth = sum(getattr(layer, "num_layers", 1) for layer in walk(layers))
    if depth > MAX_DEPTH:
        raise ValueError(f"the model is {depth} layers deep; at most {MAX_DEPTH} are supported")
    if (nesting := _nesting(layers)) > MAX_NESTING:
        raise ValueError(
            f"residual layers are nested {nesting} deep; at most {MAX_NESTING} are supported"
        )
    seen: set[str] = set()
    for layer in walk(layers):
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
    for layer in walk(layers):
        reads = 0 if layer.takes_tokens else layer.input_size
        if max(reads, layer.output_size) > MAX_FEATURES and not isinstance(layer, OneHot):
            raise ValueError(
                f"layer {layer.name!r} ({layer.kind}) has rows of {max(reads, layer.output_size)} "
                f"features; at most {MAX_FEATURES} are supported"
            )
    state = sum(depth * size for layer in layers for depth, size in layer.state().values())
    if state > MAX_STATE:
        raise ValueError(
            f"the state of one stream would be {state} numbers; at most {MAX_STATE} are supported"
        )
    pools = [layer.name for layer in layers if layer.pools]
    if len(pools) > 1:
        raise ValueError(
            f"layers {pools[0]!r} and {pools[1]!r} both take one row of a whole sequence; "
            f"expected at most one that does"
        )
    if pools:
        behind = layers[[layer.pools for layer in layers].index(True) + 1 :]
        for layer in walk(behind):
            if layer.state():
                raise ValueError(
                    f"layer {layer.name!r} ({layer.kind}) goes over time, and {pools[0]!r} before "
                    f"it leaves a single row; expected it before the pool"
                )
    _check_chain(layers)


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
    wanted: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        for name, shape in layer.tensors().items():
            if name in wanted:
                raise ValueError(f"tensor {name!r:.200} would belong to two layers; rename one")
            wanted[name] = shape
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
