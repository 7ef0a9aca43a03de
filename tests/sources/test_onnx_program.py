"""An ONNX program whose states no layer recognises, as a graph, equals onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from trained import check_graph, run_by_onnx, trained

from fastlstm import spec

pytest.importorskip("onnx")

from onnx_program import Program

STATES = {"input_5": "tf_op_layer_stack_5"}


@pytest.mark.parametrize("recognised", [False, True])
def test_lstms_written_out(rng: np.random.Generator, recognised: bool) -> None:
    """Of two LSTMs as products and gates, the states are delays, on one loop or on two."""
    path = trained("dtln/model_2.onnx")
    graph, tensors = Program(path, STATES).graph(["conv1d_3"], recognised=recognised)
    loops = [group for group in spec.check(graph).groups if group.loops]
    delays = [
        sorted(node.layer.shape for node in group.nodes if isinstance(node.layer, spec.Delay))
        for group in loops
    ]
    assert delays == ([[(1, 128), (1, 128)]] * 2 if recognised else [[(1, 2, 128, 2)]])
    frames = rng.standard_normal((200, 1, 1, 1, 512)).astype(np.float32)
    start = {"input_5": (STATES["input_5"], np.zeros((1, 2, 128, 2), np.float32))}
    expected = run_by_onnx(path, {"input_4": frames[:, 0]}, start)["conv1d_3"]
    check_graph(graph, tensors, {"input_4": frames}, {"conv1d_3": expected[:, None]}, rng)
