"""What one core of this machine can do at most: ``python benchmarks/floor.py``.

Compiles ``floor.c`` for this machine and prints the bytes a second it reads at each size of data,
from first-level cache to memory, and its multiply-adds a second. A step of one row reads every
weight once, so that reading is its floor; many rows are bound by the multiply-adds.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Work
from timing import Timed, caches, interleaved, machine, machine_line, summary, write_json

SOURCE = Path(__file__).with_suffix(".c")

ORDERS = ("ascending", "back and forth", "two streams", "four streams")

# Of one call: long beside the microsecond that calling C through ctypes takes.
CALL_SECONDS = 0.001


@dataclass(frozen=True)
class Bound:
    """The least time of a call on this machine, and what makes it so."""

    microseconds: float
    name: str


class Floor:
    """The compiled measure; needs a C compiler.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If there is no compiler, or it fails.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = str(Path(folder) / "floor.so")
            flags = ("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-Wall", "-Wextra")
            subprocess.run(["cc", *flags, str(SOURCE), "-o", library], check=True)
            self._c = ctypes.CDLL(library)
        self._c.new_data.restype = ctypes.c_void_p
        self._c.new_data.argtypes = [ctypes.c_size_t]
        self._c.free_data.argtypes = [ctypes.c_void_p]
        self._c.free_data.restype = None
        sizes = (ctypes.c_size_t, ctypes.c_size_t)
        self._c.read_data.argtypes = [ctypes.c_void_p, *sizes, ctypes.c_int]
        self._c.read_data.restype = None
        for add in (self._c.multiply_add, self._c.multiply_add_bytes):
            add.argtypes, add.restype = [ctypes.c_size_t], ctypes.c_size_t

    def reading(self, size: int) -> Timed:
        """One reading of `size` bytes that are read again and again, in the fastest order."""
        data = _Data(self._c, -(-size // 64) * 64)
        best, order = 1e9, 0
        for _ in range(3):
            for candidate in range(len(ORDERS)):
                took = min(data.seconds(1, candidate) for _ in range(5))
                times = max(2, int(CALL_SECONDS / max(took, 1e-8)))
                took = data.seconds(times, candidate) / times
                if took < best:
                    best, order = took, candidate
        times = max(2, int(CALL_SECONDS / best))
        return Timed(functools.partial(data.read, times, order), times * data.size / size)

    def multiply_adds(self) -> Timed:
        """A million multiply-adds of float32."""
        return self._adding(self._c.multiply_add)

    def multiply_adds_of_bytes(self) -> Timed | None:
        """A million multiply-adds of int8 in vectors, if there is an instruction for them."""
        add = self._c.multiply_add_bytes
        return self._adding(add) if add(1) else None

    @staticmethod
    def _adding(add: Any) -> Timed:
        start = time.perf_counter()
        add(10_000)
        count = max(1, int(10_000 * CALL_SECONDS / (time.perf_counter() - start)))
        return Timed(functools.partial(add, count), add(count) / 1e6)

    def jobs(self, work: Work) -> dict[str, Timed]:
        """What to time for the bound of this work."""
        return {"reading": self.reading(work.working_set), "multiply-adds": self.multiply_adds()}


class _Data:
    """Memory for reading, freed with the last call that uses it."""

    def __init__(self, c: ctypes.CDLL, size: int) -> None:
        self._c, self.size = c, size
        self._data = c.new_data(size)
        if not self._data:
            raise MemoryError(f"{size} bytes")

    def read(self, times: int, order: int) -> None:
        self._c.read_data(self._data, self.size, times, order)

    def seconds(self, times: int, order: int) -> float:
        start = time.perf_counter()
        self.read(times, order)
        return time.perf_counter() - start

    def __del__(self) -> None:
        if getattr(self, "_data", None):
            self._c.free_data(self._data)


def bound(work: Work, microseconds: Mapping[str, float]) -> Bound:
    """The larger of the times that the readings and the multiply-adds take, which may overlap.

    Parameters
    ----------
    work : Work
    microseconds : mapping of str to float
        Medians of the jobs that :meth:`Floor.jobs` gave for it.
    """
    reads = work.readings * microseconds["reading"]
    sums = work.multiply_adds / 1e6 * microseconds["multiply-adds"]
    if sums > reads:
        return Bound(sums, "multiply-adds")
    sizes = caches()
    holds = [name for name, size in sizes.items() if work.working_set <= size]
    if not sizes:
        return Bound(reads, "reads")
    return Bound(reads, f"{holds[0] if holds else 'memory'} reads")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="turns of each (default 15)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    floor, about = Floor(), machine()
    print(machine_line(about))
    found: dict[str, Any] = {"machine": about, "read": []}
    for kilobytes in (4, *(2**n for n in range(4, 17))):
        size = kilobytes * 1024
        jobs = {"reading": floor.reading(size)}
        micros = summary(interleaved(jobs, turns=arguments.turns)["reading"])["median"]
        found["read"].append({"bytes": size, "bytes_per_second": size / micros * 1e6})
        print(f"{kilobytes:>6} KB {size / micros / 1e3:7.1f} GB/s", flush=True)
    jobs = {"sums": floor.multiply_adds()}
    micros = summary(interleaved(jobs, turns=arguments.turns)["sums"])["median"]
    found["multiply_adds_per_second"] = 1e12 / micros
    print(f"multiply-adds {2e6 / micros / 1e3:.1f} GFLOP/s")
    of_bytes = floor.multiply_adds_of_bytes()
    if of_bytes:
        figures = interleaved({"sums": of_bytes}, turns=arguments.turns)["sums"]
        found["multiply_adds_of_bytes_per_second"] = 1e12 / summary(figures)["median"]
        print(f"multiply-adds of bytes {2e3 / summary(figures)['median']:.1f} GOP/s")
    if arguments.json:
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
