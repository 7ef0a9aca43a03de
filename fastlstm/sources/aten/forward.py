"""From a forward, whoever follows it, to a graph: what its inputs are and what it carries.

A forward is a program of the operators of ATen that has arrays of its own, buffers, which it may
change. The driver of the builder (:mod:`fastlstm.sources.arrays.follow`) has to be told of each
state before it runs; what a run tells of a forward, it therefore raises, and it is run anew.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, SizeError, Value
from fastlstm.sources.arrays import follow as driver
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.ways import Axes
from fastlstm.sources.aten.reductions import Unknown
from fastlstm.sources.aten.table import Array, TokenError, is_array
from fastlstm.sources.conversion import BATCH, Call, Conversion, conversions, joined
from fastlstm.sources.pytorch.state_dict import Tensor, to_array

__all__ = ["Endless", "Forward", "Input", "Ran", "Zeros", "convert", "flat"]

# Sizes of the axes of a state that are not known, until a weight tells: none of them comes up by
# itself, and none is a multiple of another.
UNTOLD = (131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197)
MOST_TRIES = 64

# What an argument is called that the next call is given what this one returned for.
STATE_NAME = re.compile(
    r"(?:.*_)?(?:[hc]|hx|cx|hc|h_?[0tn]|c_?[0tn]|hidden|cell|states?|mem|memory|cache|carry|buf|"
    r"buffer|prev|past|hiddens|hidden_states?|cell_states?)(?:_?(?:in|old|prev|t|\d+))*(?:\[.*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Input:
    """An array that a forward is given.

    Parameters
    ----------
    name : str
    shape : tuple of int or None, or None
        None for each size that is not known, and for a number of axes that is not.
    kind : {"float", "int", "bool", ""}
        "" where it is not known.
    example : bool
        Whether the shape is one of many: that of the array which the forward was traced with.
    optional : bool
        Whether it may be left out; it is, unless it is a state.
    state : bool
        Whether it can be a state, whatever it is called.
    axes : tuple, optional
        What its axes are, where that is known.
    """

    name: str
    shape: tuple[int | None, ...] | None = None
    kind: str = ""
    example: bool = False
    optional: bool = False
    state: bool = False
    axes: Axes | None = None


@dataclass(frozen=True)
class Zeros:
    """What a state holds before the first call, if that is zeros of any batch.

    Parameters
    ----------
    shape : tuple of int or None
        None for the batch.
    """

    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Ran:
    """What a run of a forward gave.

    Parameters
    ----------
    returned : dict of str to object
        By its place in what was returned.
    written : dict of str to object
        By its path, each attribute that the run has changed, and what it holds now.
    """

    returned: dict[str, Any]
    written: dict[str, Any]


class Forward(Protocol):
    """A forward that can be followed."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]  # the places of what it returns, as far as they are known
    attributes: dict[str, Any]  # its own arrays, and what else it holds, by path

    @property
    def dtypes(self) -> Mapping[int, str]:
        """By the id of an array, what it is stored in."""
        ...

    def may_write(self) -> Mapping[str, Array | Zeros]:
        """By path, arrays that it seems to change, as they are before the first call."""
        ...

    def __call__(
        self, builder: Builder, given: Mapping[str, Any], states: Mapping[str, Any]
    ) -> Ran:
        """Follow it once, with these inputs and what these attributes hold."""
        ...


def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays by their place in what was returned: ``"[1][0]"``, ``"['y']"``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{place}[{key!r:.80}]")
    elif isinstance(value, list | tuple):
        for n, item in enumerate(value):
            yield from flat(item, f"{place}[{n}]")
    elif value is not None:
        yield place, value


def convert(forward: Forward, how: str, dtype: str) -> Conversion:
    """The model that a forward is.

    Parameters
    ----------
    forward : Forward
    how : str
        A sentence for the report.
    dtype : {"float32", "float64"}
        What the model is stored in.

    Raises
    ------
    ConvertError
        If it computes what no graph can.
    """
    made = _followed(forward)
    stored = [
        Tensor(name, array.shape, forward.dtypes.get(id(array), str(array.dtype)), array)
        for name, array in made.tensors.items()
    ]
    return Conversion(
        made.graph,
        {tensor.name: to_array(tensor, dtype) for tensor in stored},
        (how, *made.notes, *conversions(stored, dtype)),
        None,
        made.call,
    )


