"""The tensors of an ONNX model. They are untrusted: sizes are checked before anything is read.

What a tensor keeps in a file of its own is read only from the folder of the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.spec import MAX_SIZE

__all__ = ["DTYPES", "FLOATS", "INTEGERS", "MAX_RANK", "Array", "Tensors", "text_of"]

Array = npt.NDArray[Any]

MAX_RANK = 8

FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
INTEGERS = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
INTEGERS |= {12: "uint32", 13: "uint64"}
BOOL = 9
DTYPES = FLOATS | INTEGERS | {BOOL: "bool"}
# Where a tensor keeps its numbers, if not as raw bytes; the smaller types in 32-bit integers.
_FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data"}
_FIELDS |= {13: "uint64_data"}


def text_of(value: str | bytes) -> str:
    """A name; protobuf gives bytes where they are no UTF-8."""
    if isinstance(value, bytes):
        raise ConvertError(f"the ONNX model holds the name {value[:40]!r}, which is no UTF-8")
    return value


class Tensors(Mapping[str, Array]):
    """The tensors of a model, read when they are asked for."""

    def __init__(self, tensors: dict[str, Any], folder: str | None) -> None:
        self._tensors = tensors
        self._read: dict[int, tuple[Any, Array]] = {}  # the tensor is kept, so that its id is
        self._folder = folder
        self._unread: dict[str, int] = {}  # by path, bytes of external data
        self.count = 0  # numbers that were read

    def __getitem__(self, name: str) -> Array:
        return self.array(self._tensors[name], f"tensor {name!r:.200}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def array(self, tensor: Any, what: str) -> Array:
        """An ``onnx.TensorProto``, the same array each time; bfloat16, as float32."""
        key = id(tensor)
        if key not in self._read:
            self._read[key] = tensor, self._array(tensor, what)
        return self._read[key][1]

    def _array(self, tensor: Any, what: str) -> Array:
        code, shape = tensor.data_type, tuple(tensor.dims)
        if code not in DTYPES:
            raise ConvertError(
                f"{what} is of data type {code}; expected one of {', '.join(DTYPES.values())}"
            )
        if len(shape) > MAX_RANK or not all(0 <= size <= MAX_SIZE for size in shape):
            raise ConvertError(
                f"{what} has shape {shape[:20]}; expected at most {MAX_RANK} axes, each from 0 to "
                f"{MAX_SIZE}"
            )
        if tensor.HasField("segment"):
            raise ConvertError(f"{what} is a segment of another; expected it whole")
        dtype = np.dtype("uint16" if code == 16 else DTYPES[code]).newbyteorder("<")
        count = math.prod(shape)
        field = _FIELDS.get(code, "int32_data")
        if tensor.data_location == 1:
            flat: Array = np.frombuffer(self._external(tensor, count * dtype.itemsize, what), dtype)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != count * dtype.itemsize:
                raise ConvertError(
                    f"{what} of shape {shape} and {DTYPES[code]} holds {len(tensor.raw_data)} "
                    f"bytes; expected {count * dtype.itemsize}: the file is damaged"
                )
            flat = np.frombuffer(tensor.raw_data, dtype)
        else:
            values = getattr(tensor, field)
            if len(values) != count:
                raise ConvertError(
                    f"{what} of shape {shape} holds {len(values)} numbers; expected {count}: the "
                    f"file is damaged"
                )
            flat = np.array(values, np.float64 if code in (1, 11) else np.int64)
            if code in (10, 16):  # their bits
                flat = flat.astype(np.uint16).view(np.float16 if code == 10 else np.uint16)
        if code == 16:  # the upper half of a float32
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        native = np.dtype("float32" if code == 16 else DTYPES[code])
        self.count += count
        with np.errstate(over="ignore"):
            return flat.astype(native).reshape(shape)

    def _external(self, tensor: Any, wanted: int, what: str) -> bytes:
        """The bytes of a tensor that are kept in another file of the model's folder."""
        entries = {text_of(entry.key): text_of(entry.value) for entry in tensor.external_data}
        location = entries.get("location", "")
        if self._folder is None:
            raise ConvertError(
                f"{what} is external data, and this model has no folder; give the path of its file"
            )
        parts = location.replace("\\", "/").split("/")
        if not location or os.path.isabs(location) or ":" in parts[0] or ".." in parts:
            raise ConvertError(
                f"{what} is external data in {location!r:.200}; expected a file in the folder of "
                f"the model"
            )
        folder = os.path.realpath(self._folder)
        path = os.path.realpath(os.path.join(folder, location))
        if os.path.commonpath([folder, path]) != folder:
            raise ConvertError(
                f"{what} is external data in {location!r:.200}, a symbolic link that leads out of "
                f"the folder of the model; expected the file itself there"
            )
        if not os.path.isfile(path):
            raise ConvertError(
                f"{what} is external data in {location!r:.200}, which is no file in the folder of "
                f"the model; copy it there"
            )
        try:
            offset, length = (int(entries.get(key, default)) for key, default in
                              (("offset", 0), ("length", wanted)))  # fmt: skip
        except ValueError:
            offset = length = -1
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            left = self._unread.setdefault(path, size) - length
            if offset < 0 or length != wanted or offset + length > size or left < 0:
                raise ConvertError(
                    f"{what} takes {wanted} bytes, and is external data at offset "
                    f"{entries.get('offset', '0')!r:.30} of length "
                    f"{entries.get('length', 'unknown')!r:.30} in a file of {size} bytes; expected "
                    f"it to fit, and no two tensors to overlap"
                )
            self._unread[path] = left
            file.seek(offset)
            return file.read(length)
