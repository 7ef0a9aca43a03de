"""The vocabulary of layers: fields, tensors, states and texts, and the message of every refusal."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain.functions import PARAMETERS
from models import KINDS, every_kind, random_tensors

FUNCTION_NAMES = ", ".join(PARAMETERS)
A = spec.Activation("act", "relu", 4)
LINEAR = spec.Linear("lin", 4, 4)


def refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
        make()
    assert str(error.value) == message


class TestFunctions:
    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("tanh", "tanh"),
            ("  relu ", "relu"),
            ("tanh()", "tanh"),
            ("gelu_tanh", "gelu_tanh"),
            ("leaky_relu(0.01)", "leaky_relu(0.01)"),
            ("leaky_relu( 1e-2 )", "leaky_relu(0.01)"),
            ("elu(1)", "elu(1.0)"),
            ("hard_sigmoid(0.2,0.5)", "hard_sigmoid(0.2, 0.5)"),
            (" hard_sigmoid (0.2 , .5 ) ", "hard_sigmoid(0.2, 0.5)"),
            ("scaled_tanh(-1.7159, 2e3)", "scaled_tanh(-1.7159, 2000.0)"),
            ("hardtanh(-1,1)", "hardtanh(-1.0, 1.0)"),
            ("affine(0.1, 1e-300)", "affine(0.1, 1e-300)"),
            ("thresholded_relu(-0.0)", "thresholded_relu(-0.0)"),
            ("log_softmax", "log_softmax"),
        ],
    )
    def test_one_spelling(self, text, canonical):
        function = spec.parse_function(text)
        assert str(function) == canonical
        assert str(spec.parse_function(canonical)) == canonical
        assert spec.parse_function(canonical) == function
        assert spec.Activation("f", text, 3) == spec.Activation("f", canonical, 3)

    def test_parameters(self):
        assert spec.parse_function("hard_sigmoid(0.2, 0.5)") == spec.Function(
            "hard_sigmoid", 0.2, 0.5
        )
        assert spec.parse_function("relu") == spec.Function("relu", 0.0, 0.0)
        assert set(spec.ACTIVATIONS) == {name for name, p in PARAMETERS.items() if not p}

    @pytest.mark.parametrize(
        "text",
        ["", "swish", "ReLU", "relu6", "tanh(", "tanh)", "tanh;", "tanh((1))", "a" * 99, "tanh\0",
         None, 3, b"tanh", ["tanh"], "hard_sigmoid(0.2, 0.5) x", "tanh tanh"],
    )  # fmt: skip
    def test_unknown(self, text):
        refused(
            lambda: spec.parse_function(text),
            f"function is {text!r:.80}; expected one of {FUNCTION_NAMES}",
        )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("relu(1)", "relu alone"),
            ("softmax(-1)", "softmax alone"),
            ("leaky_relu", "leaky_relu(alpha), finite numbers"),
            ("leaky_relu(a)", "leaky_relu(alpha), finite numbers"),
            ("leaky_relu(0.1, 0.2)", "leaky_relu(alpha), finite numbers"),
            ("elu(nan)", "elu(alpha), finite numbers"),
            ("elu(1e999)", "elu(alpha), finite numbers"),
            ("hard_sigmoid(0.2)", "hard_sigmoid(alpha, beta), finite numbers"),
            ("hardtanh(-1, inf)", "hardtanh(min_val, max_val), finite numbers"),
            ("hardtanh(,)", "hardtanh(min_val, max_val), finite numbers"),
        ],
    )
    def test_wrong_parameters(self, text, expected):
        refused(lambda: spec.parse_function(text), f"function is {text!r}; expected {expected}")


# One layer of every kind with every field that a file may leave out, and its JSON.
DICTS: list[tuple[spec.Layer, dict[str, Any]]] = [
    (spec.OneHot("o", 3), {"kind": "one_hot", "name": "o", "num_classes": 3}),
    (
        spec.Embedding("e", 3, 4),
        {"kind": "embedding", "name": "e", "num_embeddings": 3, "embedding_dim": 4},
    ),
    (
        spec.Linear("l", 3, 4, False),
        {"kind": "linear", "name": "l", "in_features": 3, "out_features": 4, "bias": False},
    ),
    (
        spec.Activation("a", "elu(1)", 3),
        {"kind": "activation", "name": "a", "function": "elu(1.0)", "size": 3},
    ),
    (spec.PReLU("p", 6, 3), {"kind": "prelu", "name": "p", "size": 6, "num_parameters": 3}),
    (spec.Scale("s", 3), {"kind": "scale", "name": "s", "size": 3}),
    (
        spec.LayerNorm("n", 3, 1e-3, True, False),
        {"kind": "layer_norm", "name": "n", "size": 3, "eps": 1e-3, "elementwise_affine": True,
         "bias": False},
    ),
    (
        spec.BatchNorm1d("b", 3, 0, False, width=2),
        {"kind": "batch_norm", "name": "b", "num_features": 3, "eps": 0.0, "affine": False,
         "width": 2},
    ),
    (
        spec.CombineHalves("c", "glu", 4, width=3),
        {"kind": "combine_halves", "name": "c", "function": "glu", "channels": 4, "width": 3},
    ),
    (
        spec.Conv1d("c", 4, 6, 3, 2, 3, 2, False, padding_left=5, padding_right=1),
        {"kind": "conv1d", "name": "c", "in_channels": 4, "out_channels": 6, "kernel_size": 3,
         "stride": 2, "dilation": 3, "groups": 2, "bias": False, "padding_left": 5,
         "padding_right": 1},
    ),
    (
        spec.FrameConv1d("f", 1, 2, 3, width=5, padding_left=2, padding_right=3,
                         padding_mode="reflect"),
        {"kind": "frame_conv1d", "name": "f", "in_channels": 1, "out_channels": 2,
         "kernel_size": 3, "stride": 1, "dilation": 1, "groups": 1, "bias": True, "width": 5,
         "padding_left": 2, "padding_right": 3, "padding_mode": "reflect"},
    ),
    (
        spec.LSTM("l", 3, 4, 2, False, False, 2, reverse=True, initial_state=True, clip=1,
                  activations=("relu", "tanh", "elu(1)"), peepholes=True, coupled=True,
                  cell_clip=0.5, layer_norm="gate", layer_norm_eps=1e-3),
        {"kind": "lstm", "name": "l", "input_size": 3, "hidden_size": 4, "num_layers": 2,
         "bias": False, "bidirectional": False, "reverse": True, "initial_state": True,
         "clip": 1.0, "proj_size": 2, "activations": ["relu", "tanh", "elu(1.0)"],
         "peepholes": True, "coupled": True, "cell_clip": 0.5, "layer_norm": "gate",
         "layer_norm_eps": 1e-3},
    ),
    (
        spec.GRU("g", 3, 4, 1, True, True, reset_after=False,
                 activations=("sigmoid", "relu", "sigmoid", "tanh")),
        {"kind": "gru", "name": "g", "input_size": 3, "hidden_size": 4, "num_layers": 1,
         "bias": True, "bidirectional": True, "reset_after": False,
         "activations": ["sigmoid", "relu", "sigmoid", "tanh"]},
    ),
    (
        spec.RNN("r", 3, 4, 1, True, True, "relu", nonlinearity_reverse="tanh"),
        {"kind": "rnn", "name": "r", "input_size": 3, "hidden_size": 4, "num_layers": 1,
         "bias": True, "bidirectional": True, "nonlinearity": "relu",
         "nonlinearity_reverse": "tanh"},
    ),
    (spec.Pool("p", "mean", 3), {"kind": "pool", "name": "p", "function": "mean", "size": 3}),
    (
        spec.Residual("x", (spec.Scale("s", 3),), "input_first"),
        {"kind": "residual", "name": "x", "combine": "input_first",
         "layers": [{"kind": "scale", "name": "s", "size": 3}]},
    ),
]  # fmt: skip

EXTRAS = [
    (layer, name)
    for layer, entry in DICTS
    for name in entry
    if name in type(layer).__dataclass_fields__
    and type(layer).__dataclass_fields__[name].metadata.get("extra")
]


def entry_of(layer: spec.Layer) -> dict[str, Any]:
    return next(entry for given, entry in DICTS if given is layer).copy()


@pytest.mark.parametrize(("layer", "entry"), DICTS, ids=lambda value: getattr(value, "kind", ""))
class TestDicts:
    def test_there_and_back(self, layer, entry):
        assert layer.to_dict() == entry
        assert next(iter(layer.to_dict())) == "kind"
        again = spec.layer_from_dict(json.loads(json.dumps(entry)))
        assert (again, hash(again), type(again)) == (layer, hash(layer), type(layer))

    def test_every_field_is_wanted(self, layer, entry):
        fields = type(layer).__dataclass_fields__
        for name in entry.keys() - {"kind"}:
            without = {k: v for k, v in entry.items() if k != name}
            if fields[name].metadata.get("extra"):
                assert spec.layer_from_dict(without) != layer or name == "width"
            else:
                refused(
                    lambda without=without: spec.layer_from_dict(without),
                    f"layer kind {layer.kind!r}: missing or unknown fields {name!r}",
                )

    def test_no_other_field(self, layer, entry):
        refused(
            lambda: spec.layer_from_dict(entry | {"zebra": 1, "ant": 2}),
            f"layer kind {layer.kind!r}: missing or unknown fields 'ant', 'zebra'",
        )
        refused(
            lambda: spec.layer_from_dict(entry | {"z" * 500: 1}),
            f"layer kind {layer.kind!r}: missing or unknown fields '{'z' * 199}",
        )

    def test_describes_itself(self, layer, entry):
        text = layer.describe()
        assert text.startswith(f"{layer.kind}(")
        shown = {k: v for k, v in entry.items() if k not in ("kind", "name", "layers")}
        if layer.kind.endswith("conv1d"):  # in PyTorch's way: what is not the default
            fields = type(layer).__dataclass_fields__
            shown = {k: v for k, v in shown.items() if v != fields[k].default}
        assert all(f"{k}={v}" in text for k, v in shown.items())
        assert text.count("=") == len(shown) + ("layers" in entry)

    def test_is_a_value(self, layer, entry):
        assert layer == dataclasses.replace(layer)
        assert layer != dataclasses.replace(layer, name="other")
        assert layer != entry
        assert copy.deepcopy(layer) == pickle.loads(pickle.dumps(layer)) == layer
        assert eval(repr(layer), vars(spec)) == layer
        for change in (lambda: setattr(layer, "name", "x"), lambda: delattr(layer, "name")):
            with pytest.raises(
                dataclasses.FrozenInstanceError, match=f"'name' of {type(layer).__name__}"
            ):
                change()


class TestDictsThatAreWrong:
    @pytest.mark.parametrize(("layer", "name"), EXTRAS, ids=lambda v: getattr(v, "kind", v))
    def test_a_default_is_left_out(self, layer, name):
        """One spelling of a model: two files of it have the same fingerprint."""
        default = type(layer).__dataclass_fields__[name].default
        default = list(default) if isinstance(default, tuple) else default
        refused(
            lambda: spec.layer_from_dict(entry_of(layer) | {name: default}),
            f"layer kind {layer.kind!r}: {name} is {default!r}, which is left out",
        )

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (None, "a layer is NoneType; expected a mapping with a 'kind'"),
            ([], "a layer is list; expected a mapping with a 'kind'"),
            ({"kind": "lstn"}, "layer kind 'lstn' is unknown; expected one of "),
            ({"kind": ["lstm"]}, "layer kind ['lstm'] is unknown; expected one of "),
            ({}, "layer kind None is unknown; expected one of "),
        ],
    )
    def test_kind(self, entry, message):
        kinds = "one_hot, embedding, linear, activation, prelu, scale, layer_norm, batch_norm, "
        kinds += "combine_halves, conv1d, frame_conv1d, lstm, gru, rnn, pool, residual"
        refused(
            lambda: spec.layer_from_dict(entry),
            message + kinds if message.endswith(" of ") else message,
        )

    @pytest.mark.parametrize("value", ["tanh", None, 3, ["tanh", 1, "tanh"], {"a": 1}])
    def test_activations_that_are_no_list(self, value):
        entry = spec.LSTM("l", 1, 1).to_dict() | {"activations": value}
        refused(
            lambda: spec.layer_from_dict(entry),
            "layer kind 'lstm': activations is not a list of strings",
        )

    @pytest.mark.parametrize("value", [None, 3, {}, "linear"])
    def test_residual_layers_that_are_no_list(self, value):
        entry = {"kind": "residual", "name": "r", "layers": value, "combine": "add"}
        refused(lambda: spec.layer_from_dict(entry), "layer kind 'residual': layers is not a list")

    def test_true_is_not_one(self):
        """JSON's true equals 1 in Python: neither is taken for the other."""
        for name, value in (("num_layers", True), ("bias", 1), ("clip", True)):
            entry = spec.GRU("g", 1, 1).to_dict() | {name: value}
            with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
                spec.layer_from_dict(entry)


