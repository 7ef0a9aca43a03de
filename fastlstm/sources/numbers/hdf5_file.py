"""Read the arrays of an HDF5 file without a model: weights as Keras saves them alone, or others."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from fastlstm.errors import ConvertError
from fastlstm.sources.keras import hdf5
from fastlstm.sources.pytorch.unpickle import Opaque

__all__ = ["is_hdf5_of_arrays", "read_hdf5"]

# Weights hardly compress: what they unpack to, beside this, is a few times the file.
SPARE_BYTES, MAX_RATIO = 2**20, 8
# Keras writes the model into this attribute, where it saves one.
MODEL = "model_config"


def is_hdf5_of_arrays(path: str) -> bool:
    """Whether a file is HDF5 and holds no model of Keras.

    Raises
    ------
    ConvertError
        If h5py is not installed, or the file is damaged.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(8) != hdf5.SIGNATURE:
            return False
        if importlib.util.find_spec("h5py") is None:
            raise ConvertError(f"{path}: reading HDF5 needs h5py: pip install 'fastlstm[keras]'")
        with _opened(file, path) as root:
            return MODEL not in root.attrs


def read_hdf5(path: str) -> dict[str, object]:
    """Read the datasets of an HDF5 file by path.

    Parameters
    ----------
    path : str

    Returns
    -------
    dict of str to object
        Arrays of float16, float32 or float64 by the groups they lie in and their name, joined by
        "/"; a dataset of anything else is an `Opaque` that says so.

    Raises
    ------
    ConvertError
        If the file is damaged, leads out of itself, or holds more than its size accounts for.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        most = MAX_RATIO * os.fstat(file.fileno()).st_size + SPARE_BYTES
        with _opened(file, path) as root:
            datasets = hdf5.Datasets(root, most)
            return {name: _read(root, datasets, name) for name in datasets.paths}


@contextlib.contextmanager
def _opened(file: BinaryIO, path: str) -> Iterator[Any]:
    """The root of the file; what the library raises within is about the file, and says its path."""
    try:
        with hdf5.opened(file, {}) as root:
            try:
                yield root
            except ConvertError:
                raise
            except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
                raise ConvertError(f"{error!s:.200}; {hdf5.DAMAGED}") from error
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error.__cause__


def _read(root: Any, datasets: hdf5.Datasets, name: str) -> object:
    at = root
    for part in name.split("/"):
        at = hdf5.child(at, part)
    kind = str(getattr(at, "dtype", ""))
    if not kind.startswith(("float", ">f", "<f")):
        return Opaque("h5py", "Dataset", reason=f"of dtype {kind:.80}, which is not read")
    return datasets.read(name)
