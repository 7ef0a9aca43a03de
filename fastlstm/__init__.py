"""Run trained recurrent networks on a CPU, one step at a time, near the machine's limit."""

from fastlstm.format import FormatError
from fastlstm.model import Model, convert, from_torch, load
from fastlstm.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastlstm.spec import ConvertError
from fastlstm.stream import Stream

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
    "RNNCell",
    "Stream",
    "convert",
    "from_torch",
    "load",
]
