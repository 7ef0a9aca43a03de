"""The container: safetensors, with a strict pass over the raw header before anything is allocated.

The container (https://huggingface.co/docs/safetensors) is eight bytes of header length, little
endian, a JSON header, and the tensors' bytes without gaps. A file is untrusted: it is judged by its
header alone, in time and memory that its size bounds, before a tensor is read.

A file of ours has one metadata entry, ``fastlstm``, first in the header: a document (JSON) whose
first field is the SHA-256, in hexadecimal, of the whole file with these 64 digits as zeros. Its
data begins at a multiple of 64 bytes, and every tensor at one of its dtype's size.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import stat
import sys
from codecs import unicode_escape_decode
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fastlstm.document import dump, judge, parse
from fastlstm.durable import CHUNK_BYTES, Path, replacing, write_all
from fastlstm.errors import FormatError
from fastlstm.identity import KEEP, Identity

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = [
    "CODES",
    "CONVERT",
    "DTYPES",
    "REWRITTEN",
    "Array",
    "Opened",
    "Path",
    "Tensor",
    "is_ours",
    "opened",
    "write",
]

Array = npt.NDArray[Any]

# What is small in a file can be large in memory: these keep it to twice the file plus 16 MB. A
# tensor costs 0.8 kB of Python's objects, whatever its size.
MAX_HEADER_BYTES = 2**24
MAX_TENSORS, MAX_NAME, MAX_NDIM, MAX_SIZE = 2**14, 512, 8, 2**31 - 1
MAX_PAIRS = 1000
NAMES_BYTES = 2**20  # what all names may take in memory beyond the size of the header
DOCUMENT_BYTES = 12 * 2**20  # what a document may take in memory beyond the tensors' bytes

ALIGNMENT = 64

# dtype code of a header -> torch's name, which is NumPy's too but for two that are read as integers
DTYPES = {"F32": "float32", "F64": "float64", "I64": "int64", "F16": "float16", "BF16": "bfloat16"}
DTYPES |= {"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32"}
DTYPES |= {"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"}
_RAW = {code: np.dtype(name) for code, name in (DTYPES | {"BF16": "u2", "BOOL": "u1"}).items()}
_CODE = {code: code for code in DTYPES}  # one string for each, however many tensors have it

CODES = {"float32": "F32", "float64": "F64", "int64": "I64"}  # all that we write, and
CODES |= {"int8": "I8", "float16": "F16", "uint16": "BF16"}  # matrices in fewer bytes


class Tensor(NamedTuple):
    """What a header says of a tensor: where its bytes begin is counted from the header's end."""

    code: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape, start=_RAW[self.code].itemsize)


_ENTRY = b'{"__metadata__":{"fastlstm":"'
_SEAL = _ENTRY + rb"{\"sha256\":\""
_MENTION = re.compile(rb'"fastlstm"[ \t\r\n]*+:')
_BLANK = "0" * 64
_DIGITS = slice(8 + len(_SEAL), 8 + len(_SEAL) + len(_BLANK))
_TEXT = re.compile(rb'[^"\\\x00-\x1f\x7f-\xff]*+(?:\\["\\][^"\\\x00-\x1f\x7f-\xff]*+)*+"')


def write(path: Path, arrays: dict[str, Array], document: dict[str, Any]) -> None:
    """Write tensors and a document; the same input gives the same bytes.

    The file appears whole or not at all, on the disk, as :func:`fastlstm.durable.replacing` says.

    Parameters
    ----------
    path : str or path
        Where to.
    arrays : dict of str to ndarray
        Of the dtypes of `CODES`, native and C-contiguous. They are written from where they lie.
    document : dict of str to JSON values
        Without ``sha256``, which becomes its first field.

    Raises
    ------
    ValueError
        If what is to be written is too large for a header; nothing is written.
    OSError
        If the file cannot be written; an older one is left as it was.
    """
    import hashlib  # loads OpenSSL, several milliseconds: not a part of importing the package

    # Large items first, so that each tensor lies at a multiple of its own.
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    text = f'{{"sha256":"{_BLANK}",{dump(document)[1:]}'
    header = _compose({name: arrays[name] for name in names}, text)
    size = len(header) + sum(array.nbytes for array in arrays.values())
    _header_end(header, size)
    _scan(header, size, least_size=1)
    judge(text, _memory(size, len(header)))

    digest = hashlib.sha256(header)
    with replacing(path) as file:
        write_all(file, memoryview(header))
        for name in names:
            for chunk in _chunks(_bytes(arrays[name])):
                digest.update(chunk)
                write_all(file, chunk)
        file.seek(_DIGITS.start)
        write_all(file, memoryview(digest.hexdigest().encode()))


