"""Sequences: what a Model is called with, as its engine runs it, and the answer laid out alike."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine

if TYPE_CHECKING:
    from fastlstm.model import Model

__all__ = ["Sequences", "arrange", "is_packed"]

Array = npt.NDArray[Any]


class Layout(enum.Enum):
    """How the caller has the rows of x, and wants those of y."""

    UNBATCHED = enum.auto()  # (T, ...)
    TIME_FIRST = enum.auto()  # (T, B, ...)
    BATCH_FIRST = enum.auto()  # (B, T, ...)
    LIST = enum.auto()  # of B arrays (T_b, ...)


@dataclasses.dataclass(frozen=True, slots=True)
class Sequences:
    """Rows that run together, checked.

    x : array (T, B, I) of the model's dtype, or int64 tokens (T, B)
    lengths : intp (B,), the steps that each row has; None: T
    resets : bytes (T, B), 1 where a row starts anew before it reads a step; None: nowhere
    """

    x: Array
    layout: Layout
    lengths: Array | None = None
    resets: Array | None = None

    @property
    def batch_size(self) -> int | None:
        """B, or None without a batch axis."""
        return None if self.layout is Layout.UNBATCHED else self.x.shape[1]

    def run(self, model: Model, block: Array) -> Any:
        """Advance the states (B, state_size) of a block, in place, and return y as of a Model."""
        network, size = model._network, model.output_size
        T, B = self.x.shape[:2]
        steps = network.output_steps(T, True, block[0]) if B else T
        if model.pools_over_time and B and not steps:
            raise ValueError(
                f"x has {T} steps, of which this model makes no row to pool; expected at least "
                f"{model.delay + 1}"
            )
        ends: list[int] = []
        if self.layout is Layout.LIST and self.lengths is not None:
            ends = [network.output_steps(n, True, block[0]) for n in self.lengths.tolist()]
        new = np.empty if self.lengths is None else np.zeros
        if self.layout in (Layout.BATCH_FIRST, Layout.LIST):
            y = new((B, steps, size), model.dtype).swapaxes(0, 1)
        else:
            y = new((steps, B, size), model.dtype)
        network.run(self.x, y, block, self.lengths, self.resets)
        if model.pools_over_time:
            rows = y[0] if len(y) else np.empty((B, size), model.dtype)
            if self.layout is Layout.LIST:
                return [row.copy() for row in rows]
            return rows[0] if self.layout is Layout.UNBATCHED else rows
        if self.layout is Layout.LIST:
            # Copies: a view would keep the padding of all, for as long as one of them lives.
            return [y[:end, b].copy() for b, end in enumerate(ends)]
        if self.layout is Layout.BATCH_FIRST:
            return y.swapaxes(0, 1)
        return y[:, 0] if self.layout is Layout.UNBATCHED else y


def is_packed(x: Any) -> bool:
    """Whether x is torch's PackedSequence, a named tuple; told without importing torch."""
    return isinstance(x, tuple) and hasattr(x, "batch_sizes")


def arrange(model: Model, x: Any, lengths: Any, reset: Any, batch_first: bool) -> Sequences:
    """Check what a call is given; parameters and errors are those of :meth:`Model.__call__`."""
    if is_packed(x):
        raise TypeError(
            "x is a PackedSequence; expected NumPy arrays: call fastlstm.LSTM, GRU or RNN with it, "
            "or give a padded batch with lengths="
        )
    # A list without any array is taken for the numbers of one: the checks of arrays refuse it.
    if isinstance(x, list | tuple) and (not x or any(isinstance(one, np.ndarray) for one in x)):
        _check_of_list(lengths, reset, batch_first)
        return _of_list(model, x)
    # An array of a subclass may say anything of itself; its base class tells its real shape.
    real = np.asarray(x) if isinstance(x, np.ndarray) else x
    batched = getattr(real, "ndim", None) == (2 if model.takes_tokens else 3)
    array = _checked(model, x, batched, lengths is None)
    if not batched:
        if lengths is not None:
            raise ValueError("lengths are those of the rows of a batch; x has no batch axis")
        mask = None if reset is None else _as_resets(model, reset, array.shape[:1])[:, None]
        return Sequences(array[:, None], Layout.UNBATCHED, None, mask)
    mask = None if reset is None else _as_resets(model, reset, array.shape[:2])
    layout = Layout.TIME_FIRST
    if batch_first:
        layout, array = Layout.BATCH_FIRST, array.swapaxes(0, 1)
        mask = None if mask is None else np.ascontiguousarray(mask.T)
    if lengths is not None:
        lengths = _engine.as_lengths(lengths, *array.shape[:2])
        if model.takes_tokens:
            _engine.check_tokens(array, model.input_size, lengths)
    return Sequences(array, layout, lengths, mask)


def _checked(model: Model, x: Any, batched: bool, all_count: bool = True) -> Array:
    """x as the engine takes it; if not all of it counts, tokens are still of any value."""
    leading = (None, None) if batched else (None,)
    if model.takes_tokens:
        return _engine.as_tokens(x, leading, model.input_size, all_count)
    return _engine.as_features(x, model.dtype, (*leading, model.input_size))


def _of_list(model: Model, x: list[Any] | tuple[Any, ...]) -> Sequences:
    arrays = []
    for n, one in enumerate(x):
        try:
            arrays.append(_checked(model, one, batched=False))
        except (TypeError, ValueError) as error:
            raise type(error)(f"sequence {n} of the list: {error}") from error
    lengths = np.array([len(one) for one in arrays], np.intp)
    T = int(lengths.max(initial=0))
    padded: Array
    if model.takes_tokens:
        padded = np.zeros((len(arrays), T), np.int64)
    else:  # whatever is in the memory behind an end is not looked at
        padded = np.empty((len(arrays), T, model.input_size), model.dtype)
    for row, one in zip(padded, arrays, strict=True):
        row[: len(one)] = one
    return Sequences(padded.swapaxes(0, 1), Layout.LIST, lengths)


def _check_of_list(lengths: Any, reset: Any, batch_first: bool) -> None:
    for name, is_given, why in (
        ("lengths", lengths is not None, "each sequence of a list has its own"),
        ("batch_first", batch_first, "the sequences of a list have no batch axis"),
        ("reset", reset is not None, "the sequences of a list end at different steps; cut them "
         "where they start anew, or pad them into one array and give lengths="),
    ):  # fmt: skip
        if is_given:
            raise TypeError(f"{name} is an option of a batch in one array; {why}")


def _as_resets(model: Model, reset: Any, shape: tuple[int, ...]) -> Array:
    why = ""
    if model.looks_ahead:
        why = f"{model.looks_ahead}, so that steps before a reset would see those behind it"
    elif model.pools_over_time:
        why = "this model pools over time and has one row for all that lies between resets"
    elif not model._network.keeps_steps:
        why = (
            "this model does not give an output for every step, so that rows that start at "
            "different times give theirs at different times"
        )
    if why:
        raise ValueError(
            f"reset cannot be used: {why}; give what lies between resets as sequences of their "
            f"own: model([x0, x1, ...])"
        )
    return _engine.as_mask("reset", reset, shape)
