"""One step of an LSTM in C, without Python: ``python benchmarks/step.py``.

Compiles ``step.c`` with the core, with the same flags as the extension, and prints the time of a
step for each instruction set of this machine, beside published figures of RTNeural, a library of
C++ templates for audio: plain C++ with sizes fixed at compile time, the best of its backends,
measured on another machine. fastlstm's core takes sizes at run time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, machine_line, three_digits, write_json

from fastlstm import spec
from fastlstm.plan.lowering import plan

SOURCE = Path(__file__).with_suffix(".c")
CORE = SOURCE.parents[1] / "fastlstm" / "core"

# Microseconds a step of an LSTM with one input, by hidden size.
RTNEURAL = {8: 0.040, 16: 0.063, 24: 0.135, 32: 0.119, 40: 0.223, 64: 0.52}


def planned(input_size: int, hidden_size: int) -> tuple[bytes, list[int]]:
    """The program of an LSTM, and how many numbers each of its tensors has."""
    graph = spec.Graph.chain([spec.LSTM("lstm", input_size, hidden_size)])
    tensors = {n: np.zeros(shape, np.float32) for n, shape in spec.check(graph).tensors.items()}
    program = plan(graph, tensors)
    return program.to_bytes(), [tensors[name].size for name in program.tensor_names]


def measured(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Microseconds a step, for each size (I, H) and instruction set.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If there is no C compiler, or it or the program fails.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "step")
        flags = ("-O3", "-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", f"-I{CORE}")
        sources = [str(path) for path in (*sorted(CORE.glob("*.c")), SOURCE)]
        command = ["cc", *flags, *sources, "-o", program, "-lpthread", "-lm"]
        subprocess.run(command, check=True)
        for I, H in sizes:  # noqa: E741
            words, counts = planned(I, H)
            Path(folder, "lstm").write_bytes(words)
            command = [program, str(Path(folder, "lstm")), *map(str, counts)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for line in done.stdout.splitlines():
                isa, *nanoseconds = line.split()
                p25, median, p75 = (float(value) / 1000 for value in nanoseconds)
                times = {"median": median, "p25": p25, "p75": p75}
                rows.append({"isa": isa, "I": I, "H": H, "microseconds": times})
                if I == 1 and H in RTNEURAL:
                    rows[-1]["rtneural_elsewhere"] = RTNEURAL[H]
    return rows


def size(text: str) -> tuple[int, int]:
    """``"128,256"`` as (128, 256)."""
    I, H = (int(number) for number in text.split(","))  # noqa: E741
    if min(I, H) < 1:
        raise ValueError("sizes are positive")
    return I, H


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        default=[(1, H) for H in RTNEURAL],
        metavar="I,H",
        help="input and hidden sizes (default: one input, and the hidden sizes published)",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    about = machine()
    print(machine_line(about))
    print("microseconds a step in C: median [quartiles]; RTNeural's were measured elsewhere\n")
    rows = measured(arguments.sizes)
    for row in rows:
        p25, median, p75 = (three_digits(row["microseconds"][k]) for k in ("p25", "median", "p75"))
        name = f"lstm I={row['I']} H={row['H']}"
        other = row.get("rtneural_elsewhere")
        beside = f"   RTNeural, elsewhere: {other:g}" if other else ""
        print(f"{name:20} {row['isa']:8} {median:>6} [{p25} {p75}]{beside}")
    if arguments.json:
        write_json(arguments.json, {"machine": about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
