"""Convolutions: over the time of a stream, and within the frame that is one step's features."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import ClassVar

from chain.layer import Layer, extra, layer_kind

__all__ = ["Conv1d", "FrameConv1d"]

# Counts of steps are kept as float32, which is exact to 2**24.
MAX_COUNT = 2**23

# Numbers of past input that a convolution over time may ask for: a file of a few bytes can name any
# dilation, and whoever runs it pads by as much.
MAX_REACH = 2**20


@layer_kind
class _Convolution(Layer):
    """What both share. A kernel touches ``reach + 1`` positions, from first to last."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("in_channels", "out_channels"):
            if getattr(self, field) % self.groups:
                raise self._refused(field, f"a multiple of groups, which is {self.groups}")

    def describe(self) -> str:
        plain = {field.name: field.default for field in fields(self)} | {"kind": self.kind}
        shown = [f"{k}={v}" for k, v in self.to_dict().items() if k != "name" and v != plain[k]]
        return f"{self.kind}({', '.join(shown)})"

    @property
    def reach(self) -> int:
        """Positions from the first that a kernel touches to the last."""
        return self.dilation * (self.kernel_size - 1)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.name}.weight": (
                self.out_channels,
                self.in_channels // self.groups,
                self.kernel_size,
            )
        }
        if self.bias:
            shapes[f"{self.name}.bias"] = (self.out_channels,)
        return shapes


@layer_kind
class Conv1d(_Convolution):
    """``torch.nn.Conv1d`` over time: a step is a column of `in_channels` numbers.

    `padding_left` zeros stand before the first step and `padding_right` behind the last. A
    convolution is causal with ``padding_left = dilation * (kernel_size - 1)`` and no padding on the
    right; with less on the left its first output needs more steps than one, with padding on the
    right it looks ahead.

    Its state is the last ``reach`` inputs, step t in row ``t % reach``, and the number of steps
    read, which starts again from ``first`` where nothing tells the difference.
    """

    padding_left: int = extra(default=0, least=0)
    padding_right: int = extra(default=0, least=0)
    kind: ClassVar[str] = "conv1d"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("padding_left", "padding_right"):
            if getattr(self, field) > self.reach:
                raise self._refused(
                    field, f"at most dilation * (kernel_size - 1), which is {self.reach}"
                )
        if self.reach * self.in_channels > MAX_REACH:
            raise ValueError(
                f"layer {self.name!r} reaches back over {self.reach} steps of {self.in_channels} "
                f"features; at most {MAX_REACH} numbers are supported"
            )
        if not self.looks_ahead and self.first + self.period > MAX_COUNT:
            raise ValueError(
                f"layer {self.name!r} repeats itself only after {self.period} steps; at most "
                f"{MAX_COUNT} are supported"
            )

    @property
    def input_size(self) -> int:
        return self.in_channels

    @property
    def output_size(self) -> int:
        return self.out_channels

    @property
    def first(self) -> int:
        """Steps read when the first output is made."""
        return self.reach + 1 - self.padding_left

    @property
    def period(self) -> int:
        """Steps after which both the output and the row of the state come around."""
        return math.lcm(max(self.reach, 1), self.stride)

    @property
    def looks_ahead(self) -> str:
        if not self.padding_right:
            return ""
        return f"is a convolution padded by {self.padding_right} on the right"

    @property
    def delay(self) -> int:
        return self.first - 1

    @property
    def step_stride(self) -> int:
        return self.stride

    def steps(self, T: int) -> int:
        last = T + self.padding_right - self.first
        return last // self.stride + 1 if T and last >= 0 else 0

    def state(self) -> dict[str, tuple[int, int]]:
        if self.looks_ahead or (self.reach == 0 and self.stride == 1):
            return {}
        kept = {f"{self.name}.x": (self.reach, self.in_channels)} if self.reach else {}
        return kept | {f"{self.name}.count": (1, 1)}

    def counts(self) -> dict[str, int]:
        return {name: self.first + self.period for name in self.state() if name.endswith(".count")}


@layer_kind
class FrameConv1d(_Convolution):
    """``torch.nn.Conv1d`` within a frame: a step is `in_channels` rows of `width` numbers.

    The frame is padded on both sides before, in the way of `padding_mode`: ``"zeros"``,
    ``"reflect"`` or ``"replicate"`` (``torch.nn.functional.pad``). The output is again a frame, of
    `out_channels` rows of :attr:`out_width` numbers.
    """

    width: int = 1
    padding_left: int = extra(default=0, least=0)
    padding_right: int = extra(default=0, least=0)
    padding_mode: str = extra(default="zeros")
    kind: ClassVar[str] = "frame_conv1d"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding_mode not in ("zeros", "reflect", "replicate"):
            raise self._refused("padding_mode", "'zeros', 'reflect' or 'replicate'")
        if self.padding_mode == "reflect":
            for field in ("padding_left", "padding_right"):
                if getattr(self, field) >= self.width:
                    raise self._refused(field, f"less than width, which is {self.width}")
        if self.width + self.padding_left + self.padding_right <= self.reach:
            raise self._refused("width", f"more than {self.reach} with its padding")

    @property
    def out_width(self) -> int:
        padded = self.width + self.padding_left + self.padding_right
        return (padded - self.reach - 1) // self.stride + 1

    @property
    def input_size(self) -> int:
        return self.in_channels * self.width

    @property
    def output_size(self) -> int:
        return self.out_channels * self.out_width

    @property
    def work(self) -> int:
        weights = self.out_channels * (self.in_channels // self.groups) * self.kernel_size
        return weights * self.out_width + 8 * self.output_size
