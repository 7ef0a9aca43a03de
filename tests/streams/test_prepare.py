"""What is prepared changes no bit: random schedules of streams and pools, beside others that do all
but prepare.
"""

from __future__ import annotations

import copy
import pickle
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

import fastlstm
from fastlstm import Model, Stream

TURNS = 40


def layers_of(kind: str, isa: str) -> tuple[spec.Layer, ...]:
    """A chain of a kind, of sizes that are odd for the lanes of a kernel."""
    L = LANES[isa]
    if kind in CELLS:
        return (recurrent(kind, L + 1, 2 * L + 3, num_layers=2),)
    if kind == "tokens":
        return (spec.Embedding("e", 11, 5), recurrent("gru", 5, 2 * L + 3))
    return every_kind(L)[kind]


def same(one: Any, other: Any) -> None:
    """Both are None, or arrays of the same bits."""
    assert (one is None) == (other is None)
    if one is not None:
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


class Pair:
    """A stream that prepares now and then, and another that is asked for all else."""

    def __init__(self, model: Model, batch: int | None, rng: np.random.Generator, path: Path):
        self.model, self.batch, self.rng, self.path = model, batch, rng, path
        self.rows = () if batch is None else (batch,)
        self.streams = [model.stream(batch), model.stream(batch)]

    def both(self, call: Any) -> None:
        same(*map(call, self.streams))

    def turn(self) -> None:
        rng, rows = self.rng, self.rows
        if rng.integers(2):
            for _ in range(rng.integers(1, 3)):
                self.streams[0].prepare()
        kind = rng.choice(
            ["step"] * 8 + ["run", "reset", "rows", "state", "clone", "load", "flush"]
        )
        if kind == "step":
            x = input_for(self.model, rng, *rows)
            self.both(lambda stream: stream.step(x))
        elif kind == "run":
            x = input_for(self.model, rng, int(rng.integers(4)), *rows)
            self.both(lambda stream: stream.run(x))
        elif kind == "reset":
            self.both(Stream.reset)
        elif kind == "rows" and self.batch and self.model._network.keeps_steps:
            some = rng.integers(0, 2, self.batch) > 0
            self.both(lambda stream: stream.reset(some))
        elif kind == "state":
            state = state_for(self.model, rng, self.batch)
            self.both(lambda stream: setattr(stream, "state", state))
        elif kind == "clone":
            how = [Stream.clone, copy.copy, lambda s: pickle.loads(pickle.dumps(s))]
            self.streams = list(map(how[rng.integers(3)], self.streams))
        elif kind == "load":
            self.streams[0].save(self.path)
            for stream in self.streams:
                stream.load(self.path)
        elif kind == "flush":
            self.both(Stream.flush)
        states = [stream.state for stream in self.streams]
        for name, part in states[0].items():
            same(part, states[1][name])
        assert self.streams[0].steps == self.streams[1].steps


@pytest.mark.parametrize(("kind", "isa"), by_turns([*CELLS, "tokens", *STREAMING]))
def test_streams(kind: str, isa: str, rng: np.random.Generator, tmp_path: Path) -> None:
    for dtype in (np.float32, np.float64) if isa == "scalar" else (np.float32,):
        for threads in (1, 2):
            model = build(layers_of(kind, isa), rng, dtype, isa=isa, threads=threads)
            for batch in (None, 3):
                pair = Pair(model, batch, rng, tmp_path / "state")
                for _ in range(TURNS):
                    pair.turn()


@pytest.mark.parametrize("isa", ISAS)
def test_large_ones_on_threads(isa: str, rng: np.random.Generator) -> None:
    """Of which threads share the panels, or the rows; and which give back the GIL."""
    layers = recurrent("lstm", 40, 200), recurrent("gru", 200, 150, name="second")
    model = build(layers, rng, isa=isa, threads=3)
    for batch in (1, 2, 30):
        plain, prepared = model.stream(batch), model.stream(batch)
        for _ in range(4):
            x = input_for(model, rng, batch)
            prepared.prepare()
            same(plain.step(x), prepared.step(x))


