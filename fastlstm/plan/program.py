"""A program: tables, values and operations, its bytes and a listing of it."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastlstm.plan.operations import (
    ENUMERATIONS,
    NONE,
    OPERATIONS,
    TABLES,
    Initial,
    Matrix,
    Operation,
    Part,
    Piece,
    Tensor,
    Value,
    Vector,
    field_types,
)
from fastlstm.spec import Function

__all__ = ["MAGIC", "VERSION", "Instruction", "Program"]

MAGIC = int.from_bytes(b"fastlstm", "little")
VERSION = 3

Words = npt.NDArray[np.int64]

_SIZE = range(2**31)
_RANGES = {
    "size": _SIZE,
    "integer": range(-(2**31), 2**31),
    "offset": range(-1, 2**31),
    "flag": range(2),
}
_FUNCTIONS = {name: number for number, name in enumerate(ENUMERATIONS["function"])}
_KINDS = {kind: number for number, kind in enumerate(OPERATIONS.values())}
_NAMES = {kind: name for name, kind in OPERATIONS.items()}


class Instruction(NamedTuple):
    """One function of a map's code, and the registers that it reads; -1 where it reads fewer."""

    function: Function
    a: int
    b: int = NONE
    c: int = NONE


class Program:
    """What a program says, put together piece by piece, or read from bytes.

    Attributes
    ----------
    state_size, lines, buffers, held, looks_ahead : int
        Elements of a stream's state, lines and buffers; the operations that run when a sequence
        starts, the first ones; 1 if it runs only a whole sequence at once.
    reals : array of double
        Numbers that vectors and pieces take which lie in no tensor.
    lists : list of int64 array
    tensors, vectors, matrices, pieces, values, parts, initial : list
        The entries of each table.
    inputs, outputs : list of int
        The value of each.
    operations : list of Operation
    part_names, tensor_names, input_names, output_names : list of str
        What parts of the state, tensors, inputs and outputs are called. Names are in no bytes.
    """

    def __init__(self) -> None:
        self.state_size = self.buffers = self.held = self.looks_ahead = 0
        self.lines = 1
        self.reals = array("d")
        self.lists: list[Words] = []
        self.tensors: list[Tensor] = []
        self.vectors: list[Vector] = []
        self.matrices: list[Matrix] = []
        self.pieces: list[Piece] = []
        self.values: list[Value] = []
        self.parts: list[Part] = []
        self.initial: list[Initial] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.operations: list[Operation] = []
        self.part_names: list[str] = []
        self.tensor_names: list[str] = []
        self.input_names: list[str] = []
        self.output_names: list[str] = []
        self._known: dict[Any, int] = {}

    def _put(self, table: list[Any], entry: Any) -> int:
        table.append(entry)
        return len(table) - 1

    # Tables: each method gives the number of what it adds.

    def tensor(self, count: int, name: str = "", stored: str = "real") -> int:
        """A tensor of so many numbers, which lies beside the program."""
        self.tensor_names.append(name)
        return self._put(self.tensors, Tensor(count, stored))

    def list_of(self, words: Iterable[int] | Words) -> int:
        """A list; one that is there already is not put there again."""
        kept = np.array(words if isinstance(words, np.ndarray) else [*words], np.int64).ravel()
        key = kept.tobytes()
        if key not in self._known:
            self._known[key] = self._put(self.lists, kept)
        return self._known[key]

    def vector(self, numbers: npt.ArrayLike) -> int:
        """A vector of the program's own numbers."""
        kept = np.asarray(numbers, np.float64).ravel()
        key = ("vector", kept.tobytes())
        if key not in self._known:
            entry = Vector(NONE, len(self.reals), len(kept))
            self.reals.frombytes(key[1])
            self._known[key] = self._put(self.vectors, entry)
        return self._known[key]

    def vector_of(self, tensor: int, first: int, count: int) -> int:
        """A vector that is some numbers of a tensor."""
        entry = Vector(tensor, first, count)
        if entry not in self._known:
            self._known[entry] = self._put(self.vectors, entry)
        return self._known[entry]

    def matrix(
        self,
        rows: int,
        columns: int,
        pieces: Sequence[Piece],
        stored: str = "real",
        scale: int = NONE,
    ) -> int:
        """A matrix (rows, columns) that is the sum of pieces, times a vector of scales (rows,)."""
        key = ("matrix", rows, columns, stored, scale, *pieces)
        if key not in self._known:
            entry = Matrix(rows, columns, len(self.pieces), len(pieces), stored, scale)
            self.pieces.extend(pieces)
            self._known[key] = self._put(self.matrices, entry)
        return self._known[key]

    def matrix_of(self, tensor: int, rows: int, columns: int, first: int = 0) -> int:
        """A matrix (rows, columns) that lies in a tensor row by row."""
        piece = Piece(0, rows, 0, columns, tensor, first, columns, 1)
        return self.matrix(rows, columns, [piece])

    def value(self, count: int, line: int, place: str, number: int, tokens: int = 0) -> int:
        """A value of rows of `count` numbers."""
        return self._put(self.values, Value(count, line, place, number, tokens))

    def stretch(self, value: int, first: int, count: int) -> int:
        """A value that is `count` numbers of the rows of another, from number `first` on."""
        line = self.values[value].line
        return self._put(self.values, Value(count, line, "stretch", value, first=first))

    def part(self, entry: Part, name: str = "") -> int:
        """A part of the state that is read and written by name."""
        self.part_names.append(name)
        return self._put(self.parts, entry)

    def start(self, offset: int, values: int) -> int:
        """A vector that stands in the state, from an element on, when a stream is new."""
        return self._put(self.initial, Initial(offset, values))

    def code(self, instructions: Sequence[Instruction]) -> int:
        """The list of a map's code."""
        words: list[int] = []
        for (name, alpha, beta), *registers in instructions:
            words += [_FUNCTIONS[name], *registers, _bits(alpha), _bits(beta)]
        return self.list_of(words)

    def instructions(self, code: int) -> list[Instruction]:
        """The inverse of :meth:`code`."""
        names = ENUMERATIONS["function"]
        return [
            Instruction(Function(names[f], _real(alpha), _real(beta)), a, b, c)
            for f, a, b, c, alpha, beta in self.lists[code].reshape(-1, 6).tolist()
        ]

    def add(self, operation: Operation) -> None:
        """Have an operation run behind those that are there."""
        self.operations.append(operation)

    # Words

    def to_bytes(self) -> bytes:
        """The program in the order in which the core reads it."""
        head = [self.state_size, self.lines, self.buffers, self.held, self.looks_ahead]
        lists = [len(self.lists), *map(len, self.lists)]
        tables: list[int] = []
        for name in TABLES:
            entries = self.table(name)
            tables.append(len(entries))
            for entry in entries:
                tables += _words(entry)
        for numbers in (self.inputs, self.outputs):
            tables += [len(numbers), *numbers]
        tables.append(len(self.operations))
        for operation in self.operations:
            tables += [_KINDS[type(operation)], *_words(operation)]
        reals = np.frombuffer(self.reals, np.float64).astype("<f8")
        behind = [np.array(lists), *self.lists, np.array(tables, np.int64)]
        total = 3 + len(head) + 1 + len(reals) + sum(map(len, behind))
        front = np.array([MAGIC, VERSION, total, *head, len(reals)], "<i8")
        words = np.concatenate(behind).astype("<i8")
        return front.tobytes() + reals.tobytes() + words.tobytes()

    def table(self, name: str) -> list[Any]:
        """The entries of a table, by its name in the vocabulary."""
        entries: list[Any] = getattr(self, _PLURALS[name])
        return entries

    @classmethod
    def from_bytes(cls, data: bytes) -> Program:
        """Read what :meth:`to_bytes` gives.

        Whether operations fit what they read, the core checks.

        Raises
        ------
        ValueError
            If words are missing or left over, or one of them is outside what its type allows.
        """
        read = _Reader(data)
        program = cls()
        for name in ("state_size", "lines", "buffers", "held", "looks_ahead"):
            setattr(program, name, read.word(name, range(2) if name == "looks_ahead" else _SIZE))
        program.reals.frombytes(read.words(read.count("reals")).astype("<i8").tobytes())
        lengths = [read.count("numbers of a list") for _ in range(read.count("lists"))]
        program.lists = [read.words(length) for length in lengths]
        for name, record in TABLES.items():
            for _ in range(read.count(f"entries of table {name}")):
                program.table(name).append(read.record(record))
        for numbers in (program.inputs, program.outputs):
            numbers += [read.word("a value", _SIZE) for _ in range(read.count("values"))]
        kinds = list(OPERATIONS.values())
        for _ in range(read.count("operations")):
            kind = kinds[read.word("the kind of an operation", range(len(kinds)))]
            program.operations.append(read.record(kind))
        read.end()
        program.check()
        return program

    def check(self) -> None:
        """Check that every number of a value, vector, matrix or list is that of one there is."""
        ranges = {
            "value": range(len(self.values)),
            "some_value": range(-1, len(self.values)),
            "vector": range(-1, len(self.vectors)),
            "matrix": range(-1, len(self.matrices)),
            "list": range(-1, len(self.lists)),
            "offset": range(-1, self.state_size),
        }
        records = [*self.operations, *(entry for name in TABLES for entry in self.table(name))]
        for record in records:
            for kind, name, number in zip(
                field_types(type(record)), record._fields, record, strict=True
            ):
                if kind in ranges and number not in ranges[kind]:
                    raise ValueError(
                        f"{name} of {record} is outside {_text(ranges[kind])} of this program"
                    )
        for number in (*self.inputs, *self.outputs):
            if number not in ranges["value"]:
                raise ValueError(f"input or output {number} is no value of this program")
        for vector in self.vectors:
            self._within(vector, vector.tensor, vector.first + vector.count)
        for matrix in self.matrices:
            if matrix.first_piece + matrix.pieces > len(self.pieces):
                raise ValueError(f"{matrix} has pieces beyond the {len(self.pieces)} there are")
        for piece in self.pieces:
            self._within(piece, piece.tensor, piece.first)
        if self.held > len(self.operations):
            raise ValueError(f"{self.held} operations are held, of {len(self.operations)}")

    def _within(self, record: Any, tensor: int, end: int) -> None:
        if tensor not in range(-1, len(self.tensors)):
            raise ValueError(f"{record} is of a tensor that there is not")
        if end > (len(self.reals) if tensor == NONE else self.tensors[tensor].count):
            raise ValueError(f"{record} has numbers beyond the last")

    # The listing

    def __str__(self) -> str:
        return "\n".join(self._listing())

    def _listing(self) -> Iterator[str]:
        yield (
            f"program of {len(self.operations)} operations, {self.buffers} buffers, "
            f"{self.lines} lines, a state of {self.state_size}"
            f"{', of whole sequences' * self.looks_ahead}"
        )
        for what, numbers in (("input", self.inputs), ("output", self.outputs)):
            for number, value in enumerate(numbers):
                yield f"{what} {number}: {self.said(value)}"
        for name, part in zip(self.part_names or [""] * len(self.parts), self.parts, strict=True):
            yield f"state {name}: {part.part} ({part.rows}, {part.count}) at {part.offset}"
        for at, operation in enumerate(self.operations):
            yield f"{'held ' * (at < self.held)}{self.listed(operation)}"

    def said(self, value: int) -> str:
        """A value in words: its number, where it lies, its numbers and its line."""
        count, line, place, number, tokens, first = self.values[value]
        kind = f" of {tokens} tokens" if tokens else ""
        kind = f" of %{number} from {first}" if place == "stretch" else kind
        where = place if place == "stretch" else f"{place} {number}"
        return f"%{value} {where} ({count}){kind}" + (f" line {line}" if line > 0 else "")

    def listed(self, operation: Operation) -> str:
        """An operation in a line; fields that say nothing are left out."""
        shown = []
        defaults = type(operation)._field_defaults
        kinds = field_types(type(operation))
        for kind, name, field in zip(kinds, operation._fields, operation, strict=True):
            if name != "y" and field == defaults.get(name, NONE):
                continue
            shown.append(f"{name} {self._shown(kind, name, field)}")
        return f"{_NAMES[type(operation)]}: {', '.join(shown)}"

    def _shown(self, kind: str, name: str, field: Any) -> str:
        if kind in ("value", "some_value"):
            return f"[{self.said(field)}]"
        if kind == "list" and name == "code":
            return "; ".join(
                f"{f.name}{(f.alpha, f.beta) if f.alpha or f.beta else ''} "
                f"{' '.join(f'r{r}' for r in registers if r != NONE)}"
                for f, *registers in self.instructions(field)
            )
        if kind == "list" and name in ("reads", "ys"):
            return " ".join(f"[{self.said(value)}]" for value in self.lists[field].tolist())
        if kind == "list":
            numbers = self.lists[field]
            more = f" ... of {len(numbers)}" if len(numbers) > 12 else ""
            return f"({' '.join(map(str, numbers[:12].tolist()))}{more})"
        if kind == "vector":
            tensor, first, count = self.vectors[field]
            where = "own" if tensor == NONE else f"tensor {tensor}"
            return f"{where}[{first}:{first + count}]"
        if kind == "matrix":
            rows, columns, _, pieces, stored, _ = self.matrices[field]
            kind = "" if stored == "real" else f"{stored} "
            return f"({kind}{rows} x {columns} of {pieces})"
        return f"{field.name}" if kind == "function" else f"{field}"


