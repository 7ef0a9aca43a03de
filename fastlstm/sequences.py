"""Sequences: what a Model is called with, as its engine runs it, and the answer laid out alike."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine
from fastlstm.arrays import offered, offers
from fastlstm.packed import PackedGraph

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

    inputs : list of array (T, B, ...), of the model's dtype or int64 tokens
        Of each input with a row for each step.
    held : list of array (B, ...), of each input that is held, or None if none was given
    lengths : intp (B,), the steps that each row has; None: T
    resets : bytes (T, B), 1 where a row starts anew before it reads a step; None: nowhere
    """

    inputs: list[Array]
    held: list[Array] | None
    layout: Layout
    lengths: Array | None = None
    resets: Array | None = None

    @property
    def rows(self) -> int:
        """B, 1 without a batch axis."""
        return int(self.inputs[0].shape[1])

    @property
    def batch_size(self) -> int | None:
        """B, or None without a batch axis."""
        return None if self.layout is Layout.UNBATCHED else self.rows

    def start(self, model: PackedGraph, state: Any) -> Array:
        """The states (B, state_size) that the sequences start from."""
        if state is None:
            if self.held is None:
                names = ", ".join(repr(port.name) for port in model._network.held)
                raise ValueError(f"x lacks {names}, which the model needs as a sequence starts")
            return model.start_block(self.rows, self.held)
        if self.resets is not None and self.held is None:
            names = ", ".join(repr(port.name) for port in model._network.held)
            raise ValueError(f"x lacks {names}, which a row needs where it starts anew")
        block = model.state_block(state, self.batch_size)
        if self.held and not model.holds(block, self.held):
            raise ValueError(
                "x has other rows of what is held for a sequence than the state; expected the "
                "same, or none: they are part of the state"
            )
        return block

    def run(self, model: PackedGraph, block: Array) -> Any:
        """Advance the states (B, state_size) of a block, in place, and return y as of a Model."""
        network = model._network
        T, ports = len(self.inputs[0]), network.outputs
        if network.keeps_steps and not network.folds:
            outputs = self._outputs(model, [T] * len(ports))
            _engine.run_whole(
                network, self.inputs, outputs, block, self.lengths, self.resets, self.held or []
            )
            given = [self._laid_out(y, self.lengths) for y in outputs]
        else:
            given = self._run_counted(model, block, T)
        if len(given) == 1:
            return given[0]
        return {port.name: y for port, y in zip(ports, given, strict=True)}

    def _run_counted(self, model: PackedGraph, block: Array, T: int) -> list[Any]:
        """Each output of a model that gives another number of rows than it reads, or late."""
        network = model._network
        counts = _engine.count_rows(network, block, T, self.lengths, whole=True)
        outputs = self._outputs(model, _most(counts))
        _engine.run_whole(
            network, self.inputs, outputs, block, self.lengths, self.resets, self.held or []
        )
        due = _engine.count_rows(network, block, 0, whole=True, ending=True)
        if due.any():
            last = self._outputs(model, _most(due))
            _engine.flush_whole(network, last, block)
            outputs = self._joined(model, outputs, counts, last, due)
            counts += due
        rows = [model.facts.rows[value] for value in model.graph.outputs.values()]
        full = self.rows and (self.lengths is None or self.lengths.max() == T)
        given = []
        for y, n, row in zip(outputs, counts, rows, strict=True):
            is_one = row.folded or row.held
            if is_one and full and not len(y):
                raise ValueError(
                    f"x has {T} steps, of which this model makes no row to "
                    f"{'pool' if row.folded else 'give'}; expected at least {model.delay + 1}"
                )
            given.append(self._one_row(y) if is_one else self._laid_out(y, n))
        return given

    def _outputs(self, model: PackedGraph, steps: list[int]) -> list[Array]:
        """New arrays (T', B, ...) of so many rows of each output, laid out as the caller has x."""
        B, made = self.rows, []
        new = np.empty if self.lengths is None else np.zeros
        for port, n in zip(model._network.outputs, steps, strict=True):
            if self.layout in (Layout.BATCH_FIRST, Layout.LIST):
                made.append(new((B, n, *port.shape), model.dtype).swapaxes(0, 1))
            else:
                made.append(new((n, B, *port.shape), model.dtype))
        return made

    def _joined(
        self, model: PackedGraph, some: list[Array], counts: Array, last: list[Array], due: Array
    ) -> list[Array]:
        """Each row's rows and those due behind them, zeros behind the last."""
        made = self._outputs(model, _most(counts + due))
        for y, first, n, second, m in zip(made, some, counts, last, due, strict=True):
            for b in range(self.rows):
                y[: n[b], b], y[n[b] : n[b] + m[b], b] = first[: n[b], b], second[: m[b], b]
                y[n[b] + m[b] :, b] = 0
        return made

    def _one_row(self, y: Array) -> Any:
        """An output (1, B, ...) or (0, B, ...) of one row for the whole sequence, as (B, ...)."""
        rows = y[0] if len(y) else np.zeros(y.shape[1:], y.dtype)
        if self.layout is Layout.LIST:
            return [row.copy() for row in rows]
        return rows[0] if self.layout is Layout.UNBATCHED else rows

    def _laid_out(self, y: Array, counts: Array | None) -> Any:
        """An output (T', B, ...) as the caller has the input; of a list counts (B,) rows each."""
        if self.layout is Layout.LIST:
            assert counts is not None
            # Copies: a view would keep the padding of all, for as long as one of them lives.
            return [y[:n, b].copy() for b, n in enumerate(counts.tolist())]
        if self.layout is Layout.BATCH_FIRST:
            return y.swapaxes(0, 1)
        return y[:, 0] if self.layout is Layout.UNBATCHED else y


