"""``fastlstm.quantize``: what it chooses, what it measures, what it refuses."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from quantised import GRAPH, float32_model, in_precision, weights

import fastlstm
from fastlstm import reference, spec
from fastlstm.format import ModelFile
from fastlstm.reduced import Reduced, same

CHAIN = spec.Graph.chain([spec.LSTM("l", 6, 24), spec.Linear("o", 24, 5)])


@pytest.fixture
def model(rng):
    return float32_model(CHAIN, rng)


def bytes_of(model):
    return sum(tensor.nbytes for tensor in model.tensors.values())


@pytest.mark.parametrize("precision", spec.PRECISIONS[1:])
def test_every_layer(precision, model):
    made = fastlstm.quantize(model, precision)
    assert made.precision == {"l": precision, "o": precision}
    assert model.precision == {"l": "float32", "o": "float32"}
    assert made.dtype == np.float32
    expected = in_precision(CHAIN, model.tensors, precision)
    assert all(same(made.tensors[name], tensor) for name, tensor in expected.items())
    assert made.source["precision"] == f"{precision}: 'l', 'o'"
    assert bytes_of(made) < 0.6 * bytes_of(model)


def test_some_layers(model):
    made = fastlstm.quantize(model, {"l": "int8"})
    assert made.precision == {"l": "int8", "o": "float32"}
    made = fastlstm.quantize(model, {"l": "float16", "o": "int8"})
    assert made.precision == {"l": "float16", "o": "int8"}
    assert made.source["precision"] == "int8: 'o'\nfloat16: 'l'"


def test_float32_is_the_model_itself(model):
    made = fastlstm.quantize(model, "float32")
    assert made.fingerprint == model.fingerprint
    assert made.measured is None


def test_what_is_measured(model):
    """Against the float64 equations with the weights of the model, over steps that are chained."""
    made = fastlstm.quantize(model, "int8")
    assert made.measured.steps == 1000
    assert not made.measured.calibrated
    (errors,) = made.measured.outputs.values()
    assert 0 < errors.float32_largest < 1e-5 < errors.largest < 0.1 * errors.size
    assert errors.rms < errors.largest
    assert errors.float32_rms <= errors.float32_largest
    again = fastlstm.quantize(model, "int8")
    assert again.measured == made.measured


def test_calibration(model, rng, tmp_path):
    x = (0.1 * rng.standard_normal((300, 6))).astype(np.float32)
    made = fastlstm.quantize(model, "int8", calibrate=x)
    assert made.measured.steps == 300
    assert made.measured.calibrated
    exact = reference.forward(CHAIN, model.tensors, {"input": x[:, None]})["output"][:, 0]
    y, _ = made(x)
    (errors,) = made.measured.outputs.values()
    assert errors.largest == np.abs(y - exact).max()
    assert errors.rms == pytest.approx(np.sqrt(np.square(y - exact).mean()))
    inputs, _ = made.self_check
    np.testing.assert_array_equal(inputs["input"], x[: len(inputs["input"])])
    made.check()
    np.savez(tmp_path / "x.npz", anything=x.astype(np.float64))
    for given in (tmp_path / "x.npz", {"input": x}, {"any": x}, x[:, None]):
        assert fastlstm.quantize(model, "int8", calibrate=given).measured == made.measured


def test_calibration_of_a_batch_is_no_more_work(model, rng):
    x = rng.standard_normal((900, 4, 6)).astype(np.float32)
    assert fastlstm.quantize(model, "int8", calibrate=x).measured.steps == 250


def test_tokens_and_held_inputs(rng):
    assert fastlstm.quantize(float32_model(GRAPH, rng), "int8").measured.steps == 1000
    graph = spec.Graph(
        [spec.Input("x", (3,)), spec.Input("k", (2,), held=True), spec.Input("t", (), 7)],
        [
            spec.Embedding("e", 7, 4)("t"),
            spec.GRU("g", 4, 5)("e"),
            spec.Linear("p", 2, 5)("k"),
            spec.Linear("q", 3, 5)("x"),
            spec.Arithmetic("sum", "add")("g", "p"),
        ],
        {"a": "sum", "b": "q"},
    )
    model = float32_model(graph, rng)
    made = fastlstm.quantize(model, "int8")
    assert set(made.measured.outputs) == {"a", "b"}
    x = {
        "x": rng.standard_normal((40, 2, 3)).astype(np.float32),
        "k": rng.standard_normal((2, 2)).astype(np.float32),
        "t": rng.integers(0, 7, (40, 2)),
    }
    made = fastlstm.quantize(model, "int8", calibrate=x)
    assert made.measured.steps == 40
    made.check()
    one = {"x": x["x"][:, 0], "k": x["k"][0], "t": x["t"][:, 0]}
    assert fastlstm.quantize(model, "int8", calibrate=one).measured.steps == 40


def test_a_layer_that_cannot_be_stays_float32_and_is_told(rng):
    wide = spec.MAX_INT8_WIDTH + 1
    graph = spec.Graph.chain([spec.Linear("wide", wide, 2), spec.LSTM("l", 2, 5)])
    model = float32_model(graph, rng)
    made = fastlstm.quantize(model, "int8")
    assert made.precision == {"wide": "float32", "l": "int8"}
    assert (
        f"'wide' cannot be int8: an output of tensor 'wide.weight' is a sum over {wide}"
        in (made.source["precision"])
    )
    with pytest.raises(ValueError, match="'wide' cannot be int8"):
        fastlstm.quantize(model, {"wide": "int8"})
    assert fastlstm.quantize(model, "bfloat16").precision["wide"] == "bfloat16"


def test_layers_that_share_a_matrix(rng):
    tied = (("weight", "e.weight"),)
    graph = spec.Graph.chain(
        [
            spec.Embedding("e", 9, 4),
            spec.GRU("g", 4, 4),
            spec.Linear("o", 4, 9, bias=False, tensor_names=tied),
        ]
    )
    model = float32_model(graph, rng)
    made = fastlstm.quantize(model, {"e": "int8", "o": "int8"})
    assert made.precision == {"e": "int8", "g": "float32", "o": "int8"}
    with pytest.raises(ValueError, match="share a matrix"):
        fastlstm.quantize(model, {"o": "int8"})


class TestTarget:
    def test_is_kept_to(self, model):
        errors = {
            kind: fastlstm.quantize(model, kind).measured.relative(1.0)
            for kind in spec.PRECISIONS[1:]
        }
        # Between those of all float16 and of all int8: not everything can be int8.
        target = (errors["float16"] * errors["int8"]) ** 0.5
        made = fastlstm.quantize(model, target_error=target)
        (found,) = made.measured.outputs.values()
        assert found.largest <= target
        assert {*made.precision.values()} <= {"int8", "float16", "bfloat16"}
        assert bytes_of(made) < bytes_of(model)
        assert fastlstm.quantize(model, "mixed", target_error=target).precision == made.precision

    def test_that_all_keep_to_is_all_int8(self, model):
        assert {*fastlstm.quantize(model, target_error=1.0).precision.values()} == {"int8"}

    def test_that_only_float32_keeps_to(self, model):
        made = fastlstm.quantize(model, target_error=2e-6)
        assert {*made.precision.values()} == {"float32"}

    def test_that_nothing_keeps_to_is_refused(self, model):
        with pytest.raises(ValueError, match="float32 itself is off by"):
            fastlstm.quantize(model, target_error=1e-12)

    @pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf, "1", True])
    def test_is_a_number(self, bad, model):
        with pytest.raises(ValueError, match="expected a number above 0"):
            fastlstm.quantize(model, target_error=bad)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "phrase"),
        [
            ({"precision": "int4"}, "'int4'; expected one of 'float32'"),
            ({"precision": {"l": "int4"}}, "precision of 'l' is 'int4'"),
            ({"precision": {"x": "int8"}}, "'x', which is no layer.*'l', 'o'"),
            ({"precision": "mixed"}, "expected target_error"),
            ({"precision": "int8", "target_error": 0.1}, "there is a target_error"),
            ({"precision": "int8", "calibrate": {"a": 1, "b": 2}}, "expected the inputs 'input'"),
            ({"precision": "int8", "calibrate": np.zeros((5, 7))}, r"expected \(T, B, 6\)"),
            ({"precision": "int8", "calibrate": np.zeros(6)}, r"expected \(T, B, 6\)"),
            ({"precision": "int8", "calibrate": np.full((5, 6), np.nan)}, "not finite"),
            ({"precision": "int8", "calibrate": np.zeros((0, 6))}, "has 0 steps"),
        ],
    )
    def test_of_arguments(self, options, phrase, model):
        with pytest.raises(ValueError, match=phrase):
            fastlstm.quantize(model, **options)

    def test_of_types(self, model):
        with pytest.raises(TypeError, match="expected a Model"):
            fastlstm.quantize(model.tensors, "int8")
        with pytest.raises(TypeError, match="expected one of 'float32'"):
            fastlstm.quantize(model, 8)
        with pytest.raises(TypeError, match="expected one of 'float32'"):
            fastlstm.quantize(model)

    def test_of_float64(self, rng):
        tensors = {name: w.astype(np.float64) for name, w in weights(CHAIN, rng).items()}
        with pytest.raises(ValueError, match='dtype="float32"'):
            fastlstm.quantize(fastlstm.Model(ModelFile(CHAIN, tensors)), "int8")

    def test_of_what_is_quantised(self, model):
        with pytest.raises(ValueError, match="quantised already"):
            fastlstm.quantize(fastlstm.quantize(model, "int8"), "float16")

    def test_of_a_model_without_matrices(self, rng):
        graph = spec.Graph.chain([spec.Activation("a", "tanh")], shape=(3,))
        with pytest.raises(ValueError, match="no layer with a matrix"):
            fastlstm.quantize(float32_model(graph, rng), "int8")

    def test_of_weights_that_are_not_finite(self, rng):
        tensors = weights(CHAIN, rng)
        tensors["o.weight"][0, 0] = np.nan
        model = fastlstm.Model(ModelFile(CHAIN, tensors))
        with pytest.raises(ValueError, match="not finite for these inputs"):
            fastlstm.quantize(model, "int8")

    def test_of_weights_that_do_not_fit(self, rng):
        tensors = weights(CHAIN, rng)
        tensors["o.weight"][0, 0] = 1e5
        model = fastlstm.Model(ModelFile(CHAIN, tensors))
        with pytest.raises(ValueError, match=r"'o.weight'.*too large for float16"):
            fastlstm.quantize(model, "float16")
        made = fastlstm.quantize(model, target_error=1e5)
        assert made.precision["o"] in ("int8", "bfloat16")

    def test_of_a_calibration_too_short(self, rng):
        graph = spec.Graph.chain([spec.Convolution("c", 2, 3, (5,), over_time=True)])
        with pytest.raises(ValueError, match="has 4 steps; expected at least 5"):
            fastlstm.quantize(float32_model(graph, rng), "int8", calibrate=np.zeros((4, 2)))


class TestModels:
    @pytest.fixture
    def made(self, model):
        return fastlstm.quantize(model, {"l": "int8", "o": "bfloat16"})

    def test_are_saved_and_loaded(self, made, tmp_path, rng):
        made.save(tmp_path / "m")
        x = rng.standard_normal((9, 6)).astype(np.float32)
        y, _ = made(x)
        for options in ({}, {"mmap": True}, {"keep": False}, {"check": False}):
            found = fastlstm.load(tmp_path / "m", **options)
            assert found.precision == made.precision
            assert found.measured == made.measured
            assert found.fingerprint == made.fingerprint
            np.testing.assert_array_equal(found(x)[0], y)

    def test_are_pickled(self, made, tmp_path, rng):
        made.save(tmp_path / "m")
        x = rng.standard_normal((9, 6)).astype(np.float32)
        for given in (made, fastlstm.load(tmp_path / "m", mmap=True)):
            found = pickle.loads(pickle.dumps(given))
            assert found.precision == made.precision
            assert found.fingerprint == made.fingerprint
            np.testing.assert_array_equal(found(x)[0], made(x)[0])

    def test_stream(self, made, rng):
        x = rng.standard_normal((9, 6)).astype(np.float32)
        stream = made.stream()
        np.testing.assert_array_equal(np.stack([stream.step(row) for row in x]), made(x)[0])

    def test_take_each_others_places(self, model, made, tmp_path, rng):
        made.save(tmp_path / "m")
        x = rng.standard_normal((9, 6)).astype(np.float32)
        assert fastlstm.load(tmp_path / "m", into=model) is model
        assert model.precision == made.precision
        assert model.measured == made.measured
        np.testing.assert_array_equal(model(x)[0], made(x)[0])

    def test_tensors_cannot_be_changed(self, made):
        tensor = made.tensors["l.weight_ih_l0"]
        assert isinstance(tensor, Reduced)
        with pytest.raises(ValueError, match="read-only"):
            tensor.numbers[0, 0] = 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            tensor.axis = 1

    def test_load_quantises(self, model, tmp_path):
        model.save(tmp_path / "m")
        found = fastlstm.load(tmp_path / "m", precision="int8", keep=False)
        assert {*found.precision.values()} == {"int8"}
        with pytest.raises(RuntimeError, match="not kept"):
            _ = found.tensors

    def test_convert_quantises(self, tmp_path, rng):
        tensors = weights(spec.Graph.chain([spec.LSTM("l", 6, 24)]), rng)
        given = {name.partition(".")[2]: w for name, w in tensors.items()}
        made = fastlstm.convert(given, tmp_path / "m", precision="int8")
        found = fastlstm.load(tmp_path / "m")
        assert {*found.precision.values()} == {"int8"}
        assert found.fingerprint == made.fingerprint
        with pytest.raises(ValueError, match="expected a precision"):
            fastlstm.convert(given, tmp_path / "m", calibrate=np.zeros((3, 6)))

    def test_a_damaged_one_fails_its_self_check(self, made, tmp_path):
        tensors = made.tensors
        kept = tensors["l.weight_hh_l0"]
        tensors["l.weight_hh_l0"] = kept.with_numbers(kept.numbers[::-1].copy(), kept.scale)
        with pytest.raises(fastlstm.FormatError, match="self-check failed"):
            made.like(dataclasses.replace(made._file(), tensors=tensors)).check()

    def test_a_float64_model_says_so(self, rng):
        tensors = {name: w.astype(np.float64) for name, w in weights(CHAIN, rng).items()}
        model = fastlstm.Model(ModelFile(CHAIN, tensors))
        assert model.precision == {"l": "float64", "o": "float64"}
