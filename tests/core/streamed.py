"""Model files opened by the core in C, and their streams: many in one process.

``stream_driver.c`` reads what is asked here from a file, and answers in another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from driver_words import Words, bytes_of, filled, word
from programs import ERRORS, Driver

__all__ = ["Answer", "Streamed", "opened"]

Array = npt.NDArray[Any]
Rows = list[Array]

_KINDS = ("reset", "run", "step", "flush", "get", "set", "move", "try", "prepare")


@dataclass(eq=False)
class Answer:
    """What a case gave: why it could not be opened; the names; what its calls gave, in their order.

    Attributes
    ----------
    error : str
        One of ERRORS.
    message : str
    names : list of list of str
        Of inputs, of outputs, of parts of the state.
    calls : list
    """

    error: str
    message: str
    names: list[list[str]]
    calls: list[Any]


class Streamed:
    """A model file, what is made of it, and what to call.

    Parameters
    ----------
    file : bytes
    outputs : sequence of int
        Of each output how many numbers a row has.
    dtype : float32 or float64
        What to compute in.
    isa : str
        "" for the best there is.
    keeps_tensors, whole, prepares : bool
    T, batch, threads : int
        The stream's.
    """

    def __init__(
        self,
        file: bytes,
        outputs: Sequence[int] = (),
        dtype: Any = np.float32,
        isa: str = "",
        *,
        keeps_tensors: bool = False,
        T: int = 1,
        batch: int = 1,
        threads: int = 1,
        whole: bool = False,
        prepares: bool = False,
    ) -> None:
        self._outputs, self._dtype, self._batch = outputs, dtype, batch
        name = isa.encode()
        self._head = [word(len(file)), filled(file)]
        self._head += [word(np.dtype(dtype) == np.float64), word(len(name)), filled(name)]
        self._head += map(word, (keeps_tensors, T, batch, threads, whole, prepares))
        self._calls: list[list[bytes]] = []
        self._readers: list[Callable[[Words], Any]] = []

    def reset(self, held: Sequence[Array] = ()) -> None:
        """Start a sequence. held: (B, count) of each held input."""
        self._add("reset", self._inputs(held), _error)

    def run(
        self, T: int, inputs: Sequence[Array], room: Sequence[int], *, batch_first: bool = False
    ) -> None:
        """T steps of inputs (T, B, count); `room` is how many rows each output has memory for."""
        self._call("run", T, inputs, room, batch_first)

    def step(self, inputs: Sequence[Array]) -> None:
        """One step of one input (1, B, count)."""
        self._call("step", 1, inputs, [1], False)

    def flush(self, room: Sequence[int], *, batch_first: bool = False) -> None:
        """What is due at the end."""
        self._call("flush", 0, [], room, batch_first)

    def prepare(self) -> None:
        """Make of the next step what needs no input."""
        self._add("prepare", [], _error)

    def get_state(self) -> None:
        """The state as bytes."""
        self._add("get", [], _state)

    def set_state(self, state: bytes) -> None:
        """Put it back."""
        self._add("set", [word(len(state)), filled(state)], _error)

    def move(self, T: int, held: Sequence[Array] = ()) -> None:
        """Go on in another stream, of pieces of so many steps."""
        self._add("move", [word(T), *self._inputs(held)], _error)

    def try_all(self) -> None:
        """A beginning, steps, the end, the state, whatever the model has."""
        self._add("try", [], _error)

    def _inputs(self, inputs: Sequence[Array], batch_first: bool = False) -> list[bytes]:
        request = []
        for x in inputs:
            x = x if x.dtype == np.int64 else x.astype(self._dtype)
            if batch_first:
                x = np.moveaxis(x, 0, 1)
            request += [word(x.nbytes), bytes_of(x)]
        return request

    def _call(
        self, kind: str, T: int, inputs: Sequence[Array], room: Sequence[int], batch_first: bool
    ) -> None:
        head = [word(T), word(batch_first), *map(word, room)]
        self._add(kind, head + self._inputs(inputs, batch_first), self._rows)

    def _add(self, kind: str, request: list[bytes], read: Callable[[Words], Any]) -> None:
        self._calls.append([word(_KINDS.index(kind)), *request])
        self._readers.append(read)

    def _rows(self, words: Words) -> Rows | str:
        """Of each output (B, rows, count), or an error."""
        error, rows = ERRORS[words.word()], []
        for count in self._outputs:
            shape = (self._batch, words.word(), count)
            rows.append(words.array(shape, self._dtype))
        return rows if error == "ok" else error

    def to_bytes(self) -> bytes:
        """What the driver reads."""
        parts = [*self._head, word(len(self._calls))]
        for request in self._calls:
            parts += request
        return b"".join(parts)

    def read(self, words: Words) -> Answer:
        """What the driver answered."""
        error, message = ERRORS[words.word()], words.text()
        if error != "ok":
            return Answer(error, message, [], [])
        names = [[words.text() for _ in range(words.word())] for _ in range(3)]
        return Answer(error, message, names, [read(words) for read in self._readers])


def _error(words: Words) -> str:
    return ERRORS[words.word()]


def _state(words: Words) -> bytes | str:
    error = ERRORS[words.word()]
    state = words.array((words.word(),), np.uint8).tobytes()
    return state if error == "ok" else error


def opened(driver: Driver, cases: Sequence[Streamed]) -> list[Answer]:
    """What the driver made of all of them."""
    words = driver.ask("streams", [case.to_bytes() for case in cases])
    answers = [case.read(words) for case in cases]
    words.end()
    return answers
