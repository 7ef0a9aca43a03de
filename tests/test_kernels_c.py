"""The kernels as plain C: other compilers, sanitizers, another architecture, older processors.

``tests/kernels/driver.c`` is compiled with ``kernels/*.c`` and without Python. It runs cases that
are written here, packed by ``fastlstm.pack`` and with the output that the float64 reference gives,
on memory whose every edge is watched, and demands the same bits however a run is cut and however
many threads share it.

What a build or a processor needs beyond a C compiler, ``.ci/run`` installs where it can; a check
that cannot have it is skipped and says what is missing.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_builds import (
    AARCH64,
    ADDRESS_FLAGS,
    CLANG,
    DRIVERS,
    KERNELS,
    OPTIMIZED,
    THREADS,
    Build,
    Programs,
    call,
)
from models import CELLS, random_tensors, recurrent

from fastlstm import _engine, reference, spec
from fastlstm.pack import PackedModel, pack

BUILDS = {
    "cc": OPTIMIZED,
    "clang": CLANG,
    "sanitizers": Build("cc", ("-O0", *ADDRESS_FLAGS)),
    "threads": THREADS,
    "aarch64": AARCH64,
}

LANES = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}

# Order of the enums in fastlstm.h.
KINDS = ("lookup", "linear", "activation", "lstm", "gru", "rnn")
FUNCTIONS = ("identity", "relu", "tanh", "sigmoid", "softmax", "log_softmax")

# Around the edges of 1, 4, 8 and 16 lanes, and of one row and of every block of rows.
SIZES = [(1, 1), (3, 4), (5, 3), (4, 11), (11, 5), (16, 15), (15, 16), (35, 17), (17, 35)]
RUNS = [(1, 1), (2, 2), (5, 3), (3, 5), (17, 1), (4, 6), (2, 17), (3, 7), (6, 4)]

# Largest error, relative to the largest output or to 1; measured: 3.7e-7 and 8.3e-16.
BOUNDS = {"float32": 1e-6, "float64": 3e-15}

# A row as wide as this makes a chunk short, for little work.
WIDE = (spec.Linear("a", 35, 3), spec.Linear("b", 3, 700), spec.Linear("c", 700, 2))

# Every way in which a team may share runs, as the driver calls them.
WAYS = {f"{by}{how}" for by in ("panels", "rows") for how in ("", " in chunks")}

# Cases of every cell and of every kind of layer, each shared, for a build that is slow.
SHARED = (
    *(f"{cell}_{kind}" for cell in CELLS for kind in ("long", "bidirectional")),
    *(
        "lstm_chunks",
        "gru_chunks",
        "lstm_only_chunks",
        "lstm_stack",
        "gru_one_hot",
        "embedding_lstm_linear",
    ),
    *("projection_35_17", "projection_bidirectional", "linear_shared", "softmax_35"),
)

Layers = tuple[spec.Layer, ...]


def models() -> Iterator[tuple[str, Layers, int, int]]:
    """(name, layers, T, B) of every case."""
    runs = cycle(RUNS)
    for cell in CELLS:
        for I, H in SIZES:  # noqa: E741
            yield f"{cell}_{I}_{H}", (recurrent(cell, I, H),), *next(runs)
        yield f"{cell}_no_bias", (recurrent(cell, 5, 11, bias=False),), 5, 2
        yield f"{cell}_stack", (recurrent(cell, 5, 17, num_layers=3),), 5, 7
        both = recurrent(cell, 5, 17, num_layers=2, bidirectional=True)
        yield f"{cell}_bidirectional", (both,), 7, 4
        yield f"{cell}_one_hot", (spec.OneHot("a", 6), recurrent(cell, 6, 17, num_layers=2)), 5, 3
        # Longer than a chunk: of all rows, with the inputs of a part projected at once and, for one
        # row alone, on the side; then of the rows that one of several threads has.
        layers = (recurrent(cell, 9, 35, num_layers=2), *WIDE)
        yield f"{cell}_long", layers, 200, 2
        yield f"{cell}_chunks", (recurrent(cell, 3, 35), *WIDE), 40, 17
    # Where a chunk begins right after the state of the one before was written.
    yield "lstm_only_chunks", (recurrent("lstm", 3, 67),), 135, 7
    for H, O in [(2, 1), (17, 5), (35, 16), (35, 17)]:  # noqa: E741
        layers = (recurrent("lstm", 4, H, num_layers=2, proj_size=O),)
        yield f"projection_{H}_{O}", layers, *next(runs)
    layers = (recurrent("lstm", 4, 17, num_layers=2, proj_size=5, bidirectional=True),)
    yield "projection_bidirectional", layers, 5, 3
    layers = (recurrent("gru", 3, 35, bidirectional=True), recurrent("lstm", 70, 4, "second"))
    yield "bidirectional_long", layers, 170, 2
    for I, O in [*SIZES, (3, 70), (70, 130)]:  # noqa: E741
        yield f"linear_{I}_{O}", (spec.Linear("a", I, O, bias=O != 17),), *next(runs)
    # So large that threads share its outputs, between layers that one of them or all compute.
    wide = (spec.Linear("b", 17, 300), spec.Linear("c", 300, 130))
    layers = (spec.Linear("a", 3, 17), *wide, recurrent("lstm", 130, 17))
    yield "linear_shared", (*layers, spec.Activation("p", "softmax", 17)), 3, 4
    yield "one_hot_linear", (spec.OneHot("a", 5), spec.Linear("b", 5, 17)), 5, 3
    embedding = spec.Embedding("a", 6, 11)
    yield "embedding", (embedding,), 5, 3
    layers = (embedding, recurrent("lstm", 11, 17), spec.Linear("out", 17, 6))
    yield "embedding_lstm_linear", layers, 9, 5
    for function in spec.ACTIVATIONS:
        for size in (1, 5, 17, 35):
            layers = (spec.Linear("a", size, size), spec.Activation("f", function, size))
            yield f"{function}_{size}", layers, *next(runs)


def inputs(
    layers: Layers, T: int, B: int, dtype: Any, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    if layers[0].takes_tokens:
        x = rng.integers(0, layers[0].input_size, (T, B))
    else:
        x = rng.standard_normal((T, B, layers[0].input_size)).astype(dtype)
    zeros = reference.zero_state(layers, B, dtype)
    return x, {name: rng.uniform(-1, 1, a.shape).astype(dtype) for name, a in zeros.items()}


def blocks(layers: Layers, state: dict[str, np.ndarray], B: int) -> np.ndarray:
    """The state of every stream as the kernels keep it, (B, state_size)."""
    pieces = [
        state[name].transpose(1, 0, 2).reshape(B, -1) for layer in layers for name in layer.state()
    ]
    return np.concatenate([np.zeros((B, 0)), *pieces], axis=1)


def encode(model: PackedModel) -> bytes:
    """A packed model in the order in which the driver reads it."""
    parts: list[bytes] = []

    def put(*items: Any) -> None:
        for item in items:
            if item is None or isinstance(item, np.ndarray):
                array = np.empty(0) if item is None else item
                parts.extend((np.int64(array.size).tobytes(), array.tobytes()))
            else:
                parts.append(np.int64(item).tobytes())

    def put_panels(panels: Any) -> None:
        if panels is None:
            put(0, 0, 0, None, None)
        else:
            P, K, G, L = panels.weights.shape
            put(P, G, K * G * L, panels.weights, panels.bias)

    put(model.dtype.itemsize, model.lanes, len(model.layers), model.state_size, model.takes_tokens)
    for layer in model.layers:
        put(KINDS.index(layer.kind), FUNCTIONS.index(layer.function))
        put(layer.input_size, layer.output_size, layer.table)
        put_panels(layer.linear)
        put(len(layer.cells))
        for cell in layer.cells:
            put_panels(cell.gates)
            put_panels(cell.projection)
            put(cell.bias_n, cell.table, cell.input_rows, cell.hidden_size, cell.h_size)
            put(cell.h_offset, cell.c_offset, cell.y_offset)
    return b"".join(parts)


def write_case(
    path: Path,
    layers: Layers,
    tensors: dict[str, np.ndarray],
    x: np.ndarray,
    state: dict[str, np.ndarray],
    lanes: int,
    dtype: str,
    bound: float | None = None,
    y: np.ndarray | None = None,
) -> None:
    """Write a case; bound and y are by default those of its dtype and of the reference."""
    T, B = x.shape[:2]
    expected, after = reference.forward(layers, tensors, x, state)
    arrays = (
        x,
        blocks(layers, state, B).astype(dtype),
        expected if y is None else y,
        blocks(layers, after, B),
        np.array([BOUNDS[dtype] if bound is None else bound]),
    )
    sized = b"".join(np.int64(a.size).tobytes() + a.tobytes() for a in arrays)
    run = np.array([T, B]).tobytes() + sized
    path.write_bytes(encode(pack(layers, tensors, lanes, dtype)) + run)


def write_cases(folder: Path, lanes: int, dtype: str) -> None:
    rng = np.random.default_rng(2)
    for name, layers, T, B in models():
        spec.check_layers(layers)
        tensors = random_tensors(layers, rng, dtype)
        x, state = inputs(layers, T, B, dtype, rng)
        write_case(folder / name, layers, tensors, x, state, lanes, dtype)
    # What is not finite comes out where PyTorch has it, and only in its own row of the batch.
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 80.0, -88.0, -104.0, 9.0]
    for function in spec.ACTIVATIONS:
        rows = odd if "softmax" not in function else [np.nan, -np.inf, 1e-42, 3e38, -3e38, 88.0]
        x = np.array(rows, dtype)[:, None, None] + np.zeros((1, 2, 17), dtype)
        x[:, 1, 1:] = 0.5
        with np.errstate(all="ignore"):
            activation = spec.Activation("f", function, 17)
            write_case(folder / f"{function}_odd", (activation,), {}, x, {}, lanes, dtype)
    for cell in CELLS:
        layers = (recurrent(cell, 3, 17),)
        tensors = random_tensors(layers, rng, dtype)
        x, state = inputs(layers, 4, 7, dtype, rng)
        x[2, 1], x[1, 2, 1], x[0, 5, 0] = np.nan, np.inf, -np.inf
        write_case(folder / f"{cell}_odd", layers, tensors, x, state, lanes, dtype)
    # A product below the normal numbers is flushed to zero, whatever the caller's mode.
    layers = (spec.Linear("a", 1, 17, bias=False),)
    least = np.full((1, 2, 1), np.finfo(dtype).tiny)
    half = {"a.weight": np.full((17, 1), 0.5, dtype)}
    write_case(folder / "flushed", layers, half, least, {}, lanes, dtype, 0.0, np.zeros((1, 2, 17)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[Path]]:
    """Case files for a kernel and size of its reals, written once."""
    written: dict[tuple[int, int], Path] = {}

    def of(kernel: str, real_size: int) -> list[Path]:
        key = LANES[kernel], real_size
        if key not in written:
            written[key] = tmp_path_factory.mktemp("cases")
            write_cases(written[key], LANES[kernel], f"float{8 * real_size}")
        return sorted(written[key].iterdir())

    return of


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The driver, with work shared however little there is of it."""
    sources = [*sorted(KERNELS.glob("*.c")), DRIVERS / "driver.c"]
    return Programs(BUILDS, sources, tmp_path_factory.mktemp("driver"), ["-DFL_LEAST_NS=1e-9"])


