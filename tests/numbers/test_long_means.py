"""A mean over time is as precise after millions of steps as after one, and counts them all."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import build, chain_of
from ways import assert_same_bits, assert_same_state

from fastlstm import Model

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
BASE = 2**24


def mean_of(size: int, isa: str | None = None, dtype: Any = np.float32) -> Model:
    """The mean alone, of rows as they are."""
    rng = np.random.default_rng(0)
    model = build((spec.Scale("s", size), spec.Pool("p", "mean", size)), rng, dtype)
    file = spec_file(model, np.ones(size, dtype), np.zeros(size, dtype))
    return Model(file, isa=isa if dtype == np.float32 else None)


def spec_file(model: Model, weight: np.ndarray, bias: np.ndarray) -> Any:
    from models import ChainFile

    return ChainFile(chain_of(model), {"s.weight": weight, "s.bias": bias})


def both_parts(state: Any) -> np.ndarray:
    """A mean, which a state has as a float and the rest that this leaves."""
    parts = np.stack([state["p.total"][0], state["p.rest"][0]])
    return np.asarray(parts.astype(np.float64).sum(axis=0))


def rows(T: int, rng: np.random.Generator) -> np.ndarray:
    """Columns that a sum of floats finds hard, each in its own way."""
    x = np.empty((T, 6), np.float32)
    x[:, 0] = rng.standard_normal(T) + 1
    x[:, 1] = rng.random(T)
    x[:, 2] = 0.1  # every rounding of a sum goes the same way
    x[:, 3] = rng.standard_normal(T)
    x[:, 4] = rng.choice([1, -1, 0.7], T)
    x[:, 5] = np.linspace(-3, 5000, T)
    return x


def test_the_error_does_not_grow_with_the_length(isa: str, rng: np.random.Generator) -> None:
    model = mean_of(6, isa)
    for T in (1, 2, 1000, 100_000, 3_000_000):
        x = rows(T, rng)
        y, state = model(x)
        exact = x.mean(axis=0, dtype=np.longdouble)
        # The last rounding, and those of what each row adds, which point any way.
        bound = 2**-24 * (np.abs(exact) + x.std(axis=0, dtype=np.float64) / np.sqrt(T))
        assert (np.abs(y - exact) <= bound).all(), (T, np.abs(y - exact) / bound)
        assert state["p.count"].tolist() == [T]
        assert_same_bits(state["p.total"][0], y)


def test_the_error_is_at_most_one_and_a_half_times_that_of_torch(rng: np.random.Generator) -> None:
    """Promise 2, of sums of errors over many columns and draws."""
    torch = pytest.importorskip("torch", reason="compares with torch's mean")
    model = mean_of(64)
    for T in (1000, 100_000):
        ours, theirs = [], []
        for _ in range(7):
            x = (rng.standard_normal((T, 64)) + rng.uniform(-2, 2, 64)).astype(np.float32)
            exact = x.mean(axis=0, dtype=np.float64)
            ours.append(np.abs(model(x)[0] - exact).mean())
            theirs.append(np.abs(torch.from_numpy(x).mean(0).numpy() - exact).mean())
        assert np.median(ours) <= 1.5 * np.median(theirs)


@DTYPES
@pytest.mark.parametrize("n", [BASE - 3, BASE - 1, BASE, 2**25 + 1, 2**31 - 1, 2**40 + 5, 2**47])
def test_steps_count_beyond_what_a_float_counts(
    n: int, dtype: Any, isa: str, rng: np.random.Generator
) -> None:
    model = mean_of(19, isa, dtype)
    stream, state = model.stream(), model.initial_state()
    state["p.count"][0] = n
    state["p.total"][0] = rng.uniform(0.5, 1, 19)
    stream.state = state
    exact = [Fraction(float(m)) for m in state["p.total"][0]]
    moved = np.zeros(19)
    for k in range(4):
        x = (rng.standard_normal(19) * n / 100).astype(dtype)
        y = stream.step(x)
        after = stream.state
        total = n + k + 1
        assert after["p.count"].tolist() == [total]
        assert_same_bits(after["p.total"][0], y)
        exact = [m + (Fraction(float(a)) - m) / total for m, a in zip(exact, x, strict=True)]
        moved += np.abs(x).astype(np.float64) / total
        twice = both_parts(after)
        expected = np.array([float(m) for m in exact])
        # The part of a row is rounded, and the mean to twice the digits.
        assert (np.abs(twice - expected) <= 2**-22 * moved + 2**-44).all()
        # A stream that goes on from a saved state goes on with the same bits.
        stream = model.stream()
        stream.state = after
        assert_same_state(stream.state, after)


def test_a_step_is_not_lost_where_a_float_would_not_change(isa: str) -> None:
    """Of 2**30 rows of 1, a thousand of 1001 more move the mean by less than its last digit."""
    model = mean_of(3, isa)
    state = model.initial_state()
    state["p.total"][0] = 1
    state["p.count"][0] = 2**30
    _, after = model(np.full((1000, 3), 1001, np.float32), state)
    moved = (both_parts(after) - 1) * (2**30 + 1000) / 1e6
    np.testing.assert_allclose(moved, 1, rtol=1e-4)


@DTYPES
def test_the_largest_count_stays(dtype: Any, isa: str) -> None:
    model = mean_of(3, isa, dtype)
    stream, state = model.stream(), model.initial_state()
    state["p.count"][0] = BASE**2 - 2
    state["p.total"][0] = 1
    stream.state = state
    for _ in range(3):
        stream.step(np.full(3, 2.0**40, dtype))
        assert stream.state["p.count"].tolist() == [BASE**2 - 1]
    np.testing.assert_allclose(both_parts(stream.state), 1 + 3 * 2.0**-8, rtol=1e-6)


@DTYPES
def test_what_is_not_finite_is_what_a_sum_would_make_of_it(dtype: Any, isa: str) -> None:
    """In its own column and row only, and from then on."""
    inf, nan, most = np.inf, np.nan, float(np.finfo(dtype).max)
    columns = [
        ([1, inf, 2, 3], inf),
        ([inf, 1, inf, 3], inf),
        ([-inf, 1, most, 3], -inf),
        ([1, inf, -inf, 3], nan),
        ([1, nan, 2, 3], nan),
        ([nan, inf, 2, 3], nan),
        ([most, most, most, most], most),
        ([-most, -most, -most, -most], -most),
        ([most, -most, most, -most], 0),
        ([1, 2, 3, 6], 3),
    ]
    for shift in range(len(columns)):
        moved = columns[shift:] + columns[:shift]
        x = np.array([c for c, _ in moved], dtype).T[:, None]
        expected = np.array([m for _, m in moved], dtype)
        model = mean_of(len(columns), isa, dtype)
        y, state = model(np.concatenate([x, np.ones_like(x)], axis=1))
        odd = ~np.isfinite(expected)
        np.testing.assert_array_equal(y[0][odd], expected[odd])
        np.testing.assert_allclose(y[0][~odd], expected[~odd], atol=float(2e-6 * most), rtol=1e-6)
        np.testing.assert_array_equal(y[1], np.ones(len(columns)))
        assert np.isfinite(state["p.rest"]).all()
        small = expected == 3
        np.testing.assert_array_equal(y[0][small], 3)  # beside what is not finite
        if dtype == np.float32:
            with np.errstate(all="ignore"):
                truth, _ = reference.forward(chain_of(model), model.tensors, x)
            np.testing.assert_array_equal(y[0][odd], truth[0, 0][odd].astype(dtype))


@pytest.mark.parametrize("length", [0, 1, 5, 9])
def test_padding_is_not_counted(length: int, isa: str, rng: np.random.Generator) -> None:
    model = mean_of(19, isa)
    x = rng.standard_normal((9, 2, 19)).astype(np.float32)
    x[length:, 0] = np.nan
    y, state = model(x, lengths=np.array([length, 9]))
    assert state["p.count"].tolist() == [[length, 9]]
    if length:
        alone, after = model(x[:length, 0])
        assert_same_bits(y[0], alone)
        assert_same_state({n: a[:, 0] for n, a in state.items()}, after)
    stream = model.stream(2)
    stream.run(np.ascontiguousarray(x[:, ::-1]))
    stream.reset()
    assert not any(a.any() for a in stream.state.values())
