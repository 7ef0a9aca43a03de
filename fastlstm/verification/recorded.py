"""Numbers that were recorded when the original ran: inputs, outputs, and where the states began."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.model import Model
from fastlstm.signature import Call
from fastlstm.verification.evaluations import Arrays, Run, last_only, moving, row_of

__all__ = ["Recording", "read_recording"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Recording:
    """One sequence, or a batch of them.

    Attributes
    ----------
    name : str
        What the numbers are called.
    x : mapping of str to array (T, B, ...)
    y : mapping of str to array (N, B, O)
        Of some of the outputs.
    state : mapping of str to array, or None
        Where it began, if not where the model does.
    layout : str
        How the arrays lay.
    """

    name: str
    x: dict[str, Array]
    y: dict[str, Array]
    state: dict[str, Array] | None
    layout: str

    def run(self, x: Arrays, state: Any, whole: bool = True) -> tuple[Arrays, Any]:
        """What was recorded, which is of these inputs only."""
        return self.y, None


def read_recording(given: Any, model: Model) -> Recording:
    """Numbers as a caller has them: a .npz file or a mapping of names to arrays.

    ``x`` is the input and ``y`` the output, or each is under its own name; what the model's state
    is called is where it began. Arrays are (T, ...), (T, B, ...) or (B, T, ...).

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no file of arrays, an input or all outputs are missing, or a shape does not fit.
    """
    name, arrays = _arrays(given)
    call = Call.from_json(note) if (note := model.source.get("call")) else None
    called = {} if call is None else {a.name: a.value for a in call.arguments if a.role == "rows"}
    gives = {} if call is None else {a.name: a.value for a in call.outputs if a.role == "rows"}
    x = _named(arrays, list(model.inputs), called, "x")
    y = _named(arrays, list(model.outputs), gives, "y")
    state = {n: a for n, a in arrays.items() if n in model.facts.state}
    known = {*x, *y}
    if unknown := arrays.keys() - {n for n, _ in known} - state.keys():
        raise ValueError(
            f"{name} has {min(unknown)!r:.80}, which is no input, output or state of this model; "
            f"expected {', '.join(['x', 'y', *map(repr, model.facts.state)])}"
        )
    inputs = {port: arrays[n] for n, port in x}
    outputs = {port: arrays[n] for n, port in y}
    if lacking := [n for n in model.inputs if n not in inputs]:
        raise ValueError(
            f"{name} has {', '.join(map(repr, arrays)) or 'nothing'}; expected the input under "
            f"{'x' if len(model.inputs) == 1 else lacking[0]!r} and the output under "
            f"{'y' if len(model.outputs) == 1 else 'its name'}"
        )
    if not outputs:
        raise ValueError(
            f"{name} has no output; expected "
            f"{'y' if len(model.outputs) == 1 else ' or '.join(map(repr, model.outputs))}"
        )
    return _laid_out(name, inputs, outputs, state or None, model)


def _arrays(given: Any) -> tuple[str, dict[str, Array]]:
    if isinstance(given, Mapping):
        return "recorded", {str(name): np.asarray(array) for name, array in given.items()}
    path = os.fsdecode(given)
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array; save several with np.savez(path, x=x, y=y)")
            return path, {name: file[name] for name in file.files}
    except OSError:
        raise
    except Exception as error:  # of whatever the file is instead
        raise ValueError(f"{path!r} is not a sound .npz file of arrays: {error}") from None


def _named(
    arrays: Mapping[str, Array], ports: list[str], called: Mapping[str, str], plain: str
) -> list[tuple[str, str]]:
    """(name of an array, port) of those that are there."""
    found = {name: name for name in ports if name in arrays}
    found |= {n: port for n, port in called.items() if n in arrays and port in ports}
    if plain in arrays and len(ports) == 1 and not found:
        found[plain] = ports[0]
    return list(found.items())


def _laid_out(
    name: str,
    inputs: dict[str, Array],
    outputs: dict[str, Array],
    state: dict[str, Array] | None,
    model: Model,
) -> Recording:
    """The recording in the layout in which the model's outputs are nearest to it."""
    found = []
    refusals = []
    for layout, order in (
        ("(T, ...)", None),
        ("(T, B, ...)", (0, 1)),
        ("(B, T, ...)", (1, 0)),
    ):
        try:
            x = {n: _as_rows(a, model, n, order) for n, a in inputs.items()}
            y = {n: _as_outputs(a, model, n, order) for n, a in outputs.items()}
            if len({array.shape[0] for n, array in x.items() if not _held(model, n)}) > 1:
                raise ValueError("the inputs have different numbers of steps")
            start = None if state is None else _as_state(state, model, order is None, moving(
                model.graph, x)[1])  # fmt: skip
            made = _engine(model)(x, start)
            error = 0.0
            for n, rows in y.items():
                if rows.shape != made[n].shape:
                    raise ValueError(f"{n!r} has {len(rows)} rows; the model gives {len(made[n])}")
                size = float(np.abs(rows).max(initial=0.0)) or 1.0
                error = max(error, float(np.abs(rows - made[n]).max(initial=0.0)) / size)
        except ValueError as why:
            refusals.append(f"as {layout}: {why}")
            continue
        found.append((np.nan_to_num(error, nan=np.inf), Recording(name, x, y, start, layout)))
    if not found:
        raise ValueError(f"the arrays of {name} do not fit the model: " + "; ".join(refusals))
    return min(found, key=lambda one: one[0])[1]


