"""Arrays under names, from any container that holds them: JSON, ``.npz``, a pickle, HDF5.

Such a file says which numbers there are, and not which model they make: that is taken from
``layers=`` or ``recipe=``, as with the names and arrays of any other source.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.foreign import is_safetensors
from fastlstm.sources.numbers.hdf5_file import is_hdf5_of_arrays, read_hdf5
from fastlstm.sources.numbers.json_file import is_json, read_json
from fastlstm.sources.numbers.npz import is_npz, read_npz
from fastlstm.sources.numbers.pickled import is_pickle, read_pickle
from fastlstm.sources.pytorch.checkpoint import StoredTensor

__all__ = ["holds_numbers", "named", "read_numbers"]

# The two keys of an array that is written as a flat list beside its axes.
_AXES, _FLAT = ("dim", "dims", "shape", "size"), ("data", "values")


def holds_numbers(path: str) -> bool:
    """Whether a file is one that :func:`read_numbers` reads.

    Raises
    ------
    ConvertError
        If it is HDF5, and h5py is not installed or the file damaged.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        head, size = file.read(512), os.fstat(file.fileno()).st_size
    if is_safetensors(head, size):
        return False
    return is_json(head) or is_npz(head) or is_pickle(head) or is_hdf5_of_arrays(path)


def read_numbers(path: str) -> Any:
    """What a file holds: mappings and lists, and in them arrays and what else there is.

    Parameters
    ----------
    path : str
        A file of which :func:`holds_numbers` is true.

    Raises
    ------
    ConvertError
        If it is damaged, or larger or deeper than is read.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if is_json(head):
        return read_json(path)
    if is_npz(head):
        return read_npz(path)
    return read_pickle(path) if is_pickle(head) else read_hdf5(path)


def named(value: Any, path: str = "") -> Mapping[Any, Any]:
    """What a file holds as a nest of names and arrays.

    A list is called by the numbers of its items. A mapping of a flat list and of its axes, as
    ``{"dim": [2, 3], "data": [...]}``, is an array, read row by row.

    Parameters
    ----------
    value : object
        What :func:`read_numbers` gave.
    path : str
        Of the file, for the messages.

    Raises
    ------
    ConvertError
        If it is neither a mapping nor a list, holds no array, or has a flat list of another length
        than its axes tell.
    """
    if isinstance(value, np.ndarray) and value.ndim > 1:
        value = list(value)  # arrays of one shape
    if isinstance(value, list | tuple):
        value = {str(n): item for n, item in enumerate(value)}
    if not isinstance(value, Mapping) or not _holds_array(value):
        held = (
            f"{sorted(map(str, value))!r:.200}" if isinstance(value, Mapping) else f"{value!r:.100}"
        )
        raise ConvertError(
            f"{path}: it holds {held} and no array; expected a mapping of names to arrays, or a "
            f"list of arrays"
        )
    made = _shaped(value, "", path)
    return made if isinstance(made, Mapping) else {"0": made}


def _holds_array(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return any(map(_holds_array, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, np.ndarray | StoredTensor)


def _shaped(value: Any, at: str, path: str) -> Any:
    if not isinstance(value, dict):
        return value
    axes, flat = (
        next((value[key] for key in keys if isinstance(value.get(key), np.ndarray)), None)
        for keys in (_AXES, _FLAT)
    )
    if axes is None or flat is None:
        return {key: _shaped(item, f"{at}.{key}".lstrip("."), path) for key, item in value.items()}
    sizes = [int(size) for size in axes.ravel() if 0 <= size < 2**31 and size == int(size)]
    if axes.ndim != 1 or len(sizes) < axes.size or math.prod(sizes) != flat.size:
        raise ConvertError(
            f"{path}: {at!r:.200} has {flat.size} numbers, and says its axes are "
            f"{axes.tolist()!s:.100}; expected as many as they tell"
        )
    return flat.reshape(sizes)