def lstm(**options: Any) -> spec.LSTM:
    return spec.LSTM("x", 3, 4, **options)


def conv(*args: Any, **options: Any) -> spec.Conv1d:
    return spec.Conv1d("x", 4, 4, *args, **options)


def frame(*args: Any, **options: Any) -> spec.FrameConv1d:
    return spec.FrameConv1d("x", 4, 4, *args, **options)


SIZE = "an integer from 1 to 2147483647"
REFUSED = [
    (lambda: spec.Linear("x", 0, 1), f"in_features is 0; expected {SIZE}"),
    (lambda: spec.Linear("x", 2**31, 1), f"in_features is 2147483648; expected {SIZE}"),
    (lambda: spec.Linear("x", 1.0, 1), f"in_features is 1.0; expected {SIZE}"),
    (lambda: spec.Linear("x", True, 1), f"in_features is True; expected {SIZE}"),
    (lambda: spec.Linear("x", "1", 1), f"in_features is '1'; expected {SIZE}"),
    (lambda: spec.Linear("x", 1, 1, 1), "bias is 1; expected true or false"),
    (lambda: spec.Linear("x", 1, 1, None), "bias is None; expected true or false"),
    (
        lambda: spec.LayerNorm("x", 1, -1e-5),
        "eps is -1e-05; expected a finite number of at least 0",
    ),
    (
        lambda: spec.LayerNorm("x", 1, float("nan")),
        "eps is nan; expected a finite number of at least 0",
    ),
    (
        lambda: spec.BatchNorm1d("x", 1, float("inf")),
        "eps is inf; expected a finite number of at least 0",
    ),
    (lambda: spec.BatchNorm1d("x", 1, "0"), "eps is '0'; expected a finite number of at least 0"),
    (
        lambda: spec.LayerNorm("x", 1, elementwise_affine=False),
        "bias is True; expected false where elementwise_affine is",
    ),
    (
        lambda: spec.PReLU("x", 6, 4),
        "num_parameters is 4; expected a divisor of size, which is 6",
    ),
    (
        lambda: spec.CombineHalves("x", "mean", 2),
        "function is 'mean'; expected 'sum', 'product', 'average', 'magnitude' or 'glu'",
    ),
    (lambda: spec.CombineHalves("x", "glu", 3), "channels is 3; expected an even number"),
    (lambda: spec.Pool("x", "max", 3), "function is 'max'; expected 'last', 'mean' or 'final'"),
    (lambda: conv(2, groups=3), "in_channels is 4; expected a multiple of groups, which is 3"),
    (
        lambda: spec.Conv1d("x", 4, 3, 1, groups=2),
        "out_channels is 3; expected a multiple of groups, which is 2",
    ),
    (
        lambda: conv(3, dilation=2, padding_left=5),
        "padding_left is 5; expected at most dilation * (kernel_size - 1), which is 4",
    ),
    (
        lambda: conv(3, dilation=2, padding_left=4, padding_right=5),
        "padding_right is 5; expected at most dilation * (kernel_size - 1), which is 4",
    ),
    (
        lambda: conv(3, padding_left=-1),
        "padding_left is -1; expected an integer from 0 to 2147483647",
    ),
    (
        lambda: frame(3, width=5, padding_mode="circular"),
        "padding_mode is 'circular'; expected 'zeros', 'reflect' or 'replicate'",
    ),
    (
        lambda: frame(3, width=2, padding_left=2, padding_mode="reflect"),
        "padding_left is 2; expected less than width, which is 2",
    ),
    (
        lambda: frame(3, width=2, padding_right=3, padding_mode="reflect"),
        "padding_right is 3; expected less than width, which is 2",
    ),
    (
        lambda: frame(3, dilation=3, width=4, padding_left=2),
        "width is 4; expected more than 6 with its padding",
    ),
    (lambda: lstm(proj_size=4), "proj_size is 4; expected less than hidden_size, which is 4"),
    (
        lambda: lstm(proj_size=-1),
        "proj_size is -1; expected an integer from 0 to 2147483647",
    ),
    (lambda: lstm(layer_norm="batch"), "layer_norm is 'batch'; expected '', 'product' or 'gate'"),
    (lambda: lstm(layer_norm=None), "layer_norm is None; expected '', 'product' or 'gate'"),
    (lambda: lstm(clip=-1.0), "clip is -1.0; expected a finite number of at least 0"),
    (lambda: lstm(cell_clip=np.inf), "cell_clip is inf; expected a finite number of at least 0"),
    (lambda: lstm(peepholes=1), "peepholes is 1; expected true or false"),
    (
        lambda: lstm(reverse=True, bidirectional=True),
        "reverse is True; expected false where bidirectional is true",
    ),
    (
        lambda: lstm(activations=("tanh", "tanh")),
        "activations is ('tanh', 'tanh'); expected 3 functions, of the gates, of the candidate, "
        "of c",
    ),
    (
        lambda: lstm(activations=("tanh",) * 6),
        "activations is ('tanh', 'tanh', 'tanh', 'tanh', 'tanh', 'tanh'); expected 3 functions, of "
        "the gates, of the candidate, of c",
    ),
    (
        lambda: lstm(activations="tanh"),
        "activations is 'tanh'; expected 3 functions, of the gates, of the candidate, of c",
    ),
    (
        lambda: spec.GRU("x", 1, 1, activations=("tanh",) * 3),
        "activations is ('tanh', 'tanh', 'tanh'); expected 2 functions, of the gates, of the "
        "candidate",
    ),
    (
        lambda: spec.RNN("x", 1, 1, nonlinearity="softmax"),
        "nonlinearity is 'softmax'; expected 'tanh', 'relu' or another function of a single number",
    ),
    (
        lambda: spec.RNN("x", 1, 1, nonlinearity=""),
        "nonlinearity is ''; expected 'tanh', 'relu' or another function of a single number",
    ),
    (
        lambda: spec.RNN("x", 1, 1, nonlinearity_reverse="elu"),
        "nonlinearity_reverse is 'elu'; expected 'tanh', 'relu' or another function of a single "
        "number",
    ),
    (
        lambda: spec.Residual("x", (A,), "multiply"),
        "combine is 'multiply'; expected 'add', 'input_first' or 'output_first'",
    ),
]

