"""ONNX's LSTM, GRU and RNN: the onnx package's own node tests, and what those leave out."""

from __future__ import annotations

import functools
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper  # noqa: E402
from onnx_zoo import DEFAULT, GATES, Operator, draw  # noqa: E402

import fastlstm  # noqa: E402
from fastlstm import chain as spec  # noqa: E402
from fastlstm.chain import reference  # noqa: E402
from fastlstm.errors import ConvertError  # noqa: E402
from fastlstm.sources.onnx import read  # noqa: E402

Array = np.ndarray
OPS = tuple(GATES)


def converted(
    model: Any, arrays: dict[str, Array], batch_first: bool = False
) -> tuple[dict[str, Array], spec.Recurrent]:
    """Y, Y_h and Y_c of what a model of one node was converted to, in ONNX's layout."""
    layers, tensors, _ = read(model)
    layer = layers[0]
    assert isinstance(layer, spec.Recurrent)
    x = arrays["X"].transpose(1, 0, 2) if batch_first else arrays["X"]
    start = {
        f"{layer.name}.{which}": arrays[f"initial_{which}"].transpose(
            (1, 0, 2) if batch_first else (0, 1, 2)
        )
        for which in "hc"
        if f"initial_{which}" in arrays and not layer.initial_state
    }
    lengths = arrays.get("sequence_lens")
    y, state = reference.forward(layers[:1], _of(layer, tensors), x, start, lengths=lengths)
    made = {"Y": y.reshape(*y.shape[:2], layer.directions, -1).transpose(0, 2, 1, 3)}
    made |= {f"Y_{name.rpartition('.')[2]}": value for name, value in state.items()}
    if batch_first:
        order = {"Y": (2, 0, 1, 3), "Y_h": (1, 0, 2), "Y_c": (1, 0, 2)}
        made = {name: value.transpose(order[name]) for name, value in made.items()}
    # What the whole model gives: its output, where that is no state, or its last row.
    whole, _ = reference.forward(layers, tensors, x, start, lengths=lengths)
    if len(layers) == 2:
        states = made["Y_h"].transpose(1, 0, 2) if batch_first else made["Y_h"]
        assert np.array_equal(whole[0], np.concatenate(list(states), axis=-1))
    else:
        assert np.array_equal(whole, y)
    return made, layer


def _of(layer: spec.Layer, tensors: dict[str, Array]) -> dict[str, Array]:
    return {name: tensors[name] for name in layer.tensors()}


def refusal(operator: Operator, **options: Any) -> str:
    with pytest.raises(ConvertError) as caught:
        read(operator.model(**options))
    return str(caught.value)


# --- the node tests of the onnx package


@functools.cache
def node_tests() -> dict[str, Any]:
    """All of them, which are made where a file that names one of the operators is imported."""
    from onnx.backend.test.case import node

    folder = Path(node.__file__).parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if any(f'"{op}"' in text or f"'{op}'" in text for op in OPS):
                module = path.relative_to(folder).with_suffix("").as_posix().replace("/", ".")
                importlib.import_module(f"{node.__name__}.{module}")
        cases = node._NodeTestCases
    return {
        case.name: case
        for case in cases
        if case.model is not None and case.model.graph.node[0].op_type in OPS
    }


NODE_TESTS = (
    *("gru_batchwise", "gru_bidirectional", "gru_defaults", "gru_reverse", "gru_seq_length"),
    *("gru_with_initial_bias", "lstm_batchwise", "lstm_bidirectional", "lstm_defaults"),
    *("lstm_reverse", "lstm_with_initial_bias", "lstm_with_peepholes", "rnn_seq_length"),
    *("simple_rnn_batchwise", "simple_rnn_bidirectional", "simple_rnn_defaults"),
    *("simple_rnn_reverse", "simple_rnn_with_initial_bias"),
)


