"""A matrix that several nodes share is packed once, however it is packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastlstm import Model, format, spec

Array = np.ndarray[Any, Any]
H = 5  # of recurrences, whose biases are packed for each of them

# Name -> layer number n of a stack, with `size` of what makes its matrices large; of its input.
LAYERS: dict[str, Callable[..., spec.Layer]] = {
    "linear": lambda size, **of: spec.Linear(in_features=size, out_features=size, bias=False, **of),
    "taps": lambda size, **of: spec.Convolution(
        in_channels=size, out_channels=size, kernel_size=(3,), groups=size, bias=False,
        padding=((2, 0),), over_time=True, **of),
    "lstm": lambda size, **of: spec.LSTM(input_size=size, hidden_size=H, **of),
    "gru": lambda size, **of: spec.GRU(input_size=size, hidden_size=H, **of),
    "gru that resets before": lambda size, **of: spec.GRU(
        input_size=size, hidden_size=H, reset_after=False, **of),
    "rnn": lambda size, **of: spec.RNN(input_size=size, hidden_size=H, **of),
    "lstm with a projection": lambda size, **of: spec.LSTM(
        input_size=size, hidden_size=H, proj_size=3, **of),
    "lstm with norms": lambda size, **of: spec.LSTM(
        input_size=size, hidden_size=H, layer_norm="product", **of),
    "embedding": lambda size, **of: spec.Embedding(num_embeddings=size, embedding_dim=8, **of),
    "one-hot": lambda size, **of: spec.LSTM(input_size=size, hidden_size=H, **of),
}  # fmt: skip


def stacked(kind: str, count: int, size: int, *, shared: bool) -> tuple[Model, Array]:
    """A model of layers of one kind, each of its own input, and rows of all inputs."""
    tokens = size if kind in ("embedding", "one-hot") else 0
    shape = () if tokens else (size,)
    nodes, inputs, outputs, arrays = [], [], {}, {}
    rng = np.random.default_rng(3)
    for n in range(count):
        inputs.append(spec.Input(f"x{n}", shape, tokens))
        read = f"x{n}"
        if kind == "one-hot":
            nodes.append(spec.OneHot(f"o{n}", size)(read))
            read = f"o{n}"
        layer = LAYERS[kind](size, name=f"a{n}", weights="a0" if shared and n else "")
        nodes.append(layer(read))
        outputs[f"y{n}"] = f"a{n}"
        xs = rng.integers(0, size, (4,)) if tokens else rng.standard_normal((4, *shape))
        arrays[f"x{n}"] = xs if tokens else xs.astype(np.float32)
    graph = spec.Graph(inputs, nodes, outputs)
    drawn, tensors = np.random.default_rng(4), {}
    for name, of in spec.check(graph).tensors.items():
        alike = "a0" + name[name.index(".") :]
        if alike not in tensors:
            tensors[alike] = drawn.standard_normal(of).astype(np.float32)
        tensors[name] = tensors[alike]
    return Model(format.ModelFile(graph, tensors)), arrays


@pytest.mark.parametrize("kind", LAYERS)
def test_a_node_more_takes_bytes_that_do_not_depend_on_the_matrix(kind: str) -> None:
    growth = {}
    for size in (48, 400):
        few, many = (stacked(kind, count, size, shared=True)[0].nbytes for count in (2, 10))
        growth[size] = many - few
    assert growth[48] == growth[400]


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_shared_gives_the_same_bits(kind: str) -> None:
    apart, x = stacked(kind, 3, 48, shared=False)
    shared, _ = stacked(kind, 3, 48, shared=True)
    if kind != "embedding":  # whose rows are read where the tensor lies
        assert shared.nbytes < apart.nbytes
    for name, y in apart(x)[0].items():
        np.testing.assert_array_equal(shared(x)[0][name], y)


def test_recurrences_that_share_one_of_their_matrices_have_their_own() -> None:
    """Panels have the rows of both: what is packed is shared only where both are the same."""
    layers = [
        spec.GRU("a", 6, H),
        spec.GRU("b", 6, H, tensor_names=(("weight_ih_l0", "a.weight_ih_l0"),)),
        spec.GRU("c", 6, H, tensor_names=(("weight_hh_l0", "a.weight_hh_l0"),)),
        spec.GRU("d", 6, H, reset_after=False, weights="a"),
        spec.GRU("e", 6, H, weights="a", tensor_names=(("bias_ih_l0", "e.bias"),)),
    ]
    graph = spec.Graph(
        [spec.Input("x", (6,))],
        [layer("x") for layer in layers],
        {la.name: la.name for la in layers},
    )
    rng = np.random.default_rng(5)
    shapes = spec.check(graph).tensors
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    model = Model(format.ModelFile(graph, tensors))
    x = rng.standard_normal((5, 6)).astype(np.float32)
    made, _ = model(x)
    for layer in layers:
        alone = spec.Graph([spec.Input("x", (6,))], [layer("x")], {"y": layer.name})
        own = {name: tensors[name] for name in spec.check(alone).tensors}
        np.testing.assert_array_equal(made[layer.name], Model(format.ModelFile(alone, own))(x)[0])
