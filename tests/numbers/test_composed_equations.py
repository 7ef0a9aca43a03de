"""What other libraries have a layer for, put together from layers: equal to theirs, or to loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from one_layer import draw, in_pieces

from fastlstm import reference, spec

torch = pytest.importorskip("torch")
F = torch.nn.functional

EPS = 1e-5


def ending_in(*nodes: spec.Node, inputs: Sequence[spec.Input]) -> spec.Graph:
    return spec.Graph(inputs, nodes, {"y": nodes[-1].name})


def equal_whole_and_in_pieces(
    graph: spec.Graph,
    tensors: dict[str, np.ndarray],
    inputs: dict[str, np.ndarray],
    expected: np.ndarray,
    rng: np.random.Generator,
    tolerance: float = 1e-11,
) -> None:
    whole = reference.forward(graph, tensors, inputs)["y"]
    assert whole.shape == expected.shape
    np.testing.assert_allclose(whole, expected, rtol=tolerance, atol=tolerance)
    pieces = in_pieces(graph, tensors, inputs, rng)["y"]
    if spec.check(graph).rows[graph.outputs["y"]].folded:
        pieces = pieces[-1:]
    np.testing.assert_allclose(pieces, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("axes", [(4,), (4, 3)], ids=str)
def test_cumulative_layer_norm(axes: tuple[int, ...], rng: np.random.Generator) -> None:
    """Of all numbers of all steps so far: cLN of Conv-TasNet (https://arxiv.org/abs/1809.07454)."""
    over = tuple(range(-len(axes), 0))
    affine = (axes[0], *(1,) * (len(axes) - 1))
    graph = ending_in(
        spec.Reduce("mean of a step", "mean", axes=over, keepdim=True)("x"),
        spec.Fold("mean", "mean", cumulative=True)("mean of a step"),
        spec.Activation("squares", "square")("x"),
        spec.Reduce("power of a step", "mean", axes=over, keepdim=True)("squares"),
        spec.Fold("power", "mean", cumulative=True)("power of a step"),
        spec.Activation("mean squared", "square")("mean"),
        spec.Arithmetic("variance", "subtract")("power", "mean squared"),
        spec.Activation("with eps", f"affine(1, {EPS})")("variance"),
        spec.Activation("deviation", "sqrt")("with eps"),
        spec.Arithmetic("centred", "subtract")("x", "mean"),
        spec.Arithmetic("normal", "divide")("centred", "deviation"),
        spec.Constant("gain", affine)(),
        spec.Constant("shift", affine)(),
        spec.Arithmetic("scaled", "multiply")("normal", "gain"),
        spec.Arithmetic("y", "add")("scaled", "shift"),
        inputs=[spec.Input("x", axes)],
    )
    w, x = draw(graph, rng), 2 + rng.standard_normal((11, 3, *axes))
    expected = np.empty_like(x)
    for t in range(11):  # the layer norm of everything so far, its last step
        so_far = torch.from_numpy(x[: t + 1].swapaxes(0, 1).copy())
        expected[t] = F.layer_norm(so_far, so_far.shape[1:], eps=EPS)[:, -1]
    expected = expected * w["gain"] + w["shift"]
    equal_whole_and_in_pieces(graph, w, {"x": x}, expected, rng, 1e-9)


def test_causal_attention_of_one_head(rng: np.random.Generator) -> None:
    """Scores of a query that does not change, masked softmax over time, and values."""
    graph = ending_in(
        spec.Linear("key", 6, 4)("x"),
        spec.Linear("value", 6, 5)("x"),
        spec.Constant("query", (4, 1))(),
        spec.MatMul("products")("key", "query"),
        spec.Activation("scores", "affine(0.5, 0)")("products"),
        spec.Attention("y", cumulative=True)("scores", "value"),
        inputs=[spec.Input("x", (6,))],
    )
    w, x = draw(graph, rng), rng.standard_normal((9, 2, 6))
    t = {name: torch.from_numpy(value) for name, value in w.items()}
    rows = torch.from_numpy(x).swapaxes(0, 1)
    query = t["query"].T.expand(2, 9, 4)
    expected = F.scaled_dot_product_attention(
        query,
        F.linear(rows, t["key.weight"], t["key.bias"]),
        F.linear(rows, t["value.weight"], t["value.bias"]),
        is_causal=True,
    )
    equal_whole_and_in_pieces(graph, w, {"x": x}, expected.swapaxes(0, 1).numpy(), rng)


def test_squeeze_and_excitation_over_time(rng: np.random.Generator) -> None:
    """A gate from the mean of the whole sequence, at its end (https://arxiv.org/abs/1709.01507)."""
    graph = ending_in(
        spec.Fold("squeezed", "mean")("x"),
        spec.Linear("down", 6, 2)("squeezed"),
        spec.Activation("relu", "relu")("down"),
        spec.Linear("up", 2, 6)("relu"),
        spec.Activation("gate", "sigmoid")("up"),
        spec.Fold("last", "last")("x"),
        spec.Arithmetic("y", "multiply")("last", "gate"),
        inputs=[spec.Input("x", (6,))],
    )
    w, x = draw(graph, rng), rng.standard_normal((9, 2, 6))
    t = {name: torch.from_numpy(value) for name, value in w.items()}
    rows = torch.from_numpy(x)
    down = F.relu(F.linear(rows.mean(0), t["down.weight"], t["down.bias"]))
    expected = rows[-1] * torch.sigmoid(F.linear(down, t["up.weight"], t["up.bias"]))
    equal_whole_and_in_pieces(graph, w, {"x": x}, expected[None].numpy(), rng)


def test_final_states_of_both_directions(rng: np.random.Generator) -> None:
    """torch's h_n of a bidirectional GRU: the last of one half, the first of the other."""
    graph = ending_in(
        spec.GRU("gru", 3, 4, bidirectional=True)("x"),
        spec.Index.of("forwards", np.arange(4))("gru"),
        spec.Index.of("backwards", np.arange(4, 8))("gru"),
        spec.Fold("last", "last")("forwards"),
        spec.Fold("first", "first")("backwards"),
        spec.Index.of("y", np.arange(8).reshape(2, 4))("last", "first"),
        inputs=[spec.Input("x", (3,))],
    )
    w, x = draw(graph, rng), rng.standard_normal((7, 2, 3))
    module = torch.nn.GRU(3, 4, bidirectional=True).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(w[f"gru.{name}"]))
        _, expected = module(torch.from_numpy(x))
    y = reference.forward(graph, w, {"x": x})["y"]
    np.testing.assert_allclose(y[0], expected.swapaxes(0, 1).numpy(), rtol=1e-12, atol=1e-12)


