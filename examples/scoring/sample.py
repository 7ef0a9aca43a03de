"""Write a model and a folder of sequences, for the other programs: ``python sample.py FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastlstm


def write_model(path: Path, I: int, H: int, seed: int) -> None:  # noqa: E741
    """An LSTM of random weights, and a Linear of two outputs."""
    rng = np.random.default_rng(seed)
    shapes = {
        **{"lstm.weight_ih_l0": (4 * H, I), "lstm.weight_hh_l0": (4 * H, H)},
        **{"lstm.bias_ih_l0": (4 * H,), "lstm.bias_hh_l0": (4 * H,)},
        **{"out.weight": (2, H), "out.bias": (2,)},
    }
    weights = {name: rng.uniform(-1, 1, shape) / H**0.5 for name, shape in shapes.items()}
    fastlstm.convert(weights, path, layers="lstm, linear")


def write_sequences(
    folder: Path,
    count: int,
    longest: int,
    I: int,  # noqa: E741
    files: int,
    seed: int,
) -> None:
    """Sequences of 0 to `longest` steps, in so many files: ``id``, and ``x`` as one flat list."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number, some in enumerate(np.array_split(np.arange(count), files)):
        lengths = rng.integers(0, longest, len(some), endpoint=True)
        ends = pa.array(np.concatenate([[0], np.cumsum(lengths * I)]), pa.int32())
        x = rng.standard_normal(lengths.sum() * I, np.float32)
        columns = {"id": pa.array(some), "x": pa.ListArray.from_arrays(ends, pa.array(x))}
        pq.write_table(pa.table(columns), folder / f"part-{number:03}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--longest", type=int, default=400, help="steps")
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(16, 128), metavar=("I", "H"))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    I, H = given.size  # noqa: E741
    given.folder.mkdir()
    write_model(given.folder / "model.safetensors", I, H, given.seed)
    sequences = given.folder / "sequences"
    write_sequences(sequences, given.sequences, given.longest, I, given.files, given.seed)
    print(f"{given.folder}: model.safetensors, and {given.sequences} sequences in sequences/")


if __name__ == "__main__":
    main()