@dataclass(frozen=True)
class _Known:
    """What has been found of a forward so far.

    Parameters
    ----------
    written : dict of str to array
        By path, attributes that a call changes, with what they hold before the first.
    kinds : dict of str to str
        Of inputs that are not of real numbers.
    sizes : dict of (str, int) to int
        Of axes of states.
    """

    written: dict[str, Any]
    kinds: dict[str, str] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)


class Endless(Exception):  # noqa: N818  (it becomes a ConvertError)
    """A run takes too long, so that no other way to take the inputs is tried."""


class _Found(Exception):  # noqa: N818  (it is no error)
    """More is known of a forward, so that it is followed anew."""

    def __init__(self, known: _Known) -> None:
        self.known = known


def _followed(forward: Forward) -> driver.Followed:
    """The graph of a forward, its states found one after the other."""
    if not forward.inputs:
        raise ConvertError("forward takes no array")
    failed: list[tuple[int, ConvertError]] = []
    varies = False
    seems = forward.may_write()
    begins: list[Mapping[str, Any]] = [seems, {}] if seems else [{}]
    for (pairs, shapes, rows), written in itertools.product(_pairings(forward), begins):
        known = _Known(dict(written))
        for _ in range(MOST_TRIES):
            program = _Program(forward, known, pairs, shapes, rows, varies)
            try:
                made = program.made()
                if any(one.optional and one.name in pairs for one in forward.inputs):
                    without = _Program(forward, known, {}, shapes, rows, varies)
                    without.left_out = frozenset(pairs.values())
                    _check_start(made, without.made())
                return made
            except Endless as error:
                raise ConvertError(str(error)) from None
            except _Found as found:
                known = found.known
            except ConvertError as error:
                failed.append((program.furthest, error))
                varies = varies or isinstance(error, driver.DependsError)
                break
    raise max(failed, key=lambda one: one[0])[1]


def _check_start(made: driver.Followed, without: driver.Followed) -> None:
    """Check that states which may be left out start from what they are then, which is zeros."""
    if made.graph != without.graph:
        raise ConvertError("what forward starts from without its states is no row of zeros")


Shapes = dict[str, tuple[int | None, ...] | None]


def _pairings(forward: Forward) -> Iterator[tuple[dict[str, str], Shapes, int]]:
    """Which inputs may be given what the call before returned, the shapes, and rows of the batch.

    That they may be states, the names of the last inputs tell; as many of the last outputs are what
    becomes of them. The batch is the second axis of a state of three, as torch's are, and the first
    of one of two or four. A program that was exported for one size of the batch is tried for others
    before it is taken for that one.
    """
    shapes = {one.name: one.shape for one in forward.inputs}
    names = [*shapes]
    pairs: dict[str, str] = {}
    for most in range(min(len(names) - 1, len(forward.outputs)), 0, -1):
        last = forward.inputs[-most:]
        if all(one.state or STATE_NAME.fullmatch(one.name) for one in last):
            pairs = dict(zip(names[-most:], _given_back(forward.outputs, most), strict=True))
            break
    free = [name for name in pairs if shapes[name] is None]
    # Sizes in turn, so that no two axes of states have the same one, nor the one of a weight.
    own_sizes = {n for a in forward.attributes.values() if is_array(a) for n in np.shape(a)}
    sizes = itertools.cycle([n for n in UNTOLD if n not in own_sizes] or UNTOLD)
    for rank in (3, 2, 1, 4) if free else (0,):
        batch = {3: 1, 1: None}.get(rank, 0)
        own: Shapes = {
            name: tuple(None if n == batch else next(sizes) for n in range(rank)) for name in free
        }
        for known, rows in _batches(forward.inputs, pairs):
            yield pairs, known | own, rows
    if pairs:
        for known, rows in _batches(forward.inputs, {}):
            yield {}, known, rows


