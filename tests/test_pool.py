"""Pools: many streams step together, and each finds what it would have found alone.

Whatever joins, leaves, grows or fails around a stream, its numbers are those of a single Stream,
bit for bit. Then the rules of use: which slots are taken, what a refused call leaves as it was,
and what a call is given. Files and pickles are in test_pool_files.py, memory in
test_pool_memory.py.
"""

from __future__ import annotations

import contextlib
import enum
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import (
    CELLS,
    ISAS,
    LANES,
    STREAMING,
    build,
    by_turns,
    every_kind,
    input_for,
    model_file,
    recurrent,
    state_for,
)
from ways import assert_same_bits, assert_same_state

import fastlstm
from fastlstm import Model, Pool, Stream, processors

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MOST = 2**24  # slots of a pool


def plain(L: int) -> dict[str, tuple[spec.Layer, ...]]:
    """Models whose stages have full vectors and a remainder for L lanes."""
    H = 2 * L + 3
    return {
        "lstm": (recurrent("lstm", L + 1, H),),
        "lstm_stack": (recurrent("lstm", 5, H, num_layers=3, proj_size=L + 2),),
        "gru": (recurrent("gru", L + 1, H, num_layers=2),),
        "rnn_tanh": (recurrent("rnn_tanh", 3, 5 * L + 1),),
        "rnn_relu": (recurrent("rnn_relu", 3, H, num_layers=2),),
        "linear": (spec.Linear("a", L + 1, 6 * L + 1), spec.Activation("f", "softmax", 6 * L + 1)),
        "embedding": (
            spec.Embedding("e", 11, L + 1),
            recurrent("lstm", L + 1, H),
            spec.Linear("out", H, 11),
        ),
        "one_hot": (spec.OneHot("o", 11), recurrent("gru", 11, H)),
    }


KINDS = tuple(plain(1))


def exact(layers: Any, rng: np.random.Generator, dtype: Any = np.float32, **options: Any) -> Model:
    """A model that promises the same bits, however it is run."""
    return build(layers, rng, dtype, reproducible=True, **options)


