"""Batcher: what single requests of many streams become, and what becomes of every one of them.

Every answer is compared, in bits, with a Stream of its own. Nothing here waits for a real clock.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle
import re
import selectors
import signal
import threading

import chain as spec
import numpy as np
import pytest
from models import build, every_kind, input_for, recurrent
from ways import assert_same_bits

import fastlstm
from fastlstm.batching import Batcher
from fastlstm.pool import Pool

INPUTS, H = 5, 9
MODELS = {
    "lstm": (recurrent("lstm", INPUTS, H), spec.Linear("out", H, 3)),
    "gru": (recurrent("gru", INPUTS, H, num_layers=2),),
    "tokens": (
        spec.Embedding("e", 11, INPUTS),
        recurrent("lstm", INPUTS, H),
        spec.Linear("out", H, 11),
    ),
    "one_hot": (spec.OneHot("o", 7), recurrent("rnn_tanh", 7, H)),
    **{kind: every_kind(4)[kind] for kind in ("causal", "delayed", "grouped", "mean")},
}


class RecordedPool(Pool):
    """A pool that notes the inputs of its calls, and can be told to raise instead of the next."""

    def __new__(cls, model, *args, **options):
        self = super().__new__(cls, model, *args, **options)
        self.calls: list[dict[int, np.ndarray]] = []  # slot -> its steps of a call
        self.read: dict[int, list[np.ndarray]] = {}  # slot -> all its steps
        self.errors: list[BaseException] = []
        return self

    def note(self, slots, blocks):
        call = {int(slot): np.array(x) for slot, x in zip(slots, blocks, strict=True)}
        self.calls.append(call)
        for slot, x in call.items():
            self.read.setdefault(slot, []).extend(x)

    def step(self, slots, x, *, out=None):
        if self.errors:
            raise self.errors.pop(0)
        y = super().step(slots, x, out=out)
        self.note(slots, x[:, None])
        return y

    def run(self, slots, x, lengths=None, *, out=None):
        if self.errors:
            raise self.errors.pop(0)
        y = super().run(slots, x, lengths, out=out)
        steps = [len(x)] * len(slots) if lengths is None else lengths
        self.note(slots, [x[:n, i] for i, n in enumerate(steps)])
        return y

    def sizes(self) -> list[int]:
        return [len(call) for call in self.calls]


@pytest.fixture
def model(rng) -> fastlstm.Model:
    return build(MODELS["lstm"], rng, reproducible=True)


@pytest.fixture
def pool(model) -> RecordedPool:
    return RecordedPool(model, capacity=200)


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def assert_same_answer(got, expected) -> None:
    if expected is None:
        assert got is None
    else:
        assert_same_bits(got, expected)
        assert got.base is None, "the array keeps another's memory"


# What comes out


@pytest.mark.parametrize("name", MODELS)
class TestAnswers:
    def test_steps_and_blocks_of_many_streams(self, name, rng):
        """As from a Stream each, in order, however they fall into batches."""
        model = build(MODELS[name], rng, reproducible=True)
        pool = RecordedPool(model, max_batch=13)
        slots = [pool.open() for _ in range(9)]
        streams = {slot: model.stream() for slot in slots}

        def ask(slot, length):
            """A request and its answer."""
            x = input_for(model, rng, *([] if length is None else [length]))
            if length is None:
                return pool.step_async(slot, x), streams[slot].step(x)
            return pool.run_async(slot, x), streams[slot].run(x)

        async def main():
            for _ in range(12):
                lengths = rng.choice([None, None, 0, 1, 2, 5], rng.integers(1, 30))
                requests = [ask(int(rng.choice(slots)), length) for length in lengths]
                answers = await asyncio.gather(*(request for request, _ in requests))
                for answer, (_, expected) in zip(answers, requests, strict=True):
                    assert_same_answer(answer, expected)

        asyncio.run(main())
        assert max(pool.sizes()) > 1

    def test_single_steps(self, name, rng):
        """Of streams that are not in step: they joined at different times."""
        model = build(MODELS[name], rng, reproducible=True)
        pool = RecordedPool(model)

        async def main():
            streams: dict[int, fastlstm.Stream] = {}
            for _ in range(9):
                for _ in range(rng.integers(4)):
                    streams[pool.open()] = model.stream()
                inputs = {slot: input_for(model, rng) for slot in streams}
                if model.takes_tokens:
                    inputs = {slot: int(x) for slot, x in inputs.items()}
                answers = await asyncio.gather(*(pool.step_async(*item) for item in inputs.items()))
                for answer, (slot, x) in zip(answers, inputs.items(), strict=True):
                    assert_same_answer(answer, streams[slot].step(x))

        asyncio.run(main())
        assert len(pool.calls) == len([n for n in pool.sizes() if n])


def test_nan_reaches_no_other_request(model, pool, rng):
    slots = [pool.open() for _ in range(12)]
    streams = [model.stream() for _ in slots]

    async def main():
        for t in range(4):
            x = input_for(model, rng, len(slots))
            x[3::4] = np.nan
            block = 1 if t % 2 else None  # by pool.step, and by pool.run
            asked = [pool.step_async(slot, x[i]) for i, slot in enumerate(slots[1:], 1)]
            asked.append(
                pool.run_async(slots[0], x[:1]) if block else pool.step_async(slots[0], x[0])
            )
            *answers, first = await asyncio.gather(*asked)
            for i, answer in enumerate([np.ravel(first), *answers]):
                assert_same_bits(answer, streams[i].step(x[i]))
                assert np.isnan(answer).all() == (i % 4 == 3)

    asyncio.run(main())


def test_the_input_may_change_after_the_call(model, rng):
    pool = model.pool()
    slots = [pool.open() for _ in range(4)]
    X, Y = input_for(model, rng, 4), input_for(model, rng, 4, 3)

    async def main():
        batcher = Batcher(pool)
        buffer, block = np.empty(INPUTS, np.float32), np.empty((3, INPUTS), np.float32)
        steps, blocks = [], []
        for slot, x, y in zip(slots, X, Y, strict=True):
            buffer[:], block[:] = x, y
            steps.append(batcher.submit(slot, buffer))
            blocks.append(batcher.submit(slot, block))
            buffer[:] = block[:] = np.nan
        return await asyncio.gather(*steps), await asyncio.gather(*blocks)

    for x, y, step, block in zip(X, Y, *asyncio.run(main()), strict=True):
        stream = model.stream()
        assert_same_bits(step, stream.step(x))
        assert_same_bits(block, stream.run(y))


def test_inputs_that_lie_differently_in_memory(model, rng):
    pool = model.pool()
    x = input_for(model, rng, 4)
    column = np.asfortranarray(x)[2]
    block = input_for(model, rng, 7)[::-2]
    slot, stream = pool.open(), model.stream()

    async def main():
        return [await pool.step_async(np.int64(slot), column), await pool.run_async(slot, block)]

    step, blocks = asyncio.run(main())
    assert_same_bits(step, stream.step(column))
    assert_same_bits(blocks, stream.run(block))


# What goes into a call


class TestBatches:
    def test_one_call_for_all_of_a_turn(self, model, pool, rng):
        slots = [pool.open() for _ in range(100)]

        async def client(slot):
            for _ in range(5):
                await pool.step_async(slot, input_for(model, rng))

        async def main():
            await asyncio.gather(*map(client, slots))

        asyncio.run(main())
        assert [list(call) for call in pool.calls] == [slots] * 5

    def test_requests_of_a_stream_become_a_block(self, model, pool, rng):
        a, b = pool.open(), pool.open()
        x = input_for(model, rng, 7)

        async def main():
            await asyncio.gather(
                *(pool.step_async(a, x[0]), pool.step_async(b, x[1]), pool.run_async(a, x[2:4])),
                *(pool.step_async(b, x[4]), pool.step_async(a, x[5])),
            )

        asyncio.run(main())
        (call,) = pool.calls
        assert_same_bits(call[a], x[[0, 2, 3, 5]])
        assert_same_bits(call[b], x[[1, 4]])

    @pytest.mark.parametrize("max_batch", [1, 2, 7, 30])
    def test_max_batch_requests_in_order(self, model, rng, max_batch):
        pool = RecordedPool(model, max_batch=max_batch)
        slots = [pool.open() for _ in range(20)]

        async def main():
            x = input_for(model, rng, len(slots))
            await asyncio.gather(*map(pool.step_async, slots, x))

        asyncio.run(main())
        sizes = [max_batch] * (20 // max_batch) + [20 % max_batch] * (20 % max_batch > 0)
        assert pool.sizes() == sizes
        assert list(itertools.chain(*pool.calls)) == slots

    def test_max_batch_counts_requests_of_one_stream(self, model, rng):
        pool = RecordedPool(model, max_batch=3)
        slot, x = pool.open(), input_for(model, rng, 8)

        async def main():
            await asyncio.gather(*(pool.step_async(slot, row) for row in x))

        asyncio.run(main())
        assert [len(call[slot]) for call in pool.calls] == [3, 3, 2]
        assert_same_bits(np.array(pool.read[slot]), x)

    def test_cancelled_requests_take_no_place(self, model, rng):
        pool = RecordedPool(model, max_batch=4)
        slots = [pool.open() for _ in range(8)]

        async def main():
            batcher = Batcher(pool, 4)
            answers = [batcher.submit(slot, input_for(model, rng)) for slot in slots]
            for answer in answers[::2]:
                answer.cancel()
            await asyncio.gather(*answers[1::2])

        asyncio.run(main())
        assert [list(call) for call in pool.calls] == [slots[1::2]]

    def test_the_loop_goes_on_between_batches(self, model, rng):
        """What is ready elsewhere runs, however much is queued."""
        pool = RecordedPool(model, max_batch=2)
        slots = [pool.open() for _ in range(10)]
        seen = []

        async def main():
            asked = asyncio.gather(
                *(pool.step_async(slot, input_for(model, rng)) for slot in slots)
            )
            while not asked.done():
                seen.append(len(pool.calls))
                await asyncio.sleep(0)
            await asked

        asyncio.run(main())
        assert {0, 1, 2, 3, 4, 5} <= set(seen)


# When a call is made: by a clock that the test moves


class TestOnBatch:
    """Whoever counts is told the size of each call."""

    def test_is_told_before_each_call(self, model, rng):
        told: list[int] = []
        pool = model.pool(max_batch=3, on_batch=told.append)
        x = rng.standard_normal((INPUTS,)).astype(np.float32)

        async def ask() -> None:
            slots = [pool.open() for _ in range(7)]
            await asyncio.gather(*(pool.step_async(slot, x) for slot in slots))
            await pool.run_async(slots[0], x[None])

        asyncio.run(ask())
        assert told == [3, 3, 1, 1]
        assert pickle.loads(pickle.dumps(pool)).open() not in pool

    def test_is_told_once_of_a_batch_with_a_closed_stream(self, model, rng):
        told: list[int] = []
        pool = model.pool(on_batch=told.append)
        x = rng.standard_normal((INPUTS,)).astype(np.float32)

        async def ask() -> list[object]:
            slots = [pool.open() for _ in range(3)]
            answers = [pool.submit(slot, x) for slot in slots]
            pool.close(slots[1])
            return await asyncio.gather(*answers, return_exceptions=True)

        a, b, c = asyncio.run(ask())
        assert isinstance(b, ValueError)
        assert np.array_equal(a, c)
        assert told == [3]

    def test_what_it_raises_the_requests_raise(self, model, rng):
        def refuse(count: int) -> None:
            raise OSError(f"{count} requests")

        pool = model.pool(on_batch=refuse)
        slot = pool.open()

        async def ask() -> None:
            x = np.zeros(INPUTS, np.float32)
            with pytest.raises(OSError, match="1 requests"):
                await pool.step_async(slot, x)

        asyncio.run(ask())
        assert pool.steps(slot) == 0


class CoarseSelector(selectors.SelectSelector):
    """Sleeps whole milliseconds, as epoll does, on a clock of its own; a turn takes 20 us."""

    def __init__(self):
        super().__init__()
        self.now = 100.0
        self.turns = 0

    def select(self, timeout=None):
        self.turns += 1
        self.now += 20e-6
        if timeout is not None and timeout > 0:
            self.now += math.ceil(timeout * 1e3) * 1e-3
            timeout = 0
        return super().select(timeout)


class TestMaxWait:
    """Times of the loop's clock, in microseconds from its start."""

    @pytest.fixture
    def clock(self):
        return CoarseSelector()

    @pytest.fixture
    def run(self, clock):
        class Loop(asyncio.SelectorEventLoop):
            def time(self):
                return clock.now

        def run(main):
            clock.now, clock.turns = 100.0, 0
            with asyncio.Runner(loop_factory=lambda: Loop(clock)) as runner:
                return runner.run(main)

        return run

    def now(self, clock):
        return (clock.now - 100) * 1e6

    @pytest.mark.parametrize("max_wait", [50, 300, 990, 1000, 1500, 2000, 7300.5, 40_000])
    def test_a_request_waits_so_long_and_no_longer(self, model, rng, clock, run, max_wait):
        pool = RecordedPool(model, max_wait=max_wait)
        slot = pool.open()

        async def main():
            await pool.step_async(slot, input_for(model, rng))
            return self.now(clock)

        assert max_wait <= run(main()) <= max_wait + 100
        # It slept, but for the last millisecond.
        assert clock.turns <= min(max_wait, 1000) / 20 + 10

    def test_what_comes_meanwhile_joins(self, model, rng, clock, run):
        pool = RecordedPool(model, max_wait=9_500)
        slots = [pool.open() for _ in range(4)]
        ran_at = []

        async def client(slot, delay):
            await asyncio.sleep(delay)
            await pool.step_async(slot, input_for(model, rng))
            ran_at.append(self.now(clock))

        async def main():
            await asyncio.gather(*map(client, slots, [0, 0.004, 0.007, 0.015]))

        run(main())
        assert [list(call) for call in pool.calls] == [slots[:3], slots[3:]]
        assert all(9_500 <= at <= 9_700 for at in ran_at[:3])
        assert 15_000 + 9_500 <= ran_at[3] <= 17_000 + 9_700

    def test_a_full_batch_does_not_wait(self, model, rng, clock, run):
        pool = RecordedPool(model, max_batch=3, max_wait=50_000)
        slots = [pool.open() for _ in range(8)]

        async def main():
            batcher = Batcher(pool, 3, 50_000)
            early = [batcher.submit(slot, input_for(model, rng)) for slot in slots[:2]]
            await asyncio.sleep(0.010)
            assert not pool.calls
            # One more fills a batch, four another and a part of a third, which waits its time.
            late = [batcher.submit(slot, input_for(model, rng)) for slot in slots[2:]]
            await asyncio.gather(*early, late[0])
            first = self.now(clock)
            await asyncio.gather(*late[:4])
            second = self.now(clock)
            assert not late[4].done()
            await asyncio.gather(*late)
            return first, second, self.now(clock)

        first, second, third = run(main())
        assert pool.sizes() == [3, 3, 2]
        assert 10_000 <= first <= second <= 12_000
        assert 60_000 <= third <= 62_000

    def test_nothing_wakes_the_loop_without_requests(self, model, rng, clock, run):
        pool = RecordedPool(model, max_batch=2, max_wait=3_000)
        slots = [pool.open() for _ in range(2)]

        async def turns_of_a_nap():
            before = clock.turns
            await asyncio.sleep(0.010)
            return clock.turns - before

        async def main():
            fewest = await turns_of_a_nap()
            for together in (slots[:1], slots):
                await asyncio.gather(*(pool.step_async(s, input_for(model, rng)) for s in together))
                assert await turns_of_a_nap() == fewest

        run(main())
        assert pool.sizes() == [1, 2]

    def test_timeouts(self, model, rng, clock, run):
        """asyncio.timeout and wait_for take a request out that still waits."""
        pool = RecordedPool(model, max_wait=100_000)
        a, b, c = (pool.open() for _ in range(3))

        async def main():
            other = asyncio.ensure_future(pool.step_async(c, input_for(model, rng)))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await pool.step_async(a, input_for(model, rng))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.run_async(b, input_for(model, rng, 3)), 0.03)
            await other

        run(main())
        assert pool.steps(np.array([a, b, c])).tolist() == [0, 0, 1]


