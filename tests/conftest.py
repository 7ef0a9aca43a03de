"""Fixtures of all tests: a seeded random generator and the instruction sets of this machine."""

from __future__ import annotations

import os

# Of NumPy's and torch's, before either is imported: several threads for a product of small
# matrices, on a machine that others use too, wait for each other a hundred times longer than they
# multiply.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

import fastlstm
from fastlstm import _engine

# A subprocess sees the package that these tests see: the installed one in a checkout whose own
# fastlstm/ is not built, and the built one where it is.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = str(Path(fastlstm.__file__).parents[1])

SEED = int(os.environ.get("FASTLSTM_TEST_SEED", "20261121"))

# One profile for all: machines that run tests are slow and shared, so no example has a deadline;
# the same examples every time, unless a seed is asked for, so that a red test means a change.
hypothesis.settings.register_profile(
    "fastlstm",
    deadline=None,
    database=None,
    derandomize="FASTLSTM_TEST_SEED" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("fastlstm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run tests that take hours, too")


def pytest_configure(config: pytest.Config) -> None:
    """Have one folder for what is built for several files of tests, of all processes of a run."""
    if not hasattr(config, "workerinput"):
        os.environ["FASTLSTM_TEST_BUILDS"] = tempfile.mkdtemp(prefix="fastlstm-builds-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop("FASTLSTM_TEST_BUILDS"), ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes hours; --long runs it"))


def pytest_report_header() -> str:
    kernels = ", ".join(f"{name} ({lanes})" for name, lanes in _engine.kernels(4))
    return f"fastlstm: FASTLSTM_TEST_SEED={SEED}; kernels (lanes): {kernels}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.failed and "rng" in getattr(item, "fixturenames", ()):
        again = f"FASTLSTM_TEST_SEED={SEED} python -m pytest '{item.nodeid}'"
        report.sections.append(("random numbers", f"run this again with {again}"))
    return report


# What a process does with these it has from its parent: a job in the background ignores SIGINT, a
# process under some supervisors SIGCHLD, and then no exit status of a child is ever told.
SIGNALS = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGCHLD": signal.SIG_DFL,
    "SIGALRM": signal.SIG_DFL,
}


@pytest.fixture(scope="session", autouse=True)
def usual_signals() -> Iterator[None]:
    """What the tests, and the processes they start, do with a signal, whoever started them."""
    wanted = {getattr(signal, n): handler for n, handler in SIGNALS.items() if hasattr(signal, n)}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    blocks = hasattr(signal, "pthread_sigmask")
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted) if blocks else set()
    yield
    if blocks:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@pytest.fixture
def obeys_permissions(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A skip where permission bits stop nobody: for root, and for others who may do anything."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "file").touch(mode=0)
    folder.chmod(0o555)
    try:
        for mode, path in (("rb", folder / "file"), ("wb", folder / "new")):
            with contextlib.suppress(PermissionError), path.open(mode):
                pytest.skip("this user may read or write anything")
    finally:
        folder.chmod(0o700)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of its own for every test, the same in every run of one FASTLSTM_TEST_SEED."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture(params=[name for name, _ in _engine.kernels(4, of_floats=True)])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that this machine has, in turn."""
    return str(request.param)


@pytest.fixture(params=[name for name, _ in _engine.kernels(4)])
def isa_of_int8(request: pytest.FixtureRequest) -> str:
    """The same, and those that differ from one of them in products of int8 alone."""
    return str(request.param)


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    """Run code in an interpreter of its own, which sees the same fastlstm and these tests.

    ``python(code, *arguments, **environment)`` returns what it prints; an environment variable that
    is None is removed.
    """

    def run(code: str, *arguments: str, **environment: str | None) -> str:
        paths = [str(Path(fastlstm.__file__).parents[1]), str(Path(__file__).parent)]
        own = {"PYTHONPATH": os.pathsep.join(paths), "FASTLSTM_ISA": None}
        found = os.environ | own | environment
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
            env={name: value for name, value in found.items() if value is not None},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stderr[-4000:]}"
        return done.stdout

    return run
