"""ONNX models: every operator against onnxruntime, and what PyTorch exports."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, numpy_helper  # noqa: E402
from onnx_oracle import agree, forward, runtime  # noqa: E402
from onnx_zoo import NEWEST, floats, graph  # noqa: E402

import fastlstm  # noqa: E402
from fastlstm.errors import ConvertError  # noqa: E402
from fastlstm.sources import Conversion, read  # noqa: E402

Array = np.ndarray


def refusal(model: Any) -> str:
    with pytest.raises(ConvertError) as caught:
        read(model)
    return str(caught.value)


def kinds(made: Conversion) -> list[str]:
    return [node.layer.kind for node in made.graph.nodes]


# --- operators

W = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
V6 = np.linspace(-1, 1.3, 6, dtype=np.float32)
V4 = np.linspace(0.5, 1.5, 4, dtype=np.float32)

# On x (T, B, 6): nodes, constants, version.
ROWS: dict[str, tuple[list[Any], dict[str, Any], int]] = {
    "MatMul": ([("MatMul", "x w", "y", {})], {"w": W}, 13),
    "MatMul, Add": (
        [("MatMul", "x w", "a", {}), ("Add", "b a", "y", {})],
        {"w": W, "b": V4},
        13,
    ),
    "MatMul of a stack": ([("MatMul", "x w", "y", {})], {"w": W[None]}, 13),
    "Gemm": (
        [
            ("Reshape", "x s", "a", {}),
            ("Gemm", "a w b", "c", {"transB": 1, "alpha": 0.5, "beta": 2.0}),
            ("Reshape", "c t", "y", {}),
        ],
        {"s": [-1, 6], "w": W.T.copy(), "b": V4[None], "t": [5, 2, 4]},
        13,
    ),
    "Add": ([("Add", "x b", "y", {})], {"b": V6}, 14),
    "Sub": ([("Sub", "b x", "y", {})], {"b": V6}, 14),
    "Mul": ([("Mul", "b x", "y", {})], {"b": V6[None, None]}, 14),
    "Div": ([("Div", "x b", "y", {})], {"b": V6 + 3}, 14),
    "Neg": ([("Neg", "x", "y", {})], {}, 13),
    "Sub, Div": (
        [("Sub", "x a", "c", {}), ("Div", "c b", "y", {})],
        {"a": V6, "b": V6 + 3},
        14,
    ),
    "LayerNormalization": (
        [("LayerNormalization", "x w b", "y", {"epsilon": 0.01})],
        {"w": V6, "b": V6 / 2},
        17,
    ),
    "LayerNormalization without bias": (
        [("LayerNormalization", "x w", "y", {"axis": 2})],
        {"w": V6},
        17,
    ),
    "Clip 6": ([("Clip", "x", "y", {"min": -0.5, "max": 0.25})], {}, 6),
    "Clip": (
        [("Clip", "x a b", "y", {})],
        {"a": np.float32(-0.5), "b": np.float32(0.25)},
        13,
    ),
    "Clip as relu": ([("Clip", "x a", "y", {})], {"a": np.float32(0)}, 13),
    "Gelu": ([("Gelu", "x", "y", {})], {}, 20),
    "Gelu tanh": ([("Gelu", "x", "y", {"approximate": "tanh"})], {}, 20),
    "silu": (
        [("Sigmoid", "x", "s", {}), ("Mul", "x s", "y", {})],
        {},
        13,
    ),
    "Softmax 11": ([("Softmax", "x", "y", {"axis": 2})], {}, 11),
    "Softmax": ([("Softmax", "x", "y", {})], {}, 13),
    "LogSoftmax": ([("LogSoftmax", "x", "y", {"axis": -1})], {}, 13),
    "PRelu": ([("PRelu", "x a", "y", {})], {"a": V6}, 16),
    "PRelu of one": ([("PRelu", "x a", "y", {})], {"a": V6[:1]}, 16),
    "magnitude": (
        [
            ("Split", "x", "a b", {"axis": 2, "num_outputs": 2}),
            ("Mul", "a a", "p", {}),
            ("Pow", "b two", "q", {}),
            ("Add", "q p", "s", {}),
            ("Sqrt", "s", "y", {}),
        ],
        {"two": np.float32(2)},
        18,
    ),
    "ReduceL2": (
        [("Reshape", "x s", "a", {}), ("ReduceL2", "a i", "y", {"keepdims": 0})],
        {"s": [0, 0, 2, 3], "i": [2]},
        18,
    ),
    "ReduceSumSquare": (
        [
            ("Reshape", "x s", "a", {}),
            ("ReduceSumSquare", "a", "b", {"axes": [2]}),
            ("Sqrt", "b", "y", {}),
        ],
        {"s": [0, -1, 2, 3]},
        11,
    ),
    "glu": (
        [
            ("Split", "x s", "a b", {"axis": -1}),
            ("Sigmoid", "b", "g", {}),
            ("Mul", "a g", "y", {}),
        ],
        {"s": [3, 3]},
        13,
    ),
    "Split 11": (
        [("Split", "x", "a b", {"axis": -1, "split": [3, 3]}), ("Mul", "a b", "y", {})],
        {},
        11,
    ),
    "Slice 9": (
        [
            ("Slice", "x", "a", {"starts": [0], "ends": [3], "axes": [2]}),
            ("Slice", "x", "b", {"starts": [3], "ends": [2**31 - 1], "axes": [2]}),
            ("Add", "a b", "y", {}),
        ],
        {},
        9,
    ),
    "Slice": (
        [
            ("Slice", "x z three two", "a", {}),
            ("Slice", "x three end two one", "b", {}),
            ("Add", "b a", "y", {}),
        ],
        {"z": [0], "one": [1], "two": [2], "three": [3], "end": [2**63 - 1]},
        13,
    ),
    "last step": (
        [("Gather", "x i", "a", {"axis": 0}), ("Tanh", "a", "y", {})],
        {"i": np.int64(-1)},
        13,
    ),
    "ReduceMean 13": (
        [("MatMul", "x w", "a", {}), ("ReduceMean", "a", "y", {"axes": [0], "keepdims": 0})],
        {"w": W},
        13,
    ),
    "ReduceMean": (
        [("MatMul", "x w", "a", {}), ("ReduceMean", "a i", "y", {})],
        {"w": W, "i": [0]},
        18,
    ),
    "residual": (
        [("Tanh", "x", "a", {}), ("Add", "a x", "y", {})],
        {},
        13,
    ),
    "concatenation": (
        [("Tanh", "x", "a", {}), ("Concat", "a x", "y", {"axis": -1})],
        {},
        13,
    ),
    "nothing that matters": (
        [
            ("Identity", "x", "a", {}),
            ("Dropout", "a", "b mask", {}),
            ("Cast", "b", "c", {"to": TensorProto.DOUBLE}),
            ("Cast", "c", "d", {"to": TensorProto.FLOAT}),
            ("Unsqueeze", "d i", "e", {}),
            ("Squeeze", "e", "f", {}),
            ("Relu", "f", "y", {}),
        ],
        {"i": [0, 3]},
        13,
    ),
    "there and back": (
        [
            ("Unsqueeze", "x", "a", {"axes": [1]}),
            ("Transpose", "a", "b", {}),
            ("Squeeze", "b", "c", {"axes": [-2]}),
            ("Transpose", "c", "d", {"perm": [2, 1, 0]}),
            ("Relu", "d", "y", {}),
        ],
        {},
        11,
    ),
    "Flatten": (
        [
            ("Reshape", "x s", "a", {}),
            ("Flatten", "a", "b", {"axis": 2}),
            ("MatMul", "b w", "c", {}),
            ("Reshape", "c t", "y", {}),
        ],
        {"s": [0, 0, 2, 3], "w": W, "t": [5, 2, 4]},
        13,
    ),
    "shapes that are computed": (
        [
            ("Shape", "x", "s", {}),
            ("Slice", "s z two", "lead", {}),
            ("Gather", "s i", "t", {}),
            ("Gather", "s j", "b", {}),
            ("Mul", "t b", "n", {}),
            ("Unsqueeze", "n z", "m", {}),
            ("Concat", "m six", "rows", {"axis": 0}),
            ("Reshape", "x rows", "a", {}),
            ("MatMul", "a w", "c", {}),
            ("Concat", "lead four", "back", {"axis": 0}),
            ("Reshape", "c back", "y", {}),
        ],
        {"z": [0], "two": [2], "i": np.int64(0), "j": np.int64(1), "six": [6], "four": [4], "w": W},
        13,
    ),
}
for name, attributes in {
    "Relu": {},
    "Tanh": {},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "LeakyRelu": {"alpha": 0.3},
    "ThresholdedRelu": {"alpha": 0.25},
    "HardSigmoid": {"alpha": 0.4, "beta": 0.3},
    "Elu": {"alpha": 0.7},
}.items():
    ROWS[name] = ([(name, "x", "y", attributes)], {}, NEWEST)
    if attributes:
        ROWS[f"{name} by default"] = ([(name, "x", "y", {})], {}, NEWEST)


def arrays(constants: dict[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in constants.items()}


@pytest.mark.parametrize("case", ROWS)
def test_operators_on_rows(case, rng):
    nodes, constants, version = ROWS[case]
    # Where sizes are written into a reshape, those of the input must be known.
    shapes = [(5, 2, 6)] if "t" in constants else [(5, 2, 6), ("T", "B", 6)]
    for shape in shapes:
        agree(graph(nodes, shape, arrays(constants), version=version), rng, scale=2)


K = np.linspace(-1, 1, 4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
ONE = np.linspace(-1, 1, 4 * 3, dtype=np.float32).reshape(4, 1, 3)

# On x (B, 6, L): of a convolution, and what it has.
CHANNELS: dict[str, tuple[list[Any], dict[str, Any], int]] = {
    "Conv": ([("Conv", "x k b", "y", {})], {"k": K, "b": V4}, 11),
    "Conv padded": (
        [("Conv", "x k", "y", {"pads": [2, 1], "kernel_shape": [3]})],
        {"k": K},
        11,
    ),
    "Conv strided": ([("Conv", "x k", "y", {"strides": [2]})], {"k": K}, 11),
    "Conv dilated": (
        [("Conv", "x k", "y", {"dilations": [2], "pads": [4, 0]})],
        {"k": K},
        11,
    ),
    "Conv in groups": (
        [("Conv", "x k", "y", {"group": 2})],
        {"k": K[:, :3]},
        11,
    ),
    "Conv VALID": ([("Conv", "x k", "y", {"auto_pad": "VALID"})], {"k": K}, 11),
    "Conv SAME_UPPER": (
        [("Conv", "x k", "y", {"auto_pad": "SAME_UPPER", "strides": [2]})],
        {"k": K},
        11,
    ),
    "Conv SAME_LOWER": (
        [("Conv", "x k", "y", {"auto_pad": "SAME_LOWER"})],
        {"k": K[:, :, :2]},
        11,
    ),
    "Pad 2": (
        [("Pad", "x", "p", {"pads": [0, 0, 2, 0, 0, 0]}), ("Conv", "p k", "y", {})],
        {"k": K},
        2,
    ),
    "Pad 11": (
        [("Pad", "x p", "q", {}), ("Conv", "q k", "y", {})],
        {"k": K, "p": [0, 0, 2, 0, 0, 0]},
        11,
    ),
    "Pad 18": (
        [("Pad", "x p _ i", "q", {"mode": "edge"}), ("Conv", "q k", "y", {})],
        {"k": K, "p": [2, 1], "i": [-1]},
        18,
    ),
    "Pad and cut": (
        [
            ("Conv", "x k", "a", {"pads": [2, 2]}),
            ("Slice", "a z e i", "b", {}),
            ("Relu", "b", "y", {}),
        ],
        {"k": K, "z": [0], "e": [-2], "i": [2]},
        13,
    ),
    "BatchNormalization": (
        [("Conv", "x k", "a", {}), ("BatchNormalization", "a b b b b", "y", {"epsilon": 0.1})],
        {"k": K, "b": V4},
        15,
    ),
    "BatchNormalization 7": (
        [("Conv", "x k", "a", {}), ("BatchNormalization", "a b b b b", "y", {"momentum": 0.5})],
        {"k": K, "b": V4},
        7,
    ),
    "PRelu": (
        [("Conv", "x k", "a", {}), ("PRelu", "a b", "y", {})],
        {"k": K, "b": V4[:, None]},
        16,
    ),
    "frames": (
        [
            ("Pad", "x p", "q", {"mode": "reflect"}),
            ("Conv", "q k", "a", {"strides": [3]}),
            ("Relu", "a", "b", {}),
            ("Flatten", "b", "c", {}),
            ("MatMul", "c w", "y", {}),
        ],
        {
            "k": K,
            "p": [0, 0, 2, 0, 0, 1],
            "w": np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2),
        },
        13,
    ),
}


@pytest.mark.parametrize("length", [11, "L"])
@pytest.mark.parametrize("case", CHANNELS)
def test_operators_on_channels(case, length, rng):
    nodes, constants, version = CHANNELS[case]
    model = graph(nodes, ("B", 6, length), arrays(constants), version=version)
    if version < 7:  # which onnxruntime does not know
        newer = [n if n[0] != "Pad" else ("Pad", "x pads", *n[2:3], {}) for n in nodes]
        pads = np.array([0, 0, 2, 0, 0, 0])
        newer = graph(newer, ("B", 6, length), arrays(constants) | {"pads": pads}, version=13)
        assert read(model).graph == read(newer).graph
    elif case in ("Pad 18", "frames", "Conv SAME_UPPER") and length == "L":
        # An edge that is repeated is of one row, whose size must be known; so must a length that
        # is padded to a multiple of the stride.
        assert refusal(model).startswith(
            "node 'matmul_4' (MatMul) is not converted: a matrix of 16 columns is given"
            if case == "frames"
            else "what is computed depends on how many steps or rows there are: "
        )
        told = agree(model, rng, inputs={"x": "?x6x11"})
        assert told.graph.inputs[0].shape == ((6,) if case == "Conv SAME_UPPER" else (6, 11))
    else:
        agree(model, rng)


class TestTokens:
    @pytest.mark.parametrize("shape", [("T", "B"), ("B",), (1, "T")])
    def test_embedding(self, shape, rng):
        model = graph(
            [("Gather", "table x", "a", {}), ("Tanh", "a", "y", {})],
            shape,
            {"table": floats(rng, 9, 4)},
            kind=TensorProto.INT64,
        )
        made = agree(model, rng)
        assert made.graph.inputs[0].tokens == 9
        assert kinds(made) == ["embedding", "activation"]

    def test_one_hot(self, rng):
        model = graph(
            [("OneHot", "x depth values", "a", {}), ("MatMul", "a w", "y", {})],
            ("T", "B"),
            {"depth": np.int64(9), "values": np.array([0, 1], np.float32), "w": floats(rng, 9, 4)},
            kind=TensorProto.INT64,
        )
        assert kinds(agree(model, rng)) == ["one_hot", "linear"]


# --- what PyTorch exports


def exported(
    module: Any,
    x: Any,
    dynamic: dict[str, dict[int, str]] | None = None,
    names: tuple[tuple[str, ...], tuple[str, ...]] = (("x",), ("y",)),
    version: int | None = None,
) -> Any:
    """What torch.onnx gives for a module on an example."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            x if isinstance(x, tuple) else (x,),
            file,
            dynamo=False,
            input_names=list(names[0]),
            output_names=list(names[1]),
            dynamic_axes=dynamic,
            opset_version=version,
        )
    return onnx.load_from_string(file.getvalue())


