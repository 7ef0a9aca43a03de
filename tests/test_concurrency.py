"""Promise 5: one Model, any number of Python threads, each finds what it would have found alone.

Streams, pools and whole calls of a shared model give the same bits from many threads at once; files
are read while others replace them; what is made lazily is made whole; a forked child and another
process go on where they were. Objects with a state belong to one thread at a time: a second one is
refused, and told what to do instead.

The tests start threads of their own, so that they mean the same under any runner; with
``pytest --parallel-threads=4`` (pytest-run-parallel) four threads share each test's fixtures too.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import math
import multiprocessing
import os
import pickle
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import chain as spec
import numpy as np
import pytest
from models import LANES, ChainFile, build, by_turns, input_for, model_file, recurrent, state_for
from ways import assert_same_bits, assert_same_state

import fastlstm
from fastlstm import Model, Stream

THREADS = 6
STEPS = 40

Given = TypeVar("Given")
Found = TypeVar("Found")


def together(work: Callable[[Given], Found], given: Iterable[Given]) -> list[Found]:
    """What `work` returns for each, of threads that begin at once; the first error is raised."""
    given = list(given)
    barrier = threading.Barrier(len(given), timeout=60)

    def begin(one: Given) -> Found:
        barrier.wait()
        return work(one)

    with ThreadPoolExecutor(len(given)) as executor:
        return list(executor.map(begin, given))


def insist(call: Callable[[], Found]) -> Found:
    """What it returns once no other thread has the pool; within a minute."""
    end = time.monotonic() + 60
    while True:
        try:
            return call()
        except RuntimeError as error:
            if "this Pool is in use by another thread" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0)


@pytest.fixture(autouse=True)
def switch_often() -> Generator[None]:
    """Under a GIL, threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def stack(name: str, L: int) -> tuple[spec.Layer, ...]:
    return {
        # So small that a step keeps the GIL.
        "small": (recurrent("gru", 5, L + 3, num_layers=2), spec.Linear("out", L + 3, 4)),
        # So large that a step of one row releases it.
        "large": (recurrent("lstm", 128, 160),),
        "tokens": (
            spec.Embedding("e", 11, L + 1),
            spec.LSTM("a", L + 1, 2 * L + 3, layer_norm="product"),
            spec.Linear("out", 2 * L + 3, 11),
            spec.Activation("p", "softmax", 11),
        ),
        # Not every step gives a row.
        "strided": (
            spec.Conv1d("c", 6, L + 2, 3, stride=2, dilation=2),
            spec.Activation("f", "relu", L + 2),
            recurrent("gru", L + 2, L),
        ),
    }[name]


STACKS = ("small", "large", "tokens", "strided")


@pytest.fixture(params=by_turns(STACKS), ids="-".join)
def model(request: pytest.FixtureRequest, rng: np.random.Generator) -> Model:
    name, isa = request.param
    return build(stack(name, LANES[isa]), rng, isa=isa, reproducible=True)


def walk(stream: Stream, x: np.ndarray) -> np.ndarray:
    """The rows of x in steps and blocks, the state read, copied and set between them."""
    found, t, out = [], 0, np.empty(stream.model.output_size, stream.model.dtype)
    for n in itertools.cycle((0, 1, 0, 7, 0, 0, 3)):
        if t >= len(x):
            return np.stack(found)
        if n:
            found += list(stream.run(x[t : t + n]))
        else:
            given = stream.step(x[t], out=out if t % 2 else None)
            found += [] if given is None else [given.copy()]
            stream.state = stream.state
        t += n or 1
    raise AssertionError("a cycle ended")


