"""Models of audio programs: whole from their JSON, as their own numbers or equations tell."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import assert_close, check_graph, trained

from fastlstm import convert, reference
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read

Array = np.ndarray
Tree = dict[str, Any]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(tree: Any, name: str = "model.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(tree))
        return path

    return write


def forward(made: Conversion, x: Array) -> Array:
    """(T, I) -> (T', O), in float64."""
    inputs = {"input": x[:, None]}
    return reference.forward(made.graph, made.tensors, inputs)["output"][:, 0]


# --- models that were trained


def table(name: str) -> Array:
    return np.loadtxt(trained(f"rtneural/test_data/{name}.csv"), delimiter=",", ndmin=2)


@pytest.mark.parametrize(
    "name", ["conv", "conv2d", "conv_stateless", "dense", "gru", "gru_1d", "lstm", "lstm_1d"]
)
def test_rtneural(name: str, rng: np.random.Generator) -> None:
    made = read(trained(f"rtneural/models/{name}.json"))
    (size,) = made.graph.inputs[0].shape
    x = table(f"{name}_x_python").reshape(-1, 1, size)
    rows = reference.forward(made.graph, made.tensors, {"input": x})["output"].shape
    check_graph(
        made.graph,
        made.tensors,
        {"input": x},
        {"output": table(f"{name}_y_python").reshape(rows)},
        rng,
    )


@pytest.mark.parametrize("name", ["conv", "conv2d", "conv_stateless", "dense", "gru", "lstm"])
def test_rtneural_in_the_engine(name: str, tmp_path: Path) -> None:
    """Whole, and as a stream in blocks."""
    model = convert(trained(f"rtneural/models/{name}.json"), tmp_path / "model.safetensors")
    x = table(f"{name}_x_python").reshape(-1, model.input_size).astype(np.float32)
    y, _ = model(x)
    assert_close(y, table(f"{name}_y_python").reshape(y.shape), 1e-5)
    stream = model.stream()
    rows = [stream.run(part) for part in np.array_split(x, 7)]
    assert_close(np.concatenate([*rows, stream.flush()]), y, 1e-6)


def test_rtneural_full_model(rng: np.random.Generator) -> None:
    """Without numbers of its authors: its equations, as Keras has them."""
    path = trained("rtneural/models/full_model.json")
    first, conv, gru, last = (
        [np.array(w) for w in layer["weights"]] for layer in json.loads(path.read_text())["layers"]
    )
    x = rng.standard_normal((200, 1))
    a = np.tanh(x @ first[0] + first[1])
    padded = np.concatenate([np.zeros((4, 8)), a])
    a = np.tanh(sum(padded[2 * k : 2 * k + 200] @ conv[0][k] for k in range(3)) + conv[1])
    h, rows = np.zeros(8), []
    for row in a:
        u, v = row @ gru[0] + gru[2][0], h @ gru[1] + gru[2][1]
        z, r = sigmoid(u[:8] + v[:8]), sigmoid(u[8:16] + v[8:16])
        h = z * h + (1 - z) * np.tanh(u[16:] + r * v[16:])
        rows.append(h @ last[0] + last[1])
    assert_close(forward(read(path, dtype="float64"), x), np.stack(rows), 1e-12)


def test_rtneural_that_contradicts_itself() -> None:
    path = trained("rtneural/models/bad_lstm.json")
    with pytest.raises(ConvertError, match=r"'shape' of layer 1 \(lstm\) is \[None, None, 16\]; "):
        read(path)


@pytest.mark.parametrize("name", ["lstm", "BossLSTM-1x16", "BossLSTM-2x8"])
def test_nam(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    path = trained(f"nam/{name}.nam")
    tree = json.loads(path.read_text())
    x = rng.standard_normal((300, 1))
    y = nam_equations(tree, x)
    assert_close(forward(read(path, dtype="float64"), x), y, 1e-12)
    model = convert(path, tmp_path / "model.safetensors")
    assert_close(model(x.astype(np.float32))[0], y, 1e-4)


def nam_equations(tree: Tree, x: Array) -> Array:
    numbers = iter(tree["weights"])

    def take(*shape: int) -> Array:
        return np.array([next(numbers) for _ in range(int(np.prod(shape)))]).reshape(shape)

    config = tree["config"]
    H, N, size = config["hidden_size"], config["num_layers"], config["input_size"]
    cells = []
    for n in range(N):
        inputs = size if n == 0 else H
        cells.append([take(4 * H, inputs + H), take(4 * H), take(H), take(H)])
    head, bias = take(1, H), take(1)
    assert next(numbers, None) is None
    rows = []
    for row in x:
        for cell in cells:
            W, b, h, c = cell
            i, f, g, o = np.split(W @ np.concatenate([row, h]) + b, 4)
            cell[3] = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            cell[2] = row = sigmoid(o) * np.tanh(cell[3])
        rows.append(head @ row + bias)
    return np.stack(rows)


# --- what the trained ones do not have


def rtneural(rng: np.random.Generator, inputs: int = 1, **more: Any) -> Tree:
    H = 3

    def draw(*shape: int) -> Any:
        return rng.uniform(-1, 1, shape).tolist()

    layers = [
        {
            "type": "lstm",
            "activation": "tanh",
            "shape": [None, None, H],
            "weights": [draw(inputs, 4 * H), draw(H, 4 * H), draw(4 * H)],
        },
        {
            "type": "dense",
            "activation": "",
            "shape": [None, None, 1],
            "weights": [draw(H, 1), draw(1)],
        },
    ]
    return {"in_shape": [None, None, inputs], "layers": layers} | more


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("skip", [0, 1])
def test_aida_x(written: Any, rng: np.random.Generator, inputs: int, skip: int) -> None:
    """y = g_out (g_in x0 + f(g_in x0, knobs)), the gains in decibels."""
    tree = rtneural(rng, inputs)
    plain = read(written(tree), dtype="float64")
    more = {"in_skip": skip, "in_gain": -6, "out_gain": 3.5, "samplerate": "44100"}
    made = read(written(tree | more | {"metadata": {"name": "amp"}}), dtype="float64")
    x = rng.standard_normal((40, inputs))
    loud = x.copy()
    loud[:, 0] *= 10 ** (-6 / 20)
    expected = 10 ** (3.5 / 20) * (forward(plain, loud) + skip * loud[:, :1])
    assert_close(forward(made, x), expected, 1e-12)
    report = "\n".join(made.report)
    assert "sample rate: 44100 Hz" in report
    assert "in_gain of -6.0 dB" in report
    assert ("in_skip" in report) == bool(skip)
    assert "beside the model, not used: metadata, samplerate" in report


def test_a_sample_rate_in_the_metadata(written: Any, rng: np.random.Generator) -> None:
    tree = rtneural(rng, metadata={"samplerate": 96000})
    assert "sample rate: 96000 Hz" in read(written(tree)).report


def proteus(rng: np.random.Generator, unit: str = "LSTM", **more: Any) -> Tree:
    torch = pytest.importorskip("torch")
    data = {
        **{"model": "SimpleRNN", "input_size": 2, "skip": 1, "output_size": 1},
        **{"unit_type": unit, "num_layers": 1, "hidden_size": 5, "bias_fl": True},
    } | more
    torch.manual_seed(int(rng.integers(2**31)))
    rec = getattr(torch.nn, unit)(data["input_size"], data["hidden_size"], data["num_layers"])
    lin = torch.nn.Linear(data["hidden_size"], data["output_size"], bias=data["bias_fl"])
    state = {f"rec.{n}": p for n, p in rec.state_dict().items()}
    state |= {f"lin.{n}": p for n, p in lin.state_dict().items()}
    return {
        "model_data": data,
        "state_dict": {name: p.tolist() for name, p in state.items()},
        "modules": (rec, lin),
    }


@pytest.mark.parametrize("unit", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"skip": 0, "bias_fl": False},
        {"num_layers": 2, "input_size": 1},
        {"skip": 2, "output_size": 2, "input_size": 3},
    ],
    ids=str,
)
def test_proteus(written: Any, rng: np.random.Generator, unit: str, more: Tree) -> None:
    torch = pytest.importorskip("torch")
    tree = proteus(rng, unit, **more)
    rec, lin = tree.pop("modules")
    made = read(written(tree))
    data = tree["model_data"]
    x = rng.standard_normal((30, data["input_size"])).astype(np.float32)
    with torch.no_grad():
        y = lin(rec(torch.from_numpy(x))[0]).numpy() + (x[:, : data["skip"]] if data["skip"] else 0)
    assert_close(forward(made, x), y, 1e-5)


