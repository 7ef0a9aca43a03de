"""What a model was made of, as a program that can be called, and run along a sequence.

A program knows no axes: a :class:`~fastlstm.signature.Call` tells which are time and the batch, and
which arguments are states. One that has no axis of time is called once a step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.model import Model
from fastlstm.signature import BATCH, TIME, Argument, Call
from fastlstm.verification.evaluations import (
    Arrays,
    Run,
    cut_out,
    last_only,
    moving,
    pieces_of_whole,
    row_of,
    waits_for_end,
)

__all__ = ["Original", "Program", "arranged", "reason", "rows_in"]

Array = npt.NDArray[Any]


class Program(Protocol):
    """Somebody else's program.

    Attributes
    ----------
    name : str
        What runs it, and in which precision, where there may be several.
    dtype : numpy.dtype
        Of its arithmetic, or of the weights that it shares with the model if that is coarser.
    """

    name: str
    dtype: np.dtype[Any]

    def start(self) -> Any:
        """What remembers, between calls, whatever the program itself remembers."""

    def call(self, session: Any, arguments: Mapping[str, Any]) -> Mapping[str, Array]:
        """All outputs by name, of arguments by name: arrays, or constants as they were told.

        Numbers come as float64, float32 or integers; the program converts them to what it takes.
        """

    def size_of(self, argument: str, axis: int) -> int | None:
        """The only size that an axis of an argument can have, where it says so."""


class Original:
    """A program that is called as a model's source says: a `Source`."""

    def __init__(self, program: Program, call: Call, model: Model) -> None:
        self.name, self.dtype = program.name, program.dtype
        self.call = call
        self._program, self._model = program, model
        given = {i.name: i for i in model.graph.inputs}
        self._rows = [a for a in call.arguments if a.role == "rows"]
        lacking = given.keys() - {a.value for a in self._rows}
        if lacking or any(a.value not in given for a in self._rows):
            raise ValueError(
                f"the source is called with {call}, and the model reads "
                f"{', '.join(map(repr, given))}; they are not of one another"
            )
        # One without an output at its other end is the same in every call.
        self._states = [a for a in call.arguments if a.role == "state"]
        self._keeps = any(a.value for a in self._states)
        known = set(model.outputs)
        self._gives = [a for a in call.outputs if a.role == "rows" and a.value in known]
        self.outputs = tuple(a.value for a in self._gives)
        self.batch_size = self._fixed(BATCH)
        if not any(BATCH in a.axes for a in self._rows):
            self.batch_size = 1
        self.steps_alone = not any(TIME in a.axes for a in self._rows)
        self.length = 1 if self.steps_alone else self._fixed(TIME)

    def _fixed(self, axis: str) -> int | None:
        sizes = {
            size
            for a in self._rows
            if axis in a.axes
            and (size := self._program.size_of(a.name, a.axes.index(axis))) is not None
        }
        return max(sizes, default=None)

    @property
    def chains(self) -> bool:
        return self.length is None or self.steps_alone or self._keeps

    @property
    def carries(self) -> bool:
        if self._model.looks_ahead or self._model.pools_over_time:
            return False
        # A call of one that keeps states pads each of its pieces.
        keeps = self.steps_alone or self._keeps
        return self.chains and not (keeps and waits_for_end(self._model))

    def carry(self, x: Arrays) -> Run:
        if self.steps_alone or self._keeps:
            return self.run
        steps, _ = moving(self._model.graph, x)
        return pieces_of_whole(self._model, self.run(x, None)[0], steps)

    def run(self, x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        graph = self._model.graph
        T, B = moving(graph, x)
        session, kept = state or self.start(B)
        length = self.length or T
        made: dict[str, list[Array]] = {name: [] for name in self.outputs}
        for at in range(0, T, length):
            outputs = self.step(session, cut_out(graph, x, at, at + length), kept)
            for a in self._gives:
                row = row_of(self._model, a.value)
                made[a.value].append(rows_in(outputs[a.name], a, row, B))
            kept = {a.name: outputs[a.value] if a.value else kept[a.name] for a in self._states}
        ends = {name: last_only(row_of(self._model, name)) for name in made}
        y = {name: rows[-1] if ends[name] else np.concatenate(rows) for name, rows in made.items()}
        return y, (session, kept)

    def start(self, B: int) -> tuple[Any, dict[str, Array]]:
        """What remembers, and states, which are zero where a sequence starts."""
        return self._program.start(), {
            a.name: np.zeros([B if axis == BATCH else int(axis) for axis in a.axes], np.float32)
            for a in self._states
        }

    def step(self, session: Any, x: Arrays, kept: Arrays) -> Mapping[str, Array]:
        """All outputs of one call."""
        graph = self._model.graph
        T, B = moving(graph, x)
        held = {given.name for given in graph.inputs if given.held}
        arguments: dict[str, Any] = {}
        for a in self.call.arguments:
            if a.role == "rows":
                arguments[a.name] = arranged(x[a.value], a, a.value in held)
            elif a.role == "constant":
                arguments[a.name] = json.loads(a.value)
            elif a.role == "lengths":
                arguments[a.name] = np.full(B, T, np.int64)
            else:
                arguments[a.name] = kept[a.name]
        try:
            outputs = self._program.call(session, arguments)
        except Exception as error:  # whatever somebody else's code raises
            raise ValueError(
                f"{self.name}, called with {self.call}, fails: {reason(error)}"
            ) from error
        wanted = [a.name for a in self._gives] + [a.value for a in self._states if a.value]
        if wanted and set(outputs) == {""}:
            # All of what it returns is one array, which has no place, and perhaps a name.
            outputs = dict.fromkeys(wanted, outputs[""])
        for name in wanted:
            if name not in outputs:
                raise ValueError(
                    f"{self.name} gives {', '.join(map(repr, outputs))}; expected {name!r} too"
                )
        return outputs


def arranged(x: Array, a: Argument, held: bool = False) -> Array:
    """Rows (T, B, ...), or (B, ...) of what is held, as an argument has them."""
    rows = x[None] if held else x
    sizes = [axis for axis in a.axes if isinstance(axis, int)]
    try:
        split = rows.reshape(*rows.shape[:2], *sizes)
    except ValueError:
        raise ValueError(f"rows of shape {rows.shape[2:]} are no argument {a}") from None
    numbers = iter(range(2, 2 + len(sizes)))
    places = {TIME: 0, BATCH: 1}
    order = [places[axis] if isinstance(axis, str) else next(numbers) for axis in a.axes]
    left_out = [n for n, axis in enumerate((TIME, BATCH)) if axis not in a.axes]
    return np.ascontiguousarray(
        split.transpose(*left_out, *order).reshape([split.shape[n] for n in order])
    )


def rows_in(y: Array, a: Argument, row: spec.Row, B: int) -> Array:
    """The rows (N, B, O) that an output has."""
    axes = list(a.axes)
    if len(axes) != y.ndim:
        y = _unsqueezed(y, a, B)
    first = [axes.index(axis) for axis in (TIME, BATCH) if axis in axes]
    order = [*first, *(n for n in range(y.ndim) if n not in first)]
    steps = y.shape[axes.index(TIME)] if TIME in axes else 1
    if y.size != steps * B * math.prod(row.shape):
        raise ValueError(
            f"output {a.name!r} has shape {y.shape}; expected {row} for each step of {B} rows"
        )
    return y.transpose(order).reshape(steps, B, math.prod(row.shape))


def _unsqueezed(y: Array, a: Argument, B: int) -> Array:
    """An output of which axes of one entry were dropped, as ``squeeze`` does."""
    sizes = {axis: B if axis == BATCH else axis for axis in a.axes if axis != TIME}
    one = math.prod(int(sizes[axis]) for axis in a.axes if axis != TIME)
    steps = y.size // one if one else 0
    whole = [steps if axis == TIME else int(sizes[axis]) for axis in a.axes]
    if [n for n in whole if n != 1] != [n for n in y.shape if n != 1]:
        raise ValueError(f"output {a.name!r} has shape {y.shape}; expected the axes of {a}")
    return y.reshape(whole)


def reason(error: Exception) -> str:
    """What somebody else's error says, in a line."""
    lines = [line.strip() for line in f"{error}".splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TorchScript shows its code first, and then what was wrong.
    return lines[-1 if lines[0].startswith("The following operation failed") else 0][:200]
