"""The time from a tick to an answer, of a trading benchmark's networks: ``benchmarks/trading.py``.

The shapes are those of STAC-ML Markets (Inference): layers of LSTM and one output, whose sizes are
public. Weights and inputs are random ones. A tick is one new row: timed from its numbers at hand to
the answer at hand, one by one, on processors that this process stays on. What can be computed
before the row is there is done before, if a step is prepared. A step carries the state on; a window
takes all its rows anew from a state of zero.

Beside them stand figures that the benchmark's council audited, of other engines on other hardware.
Ours are not audited and are no results of that benchmark.

On a machine that others use, ``chrt -f 50 python benchmarks/trading.py`` keeps them off the ticks,
but for the part of each second that Linux leaves to others: it is in the largest figures.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case, Work
from errors import PRECISIONS, stored
from floor import Floor, bound
from precision import WEIGHT_BYTES
from tails import clock_microseconds
from ticks import Ticks
from timing import cores, interleaved, machine, machine_line, three_digits, write_json

import fastlstm


@dataclass(frozen=True)
class Shape:
    """A network of the benchmark.

    Parameters
    ----------
    T, I, layers, H : int
        Rows of a window, numbers of a row, layers of LSTM and units of each.
    parameters : int
        How many the benchmark counts, of one bias a gate.
    ticks : int
        How many are timed, unless said otherwise.
    """

    T: int
    I: int  # noqa: E741
    layers: int
    H: int
    parameters: int
    ticks: int

    @property
    def input_weights(self) -> int:
        """Weights that are left to a step that is prepared: the output's among them."""
        return self._stack.input_weights + self.H

    @property
    def weights(self) -> int:
        """All that are in a matrix."""
        return self._stack.weights + self.H

    @property
    def _stack(self) -> Case:
        return Case("lstm", self.I, self.H, self.layers)


SHAPES = {
    "LSTM_A": Shape(50, 100, 2, 100, 160_901, 1_000_000),
    "LSTM_B": Shape(100, 250, 3, 200, 1_002_601, 200_000),
    "LSTM_C": Shape(100, 500, 4, 1000, 30_017_001, 3_000),
}

# 99th percentiles in microseconds of one new row, suite "Tacana", one instance of a model, as the
# council published them; "<": at most.
AUDITED = {
    "A100 GPU, 2023": ("35.2", "68.5", "640"),
    "FPGA (Agilex), 2023": ("5.07", "6.89", "31.0"),
    "GH200 GPU, float16, 2025": ("4.70", "7.10", "15.8"),
    "FPGA (Versal), 2026": ("< 2", "< 3", "< 8"),
}

# Windows for each tick that is timed, as one takes so many steps.
WINDOW_SHARE = 1 / 200

# Parts of the ticks of each way, which are timed in turns.
ROUNDS = 10


