"""Read PyTorch checkpoint files without PyTorch and without running anything they contain.

Four things are read: the zip files of torch.save (1.6 and later), the stream it wrote before that,
the zip files of torch.jit.save, and whole modules pickled into either of the first two. The layouts
are those of torch/serialization.py (``_save``, ``_legacy_save``), torch/csrc/serialization.cpp
(``writeFileRaw``) and the zip application note of PKWARE.

The pickle inside becomes a graph of inert values (see `unpickle`), in which the names that torch
writes are then given their meaning; storages are read last, each once. The file may be hostile:
every length is checked against the file before memory is allocated for it.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable
from typing import BinaryIO

from fastlstm.errors import ConvertError
from fastlstm.sources import foreign
from fastlstm.sources.pytorch.archive import Archive
from fastlstm.sources.pytorch.rebuild import Meaning, StoredModule
from fastlstm.sources.pytorch.storages import RETRY, Extent, Storages, StoredTensor
from fastlstm.sources.pytorch.unpickle import Budget, Opaque, load

__all__ = ["Opaque", "StoredModule", "StoredTensor", "read_checkpoint", "read_open"]

# The promise is twice the file and 16 MB; the rest is for what is not counted.
SPARE_MEMORY = 14 * 10**6

# The number 0x1950A86A20F9469CFC6C, as pickle protocols 2 to 5 and 0 to 1 write it.
LEGACY_MAGIC = (b"l\xfc\x9cF\xf9 j\xa8P\x19", b"119547037146038801333356")


def read_checkpoint(path: str | os.PathLike[str]) -> object:
    """Read the object saved in a PyTorch checkpoint, with tensors as NumPy arrays.

    Parameters
    ----------
    path : str or path-like
        A file written by ``torch.save`` (a state dict, a training checkpoint, a whole module) or
        by ``torch.jit.save``.

    Returns
    -------
    object
        Numbers, strings, bytes, None, lists, tuples and sets as they were saved, with dict for
        OrderedDict, defaultdict and Counter, and bytes for bytearray; NumPy arrays as such and
        NumPy scalars as Python numbers. Tensors and parameters are `StoredTensor`; modules, pickled
        or scripted, are `StoredModule`; everything else is an `Opaque`, which says what stood
        there: unknown objects, and tensors that cannot be an array, with the reason (quantised,
        sparse, float8). The result holds no cycle, is at most 100 levels deep, and its size as a
        tree is bounded.

    Raises
    ------
    ConvertError
        If the file is no PyTorch checkpoint, or a damaged one, or asks for much more memory than
        its size accounts for (twice its size and 16 MB).
    FileNotFoundError, PermissionError
        As `open` gives them.
    """
    if os.path.isdir(path):
        raise ConvertError(f"{os.fspath(path)} is a directory; give the checkpoint file inside it")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return read_open(file, size, os.fspath(path))
        except ConvertError as error:
            raise ConvertError(f"{os.fspath(path)}: {error}") from error.__cause__


def read_open(file: BinaryIO, size: int, path: str) -> object:
    """As :func:`read_checkpoint`, of a file that is open; `path` is what it is called."""
    head = file.read(512)
    file.seek(0)
    budget = Budget(2 * size + SPARE_MEMORY)
    storages = Storages()
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        root, find, order = _open_zip(file, size, budget, storages)
    elif any(magic in head[:32] for magic in LEGACY_MAGIC):
        root, find, order = _open_legacy(file, size, budget, storages)
    else:
        raise ConvertError(foreign.described(head, size, path))
    value = Meaning(budget, storages).value(root)
    del root
    storages.read_tensors(file, find, order, budget)
    return value


def _open_zip(
    file: BinaryIO, size: int, budget: Budget, storages: Storages
) -> tuple[object, Callable[[str], Extent], str]:
    """The pickled graph of a zip checkpoint, where its storages lie, and their byte order."""
    archive = Archive(file, size, budget)
    roots = [name for name in archive.members if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(roots) != 1:
        raise ConvertError(_describe_zip(archive.members, len(roots)))
    prefix = roots[0].removesuffix("data.pkl")
    order = b"little"
    if prefix + "byteorder" in archive.members:
        order = archive.read(prefix + "byteorder")
        if order not in (b"little", b"big"):
            raise ConvertError(f"byte order {order[:20]!r}; expected 'little' or 'big'; {RETRY}")
    pickled = archive.read(roots[0])
    root = load(io.BytesIO(pickled), budget, storages.reference)
    budget.release(len(pickled))
    return root, lambda key: archive.extent(f"{prefix}data/{key}"), order.decode()


def _describe_zip(members: Iterable[str], roots: int) -> str:
    """What a zip archive is that does not hold one data.pkl."""
    names = {name.rpartition("/")[2] for name in members}
    if roots > 1:
        return "the zip archive holds several checkpoints; unpack it and give one of them"
    if {"config.json", "model.weights.h5"} <= names:
        return "this is a Keras model, not a PyTorch checkpoint; use the Keras reader"
    if "model.json" in names and "attributes.pkl" in names:
        return "TorchScript of torch before 1.4; load and save it with torch.jit of a newer one"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "this is a torch.export program; save the module's state_dict() with torch.save"
    if any(name.endswith(".npy") for name in names):
        return "this is a NumPy .npz file, not a PyTorch checkpoint; give it to fastlstm.convert"
    return (
        "a zip archive without a data.pkl; expected a PyTorch checkpoint written by torch.save "
        "or torch.jit.save; if the checkpoint is inside this archive, unpack it first"
    )


def _open_legacy(
    file: BinaryIO, size: int, budget: Budget, storages: Storages
) -> tuple[object, Callable[[str], Extent], str]:
    """The same as `_open_zip` for the stream that torch wrote before 1.6."""
    load(file, budget)  # the magic number, already recognised
    version, _system = load(file, budget), load(file, budget)
    if version != 1001:
        raise ConvertError(f"torch's serialization protocol {version!r}; expected 1001; {RETRY}")
    root = load(file, budget, storages.reference)
    keys = load(file, budget)
    if type(keys) is not list:
        raise ConvertError(f"no list of storages behind the pickled object; {RETRY}")
    extents: dict[str, Extent] = {}
    offset = file.tell()
    for key in keys:
        if type(key) is not str or key not in storages.sizes or key in extents:
            raise ConvertError(f"a storage in the file that no tensor uses; {RETRY}")
        file.seek(offset)
        count = int.from_bytes(file.read(8), "little", signed=True)
        nbytes = count * storages.itemsizes[key]
        offset += 8
        if count < 0 or offset + nbytes > size:
            raise ConvertError(f"storage {key[:40]!r} runs beyond the end of the file; {RETRY}")
        extents[key] = Extent(offset, nbytes, None)
        offset += nbytes

    def find(key: str) -> Extent:
        if key not in extents:
            raise ConvertError(f"storage {key[:40]!r} is not in the file; {RETRY}")
        return extents[key]

    # Big-endian machines, too, wrote this format in little-endian order (writeFileRaw).
    return root, find, "little"
