"""Sequences over a restart of the server: a file of SQLite, written when it stops.

What a stop writes, the next start takes out in one transaction before it serves: a sequence goes on
from where its client left it, or not at all. After a crash there is nothing to take, so that no
client finds a sequence at steps it has left behind, or one that has ended.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fastlstm import FormatError
from fastlstm.serving.requests import MOST_NAME, Name

__all__ = ["Store"]

MAGIC = b"SQLite format 3\0"
APPLICATION_ID = 0x464C5354  # "FLST": what `file` and SQLite tell these files by
VERSION = 1

SCHEMA = """
CREATE TABLE sequences (
    model TEXT NOT NULL, name NOT NULL, stream BLOB NOT NULL, PRIMARY KEY (model, name)
) WITHOUT ROWID
""".strip()


class Store:
    """The file.

    Parameters
    ----------
    path : str or path
        Made if it is not there, for this user only: who has it can go on with any sequence.

    Raises
    ------
    FormatError
        If the file is not one that this class made.
    OSError
        If it cannot be read and written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(number, "rb") as file:
            begins = file.read(len(MAGIC))
        if begins not in (b"", MAGIC):
            raise self._unsound("it is no database")
        try:
            self._connection = self._connect()
        except sqlite3.OperationalError as error:
            raise OSError(f"{self._path!r}: {error}; another server may have it") from error
        except sqlite3.Error as error:
            raise self._unsound(error) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(Path(self._path), isolation_level=None, timeout=1.0)
        try:
            # The file may be anyone's: nothing in its schema is run.
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            # One server has it, from now on until it stops.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN EXCLUSIVE")
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if not tables and not application:
                connection.execute(SCHEMA)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif application != APPLICATION_ID:
                raise self._unsound("it is a database of another program")
            elif version != VERSION:
                raise self._unsound(f"it is of version {version}; expected {VERSION}")
            else:
                found = connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
                if found != [("table", "sequences", SCHEMA)]:
                    raise self._unsound("it has other tables than expected")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _unsound(self, why: object) -> FormatError:
        return FormatError(
            f"{self._path!r} holds no sequences that fastlstm serve saved: {why}; expected a file "
            f"that it wrote, or one that is not there yet"
        )

    def take(self, most: int, use: Callable[[list[tuple[str, Name, bytes]]], None]) -> int:
        """Take out all sequences; their number.

        Parameters
        ----------
        most : int
            Sequences that the server has room for.
        use : callable
            Given model, name and stream of each. If it raises, they stay in the file.

        Raises
        ------
        FormatError
            If they are not sound.
        ValueError
            If they are too many.
        """
        with self._whole():
            (count,) = self._run("SELECT count(*) FROM sequences").fetchone()
            if count > most:
                raise ValueError(
                    f"{self._path!r} holds {count} sequences; expected at most {most}: raise "
                    f"--max-streams"
                )
            found = self._run("SELECT model, name, stream FROM sequences").fetchall()
            for _, name, stream in found:
                if not isinstance(name, int | str) or not isinstance(stream, bytes):
                    raise self._unsound(f"a sequence is called {name!r:.80}")
                if isinstance(name, str) and len(name) > MOST_NAME:
                    raise self._unsound(f"a name has {len(name)} characters")
            use(found)
            self._run("DELETE FROM sequences")
            return len(found)

    def put(self, sequences: Iterable[tuple[str, Name, bytes]]) -> int:
        """Keep sequences for the next start, in place of what is there; their number.

        Raises
        ------
        OSError
            If the file cannot be written. It is left as it was then.
        """
        with self._whole():
            self._run("DELETE FROM sequences")
            cursor = self._connection.executemany(
                "INSERT INTO sequences VALUES (?, ?, ?)", sequences
            )
            return cursor.rowcount

    def _run(self, statement: str) -> sqlite3.Cursor:
        return self._connection.execute(statement)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """All that the block does, or nothing of it."""
        try:
            self._run("BEGIN EXCLUSIVE")
            try:
                yield
            except BaseException:
                self._run("ROLLBACK")
                raise
            self._run("COMMIT")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"{self._path!r}: {error}") from error
            raise self._unsound(error) from error

    def close(self) -> None:
        self._connection.close()
