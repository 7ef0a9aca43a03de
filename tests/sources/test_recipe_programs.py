"""The recipes that come for other programs, against those written in NumPy; and trained models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells_by_hand import Array, Arrays, H, I, T, drawn, forward, hard, keras_cell, lstm, sigmoid
from trained import assert_close, trained

from fastlstm.errors import ConvertError
from fastlstm.sources import read

# Those that are tested here; test_recipe.py has the others.
BUILT_IN = {
    *("keras", "keras-hard-sigmoid", "keras-cudnn", "keras3", "tf1", "torch_ema"),
    *("d2l-list", "d2l-gru-list", "d2l-rnn-list"),
}


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- recipes for other programs


KERAS_NAMES = {
    "keras": ("kernel:0", "recurrent_kernel:0", "bias:0"),
    "keras-hard-sigmoid": ("kernel:0", "recurrent_kernel:0", "bias:0"),
    "keras3": ("cell/vars/0", "cell/vars/1", "cell/vars/2"),
}


@pytest.mark.parametrize("name", KERAS_NAMES)
@pytest.mark.parametrize(("kind", "form"), [("lstm", 4), ("gru", 3), ("gru", 6), ("rnn", 1)])
def test_weights_of_keras(rng: np.random.Generator, name: str, kind: str, form: int) -> None:
    """Two cells and a Dense, below any path, in the order that layers= tells."""
    G = min(form, 4) if form != 6 else 3
    bias = (2, 3 * H) if form == 6 else (G * H,)
    source, cells = {}, []
    for n, size in (("b/b", I), ("a_1/a_1", H)):
        arrays = [rng.uniform(-1, 1, s) for s in ((size, G * H), (H, G * H), bias)]
        source |= {f"{n}/{key}": a for key, a in zip(KERAS_NAMES[name], arrays, strict=True)}
        gate = hard if name == "keras-hard-sigmoid" else sigmoid
        cells.append(keras_cell(kind, *arrays, gate))
    dense = ("vars/0", "vars/1") if name == "keras3" else ("kernel:0", "bias:0")
    out = [rng.uniform(-1, 1, s) for s in ((H, 2), (2,))]
    source |= {f"dense/{key}": a for key, a in zip(dense, out, strict=True)}
    x = rng.standard_normal((T, I))
    y = lstm(lstm(x, cells[0]), cells[1]) @ out[0] + out[1]
    words = f"{kind}:b/b, {kind}:a_1/a_1, linear:dense"
    made = read(source, recipe=name, layers=words, dtype="float64")
    assert_close(forward(made, x), y, 1e-12)
    with pytest.raises(ConvertError, match="weights do not tell in which order layers run"):
        read(source, recipe=name)
    with pytest.raises(ConvertError) as caught:
        read(source, layers=words)
    assert f"recipe='{name}'" in str(caught.value)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_weights_of_cudnn(rng: np.random.Generator, kind: str) -> None:
    """Each gate's matrices lie in memory as CuDNN has them, and there are two biases."""
    G = 4 if kind == "lstm" else 3
    K, U, b = (rng.uniform(-1, 1, s) for s in ((I, G * H), (H, G * H), (2 * G * H,)))
    # As Keras 2 turned one into the other (keras/engine/saving.py, preprocess_weights_for_loading).
    kernel = np.hstack([p.T.reshape(p.shape, order="F") for p in np.split(K, G, axis=1)])
    recurrent = np.hstack([p.T for p in np.split(U, G, axis=1)])
    halves = np.stack(np.split(b, 2))
    step = keras_cell(kind, kernel, recurrent, halves.sum(0) if kind == "lstm" else halves)
    source = {"cu/cu/kernel:0": K, "cu/cu/recurrent_kernel:0": U, "cu/cu/bias:0": b}
    made = read(source, recipe="keras-cudnn", dtype="float64")
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), lstm(x, step), 1e-12)
    if kind == "lstm":
        with pytest.raises(ConvertError, match=r"of two biases.*recipe='keras-cudnn' "):
            read(source, recipe="keras")


