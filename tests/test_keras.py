"""The reader of Keras files: what Keras computes is what the layers compute; the rest is refused.

Three kinds of files: those that Keras 2.15 and 3 wrote with what they computed
(``tests/data/keras``, made by ``tools/make_keras_golden.py``), those that the installed Keras
writes here, and those put together by hand with h5py. Hostile files are in test_keras_files.py.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_files import Layer, bidirectional, config_of, gru, layer, lstm, make_h5, make_keras

import fastlstm
from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources.conversion import Conversion
from fastlstm.sources.keras import is_keras, read
from fastlstm.sources.keras.config import _ACTIVATIONS
from fastlstm.sources.keras.translation import _LAYERS, _WITHOUT_EFFECT

pytest.importorskip("h5py", reason="Keras files are HDF5")

# Of Keras with torch: it hands its tensors to NumPy in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

GOLDEN = Path(__file__).parent / "data" / "keras"
FILES = sorted(path.name for path in GOLDEN.iterdir() if path.suffix != ".npz")


def forward(made: Conversion, x: np.ndarray) -> np.ndarray:
    """What the graph makes of x, batch first as in Keras, in float64."""
    (argument,), (output,) = made.call.arguments, made.call.outputs
    given = x.swapaxes(0, 1) if "time" in argument.axes else x[None]
    y = reference.forward(made.graph, made.tensors, {"input": given}, dtype=np.float64)["output"]
    return y.swapaxes(0, 1) if "time" in output.axes else y[-1]


def kinds(made: Conversion) -> list[str]:
    return [node.layer.kind for node in made.graph.nodes]


def layer_of(made: Conversion, n: int = 0) -> Any:
    return made.graph.nodes[n].layer


def functions(made: Conversion) -> list[str]:
    layers = [node.layer for node in made.graph.nodes]
    return [
        la.function if isinstance(la, spec.Activation) else la.kind
        for la in layers
        if isinstance(la, spec.Activation | spec.Softmax)
    ]


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
            made = read(GOLDEN / f"tokens_{version}.h5")
            assert layer_of(made, 1).activations == (
                f"hard_sigmoid({slope!r}, 0.5)",
                "tanh",
                "tanh",
            )

    def test_the_report_names_every_layer_of_keras(self):
        report = "\n".join(read(GOLDEN / "tokens_3.h5").report)
        for text in (
            "Embedding 'embedding' is embedding 'embedding'",
            "Bidirectional 'bidirectional' is lstm 'bidirectional', index 'bidirectional.forward'",
            "Dropout 'dropout' has no effect at inference and was left out",
            "TimeDistributed 'time_distributed' is linear 'time_distributed', softmax 'time_dist",
        ):
            assert text in report, report


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
        assert layer_of(made).reset_after is False
        assert made.tensors["gru.bias_ih_l0"].shape == (6,)
        assert not made.tensors["gru.bias_hh_l0"].any()

    @pytest.mark.parametrize("version", ["2.2.4", "3.0.0"])
    def test_hard_sigmoid(self, tmp_path, version):
        model = [lstm(3, 2, recurrent_activation="hard_sigmoid")]
        made = read(make_h5(tmp_path / "m.h5", model, version=version))
        slope = {"2": "0.2", "3": repr(1 / 6)}[version[0]]
        assert layer_of(made).activations[0] == f"hard_sigmoid({slope}, 0.5)"

    @pytest.mark.parametrize("dtype", ["float16", ">f4", "float64", ">f8"])
    def test_dtypes(self, tmp_path, dtype):
        path = make_h5(tmp_path / "m.h5", [lstm(3, 2)], dtype=dtype)
        stored = np.dtype(dtype).newbyteorder("=")
        for wanted in ("float32", "float64"):
            made = read(path, dtype=wanted)
            assert {a.dtype for a in made.tensors.values()} == {np.dtype(wanted)}
            said = any(f"from {stored} to {wanted}" in line for line in made.report)
            assert said == (stored != wanted)

    def test_sizes_from_weights_alone(self, tmp_path):
        """A model that was built by its first input, before its shape was saved."""
        conv = layer("Conv1D", {"filters": 4, "kernel_size": 2, "strides": [1], "padding": "valid",
                                "use_bias": False, "activation": "relu"},
                     {"kernel": (2, 3, 4)})  # fmt: skip
        for first in (lstm(3, 4), bidirectional(gru(3, 4)), conv):
            made = read(make_h5(tmp_path / "m.h5", [first], shape=None))
            assert made.graph.inputs[0].shape == (3,)

    def test_states_of_random_generators_are_no_weights(self, tmp_path):
        dropout = layer("Dropout", {"rate": 0.5}, {"seed_generator/seed": (2,)})
        made = read(make_h5(tmp_path / "m.h5", [lstm(3, 2), dropout]))
        assert kinds(made) == ["lstm", "fold"]


class TestFunctionalOfKeras2:
    """Layouts of calls and weights that no Keras writes any more."""

    def written(self, path: Path, entries: list[Any], ends: Any, groups: dict[str, Any]) -> Path:
        import h5py

        config = {"class_name": "Model", "config": {"name": "m", "layers": entries} | ends}
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(config).encode()
            file.attrs["keras_version"] = b"2.2.4-tf"
            for name, array in groups.items():
                file[f"model_weights/{name}:0"] = array
        return path

    def given(self, name: str, *shape: int | None) -> dict[str, Any]:
        config = {"name": name, "batch_input_shape": [None, *shape], "dtype": "float32"}
        return {"class_name": "InputLayer", "config": config, "name": name, "inbound_nodes": []}

    def test_states_as_further_inputs(self, tmp_path, rng):
        """Initial states stand behind the sequence among the inputs of the layer."""
        config = lstm(2, 3, return_sequences=True, return_state=True)["config"]
        entry = {"class_name": "LSTM", "config": config, "name": "lstm"}
        entry["inbound_nodes"] = [[["x", 0, 0, {}], ["h", 0, 0, {}], ["c", 0, 0, {}]]]
        ends = {
            "input_layers": [["x", 0, 0], ["h", 0, 0], ["c", 0, 0]],
            "output_layers": [["lstm", 0, 0], ["lstm", 0, 1], ["lstm", 0, 2]],
        }
        arrays = {
            f"lstm/lstm_3/{name}": rng.standard_normal(shape).astype(np.float32)
            for name, shape in {
                "kernel": (2, 12),
                "recurrent_kernel": (3, 12),
                "bias": (12,),
            }.items()
        }
        inputs = [self.given("x", None, 2), self.given("h", 3), self.given("c", 3)]
        made = read(self.written(tmp_path / "m.h5", [*inputs, entry], ends, arrays))
        assert made.graph.inputs == (spec.Input("input", (2,)),)
        assert [(a.name, a.role, a.value) for a in made.call.arguments] == [
            ("x", "rows", "input"),
            ("h", "state", "lstm_1"),
            ("c", "state", "lstm_2"),
        ]
        assert [a.name for a in made.call.outputs] == ["lstm", "lstm_1", "lstm_2"]

    def test_states_by_name(self, tmp_path, rng):
        """As lists among the arguments by name; another layer gives them."""
        config = gru(2, 3, return_sequences=True)["config"]
        entry = {"class_name": "GRU", "config": config, "name": "gru"}
        entry["inbound_nodes"] = [[["x", 0, 0, {"initial_state": ["s", 0, 0]}]]]
        ends = {"input_layers": [["x", 0, 0], ["s", 0, 0]], "output_layers": [["gru", 0, 0]]}
        arrays = {
            f"gru/gru_cell/{name}": rng.standard_normal(shape).astype(np.float32)
            for name, shape in {
                "kernel": (2, 9),
                "recurrent_kernel": (3, 9),
                "bias": (2, 9),
            }.items()
        }
        inputs = [self.given("x", None, 2), self.given("s", 3)]
        made = read(self.written(tmp_path / "m.h5", [*inputs, entry], ends, arrays))
        assert [one.held for one in made.graph.inputs] == [False, True]
        assert layer_of(made).initial_state == "given"

    def test_a_model_within_the_model(self, tmp_path, rng):
        """The names of its weights begin with those of its layers."""
        plain_dense = {key: v for key, v in dense(name="d").items() if key != "weights"}
        plain_dense |= {"name": "d", "inbound_nodes": [[["a", 0, 0, {}]]]}
        inner_ends = {"input_layers": [["a", 0, 0]], "output_layers": [["d", 0, 0]]}
        inner = {
            "class_name": "Model",
            "config": {"name": "inner", "layers": [self.given("a", None, 3), plain_dense]}
            | inner_ends,
            "name": "inner",
            "inbound_nodes": [[["x", 0, 0, {}]]],
        }
        kernel = rng.standard_normal((3, 2)).astype(np.float32)
        ends = {"input_layers": [["x", 0, 0]], "output_layers": [["inner", 0, 0]]}
        path = self.written(
            tmp_path / "m.h5", [self.given("x", None, 3), inner], ends, {"inner/d/kernel": kernel}
        )
        made = read(path)
        assert np.array_equal(made.tensors["inner.d.weight"], kernel.T)

    def test_zeros_where_steps_do_not_count(self, tmp_path):
        """Of a bidirectional layer, since TensorFlow has one; before, what was last."""
        masking = layer("Masking", {"mask_value": 0.0}, {})
        for version, zeros in (("2.2.4", False), ("2.2.4-tf", True), ("2.15.0", True)):
            layers = [masking, bidirectional(lstm(3, 2))]
            path = make_h5(tmp_path / "m.h5", layers, version=version, shape=[None, None, 3])
            nodes = [node.name for node in read(path).graph.nodes]
            assert ("bidirectional.zeroed" in nodes) == zeros


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

CODE = (
    "holds code, which is not run; expected layers of Keras: put one of them in its place, or "
    "leave its computation to your own program"
)
FOREIGN = "expected a class of Keras itself: the file does not hold what another one computes"
NO_SHAPE = "build the model with keras.Input((None, features)) in front and save it again"
FIXED = (
    "expected a fixed number of steps, as keras.Input((steps, features)) in front of the same "
    "layers gives it"
)


def dense(**options: Any) -> Layer:
    options = {"units": 2, "use_bias": False, "activation": "linear"} | options
    return layer("Dense", options, {"kernel": (3, 2)})


def conv(**options: Any) -> Layer:
    common = {"filters": 2, "kernel_size": [3], "strides": [1], "padding": "causal"}
    common |= {"use_bias": False, "activation": "linear", "data_format": "channels_last"}
    return layer("Conv1D", common | options, {"kernel": (3, 3, 2)})


def plain(class_name: str, **options: Any) -> Layer:
    return layer(class_name, options, {})


KNOWN = ", ".join(
    sorted((*_LAYERS, *_WITHOUT_EFFECT, "TimeDistributed", "Sequential", "Functional"))
)
ACTIVATIONS = ", ".join(sorted((*_ACTIVATIONS, "hard_sigmoid")))

REFUSALS: dict[str, tuple[list[Layer], str]] = {
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
    "time_major": (
        [lstm(3, 2, time_major=True)],
        "LSTM 'lstm': time_major is True; expected False: the batch comes first",
    ),
    "go_backwards with sequences": (
        [lstm(3, 2, go_backwards=True, return_sequences=True)],
        f"the output 'lstm' has the last step first, as go_backwards=True gives it; {FIXED}",
    ),
    "two directions the other way round": (
        [bidirectional(lstm(3, 2, go_backwards=True))],
        "Bidirectional 'bidirectional' is around LSTM 'lstm' and, backwards, LSTM 'lstm', which"
        " do not give the same, or do not run forwards and backwards; expected two alike, the "
        "second one with go_backwards=True",
    ),
    "Bidirectional around another layer": (
        [bidirectional(dense())],
        "Bidirectional 'bidirectional' is around Dense 'dense'; expected one of LSTM, GRU, "
        "SimpleRNN, RNN, CuDNNLSTM, CuDNNGRU",
    ),
    "an embedding in the middle": (
        [lstm(3, 2), layer("Embedding", {"input_dim": 5, "output_dim": 3}, {"embeddings": (5, 3)})],
        "Embedding 'embedding' reads what other layers compute; expected the tokens of an input",
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
        f"BatchNormalization 'batchnormalization' goes over the steps of (any, 3), all of them "
        f"at once; {FIXED}",
    ),
    "several axes": (
        [layer("LayerNormalization", {"axis": [1, 2], "epsilon": 1e-3, "scale": False,
                                      "center": False}, {})],
        f"LayerNormalization 'layernormalization' goes over the steps of (any, 3), all of them "
        f"at once; {FIXED}",
    ),
    "softmax over time": (
        [plain("Softmax", axis=1)],
        f"Softmax 'softmax' goes over the steps of (any, 3), all of them at once; {FIXED}",
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
        f"Conv1D 'conv1d': padding is 'same' with strides=2, and what that puts on each side "
        f"depends on the number of steps; {FIXED}",
    ),
    "padding": (
        [conv(padding="full")],
        "Conv1D 'conv1d': padding is 'full'; expected one of valid, same, causal",
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
        "weight 'bias' of 'dense' is in the file 0 times; expected it once among "
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
        f"PReLU 'prelu' has slopes of shape (7, 3), others at each step; {FIXED}",
    ),
    "Flatten": (
        [plain("Flatten", data_format="channels_last")],
        f"Flatten 'flatten' makes one row of all steps of (any, 3); {FIXED}",
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
    "no effect at all": (
        [plain("Dropout", rate=0.5)],
        "the layers make no model: the graph has 0 nodes; expected from 1 to 4096",
    ),
    "two layers of one name": (
        [dense(), dense()],
        "the model, of class 'Sequential', has two layers of one name; expected different names",
    ),
    "an unknown layer": (
        [plain("ConvLSTM1D")],
        f"ConvLSTM1D 'convlstm1d' is not supported; expected one of {KNOWN}",
    ),
    "an operation of TensorFlow": (
        [plain("TFOpLambda", function="math.reduce_mean")],
        f"TFOpLambda 'tfoplambda', which computes math.reduce_mean, is not supported; expected one "
        f"of {KNOWN}",
    ),
    "an unknown activation": (
        [dense(activation="sparsemax")],
        f"Dense 'dense': activation is 'sparsemax'; expected one of {ACTIVATIONS}",
    ),
    "an empty model within the model": (
        [plain("Sequential", layers=[])],
        "the model, of class 'Sequential', has the layers []; expected a list of them",
    ),
    "Reshape": (
        [plain("Reshape", target_shape=[3, -1])],
        f"Reshape 'reshape' turns (any, 3) into [3, -1]; {FIXED}",
    ),
    "Permute": (
        [plain("Permute", dims=[2, 1])],
        f"Permute 'permute' moves the axis of the steps; {FIXED}",
    ),
    "an attention": (
        [plain("Attention", use_scale=False)],
        "Attention 'attention' is called with 1 tensors; expected a query, a value and, if it is "
        "another one, a key",
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

    @pytest.mark.parametrize("shape", [[None], [None, 0, 3], [[None, 3]], "x", {}])
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
    config = {"name": "in", "batch_shape": [None, None, 3]}
    inputs = {"class_name": "InputLayer", "config": config, "inbound_nodes": []}
    layers.insert(0, inputs)
    for entry in layers:
        entry.pop("weights", None)
    ends = {"input_layers": first or [["in", 0, 0]], "output_layers": last or [["b", 0, 0]]}
    return {"layers": layers} | ends


def node(name: str, **kwargs: Any) -> list[Any]:
    return [[[name, 0, 0, kwargs]]]


WHAT = "the model, of class 'Functional',"


class TestFunctionalRefusals:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (
                functional(("b", [[["in", 0, 0, {}], ["in", 0, 0, {}]]])),
                "Dense 'b' is called with 2 tensors; expected 1",
            ),
            (functional(("b", None)), "Dense 'b' is called 0 times; expected once or more"),
            (
                functional(("b", [[["in", 1, 0, {}]]])),
                "Dense 'b' reads tensor 0 of 'in', which gives no such tensor",
            ),
            (
                functional(("a", node("in")), ("b", [[["a", 0, 3, {}]]])),
                "Dense 'b' reads tensor 3 of 'a', which gives no such tensor",
            ),
            (
                functional(("b", node("in", mask=["m", 0, 0]))),
                "Dense 'b' reads what call 0 of 'm' gives, which is not in the file",
            ),
            (
                functional(("b", node("in", mask=3))),
                "Dense 'b' is called with the mask 3; expected one number for each step",
            ),
            (
                functional(("b", node("in", training=True))),
                "Dense 'b' is called with 'training'; expected the outputs of layers and nothing "
                "else",
            ),
            (
                functional(("b", [{"args": [2]}])),
                "Dense 'b' is called with {'args': [2]}; expected lists of tensors and mappings of "
                "arguments",
            ),
            (
                functional(("b", [{"args": [2], "kwargs": {}}])),
                "Dense 'b' is called with no tensor; expected one or more",
            ),
            (
                functional(("b", [[["in", 0, 0, 3]]])),
                "Dense 'b' is called with [['in', 0, 0, 3]]; expected lists of tensors and "
                "mappings of arguments",
            ),
            (
                functional(("b", [[["in", -1, 0, {}]]])),
                "Dense 'b' is called with [['in', -1, 0, {}]]; expected lists of tensors and "
                "mappings of arguments",
            ),
            (
                functional(("a", node("b")), ("b", node("a"))),
                "Dense 'a' reads what depends on its own output; expected a graph without loops",
            ),
            (
                functional(("a", node("b")), ("b", node("a")), first=[["a", 0, 0]]),
                f"{WHAT} has the input 'a', which is no InputLayer",
            ),
            (
                functional(("b", node("in")), last=[["c", 0, 0]]),
                f"{WHAT} gives tensor 0 of 'c', which gives no such tensor",
            ),
            (
                functional(("b", node("in")), first={"in": 1}),
                f"{WHAT} has the input_layers {{'in': 1}}; expected a list of [layer, call, "
                f"tensor]",
            ),
            (
                functional(("b", node("in"))) | {"output_layers": []},
                f"{WHAT} has the output_layers []; expected a list of [layer, call, tensor]",
            ),
        ],
    )
    def test_no_graph(self, tmp_path, config, message):
        layers = [dense(name="a"), dense(name="b")]
        path = make_h5(tmp_path / "m.h5", layers, config=config, model="Functional")
        assert refusal(path) == message

    def test_a_long_line_of_layers(self, tmp_path):
        """In whatever order the file has them."""
        names = [f"l{n}" for n in range(300)]
        nodes = [(name, node(before)) for before, name in zip(["in", *names], names, strict=False)]
        entries = [dense(name=name, units=3) | {"weights": {"kernel": (3, 3)}} for name in names]
        config = functional(*reversed(nodes), last=[[names[-1], 0, 0]])
        for entry in config["layers"][1:]:
            entry["config"]["units"] = 3
        path = make_h5(tmp_path / "m.h5", entries, config=config, model="Functional")
        made = read(path)
        assert [one.name for one in made.graph.nodes] == names
