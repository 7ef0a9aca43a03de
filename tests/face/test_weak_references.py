"""Streams and pools can be referred to weakly, as a registry of sessions does."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from models import build, recurrent


@pytest.mark.parametrize("kind", ["stream", "pool"])
def test_weak_references(kind: str, rng: np.random.Generator) -> None:
    model = build(recurrent("gru", 3, 4), rng)
    made: Any = getattr(model, kind)()
    gone: list[str] = []
    reference = weakref.ref(made)
    weakref.finalize(made, gone.append, kind)
    known = weakref.WeakValueDictionary({"session": made})
    assert reference() is made
    assert known["session"] is made
    del made
    gc.collect()
    assert reference() is None
    assert gone == [kind]
    assert not known
