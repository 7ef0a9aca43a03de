"""ONNX files and graphs that are refused, each with what is said of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_zoo import draw, graph  # noqa: E402

from fastlstm import spec  # noqa: E402
from fastlstm.errors import ConvertError  # noqa: E402
from fastlstm.sources.onnx import is_model, read  # noqa: E402

Array = np.ndarray

W = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
K = np.linspace(-1, 1, 4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)


def refusal(model: Any) -> str:
    with pytest.raises(ConvertError) as caught:
        read(model)
    return str(caught.value)


def arrays(constants: dict[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in constants.items()}


# --- files


def saved(folder: Path, model: Any, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def small() -> Any:
    return graph([("MatMul", "x w", "y", {})], constants={"w": W})


def external(model: Any, location: str, **entries: Any) -> Any:
    """A model whose first tensor is elsewhere."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return model


class TestFiles:
    def test_path_or_model(self, tmp_path):
        path = saved(tmp_path, small())
        for source in (path, str(path), small()):
            made = read(source)
            assert made.graph.nodes == (spec.Linear("matmul_0", 6, 4, bias=False)("x"),)
            assert np.array_equal(made.tensors["matmul_0.weight"], W.T)
        assert is_model(small())
        assert not is_model(path)

    @pytest.mark.parametrize(
        "data", [b"\xff" * 40, b"PK\x03\x04" + bytes(60), b"\x0a\x05ab"], ids=["ff", "zip", "short"]
    )
    def test_of_another_kind(self, tmp_path, data):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        message = refusal(path)
        assert message.startswith(f"{str(path)!r} is no ONNX model: ")
        assert message.endswith("; it is damaged, copy it again")

    def test_empty(self, tmp_path):
        path = tmp_path / "model.onnx"
        path.touch()
        assert refusal(path) == "the ONNX model has no nodes; expected a graph"

    def test_cut_short(self, tmp_path):
        data = small().SerializeToString()
        path = tmp_path / "model.onnx"
        for length in range(1, len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(ConvertError):
                read(path)

    def test_folder(self, tmp_path):
        assert refusal(tmp_path) == (
            f"{str(tmp_path)!r} is a folder or a device; expected an ONNX file"
        )

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "model.onnx")

    def test_without_the_package(self, tmp_path, monkeypatch):
        path = saved(tmp_path, small())
        monkeypatch.setitem(sys.modules, "onnx", None)
        assert refusal(path) == "reading ONNX needs the onnx package: pip install 'fastlstm[onnx]'"

    def test_importing_fastlstm_imports_no_onnx(self, python):
        python("import sys, fastlstm.sources.onnx; assert 'onnx' not in sys.modules")