def test_proteus_that_leaves_sizes_to_the_weights(written: Any, rng: np.random.Generator) -> None:
    tree = proteus(rng)
    tree.pop("modules")
    whole = read(written(tree))
    for key in ("model", "input_size", "output_size", "num_layers", "hidden_size", "bias_fl"):
        del tree["model_data"][key]
    assert read(written(tree)).graph == whole.graph


def nam(rng: np.random.Generator, layers: int = 1, **more: Any) -> Tree:
    H, size, count = 3, 2, 0
    for n in range(layers):
        count += 4 * H * ((size if n == 0 else H) + H + 1) + 2 * H
    return {
        "version": "0.5.4",
        "architecture": "LSTM",
        "config": {"input_size": size, "hidden_size": H, "num_layers": layers},
        "weights": rng.uniform(-1, 1, count + H + 1).tolist(),
    } | more


def test_nam_of_two_inputs(written: Any, rng: np.random.Generator) -> None:
    tree = nam(rng, 3, sample_rate=44100.0, metadata={"loudness": -20.0, "gain": None})
    x = rng.standard_normal((20, 2))
    made = read(written(tree, "a.nam"), dtype="float64")
    assert_close(forward(made, x), nam_equations(tree, x), 1e-12)
    report = "\n".join(made.report)
    assert "sample rate: 44100 Hz" in report
    assert "not applied: loudness -20" in report


