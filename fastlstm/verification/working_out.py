"""How a program is called, worked out where the model's file does not say.

Nothing in a program tells which axis is which, so the ways there are get tried, and one whose
outputs are nearest to the model's is taken. A wrong one gives numbers as far off as wrong weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.model import Model
from fastlstm.signature import BATCH, TIME, Argument, Call
from fastlstm.verification.evaluations import Run, drawn, row_of, steps_to_output
from fastlstm.verification.onnx_program import OnnxProgram, Port
from fastlstm.verification.program import Original, Program, rows_in

__all__ = ["onnx_arguments", "torch_arguments", "worked_out"]

Array = npt.NDArray[Any]
Arguments = tuple[Argument, ...]

# An error that is surely of rounding, relative to the largest output.
CLOSE = 1e-6

# Rows and, beyond those that it needs for an output, steps of the input that tells the axes apart.
ROWS, STEPS = 3, 7
SEED = 20261121

MOST_SHOWN = 6  # of the ways that were tried


def worked_out(
    program: Program,
    model: Model,
    exactly: Run,
    ways: Iterable[Arguments],
    *,
    gives_back: bool,
) -> Call:
    """The way to call a program in which its outputs are nearest to the model's.

    Parameters
    ----------
    program : Program
    model : Model
    exactly : Run
    ways : iterable of tuple of Argument
        To try.
    gives_back : bool
        Whether a way is none if not all of its states are among the outputs.

    Raises
    ------
    ValueError
        If no way gives outputs that could be the model's.
    """
    found: list[tuple[float, int, Call]] = []
    refusals: list[str] = []
    for arguments in ways:
        call = Call(arguments, ())
        original = Original(program, call, model)
        B = original.batch_size or ROWS
        x = drawn(model, (original.length or STEPS + steps_to_output(model), B), SEED)
        exact, _ = exactly(x, None)
        session, kept = original.start(B)
        try:
            outputs = dict(original.step(session, x, kept))
        except ValueError as error:
            refusals.append(str(error))
            continue
        shapes = ", ".join(str(y.shape) for y in outputs.values())
        off, taken = _fitting(model, outputs, exact)
        given_back = _given_back(arguments, kept, outputs, {a.name for a in taken})
        if not taken or (gives_back and not all(given_back.values())):
            refusals.append(f"called with {call}, it gives {shapes}")
            continue
        arguments = tuple(
            dataclasses.replace(a, value=given_back[a.name]) if a.role == "state" else a
            for a in arguments
        )
        axes = {axis for a in arguments if a.role == "rows" for axis in a.axes} & {TIME, BATCH}
        found.append((off, len(axes), Call(arguments, taken)))
    if not found:
        shown = "".join(f"\n  {refusal}" for refusal in refusals[:MOST_SHOWN])
        if len(refusals) > MOST_SHOWN:
            shown += f"\n  and {len(refusals) - MOST_SHOWN} more ways"
        rows = {name: row_of(model, name) for name in model.outputs}
        raise ValueError(
            f"no way was found to call {program.name} in which it gives what the model does, "
            f"{', '.join(f'{n!r} of {row} a step' for n, row in rows.items())}:{shown}"
        )
    # Right are all that are about as near as the nearest: a sequence, for example, can also be
    # given step by step to what keeps nothing from one to the next.
    close = max(100 * min(error for error, _, _ in found), CLOSE)
    return max((one for one in found if one[0] <= close), key=lambda one: one[1])[2]


def _fitting(
    model: Model, outputs: Mapping[str, Array], exact: Mapping[str, Array]
) -> tuple[float, Arguments]:
    """Which outputs are nearest to the model's, and how near; none if some have not its shape."""
    largest, taken = 0.0, []
    for name, truth in exact.items():
        row = row_of(model, name)
        size = float(np.abs(truth).max(initial=0.0)) or 1.0
        fits = []
        for place, y in outputs.items():
            if y.dtype.kind != "f":
                continue
            for axes in _axes_of(y.shape, *truth.shape):
                argument = Argument(place, axes, "rows", name)
                error = np.abs(rows_in(y, argument, row, truth.shape[1]) - truth).max(initial=0.0)
                fits.append((float(np.nan_to_num(error / size, nan=np.inf)), argument))
        if not fits:
            return math.inf, ()
        close = max(100 * min(error for error, _ in fits), CLOSE)
        error, argument = next(one for one in fits if one[0] <= close)
        largest = max(largest, error)
        taken.append(argument)
    return largest, tuple(taken)


def _axes_of(
    shape: tuple[int, ...], steps: int, batch: int, size: int
) -> Iterator[tuple[str | int, ...]]:
    """The ways in which an output has so many steps, rows of a batch and numbers of a row."""
    if math.prod(shape) != steps * batch * size:
        return
    places: list[int | None] = [*range(len(shape)), None]

    def are(place: int | None, length: int) -> bool:
        return length == (1 if place is None else shape[place])

    for time, row in itertools.product(places, places):
        if are(time, steps) and are(row, batch) and (time is None or time != row):
            letters = {time: TIME, row: BATCH}
            yield tuple(letters.get(n, length) for n, length in enumerate(shape))


