"""KeyedStreams: the streams of one model, whose states an engine keeps under its keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import fastlstm


class KeyedStreams:
    """A function of states: the engine gives one and the rows that follow, and keeps the new one.

    Nothing of a stream stays here between two calls, so whatever the engine does to its states, as
    to restore those of its last checkpoint, is done to the streams.

    Parameters
    ----------
    model : fastlstm.Model
        One that can be streamed, with one input and one output.
    most : int
        Streams that one call may advance.
    """

    def __init__(self, model: fastlstm.Model, most: int = 1024) -> None:
        self.pool = model.pool(capacity=most)

    def process(
        self, states: Sequence[bytes | None], rows: Sequence[np.ndarray]
    ) -> tuple[list[bytes], list[np.ndarray]]:
        """Advance some streams, each by rows of its own, in one call of the engine.

        Parameters
        ----------
        states : sequence of N bytes or None
            As the last call for each key returned it; None for a key that is new.
        rows : sequence of N arrays (T, I)

        Returns
        -------
        states : list of N bytes
        y : list of N arrays (T', O)

        Raises
        ------
        FormatError
            If a state is damaged, or one of another model.
        """
        slots: list[int] = []
        try:
            for state in states:
                slots.append(self.pool.open() if state is None else self.pool.loads(state))
            y = self.pool.run(slots, list(rows))
            return [self.pool.dumps(slot) for slot in slots], y
        finally:
            for slot in slots:
                self.pool.close(slot)
