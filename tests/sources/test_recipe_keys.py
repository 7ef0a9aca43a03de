"""What a recipe can say of a cell, key by key, against the cell written in NumPy; the recipes that
come for other programs; and models that were trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import assert_close, trained

from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read

Array = np.ndarray
Arrays = dict[str, Array]

I, H, T = 3, 4, 12  # noqa: E741

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


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def hard(x: Array) -> Array:
    return np.clip(0.2 * x + 0.5, 0, 1)


def drawn(rng: np.random.Generator, **shapes: tuple[int, ...]) -> Arrays:
    return {name: rng.uniform(-0.8, 0.8, shape) for name, shape in shapes.items()}


def forward(made: Conversion, x: Array) -> Array:
    return reference.forward(made.graph, made.tensors, {"input": x[:, None]})["output"][:, 0]


def lstm(
    x: Array, step: Callable[[Array, Array, Array], tuple[Array, Array]], **start: Array
) -> Array:
    """Outputs of a step (x, h, c) -> (h, c)."""
    h, c, rows = start.get("h", np.zeros(H)), start.get("c", np.zeros(H)), []
    for row in x:
        h, c = step(row, h, c)
        rows.append(h)
    return np.stack(rows)


BASE = """
[[layer]]
kind = "lstm"
input_weight = { ifgo = "W" }
hidden_weight = { ifgo = "U" }
bias = { ifgo = "b" }
"""


def base(rng: np.random.Generator, rows: int = 4 * H, h: int = H) -> Arrays:
    return drawn(rng, W=(rows, I), U=(rows, h), b=(rows,))


def test_peepholes(recipe: Any, rng: np.random.Generator) -> None:
    w = base(rng) | drawn(rng, p=(2 * H,), q=(1, H))

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, f, g, o = np.split(w["W"] @ x + w["U"] @ h + w["b"], 4)
        p_o, p_i = np.split(w["p"], 2)
        new = sigmoid(f + w["q"][0] * c) * c + sigmoid(i + p_i * c) * np.tanh(g)
        return sigmoid(o + p_o * new) * np.tanh(new), new

    made = read(w, recipe=recipe(BASE + 'peephole = { oi = "p", f = "q" }'), dtype="float64")
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), lstm(x, step), 1e-12)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("concatenated", [False, True])
def test_projection(
    recipe: Any, rng: np.random.Generator, transposed: bool, concatenated: bool
) -> None:
    P = 2
    w = base(rng, h=P) | drawn(rng, P=(P, H))

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, f, g, o = np.split(w["W"] @ x + w["U"] @ h + w["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return w["P"] @ (sigmoid(o) * np.tanh(c)), c

    text, source = BASE + 'projection = "P"\n', dict(w)
    if concatenated:
        text = text.replace("input_weight", "weight").replace('hidden_weight = { ifgo = "U" }', "")
        text += 'concatenated = "xh"\n'
        source = {"W": np.hstack([w["W"], w["U"]]), "b": w["b"], "P": w["P"]}
    if transposed:
        text += "transposed = true\n"
        source = {name: array.T for name, array in source.items()}
    made = read(source, recipe=recipe(text), dtype="float64")
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), lstm(x, step, h=np.zeros(P)), 1e-12)


def test_coupled_and_clipped(recipe: Any, rng: np.random.Generator) -> None:
    w = base(rng, rows=3 * H) | drawn(rng, p=(2 * H,))

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        o, g, i = np.split(3 * (w["W"] @ x + w["U"] @ h + w["b"]), 3)
        p_i, p_o = np.split(w["p"], 2)
        i = sigmoid(np.clip(i + p_i * c, -0.5, 0.5))
        c = np.clip((1 - i) * c + i * np.tanh(np.clip(g, -0.5, 0.5)), -0.1, 0.1)
        return sigmoid(np.clip(o + p_o * c, -0.5, 0.5)) * np.tanh(c), c

    text = BASE.replace("ifgo", "ogi") + 'peephole = { io = "p" }\n'
    text += "coupled = true\nclip = 0.5\ncell_clip = 0.1\n"
    source = {name: 3 * array if name != "p" else array for name, array in w.items()}
    made = read(source, recipe=recipe(text), dtype="float64")
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), lstm(x, step), 1e-12)


def normal(x: Array, eps: float) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + eps)


def test_norm_of_the_products(recipe: Any, rng: np.random.Generator) -> None:
    w = base(rng) | drawn(rng, gi=(4 * H,), bi=(4 * H,), gh=(4 * H,), bh=(4 * H,), gc=(H,), bc=(H,))

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        of_x = normal(w["W"] @ x, 1e-3) * w["gi"] + w["bi"]
        of_h = normal(w["U"] @ h, 1e-3) * w["gh"] + w["bh"]
        i, f, g, o = np.split(of_x + of_h + w["b"], 4)
        c = normal(sigmoid(f) * c + sigmoid(i) * np.tanh(g), 1e-3) * w["gc"] + w["bc"]
        return sigmoid(o) * np.tanh(c), c

    text = """
    layer_norm = "product"
    layer_norm_eps = 0.001
    norm_input_weight = { ifgo = "gi" }
    norm_input_bias = { ifgo = "bi" }
    norm_hidden_weight = { ifgo = "gh" }
    norm_hidden_bias = { ifgo = "bh" }
    norm_cell_weight = "gc"
    norm_cell_bias = "bc"
    """
    made = read(w, recipe=recipe(BASE + text), dtype="float64")
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), lstm(x, step), 1e-12)


def test_norm_of_the_gates(recipe: Any, rng: np.random.Generator) -> None:
    w = base(rng) | drawn(rng, n=(3 * H,), m=(H,))

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        n_f, n_i, n_o = np.split(w["n"], 3)
        z, n, b = np.split(w["W"] @ x + w["U"] @ h, 4), (n_i, n_f, w["m"], n_o), np.split(w["b"], 4)
        i, f, g, o = (normal(z[k], 1e-5) * n[k] + b[k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    text = 'layer_norm = "gate"\nnorm_weight = { fio = "n", g = "m" }\n'
    made = read(w, recipe=recipe(BASE + text), dtype="float64")
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), lstm(x, step), 1e-12)


def test_a_start_and_a_forget_bias(recipe: Any, rng: np.random.Generator) -> None:
    """As of TensorFlow 1: x and h side by side, and 1 added to f."""
    w = drawn(rng, K=(I + H, 4 * H), B=(4 * H,), h0=(1, H), c0=(H,))

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, g, f, o = np.split(np.concatenate([x, h]) @ w["K"] + w["B"], 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    text = """
    [[layer]]
    kind = "lstm"
    weight = { igfo = "K" }
    concatenated = "xh"
    bias = { igfo = "B" }
    transposed = true
    forget_bias = 1.0
    initial_state = { h = "h0", c = "c0" }
    """
    made = read(w, recipe=recipe(text), dtype="float64")
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), lstm(x, step, h=w["h0"][0], c=w["c0"]), 1e-12)
    assert any("1 added to its gate f" in line for line in made.report)
    made = read(
        {name: w[name] for name in ("K", "h0")},
        recipe=recipe(text.replace('{ igfo = "B" }', "0").replace('"c0"', "0")),
        dtype="float64",
    )
    w["B"][:] = 0
    assert_close(forward(made, x), lstm(x, step, h=w["h0"][0]), 1e-12)


def test_a_start_of_a_stack(recipe: Any, rng: np.random.Generator) -> None:
    """One tensor for all layers and directions, or one for each."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(int(rng.integers(2**31)))
    module = torch.nn.GRU(I, H, 2, bidirectional=True).double()
    h0 = torch.from_numpy(rng.standard_normal((4, 1, H)))
    x = rng.standard_normal((T, I))
    with torch.no_grad():
        y = module(torch.from_numpy(x)[:, None], h0)[0][:, 0].numpy()
    source = {f"rnn.{name}": p.detach().numpy() for name, p in module.named_parameters()}
    text = """
    [[layer]]
    kind = "gru"
    input_weight = { rzn = "weight_ih_l{layer}{direction}" }
    hidden_weight = { rzn = "weight_hh_l{layer}{direction}" }
    input_bias = { rzn = "bias_ih_l{layer}{direction}" }
    hidden_bias = { rzn = "bias_hh_l{layer}{direction}" }
    directions = ["", "_reverse"]
    reset_after = true
    z_multiplies = "h"
    initial_state = { h = "h0" }
    """
    whole = read(source | {"rnn.h0": h0.numpy()}, recipe=recipe(text), dtype="float64")
    assert_close(forward(whole, x), y, 1e-12)
    each = {f"rnn.h{n}{d}": h0[2 * n + (d != "")].numpy() for n in (0, 1) for d in ("", "_reverse")}
    text = text.replace('"h0"', '"h{layer}{direction}"')
    assert_close(forward(read(source | each, recipe=recipe(text), dtype="float64"), x), y, 1e-12)
    wrong = {"rnn.h0": h0.numpy()[:3]}
    text = text.replace('"h{layer}{direction}"', '"h0"')
    with pytest.raises(ConvertError, match=r"'rnn.h0'.* has shape \(3, 1, 4\); expected \(4, 4\)"):
        read(source | wrong, recipe=recipe(text))


