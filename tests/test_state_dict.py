"""The reader of state dicts: what it infers from names and shapes, and everything it refuses."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import fastlstm
from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read
from fastlstm.sources.pytorch.checkpoint import StoredTensor

BLOCKS = [
    spec.LSTM("x", 3, 5),
    spec.LSTM("x", 1, 1),
    spec.LSTM("x", 3, 5, num_layers=3),
    spec.LSTM("x", 3, 5, num_layers=2, bidirectional=True),
    spec.LSTM("x", 3, 5, bias=False),
    spec.LSTM("x", 3, 5, num_layers=2, bidirectional=True, proj_size=2),
    spec.LSTM("x", 4, 4, bias=False, proj_size=1),
    spec.GRU("x", 3, 5),
    spec.GRU("x", 4, 4, num_layers=2, bias=False, bidirectional=True),
    spec.RNN("x", 3, 5),
    spec.RNN("x", 7, 1, num_layers=2, bidirectional=True, nonlinearity="relu"),
]
PREFIXES = ["", "lstm.", "module.lstm.", "_orig_mod.module.encoder.rnn.", "0."]


def tensors_of(layer: spec.Layer, prefix: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors of a layer under a prefix of their own."""
    rng = np.random.default_rng(seed)
    return {
        prefix + suffix: rng.standard_normal(shape, dtype=np.float32)
        for suffix, shape in layer.tensors().items()
    }


def cell(kind: type[spec.Recurrent], prefix: str = "", **options: Any) -> dict[str, np.ndarray]:
    return {
        name.removesuffix("_l0"): value
        for name, value in tensors_of(kind("x", 3, 5, **options), prefix).items()
    }


LSTM = tensors_of(spec.LSTM("x", 3, 5), "lstm.")
LINEAR = tensors_of(spec.Linear("x", 5, 7), "fc.", seed=1)
EMBEDDING = tensors_of(spec.Embedding("x", 7, 3), "emb.", seed=2)
MODEL = EMBEDDING | LSTM | LINEAR
WORDS = "embedding, lstm, linear"


def nonlinearity_of(layer: spec.Layer) -> str | None:
    return layer.nonlinearity if isinstance(layer, spec.RNN) else None


def layers_of(conversion: Conversion) -> list[spec.Layer]:
    return [node.layer for node in conversion.graph.nodes]


def names(conversion: Conversion) -> list[str]:
    return [layer.name for layer in layers_of(conversion)]


def options(layer: spec.Layer) -> dict[str, Any]:
    return {key: value for key, value in layer.to_dict().items() if key != "name"}


def check(conversion: Conversion, *parts: dict[str, np.ndarray]) -> None:
    """The tensors are those of the parts, in order, and make a model."""
    shapes = {name: array.shape for name, array in conversion.tensors.items()}
    spec.check_tensors(spec.check(conversion.graph), shapes)
    wanted = [array for part in parts for array in part.values()]
    assert len(wanted) == len(conversion.tensors)
    for got, array in zip(conversion.tensors.values(), wanted, strict=True):
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        assert not np.shares_memory(got, array)
        np.testing.assert_array_equal(got, array)


def says(conversion: Conversion, *phrases: str) -> None:
    report = "\n".join(conversion.report)
    for phrase in phrases:
        assert phrase in report, report


# --- inference from names and shapes


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layer", BLOCKS, ids=spec.Layer.describe)
def test_a_block_is_inferred_from_its_shapes(layer: spec.Layer, prefix: str) -> None:
    saved = tensors_of(layer, prefix)
    conversion = read(saved, nonlinearity=nonlinearity_of(layer))
    assert [options(found) for found in layers_of(conversion)] == [options(layer)]
    check(conversion, saved)
    says(conversion, "weight_hh_l0", prefix.rstrip("."), "was taken as the whole model")


@pytest.mark.parametrize("layer", BLOCKS, ids=spec.Layer.describe)
def test_the_order_of_the_tensors_in_a_block_does_not_matter(layer: spec.Layer) -> None:
    saved = tensors_of(layer, "a.")
    conversion = read(dict(reversed(saved.items())), nonlinearity=nonlinearity_of(layer))
    check(conversion, saved)


