"""Every kind of layer of Keras, in several shapes: what it computes is what the graph computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from keras_files import layer, make_h5
from keras_models import check, keras_or_skip

import fastlstm
from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras import read
from fastlstm.sources.keras.cudnn import of_cudnn

# Of Keras with torch: it hands its tensors to NumPy in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")


@pytest.fixture(scope="module")
def keras() -> Any:
    return keras_or_skip()


Same = Callable[..., Any]


@pytest.fixture
def same(keras, rng, tmp_path) -> Same:
    """Checks a Sequential model of an input of this shape and these layers, in both files."""

    def run(shape: tuple[int | None, ...], *layers: Any, x: Any = None, **options: Any) -> Any:
        model = keras.Sequential([keras.Input(shape), *layers])
        return check(model, tmp_path, rng, x, **options)

    return run


def kinds(made: Any) -> list[str]:
    return [node.layer.kind for node in made.graph.nodes]


SHAPES = [(None, 3), (5, 3), (None, 4, 3), (4, 5, 3), (6,)]


class TestRows:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_dense_and_what_stands_for_each_number(self, same, keras, shape):
        la = keras.layers
        same(shape, la.Dense(4, activation="tanh"), la.Dense(2, use_bias=False), la.Rescaling(3.0))

    @pytest.mark.parametrize(
        "name",
        [
            *("linear", "relu", "tanh", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu"),
            *("silu", "gelu", "leaky_relu", "relu6", "hard_tanh", "celu", "selu", "softmax"),
            *("log_softmax", "exponential", "log_sigmoid", "mish", "tanh_shrink", "hard_silu"),
        ],
    )
    def test_activations(self, same, keras, name):
        la = keras.layers
        same((None, 3), la.Dense(4, activation=name), la.Dense(3), la.Activation(name))

    @pytest.mark.parametrize("max_value", [None, 0.4])
    @pytest.mark.parametrize("slope", [0.0, 0.2])
    @pytest.mark.parametrize("threshold", [0.0, 0.1, 0.25])
    def test_relu_of_all_its_options(self, same, keras, max_value, slope, threshold):
        options = {"max_value": max_value, "negative_slope": slope, "threshold": threshold}
        same((None, 3), keras.layers.ReLU(**options), keras.layers.Dense(2))

    @pytest.mark.parametrize(
        ("shape", "axis"),
        [((None, 3), -1), ((None, 4, 3), -2), ((None, 4, 3), 2), ((5, 3), 1), ((4, 5, 3), 2)],
    )
    def test_softmax(self, same, keras, shape, axis):
        same(shape, keras.layers.Softmax(axis=axis))

    @pytest.mark.parametrize("center", [True, False])
    @pytest.mark.parametrize("scale", [True, False])
    @pytest.mark.parametrize("shape", [(None, 4), (None, 3, 4), (5, 4), (6, 5, 4)])
    def test_norms(self, same, keras, shape, scale, center):
        la, options = keras.layers, {"scale": scale, "center": center, "epsilon": 1e-2}
        inner = la.GroupNormalization(groups=2, **options)
        same(
            shape,
            la.BatchNormalization(**options),
            la.LayerNormalization(**options),
            la.UnitNormalization(),
            la.TimeDistributed(inner) if shape[0] is None else inner,
        )

    @pytest.mark.parametrize(
        ("shape", "axis"), [((5, 4), 1), ((None, 3, 4), 2), ((6, 5, 4), 1), ((6, 5, 4), 3)]
    )
    def test_batch_norm_over_another_axis(self, same, keras, shape, axis):
        same(shape, keras.layers.BatchNormalization(axis=axis), keras.layers.Dense(2))

    def test_layer_norm_over_several_axes(self, same, keras):
        la = keras.layers
        same((None, 3, 4), la.LayerNormalization(axis=[2, 3]))
        same((3, 4), la.LayerNormalization(axis=[1, 2], center=False))

    def test_rms_norm(self, same, keras):
        if not hasattr(keras.layers, "RMSNormalization"):
            pytest.skip("this version of Keras has no RMSNormalization")
        same((None, 4), keras.layers.RMSNormalization(epsilon=1e-3))

    @pytest.mark.parametrize("axis", [-1, (1, 2), (2,)])
    def test_unit_normalization(self, same, keras, axis):
        same((5, 4), keras.layers.UnitNormalization(axis=axis))

    @pytest.mark.parametrize("shape", [(None, 3), (5, 3), (None, 4, 3)])
    def test_prelu(self, same, keras, shape):
        la = keras.layers
        shared = [1] if shape[0] is None else None
        same(shape, la.PReLU(shared_axes=shared), la.Dense(3), la.PReLU(shared_axes=[1]))

    @pytest.mark.parametrize("steps", [None, 6])
    def test_embedding(self, same, keras, rng, steps):
        x = rng.integers(0, 9, (2, 6))
        made = same((steps,), keras.layers.Embedding(9, 4), keras.layers.LSTM(3), x=x)
        assert made.graph.inputs == (spec.Input("input", (), 9),)

    def test_embedding_of_rows_of_tokens(self, same, keras, rng):
        la = keras.layers
        made = same(
            (1,), la.Embedding(9, 4), la.Flatten(), la.Dense(2), x=rng.integers(0, 9, (5, 1))
        )
        assert made.graph.inputs == (spec.Input("input", (1,), 9),)


class TestMovement:
    def test_a_whole_sequence_in_one_row(self, same, keras):
        la = keras.layers
        made = same((6, 3), la.LSTM(4, return_sequences=True), la.Flatten(), la.Dense(2))
        assert made.call.arguments[0].axes == ("batch", 6, 3)
        assert [one.shape for one in made.graph.inputs] == [(6, 3)]

    def test_an_autoencoder(self, same, keras):
        la = keras.layers
        same(
            (6, 3),
            la.LSTM(4),
            la.RepeatVector(6),
            la.LSTM(4, return_sequences=True),
            la.TimeDistributed(la.Dense(3)),
        )

    def test_a_sequence_of_one_row(self, same, keras):
        la = keras.layers
        made = same(
            (12,),
            la.Reshape((4, 3)),
            la.Bidirectional(la.LSTM(3, return_sequences=True)),
            la.Permute((2, 1)),
            la.Flatten(),
            la.Dense(2),
        )
        assert made.call.arguments[0].axes == ("batch", 12)

    @pytest.mark.parametrize(
        ("shape", "target"),
        [
            *[((None, 6), target) for target in ((-1, 6), (-1, 2, 3), (-1, 3), (-1, 12))],
            *[((8, 6), target) for target in ((8, 2, 3), (4, 12), (16, 3), (2, 4, 6), (48,))],
            *[((6,), target) for target in ((2, 3), (-1,), (3, -1), (1, 6))],
        ],
    )
    def test_reshape(self, same, keras, rng, shape, target):
        x = rng.standard_normal((2, *(n or 8 for n in shape))).astype(np.float32)
        same(shape, keras.layers.Reshape(target), keras.layers.Activation("tanh"), x=x)

    @pytest.mark.parametrize(
        ("shape", "dims"), [((None, 3, 4), (1, 3, 2)), ((5, 3), (2, 1)), ((2, 3, 4), (3, 1, 2))]
    )
    def test_permute(self, same, keras, shape, dims):
        same(shape, keras.layers.Permute(dims), keras.layers.Dense(2))

    @pytest.mark.parametrize("steps", [None, 7])
    @pytest.mark.parametrize("padding", [(2, 0), (0, 2), (3, 1), 1])
    def test_zero_padding(self, same, keras, steps, padding):
        la = keras.layers
        same(
            (steps, 3),
            la.ZeroPadding1D(padding),
            la.Conv1D(4, 4),
            la.ZeroPadding1D(padding),
            la.LSTM(3, return_sequences=True),
        )

    @pytest.mark.parametrize("steps", [None, 7])
    def test_cropping_and_repetition(self, same, keras, steps):
        la = keras.layers
        same((steps, 3), la.Cropping1D((2, 1)), la.UpSampling1D(3), la.Cropping1D((0, 2)))

    @pytest.mark.parametrize("steps", [None, 7])
    def test_of_two_axes(self, same, keras, steps):
        la = keras.layers
        same(
            (steps, 5, 2),
            la.ZeroPadding2D(((0, 0), (1, 2))),
            la.UpSampling2D((2, 3)),
            la.Cropping2D(((1, 2), (3, 0))),
            la.Conv2D(2, 2),
        )


PADDED = [(k, s, d) for k in (1, 2, 3, 5) for s, d in ((1, 1), (2, 1), (3, 1), (1, 2))]


class TestSliding:
    @pytest.mark.parametrize("steps", [None, 9])
    @pytest.mark.parametrize("padding", ["valid", "same", "causal"])
    @pytest.mark.parametrize(("kernel", "stride", "dilation"), PADDED)
    def test_conv1d(self, same, keras, rng, steps, padding, kernel, stride, dilation):
        if steps is None and padding == "same" and stride > 1:
            pytest.skip("depends on the number of steps")
        options = {"strides": stride, "dilation_rate": dilation, "padding": padding}
        x = rng.standard_normal((2, 9, 4)).astype(np.float32)
        groups = 2 if kernel == 2 else 1
        same((steps, 4), keras.layers.Conv1D(6, kernel, groups=groups, **options), x=x)

    def test_same_with_strides_and_a_known_length(self, same, keras):
        la, options = keras.layers, {"strides": 12, "padding": "same"}
        made = same((180, 1), la.Conv1D(4, 12, **options), la.Conv1D(4, 12, **options), la.LSTM(5))
        paddings = [
            node.layer.padding for node in made.graph.nodes if node.layer.kind == "convolution"
        ]
        assert paddings == [(), ((4, 5),)]
        assert any("for sequences of 15 steps" in line for line in made.report)

    def test_same_with_strides_and_any_length(self, keras, tmp_path):
        la = keras.layers
        model = keras.Sequential(
            [keras.Input((None, 3)), la.Conv1D(2, 3, strides=2, padding="same", name="c")]
        )
        model.save(tmp_path / "m.keras")
        with pytest.raises(ConvertError, match="Conv1D 'c': padding is 'same' with strides=2"):
            read(tmp_path / "m.keras")

    @pytest.mark.parametrize("steps", [None, 8])
    @pytest.mark.parametrize("padding", ["valid", "same"])
    def test_depthwise_and_separable(self, same, keras, steps, padding):
        la = keras.layers
        same(
            (steps, 3),
            la.DepthwiseConv1D(3, depth_multiplier=2, padding=padding, activation="relu"),
            la.SeparableConv1D(5, 2, depth_multiplier=2, padding=padding, activation="tanh"),
            la.DepthwiseConv1D(2, use_bias=False),
        )

    @pytest.mark.parametrize("steps", [None, 5])
    @pytest.mark.parametrize("padding", ["valid", "same"])
    @pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (4, 2), (2, 3), (5, 3)])
    def test_transposed(self, same, keras, steps, padding, kernel, stride):
        options = {"strides": stride, "padding": padding}
        same((steps, 3), keras.layers.Conv1DTranspose(4, kernel, activation="tanh", **options))

    @pytest.mark.parametrize("function", ["Max", "Average"])
    @pytest.mark.parametrize("padding", ["valid", "same"])
    @pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 2), (3, 1), (2, 3)])
    def test_pooling_of_a_known_length(self, same, keras, function, padding, size, stride):
        kind = getattr(keras.layers, f"{function}Pooling1D")
        same((9, 3), kind(size, strides=stride, padding=padding), keras.layers.Dense(2))

    @pytest.mark.parametrize("function", ["Max", "Average"])
    @pytest.mark.parametrize(
        ("size", "stride", "padding"),
        [(2, None, "valid"), (3, 1, "same"), (3, 2, "valid"), (2, 1, "same")],
    )
    def test_pooling(self, same, keras, function, size, stride, padding):
        kind = getattr(keras.layers, f"{function}Pooling1D")
        same((None, 3), kind(size, strides=stride, padding=padding), keras.layers.LSTM(2))

    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("shape", [(None, 3), (7, 3), (None, 4, 3), (7, 4, 3)])
    @pytest.mark.parametrize("function", ["Max", "Average"])
    def test_global_pooling(self, same, keras, shape, function, keep):
        kind = getattr(keras.layers, f"Global{function}Pooling{len(shape) - 1}D")
        same(shape, keras.layers.Dense(4), kind(keepdims=keep))

    def test_frames_at_each_step(self, same, keras):
        la = keras.layers
        made = same(
            (None, 8, 6, 2),
            la.TimeDistributed(la.Conv2D(3, (3, 2), padding="same", strides=2)),
            la.TimeDistributed(la.BatchNormalization()),
            la.TimeDistributed(la.DepthwiseConv2D(2, padding="same")),
            la.TimeDistributed(la.MaxPooling2D(2)),
            la.TimeDistributed(la.Flatten()),
            la.LSTM(3),
        )
        assert [one.shape for one in made.graph.inputs] == [(8, 6, 2)]

    def test_over_time_and_frequency(self, same, keras):
        la = keras.layers
        same(
            (None, 8, 2),
            la.Conv2D(3, (3, 2), padding="same", activation="relu"),
            la.AveragePooling2D((1, 2)),
            la.Conv2D(4, (2, 3), strides=(1, 2)),
            la.Reshape((-1, 4)),
            la.GRU(3),
        )

    def test_an_image(self, same, keras):
        la = keras.layers
        same(
            (9, 8, 2),
            la.Conv2D(4, 3, activation="relu"),
            la.SeparableConv2D(5, 2, padding="same"),
            la.Conv2DTranspose(3, 3, strides=2, padding="same"),
            la.MaxPooling2D(),
            la.Flatten(),
            la.Dense(2),
        )

    def test_positions_of_a_fixed_sequence(self, same, keras):
        """A layer for each of several steps, which lie in one row."""
        la = keras.layers
        same(
            (4, 6, 5, 1),
            la.TimeDistributed(la.Conv2D(3, 2)),
            la.TimeDistributed(la.Flatten()),
            la.Flatten(),
            la.Dense(2),
        )


class TestRecurrent:
    @pytest.mark.parametrize("shape", [(None, 3), (5, 3)])
    @pytest.mark.parametrize("sequences", [True, False])
    def test_cells(self, same, keras, shape, sequences):
        la, options = keras.layers, {"return_sequences": sequences}
        cells = [la.LSTMCell(4), la.GRUCell(3, reset_after=False), la.SimpleRNNCell(5)]
        same(
            shape,
            la.RNN(la.LSTMCell(4, recurrent_activation="hard_sigmoid"), return_sequences=True),
            la.RNN(cells, return_sequences=True),
            la.Bidirectional(la.RNN([la.LSTMCell(4), la.GRUCell(3)], return_sequences=True)),
            la.Bidirectional(la.RNN([la.GRUCell(4), la.GRUCell(3)], **options)),
        )

    @pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
    @pytest.mark.parametrize("sequences", [True, False])
    def test_directions_that_differ(self, same, keras, merge, sequences):
        la, options = keras.layers, {"return_sequences": sequences}
        back = la.GRU(4, go_backwards=True, **options)
        layer = la.Bidirectional(la.LSTM(4, **options), backward_layer=back, merge_mode=merge)
        same((None, 3), layer)

    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
    def test_backwards(self, same, keras, cell):
        """Once the last step first, twice in order again."""
        la, kind = keras.layers, getattr(keras.layers, cell)
        back = {"go_backwards": True}
        same((None, 3), kind(4, **back))
        same((6, 3), kind(4, return_sequences=True, **back), la.Dense(2))
        same(
            (None, 3),
            kind(4, return_sequences=True, **back),
            la.Dense(3, activation="tanh"),
            kind(2, return_sequences=True, **back),
            kind(2),
        )
        same((None, 3), kind(4, return_sequences=True, **back), kind(3), la.Dense(2))
        same((None, 3), kind(4, return_sequences=True, **back), la.GlobalMaxPooling1D())

    def test_the_last_step_first_is_no_output(self, keras, tmp_path):
        options = {"go_backwards": True, "return_sequences": True}
        layers = [keras.Input((None, 3)), keras.layers.LSTM(4, **options)]
        keras.Sequential(layers).save(tmp_path / "m.keras")
        with pytest.raises(ConvertError, match="has the last step first, as go_backwards=True"):
            read(tmp_path / "m.keras")

    def test_within_each_step(self, same, keras):
        la = keras.layers
        same(
            (None, 4, 3),
            la.TimeDistributed(la.Bidirectional(la.GRU(3, return_sequences=True))),
            la.TimeDistributed(la.LSTM(4)),
            la.LSTM(2),
        )


class TestOperations:
    """Arithmetic of ``keras.ops`` and of Python between the layers of a functional model."""

    def test_of_steps(self, keras, rng, tmp_path):
        la, ops = keras.layers, keras.ops
        x = keras.Input((None, 4))
        y = la.LSTM(4, return_sequences=True)(x)
        outputs = [
            *(x + y, 2.0 * y, 1.0 - y, y / 3, ops.abs(y) ** 2, -y, ops.maximum(y, 0.1)),
            *(ops.mean(y, axis=-1, keepdims=True), ops.sum(y, axis=1), ops.max(y, axis=(1,))),
            *(y[:, -1], y[:, 0], y[:, -2], y[:, 1:-2], y[:, :, 1:3], y[..., ::2]),
            *(y[:, ::2], ops.concatenate([x, y], axis=-1), ops.stack([x, y], axis=2)),
            *(ops.expand_dims(y, -1), ops.squeeze(ops.expand_dims(y, 2), 2)),
            *(ops.tanh(y), ops.relu(y), ops.sigmoid(y), ops.silu(y), ops.exp(y)),
            *(ops.softmax(y, axis=-1), ops.where(y > 0, x, y), ops.clip(y, -0.1, 0.2)),
            *(ops.split(y, 2, axis=-1)[1], ops.flip(ops.flip(y, axis=1), axis=1)),
            *(ops.flip(y, axis=2), ops.leaky_relu(y, 0.3), ops.square(y), ops.cast(y, "float32")),
            ops.cast(ops.logical_or(y > 0, ops.logical_not(x > 0)), "float32"),
            ops.mean(y, axis=(1, 2), keepdims=True),
        ]
        check(keras.Model(x, outputs[:64]), tmp_path, rng)

    def test_of_whole_sequences(self, keras, rng, tmp_path):
        la, ops = keras.layers, keras.ops
        x = keras.Input((5, 4))
        y = la.GRU(4, return_sequences=True)(x)
        scores = ops.softmax(ops.matmul(y, ops.transpose(y, (0, 2, 1))), axis=-1)
        outputs = [
            ops.matmul(scores, y),
            ops.reshape(y, (-1, 20)),
            *(y[:, -3:], y[:, 1:3, :], y[:, -4:4]),
            ops.flip(y, axis=1),
            ops.softmax(y, axis=1),
        ]
        check(keras.Model(x, outputs), tmp_path, rng)

    def test_some_steps_of_a_known_number(self, keras, rng, tmp_path):
        x = keras.Input((7, 4))
        y = keras.layers.GRU(4, return_sequences=True)(x)
        outputs = [keras.layers.LSTM(2)(part) for part in (y[:, 1:3], y[:, -3:], y[:, 1:6:2])]
        made = check(keras.Model(x, outputs), tmp_path, rng)
        assert made.call.arguments[0].axes == ("batch", "time", 4)

    def test_what_is_not_supported_is_named(self, keras, tmp_path):
        x = keras.Input((None, 4))
        y = keras.layers.Dense(4)(keras.ops.cumsum(x, axis=1))
        keras.Model(x, y).save(tmp_path / "m.keras")
        with pytest.raises(ConvertError, match=r"Cumsum 'cumsum', an operation of keras\.ops, is"):
            read(tmp_path / "m.keras")


class TestCuDNN:
    """CuDNNLSTM and CuDNNGRU, of which there are files and no layers any more."""

    @pytest.mark.parametrize("name", ["LSTM", "GRU"])
    @pytest.mark.parametrize("named", [True, False])
    def test_a_layer(self, rng, tmp_path, name, named):
        """By a class of its own; or its weights under the class of the other."""
        gates, size, units = (4 if name == "LSTM" else 3), 3, 5
        x = rng.standard_normal((7, 2, size))
        config: dict[str, Any] = {"units": units, "return_sequences": True}
        if not named:
            more = {"use_bias": True, "activation": "tanh", "recurrent_activation": "sigmoid"}
            config |= more | ({"reset_after": True} if name == "GRU" else {})
        shapes: dict[str, tuple[int, ...]] = {
            "kernel": (size, gates * units),
            "recurrent_kernel": (units, gates * units),
            "bias": (2 * gates * units,),
        }
        entry = layer(f"CuDNN{name}" if named else name, config | {"name": "rnn"}, shapes)
        arrays: dict[str, np.ndarray] = {}
        path = make_h5(tmp_path / "m.h5", [entry], shape=[None, None, size], arrays=arrays)
        made = read(path)
        w = {key.removeprefix("rnn/"): array for key, array in arrays.items()}
        expected = self.equations(name, w, x.astype(np.float64), gates, units)
        got = reference.forward(made.graph, made.tensors, {"input": x}, dtype=np.float64)
        np.testing.assert_allclose(got["output"], expected, rtol=0, atol=1e-6)
        said = "taken apart" if name == "GRU" else "added"
        assert any("as CuDNN has them" in line and said in line for line in made.report)

    def equations(
        self, name: str, w: dict[str, np.ndarray], x: np.ndarray, gates: int, units: int
    ) -> np.ndarray:
        """Those of CuDNN: W_i x + b_Wi + R_i h + b_Ri, each matrix as it lies in memory."""
        size = x.shape[2]
        flat = w["kernel"].reshape(size, gates, units).swapaxes(0, 1)  # gate by gate
        W = [np.ascontiguousarray(part).ravel(order="C").reshape(units, size) for part in flat]
        R = [part.copy() for part in np.split(w["recurrent_kernel"], gates, axis=1)]
        b_w, b_r = (np.split(part, gates) for part in np.split(w["bias"].astype(np.float64), 2))

        def sigmoid(z: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-z))

        h = c = np.zeros((x.shape[1], units))
        y = []
        for row in x:
            a = [row @ W[g].T + b_w[g] for g in range(gates)]
            r = [h @ R[g].T + b_r[g] for g in range(gates)]
            if name == "LSTM":  # i f c o
                z = [left + right for left, right in zip(a, r, strict=True)]
                c = sigmoid(z[1]) * c + sigmoid(z[0]) * np.tanh(z[2])
                h = sigmoid(z[3]) * np.tanh(c)
            else:  # z r h
                update, reset = sigmoid(a[0] + r[0]), sigmoid(a[1] + r[1])
                h = update * h + (1 - update) * np.tanh(a[2] + reset * r[2])
            y.append(h)
        return np.stack(y)

    def test_halves_that_are_added(self, rng):
        w = {"kernel": (3, 8), "recurrent_kernel": (2, 8), "bias": (16,)}
        arrays = {name: rng.standard_normal(shape) for name, shape in w.items()}
        made = of_cudnn(arrays, 4, False)
        assert np.array_equal(made["bias"], arrays["bias"][:8] + arrays["bias"][8:])
        assert np.array_equal(made["recurrent_kernel"][:, :2], arrays["recurrent_kernel"][:, :2].T)


class TestWithTheEngine:
    """The engine runs what is read, whole and step by step."""

    @pytest.mark.parametrize("suffix", ["h5", "keras"])
    def test_a_masked_model_streams(self, keras, rng, tmp_path, suffix):
        la = keras.layers
        model = keras.Sequential(
            [
                keras.Input((None, 3)),
                la.Masking(-1.0),
                la.Dense(4, activation="relu"),
                la.LSTM(5, return_sequences=True),
                la.GRU(4, return_sequences=True),
                la.Dense(2, activation="softmax"),
            ]
        )
        path = tmp_path / f"m.{suffix}"
        model.save(path)
        x = rng.standard_normal((3, 12, 3)).astype(np.float32)
        x[0, 3:6] = x[1, :2] = -1
        expected = keras.ops.convert_to_numpy(model(x, training=False))
        made = fastlstm.convert(path, tmp_path / "model.safetensors")
        np.testing.assert_allclose(made(x, batch_first=True)[0], expected, rtol=0, atol=1e-5)
        stream = made.stream(batch_size=3)
        steps = np.stack([stream.step(step) for step in x.swapaxes(0, 1)], axis=1)
        np.testing.assert_allclose(steps, expected, rtol=0, atol=1e-5)

    def test_several_outputs(self, keras, rng, tmp_path):
        la = keras.layers
        x, s = keras.Input((None, 3), name="x"), keras.Input((2,), name="s")
        y = la.GRU(4, return_sequences=True)(x, initial_state=la.Dense(4)(s))
        model = keras.Model([x, s], [la.Dense(1, name="a")(y), la.Dense(2, name="b")(y)])
        model.save(tmp_path / "m.keras")
        given = {"x": rng.standard_normal((2, 6, 3)), "s": rng.standard_normal((2, 2))}
        given = {name: array.astype(np.float32) for name, array in given.items()}
        expected = model(list(given.values()), training=False)
        made = fastlstm.convert(tmp_path / "m.keras", tmp_path / "model.safetensors")
        got, _ = made({"x": given["x"].swapaxes(0, 1), "s": given["s"]})
        for name, y in zip("ab", expected, strict=True):
            y = keras.ops.convert_to_numpy(y).swapaxes(0, 1)
            np.testing.assert_allclose(got[name], y, rtol=0, atol=1e-5)
