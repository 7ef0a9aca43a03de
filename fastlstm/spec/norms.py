"""Normalisations of the numbers of one step."""

from __future__ import annotations

from typing import ClassVar

from fastlstm.spec.frozen import extra, frozen
from fastlstm.spec.layer import OneRow
from fastlstm.spec.row import Row, Shape

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"]


@frozen
class LayerNorm(OneRow):
    """``torch.nn.LayerNorm`` over the last axes of a step (https://arxiv.org/abs/1607.06450)."""

    normalized_shape: tuple[int, ...]
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True
    kind: ClassVar[str] = "layer_norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.normalized_shape:
            raise self._refused("normalized_shape", "at least one axis")
        if self.bias and not self.elementwise_affine:
            raise self._refused("bias", "false where elementwise_affine is")

    @property
    def input_shape(self) -> Shape:
        """The axes of a row that it takes where there are no positions."""
        return self.normalized_shape

    def of_row(self, shape: Shape) -> Shape:
        return _ends_with(shape, self.normalized_shape)

    def tensors(self) -> dict[str, Shape]:
        suffixes = ("weight",) * self.elementwise_affine + ("bias",) * self.bias
        return dict.fromkeys(suffixes, self.normalized_shape)


@frozen
class RMSNorm(OneRow):
    """``torch.nn.RMSNorm`` over the last axes of a step (https://arxiv.org/abs/1910.07467)."""

    normalized_shape: tuple[int, ...]
    eps: float = 1e-5
    elementwise_affine: bool = True
    kind: ClassVar[str] = "rms_norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.normalized_shape:
            raise self._refused("normalized_shape", "at least one axis")

    @property
    def input_shape(self) -> Shape:
        """The axes of a row that it takes where there are no positions."""
        return self.normalized_shape

    def of_row(self, shape: Shape) -> Shape:
        return _ends_with(shape, self.normalized_shape)

    def tensors(self) -> dict[str, Shape]:
        return {"weight": self.normalized_shape} if self.elementwise_affine else {}


@frozen
class GroupNorm(OneRow):
    """``torch.nn.GroupNorm`` of a step of rows (C, ...): groups of channels, each on its own.

    With as many groups as channels it is ``torch.nn.InstanceNorm``
    (https://arxiv.org/abs/1803.08494).
    """

    num_groups: int
    num_channels: int
    eps: float = 1e-5
    affine: bool = True
    kind: ClassVar[str] = "group_norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_channels % self.num_groups:
            raise self._refused("num_groups", f"a divisor of {self.num_channels}")

    def of_row(self, shape: Shape) -> Shape:
        if shape[:1] != (self.num_channels,):
            raise ValueError(f"it takes rows ({self.num_channels}, ...), and is given {Row(shape)}")
        return shape

    def tensors(self) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias"), (self.num_channels,)) if self.affine else {}


@frozen
class BatchNorm(OneRow):
    """``torch.nn.BatchNorm1d`` and its kin in evaluation, by their running statistics.

    `axis` is that of the channels: the first one, or, as Keras has it, the last, -1.
    """

    num_features: int
    eps: float = 1e-5
    affine: bool = True
    axis: int = extra(default=0, least=-1)
    kind: ClassVar[str] = "batch_norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis > 0:
            raise self._refused("axis", "0 or -1")

    @property
    def input_shape(self) -> Shape:
        """The axes of a row that it takes where there are no positions."""
        return (self.num_features,)

    def of_row(self, shape: Shape) -> Shape:
        if not shape or shape[self.axis] != self.num_features:
            raise ValueError(
                f"it takes rows of {self.num_features} channels in axis {self.axis}, and is given "
                f"{Row(shape)}"
            )
        return shape

    def tensors(self) -> dict[str, Shape]:
        suffixes = (*(("weight", "bias") if self.affine else ()), "running_mean", "running_var")
        return dict.fromkeys(suffixes, (self.num_features,))


def _ends_with(shape: Shape, axes: Shape) -> Shape:
    if shape[-len(axes) :] != axes:
        raise ValueError(
            f"it takes rows (..., {', '.join(map(str, axes))}), and is given {Row(shape)}"
        )
    return shape
