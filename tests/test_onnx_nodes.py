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
from fastlstm import spec  # noqa: E402
from fastlstm.errors import ConvertError  # noqa: E402
from fastlstm.sources import read  # noqa: E402

Array = np.ndarray
OPS = tuple(GATES)


def converted(
    model: Any, arrays: dict[str, Array], batch_first: bool = False
) -> tuple[dict[str, Array], spec.Recurrent]:
    """What a model of one node was converted to gives for each output, in ONNX's layout."""
    made: dict[str, Array] = {}
    for name in [output.name for output in model.graph.output]:
        alone = onnx.ModelProto()
        alone.CopyFrom(model)
        for output in list(alone.graph.output):
            if output.name != name:
                alone.graph.output.remove(output)
        made[name], layer = _run(alone, arrays, name, batch_first)
    return made, layer


def _run(
    model: Any, arrays: dict[str, Array], name: str, batch_first: bool
) -> tuple[Array, spec.Recurrent]:
    """One output, by the engine in float64."""
    kept = fastlstm.from_torch(model, dtype="float64")
    (layer,) = [n.layer for n in kept.graph.nodes if isinstance(n.layer, spec.Recurrent)]
    x = np.asarray(arrays["X"], np.float64)
    x = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
    given: dict[str, Array] = {kept.graph.inputs[0].name: x}
    state = {}
    for which in "hc":
        start = arrays.get(f"initial_{which}")
        if start is None or layer.initial_state == "learned":
            continue
        start = np.asarray(start.swapaxes(0, 1) if batch_first else start, np.float64)
        held = [i for i in kept.graph.inputs if i.name == f"initial_{which}"]
        if held:
            rows = start.swapaxes(0, 1)
            given[held[0].name] = np.ascontiguousarray(rows.reshape(len(rows), *held[0].shape))
        else:
            state[f"{layer.name}.{which}"] = np.ascontiguousarray(start)
    lengths = arrays.get("sequence_lens")
    if state:  # what folds keep is zero at first
        _, all_of_it = kept(x)
        state = {n: np.zeros_like(array) for n, array in all_of_it.items()} | state
    one = x if len(given) == 1 else given
    y, _ = kept(one, state or None, lengths=lengths)
    D, (T, B) = layer.directions, x.shape[:2]
    if name == "Y":
        y = y.reshape(T, B, D, -1)
        return y.transpose((1, 0, 2, 3) if batch_first else (0, 2, 1, 3)), layer
    y = y.reshape(B, D, -1)
    return (y if batch_first else y.swapaxes(0, 1)), layer


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
        T = arrays["X"].shape[layout == [1]]
        if "sequence_lens" in arrays and set(arrays["sequence_lens"].tolist()) == {T}:
            model.graph.node[0].input[4] = ""  # which says nothing, once the length is left open
        model.graph.input[0].type.tensor_type.shape.dim[layout == [1]].dim_param = "open"
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


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("op", OPS)
class TestDrawn:
    """Attributes and optional inputs in any combination."""

    def test_against_the_equations(self, op, number, rng):
        operator = draw(rng, op)
        model = operator.model(fed(operator))
        made, _ = converted(model, operator.arrays, operator.batch_first)
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)

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
        layer = read(operator.model()).graph.nodes[0].layer
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
        for name in ("X", "initial_h", "initial_c"):
            if name in operator.arrays:
                operator.arrays[name] = operator.arrays[name].take([0], batch)
        made, layer = converted(operator.model(), operator.arrays, operator.batch_first)
        assert layer.initial_state
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)

    def one_row(self, operator):
        for name in ("X", "initial_h", "initial_c"):
            if name in operator.arrays:
                operator.arrays[name] = operator.arrays[name][:, :1]

    def test_zeros_are_no_start(self, rng):
        operator = plain(rng, "LSTM", start=True)
        self.one_row(operator)
        for name in ("initial_h", "initial_c"):
            operator.arrays[name] = np.zeros_like(operator.arrays[name])
        _, layer = converted(operator.model(), operator.arrays)
        assert not layer.initial_state

    def test_one_of_two(self, rng):
        operator = plain(rng, "LSTM", start=True)
        self.one_row(operator)
        del operator.arrays["initial_c"]
        made, layer = converted(operator.model(), operator.arrays)
        assert layer.initial_state
        np.testing.assert_allclose(made["Y_c"], operator.evaluate()["Y_c"], rtol=1e-6, atol=1e-6)

    def test_rows_that_start_differently(self, rng):
        """A constant for each row of a batch, the size of which is left open."""
        operator = plain(rng, "GRU", start=True)
        operator.arrays["X"] = rng.standard_normal((3, 5, 4)).astype(np.float32)
        operator.arrays["W"] = operator.arrays["W"][:, :, :1].repeat(4, 2)
        H = operator.attributes["hidden_size"]
        operator.arrays["initial_h"] = rng.random((1, 5, H), np.float32)
        assert refusal(operator) == (
            f"node 'cell' (GRU) is not converted: a state of (1, 5, {H}) is given where one of "
            f"(1, 2, {H}) is taken"
        )

    def test_one_from_an_input_and_one_constant(self, rng):
        operator = plain(rng, "LSTM", start=True)
        self.one_row(operator)
        model = operator.model(("X", "initial_h"), ("Y",))
        for port, axis in ((0, 1), (1, 1)):
            model.graph.input[port].type.tensor_type.shape.dim[axis].dim_value = 1
        made = read(model)
        assert [a.role for a in made.call.arguments] == ["rows", "rows"]
        assert [i.held for i in made.graph.inputs] == [False, True]

    def test_of_the_wrong_shape(self, rng):
        operator = plain(rng, "GRU", start=True)
        H = operator.attributes["hidden_size"]
        operator.arrays["initial_h"] = np.ones((1, 1, H + 1), np.float32)
        assert refusal(operator) == (
            f"node 'cell' (GRU) is not converted: a state of (1, 1, {H + 1}) is given where one of "
            f"(1, 2, {H}) is taken"
        )

    def test_report_says_which_is_which(self, rng):
        operator = plain(rng, "LSTM", start=True, lengths=True)
        made = read(operator.model(fed(operator)))
        I, H = operator.arrays["X"].shape[2], operator.attributes["hidden_size"]  # noqa: E741
        assert made.report[1:] == (
            f"input 'X' is (time, batch, {I})",
            "input 'sequence_lens' holds lengths: give them as lengths=, which makes all output "
            "behind them zero",
            "input 'initial_h' carries a state, which output 'Y_h' gives for the next call: the "
            "model keeps it",
            "input 'initial_c' carries a state, which output 'Y_c' gives for the next call: the "
            "model keeps it",
            f"output 'Y' is (time, 1, batch, {H})",
        )
        assert [(a.role, a.value) for a in made.call.arguments] == [
            ("rows", "X"),
            ("lengths", ""),
            ("state", "Y_h"),
            ("state", "Y_c"),
        ]

    def test_a_last_state_that_no_input_takes_is_the_models(self, rng):
        made = read(plain(rng, "LSTM").model())
        assert list(made.graph.outputs) == ["Y"]
        assert made.report[-2:] == (
            "output 'Y_h' is a last state, which the model keeps and gives as its state",
            "output 'Y_c' is a last state, which the model keeps and gives as its state",
        )


