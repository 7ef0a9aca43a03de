"""Calls of functions that a model brings with it, put in their places by the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.onnx.tensors import text_of

__all__ = ["inlined"]

Key = tuple[str, str]


def inlined(model: Any, most: int) -> Sequence[Any]:
    """The nodes of a model's graph, each call of a function being the nodes of that function.

    Parameters
    ----------
    model : onnx.ModelProto
    most : int
        Nodes that there may be; they are counted before anything is put in place.

    Raises
    ------
    ConvertError
        If a function calls itself, or there are more nodes.
    """
    import onnx
    import onnx.inliner

    functions = {(text_of(f.domain), text_of(f.name)): f for f in model.functions}
    if len(functions) < len(model.functions):
        raise ConvertError("two functions of the ONNX model have one name; expected one of each")
    sizes = _Sizes(functions, most)
    sizes.of(model.graph.node)
    # Tensors are left out: they would be copied.
    shell = onnx.ModelProto(ir_version=model.ir_version)
    shell.opset_import.extend(model.opset_import)
    shell.functions.extend(model.functions)
    shell.graph.name = model.graph.name
    shell.graph.node.extend(model.graph.node)
    shell.graph.input.extend(model.graph.input)
    shell.graph.output.extend(model.graph.output)
    try:
        nodes: Sequence[Any] = onnx.inliner.inline_local_functions(shell).graph.node
    except Exception as error:  # of C++
        raise ConvertError(
            f"the functions of the ONNX model cannot be put in place: {str(error)[:200]}"
        ) from None
    return nodes


class _Sizes:
    """How many nodes calls of functions become."""

    def __init__(self, functions: dict[Key, Any], most: int) -> None:
        self._functions, self._most = functions, most
        self._known: dict[Key, int] = {}
        self._open: set[Key] = set()

    def of(self, nodes: Sequence[Any]) -> int:
        total = 0
        for node in nodes:
            total += self._of_node(node)
            if total > self._most:
                raise ConvertError(
                    f"the functions of the ONNX model become more than {self._most} nodes, which "
                    f"is the most that is supported"
                )
        return total

    def _of_node(self, node: Any) -> int:
        bodies = sum(self.of(a.g.node) for a in node.attribute if a.type == 5)
        key = (node.domain, node.op_type)
        function = self._functions.get(key)
        if function is None:
            return 1 + bodies
        if key in self._open:
            raise ConvertError(
                f"function {key[1]!r:.200} of the ONNX model calls itself; expected none that does"
            )
        if key not in self._known:
            self._open.add(key)
            self._known[key] = self.of(function.node)
            self._open.remove(key)
        return self._known[key] + bodies
