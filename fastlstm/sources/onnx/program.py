"""A graph of ONNX run operator by operator over a builder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.arrays import places as at_places
from fastlstm.sources.arrays.follow import Outcome
from fastlstm.sources.onnx.control import CONTROL
from fastlstm.sources.onnx.elementwise import ELEMENTWISE
from fastlstm.sources.onnx.graph import Body, Graph, Node
from fastlstm.sources.onnx.known import KNOWN
from fastlstm.sources.onnx.layers import LAYERS
from fastlstm.sources.onnx.movement import MOVEMENTS
from fastlstm.sources.onnx.recurrent import GATES, LENGTHS
from fastlstm.sources.onnx.sequences import SEQUENCES
from fastlstm.sources.onnx.step import Budget, Known, Lengths, Step, layer_name, refused
from fastlstm.sources.onnx.tensors import Array

__all__ = ["CARRIES", "Program"]

OPERATORS = {**KNOWN, **MOVEMENTS, **SEQUENCES, **ELEMENTWISE, **LAYERS}

# Operators that hand an array on, whole or a part of it.
CARRIES = {
    *("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze"),
}

MAX_NODES = 2**14  # that are run, those of a loop each time
MAX_LIVE = 2**26  # numbers of all arrays that are still to be read


class Program:
    """A graph as :func:`~fastlstm.sources.arrays.follow.follow` runs it.

    Parameters
    ----------
    graph : Graph
    fixed : mapping of str to array
        Inputs that are the same in every call.
    lengths : str
        The input that holds how many steps each row has; "" if there is none.
    outputs : sequence of str
    """

    def __init__(
        self, graph: Graph, fixed: Mapping[str, Array], lengths: str, outputs: Sequence[str]
    ) -> None:
        self.graph, self.fixed, self.lengths, self.outputs = graph, fixed, lengths, outputs
        self.constant: dict[str, list[Any]] = {}  # what nodes give that read nothing else
        self.is_endless = False
        self._drops: dict[int, list[list[str]]] = {}

    def __call__(self, builder: Builder, given: dict[str, Value]) -> Outcome:
        run = Run(self, builder)
        values: dict[str, Known] = {**self.fixed, **given}
        if self.lengths:
            values[self.lengths] = Lengths(self.lengths)
        scope = Scope(self.graph.body, values, None)
        with np.errstate(all="ignore"):
            run.nodes(self.graph.body, scope)
        outputs = {}
        for name in self.outputs:
            value = run.value(scope, name)
            if not isinstance(value, Value):
                raise ConvertError(
                    f"output {name!r:.200} is constant; expected one that depends on the input"
                )
            outputs[name] = value
        return Outcome(outputs)

    def drops(self, body: Body) -> list[list[str]]:
        """After each node of a body, the names that nothing reads any more."""
        if id(body) not in self._drops:
            seen = {*body.outputs}
            drops: list[list[str]] = []
            for node in reversed(body.nodes):
                names = {*node.reads, *filter(None, node.outputs)} - seen
                drops.append(sorted(names))
                seen |= names
            self._drops[id(body)] = drops[::-1]
        return self._drops[id(body)]


class Scope:
    """Names of a body and what they stand for, and those around it."""

    def __init__(self, body: Body, values: dict[str, Known], around: Scope | None) -> None:
        self.body, self.values, self.around = body, values, around
        self.used = {*body.outputs} | {name for node in body.nodes for name in node.reads}


class Run:
    """One run of a program."""

    def __init__(self, program: Program, builder: Builder) -> None:
        self.program, self.builder = program, builder
        self.budget = Budget(program.graph.tensors)
        self.count = self.live = 0
        self._ragged: dict[int, Value] = {}
        self._with_lengths: set[bool] = set()

    def value(self, scope: Scope, name: str) -> Known:
        """What a name stands for.

        Raises
        ------
        LookupError
            If it stands for nothing.
        """
        at: Scope | None = scope
        while at is not None:
            if name in at.values:
                return at.values[name]
            if name in at.body.tensors:
                proto = at.body.tensors[name]
                return self._named(
                    self.program.graph.tensors.array(proto, f"tensor {name!r:.200}"), name
                )
            at = at.around
        return self._named(self.program.graph.tensors[name], name)

    def _named(self, array: Array, name: str) -> Array:
        return self.builder.name(array, name)

    def body(self, body: Body, given: Sequence[Known], around: Scope) -> list[Known]:
        """What a body makes of its inputs."""
        scope = Scope(body, dict(zip(body.inputs, given, strict=False)), around)
        self.nodes(body, scope)
        made = [self.value(scope, name) for name in body.outputs]
        for value in scope.values.values():
            self._freed(value)
        return made

    def nodes(self, body: Body, scope: Scope) -> None:
        for node, drops in zip(body.nodes, self.program.drops(body), strict=True):
            self.counted(node)
            self._run(node, scope)
            for name in drops:
                self._freed(scope.values.pop(name, None))

    def counted(self, node: Node) -> None:
        """Count a node that is run."""
        self.count += 1
        if self.count > MAX_NODES or self.program.is_endless:
            self.program.is_endless = True  # however its inputs are taken
            raise refused(
                node, f"is run as number {MAX_NODES + 1}, which is more than there may be"
            )

    def _freed(self, value: Known) -> None:
        if isinstance(value, Value):
            self.live -= value.places.size

    def _run(self, node: Node, scope: Scope) -> None:
        try:
            inputs = [self.value(scope, name) if name else None for name in node.inputs]
        except LookupError as error:
            raise refused(
                node, f"reads {error.args[0]!r:.200}, which nothing gives by then"
            ) from None
        whole = scope.around is None and node.op not in CONTROL
        key = node.outputs[0] if whole else ""
        is_constant = whole and all(self._is_constant(name) for name in node.inputs if name)
        if is_constant and key in self.program.constant:
            outputs = self.program.constant[key]
        else:
            outputs = self._outputs(node, inputs, scope)
            if is_constant:
                self.program.constant[key] = outputs
                names = [name for name in node.outputs if name]
                self.program.constant |= dict.fromkeys(names, outputs)
        for index, name in enumerate(node.outputs):
            made = outputs[index] if index < len(outputs) else None
            if made is not None:
                scope.values[name] = made
                self.live += made.places.size if isinstance(made, Value) else 0
            elif name and name in scope.used:
                raise refused(node, f"gives {name!r:.200}, which is not supported; expected no use")
        if self.live > MAX_LIVE:
            raise refused(
                node, f"needs arrays of more than {MAX_LIVE} numbers at once, the most there may be"
            )

    def _is_constant(self, name: str) -> bool:
        program = self.program
        return name in program.constant or name in program.fixed or name in program.graph.tensors

    def _outputs(self, node: Node, inputs: list[Known], scope: Scope) -> list[Any]:
        if any(isinstance(x, Lengths) for x in inputs) and node.op in CARRIES:
            return [x for x in inputs if isinstance(x, Lengths)]
        if node.op not in CONTROL and node.op not in OPERATORS:
            raise refused(node, "is of an operator that no layer computes")
        with self.builder.at(layer_name(node), node.label):
            try:
                if node.op in CONTROL:
                    made: Any = CONTROL[node.op](self, node, inputs, scope)
                else:
                    step = Step(
                        node, self.program.graph.version, self.builder, inputs,
                        self.program.graph.tensors, self.budget, scope.used.__contains__,
                    )  # fmt: skip
                    made = OPERATORS[node.op](step)
                    step.done()
            except ConvertError:
                raise
            except (TypeError, ValueError, ArithmeticError, LookupError) as error:
                raise refused(node, f"contradicts what it reads: {str(error)[:200]}") from None
        outputs = [_tidy(one) for one in (made if isinstance(made, list) else [made])]
        if self.program.lengths:
            self._check_ragged(node, inputs, outputs)
        return outputs

    def _check_ragged(self, node: Node, inputs: list[Known], outputs: list[Any]) -> None:
        """With lengths, nothing may take single steps out of what lies behind them."""
        if node.op in GATES:
            has = len(inputs) > LENGTHS and isinstance(inputs[LENGTHS], Lengths)
            self._with_lengths.add(has)
            if any(
                isinstance(row.node.layer, spec.Recurrent) and not row.node.layer.over_time
                for row in self.builder.rows.made.values()
                if row.node is not None
            ):
                raise refused(node, "is given the lengths of rows, and does not run along time")
            if len(self._with_lengths) > 1:
                raise refused(
                    node,
                    f"is{'' if has else ' not'} given the lengths of the rows, which another "
                    f"recurrent layer is{' not' if has else ''}; expected all or none",
                )
            made = outputs[:1]
        elif any(isinstance(x, Value) and id(x) in self._ragged for x in inputs):
            made = [one for one in outputs if isinstance(one, Value)]
        else:
            return
        for value in made:
            steps = np.unique(at_places.steps_of(value.places[value.places != at_places.FILL]))
            if (steps != at_places.ANY).sum() < self.builder.steps:
                raise refused(
                    node,
                    "takes some steps out of rows whose lengths differ; expected all of them, or "
                    "the last state of a recurrent layer",
                )
            self._ragged[id(value)] = value


def _tidy(made: Any) -> Any:
    return made if made is None or isinstance(made, Value | list | Lengths) else np.asarray(made)