def test_a_window_and_a_linear_are_a_convolution(rng: np.random.Generator) -> None:
    """The kernel (O, C, K) as a matrix of the window's (K, C)."""
    graph = ending_in(
        spec.Window("window", 3, stride=2, dilation=2, padding=3)("x"),
        spec.Index.of("flat", np.arange(12))("window"),
        spec.Linear("y", 12, 5)("flat"),
        inputs=[spec.Input("x", (4,))],
    )
    w, x = draw(graph, rng), rng.standard_normal((13, 2, 4))
    kernel = torch.from_numpy(w["y.weight"].reshape(5, 3, 4).swapaxes(1, 2).copy())
    padded = F.pad(torch.from_numpy(x).permute(1, 2, 0), (3, 0))
    expected = F.conv1d(padded, kernel, torch.from_numpy(w["y.bias"]), stride=2, dilation=2)
    equal_whole_and_in_pieces(graph, w, {"x": x}, expected.permute(2, 0, 1).numpy(), rng)


def test_subpixel_upsampling(rng: np.random.Generator) -> None:
    """Channels that become steps: torch's transposed convolution of kernel = stride."""
    graph = ending_in(
        spec.Linear("wide", 3, 8, bias=False)("x"),
        spec.Index.of("steps", np.arange(8).reshape(4, 2))("wide"),
        spec.Spread("y", 4)("steps"),
        inputs=[spec.Input("x", (3,))],
    )
    w, x = draw(graph, rng), rng.standard_normal((5, 2, 3))
    kernel = torch.from_numpy(w["wide.weight"].reshape(4, 2, 3).transpose(2, 1, 0).copy())
    expected = F.conv_transpose1d(torch.from_numpy(x).permute(1, 2, 0), kernel, stride=4)
    equal_whole_and_in_pieces(graph, w, {"x": x}, expected.permute(2, 0, 1).numpy(), rng)
