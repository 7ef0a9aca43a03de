"""Torch modules of the kinds that people write, for the tests of what becomes of them.

Nothing here is under test. A :class:`Case` says what the axes of a module's input and output are:
``T`` time, ``B`` batch, any other letter features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.autograd import Variable
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

SIZES = {"T": 7, "B": 3}


@dataclass(frozen=True)
class Case:
    """A module, and what its axes are.

    Parameters
    ----------
    make : callable
        Makes the module.
    x, y : str
        The axes of the input and of the output.
    features : tuple of int
        The sizes of the axes of `x` that are features, in order.
    kinds : str
        Those of the layers that are expected.
    tokens : int
        How many there are, if the input is tokens.
    states : tuple
        The shapes of the arguments behind the input, of a module that takes a step a call; nested
        as they are.
    """

    make: Callable[[], Any]
    x: str
    y: str
    features: tuple[int, ...]
    kinds: str
    tokens: int = 0
    states: tuple[Any, ...] = ()

    def input(self) -> Any:
        """A random input."""
        sizes = iter(self.features)
        shape = [SIZES[axis] if axis in SIZES else next(sizes) for axis in self.x]
        return torch.randint(self.tokens, shape) if self.tokens else torch.randn(*shape).double()

    def rows(self, x: Any) -> np.ndarray:
        """An input as rows of features (T, B, I), or tokens (T, B)."""
        rows = as_rows(x.numpy(), self.x)
        return rows[..., 0] if self.tokens else rows

    def expected(self, y: Any) -> np.ndarray:
        """An output as rows (T, B, O)."""
        return as_rows(y.detach().numpy(), self.y)


def as_rows(array: np.ndarray, axes: str) -> np.ndarray:
    for axis in "BT":
        if axis not in axes:
            array, axes = array[None], axis + axes
    order = [axes.index("T"), axes.index("B"), *(i for i, a in enumerate(axes) if a not in "TB")]
    array = array.transpose(order)
    return array.reshape(*array.shape[:2], -1)


CASES: dict[str, Case] = {}


def case(axes: str, features: tuple[int, ...], kinds: str, **options: Any) -> Any:
    """Enter a class in the zoo; `axes` are those of input and output, as in "BTF -> BO"."""

    def entered(cls: Any) -> Any:
        enter(cls.__name__, cls, axes, features, kinds, **options)
        return cls

    return entered


def enter(
    name: str, make: Any, axes: str, features: tuple[int, ...], kinds: str, **options: Any
) -> None:
    """Enter a module without a class of its own."""
    x, _, y = axes.partition(" -> ")
    CASES[name] = Case(make, x, y, features, kinds, **options)


# Classifiers: one output for a sequence


@case("BTF -> BO", (3,), "lstm, pool, linear")
class LastStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True, dropout=0.2)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        h0 = torch.zeros(2, x.size(0), 5, dtype=x.dtype).to(x.device)
        c0 = Variable(torch.zeros(2, x.size(0), 5, dtype=x.dtype)).requires_grad_()
        out, _ = self.lstm(x, (h0.detach(), c0.detach()))
        return self.fc(out[:, -1, :])


@case("BTF -> BO", (3,), "lstm, pool, linear")
class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        _, (h_n, _) = self.lstm(x)
        return self.fc(self.drop(h_n[-1]))


@case("TBF -> BO", (3,), "gru, pool, linear")
class LastOfTimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, input):
        output, _ = self.gru(input)
        return self.out(output[-1])


@case("BTF -> BO", (3,), "lstm, pool, linear")
class LastByLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, proj_size=4)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        _, steps, _ = x.shape
        return self.out(self.lstm(x)[0][:, steps - 1])


@case("BTF -> BO", (3,), "rnn, pool, linear")
class SqueezedState(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 5, batch_first=True, nonlinearity="relu")
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        _, h = self.rnn(x)
        return self.out(h.squeeze(0))


@case("BT -> BO", (), "embedding, lstm, pool, linear, activation", tokens=9)
class Sentiment(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.fc = nn.Linear(10, 2)
        self.dropout = nn.Dropout(0.3)

    def forward(self, text):
        embedded = self.dropout(self.embedding(text))
        _, (hidden, _) = self.lstm(embedded)
        hidden = self.dropout(torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1))
        return torch.sigmoid(self.fc(hidden))


@case("BTF -> BO", (3,), "gru, pool, linear")
class BothStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        _, h = self.gru(x)
        return self.fc(torch.cat([h[0], h[1]], dim=-1))


@case("BTF -> BO", (3,), "gru, pool, linear")
class FlattenedStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        _, h = self.gru(x)
        return self.fc(h.transpose(0, 1).reshape(x.shape[0], -1))


@case("BTF -> BO", (3,), "lstm, pool, linear, activation, linear")
class MeanPooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(10, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.head(out.mean(1))


@case("BCT -> BO", (3,), "conv1d, activation, conv1d, activation, pool, linear")
class ConvClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv1d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv1d(4, 6, 2), nn.ReLU()),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.features(x))


# Every step has its output


@case("BTF -> BTO", (3,), "lstm, linear")
class RowsOfAllSteps(nn.Module):
    """All steps of all sequences go through the Linear as rows of one matrix."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        batch, steps = x.size(0), x.size(1)
        out, _ = self.lstm(x)
        return self.fc(out.contiguous().view(-1, 5)).view(batch, steps, 2)


