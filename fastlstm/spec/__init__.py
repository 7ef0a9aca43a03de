"""The vocabulary: a model is a graph of rows.

A *value* is one row of numbers a step. A *layer* maps rows to a row; a :class:`Node` is a layer and
the values it reads; a :class:`Graph` names its inputs, its nodes and its outputs. Layers are frozen
dataclasses whose fields carry PyTorch's names; each knows the tensors it needs (PyTorch's names and
shapes under the layer's own name), the state that one stream keeps for it, and how many rows it
makes. :func:`check` derives what is known of every value. Nothing here touches an array.

Time enters in five ways only: a recurrence carries its states; a window, or a kernel over time,
sees the last rows; a delay hands a row on later, also to what it was computed from; a rate drops
rows or makes several of one; a fold takes all rows so far into one. Everything else is a function
of one step, and movement within a step is an index.

Dimension letters: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``O`` output, ``G`` gates,
``D`` directions, ``N`` layers of a stack, ``C`` channels.
"""

from fastlstm.spec.arithmetic import OPERATIONS, Activation, Arithmetic, Reduce, Softmax
from fastlstm.spec.check import Facts, check, check_tensors
from fastlstm.spec.convolution import Convolution, Pooling, Sliding
from fastlstm.spec.functions import PARAMETERS, Function
from fastlstm.spec.functions import parse as parse_function
from fastlstm.spec.graph import Graph, Input
from fastlstm.spec.groups import Group
from fastlstm.spec.kinds import KINDS, layer_from_dict
from fastlstm.spec.layer import MAX_SIZE, Layer, Node
from fastlstm.spec.matrices import Constant, Embedding, Linear, MatMul, OneHot
from fastlstm.spec.movement import FILL, Index
from fastlstm.spec.norms import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from fastlstm.spec.recurrent import GRU, LSTM, RNN, Recurrent
from fastlstm.spec.row import Row, Shape
from fastlstm.spec.stored import MAX_INT8_WIDTH, PRECISIONS, Stored, check_precisions, stored
from fastlstm.spec.time import Attention, Delay, Fold, Repeat, Slice, Spread, Window
from fastlstm.spec.timing import Count, Rate, Term, Timing

__all__ = [
    "FILL",
    "GRU",
    "KINDS",
    "LSTM",
    "MAX_INT8_WIDTH",
    "MAX_SIZE",
    "OPERATIONS",
    "PARAMETERS",
    "PRECISIONS",
    "RNN",
    "Activation",
    "Arithmetic",
    "Attention",
    "BatchNorm",
    "Constant",
    "Convolution",
    "Count",
    "Delay",
    "Embedding",
    "Facts",
    "Fold",
    "Function",
    "Graph",
    "Group",
    "GroupNorm",
    "Index",
    "Input",
    "Layer",
    "LayerNorm",
    "Linear",
    "MatMul",
    "Node",
    "OneHot",
    "Pooling",
    "RMSNorm",
    "Rate",
    "Recurrent",
    "Reduce",
    "Repeat",
    "Row",
    "Shape",
    "Slice",
    "Sliding",
    "Softmax",
    "Spread",
    "Stored",
    "Term",
    "Timing",
    "Window",
    "check",
    "check_precisions",
    "check_tensors",
    "layer_from_dict",
    "parse_function",
    "stored",
]
