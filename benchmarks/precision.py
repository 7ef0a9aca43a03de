"""Fewer bits a weight beside float32 and the peers: ``python benchmarks/precision.py``.

Steps of one row in each precision that matrices are stored in, from Python and in C, and prepared:
what a step can do before its input is there is then not in its time (``stream.prepare()``). Beside
them onnxruntime by ``session.run``, its ``DynamicQuantizeLSTM``, torch and torch's dynamic int8.
Then whole sequences, and batches of 32 rows. What every peer gives is compared before it is timed.

Everything of a case is timed in one process, in turns of a few milliseconds whose order is drawn
anew each time. The floor is measured in the same turns: the time that this machine takes to read
the bytes of that precision once a step, from where all of them are kept, or to make the
multiply-adds. Ratios are of the figures of the same turn: the median and the quartiles of all
turns. Times of prepared steps contain a reading of the clock.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case
from errors import PRECISIONS, drawn, stored
from floor import Floor, bound
from onnx_model import onnx_model
from peers import (
    PACKAGES,
    STEPS_COMPARED,
    agreeing,
    onnxruntime_call,
    session_run_call,
    torch_call,
    torch_int8,
)
from ticks import Ticks
from timing import (
    Call,
    Timed,
    cores,
    interleaved,
    machine,
    machine_line,
    summary,
    three_digits,
    write_json,
)

import fastlstm

WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

CASES = [
    *(Case(kind, size, size) for kind in ("lstm", "gru") for size in (128, 256, 512, 1024)),
    Case("lstm", 128, 128, layers=2),
    Case("lstm", 128, 128, T=1000),
    Case("gru", 128, 128, T=1000),
    Case("lstm", 128, 128, B=32),
    Case("lstm", 256, 256, B=32),
    Case("lstm", 128, 128, T=100, B=32),
    Case("lstm", 256, 256, T=100, B=32),
]

# Steps of one row that are timed on two threads as well.
SHARED = {Case("lstm", 512, 512), Case("gru", 512, 512)}

# What a call of C takes at least, so that calling it through ctypes adds nothing to it.
CALL_SECONDS = 0.001

# Largest differences from torch's float32 of what is computed with fewer bits: several times those
# that ``errors.py`` measures.
WITHIN = {"float16": 2e-3, "bfloat16": 2e-2, "int8": 1e-1}


@dataclass(frozen=True)
class Way:
    """One of ours: how matrices are stored, and how a step of them is made."""

    precision: str
    prepared: bool = False
    in_c: bool = False
    threads: int = 1

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        prepared = ", prepared" if self.prepared else ""
        return f"fastlstm {self.precision}{prepared}{', in C' if self.in_c else ''}{threads}"

    @property
    def floor(self) -> str:
        """The name of its floor, which those that read the same have in common."""
        return f"floor {self.precision}{', 2 threads' if self.threads > 1 else ''}"


def ways(case: Case) -> list[Way]:
    """Those of ours that a case is timed in."""
    if case.T or case.B > 1:
        return [Way(precision) for precision in PRECISIONS]
    found = [
        Way(precision, prepared, in_c)
        for in_c in (False, True)
        for prepared in (False, True)
        for precision in PRECISIONS
    ]
    if case in SHARED and cores() > 1:
        found += [
            Way(precision, prepared, threads=2)
            for prepared in (False, True)
            for precision in PRECISIONS
        ]
    return found


def prepared_call(stream: fastlstm.Stream, x: np.ndarray, out: np.ndarray) -> Callable[[], int]:
    """A step whose time, which is returned, begins after what can be done before."""
    clock, prepare, step = time.perf_counter_ns, stream.prepare, stream.step

    def run() -> int:
        prepare()
        start = clock()
        step(x, out=out)
        return clock() - start

    return run


def c_job(model: fastlstm.Model, prepared: bool) -> Timed:
    """Steps in C, so many that calling them takes no time beside them."""
    ticks = Ticks(model)
    ticks.steps(10)
    start = time.perf_counter()
    ticks.steps(10)
    count = max(1, int(CALL_SECONDS * 10 / (time.perf_counter() - start)))
    if prepared:
        return Timed(lambda: int(ticks.each(count, prepared=True).sum()), count, own_clock=True)
    return Timed(functools.partial(ticks.steps, count), count)


class Ours:
    """Our calls of a case, and the models behind them, each packed once."""

    def __init__(self, case: Case, module: torch.nn.Module, x: np.ndarray) -> None:
        self.case, self._module = case, module
        rows = x if case.B > 1 else x[:, 0]
        self._given = rows if case.T else rows[0]
        self._model = functools.cache(functools.partial(stored, module))

    def call(self, way: Way) -> Call:
        """A step or a sequence from Python, whose outputs can be compared."""
        stream = self._model(way.precision, way.threads).stream(
            None if self.case.B == 1 else self.case.B
        )
        advance = stream.run if self.case.T else stream.step
        given, out = self._given, np.empty((*self._given.shape[:-1], self.case.H), np.float32)
        if not way.prepared:
            return lambda: advance(given, out=out)
        run = prepared_call(stream, given, out)
        return lambda: (run(), out)[1]

    def job(self, way: Way) -> Timed:
        """The same to be timed."""
        model = self._model(way.precision, way.threads)
        if way.in_c:
            return c_job(model, way.prepared)
        if not way.prepared:
            return Timed(self.call(way))
        out = np.empty(self.case.H, np.float32)
        return Timed(prepared_call(model.stream(), self._given, out), own_clock=True)


def peers(
    case: Case, module: torch.nn.Module, x: np.ndarray
) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name of each peer and what makes its call, torch's float32, the measure, first."""
    carried, T = not case.T, max(case.T, 1)
    weights = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}

    def session(int8: bool) -> Call:
        if int8 and case.kind != "lstm":
            raise NotImplementedError(f"onnxruntime has no int8 {case.kind}")
        data = onnx_model(case.kind, weights, T, case.B, int8=int8)
        return session_run_call(data, x, carried, 1)

    yield "torch float32", lambda: torch_call(case, module, x)
    yield "torch int8", lambda: torch_call(case, torch_int8(module), x)
    yield "onnxruntime float32", lambda: session(False)
    yield (
        "onnxruntime float32, bound",
        lambda: onnxruntime_call(onnx_model(case.kind, weights, T, case.B), x, carried, 1),
    )
    yield "onnxruntime int8", lambda: session(True)