# Back-pressure


class TestMaxPending:
    FULL = (
        "4 requests are queued, and max_pending is 4; stop reading until some are answered, or "
        "use step or run, which stand in line"
    )

    def test_submit_raises_and_step_stands_in_line(self, model, pool, rng):
        slots = [pool.open() for _ in range(10)]

        async def main():
            batcher = Batcher(pool, max_batch=3, max_pending=4)
            order = []

            def ask(method, slot):
                answer = method(slot, input_for(model, rng))
                answer.add_done_callback(lambda _: order.append(slot))
                return answer

            asked = [ask(batcher.submit, slot) for slot in slots[:4]]
            assert batcher.pending == 4
            with pytest.raises(RuntimeError, match=re.escape(self.FULL)):
                batcher.submit(slots[9], input_for(model, rng))
            with pytest.raises(RuntimeError, match=re.escape(self.FULL)):
                batcher.submit(slots[9], input_for(model, rng, 2))
            asked += [ask(batcher.step, slot) for slot in slots[4:9]]
            # The first batch leaves six in line: there is room only when others have run too.
            await asyncio.sleep(0)
            while batcher.pending >= 4:
                with pytest.raises(RuntimeError, match="max_pending is 4; stop reading"):
                    batcher.submit(slots[9], input_for(model, rng))
                await asyncio.sleep(0)
            asked.append(ask(batcher.submit, slots[9]))
            await asyncio.gather(*asked)
            assert batcher.pending == 0
            return order

        assert asyncio.run(main()) == slots
        assert list(itertools.chain(*pool.calls)) == slots
        assert max(pool.sizes()) <= 3

    def test_order_of_each_stream(self, model, rng):
        pool = RecordedPool(model, max_batch=2, max_pending=3)
        slots = [pool.open() for _ in range(3)]
        x = {slot: input_for(model, rng, 11) for slot in slots}
        asked = [(slot, t) for t in range(11) for slot in slots]

        async def main():
            steps = (pool.step_async(slot, x[slot][t]) for slot, t in asked)
            return await asyncio.gather(*steps)

        answers = dict(zip(asked, asyncio.run(main()), strict=True))
        for slot in slots:
            stream = model.stream()
            for t in range(11):
                assert_same_bits(answers[slot, t], stream.step(x[slot][t]))


