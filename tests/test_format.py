"""The file: what is written comes back, and whatever else is given as a file loads or raises."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain.lower import lowered
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ChainFile
from safetensors.numpy import load, save
from sealing import BEGIN, END, ZEROS, seal
from work import MOST_CALLS, counted_calls

from fastlstm import format
from fastlstm.format import ModelFile
from fastlstm.spec import Graph

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def phrase_only(value: object) -> str:
    """A test is named after the message it expects, not after the bytes it reads."""
    return value if isinstance(value, str) else "-"


def raw(header: bytes | str, data: bytes = b"") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + data


def entry(name: str, begin: int, end: int, shape: object = None, dtype: str = "F32") -> str:
    shape = [(end - begin) // 4] if shape is None else shape
    return (
        json.dumps(name)
        + ":"
        + json.dumps(
            {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}, separators=(",", ":")
        )
    )


def container(text: str, *entries: str, data: bytes = b"") -> bytes:
    """One of our files with any text for its metadata entry, and any tensors."""
    metadata = '"__metadata__":' + compact({"fastlstm": text})
    return seal(raw("{" + ",".join((metadata, *entries)) + "}", data))


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


TANH = {"kind": "activation", "name": "a", "function": "tanh"}
ONE_HOT = {"kind": "one_hot", "name": "t", "num_classes": 2}
LINEAR = {"kind": "linear", "name": "n", "in_features": 2, "out_features": 1, "bias": False}
WEIGHT = entry("n.weight", 0, 8, [1, 2])


FEATURES = {"name": "input", "shape": [2], "tokens": 0, "held": False}
TOKENS = {"name": "input", "shape": [], "tokens": 2, "held": False}


def graph(*nodes: dict[str, Any], **changes: object) -> dict[str, object]:
    """A graph of nodes that each read the one before, with some of its keys changed."""
    names = ["input", *(str(node["name"]) for node in nodes)]
    fields: dict[str, object] = {
        "inputs": [TOKENS if nodes[0]["kind"] == "one_hot" else FEATURES],
        "nodes": [{"reads": [name]} | node for node, name in zip(nodes, names, strict=False)],
        "outputs": [["output", names[-1]]],
    }
    return {k: v for k, v in (fields | changes).items() if v is not ...}


def document(**changes: object) -> str:
    """The metadata entry of a model of one activation, with some of its keys changed."""
    fields = {"sha256": ZEROS.decode(), "version": 2, "content": "model"}
    fields |= {"vocabulary": None, "source": {}, "graph": graph(TANH)}
    return compact({k: v for k, v in (fields | changes).items() if v is not ...})


def state(*entries: str, data: bytes = b"", **changes: object) -> bytes:
    fields: dict[str, object] = {"sha256": ZEROS.decode(), "version": 2, "content": "state"}
    return container(compact(fields | {"metadata": {}} | changes), *entries, data=data)


def tensors_for(
    layers: tuple[spec.Layer, ...], dtype: object = np.float32, seed: int = 0
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {name: shape for layer in layers for name, shape in layer.tensors().items()}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


CHECK = (np.array([0, 2], np.int64), np.array([[0.5], [-1.0]]))


def token_model(**changes: Any) -> ChainFile:
    layers = (spec.Embedding("e", 3, 2), spec.GRU("g", 2, 2), spec.Linear("out", 2, 1))
    parts: dict[str, Any] = {
        "layers": layers,
        "tensors": tensors_for(layers),
        "self_check": CHECK,
        "vocabulary": ("a", "é", '"\\\n'),
        "source": {"file": "checkpoint.pt", "note": "ünï"},
    }
    return ChainFile(**(parts | changes))


def float_model(dtype: object = np.float32, **changes: Any) -> ChainFile:
    layers = (spec.LSTM("l", 3, 2), spec.Activation("a", "tanh", 2))
    parts: dict[str, Any] = {
        "layers": layers,
        "tensors": tensors_for(layers, dtype),
        "self_check": (np.ones((2, 3), dtype), np.zeros((2, 2))),
    }
    return ChainFile(**(parts | changes))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_same_model(a: ModelFile, b: ModelFile) -> None:
    assert (a.graph, a.vocabulary, a.source) == (b.graph, b.vocabulary, b.source)
    assert a.tensors.keys() == b.tensors.keys()
    assert all(same(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert (a.self_check is None) == (b.self_check is None)
    if a.self_check and b.self_check:
        for x, y in zip(a.self_check, b.self_check, strict=True):
            assert x.keys() == y.keys()
            assert all(same(x[name], y[name]) for name in x)


def map_model(path: Path) -> ModelFile:
    return format.read_model(path, mapped=True)


MODES = pytest.mark.parametrize("reader", [format.read_model, map_model], ids=["read", "mapped"])


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    """Read bytes that were put in a file."""
    path = tmp_path / "given.safetensors"
    path.touch()

    def read(data: bytes, reader: Callable[[Path], Any] = format.read_model) -> Any:
        # In place: a file that is emptied and written anew costs ext4 a flush of milliseconds.
        with open(path, "r+b") as file:
            file.write(data)
            file.truncate()
        return reader(path)

    return read


# What is written comes back.


@st.composite
def models(draw: st.DrawFn) -> ChainFile:
    sizes = st.integers(1, 4)
    first = draw(sizes)
    layers: list[spec.Layer] = []
    if draw(st.booleans()):
        layers.append(spec.Embedding("first", draw(sizes), first))
    for index in range(draw(st.integers(1, 3))):
        name, size = f"layer.{index}", layers[-1].output_size if layers else first
        kind = draw(st.sampled_from(["linear", "activation", "lstm", "gru", "rnn"]))
        stack = (size, draw(sizes), draw(st.integers(1, 2)), draw(st.booleans()))
        if kind == "linear":
            layers.append(spec.Linear(name, size, draw(sizes), draw(st.booleans())))
        elif kind == "activation":
            layers.append(spec.Activation(name, draw(st.sampled_from(spec.ACTIVATIONS)), size))
        elif kind == "lstm":
            projection = draw(st.integers(0, stack[1] - 1))
            layers.append(spec.LSTM(name, *stack, draw(st.booleans()), projection))
        else:
            recurrent = {"gru": spec.GRU, "rnn": spec.RNN}[kind]
            layers.append(recurrent(name, *stack, draw(st.booleans())))
    chain = tuple(layers)
    tensors = tensors_for(chain, draw(st.sampled_from([np.float32, np.float64])))
    dtype = next((array.dtype for array in tensors.values()), np.dtype(np.float32))
    steps, check, vocabulary = draw(st.integers(1, 3)), None, None
    if draw(st.booleans()):
        tokens = np.zeros(steps, np.int64)
        features = np.ones((steps, chain[0].input_size), dtype)
        output = np.full((steps, chain[-1].output_size), np.nan)
        check = (tokens if chain[0].takes_tokens else features, output)
    if chain[0].takes_tokens and draw(st.booleans()):
        count = chain[0].input_size
        words = st.lists(st.text(max_size=5), min_size=count, max_size=count, unique=True)
        vocabulary = tuple(draw(words))
    source = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
    return ChainFile(chain, tensors, check, vocabulary, source)


@given(model=models(), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_model_comes_back_and_its_order_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, model: ChainFile, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    format.write_model(path, model)
    assert_same_model(format.read_model(path), model)
    written = path.read_bytes()
    shuffled = dict(data.draw(st.permutations(list(model.tensors.items()))))
    source = dict(reversed(model.source.items()))
    again = ModelFile(model.graph, shuffled, model.self_check, model.vocabulary, source)
    format.write_model(str(path), again)
    assert path.read_bytes() == written
    assert format.fingerprint(model.graph, shuffled) == format.fingerprint(
        model.graph, model.tensors
    )


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = ChainFile(
        (spec.OneHot("t", 2), spec.Linear("n", 2, 1, bias=False)),
        {"n.weight": np.array([[1, -2]], np.float32)},
        (np.array([1], np.int64), np.array([[-2.0]])),
        ("a", "é"),
        {"file": "x.pt"},
    )
    text = (
        r"{\"sha256\":\"" + ZEROS.decode() + r"\",\"content\":\"model\",\"graph\":{"
        r"\"inputs\":[{\"held\":false,\"name\":\"input\",\"shape\":[],\"tokens\":2}],\"nodes\":["
        r"{\"kind\":\"one_hot\",\"name\":\"t\",\"num_classes\":2,\"reads\":[\"input\"]},"
        r"{\"bias\":false,\"in_features\":2,\"kind\":\"linear\",\"name\":\"n\",\"out_features\":1,"
        r"\"reads\":[\"t\"]}],\"outputs\":[[\"output\",\"n\"]]},\"source\":{\"file\":\"x.pt\"},"
        r"\"version\":2,\"vocabulary\":[\"a\",\"\\u00e9\"]}"
    )
    header = (
        '{"__metadata__":{"fastlstm":"' + text + '"},'
        '"self_check.input.input":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},'
        '"self_check.output.output":{"dtype":"F64","shape":[1,1],"data_offsets":[8,16]},'
        '"n.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[16,24]}}'
    )
    header += " " * (-(8 + len(header)) % 64)
    data = bytes.fromhex("0100000000000000" + "00000000000000c0" + "0000803f" + "000000c0")
    format.write_model(path, model)
    assert len(raw(header)) % 64 == 0
    assert path.read_bytes() == seal(raw(header, data))
    assert_same_model(format.read_model(path), model)


def test_any_safetensors_reader_reads_a_model(tmp_path: Path) -> None:
    model = float_model()
    format.write_model(tmp_path / "m", model)
    arrays = load((tmp_path / "m").read_bytes())
    checks = {"self_check.input.input", "self_check.output.output"}
    assert arrays.keys() == model.tensors.keys() | checks
    assert all(same(arrays[name], model.tensors[name]) for name in model.tensors)


def test_arrays_of_any_layout_and_byte_order_are_the_same_model(tmp_path: Path) -> None:
    model = float_model()
    odd = {
        name: np.asfortranarray(array.astype(">f4") if index % 2 else array)
        for index, (name, array) in enumerate(model.tensors.items())
    }
    format.write_model(tmp_path / "a", model)
    format.write_model(tmp_path / "b", float_model(tensors=odd))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert format.fingerprint(model.graph, odd) == format.fingerprint(model.graph, model.tensors)


def test_read_arrays_are_native_contiguous_and_aligned(tmp_path: Path) -> None:
    for dtype in (np.float32, np.float64):
        format.write_model(tmp_path / "m", float_model(dtype))
        model = format.read_model(tmp_path / "m")
        assert list(model.tensors) == list(float_model().tensors)
        for array in model.tensors.values():
            assert array.flags.c_contiguous
            assert not array.flags.writeable
            assert array.flags.aligned
            assert array.dtype == dtype


def test_infinite_and_nan_weights_are_kept(tmp_path: Path) -> None:
    model = float_model()
    model.tensors["l.bias_ih_l0"][:3] = np.nan, np.inf, -0.0
    format.write_model(tmp_path / "m", model)
    assert_same_model(format.read_model(tmp_path / "m"), model)


def test_a_state_comes_back(tmp_path: Path) -> None:
    arrays = {
        "l.h": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        "l.c": np.array([[np.nan, -0.0]]),
        "steps": np.array(7, np.int64),
    }
    metadata = {"fingerprint": "f" * 64, "note": "é\n"}
    for some in (arrays, {}):
        format.write_state(tmp_path / "s", some, metadata)
        written = (tmp_path / "s").read_bytes()
        back, notes = format.read_state(tmp_path / "s")
        assert notes == metadata
        assert back.keys() == some.keys()
        assert all(same(back[name], some[name]) for name in some)
        format.write_state(
            tmp_path / "s", dict(reversed(some.items())), dict(reversed(metadata.items()))
        )
        assert (tmp_path / "s").read_bytes() == written


def test_the_fingerprint_knows_every_part() -> None:
    layers = lowered((spec.Linear("n", 2, 2, bias=False),))
    weight = np.arange(4, dtype=np.float32).reshape(2, 2)
    fingerprint = format.fingerprint(layers, {"n.weight": weight})
    text = (
        b'{"graph":{"inputs":[{"held":false,"name":"input","shape":[2],"tokens":0}],"nodes":'
        b'[{"bias":false,"in_features":2,"kind":"linear","name":"n","out_features":2,'
        b'"reads":["input"]}],"outputs":[["output","n"]]},'
        b'"tensors":[["n.weight","float32",[2,2]]]}'
    )
    assert fingerprint == hashlib.sha256(text + weight.tobytes()).hexdigest()
    others = [
        (lowered((spec.Linear("m", 2, 2, bias=False),)), {"n.weight": weight}),
        (Graph(layers.inputs, layers.nodes, {"y": "n"}), {"n.weight": weight}),
        (layers, {"m.weight": weight}),
        (layers, {"n.weight": weight.reshape(4, 1)}),
        (layers, {"n.weight": weight.view(np.int32)}),
        (layers, {"n.weight": weight.astype(np.float64)}),
        (layers, {"n.weight": -weight}),
        (layers, {"n.weight": weight[:1], "n.zz": weight[1:]}),
        (layers, {"n.weight": weight, "scalar": weight[0, 0].reshape(())}),
        (layers, {"n.weight": weight, "none": weight[:0]}),
        (layers, {}),
    ]
    seen = {fingerprint, *(format.fingerprint(*other) for other in others)}
    assert len(seen) == 1 + len(others)


# What is not a model is not written.


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"tensors": {}, "self_check": None}, "tensor 'e.weight' of shape .* is missing"),
        ({"self_check": (np.zeros(1, np.int64), np.zeros((1, 2)))}, "self-check"),
        ({"self_check": (np.zeros(1, np.int64), np.zeros((1, 1), np.float32))}, "self-check"),
        ({"self_check": (np.zeros(1, np.float32), np.zeros((1, 1)))}, "self-check"),
        ({"self_check": (np.zeros((1, 1), np.int64), np.zeros((1, 1)))}, "self-check"),
        ({"self_check": (np.zeros(1, np.int32), np.zeros((1, 1)))}, "int32"),
        ({"self_check": (np.zeros(1025, np.int64), np.zeros((1025, 1)))}, "1 to 1024 steps"),
        ({"self_check": (np.zeros(0, np.int64), np.zeros((0, 1)))}, "1 to 1024 steps"),
        ({"self_check": (np.zeros((), np.int64), np.zeros((1, 1)))}, "self-check"),
        ({"self_check": (np.array([3]), np.zeros((1, 1)))}, "tokens from 3 to 3; expected 0 to 2"),
        ({"self_check": (np.array([-1]), np.zeros((1, 1)))}, "tokens from -1"),
        ({"vocabulary": ("a", "b")}, "2 strings"),
        ({"vocabulary": ("a", "b", "a")}, "repeats one"),
        ({"vocabulary": ("a", "b", 3)}, "list of strings"),
        ({"vocabulary": ("a", "b", "\ud800")}, "half of a character"),
        ({"vocabulary": ("a", "\U0001f600", "\ud83d\ude00")}, "half of a character"),
        ({"source": {"a": "\udfff"}}, "half of a character"),
        ({"source": {"a": 1}}, "'source'"),
        ({"source": {1: "a"}}, "'source'"),
        ({"source": {"a": None}}, "'source'"),
        ({"source": {"a": "x" * 4097}}, "4096"),
        ({"source": {"a" * 4097: "x"}}, "4096"),
        ({"source": {str(n): "x" for n in range(65)}}, "at most 64"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(
    tmp_path: Path, changes: dict[str, Any], phrase: str
) -> None:
    with pytest.raises(ValueError, match=phrase) as caught:
        format.write_model(tmp_path / "m", token_model(**changes))
    assert not isinstance(caught.value, format.FormatError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "array", "phrase"),
    [
        ("out.weight", np.zeros((1, 3), np.float32), r"has shape \(1, 3\); the layers ask for"),
        ("out.weight", np.zeros((1, 2), np.float64), "all F32 or all F64"),
        ("out.weight", np.zeros((1, 2), np.int64), "all F32 or all F64"),
        ("out.weight", np.zeros((1, 2), np.float16), "float16; expected an array of float32"),
        ("out.weight", [[0.0, 0.0]], "list; expected an array"),
        ("other", np.zeros(1, np.float32), "'other' belongs to no layer"),
        ("self_check.input.x", np.zeros(1, np.int64), "the name is reserved"),
        ("self_check.output.output", np.zeros((2, 1)), "the name is reserved"),
    ],
)
def test_tensors_that_do_not_fit_are_not_written(
    tmp_path: Path, name: str, array: Any, phrase: str
) -> None:
    for check in (None, CHECK):
        model = token_model(tensors=token_model().tensors | {name: array}, self_check=check)
        with pytest.raises(ValueError, match=phrase):
            format.write_model(tmp_path / "m", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arrays", "metadata", "phrase"),
    [
        ({"a": np.zeros(0, np.float32)}, {}, r"shape \(0,\)"),
        ({"a": np.zeros((1,) * 9, np.float32)}, {}, "at most 8 dimensions"),
        ({"a": np.zeros(1, np.int8)}, {}, "int8"),
        ({"a" * 600: np.zeros(1)}, {}, "names of at most 512"),
        ({"__metadata__": np.zeros(1)}, {}, "twice"),
        ({"\ud800": np.zeros(1)}, {}, "half of a character"),
        ({"\ud83d\ude00": np.zeros(1)}, {}, "half of a character"),
        ({str(n): np.zeros(1) for n in range(16385)}, {}, "at most 16384 tensors"),
        ({}, {"a": 1}, "'metadata'"),
    ],
)
def test_a_state_that_does_not_fit_is_not_written(
    tmp_path: Path, arrays: dict[str, Any], metadata: Any, phrase: str
) -> None:
    with pytest.raises(ValueError, match=phrase):
        format.write_state(tmp_path / "s", arrays, metadata)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_too_large_for_a_header_is_not_written(tmp_path: Path) -> None:
    layers = (spec.OneHot("t", 200), spec.Linear("n", 200, 1, bias=False))
    words = tuple(f"{n}" * 40000 for n in range(200))
    model = ChainFile(layers, tensors_for(layers), None, words)
    with pytest.raises(ValueError, match="expected at most 16777216"):
        format.write_model(tmp_path / "m", model)
    assert not list(tmp_path.iterdir())


# A file appears whole or not at all.


@pytest.mark.parametrize("step", ["fsync", "fchmod", "replace"])
@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "m"
    format.write_model(path, float_model())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        format.write_model(path, token_model())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]


@LINUX
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    format.write_state(path, {"a": np.zeros(2)}, {})
    before = path.read_bytes()
    code = (
        "import resource, sys, numpy; from fastlstm import format\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: format.write_state(sys.argv[1], {'a': numpy.zeros(10000)}, {})\n"
        "except OSError as error: print(error)"
    )
    assert "File too large" in python(code, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s"]


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = str(Path(format.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, timeout=60
    ).stdout


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_open_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for umask, mode in ((0o027, 0o640), (0o022, 0o644)):
        old = os.umask(umask)
        try:
            format.write_state(path, {}, {})
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        path.unlink()
    format.write_state(path, {}, {})
    path.chmod(0o604)
    format.write_state(path, {"a": np.zeros(1)}, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert format.read_state(path)[0]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_a_symbolic_link_survives(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link", tmp_path / "folder" / "s"
    link.symlink_to(Path("folder") / "s")
    for arrays in ({}, {"a": np.zeros(1)}):
        format.write_state(link, arrays, {})
        assert link.is_symlink()
        assert not file.is_symlink()
        assert format.read_state(file)[0].keys() == arrays.keys()
    assert os.listdir(tmp_path / "folder") == ["s"]


def test_destinations_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        format.write_state(tmp_path / "missing" / "s", {}, {})
    with pytest.raises(IsADirectoryError):
        format.write_state(tmp_path, {}, {})
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(OSError, match="not a file"):
            format.write_state(tmp_path / "fifo", {}, {})
        assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
        (tmp_path / "fifo").unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("obeys_permissions")
def test_write_protection_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "s"
    format.write_state(path, {}, {})
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        format.write_state(path, {}, {})
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            format.write_state(tmp_path / "new", {}, {})
    finally:
        tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == ["s"]


# Files that are something else.


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        (b"PK\x03\x04" + bytes(100), "PyTorch checkpoint; convert it first: fastlstm.convert"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + bytes(99), "an old PyTorch checkpoint"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x08\x08\x12\x07pytorch\x1a\x051.4.1", "ONNX"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"\n<html><body></body></html>", "web page"),
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (bytes(8), "8 bytes"),
        (bytes(100), "header is 0 bytes long"),
        (b"just some text, long enough", "not safetensors"),
        (raw("[1]"), "starts with b'\\['"),
        (raw(b" {}"), "starts with b' '"),
        (raw(b"\xef\xbb\xbf{}"), "not safetensors"),
    ],
    ids=phrase_only,
)
def test_other_files_are_recognised(read: Callable[..., Any], data: bytes, phrase: str) -> None:
    for reader in (format.read_model, map_model, format.read_state, format.read_tensors):
        with pytest.raises(format.FormatError, match=r"given\.safetensors: .*" + phrase):
            read(data, reader)


def test_other_safetensors_are_recognised(read: Callable[..., Any], tmp_path: Path) -> None:
    array = {"a": np.zeros(1, np.float32)}
    for plain in (save(array), save(array, {"format": "pt"}), raw("{}")):
        for reader in (format.read_model, map_model, format.read_state):
            with pytest.raises(format.FormatError, match="ordinary safetensors file, not one of"):
                read(plain, reader)
    format.write_model(tmp_path / "m", float_model())
    with pytest.raises(format.FormatError, match=r"this is a model.*expected a stream's saved"):
        format.read_state(tmp_path / "m")
    format.write_state(tmp_path / "s", array, {})
    for reader in (format.read_model, map_model):
        with pytest.raises(format.FormatError, match=r"this is a stream's saved.*expected a model"):
            reader(tmp_path / "s")


@MODES
def test_what_is_not_a_regular_file_is_not_opened(
    tmp_path: Path, reader: Callable[[Any], Any]
) -> None:
    places: list[Path] = [tmp_path]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        places += [tmp_path / "fifo", Path("/dev/zero")]
    for place in places:
        with pytest.raises(format.FormatError, match="expected a regular file"):
            reader(place)
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "missing")
    with pytest.raises(format.FormatError, match="null"):
        reader("a\0b")


@pytest.mark.usefixtures("obeys_permissions")
def test_an_unreadable_file_is_an_oserror(tmp_path: Path) -> None:
    path = tmp_path / "s"
    format.write_state(path, {}, {})
    path.chmod(0)
    with pytest.raises(PermissionError):
        format.read_state(path)


# Headers that lie.

A, B = entry("a", 0, 4), entry("b", 4, 8)


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        # offsets
        (state(A, B, data=bytes(9)), "describes .* bytes, the file has"),
        (state(A, B, data=bytes(7)), "cut short"),
        (state(A, entry("b", 0, 4), data=bytes(4)), "overlap"),
        (state(A, entry("b", 0, 4), data=bytes(8)), "overlap"),
        (state(entry("a", 0, 8), entry("b", 4, 12), data=bytes(12)), "overlap"),
        (state(A, entry("b", 8, 12), data=bytes(12)), "gap"),
        (state(entry("a", 4, 8), data=bytes(8)), "gap"),
        (state(entry("a", 0, 4, [2]), data=bytes(4)), "spans bytes 0 to 4"),
        (state(entry("a", 0, 8, [1]), data=bytes(8)), "spans bytes 0 to 8"),
        (state(entry("a", 4, 0, [1]), data=bytes(4)), "spans bytes 4 to 0"),
        (state(entry("a", 4, 0, [0]), data=bytes(4)), "shape"),
        (state(entry("a", -4, 0, [1]), data=bytes(4)), "malformed"),
        (state(entry("a", 0, 2**64, [2**31 - 1] * 3), data=bytes(4)), "spans bytes"),
        (state(entry("a", 0, 0, [2**62, 2**62]), data=bytes(4)), "shape"),
        (state(entry("a", 0, 4, [10**25]), data=bytes(4)), "malformed"),
        # shapes
        (state(entry("a", 0, 4, [1] * 9), data=bytes(4)), "at most 8 dimensions"),
        (state(entry("a", 0, 4, [1] * 40), data=bytes(4)), "malformed"),
        (state(entry("a", 0, 0, [0])), r"shape \(0,\)"),
        (state(entry("a", 0, 4, [2**31]), data=bytes(4)), "each from 1 to 2147483647"),
        (state(entry("a", 0, 4, [-1]), data=bytes(4)), "malformed"),
        (state(entry("a", 0, 4, [True]), data=bytes(4)), "malformed"),
        (state(entry("a", 0, 4, [1.0]), data=bytes(4)), "malformed"),
        (state(entry("a", 0, 4, ["1"]), data=bytes(4)), "malformed"),
        (state(entry("a", 0, 4, [[1]]), data=bytes(4)), "malformed"),
        (state(entry("a", 0, 4, {}), data=bytes(4)), "malformed"),
        (state(A.replace("[1]", "[01]"), data=bytes(4)), "malformed"),
        (state(A.replace("[1]", "[1,]"), data=bytes(4)), "malformed"),
        (state(A.replace("[1]", "[NaN]"), data=bytes(4)), "malformed"),
        (state(A.replace("[1]", "[Infinity]"), data=bytes(4)), "malformed"),
        (state(A.replace("[1]", "[1e0]"), data=bytes(4)), "malformed"),
        # dtypes
        (state(entry("a", 0, 4, [1], "F8_E4M3"), data=bytes(4)), "'a' has dtype F8_E4M3"),
        (state(entry("a", 0, 4, [1], "I32"), data=bytes(4)), "'a' is I32; expected F32, F64, I64"),
        (state(entry("a", 0, 4, [1], "f32"), data=bytes(4)), "malformed"),
        # keys
        (state(A, A, data=bytes(4)), "holds 'a' twice"),
        (state(A, A.replace('"a"', r'"\u0061"'), data=bytes(4)), "holds 'a' twice"),
        (state(A.replace('"a"', r'"\u005f_metadata__"'), data=bytes(4)), "twice"),
        (state('"__metadata__":{}'), "'__metadata__' twice"),
        (state(A.replace('"dtype"', '"other"'), data=bytes(4)), "malformed"),
        (state(A.replace('"shape":[1]', '"dtype":"F32"'), data=bytes(4)), "lacks"),
        (state(A.replace('"shape":[1],', ""), data=bytes(4)), "malformed"),
        (state(A.replace('"shape"', '"other":1,"shape"'), data=bytes(4)), "malformed"),
        (state(A.replace('"a":', '"a"'), data=bytes(4)), "malformed"),
        (state(A + ",", data=bytes(4)), "malformed"),
        (state('"a":1'), "malformed"),
        (state('"a":null'), "malformed"),
        (raw("{,}"), "malformed"),
        (raw('{"a"}'), "malformed"),
        (raw("{} {}"), "malformed"),
        (raw("{}\0"), "malformed"),
        (raw("{", bytes(9)), "header is 1 bytes long"),
        (raw('{"\xff":{}}'.encode("latin-1")), "malformed"),
        (raw(("{" + A + "}").encode().replace(b'"a"', b'"\xff"'), bytes(4)), "not JSON"),
        (raw("{" + A.replace('"a"', r'"\q"') + "}", bytes(4)), "not JSON"),
        # metadata
        (raw('{"__metadata__":null}'), "malformed"),
        (raw('{"__metadata__":{"fastlstm":1}}'), "malformed"),
        (raw('{"__metadata__":{"fastlstm":{}}}'), "malformed"),
        (raw('{"__metadata__":{"fastlstm":"a","fastlstm":"b"}}'), "or more entries"),
        (raw('{"__metadata__":{"fastlstm":"a","more":"b"}}'), "or more entries"),
        (raw('{"__metadata__":{"fastlstm":"\\ud800"}}'), "more than ASCII"),
        (raw('{"__metadata__":{"fastlstm":"é"}}'), "more than ASCII"),
        (raw('{"__metadata__":{"fastlstm":"\\n"}}'), "more than ASCII"),
        (raw('{"__metadata__":{"more":"b","fastlstm":"a"}}'), "not at its place"),
        (raw('{"__metadata__": {"fastlstm": "a"}}'), "not at its place"),
        (raw('{"__metadata__":{"a":"\\"fastlstm\\":","b":"fastlstm"}}'), "ordinary safetensors"),
        (state(A.replace('"a"', r'"\ud800"'), data=bytes(4)), "half of a character"),
    ],
    ids=phrase_only,
)
def test_a_header_that_lies_is_refused(read: Callable[..., Any], data: bytes, phrase: str) -> None:
    with pytest.raises(format.FormatError, match=phrase):
        read(data, format.read_state)
    with pytest.raises(format.FormatError):
        read(data, map_model)


def test_white_space_and_order_of_tensors_do_not_matter(read: Callable[..., Any]) -> None:
    given = state(B, A, data=bytes(8))
    start, rest = given[8:-8].split(b',"b"')
    spaced = (b',"b"' + rest).replace(b",", b" ,\n").replace(b":", b"\t: ").replace(b"}", b" } ")
    back, _ = read(seal(raw(start + spaced, bytes(8))), format.read_state)
    assert back.keys() == {"a", "b"}
    for order in itertools.permutations(["dtype", "shape", "data_offsets"]):
        one = json.loads("{" + A + "}")["a"]
        back, _ = read(
            state(B, f'"a":{compact({key: one[key] for key in order})}', data=bytes(8)),
            format.read_state,
        )
        assert back.keys() == {"a", "b"}


def test_the_digest_has_one_place(read: Callable[..., Any]) -> None:
    good = state(A, data=bytes(4))
    assert read(good, format.read_state)[0].keys() == {"a"}
    text = compact({"version": 2, "content": "state", "metadata": {}, "sha256": ZEROS.decode()})
    elsewhere = container(text, A, data=bytes(4))
    for wrong in (elsewhere, good.replace(b'{"__metadata__":{', b'{"__metadata__": {')):
        length = (int.from_bytes(good[:8], "little") + len(wrong) - len(good)).to_bytes(8, "little")
        with pytest.raises(format.FormatError, match=r"is not at its place"):
            read(length + wrong[8:], format.read_state)
    for digits in (ZEROS, good[BEGIN:END].upper()):
        with pytest.raises(
            format.FormatError, match="it is damaged, or another program has changed it"
        ):
            read(good[:BEGIN] + digits + good[END:], format.read_state)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("é", "more than ASCII"),
        ("[]", "no version"),
        ("1", "no version"),
        ("NaN", "NaN is no finite number"),
        (document(version=...), "no version"),
        (document(version=True), "no version"),
        (document(version=1.0), "no version"),
        (document(version="1"), "no version"),
        (document(version=3), "version 3, this fastlstm reads 2; upgrade fastlstm"),
        (document(version=3, extra=[[[{}]]]), "upgrade fastlstm"),
        (document(version=0), "version 0"),
        (document(version=1), "version 1, this fastlstm reads 2; convert the checkpoint, or save"),
        (document(version=1, sha256=...), "version 1, .*convert the checkpoint, or save"),
        (document(version=10**39), "upgrade"),
        (document(version=10**40), "is no value"),
        (document(sha256=...), "missing or unknown keys 'sha256'"),
        (document(sha256=1), "digest is not at its place"),
        (document(content="weights"), "unknown content"),
        (document(content=["model"]), "unknown content"),
        (document(content=...), "unknown content"),
        (document(extra=1), "unknown keys 'extra'"),
        (document(metadata={}), "unknown keys 'metadata'"),
        (document(source=...), "missing or unknown keys 'source'"),
        (document().replace('"version":2', '"version":2,"version":2'), "key appears twice"),
        (document(layers=[TANH]), "unknown keys 'layers'"),
        (document(graph=...), "missing or unknown keys 'graph'"),
        (document(graph=None), "a graph is NoneType; expected a mapping"),
        (document(graph=[]), "a graph is list; expected a mapping"),
        (document(graph={}), "a graph: missing or unknown fields 'inputs', 'nodes', 'outputs'"),
        (document(graph=graph(TANH, nodes=...)), "unknown fields 'nodes'"),
        (document(graph=graph(TANH, more=[])), "unknown fields 'more'"),
        (document(graph=graph(TANH, nodes={})), "'nodes' of the graph is not a list"),
        (document(graph=graph(TANH, nodes=None)), "'nodes' of the graph is not a list"),
        (document(graph=graph(TANH, inputs={})), "'inputs' of the graph is not a list"),
        (document(graph=graph(TANH, outputs={})), "'outputs' of the graph is not a list"),
        (document(graph=graph(TANH, nodes=[])), "the graph has 0 nodes"),
        (document(graph=graph(TANH, inputs=[])), "the graph has 0 inputs"),
        (document(graph=graph(TANH, outputs=[])), "the graph has 0 outputs"),
        (document(graph=graph(TANH, nodes=[1])), "a node is int; expected a mapping"),
        (document(graph=graph(TANH, inputs=[1])), "an input is int; expected a mapping"),
        (document(graph=graph(TANH | {"kind": "conv"})), "layer kind 'conv' is unknown"),
        (document(graph=graph(TANH | {"more": 1})), "unknown fields 'more'"),
        (document(graph=graph(TANH | {"reads": "input"})), "a node reads 'input'; expected a list"),
        (document(graph=graph(TANH | {"reads": [1]})), r"a node reads \[1\]; expected a list"),
        (document(graph=graph(TANH | {"reads": ["b"]})), "'a' reads 'b', which nothing is called"),
        (document(graph=graph(TANH | {"reads": []})), "'a' .*reads 0 values"),
        (document(graph=graph(TANH, outputs=[["output", "b"]])), "'output' is 'b', which nothing"),
        (document(graph=graph(TANH, outputs=[["output", 1]])), r"an output is \['output', 1\]"),
        (document(graph=graph(LINEAR | {"out_features": 2.0})), "out_features is 2.0"),
        (document(graph=graph(LINEAR | {"out_features": True})), "out_features is True"),
        (document(graph=graph(LINEAR | {"in_features": float("nan")})), "NaN is no finite number"),
        (document(graph=graph(LINEAR | {"in_features": 3})), r"takes rows \(..., 3\).* given 2"),
        (document(graph=graph(TANH, inputs=[FEATURES | {"shape": 2}])), "shape is 2; expected a"),
        (document(graph=graph(TANH, inputs=[FEATURES | {"shape": [2.0]}])), r"shape is \[2.0\]"),
        (document(graph=graph(TANH, inputs=[FEATURES | {"held": 0}])), "held is 0; expected true"),
        (document(graph=graph(TANH, inputs=[FEATURES | {"tokens": 2}])), "is given tokens"),
        (document().replace('"shape":[2]', '"shape":[1e400]'), "1e400 is no finite number"),
        (document(graph=graph(TANH | {"function": []})), "function is"),
        (document(graph=graph(TANH, TANH)), "names must be unique"),
        (document(graph=graph(TANH, inputs=[FEATURES, FEATURES])), "names must be unique"),
        (document(graph=graph(LINEAR)), "tensor 'n.weight' of shape .* is missing"),
        (document(source=[]), "'source'"),
        (document(source={"a": float("inf")}), "Infinity is no finite number"),
        (document(vocabulary=["a", "b"]), "the input is not tokens"),
        (document(vocabulary=False), "the input is not tokens"),
        (document().replace("}", "}}", 1), "not JSON"),
    ],
)
@MODES
def test_a_graph_that_lies_is_refused(
    read: Callable[..., Any], text: str, phrase: str, reader: Callable[[Path], Any]
) -> None:
    assert read(container(document()), reader).graph == lowered((spec.Activation("a", "tanh", 2),))
    with pytest.raises(format.FormatError, match=phrase):
        read(container(text), reader)


def test_what_a_document_takes_is_counted_before_it_is_parsed(read: Callable[..., Any]) -> None:
    for bad in (
        "[" * 17 + "]" * 17,
        "[" + "[]," * 300_000 + "0]",
        "{" + '"a":0,' * 300_000 + '"b":0}',
    ):
        with pytest.raises(format.FormatError, match="nested more than 16 deep, has more than"):
            read(container(bad))
    for good in ("[" * 16 + "]" * 16, "[" + "[]," * 65535 + "0]", '["' + "[{" * 65536 + '"]'):
        with pytest.raises(format.FormatError, match="no version"):
            read(container(good))


@pytest.mark.parametrize(
    ("changes", "entries", "phrase"),
    [
        ({}, [entry("n.weight", 0, 8, [2, 1])], "has shape"),
        ({}, [entry("n.weight", 0, 8, [1], "I64")], "has shape"),
        ({"graph": graph(ONE_HOT, LINEAR | {"out_features": 2})}, [WEIGHT], "has shape"),
        ({}, [WEIGHT, entry("n.bias", 8, 12)], "'n.bias' belongs to no layer"),
        ({}, [WEIGHT, entry("self_check.input.input", 8, 12)], "self-check"),
        ({}, [WEIGHT, entry("self_check.output.output", 8, 16, [1, 1], "F64")], "self-check"),
        ({}, [WEIGHT, entry("self_check.input", 8, 12)], "'self_check.input' belongs to no layer"),
        ({"vocabulary": ["a"]}, [WEIGHT], "1 strings"),
        ({"vocabulary": ["a", "a"]}, [WEIGHT], "repeats one"),
        ({"vocabulary": ["a", 1]}, [WEIGHT], "list of strings"),
        ({"vocabulary": "ab"}, [WEIGHT], "list of strings"),
        ({"vocabulary": ["a", "\ud800"]}, [WEIGHT], "half of a character"),
    ],
)
@MODES
def test_tensors_that_do_not_fit_the_layers_are_refused(
    read: Callable[..., Any],
    changes: dict[str, Any],
    entries: list[str],
    phrase: str,
    reader: Callable[[Path], Any],
) -> None:
    start = {"graph": graph(ONE_HOT, LINEAR)}
    assert read(container(document(**start), WEIGHT, data=bytes(8)), reader).tensors
    end = max(json.loads("{" + e + "}").popitem()[1]["data_offsets"][1] for e in entries)
    with pytest.raises(format.FormatError, match=phrase):
        read(container(document(**(start | changes)), *entries, data=bytes(end)), reader)


@MODES
def test_a_newer_file_is_named_before_its_dtypes(
    read: Callable[..., Any], reader: Callable[[Path], Any]
) -> None:
    half = entry("n.weight", 0, 4, [1, 2], "I16")
    for version, phrase in ((2, "'n.weight' is I16; expected"), (3, "upgrade fastlstm")):
        text = document(version=version, graph=graph(ONE_HOT, LINEAR))
        with pytest.raises(format.FormatError, match=phrase):
            read(container(text, half, data=bytes(4)), reader)


@MODES
def test_weights_of_two_dtypes_or_of_integers_are_refused(
    read: Callable[..., Any], reader: Callable[[Path], Any]
) -> None:
    text = document(graph=graph(LINEAR | {"bias": True}))
    mixed = entry("n.bias", 8, 16, [1], "F64")
    with pytest.raises(format.FormatError, match=r"\['F32', 'F64'\]; expected all F32 or all F64"):
        read(container(text, WEIGHT, mixed, data=bytes(16)), reader)
    integers = entry("n.weight", 0, 16, [1, 2], "I64")
    with pytest.raises(format.FormatError, match=r"\['I64'\]; expected all F32 or all F64"):
        read(container(document(graph=graph(LINEAR)), integers, data=bytes(16)), reader)


@MODES
def test_tokens_of_a_self_check_must_be_known(
    read: Callable[..., Any], reader: Callable[[Path], Any]
) -> None:
    text = document(graph=graph(ONE_HOT, LINEAR))
    checks = (
        entry("self_check.input.input", 8, 16, [1], "I64"),
        entry("self_check.output.output", 16, 24, [1, 1], "F64"),
    )
    for token, good in ((0, True), (1, True), (2, False), (-1, False), (-(2**63), False)):
        data = bytes(8) + token.to_bytes(8, "little", signed=True) + bytes(8)
        if good:
            assert read(container(text, WEIGHT, *checks, data=data), reader).self_check
        else:
            with pytest.raises(format.FormatError, match=f"tokens from {token} to"):
                read(container(text, WEIGHT, *checks, data=data), reader)


@pytest.mark.skipif(os.name != "posix", reason="replaces an open file")
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    # The header is longer than a buffer of Python's, which would hide that it changes.
    notes = dict.fromkeys("xyz", "x" * 4000)
    given = state(entry("a", 0, 16384), data=bytes(16384), metadata=notes)
    judge = format._check_notes
    for changed in (
        given.replace(b'"a"', b'"b"'),
        given.replace(b"[4096]", b"[2048]").replace(b"F32", b"F64"),
        given[:-1] + b"1",
        given[:-1],
        given + b"0",
        b"",
    ):
        path.write_bytes(given)

        def change(what: str, notes: object, changed: bytes = changed) -> None:
            path.write_bytes(changed)
            os.utime(path, ns=(1, 1))  # two writes may fall into one tick of the clock
            judge(what, notes)

        monkeypatch.setattr(format, "_check_notes", change)
        with pytest.raises(format.FormatError, match="changed while it was read; read it again"):
            format.read_state(path)


def test_out_of_memory_is_a_format_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    format.write_state(tmp_path / "s", {"a": np.zeros(1)}, {})
    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(format.FormatError, match="does not fit in memory"):
        format.read_state(tmp_path / "s")


def test_a_format_error_pickles() -> None:
    error = pickle.loads(pickle.dumps(format.FormatError("m.safetensors: broken")))
    assert isinstance(error, format.FormatError)
    assert str(error) == "m.safetensors: broken"


# Any byte string loads or raises.


def small_files(folder: Path) -> list[tuple[Callable[[Path], Any], bytes]]:
    layers = (spec.OneHot("t", 2), spec.RNN("r", 2, 1))
    model = ChainFile(
        layers,
        tensors_for(layers),
        (np.array([1], np.int64), np.zeros((1, 1))),
        ("a", "b"),
        {"file": "x"},
    )
    format.write_model(folder / "m", model)
    format.write_state(folder / "s", {"r.h": np.ones((1, 1), np.float32)}, {"fingerprint": "0"})
    return [
        (format.read_model, (folder / "m").read_bytes()),
        (map_model, (folder / "m").read_bytes()),
        (format.read_state, (folder / "s").read_bytes()),
        (format.read_tensors, (folder / "s").read_bytes()),
    ]


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    for reader, data in small_files(tmp_path):
        for size in range(len(data)):
            with pytest.raises(format.FormatError):
                read(data[:size], reader)
        with pytest.raises(format.FormatError, match="appended"):
            read(data + b"\0", reader)


def test_random_bytes_load_or_raise(tmp_path: Path, read: Callable[..., Any]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pieces = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"0", b"a", b"\xff", b"\n", b"e9"]
    files = small_files(tmp_path)
    for _ in range(600):
        reader, data = rng.choice(files)
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.randbytes(rng.randrange(200))
        elif kind == 1:
            data = raw(b"{" + rng.randbytes(rng.randrange(60)), rng.randbytes(rng.randrange(9)))
        elif kind == 2:
            data = raw(b"{" + b"".join(rng.choices(pieces, k=rng.randrange(60))))
        else:
            at, length = rng.randrange(len(data)), rng.randrange(12)
            put = b"".join(rng.choices(pieces, k=rng.randrange(4)))
            data = raw(data[8:at] + put + data[at + length :])
        try:
            read(data, reader)
        except format.FormatError:
            continue


MEGABYTE = 2**20 - 200
LAYER = spec.LSTM("l" * 200, 2, 4, 4096, True, True, 2).to_dict()
WIDE = [FEATURES | {"shape": [2**20]}]
DELAYS = [{"kind": "delay", "name": f"{n}", "shape": [2**20], "steps": 1} for n in range(17)]
BOMBS = {
    "length": b"\x00" * 7 + b"\x80" + b"{" * 100,
    "largest length": b"\xff" * 8 + b"{" * 100,
    "brackets": raw("{" + "[" * MEGABYTE),
    "braces": raw('{"a":' * (MEGABYTE // 5)),
    "names": raw('{"a":{},' * (MEGABYTE // 8)),
    "quotes": raw('{"' + '\\"' * (MEGABYTE // 2)),
    "white space": raw("{" + " " * MEGABYTE),
    "shape": raw('{"a":{"shape":[' + "0," * (MEGABYTE // 2)),
    "digits": raw('{"a":{"shape":[' + "9" * MEGABYTE),
    "pairs": raw('{"__metadata__":{' + '"":"",' * (MEGABYTE // 6)),
    "pairs of a name": raw('{"__metadata__":{"' + "\\\\" * (MEGABYTE // 2) + '":'),
    "entry of brackets": container("[" * MEGABYTE),
    "entry of braces": container("{" * MEGABYTE),
    "entry of lists": container("[" + "[]," * (MEGABYTE // 3)),
    "entry of keys": container("{" + ",".join(f'"{n:x}":0' for n in range(40000)) + "}"),
    "entry of quotes": container('"' + '\\"' * (MEGABYTE // 4)),
    "entry of digits": container("9" * MEGABYTE),
    "entry of floats": container(document(vocabulary=[9e99] * (MEGABYTE // 6))),
    "entry of numbers": container(document(vocabulary=[999] * (MEGABYTE // 6))),
    "entry of words": container(document(vocabulary=["ab"] * (MEGABYTE // 9))),
    "names asked for": container(document(graph=graph(LAYER))),
    "entry asks for rows": container(
        document(graph=graph(TANH, inputs=[FEATURES | {"shape": [2**31 - 1]}]))
    ),
    "entry asks for state": container(document(graph=graph(*DELAYS, inputs=WIDE))),
    "tensors": state(*(entry(f"{n}", 4 * n, 4 * n + 4) for n in range(20000)), data=bytes(80000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_the_work_of_a_second(read: Callable[..., Any], name: str) -> None:
    for reader in (format.read_model, map_model, format.read_state, format.read_tensors):
        if name.startswith(("entry", "names asked")) and reader is format.read_tensors:
            continue  # a foreign file may hold any text
        with counted_calls(MOST_CALLS), pytest.raises(format.FormatError):
            read(BOMBS[name], reader)


def test_a_deep_recursion_limit_does_not_help_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(BOMBS["entry of brackets"])
    code = (
        "import sys; from fastlstm import format\n"
        "sys.setrecursionlimit(10**8)\n"
        "try: format.read_model(sys.argv[1])\n"
        "except format.FormatError as error: print(error)"
    )
    assert "nested more than" in python(code, tmp_path / "m")


# Memory: at most twice the size of the file, plus 16 MB.

PEAK = """
import sys, tracemalloc
import numpy
from fastlstm import format

