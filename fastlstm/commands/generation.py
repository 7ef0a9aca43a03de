"""Token models: text to tokens, outputs to probabilities, sampling and perplexity.

Dimension letters: ``T`` time, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import Model

__all__ = ["check_generates", "generate", "log_probabilities", "perplexity", "tokenise"]

Array = npt.NDArray[Any]

UNKNOWN = "<unk>"


def tokenise(text: str, vocabulary: Sequence[str]) -> tuple[list[int], list[str]]:
    """Cut `text` into tokens, from left to right, the longest that fits first.

    Parameters
    ----------
    text : str
        Taken as it is: nothing is lower-cased or stripped.
    vocabulary : sequence of str
        The text of each token.

    Returns
    -------
    tokens : list of int
    unknown : list of str
        The characters that only ``"<unk>"`` could stand for, each once, in order.

    Raises
    ------
    ValueError
        If no token fits and the vocabulary has no ``"<unk>"``.
    """
    token_of = {string: token for token, string in enumerate(vocabulary) if string}
    lengths = sorted({len(string) for string in token_of}, reverse=True)
    tokens: list[int] = []
    unknown: dict[str, None] = {}
    at = 0
    while at < len(text):
        fits = (text[at : at + n] for n in lengths if text[at : at + n] in token_of)
        piece = next(fits, None)
        if piece is None:
            piece = text[at]
            if UNKNOWN not in token_of:
                raise ValueError(
                    f"character {piece!r} at index {at} of the prompt is not in the vocabulary, "
                    f"which has no {UNKNOWN!r} either; expected text made of its "
                    f"{len(vocabulary)} strings"
                )
            unknown[piece] = None
        tokens.append(token_of.get(piece, token_of.get(UNKNOWN, -1)))
        at += len(piece)
    return tokens, list(unknown)


def check_generates(model: Model) -> None:
    """Check that a model predicts its own next input token.

    Raises
    ------
    ValueError
        If it does not take tokens, gives another number of features than it knows tokens, or ends
        in a layer whose output is neither scores nor probabilities.
    """
    if not model.takes_tokens:
        raise ValueError(
            f"this model takes {model.input_size} features a step, not tokens; expected one that "
            f"starts with an embedding or a one_hot layer"
        )
    if model.output_size != model.input_size:
        raise ValueError(
            f"this model knows {model.input_size} tokens and gives {model.output_size} features a "
            f"step; to generate, it must give one for every token: is its last layer missing?"
        )
    if model.vocabulary is not None and len(model.vocabulary) != model.input_size:
        raise ValueError(
            f"the vocabulary has {len(model.vocabulary)} strings; expected {model.input_size}"
        )
    _output_kind(model)


def _output_kind(model: Model) -> str:
    """What a model's output is: "logits", "softmax" or "log_softmax"."""
    last = model.layers[-1]
    function = getattr(last, "function", "")
    if last.kind == "linear":
        return "logits"
    if function in ("softmax", "log_softmax"):
        return str(function)
    raise ValueError(
        f"this model ends in {last.describe()}; expected a linear layer, whose output is taken as "
        f"logits, or softmax or log_softmax behind it"
    )


def log_probabilities(model: Model, output: Array) -> Array:
    """The logarithm of each token's probability, in float64.

    Parameters
    ----------
    model : Model
        Whose last layer tells what its output is: logits of a linear layer, probabilities of a
        softmax or logarithms of a log_softmax.
    output : array (..., V)
        What the model gave.

    Returns
    -------
    array (..., V), float64

    Raises
    ------
    ValueError
        If the output gives no distribution: it holds NaN or +infinity, or no token is possible.
    """
    scores = output.astype(np.float64)
    if _output_kind(model) == "softmax":
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = np.log(scores)
    # Minus infinity is fine, a token that cannot come, unless no token can.
    if np.isnan(scores).any() or not np.isfinite(scores.max(axis=-1, initial=-np.inf)).all():
        raise ValueError(
            "the model's output is not a distribution: it holds NaN or infinity; expected finite "
            "numbers; fastlstm verify tells whether the weights give them"
        )
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def perplexity(log_probability: Array, tokens: Array) -> float:
    """exp of the mean negative log likelihood of each token after the first.

    Parameters
    ----------
    log_probability : array (T, V), float64
        Row t is the prediction made after token t.
    tokens : integer array (T,), T at least 2
    """
    seen = np.take_along_axis(log_probability[:-1], tokens[1:, None], axis=-1)
    return math.exp(-float(seen.mean()))


def generate(
    model: Model, prompt: Sequence[int], *, length: int, temperature: float, seed: int
) -> Iterator[int]:
    """Continue a sequence of tokens, one at a time.

    Parameters
    ----------
    model : Model
        One that :func:`check_generates` accepts.
    prompt : sequence of int
        At least one token to start from.
    length : int
        Tokens to generate.
    temperature : float
        0 takes the most likely token, 1 samples from the model's own distribution, less than 1
        from a sharper one.
    seed : int
        Of the random numbers: the same seed gives the same tokens on one instruction set.

    Yields
    ------
    int
        The next token.

    Raises
    ------
    ValueError
        If an argument is out of range, the model streams or generates not, or its output holds NaN.
    """
    check_generates(model)
    if not prompt:
        raise ValueError("the prompt is empty; expected at least one token to continue from")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a finite number of at least 0")
    rng = np.random.default_rng(seed)
    stream = model.stream()
    output = np.empty(model.output_size, model.dtype)
    for token in prompt:
        stream.step(token, out=output)
    for n in range(length):
        token = _sample(log_probabilities(model, output), temperature, rng)
        yield token
        if n + 1 < length:
            stream.step(token, out=output)


def _sample(log_probability: Array, temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(log_probability.argmax())
    # The largest is shifted to 0 before it is divided, so that no temperature overflows it.
    shifted = log_probability - log_probability.max()
    with np.errstate(over="ignore", under="ignore"):
        cumulative = np.exp(shifted / temperature).cumsum()
    # random() is below 1 and the search goes right of equals, so an impossible token never comes.
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