def jobs_of(case: Case) -> tuple[dict[str, Timed], list[Way], dict[str, str]]:
    """What to time of a case, which of it is ours, and why peers are left out.

    Raises
    ------
    AssertionError
        If one of ours disagrees with torch by more than its bits explain.
    """
    module = drawn(case)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((max(case.T, 1), case.B, case.I), dtype=np.float32)
    ours, chosen = Ours(case, module, x), ways(case)
    makers = dict(peers(case, module, x))
    makers |= {str(way): functools.partial(ours.call, way) for way in chosen if not way.in_c}
    within = {
        name: bits
        for name in makers
        for precision, bits in WITHIN.items()
        if f" {precision}" in name
    }
    calls, left_out = agreeing(makers.items(), 1 if case.T else STEPS_COMPARED, within)
    jobs = {name: Timed(call) for name, call in calls.items() if not name.startswith("fastlstm")}
    return jobs | {str(way): ours.job(way) for way in chosen}, chosen, left_out


def measured(case: Case, floor: Floor, **budget: Any) -> dict[str, Any]:
    """One row: what a case takes in every way, and its floors."""
    jobs, chosen, left_out = jobs_of(case)
    works = {
        str(way): case.work(way.threads, WEIGHT_BYTES[way.precision], way.prepared)
        for way in chosen
    }
    floors = {way.floor: floor.reading(works[str(way)].working_set) for way in chosen}
    sums = {"multiply-adds": floor.multiply_adds()}
    of_bytes = floor.multiply_adds_of_bytes()
    if of_bytes:
        sums["multiply-adds of bytes"] = of_bytes
    figures = interleaved(jobs | floors | sums, **budget)
    found = {name: summary(values) for name, values in figures.items()}
    row: dict[str, Any] = {
        "case": str(case),
        **vars(case),
        "turns": len(figures["multiply-adds"]),
        "microseconds": {name: found[name] for name in (*jobs, *floors)},
        "left_out": left_out,
        "floor": {},
        "times": {},
    }
    for way in chosen:
        name, least = str(way), found[way.floor]["median"]
        adds = "multiply-adds of bytes" if way.precision == "int8" else "multiply-adds"
        made = found[adds]["median"] if adds in found else 0.0
        best = bound(works[name], {"reading": least, "multiply-adds": made})
        share = 100 * best.microseconds / found[name]["median"]
        row["floor"][name] = {
            "microseconds": best.microseconds,
            "bound": best.name,
            "percent": share,
            "bytes": works[name].working_set * works[name].readings,
        }
        row["times"][name] = ratios(figures, name, compared_with(way, jobs))
    return row