def _given_back(
    arguments: Arguments, given: Mapping[str, Array], outputs: Mapping[str, Array], taken: set[str]
) -> dict[str, str]:
    """State -> the output that gives it back, in order; "" of one that none can be."""
    free = {name: y for name, y in outputs.items() if name not in taken}
    found = {}
    for a in arguments:
        if a.role == "state":
            shape = given[a.name].shape
            fits = (n for n, y in free.items() if y.shape == shape and y.dtype.kind == "f")
            found[a.name] = next(fits, "")
            free.pop(found[a.name], None)
    return found


# Ways to call a module of torch


def torch_arguments(parameters: Mapping[str, bool], model: Model) -> Iterator[Arguments]:
    """The ways in which a module may be called, the usual ones first.

    Parameters
    ----------
    parameters : mapping of str to bool
        Of its forward: whether one must be given.
    """
    (given,) = model.graph.inputs
    first, *others = parameters
    needed = tuple(name for name in others if parameters[name])
    optional = tuple(name for name in others if not parameters[name])
    names = dict.fromkeys([needed, *((*needed, name) for name in optional), (*needed, *optional)])
    for states, axes in itertools.product(names, ((BATCH, TIME), (TIME,), (BATCH,), ())):
        # Without a state, a step says nothing of a sequence.
        if TIME not in axes and not states:
            continue
        for start in _starts(model, states):
            for order in _orders(model, given, axes):
                yield (Argument(first, order, "rows", given.name), *start)


def _orders(
    model: Model, given: spec.Input, axes: tuple[str, ...]
) -> Iterator[tuple[str | int, ...]]:
    shapes = [given.shape]
    for node in model.graph.nodes:
        # Features that are made a frame at once are one in the module.
        row = model.facts.rows[node.name]
        alone = isinstance(node.layer, spec.Index) and node.reads == (given.name,)
        if alone and row.size == math.prod(given.shape):
            shapes.append(row.shape)
    for shape in dict.fromkeys(shapes):
        block = (shape,) if shape else ()
        for order in itertools.permutations((*axes, *block)):
            yield tuple(n for part in order for n in (part if isinstance(part, tuple) else (part,)))


def _starts(model: Model, names: tuple[str, ...]) -> Iterator[Arguments]:
    """The model's states as so many arguments: one a layer, or one an array."""
    groups: list[list[tuple[int, ...]]] = []
    for node in model.graph.nodes:
        layer = node.layer
        if isinstance(layer, spec.Recurrent) and layer.over_time:
            reads = [model.facts.rows[name] for name in node.reads]
            groups.append([shape for s, shape in layer.state(reads).items() if s in "hc"])
    flat = [[shape] for group in groups for shape in group]
    if not names:
        yield ()
        return
    for parts in (groups, flat) if groups != flat else (groups,):
        if len(parts) != len(names):
            continue
        cells = all(depth == 1 for group in parts for depth, *_ in group)
        for cell in (False, True) if cells else (False,):
            yield tuple(
                Argument(
                    f"{name}[{n}]" if len(group) > 1 else name,
                    (BATCH, *sizes) if cell else (depth, BATCH, *sizes),
                    "state",
                )
                for name, group in zip(names, parts, strict=True)
                for n, (depth, *sizes) in enumerate(group)
            )


# Ways to call an ONNX graph


def onnx_arguments(program: OnnxProgram, model: Model) -> Iterator[Arguments]:
    """The ways in which a graph may take the model's input.

    Of its inputs one is the data; an integer one of one dimension holds the lengths of the rows,
    the others may be states.
    """
    (given,) = model.graph.inputs
    for port in program.inputs:
        if port.is_integer != bool(given.tokens):
            continue
        places: list[int | None] = [*range(len(port.shape)), None]
        for time, batch in itertools.product(places, places):
            if time is not None and time == batch:
                continue
            letters = {time: TIME, batch: BATCH}
            named = [letters.get(n) for n in range(len(port.shape))]
            sizes = _features([s for s, n in zip(port.shape, named, strict=True) if not n], given)
            if sizes is None:
                continue
            left = iter(sizes)
            axes = tuple(name or next(left) for name in named)
            symbol = None if batch is None else port.shape[batch]
            others = [_other(one, symbol) for one in program.inputs if one != port]
            if all(others):
                yield (Argument(port.name, axes, "rows", given.name), *filter(None, others))


def _features(sizes: list[int | str | None], given: spec.Input) -> tuple[int, ...] | None:
    """The shape of a step's features, on the axes that are not taken; None if they do not fit."""
    known = math.prod(size for size in sizes if isinstance(size, int))
    wanted = math.prod(given.shape)
    if known == 0 or wanted % known:
        return None
    left = wanted // known
    open_sizes = [size for size in sizes if not isinstance(size, int)]
    if len(open_sizes) > 1 or (not open_sizes and left != 1):
        return None
    return tuple(size if isinstance(size, int) else left for size in sizes)


def _other(port: Port, batch: int | str | None) -> Argument | None:
    """An input beside the data; None if it has several open sizes, not only the batch's."""
    if port.is_integer and len(port.shape) == 1:
        return Argument(port.name, (BATCH,), "lengths")
    open_sizes = [size for size in port.shape if not isinstance(size, int)]
    axes: list[str | int] = []
    for size in port.shape:
        if isinstance(size, int):
            axes.append(size)
        elif size == batch or len(open_sizes) == 1:
            axes.append(BATCH)
        else:
            return None
    return Argument(port.name, tuple(axes), "state")
