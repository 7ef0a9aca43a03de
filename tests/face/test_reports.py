"""Reports of conversions: what was not verified stands last, and a long one does not lose it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.conversion import _report_text
from fastlstm.format import MAX_NOTE_CHARS


def test_what_was_not_verified_stands_last_and_stays() -> None:
    lines = ["not verified: a", *(f"line {n} of a long report" for n in range(400)), "end"]
    text = _report_text(lines)
    assert len(text) <= MAX_NOTE_CHARS
    *_, last, count = text.split("\n")
    assert last == "not verified: a"
    assert count.startswith("(and ")


def test_a_length_that_was_not_seen_is_said_by_the_verdict(tmp_path: Path) -> None:
    """Running the original shows its own length alone."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make = onnx.helper.make_node
    shape = onnx.helper.make_tensor_value_info
    tensors = {"s": np.array([-1, 12, 3]), "w": np.ones((3, 2), np.float32)}
    graph = onnx.helper.make_graph(
        [make("Reshape", ["x", "s"], ["r"]), make("MatMul", ["r", "w"], ["y"])],
        "g",
        [shape("x", 1, [1, 12, 3])],
        [shape("y", 1, [1, 12, 2])],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    path = tmp_path / "m.onnx"
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    model = fastlstm.convert(path, tmp_path / "m.safetensors")
    found = fastlstm.verify(model, path, steps=24, batch_size=1)
    assert found.agrees
    assert any("sequences of 12 steps" in line for line in found.not_verified), str(found)
