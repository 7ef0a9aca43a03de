"""What check() and from_dict() refuse: by name, within bounds, and by ValueError only."""

from __future__ import annotations

import copy
import json
import tracemalloc

import numpy as np
import pytest
from one_layer import EXAMPLES, graph_of
from work import MOST_CALLS, counted_calls

from fastlstm import spec
from fastlstm.spec.check import (
    MAX_ALL_READS,
    MAX_AXES,
    MAX_DEPTH,
    MAX_NAMES,
    MAX_NODES,
    MAX_RATE,
    MAX_READS,
    MAX_ROW,
    MAX_TENSORS,
    MAX_TERMS,
    MAX_VALUES,
    MAX_WAITS,
)
from fastlstm.spec.layer import MAX_REACH

X = spec.Input("x", (3,))


def graph(*nodes, inputs=(X,), outputs=None):
    return spec.Graph(inputs, nodes, outputs or {"y": nodes[-1].name})


def loop(*nodes, **options):
    return graph(*nodes, spec.Delay("before", (3,))(nodes[-1].name), **options)


ADD = spec.Arithmetic("sum", "add")
TOKENS = spec.Input("word", (2,), 7)
HELD = spec.Input("k", (3,), held=True)

REFUSED = {
    "no nodes": (lambda: spec.Graph([X], [], {"y": "x"}), "the graph has 0 nodes"),
    "no inputs": (lambda: spec.Graph([], [spec.Constant("c", (1,))()], {"y": "c"}), "0 inputs"),
    "no outputs": (lambda: spec.Graph([X], [spec.Linear("a", 3, 3)("x")], {}), "0 outputs"),
    "twice": (
        lambda: graph(spec.Linear("a", 3, 3)("x"), spec.Linear("a", 3, 3)("a")),
        "two inputs or layers are called 'a'",
    ),
    "as an input": (lambda: graph(spec.Linear("x", 3, 3)("x")), "are called 'x'"),
    "unknown": (lambda: graph(spec.Linear("a", 3, 3)("z")), "'a' reads 'z', which nothing is"),
    "unknown output": (
        lambda: graph(spec.Linear("a", 3, 3)("x"), outputs={"y": "z"}),
        "output 'y' is 'z', which nothing is called",
    ),
    "output name": (
        lambda: graph(spec.Linear("a", 3, 3)("x"), outputs={"\n": "a"}),
        "output name '.*' is not usable",
    ),
    "linear": (
        lambda: graph(spec.Linear("a", 4, 3)("x")),
        r"layer 'a' \(linear\), which reads 'x' \(3\): it takes rows \(..., 4\), and is given 3",
    ),
    "how many": (
        lambda: graph(spec.Linear("a", 3, 3)("x", "x")),
        "'a' .* it reads 2 values; expected one value",
    ),
    "arithmetic": (lambda: graph(ADD("x")), "add takes 2 values, and is given 1"),
    "broadcast": (
        lambda: graph(spec.Linear("a", 3, 2)("x"), ADD("x", "a")),
        r"'sum' .*'x' \(3\), 'a' \(2\): rows of .* do not broadcast",
    ),
    "matmul": (lambda: graph(spec.MatMul("a", transposed=True)("x", "x")), "rows of two axes"),
    "matmul sizes": (
        lambda: graph(spec.Constant("c", (4, 2))(), spec.MatMul("a")("x", "c")),
        "1 x 3 and 4 x 2 have no product",
    ),
    "tokens": (
        lambda: graph(spec.Activation("a", "tanh")("word"), inputs=[TOKENS]),
        r"reads 'word' \(2 tokens\): it takes numbers, and is given tokens; put an embedding",
    ),
    "embedding": (
        lambda: graph(spec.Embedding("a", 8, 3)("word"), inputs=[TOKENS]),
        "it takes one of 8 tokens, and is given one of 7",
    ),
    "embedding of numbers": (lambda: graph(spec.OneHot("a", 8)("x")), "is given numbers"),
    "index past the end": (
        lambda: graph(spec.Index.of("a", np.array([3]))("x")),
        "it moves number 3, and is given 3 of them",
    ),
    "index of nothing": (lambda: graph(spec.Index.of("a", np.array([-1]))()), "it reads nothing"),
    "index of both": (
        lambda: graph(spec.Index.of("a", np.array([0]))("x", "word"), inputs=[X, TOKENS]),
        "tokens together with numbers",
    ),
    "index fills": (
        lambda: graph(spec.Index.of("a", np.array([-1]))("word"), inputs=[TOKENS]),
        "it fills up with a number that is no token",
    ),
    "softmax": (
        lambda: graph(spec.Softmax("a", axis=-2)("x")),
        r"over axes \[-2\], and is given 3",
    ),
    "reduce": (lambda: graph(spec.Reduce("a", "sum", axes=(-3,))("x")), r"over axes \[-3\]"),
    "layer norm": (lambda: graph(spec.LayerNorm("a", (2,))("x")), r"rows \(..., 2\), and is given"),
    "group norm": (lambda: graph(spec.GroupNorm("a", 2, 4)("x")), r"rows \(4, ...\)"),
    "batch norm": (lambda: graph(spec.BatchNorm("a", 4)("x")), "4 channels in axis 0"),
    "convolution": (
        lambda: graph(spec.Convolution("a", 4, 2, (3,), over_time=True)("x")),
        r"rows \(channels\) of 4 channels, and is given 3",
    ),
    "convolution axes": (
        lambda: graph(spec.Convolution("a", 3, 2, (3,))("x")),
        r"rows \(channels, positions\), and is given 3",
    ),
    "kernel": (
        lambda: graph(spec.Convolution("a", 3, 2, (3,))("x"), inputs=[spec.Input("x", (3, 2))]),
        "its kernel does not fit into 3 x 2",
    ),
    "crop": (
        lambda: graph(
            spec.Convolution("a", 3, 2, (1,), padding=((1, 1),), transposed=True)("x"),
            inputs=[spec.Input("x", (3, 2))],
        ),
        "its padding cuts off all",
    ),
    "recurrence": (
        lambda: graph(spec.GRU("a", 4, 2)("x")),
        r"it takes rows \(..., 4\), and is given 3",
    ),
    "along positions": (
        lambda: graph(spec.GRU("a", 3, 2, along="positions")("x")),
        r"rows \(..., positions, 3\)",
    ),
    "mask": (
        lambda: graph(spec.GRU("a", 3, 2, hold=True)("x", "x")),
        "its mask has rows of 3; expected one number, or one each",
    ),
    "start": (
        lambda: graph(spec.GRU("a", 3, 3, initial_state="given")("x", "x")),
        "must be held for all of it; expected an input with held=True",
    ),
    "start from a fold": (
        lambda: graph(
            *(spec.LSTM("encoder", 3, 3)("x"), spec.Fold("end", "last")("encoder")),
            spec.GRU("decoder", 3, 3, initial_state="given")("x", "end"),
        ),
        r"layer 'decoder' .* 'end' \(3\): it would start from a single row of a whole sequence, "
        r"which is known only at the end .* as an input with held=True",
    ),
    "start from what is computed of a fold": (
        lambda: graph(
            *(spec.Fold("end", "last")("x"), spec.Linear("bridge", 3, 3)("end")),
            spec.Delay("later", (3,), initial_state="given")("x", "bridge"),
        ),
        r"layer 'later' .* it would start from a single row .* two models",
    ),
    "start from attention over time": (
        lambda: graph(
            spec.Attention("context")("x", "x"),
            spec.RNN("decoder", 3, 3, initial_state="given")("x", "context"),
        ),
        r"layer 'decoder' .* it would start from a single row of a whole sequence",
    ),
    "start's axes": (
        lambda: graph(spec.GRU("a", 3, 2, 2, initial_state="given")("x", "k"), inputs=[X, HELD]),
        "it takes rows of 2 x 2, and is given 3",
    ),
    "delay": (lambda: graph(spec.Delay("a", (4,))("x")), "it takes rows of 4, and is given 3"),
    "spread": (lambda: graph(spec.Spread("a", 4)("x")), r"rows \(4, ...\), and is given 3"),
    "held over time": (
        lambda: graph(spec.Fold("a", "sum")("k"), inputs=[X, HELD]),
        "it goes over time, and is given no rows that change with it",
    ),
    "fold over time": (
        lambda: graph(spec.Fold("a", "sum")("x"), spec.GRU("b", 3, 3)("a")),
        "it goes over time, and is given a single row of a whole sequence",
    ),
    "fold meets steps": (
        lambda: graph(spec.Fold("a", "sum")("x"), ADD("x", "a")),
        "expected a fold with cumulative=True",
    ),
    "rates": (
        lambda: graph(spec.Slice("a", step=2)("x"), ADD("x", "a")),
        "rows of the same index meet, but of 2 steps the values have 2 and 1 rows",
    ),
    "loop without delay": (
        lambda: graph(ADD("x", "b"), spec.Activation("b", "tanh")("sum")),
        "layers 'b', 'sum' read each other's row of the same step; expected a delay",
    ),
    "loop on itself": (lambda: graph(ADD("x", "sum")), "layers 'sum' read each other's row"),
    "loop without a clock": (
        lambda: loop(spec.Activation("a", "tanh")("before")),
        "the loop through 'a', 'before' reads no rows of every step",
    ),
    "loop of held values": (
        lambda: loop(ADD("k", "before"), inputs=[X, HELD]),
        "reads no rows of every step",
    ),
    "loop of a fold": (
        lambda: loop(spec.Fold("f", "sum")("x"), ADD("f", "before")),
        "reads no rows of every step",
    ),
    "loop with a fold": (
        lambda: loop(ADD("x", "before"), spec.Fold("f", "sum")("sum")),
        r"layer 'f' \(fold\) is on a loop, and does not give one row",
    ),
    "loop with a rate": (
        lambda: loop(ADD("x", "before"), spec.Repeat("f", 2)("sum")),
        r"layer 'f' \(repeat\) is on a loop",
    ),
    "loop that looks ahead": (
        lambda: loop(ADD("x", "before"), spec.GRU("g", 3, 3, reverse=True)("sum")),
        r"layer 'g' \(gru\) is on a loop",
    ),
    "loop of two rates": (
        lambda: loop(
            spec.Slice("s", step=2)("x"),
            ADD("x", "before"),
            spec.Arithmetic("t", "add")("sum", "s"),
        ),
        "the loop through 'before', 'sum', 't': rows of the same index meet",
    ),
    "loop of other axes": (
        lambda: loop(ADD("x", "before"), spec.Linear("l", 3, 2)("sum")),
        "layer 'before' .*'l'.*it takes rows of 3, and is given 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        spec.check(make())


def wide(n, *nodes):
    return graph(*nodes, inputs=[spec.Input("x", (n,))])


def chain_of(n):
    return spec.Graph.chain([spec.Activation(f"n{i}", "tanh") for i in range(n)], shape=(3,))


def reading(n):
    return wide(1, spec.Index.of("i", np.arange(1))(*["x"] * n))


def all_reads(n):
    nodes = [spec.Index.of(f"i{k}", np.arange(1))(*["x"] * 64) for k in range((n - 1) // 64)]
    return wide(1, *nodes, spec.Index.of("i", np.arange(1))(*["x"] * ((n - 1) % 64 + 1)))


def turns(n):
    """A number of rows that takes n terms to tell."""
    nodes, last = [], "x"
    for k in range(n):
        nodes += [spec.Slice(f"s{k}", step=3)(last), spec.Repeat(f"r{k}", 2)(f"s{k}")]
        last = f"r{k}"
    return graph(*nodes[: 2 * n - 1])


def waits(n):
    """Rows that wait for n others of which none is always the last."""
    nodes = []
    for k in range(n):
        nodes += [
            spec.Convolution(
                *(f"a{k}", 3, 3, (k + 1,)), over_time=True, padding=((0, k),), bias=False
            )("x"),
            spec.Slice(f"b{k}", step=2)(f"a{k}"),
            spec.Repeat(f"c{k}", 2)(f"b{k}"),
            spec.Convolution(
                *(f"d{k}", 3, 3, (2 * n - 2 * k,)),
                over_time=True,
                padding=((0, 2 * n - 2 * k - 1),),
                bias=False,
            )(f"c{k}"),
        ]
    return graph(*nodes, spec.Index.of("all", np.arange(3))(*(f"d{k}" for k in range(n))))


def depth(n):
    return graph(spec.GRU("g", 3, 3, n)("x"))


def normed(name, **options):
    """A layer of ten tensors."""
    return spec.LSTM(name, 3, 3, layer_norm="product", **options)("x")


def tensors_of(n):
    constants = [spec.Constant(f"c{i}", (3,))() for i in range(n % 10)]
    return graph(*(normed(f"n{i}") for i in range(n // 10)), *constants, ADD("x", "x"))


def names_of(n):
    """Layers of two tensors, whose names are 522 characters, and constants of the others."""
    linear = [spec.Linear(f"{i:04}".ljust(255, "a"), 3, 3)("x") for i in range(n // 522)]
    left = [min(255, n % 522 - done) for done in range(0, n % 522, 255)]
    constants = [spec.Constant(str(i) * size, (3,))() for i, size in enumerate(left)]
    return graph(*linear, *constants, ADD("x", "x"))


BOUNDS = {
    "tensors": (tensors_of, MAX_TENSORS, "have 16385 tensors, whose names are"),
    "names": (names_of, MAX_NAMES, "whose names are 1048577 characters long; at most 16384"),
    "nodes": (chain_of, MAX_NODES, "has 4097 nodes"),
    "depth": (depth, MAX_DEPTH, "4097 layers, those of stacks"),
    "inputs": (
        lambda n: graph(ADD("x0", "x0"), inputs=[spec.Input(f"x{i}", (1,)) for i in range(n)]),
        MAX_VALUES,
        "65 inputs",
    ),
    "outputs": (
        lambda n: graph(ADD("x", "x"), outputs={f"y{i}": "sum" for i in range(n)}),
        MAX_VALUES,
        "65 outputs",
    ),
    "reads": (reading, MAX_READS, "layer 'i' reads 1025 values; at most 1024"),
    "all reads": (all_reads, MAX_ALL_READS, "the layers read 65537 values in all"),
    "axes": (
        lambda n: graph(ADD("x", "x"), inputs=[spec.Input("x", (1,) * n)]),
        MAX_AXES,
        r"input 'x': shape is .*; expected a list of at most 6 integers",
    ),
    "row": (lambda n: wide(n, ADD("x", "x")), MAX_ROW, "input 'x' has rows of 1048577"),
    "output row": (
        lambda n: wide(1, spec.Constant("c", (n,))(), ADD("x", "c")),
        MAX_ROW,
        "layer 'c' .*its output has rows of 1048577",
    ),
    "rate": (lambda n: graph(spec.Repeat("r", n)("x")), MAX_RATE, "'r' .*65537 rows for each"),
    "seldom": (lambda n: graph(spec.Slice("s", step=n)("x")), MAX_RATE, "1/65537 rows for"),
    "terms": (turns, MAX_TERMS, "more than 16 changes of rate"),
    "waits": (waits, MAX_WAITS, "which wait for more than 16"),
    "reach of a window": (
        lambda n: wide(1, spec.Window("w", 2, dilation=n)("x")),
        MAX_REACH,
        "layer 'w' .*it keeps more than 1048576 numbers",
    ),
    "reach of a kernel": (
        lambda n: wide(1, spec.Convolution("c", 1, 1, (2,), dilation=(n,), over_time=True)("x")),
        MAX_REACH,
        "reaches back over 1048577 steps of 1 numbers",
    ),
    "reach of a slice": (
        lambda n: wide(1, spec.Slice("s", end=n)("x")),
        MAX_REACH,
        "it keeps more",
    ),
    "reach of a delay": (
        lambda n: wide(1, spec.Delay("d", (1,), n)("x")),
        MAX_REACH,
        "'d': steps is 1048577; expected at most 1048576",
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name):
    """At the bound a graph passes; one past it is refused by name. Neither takes long."""
    make, bound, message = BOUNDS[name]
    spec.check(make(bound))
    with pytest.raises(ValueError, match=message):
        spec.check(make(bound + 1))


def test_tensors_that_are_shared_count_once():
    """Of 4000 layers of the same ten tensors there are ten, whatever their names are."""
    layers = [normed(f"n{i}".ljust(255, "a"), weights="w" * 240) for i in range(4000)]
    assert len(spec.check(graph(*layers)).tensors) == 10
    tied = [
        spec.Embedding(f"e{i}", 7, 3, tensor_names=(("weight", "table"),))("word")
        for i in range(4000)
    ]
    assert list(spec.check(graph(*tied, inputs=[TOKENS])).tensors) == ["table"]


def test_names_of_one_layer_are_counted_before_they_are_made():
    name = "n" * 255
    deep = spec.LSTM(name, 3, 3, 2048, layer_norm="product", bidirectional=True)
    made = graph(deep("x"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="have 40960 tensors"):
            spec.check(made)
        assert tracemalloc.get_traced_memory()[1] < 2**23  # their names alone are more
    finally:
        tracemalloc.stop()


def test_bound_of_work():
    """2**36 multiply-adds, of which the row's own numbers are some."""
    n = 2**20
    linear = spec.Linear("l", n, 2**16 - 1)
    spec.check(wide(n, linear("x")))
    with pytest.raises(
        ValueError, match=r"a step would take .* multiply-adds; at most 68719476736"
    ):
        spec.check(wide(n, spec.Linear("l", n, 2**16)("x")))


def test_bound_of_state():
    delays = [spec.Delay(f"d{i}", (1,), 2**20)("x") for i in range(16)]
    all_ = spec.Index.of("all", np.arange(16))(*(f"d{i}" for i in range(16)))
    spec.check(wide(1, *delays, all_))
    more = spec.Delay("more", (16,))("all")
    with pytest.raises(ValueError, match="state of one stream would be 16777232 numbers"):
        spec.check(wide(1, *delays, all_, more))
    spec.check(wide(1, *delays, more, all_))  # whose last node, the output, does without it


def test_bound_of_comparisons():
    """Of 1024 delays, each meets at most 32 others that may be the least: 2**15 pairs."""
    nodes = [
        spec.Convolution(*(f"c{i}", 1, 1, (i + 1,)), over_time=True, padding=((0, i),))("x")
        for i in range(1024)
    ]
    nodes += [
        spec.Index.of(name, np.arange(1))(*(f"c{i}" for i in range(1024))) for name in ("a", "b")
    ]
    spec.check(wide(1, *nodes))
    more = spec.Arithmetic("more", "add")("c1", "c0")
    with pytest.raises(ValueError, match=r"up to layer 'more' .* that 65540 comparisons tell"):
        spec.check(wide(1, *nodes, more))


def changing_rates(n):
    nodes, last = [], "x"
    for k in range(n // 2):
        nodes += [spec.Repeat(f"r{k}", 65535)(last), spec.Slice(f"s{k}", step=65536)(f"r{k}")]
        last = f"s{k}"
    return graph(*nodes)


LARGE = {
    "a chain": lambda: chain_of(4096),
    "a ladder": lambda: graph(
        ADD("x", "x"),
        *(spec.Arithmetic(f"n{i}", "add")("x", f"n{i - 1}" if i else "sum") for i in range(4095)),
    ),
    "a loop": lambda: loop(
        ADD("x", "before"),
        *(spec.Activation(f"n{i}", "tanh")(f"n{i - 1}" if i else "sum") for i in range(4094)),
    ),
    "loops": lambda: graph(
        *(
            node
            for i in range(2048)
            for node in (
                spec.Delay(f"d{i}", (3,))(f"s{i}"),
                spec.Arithmetic(f"s{i}", "add")(f"s{i - 1}" if i else "x", f"d{i}"),
            )
        )
    ),
    "rates": lambda: changing_rates(4096),
    "delays": lambda: graph(
        *(
            node
            for i in range(2000)
            for node in (
                spec.Convolution(
                    *(f"c{i}", 3, 3, (2 + i % 50,)), over_time=True, padding=((0, 1 + i % 50),)
                )("x"),
                spec.Arithmetic(f"n{i}", "add")(f"n{i - 1}" if i else "x", f"c{i}"),
            )
        )
    ),
    "waits": lambda: graph(
        *waits(16).nodes,
        *(
            spec.Convolution(*(f"s{i}", 3, 3, (2 + i,)), over_time=True, padding=((0, 1 + i),))(
                "all"
            )
            for i in range(1000)
        ),
        *(
            spec.Index.of(f"m{j}", np.arange(3))(*(f"s{i}" for i in range(1000) if i != j))
            for j in range(60)
        ),
    ),
    "names": lambda: wide(
        1,
        *(spec.Linear("a" * 240 + str(i), 1, 1)("x") for i in range(1000)),
        spec.Arithmetic("wrong", "add")(*("a" * 240 + str(i) for i in range(1000))),
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_graphs_are_checked_soon(name):
    """Whether they are taken or refused: by the work of a second, some megabytes, in few words."""
    made = LARGE[name]()
    spec.check(graph(ADD("x", "x")))
    try:
        with counted_calls(MOST_CALLS):
            spec.check(made)
    except ValueError as error:
        assert len(str(error)) < 5000  # noqa: PT017 - most of these graphs are good ones
    tracemalloc.start()
    try:
        spec.check(made)
    except ValueError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 64 * 2**20


def plain(name):
    example = EXAMPLES[name]
    return graph_of(example.layer, example.shapes, example.held, example.tokens).to_dict()


WRONG = [
    *(None, True, False, 0, -1, -7, 1, 2, 2**31, 10**30, 10**400, 0.5, -0.0, 1e308, -1e308),
    *(float("nan"), float("inf"), "", "n", "x0", "tanh", "\n", "\ud800", "a" * 300),
    *([], [0], [1, 2], [[1, 1]], [[0, 0]], [["weight", "w"]], [None], ["x0"], {}, {"n": 1}),
    *(["x0"] * 40, [2**31 - 1] * 3, [[2**31 - 1, 1, 2**31 - 1]], "leaky_relu(nan)"),
]


class TestStrictness:
    @pytest.mark.parametrize("name", EXAMPLES)
    def test_every_field_is_needed_and_no_other_is(self, name):
        layer = EXAMPLES[name].layer
        entry = layer.to_dict()
        fields = layer.__dataclass_fields__
        for field in entry:
            if field in fields and fields[field].metadata.get("extra"):
                continue  # without it, it is what it usually is
            less = {k: v for k, v in entry.items() if k != field}
            with pytest.raises(ValueError, match=r"missing or unknown|is unknown"):
                spec.layer_from_dict(less)
        with pytest.raises(ValueError, match="missing or unknown fields 'hidden'"):
            spec.layer_from_dict(entry | {"hidden": 1})

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_wrong_types(self, name):
        """A bool is no number, 1.0 no integer, 1 no float, a text no list."""
        layer = EXAMPLES[name].layer
        entry = layer.to_dict()
        for field, value in entry.items():
            kind = type(value)
            for wrong in (None, True, 1, 1.0, "1", [True], [1.0], {}, float("nan"), 10**400):
                if type(wrong) is kind and not (kind is float and wrong != wrong):
                    continue
                with pytest.raises(ValueError, match=r"."):
                    spec.layer_from_dict(entry | {field: wrong})

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_what_is_usual_is_left_out(self, name):
        layer = EXAMPLES[name].layer
        entry = layer.to_dict()
        for field in layer.__dataclass_fields__.values():
            if field.metadata.get("extra") and field.name not in entry:
                default = field.default
                value = list(default) if isinstance(default, tuple) else default
                with pytest.raises(ValueError, match=r"which is left out|expected"):
                    spec.layer_from_dict(entry | {field.name: value})

    @pytest.mark.parametrize("wrong", [None, [], "graph", 7, {}, {"inputs": []}])
    def test_what_is_no_graph(self, wrong):
        with pytest.raises(ValueError, match="a graph"):
            spec.Graph.from_dict(wrong)
        with pytest.raises(ValueError, match="layer"):
            spec.layer_from_dict(wrong)

    def test_fields_of_inputs(self):
        entry = plain("linear")
        for field, wrong in [
            ("name", 7),
            ("name", ""),
            ("shape", 3),
            ("shape", [0]),
            ("shape", [3.0]),
            ("shape", [True]),
            ("tokens", -1),
            ("tokens", True),
            ("held", 1),
        ]:
            made = copy.deepcopy(entry)
            made["inputs"][0][field] = wrong
            with pytest.raises(ValueError, match="input"):
                spec.Graph.from_dict(made)


def places(value, path=()):
    """Paths to everything within a JSON value."""
    yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, (*path, key))
    if isinstance(value, list):
        for i, one in enumerate(value):
            yield from places(one, (*path, i))


def changed(entry, rng):
    """The entry with one to three of its parts replaced, removed or taken from elsewhere."""
    entry = copy.deepcopy(entry)
    for _ in range(int(rng.integers(1, 4))):
        paths = [path for path in places(entry) if path]
        *path, last = paths[int(rng.integers(0, len(paths)))]
        at = entry
        for key in path:
            at = at[key]
        kind = rng.integers(0, 4)
        if kind == 0:
            del at[last]
        elif kind == 1:
            *other, key = paths[int(rng.integers(0, len(paths)))]
            source = entry
            for one in other:
                source = source[one] if not isinstance(source, str | int | float) else source
            at[last] = copy.deepcopy(source)
        else:
            at[last] = copy.deepcopy(WRONG[int(rng.integers(0, len(WRONG)))])
        if not isinstance(entry, dict) or not any(places(entry)):
            break
    return entry


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.shapes])
def test_rows_of_any_axes_are_taken_or_refused(name):
    example = EXAMPLES[name]
    shapes = [(), (1,), (2,), (3,), (2, 3), (3, 3), (5, 4, 3), (1, 1, 1, 1), (2, 2, 2, 2, 2, 2)]
    refused = 0
    for shape in shapes:
        for i in range(len(example.shapes)):
            given = [shape if k == i else kept for k, kept in enumerate(example.shapes)]
            try:
                spec.check(graph_of(example.layer, given, example.held, example.tokens))
            except ValueError as error:
                refused += 1
                assert "layer 'n'" in str(error)  # noqa: PT017 - many of these graphs are good
    assert refused or example.layer.kind in (
        *("activation", "attention", "embedding", "fold", "one_hot", "repeat", "slice", "window"),
        "softmax",
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_whatever_is_written_is_taken_or_refused(name, rng):
    """No other error than ValueError, and a graph that is taken is the same again."""
    entry = plain(name)
    for _ in range(150):
        made = changed(entry, rng)
        text = repr(made)[:2000]
        try:
            again = spec.Graph.from_dict(made)
            spec.check(again)
        except ValueError:
            continue
        except Exception as error:
            pytest.fail(f"{error!r} of {text}")
        if any(i.held is False for i in again.inputs):
            assert spec.Graph.from_dict(json.loads(json.dumps(again.to_dict()))) == again, text


def test_words_of_a_file_reach_no_terminal_as_they_are():
    """Whatever an error quotes, it quotes as Python writes it."""
    wrong = "\x1b[2J\ud800"
    entry = spec.Linear("n", 3, 3).to_dict()
    whole = graph_of(spec.Linear("n", 3, 3), [(3,)]).to_dict()
    facts = spec.check(graph_of(spec.Repeat("n", 2), [()]))
    attempts = [
        lambda: spec.layer_from_dict(entry | {wrong: 1}),
        lambda: spec.layer_from_dict(entry | {"name": wrong}),
        lambda: spec.layer_from_dict(entry | {"kind": wrong}),
        lambda: spec.layer_from_dict(entry | {"bias": wrong}),
        lambda: spec.layer_from_dict(entry | {"weights": wrong}),
        lambda: spec.layer_from_dict({"kind": "activation", "name": "n", "function": wrong}),
        lambda: spec.layer_from_dict({"kind": "arithmetic", "name": "n", "operation": wrong}),
        lambda: spec.Graph.from_dict(whole | {wrong: 1}),
        lambda: spec.Graph.from_dict(whole | {"inputs": [{wrong: 1}]}),
        lambda: spec.Graph.from_dict(whole | {"nodes": [{"reads": wrong}]}),
        lambda: spec.check(spec.Graph.from_dict(whole | {"outputs": [[wrong, "n"]]})),
        lambda: spec.check(spec.Graph.from_dict(whole | {"outputs": [["y", wrong]]})),
        lambda: spec.check(spec.Graph.from_dict(whole | {"nodes": [entry | {"reads": [wrong]}]})),
        lambda: spec.check(graph_of(spec.Linear("n", 3, 3, tensor_names=((wrong, "w"),)), [(3,)])),
        lambda: spec.check_tensors(facts, {wrong: ()}),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"\\x1b\[2J\\ud800") as refused:
            attempt()
        assert str(refused.value).isprintable()


def of_many():
    """A graph of most kinds, with two loops, branches that meet, folds, tokens and held rows."""
    return spec.Graph(
        [spec.Input("x", (4,)), spec.Input("k", (4,), held=True), spec.Input("word", (), 5)],
        [
            spec.Embedding("words", 5, 4)("word"),
            spec.Arithmetic("sum", "add")("x", "before"),
            spec.GRU("gru", 4, 4, initial_state="given")("sum", "k"),
            spec.Delay("before", (4,), 2)("gru"),
            spec.Convolution(*("down", 4, 4, (3,)), over_time=True, stride=(2,), padding=((1, 1),))(
                "gru"
            ),
            spec.Convolution(
                *("up", 4, 4, (4,)),
                over_time=True,
                stride=(2,),
                transposed=True,
                padding=((1, 1),),
            )("down"),
            spec.Slice("slow", step=2)("x"),
            spec.Repeat("held up", 2)("slow"),
            spec.Arithmetic("loop", "add")("held up", "again"),
            spec.Delay("again", (4,))("loop"),
            spec.Fold("mean", "mean", cumulative=True)("words"),
            spec.Index.of("both", np.arange(8).reshape(2, 4))("mean", "gru"),
            spec.MatMul("product", transposed=True)("both", "both"),
            spec.Softmax("softmax")("product"),
            spec.Fold("most", "max")("up"),
            spec.Constant("c", (4,))(),
            spec.Arithmetic("where", "where")("c", "k", "most"),
            spec.LSTM("both ways", 4, 3, bidirectional=True, along="positions")("both"),
            spec.Window("window", 3, padding=2)("loop"),
            spec.Spread("spread", 3)("window"),
        ],
        {"a": "softmax", "b": "where", "c": "both ways", "d": "spread"},
    )


def test_whatever_is_written_of_many_nodes_is_taken_or_refused_soon(rng):
    """Also of loops and branches: ValueError or a graph, in a few words and some thousand calls."""
    entry = json.loads(json.dumps(of_many().to_dict()))
    taken, messages = 0, set()
    for _ in range(2000):
        made = changed(entry, rng)
        try:
            with counted_calls(50_000):  # the most that any of them needs is 8,000
                spec.check(spec.Graph.from_dict(made))
            taken += 1
        except ValueError as error:
            messages.add(str(error))
            assert len(str(error)) < 2000  # noqa: PT017 - some of these graphs are good
        except Exception as error:
            pytest.fail(f"{error!r} of {made!r:.2000}")
    assert taken > 5
    assert len(messages) > 500
