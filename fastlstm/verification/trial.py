"""A model and what it is compared with, over one random sequence or another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from fastlstm.model import Model
from fastlstm.verification.comparison import RESTART_STEPS, Comparison, Starts, compare, cut
from fastlstm.verification.evaluations import Run, Source, cut_out, drawn, size_of

__all__ = ["Trial"]

Compared = tuple[Comparison, ...]

# Steps whose time tells how many the exact evaluation gets through.
PROBED_STEPS = 16

# A source that takes a sequence as a whole gives its output as a whole too: steps times rows times
# features of the wider of the two, 256 MB in float64.
MOST_NUMBERS = 2**25


class Trial:
    """What stays the same from comparison to comparison.

    Parameters
    ----------
    model : Model
    exactly : Run
        The exact evaluation.
    evaluations : mapping of str to Run
        What takes part in every comparison.
    yardstick : str
        Which of them.
    batch_size, seed : int
    seconds : float
        For the exact evaluation, in each comparison.
    """

    def __init__(
        self,
        model: Model,
        exactly: Run,
        evaluations: Mapping[str, Run],
        yardstick: str,
        *,
        batch_size: int,
        seed: int,
        seconds: float,
    ) -> None:
        self.notes: list[str] = []
        self.model = model
        self.exactly = exactly
        self.evaluations = evaluations
        self.yardstick = yardstick
        self.batch_size = batch_size
        self.seed = seed
        self.seconds = seconds

    def long(
        self, steps: int, sources: Sequence[Source], advance: Callable[[int], None]
    ) -> Compared:
        """Of the whole sequence, with sources that can follow it."""
        starts: Starts = "anew" if self.model.looks_ahead else "carried"
        return self._compared(starts, steps, sources, None, advance)

    def follows(self, source: Source) -> bool:
        """Whether a source can take part in :meth:`long`."""
        return source.chains if self.model.looks_ahead else source.carries

    def restarted(self, steps: int) -> Compared:
        """Of a chaotic model, from the exact state every few steps."""
        starts: Starts = "restarted" if _restarts(self.model) else "anew"
        return self._compared(starts, steps, (), RESTART_STEPS)

    def anew(self, steps: int, sources: Sequence[Source], longest: int | None) -> Compared:
        """Of sequences that each begin at the start, which every source can take."""
        return self._compared("anew", steps, sources, longest)

    def _compared(
        self,
        starts: Starts,
        steps: int,
        sources: Sequence[Source],
        longest: int | None,
        advance: Callable[[int], None] = lambda steps: None,
    ) -> Compared:
        model, rows = self.model, self.batch_size
        unit = max((source.length or 1 for source in sources), default=1)
        if not all(source.chains for source in sources):
            longest = unit
        steps = self._affordable(steps, longest or PROBED_STEPS)
        if sources:
            steps = self._fitting(steps)
        calls = cut(model, steps, rows, starts, unit=unit, longest=longest)
        x = drawn(model, (sum(calls), rows), self.seed)
        runs = dict(self.evaluations)
        for source in sources:
            runs[source.name] = source.carry(x) if starts == "carried" else source.run
        return compare(model, self.exactly, runs, self.yardstick, x, calls, starts, advance)

    def _affordable(self, steps: int, call: int) -> int:
        """As many as the exact evaluation gets through in time, in such calls."""
        call = min(call, PROBED_STEPS)
        if steps <= call:
            return steps
        x = drawn(self.model, (call, self.batch_size), self.seed)
        self.exactly(cut_out(self.model.graph, x, 0, 1), None)  # what is done once
        began = time.perf_counter()
        self.exactly(x, None)
        one = (time.perf_counter() - began) / call
        most = max(int(self.seconds / one), call)
        if steps <= most:
            return steps
        self.notes.append(
            f"{most:,} steps instead of {steps:,}: the exact evaluation takes about "
            f"{one * 1000:.2g} ms for one, and has {self.seconds:g} seconds"
        )
        return most

    def _fitting(self, steps: int) -> int:
        model = self.model
        width = max(
            size_of(model), sum(max(math.prod(shape), 1) for shape in model.inputs.values())
        )
        most = max(MOST_NUMBERS // (self.batch_size * width), 1)
        if steps <= most:
            return steps
        self.notes.append(
            f"{most:,} steps instead of {steps:,}: the outputs of a whole sequence are kept in "
            f"memory, {MOST_NUMBERS:,} numbers at most"
        )
        return most


def _restarts(model: Model) -> bool:
    """Whether the model can go on from a state of the equations, which keep queues otherwise."""
    return not model.looks_ahead and not any(map(any, model.facts.queues.values()))
