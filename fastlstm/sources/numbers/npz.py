"""Read NumPy's ``.npz`` files: zip archives of arrays, each behind a header of its own.

The header of an array is that of numpy/lib/format.py. It is matched, not evaluated, and what it
says must account for every byte behind it; an array of Python objects is a pickle, which is never
read.
"""

from __future__ import annotations

import math
import os
import re

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.archive import Archive
from fastlstm.sources.pytorch.checkpoint import SPARE_MEMORY, Opaque
from fastlstm.sources.pytorch.storages import MAX_DIMENSIONS, RETRY
from fastlstm.sources.pytorch.unpickle import Budget

__all__ = ["is_npz", "read_npz"]

# Python 2 wrote the lengths of a shape with an L.
_HEADER = re.compile(
    rb"\{'descr': (?P<descr>'[^']{1,40}'|\[.*\]), 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,19}L?(?:, ?\d{1,19}L?)*,? ?)?)\), ?\} *\n",
    re.DOTALL,
)
_NUMBERS = re.compile(rb"'[<>|=]([fiubc]\d{1,2})'")


def is_npz(head: bytes) -> bool:
    """Whether a file with these first bytes (at least 512, or all) is a zip archive of arrays."""
    length = int.from_bytes(head[26:28], "little")
    return head.startswith(b"PK\x03\x04") and head[30 : 30 + length].endswith(b".npy")


def read_npz(path: str) -> dict[str, object]:
    """Read the arrays of a ``.npz`` file by name.

    Parameters
    ----------
    path : str
        A file that ``numpy.savez`` or ``numpy.savez_compressed`` wrote.

    Returns
    -------
    dict of str to object
        Read-only arrays of numbers; an array of anything else is an `Opaque` that says so.

    Raises
    ------
    ConvertError
        If the file is damaged, is not only arrays, or unpacks to more than three times its size
        and 7 MB.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # For all arrays, and beside them one of them packed and once more while it unpacks.
            archive = Archive(file, size, Budget(8 * size + SPARE_MEMORY))
            unpacked = sum(member.nbytes for member in archive.members.values())
            if unpacked > 3 * size + SPARE_MEMORY // 2:
                raise ConvertError(
                    f"its {size} bytes unpack to {unpacked}, far more than weights do; if it is "
                    f"honest, write it again with numpy.savez, without compression"
                )
            return {
                name.removesuffix(".npy"): _array(name, archive.inflated(name))
                for name in archive.members
            }
        except ConvertError as error:
            raise ConvertError(f"{path}: {error}") from None


def _array(name: str, data: bytes) -> object:
    """The array of one member, a view of its bytes."""
    if not name.endswith(".npy") or data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\1", b"\2"):
        raise ConvertError(
            f"member {name[:80]!r} is no array; expected a file that numpy.savez wrote"
        )
    begin = 10 if data[6] == 1 else 12
    end = begin + int.from_bytes(data[8:begin], "little")
    match = _HEADER.fullmatch(data, begin, end)
    if match is None:
        raise ConvertError(
            f"the header of array {name[:80]!r} is malformed: {data[begin:end][:80]!r}; {RETRY}"
        )
    if not _NUMBERS.fullmatch(match["descr"]):
        what = match["descr"].decode("latin-1")[:80]
        return Opaque("numpy", "ndarray", reason=f"an array of dtype {what}, which is not read")
    shape = tuple(int(text.strip(b" L")) for text in match["shape"].split(b",") if text.strip())
    try:
        dtype = np.dtype(match["descr"].decode().strip("'"))
    except TypeError as error:
        raise ConvertError(f"array {name[:80]!r}: {error}; {RETRY}") from None
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(data) - end:
        raise ConvertError(
            f"array {name[:80]!r} of shape {shape} and dtype {dtype} has {len(data) - end} bytes; "
            f"expected {math.prod(shape) * dtype.itemsize}; {RETRY}"
        )
    try:
        flat = np.frombuffer(data, dtype, offset=end) if end < len(data) else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if match["order"] == b"True" else "C")
    except ValueError as error:  # a dimension beyond what NumPy can count, in an array of no bytes
        raise ConvertError(f"array {name[:80]!r} of shape {shape}: {error}; {RETRY}") from None
