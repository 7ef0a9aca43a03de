"""Cells written by hand: every built-in recipe against the code it is for, and every refusal."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_recipe_programs
from hypothesis import given
from hypothesis import strategies as st

import fastlstm
from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read
from fastlstm.sources.pytorch.checkpoint import StoredTensor
from fastlstm.sources.recipe import built_in_recipes, read_recipe

Arrays = dict[str, np.ndarray]
Code = Callable[[np.ndarray], np.ndarray]

V, I, H, T, B = 11, 3, 6, 9, 2  # noqa: E741


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def says(conversion: Conversion, *phrases: str) -> None:
    report = "\n".join(conversion.report)
    for phrase in phrases:
        assert phrase in report, report


# --- the codes, as their authors wrote them: weights by name, and a forward over (T, B) tokens or
# (T, B, I) features, in float64


def drawn(rng: np.random.Generator, **shapes: tuple[int, ...]) -> Arrays:
    return {name: rng.uniform(-0.6, 0.6, shape) for name, shape in shapes.items()}


def d2l(rng: np.random.Generator) -> tuple[Arrays, Code]:
    """Row vectors; one bias a gate; the cell's candidate is called c."""
    w: Arrays = {}
    for gate in "ifoc":
        w |= drawn(rng, **{f"W_x{gate}": (V, H), f"W_h{gate}": (H, H), f"b_{gate}": (H,)})
    w |= drawn(rng, W_hq=(H, V), b_q=(V,))

    def forward(tokens: np.ndarray) -> np.ndarray:
        h = c = np.zeros((tokens.shape[1], H))
        outputs = []
        for x in np.eye(V)[tokens]:
            i = sigmoid(x @ w["W_xi"] + h @ w["W_hi"] + w["b_i"])
            f = sigmoid(x @ w["W_xf"] + h @ w["W_hf"] + w["b_f"])
            o = sigmoid(x @ w["W_xo"] + h @ w["W_ho"] + w["b_o"])
            c_tilde = np.tanh(x @ w["W_xc"] + h @ w["W_hc"] + w["b_c"])
            c = f * c + i * c_tilde
            h = o * np.tanh(c)
            outputs.append(h @ w["W_hq"] + w["b_q"])
        return np.stack(outputs)

    return w, forward


def d2l_gru(rng: np.random.Generator) -> tuple[Arrays, Code]:
    """The reset gate multiplies the state before the product."""
    w: Arrays = {}
    for gate in "zrh":
        w |= drawn(rng, **{f"W_x{gate}": (V, H), f"W_h{gate}": (H, H), f"b_{gate}": (H,)})
    w |= drawn(rng, W_hq=(H, V), b_q=(V,))

    def forward(tokens: np.ndarray) -> np.ndarray:
        h = np.zeros((tokens.shape[1], H))
        outputs = []
        for x in np.eye(V)[tokens]:
            z = sigmoid(x @ w["W_xz"] + h @ w["W_hz"] + w["b_z"])
            r = sigmoid(x @ w["W_xr"] + h @ w["W_hr"] + w["b_r"])
            h_tilde = np.tanh(x @ w["W_xh"] + (r * h) @ w["W_hh"] + w["b_h"])
            h = z * h + (1 - z) * h_tilde
            outputs.append(h @ w["W_hq"] + w["b_q"])
        return np.stack(outputs)

    return w, forward


def d2l_rnn(rng: np.random.Generator) -> tuple[Arrays, Code]:
    w = drawn(rng, W_xh=(V, H), W_hh=(H, H), b_h=(H,), W_hq=(H, V), b_q=(V,))

    def forward(tokens: np.ndarray) -> np.ndarray:
        h = np.zeros((tokens.shape[1], H))
        outputs = []
        for x in np.eye(V)[tokens]:
            h = np.tanh(x @ w["W_xh"] + h @ w["W_hh"] + w["b_h"])
            outputs.append(h @ w["W_hq"] + w["b_q"])
        return np.stack(outputs)

    return w, forward


def assignment6(rng: np.random.Generator) -> tuple[Arrays, Code]:
    """Biases are rows; the candidate is squashed when it is added to the state."""
    w: Arrays = {}
    for gate in "ifco":
        w |= drawn(rng, **{f"{gate}x": (V, H), f"{gate}m": (H, H), f"{gate}b": (1, H)})
    w |= drawn(rng, w=(H, V), b=(V,))

    def forward(tokens: np.ndarray) -> np.ndarray:
        output = state = np.zeros((tokens.shape[1], H))
        logits = []
        for x in np.eye(V)[tokens]:
            input_gate = sigmoid(x @ w["ix"] + output @ w["im"] + w["ib"])
            forget_gate = sigmoid(x @ w["fx"] + output @ w["fm"] + w["fb"])
            update = x @ w["cx"] + output @ w["cm"] + w["cb"]
            state = forget_gate * state + input_gate * np.tanh(update)
            output_gate = sigmoid(x @ w["ox"] + output @ w["om"] + w["ob"])
            output = output_gate * np.tanh(state)
            logits.append(output @ w["w"] + w["b"])
        return np.stack(logits)

    return w, forward


