"""What all layers share: a name, checked fields, tensors, state, and how they treat time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from fastlstm.spec.frozen import Frozen, extra, frozen
from fastlstm.spec.row import Row, Shape
from fastlstm.spec.timing import SAME, Term

__all__ = [
    "MAX_AXES",
    "MAX_REACH",
    "MAX_SIZE",
    "Layer",
    "Node",
    "OneRow",
    "check_name",
]

# Sizes are stored as 32-bit integers by some readers of the file; every product here is a Python
# integer, so nothing can wrap.
MAX_SIZE = 2**31 - 1

# Numbers of past rows that a layer may ask for: a file of a few bytes can name any dilation or
# delay, and whoever runs it keeps as much.
MAX_REACH = 2**20

MAX_AXES = 6  # of a row

# Names are those of the source, whatever characters it uses. Control characters would reach a
# terminal, and no encoding has surrogates.
_NAME = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]{1,255}")


def check_name(what: str, name: object) -> None:
    """Raise ValueError unless a name can stand in a file and before a tensor's."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} name {name!a:.80} is not usable; expected 1 to 255 characters, none of them a "
            f"control character"
        )


@frozen
class Layer(Frozen):
    """One layer: its options, the tensors it needs and the state it keeps.

    A layer maps rows to one row. It does not know where they come from: a
    :class:`~fastlstm.spec.Node` does.

    Parameters
    ----------
    name : str
        Unique within the graph. The row that the layer gives is called so.
    weights : str, optional
        Tensors are called ``<weights>.<suffix>``; by default `weights` is the name. Layers that
        name the same ones share them.
    tensor_names : tuple of (suffix, name), optional
        Tensors that are called otherwise, as their source calls them.
    """

    name: str
    _: dataclasses.KW_ONLY
    weights: str = extra(default="")
    tensor_names: tuple[tuple[str, str], ...] = extra(default=())
    kind: ClassVar[str]
    takes_tokens: ClassVar[bool] = False
    keeps_tokens: ClassVar[bool] = False  # whether it gives tokens where it is given some

    def __post_init__(self) -> None:
        check_name("layer", self.name)
        for field in fields(self):
            value, expected = _plain(str(field.type), getattr(self, field.name), field.metadata)
            if expected:
                raise self._refused(field.name, expected)
            object.__setattr__(self, field.name, value)
        for name in [self.weights] * bool(self.weights) + [name for _, name in self.tensor_names]:
            check_name("tensor", name)
        if len(dict(self.tensor_names)) < len(self.tensor_names):
            raise self._refused("tensor_names", "one name for each suffix")

    def __call__(self, *reads: str) -> Node:
        """The node of this layer that reads the values of these names."""
        return Node(self, reads)

    def _refused(self, field: str, expected: str) -> ValueError:
        return ValueError(
            f"layer {self.name!r}: {field} is {getattr(self, field)!r:.80}; expected {expected}"
        )

    @property
    def over_time(self) -> bool:
        """Whether it looks at more than one step, or makes another number of them."""
        return False

    @property
    def folds(self) -> bool:
        """Whether it makes one row of a whole sequence."""
        return False

    @property
    def looks_ahead(self) -> str:
        """Why a row needs the end of the sequence, so that it cannot be streamed; "" if not."""
        return ""

    @property
    def starts(self) -> int:
        """How many of the values it reads, the last ones, are held: what a sequence starts from."""
        return 0

    def output(self, reads: Sequence[Row]) -> Shape:
        """The axes of a row that it gives.

        Raises
        ------
        ValueError
            If it does not take rows of these shapes, saying what was given and what it takes.
        """
        raise NotImplementedError(self.kind)

    @property
    def terms(self) -> tuple[Term, Term]:
        """Rows that it makes of so many: of a whole sequence, and of so many of a stream."""
        return SAME, SAME

    def tensors(self) -> dict[str, Shape]:
        """Suffix -> shape, in PyTorch's order and under PyTorch's names."""
        return {}

    def matrices(self) -> dict[str, int]:
        """Suffix -> axis of its outputs, of each tensor that multiplies rows or is looked up in.

        These may be stored in another precision than what is computed in.
        """
        return {}

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        """Suffix -> shape of what one stream keeps; the first axis stands before the batch."""
        return {}

    def initial(self) -> dict[str, str]:
        """Suffix of a state -> suffix of the tensor it starts from, where that is not zero."""
        return {}

    def work(self, reads: Sequence[Row]) -> int:
        """Multiply-adds for each row that it gives."""
        return 0

    def names(self) -> dict[str, str]:
        """Suffix -> full name of each tensor, in the order of :meth:`tensors`."""
        return self._named({s: f"{self.weights or self.name}.{s}" for s in self.tensors()})

    def _named(self, names: dict[str, str]) -> dict[str, str]:
        """Names of tensors, those of :attr:`tensor_names` put in their places."""
        others = dict(self.tensor_names)
        if unknown := others.keys() - names.keys():
            known = ", ".join([*list(names)[:16], *["..."] * (len(names) > 16)])
            raise ValueError(
                f"layer {self.name!r}: tensor_names has {min(unknown)!r:.80}; expected some of "
                f"{known or 'none: it has no tensors'}"
            )
        return names | others

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON values, ``kind`` first."""
        values: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if not (field.metadata.get("extra") and value == field.default):
                values[field.name] = _lists(value)
        return values

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Layer:
        """The inverse of :meth:`to_dict` without its ``kind``, strict."""
        known = {f.name: f for f in fields(cls)}
        needed = {name for name, f in known.items() if not f.metadata.get("extra")}
        if wrong := sorted(map(str, (options.keys() - known) | (needed - options.keys()))):
            raise ValueError(
                f"layer kind {cls.kind!r}: missing or unknown fields "
                f"{', '.join(map(repr, wrong)):.200}"
            )
        made = cls(**options)
        for name, value in options.items():
            field, kept = known[name], getattr(made, name)
            if type(value) is not type(_lists(kept)):
                raise ValueError(f"layer kind {cls.kind!r}: {name} is {value!r:.80}")
            if field.metadata.get("extra") and kept == field.default:
                raise ValueError(
                    f"layer kind {cls.kind!r}: {name} is {value!r:.80}, which is left out"
                )
        return made

    def describe(self) -> str:
        """Options in the style of ``repr`` of a torch module, without the name."""
        inside = ", ".join(f"{k}={v}" for k, v in self.to_dict().items() if k not in _SILENT)
        return f"{self.kind}({inside})"

    def _reads(self, reads: Sequence[Row], *names: str) -> None:
        """Check how many values are read, for the message by what they are."""
        if len(reads) != len(names):
            raise ValueError(f"it reads {len(reads)} values; expected {', '.join(names)}")

    def _takes(self, row: Row, shape: Shape) -> None:
        """Check the axes of a row of which nothing is free."""
        if row.shape != shape:
            raise ValueError(f"it takes rows of {Row(shape)}, and is given {row}")


@frozen
class Node(Frozen):
    """A layer, and the names of the values it reads: inputs, or other layers."""

    layer: Layer
    reads: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(self.reads))

    @property
    def name(self) -> str:
        return self.layer.name


@frozen
class OneRow(Layer):
    """A layer that reads one value and looks at one step of it."""

    def output(self, reads: Sequence[Row]) -> Shape:
        self._reads(reads, "one value")
        return self.of_row(reads[0].shape)

    def of_row(self, shape: Shape) -> Shape:
        """The axes of a row that it gives for one of `shape`; as they are, if it is not said."""
        return shape


_SILENT = ("kind", "name")


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def _plain(kind: str, value: Any, metadata: Any) -> tuple[Any, str]:
    """A field's value as it is kept, and "" or what was expected instead."""
    if kind == "int":
        least = metadata.get("least", 1)
        if type(value) is int and least <= value <= MAX_SIZE:
            return value, ""
        if hasattr(value, "__index__") and not isinstance(value, bool):
            with contextlib.suppress(TypeError):  # of an array of several
                value = operator.index(value)  # a size read from an array is NumPy's integer
        good = type(value) is int and least <= value <= MAX_SIZE
        return value, "" if good else f"an integer from {least} to {MAX_SIZE}"
    if kind == "float":
        least = metadata.get("least", 0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and abs(value) <= sys.float_info.max:  # an integer may be larger
            value = float(value)
        good = type(value) is float and least <= value and math.isfinite(value)
        expected = "a finite number" + f" of at least {least}" * math.isfinite(least)
        return value, "" if good else expected
    if kind == "bool":
        return value, "" if type(value) is bool else "true or false"
    if kind == "str":
        return value, "" if type(value) is str else "a text"
    if kind == "tuple[int, ...]":
        inner, expected = "int", f"a list of at most {MAX_AXES} integers"
    elif kind == "tuple[str, ...]":
        inner, expected = "str", "a list of texts"
    elif kind.startswith("tuple[tuple["):
        one = "str" if "str" in kind else "int"
        n, inner = kind.count(one), f"tuple[{one}, ...]"
        expected = f"a list of lists of {n} {'texts' if one == 'str' else 'integers'}"
    else:
        raise TypeError(f"no check for a field of type {kind}")
    if not isinstance(value, list | tuple) or (inner == "int" and len(value) > MAX_AXES):
        return value, expected
    values = []
    for part in value:
        plain, wrong = _plain(inner, part, metadata)
        if wrong or (inner.startswith("tuple") and len(part) != n):
            return value, f"{expected}, each {wrong}" if wrong else expected
        values.append(plain)
    return tuple(values), ""