def row_of(state: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {name: array[:, i].copy() for name, array in state.items()}


def stacked(model: Model, states: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    states = list(states)
    none = {n: a[:, :0] for n, a in model.initial_state(1).items()}
    return {n: np.stack([s[n] for s in states], 1) if states else a for n, a in none.items()}


class Twins:
    """A pool, and for each of its streams a single Stream that does the same."""

    def __init__(self, model: Model, rng: np.random.Generator, **options: Any) -> None:
        self.model, self.rng = model, rng
        self.pool = model.pool(**options)
        self.alone: dict[int, Stream] = {}
        self.steps: dict[int, int] = {}
        self.closed: list[int] = []
        self.joined = 0

    def join(self, slot: int, stream: Stream, steps: int) -> None:
        assert type(slot) is int
        assert slot not in self.alone
        assert slot not in self.closed
        self.alone[slot], self.steps[slot] = stream, steps
        self.joined += 1

    def some(self, most: int | None = None) -> list[int]:
        """Different slots in a random order, perhaps none."""
        live = list(self.alone)
        n = int(self.rng.integers(0, len(live) + 1))
        return [live[i] for i in self.rng.permutation(len(live))[: n if most is None else most]]

    def any_form(self, slots: list[int]) -> Any:
        how = self.rng.integers(3)
        return slots if how == 0 else tuple(slots) if how == 1 else np.array(slots, np.int64)

    def open(self) -> None:
        stream, state = self.model.stream(), None
        if self.rng.random() < 0.5:
            stream.state = state = state_for(self.model, self.rng, None)
        self.join(self.pool.open(state), stream, 0)

    def close(self) -> None:
        slots = self.some(int(self.rng.integers(0, 9)))
        self.pool.close(slots[0] if len(slots) == 1 else self.any_form(slots))
        self.closed += slots
        for slot in slots:
            del self.alone[slot], self.steps[slot]

    def fork(self) -> None:
        for slot in self.some(1):
            self.join(self.pool.fork(slot), self.alone[slot].clone(), self.steps[slot])

    def reset(self) -> None:
        slots = self.some(4)
        self.pool.reset(self.any_form(slots))
        for slot in slots:
            self.alone[slot].reset()
            self.steps[slot] = 0

    def move_states(self) -> None:
        """States of some to others, and a random one."""
        givers, takers = self.some(3), self.some(3)
        n = min(len(givers), len(takers))
        state = self.pool.get_state(givers[:n])
        kept = [self.alone[giver].state for giver in givers[:n]]
        assert_same_state(state, stacked(self.model, kept))
        self.pool.set_state(self.any_form(takers[:n]), state)
        for taker, one in zip(takers, kept, strict=False):
            self.alone[taker].state = one
        for slot in self.some(1):
            self.alone[slot].state = state_for(self.model, self.rng, None)
            self.pool.set_state(slot, self.alone[slot].state)
            assert_same_state(self.pool.get_state(slot), self.alone[slot].state)

    def step(self) -> None:
        slots = self.some()
        x = input_for(self.model, self.rng, len(slots))
        gives = self.pool.output_steps(slots)
        out = None
        if self.rng.random() < 0.5:
            out = np.full((len(slots), self.model.output_size), 7, self.model.dtype)
        y = self.pool.step(self.any_form(slots), x, out=out)
        assert out is None or y is out
        expected = np.zeros((len(slots), self.model.output_size), self.model.dtype)
        for i, slot in enumerate(slots):
            y_i = self.alone[slot].step(x[i])
            assert gives[i] == (y_i is not None)
            if y_i is not None:
                expected[i] = y_i
            self.steps[slot] += 1
        assert_same_bits(y, expected)

    def step_one(self) -> None:
        for slot in self.some(1):
            x = input_for(self.model, self.rng)
            if self.model.takes_tokens:
                x = int(x)
            gives = self.pool.output_steps(slot)
            y, expected = self.pool.step(slot, x), self.alone[slot].step(x)
            assert gives == (expected is not None)
            assert_same_bits(y, np.zeros_like(y) if expected is None else expected)
            self.steps[slot] += 1

    def run_padded(self) -> None:
        slots, T = self.some(), int(self.rng.integers(0, 7))
        x, lengths = input_for(self.model, self.rng, T, len(slots)), None
        if self.rng.random() < 0.7:
            lengths = self.rng.integers(0, T + 1, len(slots))
            # What lies behind an end is not looked at.
            x[np.arange(T)[:, None] >= lengths] = -1 if self.model.takes_tokens else np.nan
        each = np.full(len(slots), T) if lengths is None else lengths
        counts = self.pool.output_steps(slots, each)
        y = self.pool.run(self.any_form(slots), x, lengths)
        keeps_steps = self.model.delay == 0 and self.model.step_stride == 1
        rows = T if keeps_steps else counts.max(initial=0)
        expected = np.zeros((rows, len(slots), self.model.output_size), self.model.dtype)
        for i, slot in enumerate(slots):
            alone = self.alone[slot].run(x[: each[i], i])
            assert counts[i] == len(alone)
            expected[: len(alone), i] = alone
            self.steps[slot] += int(each[i])
        assert_same_bits(y, expected)

    def run_list(self) -> None:
        slots = self.some()
        xs = [input_for(self.model, self.rng, self.rng.integers(0, 7)) for _ in slots]
        counts = self.pool.output_steps(slots, np.array([len(x) for x in xs], int))
        ys = self.pool.run(self.any_form(slots), xs if self.rng.random() < 0.5 else tuple(xs))
        assert type(ys) is list
        assert [len(y) for y in ys] == counts.tolist()
        for slot, x, y in zip(slots, xs, ys, strict=True):
            assert_same_bits(y, self.alone[slot].run(x))
            self.steps[slot] += len(x)

    def run_one(self) -> None:
        for slot in self.some(1):
            x = input_for(self.model, self.rng, self.rng.integers(0, 7))
            assert_same_bits(self.pool.run(slot, x), self.alone[slot].run(x))
            self.steps[slot] += len(x)

    def refuse(self) -> None:
        """A closed slot among open ones."""
        if self.closed:
            slots = [*self.some(), int(self.rng.choice(self.closed))]
            slots = [slots[i] for i in self.rng.permutation(len(slots))]
            with pytest.raises(ValueError, match="is not open in this pool"):
                self.pool.step(slots, input_for(self.model, self.rng, len(slots)))
            with pytest.raises(ValueError, match="is not open in this pool"):
                self.pool.close(slots)

    def check(self) -> None:
        assert len(self.pool) == len(self.alone)
        assert sorted(self.pool.slots.tolist()) == sorted(self.alone)
        slots = self.some(len(self.alone))
        expected = stacked(self.model, [self.alone[slot].state for slot in slots])
        assert_same_state(self.pool.get_state(slots), expected)
        assert self.pool.steps(slots).tolist() == [self.steps[slot] for slot in slots]
        assert all(slot in self.pool for slot in slots)
        assert not any(slot in self.pool for slot in self.closed)

    def play(self, streams: int) -> None:
        """Until so many have joined, in a random order of everything that a pool can do."""
        calls = [self.step, self.step_one, self.run_padded, self.run_list, self.run_one]
        others = [self.fork, self.reset, self.move_states, self.refuse]
        while self.joined < streams:
            for _ in range(self.rng.integers(0, 7)):
                self.open()
            for do in (*self.rng.permutation(calls)[:3], *self.rng.permutation(others)[:2]):
                do()
            if len(self.alone) > streams / 4 or self.rng.random() < 0.3:
                self.close()
            if self.rng.random() < 0.2:
                self.check()
        for do in calls:
            do()
        self.check()


class TestSchedules:
    """Streams that join and leave, against as many single ones."""

    @pytest.mark.parametrize(("kind", "isa"), by_turns(KINDS))
    def test_of_200_streams(self, kind: str, isa: str, rng: np.random.Generator) -> None:
        twins = Twins(exact(plain(LANES[isa])[kind], rng, isa=isa), rng, capacity=5, growth=7)
        twins.play(200)
        assert twins.pool.capacity > 5
        assert (twins.pool.capacity - 5) % 7 == 0

    @pytest.mark.parametrize("kind", ["lstm_stack", "gru", "rnn_tanh", "embedding"])
    def test_of_200_streams_in_float64(self, kind: str, rng: np.random.Generator) -> None:
        Twins(exact(plain(1)[kind], rng, np.float64), rng, capacity=5, growth=7).play(200)

    @pytest.mark.parametrize(("kind", "isa"), by_turns(STREAMING))
    def test_of_models_of_every_kind(self, kind: str, isa: str, rng: np.random.Generator) -> None:
        Twins(exact(every_kind(LANES[isa])[kind], rng, isa=isa), rng, capacity=3, growth=2).play(40)

    @pytest.mark.parametrize("kind", STREAMING)
    def test_of_every_kind_in_float64(self, kind: str, rng: np.random.Generator) -> None:
        Twins(exact(every_kind(2)[kind], rng, np.float64), rng, capacity=3, growth=2).play(25)

    def test_a_pool_uses_no_blas(self, isa: str, rng: np.random.Generator) -> None:
        """A model that may use one still gives the bits of one that may not."""
        file = model_file(recurrent("lstm", 64, 4 * LANES[isa] + 3, num_layers=2), rng)
        free, fixed = (Model(file, isa=isa, reproducible=r) for r in (False, True))
        pool = free.pool()
        slots = [pool.open() for _ in range(33)]
        x = input_for(fixed, rng, 300, 33)
        y, state = fixed(x)
        assert_same_bits(pool.run(slots, x), y)
        assert_same_state(pool.get_state(slots), state)
        pool.reset(slots)
        for got, i in zip(pool.run(slots, list(x.swapaxes(0, 1).copy())), range(33), strict=True):
            assert_same_bits(got, y[:, i])
        one = pool.open()
        assert_same_bits(pool.run(one, x[:, 0].copy()), y[:, 0])

    @pytest.mark.parametrize("kind", ["recurrent", "convolution"])
    def test_threads_of_a_model_change_nothing(
        self, kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processors, "available", lambda: 3)
        layers = {
            "recurrent": (recurrent("lstm", 64, 160), spec.Linear("out", 160, 64)),
            "convolution": (
                spec.Conv1d("a", 64, 160, 5, 2, padding_left=2),
                recurrent("gru", 160, 160),
            ),
        }
        file = model_file(layers[kind], rng)
        one, three = (Model(file, reproducible=True, threads=n) for n in (1, 3))
        pools = [model.pool() for model in (one, three)]
        state, x = state_for(one, rng, 37), input_for(one, rng, 40, 37)
        for array in state.values():
            if array.dtype == np.int64:
                array[...] = rng.integers(0, 20, array.shape)
        lengths = rng.integers(0, 41, 37)
        found = []
        for pool in pools:
            slots = [pool.open(row_of(state, i)) for i in range(37)]
            ys = [pool.step(slots, x[0]), pool.step(slots, x[1]), pool.run(slots, x, lengths)]
            ys += pool.run(slots, [x[: (7 * i) % 41, i].copy() for i in range(37)])
            found.append((ys, pool.get_state(slots)))
        for got, expected in zip(found[1][0], found[0][0], strict=True):
            assert_same_bits(got, expected)
        assert_same_state(found[1][1], found[0][1])

    @pytest.mark.parametrize("kind", ["lstm", "embedding", "delayed", "frames", "mean"])
    def test_sequences_longer_than_the_engine_takes_at_once(
        self, kind: str, rng: np.random.Generator
    ) -> None:
        """Arrays of a list pass in blocks of a megabyte, sequences in chunks."""
        L = LANES[ISAS[0]]
        model = exact((plain(L) | every_kind(L))[kind], rng)
        widest = max(1 if model.takes_tokens else model.input_size, model.output_size)
        T = 2**20 // (4 * widest * 5) * 2
        lengths = [0, T, 3, T // 2 + 1, T - 1]
        state = state_for(model, rng, 5)
        x = input_for(model, rng, T, 5)
        pools = model.pool(), model.pool()
        slots = [[pool.open(row_of(state, i)) for i in range(5)] for pool in pools]
        y = pools[0].run(slots[0], x, lengths)
        ys = pools[1].run(slots[1], [x[:n, i].copy() for i, n in enumerate(lengths)])
        for i, n in enumerate(lengths):
            stream = model.stream()
            stream.state = row_of(state, i)
            expected = stream.run(x[:n, i])
            assert_same_bits(ys[i], expected)
            assert_same_bits(y[: len(expected), i], expected)
            assert not y[len(expected) :, i].any()
            for pool, of in zip(pools, slots, strict=True):
                assert_same_state(pool.get_state(of[i]), stream.state)
                assert pool.steps(of[i]) == n


class TestAnyOrder:
    """Neither the order of the slots nor the company changes a row."""

    @pytest.mark.parametrize(("kind", "isa"), by_turns([*KINDS, *STREAMING]))
    def test_permuted_and_in_other_batches(
        self, kind: str, isa: str, rng: np.random.Generator
    ) -> None:
        L = LANES[isa]
        model = exact((plain(L) | every_kind(L))[kind], rng, isa=isa)
        pool, N, T = model.pool(), 23, 5
        slots = np.array([pool.open(state_for(model, rng, None)) for _ in range(N)])
        start = pool.get_state(slots)
        x, lengths = input_for(model, rng, T, N), rng.integers(0, T + 1, N)

        def rows(given: Any) -> np.ndarray:
            """(N, T, O), with zeros behind the rows of each."""
            given = given if isinstance(given, list) else list(given.swapaxes(0, 1))
            padded = np.zeros((len(given), T, model.output_size), model.dtype)
            for i, one in enumerate(given):
                padded[i, : len(one)] = one
            return padded

        calls: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
            lambda of: pool.step(slots[of], x[0][of]),
            lambda of: rows(pool.run(slots[of], x[:, of])),
            lambda of: rows(pool.run(slots[of], x[:, of], lengths[of])),
            lambda of: rows(pool.run(slots[of], [x[: lengths[i], i].copy() for i in of])),
            lambda of: rows([pool.run(int(slots[i]), x[:, i].copy()) for i in of]),
        )
        for call in calls:
            pool.set_state(slots, start)
            expected = call(np.arange(N))
            after = pool.get_state(slots)
            for _ in range(4):
                pool.set_state(slots, start)
                order = rng.permutation(N)
                cuts = np.sort(rng.integers(0, N + 1, rng.integers(0, 6)))
                for part in np.split(order, cuts):
                    assert_same_bits(call(part), expected[part])
                assert_same_state(pool.get_state(slots), after)
                assert_same_state(
                    pool.get_state(slots[order]), {n: a[:, order] for n, a in after.items()}
                )


class TestOtherStreams:
    """What is not finite or not normal stays where it is."""

    @pytest.mark.parametrize(("kind", "isa"), by_turns(STREAMING))
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
    def test_nan_and_infinity(self, kind: str, bad: float, isa: str, rng: Any) -> None:
        model = exact(every_kind(LANES[isa])[kind], rng, isa=isa)
        if model.takes_tokens:
            pytest.skip("a token cannot be NaN")
        pool, N = model.pool(capacity=9), 9
        slots = np.array([pool.open(state_for(model, rng, None)) for _ in range(N)])
        start, x = pool.get_state(slots), input_for(model, rng, 4, N)
        ill = np.isin(np.arange(N), [0, 4, 8])
        found = []
        for value in (0, bad):
            pool.set_state(slots, start)
            given = x.copy()
            given[:, ill] = value
            y = [pool.step(slots, given[0]), pool.run(slots, given[1:])]
            y += pool.run(slots, list(given.swapaxes(0, 1).copy()))
            after = pool.get_state(slots[~ill])
            pool.reset(slots)  # and who was ill is as new
            fresh = pool.step(slots, x[0])
            well = [y[0][~ill], y[1][:, ~ill], *(y[2 + i] for i in np.flatnonzero(~ill)), fresh]
            found.append((well, after))
        for got, expected in zip(found[1][0], found[0][0], strict=True):
            assert_same_bits(got, expected)
        assert_same_state(found[1][1], found[0][1])

    def test_a_slot_that_was_ill_is_well_for_its_successor(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("lstm", 3, 5), rng)
        pool, x = model.pool(capacity=1), input_for(model, rng, 3)
        for _ in range(3):
            slot = pool.open()
            assert_same_bits(pool.run(slot, x), model(x)[0])
            pool.step(slot, np.full(3, np.nan, "f4"))
            assert np.isnan(pool.get_state(slot)["rnn.h"]).all()
            pool.close(slot)

    @pytest.mark.parametrize("cell", CELLS)
    def test_denormal_numbers_are_kept_as_a_stream_keeps_them(
        self, cell: str, isa: str, rng: np.random.Generator
    ) -> None:
        model = exact(recurrent(cell, 5, 2 * LANES[isa] + 3), rng, isa=isa)
        tiny = np.float32(1e-41)
        pool, streams = model.pool(), [model.stream() for _ in range(7)]
        slots, states = [pool.open() for _ in streams], []
        for stream in streams:
            states.append({n: a * tiny for n, a in state_for(model, rng, None).items()})
            stream.state = states[-1]
        pool.set_state(slots, stacked(model, states))
        assert_same_state(pool.get_state(slots), stacked(model, states))
        x = input_for(model, rng, 6, 7) * tiny
        assert x.any()
        assert_same_bits(
            pool.run(slots, x), np.stack([s.run(x[:, i]) for i, s in enumerate(streams)], 1)
        )
        assert_same_state(pool.get_state(slots), stacked(model, [s.state for s in streams]))


def snapshot(pool: Pool) -> tuple[Any, ...]:
    """All that can be seen of a pool; the order of last use stands for the ages."""
    ages, slots = pool.idle(0).tolist(), pool.slots  # looked at before anything else is
    state = {name: array.tobytes() for name, array in pool.get_state(slots).items()}
    return ages, slots.tolist(), state, pool.steps(slots).tolist(), pool.capacity


class Four:
    """A pool of four streams that have lived, with a slot that was closed and one of another's."""

    def __init__(self, model: Model, rng: np.random.Generator) -> None:
        self.model, self.pool, self.other = model, model.pool(capacity=6), model.pool()
        a, self.stale, b, c, d = [self.pool.open() for _ in range(5)]
        self.pool.close(self.stale)
        self.foreign = [self.other.open() for _ in range(5)][-1]
        self.slots = [a, b, c, d]
        for slot in (c, a, d, b):
            self.pool.run(slot, input_for(model, rng, 5))
        assert self.pool.idle(0).tolist() == [c, a, d, b]


@pytest.fixture(params=["lstm", "embedding", "delayed"])
def four(request: pytest.FixtureRequest, rng: np.random.Generator) -> Four:
    return Four(exact((plain(4) | every_kind(4))[request.param], rng), rng)


def calls(pool: Pool, path: Path) -> dict[str, Callable[[Any], Any]]:
    """Every call that takes slots, with arguments that fit as many as are given."""
    model = pool.model
    rng = np.random.default_rng(1)

    def shape(slots: Any) -> tuple[int, ...]:
        return (len(slots),) if isinstance(slots, list | tuple) else np.shape(slots)[:1]

    def state(slots: Any) -> dict[str, np.ndarray]:
        return state_for(model, rng, *shape(slots) or (None,))

    found: dict[str, Callable[[Any], Any]] = {
        "step": lambda slots: pool.step(slots, input_for(model, rng, *shape(slots))),
        "run": lambda slots: pool.run(slots, input_for(model, rng, 3, *shape(slots))),
        "close": pool.close,
        "reset": pool.reset,
        "get_state": pool.get_state,
        "set_state": lambda slots: pool.set_state(slots, state(slots)),
        "steps": pool.steps,
        "output_steps": pool.output_steps,
        "save": lambda slots: pool.save(path, slots),
        "list": lambda slots: pool.run(
            slots, [input_for(model, rng, 2) for _ in range(*shape(slots) or (1,))]
        ),
        "lengths": lambda slots: pool.run(
            slots, input_for(model, rng, 3, *shape(slots) or (1,)), [2] * (shape(slots) or (1,))[0]
        ),
    }
    return found


CALLS = (
    *("step", "run", "close", "reset", "get_state", "set_state", "steps", "output_steps"),
    *("save", "list", "lengths"),
)


class TestSlots:
    """Which numbers are taken; whatever is refused leaves everything as it was."""

    NOT_OPEN = "is not open in this pool: it was closed, or evicted, or belongs to another pool"

    @pytest.mark.parametrize("call", CALLS)
    def test_not_open(self, call: str, four: Four, tmp_path: Path) -> None:
        a, b, c, d = four.slots
        before = snapshot(four.pool)
        index = a & (MOST - 1)
        wrong = [
            *(four.stale, four.foreign, 0, -1, -a, 1, MOST, MOST - 1, index, 2**63 - 1, -(2**63)),
            *(a + MOST, a - MOST, a + 1, a + 2**40, (a >> 24 << 24) | 5, (a >> 24 << 24) | 4000),
            *(2**63, 2**64 + a, 2**70, -(2**70)),
        ]
        wrong = [number for number in wrong if number not in four.slots]
        do = calls(four.pool, tmp_path / "saved")[call]
        for number in wrong:
            if call not in ("list", "lengths", "save"):  # which take no single slot
                with pytest.raises(ValueError, match=rf"slot {number} {self.NOT_OPEN}"):
                    do(number)
            for slots in ([number], [a, b, number, d], [number, c], (a, number)):
                with pytest.raises(ValueError, match=rf"slot {number} {self.NOT_OPEN}"):
                    do(slots)
            if -(2**63) <= number < 2**63:
                for slots in (np.int64(number), np.array(number)):
                    if call not in ("list", "lengths", "save"):
                        with pytest.raises(ValueError, match=rf"slot {number} {self.NOT_OPEN}"):
                            do(slots)
            assert number not in four.pool
            assert snapshot(four.pool) == before
        assert not (tmp_path / "saved").exists()

    @pytest.mark.parametrize("call", CALLS)
    def test_of_a_wrong_type(self, call: str, four: Four, tmp_path: Path) -> None:
        a, b, *_ = four.slots
        before = snapshot(four.pool)
        do = calls(four.pool, tmp_path / "saved")[call]
        scalars = (True, False, np.True_, float(a), 1.5, np.float64(a), str(a), "a", b"a", 1j)
        wrong = [
            *(None, object(), {a, b}, {a: b}, range(2), iter([a, b]), slice(a, b)),
            *([True, False], np.array([True, False]), [float(a), b], np.array([a, b], float)),
            *([str(a)], [a, None], np.array([a, b], object), np.array([a, b], complex)),
            *(np.array([a, b], "m8[s]"), np.array([a, b], "M8[s]"), np.ma.array([a, b])),
            np.array([(a, b)], [("x", "i8"), ("y", "i8")]),
        ]
        if call == "save":
            wrong = [value for value in wrong if value is not None]  # which means all
        for slots in (*scalars, *wrong):
            with pytest.raises(TypeError, match=r"^slots "):
                do(slots)
            assert snapshot(four.pool) == before
        for value in (*scalars, None, [a], (a,), a + 0.0):
            assert value not in four.pool
        assert not (tmp_path / "saved").exists()

    @pytest.mark.parametrize("call", CALLS)
    def test_given_twice(self, call: str, four: Four, tmp_path: Path) -> None:
        a, b, c, d = four.slots
        before = snapshot(four.pool)
        do = calls(four.pool, tmp_path / "saved")[call]
        for slots in ([a, a], [a, b, c, b, d], [d, c, d], np.array([a, b, a]), [a] * 300):
            twice = next(s for i, s in enumerate(list(slots)) if s in list(slots)[:i])
            with pytest.raises(ValueError, match=f"slot {twice} is given twice.*block of run"):
                do(slots)
            assert snapshot(four.pool) == before
        assert not (tmp_path / "saved").exists()

    @pytest.mark.parametrize("call", CALLS)
    def test_of_a_wrong_shape(self, call: str, four: Four, tmp_path: Path) -> None:
        a, b, *_ = four.slots
        before = snapshot(four.pool)
        do = calls(four.pool, tmp_path / "saved")[call]
        for slots in (np.array([[a, b]]), [[a], [b]], np.empty((0, 3), int), np.array([[[a]]])):
            with pytest.raises(ValueError, match=r"slots has shape .*; expected \(N,\)"):
                do(slots)
        with pytest.raises(ValueError, match="inhomogeneous"):
            do([[a], b])
        assert snapshot(four.pool) == before
        assert not (tmp_path / "saved").exists()

    @pytest.mark.parametrize("call", [c for c in CALLS if c not in ("close", "reset")])
    def test_forms_that_are_taken(
        self, call: str, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        """Any integers, any strides; the same as the list of them."""
        model = exact(recurrent("lstm", 3, 4), rng)
        pool = model.pool()
        slots = [pool.open() for _ in range(4)]
        if slots[-1] >= 2**31:
            types = ["i8", "u8", ">i8", "<u8"]  # so many streams were opened before
        else:
            types = ["i4", "u4", "i8", "u8", ">i8", ">u4"]
        forms: list[Any] = [tuple(slots), *(np.array(slots, t) for t in types)]
        spread = np.full(12, -1)
        spread[1::3] = slots
        forms += [spread[1::3], np.array(slots[::-1])[::-1], np.array([slots, slots], order="F")[1]]
        unaligned = np.frombuffer(b"x" + np.array(slots).tobytes(), np.uint8)[1:].view(np.int64)
        forms += [unaligned, [np.int64(slot) for slot in slots]]
        frozen = np.array(slots)
        frozen.flags.writeable = False
        forms.append(frozen)
        for form in forms:
            if call == "save":
                pool.save(tmp_path / "saved", form)
                assert list(model.pool().load(tmp_path / "saved")) == slots
            calls(pool, tmp_path / "saved")[call](form)
        kept = pool.get_state(slots)
        for form in forms:
            assert_same_state(pool.get_state(form), kept)
        assert frozen.tolist() == slots
        assert spread[::3].tolist() == [-1] * 4

    def test_single_ones(self, four: Four, rng: np.random.Generator) -> None:
        """An int, NumPy's integers and arrays without axes name one stream, without the axis N."""
        x = input_for(four.model, rng)
        for slot in four.slots:
            name = enum.IntEnum("Slot", {"THIS": slot}).THIS
            for one in (slot, np.int64(slot), np.array(slot), np.uint64(slot), name):
                state, steps = four.pool.get_state(slot), four.pool.steps(slot)
                assert type(steps) is int
                assert_same_state(four.pool.get_state(one), state)
                assert four.pool.steps(one) == steps
                y = four.pool.step(one, x)
                four.pool.set_state(slot, state)
                assert_same_bits(y, four.pool.step([slot], x[None])[0])
                four.pool.set_state(one, state)
                block = four.pool.run(one, x[None])
                assert block.ndim == 2
                four.pool.set_state(slot, state)
                assert_same_bits(block, four.pool.run([slot], x[None, None])[:, 0])
                assert one in four.pool or isinstance(one, np.ndarray)

    def test_none_at_all(self, four: Four, tmp_path: Path) -> None:
        before = snapshot(four.pool)
        model, rows = four.model, (0, four.model.output_size)
        x = input_for(model, np.random.default_rng(1), 3, 0)
        for none in ([], (), np.array([], np.int64), np.array([])):
            assert four.pool.step(none, x[0]).shape == rows
            assert four.pool.run(none, x).shape[1:] == rows
            assert four.pool.run(none, x, np.array([], int)).shape[1:] == rows
            assert four.pool.run(none, x, []).shape[1:] == rows
            assert four.pool.output_steps(none, []).shape == (0,)
            assert four.pool.run(none, []) == []
            assert four.pool.get_state(none).keys() == four.pool.get_state(four.slots).keys()
            four.pool.set_state(none, four.pool.get_state(none))
            assert four.pool.steps(none).shape == four.pool.output_steps(none).shape == (0,)
            four.pool.close(none)
            four.pool.reset(none)
        assert snapshot(four.pool) == before

    def test_fork_takes_one(self, four: Four) -> None:
        before = snapshot(four.pool)
        a, b, *_ = four.slots
        for wrong in ([a, b], [a], [], np.array([a])):
            with pytest.raises(ValueError, match=r"slot is .*; expected the number of one"):
                four.pool.fork(wrong)
        for wrong in (None, "a", 1.5, True):
            with pytest.raises(TypeError, match=r"slots is a .*; expected the number of a slot"):
                four.pool.fork(wrong)
        for number in (four.stale, four.foreign, 0, -1):
            with pytest.raises(ValueError, match=f"slot {number} {self.NOT_OPEN}"):
                four.pool.fork(number)
        assert snapshot(four.pool) == before


class TestGenerations:
    """A number is of one stream for ever."""

    @pytest.mark.parametrize("call", CALLS)
    def test_a_stale_number_never_reaches_the_successor(
        self, call: str, four: Four, tmp_path: Path
    ) -> None:
        pool, stale = four.pool, [four.stale]
        for _ in range(3):
            successor = pool.open(state_for(four.model, np.random.default_rng(2), None))
            assert successor & (MOST - 1) == stale[0] & (MOST - 1)
            assert successor > stale[-1]
            before = snapshot(pool)
            for number in stale:
                assert number not in pool
                with pytest.raises(ValueError, match=f"slot {number} {TestSlots.NOT_OPEN}"):
                    calls(pool, tmp_path / "saved")[call]([number])
                with pytest.raises(ValueError, match=f"slot {number} {TestSlots.NOT_OPEN}"):
                    calls(pool, tmp_path / "saved")[call]([successor, number])
            assert snapshot(pool) == before
            pool.close(successor)
            stale.append(successor)

    def test_numbers_are_never_given_again(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("gru", 2, 2), rng)
        pools = [model.pool(capacity=20) for _ in range(3)]
        seen: set[int] = set()
        live: list[tuple[Pool, int]] = []
        for _ in range(4000):
            pool = pools[rng.integers(3)]
            if live and (rng.random() < 0.5 or len(pool) == 20):
                of, slot = live.pop(rng.integers(len(live)))
                of.close(slot)
                assert slot not in of
            else:
                slot = pool.open() if len(pool) % 2 == 0 else pool.fork(int(pool.slots[0]))
                assert slot not in seen
                assert 0 < slot < 2**63
                assert slot & (MOST - 1) < 20
                seen.add(slot)
                live.append((pool, slot))
            assert [of.slots.tolist().count(slot) for of, slot in live] == [1] * len(live)
            for of, slot in live[-3:]:
                assert [slot in other for other in pools] == [other is of for other in pools]

    def test_reopening_starts_where_a_sequence_does(self, four: Four) -> None:
        initial = four.model.initial_state(None)
        rng = np.random.default_rng(3)
        for slot in four.slots:
            four.pool.set_state(slot, state_for(four.model, rng, None))
        four.pool.close(four.slots)
        for _ in range(6):
            slot = four.pool.open()
            assert_same_state(four.pool.get_state(slot), initial)
            assert four.pool.steps(slot) == 0

    def test_reopening_of_a_learned_start(self, rng: np.random.Generator) -> None:
        model = exact(every_kind(4)["learned_start"], rng)
        initial = model.initial_state(None)
        assert any(array.any() for array in initial.values())
        pool = model.pool(capacity=2)
        for _ in range(5):
            a, b = pool.open(), pool.open(state_for(model, rng, None))
            assert_same_state(pool.get_state(a), initial)
            pool.step([a, b], input_for(model, rng, 2))
            pool.reset([b, a])
            assert_same_state(pool.get_state(a), initial)
            assert_same_state(pool.get_state(b), initial)
            pool.close([a, b])


class TestLayouts:
    """x and out of run where they lie: as a server has them, a row for each client."""

    @pytest.mark.parametrize("kind", ["lstm", "embedding", "delayed"])
    @pytest.mark.parametrize("T", [1, 7])
    def test_rows_with_room_between_them(self, kind: str, T: int, rng: np.random.Generator) -> None:
        model = exact((plain(4) | every_kind(4))[kind], rng)
        pool, other = model.pool(), model.pool()
        for lengths in (None, rng.integers(0, T + 1, 5)):
            x = input_for(model, rng, T, 5)
            y = pool.run([pool.open() for _ in range(5)], x, lengths)
            wide = np.full((5, T + 2, *x.shape[2:]), -1, x.dtype)
            wide[:, 1 : T + 1] = x.swapaxes(0, 1)
            room = np.full((5, len(y) + 3, model.output_size), np.nan, model.dtype)
            out = room[:, 2 : len(y) + 2].swapaxes(0, 1)
            given = wide[:, 1 : T + 1].swapaxes(0, 1)
            assert other.run([other.open() for _ in range(5)], given, lengths, out=out) is out
            assert_same_bits(out, y)
            assert np.isnan(room[:, :2]).all()
            assert np.isnan(room[:, len(y) + 2 :]).all()

    def test_refused(self, rng: np.random.Generator) -> None:
        model = exact(plain(4)["lstm"], rng)
        pool = model.pool()
        slots = [pool.open(), pool.open()]
        x = input_for(model, rng, 3, 2)
        size = model.output_size
        room = np.zeros((2, 4, 2 * size), np.float32)
        wrong = {
            "numbers apart": room[:, :3, ::2].swapaxes(0, 1),
            "steps apart": room[:, :3, :size].swapaxes(0, 1),
            "the same row twice": np.lib.stride_tricks.as_strided(
                room, (3, 2, size), (4 * size, 0, 4)
            ),
            "backwards": np.zeros((2, 3, size), np.float32)[::-1].swapaxes(0, 1),
        }
        before = pool.get_state(slots)
        for out in wrong.values():
            with pytest.raises(ValueError, match="C-contiguous"):
                pool.run(slots, x, out=out)
        both = np.zeros((2, 5, max(size, model.input_size)), np.float32)
        given = both[:, :3, : model.input_size].swapaxes(0, 1)
        mixed = np.lib.stride_tricks.as_strided(both, (3, 2, size), (4 * size, both.strides[0], 4))
        with pytest.raises(ValueError, match="shares memory"):
            pool.run(slots, given, out=mixed)
        assert_same_state(pool.get_state(slots), before)


class TestStates:
    """What can be set is what can be got, of one stream or many."""

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            (lambda s: {"rnn.h": s["rnn.h"]}, ValueError, r"'rnn\.h'.*'rnn\.h', 'rnn\.c'"),
            (lambda s: s | {"rnn.x": s["rnn.h"]}, ValueError, r"'rnn\.x'"),
            (lambda s: {}, ValueError, r"none.*'rnn\.h', 'rnn\.c'"),
            (lambda s: s | {"rnn.h": s["rnn.h"][:, :1]}, ValueError, r"shape \(2, 1, 4\); exp"),
            (lambda s: s | {"rnn.c": s["rnn.c"][:, 0]}, ValueError, r"shape \(2, 4\); expected"),
            (lambda s: s | {"rnn.c": s["rnn.c"].swapaxes(0, 1)}, ValueError, r"\(3, 2, 4\); exp"),
            (lambda s: s | {"rnn.h": s["rnn.h"].astype("f8")}, TypeError, "float64.*float32"),
            (lambda s: s | {"rnn.h": s["rnn.h"].astype(">f4")}, TypeError, ">f4.*float32"),
            (lambda s: s | {"rnn.h": s["rnn.h"].tolist()}, TypeError, "list.*NumPy array"),
            (lambda s: s | {"rnn.h": np.ma.array(s["rnn.h"])}, TypeError, "mask"),
            (lambda s: tuple(s.values()), TypeError, r"tuple.*mapping"),
            (lambda s: None, TypeError, "NoneType.*mapping"),
        ],
    )
    def test_a_wrong_one_changes_nothing(
        self, change: Any, error: type[Exception], match: str, rng: np.random.Generator
    ) -> None:
        model = exact(recurrent("lstm", 3, 4, num_layers=2), rng)
        pool = model.pool(capacity=4)
        slots = [pool.open(state_for(model, rng, None)) for _ in range(3)]
        before = snapshot(pool)
        wrong = change(state_for(model, rng, 3))
        with pytest.raises(error, match=match):
            pool.set_state(slots, wrong)
        one = change({n: a[:, :1] for n, a in state_for(model, rng, 3).items()})
        if one is not None:  # which opens a stream where each sequence starts
            with pytest.raises((TypeError, ValueError)):
                pool.open(one)
        assert snapshot(pool) == before

    def test_as_an_unbatched_stream(self, four: Four, rng: np.random.Generator) -> None:
        state = state_for(four.model, rng, None)
        slot = four.pool.open(state)
        assert_same_state(four.pool.get_state(slot), state)
        stream = four.model.stream()
        stream.state = four.pool.get_state(slot)
        x = input_for(four.model, rng, 9)
        assert_same_bits(four.pool.run(slot, x), stream.run(x))
        wide = {n: np.repeat(a, 2, axis=-1)[..., ::2] for n, a in state.items()}
        four.pool.set_state([slot], {n: np.asfortranarray(a[:, None]) for n, a in wide.items()})
        assert_same_state(four.pool.get_state(slot), state)

    def test_are_copies(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("gru", 3, 4), rng)
        pool, given = model.pool(), state_for(model, rng, None)
        kept = {n: a.copy() for n, a in given.items()}
        slot = pool.open(given)
        given["rnn.h"][:] = 9
        assert_same_state(pool.get_state(slot), kept)
        pool.get_state(slot)["rnn.h"][:] = 9
        pool.get_state([slot])["rnn.h"][:] = 9
        assert_same_state(pool.get_state(slot), kept)
        initial = model.initial_state(None)["rnn.h"]
        pool.reset(slot)
        pool.step(slot, input_for(model, rng))
        assert_same_state(pool.get_state(pool.open()), {"rnn.h": np.zeros_like(initial)})

    def test_counts_must_be_whole_but_need_not_agree(self, rng: np.random.Generator) -> None:
        model = exact(every_kind(4)["delayed"], rng)
        pool = model.pool()
        slots = [pool.open(state_for(model, rng, None)) for _ in range(6)]
        before = snapshot(pool)
        name = "a.count"
        for wrong in (-1, 2**63 - 1, -(2**63)):
            state = pool.get_state(slots)
            state[name][0, 3] = wrong
            message = f"'{name}' holds {wrong}; expected a count of steps"
            with pytest.raises(ValueError, match=message):
                pool.set_state(slots, state)
            with pytest.raises(ValueError, match=message):
                pool.open(row_of(state, 3))
        with pytest.raises(TypeError, match=f"'{name}' is of float32; expected .* int64"):
            pool.set_state(slots, {**state, name: state[name].astype("f4")})
        assert snapshot(pool) == before
        state = pool.get_state(slots)
        state[name][0] = np.arange(6)
        pool.set_state(slots, state)
        assert_same_state(pool.get_state(slots), state)

    def test_a_fork_goes_its_own_way(self, four: Four, rng: np.random.Generator) -> None:
        a = four.slots[0]
        twin = four.pool.fork(a)
        assert_same_state(four.pool.get_state(twin), four.pool.get_state(a))
        assert four.pool.steps(twin) == four.pool.steps(a) == 5
        x = input_for(four.model, rng, 3)
        kept = four.pool.get_state(a)
        y = four.pool.run(twin, x)
        assert_same_state(four.pool.get_state(a), kept)
        assert_same_bits(four.pool.run(a, x), y)
        four.pool.close(a)
        assert four.pool.steps(twin) == 8


class TestCapacity:
    def test_exceeded(self, four: Four) -> None:
        four.pool.open()
        four.pool.open()
        before = snapshot(four.pool)
        message = r"all 6 slots of this pool are taken; close streams.*capacity=.*growth="
        state = state_for(four.model, np.random.default_rng(1), None)
        for _ in range(3):
            for call in (four.pool.open, lambda: four.pool.open(state)):
                with pytest.raises(RuntimeError, match=message):
                    call()
            with pytest.raises(RuntimeError, match=message):
                four.pool.fork(four.slots[0])
        assert snapshot(four.pool) == before
        four.pool.close(four.slots[1])
        four.pool.open()
        with pytest.raises(RuntimeError, match=message):
            four.pool.open()

    def test_growth_keeps_every_stream(self, rng: np.random.Generator) -> None:
        """Over several pages of states, a megabyte each."""
        model = exact(recurrent("gru", 3, 64), rng)
        pool, slots, N = model.pool(capacity=3, growth=700), [], 9000
        states = np.repeat(np.arange(N, dtype="f4")[:, None], 64, 1)
        for i in range(N):
            slots.append(pool.open({"rnn.h": states[i : i + 1]}))
            assert pool.capacity == 3 + -(-max(0, i - 2) // 700) * 700
        assert_same_bits(pool.get_state(slots)["rnn.h"][0], states)
        assert len({slot & (MOST - 1) for slot in slots}) == N
        pool.step(slots[::2], input_for(model, rng, N // 2))
        assert_same_bits(pool.get_state(slots[1::2])["rnn.h"][0], states[1::2])

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"capacity": 0}, ValueError, "capacity is 0; expected 1 to 16777216"),
            ({"capacity": -(2**70)}, ValueError, f"capacity is -{2**70}; expected 1 to 16777216"),
            ({"capacity": MOST + 1}, ValueError, "capacity is 16777217; expected 1 to 16777216"),
            ({"capacity": 2**70}, ValueError, f"capacity is {2**70}; expected 1 to 16777216"),
            ({"growth": -1}, ValueError, "growth is -1; expected 0 to 16777216"),
            ({"growth": MOST + 1}, ValueError, "growth is 16777217; expected 0 to 16777216"),
            ({"growth": 2**70}, ValueError, f"growth is {2**70}; expected 0 to 16777216"),
            ({"max_batch": 0}, ValueError, "max_batch is 0; expected at least 1"),
            ({"max_pending": 0}, ValueError, "max_pending is 0; expected at least 1"),
            (
                {"max_wait": -1},
                ValueError,
                "max_wait is -1; expected microseconds, 0 to 1000000000",
            ),
            ({"max_wait": 10**9 + 1}, ValueError, "expected microseconds, 0 to 1000000000"),
            ({"max_wait": 10**400}, ValueError, "expected microseconds, 0 to 1000000000"),
            ({"max_wait": -1e-9}, ValueError, "max_wait is -1e-09; expected microseconds"),
            ({"max_wait": np.nan}, ValueError, "max_wait is nan; expected microseconds"),
            ({"max_wait": np.inf}, ValueError, "max_wait is inf; expected microseconds"),
            *(
                ({name: value}, TypeError, f"{name} is .*; expected an integer")
                for name in ("capacity", "growth", "max_batch", "max_pending")
                for value in (True, np.True_, 1.0, "1", None, [1], np.array([1]), 1j, b"1")
            ),
            *(
                (
                    {"max_wait": value},
                    TypeError,
                    "max_wait is .*; expected a number of microseconds",
                )
                for value in ("soon", None, 1j, [1], b"1", True, np.True_, np.array([1.0, 2.0]))
            ),
        ],
    )
    def test_wrong_options(
        self, options: dict[str, Any], error: type[Exception], match: str, rng: np.random.Generator
    ) -> None:
        model = exact(recurrent("gru", 3, 4), rng)
        with pytest.raises(error, match=match):
            model.pool(**options)
        with pytest.raises(error, match=match):
            Pool(model, **options)

    def test_numpy_integers_are_integers(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("gru", 3, 4), rng)
        pool = model.pool(np.int8(2), np.uint64(1), max_batch=np.int16(3), max_wait=np.float32(5))
        assert [pool.open() in pool for _ in range(5)] == [True] * 5
        assert (pool.capacity, len(pool)) == (5, 5)

    def test_a_model_that_looks_ahead_has_none(self, rng: np.random.Generator) -> None:
        for kind in set(every_kind(1)) - set(STREAMING):
            model = exact(every_kind(1)[kind], rng)
            with pytest.raises(ValueError, match=r"no output before the whole.*model\(x\)"):
                model.pool()

    def test_outlives_its_model(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("gru", 3, 4), rng)
        x = input_for(model, rng, 5)
        y, _ = model(x)
        pool = model.pool()
        assert pool.model is model
        assert repr(model) in repr(pool)
        assert "0 of 1024 slots open" in repr(pool)
        del model
        assert_same_bits(pool.run(pool.open(), x), y)
        for name in ("model", "capacity", "growth", "slots", "network"):
            with pytest.raises(AttributeError):
                setattr(pool, name, None)


