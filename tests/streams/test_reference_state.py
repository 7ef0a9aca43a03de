"""The reference's streams: what they keep, copies of it, batches, and inputs that do not fit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from one_layer import EXAMPLES, draw, graph_of, inputs_of

from fastlstm import reference, spec


def of_many(rng: np.random.Generator) -> tuple[spec.Graph, dict[str, np.ndarray]]:
    """A graph with a loop, branches of unequal delays, rates, a fold, tokens and a held input."""
    nodes = [
        spec.Index.of("first", np.array(0))("word"),
        spec.Embedding("words", 5, 4)("first"),
        spec.Arithmetic("fed", "add")("x", "before"),
        spec.GRU("gru", 4, 4, initial_state="given")("fed", "k"),
        spec.Delay("before", (4,), 2, initial_state="learned")("gru"),
        spec.Convolution("late", 4, 4, (3,), over_time=True, padding=((1, 1),))("gru"),
        spec.Arithmetic("met", "add")("late", "words"),
        spec.Slice("seldom", step=2)("met"),
        spec.Fold("most", "max")("met"),
    ]
    inputs = [
        *(spec.Input("x", (4,)), spec.Input("word", (2,), 5)),
        spec.Input("k", (4,), held=True),
    ]
    outputs = {"met": "met", "seldom": "seldom", "most": "most", "token": "first"}
    graph = spec.Graph(inputs, nodes, outputs)
    return graph, draw(graph, rng)


STREAMED = [
    name
    for name, example in EXAMPLES.items()
    if example.shapes
    and not spec.check(
        graph_of(example.layer, example.shapes, example.held, example.tokens)
    ).looks_ahead
]


def made(name: str, rng: np.random.Generator) -> tuple[spec.Graph, dict[str, np.ndarray]]:
    if name == "of many":
        return of_many(rng)
    example = EXAMPLES[name]
    graph = graph_of(example.layer, example.shapes, example.held, example.tokens)
    return graph, draw(graph, rng)


class Runner:
    """A stream of a graph on random inputs, run from step to step."""

    def __init__(self, name: str, rng: np.random.Generator, T: int = 12, B: int = 3) -> None:
        self.graph, self.tensors = made(name, rng)
        self.inputs = inputs_of(self.graph, T, B, rng)
        self.held = {i.name for i in self.graph.inputs if i.held}
        self.B = B
        self.stream = self.new(range(B))

    def new(self, rows: range) -> reference.Stream:
        held = {name: self.inputs[name][list(rows)] for name in self.held}
        return reference.Stream(self.graph, self.tensors, len(rows), held=held)

    def steps(self, start: int, stop: int, rows: range | None = None) -> dict[str, np.ndarray]:
        rows = range(self.B) if rows is None else rows
        return {
            name: x[start:stop, list(rows)]
            for name, x in self.inputs.items()
            if name not in self.held
        }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, expected in b.items():
        np.testing.assert_array_equal(a[name], expected, err_msg=name)


@pytest.mark.parametrize("name", ["of many", *STREAMED])
class TestState:
    def test_it_is_what_check_lists(self, name: str, rng: np.random.Generator) -> None:
        """From the start on, and after steps, beside rows that wait for others."""
        runner = Runner(name, rng)
        listed = spec.check(runner.graph).state
        for _ in range(2):
            kept = {n: x for n, x in runner.stream.state.items() if ".queue." not in n}
            assert {n: x.shape for n, x in kept.items()} == {
                n: (shape[0], runner.B, *shape[1:]) for n, shape in listed.items()
            }
            runner.stream.run(runner.steps(0, 5))

    def test_a_copy_can_be_put_back(self, name: str, rng: np.random.Generator) -> None:
        runner = Runner(name, rng)
        runner.stream.run(runner.steps(0, 5))
        kept = copy.deepcopy(runner.stream.state)
        once = [runner.stream.run(runner.steps(5, 9)), runner.stream.flush()]
        runner.stream.state = copy.deepcopy(kept)
        again = [runner.stream.run(runner.steps(5, 9)), runner.stream.flush()]
        other = runner.new(range(runner.B))
        other.state = kept
        anew = [other.run(runner.steps(5, 9)), other.flush()]
        for first, second, third in zip(once, again, anew, strict=True):
            same(second, first)
            same(third, first)

    def test_what_it_would_be_if_it_ended_changes_nothing(
        self, name: str, rng: np.random.Generator
    ) -> None:
        runner = Runner(name, rng)
        other = runner.new(range(runner.B))
        for t in range(0, 12, 3):
            same(runner.stream.run(runner.steps(t, t + 3)), other.run(runner.steps(t, t + 3)))
            same(other.flush(), other.flush())
        same(runner.stream.flush(), other.flush())

    def test_the_last_steps_and_the_end_in_one(self, name: str, rng: np.random.Generator) -> None:
        runner = Runner(name, rng)
        other = runner.new(range(runner.B))
        for stream in (runner.stream, other):
            stream.run(runner.steps(0, 7))
        last, end = other.run(runner.steps(7, 12)), other.flush()
        finished = runner.stream.finish(runner.steps(7, 12))
        for output in runner.graph.outputs:
            expected = np.concatenate([last[output], end[output]])
            np.testing.assert_allclose(finished[output], expected, rtol=1e-12, atol=1e-12)

    def test_rows_of_a_batch_know_nothing_of_each_other(
        self, name: str, rng: np.random.Generator
    ) -> None:
        runner = Runner(name, rng)
        together = [runner.stream.run(runner.steps(0, 12)), runner.stream.flush()]
        for b in range(runner.B):
            alone = runner.new(range(b, b + 1))
            apart = [alone.run(runner.steps(0, 12, range(b, b + 1))), alone.flush()]
            for all_, one in zip(together, apart, strict=True):
                for output, value in one.items():
                    np.testing.assert_allclose(
                        value, all_[output][:, b : b + 1], rtol=1e-12, atol=1e-12
                    )


class TestInputs:
    def _stream(self, rng: np.random.Generator) -> tuple[reference.Stream, dict[str, np.ndarray]]:
        runner = Runner("of many", rng)
        return runner.stream, runner.steps(0, 4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: x | {"y": x["x"]}, r"expected inputs \['word', 'x'\]; .*: \['y'\]"),
            (lambda x: {"x": x["x"]}, r"missing or unknown: \['word'\]"),
            (lambda x: x | {"k": x["x"][0]}, r"missing or unknown: \['k'\]"),
            (
                lambda x: x | {"x": x["x"][..., :3]},
                r"input 'x' has shape \(4, 3, 3\); expected \(T, 3, 4\)",
            ),
            (lambda x: x | {"x": x["x"][:, :2]}, r"has shape \(4, 2, 4\); expected \(T, 3, 4\)"),
            (lambda x: x | {"x": x["x"][0]}, r"has shape \(3, 4\); expected \(T, 3, 4\)"),
            (lambda x: x | {"x": x["x"][:3]}, "as many steps each, but 'x' has 3, 'word' has 4"),
            (lambda x: x | {"word": x["word"] + 5}, "some are no token; expected integers from 0"),
            (lambda x: x | {"word": x["word"] * 1.0}, "'word' is float64 numbers"),
        ],
    )
    def test_that_do_not_fit(self, change, message, rng: np.random.Generator) -> None:
        stream, steps = self._stream(rng)
        kept = copy.deepcopy(stream.state)
        with pytest.raises(ValueError, match=message):
            stream.run(change(steps))
        same(stream.state, kept)

    def test_held_ones(self, rng: np.random.Generator) -> None:
        graph, tensors = of_many(rng)
        with pytest.raises(ValueError, match=r"expected inputs \['k'\]; .*: \['k'\]"):
            reference.Stream(graph, tensors, 3)
        with pytest.raises(ValueError, match=r"'k' has shape \(2, 4\); expected \(3, 4\)"):
            reference.Stream(graph, tensors, 3, held={"k": np.zeros((2, 4))})

    def test_batches_of_several_sizes(self, rng: np.random.Generator) -> None:
        graph, tensors = of_many(rng)
        inputs = inputs_of(graph, 4, 3, rng)
        with pytest.raises(ValueError, match=r"batches of \[2, 3\] rows; expected one size"):
            reference.forward(graph, tensors, inputs | {"k": np.zeros((2, 4))})

    def test_sequences_that_are_not_as_far(self, rng: np.random.Generator) -> None:
        runner = Runner("slice", rng)
        runner.stream.run(runner.steps(0, 4))
        runner.stream.state["n.count"][0, 1] += 1
        with pytest.raises(ValueError, match=r"have read \[4 5\] steps; expected as many for each"):
            runner.stream.run(runner.steps(4, 8))
