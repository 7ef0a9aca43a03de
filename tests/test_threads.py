"""Calls that several threads share: ``threads=`` of a Model, and the processors there are for it.

Promise 1: any number of threads gives the bits that one gives. Then what threads cost and when:
none before a call needs them, none for small work, none left behind, no time while they wait; and
use by several Python threads, in a forked child and at the interpreter's end. That a team ran is
seen by its threads, which bear the package's name.
"""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import chain as spec
import numpy as np
import pytest
from models import ISAS, build, input_for, model_file, recurrent, state_for
from ways import assert_same_bits, assert_same_state

from fastlstm import Model, processors

TASKS = Path("/proc/self/task")

# Large enough that every one is shared: of the work between two meetings there are, in float32, at
# least 2 microseconds, and each has panels for four threads on every instruction set.
MODELS: dict[str, tuple[spec.Layer, ...]] = {
    "lstm": (recurrent("lstm", 40, 160),),
    "lstm_stack": (recurrent("lstm", 72, 96, num_layers=3),),
    "lstm_proj": (recurrent("lstm", 40, 160, num_layers=2, proj_size=100),),
    "gru": (recurrent("gru", 96, 130, num_layers=2, bias=False),),
    "rnn": (recurrent("rnn_tanh", 128, 320), recurrent("rnn_relu", 320, 256, "second")),
    "bidirectional": (recurrent("lstm", 72, 96, num_layers=2, bidirectional=True),),
    "one_hot": (spec.OneHot("o", 30), recurrent("lstm", 30, 160), spec.Linear("out", 160, 30)),
    "embedding": (
        spec.Embedding("e", 30, 64),
        recurrent("gru", 64, 160),
        spec.Linear("out", 160, 30),
        spec.Activation("p", "softmax", 30),
    ),
    "classifier": (
        spec.Linear("in", 24, 220),
        spec.Activation("a", "relu", 220),
        recurrent("lstm", 220, 96),
        spec.Linear("out", 96, 30),
        spec.Activation("p", "log_softmax", 30),
    ),
    "norm_product": (spec.LSTM("a", 40, 160, layer_norm="product", peepholes=True, clip=2.0),),
    "norm_gate": (spec.LSTM("a", 40, 160, 2, proj_size=100, layer_norm="gate", cell_clip=0.5),),
    "coupled": (spec.LSTM("a", 64, 160, coupled=True, peepholes=True, initial_state=True),),
    "gru_before": (spec.GRU("a", 96, 130, 2, reset_after=False),),
    "convolutions": (
        spec.Conv1d("a", 64, 160, 5, dilation=2, padding_left=8),
        spec.LayerNorm("n", 160),
        spec.Conv1d("b", 160, 160, 3, groups=2, padding_left=2),
        spec.Residual("r", (spec.GRU("c", 160, 130), spec.Linear("d", 130, 160))),
    ),
    "frames": (
        spec.FrameConv1d("a", 1, 96, 64, 32, width=256, padding_right=32, padding_mode="reflect"),
        spec.CombineHalves("m", "magnitude", 96, width=8),
        spec.FrameConv1d("b", 48, 64, 3, 2, width=8, padding_left=1, padding_right=1),
        spec.Activation("f", "relu", 256),
        recurrent("lstm", 256, 128),
    ),
    "pooled": (
        spec.LSTM("a", 72, 96, 1, True, True, peepholes=True),
        spec.Pool("p", "final", 192),
        spec.Linear("out", 192, 200),
    ),
}
STREAMS = [name for name, layers in MODELS.items() if not spec.looks_ahead(layers)]

# Batches for two threads and for three: on both sides of where each has rows of its own, from 4
# for each of them on, with as many for all and with more for some.
BATCHES: dict[int, tuple[int | None, ...]] = {2: (None, 1, 3, 7, 8, 9), 3: (2, 4, 5, 6, 11, 13, 17)}

# Every step of it takes longer than waking a thread: 8 MB of weights.
LARGE = (recurrent("lstm", 512, 512),)


def workers() -> int:
    """Threads that models of this process have now."""
    if not TASKS.exists():
        pytest.skip("needs /proc")
    names = []
    for task in TASKS.iterdir():
        try:
            names.append((task / "comm").read_text(encoding="utf-8").strip())
        except OSError:  # it has just ended
            continue
    return names.count("fastlstm")


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds within some seconds: a thread that was joined is listed a while more."""
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    return holds()


@pytest.fixture(autouse=True)
def no_workers_of_others() -> None:
    if TASKS.exists() and workers():
        gc.collect()
        assert soon(lambda: workers() == 0)


@pytest.fixture(autouse=True)
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than processors, on a machine that has fewer: slow, and as right."""
    monkeypatch.setattr(processors, "available", lambda: 4)


