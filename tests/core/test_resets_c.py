"""Rows that start anew within a call: what lies between two resets is what it is alone, to the bit,
and what the reference's stream gives from its start on.

The graphs are those of :mod:`random_graphs`, one a seed, which a failure names. Nothing else
changes a row: who else starts anew when, lengths, pieces, threads, what was prepared, a call that
stops.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from planned import random_planned
from programs import BUILDS, Case, Driver, driver_of
from random_graphs import random_inputs

from fastlstm import reference

SEEDS = range(120)

Rows = list[np.ndarray]  # of each output


class Subject:
    """A graph that streams, numbers for its steps, and where its rows start anew."""

    def __init__(self, seed: int) -> None:
        self.seed, self.planned = seed, random_planned(seed)
        self.program = self.planned.program
        rng = np.random.default_rng([seed, 80])
        # Of a team two rows are shared by panels, and nine are divided.
        self.B = B = int(rng.choice([2, 9]))
        timings = [row.timing for row in self.planned.facts.rows.values() if row.timing]
        self.T = T = 2 * max(timing.delay for timing in timings) + int(rng.integers(8, 30))
        self.inputs = random_inputs(rng, self.planned.graph, T, B)
        self.held = self.planned.flat(self.inputs, held=True)
        self.moving = self.planned.flat(self.inputs, held=False)
        share = rng.choice([0.02, 0.15, 0.5, 1.0])
        self.resets = (rng.random((T, B)) < share) * rng.integers(1, 256, (T, B)).astype(np.uint8)
        self.lengths = np.where(rng.random(B) < 0.5, T, rng.integers(0, T + 1, B))
        self.pieces = np.diff([0, *np.sort(rng.integers(0, T + 1, 2)), T]).tolist()
        self.stops_at = int(rng.integers(1, 200))
        tensors = self.planned.tensors
        self.tensors = [tensors[name].astype(np.float32) for name in self.program.tensor_names]

    def case(self, kernel: tuple[str, Any], b: int | None = None, threads: int = 1) -> Case:
        """Where sequences start: all rows, or one alone."""
        isa, dtype = kernel
        counts = [self.program.values[value].count for value in self.program.outputs]
        words, batch = self.program.to_bytes(), self.B if b is None else 1
        case = Case(words, self.tensors, counts, dtype, isa, batch, threads)
        self.begin(case, b)
        return case

    def begin(self, case: Case, b: int | None = None) -> None:
        case.begin(self.held if b is None else [x[b : b + 1] for x in self.held])

    def run(self, case: Case, first: int, n: int, whole: bool = False, **options: Any) -> None:
        """The steps [first, first + n) of all rows."""
        case.run(
            n,
            [x[first : first + n] for x in self.moving],
            whole=whole,
            lengths=np.clip(self.lengths - first, 0, n).tolist(),
            batch_first=bool(first % 2),
            resets=self.resets[first : first + n],
            held=self.held,
            **options,
        )

    def together(
        self, kernel: tuple[str, Any], pieces: list[int], threads: int = 1, whole: bool = False
    ) -> Case:
        case, first = self.case(kernel, threads=threads), 0
        for n in pieces:
            self.run(case, first, n, whole)
            first += n
        case.flush(whole=whole)
        case.state()
        return case

    def parts(self, b: int) -> list[tuple[int, int]]:
        """(first step, end) of what the resets of a row cut its steps into."""
        length = int(self.lengths[b])
        starts = [t for t in range(length) if t == 0 or self.resets[t, b]]
        return list(itertools.pairwise([*starts, length]))

    def alone(self, kernel: tuple[str, Any], b: int, whole: bool = False) -> Case:
        """A row in a batch of its own, which begins again with each part."""
        case = self.case(kernel, b)
        for first, end in self.parts(b):
            self.begin(case, b)
            case.run(end - first, [x[first:end, b : b + 1] for x in self.moving], whole=whole)
        case.flush(whole=whole)
        case.state()
        return case

    def truth(self, b: int) -> Rows:
        """The rows of a row by the reference, and those that are due at its end."""
        held = {one.name for one in self.planned.graph.inputs if one.held}
        inputs = {
            name: x[b : b + 1] if name in held else x[:, b : b + 1]
            for name, x in self.inputs.items()
        }
        made, given = [], {name: x for name, x in inputs.items() if name in held}

        def started() -> reference.Stream:
            return reference.Stream(self.planned.graph, self.planned.tensors, held=given)

        stream = started()
        for first, end in self.parts(b):
            stream = started()
            steps = {name: x[first:end] for name, x in inputs.items() if name not in held}
            made.append(stream.run(steps))
        made.append(stream.flush())
        joined = [np.concatenate(of) for of in zip(*(p.values() for p in made), strict=True)]
        return [
            self.of_one(y.reshape(len(y), self.program.values[value].count), value)
            for y, value in zip(joined, self.program.outputs, strict=True)
        ]

    def rows(self, calls: list[Any], b: int) -> Rows:
        """All rows of each output of a row of the batch."""
        made = []
        for o, value in enumerate(self.program.outputs):
            rows = [call.rows[o][b] for call in calls if not isinstance(call, str | np.ndarray)]
            made.append(self.of_one(np.concatenate(rows), value))
        return made

    def of_one(self, rows: np.ndarray, value: int) -> np.ndarray:
        """Rows of an output; of a held one, which each call gives again, the last."""
        return rows[-1:] if self.program.values[value].line < 0 else rows


@functools.cache
def subjects() -> list[Subject]:
    return [Subject(seed) for seed in SEEDS if not random_planned(seed).facts.looks_ahead]


def answered(driver: Driver, cases: list[Case]) -> list[list[Any]]:
    """What the calls of each case gave."""
    answers = driver.run(cases)
    for answer in answers:
        assert answer.error == "ok", answer.message
        assert all(getattr(call, "error", "ok") in ("ok", "stopped") for call in answer.calls)
    return [answer.calls for answer in answers]


def assert_same(one: Rows, other: Rows, what: str) -> None:
    for y, z in zip(one, other, strict=True):
        assert y.shape == z.shape, what
        assert y.tobytes() == z.tobytes(), what


@pytest.mark.parametrize("build", BUILDS)
def test_each_part_is_what_it_is_alone(build: str) -> None:
    """In one call, in pieces, on threads; and so is what a whole sequence folds."""
    driver, of_all = driver_of(build), subjects()
    assert len(of_all) > len(SEEDS) / 2
    threads = 3 if BUILDS[build].threads else 1
    for kernel in driver.kernels():
        for s in of_all if build == "plain" else of_all[::4]:
            cases = []
            for whole in (False, True):
                cases += [
                    s.together(kernel, [s.T], whole=whole),
                    s.together(kernel, s.pieces, threads, whole),
                    s.together(kernel, [s.T], threads, whole),
                    *(s.alone(kernel, b, whole) for b in range(s.B)),
                ]
            given = answered(driver, cases)
            for each in (given[: s.B + 3], given[s.B + 3 :]):
                for b, alone in enumerate(each[3:]):
                    for together in each[:3]:
                        what = f"seed {s.seed}, {kernel[0]}, row {b}"
                        assert_same(s.rows(together, b), s.rows(alone, 0), what)
                        assert_same([together[-1][b]], [alone[-1][0]], what)


def test_as_in_the_reference() -> None:
    driver = driver_of("plain")
    kernel = next(one for one in driver.kernels() if one[1] == np.float64)
    seen = 0
    for s in subjects()[::2]:
        (calls,) = answered(driver, [s.together(kernel, [s.T])])
        for b in range(s.B):
            for y, exact in zip(s.rows(calls, b), s.truth(b), strict=True):
                assert y.shape == exact.shape, s.seed
                bound = 1e-9 * np.abs(exact).max(initial=1)
                np.testing.assert_allclose(y, exact, rtol=0, atol=bound, err_msg=f"seed {s.seed}")
                seen += len(y)
    assert seen > 1000


def test_a_call_that_stops_leaves_what_its_steps_leave() -> None:
    """Also where it stops while rows start anew, which then have not."""
    driver, stopped = driver_of("plain"), 0
    for kernel in driver.kernels():
        for threads in (1, 3):
            cases = []
            for s in subjects():
                case = s.case(kernel, threads=threads)
                s.run(case, 0, s.T, stop_at=s.stops_at)
                case.state()
                cases.append(case)
            given, cases = answered(driver, cases), []
            for s, (_, call, _) in zip(subjects(), given, strict=True):
                assert call.error in ("ok", "stopped")
                stopped += call.error == "stopped"
                case = s.case(kernel)
                s.run(case, 0, call.steps_done)
                case.state()
                cases.append(case)
            for s, ours, theirs in zip(subjects(), given, answered(driver, cases), strict=True):
                what = f"seed {s.seed}, {kernel[0]}, {threads} threads"
                assert ours[-1].tobytes() == theirs[-1].tobytes(), what
                for b in range(s.B):
                    assert_same(s.rows(ours, b), s.rows(theirs, b), what)
    assert stopped > 100


def test_what_was_prepared_is_of_the_state_before() -> None:
    """No row reads it in a call with resets, those that go on neither."""
    driver = driver_of("plain")
    for kernel in driver.kernels():
        cases = []
        for s in subjects()[::3]:
            for prepares in (False, True):
                case = s.case(kernel)
                s.run(case, 0, 3)
                if prepares:
                    case.prepare([True] * s.B, spoils=True)
                s.run(case, 3, 1)
                case.state()
                cases.append(case)
        given = answered(driver, cases)
        for plain, prepared in zip(given[::2], given[1::2], strict=True):
            assert plain[-1].tobytes() == prepared[-1].tobytes()


def test_nothing_is_read_or_written_elsewhere() -> None:
    """A sanitizer watches, on threads too."""
    for build in ("address", "address in 32 bits"):
        driver = driver_of(build)
        cases = [
            s.together(kernel, s.pieces, threads)
            for s in subjects()[::5]
            for kernel in driver.kernels()
            for threads in (1, 2, 3)
        ]
        answered(driver, cases)
