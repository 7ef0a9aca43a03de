"""Promise 4: after a Stream exists, ``step(x, out=y)`` allocates nothing, in C and in Python; nor
does ``prepare()`` before it, but when it is first called.

In C every call of malloc and its kin is counted, by a library that is loaded before all others;
with ``PYTHONMALLOC=malloc`` that also counts every object that Python makes, however short it
lives. Within Python, tracemalloc and the interpreter's own count say the same again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from models import ISAS, STREAMING

# glibc's own names for what this library stands in front of.
COUNTER = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <stddef.h>

    extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
    extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
    static long count;
    #define COUNT __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED)

    long allocations(void) { return count; }
    void *malloc(size_t n) { COUNT; return __libc_malloc(n); }
    void *calloc(size_t n, size_t size) { COUNT; return __libc_calloc(n, size); }
    void *realloc(void *p, size_t n) { COUNT; return __libc_realloc(p, n); }
    void *memalign(size_t a, size_t n) { COUNT; return __libc_memalign(a, n); }
    void *aligned_alloc(size_t a, size_t n) { COUNT; return __libc_memalign(a, n); }
    int posix_memalign(void **p, size_t a, size_t n) {
        COUNT;
        *p = __libc_memalign(a, n);
        return *p ? 0 : ENOMEM;
    }
"""

# What a subprocess measures: for every model, the change of each counter over many steps. The loop
# itself makes nothing: no integers, no bound methods, no iterator but one that exists before.
MEASURE = """
    import ctypes, gc, itertools, json, sys, tracemalloc
    import numpy as np
    from models import CELLS, LANES, STREAMING, build, every_kind, input_for, recurrent, spec

    isa, how = sys.argv[1:]
    gc.disable()
    STEPS = 500
    rng = np.random.default_rng(1)
    H = 19

    if how == "malloc":
        count = ctypes.PyDLL(None).allocations
        count.restype = ctypes.c_long
    elif how == "blocks":
        count = sys.getallocatedblocks
    else:
        tracemalloc.start()
        def count():
            return tracemalloc.get_traced_memory()[1]

    def change(function, x, y):
        '''Counter change of many calls, less that of no calls.'''
        def measure(times):
            loop = itertools.repeat(None, times)
            if how == "tracemalloc":
                tracemalloc.reset_peak()
            before = count()
            for _ in loop:
                function(x, out=y)
            return count() - before
        gc.collect()  # what was built before would be freed in between, and not be there to count
        measure(20)
        # The least of three: the interpreter's own caches may still be growing in the first.
        return min(measure(STEPS) for _ in range(3)) - min(measure(0) for _ in range(3))

    def prepared(stream):
        prepare, step = stream.prepare, stream.step
        def both(x, out):
            prepare()
            step(x, out=out)
        return both

    layers = {cell: (recurrent(cell, 5, H),) for cell in CELLS}
    layers["lstm deep"] = (recurrent("lstm", 5, H, num_layers=3, proj_size=7),)
    layers["large"] = (recurrent("lstm", 32, 160),)  # one that releases the GIL
    layers["linear"] = (spec.Linear("a", 5, H), spec.Activation("p", "softmax", H))
    layers["embedding"] = (spec.Embedding("e", 11, 5), recurrent("gru", 5, H))
    layers["one_hot"] = (spec.OneHot("o", 11), recurrent("lstm", 11, H))
    layers |= {kind: every_kind(LANES[isa])[kind] for kind in STREAMING}
    found = {}
    for dtype in (np.float32, np.float64) if isa == "scalar" else (np.float32,):
        for name, stack in layers.items():
            model = build(stack, rng, dtype, isa=isa)
            for batch in (None, 3):
                stream = model.stream(batch)
                rows = () if batch is None else (batch,)
                x = input_for(model, rng, *rows)
                y = np.empty((*rows, model.output_size), dtype)
                xs = {"": x}
                if model.takes_tokens and batch is None:
                    xs = {" int": int(x), " array": np.array(x)}
                for kind, one in xs.items():
                    key = f"{name}{kind} batch={batch} {np.dtype(dtype)}"
                    found[key] = change(stream.step, one, y)
                if batch is None:
                    found[f"{key}, prepared"] = change(prepared(stream), one, y)
    # What does allocate is seen: a new output array, and a list.
    stream = build(layers["lstm"], rng, isa=isa).stream()
    kept = []
    found["control: keep an array"] = change(
        lambda x, out: kept.append(stream.step(x)), np.zeros(5, "f4"), None)
    found["control: keep a list"] = change(lambda x, out: kept.append([x]), 1, None)
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def counting_library(tmp_path_factory) -> Path:
    """The library that counts, or a skip where it cannot be."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    folder = tmp_path_factory.mktemp("counter")
    (folder / "counter.c").write_text(COUNTER, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-O1", "-fno-builtin", "-o", "counter.so", "counter.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or shutil.which("true") is None:
        pytest.skip(f"the counter does not compile: {done.stderr[-300:]}")
    trial = subprocess.run(
        ["true"],
        cwd=folder,
        env={"LD_PRELOAD": "./counter.so"},
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode or trial.stderr:
        pytest.skip(f"the C library is not glibc: {trial.stderr[-300:]}")
    return folder / "counter.so"


@pytest.fixture
def counter(counting_library: Path, tmp_path: Path) -> str:
    """What LD_PRELOAD calls it where `python` runs: the loader splits names at spaces."""
    return os.path.relpath(counting_library, tmp_path)


def check(printed: str, *controls: str) -> None:
    found = json.loads(printed)
    seen = {name: found.pop(f"control: {name}") for name in ("keep an array", "keep a list")}
    assert min(seen[name] for name in controls) >= 500, f"the counter does not count: {seen}"
    assert len(found) >= 18 + 2 * len(STREAMING)
    guilty = {name: number for name, number in found.items() if number > 0}
    assert not guilty, f"500 steps allocate: {guilty}"


class TestStep:
    @pytest.mark.parametrize("isa", ISAS)
    def test_in_c_and_python(self, python, counter, isa):
        """Of the C library, with every object that Python makes, also one that lives for a moment.

        What they allocate is that of the kernel and of what surrounds all kernels.
        """
        environment = {"LD_PRELOAD": counter, "PYTHONMALLOC": "malloc"}
        check(python(MEASURE, isa, "malloc", **environment), "keep an array", "keep a list")

    @pytest.mark.parametrize("how", ["blocks", "tracemalloc"])
    def test_in_python(self, python, how):
        """Where no such library can be: blocks that are kept, and the peak over all steps, which
        is what it was before them, so not even for a moment."""
        check(python(MEASURE, ISAS[0], how), "keep an array", "keep a list")
