"""A model as the bytes that a C program opens: what ``core/file.c`` reads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.plan.program import Program
from fastlstm.reduced import Tensors, kept

__all__ = ["ALIGNMENT", "model_file"]

Array = npt.NDArray[Any]

ALIGNMENT = 64  # FL_ALIGNMENT

_MAGIC = b"flmodel\0"
_VERSION = 1
# fl_type; uint16 is the bits of bfloat16.
_TYPES = {"float32": 0, "float64": 1, "float16": 2, "uint16": 3, "int8": 4}


def model_file(program: Program, tensors: Tensors) -> bytes:
    """The bytes of a program with its names and tensors.

    Parameters
    ----------
    program : Program
    tensors : mapping of str to array or Reduced
        Those that the program names, float32 or float64, or matrices in fewer bytes.
    """
    arrays = [np.ascontiguousarray(kept(tensors[name])) for name in program.tensor_names]
    words = program.to_bytes()
    names = _names([*program.input_names, *program.output_names, *program.part_names])
    body = struct.pack("<3Q", len(words), len(names), len(arrays))
    body += struct.pack(f"<{len(arrays)}Q", *(_TYPES[array.dtype.name] for array in arrays))
    body += words + names
    head_bytes = len(_MAGIC) + 3 * 8
    pieces, end = [body], head_bytes + len(body)
    for array in arrays:
        pieces += [bytes(-end % ALIGNMENT), array.astype(array.dtype.newbyteorder("<")).tobytes()]
        end += len(pieces[-2]) + len(pieces[-1])
    behind = b"".join(pieces)
    return _MAGIC + struct.pack("<3Q", _VERSION, end, zlib.crc32(behind)) + behind


def _names(names: Sequence[str]) -> bytes:
    for name in names:
        if "\0" in name:
            raise ValueError(
                f"{name!r} has a character 0 in it, which ends a name in C; expected a name without"
            )
    text = b"".join(name.encode() + b"\0" for name in names)
    return text + bytes(-len(text) % 8)
