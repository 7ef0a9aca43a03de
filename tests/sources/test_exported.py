"""Programs of torch.export: their graph is followed, and gives what the module gives."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
from numeric_builder import NumericBuilder
from torch_zoo import CASES

from fastlstm import reference
from fastlstm.errors import ConvertError
from fastlstm.sources import exported, read
from fastlstm.sources.aten.forward import flat
from fastlstm.sources.exported.archive import read_exported
from fastlstm.sources.exported.program import ExportedForward

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def saved(module, *args, **options):
    """A file of a module that was exported."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, args, **options), file)
    file.seek(0)
    return file


def older(file):
    """The same program in the layout that torch had before 2.8."""
    made = io.BytesIO()
    with zipfile.ZipFile(file) as new, zipfile.ZipFile(made, "w") as old:
        (model,) = [n for n in new.namelist() if "/models/" in n]
        old.writestr("serialized_exported_program.json", new.read(model))
        for folder, name in (("weights", "state_dict"), ("constants", "constants")):
            (listing,) = [n for n in new.namelist() if n.endswith(f"model_{folder}_config.json")]
            tensors = {}
            for key, entry in json.loads(new.read(listing))["config"].items():
                data = new.read(listing.rpartition("/")[0] + "/" + entry["path_name"])
                sizes = [n["as_int"] for n in entry["tensor_meta"]["sizes"]]
                kind = {7: "f4", 8: "f8", 5: "i8"}[entry["tensor_meta"]["dtype"]]
                tensors[key] = torch.tensor(np.frombuffer(data, kind).copy().reshape(sizes))
            inner = io.BytesIO()
            torch.save(tensors, inner)
            old.writestr(f"serialized_{name}.pt", inner.getvalue())
    made.seek(0)
    return made


class TestZoo:
    # Torch unrolls their steps, or their sizes of batch and steps are merged, so that they are of
    # one length alone; or what is time and what a frame, a program of one size does not tell.
    OF_ONE_SIZE = frozenset(
        {"RowsOfAllSteps", "WordModel", "AveragedDirections", "CharModel", "Univariate"}
    )

    @pytest.mark.parametrize("name", CASES)
    def test_as_torch(self, name):
        case = CASES[name]
        if case.states:
            pytest.skip("takes states")
        torch.manual_seed(20261130)
        module, x = case.make().double().eval(), case.input()
        try:
            file = saved(module, x)
        except Exception:  # torch's own limits, which are of many types
            pytest.skip("torch cannot export it")
        builder = NumericBuilder()
        forward = ExportedForward(read_exported(file))
        (one,) = forward.inputs
        kind = "float" if x.is_floating_point() else "int"
        made = forward(builder, {one.name: builder.value(x.numpy(), kind)}, {})
        with torch.no_grad():
            expected = [y.numpy() for _, y in flat(module(x.clone()))]
        for got, y in zip(made.returned.values(), expected, strict=True):
            np.testing.assert_allclose(builder.of(got), y, **TOLERANCE)

    @pytest.mark.parametrize("name", CASES)
    def test_graph(self, name):
        case = CASES[name]
        if case.states or name in self.OF_ONE_SIZE:
            pytest.skip("takes states, or is of one size")
        torch.manual_seed(20261130)
        module, x = case.make().double().eval(), case.input()
        try:
            file = saved(module, x)
        except Exception:  # torch's own limits, which are of many types
            pytest.skip("torch cannot export it")
        with torch.no_grad():
            y = module(x)
        model = exported.read(file, "float64")
        (one,) = model.graph.inputs
        got = reference.forward(
            model.graph, model.tensors, {one.name: case.rows(x)}, dtype=np.float64
        )
        expected = case.expected(y[0] if isinstance(y, tuple | list) else y)
        first = next(iter(got.values()))
        np.testing.assert_allclose(first.reshape(expected.shape), expected, **TOLERANCE)


class InPlace(nn.Module):
    """State in buffers."""

    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.LSTM(5, 4), nn.Linear(4, 2)
        self.register_buffer("h", torch.full((1, 1, 4), 0.25))
        self.register_buffer("c", torch.zeros(1, 1, 4))

    def forward(self, x):
        out, (h, c) = self.memory(x.unsqueeze(0), (self.h, self.c))
        self.h[:] = h
        self.c.copy_(c)
        return self.head(out.squeeze(0))


@pytest.fixture
def stateful():
    torch.manual_seed(1)
    return InPlace().double().eval()


