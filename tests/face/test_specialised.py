"""Models as C whose sizes and weights are constants: the bits of the library's kernel.

All of them are compiled into one library, whose functions are called as a program would: step by
step, and several steps at once, from a state that is copied.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chain
import numpy as np
import pytest
from c_builds import call
from models import build, every_kind, recurrent
from quantised import in_precision
from random_graphs import random_graph, random_inputs
from test_several_values import graphs
from ways import assert_same_bits

import fastlstm
from fastlstm import Model, _engine, spec
from fastlstm.exporting import specialised
from fastlstm.format import ModelFile

Values = dict[str, np.ndarray]

FLAGS = ["-std=c11", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
PIECE = 5  # steps of one call


def stacked(cell: str, *sizes: int) -> Iterator[Any]:
    """Layers of one cell, of sizes in and out."""
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        yield recurrent(cell, inputs, outputs, f"layer{number}")


def chains() -> dict[str, Any]:
    """Sizes around 8 and 16 lanes of each cell, and cells that are not quite PyTorch's."""
    L = 8
    kinds = ("coupled", "norm_product", "embedding_before", "learned_start", "causal")
    return {
        "lstm": (
            *stacked("lstm", 3, 7, 8, 40),
            *(chain.Linear("e", 40, 37), chain.Activation("f", "relu", 37)),
            chain.Linear("g", 37, 1),
        ),
        "gru": (
            *stacked("gru", 1, 3, 16, 33),
            *(chain.Linear("e", 33, 2), chain.Activation("f", "elu(0.5)", 2)),
        ),
        "rnn": (*stacked("rnn_tanh", 2, 5, 16, 70), chain.Linear("e", 70, 5)),
        **{kind: every_kind(L)[kind] for kind in kinds},
    }


RANDOM = (5, 11, 17)
STORED = ("int8", "float16", "bfloat16")  # of a chain
NAMES = [
    *chains(),
    *(f"lstm_{precision}" for precision in STORED),
    *("gru_int8", "embedding_before_int8", "norm_product_int8"),
    *(name.replace(" ", "_") for name in graphs()),
    *(f"seed{s}" for s in RANDOM),
]


def model_of(name: str, isa: str | None = None) -> Model:
    rng = np.random.default_rng(list(name.encode()))
    kind, _, precision = name.rpartition("_")
    if name in chains():
        return build(chains()[name], rng, isa=isa)
    if precision in STORED:
        plain = build(chains()[kind], rng)
        stored = in_precision(plain.graph, plain.tensors, precision)
        return Model(ModelFile(plain.graph, stored), isa=isa)
    if name.startswith("seed"):
        graph, tensors = random_graph(np.random.default_rng(int(name.removeprefix("seed"))))
    else:
        graph = graphs()[name.replace("_", " ")]
        shapes = spec.check(graph).tensors
        tensors = {key: rng.uniform(-0.6, 0.6, shape) for key, shape in shapes.items()}
    tensors = {key: tensor.astype(np.float32) for key, tensor in tensors.items()}
    return Model(ModelFile(graph, tensors), isa=isa)


class Library:
    """Models as C, compiled together; of each, its functions."""

    def __init__(self, folder: Path, isa: str, names: list[str], compiler: str) -> None:
        self.isa = isa
        self._lock = folder / "lock"
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = folder / "library.so"
            if not made.exists():
                self._make(folder, names, compiler, made)
        self.functions = ctypes.CDLL(str(made))

    def _make(self, folder: Path, names: list[str], compiler: str, to: Path) -> None:
        def make_one(name: str) -> Path:
            fastlstm.export(model_of(name), folder / name, specialise=True, isa=self.isa, name=name)
            source, made = folder / name / f"{name}.c", folder / f"{name}.o"
            built = call([compiler, *FLAGS, "-c", source, "-o", made])
            assert built.returncode == 0, built.stderr
            assert not built.stderr
            return made

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(make_one, names))
        linked = call([compiler, "-shared", *objects, "-lm", "-o", to.with_suffix(".part")])
        assert linked.returncode == 0, linked.stderr
        to.with_suffix(".part").rename(to)


