"""What conversions of array programs once gave wrong, or refused without need."""

from __future__ import annotations

import io

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.sources import torchscript
from fastlstm.sources.conversion import BATCH, TIME

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional

# torch.jit is no longer developed, and says so.
pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def converted(module, how, *example):
    """A conversion of a module that is scripted, or traced with arrays of these shapes."""
    file = io.BytesIO()
    module = module.double().eval()
    if how == "script":
        made = torch.jit.script(module)
    else:
        args = tuple(torch.randn(shape, dtype=torch.float64) for shape in example)
        made = torch.jit.trace(module, args, check_trace=False)
    torch.jit.save(made, file)
    file.seek(0)
    return torchscript.read(file, "float64"), made


def as_rows(array, axes):
    """An array of a source as rows (T, B, ...)."""
    assert array.ndim == len(axes)
    order = [axes.index(axis) for axis in (TIME, BATCH) if axis in axes]
    array = array.transpose([*order, *(n for n in range(len(axes)) if n not in order)])
    if BATCH not in axes:
        array = np.expand_dims(array, int(TIME in axes))
    return array if TIME in axes else array[None]


def assert_gives(conversion, module, *arrays):
    """That the graph gives what the module gives of these arrays, laid out as the call says."""
    given = {}
    inputs = {one.name: one for one in conversion.graph.inputs}
    for argument, array in zip(conversion.call.arguments, arrays, strict=True):
        rows = as_rows(array, argument.axes)
        given[argument.value] = rows.reshape(*rows.shape[:2], *inputs[argument.value].shape)
    got = reference.forward(conversion.graph, conversion.tensors, given, dtype=np.float64)
    with torch.no_grad():
        expected = module(*map(torch.from_numpy, arrays))
    (name,) = got
    rows = as_rows(expected.numpy(), conversion.call.outputs[0].axes)
    np.testing.assert_allclose(got[name].reshape(rows.shape), rows, **TOLERANCE)


class Pooled(nn.Module):
    """An average over all steps, as a pooling whose kernel is as long as the sequence."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x):
        z = self.conv(x)
        return F.avg_pool2d(z, z.size()[2:]).view(z.size(0), -1)


class Repeated(nn.Module):
    """The last state, once for each step."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(3, 4, batch_first=True)
        self.decoder = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        _, (h, _) = self.encoder(x)
        y, _ = self.decoder(h[-1].unsqueeze(1).repeat(1, x.size(1), 1))
        return y


class TestLengthOfAnExample:
    """What depends on the length of a sequence is no model of sequences of another length."""

    @pytest.mark.parametrize(
        ("module", "shape"), [(Pooled, (1, 2, 8, 5)), (Repeated, (1, 8, 3))], ids=["pool", "repeat"]
    )
    def test_is_part_of_the_row(self, module, shape, rng):
        model, traced = converted(module(), "trace", shape)
        (argument,) = model.call.arguments
        assert argument.axes == (BATCH, *shape[1:])
        assert_gives(model, traced, rng.normal(size=(2, *shape[1:])))

    def test_height_is_not_time(self, rng):
        class Text(nn.Module):
            """Of a line of text, a row of features for each column of pixels."""

            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(1, 4, 3, padding=1)
                self.squeeze = nn.Conv2d(4, 4, (8, 1))
                self.lstm = nn.LSTM(4, 3)

            def forward(self, x):
                z = F.max_pool2d(torch.relu(self.conv(x)), 2)
                z = self.squeeze(z).squeeze(2).permute(2, 0, 1)
                return self.lstm(z)[0]

        model, traced = converted(Text(), "trace", (1, 1, 16, 24))
        assert model.call.arguments[0].axes == (BATCH, 1, 16, TIME)
        assert_gives(model, traced, rng.normal(size=(3, 1, 16, 30)))

    def test_other_sizes_are_those_of_the_example(self):
        class History(nn.Module):
            """Of a stride, more sizes than one would do."""

            def __init__(self):
                super().__init__()
                self.conv = nn.Conv1d(6, 4, 4, stride=2)
                self.linear = nn.Linear(16, 2)

            def forward(self, x):
                return self.linear(self.conv(x.permute(0, 2, 1)).flatten(1))

        model, _ = converted(History(), "trace", (1, 10, 6))
        assert model.call.arguments[0].axes == (BATCH, 10, 6)


class Filter(nn.Module):
    """A filter of second order whose first step meets no state."""

    def forward(self, x):
        outputs: list[torch.Tensor] = []
        one = torch.zeros_like(x[:, 0])
        two = torch.zeros_like(one)
        for t in range(x.size(1)):
            v = x[:, t]
            y = 0.3 * v + one
            one = 0.2 * v - 0.5 * y + two
            two = 0.1 * v + 0.2 * y
            outputs.append(y)
        return torch.stack(outputs, 1)


