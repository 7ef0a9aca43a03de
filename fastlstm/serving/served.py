"""A model that is served: its pool, and the sequences of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastlstm
from fastlstm.serving.requests import (
    STATE,
    Answer,
    Array,
    Kind,
    Name,
    Request,
    RequestError,
    checked_name,
)
from fastlstm.serving.tensors import Tensor

__all__ = ["Pending", "Sequence", "Served"]

DATATYPES = {"f4": "FP32", "f8": "FP64", "i8": "INT64"}


class Sequence:
    """The stream of a client: a slot, its steps, and who was told to go when it ends.

    Parameters
    ----------
    slot, steps : int
    """

    __slots__ = ("leave", "slot", "steps")

    def __init__(self, slot: int, steps: int = 0) -> None:
        self.slot, self.steps = slot, steps
        self.leave: Callable[[str], None] | None = None  # of a connection that is its own


class Pending:
    """A request whose steps are queued.

    Parameters
    ----------
    served : Served
    sequence : Sequence
    future : asyncio.Future
        Of what the pool gives.
    made : int
        Steps of the request.
    wanted : tuple of str
        Outputs; all if there are none.
    """

    __slots__ = (
        *("_future", "_last", "_served", "_steps", "_wanted", "is_done", "made", "on_done"),
        "sequence",
    )

    def __init__(
        self,
        served: Served,
        sequence: Sequence,
        future: asyncio.Future[Any],
        made: int,
        wanted: tuple[str, ...],
    ) -> None:
        self._served, self.sequence, self._future = served, sequence, future
        self.made, self._wanted = made, wanted
        self._steps = 0
        # Not that of the future, which is done a turn of the loop before its callbacks have run.
        self.is_done = False
        self._last: Last | None = None
        self.on_done: Callable[[], None] | None = None
        # Called in the order of the requests, before whoever awaits the future goes on, and also
        # if nobody does any more.
        future.add_done_callback(self._finish)

    def _finish(self, done: asyncio.Future[Any]) -> None:
        sequence = self.sequence
        if not done.cancelled() and done.exception() is None:
            sequence.steps += self.made
        self._steps, self.is_done = sequence.steps, True
        if self.on_done is not None:
            self.on_done()

    def end(self, keeps: bool) -> None:
        """Have the stream closed when this request is done; its state may be kept."""
        self._future.add_done_callback(lambda done: self._close(done, keeps))

    def _close(self, done: asyncio.Future[Any], keeps: bool) -> None:
        slot = self.sequence.slot
        try:
            if not done.cancelled() and done.exception() is None:
                self._last = self._served.last(slot, keeps)
        finally:
            self._served.pool.close(slot)

    async def answer(self) -> Answer:
        """Wait for it.

        Raises
        ------
        RequestError
            If it could not be run.
        """
        try:
            made = await self._future
        except (ValueError, RuntimeError, MemoryError) as error:
            # The stream was closed meanwhile, or there was no memory.
            kind = Kind.UNKNOWN if isinstance(error, ValueError) else Kind.FAILED
            raise RequestError(kind, str(error) or type(error).__name__) from error
        outputs, last = self._served.by_name(made), self._last
        answer = Answer(outputs, self._steps)
        if last is not None:
            for name, rows in last.rows.items():
                outputs[name] = np.concatenate([outputs[name], rows])
            answer.state = last.state
        if self._wanted:
            answer.outputs = {name: outputs[name] for name in self._wanted if name != STATE}
        return answer


@dataclass(slots=True)
class Last:
    """What is kept of a stream that is closed.

    Parameters
    ----------
    rows : dict of str to array
        That were still due.
    state : bytes, optional
    """

    rows: dict[str, Array]
    state: bytes | None


class Served:
    """A model, one pool of its streams, and their names.

    Parameters
    ----------
    name : str
        By which clients ask for it.
    model : fastlstm.Model
    most_streams : int
        Sequences at once, those of requests without a name among them.
    most_pending : int
        Requests that wait for their turn.
    most_steps : int
        Of a request.
    most_batch : int
        Requests that run in one call.
    idle : float
        Seconds without a step after which a sequence ends.
    on_batch : callable of int, optional
        Told how many requests each call has.
    """

    def __init__(
        self,
        name: str,
        model: fastlstm.Model,
        *,
        most_streams: int,
        most_pending: int,
        most_steps: int,
        most_batch: int,
        idle: float,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.name, self.model, self.idle = name, model, idle
        self.most_steps, self.most_streams = most_steps, most_streams
        self.pool = model.pool(
            most_streams + 1, max_pending=most_pending, max_batch=most_batch, on_batch=on_batch
        )
        network = self.pool.network
        self._owes = not network.keeps_steps or network.looks_ahead
        self.inputs = {port.name: self._tensor(port) for port in network.inputs}
        self.outputs = {port.name: self._tensor(port) for port in network.outputs}
        self._moving = next(port.name for port in network.inputs if not port.held)
        self._held = tuple(port.name for port in network.inputs if port.held)
        self._only_input = len(network.moving) == 1
        self._only_output = next(iter(self.outputs)) if len(self.outputs) == 1 else None
        self.state = Tensor(STATE, "UINT8", (-1,))
        self.keeps_state = STATE not in self.inputs and STATE not in self.outputs
        self.sequences: dict[Name, Sequence] = {}
        self.stopping = False

    def _tensor(self, port: Any) -> Tensor:
        datatype = "INT64" if getattr(port, "tokens", 0) else DATATYPES[self.model.dtype.str[1:]]
        return Tensor(port.name, datatype, tuple(port.shape) if port.held else (-1, *port.shape))

    def tensor_in(self, name: str) -> Tensor:
        """What an input must be.

        Raises
        ------
        RequestError
            If there is none of that name.
        """
        found = self.inputs.get(name)
        if found is None:
            if name == STATE and self.keeps_state:
                return self.state
            raise RequestError(
                Kind.INVALID, f"there is no input {name!r:.200}; expected {', '.join(self.inputs)}"
            )
        return found

    def by_name(self, made: Any) -> dict[str, Array]:
        """What a pool gives, as a mapping whatever it is."""
        return made if self._only_output is None else {self._only_output: made}

    def submit(self, request: Request) -> Pending:
        """Queue a request, in the order of these calls; its sequence starts or ends with it.

        Raises
        ------
        RequestError
            If it is not queued. Nothing has changed then.
        """
        if self.stopping:
            raise RequestError(Kind.STOPPING, "the server is stopping; ask again when it is back")
        moving, held, steps = self._split(request)
        if request.outputs or request.state is not None:
            self._check_outputs(request)
        name = request.sequence
        fresh, ends = name is None or request.start, name is None or request.end
        if name is None:
            if request.start or request.end:
                raise RequestError(
                    Kind.INVALID, "sequence_start and sequence_end need a sequence_id"
                )
            if held and request.state is not None:
                raise RequestError(
                    Kind.INVALID, f"{', '.join(held)} is in {STATE}; expected it without one only"
                )
            sequence = self._open(held, request.state)
        elif request.start:
            sequence = self._open(held, None, checked_name(name))
        else:
            sequence = self._sequence(name)
            if held:
                raise RequestError(
                    Kind.INVALID,
                    f"{', '.join(held)} is held for a whole sequence; expected it only where "
                    f"sequence_start is true",
                )
        try:
            future = self.pool.submit(sequence.slot, moving)
        except (ValueError, TypeError, RuntimeError) as error:
            if fresh:
                self.pool.close(sequence.slot)
            if isinstance(error, RuntimeError):
                raise RequestError(Kind.FULL, f"too much is asked at once: {error}") from error
            raise RequestError(Kind.INVALID, str(error)) from error
        pending = Pending(self, sequence, future, steps, request.outputs)
        if name is not None and request.start:
            self.end(name)
            if not ends:
                self.sequences[name] = sequence
        elif name is not None and ends:
            del self.sequences[name]
        if ends:
            pending.end(name is None and (request.state is not None or STATE in request.outputs))
        return pending

    def _split(self, request: Request) -> tuple[Any, dict[str, Array], int]:
        """The rows of the inputs, as a pool takes them, what is held for a sequence, and steps."""
        given = request.inputs
        if len(given) < len(self.inputs):
            begins = self._begins(request)
            missing = [n for n in self.inputs if n not in given and (begins or n not in self._held)]
            if missing:
                raise RequestError(
                    Kind.INVALID, f"input {', '.join(map(repr, missing))} is missing"
                )
        first = given[self._moving]
        if len(first) > self.most_steps:
            raise RequestError(
                Kind.INVALID, f"a request of {len(first)} steps; expected at most {self.most_steps}"
            )
        moving: Any = first
        if not self._only_input:
            moving = {name: array for name, array in given.items() if name not in self._held}
        return moving, {name: given[name] for name in self._held if name in given}, len(first)

    @staticmethod
    def _begins(request: Request) -> bool:
        return request.start if request.sequence is not None else request.state is None

    def _check_outputs(self, request: Request) -> None:
        for name in request.outputs:
            if name == STATE and self.keeps_state:
                if request.sequence is not None:
                    raise RequestError(
                        Kind.INVALID,
                        f"{STATE} is for requests without sequence_id, whose client keeps it",
                    )
            elif name not in self.outputs:
                raise RequestError(
                    Kind.INVALID,
                    f"there is no output {name!r:.200}; expected {', '.join(self.outputs)}",
                )
        if request.state is not None and request.sequence is not None:
            raise RequestError(
                Kind.INVALID, f"{STATE} and sequence_id are two ways to go on; use one"
            )

    def _sequence(self, name: Name) -> Sequence:
        found = self.sequences.get(name)
        if found is None:
            raise RequestError(
                Kind.UNKNOWN,
                f"there is no sequence {name!r:.200} of model {self.name!r}: it has ended, was "
                f"idle for {self.idle:g} seconds, or has not started; its first request needs "
                f"sequence_start",
            )
        return found

    def _open(
        self, held: Mapping[str, Array], state: bytes | None, name: Name | None = None
    ) -> Sequence:
        """A sequence that begins, in a slot of its own."""
        pool = self.pool
        # One more than the most is there for a sequence that starts anew: its old one ends after.
        if len(pool) - (name in self.sequences) >= self.most_streams:
            raise RequestError(
                Kind.FULL,
                f"{self.most_streams} streams are open, and no more are taken; end some, or ask "
                f"later",
            )
        try:
            if state is not None:
                return self._loaded(state)
            return Sequence(pool.open(held=held or None))
        except (ValueError, TypeError) as error:
            raise RequestError(Kind.INVALID, str(error)) from error

    def _loaded(self, data: bytes) -> Sequence:
        slot = self.pool.loads(data)
        return Sequence(slot, self.pool.steps(slot))

    def last(self, slot: int, keeps: bool) -> Last:
        """What is due of a stream that ends: its state if that is kept, else its last rows."""
        if keeps:
            return Last({}, self.pool.dumps(slot))
        return Last(self.by_name(self.pool.flush(slot)) if self._owes else {}, None)

    def end(self, name: Name) -> None:
        """End a sequence, if there is one of that name; what it has queued is refused."""
        sequence = self.sequences.pop(name, None)
        if sequence is not None:
            self.pool.close(sequence.slot)

    def sweep(self) -> int:
        """End the sequences that have made no step for too long; how many."""
        idle = set(self.pool.idle(self.idle).tolist())
        if not idle:
            return 0
        gone = [(name, s) for name, s in self.sequences.items() if s.slot in idle]
        for name, sequence in gone:
            self.end(name)
            if sequence.leave is not None:
                sequence.leave(f"no step for {self.idle:g} seconds; the sequence has ended")
        return len(gone)

    def saved(self) -> Iterator[tuple[Name, bytes]]:
        """Every sequence as bytes."""
        for name, sequence in self.sequences.items():
            yield name, self.pool.dumps(sequence.slot)

    def restore(self, name: Name, data: bytes) -> None:
        """Go on with a sequence that :meth:`saved` gave.

        Raises
        ------
        FormatError
            If it is damaged, or of another model.
        RuntimeError
            If all slots are taken.
        """
        self.sequences[name] = self._loaded(data)
