"""A file that is replaced whole: after a crash, the old one or the new one is there.

The new content is written to a temporary file beside the target and renamed over it, and both the
file and its folder are flushed to the disk. A temporary file is locked (flock) for as long as the
process that writes it lives, so that the next save to the same target finds those of killed saves,
removes them, and leaves alone those of saves under way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

__all__ = ["Path", "replacing", "write_all"]

Path = str | bytes | os.PathLike[Any]

# Saves to one target that can be under way at once; one more waits for the first of them.
SLOTS = 16

# What one call of the system writes or reads: between two, a signal is seen.
CHUNK_BYTES = 2**24

_PREFIX = ".fastlstm-"
_BESIDE = os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An empty, unbuffered file that takes the place of `path` when the ``with`` block ends.

    A symbolic link is followed, a dangling one too. A new file has the permissions that the umask
    leaves, one that replaces another has the other's, and its owner where that is allowed. If the
    block raises, the temporary file is removed and nothing else happens.

    Parameters
    ----------
    path : str or path
        A regular file, or one that is not there yet, in a folder that is.

    Yields
    ------
    file : BinaryIO
        Open for writing.

    Raises
    ------
    OSError
        If the file cannot be written; it names the file. An older one is then left as it was,
        unless only the flush of the folder failed.
    """
    target = os.path.realpath(os.fsdecode(path))
    try:
        older = _older(target)
        mode = 0o666 if older is None else stat.S_IMODE(older.st_mode) & 0o777
        with _folder(os.path.dirname(target)) as folder:
            temporary, number = _temporary(target, mode)
            try:
                with open(number, "wb", buffering=0, closefd=False) as file:
                    yield file
                if older is not None:
                    _take_over(number, older)
                _flush(number)
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(number)
            if folder is not None:
                _flush(folder)
    except OSError as error:
        named = isinstance(error.filename, str) and not _is_temporary(error.filename)
        if error.errno is None or named:
            raise
        raise OSError(error.errno, error.strerror, target) from error


def write_all(file: BinaryIO, data: memoryview) -> None:
    """Write every byte of an unbuffered file's next part: one call may take only some."""
    done = 0
    while done < len(data):
        done += file.write(data[done : done + CHUNK_BYTES])


def _older(target: str) -> os.stat_result | None:
    """What is to be replaced, which must be a regular file that may be written."""
    try:
        older = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(older.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a folder or a device, not a file", target)
    os.close(os.open(target, os.O_WRONLY | os.O_CLOEXEC))  # a rename ignores write protection
    return older


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int | None]:
    """A folder, open to be flushed; None if it may be written but not read."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        text = "There is no such folder to write to"
        raise FileNotFoundError(errno.ENOENT, text, path) from error
    except PermissionError:
        yield None
        return
    try:
        yield number
    finally:
        os.close(number)


def _take_over(number: int, older: os.stat_result) -> None:
    """Give a file the owner, as far as that is allowed, and the permissions of an older one."""
    made = os.fstat(number)
    if (made.st_uid, made.st_gid) != (older.st_uid, older.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(number, older.st_uid, older.st_gid)
    os.fchmod(number, stat.S_IMODE(older.st_mode))


def _flush(number: int) -> None:
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a filesystem that has no fsync
            raise


def _temporary(target: str, mode: int) -> tuple[str, int]:
    """The name and descriptor of a new file beside the target, locked; abandoned ones are removed.

    The names are few and known, so that no folder is listed: a server may keep the states of a
    hundred thousand sessions in one.
    """
    import hashlib  # loads OpenSSL, several milliseconds: not a part of importing the package

    folder, name = os.path.split(target)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    names = [os.path.join(folder, f"{_PREFIX}{digest}-{slot}.tmp") for slot in range(SLOTS)]
    while True:
        number = None
        for name in names:
            with contextlib.suppress(OSError):
                _remove_abandoned(name)
            if number is None and (number := _create(name, mode)) is not None:
                made = name
        if number is not None:
            return made, number
        _remove_abandoned(names[0], wait=True)


def _is_temporary(path: str) -> bool:
    return os.path.basename(path).startswith(_PREFIX)


def _create(name: str, mode: int) -> int | None:
    """The descriptor of a new, locked file; None if there is one of that name."""
    try:
        number = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BESIDE, mode)
    except FileExistsError:
        return None
    kept = False
    try:
        _lock(number, wait=True)
        kept = _is(name, number)  # another save may have taken it for abandoned before
        return number if kept else None
    finally:
        if not kept:
            os.close(number)


def _remove_abandoned(name: str, wait: bool = False) -> None:
    """Remove a temporary file that nobody holds, if there is one."""
    try:
        number = os.open(name, os.O_RDWR | _BESIDE)
    except FileNotFoundError:
        return
    try:
        if _lock(number, wait):
            # Only who holds the lock renames or removes the file, so what is there now stays.
            if _is(name, number):
                os.unlink(name)
        elif wait:
            text = f"{SLOTS} temporary files of killed saves are in the way, as {name}; remove them"
            raise FileExistsError(errno.EEXIST, text)
    finally:
        os.close(number)


def _lock(number: int, wait: bool) -> bool:
    """Lock a file; False if another holds it, or the filesystem knows no locks."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
            raise
        return False
    return True


def _is(name: str, number: int) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.stat(name, follow_symlinks=False), os.fstat(number))
    except FileNotFoundError:
        return False
