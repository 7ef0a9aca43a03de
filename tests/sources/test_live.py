"""Live modules whose forward is followed: what they become, and what is refused and how."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read

torch: Any = pytest.importorskip("torch", reason="compares with torch's own modules")

from torch_zoo import CASES, SIZES, Case  # noqa: E402

nn: Any = torch.nn
F: Any = torch.nn.functional

T, B = SIZES["T"], SIZES["B"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(23)


def made(case: Case) -> Any:
    """The module in float64, its running statistics not those it began with."""
    module = case.make().double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


def in_torch(case: Case, module: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of input (T, B, I) and torch's rows of output; of a step a call, from zero states."""
    module = copy.deepcopy(module).eval()
    if not case.states:
        x = case.input()
        y = module(x)
        return case.rows(x), case.expected(y[0] if isinstance(y, tuple) else y)

    def zeros(shape: Any) -> Any:
        if isinstance(shape[0], int):
            return torch.zeros(shape).double()
        return tuple(map(zeros, shape))

    states = tuple(map(zeros, case.states))
    rows, outputs = [], []
    for _ in range(T):
        x = case.input()
        y, *states = module(x, *states)
        rows.append(case.rows(x))
        outputs.append(case.expected(y))
    return np.concatenate(rows), np.concatenate(outputs)


def kinds(conversion: Conversion) -> list[str]:
    return [node.layer.kind for node in conversion.graph.nodes]


def recurrences(names: list[str]) -> set[str]:
    return {name for name in names if name in ("lstm", "gru", "rnn")}


def same(conversion: Conversion, x: np.ndarray, expected: np.ndarray) -> None:
    """Rows (T, B, I), or tokens, and what torch makes of them."""
    assert all(array.dtype == np.float64 for array in conversion.tensors.values())
    (own,) = conversion.graph.inputs
    x = x if own.tokens else x.reshape(*x.shape[:2], *own.shape)
    made = reference.forward(conversion.graph, conversion.tensors, {own.name: x})
    (y,) = made.values()
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_becomes_layers_that_compute_the_same(name: str) -> None:
    case = CASES[name]
    module = made(case)
    conversion = read(module, dtype="float64")
    same(conversion, *in_torch(case, module))
    if "residual" not in case.kinds:
        assert recurrences(kinds(conversion)) == recurrences(case.kinds.split(", "))


@pytest.mark.parametrize("name", CASES)
def test_runs_as_in_torch(name: str) -> None:
    case = CASES[name]
    module = made(case)
    x, expected = in_torch(case, module)
    model = fastlstm.from_torch(module.float())
    if not case.tokens:
        x = x.reshape(*x.shape[:2], *model.graph.inputs[0].shape).astype(np.float32)
    y, _ = model(x)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_leaves_the_module_as_it_was(name: str) -> None:
    module = CASES[name].make().train()
    before = {path: dict(vars(part)) for path, part in module.named_modules()}
    tensors = copy.deepcopy(module.state_dict())
    drawn, threads = torch.get_rng_state(), torch.get_num_threads()
    read(module)
    for path, part in module.named_modules():
        assert vars(part) == before[path]
        assert part.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, tensors[key])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.get_num_threads() == threads


class Small(nn.Module):  # type: ignore[misc]
    """An LSTM and what a test makes of it."""

    def __init__(self, forward: Any, **parts: Any) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