# Cancellation


class TestCancellation:
    @pytest.mark.parametrize(
        ("stage", "steps"),
        [("not started", 0), ("queued", 0), ("in line", 0), ("answered", 1), ("woken", 1)],
    )
    def test_at_every_stage(self, model, rng, stage, steps):
        pool = RecordedPool(model, max_batch=2, max_pending=2)
        slot, *others = (pool.open() for _ in range(5))

        async def main():
            before = others if stage == "in line" else []
            loop = asyncio.get_running_loop()
            tasks = [
                loop.create_task(pool.step_async(s, input_for(model, rng))) for s in (*before, slot)
            ]
            task = tasks.pop()
            if stage != "not started":
                await asyncio.sleep(0)
            if stage in ("answered", "woken"):
                # The next turn runs the batch; what comes after it there, runs before the task.
                await asyncio.sleep(0)
                assert len(pool.calls) == 1
                assert not task.done()
            if stage == "woken":
                await asyncio.sleep(0)
            cancelled = task.cancel()
            assert cancelled == (stage != "woken")
            if cancelled:
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                await task
            await asyncio.gather(*tasks)

        asyncio.run(main())
        assert pool.steps(slot) == steps
        assert pool.read.keys() - {slot} == (set(others) if stage == "in line" else set())

    def test_of_a_gather_and_a_task_group(self, model, pool, rng):
        slots = [pool.open() for _ in range(6)]

        async def grouped():
            async with asyncio.TaskGroup() as group:
                for slot in slots[2:4]:
                    group.create_task(pool.step_async(slot, input_for(model, rng)))
                await asyncio.sleep(0)
                raise LookupError

        async def main():
            both = asyncio.gather(*(pool.step_async(s, input_for(model, rng)) for s in slots[:2]))
            await asyncio.sleep(0)
            both.cancel()
            with pytest.raises(asyncio.CancelledError):
                await both
            with pytest.raises(ExceptionGroup):
                await grouped()
            await asyncio.gather(*(pool.step_async(s, input_for(model, rng)) for s in slots[4:]))

        asyncio.run(main())
        assert pool.steps(np.array(slots)).tolist() == [0, 0, 0, 0, 1, 1]

    def test_all_of_a_batch(self, model, pool, rng):
        slot = pool.open()

        async def main():
            batcher = Batcher(pool)
            batcher.submit(slot, input_for(model, rng)).cancel()
            await turns(3)
            assert batcher.pending == 0
            await batcher.step(slot, input_for(model, rng))

        asyncio.run(main())
        assert pool.sizes() == [1]

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("name", ["lstm", "delayed", "many tokens"])
    def test_random_schedule(self, name, seed):
        """100 streams whose requests are cancelled at random: no step is lost or made twice."""
        rng = np.random.default_rng([20261121, seed])
        layers = (spec.Embedding("e", 20_000, 4), recurrent("lstm", 4, H))
        model = build(MODELS.get(name, layers), rng, reproducible=True)
        limits = {"max_batch": int(rng.choice([5, 64])), "max_pending": int(rng.choice([10, 4096]))}
        pool = RecordedPool(model, capacity=100, **limits)
        slots = [pool.open() for _ in range(100)]
        asked: dict[int, list[tuple[np.ndarray, bool, asyncio.Task]]] = {s: [] for s in slots}

        tokens = itertools.count()

        def ask(slot):
            """A request, whose input no other has: what was read tells which ones were made."""
            single = bool(rng.integers(4))
            x = input_for(model, rng, *([] if single else [int(rng.integers(1, 4))]))
            if model.takes_tokens:
                x = next(tokens) if single else np.array([next(tokens) for _ in x])
            method = pool.step_async if single else pool.run_async
            task = asyncio.get_running_loop().create_task(method(slot, x))
            asked[slot].append((np.asarray(x), single, task))
            return task

        async def client(slot):
            for _ in range(12):
                tasks = [ask(slot) for _ in range(rng.integers(1, 4))]
                await turns(rng.integers(4))
                for task in tasks:
                    if rng.random() < 0.4:
                        task.cancel()
                if rng.random() < 0.5:
                    await asyncio.wait(tasks)

        async def main():
            await asyncio.gather(*map(client, slots))
            tasks = [task for requests in asked.values() for *_, task in requests]
            await asyncio.wait(tasks)

        asyncio.run(main())
        made_though_cancelled = never_made = 0
        for slot in slots:
            read, at, stream = pool.read.get(slot, []), 0, model.stream()
            assert pool.steps(slot) == len(read)
            for x, single, task in asked[slot]:
                block = x[None] if single else x
                made = np.array_equal(read[at : at + len(block)], block)
                assert made or task.cancelled()
                made_though_cancelled += made and task.cancelled()
                never_made += not made
                if made:
                    at += len(block)
                    y = stream.step(x) if single else stream.run(x)
                    if not task.cancelled():
                        assert_same_answer(task.result(), y)
            assert at == len(read)
        assert made_though_cancelled
        assert never_made


