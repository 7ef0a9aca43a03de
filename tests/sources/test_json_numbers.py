"""JSON whose leaves are numbers: as Python's own reader reads it, or refused, within bounds."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlstm.errors import ConvertError
from fastlstm.sources.numbers.json_file import MAX_BYTES, is_json, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**60), 2**60)
    | st.text(max_size=5) | st.lists(st.floats(allow_nan=False, width=32), max_size=4),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "a.json"


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def as_floats(value: Any, inside: bool = False) -> Any:
    """Integers in lists of numbers alone become floats, as those of arrays are."""
    if isinstance(value, dict):
        return {key: as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        numbers = all(type(item) in (int, float) for item in value)
        return [float(item) if numbers else as_floats(item) for item in value]
    return value


def read_text(path: Path, text: bytes) -> Any:
    path.write_bytes(text)
    return plain(read_json(str(path)))


@given(
    value=st.dictionaries(st.text(max_size=4), VALUES, max_size=4) | st.lists(VALUES, max_size=4),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_what_json_reads(path: Path, value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read_text(path, text.encode()) == as_floats(json.loads(text))


def unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


@given(
    value=st.dictionaries(st.text(max_size=4), VALUES, max_size=4),
    changes=st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(b'[]{},:"01-.eN \\a')),
        min_size=1,
        max_size=3,
    ),
)
def test_what_json_refuses(path: Path, value: Any, changes: list[tuple[int, int]]) -> None:
    data = bytearray(json.dumps(value).encode())
    for at, byte in changes:
        data[at % len(data)] = byte
    try:
        expected = json.loads(bytes(data), object_pairs_hook=unlike)
    except ValueError:
        with pytest.raises(ConvertError):
            read_text(path, bytes(data))
    else:
        got = read_text(path, bytes(data))
        assert str(got) == str(as_floats(expected))  # NaN is not itself


def test_arrays(tmp_path: Path, rng: np.random.Generator) -> None:
    """Nested lists of equal lengths are arrays, of the dtype that holds all of their numbers."""
    narrow = rng.standard_normal((3, 4, 2)).astype(np.float32)
    wide = rng.standard_normal((5, 1))
    odd = [[1, 2], [3]]
    file = tmp_path / "a.json"
    file.write_text(
        json.dumps({"n": narrow.tolist(), "w": wide.tolist(), "o": odd, "e": [], "m": [1, "a"]})
    )
    found = read_json(str(file))
    assert found["n"].dtype == np.float32
    assert found["w"].dtype == np.float64
    np.testing.assert_array_equal(found["n"], narrow)
    np.testing.assert_array_equal(found["w"], wide)
    assert [item.tolist() for item in found["o"]] == [[1.0, 2.0], [3.0]]
    assert found["e"] == []
    assert found["m"] == [1, "a"]
    many = rng.standard_normal(50_000)  # more than are parsed at once
    file.write_text(json.dumps(many.tolist()))
    np.testing.assert_array_equal(read_json(str(file)), many)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100, "at byte 64 of the JSON, it is nested more than 64 deep"),
        (b'{"a": 1, "a": 2}', r"the key 'a' is there for the second time"),
        (b"[1, 2] 3", "it goes on behind its end"),
        (b"[1, 2", "there is the end of the file where ',' or ']' has to be"),
        (b'{"a" 1}', "where ':' has to be"),
        (b"{1: 2}", "where a key has to be"),
        (b"[1, 2,]", "a list of numbers before it is malformed"),
        (b"[1,, 2]", "a list of numbers before it is malformed"),
        (b"[1e999]", "a number that no float64 holds"),
        (b'["' + b"a" * 2**20 + b'"]', "more than 1048576 characters of text"),
        (b'{"a": ' + b"1" * 500 + b"}", "a number has more than 400 digits"),
        (b"[" + b"[], " * 70_000 + b"[]]", "more than 65536 entries that are no lists of numbers"),
        (b"[" + b"[1],[1,2]," * 70_000 + b"[1]]", "more than 65536 entries"),
        (b"[" + b"[1]," * 140_000 + b"[1]]", "more than 131072 lists of numbers"),
        (b"[" + b"0," * 9_000_000 + b"0]", "numbers take more than .* numpy.savez"),
        (b'["\xff"]', "a text is not UTF-8"),
    ],
    ids=range(16),
)  # fmt: skip
def test_refused(path: Path, text: bytes, message: str) -> None:
    path.write_bytes(text)
    with pytest.raises(ConvertError, match=message) as caught:
        read_json(str(path))
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    with open(file, "wb") as stream:
        stream.write(b"[1")
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(ConvertError, match=rf"at most {MAX_BYTES} are read.*numpy\.savez"):
        read_json(str(file))


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[1]," * 100_000 + b"[1]]",
        b"[" + b"0.12345678901234," * 300_000 + b"1]",
        b"{" + b",".join(b'"%d":1' % n for n in range(60_000)) + b"}",
        b"[" + b"[1],[1,2]," * 20_000 + b"1]",
        b"[" + b"0," * 1_000_000 + b"0]",
        b'["' + b"\\ud83d\\ude00" * 80_000 + b'"]',
    ],
    ids=["rows", "numbers", "entries", "ragged", "short numbers", "wide characters"],
)
def test_memory(path: Path, text: bytes) -> None:
    """At most twice the size of the file, and 16 MB."""
    path.write_bytes(text)
    tracemalloc.start()
    try:
        read_json(str(path))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most <= 2 * len(text) + 16 * 10**6


def test_heads() -> None:
    assert is_json(b' \n{"a": 1}')
    assert is_json(b"\xef\xbb\xbf[1]")
    assert not is_json(b"PK\x03\x04")
    assert not is_json(b"")
    assert not is_json(b"\x08\0\0\0\0\0\0\0{}")
