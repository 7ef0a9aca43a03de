"""Models whose matrices are stored in fewer bytes, layer by layer, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.calibration import Measurement, inputs_of, listed
from fastlstm.model import Model

__all__ = ["quantize"]

Scheme = dict[str, str]  # the first layer of each spec.Stored -> its precision

MOST_NOTE = 4000  # characters

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def quantize(
    model: Model,
    precision: str | Mapping[str, str] | None = None,
    *,
    calibrate: Any = None,
    target_error: float | None = None,
) -> Model:
    """A model whose matrices are stored in fewer bytes, made of one in float32.

    Of LSTM, GRU, RNN, Linear, convolutions and Embedding the matrices are stored otherwise; biases,
    norms, the weights of depthwise convolutions and whatever is computed stay float32.
    ``docs/precision.md`` has the arithmetic and what it costs.

    Parameters
    ----------
    model : Model
        It stays as it is.
    precision : str or mapping of str to str, optional
        ``"int8"``, ``"float16"``, ``"bfloat16"`` or ``"float32"`` for all layers that can be stored
        so, of which ``model.precision`` has the names; or of some layers, by their names, the
        others staying float32. ``"mixed"``, or nothing, with `target_error`.
    calibrate : path of an .npz file, mapping of str to array, or array, optional
        Inputs to measure the error with, as a call of the model takes them: (T, ...) or (T, B, ...)
        of the one input, or of each by its name. Without them they are random: of features normal,
        of tokens each as likely.
    target_error : float, optional
        Choose for each layer how it is stored: the largest error of an output over these inputs
        must not be above it, and a step should read as few bytes as it can. Layers are tried in the
        order of what each saves for the error it makes alone.

    Returns
    -------
    Model
        With the same options as `model`. ``precision`` tells how each layer is stored, ``measured``
        the largest and the rms error of each output, and those of float32, against the equations in
        float64 with the weights of `model`; ``source["precision"]`` has both in words.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If the model is float64 or quantised already; if a layer is unknown or cannot be stored so,
        which the message gives a reason for; if the inputs do not fit; if no choice, not even
        float32, keeps to `target_error`.
    OSError
        If `calibrate` cannot be read.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model is a {type(model).__qualname__}; expected a Model")
    if model.dtype != np.float32:
        raise ValueError(
            f"the model is {model.dtype}; only float32 models are stored in fewer bytes: convert "
            f'the checkpoint again with dtype="float32", and quantise that'
        )
    if model.measured is not None or {*model.precision.values()} - {"float32"}:
        raise ValueError(
            "the model is quantised already, and its own weights are gone; quantise the one that "
            "it was made of"
        )
    known = spec.stored(model.graph, model.facts.tensors)
    if not known:
        raise ValueError(
            "the model has no layer with a matrix: there is nothing to store otherwise"
        )
    if target_error is not None and precision not in (None, "mixed"):
        raise ValueError(
            f"precision is {precision!r:.80} and there is a target_error, which chooses it; "
            f"expected 'mixed' with it, or a precision without"
        )
    scheme = None if target_error is not None else _scheme(known, precision)
    target = _target(target_error)
    measurement = Measurement(model, None if calibrate is None else inputs_of(model, calibrate))
    if scheme is None:
        scheme = _search(measurement, target)
    return measurement.finished(scheme, _note(known, scheme))


def _target(error: Any) -> float:
    if error is None:
        return math.inf
    if isinstance(error, bool) or not isinstance(error, int | float) or not 0 < error < math.inf:
        raise ValueError(f"target_error is {error!r:.80}; expected a number above 0")
    return float(error)


def _scheme(known: Sequence[spec.Stored], precision: Any) -> Scheme:
    """What is asked for; of a single precision as far as layers can have it."""
    if isinstance(precision, str):
        if precision == "mixed":
            raise ValueError("precision is 'mixed', but how? expected target_error with it")
        _check_precision("precision", precision)
        return {
            one.layers[0]: "float32" if precision in one.refused else precision for one in known
        }
    if not isinstance(precision, Mapping):
        raise TypeError(
            f"precision is {precision!r:.80}; expected one of {listed(spec.PRECISIONS)}, a "
            f"mapping of layers to them, or target_error"
        )
    names = [name for one in known for name in one.layers]
    for name, kind in precision.items():
        if name not in names:
            raise ValueError(
                f"precision names {name!r:.80}, which is no layer with a matrix; expected some of "
                f"{listed(names)}"
            )
        _check_precision(f"precision of {name!r:.80}", kind)
    scheme = {}
    for one in known:
        kinds = {precision.get(name, "float32") for name in one.layers}
        if len(kinds) > 1:
            raise ValueError(
                f"layers {listed(one.layers)} share a matrix, but are to be "
                f"{' and '.join(sorted(kinds))}; expected one precision for them"
            )
        (kind,) = kinds
        if why := one.refused.get(kind):
            raise ValueError(f"layer {one.layers[0]!r} cannot be {kind}: {why}")
        scheme[one.layers[0]] = kind
    return scheme


def _check_precision(what: str, kind: Any) -> None:
    if kind not in spec.PRECISIONS:
        raise ValueError(f"{what} is {kind!r:.80}; expected one of {listed(spec.PRECISIONS)}")


def _note(known: Sequence[spec.Stored], scheme: Scheme) -> str:
    """How the layers are stored, and why some could not be otherwise."""
    lines = []
    for kind in spec.PRECISIONS[::-1]:
        names = [name for one in known if scheme[one.layers[0]] == kind for name in one.layers]
        lines += [f"{kind}: {listed(names)}"] if names else []
    for one in known:
        for kind in {*scheme.values()} & one.refused.keys():
            lines.append(f"{listed(one.layers)} cannot be {kind}: {one.refused[kind]}")
    text = "\n".join(lines)
    return text if len(text) < MOST_NOTE else f"{text[:MOST_NOTE]}..."


def _search(measurement: Measurement, target: float) -> Scheme:
    """The scheme that reads the fewest bytes a step, as a greedy choice finds it."""
    plain = {one.layers[0]: "float32" for one in measurement.known}
    if (own := measurement.largest(plain)) > target:
        raise ValueError(
            f"target_error is {target:g}, and float32 itself is off by {own:.2g}; expected more"
        )
    tried: list[tuple[float, str, str]] = []
    for one in measurement.known:
        name, read = one.layers[0], _read_a_step(measurement.model, one)
        for kind in spec.PRECISIONS[1:]:
            if kind not in one.refused:
                error = measurement.largest(plain | {name: kind})
                saved = read * (_BYTES["float32"] - _BYTES[kind])
                tried += [(saved / max(error, own), name, kind)] if error <= target else []
    chosen = plain
    for _, name, kind in sorted(tried, reverse=True):
        better = chosen | {name: kind}
        if _BYTES[kind] < _BYTES[chosen[name]] and measurement.largest(better) <= target:
            chosen = better
    return chosen


def _read_a_step(model: Model, one: spec.Stored) -> int:
    """Numbers of matrices that a step reads; of a table that no other layer has, one row."""
    layers = [node.layer for node in model.graph.nodes if node.name in one.layers]
    return sum(
        layer.embedding_dim
        if isinstance(layer, spec.Embedding)
        else sum(math.prod(layer.tensors()[suffix]) for suffix in layer.matrices())
        for layer in layers
    )
