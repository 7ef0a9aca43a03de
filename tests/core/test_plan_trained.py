"""Graphs of really trained models as programs: what the reference gives, and what they take.

With ``-s`` each prints its operations, and how many numbers they move from place to place a step.
"""

from __future__ import annotations

from collections import Counter

import pytest
from planned import Planned
from random_graphs import random_inputs
from trained import trained

from fastlstm.plan import operations as op

pytest.importorskip("onnx")
pytest.importorskip("torch")

import a3c_policy
import dtln_enhancer
import gtcrn_enhancer
import silero_vad
import unitree_policy

GTCRN, DTLN = "gtcrn/gtcrn.onnx", "dtln/model_2.onnx"
SILERO = "silero/silero_vad_16k_op15.onnx"
# What reads the graph, its file, steps, and the most operations it may take.
GRAPHS = {
    "gtcrn": (lambda path: gtcrn_enhancer.enhancer(path, recognised=True), GTCRN, 13, 135),
    "gtcrn as written": (
        lambda path: gtcrn_enhancer.enhancer(path, recognised=False),
        GTCRN,
        4,
        160,
    ),
    "silero": (silero_vad.of_windows, SILERO, 9, 16),
    "silero of new samples": (silero_vad.of_new_samples, SILERO, 9, 14),
    "silero of samples": (silero_vad.of_samples, SILERO, 1200, 13),
    "dtln": (dtln_enhancer.recognised, DTLN, 9, 8),
    "dtln as written": (dtln_enhancer.written_out, DTLN, 9, 40),
    "a3c": (a3c_policy.policy, "baby_a3c/model.80.tar", 3, 8),
    "unitree": (unitree_policy.policy, "unitree/motion.pt", 9, 4),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", GRAPHS)
def test_trained(name, rng):
    read, file, T, most = GRAPHS[name]
    planned = Planned(*read(trained(file)))
    program = planned.program
    made = Counter[str]()
    for one in program.operations:
        made[type(one).__name__] += 1
        if isinstance(one, op.Move | op.Map | op.Window):
            made[f"numbers of {type(one).__name__}"] += program.values[one.y].count
    print(f"\n{name}: {len(program.operations)} operations, {dict(made)}")
    assert len(program.operations) <= most
    inputs = random_inputs(rng, planned.graph, T, 2)
    planned.check_whole(inputs, 2, rng)
    planned.check_streamed(inputs, 2, rng)