class TestExternalData:
    def test_in_the_folder(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "weights").write_bytes(b"1234" + W.tobytes() + b"5")
        model = external(small(), "data/weights", offset=4, length=W.nbytes)
        tensors = read(saved(tmp_path, model)).tensors
        assert np.array_equal(tensors["matmul_0.weight"], W.T)

    def test_of_a_model_that_is_in_memory(self):
        assert refusal(external(small(), "weights")) == (
            "tensor 'w' is external data, and this model has no folder; give the path of its file"
        )

    @pytest.mark.parametrize(
        "location", ["/etc/passwd", "../weights", "a/../../weights", "C:/weights", "..\\w", ""]
    )
    def test_elsewhere(self, tmp_path, location):
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "weights").write_bytes(W.tobytes())
        assert refusal(saved(folder, external(small(), location))) == (
            f"tensor 'w' is external data in {location!r}; expected a file in the folder of the "
            f"model"
        )

    @pytest.mark.parametrize("what", ["file", "folder"])
    def test_symbolic_link_out_of_the_folder(self, tmp_path, what):
        folder, other = tmp_path / "model", tmp_path / "other"
        folder.mkdir()
        other.mkdir()
        (other / "weights").write_bytes(W.tobytes())
        location = "weights" if what == "file" else "link/weights"
        if what == "file":
            os.symlink(other / "weights", folder / "weights")
        else:
            os.symlink(other, folder / "link")
        assert refusal(saved(folder, external(small(), location))) == (
            f"tensor 'w' is external data in {location!r}, a symbolic link that leads out of the "
            f"folder of the model; expected the file itself there"
        )

    def test_symbolic_link_within_the_folder(self, tmp_path):
        (tmp_path / "real").write_bytes(W.tobytes())
        os.symlink("real", tmp_path / "weights")
        tensors = read(saved(tmp_path, external(small(), "weights"))).tensors
        assert np.array_equal(tensors["matmul_0.weight"], W.T)

    @pytest.mark.parametrize("there", [False, True])
    def test_no_file(self, tmp_path, there):
        if there:
            (tmp_path / "weights").mkdir()
        assert refusal(saved(tmp_path, external(small(), "weights"))) == (
            "tensor 'w' is external data in 'weights', which is no file in the folder of the "
            "model; copy it there"
        )

    @pytest.mark.parametrize(
        ("offset", "length"), [(1, 96), (0, 95), (0, 10**12), (-1, 96), ("x", 96), (0, "all")]
    )
    def test_beyond_the_file(self, tmp_path, offset, length):
        (tmp_path / "weights").write_bytes(W.tobytes())
        model = external(small(), "weights", offset=offset, length=length)
        assert refusal(saved(tmp_path, model)) == (
            f"tensor 'w' takes 96 bytes, and is external data at offset {str(offset)!r} of length "
            f"{str(length)!r} in a file of 96 bytes; expected it to fit, and no two tensors to "
            f"overlap"
        )

    def test_overlapping(self, tmp_path):
        (tmp_path / "weights").write_bytes(W.tobytes())
        model = graph([("Gemm", "x w v", "y", {})], ("B", 6), {"w": W, "v": W[:1]})
        external(model, "weights")
        tensor = model.graph.initializer[1]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "weights"
        assert refusal(saved(tmp_path, model)) == (
            "tensor 'v' takes 16 bytes, and is external data at offset '0' of length 'unknown' in "
            "a file of 96 bytes; expected it to fit, and no two tensors to overlap"
        )


