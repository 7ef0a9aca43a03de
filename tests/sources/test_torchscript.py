"""Archives of TorchScript: their code is followed, and gives what torch.jit gives."""

from __future__ import annotations

import contextlib
import io
import zipfile

import numpy as np
import pytest
from numeric_builder import NumericBuilder
from torch_zoo import CASES

from fastlstm import reference
from fastlstm.errors import ConvertError
from fastlstm.sources import read, torchscript
from fastlstm.sources.aten.forward import flat
from fastlstm.sources.pytorch.unpickle import Budget
from fastlstm.sources.torchscript.archive import read_archive
from fastlstm.sources.torchscript.code import Code
from fastlstm.sources.torchscript.program import ScriptForward

torch = pytest.importorskip("torch")
nn = torch.nn

# torch.jit is no longer developed, and says so.
pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def saved(module):
    """An archive of a scripted or traced module."""
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return file


def ran(module, *args, states=None):
    """What forward returns, followed on numbers, by place; and what it has changed."""
    builder = NumericBuilder()
    forward = ScriptForward(read_archive(saved(module)))
    arrays = [x for _, x in flat(list(args))]
    needed = [one for one in forward.inputs if not one.optional]
    given = {
        one.name: builder.value(x.numpy(), "float" if x.is_floating_point() else "int")
        for one, x in zip(needed, arrays, strict=True)
    }
    made = forward(builder, given, states or {})
    return (
        {place: builder.of(value) for place, value in made.returned.items()},
        {path: builder.of(value) for path, value in made.written.items()},
    )


def assert_as_torch(module, *args):
    expected = module(*[a.clone() if isinstance(a, torch.Tensor) else a for a in args])
    got, _ = ran(module, *args)
    arrays = dict(flat(expected))
    assert list(got) == list(arrays)
    for place, value in arrays.items():
        assert got[place].shape == tuple(value.shape), place
        np.testing.assert_allclose(got[place], value.detach().numpy(), **TOLERANCE)


def made(case):
    torch.manual_seed(20261130)
    return case.make().double().eval(), case.input()


class TestZoo:
    """Every module of the zoo that torch can script or trace."""

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("how", ["script", "trace", "freeze"])
    def test_as_torch(self, name, how):
        case = CASES[name]
        if case.states:
            pytest.skip("takes states")
        module, x = made(case)
        try:
            scripted = (
                torch.jit.trace(module, (x,), check_trace=False)
                if how == "trace"
                else torch.jit.script(module)
            )
            if how == "freeze":
                scripted = torch.jit.freeze(scripted)
        except Exception:  # torch's own limits, which are of many types
            pytest.skip("torch cannot script it")
        try:
            with torch.no_grad():
                scripted(x)
        except RuntimeError:
            pytest.skip("torch cannot run what it scripted")
        assert_as_torch(scripted, x)

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("how", ["script", "trace"])
    def test_graph(self, name, how):
        case = CASES[name]
        if case.states:
            pytest.skip("takes states")
        module, x = made(case)
        try:
            scripted = (
                torch.jit.trace(module, (x,), check_trace=False)
                if how == "trace"
                else torch.jit.script(module)
            )
        except Exception:  # torch's own limits, which are of many types
            pytest.skip("torch cannot script it")
        with torch.no_grad():
            y = module(x)
        try:
            archive = saved(scripted)
        except RuntimeError:
            pytest.skip("torch cannot save what it scripted")
        model = torchscript.read(archive, "float64")
        (one,) = model.graph.inputs
        got = reference.forward(
            model.graph, model.tensors, {one.name: case.rows(x)}, dtype=np.float64
        )
        first = next(iter(got.values()))
        expected = case.expected(y[0] if isinstance(y, tuple | list) else y)
        np.testing.assert_allclose(first.reshape(expected.shape), expected, **TOLERANCE)


