"""Cells as other programs write them, in NumPy, and what a recipe of the tests is written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm import reference
from fastlstm.sources import Conversion

Array = np.ndarray
Arrays = dict[str, Array]

I, H, T = 3, 4, 12  # noqa: E741


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def hard(x: Array) -> Array:
    return np.clip(0.2 * x + 0.5, 0, 1)


def drawn(rng: np.random.Generator, **shapes: tuple[int, ...]) -> Arrays:
    return {name: rng.uniform(-0.8, 0.8, shape) for name, shape in shapes.items()}


def forward(made: Conversion, x: Array) -> Array:
    return reference.forward(made.graph, made.tensors, {"input": x[:, None]})["output"][:, 0]


def lstm(
    x: Array, step: Callable[[Array, Array, Array], tuple[Array, Array]], **start: Array
) -> Array:
    """Outputs of a step (x, h, c) -> (h, c)."""
    h, c, rows = start.get("h", np.zeros(H)), start.get("c", np.zeros(H)), []
    for row in x:
        h, c = step(row, h, c)
        rows.append(h)
    return np.stack(rows)


def keras_cell(kind: str, K: Array, U: Array, b: Array, gate: Any = sigmoid) -> Any:
    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        if kind == "lstm":
            i, f, g, o = np.split(x @ K + h @ U + b, 4)
            c = gate(f) * c + gate(i) * np.tanh(g)
            return gate(o) * np.tanh(c), c
        if kind == "rnn":
            return np.tanh(x @ K + h @ U + b), c
        bx, bh = b if b.ndim == 2 else (b, 0 * b)
        zx, rx, nx = np.split(x @ K + bx, 3)
        zh, rh, nh = np.split(h @ U + bh, 3)
        z, r = gate(zx + zh), gate(rx + rh)
        n = np.tanh(nx + r * nh) if b.ndim == 2 else np.tanh(nx + (r * h) @ U[:, 2 * H :])
        return z * h + (1 - z) * n, c

    return step