class TestLengths:
    @pytest.mark.parametrize("lengths", [5, 4])
    def test_constant(self, lengths, rng):
        """Those of a fixed length that are all of it say nothing; others are refused."""
        operator = plain(rng, "GRU")
        I = operator.arrays["X"].shape[2]  # noqa: E741
        operator.arrays["X"] = rng.standard_normal((5, 2, I)).astype(np.float32)
        operator.arrays["sequence_lens"] = np.full(2, lengths, np.int32)
        model = operator.model(outputs=("Y",))
        for axis, size in enumerate((5, 2)):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        if lengths == 5:
            assert [node.layer.kind for node in read(model).graph.nodes] == ["gru"]
            return
        with pytest.raises(ConvertError) as caught:
            read(model)
        assert str(caught.value) == (
            "node 'cell' (GRU) has the constant sequence_lens [4, 4], and 5 steps; expected as "
            "many for each row, or an input of lengths"
        )

    def test_computed(self, rng):
        operator = plain(rng, "GRU", lengths=True)
        model = operator.model(("X", "sequence_lens"))
        model.graph.node[0].input[4] = "more"
        add = helper.make_node("Add", ["sequence_lens", "sequence_lens"], ["more"], name="twice")
        model.graph.node.insert(0, add)
        with pytest.raises(ConvertError) as caught:
            read(model)
        assert "reads lengths that are computed, 'more'; expected an input" in str(caught.value)

    def of_two(self, operator, tail):
        """A layer that is given lengths, and what follows it."""
        model = operator.model(fed(operator), outputs=("Y",))
        for axis, size in enumerate((5, 2)):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        for node in tail:
            model.graph.node.append(node)
        model.graph.output[0].name = model.graph.node[-1].output[0]
        with pytest.raises(ConvertError) as caught:
            read(model)
        return str(caught.value)

    def test_steps_taken_out_of_rows(self, rng):
        """Behind the length of a row an ONNX model has zeros, and this one has nothing."""
        mean = helper.make_node("ReduceMean", ["Y", "axis"], ["m"], name="mean")
        axis = helper.make_node("Constant", [], ["axis"], value_ints=[0])
        operator = plain(rng, "GRU", lengths=True)
        message = self.of_two(operator, [axis, mean])
        assert message == (
            "node 'mean' (ReduceMean) takes some steps out of rows whose lengths differ; expected "
            "all of them, or the last state of a recurrent layer"
        )

    def test_another_layer_without_them(self, rng):
        operator = plain(rng, "GRU", lengths=True)
        H = operator.attributes["hidden_size"]
        w = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(
            rng.standard_normal((1, H, H)).astype(np.float32)))  # fmt: skip
        x = helper.make_node("Squeeze", ["Y", "one"], ["x"])
        one = helper.make_node("Constant", [], ["one"], value_ints=[1])
        rnn = helper.make_node("RNN", ["x", "w", "w"], ["z"], name="rnn", hidden_size=H)
        message = self.of_two(operator, [w, one, x, rnn])
        assert message == (
            "node 'rnn' (RNN) is not given the lengths of the rows, which another recurrent layer "
            "is; expected all or none"
        )


