"""The functions and methods of torch that compute, each as calls on a `Line`.

They are found by name: ``torch.relu``, ``torch.nn.functional.relu`` and ``Tensor.relu_`` are all
``relu``. What they take is told in :mod:`.step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from fastlstm.sources.line import Value
from fastlstm.sources.trace.step import Operation, Step, number, register
from fastlstm.sources.trace.views import chunk

__all__ = ["FUNCTIONS"]

Array = npt.NDArray[Any]

FUNCTIONS: dict[str, Operation] = {}

operation = register(FUNCTIONS)

_RANDOM = (
    "has training=True, so that it stays random in evaluation; expected training=self.training"
)

# Functions of each feature


def _plain(function: str) -> Callable[..., Any]:
    return lambda at, x, *, inplace=False: at.line.activation(x, function, at.name)


# abs and erf are no layers, but parts of functions that are written out.
for _name in ("relu", "tanh", "sigmoid", "softsign", "silu", "abs", "erf"):
    FUNCTIONS[_name] = _plain(_name)
FUNCTIONS["expit"] = FUNCTIONS["sigmoid"]
FUNCTIONS["relu6"] = _plain("hardtanh(0.0, 6.0)")
FUNCTIONS["hardsigmoid"] = _plain(f"hard_sigmoid({1 / 6!r}, 0.5)")


@operation("gelu")
def _gelu(at: Step, x: Value, approximate: str = "none") -> Value:
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in names:
        raise at.refused(f"has approximate={approximate!r}; expected 'none' or 'tanh'")
    return at.line.activation(x, names[approximate], at.name)


@operation("leaky_relu")
def _leaky_relu(at: Step, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return at.line.activation(x, f"leaky_relu({float(negative_slope)!r})", at.name)


@operation("rrelu")
def _rrelu(
    at: Step,
    x: Value,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Value:
    if training:
        raise at.refused(_RANDOM)
    return at.line.activation(x, f"leaky_relu({(lower + upper) / 2!r})", at.name)


@operation("elu")
def _elu(at: Step, x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return at.line.activation(x, f"elu({float(alpha)!r})", at.name)


@operation("selu")
def _selu(at: Step, x: Value, inplace: bool = False) -> Value:
    # The constants of torch's own selu, to double precision.
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    bent = at.line.activation(x, f"elu({alpha!r})", at.name)
    return at.line.scale(bent, scale, 0.0, f"{at.name}.scale")


@operation("hardtanh")
def _hardtanh(
    at: Step, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    return at.line.activation(x, f"hardtanh({float(min_val)!r}, {float(max_val)!r})", at.name)


@operation("clamp", "clip")
def _clamp(at: Step, x: Value, min: Any = None, max: Any = None) -> Value:
    bounds = [None if bound is None else float(bound) for bound in (min, max)]
    if bounds == [0.0, None]:
        return at.line.activation(x, "relu", at.name)
    if None in bounds:
        raise at.refused(f"clamps to min={min}, max={max}; expected both, or min=0 alone")
    return at.line.activation(x, f"hardtanh({bounds[0]!r}, {bounds[1]!r})", at.name)


FUNCTIONS["clamp_min"] = lambda at, x, min: _clamp(at, x, min)


@operation("threshold", "_threshold")
def _threshold(at: Step, x: Value, threshold: float, value: float, inplace: bool = False) -> Value:
    if value:
        raise at.refused(f"has value={value}; expected 0")
    return at.line.activation(x, f"thresholded_relu({float(threshold)!r})", at.name)


@operation("softplus")
def _softplus(at: Step, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if threshold < 20:
        raise at.refused(f"has threshold={threshold}; expected 20, torch's own, or more")
    if beta != 1:
        x = at.line.scale(x, beta, 0.0, f"{at.name}.beta")
    made = at.line.activation(x, "softplus", at.name)
    return made if beta == 1 else at.line.scale(made, 1 / beta, 0.0, f"{at.name}.scale")


def _softmax(function: str) -> Callable[..., Any]:
    def run(
        at: Step, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Value:
        if dim is None:
            raise at.refused("has dim=None; expected dim=-1")
        return at.line.activation(x, function, at.name, axis=dim)

    return run


FUNCTIONS["softmax"] = _softmax("softmax")
FUNCTIONS["log_softmax"] = _softmax("log_softmax")


@operation("prelu")
def _prelu(at: Step, x: Value, weight: Any) -> Value:
    return at.line.prelu(x, at.weight(weight), at.name)


@operation("glu")
def _glu(at: Step, x: Value, dim: int = -1) -> Value:
    first, second = chunk(at, x, 2, dim)
    gate = at.line.activation(second, "sigmoid", f"{at.name}.gate")
    return at.line.mul(first, gate, at.name)


# Layers with weights


@operation("linear")
def _linear(at: Step, x: Value, weight: Any, bias: Any = None) -> Value:
    if not isinstance(x, Value) or isinstance(weight, Value) or isinstance(bias, Value):
        raise at.refused("multiplies by a computed weight; expected weights of the module")
    if weight.ndim != 2:
        raise at.refused(f"multiplies by an array of {weight.ndim} axes; expected a matrix")
    at.expect(x, -1, weight.shape[1])
    return at.line.linear(x, at.weight(weight), at.optional(bias), at.name)


@operation("matmul", "mm")
def _matmul(at: Step, x: Any, other: Any) -> Value:
    if not isinstance(x, Value) or isinstance(other, Value):
        raise at.refused("multiplies matrices; expected the array times a weight, as in x @ weight")
    return _linear(at, x, other if other.ndim != 2 else other.t())


@operation("addmm")
def _addmm(at: Step, bias: Any, x: Any, other: Any, *, beta: Any = 1, alpha: Any = 1) -> Value:
    if beta != 1 or alpha != 1 or isinstance(other, Value):
        raise at.refused(f"has beta={beta}, alpha={alpha}; expected bias + x @ weight")
    return _linear(at, x, other.t(), bias)


@operation("embedding")
def _embedding(
    at: Step,
    x: Value,
    weight: Any,
    padding_idx: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    if max_norm is not None:
        raise at.refused(
            f"has max_norm={max_norm}, which scales rows when they are looked up; scale the rows "
            f"of its weight once and set max_norm=None"
        )
    if not isinstance(x, Value) or isinstance(weight, Value):
        raise at.refused("looks up rows of a computed table; expected weights of the module")
    return at.line.embedding(x, at.weight(weight), at.name)


@operation("one_hot")
def _one_hot(at: Step, x: Value, num_classes: int = -1) -> Value:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise at.refused(f"has num_classes={num_classes}; expected the number of classes")
    return at.line.one_hot(x, num_classes, at.name)


@operation("conv1d")
def _conv1d(
    at: Step,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    stride, dilation = _single(stride), _single(dilation)
    reach = dilation * (weight.shape[2] - 1)
    if padding == "same":
        both = (reach // 2, reach - reach // 2)
    elif padding == "valid":
        both = (0, 0)
    else:
        both = (_single(padding), _single(padding))
    at.expect(x, -2, weight.shape[1] * groups)
    return at.line.conv1d(
        x,
        at.weight(weight),
        at.optional(bias),
        stride=stride,
        padding=both,
        padding_mode="zeros",
        dilation=dilation,
        groups=groups,
        name=at.name,
    )


def _single(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)


@operation("pad")
def _pad(
    at: Step, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Value:
    if mode == "constant" and value:
        raise at.refused(f"pads with {value}; expected zeros")
    for place in range(len(pad) // 2):
        left, right = pad[2 * place], pad[2 * place + 1]
        if left or right:
            order = list(range(x.ndim))
            order[-1], order[-1 - place] = order[-1 - place], order[-1]
            kind = {"constant": "zeros"}.get(mode, mode)
            x = at.line.pad(at.line.transpose(x, order), left, right, kind, at.name)
            x = at.line.transpose(x, order)
    return x


@operation("layer_norm")
def _layer_norm(
    at: Step,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    for axis, size in enumerate(normalized_shape, -len(normalized_shape)):
        at.expect(x, axis, size)
    w, b = at.optional(weight, "weight"), at.optional(bias)
    return at.line.layer_norm(x, tuple(normalized_shape), w, b, eps, at.name)


@operation("batch_norm")
def _batch_norm(
    at: Step,
    x: Value,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    if training or running_mean is None or running_var is None:
        raise at.refused(
            "normalises by the statistics of its batch; expected running ones, "
            "track_running_stats=True"
        )
    at.expect(x, 1, running_mean.shape[0])
    mean, var = at.weight(running_mean, "running_mean"), at.weight(running_var, "running_var")
    w, b = at.optional(weight, "weight"), at.optional(bias)
    return at.line.batch_norm(x, mean, var, w, b, eps, at.name)


# Arithmetic


def _constant_size(at: Step, x: Value, constant: Array) -> None:
    """Say the sizes that a constant asks for of the axes it is not repeated along."""
    for axis, size in enumerate(constant.shape, -constant.ndim):
        if size != 1 and axis >= -x.ndim:
            at.expect(x, axis, size)


def _scaled(at: Step, x: Value, weight: Any, bias: Any) -> Value:
    w, b = number(weight), number(bias)
    _constant_size(at, x, w)
    _constant_size(at, x, b)
    return at.line.scale(x, w, b, at.name)


@operation("add")
def _add(at: Step, x: Any, other: Any, *, alpha: float = 1) -> Value:
    if not isinstance(x, Value):
        return _scaled(at, other, alpha, x)
    if not isinstance(other, Value):
        return _scaled(at, x, 1.0, number(other) * alpha)
    if alpha != 1:
        other = at.line.scale(other, alpha, 0.0, f"{at.name}.alpha")
    return at.line.add(x, other, at.name)


@operation("sub", "subtract")
def _sub(at: Step, x: Any, other: Any, *, alpha: float = 1) -> Value:
    if not isinstance(x, Value):
        return _scaled(at, other, -alpha, x)
    if not isinstance(other, Value):
        return _scaled(at, x, 1.0, number(other) * -alpha)
    if alpha != 1:
        other = at.line.scale(other, alpha, 0.0, f"{at.name}.alpha")
    return at.line.sub(x, other, at.name)


FUNCTIONS["__rsub__"] = FUNCTIONS["rsub"] = lambda at, x, other, alpha=1: _sub(
    at, other, x, alpha=alpha
)
FUNCTIONS["neg"] = lambda at, x: at.line.scale(x, -1.0, 0.0, at.name)
FUNCTIONS["negative"] = FUNCTIONS["neg"]


@operation("mul", "multiply")
def _mul(at: Step, x: Any, other: Any) -> Value:
    if not isinstance(x, Value):
        x, other = other, x
    if not isinstance(other, Value):
        return _scaled(at, x, other, 0.0)
    return at.line.mul(x, other, at.name)


@operation("div", "divide", "true_divide")
def _div(at: Step, x: Any, other: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        raise at.refused("divides to integers; expected a quotient that is not rounded")
    if isinstance(x, Value) and not isinstance(other, Value):
        _constant_size(at, x, number(other))
    return at.line.div(at.value(x), at.value(other), at.name)


FUNCTIONS["__rdiv__"] = FUNCTIONS["__rtruediv__"] = lambda at, x, other: _div(at, other, x)


@operation("pow")
def _pow(at: Step, x: Any, exponent: Any) -> Value:
    if not isinstance(x, Value) or isinstance(exponent, Value) or number(exponent).ndim:
        raise at.refused("has a computed exponent; expected a number")
    return at.line.power(x, float(exponent), at.name)


FUNCTIONS["square"] = lambda at, x: at.line.power(x, 2.0, at.name)
FUNCTIONS["sqrt"] = lambda at, x: at.line.sqrt(x, at.name)


@operation("hypot")
def _hypot(at: Step, x: Any, other: Any) -> Value:
    a, b = (at.line.power(at.value(v), 2.0, f"{at.name}.square") for v in (x, other))
    return at.line.sqrt(at.line.add(a, b, f"{at.name}.sum"), at.name)


@operation("mean")
def _mean(
    at: Step, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    axes = dim if isinstance(dim, tuple | list) else (dim,)
    if len(axes) != 1 or axes[0] is None:
        raise at.refused(f"has dim={dim}; expected the one axis of time")
    return at.line.mean(x, axes[0], keepdim, at.name)


@operation("sum")
def _sum(at: Step, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    axes = dim if isinstance(dim, tuple | list) else (dim,)
    if len(axes) != 1 or axes[0] is None:
        raise at.refused(f"has dim={dim}; expected one axis")
    return at.line.sum(x, axes[0], keepdim, at.name)


@operation("adaptive_avg_pool1d")
def _adaptive_avg_pool1d(at: Step, x: Value, output_size: Any) -> Value:
    if output_size not in (1, (1,), [1]):
        raise at.refused(f"pools to {output_size} positions; expected one, the mean over time")
    return at.line.mean(x, -1, True, at.name)


@operation("cat", "concat", "concatenate")
def _cat(at: Step, tensors: Sequence[Any], dim: int = 0) -> Value:
    return at.line.concat([at.value(x) for x in tensors], dim, at.name)


@operation("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout",
           "feature_dropout")  # fmt: skip
def _dropout(
    at: Step, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False, **old: Any
) -> Value:
    if old.get("train", training) and p:
        raise at.refused(_RANDOM)
    return x
