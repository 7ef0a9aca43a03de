"""A finished plan as a program: outputs, held rows and buffers in their places, and numbers.

A buffer is free again behind the last operation that reads it. A loop counts as one operation: its
rows are read until all of it has run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastlstm.plan import operations as op
from fastlstm.plan.parallel import join_products
from fastlstm.plan.planner import Planner
from fastlstm.plan.program import Program
from fastlstm.plan.view import (
    ROWS,
    Array,
    Block,
    Matrix,
    Numbers,
    Step,
    Stored,
    View,
    fields_of,
    rows_of,
)
from fastlstm.reduced import Reduced

__all__ = ["emitted"]


def emitted(planner: Planner) -> Program:
    """The program of a plan whose nodes are all lowered."""
    _place_outputs(planner)
    _drop_unread(planner)
    join_products(planner)
    for steps in (planner.begin, planner.steps):
        for step in steps:
            step.body = [inner for inner in step.body if inner.operation is not None]
        steps[:] = [step for step in steps if step.operation is not None]
    _place_held(planner)
    emission = _Emission(planner)
    outputs = [stored.root for stored in planner.outputs]
    emission.program.buffers = _place_in_buffers([*planner.begin, *planner.steps], outputs)
    return emission.all()


_ON_ROWS = (
    *(op.Move, op.Map, op.Product, op.Taps, op.MatMul, op.Reduce, op.Softmax, op.Norm),
    *(op.Lookup, op.OneHot),
)
_NUMBERED = (*ROWS, "vector", "matrix", "list")


def _replaced(operation: Any, others: dict[Stored, Stored]) -> Any:
    """The operation with other rows in the place of some, and of their stretches."""
    fields = [
        _other(value, others)
        if kind in ROWS and isinstance(value, Stored)
        else [_other(stored, others) for stored in value]
        if name in ("reads", "ys")
        else value
        for kind, name, value in fields_of(operation)
    ]
    return type(operation)(*fields)


def _other(stored: Stored, others: dict[Stored, Stored]) -> Stored:
    other = others.get(stored.root)
    return other.stretch(stored.begin, stored.count) if other else stored


def _flat(steps: Sequence[Step]) -> Iterator[Step]:
    """Steps, those of a loop behind it."""
    for step in steps:
        yield step
        yield from step.body


def _place_outputs(planner: Planner) -> None:
    """Have the rows of outputs made in place; those that lie elsewhere too are copied from there.

    What is no stored row as it is, is moved; tokens become numbers by that.
    """
    for number, name in enumerate(planner.graph.outputs.values()):
        view = planner.views[name].cut
        stored = view.sources[0]
        if not view.in_order or stored.tokens:
            stored = planner.move(view)
        if stored.place == "buffer" and stored.line >= 0:
            stored.place, stored.number = "output", number
        planner.outputs.append(stored)


def _drop_unread(planner: Planner) -> None:
    """Have nothing made that nobody reads: what moves a row may leave out some parts of it."""
    read = {stored.root for stored in planner.outputs}
    for steps in (planner.steps, planner.begin):
        for step in reversed([*_flat(steps)]):
            if type(step.operation) in _ON_ROWS and step.operation.y not in read:
                step.operation = None
            elif step.operation is not None:
                made = getattr(step.operation, "y", None)
                read.update(s.root for s in rows_of(step.operation) if s is not made)


def _place_held(planner: Planner) -> None:
    """Have in the state what is held and read later, also of inputs."""
    later = [stored.root for step in _flat(planner.steps) for stored in rows_of(step.operation)]
    copies: dict[Stored, Stored] = {}
    for stored in (*later, *(stored.root for stored in planner.outputs)):
        if stored.line < 0 and stored.place == "input" and stored not in copies:
            copies[stored] = planner.move(View.of(stored, (stored.count,)))
    for step in _flat(planner.steps):
        step.operation = _replaced(step.operation, copies)
    planner.outputs = [_other(stored, copies) for stored in planner.outputs]
    named = reversed(planner.views.items())
    names = {stored.root: name for name, view in named for stored in view.sources}
    names |= {copy: names[stored] for stored, copy in copies.items()}
    outputs = [stored.root for stored in planner.outputs]
    for stored in (*later, *outputs, *copies.values()):
        if stored.line < 0 and stored.place == "buffer":
            name = f"{names.get(stored, 'value')}.held"
            stored.place, stored.number = "state", planner.row_beside(name, stored.count)


def _place_in_buffers(steps: Sequence[Step], outputs: Sequence[Stored]) -> int:
    """Give each row that is in a buffer one while it is needed; how many buffers there are.

    Rows of outputs that lie in one are copied from there when all has run.
    """
    rows = [
        dict.fromkeys(s.root for inner in _flat([step]) for s in rows_of(inner.operation))
        for step in steps
    ]
    last = {stored: at for at, here in enumerate(rows) for stored in here}
    last |= dict.fromkeys(outputs, len(rows))
    sizes: list[int] = []  # of each buffer, the most numbers of a row in it
    free: set[int] = set()
    placed: set[Stored] = set()
    for at, here in enumerate(rows):
        for stored in here:
            if stored.place != "buffer" or stored in placed:
                continue
            placed.add(stored)
            # The one that wastes least, and if none is large enough, the largest.
            number = min(
                free,
                key=lambda n: (sizes[n] < stored.count, abs(sizes[n] - stored.count), n),
                default=len(sizes),
            )
            sizes += [0] * (number == len(sizes))
            sizes[number] = max(sizes[number], stored.count)
            free.discard(number)
            stored.number = number
        free |= {s.number for s in here if s.place == "buffer" and last[s] == at}
    return len(sizes)


class _Emission:
    """The program as it is filled; what a plan has gets its number when it is first met."""

    def __init__(self, planner: Planner) -> None:
        self.planner, self.program = planner, Program()
        self._values: dict[Stored, int] = {}
        self._tensors: dict[str, int] = {}

    def all(self) -> Program:
        planner, program = self.planner, self.program
        program.lines, program.looks_ahead = planner.lines, int(bool(planner.facts.looks_ahead))
        program.inputs = [self.value(stored) for stored in planner.inputs]
        program.outputs = [self.value(stored) for stored in planner.outputs]
        program.input_names = [given.name for given in planner.graph.inputs]
        program.output_names = list(planner.graph.outputs)
        for steps in (planner.begin, planner.steps):
            for step in _flat(steps):
                if step.body:
                    step.operation = op.Loop(len(step.body))
                program.add(self.operation(step.operation))
        program.held = len(planner.begin)
        program.state_size = planner.state_size
        for name, part in planner.parts.items():
            program.part(part._replace(order=self.list(part.order)), name)
        for offset, numbers in planner.initial:
            program.start(offset, self.vector(numbers))
        return program

    def operation(self, operation: Any) -> Any:
        fields = []
        for kind, name, value in fields_of(operation):
            if kind in _NUMBERED and (value is None or value is op.NONE):
                fields.append(op.NONE)
            elif kind in ("value", "some_value"):
                fields.append(self.value(value))
            elif kind == "vector":
                fields.append(self.vector(value))
            elif kind == "matrix":
                fields.append(self.matrix(value))
            elif name in ("reads", "ys"):
                fields.append(self.program.list_of([self.value(stored) for stored in value]))
            elif name == "matrices":
                fields.append(self.program.list_of([self.matrix(matrix) for matrix in value]))
            elif name == "code":
                fields.append(self.program.code(value))
            elif kind == "list":
                fields.append(self.list(value))
            else:
                fields.append(value)
        return type(operation)(*fields)

    def list(self, numbers: Any) -> int:
        if numbers is None or numbers is op.NONE:
            return op.NONE
        return self.program.list_of(np.asarray(numbers, np.int64))

    def value(self, stored: Stored) -> int:
        if stored not in self._values and stored.of is not None:
            root, count = stored.root, stored.count
            number = self.value(root)
            if count < root.count:
                number = self.program.stretch(number, stored.begin, count)
            self._values[stored] = number
        elif stored not in self._values:
            number = self.vector(stored.numbers) if stored.numbers else stored.number
            self._values[stored] = self.program.value(
                stored.count, stored.line, stored.place, number, stored.tokens
            )
        return self._values[stored]

    def tensor(self, name: str) -> int:
        if name not in self._tensors:
            tensor = self.planner.tensors[name]
            stored = tensor.precision if isinstance(tensor, Reduced) else "real"
            self._tensors[name] = self.program.tensor(int(np.size(tensor)), name, stored)
        return self._tensors[name]

    def vector(self, numbers: Numbers) -> int:
        if not numbers.tensor:
            return self.program.vector(numbers.array)
        return self.program.vector_of(self.tensor(numbers.tensor), numbers.first, len(numbers))

    def matrix(self, matrix: Matrix) -> int:
        pieces = [self.piece(block) for block in matrix.blocks]
        stored = self.planner.stored(matrix)
        scale = self.program.vector(self.scales(matrix)) if stored == "int8" else op.NONE
        return self.program.matrix(matrix.rows, matrix.columns, pieces, stored, scale)

    def scales(self, matrix: Matrix) -> Array:
        """Of each row of an int8 matrix the scale of the output that it is; 1 of zeros."""
        scales = np.ones(matrix.rows, np.float32)
        for block in matrix.blocks:
            tensor: Any = self.planner.tensors[str(block.tensor)]
            # All numbers of a row are of one output: any of them tells which.
            column = 0 if block.order is None else block.order[np.argmax(block.order >= 0)]
            numbers = block.first + np.arange(block.rows) * block.row_stride + column
            each = math.prod(tensor.shape[tensor.axis + 1 :])
            outputs = numbers // each % len(tensor.scale)
            scales[block.row : block.row + block.rows] = tensor.scale[outputs]
        return scales

    def piece(self, block: Block) -> op.Piece:
        if isinstance(block.tensor, str):
            tensor, first = self.tensor(block.tensor), block.first
        else:
            own = self.program.vectors[self.program.vector(block.tensor)]
            tensor, first = op.NONE, own.first + block.first
        place = (block.row, block.rows, block.column, block.columns)
        strides = (block.row_stride, block.column_stride)
        return op.Piece(*place, tensor, first, *strides, self.list(block.order))
