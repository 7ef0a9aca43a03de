"""Layers that turn the features of one step into others, without looking at any other step.

A frame is a step's features seen as ``channels`` rows of ``width`` numbers, one row after the other
as PyTorch lays out an array (channels, width).
"""

from __future__ import annotations

from typing import ClassVar

from chain import functions
from chain.layer import Layer, SameSize, extra, layer_kind

__all__ = ["Activation", "BatchNorm1d", "CombineHalves", "LayerNorm", "Linear", "PReLU", "Scale"]


@layer_kind
class Linear(Layer):
    """``y = x W^T + b`` (``torch.nn.Linear``)."""

    in_features: int
    out_features: int
    bias: bool = True
    kind: ClassVar[str] = "linear"

    @property
    def input_size(self) -> int:
        return self.in_features

    @property
    def output_size(self) -> int:
        return self.out_features

    def tensors(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.name}.weight": (self.out_features, self.in_features)
        }
        if self.bias:
            shapes[f"{self.name}.bias"] = (self.out_features,)
        return shapes


@layer_kind
class Activation(SameSize):
    """A function of each feature, or a (log-)softmax over them; see :mod:`.functions`."""

    function: str
    size: int
    kind: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "function", functions.canonical(self.function))
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {error}") from None


@layer_kind
class PReLU(SameSize):
    """``max(x, 0) + weight * min(x, 0)`` (``torch.nn.PReLU``).

    The features are divided evenly, in order, among the `num_parameters` weights.
    """

    size: int
    num_parameters: int = 1
    kind: ClassVar[str] = "prelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % self.num_parameters:
            raise self._refused("num_parameters", f"a divisor of size, which is {self.size}")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}.weight": (self.num_parameters,)}


@layer_kind
class Scale(SameSize):
    """``y = x * weight + bias``, feature by feature: the normalisation of an input."""

    size: int
    kind: ClassVar[str] = "scale"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}.weight": (self.size,), f"{self.name}.bias": (self.size,)}


@layer_kind
class LayerNorm(SameSize):
    """``torch.nn.LayerNorm`` over all features of a step (https://arxiv.org/abs/1607.06450)."""

    size: int
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True
    kind: ClassVar[str] = "layer_norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias and not self.elementwise_affine:
            raise self._refused("bias", "false where elementwise_affine is")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        suffixes = ("weight",) * self.elementwise_affine + ("bias",) * self.bias
        return {f"{self.name}.{suffix}": (self.size,) for suffix in suffixes}


@layer_kind
class BatchNorm1d(Layer):
    """``torch.nn.BatchNorm1d`` in evaluation, by its running statistics.

    The features are `num_features` channels of `width` numbers each.
    """

    num_features: int
    eps: float = 1e-5
    affine: bool = True
    width: int = extra(default=1)
    kind: ClassVar[str] = "batch_norm"

    @property
    def input_size(self) -> int:
        return self.num_features * self.width

    @property
    def output_size(self) -> int:
        return self.num_features * self.width

    def tensors(self) -> dict[str, tuple[int, ...]]:
        suffixes = (*(("weight", "bias") if self.affine else ()), "running_mean", "running_var")
        return {f"{self.name}.{suffix}": (self.num_features,) for suffix in suffixes}


@layer_kind
class CombineHalves(Layer):
    """The first half of the channels of a frame, combined with the second half.

    `function` is ``"sum"``, ``"product"`` or ``"average"`` (what a bidirectional layer's directions
    are merged by), ``"magnitude"``, the root of the sum of squares (of a spectrum whose real parts
    come first), or ``"glu"``, the first times the sigmoid of the second
    (``torch.nn.functional.glu``). `channels` and `width` are those of the input.
    """

    function: str
    channels: int
    width: int = extra(default=1)
    kind: ClassVar[str] = "combine_halves"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.function not in ("sum", "product", "average", "magnitude", "glu"):
            raise self._refused("function", "'sum', 'product', 'average', 'magnitude' or 'glu'")
        if self.channels % 2:
            raise self._refused("channels", "an even number")

    @property
    def input_size(self) -> int:
        return self.channels * self.width

    @property
    def output_size(self) -> int:
        return self.channels // 2 * self.width