class InPlace(nn.Module):
    """State in buffers, as walking policies keep it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.memory = nn.LSTM(5, 4)
        self.actor = nn.Sequential(nn.Linear(4, 3), nn.ELU(), nn.Linear(3, 2))
        self.register_buffer("h", torch.full((1, 1, 4), 0.25))
        self.register_buffer("c", torch.full((1, 1, 4), -0.5))

    def forward(self, x):
        out, (h, c) = self.memory(x.unsqueeze(0), (self.h, self.c))
        if self.how == "slice":
            self.h[:] = h
            self.c[:] = c
        elif self.how == "copy_":
            self.h.copy_(h)
            self.c.copy_(c)
        else:
            self.h = h
            self.c = c
        return self.actor(out.squeeze(0))


class TestStates:
    @pytest.mark.parametrize("how", ["slice", "copy_", "assign"])
    def test_in_buffers(self, how):
        torch.manual_seed(1)
        scripted = torch.jit.script(InPlace(how).double().eval())
        model = torchscript.read(saved(scripted), "float64")
        x = torch.randn(9, 1, 5, dtype=torch.float64)
        with torch.no_grad():
            expected = torch.stack([scripted(row) for row in x]).numpy()
        got = reference.forward(model.graph, model.tensors, {"input": x.numpy()}, dtype=np.float64)
        np.testing.assert_allclose(got["output"], expected, **TOLERANCE)
        assert [a.name for a in model.call.arguments] == ["x"]

    def test_what_is_written_is_told(self):
        torch.manual_seed(1)
        scripted = torch.jit.script(InPlace("slice").double().eval())
        x = torch.randn(1, 5, dtype=torch.float64)
        _, written = ran(scripted, x)
        with torch.no_grad():
            scripted(x)
        assert set(written) == {"h", "c"}
        np.testing.assert_allclose(written["h"], scripted.h.numpy(), **TOLERANCE)
        np.testing.assert_allclose(written["c"], scripted.c.numpy(), **TOLERANCE)

    def test_in_arguments(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(2, 4, num_layers=2, batch_first=True)
                self.head = nn.Linear(4, 1)
                self.register_buffer("scale", torch.tensor([3.0, 0.5]))

            def forward(self, x, hc: tuple[torch.Tensor, torch.Tensor]):
                y, hc = self.lstm(x * self.scale, hc)
                return self.head(y), hc

        torch.manual_seed(1)
        module = Scaled().double().eval()
        model = torchscript.read(saved(torch.jit.script(module)), "float64")
        x = torch.randn(3, 9, 2, dtype=torch.float64)
        zeros = torch.zeros(2, 3, 4, dtype=torch.float64)
        expected = module(x, (zeros, zeros))[0].detach().numpy().transpose(1, 0, 2)
        given = {model.graph.inputs[0].name: x.numpy().transpose(1, 0, 2)}
        got = reference.forward(model.graph, model.tensors, given, dtype=np.float64)
        (y,) = got.values()
        np.testing.assert_allclose(y.reshape(expected.shape), expected, **TOLERANCE)
        assert {a.role for a in model.call.arguments} == {"rows", "state"}

    def test_views_to_constants(self):
        class Step(nn.Module):
            def __init__(self):
                super().__init__()
                self.n = [1, 1, 4]
                self.lstm, self.head = nn.LSTM(4, 5), nn.Linear(5, 1)

            def forward(self, x, h, c):
                y, (h, c) = self.lstm(x.view(self.n), (h, c))
                return self.head(y), h, c

        torch.manual_seed(1)
        module = Step().double().eval()
        model = torchscript.read(saved(torch.jit.script(module)), "float64")
        assert [node.layer.kind for node in model.graph.nodes] == ["lstm", "linear"]


class Everything(nn.Module):
    """What the language has: loops, lists, dicts, optional arguments, formats, early returns."""

    def __init__(self):
        super().__init__()
        self.cell, self.gru = nn.LSTMCell(3, 4), nn.GRUCell(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.norm = nn.LayerNorm(4)
        self.names = {"a": 1, "b": 2}

    def doubled(self, x, often: int):
        if often == 0:
            return x
        for _ in range(often):
            x = x + x
        return x

    def forward(self, x, state: tuple[torch.Tensor, torch.Tensor] | None = None):
        outs: list[torch.Tensor] = []
        if state is None:
            h = torch.zeros(x.size(1), 4, dtype=x.dtype)
            c = h.clone()
        else:
            h, c = state
        g = torch.zeros_like(h)
        kept = torch.zeros(x.shape[0], x.shape[1], 4, dtype=x.dtype)
        for t in range(x.size(0)):
            h, c = self.cell(x[t], (h, c))
            g = self.gru(h, g)
            y = self.norm(g)
            for layer in self.layers:
                y = torch.tanh(layer(y)) + y
            outs.append(y)
            kept[t] = y * 0.5
            kept[t, :, 0] += 1.0
        i, _, _, o = torch.cat([h, h, c, c], 1).chunk(4, 1)
        stacked = torch.stack(outs)
        assert stacked.dim() == 3, f"got {stacked.dim()} axes"
        while len(outs) > 2:
            outs.pop()
        found: dict[str, torch.Tensor] = {"a": stacked, "last": outs[-1]}
        found["b"] = self.doubled(kept, self.names["b"])
        return found["a"] + found["b"][..., :4], i * o, found["last"], (h, c)


class TestLanguage:
    def test_everything(self):
        torch.manual_seed(2)
        module = torch.jit.script(Everything().double().eval())
        assert_as_torch(module, torch.randn(4, 2, 3, dtype=torch.float64))

    def test_everything_inlined(self):
        torch.manual_seed(2)
        module = torch.jit.optimize_for_inference(torch.jit.script(Everything().double().eval()))
        assert_as_torch(module, torch.randn(4, 2, 3, dtype=torch.float64))

    def test_multihead_attention(self):
        torch.manual_seed(2)

        class Attends(nn.Module):
            def __init__(self):
                super().__init__()
                self.att = nn.MultiheadAttention(4, 2, batch_first=True)

            def forward(self, x):
                return self.att(x, x, x)[0]

        assert_as_torch(torch.jit.script(Attends().double().eval()), torch.randn(2, 5, 4).double())

    def test_named_tuples(self):
        from typing import NamedTuple

        class Pair(NamedTuple):
            first: torch.Tensor
            second: torch.Tensor

        class Pairs(nn.Module):
            def forward(self, x):
                pair = Pair(x * 2, x + 1)
                return pair.first - pair.second, pair

        assert_as_torch(torch.jit.script(Pairs()), torch.randn(2, 3, dtype=torch.float64))

    def test_a_list_of_sizes(self):
        class Windows(nn.Module):
            def forward(self, x):
                sizes = [x.size(0), -1]
                return x.view(sizes), x.unfold(1, 3, 2), torch.arange(x.size(1)) * x

        assert_as_torch(torch.jit.script(Windows()), torch.randn(2, 7, dtype=torch.float64))


def refusal(source, *, match):
    with pytest.raises(ConvertError, match=match):
        torchscript.read(source)


class TestRefusals:
    def test_a_condition_on_the_input(self):
        class Branches(nn.Module):
            def forward(self, x):
                if bool(x.sum() > 0):
                    return x
                return -x

        refusal(saved(torch.jit.script(Branches())), match="torch.gt|torch.sum")

    def test_the_line_is_shown(self):
        class Sorts(nn.Module):
            def forward(self, x):
                return torch.sort(x, 1)[0]

        refusal(saved(torch.jit.script(Sorts())), match=r"in the line .*torch\.sort\(x, 1\)")

    def test_randomness(self):
        class Noise(nn.Module):
            def forward(self, x):
                return x + torch.randn_like(x)

        refusal(saved(torch.jit.script(Noise())), match="randn_like: .*random")

    def test_dropout_in_training(self):
        module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
        refusal(saved(torch.jit.script(module)), match=r"dropout\(0.5\) is on.*\.eval\(\)")

    def test_an_argument_that_is_no_array(self):
        class Takes(nn.Module):
            def forward(self, x, n: int):
                return x * n

        refusal(saved(torch.jit.script(Takes())), match="'n' of type int")

    def test_onnx_is_another_way(self, tmp_path):
        class Sorts(nn.Module):
            def forward(self, x):
                return torch.sort(x, 1)[0]

        path = tmp_path / "a.pt"
        torch.jit.save(torch.jit.script(Sorts()), str(path))
        with pytest.raises(ConvertError, match=r"torch\.onnx\.export\(torch\.jit\.load.*dynamo"):
            read(str(path))

    def test_a_computation_is_not_dropped(self, tmp_path):
        """The one LSTM of an archive is not the whole model if forward computes more."""

        class Tripled(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(2, 4)

            def forward(self, x):
                return 3 * self.lstm(x)[0]

        path = tmp_path / "a.pt"
        torch.jit.save(torch.jit.script(Tripled().eval()), str(path))
        model = read(str(path))
        assert [n.layer.kind for n in model.graph.nodes] == ["lstm", "activation"]

    def test_a_live_module_that_was_scripted(self):
        module = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).eval())
        model = read(module)
        assert [n.layer.kind for n in model.graph.nodes] == ["linear", "activation"]


def rewritten(archive, change):
    """An archive with other code."""
    out = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith(".py"):
                data = change(data.decode()).encode()
            new.writestr(item.filename, data)
    out.seek(0)
    return out


def test_an_archive_without_constants():
    out = io.BytesIO()
    scripted = saved(torch.jit.script(nn.Linear(3, 2)))
    with zipfile.ZipFile(scripted) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            if "constants" not in item.filename and "byteorder" not in item.filename:
                data = old.read(item)
                if item.filename.endswith("linear.py"):
                    data = b"op_version_set = 1\nimport __torch__.torch\n" + data
                new.writestr(item.filename, data)
    out.seek(0)
    assert torchscript.is_archive(out)
    assert [n.layer.kind for n in torchscript.read(out).graph.nodes] == ["linear"]


LINEAR = "    weight = self.weight\n"


def hostile(line):
    """An archive of a Linear with a line of code before its own."""
    scripted = saved(torch.jit.script(nn.Linear(3, 2)))
    return rewritten(scripted, lambda code: code.replace(LINEAR, f"    {line}\n{LINEAR}"))


class TestHostileCode:
    def test_the_line_is_there(self):
        model = torchscript.read(hostile("x = [1, 2]"))
        assert [n.layer.kind for n in model.graph.nodes] == ["linear"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("x = " + "(" * 500 + "1" + ")" * 500, "nested more than"),
            ("x = " + "[" * 90 + "]" * 90, "nested more than"),
            ("x = 1" + ".a" * 300, "follow one another|not read"),
            ("x = self" + ".a" * 300, "follow one another"),
            ("x = self" + "(1)" * 300, "follow one another"),
            ("x = " + "-" * 300 + "1", "follow one another"),
            ("x = not 1", "word that torch does not print"),
            ("x = lambda: 1", "word that torch does not print"),
            ("x = [i for i in range(9)]", "ListComp|not read|is read"),
            ("x = 1 + 1", "characters"),
            ("import os", "word that torch does not print"),
            ("x = __import__", "before it is set"),
            ("x = open", "before it is set"),
            ("x = self.__class__", "has no"),
            ("x = torch.ones([1]).__class__()", "method '__class__' of no object"),
            ("x = ops.aten.system(1)", "not supported"),
            ("x = torch.ones([1000000, 1000000])", "numbers"),
            ("x = torch.mul([0], 100000000)", "too often"),
            ("x = torch.pow(10, 100000)", "64 bits"),
            ("x = torch.mul(9223372036854775807, 2)", "64 bits"),
            ("x = CONSTANTS.c7", "no constant"),
            ("x = __torch__.absent.f(1)", "does not define"),
            ("x = y", "before it is set"),
            ("x = 1\n      y = 1", "indented"),
            ("x = 'a", "characters|does not end|not read"),
            ("x = 1j", "constant of type"),
            ("for i in range(100000000):\n      pass", "steps"),
            ("while True:\n      pass", "steps"),
            ("x = (self).forward(input, )", "nested more than"),
            ("a = [0]\n    for i in range(60):\n      a = torch.add(a, a)", "too long"),
            ("a = 'ab'\n    for i in range(60):\n      a = torch.add(a, a)", "too long"),
        ],
    )
    def test_is_refused(self, line, message):
        refusal(hostile(line), match=message)

    def test_blocks_nested_deeper_than_any_program(self):
        line = "if True:\n" + "".join(f"{'  ' * (n + 3)}if True:\n" for n in range(200))
        refusal(hostile(line + "  " * 203 + "pass"), match="nested more than")

    def test_parsing_is_paid_for(self):
        """A compressed text of many megabytes is refused before it is parsed."""
        code = Code({"m": "def f(x):\n" + "  x = [[], [], []]\n" * 100_000}, Budget(10_000_000))
        with pytest.raises(ConvertError, match="more memory"):
            code.function("m.f")

    def test_nothing_is_run(self, monkeypatch):
        """No line of the code reaches Python's own compiler."""
        monkeypatch.setattr("builtins.exec", None)
        monkeypatch.setattr("builtins.eval", None)
        torchscript.read(hostile("x = [1, 2]"))

    @pytest.mark.parametrize("seed", range(40))
    def test_damaged_archives_are_refused(self, seed):
        """A byte changed anywhere: it converts or is refused, and nothing else."""
        rng = np.random.default_rng(seed)
        data = bytearray(saved(torch.jit.script(nn.Linear(3, 2))).getvalue())
        for at in rng.integers(0, len(data), 3):
            data[at] = int(rng.integers(256))
        with contextlib.suppress(ConvertError):
            torchscript.read(io.BytesIO(bytes(data)))

    @pytest.mark.parametrize("seed", range(60))
    def test_damaged_code_is_refused(self, seed):
        rng = np.random.default_rng(seed)

        def damaged(code):
            text = list(code)
            for at in rng.integers(0, len(text), 4):
                text[at] = chr(int(rng.integers(32, 127)))
            return "".join(text)

        with contextlib.suppress(ConvertError):
            torchscript.read(rewritten(saved(torch.jit.script(Everything().eval())), damaged))