def module(forward: Callable[..., Any], **parts: Any) -> Any:
    """A torch module of parts with a forward."""
    from torch import nn

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, *arguments: Any) -> Any:
            return forward(self, *arguments)

    return Module()


def zoo() -> dict[str, tuple[Any, tuple[int, ...], str, str]]:
    """Modules by name, with an example's shape, its axes, and the axes of the output."""
    torch = pytest.importorskip("torch")
    from torch import nn

    F = nn.functional
    rnn = {"batch_first": True}

    def merged(y: Any) -> Any:
        return y[..., :6] + y[..., 6:]

    return {
        "lstm": (
            module(lambda m, x: m.fc(m.rnn(x)[0]), rnn=nn.LSTM(5, 6, 2, **rnn), fc=nn.Linear(6, 3)),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "gru, time first": (
            module(lambda m, x: F.relu(m.fc(m.rnn(x)[0])), rnn=nn.GRU(5, 6), fc=nn.Linear(6, 3)),
            (9, 3, 5),
            "TBf",
            "TBf",
        ),
        "rnn": (
            module(lambda m, x: m.rnn(x)[0], rnn=nn.RNN(5, 6, nonlinearity="relu", **rnn)),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "last step": (
            module(
                lambda m, x: m.fc(m.rnn(x)[0][:, -1]), rnn=nn.LSTM(5, 6, **rnn), fc=nn.Linear(6, 3)
            ),
            (3, 9, 5),
            "BTf",
            "Bf",
        ),
        "last state": (
            module(
                lambda m, x: m.fc(m.rnn(x)[1][0][-1]),
                rnn=nn.LSTM(5, 6, 2, **rnn),
                fc=nn.Linear(6, 3),
            ),
            (3, 9, 5),
            "BTf",
            "Bf",
        ),
        "last states of two directions": (
            module(
                lambda m, x: m.fc((lambda h: torch.cat([h[-2], h[-1]], 1))(m.rnn(x)[1])),
                rnn=nn.GRU(5, 6, 2, bidirectional=True, **rnn),
                fc=nn.Linear(12, 3),
            ),
            (3, 9, 5),
            "BTf",
            "Bf",
        ),
        "two directions": (
            module(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(5, 6, 2, bidirectional=True, **rnn)),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "directions added": (
            module(lambda m, x: merged(m.rnn(x)[0]), rnn=nn.GRU(5, 6, bidirectional=True, **rnn)),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "mean": (
            module(lambda m, x: m.rnn(x)[0].mean(1), rnn=nn.GRU(5, 6, **rnn)),
            (3, 9, 5),
            "BTf",
            "Bf",
        ),
        "learned start": (
            module(
                lambda m, x: m.rnn(x, m.h.expand(-1, x.shape[0], -1).contiguous())[0],
                rnn=nn.GRU(5, 6, **rnn),
                h=nn.Parameter(torch.randn(1, 1, 6)),
            ),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "features": (
            nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 8), nn.GELU(), nn.GLU(), nn.Softsign()),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "normalised": (
            module(
                lambda m, x: m.rnn((x - m.mean) / m.std)[0],
                rnn=nn.LSTM(5, 6, **rnn),
                mean=nn.Parameter(torch.randn(5)),
                std=nn.Parameter(torch.rand(5) + 0.5),
            ),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "residual": (
            module(
                lambda m, x: x + m.rnn(F.silu(m.fc(x)))[0],
                fc=nn.Linear(5, 4),
                rnn=nn.GRU(4, 5, **rnn),
            ),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "concatenated": (
            module(lambda m, x: torch.cat([x, m.rnn(x)[0]], -1), rnn=nn.GRU(5, 6, **rnn)),
            (3, 9, 5),
            "BTf",
            "BTf",
        ),
        "temporal convolution": (
            module(
                lambda m, x: x + F.relu(m.norm(m.conv(x)[:, :, :-4])),
                conv=nn.Conv1d(5, 5, 3, padding=4, dilation=2),
                norm=nn.BatchNorm1d(5),
            ),
            (3, 5, 9),
            "BfT",
            "BfT",
        ),
        "causal padding": (
            module(lambda m, x: m.conv(F.pad(x, (2, 0))), conv=nn.Conv1d(5, 6, 3)),
            (3, 5, 9),
            "BfT",
            "BfT",
        ),
        "convolution and lstm": (
            module(
                lambda m, x: m.rnn(F.elu(m.conv(x.transpose(1, 2))).transpose(1, 2))[0][:, -1],
                conv=nn.Conv1d(5, 6, 3, padding=1),
                rnn=nn.LSTM(6, 4, bidirectional=True, **rnn),
            ),
            (3, 9, 5),
            "BTf",
            "Bf",
        ),
        "frames": (
            module(
                lambda m, x: m.rnn(
                    F.relu(m.conv(x.reshape(x.shape[0] * x.shape[1], 1, 20)))
                    .flatten(1)
                    .view(x.shape[0], x.shape[1], -1)
                )[0],
                conv=nn.Conv1d(1, 4, 5, stride=3, padding=1),
                rnn=nn.GRU(24, 6, **rnn),
            ),
            (3, 9, 20),
            "BTf",
            "BTf",
        ),
    }


ZOO = (
    *("lstm", "gru, time first", "rnn", "last step", "last state", "last states of two directions"),
    *("two directions", "directions added", "mean", "learned start", "features", "normalised"),
    *("residual", "concatenated", "temporal convolution", "causal padding"),
    *("convolution and lstm", "frames"),
)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_what_torch_exports(name, dynamic, rng):
    torch = pytest.importorskip("torch")
    torch.manual_seed(int(rng.integers(2**31)))
    made, shape, read_as, given_as = zoo()[name]
    x = torch.randn(*shape)
    axes = {i: axis for i, axis in enumerate(read_as) if axis != "f"}
    for version in (None, 13):
        model = exported(made, x, {"x": axes} if dynamic else None, version=version)
        converted = agree(model, rng)
        if not dynamic:
            continue
        (argument,) = converted.call.arguments
        assert argument.axes.index("time") == read_as.index("T")
        rows = np.ascontiguousarray(x.numpy().transpose([read_as.index(axis) for axis in "TBf"]))
        order = [given_as.index(axis) for axis in "TBf" if axis in given_as]
        expected = made(x).detach().numpy().transpose(order)
        y, _ = fastlstm.from_torch(model)(rows)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def detector(sequence: bool, stacked: bool) -> Any:
    """A voice activity detector; of one frame (B, 576) a call, or of a sequence (T, 576)."""
    torch = pytest.importorskip("torch")
    from torch import nn

    channels = [(129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)]
    batch = 1 if sequence else 0

    def forward(m: Any, x: Any, state: Any) -> Any:
        y = m.spectrum(nn.functional.pad(x.unsqueeze(1), (0, 64), mode="reflect"))
        y = torch.sqrt(y[:, :129] ** 2 + y[:, 129:] ** 2)
        for conv in m.encoder:
            y = torch.relu(conv(y))
        y = y.squeeze(-1).unsqueeze(batch)
        if stacked:
            start = (state[0].unsqueeze(0), state[1].unsqueeze(0))
        else:
            start = (state[:1], state[1:])
        y, (h, c) = m.rnn(y, start)
        state = torch.stack([h.squeeze(0), c.squeeze(0)]) if stacked else torch.cat([h, c])
        y = m.decoder(torch.relu(y.squeeze(batch).unsqueeze(-1)))
        return torch.sigmoid(y).squeeze(1).mean(1, keepdim=True), state

    return module(
        forward,
        spectrum=nn.Conv1d(1, 258, 256, stride=128, bias=False),
        encoder=nn.ModuleList([nn.Conv1d(i, o, 3, s, padding=1) for i, o, s in channels]),
        rnn=nn.LSTM(128, 128),
        decoder=nn.Conv1d(128, 1, 1),
    )


class TestDetector:
    def exported(self, sequence: bool, stacked: bool, dynamic: bool, version: int | None) -> Any:
        torch = pytest.importorskip("torch")
        torch.manual_seed(1)
        made = detector(sequence, stacked)
        axes = {"x": {0: "T" if sequence else "B"}} | ({} if sequence else {"state": {1: "B"}})
        model = exported(
            made,
            (torch.randn(4 if sequence else 1, 576), torch.zeros(2, 1, 128)),
            axes if dynamic else None,
            (("x", "state"), ("y", "stateN")),
            version,
        )
        return made, model

    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize("stacked", [False, True])
    @pytest.mark.parametrize("sequence", [False, True])
    def test_becomes_one_frame_a_step(self, sequence, stacked, dynamic, rng):
        torch = pytest.importorskip("torch")
        made, model = self.exported(sequence, stacked, dynamic, 16 if stacked else None)
        converted = read(model)
        assert [i.shape for i in converted.graph.inputs] == [(576,)]
        assert kinds(converted).count("lstm") == 1
        state_line = "carries a state, which output 'stateN' gives for the next call"
        assert any(state_line in line for line in converted.report)
        x, state = torch.randn(4, 576), torch.zeros(2, 1, 128)
        with torch.no_grad():
            if sequence:
                y, state = made(x, state)
            else:
                steps = []
                for row in x:
                    step, state = made(row[None], state)
                    steps.append(step)
                y = torch.cat(steps)
        given = forward(converted, {"x": x.numpy()[:, None]})["y"]
        np.testing.assert_allclose(given[:, 0], y.numpy(), rtol=1e-5, atol=1e-6)

    def test_streams(self, tmp_path, rng):
        """Converted to a file, step by step and as a sequence, against onnxruntime."""
        _, exported = self.exported(False, False, True, None)
        onnx.save(exported, tmp_path / "detector.onnx")
        fastlstm.convert(tmp_path / "detector.onnx", tmp_path / "detector.safetensors")
        model = fastlstm.load(tmp_path / "detector.safetensors")
        x, state = floats(rng, 20, 576), np.zeros((2, 1, 128), np.float32)
        expected = []
        for row in x:
            made = runtime(exported, x=row[None], state=state)
            state = made["stateN"]
            expected.append(made["y"][0])
        y, last = model(x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(last["rnn.h"], state[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(last["rnn.c"], state[1], rtol=1e-4, atol=1e-6)
        stream = model.stream()
        steps = [stream.step(row) for row in x]
        np.testing.assert_allclose(steps, expected, rtol=1e-4, atol=1e-6)

    def test_a_step_and_a_sequence_give_the_same_layers(self):
        one, many = (read(self.exported(sequence, False, True, None)[1]) for sequence in (0, 1))
        assert one.graph == many.graph
        for name, tensor in one.tensors.items():
            assert np.array_equal(tensor, many.tensors[name])

    def test_without_its_states(self, rng):
        pytest.importorskip("torch")
        _, model = self.exported(False, False, True, None)
        del model.graph.input[1]
        model.graph.initializer.append(
            numpy_helper.from_array(np.zeros((2, 1, 128), np.float32), "state")
        )
        agree(model, rng, rows=1, steps=1)  # each frame starts anew


class TestReport:
    def test_says_what_became_of_each(self, rng):
        model = graph(
            [
                ("MatMul", "x fc.weight", "a", {}),
                ("Dropout", "a", "b", {}),
                ("Relu", "b", "y", {}),
            ],
            constants={"fc.weight": W},
            inputs=[("unused", (3,))],
        )
        assert read(model).report == (
            "layer 'fc': linear(in_features=6, out_features=4, bias=False)",
            "layer 'relu_2': activation(function=relu)",
            "input 'x' is (batch, time, 6)",
            "output 'y' is (batch, time, 4)",
            "input 'unused' is not used and was left out",
            "node 'dropout_1' (Dropout) has no effect at inference and was left out",
        )

    def test_names_of_pytorch_are_paths(self):
        model = graph([("MatMul", "x w", "a", {}), ("Relu", "a", "y", {})], constants={"w": W})
        model.graph.node[0].name = "/encoder/fc/MatMul"
        model.graph.node[1].name = "/Relu"
        assert [node.name for node in read(model).graph.nodes] == ["encoder.fc", "Relu"]