def gluon_cell(kind: str, x: np.ndarray, h: np.ndarray, c: np.ndarray, w: Arrays, at: str) -> Any:
    i2h = x @ w[f"{at}_i2h_weight"].T + w[f"{at}_i2h_bias"]
    h2h = h @ w[f"{at}_h2h_weight"].T + w[f"{at}_h2h_bias"]
    if kind == "lstm":
        in_gate, forget_gate, in_transform, out_gate = np.split(i2h + h2h, 4, axis=-1)
        c = sigmoid(forget_gate) * c + sigmoid(in_gate) * np.tanh(in_transform)
        return sigmoid(out_gate) * np.tanh(c), c
    if kind == "gru":
        i2h_r, i2h_z, i2h_n = np.split(i2h, 3, axis=-1)
        h2h_r, h2h_z, h2h_n = np.split(h2h, 3, axis=-1)
        reset, update = sigmoid(i2h_r + h2h_r), sigmoid(i2h_z + h2h_z)
        return (1 - update) * np.tanh(i2h_n + reset * h2h_n) + update * h, c
    return np.maximum(i2h + h2h, 0), c


def gluon(kind: str, layers: int, directions: str) -> Callable[..., tuple[Arrays, Code]]:
    """A stack in one direction ("l") or two ("lr")."""
    G = {"lstm": 4, "gru": 3, "rnn": 1}[kind]

    def make(rng: np.random.Generator) -> tuple[Arrays, Code]:
        w: Arrays = {}
        for number, direction in itertools.product(range(layers), directions):
            at, inputs = f"{direction}{number}", H * len(directions) if number else I
            w |= drawn(rng, **{f"{at}_i2h_weight": (G * H, inputs), f"{at}_i2h_bias": (G * H,)})
            w |= drawn(rng, **{f"{at}_h2h_weight": (G * H, H), f"{at}_h2h_bias": (G * H,)})

        def forward(x: np.ndarray) -> np.ndarray:
            for number in range(layers):
                halves = []
                for direction in directions:
                    order = slice(None, None, -1 if direction == "r" else 1)
                    h = c = np.zeros((x.shape[1], H))
                    outputs = []
                    for x_t in x[order]:
                        h, c = gluon_cell(kind, x_t, h, c, w, f"{direction}{number}")
                        outputs.append(h)
                    halves.append(np.stack(outputs)[order])
                x = np.concatenate(halves, axis=-1)
            return x

        return w, forward

    return make


CODES: dict[str, tuple[str, Callable[..., tuple[Arrays, Code]], dict[str, Any]]] = {
    "d2l": ("d2l", d2l, {}),
    "d2l-gru": ("d2l-gru", d2l_gru, {}),
    "d2l-rnn": ("d2l-rnn", d2l_rnn, {}),
    "assignment6": ("assignment6", assignment6, {}),
    "gluon": ("gluon", gluon("lstm", 1, "l"), {}),
    "gluon, 3 layers": ("gluon", gluon("lstm", 3, "l"), {}),
    "gluon, 2 layers, 2 directions": ("gluon", gluon("lstm", 2, "lr"), {}),
    "gluon-gru": ("gluon-gru", gluon("gru", 1, "l"), {}),
    "gluon-gru, 2 layers, 2 directions": ("gluon-gru", gluon("gru", 2, "lr"), {}),
    "gluon-rnn": ("gluon-rnn", gluon("rnn", 2, "l"), {"nonlinearity": "relu"}),
}


def input_for(conversion: Conversion, rng: np.random.Generator) -> np.ndarray:
    (given,) = conversion.graph.inputs
    if given.tokens:
        return rng.integers(0, given.tokens, (T, B))
    return rng.standard_normal((T, B, *given.shape))


def layers_of(conversion: Conversion) -> tuple[spec.Layer, ...]:
    return tuple(node.layer for node in conversion.graph.nodes)


