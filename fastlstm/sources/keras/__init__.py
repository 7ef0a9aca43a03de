"""Read a Keras model from its file: a straight line of layers, without Keras and without its code.

`keras_file` opens the file, `keras_config` reads what it says of the layers, `keras_layers` and
`keras_recurrent` make ours of them.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.config import FUNCTION_LAYERS, Entry, chain, layer_functions
from fastlstm.sources.keras.file import LayerWeights, SavedModel, is_keras, opened
from fastlstm.sources.keras.layers import LAYERS, Shape, Translate, Translation
from fastlstm.sources.keras.recurrent import RECURRENT

__all__ = ["KerasModel", "is_keras", "read"]

_WITHOUT_EFFECT = (
    *("InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout"),
    *("AlphaDropout", "ActivityRegularization"),
)
_REFUSED = {
    "Masking": "skips steps by what they hold, which is not supported",
    **dict.fromkeys(("Sequential", "Functional", "Model"), "is a model within the model"),
}
# Those that skip the steps that an embedding with mask_zero marks.
_MASK_READERS = (*RECURRENT, "TimeDistributed", "GlobalAveragePooling1D", "Softmax")


class KerasModel(NamedTuple):
    """A model read from a file of Keras.

    Parameters
    ----------
    layers : tuple of spec.Layer
        Checked, with the tensors.
    tensors : dict of str to array
        Exactly those the layers ask for, of the dtype they were stored in: float16, float32 or
        float64.
    report : list of str
        What became of each layer.
    """

    layers: tuple[spec.Layer, ...]
    tensors: dict[str, npt.NDArray[Any]]
    report: list[str]


def read(path: str | os.PathLike[str]) -> KerasModel:
    """Read a Sequential model, or a functional one that is a straight line of layers.

    Parameters
    ----------
    path : str or path-like
        A ``.keras`` file, or an ``.h5`` file with a whole model, of Keras 2 or 3.

    Raises
    ------
    ConvertError
        If the file is damaged or reaches out of itself, or the model holds a layer or an option
        that is not supported; the message names it. If h5py is not installed.
    OSError
        If the file cannot be read.
    """
    with opened(path) as saved:
        try:
            return _translate_all(saved)
        except ConvertError:
            raise
        except ValueError as error:
            raise ConvertError(f"the layers make no model: {error}") from None
        except RecursionError as error:
            raise ConvertError("the configuration is nested too deeply for a model") from error


def _translate_all(saved: SavedModel) -> KerasModel:
    listed, run, shape = chain(saved.config, saved.version)
    weights = saved.weights([(entry.class_name, entry.name) for entry in listed])
    weights_of = {entry.name: own for entry, own in zip(listed, weights, strict=True)}
    model = Translation(None if shape is None else _axes(shape))
    report = []
    for entry in run:
        made = len(model.layers)
        _translate(model, entry, weights_of[entry.name])
        report += [
            f"layer {layer.name!r}: {layer.describe()}, from {entry.what}"
            for layer in model.layers[made:]
        ] or [f"{entry.what} has no effect at inference and was left out"]
    if unused := saved.unused():
        raise ConvertError(
            f"no layer uses {len(unused)} of the weights, among them {unused[0]!r:.200}; expected "
            f"those of the layers and no others: load the model with Keras and save it again"
        )
    spec.check_layers(model.layers)
    spec.check_tensors(model.layers, {name: a.shape for name, a in model.tensors.items()})
    return KerasModel(tuple(model.layers), model.tensors, [*report, *model.notes])


def _axes(shape: object) -> Shape:
    """The axes of one row of the batch, of the shape of the input with the batch."""
    if (
        not isinstance(shape, list)
        or len(shape) not in (2, 3)
        or not all(n is None or (type(n) is int and n > 0) for n in shape)
    ):
        raise ConvertError(
            f"the shape of the input is {shape!r:.80}; expected (batch, steps, features), (batch, "
            f"steps) of tokens or (batch, features)"
        )
    return tuple(shape[1:])


def _translate(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    """Add what one layer of Keras is, once all that it says is known to be supported."""
    kind, options = entry.class_name, entry.options
    if model.masked is not None and kind in _MASK_READERS:
        name = model.masked.name
        raise ConvertError(
            f"{model.masked.what} has mask_zero=True, so that {entry.what} skips each step whose "
            f"token is 0; expected mask_zero=False: set model.get_layer({name!r:.80}).mask_zero = "
            f"False, save the model again, and give lengths= of sequences padded at their end"
        )
    if kind in _TRANSLATIONS:
        _TRANSLATIONS[kind](model, entry, weights)
    elif kind in FUNCTION_LAYERS:
        functions = layer_functions(kind, options, len(model.known_axes(entry)))
        model.activate(entry, entry.name, functions)
    elif kind not in _WITHOUT_EFFECT:
        known = sorted((*_TRANSLATIONS, *FUNCTION_LAYERS, *_WITHOUT_EFFECT))
        why = _REFUSED.get(kind, "is not supported")
        raise ConvertError(f"{entry.what} {why}; expected one of {', '.join(known)}")
    options.finish()
    if "float16" in (policy := options.computed_in()):
        model.notes.append(f"{entry.what} computes in {policy} in Keras, but not here")


def _time_distributed(model: Translation, entry: Entry, weights: LayerWeights) -> None:
    """A layer that sees one step at a time: as if there were no time."""
    inner = Entry(entry.options.take("layer"), entry.options.version)
    inner.name = entry.name
    model.features_of_steps(entry)
    steps, *axes = model.known_axes(entry)
    model.axes = tuple(axes)
    _translate(model, inner, weights.inside("layer"))
    model.axes = (steps, *model.axes)


_TRANSLATIONS: dict[str, Translate] = LAYERS | RECURRENT | {"TimeDistributed": _time_distributed}
