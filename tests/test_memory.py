"""Resident memory, as the operating system counts it, of a process that does nothing else.

A run over T steps needs scratch memory for a chunk of them, not for T, beyond its input and output.
A model of W bytes of weights is resident in at most 2.15 W, once as it was given and once packed,
or in 1.15 W if its tensors are not kept, and a stream of it in 64 KB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import chain as spec
import numpy as np
import pytest
from models import build, recurrent

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

# Lines of /proc/self/status, in bytes; and an end to what was the peak so far, which a system may
# refuse: a growth that stays below it is then not seen.
STATUS = """
    import gc, json, sys
    from pathlib import Path
    import numpy as np

    def status(name):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        (line,) = [line for line in lines if line.startswith(name + ":")]
        return int(line.split()[1]) * 1024

    def peak():
        return max(status("VmHWM"), status("VmRSS"))

    def forget_peak():
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            pass
        return peak()
"""

# Growth at the peak of a long run, into an array that is there already, after a shorter one.
RUN = (
    STATUS
    + """
    from fastlstm import processors
    from models import CELLS, build, input_for, recurrent, spec

    processors.available = lambda: 2
    T = int(sys.argv[1])
    rng = np.random.default_rng(1)
    # Of a call that has to keep it all; where that is not seen, nothing is.
    stacks = {"control": (recurrent("rnn_tanh", 2, 2, num_layers=2, bidirectional=True),)}
    stacks |= {cell: (recurrent(cell, 16, 20, num_layers=2),) for cell in CELLS}
    stacks["linear"] = (spec.Linear("a", 4, 16), spec.Activation("f", "tanh", 16))
    stacks["one_hot"] = (spec.OneHot("o", 9), recurrent("gru", 9, 16))
    stacks["embedding"] = (spec.Embedding("e", 9, 5), recurrent("lstm", 5, 12),
                           spec.Linear("out", 12, 8), spec.Activation("p", "softmax", 8))
    stacks["threads"] = (recurrent("gru", 16, 160),)
    found = {}
    for name, layers in stacks.items():
        threads = 2 if name == "threads" else 1
        model = build(layers, rng, threads=threads, reproducible=True)
        length = T // 16 if name == "threads" else T
        x = input_for(model, rng, length)
        if name != "control":
            stream = model.stream()
            y = np.full((length, model.output_size), 1, np.float32)
            stream.run(x[: length // 8], out=y[: length // 8])
            before = forget_peak()
            stream.run(x, out=y)
            found[name] = peak() - before
            del stream, y
        # And of a call, which makes its output.
        before = forget_peak()
        y, _ = model(x)
        found[name + " called"] = peak() - before - y.nbytes
        if found["control called"] < 8 * T:
            break
        del x, y, model
    print(json.dumps(found))
"""
)

# Growth by a model and by its streams, all of which have run.
MODEL = (
    STATUS
    + """
    import fastlstm
    from models import build, input_for, recurrent

    # What any model needs: modules, buffers of files, the allocator's arenas.
    small = build(recurrent("lstm", 4, 4), np.random.default_rng(1))
    small.check()
    small.save("small")
    fastlstm.load("small").stream().step(np.zeros(4, np.float32))
    gc.collect()
    before = status("VmRSS")
    model = fastlstm.load(sys.argv[1], keep=sys.argv[2] == "keep")
    x = input_for(model, np.random.default_rng(1))
    y = model.stream().step(x)
    gc.collect()
    grown = status("VmRSS") - before
    streams = []
    before = status("VmRSS")
    for _ in range(300):
        streams.append(model.stream())
        streams[-1].step(x, out=y)
    each = (status("VmRSS") - before) / len(streams)
    print(json.dumps([grown, each, model.nbytes]))
"""
)

SLACK = 2 * 2**20  # of the allocator, which does not return every page at once

# Once a block of up to 32 MB is freed, glibc keeps all of up to its size for later use, instead of
# returning them to the system: for a smaller file that would be the whole file. Unless told so:
KEPT = 32 * 2**20
SMALL_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def test_a_run_needs_memory_for_a_chunk(python: Callable[..., str]) -> None:
    """A pointer kept for every step would be 2.4 MB for these 300,000, more than is allowed."""
    T = 300_000
    found = json.loads(python(RUN, str(T), **SMALL_BLOCKS))
    seen = found.pop("control called")
    if seen < 8 * T:
        pytest.skip(f"the peak of a process cannot be seen here: {seen}")
    assert len(found) == 16
    stack = 512 * 1024  # of a thread that starts
    guilty = {name: grown for name, grown in found.items() if grown > 2**20 + stack}
    assert not guilty, f"bytes that a run grows by: {guilty}"


MODELS: dict[str, tuple[spec.Layer, ...]] = {
    "lstm": (recurrent("lstm", 1024, 1024, num_layers=2),),
    "one_hot": (spec.OneHot("o", 2000), recurrent("lstm", 2000, 512), spec.Linear("a", 512, 2000)),
    "embedding": (
        spec.Embedding("e", 5000, 400),
        recurrent("gru", 400, 1000),
        spec.Linear("out", 1000, 9),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """The file of a model, and how many bytes its weights are."""
    model = build(MODELS[request.param], np.random.default_rng(1))
    path = tmp_path_factory.mktemp("model") / "m"
    model.save(path)
    weights = sum(array.nbytes for array in model.tensors.values())
    assert path.stat().st_size >= weights > 20 * 2**20
    return path, weights


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_a_model_is_little_more_than_its_weights(
    saved: tuple[Path, int], keep: bool, python: Callable[..., str]
) -> None:
    path, weights = saved
    environment = SMALL_BLOCKS if weights < KEPT else {}
    grown, each, packed = json.loads(
        python(MODEL, str(path), "keep" if keep else "drop", **environment)
    )
    assert packed <= 1.15 * weights
    most = (1.15 + keep) * weights
    assert grown <= most + 64 * 1024 + SLACK, f"{grown / weights:.3f} of the weights"
    assert each <= 64 * 1024