def test_other_weights_of_keras(rng: np.random.Generator) -> None:
    w = drawn(
        rng,
        **{"c/kernel:0": (2, I, 5), "c/bias:0": (5,), "n/gamma:0": (5,), "n/beta:0": (5,)},
        **{"n/moving_mean:0": (5,), "l/kernel:0": (5, 4), "l/recurrent_kernel:0": (1, 4)},
        **{"l/bias:0": (4,)},
    )
    w["n/moving_variance:0"] = rng.uniform(0.5, 1, 5)
    words = "conv1d(padding=causal), batch_norm, lstm"
    made = read(w, recipe="keras", layers=words, dtype="float64")
    x = rng.standard_normal((T, I))
    a = np.concatenate([np.zeros((1, I)), x[:-1]]) @ w["c/kernel:0"][0] + x @ w["c/kernel:0"][1]
    a = a + w["c/bias:0"] - w["n/moving_mean:0"]
    a = a / np.sqrt(w["n/moving_variance:0"] + 1e-3) * w["n/gamma:0"] + w["n/beta:0"]
    step = keras_cell("lstm", *(w[f"l/{k}:0"] for k in ("kernel", "recurrent_kernel", "bias")))
    assert_close(forward(made, x), lstm(a, step, h=np.zeros(1), c=np.zeros(1)), 1e-12)


def tf1_cell(w: Arrays, at: str) -> Any:
    """As tensorflow/python/ops/rnn_cell_impl.py of 1.15."""

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        if at.endswith("gru_cell"):
            both = np.concatenate([x, h]) @ w[f"{at}/gates/kernel:0"] + w[f"{at}/gates/bias:0"]
            r, u = np.split(sigmoid(both), 2)
            both = np.concatenate([x, r * h]) @ w[f"{at}/candidate/kernel:0"]
            return u * h + (1 - u) * np.tanh(both + w[f"{at}/candidate/bias:0"]), c
        z = np.concatenate([x, h]) @ w[f"{at}/kernel:0"] + w[f"{at}/bias:0"]
        if at.endswith("basic_rnn_cell"):
            return np.tanh(z), c
        i, g, f, o = np.split(z, 4)
        peep = [w.get(f"{at}/w_{gate}_diag:0", 0) for gate in "ifo"]
        new = sigmoid(f + 1.0 + peep[1] * c) * c + sigmoid(i + peep[0] * c) * np.tanh(g)
        h = sigmoid(o + peep[2] * new) * np.tanh(new)
        projection = w.get(f"{at}/projection/kernel:0")
        return (h if projection is None else h @ projection), new

    return step


TF1 = {
    "basic": ("basic_lstm_cell", {"kernel": (I + H, 4 * H), "bias": (4 * H,)}),
    "lstm": ("lstm_cell", {"kernel": (I + H, 4 * H), "bias": (4 * H,)}),
    "peepholes": (
        "lstm_cell",
        {"kernel": (I + H, 4 * H), "bias": (4 * H,)} | {f"w_{g}_diag": (H,) for g in "ifo"},
    ),
    "projection": (
        "lstm_cell",
        {"kernel": (I + 2, 4 * H), "bias": (4 * H,), "projection/kernel": (H, 2)},
    ),
    "both": (
        "lstm_cell",
        {"kernel": (I + 2, 4 * H), "bias": (4 * H,), "projection/kernel": (H, 2)}
        | {f"w_{g}_diag": (H,) for g in "ifo"},
    ),
    "gru": (
        "gru_cell",
        {"gates/kernel": (I + H, 2 * H), "gates/bias": (2 * H,)}
        | {"candidate/kernel": (I + H, H), "candidate/bias": (H,)},
    ),
    "rnn": ("basic_rnn_cell", {"kernel": (I + H, H), "bias": (H,)}),
}


@pytest.mark.parametrize("form", TF1)
@pytest.mark.parametrize("both", [False, True])
def test_variables_of_tensorflow_1(rng: np.random.Generator, form: str, both: bool) -> None:
    cell, shapes = TF1[form]
    size = shapes.get("projection/kernel", (H, H))[1]
    paths = [f"bidirectional_rnn/{d}/{cell}" for d in ("fw", "bw")] if both else [f"rnn/{cell}"]
    w: Arrays = {}
    for path in paths:
        w |= drawn(rng, **{f"{path}/{name}:0": shape for name, shape in shapes.items()})
    x = rng.standard_normal((T, I))
    y = lstm(x, tf1_cell(w, paths[0]), h=np.zeros(size))
    if both:
        y = np.hstack([y, lstm(x[::-1], tf1_cell(w, paths[1]), h=np.zeros(size))[::-1]])
    made = read(w, recipe="tf1", dtype="float64")
    assert_close(forward(made, x), y, 1e-12)
    with pytest.raises(ConvertError, match=r"built-in recipe.*\n.*recipe='tf1'"):
        read(w)


