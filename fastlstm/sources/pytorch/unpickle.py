"""A pickle reader that builds a graph of inert values: it imports nothing and calls nothing.

The standard unpickler gives a file the power to call what it names. This one knows only how to
build numbers, strings, lists, tuples, dicts and sets; whatever a pickle names, calls or restores
becomes an `Opaque` record of that wish, to be given a meaning, or none, by the reader of the file.

The opcodes are those of Lib/pickle.py, protocols 0 to 5, less the ones which torch cannot write:
the extension registry, out-of-band buffers, text persistent ids and Python 2's quoted strings.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastlstm.errors import ConvertError

__all__ = ["Budget", "Opaque", "load"]

# At most about a second of this interpreter on a current server core.
MAX_OPCODES = 2_000_000
MAX_INTEGER_BYTES = 1024  # decimal text of such an integer stays below Python's own limit of 4300
MAX_NAME = 1000
MAX_LINE = 1 << 20
MAX_TUPLE_KEY = 16
# Pickles number their memo 0, 1, 2, … (Python 2 from 1); a gap would only reserve memory.
MAX_MEMO_GAP = 1

# Numbers hash to themselves, so a file can choose keys which all collide and make a dict
# quadratic. Strings and bytes hash with a secret, records by identity, small non-negative integers
# spread by themselves; all other keys are rationed.
DENSE_KEYS = 1 << 20
MAX_OTHER_KEYS = 4_000

# Bytes an object of each kind takes at most on a 64-bit CPython, with its allocator's rounding.
SLOT = 16  # a place on the stack, and later one in the container that takes it
BOX = 48  # an int, a float, the header of a bytes object
TEXT = 80  # the header of a str
CONTAINER = 96
DICT_ENTRY = 120  # of a dict that has just grown


class Budget:
    """What reading one file may still cost.

    Parameters
    ----------
    limit : int
        Bytes of memory.

    Attributes
    ----------
    left : int
        Bytes not yet spent.
    opcodes : int
        Pickle opcodes executed so far.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.opcodes = 0
        self._other_keys = 0

    def charge(self, count: int) -> None:
        """Spend `count` bytes, before they are allocated; ConvertError when they are not there."""
        self.left -= count
        if self.left < 0:
            raise ConvertError(
                "reading it would take more memory than a file of this size should need; "
                "expected tensors and a few plain values; "
                "save only the weights, torch.save(model.state_dict(), path)"
            )

    def release(self, count: int) -> None:
        """Give back `count` bytes that were charged and have been freed."""
        self.left += count

    def admit_key(self, key: object) -> None:
        """Refuse, with ConvertError, a dict key or set element which is costly to hash."""
        kind: Any = type(key)
        if isinstance(key, int) and 0 <= key < DENSE_KEYS:
            return
        if kind is str or kind is bytes or kind.__hash__ is object.__hash__:
            return
        # Hashing walks nested tuples without a limit of depth, and again at every use.
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) > MAX_TUPLE_KEY or any(type(part) not in _SCALARS for part in parts):
            raise ConvertError(
                f"a {kind.__name__} as a dict key or set element; expected a string or number"
            )
        self._other_keys += 1
        if self._other_keys > MAX_OTHER_KEYS:
            raise ConvertError(
                f"more than {MAX_OTHER_KEYS} dict keys that are neither strings nor small integers"
            )


_UNSET = object()
_SCALARS = frozenset({str, bytes, int, float, complex, bool, type(None)})


@dataclass(eq=False, repr=False, slots=True)
class Opaque:
    """A thing that a pickle names, and that was neither imported nor called.

    Attributes
    ----------
    module, name : str
        The import path, as written in the file.
    args : tuple or None
        The arguments it would have been called with; None for the bare name.
    state : object
        What the object's ``__setstate__`` or ``__dict__`` would have received.
    items : dict or list or None
        What a subclass of dict or list was filled with.
    reason : str or None
        Why a tensor or another known thing was not read.
    """

    module: str
    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None
    items: dict[Any, Any] | list[Any] | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        # Never the repr of the parts: shared parts would be written out exponentially often.
        parts = [f"{self.module}.{self.name}"[:120]]
        if self.args is not None:
            parts.append(f"{len(self.args)} args")
        if isinstance(self.state, dict):
            keys = [key[:40] for key in list(self.state)[:8] if isinstance(key, str)]
            parts.append(f"state {len(self.state)} keys: {', '.join(keys)}")
        elif self.state is not None:
            parts.append(f"state {type(self.state).__name__}")
        if self.items is not None:
            parts.append(f"{len(self.items)} items")
        if self.reason is not None:
            parts.append(self.reason)
        text = f"Opaque({'; '.join(parts)})"
        return text if text.isprintable() else ascii(text)[1:-1]