class TestInput:
    """Whatever is refused, no stream has made a step."""

    def check(self, four: Four, given: Iterable[tuple[Callable[[], Any], Any, str]]) -> None:
        before = snapshot(four.pool)
        for call, error, match in given:
            with pytest.raises(error, match=match):
                call()
            assert snapshot(four.pool) == before

    def test_features(self, rng: np.random.Generator) -> None:
        four = Four(exact(recurrent("lstm", 3, 4), rng), rng)
        pool, slots, a = four.pool, four.slots, four.slots[0]
        x = input_for(four.model, rng, 2, 4)
        step, one, block = x[0], x[0, 0], x[:, 0].copy()
        masked = np.ma.array(step)
        wrong: list[tuple[Any, Any, str]] = [
            (step.astype("f8"), TypeError, "x has dtype float64; expected float32"),
            (step.astype("f2"), TypeError, "x has dtype float16; expected float32"),
            (step.astype(int), TypeError, "x has dtype int64; expected float32"),
            (step.astype(">f4"), TypeError, "x has dtype >f4 of another byte order"),
            (step.astype(object), TypeError, "x has dtype object"),
            (masked, TypeError, "x is a numpy.ma.*MaskedArray"),
            (step.tolist(), TypeError, "x is a list"),
            (None, TypeError, "x is a NoneType"),
            (3.0, TypeError, "x is a float"),
            (one, ValueError, r"x has shape \(3,\); expected \(4, 3\)"),
            (step[:3], ValueError, r"x has shape \(3, 3\); expected \(4, 3\)"),
            (step[:, :2], ValueError, r"x has shape \(4, 2\); expected \(4, 3\)"),
            (x, ValueError, r"x has shape \(2, 4, 3\); expected \(4, 3\)"),
            (step.T.copy(), ValueError, r"x has shape \(3, 4\)"),
        ]
        given = [(lambda v=v: pool.step(slots, v), e, m) for v, e, m in wrong]
        given += [
            (lambda: pool.step(a, step), ValueError, r"shape \(4, 3\); expected \(3,\)"),
            (lambda: pool.step([a], one), ValueError, r"shape \(3,\); expected \(1, 3\)"),
            (lambda: pool.run(slots, step), ValueError, r"shape \(4, 3\); expected \(T, 4, 3\)"),
            (lambda: pool.run(slots, x[:, :3]), ValueError, r"expected \(T, 4, 3\)"),
            (lambda: pool.run(slots, x.astype("f8")), TypeError, "x has dtype float64"),
            (lambda: pool.run(slots, np.ma.array(x)), TypeError, "MaskedArray"),
            (lambda: pool.run(a, x), ValueError, r"expected \(T, 3\)"),
            (lambda: pool.run(a, [block]), TypeError, r"x is a list; expected a NumPy array"),
            (lambda: pool.run(slots, [block] * 3), ValueError, "list of 3 arrays; .* 4 slots"),
            (lambda: pool.run(slots, [block] * 5), ValueError, "list of 5 arrays; .* 4 slots"),
            (lambda: pool.run(slots, []), ValueError, "list of 0 arrays; .* 4 slots"),
            (lambda: pool.run(slots, [*[block] * 3, None]), TypeError, "x is a NoneType"),
            (lambda: pool.run(slots, [*[block] * 3, one]), ValueError, r"expected \(T, 3\)"),
            (lambda: pool.run(slots, [*[block] * 3, block.astype("f8")]), TypeError, "float64"),
            (lambda: pool.run(slots, [block] * 4, [2] * 4), TypeError, "neither lengths= nor out="),
            (lambda: pool.run(slots, [block] * 4, out=x), TypeError, "neither lengths= nor out="),
            (lambda: pool.run(slots, {}), ValueError, "x has nothing; expected exactly 'input'"),
            (lambda: pool.run(slots, iter([block] * 4)), TypeError, "x is a list_iterator"),
            (lambda: pool.run(a, block, [2]), TypeError, "lengths are those of several slots"),
            (lambda: pool.run(a, block, 2), TypeError, "lengths are those of several slots"),
        ]
        for lengths, error, match in (
            ([2, 2, 2], ValueError, r"lengths has shape \(3,\); expected \(4,\)"),
            (2, ValueError, r"lengths has shape \(\); expected \(4,\)"),
            ([2, 3, 2, 2], ValueError, "lengths holds 3; expected 0 to 2"),
            ([2, -1, 2, 2], ValueError, "lengths holds -1; expected 0 to 2"),
            (np.array([2**64 - 1, 0, 0, 0], "u8"), ValueError, f"lengths holds {2**64 - 1}"),
            ([2.0, 1, 1, 1], TypeError, "lengths is of dtype float64"),
            ([True, True, False, True], TypeError, "lengths is of dtype bool"),
            ("2222", TypeError, "lengths is of dtype <U4"),
        ):
            given.append((lambda v=lengths: pool.run(slots, x, v), error, match))
        self.check(four, given)

    def test_x_that_lies_differently_in_memory(self, four: Four, rng: np.random.Generator) -> None:
        pool, slots = four.pool, four.slots
        x = input_for(four.model, rng, 6, 4)
        start, found = pool.get_state(slots), []
        strided = np.repeat(x, 3, axis=-1)[..., 1::3]
        frozen = x.copy()
        frozen.flags.writeable = False
        raw = np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
        for one in (x, strided, np.asfortranarray(x), x[::-1].copy()[::-1], frozen, raw):
            pool.set_state(slots, start)
            y = [pool.step(slots, one[0]), pool.run(slots, one[1:])]
            y += pool.run(slots, list(one.swapaxes(0, 1)))
            found.append((y, pool.get_state(slots)))
        for y, after in found[1:]:
            for got, expected in zip(y, found[0][0], strict=True):
                assert_same_bits(got, expected)
            assert_same_state(after, found[0][1])

    def test_tokens(self, rng: np.random.Generator) -> None:
        four = Four(exact(plain(4)["embedding"], rng), rng)
        pool, slots, a = four.pool, four.slots, four.slots[0]
        good = np.array([1, 2, 3, 4])
        given: list[tuple[Any, Any, str]] = []
        for bad in (-1, 11, 2**40, -(2**63)):
            one = good.copy()
            one[2] = bad
            block = np.stack([good, one])
            text = f"token {bad} at index .*; the model knows tokens 0 to 10"
            given += [
                (lambda v=one: pool.step(slots, v), ValueError, text),
                (lambda v=block: pool.run(slots, v), ValueError, text),
                (lambda v=one: pool.run(slots, [good, good, v, good]), ValueError, text),
                (lambda v=bad: pool.step(a, v), ValueError, f"token {bad} is out of range"),
                (lambda v=one: pool.run(a, v), ValueError, text),
            ]
        padded = np.array([[1, 2, 3, 4], [1, 2, 11, 4], [-7, 99, 3, -1]])
        given += [
            (lambda: pool.run(slots, padded, [3, 2, 1, 2]), ValueError, "token -7"),
            (lambda: pool.run(slots, padded, [2, 2, 2, 2]), ValueError, "token 11"),
            (lambda: pool.run(slots, padded, [2, 3, 1, 2]), ValueError, "token 99"),
            (lambda: pool.step(slots, good.astype("f4")), TypeError, "x has dtype float32"),
            (lambda: pool.step(slots, good > 1), TypeError, "x has dtype bool"),
            (lambda: pool.step(slots, good.tolist()), TypeError, "x is a list"),
            (lambda: pool.step(slots, np.ma.array(good)), TypeError, "MaskedArray"),
            (lambda: pool.step(slots, good[:3]), ValueError, r"shape \(3,\); expected \(4,\)"),
            (lambda: pool.step(slots, 3), ValueError, r"shape \(\); expected \(4,\)"),
            (lambda: pool.step(a, True), TypeError, "x is a bool"),
            (lambda: pool.step(a, 1.0), TypeError, "x is a float"),
            (lambda: pool.step(a, good), ValueError, r"shape \(4,\); expected \(\)"),
            (lambda: pool.step(a, 2**70), ValueError, f"token {2**70} is out of range"),
            (lambda: pool.run(slots, good), ValueError, r"expected \(T, 4\)"),
        ]
        self.check(four, given)
        state = pool.get_state(slots)
        expected = pool.step(slots, good)
        for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "u8", ">i4", ">i8"):
            pool.set_state(slots, state)
            assert_same_bits(pool.step(slots, good.astype(dtype)), expected)
        y = pool.run(slots, padded, [2, 2, 1, 2])
        assert y[1, [0, 1, 3]].any(1).all()
        assert not y[1, 2].any()
        assert not y[2].any()

    def test_out(self, rng: np.random.Generator) -> None:
        four = Four(exact(recurrent("lstm", 4, 4), rng), rng)
        pool, slots, a = four.pool, four.slots, four.slots[0]
        memory = np.zeros(64, "f4")
        x = memory[:16].reshape(4, 4)
        x[:] = input_for(four.model, rng, 4)
        good = np.full((4, 4), 7, "f4")
        frozen = good.copy()
        frozen.flags.writeable = False
        wrong: list[tuple[Any, Any, str]] = [
            (x, ValueError, "out shares memory with x"),
            (memory[4:20].reshape(4, 4), ValueError, "out shares memory with x"),
            (memory[15:31].reshape(4, 4), ValueError, "out shares memory with x"),
            (good[:3], ValueError, r"out has shape \(3, 4\); expected \(4, 4\)"),
            (good[0], ValueError, r"out has shape \(4,\); expected \(4, 4\)"),
            (good[None], ValueError, r"out has shape \(1, 4, 4\); expected \(4, 4\)"),
            (good.astype("f8"), TypeError, "out has dtype <f8; expected float32"),
            (good.astype(">f4"), TypeError, "out has dtype >f4; expected float32"),
            (frozen, ValueError, "writeable"),
            (np.zeros((4, 8), "f4")[:, ::2], ValueError, "C-contiguous"),
            (np.zeros((4, 4), "f4").T, ValueError, "C-contiguous"),
            (np.zeros(65, np.uint8)[1:].view("f4").reshape(4, 4), ValueError, "aligned"),
            (np.ma.array(good), TypeError, "without a mask"),
            (good.tolist(), TypeError, "out is a list"),
            (3, TypeError, "out is a int"),
        ]
        given = [(lambda v=v: pool.step(slots, x, out=v), e, m) for v, e, m in wrong]
        block = input_for(four.model, rng, 2, 4)
        given += [
            (lambda: pool.run(slots, block, out=good), ValueError, r"expected \(2, 4, 4\)"),
            (lambda: pool.run(slots, block, out=block), ValueError, "shares memory"),
            (lambda: pool.run(slots, block, [1] * 4, out=block), ValueError, "shares memory"),
            (lambda: pool.step(a, x[0], out=x[0]), ValueError, "shares memory"),
            (lambda: pool.step(a, x[0], out=good), ValueError, r"expected \(4,\)"),
            (lambda: pool.run(a, x, out=good[:3]), ValueError, r"expected \(4, 4\)"),
        ]
        self.check(four, given)
        assert (good == 7).all()
        after = memory[16:32].reshape(4, 4)  # right behind x
        start = pool.get_state(slots)
        expected = pool.step(slots, x)
        pool.set_state(slots, start)
        assert pool.step(slots, x, out=after) is after
        assert_same_bits(after, expected)

    def test_out_of_a_call_that_gives_fewer_rows(self, rng: np.random.Generator) -> None:
        """Rows that are not given are zeros in `out` too."""
        model = exact(every_kind(4)["delayed"], rng)
        pool = model.pool()
        slots = [pool.open(state_for(model, rng, None)) for _ in range(9)]
        x, lengths = input_for(model, rng, 6, 9), rng.integers(0, 7, 9)
        counts = pool.output_steps(slots, lengths)
        assert len(set(counts.tolist())) > 1
        start = pool.get_state(slots)
        out = np.full((counts.max(), 9, model.output_size), np.nan, "f4")
        assert pool.run(slots, x, lengths, out=out) is out
        pool.set_state(slots, start)
        assert_same_bits(out, pool.run(slots, x, lengths))
        assert (out.any(2).sum(0) == counts).all()
        step = np.full((9, model.output_size), np.nan, "f4")
        gives = pool.output_steps(slots).astype(bool)
        assert pool.step(slots, x[0], out=step) is step
        assert 0 < gives.sum() < 9
        assert (step.any(1) == gives).all()

    def test_a_list_that_changes_while_it_is_read(self, python: Callable[..., str]) -> None:
        """Converting an array runs Python code, which may be anyone's."""
        code = """
            import numpy as np
            from models import build, recurrent

            class Changing(np.ndarray):
                def __array_finalize__(self, _):
                    blocks.clear()

            pool = build(recurrent("lstm", 3, 4), np.random.default_rng(1)).pool()
            slots = [pool.open() for _ in range(3)]
            blocks = []
            first = np.zeros((4, 6), "f4").view(Changing)[:, ::2]
            blocks += [first, np.zeros((2, 3), "f4"), np.zeros((2, 3), "f4")]
            try:
                print([len(y) for y in pool.run(slots, blocks)])
            except (ValueError, TypeError, IndexError) as error:
                print(type(error))
            pool.step(slots, np.zeros((3, 3), "f4"))
            """
        python(code)

    def test_a_call_from_within_a_call_is_refused(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("lstm", 3, 4), rng)
        pool = model.pool()
        slots = [pool.open() for _ in range(2)]
        attempts: list[Callable[[], Any]] = []
        refused = []

        class Calling(np.ndarray):
            @property
            def __class__(self) -> Any:
                for attempt in attempts:
                    try:
                        attempt()
                    except RuntimeError as error:
                        refused.append(str(error))
                return type(self)

        x = input_for(model, rng, 2)
        calling = np.repeat(x, 2, axis=1).view(Calling)[:, ::2]
        attempts += [lambda: pool.close(slots), pool.open, lambda: pool.reset(slots[0])]
        y = pool.step(slots, calling)
        count = len(refused)
        attempts.clear()
        assert count >= 3
        assert all("this Pool is in use" in text for text in refused)
        assert_same_bits(y, model(x[None])[0][0])
        assert pool.slots.tolist() == slots


