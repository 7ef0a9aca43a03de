"""Graphs that ask for too much, or are none, in whole files whose digest is right.

Each is refused in words, or loads where it only looks as if it asked for much, within a second, and
in memory of twice the file and 16 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bounds import LINUX, MEGABYTE, entry, of, sealed
from work import MOST_CALLS, counted_calls

import fastlstm
from fastlstm import FormatError, format, reference, spec

Entry = dict[str, Any]
ROW, WIDE = [2], "😀" * 255
LOADS = ""


def node(kind: str, name: str, *reads: str, **options: Any) -> Entry:
    return {"kind": kind, "name": name, "reads": list(reads)} | options


def tanh(name: str, *reads: str) -> Entry:
    return node("activation", name, *reads, function="tanh")


def graph(nodes: Sequence[Entry], *, shape: Sequence[int] = ROW, **changes: Any) -> Entry:
    """Of the output of the last node."""
    given = {"name": "x", "shape": list(shape), "tokens": 0, "held": False}
    start = {"inputs": [given], "nodes": nodes, "outputs": {"y": nodes[-1]["name"]}}
    made = start | changes
    return made | {"outputs": [[name, value] for name, value in made["outputs"].items()]}


def in_a_row(nodes: Sequence[Entry], **options: Any) -> Entry:
    """Nodes that each read the one before."""
    names = ["x", *(one["name"] for one in nodes)]
    return graph(
        [one | {"reads": [name]} for one, name in zip(nodes, names, strict=False)], **options
    )


def file(of_graph: Any, *entries: str, data: bytes = b"") -> bytes:
    return sealed(of("model", graph=of_graph, source={}, vocabulary=None), *entries, data=data)


def lstm(name: str = "a", **options: Any) -> Entry:
    sizes = {"input_size": 2, "hidden_size": 2, "num_layers": 1, "proj_size": 0}
    return node("lstm", name, "x", **(sizes | {"bias": True, "bidirectional": False} | options))


def index(shape: Sequence[int], *runs: Sequence[int], name: str = "a") -> Entry:
    return node("index", name, "x", shape=list(shape), runs=[list(run) for run in runs])


def delay(name: str, *reads: str, shape: Sequence[int] = ROW, steps: int = 1) -> Entry:
    return node("delay", name, *reads, shape=list(shape), steps=steps)


def linear(name: str, size: int, **options: Any) -> Entry:
    sizes = {"in_features": size, "out_features": size, "bias": False}
    return node("linear", name, "x", **(sizes | options))


def add(name: str, *reads: str) -> Entry:
    return node("arithmetic", name, *reads, operation="add")


def repeat(name: str, times: int) -> Entry:
    return node("repeat", name, "x", times=times)


def every(name: str, step: int) -> Entry:
    return node("slice", name, "x", step=step)


def nested(n: int) -> list[Entry]:
    """Sums each within another, of what was n layers before and of n - 1 and so on."""
    down = [tanh(f"a{i + 1}", f"a{i}" if i else "x") for i in range(n)]
    up, last = [], f"a{n}"
    for i in reversed(range(n)):
        up.append(add(f"r{i}", f"a{i}" if i else "x", last))
        last = f"r{i}"
    return down + up


def from_the_start(n: int) -> list[Entry]:
    """Sums of the input and of all before, again and again."""
    nodes, last = [], "x"
    for i in range(n):
        nodes += [tanh(f"a{i}", last), add(f"r{i}", "x", f"a{i}")]
        last = f"r{i}"
    return nodes


def matrix(name: str, k: int) -> Entry:
    """A kernel of k numbers, of weights that others share."""
    channels = {"in_channels": 1, "out_channels": 1, "groups": 1, "bias": False}
    padding = [[k - 1, 0]]
    return node("convolution", name, "x", kernel_size=[k], padding=padding, weights="w", **channels)


MATRIX = [2**10, 2**10]
BOTH = {"layer_norm": "product", "peepholes": True, "proj_size": 1}
KERNEL = entry("w.weight", 0, 2**12, [1, 1, 2**10])

# Name -> the file, and what is said of it, or that it loads.
FILES: dict[str, Callable[[], tuple[bytes, str]]] = {
    # sizes
    "2**31 layers": lambda: (file(graph([lstm(num_layers=2**31)])), "an integer from 1 to 2147483"),
    "nearly 2**31 layers": lambda: (
        file(graph([lstm(num_layers=2**31 - 1)])), "has 2147483647 layers, those of stacks"),
    "4096 layers": lambda: (file(graph([lstm(num_layers=4096)])), "is missing"),
    "4096 layers of 12 tensors": lambda: (
        file(graph([lstm(WIDE, num_layers=4096, **BOTH)])), "at most 16384 tensors"),
    "4096 layers of a wide name": lambda: (
        file(graph([lstm("a" * 254 + "😀", num_layers=1024, **BOTH)])),
        "and 1048576 characters, are"),
    "as many names as may be": lambda: (
        file(graph([lstm("a" * 39 + "😀", num_layers=1365, **BOTH)])), "is missing"),
    "4096 layers both ways": lambda: (
        file(graph([lstm(num_layers=4096, bidirectional=True)])), "8192 layers, those of stacks"),
    "4096 layers in many stacks": lambda: (
        file(in_a_row([lstm(f"{n}", num_layers=1025) for n in range(4)])), "4100 layers, those of"),
    "2**31 units": lambda: (file(graph([lstm(hidden_size=2**31 - 1)])), "rows of 2147483647"),
    "a kernel of 2**31": lambda: (
        file(graph([matrix("a", 2**31 - 1)], shape=[1, 4])), "'w.weight' of shape .* is missing"),
    "2**31 numbers": lambda: (file(graph([tanh("a", "x")], shape=[2**31])), "an integer from 1 to"),
    "nearly 2**31 numbers": lambda: (
        file(graph([tanh("a", "x")], shape=[2**31 - 1])), "rows of 2147483647"),
    "6 axes of 2**31": lambda: (
        file(graph([tanh("a", "x")], shape=[2**31 - 1] * 6)), "input 'x' has rows of 2147483647 x"),
    "7 axes": lambda: (file(graph([tanh("a", "x")], shape=[1] * 7)), "at most 6"),
    **{
        f"100,000 axes of {kind}": lambda kind=kind, field=field, options=options: (
            file(graph([node(kind, "a", "x", **{field: [2**31 - 1] * 10**5}, **options)])),
            "at most 6")
        for kind, field, options in (
            ("index", "shape", {"runs": [[0, 1, 2]]}),
            ("delay", "shape", {"steps": 1}),
            ("constant", "shape", {}),
            ("layer_norm", "normalized_shape",
             {"eps": 1e-5, "elementwise_affine": True, "bias": True}),
            ("convolution", "kernel_size",
             {"in_channels": 1, "out_channels": 1, "groups": 1, "bias": False}),
            ("reduce", "axes", {"function": "sum"}),
        )
    },
    "tokens of 2**31": lambda: (
        file(graph([node("one_hot", "a", "x", num_classes=2**31 - 1)], inputs=[
            {"name": "x", "shape": [], "tokens": 2**31 - 1, "held": False}])),
        "rows of 2147483647"),
    # places
    "2**31 places": lambda: (
        file(graph([index([2**31 - 1], [0, 0, 2**31 - 1])])), "has rows of 2147483647"),
    "2**31 places of a run": lambda: (
        file(graph([index([2], [0, 0, 2**31 - 1])])), "expected 2 places in all"),
    "a million places": lambda: (file(graph([index([2**20], [0, 0, 2**20])])), LOADS),
    "a million places of padding": lambda: (
        file(graph([index([2**20], [-1, 0, 2**20])])), LOADS),
    "30,000 runs": lambda: (
        file(graph([index([30_000], *[[0, 0, 1]] * 30_000)])), LOADS),
    "300,000 runs": lambda: (
        file(graph([index([300_000], *[[0, 0, 1]] * 300_000)])), "more than 1048576 items"),
    "a place too far": lambda: (
        file(graph([index([2], [0, 2**31 - 1, 2])])), "moves number 2147483647, and is given 2"),
    "a place before the first": lambda: (
        file(graph([index([2], [2, -(2**31 - 1), 2])])), "runs is .*expected places from 0"),
    # numbers of nodes
    "4097 nodes": lambda: (file(in_a_row([tanh(f"{n}") for n in range(4097)])), "has 4097 nodes"),
    "4096 nodes": lambda: (
        file(in_a_row([node("repeat", f"{n}", times=1) for n in range(4096)])), LOADS),
    "50,000 nodes": lambda: (
        file(in_a_row([tanh(f"{n}") for n in range(50_000)])), "has 50000 nodes|bytes of memory"),
    "10**5 reads": lambda: (
        file(graph([add("a", *["x"] * 10**5)])), "'a' reads 100000 values|100000 values in all"),
    "10**5 reads of many nodes": lambda: (
        file(graph([index([2], [0, 1, 2], name=f"{n}") | {"reads": ["x"] * 1000}
                    for n in range(100)])), "read 100000 values in all"),
    "65,000 reads": lambda: (
        file(graph([index([2], [0, 1, 2], name=f"{n}") | {"reads": ["x"] * 1000}
                    for n in range(65)])), LOADS),
    "65 inputs": lambda: (
        file(graph([tanh("a", "0")], inputs=[
            {"name": f"{n}", "shape": [2], "tokens": 0, "held": False} for n in range(65)])),
        "has 65 inputs"),
    "65 outputs": lambda: (
        file(graph([tanh("a", "x")], outputs={f"{n}": "a" for n in range(65)})), "has 65 outputs"),
    "10**5 names of tensors": lambda: (
        file(graph([lstm(tensor_names=[[f"{n}", "a"] for n in range(10**5)])])),
        "tensor_names has '.*'; expected some of|bytes of memory"),
    "a name of a tensor of many": lambda: (
        file(graph([lstm(num_layers=4096, tensor_names=[["b", "a"]])])),
        "tensor_names has 'b'; expected some of weight_ih_l0"),
    # loops
    "a loop": lambda: (
        file(graph([tanh("a", "b"), tanh("b", "a")])), "read each other's row of the same step"),
    "a node on itself": lambda: (file(graph([tanh("a", "a")])), "expected a delay on the loop"),
    "a loop of 4096": lambda: (
        file(graph([tanh(f"{n}", f"{(n + 1) % 4096}") for n in range(4096)])),
        "read each other's row of the same step; expected a delay on the loop"),
    "a delay on itself": lambda: (file(graph([delay("a", "a")])), "reads no rows of every step"),
    "a loop of 4096 delays": lambda: (
        file(graph([delay(f"{n}", f"{(n + 1) % 4096}") for n in range(4096)])),
        "reads no rows of every step"),
    "loops through each other": lambda: (
        file(graph([add(f"{n}", f"{(n + 1) % 2000}", f"{(n * 7 + 3) % 2000}")
                    for n in range(2000)])), "read each other's row of the same step"),
    "a sound loop": lambda: (file(graph([delay("a", "b"), add("b", "a", "x")])), LOADS),
    "a rate on a loop": lambda: (
        file(graph([delay("a", "c"), add("b", "a", "x"), repeat("c", 2) | {"reads": ["b"]}])),
        "'c' .repeat. is on a loop"),
    # rates
    "a rate of 2**32": lambda: (
        file(in_a_row([repeat("a", 2**16), repeat("b", 2**16)])), "4294967296 rows for each step"),
    "a rate of 2**31": lambda: (
        file(in_a_row([repeat("a", 2**31 - 1)])), "2147483647 rows for each step"),
    "a rate of one in 2**32": lambda: (
        file(in_a_row([every("a", 2**16), every("b", 2**16)])), "1/4294967296 rows for each step"),
    "rates up and down": lambda: (
        file(in_a_row([repeat(f"{n}", 3) if n % 2 else every(f"{n}", 2) for n in range(4000)])),
        "changes of rate|rows for each step"),
    "rates of large primes": lambda: (
        file(in_a_row([repeat(f"{n}", 65521) if n % 2 else every(f"{n}", 65519)
                       for n in range(4000)])), "changes of rate|rows for each step"),
    "4096 delays": lambda: (
        file(in_a_row([delay(f"{n}", steps=2**19) for n in range(4096)])), "the state of one"),
    # work
    "work of 2**40": lambda: (
        file(graph([node("matmul", f"{n + 1}", "x", f"{n}" if n else "x") for n in range(2**10)],
                   shape=MATRIX)),
        r"a step would take 1\d{12} multiply-adds; at most 68719476736"),
    "work of 2**40 by shared weights": lambda: (
        file(in_a_row([matrix(f"{n}", 2**10) for n in range(2**10)], shape=[1, 2**20]), KERNEL,
             data=bytes(2**12)), r"take 11005\d{8} multiply-adds; at most 68719476736"),
    "work of a rate": lambda: (
        file(in_a_row([repeat("a", 2**16), matrix("b", 2**10)], shape=[1, 2**20]), KERNEL,
             data=bytes(2**12)), "multiply-adds; at most 68719476736"),
    "a state of 17 million": lambda: (
        file(in_a_row([delay(f"{n}", shape=[2**20]) for n in range(17)], shape=[2**20])),
        "the state of one stream would be 17825792 numbers; at most 16777216"),
    "a delay of 2**31": lambda: (
        file(graph([delay("a", "x", steps=2**31 - 1)])), "steps is 2147483647; expected at most"),
    "weights shared in two shapes": lambda: (
        file(graph([linear("a", 2, weights="w"), linear("b", 3, weights="w")])), "3|share"),
    "the rows of 65 million numbers": lambda: (
        file(in_a_row([tanh(f"{n}") for n in range(65)], shape=[2**20])),
        "the rows of all layers would be 68157440 numbers; at most 67108864"),
    # what is sound
    "nested sums": lambda: (file(graph(nested(2000))), LOADS),
    "some nested sums": lambda: (file(graph(nested(100))), LOADS),
    "sums from the start": lambda: (file(graph(from_the_start(2000))), LOADS),
    "some sums from the start": lambda: (file(graph(from_the_start(100))), LOADS),
    "two branches": lambda: (
        file(graph([tanh("a", "x"), tanh("b", "x"), add("c", "a", "b")])), LOADS),
    "two outputs": lambda: (
        file(graph([tanh("a", "x")], outputs={"y": "a", "z": "x"})), LOADS),
    "the input is the output": lambda: (
        file(graph([tanh("a", "x")], outputs={"y": "x"})), LOADS),
    "an unused node": lambda: (
        file(graph([tanh("a", "x"), tanh("b", "x")])), LOADS),
    "positions": lambda: (file(graph([tanh("a", "x")], shape=[3, 4])), LOADS),
    "one number": lambda: (file(graph([tanh("a", "x")], shape=[])), LOADS),
    "a held input": lambda: (
        file(graph([tanh("a", "x")], inputs=[
            {"name": "x", "shape": [2], "tokens": 0, "held": True}])), "all inputs are held"),
    "parts of no layer": lambda: (
        file(graph([tanh("a/slope", "x"), tanh("a", "a/slope")])), LOADS),
}  # fmt: skip


@pytest.fixture(params=FILES, scope="module")
def given(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str]:
    """A file, how long it is, and what is said of it."""
    data, phrase = FILES[request.param]()
    path = tmp_path_factory.mktemp("hostile") / "given"
    path.write_bytes(data)
    return path, len(data), phrase


def test_is_read_or_refused_in_words_by_the_work_of_a_second(given: tuple[Path, int, str]) -> None:
    path, _, phrase = given
    for mapped in (False, True):
        with counted_calls(MOST_CALLS):
            if phrase == LOADS:
                format.read_model(path, mapped=mapped)
            else:
                with pytest.raises(FormatError, match=phrase) as caught:
                    fastlstm.load(path, mmap=mapped)
                assert len(str(caught.value)) < 5000


def test_what_is_read_runs(given: tuple[Path, int, str], rng: np.random.Generator) -> None:
    path, _, phrase = given
    if phrase != LOADS:
        return  # that load() refuses it is tested above
    model = fastlstm.load(path)
    ((name, shape),) = model.inputs.items()
    x = rng.standard_normal((2, *shape)).astype(np.float32)
    made, _ = model({name: x})
    exact = reference.forward(model.graph, {}, {name: x[:, None]})
    made = made if isinstance(made, dict) else {"y": made}
    for output, y in made.items():
        np.testing.assert_allclose(y, exact[output][:, 0], rtol=1e-5, atol=1e-5)


@LINUX
def test_takes_no_more_memory_than_its_share(
    given: tuple[Path, int, str], peak_of: Callable[[str, Path], tuple[int, str]]
) -> None:
    path, size, phrase = given
    peak, said = peak_of("read_model", path)
    print(size / MEGABYTE, peak / MEGABYTE, said)
    assert peak < 2 * size + 16 * MEGABYTE
    assert said.startswith("loads" if phrase == LOADS else "refused")


NAMES = ("a\n", "\x1b[2J", "\x00", "\x7f", "\u2028", "", "a" * 256)


@pytest.mark.parametrize("name", [*NAMES, *map(chr, (0xD800, 0xDBFF, 0xDC00, 0xDFFF))])
def test_a_name_that_no_terminal_or_encoding_can_have(name: str, tmp_path: Path) -> None:
    given = {"name": name, "shape": [2], "tokens": 0, "held": False}
    for what, wrong in (
        ("layer", graph([tanh(name, "x")])),
        ("input", graph([tanh("a", name)], inputs=[given])),
        ("output", graph([tanh("a", "x")], outputs={name: "a"})),
        ("tensor", graph([linear("a", 2, weights=name)])),
        ("tensor", graph([linear("a", 2, tensor_names=[["weight", name]])])),
        ("which nothing is called", graph([tanh("a", name)])),
    ):
        (tmp_path / "m").write_bytes(file(wrong))
        with pytest.raises(FormatError) as caught:
            format.read_model(tmp_path / "m")
        said = str(caught.value)
        if name == "" and "weights" in wrong["nodes"][0]:
            assert "weights is '', which is left out" in said
        elif any(0xD800 <= ord(c) < 0xE000 for c in name):
            assert "half of a character" in said
        else:
            assert f"{what} name" in said or what in said
        assert said.isprintable()


@pytest.mark.parametrize("name", ["a/b", "a:0", "a b", "ünï", "模型", "😀", "a" * 255, "-", "."])
def test_a_name_of_any_source_is_one(name: str, tmp_path: Path) -> None:
    given = {"name": name, "shape": [2], "tokens": 0, "held": False}
    good = graph([tanh(f"{name[1:]}!", name)], inputs=[given], outputs={name: f"{name[1:]}!"})
    assert spec.check(spec.Graph.from_dict(good)).rows[name].shape == (2,)
    (tmp_path / "m").write_bytes(file(good))
    model = fastlstm.load(tmp_path / "m")
    assert list(model.inputs) == [name]
    assert list(model.outputs) == [name]
    model.save(tmp_path / "again")
    again = fastlstm.load(tmp_path / "again")
    assert again.graph == model.graph
    assert again.self_check[0].keys() == again.self_check[1].keys() == {name}