def _most(counts: Array) -> list[int]:
    """The most rows of any row of the batch, of each output."""
    return [int(n) for n in counts.max(axis=1, initial=0)]


def is_packed(x: Any) -> bool:
    """Whether x is torch's PackedSequence, a named tuple; told without importing torch."""
    return isinstance(x, tuple) and hasattr(x, "batch_sizes")


def arrange(model: PackedGraph, x: Any, lengths: Any, reset: Any, batch_first: bool) -> Sequences:
    """Check what a call is given; parameters and errors are those of :meth:`Model.__call__`."""
    network = model._network
    if is_packed(x):
        raise TypeError(
            "x is a PackedSequence; expected NumPy arrays: call fastlstm.LSTM, GRU or RNN with it, "
            "or give a padded batch with lengths="
        )
    # A list without any array is taken for the numbers of one: the checks of arrays refuse it.
    if isinstance(x, list | tuple) and (not x or any(map(offers, x))):
        _check_of_list(model, lengths, reset, batch_first)
        return _of_list(model, x)
    moving, held = _parted(model, x)
    batched = _is_batched(model, network.given(moving)[0])
    leading: tuple[int | None, ...] = (None, None) if batched else (None,)
    inputs = network.arrays_of(moving, leading, lengths is None)
    if not batched and lengths is not None:
        raise ValueError("lengths are those of the rows of a batch; x has no batch axis")
    mask = None if reset is None else _as_resets(model, reset, inputs[0].shape[: 1 + batched])
    layout = Layout.TIME_FIRST
    if not batched:
        layout, inputs = Layout.UNBATCHED, [array[:, None] for array in inputs]
        mask = None if mask is None else mask[:, None]
    elif batch_first:
        layout, inputs = Layout.BATCH_FIRST, [array.swapaxes(0, 1) for array in inputs]
        mask = None if mask is None else np.ascontiguousarray(mask.T)
    T, B = inputs[0].shape[:2]
    if lengths is not None:
        lengths = _engine.as_lengths(offered("lengths", lengths), T, B)
        for port, array in zip(network.moving, inputs, strict=True):
            if port.tokens:
                _engine.check_tokens(array, port.tokens, lengths)
    kept = None if held is None else network.held_of(held, B, batched)
    return Sequences(inputs, kept, layout, lengths, mask)


def _parted(model: PackedGraph, x: Any) -> tuple[Any, dict[str, Any] | None]:
    """What is given of the inputs with a row for each step, and of those held; None: of none."""
    network = model._network
    if type(x) is np.ndarray or not isinstance(x, Mapping):
        return x, None if network.held else {}
    held = {port.name: x[port.name] for port in network.held if port.name in x}
    moving = {name: value for name, value in x.items() if name not in held}
    return moving, held if held or not network.held else None


def _is_batched(model: PackedGraph, x: Any) -> bool:
    """Whether x has a batch axis, as far as its axes tell."""
    # An array of a subclass may say anything of itself; its base class tells its real shape.
    real = x if type(x) is np.ndarray else offered("x", x)
    if isinstance(real, np.ndarray) and type(real) is not np.ndarray:
        real = np.asarray(real)
    return getattr(real, "ndim", None) == 2 + len(model._network.moving[0].shape)


def _of_list(model: PackedGraph, x: list[Any] | tuple[Any, ...]) -> Sequences:
    network, arrays = model._network, []
    (port,) = network.moving
    for n, one in enumerate(x):
        try:
            arrays.append(network.as_rows(port, one, (None,)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"sequence {n} of the list: {error}") from error
    lengths = np.array([len(one) for one in arrays], np.intp)
    shape = (len(arrays), int(lengths.max(initial=0)), *port.shape)
    # Of numbers whatever is in the memory behind an end is not looked at.
    padded: Array = np.zeros(shape, np.int64) if port.tokens else np.empty(shape, model.dtype)
    for row, one in zip(padded, arrays, strict=True):
        row[: len(one)] = one
    return Sequences([padded.swapaxes(0, 1)], [], Layout.LIST, lengths)


def _check_of_list(model: PackedGraph, lengths: Any, reset: Any, batch_first: bool) -> None:
    if len(model._network.inputs) > 1:
        names = ", ".join(repr(port.name) for port in model._network.inputs)
        raise TypeError(
            f"x is a list, which is for a model of one input; expected a mapping with {names} to "
            f"arrays (T, B, ...), and lengths="
        )
    for name, is_given, why in (
        ("lengths", lengths is not None, "each sequence of a list has its own"),
        ("batch_first", batch_first, "the sequences of a list have no batch axis"),
        ("reset", reset is not None, "the sequences of a list end at different steps; cut them "
         "where they start anew, or pad them into one array and give lengths="),
    ):  # fmt: skip
        if is_given:
            raise TypeError(f"{name} is an option of a batch in one array; {why}")


def _as_resets(model: PackedGraph, reset: Any, shape: tuple[int, ...]) -> Array:
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
    mask: Array = _engine.as_mask("reset", offered("reset", reset), shape)
    return mask