def check(source: Any, forward: Code, rng: np.random.Generator, **options: Any) -> Conversion:
    """The converted model computes what the code does: the reference closely, the engine soon."""
    conversion = read(source, dtype="float64", **options)
    x = input_for(conversion, rng)
    expected = forward(x)
    made = reference.forward(conversion.graph, conversion.tensors, {"input": x})
    np.testing.assert_allclose(made["output"], expected, rtol=1e-12, atol=1e-12)
    model = fastlstm.from_torch(source, **options)
    y, _ = model(x if model.takes_tokens else x.astype(np.float32))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    return conversion


@pytest.mark.parametrize("code", CODES)
def test_built_in_recipes_of_scripts(code: str, rng: np.random.Generator) -> None:
    recipe, make, options = CODES[code]
    weights, forward = make(rng)
    conversion = check(weights, forward, rng, recipe=recipe, **options)
    says(conversion, f"recipe {recipe!r} (", "was taken on your word", "_l0 from '")


def test_every_built_in_recipe_is_tested() -> None:
    tested = {recipe for recipe, _, _ in CODES.values()}
    tested |= {"two-linear", "two-linear-gru", "two-linear-rnn"}
    assert {*built_in_recipes()} - tested == {*test_recipe_programs.BUILT_IN}
    for name in built_in_recipes():
        assert read_recipe(name).description


# --- modules


def two_linear(kind: str) -> Any:
    """A cell of two Linear layers, between an Embedding and a Linear, in float64."""
    import torch

    G = {"lstm": 4, "gru": 3, "rnn": 1}[kind]

    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_layer = torch.nn.Linear(I, G * H)
            self.hidden_layer = torch.nn.Linear(H, G * H)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            if kind == "lstm":
                gates = self.input_layer(x) + self.hidden_layer(h)
                i, f, o, g = torch.chunk(gates, 4, dim=-1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                return torch.sigmoid(o) * torch.tanh(c), c
            if kind == "gru":
                r_x, z_x, n_x = torch.chunk(self.input_layer(x), 3, dim=-1)
                r_h, z_h, n_h = torch.chunk(self.hidden_layer(h), 3, dim=-1)
                r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
                return (1 - z) * torch.tanh(n_x + r * n_h) + z * h, c
            return torch.tanh(self.input_layer(x) + self.hidden_layer(h)), c

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(V, I)
            self.cell = Cell()
            self.fc = torch.nn.Linear(H, V)

        def forward(self, tokens: Any) -> Any:
            h = c = torch.zeros(tokens.shape[1], H, dtype=torch.float64)
            outputs = []
            for x in self.embedding(tokens):
                h, c = self.cell(x, h, c)
                outputs.append(self.fc(h))
            return torch.stack(outputs)

    return Net().double()


def run(module: Any) -> Code:
    import torch

    def forward(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(x)))

    return forward


