"""How far off a model's numbers are: against the exact ones, torch, and what it was made of."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.model import Model
from fastlstm.reduced import Tensors
from fastlstm.stored import arrays_of
from fastlstm.verification.comparison import RESTART_STEPS, Comparison, compare
from fastlstm.verification.errors import Deviation, deviation
from fastlstm.verification.evaluations import (
    Equations,
    Run,
    Source,
    equations,
    moving,
    random_input,
    sequences,
    stepwise,
    waits_for_end,
)
from fastlstm.verification.quantised import OWN, against_unquantised, differing
from fastlstm.verification.result import (
    ASPECTS,
    BLOCKS,
    ENGINE,
    NOT_COMPARED,
    TOLERANCE,
    Outcome,
    Verdict,
    Verification,
)
from fastlstm.verification.trial import Trial

__all__ = [
    "ASPECTS",
    "BATCH_SIZE",
    "BLOCKS",
    "ENGINE",
    "NOT_COMPARED",
    "OWN",
    "SECONDS",
    "STEPS",
    "TOLERANCE",
    "Comparison",
    "Deviation",
    "Outcome",
    "Verdict",
    "Verification",
    "deviation",
    "open_module",
    "random_input",
    "runner_of",
    "verify",
]

Array = npt.NDArray[Any]

STEPS, BATCH_SIZE, SECONDS = 10_000, 4, 20.0

# An output that was never larger has no size to speak of.
TINY = 1e-6

# Tensors that are told to differ.
MOST_SHOWN = 5


# A recording is compared up to where rounding alone takes the yardstick so far off, in tolerances:
# beyond it, what was recorded is on a trajectory of its own.
MOST_ROUNDING = 100


def verify(
    model: Model,
    against: Any = None,
    *,
    recorded: Any = None,
    steps: int = STEPS,
    batch_size: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    seconds: float = SECONDS,
    advance: Callable[[int], None] = lambda steps: None,
    unquantised: Model | None = None,
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

    That shows that the engine computes what the model says. Whether the model says what its source
    computed, only the source tells: without it the outcome is "not compared".

    A chaotic model magnifies rounding exponentially: after some hundred steps every float32
    evaluation is on a trajectory of its own, all are as far from the exact one as they can be, and
    the ratio of two errors is chance. So where the yardstick itself is above the tolerance, all of
    them are run again, from the exact state every 4 steps, and judged by that; over the whole
    sequence an error may then be 100 times the yardstick's. A recording is compared as far as
    rounding is small.

    A model in fewer bytes is compared with the equations of what it is, integers and all. Where
    float32 and float64 differ in a last bit, an activation may be rounded to another integer, so
    that the tolerance of int8 is the error that was measured when it was quantised.

    A model that looks ahead has no state to carry on from: it is given whole sequences, longer and
    longer ones. So are modules and files that pool, or have a fixed length and no state.

    Parameters
    ----------
    model : Model
    against : torch.nn.Module, path, or Model, optional
        What the model was made of, or is said to be. A live module, of TorchScript too, is copied
        and run in evaluation, in the model's dtype and in float64. A file is run by what runs it,
        if that is installed: a TorchScript archive or a .pt2 file by torch, .onnx by onnxruntime,
        .keras and .h5 by keras. How it is called the model's file says, or the ways there are get
        tried. Another model, such as ``fastlstm.from_torch(source)``, is evaluated in float64, and
        if it has the same graph its weights must be the same bits; it is no original, as the order
        of the layers is by the same word as the model's.
    recorded : path of an .npz file, or mapping of str to array, optional
        Numbers of the original: ``x`` and ``y``, or each input and output under its name,
        (T, ...), (T, B, ...) or (B, T, ...); and, where it did not begin as the model does, the
        arrays of the model's state under their names.
    steps : int, default 10000
        Of the sequence.
    batch_size : int, optional
        Rows; 4 by default, or what a source is made for.
    seed : int, default 0
        Of the random numbers.
    tolerance : float, optional
        By default 1e-5 for float32, 1e-12 for float64.
    seconds : float, default 20
        The sequence is shorter, and a note says so, where the exact evaluation would take longer.
    advance : callable of int, optional
        Told of every few of the `steps` that are done.
    unquantised : Model, optional
        Of a model in fewer bytes the one that it was quantised from, if `against` is not that one
        already: its errors against the float64 equations with those weights are told, beside those
        of float32 and, where torch is there, of torch's dynamic int8.

    Returns
    -------
    Verification
        ``outcome``: "ok", "differs" or "not compared"; ``passed``, true only of "ok"; ``verdicts``,
        ``compared``, ``facts()`` for JSON, and errors along the sequence; as a string, the
        verdicts.

    Raises
    ------
    OSError
        If a file cannot be read.
    TypeError
        If `against` is nothing of the above.
    ValueError
        If `against` or `recorded` takes or gives other rows than the model, cannot be run, or
        cannot have the `batch_size` that was given.
    """
    tensors = model.tensors
    # Beside float64, only a longer number tells who is right; it is the same where there is none.
    exact = np.longdouble if model.dtype == np.float64 else np.float64
    exactly = equations(model.graph, tensors, exact)
    notes: list[str] = []
    sources, weights, original = _sources(model, against, exactly, notes)
    rows = _rows(batch_size, sources)
    kind, yardstick = _yardstick(model, tensors, notes)
    measure = f"{kind}, {model.dtype}"
    engine = dict(zip(ENGINE, (sequences(model), stepwise(model)), strict=True))
    if why := model.looks_ahead:
        notes.append(f"whole sequences only, each from its start, and no steps: {why}")
    evaluations = {name: run for name, run in engine.items() if run} | {measure: yardstick}
    trial = Trial(model, exactly, evaluations, measure, batch_size=rows, seed=seed, seconds=seconds)
    follow = [source for source in sources if trial.follows(source)]
    left: Sequence[Source] = [source for source in sources if not trial.follows(source)]
    drifts = trial.long(steps, follow, advance)
    judged: tuple[Comparison, ...] = drifts
    if tolerance is None and model.measured is not None and "int8" in model.precision.values():
        tolerance = max(TOLERANCE[model.dtype.name], model.measured.relative(TINY))
    allowed = TOLERANCE[model.dtype.name] if tolerance is None else tolerance
    diverges = any(one.errors[measure].worst.error > allowed * one.scale for one in drifts)
    if diverges:
        judged, left = trial.restarted(steps), sources
    # What comes of the end of a sequence only, one that is carried on does not have.
    if left or (drifts[0].starts == "carried" and waits_for_end(model)):
        judged += trial.anew(steps, left, RESTART_STEPS if diverges else None)
    if isinstance(against, Model) and model.measured is not None:
        unquantised = against
    quantised: tuple[Comparison, ...] = ()
    if unquantised is not None:
        quantised = against_unquantised(
            *(model, unquantised, notes),
            steps=steps,
            batch_size=rows,
            seed=seed,
            seconds=seconds,
            advance=lambda steps: None,
        )
    dtypes = dict.fromkeys(evaluations, model.dtype) | {one.name: one.dtype for one in sources}
    given = {output for source in sources for output in source.outputs}
    names = [source.name for source in sources]
    if recorded is not None:
        from fastlstm.verification.recorded import read_recording

        recording = read_recording(recorded, model)
        found = compare(
            model,
            exactly,
            evaluations | {"recorded": recording.run},
            measure,
            recording.x,
            [moving(model.graph, recording.x)[0]],
            "anew",
            state=recording.state,
            until=MOST_ROUNDING * allowed,
        )
        judged += found
        notes += _of_recording(recording, found)
        names.append("recorded")
        dtypes["recorded"] = model.dtype
        given |= recording.y.keys()
        own = "the recorded numbers" if isinstance(recorded, Mapping) else recording.name
        original = " and of ".join(filter(None, [original, own]))
    return Verification(
        drifts=drifts,
        judged=judged,
        exact_in="float64" if exact is np.float64 else "extended precision",
        yardstick_name=kind,
        yardstick=measure,
        tolerance=tolerance,
        dtypes=dtypes,
        sources=tuple(names),
        weights=weights,
        original=original,
        left_out=tuple(name for name in model.outputs if original and name not in given),
        on_word=_on_word(model),
        notes=(*notes, *dict.fromkeys(trial.notes)),
        quantised=quantised,
        lost=0.0 if model.measured is None else model.measured.relative(TINY),
    )