def _compose(arrays: dict[str, Array], text: str) -> bytes:
    """The header of these tensors, in this order, and of a document, padded with spaces."""
    parts: list[str] = [f"{_ENTRY.decode()[:-1]}{dump(text)}}}"]
    begin = 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        entry = {"dtype": CODES[array.dtype.name], "shape": array.shape}
        entry["data_offsets"] = (begin, end)
        parts.append(f"{dump(name)}:{json.dumps(entry, separators=(',', ':'))}")
        begin = end
    header = ",".join(parts).encode() + b"}"
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _chunks(data: memoryview) -> Iterator[memoryview]:
    for begin in range(0, len(data), CHUNK_BYTES):
        yield data[begin : begin + CHUNK_BYTES]


def _memory(size: int, header_bytes: int) -> int:
    """What the document of a file may take: its tensors are read after it, and once."""
    return DOCUMENT_BYTES + size - header_bytes


_CHANGED = "the file changed while it was read; read it again"
_DAMAGED = (
    "the file is not the one that was written: its SHA-256 is {}, and it says {}; it is damaged, "
    "or another program has changed it: copy or convert it again"
)
REWRITTEN = "it is damaged, or another program has written it anew: copy or convert it again"


@dataclass(frozen=True, eq=False)
class Opened:
    """An open file whose header is sound: the tensors that it names, and its document.

    `text` is the document of a file of ours, still to be judged, and None for any other.
    """

    file: BinaryIO
    identity: Identity
    header: bytes
    table: dict[str, Tensor]
    text: str | None

    @property
    def digits(self) -> str | None:
        """The digest that stands at its place; None if another text stands there."""
        start, stop = self.header.startswith(_SEAL, 8), rb"\""
        sealed = start and self.header.startswith(stop, _DIGITS.stop)
        return self.header[_DIGITS].decode("latin-1") if sealed else None

    @property
    def document_bytes(self) -> int:
        """What the document's objects may take in memory."""
        return _memory(self.identity.size, len(self.header))

    def load(self, *, check: bool, widen: bool = False) -> dict[str, Array]:
        """Arrays of their own memory; if `check`, those of the digest, which must be there.

        With `widen` bfloat16 becomes float32, in place, so that it takes twice its size and no
        more; else its bits stay what they are, as uint16.
        """
        # Read, not mapped: a file that is cut short while mapped kills the process.
        digest = self._digest() if check else None
        arrays: dict[str, Array] = dict.fromkeys(self.table, np.empty(0))  # in the header's order
        self.file.seek(len(self.header))
        for name in self._in_order():
            code, shape, _ = self.table[name]
            raw = _RAW[code]
            widened = widen and code == "BF16"
            array = np.empty(shape, np.float32 if widened else raw)
            last = _bytes(array)[-self.table[name].nbytes :] if array.size else memoryview(b"")
            for chunk in _chunks(last):
                self._fill(chunk)
                if digest:
                    digest.update(chunk)
            if widened:
                _widen(array.reshape(-1))
            elif code == "BOOL":  # a byte may be 2 in a file, but never in a bool of NumPy's
                array = np.not_equal(array, 0, out=array.view(np.bool_))
            arrays[name] = array
        if not self.identity.same_content(os.fstat(self.file.fileno())):
            raise ValueError(_CHANGED)
        self._require(digest)
        return arrays

    def map(self, *, check: bool) -> dict[str, Array]:
        """Read-only arrays whose memory is the file's, where their dtype's alignment allows it.

        With `check` all of the file is read once. Nothing is widened: bfloat16 is uint16.
        """
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
            not self.identity.same_content(os.fstat(number))
            or mapping[: len(self.header)] != self.header
        ):
            raise ValueError(_CHANGED)
        data = memoryview(mapping)[len(self.header) :]
        if check:
            digest = self._digest()
            for chunk in _chunks(data):
                digest.update(chunk)
            self._require(digest)
        arrays = {}
        for name, tensor in self.table.items():
            part = data[tensor.begin : tensor.begin + tensor.nbytes]
            flat: Array = np.frombuffer(part, _RAW[tensor.code])
            if not flat.flags.aligned:  # nothing in safetensors obliges them to lie at multiples
                flat = flat.copy()
            arrays[name] = flat.reshape(tensor.shape)
        return arrays

    def _in_order(self) -> list[str]:
        return sorted(self.table, key=lambda name: self.table[name].begin)

    def _fill(self, part: memoryview) -> None:
        done = 0
        while done < len(part):
            # Unbuffered, so that one call may read only a part, and nothing at the file's end.
            if not (count := self.file.readinto(part[done:])):  # type: ignore[attr-defined]
                raise ValueError(_CHANGED)
            done += count

    def _digest(self) -> _Hash:
        """Of the header, with its own digits as zeros."""
        import hashlib  # loads OpenSSL, several milliseconds: not a part of importing the package

        header = memoryview(self.header)
        digest = hashlib.sha256(header[: _DIGITS.start])
        digest.update(_BLANK.encode())
        digest.update(header[_DIGITS.stop :])
        return digest

    def _require(self, digest: _Hash | None) -> None:
        if digest and digest.hexdigest() != self.digits:
            raise ValueError(_DAMAGED.format(digest.hexdigest(), self.digits))


