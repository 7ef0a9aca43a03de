"""fastlstm.verify beside what a model was made of: modules, archives, ONNX files, recordings."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import Model, cli, from_torch, spec, verify
from fastlstm.commands.verify import next_command
from fastlstm.format import ModelFile
from fastlstm.signature import Argument, Call

STEPS = 120


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="runs modules")


def made(
    graph: spec.Graph,
    rng: np.random.Generator,
    call: Call | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    report: str = "",
) -> Model:
    """A model of a graph, with a note on how its source is called."""
    shapes = spec.check(graph).tensors
    drawn = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}
    note = {} if call is None else {"call": call.to_json()}
    return Model(ModelFile(graph, tensors or drawn, source={"report": report} | note))


def tagger(torch: Any, relu: bool = True) -> Any:
    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 5, batch_first=True)
            self.a, self.b = torch.nn.Linear(5, 5), torch.nn.Linear(5, 2)

        def forward(self, x):
            y = self.a(self.lstm(x)[0])
            return self.b(torch.relu(y) if relu else y)

    torch.manual_seed(5)
    return Tagger().eval()


# Archives


def traced_by(torch: Any, module: Any) -> Any:
    """A ScriptModule, of which torch warns that there are newer ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, torch.zeros(2, 4, 3))


@pytest.fixture(params=["script", "archive", "exported", "pt2"])
def archived(request: pytest.FixtureRequest, torch: Any, tmp_path: Path) -> Any:
    """A function that makes an archive of a module, as an object or a file."""

    def make(module: Any) -> Any:
        if request.param in ("script", "archive"):
            traced = traced_by(torch, module)
            if request.param == "script":
                return traced
            traced.save(tmp_path / "m.pt")
            return tmp_path / "m.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (torch.zeros(2, 8, 3),))
            if request.param == "exported":
                return program
            torch.export.save(program, tmp_path / "m.pt2")
        return tmp_path / "m.pt2"

    return make


def test_an_archive_runs(torch: Any, archived: Any) -> None:
    module = tagger(torch)
    layers = "lstm, linear:a, relu, linear:b"
    model = from_torch(module.state_dict(), layers=layers)
    found = verify(model, archived(module), steps=STEPS)
    assert found.outcome == "ok"
    assert found.original.endswith("run by torch")
    # Who left a function out is told, though the weights are the same.
    wrong = from_torch(module.state_dict(), layers="lstm, linear:a, linear:b")
    assert verify(wrong, archived(module), steps=STEPS).outcome == "differs"


def test_what_was_converted_from_an_archive(torch: Any, archived: Any) -> None:
    """It is called as the conversion found, without any word of ours."""
    archive = archived(tagger(torch))
    if not isinstance(archive, Path):
        pytest.skip("a conversion reads files")
    found = verify(from_torch(archive), archive, steps=STEPS)
    assert found.outcome == "ok"
    assert (
        found.notes[0] == "the original was called with x (batch, time, 3), as the conversion found"
    )


def test_a_checkpoint_has_only_weights(torch: Any) -> None:
    state = tagger(torch).state_dict()
    wrong = from_torch(state, layers="lstm, linear:a, linear:b")
    found = verify(wrong, from_torch(state, layers="lstm, linear:a, linear:b"), steps=STEPS)
    assert found.agrees
    assert not found.passed
    assert found.outcome == "not compared"
    assert found.compared == {
        "weights": "bit for bit",
        "order of the layers": "not compared",
        "functions": "not compared",
        "numbers": "not compared",
    }
    (word,) = found.not_verified
    assert word.endswith("layers='lstm, linear:a, linear:b' was taken on your word")
    assert f"not verified: {word}" in str(found)
    assert "\nnot compared: the order of the layers, functions and numbers: " in str(found)
    assert json.loads(json.dumps(found.facts()))["not_verified"] == [word]


def test_a_vocabulary_is_in_no_number(torch: Any) -> None:
    model = from_torch(tagger(torch).state_dict(), layers="lstm, linear:a, relu, linear:b")
    model.source["report"] += "\na vocabulary of 3 strings was taken on your word"
    found = verify(model, tagger(torch), steps=STEPS)
    assert found.outcome == "ok"
    assert found.not_verified == ("a vocabulary of 3 strings was taken on your word",)


