"""Files that are no recipe, each refused by the exact message that names the key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources import read
from fastlstm.sources.recipe import read_recipe

RNN = """
[[layer]]
kind = "rnn"
input_weight = "w"
hidden_weight = "u"
bias = "b"
nonlinearity = "tanh"
"""
LSTM = """
[[layer]]
kind = "lstm"
input_weight = { ifgo = "w" }
hidden_weight = { ifgo = "u" }
bias = 0
"""
GRU = """
[[layer]]
kind = "gru"
input_weight = { rzn = "w" }
hidden_weight = { rzn = "u" }
bias = 0
reset_after = false
z_multiplies = "h"
"""
WEIGHTS = {"w": np.ones((3, 2)), "u": np.ones((3, 3)), "b": np.ones(3)}
GATES = "i (input), f (forget), g (candidate), o (output)"
KIND_WORDS = "embedding, linear, lstm, gru, rnn, or a word of layers="

RECIPES: list[tuple[str, str, str]] = [
    ("empty", "", "there is no [[layer]]; expected one such table for each layer"),
    ("no table", "layer = 3", "there is no [[layer]]; expected one such table for each layer"),
    ("one table", '[layer]\nkind="lstm"', "there is no [[layer]]; expected one such table for "
     "each layer"),
    ("no layers", "layer = []", "no layer names a tensor; expected at least one that does"),
    ("no tensors", '[[layer]]\nkind="relu"', "no layer names a tensor; expected at least one that "
     "does"),
    ("unknown top key", "layers = 3" + LSTM, "unknown key 'layers'; expected description, "
     "ordered and [[layer]] tables"),
    ("description", "description = 3" + LSTM, "description is 3; expected a string"),
    ("no kind", '[[layer]]\nname="a"', f"layer 1 has no kind; expected one of {KIND_WORDS}"),
    ("kind of a wrong type", "[[layer]]\nkind=3", "layer 1: kind is 3; expected a string of some "
     "length"),
    ("unknown key", RNN + "gates = 3", "layer 1 (rnn): unknown key 'gates'; expected keys out of "
     "bias, bidirectional, clip, concatenated, cudnn, directions, hidden_bias, hidden_weight, "
     "initial_state, input_bias, input_weight, kind, layers, name, nonlinearity, reverse, "
     "transposed, weight"),
    ("key of another kind", '[[layer]]\nkind="relu"\nbias=0', "layer 1 (relu): unknown key "
     "'bias'; expected keys out of kind, name"),
    ("no bias", LSTM.replace("bias = 0", ""), "layer 1 (lstm): input_bias is missing; expected "
     "either bias, or input_bias and hidden_bias"),
    ("half a bias", LSTM.replace("bias = 0", "input_bias = 0"), "layer 1 (lstm): hidden_bias is "
     "missing; no bias is said as 0"),
    ("three biases", LSTM + "hidden_bias = 0", "layer 1 (lstm): both ways are said; expected "
     "either bias, or input_bias and hidden_bias"),
    ("both weights", LSTM + 'weight = { ifgo = "v" }', "layer 1 (lstm): both ways are said; "
     "expected either weight and concatenated, or input_weight and hidden_weight"),
    ("no weights", '[[layer]]\nkind="lstm"\nbias=0', "layer 1 (lstm): input_weight is missing; "
     "expected either weight and concatenated, or input_weight and hidden_weight"),
    ("half the weights", '[[layer]]\nkind="lstm"\nbias=0\nhidden_weight={ifgo="w"}',
     "layer 1 (lstm): input_weight is missing"),
    ("not how concatenated", '[[layer]]\nkind="lstm"\nbias=0\nweight={ifgo="w"}',
     "layer 1 (lstm): concatenated is missing"),
    ("concatenated how", '[[layer]]\nkind="lstm"\nbias=0\nweight={ifgo="w"}\nconcatenated="hc"',
     "layer 1 (lstm): concatenated is 'hc'; expected one of xh, hx"),
    ("a gate missing", LSTM.replace('ifgo = "w"', 'i = "a", fg = "b"'),
     f"layer 1 (lstm): gate 'o' is missing in input_weight; expected each of {GATES}"),
    ("an unknown gate", LSTM.replace('ifgo = "w"', 'ifco = "w"'),
     f"layer 1 (lstm): input_weight has gate 'c', which is unknown; expected each once of {GATES}"),
    ("a gate without a name", LSTM.replace('ifgo = "w"', 'ifgo = "w", "" = "v"'),
     f"layer 1 (lstm): input_weight has gate '', which is unknown; expected each once of {GATES}"),
    ("a gate twice", LSTM.replace('ifgo = "u"', 'ifg = "u", go = "v"'),
     f"layer 1 (lstm): hidden_weight has gate 'g', twice; expected each once of {GATES}"),
    ("a gate of another cell", GRU.replace('rzn = "w"', 'rzh = "w"'),
     "layer 1 (gru): input_weight has gate 'h', which is unknown; expected each once of r (reset), "
     "z (update), n (candidate)"),
    ("gates not told", LSTM.replace('{ ifgo = "w" }', '"w"'),
     "layer 1 (lstm): input_weight is 'w'; expected a table from gates to tensors, { i = \"...\", "
     "f = \"...\", g = \"...\", o = \"...\" }, or stacked, { ifgo = \"...\" }"),
    ("a table for one gate", RNN.replace('"w"', '{ h = "w" }'),
     "layer 1 (rnn): input_weight is {'h': 'w'}; expected the name of a tensor"),
    ("a weight of zeros", LSTM.replace('"w"', "0"),
     "layer 1 (lstm): input_weight.ifgo is 0; expected the name of a tensor"),
    ("a bias of ones", LSTM.replace("bias = 0", "bias = { ifgo = 1 }"),
     "layer 1 (lstm): bias.ifgo is 1; expected the name of a tensor, or 0 for zeros"),
    ("a bias of false", RNN.replace('bias = "b"', "bias = false"),
     "layer 1 (rnn): bias is False; expected the name of a tensor, or 0 for zeros"),
    ("an empty name", RNN.replace('"w"', '""'),
     "layer 1 (rnn): input_weight is ''; expected the name of a tensor"),
    ("a tensor twice", LSTM.replace('"u"', '"w"'),
     "tensor 'w' is named twice, in input_weight of layer 1 (lstm) and in hidden_weight of layer 1 "
     "(lstm); expected a tensor of its own for each"),
    ("a tensor of two gates", LSTM.replace('ifgo = "w"', 'if = "w", go = "w"'),
     "tensor 'w' is named twice, in input_weight of layer 1 (lstm) and in input_weight of layer 1 "
     "(lstm); expected a tensor of its own for each"),
    ("a tensor in two layers", RNN + '[[layer]]\nkind="linear"\nweight="u"\nbias=0',
     "tensor 'u' is named twice, in hidden_weight of layer 1 (rnn) and in weight of layer 2 "
     "(linear); expected a tensor of its own for each"),
    ("no bias of a linear", '[[layer]]\nkind="linear"\nweight="u"',
     "layer 1 (linear): bias is missing; no bias is said as 0"),
    ("no weight of a table", '[[layer]]\nkind="embedding"',
     "layer 1 (embedding): weight is missing"),
    ("transposed", LSTM + 'transposed = "yes"',
     "layer 1 (lstm): transposed is 'yes'; expected true or false"),
    ("no reset", GRU.replace("reset_after = false", ""), "layer 1 (gru): reset_after is missing"),
    ("reset", GRU.replace("false", '"before"'),
     "layer 1 (gru): reset_after is 'before'; expected true or false"),
    ("no update", GRU.replace('z_multiplies = "h"', ""), "layer 1 (gru): z_multiplies is missing"),
    ("update", GRU.replace('"h"', '"old"'),
     "layer 1 (gru): z_multiplies is 'old'; expected one of h, n"),
    ("the side of a bias", GRU.replace("false", "true"),
     "layer 1 (gru): bias does not tell on which side of r the bias of n is, which matters where "
     "reset_after is true; expected input_bias and hidden_bias, one of which may be 0"),
    ("nonlinearity", RNN.replace("tanh", "softmax"),
     "layer 1 (rnn): nonlinearity: function is 'softmax'; expected one of "
     + ", ".join(spec.PARAMETERS)),
    ("nonlinearity of a wrong type", RNN.replace('"tanh"', "3"),
     "layer 1 (rnn): nonlinearity is 3; expected a string of some length"),
    ("activations", LSTM + 'activations = ["tanh"]',
     "layer 1 (lstm): activations is ('tanh',); expected 3 functions, of the gates, of the "
     "candidate, of c"),
    ("activations of a wrong type", LSTM + 'activations = "tanh"',
     "layer 1 (lstm): activations is 'tanh'; expected a list of texts"),
    ("name", LSTM + 'name = ""', "layer 1 (lstm): name is ''; expected a string of some length"),
    ("directions of one", LSTM + 'directions = ["l"]',
     "layer 1 (lstm): directions is ['l']; expected a list of 2 different strings"),
    ("directions alike", LSTM + 'directions = ["l", "l"]',
     "layer 1 (lstm): directions is ['l', 'l']; expected a list of 2 different strings"),
    ("directions nowhere", LSTM + 'directions = ["l", "r"]',
     "layer 1 (lstm): directions and {direction} in the names go together; expected both or "
     "neither"),
    ("directions not told", RNN.replace('"w"', '"w{direction}"').replace('"u"', '"u{direction}"')
     .replace('"b"', '"b{direction}"'),
     "layer 1 (rnn): directions and {direction} in the names go together; expected both or "
     "neither"),
    ("half a stack", RNN.replace('"u"', '"u{layer}"'),
     "layer 1 (rnn): tensor 'u{layer}' has {layer} in its name, but 'w' not; expected it in all "
     "names of a layer or in none"),
    ("no layers for a name", RNN + 'layers = ["a"]',
     "layer 1 (rnn): layers and {layer} in the names go together; expected both or neither"),
    ("lists of other lengths", RNN.replace('"w"', '["w", "v"]').replace('"u"', '["u", "t"]'),
     "layer 1 (rnn): there are 2 names in a list and 1 in another; expected as many in each, one "
     "for each layer of the stack and direction"),
    ("an odd list of two directions", RNN.replace('"w"', '["w", "v", "x"]')
     .replace('"u"', '["u", "t", "s"]').replace('"b"', '["b", "c", "d"]') + "bidirectional = true",
     "layer 1 (rnn): there are lists of 3 names; expected two for each layer, as bidirectional is "
     "true"),
    ("bidirectional of one name", RNN + "bidirectional = true",
     "layer 1 (rnn): bidirectional is true; expected lists of names, one for each direction, or "
     "directions instead"),
    ("two directions in two ways", RNN + 'bidirectional = true\ndirections = ["a", "b"]',
     "layer 1 (rnn): both directions and bidirectional are said; expected one of them"),
    ("reverse of two directions", RNN.replace('"w"', '"{direction}w"')
     .replace('"u"', '"{direction}u"').replace('"b"', '"{direction}b"')
     + 'directions = ["f", "b"]\nreverse = true',
     "layer 1 (rnn): reverse is True; expected false where bidirectional is true"),
    ("a state of an RNN", RNN + 'initial_state = { h = "h0", c = "c0" }',
     "layer 1 (rnn): initial_state is {'h': 'h0', 'c': 'c0'}; expected { h = \"...\" }, the name "
     "of a tensor each, or 0 for zeros"),
    ("half a state", LSTM + 'initial_state = { h = "h0" }',
     "layer 1 (lstm): initial_state is {'h': 'h0'}; expected { h = \"...\", c = \"...\" }, the "
     "name of a tensor each, or 0 for zeros"),
    ("a peephole of the candidate", LSTM + 'peephole = { ifgo = "p" }',
     "layer 1 (lstm): peephole has gate 'g', which is unknown; expected of i, f, o each once of "
     f"{GATES}"),
    ("a forget gate of a coupled cell", LSTM + "coupled = true",
     "layer 1 (lstm): input_weight has gate 'f', which is unknown; expected each once of "
     f"{GATES}"),
    ("a forget bias of a coupled cell", LSTM.replace("ifgo", "igo")
     + "coupled = true\nforget_bias = 1",
     "layer 1 (lstm): forget_bias of a coupled cell; expected none: it has no gate f"),
    ("forget bias", LSTM + 'forget_bias = "1"',
     "layer 1 (lstm): forget_bias is '1'; expected a number"),
    ("clip", LSTM + "clip = -1", "layer 1 (lstm): clip is -1; expected a finite number of at least "
     "0"),
    ("a norm of none", LSTM + 'norm_weight = { ifgo = "n" }',
     "layer 1 (lstm): norm_weight with layer_norm None; expected layer_norm, 'gate', 'product', to "
     "say that"),
    ("a norm without its weights", LSTM + 'layer_norm = "product"',
     "layer 1 (lstm): norm_input_weight is missing"),
    ("a norm", LSTM + 'layer_norm = "all"',
     "layer 1 (lstm): layer_norm is 'all'; expected one of gate, product"),
    ("a negated gate of another function", GRU.replace('"h"', '"n"')
     + 'activations = ["tanh", "tanh"]',
     "layer 1 (gru): z_multiplies is 'n'; expected 'h' with these activations: 1 - z is what makes "
     "z, negated, of sigmoid and of hard_sigmoid(..., 0.5) only"),
    ("ordered", "ordered = 1" + LSTM, "ordered is 1; expected true or false"),
    ("a layer of no tensors in no order", "ordered = false" + LSTM + '[[layer]]\nkind="relu"',
     "layer 2 (relu) names no tensor, and ordered is false; expected the kinds of layers that have "
     "some: layers= says what lies between"),
    ("a word whose tensors are 0", '[[layer]]\nkind="layer_norm"\nbias=0', "layer 1 (layer_norm): "
     "all of its tensors are 0; expected the name of one"),
    ("many layers", '[[layer]]\nkind="relu"\n' * 257, "it has 257 layers; at most 256 are read"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"), [case[1:] for case in RECIPES], ids=[case[0] for case in RECIPES]
)
def test_recipes_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConvertError) as caught:
        read_recipe(path)
    assert str(caught.value) == f"recipe {str(path)!r}: {message}"


@pytest.mark.parametrize(
    "content",
    [
        b"[[layer]",
        b"\xff\xfe",
        b"a = " + b"[" * 60_000,
        b"a = " + b"9" * 60_000,
        b'a = 1\na = "twice"',
    ],
    ids=["cut", "not UTF-8", "nested", "digits", "twice"],
)
def test_files_that_are_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(
        ConvertError, match=r"a\.toml': (it is not TOML: |unknown key 'a'; expected)"
    ):
        read_recipe(path)


@pytest.mark.parametrize(
    "content",
    [
        "a." * 32 + "a = 1",
        "a." * 30_000 + "a = 1",
        '\'a\' . \t"\\"=." . ' * 16 + "a = 1",
        "[[" + "layer." * 32 + "layer]]",
        'layer = [{ a = "", ' + "a ." * 32 + "a = 1 }]",
        'b = """"#"""\n' + "a." * 32 + "a = 1",
    ],
    ids=["key", "long key", "quotes", "table", "inline", "after a string"],
)
def test_keys_of_many_parts(tmp_path: Path, content: str) -> None:
    """Their number is told before they are read: 30,000 would take gigabytes."""
    path = tmp_path / "a.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConvertError, match=r"a\.toml': a key has more than 32 parts; expected few"):
        read_recipe(path)


