"""Model files that Python wrote, opened and streamed in C: the library's numbers, bit for bit.

The graphs are those of :mod:`random_graphs`, one a seed, which a failure names; the numbers that
they are held to are those of :meth:`fastlstm.Model.stream` and of a call of the model.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from models import STREAMING, build, every_kind, input_for
from programs import BUILDS, Driver, driver_of
from random_graphs import random_graph, random_inputs
from streamed import Answer, Streamed, opened

from fastlstm import Model, _engine, spec
from fastlstm.exporting.model_file import model_file
from fastlstm.format import ModelFile
from fastlstm.plan.lowering import plan

SEEDS = range(60)
BATCHES = (1, 3)

Rows = list[np.ndarray]


class Sequence:
    """A random graph as a model file, and inputs for some more steps than its outputs are late."""

    def __init__(self, seed: int, dtype: Any = np.float32) -> None:
        self.seed, self.dtype, self.batch = seed, dtype, BATCHES[seed % 2]
        self.graph, exact = random_graph(np.random.default_rng([seed, 20]))
        self.facts = spec.check(self.graph)
        self.tensors = {name: array.astype(dtype) for name, array in exact.items()}
        self.program = plan(self.graph, self.tensors, self.facts)
        self.file = model_file(self.program, self.tensors)
        timings = (row.timing for row in self.facts.rows.values())
        self.T = max(timing.delay for timing in timings if timing) + 9
        rng = np.random.default_rng([seed, 21])
        drawn = random_inputs(rng, self.graph, self.T, self.batch)
        given = {n: x if x.dtype == np.int64 else x.astype(dtype) for n, x in drawn.items()}
        self.held = {one.name: given.pop(one.name) for one in self.graph.inputs if one.held}
        self.moving = given
        self.streams = not self.facts.looks_ahead
        self.pieces = [int(n) for n in rng.multinomial(self.T, [0.25] * 4) if n]
        self.counts = [self.facts.rows[value].size for value in self.graph.outputs.values()]

    def model(self, isa: str) -> Model:
        return Model(ModelFile(self.graph, self.tensors), isa=isa, reproducible=True)

    def flat(self, inputs: dict[str, np.ndarray], *, held: bool) -> Rows:
        return [
            x.reshape(*x.shape[: x.ndim - len(one.shape)], math.prod(one.shape))
            for one in self.graph.inputs
            if one.held == held
            for x in (inputs[one.name],)
        ]

    def rows(self, y: Any) -> Rows:
        """What the library gives, of each output (B, rows, count)."""
        names = list(self.graph.outputs)
        named = {names[0]: y} if len(names) == 1 else y
        return [
            np.ascontiguousarray(np.moveaxis(np.asarray(named[n]).reshape(-1, self.batch, c), 0, 1))
            for n, c in zip(names, self.counts, strict=True)
        ]

    def streamed(self, isa: str) -> list[Rows]:
        """The rows of each piece, and of the end, by the library's stream."""
        stream = self.model(isa).stream(self.batch, held=self.held or None)
        made, first = [], 0
        for n in self.pieces:
            piece = {name: x[first : first + n] for name, x in self.moving.items()}
            made.append(self.rows(stream.run(piece)))
            first += n
        return [*made, self.rows(stream.flush())]

    def opened(self, isa: str, T: int, **others: Any) -> Streamed:
        made = Streamed(self.file, self.counts, self.dtype, isa, T=T, batch=self.batch, **others)
        made.reset(self.flat(self.held, held=True))
        return made

    def cut(self, first: int, n: int) -> Rows:
        piece = {name: x[first : first + n] for name, x in self.moving.items()}
        return self.flat(piece, held=False)

    def run(self, made: Streamed, truth: list[Rows], *, moves: bool = False) -> Streamed:
        """All pieces, and the end; `moves`: each by another stream than the one before."""
        first, B_first = 0, bool(self.seed % 3)
        for n, rows in zip(self.pieces, truth[:-1], strict=True):
            made.run(n, self.cut(first, n), [y.shape[1] for y in rows], batch_first=B_first)
            first += n
            if moves:
                made.move(1 + first % 4, self.flat(self.held, held=True))
        made.flush([y.shape[1] for y in truth[-1]])
        return made