def _given_back(outputs: Sequence[str], count: int) -> Sequence[str]:
    """The outputs that are states: so many of one tuple, or else the last."""
    parents = [place.rpartition("[")[0] for place in outputs]
    for parent in dict.fromkeys(parents[::-1]):
        if parent and parents.count(parent) == count:
            return [o for o, p in zip(outputs, parents, strict=True) if p == parent]
    return outputs[-count:]


def _batches(inputs: Sequence[Input], pairs: Mapping[str, str]) -> Iterator[tuple[Shapes, int]]:
    """Shapes with the batch free, where all inputs may have it as an axis, and as they are.

    With each goes the number of rows that the batch has to have, or 0.
    """
    inputs = [one for one in inputs if not one.optional or one.name in pairs]
    shapes = {one.name: one.shape for one in inputs}
    data = [s for n, s in shapes.items() if s and n not in pairs]
    if any(one.axes is not None for one in inputs):
        known = {
            size
            for one in inputs
            for axis, size in zip(one.axes or (), one.shape or (), strict=False)
            if axis == BATCH and size is not None
        }
        yield shapes, next(iter(known)) if len(known) == 1 else 0
        return
    sizes = [{shape[n] for shape in data if len(shape) > 1 + n} for n in (0, 1)]
    rows = [next(iter(s)) or 0 if len(s) == 1 else 0 for s in sizes]
    pinned = [0, *(n for n in rows if n > 1)]
    if any(one.example for one in inputs):
        free = _without(shapes, pairs, 0, None)
        yield {n: s if n in pairs or not s else (None,) * len(s) for n, s in free.items()}, 0
    if data:
        # Time and batch are the first two axes of most programs, in either order.
        free = _without(_without(shapes, pairs, 0, None), pairs, 1, None)
        yield from ((free, n) for n in pinned)
        least = 1 if any(one.example for one in inputs) else 2
        freed = [_without(shapes, pairs, axis, n) for axis, n in enumerate(rows) if n >= least]
        yield from ((one, n) for one in freed for n in pinned)
    yield shapes, 0


def _without(shapes: Shapes, pairs: Mapping[str, str], axis: int, size: int | None) -> Shapes:
    """Shapes whose axis of the batch is free, if it has this size, or any."""
    made: Shapes = {}
    for name, shape in shapes.items():
        batch = axis
        if name in pairs:
            batch = 1 if shape and len(shape) == 3 else 0
        made[name] = shape and tuple(
            None if n == batch and size in (None, one) else one for n, one in enumerate(shape)
        )
    return made


