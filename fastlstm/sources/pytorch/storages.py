"""Storages, the raw memory in a PyTorch file, and the tensors that are views of them.

Tensors are placed first and filled at the end, one storage after the other, so that no more than
one storage is held beside the arrays made from it. Every length is checked against the file before
memory is allocated for it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.unpickle import Budget, Opaque

__all__ = [
    "DTYPES",
    "MAX_DIMENSIONS",
    "RETRY",
    "Extent",
    "Storage",
    "Storages",
    "StoredTensor",
    "check_crc",
]

MAX_DIMENSIONS = 32  # NumPy 1's limit; layers have at most 3
PIECE = 1 << 16  # elements converted at a time
RETRY = "the file is cut short or damaged; download or save it again"

# The torch names of the dtypes, and NumPy's of what is stored. bfloat16 is widened after reading.
DTYPES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2",
    "complex128": "c16", "complex64": "c8",
    "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
    "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool": "u1",
}  # fmt: skip

# Pickled storage classes: their dtype, and the bytes of an element.
STORAGES = {
    "DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1), "UntypedStorage": ("uint8", 1),
    "ComplexDoubleStorage": ("complex128", 16), "ComplexFloatStorage": ("complex64", 8),
    "QInt8Storage": ("qint8", 1), "QUInt8Storage": ("quint8", 1), "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1), "QUInt2x4Storage": ("quint2x4", 1),
}  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes
    ----------
    array : numpy.ndarray
        The values: C-contiguous, native byte order, memory of its own; bfloat16 as float32.
    dtype : str
        The dtype in the file under torch's name, such as ``"bfloat16"``.

    Notes
    -----
    Tensors which are the same view of the same storage (tied weights) are one `StoredTensor`.
    """

    array: np.ndarray[Any, np.dtype[Any]]
    dtype: str


class Extent(NamedTuple):
    """Where the bytes of a storage lie; `crc` is None where none was written."""

    offset: int
    nbytes: int
    crc: int | None


def check_crc(data: bytes | memoryview, extent: Extent, name: str) -> None:
    if extent.crc is not None and zlib.crc32(data) != extent.crc:
        raise ConvertError(f"{name[:80]!r} does not match its checksum; {RETRY}")


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A part of a storage that a pickle refers to; `start` and `nbytes` in bytes."""

    key: str
    dtype: str
    start: int
    nbytes: int


class _View(NamedTuple):
    """What of a storage makes up a tensor: a region in bytes, the rest in elements."""

    key: str
    start: int
    nbytes: int
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def stored(self) -> np.dtype[Any]:
        return np.dtype(DTYPES[self.dtype])

    def covers(self, nbytes: int) -> bool:
        """Whether it is the whole of a storage of `nbytes` bytes, in order."""
        expected = 1
        for size, stride in zip(reversed(self.size), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return self.start == self.offset == 0 and expected * self.stored.itemsize == nbytes


class Storages:
    """The storages that a checkpoint refers to, and the tensors that wait for them."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}  # in bytes
        self.itemsizes: dict[str, int] = {}
        self.tensors: dict[_View, StoredTensor] = {}

    def reference(self, identity: object) -> object:
        """The value that stands for a persistent id of torch.save or torch.jit.save."""
        match identity:
            case ("module", Opaque() as module, *_):
                return module
            case ("storage", Opaque(name=kind), str(key), _, int(count), *rest):
                pass
            case _:
                raise ConvertError(f"a reference to no storage in the pickle; {RETRY}")
        if kind not in STORAGES:
            raise ConvertError(f"a storage of class {kind[:40]!r}, which torch 2 does not have")
        dtype, itemsize = STORAGES[kind]
        nbytes = count * itemsize
        if count < 0:
            raise ConvertError(f"storage {key[:40]!r} has {count} elements; {RETRY}")
        if self.sizes.setdefault(key, nbytes) != nbytes:
            raise ConvertError(f"storage {key[:40]!r} has two sizes; {RETRY}")
        self.itemsizes.setdefault(key, itemsize)
        match rest:
            case [] | [None]:
                return Storage(key, dtype, 0, nbytes)
            case [(_, int(offset), int(length))] if 0 <= offset <= offset + length <= count:
                return Storage(key, dtype, offset * itemsize, length * itemsize)
        raise ConvertError(f"a view of storage {key[:40]!r} lies outside it; {RETRY}")

    def tensor(
        self,
        storage: Storage,
        dtype: str,
        offset: int,
        size: tuple[Any, ...],
        stride: tuple[Any, ...],
    ) -> StoredTensor:
        """The tensor that a view of a storage is, its bounds checked, to be filled later."""
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise ConvertError(
                f"a tensor of {len(size)} dimensions and {len(stride)} strides; expected as many "
                f"of both and at most {MAX_DIMENSIONS}"
            )
        numbers = (offset, *size, *stride)
        if not all(type(number) is int and 0 <= number < 2**60 for number in numbers):
            raise ConvertError(f"a tensor whose size or stride is no size; {RETRY}")
        # A stride that is never taken is no part of a view, so that equal views are equal.
        taken = tuple(step if n > 1 else 0 for n, step in zip(size, stride, strict=True))
        last = offset + sum((n - 1) * step for n, step in zip(size, taken, strict=True))
        beyond = 0 not in size and last >= storage.nbytes // np.dtype(DTYPES[dtype]).itemsize
        # The second bound is NumPy's, for the product of the sizes that are not zero.
        if beyond or math.prod(max(1, length) for length in size) >= 2**58:
            raise ConvertError(
                f"a tensor of size {size} and stride {stride} reaches beyond its storage of "
                f"{storage.nbytes} bytes; {RETRY}"
            )
        view = _View(storage.key, storage.start, storage.nbytes, dtype, offset, size, taken)
        # The array takes its place in read_tensors.
        return self.tensors.setdefault(view, StoredTensor(np.empty(0), dtype))

    def read_tensors(
        self, file: BinaryIO, find: Callable[[str], Extent], order: str, budget: Budget
    ) -> None:
        """Fill every tensor, reading each storage once and dropping it after its last view."""
        by_key: dict[str, list[_View]] = {}
        for view in self.tensors:
            by_key.setdefault(view.key, []).append(view)
        for key, views in by_key.items():
            extent = find(key)
            if extent.nbytes != self.sizes[key]:
                raise ConvertError(
                    f"storage {key[:40]!r} has {extent.nbytes} bytes where its tensors expect "
                    f"{self.sizes[key]}; {RETRY}"
                )
            for view, flat in zip(views, _flat_views(file, extent, views, budget), strict=True):
                if order == "big":
                    flat.byteswap(inplace=True)
                array = _finish(flat, view.dtype, budget).reshape(view.size)
                object.__setattr__(self.tensors[view], "array", array)


