"""fastlstm beside its peers and the floor of this machine: ``python benchmarks/compare.py``.

Everything is timed in one process, in turns of a few milliseconds whose order is drawn anew each
time, on the same number of threads: read the ratios. The median, the quartiles and the 99th
percentile are over turns, each turn the mean of its calls; ``tails.py`` times single steps.

The floor is the least time that reading the weights and making the multiply-adds takes on this
machine, measured in the same turns (see ``floor.py`` and ``cases.Case.work``). With several threads
it takes it that each core reads its share as fast as one core alone reads so much, and that the
multiply-adds a second are so many times those of one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from floor import Floor, bound
from peers import NAMES, PACKAGES, checked, missing
from timing import (
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


def compared(case: Case, floor: Floor | None, threads: int, **budget: Any) -> dict[str, Any]:
    """One row: the peers' times and the floor of a case."""
    calls, left_out = checked(case, threads)
    jobs = {name: Timed(call) for name, call in calls.items()}
    work = case.work(threads)
    floor_jobs = floor.jobs(work) if floor else {}
    figures = interleaved(jobs | floor_jobs, threads=threads, **budget)
    found = {name: summary(values) for name, values in figures.items()}
    micros = {name: found[name] for name in jobs}
    ours = micros["fastlstm"]["median"]
    others = {name: times["median"] for name, times in micros.items() if name != "fastlstm"}
    best = min(others, key=others.__getitem__)
    row: dict[str, Any] = {
        "case": str(case),
        **vars(case),
        "turns": len(figures["fastlstm"]),
        "microseconds": micros,
        "best_peer": best,
        "times_best_peer": others[best] / ours,
        "left_out": left_out,
    }
    if floor_jobs:
        least = bound(work, {name: found[name]["median"] for name in floor_jobs})
        row["floor"] = {
            "microseconds": least.microseconds,
            "bound": least.name,
            "percent": 100 * least.microseconds / ours,
            "working_set_bytes": work.working_set,
            "reading_microseconds": found["reading"],
            "microseconds_per_million_multiply_adds": found["multiply-adds"],
        }
    return row


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    ours = row["microseconds"]["fastlstm"]
    p25, median, p75, p99 = (three_digits(ours[k]) for k in ("p25", "median", "p75", "p99"))
    text = f"{row['case']:34} {median:>7} [{p25} {p75}] p99 {p99:<7}"
    text = f"{text:64} {row['times_best_peer']:5.2f} x {row['best_peer']:11}"
    if "floor" in row:
        text += f" {row['floor']['percent']:4.0f} % of {row['floor']['bound']:13}"
    for name in NAMES[1:]:
        if name in row["microseconds"]:
            text += f"  {name} {three_digits(row['microseconds'][name]['median'])}"
            text += f" [{three_digits(row['microseconds'][name]['p25'])}"
            text += f" {three_digits(row['microseconds'][name]['p75'])}]"
    for name, reason in row["left_out"].items():
        text += f"\n    without {name}: {reason}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of every peer (default 1)")
    parser.add_argument("--turns", type=int, help="turns of each peer (default: by --seconds)")
    parser.add_argument("--seconds", type=float, default=10, help="of a case (default 10)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw them there")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="cases whose name contains one"
    )
    arguments = parser.parse_args()
    threads = arguments.threads
    if not 1 <= threads <= cores():
        parser.error(f"--threads is {threads}; this process may run on {cores()} core(s)")
    cases = [case for case in CASES if any(text in str(case) for text in arguments.only)]
    if not cases:
        parser.error(f"no case contains {' or '.join(map(repr, arguments.only))}")

    isa = fastlstm.from_torch(torch.nn.LSTM(1, 16)).isa
    about = machine(PACKAGES, isa=isa, threads=threads)
    print(machine_line(about))
    for name, remedy in missing().items():
        print(f"without {name}: not installed ({remedy})")
    try:
        floor = Floor()
    except (OSError, subprocess.CalledProcessError) as error:
        floor = None
        print(f"without the floor: the C compiler cannot be used ({error})")
    print("microseconds a call: median [quartiles]; ratios and percentages are of medians\n")
    rows = []
    for case in cases:
        row = compared(case, floor, threads, turns=arguments.turns, seconds=arguments.seconds)
        rows.append(row)
        print(line(row), flush=True)
    found = {"machine": about, "rows": rows}
    if arguments.json:
        write_json(arguments.json, found)
    if arguments.picture:
        from picture import draw

        draw(found, arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
