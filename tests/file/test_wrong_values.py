"""A value of a wrong type or size anywhere in a file's JSON: it loads right, or raises FormatError.

Digests are made anew, so that what is tested is the judgement of the values and not the digest.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build, every_kind, input_for
from sealing import ZEROS, seal

import fastlstm
from fastlstm import FormatError, Model, spec

# JSON texts, so that they may be what Python's writer does not write.
VALUES = (
    *("[]", "{}", "[1]", '"x"', "1", "-1", "1.5", "1e400", "-1e400", "null", "true", "false"),
    *('"\\ud800"', "[" * 9 + "]" * 9, "[" * 99 + "]" * 99, '""', "0", "2147483648", "1e-400"),
    *("1" * 30, "NaN", "Infinity", '[["tanh"]]', '{"kind":"lstm"}', "-0.0", '"\\u0000"', "1E2"),
)
PLACE = "\ue000"  # a text that no model holds


def places(value: Any, replace: Callable[[Any], Any] = lambda v: v) -> Iterator[Any]:
    """The document once for each value in it, with PLACE there.

    Of a long list of numbers, or of lists of them, only the first two and the last value: the same
    lines judge the others.
    """
    yield replace(PLACE)
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], lambda v, key=key: replace(value | {key: v}))
    if isinstance(value, list):
        alike = len(value) > 3 and not any(isinstance(v, dict) for v in value)
        for i in (0, 1, len(value) - 1) if alike else range(len(value)):
            yield from places(value[i], lambda v, i=i: replace([*value[:i], v, *value[i + 1 :]]))


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header without metadata, the document, and the tensors' bytes of a file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    document = json.loads(header.pop("__metadata__")["fastlstm"])
    return header, document | {"sha256": ZEROS.decode()}, data[end:]


def join(header: str, document: str, data: bytes) -> bytes:
    entry = json.dumps({"fastlstm": document}, separators=(",", ":"))
    text = f'{{"__metadata__":{entry}{"," * (header != "{}")}{header[1:]}'.encode()
    return seal(len(text).to_bytes(8, "little") + text + data)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def changed(data: bytes, start: int = 0, step: int = 1) -> Iterator[tuple[str, bytes]]:
    """The file with each value in each place, or with every ``step``-th value in each."""
    header, document, tensors = parts(data)
    text = compact(header)
    turns = itertools.count(start)
    for variant in places(document):
        for value in VALUES[next(turns) % step :: step]:
            new = compact(variant).replace(json.dumps(PLACE), value)
            yield new, join(text, new, tensors)
    text = compact(document)
    names = list(header)  # of tensors, which the same lines judge alike
    variants = [PLACE] + [
        header | {name: entry}
        for name in {*names[:2], *names[-1:]}
        for entry in places(header[name])
    ]
    for variant in variants:
        for value in VALUES[next(turns) % step :: step]:
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
    """Of one model every value in every place; of the others each place is given some of them.

    The same lines judge a place in all of them, and those of a layer are in a graph below.
    """
    model = build(every_kind(1)[kind], rng)
    model.save(tmp_path / "m")
    good = (tmp_path / "m").read_bytes()
    header, document, tensors = parts(good)
    assert fastlstm.load(put(path, join(compact(header), compact(document), tensors)))
    loaded = 0
    step = 1 if kind == "last" else 6
    for text, data in changed(good, list(every_kind(1)).index(kind), step):
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
        assert again.graph == other.graph, text
        assert again.source == other.source, text
        if other.graph == model.graph:
            assert again.fingerprint == model.fingerprint, text
    assert loaded > 0 or step > 1  # another note on the source, at least


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


def every_layer() -> spec.Graph:
    """A graph that has every kind of layer, some of their rarer options, and a loop."""
    odd = ("hard_sigmoid(0.2, 0.5)", "clip(-1.0, 1.0)", "softsign")
    shared = {"weights": "w", "tensor_names": (("bias", "b"),)}
    nodes = [
        spec.Embedding("embedding", 7, 6)("tokens"),
        spec.OneHot("one_hot", 7)("tokens"),
        spec.Linear("linear", 4, 2, **shared)("x"),
        spec.Linear("again", 4, 2, **shared)("x"),
        spec.MatMul("matmul", transposed=True)("x", "x"),
        spec.Constant("constant", (4,))(),
        spec.LSTM("lstm", 6, 3, 2, proj_size=2, activations=odd, peepholes=True, clip=2.0)(
            "embedding"
        ),
        spec.LSTM("lstm_given", 4, 3, initial_state="given", cell_output=True, hold=True)(
            "x", "constant_mask", "h", "h"
        ),
        spec.Constant("constant_mask", (1,), weights="mask")(),
        spec.GRU("gru", 4, 2, bidirectional=True, along="positions", reset_after=False)("x"),
        spec.RNN("rnn", 7, 2, nonlinearity="elu(0.5)", initial_state="learned")("one_hot"),
        spec.Convolution("convolution", 3, 2, (2,), stride=(2,), padding=((1, 0),))("x"),
        spec.Convolution("transposed", 3, 2, (3,), stride=(2,), transposed=True,
                         output_padding=(1,))("x"),
        spec.Convolution("over_time", 3, 3, (2, 3), 3, dilation=(2, 1), padding=((2, 0), (1, 1)),
                         over_time=True)("x"),
        spec.Pooling("pooling", "average", (2,), padding=((1, 0),), count_include_pad=False)("x"),
        spec.Index.of("index", np.pad(np.arange(24).reshape(2, 12)[::-1], 1, constant_values=-1),
                      fill=2.5)("x", "delay"),
        spec.Activation("activation", "leaky_relu(0.1)")("x"),
        spec.Arithmetic("arithmetic", "where")("x", "constant", "delay"),
        spec.Reduce("reduce", "mean", axes=(-2, -1), keepdim=True)("x"),
        spec.Softmax("softmax", axis=-2, log=True)("x"),
        spec.BatchNorm("batch_norm", 4, axis=-1)("x"),
        spec.GroupNorm("group_norm", 3, 3)("x"),
        spec.LayerNorm("layer_norm", (3, 4), bias=False)("x"),
        spec.RMSNorm("rms_norm", (4,))("x"),
        spec.Attention("attention", cumulative=True)("x", "x"),
        spec.Delay("delay", (3, 4), initial_state="learned")("sum"),
        spec.Arithmetic("sum", "add")("delay", "x"),
        spec.Linear("three", 4, 3)("x"),
        spec.Delay("given", (3, 3), initial_state="given")("three", "h"),
        spec.Fold("fold", "max")("sum"),
        spec.Repeat("repeat", 2)("x"),
        spec.Slice("slice", start=1, end=1, step=2)("x"),
        spec.Spread("spread", 3)("x"),
        spec.Window("window", 3, stride=2, dilation=2, padding=4)("x"),
    ]  # fmt: skip
    inputs = [
        spec.Input("x", (3, 4)),
        spec.Input("tokens", (), tokens=7),
        spec.Input("h", (3, 3), held=True),
    ]
    return spec.Graph(inputs, nodes, {"y": "fold", "z": "index", "more": "given"})


def up_to(name: str) -> spec.Graph:
    """Of :func:`every_layer`, one and what it reads."""
    graph = every_layer()
    nodes = {node.name: node for node in graph.nodes}
    wanted, more = {name}, [name]
    while more:
        at = more.pop()
        new = set(nodes[at].reads) - wanted if at in nodes else set()
        wanted |= new
        more += new
    return spec.Graph(
        [one for one in graph.inputs if one.name in wanted | {"x"}],
        [node for node in graph.nodes if node.name in wanted],
        {"y": name},
    )


def test_every_layer_is_there() -> None:
    graph = every_layer()
    spec.check(graph)
    assert {node.layer.kind for node in graph.nodes} == spec.KINDS.keys()


@pytest.mark.parametrize("name", [node.name for node in every_layer().nodes])
def test_in_a_graph(name: str, path: Path) -> None:
    """What loads is a graph that the vocabulary takes, and can be written again.

    The values are in the layer itself, and for those of tokens and one of held inputs in all that
    is there.
    """
    graph = up_to(name)
    header: dict[str, Any] = {}
    offset = 0
    for tensor, shape in spec.check(graph).tensors.items():
        end = offset + 4 * math.prod(shape)
        header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    document = {"sha256": ZEROS.decode(), "version": 2, "content": "model", "graph": PLACE}
    start = compact(document | {"vocabulary": None, "source": {}})
    sound = 0
    whole = graph.to_dict()
    nodes = whole["nodes"]
    (at,) = (i for i, node in enumerate(nodes) if node["name"] == name)
    for variant in (
        places(whole)
        if name in ("embedding", "one_hot", "given")
        else places(nodes[at], lambda v: whole | {"nodes": [*nodes[:at], v, *nodes[at + 1 :]]})
    ):
        for value in VALUES:
            new = compact(variant).replace(json.dumps(PLACE), value)
            text = start.replace(json.dumps(PLACE), new)
            given = put(path, join(compact(header), text, bytes(offset)))
            try:
                model = fastlstm.load(given, check=False)
            except FormatError:
                continue
            sound += 1
            read = spec.Graph.from_dict(json.loads(new))
            spec.check(read)
            assert model.graph == read
            assert spec.Graph.from_dict(json.loads(compact(read.to_dict()))) == read
    assert sound > 0  # other reads, at least


def test_a_list_where_a_number_is_expected(
    rng: np.random.Generator, path: Path, tmp_path: Path
) -> None:
    """The case that showed the fault."""
    build(every_kind(1)["causal"], rng).save(tmp_path / "m")
    build(every_kind(1)["clipped"], rng).save(tmp_path / "m")
    header, document, tensors = parts((tmp_path / "m").read_bytes())
    for field in ("clip", "cell_clip", "activations", "hidden_size", "bias", "name"):
        wrong = json.loads(compact(document))
        wrong["graph"]["nodes"][0][field] = [1]
        with pytest.raises(FormatError, match=field if field != "activations" else "texts"):
            fastlstm.load(put(path, join(compact(header), compact(wrong), tensors)))
    assert os.path.getsize(path)
