"""Read a live ``torch.nn.Module``: its forward is recorded, and the record followed.

The forward runs on small random arrays of each shape that its inputs may have, on a copy of the
module in evaluation. ``torch.jit.trace`` records what it computes, hooks and all, and the record is
followed as an archive is (:mod:`fastlstm.sources.torchscript`). What depends on the numbers of an
input, and not on its shape alone, no record has, and is refused.
"""

from __future__ import annotations

import sys
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.forward import convert
from fastlstm.sources.conversion import TIME, Conversion
from fastlstm.sources.live.forward import LiveForward
from fastlstm.sources.live.inputs import candidates
from fastlstm.sources.live.subject import Subject

__all__ = ["is_live", "read"]


def _has_time(made: Conversion) -> bool:
    return made.call is not None and any(TIME in a.axes for a in made.call.arguments)


def is_live(source: object) -> bool:
    """Whether it is a module that runs code of its own; where torch was never imported, none is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        return False
    return not isinstance(source, torch.jit.ScriptModule)


def read(
    module: Any, dtype: str = "float32", prefix: str = "", input_size: int | None = None
) -> Conversion:
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

    Raises
    ------
    ConvertError
        If forward takes no input that is tried, or computes what no graph can; the message names
        the module, the operator and the line of code.
    """
    subject = Subject(module, prefix)
    failed: ConvertError | None = None
    without: Conversion | None = None
    for given in candidates(subject, input_size):
        try:
            forward = LiveForward(subject, given)
            made = convert(forward, "forward was run and recorded", dtype)
        except ConvertError as error:
            failed = failed or error
            continue
        # One step a call, of which the states could be given and are not, remembers nothing.
        if given.is_whole(subject) or _has_time(made):
            return made
        without = without or made
    if without is not None:
        return without
    if failed is None:
        raise ConvertError(subject.refusal())
    raise ConvertError(f"{subject.described} is not converted: {failed}")