def test_a_module_that_keeps_its_state(torch: Any, rng: np.random.Generator) -> None:
    """In a buffer: each sequence starts with a copy of it, as it was given."""

    class Policy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.LSTM(3, 4)
            self.register_buffer("h", torch.zeros(1, 1, 4))
            self.register_buffer("c", torch.zeros(1, 1, 4))

        def forward(self, x: Any) -> Any:
            y, (h, c) = self.cell(x[None], (self.h, self.c))
            self.h[:], self.c[:] = h, c
            return y[0]

    policy = Policy().eval()
    graph = spec.Graph.chain([spec.LSTM("cell", 3, 4)])
    call = Call(
        (Argument("x", (1, 3), "rows", "input"),), (Argument("", (1, 4), "rows", "output"),)
    )
    tensors = {n: t.numpy() for n, t in policy.state_dict().items() if "cell" in n}
    model = made(graph, rng, call, tensors)
    found = verify(model, policy, steps=STEPS)
    assert found.outcome == "ok"
    assert found.drift.batch_size == 1
    assert "as the conversion found" in found.notes[0]
    assert not policy.h.any()


def test_several_inputs_and_outputs(torch: Any, rng: np.random.Generator) -> None:
    """A held one, a constant, tuples of states, and outputs of several rates."""

    class Many(torch.nn.Module):
        def forward(self, audio: Any, knob: Any, rate: int, state: Any) -> Any:
            total, (before,) = audio * knob[:, None] * rate, state
            seen = torch.cat([before, total], dim=1)
            return {"sum": seen[:, 1:] + seen[:, :-1], "last": seen[:, -1]}, (seen[:, -1:],)

    nodes = [
        spec.Arithmetic("scaled", "multiply")("audio", "knob"),
        spec.Activation("twice", "affine(2.0, 0.0)")("scaled"),
        spec.Delay("before", (3,))("twice"),
        spec.Arithmetic("both", "add")("twice", "before"),
        spec.Fold("end", "last")("twice"),
    ]
    graph = spec.Graph(
        [spec.Input("audio", (3,)), spec.Input("knob", (3,), held=True)],
        nodes,
        {"sum": "both", "last": "end"},
    )
    arguments = (
        Argument("audio", ("batch", "time", 3), "rows", "audio"),
        Argument("knob", ("batch", 3), "rows", "knob"),
        Argument("rate", (), "constant", "2"),
        Argument("state[0]", ("batch", 1, 3), "state", "[1][0]"),
    )
    outputs = (
        Argument("[0]['sum']", ("batch", "time", 3), "rows", "sum"),
        Argument("[0]['last']", ("batch", 3), "rows", "last"),
        Argument("[1][0]", (), "state", "state[0]"),
    )
    model = made(graph, rng, Call(arguments, outputs), {})
    found = verify(model, Many(), steps=STEPS)
    assert found.outcome == "ok", found
    assert {one.output for one in found.drifts} == {"sum", "last"}
    assert "module, float32" in found.judged[-1].errors
    # An output that the source does not give is said.
    fewer = made(graph, rng, Call(arguments, (*outputs[:1], outputs[2])), {})
    found = verify(fewer, Many(), steps=STEPS)
    assert found.outcome == "not compared"
    assert found.not_compared == ("output 'last', which the module, run by torch lacks",)
    # And without a word on how it is called, nothing is guessed of several inputs.
    with pytest.raises(ValueError, match="does not say how its several inputs were called"):
        verify(made(graph, rng, None, {}), Many())