@case("TB -> TBO", (), "embedding, lstm, linear, activation", tokens=6)
class WordModel(nn.Module):
    """The shape of PyTorch's word language model, with tied weights."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.encoder = nn.Embedding(6, 4)
        self.rnn = nn.LSTM(4, 4, 2, dropout=0.5)
        self.decoder = nn.Linear(4, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, input, hidden=None):
        emb = self.drop(self.encoder(input))
        output, hidden = self.rnn(emb, hidden)
        decoded = self.decoder(self.drop(output))
        decoded = decoded.view(-1, 6)
        steps, batch = input.size()
        return F.log_softmax(decoded, dim=1).view(steps, batch, 6), hidden


@case("BT -> TBO", (), "one_hot, gru, linear", tokens=6)
class DiveIntoDeepLearning(nn.Module):
    """As in d2l.ai: tokens transposed and one-hot, the rows of all steps through one Linear."""

    def __init__(self):
        super().__init__()
        self.vocab_size = 6
        self.rnn = nn.GRU(6, 5)
        self.linear = nn.Linear(5, self.vocab_size)

    def forward(self, inputs, state=None):
        X = F.one_hot(inputs.T.long(), self.vocab_size)
        X = X.to(self.linear.weight.dtype)
        Y, state = self.rnn(X, state)
        output = self.linear(Y.reshape((-1, Y.shape[-1])))
        return output.reshape((*Y.shape[:2], -1)), state


@case("T -> TO", (), "embedding, lstm, linear, activation", tokens=9)
class Tagger(nn.Module):
    """The tutorial's: one sentence at a time."""

    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 5)
        self.hidden2tag = nn.Linear(5, 3)

    def forward(self, sentence):
        embeds = self.word_embeddings(sentence)
        lstm_out, _ = self.lstm(embeds.view(len(sentence), 1, -1))
        tag_space = self.hidden2tag(lstm_out.view(len(sentence), -1))
        return F.log_softmax(tag_space, dim=1)


@case("BTF -> BTO", (3,), "residual, residual, linear")
class ResidualGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.GRU(3, 3, batch_first=True) for _ in range(2)])
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        for block in self.blocks:
            y, _ = block(x)
            x = x + y
        return self.fc(x)


class FeedForward(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        residual = x
        x = self.down(F.gelu(self.up(self.norm(x))))
        x += residual
        return x


@case("BTF -> BTO", (3,), "linear, residual, lstm, residual")
class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3, 4)
        self.first, self.lstm, self.second = FeedForward(4), nn.LSTM(4, 4), FeedForward(4)

    def forward(self, x):
        x = self.first(self.proj(x)).transpose(0, 1)
        x, _ = self.lstm(x)
        return self.second(x.permute(1, 0, 2))


