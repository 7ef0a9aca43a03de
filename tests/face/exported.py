"""Folders of C that ``fastlstm export`` wrote, built: the engine once for all tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import c_builds
import chain as spec
import numpy as np
import pytest
from models import build as build_model
from models import recurrent

import fastlstm
from fastlstm import Model

__all__ = ["BUILT", "MAKE", "build", "engine", "small_model"]

# -O1: the kernels compile in a fifth of the time, and to the same bits.
FLAGS = "-O1 -Wall -Wextra -Wpedantic -Wshadow -Wmissing-prototypes -Werror"
MAKE = ["make", "--silent", "-j2", f"CFLAGS={FLAGS}"]

BUILT = ("libfastlstm.a", "fastlstm_host.o")


def small_model() -> Model:
    """LSTM 1 -> 8 -> 1, of a kind that plays audio."""
    layers = (recurrent("lstm", 1, 8), spec.Linear("out", 8, 1))
    return build_model(layers, np.random.default_rng(1), reproducible=True)


def engine() -> Path:
    """The folder of a small model, whose engine is compiled once; skips where it cannot be."""
    for tool in ("make", "cc", "ar"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    folder = Path(os.environ["FASTLSTM_TEST_BUILDS"]) / "exported"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run").exists():
            fastlstm.export(small_model(), folder)
            made = c_builds.call([*MAKE, "-C", folder])
            assert made.returncode == 0, made.stderr
            assert not made.stderr
    return folder


def build(model: Model, folder: Path, *, apart: bool | None = None) -> list[str]:
    """Export a model, build its program with the engine that there is, and tell what runs it."""
    fastlstm.export(model, folder, apart=apart)
    for name in BUILT:
        shutil.copy2(engine() / name, folder / name)
    old = [word for name in BUILT for word in ("-o", name)]
    made = c_builds.call([*MAKE, *old, "-C", folder, "run"])
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    return [str(folder / "run")]
