"""How long a model takes on this machine, called from Python.

Dimension letters: ``T`` time, ``I`` input, ``O`` output.
"""

from __future__ import annotations

import itertools
import time
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import Model

__all__ = ["Latency", "latency_facts", "latency_lines", "time_sequences", "time_steps", "timer_ns"]

Array = npt.NDArray[Any]

# The first steps fetch code and weights into the caches; a running service has them there.
WARM_UP_STEPS = 500

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
    x: Array,
    *,
    steps: int,
    seconds: float = float("inf"),
    y: Array | None = None,
) -> Latency:
    """Time ``stream.step(x_t, out=y_t)``, from a zero state, over the rows of an input.

    Nothing is subtracted: a time is what a Python program that calls ``step`` waits, and one
    reading of the clock (see :func:`timer_ns`).

    Parameters
    ----------
    model : Model
        Not one that looks ahead.
    x : array (T, I), or int64 (T,) of tokens
    steps : int
        How many; if more than T, x and y are gone through again.
    seconds : float, optional
        Stop early after so long, but not before the first step.
    y : array (T, O), optional
        Receives the outputs.
    """
    clock = time.perf_counter_ns
    stream = model.stream()
    if y is None:
        y = np.empty((len(x), model.output_size), model.dtype)
    inputs = x.tolist() if model.takes_tokens else list(x)
    pairs = list(zip(inputs, y, strict=True))
    for x_t, y_t in itertools.islice(itertools.cycle(pairs), min(steps, WARM_UP_STEPS)):
        stream.step(x_t, out=y_t)
    stream.reset()
    times = array("q", bytes(8 * steps))
    done = 0
    deadline = clock() + seconds * 1e9
    for x_t, y_t in itertools.islice(itertools.cycle(pairs), steps):
        start = clock()
        stream.step(x_t, out=y_t)
        times[done] = clock() - start
        done += 1
        if start > deadline:
            break
    return Latency(np.array(times[:done], np.int64))


def time_sequences(model: Model, x: Array, *, seconds: float) -> Latency:
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