KINDS = {"lstm": "two-linear", "gru": "two-linear-gru", "rnn": "two-linear-rnn"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_two_linear(kind: str, seed: int, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    module = two_linear(kind)
    options: dict[str, Any] = {"recipe": KINDS[kind], "layers": f"embedding, {kind}, linear"}
    if kind == "rnn":
        options["nonlinearity"] = "tanh"
    for source in (module, module.state_dict(), {"model_state_dict": module.state_dict()}):
        conversion = check(source, run(module), rng, **options)
        assert [layer.name for layer in layers_of(conversion)] == ["embedding", "cell", "fc"]


def d2l_module() -> Any:
    """The newer form of the same code: the cell a module of its own within the language model."""
    import torch

    class LSTMScratch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for gate in "ifoc":
                for name, shape in (("W_x", (V, H)), ("W_h", (H, H)), ("b_", (H,))):
                    value = torch.empty(shape, dtype=torch.float64).uniform_(-0.6, 0.6)
                    setattr(self, name + gate, torch.nn.Parameter(value))

        def forward(self, inputs: Any) -> Any:
            h = c = torch.zeros(inputs.shape[1], H, dtype=torch.float64)
            outputs = []
            for x in inputs:
                i = torch.sigmoid(x @ self.W_xi + h @ self.W_hi + self.b_i)
                f = torch.sigmoid(x @ self.W_xf + h @ self.W_hf + self.b_f)
                o = torch.sigmoid(x @ self.W_xo + h @ self.W_ho + self.b_o)
                c = f * c + i * torch.tanh(x @ self.W_xc + h @ self.W_hc + self.b_c)
                h = o * torch.tanh(c)
                outputs.append(h)
            return torch.stack(outputs)

    class RNNLMScratch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = LSTMScratch()
            self.W_hq = torch.nn.Parameter(torch.randn(H, V, dtype=torch.float64))
            self.b_q = torch.nn.Parameter(torch.randn(V, dtype=torch.float64))

        def forward(self, tokens: Any) -> Any:
            one_hot = torch.nn.functional.one_hot(tokens, V).double()
            return self.rnn(one_hot) @ self.W_hq + self.b_q

    return RNNLMScratch()


def test_sources_of_a_recipe(tmp_path: Path, rng: np.random.Generator) -> None:
    """A live module, its state dict, and files of every kind."""
    torch = pytest.importorskip("torch")
    from safetensors.numpy import save_file

    torch.manual_seed(3)
    module = d2l_module()
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    torch.save(module.state_dict(), tmp_path / "a.pt")
    torch.save({"model": module.state_dict(), "epoch": 3}, tmp_path / "b.pt")
    save_file(arrays, tmp_path / "c.safetensors")
    np.savez(tmp_path / "d.npz", **arrays)
    np.savez_compressed(tmp_path / "e.npz", **arrays)
    files = [tmp_path / name for name in ("a.pt", "b.pt", "c.safetensors", "d.npz", "e.npz")]
    for source in (module, module.state_dict(), arrays, *files):
        conversion = check(source, run(module), rng, recipe="d2l")
        assert [layer.name for layer in layers_of(conversion)] == ["one_hot", "rnn", "linear"]
        assert layers_of(conversion)[1] == spec.LSTM("rnn", V, H)


def test_a_module_without_the_cell_of_the_recipe() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ConvertError, match=r"^recipe 'd2l': layer 2 \(lstm\) lacks 'W_xi', "):
        read(torch.nn.LSTM(3, 5), recipe="d2l")


# --- every way to say the same

Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write a recipe of this text to a file."""
    path = tmp_path_factory.mktemp("recipes") / "mine.toml"

    def write(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    return write


FORMS: dict[str, tuple[type[spec.Recurrent], str]] = {
    "lstm": (spec.LSTM, "ifgo"),
    "gru": (spec.GRU, "rzn"),
    "rnn": (spec.RNN, "h"),
}


@given(kind=st.sampled_from(sorted(FORMS)), data=st.data())
def test_any_form_gives_the_same_tensors(written: Write, kind: str, data: st.DataObject) -> None:
    """PyTorch's tensors, taken apart in a random way, are put together again bit for bit."""
    cls, gates = FORMS[kind]
    I, H = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))  # noqa: E741
    negated = kind == "gru" and data.draw(st.booleans())
    after = kind == "gru" and data.draw(st.booleans())
    transposed, depth = data.draw(st.booleans()), data.draw(st.integers(0, 2))
    both = data.draw(st.booleans())
    one_bias = not after and data.draw(st.booleans())
    concatenated = data.draw(st.sampled_from(["", "xh", "hx"]))
    options: dict[str, Any] = {"reset_after": after} if kind == "gru" else {}
    layer = cls("x", I, H, num_layers=max(1, depth), bidirectional=both, **options)
    draw = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal
    names = layer.names()
    tensors = {names[s]: draw(n).astype("f4") for s, n in layer.tensors().items()}
    mark = ("{direction}_" if both else "") + ("{layer}_" if depth else "")
    source: Arrays = {}

    def taken_apart(key: str, parts: dict[tuple[int, str], np.ndarray]) -> str:
        """Put the tensors of a key in the source, cut and stacked by chance; what the recipe says.

        parts: (number, direction) -> (G * H, columns) or (G * H,)
        """
        order = data.draw(st.permutations(gates))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(gates) - 1)))) if kind != "rnn" else []
        groups = ["".join(order[a:b]) for a, b in itertools.pairwise([0, *cuts, len(gates)])]
        for (number, direction), array in parts.items():
            blocks = dict(zip(gates, np.split(array, len(gates)), strict=True))
            if negated:
                blocks["z"] = -blocks["z"]
            for group in groups:
                stacked = np.concatenate([blocks[gate] for gate in group])
                name = f"{mark}{key}_{group}".replace("{layer}", str(number))
                name = f"a.b.{name.replace('{direction}', direction)}"
                source[name] = stacked.T if transposed else stacked
        if kind == "rnn":
            return f'"{mark}{key}_h"'
        return "{ " + ", ".join(f'{group} = "{mark}{key}_{group}"' for group in groups) + " }"

    def parts(suffix: str) -> dict[tuple[int, str], np.ndarray]:
        return {
            (n, d): tensors[f"x.{suffix}_l{n}{'_reverse' if d == 'back' else ''}"]
            for n in range(layer.num_layers)
            for d in ("forth", "back")[: layer.directions]
        }

    lines = ["[[layer]]", f'kind = "{kind}"', f"transposed = {str(transposed).lower()}"]
    weights = [parts("weight_ih"), parts("weight_hh")]
    if concatenated:
        pairs = weights if concatenated == "xh" else weights[::-1]
        joined = {at: np.concatenate([pair[at] for pair in pairs], axis=1) for at in pairs[0]}
        lines += [f"weight = {taken_apart('w', joined)}", f'concatenated = "{concatenated}"']
    else:
        lines += [f"input_weight = {taken_apart('wi', weights[0])}"]
        lines += [f"hidden_weight = {taken_apart('wh', weights[1])}"]
    if one_bias:
        for at in (name for name in tensors if "bias_hh" in name):
            tensors[at][:] = 0
        lines += [f"bias = {taken_apart('b', parts('bias_ih'))}"]
    else:
        lines += [f"input_bias = {taken_apart('bi', parts('bias_ih'))}"]
        lines += [f"hidden_bias = {taken_apart('bh', parts('bias_hh'))}"]
    if both:
        lines.append('directions = ["forth", "back"]')
    if kind == "gru":
        lines.append(f"reset_after = {str(after).lower()}")
        lines.append(f'z_multiplies = "{"n" if negated else "h"}"')

    nonlinearity = "tanh" if kind == "rnn" else None
    conversion = read(source, recipe=written("\n".join(lines)), nonlinearity=nonlinearity)
    assert layers_of(conversion) == (dataclasses.replace(layer, name="b"),)
    assert len(conversion.tensors) == len(tensors)
    for got, wanted in zip(conversion.tensors.values(), tensors.values(), strict=True):
        assert got.flags.c_contiguous
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)


