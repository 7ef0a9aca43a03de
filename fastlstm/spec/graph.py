"""A model: named inputs, nodes, each of them a layer and the values it reads, and named outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastlstm.spec.frozen import Frozen, frozen
from fastlstm.spec.kinds import layer_from_dict
from fastlstm.spec.layer import Layer, Node, _plain, check_name
from fastlstm.spec.row import Shape

__all__ = ["Graph", "Input"]


@frozen
class Input(Frozen):
    """What a model is given.

    Parameters
    ----------
    name : str
        Unique among the inputs and layers of the graph.
    shape : tuple of int
        The axes of one row: ``(I,)`` for features, ``()`` for one token.
    tokens : int, default 0
        If it is tokens, how many different ones there are: integers from 0 to below it.
    held : bool, default False
        Whether there is one row for a whole sequence instead of one for each step.
    """

    name: str
    shape: Shape
    tokens: int = 0
    held: bool = False

    def __post_init__(self) -> None:
        check_name("input", self.name)
        for name, kind in (("shape", "tuple[int, ...]"), ("tokens", "int"), ("held", "bool")):
            value, expected = _plain(kind, getattr(self, name), {"least": int(name == "shape")})
            if expected:
                raise ValueError(
                    f"input {self.name!r}: {name} is {value!r:.80}; expected {expected}"
                )
            object.__setattr__(self, name, value)


@frozen
class Graph(Frozen):
    """A model, in any order of its nodes; :func:`~fastlstm.spec.check` finds the one they run in.

    Parameters
    ----------
    inputs : sequence of Input
    nodes : sequence of Node
    outputs : mapping of str to str
        Name of an output -> name of the layer or input whose rows it is.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "outputs", dict(self.outputs))

    def __hash__(self) -> int:
        return hash((self.inputs, self.nodes))  # a mapping has none

    @classmethod
    def chain(
        cls, layers: Sequence[Layer], *, shape: Sequence[int] | None = None, tokens: int = 0
    ) -> Graph:
        """Layers that each read the one before: from the input ``"input"`` to ``"output"``.

        Parameters
        ----------
        layers : sequence of Layer
            In the order in which they run, each with a name of its own.
        shape : sequence of int, optional
            The axes of a row of the input; those that the first layer takes, if it tells.
        tokens : int, default 0
            How many tokens the input knows, if `shape` is given and it is tokens.
        """
        if not layers:
            raise ValueError("a chain needs at least one layer; the list is empty")
        first = layers[0]
        if shape is None:
            shape, tokens = getattr(first, "input_shape", None), getattr(first, "input_tokens", 0)
        if shape is None:
            raise ValueError(
                f"layer {first.name!r} ({first.kind}) does not tell what rows it takes; pass shape="
            )
        names = ["input", *(layer.name for layer in layers)]
        nodes = [layer(name) for layer, name in zip(layers, names, strict=False)]
        return cls((Input("input", tuple(shape), tokens),), tuple(nodes), {"output": names[-1]})

    def to_dict(self) -> dict[str, Any]:
        """The graph as JSON values."""
        return {
            "inputs": [
                {"name": i.name, "shape": list(i.shape), "tokens": i.tokens, "held": i.held}
                for i in self.inputs
            ],
            "nodes": [node.layer.to_dict() | {"reads": list(node.reads)} for node in self.nodes],
            "outputs": [[name, value] for name, value in self.outputs.items()],
        }

    @classmethod
    def from_dict(cls, entry: object) -> Graph:
        """The inverse of :meth:`to_dict`, strict: every field present, no other one.

        Raises
        ------
        ValueError
            If a field is missing, unknown, of the wrong type or out of range.
        """
        graph = _fields("a graph", entry, ("inputs", "nodes", "outputs"))
        for name in ("inputs", "nodes", "outputs"):
            if type(graph[name]) is not list:
                raise ValueError(f"{name!r} of the graph is not a list")
        outputs: dict[str, str] = {}
        for pair in graph["outputs"]:
            if type(pair) is not list or list(map(type, pair)) != [str, str]:
                raise ValueError(f"an output is {pair!r:.80}; expected its name and a value's")
            if pair[0] in outputs:
                raise ValueError(f"two outputs are called {pair[0]!r:.80}")
            outputs[pair[0]] = pair[1]
        inputs = []
        for one in graph["inputs"]:
            given = _fields("an input", one, ("name", "shape", "tokens", "held"))
            if type(given["shape"]) is not list:
                raise ValueError(f"an input's shape is {given['shape']!r:.80}; expected a list")
            inputs.append(Input(**given))
        nodes = []
        for one in graph["nodes"]:
            if not isinstance(one, dict):
                raise ValueError(f"a node is {type(one).__name__}; expected a mapping")
            reads = one.get("reads")
            if type(reads) is not list or not all(isinstance(name, str) for name in reads):
                raise ValueError(f"a node reads {reads!r:.80}; expected a list of names")
            layer = layer_from_dict({k: v for k, v in one.items() if k != "reads"})
            nodes.append(Node(layer, tuple(reads)))
        return cls(tuple(inputs), tuple(nodes), outputs)


def _fields(what: str, entry: object, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{what} is {type(entry).__name__}; expected a mapping")
    if wrong := sorted(map(str, entry.keys() ^ set(names))):
        raise ValueError(f"{what}: missing or unknown fields {', '.join(map(repr, wrong)):.200}")
    return entry
