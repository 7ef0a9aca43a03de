"""RTNeural's JSON, and AIDA-X's, which adds gains and the input itself.

The file lists layers in order, each with the weights as Keras lays them out
(python/model_utils.py of RTNeural): matrices are (inputs, outputs), gates are stacked i f c o in an
LSTM and z r h in a GRU, whose candidate's recurrent bias is within the reset. On a recurrent layer
RTNeural does not look at the activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.audio.built import INPUT, Built
from fastlstm.sources.audio.fields import Fields, checked
from fastlstm.sources.conversion import Conversion, joined

__all__ = ["is_rtneural", "read_rtneural"]

Array = npt.NDArray[Any]

_FUNCTIONS = {"tanh": "tanh", "relu": "relu", "sigmoid": "sigmoid", "elu": "elu(1.0)"}
# As the loudness of plugins has bounds; at -90 dB and below, AIDA-X is silent.
_MOST_DECIBELS = 90
# Of a step: the file alone says how many there are.
_MOST_FEATURES = 2**16


def is_rtneural(tree: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a model of RTNeural or AIDA-X."""
    layers = tree.get("layers")
    return (
        "in_shape" in tree
        and isinstance(layers, list)
        and all(isinstance(layer, Mapping) and "type" in layer for layer in layers)
    )


def read_rtneural(tree: Mapping[str, Any], dtype: str) -> Conversion:
    """Make the model; errors are those of :func:`fastlstm.sources.read`."""
    whole = Fields("the model", tree)
    chain = _Chain(whole)
    notes = [f"sample rate: {rate:g} Hz" for rate in _sample_rate(whole)]
    skip = whole.size("in_skip", least=0, default=0)
    if skip > 1:
        raise whole.refused("in_skip", "0 or 1")
    gains = [_gain(whole, key) for key in ("in_gain", "out_gain")]
    loud = chain.gained("in_gain", gains[0])
    for number, entry in enumerate(tree["layers"], 1):
        chain.layer(number, Fields(f"layer {number}", entry))
    chain.flatten("flat")
    if skip:
        chain.add_first_input(loud)
        notes.append("its first input is added to its output (in_skip)")
    at = chain.at
    if gains[1] != 1:
        at = chain.built.add(spec.Activation("out_gain", f"affine({gains[1]!r}, 0.0)"), at)
    for key, gain in zip(("in_gain", "out_gain"), gains, strict=True):
        if gain != 1:
            notes.append(f"{key} of {whole.number(key)} dB: times {gain:.6g}")
    if others := tree.keys() - {"in_shape", "layers", "in_skip", "in_gain", "out_gain"}:
        notes.append(f"beside the model, not used: {joined(sorted(others))}")
    return chain.built.conversion(at, dtype, notes)


def _sample_rate(whole: Fields) -> list[float]:
    places = [whole]
    if "metadata" in whole.entries:
        places.append(whole.within("metadata"))
    keys = ("samplerate", "sample_rate")
    return [place.number(key) for place in places for key in keys if key in place.entries][:1]


def _gain(whole: Fields, key: str) -> float:
    decibels = whole.number(key, 0.0)
    if abs(decibels) >= _MOST_DECIBELS:
        raise whole.refused(key, f"decibels between -{_MOST_DECIBELS} and {_MOST_DECIBELS}")
    return float(10 ** (decibels / 20))