def _widen(flat: Array) -> None:
    """Make float32 of the bfloat16 numbers that the second half of an array's memory holds."""
    halves, whole = flat.view(np.uint16)[flat.size :], flat.view(np.uint32)
    for begin in range(0, flat.size, 2**20):
        # Whole numbers are written no further than half ones have been read.
        part = halves[begin : begin + 2**20].astype(np.uint32)
        part <<= 16
        whole[begin : begin + 2**20] = part


@contextlib.contextmanager
def opened(path: Path, *, ours: bool = True, expected: Identity | None = None) -> Iterator[Opened]:
    """A file whose header keeps the rules, and which is the expected one, if that is given.

    Whatever proves wrong with the content, here or in the ``with`` block, becomes a FormatError.
    """
    name = os.fsdecode(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ValueError("this is a folder or a device; expected a regular file")
        with open(name, "rb", buffering=0) as file:
            identity = Identity.of(os.path.realpath(name), os.fstat(file.fileno()))
            if expected is not None:
                expected.require(identity)
            end = _header_end(os.pread(file.fileno(), 64, 0), identity.size)
            header = os.pread(file.fileno(), end, 0)
            if len(header) < end:
                raise ValueError(_CHANGED)
            table, has_metadata = _scan(header, identity.size, least_size=int(ours))
            text = _entry(header) if ours and has_metadata else None
            yield Opened(file, identity, header, table, text)
    except ValueError as error:
        raise FormatError(f"{name}: {error}") from error
    except MemoryError as error:
        raise FormatError(f"{name}: the file does not fit in memory") from error
    except OSError as error:
        if expected is None:
            raise
        text = f"{error.strerror}: a pickled model refers to this file; {KEEP}"
        raise OSError(error.errno, text, name) from error


def is_ours(head: bytes) -> bool:
    """Whether a file whose first bytes these are, 64 or more, has a document of ours."""
    return head.startswith(_ENTRY, 8)


def _entry(header: bytes) -> str | None:
    """The document's text, if the metadata holds one of ours, which must then come first."""
    if not is_ours(header):
        if _MENTION.search(header):
            raise ValueError(f"the 'fastlstm' entry is not at its place in the header; {REWRITTEN}")
        return None
    begin = 8 + len(_ENTRY)
    match = _TEXT.match(header, begin)
    if not match or header[match.end() : match.end() + 1] != b"}":
        near = header[match.end() :][:40] if match else header[begin:][:40]
        raise ValueError(
            f"the metadata holds more than ASCII in its 'fastlstm' entry, or more entries, near "
            f"{near!r}; {REWRITTEN}"
        )
    # Of the escapes only those of a quote and of a backslash have passed.
    return unicode_escape_decode(memoryview(header)[begin : match.end() - 1])[0]


CONVERT = "convert it first: fastlstm.convert(source, path)"
_MISTAKES = (
    (rb"PK\x03\x04", f"a zip archive, most likely a PyTorch checkpoint; {CONVERT}"),
    (rb"\x80[\x02-\x05]", f"a pickle, most likely an old PyTorch checkpoint; {CONVERT}"),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file, most likely of Keras; {CONVERT}"),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", f"most likely an ONNX model; {CONVERT}"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page, not the file; download it again"),
)


def _header_end(head: bytes, size: int) -> int:
    """Where the header ends, from the first bytes of a file of ``size`` bytes."""
    length, most = int.from_bytes(head[:8], "little"), min(MAX_HEADER_BYTES, size - 8)
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
    rf' "__metadata__" : (?:\{{ (?:TEXT : TEXT(?: , (?=")| (?=\}}))){{0,{MAX_PAIRS}}}\}})' + _NEXT
)


