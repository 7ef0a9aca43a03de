"""The words of ``layers=``: which there are, what they take, and how their text is read.

``layers=`` is a list of words, each a layer or a function: a name, its parameters in parentheses if
it has any, and behind a colon where its weights are. ``[a, b | c]`` are branches that all begin
with the same rows; a word behind them that takes several values joins them, and at the end each is
an output.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.kinds import KINDS, OPERATIONS, split, value_of

__all__ = [
    "BRANCHES",
    "END",
    "KINDS",
    "OPEN",
    "OTHER",
    "Word",
    "joined",
    "merged",
    "parse",
    "shown",
    "wanted",
]

OPEN, OTHER, END = "[", "|", "]"
BRANCHES = (OPEN, OTHER, END)

MAX_NESTING = 16  # of brackets within each other
SHOWN = 100  # characters of a text that a message shows

_SAME_WORD = {"scale": "multiply"}

# What each parameter is, whichever word has it; the rest are names.
_INTEGERS = frozenset(
    {"groups", "num_groups", "start", "stop", "size", "steps", "times", "before", "behind", "step"}
    | {"end"}
)
_ONE_OR_MORE = frozenset({"stride", "dilation", "kernel_size", "output_padding", "dim"})
_NUMBERS = frozenset(
    {"eps", "alpha", "beta", "min", "max", "p", "value", "lambd", "lower", "upper"}
)
_FLAGS = frozenset(
    {"affine", "cumulative", "keepdim", "reverse", "count_include_pad", "transposed"}
    | {"reset_after"}
)


@dataclass(frozen=True, slots=True)
class Word:
    """One word of ``layers=``.

    Parameters
    ----------
    kind : str
        A word, or ``"["``, ``"|"`` or ``"]"``.
    path : str, optional
        What stands behind its colon.
    given : tuple of (str, value)
        The parameters that are said.
    """

    kind: str
    path: str | None = None
    given: tuple[tuple[str, Any], ...] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """All of them; ``...`` for those that are not said and have no value of their own."""
        return KINDS[self.kind].parameters | dict(self.given)

    @property
    def is_word(self) -> bool:
        return self.kind not in BRANCHES

    def __str__(self) -> str:
        inside = ", ".join(_said(self.kind, name, value) for name, value in self.given)
        return f"{self.kind}{inside and f'({inside})'}" + (
            "" if self.path is None else f":{self.path}"
        )


def _said(kind: str, name: str, value: Any) -> str:
    """A parameter as it is written: without its name where that is always the first."""
    first = next(iter(KINDS[kind].parameters), "")
    alone = kind in spec.PARAMETERS or kind in OPERATIONS or name in ("nonlinearity", "function")
    if first == name and name.startswith("*"):
        return ", ".join(map(_text, value))
    return _text(value) if alone else f"{name}={_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    return str(value).lower() if isinstance(value, bool) else str(value)


def joined(words: Iterable[Word]) -> str:
    """Words as ``layers=`` takes them."""
    text = ""
    for word in words:
        if word.kind in (OTHER, END):
            text += f" {OTHER} " if word.kind == OTHER else END
        else:
            text += (", " if text and text[-2:] != "| " and text[-1] != OPEN else "") + str(word)
    return text


def shown(words: Iterable[Word]) -> str:
    """The same for a message: paths may come from a hostile file and end up on a terminal."""
    text = joined(words)
    return text if text.isprintable() else ascii(text)[1:-1]


def merged(given: Sequence[Word] | None, own: Sequence[Word] | None) -> list[Word] | None:
    """Words that are given, and those of a source that tells them: they may add to these, no more.

    What a step of the input is may be given alone, before what they are.

    Raises
    ------
    ConvertError
        If a word of the source's own is missing, out of order or bound elsewhere.
    """
    if given is None or own is None:
        return None if given is own is None else list(given or own or ())
    if [word.kind for word in given] == ["input"]:
        return [*given, *(word for word in own if word.kind != "input")]
    left = [word for word in own if word.kind not in ("dropout", "identity", "input")]
    result = []
    for word in given:
        if left and _may_be(word, left[0]):
            word = left.pop(0)
        result.append(word)
    if left:
        raise ConvertError(
            f"layers={joined(given)!r:.1000} leaves out {str(left[0])!r} of the source, which runs "
            f"{joined(own)!r:.1000}; leave layers= out, or add to these"
        )
    return result


def _may_be(word: Word, own: Word) -> bool:
    """Whether a word may be one of the source's own: it says nothing else of it."""
    said = dict(own.given)
    return (
        word.kind == own.kind
        and word.path in (None, own.path)
        and all(said.get(name, value) == value for name, value in word.given)
    )


