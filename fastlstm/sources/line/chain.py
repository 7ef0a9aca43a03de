"""From recorded operations to layers, when it is known what every axis means."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.line.axes import FEATURES, Axis, Group, significant, size_of
from fastlstm.sources.line.nodes import Array, Joined, Node, Part, Value

__all__ = ["Made", "make_layers", "order", "refuse_unordered", "row_size"]

# Blocks within each other that are followed; a model may hold fewer.
MAX_NESTING = 4

# Features of a step. No weights need to back them, so a small file could ask for any number.
MAX_ROW = 2**22


@dataclass(frozen=True)
class Made:
    """What a line became.

    Parameters
    ----------
    layers : tuple of spec.Layer
        Checked.
    tensors : dict of str to array
        Exactly those the layers ask for, of the dtypes they came in.
    report : list of str
        A sentence for each layer.
    became : dict of str to str
        By the name of an operation, that of the layer it became.
    """

    layers: tuple[spec.Layer, ...]
    tensors: dict[str, Array]
    report: list[str]
    became: dict[str, str]


def features(axes: Group) -> Group:
    """Those of the axes that are features, whose roles must be known."""
    return tuple(axis for axis in significant(axes) if axis.role.is_(FEATURES))


def row_size(axes: Group) -> int:
    """The features of a step, of an array with these axes."""
    size = size_of(features(axes))
    if size is None:
        raise ConvertError(
            "the features of a step are of a size that is not known; expected only time and batch "
            "to be so"
        )
    if size > MAX_ROW:
        raise ConvertError(f"a step has {size} features; at most {MAX_ROW} are supported")
    return size


def order(row: Group, groups: Sequence[Group], name: str) -> npt.NDArray[np.intp] | None:
    """For each feature of a row, where it is counted along `groups`; None if in the same order.

    Raises
    ------
    ConvertError
        If the groups are not all the features there are.
    """
    have, wanted = features(row), features(sum(groups, ()))
    if have == wanted:
        return None
    sizes = [axis.size or 0 for axis in wanted]
    if set(have) != set(wanted) or len(have) != len(wanted) or 0 in sizes:
        raise ConvertError(
            f"{name!r:.200} reads features of shape {_shape(wanted)}; expected it to read all "
            f"features of a step, which are of shape {_shape(have)}"
        )
    places = np.arange(size_of(wanted) or 0).reshape(sizes)
    return places.transpose([wanted.index(axis) for axis in have]).reshape(-1)


def _shape(axes: Sequence[Axis]) -> str:
    return str(tuple("?" if axis.size is None else axis.size for axis in axes)).replace("'", "")


def refuse_unordered(value: Value, groups: Sequence[Group], name: str) -> None:
    """Check that the groups of a value are its features, in the order of its row."""
    if order(value.node.row, groups, name) is not None:
        raise ConvertError(
            f"{name!r:.200} follows a transpose that changes the order of a step's features; "
            f"expected that only before a linear or recurrent layer"
        )


def make_layers(output: Value, start: Node) -> Made:
    """The layers from the node of the input to the output."""
    maker = _Maker()
    layers = tuple(maker.line(output.node, start, 0))
    refuse_unordered(output, output.axes, "the output")
    if not layers:
        raise ConvertError("the output is the input itself; expected a layer between them")
    try:
        spec.check_layers(layers)
        shapes = {name: array.shape for name, array in maker.tensors.items()}
        spec.check_tensors(layers, shapes)
    except ValueError as error:
        raise ConvertError(f"the layers make no model: {error}") from None
    report = [
        f"layer {layer.name!r}: {layer.describe()}, from {maker.origin[layer.name]!r:.200}"
        for layer in spec.walk(layers)
    ]
    became = {origin: name for name, origin in maker.origin.items()}
    return Made(layers, maker.tensors, report, became)


class _Maker:
    """Makes layers of nodes, in the order in which they run, with names legal and unique."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self.origin: dict[str, str] = {}  # name of a layer -> that of its operation

    def line(self, node: Node, start: Node, depth: int) -> list[spec.Layer]:
        """The layers behind the node `start` up to `node`."""
        backwards: list[tuple[Node, Node]] = []
        while node is not start:
            if isinstance(node, Joined):
                before = _ends(node)[0].node
            elif node.make is None or node.source is None:
                raise ConvertError(_astray(node))
            else:
                before = node.source.node
            backwards.append((node, before))
            node = before
        layers = []
        for node, _ in reversed(backwards):
            if isinstance(node, Joined):
                layers.append(self.residual(node, depth))
            elif node.make and (layer := self.called(node.name, node.make)):
                layers.append(layer)
        return layers

    def called(self, name: str, make: Callable[[str], Part | None]) -> spec.Layer | None:
        legal = re.sub(r"[^A-Za-z0-9_.\-]", "_", name).lstrip(".-")[:190] or "layer"
        number, unique = 1, legal
        while unique in self.origin:
            number += 1
            unique = f"{legal}_{number}"
        try:
            made = make(unique)
        except ConvertError:
            raise
        except ValueError as error:
            raise ConvertError(f"{name!r:.200} makes no layer: {error}") from None
        if made is None:
            return None
        layer, tensors = made
        if not layer.takes_tokens and max(layer.input_size, layer.output_size) > MAX_ROW:
            raise ConvertError(
                f"{name!r:.200} turns {layer.input_size} features into {layer.output_size}; at "
                f"most {MAX_ROW} are supported"
            )
        self.origin[unique] = name
        self.tensors |= {f"{unique}.{suffix}": array for suffix, array in tensors.items()}
        return layer

    def residual(self, node: Joined, depth: int) -> spec.Layer:
        """The layer of a sum, or a concatenation, of a value and what was made of it."""
        before, after, combine = _ends(node)
        if depth == MAX_NESTING:
            raise ConvertError(
                f"{node.name!r:.200} lies within {depth} other blocks; expected fewer"
            )
        for value in node.values:
            groups = list(value.axes)
            if node.axis is not None:
                groups.insert(0, groups.pop(node.axis))
            refuse_unordered(value, groups, node.name)
        if node.joint and not node.joint.role.is_(FEATURES):
            raise ConvertError(
                f"{node.name!r:.200} concatenates along time or batch; expected features"
            )
        inside = tuple(self.line(after.node, before.node, depth + 1))
        layer = self.called(node.name, lambda name: (spec.Residual(name, inside, combine), {}))
        assert layer is not None
        return layer


