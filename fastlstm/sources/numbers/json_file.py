"""Read JSON that holds numbers: nested lists of them, of equal lengths, become arrays.

The text may be hostile. It is read from front to back without recursion: how deep it is nested, how
many entries, rows and characters it holds is counted as they come, and the numbers of all lists lie
in one buffer, whose size the size of the file bounds. The grammar is that of RFC 8259, with the
words NaN, Infinity and -Infinity that Python and JavaScript programs write.
"""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from typing import Any, NoReturn

import numpy as np

from fastlstm.errors import ConvertError

__all__ = ["is_json", "read_json"]

# A number takes 8 bytes here and at most 4 more as an array, beside twice the size of the file.
MAX_BYTES, SPARE_MEMORY, NUMBER_MEMORY = 2**26, 14 * 10**6, 12
# Entries of mappings and of lists that are no arrays take up to 100 bytes each; rows cost time.
MAX_DEPTH, MAX_ENTRIES, MAX_ROWS, MAX_TEXT, MAX_AXES = 64, 2**16, 2**17, 2**20, 8
# Of the text of one number; of what is parsed at once, which becomes Python's numbers for a moment.
MAX_DIGITS, PIECE = 400, 2**16

_SPACE = re.compile(rb"[ \t\r\n]*+")
_ROW = re.compile(rb"\[([0-9+\-.eE, \t\r\nINafinty]*+)\]")
_TEXT = re.compile(rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+(?![0-9.])")
_WORD = re.compile(rb"null|true|false|NaN|-?Infinity")
_WORDS = {
    **{b"null": None, b"true": True, b"false": False},
    **{b"NaN": math.nan, b"Infinity": math.inf, b"-Infinity": -math.inf},
}


def is_json(head: bytes) -> bool:
    """Whether a file with these first bytes is a JSON object or list."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1] in (b"{", b"[")


def read_json(path: str) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : str

    Returns
    -------
    object
        Mappings, lists, texts, numbers, True, False and None as in the file, and each list of
        numbers, or of arrays of one shape, as an array: float32 where that holds all its numbers as
        they are, else float64.

    Raises
    ------
    ConvertError
        If it is not JSON, a key is there twice, or it is larger, deeper or holds more than is read.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ConvertError(
                f"{path}: {size} bytes of JSON; at most {MAX_BYTES} are read. Write its arrays "
                f"with numpy.savez, and give that file"
            )
        data = file.read(size)
    try:
        return _Parser(data.removeprefix(b"\xef\xbb\xbf")).parsed()
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from None


class _Run:
    """Numbers that lie together in the buffer, and the axes of the list that they are."""

    __slots__ = ("shape", "start")

    def __init__(self, start: int, shape: tuple[int, ...]) -> None:
        self.start, self.shape = start, shape


class _List:
    """A list that is open: as long as all its items are runs of one shape, it is one run itself."""

    __slots__ = ("count", "first", "items")

    def __init__(self) -> None:
        self.first: _Run | None = None
        self.count = 0
        self.items: list[Any] = []

    def add(self, item: Any) -> int:
        """Add an item; the number of entries that are kept for it."""
        if isinstance(item, _Run) and not self.items:
            if self.first is None:
                self.first = item
            if item.shape == self.first.shape and len(item.shape) < MAX_AXES:
                self.count += 1
                return 0
        kept = self.count + 1
        if self.count:
            self.items = self.runs()
            self.count = 0
        self.items.append(item)
        return kept

    def runs(self) -> list[Any]:
        assert self.first is not None
        size = math.prod(self.first.shape)
        return [_Run(self.first.start + n * size, self.first.shape) for n in range(self.count)]

    def closed(self) -> Any:
        if self.count and self.first is not None:
            return _Run(self.first.start, (self.count, *self.first.shape))
        return self.items


class _Parser:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.numbers = array("d")
        self.most = (2 * len(data) + SPARE_MEMORY) // NUMBER_MEMORY
        self.entries, self.rows, self.characters = MAX_ENTRIES, MAX_ROWS, MAX_TEXT
        self.open: list[dict[str, Any] | _List] = []
        self.keys: list[str] = []  # of the mappings that are open, what the next value is called

    def refuse(self, why: str) -> NoReturn:
        raise ConvertError(
            f"at byte {self.at} of the JSON, {why}; expected a model, or names and nested lists of "
            f"numbers"
        )

    def parsed(self) -> Any:
        value = self.value()
        while self.open:
            top = self.open[-1]
            if value is not top:
                self.put(top, value)
                if self.next(b",") is None:
                    value = self.close(top)
                    continue
            elif self.next(b"}" if isinstance(top, dict) else b"]") is not None:
                value = self.pop(top)
                continue
            if isinstance(top, dict):
                self.key(top)
            value = self.value()
        self.space()
        if self.at < len(self.data):
            self.refuse("it goes on behind its end")
        whole = np.frombuffer(self.numbers, np.float64) if self.numbers else np.empty(0)
        if np.isinf(whole).any() and b"Infinity" not in self.data:
            raise ConvertError("the JSON has a number that no float64 holds; expected weights")
        self.data = b""
        return _with_arrays(value, whole)

    def space(self) -> None:
        match = _SPACE.match(self.data, self.at)
        assert match is not None
        self.at = match.end()

    def next(self, mark: bytes) -> bytes | None:
        """The mark, if it comes next, read."""
        self.space()
        if self.data[self.at : self.at + 1] != mark:
            return None
        self.at += 1
        return mark

    def close(self, top: dict[str, Any] | _List) -> Any:
        end = b"}" if isinstance(top, dict) else b"]"
        if self.next(end) is None:
            self.refuse(f"there is {self.shown()} where ',' or {end.decode()!r} has to be")
        return self.pop(top)

    def pop(self, top: dict[str, Any] | _List) -> Any:
        self.open.pop()
        if isinstance(top, dict):
            self.keys.pop()
            return top
        return top.closed()

    def put(self, top: dict[str, Any] | _List, value: Any) -> None:
        kept = 1
        if isinstance(top, dict):
            top[self.keys[-1]] = value
        else:
            kept = top.add(value)
        self.entries -= kept
        if self.entries < 0:
            self.refuse(f"it has more than {MAX_ENTRIES} entries that are no lists of numbers")

    def key(self, top: dict[str, Any]) -> None:
        self.space()
        key = self.text()
        if key is None:
            self.refuse(f"there is {self.shown()} where a key has to be")
        if key in top:
            self.refuse(f"the key {key!a:.200} is there for the second time")
        if self.next(b":") is None:
            self.refuse(f"there is {self.shown()} where ':' has to be")
        self.keys[-1] = key

    def value(self) -> Any:
        """The next value, or the container that it opens."""
        self.space()
        mark = self.data[self.at : self.at + 1]
        if mark == b"[" and (row := _ROW.match(self.data, self.at)):
            self.at = row.end()
            return self.row(row[1])
        if mark in (b"[", b"{"):
            if len(self.open) == MAX_DEPTH:
                self.refuse(f"it is nested more than {MAX_DEPTH} deep")
            self.at += 1
            made: dict[str, Any] | _List = {} if mark == b"{" else _List()
            self.open.append(made)
            self.keys += [""] * (mark == b"{")
            return made
        if mark == b'"' and (text := self.text()) is not None:
            return text
        for pattern in (_NUMBER, _WORD):
            if match := pattern.match(self.data, self.at):
                if match.end() - self.at > MAX_DIGITS:
                    self.refuse(f"a number has more than {MAX_DIGITS} digits")
                self.at = match.end()
                return _WORDS[match[0]] if pattern is _WORD else json.loads(match[0])
        return self.refuse(f"there is {self.shown()} where a value has to be")

    def text(self) -> str | None:
        match = _TEXT.match(self.data, self.at)
        if match is None:
            return None
        self.characters -= len(match[0])
        if self.characters < 0:
            self.refuse(f"it has more than {MAX_TEXT} characters of text")
        try:
            text: str = json.loads(match[0].decode())
        except ValueError:
            self.refuse("a text is not UTF-8 or holds an escape that JSON has not")
        self.at = match.end()
        return text

    def row(self, text: bytes) -> Any:
        """A list of numbers alone; a part of it at a time is parsed."""
        self.rows -= 1
        if self.rows < 0:
            self.refuse(f"it has more than {MAX_ROWS} lists of numbers")
        if len(self.numbers) + text.count(b",") > self.most:
            self.refuse(
                f"its numbers take more than {NUMBER_MEMORY * self.most} bytes, far more than a "
                f"file of this size should; write them with numpy.savez, and give that file"
            )
        start, at = len(self.numbers), 0
        if not text.strip(b" \t\r\n"):
            return []
        while at <= len(text):
            end = text.rfind(b",", at, at + PIECE) if len(text) - at > PIECE else len(text)
            piece = text[at:end] if end >= 0 else b""
            try:
                numbers = json.loads(f"[{piece.decode()}]", parse_int=float)
            except ValueError:
                numbers = []
            if not numbers:
                self.refuse("a list of numbers before it is malformed")
            self.numbers.extend(numbers)
            at = end + 1
        return _Run(start, (len(self.numbers) - start,))

    def shown(self) -> str:
        found = self.data[self.at : self.at + 20]
        return f"{found.decode(errors='replace')!a}" if found else "the end of the file"


def _with_arrays(value: Any, numbers: Any) -> Any:
    """A value with arrays instead of runs; no deeper than the text was."""
    if isinstance(value, dict):
        return {key: _with_arrays(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_arrays(item, numbers) for item in value]
    if not isinstance(value, _Run):
        return value
    wide = numbers[value.start : value.start + math.prod(value.shape)].reshape(value.shape)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    same = narrow == wide
    same |= np.isnan(narrow)
    return narrow if same.all() else wide
