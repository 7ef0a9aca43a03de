"""Layers: convolutions, pooling, norms and embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.arithmetic import add, div, mul, sub
from fastlstm.sources.aten.functions import function
from fastlstm.sources.aten.movement import cat, index_select
from fastlstm.sources.aten.reductions import Unknown, moments, reduced
from fastlstm.sources.aten.table import (
    Builder,
    Operand,
    TokenError,
    Value,
    listed,
    operator,
    rank_of,
    shape_of,
)
from fastlstm.sources.aten.views import reshape, slice_, squeeze, unsqueeze

Sizes = int | Sequence[int]


def constant(x: Operand, what: str) -> Any:
    """A weight, which may not depend on the input."""
    if isinstance(x, Value):
        raise ConvertError(f"{what} is computed from the input; expected a weight of the model")
    return x


def convolved(
    b: Builder,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    transposed: bool = False,
    output_padding: Sizes = 0,
) -> Operand:
    """A convolution over all axes behind the channels; of an array without a batch, too."""
    weight = constant(weight, "the weight of a convolution")
    n = rank_of(weight) - 2
    batched = rank_of(x) == n + 2
    stride, dilation = listed(stride, n), listed(dilation, n)
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0
            for d, k in zip(dilation, shape_of(weight)[2:], strict=True)
        ]
        # Of an odd number, torch pads one more behind.
        sides = [(p // 2, p - p // 2) for p in total]
    else:
        sides = [(p, p) for p in listed(padding, n)]
    made = b.convolution(
        x if batched else unsqueeze(b, x, 0),
        weight,
        constant(bias, "the bias of a convolution"),
        stride=stride,
        dilation=dilation,
        padding=sides,
        groups=groups,
        transposed=transposed,
        output_padding=listed(output_padding, n),
    )
    return made if batched else squeeze(b, made, 0)


@operator("conv1d", "conv2d", "conv3d")
def conv(
    b: Builder,
    input: Operand,
    weight: Operand,
    bias: Operand | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Operand:
    return convolved(b, input, weight, bias, stride, padding, dilation, groups)


@operator("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    b: Builder,
    input: Operand,
    weight: Operand,
    bias: Operand | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Operand:
    return convolved(
        b, input, weight, bias, stride, padding, dilation, groups, True, output_padding
    )


@operator("convolution", "_convolution")
def convolution(
    b: Builder,
    input: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    *flags: bool,
) -> Operand:
    return convolved(
        b, input, weight, bias, stride, padding, dilation, groups, transposed, output_padding
    )


@operator("_convolution_mode")
def convolution_mode(
    b: Builder,
    input: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sizes,
    padding: str,
    dilation: Sizes,
    groups: int,
) -> Operand:
    return convolved(b, input, weight, bias, stride, padding, dilation, groups)


# Pooling


def _pooled(
    b: Builder,
    n: int,
    what: str,
    x: Operand,
    kernel: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_padding: bool = True,
) -> Operand:
    size = listed(kernel, n)
    step = listed(stride, n) if stride else size
    pad, apart = listed(padding, n), listed(dilation, n)
    batched = rank_of(x) == n + 2
    x = x if batched else unsqueeze(b, x, 0)
    made = b.pool(
        x,
        what,
        size,
        stride=step,
        padding=[(p, p) for p in pad],
        dilation=apart,
        count_include_pad=count_padding,
        ceil=ceil_mode,
    )
    return made if batched else squeeze(b, made, 0)


def _poolings(n: int) -> None:
    def max_pool(
        b: Builder,
        self: Operand,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
    ) -> Operand:
        return _pooled(b, n, "max", self, kernel_size, stride, padding, dilation, ceil_mode)

    def max_pool_with_indices(
        b: Builder, self: Operand, *args: Any, **options: Any
    ) -> tuple[Operand, Unknown]:
        return max_pool(b, self, *args, **options), Unknown("where the maximum of a pool is")

    def avg_pool(
        b: Builder,
        self: Operand,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Operand:
        made = _pooled(
            b, n, "mean", self, kernel_size, stride, padding, 1, ceil_mode, count_include_pad
        )
        if divisor_override is None:
            return made
        if not count_include_pad and any(listed(padding, n)):
            raise ConvertError("a mean over a pool with a divisor of its own is not supported")
        return mul(b, made, math.prod(listed(kernel_size, n)) / divisor_override)

    def adaptive_avg_pool(b: Builder, self: Operand, output_size: Sizes) -> Operand:
        return _adaptive(b, n, "mean", self, output_size)

    def adaptive_max_pool(b: Builder, self: Operand, output_size: Sizes) -> tuple[Operand, Unknown]:
        made = _adaptive(b, n, "max", self, output_size)
        return made, Unknown("where the maximum of a pool is")

    operator(f"max_pool{n}d")(max_pool)
    operator(f"max_pool{n}d_with_indices")(max_pool_with_indices)
    operator(f"avg_pool{n}d")(avg_pool)
    operator(f"adaptive_avg_pool{n}d", f"_adaptive_avg_pool{n}d")(adaptive_avg_pool)
    operator(f"adaptive_max_pool{n}d")(adaptive_max_pool)


for _n in (1, 2, 3):
    _poolings(_n)


def _adaptive(b: Builder, n: int, what: str, x: Operand, output_size: Sizes) -> Operand:
    """Pools that divide each axis into so many parts, which may overlap by one."""
    for axis, to in zip(range(-n, 0), listed(output_size, n), strict=True):
        size = shape_of(x)[axis]
        if to is None or to == size:
            continue
        parts = [(i * size // to, -(-(i + 1) * size // to)) for i in range(to)]
        x = cat(b, [reduced(b, what, slice_(b, x, axis, *p), axis, True) for p in parts], axis)
    return x


# Norms


@operator()
def layer_norm(
    b: Builder,
    input: Operand,
    normalized_shape: Sequence[int],
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Operand:
    if not isinstance(input, Value) or isinstance(weight, Value) or isinstance(bias, Value):
        return _affine(
            b, _normalised(b, input, range(-len(normalized_shape), 0), eps), weight, bias
        )
    return b.layer_norm(input, tuple(normalized_shape), weight, bias, eps)


def _normalised(b: Builder, x: Operand, axes: Sequence[int], eps: float) -> Operand:
    spread, middle = moments(b, x, list(axes), 0, True)
    return div(b, sub(b, x, middle), function(b, "sqrt", add(b, spread, eps)))


def _affine(b: Builder, x: Operand, weight: Operand | None, bias: Operand | None) -> Operand:
    x = x if weight is None else mul(b, x, weight)
    return x if bias is None else add(b, x, bias)


@operator()
def native_layer_norm(
    b: Builder,
    input: Operand,
    normalized_shape: Sequence[int],
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
) -> tuple[Any, ...]:
    made = layer_norm(b, input, normalized_shape, weight, bias, eps)
    return made, Unknown("the mean of a norm"), Unknown("the deviation of a norm")


@operator("rms_norm")
def rms_norm(
    b: Builder,
    input: Operand,
    normalized_shape: Sequence[int],
    weight: Operand | None = None,
    eps: float | None = None,
) -> Operand:
    eps = float(np.finfo("f4").eps) if eps is None else eps
    if isinstance(input, Value) and not isinstance(weight, Value):
        return b.rms_norm(input, tuple(normalized_shape), weight, eps)
    axes = list(range(-len(normalized_shape), 0))
    power = reduced(b, "mean", function(b, "square", input), axes, True)
    return _affine(b, div(b, input, function(b, "sqrt", add(b, power, eps))), weight, None)


@operator()
def batch_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand | None,
    running_var: Operand | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Operand:
    if training or running_mean is None or running_var is None:
        raise ConvertError(
            "a batch norm takes its statistics from the batch, as in training; save the model "
            "after .eval(), with running statistics"
        )
    return b.batch_norm(
        input,
        constant(weight, "the weight of a batch norm"),
        constant(bias, "the bias of a batch norm"),
        constant(running_mean, "the mean of a batch norm"),
        constant(running_var, "the variance of a batch norm"),
        eps,
    )


@operator("_native_batch_norm_legit_no_training")
def native_batch_norm_no_training(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand,
    running_var: Operand,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    made = batch_norm(b, input, weight, bias, running_mean, running_var, False, momentum, eps)
    return made, Unknown("the mean of a norm"), Unknown("the deviation of a norm")


@operator("native_batch_norm", "_native_batch_norm_legit")
def native_batch_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand | None,
    running_var: Operand | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    made = batch_norm(b, input, weight, bias, running_mean, running_var, training, momentum, eps)
    return made, Unknown("the mean of a norm"), Unknown("the deviation of a norm")


@operator()
def group_norm(
    b: Builder,
    input: Operand,
    num_groups: int,
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Operand:
    return b.group_norm(
        input,
        num_groups,
        constant(weight, "the weight of a group norm"),
        constant(bias, "the bias of a group norm"),
        eps,
    )


@operator()
def native_group_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> tuple[Any, ...]:
    made = group_norm(b, input, group, weight, bias, eps)
    return made, Unknown("the mean of a norm"), Unknown("the deviation of a norm")


@operator()
def instance_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand | None,
    running_var: Operand | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Operand:
    if not use_input_stats:
        return batch_norm(b, input, weight, bias, running_mean, running_var, False, momentum, eps)
    shape = (-1, *[1] * (rank_of(input) - 2))
    made = _normalised(b, input, range(2, rank_of(input)), eps)
    weight = None if weight is None else reshape(b, weight, shape)
    bias = None if bias is None else reshape(b, bias, shape)
    return _affine(b, made, weight, bias)


# Tokens


@operator()
def embedding(
    b: Builder,
    weight: Operand,
    indices: Operand,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operand:
    if not isinstance(indices, Value):
        at = np.asarray(indices)
        rows = index_select(b, weight, 0, at.reshape(-1))
        return reshape(b, rows, (*at.shape, shape_of(weight)[1]))
    if indices.kind == "float":
        raise TokenError(indices)
    return b.embedding(indices, constant(weight, "the weight of an embedding"))


@operator()
def one_hot(b: Builder, self: Operand, num_classes: int = -1) -> Operand:
    if isinstance(self, Value):
        if num_classes < 1:
            raise ConvertError("one_hot without a number of classes counts those of its input; "
                               "expected one_hot(x, num_classes)")  # fmt: skip
        if self.kind == "float":
            raise TokenError(self)
        return b.one_hot(self, num_classes)
    at = np.asarray(self)
    return np.eye(num_classes if num_classes > 0 else int(at.max()) + 1, dtype="i8")[at]
