"""Sums of thousands of inputs by the kernels' own loop: their error, and their bits in every way.

A stream's step never takes a BLAS, so what is seen here is the kernel alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import test_cells
from chain import reference
from models import CELLS, ISAS, model_file, recurrent
from test_cells import drawn, tool, torch_forward
from ways import assert_same_bits

from fastlstm import Model

SPAN = 1024  # inputs whose sum is one of several


@pytest.mark.parametrize("inputs", [SPAN, 4 * SPAN])
@pytest.mark.parametrize("cell", CELLS)
def test_rounding_of_steps(isa, cell, inputs):
    """Promise 2: in the median of seven draws, the error is at most 1.5 times torch's own.

    An RNN with relu shows the error of the sums alone. One sum of all blocks had, of 4096 inputs,
    1.4 times torch's on one lane, and more than twice in one draw; with spans it is about half.
    """
    pytest.importorskip("torch", reason="measures the error of torch itself")
    kind, options = tool().CELLS[cell]
    layer, ratios = tool().recurrent(kind, inputs, 64, **options), []
    for seed in range(7):
        x, file = drawn(f"{cell}_{inputs}_64 {seed}", [layer], 16, 8)
        y = reference.forward(file.layers, file.tensors, x)[0]
        stream = Model(file, isa=isa).stream(8)
        own = np.abs(np.stack([stream.step(x_t) for x_t in x]) - y).max()
        ratios.append(own / np.abs(torch_forward(file.layers, file.tensors, x)[0] - y).max())
    ratio = np.median(ratios)
    assert ratio <= test_cells.TestRounding.FACTOR, f"{ratio:.2f} times torch's error"


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("I", "H"), [(SPAN, 24), (SPAN + 1, 24), (2 * SPAN, 40), (2 * SPAN + 77, 40), (40, SPAN + 30)]
)
def test_the_same_bits_in_every_way(cell, I, H, rng):  # noqa: E741
    """Step by step, whole, in company, and on every instruction set of more than one lane."""
    file = model_file(recurrent(cell, I, H), rng)
    x = rng.standard_normal((9, 3, I)).astype(np.float32)
    found = {}
    for isa in ISAS:
        model = Model(file, isa=isa, reproducible=True)
        found[isa], _ = model(x)
        stream = model.stream(3)
        assert_same_bits(np.stack([stream.step(x_t) for x_t in x]), found[isa])
        for b in range(3):
            alone = np.ascontiguousarray(x[:, b])
            assert_same_bits(model(alone)[0], found[isa][:, b])
            single = model.stream()
            assert_same_bits(np.stack([single.step(x_t) for x_t in alone]), found[isa][:, b])
    first, *others = [y for isa, y in found.items() if isa != "scalar"] or [found["scalar"]]
    for other in others:
        assert_same_bits(other, first)
