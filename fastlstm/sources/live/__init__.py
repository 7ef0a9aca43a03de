"""Read a live ``torch.nn.Module``: its forward is recorded, and the record followed.

The forward runs on small random arrays of each shape that its inputs may have, on a copy of the
module in evaluation. ``torch.jit.trace`` records what it computes, hooks and all, and the record is
followed as an archive is (:mod:`fastlstm.sources.torchscript`). What depends on the numbers of an
input, and not on its shape alone, no record has, and is refused. What comes out is compared with
what the module gives.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.forward import convert
from fastlstm.sources.conversion import BATCH, TIME, Argument, Call, Conversion
from fastlstm.sources.live import report
from fastlstm.sources.live.comparison import compare
from fastlstm.sources.live.forward import LiveForward
from fastlstm.sources.live.inputs import Given, Sizes, candidates
from fastlstm.sources.live.subject import Subject
from fastlstm.sources.live.watch import settled

__all__ = ["Live", "read"]

_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True, eq=False)
class Live:
    """What a module became.

    Parameters
    ----------
    conversion : Conversion
    read : tuple of str
        The names of the weights that forward computes with, within the part that was read.
    """

    conversion: Conversion
    read: tuple[str, ...]


def read(
    module: Any,
    dtype: str = "float32",
    prefix: str = "",
    input_size: int | None = None,
    shapes: Mapping[str, Sizes] | None = None,
) -> Live:
    """Read a live module.

    Parameters
    ----------
    module : torch.nn.Module
        It is left as it is.
    dtype : {"float32", "float64"}
        What the model is stored in.
    prefix : str
        The path of the part of it that is read, "" for the whole.
    input_size : int, optional
        Features of a step, where the module takes several sizes.
    shapes : mapping of str to tuple of (int or None), optional
        The shapes of arguments of forward, None for the batch and for time.

    Raises
    ------
    ConvertError
        If forward takes no input that is tried, or computes what no graph can; the message names
        the module, the operator and the line of code.
    """
    # What torch says of records in general is no news to whoever converts. Warnings, and what is
    # overridden of torch while a record is made, are those of all threads.
    with _ONE_AT_A_TIME, warnings.catch_warnings(), settled():
        warnings.simplefilter("ignore")
        return _read(_subject(module, prefix), dtype, input_size, shapes or {})


def _subject(module: Any, prefix: str) -> Subject:
    try:
        return Subject(module, prefix)
    except ConvertError as error:
        what = repr(prefix)[:200] if prefix else f"the module ({type(module).__name__:.100})"
        raise ConvertError(f"{what} is not converted: {error}") from error


def _read(
    subject: Subject, dtype: str, input_size: int | None, shapes: Mapping[str, Sizes]
) -> Live:
    failed: ConvertError | None = None
    step: Live | None = None
    try:
        if not subject.needed:
            raise ConvertError("its forward takes no array by name; expected one")
        for given in candidates(subject, input_size, shapes):
            try:
                forward = LiveForward(subject, given)
                made = _with_lengths(convert(forward, "forward was run and recorded", dtype), given)
                compare(forward, made)
            except ConvertError as error:
                failed = failed or error
                continue
            found = Live(
                dataclasses.replace(made, report=(*report.lines(forward, made), *made.report[1:])),
                report.used(subject),
            )
            # One step a call, of which the states could be given and are not, remembers nothing.
            if given.is_whole(subject) or ("b" in given.arrays[0].pattern and _has_time(made)):
                return found
            step = step or found
    except ConvertError as error:
        failed = failed or error
    if step is not None:
        return step
    if failed is None:
        raise ConvertError(subject.refusal())
    raise ConvertError(f"{subject.described} is not converted: {failed}") from failed


def _with_lengths(made: Conversion, given: Given) -> Conversion:
    """With the arguments that are the lengths of rows, which are no inputs of a graph."""
    assert made.call is not None
    names = [one.place for one in given.arrays if one.kind == "lengths"]
    lengths = tuple(Argument(name, (BATCH,), "lengths") for name in names)
    call = Call((*made.call.arguments, *lengths), made.call.outputs)
    return dataclasses.replace(made, call=call)


def _has_time(made: Conversion) -> bool:
    return made.call is not None and any(TIME in a.axes for a in made.call.arguments)