class TestOutputSteps:
    def test_of_plain_models(self, rng: np.random.Generator) -> None:
        four = Four(exact(recurrent("lstm", 3, 4), rng), rng)
        pool, slots = four.pool, four.slots
        before = snapshot(pool)
        assert pool.output_steps(slots).tolist() == [1] * 4
        assert pool.output_steps(slots, 5).tolist() == [5] * 4
        assert pool.output_steps(slots, [0, 1, 2, 3]).tolist() == [0, 1, 2, 3]
        assert pool.output_steps(slots[0], 7) == 7
        assert type(pool.output_steps(slots[0])) is int
        assert pool.output_steps(slots).dtype == np.int64
        assert snapshot(pool) == before

    @pytest.mark.parametrize("kind", ["lstm", "delayed"])
    @pytest.mark.parametrize(
        ("steps", "error", "match"),
        [
            (-1, ValueError, "steps is -1; expected an integer from 0 on"),
            ([1, -1, 1, 1], ValueError, "expected an integer from 0 on, or one a slot"),
            ([1, 2, 3], ValueError, "expected an integer from 0 on, or one a slot"),
            ([[1, 2, 3, 4]], ValueError, "expected an integer from 0 on, or one a slot"),
            (1.0, TypeError, "steps is of dtype float64; expected integers"),
            (True, TypeError, "steps is of dtype bool; expected integers"),
            ("2", TypeError, "steps is of dtype <U1; expected integers"),
            (None, TypeError, "steps is of dtype object; expected integers"),
            (2**63, ValueError, "steps is 9223372036854775808; expected an integer"),
            (np.uint64(2**64 - 1), ValueError, "expected an integer from 0 on"),
        ],
    )
    def test_refused(
        self, kind: str, steps: Any, error: type[Exception], match: str, rng: np.random.Generator
    ) -> None:
        four = Four(exact((plain(4) | every_kind(4))[kind], rng), rng)
        with pytest.raises(error, match=match):
            four.pool.output_steps(four.slots, steps)

    @pytest.mark.parametrize("kind", STREAMING)
    def test_of_any_number_of_steps(self, kind: str, rng: np.random.Generator) -> None:
        model = exact(every_kind(3)[kind], rng)
        pool = model.pool()
        slots = [pool.open(state_for(model, rng, None)) for _ in range(8)]
        for T in range(12):
            expected = [len(pool.run(pool.fork(slot), input_for(model, rng, T))) for slot in slots]
            assert pool.output_steps(slots, T).tolist() == expected
        far = pool.output_steps(slots, 2**60)
        assert (far > 2**50).all()
        assert (far <= 2**60).all()