def pair(
    name: str, isa: str | None, rng: np.random.Generator, threads: int, dtype: type = np.float32
) -> tuple[Model, Model]:
    """The same model for one thread and for several."""
    file = model_file(MODELS[name], rng, dtype)
    one, several = (Model(file, isa=isa, reproducible=True, threads=n) for n in (1, threads))
    return one, several


class TestSameBits:
    """Promise 1, for numbers of threads."""

    @pytest.mark.parametrize("name", MODELS)
    def test_whole_calls_of_every_batch_size(self, name, isa, rng):
        file = model_file(MODELS[name], rng)
        one = Model(file, isa=isa, reproducible=True)
        for threads, batches in BATCHES.items():
            several = Model(file, isa=isa, reproducible=True, threads=threads)
            for B in reversed(batches):
                x = input_for(one, rng, 4, *([] if B is None else [B]))
                start = state_for(one, rng, B)
                y, state = one(x, start)
                got, after = several(x, start)
                assert_same_bits(got, y)
                assert_same_state(after, state)
            assert workers() == threads - 1
            del several

    @pytest.mark.parametrize("name", STREAMS)
    def test_steps_and_blocks_with_the_state_saved_between(self, name, rng):
        """By one kernel or another, as what is shared of a step is what a whole call shares."""
        one, several = pair(name, ISAS[STREAMS.index(name) % len(ISAS)], rng, 2)
        several(input_for(one, rng, 100))  # short calls start threads only if they come fast
        assert workers() == 1
        for batch in (None, 3):
            x = input_for(one, rng, 30, *([] if batch is None else [batch]))
            y, after = one(x)
            stream, half = several.stream(batch), None
            t = 0
            while t < len(x):
                n = int(rng.integers(0, 6))
                if n == 0:
                    assert_same_bits(stream.step(x[t]), y[t])
                    n = 1
                else:
                    assert_same_bits(stream.run(x[t : t + n]), y[t : t + n])
                t = min(t + n, len(x))
                if half is None and t >= len(x) // 2:
                    half = t, stream.state
            assert_same_state(stream.state, after)
            # The state moves between models of other numbers of threads.
            t, state = half
            for model in (one, several):
                other = model.stream(batch)
                other.state = state
                assert_same_bits(np.stack([other.step(row) for row in x[t:]]), y[t:])
                assert_same_state(other.state, after)
        assert workers() == 1

    @pytest.mark.parametrize(
        ("name", "rows", "T"),
        [
            ("lstm_proj", (), 450),
            *((n, (9,), 120) for n in ("lstm_stack", "lstm_proj", "embedding")),
        ],
    )
    def test_long_sequences(self, name, rows, T, isa, rng):
        """Longer than a chunk, whole and in two blocks."""
        one, several = pair(name, isa, rng, 2)
        x = input_for(one, rng, T, *rows)
        y, after = one(x)
        got, state = several(x)
        assert_same_bits(got, y)
        assert_same_state(state, after)
        stream = several.stream(*rows)
        assert_same_bits(np.concatenate([stream.run(x[:7]), stream.run(x[7:])]), y)

    @pytest.mark.parametrize("name", MODELS)
    def test_float64(self, name, rng):
        one, several = pair(name, None, rng, 3, np.float64)
        for B in (13, 2):
            x = input_for(one, rng, 6, B)
            y, after = one(x)
            got, state = several(x)
            assert_same_bits(got, y)
            assert_same_state(state, after)
        assert workers() == 2

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("name", ["gru", "bidirectional"])
    def test_where_a_blas_may_sum_otherwise(self, name, dtype, rng):
        """The same numbers but for rounding, of the kernels that may use one."""
        file = model_file(MODELS[name], rng, dtype)
        one, several = (Model(file, isa="scalar", threads=n) for n in (1, 3))
        bound = 2e-6 if dtype == np.float32 else 1e-14
        for B in (1, 4, 13):
            x = input_for(one, rng, 50, B)
            np.testing.assert_allclose(several(x)[0], one(x)[0], rtol=bound, atol=bound)

    def test_a_row_does_not_know_the_others(self, isa, rng):
        """Nor which thread has them."""
        one, several = pair("lstm", isa, rng, 3)
        x = input_for(one, rng, 6, 13)
        y, _ = several(x)
        for b in (0, 4, 12):
            others = np.full_like(x, np.nan)
            others[:, b] = x[:, b]
            assert_same_bits(several(others)[0][:, b], y[:, b])
            assert_same_bits(one(x[:, b])[0], y[:, b])