@functools.cache
def sequence(seed: int, dtype: Any = np.float32) -> Sequence:
    return Sequence(seed, dtype)


@functools.cache
def truth(seed: int, isa: str, dtype: Any = np.float32) -> list[Rows]:
    return sequence(seed, dtype).streamed(isa)


def known_isa(isa: str) -> str:
    """What the library here runs for the same bits as `isa` of a build, or a skip."""
    here = [name for name, _ in _engine.kernels(4)]
    if isa not in here and isa == "neon":
        isa = next((name for name in ("avx2", "avx512") if name in here), isa)
    if isa not in here:
        pytest.skip(f"the library has no {isa} here")
    return isa


def answered(driver: Driver, cases: list[Streamed]) -> list[Answer]:
    answers = opened(driver, cases)
    for answer in answers:
        assert answer.error == "ok", answer.message
    return answers


def same_bits(got: list[Any], expected: list[Rows], what: str) -> None:
    for number, (some, exact) in enumerate(zip(got, expected, strict=True)):
        for name, (y, z) in enumerate(zip(some, exact, strict=True)):
            where = f"{what}, piece {number}, output {name}"
            assert y.shape == z.shape, where
            assert y.tobytes() == z.tobytes(), where


@pytest.mark.parametrize("build", [name for name in BUILDS if name != "address"])
def test_streams_give_the_numbers_of_the_library(build: str) -> None:
    """In pieces that a stream cuts again; after a sequence that was left behind; and by another
    stream after each piece."""
    driver = driver_of(build)
    for isa, dtype in driver.kernels():
        if dtype == np.float64:
            continue
        here = known_isa(isa)
        some = [one for one in map(sequence, SEEDS) if one.streams]
        assert len(some) > len(SEEDS) / 2
        cases = []
        for one in some:
            expected = truth(one.seed, here)
            again = one.opened(isa, T=one.T + 5, threads=1 + (one.seed % 4 == 1))
            first = one.pieces[0]
            again.run(first, one.cut(one.T - first, first), [y.shape[1] for y in expected[0]])
            again.reset(one.flat(one.held, held=True))
            cases += [
                one.run(one.opened(isa, T=1 + one.seed % 3), expected),
                one.run(again, expected),
                one.run(one.opened(isa, T=3, keeps_tensors=True), expected, moves=True),
            ]
        answers = answered(driver, cases)
        for number, one in enumerate(some):
            for way, answer in enumerate(answers[3 * number : 3 * number + 3]):
                assert all(call == "ok" for call in answer.calls if isinstance(call, str))
                rows = [call for call in answer.calls if not isinstance(call, str)]
                if way == 1:
                    del rows[0]
                same_bits(rows, truth(one.seed, here), f"seed {one.seed}, {isa}, way {way}")


def test_streams_of_float64() -> None:
    driver, seeds = driver_of("plain"), SEEDS[:30]
    # A graph without tensors is of float32.
    some = [one for one in (sequence(s, np.float64) for s in seeds) if one.streams and one.tensors]
    isa = next(name for name, dtype in driver.kernels() if dtype == np.float64)
    cases = [
        one.run(one.opened(isa, T=2, keeps_tensors=True), truth(one.seed, isa, np.float64))
        for one in some
    ]
    for one, answer in zip(some, answered(driver, cases), strict=True):
        same_bits(answer.calls[1:], truth(one.seed, isa, np.float64), f"seed {one.seed}")


def test_names_are_those_of_the_graph() -> None:
    sequences = [sequence(seed) for seed in SEEDS]
    answers = answered(
        driver_of("plain"),
        [Streamed(one.file, one.counts, T=one.T, batch=one.batch) for one in sequences],
    )
    for one, answer in zip(sequences, answers, strict=True):
        inputs, outputs, parts = answer.names
        assert inputs == [given.name for given in one.graph.inputs]
        assert outputs == list(one.graph.outputs)
        assert parts == list(one.program.part_names)


