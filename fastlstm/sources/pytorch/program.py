"""Words in the order in which they run, brackets and all: what each next one is given.

A row that goes through the graph tells what each word is given, while it is made. So a kernel of as
many axes as a row has positions moves over those, and one of an axis more moves over time too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch import rows, weighted
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.making import Making, MisfitError, Source, Value, Weights
from fastlstm.sources.pytorch.words import OPEN, OTHER, Word, parse

__all__ = ["Made", "State", "advanced"]


class Made(NamedTuple):
    """What a word made: its nodes, and their tensors by full name."""

    nodes: tuple[spec.Node, ...]
    sources: dict[str, Source]


class State(NamedTuple):
    """Where in the words one is.

    Parameters
    ----------
    values : tuple of Value
        What the next word reads: one value, or one of each branch before it.
    open : tuple of (values, values)
        Of each bracket that is open, the values that its branches begin with, and those that the
        branches so far ended with.
    made : tuple of Made
        By the words so far.
    """

    values: tuple[Value, ...]
    open: tuple[tuple[tuple[Value, ...], tuple[Value, ...]], ...] = ()
    made: tuple[Made, ...] = ()


def advanced(
    state: State,
    word: Word,
    name: str = "",
    weights: Weights = Weights(),  # noqa: B008  it is a tuple
    nonlinearity: str | None = None,
) -> State:
    """The state behind one more word, or bracket.

    Parameters
    ----------
    state : State
    word : Word
    name : str
        Of the node whose value the word gives; others that it needs are called ``<name>/...``.
    weights : Weights
        What the word is bound to.
    nonlinearity : str, optional
        Of RNNs of which nothing else tells.

    Raises
    ------
    MisfitError
        If it does not fit the rows that it is given, or its weights.
    ConvertError
        If a parameter must be said, what is said contradicts what a module tells, or branches are
        not joined.
    """
    if word.kind == OPEN:
        return state._replace(open=(*state.open, (state.values, ())))
    if not word.is_word:
        starts, ends = state.open[-1]
        ends = (*ends, *state.values)
        if word.kind == OTHER:
            return state._replace(values=starts, open=(*state.open[:-1], (starts, ends)))
        return state._replace(values=ends, open=state.open[:-1])
    if len(state.values) > 1 and word.kind not in rows.JOINING:
        raise ConvertError(
            f"layers= has {str(word)!r:.100} behind {len(state.values)} branches, and it takes one "
            f"row; join them before it, by add, multiply, concatenate, ..., or put it into each"
        )
    making = Making(word, state.values, name, weights, nonlinearity)
    try:
        value = _MAKERS[word.kind](making)
    except (ConvertError, MisfitError):
        raise
    except ValueError as error:
        raise MisfitError(str(error).removeprefix(f"layer {name!r}: ")) from None
    made = Made(tuple(making.nodes), making.sources)
    return State((value,), state.open, (*state.made, made))


def _short(m: Making) -> Value:
    """A word that is short for others, the last of which gives its value."""
    said = {n: v if isinstance(v, str) else repr(v) for n, v in m.settings().items()}
    program = parse(KINDS[m.word.kind].means.format(**said))
    state = State(tuple(m.values))
    for number, word in enumerate(program, 1):
        state = advanced(state, word, m.name if number == len(program) else f"{m.name}/{number}")
    for made in state.made:
        m.nodes += made.nodes
        m.sources |= made.sources
    return state.values[0]


_MAKERS: dict[str, Callable[[Making], Value]] = {
    **rows.MAKERS,
    **weighted.MAKERS,
    **{word: _short for word, kind in KINDS.items() if kind.means},
}
