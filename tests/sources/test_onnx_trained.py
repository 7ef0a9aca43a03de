"""Really trained ONNX models as they are read, against onnxruntime call by call, and streamed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trained import ROUNDING, assert_close, check_graph, run_by_onnx, trained

from fastlstm import Model
from fastlstm.format import ModelFile
from fastlstm.sources import read

pytest.importorskip("onnx")

CALLS = 200

# File, its input of data with the shape of a call, states with their outputs and shapes, output,
# what is told of its inputs, rows of the batch, layers that have to be there.
MODELS: dict[str, tuple[Any, ...]] = {
    "dtln/model_1.onnx": (
        ("input_2", (1, 1, 257)),
        {"input_3": ("tf_op_layer_stack_2", (1, 2, 128, 2))},
        "activation_2",
        {},
        1,
        {"lstm": 1},
    ),
    "dtln/model_2.onnx": (
        ("input_4", (1, 1, 512)),
        {"input_5": ("tf_op_layer_stack_5", (1, 2, 128, 2))},
        "conv1d_3",
        {},
        1,
        {"lstm": 2, "delay": 0},
    ),
    "silero/silero_vad_16k_op15.onnx": (
        ("input", (3, 576)),
        {"state": ("stateN", (2, 3, 128))},
        "output",
        {"sr": 16000, "input": "?x576"},
        3,
        {"lstm": 1},
    ),
    "gtcrn/gtcrn.onnx": (
        ("mix", (1, 257, 1, 2)),
        {
            "conv_cache": ("conv_cache_out", (2, 1, 16, 16, 33)),
            "tra_cache": ("tra_cache_out", (2, 3, 1, 1, 16)),
            "inter_cache": ("inter_cache_out", (2, 1, 33, 16)),
        },
        "enh",
        {},
        1,
        {"gru": 14},
    ),
}


@pytest.mark.parametrize("file", MODELS)
def test_equals_onnxruntime(file: str, rng: np.random.Generator) -> None:
    (name, shape), states, output, told, rows, layers = MODELS[file]
    path = trained(file)
    made = read(path, inputs=told)
    kinds = [node.layer.kind for node in made.graph.nodes]
    assert {kind: kinds.count(kind) for kind in layers} == layers
    assert made.call is not None
    assert {a.name for a in made.call.arguments if a.role == "state"} == set(states)
    x = rng.standard_normal((CALLS, *shape)).astype(np.float32)
    start = {n: (out, np.zeros(size, np.float32)) for n, (out, size) in states.items()}
    fixed = {n: np.array(value) for n, value in told.items() if not isinstance(value, str)}
    (row,) = made.graph.inputs
    (given,) = made.graph.outputs
    inputs = {row.name: x.reshape(CALLS, rows, *row.shape)}
    expected = run_by_onnx(path, {name: x}, start, **fixed)[output].reshape(CALLS, rows, -1)
    model = Model(ModelFile(made.graph, made.tensors))
    stream = model.stream(rows)
    steps = np.stack([stream.step(frame) for frame in inputs[row.name]])
    assert_close(steps.reshape(expected.shape), expected, ROUNDING)
    y = expected.reshape(CALLS, rows, *steps.shape[2:])
    check_graph(made.graph, made.tensors, inputs, {given: y}, rng)
