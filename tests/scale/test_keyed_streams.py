"""``examples/keyed_streams``: killed anywhere and run again, each record counts exactly once."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import example_programs
import numpy as np
import pytest

import fastlstm

RECORDS, KEYS, BATCH = 1500, 40, 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and records of several keys."""
    made = tmp_path / "sample"
    sizes = ("--records", RECORDS, "--keys", KEYS, "--size", 5, 19)
    example_programs.run("keyed_streams/sample.py", made, *sizes)
    return made


def outputs(folder: Path) -> list[tuple[int, int, bytes]]:
    """(record, key, y) in the order of the log, as the job wrote them."""
    with sqlite3.connect(folder / "job.sqlite") as job:
        return job.execute("select record, key, y from outputs order by record").fetchall()


def expected(folder: Path) -> list[tuple[int, int, bytes]]:
    """What one stream for each key gives, in one process and uninterrupted."""
    model = fastlstm.load(folder / "model.safetensors", reproducible=True)
    streams = [model.stream() for _ in range(KEYS)]
    records = np.load(folder / "records.npy")
    return [
        (number, int(key), streams[key].step(x).tobytes())
        for number, (key, x) in enumerate(zip(records["key"], records["x"], strict=True))
    ]


def killed_after(commits: int, folder: Path) -> tuple[bool, int]:
    """Run the job, and kill it when it has told of so many commits.

    Returns
    -------
    killed : bool
        False if it came to the end before.
    first : int
        The record that it went on from.
    """
    with example_programs.start("keyed_streams/exactly_once.py", folder, "--batch", BATCH) as job:
        assert job.stdout is not None
        first = int(job.stdout.readline().split()[-1])
        if killed := all(job.stdout.readline() for _ in range(commits)):
            job.kill()
    assert job.returncode == (-signal.SIGKILL if killed else 0)
    return killed, first


def test_killed_and_run_again(folder: Path, rng: np.random.Generator) -> None:
    """Each kill comes at some point of the batch after a commit that was told."""
    starts, killed = [], True
    while killed:
        killed, first = killed_after(int(rng.integers(1, 40)), folder)
        starts.append(first)
    assert len(starts) > 3
    assert starts == sorted(starts)
    assert 0 < starts[1] < RECORDS
    assert outputs(folder) == expected(folder)
