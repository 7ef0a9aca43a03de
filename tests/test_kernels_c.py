"""The kernels as plain C: other compilers, sanitizers, another architecture, older processors.

``tests/kernels/driver.c`` is compiled with ``kernels/*.c`` and without Python. It runs cases that
are written here, packed by ``fastlstm.pack`` and with the output that the float64 reference gives,
on memory whose every edge is watched, and demands the same bits however a run is cut and however
many threads share it.

What a build or a processor needs beyond a C compiler, ``.ci/run`` installs where it can; a check
that cannot have it is skipped and says what is missing.
"""

from __future__ import annotations

import functools
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from models import CELLS, KINDS, every_kind, random_tensors, recurrent

from fastlstm import _engine
from fastlstm import chain as spec
from fastlstm.chain import reference
from fastlstm.chain.functions import PARAMETERS
from fastlstm.pack import PackedModel, pack

BUILDS = {
    "cc": OPTIMIZED,
    "clang": CLANG,
    "sanitizers": Build("cc", ("-O0", *ADDRESS_FLAGS)),
    "threads": replace(THREADS, flags=("-Og", *THREADS.flags[1:])),
    "aarch64": AARCH64,
}

LANES = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}

# Order of the enums in fastlstm.h.
LAYERS = ("lookup", "linear", "activation", "lstm", "gru", "rnn", "scale", "prelu", "layer_norm",
          "halves", "transpose", "frame_conv", "time_conv", "pool", "add", "concat")  # fmt: skip
FUNCTIONS = (None, *PARAMETERS)
COMBINATIONS = ("sum", "product", "average", "magnitude", "glu")
POOLINGS = ("last", "mean", "final")
PADDINGS = ("zeros", "reflect", "replicate")
NORMS = ("", "product", "gate")

# Around the edges of 1, 4, 8 and 16 lanes, and of one row and of every block of rows.
SIZES = [(1, 1), (3, 4), (5, 3), (4, 11), (11, 5), (16, 15), (15, 16), (35, 17), (17, 35)]
RUNS = [(1, 1), (2, 2), (5, 3), (3, 5), (17, 1), (4, 6), (2, 17), (3, 7), (6, 4)]

# Largest error, relative to the largest output or to 1; measured: 3.7e-7 and 8.3e-16.
BOUNDS = {"float32": 1e-6, "float64": 3e-15}

# Numbers that are nearly the same are normalised to what rounding left of them.
NORMALISED = 100

# Of every row of such numbers the squares overflow, of some the sum.
LARGE = (2e19, 3e25, 1e30, 3e38, -3e38)

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
    *("coupled_11", "norm_product_11", "norm_gate_11", "gru_before_11", "both_ways_11"),
    *("delayed_11", "grouped_11", "frames_11", "features_11", "residual_11", "mean_11"),
    *("norm_long", "reset_chunks", "convolution_long_2", "frames_long", "pools_long"),
)