REFUSED_OTHERWISE = [
    (
        lambda: lstm(activations=("tanh", "swish", "tanh")),
        f"layer 'x': activations: function is 'swish'; expected one of {FUNCTION_NAMES}",
    ),
    (
        lambda: spec.GRU("x", 1, 1, activations=("sigmoid", "log_softmax")),
        "layer 'x': activations holds 'log_softmax'; expected functions of a single number",
    ),
    (
        lambda: spec.Activation("x", "swish", 1),
        f"layer 'x': function is 'swish'; expected one of {FUNCTION_NAMES}",
    ),
    (
        lambda: spec.Residual("x", ()),
        "layer 'x': layers is empty; expected at least one",
    ),
    (
        lambda: spec.Conv1d("x", 1, 1, 2, dilation=2**20 - 1, stride=16),
        "layer 'x' repeats itself only after 16777200 steps; at most 8388608 are supported",
    ),
    (
        lambda: spec.Conv1d("x", 8, 1, 2, dilation=2**17 + 1, padding_right=1),
        "layer 'x' reaches back over 131073 steps of 8 features; at most 1048576 numbers are "
        "supported",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: spec.Scale("x"), "Scale needs size"),
            (lambda: spec.Scale(), "Scale needs name"),
            (lambda: spec.Scale("x", 1, 2), "Scale takes name, size, each once"),
            (lambda: spec.Scale("x", 1, size=1), "Scale takes name, size, each once"),
            (lambda: spec.Scale("x", 1, width=1), "Scale takes no width"),
            (
                lambda: spec.CombineHalves("x", "glu", 2, 1),
                "CombineHalves takes name, function, channels, each once",
            ),
        ],
    )
    def test_of_arguments(self, make, message):
        with pytest.raises(TypeError, match=f"^{message}$"):
            make()

    @pytest.mark.parametrize(("make", "message"), REFUSED)
    def test_of_a_field(self, make, message):
        refused(make, f"layer 'x': {message}")

    @pytest.mark.parametrize(("make", "message"), REFUSED_OTHERWISE)
    def test_of_a_layer(self, make, message):
        refused(make, message)

    @pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "ä", "a" * 201, None, 3, "a\n"])
    def test_of_a_name(self, name):
        refused(
            lambda: spec.Scale(name, 1),
            f"layer name {name!r:.80} is not usable; expected 1 to 200 letters, digits, "
            f"'_', '.' or '-', not starting with '.' or '-'",
        )

    @pytest.mark.parametrize(
        ("inner", "kind"),
        [
            (spec.Embedding("in", 4, 4), "embedding"),
            (spec.Pool("in", "last", 4), "pool"),
            (spec.Conv1d("in", 4, 4, 3, padding_left=1), "conv1d"),
            (spec.Conv1d("in", 4, 4, 3, stride=2, padding_left=2), "conv1d"),
            (spec.Conv1d("in", 4, 4, 3, padding_left=2, padding_right=1), "conv1d"),
            (spec.Conv1d("in", 4, 4, 3, padding_right=1), "conv1d"),
        ],
    )
    def test_what_a_residual_cannot_hold(self, inner, kind):
        refused(
            lambda: spec.Residual("x", (inner,)),
            f"layer 'x': 'in' ({kind}) within it does not give one output for each step it reads; "
            f"expected layers that do",
        )

    def test_what_a_residual_can_hold(self):
        causal = spec.Residual("x", (spec.Conv1d("in", 4, 4, 3, padding_left=2),))
        centred = spec.Residual("x", (spec.Conv1d("in", 4, 4, 3, padding_left=1, padding_right=1),))
        assert (causal.looks_ahead, causal.delay) == ("", 0)
        assert centred.looks_ahead
        assert spec.Residual("x", (spec.GRU("in", 4, 2, bidirectional=True),)).looks_ahead

    def test_sizes_of_a_residual(self):
        refused(
            lambda: spec.Residual("x", (LINEAR, spec.Linear("b", 4, 5))),
            "layer 'x' adds 4 features to the 5 that 'b' gives; expected as many",
        )
        refused(
            lambda: spec.Residual("x", (LINEAR, spec.Linear("b", 5, 4))),
            "layer 'b' (linear) takes 5 features but 'lin' (linear) before it gives 4; check the "
            "order of the layers",
        )
        assert spec.Residual("x", (spec.Linear("b", 4, 5),), "output_first").output_size == 9