def runner_of(path: Any) -> str:
    """What runs a file, as ``"torch"``; "" if nothing does that is installed."""
    from fastlstm.verification.originals import runner_of

    return runner_of(path)


def open_module(where: str, checkpoint: str | None = None) -> Any:
    """The module that ``FILE.py:NAME`` is or makes, with the weights of a checkpoint.

    The file is imported, and what is in it runs.
    """
    from fastlstm.verification.module_file import open_module

    return open_module(where, checkpoint)


def _on_word(model: Model) -> tuple[str, ...]:
    """What the report of the conversion says was taken on the caller's word."""
    report = model.source.get("report", "").splitlines()
    mark = "not verified: "
    return tuple(
        line[len(mark) :] if line.lower().startswith(mark) else line
        for line in report
        if line.lower().startswith(mark) or "your word" in line
    )


def _of_recording(recording: Any, found: Sequence[Comparison]) -> list[str]:
    notes = [f"{recording.name} was read as {recording.layout}"]
    for comparison in found:
        rows = len(recording.y.get(comparison.output, ()))
        if comparison.outputs < rows:
            notes.append(
                f"{comparison.outputs:,} of the {rows:,} rows of {comparison.output!r} that were "
                f"recorded were compared: from there on rounding alone makes any two runs differ"
            )
    return notes


