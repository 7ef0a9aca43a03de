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
from fastlstm import reference
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


def test_the_report_says_how_arrays_lie_and_what_became_of_modules() -> None:
    def forward(self: Any, x: Any) -> Any:
        out, _ = self.lstm(self.norm(x.transpose(1, 2)).transpose(1, 2))
        return F.log_softmax(self.fc(self.drop(out)[:, -1]), dim=-1)

    module = Small(forward, norm=nn.BatchNorm1d(3), drop=nn.Dropout(0.3), unused=nn.Linear(3, 3))
    report = read(module, dtype="float64").report
    assert report[:4] == (
        "rows as (T, B, 3); the module took 'x' as (B, T, 3): batch_first=True",
        "output 'output' of the module is (B, 2)",
        "'drop' (Dropout) has no effect at inference and was left out",
        "'unused' (Linear) is not run by forward and was left out",
    )
    (widened,) = (line for line in report if line.startswith("widened from float32 to float64: "))
    assert "lstm.weight_ih_l0" in widened
    assert "unused.weight" not in widened


def test_lengths_are_left_to_the_model() -> None:
    class Tagger(nn.Module):  # type: ignore[misc]
        def __init__(self, sort: bool) -> None:
            super().__init__()
            self.emb = nn.Embedding(6, 3)
            self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True)
            self.sorted = sort

        def forward(self, x: Any, lengths: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(
                self.emb(x), lengths, batch_first=True, enforce_sorted=self.sorted
            )
            out, state = self.lstm(packed)
            out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.size(1))
            return out, state

    for sort, lengths in ((False, [4, 7, 2]), (True, [7, 4, 2])):
        module = Tagger(sort).eval()
        model = fastlstm.from_torch(module)
        x = torch.randint(6, (B, T))
        with torch.no_grad():
            expected = module(x, torch.tensor(lengths))[0].numpy()
        y, _ = model(x.numpy(), lengths=lengths, batch_first=True)
        for row, length in enumerate(lengths):
            got = y[row, :length]
            np.testing.assert_allclose(got, expected[row, :length], rtol=0, atol=1e-5)
        assert "argument 'lengths' is the lengths of the rows: lengths= of the model" in (
            read(module).report
        )


