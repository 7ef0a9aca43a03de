"""Operations over time, run by the core: programs made by hand against the same in NumPy.

Each is run whole, as a stream in random pieces, in rows of unlike lengths, on every kernel there
is; the pieces, the company of a batch and the threads may change no bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from program_in_numpy import NumPyProgram
from programs import BUILDS, Case, Driver, Given, driver_of
from time_programs import PROGRAMS, Made, attends, folds

from fastlstm.plan.program import Program


class Kernel(NamedTuple):
    """One of a build of the driver."""

    isa: str
    dtype: Any
    build: str = "plain"


KERNELS = {
    "avx512": Kernel("avx512", np.float32),
    "avx2": Kernel("avx2", np.float32),
    "scalar32": Kernel("scalar", np.float32),
    "scalar64": Kernel("scalar", np.float64),
    "neon": Kernel("neon", np.float32, "neon" if "neon" in BUILDS else "plain"),
    "address": Kernel("avx2", np.float32, "address"),
}
# What is slow, since emulated or watched, runs some of the programs.
SOME = ("neon", "address")
EACH = [
    (kernel, name)
    for kernel in KERNELS
    for number, name in enumerate(PROGRAMS)
    if kernel not in SOME or number % 4 == SOME.index(kernel)
]


def numbers(program: Program, rng, T: int, B: int):
    """Inputs (T, B, count), and held ones (B, count)."""
    values = [program.values[value] for value in program.inputs]
    moving = [rng.normal(size=(T, B, v.count)) for v in values if v.line == 0]
    return moving, [rng.normal(size=(B, v.count)) for v in values if v.line < 0]


def case_of(program: Program, kernel, B: int, held, threads: int = 1) -> Case:
    isa, dtype, _ = kernel
    counts = [program.values[value].count for value in program.outputs]
    case = Case(program.to_bytes(), (), counts, dtype, isa, B, threads)
    case.begin(held)
    return case


def pieces(rng, T: int) -> list[int]:
    """Numbers of steps that make T, some of them none."""
    cuts = np.sort(rng.integers(0, T + 1, size=rng.integers(1, 6)))
    return [int(n) for n in np.diff([0, *cuts, T])]


def answered(driver: Driver, cases: list[Case]) -> list[list]:
    """What the calls of each case gave, but for its beginning."""
    answers = driver.run(cases)
    for answer in answers:
        assert answer.error == "ok", answer.message
        for given in answer.calls:
            assert not isinstance(given, Given) or given.error == "ok"
    return [answer.calls[1:] for answer in answers]


def rows_of(program: Program, calls: list[Given], b: int) -> list[np.ndarray]:
    """All rows of each output of one row of the batch; of a held one, always the same, one."""
    made = []
    for o, value in enumerate(program.outputs):
        rows = np.concatenate([call.rows[o][b] for call in calls])
        if program.values[value].line < 0:
            np.testing.assert_array_equal(rows, rows[:1].repeat(len(rows), axis=0))
            rows = rows[:1]
        made.append(rows)
    return made


def assert_same(program: Program, calls: list[Given], b: int, others: list[Given], of: int) -> None:
    """Row b of the batch has the bits that row `of` has in other calls."""
    pairs = zip(rows_of(program, calls, b), rows_of(program, others, of), strict=True)
    for y, other in pairs:
        np.testing.assert_array_equal(y, other)


@pytest.fixture
def kernel(request) -> Kernel:
    return KERNELS[request.param]


@pytest.fixture
def driver(kernel) -> Driver:
    made = driver_of(kernel.build)
    if kernel[:2] not in made.kernels():
        pytest.skip(f"this processor, or this build, has no {kernel.isa}")
    return made


def close(actual, expected, dtype) -> None:
    precise = (
        {"rtol": 1e-12, "atol": 1e-13} if dtype == np.float64 else {"rtol": 3e-5, "atol": 3e-6}
    )
    np.testing.assert_allclose(actual, expected, **precise)


def in_turn(kernel: Kernel, name: str, options: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """One of them: a program meets each on some kernels, and a kernel with some programs."""
    turn = list(KERNELS.values()).index(kernel) + list(PROGRAMS).index(name)
    return options[turn % len(options)]


@pytest.mark.parametrize(("kernel", "name"), EACH, indirect=["kernel"])
class TestEach:
    """Numbers of one operation, or a few."""

    def test_whole(self, driver, kernel, rng, name):
        """A whole sequence gives what NumPy gives, whatever its length."""
        program, cases, expected = PROGRAMS[name](Made()), [], []
        for T in (0, 1, 2, 7, 40):
            moving, at_start = numbers(program, rng, T, 2)
            case = case_of(program, kernel, 2, at_start)
            case.run(T, moving, whole=True)
            case.flush(whole=True)
            cases.append(case)
            truth = NumPyProgram(program, ())
            state = truth.begin(2, at_start)
            run, due = truth.run(state, moving, whole=True), truth.flush(state, whole=True)
            expected.append([np.concatenate(of) for of in zip(run, due, strict=True)])
        for calls, truth in zip(answered(driver, cases), expected, strict=True):
            for b in range(2):
                for y, of in zip(rows_of(program, calls, b), truth, strict=True):
                    close(y, of[: len(y) if name == "held" else None, b], kernel[1])

    def test_pieces(self, driver, kernel, rng, name):
        """A stream in pieces gives what it gives at once, bit by bit, and what NumPy gives."""
        program, T, B = PROGRAMS[name](Made()), 60, 3
        short = PROGRAMS[name](Made()).in_short_chunks()
        moving, at_start = numbers(program, rng, T, B)
        truth = NumPyProgram(program, ())
        state = truth.begin(B, at_start)
        run, due = truth.run(state, moving), truth.flush(state)
        cases = []
        for one in (program, short):
            case = case_of(one, kernel, B, at_start)
            case.run(T, moving)
            case.flush()
            cases.append(case)
        for _ in range(3):
            case, done = case_of(program, kernel, B, at_start), 0
            for n in pieces(rng, T):
                case.run(n, [x[done : done + n] for x in moving], batch_first=bool(done % 2))
                done += n
            case.flush()
            case.flush()
            cases.append(case)
        at_once, *others = answered(driver, cases)
        for b in range(B):
            for calls, truths in ((at_once[:1], run), (at_once[1:], due)):
                for y, of in zip(rows_of(program, calls, b), truths, strict=True):
                    close(y, of[:, b], kernel[1])
            for calls in others:
                ends = 1 if calls is others[0] else 2
                assert_same(program, calls[:-ends], b, at_once[:1], b)
                for end in calls[-ends:]:
                    assert_same(program, [end], b, at_once[1:], b)

    def test_lengths(self, driver, kernel, rng, name):
        """Rows of unlike lengths, and of unlike ages, each give what they give alone."""
        program, lengths = (
            PROGRAMS[name](Made()).in_short_chunks(),
            [[7, 0, 33, 40], [12, 21, 0, 1]],
        )
        moving, at_start = numbers(program, rng, 61, 4)
        together = case_of(program, kernel, 4, at_start)
        done = np.zeros(4, int)
        for part in lengths:
            given = [np.zeros((max(part), *x.shape[1:])) for x in moving]
            for x, to in zip(moving, given, strict=True):
                for b, n in enumerate(part):
                    to[:n, b] = x[done[b] : done[b] + n, b]
            together.run(max(part), given, lengths=part, whole=True)
            done += part
        together.flush(whole=True)
        cases = [together]
        for b in range(4):
            alone = case_of(program, kernel, 1, [x[b : b + 1] for x in at_start])
            alone.run(int(done[b]), [x[: done[b], b : b + 1] for x in moving], whole=True)
            alone.flush(whole=True)
            cases.append(alone)
        first, *others = answered(driver, cases)
        for b, calls in enumerate(others):
            assert_same(program, first, b, calls, 0)

    def test_stops(self, driver, kernel, rng, name):
        """A call that is stopped anywhere leaves states as they are after whole steps.

        One thread, some that share panels, and some that share rows: every program meets each.
        """
        B, threads = in_turn(kernel, name, ((2, 1), (2, 3), (13, 3)))
        program, T = PROGRAMS[name](Made()).in_short_chunks().shared_by_threads(), 60
        moving, at_start = numbers(program, rng, T, B)
        cases = []
        for stop in sorted({1, 2, *map(int, rng.integers(3, 400, size=4))}):
            case = case_of(program, kernel, B, at_start, threads)
            case.run(T, moving, stop_at=stop)
            case.state()
            cases.append(case)
        stopped, again = driver.run(cases), []
        for answer in stopped:
            _, given, _ = answer.calls
            assert given.error == ("stopped" if given.steps_done < T else "ok")
            case = case_of(program, kernel, B, at_start)
            case.run(given.steps_done, [x[: given.steps_done] for x in moving])
            case.state()
            again.append(case)
        assert stopped[0].calls[1].steps_done < T
        for answer, (given, state) in zip(stopped, answered(driver, again), strict=True):
            np.testing.assert_array_equal(answer.calls[2], state)
            for b in range(B):
                assert_same(program, [answer.calls[1]], b, [given], b)

    def test_threads(self, driver, kernel, rng, name):
        """Threads that share rows or panels give the same bits as one."""
        program = PROGRAMS[name](Made()).in_short_chunks().shared_by_threads()
        B, T = in_turn(kernel, name, ((1, 40), (2, 40), (13, 9)))
        moving, at_start = numbers(program, rng, T, B)
        cases = []
        for threads in (1, 3):
            case = case_of(program, kernel, B, at_start, threads)
            case.run(T, moving, whole=True)
            case.run(T, moving, whole=True)
            case.flush(whole=True)
            case.state()
            cases.append(case)
        (*alone, state), (*shared, other) = answered(driver, cases)
        np.testing.assert_array_equal(state, other)
        for b in range(B):
            assert_same(program, shared, b, alone, b)


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
class TestNumbers:
    """What is not finite, and what is long."""

    def test_scores_of_minus_infinity(self, driver, kernel):
        """Such rows have no weight; before any other there is no number."""
        program = attends(Made(), False)
        scores, values = np.zeros((5, 1, 19)), np.arange(95.0).reshape(5, 1, 19)
        scores[[0, 1, 3]] = -np.inf
        case = case_of(program, kernel, 1, [])
        case.run(5, [scores, values])
        ((given,),) = answered(driver, [case])
        expected = np.stack([values[2, 0], values[2, 0], (values[2, 0] + values[4, 0]) / 2])
        assert np.isnan(given.rows[0][0][:2]).all()
        close(given.rows[0][0][2:], expected, kernel[1])

    @pytest.mark.parametrize("fold", ["max", "min", "sum", "mean", "last", "first"])
    def test_not_finite(self, driver, kernel, rng, fold):
        """NaN and infinities go on as NumPy has it."""
        program, x = folds(Made(), fold, False), rng.normal(size=(6, 1, 21))
        x[1, 0, 0], x[2, 0, 1], x[3, 0, 2], x[0, 0, 3] = np.nan, np.inf, -np.inf, np.nan
        x[1, 0, 4], x[4, 0, 4] = np.inf, -np.inf
        case = case_of(program, kernel, 1, [])
        case.run(6, [x])
        ((given,),) = answered(driver, [case])
        with np.errstate(invalid="ignore"):
            so_far = {
                "max": lambda: np.maximum.accumulate(x),
                "min": lambda: np.minimum.accumulate(x),
                "sum": lambda: np.cumsum(x, axis=0),
                "mean": lambda: np.cumsum(x, axis=0) / np.arange(1, 7)[:, None, None],
                "last": lambda: x,
                "first": lambda: np.broadcast_to(x[:1], x.shape),
            }[fold]()
        close(given.rows[0][0], so_far[:, 0], kernel[1])

    def test_long_sums(self, driver, kernel, rng):
        """A mean and a sum of many rows lose nothing of what their numbers have."""
        x = (rng.normal(size=(30_000, 1, 21)) + 1e3).astype(np.float32).astype(float)
        cases = []
        for fold in ("sum", "mean"):
            case = case_of(folds(Made(), fold, True), kernel, 1, [])
            case.run(len(x), [x], whole=True)
            case.flush(whole=True)
            cases.append(case)
        (*_, total), (*_, mean) = answered(driver, cases)
        precise = {"rtol": np.finfo(kernel[1]).eps}
        np.testing.assert_allclose(total.rows[0][0], x.sum(0), **precise)
        np.testing.assert_allclose(mean.rows[0][0], x.mean(0), **precise)