@case("BTF -> BTO", (3,), "residual, residual, linear")
class Dense(nn.Module):
    """The input of each layer is concatenated to its output."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTM(3, 4, batch_first=True), nn.LSTM(7, 4, batch_first=True)
        self.out = nn.Linear(11, 2)

    def forward(self, x):
        x = torch.cat([x, self.a(x)[0]], -1)
        x = torch.cat((self.b(x)[0], x), dim=2)
        return self.out(x)


@case("BTF -> BTO", (3,), "conv1d, batch_norm, activation, lstm, linear")
class ConvThenLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, kernel_size=3, padding=1)
        self.bn = nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        assert x.dim() == 3, f"expected (batch, time, features), got {x.shape}"
        if x.shape[-1] != self.conv.in_channels:
            raise ValueError("wrong number of features")
        x = self.conv(x.transpose(1, 2))
        x = F.relu(self.bn(x)).transpose(1, 2)
        out, _ = self.lstm(x)
        return self.fc(out)


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        padding = 2 * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=padding, dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, inputs, 3, padding=padding, dilation=dilation)
        self.net = nn.Sequential(
            *(self.conv1, Chomp(padding), nn.ReLU(), nn.Dropout(0.2)),
            *(self.conv2, Chomp(padding), nn.ReLU(), nn.Dropout(0.2)),
        )
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.net(x) + x)


@case("BCT -> BTO", (3,), "residual, activation, residual, activation, linear")
class TemporalConvNet(nn.Module):
    """https://arxiv.org/abs/1803.01271, without the convolution of size 1 around a block."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(*(TemporalBlock(3, 4, 2**n) for n in range(2)))
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs):
        return self.linear(self.network(inputs).transpose(1, 2))


@case("BCT -> BOT", (3,), "conv1d, activation, conv1d, conv1d")
class CausalConvs(nn.Module):
    """Padded on the left by hand, and cut to the length of the input."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(3, 4, 3))
        self.b = nn.Conv1d(4, 4, 3, dilation=2, padding=4, groups=2)
        self.c = nn.Conv1d(4, 2, 1)

    def forward(self, x):
        length = x.size(-1)
        x = torch.tanh(self.a(x))
        return self.c(self.b(x)[..., :length])


@case("BTF -> BTO", (3,), "scale, lstm, linear, scale")
class Normalised(nn.Module):
    """Features normalised by buffers, and the result turned back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("std", torch.rand(3) + 0.5)
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = (x - self.mean) / self.std
        return self.fc(self.lstm(x)[0]) * self.std + self.mean


@case("BTF -> BTO", (3,), "layer_norm, gru, batch_norm, prelu, linear, activation")
class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln, self.bn = nn.LayerNorm(3), nn.BatchNorm1d(4, affine=False)
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.act, self.fc = nn.PReLU(4), nn.Linear(4, 2)

    def forward(self, x):
        x, _ = self.gru(self.ln(x))
        x = self.act(self.bn(x.permute(0, 2, 1))).permute(0, 2, 1)
        return F.softmax(self.fc(x), dim=2)


class Functions(nn.Module):
    def forward(self, x):
        x = F.elu(F.leaky_relu(x.sigmoid().tanh() - 0.5, 0.2), alpha=0.7)
        x = F.hardtanh(F.relu6(F.hardsigmoid(x)), -0.4, 0.6)
        x = F.softsign(F.softplus(F.silu(x.relu_())))
        x = F.gelu(F.gelu(x), approximate="tanh") - 0.3
        return F.glu(F.selu(-x).clamp(-1, 1.5), dim=-1)


enter(
    "Functions",
    lambda: nn.Sequential(nn.Linear(4, 4), Functions()),
    "BTF -> BTO",
    (4,),
    "linear, activation, activation, scale" + ", activation" * 11 + ", scale, activation, scale, "
    "activation, combine_halves",
)


@case("BTF -> BTO", (4,), "linear, linear, activation, linear, activation")
class Matrices(nn.Module):
    """Weights that are parameters of the module itself."""

    def __init__(self):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))
        self.V, self.mask = nn.Parameter(torch.randn(6, 5)), torch.rand(6, 5) > 0.5
        self.U = nn.Parameter(torch.randn(6, 2))

    def forward(self, x):
        x = torch.matmul(x, self.W) + self.b
        x = F.linear(x, self.V * self.mask)
        x = x * torch.sigmoid(x)
        return torch.tanh(x @ self.U)


@case("BTF -> BTO", (3,), "lstm, combine_halves, linear")
class SummedDirections(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, :, :4] + out[:, :, 4:])


@case("BTF -> BTO", (3,), "lstm, combine_halves, linear")
class AveragedDirections(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out.view(*out.shape[:2], 2, 4).sum(2))


@case("BTF -> BTO", (3,), "lstm, linear")
class LearnedStart(nn.Module):
    def __init__(self):
        super().__init__()
        self.h0, self.c0 = (nn.Parameter(torch.randn(2, 1, 5)) for _ in range(2))
        self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        start = self.h0.expand(-1, x.size(0), -1).contiguous(), self.c0.repeat(1, len(x), 1)
        return self.fc(self.lstm(x, start)[0])


