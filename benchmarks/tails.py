"""How even the time of a step is, and whether silence changes it: ``python benchmarks/tails.py``.

Single steps from Python, each timed by itself, and the largest of them beside the median: what a
caller with a deadline sees, the interruptions by the system included. Every figure contains the
time of reading the clock, whose median is measured and stated.

Then ten minutes of silence after noise, beside as much noise: a state that fades passes through
numbers so small that many processors compute with them slowly, unless they count as zero. It is
done for weights as PyTorch draws them, and for weights whose cell state halves every few hundred
steps, so that it spends a long time among such numbers.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case
from peers import PACKAGES
from timing import machine, machine_line, three_digits, write_json

import fastlstm

CASES = [Case("lstm", 1, 40), Case("lstm", 40, 128), Case("lstm", 256, 256)]

NOISE_STEPS = 1000
MINUTES = 10
STEPS_A_SECOND = 100
SAMPLES_A_SECOND, BLOCK = 48_000, 480
AUDIO = CASES[0]


def percentiles(microseconds: np.ndarray) -> dict[str, float]:
    """Median, tail and maximum."""
    median, p99, p999 = np.percentile(microseconds, [50, 99, 99.9])
    names = {"median": median, "p99": p99, "p99.9": p999, "max": microseconds.max()}
    return {name: float(value) for name, value in names.items()}


def each_step(stream: fastlstm.Stream, x: np.ndarray, steps: int) -> np.ndarray:
    """Microseconds of each of so many steps, with an output array of the caller's."""
    clock, step = time.perf_counter_ns, stream.step
    out = np.empty(stream.model.output_size, np.float32)
    took = np.zeros(steps, np.int64)
    for i in range(steps):
        start = clock()
        step(x, out=out)
        took[i] = clock() - start
    return took / 1000


def clock_microseconds(calls: int = 100_000) -> float:
    """Median of what timing a call adds to it: two readings of the clock with nothing between."""
    clock = time.perf_counter_ns
    took = np.zeros(calls, np.int64)
    for i in range(calls):
        start = clock()
        took[i] = clock() - start
    return float(np.median(took)) / 1000


def module_of(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.LSTM(case.I, case.H).eval()


def fading(case: Case) -> torch.nn.Module:
    """Weights with which, in silence, c shrinks by a fixed factor a step and h with it."""
    module = module_of(case)
    H, forget = case.H, 6.0  # sigmoid(6): c halves in 280 steps
    with torch.no_grad():
        for bias in (module.bias_ih_l0, module.bias_hh_l0):
            bias.zero_()
        module.bias_ih_l0[H : 2 * H] = forget
        module.weight_hh_l0[2 * H : 3 * H] = 0  # no new content from h
    return module


def steps_table(steps: int) -> list[dict[str, Any]]:
    """Percentiles of single steps."""
    rows = []
    for case in CASES:
        stream = fastlstm.from_torch(module_of(case)).stream()
        x = np.random.default_rng(0).standard_normal(case.I, dtype=np.float32)
        each_step(stream, x, min(steps, 10_000))
        found = percentiles(each_step(stream, x, steps))
        rows.append({"case": str(case), "steps": steps, "microseconds": found})
    return rows


def quiet_and_noisy(
    model: fastlstm.Model, method: str, inputs: np.ndarray, calls: int
) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of each call of a stream in silence and of one in noise, in turns.

    Parameters
    ----------
    model : fastlstm.Model
    method : {"step", "run"}
        How a stream advances by one of the inputs.
    inputs : array, first axis over calls
        Noise: both streams are given it once, one of them then goes on with it, over and over.
    calls : int
        Of each stream after that.
    """
    advance = [getattr(model.stream(), method) for _ in range(2)]
    out = np.empty((*inputs.shape[1:-1], model.output_size), np.float32)
    for call, given in itertools.product(advance, inputs):
        call(given, out=out)
    clock = time.perf_counter_ns
    silence = np.zeros_like(inputs[0])
    took = np.zeros((2, calls), np.int64)
    for i in range(calls):
        pair = silence, inputs[i % len(inputs)]
        for k in (0, 1) if i % 2 else (1, 0):
            call, given = advance[k], pair[k]
            start = clock()
            call(given, out=out)
            took[k, i] = clock() - start
    return took[0] / 1000, took[1] / 1000


def silence_table(minutes: float) -> list[dict[str, Any]]:
    """Times in silence beside times in noise."""
    rows = []
    rng = np.random.default_rng(0)
    seconds = minutes * 60
    jobs: list[tuple[Case, int, int]] = [
        *((case, int(seconds * STEPS_A_SECOND), 0) for case in CASES),
        (AUDIO, int(seconds * SAMPLES_A_SECOND / BLOCK), BLOCK),
    ]
    for (case, calls, block), (weights, make) in itertools.product(
        jobs, (("as drawn", module_of), ("fading", fading))
    ):
        shape = (case.I,) if not block else (block, case.I)
        inputs = rng.standard_normal((NOISE_STEPS, *shape), dtype=np.float32)
        model, method = fastlstm.from_torch(make(case)), "run" if block else "step"
        quiet, noisy = quiet_and_noisy(model, method, inputs, calls)
        silence, noise = percentiles(quiet), percentiles(noisy)
        rows.append(
            {
                "case": str(case),
                "weights": weights,
                "call": f"run of {block}" if block else "step",
                "calls": calls,
                "silence": silence,
                "noise": noise,
                "ratio_of_medians": silence["median"] / noise["median"],
                "ratio_of_p99": silence["p99"] / noise["p99"],
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="single steps of a case")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"of silence (default {MINUTES})"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    isa = fastlstm.from_torch(module_of(AUDIO)).isa
    about = machine(PACKAGES[:3], isa=isa, threads=1)
    clock = clock_microseconds()
    print(machine_line(about))
    print(f"microseconds, {three_digits(clock)} of which are the clock's\n")
    steps = steps_table(arguments.steps)
    print(f"{f'{arguments.steps} single steps':26} median   p99 / it  p99.9 / it  max / it")
    for row in steps:
        found = row["microseconds"]
        median, *over = (found[name] for name in ("median", "p99", "p99.9", "max"))
        p99, p999, most = (three_digits(took / median) for took in over)
        print(f"{row['case']:26} {three_digits(median):8} {p99:9} {p999:11} {most}")
    print(f"\n{arguments.minutes:g} minutes of silence / as much noise")
    quiet = silence_table(arguments.minutes)
    for row in quiet:
        name = f"{row['case']}, {row['calls']} x {row['call']}, {row['weights']}"
        print(
            f"{name:60} median {three_digits(row['silence']['median'])} / "
            f"{three_digits(row['noise']['median'])} = {row['ratio_of_medians']:.3f}   "
            f"p99 {three_digits(row['silence']['p99'])} / {three_digits(row['noise']['p99'])}"
            f" = {row['ratio_of_p99']:.3f}"
        )
    if arguments.json:
        found = {"machine": about, "clock_microseconds": clock, "steps": steps, "silence": quiet}
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
