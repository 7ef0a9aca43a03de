"""PyTorch's weights as an ONNX model, states passed in and out: what the runtimes here are given.

Inputs are ``x`` (T, B, I), or (T, B) tokens, and ``h0``, ``c0``, ``h1``, ... of one layer each;
outputs are ``y`` and, in the same order, ``h0_out``, ``c0_out``, ...
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# PyTorch's gate blocks in the order ONNX wants them.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
STATES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


def quantized(name: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """A matrix (outputs, inputs) as ``DynamicQuantizeLSTM`` takes it, under three names: numbers in
    int8, a scale for each output, and zeros for their zero points."""
    scale = np.abs(matrix).max(axis=1) / 127
    numbers = np.rint(matrix / scale[:, None]).astype(np.int8)
    return {
        name: np.ascontiguousarray(numbers.T)[None],
        f"{name}_scale": scale[None].astype(np.float32),
        f"{name}_zero": np.zeros((1, len(matrix)), np.int8),
    }


def onnx_model(
    kind: str,
    weights: Mapping[str, np.ndarray],
    T: int,
    B: int,
    *,
    table: np.ndarray | None = None,
    linear: tuple[np.ndarray, np.ndarray] | None = None,
    int8: bool = False,
) -> bytes:
    """Build and serialise the model.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    weights : mapping of str to array
        The state dict of the stack, under PyTorch's names.
    T, B : int
        Steps and rows of a call, which are fixed in the graph.
    table : array (V, I), optional
        A row for each token: the input is int64 tokens.
    linear : (array (O, H), array (O,)), optional
        Weight and bias of a linear layer behind the stack.
    int8 : bool
        Whether an LSTM's matrices are stored in int8: ``DynamicQuantizeLSTM``, an operator of
        onnxruntime's own.

    Raises
    ------
    ImportError
        If onnx is not installed.
    """
    from onnx import TensorProto, helper, numpy_helper

    layers = sum(name.startswith("weight_hh_l") for name in weights)
    gates, H = len(ORDER[kind]), weights["weight_hh_l0"].shape[1]

    def reordered(array: np.ndarray) -> np.ndarray:
        blocks = np.split(array, gates)
        return np.concatenate([blocks[g] for g in ORDER[kind]])

    constants = {"axis": np.array([1], np.int64)}
    nodes, inputs, outputs = [], [], []
    if table is None:
        shape = [T, B, weights["weight_ih_l0"].shape[1]]
        inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    else:
        inputs.append(helper.make_tensor_value_info("x", TensorProto.INT64, [T, B]))
        constants["table"] = table
        nodes.append(helper.make_node("Gather", ["table", "x"], ["features"]))
    given = "x" if table is None else "features"
    for n in range(layers):
        bias = np.concatenate([reordered(weights[f"bias_{s}_l{n}"]) for s in ("ih", "hh")])
        before = [f"{state}{n}" for state in STATES[kind]]
        matrices = {
            f"W{n}": reordered(weights[f"weight_ih_l{n}"]),
            f"R{n}": reordered(weights[f"weight_hh_l{n}"]),
        }
        constants[f"B{n}"] = bias[None]
        given_to = [given, *matrices, f"B{n}", "", *before]
        if int8:
            stored = {name: quantized(name, matrix) for name, matrix in matrices.items()}
            for of_one in stored.values():
                constants |= of_one
            given_to += ["", *(name for of_one in stored.values() for name in list(of_one)[1:])]
        else:
            constants |= {name: matrix[None] for name, matrix in matrices.items()}
        after = [f"{name}_out" for name in before]
        for names, target in ((before, inputs), (after, outputs)):
            for name in names:
                target.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, B, H]))
        # PyTorch's GRU applies r to the product with h and its bias, not to h.
        options = {"linear_before_reset": 1} if kind == "gru" else {}
        nodes += [
            helper.make_node(
                "DynamicQuantizeLSTM" if int8 else kind.upper(),
                given_to,
                [f"directions{n}", *after],
                domain="com.microsoft" if int8 else "",
                hidden_size=H,
                **options,
            ),
            helper.make_node("Squeeze", [f"directions{n}", "axis"], [f"y{n}"]),
        ]
        given = f"y{n}"
    O = H  # noqa: E741
    if linear is not None:
        constants |= {"linear_weight": np.ascontiguousarray(linear[0].T), "linear_bias": linear[1]}
        O = len(linear[1])  # noqa: E741
        nodes.append(helper.make_node("MatMul", [given, "linear_weight"], ["product"]))
        nodes.append(helper.make_node("Add", ["product", "linear_bias"], ["sum"]))
        given = "sum"
    nodes.append(helper.make_node("Identity", [given], ["y"]))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [T, B, O])
    initial = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "stack", inputs, [y, *outputs], initial)
    opsets = [helper.make_opsetid("", 14)]
    if int8:
        opsets.append(helper.make_opsetid("com.microsoft", 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    data: bytes = model.SerializeToString()
    return data
