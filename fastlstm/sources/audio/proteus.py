"""GuitarML's and Proteus's JSON: a recurrent stack, one Linear, and the input added to its output.

They are what CoreAudioML saves of its SimpleRNN (networks.py): tensors under PyTorch's names, in
PyTorch's layout. ``skip`` is how many of the inputs are added; ``bias_fl`` whether the Linear has a
bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.audio.built import INPUT, Built
from fastlstm.sources.audio.fields import Fields, checked
from fastlstm.sources.conversion import Conversion

__all__ = ["is_proteus", "read_proteus"]

_UNITS = {"LSTM": spec.LSTM, "GRU": spec.GRU, "RNN": spec.RNN}


def is_proteus(tree: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a model of CoreAudioML."""
    return isinstance(tree.get("model_data"), Mapping) and "state_dict" in tree


def read_proteus(tree: Mapping[str, Any], dtype: str) -> Conversion:
    """Make the model; errors are those of :func:`fastlstm.sources.read`."""
    data = Fields("model_data", tree["model_data"])
    stored = Fields("state_dict", tree["state_dict"])
    model = data.text("model", "SimpleRNN")
    if model != "SimpleRNN":
        raise ConvertError(
            f"the model is a {model!a:.80} of CoreAudioML; expected a SimpleRNN. Others convert "
            f"from PyTorch: fastlstm.from_torch(module), or as ONNX"
        )
    unit = data.text("unit_type")
    if unit not in _UNITS:
        raise data.refused("unit_type", f"one of {', '.join(_UNITS)}")
    I, H = (data.size(key, default=n) for key, n in _sizes(stored).items())  # noqa: E741
    O, N = data.size("output_size", default=1), data.size("num_layers", default=1)  # noqa: E741
    skip = data.size("skip", least=0)
    if skip > I or skip not in (0, 1, O):
        raise data.refused("skip", f"0, 1 or {O}: inputs that are added to {O} outputs")
    if len(stored.entries) < 4 * N:
        raise data.refused("num_layers", "at most as many as the state_dict has weights of")
    bias = "lin.bias" in stored.entries
    if "bias_fl" in data.entries and bool(data.entries["bias_fl"]) != bias:
        raise data.refused(
            "bias_fl", f"{bias!s}, as the state_dict has {'a' if bias else 'no'} bias"
        )
    built = Built(I)
    layers: list[spec.Layer] = [_UNITS[unit]("rec", I, H, N), spec.Linear("lin", H, O, bias)]
    at = INPUT
    for layer in layers:
        names = layer.names()
        tensors = {
            suffix: checked(f"{names[suffix]!r} of state_dict", stored.entries.get(name), shape)
            for (suffix, shape), name in zip(layer.tensors().items(), names.values(), strict=True)
        }
        at = built.add(layer, at, **tensors)
    if unknown := stored.entries.keys() - built.tensors.keys():
        raise ConvertError(
            f"state_dict holds {min(unknown)!a:.200}, which no layer of the SimpleRNN uses; "
            f"expected the tensors of 'rec' and 'lin' alone"
        )
    notes = []
    if skip:
        first = INPUT
        if skip < I:
            first = built.add(spec.Index.of("skipped", np.arange(skip, dtype=np.int32)), INPUT)
        at = built.add(spec.Arithmetic("skip", "add"), at, first)
        notes.append(f"the first {skip} of {I} inputs added to its output (skip)")
    return built.conversion(at, dtype, notes)


def _sizes(stored: Fields) -> dict[str, int | None]:
    """Sizes that older files leave to the weights."""
    first = {"input_size": "rec.weight_ih_l0", "hidden_size": "rec.weight_hh_l0"}
    found = {size: stored.entries.get(name) for size, name in first.items()}
    return {
        size: array.shape[1] if isinstance(array, np.ndarray) and array.ndim == 2 else None
        for size, array in found.items()
    }