def nested(depth: int) -> spec.Layer:
    layer: spec.Layer = LINEAR
    for n in range(depth):
        layer = spec.Residual(f"r{n}", (layer,))
    return layer


BOTH = spec.GRU("both", 4, 2, bidirectional=True)

MODELS_REFUSED = [
    ((), "a model needs at least one layer; the list is empty"),
    ((A, A), "two layers are called 'act'; names must be unique"),
    ((spec.Residual("r", (A,)), A), "two layers are called 'act'; names must be unique"),
    ((spec.Residual("act", (A,)),), "two layers are called 'act'; names must be unique"),
    ((nested(3),), "residual layers are nested 3 deep; at most 2 are supported"),
    (
        (spec.GRU("g", 4, 4, 4096), A),
        "the model is 4097 layers deep; at most 4096 are supported",
    ),
    (
        (spec.Residual("r", (spec.GRU("g", 4, 4, 4095), A)),),
        "the model is 4097 layers deep; at most 4096 are supported",
    ),
    (
        (A, spec.Linear("b", 3, 1)),
        "layer 'b' (linear) takes 3 features but 'act' (activation) before it gives 4; check the "
        "order of the layers",
    ),
    (
        (spec.Scale("s", 2**20 + 1),),
        "layer 's' (scale) has rows of 1048577 features; at most 1048576 are supported",
    ),
    (
        (spec.Linear("s", 1, 2**20 + 1),),
        "layer 's' (linear) has rows of 1048577 features; at most 1048576 are supported",
    ),
    (
        (spec.Residual("r", (spec.Scale("s", 2**20 + 1),)),),
        "layer 'r' (residual) has rows of 1048577 features; at most 1048576 are supported",
    ),
    (
        (spec.GRU("g", 1, 2**20, 17),),
        "the state of one stream would be 17825792 numbers; at most 16777216 are supported",
    ),
    (
        (A, spec.OneHot("o", 4)),
        "layer 'o' (one_hot) takes tokens, so it can only come first; it is number 2",
    ),
    (
        (spec.OneHot("o", 4), A),
        "layer 'o' (one_hot) must be followed by a linear or recurrent layer",
    ),
    (
        (spec.OneHot("o", 4),),
        "layer 'o' (one_hot) must be followed by a linear or recurrent layer",
    ),
    (
        (spec.Pool("p", "last", 4), spec.Pool("q", "mean", 4)),
        "layers 'p' and 'q' both take one row of a whole sequence; expected at most one that does",
    ),
    (
        (spec.Pool("p", "last", 4), spec.GRU("g", 4, 4)),
        "layer 'g' (gru) goes over time, and 'p' before it leaves a single row; expected it "
        "before the pool",
    ),
    (
        (spec.Pool("p", "mean", 4), spec.Residual("r", (spec.GRU("g", 4, 4),))),
        "layer 'r' (residual) goes over time, and 'p' before it leaves a single row; expected it "
        "before the pool",
    ),
    (
        (spec.GRU("g", 4, 4), spec.Pool("p", "final", 4)),
        "layer 'p' (pool) takes what two directions ended with; expected a bidirectional layer "
        "right before it",
    ),
    (
        (spec.Pool("p", "final", 4),),
        "layer 'p' (pool) takes what two directions ended with; expected a bidirectional layer "
        "right before it",
    ),
    (
        (BOTH, A, spec.Pool("p", "final", 4)),
        "layer 'p' (pool) takes what two directions ended with; expected a bidirectional layer "
        "right before it",
    ),
]