class TestOneModel:
    """Threads that share a Model, and nothing else."""

    def test_streams(self, model: Model, rng: np.random.Generator) -> None:
        xs = [input_for(model, rng, STEPS) for _ in range(THREADS)]
        alone = [model.stream() for _ in xs]
        expected = [stream.run(x) for stream, x in zip(alone, xs, strict=True)]

        def work(i: int) -> None:
            stream = model.stream()
            for _ in range(3):
                assert_same_bits(walk(stream, xs[i]), expected[i])
                assert_same_state(stream.state, alone[i].state)
                assert_same_state(stream.clone().state, alone[i].state)
                stream.reset()

        together(work, range(THREADS))

    def test_whole_calls_of_every_size(self, model: Model, rng: np.random.Generator) -> None:
        """They take their working memory from one list, which has pieces of all these sizes."""
        calls = []
        for B in (None, 1, 2, 3, 7, 13):
            x = input_for(model, rng, STEPS, *([] if B is None else [B]))
            lengths = None if B is None else rng.integers(0, STEPS + 1, B)
            calls.append((x, state_for(model, rng, B), lengths))
        expected = [model(x, state, lengths=lengths) for x, state, lengths in calls]

        def work(first: int) -> None:
            for i in [*range(first, len(calls)), *range(first)]:
                x, state, lengths = calls[i]
                y, after = model(x, state, lengths=lengths)
                assert_same_bits(y, expected[i][0])
                assert_same_state(after, expected[i][1])

        together(work, range(len(calls)))

    def test_steps_of_a_stream_that_moves_from_thread_to_thread(
        self, model: Model, rng: np.random.Generator
    ) -> None:
        """One thread at a time, but not always the same."""
        x = input_for(model, rng, 60)
        expected = model.stream().run(x)
        stream, found = model.stream(), []
        turns = [threading.Semaphore(int(i == 0)) for i in range(THREADS)]

        def work(i: int) -> None:
            for t in range(i, len(x), THREADS):
                assert turns[i].acquire(timeout=60)
                given = stream.step(x[t])
                found.extend([] if given is None else [given])
                turns[(i + 1) % THREADS].release()

        together(work, range(THREADS))
        assert_same_bits(np.stack(found), expected)

    def test_one_input_and_one_state_read_by_all(
        self, model: Model, rng: np.random.Generator
    ) -> None:
        x, start = input_for(model, rng, STEPS, 3), state_for(model, rng, 3)
        for array in (x, *start.values()):
            array.flags.writeable = False
        y, after = model(x, start)

        def work(_: int) -> None:
            got, state = model(x, start)
            assert_same_bits(got, y)
            assert_same_state(state, after)
            stream = model.stream(3)
            stream.state = start
            assert_same_bits(stream.run(x), y)

        together(work, range(THREADS))

    def test_threads_of_its_own_beside_those_of_python(
        self, isa: str, rng: np.random.Generator
    ) -> None:
        """One call has the team, the others run alone meanwhile: the same bits."""
        file = model_file(recurrent("lstm", 40, 160, num_layers=2), rng)
        one, several = (Model(file, isa=isa, reproducible=True, threads=n) for n in (1, 3))
        xs = [input_for(one, rng, 60) for _ in range(4)]
        expected = [one(x) for x in xs]

        def work(i: int) -> None:
            for _ in range(3):
                y, state = several(xs[i])
                assert_same_bits(y, expected[i][0])
                assert_same_state(state, expected[i][1])
                assert_same_bits(several.stream().run(xs[i]), y)

        together(work, range(len(xs)))

    def test_made_and_dropped(self, isa: str, rng: np.random.Generator) -> None:
        """Models and streams that begin and end while others of the same weights run."""
        file = model_file(stack("small", LANES[isa]), rng)
        kept = Model(file, isa=isa, reproducible=True)
        x = input_for(kept, rng, STEPS)
        y, _ = kept(x)

        def work(_: int) -> None:
            for threads in (1, 2, 1, 3):
                stream = Model(file, isa=isa, reproducible=True, threads=threads).stream()
                assert_same_bits(stream.run(x), y)
                assert_same_bits(kept(x)[0], y)

        together(work, range(THREADS))

    def test_what_is_made_when_first_asked_for(self, rng: np.random.Generator) -> None:
        file = model_file(stack("small", 8), rng)
        known = Model(file)
        for _ in range(5):
            fresh = Model(file)

            def work(_: int, fresh: Model = fresh) -> None:
                assert fresh.check() < 1e-4
                assert fresh.fingerprint == known.fingerprint
                for got, expected in zip(fresh.self_check, known.self_check, strict=True):
                    assert got.keys() == expected.keys()
                    for name in got:
                        np.testing.assert_array_equal(got[name], expected[name])
                for name, array in fresh.tensors.items():
                    assert_same_bits(array, file.tensors[name])

            together(work, range(THREADS))

    FIRST_CALLS = """
        import sys
        import numpy as np
        from test_concurrency import together
        from models import build, input_for, model_file, recurrent
        from fastlstm import Model

        sys.setswitchinterval(1e-5)
        rng = np.random.default_rng(1)
        for dtype, isa, bound in ((np.float64, None, 1e-13), (np.float32, "scalar", 2e-6)):
            file = model_file(recurrent("gru", 96, 64), rng, dtype)
            model, exact = Model(file, isa=isa), Model(file, isa=isa, reproducible=True)
            xs = [input_for(model, rng, 200, B) for B in (1, 2, 3, 4, 5, 6)]
            found = together(lambda x: model(x)[0], xs)
            off = [np.abs(y - exact(x)[0]).max() for x, y in zip(xs, found)]
            print(max(off) < bound)
    """

    @pytest.mark.thread_unsafe(reason="starts a process")
    def test_first_calls_look_up_a_blas_at_once(self, python: Callable[..., str]) -> None:
        assert python(self.FIRST_CALLS) == "True\nTrue\n"