def parse(layers: str | Sequence[str]) -> list[Word]:
    """Read the words of ``layers=``.

    Parameters
    ----------
    layers : str or sequence of str
        Words with commas between them; or one word, or one bracket of branches, in each string,
        where a path may then hold any character.

    Raises
    ------
    ConvertError
        If a word or a parameter is unknown, or brackets do not fit.
    """
    if isinstance(layers, str):
        words = _program(layers)
    else:
        words = []
        for text in layers:
            words += _program(text) if text.lstrip()[:1] == OPEN else [_word(text)]
    for at, word in enumerate(words):
        if word.kind == "input" and (at or min(dict(word.given).get("*sizes", (0,))) < 1):
            raise ConvertError(
                f"layers= has {str(word)!r:.{SHOWN}}; expected it first, with positive sizes"
            )
    return words


def _program(text: str) -> list[Word]:
    """The words and brackets of a text."""
    words: list[Word] = []
    depth = begin = at = opened = 0
    closed = False  # whether a bracket closed since the last comma

    def end() -> None:
        part = text[begin:at]
        if part.strip():
            if closed:
                raise ConvertError(
                    f"layers= has {part.strip()!r:.{SHOWN}} right behind a ']'; expected a comma"
                )
            words.append(_word(part))

    for at, character in enumerate(text):
        opened += (character == "(") - (character == ")")
        if opened or character not in ",[]|":
            continue
        before = text[begin:at].strip()
        if character == OPEN and before:
            raise ConvertError(
                f"layers= has {before!r:.{SHOWN}} right before a '['; expected a comma"
            )
        if character == "," and not before and not closed:
            words.append(_word(before))  # which says what is expected
        end()
        if character != ",":
            words.append(Word(character))
        closed = character == END
        depth += (character == OPEN) - (character == END)
        if depth < 0 or depth > MAX_NESTING or (character == OTHER and not depth):
            raise ConvertError(
                f"layers= has {character!r} where no branches are open, or more than {MAX_NESTING} "
                f"brackets within each other, behind {text[max(0, at - 40) : at]!r}; expected "
                f"branches as in '[linear:a | linear:b]'"
            )
        begin = at + 1
    at = len(text)
    if opened or depth:
        raise ConvertError(
            f"layers= leaves a {'parenthesis' if opened else 'bracket'} open: {text!r:.{SHOWN}}"
        )
    if not text[begin:].strip() and not closed:
        words.append(_word(""))
    end()
    return words


