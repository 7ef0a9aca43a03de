"""The files of the drivers in C: 64-bit words, and bytes filled up to words."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Words", "bytes_of", "filled", "word"]

Array = npt.NDArray[Any]


class Words:
    """The words of an answer, one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self.parts = self.state_size = 0

    def _next(self, size: int) -> bytes:
        first, self._at = self._at, self._at + -(-size // 8) * 8
        assert self._at <= len(self._data), "the answer ends too early"
        return self._data[first : first + size]

    def word(self) -> int:
        return int(struct.unpack("<q", self._next(8))[0])

    def text(self) -> str:
        return self._next(self.word()).decode()

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self._next(size), dtype).reshape(shape)

    def rows(self, rows: int, count: int, dtype: Any) -> Array:
        if not rows:
            return np.zeros((0, count), dtype)
        return np.stack([self.array((count,), dtype) for _ in range(rows)])

    def end(self) -> None:
        assert self._at == len(self._data), "the answer has words left over"


def word(number: int) -> bytes:
    return struct.pack("<q", number)


def filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def bytes_of(array: Array) -> bytes:
    return filled(np.ascontiguousarray(array).tobytes())
