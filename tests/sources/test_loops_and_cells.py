"""Cells that a program writes out, and loops over time: what they become, and that it is the same.

Each program is followed, and evaluated in float64 beside the same equations in NumPy, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastlstm import reference, spec
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.arrays.follow import Followed, Outcome, Parameter, follow

Array = npt.NDArray[Any]
Step = Callable[[Any, Any, list[Any]], tuple[Any, list[Any]]]

T, B, I, H = 9, 3, 5, 4  # noqa: E741


class Numbers:
    """The operations of a builder that these programs use, on numbers."""

    def activation(self, function: str, x: Array) -> Array:
        return {"tanh": np.tanh, "sigmoid": lambda a: 1 / (1 + np.exp(-a))}[function](x)  # type: ignore[no-any-return, operator]

    def arithmetic(self, operation: str, a: Any, c: Any) -> Array:
        functions = {"add": np.add, "multiply": np.multiply, "subtract": np.subtract}
        return np.asarray(functions[operation](a, c))

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return np.asarray(x @ weight.T + (0 if bias is None else bias))

    def move(self, function: Callable[..., Any], *arrays: Array) -> Any:
        return function(*arrays)


class Cells:
    """Cells as people write them, each with the layer that it is."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.w, self.u = rng.normal(size=(4 * H, I)), rng.normal(size=(4 * H, H)) / 2
        self.b, self.c = rng.normal(size=4 * H), rng.normal(size=4 * H)
        self.joined = np.concatenate([self.w, self.u], axis=1)

    def split(self, b: Any, z: Any, n: int) -> list[Any]:
        return [b.move(lambda p, k=k: p[..., k * H : (k + 1) * H], z) for k in range(n)]

    def lstm(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """One matrix of x and one of h, split into gates."""
        h, c = states
        z = b.arithmetic("add", b.linear(x, self.w, self.b), b.linear(h, self.u))
        i, f, g, o = self.split(b, z, 4)
        kept = b.arithmetic("multiply", b.activation("sigmoid", f), c)
        new = b.arithmetic("multiply", b.activation("sigmoid", i), b.activation("tanh", g))
        c = b.arithmetic("add", kept, new)
        h = b.arithmetic("multiply", b.activation("sigmoid", o), b.activation("tanh", c))
        return h, [h, c]

    def lstm_of_both(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """One matrix of x and h side by side, with the sigmoid of three gates at once."""
        h, c = states
        z = b.linear(b.move(lambda p, q: np.concatenate([p, q], -1), x, h), self.joined, self.b)
        gates = b.activation("sigmoid", b.move(lambda p: p[..., : 3 * H], z))
        o, f, i = self.split(b, gates, 3)
        g = b.activation("tanh", b.move(lambda p: p[..., 3 * H :], z))
        c = b.arithmetic("add", b.arithmetic("multiply", i, g), b.arithmetic("multiply", c, f))
        h = b.arithmetic("multiply", b.activation("tanh", c), o)
        return h, [h, c]

    def gru(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """PyTorch's, the reset gate behind the product."""
        (h,) = states
        of_x = self.split(b, b.linear(x, self.w[: 3 * H], self.b[: 3 * H]), 3)
        of_h = self.split(b, b.linear(h, self.u[: 3 * H], self.c[: 3 * H]), 3)
        r, z = (
            b.activation("sigmoid", b.arithmetic("add", p, q))
            for p, q in zip(of_x[:2], of_h[:2], strict=True)
        )
        n = b.arithmetic("add", of_x[2], b.arithmetic("multiply", r, of_h[2]))
        n = b.activation("tanh", n)
        rest = b.arithmetic("multiply", b.arithmetic("subtract", 1.0, z), n)
        h = b.arithmetic("add", rest, b.arithmetic("multiply", z, h))
        return h, [h]

    def gru_before(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """The paper's, the reset gate before the product, and what is left of h as a difference."""
        (h,) = states
        of_x = self.split(b, b.linear(x, self.w[: 3 * H], self.b[: 3 * H]), 3)
        of_h = self.split(b, b.linear(h, self.u[: 2 * H], self.c[: 2 * H]), 2)
        r, z = (
            b.activation("sigmoid", b.arithmetic("add", p, q))
            for p, q in zip(of_x[:2], of_h, strict=True)
        )
        of_reset = b.linear(b.arithmetic("multiply", r, h), self.u[:H])
        n = b.activation("tanh", b.arithmetic("add", of_x[2], of_reset))
        back = b.arithmetic("multiply", z, b.arithmetic("subtract", h, n))
        h = b.arithmetic("add", n, back)
        return h, [h]

    def rnn(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        (h,) = states
        z = b.arithmetic("add", b.linear(x, self.w[:H]), b.linear(h, self.u[:H], self.c[:H]))
        h = b.activation("tanh", z)
        return h, [h]

    def leaky(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """No layer of the vocabulary: half of what it was, and half of something new."""
        (h,) = states
        z = b.arithmetic("add", b.linear(x, self.w[:H]), b.linear(h, self.u[:H], self.c[:H]))
        new = b.arithmetic("multiply", b.activation("tanh", z), 0.5)
        h = b.arithmetic("add", new, b.arithmetic("multiply", h, 0.5))
        return h, [h]

    def peepholes(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """No layer either, as it is written: more rows a turn than a graph has outputs."""
        h, c = states
        z = b.arithmetic("add", b.linear(x, self.w, self.b), b.linear(h, self.u))
        i, f, g, o = self.split(b, z, 4)
        for _ in range(3):
            i, f = (
                b.activation("sigmoid", b.arithmetic("add", p, b.arithmetic("multiply", q, c)))
                for p, q in ((i, self.c[:H]), (f, self.c[H : 2 * H]))
            )
        new = b.arithmetic("multiply", i, b.activation("tanh", g))
        c = b.arithmetic("add", b.arithmetic("multiply", f, c), new)
        o = b.arithmetic("add", o, b.arithmetic("multiply", self.c[2 * H : 3 * H], c))
        h = b.arithmetic("multiply", b.activation("sigmoid", o), b.activation("tanh", c))
        return h, [h, c]

    def filter(self, b: Any, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """A diagonal recurrence, whose first turn is a row that has nothing of a loop."""
        (h,) = states
        h = b.arithmetic("add", b.arithmetic("multiply", self.c[:H] / 3, h),
                         b.linear(x, self.w[:H]))  # fmt: skip
        return b.linear(h, self.u[:H]), [h]


CELLS = {
    "lstm": (2, "lstm"),
    "lstm_of_both": (2, "lstm"),
    "gru": (1, "gru"),
    "gru_before": (1, "gru"),
    "rnn": (1, "rnn"),
    "leaky": (1, "delay"),
    "filter": (1, "delay"),
    "peepholes": (2, "delay"),
}


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[Step, int, str]:
    return getattr(Cells(rng), request.param), *CELLS[request.param]


def expected(step: Step, states: list[Array], x: Array) -> Array:
    """h of each step, (T, B, H)."""
    made = []
    for x_t in x:
        y, states = step(Numbers(), x_t, states)
        made.append(y)
    return np.stack(made)


def check(made: Followed, kind: str, x: Array, y: Array) -> None:
    kinds = [node.layer.kind for node in made.graph.nodes]
    assert kind in kinds
    assert ("delay" in kinds) == (kind == "delay")
    got = reference.forward(made.graph, made.tensors, {"input": x}, dtype=np.float64)["output"]
    np.testing.assert_allclose(got, y, rtol=1e-9, atol=1e-12)


def test_one_step_a_call(cell: tuple[Step, int, str], rng: np.random.Generator) -> None:
    """States are inputs and outputs of a program that computes one step."""
    step, n, kind = cell
    names = ["h", "c"][:n]

    def program(b: Builder, given: dict[str, Value]) -> Outcome:
        y, states = step(b, given["x"], [given[name] for name in names])
        return Outcome({"y": y} | {f"{k}_n": v for k, v in zip(names, states, strict=True)})

    parameters = [Parameter("x", (None, I)), *(Parameter(name, (None, H)) for name in names)]
    made = follow(program, parameters, [{name: f"{name}_n" for name in names}])
    x = rng.normal(size=(T, B, I))
    check(made, kind, x, expected(step, [np.zeros((B, H))] * n, x))
    assert [a.role for a in made.call.arguments] == ["rows", *["state"] * n]


def test_states_that_start_from_numbers(
    cell: tuple[Step, int, str], rng: np.random.Generator
) -> None:
    step, n, kind = cell
    names = ["h", "c"][:n]
    starts = [rng.normal(size=(1, H)) for _ in names]

    def program(b: Builder, given: dict[str, Value]) -> Outcome:
        y, states = step(b, given["x"], [given[name] for name in names])
        return Outcome({"y": y}, dict(zip(names, states, strict=True)))

    kept = [
        Parameter(name, state=name, start=start) for name, start in zip(names, starts, strict=True)
    ]
    made = follow(program, [Parameter("x", (1, I)), *kept])
    x = rng.normal(size=(T, 1, I))
    check(made, kind, x, expected(step, starts, x))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_loop_over_time(
    cell: tuple[Step, int, str], batch_first: bool, rng: np.random.Generator
) -> None:
    step, n, kind = cell

    def program(b: Builder, given: dict[str, Value]) -> Outcome:
        x = given["x"]
        rows = x.shape[0 if batch_first else 1]
        states: list[Any] = [np.zeros((rows, H))] * n
        made = []
        for t in range(x.shape[1 if batch_first else 0]):
            x_t = b.move(lambda p, t=t: p[:, t] if batch_first else p[t], x)
            y, states = step(b, x_t, states)
            made.append(y)
        return Outcome({"y": b.move(lambda *p: np.stack(p, 1 if batch_first else 0), *made)})

    axes = ("batch", "time", I) if batch_first else ("time", "batch", I)
    made = follow(program, [Parameter("x", axes=axes)])
    x = rng.normal(size=(T, B, I))
    check(made, kind, x, expected(step, [np.zeros((B, H))] * n, x))
    assert made.call.outputs[0].axes == (*axes[:2], H)


def test_the_end_of_a_loop(cell: tuple[Step, int, str], rng: np.random.Generator) -> None:
    """A matrix of the last state alone is one of the last row."""
    step, n, kind = cell
    head = rng.normal(size=(2, H))

    def program(b: Builder, given: dict[str, Value]) -> Outcome:
        x = given["x"]
        states: list[Any] = [np.zeros((x.shape[0], H))] * n
        for t in range(x.shape[1]):
            y, states = step(b, b.move(lambda p, t=t: p[:, t], x), states)
        return Outcome({"y": b.linear(y, head)})

    made = follow(program, [Parameter("x", axes=("batch", "time", I))])
    x = rng.normal(size=(T, B, I))
    y = expected(step, [np.zeros((B, H))] * n, x)[-1:] @ head.T
    check(made, kind, x, y)
    assert any(isinstance(node.layer, spec.Fold) for node in made.graph.nodes)


def test_states_of_a_loop_carried_from_call_to_call(rng: np.random.Generator) -> None:
    """A loop over the steps of a call whose states are inputs and outputs too."""
    cells = Cells(rng)

    def program(b: Builder, given: dict[str, Value]) -> Outcome:
        x, states = given["x"], [given["h"], given["c"]]
        made = []
        for t in range(x.shape[1]):
            y, states = cells.lstm(b, b.move(lambda p, t=t: p[:, t], x), states)
            made.append(y)
        y = b.move(lambda *p: np.stack(p, 1), *made)
        return Outcome({"y": y, "h_n": states[0], "c_n": states[1]})

    parameters = [Parameter("x", (None, None, I), axes=("batch", "time", I))]
    parameters += [Parameter(name, (None, H)) for name in "hc"]
    made = follow(program, parameters, [{"h": "h_n", "c": "c_n"}])
    x = rng.normal(size=(T, B, I))
    check(made, "lstm", x, expected(cells.lstm, [np.zeros((B, H))] * 2, x))


def test_a_loop_over_what_is_computed_for_all_steps_before(rng: np.random.Generator) -> None:
    """The first turn of the loop is then a row of the whole sequence, which is read as well."""
    w, u, a = rng.normal(size=(H, I)), rng.normal(size=(2, H)), rng.uniform(0.3, 0.9, size=H)

    def program(b: Builder, given: dict[str, Value]) -> Outcome:
        rows = b.linear(given["x"], w)
        h: Any = np.zeros((rows.shape[0], H))
        made = []
        for t in range(rows.shape[1]):
            row = b.move(lambda p, t=t: p[:, t], rows)
            h = b.arithmetic("add", b.arithmetic("multiply", a, h), row)
            made.append(b.linear(h, u))
        y = b.move(lambda *p: np.stack(p, 1), *made)
        return Outcome({"y": b.arithmetic("add", y, b.linear(rows, u))})

    made = follow(program, [Parameter("x", axes=("batch", "time", I))])
    x = rng.normal(size=(T, B, I))
    rows, h, y = x @ w.T, np.zeros((B, H)), []
    for row in rows:
        h = a * h + row
        y.append((h + row) @ u.T)
    check(made, "delay", x, np.stack(y))
