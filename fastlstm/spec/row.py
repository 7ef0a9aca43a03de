"""What is known of a value: the row that it is at each step, and when there is one."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastlstm.spec.timing import Timing

__all__ = ["Row", "Shape", "broadcast"]

Shape = tuple[int, ...]


class Row(NamedTuple):
    """One row of a value, and which rows there are.

    Parameters
    ----------
    shape : tuple of int
        The axes of one row: ``(I,)`` for features, ``(C, W)`` for channels of so many positions.
    tokens : int
        If its numbers are tokens, how many different ones there are; 0 if they are real numbers.
    timing : Timing or None
        How many rows there are. None of a value that is held: one row for a whole sequence, known
        before its first step.
    folded : bool
        Whether a whole sequence has one row of it, made of all its steps. A stream then has, after
        each step, what that row would be if the sequence ended there.
    looks_ahead : str
        Why a row of it is known only at the end of the sequence, as ``node 'name' ...``; "" if a
        stream can have it.
    """

    shape: Shape
    tokens: int = 0
    timing: Timing | None = None
    folded: bool = False
    looks_ahead: str = ""

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)

    @property
    def held(self) -> bool:
        return self.timing is None

    def __str__(self) -> str:
        axes = " x ".join(map(str, self.shape)) or "one number"
        return f"{axes} tokens" if self.tokens else axes


def broadcast(shapes: list[Shape]) -> Shape:
    """The common shape of several, by the rules of NumPy and PyTorch.

    Raises
    ------
    ValueError
        If they do not fit.
    """
    ndim = max(map(len, shapes))
    result = []
    for axis in range(-ndim, 0):
        sizes = {shape[axis] for shape in shapes if -axis <= len(shape)} - {1}
        if len(sizes) > 1:
            raise ValueError(f"rows of {' and '.join(map(str, shapes))} do not broadcast")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)
