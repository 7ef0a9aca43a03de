"""Token models: text to tokens, outputs to probabilities, perplexity.

Dimension letters: ``T`` time, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.arrays import offered
from fastlstm.model import Model
from fastlstm.stream import Stream

__all__ = [
    "NOT_A_ROW_A_STEP",
    "UNKNOWN",
    "Texts",
    "check_generates",
    "log_probabilities",
    "negative_log_likelihood",
    "outputs",
    "perplexity",
    "read_texts",
    "tokenise",
    "unknown_note",
]

Array = npt.NDArray[Any]

UNKNOWN = "<unk>"

# Unknown characters that a note spells out.
MOST_SHOWN = 20

# A long text is run in blocks of so many outputs, whatever V is: 8 MB in float64, in which their
# logarithms are taken.
BLOCK_OUTPUTS = 2**20

NOT_A_ROW_A_STEP = (
    "this model does not give one prediction for every token: it pools or strides over time; "
    "expected one output row a step"
)


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
                    f"character {piece!r} at index {at} of the text is not in the vocabulary, "
                    f"which has no {UNKNOWN!r} either; expected text made of its "
                    f"{len(vocabulary)} strings"
                )
            unknown[piece] = None
        tokens.append(token_of.get(piece, token_of.get(UNKNOWN, -1)))
        at += len(piece)
    return tokens, list(unknown)


def unknown_note(unknown: Sequence[str]) -> str:
    """What to tell of characters that :func:`tokenise` found unknown."""
    shown = ", ".join(map(repr, unknown[:MOST_SHOWN]))
    more = f" and {len(unknown) - MOST_SHOWN} more" if len(unknown) > MOST_SHOWN else ""
    return f"not in the vocabulary, read as {UNKNOWN!r}: {shown}{more}"


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
            f"step; to predict the next token, it must give one for every token: is its last layer "
            f"missing?"
        )
    if model.vocabulary is not None and len(model.vocabulary) != model.input_size:
        raise ValueError(
            f"the vocabulary has {len(model.vocabulary)} strings; expected {model.input_size}"
        )
    _output_kind(model)


def _output_kind(model: Model) -> str:
    """What a model's output is: "logits", "softmax" or "log_softmax"."""
    value = next(iter(model.graph.outputs.values()))
    last = next((layer for layer in model.layers if layer.name == value), None)
    if isinstance(last, spec.Linear):
        return "logits"
    if isinstance(last, spec.Softmax):
        return "log_softmax" if last.log else "softmax"
    ends = "its input" if last is None else last.describe()
    raise ValueError(
        f"this model ends in {ends}; expected a linear layer, whose output is taken as "
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


def negative_log_likelihood(model: Model, output: Array, tokens: Array) -> float:
    """The sum of -log p of each token under the prediction that was made before it.

    Parameters
    ----------
    model : Model
    output : array (T, V)
        What the model gave before it saw each token.
    tokens : integer array (T,)
    """
    seen = np.take_along_axis(log_probabilities(model, output), tokens[:, None], axis=-1)
    return -float(seen.sum())


def perplexity(model: Model, text: Any) -> float:
    """exp of the mean negative log likelihood of every token of a text after its first.

    Parameters
    ----------
    model : Model
        One that predicts its next token: it takes tokens and ends in a linear layer of as many
        outputs, or in softmax or log_softmax behind it.
    text : str, sequence of int, or list of either
        The text, cut into tokens by the model's vocabulary, or the tokens. Of a list, every text
        starts from a zero state, and the mean is over the tokens of all of them.

    Returns
    -------
    float
        1 for a model that is always certain and right; infinity where it gave a token of the text
        no chance.

    Raises
    ------
    TypeError
        If `text` is something else.
    ValueError
        If a text has less than two tokens, a token or character is unknown, the model predicts no
        next token, or its output holds NaN.

    Notes
    -----
    Text is run in blocks, so memory does not grow with its length. A character that the vocabulary
    lacks is read as ``"<unk>"`` if it has that, with a warning.
    """
    given = read_texts(model, text, "text")
    for row, tokens in enumerate(given.rows):
        if len(tokens) < 2:
            which = f"texts[{row}]" if given.batched else "the text"
            raise ValueError(
                f"{which} is a single token; expected at least 2, for the first has no prediction"
            )
    total, count = 0.0, 0
    for tokens in given.rows:
        first = 1
        for output in outputs(model.stream(), tokens[:-1]):
            total += negative_log_likelihood(model, output, tokens[first : first + len(output)])
            first += len(output)
        count += len(tokens) - 1
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(total / count)))


