"""Graphs of really trained models in the engine: what the reference gives, whole and as streams."""

from __future__ import annotations

import numpy as np
import pytest
from models import ISAS
from random_graphs import random_inputs
from trained import trained

from fastlstm import Model, reference
from fastlstm.format import ModelFile

pytest.importorskip("onnx")
pytest.importorskip("torch")

import a3c_policy
import dtln_enhancer
import gtcrn_enhancer
import silero_vad
import unitree_policy

GTCRN, DTLN = "gtcrn/gtcrn.onnx", "dtln/model_2.onnx"
SILERO = "silero/silero_vad_16k_op15.onnx"
# What reads the graph, its file, and steps.
GRAPHS = {
    "gtcrn": (lambda path: gtcrn_enhancer.enhancer(path, recognised=True), GTCRN, 9),
    "silero": (silero_vad.of_windows, SILERO, 9),
    "silero of samples": (silero_vad.of_samples, SILERO, 1200),
    "dtln": (dtln_enhancer.recognised, DTLN, 9),
    "dtln as written": (dtln_enhancer.written_out, DTLN, 9),
    "a3c": (a3c_policy.policy, "baby_a3c/model.80.tar", 3),
    "unitree": (unitree_policy.policy, "unitree/motion.pt", 9),
}


def as_mapping(y, names):
    return y if isinstance(y, dict) else {names[0]: y}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", GRAPHS)
def test_runs(name, isa, rng):
    read, file, T = GRAPHS[name]
    graph, tensors = read(trained(file))
    tensors = {n: np.asarray(a, np.float32) for n, a in tensors.items()}
    model = Model(ModelFile(graph, tensors), isa=isa, reproducible=True)
    names = list(graph.outputs)
    inputs = {
        n: x if x.dtype.kind == "i" else x.astype(np.float32)
        for n, x in random_inputs(rng, graph, T, 2).items()
    }
    truth = reference.forward(graph, tensors, inputs)
    y = as_mapping(model(inputs)[0], names)
    held = {i.name: inputs[i.name] for i in graph.inputs if i.held}
    stream = model.stream(2, held=held) if held else model.stream(2)
    steps: dict[str, list] = {n: [] for n in names}
    for t in range(T):
        given = {i.name: inputs[i.name][t] for i in graph.inputs if not i.held}
        for n, row in as_mapping(stream.step(given), names).items():
            steps[n] += [] if row is None else [row]
    for n in names:
        scale = max(1.0, float(np.abs(truth[n]).max()))
        assert y[n].shape == truth[n].shape
        np.testing.assert_allclose(y[n], truth[n], rtol=0, atol=2e-5 * scale)
        assert np.array_equal(np.stack(steps[n]), y[n][: len(steps[n])])
