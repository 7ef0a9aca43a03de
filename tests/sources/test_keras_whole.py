"""Whole Keras models: names, dtypes, what has no effect, random ones, and a trained one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras_models import check, keras_or_skip, of_graph, of_keras, randomise, rows, saved
from trained import assert_close, trained

import fastlstm
from fastlstm import reference
from fastlstm.sources.keras import read
from fastlstm.verification.keras_model import KerasProgram

# Of Keras with torch: it hands its tensors to NumPy in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")


@pytest.fixture(scope="module")
def keras() -> Any:
    return keras_or_skip()


def kinds(made: Any) -> list[str]:
    return [node.layer.kind for node in made.graph.nodes]


def test_what_has_no_effect(keras, rng, tmp_path):
    la = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, 4), batch_size=2),
            la.Dropout(0.5),
            la.LSTM(3, return_sequences=True, dropout=0.2, recurrent_dropout=0.3),
            la.SpatialDropout1D(0.1),
            la.GaussianNoise(1.0),
            la.GaussianDropout(0.5),
            la.ActivityRegularization(0.1),
            la.Reshape((-1, 3)),
            la.GRU(2, kernel_regularizer="l2", kernel_constraint="max_norm"),
            la.Flatten(),
            la.Activation("linear"),
            la.Reshape((2,)),
        ]
    )
    made = check(model, tmp_path, rng)
    assert kinds(made) == ["lstm", "gru", "fold"]
    assert sum("has no effect at inference and was left out" in line for line in made.report) == 9


def test_layers_are_found_by_place_and_class(keras, rng, tmp_path):
    la = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, 4), name="lstm_1"),
            la.LSTM(4, return_sequences=True, name="lstm_2"),
            la.Dense(4, name="lstm"),
            la.LSTM(4, return_sequences=True, name="forward_"),
            la.Bidirectional(la.LSTM(2, return_sequences=True, name="x"), name="backward_y"),
            la.Dense(4, name="kernel"),
            la.Dense(4, name="input"),
        ]
    )
    made = check(model, tmp_path, rng)
    names = ["lstm_2", "lstm", "forward_", "backward_y", "kernel", "input_2"]
    assert [node.name for node in made.graph.nodes] == names


@pytest.mark.parametrize("options", [{}, {"axis": None}, {"invert": True}, {"axis": 2}])
def test_normalization(keras, rng, tmp_path, options):
    first = keras.layers.Normalization(**options)
    first.adapt(rng.standard_normal((20, 6, 3)) * [1, 5, 0.1] + [0, 3, -1])
    check(keras.Sequential([keras.Input((None, 3)), first]), tmp_path, rng, weights=False)


def test_given_numbers(keras, rng, tmp_path):
    la = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            la.Normalization(mean=[1.0, 0.0, -2.0], variance=[1.0, 0.0, 4.0]),
            la.Rescaling([1e-3, 1e-7, 2.0], offset=[0.0, 1.0, 0.5]),
            la.Normalization(mean=0.5, variance=2.0),
            la.Rescaling(1 / 127.5, offset=-1),
        ]
    )
    check(model, tmp_path, rng, weights=False, tolerance=1e-4)


def test_float64(keras, rng, tmp_path):
    la, options = keras.layers, {"dtype": "float64"}
    model = keras.Sequential(
        [keras.Input((None, 3)), la.Rescaling(1 / 3, **options), la.GRU(4, **options)]
    )
    made = check(model, tmp_path, rng, tolerance=1e-7, dtype="float64")
    assert {array.dtype.name for array in made.tensors.values()} == {"float64"}


def test_mixed_precision_is_noted(keras, rng, tmp_path):
    layers = [keras.Input((None, 3)), keras.layers.Dense(2, dtype="mixed_float16", name="d")]
    made = check(keras.Sequential(layers), tmp_path, rng, tolerance=1e-2)
    assert made.report[-1] == "Dense 'd' computes in mixed_float16 in Keras, but not here"


@pytest.mark.parametrize("seed", range(12))
def test_random_models(keras, rng, tmp_path, seed):
    """Graphs of layers that keep the number of steps, joined at random."""
    random, la = np.random.default_rng(seed), keras.layers
    cells = (la.LSTM, la.GRU, la.SimpleRNN)

    def one(units: int) -> Any:
        cell = cells[random.integers(3)](units, return_sequences=True)
        inner = cells[random.integers(3)](units, return_sequences=True)
        choices = [
            lambda: cell,
            lambda: la.Bidirectional(inner, merge_mode=str(random.choice(["sum", "ave", "mul"]))),
            lambda: la.Dense(units, activation=str(random.choice(["tanh", "elu", "mish"]))),
            lambda: la.Conv1D(units, int(random.integers(1, 4)), padding="causal"),
            lambda: la.SeparableConv1D(units, 3, padding="same"),
            lambda: la.TimeDistributed(la.Dense(units)),
            lambda: keras.Sequential([la.BatchNormalization(), la.Dense(units)]),
        ]
        return choices[random.integers(len(choices))]()

    steps = None if seed % 2 else 7
    values = [keras.Input((steps, 4))]
    for _ in range(8):
        read_ = values[random.integers(len(values))]
        made = one(4)(read_)
        if random.random() < 0.4:
            other = values[random.integers(len(values))]
            join = (la.Add, la.Multiply, la.Average, la.Concatenate)[random.integers(4)]
            made = la.Dense(4)(join()([made, other]))
        values.append(made)
    outputs = [la.Dense(2)(values[-1]), la.GRU(3)(values[-2]), la.GlobalMaxPooling1D()(values[-3])]
    check(keras.Model(values[0], outputs), tmp_path, rng)


class TestProgram:
    """The file, run by Keras, is called as the conversion found."""

    def test_names_and_order(self, keras, rng, tmp_path):
        la = keras.layers
        x, s = keras.Input((None, 3), name="z"), keras.Input((2,), name="a")
        y = la.GRU(4, return_sequences=True)(x, initial_state=la.Dense(4)(s))
        outputs = [la.Dense(1, name="first")(y), la.Dense(2, name="last")(y)]
        for inputs, results in (
            ([x, s], outputs),
            ({"z": x, "a": s}, {"p": outputs[1], "b": outputs[0]}),
        ):
            model = keras.Model(inputs, results)
            randomise(model, rng)
            given = {"z": rng.standard_normal((2, 6, 3)), "a": rng.standard_normal((2, 2))}
            for path in saved(model, tmp_path):
                call = read(path).call
                names = [[a.name for a in side] for side in (call.arguments, call.outputs)]
                program = KerasProgram(path, *names)
                assert program.name.startswith("keras 3")
                assert program.dtype == np.float32
                assert program.size_of("z", 1) is None
                assert program.size_of("a", 1) == 2
                made = read(path)
                program.start()
                y = program.call(None, given)
                graph = of_graph(made, given)
                for argument, expected in zip(made.call.outputs, graph, strict=True):
                    np.testing.assert_allclose(y[argument.name], expected, rtol=0, atol=1e-5)

    def test_what_a_stateful_layer_remembers_is_forgotten(self, keras, rng, tmp_path):
        layers = [keras.Input(batch_shape=(2, 5, 3)), keras.layers.LSTM(4, stateful=True)]
        path = saved(keras.Sequential(layers), tmp_path)[1]
        call = read(path).call
        program = KerasProgram(path, [call.arguments[0].name], [call.outputs[0].name])
        x = {call.arguments[0].name: rng.standard_normal((2, 5, 3))}
        first, second = (program.call(None, x)[call.outputs[0].name] for _ in range(2))
        assert np.abs(first - second).max() > 1e-3
        program.start()
        assert np.array_equal(program.call(None, x)[call.outputs[0].name], first)

    def test_a_file_of_keras_2_with_another_function(self, tmp_path):
        keras_or_skip()
        from keras_files import lstm, make_h5

        layers = [lstm(3, 2, recurrent_activation="hard_sigmoid")]
        path = make_h5(tmp_path / "m.h5", layers, shape=[None, None, 3])
        with pytest.raises(ValueError, match="written by Keras 2, whose hard_sigmoid is another"):
            KerasProgram(path, ["input"], ["lstm"])

    def test_other_names(self, keras, tmp_path):
        path = saved(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), tmp_path)[1]
        with pytest.raises(ValueError, match="has 1 inputs; expected 2: a, b"):
            KerasProgram(path, ["a", "b"], ["y"])
        with pytest.raises(FileNotFoundError):
            KerasProgram(tmp_path / "none.keras", ["a"], ["y"])


def test_a_trained_classifier(keras, rng, tmp_path):
    """Of sleep stages: masked steps at the end, at the beginning and between."""
    path = trained("sleepecg/classifier.keras")
    model = keras.saving.load_model(path, compile=False)
    x = rng.standard_normal((4, 60, 36)).astype(np.float32)
    x[0, 40:] = x[1, :5] = x[2, 10:20] = x[3, ::2] = -1
    (expected,) = of_keras(model, x)
    made = read(path)
    assert_close(of_graph(made, {made.call.arguments[0].name: x})[0], expected, 1e-6)
    given = rows(x, made.call.arguments[0])
    y = reference.forward(made.graph, made.tensors, {"input": given}, dtype=np.float32)
    assert_close(y["output"].swapaxes(0, 1), expected, 1e-5)
    whole = fastlstm.convert(path, tmp_path / "model.safetensors")
    assert_close(whole(x, batch_first=True)[0], expected, 1e-5)
