"""Operations over time, run by the core: programs made by hand against the same in NumPy.

Each is run whole, as a stream in random pieces, in rows of unlike lengths, on every kernel there
is; the pieces, the company of a batch and the threads may change no bit.
"""

from __future__ import annotations

import c_builds
import numpy as np
import pytest
from program_in_numpy import NumPyProgram
from programs import ADDRESS, SOURCES, Case, Driver, Given

from fastlstm.plan import operations as op
from fastlstm.plan.program import Instruction, Program
from fastlstm.spec import Function

NONE = op.NONE
KERNELS = [
    ("avx512", np.float32),
    ("avx2", np.float32),
    ("neon", np.float32),
    ("scalar", np.float32),
    ("scalar", np.float64),
]
# Every place that may stop is tried, every call is shared by threads that can be.
EAGER = ("-DFL_ASK_WORK=1", "-DFL_LEAST_NS=1e-3", "-DFL_LONG_NS=0")
WIDE = 4096  # numbers of a buffer of which a chunk has but 24 rows


class Made(Program):
    """A program put together by hand: what is read is given, what is made is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self._claims: list[tuple[int, int]] = []

    def given(self, count: int, *, line: int = 0) -> int:
        value = self.value(count, line, "input", len(self.inputs))
        self.inputs.append(value)
        return value

    def kept(self, count: int = 1) -> int:
        """Elements of the state, of which the first is returned."""
        self.state_size += count
        return self.state_size - count

    def line(self) -> int:
        self.lines += 1
        return self.lines - 1

    def buffer(self, count: int, line: int = 0) -> int:
        self.buffers += 1
        return self.value(count, line, "buffer", self.buffers - 1)

    def result(self, *values: int) -> Made:
        self.outputs += values
        return self

    def mapped(self, name: str, *reads: int, alpha: float = 0.0, beta: float = 0.0) -> int:
        """A function of numbers, number by number."""
        count, line = self.values[reads[0]].count, self.values[reads[0]].line
        y = self.buffer(count, line)
        code = self.code([Instruction(Function(name, alpha, beta), *range(len(reads)))])
        strides = self.list_of([1] * len(reads))
        self.add(op.Map(self.list_of(reads), y, self.list_of([count]), strides, code))
        return y

    def window(self, x: int, size: int, **fields: float) -> int:
        """A window, on a line of its own unless it keeps that of x."""
        f = {"stride": 1, "dilation": 1, "before": 0, "ahead": 0, "behind": 0, "fill": 0.0}
        f |= fields
        count, line = self.values[x].count, self.values[x].line
        kept = int(f["dilation"] * (size - 1) + f["ahead"])
        keeps = f["stride"] == 1 and f["before"] == kept and f["behind"] == 0
        rows = NONE if keeps else self.kept()
        ring, position = NONE, NONE
        if kept:
            ring, position = self.kept(kept * count), self.kept() if kept > 1 else NONE
            if keeps and f["fill"]:
                self.start(ring, self.vector([f["fill"]] * (kept * count)))
        y = self.buffer(size * count, line if keeps else self.line())
        names = ("stride", "dilation", "before", "ahead", "behind", "fill")
        self.add(op.Window(x, y, size, *(f[name] for name in names), ring, position, rows))
        return y

    def delay(self, x: int, steps: int) -> int:
        count, line = self.values[x].count, self.values[x].line
        ring, position = self.ring(steps, count)
        y = self.buffer(count, line)
        self.add(op.Delay(x, y, steps, ring, position))
        return y

    def ring(self, steps: int, count: int) -> tuple[int, int]:
        """One that begins with numbers that are not 0."""
        ring = self.kept(steps * count)
        self.start(ring, self.vector(np.linspace(-1.0, 2.0, steps * count)))
        return ring, self.kept() if steps > 1 else NONE

    def spread(self, x: int, times: int, stride: int, count: int) -> int:
        y = self.buffer(count, self.line())
        self.add(op.Spread(x, y, times, stride))
        return y

    def fold(self, x: int, fold: str, *, folded: bool, rest: bool = True) -> int:
        count, line = self.values[x].count, self.values[x].line
        total = self.kept(count)
        below = self.kept(count) if rest and fold in ("sum", "mean") else NONE
        y = self.buffer(count, self.line() if folded else line)
        self.add(op.Fold(x, y, fold, folded, total, below, self.kept(2)))
        return y

    def attention(self, scores: int, values: int, *, folded: bool, of=(None, None)) -> int:
        S, line = self.values[scores].count, self.values[scores].line
        V = self.values[values].count if of[0] is None else len(of[0])
        largest = self.kept(S)
        self.start(largest, self.vector([-np.inf] * S))
        lists = [NONE if at is None else self.list_of(at) for at in of]
        y = self.buffer(V, self.line() if folded else line)
        fields = (largest, self.kept(S), self.kept(V), self.kept(2))
        self.add(op.Attention(scores, values, y, folded, *lists, *fields))
        return y

    def meet(self, capacities: dict[int, int]) -> list[int]:
        """Values, and how many rows of each may wait."""
        line = self.line()
        ys = [self.buffer(self.values[x].count, line) for x in capacities]
        queues = [self.kept(c * self.values[x].count) if c else NONE for x, c in capacities.items()]
        heads = self.kept(2 * len(ys)) if any(capacities.values()) else NONE
        lists = map(self.list_of, (list(capacities), ys, capacities.values(), queues))
        self.add(op.Meet(*lists, heads))
        return ys

    def in_short_chunks(self) -> Made:
        """With a buffer of which little fits into a chunk."""
        y = self.buffer(WIDE)
        runs = self.list_of([0, 0, WIDE])
        self.operations.insert(self.held, op.Move(self.list_of(self.inputs[-1:]), y, runs, 0.0))
        return self

    def shared_by_threads(self) -> Made:
        """With a product that threads share, panel by panel or row by row."""
        x = self.inputs[-1]
        count = self.values[x].count
        y = self.buffer(800)
        tensor = self.vector(np.ones(800 * count))
        piece = op.Piece(0, 800, 0, count, NONE, self.vectors[tensor].first, count, 1)
        matrix = self.list_of([self.matrix(800, count, [piece])])
        self.add(
            op.Product(self.list_of([x]), y, matrix, NONE, NONE, NONE, op.IDENTITY, 1, count, NONE)
        )
        return self


def causal(p: Made, size: int, **fields: float) -> Made:
    dilation = fields.get("dilation", 1)
    return p.result(p.window(p.given(3), size, before=dilation * (size - 1), **fields))


def windows(p: Made, size: int, **fields: float) -> Made:
    return p.result(p.window(p.given(3), size, **fields))


def delays(p: Made, steps: int) -> Made:
    return p.result(p.delay(p.given(5), steps))


def spreads(p: Made, times: int, stride: int, count: int) -> Made:
    return p.result(p.spread(p.given(9), times, stride, count))


def folds(p: Made, fold: str, folded: bool, rest: bool = True) -> Made:
    return p.result(p.fold(p.given(21), fold, folded=folded, rest=rest))


def attends(p: Made, folded: bool) -> Made:
    return p.result(p.attention(p.given(19), p.given(19), folded=folded))


def attends_heads(p: Made, folded: bool) -> Made:
    """Two scores for five numbers each, of values in another order."""
    of = ([0] * 5 + [1] * 5, [9, 8, 7, 6, 5, 0, 1, 2, 3, 4])
    return p.result(p.attention(p.given(2), p.given(10), folded=folded, of=of))


def meets(p: Made) -> Made:
    """A path that looks ahead meets one that does not: rows of that wait."""
    x = p.given(2)
    y = p.window(x, 3, before=1, ahead=4, behind=5)
    z = p.window(x, 4, before=3)
    return p.result(*p.meet({y: 0, x: 5, z: 5}))


def meets_one(p: Made) -> Made:
    x = p.given(4)
    y = p.window(x, 2, before=0, behind=0)
    return p.result(*p.meet({x: 1, y: 0}))


def chain(p: Made) -> Made:
    """Fewer rows, more, fewer again, and one at the end."""
    x = p.window(p.given(2), 4, stride=3, before=1, ahead=2, behind=4)
    x = p.spread(x, 4, 2, 2)
    x = p.window(x, 2, stride=2, before=0, behind=1)
    return p.result(x, p.fold(x, "mean", folded=True))


def looped(p: Made, steps: int) -> Made:
    """y[t] = tanh(x[t] + y[t - steps]), a mean of the last three y and one of all of them."""
    x = p.given(6)
    ring, position = p.ring(steps, 6)
    before = p.buffer(6)
    loop = len(p.operations)
    p.add(op.Recall(before, steps, ring, position))
    y = p.mapped("tanh", p.mapped("add", x, before))
    p.add(op.Remember(y, steps, ring, position))
    three, mean = p.window(y, 3, before=2), p.fold(y, "mean", folded=False)
    p.operations.insert(loop, op.Loop(len(p.operations) - loop))
    return p.result(y, three, mean)


def held(p: Made) -> Made:
    """A knob turns into a held value and the first row of a delay; another is read all the time."""
    knob, x = p.given(3, line=-1), p.given(3)
    p.buffers += 1
    doubled = p.value(3, -1, "buffer", 0)
    code = p.code([Instruction(Function("affine", 2.0, 1.0), 0)])
    one, three = p.list_of([1]), p.list_of([3])
    p.add(op.Map(p.list_of([knob]), doubled, three, one, code))
    kept = p.value(3, -1, "state", p.kept(3))
    p.add(op.Map(p.list_of([doubled]), kept, three, one, code))
    ring = p.kept(3)
    p.add(op.Start(doubled, ring))
    p.held = 3
    y = p.buffer(3)
    p.add(op.Delay(x, y, 1, ring, NONE))
    z = p.buffer(3)
    add = p.code([Instruction(Function("add"), 0, 1)])
    p.add(op.Map(p.list_of([y, kept]), z, three, p.list_of([1, 1]), add))
    return p.result(z, kept)


PROGRAMS = {
    "causal": lambda p: causal(p, 5),
    "causal_dilated": lambda p: causal(p, 3, dilation=4),
    "causal_filled": lambda p: causal(p, 2, fill=-np.inf),
    "one": lambda p: causal(p, 1),
    "valid": lambda p: windows(p, 4),
    "valid_dilated": lambda p: windows(p, 3, dilation=2, stride=2),
    "strided": lambda p: windows(p, 3, stride=5, before=2),
    "padded_both": lambda p: windows(p, 5, before=2, ahead=2, behind=2, fill=1.5),
    "ahead_only": lambda p: windows(p, 1, ahead=3, before=3, behind=3),
    "padded_far": lambda p: windows(p, 3, before=7, behind=6, stride=2, fill=-np.inf),
    "begins_later": lambda p: windows(p, 1, before=-4, stride=3),
    "ends_early": lambda p: windows(p, 1, before=-1, ahead=2),
    "ends_earlier": lambda p: windows(p, 2, stride=2, ahead=3, behind=1),
    "rate_over_a_row": lambda p: windows(p, 2, stride=7, dilation=3, before=1, behind=9),
    "delay": lambda p: delays(p, 1),
    "delay_long": lambda p: delays(p, 30),
    "spread": lambda p: spreads(p, 3, 3, 3),
    "spread_overlapping": lambda p: spreads(p, 4, 2, 3),
    "repeat": lambda p: spreads(p, 5, 0, 9),
    **{
        f"{fold}{'_folded' * folded}": lambda p, fold=fold, folded=folded: folds(p, fold, folded)
        for fold in ("first", "last", "sum", "mean", "max", "min")
        for folded in (False, True)
    },
    "sum_plain": lambda p: folds(p, "sum", False, rest=False),
    "attention": lambda p: attends(p, False),
    "attention_folded": lambda p: attends(p, True),
    "attention_heads": lambda p: attends_heads(p, False),
    "attention_heads_folded": lambda p: attends_heads(p, True),
    "meet": meets,
    "meet_one": meets_one,
    "chain": chain,
    "loop": lambda p: looped(p, 1),
    "loop_long": lambda p: looped(p, 4),
    "held": held,
}


def numbers(program: Program, rng, T: int, B: int):
    """Inputs (T, B, count), and held ones (B, count)."""
    values = [program.values[value] for value in program.inputs]
    moving = [rng.normal(size=(T, B, v.count)) for v in values if v.line == 0]
    return moving, [rng.normal(size=(B, v.count)) for v in values if v.line < 0]


def case_of(program: Program, kernel, B: int, held, threads: int = 1) -> Case:
    isa, dtype = kernel
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


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> c_builds.Programs:
    builds = {"optimized": c_builds.OPTIMIZED, "address": ADDRESS}
    return c_builds.Programs(builds, SOURCES, tmp_path_factory.mktemp("time"), EAGER)


@pytest.fixture(scope="module", params=["optimized", "address"])
def driver(request, programs, tmp_path_factory) -> Driver:
    return Driver(programs.command(request.param), tmp_path_factory.mktemp("calls"))


@pytest.fixture(params=KERNELS, ids=lambda kernel: f"{kernel[0]}{np.dtype(kernel[1]).itemsize * 8}")
def kernel(request, driver):
    if request.param not in driver.kernels():
        pytest.skip(f"this processor, or this build, has no {request.param[0]}")
    return request.param


def close(actual, expected, dtype) -> None:
    precise = (
        {"rtol": 1e-12, "atol": 1e-13} if dtype == np.float64 else {"rtol": 3e-5, "atol": 3e-6}
    )
    np.testing.assert_allclose(actual, expected, **precise)


@pytest.mark.parametrize("name", PROGRAMS)
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
        """A call that is stopped anywhere leaves states as they are after whole steps."""
        program, T, B = PROGRAMS[name](Made()).in_short_chunks(), 60, 2
        moving, at_start = numbers(program, rng, T, B)
        stops = sorted({1, 2, *map(int, rng.integers(3, 400, size=6))})
        cases = []
        for stop in stops:
            case = case_of(program, kernel, B, at_start)
            case.run(T, moving, stop_at=stop)
            case.state()
            cases.append(case)
        stopped = driver.run(cases)
        again = []
        for answer in stopped:
            _, given, _ = answer.calls
            assert given.error == ("stopped" if given.steps_done < T else "ok")
            case = case_of(program, kernel, B, at_start)
            case.run(given.steps_done, [x[: given.steps_done] for x in moving])
            case.state()
            again.append(case)
        for answer, (given, state) in zip(stopped, answered(driver, again), strict=True):
            np.testing.assert_array_equal(answer.calls[2], state)
            for b in range(B):
                assert_same(program, [answer.calls[1]], b, [given], b)

    def test_threads(self, driver, kernel, rng, name):
        """Threads that share rows or panels give the same bits as one."""
        program = PROGRAMS[name](Made()).in_short_chunks().shared_by_threads()
        for B, T in ((1, 50), (2, 50), (13, 9)):
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
