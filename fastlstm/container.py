"""The container: safetensors, with a strict pass over the raw header before anything is allocated.

The container (https://huggingface.co/docs/safetensors) is eight bytes of header length, little
endian, a JSON header, and the tensors' bytes without gaps. A file is untrusted: it is judged by its
header alone, in time and memory that its size bounds, before a tensor is read.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import save

from fastlstm import spec

__all__ = [
    "CODES",
    "CONVERT",
    "DTYPES",
    "FOREIGN",
    "OURS",
    "Array",
    "Entry",
    "FormatError",
    "Identity",
    "Opened",
    "Path",
    "opened",
    "parse",
    "write",
]

Array = npt.NDArray[Any]
Path = str | os.PathLike[str]
Entry = tuple[str, tuple[int, ...]]  # what a header says of a tensor: dtype code, shape

# What is small in a file can be large in memory: these keep it to twice the file plus 16 MB. A
# tensor costs 1.9 kB of Python's and the library's objects, whatever its size.
MAX_TENSORS, MAX_NAME = 4096, 512
MAX_PAIRS = 1000

# dtype code of a header -> torch's name, which is NumPy's too but for two that are read as integers
DTYPES = {"F32": "float32", "F64": "float64", "I64": "int64", "F16": "float16", "BF16": "bfloat16"}
DTYPES |= {"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32"}
DTYPES |= {"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"}
_RAW = {code: np.dtype(name) for code, name in (DTYPES | {"BF16": "u2", "BOOL": "u1"}).items()}


@dataclass(frozen=True)
class Rules:
    header_bytes: int
    ndim: int
    least_size: int


OURS = Rules(header_bytes=2**20, ndim=3, least_size=1)
FOREIGN = Rules(header_bytes=2**24, ndim=8, least_size=0)
CODES = {"float32": "F32", "float64": "F64", "int64": "I64"}  # all that we write


class FormatError(ValueError):
    """A file is not what was asked for; the message says what it is and the likely fix."""


def write(path: Path, arrays: dict[str, Array], text: str) -> None:
    """Write tensors and one metadata entry, ``fastlstm``; the same input gives the same bytes.

    The file appears whole or not at all: an older one stays until the new one is on the disk. A
    symbolic link is followed, an older file's permissions are kept.

    Raises
    ------
    ValueError
        If what is to be written is too large for a header; nothing is written.
    OSError
        If the file cannot be written; an older one is left as it was.
    """
    # The library orders tensors by dtype and name, but metadata by chance: hence one entry. Its
    # save_file makes files that only their owner can read, and syncs nothing.
    data = save(arrays, {"fastlstm": text})
    _scan(data[: _header_end(data, len(data), OURS)], len(data), OURS)

    target = os.path.realpath(path)
    permissions = None
    if os.path.isfile(target):
        with open(target, "r+b") as older:  # os.replace alone would ignore a write protection
            permissions = stat.S_IMODE(os.fstat(older.fileno()).st_mode)
    elif os.path.exists(target):
        raise IsADirectoryError(errno.EISDIR, "Is a folder or a device, not a file", target)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "There is no such folder to write to", folder)
    temporary = f"{target}.{os.urandom(6).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:
            os.chmod(temporary, permissions)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@dataclass(frozen=True)
class Identity:
    """Which file one is, and since when: equal for as long as nobody writes to it or replaces it.

    The time of change is set by the system alone: copying tools restore that of modification, and
    a deleted file's number is given to another.
    """

    path: str = field(compare=False)
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> Identity:
        return cls(
            path,
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def lasts(self) -> bool:
        """Whether the file is still there and still the same."""
        try:
            return Identity.of(self.path, os.stat(self.path)) == self
        except OSError:
            return False

    def require(self, found: Identity) -> None:
        if found != self:
            differing = [
                f"{name} {value}, found {vars(found)[name]}"
                for name, value in vars(self).items()
                if value != vars(found)[name] and name != "path"
            ]
            raise ValueError(
                f"the file changed after the pickled model was loaded from it: expected "
                f"{'; '.join(differing)}; {_WHOLE}"
            )


_WHOLE = "keep the file as it was, or pickle a model that was loaded without mmap=True"
_CHANGED = "the file changed while it was read; read it again"


@dataclass(frozen=True, eq=False)
class Opened:
    """An open file whose header is sound: the tensors that it names, and its metadata."""

    file: BinaryIO
    identity: Identity
    header: bytes
    table: dict[str, Entry]
    spans: dict[str, tuple[int, int]]  # of each tensor, from the header's end
    pairs: bytes

    def load(self) -> dict[str, Array]:
        """Arrays of their own memory."""
        # Read, not mapped: a file that is cut short while mapped kills the process.
        self.file.seek(0)
        parts = _deserialize(self.file.read())
        if {n: (part["dtype"], tuple(part["shape"])) for n, part in parts} != self.table:
            raise ValueError(_CHANGED)
        return _arrays(parts)

    def map(self) -> dict[str, Array]:
        """Read-only arrays whose memory is the file's, wherever their dtype allows it."""
        number = self.file.fileno()
        try:
            mapping = mmap.mmap(number, self.identity.size, access=mmap.ACCESS_READ)
        except ValueError as error:  # it has become shorter
            raise ValueError(_CHANGED) from error
        except OSError as error:
            text = f"{error.strerror}: the file cannot be mapped; load it without mmap=True"
            raise OSError(error.errno, text, self.identity.path) from error
        # The offsets are those of the header that was judged: it must be the one that is mapped.
        if (
            Identity.of(self.identity.path, os.fstat(number)) != self.identity
            or mapping[: len(self.header)] != self.header
        ):
            raise ValueError(_CHANGED)
        data = memoryview(mapping)[len(self.header) :]
        return _arrays(
            [
                (name, {"dtype": code, "shape": shape, "data": data[slice(*self.spans[name])]})
                for name, (code, shape) in self.table.items()
            ]
        )


