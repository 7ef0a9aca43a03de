"""What reading a file takes of memory, in a process that does nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import format

# Each file is read by a child of its own, of a parent that has imported what reading takes.
READS = """
import hashlib
import os
import resource
import sys
import numpy
from fastlstm import format

def status(key):
    with open('/proc/self/status') as file:
        return next(int(s.split()[1]) * 1024 for s in file if s.startswith(key))

def measure(reader, path, small):
    # No load of a machine makes of a second a minute of the processor's time.
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    for _ in range(2):  # what the interpreter and its allocator take for themselves, once
        try:
            getattr(format, reader)(small)
        except format.FormatError:
            pass
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    before = status('VmRSS')
    try:
        kept = getattr(format, reader)(path)
        said = "loads"
    except format.FormatError as error:
        said = "refused " + str(error).encode("ascii", "replace").decode()
    print(status('VmHWM') - before, said.replace("\\n", " "), flush=True)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        measure(*line.rstrip("\\n").split("\\t"))
        os._exit(0)
    ended = os.waitpid(pid, 0)[1]
    print(ended, flush=True)
"""


@pytest.fixture(scope="session")
def peak_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str, Path], tuple[int, str]]]:
    """``peak_of(reader, path)``: the bytes that a function of :mod:`fastlstm.format` takes at most
    to read a file, and "loads" or "refused" with its message."""
    small = tmp_path_factory.mktemp("small") / "small"
    format.write_state(small, {"a": np.zeros(1)}, {})
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", READS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(fastlstm.__file__).parents[1])},
    ) as process:
        asked, told = process.stdin, process.stdout
        assert asked
        assert told

        def peak(reader: str, path: Path) -> tuple[int, str]:
            print(reader, path, small, sep="\t", file=asked, flush=True)
            line = told.readline()
            ended = told.readline() if " " in line else line
            assert int(ended) == 0, f"reading {path} ended with status {ended}"
            found, said = line.split(maxsplit=1)
            return int(found), said

        yield peak
        asked.close()