class TestNodeTests:
    def test_these_are_all_there_are(self):
        assert {f"test_{name}" for name in NODE_TESTS} >= set(node_tests())

    @pytest.mark.parametrize("name", NODE_TESTS)
    def test_gives_what_is_recorded(self, name):
        if f"test_{name}" not in node_tests():
            pytest.skip("the installed onnx package has no such test")
        case = node_tests()[f"test_{name}"]
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        arrays = dict(zip((v.name for v in model.graph.input), case.data_sets[0][0], strict=True))
        recorded = dict(
            zip((v.name for v in model.graph.output), case.data_sets[0][1], strict=True)
        )
        for name, array in arrays.items():
            if name != "X":
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        layout = [a.i for a in model.graph.node[0].attribute if a.name == "layout"]
        constant = {name: array for name, array in arrays.items() if name == "X"}
        made, _ = converted(model, constant, layout == [1])
        for name, expected in recorded.items():
            assert made[name].shape == expected.shape
            np.testing.assert_allclose(made[name], expected, rtol=0, atol=2e-7)


# --- the same operators, widened


def fed(operator: Operator) -> tuple[str, ...]:
    """What of an operator is an input of its model: lengths and states cannot be stored here."""
    return tuple(
        n for n in ("X", "sequence_lens", "initial_h", "initial_c") if n in operator.arrays
    )


