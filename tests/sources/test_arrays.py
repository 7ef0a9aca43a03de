"""Programs of array operations, written against the builder, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastlstm import reference
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.arrays.follow import (
    Followed,
    OpenSizeError,
    Outcome,
    Parameter,
    follow,
)

Array = npt.NDArray[Any]


def followed(
    function: Callable[[Builder, dict[str, Value]], Value], *parameters: Parameter, **options: Any
) -> Followed:
    """A program of one output."""
    return follow(lambda b, given: Outcome({"y": function(b, given)}), parameters, **options)


def run(made: Followed, x: Array) -> Array:
    """What a graph of one input and output gives for (T, B, *shape)."""
    return np.asarray(reference.forward(made.graph, made.tensors, {"input": x})["output"])


def kinds(made: Followed) -> list[str]:
    return [node.layer.kind for node in made.graph.nodes]


class TestSizesOfInputs:
    def test_found_by_the_weights(self, rng: np.random.Generator) -> None:
        W = rng.standard_normal((3, 5))
        made = followed(lambda b, g: b.linear(g["x"], W), Parameter("x", (None,) * 3))
        assert made.graph.inputs[0].shape == (5,)

    def test_that_nothing_tells(self) -> None:
        with pytest.raises(OpenSizeError, match="axis 2 of 'x' is not known") as caught:
            followed(lambda b, g: b.activation("tanh", g["x"]), Parameter("x", (None,) * 3))
        assert (caught.value.name, caught.value.axes) == ("x", ("batch", "time", -1))


class TestFixedLength:
    """All steps of a sequence whose length is fixed, taken into one row."""

    def flat(self, b: Builder, x: Value, W: Array) -> Value:
        rows = b.move(lambda p: p.reshape(len(p), -1), x)
        return b.linear(rows, W)  # type: ignore[no-any-return]

    def test_flattened(self, rng: np.random.Generator) -> None:
        gru = {"weight_ih": rng.standard_normal((12, 3)), "weight_hh": rng.standard_normal((12, 4))}
        W = rng.standard_normal((2, 28))

        def program(b: Builder, given: dict[str, Value]) -> Value:
            y, _, _ = b.recurrent("gru", given["x"], [[gru]], batch_first=True)
            return self.flat(b, y, W)

        made = followed(program, Parameter("x", (None, 7, 3)))
        assert kinds(made) == ["gru", "window", "fold", "index", "linear"]
        x = rng.standard_normal((7, 2, 3))
        states = followed(
            lambda b, g: b.recurrent("gru", g["x"], [[gru]], batch_first=True)[0],
            Parameter("x", (None, 7, 3)),
        )
        expected = run(states, x).swapaxes(0, 1).reshape(2, -1) @ W.T
        np.testing.assert_allclose(run(made, x)[0], expected, atol=1e-12)

    def test_no_sequence_is_flattened_where_there_is_another_way(
        self, rng: np.random.Generator
    ) -> None:
        """Channels that come before a fixed length are none of the steps."""
        K = rng.standard_normal((4, 6, 3))
        made = followed(lambda b, g: b.convolution(g["x"], K), Parameter("x", (None, 6, 11)))
        assert kinds(made) == ["convolution"]
        assert made.call.arguments[0].axes == ("batch", 6, "time")


class TestConstants:
    def test_that_depend_on_the_length(self) -> None:
        def program(b: Builder, given: dict[str, Value]) -> Value:
            x = given["x"]
            return b.arithmetic(  # type: ignore[no-any-return]
                "multiply", x, np.array([1.0, 2.0]) / x.shape[1]
            )

        with pytest.raises(ConvertError, match="depends on how many steps there are"):
            followed(program, Parameter("x", (None, None, 2)))

    def test_names_are_plain(self, rng: np.random.Generator) -> None:
        W = rng.standard_normal((3, 5))
        made = followed(
            lambda b, g: b.linear(g["x\ny"], W), Parameter("x\ny", (None, None, 5)), single=""
        )
        assert made.graph.inputs[0].name == made.call.arguments[0].value == "x_y"
        assert made.call.arguments[0].name == "x\ny"


def test_a_program_that_says_how_many_steps_there_are() -> None:
    """It is tried with more: what is the same of others is none the less for a length."""
    w = np.ones((2, 3))

    def rows(b: Builder, given: dict[str, Value]) -> Outcome:
        return Outcome({"y": b.linear(given["x"], w)})

    def fixed(b: Builder, given: dict[str, Value]) -> Outcome:
        x = b.move(lambda p: p.reshape(-1, 12, 3), given["x"])
        return Outcome({"y": b.linear(x, w)})

    for program, seen in ((rows, True), (fixed, False)):
        made = follow(program, [Parameter("x", (None, 12, 3))])
        assert made.call.arguments[0].axes == ("batch", "time", 3)
        notes = [note for note in made.notes if "sequences of 12 steps" in note]
        assert bool(notes) != seen
        assert all(note.startswith("not verified: ") for note in notes)