@contextlib.contextmanager
def opened(path: Path, rules: Rules, expected: Identity | None = None) -> Iterator[Opened]:
    """A file whose header keeps the rules, and which is the expected one, if that is given.

    Whatever proves wrong with the content, here or in the ``with`` block, becomes a FormatError.
    """
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ValueError("this is a folder or a device; expected a regular file")
        with open(name, "rb") as file:
            identity = Identity.of(os.path.realpath(name), os.fstat(file.fileno()))
            if expected is not None:
                expected.require(identity)
            end = _header_end(file.read(64), identity.size, rules)
            file.seek(0)
            header = file.read(end)
            yield Opened(file, identity, header, *_scan(header, identity.size, rules))
    except (ValueError, safetensors.SafetensorError) as error:
        raise FormatError(f"{name}: {error}") from error
    except MemoryError as error:
        raise FormatError(f"{name}: the file does not fit in memory") from error
    except OSError as error:
        if expected is None:
            raise
        text = f"{error.strerror}: a pickled model refers to this file; {_WHOLE}"
        raise OSError(error.errno, text, name) from error


# Each tensor's name, and its dtype code, shape and bytes: a copy that no one else holds, or a part
# of a mapping.
_Parts = list[tuple[str, dict[str, Any]]]
_deserialize: Callable[[bytes], _Parts] = safetensors.deserialize


def _arrays(parts: _Parts) -> dict[str, Array]:
    arrays = {}
    for index, (name, part) in enumerate(parts):
        flat: Array = np.frombuffer(part["data"], _RAW[part["dtype"]])
        if part["dtype"] == "BF16":  # the upper half of a float32
            flat = flat.astype(np.uint32)
            flat <<= 16
            flat = flat.view(np.float32)
        elif part["dtype"] == "BOOL":  # a byte may be 2 in a file, but never in a bool of NumPy's
            flat = flat.astype(np.bool_)
        if not flat.flags.aligned:  # nothing in a file obliges its numbers to lie at multiples
            flat = flat.copy()
        arrays[name] = flat.reshape(part["shape"])
        parts[index] = ("", {})  # what was widened is freed before the next is
    return arrays


CONVERT = "convert it first: fastlstm.convert(source, path)"
_MISTAKES = (
    (rb"PK\x03\x04", f"a zip archive, most likely a PyTorch checkpoint; {CONVERT}"),
    (rb"\x80[\x02-\x05]", f"a pickle, most likely an old PyTorch checkpoint; {CONVERT}"),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file, most likely of Keras; {CONVERT}"),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", f"most likely an ONNX model; {CONVERT}"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page, not the file; download it again"),
)


def _header_end(head: bytes, size: int, rules: Rules) -> int:
    """Where the header ends, from the first bytes of a file of ``size`` bytes."""
    length, most = int.from_bytes(head[:8], "little"), min(rules.header_bytes, size - 8)
    if 2 <= length <= most and head[8:9] == b"{":
        return 8 + length
    for pattern, what in _MISTAKES:
        if re.match(pattern, head):
            raise ValueError(f"this is {what}")
    if size < 10:
        raise ValueError(f"the file has {size} bytes, too few for safetensors; copy it again")
    raise ValueError(
        f"the header is {length} bytes long and starts with {head[8:9]!r}; expected at most {most} "
        f"and b'{{': this is not safetensors, or it was cut short"
    )


