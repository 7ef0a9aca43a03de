"""An ONNX program that computes one step a call, as a graph, operator by operator.

Operators that only move numbers are run on their places, by ONNX's own equations, and become no
layer. The states of a program are inputs that the next call is given outputs of. As the file has
them they are delays of those outputs, and the graph is one loop through them. They can also be
*recognised*, where they start from zeros. A convolution of the last rows of a value is then one
over time, a GRU that carries on from its own last state is one along time, and any other number of
a state is one of a row that is delayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from places import Places, Rows

from fastlstm import spec

__all__ = ["Program"]

Array = npt.NDArray[Any]
Value = Places | Array | None  # an array is the same in every call; None is an input left out

OPSET = 17  # what programs are converted to
MOVEMENTS = {  # operator -> which of its inputs are moved, None for all; others say where to
    **dict.fromkeys(("Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"), (0,)),
    **dict.fromkeys(("Flatten", "Squeeze", "Transpose", "Unsqueeze"), (0,)),
    "Concat": None,
    "ScatterND": (0, 2),
}
OPERATIONS = {"Add": "add", "Div": "divide", "Mul": "multiply", "Pow": "power", "Sub": "subtract"}
FUNCTIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Sqrt": "sqrt", "Tanh": "tanh"}


class Program:
    """A program of fixed shapes and a batch of one row.

    Parameters
    ----------
    path : Path
        Of the ONNX file.
    states : mapping of str to str
        Input -> the output that the next call is given as that input.
    """

    def __init__(self, path: Path, states: Mapping[str, str]) -> None:
        model = onnx.version_converter.convert_version(onnx.load(path), OPSET)
        self.nodes = list(model.graph.node)
        self.tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.inputs = {
            i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim)
            for i in model.graph.input
            if i.name not in self.tensors
        }
        self.states = states

    def graph(
        self, outputs: Sequence[str], *, recognised: bool
    ) -> tuple[spec.Graph, dict[str, Array]]:
        """The graph of some outputs, in their shapes in the file, and its tensors."""
        walk = _Walk(self)
        if recognised:
            walk = _Walk(self, walk)
        reads = {name: walk.rows.read(walk.values[name]) for name in outputs}
        if not recognised:
            for state, output in self.states.items():
                delay = spec.Delay(state, self.inputs[state])
                walk.rows.add(delay, walk.rows.read(walk.values[output]))
        inputs = [name for name in self.inputs if name not in self.states]
        return walk.rows.graph(inputs, reads)


class _Walk:
    """The values of a program, one operator after the other.

    Parameters
    ----------
    program : Program
    before : _Walk, optional
        The call before, whose values the states are; if none, they are rows of their own.
    """

    def __init__(self, program: Program, before: _Walk | None = None) -> None:
        made = [name for node in program.nodes for name in node.output]
        names = [*program.inputs, *program.tensors, *made]
        if before is None:
            self.rows = Rows(names)
        else:
            states = {name: before.values[output] for name, output in program.states.items()}
            self.rows = Rows(names, states, before.rows.shapes)
        self.values: dict[str, Any] = dict(program.tensors)
        for name, shape in program.inputs.items():
            self.values[name] = self.rows.given(name, shape)
        for node in program.nodes:
            given = [self.values[name] if name else None for name in node.input]
            self.values |= zip(node.output, self._given_by(node, given), strict=False)

    def _given_by(self, node: onnx.NodeProto, given: list[Any]) -> list[Value]:
        """What an operator gives: arrays, where it is given nothing else."""
        equations = {
            "BatchNormalization": self._batch_norm,
            "Conv": self._convolution,
            "ConvTranspose": self._convolution,
            "GRU": self._gru,
            "MatMul": self._product,
            "PRelu": self._leaky_relu,
            "ReduceMean": self._mean,
            "Shape": lambda _, given: np.array(given[0].shape),
            **dict.fromkeys(MOVEMENTS, self._movement),
            **dict.fromkeys(OPERATIONS, self._operation),
            **dict.fromkeys(FUNCTIONS, self._function),
        }
        if not any(isinstance(value, Places) for value in given):
            return _evaluated(node, given)
        if node.op_type not in equations:
            raise NotImplementedError(f"operator {node.op_type}")
        made = equations[node.op_type](node, given)
        return made if isinstance(made, list) else [made]

    def _placed(self, node: onnx.NodeProto, given: list[Any], which: Any = None) -> list[Any]:
        """Inputs with those that are arrays, all or some of them, made rows."""
        return [
            self.rows.constant(name, value)
            if isinstance(value, np.ndarray) and (which is None or n in which)
            else value
            for n, (name, value) in enumerate(zip(node.input, given, strict=True))
        ]

    def _tensors(self, node: onnx.NodeProto, given: list[Any], *suffixes: str) -> Any:
        """The file's names of a layer's tensors, which are the last inputs of the operator."""
        self.rows.tensors |= zip(node.input[1:], given[1:], strict=True)
        return tuple(zip(suffixes, node.input[1:], strict=False))

    def _movement(self, node: onnx.NodeProto, given: list[Any]) -> list[Value]:
        if node.op_type == "Pad":
            if any(np.any(fill) for fill in given[2:]):
                raise NotImplementedError("padding with another number than 0")
            node = onnx.helper.make_node(
                "Pad", [*node.input[:2], "fill"], node.output, mode=_options(node)["mode"]
            )
            given = [*given[:2], np.array(spec.FILL)]
        moved = [
            value.array if isinstance(value, Places) else value
            for value in self._placed(node, given, MOVEMENTS[node.op_type])
        ]
        return [Places(y) for y in _evaluated(node, moved)]

    def _operation(self, node: onnx.NodeProto, given: list[Any]) -> Places:
        reads = map(self.rows.read, self._placed(node, given))
        return self.rows.add(spec.Arithmetic(_name(node), OPERATIONS[node.op_type]), *reads)

    def _function(self, node: onnx.NodeProto, given: list[Any]) -> Places:
        layer = spec.Activation(_name(node), FUNCTIONS[node.op_type])
        return self.rows.add(layer, self.rows.read(given[0]))

    def _leaky_relu(self, node: onnx.NodeProto, given: list[Any]) -> Places:
        x, slope = given
        if slope.size != 1:
            raise NotImplementedError("slopes of each channel")
        layer = spec.Activation(_name(node), f"leaky_relu({slope.item()!r})")
        return self.rows.add(layer, self.rows.read(x))

    def _mean(self, node: onnx.NodeProto, given: list[Any]) -> Places:
        options, ndim = _options(node), len(given[0].shape)
        axes = tuple(axis if axis < 0 else axis - ndim for axis in options["axes"])
        layer = spec.Reduce(_name(node), "mean", axes=axes, keepdim=options["keepdims"] == 1)
        return self.rows.add(layer, self.rows.read(given[0]))

    def _product(self, node: onnx.NodeProto, given: list[Any]) -> Places:
        x, matrix = given
        if isinstance(matrix, Places) or matrix.ndim != 2:
            reads = map(self.rows.read, self._placed(node, given))
            return self.rows.add(spec.MatMul(_name(node)), *reads)
        self.rows.tensors[f"{_name(node)}.weight"] = matrix.T
        layer = spec.Linear(_name(node), *matrix.shape, bias=False)
        return self.rows.add(layer, self.rows.read(x))

    def _batch_norm(self, node: onnx.NodeProto, given: list[Any]) -> Places:
        x, suffixes = given[0], ("weight", "bias", "running_mean", "running_var")
        names = self._tensors(node, given, *suffixes)
        eps = _options(node)["epsilon"]
        layer = spec.BatchNorm(_name(node), x.shape[1], eps, tensor_names=names)
        return self.rows.add(layer, self.rows.read(x, *x.shape[1:])).reshape(*x.shape)

    def _convolution(self, node: onnx.NodeProto, given: list[Any]) -> Places:
        x, weight, bias = [*given, None][:3]
        options, transposed = _options(node), node.op_type == "ConvTranspose"
        n, groups = weight.ndim - 2, options["group"]
        out = weight.shape[1] * groups if transposed else len(weight)
        pads = options.get("pads", [0] * 2 * n)
        names = self._tensors(node, given, "weight", "bias")

        def layer(padding: Sequence[tuple[int, int]], over_time: bool) -> spec.Convolution:
            return spec.Convolution(
                _name(node),
                x.shape[1],
                out,
                weight.shape[2:],
                groups,
                bias is not None,
                stride=tuple(options.get("strides", ())),
                dilation=tuple(options.get("dilations", ())),
                padding=tuple(padding),
                over_time=over_time,
                transposed=transposed,
                tensor_names=names,
            )

        first, *others = zip(pads[:n], pads[n:], strict=True)
        within = layer([first, *others], over_time=False)
        reach, newest = within.reaches[0], self._newest(x)
        # The one row that a call makes sees all rows that it has, and no padding.
        one = first == ((reach, reach) if transposed else (0, 0)) and within.strides[0] == 1
        if not reach or newest is None or x.shape[2] != reach + 1 or not one:
            y = self.rows.add(within, self.rows.read(x, *x.shape[1:]))
            return y.reshape(1, *y.shape)
        padding = [(0, reach) if transposed else (reach, 0), *others]
        y = self.rows.add(layer(padding, over_time=True), self.rows.read(newest))
        return y.reshape(1, out, 1, *y.shape[1:])

    def _newest(self, x: Places) -> Places | None:
        """If (1, C, K, ...) are the last K rows (C, ...) of a value: the newest of them."""
        places, steps = self.rows.origins(x)
        newest = places[0, :, -1]
        ages = np.arange(x.shape[2])[::-1].reshape(-1, *(1,) * (len(x.shape) - 3))
        there = (places == newest[:, None]) & (steps == ages)
        return Places(newest) if there.all() else None

    def _gru(self, node: onnx.NodeProto, given: list[Any]) -> list[Value]:
        """Along the first axis of (S, B, I); each of the B has a state of its own."""
        x, w, r, b, lengths, h_0 = [*given, None, None, None][:6]
        options, name = _options(node), _name(node)
        if lengths is not None or {"activations", "clip"} & options.keys():
            raise NotImplementedError(f"GRU with {sorted(options)}")
        S, B, I = x.shape  # noqa: E741
        D, H = len(w), options["hidden_size"]
        ends = {"forward": [S - 1], "reverse": [0], "bidirectional": [S - 1, 0]}
        direction = options["direction"]
        for d in range(D):
            tensors = {"weight_ih": w[d], "weight_hh": r[d]}
            if b is not None:
                tensors |= zip(("bias_ih", "bias_hh"), np.split(b[d], 2), strict=True)
            for tensor, value in tensors.items():
                z, reset, n = np.split(value, 3)
                gates = np.concatenate([reset, z, n])
                self.rows.tensors[f"{name}.{tensor}_l0{'_reverse' * d}"] = gates
        y = self.rows.given(name, (B, S, D, H)).array
        h_n = np.stack([y[:, end, d] for d, end in enumerate(ends[direction])])
        starts = h_0 is not None and (isinstance(h_0, Places) or bool(np.any(h_0)))
        carries_on = (direction, S) == ("forward", 1) and self._is_before(h_0, h_n)
        layer = spec.GRU(
            name,
            I,
            H,
            bias=b is not None,
            bidirectional=direction == "bidirectional",
            reverse=direction == "reverse",
            reset_after=options["linear_before_reset"] == 1,
            along="time" if carries_on else "positions",
            initial_state="given" if starts and not carries_on else "",
        )
        rows = Places(x.array.swapaxes(0, 1))
        reads = [self.rows.read(rows, *((B, I) if carries_on else (B, S, I)))]
        if layer.initial_state:
            reads.append(self.rows.read(self._placed(node, given)[5]))
        self.rows.add(layer, *reads)
        return [Places(y.transpose(1, 2, 0, 3)), Places(h_n)]

    def _is_before(self, h_0: Value, h_n: Array) -> bool:
        """Whether an initial state is what the step before ends with."""
        if not isinstance(h_0, Places):
            return False
        places, steps = self.rows.origins(h_0)
        return np.array_equal(places, h_n) and bool((steps == 1).all())


def _evaluated(node: onnx.NodeProto, given: list[Any]) -> list[Value]:
    """What an operator gives for arrays."""
    feeds = {name: value for name, value in zip(node.input, given, strict=True) if name}
    return [np.asarray(y) for y in ReferenceEvaluator(node).run(None, feeds)]


def _options(node: onnx.NodeProto) -> dict[str, Any]:
    """An operator's attributes, those left out as ONNX has them."""
    defaults = [
        a.default_value for a in onnx.defs.get_schema(node.op_type, OPSET).attributes.values()
    ]
    options = {
        a.name: onnx.helper.get_attribute_value(a) for a in (*defaults, *node.attribute) if a.name
    }
    return {name: o.decode() if isinstance(o, bytes) else o for name, o in options.items()}


def _name(node: onnx.NodeProto) -> str:
    """What the layer of an operator is called: as its first output is."""
    return node.output[0]
