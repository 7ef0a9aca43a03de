"""A graph that is planned and run in NumPy, beside the reference, which runs it layer by layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from program_in_numpy import NumPyProgram
from random_graphs import random_graph

from fastlstm import reference, spec
from fastlstm.plan.lowering import plan
from fastlstm.plan.program import Program
from fastlstm.reduced import Reduced

__all__ = ["Planned", "random_planned"]

Array = Any
Arrays = Mapping[str, Array]


def _read(tensor: Any) -> Array:
    """The numbers of a tensor as a program reads them: of integers these alone."""
    integers = isinstance(tensor, Reduced) and tensor.precision == "int8"
    return tensor.numbers if integers else np.asarray(tensor)


class Planned:
    """A graph as a program, whose rows are those of the reference.

    Parameters
    ----------
    graph : spec.Graph
    tensors : mapping of str to array
    """

    def __init__(self, graph: spec.Graph, tensors: Arrays) -> None:
        self.graph, self.tensors, self.facts = graph, tensors, spec.check(graph)
        self.program = plan(graph, tensors, self.facts)
        words = self.program.to_bytes()
        read = Program.from_bytes(words)
        assert read.to_bytes() == words
        self.run = NumPyProgram(read, [_read(tensors[name]) for name in self.program.tensor_names])

    def flat(self, inputs: Arrays, *, held: bool) -> list[Array]:
        """Inputs (..., *shape) as a program has them, (..., count), in the order of the graph."""
        given = [one for one in self.graph.inputs if one.held == held]
        return [
            x.reshape(*x.shape[: x.ndim - len(one.shape)], math.prod(one.shape))
            for one in given
            for x in (inputs[one.name],)
        ]

    def check(self, got: list[Array], expected: Arrays, what: str) -> None:
        """Check that rows of all outputs are what is expected, but for rounding."""
        for y, (name, exact) in zip(got, expected.items(), strict=True):
            row = self.facts.rows[self.graph.outputs[name]]
            assert np.isfinite(exact).all(), f"{what}: {name}"
            exact = exact.reshape(*exact.shape[:2], row.size)
            assert y.shape == exact.shape, f"{what}: {name}"
            size = np.abs(exact).max(initial=1)
            np.testing.assert_allclose(
                y, exact, rtol=1e-7, atol=1e-9 * size, err_msg=f"{what}: {name}"
            )

    def check_whole(self, inputs: Arrays, B: int, rng: np.random.Generator) -> None:
        """Check all rows of a whole sequence of inputs (T, B, *shape), held ones (B, *shape)."""
        whole = reference.forward(self.graph, self.tensors, inputs)
        held, moving = self.flat(inputs, held=True), self.flat(inputs, held=False)
        self.check(self.run.whole(B, held, moving), whole, "a whole sequence")
        if self.facts.looks_ahead:
            return
        T, state = len(moving[0]), self.run.begin(B, held)
        cut = int(rng.integers(0, T + 1))
        parts = [
            self.run.run(state, [x[:cut] for x in moving], whole=True),
            self.run.run(state, [x[cut:] for x in moving], whole=True),
            self.run.flush(state, whole=True),
        ]
        one = [self.facts.rows[value].held for value in self.graph.outputs.values()]
        joined = [
            some[0] if held else np.concatenate(some)
            for held, *some in zip(one, *parts, strict=True)
        ]
        self.check(joined, whole, f"a whole sequence, cut at step {cut}")

    def check_streamed(self, inputs: Arrays, B: int, rng: np.random.Generator) -> None:
        """Check the rows of a stream in pieces, what its end would give after each, its state."""
        held = {one.name: inputs[one.name] for one in self.graph.inputs if one.held}
        names = [one.name for one in self.graph.inputs if not one.held]
        stream = reference.Stream(self.graph, self.tensors, B, held=held)
        state = self.run.begin(B, self.flat(held, held=True))
        T, at = len(inputs[names[0]]), 0
        self.check(self.run.flush(state), stream.flush(), "the end before the first step")
        while at < T:
            end = min(T, at + int(rng.integers(0, 5)))
            piece = {name: inputs[name][at:end] for name in names}
            got = self.run.run(state, self.flat(piece, held=False))
            self.check(got, stream.run(piece), f"steps {at} to {end} of {T}")
            before = state.copy()
            self.check(self.run.flush(state), stream.flush(), f"the end after {end} steps")
            np.testing.assert_array_equal(state, before)
            self.check_parts(state, stream.state)
            # A state that is put into another block goes on as if nothing had been.
            state, at = state.copy(), end

    def check_parts(self, state: Array, expected: Arrays) -> None:
        """Check the parts of a state by name, and that what is read can be written."""
        # A mean is kept as it is, a sum in the reference; what looks ahead is not made in a stream.
        others = {
            node.name
            for node in self.graph.nodes
            if getattr(node.layer, "function", "") == "mean"
            or self.facts.rows[node.name].looks_ahead
        }
        written = np.full_like(state, np.nan)
        for name, part in zip(self.program.part_names, self.program.parts, strict=True):
            rows = self.run.read(state, part)
            if part.position >= 0:
                written[:, part.position] = state[:, part.position]
            self.run.write(written, part, rows)
            np.testing.assert_array_equal(self.run.read(written, part), rows)
            node, _, suffix = name.rpartition(".")
            if suffix != "count" and name in self.facts.state and node not in others:
                exact = np.moveaxis(expected[name], 1, 0).reshape(rows.shape)
                np.testing.assert_allclose(rows, exact, rtol=1e-7, atol=1e-9, err_msg=name)


@functools.cache
def random_planned(seed: int) -> Planned:
    """A random graph as a program, the same for all tests."""
    return Planned(*random_graph(np.random.default_rng(seed)))
