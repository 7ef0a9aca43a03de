"""What the call before has left of each state: which rows that is, of which steps before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.places import FILL
from fastlstm.sources.arrays.ways import Axes
from fastlstm.sources.conversion import BATCH

__all__ = ["Starts", "followed_back", "of_first_turns"]

Array = npt.NDArray[Any]

# (name of a row, steps before the first) -> its numbers there, where they are not all 0.
Starts = Mapping[tuple[str, int], Array]


def of_first_turns(builder: Builder, places: Array) -> Array:
    """Places of rows of the first turn of a loop, which a second run makes of every step."""
    places = builder.rolled(places)
    rows = at.row_of(places)
    for every, first in builder.loops.first.items():
        here = rows == builder.rows.number(every)
        move = builder.rows.number(first) - builder.rows.number(every)
        places = places + np.where(here, move << at.ROW_SHIFT, 0)
    return places


def followed_back(
    builder: Builder,
    after: Mapping[str, Array],
    axes: Mapping[str, Axes],
    given: Mapping[str, Array | None],
) -> tuple[dict[str, Array], Starts]:
    """The rows that states are of, followed back through the steps before, and where these start.

    Parameters
    ----------
    builder : Builder
        Of a run in which each state is an input of its own.
    after : mapping of str to int64 array
        State -> the places that it has after the run.
    axes : mapping of str to tuple
        What the axes of each state are.
    given : mapping of str to array or None
        What each state is before the first call, if it is not 0.

    Raises
    ------
    ConvertError
        If a state is what itself was, or another one, and so on without an end.
    """
    numbers = {builder.rows.number(f"state {name}"): name for name in after}
    flat = {}  # (batch or 1, numbers)
    for name, places in after.items():
        batch = axes[name].index(BATCH) if BATCH in axes[name] else None
        first = places[None] if batch is None else np.moveaxis(places, batch, 0)
        flat[name] = first.reshape(len(first), -1)
    starts: dict[tuple[str, int], Array] = {}
    made: dict[str, Array] = {}
    for name, places in after.items():
        now = places.copy()
        ago = np.ones(now.shape, np.int64)
        for _ in range(sum(f.size for f in flat.values()) + 1):
            rows = at.row_of(now)
            of_states = np.isin(rows, [*numbers])
            if not of_states.any():
                break
            for number, other in numbers.items():
                here = rows == number
                row = at.batch_of(now[here]) if len(flat[other]) > 1 else 0
                now[here] = flat[other][row, at.offset_of(now[here])]
                ago[here] += 1
        else:
            raise ConvertError(f"state {name!r:.200} never changes; expected what each step sets")
        counts = np.maximum(builder.rows.counts(at.row_of(now)), 1)
        made[name] = at.shifted(now, ago * counts)
        start = given[name]
        if start is not None and np.any(start):
            _note_starts(builder, starts, made[name], start)
    return made, starts


def _note_starts(
    builder: Builder, starts: dict[tuple[str, int], Array], places: Array, start: Array
) -> None:
    for place, value in zip(places.ravel(), np.ravel(start), strict=True):
        if place == FILL:
            if value:
                raise ConvertError("a state that starts from other than zero becomes zero")
            continue
        made = builder.rows.of(int(at.row_of(place)))
        ago = -int(at.steps_of(place))
        offset = int(at.offset_of(place))
        row = starts.setdefault((made.name, ago), np.zeros(made.shape))
        row.reshape(-1)[offset] = value
