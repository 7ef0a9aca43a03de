"""Matrices stored in fewer bytes: no way of running a model, and no kernel, changes a bit.

``precision/test_engine_in_fewer_bytes.py`` compares the engine with the reference.
"""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import draw, graph_of, inputs_of
from quantised import in_precision
from ways import assert_same_bits

from fastlstm import Model, _engine, spec
from fastlstm.format import ModelFile
from fastlstm.reduced import widened

PRECISIONS = spec.PRECISIONS[1:]
HERE = [name for name, _ in _engine.kernels(4)]
SAME_BITS = [name for name in HERE if name != "scalar"]

LAYERS = {
    "lstm": spec.LSTM("n", 37, 50, num_layers=2),
    "projected": spec.LSTM("n", 12, 40, proj_size=9),
    "peepholes": spec.LSTM("n", 17, 21, peepholes=True),
    "gru": spec.GRU("n", 5, 33),
    "resets before": spec.GRU("n", 19, 24, reset_after=False),
    "rnn": spec.RNN("n", 66, 70),
}


def models(layer, precision, rng, **options):
    graph = graph_of(layer, [(layer.input_size,)])
    tensors = in_precision(graph, draw(graph, rng), precision)
    return graph, {
        isa: Model(ModelFile(graph, tensors), isa=isa, reproducible=True, **options) for isa in HERE
    }


def x_of(graph, T, B, rng):
    (x,) = inputs_of(graph, T, B, rng).values()
    return x.astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_neither_company_nor_pieces_nor_what_was_made_before(name, precision, rng):
    graph, made = models(LAYERS[name], precision, rng, threads=2)
    T, B = 23, 30
    x = x_of(graph, T, B, rng)
    for isa, model in made.items():
        y, _ = model(x)
        for b in (0, 7, 29):
            assert_same_bits(model(x[:, b])[0], y[:, b])
        stream, at = model.stream(B), 0
        parts = []
        while at < T:
            n = int(rng.integers(1, 6))
            if rng.random() < 0.5 and at:
                stream.prepare()
            parts.append(stream.run(x[at : at + n]) if n > 1 else stream.step(x[at])[None])
            at += n
        assert_same_bits(np.concatenate(parts), y)
        if isa in SAME_BITS:
            assert_same_bits(y, made[SAME_BITS[0]](x)[0])


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32, 33, 48, 97])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 200, 1100])
def test_rows_and_sizes_of_int8_have_the_same_bits_on_every_kernel(size, rows, rng):
    graph = graph_of(spec.Linear("n", size, 19), [(size,)])
    tensors = in_precision(graph, draw(graph, rng), "int8")
    x = x_of(graph, 1, rows, rng)
    made = {isa: Model(ModelFile(graph, tensors), isa=isa)(x)[0] for isa in SAME_BITS}
    for y in made.values():
        assert_same_bits(y, made[SAME_BITS[0]])


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2, 33, 250, 1500])
def test_halves_have_the_bits_of_the_floats_that_they_stand_for(size, precision, rng):
    """Also where float16 is widened as it is packed, as of small models, and where it is not."""
    graph = graph_of(spec.LSTM("n", size, 129), [(size,)])
    tensors = in_precision(graph, draw(graph, rng), precision)
    plain = {name: np.array(widened(tensor)) for name, tensor in tensors.items()}
    x = x_of(graph, 4, 5, rng)
    for isa in HERE:
        y, exact = (
            Model(ModelFile(graph, t), isa=isa, reproducible=True)(x)[0] for t in (tensors, plain)
        )
        assert_same_bits(y, exact)


@pytest.mark.parametrize("isa", HERE)
def test_rows_of_int8_that_no_integers_stand_for(isa, rng):
    """Products of NaN and infinity are NaN; those of numbers below 2^-100 are 0."""
    graph = graph_of(spec.Linear("n", 20, 9), [(20,)])
    tensors = in_precision(graph, draw(graph, rng), "int8")
    model = Model(ModelFile(graph, tensors), isa=isa)
    bias = tensors["n.bias"]
    x = rng.standard_normal((1, 5, 20)).astype(np.float32)
    x[0, 1, 3], x[0, 2, 19], x[0, 3], x[0, 4] = np.nan, -np.inf, 1e-31, 0
    (y,) = model(x)[0]
    assert np.isnan(y[[1, 2]]).all()
    assert np.isfinite(y[0]).all()
    np.testing.assert_array_equal(y[3:], np.stack([bias, bias]))


# Rows are summed several at a time, words of inputs too, and what is left of both apart.
@pytest.mark.parametrize("rows", [15, 16, 17, 31, 32, 33, 48, 97])
@pytest.mark.parametrize("inputs", [1, 63, 64, 65, 200])
def test_any_number_of_rows_and_inputs(inputs, rows, rng):
    for layer in (spec.LSTM("n", inputs, inputs), spec.GRU("n", inputs, 72)):
        graph, made = models(layer, "int8", rng)
        x = x_of(graph, 2, rows, rng)
        first, _ = made[SAME_BITS[0]](x)
        for isa in SAME_BITS:
            assert_same_bits(made[isa](x)[0], first)
            assert_same_bits(made[isa](x[:, -1])[0], first[:, -1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [7, 64])
def test_a_table_is_looked_up_where_it_lies(width, precision, rng):
    """In the bytes that it is stored in, and also where it is copied, the same numbers."""
    V = 20_000
    graph = graph_of(spec.Embedding("n", V, width), [()], tokens=V)
    tensors = in_precision(graph, draw(graph, rng), precision)
    kept = Model(ModelFile(graph, tensors))
    copied = Model(ModelFile(graph, tensors), keep=False)
    x = rng.integers(0, V, (50, 2))
    assert_same_bits(kept(x)[0], np.asarray(tensors["n.weight"])[x].astype(np.float32))
    assert_same_bits(copied(x)[0], kept(x)[0])
    scales = 4 * V if precision == "int8" else 0
    assert kept.nbytes < scales + 4096
