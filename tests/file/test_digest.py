"""A changed bit is found: the digest of model, state and pool files, checked by whatever loads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import build, recurrent
from sealing import BEGIN, END, ZEROS, seal

import fastlstm
from fastlstm import FormatError, Model, format
from fastlstm.cli import main

Loads = Callable[[Path], Any]


@pytest.fixture
def model(rng: np.random.Generator) -> Model:
    return build((spec.OneHot("o", 2), recurrent("rnn_tanh", 2, 1)), rng)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    path = tmp_path / "changed"
    path.touch()

    def write(data: bytes) -> Path:
        # In place: a file that is emptied and written anew costs ext4 a flush of milliseconds.
        with open(path, "r+b") as file:
            file.write(data)
            file.truncate()
        return path

    return write


def saved(model: Model, folder: Path) -> dict[str, tuple[bytes, list[Loads]]]:
    """Every kind of file, and whatever loads it."""
    model.save(folder / "model")
    model.stream(2).save(folder / "state")
    pool = model.pool()
    pool.open()
    pool.save(folder / "pool")
    mapped: Loads = lambda path: fastlstm.load(path, mmap=True)  # noqa: E731
    loads: dict[str, list[Loads]] = {
        "model": [fastlstm.load, mapped],
        "state": [model.stream(2).load],
        "pool": [model.pool().load],
    }
    return {kind: ((folder / kind).read_bytes(), readers) for kind, readers in loads.items()}


@pytest.mark.parametrize("kind", ["model", "state", "pool"])
def test_every_bit_of_a_small_file(
    kind: str, model: Model, tmp_path: Path, write: Callable[[bytes], Path]
) -> None:
    """Of a model that is mapped, one bit of each byte: the digest is made by the same lines."""
    data, (first, *others) = saved(model, tmp_path)[kind]
    assert len(data) < 2000
    for load, step in ((first, 1), *((other, 9) for other in others)):
        load(write(data))
        for flip in range(0, 8 * len(data), step):
            changed = bytearray(data)
            changed[flip // 8] ^= 1 << flip % 8
            with pytest.raises(FormatError):
                load(write(bytes(changed)))


@pytest.mark.parametrize("mapped", [False, True])
def test_random_bits_of_a_large_file(
    mapped: bool, rng: np.random.Generator, tmp_path: Path, write: Callable[[bytes], Path]
) -> None:
    layers = (spec.Embedding("e", 5000, 32), recurrent("gru", 32, 40), spec.Linear("n", 40, 9))
    build(layers, rng).save(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    assert len(data) > 600_000
    for flip in rng.integers(0, 8 * len(data), 200).tolist():
        changed = bytearray(data)
        changed[flip // 8] ^= 1 << flip % 8
        with pytest.raises(FormatError):
            fastlstm.load(write(bytes(changed)), mmap=mapped)


def test_its_digits_are_those_of_the_file_with_zeros_in_their_place(
    model: Model, tmp_path: Path
) -> None:
    for kind, (data, _) in saved(model, tmp_path).items():
        blank = data[:BEGIN] + ZEROS + data[END:]
        assert data[BEGIN:END].decode() == hashlib.sha256(blank).hexdigest(), kind
        entry = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        document = json.loads(entry["fastlstm"])
        assert next(iter(document)) == "sha256"
        assert document["sha256"] == data[BEGIN:END].decode()


def test_without_the_check_a_number_may_change_and_nothing_else(
    model: Model, tmp_path: Path, write: Callable[[bytes], Path]
) -> None:
    data, _ = saved(model, tmp_path)["model"]
    end = 8 + int.from_bytes(data[:8], "little")
    for mapped in (False, True):
        loaded = fastlstm.load(write(data[:-1] + b"\1"), check=False, mmap=mapped)
        assert loaded.fingerprint != model.fingerprint
        for cut in (data[:-1], data + b"\0", data[: end - 1] + b"!" + data[end:]):
            with pytest.raises(FormatError):
                fastlstm.load(write(cut), check=False, mmap=mapped)


def test_the_fingerprint_stands_apart(
    model: Model, tmp_path: Path, write: Callable[[bytes], Path]
) -> None:
    """A file of the same model with another note is another file, and takes the same states."""
    model.stream().save(tmp_path / "state")
    file = model._file()
    renamed = dataclasses.replace(file, source={"from": "here"})
    format.write_model(tmp_path / "a", file)
    format.write_model(tmp_path / "b", renamed)
    assert (tmp_path / "a").read_bytes()[BEGIN:END] != (tmp_path / "b").read_bytes()[BEGIN:END]
    other = fastlstm.load(tmp_path / "b")
    assert other.fingerprint == model.fingerprint
    other.stream().load(tmp_path / "state")


def test_verify_tells_of_a_changed_bit(
    rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m"
    build(recurrent("gru", 3, 4), rng).save(path)
    assert main(["verify", str(path), "--steps", "20", "--json"]) == 3
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    capsys.readouterr()
    assert main(["verify", str(path), "--steps", "20", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "its SHA-256 is" in found["self_check"]
    assert not found["passed"]


def test_a_file_of_version_1_is_to_be_converted_again(
    model: Model, tmp_path: Path, write: Callable[[bytes], Path]
) -> None:
    """As fastlstm wrote them before they had a digest."""
    for kind, (data, readers) in saved(model, tmp_path).items():
        old = data.replace(b'{\\"sha256\\":\\"' + data[BEGIN:END] + b'\\",', b"{")
        old = old.replace(b'\\"version\\":2', b'\\"version\\":1')
        length = int.from_bytes(data[:8], "little") - (len(data) - len(old))
        old = length.to_bytes(8, "little") + old[8:]
        for load in readers:
            with pytest.raises(FormatError, match="version 1, this fastlstm reads 2; convert"):
                load(write(old))
        assert seal(old) == old, kind