def test_dots_of_names_and_notes_are_no_parts_of_keys(tmp_path: Path) -> None:
    dots = "a." * 100
    path = tmp_path / "a.toml"
    path.write_text(
        f'# {dots} "\ndescription = """{dots}\\""""\n'
        + RNN.replace('"w"', f'"{dots}"').replace('"u"', f"'{dots}u'")
        + f'name = "a#" # {dots}\n',
        encoding="utf-8",
    )
    recipe = read_recipe(path)
    assert recipe.description == f'{dots}"'
    assert recipe.entries[0].tensors["input_weight"][0].names == (dots,)


def test_a_word_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[[layer]]\nkind="conv"', encoding="utf-8")
    with pytest.raises(ConvertError, match=r"layer 1: kind is 'conv': .*'conv1d'"):
        read_recipe(path)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")
    with pytest.raises(IsADirectoryError):
        read_recipe(tmp_path)
    large = tmp_path / "large.toml"
    large.write_text(LSTM + "#" * 2**16, encoding="utf-8")
    with pytest.raises(ConvertError, match="is no regular file of at most 65536 bytes; expected a"):
        read_recipe(large)
    with pytest.raises(ConvertError, match="is no regular file of at most"):
        read_recipe("/dev/zero")


def test_an_unknown_name_lists_the_built_in_ones() -> None:
    names = (
        "assignment6, d2l, d2l-gru, d2l-gru-list, d2l-list, d2l-rnn, d2l-rnn-list, gluon, "
        "gluon-gru, gluon-rnn, keras, keras-cudnn, keras-hard-sigmoid, keras3, tf1, torch_ema, "
        "two-linear, two-linear-gru, two-linear-rnn"
    )
    for name in ("d3l", "", "d2l\n", "..", "__init__"):
        with pytest.raises(ConvertError) as caught:
            read(WEIGHTS, recipe=name)
        assert str(caught.value) == (
            f"there is no recipe {name!r}; expected one of {names}, or the path of a file that "
            f"ends in .toml"
        )
    with pytest.raises(ConvertError, match=f"recipe= for a cell written by hand .*{names}"):
        read(WEIGHTS)


def test_a_recipe_of_a_wrong_type() -> None:
    for recipe in (3, ["d2l"]):
        with pytest.raises(TypeError, match="expected a name or the path of a TOML file"):
            read(WEIGHTS, recipe=recipe)
