"""How long a model takes on this machine, called from Python.

Dimension letters: ``T`` time, ``I`` input, ``O`` output.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import Model

__all__ = [
    "Latency",
    "latency_facts",
    "latency_lines",
    "step_call",
    "time_sequences",
    "time_steps",
    "timer_ns",
]

Array = npt.NDArray[Any]

# The first steps fetch code and weights into the caches; a running service has them there.
WARM_UP_STEPS = 500

# The calls that make a step; see step_call.
INTO, STEP, BLOCK = "stream.step(x, out=y)", "stream.step(x)", "stream.run(x) of one step"

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


@dataclass(frozen=True, eq=False)
class Latency:
    """Times of single calls.

    Parameters
    ----------
    nanoseconds : int64 array (n,)
        In the order measured, each with one reading of the clock in it.
    """

    nanoseconds: Array

    def microseconds(self) -> dict[str, float]:
        """p50, p99, p99.9 and max; each is a time that was measured, none interpolated."""
        values = np.percentile(self.nanoseconds, list(PERCENTILES.values()), method="higher")
        times = [*values, self.nanoseconds.max()]
        return {
            name: float(value) / 1000
            for name, value in zip([*PERCENTILES, "max"], times, strict=True)
        }


def latency_lines(latency: Latency) -> dict[str, str]:
    """The percentiles, to be shown one below the other."""
    return {name: f"{time:8.2f} µs" for name, time in latency.microseconds().items()}


def latency_facts(latency: Latency) -> dict[str, float]:
    """The percentiles for JSON: ``{"p50_us": ...}``."""
    return {f"{name}_us": time for name, time in latency.microseconds().items()}


def timer_ns() -> float:
    """What the clock adds to a time: the median of two readings with nothing in between."""
    clock = time.perf_counter_ns
    return float(np.median([-(clock() - clock()) for _ in range(10_000)]))


def time_steps(
    model: Model,
    x: Any,
    *,
    steps: int,
    seconds: float = float("inf"),
    y: Array | None = None,
) -> Latency:
    """Time :func:`step_call`, from where a sequence starts, over the steps of an input.

    Nothing is subtracted: a time is what a Python program that calls ``step`` waits, and one
    reading of the clock (see :func:`timer_ns`).

    Parameters
    ----------
    model : Model
        Not one that looks ahead.
    x : array (T, I), or int64 (T,) of tokens; or a mapping of such by name
    steps : int
        How many; if more than T, x and y are gone through again.
    seconds : float, optional
        Stop early after so long, but not before the first step.
    y : array (T, O), optional
        Receives the outputs, of a model of one that gives a row for each step.
    """
    clock = time.perf_counter_ns
    names = {given.name for given in model.graph.inputs if given.held}
    moving: Any = x
    if isinstance(x, Mapping):
        moving = {name: array for name, array in x.items() if name not in names}
    stream = model.stream(held={name: x[name] for name in names} if names else None)
    inputs = _steps_of(moving)
    if (call := step_call(model)) == INTO:
        advance = stream.step
        if y is None:
            y = np.empty((len(inputs), *_only(model.outputs)), model.dtype)
        outputs: list[Any] = list(y)
    else:
        advance = stream.step if call == STEP else stream.run
        if call == BLOCK:
            inputs = [_block_of(moving, t) for t in range(len(inputs))]
        outputs = [None] * len(inputs)
    pairs = list(zip(inputs, outputs, strict=True))
    for x_t, y_t in itertools.islice(itertools.cycle(pairs), min(steps, WARM_UP_STEPS)):
        advance(x_t, out=y_t)
    stream.reset()
    times = array("q", bytes(8 * steps))
    done = 0
    deadline = clock() + seconds * 1e9
    for x_t, y_t in itertools.islice(itertools.cycle(pairs), steps):
        start = clock()
        advance(x_t, out=y_t)
        times[done] = clock() - start
        done += 1
        if start > deadline:
            break
    return Latency(np.array(times[:done], np.int64))


def step_call(model: Model) -> str:
    """How a step of a model is made: of one that gives several rows in some steps, as a block."""
    rows = [model.facts.rows[value] for value in model.graph.outputs.values()]
    timings = [row.timing for row in rows if row.timing]
    if any(timing.rate.rows > timing.rate.steps > 1 for timing in timings):
        return BLOCK
    if len(rows) == 1 and timings and timings[0].rate == (1, 1):
        return INTO
    return STEP


def _only(values: Mapping[str, Any]) -> Any:
    (value,) = values.values()
    return value


def _steps_of(x: Any) -> list[Any]:
    """What `step` is given at each step: rows, tokens as Python's integers, or mappings of them."""
    if isinstance(x, Mapping):
        columns = [_steps_of(array) for array in x.values()]
        return [dict(zip(x, values, strict=True)) for values in zip(*columns, strict=True)]
    return x.tolist() if x.ndim == 1 and x.dtype.kind == "i" else list(x)


def _block_of(x: Any, t: int) -> Any:
    """Step t as a block of one."""
    if isinstance(x, Mapping):
        return {name: array[t : t + 1] for name, array in x.items()}
    return x[t : t + 1]


def time_sequences(model: Model, x: Any, *, seconds: float) -> Latency:
    """Time ``model(x)`` again and again, for so long and at least three times."""
    clock = time.perf_counter_ns
    model(x)
    times: list[int] = []
    deadline = clock() + seconds * 1e9
    while len(times) < 3 or clock() < deadline:
        start = clock()
        model(x)
        times.append(clock() - start)
    return Latency(np.array(times, np.int64))