class TestSteps:
    def test_counts_every_way(self, four: Four, rng: np.random.Generator) -> None:
        pool, (a, b, c, d) = four.pool, four.slots
        model = four.model
        assert pool.steps([d, a]).tolist() == [5, 5]
        pool.step([a, c], input_for(model, rng, 2))
        assert pool.steps([a, b, c, d]).tolist() == [6, 5, 6, 5]
        pool.run([d, c], input_for(model, rng, 4, 2))
        assert pool.steps([a, b, c, d]).tolist() == [6, 5, 10, 9]
        pool.run([d, a, b], input_for(model, rng, 4, 3), [0, 3, 4])
        assert pool.steps([a, b, c, d]).tolist() == [9, 9, 10, 9]
        pool.run([b, a], [input_for(model, rng, 0), input_for(model, rng, 2)])
        assert pool.steps([a, b, c, d]).tolist() == [11, 9, 10, 9]
        twin = pool.fork(c)
        pool.step(twin, input_for(model, rng))
        assert (pool.steps(twin), pool.steps(c)) == (11, 10)
        pool.set_state(a, pool.get_state(b))
        assert pool.steps(a) == 11
        pool.reset([c, a])
        assert pool.steps([a, b, c, d]).tolist() == [0, 9, 0, 9]
        assert pool.steps(pool.slots).dtype == np.int64