class TestInUse:
    """A Stream or a Pool that one thread is using refuses the next, in every one of its methods."""

    class Watched(np.ndarray):
        """Input that calls `when_seen` while whatever has been given it asks for its class."""

        when_seen: Callable[[], None] | None = None

        @property
        def __class__(self) -> Any:
            if self.when_seen:
                self.when_seen()
            return type(self)

    @pytest.mark.parametrize("method", ["step", "run"])
    def test_a_stream(self, method: str, rng: np.random.Generator, tmp_path: Path) -> None:
        model = build(stack("small", 8), rng)
        stream, twin = model.stream(), model.stream()
        x = input_for(model, rng) if method == "step" else input_for(model, rng, 4)
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: stream.step(input_for(model, rng)),
            lambda: stream.run(input_for(model, rng, 2)),
            stream.prepare,
            lambda: stream.state,
            lambda: setattr(stream, "state", twin.state),
            stream.reset,
            stream.clone,
            lambda: stream.save(tmp_path / "state"),
            lambda: pickle.dumps(stream),
            lambda: copy.copy(stream),
        )
        refused = self.refusals(getattr(stream, method), x, attempts)
        text = (
            "this Stream is in use by another thread; one belongs to one thread at a time: give "
            "each thread its own with model.stream() or stream.clone()"
        )
        assert refused == [f"RuntimeError: {text}"] * len(attempts)
        getattr(twin, method)(x)
        assert_same_state(stream.state, twin.state)

    @pytest.mark.parametrize("method", ["step", "run", "lists"])
    def test_a_pool(self, method: str, rng: np.random.Generator, tmp_path: Path) -> None:
        model = build(stack("small", 8), rng)
        pool, stream = model.pool(capacity=4), model.stream()
        slot = pool.open()
        slots, state = np.array([slot]), pool.get_state(slot)
        pool.save(tmp_path / "saved")
        one, several = input_for(model, rng, 1), input_for(model, rng, 4, 1)
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: pool.step(slots, one),
            lambda: pool.step(slot, one[0]),
            lambda: pool.run(slots, several),
            lambda: pool.run(slots, [several[:, 0]]),
            lambda: pool.prepare(slots),
            pool.open,
            lambda: pool.open(state),
            lambda: pool.close(slots),
            lambda: pool.reset(slot),
            lambda: pool.fork(slot),
            lambda: pool.get_state(slot),
            lambda: pool.set_state(slot, state),
            lambda: pool.steps(slots),
            lambda: pool.output_steps(slots),
            lambda: pool.idle(0),
            lambda: pool.evict(0),
            lambda: pool.slots,
            lambda: slot in pool,
            lambda: pool.save(tmp_path / "saved"),
            lambda: pool.load(tmp_path / "saved"),
            lambda: pickle.dumps(pool),
        )
        x = one if method == "step" else several if method == "run" else several[:, 0]
        call = {
            "step": lambda x: pool.step(slots, x),
            "run": lambda x: pool.run(slots, x),
            "lists": lambda x: pool.run(slots, [x]),
        }[method]
        text = (
            "this Pool is in use by another thread; one belongs to one thread at a time: give each "
            "thread a pool of its own with model.pool(), or hold a lock around its calls"
        )
        assert self.refusals(call, x, attempts) == [f"RuntimeError: {text}"] * len(attempts)
        stream.run(x.reshape(-1, model.input_size))
        assert_same_state(pool.get_state(slot), stream.state)
        assert pool.steps(slot) == x.size // model.input_size
        assert pool.slots.tolist() == [slot]

    def test_a_pool_that_runs_without_the_gil(self, rng: np.random.Generator) -> None:
        model = build(recurrent("lstm", 512, 512), rng, reproducible=True)
        pool, stream = model.pool(), model.stream(3)
        slots, x = np.array([pool.open() for _ in range(3)]), input_for(model, rng, 600, 3)
        refused = None

        def work() -> None:
            done = False
            while not done:  # until the pool is not just being asked
                with contextlib.suppress(RuntimeError):
                    pool.run(slots, x)
                    done = True

        for _ in range(20):
            worker = threading.Thread(target=work)
            worker.start()
            while refused is None and worker.is_alive():
                try:
                    pool.steps(slots)
                except RuntimeError as error:
                    refused = error
            worker.join()
            stream.run(x)
            assert_same_state(pool.get_state(slots), stream.state)
            if refused:
                break
        assert refused is not None, "20 runs of 600 steps, and none was met at work"

    @classmethod
    def refusals(
        cls, call: Callable[[Any], Any], x: np.ndarray, attempts: Iterable[Callable[[], Any]]
    ) -> list[str]:
        """What another thread is told for each attempt while `call(x)` has the object."""
        watched = x.view(cls.Watched)
        found = []

        def attempt() -> None:
            for one in attempts:
                try:
                    one()
                except Exception as error:
                    found.append(f"{type(error).__name__}: {error}")
                else:
                    found.append("not refused")

        def when_seen() -> None:
            if not found:
                other = threading.Thread(target=attempt)
                other.start()
                other.join()

        watched.when_seen = when_seen
        call(watched)
        return found


