"""One stream as bytes: for a database, a queue, another engine's state, a client that keeps it.

The layout, little endian (docs/state_formats.md)::

    4 bytes   "flst"
    uint16    version, 1
    uint16    bytes of a real: 4 or 8
    uint32    rows that step together; 0 for one without an axis of rows
    int64     steps that the stream has made
    32 bytes  fingerprint of the model
    ...       the arrays of the state, in the order of their names, in the model's shapes
    16 bytes  BLAKE2b of all that is before
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import FormatError
from fastlstm.packed import PackedGraph

__all__ = ["dumped", "loaded"]

Array = npt.NDArray[Any]

MAGIC, VERSION = b"flst", 1
HEAD = struct.Struct("<4sHHIq32s")
DIGEST_BYTES = 16

EXPECTED = "expected what dumps() of a stream of this model gave"


def dumped(model: PackedGraph, block: Array, steps: int, batch_size: int | None) -> bytes:
    """A state (B, state_size) of a stream as bytes.

    Parameters
    ----------
    model : PackedGraph
        Whose stream it is.
    block : array (B, state_size)
    steps : int
        That it has made.
    batch_size : int, optional
        None for a stream without an axis of rows.
    """
    head = HEAD.pack(
        MAGIC, VERSION, model.dtype.itemsize, batch_size or 0, steps, _fingerprint(model)
    )
    state = model.state_arrays(block, batch_size is not None)
    content = head + b"".join(_little(state[name]).tobytes() for name in sorted(state))
    return content + _digest(content)


def loaded(model: PackedGraph, data: Any, batch_size: int | None) -> tuple[Array, int]:
    """The state (B, state_size) that :func:`dumped` wrote, and the steps.

    Parameters
    ----------
    model : PackedGraph
        Whose stream it must be.
    data : bytes-like
    batch_size : int, optional
        Rows that it must have.

    Raises
    ------
    TypeError
        If `data` is not bytes.
    FormatError
        If they are damaged, of another version, model, type or number of rows.
    """
    try:
        whole = memoryview(data).cast("B")
    except (TypeError, ValueError, BufferError):  # NumPy raises the last two, of some dtypes
        raise TypeError(
            f"data is a {type(data).__qualname__}; expected the bytes of a stream"
        ) from None
    size = len(whole)
    if size < HEAD.size + DIGEST_BYTES or whole[:4] != MAGIC:
        raise FormatError(f"these {size} bytes are not those of a stream; {EXPECTED}")
    _, version, real_bytes, rows, steps, fingerprint = HEAD.unpack_from(whole)
    if version != VERSION:
        raise FormatError(f"the stream's bytes are of version {version}; expected {VERSION}")
    content = whole[:-DIGEST_BYTES]
    if whole[-DIGEST_BYTES:] != _digest(content):
        raise FormatError("the stream's bytes are damaged, or were cut short")
    if real_bytes != model.dtype.itemsize:
        raise FormatError(
            f"the stream's bytes hold real numbers of {real_bytes} bytes; expected "
            f"{model.dtype.itemsize}, as of this {model.dtype} model"
        )
    if fingerprint != _fingerprint(model):
        raise FormatError(
            "these are the bytes of a stream of another model; expected one of this model, with "
            "these very weights"
        )
    if rows != (batch_size or 0):
        raise FormatError(
            f"the stream's bytes have {_rows(rows)}; expected {_rows(batch_size or 0)}"
        )
    if steps < 0:
        raise FormatError(f"the stream's bytes say that it has made {steps} steps; {EXPECTED}")
    shapes = model.state_shapes(batch_size)
    arrays = sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes.values())
    expected = HEAD.size + arrays + DIGEST_BYTES
    if size != expected:
        raise FormatError(f"the stream's bytes are {size} long; expected {expected}")
    state, at = {}, HEAD.size
    # By name: the order of the mapping is that of the plan, which another version may change.
    for name, (dtype, shape) in sorted(shapes.items()):
        count = math.prod(shape)
        found = np.frombuffer(content, dtype.newbyteorder("<"), count, at)
        state[name] = found.astype(dtype).reshape(shape)
        at += found.nbytes
    try:
        return model.state_block(state, batch_size), steps
    except ValueError as error:
        raise FormatError(f"the stream's bytes hold what no stream can: {error}") from error


def _fingerprint(model: PackedGraph) -> bytes:
    return bytes.fromhex(model.fingerprint)


def _digest(content: bytes | memoryview) -> bytes:
    import hashlib  # loads OpenSSL, several milliseconds: not a part of importing the package

    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _little(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _rows(count: int) -> str:
    return f"{count} rows" if count else "no axis of rows"
