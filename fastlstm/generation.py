"""Generation: a token model continues texts, several of them together.

Dimension letters: ``T`` time, ``B`` batch, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine
from fastlstm.model import Model
from fastlstm.tokens import NOT_A_ROW_A_STEP, log_probabilities, outputs, read_texts

__all__ = ["generate", "generate_steps"]

Array = npt.NDArray[Any]


def generate(
    model: Model,
    prompt: Any,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: int | str | None = None,
) -> Any:
    """Continue a text, or a sequence of tokens, or several of them together.

    Parameters
    ----------
    model : Model
        One that predicts its next token: it takes tokens and ends in a linear layer of as many
        outputs, or in softmax or log_softmax behind it.
    prompt : str, sequence of int, or list of either
        What to continue: text, which the model's vocabulary cuts into tokens, or tokens. The
        prompts of a list may differ in length; they step together and do not disturb each other.
    length : int
        Tokens to add.
    temperature : float, default 1.0
        0 takes the likeliest token, 1 samples from the model's own distribution, less than 1 from
        a sharper one.
    top_k : int, optional
        Sample from the k likeliest tokens, and those as likely as the last of them.
    top_p : float, optional
        Sample from the likeliest tokens whose shares, after `temperature` and `top_k`, first add up
        to p (https://arxiv.org/abs/1904.09751), and those as likely as the last of them.
    seed : int, optional
        The same seed gives the same tokens on one instruction set. Row i of a list of prompts gives
        exactly what its prompt alone gives with ``seed + i``. Fresh random numbers if not given.
    stop : int or str, optional
        A token, or its text, to stop before.

    Returns
    -------
    str, list of int, or list of either
        What was added: text for text, tokens for tokens, and a list of it for a list.

    Raises
    ------
    TypeError
        If `prompt` is something else.
    ValueError
        If an argument is out of range, a prompt is empty, a token or character is unknown, the
        model predicts no next token or does not stream, or its output holds NaN.

    Notes
    -----
    A character that the vocabulary lacks is read as ``"<unk>"`` if it has that, with a warning.

    Examples
    --------
    >>> fastlstm.generate(model, "the time ", length=100, temperature=0.7, top_p=0.9, seed=0)
    """
    given = read_texts(model, prompt, "prompt")
    sampling = _Sampling(temperature, top_k, top_p, seed)
    added: list[list[int]] = [[] for _ in given.rows]
    for step in _continue(model, given.rows, _length(length), sampling, _stop(model, stop)):
        for row, token in zip(added, step, strict=True):
            if token is not None:
                row.append(token)
    texts = model.vocabulary if given.is_text else None
    found = added if texts is None else ["".join(texts[token] for token in row) for row in added]
    return found if given.batched else found[0]


def generate_steps(
    model: Model,
    prompt: Any,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: int | str | None = None,
) -> Iterator[Any]:
    """What :func:`generate` gives, token by token as it comes.

    Parameters and errors are those of :func:`generate`; arguments are checked at once.

    Yields
    ------
    str or int, or list of str, int or None
        The next token, or its text; for a list of prompts a list, with None where a row has
        stopped.
    """
    given = read_texts(model, prompt, "prompt")
    sampling = _Sampling(temperature, top_k, top_p, seed)
    steps = _continue(model, given.rows, _length(length), sampling, _stop(model, stop))
    texts = model.vocabulary if given.is_text else None

    def shown(token: int | None) -> int | str | None:
        return token if texts is None or token is None else texts[token]

    if given.batched:
        return ([shown(token) for token in step] for step in steps)
    return (shown(token) for (token,) in steps)


def _length(length: int) -> int:
    return _engine.as_count("length", length, 1)


def _is_number(value: object) -> bool:
    real = int | float | np.integer | np.floating
    return isinstance(value, real) and not isinstance(value, bool)


def _stop(model: Model, stop: int | str | None) -> int | None:
    """The token to stop before."""
    if stop is None:
        return None
    if isinstance(stop, str):
        if model.vocabulary is None or stop not in model.vocabulary:
            raise ValueError(
                f"stop is {stop!r:.80}; expected a token from 0 to {model.input_size - 1} or one "
                f"of the strings of the model's vocabulary"
                f"{', which it does not have' if model.vocabulary is None else ''}"
            )
        return model.vocabulary.index(stop)
    token = _engine.as_count("stop", stop, -1)
    if not 0 <= token < model.input_size:
        raise ValueError(f"stop is {stop!r}; expected a token from 0 to {model.input_size - 1}")
    return token


@dataclass(frozen=True)
class _Sampling:
    """How tokens are drawn."""

    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature!r}; expected a finite number of at least 0"
            )
        if self.top_k is not None:
            _engine.as_count("top_k", self.top_k, 1)
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise ValueError(f"top_p is {self.top_p!r}; expected a number above 0, at most 1")
        if self.seed is not None:
            _engine.as_count("seed", self.seed)

    def generators(self, rows: int) -> list[np.random.Generator]:
        """One for each row, so that no row's numbers depend on how many there are."""
        if self.seed is None:
            return [np.random.default_rng() for _ in range(rows)]
        return [np.random.default_rng(operator.index(self.seed) + row) for row in range(rows)]

    def draw(self, log_probability: Array, rng: np.random.Generator) -> int:
        """A token, given the logarithm of the probability of each: float64 (V,)."""
        if self.temperature == 0:
            return int(log_probability.argmax())
        # The largest is shifted to 0 before it is divided, so that no temperature overflows it.
        shifted = log_probability - log_probability.max()
        with np.errstate(over="ignore", under="ignore"):
            weights = np.exp(shifted / self.temperature)
        if self.top_k is not None and self.top_k < len(weights):
            weights[weights < np.partition(weights, -self.top_k)[-self.top_k]] = 0
        if self.top_p is not None and self.top_p < 1:
            descending = np.sort(weights)[::-1]
            total = descending.cumsum()
            last = int(np.searchsorted(total, self.top_p * total[-1]))
            weights[weights < descending[last]] = 0
        cumulative = weights.cumsum()
        # random() is below 1 and the search goes right of equals, so an impossible token never
        # comes.
        return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _continue(
    model: Model, prompts: Sequence[Array], length: int, sampling: _Sampling, stop: int | None
) -> Iterator[list[int | None]]:
    """The next token of every row, None where a row has stopped, until all have."""
    # Each prompt runs alone, whatever the others' lengths are, and its state becomes a row of the
    # batch: the numbers of a row do not depend on the other rows.
    states, lasts = [], []
    for tokens in prompts:
        single = model.stream()
        for output in outputs(single, tokens):
            last = output[-1].copy()
        states.append(single.read_block())
        lasts.append(last)
    stream = model.stream(batch_size=len(prompts))
    stream.write_block(np.concatenate(states))
    output = np.stack(lasts)
    rngs = sampling.generators(len(prompts))
    fed = np.zeros(len(prompts), np.int64)
    going = [True] * len(prompts)
    for n in range(length):
        for row, rng in enumerate(rngs):
            if going[row]:
                fed[row] = sampling.draw(log_probabilities(model, output[row]), rng)
                going[row] = fed[row] != stop
        if not any(going):
            return
        yield [int(token) if on else None for token, on in zip(fed, going, strict=True)]
        if n + 1 < length:
            # A row that has stopped goes on with its last token, unseen.
            following = stream.step(fed)
            if following is None:
                raise ValueError(NOT_A_ROW_A_STEP)
            output = following
