"""Convert trained models of others, and compare each: ``python tools/real_models.py FOLDER``.

Each is converted by one call with documented options, and its numbers are compared with what its
authors run, over 200 steps: onnxruntime, torch, Keras, their own tables of numbers, or the
equations in NumPy in float64. What is causal is run as a whole, as a stream step by step, and in
blocks. A model that is not converted shows why. Exits 1 if a number is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

STEPS = 200
TOLERANCE = 2e-4  # of the largest number, float32 beside float32 over so many steps


@dataclass(frozen=True)
class Real:
    """A model: its file, how it is converted, and what is right.

    Parameters
    ----------
    file : str
    expected : callable
        Of the path and the rows of the input (T, ...): the rows of each output, in order.
    options : mapping
        Of ``fastlstm.convert``.
    rows : callable, optional
        Of a generator and the shape of a row: the input (T, ...).
    refused : bool
        Whether it is wrong on purpose.
    """

    file: str
    expected: Callable[[Path, Array], Sequence[Array]]
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[np.random.Generator, tuple[int, ...]], Array] | None = None
    refused: bool = False


# What authors run


def by_onnxruntime(states: Mapping[str, str], **fixed: Array) -> Callable[..., Sequence[Array]]:
    """One call a step; `states`: input -> the output that is the next one."""

    def expected(path: Path, x: Array) -> Sequence[Array]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        shapes = {i.name: [n if isinstance(n, int) else 1 for n in i.shape]
                  for i in session.get_inputs()}  # fmt: skip
        now = {name: np.zeros(shapes[name], np.float32) for name in states}
        data = next(name for name in shapes if name not in now and name not in fixed)
        names = [o.name for o in session.get_outputs()]
        made = []
        for row in x:
            fits = row.size == np.prod(shapes[data])  # else sizes are open: a row of the batch
            given = {data: row.reshape(shapes[data] if fits else (1, -1))} | now | fixed
            outputs = dict(zip(names, session.run(names, given), strict=True))
            now = {name: outputs[output] for name, output in states.items()}
            made.append([outputs[n].ravel() for n in names if n not in states.values()])
        return [np.stack(rows) for rows in zip(*made, strict=True)]

    return expected


def by_torchscript(call: Callable[[Any, Any, Any], tuple[Any, Any]], first: Any) -> Any:
    """One call a step of the archive: `call(module, row, state)` gives output and state."""

    def expected(path: Path, x: Array) -> Sequence[Array]:
        import torch

        module: Any = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        module.eval()
        state, made = first(torch), []
        with torch.no_grad():
            for row in torch.from_numpy(x):
                y, state = call(module, row, state)
                made.append(y.numpy().ravel())
        return [np.stack(made)]

    return expected


def by_keras(path: Path, x: Array) -> Sequence[Array]:
    import keras

    model = keras.saving.load_model(path, compile=False)
    return [np.asarray(model.predict(x[None], verbose=0))[0]]


def by_table(name: str) -> Callable[..., Sequence[Array]]:
    """The authors' own numbers."""

    def expected(path: Path, x: Array) -> Sequence[Array]:
        return [
            np.loadtxt(path.parent.parent / "test_data" / f"{name}.csv", delimiter=",", ndmin=2)
        ]

    return expected


