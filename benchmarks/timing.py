"""Timing calls in turns, and what describes a machine: what every command of this folder needs.

The calls of one comparison run in one process, each for a few milliseconds at a time, in an order
that is drawn anew for every turn: a change of the machine's speed meets all of them, and none
always runs on the caches that the same other one left. Read the ratios.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]

TURN_SECONDS = 0.004
FEWEST_TURNS, MOST_TURNS = 5, 200

# Threads of a runtime may spin after a call, in wait for the next one, on a core that the next
# job's turn needs; onnxruntime's do so for 42 milliseconds (measured), then they sleep.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Timed:
    """A call, and how many times it does what is counted.

    Parameters
    ----------
    call : function
    times : float
    own_clock : bool
        Whether the call returns the nanoseconds that count, since not all it does is to be timed.
    """

    call: Call
    times: float = 1
    own_clock: bool = False


def interleaved(
    jobs: Mapping[str, Timed],
    *,
    turns: int | None = None,
    seconds: float = 10.0,
    threads: int = 1,
) -> dict[str, list[float]]:
    """Time jobs in turns.

    Parameters
    ----------
    jobs : mapping of str to Timed
    turns : int, optional
        Turns of each; by default as many as fit into `seconds`, from 5 to 200.
    seconds : float
        What to spend on all of them together.
    threads : int
        Threads each of them uses: with more than one, a pause comes before every turn.

    Returns
    -------
    dict of str to list of float
        Microseconds, one figure a turn: the mean of its calls.
    """
    pause = PAUSE_SECONDS if threads > 1 else 0.0
    counts, a_turn = {}, 0.0
    for name, job in jobs.items():
        job.call()
        start = time.perf_counter()
        job.call()
        took = max(time.perf_counter() - start, 1e-7)
        counts[name] = max(1, int(TURN_SECONDS / took))
        a_turn += max(took, TURN_SECONDS) + pause
    if turns is None:
        turns = min(max(int(seconds / a_turn), FEWEST_TURNS), MOST_TURNS)
    figures: dict[str, list[float]] = {name: [] for name in jobs}
    order, draw = list(jobs), random.Random(0)
    for _ in range(turns):
        draw.shuffle(order)
        for name in order:
            job, count = jobs[name], counts[name]
            call = job.call
            if pause:
                time.sleep(pause)
            # Until the caches hold this job's data and not another's. A long call sees to that
            # itself.
            for _ in itertools.repeat(None, 1 + count // 8 if count > 1 else 0):
                call()
            if job.own_clock:
                took = sum(call() for _ in itertools.repeat(None, count)) / 1e9
            else:
                start = time.perf_counter()
                for _ in itertools.repeat(None, count):
                    call()
                took = time.perf_counter() - start
            figures[name].append(took / (count * job.times) * 1e6)
    return figures


def summary(figures: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and 99th percentile, in the unit of the figures."""
    p25, median, p75, p99 = np.percentile(figures, [25, 50, 75, 99])
    return {"median": float(median), "p25": float(p25), "p75": float(p75), "p99": float(p99)}


def three_digits(figure: float) -> str:
    """Three digits, or all of those before the point; never an exponent."""
    return f"{figure:.0f}" if figure >= 99.95 else f"{figure:#.3g}"


def caches() -> dict[str, int]:
    """Bytes of the caches of data that the first core reads through, by level ("L1", "L2", ...).

    As Linux tells it; empty where it does not.
    """
    found = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if all((index / name).exists() for name in ("type", "level", "size")):
            size = (index / "size").read_text(encoding="utf-8").strip().removesuffix("K")
            if (index / "type").read_text(encoding="utf-8").strip() != "Instruction":
                level = (index / "level").read_text(encoding="utf-8").strip()
                found[f"L{level}"] = int(size) * 1024
    return dict(sorted(found.items()))


def processor() -> str:
    """The processor's name, as Linux or the platform module tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def machine(packages: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """What the figures were measured on and with; a package that is missing is None."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    about = {"processor": processor(), "cores": cores(), "caches": caches()}
    return {**about, **more, "versions": versions}


def machine_line(about: Mapping[str, Any]) -> str:
    """The same in a line or two to print."""
    sizes = ", ".join(f"{name} {size // 1024} KB" for name, size in about["caches"].items())
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items() if v)
    more = {k: v for k, v in about.items() if k not in ("processor", "cores", "caches", "versions")}
    facts = [about["processor"], f"{about['cores']} core(s) to run on", sizes]
    facts += [f"{name} {value}" for name, value in more.items()]
    return f"{', '.join(fact for fact in facts if fact)}\n{versions}"


def write_json(path: Path, found: Any) -> None:
    """Write figures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
