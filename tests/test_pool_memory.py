"""A pool's memory: what it takes and gives back, zeroed states, and calls that allocate nothing."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable

import pytest
import test_allocations
from models import (
    ISAS,
)

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
# Of a process that looks at its own memory: where some bytes lie, and where a stream's state does.
LOOK = """
    import ctypes, gc, json, os, signal, sys
    import numpy as np
    from models import build, every_kind, input_for, recurrent, state_for

    PAGE = os.sysconf("SC_PAGESIZE")

    def places(pattern):
        '''Addresses in writable memory at which these bytes are.'''
        found = []
        with open("/proc/self/maps") as file:
            spans = [line.split()[:2] for line in file]
        with open("/proc/self/mem", "rb", 0) as memory:
            for span, rights in spans:
                first, end = (int(address, 16) for address in span.split("-"))
                if not rights.startswith("rw") or end - first > 2**30:
                    continue
                try:
                    memory.seek(first)
                    data = memory.read(end - first)
                except OSError:
                    continue
                at = data.find(pattern)
                while at >= 0:
                    found.append(first + at)
                    at = data.find(pattern, at + 1)
        return found

    def pattern_state(model, seed):
        return state_for(model, np.random.default_rng([777, seed]), None)

    def start_of(model):
        return model.start_block(1, []).tobytes()

    def state_address(pool, slot):
        '''Where its state lies: of all the copies that setting it leaves, the one that reset ends.
        '''
        state = pattern_state(pool.model, slot)
        pool.set_state(slot, state)
        given, start = pool.read_rows([slot]).tobytes(), start_of(pool.model)
        candidates = places(given)
        pool.reset(slot)
        found = [a for a in candidates if ctypes.string_at(a, len(start)) == start]
        assert len(found) == 1, (len(candidates), len(found))
        pool.set_state(slot, state)
        assert ctypes.string_at(found[0], len(given)) == given
        return found[0]
