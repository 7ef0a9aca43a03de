"""The ways in which time enters, beside recurrences and kernels: window, delay, rate and fold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

from fastlstm.spec.frozen import extra, frozen
from fastlstm.spec.layer import MAX_REACH, Layer, OneRow
from fastlstm.spec.row import Row, Shape, broadcast
from fastlstm.spec.timing import Term

__all__ = ["Attention", "Delay", "Fold", "Repeat", "Slice", "Spread", "Window"]


@frozen
class _OverTime(Layer):
    @property
    def over_time(self) -> bool:
        return True


@frozen
class Window(_OverTime, OneRow):
    """The last rows as one: of rows (...), rows (size, ...), the latest one last.

    The kernel of a convolution without its weights: ``torch.Tensor.unfold`` over time.

    Parameters
    ----------
    size : int
        Rows in a window.
    stride : int
        Steps from one window to the next.
    dilation : int
        Steps between the rows of a window.
    padding : int
        Rows of zeros before the first; with ``dilation * (size - 1)`` of them there is a window
        for every step.
    """

    size: int
    _: KW_ONLY
    stride: int = extra(default=1)
    dilation: int = extra(default=1)
    padding: int = extra(default=0, least=0)
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding > self.reach:
            raise self._refused("padding", f"at most {self.reach}")

    @property
    def reach(self) -> int:
        """Rows from the first of a window to the last."""
        return self.dilation * (self.size - 1)

    def of_row(self, shape: Shape) -> Shape:
        if self.reach * math.prod(shape) > MAX_REACH:
            raise ValueError(f"it keeps more than {MAX_REACH} numbers of the rows before")
        return (self.size, *shape)

    @property
    def terms(self) -> tuple[Term, Term]:
        term = Term(1, self.padding - self.reach - 1 + self.stride, self.stride)
        return term, term

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        kept = {"x": (self.reach, *reads[0].shape)} if self.reach else {}
        counts = self.stride > 1 or self.padding < self.reach
        return kept | ({"count": (1,)} if counts else {})


@frozen
class Delay(_OverTime):
    """The row of `steps` steps before: y[t] = x[t - steps].

    It may read a value that is computed from its own output: any loop with a state.

    Parameters
    ----------
    shape : tuple of int
        The axes of a row.
    steps : int
    initial_state : {"", "learned", "given"}
        The first rows that it gives: zeros; the tensor ``x_0`` (steps, ...); or the last value
        that it reads, which is held, of that shape. One row may do without the first axis.
    """

    shape: tuple[int, ...]
    steps: int = 1
    _: KW_ONLY
    initial_state: str = extra(default="")
    kind: ClassVar[str] = "delay"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial_state not in ("", "learned", "given"):
            raise self._refused("initial_state", "'', 'learned' or 'given'")
        if self.steps * math.prod(self.shape) > MAX_REACH:
            raise self._refused("steps", f"at most {MAX_REACH} numbers of the rows before")

    @property
    def starts(self) -> int:
        return int(self.initial_state == "given")

    @property
    def kept(self) -> Shape:
        """The axes of what it keeps."""
        return (self.steps, *self.shape)

    def output(self, reads: Sequence[Row]) -> Shape:
        self._reads(reads, "rows", *["the initial rows"] * self.starts)
        self._takes(reads[0], self.shape)
        if self.starts and (self.steps > 1 or reads[1].shape != self.shape):
            self._takes(reads[1], self.kept)
        return self.shape

    def tensors(self) -> dict[str, Shape]:
        return {"x_0": self.kept} if self.initial_state == "learned" else {}

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        return {"x": self.kept}

    def initial(self) -> dict[str, str]:
        return {"x": "x_0"} if self.initial_state == "learned" else {}


@frozen
class Slice(_OverTime, OneRow):
    """Some of the rows: ``x[start : len(x) - end : step]``.

    Where `end` is not 0, a stream gives a row only when `end` more have come.
    """

    start: int = extra(default=0, least=0)
    end: int = extra(default=0, least=0)
    step: int = extra(default=1)
    kind: ClassVar[str] = "slice"

    def of_row(self, shape: Shape) -> Shape:
        if self.end * math.prod(shape) > MAX_REACH:
            raise ValueError(f"it keeps more than {MAX_REACH} numbers of the rows before")
        return shape

    @property
    def terms(self) -> tuple[Term, Term]:
        term = Term(1, self.step - 1 - self.start - self.end, self.step)
        return term, term

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        kept = {"x": (self.end, *reads[0].shape)} if self.end else {}
        return kept | ({"count": (1,)} if self.start or self.end or self.step > 1 else {})


@frozen
class Repeat(_OverTime, OneRow):
    """Each row `times` times (``torch.repeat_interleave`` over time)."""

    times: int
    kind: ClassVar[str] = "repeat"

    @property
    def terms(self) -> tuple[Term, Term]:
        return Term(self.times), Term(self.times)


@frozen
class Spread(_OverTime, OneRow):
    """The first axis of a row becomes time: each row (n, ...) is n rows (...)."""

    size: int
    kind: ClassVar[str] = "spread"

    def of_row(self, shape: Shape) -> Shape:
        if shape[:1] != (self.size,):
            raise ValueError(f"it takes rows ({self.size}, ...), and is given {Row(shape)}")
        return shape[1:]

    @property
    def terms(self) -> tuple[Term, Term]:
        return Term(self.size), Term(self.size)


@frozen
class Fold(_OverTime, OneRow):
    """One row of all the rows so far, number by number.

    `function` is ``"first"``, ``"last"``, ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``. With
    `cumulative` there is one for every step; else one for a whole sequence, and a stream tells
    after each step what it would be if the sequence ended there.
    """

    function: str
    _: KW_ONLY
    cumulative: bool = extra(default=False)
    kind: ClassVar[str] = "fold"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.function not in ("first", "last", "sum", "mean", "max", "min"):
            raise self._refused("function", "'first', 'last', 'sum', 'mean', 'max' or 'min'")
        if self.function == "last" and self.cumulative:
            raise self._refused("cumulative", "false: the last row so far is the row itself")

    @property
    def folds(self) -> bool:
        return not self.cumulative

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        if self.function == "last":
            return {}
        total: dict[str, Shape] = {"total": (1, *reads[0].shape)}
        return total | ({} if self.function == "sum" else {"count": (1,)})


@frozen
class Attention(_OverTime):
    """Attention over time: the sum of softmax(scores) * values over the rows so far.

    It reads scores and values, whose axes broadcast; the softmax goes over time. With `cumulative`
    there is a row for every step; else one for a whole sequence, as of a :class:`Fold`. A stream
    keeps the largest score, the sum of the weights and that of the weighted values
    (https://arxiv.org/abs/1805.02867).
    """

    cumulative: bool = extra(default=False)
    kind: ClassVar[str] = "attention"

    @property
    def folds(self) -> bool:
        return not self.cumulative

    def output(self, reads: Sequence[Row]) -> Shape:
        self._reads(reads, "scores", "values")
        return broadcast([row.shape for row in reads])

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        scores = reads[0].shape
        return {
            "largest": (1, *scores),
            "weight": (1, *scores),
            "total": (1, *broadcast([row.shape for row in reads])),
        }