class TestModels:
    @pytest.mark.parametrize(("layers", "message"), MODELS_REFUSED)
    def test_refused(self, layers, message):
        refused(lambda: spec.check_layers(layers), message)

    def test_taken(self):
        spec.check_layers((nested(2),))
        spec.check_layers((spec.GRU("g", 4, 4, 4095), A))
        spec.check_layers((BOTH, spec.Pool("p", "final", 4), A, LINEAR))
        for layers in every_kind(4).values():
            spec.check_layers(layers)

    @pytest.mark.parametrize("kind", KINDS)
    def test_tensors(self, kind, rng):
        layers = every_kind(4)[kind]
        shapes = {n: a.shape for n, a in random_tensors(layers, rng).items()}
        wanted = {n: s for layer in layers for n, s in layer.tensors().items()}
        assert shapes == wanted
        spec.check_tensors(layers, shapes)
        name, shape = next(iter(shapes.items()))
        missing = {n: s for n, s in shapes.items() if n != name}
        refused(
            lambda: spec.check_tensors(layers, missing),
            f"tensor {name!r} of shape {shape} is missing",
        )
        refused(
            lambda: spec.check_tensors(layers, shapes | {name: (*shape, 1)}),
            f"tensor {name!r} has shape {(*shape, 1)}; the layers ask for {shape}",
        )
        refused(
            lambda: spec.check_tensors(layers, shapes | {"x.y": ()}),
            "tensor 'x.y' belongs to no layer",
        )

    def test_a_tensor_of_two_layers(self):
        layers = (spec.Scale("a", 1), spec.Linear("a.b", 1, 1))
        spec.check_tensors(layers, {n: s for one in layers for n, s in one.tensors().items()})
        refused(
            lambda: spec.check_tensors((spec.Scale("a", 1), spec.Linear("a", 1, 1)), {}),
            "tensor 'a.weight' would belong to two layers; rename one",
        )