def _ends(node: Joined) -> tuple[Value, Value, str]:
    """Where the detour of a sum or concatenation begins, where it ends, and how they combine."""
    what = "adds" if node.axis is None else "concatenates"
    if len(node.values) != 2:
        raise ConvertError(
            f"{node.name!r:.200} {what} {len(node.values)} arrays; expected two, a block's input "
            f"and its output"
        )
    first, second = node.values
    if first.node is not second.node:
        if _reaches(second.node, first.node):
            return first, second, "add" if node.axis is None else "input_first"
        if _reaches(first.node, second.node):
            return second, first, "add" if node.axis is None else "output_first"
    raise ConvertError(
        f"{node.name!r:.200} {what} what {first.node.name!r:.200} and {second.node.name!r:.200} "
        f"give; expected one of them to be the input of a block that ends with the other"
    )


def _reaches(node: Node, target: Node) -> bool:
    """Whether a node was made of the target."""
    waiting, seen = [node], {id(node)}
    while waiting:
        current = waiting.pop()
        if current is target:
            return True
        values = current.values if isinstance(current, Joined) else (current.source,)
        for value in values:
            if value is not None and id(value.node) not in seen:
                seen.add(id(value.node))
                waiting.append(value.node)
    return False


def _astray(node: Node) -> str:
    if node.unfinished:
        return f"{node.name!r:.200} is no step of its own; expected {node.unfinished}"
    if node.source is None and node.row:
        return (
            "a block begins within another and ends behind it; expected one within the other, or "
            "one behind the other"
        )
    return f"{node.name!r:.200} is not made of the input; expected one line from input to output"
