"""Where a file is: a path of text or bytes, or an open file, which is copied to one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

__all__ = ["Path", "at_path", "name_of"]

Path = str | bytes | os.PathLike[Any]


@contextlib.contextmanager
def at_path(source: Any) -> Iterator[Any]:
    """The path of what is given as text, bytes, a path or a binary file; anything else as it is.

    A file is read from where it stands, into a temporary one of the same ending, which is gone when
    the ``with`` block ends.
    """
    if isinstance(source, str | bytes | os.PathLike):
        yield os.fsdecode(source)
        return
    if not callable(getattr(source, "read", None)):
        yield source
        return
    ending = os.path.splitext(name_of(source))[1]
    with tempfile.NamedTemporaryFile(prefix="fastlstm-", suffix=ending) as copied:
        try:
            shutil.copyfileobj(source, copied)
        except TypeError:
            raise TypeError(
                f"{type(source).__name__} gives text; expected a file that is open for reading "
                f"bytes: open(path, 'rb')"
            ) from None
        copied.flush()
        yield copied.name


def name_of(source: Any) -> str:
    """The name of a file that is given as a path or open, without its folder; "" if it has none."""
    if not isinstance(source, str | bytes | os.PathLike):
        source = getattr(source, "name", "")
        if not isinstance(source, str | bytes):
            return ""
    return os.path.basename(os.fsdecode(source))