def test_other_numbers_of_rows(torch: Any, rng: np.random.Generator) -> None:
    class Every(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x[:, ::2]

    graph = spec.Graph.chain([spec.Slice("s", step=2)], shape=(3,))
    axes = ("batch", "time", 3)
    call = Call((Argument("x", axes, "rows", "input"),), (Argument("", axes, "rows", "output"),))
    assert verify(made(graph, rng, call, {}), Every(), steps=STEPS).outcome == "ok"
    for step in (1, 3):
        other = spec.Graph.chain([spec.Slice("s", step=step)], shape=(3,))
        found = verify(made(other, rng, call, {}), Every(), steps=STEPS)
        assert found.outcome == "differs"
        assert "module, float32 has no row, or no finite number, at step 0" in str(found)


def test_a_damaged_note(torch: Any, rng: np.random.Generator) -> None:
    graph = spec.Graph.chain([spec.LSTM("lstm", 3, 4)])
    for text in ("[]", "{}", '{"arguments":[["x",["room"],"rows",""]],"outputs":[]}', "[" * 9999):
        model = made(graph, rng)
        model.source["call"] = text
        with pytest.raises(ValueError, match="is damaged"):
            verify(model, torch.nn.LSTM(3, 4), steps=5)


# ONNX


def test_a_frame_a_call(rng: np.random.Generator, tmp_path: Path) -> None:
    """States of their own names, stacked in one input, and a constant."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["frame", "gain"], ["louder"]),
        helper.make_node("Add", ["louder", "before"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["y"]),
        helper.make_node("Identity", ["y"], ["after"]),
    ]
    inputs = [
        info(n, kinds.FLOAT, s) for n, s in (("frame", [1, 3]), ("before", [1, 3]), ("gain", []))
    ]
    outputs = [info(n, kinds.FLOAT, [1, 3]) for n in ("y", "after")]
    file = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 14)],
        ir_version=8,
    )
    onnx.save(file, tmp_path / "m.onnx")
    graph = spec.Graph(
        [spec.Input("frame", (3,))],
        [
            spec.Delay("before", (3,))("tanh"),
            spec.Activation("louder", "affine(0.5, 0.0)")("frame"),
            spec.Arithmetic("sum", "add")("louder", "before"),
            spec.Activation("tanh", "tanh")("sum"),
        ],
        {"y": "tanh"},
    )
    call = Call(
        (
            Argument("frame", (1, 3), "rows", "frame"),
            Argument("before", (1, 3), "state", "after"),
            Argument("gain", (), "constant", "0.5"),
        ),
        (Argument("y", (1, 3), "rows", "y"), Argument("after", (), "state", "before")),
    )
    found = verify(made(graph, rng, call, {}), tmp_path / "m.onnx", steps=STEPS)
    assert found.outcome == "ok", found
    other = Call((*call.arguments[:2], Argument("gain", (), "constant", "0.6")), call.outputs)
    assert (
        verify(made(graph, rng, other, {}), tmp_path / "m.onnx", steps=STEPS).outcome == "differs"
    )


# Recordings


@pytest.fixture
def model(rng: np.random.Generator) -> Model:
    return made(spec.Graph.chain([spec.LSTM("lstm", 3, 4), spec.Linear("head", 4, 2)]), rng)


@pytest.mark.parametrize("layout", ["(T, ...)", "(T, B, ...)", "(B, T, ...)"])
def test_recorded_numbers(
    model: Model, rng: np.random.Generator, tmp_path: Path, layout: str
) -> None:
    x = rng.standard_normal((30, 3) if layout == "(T, ...)" else (30, 5, 3)).astype(np.float32)
    y, _ = model(x)
    if layout == "(B, T, ...)":
        x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
    path = tmp_path / "r.npz"
    np.savez(path, x=x, y=y)
    for given in (path, str(path), bytes(path), {"x": x, "y": y}, {"input": x, "output": y}):
        found = verify(model, recorded=given, steps=20)
        assert found.outcome == "ok"
        assert found.notes[-1].endswith(f"was read as {layout}")
    y[-1, ..., 0] += 0.01
    found = verify(model, recorded={"x": x, "y": y}, steps=20)
    assert found.outcome == "differs"
    assert "recorded is off by" in str(found)


def test_a_recording_that_began_elsewhere(model: Model, rng: np.random.Generator) -> None:
    x = rng.standard_normal((30, 5, 3)).astype(np.float32)
    _, state = model(x)
    y, _ = model(x, state)
    assert verify(model, recorded={"x": x, "y": y}, steps=20).outcome == "differs"
    assert verify(model, recorded={"x": x, "y": y} | state, steps=20).outcome == "ok"


def test_refused_recordings(model: Model, tmp_path: Path) -> None:
    x, y = np.zeros((30, 3), np.float32), np.zeros((30, 2), np.float32)
    for given, text in (
        ({"y": y}, "expected the input under 'x'"),
        ({"x": x}, "has no output; expected y"),
        ({"x": x, "y": y, "h0": x}, "'h0', which is no input, output or state"),
        ({"x": x[:, :2], "y": y}, r"'input' has shape \(30, 2\)"),
        ({"x": x, "y": y[:9]}, "'output' has 9 rows; the model gives 30"),
    ):
        with pytest.raises(ValueError, match=text):
            verify(model, recorded=given, steps=5)
    (tmp_path / "r.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"not a sound \.npz file"):
        verify(model, recorded=tmp_path / "r.npz")
    with pytest.raises(FileNotFoundError):
        verify(model, recorded=tmp_path / "none.npz")


def test_a_chaotic_recording_is_compared_as_far_as_it_goes(rng: np.random.Generator) -> None:
    graph = spec.Graph.chain([spec.RNN("rnn", 3, 40)])
    model = made(graph, rng, tensors={
        n: rng.normal(0, 2, s).astype(np.float32) for n, s in spec.check(graph).tensors.items()
    })  # fmt: skip
    x = rng.standard_normal((300, 3)).astype(np.float32)
    y, _ = model(x)
    y[200:] = 0
    found = verify(model, recorded={"x": x, "y": y}, steps=20)
    assert 0 < found.judged[-1].outputs < 200
    assert "of the 300 rows of 'output' that were recorded were compared" in found.notes[-1]
    y[2, 7] += 0.1
    assert verify(model, recorded={"x": x, "y": y}, steps=20).outcome == "differs"


# The command


SOURCE = """
import torch
class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 5, batch_first=True)
        self.a, self.b = torch.nn.Linear(5, 5), torch.nn.Linear(5, 2)
    def forward(self, x):
        return self.b(torch.relu(self.a(self.lstm(x)[0])))
