"""How many processors this process may keep busy: its affinity, its control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available"]

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def available() -> int:
    """Processors that this process may run on at once, at least 1.

    The processors of its affinity mask, or fewer if a control group (version 1 or 2, as containers
    set them) limits its time to less: a quota of 2.5 processors counts as 2.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min([count, *(int(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Processors' worth of time that each group around this process allows, where it is limited."""
    try:
        groups = [
            line.split(":", 2)[1:] for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines()
        ]
    except (OSError, ValueError):
        return
    for controllers, path in (group for group in groups if len(group) == 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = [CGROUPS / "cpu", CGROUPS / controllers] if controllers else [CGROUPS]
        for root in roots:
            group = root / path.strip("/")
            # Within a container the path may be the host's; its own group is then the root.
            for folder in (group, *group.parents):
                if folder == root.parent:
                    break
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
        if quota != "max" and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError, OverflowError):
        return
