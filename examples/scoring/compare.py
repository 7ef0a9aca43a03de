"""Score a sample in one process and by an engine: the same bits, in how much less time.

``python sample.py FOLDER``, then ``python compare.py FOLDER ray`` (or dask, or spark).
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import one_process
import pandas as pd

ENGINES = ("ray", "dask", "spark")


def scored(folder: Path) -> dict[int, bytes]:
    """The bytes of ``y`` of every ``id``.

    Raises
    ------
    ValueError
        If an ``id`` is there twice.
    """
    table = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])
    if not table["id"].is_unique:
        raise ValueError(f"{folder}: a sequence was scored twice")
    ys = [np.asarray(y, np.float32).tobytes() for y in table["y"]]
    return dict(zip(table["id"].tolist(), ys, strict=True))


def seconds(call: Callable[..., None], *given: object) -> float:
    start = time.perf_counter()
    call(*given)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="that sample.py wrote")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true", help="of ray: kill an actor half-way")
    given = parser.parse_args()
    if given.kill and given.engine != "ray":
        parser.error("--kill is for ray")
    source = given.folder / "model.safetensors", given.folder / "sequences"
    engine = importlib.import_module(f"with_{given.engine}")
    with tempfile.TemporaryDirectory() as folder, engine.running(given.workers):
        alone, shared = Path(folder, "alone"), Path(folder, "shared")
        took = seconds(one_process.score, *source, alone)
        expected = scored(alone)
        count = len(expected)
        print(f"one process: {count} sequences in {took:.2f} s, {count / took:.0f} a second")
        more = (count // 2,) if given.kill else ()
        share = seconds(engine.score, *source, shared, given.workers, *more)
        print(
            f"{given.engine}, {given.workers} workers: {share:.2f} s, {count / share:.0f} a second"
        )
        if given.kill:
            killed = Path(f"{shared}.killed").read_text(encoding="utf-8")
            print(f"killed: process {killed.strip()}")
        same = scored(shared) == expected
    print("the same rows and the same bits" if same else "NOT the same rows and bits")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
