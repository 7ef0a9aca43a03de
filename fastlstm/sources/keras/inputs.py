"""The inputs of a Keras model: their names and axes, and which of these is time."""

from __future__ import annotations

from dataclasses import dataclass

from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import Axes
from fastlstm.sources.keras.file import SavedModel, Weights
from fastlstm.sources.keras.network import MODELS, Network, Tensor, inner_network

__all__ = ["Given", "given_inputs"]

_PASS = ("Dropout", "SpatialDropout1D", "Identity")


@dataclass(frozen=True)
class Given:
    """An input.

    Parameters
    ----------
    name : str
    tensor : Tensor
    axes : tuple of int or None
        Behind the batch; the first is None where it is time.
    steps : int or None
        How many, where there is time and the file says it.
    tokens : int
        How many different ones there are, if it is tokens; else 0.
    """

    name: str
    tensor: Tensor
    axes: Axes
    steps: int | None = None
    tokens: int = 0

    @property
    def timed(self) -> bool:
        return self.axes[:1] == (None,)

    @property
    def fixed(self) -> bool:
        """Whether the file says all its sizes."""
        return not self.timed or self.steps is not None


def given_inputs(saved: SavedModel, network: Network, over_time: bool) -> list[Given]:
    """The inputs of a model.

    The first axis behind the batch is time where its size is not said, or where the input is of
    more than one axis, or of tokens, and all such inputs have as many steps. Without `over_time`
    only an axis whose size is not said is.
    """
    shapes: list[Axes] = []
    sequences: list[int] = []
    tokens = [_tokens(network, tensor) for _, tensor in network.inputs]
    for ((_, tensor), said), count in zip(
        zip(network.inputs, network.shapes, strict=True), tokens, strict=True
    ):
        shape = _axes(said if said is not None else _of_weights(saved, network, tensor))
        if len(shape) > 1 or (shape and count):
            sequences.append(len(shapes))
        shapes.append(shape)
    lengths = {shapes[at][0] for at in sequences}
    # Sequences of other lengths are no steps of one: those that are known are rows.
    timed = set(sequences) if over_time and len(lengths) == 1 else set()
    timed |= {at for at, shape in enumerate(shapes) if shape[:1] == (None,)}
    return [
        Given(name, tensor, (None, *shape[1:]), shape[0], tokens[at])
        if at in timed
        else Given(name, tensor, shape, tokens=tokens[at])
        for at, ((name, tensor), shape) in enumerate(zip(network.inputs, shapes, strict=True))
    ]


def _axes(shape: object) -> Axes:
    """The axes of one row of the batch, of the shape of the input with the batch."""
    good = isinstance(shape, list) and len(shape) > 1
    if not good or not all(n is None or (type(n) is int and n > 0) for n in shape):  # type: ignore[attr-defined]
        raise ConvertError(
            f"the shape of the input is {shape!r:.80}; expected (batch, steps, features), (batch, "
            f"steps) of tokens or (batch, features)"
        )
    axes: Axes = tuple(shape[1:])  # type: ignore[index]
    if None in axes[1:]:
        raise ConvertError(
            f"the shape of the input is {shape!r:.80}; expected all sizes but those of the batch "
            f"and the steps, the first two: give keras.Input the features of a step"
        )
    return axes


def _tokens(network: Network, tensor: Tensor) -> int:
    """How many tokens the embedding that reads an input knows; 0 if there is none."""
    left, seen = [(network, tensor)], set()
    while left:
        network, tensor = left.pop()
        if (id(network), tensor) in seen:
            continue
        seen.add((id(network), tensor))
        for call in network.readers.get(tensor, []):
            kind = call.entry.class_name
            if kind == "Embedding":
                return call.entry.options().size("input_dim")
            if kind in _PASS:
                left.append((network, Tensor(call.entry.name, call.number)))
            elif kind in MODELS:
                inner = inner_network(call.entry)
                if (at := call.reads.index(tensor)) < len(inner.inputs):
                    left.append((inner, inner.inputs[at][1]))
    return 0


def _of_weights(saved: SavedModel, network: Network, tensor: Tensor) -> object:
    """The shape of an input of which the file says none, as the layer that reads it tells it."""
    calls = network.readers.get(tensor, [])
    if not calls:
        return None
    entry = calls[0].entry
    parts = saved.weights.parts([(one.class_name, one.name) for one in network.entries])
    weights = parts[next(at for at, one in enumerate(network.entries) if one is entry)]
    if entry.class_name == "Embedding":
        return [None, None]
    where = _WEIGHTS.get(entry.class_name)
    if where is None:
        raise ConvertError(
            f"the file does not say how many features {entry.what} reads; build the model with "
            f"keras.Input((None, features)) in front and save it again"
        )
    attribute, axis = where
    return [None, None, _kernel(weights, attribute).shape[axis] * _groups(entry.config)]


def _groups(config: dict[str, object]) -> int:
    groups = config.get("groups", 1)
    return groups if type(groups) is int and groups > 0 else 1


def _kernel(weights: Weights, attributes: tuple[str, ...]):  # type: ignore[no-untyped-def]
    for attribute in attributes:
        weights = weights.inside(attribute)
    (kernel,) = weights.take(("kernel",))
    if kernel.ndim < 2:
        raise ConvertError(f"a kernel has shape {kernel.shape}; expected two axes or more")
    return kernel


_WEIGHTS: dict[str, tuple[tuple[str, ...], int]] = {
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU"), (("cell",), 0)),
    "Bidirectional": (("forward_layer", "cell"), 0),
    "Conv1D": ((), 1),
}
