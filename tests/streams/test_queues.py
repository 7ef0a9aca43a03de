"""Rows that wait for others in a stream: never more than check() says, and as many where it can."""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import draw, inputs_of
from random_graphs import random_graph, random_inputs

from fastlstm import reference, spec

X = spec.Input("x", (2,))
ADD = "add"


def most_waiting(graph, tensors, inputs):
    """Node -> the most rows of each of its reads that wait after any step of a stream."""
    held = {i.name: inputs[i.name] for i in graph.inputs if i.held}
    moving = {name: x for name, x in inputs.items() if name not in held}
    T, B = next(iter(moving.values())).shape[:2]
    stream = reference.Stream(graph, tensors, B, held=held)
    facts = stream.facts
    most = {node.name: [0] * len(node.reads) for g in facts.groups for node in g.nodes}
    for t in range(T):
        stream.run({name: x[t : t + 1] for name, x in moving.items()})
        for node, counts in most.items():
            for place in range(len(counts)):
                waiting = stream.state.get(f"{node}.queue.{place}", ())
                counts[place] = max(counts[place], len(waiting))
    return {node: tuple(counts) for node, counts in most.items()}


def both(graph, rng, T=48):
    tensors = draw(graph, rng)
    return most_waiting(graph, tensors, inputs_of(graph, T, 1, rng)), spec.check(graph).queues


def late(name, steps):
    """A convolution that a stream has so many steps late: of as many rows as it reads."""
    padding = ((0, steps),) if steps else ()
    return spec.Convolution(name, 2, 2, (steps + 1,), padding=padding, over_time=True)


def test_of_random_graphs():
    waited = reached = 0
    for seed in range(150):
        graph, tensors = random_graph(np.random.default_rng(seed))
        facts = spec.check(graph)
        if facts.looks_ahead:
            continue
        T = max(row.timing.delay for row in facts.rows.values() if row.timing) + 13
        inputs = random_inputs(np.random.default_rng([seed, 1]), graph, T, 1)
        seen = most_waiting(graph, tensors, inputs)
        assert seen.keys() == facts.queues.keys()
        for node, counts in seen.items():
            for count, bound in zip(counts, facts.queues[node], strict=True):
                assert count <= bound, (seed, node, counts, facts.queues[node])
                waited, reached = waited + (bound > 0), reached + (count == bound > 0)
    assert waited > 20
    assert reached > 0.9 * waited