class _Chain:
    """The layers so far, and what the last of them gives.

    A row is one of features, or behind a convolution of two dimensions one of (channels, features).
    `steps` are those of the sequence the file speaks of, None where it leaves them open.
    """

    def __init__(self, whole: Fields) -> None:
        *steps, size = _shape(whole, "in_shape")
        if len(steps) == 3 and steps[2] is not None and size is not None:  # (N, time, features, C)
            row: tuple[int, ...] = (size, steps[2])
        elif len(steps) in (1, 2) and size is not None:
            row = (size,)
        else:
            raise whole.refused("in_shape", "[null, null, features]")
        if math.prod(row) > _MOST_FEATURES:
            raise whole.refused("in_shape", f"at most {_MOST_FEATURES} features of a step")
        self.steps = steps[1] if len(steps) > 1 else None
        self.whole = whole
        self.built = Built(math.prod(row))
        self.at = INPUT
        self.row: tuple[int, ...] = self.built.input.shape
        if len(row) > 1:
            self.move("frame", np.arange(math.prod(row), dtype=np.int32).reshape(row[::-1]).T)

    def gained(self, name: str, gain: float) -> str:
        """The first input times a gain is the input's first number; the value of the input."""
        if gain != 1:
            gains = np.ones(self.built.input.shape)
            gains[0] = gain
            times = self.built.constant(f"{name}/factor", gains)
            self.at = self.built.add(spec.Arithmetic(name, "multiply"), self.at, times)
        return self.at

    def add_first_input(self, loud: str) -> None:
        if self.row != (1,):
            raise ConvertError(
                f"in_skip of the model adds its first input to rows of {self.row} numbers; "
                f"expected one output"
            )
        if self.built.input.shape != (1,):
            loud = self.built.add(spec.Index.of("first_input", np.zeros(1, np.int32)), loud)
        self.at = self.built.add(spec.Arithmetic("in_skip", "add"), self.at, loud)

    def move(self, name: str, places: Array) -> None:
        self.at = self.built.add(spec.Index.of(name, places), self.at)
        self.row = places.shape

    def flatten(self, name: str) -> None:
        """Rows (channels, features) as RTNeural has them: the channels of each feature together."""
        if len(self.row) > 1:
            places = np.arange(math.prod(self.row), dtype=np.int32).reshape(self.row)
            self.move(name, places.T.ravel())

    def put(self, layer: spec.Layer, row: tuple[int, ...], **tensors: Array) -> None:
        self.at = self.built.add(layer, self.at, **tensors)
        self.row = row

    def layer(self, number: int, entry: Fields) -> None:
        kind = entry.text("type")
        if kind not in _LAYERS:
            raise ConvertError(
                f"{entry.what} is a {kind!a:.80}, which is not read; expected one of "
                f"{', '.join(_LAYERS)}. The program that made the model can save it as ONNX, which "
                f"fastlstm.convert reads"
            )
        entry.what = f"layer {number} ({kind})"
        name = f"{kind.replace('-', '_')}_{number}"
        _LAYERS[kind](self, name, entry)
        self.check_shape(entry)
        if kind in ("lstm", "gru"):
            return
        function = entry.text("activation", "")
        if function == "softmax" and len(self.row) == 1:
            self.put(spec.Softmax(f"{name}/softmax"), self.row)
        elif function in _FUNCTIONS:
            layer = spec.Activation(f"{name}/{function}", _FUNCTIONS[function])
            self.put(layer, self.row)
        elif function not in ("", "linear"):
            raise entry.refused("activation", f"one of {', '.join(_FUNCTIONS)}, softmax, or ''")

    def check_shape(self, entry: Fields) -> None:
        """What the layer gives is what the file says of it."""
        told = _shape(entry, "shape")
        if told[-len(self.row) :] != [*self.row[::-1]]:
            raise entry.refused(
                "shape", f"{[None, None, *self.row[::-1]]}, which the weights of the layer tell"
            )

    # --- the layers

    def matrix(self, entry: Fields, ndim: int, axes: str) -> tuple[Array, dict[str, Array]]:
        """The one weight of a layer, whose last axis is its outputs, and its bias if it has one."""
        weights = entry.arrays("weights")
        if len(weights) not in (1, 2) or weights[0].ndim != ndim:
            raise entry.refused(
                "weights", f"weights ({axes}, outputs) and, if there is one, a bias"
            )
        shape = weights[0].shape[-1:]
        biases = [checked(f"the bias of {entry.what}", bias, shape) for bias in weights[1:]]
        return weights[0], dict(zip(["bias"], biases, strict=False))

    def dense(self, name: str, entry: Fields) -> None:
        weight, bias = self.matrix(entry, 2, "inputs")
        self.flatten(f"{name}/flat")
        inputs, outputs = self.row[0], weight.shape[1]
        weight = checked(f"the weights of {entry.what}", weight, (inputs, outputs))
        self.put(
            spec.Linear(name, inputs, outputs, bool(bias)), (outputs,), weight=weight.T, **bias
        )

    def activation(self, name: str, entry: Fields) -> None:
        """Only what every layer may have."""

    def recurrent(self, name: str, entry: Fields) -> None:
        function = entry.text("activation", "")
        if function not in ("", "tanh"):
            raise entry.refused(
                "activation",
                "'tanh' or '': RTNeural runs tanh whatever is said, and Keras what is said; write "
                "'tanh' into the file if the model ran in RTNeural",
            )
        weights = entry.arrays("weights")
        if len(self.row) > 1 or len(weights) != 3 or weights[1].ndim != 2:
            raise entry.refused("weights", "three of a layer on features: of x, of h, the bias")
        lstm = name.startswith("lstm")
        G, I, H = 3 + lstm, self.row[0], weights[1].shape[0]  # noqa: E741
        shapes = ((I, G * H), (H, G * H), (G * H,) if lstm else (2, G * H))
        W, U, b = (
            checked(f"the {what} of {entry.what}", array, shape)
            for what, array, shape in zip(
                ("weights of x", "weights of h", "bias"), weights, shapes, strict=True
            )
        )
        tensors = {"weight_ih_l0": W.T, "weight_hh_l0": U.T}
        if lstm:
            tensors |= {"bias_ih_l0": b, "bias_hh_l0": np.zeros_like(b)}
            self.put(spec.LSTM(name, I, H), (H,), **tensors)
            return
        tensors |= {"bias_ih_l0": b[0], "bias_hh_l0": b[1]}
        for suffix, array in tensors.items():  # z r h to r z n
            z, r, n = np.split(array, 3)
            tensors[suffix] = np.concatenate([r, z, n])
        self.put(spec.GRU(name, I, H), (H,), **tensors)

    def conv1d(self, name: str, entry: Fields) -> None:
        weight, bias = self.matrix(entry, 3, "kernel, inputs")
        if len(self.row) > 1:
            raise ConvertError(f"{entry.what} stands behind a conv2d; expected rows of features")
        inputs, outputs = self.row[0], weight.shape[2]
        k, dilation = entry.size("kernel_size"), entry.size("dilation", default=1)
        groups = entry.size("groups", default=1)
        if inputs % groups or outputs % groups:
            raise entry.refused("groups", f"a divisor of {inputs} inputs and {outputs} outputs")
        shape = (k, inputs // groups, outputs)
        weight = checked(f"the weights of {entry.what}", weight, shape)
        reach = dilation * (k - 1)
        layer = spec.Convolution(
            *(name, inputs, outputs, (k,), groups, bool(bias)),
            dilation=(dilation,),
            padding=((reach - self.check_steps(entry, 0, reach), 0),),
            over_time=True,
        )
        self.put(layer, (outputs,), weight=weight.transpose(2, 1, 0), **bias)

    def conv2d(self, name: str, entry: Fields) -> None:
        weight, bias = self.matrix(entry, 4, "time, features, inputs")
        if len(self.row) != 2:
            raise ConvertError(
                f"{entry.what} reads rows of features; expected (features, channels)"
            )
        (inputs, width), outputs = self.row, weight.shape[3]
        kernel = (entry.size("kernel_size_time"), entry.size("kernel_size_feature"))
        dilation, stride = entry.size("dilation", default=1), entry.size("strides", default=1)
        weight = checked(f"the weights of {entry.what}", weight, (*kernel, inputs, outputs))
        reach, short = dilation * (kernel[0] - 1), (-(-width // stride) - 1) * stride + kernel[1]
        padding = ((0, 0), (0, 0))
        if entry.text("padding") == "same":
            padding = (_halves(reach), _halves(max(0, short - width)))
        elif entry.text("padding") != "valid":
            raise entry.refused("padding", "'valid' or 'same'")
        self.check_steps(entry, 0 if padding[0] == _halves(reach) else reach)
        layer = spec.Convolution(
            *(name, inputs, outputs, kernel, 1, bool(bias)),
            stride=(1, stride),
            dilation=(dilation, 1),
            padding=padding,
            over_time=True,
        )
        try:
            row = layer.of_row(self.row)
        except ValueError as error:
            raise ConvertError(f"{entry.what}: {error}") from None
        self.put(layer, row, weight=weight.transpose(3, 2, 0, 1), **bias)

    def check_steps(self, entry: Fields, *lost: int) -> int:
        """How many steps fewer there are behind a layer, as the file says; one of `lost`."""
        told = _shape(entry, "shape")
        was, self.steps = self.steps, told[1] if len(told) > 2 else None
        if was is None or self.steps is None:
            return lost[0]
        if was - self.steps not in lost:
            raise entry.refused("shape", f"{' or '.join(str(was - n) for n in lost)} steps")
        return was - self.steps

    def prelu(self, name: str, entry: Fields) -> None:
        weights = entry.arrays("weights")
        if len(weights) != 1 or weights[0].size not in (1, self.row[0]):
            raise entry.refused("weights", f"slopes: one, or {self.row[0]} of them")
        slopes = weights[0].reshape(-1, *[1] * (len(self.row) - 1))
        at = self.at
        slope = self.built.constant(f"{name}/slope", slopes)
        above = self.built.add(spec.Activation(f"{name}/above", "relu"), at)
        below = self.built.add(spec.Arithmetic(f"{name}/below", "multiply"), slope, at)
        # Where relu(x) is not 0, x is above 0 or NaN.
        self.at = self.built.add(spec.Arithmetic(name, "where"), above, at, below)

    def batch_norm(self, name: str, entry: Fields) -> None:
        weights = entry.arrays("weights")
        C = self.row[0]
        if len(weights) not in (2, 4) or any(array.shape != (C,) for array in weights):
            raise entry.refused("weights", f"2 or 4 lists of {C} numbers")
        suffixes = ("weight", "bias", "running_mean", "running_var")[-len(weights) :]
        layer = spec.BatchNorm(name, C, entry.number("epsilon"), len(weights) == 4)
        self.put(layer, self.row, **dict(zip(suffixes, weights, strict=True)))


def _is_size(size: Any) -> bool:
    number = isinstance(size, int | float | np.floating) and not isinstance(size, bool)
    return number and 1 <= size <= spec.MAX_SIZE and size == int(size)


def _halves(padding: int) -> tuple[int, int]:
    """Before and behind, as TensorFlow pads for ``same``."""
    return padding // 2, padding - padding // 2


def _shape(entry: Fields, key: str) -> list[int | None]:
    """A list of sizes, or None where one is open."""
    value = entry.entries.get(key)
    sizes: list[Any] = list(value) if isinstance(value, list | np.ndarray) else []
    if not 2 <= len(sizes) <= 4 or not all(size is None or _is_size(size) for size in sizes):
        raise entry.refused(key, "two to four sizes, null where one is open")
    return [None if size is None else int(size) for size in sizes]


_LAYERS: dict[str, Callable[[_Chain, str, Fields], None]] = {
    "dense": _Chain.dense,
    "time-distributed-dense": _Chain.dense,
    "lstm": _Chain.recurrent,
    "gru": _Chain.recurrent,
    "conv1d": _Chain.conv1d,
    "conv2d": _Chain.conv2d,
    "prelu": _Chain.prelu,
    "batchnorm": _Chain.batch_norm,
    "batchnorm2d": _Chain.batch_norm,
    "activation": _Chain.activation,
}
