"""Compares what was made of a module with the module, on numbers that no record was made with.

What a record cannot have, as a list that remembers or a number that was drawn elsewhere, is found
here if nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import reference
from fastlstm.errors import ConvertError
from fastlstm.sources.aten.forward import flat
from fastlstm.sources.conversion import BATCH, TIME, Argument, Conversion
from fastlstm.sources.live import inputs as given_arrays
from fastlstm.sources.live.forward import LiveForward
from fastlstm.sources.live.inputs import B, arguments

__all__ = ["compare"]

Array = npt.NDArray[Any]

STEPS = 5  # of a module that takes one a call
SEED = 1
# Of the largest number of an output. What float32 rounds is far below, any other fault far above.
TOLERANCE = {"float32": 1e-3, "float64": 1e-7}
FLOOR = 1e-2  # what smaller outputs are taken for: they may be differences of larger numbers


def compare(forward: LiveForward, made: Conversion) -> None:
    """Check that a conversion gives what the module does.

    Raises
    ------
    ConvertError
        If it does not.
    """
    assert made.call is not None
    subject, given = forward.subject, forward.given
    taken = {one.name: one for one in made.call.arguments}
    timed = any(TIME in one.axes for one in made.call.arguments)
    keeps = bool(forward.states) or any(a.role == "state" for a in made.call.arguments)
    steady = all(TIME in one.axes for one in made.call.outputs if one.role == "rows")
    calls = (2 if keeps and steady else 1) if timed else STEPS
    sizes = _sizes(forward, taken)
    tokens = {one.name: one.tokens for one in made.graph.inputs}
    rng = np.random.default_rng(SEED)
    rows: dict[str, list[Array]] = {}
    outputs: dict[str, list[Array]] = {}
    states: dict[str, Array] = {
        one.name: np.zeros(sizes[one.name]) for one in taken.values() if one.role == "state"
    }
    with subject.as_it_was():
        for n in range(calls):
            arrays = dict(_arrays(forward, sizes, taken, tokens, rng, states))
            for name, one in taken.items():
                if one.role == "rows":
                    rows.setdefault(one.value, []).append(_rows(arrays[name], one, timed))
            named = arguments(subject, given, sizes)
            returned = _called(forward, named, arrays, n)
            for one in made.call.outputs:
                if one.role == "state":
                    states[one.value] = returned[one.name].reshape(sizes[one.value])
                elif one.role == "rows":
                    outputs.setdefault(one.value, []).append(_rows(returned[one.name], one, timed))
    inputs = {one.name: one for one in made.graph.inputs}
    x = {
        name: parts[0][0] if inputs[name].held else np.concatenate(parts)
        for name, parts in rows.items()
    }
    x = {
        name: array.reshape(*array.shape[: 1 + (not inputs[name].held)], *inputs[name].shape)
        for name, array in x.items()
    }
    with np.errstate(all="ignore"):
        got = reference.forward(made.graph, made.tensors, x, dtype=np.float64)
    exact = str(subject.dtype).removeprefix("torch.")
    stored = next(iter(made.tensors.values())).dtype.name if made.tensors else exact
    tolerance = max(TOLERANCE[exact], TOLERANCE[stored])
    for name, parts in outputs.items():
        _check(name, np.concatenate(parts), got[name], tolerance, bool(forward.states))


def _check(name: str, expected: Array, got: Array, tolerance: float, keeps: bool) -> None:
    largest = np.max(np.abs(expected[np.isfinite(expected)]), initial=FLOOR)
    if expected.size == got.size:
        got = got.reshape(expected.shape)
        if np.allclose(got, expected, rtol=0, atol=tolerance * largest, equal_nan=True):
            return
        with np.errstate(all="ignore"):
            off = f"by up to {np.nanmax(np.abs(got - expected)):.3g} of {largest:.3g}"
    else:
        off = f"its shape is {got.shape}, and that of the module's {expected.shape}"
    raise ConvertError(
        f"what was recorded of forward gives another {name!r:.80} than the module, {off}: it "
        f"computes what no record has"
        + (", or its states start or become other than what was found of them" * keeps)
        + "; expected what depends on its arrays, buffers and parameters alone"
    )


def _sizes(forward: LiveForward, taken: Mapping[str, Argument]) -> dict[str, tuple[int, ...]]:
    """Other sizes than those that the forward was recorded with, where they are open."""
    axes = {a.place: _axes(taken.get(a.place), a) for a in forward.given.arrays}
    steps = max(
        (
            tried
            for array in forward.given.arrays
            for tried, axis in zip(array.tried, axes[array.place], strict=True)
            if axis == TIME
        ),
        default=1,
    )
    other = {TIME: steps + 4, BATCH: B + 1}
    return {
        array.place: tuple(
            tried if size is not None else other.get(str(axis), tried)
            for size, tried, axis in zip(array.shape, array.tried, axes[array.place], strict=True)
        )
        for array in forward.given.arrays
    }


def _axes(one: Argument | None, array: given_arrays.Array) -> tuple[str | int, ...]:
    """What the axes of an argument are: as the conversion found, else as they were tried."""
    if one is not None and len(one.axes) == len(array.tried):
        return one.axes
    return tuple({"b": BATCH, "t": TIME}.get(axis, 0) for axis in array.pattern)


def _arrays(
    forward: LiveForward,
    sizes: Mapping[str, tuple[int, ...]],
    taken: Mapping[str, Argument],
    tokens: Mapping[str, int],
    rng: np.random.Generator,
    states: Mapping[str, Array],
) -> Any:
    """Random numbers for each argument, and states as they were left."""
    for array in forward.given.arrays:
        one = taken.get(array.place)
        if array.place in states:
            yield array.place, states[array.place]
        elif array.kind == "int":
            count = tokens.get(one.value, 0) if one is not None else 0
            yield array.place, rng.integers(max(count, 1), size=sizes[array.place])
        elif array.kind != "lengths":
            yield array.place, rng.standard_normal(sizes[array.place])


def _called(
    forward: LiveForward, named: dict[str, Any], arrays: Mapping[str, Array], n: int
) -> dict[str, Array]:
    """What the module returns for these arrays, by place."""
    import torch

    def array(place: str, own: Any) -> Any:
        given = arrays.get(place)
        return own if given is None else torch.from_numpy(np.array(given)).to(own.dtype)

    full = {
        name: tuple(array(p, own) for p, own in zip(places, named[name], strict=True))
        if isinstance(places, tuple)
        else array(places, named[name])
        for name, places in forward.given.nested.items()
    }
    try:
        returned = forward.subject.call(full)
    except Exception as error:  # of whatever a forward does
        text = " ".join(str(error).split())[:200]
        raise ConvertError(
            f"call {n + 1} of its forward fails, {type(error).__name__}: {text}"
        ) from error
    return {
        place or "output": np.asarray(tensor.detach().numpy(), np.float64)
        for place, tensor in flat(returned)
    }


def _rows(array: Array, one: Argument, timed: bool) -> Array:
    """An array of a source as rows (T, B, ...) of a graph; an axis that it has not is 1."""
    axes: list[str | int] = [*one.axes]
    if len(axes) != array.ndim:
        lead: list[str | int] = [TIME, BATCH] if timed else [BATCH]
        axes = [*lead, *([0] * array.ndim)][: array.ndim]
    order = [axes.index(axis) for axis in (TIME, BATCH) if axis in axes]
    order += [n for n in range(array.ndim) if n not in order]
    array = array.transpose(order)
    if BATCH not in axes:
        array = np.expand_dims(array, int(TIME in axes))
    return array if TIME in axes else array[None]
