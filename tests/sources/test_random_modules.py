"""Modules that nobody wrote: random compositions of what people use, beside torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.sources import read

torch: Any = pytest.importorskip("torch", reason="compares with torch's own modules")
nn: Any = torch.nn
F: Any = torch.nn.functional

T, B = 9, 3
COUNT = 36


class Drawn(nn.Module):  # type: ignore[misc]
    """A few operations of (B, T, F), one after the other, each drawn."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.features = int(rng.integers(2, 6))
        size = self.features
        self.parts = nn.ModuleList()
        self.steps: list[tuple[str, int]] = []
        for n in range(int(rng.integers(1, 6))):
            name = str(rng.choice(sorted(OPERATIONS))) if n else "linear"
            made, size = OPERATIONS[name][0](rng, size)
            self.parts.append(made)
            self.steps.append((name, len(self.parts) - 1))
        name = str(rng.choice(sorted(ENDS)))
        self.end = name

    def forward(self, x: Any) -> Any:
        for name, n in self.steps:
            x = OPERATIONS[name][1](self.parts[n], x)
        return ENDS[self.end](x)


def _linear(rng: np.random.Generator, size: int) -> tuple[Any, int]:
    out = int(rng.integers(2, 7))
    return nn.Linear(size, out, bias=bool(rng.integers(2))), out


def _recurrent(kind: Any) -> Any:
    def made(rng: np.random.Generator, size: int) -> tuple[Any, int]:
        hidden, both = int(rng.integers(2, 5)), bool(rng.integers(2))
        layers = int(rng.integers(1, 3))
        own = kind(size, hidden, layers, bidirectional=both, batch_first=True)
        return own, hidden * (1 + both)

    return made


def _causal(rng: np.random.Generator, size: int) -> tuple[Any, int]:
    out = int(rng.integers(2, 5))
    dilation = int(rng.integers(1, 3))
    return nn.Conv1d(size, out, int(rng.integers(1, 4)), dilation=dilation), out


def _same_size(make: Any) -> Any:
    return lambda rng, size: (make(size), size)


def _run_causal(part: Any, x: Any) -> Any:
    pad = (part.kernel_size[0] - 1) * part.dilation[0]
    return part(F.pad(x.transpose(1, 2), (pad, 0))).transpose(1, 2)


def _run_cell(part: Any, x: Any) -> Any:
    h = x.new_zeros(x.size(0), part.hidden_size)
    outputs = []
    for t in range(x.size(1)):
        h = part(x[:, t], h)
        outputs.append(h)
    return torch.stack(outputs, 1)


def _chunk_gate(part: Any, x: Any) -> Any:
    a, b = part(x).chunk(2, -1)
    return a * torch.sigmoid(b)


OPERATIONS: dict[str, tuple[Any, Any]] = {
    "linear": (_linear, lambda part, x: part(x)),
    "lstm": (_recurrent(nn.LSTM), lambda part, x: part(x)[0]),
    "gru": (_recurrent(nn.GRU), lambda part, x: part(x)[0]),
    "causal": (_causal, _run_causal),
    "cells": (_same_size(lambda n: nn.GRUCell(n, n)), _run_cell),
    "residual": (_same_size(lambda n: nn.Linear(n, n)), lambda part, x: x + torch.tanh(part(x))),
    "mask": (_same_size(lambda n: nn.Linear(n, n)), lambda part, x: x * torch.sigmoid(part(x))),
    "gate": (_same_size(lambda n: nn.Linear(n, 2 * n)), _chunk_gate),
    "norm": (_same_size(nn.LayerNorm), lambda part, x: part(x)),
    "relu": (_same_size(lambda n: nn.ReLU()), lambda part, x: part(x)),
    "softmax": (_same_size(lambda n: nn.Softmax(-1)), lambda part, x: part(x)),
    "joined": (
        lambda rng, size: (nn.Linear(size, 3), size + 3),
        lambda part, x: torch.cat([x, part(x)], -1),
    ),
    "halves": (
        lambda rng, size: (nn.Linear(size, 4), 4),
        lambda part, x: (lambda y: torch.cat([y[..., 2:], y[..., :2].exp()], -1))(part(x)),
    ),
    "scaled": (_same_size(lambda n: nn.Identity()), lambda part, x: (x - 0.3) / 1.7),
    "where": (_same_size(lambda n: nn.Identity()), lambda part, x: torch.where(x > 0, x, 0.1 * x)),
}

ENDS = {
    "every step": lambda x: x,
    "last": lambda x: x[:, -1],
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.max(1)[0],
    "sum of squares": lambda x: (x * x).sum(-1, keepdim=True),
}


@pytest.mark.parametrize("seed", range(COUNT))
def test_as_torch(seed: int) -> None:
    torch.manual_seed(seed)
    module = Drawn(np.random.default_rng(seed)).double().eval()
    conversion = read(module, dtype="float64", input_size=module.features)
    x = torch.randn(B, T, module.features).double()
    with torch.no_grad():
        expected = module(x).numpy()
    rows = x.numpy().swapaxes(0, 1)
    (own,) = conversion.graph.inputs
    rows = rows.reshape(T, B, *own.shape)
    (y,) = reference.forward(conversion.graph, conversion.tensors, {own.name: rows}).values()
    if expected.ndim == 3:
        expected = expected.swapaxes(0, 1)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=0, atol=1e-9)
