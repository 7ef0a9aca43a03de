"""A program run in NumPy: what core/operations.h says of every operation, in the simplest way.

It is the proof that a plan is right, and what the core's numbers are compared with. Each operation
is one function of the call and its fields, written from their comments alone. Values are arrays
(T, B, count), of any float dtype; one that is held has T = 1, and a constant B = 1 too. Arrays of
another library that follow NumPy's protocols, given with its module, are computed by it.

A state is one array (B, state_size), which the program lays out: a copy of it is a saved stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rows_in_numpy as rows
import time_in_numpy as time
from recurrence_in_numpy import recurrent

from fastlstm.plan import operations as op
from fastlstm.plan.program import Program

__all__ = ["Call", "NumPyProgram"]

Array = Any
DIGIT = 2**24  # the base of counts of two digits


class NumPyProgram:
    """A program with its tensors.

    Parameters
    ----------
    program : Program
    tensors : sequence of array
        In the order of the program's tensors, of any shape and float dtype.
    dtype : dtype, default float64
        What to compute in.
    arrays : module, default numpy
        What makes new arrays.
    """

    def __init__(
        self, program: Program, tensors: Sequence[Array], dtype: Any = np.float64, arrays: Any = np
    ) -> None:
        self.program, self.dtype, self.arrays = program, np.dtype(dtype), arrays
        self.sources = [arrays.asarray(t).reshape(-1).astype(dtype) for t in tensors]
        assert [t.count for t in program.tensors] == [len(t) for t in self.sources]
        self.sources.append(arrays.asarray(program.reals, dtype=dtype))  # number -1
        self._made: dict[Any, Any] = {}

    def begin(self, B: int, held: Sequence[Array] = ()) -> Array:
        """The state (B, state_size) of new streams, from the held inputs (B, count), in order."""
        state = self.arrays.zeros((B, self.program.state_size), self.dtype)
        for initial in self.program.initial:
            values = self.vector(initial.values)
            state[:, initial.offset : initial.offset + len(values)] = values
        call = Call(self, state)
        call.give([x[None] for x in held], held=True)
        call.go_through(self.program.operations[: self.program.held])
        return state

    def run(self, state: Array, inputs: Sequence[Array], *, whole: bool = False) -> list[Array]:
        """The rows of each output that T more steps give; the state is advanced.

        Parameters
        ----------
        state : array (B, state_size)
        inputs : sequence of array (T, B, count)
            Of the inputs that are not held, in their order.
        whole : bool
            Whether folds have one row, at the end of the sequence.
        """
        return self._run(state, inputs, ending=False, whole=whole)

    def flush(self, state: Array, *, whole: bool = False) -> list[Array]:
        """The rows of each output that are due at the end; the state stays as it is."""
        values = [self.program.values[number] for number in self.program.inputs]
        none = [
            self.arrays.zeros(
                (0, len(state), value.count), np.int64 if value.tokens else self.dtype
            )
            for value in values
            if value.line == 0
        ]
        return self._run(state.copy(), none, ending=True, whole=whole)

    def whole(self, B: int, held: Sequence[Array], inputs: Sequence[Array]) -> list[Array]:
        """The rows of each output of a whole sequence, also of a program that looks ahead."""
        return self._run(self.begin(B, held), inputs, ending=True, whole=True)

    def _run(
        self, state: Array, inputs: Sequence[Array], *, ending: bool, whole: bool
    ) -> list[Array]:
        call = Call(self, state, ending=ending, whole=whole)
        call.rows[0] = len(inputs[0]) if inputs else 0
        call.give(inputs, held=False)
        call.go_through(self.program.operations[self.program.held :])
        B = len(state)
        return [
            np.broadcast_to(y, (len(y), B, y.shape[-1]))
            for y in map(call.get, self.program.outputs)
        ]

    def read(self, state: Array, part: op.Part) -> Array:
        """A part of the state as those see it who read it by name: (B, rows, count)."""
        rows = state[:, part.offset : part.offset + part.rows * part.count]
        rows = rows.reshape(len(state), part.rows, part.count)
        if part.part == "ring":
            rows = np.take_along_axis(rows, _slots(state, part)[..., None], axis=1)
        order = self.list(part.order)
        return rows if order is None else rows[..., order]

    def write(self, state: Array, part: op.Part, rows: Array) -> None:
        """The inverse of :meth:`read`."""
        order, lying = self.list(part.order), rows.copy()
        if order is not None:
            lying[..., order] = rows
        if part.part == "ring":
            moved = lying.copy()
            np.put_along_axis(moved, _slots(state, part)[..., None], lying, axis=1)
            lying = moved
        end = part.offset + part.rows * part.count
        state[:, part.offset : end] = lying.reshape(len(state), -1)

    def once(self, what: Any, make: Callable[[], Any]) -> Any:
        """What is derived of the program alone, made once."""
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    def list(self, number: int) -> Any:
        """A list as an array of integers, or None."""
        if number < 0:
            return None
        return self.program.lists[number]

    def vector(self, number: int) -> Any:
        """(count,), or None."""
        if number < 0:
            return None
        tensor, first, count = self.program.vectors[number]
        return self.sources[tensor][first : first + count]

    def matrix(self, number: int) -> Any:
        """(rows, columns), or None."""
        if number < 0:
            return None
        return self.once(("matrix", number), lambda: self._matrix(self.program.matrices[number]))

    def _matrix(self, matrix: op.Matrix) -> Any:
        made = self._numbers(matrix)
        if matrix.scale < 0:
            return made
        scale = self.vector(matrix.scale).astype(np.float32)
        return Integers(made, scale) if matrix.stored == "int8" else made * scale[:, None]

    def _numbers(self, matrix: op.Matrix) -> Array:
        made = self.arrays.zeros((matrix.rows, matrix.columns), self.dtype)
        for piece in self.program.pieces[matrix.first_piece :][: matrix.pieces]:
            columns = np.arange(piece.columns) * piece.column_stride
            order = self.list(piece.order)
            columns = columns if order is None else order
            assert len(columns) == piece.columns
            numbers = piece.first + np.arange(piece.rows)[:, None] * piece.row_stride + columns
            there = np.broadcast_to((columns >= 0) | (order is None), numbers.shape)
            at = np.s_[piece.row :, piece.column :]
            part = made[at][: piece.rows, : piece.columns]
            assert not part.any(), "pieces overlap"
            part[...] = np.where(there, self.sources[piece.tensor][np.where(there, numbers, 0)], 0)
        return made


class Integers:
    """A matrix (rows, columns) of integers with a scale for each row, as arrays are used here.

    It multiplies rows of floats as ``core/operations.h`` says, and rows of it are floats again.
    """

    __array_ufunc__ = None

    def __init__(self, numbers: Array, scale: Array, turned: bool = False) -> None:
        self.numbers, self.scale, self.turned = numbers.astype(np.float64), scale, turned

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape[:: -1 if self.turned else 1]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def T(self) -> Integers:  # noqa: N802 - as an array's
        return Integers(self.numbers, self.scale, not self.turned)

    def __getitem__(self, rows: Any) -> Any:
        if self.turned:
            return np.eye(len(self))[rows] @ self
        if isinstance(rows, slice):
            return Integers(self.numbers[rows], self.scale[rows])
        return (self.numbers[rows].astype(np.float32) * self.scale[rows][..., None]).astype(float)

    def __rmatmul__(self, x: Array) -> Array:
        assert self.turned
        y = np.zeros((*x.shape[:-1], len(self.scale)), x.dtype)
        for at in np.ndindex(x.shape[:-1]):
            row = x[at].astype(np.float32)
            most = np.abs(row).max()
            if not np.isfinite(most):
                y[at] = np.nan
            elif most >= 2.0**-100:
                whole = np.rint(row * (np.float32(127) / most))
                sums = (self.numbers @ whole.astype(np.float64)).astype(np.float32)
                y[at] = sums * (most / np.float32(127) * self.scale)
        return y


def _slots(state: Array, part: op.Part) -> Array:
    """Where the rows of a ring lie, the oldest first: (B, rows)."""
    if part.rows == 1:
        return np.zeros((len(state), 1), np.int64)
    position = state[:, part.position].astype(np.int64)
    return (position[:, None] + np.arange(part.rows)) % part.rows


class Call:
    """A chunk of steps on its way through a program.

    Attributes
    ----------
    rows : dict of int to int
        Line -> how many rows it has; the rows of a batch have as many each.
    row : int or None
        Within a loop, the row that is computed.
    """

    def __init__(
        self, program: NumPyProgram, state: Array, *, ending: bool = False, whole: bool = False
    ) -> None:
        self.of, self.state, self.ending, self.whole = program, state, ending, whole
        self.rows: dict[int, int] = {-1: 1}
        self.row: int | None = None
        self._kept: dict[tuple[str, int], Array] = {}

    def give(self, inputs: Sequence[Array], *, held: bool) -> None:
        values = [self.of.program.values[number] for number in self.of.program.inputs]
        wanted = [value for value in values if (value.line < 0) == held]
        for value, x in zip(wanted, inputs, strict=True):
            assert x.shape == (self.rows[value.line], len(self.state), value.count)
            self._kept["input", value.number] = x if value.tokens else x.astype(self.of.dtype)

    def go_through(self, operations: Sequence[Any]) -> None:
        at = 0
        while at < len(operations):
            one = operations[at]
            if isinstance(one, op.Loop):
                self._loop(operations[at + 1 : at + 1 + one.operations])
                at += one.operations
            else:
                RUN[type(one)](self, one)
            at += 1

    def _loop(self, operations: Sequence[Any]) -> None:
        made = [one.y for one in operations if hasattr(one, "y")]
        lines = {self._value(y).line for y in made} - {-1}
        T = next(self.rows[line] for line in lines if line in self.rows)
        self.rows |= dict.fromkeys(lines, T)
        for self.row in range(T):
            self.go_through(operations)
        self.row = None
        if not T:
            for y in (y for y in made if self._value(y).line >= 0):
                self.put(y, self.of.arrays.zeros((0, 1, self._value(y).count), self.of.dtype))

    def _value(self, number: int) -> op.Value:
        value: op.Value = self.of.program.values[number]
        return value

    def get(self, number: int) -> Array:
        """The rows of a value (T, B, count), of a loop the one that is computed."""
        value = self._value(number)
        if value.place == "vector":
            x = self.of.vector(value.number)[None, None]
        elif value.place == "state":
            x = self.state[None, :, value.number : value.number + value.count]
        elif value.place == "stretch":
            return self.get(value.number)[..., value.first : value.first + value.count]
        else:
            x = self._kept[value.place, value.number]
        assert x.shape[-1] == value.count
        if value.line < 0:
            return x
        assert len(x) == self.rows[value.line]
        return x if self.row is None else x[self.row : self.row + 1]

    def side_by_side(self, numbers: int) -> Array:
        """The numbers of a list of values, counted on: (T, B, all of them)."""
        xs = [self.get(number) for number in self.of.program.lists[numbers]]
        if len(xs) == 1:
            return xs[0]
        steps = np.broadcast_shapes(*(x.shape[:2] for x in xs))
        return np.concatenate([np.broadcast_to(x, (*steps, x.shape[-1])) for x in xs], axis=-1)

    def put(self, number: int, y: Array) -> None:
        """The rows of a value (T, B, axes of count numbers), or in a loop its next one."""
        value = self._value(number)
        y = y.reshape(*y.shape[:2], value.count)
        shape = (self.rows[value.line], len(self.state), value.count)
        if value.place == "state":
            self.state[:, value.number : value.number + value.count] = y[0]
        elif self.row is None or value.line < 0:
            self._kept[value.place, value.number] = np.broadcast_to(y, shape)
        else:
            if self.row == 0:
                self._kept[value.place, value.number] = self.before(number)
            self._kept[value.place, value.number][self.row] = y[0]

    def put_new(self, number: int, y: Array) -> None:
        """The rows of a value that tell how many its line has."""
        if self.row is None:
            line = self._value(number).line
            assert self.rows.setdefault(line, len(y)) == len(y)
        self.put(number, y)

    def rows_now(self, number: int) -> int:
        """How many rows of a value :meth:`put` is given."""
        return self.rows[self._value(number).line] if self.row is None else 1

    def written_in_part(self, number: int) -> Array:
        """What :meth:`put` is given of a value of which an operation makes some columns."""
        if self.row:
            value = self._value(number)
            return self._kept[value.place, value.number][self.row : self.row + 1].copy()
        return self.before(number)[: 1 if self.row == 0 else None]

    def before(self, number: int) -> Array:
        """A copy of what is where a value will be, as it was written in parts; else NaN."""
        value = self._value(number)
        shape = (self.rows[value.line], len(self.state), value.count)
        kept = self._kept.get((value.place, value.number))
        if value.place == "state":
            kept = self.state[None, :, value.number : value.number + value.count]
        if kept is None or kept.shape != shape:
            return self.of.arrays.full(shape, np.nan, self.of.dtype)
        return np.array(kept)

    def ring(self, offset: int, rows: int, count: int, position: int) -> Array:
        """The rows (rows, B, count) of a ring, the oldest first."""
        part = op.Part("ring", offset, rows, count, position)
        return np.moveaxis(self.of.read(self.state, part), 1, 0)

    def keep(self, offset: int, rows: Array, position: int, taken: int) -> None:
        """Put the last rows into a ring that has taken so many."""
        n, _, count = rows.shape
        if n > 1:
            self.state[:, position] = (self.state[:, position] + taken) % n
        self.of.write(
            self.state, op.Part("ring", offset, n, count, position), np.moveaxis(rows, 0, 1)
        )

    def count(self, offset: int, digits: int) -> int:
        """An integer in the state, of all rows of the batch the same."""
        values = self.state[:, offset : offset + digits] @ DIGIT ** np.arange(digits)
        assert (values == values[0]).all(), "rows of one call have read as many steps"
        return int(values[0])

    def set_count(self, offset: int, digits: int, value: int) -> None:
        for digit in range(digits):
            self.state[:, offset + digit] = value // DIGIT**digit % DIGIT


RUN: dict[Any, Callable[[Call, Any], None]] = {
    op.Move: rows.move,
    op.Map: rows.map_numbers,
    op.Product: rows.product,
    op.Taps: rows.taps,
    op.MatMul: rows.matmul,
    op.Reduce: rows.reduce,
    op.Softmax: rows.softmax,
    op.Norm: rows.norm,
    op.Lookup: rows.lookup,
    op.OneHot: rows.one_hot,
    op.Window: time.window,
    op.Delay: time.delay,
    op.Recall: time.recall,
    op.Remember: time.remember,
    op.Spread: time.spread,
    op.Fold: time.fold,
    op.Attention: time.attention,
    op.Meet: time.meet,
    op.Start: time.start,
    op.Recurrent: recurrent,
}
