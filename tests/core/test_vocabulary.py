"""That the plan and the core say programs in the same words."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import _engine, packed, spec
from fastlstm.plan import operations


def test_the_engine_reads_what_plans_write() -> None:
    assert _engine.vocabulary() == operations.vocabulary()


@pytest.mark.thread_unsafe(reason="it replaces what the module has")
def test_an_engine_of_other_words_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = operations.vocabulary().replace("dilation", "spacing", 1)
    assert words != operations.vocabulary()
    graph = spec.Graph.chain([spec.Linear("a", 2, 3)])
    tensors = {"a.weight": np.ones((3, 2), np.float32), "a.bias": np.ones(3, np.float32)}
    monkeypatch.setattr(operations, "vocabulary", lambda: words)
    packed._check_vocabulary.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"built from other sources .*build it again"):
            packed.PackedGraph(graph, tensors)
    finally:
        monkeypatch.undo()
        packed._check_vocabulary.cache_clear()
    assert packed.PackedGraph(graph, tensors).isa
