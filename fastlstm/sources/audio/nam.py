"""Neural Amp Modeler's ``.nam`` files of LSTMs: JSON with the weights in one flat list.

The list holds, of each layer, the weights of x and h side by side (4H, I + H), gates i f g o, the
bias, and the h and c that a sequence starts from; behind all layers the head's weights and bias
(nam/models/recurrent.py of neural-amp-modeler, NAM/lstm.cpp of NeuralAmpModelerCore).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.audio.built import INPUT, Built
from fastlstm.sources.audio.fields import Fields
from fastlstm.sources.conversion import Conversion

__all__ = ["is_nam", "read_nam"]

DEFAULT_RATE = 48_000
# What the plugin, not the model, does with its numbers.
_LEVELS = ("loudness", "gain", "input_level_dbu", "output_level_dbu")


def is_nam(tree: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a model of Neural Amp Modeler."""
    return "architecture" in tree and "config" in tree


def read_nam(tree: Mapping[str, Any], dtype: str) -> Conversion:
    """Make the model; errors are those of :func:`fastlstm.sources.read`."""
    whole = Fields("the model", tree)
    architecture = whole.text("architecture")
    if architecture != "LSTM":
        raise ConvertError(
            f"the architecture is {architecture!a:.80}; of .nam files only LSTM is read. The "
            f"trainer has the others as PyTorch modules: fastlstm.from_torch(module), or "
            f"torch.onnx.export(..., dynamo=False) and fastlstm.convert of that file"
        )
    config = whole.within("config")
    I, H = config.size("input_size"), config.size("hidden_size")  # noqa: E741
    N = config.size("num_layers")
    O = config.size("out_channels", default=1)  # noqa: E741
    if config.size("in_channels", default=I) != I:
        raise config.refused("in_channels", f"{I}, the input_size")
    flat = whole.entries.get("weights")
    sizes = [I] + [H] * (N - 1) if N <= spec.MAX_SIZE // 4 and _size(flat) >= 4 * N else []
    wanted = sum(4 * H * (size + H + 1) + 2 * H for size in sizes) + O * (H + 1)
    if not isinstance(flat, np.ndarray) or flat.shape != (wanted,) or not sizes:
        raise whole.refused("weights", f"a flat list of {wanted} numbers, as the config tells")
    cells = spec.LSTM("lstm", I, H, N, initial_state="learned")
    head = spec.Linear("head", H, O)
    taken = _Taken(flat)
    tensors: dict[str, Any] = {}
    states: dict[str, list[Any]] = {"h_0": [], "c_0": []}
    for number, size in enumerate(sizes):
        both = taken(4 * H, size + H)
        tensors[f"weight_ih_l{number}"] = both[:, :size]
        tensors[f"weight_hh_l{number}"] = both[:, size:]
        tensors[f"bias_ih_l{number}"] = taken(4 * H)
        tensors[f"bias_hh_l{number}"] = np.zeros(4 * H)
        for state in states.values():
            state.append(taken(H))
    built = Built(I)
    at = built.add(cells, INPUT, **tensors, **{name: np.stack(s) for name, s in states.items()})
    at = built.add(head, at, weight=taken(O, H), bias=taken(O))
    return built.conversion(at, dtype, _notes(whole))


def _size(flat: object) -> int:
    return flat.size if isinstance(flat, np.ndarray) else 0


def _notes(whole: Fields) -> list[str]:
    rate = whole.number("sample_rate", DEFAULT_RATE)
    told = "" if "sample_rate" in whole.entries else ", since the file says none"
    notes = [
        f"sample rate: {rate:g} Hz{told}",
        "a sequence starts from the h and c that were learned; the authors' program runs half a "
        "second of zeros before the first sample, which is left to you",
    ]
    if isinstance(whole.entries.get("metadata"), Mapping):
        metadata = whole.within("metadata")
        levels = [
            f"{key} {metadata.number(key):g}"
            for key in _LEVELS
            if metadata.entries.get(key) is not None
        ]
        if levels:
            notes.append(f"for the program around it, not applied: {', '.join(levels)}")
    return notes


class _Taken:
    """Arrays from the front of a flat list."""

    def __init__(self, flat: npt.NDArray[Any]) -> None:
        self._flat, self._at = flat, 0

    def __call__(self, *shape: int) -> npt.NDArray[Any]:
        size = int(np.prod(shape))
        self._at += size
        return self._flat[self._at - size : self._at].reshape(shape)
