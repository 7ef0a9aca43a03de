"""The check that a model file carries holds on every machine, however the model magnifies rounding.

Where a model is chaotic, the errors of two float32 evaluations differ by a factor of ten and more:
how long the check may be is nothing that one of them can tell.
"""

from __future__ import annotations

import chain as spec
import numpy as np
import pytest
from models import CELLS, ChainFile, model_file, recurrent

from fastlstm import Model
from fastlstm.self_check import STEPS, TOLERANCE


def gained(file: ChainFile, gain: float) -> ChainFile:
    return ChainFile(file.layers, {n: (gain * t).astype(t.dtype) for n, t in file.tensors.items()})


@pytest.mark.parametrize("cell", CELLS)
def test_chaotic_models_pass_it(isa, rng, cell):
    """With half of the tolerance to spare, on every instruction set and with every BLAS."""
    shortest = STEPS
    for gain in (12, 40, 300):
        for _ in range(10):
            file = gained(model_file(recurrent(cell, 3, 40), rng), gain)
            model = Model(file, isa=isa)
            assert model.check() < TOLERANCE["float32"] / 2
            shortest = min(shortest, len(model.self_check[0]["input"]))
    if cell != "rnn_relu":  # it grows, and its errors with it
        assert 1 <= shortest < STEPS


@pytest.mark.parametrize("cell", CELLS)
def test_others_have_a_whole_one(rng, cell):
    for layers in (recurrent(cell, 3, 40), (spec.Embedding("e", 9, 3), recurrent(cell, 3, 40))):
        inputs, outputs = Model(model_file(layers, rng)).self_check
        (x,), (y,) = inputs.values(), outputs.values()
        assert len(x) == len(y) == (STEPS if x.ndim == 2 else 9)


@pytest.mark.parametrize("value", [np.inf, np.nan, np.finfo(np.float32).max])
def test_weights_at_the_end_of_their_range(rng, value):
    """Other last bits do not make them infinite, and where they are the check is of that."""
    file = model_file((spec.Linear("l", 3, 4), spec.Activation("t", "tanh", 4)), rng)
    file.tensors["l.bias"][1] = value
    model = Model(file)
    assert len(model.self_check[0]["input"]) == STEPS
    model.check()
