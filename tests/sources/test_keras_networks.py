"""Keras models that are graphs: several inputs and outputs, states, masks, models within models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras_models import check, keras_or_skip, of_graph, of_keras, randomise, saved

from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources.conversion import Argument
from fastlstm.sources.keras import read

# Of Keras with torch: it hands its tensors to NumPy in an older way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy"),
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),
]


@pytest.fixture(scope="module")
def keras() -> Any:
    return keras_or_skip()


@pytest.fixture
def la(keras) -> Any:
    return keras.layers


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


class TestGraphs:
    @pytest.mark.parametrize(
        "join", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"]
    )
    def test_a_block_joined_with_its_input(self, keras, la, rng, tmp_path, join):
        x = keras.Input((None, 4))
        a = la.LSTM(4, return_sequences=True)(x)
        b = la.GRU(4, return_sequences=True)(a)
        made = check(keras.Model(x, getattr(la, join)()([a, b])), tmp_path, rng)
        assert [one.name for one in made.graph.inputs] == ["input"]
        assert list(made.graph.outputs) == ["output"]

    def test_more_than_two(self, keras, la, rng, tmp_path):
        x = keras.Input((None, 4))
        parts = [la.Dense(3)(x) for _ in range(4)]
        made = [la.Add()(parts), la.Average()(parts), la.Maximum()(parts), la.Concatenate()(parts)]
        check(keras.Model(x, made), tmp_path, rng)

    def test_several_inputs_and_outputs_have_their_names(self, keras, la, rng, tmp_path):
        audio, knobs = keras.Input((None, 3), name="audio"), keras.Input((2,), name="knobs")
        y = la.LSTM(5, name="body")(audio)
        both = la.Concatenate(name="both")([y, knobs])
        model = keras.Model([audio, knobs], [la.Dense(2, name="left")(both), both])
        made = check(model, tmp_path, rng, [draw(rng, 3, 6, 3), draw(rng, 3, 2)])
        assert made.graph.inputs == (
            spec.Input("audio", (3,)),
            spec.Input("knobs", (2,), held=True),
        )
        assert list(made.graph.outputs) == ["left", "both"]
        assert made.call.arguments == (
            Argument("audio", ("batch", "time", 3), "rows", "audio"),
            Argument("knobs", ("batch", 2), "rows", "knobs"),
        )
        assert made.call.outputs[0] == Argument("left", ("batch", 2), "rows", "left")

    def test_inputs_and_outputs_by_name(self, keras, la, rng, tmp_path):
        """Keras sorts the names; the file has them as they were given."""
        x, s = keras.Input((None, 3), name="x"), keras.Input((None, 2), name="s")
        y = la.Concatenate()([la.Dense(2)(x), s])
        model = keras.Model({"x": x, "s": s}, {"z": la.Dense(1)(y), "b": y})
        inputs = {"x": draw(rng, 2, 5, 3), "s": draw(rng, 2, 5, 2)}
        randomise(model, rng)
        expected = model(inputs, training=False)
        for path in saved(model, tmp_path):
            made = read(path)
            got = of_graph(made, inputs)
            for argument, y in zip(made.call.outputs, got, strict=True):
                wanted = keras.ops.convert_to_numpy(expected[argument.name])
                np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
            assert list(made.graph.outputs) == ["z", "b"]

    def test_a_layer_that_is_called_twice_shares_its_tensors(self, keras, la, rng, tmp_path):
        x = keras.Input((None, 4))
        shared, lstm = la.Dense(4, name="shared"), la.LSTM(4, return_sequences=True, name="lstm")
        y = lstm(shared(lstm(shared(x))))
        made = check(keras.Model(x, la.Add()([y, shared(y)])), tmp_path, rng)
        assert [name for name in made.tensors if name.startswith("shared")] == [
            "shared.weight",
            "shared.bias",
        ]
        kinds = [node.layer.kind for node in made.graph.nodes]
        assert kinds.count("linear") == 3
        assert kinds.count("lstm") == 2

    def test_a_held_row_beside_every_step(self, keras, la, rng, tmp_path):
        x, s = keras.Input((5, 3)), keras.Input((4,))
        y = la.Concatenate()([x, la.RepeatVector(5)(s)])
        made = check(keras.Model([x, s], la.LSTM(3)(y)), tmp_path, rng)
        assert [one.held for one in made.graph.inputs] == [False, True]

    @pytest.mark.parametrize("axes", [-1, 1, 2, (1, 2)])
    @pytest.mark.parametrize("normalize", [False, True])
    def test_dot_of_fixed_sequences(self, keras, la, rng, tmp_path, axes, normalize):
        a = keras.Input((4, 4))
        b = la.Dense(4)(a)
        check(keras.Model(a, la.Dot(axes=axes, normalize=normalize)([a, b])), tmp_path, rng)

    def test_dot_of_rows(self, keras, la, rng, tmp_path):
        x = keras.Input((None, 3))
        a, b = la.LSTM(4)(x), la.GRU(4)(x)
        check(keras.Model(x, la.Dot(axes=1, normalize=True)([a, b])), tmp_path, rng)

    def test_two_sequences_of_other_lengths_are_rows(self, keras, la, rng, tmp_path):
        a, b = keras.Input((6, 3)), keras.Input((4, 2))
        y = la.Concatenate()([la.LSTM(3)(a), la.Bidirectional(la.GRU(2))(b)])
        made = check(keras.Model([a, b], la.Dense(2)(y)), tmp_path, rng)
        assert [one.shape for one in made.graph.inputs] == [(6, 3), (4, 2)]

    def test_a_known_sequence_beside_steps_is_held(self, keras, la, rng, tmp_path):
        x, memory = keras.Input((None, 3)), keras.Input((4, 2))
        y = la.LSTM(3, return_sequences=True)(x, initial_state=[la.Dense(3)(la.GRU(3)(memory))] * 2)
        model = keras.Model([x, memory], y)
        made = check(model, tmp_path, rng, [draw(rng, 2, 5, 3), draw(rng, 2, 4, 2)])
        assert [one.held for one in made.graph.inputs] == [False, True]


class TestAttention:
    """Between the positions of sequences whose lengths are known."""

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("scale", [False, True])
    @pytest.mark.parametrize("kind", ["dot", "concat", "additive"])
    def test_of_two_sequences(self, keras, la, rng, tmp_path, kind, scale, causal):
        a, b = keras.Input((5, 4)), keras.Input((6, 4))
        if kind == "additive":
            layer = la.AdditiveAttention(use_scale=scale)
        else:
            layer = la.Attention(use_scale=scale, score_mode=kind)
        more = [la.Dense(3)(b), b]
        y = [layer([la.LSTM(4, return_sequences=True)(a), b], use_causal_mask=causal)]
        if kind == "dot":
            y.append(layer([a, *more], use_causal_mask=causal))
        check(keras.Model([a, b], y), tmp_path, rng)

    @pytest.mark.parametrize("options", [{}, {"value_dim": 5, "use_bias": False}])
    @pytest.mark.parametrize("causal", [False, True])
    def test_of_several_heads(self, keras, la, rng, tmp_path, options, causal):
        x = keras.Input((6, 4))
        y = la.GRU(4, return_sequences=True)(x)
        two = la.MultiHeadAttention(2, 3, **options)
        three = la.MultiHeadAttention(3, 2, **options)
        y = la.LayerNormalization()(la.Add()([y, two(y, y, use_causal_mask=causal)]))
        y = la.Flatten()(three(query=y, value=x, key=la.Dense(4)(x)))
        made = check(keras.Model(x, la.Dense(2)(y)), tmp_path, rng)
        assert made.call.arguments[0].axes == ("batch", 6, 4)

    def test_of_any_number_of_steps_is_refused(self, keras, la, tmp_path):
        x = keras.Input((None, 4))
        for path in saved(keras.Model(x, la.Attention(name="a")([x, x])), tmp_path):
            with pytest.raises(ConvertError, match=r"Attention 'a' weighs all steps of .any, 4."):
                read(path)


class TestModelsWithinModels:
    def test_sequential_and_functional(self, keras, la, rng, tmp_path):
        inner = keras.Sequential(
            [keras.Input((None, 3)), la.Dense(4, name="d"), la.TimeDistributed(la.Dense(3))],
            name="inner",
        )
        x = keras.Input((None, 3))
        two = keras.Model(x, [la.Dense(3, name="d")(x), la.LSTM(3, return_sequences=True)(x)])
        y = keras.Input((None, 3))
        a, b = two(inner(y))
        made = check(keras.Model(y, la.Add()([a, b, inner(a)])), tmp_path, rng)
        assert "inner.d.weight" in made.tensors

    def test_within_each_other(self, keras, la, rng, tmp_path):
        def wrapped(model: Any, n: int) -> Any:
            return keras.Sequential([keras.Input((None, 3)), model, la.Dense(3)], name=f"m{n}")

        model = la.GRU(3, return_sequences=True)
        for n in range(4):
            model = wrapped(model, n)
        check(model, tmp_path, rng)

    def test_at_each_step(self, keras, la, rng, tmp_path):
        frame = keras.Sequential(
            [
                keras.Input((8, 6, 1)),
                la.Conv2D(3, 3, activation="relu"),
                la.BatchNormalization(),
                la.MaxPooling2D(2),
                la.Flatten(),
            ]
        )
        model = keras.Sequential(
            [keras.Input((None, 8, 6, 1)), la.TimeDistributed(frame), la.LSTM(4), la.Dense(2)]
        )
        made = check(model, tmp_path, rng)
        assert made.call.arguments[0].axes == ("batch", "time", 8, 6, 1)


class TestStates:
    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
    @pytest.mark.parametrize("steps", [1, None])
    def test_that_are_inputs_and_outputs_are_the_models_own(
        self, keras, la, rng, tmp_path, cell, steps
    ):
        x = keras.Input((steps, 2), name="x")
        n = 2 if cell == "LSTM" else 1
        states = [keras.Input((4,), name=f"s{i}") for i in range(n)]
        rnn = getattr(la, cell)(4, return_sequences=True, return_state=True, name="rnn")
        y, *ends = rnn(x, initial_state=states)
        model = keras.Model([x, *states], [la.Dense(3, name="y")(y), *ends])
        randomise(model, rng)
        sequence = draw(rng, 2, 6, 2)
        kept = [np.zeros((2, 4), np.float32)] * n
        expected = []
        for t in range(6):
            out, *kept = of_keras(model, [sequence[:, t : t + 1], *kept])
            kept = [state.astype(np.float32) for state in kept]
            expected.append(out)
        for path in saved(model, tmp_path):
            made = read(path)
            assert made.graph.inputs == (spec.Input("input", (2,)),)
            assert list(made.graph.outputs) == ["output"]
            states_said = [(a.name, a.value) for a in made.call.arguments if a.role == "state"]
            assert states_said == [(f"s{i}", f"rnn_{i + 1}") for i in range(n)]
            (got,) = of_graph(made, {"x": sequence})
            np.testing.assert_allclose(got, np.concatenate(expected, 1), rtol=0, atol=1e-5)

    def test_of_a_step_that_is_no_sequence(self, keras, la, rng, tmp_path):
        """The row becomes a sequence of one within a call, which is a step of time."""
        x, h = keras.Input((3,), name="x"), keras.Input((4,), name="h")
        y, end = la.GRU(4, return_state=True)(la.Reshape((1, 3))(x), initial_state=h)
        model = keras.Model([x, h], [la.Dense(2)(y), end])
        randomise(model, rng)
        sequence, kept, expected = draw(rng, 5, 2, 3), np.zeros((2, 4), np.float32), []
        for step in sequence:
            out, kept = of_keras(model, [step, kept])
            kept = kept.astype(np.float32)
            expected.append(out)
        for path in saved(model, tmp_path):
            made = read(path)
            assert made.call.arguments[1].role == "state"
            assert "delay" not in [node.layer.kind for node in made.graph.nodes]
            y = reference.forward(made.graph, made.tensors, {"input": sequence}, dtype=np.float64)
            np.testing.assert_allclose(y["output"], np.stack(expected), rtol=0, atol=1e-5)

    def test_of_cells_that_are_layers(self, keras, la, rng, tmp_path):
        """One step a call: a cell whose states go round is a recurrence over the calls."""
        x, h, c = keras.Input((3,), name="x"), keras.Input((4,)), keras.Input((4,))
        s = keras.Input((5,))
        y, (h1, c1) = la.LSTMCell(4, name="lstm_cell")(x, [h, c])
        z, s1 = la.GRUCell(5, name="gru_cell")(y, s)
        w, _ = la.SimpleRNNCell(4)(z, h1)  # starts from the new state of another one
        model = keras.Model([x, h, c, s], [la.Dense(2)(la.Concatenate()([w, z])), h1, c1, s1])
        randomise(model, rng)
        sequence, expected = draw(rng, 6, 2, 3), []
        kept = [np.zeros((2, size), np.float32) for size in (4, 4, 5)]
        for step in sequence:
            out, *kept = of_keras(model, [step, *kept])
            kept = [state.astype(np.float32) for state in kept]
            expected.append(out)
        for path in saved(model, tmp_path):
            made = read(path)
            assert [a.role for a in made.call.arguments] == ["rows", "state", "state", "state"]
            layers = {node.name: node.layer for node in made.graph.nodes}
            over_time = {name: getattr(layer, "along", "") for name, layer in layers.items()}
            assert over_time["lstm_cell"] == over_time["gru_cell"] == "time"
            y = reference.forward(made.graph, made.tensors, {"input": sequence}, dtype=np.float64)
            np.testing.assert_allclose(y["output"], np.stack(expected), rtol=0, atol=1e-5)

    def test_of_several_steps_in_a_row(self, keras, la, rng, tmp_path):
        """The state goes round through a delay, from call to call."""
        x, h = keras.Input((6,), name="x"), keras.Input((4,), name="h")
        y, end = la.GRU(4, return_state=True)(la.Reshape((2, 3))(x), initial_state=h)
        model = keras.Model([x, h], [la.Dense(2)(y), end])
        randomise(model, rng)
        sequence, kept, expected = draw(rng, 5, 2, 6), np.zeros((2, 4), np.float32), []
        for step in sequence:
            out, kept = of_keras(model, [step, kept])
            kept = kept.astype(np.float32)
            expected.append(out)
        for path in saved(model, tmp_path):
            made = read(path)
            assert "delay" in [node.layer.kind for node in made.graph.nodes]
            y = reference.forward(made.graph, made.tensors, {"input": sequence}, dtype=np.float64)
            np.testing.assert_allclose(y["output"], np.stack(expected), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("cell", ["LSTM", "GRU"])
    def test_given_by_another_layer(self, keras, la, rng, tmp_path, cell):
        x, s = keras.Input((None, 3)), keras.Input((2,))
        n = 2 if cell == "LSTM" else 1
        states = [la.Dense(4, activation="tanh")(s) for _ in range(n)]
        y = getattr(la, cell)(4, return_sequences=True)(x, initial_state=states)
        model = keras.Model([x, s], y)
        check(model, tmp_path, rng, [draw(rng, 3, 6, 3), draw(rng, 3, 2)])

    def test_given_to_both_directions(self, keras, la, rng, tmp_path):
        x, s = keras.Input((None, 3)), keras.Input((2,))
        states = [la.Dense(4)(s) for _ in range(4)]
        layer = la.Bidirectional(la.LSTM(4, return_sequences=True))
        model = keras.Model([x, s], layer(x, initial_state=states))
        check(model, tmp_path, rng, [draw(rng, 3, 6, 3), draw(rng, 3, 2)])

    @pytest.mark.parametrize("sequences", [True, False])
    def test_as_outputs(self, keras, la, rng, tmp_path, sequences):
        x = keras.Input((None, 3))
        options = {"return_sequences": sequences, "return_state": True}
        outputs = [
            *la.LSTM(4, **options)(x),
            *la.GRU(4, **options)(x),
            *la.SimpleRNN(4, go_backwards=True, return_state=True)(x),
            *la.Bidirectional(la.LSTM(4, **options))(x),
            *la.Bidirectional(la.GRU(4, **options), merge_mode="sum")(x),
            *la.RNN([la.LSTMCell(4), la.GRUCell(3)], **options)(x)[:1],
        ]
        check(keras.Model(x, outputs), tmp_path, rng)

    def test_of_an_encoder_where_the_steps_are_known(self, keras, la, rng, tmp_path):
        source, target = keras.Input((5, 3)), keras.Input((7, 2))
        _, h, c = la.LSTM(4, return_state=True)(source)
        y = la.LSTM(4, return_sequences=True)(target, initial_state=[h, c])
        model = keras.Model([source, target], la.Dense(2, activation="softmax")(y))
        made = check(model, tmp_path, rng)
        assert [a.axes for a in made.call.arguments] == [("batch", 5, 3), ("batch", 7, 2)]

    def test_of_an_encoder_are_refused_where_they_are_not(self, keras, la, tmp_path):
        source, target = keras.Input((None, 3)), keras.Input((None, 2))
        h = la.GRU(4, name="encoder")(source)
        y = la.GRU(4, return_sequences=True, name="decoder")(target, initial_state=h)
        for path in saved(keras.Model([source, target], y), tmp_path):
            with pytest.raises(ConvertError, match="GRU 'decoder' starts from what another layer"):
                read(path)

    def test_a_stateful_layer_is_noted(self, keras, la, rng, tmp_path):
        model = keras.Sequential(
            [keras.Input(batch_shape=(2, 5, 3)), la.LSTM(4, stateful=True, name="s")]
        )
        made = check(model, tmp_path, rng)
        assert any(line.startswith("LSTM 's' is stateful: ") for line in made.report)


class TestMasks:
    """Steps that do not count, at the end, at the beginning, between, and all of them."""

    @pytest.fixture
    def x(self, rng) -> np.ndarray:
        x = draw(rng, 5, 8, 3)
        x[0, 5:] = x[1, :2] = x[2, 3] = x[2, 5] = x[3] = -1
        x[4, :, 1] = -1
        return x

    @pytest.mark.parametrize("sequences", [True, False])
    @pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
    def test_bidirectional(self, keras, la, rng, tmp_path, x, cell, merge, sequences):
        if merge is None:
            given = keras.Input((None, 3))
            inner = getattr(la, cell)(4, return_sequences=sequences)
            outputs = la.Bidirectional(inner, merge_mode=None)(la.Masking(-1.0)(given))
            check(keras.Model(given, outputs), tmp_path, rng, x)
            return
        model = keras.Sequential(
            [
                keras.Input((None, 3)),
                la.Masking(-1.0),
                la.BatchNormalization(),
                la.Dense(5, activation="relu"),
                la.Bidirectional(getattr(la, cell)(4, return_sequences=True)),
                la.Bidirectional(
                    getattr(la, cell)(4, return_sequences=sequences), merge_mode=merge
                ),
                la.Dense(2, activation="softmax"),
            ]
        )
        check(model, tmp_path, rng, x)

    @pytest.mark.parametrize("zero", [True, False])
    @pytest.mark.parametrize("sequences", [True, False])
    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
    def test_one_way(self, keras, la, rng, tmp_path, x, cell, sequences, zero):
        options = {"return_sequences": sequences, "zero_output_for_mask": zero}
        model = keras.Sequential(
            [
                keras.Input((None, 3)),
                la.Masking(-1.0),
                getattr(la, cell)(4, return_sequences=True),
                la.Dropout(0.5),
                getattr(la, cell)(4, **options),
            ]
        )
        check(model, tmp_path, rng, x)

    def test_backwards(self, keras, la, rng, tmp_path, x):
        model = keras.Sequential(
            [keras.Input((None, 3)), la.Masking(-1.0), la.GRU(4, go_backwards=True)]
        )
        check(model, tmp_path, rng, x)

    def test_stacked_cells(self, keras, la, rng, tmp_path, x):
        cells = [la.LSTMCell(4), la.GRUCell(3)]
        model = keras.Sequential(
            [keras.Input((None, 3)), la.Masking(-1.0), la.RNN(cells, return_sequences=True)]
        )
        check(model, tmp_path, rng, x)

    def test_states(self, keras, la, rng, tmp_path, x):
        given = keras.Input((None, 3))
        masked = la.Masking(-1.0)(given)
        made = la.LSTM(4, return_state=True)(masked)
        both = la.Bidirectional(la.LSTM(3, return_sequences=True, return_state=True))(masked)
        check(keras.Model(given, [*made, *both]), tmp_path, rng, x)

    def test_a_mean_of_what_counts(self, keras, la, rng, tmp_path, x):
        model = keras.Sequential(
            [
                keras.Input((None, 3)),
                la.Masking(-1.0),
                la.LSTM(4, return_sequences=True),
                la.GlobalAveragePooling1D(),
            ]
        )
        check(model, tmp_path, rng, x[[0, 1, 2, 4]])

    @pytest.mark.parametrize("steps", [None, 6])
    def test_tokens(self, keras, la, rng, tmp_path, steps):
        model = keras.Sequential(
            [
                keras.Input((steps,)),
                la.Embedding(9, 4, mask_zero=True),
                la.LSTM(3, return_sequences=True),
                la.TimeDistributed(la.Dense(3, activation="tanh")),
                la.Bidirectional(la.GRU(2)),
            ]
        )
        made = check(model, tmp_path, rng, rng.integers(0, 3, (6, 6)))
        assert made.graph.inputs == (spec.Input("input", (), 9),)

    def test_tokens_of_a_fixed_sequence(self, keras, la, rng, tmp_path):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                la.Embedding(9, 4, mask_zero=True),
                la.LSTM(3, return_sequences=True),
                la.Bidirectional(la.GRU(2, return_sequences=True)),
                la.Flatten(),
            ]
        )
        made = check(model, tmp_path, rng, rng.integers(0, 3, (6, 6)))
        assert made.graph.inputs == (spec.Input("input", (6,), 9),)

    @pytest.mark.parametrize("join", ["Add", "Average", "Concatenate"])
    @pytest.mark.parametrize("alone", [True, False])
    def test_joins(self, keras, la, rng, tmp_path, x, join, alone):
        """What one of several marks is left, and what is not marked unmarks it."""
        given = keras.Input((None, 3))
        one = la.Masking(-1.0)(given)
        other = given if alone else la.Masking(0.0)(given)
        y = la.GRU(3, return_sequences=True)(getattr(la, join)()([one, other]))
        x[1, 4:6] = 0
        check(keras.Model(given, y), tmp_path, rng, x)

    def test_a_layer_that_knows_no_masks_ends_them(self, keras, la, rng, tmp_path, x):
        model = keras.Sequential(
            [keras.Input((None, 3)), la.Masking(-1.0), la.Conv1D(3, 2), la.LSTM(3)]
        )
        check(model, tmp_path, rng, x)

    @pytest.mark.parametrize("layer", ["Maximum", "Minimum", "Multiply"])
    def test_what_keras_3_changes_from_version_to_version(self, keras, la, tmp_path, layer):
        given = keras.Input((None, 3))
        y = getattr(la, layer)(name="m")([la.Masking(-1.0)(given), given])
        for path in saved(keras.Model(given, y), tmp_path):
            with pytest.raises(ConvertError, match=f"{layer} 'm' leaves out what a Masking"):
                read(path)

    def test_a_recurrence_within_steps_that_are_marked(self, keras, la, tmp_path):
        given = keras.Input((None, 3, 2))
        marked = la.Masking(-1.0)(la.Dense(2)(given))
        inner = la.TimeDistributed(la.GlobalAveragePooling1D(), name="t")
        for path in saved(keras.Model(given, inner(marked)), tmp_path):
            with pytest.raises(ConvertError, match="TimeDistributed 't' is around Global"):
                read(path)


class TestWhatIsLeftOutOnTheUsersWord:
    def test_a_custom_head(self, keras, la, rng, tmp_path):
        @keras.saving.register_keras_serializable("mine", name=f"Head{rng.integers(10**9)}")
        class Head(la.Layer):
            def build(self, shape: Any) -> None:
                self.w = self.add_weight(shape=(3, 3), name="transitions")

            def call(self, x: Any) -> Any:
                return x @ self.w

        body = [keras.Input((None, 3)), la.LSTM(3, return_sequences=True), la.Dense(3)]
        whole = keras.Sequential([*body, Head(name="crf")])
        randomise(whole, rng)
        x = draw(rng, 2, 6, 3)
        (expected,) = of_keras(keras.Sequential(whole.layers[:-1]), x)
        for path in saved(whole, tmp_path):
            with pytest.raises(ConvertError, match="expected a class of Keras itself"):
                read(path)
            made = read(path, ignore="crf")
            (got,) = of_graph(made, {made.call.arguments[0].name: x})
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
            assert made.report[-1].startswith("not verified: ")
            assert "'crf' was left out on your word (ignore='crf')" in made.report[-1]

    def test_a_pattern_that_names_nothing(self, keras, la, tmp_path):
        for path in saved(keras.Sequential([keras.Input((None, 3)), la.Dense(2)]), tmp_path):
            with pytest.raises(ConvertError, match="ignore= has 'crf', which is the name of no"):
                read(path, ignore=["crf"])

    def test_no_refusal_names_it(self, keras, la, tmp_path):
        """What computes something is not left out on advice."""
        model = keras.Sequential([keras.Input((4, 3)), la.Lambda(lambda x: x * 2, name="twice")])
        for path in saved(model, tmp_path):
            with pytest.raises(ConvertError) as error:
                read(path)
            assert "Lambda 'twice' holds code" in str(error.value)
            assert "ignore" not in str(error.value)
