"""Models of the tests, said shortly: a list of layers, each of which reads the one before.

:func:`~chain.lower.lowered` makes the graph of a list, and :mod:`.reference` has the equations of
its layers in NumPy, written apart from those of the package. A layer is a frozen dataclass whose
fields carry PyTorch's names; it knows the tensors it needs (PyTorch's names and shapes under the
layer's own name) and the state one stream keeps for it.

Dimension letters: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``O`` output, ``G`` gates,
``D`` directions, ``N`` layers of a stack, ``C`` channels of a frame, ``W`` its width.
"""

from chain.convolution import Conv1d, FrameConv1d
from chain.features import (
    Activation,
    BatchNorm1d,
    CombineHalves,
    LayerNorm,
    Linear,
    PReLU,
    Scale,
)
from chain.functions import ACTIVATIONS, Function
from chain.functions import parse as parse_function
from chain.layer import MAX_SIZE, Layer
from chain.model import (
    MAX_DEPTH,
    Residual,
    check_layers,
    check_tensors,
    delay,
    layer_from_dict,
    looks_ahead,
    output_steps,
    step_stride,
    walk,
    work,
)
from chain.recurrent import GRU, LSTM, RNN, Recurrent
from chain.time import Pool
from chain.tokens import Embedding, OneHot

__all__ = [
    "ACTIVATIONS",
    "GRU",
    "LSTM",
    "MAX_DEPTH",
    "MAX_SIZE",
    "RNN",
    "Activation",
    "BatchNorm1d",
    "CombineHalves",
    "Conv1d",
    "Embedding",
    "FrameConv1d",
    "Function",
    "Layer",
    "LayerNorm",
    "Linear",
    "OneHot",
    "PReLU",
    "Pool",
    "Recurrent",
    "Residual",
    "Scale",
    "check_layers",
    "check_tensors",
    "delay",
    "layer_from_dict",
    "looks_ahead",
    "output_steps",
    "parse_function",
    "step_stride",
    "walk",
    "work",
]