@case("BF -> BO", (7,), "linear, activation, linear")
class Windows(nn.Module):
    """A window of numbers a row; its input has no axis of time."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        return self.net(x)


@case("BT -> BO", (), "lstm, pool, linear")
class Univariate(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 5, batch_first=True)
        self.fc = nn.Linear(5, 1)

    def forward(self, x):
        out, _ = self.lstm(x.unsqueeze(-1))
        return self.fc(out[:, -1])


@case("BTF -> BTO", (12,), "frame_conv1d, combine_halves, linear")
class Spectrum(nn.Module):
    """Each step is a frame of samples, of which a fixed basis makes a spectrum."""

    def __init__(self):
        super().__init__()
        self.register_buffer("basis", torch.randn(6, 1, 4))
        self.fc = nn.Linear(9, 2)

    def forward(self, x):
        batch, steps, samples = x.shape
        assert samples == 12
        x = x.reshape(batch * steps, 1, samples)
        x = F.conv1d(x, self.basis, stride=4)
        re, im = x.chunk(2, dim=1)
        x = torch.sqrt(re**2 + im.pow(2))
        return self.fc(x.view(batch, steps, -1))


# With a state handed in and out, a step a call


@case(
    "BF -> BO",
    (12,),
    "frame_conv1d, combine_halves, frame_conv1d, activation, lstm, activation, linear, activation",
    states=(((3, 5), (3, 5)),),
)
class VoiceActivity(nn.Module):
    """A detector that takes a chunk of samples a step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("basis", torch.randn(6, 1, 4))
        self.conv = nn.Conv1d(3, 4, 3, stride=2, padding=1)
        self.rnn = nn.LSTMCell(8, 5)
        self.out = nn.Linear(5, 1)

    def forward(self, x, state=None):
        if x.shape[-1] != 12:
            raise ValueError(f"expected 12 samples, got {x.shape[-1]}")
        x = F.pad(x.unsqueeze(1), (0, 4), mode="reflect")
        x = F.conv1d(x, self.basis, stride=4)
        x = torch.sqrt(x[:, :3] ** 2 + x[:, 3:] ** 2)
        x = F.relu(self.conv(x)).flatten(1)
        h, c = self.rnn(x, state)
        return torch.sigmoid(self.out(F.relu(h))), (h, c)


@case("B -> BO", (), "embedding, gru, linear", tokens=6, states=((2, 3, 5),))
class CharModel(nn.Module):
    """One character a call, its state handed in and out."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(6, 4)
        self.rnn = nn.GRU(4, 5, 2)
        self.decoder = nn.Linear(5, 6)

    def forward(self, input, hidden):
        batch_size = input.size(0)
        encoded = self.encoder(input)
        output, hidden = self.rnn(encoded.view(1, batch_size, -1), hidden)
        return self.decoder(output.view(batch_size, -1)), hidden


@case("BF -> BO", (3,), "lstm, gru, linear", states=(((3, 4), (3, 4)), (3, 5)))
class StackedCells(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTMCell(3, 4), nn.GRUCell(4, 5)
        self.fc = nn.Linear(5, 2)

    def forward(self, x, first, second):
        h, c = self.a(x, first)
        second = self.b(h, second)
        return self.fc(second), (h, c), second


@case("BTF -> BO", (3,), "lstm, pool, linear")
class Packed(nn.Module):
    """With the lengths of the rows, or none."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x, lengths=None):
        if lengths is not None:
            x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, (h, _) = self.lstm(x)
        if lengths is not None:
            out, _ = pad_packed_sequence(out, batch_first=True)
        return self.fc(h[-1])


# Without a class of their own

enter(
    "Sequential",
    lambda: nn.Sequential(
        nn.Linear(3, 4),
        nn.Sequential(nn.SiLU(), nn.Dropout(0.1), nn.LayerNorm(4, bias=False)),
        nn.Identity(),
        nn.Linear(4, 2),
        nn.Softmax(dim=-1),
    ),
    "BTF -> BTO",
    (3,),
    "linear, activation, layer_norm, linear, activation",
)
enter(
    "SharedModule",
    lambda: nn.Sequential(nn.Linear(3, 3), *[nn.Sequential(nn.Linear(3, 3), nn.Tanh())] * 2),
    "BTF -> BTO",
    (3,),
    "linear, linear, activation, linear, activation",
)