# Errors


class TestErrors:
    @pytest.fixture
    def answers(self):
        """The futures' results or errors."""

        def answers(futures):
            return asyncio.gather(*futures, return_exceptions=True)

        return answers

    @pytest.mark.parametrize("blocks", [False, True])
    def test_a_slot_closed_meanwhile(self, model, pool, rng, answers, blocks):
        slots = [pool.open() for _ in range(6)]
        x = input_for(model, rng, 6)

        async def main():
            batcher = Batcher(pool)
            asked = [batcher.submit(*pair) for pair in zip(slots, x, strict=True)]
            if blocks:
                asked += [batcher.submit(slot, x) for slot in slots]
            pool.close(np.array(slots[1:3]))
            reopened = pool.open()
            return await answers(asked), reopened

        got, reopened = asyncio.run(main())
        assert pool.steps(reopened) == 0
        for i, slot in enumerate(slots):
            stream = model.stream()
            for answer, piece in zip(got[i::6], (x[i : i + 1], x), strict=False):
                if i in (1, 2):
                    assert isinstance(answer, ValueError)
                    assert f"slot {slot} is not open in this pool" in str(answer)
                else:
                    assert_same_bits(answer.reshape(len(piece), -1), stream.run(piece))
        assert len(pool.calls) == 1

    def test_all_slots_closed(self, model, pool, rng, answers):
        slots = [pool.open() for _ in range(3)]

        async def main():
            batcher = Batcher(pool)
            asked = [batcher.submit(slot, input_for(model, rng)) for slot in slots]
            pool.close(np.array(slots))
            return await answers(asked)

        for slot, error in zip(slots, asyncio.run(main()), strict=True):
            assert isinstance(error, ValueError)
            assert f"slot {slot} is not open" in str(error)
        assert not pool.calls

    @pytest.mark.parametrize(
        "error", [RuntimeError("in use by another thread"), MemoryError(), ValueError("odd")]
    )
    def test_of_the_whole_batch(self, model, rng, answers, error):
        pool = RecordedPool(model, max_batch=3)
        slots = [pool.open() for _ in range(5)]
        pool.errors.append(error)

        async def main():
            batcher = Batcher(pool, 3)
            return await answers([batcher.submit(slot, input_for(model, rng)) for slot in slots])

        got = asyncio.run(main())
        assert got[:3] == [error] * 3
        assert all(isinstance(answer, np.ndarray) for answer in got[3:])
        assert pool.steps(np.array(slots)).tolist() == [0, 0, 0, 1, 1]

    def test_an_interrupt_within_a_batch(self, model, rng):
        """It ends the loop; those of the batch learn of it, and the rest runs when it goes on."""
        pool = RecordedPool(model)
        slots = [pool.open() for _ in range(4)]
        pool.errors.append(KeyboardInterrupt())
        batcher = Batcher(pool, max_batch=3)

        asked = []

        async def ask():
            asked.extend(batcher.submit(slot, input_for(model, rng)) for slot in slots)
            await turns(3)

        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(ask())
            text = (
                "the batch was interrupted by KeyboardInterrupt; pool.steps(slot) tells whether "
                "the step was made"
            )
            for answer in asked[:3]:
                assert isinstance(answer.exception(), RuntimeError)
                assert str(answer.exception()) == text
                assert isinstance(answer.exception().__cause__, KeyboardInterrupt)
            assert isinstance(loop.run_until_complete(asked[3]), np.ndarray)
        assert pool.steps(np.array(slots)).tolist() == [0, 0, 0, 1]

    def test_a_signal_that_cancels_within_a_batch(self, model, rng):
        """As Ctrl-C under asyncio.run, whose handler cancels the main task wherever it strikes."""
        if threading.current_thread() is not threading.main_thread():
            pytest.skip("signals come to the main thread")

        class Interrupted(RecordedPool):
            def step(self, slots, x, *, out=None):
                y = super().step(slots, x, out=out)
                signal.raise_signal(signal.SIGINT)
                return y

        pool = Interrupted(model)
        a, b = pool.open(), pool.open()
        other, wrong = [], []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, what: wrong.append(what))
            other.append(loop.create_task(pool.step_async(b, input_for(model, rng))))
            await pool.step_async(a, input_for(model, rng))

        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
        assert not wrong
        assert pool.steps(np.array([a, b])).tolist() == [1, 1]
        assert isinstance(other[0].result(), np.ndarray)


