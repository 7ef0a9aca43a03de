"""Pool: the live streams of a server, any of which step together in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine, format
from fastlstm.packed import PackedGraph
from fastlstm.paths import Path
from fastlstm.stream_bytes import dumped, loaded

if TYPE_CHECKING:
    import asyncio

    from fastlstm.batching import Batcher

__all__ = ["Pool"]

Array = npt.NDArray[Any]
Slots = Array | int  # slot numbers: int64 (N,), or a single one

# Of a saved pool, beside the arrays of its states.
SLOTS, STEPS = "pool.slots", "pool.steps"

MOST_WAIT = 10**9  # microseconds


class Pool(_engine.Pool):
    """Many live streams of one model, each with a state of its own.

    Made by :meth:`fastlstm.Model.pool`. Streams come and go at any time: :meth:`open` gives a slot,
    which names the stream until it is closed, and is never given to another. A call names the
    streams that step, and reads and writes their states where they are. What a stream gives does
    not depend, in any bit, on which others step with it or in which order.

    A pool belongs to one thread at a time; the model behind it can be shared by any number of pools
    and threads. A slot's state takes its own bytes, up to 63 more to fill a cache line, and 40 of
    bookkeeping.

    Parameters
    ----------
    model : Model
        One that can be streamed.
    capacity : int, default 1024
        Streams that can be open at once. Memory is taken when they open.
    growth : int, default 0
        Slots to add whenever all are taken, up to 2^24 in all. 0: none; opening one more raises.
    max_batch : int, default 256
        Requests that one call of :meth:`step_async` and :meth:`run_async` may gather.
    max_wait : float, default 0
        Microseconds that a request may wait for others to join it; the last millisecond of them
        passes in turns of the event loop that keep the processor busy. 0: only for those that come
        in the same turn of the loop.
    max_pending : int, default 4096
        Requests that may be queued before :meth:`submit` refuses; those of :meth:`step_async` and
        :meth:`run_async` stand in line behind.
    on_batch : callable of int, optional
        Told the number of requests that run together, once for each batch of :meth:`step_async`
        and :meth:`run_async` and before it, in the event loop's thread. What it raises, the
        requests raise, and no step of them is made. It is not pickled.

    Attributes
    ----------
    capacity : int
        Slots there now are.
    slots : int64 array (N,)
        Those of all open streams. ``len(pool)`` is their number, ``slot in pool`` tells whether one
        is open.

    Raises
    ------
    TypeError, ValueError
        If a number is not an integer or out of range, or the model looks ahead.
    MemoryError
        If there is no memory for so many.

    Examples
    --------
    >>> pool = model.pool(capacity=10_000)
    >>> a, b = pool.open(), pool.open()
    >>> y = pool.step(np.array([b, a]), x)          # (2, I) -> (2, O)
    >>> pool.close(a)
    """

    __slots__ = ("_batcher", "_batching", "_model", "_on_batch")

    _model: PackedGraph
    _on_batch: Callable[[int], None] | None
    _batcher: Batcher | None
    _batching: tuple[int, float, int]

    def __new__(
        cls,
        model: PackedGraph,
        capacity: int = 1024,
        growth: int = 0,
        *,
        max_batch: int = 256,
        max_wait: float = 0,
        max_pending: int = 4096,
        on_batch: Callable[[int], None] | None = None,
    ) -> Pool:
        model.check_streams()
        batching = (
            _engine.as_count("max_batch", max_batch, 1),
            _engine.as_duration("max_wait", max_wait, "microseconds", MOST_WAIT),
            _engine.as_count("max_pending", max_pending, 1),
        )
        self: Pool = super().__new__(cls, model._network, capacity, growth)
        self._model = model
        self._batcher = None
        self._batching = batching
        self._on_batch = on_batch
        return self

    @property
    def model(self) -> Any:
        """The :class:`fastlstm.Model` whose streams these are."""
        return self._model

    def open(
        self,
        state: Mapping[str, Array] | None = None,
        *,
        held: Mapping[str, Array] | None = None,
    ) -> int:
        """Open a stream.

        Parameters
        ----------
        state : mapping of str to array (depth, size), optional
            Where it starts, as an unbatched :attr:`Stream.state`; where each sequence does, if not
            given.
        held : mapping of str to array (...), optional
            Of every input that is held for a sequence, if the model has some.

        Returns
        -------
        int
            Its slot.

        Raises
        ------
        TypeError, ValueError
            If the state does not fit.
        RuntimeError
            If all slots are taken, or another thread uses this pool.
        """
        if state is not None:
            if held:
                raise TypeError("a state holds what is held for its sequence; expected no held=")
            return self.open_row(self._model.state_block(state, None)[0])
        given = self.network.held_of(held, 1, False)
        return self.open_row(self._model.start_block(1, given)[0] if given else None)

    def get_state(self, slots: Slots) -> dict[str, Array]:
        """A copy of the states of some streams.

        Parameters
        ----------
        slots : int64 array (N,), or int

        Returns
        -------
        dict of str to array (depth, N, size)
            Without N if `slots` is an int.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice.
        """
        numbers = _engine.as_slots(slots)
        return self._model.state_arrays(self.read_rows(numbers), numbers.ndim == 1)

    def set_state(self, slots: Slots, state: Mapping[str, Array]) -> None:
        """Replace the states of some streams.

        Parameters
        ----------
        slots : int64 array (N,), or int
        state : mapping of str to array (depth, N, size)
            As from :meth:`get_state`; without N if `slots` is an int.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice, or the state does not fit. None changes then.
        """
        numbers = _engine.as_slots(slots)
        count = len(numbers) if numbers.ndim else None
        block = self._model.state_block(state, count, together=False)
        self.write_rows(numbers, block)

    def save(self, path: Path, slots: Slots | None = None) -> None:
        """Write the states of streams to a file, whole or not at all.

        Parameters
        ----------
        path : str or path
        slots : int64 array (N,) or int, optional
            Which ones; all by default.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice.
        OSError
            If the file cannot be written; one that was there before stays whole.
        """
        numbers, block, steps = self.snapshot(slots)
        arrays = {}
        if len(numbers):
            state = self._model.state_arrays(block, True)
            arrays = state | {SLOTS: numbers, STEPS: steps}
        format.write_state(path, arrays, {"fingerprint": self._model.fingerprint}, "pool")

    def load(self, path: Path, slots: Slots | None = None) -> dict[int, int]:
        """Open a stream for each one that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path
        slots : int64 array (N,) or int, optional
            Those of them to open, as they were numbered when saved; all by default.

        Returns
        -------
        dict of int to int
            For each slot as saved, the slot it now has.

        Raises
        ------
        FormatError
            If the file is not a sound saved pool, or one of another model.
        TypeError, ValueError
            If one of `slots` is not in the file, or given twice.
        RuntimeError
            If there is no room for all of them, or another thread uses this pool. Nothing has been
            opened whenever this method raises.
        """
        saved, steps, block = self._read(path)
        wanted = list(range(len(saved)))
        if slots is not None:
            name = repr(os.fsdecode(path))
            saved_at = {number: i for i, number in enumerate(saved)}
            asked = np.atleast_1d(_engine.as_slots(slots)).tolist()
            wanted = []
            for number in asked:
                if number not in saved_at:
                    raise ValueError(f"slot {number} is not in {name}, or is given twice")
                wanted.append(saved_at.pop(number))
        opened = self.open_rows(block[wanted], np.array(steps, np.int64)[wanted])
        return {saved[i]: int(slot) for i, slot in zip(wanted, opened, strict=True)}

    def dumps(self, slot: int) -> bytes:
        """A stream as bytes, as :meth:`fastlstm.Stream.dumps` of an unbatched one gives them.

        Parameters
        ----------
        slot : int

        Raises
        ------
        TypeError, ValueError
            If it is no slot, or not open.
        """
        numbers = _engine.as_slots(slot)
        if numbers.ndim:
            raise TypeError("slot is an array; expected the number of one stream")
        _, block, steps = self.snapshot(numbers.reshape(1))
        return dumped(self._model, block, int(steps[0]), None)

    def loads(self, data: Any) -> int:
        """Open a stream that goes on from what :meth:`dumps` gave, here or of a Stream.

        Parameters
        ----------
        data : bytes-like
            Untrusted: all of it is checked first.

        Returns
        -------
        int
            Its slot.

        Raises
        ------
        TypeError
            If it is not bytes.
        FormatError
            If the bytes are damaged, of another model, or of a batch.
        RuntimeError
            If all slots are taken, or another thread uses this pool. Nothing has been opened
            whenever this method raises.
        """
        block, steps = loaded(self._model, data, None)
        return int(self.open_rows(block, np.array([steps], np.int64))[0])

    def _read(self, path: Path) -> tuple[list[int], list[int], Array]:
        """Slots, steps and states (N, state_size) of a saved pool."""
        name = repr(os.fsdecode(path))
        arrays, metadata = format.read_state(path, "pool")
        if metadata.get("fingerprint") != self._model.fingerprint:
            raise format.FormatError(
                f"{name} holds streams of another model; expected those of a pool of this model, "
                f"with these very weights"
            )
        if not arrays:
            return [], [], np.empty((0, 0), self._model.dtype)
        numbers, steps = arrays.pop(SLOTS, None), arrays.pop(STEPS, None)
        for array in (numbers, steps):
            if array is None or array.dtype != np.int64 or array.ndim != 1:
                raise format.FormatError(f"{name} lacks the slots or the steps of its streams")
        assert numbers is not None
        assert steps is not None
        if len(steps) != len(numbers) or len(set(numbers.tolist())) < len(numbers):
            raise format.FormatError(f"{name}: a slot is there twice, or lacks its steps")
        if numbers.min() < _engine.MOST_SLOTS:  # the number of the first opening, and index 0
            raise format.FormatError(f"{name}: {numbers.min()} is no number of a slot")
        if steps.min() < 0:
            raise format.FormatError(f"{name}: a stream has made {steps.min()} steps")
        try:
            block = self._model.state_block(arrays, len(numbers), together=False)
        except (TypeError, ValueError) as error:
            raise format.FormatError(f"{name}: {error}") from error
        return numbers.tolist(), steps.tolist(), block

    async def step_async(self, slot: int, x: Any) -> Any:
        """Advance one stream by a step, together with whatever else is asked of this pool.

        Requests that come within the window of `max_wait` run as one call, of at most `max_batch`
        of them, in the thread of the event loop. Those of one stream are made in the order in
        which they were asked for.

        Parameters
        ----------
        slot : int
        x : array (I,) of the model's dtype, or an integer token
            Copied when the request is made. Of a model with several inputs, a mapping of their
            names to arrays.

        Returns
        -------
        array (O,), or None, or a mapping of names to these
            As of :meth:`Stream.step`: None for a step that completes no row.

        Raises
        ------
        TypeError, ValueError
            If the slot is not open, or closed before its turn, or `x` does not fit.
        RuntimeError
            If requests of another event loop are waiting.
        asyncio.CancelledError
            Of a request that was waiting: the step is not made. Of one whose step was just made,
            only the answer is lost: :meth:`steps` tells.
        """
        return await self._requests().step(slot, x)

    async def run_async(self, slot: int, x: Any) -> Any:
        """Advance one stream by a block of steps, as :meth:`step_async` does by one.

        Parameters
        ----------
        slot : int
        x : array (T, I) of the model's dtype, or integer tokens (T,)
            Of a model with several inputs, a mapping of their names to arrays.

        Returns
        -------
        array (T', O), or a mapping of names to these
            As of :meth:`Stream.run`.
        """
        return await self._requests().run(slot, x)

    def submit(self, slot: int, x: Any) -> asyncio.Future[Any]:
        """Ask for a step or a block without waiting, for programs made of callbacks.

        When it raises because too many requests are queued, it is time to pause reading.

        Parameters
        ----------
        slot : int
        x : array (I,) or an integer token: a step; array (T, I) or tokens (T,): a block
            Of a model with several inputs, a mapping, of which the first input tells which it is.

        Returns
        -------
        asyncio.Future of array (O,) or None, or of array (T', O)
            As :meth:`step_async` or :meth:`run_async` would return. Cancelling it is cancelling
            the request.

        Raises
        ------
        TypeError, ValueError
            At once, as :meth:`step_async`.
        RuntimeError
            As :meth:`step_async`, and if `max_pending` requests are queued.
        """
        return self._requests().submit(slot, x)

    def _requests(self) -> Batcher:
        if self._batcher is None:
            from fastlstm.batching import Batcher  # imports asyncio

            self._batcher = Batcher(self, *self._batching, self._on_batch)
        return self._batcher

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self.capacity, self.growth, self._batching)
        return _restore, (self._model, options, *self.snapshot())

    def __repr__(self) -> str:
        return f"<fastlstm.Pool of {self._model!r}; {len(self)} of {self.capacity} slots open>"


def _restore(
    model: PackedGraph,
    options: tuple[int, int, tuple[int, float, int]],
    slots: Array,
    block: Array,
    steps: Array,
) -> Pool:
    capacity, growth, (max_batch, max_wait, max_pending) = options
    pool = Pool(
        model,
        capacity,
        growth,
        max_batch=max_batch,
        max_wait=max_wait,
        max_pending=max_pending,
    )
    pool.restore(slots, block, steps)
    return pool
