"""Read an ONNX model: its graph is run once on places in place of numbers, and makes a graph."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays.follow import Followed, OpenSizeError, Parameter, follow
from fastlstm.sources.conversion import Argument, Call, Conversion, conversions, joined
from fastlstm.sources.fixed import given_inputs
from fastlstm.sources.onnx.graph import Graph, Port, is_model, open_graph
from fastlstm.sources.onnx.program import Program
from fastlstm.sources.onnx.states import lengths_of, pairings, state_outputs
from fastlstm.sources.onnx.tensors import Array
from fastlstm.sources.pytorch.state_dict import Tensor, to_array

__all__ = ["is_model", "read"]


def read(
    source: Any, dtype: str = "float32", inputs: Mapping[str, Any] | None = None
) -> Conversion:
    """Read a model, the path of an ONNX file or an ``onnx.ModelProto``.

    Parameters
    ----------
    source : path or onnx.ModelProto
    dtype : {"float32", "float64"}
        What the model is stored in.
    inputs : mapping, optional
        What is said of inputs, as :func:`~fastlstm.sources.fixed.given_inputs` takes it.

    Raises
    ------
    ConvertError
        If the onnx package is missing, the file is damaged or reaches out of its folder, or a node,
        which the message names, cannot be followed.
    OSError
        If the file cannot be read.
    """
    graph = open_graph(source)
    fixed, ports = _inputs(graph, inputs or {})
    report = []
    used = {name for node in graph.body.nodes for name in node.reads} | {*graph.body.outputs}
    for port in graph.inputs:
        if port.name not in used:
            report.append(f"input {port.name!r:.200} is not used and was left out")
            ports = [one for one in ports if one.name != port.name]
    lengths = lengths_of(graph, [port.name for port in ports])
    ports = [port for port in ports if port.name != lengths]
    if not ports:
        raise ConvertError(
            f"the ONNX model has no input of data: {_told(fixed, lengths, graph)}; expected one"
        )
    ends = state_outputs(graph)
    parameters = [Parameter(port.name, port.shape, _kind(graph, port)) for port in ports]
    found = _followed(graph, parameters, fixed, lengths, ports, ends)
    call = _call(graph, found.call, fixed, lengths, ends)
    if lengths:
        _check_lengths(found.graph)
    stored = [Tensor(name, a.shape, str(a.dtype), a) for name, a in found.tensors.items()]
    layers = [f"layer {n.name!r:.200}: {n.layer.describe():.200}" for n in found.graph.nodes]
    return Conversion(
        found.graph,
        {tensor.name: to_array(tensor, dtype) for tensor in stored},
        (*layers, *_roles(call, found.graph), *report, *found.notes, *conversions(stored, dtype)),
        call=call,
    )


def _inputs(graph: Graph, given: Mapping[str, Any]) -> tuple[dict[str, Array], list[Port]]:
    """Inputs that never change, and the others, with the sizes that were told."""
    constants, shapes = given_inputs(given)
    known = {port.name: port for port in graph.inputs}
    for name in given:
        if name not in known:
            raise ConvertError(
                f"inputs names {name!r:.80}, which is no input of the ONNX model; expected some of "
                f"{joined([*known])}"
            )
    fixed = {name: _constant(known[name], array) for name, array in constants.items()}
    ports = []
    for port in graph.inputs:
        if port.name in shapes:
            port = dataclasses.replace(port, shape=_sized(port, shapes[port.name]))
        if port.name not in fixed:
            ports.append(port)
    return fixed, ports


def _constant(port: Port, array: Array) -> Array:
    """The array that an input always is, of its type and shape."""
    kind = {"float": np.float32, "int": np.int64, "bool": bool}[port.kind]
    if port.kind == "int" and array.dtype.kind == "f" and (array != np.floor(array)).any():
        raise ConvertError(f"input {port.name!r:.80} takes integers, and was given {array!r:.80}")
    array = array.astype(kind)
    if port.shape is None or _agree(port.shape, array.shape):
        return array
    if array.size == 1 and None not in port.shape:
        return np.full([n or 1 for n in port.shape], array.reshape(-1)[0])
    raise ConvertError(
        f"input {port.name!r:.80} takes an array of shape {_text(port.shape)}, and was given one "
        f"of {array.shape}"
    )


def _sized(port: Port, sizes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    if port.shape is not None and not _agree(port.shape, sizes):
        raise ConvertError(
            f"input {port.name!r:.80} was given the shape {_text(sizes)}, and is "
            f"{_text(port.shape)} in the file"
        )
    return sizes


def _agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return len(one) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(one, other, strict=True)
    )


def _text(shape: Sequence[int | str | None]) -> str:
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


def _told(fixed: Mapping[str, Array], lengths: str, graph: Graph) -> str:
    if not graph.inputs:
        return "it has no inputs"
    return f"of its inputs {joined([p.name for p in graph.inputs])} are fixed, unused or lengths"


def _kind(graph: Graph, port: Port) -> str:
    """Integers that are only ever made floats are numbers like any other."""
    if port.kind != "int":
        return port.kind
    readers = [node for node in graph.nodes() if port.name in node.reads]
    made = all(
        node.op == "Cast" and "to" in node.attributes and node.attributes["to"].i in (1, 10, 11, 16)
        for node in readers
    )
    return "float" if made else port.kind


def _followed(
    graph: Graph,
    parameters: Sequence[Parameter],
    fixed: Mapping[str, Array],
    lengths: str,
    ports: Sequence[Port],
    ends: Mapping[str, str],
) -> Followed:
    names = [port.name for port in graph.outputs]
    failures: list[ConvertError] = []
    for pairs in pairings(graph, ports):
        # Last states that no input takes are kept by the model itself.
        kept = [name for name in names if name not in ends or name in pairs.values()]
        if not any(name not in pairs.values() for name in kept):
            kept = names
        program = Program(graph, fixed, lengths, kept)
        try:
            return follow(program, parameters, [pairs], single="")
        except ConvertError as error:
            failures.append(error)
    first = failures[0]
    if isinstance(first, OpenSizeError):
        (port,) = [p for p in ports if p.name == first.name]
        shape = port.shape or ()
        example = ", ".join(
            "None" if n == 0 else str(size or "...") for n, size in enumerate(shape)
        )
        raise ConvertError(
            f"{first}; the file leaves sizes of {port.name!r:.200} open, {_text(shape)}: tell "
            f"them, as inputs={{{port.name!r:.200}: ({example})}}"
        )
    raise first


def _call(
    graph: Graph,
    call: Call,
    fixed: Mapping[str, Array],
    lengths: str,
    ends: Mapping[str, str],
) -> Call:
    """How the model is called, with the inputs that are no arguments of the program followed."""
    known = {argument.name: argument for argument in call.arguments}
    for name, array in fixed.items():
        known[name] = Argument(name, array.shape, "constant", json.dumps(array.tolist()))
    if lengths:
        known[lengths] = Argument(lengths, ("batch",), "lengths")
    arguments = tuple(known[port.name] for port in graph.inputs if port.name in known)
    outputs = {output.name: output for output in call.outputs}
    for name in ends:
        outputs.setdefault(name, Argument(name, (), "state"))
    return Call(arguments, tuple(outputs[p.name] for p in graph.outputs if p.name in outputs))


def _roles(call: Call, graph: spec.Graph) -> list[str]:
    """A line for each input and output: what it is taken for."""
    lines = []
    for argument in call.arguments:
        what = f"input {argument.name!r:.200}"
        if argument.role == "rows":
            lines.append(f"{what} is {_text(argument.axes)}")
        elif argument.role == "state":
            lines.append(
                f"{what} carries a state, which output {argument.value!r:.200} gives for the next "
                f"call: the model keeps it"
            )
        elif argument.role == "constant":
            lines.append(f"{what} is always {argument.value:.80}, on your word")
        else:
            lines.append(
                f"{what} holds lengths: give them as lengths=, which makes all output behind them "
                f"zero"
            )
    for output in call.outputs:
        what = f"output {output.name!r:.200}"
        if output.role == "rows":
            lines.append(f"{what} is {_text(output.axes)}")
        elif not output.value:
            lines.append(f"{what} is a last state, which the model keeps and gives as its state")
    return lines


def _check_lengths(graph: spec.Graph) -> None:
    """With lengths, nothing may look at what lies behind them as the program does."""
    recurrent = {node.name for node in graph.nodes if isinstance(node.layer, spec.Recurrent)}
    for node in graph.nodes:
        layer = node.layer
        if not layer.over_time or node.name in recurrent:
            continue
        ends = isinstance(layer, spec.Fold) and layer.function in ("first", "last")
        if not ends or not recurrent.issuperset(node.reads):
            raise ConvertError(
                f"layer {node.name!r:.200} ({layer.kind}) goes over what lies behind the lengths "
                f"of the rows; expected recurrent layers, and their last state, alone"
            )
