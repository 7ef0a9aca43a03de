"""The second half of a speech enhancer, ``dtln/model_2.onnx``, in two forms.

A call of the program is a frame of 512 samples and the states of two LSTMs, stacked: layer, unit,
and h or c.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fastlstm import spec

__all__ = ["recognised", "written_out"]

Tensors = dict[str, npt.NDArray[Any]]

SAMPLES, FEATURES, UNITS = 512, 256, 128
EPS = "model_2.instant_layer_normalization_1.add.y.0"


def recognised(path: Path) -> tuple[spec.Graph, Tensors]:
    """The graph that its authors had in mind: time is time, and an LSTM is one layer."""
    file = _initializers(path)
    norm = "model_2.instant_layer_normalization_1"
    eps = float(file[EPS])
    nodes = (
        spec.Node(_over_time("conv1d_2", SAMPLES, FEATURES), ("frame",)),
        spec.Node(spec.LayerNorm(norm, (FEATURES,), eps), ("conv1d_2",)),
        spec.Node(spec.LSTM("lstm_6", FEATURES, UNITS), (norm,)),
        spec.Node(spec.LSTM("lstm_7", UNITS, UNITS), ("lstm_6",)),
        spec.Node(spec.Linear("dense_3", UNITS, FEATURES), ("lstm_7",)),
        spec.Node(spec.Activation("mask", "sigmoid"), ("dense_3",)),
        spec.Node(spec.Arithmetic("masked", "multiply"), ("conv1d_2", "mask")),
        spec.Node(_over_time("conv1d_3", FEATURES, SAMPLES), ("masked",)),
    )
    tensors = {
        "conv1d_2.weight": file["conv1d_2.kernel.0"],
        f"{norm}.weight": file[f"{norm}.mul.ReadVariableOp.resource.0"],
        f"{norm}.bias": file[f"{norm}.add_1.ReadVariableOp.resource.0"],
        "dense_3.weight": file["model_2.dense_3.Tensordot.Reshape_1.0"].T,
        "dense_3.bias": file["model_2.dense_3.BiasAdd.ReadVariableOp.resource.0"],
        "conv1d_3.weight": file["conv1d_3.kernel.0"],
    }
    for lstm in ("lstm_6", "lstm_7"):  # the gates stand in PyTorch's order, i f g o, already
        bias = file[f"model_2.{lstm}.BiasAdd.ReadVariableOp.resource.0"]
        tensors |= {
            f"{lstm}.weight_ih_l0": file[f"model_2.{lstm}.MatMul.ReadVariableOp.resource.0"].T,
            f"{lstm}.weight_hh_l0": file[f"model_2.{lstm}.MatMul_1.ReadVariableOp.resource.0"].T,
            f"{lstm}.bias_ih_l0": bias,
            f"{lstm}.bias_hh_l0": np.zeros_like(bias),
        }
    graph = spec.Graph((spec.Input("frame", (SAMPLES,)),), nodes, {"frame": "conv1d_3"})
    return graph, tensors


def written_out(path: Path) -> tuple[spec.Graph, Tensors]:
    """The program operator by operator: the stacked states are a delay of the new ones.

    Time is an axis of size 1 of each row, as in the file.
    """
    file = _initializers(path)
    samples, features = np.arange(SAMPLES), np.arange(FEATURES)
    states = np.arange(2 * UNITS * 2).reshape(2, UNITS, 2)
    h, c = np.arange(2 * 2 * UNITS).reshape(2, 2, UNITS)
    norm, dense = "model_2.instant_layer_normalization_1", "model_2.dense_3"
    nodes = [
        _moved("adjusted_input1", samples.reshape(SAMPLES, 1), "input_4"),
        spec.Node(_within_step("conv1d_2", SAMPLES, FEATURES), ("adjusted_input1",)),
        _moved("transpose_output1", features.reshape(1, FEATURES), "conv1d_2"),
        *_instant_layer_norm(norm, "transpose_output1"),
        _moved("input_5.first", states[None], "input_5"),
        spec.Node(
            spec.Delay("states", states.shape, initial_state="given"),
            ("tf_op_layer_stack_5", "input_5.first"),
        ),
        *_lstm("model_2.lstm_6", f"{norm}.add_1", states[:1]),
        *_lstm("model_2.lstm_7", "model_2.lstm_6.mul_2", states[1:]),
        _moved(
            "tf_op_layer_stack_5",
            np.stack([h, c], axis=-1),
            *("model_2.lstm_6.mul_2", "model_2.lstm_7.mul_2"),
            *("model_2.lstm_6.add_1", "model_2.lstm_7.add_1"),
        ),
        _product(f"{dense}.MatMul", "model_2.lstm_7.mul_2", f"{dense}.Tensordot.Reshape_1.0"),
        _arithmetic(dense, "add", f"{dense}.MatMul", f"{dense}.BiasAdd.ReadVariableOp.resource.0"),
        _activation("mask", "sigmoid", dense),
        _arithmetic("masked", "multiply", "transpose_output1", "mask"),
        _moved("adjusted_input", features.reshape(FEATURES, 1), "masked"),
        spec.Node(_within_step("conv1d_3", FEATURES, SAMPLES), ("adjusted_input",)),
        _moved("output", samples.reshape(1, SAMPLES), "conv1d_3"),
    ]
    constants = {name: file[name] for node in nodes for name in node.reads if name in file}
    nodes += [spec.Node(spec.Constant(name, x.shape), ()) for name, x in constants.items()]
    kernels = {f"{name}.weight": file[f"{name}.kernel.0"] for name in ("conv1d_2", "conv1d_3")}
    inputs = (spec.Input("input_4", (1, SAMPLES)), spec.Input("input_5", states.shape, held=True))
    outputs = {"conv1d_3": "output", "tf_op_layer_stack_5": "tf_op_layer_stack_5"}
    return spec.Graph(inputs, tuple(nodes), outputs), constants | kernels


def _instant_layer_norm(name: str, x: str) -> list[spec.Node]:
    """From ``x``, rows (1, 256), to ``<name>.add_1``."""
    return [
        spec.Node(spec.Reduce(f"{name}.Mean", "mean", keepdim=True), (x,)),
        _arithmetic(f"{name}.sub", "subtract", x, f"{name}.Mean"),
        _arithmetic(f"{name}.Square", "multiply", f"{name}.sub", f"{name}.sub"),
        spec.Node(spec.Reduce(f"{name}.Mean_1", "mean", keepdim=True), (f"{name}.Square",)),
        _arithmetic(f"{name}.add", "add", f"{name}.Mean_1", EPS),
        _activation(f"{name}.Sqrt", "sqrt", f"{name}.add"),
        _arithmetic(f"{name}.truediv", "divide", f"{name}.sub", f"{name}.Sqrt"),
        _arithmetic(
            f"{name}.mul", "multiply", f"{name}.truediv", f"{name}.mul.ReadVariableOp.resource.0"
        ),
        _arithmetic(
            f"{name}.add_1", "add", f"{name}.mul", f"{name}.add_1.ReadVariableOp.resource.0"
        ),
    ]


def _lstm(name: str, x: str, states: npt.NDArray[Any]) -> list[spec.Node]:
    """From ``x``, rows (1, I), to h, ``<name>.mul_2``, and c, ``<name>.add_1``, rows (1, 128).

    `states` are the places (1, 128, 2) of the h and c before within the stacked states.
    """
    gates = np.arange(4 * UNITS).reshape(4, 1, UNITS)
    return [
        _moved(f"{name}.h", states[..., 0], "states"),
        _moved(f"{name}.c", states[..., 1], "states"),
        _product(f"{name}.MatMul", x, f"{name}.MatMul.ReadVariableOp.resource.0"),
        _product(f"{name}.MatMul_1", f"{name}.h", f"{name}.MatMul_1.ReadVariableOp.resource.0"),
        _arithmetic(f"{name}.add", "add", f"{name}.MatMul", f"{name}.MatMul_1"),
        _arithmetic(
            f"{name}.BiasAdd", "add", f"{name}.add", f"{name}.BiasAdd.ReadVariableOp.resource.0"
        ),
        *(_moved(f"{name}.split.{n}", gates[n], f"{name}.BiasAdd") for n in range(4)),
        _activation(f"{name}.Sigmoid", "sigmoid", f"{name}.split.0"),
        _activation(f"{name}.Sigmoid_1", "sigmoid", f"{name}.split.1"),
        _activation(f"{name}.Tanh", "tanh", f"{name}.split.2"),
        _activation(f"{name}.Sigmoid_2", "sigmoid", f"{name}.split.3"),
        _arithmetic(f"{name}.mul", "multiply", f"{name}.Sigmoid_1", f"{name}.c"),
        _arithmetic(f"{name}.mul_1", "multiply", f"{name}.Sigmoid", f"{name}.Tanh"),
        _arithmetic(f"{name}.add_1", "add", f"{name}.mul", f"{name}.mul_1"),
        _activation(f"{name}.Tanh_1", "tanh", f"{name}.add_1"),
        _arithmetic(f"{name}.mul_2", "multiply", f"{name}.Sigmoid_2", f"{name}.Tanh_1"),
    ]


def _over_time(name: str, channels: int, out: int) -> spec.Convolution:
    return spec.Convolution(name, channels, out, (1,), bias=False, over_time=True)


def _within_step(name: str, channels: int, out: int) -> spec.Convolution:
    return spec.Convolution(name, channels, out, (1,), bias=False)


def _moved(name: str, places: npt.NDArray[Any], *reads: str) -> spec.Node:
    return spec.Node(spec.Index.of(name, places), reads)


def _product(name: str, *reads: str) -> spec.Node:
    return spec.Node(spec.MatMul(name), reads)


def _arithmetic(name: str, operation: str, *reads: str) -> spec.Node:
    return spec.Node(spec.Arithmetic(name, operation), reads)


def _activation(name: str, function: str, read: str) -> spec.Node:
    return spec.Node(spec.Activation(name, function), (read,))


def _initializers(path: Path) -> Tensors:
    """The file's tensors by names without '/' and ':', which a name in a graph cannot have."""
    return {
        re.sub("[/:]", ".", tensor.name): numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
    }
