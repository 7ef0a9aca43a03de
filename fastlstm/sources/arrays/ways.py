"""Ways in which the inputs of a program can be taken: which axis is time, and which the batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from fastlstm.sources.arrays import places as at
from fastlstm.sources.conversion import BATCH, TIME

__all__ = ["Axes", "Parameter", "Way", "ways"]

Array = npt.NDArray[Any]
Axes = tuple[str | int, ...]


@dataclass(frozen=True)
class Parameter:
    """An argument of a program.

    Parameters
    ----------
    name : str
    shape : tuple of int or None, or None
        None for each size that is not known; None as a whole where the number of axes is not.
    kind : {"float", "int", "bool"}
    state : str
        The output that the next call is given as this argument, if that is known.
    start : array, optional
        What a state is in the first call; zeros if None.
    axes : tuple, optional
        What its axes are, where that is known.
    example : tuple of int or None, optional
        Its sizes in one call of many: those of axes that are no batch and no time. If `shape` is
        these sizes, the last of three axes or more is not time.
    varies : bool
        Whether what is computed depends on how long a sequence is, so that no size tells that.
    """

    name: str
    shape: tuple[int | None, ...] | None = None
    kind: str = "float"
    state: str = ""
    start: Array | None = None
    axes: Axes | None = None
    example: tuple[int | None, ...] | None = None
    varies: bool = False


@dataclass(frozen=True)
class Way:
    """What the inputs are taken for: axes of those that are rows, and whether there is time."""

    axes: dict[str, Axes]
    states: dict[str, str]  # parameter -> output
    timed: bool


def ways(parameters: Sequence[Parameter], pairs: dict[str, str]) -> Iterator[Way]:
    """Ways in which inputs can be taken, the most usual first."""
    data = [p for p in parameters if p.name not in pairs and not p.state]
    if not data:
        return
    first, *others = data
    fixed = bool(pairs) or any(p.state for p in parameters)
    for axes in _axes(first, fixed):
        timed = TIME in axes
        for rest in itertools.product(*(list(_others(p, timed)) for p in others)):
            way = {first.name: axes} | {p.name: a for p, a in zip(others, rest, strict=True)}
            if _agrees(data, way):
                yield Way(way, pairs, timed)


def _agrees(data: Sequence[Parameter], way: Mapping[str, Axes]) -> bool:
    """Whether no input fixes the steps or rows that another one leaves open, or has others."""
    for role in (TIME, BATCH):
        sizes = {
            None if p.shape is None else p.shape[way[p.name].index(role)]
            for p in data
            if role in way[p.name]
        }
        if len(sizes) > 1:
            return False
    return True


def _axes(parameter: Parameter, stateful: bool) -> Iterator[Axes]:
    """What the axes of the first input may be."""
    if parameter.axes is not None:
        yield parameter.axes
        return
    shapes: list[tuple[int | None, ...]]
    if parameter.shape is None:
        ranks = (3, 2, 1, 4) if parameter.kind == "float" else (2, 1, 3)
        shapes = [(None,) * n for n in ranks]
    else:
        shapes = [parameter.shape]
    for shape in shapes:
        yield from _axes_of(parameter, shape, stateful)


def _axes_of(parameter: Parameter, shape: tuple[int | None, ...], stateful: bool) -> Iterator[Axes]:
    """Roles of the axes of a shape: time and batch where they can be, else sizes."""
    n = len(shape)
    tokens = parameter.kind != "float"
    places = [*range(n)]
    # (time, batch) as places, None for an axis that there is not.
    ways: dict[int, list[tuple[int | None, int | None]]] = {
        1: [(0, None)],
        2: [(0, None), (1, 0), (0, 1)] if not tokens else [(1, 0), (0, 1), (0, None)],
        3: [(1, 0), (0, 1), (2, 0), (2, 1)],
        4: [(1, 0), (2, 0), (3, 0), (0, 1)],
        5: [(1, 0), (2, 0), (0, 1)],
    }
    whole = ways.get(n, [])
    step: list[tuple[int | None, int | None]] = [(None, 0), (None, 1), (None, None)]
    if n < 2:
        step = [(None, 0)] if tokens and n else [(None, None)]
    ordered = [*step, *whole] if stateful or (n == 2 and not tokens) else [*whole, *step]
    if n > 3:
        ordered = [*step[:1], *whole, *step[1:]] if stateful else [*whole[:-1], step[0], whole[-1]]
        ordered += [way for way in step if way not in ordered]
    found: list[Axes] = []
    if n == 3:
        ordered.append((0, None))
    if stateful and n > 2 and parameter.example:
        # A sequence was seen along an axis of more than one step.
        seen = [way for way in whole if (parameter.example[way[0] or 0] or 0) > 1]
        ordered = [*seen, *(way for way in ordered if way not in seen)]
    # Which of two axes is time, is told by the weights that meet the other, if any do.
    told = [(way, shape) for way in ordered] if parameter.example is None or n == 2 else []
    if parameter.example is not None:
        told += [(way, parameter.example) for way in ordered]
    for (time, batch), sizes in told:
        axes: list[str | int] = []
        fits = True
        for axis in places:
            size = shape[axis]
            if axis == time:
                features = parameter.example is not None and n > 2 and axis == n - 1
                known = size is not None and (size <= 3 or features or parameter.varies)
                fits = fits and not known
                axes.append(TIME)
            elif axis == batch:
                fits = fits and (size is None or size <= at.MAX_BATCH)
                axes.append(BATCH)
            else:
                own = sizes[axis]
                axes.append(-1 if own is None else own)
        if fits:
            found.append(tuple(axes))
    # What leaves no size to be found is more usual, but of two axes: rows of a call, and features.
    yield from sorted(found, key=lambda one: one.count(-1) if n > 2 else 0)


def _others(parameter: Parameter, timed: bool) -> Iterator[Axes]:
    """What the axes of another input may be."""
    if parameter.axes is not None:
        yield parameter.axes
        return
    shapes = [parameter.shape] if parameter.shape is not None else [(None,) * 3, (None,) * 2]
    for shape in shapes:
        for axes in _axes_of(parameter, shape, not timed):
            if (TIME in axes) == timed:
                yield axes
        if timed:
            for axes in _axes_of(parameter, shape, True):
                if TIME not in axes:
                    yield axes
