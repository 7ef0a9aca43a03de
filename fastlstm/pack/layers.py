"""One packed layer, and the matrices and vectors of those without cells.

The positions of a frame lie one after the other in the kernels, each with all its channels, so that
the inputs of one output of a convolution lie together.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fastlstm import chain as spec
from fastlstm.pack.cells import Cell
from fastlstm.pack.panels import Array, Panels, aligned_zeros, pack_matrix, padded, read_matrices

__all__ = [
    "INPUT",
    "OUTPUT",
    "Convolution",
    "PackedLayer",
    "convolution_size",
    "pack_convolution",
    "read_convolution",
    "scale_and_shift",
    "touched_taps",
]

INPUT, OUTPUT = 0, 1  # FL_INPUT, FL_OUTPUT


class Convolution(SimpleNamespace):
    """``fl_convolution``: its fields by keyword."""

    channels: int
    out_channels: int
    kernel_size: int
    stride: int
    dilation: int
    groups: int
    depthwise: bool
    padding_left: int
    padding_right: int = 0
    padding_mode: str = "zeros"
    width: int = 1
    out_width: int = 1
    reach: int = 0
    first: int = 1
    period: int = 1
    x_offset: int = 0
    count_offset: int = 0
    has_count: bool = False


class PackedLayer(SimpleNamespace):
    """What the engine turns into one ``fl_layer``."""

    kind: str
    input_size: int
    output_size: int
    function: spec.Function | None = None
    source: int = INPUT
    beside: int = INPUT
    to: int = OUTPUT
    table: Array | None = None
    weight: Array | None = None
    bias: Array | None = None
    linear: Panels | None = None
    eps: float = 0.0
    positions: int = 1
    combination: str = "sum"
    pooling: str = "last"
    state_offset: int = 0
    count_bound: float = 0.0
    x_first: bool = False
    convolution: Convolution | None = None
    reverse: bool = False
    clip: float = 0.0
    cells: list[Cell]

    def __init__(self, kind: str, input_size: int, output_size: int, **others: Any) -> None:
        super().__init__(
            kind=kind, input_size=input_size, output_size=output_size, cells=[], **others
        )

    def arrays(self) -> list[Array]:
        """Every array of weights, once."""
        found = [self.table, self.weight, self.bias]
        panels = [self.linear]
        for cell in self.cells:
            panels += [cell.gates, cell.projection]
            found += [cell.bias_n, cell.table]
            if v := cell.variant:
                panels += [v.reset_gates, v.reset_candidate]
                found += [v.bias, v.norm_gate, *v.peepholes, *v.norm_x, *v.norm_h, *v.norm_c]
                found += [] if v.reset_gates else [v.h_bias]
        for p in panels:
            found += [p.weights, p.bias, p.scale, p.shift] if p else []
        return [array for array in found if array is not None]


def touched_taps(layer: spec.Conv1d | spec.FrameConv1d) -> tuple[int, int]:
    """First tap, and the one behind the last, that ever meets anything but zeros of padding."""
    if isinstance(layer, spec.Conv1d) or layer.padding_mode != "zeros":
        return 0, layer.kernel_size
    touched = []
    for tap in range(layer.kernel_size):
        offset = tap * layer.dilation - layer.padding_left
        first = max(0, -(offset // layer.stride))  # the first output whose tap is not on the left
        if first < layer.out_width and first * layer.stride + offset < layer.width:
            touched.append(tap)
    return (touched[0], touched[-1] + 1) if touched else (0, 1)


def _is_depthwise(layer: spec.Conv1d | spec.FrameConv1d) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1


def convolution_size(layer: spec.Conv1d | spec.FrameConv1d, lanes: int) -> int:
    """Elements of its weights and biases once packed."""
    rows = layer.kernel_size * layer.in_channels // layer.groups + 1
    if _is_depthwise(layer):
        return rows * layer.out_channels
    return layer.groups * rows * padded(layer.out_channels // layer.groups, lanes)


def pack_convolution(
    layer: spec.Conv1d | spec.FrameConv1d,
    weight: Array,
    lanes: int,
    bias: Array | None,
    scale: Array | None,
    shift: Array | None,
) -> PackedLayer:
    """A convolution with vectors (out_channels,), but without its place in the state."""
    first, end = touched_taps(layer)
    weight = weight[:, :, first:end]
    padding_left = layer.padding_left - first * layer.dilation
    packed = PackedLayer("time_conv", layer.input_size, layer.output_size)
    packed.convolution = made = Convolution(
        channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel_size=end - first,
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
        depthwise=_is_depthwise(layer),
        padding_left=padding_left,
    )
    if isinstance(layer, spec.FrameConv1d):
        packed.kind = "frame_conv"
        made.padding_mode, made.width = layer.padding_mode, layer.width
        made.out_width = layer.out_width
    else:
        made.padding_right, made.reach = layer.padding_right, layer.reach
        made.first, made.period = layer.first, layer.period
    if made.depthwise:
        packed.weight = aligned_zeros((made.kernel_size, made.channels), weight.dtype)
        packed.weight[:] = weight[:, 0].T
        packed.bias = np.zeros(made.channels, weight.dtype) if bias is None else bias.copy()
        if scale is not None:  # a matrix without panels: the kernel reads these of it
            none = np.zeros(0, weight.dtype)
            packed.linear = Panels(none, none, 0, 0, 1, 1, scale=scale, shift=shift)
        return packed
    matrices = np.split(weight.transpose(0, 2, 1).reshape(len(weight), -1), layer.groups)
    packed.linear = pack_matrix(matrices, lanes, bias, scale, shift)
    return packed


def read_convolution(packed: PackedLayer, lanes: int) -> Array:
    """The weight (out_channels, in_channels / groups, kernel_size), if every tap is packed."""
    made = packed.convolution
    assert made is not None
    if made.depthwise:
        assert packed.weight is not None
        return np.ascontiguousarray(packed.weight.T[:, None])
    assert packed.linear is not None
    each = made.channels // made.groups
    matrices = read_matrices(packed.linear, made.out_channels // made.groups, lanes)
    weight = np.concatenate(matrices).reshape(made.out_channels, made.kernel_size, each)
    return np.ascontiguousarray(weight.transpose(0, 2, 1))


def scale_and_shift(
    layer: spec.BatchNorm1d, get: dict[str, Array], bias: Array | None = None
) -> tuple[Array, Array]:
    """A batch normalisation of x + bias as y = x * scale + shift, (num_features,) each.

    Rounded once, so that a large bias and the mean that it makes do not lose each other's digits.
    """
    mean, var = (get[f"running_{what}"].astype(np.float64) for what in ("mean", "var"))
    one, zero = np.ones_like(mean), np.zeros_like(mean)
    dtype = get["running_mean"].dtype
    scale = get.get("weight", one) / np.sqrt(var + layer.eps)
    shift = get.get("bias", zero) + ((zero if bias is None else bias) - mean) * scale
    return scale.astype(dtype), shift.astype(dtype)