class Sequence:
    """A stream of a specialised model, which is given and gives what a `Stream` does."""

    def __init__(self, library: Library, name: str, model: Model, held: Values) -> None:
        self._functions, self._name = library.functions, name
        self._outputs = {o: model.facts.rows[value] for o, value in model.graph.outputs.items()}
        self._memory = aligned(1 << 20)
        self._plain = all(row.held or row.timing == spec.Timing() for row in self._outputs.values())
        self._call("init", [*held.values()])

    def _call(self, function: str, given: list[Any]) -> None:
        words = [
            ctypes.c_size_t(a) if isinstance(a, int) else ctypes.c_void_p(a.ctypes.data)
            for a in [self._memory, *given]
        ]
        getattr(self._functions, f"{self._name}_{function}")(*words)

    def copy(self) -> Sequence:
        made = object.__new__(Sequence)
        made.__dict__.update(self.__dict__)
        made._memory = aligned(len(self._memory))
        made._memory[:] = self._memory
        return made

    def _given(self, function: str, steps: int, first: list[Any]) -> Values:
        most = 16 * (steps + 16)  # rows of any output
        rows = np.full(len(self._outputs), steps, np.uintp)
        made = [np.full((most, row.size), np.nan, np.float32) for row in self._outputs.values()]
        self._call(function, [*first, *made, *([] if self._plain else [rows])])
        given = {}
        for (name, row), n, y in zip(self._outputs.items(), rows, made, strict=True):
            n = 1 if row.held and self._plain else int(n)
            assert np.isnan(y[n:]).all()
            given[name] = y[:n].reshape(n, *row.shape)
        return given

    def step(self, x: Values) -> Values:
        return self._given("step", 1, list(x.values()))

    def run(self, x: Values) -> Values:
        steps = len(next(iter(x.values())))
        return self._given("run", steps, [steps, *x.values()])

    def flush(self) -> Values:
        if self._plain:
            return {
                name: np.empty((0, *row.shape), np.float32)
                for name, row in self._outputs.items()
                if not row.held
            }
        return self._given("flush", 0, [])


def aligned(size: int) -> np.ndarray:
    memory = np.full(size + 64, 255, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size]


@pytest.fixture(scope="module", params=["cc", "clang"])
def library(request, tmp_path_factory) -> Library:
    """With clang, a few of them."""
    compiler = request.param
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    isa = next(name for name, _ in _engine.kernels() if not name.startswith("avx512"))
    names = NAMES if compiler == "cc" else ["lstm", "coupled", "late"]
    return Library(tmp_path_factory.mktemp(compiler), isa, names, compiler)


def drawn(name: str, graph: spec.Graph, T: int) -> tuple[Values, Values]:
    """Inputs of each step, and held ones."""
    given = random_inputs(np.random.default_rng([*name.encode(), T]), graph, T, 1)
    arrays = {
        one.name: np.ascontiguousarray(
            given[one.name][0] if one.held else given[one.name][:, 0],
            np.int64 if one.tokens else np.float32,
        )
        for one in graph.inputs
    }
    held = {one.name for one in graph.inputs if one.held}
    moving = {key: x for key, x in arrays.items() if key not in held}
    return moving, {key: arrays[key] for key in held}


def cut(x: Values, start: int, stop: int) -> Values:
    return {name: rows[start:stop] for name, rows in x.items()}


def pieces(T: int) -> Iterator[tuple[int, int]]:
    """Three steps, a few at once, and then step by step again."""
    yield from ((0, 1), (1, 2), (2, 3), (3, 3 + PIECE))
    yield from ((t, t + 1) for t in range(3 + PIECE, T))


def assert_given(got: Values, expected: Any, rows: dict[str, spec.Row]) -> None:
    if not isinstance(expected, dict):
        (name,) = got
        expected = {name: expected}
    for name in got:
        y = expected[name]
        last = slice(-1, None) if rows[name].held else slice(None)
        assert_same_bits(got[name][last], y.reshape(-1, *rows[name].shape)[last])


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_the_kernel(library, name):
    if not hasattr(library.functions, f"{name}_step"):
        pytest.skip("compiled with gcc only")
    model = model_of(name, library.isa)
    graph, facts = model.graph, model.facts
    rows = {o: facts.rows[value] for o, value in graph.outputs.items()}
    T = 3 + PIECE + 4 + max(row.timing.delay for row in facts.rows.values() if row.timing)
    moving, held = drawn(name, graph, T)
    stream = model.stream(held=held or None)
    made = Sequence(library, name, model, held)
    for first, end in pieces(T):
        x = cut(moving, first, end)
        twin = made.copy()
        got = made.step(x) if end == first + 1 else made.run(x)
        assert_given(got, stream.run(x), rows)
        again = twin.run(x)
        assert all(np.array_equal(again[o], y, equal_nan=True) for o, y in got.items())
        made = twin if first % 2 else made
    assert_given(made.flush(), stream.flush(), rows)


