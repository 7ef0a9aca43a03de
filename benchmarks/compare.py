"""fastlstm beside onnxruntime and torch on this machine: ``python benchmarks/compare.py``.

All peers run in one process on one thread, in turns of a few milliseconds, so that a change of the
machine's speed meets all of them; the ratios are what to read. The median, the 99th percentile and
the quartiles are over turns, each turn the mean of its calls.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from peers import CASES, Call, checked

import fastlstm

TURN_SECONDS = 0.004


def processor() -> str:
    """The processor's name, as Linux or the platform module tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def timed(calls: dict[str, Call], turns: int) -> dict[str, list[float]]:
    """Microseconds a call, one figure a turn, the peers taking turns."""
    counts = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        counts[name] = max(1, int(TURN_SECONDS / max(time.perf_counter() - start, 1e-7)))
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            repeat = range(counts[name])
            start = time.perf_counter()
            for _ in repeat:
                call()
            figures[name].append((time.perf_counter() - start) / counts[name] * 1e6)
    return figures


def summary(figures: list[float]) -> dict[str, float]:
    """Median, 99th percentile and quartiles, in microseconds."""
    p25, p75, p99 = np.percentile(figures, [25, 75, 99])
    return {"median": statistics.median(figures), "p25": p25, "p75": p75, "p99": p99}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Medians and ratios as a table, one row a case."""
    peers = ("fastlstm", "onnxruntime", "torch", "torch cell")
    lines = [
        f"| microseconds, median | {' | '.join(peers)} | best peer / fastlstm |",
        "| --- |" + " ---: |" * (len(peers) + 1),
    ]
    for row in rows:
        found = row["microseconds"]
        cells = [_rounded(found[p]["median"]) if p in found else "" for p in peers]
        lines.append(f"| {row['case']} | {' | '.join(cells)} | {row['times'][row['best']]:.1f} |")
    return "\n".join(["", *lines])


def _rounded(microseconds: float) -> str:
    """Three digits, never an exponent."""
    return f"{microseconds:.0f}" if microseconds >= 1000 else f"{microseconds:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=60, help="turns of each peer (default 60)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    arguments = parser.parse_args()

    machine = {
        "processor": processor(),
        "isa": fastlstm.from_torch(torch.nn.LSTM(1, 16)).isa,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    print("microseconds a call: median [quartiles]; times = best peer / fastlstm, of medians\n")
    rows = []
    for case in CASES:
        if arguments.only not in str(case):
            continue
        found = {k: summary(v) for k, v in timed(checked(case), arguments.turns).items()}
        ours = found["fastlstm"]["median"]
        ratios = {k: v["median"] / ours for k, v in found.items() if k != "fastlstm"}
        best = min(ratios, key=lambda name: ratios[name])
        columns = "  ".join(
            f"{name} {v['median']:.3g} [{v['p25']:.3g} {v['p75']:.3g}]" for name, v in found.items()
        )
        print(f"{case!s:34} {ratios[best]:6.2f} times ({best})   {columns}", flush=True)
        rows.append({"case": str(case), "microseconds": found, "best": best, "times": ratios})
    if arguments.markdown:
        print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