# JSON of exactly this form, so nothing can nest, every number is an integer, and a hostile header
# builds no objects; a space stands for any white space.
_NEXT = r" (?:,|(?P<last>\}) \Z)"
_OPEN = r"\{(?: (?P<last>\}) \Z)?"
_TENSOR = (
    r' (?P<name>TEXT) : \{ (?:(?:"dtype" : "(?P<dtype>[A-Z0-9_]{1,32})"'
    r'|"shape" : \[ (?P<shape>(?:INT(?: , INT){0,31})?) \]'
    r'|"data_offsets" : \[ (?P<begin>INT) , (?P<end>INT) \])'
    r'(?: , (?=")| (?=\}))){3}\}' + _NEXT
)
_METADATA = (
    rf' "__metadata__" : (?P<pairs>\{{ (?:TEXT : TEXT(?: , (?=")| (?=\}}))){{0,{MAX_PAIRS}}}\}})'
    + _NEXT
)


@functools.cache
def _grammar(pattern: str) -> re.Pattern[bytes]:
    # Whatever repeats without bound is possessive: matching takes linear time and no memory.
    text = r'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"'
    pattern = pattern.replace(" ", r"[ \t\r\n]*+").replace("INT", r"(?:0|[1-9][0-9]{0,19})")
    return re.compile(pattern.replace("TEXT", text).encode())


_Header = tuple[dict[str, Entry], dict[str, tuple[int, int]], bytes]


def _scan(header: bytes, size: int, rules: Rules) -> _Header:
    """The tensors, their spans and the metadata of a header, which must account for ``size``."""
    table: dict[str, Entry] = {}
    metadata = None
    spans: dict[str, tuple[int, int]] = {}
    position, match = 8, _grammar(_OPEN).match(header, 8)
    while match and not match["last"]:
        position = match.end()
        if match := _grammar(_TENSOR).match(header, position):
            start, stop = match.span("name")
            if len(table) == MAX_TENSORS or stop - start > MAX_NAME:
                raise ValueError(
                    f"at tensor {header[start : start + 40]!r}: expected at most {MAX_TENSORS} "
                    f"tensors, with names of at most {MAX_NAME} bytes"
                )
            name = parse(match["name"])
            if name in table or name == "__metadata__":
                raise ValueError(f"the header holds {name!r:.80} twice")
            table[name], spans[name] = _tensor(f"tensor {name!r:.80}", match, rules)
        elif match := _grammar(_METADATA).match(header, position):
            if metadata is not None:
                raise ValueError("the header holds '__metadata__' twice")
            metadata = match["pairs"] if rules is OURS else b"{}"  # nobody reads a foreign one's
    if not match:
        near = header[position : position + 40]
        raise ValueError(
            f"the header is malformed at byte {position}, {near!r}: the file is damaged, copy it "
            f"again, or was not written by safetensors"
        )
    filled = 0
    for begin, end in sorted(spans.values()):
        if begin != filled:
            raise ValueError(f"the tensors overlap or leave a gap at byte {filled} of the data")
        filled = end
    if len(header) + filled != size:
        raise ValueError(
            f"the header describes {len(header) + filled} bytes, the file has {size}: "
            f"it was cut short or something was appended; copy it again"
        )
    return table, spans, metadata or b"{}"


def _tensor(what: str, match: re.Match[bytes], rules: Rules) -> tuple[Entry, tuple[int, int]]:
    """(dtype code, shape) and (begin, end) of one tensor of a header."""
    if None in (match["dtype"], match["shape"], match["end"]):
        raise ValueError(f"{what} lacks its dtype, shape or data_offsets")
    code = match["dtype"].decode()
    if code not in DTYPES:
        raise ValueError(f"{what} has dtype {code}; expected one of {', '.join(DTYPES)}")
    shape = tuple(int(number) for number in match["shape"].split(b",") if number)
    if len(shape) > rules.ndim or not all(rules.least_size <= n <= spec.MAX_SIZE for n in shape):
        raise ValueError(
            f"{what} has shape {shape}; expected at most {rules.ndim} dimensions, "
            f"each from {rules.least_size} to {spec.MAX_SIZE}"
        )
    begin, end = int(match["begin"]), int(match["end"])
    if end - begin != math.prod(shape, start=_RAW[code].itemsize):
        raise ValueError(f"{what} of dtype {code} and shape {shape} spans bytes {begin} to {end}")
    return (code, shape), (begin, end)


def parse(text: str | bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{text[:40]!r} is not JSON: {error}; the file is damaged") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key appears twice in the metadata; the file is damaged")
    return mapping
