"""Bounds of what a file may ask for: wide enough for large graphs, and never more than promised.

Memory is at most twice the file and 16 MB; time a second, and another for each 500 MB.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain.lower import lowered
from models import ChainFile, build, recurrent
from sealing import ZEROS, seal
from work import MOST_CALLS, counted_calls

import fastlstm
from fastlstm import FormatError, Model, document, format
from fastlstm.spec import Graph, Input, MatMul, check

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MEGABYTE = 10**6


def raw(header: str | bytes, data: bytes = b"") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + data


def entry(name: str, begin: int, end: int, shape: Any = None, dtype: str = "F32") -> str:
    shape = [(end - begin) // 4] if shape is None else shape
    value = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return f"{json.dumps(name, ensure_ascii=False)}:{json.dumps(value, separators=(',', ':'))}"


def sealed(text: str, *entries: str, data: bytes = b"") -> bytes:
    metadata = json.dumps({"fastlstm": text}, separators=(",", ":"))
    return seal(raw(f'{{"__metadata__":{",".join((metadata, *entries))}}}', data))


def of(content: str, **fields: Any) -> str:
    start = {"sha256": ZEROS.decode(), "version": 2, "content": content}
    return json.dumps(start | fields, separators=(",", ":"))


def state(*entries: str, data: bytes = b"") -> bytes:
    return sealed(of("state", metadata={}), *entries, data=data)


def vocabulary(text: str) -> bytes:
    """A model of one layer, with any text for its list of words."""
    graph = lowered((spec.Activation("a", "tanh", 2),)).to_dict()
    whole = of("model", graph=graph, source={}, vocabulary="@")
    return sealed(whole.replace('"@"', text))


# Wide enough.


def test_a_model_of_4000_layers(tmp_path: Path) -> None:
    layers: list[spec.Layer] = []
    for n in range(2000):
        layers += [spec.Linear(f"block.{n}.linear", 2, 2), spec.Activation(f"f{n}", "tanh", 2)]
    tensors = {n: np.zeros(s, "f4") for layer in layers for n, s in layer.tensors().items()}
    file = ChainFile(tuple(layers), tensors)
    format.write_model(tmp_path / "m", file)
    assert format.read_model(tmp_path / "m").graph == file.graph


def test_16384_tensors_of_long_names_and_8_dimensions(tmp_path: Path) -> None:
    arrays = {
        f"{n:05}" + "n" * 500: np.full((1,) * (n % 9) if n % 9 else (2,), n, np.float32)
        for n in range(16384)
    }
    format.write_state(tmp_path / "s", arrays, {})
    back, _ = format.read_state(tmp_path / "s")
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert all(back[name].shape == arrays[name].shape for name in arrays)
    for name, shape in (("n" * 512, (1,)), ("é" * 85, (1,)), ("n", (1,) * 8)):
        format.write_state(tmp_path / "s", {name: np.zeros(shape)}, {})
        assert format.read_state(tmp_path / "s")[0][name].shape == shape
    for name, shape in (("n" * 513, (1,)), ("n", (1,) * 9)):
        with pytest.raises(ValueError, match=r"512 bytes|8 dimensions"):
            format.write_state(tmp_path / "s", {name: np.zeros(shape)}, {})


def test_a_vocabulary_of_a_quarter_of_a_million_words(tmp_path: Path) -> None:
    words = tuple(f"wörd{n}" if n % 9 == 0 else f"word{n}" for n in range(250_000))
    layers = (spec.Embedding("e", len(words), 16), spec.Linear("n", 16, 2))
    tensors = {n: np.zeros(s, "f4") for layer in layers for n, s in layer.tensors().items()}
    format.write_model(tmp_path / "m", ChainFile(layers, tensors, None, words))
    assert format.read_model(tmp_path / "m").vocabulary == words


# Memory.


def many(name: str, count: int = 16384, shape: list[int] | None = None) -> list[str]:
    return [entry(f"{n:05}{name}", 4 * n, 4 * n + 4, shape or [1]) for n in range(count)]


HUGE = 2**24 - 2000  # nearly all that a header may have
FILES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "names": lambda: ("read_state", state(*many("n" * 500), data=bytes(65536))),
    "wide names": lambda: ("read_tensors", raw(
        "{" + ",".join(many("n" * 495 + "😀")) + "}", bytes(65536))),
    "short names": lambda: ("read_state", state(*many(""), data=bytes(65536))),
    "short foreign names": lambda: ("read_tensors", raw(
        "{" + ",".join(many("", 16384, [1] * 8)) + "}", bytes(65536))),
    "white space": lambda: ("read_state", raw(
        '{"__metadata__":{"fastlstm":"' + " " * HUGE + '"}}')),
    "quotes": lambda: ("read_state", raw(
        '{"__metadata__":{"fastlstm":"' + r"\"" * (HUGE // 2) + '"}}')),
    "backslashes": lambda: ("read_state", raw(
        '{"__metadata__":{"fastlstm":"' + r"\\" * (HUGE // 2) + '"}}')),
    "one word": lambda: ("read_model", vocabulary('["' + "x" * HUGE + '"]')),
    "one wide word": lambda: ("read_model", vocabulary(r'["\ud83d\ude00' + "x" * HUGE + '"]')),
    "wide words": lambda: ("read_model", vocabulary(
        "[" + ",".join([r'"\ud83d\ude00' + "x" * 4000 + '"'] * (HUGE // 4030)) + "]")),
    "words": lambda: ("read_model", vocabulary(
        "[" + ",".join(f'"{n:x}"' for n in range(HUGE // 11)) + "]")),
    "keys": lambda: ("read_model", vocabulary(
        "{" + ",".join(f'"{n:x}":0' for n in range(HUGE // 13)) + "}")),
    "numbers": lambda: ("read_model", vocabulary("[" + "999," * (HUGE // 4) + "1]")),
    "lists": lambda: ("read_model", vocabulary("[" + "[]," * (HUGE // 3) + "1]")),
    "mappings": lambda: ("read_model", vocabulary(
        "[" + ",".join([r'{"a":0}'] * (HUGE // 12)) + "]")),
    "a few keys": lambda: ("read_model", vocabulary(
        "{" + ",".join(f'"{n:x}":0' for n in range(25_000)) + "}")),
    "a few words": lambda: ("read_model", vocabulary(
        "[" + ",".join(f'"{n:x}"' for n in range(100_000)) + "]")),
    "bfloat16": lambda: ("read_tensors", raw(
        "{" + entry("w", 0, 2**25, [2**24], "BF16") + "}", bytes(2**25))),
    "bool": lambda: ("read_tensors", raw(
        "{" + entry("w", 0, 2**25, [2**25], "BOOL") + "}", b"\2" * 2**25)),
    "float64": lambda: ("read_tensors", raw(
        "{" + entry("w", 0, 2**25, [2**22], "F64") + "}", bytes(2**25))),
}  # fmt: skip
LOADING = {"names", "short names", "short foreign names", "bfloat16", "bool", "float64"}


@pytest.fixture(params=FILES, scope="module")
def given(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    """A name of FILES, what reads the file, and where it is."""
    reader, data = FILES[request.param]()
    path = tmp_path_factory.mktemp("bounds") / "given"
    path.write_bytes(data)
    return request.param, reader, path


@LINUX
def test_reading_takes_twice_the_file_and_16_mb(
    given: tuple[str, str, Path], peak_of: Callable[[str, Path], tuple[int, str]]
) -> None:
    name, reader, path = given
    size, (peak, said) = path.stat().st_size, peak_of(reader, path)
    print(size / MEGABYTE, peak / MEGABYTE, said)
    assert peak < 2 * size + 16 * MEGABYTE
    assert said.startswith("loads" if name in LOADING else "refused")


# Time. That no text takes C long is seen above: who reads it there is stopped after a minute.


def test_reading_is_the_work_of_a_second(given: tuple[str, str, Path]) -> None:
    _, reader, path = given
    with counted_calls(MOST_CALLS), contextlib.suppress(FormatError):
        getattr(format, reader)(path)


def test_a_document_s_cost_is_not_underestimated() -> None:
    """Of objects that Python makes for a text; measured where their allocations are traced."""
    import tracemalloc

    for text in (
        "[" + ",".join(f'"{n:x}"' for n in range(20_000)) + "]",
        "{" + ",".join(f'"{n:x}":{n}' for n in range(12_000)) + "}",
        "[" + "[]," * 20_000 + "0]",
        "[" + "[0]," * 20_000 + "0]",
        "[" + "{}," * 12_000 + "0]",
        "[" + '{"a":1000},' * 12_000 + "0]",
        "[" + '{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0},' * 4_000 + "0]",
        "[" + "1234567890123," * 20_000 + "0]",
        "[" + "1.5," * 20_000 + "0]",
    ):
        tracemalloc.start()
        made = document.parse(text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del made
        with pytest.raises(ValueError, match="bytes of memory"):
            document.judge(text, int(peak / 1.05))
        document.judge(text, 6 * peak)  # nor wildly overestimated


# Work.


def test_a_step_may_not_take_more_work_than_anybody_waits_for(tmp_path: Path) -> None:
    """A few weights that are used at a million places: 8 kB ask for 2**31 multiply-adds."""
    layer = spec.FrameConv1d("c", 1, 1, 2048, width=2**20, padding_left=2047, bias=False)
    tensors = {n: np.zeros(s, "f4") for n, s in layer.tensors().items()}
    format.write_model(tmp_path / "m", ChainFile((layer,), tensors))
    assert format.read_model(tmp_path / "m").graph == lowered((layer,))
    assert layer.work >= 2**31
    huge = spec.FrameConv1d("c", 1, 1, 2**17, width=2**20, padding_left=2**17 - 1, bias=False)
    tensors = {n: np.zeros(s, "f4") for n, s in huge.tensors().items()}
    with pytest.raises(ValueError, match=r"a step would take \d+ multiply-adds; at most 68719"):
        format.write_model(tmp_path / "m", ChainFile((huge,), tensors))
    forged = sealed(
        of("model", graph=lowered((huge,)).to_dict(), source={}, vocabulary=None),
        entry("c.weight", 0, 2**19, [1, 1, 2**17]),
        data=bytes(2**19),
    )
    (tmp_path / "forged").write_bytes(forged)
    for mapped in (False, True):
        with pytest.raises(FormatError, match="multiply-adds; at most 68719476736"):
            fastlstm.load(tmp_path / "forged", mmap=mapped)


def test_a_kernel_may_not_see_more_than_there_is_memory_for(tmp_path: Path) -> None:
    """16 kB of weights that are seen at a million positions would take 32 GB to list."""
    layer = spec.FrameConv1d("c", 1, 1, 2**12, width=2**20, padding_left=2**12 - 1, bias=False)
    file = ChainFile((layer,), {"c.weight": np.ones((1, 1, 2**12), "f4")})
    format.write_model(tmp_path / "m", file)
    with pytest.raises(
        FormatError, match=r"'c/convolved' sees 4294967296 numbers .* at most 67108864"
    ):
        fastlstm.load(tmp_path / "m")


def test_the_work_of_layers() -> None:
    """At least the numbers of every matrix, as often as it is used."""
    linear = spec.Linear("n", 30, 40, bias=False)
    assert spec.work([linear]) == 1200 + 8 * 40
    assert spec.work([spec.Embedding("e", 10**6, 8)]) == 8
    assert spec.work([spec.OneHot("o", 10**6)]) == 0
    frame = spec.FrameConv1d("c", 3, 4, 5, width=105)
    assert spec.work([frame]) >= 3 * 4 * 5 * frame.out_width
    both = spec.Residual("r", (spec.GRU("g", 8, 8),))
    assert spec.work([both]) >= spec.work([spec.GRU("g", 8, 8)]) >= 2 * 3 * 64


def test_a_self_check_has_a_budget(rng: np.random.Generator, tmp_path: Path) -> None:
    """As many steps as before for small models; fewer, or none, where a step is much work."""
    small = build(recurrent("gru", 3, 4), rng)
    assert small.self_check is not None
    assert len(small.self_check[0]["input"]) == 8
    for count, most in ((1, 1), (2, 0)):
        names = ["x", *(f"m{n}" for n in range(count))]
        graph = Graph(
            (Input("x", (2**10, 2**10)),),
            tuple(MatMul(name)(read, read) for read, name in itertools.pairwise(names)),
            {"y": names[-1]},
        )
        assert format.check_steps(check(graph)) == most
    model = Model(format.ModelFile(graph, {}))
    assert model.self_check is None
    assert model.check() == 0
    model.save(tmp_path / "m")
    assert fastlstm.load(tmp_path / "m").self_check is None


def test_a_file_may_not_ask_for_more_checking(tmp_path: Path) -> None:
    layers = (
        spec.Embedding("e", 1, 2**20),
        spec.Activation("f", "gelu", 2**20),
        spec.Linear("n", 2**20, 1, bias=False),
    )
    most = format.check_steps(check(lowered(layers)))
    assert 100 < most < 1024
    tensors = {n: np.zeros(s, "f4") for layer in layers for n, s in layer.tensors().items()}
    for steps, fits in ((most, True), (most + 1, False)):
        pair = (np.zeros(steps, np.int64), np.zeros((steps, 1)))
        file = ChainFile(layers, tensors, pair)
        if fits:
            format.write_model(tmp_path / "m", file)
        else:
            with pytest.raises(ValueError, match=f"of 1 to {most} steps"):
                format.write_model(tmp_path / "m", file)