class Leaky(nn.Module):
    """A reservoir whose state meets the input again behind it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(6, 6))
        self.inward = nn.Linear(3, 6)
        self.out = nn.Linear(9, 2)

    def forward(self, x):
        h = torch.zeros(x.size(0), 6, dtype=x.dtype)
        outputs: list[torch.Tensor] = []
        for t in range(x.size(1)):
            u = x[:, t]
            h = 0.7 * h + 0.3 * torch.tanh(self.inward(u) + F.linear(h, self.weight))
            outputs.append(torch.cat([h, u], -1))
        return self.out(torch.stack(outputs, 1))


class TestLoops:
    @pytest.mark.parametrize(("module", "size"), [(Filter, ()), (Leaky, (3,))])
    def test_states_that_end_a_turn(self, module, size, rng):
        model, scripted = converted(module(), "script")
        for rows, steps in ((2, 9), (1, 1), (3, 2), (1, 30)):
            assert_gives(model, scripted, rng.normal(size=(rows, steps, *size)))


class TestKernels:
    """Kernels that need more steps than a run has."""

    @pytest.mark.parametrize("how", ["script", "trace"])
    def test_behind_a_stride(self, how, rng):
        class Coder(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = nn.Conv1d(1, 4, 8, stride=4)
                self.lstm = nn.LSTM(4, 4)
                self.decoder = nn.ConvTranspose1d(4, 1, 8, stride=4)

            def forward(self, x):
                y, _ = self.lstm(self.encoder(x).permute(2, 0, 1))
                return self.decoder(y.permute(1, 2, 0))

        model, made = converted(Coder(), how, (1, 1, 64))
        for steps in (64, 101):
            assert_gives(model, made, rng.normal(size=(2, 1, steps)))

    def test_padded_by_more_than_there_is(self, rng):
        class Separator(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = nn.Conv1d(1, 4, 16, stride=8)
                self.kernel = nn.Conv1d(4, 4, 3, dilation=8, padding=16)

            def forward(self, x):
                z = self.encoder(x)
                return z + self.kernel(z)[:, :, :-16]

        model, made = converted(Separator(), "trace", (1, 1, 200))
        for steps in (40, 300):
            assert_gives(model, made, rng.normal(size=(2, 1, steps)))


class Masked(nn.Module):
    """A policy whose state is put back where an episode begins."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 5)

    def forward(self, x, mask, hidden):
        y, h = self.gru(x.unsqueeze(0), (hidden * mask).unsqueeze(0))
        return y.squeeze(0), h.squeeze(0)


class TestStates:
    def test_masked_before_each_step(self, rng):
        model, made = converted(Masked(), "trace", (2, 4), (2, 1), (2, 5))
        roles = {one.name: one.role for one in model.call.arguments}
        assert roles == {"x": "rows", "mask": "rows", "hidden": "state"}
        x = rng.normal(size=(8, 2, 4))
        mask = (rng.random((8, 2, 1)) < 0.6).astype(np.float64)
        hidden = torch.zeros(2, 5, dtype=torch.float64)
        expected = []
        for one, keeps in zip(torch.from_numpy(x), torch.from_numpy(mask), strict=True):
            y, hidden = made(one, keeps, hidden)
            expected.append(y.detach().numpy())
        got = reference.forward(model.graph, model.tensors, {"x": x, "mask": mask})
        (y,) = got.values()
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


class TestOperators:
    def test_a_norm_of_what_a_loop_starts_with(self, rng):
        class Normed(nn.Module):
            def __init__(self):
                super().__init__()
                self.inward, self.across = nn.Linear(3, 4), nn.Linear(4, 4)
                self.norm = nn.LayerNorm(4)

            def forward(self, x):
                h = torch.zeros(x.size(0), 4, dtype=x.dtype)
                for t in range(x.size(1)):
                    h = torch.tanh(self.inward(x[:, t]) + self.norm(self.across(h)))
                return h

        model, made = converted(Normed(), "trace", (1, 6, 3))
        assert_gives(model, made, rng.normal(size=(3, 6, 3)))

    @pytest.mark.parametrize("padding", ["valid", "same"])
    def test_a_kernel_padded_by_a_word(self, padding, rng):
        module = nn.Sequential(nn.Conv1d(3, 4, 3, padding=padding), nn.ReLU())
        model, made = converted(module, "trace", (1, 3, 12))
        assert_gives(model, made, rng.normal(size=(2, 3, 20)))