class TestLifetime:
    def test_started_by_the_first_call_that_is_long_and_stopped_with_the_model(self, rng):
        model = build(MODELS["lstm"], rng, threads=3)
        stream = model.stream()
        assert workers() == 0
        model(input_for(model, rng, 1))  # 3 microseconds: no thread is worth starting
        assert workers() == 0
        model(input_for(model, rng, 300))
        assert workers() == 2
        del model
        gc.collect()
        assert workers() == 2  # the stream still has the network
        stream.run(np.zeros((300, 40), np.float32))
        del stream
        gc.collect()
        assert soon(lambda: workers() == 0)

    def test_started_by_a_long_step(self, rng):
        model = build(LARGE, rng, threads=2)
        model.stream().step(input_for(model, rng))
        assert workers() == 1

    def test_started_by_short_steps_that_follow_each_other(self, rng):
        model = build(MODELS["lstm"], rng, threads=2)
        stream, x = model.stream(), input_for(model, rng)
        out = stream.step(x)
        end = time.monotonic() + 30
        while not workers() and time.monotonic() < end:
            for _ in range(1000):
                stream.step(x, out=out)
        assert workers() == 1

    def test_a_small_model_starts_none(self, rng):
        model = build(recurrent("lstm", 16, 16), rng, threads=4)
        model(input_for(model, rng, 5000))
        stream, x = model.stream(), input_for(model, rng)
        for _ in range(2000):
            stream.step(x)
        model.stream(4).step(input_for(model, rng, 4))
        assert workers() == 0

    def test_one_thread_starts_none(self, rng):
        model = build(LARGE, rng)
        model(input_for(model, rng, 20, 8))
        assert workers() == 0

    @pytest.mark.parametrize(("there_are", "expected"), [(1, 0), (2, 1), (3, 2)])
    def test_no_more_than_there_are_processors(self, rng, monkeypatch, there_are, expected):
        monkeypatch.setattr(processors, "available", lambda: there_are)
        model = build(MODELS["lstm"], rng, threads=64)
        assert model.threads == 64
        model(input_for(model, rng, 300))
        model(input_for(model, rng, 30, 70))
        assert workers() == expected

    def test_each_model_has_its_own(self, rng):
        models = [build(MODELS["gru"], rng, threads=2) for _ in range(3)]
        for number, model in enumerate(models):
            model(input_for(model, rng, 300))
            assert workers() == number + 1
        copied = pickle.loads(pickle.dumps(models[0]))
        assert copied.threads == 2
        x = input_for(copied, rng, 300)
        assert_same_bits(copied(x)[0], models[0](x)[0])
        assert workers() == 4
        del models, model
        gc.collect()
        assert soon(lambda: workers() == 1)


