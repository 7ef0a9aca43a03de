"""Many rows at once give each row the bits that it has alone, whatever the sizes.

A kernel takes many rows through a part of a panel's inputs at a time, in groups of rows, and keeps
what they have summed up between the parts. Sizes and batches here lie around the edges of blocks,
parts and levels of every instruction set, and of its groups; those differ from one to the next, the
bits of their vectors do not.
"""

from __future__ import annotations

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import CELLS, ISAS, input_for, model_file, recurrent
from ways import assert_same_bits

from fastlstm import Model

# Blocks have 32 inputs (16 of one lane), parts 64 to 512, levels 1024 (512).
INPUTS = (31, 33, 64, 65, 129, 513, 1025, 2081)
# Groups have up to 6 rows, and 96 pass through a panel together.
BATCHES = (1, 2, 3, 4, 5, 6, 7, 13, 96, 98)

LAYERS = {
    **{f"{cell}, {K} inputs": recurrent(cell, K, 5) for cell in CELLS[:3] for K in INPUTS},
    **{f"{cell}, {H} units": recurrent(cell, 2, H) for cell in CELLS[:3] for H in (65, 129)},
    "rnn, 1040 units": recurrent("rnn_tanh", 2, 1040),
    "projected": recurrent("lstm", 40, 130, proj_size=70),
    **{f"linear, {K} inputs": spec.Linear("out", K, 70) for K in INPUTS},
}


@pytest.mark.parametrize("name", LAYERS)
def test_as_alone_on_every_instruction_set(name, rng):
    """Two steps, for a cell's h is zero before the first."""
    file = model_file(LAYERS[name], rng)
    most = max(BATCHES)
    x = input_for(Model(file), rng, 2, most)
    expected, _ = reference.forward(file.layers, file.tensors, x)
    vectors = None
    for isa in ISAS:
        model = Model(file, isa=isa)
        alone = [stepped(model, x[:, b : b + 1]) for b in (0, 1, 40, most - 1)]
        for B in BATCHES:
            y = stepped(model, x[:, -B:])
            assert_same_bits(y[:, -1:], alone[-1])
            if isa != "scalar":  # which may leave long sequences to a BLAS
                assert_same_bits(model(x[:, -B:])[0], y)
        for b, row in zip((0, 1, 40), alone, strict=False):
            assert_same_bits(y[:, b : b + 1], row)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        if isa != "scalar":
            vectors = y if vectors is None else vectors
            assert_same_bits(y, vectors)


def stepped(model: Model, x: np.ndarray) -> np.ndarray:
    """Step by step: (T, B, O)."""
    stream = model.stream(x.shape[1])
    return np.stack([stream.step(row) for row in x])
