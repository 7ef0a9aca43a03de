"""The vocabulary: layer kinds, gate order, tensor names and shapes, and the check of a model.

A model is an ordered list of layers. A layer is a frozen dataclass whose fields carry PyTorch's
names; it knows the tensors it needs (PyTorch's names and shapes under the layer's own name) and the
state one stream keeps for it. Nothing here touches an array.

Dimension letters: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``O`` output, ``G`` gates,
``D`` directions, ``N`` layers of a stack, ``C`` channels of a frame, ``W`` its width.
"""

from fastlstm.chain.convolution import Conv1d, FrameConv1d
from fastlstm.chain.features import (
    Activation,
    BatchNorm1d,
    CombineHalves,
    LayerNorm,
    Linear,
    PReLU,
    Scale,
)
from fastlstm.chain.functions import ACTIVATIONS, Function
from fastlstm.chain.functions import parse as parse_function
from fastlstm.chain.layer import MAX_SIZE, Layer
from fastlstm.chain.model import (
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
from fastlstm.chain.recurrent import GRU, LSTM, RNN, Recurrent
from fastlstm.chain.time import Pool
from fastlstm.chain.tokens import Embedding, OneHot

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
