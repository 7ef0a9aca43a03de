"""What a real-time thread may count on: no allocation, lock or system call in a step, and the same
instructions whatever the numbers are. ``tools/realtime.py`` measures it over longer runs."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import c_builds
import pytest
from exported import engine

from fastlstm import _engine

STEPS = 100_000


@functools.cache
def tool() -> ModuleType:
    """tools/realtime.py as a module."""
    file = c_builds.ROOT / "tools" / "realtime.py"
    found = importlib.util.spec_from_file_location("realtime_tool", file)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("system calls are counted by Linux")
    folder = tmp_path_factory.mktemp("realtime")
    shutil.copytree(engine(), folder, dirs_exist_ok=True)
    made: Path = tool().build(folder)
    return made


def test_steps_allocate_lock_and_call_nothing(program: Path) -> None:
    try:
        found = tool().calls(program, STEPS)
    except RuntimeError as error:
        if "cannot count" in str(error):
            pytest.skip(str(error))
        raise
    assert found.pop("control") == [1, 1, 1], "the counters do not count"
    assert found == {"failed": 0, "step": [0, 0, 0], "run": [0, 0, 0]}


def test_no_step_depends_on_values(program: Path) -> None:
    """Valgrind counts the instructions of steps: its processor has AVX2, and no AVX-512."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    if not {"avx2", "neon"} & {name for name, _ in _engine.kernels(4)}:
        pytest.skip("no kernel for vectors; the plain one has branches on values")
    counted = {kind: tool().instructions(program, kind, 300) for kind in tool().KINDS}
    assert min(counted.values()) > 300 * 100
    assert len(set(counted.values())) == 1, counted