class TestTensors:
    def tensor(self, change: Callable[[Any], None]) -> str:
        model = small()
        change(model.graph.initializer[0])
        return refusal(model)

    def test_fewer_bytes_than_its_shape(self):
        def change(tensor: Any) -> None:
            tensor.raw_data = tensor.raw_data[:-1]

        assert self.tensor(change) == (
            "tensor 'w' of shape (6, 4) and float32 holds 95 bytes; expected 96: the file is "
            "damaged"
        )

    def test_a_huge_dimension(self):
        def change(tensor: Any) -> None:
            tensor.dims[0] = 2**31 - 1

        assert self.tensor(change) == (
            "tensor 'w' of shape (2147483647, 4) and float32 holds 96 bytes; expected 34359738352: "
            "the file is damaged"
        )

    @pytest.mark.parametrize("size", [2**31, 2**62, -1])
    def test_a_dimension_that_no_array_has(self, size):
        def change(tensor: Any) -> None:
            tensor.dims[0] = size

        assert self.tensor(change) == (
            f"tensor 'w' has shape ({size}, 4); expected at most 8 axes, each from 0 to 2147483647"
        )

    def test_too_many_dimensions(self):
        def change(tensor: Any) -> None:
            tensor.dims.extend([1] * 7)

        assert self.tensor(change) == (
            "tensor 'w' has shape (6, 4, 1, 1, 1, 1, 1, 1, 1); expected at most 8 axes, each from "
            "0 to 2147483647"
        )

    def test_fewer_numbers_than_its_shape(self):
        def change(tensor: Any) -> None:
            tensor.ClearField("raw_data")
            tensor.float_data.extend([1.0] * 23)

        assert self.tensor(change) == (
            "tensor 'w' of shape (6, 4) holds 23 numbers; expected 24: the file is damaged"
        )

    def test_segment(self):
        def change(tensor: Any) -> None:
            tensor.segment.begin = 0

        assert self.tensor(change) == "tensor 'w' is a segment of another; expected it whole"

    def test_text(self):
        def change(tensor: Any) -> None:
            tensor.data_type = TensorProto.STRING

        assert self.tensor(change) == (
            "tensor 'w' is of data type 8; expected one of float32, float16, float64, bfloat16, "
            "uint8, int8, uint16, int16, int32, int64, uint32, uint64, bool"
        )

    def test_integers(self):
        model = graph([("MatMul", "x w", "y", {})], constants={"w": np.ones((6, 4), np.int32)})
        assert refusal(model) == (
            "node 'matmul_0' (MatMul) has for its input number 1, 'w', an array of int32 and shape "
            "(6, 4); expected floats"
        )

    @pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
    @pytest.mark.parametrize("raw", [False, True])
    def test_floats_of_every_kind(self, kind, raw, rng):
        values = np.round(rng.uniform(-1, 1, (6, 4)) * 64) / 64  # which all of them hold
        model = small()
        if raw:
            import ml_dtypes  # which onnx needs itself

            dtype = {"BFLOAT16": ml_dtypes.bfloat16, "FLOAT16": np.float16}
            dtype |= {"FLOAT": np.float32, "DOUBLE": np.float64}
            tensor = numpy_helper.from_array(values.astype(dtype[kind]), "w")
        else:
            tensor = helper.make_tensor("w", getattr(TensorProto, kind), (6, 4), values.reshape(-1))
        model.graph.initializer[0].CopyFrom(tensor)
        tensors = read(model).tensors
        assert np.array_equal(tensors["matmul_0.weight"], values.T)

    def test_two_of_one_name(self):
        model = small()
        model.graph.initializer.append(model.graph.initializer[0])
        assert refusal(model) == "two tensors are called 'w'; expected one"

    def test_sparse(self):
        model = small()
        model.graph.sparse_initializer.add()
        assert refusal(model) == "the ONNX model has sparse tensors; expected dense ones"