def status(key):
    return next(int(s.split()[1]) * 1024 for s in open('/proc/self/status') if s.startswith(key))

if sys.argv[3] == 'traced':
    tracemalloc.start()
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')
before = status('VmRSS')
try:
    kept = getattr(format, sys.argv[1])(sys.argv[2])
except format.FormatError:
    kept = None
if sys.argv[3] == 'traced':
    print(tracemalloc.get_traced_memory()[1], tracemalloc.get_traced_memory()[0])
else:
    print(status('VmHWM') - before, status('VmRSS') - before)
"""


@LINUX
@pytest.mark.parametrize("how", ["resident", "traced"])
def test_reading_takes_twice_the_file_and_keeps_it_once(tmp_path: Path, how: str) -> None:
    layers = (spec.LSTM("l", 1024, 1024, 1),)
    shapes = layers[0].tensors().items()
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes}
    path = tmp_path / "m"
    format.write_model(path, ChainFile(layers, tensors))
    size = path.stat().st_size
    assert size > 32e6
    for reader in ("read_model", "read_tensors"):
        peak, kept = map(int, python(PEAK, reader, path, how).split())
        assert peak < 2.1 * size + 1e6
        assert kept < 1.1 * size + 1e6


@LINUX
@pytest.mark.parametrize(
    "name",
    ["entry of keys", "entry of words", "entry of numbers", "names asked for", "most tensors"],
)
def test_a_bomb_takes_no_more_than_its_share(tmp_path: Path, name: str) -> None:
    most = [entry(f"{n}" + "n" * 100, 4 * n, 4 * n + 4) for n in range(16384)]
    bombs = BOMBS | {"most tensors": state(*most, data=bytes(4 * 16384))}
    (tmp_path / "m").write_bytes(bombs[name])
    reader = "read_state" if name == "most tensors" else "read_model"
    peak, kept = map(int, python(PEAK, reader, tmp_path / "m", "resident").split())
    assert peak < 2 * len(bombs[name]) + 16e6
    assert kept > 1e6 or name != "most tensors"  # it loads


# Foreign checkpoints.


def test_a_foreign_checkpoint_is_read_with_torchs_names(read: Callable[..., Any]) -> None:
    signed = ["int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    names = [*signed, "bool", "uint8", "uint16", "uint32", "uint64"]
    arrays = {name: np.arange(2, dtype=name).reshape(2, 1) for name in names}
    arrays |= {"scalar": np.array(3, np.int64), "none": np.zeros((2, 0), np.float32)}
    arrays |= {"deep": np.zeros((1,) * 8, np.float32)}
    back = read(save(arrays, {"format": "pt", "é": "ü"}), format.read_tensors)
    assert back.keys() == arrays.keys()
    for name, (array, dtype) in back.items():
        assert same(array, arrays[name])
        assert dtype == str(arrays[name].dtype)


def test_bfloat16_is_widened_exactly(read: Callable[..., Any]) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    header = "{" + entry("w", 0, 131072, [256, 256], "BF16") + "}"
    array, dtype = read(raw(header, halves.tobytes()), format.read_tensors)["w"]
    assert dtype == "bfloat16"
    assert array.dtype == np.float32
    assert array.shape == (256, 256)
    bits = array.reshape(-1).view(np.uint32)
    assert (bits >> 16 == halves).all()
    assert not (bits & 0xFFFF).any()
    scalar = read(raw("{" + entry("w", 0, 2, [], "BF16") + "}", b"\x80\x3f"), format.read_tensors)
    assert scalar["w"][0].shape == ()
    assert scalar["w"][0] == 1


def test_a_bool_of_a_foreign_file_is_a_bool(read: Callable[..., Any]) -> None:
    header = "{" + entry("w", 0, 3, [3], "BOOL") + "}"
    array, _ = read(raw(header, b"\x00\x01\x02"), format.read_tensors)["w"]
    assert array.tobytes() == b"\x00\x01\x01"


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "X"])
def test_exotic_dtypes_are_refused_by_name(read: Callable[..., Any], dtype: str) -> None:
    header = "{" + A + "," + entry("odd.weight", 4, 12, [1], dtype) + "}"
    with pytest.raises(format.FormatError, match=f"'odd.weight' has dtype {dtype}; expected"):
        read(raw(header, bytes(12)), format.read_tensors)


def test_a_foreign_header_may_be_larger_and_hold_other_metadata(read: Callable[..., Any]) -> None:
    note = '"__metadata__":{"a":"' + "x" * 2**21 + '","b":"{}"}'
    assert read(raw("{" + note + "," + A + "}", bytes(4)), format.read_tensors).keys() == {"a"}
    assert read(raw("{}"), format.read_tensors) == {}
    with pytest.raises(format.FormatError, match="ordinary safetensors"):
        read(raw("{" + note + "," + A + "}", bytes(4)))
    with pytest.raises(format.FormatError, match="expected at most 16777216"):
        read(raw("{" + " " * 2**24 + "}"), format.read_tensors)
    with pytest.raises(format.FormatError, match="at most 8 dimensions"):
        read(raw("{" + entry("a", 0, 4, [1] * 9) + "}", bytes(4)), format.read_tensors)
