"""Operations on rows, run by the core: programs of one operation against the same in NumPy.

Sizes lie around the widths of vectors. Each program runs on every kernel there is, step by step and
at once, alone and by several threads; AVX2, AVX-512 and NEON give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from program_in_numpy import NumPyProgram
from programs import BUILDS, Case, Driver, driver_of

from fastlstm.plan import operations as op
from fastlstm.plan.program import Instruction, Program
from fastlstm.spec import Function
from fastlstm.spec.functions import PARAMETERS

Rng = np.random.Generator
NONE = op.NONE
T, B = 3, 2
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 257)


@dataclass(eq=False)
class Trial:
    """A program of one operation, put together as its methods are called."""

    rng: Rng
    program: Program = field(default_factory=Program)
    tensors: list[np.ndarray] = field(default_factory=list)
    inputs: list[np.ndarray] = field(default_factory=list)
    scale: float = 1.0  # how much larger its errors may be than those of a function

    def reads(self, count: int, numbers: np.ndarray | None = None, tokens: int = 0) -> int:
        """An input, random by default."""
        number = len(self.program.inputs)
        value = self.program.value(count, 0, "input", number, tokens)
        self.program.inputs.append(value)
        if numbers is None:
            numbers = self.rng.standard_normal((T, B, count))
            if tokens:
                numbers = self.rng.integers(0, tokens, (T, B, count))
        self.inputs.append(numbers if tokens else numbers.astype(np.float32))
        return value

    def tensor(self, *shape: int) -> int:
        numbers = self.rng.standard_normal(shape).astype(np.float32)
        self.tensors.append(numbers)
        return self.program.tensor(numbers.size)

    def vector(self, count: int) -> int:
        return self.program.vector_of(self.tensor(count), 0, count)

    def matrix(self, rows: int, columns: int) -> int:
        return self.program.matrix_of(self.tensor(rows, columns), rows, columns)

    def list(self, numbers: Any) -> int:
        return self.program.list_of(np.asarray(numbers))

    def gives(self, count: int) -> int:
        """y, the output, of so many numbers."""
        y = self.program.value(count, 0, "output", 0)
        self.program.outputs.append(y)
        return y

    def does(self, operation: op.Operation) -> Trial:
        self.program.add(operation)
        return self

    def expected(self) -> np.ndarray:
        run = NumPyProgram(self.program, self.tensors)
        with np.errstate(all="ignore"):
            return np.asarray(run.run(run.begin(B), self.inputs)[0])

    def case(self, kernel: tuple[str, Any], pieces: Sequence[int] = (T,), threads: int = 1) -> Case:
        name, dtype = kernel
        counts = [self.program.values[number].count for number in self.program.outputs]
        made = Case(
            self.program.to_bytes(), self.tensors, counts, dtype, name, batch=B, threads=threads
        )
        made.begin()
        first = 0
        for steps in pieces:
            made.run(steps, [x[first : first + steps] for x in self.inputs])
            first += steps
        return made


def moves(rng: Rng) -> Iterator[Trial]:
    for n in SIZES:
        # Of many values, beyond those whose views are kept, forwards, backwards, repeated, filled.
        of = Trial(rng)
        counts = [n, *rng.integers(1, 9, 20).tolist()]
        reads = of.list([of.reads(count) for count in counts])
        places = rng.integers(-1, sum(counts), 20)
        runs = [[0, 1, n], [n - 1, -1, n], [0, 0, 3], [-1, 0, 2], *([p, 0, 1] for p in places)]
        runs.append([0, 2, (n + 1) // 2])
        y = of.gives(sum(count for _, _, count in runs))
        yield of.does(op.Move(reads, y, of.list(runs), 0.25))


CODES = {
    # Every function once, of numbers that it takes.
    **{
        name: [Instruction(Function(name, *(0.25, 0.75)[: len(parameters)]), 0)]
        for name, parameters in PARAMETERS.items()
    },
    **{
        name: [Instruction(Function(name), 0, 1)]
        for name in (
            *("add", "subtract", "multiply", "divide", "power", "minimum", "maximum", "equal"),
            *("not_equal", "less", "less_equal", "greater", "greater_equal"),
        )
    },
    "where": [Instruction(Function("less"), 0, 1), Instruction(Function("where"), 3, 1, 2)],
    "one of another": [
        Instruction(Function("multiply"), 0, 1),
        Instruction(Function("tanh"), 3),
        Instruction(Function("subtract"), 4, 2),
        Instruction(Function("maximum"), 4, 5),
        Instruction(Function("add"), 6, 0),
    ],
    "long": [
        Instruction(Function("add"), 0, 1),
        *(Instruction(Function("affine", 0.5, 0.25), number) for number in range(3, 60)),
        Instruction(Function("add"), 60, 3),
    ],
}
READS = {"where": 3, "one of another": 3, "long": 3}


def registers(name: str) -> int:
    """The values that a code reads."""
    return READS.get(name, 1 if name in PARAMETERS else 2)


def numbers_for(name: str, rng: Rng, count: int) -> np.ndarray:
    x = rng.standard_normal((T, B, count)) * 3
    if name in ("sqrt", "log", "power", "divide", "reciprocal"):
        x = np.abs(x) + 0.01
    return np.round(x * 2) if name in ("equal", "not_equal", "less_equal") else x


def maps(rng: Rng) -> Iterator[Trial]:
    for name, code in CODES.items():
        for n in (1, 5, 16, 31, 100, 4100) if registers(name) == 1 else (7, 64, 300):
            of = Trial(rng)
            reads = [of.reads(n, numbers_for(name, rng, n)) for _ in range(registers(name))]
            axes = of.list([n]), of.list([1] * len(reads))
            yield of.does(op.Map(of.list(reads), of.gives(n), *axes, of.program.code(code)))
    for shape in ((3, 4), (2, 3, 5), (17, 2), (4, 33), (1, 7, 1), (600, 3), (2, 2, 2, 2, 2, 3)):
        for name in ("add", "one of another", "where"):
            of, reads, strides = Trial(rng), [], []
            for _ in range(registers(name)):
                # Each axis is there or is repeated, so that a value may be one number.
                kept = rng.random(len(shape)) < 0.6
                sizes = np.where(kept, shape, 1)
                behind = [math.prod(sizes[k + 1 :]) for k in range(len(shape))]
                reads.append(of.reads(math.prod(sizes)))
                strides.append(np.where(kept & (np.array(shape) > 1), behind, 0))
            axes = of.list(shape), of.list(np.ravel(strides))
            code, y = of.program.code(CODES[name]), of.gives(math.prod(shape))
            yield of.does(op.Map(of.list(reads), y, *axes, code))


def products(rng: Rng) -> Iterator[Trial]:
    functions = [Function("identity"), Function("relu"), Function("tanh"), Function("elu", 0.5)]
    for number, outputs in enumerate(SIZES):
        # Positions that follow one another: a matrix, or the same one for each of several.
        for positions, columns in ((1, SIZES[-1 - number]), (5, 7), (130, 3)):
            of = Trial(rng, scale=math.sqrt(columns) + 3)
            x = of.list([of.reads(positions * columns)])
            m = of.list([of.matrix(outputs, columns)])
            vectors = [of.vector(outputs) for _ in range(3)] if number % 2 else [NONE] * 3
            y, f = of.gives(positions * outputs), functions[number % 4]
            yield of.does(op.Product(x, y, m, *vectors, f, positions, columns))
    for groups, positions, taps, piece, outputs in (
        *((1, 9, 3, 4, 5), (1, 50, 5, 1, 17), (4, 6, 2, 3, 2), (3, 30, 3, 16, 33)),
        *((16, 2, 2, 1, 1), (2, 25, 1, 40, 64), (1, 1, 70, 20, 3)),
    ):
        for reads in (1, 3, 20):
            of = Trial(rng, scale=math.sqrt(taps * piece) + 3)
            count = max(piece * 2 // reads, 1) * 4
            x = of.list([of.reads(count) for _ in range(reads)])
            places = rng.integers(-1, count * reads - piece, (positions, groups, taps))
            m = of.list([of.matrix(outputs, taps * piece) for _ in range(groups)])
            y, bias = of.gives(positions * groups * outputs), of.vector(groups * outputs)
            rest = (bias, NONE, NONE, Function("silu"), positions, piece, of.list(places))
            yield of.does(op.Product(x, y, m, *rest))


def taps(rng: Rng) -> Iterator[Trial]:
    for number, C in enumerate(SIZES):
        count, positions, size = 7 - number % 3, number % 4 + 1, number % 5 + 1
        of = Trial(rng, scale=5)
        x = of.list([of.reads(C * 2) for _ in range(count)])
        places = rng.integers(0, count * 2, (positions, size)) * C
        places[rng.random(places.shape) < 0.2] = -1
        vectors = [of.vector(C) for _ in range(3)] if number % 2 else [of.vector(C), NONE, NONE]
        y, weight = of.gives(positions * C), of.matrix(size, C)
        rest = (*vectors, Function("relu"), positions, of.list(places))
        yield of.does(op.Taps(x, y, weight, *rest))


def matmuls(rng: Rng) -> Iterator[Trial]:
    for number, p in enumerate(SIZES):
        first = (SIZES[(number * 3) % 11], SIZES[(number * 5) % 17], 1)
        for n, k, many in (first, (3, 9, 4), (5, 40, 2), (2, 1100, 1)):
            of = Trial(rng, scale=math.sqrt(k) + 1)
            a, b = of.reads(many * n * k + 3), of.reads(many * k * p)
            places = [[i * n * k + 3, (many - 1 - i) * k * p] for i in range(many)]
            yield of.does(op.MatMul(a, b, of.gives(many * n * p), n, k, p, of.list(places)))


def shapes(rng: Rng) -> Iterator[tuple[int, int, int]]:
    for n in (*SIZES, 130, 1000):
        yield int(rng.integers(1, 4)), n, 1
        yield int(rng.integers(1, 3)), n, int(rng.choice([2, 3, 7, 8, 15, 16, 17, 33]))


def reductions(rng: Rng) -> Iterator[Trial]:
    for outer, n, inner in shapes(rng):
        for reduction in op.ENUMERATIONS["reduction"]:
            of = Trial(rng, scale=math.sqrt(n) if reduction in ("sum", "mean") else 1)
            x, y = of.reads(outer * n * inner), of.gives(outer * inner)
            yield of.does(op.Reduce(x, y, reduction, outer, n, inner))


def softmaxes(rng: Rng) -> Iterator[Trial]:
    for outer, n, inner in shapes(rng):
        for log in (0, 1):
            of = Trial(rng, scale=3)
            x, y = of.reads(outer * n * inner), of.gives(outer * n * inner)
            yield of.does(op.Softmax(x, y, log, outer, n, inner))


def norms(rng: Rng) -> Iterator[Trial]:
    for number, n in enumerate(SIZES):
        for norm in op.ENUMERATIONS["norm"]:
            outer = number % 3 + 1
            of = Trial(rng, scale=4)
            x, y = of.reads(outer * n), of.gives(outer * n)
            weight = of.vector([n, outer * n][number % 2])
            bias = of.vector(n) if number % 4 else NONE
            yield of.does(op.Norm(x, y, norm, outer, n, 1e-3, weight, bias))


def tables(rng: Rng) -> Iterator[Trial]:
    for width in SIZES:
        of = Trial(rng)
        x, y, table = of.reads(5, tokens=9), of.gives(4 * width), of.matrix(9, width)
        yield of.does(op.Lookup(x, y, table, of.list([4, 0, 0, 2])))
        of = Trial(rng)
        x, y = of.reads(5, tokens=width), of.gives(3 * width)
        yield of.does(op.OneHot(x, y, width, of.list([4, 0, 0])))


KINDS = {
    kind.__name__: kind
    for kind in (moves, maps, products, taps, matmuls, reductions, softmaxes, norms, tables)
}


def run(driver: Driver, cases: Sequence[Case]) -> list[np.ndarray]:
    """What each case gives, (T, B, count)."""
    made = []
    for answer in driver.run(cases):
        assert answer.error == "ok", answer.message
        _, *calls = answer.calls
        assert [call.error for call in calls] == ["ok"] * len(calls)
        made.append(np.concatenate([call.outputs()[0] for call in calls]))
    return made


def check(trial: Trial, y: np.ndarray, what: str) -> None:
    exact = trial.expected()
    eps = np.finfo(y.dtype).eps * (1 if y.dtype == np.float32 else 16)
    size = np.abs(exact[np.isfinite(exact)]).max(initial=0)
    with np.errstate(all="ignore"):
        exact = exact.astype(y.dtype)
    np.testing.assert_allclose(
        y,
        exact,
        8 * eps,
        trial.scale * eps * max(size, 1e-30),
        err_msg=f"{what}: {trial.program.listed(trial.program.operations[0])}",
    )


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_computes_what_numpy_does(kind, build, rng):
    driver = driver_of(build)
    trials = list(KINDS[kind](rng))[:: 1 if build == "plain" else 3]
    for kernel in driver.kernels():
        given = run(driver, [trial.case(kernel) for trial in trials])
        for trial, y in zip(trials, given, strict=True):
            check(trial, y, f"{kernel}")


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_threads_change_no_bit(kind, rng):
    driver = driver_of("plain")
    trials = list(KINDS[kind](rng))
    for kernel in driver.kernels():
        whole = run(driver, [trial.case(kernel) for trial in trials])
        for pieces, threads in (((1,) * T, 1), ((T,), 3), ((1, T - 1), 2)):
            given = run(driver, [trial.case(kernel, pieces, threads) for trial in trials])
            for trial, y, expected in zip(trials, given, whole, strict=True):
                same(y, expected, f"{kernel}, {pieces}, {threads} threads", trial)


@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_gives_the_same_bits(kind, rng):
    trials = list(KINDS[kind](rng))
    kernels = [(name, dtype) for name, dtype in driver_of("plain").kernels() if name != "scalar"]
    given = {
        name: run(driver_of("plain"), [trial.case((name, dtype)) for trial in trials])
        for name, dtype in kernels
    }
    if "neon" in BUILDS:
        neon = ("neon", np.float32)
        given["neon"] = run(driver_of("neon"), [trial.case(neon) for trial in trials])
    first, *others = given
    for name in others:
        for trial, y, expected in zip(trials, given[name], given[first], strict=True):
            same(y, expected, f"{name} and {first}", trial)


def same(y: np.ndarray, expected: np.ndarray, what: str, trial: Trial) -> None:
    listed = trial.program.listed(trial.program.operations[0])
    words = (np.where(np.isnan(a), np.nan, a).tobytes() for a in (y, expected))
    first, second = words
    assert first == second, f"{what}: {listed}"


# Numbers that need care: as they are, and in the midst of ordinary ones.
ODD = {
    "nan": [np.nan, 1.0, -2.0],
    "infinity": [np.inf, 1.0, -3.0],
    "minus infinity": [-np.inf, 1.0, 3.0],
    "only minus infinity": [-np.inf] * 3,
    "both": [np.inf, -np.inf, 0.0],
    "large": [3e38, 2e38, 3e38],
    "large of both signs": [3e38, -3e38, 1e38],
    "small": [1e-25, 3e-30, -2e-28],
    "zeros": [0.0, -0.0, 0.0],
    "equal": [0.1, 0.1, 0.1],
    "large and equal": [3e38, 3e38, 3e38],
}


def odd_trials(rng: Rng, numbers: list[float]) -> Iterator[Trial]:
    for repeats, inner in ((1, 1), (1, 5), (12, 1), (12, 5), (50, 1)):
        n = len(numbers) * repeats
        x = np.broadcast_to(np.repeat(np.tile(numbers, repeats), inner), (T, B, n * inner))
        for reduction in op.ENUMERATIONS["reduction"]:
            of = Trial(rng)
            yield of.does(
                op.Reduce(of.reads(n * inner, x), of.gives(inner), reduction, 1, n, inner)
            )
        for log in (0, 1):
            of = Trial(rng)
            yield of.does(op.Softmax(of.reads(n * inner, x), of.gives(n * inner), log, 1, n, inner))
        for norm in op.ENUMERATIONS["norm"] if inner == 1 else ():
            of = Trial(rng, scale=4)
            yield of.does(op.Norm(of.reads(n, x), of.gives(n), norm, 1, n, 1e-5))


@pytest.mark.parametrize("odd", ODD)
def test_numbers_that_need_care(odd, rng):
    driver = driver_of("plain")
    trials = list(odd_trials(rng, ODD[odd]))
    for kernel in driver.kernels():
        given = run(driver, [trial.case(kernel) for trial in trials])
        for trial, y in zip(trials, given, strict=True):
            check(trial, y, f"{kernel}")
