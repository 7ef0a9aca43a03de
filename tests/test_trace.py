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
from fastlstm import chain as spec
from fastlstm.chain import reference
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


def kinds(conversion: Conversion) -> str:
    return ", ".join(layer.kind for layer in conversion.layers)


def same(conversion: Conversion, x: np.ndarray, expected: np.ndarray, **options: Any) -> None:
    assert all(array.dtype == np.float64 for array in conversion.tensors.values())
    y, _ = reference.forward(conversion.layers, conversion.tensors, x, **options)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_becomes_layers_that_compute_the_same(name: str) -> None:
    case = CASES[name]
    module = made(case)
    conversion = read(module, dtype="float64")
    assert kinds(conversion) == case.kinds
    same(conversion, *in_torch(case, module))


@pytest.mark.parametrize("name", CASES)
def test_runs_as_in_torch(name: str) -> None:
    case = CASES[name]
    module = made(case)
    x, expected = in_torch(case, module)
    model = fastlstm.from_torch(module.float())
    y, _ = model(x if case.tokens else x.astype(np.float32))
    if model.pools_over_time:
        expected = expected[0]
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_leaves_the_module_as_it_was(name: str) -> None:
    module = CASES[name].make().train()
    before = {path: dict(vars(part)) for path, part in module.named_modules()}
    tensors = copy.deepcopy(module.state_dict())
    read(module)
    for path, part in module.named_modules():
        assert vars(part) == before[path]
        assert part.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, tensors[key])
    assert "len" not in vars(__import__("torch_zoo"))
    assert torch.zeros is torch._C._VariableFunctions.zeros
    assert "expand" not in vars(torch.Tensor)


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
            x, (torch.full((1, x.size(0), 5), 0.0), torch.zeros(1, len(x), 5).zero_())
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
    assert kinds(conversion) == expected
    case = Case(lambda: module, "BTF", axes, (3,), expected)
    x = case.input()
    y = module.lstm(x)[0] if name == "filled states" else module.eval()(x)
    same(conversion, case.rows(x), case.expected(y))


def test_the_report_says_what_became_of_everything() -> None:
    def forward(self: Any, x: Any) -> Any:
        out, _ = self.lstm(self.norm(x.transpose(1, 2)).transpose(1, 2))
        out = self.same(self.drop(out))
        return F.log_softmax(self.fc(out[:, -1]), dim=-1)

    module = Small(
        forward,
        norm=nn.BatchNorm1d(3),
        drop=nn.Dropout(0.3),
        same=nn.Identity(),
        unused=nn.Linear(3, 3),
    )
    assert read(module, dtype="float64").report == (
        "'x' was taken for an array (batch, time, 3 features)",
        "x.transpose(1, 2) -> no layer of its own",
        "'norm' (BatchNorm1d) -> layer 'norm': batch_norm(num_features=3, eps=1e-05, affine=True)",
        "self.norm(x.transpose(1, 2)).transpose(1, 2) -> no layer of its own",
        "'lstm' (LSTM) -> layer 'lstm': lstm(input_size=3, hidden_size=5, num_layers=1, "
        "bias=True, bidirectional=False, proj_size=0)",
        "'drop' (Dropout) has no effect at inference and was left out",
        "'same' (Identity) has no effect at inference and was left out",
        "out[:, -1] -> layer 'last': pool(function=last, size=5)",
        "'fc' (Linear) -> layer 'fc': linear(in_features=5, out_features=2, bias=True)",
        "F.log_softmax(self.fc(out[:, -1]), dim=-1) -> layer 'log_softmax': "
        "activation(function=log_softmax, size=2)",
        "'lstm' (LSTM): batch_first changes no weight and is not stored",
        "'unused' (Linear) is not run by forward and was left out",
        "widened from float32 to float64: norm.running_mean, norm.running_var, norm.weight, "
        "norm.bias, lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0, "
        "fc.weight, fc.bias",
    )


def test_names_are_paths() -> None:
    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.fc(x)) + x

    block = Block()
    layers = read(nn.Sequential(nn.Linear(3, 3), nn.Sequential(block, block))).layers
    assert [layer.name for layer in spec.walk(layers)] == [
        *("0", "1.0.add", "1.0.fc", "1.0.relu", "1.1.add", "1.1.fc", "1.1.relu"),
    ]


