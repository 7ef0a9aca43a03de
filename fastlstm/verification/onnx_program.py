"""An ONNX file as a program, run by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MISSING", "OnnxProgram", "Port"]

Array = npt.NDArray[Any]

MISSING = "running an ONNX file needs onnxruntime; install it with: pip install onnxruntime"

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Port:
    """An input or output: None or a name for each size that is open."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(DTYPES[self.type])

    @property
    def is_integer(self) -> bool:
        return self.dtype.kind == "i"

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name!r:.80} {self.type.removeprefix('tensor(').removesuffix(')')} ({sizes})"


class OnnxProgram:
    """A graph in a session of onnxruntime.

    Parameters
    ----------
    path : path
    threads : int

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If onnxruntime is missing or cannot load it, or it has other tensors than of numbers.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(MISSING) from None
        with open(path, "rb"):
            pass  # onnxruntime's message for a missing file is its own
        self.file = Path(path).name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is fatal; everything else is raised
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no base class of their own
            raise ValueError(f"onnxruntime cannot load {self.file!r:.200}: {error}") from None
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())
        for port in (*self.inputs, *self.outputs):
            if port.type not in DTYPES:
                raise ValueError(f"{self.file!r:.200} has {port}; expected tensors of numbers")
        self.name = "onnxruntime"
        real = [port.dtype for port in self.outputs if port.dtype.kind == "f"]
        self.dtype = real[0] if real else np.dtype(np.float32)

    def start(self) -> None:
        return None

    def size_of(self, argument: str, axis: int) -> int | None:
        for port in self.inputs:
            if port.name == argument and axis < len(port.shape):
                size = port.shape[axis]
                return size if isinstance(size, int) else None
        return None

    def call(self, session: None, arguments: Mapping[str, Any]) -> dict[str, Array]:
        feed = {
            port.name: np.asarray(arguments[port.name]).astype(port.dtype)
            for port in self.inputs
            if port.name in arguments
        }
        made = self._session.run(None, feed)
        return {port.name: np.asarray(y) for port, y in zip(self.outputs, made, strict=True)}


def _ports(entries: Any) -> list[Port]:
    return [Port(entry.name, entry.type, tuple(entry.shape)) for entry in entries]