@given(
    kind=st.sampled_from([spec.LSTM, spec.GRU, spec.RNN]),
    input_size=st.integers(1, 9),
    hidden_size=st.integers(1, 9),
    num_layers=st.integers(1, 3),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    proj_size=st.integers(0, 8),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_block_is_inferred_and_any_damage_is_refused(
    kind: Any, proj_size: int, data: st.DataObject, **sizes: Any
) -> None:
    if kind is spec.LSTM:
        sizes["proj_size"] = min(proj_size, sizes["hidden_size"] - 1)
    layer = kind("x", **sizes)
    saved = tensors_of(layer, "a.b.")
    conversion = read(saved, nonlinearity="tanh" if kind is spec.RNN else None)
    assert options(layers_of(conversion)[0]) == options(layer)
    check(conversion, saved)

    victim = data.draw(st.sampled_from(sorted(saved)))
    without = {name: value for name, value in saved.items() if name != victim}
    with pytest.raises(ConvertError):
        read(without, nonlinearity="tanh")
    longer = saved | {victim: np.concatenate([saved[victim], saved[victim][:1]])}
    with pytest.raises(ConvertError, match=r"has shape|rows"):
        read(longer, nonlinearity="tanh")


@pytest.mark.parametrize("kind", [spec.LSTM, spec.GRU, spec.RNN])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_becomes_a_stack_of_one(kind: type[spec.Recurrent], bias: bool) -> None:
    saved = cell(kind, "decoder.cell.", bias=bias)
    conversion = read(saved, nonlinearity="tanh" if kind is spec.RNN else None)
    assert options(layers_of(conversion)[0]) == options(kind("x", 3, 5, bias=bias))
    assert "cell.weight_ih_l0" in conversion.tensors
    check(conversion, saved)
    says(conversion, "'decoder.cell'", "weight_ih (now weight_ih_l0)")


def test_file_order_is_not_needed_where_sizes_leave_one_way() -> None:
    conversion = read(LINEAR | LSTM | EMBEDDING, layers=WORDS)
    check(conversion, EMBEDDING, LSTM, LINEAR)


def test_one_order_out_of_many_blocks() -> None:
    sizes = [3, 4, 5, 6, 7, 8, 9]
    chain = [
        tensors_of(spec.Linear("x", a, b), f"l{a}.", seed=a) for a, b in itertools.pairwise(sizes)
    ]
    saved = {name: value for part in reversed(chain) for name, value in part.items()}
    conversion = read(saved, layers=["linear"] * 6)
    assert names(conversion) == ["l3", "l4", "l5", "l6", "l7", "l8"]
    check(conversion, *chain)


# --- words


def test_words_place_what_weights_do_not_tell() -> None:
    conversion = read(MODEL, layers="Embedding, dropout, lstm, relu, linear, relu, log_softmax")
    assert [layer.kind for layer in layers_of(conversion)] == [
        *("embedding", "lstm", "activation", "linear", "activation", "softmax")
    ]
    assert names(conversion) == ["emb", "lstm", "relu", "fc", "relu_2", "log_softmax"]
    rows = spec.check(conversion.graph).rows
    assert [rows[name].shape for name in names(conversion)] == [(3,), (5,), (5,), (7,), (7,), (7,)]
    check(conversion, EMBEDDING, LSTM, LINEAR)
    says(conversion, "taken on your word", "dropout has no effect")


def test_words_as_a_sequence() -> None:
    check(read(MODEL, layers=["embedding", "lstm:lstm", "linear"]), EMBEDDING, LSTM, LINEAR)


def test_one_hot_takes_its_size_from_the_next_layer() -> None:
    conversion = read(LSTM | LINEAR, layers="one_hot, lstm, linear")
    assert layers_of(conversion)[0] == spec.OneHot("one_hot", 3)
    check(conversion, LSTM, LINEAR)


def test_an_activation_first_takes_its_size_from_the_next_layer() -> None:
    conversion = read(LSTM, layers="tanh, lstm")
    assert layers_of(conversion)[0] == spec.Activation("tanh", "tanh")
    assert conversion.graph.inputs == (spec.Input("input", (3,)),)


def test_a_model_without_recurrence() -> None:
    check(read(LINEAR, layers="linear, softmax"), LINEAR)


def test_a_weight_without_bias_is_what_the_word_says() -> None:
    table = {"table.weight": np.ones((5, 3), np.float32)}
    for word, layer in (
        ("linear", spec.Linear("table", 3, 5, bias=False)),
        ("embedding", spec.Embedding("table", 5, 3)),
    ):
        assert layers_of(read(table, layers=word)) == [layer]


def test_bound_words_settle_what_is_ambiguous() -> None:
    first = tensors_of(spec.LSTM("x", 4, 4), "a.one.", seed=1)
    second = tensors_of(spec.LSTM("x", 4, 4), "a.two.", seed=2)
    with pytest.raises(ConvertError, match=r'more than one way.*layers="lstm:a.one, lstm:a.two"'):
        read(first | second, layers="lstm, lstm")
    check(read(first | second, layers="lstm:a.one, lstm:a.two"), first, second)
    check(read(first | second, layers="lstm:two, lstm"), second, first)


def test_bare_names_can_be_bound() -> None:
    bare = {name.removeprefix("lstm."): value for name, value in LSTM.items()}
    conversion = read(bare | LINEAR, layers="lstm:, linear:fc")
    assert names(conversion) == ["lstm", "fc"]


# --- names


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["lstm", "linear"], ["lstm", "linear"]),
        (["module.lstm", "module.linear"], ["lstm", "linear"]),
        (["_orig_mod.module.net.lstm", "_orig_mod.module.net.linear"], ["lstm", "linear"]),
        (["net.encoder.lstm", "net.head"], ["encoder.lstm", "head"]),
        (["a.b", "a.b.c"], ["b", "b.c"]),
        (["0", "1"], ["0", "1"]),
        (["lstm", "module.lstm"], ["lstm", "lstm_2"]),
        (["módulo/é", "-fc"], ["m_dulo__", "fc"]),
        (["x" * 300, "y"], ["x" * 180, "y"]),
    ],
)
def test_names_lose_what_all_paths_share(paths: list[str], expected: list[str]) -> None:
    saved = tensors_of(spec.LSTM("x", 3, 5), f"{paths[0]}.")
    saved |= tensors_of(spec.Linear("x", 5, 7), f"{paths[1]}.")
    conversion = read(saved, layers=f"lstm:{paths[0]}, linear:{paths[1]}")
    assert names(conversion) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", "lstm"), ("module.", "lstm"), ("rnn.", "rnn"), ("module.encoder.rnn.", "rnn")],
)
def test_the_name_of_a_single_block(path: str, expected: str) -> None:
    assert names(read(tensors_of(spec.LSTM("x", 3, 5), path))) == [expected]