def compared_with(way: Way, jobs: Mapping[str, Any]) -> list[str]:
    """What a way of ours is set beside: the peers, our float32 made alike, and fewer threads."""
    others = [name for name in jobs if not name.startswith("fastlstm")]
    if way.precision != "float32":
        others.append(str(Way("float32", way.prepared, way.in_c, way.threads)))
    if way.threads > 1:
        others.append(str(Way(way.precision, way.prepared, way.in_c)))
    return others


def ratios(
    figures: Mapping[str, Sequence[float]], name: str, others: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How many times as long as `name` each other takes, turn by turn."""
    ours = np.array(figures[name])
    return {other: summary(np.array(figures[other]) / ours) for other in others}


def spread(figures: Mapping[str, float]) -> str:
    """A median and its quartiles."""
    median, p25, p75 = (three_digits(figures[name]) for name in ("median", "p25", "p75"))
    return f"{median} [{p25} {p75}]"


def lines(row: Mapping[str, Any]) -> Iterator[str]:
    """A row as it is printed: a line for each way, times as fast as the others in columns."""
    micros = {n: f for n, f in row["microseconds"].items() if not n.startswith("floor")}
    others = [name for name in micros if not name.startswith("fastlstm")]
    heads = [name.replace("onnxruntime", "ORT") for name in others]
    yield f"{row['case']}"
    yield f"  {'':42}{'microseconds':21}{'of the floor':21}{'times as fast as':19}".rstrip()
    yield (f"  {'':84}" + "".join(f"{head:20}" for head in [*heads, "float32 alike"])).rstrip()
    for name, figures in micros.items():
        text = f"  {name:42}{spread(figures):21}"
        if name in row["floor"]:
            floor = row["floor"][name]
            text += f"{floor['percent']:3.0f} % {floor['bound']:15} "
            text += "".join(f"{spread(row['times'][name][other]):20}" for other in others)
            alike = [other for other in row["times"][name] if " float32" in other][-1]
            text += "" if alike in others else spread(row["times"][name][alike])
        yield text.rstrip()
    for name, times in row["times"].items():
        alone = name.removesuffix(", 2 threads")
        if alone in times:
            yield f"  {name}: {spread(times[alone])} times as fast as on one"
    for name, reason in row["left_out"].items():
        yield f"  without {name}: {reason}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, help="turns of each (default: by --seconds)")
    parser.add_argument("--seconds", type=float, default=20, help="of a case (default 20)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="cases whose name contains one"
    )
    arguments = parser.parse_args()
    cases = [case for case in CASES if any(text in str(case) for text in arguments.only)]
    if not cases:
        parser.error(f"no case contains {' or '.join(map(repr, arguments.only))}")
    torch.set_num_threads(1)
    isa = fastlstm.from_torch(torch.nn.LSTM(1, 16)).isa
    about = machine(PACKAGES, isa=isa, threads=1, load=os.getloadavg()[0])
    print(machine_line(about))
    print("microseconds a call: median [quartiles]; ratios of the same turns: median [quartiles]\n")
    floor, rows = Floor(), []
    for case in cases:
        rows.append(measured(case, floor, turns=arguments.turns, seconds=arguments.seconds))
        print("\n".join(lines(rows[-1])), flush=True)
    if arguments.json:
        write_json(arguments.json, {"machine": about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