@pytest.mark.parametrize("kind", STREAMING)
def test_step_is_a_run_of_one(kind: str, rng: np.random.Generator) -> None:
    """Of models with one input, and one output with a row for each step; others refuse it."""
    driver, B, T = driver_of("plain"), 3, 12
    cases, expected = [], []
    for isa, dtype in driver.kernels():
        library = build(every_kind(16)[kind], rng, dtype, isa=known_isa(isa), reproducible=True)
        tensors = dict(library.tensors)
        file = model_file(plan(library.graph, tensors, library.facts), tensors)
        x = input_for(library, rng, T, B)
        expected.append(np.moveaxis(library.stream(B).run(x), 0, 1))
        case = Streamed(file, [library.output_size], dtype, isa, batch=B)
        for t in range(T):
            case.step([x[t : t + 1].reshape(1, B, -1)])
        cases.append(case)
    (timing,) = (library.facts.rows[value].timing for value in library.graph.outputs.values())
    steps = timing is not None and timing.rate == (1, 1) and not timing.delay
    for answer, y in zip(answered(driver, cases), expected, strict=True):
        if steps:
            got = np.concatenate([rows[0] for rows in answer.calls], axis=1)
            assert got.tobytes() == np.ascontiguousarray(y).tobytes()
        else:
            assert set(map(str, answer.calls)) == {"argument"}


def test_whole_sequences_are_a_call_of_the_model() -> None:
    """What is folded has one row, from the end; what looks ahead takes no more steps than the
    stream's."""
    driver = driver_of("plain")
    sequences, cases, expected = [sequence(seed) for seed in SEEDS], [], []
    isa = driver.kernels()[0][0]
    for one in sequences:
        y, _ = one.model(known_isa(isa))({**one.held, **one.moving})
        rows = one.rows(y)
        expected.append(rows)
        room = [y.shape[1] for y in rows]
        for T in (one.T, 2):
            case = one.opened(isa, T=T, whole=True)
            case.run(one.T, one.cut(0, one.T), room)
            case.flush(room)
            cases.append(case)
    answers = answered(driver, cases)
    for number, one in enumerate(sequences):
        for T, answer in zip((one.T, 2), answers[2 * number : 2 * number + 2], strict=True):
            _, run, flush = answer.calls
            if not one.streams and T < one.T:
                assert run == "large", one.seed
                continue
            got = []
            for o, value in enumerate(one.graph.outputs.values()):
                held = one.facts.rows[value].held
                got.append(run[o] if held else np.concatenate([run[o], flush[o]], axis=1))
            same_bits([got], [expected[number]], f"seed {one.seed}")


def test_states_of_others_are_refused() -> None:
    """Of another model, other weights, another batch, another type; damaged ones."""
    driver = driver_of("plain")
    some = [o for o in map(sequence, SEEDS) if o.streams and len(o.program.part_names)][:4]
    one, *others = some
    cases = [o.opened("", T=4) for o in some]
    weights = {name: array + np.float32(0.25) for name, array in one.tensors.items()}
    cases.append(Streamed(model_file(one.program, weights), one.counts, T=4, batch=one.batch))
    cases.append(Streamed(one.file, one.counts, T=4, batch=one.batch + 1))
    cases.append(Streamed(one.file, one.counts, np.float64, T=4, batch=one.batch))
    for case, batch in zip(cases[4:], (one.batch, one.batch + 1, one.batch), strict=True):
        held = one.flat(one.held, held=True)
        case.reset([np.zeros((batch, x.shape[1]), x.dtype) for x in held])
    assert len(others) == 3
    for case in cases:
        case.get_state()
    states = [answer.calls[-1] for answer in answered(driver, cases)]
    asked = one.opened("", T=4)
    for state in states:
        asked.set_state(state)
    _, mine, *rest = answered(driver, [asked])[0].calls
    assert mine == "ok"
    assert set(rest) == {"state"}


def test_nothing_is_read_or_written_elsewhere() -> None:
    """A sanitizer watches fewer of them."""
    driver, cases = driver_of("address"), []
    isa = next(name for name, dtype in driver.kernels() if dtype == np.float32)
    here = known_isa(isa)
    for one in map(sequence, SEEDS[::3]):
        if one.streams:
            expected = truth(one.seed, here)
            cases.append(one.run(one.opened(isa, T=2, threads=2), expected))
            cases.append(one.run(one.opened(isa, T=4), expected, moves=True))
    answered(driver, cases)