def _held(model: Model, name: str) -> bool:
    return next(given.held for given in model.graph.inputs if given.name == name)


def _as_rows(array: Array, model: Model, name: str, order: tuple[int, int] | None) -> Array:
    """An input as (T, B, ...), or (B, ...) if it is held."""
    (given,) = (one for one in model.graph.inputs if one.name == name)
    leading = (0 if order is None else 1) if given.held else (1 if order is None else 2)
    if array.ndim != leading + len(given.shape) or array.shape[leading:] != given.shape:
        raise ValueError(f"{name!r} has shape {array.shape}, and a row of it {given.shape}")
    if array.dtype.kind not in ("iu" if given.tokens else "fiu"):
        raise ValueError(f"{name!r} is of {array.dtype}")
    made = array.astype(np.int64 if given.tokens else model.dtype)
    if given.tokens and made.size and not 0 <= made.min() <= made.max() < given.tokens:
        raise ValueError(f"{name!r} has tokens outside 0 to {given.tokens - 1}")
    if order is None:
        return made[None] if given.held else made[:, None]
    return made if given.held or order == (0, 1) else made.swapaxes(0, 1)


def _as_outputs(array: Array, model: Model, name: str, order: tuple[int, int] | None) -> Array:
    """An output as (N, B, O)."""
    row = row_of(model, name)
    one = last_only(row)
    leading = (0 if order is None else 1) if one else (1 if order is None else 2)
    if array.ndim != leading + len(row.shape) or array.shape[leading:] != row.shape:
        raise ValueError(f"{name!r} has shape {array.shape}, and a row of it {row.shape}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name!r} is of {array.dtype}")
    made = array if array.dtype.kind == "f" else array.astype(np.float64)
    if one:
        made = made[None]
    if order is None:
        made = made[:, None]
    elif not one and order == (1, 0):
        made = made.swapaxes(0, 1)
    return made.reshape(*made.shape[:2], -1 if made.size else row.size)


def _as_state(
    given: Mapping[str, Array], model: Model, unbatched: bool, batch_size: int
) -> dict[str, Array]:
    """The model's start with some of its arrays replaced: (n, B, ...) each."""
    state = model.stream(batch_size).state
    for name, array in given.items():
        value = array[:, None] if unbatched else array
        if value.shape != state[name].shape:
            raise ValueError(f"{name!r} has shape {array.shape}; expected {state[name].shape}")
        state[name] = value.astype(state[name].dtype)
    return state


def _engine(model: Model) -> Any:
    from fastlstm.verification.evaluations import sequences

    run: Run = sequences(model)
    return lambda x, state: run(x, state)[0]
