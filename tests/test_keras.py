"""The reader of Keras files: what Keras computes is what the layers compute; the rest is refused.

Three kinds of files: those that Keras 2.15 and 3 wrote with what they computed
(``tests/data/keras``, made by ``tools/make_keras_golden.py``), those that the installed Keras
writes here, and those put together by hand with h5py. Hostile files are in test_keras_files.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_files import Layer, bidirectional, config_of, gru, layer, lstm, make_h5, make_keras
from models import ChainFile

import fastlstm
from fastlstm import Model
from fastlstm import chain as spec
from fastlstm.chain import reference
from fastlstm.errors import ConvertError
from fastlstm.sources.keras import KerasModel, is_keras, read

pytest.importorskip("h5py", reason="Keras files are HDF5")

# Of Keras with torch: it hands its tensors to NumPy in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

GOLDEN = Path(__file__).parent / "data" / "keras"
FILES = sorted(path.name for path in GOLDEN.iterdir() if path.suffix != ".npz")


def forward(made: KerasModel, x: np.ndarray) -> np.ndarray:
    """What the layers make of x, batch first as in Keras, in float64."""
    if x.ndim == 2 and x.dtype.kind == "f":  # without time: as one step
        return reference.forward(made.layers, made.tensors, x[None])[0][0]
    y, _ = reference.forward(made.layers, made.tensors, x.swapaxes(0, 1))
    return y[0] if any(la.pools for la in made.layers) else y.swapaxes(0, 1)


def kinds(made: KerasModel) -> list[str]:
    return [la.kind for la in made.layers]


def functions(made: KerasModel) -> list[str]:
    return [la.function for la in made.layers if isinstance(la, spec.Activation)]


class TestGolden:
    @pytest.fixture(params=FILES)
    def case(self, request) -> tuple[Path, np.ndarray, np.ndarray]:
        case, _, rest = request.param.rpartition("_")
        with np.load(GOLDEN / f"golden_{rest[0]}.npz") as recorded:
            return GOLDEN / request.param, recorded[f"{case}.x"], recorded[f"{case}.y"]

    def test_the_layers_compute_what_keras_does(self, case):
        path, x, y = case
        assert is_keras(path)
        np.testing.assert_allclose(forward(read(path), x), y, rtol=0, atol=1e-6)

    def test_a_model_does(self, case):
        path, x, y = case
        made = read(path)
        model = Model(ChainFile(made.layers, made.tensors))
        np.testing.assert_allclose(model(x, batch_first=True)[0], y, rtol=0, atol=1e-5)

    def test_a_converted_file_does(self, case, tmp_path):
        path, x, y = case
        model = fastlstm.convert(path, tmp_path / "model.safetensors")
        np.testing.assert_allclose(model(x, batch_first=True)[0], y, rtol=0, atol=1e-5)

    def test_both_versions_make_the_same_layers(self):
        assert len(FILES) == 8
        for name in FILES[::2]:
            two, three = (read(GOLDEN / name.replace("_2.", f"_{v}.")) for v in (2, 3))
            shapes = [{n: a.shape for n, a in made.tensors.items()} for made in (two, three)]
            assert list(shapes[0].values()) == list(shapes[1].values()), name
            assert kinds(two) == kinds(three)

    def test_hard_sigmoid_is_that_of_the_version_that_wrote_the_file(self):
        for version, slope in ((2, 0.2), (3, 1 / 6)):
            layers = read(GOLDEN / f"tokens_{version}.h5").layers
            assert layers[1].activations == (f"hard_sigmoid({slope!r}, 0.5)", "tanh", "tanh")

    def test_the_report_names_every_layer_of_keras(self):
        report = "\n".join(read(GOLDEN / "tokens_3.h5").report)
        for text in (
            "layer 'embedding': embedding(num_embeddings=7, embedding_dim=3), from Embedding",
            "layer 'bidirectional.merge': combine_halves(function=sum, channels=4), from Bidirect",
            "Dropout 'dropout' has no effect at inference and was left out",
            "layer 'time_distributed.activation': activation(function=softmax, size=7), from Time",
        ):
            assert text in report, report


# --- with Keras


@pytest.fixture(scope="module")
def keras() -> Any:
    if "KERAS_BACKEND" not in os.environ:
        pytest.importorskip("torch", reason="what Keras computes with here")
        os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras", reason="writes the files")


Same = Callable[..., KerasModel]


@pytest.fixture
def same(keras, rng, tmp_path) -> Same:
    """Checks that both files of a model compute what it does; returns the layers of the second."""

    def check(model: Any, x: np.ndarray | None = None, tolerance: float = 1e-5) -> KerasModel:
        if isinstance(model, list):
            model = keras.Sequential(model)
        for la in model.layers:
            if la.__class__.__name__ != "Normalization":
                randomise(la, rng)
        if x is None:
            shape = [n or 7 for n in (model.input_shape[0] or 2, *model.input_shape[1:])]
            x = rng.standard_normal(shape).astype(np.float32)
        expected = keras.ops.convert_to_numpy(model(x, training=False)).astype(np.float64)
        for name in ("model.h5", "model.keras"):
            with contextlib.redirect_stderr(io.StringIO()):  # it warns of .h5 files
                model.save(tmp_path / name)
            made = read(tmp_path / name)
            y = forward(made, x)
            assert y.shape == expected.shape
            np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance, err_msg=name)
        return made

    return check


def randomise(la: Any, rng: np.random.Generator) -> None:
    for weight in la.weights:
        values = rng.standard_normal(weight.shape) * 0.4
        weight.assign(np.abs(values) + 0.1 if "variance" in weight.path else values)


ELEMENTWISE = (
    *("linear", "relu", "tanh", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "silu"),
    *("swish", "gelu", "leaky_relu", "relu6", "hard_tanh", "celu"),
)


class TestRecurrent:
    @pytest.mark.parametrize("function", ELEMENTWISE)
    def test_activations_of_cells(self, same, keras, function):
        la = keras.layers
        made = same(
            [
                keras.Input((None, 3)),
                la.LSTM(4, return_sequences=True, activation=function),
                la.LSTM(3, return_sequences=True, recurrent_activation=function),
                la.GRU(3, return_sequences=True, activation=function),
                la.GRU(2, return_sequences=True, recurrent_activation=function),
                la.SimpleRNN(2, return_sequences=True, activation=function),
            ]
        )
        assert kinds(made) == ["lstm", "lstm", "gru", "gru", "rnn"]

    @pytest.mark.parametrize("use_bias", [True, False])
    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
    def test_bias_and_last_output(self, same, keras, cell, use_bias):
        kind = getattr(keras.layers, cell)
        made = same([keras.Input((None, 5)), kind(3, use_bias=use_bias, name="a")])
        assert kinds(made)[1:] == ["pool"]
        assert made.layers[0].bias is use_bias
        assert made.layers[0].name == "a"
        assert made.layers[1] == spec.Pool("a.last", "last", 3)

    @pytest.mark.parametrize("use_bias", [True, False])
    @pytest.mark.parametrize("reset_after", [True, False])
    def test_gru(self, same, keras, reset_after, use_bias):
        options = {"reset_after": reset_after, "use_bias": use_bias}
        made = same([keras.Input((None, 5)), keras.layers.GRU(3, **options)])
        assert made.layers[0].reset_after is reset_after

    @pytest.mark.parametrize("sequences", [True, False])
    @pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
    def test_bidirectional(self, same, keras, cell, merge, sequences):
        inner = getattr(keras.layers, cell)(3, return_sequences=sequences)
        made = same([keras.Input((None, 4)), keras.layers.Bidirectional(inner, merge_mode=merge)])
        combined = ["combine_halves"] * (merge != "concat")
        assert kinds(made)[1:] == ["pool"] * (not sequences) + combined

    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
    def test_a_backward_layer_of_its_own(self, same, keras, cell):
        kind, la = getattr(keras.layers, cell), keras.layers
        back = kind(3, go_backwards=True, activation="relu", name="other")
        same([keras.Input((None, 4)), la.Bidirectional(kind(3), backward_layer=back)])

    def test_what_has_no_effect(self, same, keras):
        la = keras.layers
        made = same(
            [
                keras.Input((None, 4), batch_size=2),
                la.Dropout(0.5),
                la.LSTM(3, return_sequences=True, dropout=0.2, recurrent_dropout=0.3, unroll=False),
                la.SpatialDropout1D(0.1),
                la.GaussianNoise(1.0),
                la.GaussianDropout(0.5),
                la.ActivityRegularization(0.1),
                la.Reshape((-1, 3)),
                la.GRU(2, stateful=True, kernel_regularizer="l2", kernel_constraint="max_norm"),
                la.Flatten(),
                la.Activation("linear"),
                la.Reshape((2,)),
            ]
        )
        assert kinds(made) == ["lstm", "gru", "pool"]
        assert made.report[-1] == (
            "GRU 'gru' is stateful: in Keras its state goes on from call to call, here a call "
            "returns it and the next one takes it"
        ).replace("'gru'", repr(made.layers[1].name))

    def test_layers_are_found_by_place_and_class(self, same, keras):
        la = keras.layers
        made = same(
            [
                keras.Input((None, 4), name="lstm_1"),
                la.LSTM(4, return_sequences=True, name="lstm_2"),
                la.Dense(4, name="lstm"),
                la.LSTM(4, return_sequences=True, name="forward_"),
                la.Bidirectional(la.LSTM(2, return_sequences=True, name="x"), name="backward_y"),
                la.Dense(4, name="kernel"),
            ]
        )
        names = ["lstm_2", "lstm", "forward_", "backward_y", "kernel"]
        assert [made_layer.name for made_layer in made.layers] == names

    def test_a_functional_model(self, same, keras):
        la = keras.layers
        x = first = keras.Input((None, 4))
        for step in (la.LSTM(3, return_sequences=True), la.Dropout(0.1), la.GRU(2), la.Dense(5)):
            x = step(x)
        assert kinds(same(keras.Model(first, x))) == ["lstm", "gru", "pool", "linear"]


class TestOtherLayers:
    @pytest.mark.parametrize("function", [*ELEMENTWISE, "selu", "softmax", "log_softmax"])
    def test_activations(self, same, keras, function):
        la = keras.layers
        made = same(
            [
                keras.Input((None, 3)),
                la.Dense(4, activation=function),
                la.Activation(function),
                la.Conv1D(3, 2, activation=function),
            ]
        )
        assert len(functions(made)) == {"linear": 0, "selu": 6}.get(function, 3)

    def test_layers_that_are_functions(self, same, keras):
        la = keras.layers
        inside = [la.LeakyReLU(0.2), la.ELU(0.5), la.ReLU(3.0), la.Softmax()]
        made = same(
            [
                keras.Input((None, 3)),
                la.ReLU(),
                la.Dense(4),
                la.ReLU(max_value=0.5),
                la.Dense(4),
                la.ReLU(threshold=0.25),
                la.Dense(4),
                la.ReLU(negative_slope=0.3),
                la.LeakyReLU(negative_slope=0.1),
                la.ELU(alpha=0.7),
                *(la.Dense(4, activation=function) for function in inside),
                la.Softmax(axis=2),
            ]
        )
        assert functions(made) == [
            *("relu", "hardtanh(0.0, 0.5)", "thresholded_relu(0.25)", "leaky_relu(0.3)"),
            *("leaky_relu(0.1)", "elu(0.7)", "leaky_relu(0.2)", "elu(0.5)", "hardtanh(0.0, 3.0)"),
            *("softmax", "softmax"),
        ]

    @pytest.mark.parametrize(
        ("padding", "options"),
        [
            *((p, {"kernel_size": 3}) for p in ("causal", "valid", "same")),
            *((p, {"kernel_size": 4, "dilation_rate": 2}) for p in ("causal", "valid", "same")),
            *((p, {"kernel_size": 1, "use_bias": False}) for p in ("causal", "valid", "same")),
            *((p, {"kernel_size": 2, "groups": 2}) for p in ("causal", "valid", "same")),
            *((p, {"kernel_size": 3, "strides": 2}) for p in ("causal", "valid")),
        ],
    )
    def test_conv1d(self, same, keras, padding, options):
        made = same([keras.Input((None, 4)), keras.layers.Conv1D(6, padding=padding, **options)])
        looks_ahead = padding == "same" and options["kernel_size"] > 1
        assert bool(made.layers[0].looks_ahead) == looks_ahead

    @pytest.mark.parametrize("center", [True, False])
    @pytest.mark.parametrize("scale", [True, False])
    def test_normalisations(self, same, keras, scale, center):
        la, options = keras.layers, {"scale": scale, "center": center, "epsilon": 1e-2}
        made = same(
            [
                keras.Input((None, 5)),
                la.BatchNormalization(**options),
                la.LayerNormalization(**options),
                la.BatchNormalization(axis=2, **options),
                la.LSTM(3),
                la.LayerNormalization(axis=1, **options),
                la.BatchNormalization(axis=1, **options),
            ]
        )
        assert made.layers[0].eps == 1e-2

    @pytest.mark.parametrize("options", [{}, {"axis": None}, {"invert": True}, {"axis": 2}])
    def test_normalization(self, same, keras, rng, options):
        first = keras.layers.Normalization(**options)
        first.adapt(rng.standard_normal((20, 6, 3)) * [1, 5, 0.1] + [0, 3, -1])
        assert kinds(same([keras.Input((None, 3)), first])) == ["scale"]

    def test_given_numbers(self, same, keras):
        la = keras.layers
        made = same(
            [
                keras.Input((None, 3)),
                la.Normalization(mean=[1.0, 0.0, -2.0], variance=[1.0, 0.0, 4.0]),
                la.Rescaling([1e-3, 1e-7, 2.0], offset=[0.0, 1.0, 0.5]),
                la.Normalization(mean=0.5, variance=2.0),
                la.Rescaling(1 / 127.5, offset=-1),
            ],
            tolerance=1e-4,
        )
        assert kinds(made) == ["scale"] * 4

    def test_prelu(self, same, keras):
        la = keras.layers
        made = same(
            [
                keras.Input((None, 3)),
                la.PReLU(shared_axes=[1]),
                la.PReLU(shared_axes=[1, 2]),
                la.LSTM(4),
                la.PReLU(),
                la.PReLU(shared_axes=[1]),
            ]
        )
        slopes = [la.num_parameters for la in made.layers if isinstance(la, spec.PReLU)]
        assert slopes == [3, 1, 4, 1]

    def test_time_distributed(self, same, keras):
        la = keras.layers
        over_time = la.TimeDistributed
        made = same(
            [
                keras.Input((None, 3)),
                over_time(la.Dense(4, activation="relu"), name="a"),
                over_time(la.BatchNormalization()),
                over_time(la.LayerNormalization()),
                over_time(la.PReLU()),
                over_time(la.Dropout(0.5)),
                over_time(la.Softmax()),
                la.GlobalAveragePooling1D(),
                la.Dense(2),
            ]
        )
        assert [made_layer.name for made_layer in made.layers[:2]] == ["a", "a.activation"]

    @pytest.mark.parametrize("mask_zero", [False, True])
    def test_tokens(self, same, keras, rng, mask_zero):
        la = keras.layers
        model = keras.Sequential([keras.Input((None,)), la.Embedding(9, 4, mask_zero=mask_zero)])
        model.add(la.Dense(3))
        assert kinds(same(model, rng.integers(0, 9, (2, 5)))) == ["embedding", "linear"]

    def test_without_time(self, same, keras):
        made = same([keras.Input((3,)), keras.layers.Dense(4, activation="softmax")])
        assert kinds(made) == ["linear", "activation"]

    def test_float64(self, same, keras):
        la, options = keras.layers, {"dtype": "float64"}
        made = same([keras.Input((None, 3)), la.Rescaling(0.5, **options), la.GRU(4, **options)])
        assert {array.dtype.name for array in made.tensors.values()} == {"float64"}

    def test_mixed_precision_is_noted(self, same, keras):
        la = keras.layers
        made = same([keras.Input((None, 3)), la.Dense(2, dtype="mixed_float16", name="d")],
                    tolerance=1e-2)  # fmt: skip
        assert made.tensors["d.weight"].dtype == np.float32
        assert made.report[-1] == "Dense 'd' computes in mixed_float16 in Keras, but not here"


@pytest.mark.parametrize("seed", range(8))
def test_random_models(same, keras, seed):
    random, la = np.random.default_rng(seed), keras.layers
    cells = (la.LSTM, la.GRU, la.SimpleRNN)

    def one() -> Any:
        units = int(random.integers(1, 6))
        cell = cells[random.integers(3)](units, return_sequences=True)
        choices = [
            lambda: cell,
            lambda: la.Bidirectional(cell, merge_mode=str(random.choice(["concat", "ave"]))),
            lambda: la.Dense(units, activation=str(random.choice(ELEMENTWISE))),
            lambda: la.Conv1D(units, int(random.integers(1, 4)), padding="causal"),
            lambda: la.BatchNormalization(),
            lambda: la.LayerNormalization(),
            lambda: la.TimeDistributed(la.Dense(units)),
            lambda: la.Dropout(0.1),
        ]
        return choices[random.integers(len(choices))]()

    same([keras.Input((None, 3)), *(one() for _ in range(6)), la.LSTM(2), la.Dense(2)])


# --- the layouts of other versions, by hand

MODEL = [
    layer("Embedding", {"input_dim": 5, "output_dim": 3}, {"embeddings": (5, 3)}),
    bidirectional(lstm(3, 4)),
    gru(8, 2, name="last", return_sequences=False),
    layer("Dense", {"units": 2, "use_bias": True, "activation": "tanh"},
          {"kernel": (2, 2), "bias": (2,)}),
]  # fmt: skip
X = np.array([[0, 4, 2, 2, 1]])


class TestLayouts:
    @pytest.fixture
    def expected(self, tmp_path) -> np.ndarray:
        return forward(read(make_keras(tmp_path / "expected.keras", MODEL)), X)

    def test_tensors(self, tmp_path):
        """Transposed, with gates in the order i f g o and r z n."""
        arrays: dict[str, np.ndarray] = {}
        made = read(make_h5(tmp_path / "m.h5", MODEL, arrays=arrays))
        kernel = arrays["bidirectional/backward_lstm/lstm_cell/kernel"]
        assert np.array_equal(made.tensors["bidirectional.weight_ih_l0_reverse"], kernel.T)
        bias = arrays["bidirectional/forward_lstm/lstm_cell/bias"]
        assert np.array_equal(made.tensors["bidirectional.bias_ih_l0"], bias)
        assert not made.tensors["bidirectional.bias_hh_l0"].any()
        z, r, n = np.split(arrays["last/gru_cell/recurrent_kernel"].T, 3)
        assert np.array_equal(made.tensors["last.weight_hh_l0"], np.concatenate([r, z, n]))
        z, r, n = np.split(arrays["last/gru_cell/bias"], 3, axis=1)
        both = [made.tensors["last.bias_ih_l0"], made.tensors["last.bias_hh_l0"]]
        assert np.array_equal(both, np.concatenate([r, z, n], axis=1))
        assert all(a.flags.c_contiguous for a in made.tensors.values())

    @pytest.mark.parametrize("as_bytes", [True, False])
    @pytest.mark.parametrize("suffix", [":0", ""])
    @pytest.mark.parametrize("version", ["2.0.4", "2.2.4-tf", "2.15.0", "3.15.1", None])
    def test_h5(self, tmp_path, expected, version, suffix, as_bytes):
        path = make_h5(tmp_path / "m.h5", MODEL, version=version, suffix=suffix, as_bytes=as_bytes)
        assert np.array_equal(forward(read(path), X), expected)

    def test_a_list_of_layers_alone(self, tmp_path, expected):
        """Before Keras 2.2.3."""
        path = make_h5(tmp_path / "m.h5", MODEL, config=config_of(MODEL)["config"]["layers"])
        assert np.array_equal(forward(read(path), X), expected)

    def test_groups_without_cells(self, tmp_path, expected):
        """lstm_1/kernel:0, before TensorFlow 2."""
        path = make_h5(tmp_path / "m.h5", MODEL, without="_cell")
        assert np.array_equal(forward(read(path), X), expected)

    @pytest.mark.parametrize("root", ["layers", "_layer_checkpoint_dependencies"])
    @pytest.mark.parametrize("separator", ["/", "\\"])
    def test_keras(self, tmp_path, expected, root, separator):
        """TensorFlow 2.12 has another name of the group; on Windows, groups are named like paths.

        Seen in files of other people: ``dec\\_layer_checkpoint_dependencies\\dense/vars/0``.
        """
        path = make_keras(tmp_path / "m.keras", MODEL, root=root, separator=separator)
        assert np.array_equal(forward(read(path), X), expected)

    def test_deflated(self, tmp_path, expected):
        path = make_keras(tmp_path / "m.keras", MODEL, compression=zipfile.ZIP_DEFLATED)
        assert np.array_equal(forward(read(path), X), expected)

    @pytest.mark.parametrize("nested", [True, False])
    def test_functional_of_keras_2(self, tmp_path, expected, nested):
        entries = config_of(MODEL)["config"]["layers"]
        names = ["in", *(entry["config"]["name"] for entry in entries)]
        first = {"class_name": "InputLayer", "config": {"name": "in", "dtype": "int32"}}
        entries = [first | {"inbound_nodes": []}] + [
            entry | {"name": name, "inbound_nodes": [[[before, 0, 0, {}]]]}
            for entry, before, name in zip(entries, names, names[1:], strict=False)
        ]
        ends = {"input_layers": [["in", 0, 0]], "output_layers": [[names[-1], 0, 0]]}
        if not nested:
            ends = {key: value[0] for key, value in ends.items()}
        config = {"name": "m", "layers": entries} | ends
        path = make_h5(tmp_path / "m.h5", MODEL, config=config, model="Model")
        assert np.array_equal(forward(read(path), X), expected)

    def test_an_old_gru(self, tmp_path, rng):
        """Keras 2.1.2 and older have no reset_after; their GRU resets before the product."""
        old = gru(3, 2, reset_after=None)
        made = read(make_h5(tmp_path / "m.h5", [old], version="2.0.8"))
        assert made.layers[0].reset_after is False
        assert made.tensors["gru.bias_ih_l0"].shape == (6,)
        assert not made.tensors["gru.bias_hh_l0"].any()

    @pytest.mark.parametrize("version", ["2.2.4", "3.0.0"])
    def test_hard_sigmoid(self, tmp_path, version):
        model = [lstm(3, 2, recurrent_activation="hard_sigmoid")]
        made = read(make_h5(tmp_path / "m.h5", model, version=version))
        slope = {"2": "0.2", "3": repr(1 / 6)}[version[0]]
        assert made.layers[0].activations[0] == f"hard_sigmoid({slope}, 0.5)"

    @pytest.mark.parametrize("dtype", ["float16", ">f4", "float64", ">f8"])
    def test_dtypes(self, tmp_path, dtype):
        made = read(make_h5(tmp_path / "m.h5", [lstm(3, 2)], dtype=dtype))
        assert {a.dtype for a in made.tensors.values()} == {np.dtype(dtype).newbyteorder("=")}

    def test_sizes_from_weights_alone(self, tmp_path):
        """A model that was built by its first input, before its shape was saved."""
        conv = layer("Conv1D", {"filters": 4, "kernel_size": 2, "strides": [1], "padding": "valid",
                                "use_bias": False, "activation": "relu"},
                     {"kernel": (2, 3, 4)})  # fmt: skip
        for first in (lstm(3, 4), bidirectional(gru(3, 4)), conv):
            made = read(make_h5(tmp_path / "m.h5", [first], shape=None))
            assert made.layers[0].input_size == 3

    def test_states_of_random_generators_are_no_weights(self, tmp_path):
        dropout = layer("Dropout", {"rate": 0.5}, {"seed_generator/seed": (2,)})
        made = read(make_h5(tmp_path / "m.h5", [lstm(3, 2), dropout]))
        assert kinds(made) == ["lstm", "pool"]


def test_other_files_are_not_keras(tmp_path):
    for name, data in {"a": b"", "b": b"PK\3\4" + bytes(100), "c": b"PK\5\6" + bytes(18)}.items():
        (tmp_path / name).write_bytes(data)
        assert not is_keras(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "d", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert not is_keras(tmp_path / "d")
    assert not is_keras(tmp_path)
    with pytest.raises(FileNotFoundError):
        is_keras(tmp_path / "none")


# --- what is refused, by its message

KNOWN = (
    "Activation, ActivityRegularization, AlphaDropout, BatchNormalization, Bidirectional, Conv1D, "
    "Dense, Dropout, ELU, Embedding, Flatten, GRU, GaussianDropout, GaussianNoise, "
    "GlobalAveragePooling1D, InputLayer, LSTM, LayerNormalization, LeakyReLU, Normalization, "
    "PReLU, ReLU, Rescaling, Reshape, SimpleRNN, Softmax, SpatialDropout1D, ThresholdedReLU, "
    "TimeDistributed"
)
ACTIVATIONS = (
    "celu, elu, gelu, hard_sigmoid, hard_tanh, leaky_relu, linear, log_softmax, relu, relu6, selu, "
    "sigmoid, silu, softmax, softplus, softsign, swish, tanh"
)
CODE = (
    "holds code, which is not run; expected layers of Keras: put one of them in its place, or "
    "leave its computation to your own program"
)
FOREIGN = "expected a class of Keras itself: the file does not hold what another one computes"
NO_SHAPE = "build the model with keras.Input((None, features)) in front and save it again"


def dense(**options: Any) -> Layer:
    options = {"units": 2, "use_bias": False, "activation": "linear"} | options
    return layer("Dense", options, {"kernel": (3, 2)})


def conv(**options: Any) -> Layer:
    common = {"filters": 2, "kernel_size": [3], "strides": [1], "padding": "causal"}
    common |= {"use_bias": False, "activation": "linear", "data_format": "channels_last"}
    return layer("Conv1D", common | options, {"kernel": (3, 3, 2)})


def plain(class_name: str, **options: Any) -> Layer:
    return layer(class_name, options, {})


REFUSALS: dict[str, tuple[list[Layer], str]] = {
    "an unknown layer": (
        [plain("MaxPooling1D")],
        f"MaxPooling1D 'maxpooling1d' is not supported; expected one of {KNOWN}",
    ),
    "Masking": (
        [plain("Masking", mask_value=0.0)],
        f"Masking 'masking' skips steps by what they hold, which is not supported; expected one of "
        f"{KNOWN}",
    ),
    "a model within the model": (
        [plain("Sequential", layers=[])],
        f"Sequential 'sequential' is a model within the model; expected one of {KNOWN}",
    ),
    "Lambda": ([plain("Lambda", function=["4wEA", None, None])], f"Lambda 'lambda' {CODE}"),
    "a lambda as an activation": (
        [dense(activation={"value": ["4wEA", None, None]})],
        f"__lambda__ 'activation' {CODE}",
    ),
    "a named lambda as an activation": (
        [dense(activation={"class_name": "__lambda__", "config": {"value": "4wEA"}})],
        f"__lambda__ 'activation' {CODE}",
    ),
    "a class of somebody's": (
        [dense() | {"module": "my.layers", "registered_name": "my>Dense"}],
        f"Dense 'dense' is 'my>Dense' of module 'my.layers'; {FOREIGN}",
    ),
    "a registered class": (
        [plain("Custom>Attention")],
        f"Custom>Attention 'custom>attention' is 'Custom>Attention' of module ''; {FOREIGN}",
    ),
    "a function of somebody's": (
        [dense(activation={"module": "builtins", "class_name": "function", "config": "act",
                           "registered_name": "function"})],
        f"Dense 'dense': activation, 'act', is 'function' of module 'builtins'; {FOREIGN}",
    ),
    "an unknown activation": (
        [dense(activation="mish")],
        f"Dense 'dense': activation is 'mish'; expected one of {ACTIVATIONS}",
    ),
    "exponential": (
        [dense(activation="exponential")],
        f"Dense 'dense': activation is 'exponential'; expected one of {ACTIVATIONS}",
    ),
    "an activation with weights": (
        [dense(activation={"module": "keras.layers", "class_name": "PReLU", "config": {},
                           "registered_name": None})],
        "Dense 'dense': activation is a layer, PReLU; expected a function by name, or one of "
        "Activation, ReLU, LeakyReLU, ELU, ThresholdedReLU, Softmax: make it a layer of its own",
    ),
    "softmax in a cell": (
        [lstm(3, 2, activation="softmax")],
        "LSTM 'lstm': activation is softmax; expected one function of a single number within a "
        "cell",
    ),
    "selu in a cell": (
        [gru(3, 2, recurrent_activation="selu")],
        "GRU 'gru': recurrent_activation is elu(1.6732632423543772), then "
        "affine(1.0507009873554805, 0.0); expected one function of a single number within a cell",
    ),
    "return_state": (
        [lstm(3, 2, return_state=True)],
        "LSTM 'lstm': return_state is True; expected False: a layer has one output here",
    ),
    "time_major": (
        [lstm(3, 2, time_major=True)],
        "LSTM 'lstm': time_major is True; expected False: the batch comes first",
    ),
    "go_backwards": (
        [lstm(3, 2, go_backwards=True, return_sequences=False)],
        "LSTM 'lstm' has go_backwards=True and gives the first step's output; expected "
        "go_backwards=False, or keras.layers.Bidirectional around it",
    ),
    "go_backwards with sequences": (
        [lstm(3, 2, go_backwards=True, return_sequences=True)],
        "LSTM 'lstm' has go_backwards=True and gives all outputs, the last step's first; expected "
        "go_backwards=False, or keras.layers.Bidirectional around it",
    ),
    "merge_mode None": (
        [bidirectional(lstm(3, 2), merge_mode=None)],
        "Bidirectional 'bidirectional': merge_mode is None; expected one of concat, sum, mul, ave",
    ),
    "two directions that differ": (
        [bidirectional(lstm(3, 2), backward=lstm(3, 2, go_backwards=True, use_bias=False))],
        "Bidirectional 'bidirectional' is around LSTM 'lstm' and, backwards, LSTM 'lstm', which "
        "differ in more than their activations and weights, or do not run forwards and backwards; "
        "expected two alike, the second one with go_backwards=True",
    ),
    "two directions the other way round": (
        [bidirectional(lstm(3, 2, go_backwards=True))],
        "Bidirectional 'bidirectional' is around LSTM 'lstm' and, backwards, LSTM 'lstm', which "
        "differ in more than their activations and weights, or do not run forwards and backwards; "
        "expected two alike, the second one with go_backwards=True",
    ),
    "Bidirectional around another layer": (
        [bidirectional(dense())],
        "Bidirectional 'bidirectional' is around Dense 'dense'; expected one of LSTM, GRU, "
        "SimpleRNN",
    ),
    "mask_zero": (
        [layer("Embedding", {"input_dim": 5, "output_dim": 3, "mask_zero": True},
               {"embeddings": (5, 3)}), lstm(3, 2)],
        "Embedding 'embedding' has mask_zero=True, so that LSTM 'lstm' skips each step whose token "
        "is 0; expected mask_zero=False: set model.get_layer('embedding').mask_zero = False, save "
        "the model again, and give lengths= of sequences padded at their end",
    ),
    "an embedding in the middle": (
        [lstm(3, 2), layer("Embedding", {"input_dim": 5, "output_dim": 3}, {"embeddings": (5, 3)})],
        "Embedding 'embedding' reads (2,); expected it to be the first layer, and to read tokens, "
        "(steps,)",
    ),
    "a recurrent layer behind the last output": (
        [lstm(3, 2), gru(2, 2)],
        "GRU 'gru' reads (2,); expected a sequence, (steps, features): a recurrent layer before it "
        "gives one with return_sequences=True",
    ),
    "an option that is not known": (
        [dense(shortcut=True)],
        "Dense 'dense' has the option 'shortcut' with True, whose effect is not known here",
    ),
    "renorm": (
        [layer("BatchNormalization", {"axis": -1, "epsilon": 1e-3, "scale": False, "center": False,
                                      "renorm": True},
               {"moving_mean": (3,), "moving_variance": (3,)})],
        "BatchNormalization 'batchnormalization' has the option 'renorm' with True, whose effect "
        "is not known here",
    ),
    "normalised over time": (
        [layer("BatchNormalization", {"axis": [1], "epsilon": 1e-3, "scale": False,
                                      "center": False}, {})],
        "BatchNormalization 'batchnormalization': axis is 1; expected -1, the features of each "
        "step",
    ),
    "several axes": (
        [layer("LayerNormalization", {"axis": [1, 2], "epsilon": 1e-3, "scale": False,
                                      "center": False}, {})],
        "LayerNormalization 'layernormalization': axis is [1, 2]; expected -1, the features of "
        "each step",
    ),
    "softmax over time": (
        [plain("Softmax", axis=1)],
        "Softmax 'softmax': axis is 1; expected -1, the features of each step",
    ),
    "quantised": (
        [dense(dtype={"class_name": "QuantizedDTypePolicy",
                      "config": {"name": "int8_from_float32"}})],
        "Dense 'dense': dtype is 'int8_from_float32'; expected one of floating-point numbers, such "
        "as 'float32'",
    ),
    "a convolution of the channels first": (
        [conv(data_format="channels_first")],
        "Conv1D 'conv1d': data_format is 'channels_first'; expected 'channels_last': (steps, "
        "features)",
    ),
    "a convolution that depends on the length": (
        [conv(padding="same", strides=[2])],
        "Conv1D 'conv1d': padding is 'same'; expected 'causal' or 'valid' with strides=2: what "
        "'same' puts on each side then depends on the number of steps",
    ),
    "padding": (
        [conv(padding="full")],
        "Conv1D 'conv1d': padding is 'full'; expected one of valid, causal, same",
    ),
    "two kernel sizes": (
        [conv(kernel_size=[3, 3])],
        "Conv1D 'conv1d': kernel_size is [3, 3]; expected an integer from 1 to 2147483647",
    ),
    "no units": (
        [dense(units=0)],
        "Dense 'dense': units is 0; expected an integer from 1 to 2147483647",
    ),
    "a flag that is none": (
        [dense(use_bias=1)],
        "Dense 'dense': use_bias is 1; expected true or false",
    ),
    "an option that is missing": (
        [layer("Dense", {"units": 2, "use_bias": False}, {"kernel": (3, 2)})],
        "Dense 'dense' has no option 'activation'; expected one, as Keras 2 and 3 write it",
    ),
    "weights of another shape": (
        [layer("Dense", {"units": 2, "use_bias": False, "activation": "relu"}, {"kernel": (4, 2)})],
        "weight 'kernel' of Dense 'dense' has shape (4, 2); expected (3, 2)",
    ),
    "a bias of the other GRU": (
        [gru(3, 2, reset_after=False, bias=(2, 6))],
        "weight 'bias' of GRU 'gru' has shape (2, 6); expected (6,)",
    ),
    "a weight that is missing": (
        [layer("Dense", {"units": 2, "use_bias": True, "activation": "relu"}, {"kernel": (3, 2)})],
        "weight 'bias' of 'dense/' is in the file 0 times; expected it once among "
        "'dense/dense/kernel:0'",
    ),
    "a weight too many": (
        [layer("Dense", {"units": 2, "use_bias": False, "activation": "relu"},
               {"kernel": (3, 2), "lora_kernel_a": (3, 1)})],
        "no layer uses 1 of the weights, among them 'dense/dense/lora_kernel_a:0'; expected those "
        "of the layers and no others: load the model with Keras and save it again",
    ),
    "slopes for each step": (
        [layer("PReLU", {"shared_axes": None}, {"alpha": (7, 3)})],
        "PReLU 'prelu' has slopes of shape (7, 3); expected (1, 3), the same for all steps: "
        "shared_axes=[1]",
    ),
    "Flatten": (
        [plain("Flatten", data_format="channels_last")],
        "Flatten 'flatten' turns (any, 3) into [-1]; expected a model without it: steps and "
        "features stay what they are here",
    ),
    "Reshape": (
        [plain("Reshape", target_shape=[3, -1])],
        "Reshape 'reshape' turns (any, 3) into [3, -1]; expected a model without it: steps and "
        "features stay what they are here",
    ),
    "a ReLU of three pieces": (
        [plain("ReLU", max_value=6.0, negative_slope=0.1, threshold=0.0)],
        "ReLU 'relu' has negative_slope 0.1, threshold 0.0 and max_value 6.0; expected at most one "
        "of them",
    ),
    "numbers for other features": (
        [plain("Rescaling", scale=[1.0, 2.0], offset=0.0)],
        "Rescaling 'rescaling': scale is [1.0, 2.0]; expected a finite number, or one for each of "
        "3 features",
    ),
    "no numbers": (
        [plain("Rescaling", scale=1.0)],
        "Rescaling 'rescaling' lacks its scale or its offset; expected numbers",
    ),
    "statistics of other features": (
        [layer("Normalization", {"axis": [-1], "mean": None, "variance": None},
               {"mean": (2,), "variance": (2,), "count": ()})],
        "Normalization 'normalization' has statistics of shape (2,); expected (3,)",
    ),
    "a mean that keeps its axis": (
        [plain("GlobalAveragePooling1D", data_format="channels_last", keepdims=True)],
        "GlobalAveragePooling1D 'globalaveragepooling1d': keepdims is True; expected False",
    ),
    "no effect at all": (
        [plain("Dropout", rate=0.5)],
        "the layers make no model: a model needs at least one layer; the list is empty",
    ),
    "a name that is not usable": (
        [dense(name="my layer")],
        "the layers make no model: layer name 'my layer' is not usable; expected 1 to 200 letters, "
        "digits, '_', '.' or '-', not starting with '.' or '-'",
    ),
    "two layers of one name": (
        [dense(), dense()],
        "the model, of class 'Sequential', has two layers of one name; expected different names",
    ),
}  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(ConvertError) as error:
        read(path)
    prefix = f"{path}: "
    assert str(error.value).startswith(prefix)
    return str(error.value).removeprefix(prefix)


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSALS)
    def test_a_layer(self, tmp_path, case):
        layers, message = REFUSALS[case]
        tokens = layers[0]["class_name"] == "Embedding"
        shape = [None, None] if tokens else [None, None, 3]
        assert refusal(make_h5(tmp_path / "m.h5", layers, shape=shape)) == message

    def test_hard_sigmoid_without_a_version(self, tmp_path):
        layers = [lstm(3, 2, recurrent_activation="hard_sigmoid")]
        assert refusal(make_h5(tmp_path / "m.h5", layers, version=None)) == (
            "LSTM 'lstm': recurrent_activation is 'hard_sigmoid', which is clip(x / 5 + 1/2, 0, 1) "
            "in Keras 2 and clip(x / 6 + 1/2, 0, 1) in Keras 3; expected the file to say which one "
            "wrote it, by keras_version"
        )

    @pytest.mark.parametrize("version", ["1.2.2", "4.0.0", "new"])
    def test_another_version(self, tmp_path, version):
        assert refusal(make_h5(tmp_path / "m.h5", [dense()], version=version)) == (
            f"the file was written by Keras {version!r}; expected Keras 2 or 3, which name weights "
            f"and options in the same way: load it with one of them and save it again"
        )

    @pytest.mark.parametrize("first", [dense(), plain("ReLU", max_value=6.0)])
    def test_no_shape_of_the_input(self, tmp_path, first):
        name = f"{first['class_name']} {first['config']['name']!r}"
        assert refusal(make_h5(tmp_path / "m.h5", [first], shape=None)) == (
            f"the file does not say how many features {name} reads; {NO_SHAPE}"
        )

    @pytest.mark.parametrize("shape", [[None], [None, 8, 8, 3], [None, 0, 3], [[None, 3]], "x"])
    def test_another_shape_of_the_input(self, tmp_path, shape):
        assert refusal(make_h5(tmp_path / "m.h5", [dense()], shape=shape)) == (
            f"the shape of the input is {shape!r}; expected (batch, steps, features), (batch, "
            f"steps) of tokens or (batch, features)"
        )

    def test_another_model(self, tmp_path):
        path = make_h5(tmp_path / "m.h5", [dense()], model="Transformer")
        assert refusal(path) == (
            "the model, of class 'Transformer', is not Sequential or Functional; what it computes "
            "is code, which the file does not hold"
        )

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            (None, "has the layers None; expected a list of them"),
            ([], "has the layers []; expected a list of them"),
            ({"a": 1}, "has the layers {'a': 1}; expected a list of them"),
        ],
    )
    def test_no_layers(self, tmp_path, layers, message):
        path = make_h5(tmp_path / "m.h5", [dense()], config={"layers": layers})
        assert refusal(path) == f"the model, of class 'Sequential', {message}"

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (3, "a layer is 3; expected a mapping with a class_name"),
            (
                {"class_name": "Dense"},
                "a layer of class 'Dense' has the name None; expected a string",
            ),
            (
                {"class_name": "Dense", "name": "d", "config": []},
                "Dense 'd' has the config []; expected a mapping",
            ),
        ],
    )
    def test_no_layer(self, tmp_path, entry, message):
        assert refusal(make_h5(tmp_path / "m.h5", [], config={"layers": [entry]})) == message


def functional(*nodes: tuple[str, Any], first: Any = None, last: Any = None) -> dict[str, Any]:
    """A functional model of dense layers, each with its inbound nodes."""
    layers = [dense(name=name) | {"name": name, "inbound_nodes": node} for name, node in nodes]
    inputs = {"class_name": "InputLayer", "config": {"name": "in"}, "inbound_nodes": []}
    layers.insert(0, inputs)
    for entry in layers:
        entry.pop("weights", None)
    ends = {"input_layers": first or [["in", 0, 0]], "output_layers": last or [["b", 0, 0]]}
    return {"layers": layers} | ends


def node(name: str, **kwargs: Any) -> list[Any]:
    return [[[name, 0, 0, kwargs]]]


class TestFunctionalRefusals:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (
                functional(("a", node("in")), ("b", node("in"))),
                "'a' and 'b' both read what 'in' gives; expected one line of layers, each reading "
                "the one before it",
            ),
            (
                functional(("a", node("in")), ("b", [[["a", 0, 0, {}], ["in", 0, 0, {}]]])),
                "Dense 'b' is called with [['a', 0, 0], ['in', 0, 0]]; expected the one output of "
                "one layer",
            ),
            (
                functional(("b", node("in") + node("in"))),
                "Dense 'b' is called 2 times; expected once",
            ),
            (functional(("b", None)), "Dense 'b' is called 0 times; expected once"),
            (
                functional(("b", [[["in", 1, 0, {}]]])),
                "Dense 'b' is called with [['in', 1, 0]]; expected the one output of one layer",
            ),
            (
                functional(("b", node("in", mask=["m", 0, 0]))),
                "Dense 'b' is called with 'mask', ['m', 0, 0]; expected the output of one layer "
                "and nothing else",
            ),
            (
                functional(("b", node("in", training=True))),
                "Dense 'b' is called with 'training', True; expected the output of one layer and "
                "nothing else",
            ),
            (
                functional(("b", [{"args": [{"config": {"keras_history": ["in", 0, 0]}}, 2]}])),
                "Dense 'b' is called with None; expected a mapping of arguments",
            ),
            (
                functional(("b", [[["in", 0, 0, 3]]])),
                "Dense 'b' is called with 3; expected a mapping of arguments",
            ),
            (
                functional(("a", node("b")), ("b", node("a")), first=[["a", 0, 0]]),
                "the layers do not lead from the input 'a' to the output 'b' one after the other; "
                "expected one line of layers",
            ),
            (
                functional(("b", node("in")), ("c", node("b"))),
                "the layers do not lead from the input 'in' to the output 'b' one after the other; "
                "expected one line of layers",
            ),
            (
                functional(("b", node("in")), last=[["b", 0, 0], ["in", 0, 0]]),
                "the model's output_layers is [['b', 0, 0], ['in', 0, 0]]; expected one, since a "
                "model here has one input and one output",
            ),
            (
                functional(("b", node("in")), first={"in": 1}),
                "the model's input_layers is {'in': 1}; expected one, since a model here has one "
                "input and one output",
            ),
        ],
    )
    def test_no_line(self, tmp_path, config, message):
        path = make_h5(tmp_path / "m.h5", [], config=config, model="Functional")
        assert refusal(path) == message

    def test_a_loop_of_a_layer_without_a_name(self, tmp_path):
        config = functional(("", node("b")), ("b", node("")), first=[["", 0, 0]])
        path = make_h5(tmp_path / "m.h5", [], config=config, model="Functional")
        assert refusal(path).startswith("the layers do not lead from the input '' to the output")
