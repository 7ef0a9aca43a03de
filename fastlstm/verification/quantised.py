"""A model in fewer bytes against the float64 equations with the weights that it was made of."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np

from fastlstm.model import Model
from fastlstm.reduced import Reduced, same
from fastlstm.verification.comparison import Comparison
from fastlstm.verification.evaluations import equations, sequences
from fastlstm.verification.trial import Trial

__all__ = ["OWN", "against_unquantised", "differing"]

# The evaluations, by name.
OWN, FLOAT32, TORCH = "this model", "float32", "torch, dynamic int8"


def against_unquantised(
    model: Model,
    unquantised: Model,
    notes: list[str],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    seconds: float,
    advance: Callable[[int], None],
) -> tuple[Comparison, ...]:
    """Errors of a model, of float32 and of torch's dynamic int8 over one long sequence.

    Each evaluation carries its own state on. What is not compared is said in `notes`.
    """
    if model.graph != unquantised.graph:
        notes.append(
            "errors against the weights before they were quantised are not compared: the source "
            "has other layers"
        )
        return ()
    graph, tensors = model.graph, unquantised.tensors
    runs = {OWN: sequences(model), FLOAT32: sequences(unquantised)}
    integers = [name for name, kind in model.precision.items() if kind == "int8"]
    if not integers or not importlib.util.find_spec("torch"):
        notes.extend(["torch is not installed: its dynamic int8 is not compared"] * bool(integers))
    else:
        from fastlstm.verification.torch_dynamic import dynamic_stream, lacking
        from fastlstm.verification.torch_equations import missing

        layers = [layer for layer in model.layers if layer.name in integers]
        if why := lacking(layers) or missing(model.layers):
            notes.append(f"torch's dynamic int8 is not compared: torch has none of {why}")
        else:
            runs[TORCH] = equations(graph, tensors, np.float32, dynamic_stream(integers))
    exactly = equations(graph, tensors, np.float64)
    trial = Trial(
        *(model, exactly, runs, FLOAT32), batch_size=batch_size, seed=seed, seconds=seconds
    )
    found = trial.long(steps, (), advance)
    notes += trial.notes
    return found


def differing(model: Model, unquantised: Model) -> str:
    """Which tensors are not those of the other model in the precision they have; "" if none is."""
    found = []
    others = unquantised.tensors
    for name, tensor in model.tensors.items():
        other = others[name]
        if isinstance(tensor, Reduced) and isinstance(other, np.ndarray):
            try:
                other = Reduced.of(other, tensor.precision, tensor.axis)
            except ValueError:
                found.append(name)
                continue
        if not same(tensor, other):
            found.append(name)
    if not found:
        return ""
    shown = ", ".join(map(repr, found[:5])) + (" ..." if len(found) > 5 else "")
    return f"{len(found)} tensors are not the source's, quantised: {shown}"