class Network(torch.nn.Module):
    """Layers of LSTM and one output; input (B, T, I)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(shape.I, shape.H, shape.layers, batch_first=True)
        self.dense = torch.nn.Linear(shape.H, 1)
        for name, tensor in self.lstm.named_parameters():
            if name.startswith("bias_hh"):  # a gate of the benchmark's has one bias
                torch.nn.init.zeros_(tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.lstm(x)[0])

    @property
    def count(self) -> int:
        """Parameters with one bias a gate."""
        tensors = dict(self.named_parameters())
        return sum(t.numel() for name, t in tensors.items() if "bias_hh" not in name)


def network(shape: Shape) -> torch.nn.Module:
    """The network with random weights.

    Raises
    ------
    AssertionError
        If it has not as many parameters as the benchmark says.
    """
    torch.manual_seed(0)
    made = Network(shape).eval()
    if made.count != shape.parameters:
        raise AssertionError(f"{made.count} parameters, not the benchmark's {shape.parameters}")
    return made


class FromPython:
    """A stream whose ticks are timed from Python, with ``out=``."""

    def __init__(self, model: fastlstm.Model, rows: np.ndarray) -> None:
        self._stream, self._rows = model.stream(), itertools.cycle(rows)
        self._x = np.empty(rows.shape[1], np.float32)

    def each(self, count: int, *, prepared: bool) -> np.ndarray:
        """Nanoseconds of each of `count` ticks, a reading of the clock in each: int64 (count,)."""
        prepare, step, clock = self._stream.prepare, self._stream.step, time.perf_counter_ns
        x, out, took = self._x, np.empty(1, np.float32), np.zeros(count, np.int64)
        for i, row in enumerate(itertools.islice(self._rows, count)):
            x[:] = row
            if prepared:
                prepare()
            start = clock()
            step(x, out=out)
            took[i] = clock() - start
        return took


def percentiles(nanoseconds: np.ndarray) -> dict[str, float]:
    """The middle and the tail of the microseconds."""
    p50, p99, p999 = np.percentile(nanoseconds, [50, 99, 99.9]) / 1000
    most = nanoseconds.max() / 1000
    return {"p50": float(p50), "p99": float(p99), "p99.9": float(p999), "max": float(most)}


def measured(
    shape: Shape, model: fastlstm.Model, precision: str, threads: int, ticks: int, floor: Floor
) -> dict[str, Any]:
    """All figures of a network in one precision on so many threads, its ways in turns."""
    in_c = Ticks(model, shape.T, threads)
    rng = np.random.default_rng(0)
    python = FromPython(model, rng.standard_normal((shape.T, shape.I), dtype=np.float32))
    ways: dict[str, Callable[[int], np.ndarray]] = {
        f"{'prepared' if prepared else 'step'} {where}": functools.partial(of, prepared=prepared)
        for prepared in (False, True)
        for where, of in (("in C", in_c.each), ("from Python", python.each))
    }
    counts = dict.fromkeys(ways, ticks) | {
        "window in C": max(int(ticks * WINDOW_SHARE), 2 * ROUNDS)
    }
    ways["window in C"] = in_c.windows
    size = WEIGHT_BYTES[precision] * shape.weights // threads
    reading = {"reading": floor.reading(size)}
    took: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    reads: list[float] = []
    for _ in range(ROUNDS):
        for name, way in ways.items():
            count = -(-counts[name] // ROUNDS)
            way(max(1, count // 10))  # until the caches hold what this way reads
            took[name].append(way(count))
        reads += interleaved(reading, turns=3)["reading"]
    least = float(np.median(reads))
    floors = {}
    for name, share in (("step", 1), ("prepared", shape.input_weights / shape.weights)):
        best = bound(Work(size, share, 0), {"reading": least, "multiply-adds": 0})
        floors[name] = {"microseconds": best.microseconds, "bound": best.name}
    found = {name: percentiles(np.concatenate(parts)) for name, parts in took.items()}
    return {"ticks": ticks, "microseconds": found, "floor": floors}


def lines(row: Mapping[str, Any]) -> Iterator[str]:
    """A row as it is printed."""
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    yield f"{row['shape']} {row['precision']}, {threads}, {row['ticks']:,} ticks"
    for name, figures in row["microseconds"].items():
        text = f"  {name:22}" + "".join(f"{three_digits(took):>9}" for took in figures.values())
        floor = row["floor"].get(name.split()[0])
        if floor:
            share = 100 * floor["microseconds"] / figures["p50"]
            text += f"   {share:3.0f} % of {floor['bound']} ({three_digits(floor['microseconds'])})"
        yield text


def audited() -> Iterator[str]:
    """What others reached, as the benchmark's council has checked it."""
    yield "audited by the council, p99 of one new row, on other hardware, of trained weights:"
    yield f"  {'':28}" + "".join(f"{name:>10}" for name in SHAPES)
    for name, figures in AUDITED.items():
        yield f"  {name:28}" + "".join(f"{figure:>10}" for figure in figures)


def stay_on(processors: int) -> None:
    """Keep this process and its threads on so many of the processors it may run on, the last."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-processors:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="(default 1 and 2)")
    parser.add_argument("--ticks", type=int, help="of each way (default: by the shape)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if not 1 <= min(arguments.threads) <= max(arguments.threads) <= cores():
        parser.error(f"--threads: this process may run on {cores()} core(s)")
    torch.set_num_threads(1)
    everywhere, floor = os.sched_getaffinity(0), Floor()
    isa = fastlstm.from_torch(torch.nn.LSTM(1, 16)).isa
    first = os.sched_getscheduler(0) == os.SCHED_FIFO
    about = machine(
        ("numpy", "torch"),
        isa=isa,
        load=os.getloadavg()[0],
        scheduled="FIFO" if first else "shared",
    )
    clock = clock_microseconds()
    print(machine_line(about))
    print(
        f"random weights, not audited, this machine; microseconds, {three_digits(clock)} of which"
    )
    print("are the clock's from Python; share of the floor of the median\n")
    print(f"  {'':22}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>9}")
    rows = []
    for name in arguments.shapes:
        shape = SHAPES[name]
        module, ticks = network(shape), arguments.ticks or shape.ticks
        for precision, threads in itertools.product(arguments.precisions, arguments.threads):
            os.sched_setaffinity(0, everywhere)
            stay_on(threads)
            model = stored(module, precision, threads)
            row = {"shape": name, "precision": precision, "threads": threads}
            row |= {"load": os.getloadavg()[0]}
            rows.append(row | measured(shape, model, precision, threads, ticks, floor))
            print("\n".join(lines(rows[-1])), flush=True)
            del model
    print("\n" + "\n".join(audited()))
    if arguments.json:
        found = {"machine": about, "clock_microseconds": clock, "rows": rows, "audited": AUDITED}
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