def test_other_functions_and_reverse(recipe: Any, rng: np.random.Generator) -> None:
    w = drawn(rng, W=(H, I), U=(H, H), b=(H,))
    text = """
    [[layer]]
    kind = "rnn"
    input_weight = "W"
    hidden_weight = "U"
    bias = "b"
    nonlinearity = "softsign"
    reverse = true
    clip = 0.7

    [[layer]]
    kind = "elu(0.5)"

    [[layer]]
    kind = "[ | tanh], multiply"
    """
    h, rows = np.zeros(H), []
    x = rng.standard_normal((T, I))
    for row in x[::-1]:
        h = np.clip(w["W"] @ row + w["U"] @ h + w["b"], -0.7, 0.7)
        h = h / (1 + abs(h))
        rows.insert(0, h)
    y = np.stack(rows)
    y = np.where(y > 0, y, 0.5 * (np.exp(y) - 1))
    assert_close(forward(read(w, recipe=recipe(text), dtype="float64"), x), y * np.tanh(y), 1e-12)


def test_what_lies_between_with_weights(recipe: Any, rng: np.random.Generator) -> None:
    """A word of layers=, of tensors under any names, as they are or with their axes reversed."""
    w = drawn(rng, k=(3, I, 5), kb=(5,), W=(H, 5), U=(H, H), b=(H,), g=(H,), beta=(H,), s=(H,))
    text = """
    [[layer]]
    kind = "conv1d(padding=causal, dilation=2)"
    weight = "k"
    bias = "kb"
    transposed = true

    [[layer]]
    kind = "rnn"
    input_weight = "W"
    hidden_weight = "U"
    bias = "b"
    nonlinearity = "tanh"

    [[layer]]
    kind = "layer_norm(eps=0.1)"
    weight = "g"
    bias = "beta"

    [[layer]]
    kind = "multiply:s"

    [[layer]]
    kind = "last"
    """
    x = rng.standard_normal((T, I))
    padded = np.concatenate([np.zeros((4, I)), x])
    a = sum(padded[2 * n : 2 * n + T] @ w["k"][n] for n in range(3)) + w["kb"]
    h = np.zeros(H)
    for row in a:
        h = np.tanh(w["W"] @ row + w["U"] @ h + w["b"])
    expected = (normal(h, 0.1) * w["g"] + w["beta"]) * w["s"]
    assert_close(forward(read(w, recipe=recipe(text), dtype="float64"), x)[0], expected, 1e-12)
    plain = text.replace('bias = "beta"', "bias = 0")
    without = {name: array for name, array in w.items() if name != "beta"}
    expected = normal(h, 0.1) * w["g"] * w["s"]
    assert_close(
        forward(read(without, recipe=recipe(plain), dtype="float64"), x)[0], expected, 1e-12
    )
    w["g"] = w["g"][None]
    with pytest.raises(ConvertError, match=r"'g' .layer 3 .* has shape \(1, 4\); expected 1 dim"):
        read(w, recipe=recipe(text))


