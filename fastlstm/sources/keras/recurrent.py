"""Recurrent layers of Keras as ours: LSTM, GRU, SimpleRNN, and Bidirectional around one of them.

Kernels are (inputs, gates * units), with the gates in the order i f c o (LSTM) and z r h (GRU), and
h' = z h + (1 - z) n (keras/src/layers/rnn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.config import Entry
from fastlstm.sources.keras.file import LayerWeights
from fastlstm.sources.keras.layers import Shape, Translate, Translation, take

__all__ = ["RECURRENT"]

Array = npt.NDArray[Any]

# The gates of ours, in our order, by their place in Keras's.
_GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}
_MERGES = {"concat": "", "sum": "sum", "mul": "product", "ave": "average"}


@dataclass(frozen=True)
class _Direction:
    """One direction of a recurrent layer, in our conventions; tensors by suffix without ``_l0``."""

    input_size: int
    units: int
    options: dict[str, Any]
    functions: tuple[str, ...]
    tensors: dict[str, Array]
    sequences: bool
    backwards: bool
    stateful: bool


def _direction(entry: Entry, weights: LayerWeights, size: int | None) -> _Direction:
    options, order = entry.options, _GATES[entry.class_name]
    units, bias = options.size("units"), options.flag("use_bias")
    rows = len(order) * units
    # Keras 2.1.2 and older have no such option.
    reset_after = entry.class_name == "GRU" and options.flag("reset_after", False)
    shapes: dict[str, Shape] = {"kernel": (size, rows), "recurrent_kernel": (units, rows)}
    if bias:
        shapes["bias"] = (2, rows) if reset_after else (rows,)
    arrays = take(entry, weights.inside("cell"), shapes)

    def ordered(array: Array) -> Array:
        """(n, rows), or (rows,) for n = 1 -> (rows, n) with the gates in our order."""
        by_gate = np.split(np.atleast_2d(array).T, len(order))
        made = np.empty((rows, by_gate[0].shape[1]), array.dtype)
        return np.concatenate([by_gate[gate] for gate in order], out=made)

    input_size = len(arrays["kernel"])
    # Taken out of `arrays`, so that not two copies of every weight are held.
    tensors = {
        "weight_ih": ordered(arrays.pop("kernel")),
        "weight_hh": ordered(arrays.pop("recurrent_kernel")),
    }
    if bias:
        both = ordered(arrays["bias"]).T
        tensors["bias_ih"] = both[0]
        tensors["bias_hh"] = both[1] if reset_after else np.zeros_like(both[0])
    options.must_be("return_state", False, ": a layer has one output here")
    options.must_be("time_major", False, ": the batch comes first")
    made = _Direction(
        input_size=input_size,
        units=units,
        options={"bias": bias} | ({"reset_after": reset_after} if len(order) == 3 else {}),
        functions=_functions(entry),
        tensors=tensors,
        sequences=options.flag("return_sequences"),
        backwards=options.flag("go_backwards", False),
        stateful=options.flag("stateful", False),
    )
    options.finish()
    return made


def _functions(entry: Entry) -> tuple[str, ...]:
    """Of the gates, of the candidate, of c: as many as the cell has."""
    candidate = _single(entry, "activation")
    if entry.class_name == "SimpleRNN":
        return (candidate,)
    of_gates = _single(entry, "recurrent_activation")
    return (of_gates, candidate, candidate)[: 3 if entry.class_name == "LSTM" else 2]


def _single(entry: Entry, key: str) -> str:
    functions = entry.options.activation(key)
    if len(functions) > 1 or (functions and functions[0] in ("softmax", "log_softmax")):
        raise ConvertError(
            f"{entry.what}: {key} is {', then '.join(functions)}; expected one function of a "
            f"single number within a cell"
        )
    return functions[0] if functions else "affine(1.0, 0.0)"


def _layer(name: str, class_name: str, way: _Direction, back: _Direction | None) -> spec.Layer:
    options = way.options | {"bidirectional": back is not None}
    if class_name == "SimpleRNN":
        options["nonlinearity"] = way.functions[0]
        options["nonlinearity_reverse"] = back.functions[0] if back else ""
    else:
        options["activations"] = way.functions + (back.functions if back else ())
    kinds: dict[str, type[spec.Recurrent]]
    kinds = {"LSTM": spec.LSTM, "GRU": spec.GRU, "SimpleRNN": spec.RNN}
    return kinds[class_name](name, way.input_size, way.units, **options)


def _add(model: Translation, entry: Entry, layer: spec.Layer, *ways: _Direction) -> None:
    """Add the layer of one or two directions, and what takes its last outputs if only they go on.

    A backward direction ends with the first step.
    """
    tensors: dict[str, Array] = {}
    for way, suffix in zip(ways, ("_l0", "_l0_reverse"), strict=False):
        tensors |= {name + suffix: array for name, array in way.tensors.items()}
    model.add(layer, **tensors)
    steps: Shape = model.axes[:1] if model.axes else (None,)
    model.axes = (*steps, layer.output_size)
    if not ways[0].sequences:
        function = "final" if len(ways) == 2 else "last"
        model.add(spec.Pool(f"{entry.name}.{function}", function, layer.output_size))
        model.axes = (layer.output_size,)
    if ways[0].stateful:
        model.notes.append(
            f"{entry.what} is stateful: in Keras its state goes on from call to call, here a call "
            f"returns it and the next one takes it"
        )


def _one_way(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    way = _direction(entry, weights, model.features_of_steps(entry))
    if way.backwards:
        order = "all outputs, the last step's first" if way.sequences else "the first step's output"
        raise ConvertError(
            f"{entry.what} has go_backwards=True and gives {order}; expected go_backwards=False, "
            f"or keras.layers.Bidirectional around it"
        )
    _add(model, entry, _layer(entry.name, entry.class_name, way, None), way)


def _bidirectional(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    options, size = entry.options, model.features_of_steps(entry)
    merge = options.take("merge_mode")
    if not isinstance(merge, str) or merge not in _MERGES:
        raise options.refused("merge_mode", merge, f"one of {', '.join(_MERGES)}")
    first, second = options.take("layer"), options.take("backward_layer", None)
    forward = Entry(first, options.version)
    backward = Entry(first if second is None else second, options.version)
    for inner in (forward, backward):
        if inner.class_name not in _GATES:
            raise ConvertError(
                f"{entry.what} is around {inner.what}; expected one of {', '.join(_GATES)}"
            )
    way = _direction(forward, weights.inside("forward_layer"), size)
    back = _direction(backward, weights.inside("backward_layer"), size)
    alike = ("input_size", "units", "options", "sequences", "stateful")
    if (
        forward.class_name != backward.class_name
        or any(getattr(way, what) != getattr(back, what) for what in alike)
        or (way.backwards, back.backwards) != (False, second is not None)
    ):
        raise ConvertError(
            f"{entry.what} is around {forward.what} and, backwards, {backward.what}, which differ "
            f"in more than their activations and weights, or do not run forwards and backwards; "
            f"expected two alike, the second one with go_backwards=True"
        )
    _add(model, entry, _layer(entry.name, forward.class_name, way, back), way, back)
    if _MERGES[merge]:
        model.add(spec.CombineHalves(f"{entry.name}.merge", _MERGES[merge], 2 * way.units))
        model.axes = (*(model.axes or ())[:-1], way.units)


RECURRENT: dict[str, Translate] = {
    **dict.fromkeys(_GATES, _one_way),
    "Bidirectional": _bidirectional,
}