def test_a_stack_of_tensorflow_1(rng: np.random.Generator) -> None:
    paths = [f"rnn/multi_rnn_cell/cell_{n}/basic_lstm_cell" for n in (0, 1)]
    w: Arrays = {}
    for path, inputs in zip(paths, (I, H), strict=True):
        w |= drawn(rng, **{f"{path}/kernel": (inputs + H, 4 * H), f"{path}/bias": (4 * H,)})
    w |= drawn(rng, **{"dense/kernel": (H, 2), "dense/bias": (2,)})
    named = {f"{name}:0": array for name, array in w.items()}
    x = rng.standard_normal((T, I))
    y = lstm(lstm(x, tf1_cell(named, paths[0])), tf1_cell(named, paths[1]))
    made = read(
        w,
        recipe="tf1",
        layers=[*(f"lstm:{path.removesuffix('/basic_lstm_cell')}" for path in paths), "linear"],
        dtype="float64",
    )
    assert_close(forward(made, x), y @ w["dense/kernel"] + w["dense/bias"], 1e-12)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_names_of_gluon_as_they_are_by_default(rng: np.random.Generator, kind: str) -> None:
    """A prefix stands before them with an underscore."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(int(rng.integers(2**31)))
    module = getattr(torch.nn, kind.upper())(I, H, 2, bidirectional=True).double()
    source = {}
    for name, p in module.named_parameters():
        of, side, layer, *back = name.replace("_l", "_").split("_")
        side = {"ih": "i2h", "hh": "h2h"}[side]
        source[f"{kind}0_{'r' if back else 'l'}{layer}_{side}_{of}"] = p.detach().numpy()
    x = rng.standard_normal((T, I))
    with torch.no_grad():
        y = module(torch.from_numpy(x)[:, None])[0][:, 0].numpy()
    recipe = {"lstm": "gluon"}.get(kind, f"gluon-{kind}")
    more = {"nonlinearity": "tanh"} if kind == "rnn" else {}
    made = read(source, recipe=recipe, dtype="float64", **more)
    assert_close(forward(made, x), y, 1e-12)
    with pytest.raises(ConvertError, match=f"built-in recipe.*\n.*recipe='{recipe}'"):
        read(source)


D2L = {
    "d2l": ("d2l-list", "ifoc", 4),
    "d2l-gru": ("d2l-gru-list", "zrh", 3),
    "d2l-rnn": ("d2l-rnn-list", "h", 1),
}


@pytest.mark.parametrize("name", D2L)
@pytest.mark.parametrize("container", [list, tuple, dict])
def test_lists_of_parameters(rng: np.random.Generator, name: str, container: Any) -> None:
    """The same model as under its names, which its recipe knows."""
    recipe, gates, _ = D2L[name]
    V = 7
    w: Arrays = {}
    for gate in gates:
        names = (f"W_x{gate}", f"W_h{gate}", f"b_{gate}")
        w |= drawn(rng, **dict(zip(names, ((V, H), (H, H), (H,)), strict=True)))
    w |= drawn(rng, W_hq=(H, V), b_q=(V,))
    source = list(w.values())
    given = {"params": source} if container is dict else container(source)
    made, expected = read(given, recipe=recipe), read(w, recipe=name)
    assert made.graph == expected.graph
    for tensor, array in expected.tensors.items():
        np.testing.assert_array_equal(made.tensors[tensor], array)
    with pytest.raises(ConvertError, match=f"recipe='{recipe}'"):
        read(given)


def test_torch_ema(rng: np.random.Generator) -> None:
    """The averages that the library keeps as a list."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(int(rng.integers(2**31)))
    module = torch.nn.Sequential(torch.nn.LSTM(I, H), torch.nn.Linear(H, 2)).double()
    average = {"decay": 0.9, "num_updates": 3, "shadow_params": list(module.parameters())}
    average["collected_params"] = None
    made = read(average, recipe="torch_ema", dtype="float64")
    x = rng.standard_normal((T, I))
    with torch.no_grad():
        y = module[1](module[0](torch.from_numpy(x)[:, None])[0])[:, 0].numpy()
    assert_close(forward(made, x), y, 1e-12)


def test_a_refusal_names_the_recipes_that_fit(rng: np.random.Generator) -> None:
    """Two Linear that are a cell are not proposed as two Linear."""
    shapes = {"input_layer": (4 * H, I), "hidden_layer": (4 * H, H)}
    w: Arrays = {}
    for name, shape in shapes.items():
        w |= drawn(rng, **{f"cell.{name}.weight": shape, f"cell.{name}.bias": shape[:1]})
    with pytest.raises(ConvertError, match=r"recipe='two-linear': an LSTM cell of two nn.Linear"):
        read(w)
    w["cell.input_layer.bias"] = w["cell.input_layer.bias"][1:]
    with pytest.raises(ConvertError) as caught:
        read(w)
    assert "recipe='two-linear'" not in str(caught.value)