TEXTBOOK = """
description = "a textbook's GRU: row vectors [h, x], and z is what is renewed"
[[layer]]
kind = "gru"
weight = { z = "W_z", r = "W_r", n = "W" }
concatenated = "hx"
bias = 0
transposed = true
reset_after = false
z_multiplies = "n"
"""


def test_a_textbook_gru(written: Write, rng: np.random.Generator) -> None:
    w = drawn(rng, W_z=(H + I, H), W_r=(H + I, H), W=(H + I, H))

    def forward(x: np.ndarray) -> np.ndarray:
        h = np.zeros((x.shape[1], H))
        outputs = []
        for x_t in x:
            z = sigmoid(np.hstack([h, x_t]) @ w["W_z"])
            r = sigmoid(np.hstack([h, x_t]) @ w["W_r"])
            h = (1 - z) * h + z * np.tanh(np.hstack([r * h, x_t]) @ w["W"])
            outputs.append(h)
        return np.stack(outputs)

    conversion = check(w, forward, rng, recipe=written(TEXTBOOK))
    assert layers_of(conversion) == (spec.GRU("gru", I, H, bias=False, reset_after=False),)
    says(
        conversion,
        "(a textbook's GRU: row vectors [h, x], and z is what is renewed)",
        "'gru': weight_ih_l0 and weight_hh_l0 from 'W_z', 'W_r', 'W', transposed, its gates zrn "
        "put in the order rzn, z negated",
    )


HARD = """
[[layer]]
kind = "gru"
input_weight = { rz = "w_gates", n = "w" }
hidden_weight = { rz = "u_gates", n = "u" }
input_bias = 0
hidden_bias = { rz = 0, n = "b" }
reset_after = true
z_multiplies = "h"
activations = ["hard_sigmoid(0.2, 0.5)", "tanh"]
name = "cell"

[[layer]]
kind = "relu"

[[layer]]
kind = "linear"
weight = "out"
bias = 0
name = "cell"
"""


def test_zeros_activations_and_names(written: Write, rng: np.random.Generator) -> None:
    shapes = {"w_gates": (2 * H, I), "w": (H, I), "u_gates": (2 * H, H), "u": (H, H), "b": (H, 1)}
    w = drawn(rng, **shapes, out=(V, H))
    conversion = read(w, recipe=written(HARD), dtype="float64")
    hard = ("hard_sigmoid(0.2, 0.5)", "tanh")
    assert layers_of(conversion) == (
        spec.GRU("cell", I, H, activations=hard),
        spec.Activation("relu", "relu"),
        spec.Linear("cell_2", H, V, bias=False),
    )
    bias = np.concatenate([np.zeros(2 * H), w["b"][:, 0]])
    expected = {
        "cell.weight_ih_l0": np.concatenate([w["w_gates"], w["w"]]),
        "cell.weight_hh_l0": np.concatenate([w["u_gates"], w["u"]]),
        "cell.bias_ih_l0": np.zeros(3 * H),
        "cell.bias_hh_l0": bias,
        "cell_2.weight": w["out"],
    }
    assert list(conversion.tensors) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(conversion.tensors[name], array)
    says(conversion, "'cell': bias_ih_l0 zero", "'cell': bias_hh_l0 from zeros, 'b'")