@cache
def _grammar(pattern: str) -> re.Pattern[bytes]:
    # Whatever repeats without bound is possessive: matching takes linear time and no memory.
    text = r'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"'
    pattern = pattern.replace(" ", r"[ \t\r\n]*+").replace("INT", r"(?:0|[1-9][0-9]{0,19})")
    return re.compile(pattern.replace("TEXT", text).encode())


def _scan(header: bytes, size: int, *, least_size: int) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a header, which must account for ``size``, and whether it has metadata."""
    table: dict[str, Tensor] = {}
    has_metadata = False
    spans: list[tuple[int, int]] = []
    names_bytes = 0
    position, match = 8, _grammar(_OPEN).match(header, 8)
    while match and not match["last"]:
        position = match.end()
        if match := _grammar(_TENSOR).match(header, position):
            start, stop = match.span("name")
            if len(table) == MAX_TENSORS or stop - start - 2 > MAX_NAME:
                raise ValueError(
                    f"at tensor {header[start : start + 40]!r}: expected at most {MAX_TENSORS} "
                    f"tensors, with names of at most {MAX_NAME} bytes"
                )
            name = parse(match["name"])
            names_bytes += sys.getsizeof(name)
            if names_bytes > len(header) + NAMES_BYTES:
                raise ValueError("the names of the tensors take too much memory; rename them")
            if name in table or name == "__metadata__":
                raise ValueError(f"the header holds {name!r:.80} twice")
            if not _encodes(name):
                raise ValueError(f"tensor {name!r:.80} is called by half of a character")
            table[name], span = _tensor(f"tensor {name!r:.80}", match, least_size)
            spans.append(span)
        elif match := _grammar(_METADATA).match(header, position):
            if has_metadata:
                raise ValueError("the header holds '__metadata__' twice")
            has_metadata = True
    if not match:
        near = header[position : position + 40]
        raise ValueError(
            f"the header is malformed at byte {position}, {near!r}: the file is damaged, copy it "
            f"again, or was not written by safetensors"
        )
    filled = 0
    for begin, end in sorted(spans):
        if begin != filled:
            raise ValueError(f"the tensors overlap or leave a gap at byte {filled} of the data")
        filled = end
    if len(header) + filled != size:
        raise ValueError(
            f"the header describes {len(header) + filled} bytes, the file has {size}: "
            f"it was cut short or something was appended; copy it again"
        )
    return table, has_metadata


def _encodes(name: str) -> bool:
    # JSON can spell half of a surrogate pair; no encoding can, so it could not even be printed.
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(what: str, match: re.Match[bytes], least_size: int) -> tuple[Tensor, tuple[int, int]]:
    """One tensor of a header, and where its bytes begin and end."""
    if None in (match["dtype"], match["shape"], match["end"]):
        raise ValueError(f"{what} lacks its dtype, shape or data_offsets")
    code = match["dtype"].decode()
    if code not in DTYPES:
        raise ValueError(f"{what} has dtype {code}; expected one of {', '.join(DTYPES)}")
    shape = tuple(int(number) for number in match["shape"].split(b",") if number)
    if len(shape) > MAX_NDIM or not all(least_size <= n <= MAX_SIZE for n in shape):
        raise ValueError(
            f"{what} has shape {shape}; expected at most {MAX_NDIM} dimensions, "
            f"each from {least_size} to {MAX_SIZE}"
        )
    begin, end = int(match["begin"]), int(match["end"])
    if end - begin != math.prod(shape, start=_RAW[code].itemsize):
        raise ValueError(f"{what} of dtype {code} and shape {shape} spans bytes {begin} to {end}")
    return Tensor(_CODE[code], shape, begin), (begin, end)
