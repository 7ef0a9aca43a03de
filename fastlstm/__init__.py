"""Run trained recurrent networks on a CPU, one step at a time, near the machine's limit."""

import importlib
from typing import TYPE_CHECKING

from fastlstm.errors import ConvertError, FormatError
from fastlstm.loading import load
from fastlstm.model import Model
from fastlstm.pool import Pool
from fastlstm.stream import Stream

if TYPE_CHECKING:
    from fastlstm.conversion import convert, from_torch
    from fastlstm.exporting import export
    from fastlstm.forecasting import forecast
    from fastlstm.generation import generate, generate_steps
    from fastlstm.headers import get_include
    from fastlstm.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
    from fastlstm.quantisation import quantize
    from fastlstm.tokens import perplexity
    from fastlstm.verification import verify

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ConvertError",
    "FormatError",
    "GRUCell",
    "LSTMCell",
    "Model",
    "Pool",
    "RNNCell",
    "Stream",
    "convert",
    "export",
    "forecast",
    "from_torch",
    "generate",
    "generate_steps",
    "get_include",
    "load",
    "perplexity",
    "quantize",
    "verify",
]

# Names that are imported when they are first asked for: a program that steps a model in a
# real-time thread wants none of them.
_LATER = {
    "conversion": ("convert", "from_torch"),
    "exporting": ("export",),
    "forecasting": ("forecast",),
    "generation": ("generate", "generate_steps"),
    "headers": ("get_include",),
    "nn": ("GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"),
    "quantisation": ("quantize",),
    "tokens": ("perplexity",),
    "verification": ("verify",),
}


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            value = getattr(importlib.import_module(f"fastlstm.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'fastlstm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
