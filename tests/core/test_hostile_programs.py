"""Programs that nobody vouches for: words changed, cut off, put together from two. Each is refused,
or runs within its memory, from states that no call left too; a sanitizer watches."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
from programs import Case, Driver, driver_of
from random_graphs import random_graph

from fastlstm.plan.lowering import plan
from fastlstm.plan.program import Program

SEED = 20261130
GRAPHS = 60
ODD = [-1, 0, 1, 2, 3, 4, 7, 8, 63, 64, 2**16, 2**24, 2**31 - 1, 2**31, 2**32, 2**62, -(2**63)]


@pytest.fixture(scope="module", params=["address", "address in 32 bits"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return driver_of(request.param)


@functools.cache
def planned() -> list[tuple[bytes, list[np.ndarray], Program]]:
    """Programs of random graphs, which have operations of every kind among them."""
    made = []
    for seed in range(GRAPHS):
        graph, tensors = random_graph(np.random.default_rng([SEED, seed]))
        program = plan(graph, tensors)
        made.append((program.to_bytes(), [tensors[n] for n in program.tensor_names], program))
    return made


def trial(program: bytes, tensors: list[np.ndarray], rng: np.random.Generator, isa: str) -> Case:
    case = Case(program, tensors, isa=isa, batch=int(rng.integers(1, 4)), most=2**24)
    case.try_all(int(rng.integers(0, 9)), int(rng.integers(0, 1000)))
    return case


def small_places(words: np.ndarray) -> np.ndarray:
    """Where words are that are no reals: most programs have more of those than of others."""
    return 9 + int(words[8]) + np.arange(len(words) - 9 - int(words[8]))


def changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A few words that are others."""
    words = np.frombuffer(data, "<i8").copy()
    places = small_places(words)
    for place in rng.choice(places, int(rng.integers(1, 3)), replace=False):
        way = rng.integers(0, 4)
        if way == 0:
            words[place] = ODD[rng.integers(0, len(ODD))]
        elif way == 1:
            words[place] += int(rng.integers(-2, 3))
        elif way == 2:
            words[place] = words[rng.choice(places)]
        else:
            words[place] = words[place] ^ (1 << int(rng.integers(0, 34)))
    return words.tobytes()


def run(driver: Driver, cases: list[Case]) -> Counter[str]:
    return Counter(a.calls[0] if a.error == "ok" else a.error for a in driver.run(cases))


def test_planned_programs_run_from_any_state(driver: Driver) -> None:
    """Programs that are not changed, from states that no call left: positions and counts are
    numbers like others."""
    rng = np.random.default_rng(SEED)
    kernels = [name for name, dtype in driver.kernels() if dtype == np.float32]
    programs = planned()
    cases = [trial(data, tensors, rng, isa) for data, tensors, _ in programs for isa in kernels]
    found = run(driver, cases)
    assert set(found) <= {"ok", "large"}, found
    assert found["ok"] > 0.9 * len(cases), found
    kinds = {type(one).__name__ for _, _, program in programs for one in program.operations}
    assert len(kinds) >= 18, kinds


@pytest.mark.parametrize("part", range(4))
def test_changed_words(driver: Driver, part: int) -> None:
    rng = np.random.default_rng([SEED, part])
    kernels = [name for name, dtype in driver.kernels() if dtype == np.float32]
    cases = [
        trial(changed(data, rng), tensors, rng, kernels[int(rng.integers(0, len(kernels)))])
        for data, tensors, _ in planned()[part::4]
        for _ in range(60)
    ]
    found = run(driver, cases)
    assert set(found) <= {"ok", "program", "tensors", "large", "stopped"}, found
    # Neither is everything refused before it is looked at, nor is nothing looked at.
    assert found["program"] > 0.2 * len(cases), found
    assert found["ok"] > 0.05 * len(cases), found


def test_programs_that_are_cut_off(driver: Driver) -> None:
    """Their head may tell how long they now are."""
    rng = np.random.default_rng([SEED, 10])
    cases = []
    for data, tensors, _ in planned()[:20]:
        words = np.frombuffer(data, "<i8")
        for end in rng.choice(len(words), min(20, len(words)), replace=False):
            kept = words[:end].copy()
            if end > 2:
                kept[2] = end
            cases.append(trial(kept.tobytes(), tensors, rng, ""))
    assert set(run(driver, cases)) == {"program"}


def test_programs_put_together_from_two(driver: Driver) -> None:
    rng = np.random.default_rng([SEED, 11])
    programs = planned()
    cases = []
    for _ in range(400):
        (a, tensors, _), (b, _, _) = (programs[rng.integers(0, len(programs))] for _ in range(2))
        first, second = np.frombuffer(a, "<i8"), np.frombuffer(b, "<i8")
        words = np.concatenate(
            [first[: rng.integers(3, len(first))], second[rng.integers(3, len(second)) :]]
        )
        words[2] = len(words)
        cases.append(trial(words.tobytes(), tensors, rng, ""))
    assert set(run(driver, cases)) <= {"program", "tensors", "ok", "large"}
