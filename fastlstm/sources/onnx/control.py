"""ONNX's operators that run a body: a choice is its branch, and a loop its body again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm.sources.arrays import Value
from fastlstm.sources.onnx.graph import Body, Node, Port
from fastlstm.sources.onnx.step import Known, refused, shape_of

if TYPE_CHECKING:
    from fastlstm.sources.onnx.program import Run, Scope

__all__ = ["CONTROL"]


def choice(run: Run, node: Node, inputs: list[Known], scope: Scope) -> list[Known]:
    condition = inputs[0] if inputs else None
    if not isinstance(condition, np.ndarray) or condition.size != 1:
        told = [port for port in _behind(run, node) if port.kind != "float"]
        names = ", ".join(f"{port.name!r:.80}" for port in told)
        raise refused(
            node,
            f"chooses by input {names}; tell what that always is, as "
            f"inputs={{{told[0].name!r:.80}: ...}}"
            if told
            else "chooses by what the model computes; expected a condition that is constant",
        )
    chosen = "then_branch" if condition.reshape(-1)[0] else "else_branch"
    body = _body(node, chosen)
    if len(body.outputs) != len(node.outputs):
        raise refused(node, f"has no {chosen} that gives what it gives")
    run.builder.note(f"{node.label} was taken for its {chosen}")
    return run.body(body, (), scope)


def _behind(run: Run, node: Node) -> list[Port]:
    """The inputs of the model that a choice depends on."""
    makers = {name: n for n in run.program.graph.nodes() for name in n.outputs}
    left, seen = [node.inputs[0]], {node.inputs[0]}
    while left:
        maker = makers.get(left.pop())
        for name in maker.reads if maker else ():
            if name not in seen:
                seen.add(name)
                left.append(name)
    return [port for port in run.program.graph.inputs if port.name in seen]


def _body(node: Node, name: str) -> Body:
    if name not in node.bodies:
        raise refused(node, f"has no {name}; expected it")
    return node.bodies[name]


def loop(run: Run, node: Node, inputs: list[Known], scope: Scope) -> list[Known]:
    """As often as a constant says, or a condition that is constant each time."""
    body = _body(node, "body")
    most, keep = ([*inputs, None, None])[:2]
    if isinstance(most, Value) or isinstance(keep, Value):
        raise refused(node, "runs as often as the model computes; expected a constant")
    left = None if most is None else int(np.asarray(most).reshape(-1)[0])
    goes = keep is None or bool(np.asarray(keep).reshape(-1)[0])
    carried = inputs[2:]
    n = len(carried)
    if len(body.inputs) != n + 2 or len(body.outputs) != len(node.outputs) + 1:
        raise refused(node, "has a body whose inputs or outputs are not as many as its own")
    stacks: list[list[Known]] = [[] for _ in body.outputs[n + 1 :]]
    turn = 0
    while goes and (left is None or turn < left):
        run.counted(node)
        given = [np.array(turn, np.int64), np.array(goes), *carried]
        going, *made = run.body(body, given, scope)
        if not isinstance(going, np.ndarray):
            raise refused(
                node, "ends when the model says so; expected a condition that is constant"
            )
        goes = bool(going.reshape(-1)[0])
        carried = made[:n]
        for stack, value in zip(stacks, made[n:], strict=True):
            stack.append(value)
        turn += 1
    return [*carried, *(_stacked(run, node, stack, 0) for stack in stacks)]


def scan(run: Run, node: Node, inputs: list[Known], scope: Scope) -> list[Known]:
    """Once for each place of an axis of some inputs."""
    if run.program.graph.version < 9:
        raise refused(node, "is of version 8 of the operators; expected 9 or later")
    body = _body(node, "body")
    count = int(node.attributes["num_scan_inputs"].i) if "num_scan_inputs" in node.attributes else 0
    n = len(inputs) - count
    if n < 0 or count < 1 or len(body.inputs) != len(inputs) or len(body.outputs) < n:
        raise refused(node, "has a body whose inputs or outputs are not as many as its own")
    scanned, outs = inputs[n:], len(body.outputs) - n

    def option(name: str, size: int) -> list[int]:
        values = list(node.attributes[name].ints) if name in node.attributes else [0] * size
        if len(values) != size:
            raise refused(node, f"has {name} {values[:8]}; expected {size} of them")
        return values

    axes, turns = option("scan_input_axes", count), option("scan_input_directions", count)
    if not all(isinstance(x, Value | np.ndarray) for x in scanned):
        raise refused(node, "goes over what is no array")
    lengths = {shape_of(x)[a] for x, a in zip(scanned, axes, strict=True)}  # type: ignore[arg-type]
    if len(lengths) != 1:
        raise refused(node, f"goes over axes of {sorted(lengths)[:8]} places; expected as many")
    (length,) = lengths
    carried = inputs[:n]
    stacks: list[list[Known]] = [[] for _ in range(outs)]
    for step in range(length):
        run.counted(node)
        parts = []
        for x, axis, turn in zip(scanned, axes, turns, strict=True):
            place = length - 1 - step if turn else step
            parts.append(run.builder.move(lambda p, a=axis, i=place: np.take(p, i, a), x))
        made = run.body(body, [*carried, *parts], scope)
        carried = made[:n]
        for stack, value in zip(stacks, made[n:], strict=True):
            stack.append(value)
    out_axes, out_turns = option("scan_output_axes", outs), option("scan_output_directions", outs)
    stacked = [
        _stacked(run, node, stack[::-1] if turn else stack, axis)
        for stack, axis, turn in zip(stacks, out_axes, out_turns, strict=True)
    ]
    return [*carried, *stacked]


def _stacked(run: Run, node: Node, parts: Sequence[Any], axis: int) -> Known:
    if not parts:
        raise refused(node, "runs no step, and gives what its steps give")
    return run.builder.move(lambda *p: np.stack(p, axis), *parts)  # type: ignore[no-any-return]


CONTROL: Mapping[str, Callable[[Run, Node, list[Known], Scope], list[Known]]] = {
    "If": choice,
    "Loop": loop,
    "Scan": scan,
}
