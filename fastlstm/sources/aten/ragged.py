"""Sequences of different lengths: packed and padded again, as ``torch.nn.utils.rnn`` does.

A graph runs over padded arrays, and is told the lengths of the rows when it runs. So what is packed
stays as it is; lengths, the order that sorts them and the sizes of the batch of each step are known
to be that and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.table import OPERATORS, Builder, shape_of

__all__ = ["Ragged", "apply"]


@dataclass(frozen=True)
class Ragged:
    """Numbers that only the lengths of sequences tell.

    Parameters
    ----------
    what : {"lengths", "order", "batch_sizes"}
        The lengths of the rows of a batch, the order that sorts them, or how many rows each step
        has.
    size : int
        How many they are.
    """

    what: str
    size: int


_SAME = {
    *("to", "cpu", "long", "int", "contiguous", "clone", "detach", "view", "reshape", "flatten"),
    *("squeeze", "alias", "type_as", "empty_like", "scatter_", "scatter", "argsort"),
}


def apply(b: Builder, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What an operator gives, one of whose arguments is ragged."""
    first = args[0]
    if isinstance(first, Ragged):
        if name in _SAME:
            return Ragged("order", first.size) if name == "argsort" else first
        if name == "sort":
            return first, Ragged("order", first.size)
        if name in ("index_select", "index") and first.what != "batch_sizes":
            return first
        if name in ("size", "numel"):
            return first.size if name == "numel" or len(args) > 1 else [first.size]
        if name == "select" and first.what == "batch_sizes" and args[1:3] == [0, 0]:
            return np.asarray(b.batch)  # of the first step, which all rows have
    elif name in ("index_select", "index") and _reorders(args, b.batch):
        return first  # the rows of a batch in another order, and back
    elif name == "_pack_padded_sequence":
        data = OPERATORS["transpose"](b, first, 0, 1) if args[2] else first
        return data, Ragged("batch_sizes", shape_of(data)[0])
    elif name == "_pad_packed_sequence":
        data = OPERATORS["transpose"](b, first, 0, 1) if args[2] else first
        return data, Ragged("lengths", b.batch)
    elif name in ("lstm", "gru", "rnn_tanh", "rnn_relu") and isinstance(args[1], Ragged):
        return OPERATORS[name](b, first, *args[2:], **named)
    raise ConvertError(
        "numbers are computed of the lengths of sequences; expected lengths that go to "
        "pack_padded_sequence alone"
    )


def _reorders(args: Sequence[Any], rows: int) -> bool:
    shape, indices = shape_of(args[0]), args[1:]
    if len(indices) == 2:  # index_select(x, dim, order)
        axis, order = indices
        return isinstance(order, Ragged) and shape[axis] == rows
    given = [n for n, order in enumerate(indices[0]) if order is not None]
    return len(given) == 1 and isinstance(indices[0][given[0]], Ragged) and shape[given[0]] == rows