def _sources(
    model: Model, against: Any, exactly: Run, notes: list[str]
) -> tuple[Sequence[Source], str | None, str]:
    """What `against` is, how the weights differ, where that can be told, and what was run."""
    if against is None:
        return [], None, ""
    if isinstance(against, Model):
        return *_of_model(model, against, notes), ""
    from fastlstm.verification.originals import open_original

    opened = open_original(against, model, exactly)
    notes += opened.notes
    return opened.sources, None, opened.what


def _of_model(model: Model, other: Model, notes: list[str]) -> tuple[Sequence[Source], str | None]:
    if _takes_and_gives(model) != _takes_and_gives(other):
        raise ValueError(
            f"the model and its source do not take and give the same: {model!r} and {other!r}"
        )
    tensors = other.tensors
    source = Equations("source, float64", other.graph, tensors, model.dtype)
    if model.graph != other.graph:
        notes.append("the source has other layers: their numbers are compared, not their weights")
        return [source], None
    if model.measured is not None:  # how far apart they are is told of the quantised model
        differs = differing(model, other)
        return [source] if differs else [], differs
    if differs := _differing(arrays_of(model.tensors), arrays_of(tensors)):
        return [source], differs
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


def _yardstick(model: Model, tensors: Tensors, notes: list[str]) -> tuple[str, Run]:
    if "int8" in model.precision.values():
        notes.append("torch does not round to integers as the model does; NumPy is the yardstick")
    elif not importlib.util.find_spec("torch"):
        notes.append("torch is not installed: NumPy in the model's precision is the yardstick")
    else:
        from fastlstm.verification.torch_equations import TorchStream, missing

        if not (lacking := missing(model.layers)):
            return "torch", equations(model.graph, tensors, model.dtype, TorchStream)
        notes.append(f"torch has not {lacking}; NumPy in the model's precision is the yardstick")
    return "NumPy", equations(model.graph, tensors, model.dtype)