# One case of everything, short, for a processor that is emulated.
RUN_ANYWHERE = (
    *(f"{cell}_17_35" for cell in CELLS),
    *(f"{kind}_5" for kind in KINDS),
    *(f"{function}_17" for function in spec.ACTIVATIONS),
    *("linear_35_17", "projection_35_17", "embedding_lstm_linear", "gru_odd", "flushed"),
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
            layers = (spec.Activation("e", function, size), spec.Linear("a", size, size))
            yield f"{function}_{size}", (*layers, spec.Activation("f", function, size)), *next(runs)
    for size in (1, 5, 11):
        for kind, layers in every_kind(size).items():
            yield f"{kind}_{size}", layers, 13, {1: 3, 5: 1, 11: 7}[size]
    yield "norm_long", (spec.LSTM("r", 9, 35, layer_norm="product", peepholes=True), *WIDE), 60, 2
    yield "reset_chunks", (spec.GRU("r", 3, 35, reset_after=False), *WIDE), 40, 17
    time = (spec.Conv1d("t", 9, 20, 5, 2, 3), spec.Conv1d("u", 20, 700, 2), WIDE[2])
    for B in (1, 2, 7):
        yield f"convolution_long_{B}", time, 600 // (B + 1), B
    frame = spec.FrameConv1d("f", 1, 20, 9, 4, width=50, padding_left=3, padding_mode="reflect")
    layers = (frame, spec.CombineHalves("m", "magnitude", 20, width=frame.out_width))
    yield "frames_long", (*layers, recurrent("gru", 10 * frame.out_width, 35)), 120, 3
    layers = (recurrent("gru", 3, 20, bidirectional=True), spec.Pool("p", "final", 40))
    yield "pools_long", (*layers, spec.Linear("o", 40, 3)), 250, 4


def inputs(
    layers: Layers, tensors: dict[str, np.ndarray], T: int, B: int, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A sequence and a state; of steps, all rows have read as many."""
    dtype = next(iter(tensors.values())).dtype if tensors else np.float32
    if layers[0].takes_tokens:
        x = rng.integers(0, layers[0].input_size, (T, B))
    else:
        x = rng.standard_normal((T, B, layers[0].input_size)).astype(dtype)
    start = reference.start_state(layers, tensors, B, dtype)
    state = {name: rng.uniform(-1, 1, a.shape).astype(dtype) for name, a in start.items()}
    for layer in layers:
        for name, bound in layer.counts().items():
            state[name][...] = rng.integers(min(bound, 20))
    return x, state


def blocks(layers: Layers, state: dict[str, np.ndarray], B: int) -> np.ndarray:
    """The state of every stream as the kernels keep it, (B, state_size)."""
    pieces = [
        state[name].transpose(1, 0, 2).reshape(B, -1) for layer in layers for name in layer.state()
    ]
    return np.concatenate([np.zeros((B, 0)), *pieces], axis=1)


def counters(layers: Layers) -> list[int | float]:
    """Their number; then, of each count of steps in a state, its place and its bound."""
    found: list[int | float] = []
    at = 0
    for layer in layers:
        bounds = layer.counts()
        for name, (depth, size) in layer.state().items():
            for i in range(depth * size if name in bounds else 0):
                found += [at + i, float(bounds[name])]
            at += depth * size
    return [len(found) // 2, *found]


class Encoder:
    """What the driver reads: int64 numbers, doubles, and arrays behind their number of elements."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def put(self, *items: Any) -> None:
        for item in items:
            if item is None or isinstance(item, np.ndarray):
                array = np.empty(0) if item is None else item
                self.parts.extend((np.int64(array.size).tobytes(), array.tobytes()))
            elif isinstance(item, float):
                self.parts.append(np.float64(item).tobytes())
            else:
                self.parts.append(np.int64(item).tobytes())

    def function(self, function: spec.Function | None) -> None:
        name = function.name if function else None
        alpha, beta = (function.alpha, function.beta) if function else (0.0, 0.0)
        self.put(FUNCTIONS.index(name), alpha, beta)

    def panels(self, panels: Any, lanes: int) -> None:
        if panels is None:
            self.put(*[None] * 4, *[0] * 4)
            return
        self.put(panels.weights, panels.bias, panels.scale, panels.shift)
        self.put(panels.inputs * panels.groups * lanes, panels.panels, panels.groups)
        self.put(panels.last_groups)

    def variant(self, variant: Any, lanes: int) -> None:
        self.put(variant is not None)
        if variant is None:
            return
        for i in range(3):
            self.function(variant.functions[i] if i < len(variant.functions) else None)
        self.put(variant.clip, variant.cell_clip, NORMS.index(variant.norm), variant.eps)
        self.put(variant.coupled, variant.h_bias, variant.bias, *variant.peepholes)
        self.put(*variant.norm_x, *variant.norm_h, *variant.norm_c, variant.norm_gate)
        self.panels(variant.reset_gates, lanes)
        self.panels(variant.reset_candidate, lanes)

    def cell(self, cell: Any, lanes: int) -> None:
        self.panels(cell.gates, lanes)
        self.panels(cell.projection, lanes)
        self.variant(cell.variant, lanes)
        self.function(cell.function)
        self.put(cell.bias_n, cell.table, cell.input_rows, cell.hidden_size, cell.h_size)
        self.put(cell.h_offset, cell.c_offset, cell.y_offset)

    def convolution(self, made: Any) -> None:
        self.put(made is not None)
        if made is not None:
            self.put(made.channels, made.kernel_size, made.stride, made.dilation, made.groups)
            self.put(made.out_channels, made.depthwise, made.padding_left)
            self.put(PADDINGS.index(made.padding_mode), made.width, made.out_width, made.reach)
            self.put(made.first, made.period, made.padding_right, made.x_offset)
            self.put(made.count_offset, made.has_count)

    def model(self, model: PackedModel) -> None:
        lanes, pools = model.lanes, any(layer.kind == "pool" for layer in model.layers)
        self.put(model.dtype.itemsize, lanes, len(model.layers), model.state_size)
        self.put(model.takes_tokens, pools, model.looks_ahead)
        for layer in model.layers:
            self.put(LAYERS.index(layer.kind))
            self.function(layer.function)
            self.put(layer.source, layer.beside, layer.to, layer.input_size, layer.output_size)
            self.put(layer.table, layer.weight, layer.bias)
            self.panels(layer.linear, lanes)
            self.put(layer.eps, layer.positions, COMBINATIONS.index(layer.combination))
            self.put(POOLINGS.index(layer.pooling), layer.state_offset, float(layer.count_bound))
            self.put(layer.x_first)
            self.convolution(layer.convolution)
            self.put(len(layer.cells), layer.reverse, layer.clip)
            for cell in layer.cells:
                self.cell(cell, lanes)


def of_lengths(
    layers: Layers,
    tensors: dict[str, np.ndarray],
    x: np.ndarray,
    state: dict[str, np.ndarray],
    lengths: Sequence[int],
    shape: tuple[int, ...],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What each row of a batch gives if it is run alone, as long as it is."""
    y, after = np.zeros(shape), {name: a.astype(np.float64) for name, a in state.items()}
    for b, length in enumerate(lengths):
        if length:
            row = {name: a[:, b : b + 1] for name, a in state.items()}
            one, row = reference.forward(layers, tensors, x[:length, b : b + 1], row)
            y[: len(one), b] = one[:, 0]
            for name, array in row.items():
                after[name][:, b] = array[:, 0]
    return y, after


@dataclass(frozen=True)
class Case:
    """A model, how it is run, and what of that the driver reads behind the packed model."""

    name: str
    layers: Layers
    tensors: dict[str, np.ndarray]
    run: bytes


def case(
    name: str,
    layers: Layers,
    tensors: dict[str, np.ndarray],
    x: np.ndarray,
    state: dict[str, np.ndarray],
    dtype: str,
    *,
    bound: float | None = None,
    y: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> Case:
    """A case; bound and y are by default those of its dtype and of the reference."""
    T, B = x.shape[:2]
    run = Encoder()
    run.put(T, B, x, blocks(layers, state, B).astype(dtype), lengths is not None)
    if lengths is not None:
        run.put(lengths)
    whole = stream = reference.forward(layers, tensors, x, state)
    rows = [] if lengths is None else lengths
    short = of_lengths(layers, tensors, x, state, rows, whole[0].shape)
    if any(layer.pools for layer in layers):
        stream = reference.forward(layers, tensors, x, state, streaming=True)
    for expected, after in (whole, short, stream):
        run.put(len(expected), expected if y is None else y, blocks(layers, after, B))
    run.put(BOUNDS[dtype] if bound is None else bound, *counters(layers))
    return Case(name, layers, tensors, b"".join(run.parts))


@functools.cache
def cases_of(dtype: str) -> list[Case]:
    """Every case; only how a model is packed depends on the kernel."""
    rng, found = np.random.default_rng(2), []
    for name, layers, T, B in models():
        spec.check_layers(layers)
        tensors = random_tensors(layers, rng, dtype)
        x, state = inputs(layers, tensors, T, B, rng)
        lengths, bound = rng.integers(0, T + 1, B), BOUNDS[dtype]
        if B > 1 and len(found) % 2:
            lengths[:2] = 0, T  # where the first row has ended others go on
        if any(getattr(layer, "layer_norm", "") for layer in layers):
            bound *= NORMALISED
        options = {"bound": bound, "lengths": lengths}
        found.append(case(name, layers, tensors, x, state, dtype, **options))
    # What is not finite comes out where PyTorch has it, and only in its own row of the batch.
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 80.0, -88.0, -104.0, 9.0]
    for function in spec.ACTIVATIONS:
        rows = odd if "softmax" not in function else [np.nan, -np.inf, 1e-42, 3e38, -3e38, 88.0]
        x = np.array(rows, dtype)[:, None, None] + np.zeros((1, 2, 17), dtype)
        x[:, 1, 1:] = 0.5
        with np.errstate(all="ignore"):
            activation = spec.Activation("f", function, 17)
            found.append(case(f"{function}_odd", (activation,), {}, x, {}, dtype))
    for cell in CELLS:
        layers = (recurrent(cell, 3, 17),)
        tensors = random_tensors(layers, rng, dtype)
        x, state = inputs(layers, tensors, 4, 7, rng)
        x[2, 1], x[1, 2, 1], x[0, 5, 0] = np.nan, np.inf, -np.inf
        found.append(case(f"{cell}_odd", layers, tensors, x, state, dtype))
    # Gates that are as good as closed before a huge c: where the divisor of a sigmoid overflows.
    layers = (spec.LSTM("r", 1, 67),)
    tensors = {name: np.zeros_like(a) for name, a in random_tensors(layers, rng, dtype).items()}
    tensors["r.bias_ih_l0"][:] = np.tile(np.linspace(-88.9, -88.2, 67, dtype=dtype), 4)
    x, state = inputs(layers, tensors, 1, 2, rng)
    state["r.c"][...] = 1e30
    found.append(case("lstm_closed", layers, tensors, x, state, dtype))
    # Normalised, but for large numbers to what rounding left: 3e38 and all the same, or so large
    # that only a scale keeps their squares from overflowing.
    for size in (1, 5, 16, 35, 130):
        layers = (spec.LayerNorm("n", size),)
        tensors = random_tensors(layers, rng, dtype)
        x = np.empty((len(LARGE), 2, size), dtype)
        x[:, 0] = np.array(LARGE, dtype)[:, None]
        x[:, 1] = x[:, 0] * rng.uniform(-1, 1, size).astype(dtype)
        found.append(case(f"large_{size}", layers, tensors, x, {}, dtype))
    for norm in ("product", "gate"):
        layers = (spec.LSTM("r", 3, 35, layer_norm=norm),)
        tensors = random_tensors(layers, rng, dtype)
        for name in tensors:
            if name.startswith(("r.weight_ih", "r.weight_hh")):
                tensors[name] *= np.dtype(dtype).type(1e30)
        x, state = inputs(layers, tensors, 3, 2, rng)
        found.append(case(f"norm_{norm}_large", layers, tensors, x, state, dtype, bound=1e-4))
    # A product below the normal numbers is flushed to zero, whatever the caller's mode.
    layers = (spec.Linear("a", 1, 17, bias=False),)
    least = np.full((1, 2, 1), np.finfo(dtype).tiny)
    half = {"a.weight": np.full((17, 1), 0.5, dtype)}
    none = np.zeros((1, 2, 17))
    found.append(case("flushed", layers, half, least, {}, dtype, bound=0.0, y=none))
    return found


def write_cases(folder: Path, lanes: int, dtype: str) -> None:
    for one in cases_of(dtype):
        packed = Encoder()
        packed.model(pack(one.layers, one.tensors, lanes, dtype))
        (folder / one.name).write_bytes(b"".join(packed.parts) + one.run)


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
    return Programs(
        BUILDS,
        sources,
        tmp_path_factory.mktemp("driver"),
        ["-DFL_LEAST_NS=1e-9", "-DFL_ASK_WORK=1"],
    )


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
    # One build runs all cases on all kernels. The others look for what only they see, and are slow:
    # emulated threads take twice the time, sanitized ones ten times.
    few = {"clang": kernels[:1], "threads": kernels[:1], "sanitizers": [kernels[0], kernels[-1]]}
    for kernel, real_size in few.get(build, kernels):
        paths = cases(kernel, real_size)
        if build == "cc":
            assert check(command, paths, kernel) == WAYS
            continue
        paths = [path for path in paths if path.name in SHARED]
        assert len(paths) == len(SHARED)
        if build in ("clang", "threads"):
            assert check(command, paths, kernel) == WAYS
        else:
            assert not check([*command, "--alone"], paths[::2], kernel)
            assert check(command, paths[1::8], kernel) <= WAYS


def bits_of(command: Sequence[object], paths: Sequence[Path], kernel: str) -> dict[str, str]:
    """A digest of the bits that each case gives."""
    done = call([*command, "--bits", kernel, *paths])
    assert done.returncode == 0, done.stdout[-400:] + done.stderr[-4000:]
    found = re.findall(r"([^ /]+): bits ([0-9a-f]{16})$", done.stdout, re.MULTILINE)
    assert len(found) == len(paths)
    return dict(found)


@pytest.mark.parametrize(("kernel", "build"), [("avx512", "cc"), ("neon", "aarch64")])
def test_every_instruction_set_gives_the_same_bits(
    kernel: str, build: str, driver: Programs, cases: Any
) -> None:
    """Promise 0, of all cases: as AVX2 does, NEON by emulation."""
    found = []
    for name, command in (("avx2", driver.command("cc")), (kernel, driver.command(build))):
        if (name, 4) not in kernels_of(command):
            pytest.skip(f"there is no {name} here to compare")
        found.append(bits_of(command, cases(name, 4), name))
    differ = [case for case, bits in found[0].items() if found[1][case] != bits]
    assert not differ, f"avx2 and {kernel} give other bits in {len(differ)} cases: {differ}"


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
    paths = [path for path in cases(kernels[0], 4) if path.name in RUN_ANYWHERE]
    assert len(paths) == len(RUN_ANYWHERE)
    assert not check([*command, "--slack", "--alone"], paths, kernels[0])