def _word(text: str) -> Word:
    """One word."""
    text = text.strip()
    match = re.match(r"[^:(]*", text)
    name = match[0].strip().lower() if match else ""
    kind, rest = _SAME_WORD.get(name, name), text[match.end() if match else 0 :]
    if kind == "?":
        raise ConvertError(
            f"layers= holds {text!r:.{SHOWN}}, which stands for what weights do not tell; expected "
            f"in its place what forward computes there, or identity where that is nothing"
        )
    if kind not in KINDS:
        close = difflib.get_close_matches(name, [*KINDS, *_SAME_WORD], 3, 0.6)
        raise ConvertError(
            f"layers= holds {text!r:.{SHOWN}}, which is no word"
            + (f"; is it {' or '.join(map(repr, close))}?" if close else "")
            + f" Expected words out of {', '.join(KINDS)}; those with weights may have their path "
            f"behind a colon, as in lstm:encoder.rnn"
        )
    given: tuple[tuple[str, Any], ...] = ()
    if rest.startswith("("):
        inside, rest = _parenthesis(rest, text)
        given = _given(kind, inside, text)
    path = rest[1:].strip() if rest.startswith(":") else None
    if rest and path is None:
        raise ConvertError(
            f"layers= holds {text!r:.{SHOWN}}; expected a comma or a colon after ')'"
        )
    weights = KINDS[kind].weights
    if path is not None and not weights:
        raise ConvertError(
            f"layers= binds {text!r:.{SHOWN}} to a path, but {kind} has no weights; expected it "
            f"without the colon"
        )
    if path is not None and re.fullmatch(r".*\(.*\)", path) and not given:
        where = path.index("(")
        raise ConvertError(
            f"layers= holds {text!r:.{SHOWN}}; parameters stand before the colon: "
            f"'{kind}{path[where:]}:{path[:where]}'"
        )
    if weights == "tensor" and path is not None and given:
        raise ConvertError(f"layers= holds {text!r:.{SHOWN}}; expected a number or a tensor")
    return Word(kind, path, given)


def _parenthesis(rest: str, text: str) -> tuple[str, str]:
    """What is within the parenthesis at the beginning of a text, and what is behind it."""
    depth = 0
    for at, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[1:at], rest[at + 1 :].strip()
    raise ConvertError(f"layers= leaves a parenthesis open: {text!r:.{SHOWN}}")


def _given(kind: str, inside: str, text: str) -> tuple[tuple[str, Any], ...]:
    """The parameters within the parentheses of a word."""
    names = list(KINDS[kind].parameters)
    what = f"layers= holds {text!r:.{SHOWN}}"
    parts = split(inside)
    if names and names[0].startswith("*"):
        values = tuple(_value("steps" if names[0] == "*axes" else "size", p, what) for p in parts)
        if not values:
            raise ConvertError(f"{what}; expected numbers, as in {KINDS[kind].signature}")
        return ((names[0], values),)
    given: dict[str, Any] = {}
    for place, part in enumerate(parts):
        match = re.match(r"\s*([A-Za-z_]\w*)\s*=", part)
        name = match[1] if match else names[place] if place < len(names) else ""
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            raise ConvertError(
                f"{what}, with {part.strip()!r:.{SHOWN}}"
                + (f"; is it {close[0]!r}?" if close else "")
                + f" Expected {KINDS[kind].signature}"
            )
        if name in given:
            raise ConvertError(f"{what}, which says {name} twice; expected it once")
        given[name] = _value(name, part[match.end() if match else 0 :], what)
    return tuple(given.items())


def _value(name: str, text: str, what: str) -> Any:
    """The value of a parameter, checked."""
    value = value_of(text)
    if expected := wanted(name, value):
        raise ConvertError(f"{what}, with {name}={text.strip()!r:.{SHOWN}}; expected {expected}")
    return float(value) if name in _NUMBERS else value


def wanted(name: str, value: Any) -> str:
    """What a parameter is expected to be, if it is not that; "" if it is."""
    whole = type(value) is int
    if name in _INTEGERS:
        return "" if whole else "an integer"
    if name in _ONE_OR_MORE:
        several = isinstance(value, tuple) and bool(value) and {*map(type, value)} == {int}
        return "" if whole or several else "an integer, or one for each axis in parentheses"
    if name in _NUMBERS:
        good = type(value) in (int, float) and abs(value) <= sys.float_info.max
        return "" if good else "a number"
    if name in _FLAGS:
        return "" if type(value) is bool else "true or false"
    if name == "padding":
        good = _is_padding(value)
        return "" if good else "an integer, 'causal', 'same', or one for each axis"
    return "" if isinstance(value, str) and value else "a name"


def _is_padding(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(
            _is_padding(v) and (not isinstance(v, tuple) or {*map(type, v)} == {int}) for v in value
        )
    return (type(value) is int and value >= 0) or value in ("causal", "same", "valid")
