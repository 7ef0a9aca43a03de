"""A value of a wrong type or size anywhere in a file's JSON: it loads right, or raises FormatError.

Digests are made anew, so that what is tested is the judgement of the values and not the digest.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build, every_kind, input_for
from sealing import ZEROS, seal

import fastlstm
from fastlstm import FormatError, Model

# JSON texts, so that they may be what Python's writer does not write.
VALUES = (
    *("[]", "{}", "[1]", '"x"', "1", "-1", "1.5", "1e400", "-1e400", "null", "true", "false"),
    *('"\\ud800"', "[" * 9 + "]" * 9, "[" * 99 + "]" * 99, '""', "0", "2147483648", "1e-400"),
    *("1" * 30, "NaN", "Infinity", '[["tanh"]]', '{"kind":"lstm"}', "-0.0", '"\\u0000"', "1E2"),
)
PLACE = "\ue000"  # a text that no model holds


def places(value: Any, replace: Callable[[Any], Any] = lambda v: v) -> Iterator[Any]:
    """The document once for each value in it, with PLACE there."""
    yield replace(PLACE)
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], lambda v, key=key: replace(value | {key: v}))
    if isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], lambda v, i=i: replace([*value[:i], v, *value[i + 1 :]]))


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header without metadata, the document, and the tensors' bytes of a file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    document = json.loads(header.pop("__metadata__")["fastlstm"])
    return header, document | {"sha256": ZEROS.decode()}, data[end:]


def join(header: str, document: str, data: bytes) -> bytes:
    entry = json.dumps({"fastlstm": document}, separators=(",", ":"))
    text = f'{{"__metadata__":{entry},{header[1:]}'.encode()
    return seal(len(text).to_bytes(8, "little") + text + data)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def changed(data: bytes) -> Iterator[tuple[str, bytes]]:
    header, document, tensors = parts(data)
    text = compact(header)
    for variant in places(document):
        for value in VALUES:
            new = compact(variant).replace(json.dumps(PLACE), value)
            yield new, join(text, new, tensors)
    text = compact(document)
    for variant in places(header):
        for value in VALUES:
            new = compact(variant).replace(json.dumps(PLACE), value)
            yield new, join(new if new[:1] == "{" else "{}", text, tensors)


def save(model: Model, kind: str, path: Path) -> Callable[[Path], Any]:
    if kind == "state":
        model.stream().save(path)
        return model.stream().load
    pool = model.pool()
    pool.open()
    pool.save(path)
    return model.pool().load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "changed").touch()
    return tmp_path / "changed"


def put(path: Path, data: bytes) -> Path:
    with open(path, "r+b") as file:  # in place: a flush of ext4 takes milliseconds
        file.write(data)
        file.truncate()
    return path


@pytest.mark.parametrize("kind", every_kind(1))
def test_in_a_model(kind: str, rng: np.random.Generator, path: Path, tmp_path: Path) -> None:
    model = build(every_kind(1)[kind], rng)
    model.save(tmp_path / "m")
    good = (tmp_path / "m").read_bytes()
    header, document, tensors = parts(good)
    assert fastlstm.load(put(path, join(compact(header), compact(document), tensors)))
    loaded = 0
    for text, data in changed(good):
        try:
            # Without the self-check: of a model whose options are others, its output is another.
            other = fastlstm.load(put(path, data), check=False)
        except FormatError:
            continue
        loaded += 1
        # What it holds is told, runs, and can be saved again.
        repr(other)
        other(input_for(other, rng, other.delay + 2))
        other.save(tmp_path / "again")
        again = fastlstm.load(tmp_path / "again", check=False)
        assert again.layers == other.layers, text
        assert again.source == other.source, text
        if other.layers == model.layers:
            assert again.fingerprint == model.fingerprint, text
    assert loaded > 0  # another note on the source, at least


@pytest.mark.parametrize("kind", ["state", "pool"])
def test_in_a_state(kind: str, rng: np.random.Generator, path: Path, tmp_path: Path) -> None:
    model = build(every_kind(1)["delayed"], rng)
    load = save(model, kind, tmp_path / "s")
    good = (tmp_path / "s").read_bytes()
    header, document, tensors = parts(good)
    load(put(path, join(compact(header), compact(document), tensors)))
    for _, data in changed(good):
        # A stream refuses a sound state of other arrays in the words of an assignment.
        with contextlib.suppress(
            FormatError, *([ValueError, TypeError] if kind == "state" else [])
        ):
            load(put(path, data))


def test_a_list_where_a_number_is_expected(
    rng: np.random.Generator, path: Path, tmp_path: Path
) -> None:
    """The case that showed the fault."""
    build(every_kind(1)["causal"], rng).save(tmp_path / "m")
    build(every_kind(1)["clipped"], rng).save(tmp_path / "m")
    header, document, tensors = parts((tmp_path / "m").read_bytes())
    for field in ("clip", "cell_clip", "activations", "hidden_size", "bias", "name"):
        wrong = json.loads(compact(document))
        wrong["layers"][0][field] = [1]
        with pytest.raises(FormatError, match=field if field != "activations" else "strings"):
            fastlstm.load(put(path, join(compact(header), compact(wrong), tensors)))
    assert os.path.getsize(path)
