"""Read HDF5 with h5py, and nothing outside the file that is open.

The file may be hostile. Links of any kind but plain ones, virtual datasets, raw data in other files
and filters that HDF5 would have to load are refused, and what a dataset says it holds is checked
before memory is allocated for it. HDF5's own structures are parsed by the HDF5 library.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError

__all__ = ["DAMAGED", "SIGNATURE", "Datasets", "child", "opened", "text"]

Array = npt.NDArray[Any]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
DAMAGED = "the file is cut short or damaged; download or save it again"

# Links below a group, groups within each other, chunks of a dataset.
MAX_LINKS, MAX_DEPTH, MAX_CHUNKS = 10_000, 16, 2**14
# Axes of a dataset: those of the kernel of a convolution over three axes.
MAX_AXES = 5
# Bytes that may be read once more, of layers that are called more than once: it takes time alone.
AGAIN = 2**27
# What a chunk may have beyond the size of its dataset.
SPARE_BYTES = 2**20
# Strings in all heaps; bytes looked at in one go.
MAX_STRINGS, BLOCK = 2**17, 2**16

# HDF5's numbers of its filters, and of a class of datatypes
DEFLATE, SHUFFLE = 1, 2
VARIABLE_LENGTH = 9


@contextlib.contextmanager
def opened(file: BinaryIO, strings: Mapping[str, int]) -> Iterator[Any]:
    """The root group of an HDF5 file.

    Parameters
    ----------
    file : binary file
    strings : mapping of str to int
        Names of the attributes that are to be read with :func:`text`, and the bytes each may have.

    Raises
    ------
    ConvertError
        If it cannot be opened, or the library would not get over what is in it.
    """
    import h5py

    with _errors("the HDF5 file"):
        nbytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(16)
        if head[13:15] != b"\x08\x08" if head[8:9] < b"\x02" else head[9:11] != b"\x08\x08":
            raise ConvertError(f"its addresses and lengths do not have 8 bytes; {DAMAGED}")
        _check_heaps(file, nbytes)
        for name, most in strings.items():
            _check_lengths(file, nbytes, name, most)
        file.seek(0)
        root = h5py.File(file, "r")
    with root:
        yield root


def _find(file: BinaryIO, nbytes: int, what: bytes) -> Iterator[int]:
    """Where some bytes are in a file, of which little is held at a time."""
    for start in range(0, nbytes, BLOCK):
        file.seek(start)
        block = file.read(BLOCK + len(what) - 1)
        for found in re.finditer(re.escape(what), block):
            yield start + found.start()


def _read_at(file: BinaryIO, at: int, form: str) -> tuple[int, ...]:
    file.seek(at)
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise ConvertError(f"it ends within what is at byte {at}; {DAMAGED}")
    return struct.unpack(form, data)


def _check_heaps(file: BinaryIO, nbytes: int) -> None:
    """Refuse heaps of strings on which H5HG__cache_heap_deserialize (of 2.0) never returns.

    It goes from object to object by their sizes, which add up to nothing if one is 0, or so large
    that 64 bits overflow. The layout is that of the HDF5 File Format Specification, III.E.
    """
    objects = 0
    for start in _find(file, nbytes, b"GCOL\x01\0\0\0"):
        (size,) = _read_at(file, start + 8, "<Q")
        at, end = start + 16, start + size
        while at <= end - 16 and end <= nbytes and objects < MAX_STRINGS:
            index, size = _read_at(file, at, "<H6xQ")
            step = 16 + (size + 7) // 8 * 8 if index else size
            at += step if 16 <= step <= end - at else nbytes
            objects += 1
        if not end - 16 < at <= end <= nbytes:
            raise ConvertError(f"the heap of strings at byte {start} is wrong; {DAMAGED}")


def _check_lengths(file: BinaryIO, nbytes: int, name: str, most: int) -> None:
    """Refuse attributes of this name that say their string is longer than that.

    H5T__conv_vlen takes as much memory before it looks whether there is such a string. The layout
    of an attribute message is that of the specification, IV.A.2.m.
    """
    for at in _find(file, nbytes, name.encode() + b"\0"):
        for version, before in ((1, 8), (2, 8), (3, 9)):
            if at < before or at + 8 > nbytes:
                continue
            found, of_name, of_type, of_space = _read_at(file, at - before, "<BxHHH")
            if found != version or of_name != len(name) + 1:
                continue
            sizes = [of_name, of_type, of_space]
            if version == 1:  # all start at multiples of 8
                sizes = [(size + 7) // 8 * 8 for size in sizes]
            if at + sum(sizes) + 4 > nbytes:
                continue
            (kind,) = _read_at(file, at + sizes[0], "<B")
            (length,) = _read_at(file, at + sum(sizes), "<I")
            if kind & 15 == VARIABLE_LENGTH and length > most:
                raise ConvertError(
                    f"attribute {name!r} says it has {length} bytes; at most {most} are supported"
                )


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """What the library raises is about the file: it makes errors of all these kinds of it."""
    try:
        yield
    except ConvertError:
        raise
    except (
        *(OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError),
        zlib.error,
    ) as error:
        raise ConvertError(f"{what} cannot be read: {error!s:.200}; {DAMAGED}") from error


def child(group: Any, name: str) -> Any:
    """What a plain link leads to; None if there is no such link."""
    import h5py

    with _errors(f"link {name!r:.200}"):
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
            raise ConvertError(
                f"{f'{group.name}/{name}'!r:.200} is {kind} link, which is not followed; copy the "
                f"model into one file without links"
            )
        return group.get(name)


def text(item: Any, name: str, most: int) -> str | None:
    """A string, in one of the forms that h5py gave them over the years; None if there is none."""
    import h5py

    with _errors(f"attribute {name!r}"):
        if name not in item.attrs:
            return None
        found = item.attrs.get_id(name)
        kind = found.get_type()
        is_text = isinstance(kind, h5py.h5t.TypeStringID) and found.shape == ()
        if not is_text or found.get_storage_size() > most:
            raise ConvertError(f"attribute {name!r} is not one string of at most {most} bytes")
        value = item.attrs[name]
        string = value.decode() if isinstance(value, bytes) else str(value)
    if len(string) > most:
        raise ConvertError(
            f"attribute {name!r} has {len(string)} characters; at most {most} are supported"
        )
    return string


class Datasets:
    """The datasets below a group, by path, found through plain links only.

    Parameters
    ----------
    group : h5py.Group
    most : int
        Bytes that may be read altogether.

    Raises
    ------
    ConvertError
        If there is anything but groups and datasets, or too many of them.
    """

    def __init__(self, group: Any, most: int) -> None:
        self._left, self._again, self._links = most, AGAIN + most, 0
        self._seen: set[str] = set()
        self._datasets: dict[str, Any] = {}
        self._walk(group, "", 0)
        self.paths = tuple(self._datasets)

    def _walk(self, group: Any, prefix: str, depth: int) -> None:
        import h5py

        if not isinstance(group, h5py.Group):
            raise ConvertError(f"{group.name!r:.200} is not a group; {DAMAGED}")
        with _errors(f"group {group.name!r:.200}"):
            self._links += len(group)
            if self._links > MAX_LINKS or depth > MAX_DEPTH:
                raise ConvertError(
                    f"the weights are in more than {MAX_LINKS} groups and datasets, or nested more "
                    f"than {MAX_DEPTH} deep at {prefix!r:.200}; expected those of a model"
                )
            names = list(group)
        for name in names:
            item = child(group, name)
            path = f"{prefix}{name}"
            if isinstance(item, h5py.Group):
                self._walk(item, f"{path}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                self._datasets[path] = item
            else:
                raise ConvertError(f"{path!r:.200} is neither a group nor a dataset; {DAMAGED}")

    def read(self, path: str) -> Array:
        """An array of float16, float32 or float64, in the byte order of this machine.

        Raises
        ------
        ConvertError
            If the dataset is of another dtype, of too many dimensions or not in this file, or lacks
            data; or if too much is read again.
        """
        import h5py

        dataset, what = self._datasets[path], f"dataset {path!r:.200}"
        with _errors(what):
            options = dataset.id.get_create_plist()
            layout = options.get_layout()
            if layout == h5py.h5d.VIRTUAL or options.get_external_count():
                raise ConvertError(
                    f"{what} is a view of data in other files, which are not opened; copy the "
                    f"model into one file with h5repack"
                )
            kind = dataset.id.get_type()
            if not any(kind.equal(h5py.h5t.py_create(np.dtype(code))) for code in _FLOATS):
                raise ConvertError(
                    f"{what} is not of floating-point numbers of 16, 32 or 64 bits in a standard "
                    f"format; expected the weights of a model in one of these"
                )
            shape, dtype = dataset.shape, dataset.dtype
            if shape is None or len(shape) > MAX_AXES:
                raise ConvertError(
                    f"{what} has shape {shape}; expected at most {MAX_AXES} dimensions"
                )
            nbytes = math.prod(shape, start=dtype.itemsize)
            self._count(path, nbytes)
            if self._left < 0:
                raise ConvertError(
                    f"{what} of shape {shape} is more than a file of this size can hold; {DAMAGED}"
                )
            if layout == h5py.h5d.CHUNKED:
                array = _read_chunks(dataset, options, what)
            elif dataset.id.get_storage_size() != nbytes:
                raise ConvertError(f"{what} of shape {shape} has no data in the file; {DAMAGED}")
            else:
                array = dataset[()]
        return np.asarray(array, dtype.newbyteorder("="))

    def _count(self, path: str, nbytes: int) -> None:
        """Take what is read from what may be."""
        if path not in self._seen:
            self._seen.add(path)
            self._left -= nbytes
            return
        self._again -= nbytes
        if self._again < 0:
            raise ConvertError(
                f"dataset {path!r:.200} is read again by another call of its layer, and the others "
                f"so often that this would take too long; expected fewer calls of one layer"
            )


_FLOATS = ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8")


def _read_chunks(dataset: Any, options: Any, what: str) -> Array:
    """Unpack here, not in HDF5, which lets a chunk become a thousand times what it should be."""
    dtype, shape, chunk = dataset.dtype, dataset.shape, dataset.chunks
    filters = [options.get_filter(n) for n in range(options.get_nfilters())]
    for code, _, values, name in filters:
        if code not in (DEFLATE, SHUFFLE) or (code == SHUFFLE and values[0] != dtype.itemsize):
            raise ConvertError(
                f"{what} is packed by {name.decode(errors='replace')!r:.80} (filter {code}); "
                f"expected gzip, with or without shuffle, or nothing: unpack it with "
                f"'h5repack -f NONE'"
            )
    nbytes = math.prod(chunk, start=dtype.itemsize)
    starts = [range(0, n, c) for n, c in zip(shape, chunk, strict=True)]
    count = math.prod(map(len, starts))
    if count > MAX_CHUNKS or nbytes > max(SPARE_BYTES, math.prod(shape, start=dtype.itemsize)):
        raise ConvertError(
            f"{what} of shape {shape} is in {count} chunks of shape {chunk}; expected at most "
            f"{MAX_CHUNKS}, none larger than the whole: repack it with 'h5repack -l CONTI'"
        )
    array = np.empty(shape, dtype)
    for at in itertools.product(*starts):
        # More than its numbers take, a chunk is only if it does not compress.
        stored = dataset.id.get_chunk_info_by_coord(at)
        if stored.byte_offset is None or stored.size > 2 * nbytes + 64 or stored.filter_mask:
            raise ConvertError(f"{what} of shape {shape} has no data at {at}; {DAMAGED}")
        _, data = dataset.id.read_direct_chunk(at)
        for code, *_ in reversed(filters):
            if code == DEFLATE:
                data = zlib.decompressobj().decompress(data, nbytes)
            else:
                data = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        if len(data) != nbytes:
            raise ConvertError(f"{what}: the chunk at {at} does not unpack; {DAMAGED}")
        here = tuple(slice(a, a + c) for a, c in zip(at, chunk, strict=True))
        there = tuple(slice(n - a) for a, n in zip(at, shape, strict=True))
        array[here] = np.frombuffer(data, dtype).reshape(chunk)[there]
    return array
