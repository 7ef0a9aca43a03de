"""Run a program of arrays until it is known what its inputs are, and make a graph of it.

What an axis of an input is, no program says. Each way in which the axes can be time, batch and
features is tried, the most usual first; a wrong one soon contradicts a layer. A size that only the
input tells is found from the weights that it meets. What the call before has left is found by
running twice: once to see what becomes of each state, and once with that in its place.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder
from fastlstm.sources.arrays.carried import Starts, followed_back, of_first_turns
from fastlstm.sources.arrays.cells import recognise
from fastlstm.sources.arrays.core import ShortError, SizeError, Value
from fastlstm.sources.arrays.finish import Finished, finish, plain_name
from fastlstm.sources.arrays.ways import Axes, Parameter, Way, ways
from fastlstm.sources.conversion import BATCH, TIME, Argument, Call

__all__ = [
    "DependsError",
    "Followed",
    "OpenSizeError",
    "Outcome",
    "Parameter",
    "Program",
    "follow",
]

Array = npt.NDArray[Any]

STEPS = (11, 14)  # of the two runs: what depends on parity shows
ROWS = (2, 3)
UNKNOWN = 127  # a size that is not known, before it is found
MORE_STEPS = 3  # than a program of fixed length says
MOST_WAYS = 48
MOST_STEPS = 2**14


class OpenSizeError(ConvertError):
    """An axis of an input has a size that no weight tells.

    Parameters
    ----------
    name : str
        Of the input.
    axes : tuple of "batch", "time" or int
        What its axes were taken for; -1 for a size that is not known.
    why : str
        What became of it with some other size.
    """

    def __init__(self, name: str, axes: Axes, why: str = "") -> None:
        axis = f"axis {axes.index(-1)} of {name!r:.200}"
        super().__init__(
            f"{why}; the size of {axis} is not known, and was taken for {UNKNOWN}"
            if why
            else f"the size of {axis} is not known, and no weight tells it"
        )
        self.name, self.axes = name, axes


@dataclass
class Outcome:
    """What a run of a program gives: arrays by name, of which some are states."""

    outputs: dict[str, Value]
    states: dict[str, Any] = field(default_factory=dict)


class DependsError(ConvertError):
    """There is no way to take the inputs, and in one of them something else is computed of others.

    Of a single size, that would not be seen.
    """


# It is given a builder, and an array for each parameter.
Program = Callable[[Builder, dict[str, Value]], Outcome]


@dataclass(frozen=True)
class Followed:
    """What a program became."""

    graph: spec.Graph
    tensors: dict[str, Array]
    call: Call
    notes: tuple[str, ...]


def follow(
    program: Program,
    parameters: Sequence[Parameter],
    states: Sequence[Mapping[str, str]] = ({},),
    *,
    single: str = "input",
    rows: tuple[int, int] = ROWS,
) -> Followed:
    """Make a graph of a program.

    Parameters
    ----------
    program : callable
    parameters : sequence of Parameter
    states : sequence of mapping of str to str
        What may be states: parameter -> output that the next call is given, each mapping tried in
        turn.
    single : str
        What an input is called in the graph if it is the only one.
    rows : tuple of int
        Sizes of the batch in the two runs; the same one where a program knows no other.

    Raises
    ------
    ConvertError
        If there is no way to take the inputs that the program agrees with; the error of the one
        that came furthest.
    """
    failures: list[tuple[int, ConvertError]] = []
    flat: Followed | None = None
    tried = 0
    for pairs in states:
        for way in ways(parameters, dict(pairs)):
            tried += 1
            if tried > MOST_WAYS:
                break
            attempt = _Attempt(program, parameters, way, single, rows)
            try:
                made = attempt.made()
            except ConvertError as error:
                failures.append((attempt.furthest, error))
                continue
            if not attempt.flattens:
                return made
            flat = flat or made
        if flat is not None:
            return flat
    if not failures:
        raise ConvertError(
            "the program takes no array that can be rows of steps: expected one of 1 to 5 axes"
        )
    furthest = max(failures, key=lambda one: one[0])[1]
    if any(isinstance(other, DependsError) for _, other in failures):
        raise DependsError(str(furthest)) from furthest
    raise furthest


class _Attempt:
    """One way of taking the inputs."""

    def __init__(
        self,
        program: Program,
        parameters: Sequence[Parameter],
        way: Way,
        single: str,
        rows: tuple[int, int],
    ) -> None:
        self.program, self.way, self.single, self.rows = program, way, single, rows
        self.parameters = {p.name: p for p in parameters}
        self.furthest = 0
        # Whether all steps of a sequence of fixed length become one row, without a recurrence: then
        # they may as well be one row from the beginning.
        self.flattens = False
        self.sizes: dict[tuple[str, int], int] = {}  # of axes that are not known
        self.least = 0  # steps that a kernel needs
        self._derived: dict[Any, tuple[Array, Array]] = {}
        self._starts: Starts = {}  # of states, in the second run of two

    def made(self) -> Followed:
        """The graph, which must be the same for other sizes.

        Raises
        ------
        ConvertError
            If this is not what the inputs are.
        """
        batched = BATCH in itertools.chain(*self.way.axes.values())
        fixed = self._fixed_batch()
        rows = (fixed or 1, fixed or 1) if fixed or not batched else self.rows
        length = self._fixed_length()
        first = self._run(rows[0], length or STEPS[0])
        for name, axis in self._unknown():
            if (name, axis) not in self.sizes and not self._happened(name, axis, rows[0], length):
                raise OpenSizeError(name, self.way.axes[name])
        # Where nothing is of another size, a second run would be the first one.
        if rows[0] == rows[1] and not self.way.timed:
            return _recognised(first)
        if length:
            first = self._of_one_length(first, rows[0], length)
        if rows[0] == rows[1] and length:
            return _recognised(first)
        second = self._run(rows[1], length or STEPS[1] + 2 * self.least)
        _check_same(first, second)
        for name, array in first.tensors.items():
            other = second.tensors[name]
            if array is not other and not np.array_equal(array, other, equal_nan=True):
                raise ConvertError(f"constant {name!r:.200} depends on how many steps there are")
        return _recognised(first)

    def _of_one_length(self, made: Followed, rows: int, length: int) -> Followed:
        """A program that says how many steps there are, tried with more of them all the same.

        One that moves so many numbers and no others, or loops so often, tells nothing of others.
        """
        try:
            _check_same(made, self._run(rows, length + MORE_STEPS))
        except ConvertError:
            note = (
                f"not verified: it was made for sequences of {length} steps, and whether it "
                f"computes the same of others is not seen; give it {length}"
            )
            return dataclasses.replace(made, notes=(*made.notes, note))
        return made

    def _fixed_batch(self) -> int:
        """The only rows that a batch may have; 0 if they are open, or there is no batch."""
        for name, axes in self.way.axes.items():
            shape = self.parameters[name].shape
            if shape is not None and BATCH in axes and (size := shape[axes.index(BATCH)]):
                return size
        return 0

    def _fixed_length(self) -> int:
        for name, axes in self.way.axes.items():
            shape = self.parameters[name].shape
            if shape is not None and TIME in axes:
                return shape[axes.index(TIME)] or 0
        return 0

    def _run(self, rows: int, steps: int) -> Followed:
        """A run of these sizes, again and again until all others are known."""
        for _ in range(32):
            steps = max(steps, self.least) if self.way.timed else 0
            try:
                return self._made(rows, steps)
            except ShortError as error:
                # Behind a stride, a kernel needs more steps of the input than it is given itself.
                needed = max(error.needed, 2 * steps)
                if self._fixed_length() or needed > MOST_STEPS:
                    raise
                self.least = steps = needed
            except SizeError as error:
                if not self._solved(error, rows, steps):
                    raise self._with_sizes(error) from None
            except ConvertError as error:
                raise self._with_sizes(error) from None
        raise ConvertError("the sizes of its inputs were not found")

    # Sizes that are not known

    def _with_sizes(self, error: ConvertError) -> ConvertError:
        """An error that says which size was not known, if one was not."""
        for name, axis in self._unknown():
            if (name, axis) not in self.sizes:
                return OpenSizeError(name, self.way.axes[name], str(error))
        return error

    def _unknown(self) -> list[tuple[str, int]]:
        return [
            (name, axis)
            for name, axes in self.way.axes.items()
            for axis, size in enumerate(axes)
            if size == -1
        ]

    def _solved(self, error: SizeError, rows: int, steps: int) -> bool:
        """Whether the size that an error tells of gives one that was not known."""
        for key in self._unknown():
            if key in self.sizes:
                continue
            trial = UNKNOWN + 8
            self.sizes[key] = trial
            try:
                self._made(rows, steps)
            except SizeError as other:
                grown = other.got - error.got
                rest = error.needed - error.got
                if grown > 0 and other.needed == error.needed and rest * 8 % grown == 0:
                    size = UNKNOWN + rest * 8 // grown
                    if size > 0:
                        self.sizes[key] = size
                        return True
            except ConvertError:
                pass
            del self.sizes[key]
        return False

    def _happened(self, name: str, axis: int, rows: int, length: int) -> bool:
        """Whether the size that an unknown one was taken for is, by chance, what a weight tells."""
        self.sizes[name, axis] = UNKNOWN + 8
        try:
            self._made(rows, length or max(STEPS[0], self.least))
        except SizeError as error:
            if {error.got, error.needed} == {UNKNOWN + 8, UNKNOWN}:
                self.sizes[name, axis] = UNKNOWN
                return True
        except ConvertError:
            pass
        del self.sizes[name, axis]
        return False

    # One run

    def _given(self, builder: Builder, states: Mapping[str, Value]) -> dict[str, Value]:
        given: dict[str, Value] = {}
        for name, axes in self.way.axes.items():
            full = [
                self.sizes.get((name, n), UNKNOWN) if size == -1 else size
                for n, size in enumerate(axes)
            ]
            held = self.way.timed and TIME not in axes
            kind = self.parameters[name].kind
            given[name] = builder.input(self._called(name), full, kind=kind, held=held)
        return given | dict(states)

    def _called(self, name: str) -> str:
        return self.single if len(self.way.axes) == 1 and self.single else plain_name(name)

    def _made(self, rows: int, steps: int) -> Followed:
        pairs = self.way.states | {p.name: p.state for p in self.parameters.values() if p.state}
        builder, outcome = self._once(rows, steps, None, {})
        states: dict[str, Value] = {}
        if pairs or outcome.states:
            states = self._states(builder, outcome, pairs)
            builder, outcome = self._once(rows, steps, builder, states)
        made = self._finished(builder, outcome, pairs)
        self.flattens = builder.flattens and not any(
            isinstance(node.layer, spec.Recurrent) and node.layer.over_time
            for node in made.graph.nodes
        )
        return made

    def _once(
        self, rows: int, steps: int, before: Builder | None, states: Mapping[str, Value]
    ) -> tuple[Builder, Outcome]:
        longer = steps > 0 and not self._fixed_length()
        builder = Builder(rows, steps, before, may_be_longer=longer)
        builder.derived_arrays = self._derived
        names = {p.name for p in self.parameters.values() if p.state} | set(self.way.states)
        try:
            if before is None:
                builder.states_of_inputs = frozenset(f"state {n}" for n in names)
                states = {n: builder.state(f"state {n}", self._state_axes(n)) for n in names}
            else:
                builder.rows.starts = dict(self._starts)
            outcome = self.program(builder, self._given(builder, states))
        finally:
            self.furthest = max(self.furthest, builder.operations)
        return builder, outcome

    def _state_axes(self, name: str) -> Axes:
        """What the axes of a state are; one whose size is not known is the batch."""
        parameter = self.parameters[name]
        shape = parameter.shape
        if parameter.start is not None:
            shape = parameter.start.shape
        if shape is None:
            raise ConvertError(f"the shape of state {name!r:.200} is not known")
        if parameter.axes is not None:
            return parameter.axes
        if shape.count(None) > 1:
            raise ConvertError(f"the shape {shape} of state {name!r:.200} has two unknown sizes")
        # Of a batch of fixed size, the one axis of that size is the batch.
        fixed = self._fixed_batch()
        own = fixed if fixed > 1 and None not in shape and shape.count(fixed) == 1 else None
        axes = tuple(BATCH if n is None or n == own else n for n in shape)
        if axes.count(BATCH) > 1:
            raise ConvertError(f"several sizes of state {name!r:.200} are not known")
        return axes

    def _shape(self, name: str, rows: int) -> tuple[int, ...]:
        """Of a state."""
        return tuple(rows if n == BATCH else int(n) for n in self._state_axes(name))

    def _states(
        self, builder: Builder, outcome: Outcome, pairs: Mapping[str, str]
    ) -> dict[str, Value]:
        """Each state as what the call before has made of it."""
        after: dict[str, Array] = {}
        for name, output in pairs.items():
            value = outcome.states.get(name)
            if value is None:
                value = outcome.outputs.get(output)
            if value is None:
                raise ConvertError(f"{output!r:.200} is no output, and is the next {name!r:.200}")
            after[name] = of_first_turns(builder, builder.places(value))
            expected = self._shape(name, builder.batch)
            if after[name].shape != expected:
                if after[name].size != math.prod(expected):
                    raise ConvertError(
                        f"state {name!r:.200} has shape {expected}, and becomes {after[name].shape}"
                    )
                after[name] = after[name].reshape(expected)
        axes = {name: self._state_axes(name) for name in after}
        given = {name: self.parameters[name].start for name in after}
        moved, self._starts = followed_back(builder, after, axes, given)
        return {name: Value(places) for name, places in moved.items()}

    def _finished(
        self,
        builder: Builder,
        outcome: Outcome,
        pairs: Mapping[str, str],
    ) -> Followed:
        carried = {output for name, output in pairs.items() if name in self.way.states}
        outputs = {n: v for n, v in outcome.outputs.items() if n not in carried}
        if not outputs:
            outputs = dict(outcome.outputs)
        for name, value in outputs.items():
            if not isinstance(value, Value):
                raise ConvertError(f"output {name!r:.200} is constant; expected one of an input")
        names = [self._called(name) for name in self.way.axes]
        single = len(outputs) == 1 and self.single
        called = {("output" if single else plain_name(n)): v for n, v in outputs.items()}
        made: Finished = finish(builder, called, names)
        call = self._call(made, pairs, outputs, bool(single))
        if builder.batch == 1:
            call = _of_one_row(call)
        return Followed(made.graph, made.tensors, call, tuple(builder.notes))

    def _call(
        self, made: Finished, pairs: Mapping[str, str], outputs: Mapping[str, Any], single: bool
    ) -> Call:
        arguments = []
        for name in self.parameters:
            if name in self.way.axes:
                axes = tuple(
                    self.sizes.get((name, n), 1) if size == -1 else size
                    for n, size in enumerate(self.way.axes[name])
                )
                arguments.append(Argument(name, axes, "rows", self._called(name)))
            elif name in self.way.states:
                arguments.append(Argument(name, self._state_axes(name), "state", pairs[name]))
        given = []
        for name in outputs:
            own = "output" if single else plain_name(name)
            given.append(Argument(name, made.axes[own], "rows", own))
        given += [Argument(output, (), "state", name) for name, output in self.way.states.items()]
        return Call(tuple(arguments), tuple(given))


def _of_one_row(call: Call) -> Call:
    """A call of a program that knows no batch but one row."""

    def one(argument: Argument) -> Argument:
        axes = tuple(1 if axis == BATCH else axis for axis in argument.axes)
        return dataclasses.replace(argument, axes=axes)

    return Call(tuple(map(one, call.arguments)), tuple(map(one, call.outputs)))


def _check_same(one: Followed, other: Followed) -> None:
    """Check that two runs made the same graph."""
    if one.graph != other.graph:
        raise DependsError(
            "what is computed depends on how many steps or rows there are: "
            + _difference(one.graph, other.graph)
        )


def _recognised(made: Followed) -> Followed:
    """With written-out cells as the layers that they are."""
    graph, tensors, notes = recognise(made.graph, made.tensors)
    return dataclasses.replace(made, graph=graph, tensors=tensors, notes=(*made.notes, *notes))


def _difference(one: spec.Graph, other: spec.Graph) -> str:
    """The first node that two graphs have not both."""
    for a, b in itertools.zip_longest(one.nodes, other.nodes):
        if a != b:
            shown = [n.layer.describe() if n is not None else "nothing" for n in (a, b)]
            return f"{(a or b).name!r:.200} is {shown[0]:.200} or {shown[1]:.200}"
    return "its inputs or outputs"