class TestUse:
    @pytest.mark.parametrize("name", ["lstm", "embedding"])
    def test_two_streams_from_two_python_threads(self, name, isa, rng):
        """Promise 5: one finds the team taken and goes on alone; both are right."""
        one, several = pair(name, isa, rng, 2)
        T = 100
        xs = [input_for(one, rng, T) for _ in range(2)]
        expected = [one(x)[0] for x in xs]
        barrier, wrong = threading.Barrier(2), []

        def work(i: int) -> None:
            stream = several.stream()
            out = np.empty_like(expected[i])
            barrier.wait()
            for _ in range(3):
                stream.reset()
                for t in range(T // 2):
                    stream.step(xs[i][t], out=out[t])
                stream.run(xs[i][T // 2 : T - 5], out=out[T // 2 : T - 5])
                out[T - 5 :] = stream.run(xs[i][T - 5 :])
                if not np.array_equal(out, expected[i]):
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert workers() == 1

    FORK = """
        import os, signal, sys, threading, warnings
        import numpy as np
        from fastlstm import processors
        from models import build, input_for, recurrent
        from test_threads import workers

        processors.available = lambda: 4
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        rng = np.random.default_rng(1)
        model = build(recurrent("lstm", 40, 160), rng, threads=3, reproducible=True)
        x = input_for(model, rng, 300)
        y, _ = model(x)
        before = workers()

        def child():
            found = [workers()]  # those of the parent are not here
            same = all(np.array_equal(model(x)[0], y) for _ in range(2))
            stream = model.stream()
            same &= all(np.array_equal(stream.step(x[t]), y[t]) for t in range(30))
            return same and [*found, workers()] == [0, 2]

        def fork():
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                good = False
                try:
                    good = child()
                finally:
                    os._exit(0 if good else 1)
            return os.waitpid(pid, 0)[1]

        ends = [fork() for _ in range(2)]
        # Now while another thread of the parent has the team, most of the time.
        stop = False
        def busy():
            while not stop:
                model(x)
        other = threading.Thread(target=busy)
        other.start()
        ends += [fork() for _ in range(10)]
        stop = True
        other.join()
        print(before, ends, np.array_equal(model(x)[0], y), workers())
    """

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_a_forked_child_has_threads_of_its_own(self, python):
        workers()
        assert python(self.FORK) == f"2 {[0] * 12} True 2\n"

    FORK_IN_BLAS = """
        import os, signal, threading, time, warnings
        import numpy as np
        from models import build, input_for, recurrent

        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        rng = np.random.default_rng(1)
        model = build(recurrent("gru", 256, 8), rng, np.float64)
        x = input_for(model, rng, 400)
        y, _ = model(x)
        stop = False
        def busy():
            while not stop:
                model(x)
        other = threading.Thread(target=busy)
        other.start()
        ends = []
        for _ in range(10):
            time.sleep(0.003)
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)  # ends a child that waits for a lock nobody holds
                os._exit(0 if np.array_equal(model(x)[0], y) else 1)
            ends.append(os.waitpid(pid, 0)[1])
        stop = True
        other.join()
        print(ends)
    """

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_a_child_forked_amid_a_product_of_blas(self, python):
        """Projections of float64 models take a lock, which the child must not find taken."""
        assert python(self.FORK_IN_BLAS) == f"{[0] * 10}\n"

    IDLE = """
        import time
        import numpy as np
        from fastlstm import processors
        from models import build, input_for, recurrent
        from test_threads import workers

        processors.available = lambda: 4
        rng = np.random.default_rng(1)
        model = build(recurrent("lstm", 40, 160), rng, threads=4)
        model(input_for(model, rng, 300))
        stream, x = model.stream(), input_for(model, rng)
        for _ in range(100):
            stream.step(x)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.2)
        print(workers(), time.process_time() - before)
    """

    def test_waiting_costs_no_time(self, python):
        """Of the processors, that is: four that spun would spend 0.6 s in these 0.2."""
        workers()
        found, spent = python(self.IDLE).split()
        assert found == "3"
        assert float(spent) < 0.05

    EXIT = """
        import os, sys
        os.dup2(1, 2)  # what is said at the end is seen here too
        import numpy as np
        from fastlstm import processors
        from models import build, input_for, recurrent
        from test_threads import workers

        processors.available = lambda: 4
        model = build(recurrent("lstm", 40, 160), np.random.default_rng(1), threads=3)
        stream = model.stream()
        stream.run(input_for(model, np.random.default_rng(2), 300))
        print(workers(), flush=True)
        if sys.argv[1] == "cycle":
            keep = [stream]
            keep.append(keep)
            del model, stream
    """

    @pytest.mark.parametrize("how", ["end", "cycle"])
    def test_the_interpreter_ends_in_peace(self, python, how):
        workers()
        assert python(self.EXIT, how) == "2\n"


class TestProcessors:
    """How many there are for this process: its affinity, and the quotas of its control groups."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch, tmp_path, four_processors) -> Path:
        """A machine of 8 processors, its groups in a folder."""
        monkeypatch.undo()  # the four processors
        monkeypatch.setattr(processors, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(processors, "OWN_GROUPS", tmp_path / "own")
        self.affinity(monkeypatch, 8)
        (tmp_path / "cgroup").mkdir()
        return tmp_path

    def affinity(self, monkeypatch, count: int) -> None:
        mask = set(range(count))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: mask, raising=False)

    def put(self, folder: Path, **files: str | bytes) -> None:
        """Files of a folder; __ in a name stands for a dot."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            data = text if isinstance(text, bytes) else text.encode()
            (folder / name.replace("__", ".")).write_bytes(data)

    @pytest.mark.parametrize("count", [1, 2, 8])
    def test_affinity(self, monkeypatch, machine, count):
        self.affinity(monkeypatch, count)
        assert processors.available() == count
        self.put(machine, own="0::/\n")
        self.put(machine / "cgroup", cpu__max="300000 100000\n")
        assert processors.available() == min(count, 3)

    @pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
    def test_without_affinity(self, monkeypatch, machine, count, expected):
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        assert processors.available() == expected

    def test_of_this_machine(self, monkeypatch):
        monkeypatch.undo()
        assert 1 <= processors.available() <= (os.cpu_count() or 1)

    QUOTAS = (
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("150000 50000", 3),
        ("1600000 100000", 8),
    )

    @pytest.mark.parametrize(("text", "expected"), QUOTAS)
    def test_version_2(self, machine, text, expected):
        self.put(machine, own="0::/user/job\n")
        self.put(machine / "cgroup" / "user" / "job", cpu__max=f"{text}\n")
        assert processors.available() == expected

    @pytest.mark.parametrize(("text", "expected"), [*QUOTAS, ("-1 100000", 8), ("0 100000", 8)])
    @pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
    def test_version_1(self, machine, folder, text, expected):
        self.put(machine, own=f"9:name=systemd:/\n4:memory:/job\n2:{folder}:/user/job\n0::/\n")
        quota, period = text.split()
        self.put(
            machine / "cgroup" / folder / "user" / "job",
            cpu__cfs_quota_us=quota + "\n",
            cpu__cfs_period_us=period + "\n",
        )
        # What limits another controller's group limits no processors.
        self.put(machine / "cgroup" / "memory" / "job", cpu__max="100000 100000\n")
        assert processors.available() == expected

    @pytest.mark.parametrize(
        ("inner", "outer", "root", "expected"),
        [
            ("max", "max", "max", 8),
            ("max", "300000", "max", 3),
            ("500000", "200000", "max", 2),
            ("200000", "500000", "700000", 2),
            ("max", "max", "600000", 6),
        ],
    )
    def test_the_least_of_groups_within_groups(self, machine, inner, outer, root, expected):
        self.put(machine, own="0::/a/b/c\n")
        at = machine / "cgroup"
        self.put(at, cpu__max=f"{root} 100000\n")
        self.put(at / "a", cpu__max=f"{outer} 100000\n")
        self.put(at / "a" / "b" / "c", cpu__max=f"{inner} 100000\n")
        assert processors.available() == expected

    def test_a_container_that_is_told_the_host_s_path(self, machine):
        """Its own group is then at the root."""
        self.put(machine, own="0::/system/docker-1234\n")
        self.put(machine / "cgroup", cpu__max="200000 100000\n")
        assert processors.available() == 2

    def test_nothing_above_the_groups_is_read(self, machine):
        self.put(machine, own="0::/a\n", cpu__max="100000 100000\n")
        assert processors.available() == 8

    GARBAGE = ("", "\n", "max", "1 2 3", "a b", "100000 0", "-5 100000", "100000 -1", "1e5 100000",
               "9" * 400 + " 1", "9" * 5000 + " 1", b"\xff\xfe\x00", "\0")  # fmt: skip

    @pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
    def test_a_quota_that_is_none(self, machine, text):
        self.put(machine, own="0::/a\n1:cpu:/a\n")
        self.put(machine / "cgroup" / "a", cpu__max=text)
        folder = machine / "cgroup" / "cpu" / "a"
        self.put(folder, cpu__cfs_quota_us=text, cpu__cfs_period_us="100000\n")
        assert processors.available() == 8
        # One that is counts all the same.
        self.put(machine / "cgroup", cpu__max="300000 100000")
        assert processors.available() == 3

    @pytest.mark.parametrize("text", ["", "\n\n", "0", "0:", "a:b", "::::", b"\xff\xfe", "0::/\0a"])
    def test_a_list_of_groups_that_is_none(self, machine, text):
        self.put(machine, own=text)
        assert processors.available() == 8

    def test_what_may_not_be_read(self, monkeypatch, machine):
        self.put(machine, own="0::/a\n")
        self.put(machine / "cgroup" / "a", cpu__max="100000 100000\n")
        assert processors.available() == 1

        def refuse(path: Path, *args: object, **options: object) -> str:
            raise PermissionError(13, "Permission denied", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", refuse)
            assert processors.available() == 8
        for name in ("own", "cgroup/a/cpu.max"):
            (machine / name).unlink()
            (machine / name).mkdir()
            assert processors.available() == 8