# Ways of writing things: the forward, the axes of its output, and the kinds of layers.
WAYS = {
    "last of two directions": (lambda self, x: self.bi(x)[0][:, -1], "BO", "gru, pool"),
    "ends by hand": (
        lambda self, x: (lambda o: torch.cat([o[:, -1, :4], o[:, 0, 4:]], 1))(self.bi(x)[0]),
        *("BO", "gru, pool"),
    ),
    "states apart": (
        lambda self, x: (lambda h: torch.cat([h[0], h[1]], 1))(
            self.bi(x)[1].view(2, 2, x.size(0), 4)[-1]
        ),
        *("BO", "gru, pool"),
    ),
    "states sliced": (
        lambda self, x: self.bi(x)[1][-2:].transpose(0, 1).reshape(-1, 8),
        *("BO", "gru, pool"),
    ),
    "states added": (
        lambda self, x: (lambda h: h[-1] + h[-2])(self.bi(x)[1]),
        *("BO", "gru, pool, combine_halves"),
    ),
    "select": (lambda self, x: self.lstm(x)[0].select(1, -1), "BO", "lstm, pool"),
    "last kept": (lambda self, x: self.lstm(x)[0][:, -1:].squeeze(1), "BO", "lstm, pool"),
    "mean by NumPy's name": (lambda self, x: self.lstm(x)[0].mean(axis=1), "BO", "lstm, pool"),
    "squeezed": (lambda self, x: self.one(self.lstm(x)[0]).squeeze(-1), "BT", "lstm, linear"),
    "time distributed": (
        lambda self, x: (lambda o: self.fc(o.reshape(-1, o.shape[2])).view(*o.shape[:2], -1))(
            self.lstm(x)[0]
        ),
        *("BTO", "lstm, linear"),
    ),
    "gelu": (
        lambda self, x: (lambda o: 0.5 * o * (1 + torch.erf(o / math.sqrt(2))))(self.lstm(x)[0]),
        *("BTO", "lstm, activation"),
    ),
    "softsign": (
        lambda self, x: (lambda o: o / (1 + o.abs()))(self.lstm(x)[0]),
        *("BTO", "lstm, activation"),
    ),
    "clamp": (
        lambda self, x: self.lstm(x)[0].clamp(-0.1, 0.2).clamp_min(0),
        *("BTO", "lstm, activation, activation"),
    ),
    "softplus": (
        lambda self, x: F.softplus(self.lstm(x)[0], beta=2),
        *("BTO", "lstm, scale, activation, scale"),
    ),
    "rrelu and threshold": (
        lambda self, x: F.threshold(F.rrelu(self.lstm(x)[0], training=self.training), 0.1, 0.0),
        *("BTO", "lstm, activation, activation"),
    ),
    "arithmetic": (
        lambda self, x: -(1 - self.lstm(torch.add(x, self.fc.bias.sum(), alpha=2) / 3)[0]) + self.a,
        *("BTO", "scale, lstm, scale"),
    ),
    "addmm": (
        lambda self, x: torch.addmm(self.fc.bias, self.lstm(x)[0][:, -1], self.fc.weight.t()),
        *("BO", "lstm, pool, linear"),
    ),
    "gate": (
        lambda self, x: (lambda a, b: a * b.sigmoid())(*self.six(x).chunk(2, -1)),
        *("BTO", "linear, combine_halves"),
    ),
    "product": (
        lambda self, x: (lambda a, b: a * b)(*torch.split(self.six(x), 3, dim=2)),
        *("BTO", "linear, combine_halves"),
    ),
    "magnitude": (
        lambda self, x: torch.hypot(*self.six(x).chunk(2, -1)),
        *("BTO", "linear, combine_halves"),
    ),
    "averaged directions": (
        lambda self, x: self.bi(x)[0].unflatten(-1, (2, 4)).mean(2),
        *("BTO", "gru, combine_halves, scale"),
    ),
    "rejoined": (
        lambda self, x: torch.cat(self.bi(x)[0].split([4, 4], dim=-1), -1),
        *("BTO", "gru"),
    ),
    "padding of time": (
        lambda self, x: self.conv(F.pad(x, (0, 0, 2, 0)).mT).mT,
        *("BTO", "conv1d"),
    ),
    "strided": (
        lambda self, x: self.four(self.strided(x.movedim(2, 1)).swapaxes(1, 2))[0],
        *("BTO", "conv1d, lstm"),
    ),
    "filled states": (
        lambda self, x: self.lstm(
            x,
            (
                torch.full((1, x.size(0), 5), 0.0).to(x),
                torch.ones(1, len(x), 5, dtype=x.dtype).zero_(),
            ),
        )[0],
        *("BTO", "lstm"),
    ),
    "casts": (
        lambda self, x: self.lstm(x.float().to(x.device, torch.float64).type_as(x).clone())[0],
        *("BTO", "lstm"),
    ),
    "keywords": (
        lambda self, x: torch.softmax(input=self.fc(self.lstm(input=x)[0]), dim=-1),
        *("BTO", "lstm, linear, activation"),
    ),
    "repeated": (
        lambda self, x: self.five(torch.relu(self.five(self.lstm(x)[0]))),
        *("BTO", "lstm, linear, activation, linear"),
    ),
    "nested": (
        lambda self, x: (lambda o: o + self.five(o + torch.tanh(self.five(o))))(self.lstm(x)[0]),
        *("BTO", "lstm, residual"),
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_of_writing(name: str) -> None:
    forward, axes, expected = WAYS[name]
    module = Small(
        forward,
        bi=nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True),
        one=nn.Linear(5, 1),
        five=nn.Linear(5, 5),
        six=nn.Linear(3, 6),
        a=nn.Parameter(torch.tensor(0.7)),
        conv=nn.Conv1d(3, 4, 3),
        strided=nn.Conv1d(3, 4, 3, stride=2),
        four=nn.LSTM(4, 5, batch_first=True),
    ).double()
    conversion = read(module, dtype="float64")
    assert recurrences(kinds(conversion)) == recurrences(expected.split(", "))
    case = Case(lambda: module, "BTF", axes, (3,), expected)
    x = case.input()
    y = module.eval()(x)
    same(conversion, case.rows(x), case.expected(y))


