"""What a model was made of, opened so that it can be run: modules, archives, ONNX and Keras."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.model import Model
from fastlstm.signature import Call
from fastlstm.verification.evaluations import Run, drawn, moving, steps_to_output
from fastlstm.verification.onnx_program import OnnxProgram
from fastlstm.verification.program import Original, Program
from fastlstm.verification.torch_program import TorchProgram, open_archive
from fastlstm.verification.working_out import (
    ROWS,
    SEED,
    STEPS,
    onnx_arguments,
    torch_arguments,
    worked_out,
)

__all__ = ["Opened", "open_original", "runner_of"]


@dataclass(frozen=True, eq=False)
class Opened:
    """What a model was made of, understood.

    Attributes
    ----------
    what : str
        It, and what runs it, in words.
    sources : tuple of Original
    notes : tuple of str
        How it is called.
    """

    what: str
    sources: tuple[Original, ...]
    notes: tuple[str, ...]


def runner_of(path: Any) -> str:
    """What runs a file, as ``"torch"``; "" of one that nothing runs that is installed here.

    For an ONNX file that is onnxruntime, installed or not: what else could be compared of it?
    """
    kind = _kind(os.fsdecode(path))
    return kind if kind == "onnxruntime" or (kind and importlib.util.find_spec(kind)) else ""


def _kind(path: str) -> str:
    ending = Path(path).suffix.lower()
    if ending == ".onnx":
        return "onnxruntime"
    if ending in (".keras", ".h5", ".hdf5"):
        return "keras"
    if ending == ".pt2":
        return "torch"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return ""
    # A TorchScript archive holds code; a checkpoint is a zip file too, without.
    return "torch" if any("/code/" in name for name in names) else ""


def open_original(against: Any, model: Model, exactly: Run) -> Opened:
    """What a module or a file computes, beside a model.

    Raises
    ------
    OSError
        If the file cannot be read.
    TypeError
        If it is none of these.
    ValueError
        If what runs it is missing or cannot load it, or it does not give what the model does,
        whichever way it is called.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(against, torch.export.ExportedProgram):
        return _of_torch(against, "exported program", model, exactly)
    if torch is not None and isinstance(against, torch.nn.Module):
        return _of_torch(against, "module", model, exactly)
    if not isinstance(against, str | bytes | os.PathLike):
        raise TypeError(
            f"against is a {type(against).__name__}; expected a torch.nn.Module, the path of a "
            f"file that can be run (.onnx, TorchScript, .pt2, .keras) or another Model"
        )
    path = os.fsdecode(against)
    name = Path(path).name
    with open(path, "rb"):
        pass  # the message for a missing file is the system's
    kind = _kind(path)
    if kind == "onnxruntime":
        program = OnnxProgram(path, model.threads)
        ways = onnx_arguments(program, model) if _is_simple(model) else iter(())
        call, notes = _call_of(program, model, exactly, ways, gives_back=False)
        notes += _unused(call)
        return Opened(f"{name}, run by onnxruntime", (Original(program, call, model),), notes)
    if kind == "torch":
        return _of_torch(open_archive(path), name, model, exactly)
    if runner_of(path) == "keras":
        return _of_keras(path, model)
    raise ValueError(
        f"{path!r:.500} cannot be run: it holds weights and no program, or what runs it is not "
        f"installed. verify(model, module) runs the module it is of; verify(model, recorded=path) "
        f"compares numbers that were recorded; verify(model, fastlstm.from_torch(path)), with the "
        f"options that it was converted with, compares the weights only"
    )


def _of_torch(module: Any, what: str, model: Model, exactly: Run) -> Opened:
    """A module in the model's dtype and, if it runs so, in float64."""
    import torch

    own = TorchProgram(module, what, model.dtype, model.dtype.name)
    ways = torch_arguments(own.may_be_states, model) if _is_simple(model) else iter(())
    call, notes = _call_of(own, model, exactly, ways, gives_back=True)
    article = "the " * (what in ("module", "exported program"))
    sources = [Original(own, call, model)]
    exported = isinstance(module, torch.export.ExportedProgram)
    if not exported and model.dtype != np.float64:
        wide = Original(TorchProgram(module, what, model.dtype, "float64"), call, model)
        try:
            _probe(wide, model)
            sources.append(wide)
        except ValueError as error:  # a tensor that its code makes in float32, for example
            notes += (f"the module does not run in float64: {error}",)
    return Opened(f"{article}{what}, run by torch", tuple(sources), notes)


def _of_keras(path: str, model: Model) -> Opened:
    """A file of Keras, which is called as the conversion found."""
    from fastlstm.verification.keras_model import KerasProgram

    note = model.source.get("call")
    if note is None:
        raise ValueError(
            f"{path!r:.200} cannot be run beside this model, which does not say how it is called; "
            f"expected the model that was converted from it, by this version"
        )
    call = Call.from_json(note)
    names = ([a.name for a in side] for side in (call.arguments, call.outputs))
    program = KerasProgram(path, *names)
    original = Original(program, call, model)
    _probe(original, model)
    notes = (f"the original was called with {call}, as the conversion found",)
    return Opened(f"{Path(path).name}, run by {program.name}", (original,), notes)


def _is_simple(model: Model) -> bool:
    return len(model.inputs) == 1 and not model.graph.inputs[0].held


def _call_of(
    program: Program,
    model: Model,
    exactly: Run,
    ways: Iterator[Any],
    *,
    gives_back: bool,
) -> tuple[Call, tuple[str, ...]]:
    """As the model's file says; else worked out."""
    notes: tuple[str, ...] = ()
    if note := model.source.get("call"):
        call = Call.from_json(note)
        try:
            _probe(Original(program, call, model), model)
            return call, (f"the original was called with {call}, as the conversion found",)
        except ValueError as error:
            if not _is_simple(model):
                raise
            notes = (f"the original is not called as what was converted: {error}",)
    elif not _is_simple(model):
        raise ValueError(
            f"{program.name} cannot be run beside this model, which does not say how its several "
            f"inputs were called; convert it again with this version"
        )
    call = worked_out(program, model, exactly, ways, gives_back=gives_back)
    return call, (*notes, f"the original was called with {call}, which was worked out")


def _probe(original: Original, model: Model) -> None:
    """Raise ValueError if it cannot be called so, or gives something of another shape."""
    steps = original.length or STEPS + steps_to_output(model)
    x = drawn(model, (steps, original.batch_size or ROWS), SEED)
    original.run(x, None)
    assert moving(model.graph, x)[0] == steps


def _unused(call: Call) -> tuple[str, ...]:
    return tuple(
        f"its input {a} is neither data nor a state that it gives back: it was given zeros"
        for a in call.arguments
        if a.role == "state" and not a.value
    )
