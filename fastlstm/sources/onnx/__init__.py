"""Read an ONNX model into layers: its graph must be one straight line through known operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.line import Line, Made, Value
from fastlstm.sources.onnx.constants import CONSTANT, tidy
from fastlstm.sources.onnx.file import Array, Graph, Node, is_model, open_graph
from fastlstm.sources.onnx.operators import OPERATORS
from fastlstm.sources.onnx.step import Known, Step

__all__ = ["is_model", "read"]

# By number, the inputs of these operators that are states and lengths.
RECURRENT = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
LENGTHS = 4

# Operators that hand a state on, from an input of the model to the layer that starts from it.
CARRIES = {
    *("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze"),
}


def read(source: Any) -> tuple[tuple[spec.Layer, ...], dict[str, Array], tuple[str, ...]]:
    """Read a model, the path of an ONNX file or an ``onnx.ModelProto``.

    One input of the graph is the data, an array of features or integer tokens; others can be states
    that recurrent layers start from, and the lengths of sequences. Of its outputs one is the
    model's, the others are last states of recurrent layers: both become the model's own state.

    Returns
    -------
    layers : tuple of spec.Layer
        Checked.
    tensors : dict of str to array
        Exactly those the layers ask for, of the dtypes they came in.
    report : tuple of str
        What became of inputs, outputs and nodes.

    Raises
    ------
    ConvertError
        If the onnx package is missing, the file is damaged or reaches out of its folder, or a node,
        which the message names, is not known or leaves the straight line.
    OSError
        If the file cannot be read.
    """
    reader = _Reader(open_graph(source))
    reader.place_inputs()
    for node in reader.graph.nodes:
        reader.run(node)
    made = reader.finish()
    return made.layers, made.tensors, (*made.report, *reader.report)


class _Reader:
    """Runs through a graph, with a Line in place of numbers."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.line = Line()
        self.known: dict[str, Array | Value] = {}
        self.report: list[str] = []
        self._wanted = {name for node in graph.nodes for name in node.inputs} | {*graph.outputs}
        self._names: set[str] = set()

    def place_inputs(self) -> None:
        """Tell data, states and lengths apart, by what reads them."""
        makers = {name: node for node in self.graph.nodes for name in node.outputs if name}

        def origin(node: Node, index: int) -> str:
            name = node.inputs[index] if index < len(node.inputs) else ""
            while name in makers and makers[name].op in CARRIES and makers[name].inputs:
                name = makers[name].inputs[0]
            return name

        recurrent = [node for node in self.graph.nodes if node.op in RECURRENT]
        states = {origin(node, index) for node in recurrent for index in RECURRENT[node.op]}
        lengths = {origin(node, LENGTHS) for node in recurrent}
        data = []
        for name, entry in self.graph.inputs.items():
            if name not in self._wanted:
                self.report.append(f"input {name!r:.200} is not used and was left out")
            elif name in lengths:
                self.known[name] = self.line.lengths_input(entry.shape, name)
                self.report.append(
                    f"input {name!r:.200} holds lengths: give them as lengths=, which makes all "
                    f"output behind them zero"
                )
            elif name in states:
                self.known[name] = self.line.state_input(entry.shape, name)
                self.report.append(f"input {name!r:.200} carries states, which the model keeps")
            else:
                data.append(name)
        if len(data) != 1:
            raise ConvertError(
                f"the ONNX model has {len(data)} inputs of data, "
                f"{', '.join(f'{name!r:.80}' for name in data[:10]) or 'none'}; expected one, "
                f"beside states and lengths of sequences"
            )
        entry = self.graph.inputs[data[0]]
        self.known[data[0]] = self.line.input(entry.shape, tokens=entry.integer)

    def run(self, node: Node) -> None:
        """Fold what reads constants alone; hand everything else to the line."""
        if node.op == "If":
            self._choose(node)
            return
        inputs = [self._given(node, name) if name else None for name in node.inputs]
        step = Step(node, self.graph.version, self.line, inputs, self.graph.constants, self._used)
        computed = any(isinstance(value, Value) for value in inputs)
        step.name = self._unique(step.name) if computed else step.name
        operator = (OPERATORS if computed else CONSTANT).get(node.op)
        if operator is None:
            known = node.op in OPERATORS
            raise step.refuse(
                "reads constants alone; expected what is computed from the model's input"
                if known
                else "is of an operator that no layer computes; expected one of "
                + ", ".join(sorted({*OPERATORS, *CONSTANT}))
            )
        try:
            with np.errstate(all="ignore"):
                made = operator(step)
        except ConvertError as error:
            if str(error).startswith("node "):
                raise
            raise ConvertError(f"{node.label}: {error}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise step.refuse(f"contradicts what it reads: {str(error)[:200]}") from None
        step.done()
        self.report += step.notes
        outputs: Sequence[Any] = made if isinstance(made, list) else [made]
        for index, name in enumerate(node.outputs):
            value = outputs[index] if index < len(outputs) else None
            if value is not None:
                self.known[name] = value if isinstance(value, Value) else tidy(value)
            elif self._used(name):
                raise step.refuse(f"gives {name!r:.200}, which is not supported; expected no use")

    def _choose(self, node: Node) -> None:
        """Run the branch of an If that known sizes decide: PyTorch exports squeeze as one."""
        condition = self._input(node.inputs[0])
        if not isinstance(condition, np.ndarray) or condition.size != 1:
            raise ConvertError(
                f"{node.label} depends on what the model computes; expected no control flow"
            )
        chosen = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        if chosen not in node.branches or len(node.branches[chosen].outputs) != len(node.outputs):
            raise ConvertError(f"{node.label} has no {chosen} that gives what it gives")
        branch = node.branches[chosen]
        self._wanted |= {name for inner in branch.nodes for name in inner.inputs}
        self._wanted |= set(branch.outputs)
        for inner in branch.nodes:
            self.run(inner)
        for name, given in zip(node.outputs, branch.outputs, strict=True):
            self.known[name] = self._given(node, given)

    def _given(self, node: Node, name: str) -> Array | Value:
        found = self._input(name) if name in self.known or name in self.graph.constants else None
        if found is None:
            raise ConvertError(f"{node.label} reads {name!r:.200}, which nothing gives by then")
        return found

    def _input(self, name: str) -> Known:
        if not name:
            return None
        return self.known[name] if name in self.known else self.graph.constants[name]

    def _used(self, name: str) -> bool:
        return bool(name) and name in self._wanted

    def _unique(self, name: str) -> str:
        number, unique = 1, name
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique

    def finish(self) -> Made:
        """The layers up to the one output that is no state, or up to a state where all are."""
        values: dict[str, Value] = {}
        for name in self.graph.outputs:
            value = self._input(name)
            if not isinstance(value, Value):
                raise ConvertError(
                    f"output {name!r:.200} is constant; expected one that depends on the input"
                )
            values[name] = value
        data = [name for name, value in values.items() if not self.line.is_state(value)]
        if len(data) > 1:
            raise ConvertError(
                f"the ONNX model has {len(data)} outputs, "
                f"{', '.join(f'{name!r:.80}' for name in data[:10])}; expected one, beside last "
                f"states of recurrent layers"
            )
        main = data[0] if data else self.graph.outputs[0]
        output, states = values.pop(main), values
        if not data and (whole := self.line.whole(output)):
            output, states = whole, {main: output} | states
        for name in states:
            self.report.append(f"output {name!r:.200} carries states, which the model keeps")
        made = self.line.finish(output, state_outputs=states)
        self.report += self.line.carried(made)
        return made
