"""An index made of an array of places has those places, in runs as long as can be."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SEED

from fastlstm import spec


def longest(places: list[int]) -> int:
    """How many runs there are if each, from the first on, is as long as can be."""
    runs, begin = 0, 0
    while begin < len(places):
        end = begin + 1
        while (
            end < len(places)
            and (places[end] == -1) == (places[begin] == -1)
            and places[end] - places[end - 1] == places[begin + 1] - places[begin]
        ):
            end += 1
        runs, begin = runs + 1, end
    return runs


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_of_random_places(dtype: type) -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(3000):
        parts = [
            rng.integers(-1, 6) + rng.integers(0, 3) * np.arange(rng.integers(1, 5))
            for _ in range(rng.integers(1, 6))
        ]
        places = np.concatenate(parts).astype(dtype)
        index = spec.Index.of("a", places)
        assert index.places() == places.tolist()
        assert len(index.runs) == longest(places.tolist())


def test_of_moved_places() -> None:
    places = np.arange(2**20, dtype=np.int32)
    assert spec.Index.of("a", places.reshape(4, -1)).runs == ((0, 1, 2**20),)
    assert spec.Index.of("a", places[::-1]).runs == ((2**20 - 1, -1, 2**20),)
    assert spec.Index.of("a", np.uint8([3, 2, 0])).runs == ((3, -1, 2), (0, 0, 1))
    assert spec.Index.of("a", np.array(5)) == spec.Index("a", (), ((5, 0, 1),))
    assert spec.Index.of("a", np.array([-1, -1, 0])).runs == ((-1, 0, 2), (0, 0, 1))


def test_of_what_are_no_places() -> None:
    for wrong in ([-2, 0], [0.0, 1.0], [True, False]):
        with pytest.raises(ValueError, match=r"its places are of .*; expected integers from -1"):
            spec.Index.of("a", np.array(wrong))
    with pytest.raises(ValueError, match="expected"):
        spec.Index.of("a", np.zeros((2, 0), int))