class _Program:
    """A forward as the driver runs it, with what is known of it."""

    def __init__(
        self,
        forward: Forward,
        known: _Known,
        pairs: dict[str, str],
        shapes: Shapes,
        rows: int,
        varies: bool,
    ) -> None:
        self.forward, self.known, self.pairs, self.shapes = forward, known, pairs, shapes
        self.varies = varies  # whether lengths were seen to matter
        self.rows = (rows, rows) if rows else driver.ROWS
        self.furthest = 0  # operations until it failed
        self.left_out: frozenset[str] = frozenset()  # of its outputs
        self.inputs = [one for one in forward.inputs if not one.optional or one.name in pairs]

    def made(self) -> driver.Followed:
        parameters = [
            driver.Parameter(
                one.name,
                self._shape(one.name),
                self.known.kinds.get(one.name, one.kind or "float"),
                axes=one.axes,
                example=one.shape if one.example else None,
                varies=one.example and self.varies,
            )
            for one in self.inputs
        ]
        parameters += [
            driver.Parameter(path, start.shape, start=None if isinstance(start, Zeros) else start)
            for path, start in self.known.written.items()
        ]
        pairs = self.pairs | {path: path for path in self.known.written}
        made = driver.follow(self, parameters, [pairs], rows=self.rows)
        arguments = [a for a in made.call.arguments if a.name not in self.known.written]
        outputs = [a for a in made.call.outputs if a.name not in self.known.written]
        call = Call(tuple(arguments), tuple(outputs))
        return replace(made, call=call, notes=(*made.notes, *self._notes()))

    def _notes(self) -> Iterator[str]:
        """What a stream carries, and what was left out."""
        if self.known.written:
            names = joined([*self.known.written])
            yield f"carried from call to call, as forward changes it: {names}"
        if self.pairs:
            told = [f"{name} (what {output} was)" for name, output in self.pairs.items()]
            yield f"carried from call to call: {joined(told)}"
        if left := [one.name for one in self.forward.inputs if one not in self.inputs]:
            yield f"left out, as forward allows: {joined(left)}"

    def _shape(self, name: str) -> tuple[int | None, ...] | None:
        shape = self.shapes[name]
        if shape is None:
            return None
        return tuple(self.known.sizes.get((name, n), size) for n, size in enumerate(shape))

    def __call__(self, builder: Builder, given: dict[str, Value]) -> driver.Outcome:
        states = {path: given[path] for path in self.known.written}
        inputs = {one.name: given[one.name] for one in self.inputs}
        try:
            ran = self.forward(builder, inputs, states)
        except SizeError as error:
            self._learn_size(error)
            raise
        except TokenError as error:
            self._learn_kind(builder, error)
            raise
        finally:
            self.furthest = max(self.furthest, builder.operations)
        written = self._written(ran.written)
        self._check_sizes(inputs)
        outputs: dict[str, Value] = {}
        for place, value in ran.returned.items():
            if isinstance(value, Unknown):
                raise ConvertError(f"an output is {value.what}, which is not supported")
            if not is_array(value):
                raise ConvertError(
                    f"output {place or 'of forward'} is a {type(value).__name__}; expected arrays"
                )
            if (place or "output") not in self.left_out:
                outputs[place or "output"] = value
        return driver.Outcome(self._without_last_states(builder, outputs), written)

    def _without_last_states(self, builder: Builder, outputs: dict[str, Value]) -> dict[str, Value]:
        """Outputs, without what is behind the first and is the last states of recurrent layers.

        These are the state that a model carries and returns by itself.
        """
        if not builder.last_states:
            return outputs
        known = np.concatenate([places.ravel() for places in builder.last_states])
        kept: dict[str, Value] = {}
        for n, (place, value) in enumerate(outputs.items()):
            carried = place in self.pairs.values()
            own = isinstance(value, Value) and bool(np.isin(value.places, known).all())
            if n == 0 or carried or not own:
                kept[place] = value
            else:
                builder.note(
                    f"output {place!r:.200} is the last states of recurrent layers, which the "
                    f"model returns as its state"
                )
        return kept

    def _check_sizes(self, inputs: Mapping[str, Value]) -> None:
        """Check that weights have told all sizes of states, where the run came to its end."""
        for one in self.forward.inputs:
            if one.name not in inputs or one.shape is not None:
                continue
            for n, size in enumerate(self._shape(one.name) or ()):
                if size in UNTOLD and (one.name, n) not in self.known.sizes:
                    raise ConvertError(f"nothing tells the size of axis {n} of {one.name!r:.200}")

    def _learn_size(self, error: SizeError) -> None:
        """Of a state, from the weight that contradicts it."""
        for name in self.pairs:
            for axis, size in enumerate(self._shape(name) or ()):
                if size == error.got and size in UNTOLD:
                    sizes = self.known.sizes | {(name, axis): error.needed}
                    raise _Found(replace(self.known, sizes=sizes))

    def _learn_kind(self, builder: Builder, error: TokenError) -> None:
        """Of an input that is looked up in a table: it is of tokens."""
        numbers = np.unique(at.row_of(error.value.places))
        names = [one.name for one in self.inputs]
        for name in names:
            called = "input" if len(names) - len(self.pairs) == 1 else name
            if self.known.kinds.get(name) == "int":
                continue
            if any(builder.rows.of(int(n)).name == called for n in numbers if n >= 0):
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
                    f"of its inputs' after; expected a buffer, whose value is what a stream starts "
                    f"from"
                )
            found[path] = start
        idle = {path for path in self.known.written if path not in written}
        if found or idle:
            states = {p: s for p, s in (self.known.written | found).items() if p not in idle}
            raise _Found(replace(self.known, written=states))
        return {path: written[path] for path in self.known.written}