def test_a_file_of_very_many_layers() -> None:
    """It costs no more time than there are names."""
    kernel, bias = np.zeros((7, 16), "f4"), np.zeros(16, "f4")
    for count, message in (
        (600, "more than 512 of its layers"),
        (5000, "at more than 4096 places"),
    ):
        w = {f"{n}/lstm_cell/kernel": kernel for n in range(count)}
        w |= {f"{n}/lstm_cell/bias": bias for n in range(count)}
        with pytest.raises(ConvertError, match=message):
            read(w, recipe="tf1")
        with pytest.raises(ConvertError, match="there are no weights under PyTorch's names"):
            read(w)


# --- models that were trained


ICU = """
description = "ICU's segmentation of words: Embedding, bidirectional LSTM, Dense"

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


def test_icu(recipe: Any, rng: np.random.Generator) -> None:
    import json

    path = trained("icu/weights.json")
    made = read(path, recipe=recipe(ICU), dtype="float64")
    tree = json.loads(path.read_text())
    m = {n: np.array(tree[f"mat{n}"]["data"]).reshape(tree[f"mat{n}"]["dim"]) for n in range(1, 10)}
    tokens = rng.integers(0, len(m[1]), 250)
    x, H = m[1][tokens], len(m[3])
    start = {"h": np.zeros(H), "c": np.zeros(H)}
    sides = [keras_cell("lstm", m[2], m[3], m[4]), keras_cell("lstm", m[5], m[6], m[7])]
    a = np.hstack([lstm(x, sides[0], **start), lstm(x[::-1], sides[1], **start)[::-1]])
    z = np.exp(a @ m[8] + m[9])
    assert_close(forward(made, tokens), z / z.sum(-1, keepdims=True), 1e-10)


def test_chars2vec(rng: np.random.Generator) -> None:
    """Weights that Keras 2.2 saved alone."""
    h5py = pytest.importorskip("h5py")
    path = trained("chars2vec/weights.h5")
    options = {"recipe": "keras-hard-sigmoid", "layers": "lstm, lstm, last"}
    made = read(path, **options, dtype="float64")
    x = a = rng.standard_normal((50, 59))
    with h5py.File(path) as file:
        for n in (1, 2):
            group = file[f"lstm_{n}/lstm_{n}"]
            K, U, b = (group[f"{k}:0"][()] for k in ("kernel", "recurrent_kernel", "bias"))
            start = {"h": np.zeros(len(U)), "c": np.zeros(len(U))}
            a = lstm(a, keras_cell("lstm", K.astype(float), U, b, hard), **start)
    assert_close(forward(made, x), a[-1:], 1e-5)
    with pytest.raises(ConvertError) as caught:
        read(path)
    for name in ("keras", "keras-hard-sigmoid"):
        assert f"recipe='{name}'" in str(caught.value)


G2P = """
[[layer]]
kind = "embedding"
weight = "{side}_emb"

[[layer]]
kind = "gru"
input_weight = {{ rzn = "{side}_w_ih" }}
hidden_weight = {{ rzn = "{side}_w_hh" }}
input_bias = {{ rzn = "{side}_b_ih" }}
hidden_bias = {{ rzn = "{side}_b_hh" }}
reset_after = true
z_multiplies = "h"
"""
DECODER = '[[layer]]\nkind = "linear"\nweight = "fc_w"\nbias = "fc_b"\n'


@pytest.mark.parametrize("side", ["enc", "dec"])
def test_g2p(recipe: Any, rng: np.random.Generator, side: str) -> None:
    path = trained("g2p_en/checkpoint20.npz")
    text = G2P.format(side=side) + (DECODER if side == "dec" else "")
    other = {"enc": ["dec_*", "fc_*"], "dec": ["enc_*"]}[side]
    made = read(path, recipe=recipe(text), ignore=other, dtype="float64")
    w = {name: array.astype(float) for name, array in np.load(path).items()}
    tokens = rng.integers(0, len(w[f"{side}_emb"]), 60)
    h, rows = np.zeros(w[f"{side}_w_hh"].shape[1]), []
    for x in w[f"{side}_emb"][tokens]:
        rx, zx, nx = np.split(w[f"{side}_w_ih"] @ x + w[f"{side}_b_ih"], 3)
        rh, zh, nh = np.split(w[f"{side}_w_hh"] @ h + w[f"{side}_b_hh"], 3)
        z = sigmoid(zx + zh)
        h = (1 - z) * np.tanh(nx + sigmoid(rx + rh) * nh) + z * h
        rows.append(h if side == "enc" else w["fc_w"] @ h + w["fc_b"])
    assert_close(forward(made, tokens), np.stack(rows), 1e-10)