@dataclass(frozen=True, eq=False)
class Texts:
    """What a caller gave to a token model, as tokens.

    Parameters
    ----------
    rows : list of int64 array (T,)
        At least one, none of them empty.
    is_text : bool
        Whether it was text.
    batched : bool
        Whether it was a list.
    """

    rows: list[Array]
    is_text: bool
    batched: bool


def read_texts(model: Model, given: Any, what: str) -> Texts:
    """The tokens of a str, a sequence of int, or a list of either; `what` it is to be called.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If one is empty, a token or character is unknown, or the model predicts no next token.
    """
    check_generates(model)
    if not isinstance(given, str | list | tuple):
        given = offered(f"the {what}", given)
    first = given[0] if isinstance(given, list | tuple) and len(given) else None
    batched = isinstance(first, Sequence | np.ndarray)
    if isinstance(given, np.ndarray):
        batched = given.ndim == 2
    items = list(given) if batched else [given]
    if len({isinstance(item, str) for item in items}) > 1:
        raise TypeError(f"the {what}s are of both text and tokens; expected one of the two")
    is_text = isinstance(items[0], str) if items else False
    unknown: dict[str, None] = {}
    rows = []
    for number, item in enumerate(items):
        which = f"{what}s[{number}]" if batched else f"the {what}"
        tokens = item
        if is_text:
            if model.vocabulary is None:
                raise ValueError(
                    f"this model has no vocabulary to read the {what} with; give tokens, or "
                    f"convert it again with a vocabulary"
                )
            tokens, lacking = tokenise(item, model.vocabulary)
            unknown |= dict.fromkeys(lacking)
        rows.append(_checked_tokens(tokens, model.input_size, which))
    if unknown:
        # Told where the public function that reads its argument here was called.
        warnings.warn(unknown_note(list(unknown)), stacklevel=3)
    if not rows:
        raise ValueError(f"there are no {what}s in the array of shape {given.shape}")
    return Texts(rows, is_text, batched)


def _checked_tokens(tokens: Any, known: int, which: str) -> Array:
    expected = f"expected a str, a sequence of integers from 0 to {known - 1}, or a list of either"
    try:
        array = np.asarray(tokens)
    except ValueError:
        raise TypeError(f"{which} is a nested sequence; {expected}") from None
    if array.ndim == 1 and not array.size:
        raise ValueError(f"{which} is empty; expected at least one token")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"{which} is {tokens!r:.80}; {expected}")
    outside = np.flatnonzero((array < 0) | (array >= known))
    if outside.size:
        at = int(outside[0])
        raise ValueError(
            f"token {array[at]} at index {at} of {which} is out of range; the model knows tokens "
            f"0 to {known - 1}"
        )
    return array.astype(np.int64)


def outputs(stream: Stream, tokens: Array) -> Iterator[Array]:
    """What an unbatched stream gives for tokens (T,), in blocks (t, V) of bounded memory."""
    steps = max(1, BLOCK_OUTPUTS // stream.model.output_size)
    for first in range(0, len(tokens), steps):
        block = tokens[first : first + steps]
        output = stream.run(block)
        if output.shape != (len(block), stream.model.output_size):
            raise ValueError(NOT_A_ROW_A_STEP)
        yield output
