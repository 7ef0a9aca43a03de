"""Products of matrices."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import SizeError
from fastlstm.sources.aten.arithmetic import add, mul, scaled
from fastlstm.sources.aten.table import Builder, Operand, Value, operator, rank_of, shape_of
from fastlstm.sources.aten.views import reshape, unsqueeze


@operator()
def linear(b: Builder, input: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    weights = isinstance(weight, np.ndarray) and weight.ndim == 2 and not isinstance(bias, Value)
    if weights and isinstance(input, Value):
        return b.linear(input, weight, bias)
    product = matmul(b, input, b.move(lambda a: a.swapaxes(-1, -2) if a.ndim > 1 else a, weight))
    return product if bias is None else add(b, product, bias)


@operator()
def matmul(b: Builder, self: Operand, other: Operand) -> Operand:
    if not isinstance(self, Value) and not isinstance(other, Value):
        return np.matmul(self, other)
    # A vector is a matrix of one row, or of one column.
    x = unsqueeze(b, self, 0) if rank_of(self) == 1 else self
    y = unsqueeze(b, other, 1) if rank_of(other) == 1 else other
    if shape_of(x)[-1] != shape_of(y)[-2]:
        text = f"a product of matrices of shapes {shape_of(self)} and {shape_of(other)}"
        got, needed = shape_of(x)[-1], shape_of(y)[-2]
        raise SizeError(text, *((needed, got) if isinstance(self, np.ndarray) else (got, needed)))
    made = b.matmul(x, y)
    shape = list(shape_of(made))
    if rank_of(other) == 1:
        shape.pop()
    if rank_of(self) == 1:
        shape.pop(-2 if rank_of(other) != 1 else -1)
    return made if len(shape) == rank_of(made) else reshape(b, made, shape)


@operator("mm", "bmm")
def mm(b: Builder, self: Operand, mat2: Operand) -> Operand:
    return matmul(b, self, mat2)


@operator()
def mv(b: Builder, self: Operand, vec: Operand) -> Operand:
    return matmul(b, self, vec)


@operator()
def dot(b: Builder, self: Operand, tensor: Operand) -> Operand:
    return matmul(b, self, tensor)


def _added(b: Builder, x: Operand, left: Operand, right: Operand, beta: Any, alpha: Any) -> Operand:
    weights = isinstance(x, np.ndarray) and isinstance(right, np.ndarray) and right.ndim == 2
    if weights and isinstance(left, Value) and x.ndim == 1 and beta == alpha == 1:
        return b.linear(left, b.derived(right, "transposed", np.transpose), x)
    return add(b, scaled(b, x, beta), scaled(b, matmul(b, left, right), alpha))


@operator()
def addmm(
    b: Builder, self: Operand, mat1: Operand, mat2: Operand, beta: Any = 1, alpha: Any = 1
) -> Operand:
    return _added(b, self, mat1, mat2, beta, alpha)


@operator()
def addmv(
    b: Builder, self: Operand, mat: Operand, vec: Operand, beta: Any = 1, alpha: Any = 1
) -> Operand:
    return _added(b, self, mat, vec, beta, alpha)


@operator()
def baddbmm(
    b: Builder, self: Operand, batch1: Operand, batch2: Operand, beta: Any = 1, alpha: Any = 1
) -> Operand:
    return _added(b, self, batch1, batch2, beta, alpha)


@operator("outer", "ger")
def outer(b: Builder, self: Operand, vec2: Operand) -> Operand:
    return mul(b, unsqueeze(b, self, 1), unsqueeze(b, vec2, 0))


@operator()
def bilinear(
    b: Builder, input1: Operand, input2: Operand, weight: Operand, bias: Operand | None = None
) -> Operand:
    rows = einsum(b, "...i,oij->...oj", [input1, weight])
    made = einsum(b, "...oj,...j->...o", [rows, input2])
    return made if bias is None else add(b, made, bias)


@operator()
def einsum(
    b: Builder, equation: str, tensors: Sequence[Operand], path: Sequence[int] | None = None
) -> Operand:
    terms, out = _einsum_terms(equation, [rank_of(x) for x in tensors])
    if len(equation) > 200:
        raise ConvertError("an equation of einsum of more than 200 characters")
    x, mine = tensors[0], terms[0]
    for n, (y, its) in enumerate(zip(tensors[1:], terms[1:], strict=True), 2):
        later = set(out).union(*terms[n:])
        x, mine = _contracted(b, x, mine, y, its, later)
    if len(set(mine)) < len(mine):
        raise ConvertError(f"einsum of a diagonal ({equation!r:.80}) is not supported")
    gone = [mine.index(letter) for letter in mine if letter not in out]
    if gone:
        x = b.reduce("sum", x, gone, False) if isinstance(x, Value) else x.sum(tuple(gone))
        mine = "".join(letter for letter in mine if letter in out)
    order = [mine.index(letter) for letter in out]
    return b.move(lambda a: a.transpose(order), x)


def _einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each array and of the result, an ellipsis spelt out."""
    text = equation.replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ConvertError(f"einsum({equation!r:.80}) of {len(ranks)} arrays")
    free = [c for c in string.ascii_letters if c not in text]
    rest = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    rest = [n if "..." in term else 0 for term, n in zip(terms, rest, strict=True)]
    dots = "".join(free[: max([*rest, 0])])
    terms = [
        term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, rest, strict=True)
    ]
    if not arrow:
        letters = [c for c in "".join(terms) if c not in dots]
        out = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    out = out.replace("...", dots)
    if any(len(t) != rank for t, rank in zip(terms, ranks, strict=True)) or set(out) - set(
        "".join(terms)
    ):
        raise ConvertError(f"einsum({equation!r:.80}) of arrays of {list(ranks)} axes")
    return terms, out


def _contracted(
    b: Builder, x: Operand, mine: str, y: Operand, its: str, later: set[str]
) -> tuple[Operand, str]:
    """The product of two arrays, summed over the letters that nothing later has."""
    both = [c for c in mine if c in its]
    shared = [c for c in both if c in later]
    summed = [c for c in both if c not in later]
    free_x, free_y = ([c for c in t if c not in both] for t in (mine, its))
    sizes = dict(zip(mine, shape_of(x), strict=True)) | dict(zip(its, shape_of(y), strict=True))

    def arranged(array: Operand, letters: str, order: list[str], shape: list[int]) -> Operand:
        axes = [letters.index(c) for c in order]
        return reshape(b, b.move(lambda a: a.transpose(axes), array), shape)

    def size(letters: list[str]) -> int:
        return math.prod(sizes[c] for c in letters)

    across, front = size(summed), [sizes[c] for c in shared]
    right = arranged(y, its, shared + summed + free_y, [*front, across, size(free_y)])
    # Without shared axes the free axes of the left stay apart: none of them is merged with time.
    rows = [sizes[c] for c in free_x] if not shared else [size(free_x)]
    if not shared and not free_x:
        rows = [1]
    left = arranged(x, mine, shared + free_x + summed, [*front, *rows, across])
    made: Any = matmul(b, left, right)
    letters = shared + free_x + free_y
    return reshape(b, made, [sizes[c] for c in letters]), "".join(letters)