# --- names


RNN = """
[[layer]]
kind = "rnn"
input_weight = "cell{layer}/W"
hidden_weight = "cell{layer}/U"
bias = 0
nonlinearity = "tanh"
"""


def stacked(rng: np.random.Generator, *names: str) -> tuple[Arrays, Callable[[Array], Array]]:
    cells = [drawn(rng, W=(H, H if n else I), U=(H, H)) for n in range(len(names))]

    def run(x: Array) -> Array:
        for cell in cells:
            h, rows = np.zeros(H), []
            for row in x:
                h = np.tanh(cell["W"] @ row + cell["U"] @ h)
                rows.append(h)
            x = np.stack(rows)
        return x

    return {f"{n}/{k}": a for n, c in zip(names, cells, strict=True) for k, a in c.items()}, run


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (("cell0", "cell1"), ""),
        (("cell3", "cell4"), ""),
        (("a.b/cell10", "a.b/cell11", "a.b/cell12"), ""),
        (("cell", "cell_1"), 'layers = ["", "_1"]'),
        (("cellA", "cellB"), 'layers = ["A", "B"]'),
        (("m_cellA", "m_cellB"), 'layers = ["A", "B"]'),
    ],
    ids=str,
)
def test_layers_numbered_from_anything(
    recipe: Any, rng: np.random.Generator, names: tuple[str, ...], more: str
) -> None:
    source, run = stacked(rng, *names)
    made = read(source, recipe=recipe(RNN + more), dtype="float64")
    assert [node.layer.num_layers for node in made.graph.nodes] == [len(names)]
    x = rng.standard_normal((T, I))
    assert_close(forward(made, x), run(x), 1e-12)


def test_a_gap_is_not_bridged(recipe: Any, rng: np.random.Generator) -> None:
    source, _ = stacked(rng, "cell3", "cell5")
    with pytest.raises(ConvertError, match="no layer uses 2 of the 4 tensors"):
        read(source, recipe=recipe(RNN))


