"""Words of ``layers=``: each does what torch does, and the manual says what there is."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from word_examples import Example, examples, random_tensors

from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.words import joined, parse

torch: Any = pytest.importorskip("torch")

T, B = 9, 2
MANUAL = Path(__file__).resolve().parents[2] / "docs" / "layers.md"
EXAMPLES = examples()


def outputs(conversion: Conversion, x: Any) -> dict[str, np.ndarray]:
    graph, tensors = conversion.graph, conversion.tensors
    return reference.forward(graph, tensors, {"input": np.asarray(x)}, dtype=np.float64)


def random_input(rng: np.random.Generator, example: Example) -> np.ndarray:
    if example.tokens:
        return rng.integers(0, example.tokens, (T, B))
    return rng.standard_normal((T, B, *example.row))


@pytest.mark.parametrize("word", KINDS)
def test_each_word_is_what_torch_computes(word: str, rng: np.random.Generator) -> None:
    example = EXAMPLES[word]
    tensors, x = random_tensors(example, rng), random_input(rng, example)
    made = outputs(read(tensors, layers=example.words, dtype="float64"), x)["output"]
    w = {name: torch.from_numpy(value) for name, value in tensors.items()}
    right = example.right(torch.from_numpy(x), w, torch.nn.functional).numpy()
    assert made.shape == right.shape
    np.testing.assert_allclose(made, right, rtol=1e-9, atol=1e-10)


def test_words_make_every_kind_of_layer() -> None:
    kinds = set()
    for example in EXAMPLES.values():
        tensors = random_tensors(example, np.random.default_rng(0))
        kinds |= {n.layer.kind for n in read(tensors, layers=example.words).graph.nodes}
    assert kinds == set(spec.KINDS)


def row_of_manual(word: str) -> str:
    cells = (f"`{KINDS[word].signature}`", KINDS[word].says, f"`{EXAMPLES[word].words}`")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def test_the_manual_has_every_word_and_no_other() -> None:
    lines = MANUAL.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert sorted(rows) == sorted(map(row_of_manual, KINDS))


def test_words_are_written_as_they_are_read() -> None:
    for example in EXAMPLES.values():
        words = parse(example.words)
        assert parse(joined(words)) == words
    for text in ("[ | linear:a], add", "[[a:b | c:d] | e:f]"):
        if "linear" in text:
            assert joined(parse(text)) == "[ | linear:a], add"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("lstm, liner", r"holds 'liner', which is no word; is it 'linear'"),
        ("lstm, leakyrelu", "is it 'leaky_relu'"),
        ("conv1d(paddding=2)", r"with 'paddding=2'; is it 'padding'\? Expected conv1d\(stride=1"),
        ("elu(alpha=x)", "with alpha='x'; expected a number"),
        ("elu(1, 2)", r"with '2'; is it|with '2' Expected elu"),
        ("elu(1, alpha=2)", "says alpha twice"),
        ("conv1d(stride=1.5)", "expected an integer, or one for each axis"),
        ("conv1d(padding=-1)", "expected an integer, 'causal', 'same'"),
        ("lstm(reverse=1)", "expected true or false"),
        ("reshape()", "expected numbers, as in reshape"),
        ("clip, linear", r"does not say its min; expected clip\(min, max\)"),
        ("multiply, linear", r"does not say by what; expected a number, multiply\(2.0\)"),
        ("multiply(2):in_scale", "expected a number or a tensor"),
        ("multiply:in_scal", "there is no tensor; expected one of 'in_scale'"),
        ("relu:act", "relu has no weights"),
        ("linear:fc(bias=true)", "parameters stand before the colon"),
        ("elu(1.0", "leaves a parenthesis open"),
        ("[linear", "leaves a bracket open"),
        ("linear]", "where no branches are open"),
        ("linear | relu", "where no branches are open"),
        ("[" * 17 + "relu" + "]" * 17, "more than 16 brackets"),
        ("linear [relu | tanh], add", r"right before a '\['; expected a comma"),
        ("[relu | tanh] add", r"right behind a '\]'; expected a comma"),
        ("linear, , relu", "holds '', which is no word"),
        ("linear,", "holds '', which is no word"),
        ("linear, ?, relu", "expected in its place what forward computes there"),
        ("[linear | identity], relu", "behind 2 branches, and it takes one row; join them"),
        ("[linear | identity], multiply(2)", "expected multiply alone, which joins them"),
        ("[linear | identity | relu], divide", "behind 3 branches; expected two"),
        ("[linear | identity]", "expected each branch at the end to hold a layer of its own"),
        ("linear, concatenate", "expected branches before it"),
        ("linear, where", "expected three branches"),
        ("flatten, linear", r"begin it with input\(...\)"),
        ("linear, input(3)", "expected it first"),
        ("input(0), linear", "expected it first, with positive sizes"),
        ("input, linear", "expected it first, with positive sizes"),
        ("linear, reshape(3, 3)", "does not fit these weights: reshape"),
        ("linear, permute(1, 0)", "does not fit these weights: permute"),
        ("linear, features(9, 12)", "takes no number of 4"),
        ("linear, glu(dim=0), glu, glu", "it halves axis -1, and is given 1"),
        ("linear, softmax(dim=1)", "it goes over axis 1, and is given 4"),
        ("linear, max_pool1d", "does not say its kernel_size"),
        ("linear, max_pool2d(2)", "one of which may be time, and is given 4"),
        ("linear, max_pool1d(2, padding=same, stride=2)", "PyTorch has it for a stride of 1 only"),
        ("linear, instance_norm", "it would go over all steps of a sequence"),
        ("linear, pad(1, 1, mode=mirror)", "mode constant, reflect, replicate, circular"),
        ("linear, pad(9, 1, mode=reflect)", r"it pads by \(9, 1\), and is given 4"),
        ("linear, constant", "expected constant:name"),
        (["relu"] * 4097, "at most 4096"),
    ],
    ids=str,
)
def test_words_that_are_refused(layers: Any, message: str) -> None:
    tensors = {"fc.weight": np.ones((4, 4)), "fc.bias": np.ones(4), "in_scale": np.ones(4)}
    with pytest.raises(ConvertError, match=message):
        read(tensors, layers=layers)


@given(st.text(st.sampled_from("lstmeu(),:[]|=.?- 1x\\n\u00e9"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConvertError):
        words = parse(text)
        assert parse(joined(words)) == words


@given(st.lists(st.sampled_from([*KINDS, "[", "|", "]", ","]), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_words_make_a_model_or_are_refused(words: list[str]) -> None:
    text = "input(2, 3), " + ", ".join(words).replace("[,", "[").replace(", |,", " |")
    tensors = {"fc.weight": np.ones((3, 3)), "norm.weight": np.ones(2), "norm.bias": np.ones(2)}
    with contextlib.suppress(ConvertError):
        read(tensors, layers=text, ignore=["fc.*"])


def test_a_word_of_a_list_may_have_any_path() -> None:
    tensors = {"a, b.weight": np.ones((4, 4)), "c(1): d": np.full(4, 2.0)}
    conversion = read(tensors, layers=["linear:a, b", "[multiply:c(1): d | relu]", "add"])
    x = np.ones((1, 1, 4))
    np.testing.assert_array_equal(outputs(conversion, x)["output"], np.full((1, 1, 4), 12.0))
    assert "c(1): d" in conversion.tensors


def test_several_outputs() -> None:
    tensors = {f"{name}.weight": np.full((n, 3), n) for name, n in (("value", 1), ("action", 2))}
    conversion = read(
        {n: w.astype("f4") for n, w in tensors.items()},
        layers="[linear:value | linear:action, relu]",
    )
    assert conversion.graph.outputs == {"value": "value", "relu": "relu"}
    made = outputs(conversion, np.ones((1, 1, 3)))
    assert made["value"].ravel().tolist() == [3.0]
    assert made["relu"].ravel().tolist() == [6.0, 6.0]


def test_branches_of_branches(rng: np.random.Generator) -> None:
    tensors = {"a.weight": rng.standard_normal((3, 3)), "b.weight": rng.standard_normal((3, 3))}
    x = rng.standard_normal((T, B, 3))
    conversion = read(
        tensors, layers="[[linear:a | identity], add, tanh | linear:b], multiply", dtype="float64"
    )
    a, b = (x @ tensors[f"{name}.weight"].T for name in "ab")
    np.testing.assert_allclose(outputs(conversion, x)["output"], np.tanh(a + x) * b, atol=1e-12)


def test_weights_that_run_twice(rng: np.random.Generator) -> None:
    tensors = {"fc.weight": rng.standard_normal((3, 3)), "fc.bias": rng.standard_normal(3)}
    x = rng.standard_normal((T, B, 3))
    conversion = read(tensors, layers="linear:fc, tanh, linear:fc", dtype="float64")
    assert sorted(conversion.tensors) == ["fc.bias", "fc.weight"]

    def linear(x: Any) -> Any:
        return x @ tensors["fc.weight"].T + tensors["fc.bias"]

    right = linear(np.tanh(linear(x)))
    np.testing.assert_allclose(outputs(conversion, x)["output"], right, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "row"), [((4,), (4,)), ((1, 1, 4), (4,)), ((1, 4, 1), (4,)), ((), (4,)), ((1,), (4,))]
)
def test_a_tensor_fits_into_a_step(shape: tuple[int, ...], row: tuple[int, ...]) -> None:
    tensors = {"fc.weight": np.eye(4), "scale": np.full(shape, 3.0)}
    conversion = read(tensors, layers="linear:fc, scale:scale")
    np.testing.assert_array_equal(
        outputs(conversion, np.ones((1, 1, *row)))["output"], [[[3.0] * 4]]
    )


@pytest.mark.parametrize("shape", [(3,), (2, 4), (4, 4)])
def test_a_tensor_that_does_not_fit_into_a_step(shape: tuple[int, ...]) -> None:
    tensors = {"fc.weight": np.eye(4), "scale": np.ones(shape)}
    with pytest.raises(ConvertError, match=r"'scale' has shape .*, and each step here is 4"):
        read(tensors, layers="linear:fc, scale:scale")


def test_groups_are_said() -> None:
    tensors = {"conv.weight": np.ones((4, 1, 3)), "conv.bias": np.ones(4)}
    conversion = read(tensors, layers="conv1d(groups=4):conv")
    assert conversion.graph.inputs[0].shape == (4,)
    with pytest.raises(ConvertError, match="groups=4 would fit"):
        read(tensors, layers="input(4), conv1d:conv")


def test_a_recurrence_backwards(rng: np.random.Generator) -> None:
    tensors = random_tensors(EXAMPLES["gru"], rng)
    x = rng.standard_normal((T, B, 4))
    forward = outputs(read(tensors, dtype="float64"), x[::-1])["output"]
    conversion = read(tensors, layers="gru(reverse=true)", dtype="float64")
    np.testing.assert_array_equal(outputs(conversion, x)["output"], forward[::-1])


def test_two_words_for_a_nonlinearity() -> None:
    tensors = {"weight_ih_l0": np.ones((4, 3)), "weight_hh_l0": np.ones((4, 4))}
    with pytest.raises(ConvertError, match=r"'tanh' was given, but layers= says rnn\(relu\)"):
        read(tensors, layers="rnn(relu)", nonlinearity="tanh")


def test_a_residual_of_some_features_around_a_recurrence(rng: np.random.Generator) -> None:
    """The first example of the manual."""
    words = "[lstm, linear | features(0, 1)], add"
    assert f'layers="{words}"' in MANUAL.read_text(encoding="utf-8")
    lstm, linear = torch.nn.LSTM(3, 8).double(), torch.nn.Linear(8, 1).double()
    source = {f"rec.{name}": value for name, value in lstm.state_dict().items()}
    source |= {f"lin.{name}": value for name, value in linear.state_dict().items()}
    x = torch.from_numpy(rng.standard_normal((T, B, 3)))
    right = linear(lstm(x)[0]) + x[..., :1]
    made = outputs(read(source, layers=words, dtype="float64"), x)["output"]
    np.testing.assert_allclose(made, right.detach().numpy(), atol=1e-12)
