"""What one core of this machine can do at most: ``python benchmarks/floor.py``.

Compiles ``floor.c`` for this machine and prints the bytes a second it reads at each size of data,
from first-level cache to memory, and its multiply-adds a second. A step of one row reads every
weight once, so bytes over bandwidth is its floor; many rows are bound by the multiply-adds.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "floor")
        flags = ("-std=gnu11", "-O3", "-march=native", "-funroll-loops", "-Wall", "-Wextra")
        subprocess.run(["cc", *flags, str(SOURCE), "-o", program], check=True)
        done = subprocess.run([program], check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        kind, *figures = line.split()
        if kind == "read":
            print(f"{int(figures[0]):>6} KB {float(figures[1]):7.1f} GB/s")
        else:
            print(f"multiply-adds {float(figures[0]):.1f} GFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