def test_directions_that_differ(recipe: Any, rng: np.random.Generator) -> None:
    """Two bidirectional layers that differ in what stands for the direction; and lists of names."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(int(rng.integers(2**31)))
    module = torch.nn.RNN(I, H, 2, bidirectional=True, bias=False).double()
    x = rng.standard_normal((T, I))
    with torch.no_grad():
        y = module(torch.from_numpy(x)[:, None])[0][:, 0].numpy()
    weights = [p.detach().numpy() for p in module.parameters()]
    names = [f"{kind}_{n}.w" for n in range(4) for kind in ("fc", "u")]
    source = dict(zip(names, weights, strict=True))
    text = "".join(
        f"""
        [[layer]]
        kind = "rnn"
        input_weight = "fc_{{direction}}.w"
        hidden_weight = "u_{{direction}}.w"
        bias = 0
        nonlinearity = "tanh"
        directions = ["{a}", "{b}"]
        """
        for a, b in ("01", "23")
    )
    assert_close(forward(read(source, recipe=recipe(text), dtype="float64"), x), y, 1e-12)
    text = """
    [[layer]]
    kind = "rnn"
    input_weight = ["fc_0.w", "fc_1.w", "fc_2.w", "fc_3.w"]
    hidden_weight = ["u_0.w", "u_1.w", "u_2.w", "u_3.w"]
    bias = 0
    nonlinearity = "tanh"
    bidirectional = true
    """
    assert_close(forward(read(source, recipe=recipe(text), dtype="float64"), x), y, 1e-12)


def test_parts_of_a_tensor(recipe: Any, rng: np.random.Generator) -> None:
    """Entries along the first axis, and equal parts; a name that is there as it stands is one."""
    w = drawn(rng, both=(2, H, I), UB=(2 * H, H), **{"b[0]": (H,)})
    text = """
    [[layer]]
    kind = "rnn"
    input_weight = "both[1]"
    hidden_weight = "UB[1/2]"
    bias = "b[0]"
    nonlinearity = "tanh"
    """
    h, rows, x = np.zeros(H), [], rng.standard_normal((T, I))
    for row in x:
        h = np.tanh(w["both"][1] @ row + w["UB"][H:] @ h + w["b[0]"])
        rows.append(h)
    made = read(w, recipe=recipe(text), dtype="float64")
    assert_close(forward(made, x), np.stack(rows), 1e-12)
    for wrong in ("both[2]", "UB[2/2]", "UB[0/3]", "none[0]"):
        with pytest.raises(ConvertError, match=rf"lacks '{wrong[:4]}".replace("[", r"\[")):
            read(w, recipe=recipe(text.replace("both[1]", wrong)))


# --- recipes for other programs


def keras_cell(kind: str, K: Array, U: Array, b: Array, gate: Any = sigmoid) -> Any:
    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        if kind == "lstm":
            i, f, g, o = np.split(x @ K + h @ U + b, 4)
            c = gate(f) * c + gate(i) * np.tanh(g)
            return gate(o) * np.tanh(c), c
        if kind == "rnn":
            return np.tanh(x @ K + h @ U + b), c
        bx, bh = b if b.ndim == 2 else (b, 0 * b)
        zx, rx, nx = np.split(x @ K + bx, 3)
        zh, rh, nh = np.split(h @ U + bh, 3)
        z, r = gate(zx + zh), gate(rx + rh)
        n = np.tanh(nx + r * nh) if b.ndim == 2 else np.tanh(nx + (r * h) @ U[:, 2 * H :])
        return z * h + (1 - z) * n, c

    return step


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


def test_layers_of_a_recipe_are_of_the_vocabulary() -> None:
    """What a table can say of a cell is what its layer has, but for what is read beside rows."""
    from fastlstm.sources.recipe.table import KEYS

    said = {
        "bias",
        "initial_state",
        "activations",
        "nonlinearity",
        "reset_after",
        "reverse",
        "clip",
    }
    said |= {"coupled", "cell_clip", "layer_norm", "layer_norm_eps"}
    as_tensors = {"peepholes": "peephole", "proj_size": "projection"}
    told = {"name", "input_size", "hidden_size", "num_layers", "bidirectional", "weights"}
    told |= {"tensor_names", "nonlinearity_reverse"}
    not_of_files = {"along", "hold", "cell_output"}
    for kind, layer in (("lstm", spec.LSTM), ("gru", spec.GRU), ("rnn", spec.RNN)):
        fields = {field.name for field in layer.__dataclass_fields__.values()} - {"_", "kind"}
        constants = {"gates", "has_cell_state", "takes_tokens", "keeps_tokens"}
        for field in fields - told - not_of_files - constants:
            key = as_tensors.get(field, field)
            assert key in KEYS[kind] | said, f"{kind}: {field}"