class TestWhatLayersNeed:
    def test_tensors_of_variants(self):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        plain = {f"x.{n}_l0" for n in names}
        cases = {
            "": lstm(),
            "weight_peephole": lstm(peepholes=True),
            "weight_norm": lstm(layer_norm="gate"),
            "weight_norm_ih bias_norm_ih weight_norm_hh bias_norm_hh weight_norm_c bias_norm_c": (
                lstm(layer_norm="product")
            ),
        }
        for more, layer in cases.items():
            assert set(layer.tensors()) == plain | {f"x.{n}_l0" for n in more.split()}
        stack = {"num_layers": 2, "proj_size": 2, "bidirectional": True, "initial_state": True}
        coupled = lstm(coupled=True, peepholes=True, layer_norm="product", **stack)
        shapes = coupled.tensors()
        assert shapes["x.weight_ih_l1_reverse"] == (12, 4)
        assert shapes["x.weight_hh_l0"] == (12, 2)
        assert shapes["x.weight_peephole_l0_reverse"] == (8,)
        assert shapes["x.weight_norm_hh_l1"] == (12,)
        assert shapes["x.bias_norm_c_l1"] == (4,)
        assert (shapes["x.h_0"], shapes["x.c_0"]) == ((4, 2), (4, 4))
        assert coupled.initial() == {"x.h": "x.h_0", "x.c": "x.c_0"}
        assert lstm().initial() == {}

    def test_functions_of_each_direction(self):
        one = lstm(bidirectional=True, activations=("relu", "tanh", "tanh"))
        two = lstm(bidirectional=True, activations=("relu", "tanh", "tanh") * 2)
        assert one == two
        assert [str(f) for f in one.functions(1)] == ["relu", "tanh", "tanh"]
        other = lstm(bidirectional=True, activations=[*("relu", "tanh", "tanh"), *["elu(1)"] * 3])
        assert [str(f) for f in other.functions(0)] == ["relu", "tanh", "tanh"]
        assert [str(f) for f in other.functions(1)] == ["elu(1.0)"] * 3
        rnn = spec.RNN("r", 1, 1, nonlinearity="relu", nonlinearity_reverse="tanh")
        assert rnn == spec.RNN("r", 1, 1, nonlinearity="relu")
        rnn = spec.RNN("r", 1, 1, 1, True, True, "relu", nonlinearity_reverse="tanh")
        assert [str(rnn.functions(d)[0]) for d in (0, 1)] == ["relu", "tanh"]

    def test_what_is_plain(self):
        plain = (spec.LSTM("l", 1, 2, proj_size=1), spec.GRU("g", 1, 1), spec.RNN("r", 1, 1))
        assert all(layer.is_plain for layer in plain)
        odd = [lstm(**{name: value}) for name, value in (
            ("peepholes", True), ("coupled", True), ("clip", 1), ("cell_clip", 1),
            ("layer_norm", "gate"), ("activations", ("tanh",) * 3))]  # fmt: skip
        odd += [spec.GRU("g", 1, 1, reset_after=False), spec.RNN("r", 1, 1, clip=1)]
        assert not any(layer.is_plain for layer in odd)

    @pytest.mark.parametrize(
        ("layer", "why"),
        [
            (BOTH, "is bidirectional: its backward direction starts at the last step"),
            (lstm(reverse=True), "runs backwards: it starts at the last step"),
            (conv(3, padding_right=2), "is a convolution padded by 2 on the right"),
            (spec.Pool("p", "final", 4), "takes what two directions ended with"),
            (spec.Pool("p", "mean", 4), ""),
            (conv(3, stride=2), ""),
        ],
    )
    def test_why_it_looks_ahead(self, layer, why):
        assert layer.looks_ahead == why
        text = f"layer {layer.name!r} {why}" if why else ""
        assert spec.looks_ahead((A, layer)) == text

    def test_a_residual_says_which_layer_within_it_looks_ahead(self):
        inner = spec.Conv1d("c", 4, 4, 3, padding_left=1, padding_right=1)
        layers = (A, spec.Residual("r", (LINEAR, inner)))
        assert spec.looks_ahead(layers) == "layer 'c' is a convolution padded by 1 on the right"

    def test_state_of_a_convolution(self):
        assert conv(1).state() == {}
        assert conv(1, stride=3).state() == {"x.count": (1, 1)}
        assert conv(3, dilation=2).state() == {"x.x": (4, 4), "x.count": (1, 1)}
        assert conv(3, padding_right=1).state() == {}
        assert conv(3, dilation=2, stride=3, padding_left=1).counts() == {"x.count": 4 + 12}
        assert spec.Pool("p", "mean", 3).state() == {"p.mean": (2, 3), "p.count": (2, 1)}
        assert spec.Pool("p", "mean", 3).counts() == {"p.count": 2**24}
