"""What a model loses in fewer bytes, tried on a sequence that is given or random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import reference, self_check, spec
from fastlstm.format import ModelFile
from fastlstm.measured import Errors, Measured
from fastlstm.model import Model
from fastlstm.paths import at_path
from fastlstm.reduced import Reduced, Tensor

__all__ = ["Measurement", "inputs_of", "listed"]

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# What is measured: so many steps of all rows of a batch together, fewer where the exact evaluation
# would take longer or its rows more memory.
STEPS = 1000
MOST_WORK = 2**32  # multiply-adds
MOST_NUMBERS = 2**24  # in the rows of all layers

SEED = 20261130


def listed(names: Iterable[str]) -> str:
    """Names for a message, not all of very many."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:16]) + (f" and {len(shown) - 16} more" if len(shown) > 16 else "")


def inputs_of(model: Model, calibrate: Any) -> Arrays:
    """Inputs that were given, by name: (T, B, ...), and (B, ...) of what is held.

    Parameters
    ----------
    model : Model
    calibrate : path of an .npz file, mapping of str to array, or array

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or the inputs are not those of the model.
    """
    if isinstance(calibrate, Mapping):
        found = dict(calibrate)
    elif hasattr(calibrate, "__array__"):
        found = {"x": calibrate}
    else:
        with at_path(calibrate) as name, np.load(name, allow_pickle=False) as file:
            if not isinstance(file, Mapping):
                raise ValueError(f"{name} is no .npz file; expected the arrays of a sequence")
            found = dict(file)
    inputs = model.graph.inputs
    if len(inputs) == len(found) == 1:
        found = {inputs[0].name: next(iter(found.values()))}
    if found.keys() != {one.name for one in inputs}:
        raise ValueError(
            f"the calibration has {listed(found)}; expected the inputs "
            f"{listed(one.name for one in inputs)}"
        )
    made: Arrays = {}
    for one in inputs:
        array = np.asarray(found[one.name])
        array = array if one.tokens else array.astype(model.dtype)
        before = array.ndim - len(one.shape)
        if before not in (1 - one.held, 2 - one.held) or array.shape[before:] != one.shape:
            axes = ", ".join(map(str, [*("T", "B")[one.held :], *one.shape]))
            raise ValueError(
                f"the calibration's {one.name!r} has shape {array.shape}; expected ({axes})"
            )
        made[one.name] = array if before == 2 - one.held else np.expand_dims(array, before)
    return made


class Measurement:
    """A model, the inputs that its other forms are run on, and what is exact for them.

    Parameters
    ----------
    model : Model
        In float32.
    inputs : dict of str to array, optional
        As :func:`inputs_of` gives them; random ones if there are none.

    Raises
    ------
    ValueError
        If the inputs are too short for an output, or an output is not finite.
    """

    def __init__(self, model: Model, inputs: Arrays | None) -> None:
        self.model, self.tensors, self.calibrated = model, model.tensors, inputs is not None
        self.known = spec.stored(model.graph, model.facts.tensors)
        rows = model.facts.rows
        most = MOST_NUMBERS // sum(row.size for row in rows.values())
        steps = min(STEPS, MOST_WORK // max(model.facts.work, 1), most)
        timings = (rows[value].timing for value in model.graph.outputs.values())
        least = max((timing.delay for timing in timings if timing), default=0) + 1
        held = {one.name for one in model.graph.inputs if one.held}
        if inputs is None:
            rng = np.random.default_rng(SEED)
            drawn = self_check.drawn(model.graph, max(steps, least), model.dtype, rng)
            inputs = {n: x[None] if n in held else x[:, None] for n, x in drawn.items()}
        (batch,) = {x.shape[n not in held] for n, x in inputs.items()} or {1}
        steps = max(steps // batch, least)
        self.inputs = {n: x if n in held else x[:steps] for n, x in inputs.items()}
        self.steps = min(len(x) for n, x in self.inputs.items() if n not in held)
        if self.steps < least:
            raise ValueError(
                f"the calibration has {self.steps} steps; expected at least {least}, after which "
                f"the model gives its first output"
            )
        self.float32 = self._outputs(model)
        self.exact = reference.forward(model.graph, self.tensors, self.inputs)
        for name, y in self.exact.items():
            if not np.isfinite(y).all() or not np.isfinite(self.float32[name]).all():
                raise ValueError(
                    f"output {name!r} of the model is not finite for these inputs, so that there "
                    f"is no error to measure; expected other inputs to calibrate with"
                )

    def _outputs(self, model: Model) -> Arrays:
        made, _ = model(self.inputs)
        return made if isinstance(made, dict) else {next(iter(model.graph.outputs)): made}

    def reduced(self, scheme: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors where each layer that has matrices is stored in a precision.

        Raises
        ------
        ValueError
            Naming the tensor that cannot be.
        """
        tensors = dict(self.tensors)
        for one in self.known:
            kind = scheme[one.layers[0]]
            for name, axis in one.axes.items() if kind != "float32" else ():
                try:
                    tensors[name] = Reduced.of(np.asarray(tensors[name]), kind, axis)
                except ValueError as error:
                    raise ValueError(f"tensor {name!r}: {error}") from None
        return tensors

    def made(self, tensors: Mapping[str, Tensor], **parts: Any) -> Model:
        """A model of other tensors, run as this one is."""
        own = self.model
        parts = {"vocabulary": own.vocabulary, "source": own.source, "facts": own.facts} | parts
        return own.like(ModelFile(own.graph, tensors, **parts))

    def errors(self, model: Model) -> dict[str, Errors]:
        """Of each output, beside those of float32."""
        found = {}
        for name, y in self._outputs(model).items():
            exact = self.exact[name]
            with np.errstate(invalid="ignore"):
                off, plain = (
                    np.abs(one.reshape(exact.shape) - exact) for one in (y, self.float32[name])
                )
            if not np.isfinite(off).all():
                raise ValueError(f"output {name!r} would not be finite; expected more precision")
            rms = [math.sqrt(float(np.square(one).mean())) for one in (off, plain)]
            size = float(np.abs(exact).max())
            found[name] = Errors(float(off.max()), rms[0], float(plain.max()), rms[1], size)
        return found

    def largest(self, scheme: Mapping[str, str]) -> float:
        """The largest error of all outputs; infinite where there cannot be such a model."""
        try:
            errors = self.errors(self.made(self.reduced(scheme)))
        except ValueError:
            return math.inf
        return max(one.largest for one in errors.values())

    def finished(self, scheme: Mapping[str, str], note: str) -> Model:
        """The model, with what was measured, and a self-check that begins as the sequence does."""
        tensors = self.reduced(scheme)
        source = self.model.source | {"precision": note}
        if {*scheme.values()} == {"float32"}:
            return self.made(tensors, source=source)
        measured = Measured(self.steps, self.calibrated, self.errors(self.made(tensors)))
        own = self.model
        begins = {
            one.name: self.inputs[one.name][0 if one.held else np.s_[:, 0]]
            for one in own.graph.inputs
        }
        tolerance = self_check.tolerance(own.dtype, scheme, measured)
        check = self_check.make(own.graph, own.facts, tensors, own.dtype, tolerance, begins)
        return self.made(tensors, source=source, measured=measured, self_check=check)
