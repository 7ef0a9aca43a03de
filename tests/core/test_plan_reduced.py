"""Graphs with matrices in other precisions as programs: the rows are those of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import EXAMPLES, draw, graph_of, inputs_of
from planned import Planned
from random_graphs import random_graph, random_inputs, text

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.reduced import Reduced

PRECISIONS = spec.PRECISIONS[1:]
SEEDS = range(60)


def reduced(graph: spec.Graph, tensors: dict, precision: str) -> dict:
    """The tensors, in a precision those that can be."""
    made = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    for one in spec.stored(graph, spec.check(graph).tensors):
        if precision not in one.refused:
            axes = one.axes.items()
            made |= {name: Reduced.of(made[name], precision, axis) for name, axis in axes}
    return made


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [name for name, one in EXAMPLES.items() if one.layer.matrices()])
def test_every_kind_of_layer(name, precision, rng):
    one = EXAMPLES[name]
    graph = graph_of(one.layer, one.shapes, one.held, one.tokens)
    planned = Planned(graph, reduced(graph, draw(graph, rng), precision))
    planned.check_whole(inputs_of(graph, 7, 3, rng), 3, rng)
    if not planned.facts.looks_ahead:
        planned.check_streamed(inputs_of(graph, 7, 3, rng), 3, rng)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs(seed):
    graph, tensors = random_graph(np.random.default_rng(seed))
    planned = Planned(graph, reduced(graph, tensors, ("int8", "int8", *PRECISIONS)[seed % 5]))
    print(text(graph))
    print(planned.program)
    rng = np.random.default_rng([seed, 9])
    planned.check_whole(random_inputs(rng, graph, 9, 2), 2, rng)
    if not planned.facts.looks_ahead:
        planned.check_streamed(random_inputs(rng, graph, 9, 2), 2, rng)


@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        ((4,), (2,), (1,), ((1, 1),)),
        ((3,), (1,), (2,), ((0, 3),)),
        ((1,), (3,), (1,), ((0, 0),)),
        ((4,), (3,), (2,), ((2, 0),)),
        ((3, 4), (2, 3), (1, 2), ((1, 0), (0, 1))),
    ],
)
def test_transposed_kernels_of_integers(kernel, stride, dilation, padding, groups, over_time, rng):
    """Their rows are what reaches as many outputs as the stride is, in the plan as in NumPy."""
    layer = spec.Convolution(
        *("n", 4, 6, kernel, groups),
        **{"stride": stride, "dilation": dilation, "padding": padding},
        over_time=over_time,
        transposed=True,
    )
    graph = graph_of(layer, [(4, 5, 3)[: 1 + len(kernel) - over_time]])
    planned = Planned(graph, reduced(graph, draw(graph, rng), "int8"))
    planned.check_whole(inputs_of(graph, 9, 2, rng), 2, rng)
    if not planned.facts.looks_ahead:
        planned.check_streamed(inputs_of(graph, 9, 2, rng), 2, rng)


def parallel(precisions):
    """Products of one input, each in a precision, side by side."""
    nodes = [spec.Linear(f"l{i}", 6, 3)("x") for i in range(len(precisions))]
    outputs = {node.name: node.name for node in nodes}
    graph = spec.Graph([spec.Input("x", (6,))], nodes, outputs)
    rng = np.random.default_rng(5)
    tensors = {k: v.astype(np.float32) for k, v in draw(graph, rng).items()}
    for i, precision in enumerate(precisions):
        if precision != "float32":
            tensors[f"l{i}.weight"] = Reduced.of(tensors[f"l{i}.weight"], precision)
    return Planned(graph, tensors), inputs_of(graph, 5, 2, rng), rng


def test_products_of_one_precision_are_joined():
    planned, x, rng = parallel(["int8", "float32", "int8", "float16", "int8", "float32"])
    planned.check_whole(x, 2, rng)
    products = [one for one in planned.program.operations if isinstance(one, op.Product)]
    matrices = [planned.program.matrices[planned.program.lists[p.matrices][0]] for p in products]
    assert sorted((one.stored, one.rows) for one in matrices) == [
        ("float16", 3),
        ("int8", 9),
        ("real", 6),
    ]
    (joined,) = [one for one in matrices if one.stored == "int8"]
    scales = [planned.tensors[f"l{i}.weight"].scale for i in (0, 2, 4)]
    vector = planned.program.vectors[joined.scale]
    kept = np.array(planned.program.reals)[vector.first : vector.first + vector.count]
    np.testing.assert_array_equal(kept, np.concatenate(scales))


@pytest.mark.parametrize(("precision", "moves"), [("float32", 0), ("bfloat16", 0), ("int8", 1)])
def test_integers_see_no_number_that_is_not_theirs(precision, moves):
    """A recurrence reads a row as it lies, with a few numbers too many; not if they would count."""
    some = spec.Index.of("some", np.delete(np.arange(10), 3))
    graph = spec.Graph(
        [spec.Input("x", (10,))],
        [some("x"), spec.GRU("n", 9, 5)("some")],
        {"y": "n"},
    )
    rng = np.random.default_rng(6)
    tensors = draw(graph, rng)
    given = {k: v.astype(np.float32) for k, v in tensors.items()}
    planned = Planned(graph, given if precision == "float32" else reduced(graph, given, precision))
    assert sum(isinstance(one, op.Move) for one in planned.program.operations) == moves
    x = inputs_of(graph, 5, 2, rng)
    x["x"][..., 3] = 1e6
    planned.check_whole(x, 2, rng)