def test_a_list_of_tensors_and_an_embedding(written: Write, rng: np.random.Generator) -> None:
    """Tensors of a list are called by their place in it."""
    w = drawn(rng, table=(V, I), wx=(H, I), wh=(H, H), b=(H,))
    text = """
    [[layer]]
    kind = "embedding"
    weight = "0"
    [[layer]]
    kind = "rnn"
    input_weight = "1"
    hidden_weight = "2"
    bias = "3"
    nonlinearity = "relu"
    """

    def forward(tokens: np.ndarray) -> np.ndarray:
        h, outputs = np.zeros((tokens.shape[1], H)), []
        for x in w["table"][tokens]:
            h = np.maximum(x @ w["wx"].T + h @ w["wh"].T + w["b"], 0)
            outputs.append(h)
        return np.stack(outputs)

    source = {"params": list(w.values()), "vocab": [str(n) for n in range(V)]}
    conversion = check(source, forward, rng, recipe=written(text))
    assert conversion.vocabulary == tuple(source["vocab"])
    assert [layer.name for layer in layers_of(conversion)] == ["embedding", "rnn"]


def test_layers_add_to_those_of_a_recipe(rng: np.random.Generator) -> None:
    weights, forward = gluon("lstm", 2, "lr")(rng)
    source = {f"rnn.{name}": array for name, array in weights.items()}
    out = drawn(rng, **{"decoder.weight": (V, 2 * H), "decoder.bias": (V,)})

    def decoded(x: np.ndarray) -> np.ndarray:
        return forward(x) @ out["decoder.weight"].T + out["decoder.bias"]

    for words in ("lstm, linear", "lstm:rnn, linear:decoder"):
        conversion = check(source | out, decoded, rng, recipe="gluon", layers=words)
        assert [layer.name for layer in layers_of(conversion)] == ["rnn", "decoder"]
    conversion = read(source | out, recipe="gluon", ignore="decoder.*")
    assert [layer.kind for layer in layers_of(conversion)] == ["lstm"]
    check(source | out, forward, rng, recipe="gluon", prefix="rnn")


def test_new_tensors_never_take_the_place_of_others(rng: np.random.Generator) -> None:
    """The path where a cell was found is left to what else lies there."""
    weights, forward = gluon("rnn", 1, "l")(rng)
    source = {f"rnn.{name}": array for name, array in weights.items()}
    names = ("weight_ih_l0", "weight_hh_l0")
    beside = drawn(rng, **{f"rnn.{name}": (H, H) for name in names})
    options = {"recipe": "gluon-rnn", "nonlinearity": "relu"}
    conversion = check(source | beside, forward, rng, ignore="rnn.weight*", **options)
    assert [layer.name for layer in layers_of(conversion)] == ["rnn"]
    says(conversion, "from 'rnn.rnn': ", "not used, as ignore= allows: rnn.weight_ih_l0, ")
    with pytest.raises(ConvertError, match="no layer uses 2 of the 6 tensors"):
        read(source | beside, **options)


def test_float_dtypes_are_converted_and_reported(rng: np.random.Generator) -> None:
    weights, _ = d2l(rng)
    stored: dict[str, Any] = {n: array.astype(np.float16) for n, array in weights.items()}
    stored["W_xi"] = StoredTensor(weights["W_xi"].astype(np.float32), "bfloat16")
    stored["b_q"] = weights["b_q"]
    conversion = read(stored, recipe="d2l")
    says(
        conversion,
        "widened from bfloat16 to float32: W_xi",
        "widened from float16 to float32: W_xf, ",
        "narrowed from float64 to float32: b_q",
    )
    got = conversion.tensors["lstm.weight_hh_l0"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:H], stored["W_hi"].astype(np.float32).T)
    for wrong, message in (
        (weights["W_hi"].astype(np.int64), "tensor 'W_hi' has dtype int64; expected one of "),
        (weights["W_hi"] * 1e40, "which float32 cannot hold; store the model as dtype='float64'"),
    ):
        with pytest.raises(ConvertError, match=message):
            read(weights | {"W_hi": wrong}, recipe="d2l")


def test_a_vocabulary(rng: np.random.Generator) -> None:
    weights, _ = assignment6(rng)
    text = [chr(ord("a") + n) for n in range(V)]
    assert read(weights, recipe="assignment6", vocabulary=text).vocabulary == tuple(text)
    with pytest.raises(ConvertError, match=f"vocabulary has 2 strings, but .* takes {V} tokens"):
        read(weights, recipe="assignment6", vocabulary=["a", "b"])


