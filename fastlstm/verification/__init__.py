"""How far off a model's numbers are: against the exact ones, torch, and what it was made of."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain
from fastlstm.model import Model
from fastlstm.verification.comparison import RESTART_STEPS, Comparison
from fastlstm.verification.errors import Deviation, deviation
from fastlstm.verification.evaluations import (
    Equations,
    Run,
    Source,
    equations,
    random_input,
    sequences,
    stepwise,
    waits_for_end,
)
from fastlstm.verification.result import BLOCKS, ENGINE, TOLERANCE, Verdict, Verification
from fastlstm.verification.trial import Trial

__all__ = [
    "BATCH_SIZE",
    "BLOCKS",
    "ENGINE",
    "SECONDS",
    "STEPS",
    "TOLERANCE",
    "Comparison",
    "Deviation",
    "Verdict",
    "Verification",
    "deviation",
    "random_input",
    "verify",
]

Array = npt.NDArray[Any]

STEPS, BATCH_SIZE, SECONDS = 10_000, 4, 20.0

# Tensors that are told to differ.
MOST_SHOWN = 5


def verify(
    model: Model,
    against: Any = None,
    *,
    steps: int = STEPS,
    batch_size: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    seconds: float = SECONDS,
    advance: Callable[[int], None] = lambda steps: None,
) -> Verification:
    """Compare a model with an exact evaluation of its weights, and with what it was made of.

    A long random sequence is run in calls of different lengths, the state carried from one to the
    next, and once more through a stream, step by step. Errors are those against the equations in
    float64, or in extended precision for a float64 model. An independent evaluation in the model's
    own dtype, torch if it is installed and has all of the layers, NumPy otherwise, does the same
    and is the yardstick: some models magnify rounding more than others, and the error that counts
    is what the engine adds to what the arithmetic itself must lose. The engine passes with at most
    1.5 times torch's error (4 times NumPy's), or with `tolerance` times the largest output,
    whichever is larger; what the model was made of passes with 10 times, or with `tolerance`.

    A chaotic model magnifies rounding exponentially: after some hundred steps every float32
    evaluation is on a trajectory of its own, all are as far from the exact one as they can be, and
    the ratio of two errors is chance. So where the yardstick itself is above the tolerance, all of
    them are run again, from the exact state every 4 steps, and judged by that; over the whole
    sequence an error may then be 100 times the yardstick's.

    A model that looks ahead has no state to carry on from: it is given whole sequences, longer and
    longer ones. So are a module and an ONNX file that pool, or have a fixed length and no state.

    Parameters
    ----------
    model : Model
        Of one input and one output.
    against : torch.nn.Module, path of an .onnx file, or Model, optional
        What the model was made of, or is said to be. A live module is copied and run in evaluation,
        in the model's dtype and in float64; an ONNX file is run by onnxruntime; another model, such
        as ``fastlstm.from_torch(source)``, is evaluated in float64, and if it has the same layers
        its weights must be the same bits. A model that is a graph and no chain of layers is
        compared with another model only.
    steps : int, default 10000
        Of the sequence.
    batch_size : int, optional
        Rows; 4 by default, or what an ONNX file is made for.
    seed : int, default 0
        Of the random numbers.
    tolerance : float, optional
        By default 1e-5 for float32, 1e-12 for float64.
    seconds : float, default 20
        The sequence is shorter, and a note says so, where the exact evaluation would take longer.
    advance : callable of int, optional
        Told of every few of the `steps` that are done.

    Returns
    -------
    Verification
        ``passed``, ``verdicts``, ``facts()`` for JSON, and errors along the sequence; as a string,
        the verdicts.

    Raises
    ------
    OSError
        If a file cannot be read.
    TypeError
        If `against` is nothing of the above.
    ValueError
        If the model has several inputs or outputs, of which nothing is compared; if `against`
        takes or gives another number of features than the model, cannot be run, or cannot have the
        `batch_size` that was given.
    """
    tensors = model.tensors
    # Beside float64, only a longer number tells who is right; it is the same where there is none.
    exact = np.longdouble if model.dtype == np.float64 else np.float64
    _check_ports(model)
    exactly = equations(model.graph, tensors, exact)
    notes: list[str] = []
    sources, weights = _sources(model, against, exactly, notes)
    rows = _rows(batch_size, sources)
    kind, yardstick = _yardstick(model, tensors, notes)
    measure = f"{kind}, {model.dtype}"
    engine = dict(zip(ENGINE, (sequences(model), stepwise(model, rows)), strict=True))
    if why := model.looks_ahead:
        notes.append(f"whole sequences only, each from its start, and no steps: {why}")
    evaluations = {name: run for name, run in engine.items() if run} | {measure: yardstick}
    trial = Trial(model, exactly, evaluations, measure, batch_size=rows, seed=seed, seconds=seconds)
    follow = [source for source in sources if trial.follows(source)]
    left = [source for source in sources if not trial.follows(source)]
    drift = trial.long(steps, follow, advance)
    judged = [drift]
    allowed = TOLERANCE[model.dtype.name] if tolerance is None else tolerance
    diverges = drift.errors[measure].worst.error > allowed * drift.scale
    if diverges:
        judged, left = [trial.restarted(steps)], sources
    # What comes of the end of a sequence only, one that is carried on does not have.
    if left or (drift.starts == "carried" and waits_for_end(model)):
        judged.append(trial.anew(steps, left, RESTART_STEPS if diverges else None))
    return Verification(
        drift=drift,
        judged=tuple(judged),
        exact_in="float64" if exact is np.float64 else "extended precision",
        yardstick_name=kind,
        yardstick=measure,
        tolerance=tolerance,
        dtypes=dict.fromkeys(evaluations, model.dtype) | {one.name: one.dtype for one in sources},
        sources=tuple(source.name for source in sources),
        weights=weights,
        notes=(*notes, *dict.fromkeys(trial.notes)),
    )


def _check_ports(model: Model) -> None:
    """Refuse a model of which a verdict would leave out what was not compared."""
    if len(model.inputs) > 1 or len(model.outputs) > 1:
        inputs, outputs = (", ".join(map(repr, names)) for names in (model.inputs, model.outputs))
        raise ValueError(
            f"nothing was compared: this model reads {inputs} and gives {outputs}; expected a "
            f"model of one input and one output, which is all that can be compared here. "
            f"model.check() compares the first steps of any model with the float64 reference"
        )


def _chain(model: Model) -> tuple[chain.Layer, ...] | None:
    """The layers of a model that is a chain of them."""
    try:
        return model.layers
    except ValueError:
        return None


def _sources(
    model: Model, against: Any, exactly: Run, notes: list[str]
) -> tuple[list[Source], str | None]:
    """What `against` is, and how the weights differ, where they can be compared."""
    if against is None:
        return [], None
    if isinstance(against, Model):
        return _of_model(model, against, notes)
    if _chain(model) is None:
        raise ValueError(
            f"this model is a graph and no chain of layers; expected another Model to compare it "
            f"with, or nothing: what a {type(against).__name__} gives can be told to be the same "
            f"as what a chain gives only"
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(against, torch.nn.Module):
        from fastlstm.verification.torch_module import torch_modules

        modules, said = torch_modules(against, model, exactly)
        notes += said
        return [*modules], None
    if isinstance(against, str | os.PathLike):
        if not os.fspath(against).lower().endswith(".onnx"):
            raise ValueError(
                f"{os.fspath(against)!r:.500} is not an .onnx file; of anything else make a model "
                f"first, with the options that it was converted with: "
                f"verify(model, fastlstm.from_torch(source))"
            )
        from fastlstm.verification.onnx_graph import open_graph

        graph = open_graph(against, model, exactly)
        notes += graph.notes
        return [graph], None
    raise TypeError(
        f"against is a {type(against).__name__}; expected a torch.nn.Module, the path of an .onnx "
        f"file or another Model"
    )


def _of_model(model: Model, other: Model, notes: list[str]) -> tuple[list[Source], str | None]:
    if _takes_and_gives(model) != _takes_and_gives(other):
        raise ValueError(
            f"the model and its source do not take and give the same: {model!r} and {other!r}"
        )
    source = Equations("source, float64", other.graph, other.tensors, model.dtype)
    if model.graph != other.graph:
        notes.append("the source has other layers: their numbers are compared, not their weights")
        return [source], None
    if differing := _differing(model.tensors, other.tensors):
        return [source], differing
    return [], ""  # its evaluation is the one that everything is compared with


def _takes_and_gives(model: Model) -> tuple[Any, ...]:
    rows = [model.facts.rows[value] for value in model.graph.outputs.values()]
    inputs = [(one.shape, one.tokens, one.held) for one in model.graph.inputs]
    return inputs, [(row.shape, row.timing, row.folded) for row in rows]


def _differing(own: Mapping[str, Array], others: Mapping[str, Array]) -> str:
    """Which tensors of the same names and shapes differ, and how far; "" if in no bit."""
    found = []
    for name, array in own.items():
        other = others[name]
        differ = (array != other) & ~(np.isnan(array) & np.isnan(other))
        if differ.any() or array.dtype != other.dtype:
            with np.errstate(invalid="ignore"):
                most = np.abs(array[differ].astype(np.float64) - other[differ]).max(initial=0.0)
            found.append(f"{name!r} in {differ.sum():,} of {array.size:,}, by up to {most:.2g}")
    if not found:
        return ""
    shown = "; ".join(found[:MOST_SHOWN])
    more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return f"{len(found)} of {len(own)} tensors are not the source's: {shown}{more}"


def _rows(given: int | None, sources: Sequence[Source]) -> int:
    for source in sources:
        if source.batch_size is not None:
            if given not in (None, source.batch_size):
                raise ValueError(
                    f"batch_size is {given}; expected {source.batch_size}, the only one that "
                    f"{source.name} takes here"
                )
            return source.batch_size
    return BATCH_SIZE if given is None else given


def _yardstick(model: Model, tensors: Mapping[str, Array], notes: list[str]) -> tuple[str, Run]:
    layers = _chain(model)
    if not importlib.util.find_spec("torch"):
        notes.append("torch is not installed: NumPy in the model's precision is the yardstick")
    elif layers is None:
        notes.append(
            "torch was not run, as the model is a graph and no chain of layers: NumPy in the "
            "model's precision is the yardstick"
        )
    else:
        from fastlstm.verification.torch_layers import missing, torch_run

        if not (lacking := missing(layers)):
            return "torch", torch_run(layers, tensors, model.dtype)
        notes.append(f"torch has not {lacking}; NumPy in the model's precision is the yardstick")
    return "NumPy", equations(model.graph, tensors, model.dtype)
