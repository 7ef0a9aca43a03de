"""What a real-time thread asks of a model: ``python tools/realtime.py MODEL [--steps N]``.

Exports the model, builds ``realtime.c`` with it, and prints: the allocations, locks and system
calls of so many steps by ``fl_step`` and as many by ``fl_stream_run``; how long blocks of 64 steps
take (the median, the 99.9th percentile, the longest) for inputs of noise, silence, denormals, NaN
and infinity; and, where valgrind is there, the instructions of steps of each of these. The model
has one input and one output, with a row for each step.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastlstm

SOURCE = Path(__file__).with_suffix(".c")
KINDS = ("noise", "silence", "denormals", "nan", "infinity")
COUNTED = ("allocations", "locks", "system calls")


def build(folder: Path) -> Path:
    """Build the program in a folder that was exported, whose engine is built.

    Raises
    ------
    subprocess.CalledProcessError
        If it does not compile.
    """
    program = folder / "realtime"
    flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-fno-builtin", f"-I{folder}")
    parts = [folder / name for name in ("model.o", "fastlstm_host.o", "libfastlstm.a")]
    libraries = ("-lm", "-ldl", "-pthread")
    subprocess.run(["cc", *flags, SOURCE, *parts, *libraries, "-o", program], check=True)
    return program


def answer(command: Sequence[object]) -> Any:
    """What the program prints.

    Raises
    ------
    RuntimeError
        If it fails, with what it says.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"{words[0]} ended with {done.returncode}")
    return json.loads(done.stdout)


def calls(program: Path, steps: int) -> dict[str, list[int]]:
    """Allocations, locks and system calls: of "step", of "run", and of "control", which makes one
    of each."""
    made: dict[str, list[int]] = answer([program, "calls", steps])
    return made


def instructions(program: Path, kind: str, steps: int, isa: str = "") -> int:
    """Instructions within so many calls of ``fl_step``, counted by valgrind.

    Raises
    ------
    RuntimeError
        If valgrind fails.
    """
    command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=fl_step"]
    command += ["--callgrind-out-file=/dev/null", str(program), "steps", kind, str(steps)]
    done = subprocess.run(
        [*command, isa] if isa else command, capture_output=True, text=True, check=False
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(f"valgrind ended with {done.returncode}: {done.stderr[-400:]}")
    return int(found[1])


def print_calls(program: Path, steps: int) -> None:
    found = calls(program, steps)
    names = {"step": "fl_step", "run": "fl_stream_run", "control": "one of each, by the program"}
    print(f"of {steps:,} steps:")
    for key, name in names.items():
        counted = ", ".join(f"{n} {what}" for n, what in zip(found[key], COUNTED, strict=True))
        print(f"  {name:28} {counted}")


def print_times(program: Path, samples: int, cpu: int, rate: float) -> None:
    told = answer([program, "times", samples, cpu, rate])
    thread = "SCHED_FIFO" if told["first"] else "not of real time, which is not permitted"
    print(f"{told['blocks']:,} blocks of 64 steps, {told['isa']}, thread {thread}:")
    for kind, row in told["rows"].items():
        share, p50, most = row["share"], row["p50"] / 1000, row["p99.9"] / 1000
        print(
            f"  {kind:10} p50 {p50:8.2f} us   p99.9 {most:8.2f} us ({most / p50:.2f} x)   "
            f"max {row['max'] / 1000:9.2f} us   {100 * share:.3f} % of real time at {rate:g} Hz"
        )


def print_instructions(program: Path, steps: int = 1000) -> None:
    if not shutil.which("valgrind"):
        print("instructions: valgrind is not installed")
        return
    print(f"instructions of {steps:,} steps, by callgrind:")
    for kind in KINDS:
        print(f"  {kind:10} {instructions(program, kind, steps):,}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a file that fastlstm convert wrote")
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--cpu", type=int, default=-1, help="to run on; -1: any")
    parser.add_argument("--rate", type=float, default=48_000, help="samples a second")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fastlstm.export(fastlstm.load(given.model), folder, apart=False)
        subprocess.run(["make", "--silent", "-j2", "-C", folder], check=True)
        program = build(folder)
        print_calls(program, given.steps)
        print_times(program, given.steps, given.cpu, given.rate)
        print_instructions(program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