class TestPools:
    """Pools of one Model, each of one thread at a time."""

    SEQUENCES = 12

    @pytest.fixture
    def xs(self, model: Model, rng: np.random.Generator) -> list[np.ndarray]:
        return [input_for(model, rng, int(T)) for T in rng.integers(8, 25, self.SEQUENCES)]

    @pytest.fixture
    def expected(self, model: Model, xs: list[np.ndarray]) -> list[np.ndarray]:
        return [model.stream().run(x) for x in xs]

    def test_different_ones(
        self,
        model: Model,
        rng: np.random.Generator,
        xs: list[np.ndarray],
        expected: list[np.ndarray],
        tmp_path: Path,
    ) -> None:
        """Streams that join, leave and move, by another schedule in each thread."""

        def work(seed: int) -> None:
            own = np.random.default_rng(seed)
            for i, y in enumerate(self.served(model, own, xs, tmp_path / str(seed))):
                assert_same_bits(y, expected[i])

        together(work, rng.choice(2**32, THREADS, replace=False).tolist())

    def served(
        self, model: Model, rng: np.random.Generator, xs: list[np.ndarray], path: Path
    ) -> list[np.ndarray]:
        """The rows of every sequence, of at most four at a time in one pool."""
        pool = model.pool(capacity=1, growth=1)
        found: list[list[np.ndarray]] = [[] for _ in xs]
        waiting, live = list(range(len(xs))), dict[int, int]()
        while waiting or live:
            if waiting and len(live) < 4:
                live[pool.open()] = waiting.pop()
            chosen = rng.permutation(list(live))[: rng.integers(1, len(live) + 1)]
            of, at = [live[slot] for slot in chosen.tolist()], pool.steps(chosen)
            if rng.random() < 0.3:
                blocks = [xs[i][t : t + rng.integers(4)] for i, t in zip(of, at, strict=True)]
                for i, rows in zip(of, pool.run(chosen, blocks), strict=True):
                    found[i] += list(rows)
            else:
                gives = pool.output_steps(chosen)
                y = pool.step(chosen, np.stack([xs[i][t] for i, t in zip(of, at, strict=True)]))
                for i, given, row in zip(of, gives, y, strict=True):
                    found[i] += [row] if given else []
            for slot, i in list(live.items()):
                if pool.steps(slot) == len(xs[i]):
                    pool.close(slot)
                    del live[slot]
            how = rng.random()
            if how < 0.1:
                pool = pickle.loads(pickle.dumps(pool))
            elif how < 0.2:
                pool.save(path)
                pool = model.pool(capacity=4)
                now = pool.load(path)
                live = {now[slot]: i for slot, i in live.items()}
        return [np.stack(rows) for rows in found]

    def test_one_behind_a_lock(
        self, model: Model, xs: list[np.ndarray], expected: list[np.ndarray]
    ) -> None:
        pool, lock = model.pool(capacity=len(xs)), threading.Lock()

        def work(i: int) -> None:
            with lock:
                slot = pool.open()
            found = []
            for t in range(0, len(xs[i]), 2):
                with lock:
                    found.append(pool.run(slot, xs[i][t : t + 2]))
            with lock:
                pool.close(slot)
            assert_same_bits(np.concatenate(found), expected[i])

        together(work, range(THREADS))
        assert len(pool) == 0

    def test_one_without_a_lock_loses_and_doubles_nothing(
        self, model: Model, xs: list[np.ndarray], expected: list[np.ndarray]
    ) -> None:
        """Whoever is refused tries again."""
        pool = model.pool(capacity=len(xs))

        def work(i: int) -> None:
            slot = insist(pool.open)
            found = [insist(lambda x=x: pool.run(slot, x)) for x in np.split(xs[i], len(xs[i]))]
            assert slot in insist(lambda: pool.slots)
            insist(lambda: pool.close(slot))
            assert_same_bits(np.concatenate(found), expected[i])

        together(work, range(THREADS))
        assert len(pool) == 0

    def test_a_copy_amid_steps_is_of_one_moment(self, rng: np.random.Generator) -> None:
        """Its states are those after as many steps as it counts."""
        model = build(stack("small", 8), rng, reproducible=True)
        x, alone, states = input_for(model, rng, 5000), model.stream(), []
        for x_t in x:
            states.append(alone.state)
            alone.step(x_t)
        pool, done = model.pool(), threading.Event()
        slot = pool.open()

        def step() -> None:
            try:
                for x_t in x[:-1]:
                    insist(lambda x_t=x_t: pool.step(slot, x_t))
                    time.sleep(0)
            finally:
                done.set()

        def watch() -> None:
            while not done.is_set():
                twin = insist(lambda: copy.copy(pool))
                assert_same_state(twin.get_state(slot), states[twin.steps(slot)])

        together(lambda role: role(), [step, watch])

    def test_event_loops_of_several_threads(
        self, model: Model, xs: list[np.ndarray], expected: list[np.ndarray]
    ) -> None:
        async def serve() -> list[np.ndarray]:
            pool = model.pool(capacity=len(xs), max_batch=5)

            async def feed(x: np.ndarray) -> np.ndarray:
                slot = pool.open()
                rows = [await pool.step_async(slot, x_t) for x_t in x]
                pool.close(slot)
                return np.stack([row for row in rows if row is not None])

            return await asyncio.gather(*(feed(x) for x in xs))

        for found in together(lambda _: asyncio.run(serve()), range(THREADS)):
            for got, y in zip(found, expected, strict=True):
                assert_same_bits(got, y)


