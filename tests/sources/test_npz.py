"""NumPy's archives of arrays: read whole, or refused; never evaluated, never unpickled."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources import read
from fastlstm.sources.numbers.npz import read_npz

ARRAYS = {
    "float64": np.linspace(0, 1, 12).reshape(3, 4),
    "float32": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    "float16": np.ones(5, np.float16),
    "big endian": np.arange(4, dtype=">f4"),
    "columns first": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3)),
    "int64": np.arange(3),
    "bool": np.array([True, False]),
    "complex": np.array([1j]),
    "a/b.c": np.ones((2, 2), np.float32),
}


def member(array: np.ndarray) -> bytes:
    """What numpy.save writes."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    found = read_npz(str(path))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        got: Any = found[name]
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_a_model(tmp_path: Path, rng: np.random.Generator) -> None:
    """PyTorch's names in such a file are a state dict, whatever the file is called."""
    layer = spec.LSTM("x", 3, 5)
    saved = {
        name.removeprefix("x."): rng.standard_normal(shape)
        for name, shape in layer.tensors().items()
    }
    np.savez(tmp_path / "a.npz", **saved)
    (tmp_path / "a.npz").rename(tmp_path / "a.bin")
    conversion = read(tmp_path / "a.bin", dtype="float64")
    assert [node.layer for node in conversion.graph.nodes] == [spec.LSTM("lstm", 3, 5)]
    for got, array in zip(conversion.tensors.values(), saved.values(), strict=True):
        np.testing.assert_array_equal(got, array)


def test_what_is_not_numbers_is_noted(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = spec.GRU("x", 3, 5)
    saved: dict[str, Any] = {
        name.removeprefix("x."): rng.standard_normal(shape)
        for name, shape in layer.tensors().items()
    }
    saved["words"] = np.array(["a", "b"])
    saved["config"] = np.array({"lr": 0.1}, dtype=object)
    saved["table"] = np.zeros(2, [("a", "f4"), ("b", "f4")])
    np.savez(tmp_path / "a.npz", **saved)
    report = "\n".join(read(tmp_path / "a.npz").report)
    for name in ("words", "config", "table"):
        assert f"'{name}' (array that is not read)" in report
    saved["weight_hh_l0"] = saved["config"]
    np.savez(tmp_path / "a.npz", **saved)
    with pytest.raises(ConvertError, match=r"'weight_hh_l0' is an array of"):
        read(tmp_path / "a.npz")


def test_headers_of_python_2(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    data = member(array)
    assert b"(2, 3), }  " in data
    old = data.replace(b"(2, 3), }  ", b"(2L, 3L), }")
    found: Any = read_npz(str(zipped(tmp_path / "a.npz", {"x.npy": old})))
    np.testing.assert_array_equal(found["x"], array)


def changed(old: bytes, new: bytes) -> bytes:
    """The array of test_arrays that is 3 by 4, its header changed and as long as before."""
    data = member(ARRAYS["float64"])
    assert data.count(old) == 1
    padding = len(new) - len(old)
    data = data.replace(old, new)
    return data.replace(b" " * padding + b"\n", b"\n", 1) if padding > 0 else data


REFUSED: list[tuple[str, dict[str, bytes], str]] = [
    ("more bytes than the header says", {"x.npy": changed(b"(3, 4)", b"(3, 3)")},
     r"array 'x\.npy' of shape \(3, 3\) and dtype float64 has 96 bytes; expected 72; the file is "),
    ("fewer bytes than the header says", {"x.npy": changed(b"(3, 4)", b"(9, 9)")},
     r"array 'x\.npy' of shape \(9, 9\) and dtype float64 has 96 bytes; expected 648; "),
    ("a huge dimension", {"x.npy": changed(b"(3, 4)", b"(9999999999999, 4)")},
     "of shape .* has 96 bytes; expected 319999999999968; "),
    ("a huge dimension of nothing", {"x.npy": changed(b"(3, 4)", b"(0, 9999999999999999999)")},
     "of shape .* has 96 bytes; expected 0; "),
    ("a negative dimension", {"x.npy": changed(b"(3, 4)", b"(3,-4)")},
     r"the header of array 'x\.npy' is malformed: "),
    ("an expression", {"x.npy": changed(b"(3, 4)", b"(3*4,)")}, "is malformed: "),
    ("an unknown dtype", {"x.npy": changed(b"'<f8'", b"'<f7'")},
     r"array 'x\.npy': data type '<f7' not understood; the file is"),
    ("a cut header", {"x.npy": member(ARRAYS["float64"])[:40]}, "is malformed: "),
    ("no header", {"x.npy": b"\x93NUMPY\x01\x00"}, "is malformed: "),
    ("another version", {"x.npy": b"\x93NUMPY\x09" + member(ARRAYS["bool"])[7:]},
     r"member 'x\.npy' is no array; expected a file that numpy\.savez wrote"),
    ("no array", {"x.npy": b"hello"}, r"member 'x\.npy' is no array"),
    ("no array beside one", {"x.npy": member(ARRAYS["bool"]), "y.txt": b"hello"},
     r"member 'y\.txt' is no array"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("members", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    path = zipped(tmp_path / "a.npz", members)
    with pytest.raises(ConvertError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_dimension_that_numpy_cannot_count(tmp_path: Path) -> None:
    data = changed(b"(3, 4)", b"(0, 9999999999999999999)")[:-96]
    with pytest.raises(ConvertError, match=r"'x\.npy' of shape \(0, 9999999999999999999\): "):
        read(zipped(tmp_path / "a.npz", {"x.npy": data}))


def test_encrypted_and_oddly_packed_members(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.npz", {"x.npy": member(ARRAYS["float64"])}).read_bytes()
    at = whole.index(b"PK\x01\x02")
    for offset, value, message in ((8, 1, "method 0"), (10, 12, "method 12")):
        odd = bytearray(whole)
        odd[at + offset] = value
        path = tmp_path / "b.npz"
        path.write_bytes(odd)
        with pytest.raises(ConvertError, match=f"(is|compressed or) encrypted|{message}"):
            read(path)


def test_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(2_000_000))
    size = path.stat().st_size
    with pytest.raises(ConvertError, match=rf"its {size} bytes unpack to 16000128, far more than"):
        read(path)
    # A directory that tells less than there is.
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02") + 24
    path.write_bytes(whole[:at] + (128).to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(ConvertError, match=r"'x\.npy' does not unpack to the 128 bytes that the "):
        read(path)


def test_one_member_told_many_times(tmp_path: Path) -> None:
    """Entries that share their bytes are paid for one by one."""
    data = member(np.zeros(1_000_000))
    whole = zipped(tmp_path / "a.npz", {"x.npy": data}).read_bytes()
    at, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    entry = whole[at:end]
    entries = b"".join(entry.replace(b"x.npy", b"%05d" % n) for n in range(100))
    tail = bytearray(whole[end:])
    tail[8:12] = (100).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    path = tmp_path / "b.npz"
    path.write_bytes(whole[:at] + entries + tail)
    with pytest.raises(ConvertError, match="unpack to 800012800, far more than weights do"):
        read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_found(tmp_path: Path, save: Callable[..., None], rng: Any) -> None:
    """What a changed byte makes is the same arrays, or is refused; names have no checksum."""
    arrays = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(3)}
    path = tmp_path / "a.npz"
    save(path, **arrays)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            found: Any = read_npz(str(path))
        except ConvertError:
            continue
        for got, array in zip(found.values(), arrays.values(), strict=True):
            np.testing.assert_array_equal(got, array)
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ConvertError):
            read_npz(str(path))
