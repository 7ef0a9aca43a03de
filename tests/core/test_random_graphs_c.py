"""Random graphs run by the core: the rows are those of the reference, and no way changes a bit.

The graphs are those of :mod:`random_graphs`, one a seed, which a failure names. Each runs on every
kernel there is: whole, step by step, in random pieces, in rows of unlike lengths, on threads, from
a state that was saved.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from planned import Planned, random_planned
from programs import BUILDS, Case, Driver, driver_of
from quantised import in_precision
from random_graphs import random_inputs

from fastlstm import reference
from fastlstm.reduced import Reduced, kept

SEEDS = range(200)
SAME_BITS = ("avx512", "avx2", "neon", "fused")
STORED = range(40)  # seeds of graphs whose matrices take fewer bytes
B = 2

Rows = list[list[np.ndarray]]


class Sequence:
    """A graph, and numbers for some more steps than its outputs are late."""

    def __init__(self, seed: int, precision: str = "") -> None:
        self.seed, self.planned = seed, random_planned(seed)
        if precision:
            stored = in_precision(self.planned.graph, self.planned.tensors, precision)
            self.planned = Planned(self.planned.graph, stored)
        self.graph, self.program = self.planned.graph, self.planned.program
        timings = (row.timing for row in self.planned.facts.rows.values())
        self.T = max(timing.delay for timing in timings if timing) + 6
        rng = np.random.default_rng([seed, 1])
        self.inputs = random_inputs(rng, self.graph, self.T, B)
        self.held = self.planned.flat(self.inputs, held=True)
        self.moving = self.planned.flat(self.inputs, held=False)
        cuts = np.sort(rng.integers(0, self.T + 1, 3))
        self.pieces = [int(n) for n in np.diff([0, *cuts, self.T])]
        self.streams = not self.planned.facts.looks_ahead
        tensors = [self.planned.tensors[name] for name in self.program.tensor_names]
        self.tensors = [
            kept(tensor) if isinstance(tensor, Reduced) else tensor.astype(np.float32)
            for tensor in tensors
        ]

    @functools.cached_property
    def truth(self) -> list[np.ndarray]:
        """Of each output (T', B, count), of the whole sequence."""
        given = reference.forward(self.graph, self.planned.tensors, self.inputs)
        return [y.reshape(*y.shape[:2], -1) for y in given.values()]

    @functools.cached_property
    def streamed(self) -> list[np.ndarray]:
        """The same of a stream, whose folds give a row after each step."""
        held = {one.name: self.inputs[one.name] for one in self.graph.inputs if one.held}
        moving = {name: x for name, x in self.inputs.items() if name not in held}
        stream = reference.Stream(self.graph, self.planned.tensors, B, held=held)
        parts = (stream.run(moving), stream.flush())
        joined = [np.concatenate(of) for of in zip(*(p.values() for p in parts), strict=True)]
        return [y.reshape(*y.shape[:2], -1) for y in joined]

    def begun(self, kernel: tuple[str, Any], rows: slice = slice(0, B), threads: int = 1) -> Case:
        isa, dtype = kernel
        counts = [self.program.values[value].count for value in self.program.outputs]
        batch = rows.stop - rows.start
        words = self.program.to_bytes()
        case = Case(words, self.tensors, counts, dtype, isa, batch, threads)
        case.begin([x[rows] for x in self.held])
        return case

    def whole(self, kernel: tuple[str, Any], threads: int = 1) -> Case:
        case = self.begun(kernel, threads=threads)
        case.run(self.T, self.moving, whole=True)
        case.flush(whole=True)
        return case

    def run(self, case: Case, pieces: list[int], first: int = 0) -> Case:
        """The steps from the first on in pieces, and what is due then."""
        for n in pieces:
            case.run(n, [x[first : first + n] for x in self.moving], batch_first=bool(first % 2))
            first += n
        case.flush()
        return case

    def rows(self, calls: list[Any], b: int = 0) -> list[np.ndarray]:
        """All rows of each output of a row of the batch; of a held one, which is repeated, one."""
        made = []
        for o, value in enumerate(self.program.outputs):
            rows = np.concatenate([call.rows[o][b] for call in calls])
            if self.program.values[value].line < 0:
                assert (rows == rows[:1]).all(), self.seed
                rows = rows[:1]
            made.append(rows)
        return made

    def check(self, calls: list[Any], truth: list[np.ndarray], what: str) -> None:
        """The rows are those of the reference, but for the rounding of the kernel's type."""
        for b in range(B):
            for y, exact in zip(self.rows(calls, b), truth, strict=True):
                expected = exact[: len(y), b] if len(exact) == 1 or len(y) == 1 else exact[:, b]
                assert y.shape == expected.shape, f"seed {self.seed}, {what}"
                size = np.abs(expected).max(initial=1)
                bound = 1e-9 if y.dtype == np.float64 else self.bound
                error = np.abs(y - expected).max(initial=0) / size
                assert error <= bound, f"seed {self.seed}, {what}: {error}"

    @functools.cached_property
    def bound(self) -> float:
        """What rounding to float32 may change: some graphs make more of it than others."""
        given = reference.forward(
            self.graph, self.planned.tensors, self.inputs, dtype=np.float32
        ).values()
        drift = 0.0
        for y, exact in zip(given, self.truth, strict=True):
            y = y.reshape(exact.shape)
            drift = max(drift, np.abs(y - exact).max(initial=0) / np.abs(exact).max(initial=1))
        return max(3e-5, 30 * drift)


@functools.cache
def sequence(seed: int) -> Sequence:
    return Sequence(seed)


def answered(driver: Driver, cases: list[Case]) -> list[list[Any]]:
    """What the calls of each case gave, but for its beginning."""
    answers = driver.run(cases)
    for answer in answers:
        assert answer.error == "ok", answer.message
        assert all(getattr(call, "error", "ok") == "ok" for call in answer.calls)
    return [answer.calls[1:] for answer in answers]


def assert_same_bits(one: Any, other: Any, what: str) -> None:
    for y, z in zip(one, other, strict=True):
        assert y.shape == z.shape, what
        assert y.tobytes() == z.tobytes(), what


@pytest.mark.parametrize("build", [name for name in BUILDS if name != "address"])
def test_whole_sequences_are_those_of_the_reference(build: str) -> None:
    """And the same bits by AVX2, AVX-512 and, of another build, NEON; threads change none."""
    driver, sequences = driver_of(build), [sequence(seed) for seed in SEEDS]
    for kernel in driver.kernels():
        given = answered(driver, [one.whole(kernel) for one in sequences])
        for one, calls in zip(sequences, given, strict=True):
            one.check(calls, one.truth, kernel[0])
            if kernel[0] in SAME_BITS:
                for b in range(B):
                    assert_same_bits(one.rows(calls, b), known(one, calls)[b], f"seed {one.seed}")


def known(one: Sequence, calls: list[Any]) -> Rows:
    """The rows of the first kernel for vectors that ran a graph."""
    return BITS.setdefault(one.seed, [one.rows(calls, b) for b in range(B)])


BITS: dict[int, Rows] = {}


@pytest.mark.parametrize("build", [name for name in BUILDS if name != "address in 32 bits"])
def test_matrices_in_fewer_bytes(build: str) -> None:
    """The same bits by every kernel for vectors, and close to what the reference makes of them: an
    integer that another rounding makes another one moves a number by that."""
    driver = driver_of(build)
    sequences = [stored_sequence(seed) for seed in STORED]
    for kernel in driver.kernels(of_int8=True):
        if kernel[1] == np.float64:
            continue
        given = answered(driver, [one.whole(kernel) for one in sequences])
        for one, calls in zip(sequences, given, strict=True):
            rows = [one.rows(calls, b) for b in range(B)]
            if kernel[0].startswith(SAME_BITS) or kernel[0] == "avxvnni":
                for b in range(B):
                    what = f"seed {one.seed}, {kernel[0]}"
                    assert_same_bits(rows[b], STORED_BITS.setdefault(one.seed, rows)[b], what)
            for b in range(B):
                for y, exact in zip(rows[b], one.truth, strict=True):
                    expected = exact[: len(y), b] if len(exact) == 1 or len(y) == 1 else exact[:, b]
                    error = np.abs(y - expected).max(initial=0) / np.abs(exact).max(initial=1)
                    assert error < 0.05, f"seed {one.seed}, {kernel[0]}: {error}"


@functools.cache
def stored_sequence(seed: int) -> Sequence:
    return Sequence(seed, ("int8", "int8", "float16", "bfloat16")[seed % 4])


STORED_BITS: dict[int, Rows] = {}


@pytest.mark.parametrize("build", ["plain", "windows"])
def test_every_way_gives_the_same_bits(build: str) -> None:
    """Step by step, in pieces on threads, and from a saved state: what one call of a stream gives,
    which is what the reference's stream gives."""
    driver = driver_of(build)
    sequences = [one for one in map(sequence, SEEDS) if one.streams]
    assert len(sequences) > len(SEEDS) / 2
    for kernel in driver.kernels():
        cases, cut = [], {one.seed: one.pieces[0] + one.pieces[1] for one in sequences}
        for one in sequences:
            saved = one.begun(kernel)
            saved.run(cut[one.seed], [x[: cut[one.seed]] for x in one.moving])
            saved.state()
            cases += [
                one.run(one.begun(kernel), [one.T]),
                one.run(one.begun(kernel), [1] * one.T),
                one.run(one.begun(kernel, threads=2), one.pieces),
                saved,
            ]
        given, cases = answered(driver, cases), []
        for number, one in enumerate(sequences):
            case = one.begun(kernel)
            case.set_state(given[4 * number + 3][-1])
            cases.append(one.run(case, one.pieces[2:], cut[one.seed]))
        restored = answered(driver, cases)
        for number, one in enumerate(sequences):
            at_once, *others, (before, _) = given[4 * number : 4 * number + 4]
            one.check(at_once, one.streamed, kernel[0])
            others.append([before, *restored[number][1:]])
            for b in range(B):
                for other in others:
                    what = f"seed {one.seed}, {kernel[0]}"
                    assert_same_bits(one.rows(other, b), one.rows(at_once, b), what)


def test_rows_of_unlike_lengths_are_what_they_are_alone() -> None:
    """Each ends where it does, whatever lies behind; threads change nothing."""
    driver, sequences = driver_of("plain"), [sequence(seed) for seed in SEEDS]
    for kernel in driver.kernels():
        cases = []
        for one in sequences:
            together = one.begun(kernel, threads=2)
            lengths = [one.T, one.T - 3]
            together.run(one.T, one.moving, lengths=lengths, whole=True)
            together.flush(whole=True)
            cases.append(together)
            for b, n in enumerate(lengths):
                alone = one.begun(kernel, slice(b, b + 1))
                alone.run(n, [x[:n, b : b + 1] for x in one.moving], whole=True)
                alone.flush(whole=True)
                cases.append(alone)
        given = answered(driver, cases)
        for number, one in enumerate(sequences):
            together, *each = given[3 * number : 3 * number + 3]
            for b, alone in enumerate(each):
                what = f"seed {one.seed}, {kernel[0]}, row {b}"
                assert_same_bits(one.rows(together, b), one.rows(alone), what)


def test_nothing_is_read_or_written_elsewhere() -> None:
    """A sanitizer watches fewer of them."""
    driver, cases = driver_of("address"), []
    for one in map(sequence, SEEDS[::4]):
        for kernel in driver.kernels():
            cases.append(one.whole(kernel, threads=2))
            if one.streams:
                cases.append(one.run(one.begun(kernel), one.pieces))
    answered(driver, cases)
