"""The file that keeps sequences over a restart, which may be anyone's."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from fastlstm import FormatError
from fastlstm.serving.store import Store

KEPT: list[tuple[str, int | str, bytes]] = [
    ("m", 5, b"five"),
    ("m", "5", b"the word"),
    ("n", 5, b""),
    ("m", -(2**63), bytes(range(256))),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def kept(path: Path) -> Path:
    store = Store(path)
    assert store.put(KEPT) == len(KEPT)
    store.close()
    return path


def take(path: Path, most: int = 100) -> list[Any]:
    found: list[Any] = []
    store = Store(path)
    try:
        assert store.take(most, found.extend) == len(found)
    finally:
        store.close()
    return found


def test_what_is_taken_is_gone(kept):
    assert sorted(take(kept), key=repr) == sorted(KEPT, key=repr)
    assert take(kept) == []


def test_a_new_file_holds_nothing_and_is_its_owners(path):
    assert take(path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_put_takes_the_place_of_what_was(kept):
    store = Store(kept)
    assert store.put([("m", 1, b"one")]) == 1
    store.close()
    assert take(kept) == [("m", 1, b"one")]


def test_refused_sequences_stay(kept):
    with pytest.raises(ValueError, match="4 sequences; expected at most 3: raise --max-streams"):
        take(kept, 3)
    store = Store(kept)

    def refuse(found: list[Any]) -> None:
        raise FormatError("of another model")

    with pytest.raises(FormatError, match="of another model"):
        store.take(100, refuse)
    store.close()
    assert len(take(kept)) == 4


def test_one_server_has_it(kept):
    store = Store(kept)
    with pytest.raises((OSError, FormatError), match="locked"):
        Store(kept)
    store.close()
    assert len(take(kept)) == 4


@pytest.mark.parametrize(
    "content", [b"x", b"SQLite format 3\0", b"SQLite format 3\0" + bytes(4096), os.urandom(8192)]
)
def test_another_file_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(FormatError, match="holds no sequences that fastlstm serve saved"):
        Store(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 2",
        "CREATE TABLE others (a)",
        "CREATE TRIGGER t AFTER DELETE ON sequences BEGIN SELECT 1; END",
        "DROP TABLE sequences",
        "INSERT INTO sequences VALUES ('m', 1.5, x'00')",
        "INSERT INTO sequences VALUES ('m', x'01', x'00')",
        "INSERT INTO sequences VALUES ('m', 'a', 'text')",
        "INSERT INTO sequences VALUES ('m', printf('%257s', 'a'), x'00')",
    ],
)
def test_another_database_is_refused(kept, statement):
    with sqlite3.connect(kept) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(FormatError, match="holds no sequences that fastlstm serve saved"):
        take(kept)


def test_damage_is_found_or_changes_nothing(kept, rng):
    """A byte that is not what it was: the store refuses, or gives what it holds."""
    sound = kept.read_bytes()
    for _ in range(300):
        damaged = bytearray(sound)
        damaged[int(rng.integers(len(sound)))] ^= 1 << int(rng.integers(8))
        kept.write_bytes(damaged)
        for beside in kept.parent.glob(f"{kept.name}-*"):
            beside.unlink()
        try:
            found = take(kept)
        except (FormatError, OSError, ValueError):
            continue
        # Streams have a digest of their own; what is here is of the right kinds.
        for model, name, stream in found:
            assert isinstance(model, str)
            assert isinstance(name, int | str)
            assert isinstance(stream, bytes)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "no" / "state")
