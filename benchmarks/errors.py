"""How far fewer bits lead from the numbers they store: ``python benchmarks/errors.py``.

A stack with random weights runs over many chained steps of noise in each of fastlstm's precisions,
and in torch's dynamic int8, on the same weights and inputs; what is printed is the difference of h
from the same steps in float64 with the original weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case
from peers import PACKAGES, STACKS, torch_int8
from timing import machine, machine_line, write_json

import fastlstm

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
TORCH_INT8 = "torch dynamic int8"

SIZES = (128, 256, 512)


def drawn(case: Case, seed: int = 0) -> torch.nn.Module:
    """The stack with random weights, as PyTorch draws them."""
    torch.manual_seed(seed)
    return STACKS[case.kind](case.I, case.H, case.layers).eval()


def stored(module: torch.nn.Module, precision: str, threads: int = 1) -> fastlstm.Model:
    """A stack as a model whose matrices are stored in a precision."""
    model = fastlstm.from_torch(module, threads=threads)
    return model if precision == "float32" else fastlstm.quantize(model, precision)


def outputs(module: torch.nn.Module, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name, and h of all steps, of everything that is compared."""
    for precision in PRECISIONS:
        yield f"fastlstm {precision}", stored(module, precision).stream().run(x)
    try:
        made = torch_int8(module)
    except (AttributeError, RuntimeError) as error:
        print(f"without {TORCH_INT8}: {error}", file=sys.stderr)
        return
    with torch.inference_mode():
        yield TORCH_INT8, made(torch.from_numpy(x)[:, None])[0].numpy()[:, 0]


def differences(case: Case, steps: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Root mean square and largest difference of h, by what made it.

    Parameters
    ----------
    case : Case
        Whose T and B are not read: it is one row.
    steps : int
        Chained steps, from a state of zero; inputs are normal numbers of variance 1.
    seed : int
        Of weights and inputs.
    """
    module = drawn(case, seed)
    x = np.random.default_rng(seed).standard_normal((steps, case.I), dtype=np.float32)
    with torch.inference_mode():
        exact = module.double()(torch.from_numpy(x.astype(np.float64))[:, None])[0].numpy()[:, 0]
    module.float()  # as it was: what was a float stays the same in a double
    found = {}
    for name, h in outputs(module, x):
        off = np.abs(h - exact)
        found[name] = {"rms": float(np.sqrt(np.mean(off**2))), "largest": float(off.max())}
    return found


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    text = f"{row['kind']} {row['I']} -> {row['H']}"
    for name, off in row["difference"].items():
        text += f"\n    {name:20} rms {off['rms']:.2e}   largest {off['largest']:.2e}"
    if "int8_by_torch" in row:
        text += f"\n    rms of int8 / of torch's: {row['int8_by_torch']:.2f}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="chained steps (default 1000)")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="inputs and units")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default 0)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    about = machine(PACKAGES[:3], steps=arguments.steps, seed=arguments.seed)
    print(machine_line(about))
    print("difference of h from float64 with the original weights\n")
    rows = []
    for case in (Case(kind, size, size) for kind in ("lstm", "gru") for size in arguments.sizes):
        found = differences(case, arguments.steps, arguments.seed)
        row: dict[str, Any] = {"kind": case.kind, "I": case.I, "H": case.H, "difference": found}
        if TORCH_INT8 in found:
            row["int8_by_torch"] = found["fastlstm int8"]["rms"] / found[TORCH_INT8]["rms"]
        rows.append(row)
        print(line(row), flush=True)
    if arguments.json:
        write_json(arguments.json, {"machine": about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
