"""The worker team as plain C: jobs, barriers, sleep, competing callers, forks, signals, lifetimes.

``tests/kernels/team_driver.c`` is compiled with ``kernels/team.c`` alone, by each compiler there is
and with the sanitizers, and every check of its table is run by itself. A lost wake-up shows as a
check that does not end. What a build needs and this machine lacks is skipped and named.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "fastlstm" / "kernels"
SOURCES = [KERNELS / "team.c", ROOT / "tests" / "kernels" / "team_driver.c"]

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wpedantic", "-Wshadow", "-Wmissing-prototypes"]
FLAGS = ["-std=c11", "-pthread", *WARNINGS, f"-I{KERNELS}"]

# How to build: compiler, flags, and what may have to run the program: ThreadSanitizer needs its
# shadow memory at addresses that a kernel may give to something else unless told not to.
# -Wno-tsan: it knows no fences, but here they order only what is atomic.
BUILDS: dict[str, tuple[str, list[str], list[list[str]]]] = {
    "cc": ("cc", ["-O3"], [[]]),
    "clang": ("clang", ["-O3"], [[]]),
    "thread": (
        "cc",
        ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan"],
        [[], ["setarch", "-R"]],
    ),
    "address": (
        "cc",
        ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        [[]],
    ),
}

CHECKS = ["barriers", "parking", "bursts", "callers", "forks", "idle", "lifetimes", "signals"]
CHECKS += ["starting", "apart"]

# ThreadSanitizer does not follow threads started in a forked child; the check of starting limits
# the memory of the process, of which every sanitizer maps terabytes.
LEFT_OUT = {("thread", "forks"), ("thread", "starting"), ("address", "starting")}

# A trial needs a thread to tell whether a sanitizer works.
TRIAL = """
#include <pthread.h>
static void *nothing(void *given) { return given; }
int main(void) {
    pthread_t thread;
    return pthread_create(&thread, 0, nothing, 0) || pthread_join(thread, 0);
}
"""


def call(command: Sequence[object], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The command that runs the driver of a build, compiled once; skips what cannot be had."""
    built: dict[str, list[str] | str] = {}

    def of(name: str) -> list[str]:
        if name not in built:
            built[name] = _build(name, tmp_path_factory.mktemp(name))
        command = built[name]
        if isinstance(command, str):
            pytest.skip(command)
        return command

    return of


def _build(name: str, folder: Path) -> list[str] | str:
    """The command, or why there is none."""
    compiler, flags, runners = BUILDS[name]
    if not shutil.which(compiler):
        return f"{compiler} is not installed"
    runner = _runner(compiler, flags, runners, folder)
    if isinstance(runner, str):
        return f"{compiler} {' '.join(flags)} does not work here: {runner}"
    made = call([compiler, *FLAGS, *flags, *SOURCES, "-o", folder / "driver"])
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    return [*runner, str(folder / "driver")]


def _runner(
    compiler: str, flags: list[str], runners: list[list[str]], folder: Path
) -> list[str] | str:
    """What programs of this build must be run by, or why they cannot be built or run."""
    source, program = folder / "trial.c", folder / "trial"
    source.write_text(TRIAL)
    tried = call([compiler, "-pthread", *flags, source, "-o", program])
    if tried.returncode:
        return tried.stderr[-200:]
    for runner in runners:
        if runner and not shutil.which(runner[0]):
            continue
        tried = call([*runner, program])
        if tried.returncode == 0:
            return runner
    return tried.stderr[-200:]


@pytest.mark.parametrize(
    ("build", "check"),
    [(build, check) for build in BUILDS for check in CHECKS if (build, check) not in LEFT_OUT],
)
def test_team(build: str, check: str, driver: Any) -> None:
    done = call([*driver(build), check])
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert not done.stderr


def test_latency_is_told(driver: Any) -> None:
    """No figure is held to account here: the machine that runs the tests may be busy."""
    done = call([*driver("cc"), "latency"])
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("barrier") == done.stdout.count("run") == 5
