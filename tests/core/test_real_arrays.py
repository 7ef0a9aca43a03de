"""Arrays are taken for what they are, whatever a subclass says that they are.

An array's type, shape and memory are those of its C struct. A subclass may replace every property
that tells them, and an object may pass itself off as an array: neither makes the engine read or
write memory that is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import build, recurrent
from ways import assert_same_bits

import fastlstm
from fastlstm import _engine
from fastlstm import spec as rows
from fastlstm.format import ModelFile


class Liar(np.ndarray):
    """Says that it is a thousand rows of float32, flagged as such arrays are, somewhere else."""

    dtype = property(lambda _: np.dtype(np.float32))  # type: ignore[assignment]
    shape = property(lambda _: (1000, 8))  # type: ignore[assignment]
    ndim = 2
    size = 8000
    itemsize = 4
    nbytes = 32000
    strides = (32, 4)  # type: ignore[assignment]
    flags = np.zeros((1000, 8), np.float32).flags
    __array_interface__ = {"shape": (1000, 8), "typestr": "<f4", "data": (8, False), "version": 3}  # type: ignore[assignment]  # noqa: RUF012

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.zeros((1000, 8), np.float32)

    def __array_function__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("asked what it is")

    def __len__(self) -> int:
        return 1000

    def astype(self, *_: Any, **__: Any) -> Any:
        return self

    def min(self, *_: Any, **__: Any) -> Any:
        return 0

    max = fill = min


class Impostor:
    """No array at all."""

    __class__ = np.ndarray  # type: ignore[assignment]
    dtype = np.dtype(np.float32)
    shape = (3, 8)
    ndim = 2
    size = 24


Call = Callable[[Any], Any]


def with_a_speaker(rng: np.random.Generator) -> fastlstm.Model:
    """A model that holds a row of eight numbers for a sequence."""
    graph = rows.Graph(
        (rows.Input("x", (8,)), rows.Input("s", (8,), held=True)),
        (rows.Node(rows.Arithmetic("sum", "add"), ("x", "s")),
         rows.Node(rows.RNN("rnn", 8, 4), ("sum",))),
        {"y": "rnn"},
    )  # fmt: skip
    tensors = {
        name: rng.uniform(-1, 1, shape).astype(np.float32)
        for name, shape in rows.check(graph).tensors.items()
    }
    return fastlstm.Model(ModelFile(graph, tensors))


@pytest.fixture
def calls(rng: np.random.Generator) -> dict[str, Call]:
    """Whatever takes an array, given one."""
    model = build(recurrent("lstm", 8, 8), rng)
    stream, batch, pool = model.stream(), model.stream(3), model.pool(4)
    slot = pool.open()
    block = np.zeros((3, 8), np.float32)
    steps, state = block[:, None].copy(), block[:1].repeat(2, 1)
    speaker = with_a_speaker(rng)

    def ask(x: Any) -> Any:
        async def run() -> Any:
            return await pool.run_async(slot, x)

        return asyncio.run(run())

    network = model._network
    return {
        "model": model,
        "a list": lambda x: model([x, x]),
        "stream.step": batch.step,
        "stream.run": stream.run,
        "stream.run out": lambda x: stream.run(block, out=x),
        "pool.step": lambda x: pool.step(slot, x),
        "pool.run": lambda x: pool.run(slot, x),
        "pool.run list": lambda x: pool.run(np.array([slot]), [x]),
        "pool.run out": lambda x: pool.run(slot, block, out=x),
        "requests": ask,
        "forecast": lambda x: fastlstm.forecast(model, x, 3),
        "state": lambda x: model(block, {"rnn.h": x, "rnn.c": x}),
        "slots": lambda x: pool.steps(x),
        "lengths": lambda x: model(block[:, None], lengths=x),
        "reset": lambda x: model(block, reset=x),
        "rows": lambda x: batch.reset(x),
        "states of slots": lambda x: pool.write_rows(slot, x),
        "states to open": lambda x: pool.open_rows(x, [1]),
        "a network's x": lambda x: _engine.run_whole(network, [x], [steps], state),
        "a network's y": lambda x: _engine.run_whole(network, [steps], [x], state),
        "a network's state": lambda x: _engine.count_rows(network, x, 1),
        "a network's lengths": lambda x: _engine.run_whole(network, [steps], [steps], state, x),
        "a network's resets": lambda x: _engine.run_whole(
            network, [steps], [steps], state, None, x
        ),
        "a network's parts": lambda x: _engine.write_parts(network, state, {"h": x, "c": x}),
        "held": lambda x: speaker.stream(held={"s": x}),
        "a network's held": lambda x: speaker._network.begin(
            np.zeros((1, speaker._network.state_size), np.float32), [x]
        ),
    }


NAMES = (
    *("model", "a list", "stream.step", "stream.run", "stream.run out", "pool.step", "pool.run"),
    *("pool.run list", "pool.run out", "requests", "forecast", "state", "slots", "lengths"),
    *("reset", "rows", "states of slots", "states to open", "a network's x", "a network's y"),
    *("a network's state", "a network's lengths", "a network's resets", "a network's parts"),
    *("held", "a network's held"),
)


@pytest.mark.parametrize("name", NAMES)
def test_of_another_type_or_no_array(name: str, calls: dict[str, Call]) -> None:
    for wrong in (np.zeros((3, 8)).view(Liar), np.zeros((2, 2), ">f4").view(Liar), Impostor()):
        with pytest.raises((TypeError, ValueError)):
            calls[name](wrong)


def test_of_a_smaller_shape(calls: dict[str, Call]) -> None:
    small = np.zeros((3, 2), np.float32).view(Liar)
    for name in NAMES:
        with pytest.raises((TypeError, ValueError)):
            calls[name](small)


def test_sound_ones_are_taken(calls: dict[str, Call], rng: np.random.Generator) -> None:
    """By what they are: their real rows are read and written."""
    x = rng.standard_normal((3, 8)).astype(np.float32)
    for name in ("model", "pool.run", "requests", "stream.run", "forecast"):
        real, given = calls[name](x), calls[name](x.view(Liar))
        assert type(given) is type(real)
    model = build(recurrent("lstm", 8, 8), rng)
    assert_same_bits(model(x.view(Liar))[0], model(x)[0])
    out = np.zeros((3, 8), np.float32)
    view = out.view(Liar)
    assert model.stream().run(x.view(Liar), out=view) is view
    assert_same_bits(out, model(x)[0])


def test_tokens(rng: np.random.Generator) -> None:
    """One out of range is found, although its array says that it has none such."""
    model = build((spec.Embedding("e", 5, 4), recurrent("gru", 4, 4)), rng)
    stream, pool = model.stream(), model.pool()
    slot = pool.open()
    wrong = np.array([1, 1 << 40, 2]).view(Liar)
    calls: tuple[Call, ...] = (
        model, stream.run, lambda x: pool.run(slot, x), lambda x: pool.run([slot], [x]),
        lambda x: model(x[:, None], lengths=np.array([3])),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="out of range"):
            call(wrong)


def test_what_is_saved_is_what_is_there(rng: np.random.Generator) -> None:
    model = build(recurrent("gru", 8, 8), rng)
    stream = model.stream()
    state = {n: a.view(Liar) for n, a in stream.state.items()}
    stream.state = state
    with pytest.raises(TypeError, match="float64"):
        stream.state = {n: a.astype(np.float64).view(Liar) for n, a in stream.state.items()}
