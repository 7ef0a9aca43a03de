"""Functions of numbers, number by number, in whatever order what they read lies.

A map of which nobody else reads what it makes becomes a part of the map behind it, and a function,
a scale or a shift behind a product becomes a field of the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastlstm.plan import operations as op
from fastlstm.plan.planner import Planner
from fastlstm.plan.program import Instruction
from fastlstm.plan.view import Array, Numbers, Places, Step, Stored, View
from fastlstm.spec import Function, Shape

__all__ = ["elementwise", "scaled"]

MOST = 48  # registers of a map, of the 64 that the core has
CODE = 2**16

Axes = tuple[list[int], list[list[int]]]


def elementwise(planner: Planner, function: Function, views: Sequence[View], shape: Shape) -> View:
    """A function of one number, or of two or three, of views whose axes broadcast to a shape."""
    views = [view.at(np.broadcast_to(view.places, shape)) for view in views]
    function, views = _with_parameters(function, views)
    if len(views) == 1 and (made := _behind_product(planner, function, views[0])):
        return made
    linear = _scale_and_shift(function, views)
    if linear and (made := _linear(planner, *linear)):
        return made
    return _Map(planner, views).made([Instruction(function, *range(len(views)))])


def scaled(planner: Planner, view: View, scale: Array, shift: Array) -> View:
    """scale * x + shift, of arrays whose axes broadcast to those of x."""
    if made := _linear(planner, view, scale, shift):
        return made
    vectors = (planner.constant(array) for array in (scale, shift))
    views = [view, *(v.at(np.broadcast_to(v.places, view.shape)) for v in vectors)]
    times, plus = Function("multiply"), Function("add")
    return _Map(planner, views).made([Instruction(times, 0, 1), Instruction(plus, 3, 2)])


def _with_parameters(function: Function, views: list[View]) -> tuple[Function, list[View]]:
    """The function with a number that one of its two operands is for all as its parameter."""
    if len(views) == 2:
        for x, other, first in ((views[0], views[1], True), (views[1], views[0], False)):
            number = other.array.flat[0] if other.constant else math.nan
            if not math.isfinite(number) or not (other.array == number).all():
                continue
            if function.name == "add":
                return Function("affine", 1.0, number), [x]
            if function.name == "subtract":
                return Function("affine", *((1.0, -number) if first else (-1.0, number))), [x]
            if function.name == "multiply":
                return Function("affine", number, 0.0), [x]
            if function.name == "power" and first and number == 2:
                return Function("square"), [x]
    return function, views


def _scale_and_shift(function: Function, views: list[View]) -> tuple[View, Array, Array] | None:
    """What is scaled and shifted, and by what, if that is all that a function does."""
    if function.name == "affine":
        ones = np.ones(views[0].shape)
        return views[0], ones * function.alpha, ones * function.beta
    if len(views) != 2 or views[0].constant == views[1].constant:
        return None
    x, other = views if views[1].constant else views[::-1]
    numbers, ones = other.array, np.ones(x.shape)
    if function.name == "add":
        return x, ones, numbers
    if function.name == "subtract":
        return (x, ones, -numbers) if x is views[0] else (x, -ones, numbers)
    if function.name == "multiply":
        return x, numbers, 0 * ones
    return None


def _product(planner: Planner, view: View) -> Step | None:
    """The product that makes a view, if nothing but a field of it is to change."""
    step = planner.replaced(view, op.Product) or planner.replaced(view, op.Taps)
    return step if step and step.operation.function == op.IDENTITY else None


def _behind_product(planner: Planner, function: Function, view: View) -> View | None:
    step = _product(planner, view)
    if step is None or function.name == "affine":
        return None
    step.operation = step.operation._replace(function=function)
    return view


def _linear(planner: Planner, view: View, scale: Array, shift: Array) -> View | None:
    """scale * x + shift as fields of the product that makes x."""
    if (step := _product(planner, view)) is None:
        return None
    product, lying = step.operation, np.argsort(view.places.ravel())
    rows = [
        np.broadcast_to(a, view.shape).ravel()[lying].reshape(product.positions, -1)
        for a in (scale, shift)
    ]
    if not all(np.array_equal(a[1:], a[:-1], equal_nan=True) for a in rows):
        return None  # it is another one at each position
    new_scale, new_shift = (a[0] for a in rows)
    bias, before, behind = product.bias, product.scale, product.shift
    if before is None and (new_scale == 1).all():
        total = new_shift if bias is None else bias.array + new_shift
        step.operation = product._replace(bias=Numbers(total))
        return view
    # A bias is a part of the shift: what a norm takes away again would cost the sum its digits.
    kept = behind if before is not None else bias
    scales = new_scale if before is None else before.array * new_scale
    shifts = new_shift if kept is None else kept.array * new_scale + new_shift
    if before is None:
        product = product._replace(bias=None)
    step.operation = product._replace(scale=Numbers(scales), shift=Numbers(shifts))
    return view


class _Map:
    """A map as it is put together: what it reads, in the order of what it makes.

    Registers of code are numbered from `CODE` on until it is known how many values are read.

    Parameters
    ----------
    views : sequence of View
        All of the shape of what is made.
    """

    def __init__(self, planner: Planner, views: Sequence[View]) -> None:
        self.planner, self.shape = planner, views[0].shape
        self.line = max(view.line for view in views)
        self.reads: list[Stored] = []
        self.at: list[Places] = []  # of each, the place of every number of y
        self.code: list[Instruction] = []  # of maps before, which become a part of this one
        full = [view for view in views if view.whole]
        places = full[0].places.ravel() if full else np.arange(math.prod(self.shape))
        self.order = np.argsort(places)  # which number of the row each one is that lies in y
        self.registers = [self._operand(view) for view in views]

    def made(self, code: Sequence[Instruction]) -> View:
        """What the code makes, whose first registers are the views."""
        self._append(code, self.registers)
        made = self.planner.store(len(self.order), self.line)
        code = [
            Instruction(
                function, *(r if r < CODE else r - CODE + len(self.reads) for r in registers)
            )
            for function, *registers in self.code
        ]
        shape, strides = _factored(self.at)  # type: ignore[misc]
        begins = [int(places[0]) for places in self.at]
        self.planner.add(op.Map(self.reads, made, shape, strides, code, begins))
        return View.of(made, self.shape, np.argsort(self.order))

    def _append(self, code: Sequence[Instruction], reads: Sequence[int]) -> None:
        """Code whose first registers are here those of other numbers."""
        known = [*reads, *(CODE + len(self.code) + number for number in range(len(code)))]
        for function, *registers in code:
            moved = (op.NONE if r == op.NONE else known[r] for r in registers)
            self.code.append(Instruction(function, *moved))

    def _operand(self, view: View) -> int:
        """The register that has a view."""
        at = view.places.ravel()[self.order]
        step = self.planner.replaced(view, op.Map) if view.line == self.line else None
        if step and np.array_equal(at, np.arange(len(at))):
            before = step.operation
            more = len(before.reads) + len(before.code)
            if len(self.reads) + len(self.code) + more <= MOST:
                grid = np.indices(before.shape).reshape(len(before.shape), -1)
                each = zip(before.reads, before.strides, before.begins, strict=True)
                reads = [self._register(x, begin + np.array(s) @ grid) for x, s, begin in each]
                self._append(before.code, reads)
                step.operation = None
                return CODE + len(self.code) - 1
        if view.constant and ((numbers := view.array) == numbers.flat[0]).all():
            number = self.planner.constant(numbers.flat[0]).sources[0]
            return self._register(number, np.zeros_like(at))
        if len(view.sources) == 1 and view.places.min() >= 0:
            return self._register(view.sources[0], at)
        return self._register(self.planner.move(view.at(at)), np.arange(len(at)))

    def _register(self, stored: Stored, at: Places) -> int:
        """The register of the numbers of a stored row at some places, moved if they must be."""
        for number, (other, places) in enumerate(zip(self.reads, self.at, strict=True)):
            if stored is other and np.array_equal(at, places):
                return number
        known = any(np.array_equal(at, places) for places in self.at)
        if not known and _factored([*self.at, at]) is None:
            stored, at = self.planner.move(View((stored,), at)), np.arange(len(at))
        self.reads.append(stored)
        self.at.append(at)
        return len(self.reads) - 1


def _factored(at: Sequence[Places]) -> Axes | None:
    """Axes, and the strides of each operand over them, that give all its places in their order.

    None if there are none of which the last stride is 0 or 1.
    """
    shape: list[int] = []
    strides: list[list[int]] = [[] for _ in at]
    while not shape or len(at[0]) > 1:
        n, steps = (
            len(at[0]),
            [int(places[1] - places[0]) if len(places) > 1 else 0 for places in at],
        )
        for places, step in zip(at, steps, strict=True):
            breaks = np.flatnonzero(np.diff(places) != step) + 1
            n = int(np.gcd.reduce(breaks, initial=n))
        if not shape and max(steps) > 1:
            n = 1
        if min(steps) < 0 or (n == 1 and shape):
            return None
        shape.insert(0, n)
        for stride, step in zip(strides, steps, strict=True):
            stride.insert(0, step if n > 1 else 0)
        at = [places[::n] for places in at]
    return shape, strides
