"""Read a zip archive: its directory first, every offset checked and every entry paid for.

The layout is that of the zip application note of PKWARE. The archive may be hostile: every length
is checked against the file, and charged to a budget, before memory is allocated for it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.storages import RETRY, Extent, check_crc
from fastlstm.sources.pytorch.unpickle import Budget

__all__ = ["Archive", "Source", "opened"]

Source = str | os.PathLike[str] | BinaryIO


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[BinaryIO, int]]:
    """A file, and its size."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, str | os.PathLike):
            file: BinaryIO = stack.enter_context(open(source, "rb"))
        else:
            file = source
        size = file.seek(0, 2)
        file.seek(0)
        yield file, size


class _Member(NamedTuple):
    """An entry of a zip's central directory."""

    flags: int
    method: int
    crc: int
    packed: int
    nbytes: int
    header: int


class Archive:
    """The directory of a zip file, read with every offset checked and every entry paid for."""

    def __init__(self, file: BinaryIO, size: int, budget: Budget) -> None:
        self.file, self.size, self.budget = file, size, budget
        self.members: dict[str, _Member] = {}
        tail_start = max(0, size - 22 - 0xFFFF)
        tail = self.bytes_at(tail_start, size - tail_start)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + 22 > len(tail):
            raise ConvertError(f"a zip archive without its directory at the end; {RETRY}")
        count, nbytes, offset = struct.unpack_from("<HII", tail, at + 10)
        if count == 0xFFFF or 0xFFFFFFFF in (nbytes, offset):
            count, nbytes, offset = self.zip64(tail, at)
        directory = self.bytes_at(offset, nbytes)
        at = 0
        for _ in range(count):
            at = self.entry(directory, at)
        if at != len(directory):
            raise ConvertError(f"a damaged directory of the zip archive; {RETRY}")
        budget.release(len(tail) + len(directory))

    def bytes_at(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes at `offset`, which the caller must release when it drops them."""
        if offset < 0 or offset + nbytes > self.size:
            raise ConvertError(
                f"bytes {offset} to {offset + nbytes} of a file of {self.size}; {RETRY}"
            )
        self.budget.charge(nbytes)
        self.file.seek(offset)
        data = self.file.read(nbytes)
        if len(data) != nbytes:
            raise ConvertError("the file became shorter while it was read; wait for its writer")
        return data

    def zip64(self, tail: bytes, at: int) -> tuple[int, int, int]:
        if at < 20 or tail[at - 20 : at - 16] != b"PK\x06\x07":
            raise ConvertError(f"a large zip archive without its zip64 record; {RETRY}")
        (offset,) = struct.unpack_from("<Q", tail, at - 12)
        record = self.bytes_at(offset, 56)
        if record[:4] != b"PK\x06\x06":
            raise ConvertError(f"a large zip archive without its zip64 record; {RETRY}")
        count, nbytes, offset = struct.unpack_from("<QQQ", record, 32)
        return count, nbytes, offset

    def entry(self, directory: bytes, at: int) -> int:
        """Take in the entry at `at` and return where the next one begins."""
        if directory[at : at + 4] != b"PK\x01\x02" or at + 46 > len(directory):
            raise ConvertError(f"a damaged directory of the zip archive; {RETRY}")
        flags, method, crc, packed, nbytes, *lengths, header = struct.unpack_from(
            "<HH4xIIIHHH8xI", directory, at + 8
        )
        name_length, extra_length, comment_length = lengths
        name_end: int = at + 46 + name_length
        name = directory[at + 46 : name_end].decode("utf-8", "replace")
        extra = directory[name_end : name_end + extra_length]
        if 0xFFFFFFFF in (packed, nbytes, header):
            nbytes, packed, header = _zip64_sizes(extra, nbytes, packed, header)
        if name in self.members:
            raise ConvertError(f"two members of the zip archive are named {name[:80]!r}; {RETRY}")
        self.budget.charge(500 + 4 * name_length)
        self.members[name] = _Member(flags, method, crc, packed, nbytes, header)
        return name_end + int(extra_length + comment_length)

    def member(self, name: str) -> tuple[_Member, int]:
        """A member, and where its bytes begin."""
        if name not in self.members:
            raise ConvertError(f"the zip archive has no member {name[:80]!r}; {RETRY}")
        member = self.members[name]
        local = self.bytes_at(member.header, 30)
        if local[:4] != b"PK\x03\x04":
            raise ConvertError(f"member {name[:80]!r} of the zip archive is not there; {RETRY}")
        offset = member.header + 30 + sum(struct.unpack_from("<HH", local, 26))
        if offset + member.packed > self.size:
            raise ConvertError(f"member {name[:80]!r} runs beyond the end of the file; {RETRY}")
        self.budget.release(30)
        return member, offset

    def extent(self, name: str) -> Extent:
        """Where the stored bytes of a member lie."""
        member, offset = self.member(name)
        if member.method != 0 or member.flags & 1 or member.packed != member.nbytes:
            raise ConvertError(
                f"member {name[:80]!r} of the zip archive is compressed or encrypted; torch.save "
                "stores them plainly; unpack the archive and zip it again without compression"
            )
        # torch.serialization.set_crc32_options(False) writes zero for every member.
        return Extent(offset, member.nbytes, member.crc or None)

    def inflated(self, name: str) -> bytes:
        """The bytes of a member, stored or deflated, checked against its CRC; they stay charged."""
        member, offset = self.member(name)
        if member.method == 0:
            return self.read(name)
        if member.method != 8 or member.flags & 1:
            raise ConvertError(
                f"member {name[:80]!r} of the zip archive is encrypted or packed by method "
                f"{member.method}; expected stored or deflated members, as NumPy writes them"
            )
        packed = self.bytes_at(offset, member.packed)
        self.budget.charge(2 * member.nbytes)  # the pieces that zlib makes, and the whole
        try:
            # One byte too many is enough to see that the directory lied.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.nbytes + 1)
        except zlib.error as error:
            raise ConvertError(f"member {name[:80]!r} is damaged ({error}); {RETRY}") from None
        if len(data) != member.nbytes:
            raise ConvertError(
                f"member {name[:80]!r} does not unpack to the {member.nbytes} bytes that the "
                f"directory of the zip archive tells; {RETRY}"
            )
        check_crc(data, Extent(offset, member.nbytes, member.crc), name)
        self.budget.release(member.packed + member.nbytes)
        return data

    def read(self, name: str) -> bytes:
        """The bytes of a small member, checked against its CRC."""
        extent = self.extent(name)
        data = self.bytes_at(extent.offset, extent.nbytes)
        check_crc(data, extent, name)
        return data


def _zip64_sizes(extra: bytes, nbytes: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers of an entry, those which did not fit taken from its zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = extra[at + 4 : at + 4 + length]
            wide = struct.iter_unpack("<Q", numbers[: len(numbers) & ~7])
            nbytes, packed, header = (
                next(wide, (number,))[0] if number == 0xFFFFFFFF else number
                for number in (nbytes, packed, header)
            )
            break
        at += 4 + length
    return nbytes, packed, header