# ---- Other targets ----

CORTEX_M4 = ["-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-Os"]


def test_on_a_microcontroller_it_needs_nothing_but_what_moves_memory(tmp_path):
    """No arithmetic of doubles, no function of a library, and no memory that is written."""
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("arm-none-eabi-gcc is not installed")
    layers = (recurrent("lstm", 1, 16, "cell"), chain.Linear("head", 16, 1))
    model = build(layers, np.random.default_rng(1))
    fastlstm.export(model, tmp_path, specialise=True, isa="fused", name="amp")
    made = tmp_path / "amp.o"
    built = call(["arm-none-eabi-gcc", *CORTEX_M4, *FLAGS[:1], *FLAGS[3:], "-c",
                  tmp_path / "amp.c", "-o", made])  # fmt: skip
    assert built.returncode == 0, built.stderr
    wanted = call(["arm-none-eabi-nm", "--undefined-only", made]).stdout.split()[1::2]
    assert set(wanted) <= {"memset", "memcpy", "memmove"}
    flash, data, bss = call(["arm-none-eabi-size", made]).stdout.splitlines()[1].split()[:3]
    assert (data, bss) == ("0", "0")
    weights = sum(tensor.nbytes for tensor in model.tensors.values())
    assert int(flash) < weights + 4096


def test_the_folder_builds_and_runs_on_another_processor(tmp_path):
    """As its README says; NEON's numbers are those of AVX2."""
    compiler, runner = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    if not shutil.which(compiler) or not shutil.which(runner):
        pytest.skip(f"{compiler} or {runner} is not installed")
    if "avx2" not in dict(_engine.kernels()):
        pytest.skip("there is no kernel here whose numbers are those of NEON")
    model = model_of("late", "avx2")
    fastlstm.export(model, tmp_path, specialise=True, isa="neon")
    made = call(["make", "-C", tmp_path, f"CC={compiler}", "CFLAGS=-O1", "LDFLAGS=-static"])
    assert made.returncode == 0, made.stderr
    moving, _ = drawn("late", model.graph, 9)
    rows = b"".join(x[t].tobytes() for t in range(9) for x in moving.values())
    got = subprocess.run([runner, tmp_path / "run"], input=rows, capture_output=True, check=True)
    stream = model.stream()
    given = [stream.run(cut(moving, t, t + 1)) for t in range(9)] + [stream.flush()]
    expected = b"".join(y.tobytes() for of in given for y in of.values())
    assert got.stdout == expected


def test_every_kernel_there_is_can_be_written_for():
    """But the one whose tiles the system must be asked for, which nothing in such a file does."""
    assert set(_engine.known_isas()) - {"avx512amx"} <= set(_engine.targets())


# ---- Refusals ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"specialise": True, "isa": "sse9"}, "isa is 'sse9'; expected one of avx512vnni, "),
        ({"specialise": True, "name": "1st"}, "name is '1st'; expected a name of C"),
        ({"specialise": True, "name": "double"}, "expected a name of C"),
        ({"specialise": True, "apart": True}, "apart is of a model that is read"),
        ({"isa": "avx2"}, "isa is of a specialised model; .* specialise=True"),
        ({"name": "amp"}, "name is of a specialised model"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fastlstm.export(model_of("axes"), tmp_path / "folder", **options)
    assert not (tmp_path / "folder").exists()


def test_models_that_cannot_be(tmp_path, monkeypatch):
    ahead = build((recurrent("lstm", 2, 3, bidirectional=True),), np.random.default_rng(1))
    with pytest.raises(ValueError, match=r"the model has no step.* without specialise"):
        fastlstm.export(ahead, tmp_path, specialise=True)
    monkeypatch.setattr(specialised, "MOST_NUMBERS", 20)
    with pytest.raises(ValueError, match=r"has [0-9]+ numbers; specialised C takes up to 20"):
        fastlstm.export(model_of("axes"), tmp_path, specialise=True)
