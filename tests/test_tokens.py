"""Token models: tokenising, perplexity, generation, each alone and of several texts together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import ChainFile, build, chain_of, model_file, random_tensors, recurrent

import fastlstm
from fastlstm import Model, Stream, generation, tokens

VOCABULARY = ("<unk>", " ", *"abcdefgh", "ab", "abc")
V = len(VOCABULARY)


def layers_of(cell: str = "gru", *last: spec.Layer) -> tuple[spec.Layer, ...]:
    return (
        spec.Embedding("embedding", V, 7),
        recurrent(cell, 7, 11, num_layers=2),
        spec.Linear("head", 11, V),
        *last,
    )


def token_model(
    rng: np.random.Generator, *last: spec.Layer, cell: str = "gru", **options: Any
) -> Model:
    """Logits far enough apart to tell tokens, near enough for all of them to come."""
    layers = layers_of(cell, *last)
    dtype = options.pop("dtype", np.float32)
    tensors = {name: 3 * tensor for name, tensor in random_tensors(layers, rng, dtype).items()}
    return Model(ChainFile(layers, tensors, vocabulary=VOCABULARY), **options)


def with_logits(*logits: float) -> Model:
    """A model that gives the same logits after every token."""
    n = len(logits)
    file = model_file((spec.Embedding("e", n, 1), spec.Linear("head", 1, n)))
    tensors = {
        "e.weight": np.zeros((n, 1), np.float32),
        "head.weight": np.zeros((n, 1), np.float32),
        "head.bias": np.array(logits, np.float32),
    }
    return Model(ChainFile(file.layers, tensors))


@pytest.fixture
def model(rng: np.random.Generator) -> Model:
    return token_model(rng)


def exact_log_probabilities(logits: np.ndarray) -> np.ndarray:
    """In extended precision, with no shift: for logits that are not large."""
    p = np.exp(logits.astype(np.longdouble))
    return np.log(p / p.sum(axis=-1, keepdims=True))


# Tokenising


class TestTokenise:
    def test_takes_the_longest_string(self):
        """Not the best cut; an empty string never fits."""
        assert tokens.tokenise("abab", ["", "a", "aba", "b"]) == ([2, 3], [])
        assert tokens.tokenise("", ["a"]) == ([], [])

    def test_unknown_characters(self):
        assert tokens.tokenise("aZ\x1bZ", ["<unk>", "a"]) == ([1, 0, 0, 0], ["Z", "\x1b"])
        message = (
            "character 'Z' at index 1 of the text is not in the vocabulary, which has no '<unk>' "
            "either; expected text made of its 2 strings"
        )
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            tokens.tokenise("aZ", ["a", "b"])
        assert str(caught.value) == message

    def test_public_functions_warn_of_them(self, model):
        note = "not in the vocabulary, read as '<unk>': 'Z', 'X'$"
        with pytest.warns(UserWarning, match=note) as caught:
            known = fastlstm.generate(model, ["aZ", "XZ"], length=3, seed=0)
        assert caught[0].filename == __file__
        assert known == fastlstm.generate(model, ["a<unk>", "<unk><unk>"], length=3, seed=0)
        with pytest.warns(UserWarning, match=note) as caught:
            fastlstm.perplexity(model, ["aZ", "XZ"])
        assert caught[0].filename == __file__

    def test_a_note_is_short(self):
        note = tokens.unknown_note([chr(0x4E00 + n) for n in range(3000)])
        assert len(note) < 200
        assert note.endswith(" and 2980 more")


# Perplexity


class TestPerplexity:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_is_the_definition(self, rng, isa, dtype):
        options = {"isa": isa} if dtype == np.float32 else {}
        model = token_model(rng, dtype=dtype, **options)
        given = rng.integers(0, V, 200)
        logits, _ = model(given)
        seen = exact_log_probabilities(logits)[np.arange(199), given[1:]]
        assert fastlstm.perplexity(model, given) == pytest.approx(
            float(np.exp(-seen.mean())), rel=1e-6 if dtype == np.float32 else 1e-12
        )

    def test_against_torch(self, rng, model):
        torch = pytest.importorskip("torch")
        from models import torch_forward

        given = rng.integers(0, V, 300)
        logits, _ = torch_forward(chain_of(model), model.tensors, given, dtype="float64")
        loss = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits[:-1]), torch.from_numpy(given[1:])
        )
        found = fastlstm.perplexity(model, given.tolist())
        assert found == pytest.approx(math.exp(float(loss)), rel=1e-5)

    @pytest.mark.parametrize("function", ["softmax", "log_softmax"])
    def test_of_probabilities(self, rng, model, function):
        last = spec.Activation("last", function, V)
        same = Model(ChainFile((*chain_of(model), last), model.tensors, vocabulary=VOCABULARY))
        text = "abcab hgf abc"
        assert fastlstm.perplexity(same, text) == pytest.approx(
            fastlstm.perplexity(model, text), rel=1e-5
        )

    def test_in_blocks_of_any_length(self, rng, model, monkeypatch):
        given = rng.integers(0, V, 100)
        whole = fastlstm.perplexity(model, given)
        for outputs in (1, V, 7 * V, 99 * V, 100 * V):
            monkeypatch.setattr(tokens, "BLOCK_OUTPUTS", outputs)
            assert fastlstm.perplexity(model, given) == pytest.approx(whole, rel=1e-14)

    def test_a_block_is_bounded(self, rng, model, monkeypatch):
        monkeypatch.setattr(tokens, "BLOCK_OUTPUTS", 5 * V)
        longest = []
        run = Stream.run
        monkeypatch.setattr(
            Stream, "run", lambda self, x: longest.append(len(x)) or run(self, x), raising=False
        )
        fastlstm.perplexity(model, rng.integers(0, V, 23))
        assert longest == [5, 5, 5, 5, 2]

    def test_of_several_is_over_all_their_tokens(self, rng, model):
        texts = [rng.integers(0, V, n).tolist() for n in (2, 50, 17)]
        logs = [(len(t) - 1) * math.log(fastlstm.perplexity(model, t)) for t in texts]
        together = fastlstm.perplexity(model, texts)
        assert together == pytest.approx(math.exp(sum(logs) / 66), rel=1e-12)
        assert fastlstm.perplexity(model, [texts[1]]) == fastlstm.perplexity(model, texts[1])

    def test_of_text(self, model):
        assert fastlstm.perplexity(model, "abc ab") == fastlstm.perplexity(model, [11, 1, 10])
        assert fastlstm.perplexity(model, ["abc ab", "ha"]) == fastlstm.perplexity(
            model, [[11, 1, 10], [9, 2]]
        )

    def test_extremes(self):
        uniform = with_logits(0, 0, 0, 0)
        assert fastlstm.perplexity(uniform, [0, 3, 2]) == pytest.approx(4, rel=1e-15)
        certain = with_logits(1000, -1000)
        assert fastlstm.perplexity(certain, [1, 0, 0, 0]) == 1
        assert fastlstm.perplexity(certain, [0, 1]) == math.inf  # exp(2000) in float64
        never = with_logits(0, -math.inf)
        assert fastlstm.perplexity(never, [0, 1]) == math.inf
        assert fastlstm.perplexity(never, [1, 0]) == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "a",
                "the text is a single token; expected at least 2, for the first has no prediction",
            ),
            (
                ["ab a", "ab"],
                "texts[1] is a single token; expected at least 2, for the first has no prediction",
            ),
            ([], "the text is empty; expected at least one token"),
            ([1, 2, V], f"token {V} at index 2 of the text is out of range; the model knows tokens "
             f"0 to {V - 1}"),
            ([[1, 2], [-1, 1]], "token -1 at index 0 of texts[1] is out of range; the model knows "
             f"tokens 0 to {V - 1}"),
        ],
    )  # fmt: skip
    def test_refuses(self, model, text, message):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            fastlstm.perplexity(model, text)
        assert str(caught.value) == message


# Generation


def naive(
    model: Model,
    prompt: list[int],
    *,
    length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> list[int]:
    """The same in the plainest words: the whole sequence again for every token."""
    rng = np.random.default_rng(seed)
    known = list(prompt)
    for _ in range(length):
        logits = model(np.array(known))[0][-1].astype(np.float64)
        ranked = sorted(range(V), key=lambda token: -logits[token])
        shares = np.exp((logits - logits.max()) / temperature)
        kept = ranked if top_k is None else ranked[:top_k]
        if top_p is not None:
            total, enough = sum(shares[t] for t in kept), 0.0
            for n, token in enumerate(kept):
                enough += shares[token]
                if enough >= top_p * total:
                    kept = kept[: n + 1]
                    break
        point = rng.random() * sum(shares[t] for t in kept)
        for token in sorted(kept):
            point -= shares[token]
            if point < 0:
                break
        known.append(token)
    return known[len(prompt) :]


class TestGenerate:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize(
        ("top_k", "top_p"), [(None, None), (4, None), (None, 0.7), (5, 0.6), (1, None), (99, 1.0)]
    )
    def test_is_the_definition(self, model, temperature, top_k, top_p):
        options = {"length": 30, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        found = fastlstm.generate(model, [3, 1, 4], seed=7, **options)
        assert found == naive(model, [3, 1, 4], seed=7, **options)
        assert all(type(token) is int for token in found)

    def test_greedy(self, rng, isa):
        model = token_model(rng, isa=isa)
        expected = [3, 5]
        for _ in range(15):
            y, _ = model(np.array(expected))
            expected.append(int(y[-1].argmax()))
        for options in ({"seed": 1}, {"top_k": 3, "top_p": 0.2}):
            found = fastlstm.generate(model, [3, 5], length=15, temperature=0, **options)
            assert found == expected[2:]

    def test_samples_the_distribution(self):
        """Token 1 with three times the probability of token 0, and never token 2."""
        coin = with_logits(0, math.log(3), -math.inf)

        def share(**options: Any) -> float:
            drawn = fastlstm.generate(coin, [0], length=4000, seed=1, **options)
            counts = np.bincount(drawn, minlength=3)
            assert counts[2] == 0
            return float(counts[1] / 4000)

        assert share() == pytest.approx(0.75, abs=0.03)
        assert share(temperature=0.5) == pytest.approx(0.9, abs=0.03)
        assert share(temperature=1e-300) == share(temperature=0) == share(top_k=1) == 1
        assert share(top_k=3, top_p=1.0) == share()
        assert share(top_p=0.74) == 1
        assert share(top_p=0.76) == share()
        # After the temperature, its share is 0.9.
        assert share(temperature=0.5, top_p=0.89) == 1

    def test_top_p_is_of_what_top_k_leaves(self):
        """Half, a quarter, a quarter: of the two of top_k=2 the first alone has two thirds."""
        model = with_logits(math.log(8), math.log(4), math.log(3), math.log(1))
        options = {"length": 500, "seed": 0}
        assert set(fastlstm.generate(model, [0], top_p=0.6, **options)) == {0, 1}
        assert set(fastlstm.generate(model, [0], top_k=2, top_p=0.6, **options)) == {0}
        assert set(fastlstm.generate(model, [0], top_k=3, **options)) == {0, 1, 2}

    def test_ties_are_kept(self):
        model = with_logits(0, 1, 1, 1)
        for options in ({"top_k": 1}, {"top_p": 0.01}):
            drawn = fastlstm.generate(model, [0], length=200, seed=0, **options)
            assert set(drawn) == {1, 2, 3}

    def test_a_seed_gives_the_same_every_time(self, model):
        once = fastlstm.generate(model, "abc", length=40, seed=3)
        assert once == fastlstm.generate(model, "abc", length=40, seed=3)
        assert once == fastlstm.generate(model, "abc", length=40, seed=np.int64(3))
        assert once != fastlstm.generate(model, "abc", length=40, seed=4)
        assert once.startswith(fastlstm.generate(model, "abc", length=20, seed=3))
        fresh = {fastlstm.generate(model, "abc", length=40) for _ in range(3)}
        assert len(fresh) == 3

    @pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_row_is_what_its_prompt_gives_alone(self, rng, cell, dtype):
        model = token_model(rng, cell=cell, dtype=dtype)
        prompts = [rng.integers(0, V, n).tolist() for n in (1, 90, 3, 3, 17)]
        prompts[3] = prompts[2]
        options = {"length": 60, "temperature": 1.2, "top_k": 9}
        together = fastlstm.generate(model, prompts, seed=5, **options)
        alone = [
            fastlstm.generate(model, prompt, seed=5 + row, **options)
            for row, prompt in enumerate(prompts)
        ]
        assert together == alone
        assert together[2] != together[3]  # the same prompt, another seed
        greedy = fastlstm.generate(model, prompts, length=30, temperature=0)
        assert greedy[2] == greedy[3]

    def test_a_row_is_the_same_on_every_instruction_set_of_its_own(self, rng, isa):
        model = token_model(rng, isa=isa, threads=2)
        prompts = ["abc a", "h", "ab" * 40]
        together = fastlstm.generate(model, prompts, length=25, seed=0)
        for row, prompt in enumerate(prompts):
            assert fastlstm.generate(model, prompt, length=25, seed=row) == together[row]

    def test_long_prompts_run_in_blocks(self, rng, model, monkeypatch):
        prompt = rng.integers(0, V, 50)
        whole = fastlstm.generate(model, prompt, length=20, seed=0)
        monkeypatch.setattr(tokens, "BLOCK_OUTPUTS", 3 * V)
        assert fastlstm.generate(model, prompt, length=20, seed=0) == whole

    def test_text_for_text_and_tokens_for_tokens(self, model):
        options: dict[str, Any] = {"length": 9, "seed": 0}
        row = fastlstm.generate(model, [11, 1], **options)
        text = "".join(VOCABULARY[token] for token in row)
        other = fastlstm.generate(model, [2], length=9, seed=1)
        for prompt, expected in (
            ("abc ", text),
            (["abc "], [text]),
            (("abc ", "a"), [text, "".join(VOCABULARY[token] for token in other)]),
            ((11, 1), row),
            (np.array([11, 1], np.uint8), row),
            (range(11, 12), fastlstm.generate(model, [11], **options)),
            ([np.int64(11), 1], row),
            ([[11, 1], np.array([2])], [row, other]),
            (np.array([[11, 1]]), [row]),
        ):
            assert fastlstm.generate(model, prompt, **options) == expected

    @pytest.mark.parametrize("prompt", ["abc", [11], ["abc", "h"], [[11], [9, 3]]])
    def test_steps(self, model, prompt):
        options: dict[str, Any] = {"length": 30, "seed": 0, "stop": "e"}
        whole = fastlstm.generate(model, prompt, **options)
        steps = list(fastlstm.generate_steps(model, prompt, **options))
        if not isinstance(prompt, list) or isinstance(prompt[0], int):
            steps, whole = [[step] for step in steps], [whole]
        for row, expected in enumerate(whole):
            pieces = [step[row] for step in steps]
            n = pieces.index(None) if None in pieces else len(pieces)
            assert all(piece is None for piece in pieces[n:])
            text = isinstance(expected, str)
            assert expected == ("".join(pieces[:n]) if text else pieces[:n])
        assert all(any(piece is not None for piece in step) for step in steps)

    def test_steps_check_at_once_and_run_as_they_are_asked(self, model, monkeypatch):
        with pytest.raises(ValueError, match=r"^length is 0; expected at least 1$"):
            fastlstm.generate_steps(model, "a", length=0)
        steps = fastlstm.generate_steps(model, "a", length=10**12, seed=0)
        assert "".join(next(steps) for _ in range(9)) == fastlstm.generate(
            model, "a", length=9, seed=0
        )


class TestStop:
    def test_ends_before_it(self, model):
        whole = fastlstm.generate(model, [3], length=60, seed=0)
        stop = whole[20]
        assert (
            fastlstm.generate(model, [3], length=60, seed=0, stop=stop)
            == (whole[: whole.index(stop)])
        )
        text = "".join(VOCABULARY[token] for token in whole[: whole.index(stop)])
        assert text == fastlstm.generate(
            model, VOCABULARY[3], length=60, seed=0, stop=VOCABULARY[stop]
        )

    def test_other_rows_go_on(self, rng, model):
        prompts = [rng.integers(0, V, 4).tolist() for _ in range(12)]
        whole = fastlstm.generate(model, prompts, length=40, seed=0)
        found = fastlstm.generate(model, prompts, length=40, seed=0, stop=5)
        assert found == [row[: row.index(5)] if 5 in row else row for row in whole]
        assert len({len(row) for row in found}) > 3

    def test_at_once(self):
        certain = with_logits(0, 1000)
        assert fastlstm.generate(certain, [0], length=5, stop=1) == []
        assert fastlstm.generate(certain, [[0], [1]], length=5, stop=1) == [[], []]
        assert list(fastlstm.generate_steps(certain, [0], length=5, stop=1)) == []

    def test_the_outputs_behind_it_do_not_matter(self):
        """After token 1 the model gives NaN, which nobody reads."""
        file = model_file((spec.Embedding("e", 2, 1), spec.Linear("head", 1, 2)))
        tensors = {
            "e.weight": np.array([[0], [np.nan]], np.float32),
            "head.weight": np.ones((2, 1), np.float32),
            "head.bias": np.array([0, 0.1], np.float32),
        }
        model = Model(ChainFile(file.layers, tensors))
        assert fastlstm.generate(model, [[0], [0]], length=9, temperature=0, stop=1) == [[], []]
        found = fastlstm.generate(model, [[0]] * 20, length=9, seed=0, stop=1)
        assert max(map(len, found)) > 0
        with pytest.raises(ValueError, match="not a distribution"):
            fastlstm.generate(model, [[0], [0]], length=9, temperature=0)


NUMBERS = f"expected a str, a sequence of integers from 0 to {V - 1}, or a list of either"


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"length": 0}, "length is 0; expected at least 1"),
            ({"length": 2.0}, "length is 2.0; expected an integer"),
            ({"length": True}, "length is True; expected an integer"),
            ({"temperature": -0.1}, "temperature is -0.1; expected a finite number of at least 0"),
            (
                {"temperature": math.nan},
                "temperature is nan; expected a finite number of at least 0",
            ),
            (
                {"temperature": math.inf},
                "temperature is inf; expected a finite number of at least 0",
            ),
            ({"temperature": "1"}, "temperature is '1'; expected a finite number of at least 0"),
            ({"top_k": 0}, "top_k is 0; expected at least 1"),
            ({"top_k": 1.5}, "top_k is 1.5; expected an integer"),
            ({"top_p": 0}, "top_p is 0; expected a number above 0, at most 1"),
            ({"top_p": 1.01}, "top_p is 1.01; expected a number above 0, at most 1"),
            ({"top_p": math.nan}, "top_p is nan; expected a number above 0, at most 1"),
            ({"seed": -1}, "seed is -1; expected at least 0"),
            ({"seed": 0.0}, "seed is 0.0; expected an integer"),
            ({"stop": V}, f"stop is {V}; expected a token from 0 to {V - 1}"),
            ({"stop": -1}, f"stop is -1; expected a token from 0 to {V - 1}"),
            (
                {"stop": "zz"},
                f"stop is 'zz'; expected a token from 0 to {V - 1} or one of the strings of the "
                f"model's vocabulary",
            ),
        ],
    )
    @pytest.mark.parametrize("function", [fastlstm.generate, fastlstm.generate_steps])
    def test_options(
        self, model: Model, function: Callable[..., Any], options: Any, message: str
    ) -> None:
        error = TypeError if message.endswith("expected an integer") else ValueError
        with pytest.raises(error) as caught:
            function(model, "a", **({"length": 3} | options))
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        ("prompt", "error", "message"),
        [
            ("", ValueError, "the prompt is empty; expected at least one token"),
            ([], ValueError, "the prompt is empty; expected at least one token"),
            (["a", ""], ValueError, "prompts[1] is empty; expected at least one token"),
            ([[]], ValueError, "prompts[0] is empty; expected at least one token"),
            (
                np.zeros((0, 3), int),
                ValueError,
                "there are no prompts in the array of shape (0, 3)",
            ),
            (
                [3, V],
                ValueError,
                f"token {V} at index 1 of the prompt is out of range; the model knows tokens 0 to "
                f"{V - 1}",
            ),
            ([1.0], TypeError, f"the prompt is [1.0]; {NUMBERS}"),
            ([[1], [None]], TypeError, f"prompts[1] is [None]; {NUMBERS}"),
            (b"ab", TypeError, f"the prompt is b'ab'; {NUMBERS}"),
            (5, TypeError, f"the prompt is 5; {NUMBERS}"),
            ({1, 2}, TypeError, "the prompt is {1, 2}; " + NUMBERS),
            ([1, [2]], TypeError, f"the prompt is a nested sequence; {NUMBERS}"),
            ([[1, [2]]], TypeError, f"prompts[0] is a nested sequence; {NUMBERS}"),
            (np.array([True]), TypeError, f"the prompt is array([ True]); {NUMBERS}"),
            (
                ["a", [1]],
                TypeError,
                "the prompts are of both text and tokens; expected one of the two",
            ),
        ],
    )
    def test_prompts(self, model, prompt, error, message):
        with pytest.raises(error) as caught:
            fastlstm.generate(model, prompt, length=3)
        assert str(caught.value) == message

    def test_models(self, rng):
        embedding, gru = spec.Embedding("e", V, 4), recurrent("gru", 4, V, "gru")
        bidirectional = recurrent("gru", 4, 4, "gru", bidirectional=True)
        ends = "expected a linear layer, whose output is taken as logits, or softmax or log_softmax"
        for layers, message in (
            (
                (recurrent("lstm", 5, 5),),
                "this model takes 5 features a step, not tokens; expected one that starts with an "
                "embedding or a one_hot layer",
            ),
            (
                (embedding, recurrent("gru", 4, 5)),
                "this model knows 12 tokens and gives 5 features a step; to predict the next "
                "token, it must give one for every token: is its last layer missing?",
            ),
            ((embedding, gru), f"this model ends in {gru.describe()}; {ends} behind it"),
            (
                (embedding, gru, spec.Linear("l", V, V), spec.Activation("t", "tanh", V)),
                f"this model ends in activation(function=tanh); {ends} behind it",
            ),
            (
                (embedding, gru, spec.Linear("l", V, V)),
                "this model has no vocabulary to read the {what} with; give tokens, or convert it "
                "again with a vocabulary",
            ),
        ):
            model = build(layers, rng)
            for what, function in (
                ("prompt", lambda model: fastlstm.generate(model, "ab", length=2)),
                ("text", lambda model: fastlstm.perplexity(model, "ab")),
            ):
                with pytest.raises(ValueError) as caught:  # noqa: PT011
                    function(model)
                assert str(caught.value) == message.format(what=what)
        with pytest.raises(ValueError, match=r"vocabulary, which it does not have$"):
            fastlstm.generate(model, [1], length=2, stop="a")
        ahead = build((embedding, bidirectional, spec.Linear("l", 8, V)), rng)
        with pytest.raises(ValueError, match="'gru' is bidirectional"):
            fastlstm.generate(ahead, [1], length=2)
        with pytest.raises(ValueError, match="'gru' is bidirectional"):
            fastlstm.perplexity(ahead, [1, 2])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_outputs_that_are_no_distribution(self, value):
        message = (
            "the model's output is not a distribution: it holds NaN or infinity; expected finite "
            "numbers; fastlstm verify tells whether the weights give them"
        )
        for model in (with_logits(0, value, 0), with_logits(*[-math.inf] * 3)):
            for function in (
                lambda model: fastlstm.generate(model, [1], length=2),
                lambda model: fastlstm.perplexity(model, [1, 2]),
            ):
                with pytest.raises(ValueError) as caught:  # noqa: PT011
                    function(model)
                assert str(caught.value) == message

    def test_models_that_do_not_give_a_row_a_step(self, model, monkeypatch):
        message = (
            "this model does not give one prediction for every token: it pools or strides over "
            "time; expected one output row a step"
        )
        run = Stream.run
        with monkeypatch.context() as patched:
            patched.setattr(Stream, "run", lambda self, x: run(self, x)[1:], raising=False)
            for function in (
                lambda: fastlstm.generate(model, "ab", length=2),
                lambda: fastlstm.perplexity(model, "abc ab"),
            ):
                with pytest.raises(ValueError) as caught:  # noqa: PT011
                    function()
                assert str(caught.value) == message
        monkeypatch.setattr(Stream, "step", lambda self, x: None, raising=False)
        assert fastlstm.generate(model, "ab", length=1) in VOCABULARY
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            fastlstm.generate(model, "ab", length=2)
        assert str(caught.value) == message


def test_public_names():
    assert fastlstm.generate is generation.generate
    assert fastlstm.perplexity is tokens.perplexity