def check_stateful(module, file):
    model = exported.read(file, "float64")
    x = torch.randn(9, 1, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([module(row) for row in x]).numpy()
    got = reference.forward(model.graph, model.tensors, {"input": x.numpy()}, dtype=np.float64)
    np.testing.assert_allclose(got["output"], expected, **TOLERANCE)
    assert "memory.weight_ih_l0" in model.tensors


class TestStates:
    def test_in_buffers(self, stateful):
        check_stateful(stateful, saved(stateful, torch.randn(1, 5).double()))

    def test_in_the_layout_before_2_8(self, stateful):
        check_stateful(stateful, older(saved(stateful, torch.randn(1, 5).double())))

    def test_in_buffers_that_were_made_outputs(self, stateful):
        program = torch.export.export(stateful, (torch.randn(1, 5).double(),))
        file = io.BytesIO()
        torch.export.save(program.run_decompositions(), file)
        file.seek(0)
        forward = ExportedForward(read_exported(file))
        assert set(forward.may_write()) == {"h", "c"}

    def test_in_arguments_of_any_batch(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 1)

            def forward(self, x, hc):
                y, hc = self.lstm(x * torch.tensor([2.0, 3.0], dtype=x.dtype), hc)
                return {"y": self.head(y), "state": hc}

        torch.manual_seed(1)
        module = Scaled().double().eval()
        batch = torch.export.Dim("batch")
        zeros = torch.zeros(1, 3, 4, dtype=torch.float64)
        x = torch.randn(3, 7, 2, dtype=torch.float64)
        file = saved(
            module,
            x,
            (zeros, zeros.clone()),  # one array given twice would be one input
            dynamic_shapes={"x": {0: batch}, "hc": ({1: batch}, {1: batch})},
        )
        model = exported.read(file, "float64")
        (one,) = model.graph.inputs
        got = reference.forward(
            model.graph, model.tensors, {one.name: x.numpy().transpose(1, 0, 2)}, dtype=np.float64
        )
        (y,) = got.values()
        expected = module(x, (zeros, zeros))["y"].detach().numpy().transpose(1, 0, 2)
        np.testing.assert_allclose(y.reshape(expected.shape), expected, **TOLERANCE)
        states = {a.name: a.value for a in model.call.arguments if a.role == "state"}
        assert states == {"hc_0": "['state'][0]", "hc_1": "['state'][1]"}


def linear():
    torch.manual_seed(1)
    return saved(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).eval(), torch.randn(2, 3))


def rewritten(file, change):
    """A file with other JSON of its program."""
    made = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if "/models/" in item.filename:
                data = change(data.decode()).encode()
            new.writestr(item.filename, data)
    made.seek(0)
    return made


class TestRefusals:
    def test_is_read_from_a_path(self, tmp_path):
        path = tmp_path / "a.pt2"
        path.write_bytes(linear().getvalue())
        assert [n.layer.kind for n in read(str(path)).graph.nodes] == ["linear", "activation"]

    def test_options_are_refused(self, tmp_path):
        path = tmp_path / "a.pt2"
        path.write_bytes(linear().getvalue())
        with pytest.raises(ConvertError, match=r"layers= was given, but a program of torch"):
            read(str(path), layers="linear")

    def test_an_operator_that_is_not_known(self):
        file = rewritten(linear(), lambda t: t.replace("aten.tanh.default", "aten.fft_fft.default"))
        with pytest.raises(ConvertError, match="fft_fft: this operator of torch is not supported"):
            exported.read(file)

    def test_randomness(self):
        class Noise(nn.Module):
            def forward(self, x):
                return x + torch.randn_like(x)

        with pytest.raises(ConvertError, match=r"randn_like: .*random"):
            exported.read(saved(Noise(), torch.randn(2, 3)))

    def test_nested_json(self):
        deep = "[" * 100_000 + "]" * 100_000
        file = rewritten(linear(), lambda t: t.replace('"opset_version"', f'"x": {deep}, "opset"'))
        with pytest.raises(ConvertError, match="no JSON that is read"):
            exported.read(file)

    def test_much_json(self):
        many = "[" + "[]," * 2_000_000 + "1]"
        file = rewritten(linear(), lambda t: t.replace('"opset_version"', f'"x": {many}, "opset"'))
        with pytest.raises(ConvertError, match=r"memory|no JSON that is read"):
            exported.read(file)

    def test_a_weight_beyond_its_file(self):
        made = io.BytesIO()
        with zipfile.ZipFile(linear()) as old, zipfile.ZipFile(made, "w") as new:
            for item in old.infolist():
                data = old.read(item)
                if item.filename.endswith("weights_config.json"):
                    data = data.replace(b'{"as_int": 3}', b'{"as_int": 300000000}')
                new.writestr(item.filename, data)
        made.seek(0)
        with pytest.raises(ConvertError, match="beyond its file"):
            exported.read(made)

    @pytest.mark.parametrize("seed", range(60))
    def test_damaged_json_is_refused(self, seed):
        rng = np.random.default_rng(seed)

        def damaged(text):
            letters = list(text)
            for at in rng.integers(0, len(letters), 5):
                letters[at] = str(rng.integers(10))
            return "".join(letters)

        with contextlib.suppress(ConvertError):
            exported.read(rewritten(linear(), damaged))

    @pytest.mark.parametrize("seed", range(60))
    def test_json_of_other_types_is_refused(self, seed):
        """Each value of the graph in turn is something else than the schema says."""
        rng = np.random.default_rng(seed)

        def changed(text):
            tree = json.loads(text)
            graph = tree["graph_module"]
            holders = []
            waiting = [graph]
            while waiting:
                one = waiting.pop()
                items = one.items() if isinstance(one, dict) else enumerate(one)
                for key, value in items:
                    holders.append((one, key))
                    if isinstance(value, dict | list):
                        waiting.append(value)
            holder, key = holders[int(rng.integers(len(holders)))]
            holder[key] = [None, 7, "x", [], {}, -1, [1, 2], True][int(rng.integers(8))]
            return json.dumps(tree)

        with contextlib.suppress(ConvertError):
            exported.read(rewritten(linear(), changed))