class TestGraph:
    def test_a_cycle(self):
        model = graph([("Add", "x b", "a", {}), ("Tanh", "a", "b", {}), ("Tanh", "b", "y", {})])
        assert refusal(model) == (
            "node 'add_0' (Add) reads 'b', which node 'tanh_1' (Tanh) gives only later; expected "
            "nodes in order, without a cycle"
        )

    def test_of_itself(self):
        assert refusal(graph([("Add", "x y", "y", {})])) == (
            "node 'add_0' (Add) reads 'y', which node 'add_0' (Add) gives only later; expected "
            "nodes in order, without a cycle"
        )

    def test_a_name_that_is_nowhere(self):
        assert refusal(graph([("Add", "x b", "y", {})])) == (
            "node 'add_0' (Add) reads 'b', which nothing gives; expected an input, a tensor or the "
            "output of a node"
        )

    def test_a_name_given_twice(self):
        model = graph([("Tanh", "x", "y", {}), ("Relu", "x", "y", {})])
        assert refusal(model) == (
            "node 'relu_1' (Relu) gives 'y', which is there already; expected each name once"
        )

    def test_an_output_that_is_nowhere(self):
        assert refusal(graph([("Tanh", "x", "z", {})])) == (
            "output 'y' is given by no node; expected one"
        )

    def test_no_outputs(self):
        assert refusal(graph([("Tanh", "x", "y", {})], outputs=())) == (
            "the ONNX model has no outputs; expected one"
        )

    def test_a_constant_output(self):
        model = graph([("Tanh", "x", "y", {})], constants={"w": W}, outputs=("y", "w"))
        assert refusal(model) == "output 'w' is constant; expected one that depends on the input"

    def test_no_input(self):
        model = graph([("Tanh", "w", "y", {})], constants={"w": W})
        assert refusal(model) == (
            "the ONNX model has no input of data: of its inputs x are fixed, unused or lengths; "
            "expected one"
        )

    def test_inputs_of_one_name(self):
        model = graph([("Tanh", "x", "y", {})], inputs=[("x", (3,))])
        assert refusal(model) == "two inputs are called 'x'; expected one"

    def test_input_of_no_rank(self):
        """Its axes are found by what reads it."""
        model = graph([("MatMul", "x w", "y", {})], constants={"w": W})
        model.graph.input[0].type.tensor_type.ClearField("shape")
        assert read(model).graph.inputs[0].shape == (6,)

    @pytest.mark.parametrize("size", [0, -3, 2**40])
    def test_size_of_an_input(self, size):
        assert refusal(graph([("Tanh", "x", "y", {})], (size, 6))) == (
            f"input 'x' has shape ({size}, 6); expected sizes from 1 to 2147483647"
        )

    def test_input_of_text(self):
        model = graph([("Tanh", "x", "y", {})], kind=TensorProto.STRING)
        assert refusal(model) == (
            "input 'x' is no array of numbers; expected one of floats or integers"
        )

    def test_a_tensor_that_is_listed_as_input(self):
        """As all were, before version 4 of the format."""
        model = small()
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (6, 4)))
        assert len(read(model).graph.nodes) == 1

    def test_nodes_that_nothing_needs_do_not_matter(self):
        model = graph([("Tanh", "x", "y", {}), ("NonZero", "x", "z", {})])
        assert len(read(model).graph.nodes) == 1

    def test_too_many_nodes(self):
        nodes = [("Tanh", f"x{i or ''}", f"x{i + 1}", {}) for i in range(5001)]
        assert refusal(graph(nodes, outputs=("x5001",))) == (
            "the ONNX model has 5001 nodes or more; at most 5000 are supported"
        )

    @pytest.mark.parametrize("version", [0, 10**6, None])
    def test_version(self, version):
        model = small()
        newest = onnx.defs.onnx_opset_version()
        if version is None:
            del model.opset_import[:]
        else:
            model.opset_import[0].version = version
        assert refusal(model) == (
            f"the ONNX model asks for the operators of version "
            f"{'none' if version is None else version}; expected one from 1 to {newest}, which is "
            f"what the installed onnx package knows"
        )

    def test_another_domain(self):
        model = graph([("Tanh", "x", "y", {})])
        model.graph.node[0].domain = "com.microsoft"
        assert refusal(model) == (
            "node 'tanh_0' (Tanh) is of the domain 'com.microsoft'; expected an operator of ONNX "
            "itself"
        )

    def test_an_operator_that_no_layer_computes(self):
        assert refusal(graph([("Det", "x", "y", {})])) == (
            "node 'det_0' (Det) is of an operator that no layer computes"
        )

    def test_an_operator_that_there_is_not_in_this_version(self):
        assert refusal(graph([("Mish", "x", "y", {})], version=17)) == (
            "node 'mish_0' (Mish) is of no operator of ONNX's version 17; expected one that it has"
        )

    def test_names_on_a_terminal(self):
        model = graph([("Det", "x", "y", {})])
        model.graph.node[0].name = "\x1b[2J" + "a" * 1000
        message = refusal(model)
        assert "\x1b" not in message
        assert "a" * 201 not in message


def chosen(condition: Array | None, *branches: Any) -> Any:
    """A model whose If takes one of two branches, by a constant or by the input."""
    nodes: list[Any] = [("Tanh", "x", "t", {})]
    if condition is None:
        nodes.append(("Identity", "t", "condition", {}))
    model = graph(nodes, constants={} if condition is None else {"condition": condition})
    graphs = [
        helper.make_graph(
            [helper.make_node(*branch)],
            "branch",
            [],
            [helper.make_tensor_value_info(branch[2][0], TensorProto.FLOAT, None)],
        )
        for branch in branches
    ]
    model.graph.node.append(
        helper.make_node(
            "If", ["condition"], ["y"], "if", then_branch=graphs[0], else_branch=graphs[1]
        )
    )
    return model


