"""What a step reads that was made before its input: the same bits as where the step makes it.

The graphs are those of :mod:`random_graphs` and the models those of :mod:`models`; each runs step
by step on every kernel there is, with what was made before for any of its rows, or for none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from models import CELLS, build, every_kind, input_for, recurrent
from planned import random_planned
from programs import BUILDS, Case, driver_of
from random_graphs import random_inputs
from streamed import Streamed, opened

from fastlstm.exporting.model_file import model_file
from fastlstm.plan.lowering import plan
from fastlstm.plan.program import Program

SEEDS, T, B = range(60), 12, 5

Change = Callable[..., None]


class Subject:
    """A program that streams, and numbers for T steps of B rows, of which some have no step."""

    def __init__(
        self,
        program: Program,
        tensors: Sequence[np.ndarray],
        held: Sequence[np.ndarray],
        moving: Sequence[np.ndarray],
        rng: np.random.Generator,
    ) -> None:
        self.words, self.tensors = program.to_bytes(), list(tensors)
        self.counts = [program.values[value].count for value in program.outputs]
        self.held, self.moving = held, moving
        self.lengths = rng.integers(0, 4, (T, B)) > 0
        # Rows that are prepared before a step: some, all, or as many as were before the one before.
        all_rows, others = rng.integers(0, 3, (2, T)) == 0
        self.rows = (rng.integers(0, 2, (T, B)) > 0) | all_rows[:, None]
        self.asks = ~others

    def case(self, kernel: tuple[str, Any], threads: int = 1) -> Case:
        isa, dtype = kernel
        case = Case(self.words, self.tensors, self.counts, dtype, isa, B, threads)
        case.begin(self.held)
        return case

    def step(self, case: Case, t: int) -> None:
        case.run(1, [x[t : t + 1] for x in self.moving], lengths=self.lengths[t].tolist())

    def plain(self, kernel: tuple[str, Any]) -> Case:
        case = self.case(kernel)
        for t in range(T):
            self.step(case, t)
        case.state()
        return case

    def prepared(self, kernel: tuple[str, Any], threads: int = 1) -> Case:
        case = self.case(kernel, threads)
        for t in range(T):
            if self.asks[t]:
                case.prepare(self.rows[t])
            self.step(case, t)
        case.state()
        return case


def random_subject(seed: int) -> Subject | None:
    planned = random_planned(seed)
    if planned.facts.looks_ahead:
        return None
    rng = np.random.default_rng([seed, 70])
    inputs = random_inputs(rng, planned.graph, T, B)
    held, moving = planned.flat(inputs, held=True), planned.flat(inputs, held=False)
    tensors = [planned.tensors[n].astype(np.float32) for n in planned.program.tensor_names]
    return Subject(planned.program, tensors, held, moving, rng)


def subject_of(model: Any, rng: np.random.Generator) -> Subject:
    tensors = dict(model.tensors)
    program = plan(model.graph, tensors, model.facts)
    x = input_for(model, rng, T, B).reshape(T, B, -1)
    return Subject(program, [tensors[name] for name in program.tensor_names], [], [x], rng)


def layers_of(L: int) -> dict[str, tuple[Any, ...]]:
    """Models whose recurrences have something to make before; of full vectors and a rest."""
    H = 2 * L + 3
    made = {cell: (recurrent(cell, L + 1, H, num_layers=2),) for cell in CELLS}
    made["projected"] = (recurrent("lstm", 5, H, num_layers=2, proj_size=L + 2),)
    made["wide"] = (recurrent("lstm", 37, 70), recurrent("gru", 70, 33, name="second"))
    kinds = ("peepholes", "coupled", "clipped", "norm_product", "norm_gate", "learned_start")
    more = ("gru_before", "gru_odd", "rnn_odd", "one_hot_norm", "embedding_before", "causal")
    return made | {kind: every_kind(L)[kind] for kind in (*kinds, *more)}


def rows(answer: Any) -> list[bytes]:
    """All rows of all steps, and the state behind them."""
    assert answer.error == "ok", answer.message
    made = []
    for call in answer.calls:
        if isinstance(call, str):
            assert call == "ok"
        elif isinstance(call, np.ndarray):
            made.append(call.tobytes())
        elif call is not None:
            assert call.error == "ok"
            made += [y.tobytes() for of in call.rows for y in of]
    return made


@pytest.mark.parametrize("compiled", BUILDS)
def test_random_graphs_have_the_same_bits(compiled: str) -> None:
    """Of any rows of the batch, some of which have no step; on threads that share them, too."""
    driver = driver_of(compiled)
    subjects = [s for s in map(random_subject, SEEDS[:: 1 if compiled == "plain" else 4]) if s]
    assert len(subjects) > 8
    threads = 3 if BUILDS[compiled].threads else 1
    for kernel in driver.kernels():
        cases = []
        for s in subjects:
            cases += [s.plain(kernel), s.prepared(kernel), s.prepared(kernel, threads)]
        answers = [rows(answer) for answer in driver.run(cases)]
        for number in range(len(subjects)):
            plain, alone, shared = answers[3 * number : 3 * number + 3]
            assert plain == alone, (number, kernel)
            assert plain == shared, (number, kernel)


def test_every_cell_has_the_same_bits_and_reads_what_was_made(rng: np.random.Generator) -> None:
    """Numbers that were made and then spoilt are those that the step adds, and only of its row."""
    driver = driver_of("plain")
    for isa, dtype in driver.kernels():
        for name, layers in layers_of(8).items():
            s = subject_of(build(layers, rng, dtype), rng)
            s.lengths[:] = True
            spoilt = s.case((isa, dtype))
            spoilt.prepare([True, False, True, False, False], spoils=True)
            s.step(spoilt, 0)
            kernel = (isa, dtype)
            cases = [s.plain(kernel), s.prepared(kernel), s.prepared(kernel, 2), spoilt]
            *answers, last = driver.run(cases)
            plain, alone, shared = map(rows, answers)
            assert plain == alone == shared, (name, isa)
            first = plain[:B]
            changed = [y != z for y, z in zip(rows(last), first, strict=True)]
            assert changed == [True, False, True, False, False], (name, isa)


def test_what_changes_a_state_drops_what_was_made(rng: np.random.Generator) -> None:
    """Several steps, a beginning, another state, a part of one: none reads what was spoilt."""
    driver = driver_of("plain")
    for kernel in driver.kernels():
        s = subject_of(build((recurrent("lstm", 5, 19),), rng, kernel[1]), rng)
        s.lengths[:] = True
        other = s.case(kernel)
        s.step(other, 3)
        other.state()
        other.parts()
        *_, state, parts = driver.run([other], 2)[0].calls
        changes: list[Change] = [
            lambda case, s=s: case.run(3, [x[:3] for x in s.moving]),
            lambda case, s=s: case.begin(s.held),
            lambda case, state=state: case.set_state(state),
            lambda case, parts=parts: case.set_part(0, parts[0]),
        ]
        cases = []
        for change in changes:
            for prepares in (False, True):
                case = s.case(kernel)
                s.step(case, 1)
                if prepares:
                    case.prepare([True] * B, spoils=True)
                change(case)
                s.step(case, 2)
                cases.append(case)
        answers = [rows(answer) for answer in driver.run(cases)]
        for number in range(len(changes)):
            assert answers[2 * number] == answers[2 * number + 1], (number, kernel)


@pytest.mark.parametrize("compiled", ["plain", "address"])
def test_streams_prepare(compiled: str, rng: np.random.Generator) -> None:
    """In memory that the size tells of; a stream that was not made for it refuses."""
    driver = driver_of(compiled)
    isa, dtype = driver.kernels()[0]
    for threads in (1, 2):
        model = build((recurrent("lstm", 7, 19, num_layers=2),), rng, dtype)
        tensors = dict(model.tensors)
        file = model_file(plan(model.graph, tensors, model.facts), tensors)
        x = rng.standard_normal((T, 3, 7)).astype(dtype)
        cases = []
        for prepares in (False, True):
            case = Streamed(
                file, [19], dtype, isa, batch=3, T=4, threads=threads, prepares=prepares
            )
            case.get_state()
            for t in range(T):
                case.prepare()
                if t % 5 == 3:
                    case.flush([0])
                case.step([x[t : t + 1]])
                if t % 4 == 2:
                    case.prepare()
                    case.run(2, [x[:2]], [2])
                if t == 7:
                    case.prepare()
                    case.reset()
            cases.append(case)
        plain, prepared = opened(driver, cases)
        rows_of = [
            [np.concatenate(c).tobytes() for c in answer.calls if isinstance(c, list)]
            for answer in (plain, prepared)
        ]
        assert rows_of[0] == rows_of[1]
        errors = [[c for c in a.calls if isinstance(c, str)] for a in (plain, prepared)]
        assert set(errors[0]) == {"argument", "ok"}
        assert set(errors[1]) == {"ok"}
