"""The worker team as plain C: jobs, barriers, sleep, competing callers, forks, signals, lifetimes.

``tests/core/team_driver.c`` is compiled with ``core/team.c`` and ``core/system.c`` alone, by each
compiler there is and with the sanitizers, and every check of its table is run by itself. A lost
wake-up shows as a check that does not end. What a build needs and this machine lacks is skipped and
named.
"""

from __future__ import annotations

import pytest
from c_builds import (
    ADDRESS_FLAGS,
    CLANG,
    CORE,
    DRIVERS,
    OPTIMIZED,
    THREADS,
    WINDOWS,
    Build,
    Programs,
    call,
)

BUILDS = {
    "cc": OPTIMIZED,
    "clang": CLANG,
    "thread": THREADS,
    "address": Build("cc", ("-O1", *ADDRESS_FLAGS)),
    "windows": WINDOWS,
    "undefined": Build("cc", ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all")),
}

CHECKS = ["barriers", "parking", "bursts", "callers", "idle", "lifetimes", "signals", "apart"]
CHECKS += ["leave", "rounding", "affinity"]

# What the compiler or memory has no part in: clocks, signals, which processor runs what.
OF_THE_SYSTEM = ["idle", "signals", "apart", "affinity"]

# What knows of no processes, signals and processors.
ON_ANY_SYSTEM = ["barriers", "parking", "callers", "lifetimes", "leave", "rounding"]

# ThreadSanitizer does not follow threads started in a forked child, and a child may find the
# allocator of AddressSanitizer locked for ever by a thread of its parent. The check of starting
# limits the memory of the process, of which both map terabytes.
NOT_WITH_THEM = ["forks", "starting"]
CHECKS_OF = dict.fromkeys(BUILDS, CHECKS + NOT_WITH_THEM)
CHECKS_OF["clang"] = [check for check in CHECKS + NOT_WITH_THEM if check not in OF_THE_SYSTEM]
CHECKS_OF |= {"thread": CHECKS, "undefined": NOT_WITH_THEM, "windows": ON_ANY_SYSTEM}
CHECKS_OF["address"] = [check for check in CHECKS if check not in OF_THE_SYSTEM]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    sources = [CORE / "team.c", CORE / "system.c", DRIVERS / "team_driver.c"]
    return Programs(BUILDS, sources, tmp_path_factory.mktemp("team"))


@pytest.mark.parametrize(
    ("build", "check"),
    [(build, check) for build, checks in CHECKS_OF.items() for check in checks],
)
def test_team(build: str, check: str, driver: Programs) -> None:
    done = call([*driver.command(build), check], timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    if build != "windows":  # of wine, other processes than ours may complain there
        assert not done.stderr


def test_latency_is_told(driver: Programs) -> None:
    """No figure is held to account here: the machine that runs the tests may be busy."""
    done = call([*driver.command("cc"), "latency"])
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("barrier") == done.stdout.count("run") == 5
