"""Steps and whole sequences beside the peers, for pytest-benchmark.

Run ``python -m pytest benchmarks --benchmark-group-by=param:case`` and read the ratios in the
table: every group is one case, its rows the peers, all timed in the same run. Nothing here passes
or fails by time; a case in which fastlstm disagrees with torch fails.
"""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("torch")

from cases import CASES, Case
from peers import NAMES, checked, missing
from timing import Call


@functools.lru_cache(maxsize=1)
def calls(case: Case) -> tuple[dict[str, Call], dict[str, str]]:
    return checked(case)


@pytest.mark.parametrize("peer", NAMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_speed(benchmark, case, peer):
    if peer in missing():
        pytest.skip(f"not installed: {missing()[peer]}")
    found, left_out = calls(case)
    if peer not in found:
        pytest.skip(left_out.get(peer, "a cell is one layer and one step"))
    benchmark(found[peer])