def run(model: Any, arrays: dict[str, Array]) -> dict[str, Array]:
    """What onnxruntime gives."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    inputs = {value.name: arrays[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, inputs), strict=True))


def plain(rng: np.random.Generator, op: str, **fixed: Any) -> Operator:
    """An operator with nothing but what is fixed."""
    nothing: dict[str, Any] = {
        "direction": "forward",
        "layout": 0,
        "bias": True,
        "lengths": False,
        "start": False,
        "peepholes": False,
        "clip": None,
        "activations": False,
        "coupled": 0,
        "reset_after": 0,
    }
    return draw(rng, op, **(nothing | fixed))


@pytest.mark.parametrize("number", range(40))
@pytest.mark.parametrize("op", OPS)
class TestDrawn:
    """Attributes and optional inputs in any combination."""

    def test_against_the_equations(self, op, number, rng):
        operator = draw(rng, op)
        model = operator.model(fed(operator))
        made, _ = converted(model, operator.arrays, operator.batch_first)
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)

    def test_through_the_engine(self, op, number, rng):
        operator = draw(rng, op)
        proto = operator.model(fed(operator))
        layers, tensors, _ = read(proto)
        x = operator.arrays["X"]
        x = np.ascontiguousarray(x.transpose(1, 0, 2)) if operator.batch_first else x
        state = {
            name: rng.uniform(-1, 1, value.shape).astype(np.float32)
            for name, value in reference.start_state(layers, tensors, x.shape[1], "f4").items()
        }
        lengths = operator.arrays.get("sequence_lens")
        expected, _ = reference.forward(layers, tensors, x, state, lengths=lengths)
        y, _ = fastlstm.from_torch(proto)(x, state, lengths=lengths)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    def test_against_onnxruntime(self, op, number, rng):
        # Its deviations: it has no layout 1, an LSTM's clip does not bound c before h, a
        # ThresholdedRelu without alpha takes 0 for it, and an RNN knows Tanh in this spelling only.
        fixed = {"layout": 0, "without_defaults": ("ThresholdedRelu",)}
        operator = draw(rng, op, **fixed, **({"clip": None} if op == "LSTM" else {}))
        names = operator.attributes.get("activations", DEFAULT[op] * operator.directions)
        operator.attributes["activations"] = [{"tanh": "Tanh"}.get(name, name) for name in names]
        model = operator.model(fed(operator))
        made, _ = converted(model, operator.arrays)
        for name, given in run(model, operator.arrays).items():
            np.testing.assert_allclose(made[name], given, rtol=1e-4, atol=2e-5)


DIRECTIONS = ("forward", "reverse", "bidirectional")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("op", "fixed", "layer"),
    [
        ("LSTM", {"clip": 0.3}, {"clip": 0.3}),
        ("GRU", {"clip": 0.3}, {"clip": 0.3}),
        ("RNN", {"clip": 0.3}, {"clip": 0.3}),
        ("LSTM", {"coupled": 1}, {"coupled": True}),
        ("LSTM", {"coupled": 1, "peepholes": True}, {"coupled": True, "peepholes": True}),
        ("LSTM", {"peepholes": True}, {"peepholes": True}),
        ("GRU", {"reset_after": 1}, {"reset_after": True}),
        ("GRU", {"reset_after": 0}, {"reset_after": False}),
        ("GRU", {"reset_after": 1, "bias": True}, {"reset_after": True, "bias": True}),
        ("LSTM", {"bias": False}, {"bias": False}),
        ("LSTM", {"layout": 1, "start": True}, {}),
        ("GRU", {"layout": 1, "start": True}, {}),
        ("RNN", {"layout": 1, "start": True}, {}),
        ("LSTM", {"lengths": True, "start": True}, {}),
        ("GRU", {"lengths": True, "start": True}, {}),
        ("RNN", {"lengths": True, "start": True}, {}),
    ],
)
class TestOneAttribute:
    def test_becomes_that_of_the_layer(self, op, fixed, layer, direction, rng):
        plain: dict[str, Any] = {
            "clip": None,
            "activations": False,
            "coupled": 0,
            "peepholes": False,
        }
        plain |= {"lengths": False, "start": False, "layout": 0}
        operator = draw(rng, op, direction=direction, **(plain | fixed))
        model = operator.model(fed(operator))
        made, of = converted(model, operator.arrays, operator.batch_first)
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)
        assert of.bidirectional == (direction == "bidirectional")
        assert of.reverse == (direction == "reverse")
        assert {name: getattr(of, name) for name in layer} == layer


class TestActivations:
    def names(self, operator: Operator) -> tuple[str, ...]:
        (layer, *_), _, _ = read(operator.model())
        if isinstance(layer, spec.RNN):
            return tuple(filter(None, (layer.nonlinearity, layer.nonlinearity_reverse)))
        return layer.activations

    def drawn(self, rng, op, direction="forward", **attributes: Any) -> Operator:
        operator = plain(rng, op, direction=direction)
        operator.attributes |= attributes
        return operator

    def test_alpha_and_beta_are_consumed_in_order(self, rng):
        operator = self.drawn(
            rng,
            "LSTM",
            activations=["HardSigmoid", "LeakyRelu", "Affine"],
            activation_alpha=[0.1, 0.2, 0.3],
            activation_beta=[0.4, 0.6],
        )
        expected = ("hard_sigmoid(0.1, 0.4)", "leaky_relu(0.2)", "affine(0.3, 0.6)")
        assert self.names(operator) == expected

    def test_functions_without_parameters_consume_none(self, rng):
        operator = self.drawn(
            rng,
            "GRU",
            "bidirectional",
            activations=["Sigmoid", "Elu", "HardSigmoid", "Tanh"],
            activation_alpha=[0.5, 0.25],
            activation_beta=[0.75],
        )
        expected = ("sigmoid", "elu(0.5)", "hard_sigmoid(0.25, 0.75)", "tanh")
        assert self.names(operator) == expected

    def test_defaults_are_those_of_the_operators(self, rng):
        given = [
            ("LeakyRelu", "leaky_relu(0.01)"),
            ("HardSigmoid", "hard_sigmoid(0.2, 0.5)"),
            ("Elu", "elu(1.0)"),
            ("ThresholdedRelu", "thresholded_relu(1.0)"),
        ]
        for name, text in given:
            assert self.names(self.drawn(rng, "RNN", activations=[name])) == (text,)

    def test_names_are_case_insensitive(self, rng):
        operator = self.drawn(rng, "RNN", "bidirectional", activations=["RELU", "softPlus"])
        assert self.names(operator) == ("relu", "softplus")

    def test_onnxruntime_reads_defaults_alike(self, rng):
        for name in ("LeakyRelu", "HardSigmoid", "Elu"):
            operator = self.drawn(rng, "RNN", activations=[name])
            made, _ = converted(operator.model(), operator.arrays)
            given = run(operator.model(), operator.arrays)
            np.testing.assert_allclose(made["Y"], given["Y"], rtol=1e-4, atol=2e-5)

    @pytest.mark.parametrize("op", OPS)
    def test_of_unknown_name(self, op, rng):
        operator = self.drawn(rng, op, activations=["Cosh"] * len(DEFAULT[op]))
        assert refusal(operator) == (
            f"node 'cell' ({op}) has the activation 'Cosh'; expected one of relu, tanh, sigmoid, "
            "softsign, softplus, affine, leakyrelu, thresholdedrelu, scaledtanh, hardsigmoid, elu"
        )

    def test_too_few(self, rng):
        operator = self.drawn(rng, "LSTM", activations=["Sigmoid", "Tanh"])
        assert refusal(operator) == "node 'cell' (LSTM) has 2 activations; expected 3"

    def test_too_many_parameters(self, rng):
        operator = self.drawn(rng, "RNN", activations=["Elu"], activation_alpha=[0.5, 0.5])
        assert refusal(operator) == (
            "node 'cell' (RNN) has 1 more numbers in activation_alpha and activation_beta than its "
            "activations Elu take; expected as many"
        )

    @pytest.mark.parametrize("name", ["ScaledTanh", "Affine"])
    def test_no_operator_tells_a_default(self, name, rng):
        operator = self.drawn(rng, "RNN", activations=[name], activation_alpha=[0.5])
        assert refusal(operator) == (
            f"node 'cell' (RNN) has the activation {name!r} without an alpha or beta, for which "
            f"there is no default; expected both"
        )


class TestStates:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("layout", [0, 1])
    @pytest.mark.parametrize("op", OPS)
    def test_a_constant_start_is_learned(self, op, layout, direction, rng):
        operator = plain(rng, op, start=True, layout=layout, direction=direction)
        batch = 1 - layout
        for name in ("initial_h", "initial_c"):
            if name in operator.arrays:
                array = operator.arrays[name]
                operator.arrays[name] = np.repeat(array.take([0], batch), array.shape[batch], batch)
        made, layer = converted(operator.model(), operator.arrays, operator.batch_first)
        assert layer.initial_state
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)

    def test_zeros_are_no_start(self, rng):
        operator = plain(rng, "LSTM", start=True)
        for name in ("initial_h", "initial_c"):
            operator.arrays[name][:] = 0
        _, layer = converted(operator.model(), operator.arrays)
        assert not layer.initial_state

    def test_one_of_two(self, rng):
        operator = plain(rng, "LSTM", start=True)
        del operator.arrays["initial_c"]
        operator.arrays["initial_h"][:] = operator.arrays["initial_h"][:, :1]
        made, layer = converted(operator.model(), operator.arrays)
        assert layer.initial_state
        np.testing.assert_allclose(made["Y_c"], operator.evaluate()["Y_c"], rtol=1e-6, atol=1e-6)

    def test_rows_that_start_differently(self, rng):
        operator = plain(rng, "GRU", start=True)
        operator.arrays["X"] = rng.standard_normal((3, 2, 4)).astype(np.float32)
        operator.arrays["W"] = operator.arrays["W"][:, :, :1].repeat(4, 2)
        H = operator.attributes["hidden_size"]
        operator.arrays["initial_h"] = rng.random((1, 2, H), np.float32)
        assert refusal(operator) == (
            "node 'cell' (GRU): 'cell' starts each row of a batch from another h_0; expected the "
            "same for all, or an input"
        )

    def test_one_from_an_input_and_one_constant(self, rng):
        operator = plain(rng, "LSTM", start=True)
        operator.arrays["initial_c"][:] = 0.5
        assert refusal(operator, fed=("X", "initial_h")) == (
            "node 'cell' (LSTM): 'cell' starts one state from an input and another from a "
            "constant; expected both from the same"
        )

    def test_of_the_wrong_shape(self, rng):
        operator = plain(rng, "GRU", start=True)
        H = operator.attributes["hidden_size"]
        operator.arrays["initial_h"] = np.ones((1, 1, H + 1), np.float32)
        assert refusal(operator) == (
            f"node 'cell' (GRU): 'cell' starts from h_0 of shape (1, 1, {H + 1}); expected "
            f"(1, batch, {H})"
        )

    def test_report_says_which_is_which(self, rng):
        operator = plain(rng, "LSTM", start=True, lengths=True)
        _, _, report = read(operator.model(fed(operator)))
        assert report[1:] == (
            "input 'sequence_lens' holds lengths: give them as lengths=, which makes all output "
            "behind them zero",
            "input 'initial_h' carries states, which the model keeps",
            "input 'initial_c' carries states, which the model keeps",
            "output 'Y_h' carries states, which the model keeps",
            "output 'Y_c' carries states, which the model keeps",
            "state 'cell.h' is 'initial_h'",
            "state 'cell.c' is 'initial_c'",
        )


class TestLengths:
    def test_a_constant_that_says_nothing_is_dropped(self, rng):
        operator = plain(rng, "GRU")
        T, B, _ = operator.arrays["X"].shape
        operator.arrays["sequence_lens"] = np.full(B, T, np.int32)
        model = operator.model()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = T
        layers, _, _ = read(model)
        assert [layer.kind for layer in layers] == ["gru"]

    def test_a_constant_that_says_more(self, rng):
        operator = plain(rng, "GRU")
        operator.arrays["sequence_lens"] = np.array([2, 1], np.int32)
        assert refusal(operator) == (
            "node 'cell' (GRU) has the constant sequence_lens [2, 1], and None steps; expected as "
            "many for each row, or an input of lengths"
        )

    def test_computed(self, rng):
        operator = plain(rng, "GRU", lengths=True)
        model = operator.model(("X", "sequence_lens"))
        model.graph.node[0].input[4] = "more"
        add = helper.make_node("Relu", ["sequence_lens"], ["more"])
        model.graph.node.insert(0, add)
        with pytest.raises(ConvertError) as caught:
            read(model)
        assert "inputs of data" in str(caught.value)


class TestOutputs:
    @pytest.mark.parametrize(
        ("direction", "outputs", "kinds"),
        [
            ("forward", ("Y",), ["lstm"]),
            ("forward", ("Y", "Y_h", "Y_c"), ["lstm"]),
            ("forward", ("Y_h",), ["lstm", "pool"]),
            ("forward", ("Y_h", "Y_c"), ["lstm", "pool"]),
            ("bidirectional", ("Y_h",), ["lstm", "pool"]),
            ("reverse", ("Y_h",), ["lstm"]),
            ("reverse", ("Y_h", "Y_c"), ["lstm"]),
        ],
    )
    def test_what_the_model_gives(self, direction, outputs, kinds, rng):
        operator = plain(rng, "LSTM", direction=direction)
        model = operator.model(outputs=outputs)
        layers, _, _ = read(model)
        assert [layer.kind for layer in layers] == kinds
        made, _ = converted(model, operator.arrays)
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)

    def test_the_cell_state_alone(self, rng):
        assert refusal(plain(rng, "LSTM"), outputs=("Y_c",)) == (
            "the cell state of 'cell' is passed on as features; expected its h alone"
        )


class TestVersions:
    @pytest.mark.parametrize(
        ("op", "version"),
        [(op, v) for op in OPS for v in (1, 3, 7, 13, 14, 21, 22)],
    )
    def test_each_version(self, op, version, rng):
        operator = plain(rng, op)
        operator.version = version
        if version < 7:
            operator.attributes["output_sequence"] = 1
        made, _ = converted(operator.model(), operator.arrays)
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)

    def test_a_sequence_that_is_left_out(self, rng):
        operator = plain(rng, "LSTM")
        operator.version = 1
        operator.attributes["output_sequence"] = 0
        assert refusal(operator) == (
            "node 'cell' (LSTM) gives a sequence that output_sequence=0 leaves out; expected 1 "
            "there"
        )
        layers, _, _ = read(operator.model(outputs=("Y_h",)))
        assert [layer.kind for layer in layers] == ["lstm", "pool"]

    @pytest.mark.parametrize(
        ("version", "name"),
        [(7, "output_sequence"), (13, "layout"), (1, "linear_before_reset")],
    )
    def test_attributes_of_other_versions(self, version, name, rng):
        operator = plain(rng, "GRU")
        operator.version = version
        operator.attributes |= {"output_sequence": 1} if version < 7 else {}
        operator.attributes[name] = 1
        assert refusal(operator) == (
            f"node 'cell' (GRU) has the attribute {name!r}, which is not supported"
        )

    @pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
    @pytest.mark.parametrize("op", OPS)
    def test_dtypes(self, op, dtype, rng):
        operator = plain(rng, op)
        if dtype == "bfloat16":
            bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
            stored = {name: array.astype(bfloat16) for name, array in operator.arrays.items()}
        else:
            stored = {name: array.astype(dtype) for name, array in operator.arrays.items()}
        operator.arrays = stored
        made, _ = converted(operator.model(), {"X": stored["X"].astype(np.float64)})
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)


class TestRefusals:
    def test_direction(self, rng):
        operator = plain(rng, "RNN")
        operator.attributes["direction"] = "sideways"
        assert refusal(operator) == (
            "node 'cell' (RNN) has the direction 'sideways'; expected 'forward', 'reverse' or "
            "'bidirectional'"
        )

    def test_hidden_size(self, rng):
        operator = plain(rng, "RNN")
        operator.attributes["hidden_size"] = 9
        assert refusal(operator) == (
            f"node 'cell' (RNN) has hidden_size 9 and R of shape {operator.arrays['R'].shape}; "
            f"expected (..., 9)"
        )

    @pytest.mark.parametrize("letter", ["W", "B", "P"])
    def test_shapes(self, letter, rng):
        operator = plain(rng, "LSTM", peepholes=True)
        wanted = operator.arrays[letter].shape
        wrong = np.zeros((wanted[0], wanted[1] + 1, *wanted[2:]), np.float32)
        operator.arrays[letter] = wrong
        assert refusal(operator) == (
            f"node 'cell' (LSTM) has {letter} of shape {wrong.shape}; expected {wanted}"
        )

    def test_computed_weights(self, rng):
        operator = plain(rng, "GRU")
        model = operator.model()
        model.graph.node[0].input[1] = "X"
        with pytest.raises(ConvertError) as caught:
            read(model)
        assert str(caught.value) == (
            "node 'cell' (GRU) has computed numbers for its input number 1, 'X'; expected a "
            "constant"
        )

    def test_integer_weights(self, rng):
        operator = plain(rng, "GRU")
        operator.arrays["R"] = operator.arrays["R"].astype(np.int32)
        shape = operator.arrays["R"].shape
        assert refusal(operator) == (
            f"node 'cell' (GRU) has for its input number 2, 'R', an array of int32 and shape "
            f"{shape}; expected floats of 3 axes"
        )

    @pytest.mark.parametrize("clip", [-1.0, float("inf"), float("nan")])
    def test_clip(self, clip, rng):
        operator = plain(rng, "GRU")
        operator.attributes["clip"] = clip
        assert refusal(operator) == (
            f"node 'cell' (GRU) has clip {clip}; expected a finite number of at least 0"
        )

    def test_flag(self, rng):
        operator = plain(rng, "GRU")
        operator.attributes["linear_before_reset"] = 2
        assert refusal(operator) == (
            "node 'cell' (GRU) has the attribute 'linear_before_reset' of 2; expected 0 or 1"
        )

    def test_type_of_an_attribute(self, rng):
        operator = plain(rng, "GRU")
        operator.attributes["hidden_size"] = 3.0
        assert refusal(operator) == (
            "node 'cell' (GRU) has the attribute 'hidden_size' of type float; expected it of type "
            "int"
        )

    def test_missing_weights(self, rng):
        operator = plain(rng, "GRU")
        model = operator.model()
        del model.graph.node[0].input[2:]
        with pytest.raises(ConvertError) as caught:
            read(model)
        assert str(caught.value) == "node 'cell' (GRU) has no input number 2; expected it"