# --- refusals

R, P, N = "rtneural", "proteus", "nam"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (R, {"layers.0.type": "wavenet"}, "layer 1 is a 'wavenet', which is not read.* as ONNX"),
        (R, {"layers.0.activation": "relu"}, "'activation' of layer 1.*runs tanh whatever"),
        (R, {"layers.1.activation": "swish"}, "'activation' of layer 2 .dense. is 'swish'"),
        (R, {"layers.1.weights": 3}, "'weights' of layer 2 .dense. is 3"),
        (R, {"layers.1.weights": [[[1.0]] * 2]}, r"weights of layer 2 .dense. has shape \(2, 1\)"),
        (R, {"layers.1.weights": [[[1.0]] * 3, [1.0, 2.0]]}, r"the bias of layer 2.*shape \(2,\)"),
        (R, {"layers.0.weights": [[[1.0] * 12]]}, "'weights' of layer 1.*three of a layer"),
        (R, {"layers.1.shape": [None, None, 2]}, r"'shape' of layer 2 .* is \[None, None, 2\]"),
        (R, {"in_shape": [None]}, "'in_shape' of the model"),
        (R, {"layers.0.shape": [None, None, "3"]}, "'shape' of layer 1 .lstm. .*; expected two to"),
        (R, {"in_shape": [None, 2**30, 2**30, 5]}, "at most 65536 features of a step"),
        (R, {"in_skip": 2}, "'in_skip' of the model is 2; expected 0 or 1"),
        (R, {"in_gain": 100}, "'in_gain' of the model is 100; expected decibels"),
        (R, {"in_gain": "loud"}, "'in_gain' of the model is 'loud'; expected a finite number"),
        (R, {"samplerate": []}, "'samplerate' of the model.*expected a finite number"),
        (P, {"model_data.model": "RecNet"}, "a 'RecNet' of CoreAudioML.*from_torch"),
        (P, {"model_data.unit_type": "TCN"}, "'unit_type' of model_data is 'TCN'"),
        (P, {"model_data.skip": 3}, "'skip' of model_data is 3"),
        (P, {"model_data.skip": None}, "'skip' of model_data is None"),
        (P, {"model_data.num_layers": 2**30}, "'num_layers' of model_data"),
        (P, {"model_data.hidden_size": 6}, r"'rec.weight_ih_l0' of state_dict has shape \(20, 2\)"),
        (P, {"model_data.bias_fl": False}, "'bias_fl' of model_data is False; expected True"),
        (P, {"state_dict.extra": [1.0]}, "state_dict holds 'extra', which no layer"),
        (P, {"state_dict": [1.0]}, "state_dict is an array of shape .*; expected a mapping"),
        (N, {"architecture": "WaveNet"}, "the architecture is 'WaveNet'.*only LSTM.*onnx.export"),
        (N, {"weights": [1.0] * 70}, "'weights' of the model is an array .* of 82 numbers"),
        (N, {"weights": "none"}, "'weights' of the model is 'none'; expected a flat list of"),
        (N, {"config.num_layers": 2**30}, "'weights' of the model.*a flat list"),
        (N, {"config.hidden_size": -1}, "'hidden_size' of 'config' of the model is -1"),
        (N, {"config.in_channels": 4}, "'in_channels' of 'config' of the model is 4; expected 2"),
        (N, {"config": []}, "'config' of the model is .*; expected a mapping"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", str(value))[:40],
)  # fmt: skip
def test_refused(
    written: Any, rng: np.random.Generator, kind: str, changes: Tree, message: str
) -> None:
    tree = copy.deepcopy({R: rtneural, P: proteus, N: nam}[kind](rng))
    tree.pop("modules", None)
    for path, value in changes.items():
        *keys, last = path.split(".") if not path.startswith("state_dict.") else path.split(".", 1)
        at = tree
        for key in keys:
            at = at[int(key) if key.isdigit() else key]
        at[last] = value
    path = written(tree)
    with pytest.raises(ConvertError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", [rtneural, nam])
def test_options_that_it_says_itself(written: Any, rng: np.random.Generator, kind: Any) -> None:
    path = written(kind(rng))
    with pytest.raises(ConvertError, match=r"layers= was given, but an? .* says by itself"):
        read(path, layers="lstm, linear")
    with pytest.raises(ConvertError, match="vocabulary has 1 strings, but the model takes no"):
        read(path, vocabulary=["a"])
    with pytest.raises(ConvertError, match="input_size=7 was given"):
        read(path, input_size=7)