def load(
    stream: BinaryIO,
    budget: Budget,
    persistent: Callable[[object], object] | None = None,
) -> object:
    """Read one pickle from a stream and leave the stream just behind it.

    Parameters
    ----------
    stream : binary file
        Seekable, positioned at the start of the pickle.
    budget : Budget
        Memory and opcodes this may cost.
    persistent : callable, optional
        Given a persistent id, returns the value that takes its place.

    Returns
    -------
    object
        A graph of plain values and `Opaque` records. It may contain itself, and may share parts so
        that walking it as a tree would never end: count while walking.

    Raises
    ------
    ConvertError
        If the bytes are no pickle, are cut short, or ask for more than the budget holds.
    """
    machine = _Machine(stream, budget, persistent)
    start = stream.tell()
    try:
        return machine.run()
    except ConvertError:
        raise
    except struct.error:  # only a number that the end of the file cuts short
        raise machine.refusal(b"") from None
    # Taking from an empty stack, text that is not UTF-8, an unhashable key: one damaged pickle.
    except (IndexError, TypeError, ValueError) as error:
        raise ConvertError(
            f"the pickle from byte {start} on is damaged near byte {stream.tell()} ({error}); "
            "expected what torch.save writes; save or download the file again"
        ) from error


class _Machine:
    """The stack machine of one pickle."""

    def __init__(
        self, stream: BinaryIO, budget: Budget, persistent: Callable[[object], object] | None
    ) -> None:
        self.stream = stream
        self.budget = budget
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: list[Any] = []
        start = stream.tell()
        self.end = stream.seek(0, 2)
        stream.seek(start)

    def run(self) -> object:
        read, budget = self.stream.read, self.budget
        while True:
            code = read(1)
            if code == b".":
                break
            budget.opcodes += 1
            if budget.opcodes > MAX_OPCODES:
                raise ConvertError(
                    f"its pickle holds more than {MAX_OPCODES} operations; "
                    "save only the weights, torch.save(model.state_dict(), path)"
                )
            if code in _PUSHES:
                pushed, cost = _PUSHES[code]
                budget.charge(SLOT + cost)
                self.stack.append(pushed(self))
            elif code in _ACTS:
                act, cost = _ACTS[code]
                budget.charge(cost)
                act(self)
            else:
                raise self.refusal(code)
        if len(self.stack) != 1:
            raise ConvertError(f"the pickle ends with {len(self.stack)} values; expected one")
        return self.stack[0]

    def refusal(self, code: bytes) -> ConvertError:
        if not code:
            return ConvertError("the pickle ends too early; the file is cut short, fetch it again")
        what = _REFUSED.get(code, "which no version of pickle has")
        return ConvertError(
            f"opcode {code!r} at byte {self.stream.tell() - 1} of the pickle, {what}; "
            "expected what torch.save writes; save or download the file again"
        )

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.stream.read(layout.size))[0]

    def counted(self, layout: struct.Struct) -> bytes:
        """Bytes behind their own length, which is written in `layout`."""
        return self.take(self.number(layout))

    def take(self, count: int) -> bytes:
        # A large count is checked first: the stream would allocate it all before reading.
        if count < 0 or (count > 256 and count > self.end - self.stream.tell()):
            raise self.refusal(b"")
        self.budget.charge(count)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.refusal(b"")
        return data

    def line(self, limit: int = MAX_NAME) -> bytes:
        text = self.stream.readline(limit)
        if not text.endswith(b"\n"):
            raise ConvertError(f"a line of the pickle does not end within {limit} bytes")
        return text[:-1]

    def text(self, data: bytes) -> str:
        # One wide character makes the whole string four bytes a character.
        self.budget.charge(len(data) if data.isascii() else 4 * len(data))
        return data.decode("utf-8", "surrogatepass")

    def python2_string(self, data: bytes) -> object:
        # Python 2 wrote text and bytes alike; only UTF-8 can be text.
        try:
            return self.text(data)
        except UnicodeDecodeError:
            return data

    def raw_text(self) -> str:
        data = self.line(MAX_LINE)
        self.budget.charge(5 * len(data))
        return data.decode("raw-unicode-escape")

    def long(self, count: int) -> int:
        if count > MAX_INTEGER_BYTES:
            raise ConvertError(f"an integer of {count} bytes; at most {MAX_INTEGER_BYTES} are read")
        return int.from_bytes(self.take(count), "little", signed=True)

    def version(self, version: int) -> None:
        if version > 5:
            raise ConvertError(f"pickle protocol {version}; protocols 0 to 5 are read")

    def pop_mark(self) -> list[Any]:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def pop_pair(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def drop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def remember(self, index: int) -> None:
        memo = self.memo
        if index < 0 or index > len(memo) + MAX_MEMO_GAP:
            raise ConvertError(f"memo entry {index} is far beyond the {len(memo)} entries so far")
        while len(memo) <= index:
            memo.append(_UNSET)
        memo[index] = self.stack[-1]

    def recall(self, index: int) -> object:
        value = self.memo[index] if 0 <= index < len(self.memo) else _UNSET
        if value is _UNSET:
            raise ConvertError(f"the pickle refers to memo entry {index}, which it never wrote")
        return value

    def name(self, module: object, name: object) -> Opaque:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ConvertError("an import path in the pickle is not made of strings")
        if max(len(module), len(name)) > MAX_NAME:
            raise ConvertError(f"an import path in the pickle is longer than {MAX_NAME} characters")
        self.budget.charge(len(module) + len(name))
        return Opaque(module, name)

    def named(self) -> Opaque:
        return self.name(self.line().decode(), self.line().decode())

    def named_on_stack(self) -> Opaque:
        return self.name(*self.pop_pair())

    def called(self, target: object, args: object) -> Opaque:
        if not isinstance(target, Opaque) or type(args) is not tuple:
            raise ConvertError("the pickle calls something that is not a name")
        name = target.name
        if target.args is not None:  # it calls what a call returned
            name += "()"
            self.budget.charge(TEXT + len(name))
            if len(name) > MAX_NAME:
                raise ConvertError("a chain of calls in the pickle is too long")
        return Opaque(target.module, name, args)

    def called_with_keywords(self) -> Opaque:
        keywords, args, target = self.stack.pop(), self.stack.pop(), self.stack.pop()
        return self.called(target, (args, keywords) if keywords else args)

    def called_on_stack(self) -> Opaque:
        target, *args = self.pop_mark()
        return self.called(target, tuple(args))

    def build(self, state: object) -> None:
        target = self.stack[-1]
        if not isinstance(target, Opaque) or target.args is None or target.state is not None:
            raise ConvertError(f"the pickle restores the state of a {type(target).__name__}")
        target.state = state

    def stored(self, identity: object) -> object:
        if self.persistent is None:
            raise ConvertError("a reference to a storage where no tensor belongs")
        return self.persistent(identity)

    def list_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            if target.items is None:
                target.items = []
            target = target.items
        if type(target) is not list:
            raise ConvertError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def dict_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            if target.items is None:
                target.items = {}
            target = target.items
        if type(target) is not dict or len(items) % 2:
            raise ConvertError(f"the pickle sets items of a {type(target).__name__}")
        before = sys.getsizeof(target)
        # Growing keeps the old table beside a new one of up to three times its size.
        self.budget.charge(4 * before + DICT_ENTRY * len(items))
        for index in range(0, len(items), 2):
            self.budget.admit_key(items[index])
            target[items[index]] = items[index + 1]
        self.budget.release(4 * before + DICT_ENTRY * len(items))
        self.budget.charge(sys.getsizeof(target) - before)

    def elements(self, items: list[Any]) -> set[Any]:
        self.budget.charge(2 * DICT_ENTRY * len(items))
        for item in items:
            self.budget.admit_key(item)
        return set(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise ConvertError(f"the pickle adds elements to a {type(target).__name__}")
        target.update(self.elements(items))

    def new_dict(self, items: list[Any]) -> None:
        self.stack.append({})
        self.dict_items(items)


_U1, _U2, _U4, _U8 = (struct.Struct(f"<{code}") for code in "BHIQ")
_I4 = struct.Struct("<i")
_BIG_DOUBLE = struct.Struct(">d")

# What an opcode pushes, and the memory it costs beside its place on the stack.
_PUSHES: dict[bytes, tuple[Callable[[_Machine], object], int]] = {
    b"N": (lambda m: None, 0),
    b"\x88": (lambda m: True, 0),
    b"\x89": (lambda m: False, 0),
    b"K": (lambda m: m.number(_U1), 0),
    b"M": (lambda m: m.number(_U2), BOX),
    b"J": (lambda m: m.number(_I4), BOX),
    b"I": (lambda m: _decimal(m.line()), BOX),
    b"L": (lambda m: int(m.line().removesuffix(b"L")), MAX_INTEGER_BYTES),
    b"\x8a": (lambda m: m.long(m.number(_U1)), BOX),
    b"\x8b": (lambda m: m.long(m.number(_I4)), BOX),
    b"G": (lambda m: m.number(_BIG_DOUBLE), BOX),
    b"F": (lambda m: float(m.line()), BOX),
    b"V": (lambda m: m.raw_text(), TEXT),
    b"X": (lambda m: m.text(m.counted(_U4)), TEXT),
    b"\x8c": (lambda m: m.text(m.counted(_U1)), TEXT),
    b"\x8d": (lambda m: m.text(m.counted(_U8)), TEXT),
    b"U": (lambda m: m.python2_string(m.counted(_U1)), TEXT),
    b"T": (lambda m: m.python2_string(m.counted(_I4)), TEXT),
    b"C": (lambda m: m.counted(_U1), BOX),
    b"B": (lambda m: m.counted(_U4), BOX),
    b"\x8e": (lambda m: m.counted(_U8), BOX),
    b"\x96": (lambda m: m.counted(_U8), BOX),
    b")": (lambda m: (), 0),
    b"]": (lambda m: [], CONTAINER),
    b"}": (lambda m: {}, CONTAINER),
    b"\x8f": (lambda m: set(), 3 * CONTAINER),
    b"l": (lambda m: m.pop_mark(), CONTAINER),
    b"t": (lambda m: tuple(m.pop_mark()), CONTAINER),
    b"\x85": (lambda m: (m.stack.pop(),), CONTAINER),
    b"\x86": (lambda m: tuple(m.pop_pair()), CONTAINER),
    b"\x87": (lambda m: (m.stack.pop(-3), *m.pop_pair()), CONTAINER),
    b"\x91": (lambda m: frozenset(m.elements(m.pop_mark())), 3 * CONTAINER),
    b"2": (lambda m: m.stack[-1], 0),
    b"g": (lambda m: m.recall(int(m.line())), 0),
    b"h": (lambda m: m.recall(m.number(_U1)), 0),
    b"j": (lambda m: m.recall(m.number(_U4)), 0),
    b"c": (lambda m: m.named(), 5 * CONTAINER),
    b"\x93": (lambda m: m.named_on_stack(), 5 * CONTAINER),
    b"R": (lambda m: m.called(*m.pop_pair()), 2 * CONTAINER),
    b"\x81": (lambda m: m.called(*m.pop_pair()), 2 * CONTAINER),
    b"\x92": (lambda m: m.called_with_keywords(), 3 * CONTAINER),
    b"o": (lambda m: m.called_on_stack(), 3 * CONTAINER),
    b"i": (lambda m: m.called(m.named(), tuple(m.pop_mark())), 8 * CONTAINER),
    b"Q": (lambda m: m.stored(m.stack.pop()), 8 * CONTAINER),
}

# What an opcode does to what lies on the stack.
_ACTS: dict[bytes, tuple[Callable[[_Machine], None], int]] = {
    b"\x80": (lambda m: m.version(m.number(_U1)), 0),
    b"\x95": (lambda m: m.number(_U8), 0),  # a hint for buffering, which the stream does itself
    b"(": (lambda m: m.marks.append(len(m.stack)), BOX),
    b"0": (lambda m: m.drop(), 0),
    b"1": (lambda m: m.stack.__delitem__(slice(m.marks.pop(), None)), 0),
    b"p": (lambda m: m.remember(int(m.line())), SLOT),
    b"q": (lambda m: m.remember(m.number(_U1)), SLOT),
    b"r": (lambda m: m.remember(m.number(_U4)), SLOT),
    b"\x94": (lambda m: m.remember(len(m.memo)), SLOT),
    b"a": (lambda m: m.list_items([m.stack.pop()]), 2 * BOX),
    b"e": (lambda m: m.list_items(m.pop_mark()), BOX),
    b"s": (lambda m: m.dict_items(m.pop_pair()), 0),
    b"u": (lambda m: m.dict_items(m.pop_mark()), 0),
    b"d": (lambda m: m.new_dict(m.pop_mark()), CONTAINER),
    b"\x90": (lambda m: m.set_items(m.pop_mark()), 0),
    b"b": (lambda m: m.build(m.stack.pop()), 0),
}

_REFUSED = {
    b"\x82": "a call through the copyreg extension registry",
    b"\x83": "a call through the copyreg extension registry",
    b"\x84": "a call through the copyreg extension registry",
    b"\x97": "a buffer kept outside the file",
    b"\x98": "a buffer kept outside the file",
    b"P": "a storage named in text, as pickle_protocol=0 does; save with the default protocol",
    b"S": "a quoted string of Python 2; save with the default protocol",
}


def _decimal(line: bytes) -> object:
    return line == b"01" if line in (b"00", b"01") else int(line)  # protocol 0 spells bool so
