"""The exported folder on machines of other kinds, as far as their compilers and emulators are here.

``tools/targets.py`` says what is built and how it runs. A bare machine skips most of it; -O1
compiles in a third of the time, and changes no number.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "targets.py"


def load_tool() -> Any:
    """``tools/targets.py``, as a module."""
    made = importlib.util.spec_from_file_location("targets", TOOL)
    module = importlib.util.module_from_spec(made)
    sys.modules[made.name] = module  # its dataclasses look themselves up there
    made.loader.exec_module(module)
    return module


TARGETS = load_tool()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return TARGETS.Export(tmp_path_factory.mktemp("targets"), "-O1")


@pytest.mark.parametrize("name", TARGETS.TARGETS)
def test_the_exported_folder(name: str, exported: Any) -> None:
    came = TARGETS.outcome(exported, name)
    if came.startswith("skipped"):
        pytest.skip(came.removeprefix("skipped: "))
    assert came.startswith(("ran: 256 rows", "compiled and linked only")), came


def test_numbers_that_differ_are_seen(exported: Any) -> None:
    """Bits of a vector kernel are not those of the scalar one, and an error is over its bound."""
    target = TARGETS.TARGETS["aarch64"]
    y = exported.bits["scalar"].ravel()
    assert "beside float64" in exported.check(TARGETS.TARGETS["wasm"], y)
    with pytest.raises(TARGETS.FailedError, match="beside float64"):
        exported.check(target, y + 1e-4)
    if exported.bits["vectors"] is not None:
        with pytest.raises(TARGETS.FailedError, match="other bits"):
            exported.check(target, y)
