"""Functions of each number: activations and the mathematics of one argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.arithmetic import add, calculate, div, mul, neg, sub
from fastlstm.sources.aten.matrices import linear, matmul
from fastlstm.sources.aten.table import (
    Builder,
    Operand,
    Value,
    axis_of,
    operator,
    rank_of,
    shape_of,
)
from fastlstm.sources.aten.views import chunk, reshape, transpose

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def function(b: Builder, text: str, x: Operand) -> Operand:
    """A function of the vocabulary (:mod:`fastlstm.spec.functions`)."""
    return b.activation(text, x)


def _plain(names: str) -> None:
    first = names.split()[0]

    def apply(b: Builder, self: Operand) -> Operand:
        return function(b, first, self)

    operator(*names.split())(apply)


for _names in (
    *("relu", "tanh", "sigmoid special_expit", "softsign", "silu", "abs absolute", "sign sgn"),
    *("sqrt", "square", "reciprocal", "exp", "log", "sin", "cos"),
):
    _plain(_names)


@operator()
def gelu(b: Builder, self: Operand, approximate: str = "none") -> Operand:
    return function(b, "gelu" if approximate == "none" else "gelu_tanh", self)


@operator()
def relu6(b: Builder, self: Operand) -> Operand:
    return hardtanh(b, self, 0.0, 6.0)


@operator()
def hardtanh(b: Builder, self: Operand, min_val: float = -1.0, max_val: float = 1.0) -> Operand:
    return function(b, f"clip({float(min_val)!r}, {float(max_val)!r})", self)


@operator()
def hardsigmoid(b: Builder, self: Operand) -> Operand:
    return function(b, f"hard_sigmoid({1 / 6!r}, 0.5)", self)


@operator()
def hardswish(b: Builder, self: Operand) -> Operand:
    return mul(b, self, hardsigmoid(b, self))


@operator()
def leaky_relu(b: Builder, self: Operand, negative_slope: float = 0.01) -> Operand:
    return function(b, f"leaky_relu({float(negative_slope)!r})", self)


@operator()
def rrelu(
    b: Builder,
    self: Operand,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Operand:
    if training:
        raise ConvertError("rrelu draws random slopes in training; save the model after .eval()")
    return leaky_relu(b, self, (lower + upper) / 2)


@operator("prelu", "_prelu_kernel")
def prelu(b: Builder, self: Operand, weight: Operand) -> Operand:
    if not isinstance(weight, Value) and np.size(weight) == 1:
        return leaky_relu(b, self, float(np.ravel(weight)[0]))
    if rank_of(weight) == 1 and rank_of(self) > 2:  # a slope for each channel, which is axis 1
        weight = reshape(b, weight, (-1, *[1] * (rank_of(self) - 2)))
    below = mul(b, weight, function(b, "relu", neg(b, self)))
    return sub(b, function(b, "relu", self), below)


@operator()
def elu(
    b: Builder, self: Operand, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> Operand:
    if input_scale != 1:
        raise ConvertError(f"elu with input_scale={input_scale} is not supported")
    made = function(b, f"elu({float(alpha)!r})", self)
    return made if scale == 1 else mul(b, made, scale)


@operator()
def selu(b: Builder, self: Operand) -> Operand:
    return elu(b, self, SELU_ALPHA, SELU_SCALE)


@operator()
def celu(b: Builder, self: Operand, alpha: float = 1.0) -> Operand:
    if alpha == 1:
        return elu(b, self)
    return mul(b, elu(b, div(b, self, alpha)), alpha)


@operator()
def softplus(b: Builder, self: Operand, beta: float = 1, threshold: float = 20) -> Operand:
    """Behind its threshold torch gives x: there the two differ by less than float32 can hold."""
    if threshold < 17:
        raise ConvertError(f"softplus with a threshold of {threshold} is not supported")
    if beta == 1:
        return function(b, "softplus", self)
    return div(b, function(b, "softplus", mul(b, self, beta)), beta)


@operator()
def log_sigmoid(b: Builder, self: Operand) -> Operand:
    return neg(b, function(b, "softplus", neg(b, self)))


@operator()
def mish(b: Builder, self: Operand) -> Operand:
    return mul(b, self, function(b, "tanh", function(b, "softplus", self)))


@operator()
def glu(b: Builder, self: Operand, dim: int = -1) -> Operand:
    first, gate = chunk(b, self, 2, dim)
    return mul(b, first, function(b, "sigmoid", gate))


@operator()
def threshold(b: Builder, self: Operand, threshold: float, value: float) -> Operand:
    return calculate(b, "where", calculate(b, "greater", self, threshold), self, value)


@operator()
def softshrink(b: Builder, self: Operand, lambd: float = 0.5) -> Operand:
    return sub(b, self, function(b, f"clip({-float(lambd)!r}, {float(lambd)!r})", self))


@operator()
def hardshrink(b: Builder, self: Operand, lambd: float = 0.5) -> Operand:
    large = calculate(b, "greater", function(b, "abs", self), lambd)
    return calculate(b, "where", large, self, 0.0)


@operator()
def rsqrt(b: Builder, self: Operand) -> Operand:
    return function(b, "reciprocal", function(b, "sqrt", self))


@operator()
def hypot(b: Builder, self: Operand, other: Operand) -> Operand:
    return function(b, "sqrt", add(b, function(b, "square", self), function(b, "square", other)))


@operator()
def erf(b: Builder, self: Operand) -> Operand:
    if not isinstance(self, Value):
        return np.vectorize(math.erf, otypes=["f8"])(self)
    # GELU is x (1 + erf(x / sqrt 2)) / 2, so that it has erf in it, but where x is 0.
    wide = mul(b, self, math.sqrt(2.0))
    made = sub(b, div(b, mul(b, function(b, "gelu", wide), 2.0), wide), 1.0)
    return calculate(b, "where", calculate(b, "equal", self, 0.0), self, made)


@operator()
def log1p(b: Builder, self: Operand) -> Operand:
    return function(b, "log", add(b, self, 1.0))


@operator()
def log2(b: Builder, self: Operand) -> Operand:
    return mul(b, function(b, "log", self), 1 / math.log(2))


@operator()
def log10(b: Builder, self: Operand) -> Operand:
    return mul(b, function(b, "log", self), 1 / math.log(10))


@operator()
def exp2(b: Builder, self: Operand) -> Operand:
    return function(b, "exp", mul(b, self, math.log(2)))


@operator("expm1", "special_expm1")
def expm1(b: Builder, self: Operand) -> Operand:
    """As elu below zero, which keeps its digits where x is small; exp(x) - 1 above."""
    above = sub(b, function(b, "exp", function(b, "relu", self)), 1.0)
    below = function(b, "elu(1.0)", calculate(b, "minimum", self, 0.0))
    return add(b, above, below)


@operator()
def tan(b: Builder, self: Operand) -> Operand:
    return div(b, function(b, "sin", self), function(b, "cos", self))


@operator()
def sinh(b: Builder, self: Operand) -> Operand:
    e = function(b, "exp", self)
    return mul(b, sub(b, e, function(b, "reciprocal", e)), 0.5)


@operator()
def cosh(b: Builder, self: Operand) -> Operand:
    e = function(b, "exp", self)
    return mul(b, add(b, e, function(b, "reciprocal", e)), 0.5)


@operator("logit", "special_logit")
def logit(b: Builder, self: Operand, eps: float | None = None) -> Operand:
    if eps is not None:
        self = function(b, f"clip({float(eps)!r}, {1 - float(eps)!r})", self)
    return function(b, "log", div(b, self, sub(b, 1.0, self)))


@operator()
def softmax(b: Builder, self: Operand, dim: int, dtype: int | None = None) -> Operand:
    return b.softmax(self, axis_of(self, dim))


@operator("_softmax")
def softmax_(b: Builder, self: Operand, dim: int, half_to_float: bool = False) -> Operand:
    return softmax(b, self, dim)


@operator("softmin")
def softmin(b: Builder, self: Operand, dim: int) -> Operand:
    return softmax(b, neg(b, self), dim)


@operator()
def log_softmax(b: Builder, self: Operand, dim: int, dtype: int | None = None) -> Operand:
    return b.softmax(self, axis_of(self, dim), log=True)


@operator("_log_softmax")
def log_softmax_(b: Builder, self: Operand, dim: int, half_to_float: bool = False) -> Operand:
    return log_softmax(b, self, dim)


def dropped(x: Operand, p: float, train: bool | None) -> Operand:
    if train and p > 0:
        raise ConvertError(
            f"dropout({p:g}) is on, which draws random numbers; save the model after .eval()"
        )
    return x


@operator("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(b: Builder, input: Operand, p: float, train: bool) -> Operand:
    return dropped(input, p, train)


@operator()
def native_dropout(
    b: Builder, input: Operand, p: float, train: bool | None
) -> tuple[Operand, Operand]:
    return dropped(input, p, train), np.ones(shape_of(input), "?")


@operator()
def scaled_dot_product_attention(
    b: Builder,
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Operand:
    dropped(query, dropout_p, True)
    if enable_gqa:
        raise ConvertError("attention with fewer heads of keys than of queries is not supported")
    if is_causal:
        sizes = shape_of(query)[-2], shape_of(key)[-2]
        attn_mask = np.tri(*sizes, dtype="?")
    scale = 1 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    scores = matmul(b, mul(b, query, scale), transpose(b, key, -2, -1))
    if attn_mask is not None:
        if isinstance(attn_mask, np.ndarray) and attn_mask.dtype.kind == "b":
            attn_mask = np.where(attn_mask, 0.0, -np.inf)
        scores = add(b, scores, attn_mask)
    return matmul(b, softmax(b, scores, -1), value)


@operator("_native_multi_head_attention")
def native_multi_head_attention(
    b: Builder,
    query: Operand,
    key: Operand,
    value: Operand,
    embed_dim: int,
    num_head: int,
    qkv_weight: Operand,
    qkv_bias: Operand,
    proj_weight: Operand,
    proj_bias: Operand,
    mask: Operand | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Operand, Any]:
    """The fused attention of torch.nn.MultiheadAttention, of (N, T, E)."""
    if mask is not None:
        raise ConvertError("attention with a mask that hides some of its keys is not supported")
    heads = []
    for x, w, bias in zip(
        (query, key, value), chunk(b, qkv_weight, 3), chunk(b, qkv_bias, 3), strict=True
    ):
        n, steps, _ = shape_of(x)
        split = reshape(b, linear(b, x, w, bias), (n, steps, num_head, embed_dim // num_head))
        heads.append(transpose(b, split, 1, 2))
    q, k, v = heads
    scores = matmul(b, mul(b, q, (embed_dim // num_head) ** -0.5), transpose(b, k, -2, -1))
    weights = softmax(b, scores, -1)
    rows = transpose(b, matmul(b, weights, v), 1, 2)
    made = linear(b, reshape(b, rows, shape_of(query)), proj_weight, proj_bias)
    if need_weights and average_attn_weights:
        weights = b.reduce("mean", weights, [1], False)
    return made, weights
