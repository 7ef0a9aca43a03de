"""Batcher: requests for single streams, gathered in an event loop into few calls of a Pool."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fastlstm.pool import Pool

__all__ = ["Batcher"]

Array = npt.NDArray[Any]
Answer = asyncio.Future[Any]

# Slot; of each input all numbers of a step or of a block, in one axis; steps of a block, None for a
# single step; answer; time of the loop at which it must run. A plain tuple, since one is made for
# every step.
Request = tuple[int, tuple[Array, ...], int | None, Answer, float]

# Event loops round their waits up to whole milliseconds, as epoll does (seconds).
LOOP_TICK = 1e-3

# Numbers of an input or output that the blocks of a call may have with all their padding.
MOST_PADDED = 1 << 18

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
    on_batch : callable of int, optional
        Told the requests of each call before it is made.
    """

    __slots__ = (
        *("_first", "_max_batch", "_max_pending", "_max_wait", "_network", "_on_batch", "_pool"),
        "_queue",
    )

    def __init__(
        self,
        pool: Pool,
        max_batch: int = 256,
        max_wait: float = 0,
        max_pending: int = 4096,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._pool = pool
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_pending = max_pending
        self._on_batch = on_batch
        self._network = pool.network
        first = self._network.moving[0]
        self._first = first.name, len(first.shape)
        self._queue: _Queue | None = None

    @property
    def pending(self) -> int:
        """Requests that wait for their batch, cancelled ones among them until it runs."""
        return 0 if self._queue is None else len(self._queue.requests)

    def step(self, slot: int, x: Any) -> Answer:
        """Ask for one step of one stream.

        Parameters
        ----------
        slot : int
            An open slot of the pool.
        x : array (I,) of the model's dtype, or an integer token
            The input; of a model with several, a mapping of their names to arrays.

        Returns
        -------
        Future of array (O,), or of None, or of a mapping of names to these
            None for a step that completes no row, and what else :meth:`fastlstm.Stream.step` gives.

        Raises
        ------
        TypeError, ValueError
            At once, if the slot is not open or `x` does not fit; nothing is queued then.
        RuntimeError
            If no event loop runs in this thread, another loop has requests queued, or another
            thread uses the pool.
        """
        return self._ask(slot, self._checked_step(x), None, waits=True)

    def run(self, slot: int, x: Any) -> Answer:
        """Ask for a block of steps of one stream.

        Parameters and errors are those of :meth:`step`, but for the shape of `x`.

        Parameters
        ----------
        slot : int
            An open slot of the pool.
        x : array (T, I) of the model's dtype, or integer tokens (T,)
            The input; of a model with several, a mapping of their names to arrays.

        Returns
        -------
        Future of array (T', O), or of a mapping of names to these
            T' is T, but for models that give more or fewer rows than they read, or late.
        """
        return self._ask(slot, *self._checked_block(x), waits=True)

    def submit(self, slot: int, x: Any) -> Answer:
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
        name, axes = self._first
        first = x if isinstance(x, np.ndarray) or not isinstance(x, Mapping) else x.get(name)
        if getattr(first, "ndim", 0) > axes:
            return self._ask(slot, *self._checked_block(x), waits=False)
        return self._ask(slot, self._checked_step(x), None, waits=False)

    def _ask(self, slot: int, x: tuple[Array, ...], steps: int | None, waits: bool) -> Answer:
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

    def _checked_step(self, x: Any) -> tuple[Array, ...]:
        """A copy of a step's numbers, of each input in one axis."""
        for port in self._network.outputs:
            if port.step_rows == 0:
                raise ValueError(
                    f"output {port.name!r} does not have a whole number of rows for a step; "
                    f"expected run_async of a block of steps"
                )
        return tuple([array.flatten() for array in self._network.arrays_of(x, ())])

    def _checked_block(self, x: Any) -> tuple[tuple[Array, ...], int]:
        """A copy of a block's numbers, of each input in one axis, and its number of steps."""
        arrays = self._network.arrays_of(x, (None,))
        return tuple([array.flatten() for array in arrays]), len(arrays[0])

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
        *("_network", "_on_batch", "_gives_a_row", "_keeps_steps"),
    )

    def __init__(self, batcher: Batcher, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.requests: deque[Request] = deque()
        self.handle: asyncio.Handle | None = None
        self._process = os.getpid()
        self._pool = batcher._pool
        self._max_batch = batcher._max_batch
        self._max_wait = batcher._max_wait
        self._network = batcher._network
        self._on_batch = batcher._on_batch
        outputs = self._network.outputs
        self._gives_a_row = all(port.step_rows == 1 for port in outputs)
        self._keeps_steps = self._network.keeps_steps and not any(port.held for port in outputs)

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
            if batch and self._is_told(batch):
                self._answer(batch)
        except BaseException as interrupt:
            error = RuntimeError(
                f"the batch was interrupted by {type(interrupt).__qualname__}; pool.steps(slot) "
                f"tells whether the step was made"
            )
            error.__cause__ = interrupt
            _refuse(batch, error)
            raise

    def _is_told(self, batch: list[Request]) -> bool:
        """Tell whoever counts of a batch; it is refused with what that raises."""
        if self._on_batch is not None:
            try:
                self._on_batch(len(batch))
            except Exception as error:
                _refuse(batch, error)
                return False
        return True

    def _answer(self, batch: list[Request]) -> None:
        try:
            slots = [request[0] for request in batch]
            lengths = {request[2] for request in batch}
            alike = len(lengths) == 1 and len(set(slots)) == len(slots)
            if alike and self._gives_a_row and None in lengths:
                outputs = self._step(batch, slots)
            elif alike and self._gives_a_row and self._keeps_steps:
                outputs = self._run_alike(batch, slots)
            else:
                outputs = self._run(batch)
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

    def _inputs(self, batch: list[Request], *leading: int) -> Any:
        """The numbers of all requests, of each input as one array (*leading, ...)."""
        arrays = [
            np.concatenate([request[1][i] for request in batch]).reshape(*leading, *port.shape)
            for i, port in enumerate(self._network.moving)
        ]
        if len(arrays) == 1:
            return arrays[0]
        return {p.name: array for p, array in zip(self._network.moving, arrays, strict=True)}

    def _run_alike(self, batch: list[Request], slots: list[int]) -> list[Any]:
        """The outputs of blocks of T steps of different streams, where each step gives a row."""
        numbers, n, T = np.array(slots, np.int64), len(batch), _steps_of(batch[0])
        if T == 1:
            made = self._pool.step(numbers, self._inputs(batch, n))
            return [_of_each(made, lambda y, b: y[b : b + 1].copy(), b) for b in range(n)]
        x = _of_each(self._inputs(batch, n, T), np.swapaxes, 0, 1)
        made = self._pool.run(numbers, x)
        return [_of_each(made, lambda y, b: y[:, b].copy(), b) for b in range(n)]

    def _step(self, batch: list[Request], of: list[int]) -> list[Any]:
        """The outputs of single steps of different streams."""
        network, n = self._network, len(batch)
        slots, x = np.array(of, np.int64), self._inputs(batch, n)
        gives: dict[str, Any] = {
            port.name: None
            if network.keeps_steps
            else self._pool.output_steps(slots, output=port.name)
            for port in network.outputs
        }
        made = self._pool.step(slots, x)
        rows = {
            port.name: made if len(network.outputs) == 1 else made[port.name]
            for port in network.outputs
        }
        # Copied, at about 0.2 microseconds each: a row that is a view would keep all others.
        return [
            _only(
                {
                    name: y[i].copy() if gives[name] is None or gives[name][i] else None
                    for name, y in rows.items()
                }
            )
            for i in range(n)
        ]

    def _run(self, batch: list[Request]) -> list[Any]:
        """The outputs of any requests: those of one stream run as one block of it."""
        by_slot: dict[int, list[int]] = {}
        for i, request in enumerate(batch):
            by_slot.setdefault(request[0], []).append(i)
        self._pool.steps(np.array(list(by_slot), np.int64))  # all are open, before any has run
        # A call pads its blocks to the longest; where that takes much memory, those of one call
        # have none of twice its steps.
        steps = {
            slot: sum(_steps_of(batch[i]) for i in members) for slot, members in by_slot.items()
        }
        widest = max(port.count for port in (*self._network.inputs, *self._network.outputs))
        much = len(steps) * max(steps.values()) * widest > MOST_PADDED
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for slot, members in by_slot.items():
            length = steps[slot].bit_length() if much else 0
            by_length.setdefault(length, []).append((slot, members))
        outputs: list[Any] = [None] * len(batch)
        for some in by_length.values():
            self._run_blocks(batch, some, outputs)
        return outputs

    def _run_blocks(
        self, batch: list[Request], streams: list[tuple[int, list[int]]], outputs: list[Any]
    ) -> None:
        """Run streams (slot, requests of the batch), and put what they give among the outputs."""
        network = self._network
        ends = []
        for _, members in streams:
            taken = [_steps_of(batch[i]) for i in members]
            ends.append(np.cumsum(taken).tolist())
        lengths = np.array([steps[-1] for steps in ends], np.intp)
        x = {}
        for n, port in enumerate(network.moving):
            dtype = np.int64 if port.tokens else network.dtype
            blocks = np.zeros((len(streams), lengths.max(), *port.shape), dtype)
            for block, (_, members), steps in zip(blocks, streams, ends, strict=True):
                numbers = np.concatenate([batch[i][1][n] for i in members])
                block[: steps[-1]] = numbers.reshape(steps[-1], *port.shape)
            x[port.name] = blocks.swapaxes(0, 1)
        slots = np.array([slot for slot, _ in streams], np.int64)
        # Where each request's rows end, of each output, among those of its stream.
        rows = [
            [
                steps
                if network.keeps_steps
                else [self._pool.output_steps(slot, n, output=port.name) for n in steps]
                for (slot, _), steps in zip(streams, ends, strict=True)
            ]
            for port in network.outputs
        ]
        made = self._pool.run(slots, _only(x), lengths)
        arrays = [
            made if len(network.outputs) == 1 else made[port.name] for port in network.outputs
        ]
        for b, (_, members) in enumerate(streams):
            for at, i in enumerate(members):
                found = {}
                for port, y, last in zip(network.outputs, arrays, rows, strict=True):
                    first, end = last[b][at - 1] if at else 0, last[b][at]
                    if port.held:  # its row is one of every call that makes a step
                        first, end = 0, int(batch[i][2] != 0)
                    one: Array | None = None
                    if batch[i][2] is not None or port.step_rows != 1:
                        one = y[first:end, b].copy()
                    elif end > first:
                        one = y[first, b].copy()
                    found[port.name] = one
                outputs[i] = _only(found)


def _of_each(arrays: Any, take: Callable[..., Array], *where: int) -> Any:
    """What is taken of an array, or of each of a mapping."""
    if type(arrays) is not dict:
        return take(arrays, *where)
    return {name: take(array, *where) for name, array in arrays.items()}


def _only(values: dict[str, Any]) -> Any:
    """The mapping of several inputs or outputs, or the only one itself."""
    return values if len(values) > 1 else next(iter(values.values()))


def _refuse(batch: Iterable[Request], error: Exception) -> None:
    for request in batch:
        if not request[3].done():
            request[3].set_exception(error)


def _steps_of(request: Request) -> int:
    """How many steps a request asks for."""
    steps = request[2]
    return 1 if steps is None else steps