class TestEqualRates:
    """The bound is reached."""

    @pytest.mark.parametrize("delays", [(0, 3), (3, 0), (2, 2), (0, 1, 5), (4, 4, 1)])
    def test_of_delays(self, delays, rng):
        nodes = [late(f"n{i}", steps)("x") for i, steps in enumerate(delays)]
        nodes.append(spec.Index.of("met", np.arange(2 * len(delays)))(*(n.name for n in nodes)))
        seen, queues = both(spec.Graph([X], nodes, {"y": "met"}), rng)
        assert seen == queues
        assert queues["met"] == tuple(max(delays) - steps for steps in delays)

    def test_of_an_input_and_of_what_is_read_again(self, rng):
        nodes = [late("late", 4)("x"), spec.Index.of("met", np.arange(6))("x", "late", "x")]
        seen, queues = both(spec.Graph([X], nodes, {"y": "met"}), rng)
        assert seen == queues == {"late": (0,), "met": (4, 0, 0)}

    @pytest.mark.parametrize("stride", [1, 2, 3, 4])
    def test_behind_a_lower_rate(self, stride, rng):
        def down(name, padding):
            return spec.Convolution(
                name, 2, 2, (7,), stride=(stride,), padding=(padding,), over_time=True
            )

        for behind in range(7):
            nodes = [
                down("early", (6, 0))("x"),
                down("late", (6 - behind, behind))("x"),
                spec.Arithmetic("met", ADD)("early", "late"),
            ]
            seen, queues = both(spec.Graph([X], nodes, {"y": "met"}), rng)
            assert seen == queues
            assert queues["met"] == (-(-behind // stride), 0)

    @pytest.mark.parametrize("times", [2, 3])
    def test_behind_a_higher_rate(self, times, rng):
        nodes = [
            *(spec.Repeat("early", times)("x"), late("later", 3)("x")),
            spec.Repeat("late", times)("later"),
            spec.Arithmetic("met", ADD)("early", "late"),
        ]
        seen, queues = both(spec.Graph([X], nodes, {"y": "met"}), rng)
        assert seen == queues
        assert queues["met"] == (3 * times, 0)

    def test_of_folds(self, rng):
        nodes = [
            *(late("late", 2)("x"), spec.Fold("a", "sum")("x"), spec.Fold("b", "max")("late")),
            spec.Arithmetic("met", ADD)("b", "a"),
        ]
        seen, queues = both(spec.Graph([X], nodes, {"y": "met"}), rng)
        assert seen == queues
        assert queues["met"] == (0, 2)

    def test_of_a_loop(self, rng):
        """What the nodes of a loop read of others waits for all of it."""
        nodes = [
            *(late("late", 3)("x"), late("later", 5)("x")),
            spec.Arithmetic("sum", ADD)("x", "before"),
            spec.Arithmetic("mixed", "minimum")("sum", "late"),
            spec.Arithmetic("again", "maximum")("mixed", "later"),
            spec.Arithmetic("last", ADD)("again", "x"),
            spec.Delay("before", (2,))("last"),
        ]
        seen, queues = both(spec.Graph([X], nodes, {"y": "last"}), rng)
        assert seen == queues
        found = {}
        for node in nodes:
            counts = zip(node.reads, queues[node.name], strict=True)
            found |= {name: count for name, count in counts if count}
        assert found == {"x": 5, "late": 2}

    def test_of_rows_that_are_there_only_later(self, rng):
        """A sequence of few rows has none of one value: those of the other wait as long."""
        whole = {"padding": ((1, 4),), "over_time": True}
        nodes = [
            spec.Slice("less", start=5)("x"),
            spec.Convolution("late", 2, 2, (6,), **whole)("less"),
            spec.Convolution("early", 2, 2, (6,), padding=((5, 0),), over_time=True)("less"),
            spec.Arithmetic("met", ADD)("early", "late"),
        ]
        seen, queues = both(spec.Graph([X], nodes, {"y": "met"}), rng)
        assert seen == queues
        assert queues["met"] == (4, 0)


def test_a_change_of_rate_that_another_follows(rng):
    """Down and up again: the bound holds, and is at most that of rows that come at once."""
    reached = 0
    for _ in range(80):
        ways = []
        stride, padding = int(rng.integers(2, 5)), [int(p) for p in rng.integers(0, 5, 4)]
        for way in range(2):
            down = spec.Convolution(
                *(f"down{way}", 2, 2, (5,)),
                stride=(stride,),
                padding=((4 - padding[way], padding[way]),),
                over_time=True,
            )
            up = spec.Repeat(f"up{way}", stride)
            behind = padding[2 + way]
            end = spec.Convolution(
                *(f"end{way}", 2, 2, (5,)), padding=((4 - behind, behind),), over_time=True
            )
            ways += [down("x"), up(down.name), end(up.name)]
        graph = spec.Graph([X], [*ways, spec.Arithmetic("met", ADD)("end0", "end1")], {"y": "met"})
        seen, queues = both(graph, rng, 40)
        assert all(c <= b for c, b in zip(seen["met"], queues["met"], strict=True)), graph
        reached += seen["met"] == queues["met"]
    assert reached > 60


def test_what_needs_the_end_waits_for_nothing():
    nodes = [
        spec.GRU("both ways", 2, 1, bidirectional=True)("x"),
        late("late", 2)("x"),
        spec.Arithmetic("met", ADD)("both ways", "late"),
    ]
    assert spec.check(spec.Graph([X], nodes, {"y": "met"})).queues["met"] == (0, 0)


def test_they_count_as_state():
    """Of 2**24 numbers; rows of a mebinumber wait for those of 16 steps later."""
    one = [spec.Input("x", (2**20,)), spec.Input("z", (1,))]
    lates = spec.Convolution("late", 1, 1, (17,), padding=((0, 16),), over_time=True)
    nodes = [
        lates("z"),
        spec.Index.of("wide", np.zeros(2**20, np.int64))("late"),
        spec.Arithmetic("met", ADD)("x", "wide"),
    ]
    message = r"state of one stream would be 16777233 numbers, 16777216 of them in rows that wait"
    with pytest.raises(ValueError, match=message):
        spec.check(spec.Graph(one, nodes, {"y": "met"}))
    spec.check(spec.Graph(one, nodes, {"y": "wide"}))
