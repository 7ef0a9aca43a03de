"""Read a ``.pt2`` file of ``torch.export.save``: its graph as JSON, and its weights.

The layouts are those of torch/export/pt2_archive (since 2.8: ``models/``, ``data/weights/`` and
``data/constants/``, each with a list of what its files hold) and of torch/_export/serde before that
(``serialized_exported_program.json`` beside a state dict of torch.save). The schema of the JSON is
torch/_export/serde/schema.py. The file is not trusted: every length is checked against it, and what
the JSON would become in memory is counted before it is parsed.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import document
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.archive import Archive, Source, opened
from fastlstm.sources.pytorch.checkpoint import SPARE_MEMORY, read_open
from fastlstm.sources.pytorch.storages import RETRY, StoredTensor
from fastlstm.sources.pytorch.unpickle import Budget

__all__ = ["Exported", "Source", "is_exported", "read_exported"]

Array = npt.NDArray[Any]

# The numbers of dtypes in the schema (ScalarType), which are not ATen's: ATen's number of each.
SCALAR_TYPES = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8, 10: 9, 11: 10, 12: 11, 13: 15}
_STORED = {
    **{1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f2", 7: "<f4", 8: "<f8", 12: "?"},
    13: "<u2",  # bfloat16, the upper half of a float32
}
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
           8: "float64", 12: "bool", 13: "bfloat16"}  # fmt: skip
MAX_AXES = 8


@dataclass(frozen=True)
class Exported:
    """What a file holds.

    Parameters
    ----------
    program : dict
        The JSON of the exported program.
    arrays : dict of str to array
        Weights, buffers and constants by name.
    dtypes : dict of int to str
        By the id of an array, what it is stored in.
    """

    program: dict[str, Any]
    arrays: dict[str, Array]
    dtypes: dict[int, str]


def _programs(archive: Archive) -> list[str]:
    """Members that are the JSON of a program."""
    return [
        name
        for name in archive.members
        if re.fullmatch(r"(?:[^/]+/)?(?:models/[^/]+|serialized_exported_program)\.json", name)
    ]


def is_exported(source: Source) -> bool:
    """Whether a file is one of ``torch.export.save``."""
    with opened(source) as (file, size):
        if file.read(4) != b"PK\x03\x04":
            return False
        try:
            return bool(_programs(Archive(file, size, Budget(2 * size + SPARE_MEMORY))))
        except ConvertError:
            return False  # the reader of checkpoints says what is wrong with it


def read_exported(source: Source) -> Exported:
    """Read a file of ``torch.export.save``.

    Raises
    ------
    ConvertError
        If it is damaged, or asks for more memory than a file of its size should need.
    OSError
        If it cannot be read.
    """
    with opened(source) as (file, size):
        budget = Budget(2 * size + SPARE_MEMORY)
        archive = Archive(file, size, budget)
        programs = _programs(archive)
        if len(programs) != 1:
            raise ConvertError(f"the archive has {len(programs)} programs; expected one")
        program = _json(archive, programs[0], budget)
        arrays: dict[str, Array] = {}
        dtypes: dict[int, str] = {}
        if programs[0].endswith("serialized_exported_program.json"):
            prefix = programs[0].removesuffix("serialized_exported_program.json")
            for name in ("serialized_state_dict.pt", "serialized_constants.pt"):
                if prefix + name in archive.members:
                    _add_saved(arrays, dtypes, archive.inflated(prefix + name))
        else:
            prefix, _, model = programs[0].rpartition("models/")
            model = model.removesuffix(".json")
            for folder in ("weights", "constants"):
                _add_listed(arrays, dtypes, archive, f"{prefix}data/{folder}", model, budget)
    return Exported(program, arrays, dtypes)


def _json(archive: Archive, name: str, budget: Budget) -> dict[str, Any]:
    data = archive.inflated(name)
    try:
        text = data.decode()
        document.judge(text, budget.left)
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"member {name[:80]!r} is no JSON that is read: {error}") from None
    budget.release(len(data))
    if not isinstance(value, dict):
        raise ConvertError(f"member {name[:80]!r} is no JSON object; {RETRY}")
    return value


def _add_listed(
    arrays: dict[str, Array],
    dtypes: dict[int, str],
    archive: Archive,
    folder: str,
    model: str,
    budget: Budget,
) -> None:
    """Arrays of a folder whose files a list describes, by name."""
    listing = f"{folder}/{model}_{folder.rpartition('/')[2]}_config.json"
    if listing not in archive.members:
        return
    config = _json(archive, listing, budget).get("config")
    if not isinstance(config, dict):
        raise ConvertError(f"member {listing[:80]!r} lists no tensors; {RETRY}")
    whole: dict[str, Array] = {}  # files that several names share
    for name, entry in config.items():
        match entry:
            case {"path_name": str(file), "tensor_meta": dict(meta)}:
                pass
            case _:
                raise ConvertError(f"constant {name[:80]!r} is no tensor, which is not supported")
        if entry.get("use_pickle"):
            raise ConvertError(f"weight {name[:80]!r} is pickled, which is not supported")
        if file not in whole:
            whole[file] = np.frombuffer(archive.inflated(f"{folder}/{file}"), "u1")
        arrays[name], dtype = _tensor(name, whole[file], meta)
        dtypes[id(arrays[name])] = dtype


def _tensor(name: str, raw: Array, meta: Mapping[str, Any]) -> tuple[Array, str]:
    """The array that a list describes, of the bytes of its file."""
    match meta:
        case {
            "dtype": int(dtype),
            "sizes": list(sizes),
            "strides": list(strides),
            "storage_offset": {"as_int": int(offset)},
        } if dtype in _STORED:
            pass
        case _:
            raise ConvertError(f"weight {name[:80]!r} is of a dtype or layout that is not read")
    shape, steps = ([n.get("as_int") for n in part] for part in (sizes, strides))
    numbers = [offset, *shape, *steps]
    if (
        len(shape) != len(steps)
        or len(shape) > MAX_AXES
        or not all(type(n) is int and 0 <= n < 2**40 for n in numbers)
    ):
        raise ConvertError(f"the size of weight {name[:80]!r} is no size; {RETRY}")
    flat = raw[: raw.size // np.dtype(_STORED[dtype]).itemsize * np.dtype(_STORED[dtype]).itemsize]
    flat = flat.view(_STORED[dtype])
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    if 0 not in shape and (last >= flat.size or math.prod(shape) > flat.size):
        raise ConvertError(f"weight {name[:80]!r} reaches beyond its file; {RETRY}")
    array: Array = np.empty(shape, flat.dtype)
    if array.size:
        array[...] = np.lib.stride_tricks.as_strided(
            flat[offset:], shape, [s * flat.itemsize for s in steps], writeable=False
        )
    if dtype == 13:
        array = (array.astype("u4") << 16).view("f4")
    return array, _DTYPES[dtype]


def _add_saved(arrays: dict[str, Array], dtypes: dict[int, str], data: bytes) -> None:
    """Arrays of a file of torch.save within the archive."""
    if not data:
        return
    saved = read_open(io.BytesIO(data), len(data), "its weights")
    if not isinstance(saved, Mapping):
        raise ConvertError(f"the weights of the program are no mapping of names; {RETRY}")
    for name, tensor in saved.items():
        if isinstance(name, str) and isinstance(tensor, StoredTensor):
            arrays[name] = tensor.array
            dtypes[id(tensor.array)] = tensor.dtype
