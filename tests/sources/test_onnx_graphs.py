"""ONNX graphs with bodies, functions, fixed inputs and states, against onnxruntime."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_oracle import agree  # noqa: E402
from onnx_zoo import floats, graph  # noqa: E402

import fastlstm  # noqa: E402
from fastlstm.cli import main  # noqa: E402
from fastlstm.errors import ConvertError  # noqa: E402
from fastlstm.sources import read  # noqa: E402

Array = npt.NDArray[Any]

F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL  # noqa: E741


def node(op: str, inputs: str, outputs: str, **options: Any) -> Any:
    """A node, called as its first output."""
    given = outputs.split()
    read = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, read, given, name=given[0], **options)


def body(nodes: list[Any], inputs: Any, outputs: str, tensors: dict[str, Array]) -> Any:
    return helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, F, None) for name in outputs.split()],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )


def model(
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: str,
    tensors: dict[str, Any],
    version: int = 17,
) -> Any:
    """A model; an input is its shape, or its kind and shape."""
    ports = {n: v if isinstance(v, tuple) else (F, v) for n, v in inputs.items()}
    made = body(nodes, [(n, *v) for n, v in ports.items()], outputs, {})
    made.initializer.extend(
        numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()
    )
    opset = [helper.make_opsetid("", version)]
    return helper.make_model(made, opset_imports=opset, ir_version=8)


def kinds(made: Any) -> list[str]:
    return [node.layer.kind for node in made.graph.nodes]


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ConvertError) as caught:
        read(source, **options)
    return str(caught.value)


def detector(rng: np.random.Generator) -> Any:
    """A choice between two LSTMs, each with weights of its own, by a sample rate."""

    def branch(n: str) -> Any:
        tensors = {f"W{n}": floats(rng, 1, 16, 3), f"R{n}": floats(rng, 1, 16, 4)}
        lstm = node("LSTM", f"x W{n} R{n} _ _ h c", f"y{n} hn{n} cn{n}", hidden_size=4)
        return body([lstm], [], f"y{n} hn{n} cn{n}", tensors)

    return model(
        [
            node("Equal", "sr k", "is16"),
            node("If", "is16", "y hn cn", then_branch=branch("1"), else_branch=branch("2")),
        ],
        {"x": [1, "B", 3], "h": [1, "B", 4], "c": [1, "B", 4], "sr": (I, [])},
        "y hn cn",
        {"k": np.array(16000)},
    )


class TestFixedInputs:
    @pytest.mark.parametrize("rate", [16000, 8000])
    def test_a_choice_is_its_branch(self, rate: int, rng: np.random.Generator) -> None:
        made = agree(
            detector(rng), rng, inputs={"sr": rate}, given={"sr": np.array(rate, np.int64)}
        )
        assert kinds(made)[0] == "lstm"
        assert made.call is not None
        roles = {a.name: (a.role, a.value) for a in made.call.arguments}
        assert roles == {
            "x": ("rows", "x"),
            "h": ("state", "hn"),
            "c": ("state", "cn"),
            "sr": ("constant", str(rate)),
        }
        assert f"input 'sr' is always {rate}, on your word" in made.report

    def test_a_choice_that_is_not_told(self, rng: np.random.Generator) -> None:
        assert refusal(detector(rng)) == (
            "node 'y' (If) chooses by input 'sr'; tell what that always is, as inputs={'sr': ...}"
        )

    def test_a_constant_rate(self, rng: np.random.Generator) -> None:
        source = detector(rng)
        del source.graph.input[3]
        source.graph.initializer.append(numpy_helper.from_array(np.array(8000), "sr"))
        agree(source, rng)

    def test_by_command(
        self, rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, made = tmp_path / "a.onnx", tmp_path / "a.safetensors"
        onnx.save(detector(rng), source)
        assert main(["convert", str(source), str(made), "--input", "sr=16000"]) == 0
        assert "input 'sr' is always 16000, on your word" in capsys.readouterr().out
        model = fastlstm.load(made)
        assert [i.name for i in model.graph.inputs] == ["x"]

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"rate": 1}, "inputs names 'rate', which is no input of the ONNX model; expected"),
            ({"sr": "fast"}, "input 'sr' is given 'fast'; expected a number, as in 16000, or a"),
            ({"sr": 0.5}, "input 'sr' takes integers, and was given array(0.5)"),
            ({"x": "2x?x3"}, "input 'x' was given the shape (2, ?, 3), and is (1, ?, 3) in the"),
            ({"h": np.zeros(3)}, "input 'h' takes an array of shape (1, ?, 4), and was given one"),
        ],
    )
    def test_refused(self, inputs: Any, message: str, rng: np.random.Generator) -> None:
        assert refusal(detector(rng), inputs=inputs).startswith(message)

    @pytest.mark.parametrize("shape", [(None, None, 7), "?x?x7"])
    def test_sizes(self, shape: Any, rng: np.random.Generator) -> None:
        """Of rows whose size no weight tells."""
        source = model([node("Tanh", "x", "y")], {"x": ["B", "T", "N"]}, "y", {})
        assert refusal(source) == (
            "the size of axis 2 of 'x' is not known, and no weight tells it; the file leaves sizes "
            "of 'x' open, (?, ?, ?): tell them, as inputs={'x': (None, ..., ...)}"
        )
        assert agree(source, rng, inputs={"x": shape}).graph.inputs[0].shape == (7,)


class TestLoops:
    def test_a_loop_over_time(self, rng: np.random.Generator) -> None:
        """A GRU of a fixed length, as tf2onnx writes it."""
        cell = body(
            [
                *(node("Gather", "xt i", "x", axis=0), node("MatMul", "x Wz", "a")),
                *(
                    node("MatMul", "hp Uz", "b"),
                    node("Add", "a b", "ab"),
                    node("Sigmoid", "ab", "z"),
                ),
                *(
                    node("MatMul", "x Wn", "d"),
                    node("MatMul", "hp Un", "e"),
                    node("Add", "d e", "de"),
                ),
                *(node("Tanh", "de", "c"), node("Sub", "one z", "iz"), node("Mul", "iz c", "p")),
                *(node("Mul", "z hp", "q"), node("Add", "p q", "hn"), node("Identity", "ci", "co")),
            ],
            [("i", I, []), ("ci", B, []), ("hp", F, [1, 4])],
            "co hn",
            {
                "Wz": floats(rng, 3, 4),
                "Uz": floats(rng, 4, 4),
                "Wn": floats(rng, 3, 4),
                "Un": floats(rng, 4, 4),
                "one": np.array(1, np.float32),
            },
        )
        cell.output[0].type.tensor_type.elem_type = B
        made = agree(
            model(
                [
                    node("Transpose", "x0", "xt", perm=[1, 0, 2]),
                    node("Loop", "M t h0", "y", body=cell),
                ],
                {"x0": [1, 29, 3]},
                "y",
                {"M": np.array(29), "t": np.array(True), "h0": np.zeros((1, 4), np.float32)},
            ),
            rng,
        )
        assert len(made.graph.nodes) < 29

    @pytest.mark.parametrize("turns", [0, 1])
    def test_a_scan(self, turns: int, rng: np.random.Generator) -> None:
        step = body(
            [
                *(node("MatMul", "x W", "a"), node("MatMul", "h U", "b"), node("Add", "a b", "s")),
                *(node("Tanh", "s", "n"), node("Identity", "n", "y")),
            ],
            [("h", F, [1, 4]), ("x", F, [1, 3])],
            "n y",
            {"W": floats(rng, 3, 4), "U": floats(rng, 4, 4)},
        )
        options = {"scan_input_directions": [turns], "scan_output_directions": [turns]}
        agree(
            model(
                [node("Scan", "h0 x", "last z", body=step, num_scan_inputs=1, **options)],
                {"x": [9, 1, 3]},
                "z",
                {"h0": np.zeros((1, 4), np.float32)},
            ),
            rng,
        )

    def test_without_end(self) -> None:
        """A loop that never ends is ended."""
        turn = body(
            [node("Identity", "ci", "co"), node("Tanh", "v", "w")],
            [("i", I, []), ("ci", B, []), ("v", F, ["B", 6])],
            "co w",
            {},
        )
        turn.output[0].type.tensor_type.elem_type = B
        source = model([node("Loop", "_ t x", "y", body=turn)], {"x": ["B", 6]}, "y", {"t": True})
        assert "is run as number 16385, which is more than there may be" in refusal(source)


class TestFunctions:
    def test_are_put_in_their_places(self, rng: np.random.Generator) -> None:
        source = graph([("Twice", "x", "a", {}), ("MatMul", "a w", "y", {})], constants={
            "w": floats(rng, 6, 4)})  # fmt: skip
        opset = [helper.make_opsetid("", 22)]
        add = helper.make_node("Add", ["a", "a"], ["b"])
        source.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [add], opset))
        source.opset_import.append(helper.make_opsetid("own", 1))
        source.graph.node[0].domain = "own"
        agree(source, rng)

    def test_that_grow(self) -> None:
        """Each calls the one before twice; what they become is counted before."""
        source = graph([("F40", "x", "y", {})])
        opsets = [helper.make_opsetid("", 22), helper.make_opsetid("own", 1)]
        for n in range(41):
            op, domain = (f"F{n - 1}", "own") if n else ("Tanh", "")
            calls = [
                helper.make_node(op, [a], [b], domain=domain) for a, b in (("a", "b"), ("b", "c"))
            ]
            source.functions.append(
                helper.make_function("own", f"F{n}", ["a"], ["c"], calls, opsets)
            )
        source.opset_import.append(opsets[1])
        source.graph.node[0].domain = "own"
        assert refusal(source) == (
            "the functions of the ONNX model become more than 5000 nodes, which is the most that "
            "is supported"
        )

    def test_that_call_themselves(self) -> None:
        source = graph([("F", "x", "y", {})])
        opsets = [helper.make_opsetid("", 22), helper.make_opsetid("own", 1)]
        call = helper.make_node("F", ["a"], ["b"], domain="own")
        source.functions.append(helper.make_function("own", "F", ["a"], ["b"], [call], opsets))
        source.opset_import.append(opsets[1])
        source.graph.node[0].domain = "own"
        assert refusal(source) == (
            "function 'F' of the ONNX model calls itself; expected none that does"
        )


class TestInputsAndOutputs:
    def test_several(self, rng: np.random.Generator) -> None:
        source = model(
            [
                *(node("MatMul", "audio w", "a"), node("MatMul", "knobs v", "b")),
                *(node("Add", "a b", "loud"), node("Tanh", "loud", "soft")),
            ],
            {"audio": ["B", "T", 5], "knobs": ["B", "T", 2]},
            "soft loud",
            {"w": floats(rng, 5, 3), "v": floats(rng, 2, 3)},
        )
        made = agree(source, rng)
        assert [i.name for i in made.graph.inputs] == ["audio", "knobs"]
        assert list(made.graph.outputs) == ["soft", "loud"]

    @pytest.mark.parametrize("name", ["F2::/decoder/rnn/LSTM", "model/lstm:0", "rnn lstm", "größe"])
    def test_names_of_any_character(self, name: str, rng: np.random.Generator) -> None:
        weights = {"W": floats(rng, 1, 16, 3), "R": floats(rng, 1, 16, 4)}
        lstm = helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=4, name=name)
        source = model([lstm, node("Squeeze", "y one", "z")], {"x": ["T", 1, 3]}, "z", {
            **weights, "one": np.array([1])})  # fmt: skip
        agree(source, rng)


class TestStates:
    def written_out(self, rng: np.random.Generator, names: tuple[str, str, str, str]) -> Any:
        """One step of an LSTM in products and gates."""
        h, c, hn, cn = names
        nodes = [
            *(node("MatMul", "x W", "a"), node("MatMul", f"{h} U", "b"), node("Add", "a b", "ab")),
            *(node("Add", "ab B", "z"), node("Split", "z", "zi zf zg zo", axis=-1)),
            *(node("Sigmoid", "zi", "i"), node("Sigmoid", "zf", "f"), node("Tanh", "zg", "g")),
            *(node("Sigmoid", "zo", "o"), node("Mul", f"f {c}", "fc"), node("Mul", "i g", "ig")),
            *(node("Add", "fc ig", cn), node("Tanh", cn, "tc"), node("Mul", "o tc", hn)),
            node("MatMul", f"{hn} D", "y"),
        ]
        weights = {"W": (3, 16), "U": (4, 16), "B": (16,), "D": (4, 2)}
        return model(
            nodes,
            {"x": ["N", 3], h: ["N", 4], c: ["N", 4]},
            f"y {cn} {hn}",
            {name: floats(rng, *shape) for name, shape in weights.items()},
            version=13,
        )

    @pytest.mark.parametrize(
        "names",
        [
            ("h", "c", "hn", "cn"),
            ("h_in", "c_in", "h_out", "c_out"),
            ("hState", "cState", "hStateNext", "cStateNext"),
            ("past.h0", "past.c0", "present.h0", "present.c0"),
        ],
    )
    def test_by_their_names(
        self, names: tuple[str, str, str, str], rng: np.random.Generator
    ) -> None:
        """The outputs stand the other way round: by their order they would be exchanged."""
        made = agree(self.written_out(rng, names), rng)
        assert made.call is not None
        pairs = {a.name: a.value for a in made.call.arguments if a.role == "state"}
        assert pairs == {names[0]: names[2], names[1]: names[3]}
        assert kinds(made) == ["linear", "lstm"] or kinds(made) == ["lstm", "linear"]

    def test_that_no_layer_keeps(self, rng: np.random.Generator) -> None:
        """A leaky mean, and a count of what was above it."""
        source = model(
            [
                *(
                    node("Mul", "mean decay", "a"),
                    node("Mul", "x rest", "b"),
                    node("Add", "a b", "mean_out"),
                ),
                *(node("Greater", "x mean_out", "more"), node("Cast", "more", "one", to=F)),
                *(node("Add", "count one", "count_out"), node("Sub", "x mean_out", "y")),
            ],
            {"x": ["N", 3], "mean": ["N", 3], "count": ["N", 3]},
            "y mean_out count_out",
            {"decay": np.float32(0.9), "rest": np.float32(0.1)},
        )
        made = agree(source, rng, steps=30)
        assert "delay" in kinds(made)

    def test_a_cache_of_a_convolution(self, rng: np.random.Generator) -> None:
        source = model(
            [
                *(
                    node("Unsqueeze", "x last", "column"),
                    node("Concat", "cache column", "all", axis=2),
                ),
                *(node("Conv", "all k", "a"), node("Squeeze", "a last", "y")),
                node("Slice", "all one end last", "cache_out"),
            ],
            {"x": ["N", 5], "cache": ["N", 5, 3]},
            "y cache_out",
            {"k": floats(rng, 2, 5, 4), "last": [2], "one": [1], "end": [9]},
        )
        assert kinds(agree(source, rng, steps=20)) == ["convolution"]


class TestFiles:
    def test_of_empty_entries(self, tmp_path: Path) -> None:
        """A file of 6 MB would become 600 MB of objects."""
        graph_field, node_field = b"\x3a", b"\x0a"
        entries = (node_field + b"\x00") * (3 * 2**20)
        size = len(entries)
        length = bytes(
            [size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21]
        )
        path = tmp_path / "empty.onnx"
        path.write_bytes(graph_field + length + entries)
        tracemalloc.start()
        try:
            message = refusal(path)
            assert tracemalloc.get_traced_memory()[1] < 4 * size
        finally:
            tracemalloc.stop()
        assert "it has more than 262144 parts" in message

    def test_nested_without_end(self, tmp_path: Path) -> None:
        data = b""
        for _ in range(200):  # graph of an attribute of a node of a graph ...
            for field in (b"\x32", b"\x2a", b"\x0a"):
                n = len(data)
                size = bytes([n & 127 | 128, n >> 7 & 127 | 128, n >> 14])
                data = field + size + data
        path = tmp_path / "deep.onnx"
        n = len(data)
        path.write_bytes(b"\x3a" + bytes([n & 127 | 128, n >> 7 & 127 | 128, n >> 14]) + data)
        assert "parts nested more than 64 deep" in refusal(path)


def test_an_operator_of_every_kind(rng: np.random.Generator) -> None:
    """Operators that the tables of rows have not, one after the other."""
    x = ["T", "B", 6]
    cases: list[tuple[list[Any], dict[str, Any], int]] = [
        ([node("Log", "p", "y"), node("Exp", "x", "p")][::-1], {}, 17),
        (
            [node("Greater", "x z", "c"), node("Where", "c x w", "y")],
            {"z": np.float32(0), "w": floats(rng, 6)},
            17,
        ),
        (
            [node("Greater", "x z", "c"), node("Not", "c", "n"), node("Cast", "n", "y", to=F)],
            {"z": np.float32(0)},
            17,
        ),
        (
            [
                node("Less", "x a", "c"),
                node("Greater", "x b", "d"),
                node("And", "c d", "e"),
                node("Or", "e d", "g"),
                node("Cast", "g", "y", to=F),
            ],
            {"a": np.float32(0.5), "b": np.float32(-0.5)},
            17,
        ),
        (
            [node("Max", "x a b", "m"), node("Min", "m x", "y")],
            {"a": floats(rng, 6), "b": np.float32(0)},
            17,
        ),
        ([node("Mean", "x a", "y")], {"a": floats(rng, 6)}, 17),
        ([node("HardSwish", "x", "y")], {}, 17),
        ([node("Selu", "x", "y")], {}, 17),
        ([node("Celu", "x", "y", alpha=0.7)], {}, 17),
        ([node("Mish", "x", "y")], {}, 18),
        ([node("Ceil", "x", "y")], {}, 17),
        ([node("Clip", "x a", "y")], {"a": np.float32(-0.3)}, 17),
        ([node("ReduceL1", "x i", "y")], {"i": [2]}, 18),
        ([node("ReduceL2", "x i", "y")], {"i": [2]}, 18),
        ([node("ReduceMax", "x i", "y")], {"i": [-1]}, 18),
        ([node("ReduceMin", "x i", "y")], {"i": [-1]}, 18),
        ([node("ReduceLogSumExp", "x i", "y")], {"i": [2]}, 18),
        ([node("LpNormalization", "x", "y", axis=-1, p=2)], {}, 17),
        ([node("Tile", "x r", "y")], {"r": [1, 1, 3]}, 17),
        ([node("Gather", "x i", "y", axis=2)], {"i": [5, 0, 0]}, 17),
        (
            [node("GatherND", "t i", "y"), node("Transpose", "x", "t", perm=[2, 0, 1])][::-1],
            {"i": [[1], [4]]},
            17,
        ),
        (
            [
                node("ScatterND", "t i u", "y"),
                node("Transpose", "x", "t", perm=[2, 0, 1]),
                node("Neg", "v", "u"),
                node("Slice", "t a b", "v"),
            ],
            {"i": [[1]], "a": [0], "b": [1]},
            17,
        ),
        ([node("Pad", "x p v", "y")], {"p": [0, 0, 1, 0, 0, 2], "v": np.float32(0.5)}, 17),
        (
            [node("Trilu", "r k", "y"), node("Reshape", "x s", "r")][::-1],
            {"s": [0, 0, 2, 3], "k": np.int64(0)},
            17,
        ),
        ([node("Einsum", "x w", "y", equation="tbi,io->tbo")], {"w": floats(rng, 6, 4)}, 17),
        (
            [
                node("MatMul", "r q", "y"),
                node("Transpose", "r", "q", perm=[0, 1, 3, 2]),
                node("Reshape", "x s", "r"),
            ][::-1],
            {"s": [0, 0, 2, 3]},
            17,
        ),
        ([node("CumSum", "x i", "y")], {"i": np.int64(2)}, 17),
        (
            [node("Softmax", "r", "y", axis=2), node("Reshape", "x s", "r")][::-1],
            {"s": [0, 0, 2, 3]},
            11,
        ),
    ]
    for nodes, tensors, version in cases:
        last = next(i for i, n in enumerate(nodes) if "y" in n.output)
        ordered = _in_order(nodes) if last != len(nodes) - 1 else nodes
        agree(model(ordered, {"x": x}, "y", tensors, version), rng)


def _in_order(nodes: list[Any]) -> list[Any]:
    """Nodes, each after those that it reads."""
    left, made, done = list(nodes), set[str](), []
    gives = {name for n in nodes for name in n.output}
    while left:
        ready = next(n for n in left if not (set(n.input) & gives) - made)
        left.remove(ready)
        made |= set(ready.output)
        done.append(ready)
    return done


@pytest.mark.parametrize(
    ("nodes", "tensors"),
    [
        ([node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])], {}),
        ([node("MaxPool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
        ([node("AveragePool", "x", "y", kernel_shape=[2, 3], pads=[0, 1, 0, 1])], {}),
        ([node("AveragePool", "x", "y", kernel_shape=[3, 3], auto_pad="SAME_UPPER")], {}),
        ([node("GlobalAveragePool", "x", "y")], {}),
        (
            [node("ConvTranspose", "x k", "y", strides=[2, 2], output_padding=[1, 1])],
            {"k": (4, 2, 3, 3)},
        ),
        (
            [node("ConvTranspose", "x k", "y", strides=[1, 2], output_shape=[6, 16])],
            {"k": (4, 2, 3, 3)},
        ),
        ([node("Conv", "x k b", "y", group=2, pads=[1, 0, 1, 2])], {"k": (6, 2, 3, 3), "b": (6,)}),
        ([node("InstanceNormalization", "x a b", "y")], {"a": (4,), "b": (4,)}),
        ([node("BatchNormalization", "x a b a v", "y")], {"a": (4,), "b": (4,), "v": (4,)}),
        ([node("DepthToSpace", "x", "y", blocksize=2)], {}),
        ([node("SpaceToDepth", "x", "y", blocksize=2)], {}),
        (
            [
                node(
                    "Resize",
                    "x _ s",
                    "y",
                    mode="nearest",
                    nearest_mode="floor",
                    coordinate_transformation_mode="asymmetric",
                )
            ],
            {"s": None},
        ),
    ],
)
def test_operators_on_images(nodes: Any, tensors: Any, rng: np.random.Generator) -> None:
    arrays = {
        name: np.array([1, 1, 2, 3], np.float32)
        if shape is None
        else np.abs(floats(rng, *shape)) + 0.1
        for name, shape in tensors.items()
    }
    agree(model(nodes, {"x": ["B", 4, 6, 8]}, "y", arrays), rng)


@pytest.mark.parametrize("op", ["NonZero", "TopK", "ArgMax", "QuantizeLinear", "Det", "Hardmax"])
def test_what_no_layer_computes_is_refused_by_name(op: str) -> None:
    inputs = {"TopK": "x k", "QuantizeLinear": "x s"}.get(op, "x")
    outputs = "y i" if op == "TopK" else "y"
    source = model(
        [node(op, inputs, outputs)], {"x": ["B", 6, 6]}, "y", {"k": [1], "s": np.float32(1)}
    )
    assert refusal(source).startswith(f"node 'y' ({op}) ")