class Sized(Tagger):
    def __init__(self, size):
        super().__init__()
number = 3
def ready():
    module = Tagger()
    module.load_state_dict(torch.load({path!r})["model"])
    return module
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


@pytest.fixture
def folder(torch: Any, tmp_path: Path) -> Path:
    """With ``net.py``, a checkpoint ``m.pt`` within others, ``right`` and ``wrong``."""
    state = tagger(torch).state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "m.pt")
    torch.save({f"module.{n}": t for n, t in state.items()}, tmp_path / "wrapped.pt")
    text = SOURCE.replace("{path!r}", repr(str(tmp_path / "m.pt")))
    (tmp_path / "net.py").write_text(text, encoding="utf-8")
    from_torch(state, layers="lstm, linear:a, relu, linear:b").save(tmp_path / "right")
    from_torch(state, layers="lstm, linear:a, linear:b").save(tmp_path / "wrong")
    return tmp_path


def test_the_module_of_a_checkpoint(run: Any, folder: Path) -> None:
    fast = ("--steps", STEPS)
    for checkpoint in ("m.pt", "wrapped.pt"):
        given = ("--module", f"{folder / 'net.py'}:Tagger", "--against", folder / checkpoint)
        code, out, err = run("verify", folder / "right", *given, *fast)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == (
            "ok: compared by the outputs with the module, run by torch: weights, order of the "
            "layers, functions, numbers"
        )
        code, out, _ = run("verify", folder / "wrong", *given, *fast)
        assert code == 1
        assert "FAILED: module, float32 is off by" in out
    assert run("verify", folder / "right", "--module", f"{folder / 'net.py'}:ready", *fast)[0] == 0
    # Its own random weights are not those of the checkpoint.
    assert run("verify", folder / "right", "--module", f"{folder / 'net.py'}:Tagger", *fast)[0] == 1


def test_refused_modules(run: Any, folder: Path, torch: Any) -> None:
    torch.save({"other": torch.zeros(3)}, folder / "other.pt")
    for name, checkpoint, text in (
        ("Sized", "m.pt", "def ready(): return Sized(...), given as "),
        ("None_", "m.pt", "has no 'None_'; it has the classes Tagger, Sized"),
        ("number", "m.pt", "gives a int; expected a torch.nn.Module"),
        ("Tagger", "other.pt", "holds none such; load them as you do in a function"),
    ):
        where = f"{folder / 'net.py'}:{name}"
        code, _, err = run(
            "verify", folder / "right", "--module", where, "--against", folder / checkpoint
        )
        assert (code, text in err) == (2, True), err
    assert run("verify", folder / "right", "--module", folder / "net.py")[0] == 2
    assert str(folder) not in sys.path


def test_convert_says_what_to_run_next(run: Any, folder: Path, torch: Any) -> None:
    to = folder / "a b"
    code, out, _ = run("convert", folder / "m.pt", to, "--layers", "lstm, linear:a, relu, linear:b")
    assert code == 0
    assert out.splitlines()[-1] == (
        f"verify it: fastlstm verify '{to}' --module FILE.py:CLASS --against {folder / 'm.pt'}, "
        f"CLASS being the module that it is of"
    )
    traced_by(torch, tagger(torch)).save(folder / "s.pt")
    code, out, _ = run(
        "convert", folder / "s.pt", to, "--layers", "lstm, linear:a, relu, linear:b", "--json"
    )
    command = json.loads(out)["verify"]
    assert command == f"fastlstm verify '{to}' --against {folder / 's.pt'}"
    code, out, _ = run(
        "verify", to, "--against", folder / "s.pt", "--ignore", "x", "--steps", STEPS
    )
    assert code == 0
    assert "--ignore was not needed: the original was run itself" in out


def test_weights_that_keras_saved_alone_are_no_program(model: Model) -> None:
    assert next_command("w.h5", "m", model) == "fastlstm verify m --recorded FILE.npz"


def test_a_recording_in_the_command(run: Any, folder: Path, tmp_path: Path) -> None:
    x = np.zeros((9, 3), np.float32)
    y, _ = from_torch_file(folder)(x)
    np.savez(tmp_path / "r.npz", x=x, y=y)
    code, out, _ = run("verify", folder / "right", "--recorded", tmp_path / "r.npz", "--steps", 50)
    assert code == 0
    assert "compared by the outputs with " in out
    code, out, _ = run("verify", folder / "wrong", "--recorded", tmp_path / "r.npz", "--steps", 50)
    assert code == 1


def from_torch_file(folder: Path) -> Model:
    import fastlstm

    return fastlstm.load(folder / "right")
