"""Sums and squares that overflow: what is normalised is what float64 gives, or PyTorch, if not."""

from __future__ import annotations

from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import ChainFile, chain_of, random_tensors
from ways import assert_same_bits

from fastlstm import Model

SIZES = [1, 2, 7, 8, 15, 16, 17, 35, 64, 130, 1000]
MOST = float(np.finfo(np.float32).max)
# Sums of few of the last ones overflow, squares of all but the first.
VALUES = [1e6, 2e19, 1e25, 3e38, MOST]


def norm(size: int, isa: str | None, dtype: Any = np.float32, eps: float = 1e-5) -> Model:
    layers = (spec.LayerNorm("n", size, eps=eps),)
    tensors = {"n.weight": np.ones(size, dtype), "n.bias": np.zeros(size, dtype)}
    return Model(ChainFile(layers, tensors), isa=isa if dtype == np.float32 else None)


@pytest.mark.parametrize("size", SIZES)
def test_equal_numbers_are_normalised_to_zero(size: int, isa: str) -> None:
    model = norm(size, isa)
    for value in (*VALUES, 0.1, 3.0, 1e-30, 12345.678):
        for sign in (1, -1):
            y, _ = model(np.full((1, size), sign * value, np.float32))
            assert not y.any(), (sign * value, y)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", VALUES)
def test_large_numbers_are_normalised_as_in_float64(
    value: float, size: int, isa: str, rng: np.random.Generator
) -> None:
    model = norm(size, isa)
    x = np.float32(value) * rng.uniform(-1, 1, (5, size)).astype(np.float32)
    x[0, :1], x[0, 1:] = -value, value
    x[1] = rng.choice([-value, value], size)
    expected, _ = reference.forward(chain_of(model), model.tensors, x[:, None])
    np.testing.assert_allclose(model(x)[0], expected[:, 0], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("value", [1e160, 1e300, float(np.finfo(np.float64).max)])
def test_also_of_doubles(value: float, rng: np.random.Generator) -> None:
    for size in (2, 17, 35):
        model = norm(size, None, np.float64)
        assert not model(np.full((1, size), value))[0].any()
        x = rng.uniform(-1, 1, (3, size))
        expected, _ = norm(size, None, np.float64, eps=1e-300)(x)
        np.testing.assert_allclose(model(x * value)[0], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_in_the_whole_of_its_row(
    odd: float, isa: str, rng: np.random.Generator
) -> None:
    for size in (3, 16, 35):
        for at in (0, size - 1):
            x = rng.standard_normal((3, size)).astype(np.float32)
            model = norm(size, isa)
            plain, _ = model(x)
            x[1, at] = odd
            y, _ = model(x)
            assert np.isnan(y[1]).all()
            assert_same_bits(y[[0, 2]], plain[[0, 2]])


@pytest.mark.parametrize("kind", ["product", "gate"])
@pytest.mark.parametrize("size", [1, 5, 8, 17, 35])
def test_cells_that_normalise(kind: str, size: int, isa: str, rng: np.random.Generator) -> None:
    """Also where all that is normalised is the same."""
    layers = (spec.LSTM("r", 3, size, layer_norm=kind),)
    for factor in (1.0, 1e20, 1e30):
        tensors = random_tensors(layers, rng)
        for name in ("r.weight_ih_l0", "r.weight_hh_l0"):
            tensors[name] *= np.float32(factor)
        x = rng.standard_normal((4, 2, 3)).astype(np.float32)
        check(layers, tensors, x, isa)
        tensors["r.weight_ih_l0"][:] = np.float32(factor)
        tensors["r.weight_hh_l0"][:] = 0
        check(layers, tensors, np.ones((4, 2, 3), np.float32), isa)


def check(layers: Any, tensors: dict[str, np.ndarray], x: np.ndarray, isa: str) -> None:
    y, _ = Model(ChainFile(layers, tensors), isa=isa)(x)
    expected, _ = reference.forward(layers, tensors, x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_softmax_is_shifted_by_the_largest(
    function: str, isa: str, rng: np.random.Generator
) -> None:
    for size in (1, 7, 16, 35, 300):
        model = Model(
            ChainFile(
                (spec.Linear("l", 1, size), spec.Activation("a", function, size)),
                {"l.weight": np.ones((size, 1), np.float32), "l.bias": np.zeros(size, np.float32)},
            ),
            isa=isa,
        )
        # All are the same, however large.
        for value in (3e38, -3e38, 1e30, 0.0):
            y, _ = model(np.full((1, 1), value, np.float32))
            expected = 1 / size if function == "softmax" else -np.log(size)
            np.testing.assert_allclose(y, np.full((1, size), expected), rtol=3e-7)
        model = Model(
            ChainFile(
                (spec.Scale("s", size), spec.Activation("a", function, size)),
                {"s.weight": np.ones(size, np.float32), "s.bias": np.zeros(size, np.float32)},
            ),
            isa=isa,
        )
        x = rng.choice([-1.5e38, 0, 90, -90, 1e4, 1.5e38], (20, 1, size)).astype(np.float32)
        expected, _ = reference.forward(chain_of(model), model.tensors, x)
        np.testing.assert_allclose(model(x)[0], expected, rtol=1e-6, atol=1e-6)