_PLURALS = {
    **{name: f"{name}s" for name in TABLES},
    "matrix": "matrices",
    "initial": "initial",
}


def _bits(number: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _real(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])


def _words(record: Any) -> list[int]:
    words: list[int] = []
    for kind, field in zip(field_types(type(record)), record, strict=True):
        if kind == "function":
            words += [_FUNCTIONS[field.name], _bits(field.alpha), _bits(field.beta)]
        elif kind == "number":
            words.append(_bits(field))
        elif kind in ENUMERATIONS:
            words.append(ENUMERATIONS[kind].index(field))
        else:
            words.append(int(field))
    return words


def _text(numbers: range) -> str:
    return f"{numbers.start} to {numbers.stop - 1}"


class _Reader:
    """The words of a program, one after another."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 8:
            raise ValueError(f"a program of {len(data)} bytes is no whole number of words")
        self._all = np.frombuffer(data, "<i8").astype(np.int64)
        self._at = 0
        for name, expected in (("magic", MAGIC), ("version", VERSION), ("words", len(self._all))):
            if (found := self._next(name)) != expected:
                raise ValueError(f"{name} of the program is {found}; expected {expected}")

    def _next(self, what: str) -> int:
        if self._at == len(self._all):
            raise ValueError(f"the program ends before {what}")
        self._at += 1
        return int(self._all[self._at - 1])

    def words(self, count: int) -> Words:
        if count > len(self._all) - self._at:
            raise ValueError(f"the program ends within a list of {count} words")
        self._at += count
        return self._all[self._at - count : self._at]

    def word(self, what: str, allowed: range) -> int:
        if (found := self._next(what)) not in allowed:
            raise ValueError(f"{what} is {found}; expected {_text(allowed)}")
        return found

    def count(self, what: str) -> int:
        """A number of things that are to follow, each of a word or more."""
        return self.word(f"the number of {what}", range(len(self._all) - self._at))

    def record(self, record: Any) -> Any:
        fields: list[Any] = []
        for kind, name in zip(field_types(record), record._fields, strict=True):
            if kind == "function" or kind in ENUMERATIONS:
                members = ENUMERATIONS[kind]
                member = members[self.word(name, range(len(members)))]
                if kind == "function":
                    alpha, beta = _real(self._next(name)), _real(self._next(name))
                    fields.append(Function(member, alpha, beta))
                else:
                    fields.append(member)
            elif kind == "number":
                fields.append(_real(self._next(name)))
            else:
                fields.append(self.word(name, _RANGES.get(kind, range(-1, 2**31))))
        return record(*fields)

    def end(self) -> None:
        if self._at < len(self._all):
            raise ValueError(f"{len(self._all) - self._at} words are left over")