# --- refusals: of tensors, each by its exact message

D2L, _ = d2l(np.random.default_rng(5))
GLUON, _ = gluon("gru", 2, "lr")(np.random.default_rng(6))
SMALL = drawn(np.random.default_rng(7), w=(3, 2), u=(3, 3), b=(3,))
RNN = """
[[layer]]
kind = "rnn"
input_weight = "w"
hidden_weight = "u"
bias = "b"
nonlinearity = "tanh"
"""
SEEN = "Tensors seen:\n  'u': float64 (3, 3)\n  'b': float64 (3,)"


def without(source: Arrays, *missing: str) -> Arrays:
    return {name: array for name, array in source.items() if name not in missing}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape)


TENSORS: list[tuple[str, Any, str, dict[str, Any], str]] = [
    ("missing", without(SMALL, "w"), RNN, {}, f"layer 1 (rnn) lacks 'w'. {SEEN}"),
    (
        "missing below a path",
        {f"a.b.{name}": array for name, array in without(SMALL, "w").items()},
        RNN,
        {},
        f"layer 1 (rnn) lacks 'a.b.w'. {SEEN}".replace("  '", "  'a.b."),
    ),
    (
        "no tensor",
        SMALL | {"w": 3},
        RNN,
        {},
        "'w' is 3; expected a tensor, one of layer 1 (rnn)",
    ),
    (
        "there twice",
        {f"{path}.{name}": array for path in "ab" for name, array in SMALL.items()},
        RNN,
        {},
        "the tensors of layer 1 (rnn) are there more than once, at 'a', 'b'; expected one of "
        "them: choose it with prefix=",
    ),
    (
        "ignored",
        SMALL,
        RNN,
        {"ignore": "[bz]"},
        "ignore= matches 'b', which recipe {name!r} makes a layer of; expected patterns of unused "
        "tensors only",
    ),
    (
        "dimensions",
        SMALL | {"u": ones(3)},
        RNN,
        {},
        "tensor 'u' (layer 1 (rnn)) has shape (3,); expected 2 dimensions, none of them 0",
    ),
    (
        "nothing in it",
        SMALL | {"w": ones(3, 0)},
        RNN,
        {},
        "tensor 'w' (layer 1 (rnn)) has shape (3, 0); expected 2 dimensions, none of them 0",
    ),
    (
        "outputs that disagree",
        SMALL | {"w": ones(4, 2)},
        RNN,
        {},
        "tensor 'w' (layer 1 (rnn)) has shape (4, 2); expected (3, 2), as the first weights tell "
        "input size 2 and hidden size 3",
    ),
    (
        "the other way round",
        SMALL | {"w": ones(2, 3)},
        RNN,
        {},
        "tensor 'w' (layer 1 (rnn)) has shape (2, 3); expected (3, 3), as the first weights tell "
        "input size 3 and hidden size 3; it would fit with transposed = true",
    ),
    (
        "a bias of another size",
        SMALL | {"b": ones(2, 3)},
        RNN,
        {},
        "tensor 'b' (layer 1 (rnn)) has shape (2, 3); expected (3,), as the first weights tell "
        "input size 2 and hidden size 3",
    ),
    (
        "a gate of another size",
        D2L | {"W_hf": ones(H, H + 1)},
        "d2l",
        {},
        "tensor 'W_hf' (gate f of layer 2 (lstm)) has shape (6, 7); expected (6, 6), as the first "
        "weights tell input size 11 and hidden size 6",
    ),
    (
        "a head of another size",
        D2L | {"b_q": ones(V + 1)},
        "d2l",
        {},
        "tensor 'b_q' (layer 3 (linear)) has shape (12,); expected (11,), the outputs of 'W_hq'",
    ),
    (
        "sizes that do not chain",
        D2L | {"W_hq": ones(H + 1, V)},
        "d2l",
        {},
        "layers='one_hot, lstm:lstm, linear:linear' does not fit these weights: ",
    ),
    (
        "gates of another cell",
        GLUON,
        "gluon",
        {},
        "tensor 'l0_h2h_weight' (gates ifgo of layer 1 (lstm)) has shape (18, 6); expected "
        "(24, 6), as the first weights tell input size 3 and hidden size 6",
    ),
    (
        "a layer of another size",
        GLUON | {"l1_i2h_weight": ones(3 * H, H)},
        "gluon-gru",
        {},
        "tensor 'l1_i2h_weight' (gates rzn of layer 1 (gru)) has shape (18, 6); expected "
        "(18, 12), as the first weights tell input size 3 and hidden size 6",
    ),
    (
        "half a layer",
        without(GLUON, "r1_h2h_bias", "r1_h2h_weight"),
        "gluon-gru",
        {},
        "layer 1 (gru) lacks 'r1_h2h_weight', 'r1_h2h_bias'. Tensors seen:\n",
    ),
    (
        "a gap between layers",
        {name.replace("1_", "2_"): array for name, array in GLUON.items()},
        "gluon-gru",
        {},
        "no layer uses 8 of the 16 tensors; what forward computes with them is missing:\n",
    ),
    (
        "no nonlinearity",
        gluon("rnn", 1, "l")(np.random.default_rng(8))[0],
        "gluon-rnn",
        {},
        "the weights at 'rnn' are an RNN's and do not tell its nonlinearity; give "
        "nonlinearity='tanh' (PyTorch's default) or nonlinearity='relu'",
    ),
    (
        "another nonlinearity",
        SMALL,
        RNN,
        {"nonlinearity": "relu"},
        "nonlinearity='relu' was given, but the RNN at 'rnn' has 'tanh'; leave nonlinearity= out",
    ),
    (
        "unused",
        SMALL | {"extra": ones(2)},
        RNN,
        {},
        "no layer uses 1 of the 4 tensors; what forward computes with them is missing:\n",
    ),
    (
        "words that leave out the cell",
        SMALL,
        RNN,
        {"layers": "linear"},
        "layers='linear' leaves out 'rnn:rnn' of the source, which runs 'rnn:rnn'; leave layers= "
        "out, or add to these",
    ),
    (
        "not enough for both",
        {"w": ones(3, 3)},
        '[[layer]]\nkind = "rnn"\nweight = "w"\nconcatenated = "xh"\nbias = 0',
        {},
        "tensor 'w' (layer 1 (rnn)) has 3 inputs; expected more than 3, the hidden size, since it "
        "multiplies x and h side by side",
    ),
]
FROM_OTHERS = (*("ignore=", "no layer uses", "layers=", "the weights at", "nonlinearity="),)