class TestOutputs:
    @pytest.mark.parametrize(
        ("direction", "outputs", "kinds"),
        [
            ("forward", ("Y",), ["lstm"]),
            ("forward", ("Y", "Y_h", "Y_c"), ["lstm"]),
            ("forward", ("Y_h",), ["lstm", "fold", "index"]),
            ("forward", ("Y_c",), ["lstm", "fold", "index"]),
            ("reverse", ("Y_h",), ["lstm", "fold", "index"]),
        ],
    )
    def test_what_the_model_gives(self, direction, outputs, kinds, rng):
        operator = plain(rng, "LSTM", direction=direction)
        model = operator.model(outputs=outputs)
        assert [node.layer.kind for node in read(model).graph.nodes] == kinds
        made, _ = converted(model, operator.arrays)
        expected = operator.evaluate()
        for name in outputs:
            np.testing.assert_allclose(made[name], expected[name], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("op", OPS)
    def test_all_of_two_directions(self, op, rng):
        operator = plain(rng, op, direction="bidirectional")
        made, _ = converted(operator.model(), operator.arrays)
        for name, expected in operator.evaluate().items():
            np.testing.assert_allclose(made[name], expected, rtol=1e-6, atol=1e-6)


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
        made = read(operator.model(outputs=("Y_h",)))
        assert [node.layer.kind for node in made.graph.nodes] == ["lstm", "fold", "index"]

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