# --- where the state dict lies


OPTIMIZER = {"state": {0: {"exp_avg": np.ones((20, 3))}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "path",
    [
        ("state_dict",),
        ("model_state_dict",),
        ("model_state",),
        ("model",),
        ("net",),
        ("module",),
        ("model", "state_dict"),
        ("my_weights",),
        (),
    ],
)
def test_usual_nesting(path: tuple[str, ...]) -> None:
    tree: dict[str, Any] = MODEL
    for key in reversed(path):
        tree = {key: tree, "optimizer": OPTIMIZER, "epoch": 3, "losses": [0.5, 0.25]}
    conversion = read(tree, layers=WORDS)
    assert names(conversion) == ["emb", "lstm", "fc"]
    check(conversion, EMBEDDING, LSTM, LINEAR)
    if path:
        says(conversion, "'optimizer' (optimizer state)", "'epoch' (int)", "'losses' (list)")


def test_a_state_dict_of_each_part() -> None:
    parts = [tensors_of(spec.LSTM("x", 3, 5), ""), tensors_of(spec.Linear("x", 5, 7), "")]
    tree = {"encoder": parts[0], "head": parts[1], "optimizers": [OPTIMIZER]}
    conversion = read(tree, layers="lstm, linear")
    assert names(conversion) == ["encoder", "head"]
    check(conversion, *parts)
    says(conversion, "'optimizers.0' (optimizer state)")


def test_other_tensors_beside_a_wrapped_state_dict_are_noted() -> None:
    tree = {"model": LSTM, "rng_state": np.zeros(9, np.uint8), "best": {"loss": np.ones(())}}
    says(read(tree), "left out, beside the model: 'rng_state' (tensor), 'best' (tensor)")


def test_entries_that_are_no_tensors_are_noted() -> None:
    tree = LSTM | {"version": 2, "lstm.bias": True, "lstm.extra": None, "sizes": [3, 5]}
    says(read(tree), "not a tensor: 'version' (int), 'lstm.bias' (bool), 'sizes' (list)")


def test_several_state_dicts_ask_for_a_prefix() -> None:
    other = tensors_of(spec.LSTM("x", 3, 5), "lstm.", seed=9)
    tree = {"model": LSTM, "ema_model": other}
    with pytest.raises(ConvertError, match=r"side by side: 'model', 'ema_model'.*prefix='model'"):
        read(tree)
    check(read(tree, prefix="model"), LSTM)
    check(read(tree, prefix="ema_model"), other)
    conversion = read(tree, prefix="ema_model.lstm.")
    check(conversion, other)
    says(conversion, "outside the prefix 'ema_model.lstm': 'model' (4 tensors)")
    both = read({"model": LSTM, "head": LINEAR}, prefix="", layers="lstm, linear")
    check(both, LSTM, LINEAR)


def test_prefix_counts_from_the_state_dict_too() -> None:
    tree = {"state_dict": {f"a.{k}": v for k, v in LSTM.items()} | LINEAR}
    conversion = read(tree, prefix="a")
    check(conversion, LSTM)
    says(conversion, "outside the prefix 'a'")
    with pytest.raises(ConvertError, match=r"no tensor under the prefix 'b'(?s:.*)'state_dict.a"):
        read(tree, prefix="b")


def test_a_prefix_is_what_names_start_with() -> None:
    part = {name.replace(".", "/"): value for name, value in LSTM.items()}
    tree = part | {"linear/w": LINEAR["fc.weight"]}
    with pytest.raises(ConvertError, match=r"no weights under PyTorch's names(?s:.*)'lstm/weight"):
        read(tree, prefix="lstm/")
    check(read(LSTM | LINEAR, prefix="ls"), LSTM)


def test_a_hostile_nest_is_refused() -> None:
    deep: Any = LSTM
    for _ in range(200):
        deep = {"a": deep}
    with pytest.raises(ConvertError, match="nested more than"):
        read(deep)
    wide: Any = [[0]]
    for _ in range(30):
        wide = [wide] * 10
    with pytest.raises(ConvertError, match="holds more than"):
        read({"a": wide})
    loop: dict[str, Any] = {}
    loop["a"] = loop
    with pytest.raises(ConvertError, match="nested more than"):
        read(loop)


def test_two_entries_of_one_name() -> None:
    value = LSTM["lstm.weight_ih_l0"]
    with pytest.raises(ConvertError, match=r"two entries are called 'lstm\.weight_ih_l0'"):
        read(LSTM | {"lstm": {"weight_ih_l0": value}})
    with pytest.raises(ConvertError, match="two entries are called '1'"):
        read({1: value, "1": value})


# --- dtypes


def test_float_dtypes_are_converted_and_reported() -> None:
    stored = dict(zip(LSTM, ["float16", "float64", ">f8", "float32"], strict=True))
    saved = {name: value.astype(stored[name]) for name, value in LSTM.items()}
    conversion = read(saved)
    says(
        conversion,
        "widened from float16 to float32: lstm.weight_ih_l0",
        "narrowed from float64 to float32: lstm.weight_hh_l0, lstm.bias_ih_l0",
    )
    for name, value in saved.items():
        got = conversion.tensors[name]
        assert got.dtype == np.float32
        assert got.dtype.isnative
        np.testing.assert_array_equal(got, value.astype(np.float32))


def test_float64_models_keep_every_bit() -> None:
    saved = {name: value / 3 for name, value in LSTM.items()}
    saved = {name: value.astype(np.float64) / 7 for name, value in saved.items()}
    conversion = read(saved, dtype="float64")
    for name, value in saved.items():
        assert conversion.tensors[name].dtype == np.float64
        np.testing.assert_array_equal(conversion.tensors[name], value)
    says(read(LSTM, dtype="float64"), "widened from float32 to float64")


def test_stored_bfloat16_is_named_in_the_report() -> None:
    conversion = read({name: StoredTensor(value, "bfloat16") for name, value in LSTM.items()})
    check(conversion, LSTM)
    says(conversion, "widened from bfloat16 to float32")


def test_a_strided_array_is_copied() -> None:
    wide = {name: np.repeat(value, 2, axis=-1)[..., ::2] for name, value in LSTM.items()}
    check(read(wide), LSTM)


def test_a_value_beyond_float32_is_refused() -> None:
    saved = {name: value.astype(np.float64) for name, value in LSTM.items()}
    saved["lstm.weight_hh_l0"][1, 1] = -1e39
    with pytest.raises(ConvertError, match=r"'lstm\.weight_hh_l0' holds -1e\+39.*dtype='float64'"):
        read(saved)
    assert read(saved, dtype="float64").tensors["lstm.weight_hh_l0"][1, 1] == -1e39
    saved["lstm.weight_hh_l0"][1, 1] = -np.inf  # an infinity stays what it is
    assert read(saved).tensors["lstm.weight_hh_l0"][1, 1] == -np.inf


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64", "uint8", "object"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    saved = LSTM | {"lstm.bias_hh_l0": LSTM["lstm.bias_hh_l0"].astype(dtype)}
    with pytest.raises(ConvertError, match=rf"'lstm\.bias_hh_l0' has dtype {dtype}"):
        read(saved)


# --- refusals, each by its key phrase


def without(*missing: str) -> dict[str, Any]:
    return {name: value for name, value in LSTM.items() if name not in missing}


def shaped(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


STACK = tensors_of(spec.LSTM("x", 3, 5, num_layers=2, bidirectional=True), "lstm.")
PROJECTED = tensors_of(spec.LSTM("x", 3, 5, proj_size=2), "lstm.")

REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("empty", {}, {}, "there is no tensor"),
    ("no tensors", {"epoch": 3, "lr": 0.1}, {}, r"no tensor.*'epoch' \(int\), 'lr' \(float\)"),
    ("only an optimizer", OPTIMIZER, {}, "there is no tensor"),
    ("missing weight", without("lstm.weight_hh_l0"), {}, r"'lstm\.weight_hh_l0' is missing"),
    ("missing bias", without("lstm.bias_hh_l0"), {}, r"'lstm\.bias_hh_l0' is missing"),
    (
        "missing cell weight",
        {"c.weight_ih": shaped(20, 3), "c.bias_ih": shaped(20)},
        {},
        r"'c\.weight_hh' is missing",
    ),
    (
        "missing layer",
        {k.replace("_l1", "_l2"): v for k, v in STACK.items()},
        {},
        r"'lstm\.weight_ih_l1' is missing",
    ),
    (
        "missing direction",
        {k: v for k, v in STACK.items() if not k.endswith("_l1_reverse")},
        {},
        r"'lstm\.weight_ih_l1_reverse' is missing",
    ),
    (
        "only reverse",
        {f"{k}_reverse": v for k, v in LSTM.items()},
        {},
        r"'lstm\.weight_ih_l0' is missing",
    ),
    (
        "shape of a later layer",
        STACK | {"lstm.weight_ih_l1": shaped(20, 5)},
        {},
        r"'lstm\.weight_ih_l1' has shape \(20, 5\); expected \(20, 10\)",
    ),
    (
        "rows",
        LSTM | {"lstm.weight_ih_l0": shaped(10, 3)},
        {},
        "has 10 rows; with hidden size 5 .*expected 20 for LSTM, 15 for GRU, 5 for RNN",
    ),
    (
        "rows with a projection",
        PROJECTED | {"lstm.weight_ih_l0": shaped(15, 3)},
        {},
        "has 15 rows; .*weight_hr.*expected 20 for LSTM$",
    ),
    (
        "projection of another size",
        PROJECTED | {"lstm.weight_hr_l0": shaped(3, 5)},
        {},
        r"'lstm\.weight_hr_l0' has shape \(3, 5\); expected \(2, 5\)",
    ),
    (
        "projection not smaller",
        PROJECTED | {"lstm.weight_hr_l0": shaped(5, 5), "lstm.weight_hh_l0": shaped(20, 5)},
        {},
        "at 'lstm' make no layer: proj_size is 5; expected less than hidden_size",
    ),
    (
        "dimensions",
        LSTM | {"lstm.bias_ih_l0": shaped(20, 1)},
        {},
        r"'lstm\.bias_ih_l0' has shape \(20, 1\); expected 1 dimension,",
    ),
    (
        "nothing in it",
        LSTM | {"lstm.weight_ih_l0": shaped(20, 0)},
        {},
        "expected 2 dimensions, none of them 0",
    ),
    (
        "cell and stack",
        LSTM | {"lstm.weight_ih": shaped(20, 3)},
        {},
        r"'lstm\.weight_ih' is a cell's name",
    ),
    (
        "RNN without nonlinearity",
        tensors_of(BLOCKS[9], "r."),
        {},
        "at 'r' are an RNN's .*nonlinearity='tanh'.*nonlinearity='relu'",
    ),
    ("nonlinearity without RNN", LSTM, {"nonlinearity": "tanh"}, r"no RNN among .*\(lstm\)"),
    ("unknown nonlinearity", LSTM, {"nonlinearity": "sigmoid"}, "nonlinearity is 'sigmoid'"),
    ("unknown dtype", LSTM, {"dtype": "float16"}, "dtype is 'float16'; expected 'float32'"),
    (
        "two blocks and no words",
        MODEL,
        {},
        r'say it with layers=, for example layers="embedding, lstm, linear"'
        r"(?s:.*)'emb\.weight': float32 \(7, 3\)",
    ),
    ("a linear and no words", LINEAR, {}, 'for example layers="linear"'),
    (
        "unknown word",
        LSTM,
        {"layers": "lstm, conv"},
        "layers= holds 'conv', which is no word; is it .*'conv1d'",
    ),
    ("no words", LSTM, {"layers": ""}, "layers= holds ''"),
    ("empty words", LSTM, {"layers": []}, "names no layer with weights"),
    ("no weighted word", LSTM, {"layers": "relu"}, "names no layer with weights"),
    ("bound relu", LSTM, {"layers": "lstm, relu:act"}, "relu has no weights"),
    ("bound to nothing", LSTM, {"layers": "lstm:rnn"}, "binds a word to 'rnn', where there is no"),
    (
        "bound to several",
        {f"{p}.{k}": v for p in "ab" for k, v in LSTM.items()},
        {"layers": "lstm:lstm, lstm"},
        r"where there are 2 blocks.*expected one of 'a\.lstm', 'b\.lstm'",
    ),
    (
        "bound twice",
        LSTM,
        {"layers": "lstm:lstm, lstm:lstm"},
        "the lstm at 'lstm': it takes rows .*3.*, and is given 5",
    ),
    (
        "bound to another kind",
        MODEL,
        {"layers": "embedding, lstm, linear:lstm"},
        "does not fit these weights: none of them is left that can be 'lstm'",
    ),
    (
        "a word too many",
        MODEL,
        {"layers": WORDS + ", linear"},
        "does not fit these weights: none of them is left that can be 'linear'",
    ),
    (
        "sizes that do not chain",
        LSTM | tensors_of(spec.Linear("x", 6, 7), "fc."),
        {"layers": "lstm, linear"},
        r"the linear at 'fc': it takes rows \(\.\.\., 6\), and is given 5",
    ),
    (
        "tokens in the middle",
        MODEL,
        {"layers": "linear, embedding, lstm"},
        "the embedding at 'emb': it takes one of 7 tokens, and is given numbers",
    ),
    (
        "one_hot late",
        LSTM,
        {"layers": "lstm, one_hot"},
        "one_hot: it takes tokens, and is given 5; it can only come first",
    ),
    (
        "unused",
        MODEL,
        {"layers": "embedding, lstm"},
        r"no layer uses 2 of the 7 tensors(?s:.*)'fc': linear:fc(?s:.*)'fc\.bias': float32",
    ),
    (
        "unused buffer",
        LSTM | {"norm.num_batches_tracked": np.zeros((), np.int64)},
        {},
        r"no layer uses 1 of the 5 tensors(?s:.*)'norm\.num_batches_tracked': int64 \(\)",
    ),
    ("useless ignore", LSTM, {"ignore": "fc.*"}, r"ignore='fc\.\*' matches no tensor"),
    (
        "ignore of what is used",
        LSTM,
        {"ignore": "*bias*"},
        r"ignore= matches 'lstm\.bias_ih_l0', which a layer is made of",
    ),
    (
        "other names",
        {"W_xi": shaped(3, 5), "W_hi": shaped(5, 5), "b_i": shaped(5)},
        {},
        r"no weights under PyTorch's names(?s:.*)'W_hi': float32 \(5, 5\)",
    ),
    (
        "quantised",
        LSTM | {"fc._packed_params._packed_params": "blob"},
        {},
        "quantised module.*before quantising",
    ),
    (
        "a record for a weight",
        without("lstm.weight_hh_l0") | {"lstm.weight_hh_l0": object()},
        {},
        r"'lstm\.weight_hh_l0' is <object.*expected a tensor",
    ),
]


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_refused(source: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        read(source, **arguments)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (None, {}, "source is of type NoneType; expected the path of a checkpoint"),
        ([LSTM], {}, "source is of type list"),
        (b"file.pt", {}, "source is of type bytes"),
        (LSTM, {"layers": 3}, "layers is 3; expected a string"),
        (LSTM, {"layers": ["lstm", 3]}, "layers is"),
        (LSTM, {"prefix": 3}, "prefix is 3; expected a string"),
        (LSTM, {"ignore": None}, "ignore is None; expected a pattern"),
        (LSTM, {"ignore": [b"x"]}, "ignore is"),
        (LSTM, {"vocabulary": "abc"}, "vocabulary is 'abc'; expected a sequence"),
        (LSTM, {"vocabulary": [1, 2]}, "vocabulary is"),
    ],
)
def test_arguments_of_a_wrong_type(source: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read(source, **arguments)


def test_ignored_tensors_are_left_out_and_reported() -> None:
    conversion = read(MODEL, layers="embedding, lstm", ignore="fc.*")
    check(conversion, EMBEDDING, LSTM)
    says(conversion, "not used, as ignore= allows: fc.weight, fc.bias")
    # What is ignored as a whole makes no block, so the rest may be one block alone.
    check(read(MODEL, ignore=["fc.*", "emb.weight"]), LSTM)
    norm = {"fc.weight_g": shaped(7, 1), "fc._packed_params": "blob"}
    check(read(LSTM | norm, ignore="fc.*"), LSTM)


def test_long_lists_are_cut() -> None:
    many = {f"l{n}.weight": shaped(2, 2) for n in range(1000)}
    with pytest.raises(ConvertError, match=r"and 980 more \(1000 in all\)") as caught:
        read(LSTM | many, layers="lstm")
    assert len(str(caught.value)) < 3000
    with pytest.raises(ConvertError, match=r"and 984 more \(1004 in all\)") as caught:
        read(LSTM | many)
    assert len(str(caught.value)) < 3000


def test_a_search_without_end_asks_for_bindings() -> None:
    many = {f"l{n}.weight": shaped(2, 2) for n in range(12)} | {"out.weight": shaped(3, 5)}
    with pytest.raises(ConvertError, match="bind each word"):
        read(many, layers=["linear"] * 13)


def test_messages_name_hostile_keys_safely() -> None:
    with pytest.raises(ConvertError) as caught:
        read(LSTM | {"\x1b[2J\n" * 1000: shaped(2)})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 3000
    conversion = read(LSTM | {"\x1b[2J": shaped(2)}, ignore="*J")
    assert "\x1b" not in "".join(conversion.report)


# --- vocabulary


def test_a_vocabulary_of_the_checkpoint() -> None:
    for key in ("vocabulary", "vocab"):
        conversion = read({"model": MODEL, key: list("abcdefg")}, layers=WORDS)
        assert conversion.vocabulary == tuple("abcdefg")
        says(conversion, f"a vocabulary of 7 strings was read from '{key}'")
    assert read(LSTM).vocabulary is None


@pytest.mark.parametrize("unfit", [list("aabcdef"), [1, 2], "abcdefg", [], {"a": 0}])
def test_what_is_no_vocabulary_is_noted(unfit: object) -> None:
    conversion = read({"model": MODEL, "vocab": unfit}, layers=WORDS)
    assert conversion.vocabulary is None
    if unfit != []:
        says(conversion, "left out, beside the model: 'vocab")


def test_a_vocabulary_that_does_not_fit() -> None:
    conversion = read({"model": MODEL, "vocab": list("abc")}, layers=WORDS)
    assert conversion.vocabulary is None
    says(conversion, "'vocab' of the checkpoint was left out: it has 3 strings", "takes 7 tokens")
    conversion = read({"model": LSTM, "vocab": list("abc")})
    assert conversion.vocabulary is None
    says(conversion, "it has 3 strings, and the model takes no tokens")
    with pytest.raises(ConvertError, match=r"takes no tokens; .*beginning with one_hot"):
        read(LSTM, vocabulary=list("abc"))
    with pytest.raises(ConvertError, match=r"vocabulary has 3 strings, but .* takes 7 tokens"):
        read(MODEL, layers=WORDS, vocabulary=list("abc"))
    with pytest.raises(ConvertError, match="vocabulary holds 7 strings, but only 6 different"):
        read(MODEL, layers=WORDS, vocabulary=list("abcdefa"))


def test_a_vocabulary_given() -> None:
    tree = {"model": MODEL, "vocab": list("abcdefg")}
    conversion = read(tree, layers=WORDS, vocabulary=list("gfedcba"))
    assert conversion.vocabulary == tuple("gfedcba")
    says(conversion, "vocabulary of 7 strings was taken on your word")


# --- files


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"  # told apart by content
    save_file(MODEL, path)
    conversion = read(path, layers=WORDS)
    check(conversion, EMBEDDING, LSTM, LINEAR)
    check(read(str(path), layers=WORDS), EMBEDDING, LSTM, LINEAR)


def test_a_safetensors_file_of_half_precision(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: value.astype(np.float16) for name, value in LSTM.items()}, path)
    says(read(path), "widened from float16 to float32")


def test_a_model_of_our_own_is_not_converted_again(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    fastlstm.convert(LSTM, path)
    with pytest.raises(ConvertError, match=r"is a file of fastlstm's own; .* with fastlstm\.load"):
        read(path)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        read(tmp_path / "nowhere.pt")
    with pytest.raises(IsADirectoryError, match="expected a checkpoint"):
        read(tmp_path)
    for content in (b"", b"{}", b"hello, world", pickle.dumps({"a": 1}), b"\x00" * 100):
        path = tmp_path / "file.pt"
        path.write_bytes(content)
        with pytest.raises(ConvertError, match=r"file\.pt"):
            read(path)


def test_reading_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np; from fastlstm.sources import read; "
        "z = lambda *s: np.zeros(s, 'f4'); "
        "read({'weight_ih_l0': z(8, 3), 'weight_hh_l0': z(8, 2)}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_conversion_error_pickles() -> None:
    with pytest.raises(ConvertError) as caught:
        read({})
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
