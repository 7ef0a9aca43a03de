"""Nothing that is written or loaded warns, so that under ``python -W error`` the same loads."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ChainFile, every_kind

import fastlstm
from fastlstm import FormatError, format


def go(path: Path, file: ChainFile) -> None:
    """A model's whole way, as far as it loads: written, loaded in both ways, and its states."""
    format.write_model(path, file)
    try:
        model = fastlstm.load(path)
        model.save(path)
        fastlstm.load(path)
    except FormatError:
        return
    fastlstm.load(path, mmap=True)
    if not model.looks_ahead:
        stream = model.stream()
        stream.save(path)
        stream.load(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", every_kind(3))
def test_any_bits_for_weights(
    kind: str, dtype: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    """NaN of both sorts, infinity, the smallest and the largest numbers."""
    layers = every_kind(3)[kind]
    shapes = {n: s for layer in layers for n, s in layer.tensors().items()}
    bits = {
        n: rng.integers(0, 256, np.prod(s) * np.dtype(dtype).itemsize, np.uint8)
        for n, s in shapes.items()
    }
    for tensors in (
        {n: bits[n].view(dtype).reshape(s) for n, s in shapes.items()},
        {n: np.full(s, np.finfo(dtype).max) for n, s in shapes.items()},
        {n: np.full(s, np.finfo(dtype).smallest_subnormal) for n, s in shapes.items()},
        {n: np.full(s, -np.inf, dtype) for n, s in shapes.items()},
    ):
        file = ChainFile(layers, tensors)
        # Where nothing is to be told, telling it cannot be an error.
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            go(tmp_path / "m", file)
        assert [str(one.message) for one in told] == []


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """In development mode, where a file that is closed by chance is told on stderr."""
    code = """
import gc
import numpy as np, fastlstm
from fastlstm import format
tensors = {"weight_ih_l0": np.ones((8, 3), "f4"), "weight_hh_l0": np.ones((8, 2), "f4")}
model = fastlstm.from_torch(tensors, layers="lstm")
model.save("m")
open_ones = [fastlstm.load("m", mmap=mapped) for mapped in (False, True)]
stream, pool = model.stream(), model.pool()
slot = pool.open()
stream.save("s")
pool.save("p")
stream.load("s")
pool.load("p")
format.read_tensors("m")
with open("m", "rb") as file:
    good = file.read()
for wrong in (good[:-1], good[:-1] + b"1", b"", b"PK\\3\\4" + good, good + b"0"):
    with open("bad", "wb") as file:
        file.write(wrong)
    for mapped in (False, True):
        try:
            fastlstm.load("bad", mmap=mapped)
        except fastlstm.FormatError:
            pass
        else:
            raise AssertionError(wrong)
for missing in ("no/such", "."):
    try:
        model.save(missing)
    except OSError:
        pass
del open_ones
gc.collect()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(fastlstm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
