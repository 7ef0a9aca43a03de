"""Steps as a program in C makes them, of a model that is here: what ``ticks.c`` does, for others.

It is compiled against the installed package (``fastlstm.get_include()``) and runs the engine that
Python runs, so that both can be timed in turns in one process.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm

SOURCE = Path(__file__).with_suffix(".c")


@functools.cache
def compiled() -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """The library, as functions that need the GIL and as functions that need none.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If there is no C compiler, or it fails, as where Python's own headers are missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "ticks.so")
        headers = [f"-I{fastlstm.get_include()}", f"-I{sysconfig.get_path('include')}"]
        flags = ["-std=c11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", *headers]
        subprocess.run(["cc", *flags, str(SOURCE), "-o", library], check=True)
        held, free = ctypes.PyDLL(library), ctypes.CDLL(library)
    size, numbers = ctypes.c_size_t, np.ctypeslib.ndpointer(np.int64, 1, flags="C_CONTIGUOUS")
    held.new_ticks.argtypes = [ctypes.py_object, size, size]
    held.new_ticks.restype = ctypes.c_void_p
    held.free_ticks.argtypes = [ctypes.c_void_p]
    held.free_ticks.restype = None
    free.each_tick.argtypes = [ctypes.c_void_p, size, ctypes.c_int, numbers]
    free.each_window.argtypes = [ctypes.c_void_p, size, numbers]
    free.each_tick.restype = free.each_window.restype = ctypes.c_int64
    free.steps.argtypes = [ctypes.c_void_p, size]
    return held, free


class Ticks:
    """A stream in C of a model of one input and one output, and rows for it.

    Parameters
    ----------
    model : fastlstm.Model
    T : int
        Rows of input, which ticks take in turn, and steps of a window.
    threads : int

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If ``ticks.c`` cannot be compiled.
    """

    def __init__(self, model: fastlstm.Model, T: int = 1, threads: int = 1) -> None:
        held, self._c = compiled()
        self._free = held.free_ticks
        self._made = held.new_ticks(model, T, threads)

    def each(self, count: int, *, prepared: bool) -> np.ndarray:
        """Nanoseconds of each of `count` steps, a reading of the clock among them: int64 (count,).

        What a step can do before its input is there is not in its time, if it is `prepared`.
        """
        took = np.zeros(count, np.int64)
        self._checked(self._c.each_tick(self._made, count, prepared, took))
        return took

    def windows(self, count: int) -> np.ndarray:
        """Nanoseconds of each of `count` windows of T steps from zero: int64 (count,)."""
        took = np.zeros(count, np.int64)
        self._checked(self._c.each_window(self._made, count, took))
        return took

    def steps(self, count: int) -> None:
        """Make so many steps."""
        self._checked(-self._c.steps(self._made, count))

    def _checked(self, all_of_them: int) -> None:
        if all_of_them < 0:
            raise RuntimeError("a step was refused")

    def __del__(self) -> None:
        made: Any = getattr(self, "_made", None)
        if made:
            self._free(made)