WRONG_INPUT = [
    (
        "step",
        np.zeros(INPUTS),
        TypeError,
        "x has dtype float64; expected float32, which the model computes in; pass "
        "x.astype(np.float32)",
    ),
    ("step", np.zeros((2, INPUTS), np.float32), ValueError, "x has shape (2, 5); expected (5,)"),
    ("step", np.zeros(INPUTS + 1, np.float32), ValueError, "x has shape (6,); expected (5,)"),
    (
        "step",
        [0.0] * INPUTS,
        TypeError,
        "x is a list; expected a NumPy array of float32 and shape (5,); pass np.asarray(x, "
        "dtype=np.float32)",
    ),
    ("run", np.zeros((2, INPUTS)), TypeError, "x has dtype float64; expected float32"),
    ("run", np.zeros((2, INPUTS), ">f4"), TypeError, "x has dtype >f4 of another byte order"),
    ("step", np.zeros(INPUTS, ">f4"), TypeError, "x has dtype >f4 of another byte order"),
    ("run", np.zeros(INPUTS, np.float32), ValueError, "x has shape (5,); expected (T, 5)"),
    ("run", np.zeros((2, 4), np.float32), ValueError, "x has shape (2, 4); expected (T, 5)"),
    ("submit", np.zeros((2, 4), np.float32), ValueError, "x has shape (2, 4); expected (T, 5)"),
    ("submit", np.zeros(4, np.float32), ValueError, "x has shape (4,); expected (5,)"),
    ("submit", np.zeros((1, 2, INPUTS), np.float32), ValueError, "x has shape (1, 2, 5); expected"),
]