def test_lengths_are_left_to_the_model() -> None:
    class Tagger(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(6, 3)
            self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True)

        def forward(self, x: Any, lengths: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(
                self.emb(x), lengths, batch_first=True, enforce_sorted=False
            )
            out, state = self.lstm(packed)
            out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.size(1))
            return out, state

    module = Tagger().double()
    conversion = read(module, dtype="float64")
    x, lengths = torch.randint(6, (B, T)), [4, 7, 2]
    expected = module(x, torch.tensor(lengths))[0].detach().numpy().swapaxes(0, 1)
    same(conversion, x.numpy().T, expected, lengths=lengths)
    assert "'x' was taken for tokens (batch, time)" in conversion.report


def test_a_size_that_the_forward_checks_is_that_of_the_input() -> None:
    def forward(self: Any, x: Any) -> Any:
        if x.shape[-1] != 10:
            raise ValueError
        return self.fc(F.conv1d(x.unsqueeze(1), self.basis, stride=5).flatten(1))

    module = Small(forward, basis=nn.Parameter(torch.randn(2, 1, 5)), fc=nn.Linear(4, 2))
    assert read(module).layers[0].input_size == 10


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
    for text in ("'old' (LSTM)", "'new' (Linear)", "'spectral' (Linear)", "'pruned' (Linear)"):
        assert (
            f"{text} computes its weights from others (weight norm or the like); what they are "
            f"now was taken"
        ) in conversion.report
    assert "hooks" not in " ".join(conversion.report)


def test_what_forward_keeps_is_forgotten() -> None:
    def forward(self: Any, x: Any) -> Any:
        out, self.hidden = self.lstm(x, self.hidden)
        return self.fc(out)

    module = Small(forward, hidden=None)
    assert kinds(read(module)) == "lstm, linear"
    assert module.hidden is None


def test_states_that_the_module_keeps() -> None:
    def forward(self: Any, x: Any) -> Any:
        return self.fc(self.lstm(x, (self.h, self.c))[0])

    zeros, some = torch.zeros(1, B, 5).double(), torch.randn(1, 1, 5).double()
    x = torch.randn(B, T, 3).double()
    for h, c in ((zeros, zeros), (some.expand(1, B, 5), zeros)):
        module = Small(forward, h=h, c=c).double()
        conversion = read(module, dtype="float64")
        same(conversion, x.numpy().swapaxes(0, 1), module(x).detach().numpy().swapaxes(0, 1))
    module = Small(forward, h=torch.randn(1, B, 5), c=zeros)
    with pytest.raises(ConvertError, match="starts each row of a batch from another h_0"):
        read(module)


def test_branches_that_the_shape_decides() -> None:
    def forward(self: Any, x: Any, hidden: Any = None, flag: bool = False) -> Any:
        if x.dim() == 2:
            x = x.unsqueeze(0)
        if x.ndim != 3 or len(x.shape) != 3 or x.is_cuda or x.dtype == torch.int64:
            raise ValueError(f"{x.shape} {x}")
        if hidden is None:
            hidden = (
                x.new_zeros(1, x.size(0), 5),
                torch.zeros_like(x[:, -1:]).new_zeros(1, x.size(0), 5),
            )
        out, _ = self.lstm(x.to(self.fc.weight), hidden)
        return self.fc(out) if not self.training and not flag else out

    class Net(Small):
        def forward(self, x: Any, hidden: Any = None, flag: bool = False) -> Any:
            return self.run(self, x, hidden, flag)

    assert kinds(read(Net(forward))) == "lstm, linear"


def test_a_forward_that_calls_the_one_it_overrides() -> None:
    class Doubled(nn.GRU):  # type: ignore[misc]
        def forward(self, x: Any, h: Any = None) -> Any:
            out, h = super().forward(x * 2, h)
            return out / 2, h

    module = nn.Sequential(Doubled(3, 4), nn.Linear(4, 2)).double()
    x = torch.randn(T, B, 3).double()
    conversion = read(nn.Sequential(module[0]), dtype="float64")
    same(conversion, x.numpy(), module[0](x)[0].detach().numpy())
    assert kinds(conversion) == "scale, gru, scale"
    assert [layer.name for layer in conversion.layers] == ["0.mul", "0", "0.div"]


