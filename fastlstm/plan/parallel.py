"""Products of several matrices with the same numbers: one product, whose matrix has all their rows.

Every output is the sum that it was, of the same inputs in the same order. What the products made
becomes stretches of the row that the one makes, and is read there. Products behind which there are
other functions stay apart: a function costs less as a field of its product than in a map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fastlstm.plan import operations as op
from fastlstm.plan.planner import Planner
from fastlstm.plan.view import Matrix, Numbers, Step, Stored
from fastlstm.spec import Function

__all__ = ["join_products"]

MOST_PIECES = 256  # of a matrix: the core compares each with every other


def join_products(planner: Planner) -> None:
    """Join the products of a plan that has no operations but those that are needed."""
    sections = [planner.begin, planner.steps, *(step.body for step in planner.steps if step.body)]
    for section in sections:
        alike: defaultdict[Hashable, list[Step]] = defaultdict(list)
        for step in section:
            product = step.operation
            if isinstance(product, op.Product) and len(product.matrices) == product.positions == 1:
                alike[_reading(product)].append(step)
        for steps in alike.values():
            for stack in _stacks(planner, steps):
                if len(stack) > 1:
                    _join(planner, stack)


def _reading(product: op.Product) -> Hashable:
    """What products have in common that read the same numbers as the same columns."""
    places = None if product.places is None else np.asarray(product.places).tobytes()
    columns = product.matrices[0].columns
    return tuple(map(id, product.reads)), columns, product.piece, places


def _stacks(planner: Planner, steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Products of one function and of different matrices; what is one of them again is left out.

    The matrices of a stack are stored alike.

    A matrix stands in one of a stack only: products that share it share its packed form too.
    """
    made: dict[Hashable, Stored] = {}
    stacks: dict[tuple[Function, str], dict[Hashable, Step]] = {}
    for step in steps:
        product = step.operation
        matrix = _said(product.matrices[0])
        vectors = map(_said, (product.bias, product.scale, product.shift))
        known = made.setdefault((product.function, matrix, *vectors), product.y)
        if known is not product.y:
            product.y.become(known, 0)
            step.operation = None
            continue
        kind = planner.stored(product.matrices[0])
        stack = stacks.setdefault((product.function, kind), {})
        pieces = sum(len(other.operation.matrices[0].blocks) for other in (*stack.values(), step))
        if pieces > MOST_PIECES:
            yield [*stack.values()]
            stack.clear()
        stack.setdefault(matrix, step)
    for stack in stacks.values():
        yield [*stack.values()]


def _said(what: Matrix | Numbers | None) -> Hashable:
    """What is equal for what is made of the same numbers in the same way."""
    if isinstance(what, Numbers):
        return (what.tensor, what.first, len(what)) if what.tensor else what.array.tobytes()
    if what is None:
        return None
    pieces = []
    for block in what.blocks:
        tensor, order = block.tensor, block.order
        place = (block.row, block.rows, block.column, block.columns)
        numbers = tensor if isinstance(tensor, str) else id(tensor)
        columns = block.column_stride if order is None else order.tobytes()
        pieces.append((*place, numbers, block.first, block.row_stride, columns))
    return what.rows, what.columns, tuple(pieces)


def _join(planner: Planner, steps: Sequence[Step]) -> None:
    """Have the first of several products make what all of them make."""
    products = [step.operation for step in steps]
    counts = [product.y.count for product in products]
    begins = np.cumsum(counts) - counts
    wide = planner.store(sum(counts), products[0].y.line)
    wide.maker, wide.section = steps[0], products[0].y.section
    blocks = [
        replace(block, row=block.row + int(begin))
        for product, begin in zip(products, begins, strict=True)
        for block in product.matrices[0].blocks
    ]
    matrix = Matrix(wide.count, products[0].matrices[0].columns, tuple(blocks))
    # Scaled by 1 and shifted by -0 a number stays what it was, also where that is -0.
    bias, scale, shift = (
        _one_behind_the_other([getattr(product, name) for product in products], counts, without)
        for name, without in (("bias", 0.0), ("scale", 1.0), ("shift", -0.0))
    )
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    for step, product, begin in zip(steps, products, begins, strict=True):
        product.y.become(wide, int(begin))
        step.operation = None
    steps[0].operation = products[0]._replace(y=wide, matrices=[matrix], **vectors)


def _one_behind_the_other(
    vectors: Sequence[Numbers | None], counts: Sequence[int], without: float
) -> Numbers | None:
    if all(vector is None for vector in vectors):
        return None
    parts = [
        np.full(count, without) if vector is None else vector.array
        for vector, count in zip(vectors, counts, strict=True)
    ]
    return Numbers(np.concatenate(parts))