class Pools:
    """A pool that prepares some slots now and then, and another that is asked for all else."""

    def __init__(self, model: Model, rng: np.random.Generator, path: Path):
        self.model, self.rng, self.path = model, rng, path
        self.pools = [model.pool(3, growth=4), model.pool(3, growth=4)]
        self.slots: list[tuple[int, int]] = []

    def some(self) -> list[np.ndarray]:
        """Slots in some order, by pool."""
        n = self.rng.integers(1, len(self.slots) + 1)
        chosen = self.rng.permutation(np.array(self.slots))[:n]
        return [chosen[:, 0].copy(), chosen[:, 1].copy()]

    def turn(self) -> None:
        rng = self.rng
        if len(self.slots) < 2 or rng.integers(6) == 0:
            a, b = self.pools
            self.slots.append((a.open(), b.open()))
        if rng.integers(2):
            self.pools[0].prepare(self.some()[0])
        if rng.integers(8) == 0:
            self.pools[0].prepare(self.slots[0][0])
        kind = rng.choice(["step"] * 8 + ["run", "list", "reset", "state", "fork", "close", "load"])
        each = self.some()
        N = len(each[0])
        if kind == "step":
            x = input_for(self.model, rng, N)
            same(*(pool.step(slots, x) for pool, slots in zip(self.pools, each, strict=True)))
        elif kind == "run":
            x = input_for(self.model, rng, int(rng.integers(4)), N)
            same(*(pool.run(slots, x) for pool, slots in zip(self.pools, each, strict=True)))
        elif kind == "list":
            x = [input_for(self.model, rng, int(n)) for n in rng.integers(0, 3, N)]
            lists = [pool.run(slots, x) for pool, slots in zip(self.pools, each, strict=True)]
            for one, other in zip(*lists, strict=True):
                same(one, other)
        elif kind == "reset":
            for pool, slots in zip(self.pools, each, strict=True):
                pool.reset(slots)
        elif kind == "state":
            state = state_for(self.model, rng, N)
            for pool, slots in zip(self.pools, each, strict=True):
                pool.set_state(slots, state)
        elif kind == "fork":
            a, b = self.slots[0]
            self.slots.append((self.pools[0].fork(a), self.pools[1].fork(b)))
        elif kind == "close":
            a, b = self.slots.pop()
            self.pools[0].close(a)
            self.pools[1].close(b)
        elif kind == "load":
            a, b = self.pools[0], self.pools[1]
            a.save(self.path, each[0][0])
            pair = (a.load(self.path)[int(each[0][0])], b.load(self.path)[int(each[0][0])])
            self.slots.append(pair)
        for a, b in self.slots:
            assert self.pools[0].steps(a) == self.pools[1].steps(b)


@pytest.mark.parametrize(("kind", "isa"), by_turns([*CELLS, "tokens", *STREAMING]))
def test_pools(kind: str, isa: str, rng: np.random.Generator, tmp_path: Path) -> None:
    for threads in (1, 2):
        pools = Pools(
            build(layers_of(kind, isa), rng, isa=isa, threads=threads), rng, tmp_path / "s"
        )
        for _ in range(TURNS):
            pools.turn()


@pytest.mark.parametrize("isa", ISAS)
def test_other_weights_drop_it(isa: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """Twice, so that the second may lie where the first did."""
    layers = (recurrent("lstm", 7, 19, num_layers=2),)
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        Model(model_file(layers, rng)).save(path)
    model = build(layers, rng, isa=isa)
    x = rng.standard_normal((8, 3, 7)).astype(np.float32)
    plain, prepared = model.stream(3), model.stream(3)
    pool = model.pool(3)
    slots = np.array([pool.open() for _ in range(3)])
    for t, x_t in enumerate(x):
        prepared.prepare()
        pool.prepare(slots[: 1 + t % 3])
        if t % 4 == 3:
            for path in paths[:: 1 if t == 3 else -1]:
                fastlstm.load(path, into=model)
            pool.prepare(slots[2:])
        y = plain.step(x_t)
        same(prepared.step(x_t), y)
        same(pool.step(slots, x_t), y)


def test_a_model_with_nothing_to_prepare(rng: np.random.Generator) -> None:
    model = build((spec.Linear("a", 5, 3),), rng)
    stream, pool = model.stream(), model.pool()
    slot = pool.open()
    x = input_for(model, rng)
    stream.prepare()
    pool.prepare(slot)
    pool.prepare([])
    same(stream.step(x), pool.step(slot, x))


def test_slots_that_are_not_open(rng: np.random.Generator) -> None:
    model = build((recurrent("lstm", 5, 9),), rng)
    pool = model.pool()
    slot = pool.open()
    with pytest.raises(ValueError, match="not open"):
        pool.prepare([slot, slot + 1])
    with pytest.raises(ValueError, match="given twice"):
        pool.prepare([slot, slot])
    pool.close(slot)
    with pytest.raises(ValueError, match="not open"):
        pool.prepare(slot)