def of_table(folder: Path, name: str) -> Callable[..., Array]:
    def rows(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        table = np.loadtxt(
            folder / "rtneural" / "test_data" / f"{name}.csv", delimiter=",", ndmin=2
        )
        return table.reshape(-1, *shape).astype(np.float32)

    return rows


# Equations


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def hard_sigmoid(x: Array) -> Array:
    return np.asarray(np.clip(0.2 * x + 0.5, 0, 1))


def lstm(
    x: Array,
    w: Array,
    u: Array,
    b: Array,
    *,
    gates: str = "ifgo",
    inner: Callable[[Array], Array] = sigmoid,
    start: tuple[Array, Array] | None = None,
) -> Array:
    """Rows (T, H) of an LSTM: w (4H, I), u (4H, H), b (4H), of blocks in the order of `gates`."""
    H = u.shape[1]
    h, c = start or (np.zeros(H), np.zeros(H))
    made = []
    for row in x:
        z = dict(zip(gates, np.split(w @ row + u @ h + b, 4), strict=True))
        c = inner(z["f"]) * c + inner(z["i"]) * np.tanh(z["g"])
        h = inner(z["o"]) * np.tanh(c)
        made.append(h)
    return np.stack(made)


def gru(x: Array, w: Array, u: Array, b: Array, c: Array) -> Array:
    """Rows (T, H) of a GRU in PyTorch's form."""
    h, made = np.zeros(u.shape[1]), []
    for row in x:
        rx, zx, nx = np.split(w @ row + b, 3)
        rh, zh, nh = np.split(u @ h + c, 3)
        z = sigmoid(zx + zh)
        h = (1 - z) * np.tanh(nx + sigmoid(rx + rh) * nh) + z * h
        made.append(h)
    return np.stack(made)


def river(path: Path, x: Array) -> Sequence[Array]:
    import torch

    saved = torch.load(path, map_location="cpu", weights_only=True)
    w = {name: tensor.double().numpy() for name, tensor in saved.items()}
    bias = w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
    h = lstm(x, w["lstm.weight_ih_l0"], w["lstm.weight_hh_l0"], bias)
    return [h @ w["head.net.0.weight"].T + w["head.net.0.bias"]]


def words_as_vectors(path: Path, x: Array) -> Sequence[Array]:
    import h5py

    with h5py.File(path) as file:
        for n in (1, 2):
            group = file[f"lstm_{n}/lstm_{n}"]
            k, u, b = (group[f"{name}:0"][()].astype(float)
                       for name in ("kernel", "recurrent_kernel", "bias"))  # fmt: skip
            x = lstm(x, k.T, u.T, b, inner=hard_sigmoid)
    return [x[-1:]]


def amplifier(path: Path, x: Array) -> Sequence[Array]:
    """Neural Amp Modeler: a flat list, each layer's matrix of x and h, bias, h0 and c0."""
    tree = json.loads(path.read_text())
    numbers, config = np.array(tree["weights"]), tree["config"]
    H, at = config["hidden_size"], 0

    def take(*shape: int) -> Array:
        nonlocal at
        at += int(np.prod(shape))
        return numbers[at - int(np.prod(shape)) : at].reshape(shape)

    for n in range(config["num_layers"]):
        size = H if n else config["input_size"]
        w, b, h, c = take(4 * H, size + H), take(4 * H), take(H), take(H)
        x = lstm(x, w[:, :size], w[:, size:], b, start=(h, c))
    head, bias = take(1, H), take(1)
    return [x @ head.T + bias]


def segmentation(path: Path, x: Array) -> Sequence[Array]:
    tree = json.loads(path.read_text())
    m = {n: np.array(tree[f"mat{n}"]["data"]).reshape(tree[f"mat{n}"]["dim"]) for n in range(1, 10)}
    rows = m[1][x]
    forward = lstm(rows, m[2].T, m[3].T, m[4])
    backward = lstm(rows[::-1], m[5].T, m[6].T, m[7])[::-1]
    z = np.exp(np.hstack([forward, backward]) @ m[8] + m[9])
    return [z / z.sum(-1, keepdims=True)]


def pronunciation(path: Path, x: Array) -> Sequence[Array]:
    w = {name: array.astype(float) for name, array in np.load(path).items()}
    return [gru(w["enc_emb"][x], *(w[f"enc_{n}"] for n in ("w_ih", "w_hh", "b_ih", "b_hh")))]


def policy(path: Path, x: Array) -> Sequence[Array]:
    """Four convolutions and a GRU, then the value and the actions."""
    import torch

    saved = torch.load(path, map_location="cpu", weights_only=True)
    w = {name: tensor.double() for name, tensor in saved.items()}
    a = torch.from_numpy(x).double()
    for n in range(1, 5):
        a = torch.nn.functional.conv2d(a, w[f"conv{n}.weight"], w[f"conv{n}.bias"], 2, 1)
        a = torch.nn.functional.elu(a)
    h = gru(
        a.flatten(1).numpy(),
        *(w[f"gru.{n}"].numpy() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
    )
    heads = [(w[f"{n}_linear.weight"].numpy(), w[f"{n}_linear.bias"].numpy())
             for n in ("critic", "actor")]  # fmt: skip
    return [h @ weight.T + bias for weight, bias in heads]


# Recipes, as a user writes them to a file

ICU = """
[[layer]]
kind = "embedding"
weight = "mat1"
[[layer]]
kind = "lstm"
input_weight = { ifgo = ["mat2", "mat5"] }
hidden_weight = { ifgo = ["mat3", "mat6"] }
bias = { ifgo = ["mat4", "mat7"] }
bidirectional = true
transposed = true
[[layer]]
kind = "linear"
weight = "mat8"
bias = "mat9"
transposed = true
[[layer]]
kind = "softmax"
"""
G2P = """
[[layer]]
kind = "embedding"
weight = "enc_emb"
[[layer]]
kind = "gru"
input_weight = { rzn = "enc_w_ih" }
hidden_weight = { rzn = "enc_w_hh" }
input_bias = { rzn = "enc_b_ih" }
hidden_bias = { rzn = "enc_b_hh" }
reset_after = true
z_multiplies = "h"
"""
POLICY = (
    "input(1, 80, 80), conv2d(stride=2, padding=1):conv1, elu, conv2d(stride=2, padding=1):conv2, "
    "elu, conv2d(stride=2, padding=1):conv3, elu, conv2d(stride=2, padding=1):conv4, elu, flatten, "
    "gru, [linear:critic_linear | linear:actor_linear]"
)


def speech(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Samples like those of sound: white noise makes some of these models chaotic."""
    time = np.arange(STEPS * int(np.prod(shape)))
    tones = sum(np.sin(time * f + rng.uniform(0, 6)) for f in (0.03, 0.11, 0.4))
    loud = 0.05 * tones * (1 + np.sin(time / 9000)) + 0.005 * rng.standard_normal(len(time))
    made: Array = loud.reshape(STEPS, *shape).astype(np.float32)
    return made


def magnitudes(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.abs(rng.standard_normal((STEPS, *shape))).astype(np.float32)


def screens(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return (rng.random((STEPS, *shape)) > 0.9).astype(np.float32)


def models(folder: Path) -> Iterator[Real]:
    """All of a folder, as its index lists them."""
    yield Real("unitree/motion.pt", by_torchscript(lambda m, x, s: (m(x[None]), s), lambda t: None))
    yield Real(
        "anydrive/anydrive_v3_lstm.pt",
        by_torchscript(lambda m, x, s: m(x[None, None], s),
                       lambda t: (t.zeros(2, 1, 8), t.zeros(2, 1, 8))),
    )  # fmt: skip
    yield Real("noaa/model_epoch009.pt", river, {"layers": "lstm, linear"})
    yield Real(
        "noaa/sugar_creek_trained.pt",
        by_torchscript(lambda m, x, s: (lambda y, h, c: (y, (h, c)))(*m(x[None, None], *s)),
                       lambda t: (t.zeros(1, 1, 64), t.zeros(1, 1, 64))),
    )  # fmt: skip
    states = {"input_3": "tf_op_layer_stack_2"}
    yield Real("dtln/model_1.onnx", by_onnxruntime(states), rows=magnitudes)
    states = {"input_5": "tf_op_layer_stack_5"}
    yield Real("dtln/model_2.onnx", by_onnxruntime(states), rows=speech)
    states = {n: f"{n}_out" for n in ("conv_cache", "tra_cache", "inter_cache")}
    yield Real("gtcrn/gtcrn.onnx", by_onnxruntime(states), rows=speech)
    sr = np.array(16000)
    yield Real(
        "silero/silero_vad_16k_op15.onnx",
        by_onnxruntime({"state": "stateN"}, sr=sr),
        {"inputs": {"sr": 16000, "input": "1x576"}},
        rows=speech,
    )
    yield Real("sleepecg/classifier.keras", by_keras)
    options = {"recipe": "keras-hard-sigmoid", "layers": "lstm, lstm, last"}
    yield Real("chars2vec/weights.h5", words_as_vectors, options)
    for name in ("lstm", "BossLSTM-1x16", "BossLSTM-2x8"):
        yield Real(f"nam/{name}.nam", amplifier)
    for name in ("conv", "conv2d", "conv_stateless", "dense", "gru", "gru_1d", "lstm", "lstm_1d"):
        rows = of_table(folder, f"{name}_x_python")
        yield Real(f"rtneural/models/{name}.json", by_table(f"{name}_y_python"), rows=rows)
    yield Real("rtneural/models/bad_lstm.json", by_table("lstm_y_python"), refused=True)
    yield Real("g2p_en/checkpoint20.npz", pronunciation,
               {"recipe": G2P, "ignore": ["dec_*", "fc_*"]})  # fmt: skip
    yield Real("icu/weights.json", segmentation, {"recipe": ICU})
    yield Real("baby_a3c/model.80.tar", policy, {"layers": POLICY}, rows=screens)


# Comparison


def error(got: Array, expected: Array) -> float:
    """The largest, of the largest number that is right."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    if got.size != expected.size:
        raise ValueError(f"it gives {got.shape}, and the reference {expected.shape}")
    most = np.abs(expected).max() or 1.0
    return float(np.abs(got.reshape(expected.shape) - expected).max() / most)


def outputs_of(y: Any) -> list[Array]:
    return list(y.values()) if isinstance(y, Mapping) else [np.asarray(y)]


def compared(model: Any, x: Array, right: Sequence[Array]) -> tuple[float, float | None]:
    """Errors of the whole sequence, and of a stream in steps and blocks; None if it has none."""
    y, _ = model(x)
    whole = max(error(a, b) for a, b in zip(outputs_of(y), right, strict=True))
    if model.looks_ahead:
        return whole, None
    worst = 0.0
    for size in (1, 7):
        stream = model.stream()
        parts = [stream.run(x[n : n + size]) for n in range(0, len(x), size)]
        if not model.pools_over_time:
            parts.append(stream.flush())
            rows = [np.concatenate(p) for p in zip(*map(outputs_of, parts), strict=True)]
        else:
            rows = [p[-1:] for p in outputs_of(parts[-1])]
        worst = max(worst, *(error(a, b) for a, b in zip(rows, right, strict=True)))
    return whole, worst


def options_of(real: Real, directory: str) -> dict[str, Any]:
    """Those of ``fastlstm.convert``, the text of a recipe as a file in a directory."""
    options = dict(real.options)
    if "\n" in str(options.get("recipe", "")):
        recipe = Path(directory, "recipe.toml")
        recipe.write_text(options["recipe"])
        options["recipe"] = recipe
    return options


def tried(real: Real, folder: Path, seed: int) -> tuple[str, bool]:
    """A line on a model, and whether something is wrong with it."""
    with tempfile.TemporaryDirectory() as directory:
        options = options_of(real, directory)
        try:
            model = fastlstm.convert(
                folder / real.file, Path(directory, "m.safetensors"), **options
            )
        except (fastlstm.ConvertError, ValueError, TypeError) as refusal:
            text = " ".join(str(refusal).split())
            return (
                f"{'refused, as it should be' if real.refused else 'REFUSED'}: {text:.200}",
                False,
            )
        if real.refused:
            return "CONVERTED, and is wrong on purpose", True
        rng = np.random.default_rng(seed)
        port = model.graph.inputs[0]
        if port.tokens:
            x = rng.integers(0, port.tokens, STEPS)
        elif real.rows is not None:
            x = real.rows(rng, port.shape)
        else:
            x = rng.standard_normal((STEPS, *port.shape)).astype(np.float32)
        whole, stream = compared(model, x, real.expected(folder / real.file, x))
        wrong = max(whole, stream or 0.0) > TOLERANCE
        kinds = " ".join(f"{k}:{n}" for k, n in counted(model).items())
        streamed = "needs the end" if stream is None else f"{stream:.1e}"
        return f"{'WRONG' if wrong else 'whole'}  {whole:.1e}  {streamed:13s}  {kinds:.90}", wrong


def counted(model: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for layer in model.layers:
        found[layer.kind] = found.get(layer.kind, 0) + 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of trained models")
    parser.add_argument("--only", default="", help="models whose file has this in its name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    bad, good, every = 0, 0, 0
    print(f"{'file':36s}  result  sequence stream         layers")
    for real in models(arguments.folder):
        if arguments.only not in real.file:
            continue
        if not (arguments.folder / real.file).is_file():
            every += 1
            print(f"{real.file:36s}  MISSING", flush=True)
            continue
        line, wrong = tried(real, arguments.folder, arguments.seed)
        bad += wrong
        every += not real.refused
        good += line.startswith("whole")
        print(f"{real.file:36s}  {line}", flush=True)
    print(f"{good} of {every} whole, {bad} wrong; seed {arguments.seed}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
