"""ONNX's operators on sequences: lists of arrays, which may be of unlike shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastlstm.sources.onnx.step import Step, shape_of
from fastlstm.sources.onnx.tensors import Array

__all__ = ["SEQUENCES"]


def sequence(at: Step) -> list[Any]:
    return [list(at.all())]


def sequence_empty(at: Step) -> list[Any]:
    at.no_effect("dtype")
    return [[]]


def _sequence(at: Step) -> list[Any]:
    found = at.inputs[0] if at.inputs else None
    if not isinstance(found, list):
        raise at.refuse("has an array for its input number 0; expected a sequence")
    return found


def sequence_insert(at: Step) -> list[Any]:
    made = list(_sequence(at))
    made.insert(at.integer(2) if at.has(2) else len(made), at.any(1))
    return [made]


def sequence_at(at: Step) -> Any:
    return _sequence(at)[at.integer(1)]


def sequence_length(at: Step) -> Array:
    return np.array(len(_sequence(at)), np.int64)


def concat_from_sequence(at: Step) -> Any:
    arrays, axis = _sequence(at), at.option("axis")
    at.room([sum(math.prod(shape_of(array)) for array in arrays)], *arrays)
    if at.flag("new_axis"):
        return at.move(lambda *p: np.stack(p, axis), *arrays)
    return at.move(lambda *p: np.concatenate(p, axis), *arrays)


def split_to_sequence(at: Step) -> list[Any]:
    x, axis, kept = at.any(0), at.option("axis") or 0, at.option("keepdims")
    n = shape_of(x)[at.axis(axis, len(shape_of(x)))]
    if not at.has(1):
        parts = [1] * n
    else:
        given = at.integers(1)
        one = shape_of(at.any(1)) == ()
        parts = [min(given[0], n - i) for i in range(0, n, max(given[0], 1))] if one else given
    if sum(parts) != n:
        raise at.refuse(f"splits an axis of {n} into {parts[:20]}; expected all of it")
    cuts = np.cumsum(parts)[:-1]
    made = at.move(lambda p: np.split(p, cuts, axis), x)
    if not at.has(1) and not kept:
        made = [at.move(lambda p: np.squeeze(p, axis), one) for one in made]
    return [made]


SEQUENCES: Mapping[str, Callable[[Step], Any]] = {
    "ConcatFromSequence": concat_from_sequence,
    "SequenceAt": sequence_at,
    "SequenceConstruct": sequence,
    "SequenceEmpty": sequence_empty,
    "SequenceInsert": sequence_insert,
    "SequenceLength": sequence_length,
    "SplitToSequence": split_to_sequence,
}
