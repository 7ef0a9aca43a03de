"""How much a function does, in numbers that no load of a machine changes."""

from __future__ import annotations

import contextlib
import cProfile
from collections.abc import Iterator

__all__ = ["MOST_CALLS", "counted_calls"]

# What reading a file or checking a graph may do: about a second of it, where nothing else runs. The
# most that a file of the tests needs is 1.4 million: "4096 delays" of test_hostile_graphs.py.
MOST_CALLS = 2_000_000


@contextlib.contextmanager
def counted_calls(most: int) -> Iterator[None]:
    """Fail where what is within calls more functions, those of C among them."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
    count = sum(entry.callcount for entry in profile.getstats())
    assert count <= most, f"{count} calls; at most {most} are expected"
