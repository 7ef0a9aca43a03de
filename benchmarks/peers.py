"""The same network in fastlstm and its peers, as functions of no arguments to be timed.

A case is a PyTorch module's options and the length of the input; every peer runs the very same
weights, on one thread, and what it returns is compared before anything is timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

import fastlstm

Call = Callable[[], Any]

torch.set_num_threads(1)

CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}
STACKS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}

# PyTorch's gate blocks in the order ONNX wants them.
ONNX_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}

# Largest difference between two float32 peers, relative to outputs of size one.
AGREE = 2e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its input: T = 0 is one streaming step with carried state.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    I, H, layers : int
        Input size, hidden size, layers of the stack.
    T, B : int
        Steps of a whole sequence (0 for a single step) and batch rows.
    """

    kind: str
    I: int  # noqa: E741
    H: int
    layers: int = 1
    T: int = 0
    B: int = 1

    def __str__(self) -> str:
        layers = f" {self.layers} layers" if self.layers > 1 else ""
        length = f" T={self.T}" if self.T else " step"
        return f"{self.kind} I={self.I} H={self.H}{layers}{length} B={self.B}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of float32 weights, which a step of one row must read once."""
        gates = len(ONNX_ORDER[self.kind])
        return sum(
            4 * gates * self.H * ((self.I if n == 0 else self.H) + self.H)
            for n in range(self.layers)
        )


CASES = [
    Case("lstm", 1, 16),
    Case("lstm", 1, 40),
    Case("lstm", 40, 128),
    Case("lstm", 128, 128),
    Case("lstm", 256, 256),
    Case("lstm", 40, 256, layers=3),
    Case("gru", 128, 128),
    Case("rnn", 128, 128),
    Case("lstm", 1, 40, T=1000),
    Case("lstm", 40, 128, T=100),
    Case("lstm", 128, 128, T=1000),
    Case("lstm", 256, 256, T=100),
    Case("lstm", 128, 128, T=100, B=32),
    Case("gru", 128, 128, T=1000),
    Case("rnn", 128, 128, T=1000),
]


def onnx_session(case: Case, module: torch.nn.Module) -> onnxruntime.InferenceSession:
    """The module as an ONNX graph of LSTM, GRU or RNN nodes, states passed in and out."""
    T, B, H, gates = max(case.T, 1), case.B, case.H, ONNX_ORDER[case.kind]
    weights = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}

    def reordered(array: np.ndarray) -> np.ndarray:
        blocks = np.split(array, len(gates))
        return np.concatenate([blocks[g] for g in gates])

    nodes, initializers, inputs, outputs = [], [], [], []
    inputs.append(helper.make_tensor_value_info("x0", TensorProto.FLOAT, [T, B, case.I]))
    states = ("h", "c") if case.kind == "lstm" else ("h",)
    for n in range(case.layers):
        bias = np.concatenate([reordered(weights[f"bias_{s}_l{n}"]) for s in ("ih", "hh")])
        arrays = {
            f"W{n}": reordered(weights[f"weight_ih_l{n}"])[None],
            f"R{n}": reordered(weights[f"weight_hh_l{n}"])[None],
            f"B{n}": bias[None],
        }
        initializers += [numpy_helper.from_array(a, name) for name, a in arrays.items()]
        given = [f"{s}{n}" for s in states]
        made = [f"Y{n}", *(f"{s}_out{n}" for s in states)]
        options = {"linear_before_reset": 1} if case.kind == "gru" else {}
        nodes.append(
            helper.make_node(
                case.kind.upper(),
                [f"x{n}", *arrays, "", *given],
                made,
                hidden_size=H,
                **options,
            )
        )
        nodes.append(helper.make_node("Squeeze", [f"Y{n}", "direction"], [f"x{n + 1}"]))
        for name in (*given, *made[1:]):
            target = inputs if name in given else outputs
            target.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, B, H]))
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "direction"))
    y = helper.make_tensor_value_info(f"x{case.layers}", TensorProto.FLOAT, [T, B, H])
    graph = helper.make_graph(nodes, "stack", inputs, [y, *outputs], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def peers(case: Case, seed: int = 0) -> Iterator[tuple[str, Call, Call]]:
    """Name, the call to be timed, and a call that returns its first output for comparison."""
    torch.manual_seed(seed)
    module = STACKS[case.kind](case.I, case.H, case.layers).eval()
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((max(case.T, 1), case.B, case.I), dtype=np.float32)
    model = fastlstm.from_torch(module)

    stream = model.stream(case.B)
    if case.T:
        out = np.empty((case.T, case.B, case.H), np.float32)
        yield "fastlstm", lambda: stream.run(x, out=out), lambda: model(x)[0]
    else:
        x_t, out = x[0], np.empty((case.B, case.H), np.float32)
        yield "fastlstm", lambda: stream.step(x_t, out=out), lambda: model.stream(case.B).step(x_t)

    session = onnx_session(case, module)
    states = [name for name in (i.name for i in session.get_inputs()) if name != "x0"]
    feed = {name: np.zeros((1, case.B, case.H), np.float32) for name in states} | {"x0": x}

    def run_onnx() -> np.ndarray:
        y, *after = session.run(None, feed)
        if not case.T:
            feed.update(zip(states, after, strict=True))
        return y if case.T else y[0]

    yield "onnxruntime", run_onnx, run_onnx

    tensor = torch.from_numpy(x)
    carried: Any = None

    def run_torch() -> torch.Tensor:
        nonlocal carried
        with torch.inference_mode():
            y, after = module(tensor, carried)
        if not case.T:
            carried = after
        return y if case.T else y[0]

    yield "torch", run_torch, run_torch

    if not case.T and case.layers == 1:
        cell = CELLS[case.kind](case.I, case.H).eval()
        cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items()})
        hidden: Any = None

        def run_cell() -> torch.Tensor:
            nonlocal hidden
            with torch.inference_mode():
                hidden = cell(tensor[0], hidden)
            return hidden[0] if case.kind == "lstm" else hidden

        yield "torch cell", run_cell, run_cell


def checked(case: Case) -> dict[str, Call]:
    """Name -> call to be timed, after every peer was seen to give the same first output.

    Raises
    ------
    AssertionError
        If two peers disagree by more than float32 rounding explains.
    """
    calls, expected = {}, None
    for name, timed, first in peers(case):
        y = np.asarray(first())
        expected = y if expected is None else expected
        error = float(np.abs(y - expected).max())
        if not error <= AGREE:
            raise AssertionError(f"{case}: {name} differs from fastlstm by {error:.1e}")
        calls[name] = timed
    return calls
