"""Write a model and a log of records, for exactly_once.py: ``python sample.py FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import fastlstm


def write_model(path: Path, I: int, H: int, rng: np.random.Generator) -> None:  # noqa: E741
    """An LSTM of random weights."""
    shapes = {
        **{"lstm.weight_ih_l0": (4 * H, I), "lstm.weight_hh_l0": (4 * H, H)},
        **{"lstm.bias_ih_l0": (4 * H,), "lstm.bias_hh_l0": (4 * H,)},
    }
    fastlstm.convert({name: rng.uniform(-1, 1, s) / H**0.5 for name, s in shapes.items()}, path)


def write_records(
    path: Path,
    count: int,
    keys: int,
    I: int,  # noqa: E741
    rng: np.random.Generator,
) -> None:
    """Records in the order of a log: a key of so many, and a row."""
    records = np.zeros(count, [("key", np.int64), ("x", np.float32, (I,))])
    records["key"] = rng.integers(0, keys, count)
    records["x"] = rng.standard_normal((count, I), np.float32)
    np.save(path, records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=(8, 64), metavar=("I", "H"))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    I, H = given.size  # noqa: E741
    rng = np.random.default_rng(given.seed)
    given.folder.mkdir()
    write_model(given.folder / "model.safetensors", I, H, rng)
    write_records(given.folder / "records.npy", given.records, given.keys, I, rng)
    print(f"{given.folder}: model.safetensors and records.npy")


if __name__ == "__main__":
    main()