WRONG_TOKENS = [
    ("step", 11, ValueError, "token 11 is out of range; the model knows tokens 0 to 10"),
    ("step", -1, ValueError, "token -1 is out of range; the model knows tokens 0 to 10"),
    ("step", 1.0, TypeError, "x is a float; this model takes tokens: expected integers of shape"),
    ("step", True, TypeError, "x is a bool; this model takes tokens: expected integers of shape"),
    (
        "run",
        np.array([3, 11]),
        ValueError,
        "token 11 at index (1) is out of range; the model knows",
    ),
    ("submit", np.array([3.0]), TypeError, "x has dtype float64; this model takes tokens"),
]


class TestBadRequests:
    """They raise at once, and those beside them run."""

    def check(self, model, rng, method, slot, x, error, text):
        pool = RecordedPool(model)
        good = pool.open()
        slot = pool.open() if slot is None else slot

        async def main():
            batcher = Batcher(pool)
            answer = batcher.submit(good, input_for(model, rng))
            with pytest.raises(error, match=re.escape(text)):
                getattr(batcher, method)(slot, x)
            assert batcher.pending == 1
            await answer
            if method != "submit":
                with pytest.raises(error, match=re.escape(text)):
                    await getattr(pool, f"{method}_async")(slot, x)

        asyncio.run(main())
        assert pool.sizes() == [1]

    @pytest.mark.parametrize(("method", "x", "error", "text"), WRONG_INPUT)
    def test_input(self, model, rng, method, x, error, text):
        self.check(model, rng, method, None, x, error, text)

    @pytest.mark.parametrize(("method", "x", "error", "text"), WRONG_TOKENS)
    def test_tokens(self, rng, method, x, error, text):
        self.check(build(MODELS["tokens"], rng), rng, method, None, x, error, text)

    @pytest.mark.parametrize(
        ("slot", "error", "text"),
        [
            (0, ValueError, "slot 0 is not open in this pool"),
            (-1, ValueError, "slot -1 is not open in this pool"),
            (2**62, ValueError, f"slot {2**62} is not open in this pool"),
            (np.int32(12), ValueError, "slot 12 is not open in this pool"),
            (True, TypeError, "slot is a bool; expected the number that pool.open returned"),
            (1.0, TypeError, "slot is a float; expected the number that pool.open returned"),
            ("1", TypeError, "slot is a str; expected the number that pool.open returned"),
            (None, TypeError, "slot is a NoneType; expected the number that pool.open returned"),
        ],
    )
    @pytest.mark.parametrize("method", ["step", "run", "submit"])
    def test_slot(self, model, rng, method, slot, error, text):
        x = input_for(model, rng, *([2] if method == "run" else []))
        if slot is not None:
            self.check(model, rng, method, slot, x, error, text)
        else:

            async def main():
                with pytest.raises(error, match=re.escape(text)):
                    getattr(Batcher(model.pool()), method)(None, x)

            asyncio.run(main())

    def test_stale_slot(self, model, rng):
        pool = model.pool()
        slot = pool.open()
        pool.close(slot)
        self.check(model, rng, "step", slot, input_for(model, rng), ValueError, f"slot {slot} is")

    def test_without_a_loop(self, model, rng):
        pool = model.pool()
        batcher, slot = Batcher(pool), pool.open()
        with pytest.raises(RuntimeError, match="no running event loop"):
            batcher.submit(slot, input_for(model, rng))
        assert batcher.pending == 0


