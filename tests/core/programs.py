"""Programs run by the core in C: many in one process, on any instruction set, in any pieces.

``program_driver.c`` reads what is asked here from a file, and answers in another.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import c_builds
import numpy as np
import numpy.typing as npt
from driver_words import Words, bytes_of, filled, word

__all__ = ["BUILDS", "ERRORS", "Answer", "Case", "Driver", "Given", "driver_of"]

Array = npt.NDArray[Any]


def _with(build: c_builds.Build, kernel: str) -> c_builds.Build:
    """A build that compiles in less time."""
    return dataclasses.replace(build, flags=("-O1", *build.flags[1:]), kernels=(kernel,))


# Built once for all tests, for what is computed rather than how fast: in seconds, where -O3 takes
# minutes. What takes longest to compile is left out where another build has it.
NATIVE = "neon" if platform.machine() == "aarch64" else "avx2"
BUILDS = {
    "plain": c_builds.Build("cc", ("-O1",)),
    "clang": c_builds.Build("clang", ("-O1",), kernels=(NATIVE,)),
    "address": c_builds.Build("cc", ("-O1", *c_builds.ADDRESS_FLAGS), kernels=(NATIVE, "scalar")),
    "address in 32 bits": c_builds.Build(
        c_builds.I686.compiler,
        ("-O1", *c_builds.ADDRESS_FLAGS, *c_builds.I686.flags[1:]),
        kernels=("scalar",),
    ),
    "wasm": _with(c_builds.WASM, "simd128"),
    "arm": _with(c_builds.ARM, "fused"),
}
if platform.machine() == "x86_64":  # wine runs what the processor does
    BUILDS["windows"] = _with(c_builds.WINDOWS, "avx2")
if platform.machine() != "aarch64":
    BUILDS["neon"] = dataclasses.replace(
        _with(c_builds.AARCH64, "neon"), kernels=("neondot", "neon")
    )
SOURCES = [
    *sorted(c_builds.CORE.glob("*.c")),
    *(Path(__file__).with_name(f"{name}_driver.c") for name in ("program", "stream", "refusal")),
]
# Every place that may stop is tried, every call is shared by threads, for which it waits.
EAGER = ("-DFL_ASK_WORK=1", "-DFL_LEAST_NS=1e-3", "-DFL_LONG_NS=0")

OF_INT8 = ("amx", "vnni", "dot")  # how kernels are called that run another's loops
_TYPES = {"float32": 0, "float64": 1, "float16": 2, "uint16": 3, "int8": 4}  # fl_type

ERRORS = ("ok", "argument", "program", "tensors", "state", "large", "memory", "kernel", "stopped")
_KINDS = ("begin", "run", "flush", "parts", "set_part", "state", "set_state", "try", "prepare")


@dataclass(eq=False)
class Given:
    """What a call gave.

    Attributes
    ----------
    error : str
        One of ERRORS.
    steps_done : int
    rows : list of list of array
        Of each output, of each row of the batch, (rows, count).
    """

    error: str
    steps_done: int
    rows: list[list[Array]]

    def outputs(self) -> list[Array]:
        """Of each output (T', B, count), where all of the batch have as many rows."""
        return [np.stack(of, axis=1) for of in self.rows]


@dataclass(eq=False)
class Answer:
    """What a case gave: why it could not be run, or what its calls gave, in their order."""

    error: str
    message: str
    calls: list[Any]


@dataclass(eq=False)
class Case:
    """A program, its tensors, and what to call.

    Parameters
    ----------
    program : bytes
    tensors : sequence of array
        Of float32 or float64, or of a matrix in fewer bytes.
    outputs : sequence of int
        Of each output how many numbers a row has.
    dtype : float32 or float64
        What to compute in.
    isa : str
        "" for the best there is.
    batch, threads : int
    most : int
        Bytes that its model may take.
    """

    program: bytes
    tensors: Sequence[Array] = ()
    outputs: Sequence[int] = ()
    dtype: Any = np.float32
    isa: str = ""
    batch: int = 1
    threads: int = 1
    most: int = 2**28
    _calls: list[list[bytes]] = field(default_factory=list)
    _readers: list[Callable[[Words], Any]] = field(default_factory=list)

    def begin(self, held: Sequence[Array] = ()) -> None:
        """Put the states where a sequence starts. held: (B, count) of each held input."""
        self._call("begin", 0, held, answer=lambda words: ERRORS[words.word()])

    def run(
        self,
        T: int,
        inputs: Sequence[Array] = (),
        *,
        whole: bool = False,
        lengths: Sequence[int] | None = None,
        batch_first: bool = False,
        stop_at: int = 0,
        resets: Array | None = None,
        held: Sequence[Array] = (),
    ) -> None:
        """T steps: inputs (T, B, count), of those that are not held.

        With resets, bytes (T, B), rows start anew with held (B, count), of those that are.
        """
        self._call(
            *("run", T, inputs, whole, lengths, batch_first, stop_at, resets, held),
            answer=self._given,
        )

    def flush(self, *, whole: bool = False, batch_first: bool = False) -> None:
        """What is due at the end."""
        self._call("flush", 0, [], whole, batch_first=batch_first, answer=self._given)

    def prepare(self, rows: Sequence[bool], *, spoils: bool = False) -> None:
        """Make of the next step of these rows (B,) what needs no input, or spoil what was made."""
        request = [word(_KINDS.index("prepare")), *map(word, map(int, rows)), word(spoils)]
        self._add(request, lambda words: ERRORS[words.word()])

    def parts(self) -> None:
        """Every part of the states: (B, rows, count), or of a count (B,)."""
        self._add([word(_KINDS.index("parts"))], self._read_parts)

    def set_part(self, number: int, numbers: Array) -> None:
        """Write a part of the states, as :meth:`parts` gives it."""
        is_count = numbers.dtype == np.int64
        rows = numbers if is_count else numbers.astype(self.dtype)
        head = struct.pack("<qqq", _KINDS.index("set_part"), number, rows[0].nbytes)
        self._add([head, *map(bytes_of, rows)], lambda words: ERRORS[words.word()])

    def state(self) -> None:
        """All numbers of the states, (B, state_size)."""
        self._add([word(_KINDS.index("state"))], self._read_state)

    def set_state(self, state: Array) -> None:
        """Put them back."""
        rows = map(bytes_of, state.astype(self.dtype))
        self._add([word(_KINDS.index("set_state")), *rows], lambda words: None)

    def try_all(self, T: int, seed: int = 0) -> None:
        """T steps, and the end, of whatever the program has, also from states that no call left."""
        head = struct.pack("<qqq", _KINDS.index("try"), T, seed)
        self._add([head], lambda words: ERRORS[words.word()])

    def _add(self, request: list[bytes], answer: Callable[[Words], Any]) -> None:
        self._calls.append(request)
        self._readers.append(answer)

    def _call(
        self,
        kind: str,
        T: int,
        inputs: Sequence[Array],
        whole: bool = False,
        lengths: Sequence[int] | None = None,
        batch_first: bool = False,
        stop_at: int = 0,
        resets: Array | None = None,
        held: Sequence[Array] = (),
        *,
        answer: Callable[[Words], Any],
    ) -> None:
        head = [_KINDS.index(kind), T, whole, batch_first, stop_at, lengths is not None]
        request = [struct.pack(f"<{len(head)}q", *map(int, head)), *map(word, lengths or ())]
        request += [word(resets is not None), b"" if resets is None else bytes_of(resets)]
        by_row = batch_first and kind == "run"
        for x in [*(np.moveaxis(x, 0, 1) if by_row else x for x in inputs), *held]:
            x = x if x.dtype == np.int64 else x.astype(self.dtype)
            request += [word(x.nbytes), bytes_of(x)]
        self._add(request, answer)

    def _given(self, words: Words) -> Given:
        error, steps_done = ERRORS[words.word()], words.word()
        rows = [
            [words.rows(words.word(), count, self.dtype) for _ in range(self.batch)]
            for count in self.outputs
        ]
        return Given(error, steps_done, rows)

    def _read_parts(self, words: Words) -> list[Array]:
        parts = []
        for _ in range(words.parts):
            is_count, rows, count = words.word(), words.word(), words.word()
            of_each = []
            for _ in range(self.batch):
                error = ERRORS[words.word()]
                assert error == "ok", error
                shape, dtype = ((), np.int64) if is_count else ((rows, count), self.dtype)
                of_each.append(words.array(shape, dtype))
            parts.append(np.stack(of_each))
        return parts

    def _read_state(self, words: Words) -> Array:
        return np.stack([words.array((words.state_size,), self.dtype) for _ in range(self.batch)])

    def to_bytes(self) -> bytes:
        """What the driver reads."""
        isa = self.isa.encode()
        parts = [word(len(self.program)), filled(self.program)]
        parts += [word(np.dtype(self.dtype) == np.float64), word(len(isa)), filled(isa)]
        parts += [word(self.most), word(len(self.tensors))]
        for tensor in self.tensors:
            parts += [word(_TYPES[tensor.dtype.name]), word(tensor.size), bytes_of(tensor)]
        parts += [word(self.batch), word(self.threads), word(len(self._calls))]
        for request in self._calls:
            parts += request
        return b"".join(parts)

    def read(self, words: Words, parts: int) -> Answer:
        """What the driver answered."""
        error, message = ERRORS[words.word()], words.text()
        words.parts = parts
        words.state_size = words.word() // np.dtype(self.dtype).itemsize
        calls = [] if error != "ok" else [read(words) for read in self._readers]
        return Answer(error, message, calls)


class Driver:
    """The driver as it was built: a command."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command, self._folder = list(command), folder
        self._kernels: list[tuple[str, Any]] = []

    def kernels(self, *, of_int8: bool = False) -> list[tuple[str, Any]]:
        """What can run here: the name of each, and its dtype.

        Those that differ from another in products of int8 only are there if that is asked for.
        """
        if not self._kernels:
            lines = self.call("kernels").splitlines()
            self._kernels = [
                (name, np.float32 if size == "4" else np.float64)
                for name, size in (line.split() for line in lines)
            ]
        return [one for one in self._kernels if of_int8 or not one[0].endswith(OF_INT8)]

    def vocabulary(self) -> str:
        """All that a program can say."""
        return self.call("vocabulary")

    def run(self, cases: Sequence[Case], parts: int = 0) -> list[Answer]:
        """Run cases, each of whose programs has so many parts of its state."""
        words = self.ask("run", [case.to_bytes() for case in cases])
        answers = [case.read(words, parts) for case in cases]
        words.end()
        return answers

    def ask(self, what: str, cases: Sequence[bytes]) -> Words:
        """What the driver answers to cases of a kind, one after another."""
        request, answer = self._folder / "request", self._folder / "answer"
        sized = [piece for one in cases for piece in (word(len(one)), one)]
        request.write_bytes(b"".join([word(len(cases)), *sized]))
        self.call(what, str(request), str(answer))
        return Words(answer.read_bytes())

    def call(self, *arguments: str) -> str:
        """What the driver prints."""
        made = c_builds.call([*self._command, *arguments])
        assert made.returncode == 0, (made.stderr + made.stdout)[-4000:]
        return made.stdout


@functools.cache
def _programs() -> c_builds.Programs:
    return c_builds.Programs(BUILDS, SOURCES, Path(os.environ["FASTLSTM_TEST_BUILDS"]), EAGER)


_FOLDER = tempfile.TemporaryDirectory()  # of this process, until it ends


@functools.cache
def driver_of(build: str) -> Driver:
    """The driver of one of BUILDS, compiled when it is first asked for; skips what has none."""
    return Driver(_programs().command(build), Path(_FOLDER.name))
