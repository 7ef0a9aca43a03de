"""Batcher: requests for single streams, gathered in an event loop into few calls of a Pool."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine

if TYPE_CHECKING:
    from fastlstm.pool import Pool

__all__ = ["Batcher"]

Array = npt.NDArray[Any]
Answer = asyncio.Future[Any]

# Slot; input (a step's features, a token, or all numbers of a block in one axis); steps of a block,
# None for a single step; answer; time of the loop at which it must run. A plain tuple, since one is
# made for every step.
Request = tuple[int, Any, int | None, Answer, float]

# Event loops round their waits up to whole milliseconds, as epoll does (seconds).
LOOP_TICK = 1e-3

# Held while a queue is given to another loop. All batchers share it, for it is rarely wanted. A
# forked child must have another: a thread that held it as the process was forked is not there.
_claiming = threading.Lock()


def _renew_lock() -> None:
    global _claiming
    _claiming = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Batcher:
    """Gathers the requests that arrive within a window into one ``pool.step`` or ``pool.run``.

    What ``pool.step_async`` and ``pool.run_async`` use. :meth:`step`, :meth:`run` and
    :meth:`submit` are called in a running event loop and return a future at once, without a task;
    it gives an array of its own, which keeps no other request's memory alive. The input is copied:
    it may be changed or reused as soon as the call has returned.

    Requests run in the order in which they were made, at most `max_batch` in a call. Several of one
    stream become one block of it, which gives the same bits. Calls are made in the event loop's own
    thread; between two of them the loop handles what else is ready.

    Cancelling a future (or the task that awaits it, or its timeout) before its batch runs takes the
    request out: no step is made. Later, the step was made and only its output is lost;
    ``pool.steps(slot)`` tells.

    A slot that is closed while it has requests gives them the ValueError of ``pool.step``; the
    others of the batch run. Any other error goes to every request of the batch.

    A Batcher serves one event loop at a time. Requests of a loop that was closed are dropped, and
    so are, in a forked child, those of its parent's loop, which answers them.

    Parameters
    ----------
    pool : Pool
    max_batch : int, default 256
        Most requests in a call.
    max_wait : float, default 0
        Microseconds that a request may wait for others; it waits less if `max_batch` of them are
        there. With 0, a batch runs in the next turn of the event loop and has all that arrived in
        this one. Event loops wait in whole milliseconds: the last one (at most; all of a shorter
        wait) passes in turns of the loop that keep the processor busy. With 0 nothing spins.
    max_pending : int, default 4096
        Most requests queued. Beyond them :meth:`submit` raises, and those of :meth:`step` and
        :meth:`run` stand in line behind, first come, first served.
    """

    __slots__ = (
        *("_pool", "_max_batch", "_max_wait", "_max_pending"),
        *("_dtype", "_known_tokens", "_step_shape", "_queue"),
    )

    def __init__(
        self, pool: Pool, max_batch: int = 256, max_wait: float = 0, max_pending: int = 4096
    ) -> None:
        self._pool = pool
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_pending = max_pending
        model = pool.model
        self._dtype = model.dtype
        self._known_tokens = model.input_size if model.takes_tokens else 0
        self._step_shape = () if model.takes_tokens else (model.input_size,)
        self._queue: _Queue | None = None

    @property
    def pending(self) -> int:
        """Requests that wait for their batch, cancelled ones among them until it runs."""
        return 0 if self._queue is None else len(self._queue.requests)

    def step(self, slot: int, x: Any) -> asyncio.Future[Array | None]:
        """Ask for one step of one stream.

        Parameters
        ----------
        slot : int
            An open slot of the pool.
        x : array (I,) of the model's dtype, or an integer token
            The input.

        Returns
        -------
        Future of array (O,), or of None
            None for a step that completes no output, as of :meth:`fastlstm.Stream.step`.

        Raises
        ------
        TypeError, ValueError
            At once, if the slot is not open or `x` does not fit; nothing is queued then.
        RuntimeError
            If no event loop runs in this thread, another loop has requests queued, or another
            thread uses the pool.
        """
        return self._ask(slot, self._checked_step(x), None, waits=True)

    def run(self, slot: int, x: Any) -> asyncio.Future[Array]:
        """Ask for a block of steps of one stream.

        Parameters and errors are those of :meth:`step`, but for the shape of `x`.

        Parameters
        ----------
        slot : int
            An open slot of the pool.
        x : array (T, I) of the model's dtype, or integer tokens (T,)
            The input.

        Returns
        -------
        Future of array (T', O)
            T' is T, but for models with convolutions over time that are strided or not padded.
        """
        return self._ask(slot, *self._checked_block(x), waits=True)

    def submit(self, slot: int, x: Any) -> asyncio.Future[Array | None]:
        """Ask for one step or a block, as the dimensions of `x` say, unless the queue is full.

        For a protocol, which cannot wait: when this raises, it pauses its transport and hands the
        request to :meth:`step`, whose future tells when to resume.

        Raises
        ------
        TypeError, ValueError
            As :meth:`step`.
        RuntimeError
            As :meth:`step`, and if `max_pending` requests are queued.
        """
        if getattr(x, "ndim", 0) > len(self._step_shape):
            return self._ask(slot, *self._checked_block(x), waits=False)
        return self._ask(slot, self._checked_step(x), None, waits=False)

    def _ask(self, slot: int, x: Any, steps: int | None, waits: bool) -> Answer:
        loop = asyncio.get_running_loop()
        queue = self._queue
        if queue is None or queue.loop is not loop:
            queue = self._queue_of(loop)
        if type(slot) is not int or slot not in self._pool:
            slot = self._checked_slot(slot)
        requests = queue.requests
        if not waits and len(requests) >= self._max_pending:
            raise RuntimeError(
                f"{len(requests)} requests are queued, and max_pending is {self._max_pending}; "
                f"stop reading until some are answered, or use step or run, which stand in line"
            )
        answer = loop.create_future()
        due = loop.time() + 1e-6 * self._max_wait if self._max_wait else 0.0
        requests.append((slot, x, steps, answer, due))
        if queue.handle is None:
            queue.schedule()
        elif len(requests) == self._max_batch and self._max_wait:
            queue.hurry()
        return answer

    def _checked_slot(self, slot: Any) -> int:
        if isinstance(slot, bool) or not isinstance(slot, int | np.integer):
            raise TypeError(
                f"slot is a {type(slot).__qualname__}; expected the number that pool.open returned"
            )
        number = int(slot)
        self._pool.steps(number)  # the pool's own error, if it is not open
        return number

    def _checked_step(self, x: Any) -> Any:
        """A copy of a step's features (I,), or its token as an int."""
        if self._known_tokens:
            if type(x) is int and 0 <= x < self._known_tokens:
                return x
            return int(_engine.as_tokens(x, (), self._known_tokens))
        if type(x) is np.ndarray and x.dtype is self._dtype and x.shape == self._step_shape:
            return x.copy()
        return _engine.as_features(x, self._dtype, self._step_shape).copy()

    def _checked_block(self, x: Any) -> tuple[Array, int]:
        """A copy of a block's features or tokens in one axis, and its number of steps."""
        shape = (None, *self._step_shape)
        if self._known_tokens:
            x = _engine.as_tokens(x, shape, self._known_tokens)
        elif (
            type(x) is not np.ndarray
            or x.dtype is not self._dtype
            or x.shape[1:] != self._step_shape
        ):
            x = _engine.as_features(x, self._dtype, shape)
        return x.flatten(), len(x)

    def _queue_of(self, loop: asyncio.AbstractEventLoop) -> _Queue:
        """The queue, from now on of this loop."""
        with _claiming:
            queue = self._queue
            if queue is None or queue.loop is not loop:
                if queue is not None and queue.is_awaited():
                    raise RuntimeError(
                        "another event loop has requests queued for this pool, which serves one "
                        "loop at a time; await them there first, close that loop, or give each "
                        "loop a pool of its own with model.pool()"
                    )
                queue = self._queue = _Queue(self, loop)
            return queue


class _Queue:
    """The requests of one event loop, and the callback of it that runs them in batches.

    While there are requests, `handle` is the callback that will run the first of them.
    """

    __slots__ = (
        *("loop", "requests", "handle", "_process", "_pool", "_max_batch", "_max_wait"),
        *("_takes_tokens", "_step_shape", "_keeps_steps", "_x", "_y"),
    )

    def __init__(self, batcher: Batcher, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.requests: deque[Request] = deque()
        self.handle: asyncio.Handle | None = None
        self._process = os.getpid()
        self._pool = batcher._pool
        self._max_batch = batcher._max_batch
        self._max_wait = batcher._max_wait
        model = batcher._pool.model
        self._takes_tokens = model.takes_tokens
        self._step_shape = () if model.takes_tokens else (model.input_size,)
        self._keeps_steps = model.delay == 0 and model.step_stride == 1
        features = 0 if model.takes_tokens else model.input_size
        self._x = np.empty((self._max_batch, features), model.dtype)
        self._y = np.empty((self._max_batch, model.output_size), model.dtype)

    def is_awaited(self) -> bool:
        """Whether there is a request that can still be answered, in this process."""
        if self._process != os.getpid():
            return False
        requests = self.requests.copy()  # at once: this may be asked by another thread
        return not self.loop.is_closed() and any(not answer.done() for *_, answer, _ in requests)

    def schedule(self) -> None:
        left = self._time_left()
        if left > LOOP_TICK:
            self.handle = self.loop.call_later(left - LOOP_TICK, self._turn)
        else:
            self.handle = self.loop.call_soon(self._turn)

    def hurry(self) -> None:
        """Run a batch in the next turn of the loop, whatever was planned."""
        planned, self.handle = self.handle, self.loop.call_soon(self._turn)
        if planned is not None:
            planned.cancel()

    def _time_left(self) -> float:
        """Seconds until a batch must run."""
        if not self._max_wait or len(self.requests) >= self._max_batch:
            return 0.0
        return self.requests[0][4] - self.loop.time()

    def _turn(self) -> None:
        self.handle = None
        try:
            if self.requests and self._time_left() <= 0:
                self._run_batch()
        finally:
            if self.requests and self.handle is None:
                self.schedule()

    def _run_batch(self) -> None:
        batch: list[Request] = []
        requests = self.requests
        try:
            # Each is in the batch before it leaves the queue, so that an interrupt loses none.
            while requests and len(batch) < self._max_batch:
                request = requests[0]
                if not request[3].done():
                    batch.append(request)
                requests.popleft()
            if batch:
                self._answer(batch)
        except BaseException as interrupt:
            error = RuntimeError(
                f"the batch was interrupted by {type(interrupt).__qualname__}; pool.steps(slot) "
                f"tells whether the step was made"
            )
            error.__cause__ = interrupt
            _refuse(batch, error)
            raise

    def _answer(self, batch: list[Request]) -> None:
        try:
            slots = [request[0] for request in batch]
            blocks = len(batch) - [request[2] for request in batch].count(None)
            if blocks or len(set(slots)) < len(slots):
                outputs = self._run(batch)
            else:
                outputs = self._step(slots, [request[1] for request in batch])
        except ValueError as error:
            rest = self._without_closed(batch)
            if len(rest) == len(batch):
                _refuse(batch, error)
            elif rest:
                self._answer(rest)
            return
        except Exception as error:
            _refuse(batch, error)
            return
        for request, output in zip(batch, outputs, strict=True):
            try:
                request[3].set_result(output)
            except asyncio.InvalidStateError:
                continue  # cancelled just now, by a signal's handler: its step was made

    def _without_closed(self, batch: list[Request]) -> list[Request]:
        """The requests of open slots; the others get their error."""
        rest = []
        for request in batch:
            try:
                self._pool.steps(request[0])
                rest.append(request)
            except Exception as error:
                _refuse([request], error)
        return rest

    def _step(self, slots: list[int], inputs: list[Any]) -> Sequence[Array | None]:
        """The outputs of single steps of different streams."""
        n = len(slots)
        numbers = np.array(slots, np.int64)
        if self._takes_tokens:
            x = np.array(inputs, np.int64)
        else:
            x = self._x[:n]
            np.concatenate(inputs, out=x.reshape(-1))
        gives = None if self._keeps_steps else self._pool.output_steps(numbers)
        # Copied, at about 0.2 microseconds each: a row that is a view would keep all others.
        rows = [row.copy() for row in self._pool.step(numbers, x, out=self._y[:n])]
        if gives is None:
            return rows
        return [row if given else None for row, given in zip(rows, gives, strict=True)]

    def _run(self, batch: list[Request]) -> Sequence[Array | None]:
        """The outputs of any requests: those of one stream run as one block of it."""
        by_slot: dict[int, list[int]] = {}
        for i, request in enumerate(batch):
            by_slot.setdefault(request[0], []).append(i)
        blocks, ends = [], []
        for slot, members in by_slot.items():
            inputs = [batch[i][1] for i in members]
            x = np.hstack(inputs) if len(inputs) > 1 else np.atleast_1d(inputs[0])
            blocks.append(x.reshape(-1, *self._step_shape))
            steps = 0
            for i in members:
                length = batch[i][2]
                steps += 1 if length is None else length
                ends.append(steps if self._keeps_steps else self._pool.output_steps(slot, steps))
        made = self._pool.run(np.array(list(by_slot), np.int64), blocks)
        outputs: list[Array | None] = [None] * len(batch)
        end = iter(ends)
        for y, members in zip(made, by_slot.values(), strict=True):
            first = 0
            for i in members:
                last = next(end)
                if batch[i][2] is not None:
                    outputs[i] = y if len(members) == 1 else y[first:last].copy()
                elif last > first:
                    outputs[i] = y[first].copy()
                first = last
        return outputs


def _refuse(batch: Iterable[Request], error: Exception) -> None:
    for request in batch:
        if not request[3].done():
            request[3].set_exception(error)
