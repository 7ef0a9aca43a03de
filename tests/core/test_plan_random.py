"""Random graphs, planned and run in NumPy, give what the reference gives, however they are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from program_in_numpy import NumPyProgram
from random_graphs import random_graph, random_inputs, text

from fastlstm import spec
from fastlstm.plan.lowering import plan
from fastlstm.plan.program import Program
from fastlstm.reference import Stream, forward

SEEDS = range(150)


def planned(graph: spec.Graph, tensors: dict[str, np.ndarray]) -> NumPyProgram:
    """A graph's program, as its bytes have it."""
    made = plan(graph, tensors)
    read = Program.from_bytes(made.to_bytes())
    assert read.to_bytes() == made.to_bytes()
    return NumPyProgram(read, [tensors[name] for name in made.tensor_names])


def rows(x: np.ndarray, ndim: int) -> np.ndarray:
    """The axes of a row as one."""
    ends = x.ndim - ndim
    return x.reshape(*x.shape[:ends], math.prod(x.shape[ends:]))


def given(graph: spec.Graph, inputs: dict[str, np.ndarray], held: bool) -> list[np.ndarray]:
    return [rows(inputs[i.name], len(i.shape)) for i in graph.inputs if i.held == held]


def assert_close(graph: spec.Graph, got: list[np.ndarray], expected: dict[str, np.ndarray]):
    for (name, y), made in zip(expected.items(), got, strict=True):
        message = f"output {name}\n{text(graph)}"
        assert made.shape[:2] == y.shape[:2], message
        y = y.reshape(made.shape)
        np.testing.assert_allclose(made, y, rtol=1e-9, atol=1e-9, err_msg=message)


def joined(graph: spec.Graph, parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The rows of all calls; of what is held, those of one of them."""
    held = [spec.check(graph).rows[name].held for name in graph.outputs.values()]
    return [
        np.concatenate(pieces) if not once else pieces[0]
        for once, *pieces in zip(held, *parts, strict=True)
    ]


def assert_same_state(
    graph: spec.Graph, program: NumPyProgram, state: np.ndarray, stream: Stream
) -> None:
    """Parts that are read by name are those of the reference, but for means and counts."""
    facts = spec.check(graph)
    means = {n.name for n in graph.nodes if getattr(n.layer, "function", "") == "mean"}
    named = dict(zip(facts.state, program.program.parts, strict=True))
    for name, part in named.items():
        if part.part != "count" and name.rpartition(".")[0] not in means:
            expected = stream.state[name].swapaxes(0, 1)
            got = program.read(state, part).reshape(expected.shape)
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graph(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph, tensors = random_graph(rng)
    T, B = int(rng.integers(0, 14)), int(rng.integers(1, 4))
    inputs = random_inputs(rng, graph, T, B)
    program = planned(graph, tensors)
    expected = forward(graph, tensors, inputs)
    held, moving = given(graph, inputs, True), given(graph, inputs, False)
    if spec.check(graph).looks_ahead:
        assert program.program.looks_ahead
        assert_close(graph, program.whole(B, held, moving), expected)
        return
    cuts = np.sort(rng.integers(0, T + 1, int(rng.integers(0, 4)))).tolist()
    pieces = [[x[a:b] for x in moving] for a, b in zip([0, *cuts], [*cuts, T], strict=True)]
    state = program.begin(B, held)
    parts = [program.run(state, piece, whole=True) for piece in pieces]
    parts.append(program.flush(state, whole=True))
    assert_close(graph, joined(graph, parts), expected)

    names = [i.name for i in graph.inputs if not i.held]
    starts = {i.name: inputs[i.name] for i in graph.inputs if i.held}
    stream, state = Stream(graph, tensors, B, held=starts), program.begin(B, held)
    for a, b in zip([0, *cuts], [*cuts, T], strict=True):
        rows_of = stream.run({name: inputs[name][a:b] for name in names})
        assert_close(graph, program.run(state, [x[a:b] for x in moving]), rows_of)
        assert_same_state(graph, program, state, stream)
    assert_close(graph, program.flush(state), stream.flush())
