"""Which inputs are states, that an output of the call before gives, and which are lengths.

No file says it. What a recurrent operator starts from and gives back is one; so are an input and an
output that have the same shape and are called alike. What is found so is tried, the most plausible
first, and the report says what was taken for what.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from fastlstm.errors import ConvertError
from fastlstm.sources.onnx.graph import Graph, Node, Port
from fastlstm.sources.onnx.program import CARRIES
from fastlstm.sources.onnx.recurrent import LENGTHS

__all__ = ["lengths_of", "pairings", "state_outputs"]

# By number, the inputs of these operators that are h and c, and the outputs.
STARTS = {"LSTM": {5: "h", 6: "c"}, "GRU": {5: "h"}, "RNN": {5: "h"}}
ENDS = {1: "h", 2: "c"}
JOINS = CARRIES | {"Concat"}


class _Origins:
    """Where values come from, through what only moves them."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = list(graph.nodes())
        self.makers: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.outputs):
                self.makers.setdefault(name, []).append((node, index))
            for body in node.bodies.values():
                for index, name in enumerate(node.outputs):
                    if node.op == "If" and index < len(body.outputs) and name:
                        inner = Node("", "Identity", (body.outputs[index],), (name,), {})
                        self.makers[name].append((inner, 0))

    def of(self, name: str) -> Iterator[tuple[str, Node | None, int]]:
        """Names that a value is made of by movement alone, and what makes each."""
        left, seen = [name], {name}
        while left:
            at = left.pop()
            makers = [(n, i) for n, i in self.makers.get(at, ()) if n.op != "If"]
            if not makers:
                yield at, None, 0
            for node, index in makers:
                if node.op not in JOINS:
                    yield at, node, index
                    continue
                reads = node.inputs if node.op == "Concat" else node.inputs[:1]
                for read in reads:
                    if read not in seen:
                        seen.add(read)
                        left.append(read)


def lengths_of(graph: Graph, inputs: Sequence[str]) -> str:
    """The input that holds the lengths of rows; "" if there is none."""
    origins = _Origins(graph)
    found = {
        name
        for node in origins.nodes
        if node.op in STARTS and len(node.inputs) > LENGTHS and node.inputs[LENGTHS]
        for name, _, _ in origins.of(node.inputs[LENGTHS])
        if name in inputs
    }
    if len(found) > 1:
        raise ConvertError(
            f"inputs {', '.join(f'{name!r:.80}' for name in sorted(found)[:10])} are lengths of "
            f"rows; expected one for all recurrent layers"
        )
    return found.pop() if found else ""


def state_outputs(graph: Graph) -> dict[str, str]:
    """Outputs that are made of nothing but last states: "h" or "c", or "" where they are both."""
    origins = _Origins(graph)
    found = {}
    for port in graph.outputs:
        kinds = set()
        for _, node, index in origins.of(port.name):
            is_state = node is not None and node.op in STARTS and index in ENDS
            kinds.add(ENDS[index] if is_state else "no state")
        if "no state" not in kinds:
            found[port.name] = kinds.pop() if len(kinds) == 1 else ""
    return found


def pairings(graph: Graph, inputs: Sequence[Port]) -> list[dict[str, str]]:
    """Ways in which inputs may be states: input -> output, the most plausible first."""
    starts = _starts(graph)
    ends = state_outputs(graph)
    outputs = list(graph.outputs)
    found: list[dict[str, str]] = []
    sure = _matched(inputs, outputs, starts, ends)
    if len(sure) == len(inputs):  # one of them is data, which comes first
        sure.pop(inputs[0].name)
    found.append(sure)
    found.append(sure | _by_order(inputs, outputs, sure))
    kept: list[dict[str, str]] = []
    for pairs in found:
        if pairs and pairs not in kept and len(pairs) < len(inputs):
            kept.append(pairs)
    return [*kept, {}]


def _by_order(
    inputs: Sequence[Port], outputs: Sequence[Port], sure: Mapping[str, str]
) -> dict[str, str]:
    """States that only their place tells: all inputs and outputs but the first, of known shapes."""
    rest = [port for port in inputs[1:] if port.name not in sure]
    free = [out for out in outputs[1:] if out.name not in sure.values()]
    shapes = [port.shape for port in (*rest, *free)]
    if len(rest) != len(free) or any(s is None or s.count(None) > 1 for s in shapes):
        return {}
    pairs = list(zip(rest, free, strict=True))
    return {port.name: out.name for port, out in pairs if all(_fit(p, o) for p, o in pairs)}


def _starts(graph: Graph) -> dict[str, str]:
    """Inputs that recurrent layers start from: "h" or "c", or "" where they are both."""
    origins = _Origins(graph)
    found: dict[str, set[str]] = {}
    for node in origins.nodes:
        for index, kind in STARTS.get(node.op, {}).items():
            if index < len(node.inputs) and node.inputs[index]:
                for name, maker, _ in origins.of(node.inputs[index]):
                    if maker is None:
                        found.setdefault(name, set()).add(kind)
    return {name: kinds.pop() if len(kinds) == 1 else "" for name, kinds in found.items()}


def _matched(
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    starts: Mapping[str, str],
    ends: Mapping[str, str],
) -> dict[str, str]:
    """States that are called alike, and those of recurrent layers."""
    pairs: dict[str, str] = {}

    def take(port: Port, fitting: list[Port]) -> None:
        free = [out for out in fitting if out.name not in pairs.values()]
        if free:
            pairs[port.name] = free[0].name

    for port in inputs:
        alike = [out for out in outputs if _fit(port, out) and _stem(port.name) == _stem(out.name)]
        others = [other for other in inputs if _stem(other.name) == _stem(port.name)]
        if len(alike) == 1 and len(others) == 1:
            take(port, alike)
    for port in inputs:
        if port.name in starts and port.name not in pairs:
            kind = starts[port.name]
            take(port, [o for o in outputs if ends.get(o.name) == kind and _fit(port, o)])
    return pairs


def _fit(port: Port, out: Port) -> bool:
    """Whether an output can be given back as an input."""
    if out.kind and out.kind != port.kind:
        return False
    if port.shape is None or out.shape is None:
        return True
    return len(port.shape) == len(out.shape) and all(
        a == b or a is None or b is None for a, b in zip(port.shape, out.shape, strict=True)
    )


_WORDS = {
    *("in", "out", "input", "output", "new", "next", "prev", "previous", "past", "present", "old"),
    *("initial", "init", "final", "last", "cur", "current", "n", "o", "i", "t"),
}


def _stem(name: str) -> tuple[str, ...]:
    """What is left of a name without the words for before and after: of h0, hn and h_out, h."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)
    words = [part.lower() for part in parts]
    words = [word[0] if word in ("hn", "cn", "hx", "hy", "cx", "cy") else word for word in words]
    words = [word for word in words if word not in _WORDS] or words
    while len(words) > 1 and words[-1] == "0":
        words.pop()
    return tuple(words)
