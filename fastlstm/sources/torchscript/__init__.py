"""Read an archive of ``torch.jit.save``: its forward, followed without torch and without running it.

What the archive's code computes of arrays drives the one builder of graphs. Buffers and attributes
that forward changes are the state that a stream carries, and so are arguments that it gives back.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, SizeError, Value
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays import follow as driver
from fastlstm.sources.arrays.follow import Followed, Outcome, Parameter, follow
from fastlstm.sources.aten import Unknown
from fastlstm.sources.aten.layers import TokenError
from fastlstm.sources.conversion import Call, Conversion, conversions
from fastlstm.sources.pytorch.state_dict import Tensor, to_array
from fastlstm.sources.torchscript.archive import is_archive, read_archive
from fastlstm.sources.torchscript.program import Forward, flat
from fastlstm.sources.torchscript.types import nested, places

__all__ = ["is_archive", "read"]

# Sizes of the axes of a state that are not known, until a weight tells: none of them comes up by
# itself, and none is a multiple of another.
UNKNOWN = (1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091, 1093)
MOST_TRIES = 64
_UNTOLD = {*UNKNOWN, driver.UNKNOWN, driver.UNKNOWN + 8}

# What an argument is called that the next call is given what this one returned for.
STATE_NAME = re.compile(
    r"(?:.*_)?(?:[hc]|hx|cx|hc|h_?[0tn]|c_?[0tn]|hidden|cell|states?|mem|memory|cache|carry|buf|"
    r"buffer|prev|past|hiddens|hidden_states?|cell_states?)(?:_?(?:in|old|0|prev|t|\d+))?(?:\[.*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Known:
    """What has been found of a forward so far.

    Parameters
    ----------
    written : dict of str to array
        By path, attributes that a call changes, with what they hold before the first.
    kinds : dict of str to str
        Of arguments that are not of real numbers.
    sizes : dict of (str, int) to int
        Of axes of states.
    fixed : set of str
        Paths of attributes that no call changes, though a method may.
    """

    written: dict[str, Any]
    kinds: dict[str, str] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()


class _Found(Exception):  # noqa: N818  (it is no error)
    """More is known of a forward, so that it is followed anew."""

    def __init__(self, known: _Known) -> None:
        self.known = known


def read(path: str | os.PathLike[str], dtype: str = "float32") -> Conversion:
    """Read an archive of TorchScript.

    Parameters
    ----------
    path : str or path-like
    dtype : {"float32", "float64"}
        What the model is stored in.

    Raises
    ------
    ConvertError
        If the file is damaged, or forward computes what no graph can; the message names the
        operator and the line.
    OSError
        If the file cannot be read.
    """
    archived = read_archive(path)
    made = _followed(Forward(archived))
    stored = [
        Tensor(name, array.shape, archived.dtypes.get(id(array), str(array.dtype)), array)
        for name, array in made.tensors.items()
    ]
    return Conversion(
        made.graph,
        {tensor.name: to_array(tensor, dtype) for tensor in stored},
        ("forward was followed in the code of the archive", *made.notes,
         *conversions(stored, dtype)),
        None,
        made.call,
    )  # fmt: skip


def _followed(forward: Forward) -> Followed:
    """The graph of a forward, its states found one after the other."""
    failed: ConvertError | None = None
    seems = forward.may_write()
    begins = [seems, {}] if seems else [{}]
    for (pairs, ranks), written in itertools.product(_pairings(forward), begins):
        known = _Known(written)
        for _ in range(MOST_TRIES):
            one = _Program(forward, known, pairs, ranks)
            try:
                return one.made()
            except _Found as found:
                known = found.known
            except ConvertError as error:
                failed = failed or error
                break
    assert failed is not None
    raise failed


def _arrays(forward: Forward) -> list[str]:
    """Names of the arrays that forward has to be given."""
    names = []
    for one in forward.arguments:
        if one.optional:
            continue
        for place, kind in places(one.type):
            if kind != "Tensor":
                raise ConvertError(
                    f"forward needs an argument {one.name + place!r:.80} of type {kind:.80}; "
                    f"expected arrays, and defaults for all else"
                )
            names.append(one.name + place)
    if not names:
        raise ConvertError("forward takes no array")
    return names


def _pairings(forward: Forward) -> Iterator[tuple[dict[str, str], int]]:
    """Which arguments may be given what the call before returned, and of how many axes they are.

    That they may be states, the names of the last arguments tell; as many of the last outputs are
    what becomes of them.
    """
    names = _arrays(forward)
    outputs = [place or "output" for place, kind in places(forward.returns) if kind == "Tensor"]
    for most in range(min(len(names) - 1, len(outputs)), 0, -1):
        if all(STATE_NAME.fullmatch(name) for name in names[-most:]):
            pairs = dict(zip(names[-most:], outputs[-most:], strict=True))
            for rank in (3, 2, 1, 4):
                yield pairs, rank
            break
    yield {}, 0


class _Program:
    """A forward as the driver runs it, with what is known of it."""

    def __init__(
        self, forward: Forward, known: _Known, pairs: dict[str, str], rank: int
    ) -> None:
        self.forward, self.known, self.pairs, self.rank = forward, known, pairs, rank
        self.names = _arrays(forward)

    def made(self) -> Followed:
        parameters = [
            Parameter(name, self._shape(name), self.known.kinds.get(name, "float"))
            for name in self.names
        ]
        parameters += [
            Parameter(path, np.shape(start), start=start)
            for path, start in self.known.written.items()
        ]
        pairs = self.pairs | {path: path for path in self.known.written}
        made = follow(self, parameters, [pairs])
        arguments = [a for a in made.call.arguments if a.name not in self.known.written]
        outputs = [a for a in made.call.outputs if a.name not in self.known.written]
        return replace(made, call=Call(tuple(arguments), tuple(outputs)))

    def _shape(self, name: str) -> tuple[int | None, ...] | None:
        """Of a state: the batch is its second axis of three, and its first of two or four."""
        if name not in self.pairs:
            return None
        batch = {3: 1, 1: None}.get(self.rank, 0)
        first = 4 * list(self.pairs).index(name)
        return tuple(
            None if axis == batch else self.known.sizes.get(
                (name, axis), UNKNOWN[(first + axis) % len(UNKNOWN)]
            )
            for axis in range(self.rank)
        )  # fmt: skip

    def __call__(self, builder: Builder, given: dict[str, Value]) -> Outcome:
        arguments = {
            one.name: nested(one.type, one.name, given)
            for one in self.forward.arguments
            if not one.optional
        }
        states = {path: given[path] for path in self.known.written}
        try:
            ran = self.forward(builder, arguments, states)
        except SizeError as error:
            self._learn_size(error)
            raise
        except TokenError as error:
            self._learn_kind(builder, error)
            raise
        written = self._written(ran.written)
        self._check_sizes(given)
        outputs: dict[str, Value] = {}
        for place, value in flat(ran.returned):
            if isinstance(value, Unknown):
                raise ConvertError(f"an output is {value.what}, which is not supported")
            outputs[place or "output"] = value
        return Outcome(outputs, written)

    def _check_sizes(self, given: Mapping[str, Value]) -> None:
        """Check that weights have told all sizes of the inputs, where the run came to its end."""
        for name, value in given.items():
            untold = [n for n, size in enumerate(value.shape) if size in _UNTOLD]
            if untold and name not in self.known.written:
                raise ConvertError(f"nothing tells the size of axis {untold[0]} of {name!r:.200}")

    def _learn_size(self, error: SizeError) -> None:
        """Of a state, from the weight that contradicts it."""
        for name in self.pairs:
            for axis, size in enumerate(self._shape(name) or ()):
                if size == error.got and size in UNKNOWN:
                    sizes = self.known.sizes | {(name, axis): error.needed}
                    raise _Found(replace(self.known, sizes=sizes))

    def _learn_kind(self, builder: Builder, error: TokenError) -> None:
        """Of an input that is looked up in a table: it is of tokens."""
        numbers = np.unique(at.row_of(error.value.places))
        for name in self.names:
            called = "input" if len(self.names) - len(self.pairs) == 1 else name
            if any(builder.rows.of(int(n)).name == called for n in numbers if n >= 0):
                if self.known.kinds.get(name) != "int":
                    raise _Found(replace(self.known, kinds=self.known.kinds | {name: "int"}))

    def _written(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """What attributes hold after a call; which are states is known from the first."""
        found = {}
        for path, value in written.items():
            if path in self.known.written:
                continue
            start = self.forward.attributes.get(path)
            if not isinstance(start, np.ndarray) or not isinstance(value, Value):
                raise ConvertError(
                    f"forward sets attribute {path!r:.200}, which was no array before, or is none "
                    f"after; expected a buffer, whose value is what a stream starts from"
                )
            found[path] = start
        idle = {path for path in self.known.written if path not in written}
        if found or idle:
            states = {p: s for p, s in (self.known.written | found).items() if p not in idle}
            raise _Found(replace(self.known, written=states, fixed=self.known.fixed | idle))
        return {path: written[path] for path in self.known.written}