class TestIdle:
    """By the order of last use; what a clock says is not looked at more closely than 20 ms."""

    def test_order_and_age(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("gru", 3, 4), rng)
        pool = model.pool(capacity=8)
        a, b, c, d, e, f = (pool.open() for _ in range(6))
        x = input_for(model, rng, 6)
        time.sleep(0.02)
        pool.step([b, a], x[:2])
        time.sleep(0.02)
        pool.run([c], x[:, None])
        pool.run(d, x)
        pool.reset(e)
        between = time.monotonic()
        time.sleep(0.02)
        pool.set_state([f], pool.get_state([a]))
        for _ in range(2):  # what only looks is no use
            pool.get_state([a, b]), pool.steps(c), pool.output_steps(d), pool.slots, a in pool
            pool.close(pool.fork(c))
            assert pool.idle(0).tolist() == [a, b, c, d, e, f]
        took = np.inf
        while took > 0.01:  # else the age asked for is no longer that of `between`
            now = time.monotonic()
            older = pool.idle(now - between).tolist()
            took = time.monotonic() - now
        assert older == [a, b, c, d, e]
        assert pool.idle(3600).tolist() == pool.idle(np.inf).tolist() == []
        assert pool.idle(0).dtype == np.int64

    def test_evict_closes_them(self, rng: np.random.Generator) -> None:
        model = exact(recurrent("gru", 3, 4), rng)
        took = np.inf
        while took > 0.01:  # else the age asked for is no longer that of `between`
            pool = model.pool(capacity=4)
            a, b, c, d = (pool.open() for _ in range(4))
            time.sleep(0.02)
            between = time.monotonic()
            time.sleep(0.02)
            pool.step([c, a], input_for(model, rng, 2))
            assert pool.evict(3600).tolist() == []
            now = time.monotonic()
            evicted = pool.evict(now - between)
            took = time.monotonic() - now
        assert evicted.tolist() == [b, d]
        assert evicted.dtype == np.int64
        assert sorted(pool.slots.tolist()) == [a, c]
        with pytest.raises(ValueError, match=f"slot {d} is not open in this pool.*or evicted"):
            pool.step(d, input_for(model, rng))
        assert pool.evict(0).tolist() == [a, c]
        assert len(pool) == 0
        assert pool.evict(0).tolist() == []
        assert len({pool.open() for _ in range(4)}) == 4

    @pytest.mark.parametrize("seconds", ["1", None, [1.0], 1j])
    def test_refused(self, seconds: Any, four: Four) -> None:
        before = snapshot(four.pool)
        for call in (four.pool.idle, four.pool.evict):
            with pytest.raises(TypeError):
                call(seconds)
        assert snapshot(four.pool) == before

    @pytest.mark.parametrize("method", ["idle", "evict"])
    def test_what_is_no_time_evicts_nobody(self, four: Four, method: str) -> None:
        ask = getattr(four.pool, method)
        for seconds in (np.nan, -1, -1e-9, np.float32(-1), np.int64(-3), -np.inf, -(10**400)):
            with pytest.raises(ValueError, match=r"^seconds is .*; expected seconds, 0 or more$"):
                ask(seconds)
        for seconds in (None, "1", b"1", True, np.True_, 1j, [1], np.array([1.0, 2.0])):
            with pytest.raises(TypeError, match=r"^seconds is .*; expected a number of seconds$"):
                ask(seconds)
        for seconds in (10**400, np.int64(3600), np.float32(1e9), np.array(1e9), np.inf):
            assert ask(seconds).tolist() == []
        assert len(four.pool) == 4
        assert len(four.pool.evict(np.int64(0))) == 4


