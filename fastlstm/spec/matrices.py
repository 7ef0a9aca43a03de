"""Layers of one matrix, the rows that tokens stand for, and rows that never change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fastlstm.spec.frozen import extra, frozen
from fastlstm.spec.layer import Layer, OneRow
from fastlstm.spec.row import Row, Shape, broadcast

__all__ = ["Constant", "Embedding", "Linear", "MatMul", "OneHot"]


@frozen
class Linear(OneRow):
    """``y = x W^T + b`` (``torch.nn.Linear``), for each position where there are some."""

    in_features: int
    out_features: int
    bias: bool = True
    kind: ClassVar[str] = "linear"

    @property
    def input_shape(self) -> Shape:
        """The axes of a row that it takes where there are no positions."""
        return (self.in_features,)

    def of_row(self, shape: Shape) -> Shape:
        if not shape or shape[-1] != self.in_features:
            raise ValueError(f"it takes rows (..., {self.in_features}), and is given {Row(shape)}")
        return (*shape[:-1], self.out_features)

    def tensors(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"weight": (self.out_features, self.in_features)}
        return shapes | ({"bias": (self.out_features,)} if self.bias else {})

    def matrices(self) -> dict[str, int]:
        return {"weight": 0}

    def work(self, reads: Sequence[Row]) -> int:
        return reads[0].size * self.out_features


@frozen
class MatMul(Layer):
    """The product of the matrices in the last two axes of two values (``torch.matmul``).

    Axes before the two broadcast. With `transposed`, the second is transposed before. A row of one
    axis is a row of a matrix if it comes first, and a column if second; the axis is gone then.
    """

    transposed: bool = extra(default=False)
    kind: ClassVar[str] = "matmul"

    def output(self, reads: Sequence[Row]) -> Shape:
        self._reads(reads, "a matrix", "another")
        first, second = (row.shape for row in reads)
        if not first or not second or (self.transposed and len(second) < 2):
            raise ValueError(
                "it takes rows of two axes or more, or of one, which is not transposed"
            )
        *some, n, k = first if len(first) > 1 else (1, *first)
        *others, m, p = second if len(second) > 1 else (*second, 1)
        if self.transposed:
            m, p = p, m
        if k != m:
            raise ValueError(f"matrices of {n} x {k} and {m} x {p} have no product")
        ends = (n,) * (len(first) > 1) + (p,) * (len(second) > 1)
        return (*broadcast([tuple(some), tuple(others)]), *ends)

    def work(self, reads: Sequence[Row]) -> int:
        return math.prod(self.output(reads)) * reads[0].shape[-1]


@frozen
class _OfTokens(OneRow):
    """A layer of which each token stands for a row: `input_tokens` of them for rows of `width`."""

    takes_tokens: ClassVar[bool] = True

    if TYPE_CHECKING:

        @property
        def input_tokens(self) -> int: ...

        @property
        def width(self) -> int: ...

    @property
    def input_shape(self) -> Shape:
        """The axes of a row that it takes: one token."""
        return ()

    def output(self, reads: Sequence[Row]) -> Shape:
        self._reads(reads, "tokens")
        if reads[0].tokens != self.input_tokens:
            raise ValueError(
                f"it takes one of {self.input_tokens} tokens, and is given "
                f"{f'one of {reads[0].tokens}' if reads[0].tokens else 'numbers'}"
            )
        return (*reads[0].shape, self.width)


@frozen
class Embedding(_OfTokens):
    """Token i is row i of a table (``torch.nn.Embedding``)."""

    num_embeddings: int
    embedding_dim: int
    kind: ClassVar[str] = "embedding"

    @property
    def input_tokens(self) -> int:
        """How many tokens it knows."""
        return self.num_embeddings

    @property
    def width(self) -> int:
        """Numbers that a token stands for."""
        return self.embedding_dim

    def tensors(self) -> dict[str, Shape]:
        return {"weight": (self.num_embeddings, self.embedding_dim)}

    def matrices(self) -> dict[str, int]:
        return {"weight": 0}


@frozen
class OneHot(_OfTokens):
    """Token i is a row of zeros with a one at place i."""

    num_classes: int
    kind: ClassVar[str] = "one_hot"

    @property
    def input_tokens(self) -> int:
        """How many tokens it knows."""
        return self.num_classes

    @property
    def width(self) -> int:
        """Numbers that a token stands for."""
        return self.num_classes


@frozen
class Constant(Layer):
    """A row that is the same at every step. It reads nothing, and is called as its tensor is."""

    shape: tuple[int, ...]
    kind: ClassVar[str] = "constant"

    def output(self, reads: Sequence[Row]) -> Shape:
        self._reads(reads)
        return self.shape

    def tensors(self) -> dict[str, Shape]:
        return {"value": self.shape}

    def names(self) -> dict[str, str]:
        return self._named({"value": self.weights or self.name})
