"""The second half of a speech enhancer as a graph, in two forms, equals onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trained import ROUNDING, Array, assert_close, check_graph, run_by_onnx, trained

from fastlstm import reference, spec

pytest.importorskip("onnx")

from dtln_enhancer import recognised, written_out

FRAMES = 200


@pytest.fixture
def path() -> Path:
    return trained("dtln/model_2.onnx")


@pytest.fixture
def frames(rng: np.random.Generator) -> Array:
    """Frames of two signals, (T, 2, 512)."""
    return rng.standard_normal((FRAMES, 2, 512)).astype(np.float32)


def by_onnx(path: Path, frames: Array, states: Array) -> tuple[Array, Array]:
    """Frames (T, B, 512) from states (B, 2, 128, 2), and the states after each, (T, B, 2, 128, 2).

    The program takes one signal a call.
    """
    runs = [
        run_by_onnx(
            path,
            {"input_4": frames[:, [row], None]},
            {"input_5": ("tf_op_layer_stack_5", states[[row]])},
        )
        for row in range(len(states))
    ]
    return (
        np.concatenate([run["conv1d_3"][:, :, 0] for run in runs], axis=1),
        np.concatenate([run["tf_op_layer_stack_5"] for run in runs], axis=1),
    )


def test_recognised(path: Path, frames: Array, rng: np.random.Generator) -> None:
    enhanced, after = by_onnx(path, frames, np.zeros((2, 2, 128, 2), np.float32))
    graph, tensors = recognised(path)
    states = check_graph(graph, tensors, {"frame": frames}, {"frame": enhanced}, rng)
    for state in states.values():
        for n, lstm in enumerate(("lstm_6", "lstm_7")):
            assert_close(state[f"{lstm}.h"][0], after[-1, :, n, :, 0], ROUNDING)
            assert_close(state[f"{lstm}.c"][0], after[-1, :, n, :, 1], ROUNDING)


def test_written_out(path: Path, frames: Array, rng: np.random.Generator) -> None:
    """The states are an output of every step, and a sequence starts from any of them."""
    start = rng.uniform(-1, 1, (2, 2, 128, 2)).astype(np.float32)
    enhanced, after = by_onnx(path, frames, start)
    graph, tensors = written_out(path)
    (loop,) = (group for group in spec.check(graph).groups if group.loops)
    inside = {node.name for node in loop.nodes}
    assert {"states", "model_2.lstm_6.add_1", "model_2.lstm_7.MatMul"} <= inside
    assert not {"model_2.lstm_6.MatMul", "model_2.dense_3.MatMul"} & inside
    states = check_graph(
        graph,
        tensors,
        {"input_4": frames[:, :, None]},
        {"conv1d_3": enhanced[:, :, None], "tf_op_layer_stack_5": after},
        rng,
        {"input_5": start},
    )
    for state in states.values():
        assert_close(state["states.x"][0], after[-1], ROUNDING)


def test_both_forms_are_one_model(path: Path, frames: Array) -> None:
    """In float64 they differ by rounding only."""
    graph, tensors = recognised(path)
    one = reference.forward(graph, tensors, {"frame": frames})["frame"]
    graph, tensors = written_out(path)
    start = np.zeros((2, 2, 128, 2))
    inputs = {"input_4": frames[:, :, None], "input_5": start}
    other = reference.forward(graph, tensors, inputs)["conv1d_3"]
    assert_close(other[:, :, 0], one, 1e-12)