def test_a_pool_in_use_raises_and_stays_whole(rng: np.random.Generator, tmp_path: Path) -> None:
    """From a second thread, while a long step runs without the GIL."""
    model = exact(recurrent("lstm", 512, 1024), rng)
    pool, twin = model.pool(capacity=8), model.pool(capacity=8)
    slots, others = ([of.open() for _ in range(4)] for of in (pool, twin))
    block = input_for(model, rng, 300, 4)
    results: list[np.ndarray] = []

    def work() -> None:
        while not results:  # until the pool is not just being asked
            with contextlib.suppress(RuntimeError):
                results.append(pool.run(slots, block))

    worker = threading.Thread(target=work)
    attempts = {
        **{name: lambda do=do: do(slots) for name, do in calls(pool, tmp_path / "s").items()},
        "open": pool.open,
        "fork": lambda: pool.fork(slots[0]),
        "idle": lambda: pool.idle(0),
        "evict": lambda: pool.evict(0),
        "slots": lambda: pool.slots,
        "in": lambda: slots[0] in pool,
    }
    worker.start()
    refused = None
    while refused is None and not results:
        try:
            pool.steps(slots)
        except RuntimeError as error:
            refused = error
    assert refused is not None, "the worker was never met at work"
    assert "model.pool()" in str(refused)
    for name, attempt in attempts.items():
        assert not results, f"the worker finished before {name}; give it a longer block"
        with pytest.raises(RuntimeError, match="this Pool is in use by another thread"):
            attempt()
    worker.join()
    assert not (tmp_path / "s").exists()
    assert_same_bits(results[0], twin.run(others, block))
    assert pool.steps(slots).tolist() == [300] * 4
    assert_same_state(pool.get_state(slots), twin.get_state(others))
    assert_same_bits(pool.step(slots, block[0]), twin.step(others, block[0]))


def test_every_kind_is_tried() -> None:
    assert {"delayed", "frames", "mean", "last", "learned_start", "features"} <= set(STREAMING)
    assert fastlstm.Pool is Pool
