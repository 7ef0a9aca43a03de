"""Steps and whole sequences beside the peers, for pytest-benchmark.

Run ``python -m pytest benchmarks --benchmark-group-by=param:case`` and read the ratios in the
table: every group is one case, its rows the peers, all timed in the same run. Nothing here passes
or fails by time.
"""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from peers import CASES, Call, Case, checked


@functools.lru_cache(maxsize=1)
def calls(case: Case) -> dict[str, Call]:
    return checked(case)


@pytest.mark.parametrize("peer", ["fastlstm", "onnxruntime", "torch", "torch cell"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_speed(benchmark, case, peer):
    if peer not in calls(case):
        pytest.skip("a cell is one layer and one step")
    benchmark(calls(case)[peer])