def test_the_last_state_of_rows_of_different_lengths() -> None:
    class Classifier(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.fc = nn.GRU(3, 4), nn.Linear(4, 2)

        def forward(self, x: Any, lengths: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
            return self.fc(self.gru(packed)[1].squeeze(0))

    module = Classifier().eval()
    x, lengths = torch.randn(T, B, 3), [4, 7, 2]
    with torch.no_grad():
        expected = module(x, torch.tensor(lengths)).numpy()
    y, _ = fastlstm.from_torch(module)(x.numpy(), lengths=lengths)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=0, atol=1e-5)


def test_shapes_that_are_said() -> None:
    class Policy(nn.Module):  # type: ignore[misc]
        """A cell behind the convolutions of an image a call."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.cell = nn.Conv2d(3, 4, 3, stride=2), nn.GRUCell(36, 5)
            self.fc = nn.Linear(5, 2)

        def forward(self, image: Any, hidden: Any) -> Any:
            rows = F.elu(self.conv(image)).view(image.size(0), -1)
            hidden = self.cell(rows, hidden)
            return self.fc(hidden), hidden

    module = Policy().double()
    with pytest.raises(ConvertError, match="Say their shapes with inputs=, None for the batch"):
        read(module)
    conversion = read(module, inputs={"image": (None, 3, 8, 8)}, dtype="float64")
    x, hidden, expected = torch.randn(T, B, 3, 8, 8).double(), torch.zeros(B, 5).double(), []
    for image in x:
        y, hidden = module(image, hidden)
        expected.append(y.detach().numpy())
    same(conversion, x.numpy(), np.stack(expected))


def test_a_size_that_the_forward_checks_is_that_of_the_input() -> None:
    def forward(self: Any, x: Any) -> Any:
        if x.shape[-1] != 10:
            raise ValueError
        return self.fc(F.conv1d(x.unsqueeze(1), self.basis, stride=5).flatten(1))

    module = Small(forward, basis=nn.Parameter(torch.randn(2, 1, 5)), fc=nn.Linear(4, 2))
    assert read(module).graph.inputs[0].shape == (10,)


@pytest.mark.parametrize(("features", "hidden"), [(127, 5), (135, 131), (131, 127)])
def test_sizes_that_stand_for_unknown_ones(features: int, hidden: int) -> None:
    """A size that is not known yet is taken for one of these: a weight may really have it."""

    class Step(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(features, hidden)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            h, c = self.cell(x, (h, c))
            return h, h, c

    layer = nn.LSTM(features, hidden).double().eval()
    x = torch.randn(T, B, features).double()
    same(read(layer, dtype="float64"), x.numpy(), layer(x)[0].detach().numpy())
    step, expected = Step().double().eval(), []
    h = c = torch.zeros(B, hidden).double()
    for row in x:
        y, h, c = step(row, h, c)
        expected.append(y.detach().numpy())
    same(read(step, dtype="float64"), x.numpy(), np.stack(expected))


def test_weights_that_are_computed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0").double()
    new = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)).double()
    spectral = nn.utils.spectral_norm(nn.Linear(4, 4)).double()
    prune = __import__("torch.nn.utils.prune").nn.utils.prune
    pruned = prune.l1_unstructured(nn.Linear(4, 2), "weight", 0.5).double()

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.old, self.new, self.spectral, self.pruned = old, new, spectral, pruned

        def forward(self, x: Any) -> Any:
            return self.pruned(self.spectral(self.new(self.old(x)[0])))

    net = Net().eval()
    with torch.no_grad():  # as a step of an optimizer does, which leaves the weights themselves
        old.weight_hh_l0_g.mul_(2)
        spectral.weight_orig.mul_(3)
        pruned.weight_orig.add_(1)
        new.parametrizations.weight.original0.mul_(0.5)
    conversion = read(net, dtype="float64")
    x = torch.randn(T, B, 3).double()
    same(conversion, x.numpy(), net(x).detach().numpy())
    for text in ("'old' (LSTM)", "'new' (ParametrizedLinear)", "'spectral' (Linear)",
                 "'pruned' (Linear)"):  # fmt: skip
        assert (
            f"{text} computes its weights from others (weight norm or the like); what they are "
            f"now was taken"
        ) in conversion.report


def steps(module: Any, xs: Any) -> np.ndarray:
    """What a module gives call by call, (calls, ...)."""
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        return np.stack([module(x).numpy() for x in xs])


KEPT = {
    "slice": lambda self, h, c: (
        self.h.__setitem__(slice(None), h),
        self.c.__setitem__(slice(None), c),
    ),
    "copy": lambda self, h, c: (self.h.copy_(h), self.c.copy_(c)),
    "assign": lambda self, h, c: (setattr(self, "h", h), setattr(self, "c", c)),
}


@pytest.mark.parametrize("way", KEPT)
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_states_in_buffers(way: str, start: float) -> None:
    def forward(self: Any, x: Any) -> Any:
        out, (h, c) = self.memory(x.unsqueeze(0), (self.h, self.c))
        KEPT[way](self, h, c)
        return self.fc(out.squeeze(0))

    module = Small(forward, memory=nn.LSTM(4, 5)).double()
    for name in "hc":
        module.register_buffer(name, torch.full((1, 1, 5), start).double())
    conversion = read(module, dtype="float64")
    x = torch.randn(T, 1, 4).double()
    same(conversion, x.numpy(), steps(module, x))
    assert torch.equal(module.h, torch.full((1, 1, 5), start).double())
    holds = "what it holds now" if start else "zeros"
    assert f"attribute 'h' is a state of the model, which starts from {holds}" in conversion.report


def test_a_state_that_is_none_before_the_first_call() -> None:
    def forward(self: Any, x: Any) -> Any:
        out, self.hidden = self.lstm(x, self.hidden)
        return self.fc(out)

    module = Small(forward, hidden=None).double()
    conversion = read(module, dtype="float64")
    x = torch.randn(2, B, 4, 3).double()
    expected = np.concatenate(steps(module, x), axis=1).swapaxes(0, 1)
    same(conversion, x.numpy().transpose(0, 2, 1, 3).reshape(8, B, 3), expected)
    assert module.hidden is None


def test_a_state_that_starts_from_what_code_makes_is_refused() -> None:
    def forward(self: Any, x: Any) -> Any:
        if self.hidden is None:
            self.hidden = torch.ones(1, x.size(0), 5), torch.ones(1, x.size(0), 5)
        out, self.hidden = self.lstm(x, self.hidden)
        return out

    with pytest.raises(ConvertError, match="'hidden' is None before the first call, which then st"):
        read(Small(forward, hidden=None))


def test_what_is_kept_and_not_read_again_is_no_state() -> None:
    def forward(self: Any, x: Any) -> Any:
        out, self.seen = self.lstm(x)
        return self.fc(out)

    conversion = read(Small(forward, seen=None))
    assert not [line for line in conversion.report if "is a state" in line]


def test_states_that_the_module_keeps() -> None:
    def forward(self: Any, x: Any) -> Any:
        return self.fc(self.lstm(x, (self.h, self.c))[0])

    some = torch.randn(1, 1, 5).double()
    module = Small(forward, h=some, c=torch.zeros(1, 1, 5)).double()
    module.c = module.c.double()
    x = torch.randn(1, T, 3).double()
    same(
        read(module, dtype="float64"),
        x.numpy().swapaxes(0, 1),
        steps(module, x[None])[0].swapaxes(0, 1),
    )


def test_hooks_are_followed() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4)).double()
    module[0].register_forward_hook(lambda part, given, made: made * 3)
    x = torch.randn(T, B, 3).double()
    conversion = read(module, dtype="float64")
    same(conversion, x.numpy(), module(x)[0].detach().numpy())
    assert any("'0' (Linear) has forward hooks, which were" in line for line in conversion.report)


def test_a_forward_that_calls_the_one_it_overrides() -> None:
    class Doubled(nn.GRU):  # type: ignore[misc]
        def forward(self, x: Any, h: Any = None) -> Any:
            out, h = super().forward(x * 2, h)
            return out / 2, h

    module = Doubled(3, 4).double()
    x = torch.randn(T, B, 3).double()
    same(read(module, dtype="float64"), x.numpy(), module(x)[0].detach().numpy())


def test_a_prefix_follows_a_part() -> None:
    module = Small(lambda self, x: x.max(), block=nn.Sequential(nn.Linear(3, 4), nn.Tanh()))
    assert kinds(read(module, prefix="block")) == ["linear", "activation"]
    assert kinds(read(module, prefix="lstm.")) == ["lstm"]


def test_used_weights_cannot_be_ignored() -> None:
    module = Small(lambda self, x: self.lstm(x)[0], block=nn.Sequential(nn.Linear(3, 4)))
    assert kinds(read(module, ignore="fc.*")) == ["lstm"]
    with pytest.raises(ConvertError, match=r"ignore= matches 'lstm\.weight_ih_l0', which a layer"):
        read(module, ignore="lstm.*")


def test_a_vocabulary_and_a_file(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    model = fastlstm.convert(module, tmp_path / "model.safetensors", vocabulary=list("abc"))
    assert model.vocabulary == ("a", "b", "c")


def test_warnings_that_are_errors_break_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(CASES["LastStep"].make())


def test_a_module_that_cannot_be_copied_whole() -> None:
    lock = __import__("threading").Lock()
    computed = nn.Parameter(torch.randn(3, 3)) * 2

    def forward(self: Any, x: Any) -> Any:
        with self.lock:
            return self.lstm(x @ self.scale)[0]

    module = Small(forward, lock=lock, scale=computed)
    assert "lstm" in kinds(read(module))
    assert module.lock is lock
    assert module.scale is computed


# What no straight line of layers is: the forward, the axes of its input and of its output.


def _loop(self: Any, x: Any) -> Any:
    h = c = torch.zeros(x.size(0), 5, dtype=x.dtype)
    outputs = []
    for t in range(x.size(1)):
        h, c = self.cell(x[:, t], (h, c))
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _unbound(self: Any, x: Any) -> Any:
    h = c = torch.zeros(x.size(0), 5, dtype=x.dtype)
    for row in x.unbind(1):
        h, c = self.cell(row, (h, c))
    return h


def _in_place(self: Any, x: Any) -> Any:
    y = x.clone()
    z = y[..., 1:]
    z *= 2
    y[..., 0] = 1
    return self.lstm(y)[0]


FOLLOWED = {
    "loop": (_loop, "BTO"),
    "unbind": (_unbound, "BO"),
    "iteration": (
        lambda self, x: [self.fc(row) for row in self.lstm(x)[0].transpose(0, 1)][-1],
        "BO",
    ),
    "where": (lambda self, x: torch.where(x > 0, self.lstm(x)[0][..., :3], -x), "BTO"),
    "max over time": (lambda self, x: self.fc(self.lstm(x)[0].max(1)[0]), "BO"),
    "written in place": (_in_place, "BTO"),
    "one of a dict": (lambda self, x: {"y": self.lstm(x)[0]}, "BTO"),
    "mask": (lambda self, x: x * torch.sigmoid(self.back(self.lstm(x)[0])), "BTO"),
    "attention": (
        lambda self, x: (lambda h: (h * torch.softmax(self.one(h), 1)).sum(1))(self.lstm(x)[0]),
        "BO",
    ),
    "normalised": (lambda self, x: F.normalize(self.lstm(x)[0][:, -1], dim=-1), "BO"),
    "three joined": (
        lambda self, x: (lambda h: torch.cat([x, h, self.fc(h)], -1))(self.lstm(x)[0]),
        "BTO",
    ),
    "skip": (lambda self, x: self.one(self.lstm(x)[0]) + x[:, :, 0:1], "BTO"),
    "max pooling": (
        lambda self, x: self.wide(
            F.max_pool1d(F.relu(self.conv(F.pad(x.transpose(1, 2), (2, 0)))), 2).transpose(1, 2)
        )[0][:, -1],
        "BO",
    ),
    "images over time": (
        lambda self, x: self.six(
            self.conv2(F.pad(x.unsqueeze(1), (0, 0, 2, 0))).transpose(1, 2).flatten(2)
        )[0],
        "BTO",
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_follows(name: str) -> None:
    forward, axes = FOLLOWED[name]
    module = refusable(forward).double().eval()
    conversion = read(module, dtype="float64")
    x = torch.randn(B, T, 3).double()
    y = module(x)
    case = Case(lambda: module, "BTF", axes, (3,), "")
    same(conversion, case.rows(x), case.expected(y["y"] if isinstance(y, dict) else y))


def test_two_outputs() -> None:
    def forward(self: Any, x: Any) -> Any:
        h = self.lstm(x)[0]
        return self.fc(h), self.one(h)

    module = refusable(forward).double()
    conversion = read(module, dtype="float64")
    x = torch.randn(B, T, 3).double()
    made = reference.forward(
        conversion.graph, conversion.tensors, {"input": x.numpy().swapaxes(0, 1)}
    )
    for got, expected in zip(made.values(), module(x), strict=True):
        np.testing.assert_allclose(got.swapaxes(0, 1), expected.detach().numpy(), atol=1e-10)


def test_a_second_input() -> None:
    class Masked(Small):
        def forward(self, x: Any, mask: Any) -> Any:
            return self.lstm(x)[0] * mask.unsqueeze(-1)

    module = Masked(None).double()
    conversion = read(module, dtype="float64")
    x, mask = torch.randn(B, T, 3).double(), torch.randn(B, T).double()
    assert conversion.call is not None
    given = {
        one.value: {"x": x, "mask": mask[..., None]}[one.name].numpy().swapaxes(0, 1)
        for one in conversion.call.arguments
    }
    shapes = {one.name: one.shape for one in conversion.graph.inputs}
    given = {name: a.reshape(T, B, *shapes[name]) for name, a in given.items()}
    (y,) = reference.forward(conversion.graph, conversion.tensors, given).values()
    expected = module(x, mask).detach().numpy().swapaxes(0, 1)
    np.testing.assert_allclose(y, expected, atol=1e-10)


# Refusals: the forward, and the message behind "the module (Small) is not converted: ".


def _branch(self: Any, x: Any) -> Any:
    return self.lstm(x if x.sum() > 0 else -x)[0]


def _remembers(self: Any, x: Any) -> Any:
    out, state = self.lstm(x)
    self.list.append(state[0])
    return out + len(self.list)


_DECIDES = r"\(\) of numbers of the input decides what is computed in forward \(test_live.py, line"
_CHANCE = r"\(\) draws random numbers in forward \(test_live.py, line \d+\); expected a forward"

REFUSALS = {
    "branch": (_branch, f"bool{_DECIDES}"),
    "item": (lambda self, x: x * x[0, 0, 0].item(), f"item{_DECIDES}"),
    "numpy": (lambda self, x: torch.from_numpy(x.numpy()), f"numpy{_DECIDES}"),
    "masked": (lambda self, x: x[x > 0], f"getitem{_DECIDES}"),
    "dropout": (lambda self, x: F.dropout(self.lstm(x)[0], 0.5), f"dropout{_CHANCE}"),
    "random": (lambda self, x: x + torch.randn(1, x.size(1), 3), f"randn{_CHANCE}"),
    "numpy random": (
        lambda self, x: self.lstm(x)[0] * np.random.random(),
        "forward draws random numbers of NumPy or of Python's random",
    ),
    "half": (lambda self, x: self.lstm(x.half().float())[0], r".*rounded to float16; .*line \d+\)"),
    "list": (_remembers, "forward changes attribute 'list' with every call, from a list of 1 to "),
    "constant": (lambda self, x: self.fc.weight, "output 'output' is constant"),
    "weights": (lambda self, x: self.fc(self.lstm(x)[0]) + self.fc.weight.mul_(2).sum(),
                "forward writes into the weights 'fc.weight'"),
    "operator": (lambda self, x: torch.cumprod(self.lstm(x)[0], 1),
                 r".*cumprod: this operator of torch is not supported \(test_live.py, line \d+\)"),
    "error": (
        lambda self, x: self.missing(x),
        ".*none of the arrays that were tried.*AttributeError: 'Small' object has no attribute",
    ),
    "statistics": (
        lambda self, x: self.norm(self.lstm(x)[0].transpose(1, 2)),
        ".*batch_norm",
    ),
}  # fmt: skip


def refusable(forward: Any) -> Any:
    return Small(
        forward,
        cell=nn.LSTMCell(3, 5),
        conv=nn.Conv1d(3, 4, 3),
        conv2=nn.Conv2d(1, 2, (3, 2)),
        norm=nn.BatchNorm1d(5, track_running_stats=False),
        wide=nn.LSTM(4, 5, batch_first=True),
        six=nn.LSTM(4, 5, batch_first=True),
        back=nn.Linear(5, 3),
        one=nn.Linear(5, 1),
        list=[],
    )


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses(name: str) -> None:
    forward, message = REFUSALS[name]
    module = refusable(forward)
    before = {path: dict(vars(part)) for path, part in module.named_modules()}
    tensors = copy.deepcopy(module.state_dict())
    with pytest.raises(
        ConvertError, match=rf"^the module \(Small\) is not converted: {message}"
    ) as caught:
        read(module)
    print(caught.value)
    assert "layers=" not in str(caught.value)
    assert "Value" not in str(caught.value).replace("ValueError", "")
    for path, part in module.named_modules():
        assert vars(part) == before[path]
    assert not module.list
    for key, value in module.state_dict().items():
        assert torch.equal(value, tensors[key])


def test_a_module_in_half_precision_is_widened() -> None:
    conversion = read(nn.LSTM(3, 4).half())
    assert any(line.startswith("widened from float16 to float32: ") for line in conversion.report)


def test_a_module_that_takes_nothing() -> None:
    with pytest.raises(ConvertError, match="its forward takes no array by name; expected one"):
        read(nn.ParameterDict({"weight": torch.ones(3)}))


def test_a_loop_is_not_taken_for_a_single_step() -> None:
    """Every other turn does something else: no graph, though one turn alone would be one."""

    class Alternating(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            h, rows = torch.zeros(len(x), 4, dtype=x.dtype), []
            for t in range(x.shape[1]):
                h = torch.tanh(self.inner(x[:, t]) + self.outer(h))
                if t % 2:
                    h = -h
                rows.append(h)
            return torch.stack(rows, 1)

    with pytest.raises(ConvertError, match="computed differently in different steps"):
        read(Alternating())