class TestFiles:
    def test_loaded_while_others_are_written_to_the_same_path(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        """Whoever reads has the one model or the other, whole."""
        models = [build(stack("small", 8), rng) for _ in range(2)]
        known = {model.fingerprint for model in models}
        path = tmp_path / "model"
        models[0].save(path)

        def work(i: int) -> None:
            for n in range(6):
                if i < 2:
                    models[(i + n) % 2].save(path)
                else:
                    assert fastlstm.load(path).fingerprint in known

        together(work, range(THREADS))
        assert fastlstm.load(path).fingerprint in known
        assert os.listdir(tmp_path) == ["model"]

    def test_states_saved_and_loaded(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = build(stack("small", 8), rng, reproducible=True)
        xs = [input_for(model, rng, STEPS) for _ in range(THREADS)]
        expected = [model(x)[0] for x in xs]

        def work(i: int) -> None:
            stream, found = model.stream(), []
            for t in range(0, STEPS, 8):
                found.append(stream.run(xs[i][t : t + 8]))
                stream.save(tmp_path / f"state{i}")
                stream = model.stream()
                stream.load(tmp_path / f"state{i}")
            assert_same_bits(np.concatenate(found), expected[i])

        together(work, range(THREADS))

    def test_pickled_while_it_runs(self, model: Model, rng: np.random.Generator) -> None:
        x = input_for(model, rng, STEPS)
        y = model.stream().run(x)

        def work(_: int) -> None:
            stream = model.stream()
            first = stream.run(x[:10])
            moved = pickle.loads(pickle.dumps(stream))
            assert moved.model.fingerprint == model.fingerprint
            assert moved.model.isa == model.isa
            for one in (stream, moved):
                assert_same_bits(np.concatenate([first, one.run(x[10:])]), y)

        together(work, range(THREADS))

    @pytest.mark.thread_unsafe(reason="starts processes")
    def test_sent_to_other_processes(self, rng: np.random.Generator) -> None:
        model = build(stack("large", 8), rng, reproducible=True)
        xs = [input_for(model, rng, STEPS) for _ in range(4)]
        expected = [model(x) for x in xs]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            for future, (y, after) in zip(
                [executor.submit(Model.__call__, model, x) for x in xs], expected, strict=True
            ):
                got, state = future.result(timeout=120)
                assert_same_bits(got, y)
                assert_same_state(state, after)


class TestWhatUsesAModel:
    """generate, perplexity and verify from many threads."""

    @pytest.fixture
    def writer(self, rng: np.random.Generator) -> Model:
        file = model_file(stack("tokens", 8), rng)
        return Model(ChainFile(file.layers, file.tensors, vocabulary=tuple("abcdefghijk")))

    def test_generate(self, writer: Model) -> None:
        def write(seed: int) -> tuple[Any, ...]:
            options: dict[str, Any] = {"length": 30, "seed": seed, "temperature": 0.8}
            prompts = ["abba", "cab", "k"]
            return (
                fastlstm.generate(writer, prompts, **options),
                "".join(fastlstm.generate_steps(writer, "face", top_k=5, **options)),
                fastlstm.generate(writer, "deaf", length=10, temperature=0),
            )

        expected = [write(seed) for seed in range(THREADS)]
        assert len({found[1] for found in expected}) == THREADS
        assert together(write, range(THREADS)) == expected

    def test_perplexity(self, writer: Model) -> None:
        texts = ["abcabc", "jigged", "kea" * 50, "a" * 9, "hidebacj"]
        expected = [fastlstm.perplexity(writer, text) for text in texts]
        assert all(math.isfinite(value) for value in expected)
        assert together(lambda text: fastlstm.perplexity(writer, text), texts) == expected

    @pytest.mark.parametrize("name", ["small", "tokens"])
    def test_verify(self, name: str, rng: np.random.Generator) -> None:
        models = [build(stack(name, 8), rng) for _ in range(2)]

        def facts(i: int) -> dict[str, Any]:
            # Whether any random weights pass is another test's; here only that all threads agree.
            return fastlstm.verify(models[i % 2], steps=30, batch_size=2, seed=i).facts()

        expected = [facts(i) for i in range(4)]
        assert together(facts, range(4)) == expected

    @pytest.mark.thread_unsafe(reason="looks at settings of the whole process")
    def test_verify_of_live_modules(self, rng: np.random.Generator) -> None:
        """What torch has one of for the whole process is afterwards as it was."""
        torch = pytest.importorskip("torch")
        with torch.random.fork_rng():
            module = torch.nn.LSTM(5, 12, num_layers=2)
        models = [fastlstm.from_torch(module) for _ in range(2)]

        def passes(i: int) -> bool:
            return fastlstm.verify(models[i % 2], module, steps=40, batch_size=2, seed=i).passed

        filters = list(warnings.filters)
        assert together(passes, range(4)) == [True] * 4
        assert warnings.filters == filters
        assert torch.get_default_dtype() == torch.float32


class TestConversion:
    def test_live_modules(self) -> None:
        """While one is followed, the next must not take what overrides torch for torch."""
        torch = pytest.importorskip("torch")

        class Ragged(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = torch.nn.LSTM(5, 12)
                self.out = torch.nn.Linear(12, 3)

            def forward(self, x: Any, lengths: Any) -> Any:
                start = torch.zeros(1, x.size(1), 12)
                packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
                y, _ = torch.nn.utils.rnn.pad_packed_sequence(self.rnn(packed, (start, start))[0])
                return self.out(y)

        module = Ragged()
        known = {fastlstm.from_torch(module).fingerprint}
        for _ in range(10):
            found = together(lambda _: fastlstm.from_torch(module).fingerprint, range(THREADS))
            assert set(found) == known


@pytest.mark.thread_unsafe(reason="starts processes")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestFork:
    """A child goes on with what no other thread was using as it was made."""

    BEGIN = """
        import os, signal, sys, threading, warnings
        import numpy as np
        import fastlstm
        from models import build, input_for
        from test_concurrency import TestInUse, stack

        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        rng = np.random.default_rng(1)
        build(stack(sys.argv[1], 8), rng).save("model")
        model = fastlstm.load("model", reproducible=True)
        x = input_for(model, rng, 40)
        y = model.stream().run(x)
        rest = len(model.stream().run(x[:20]))

        def same(run, block=x[20:]):
            return np.array_equal(run(block), y[rest:])

        def fork(child):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                good = False
                try:
                    good = child()
                finally:
                    os._exit(0 if good else 1)
            return os.waitpid(pid, 0)[1]
    """

    AFTER_LOADING = """
        print(fork(lambda: np.array_equal(model.stream().run(x), y)))
    """

    AMID_STEPS = """
        stop = threading.Event()

        def work():
            stream, pool = model.stream(), model.pool()
            slots, block = np.array([pool.open() for _ in range(3)]), input_for(model, rng, 3)
            while not stop.is_set():
                stream.step(x[0])
                stream.run(x)
                pool.step(slots, block)
                model(x)

        others = [threading.Thread(target=work) for _ in range(3)]
        for other in others:
            other.start()

        stream, pool = model.stream(), model.pool()
        slot = pool.open()
        stream.run(x[:20])
        pool.run(slot, x[:20])

        def child():
            loaded = fastlstm.load("model", reproducible=True)
            fresh = loaded.stream()
            fresh.run(x[:20])
            both = pool.fork(slot)
            runs = (stream.run, fresh.run, lambda x: pool.run(slot, x), lambda x: pool.run(both, x))
            return all([*map(same, runs), np.array_equal(model.stream().run(x), y)])

        ends = [fork(child) for _ in range(6)]
        stop.set()
        for other in others:
            other.join()
        print(set(ends), same(stream.run), same(lambda x: pool.run(slot, x)))
    """

    IN_USE = """
        stream, pool = model.stream(), model.pool()
        slot = pool.open()
        stream.run(x[:20])
        pool.run(slot, x[:20])

        def refused(call):
            try:
                call()
            except RuntimeError as error:
                return "as this process was forked" in str(error) and "make another" in str(error)
            return False

        def child():
            fresh, other = model.stream(), model.pool()
            return all([
                refused(lambda: stream.state),
                refused(lambda: pool.get_state(slot)),
                np.array_equal(fresh.run(x), y),
                np.array_equal(other.run(other.open(), x), y),
            ])

        # Another thread is within a call of the stream and one of the pool as the child is made.
        within, go_on, found = threading.Barrier(3), threading.Event(), []

        def when_seen(watched):
            watched.when_seen = None
            within.wait(60)
            go_on.wait(60)

        def work(run):
            watched = x[20:].view(TestInUse.Watched)
            watched.when_seen = lambda: when_seen(watched)
            found.append(same(run, watched))

        runs = (stream.run, lambda x: pool.run(slot, x))
        others = [threading.Thread(target=work, args=(run,)) for run in runs]
        for other in others:
            other.start()
        within.wait(60)
        ends = fork(child)
        go_on.set()
        for other in others:
            other.join()
        print(ends, found)
    """

    def run(self, python: Callable[..., str], code: str, name: str) -> str:
        return python(textwrap.dedent(self.BEGIN) + textwrap.dedent(code), name)

    def test_after_loading(self, python: Callable[..., str]) -> None:
        assert self.run(python, self.AFTER_LOADING, "small") == "0\n"

    @pytest.mark.parametrize("name", ["large", "strided"])
    def test_amid_steps_of_other_threads(self, python: Callable[..., str], name: str) -> None:
        assert self.run(python, self.AMID_STEPS, name) == "{0} True True\n"

    def test_what_another_thread_was_using_is_refused(self, python: Callable[..., str]) -> None:
        """Its state is that of some moment amid a step, and that thread is not in the child."""
        assert self.run(python, self.IN_USE, "small") == "0 [True, True]\n"
