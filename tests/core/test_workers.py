"""What the threads of a team take over from their caller: its rounding, its processors."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

BEGIN = """
    import ctypes, os, sys, threading
    import numpy as np
    from fastlstm import processors
    import chain as spec
    from models import build, input_for, recurrent

    processors.available = lambda: 2
    rng = np.random.default_rng(4)
    alone = build(recurrent("lstm", 64, 512), rng, reproducible=True)
    rng = np.random.default_rng(4)
    team = build(recurrent("lstm", 64, 512), rng, reproducible=True, threads=2)
    x = input_for(alone, rng, 30)
"""


@pytest.mark.thread_unsafe(reason="starts processes")
class TestWorkers:
    @pytest.mark.parametrize("rows", [None, 9])
    def test_they_round_as_their_caller(self, rows: int | None, python: Callable[..., str]) -> None:
        """So that a team gives the same bits as its caller alone, in every mode."""
        leading = (30,) if rows is None else (30, rows)
        python(
            BEGIN
            + f"""
    libm = ctypes.CDLL(None)
    if not hasattr(libm, "fesetround"):
        libm = ctypes.CDLL("libm.so.6")
    x = input_for(alone, rng, *{leading})
    modes = (0, 0x400, 0x800, 0xC00) if os.uname().machine == "x86_64" else (
        0, 0x400000, 0x800000, 0xC00000)
    found = []
    for mode in (*modes, 0):
        assert libm.fesetround(mode) == 0
        one, both = alone(x)[0], team(x)[0]
        libm.fesetround(0)
        np.testing.assert_array_equal(one, both)
        found.append(one.tobytes())
    assert found[0] == found[-1] and len(set(found)) == 4
    """
        )

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity to set here")
    def test_they_stay_where_their_caller_may_run(self, python: Callable[..., str]) -> None:
        python(
            BEGIN
            + """
    def workers():
        ids = [int(name) for name in os.listdir("/proc/self/task")]
        return [i for i in ids if open(f"/proc/self/task/{i}/comm").read() == "fastlstm\\n"]

    before = os.sched_getaffinity(0)
    y = alone(x)[0]
    def check():
        np.testing.assert_array_equal(team(x)[0], y)
        allowed = os.sched_getaffinity(0)
        if len(allowed) > 1 or allowed == before:
            assert all(os.sched_getaffinity(i) <= allowed for i in workers())
        return len(workers())
    assert check() == 1
    for cpu in sorted(before)[:4]:
        os.sched_setaffinity(0, {cpu})
        check()
        # Where there is but one left, the caller works alone; the worker is moved all the same.
        assert all(os.sched_getaffinity(i) == {cpu} for i in workers())
        os.sched_setaffinity(0, before)
        check()
    """
        )
