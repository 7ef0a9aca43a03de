"""Tensors -> the layout the kernels want, and back.

The field names of the dataclasses are those of the structs in ``kernels/fastlstm.h``.
"""

from fastlstm.pack.cells import Cell, Variant
from fastlstm.pack.layers import Convolution, PackedLayer
from fastlstm.pack.model import PackedModel, pack, packed_size, unpack
from fastlstm.pack.panels import Panels

__all__ = [
    "Cell",
    "Convolution",
    "PackedLayer",
    "PackedModel",
    "Panels",
    "Variant",
    "pack",
    "packed_size",
    "unpack",
]