# Event loops

TWO_LOOPS = (
    "another event loop has requests queued for this pool, which serves one loop at a time; await "
    "them there first, close that loop, or give each loop a pool of its own with model.pool()"
)


class TestLoops:
    def test_one_after_the_other(self, model, pool, rng):
        slot, stream = pool.open(), model.stream()
        for _ in range(3):
            x = input_for(model, rng)
            assert_same_bits(asyncio.run(pool.step_async(slot, x)), stream.step(x))

    def test_two_at_once(self, model, pool, rng):
        """While one has requests queued, another is refused; then it is served."""
        slot, x = pool.open(), input_for(model, rng, 6)
        y = model.stream().run(x)
        batcher = Batcher(pool, max_batch=2, max_wait=1e9)  # a batch waits for its second request

        async def ask(*steps):
            return [batcher.submit(slot, x[t]) for t in steps]

        async def answers(*steps):
            return np.stack(await asyncio.gather(*await ask(*steps)))

        first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
        try:
            (queued,) = first.run_until_complete(ask(0))
            with pytest.raises(RuntimeError, match=re.escape(TWO_LOOPS)):
                second.run_until_complete(ask(1))
            first.run_until_complete(ask(1))
            assert_same_bits(first.run_until_complete(queued), y[0])
            assert_same_bits(second.run_until_complete(answers(2, 3)), y[2:4])
            (unwanted,) = first.run_until_complete(ask(0))
            unwanted.cancel()
            assert_same_bits(second.run_until_complete(answers(4, 5)), y[4:])
        finally:
            first.close()
            second.close()
        assert pool.steps(slot) == 6

    def test_another_thread_while_requests_are_queued(self, model, rng):
        pool = RecordedPool(model, max_wait=1e9)
        a, b = pool.open(), pool.open()

        def elsewhere():
            asyncio.run(pool.step_async(b, input_for(model, rng)))

        async def main():
            task = asyncio.ensure_future(pool.step_async(a, input_for(model, rng)))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match=re.escape(TWO_LOOPS)):
                await asyncio.get_running_loop().run_in_executor(None, elsewhere)
            assert not task.done()
            task.cancel()

        asyncio.run(main())
        assert not pool.calls

    def test_closed_with_requests_queued(self, model, pool, rng):
        """They are dropped with their loop; the pool goes on in the next one."""
        slot, x = pool.open(), input_for(model, rng, 7)
        batcher = Batcher(pool, max_batch=4, max_wait=1e9)

        async def ask(steps):
            return [batcher.submit(slot, row) for row in steps]

        async def answers(steps):
            return np.stack(await asyncio.gather(*await ask(steps)))

        loop = asyncio.new_event_loop()
        lost = loop.run_until_complete(ask(x[:3]))
        loop.close()
        assert_same_bits(asyncio.run(answers(x[3:])), model.stream().run(x[3:]))
        assert pool.steps(slot) == 4
        assert not any(answer.done() for answer in lost)

    def test_end_of_asyncio_run_cancels_what_is_queued(self, model, rng):
        pool = RecordedPool(model, max_wait=1e9)
        slot = pool.open()

        async def main():
            task = asyncio.get_running_loop().create_task(
                pool.step_async(slot, input_for(model, rng))
            )
            await asyncio.sleep(0)
            return task

        assert asyncio.run(main()).cancelled()
        assert pool.steps(slot) == 0


def test_asyncio_is_imported_when_it_is_needed(python, tmp_path, model):
    model.save(tmp_path / "model.safetensors")
    code = """
        import sys
        import numpy as np
        import fastlstm

        pool = fastlstm.load(sys.argv[1]).pool()
        slot = pool.open()
        pool.step(slot, np.zeros(5, np.float32))
        assert "asyncio" not in sys.modules
        coroutine = pool.step_async(slot, np.zeros(5, np.float32))
        import asyncio

        print(asyncio.run(coroutine).shape, pool.steps(slot))
    """
    assert python(code, str(tmp_path / "model.safetensors")).strip() == "(3,) 2"