@pytest.mark.parametrize(
    ("source", "recipe", "options", "message"),
    [case[1:] for case in TENSORS],
    ids=[case[0] for case in TENSORS],
)
def test_tensors_that_do_not_fit(
    written: Write, source: Any, recipe: str, options: dict[str, Any], message: str
) -> None:
    chosen = recipe if recipe in built_in_recipes() else written(recipe)
    with pytest.raises(ConvertError) as caught:
        read(source, recipe=chosen, **options)
    name = str(chosen)
    wanted = message.replace("{name!r}", repr(name))
    if not wanted.startswith(FROM_OTHERS):
        wanted = f"recipe {name!r}: {wanted}"
    if "\n" in message or message.endswith((": ", "may be")):
        assert str(caught.value).startswith(wanted)
    else:
        assert str(caught.value) == wanted


def test_hostile_names_are_shown_safely(written: Write) -> None:
    below = {f"\x1b[2J.{name}": array for name, array in SMALL.items()}
    conversion = read(below, recipe=written(RNN))
    assert "\x1b" not in "".join(conversion.report)
    with pytest.raises(ConvertError) as caught:
        read(without(below, "\x1b[2J.w"), recipe=written(RNN))
    assert "\x1b" not in str(caught.value)


# --- from the outside


def test_convert_and_the_command(
    tmp_path: Path, written: Write, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastlstm import cli

    weights, forward = d2l(rng)
    tokens = rng.integers(0, V, (T, B))
    model = fastlstm.convert(weights, tmp_path / "a.safetensors", recipe="d2l")
    np.testing.assert_allclose(model(tokens)[0], forward(tokens), rtol=1e-5, atol=1e-5)
    assert "recipe 'd2l'" in fastlstm.load(tmp_path / "a.safetensors").source["report"]

    np.savez(tmp_path / "weights.npz", **weights)
    to = str(tmp_path / "b.safetensors")
    argv = ["convert", str(tmp_path / "weights.npz"), to, "--recipe"]
    assert cli.main([*argv, "d2l"]) == 0
    assert "'W_xi', 'W_xf', 'W_xc', 'W_xo', transposed" in capsys.readouterr().out.replace(
        "\n", " "
    )
    assert fastlstm.load(to).fingerprint == model.fingerprint
    assert cli.main([*argv, str(written(RNN))]) == 2
    assert "layer 1 (rnn) lacks 'w', 'u', 'b'" in capsys.readouterr().err
