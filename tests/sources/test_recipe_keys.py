"""What a recipe can say of a cell, key by key, against the cell written in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells_by_hand import Array, Arrays, H, I, T, drawn, forward, lstm, sigmoid
from trained import assert_close

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources import read


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


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