def _flat_views(
    file: BinaryIO, extent: Extent, views: list[_View], budget: Budget
) -> list[np.ndarray[Any, Any]]:
    """The elements of each view of a storage, as stored, in arrays (elements,) of their own."""
    whole = len(views) == 1 and views[0].covers(extent.nbytes)
    if whole:
        raw = _room(views[0], extent.nbytes // views[0].stored.itemsize, budget)
    else:
        budget.charge(extent.nbytes)
        raw = np.empty(extent.nbytes, "u1")
    file.seek(extent.offset)
    if file.readinto(raw.view("u1")) != extent.nbytes:  # type: ignore[attr-defined]
        raise ConvertError(f"the file ends inside storage {views[0].key[:40]!r}; {RETRY}")
    check_crc(raw.view("u1").data, extent, f"data/{views[0].key}")
    if whole:
        return [raw]
    flats = []
    for view in views:
        itemsize, count = view.stored.itemsize, math.prod(view.size)
        flat = _room(view, count, budget)
        if count:
            length = view.nbytes // itemsize * itemsize
            elements = raw[view.start : view.start + length].view(view.stored)[view.offset :]
            strides = [step * itemsize for step in view.stride]
            flat.reshape(view.size)[...] = np.lib.stride_tricks.as_strided(
                elements, view.size, strides, writeable=False
            )
        flats.append(flat)
    budget.release(extent.nbytes)
    return flats


def _room(view: _View, count: int, budget: Budget) -> np.ndarray[Any, Any]:
    """An array (count,) for a view's elements as stored, of a base that has room to widen them.

    The room is charged when it is used: until then it takes addresses, but no memory.
    """
    room = count * (2 if view.dtype == "bfloat16" else 1)
    budget.charge(count * view.stored.itemsize)
    return np.empty(room, view.stored)[:count]


def _finish(flat: np.ndarray[Any, Any], dtype: str, budget: Budget) -> np.ndarray[Any, Any]:
    """Turn stored elements into values."""
    if dtype == "bool":
        budget.charge(flat.nbytes)
        return flat.astype("?")  # a hostile file may hold other bytes than 0 and 1
    if dtype != "bfloat16":
        return flat
    # Widened in its own memory, from the end: a second array would make it three times the file.
    budget.charge(flat.nbytes)
    count = flat.size
    assert flat.base is not None
    wide: np.ndarray[Any, Any] = flat.base.view("u4")
    for stop in range(count, 0, -PIECE):
        start = max(0, stop - PIECE)
        wide[start:stop] = flat[start:stop].astype("u4") << 16
    return wide.view("f4")