def kernels_of(command: Sequence[object]) -> list[tuple[str, int]]:
    listed = call(command)
    assert listed.returncode == 0, listed.stderr
    pairs = (line.split() for line in listed.stdout.splitlines())
    return [(name, int(size)) for name, size in pairs]


def check(command: Sequence[object], paths: Sequence[Path], kernel: str) -> set[str]:
    """Run cases, demand that all is well; the ways in which teams shared them."""
    done = call([*command, kernel, *paths])
    wrong = [line for line in done.stdout.splitlines() if "FAILED" in line]
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, "\n".join([*wrong, *last, done.stderr[-4000:]])
    assert not wrong
    assert done.stdout.count("largest error") == len(paths)
    return set(re.findall(r"; by ([a-z ]+)", done.stdout))


@pytest.mark.parametrize("build", BUILDS)
def test_every_kernel_gives_the_numbers_of_the_reference(
    build: str, driver: Programs, cases: Any
) -> None:
    """Promises 1 and 2: alone, in a batch, step by step and on teams of two and three threads."""
    command = driver.command(build)
    kernels = kernels_of(command)
    native = [*((name, 4) for name, _ in _engine.kernels(4)), ("scalar", 8)]
    assert kernels == (
        native if build != "aarch64" else [("neon", 4), ("scalar", 4), ("scalar", 8)]
    )
    for kernel, real_size in kernels if build != "threads" else kernels[:1]:
        paths = cases(kernel, real_size)
        if build == "threads":
            paths = [path for path in paths if path.name in SHARED]
            assert len(paths) == len(SHARED)
        if build == "aarch64" and kernel == "scalar":  # emulated threads take twice the time
            assert not check([*command, "--alone"], paths, kernel)
        else:
            assert check(command, paths, kernel) == WAYS


@pytest.mark.parametrize(
    ("processor", "kernels"),
    [
        ("Nehalem", ["scalar"]),
        ("SandyBridge", ["scalar"]),
        ("Haswell,-fma", ["scalar"]),
        ("Haswell,-avx2", ["scalar"]),
        ("Haswell,-xsave", ["scalar"]),
        ("Haswell", ["avx2", "scalar"]),
    ],
)
def test_only_what_the_processor_has_ever_runs(
    processor: str, kernels: list[str], driver: Programs, cases: Any
) -> None:
    """Promise 6: any instruction that the emulated processor lacks would end the program."""
    if platform.machine() != "x86_64" or not shutil.which("qemu-x86_64"):
        pytest.skip("needs an x86_64 machine and qemu-x86_64")
    command = ["qemu-x86_64", "-cpu", processor, *driver.command("cc")]
    assert kernels_of(command) == [*((name, 4) for name in kernels), ("scalar", 8)]
    short = [path for path in cases(kernels[0], 4) if not path.name.endswith(("_long", "_chunks"))]
    assert not check([*command, "--slack", "--alone"], short, kernels[0])
