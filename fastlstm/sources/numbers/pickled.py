"""Read a pickle of arrays under names, as programs beside PyTorch write it, and run nothing of it.

The interpreter is that of checkpoints: what a pickle names, calls or restores is an inert record,
of which only the arrays of NumPy and the containers of the standard library get a meaning.
"""

from __future__ import annotations

import os
import re

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.checkpoint import LEGACY_MAGIC, SPARE_MEMORY
from fastlstm.sources.pytorch.rebuild import Meaning
from fastlstm.sources.pytorch.storages import Storages
from fastlstm.sources.pytorch.unpickle import Budget, load

__all__ = ["is_pickle", "read_pickle"]

# Protocol 2 and later begin with their number; 0 and 1 with a container, or a name to be called.
_HEAD = re.compile(rb"\x80[\x02-\x05]|\([dl]|[}\]]q|c[A-Za-z_][\w.]*\n")


def is_pickle(head: bytes) -> bool:
    """Whether a file with these first bytes is a pickle that ``torch.save`` did not write."""
    return _HEAD.match(head) is not None and not any(magic in head[:32] for magic in LEGACY_MAGIC)


def read_pickle(path: str) -> object:
    """Read a pickle; the values are those of :func:`.checkpoint.read_checkpoint`.

    Raises
    ------
    ConvertError
        If it is damaged, or asks for more memory than its size accounts for.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        budget = Budget(2 * size + SPARE_MEMORY)
        try:
            return Meaning(budget, Storages()).value(load(file, budget))
        except ConvertError as error:
            file.seek(0)
            if b"joblib" in file.read(2**16):
                raise ConvertError(
                    f"{path}: joblib wrote it, and put arrays between the parts of a pickle; "
                    f"expected a plain one, or a file of numpy.savez: load it with joblib, and "
                    f"write its arrays with numpy.savez"
                ) from None
            raise ConvertError(f"{path}: {error}") from error.__cause__