def test_a_prefix_follows_a_part() -> None:
    module = Small(lambda self, x: x.max(), block=nn.Sequential(nn.Linear(3, 4), nn.Tanh()))
    assert [layer.name for layer in read(module, prefix="block").layers] == ["0", "1"]
    assert [layer.name for layer in read(module, prefix="lstm.").layers] == ["lstm"]


def test_words_are_taken_where_they_are_given() -> None:
    module = Small(lambda self, x: x.max())
    assert kinds(read(module, layers="lstm, relu, linear")) == "lstm, activation, linear"


def test_used_weights_cannot_be_ignored() -> None:
    module = Small(lambda self, x: self.lstm(x)[0])
    assert kinds(read(module, ignore="fc.*")) == "lstm"
    with pytest.raises(ConvertError, match=r"ignore= matches 'lstm\.weight_ih_l0', which a layer"):
        read(module, ignore="lstm.*")


def test_a_vocabulary_and_a_file(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    model = fastlstm.convert(module, tmp_path / "model.safetensors", vocabulary=list("abc"))
    assert model.vocabulary == ("a", "b", "c")
    assert "'0' (Embedding) -> layer '0': embedding" in model.source["report"]


# Refusals: the forward, and the message behind "the module (Small) is not converted: ". Where it
# happened and what to do about it follow.


def _loop(self: Any, x: Any) -> Any:
    h = c = torch.zeros(x.size(0), 5)
    outputs = []
    for t in range(x.size(1)):
        h, c = self.cell(x[:, t], (h, c))
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _unbound(self: Any, x: Any) -> Any:
    h = c = torch.zeros(x.size(0), 5)
    for row in x.unbind(1):
        h, c = self.cell(row, (h, c))
    return h


def _iterated(self: Any, x: Any) -> Any:
    return [self.fc(row) for row in self.lstm(x)[0].transpose(0, 1)][-1]


def _branch(self: Any, x: Any) -> Any:
    return self.lstm(x if x.sum(2).mean(1) > 0 else -x)[0]


def _in_place(self: Any, x: Any) -> Any:
    y = x.transpose(1, 2)
    x += 1
    return self.conv(y)


_LOOP = (
    "takes one step after the other, as a loop over time does; expected one call of a layer for "
    "the whole sequence: convert the layers of the module with layers=, or the cell that the loop "
    "runs with prefix="
)
_NUMBER = (
    "a length that only the input tells is used as a number, as in a loop over time, a condition "
    "or a slice of a table; expected one call of a layer for a whole sequence: convert the layers "
    "of the module with layers=, or the cell that a loop runs with prefix="
)
_VALUES = (
    "depends on the values of its input; expected a forward that does the same for every input"
)

REFUSALS = {
    "loop": (_loop, _NUMBER),
    "unbind": (_unbound, f"'x.unbind(1)' {_LOOP}"),
    "iteration": (
        _iterated,
        f"'[self.fc(row) for row in self.lstm(x)[0].transpose(0, 1)]' {_LOOP}",
    ),
    "length": (lambda self, x: x if x.size(1) > 3 else -x, _NUMBER),
    "table": (lambda self, x: self.lstm(x + self.table[:, : x.size(1)])[0], _NUMBER),
    "item": (lambda self, x: x * self.fc.bias[0] * x.item(), f"'x.item()' {_VALUES}"),
    "where": (lambda self, x: torch.where(x > 0, x, -x), f"'x > 0' {_VALUES}"),
    "numpy": (lambda self, x: x.numpy(), f"'x.numpy()' {_VALUES}"),
    "max": (
        lambda self, x: self.fc(self.lstm(x)[0].max(1)[0]),
        "'self.lstm(x)[0].max(1)' computes 'max', which no layer does",
    ),
    "module": (lambda self, x: self.conv2(x), "'conv2' (Conv2d) computes 'conv2d', which no layer "
               "does"),
    "dropout": (
        lambda self, x: F.dropout(self.lstm(x)[0], 0.5),
        "'F.dropout(self.lstm(x)[0], 0.5)' has training=True, so that it stays random in "
        "evaluation; expected training=self.training",
    ),
    "random": (
        lambda self, x: x + torch.randn(1, x.size(1), 3),
        "'torch.randn(1, x.size(1), 3)' is random; expected a forward that gives the same each "
        "time",
    ),
    "half": (
        lambda self, x: self.lstm(x.half())[0],
        "a tensor is turned to half, which rounds its values; expected float32 or float64 "
        "throughout, and tokens as integers",
    ),
    "statistics": (
        lambda self, x: self.norm(self.lstm(x)[0].transpose(1, 2)),
        "'norm' (BatchNorm1d) normalises by the statistics of its batch; expected running ones, "
        "track_running_stats=True",
    ),
    "in place": (
        _in_place,
        "an array is used that was changed in place through another view of it; expected no "
        "operation in place where there are two",
    ),
    "item assignment": (
        lambda self, x: x.__setitem__(0, 1),
        "'x.__setitem__(0, 1)' writes into a part of an array; expected it to be left alone",
    ),
    "buffer": (
        lambda self, x: self.table.mul_(x),
        "'self.table.mul_(x)' writes into a tensor of the module; expected it to be left alone",
    ),
    "dict": (
        lambda self, x: {"y": self.lstm(x)[0]},
        "its forward returns 'dict'; expected an array made of the input, or a tuple of that and "
        "states",
    ),
    "constant": (
        lambda self, x: self.fc.weight,
        "its forward returns 'Parameter'; expected an array made of the input, or a tuple of that "
        "and states",
    ),
    "two outputs": (
        lambda self, x: (self.lstm(x)[0], self.fc(self.lstm(x)[0])),
        "output '[1]' is computed by 'fc' (Linear); expected one output beside the last states of "
        "recurrent layers",
    ),
    "error": (
        lambda self, x: self.missing(x),
        "its forward fails on a stand-in for the input, AttributeError: 'Small' object has no "
        "attribute 'missing'",
    ),
    "width": (
        lambda self, x: self.fc(self.conv(x.transpose(1, 2)).flatten(1)),
        "'fc' (Linear) reads 5 numbers along an axis whose size depends on that of the input, "
        "which nothing tells; expected a forward that checks it first, as in "
        "'assert x.shape[-1] == 512'",
    ),
    "states": (
        lambda self, x: self.lstm(x, torch.zeros(1, x.size(0), 5))[0],
        "'lstm' (LSTM) starts from one array; expected a pair of arrays, h and c",
    ),
    "scripted": (
        lambda self, x: self.scripted(x),
        "'scripted' (scripted) is scripted; expected the module it was scripted from",
    ),
}  # fmt: skip


def refusable(forward: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(3, 5))
    return Small(
        forward,
        cell=nn.LSTMCell(3, 5),
        conv=nn.Conv1d(3, 4, 3),
        conv2=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm1d(5, track_running_stats=False),
        table=torch.randn(1, 50, 3),
        scripted=scripted,
    )


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses(name: str) -> None:
    forward, message = REFUSALS[name]
    with pytest.raises(ConvertError) as caught:
        read(refusable(forward))
    print(caught.value)
    assert str(caught.value).startswith(f"the module (Small) is not converted: {message}")
    assert str(caught.value).endswith(
        ". Say which layers it runs with layers=, for example layers='lstm:lstm, linear:fc, "
        "lstm:cell, conv1d:conv, conv2d:conv2, batch_norm:norm', or convert one part of it with "
        "prefix=, for example prefix='lstm'"
    )


def test_a_second_input_is_refused() -> None:
    class Masked(Small):
        def forward(self, x: Any, mask: Any) -> Any:
            return self.lstm(x)[0] * mask

    with pytest.raises(ConvertError, match="not converted: argument 'mask' is used as an array "):
        read(Masked(None))


def test_what_forward_keeps_in_a_list_says_so_later() -> None:
    kept: list[Any] = []

    def forward(self: Any, x: Any) -> Any:
        out, state = self.lstm(x)
        kept.append(state[0])
        return out

    read(Small(forward))
    with pytest.raises(ConvertError, match="the module kept a tensor of a conversion and used it"):
        kept[0] + 1


def test_a_module_that_takes_nothing() -> None:
    with pytest.raises(ConvertError, match="its forward takes no array by name; expected one"):
        read(nn.ParameterDict({"weight": torch.ones(3)}))
