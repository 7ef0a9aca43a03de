"""The reference's products of integers against loops over numbers, as the specification says it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from one_layer import draw, forward, graph_of

from fastlstm import spec
from fastlstm.reduced import Reduced

F = np.float32


def product(x, numbers, scale):
    """Of a row x (I,) with integers (O, I), one number after another."""
    x = np.asarray(x, F)
    largest = F(0)
    for value in x:
        if math.isnan(value) or math.isinf(value):
            return np.full(len(numbers), np.nan, F)
        largest = max(largest, abs(value))
    if largest < 2.0**-100:
        return np.zeros(len(numbers), F)
    by = F(127) / largest
    integers = [int(np.rint(value * by)) for value in x]
    assert all(-127 <= q <= 127 for q in integers)
    y = []
    for row, s in zip(numbers, scale, strict=True):
        total = sum(int(q) * int(w) for q, w in zip(integers, row, strict=True))
        y.append(F(total) * (F(largest / F(127)) * s))
    return np.array(y, F)


def reduced(layer, shapes, rng):
    graph = graph_of(layer, shapes)
    tensors = {name: array.astype(F) for name, array in draw(graph, rng).items()}
    for name, axis in spec.stored(graph, spec.check(graph).tensors)[0].axes.items():
        tensors[name] = Reduced.of(tensors[name], "int8", axis)
    return tensors


def rows(w, x):
    return np.array([product(row, w.numbers.reshape(len(w.numbers), -1), w.scale) for row in x])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear(dtype, rng):
    layer = spec.Linear("n", 37, 5)
    w = reduced(layer, [(37,)], rng)
    x = rng.standard_normal((4, 1, 37)).astype(F)
    y = forward(layer, w, x, dtype=dtype)
    expected = rows(w["n.weight"], x[:, 0]).astype(dtype) + w["n.bias"].astype(dtype)
    np.testing.assert_array_equal(y[:, 0], expected)


def test_of_several_positions_each_has_a_scale_of_its_own(rng):
    layer = spec.Linear("n", 6, 5, bias=False)
    w = reduced(layer, [(3, 6)], rng)
    x = (rng.standard_normal((1, 1, 3, 6)) * [[1], [100], [1e-3]]).astype(F)
    y = forward(layer, w, x, dtype=F)
    np.testing.assert_array_equal(y[0, 0], rows(w["n.weight"], x[0, 0]))
    exact = x[0, 0].astype(np.float64) @ w["n.weight"].widened().T
    assert (np.abs(y[0, 0] - exact).max(axis=1) < 0.02 * np.abs(exact).max(axis=1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_makes_all_its_products_nan(bad, rng):
    layer = spec.Linear("n", 4, 3, bias=False)
    w = reduced(layer, [(4,)], rng)
    x = rng.standard_normal((2, 1, 4)).astype(F)
    x[0, 0, 2] = bad
    y = forward(layer, w, x, dtype=F)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], rows(w["n.weight"], x[1]))


@pytest.mark.parametrize("size", [0.0, 1e-45, 2.0**-101, 2.0**-100, 1e37])
def test_rows_of_any_size(size, rng):
    layer = spec.Linear("n", 4, 3, bias=False)
    w = reduced(layer, [(4,)], rng)
    x = np.full((1, 1, 4), size, F)
    y = forward(layer, w, x, dtype=F)
    np.testing.assert_array_equal(y[0], rows(w["n.weight"], x[0]))
    assert (size >= 2.0**-100) == bool(y.any())


def test_lstm(rng):
    """A step: z = (b + W x) + W h, x and h each with a scale of its own."""
    layer = spec.LSTM("n", 5, 4)
    w = reduced(layer, [(5,)], rng)
    x = rng.standard_normal((3, 1, 5)).astype(F)
    y = forward(layer, w, x, dtype=np.float64)
    h, c = np.zeros(4), np.zeros(4)
    bias = w["n.bias_ih_l0"].astype(np.float64) + w["n.bias_hh_l0"]
    for t in range(3):
        z = rows(w["n.weight_ih_l0"], x[t])[0].astype(np.float64)
        z = z + rows(w["n.weight_hh_l0"], h[None])[0] + bias
        i, f, g, o = np.split(z, 4)
        i, f, o = (1 / (1 + np.exp(-v)) for v in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        np.testing.assert_allclose(y[t, 0], h, rtol=1e-12)


def test_gru_that_resets_before_the_product(rng):
    """What is reset has a scale of its own."""
    layer = spec.GRU("n", 3, 4, reset_after=False)
    w = reduced(layer, [(3,)], rng)
    x = rng.standard_normal((3, 1, 3)).astype(F)
    y = forward(layer, w, x, dtype=np.float64)
    h = np.zeros(4)
    b_x, b_h = (w[f"n.bias_{s}_l0"].astype(np.float64) for s in ("ih", "hh"))
    for t in range(3):
        r_x, z_x, n_x = np.split(rows(w["n.weight_ih_l0"], x[t])[0] + b_x, 3)
        r_h, z_h, _ = np.split(rows(w["n.weight_hh_l0"], h[None])[0] + b_h, 3)
        r, z = (1 / (1 + np.exp(-v)) for v in (r_x + r_h, z_x + z_h))
        n_h = (rows(w["n.weight_hh_l0"], (r * h)[None])[0] + b_h)[8:]
        h = (1 - z) * np.tanh(n_x + n_h) + z * h
        np.testing.assert_allclose(y[t, 0], h, rtol=1e-12)


def test_convolution(rng):
    """The row of a product is all that the kernel sees of a group at one position."""
    layer = spec.Convolution("n", 4, 6, (3,), 2, stride=(2,), padding=((1, 0),))
    w = reduced(layer, [(4, 9)], rng)
    x = rng.standard_normal((1, 1, 4, 9)).astype(F)
    y = forward(layer, w, x, dtype=F)[0, 0]
    padded = np.pad(x[0, 0], [(0, 0), (1, 0)])
    weight = w["n.weight"]
    for position in range(y.shape[1]):
        for group in range(2):
            seen = padded[2 * group :][:2, 2 * position :][:, :3].ravel()
            own = slice(3 * group, 3 * group + 3)
            numbers = weight.numbers[own].reshape(3, -1)
            expected = product(seen, numbers, weight.scale[own]) + w["n.bias"][own]
            np.testing.assert_array_equal(y[own, position], expected)


def test_embedding(rng):
    layer = spec.Embedding("n", 7, 3)
    graph = graph_of(layer, [()], (), 7)
    table = Reduced.of(draw(graph, rng)["n.weight"].astype(F), "int8")
    tokens = rng.integers(0, 7, (5, 1))
    y = forward(layer, {"n.weight": table}, tokens, tokens=7, dtype=F)
    expected = table.numbers[tokens].astype(F) * table.scale[tokens][..., None]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_halves_are_what_they_stand_for(precision, rng):
    layer = spec.LSTM("n", 5, 4, 2)
    graph = graph_of(layer, [(5,)])
    tensors = draw(graph, rng)
    (one,) = spec.stored(graph, spec.check(graph).tensors)
    made = {n: Reduced.of(tensors[n].astype(F), precision) for n in one.axes}
    x = rng.standard_normal((4, 2, 5))
    wide = {name: tensor.widened() for name, tensor in made.items()}
    np.testing.assert_array_equal(
        forward(layer, tensors | made, x), forward(layer, tensors | wide, x)
    )