"""


def look(python: Callable[..., str], code: str, **environment: str) -> None:
    python(textwrap.dedent(LOOK) + textwrap.dedent(code), **environment)


@LINUX
class TestMemory:
    def test_closing_wipes_the_state(self, python: Callable[..., str]) -> None:
        """In memory, not only in what the pool shows."""
        code = """
            for kind in ("learned_start", "delayed"):
                model = build(every_kind(8)[kind], np.random.default_rng(1))
                size = len(start_of(model))
                pool = model.pool(capacity=50)
                slots = [pool.open() for _ in range(50)]
                where = {slot: state_address(pool, slot) for slot in slots[20:25]}
                kept = {slot: ctypes.string_at(a, size) for slot, a in where.items()}
                a, b, c, d, e = where

                def wiped(slot):
                    left = [n for n in where if ctypes.string_at(where[n], size) == kept[n]]
                    return slot not in left and not any(ctypes.string_at(where[slot], size))

                assert not wiped(a)
                pool.close(a)
                assert wiped(a) and not wiped(b)
                pool.close([c, b])
                assert wiped(b) and wiped(c) and not wiped(d)
                pool.close([slot for slot in slots if slot not in where])
                pool.evict(0)
                assert wiped(d) and wiped(e) and len(pool) == 0
                # What takes the places starts as every sequence does, not at what was there.
                new = [pool.open() for _ in range(50)]
                start = start_of(model)
                assert all(ctypes.string_at(a, size) == start for a in where.values())
                pool.close(new)
                assert not any(any(ctypes.string_at(a, size)) for a in where.values())
            """
        look(python, code)

    def test_growing_moves_no_state(self, python: Callable[..., str]) -> None:
        code = """
            model = build(recurrent("lstm", 3, 32), np.random.default_rng(1))
            pool = model.pool(capacity=5, growth=3)
            slots = [pool.open() for _ in range(5)]
            where = {slot: state_address(pool, slot) for slot in slots}
            for _ in range(20_000):
                pool.open()
            assert pool.capacity > 20_000
            y = pool.step(slots, input_for(model, np.random.default_rng(2), 5))
            for slot, address in where.items():
                state = pool.read_rows([slot]).tobytes()
                assert ctypes.string_at(address, len(state)) == state
                assert any(state)
            """
        look(python, code)

    def test_opening_and_closing_touch_no_other_stream(self, python: Callable[..., str]) -> None:
        """The work does not grow with the streams: records of thousands cannot even be read."""
        code = """
            libc = ctypes.CDLL(None, use_errno=True)
            model = build(recurrent("lstm", 3, 16), np.random.default_rng(1))
            pool = model.pool(capacity=100_000, growth=1000)
            slots = np.empty(100_000, np.int64)
            for i in range(len(slots)):
                slots[i] = pool.open()

            def number(address):
                return ctypes.c_int64.from_address(address).value

            # Records of slots in a row, at the same distance, which is not that of an array.
            middle = 50_000
            one, next_one = (set(places(slots[i].tobytes())) for i in (middle, middle + 1))
            found = [(a, b - a) for a in one for b in next_one if 8 < b - a <= 256
                     if all(number(a + k * (b - a)) == slots[middle + k] for k in range(64))]
            ((record, stride),) = found
            first = last = middle
            while number(record + (first - 1 - middle) * stride) == slots[first - 1]:
                first -= 1
            while number(record + (last + 1 - middle) * stride) == slots[last + 1]:
                last += 1
            begin = -(-(record + (first - middle) * stride) // PAGE) * PAGE
            end = (record + (last - middle) * stride) // PAGE * PAGE
            assert last - first >= 2000 and end - begin >= 16 * PAGE
            kept = pool.slots.copy()

            def protect(rights):
                address, size = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
                assert libc.mprotect(address, size, rights) == 0, ctypes.get_errno()

            protect(0)
            outside = [*slots[:50], *slots[-50:]]
            x = input_for(model, np.random.default_rng(2), 100)
            for _ in range(20):
                pool.step(outside, x)
                twin = pool.fork(outside[3])  # into what was added
                pool.close(outside)
                outside = [pool.open() for _ in range(99)] + [twin]
                assert len(pool) == 100_000 and outside[7] in pool and slots[0] not in pool
                pool.reset(outside[5])
            # A look at every stream would have been seen: it kills a child.
            child = os.fork()
            if child == 0:
                pool.idle(0)
                os._exit(0)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV
            protect(3)
            assert set(kept[50:-50].tolist()) <= set(pool.slots.tolist())
            """
        look(python, code)

    @pytest.mark.parametrize("cell", ["lstm 128 128", "gru 3 17", "gru 3 1"])
    def test_a_stream_takes_its_state_and_128_bytes(
        self, cell: str, python: Callable[..., str]
    ) -> None:
        """Resident memory of 100,000 streams, all of which have made a step, twice."""
        code = """
            import gc, json, sys
            from pathlib import Path
            import numpy as np
            from models import build, input_for, recurrent

            def resident():
                gc.collect()
                lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
                (line,) = [line for line in lines if line.startswith("VmRSS:")]
                return int(line.split()[1]) * 1024

            N = 100_000
            cell, I, H = sys.argv[1:]
            model = build(recurrent(cell, int(I), int(H)), np.random.default_rng(1))
            state = sum(a.nbytes for a in model.initial_state(None).values())
            x = input_for(model, np.random.default_rng(1), 100)
            y = np.empty((100, model.output_size), "f4")
            slots = np.ones(N, np.int64)
            small = model.pool()
            small.step([small.open() for _ in range(100)], x, out=y)
            before = resident()
            pool = model.pool(capacity=N)
            found = [resident() - before]
            for turn in range(2):
                for i in range(N):
                    slots[i] = pool.open()
                for i in range(0, N, 100):
                    pool.step(slots[i:i + 100], x, out=y)
                found.append(resident() - before)
                pool.close(slots)
            print(json.dumps([state, *found]))
            """
        state, made, first, second = json.loads(python(code, *cell.split()))
        assert made <= 2**21, "memory that is taken before a stream is open"
        assert 100_000 * state <= first, "the counter does not count"
        for grown in (first, second):
            assert grown <= 100_000 * (state + 128), f"{grown / 1e5 - state} bytes besides a state"
        assert second < 150e6

    def test_no_memory_for_so_many(self, python: Callable[..., str]) -> None:
        """It raises, and leaves nothing behind: neither memory nor a half-grown pool."""
        code = """
            import resource
            from pathlib import Path

            def taken():
                gc.collect()
                return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * PAGE

            model = build(recurrent("lstm", 128, 1024), np.random.default_rng(1))
            room = 200 * 2**20
            pool = model.pool(capacity=20, growth=2**24)
            slots = [pool.open(pattern_state(model, i)) for i in range(20)]
            one = pool.get_state(slots[0])
            x = input_for(model, np.random.default_rng(1), 20)
            pool.step(slots, x)
            before = pool.read_rows(slots).tobytes()
            resource.setrlimit(resource.RLIMIT_AS, (taken() + room, resource.RLIM_INFINITY))
            start = taken()

            def fails(call):
                try:
                    call()
                except MemoryError as error:
                    assert str(error), "no text"
                else:
                    raise AssertionError("there was room")

            for _ in range(3):
                fails(lambda: model.pool(capacity=2**24))
                assert taken() - start < room // 4, f"made: {taken() - start} bytes stay"
            for call in (pool.open, lambda: pool.open(one), lambda: pool.fork(slots[2])):
                for _ in range(2):
                    fails(call)
                    assert (len(pool), pool.capacity) == (20, 20)
                    assert pool.read_rows(slots).tobytes() == before
            pool.step(slots, x)
            pool.close(slots[3])
            pool.fork(slots[4])
            assert taken() - start < room // 4, f"growing: {taken() - start} bytes stay"
            model.pool(capacity=1000).open()
            """
        # Blocks of a megabyte go back to the system at once, whatever was freed before.
        look(python, code, MALLOC_MMAP_THRESHOLD_="131072")


# Change of a counter over many steps, of a loop that makes nothing itself, as in test_allocations.
MEASURE = """
    import ctypes, itertools, json, sys, tracemalloc
    import numpy as np
    from models import CELLS, LANES, STREAMING, build, every_kind, input_for, recurrent, spec

    isa, how = sys.argv[1:]
    STEPS = 500
    rng = np.random.default_rng(1)

    if how == "malloc":
        count = ctypes.PyDLL(None).allocations
        count.restype = ctypes.c_long
    elif how == "blocks":
        count = sys.getallocatedblocks
    else:
        tracemalloc.start()
        def count():
            return tracemalloc.get_traced_memory()[1]

    def change(function, slots, x, y):
        def measure(times):
            loop = itertools.repeat(None, times)
            if how == "tracemalloc":
                tracemalloc.reset_peak()
            before = count()
            for _ in loop:
                function(slots, x, out=y)
            return count() - before
        measure(20)
        return min(measure(STEPS) for _ in range(3)) - min(measure(0) for _ in range(3))

    layers = {cell: (recurrent(cell, 5, 19),) for cell in CELLS}
    layers["large"] = (recurrent("lstm", 32, 160),)  # one that releases the GIL
    layers["embedding"] = (spec.Embedding("e", 11, 5), recurrent("gru", 5, 19))
    layers |= {kind: every_kind(LANES[isa])[kind] for kind in STREAMING}
    found = {}
    for name, stack in layers.items():
        model = build(stack, rng, isa=isa)
        pool = model.pool()
        opened = [pool.open() for _ in range(9)]
        x = input_for(model, rng, 9)
        y = np.empty((9, model.output_size), "f4")
        one = int(x[0]) if model.takes_tokens else x[0]
        found[f"{name} int"] = change(pool.step, opened[4], one, y[0])
        found[f"{name} array"] = change(pool.step, np.array(opened), x, y)
        found[f"{name} fewer"] = change(pool.step, np.array(opened[3:5]), x[:2], y[:2])
    pool, kept = build(layers["lstm"], rng, isa=isa).pool(), []
    slot = pool.open()
    found["control: keep an array"] = change(
        lambda slots, x, out: kept.append(pool.step(slots, x)), slot, np.zeros(5, "f4"), None)
    found["control: keep a list"] = change(
        lambda slots, x, out: kept.append([x]), slot, 1, None)
    print(json.dumps(found))
"""

counter, counting_library = test_allocations.counter, test_allocations.counting_library


class TestAllocations:
    """Once a pool has made such a step, another into `out` allocates nothing."""

    def test_in_c_and_python(self, python: Callable[..., str], counter: str) -> None:
        """By one kernel, as what each may allocate is seen of its streams, in test_allocations."""
        environment = {"LD_PRELOAD": counter, "PYTHONMALLOC": "malloc"}
        printed = python(MEASURE, ISAS[0], "malloc", **environment)
        test_allocations.check(printed, "keep an array", "keep a list")

    @pytest.mark.parametrize("how", ["blocks", "tracemalloc"])
    def test_in_python(self, python: Callable[..., str], how: str) -> None:
        """Blocks that are kept, and the peak: not even for a moment."""
        test_allocations.check(python(MEASURE, ISAS[0], how), "keep an array", "keep a list")