class TestControlFlow:
    @pytest.mark.parametrize("condition", [False, True])
    def test_a_choice_that_is_known_is_none(self, condition):
        model = chosen(
            np.array(condition), ("Relu", ["t"], ["a"], "relu"), ("Sigmoid", ["t"], ["b"], "other")
        )
        assert read(model).graph.nodes[1].layer.function == ("relu" if condition else "sigmoid")

    def test_a_choice(self):
        model = chosen(None, ("Relu", ["t"], ["a"]), ("Sigmoid", ["t"], ["b"]))
        assert refusal(model) == (
            "node 'if' (If) chooses by what the model computes; expected a condition that is "
            "constant"
        )

    def test_a_branch_that_reads_what_is_not_there(self):
        model = chosen(np.array(True), ("Relu", ["u"], ["a"]), ("Relu", ["t"], ["b"]))
        assert refusal(model) == (
            "node 'if' (If) reads 'u', which nothing gives; expected an input, a tensor or the "
            "output of a node"
        )

    def test_a_loop(self):
        body = helper.make_graph(
            [helper.make_node("Tanh", ["v"], ["w"])],
            "body",
            [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
        )
        model = graph([("Loop", "x", "y", {"body": body})])
        assert refusal(model) == (
            "node 'loop_0' (Loop) runs as often as the model computes; expected a constant"
        )


class TestAttributes:
    def test_of_another_type(self):
        assert refusal(graph([("Transpose", "x", "y", {"perm": 1})])) == (
            "node 'transpose_0' (Transpose) has the attribute 'perm' of type int; expected it of "
            "type ints"
        )

    def test_of_no_type(self):
        model = graph([("Elu", "x", "y", {"alpha": 1.0})])
        model.graph.node[0].attribute[0].ClearField("type")
        assert refusal(model) == (
            "node 'elu_0' (Elu) has the attribute 'alpha' of type none; expected it of type float"
        )

    def test_unknown(self):
        assert refusal(graph([("Relu", "x", "y", {"alpha": 1.0})])) == (
            "node 'relu_0' (Relu) has the attribute 'alpha', which is not supported"
        )

    def test_twice(self):
        model = graph([("Elu", "x", "y", {"alpha": 1.0})])
        model.graph.node[0].attribute.append(model.graph.node[0].attribute[0])
        assert refusal(model) == "node 'elu_0' (Elu) has the attribute 'alpha' twice"

    def test_of_a_function(self):
        model = graph([("Elu", "x", "y", {"alpha": 1.0})])
        model.graph.node[0].attribute[0].ref_attr_name = "alpha"
        assert refusal(model) == (
            "node 'elu_0' (Elu) has the attribute 'alpha' of type float; expected it of type float"
        )

    def test_that_is_no_text(self):
        model = graph([("Gelu", "x", "y", {"approximate": "tanh"})])
        model.graph.node[0].attribute[0].s = b"\xff\xfe"
        assert refusal(model) == (r"node 'gelu_0' (Gelu) has the text b'\xff\xfe'; expected UTF-8")

    def test_not_finite(self):
        assert refusal(graph([("Elu", "x", "y", {"alpha": float("nan")})])) == (
            "node 'elu_0' (Elu) contradicts what it reads: layer 'elu_0': function "
            "is 'elu(nan)'; expected elu(alpha), "
            "finite numbers"
        )


V = np.ones(6, np.float32)

# Nodes on x (T, B, 6), constants and version; what is said.
REFUSED: dict[str, tuple[list[Any], dict[str, Any], int, str]] = {
    "Gemm of a stack": (
        [("Gemm", "x w", "y", {})],
        {"w": W},
        13,
        "node 'gemm_0' (Gemm) multiplies arrays of shapes (2, 11, 6) and (6, 4); expected"
        " two matrices",
    ),
    "MatMul of two": (
        [("MatMul", "x x", "y", {})],
        {},
        13,
        "node 'matmul_0' (MatMul) is not converted: matrices of 11 x 6 and 11 x 6 have no product",
    ),
    "Add of shapes": (
        [("Add", "x b", "y", {})],
        {"b": V[:4]},
        13,
        "node 'add_0' (Add) is not converted: arrays of shapes (2, 11, 6) and (4,) do not"
        " broadcast",
    ),
    "Conv over two axes": (
        [("Conv", "x k", "y", {})],
        {"k": np.ones((4, 6, 3, 3), np.float32)},
        11,
        "node 'conv_0' (Conv) has a weight of shape (4, 6, 3, 3) and is given an array of"
        " (2, 11, 6); expected as many axes of each, at least 3",
    ),
    "kernel_shape": (
        [("Conv", "x k", "y", {"kernel_shape": [5]})],
        {"k": K},
        11,
        "node 'conv_0' (Conv) has kernel_shape [5] and a weight of shape (4, 6, 3); expected the "
        "same size",
    ),
    "strides": (
        [("Conv", "x k", "y", {"strides": [0]})],
        {"k": K},
        11,
        "node 'conv_0' (Conv) has strides [0]; expected 1 of at least 1",
    ),
    "group": (
        [("Conv", "x k", "y", {"group": 3})],
        {"k": K},
        11,
        "node 'conv_0' (Conv) has 3 groups and 4 channels; expected a divisor, and a bias for each "
        "channel",
    ),
    "pads": (
        [("Conv", "x k", "y", {"pads": [1, 2, 3, 4]})],
        {"k": K},
        11,
        "node 'conv_0' (Conv) has pads [1, 2, 3, 4]; expected 2 of at least 0",
    ),
    "BatchNormalization that learns": (
        [("BatchNormalization", "x b b b b", "y", {"training_mode": 1})],
        {"b": V},
        15,
        "node 'batchnormalization_0' (BatchNormalization) is in training mode; expected an export "
        "for inference",
    ),
    "BatchNormalization of positions": (
        [("BatchNormalization", "x b b b b", "y", {"spatial": 0})],
        {"b": V},
        7,
        "node 'batchnormalization_0' (BatchNormalization) has numbers for each position "
        "(spatial=0); expected one for each channel",
    ),
    "LayerNormalization of unknown sizes": (
        [("LayerNormalization", "x b", "y", {"axis": 0})],
        {"b": V},
        17,
        "node 'layernormalization_0' (LayerNormalization) is not converted: rows of the "
        "batch are mixed, or one of them is taken alone",
    ),
    "statistics": (
        [("LayerNormalization", "x b", "z y", {})],
        {"b": V},
        17,
        "node 'layernormalization_0' (LayerNormalization) gives its statistics; expected its "
        "output alone",
    ),
    "Gather from a table that is none": (
        [("Gather", "w x", "y", {})],
        {"w": W},
        13,
        "node 'gather_0' (Gather) is not converted: tokens are looked up in a table, and "
        "are given as real numbers",
    ),
    "Gelu": (
        [("Gelu", "x", "y", {"approximate": "fast"})],
        {},
        20,
        "node 'gelu_0' (Gelu) has approximate 'fast'; expected 'none' or 'tanh'",
    ),
    "Pad of other axes": (
        [("Pad", "x p", "y", {})],
        {"p": [1, 0, 0, 0, 0, 0]},
        13,
        "output 'y' is not converted: rows of the batch are mixed, or one of them is taken alone",
    ),
    "Pad of too few": (
        [("Pad", "x p", "y", {})],
        {"p": [1, 0]},
        13,
        "node 'pad_0' (Pad) has 2 pads; expected two for each of 3 axes",
    ),
    "Reshape that keeps what is not there": (
        [("Reshape", "x s", "y", {})],
        {"s": [-1, 1, 1, 0]},
        13,
        "node 'reshape_0' (Reshape) keeps an axis that an array of shape (2, 11, 6) has not",
    ),
    "Flatten": (
        [("Flatten", "x", "y", {"axis": 4})],
        {},
        13,
        "node 'flatten_0' (Flatten) flattens from axis 4 of an array of 3; expected one it has",
    ),
    "Slice": (
        [("Slice", "x a a b", "y", {})],
        {"a": [0], "b": [0, 1]},
        13,
        "node 'slice_0' (Slice) has 1 starts, 1 ends, 2 axes and 1 steps; expected as many of "
        "each, and no step of 0",
    ),
    "Split": (
        [("Split", "x s", "y z", {"axis": 2})],
        {"s": [2, 3]},
        13,
        "node 'split_0' (Split) splits axis 2 of an array of shape (2, 11, 6) into [2, "
        "3]; expected all of it",
    ),
    "Dropout that drops": (
        [("Dropout", "x r t", "y", {})],
        {"r": np.float32(0.5), "t": np.array(True)},
        13,
        "node 'dropout_0' (Dropout) is in training mode; expected an export for inference",
    ),
    "a mask": (
        [("Dropout", "x", "z y", {})],
        {},
        13,
        "node 'dropout_0' (Dropout) gives its mask; expected its output alone",
    ),
    "Cast": (
        [("Cast", "x", "y", {"to": TensorProto.INT64})],
        {},
        13,
        "node 'cast_0' (Cast) casts floats that are computed to ints, which drops what is"
        " behind the point; expected one of float32, float16, float64, bfloat16, as the "
        "array is",
    ),
    "OneHot": (
        [("OneHot", "x d v", "y", {})],
        {"d": np.int64(4), "v": np.array([1, 0], np.float32)},
        13,
        "node 'onehot_0' (OneHot) has the depth 4, the values [1.0, 0.0] and axis -1; "
        "expected a depth, [0, 1], and the last axis",
    ),
    "shapes that do not fit": (
        [("Add", "w v", "a", {}), ("MatMul", "x a", "y", {})],
        {"w": W, "v": V},
        13,
        "node 'add_0' (Add) combines arrays of shapes (6, 4) and (6,); expected ones that can be "
        "repeated to one shape",
    ),
    "more numbers than stored": (
        [("Expand", "w s", "a", {}), ("MatMul", "x a", "y", {})],
        {"w": np.ones(1, np.float32), "s": [2**20, 2**10]},
        13,
        "node 'expand_0' (Expand) computes more numbers from constants than the file holds; "
        "expected a model whose weights are stored",
    ),
    "as many zeros": (
        [("ConstantOfShape", "s", "a", {}), ("MatMul", "x a", "y", {})],
        {"s": [2**31, 2**31]},
        13,
        "node 'constantofshape_0' (ConstantOfShape) computes more numbers from constants than the "
        "file holds; expected a model whose weights are stored",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    nodes, constants, version, message = REFUSED[case]
    assert refusal(graph(nodes, constants=arrays(constants), version=version)) == message


@pytest.mark.parametrize("part", range(10))
def test_bytes_changed_at_random(part, tmp_path, rng):
    """What becomes of them is a model or a refusal."""
    path = tmp_path / "model.onnx"
    operators = [draw(rng, op) for op in ("LSTM", "GRU", "RNN")]
    models = [small(), *(operator.model() for operator in operators)]
    for data in (model.SerializeToString() for model in models):
        for _ in range(20):
            changed = bytearray(data)
            for place in rng.integers(len(changed), size=rng.integers(1, 5)):
                changed[place] = rng.integers(256)
            path.write_bytes(changed)
            with contextlib.suppress(ConvertError):
                read(path)


def test_constants_that_double_each_time():
    """A few bytes a node would double them."""
    nodes = [("Concat", f"w{i or ''} w{i or ''}", f"w{i + 1}", {"axis": 0}) for i in range(60)]
    model = graph([*nodes, ("MatMul", "x w60", "y", {})], constants={"w": W})
    assert refusal(model) == (
        "node 'concat_14' (Concat) computes more numbers from constants than the file holds; "
        "expected a model whose weights are stored"
    )
