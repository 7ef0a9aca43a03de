"""ONNX's operators on the array that flows through a model, as operations of a Line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fastlstm.sources.line import Value
from fastlstm.sources.onnx.constants import axes_of, bounds_of, plain, sizes_of
from fastlstm.sources.onnx.file import FLOATS, INTEGERS, Array
from fastlstm.sources.onnx.recurrent import recurrent
from fastlstm.sources.onnx.step import Known, Step

__all__ = ["OPERATORS"]


def _affine(at: Step, x: Value, weight: Array, bias: Array | None) -> Value:
    """``x weight^T + bias``, of a bias that can be broadcast to the features."""
    if bias is not None:
        wide = bias.reshape(-1)
        if bias.shape[:-1] != (1,) * (bias.ndim - 1) or wide.size not in (1, len(weight)):
            raise at.refuse(
                f"adds an array of shape {bias.shape} to {len(weight)} features; expected one "
                f"number a feature"
            )
        bias = np.broadcast_to(wide, (len(weight),)).astype(weight.dtype)
    return at.line.linear(x, weight, bias, at.name)


def gemm(at: Step) -> Value:
    alpha, beta = at.option("alpha", 1.0), at.option("beta", 1.0)
    at.no_effect("broadcast")
    x = at.value(0)
    if at.flag("transA") or x.ndim != 2:
        raise at.refuse(
            f"multiplies an array of shape {x.shape}, or its transpose; expected rows of features"
        )
    weight = at.weight(1, 2)
    weight = weight if at.flag("transB") else weight.T
    bias = at.weight(2) if at.has(2) else None
    if alpha != 1:
        weight = weight * np.float64(alpha)
    if bias is not None and beta != 1:
        bias = bias * np.float64(beta)
    return _affine(at, x, weight, bias)


def matmul(at: Step) -> Value:
    x, weight = at.value(0), at.weight(1)
    while weight.ndim > 2 and len(weight) == 1 and weight.ndim <= x.ndim:
        weight = weight[0]
    if weight.ndim != 2:
        raise at.refuse(
            f"multiplies by an array of shape {weight.shape}; expected a matrix, features by "
            f"features"
        )
    return _affine(at, x, weight.T, None)


def _aligned(at: Step) -> tuple[Value, Value]:
    """Both inputs, the second one with the axes that old versions tell apart by an attribute."""
    a, b = at.either(0), at.either(1)
    if at.version < 7:
        at.no_effect("broadcast", "consumed_inputs")
        axis = at.option("axis", a.ndim - b.ndim)
        if not isinstance(at.known(1), Value) and 0 <= axis <= a.ndim - b.ndim:
            behind = (1,) * (a.ndim - b.ndim - axis)
            array = at.numbers(1)
            b = at.line.constant(array.reshape(*array.shape, *behind))
    return a, b


def add(at: Step) -> Value:
    return at.line.add(*_aligned(at), at.name)


def sub(at: Step) -> Value:
    return at.line.sub(*_aligned(at), at.name)


def mul(at: Step) -> Value:
    return at.line.mul(*_aligned(at), at.name)


def div(at: Step) -> Value:
    return at.line.div(*_aligned(at), at.name)


def convolution(at: Step) -> Value:
    x, weight = at.value(0), at.weight(1)
    if weight.ndim != 3 or x.ndim != 3:
        raise at.refuse(
            f"is over {weight.ndim - 2} axes, of an array of shape {x.shape}; expected one axis: "
            f"batch, channels and length"
        )

    def one(name: str) -> int:
        values = at.options(name, int)
        if values is not None and (len(values) != 1 or values[0] < 1):
            raise at.refuse(f"has {name} {values[:8]}; expected one number of at least 1")
        return 1 if values is None else values[0]

    kernel_shape = at.options("kernel_shape", int)
    if kernel_shape is not None and kernel_shape != [weight.shape[2]]:
        raise at.refuse(
            f"has kernel_shape {kernel_shape[:8]} and a weight of shape {weight.shape}; expected "
            f"the same size"
        )
    stride, dilation, groups = one("strides"), one("dilations"), at.option("group", 1)
    bias = at.weight(2, 1) if at.has(2) else None
    if groups < 1 or len(weight) % groups or (bias is not None and len(bias) != len(weight)):
        raise at.refuse(
            f"has {groups} groups and {len(weight)} channels; expected a divisor, and a bias for "
            f"each channel"
        )
    padding = _padding(at, x, dilation * (weight.shape[2] - 1), stride)
    return at.line.conv1d(
        x,
        weight,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        name=at.name,
    )


def _padding(at: Step, x: Value, reach: int, stride: int) -> tuple[int, int]:
    how, pads = at.option("auto_pad", "NOTSET"), at.options("pads", int)
    if how in ("NOTSET", "VALID"):
        pads = [0, 0] if pads is None else pads
        if len(pads) != 2 or min(pads) < 0 or (how == "VALID" and any(pads)):
            raise at.refuse(f"has pads {pads[:8]}; expected two of at least 0")
        return pads[0], pads[1]
    size = x.shape[-1]
    if how not in ("SAME_UPPER", "SAME_LOWER") or pads or (size is None and stride > 1):
        raise at.refuse(
            f"has auto_pad {how!r:.40} with a stride of {stride}, over a length of "
            f"{'?' if size is None else size}; expected pads as numbers"
        )
    count = None if size is None else math.ceil(size / stride)
    total = reach if size is None or count is None else (count - 1) * stride + reach + 1 - size
    total = max(total, 0)
    less = total // 2
    return (less, total - less) if how == "SAME_UPPER" else (total - less, less)


def batch_normalization(at: Step) -> Value:
    at.no_effect("momentum", "consumed_inputs", "is_test")
    if at.version >= 14 and at.flag("training_mode"):
        raise at.refuse("is in training mode; expected an export for inference")
    if at.version < 9 and not at.flag("spatial", True):
        raise at.refuse("has numbers for each position (spatial=0); expected one for each channel")
    if any(at.gives(index) for index in range(1, 5)):
        raise at.refuse("gives its statistics; expected its output alone")
    scale, bias, mean, var = (at.weight(index, 1) for index in range(1, 5))
    eps = at.option("epsilon", 1e-5)
    return at.line.batch_norm(at.value(0), mean, var, scale, bias, eps, at.name)


def layer_normalization(at: Step) -> Value:
    at.no_effect("stash_type")
    if at.gives(1) or at.gives(2):
        raise at.refuse("gives its statistics; expected its output alone")
    x, axis = at.value(0), at.option("axis", -1)
    if not -x.ndim <= axis < x.ndim:
        raise at.refuse(f"works on axis {axis} of an array of {x.ndim}; expected one it has")
    shape = x.shape[axis % x.ndim :]
    if None in shape:
        raise at.refuse(f"normalises {shape} of an array of shape {x.shape}; expected known sizes")
    sizes = [size or 0 for size in shape]
    arrays = [at.weight(index) if at.has(index) else None for index in (1, 2)]
    try:
        weight, bias = (a if a is None else np.broadcast_to(a, sizes) for a in arrays)
    except ValueError:
        raise at.refuse(f"has a scale or bias that does not fit {tuple(sizes)}") from None
    return at.line.layer_norm(x, sizes, weight, bias, at.option("epsilon", 1e-5), at.name)


def gather(at: Step) -> Value:
    axis = at.option("axis", 0)
    table = at.known(0)
    if not isinstance(table, Value):
        if axis != 0:
            raise at.refuse(f"looks up axis {axis} of a table; expected axis 0")
        return at.line.embedding(at.value(1), at.weight(0, 2), at.name)
    indices = at.numbers(1)
    if indices.size != 1 or indices.dtype.kind not in "iu" or indices.ndim > 1:
        raise at.refuse(
            f"takes positions of shape {indices.shape} out of what is computed; expected one"
        )
    index = int(indices.reshape(-1)[0])
    made = at.line.select(table, axis, index, at.name)
    return at.line.unsqueeze(made, axis % table.ndim, at.name) if indices.ndim else made


def one_hot(at: Step) -> Value:
    tokens, depth, values = at.value(0), at.integers(1), at.numbers(2)
    axis = at.option("axis", -1)
    if len(depth) != 1 or values.tolist() != [0, 1] or axis not in (-1, tokens.ndim):
        raise at.refuse(
            f"has the depth {depth[:4]}, the values {values.reshape(-1)[:4].tolist()} and axis "
            f"{axis}; expected one depth, [0, 1], and the last axis"
        )
    return at.line.one_hot(tokens, depth[0], at.name)


def function(name: str, *parameters: tuple[str, float]) -> Callable[[Step], Value]:
    """An activation with the attributes that are its parameters, and their defaults."""

    def run(at: Step) -> Value:
        at.no_effect("consumed_inputs")
        values = [repr(at.option(*parameter)) for parameter in parameters]
        text = f"{name}({', '.join(values)})" if values else name
        return at.line.activation(at.value(0), text, at.name)

    return run


def gelu(at: Step) -> Value:
    how = at.option("approximate", "none")
    if how not in ("none", "tanh"):
        raise at.refuse(f"has approximate {how!r:.40}; expected 'none' or 'tanh'")
    return at.line.activation(at.value(0), "gelu" if how == "none" else "gelu_tanh", at.name)


def swish(at: Step) -> Value:
    if (alpha := at.option("alpha", 1.0)) != 1:
        raise at.refuse(f"has alpha {alpha}; expected 1, which makes it silu")
    return at.line.activation(at.value(0), "silu", at.name)


def softmax(at: Step) -> Value:
    x = at.value(0)
    axis = at.option("axis", -1 if at.version >= 13 else 1)
    if at.version < 13 and axis % max(x.ndim, 1) != x.ndim - 1:
        # It took all axes from there on as one.
        raise at.refuse(
            f"works on all axes from {axis} of an array of shape {x.shape}; expected the last alone"
        )
    text = "softmax" if at.node.op == "Softmax" else "log_softmax"
    return at.line.activation(x, text, at.name, axis)


def prelu(at: Step) -> Value:
    x, slope = at.value(0), at.weight(1)
    at.no_effect("consumed_inputs")
    if at.version < 7 and slope.ndim == 1 and slope.size > 1:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
    where = [x.ndim - slope.ndim + place for place, size in enumerate(slope.shape) if size != 1]
    if len(where) > 1:
        raise at.refuse(f"has slopes of shape {slope.shape}; expected one number for each channel")
    return at.line.prelu(x, slope.reshape(-1), at.name, where[0] if where else 1)


def clip(at: Step) -> Value:
    low, high = -math.inf, math.inf
    at.no_effect("consumed_inputs")
    if at.version < 11:
        low, high = at.option("min", low), at.option("max", high)
    else:
        low = at.scalar(1) if at.has(1) else low
        high = at.scalar(2) if at.has(2) else high
    if (low, high) == (0, math.inf):
        return at.line.activation(at.value(0), "relu", at.name)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise at.refuse(f"clips to {low} and {high}; expected both bounds, or 0 and none")
    return at.line.activation(at.value(0), f"hardtanh({low!r}, {high!r})", at.name)


def pad(at: Step) -> Value:
    x, how = at.value(0), at.option("mode", "constant")
    modes = {"constant": "zeros", "reflect": "reflect", "edge": "replicate"}
    if at.version < 11:
        pads = at.options("pads" if at.version >= 2 else "paddings", int) or []
        value, axes = at.option("value", 0.0), None
    else:
        pads = at.integers(1)
        value = at.scalar(2) if at.has(2) else 0.0
        axes = at.integers(3) if at.has(3) else None
    places = list(range(x.ndim)) if axes is None else [axis % max(x.ndim, 1) for axis in axes]
    if len(pads) != 2 * len(places):
        raise at.refuse(f"has {len(pads)} pads; expected two for each of {len(places)} axes")
    padded = {place: (pads[i], pads[i + len(places)]) for i, place in enumerate(places)}
    last = padded.pop(x.ndim - 1, (0, 0))
    if how not in modes or value != 0 or any(any(pair) for pair in padded.values()):
        raise at.refuse(
            f"pads by {how!r:.40} of {value:g} the axes "
            f"{[p for p, pair in padded.items() if any(pair)] or [x.ndim - 1]}; expected zeros, "
            f"reflect or edge, of the last axis"
        )
    return at.line.pad(x, *last, modes[how], at.name)


def power(at: Step) -> Value:
    at.no_effect("axis", "broadcast")
    return at.line.power(at.value(0), at.scalar(1), at.name)


def sqrt(at: Step) -> Value:
    at.no_effect("consumed_inputs")
    return at.line.sqrt(at.value(0), at.name)


def negate(at: Step) -> Value:
    return at.line.scale(at.value(0), -1.0, 0.0, at.name)


def _reduced(at: Step, since: int) -> tuple[Value, int, bool]:
    """The array, the one axis that a reduction goes over, and whether that is kept."""
    x, axes = at.value(0), axes_of(at, 1, since)
    if axes is None or len(axes) != 1:
        raise at.refuse(f"reduces the axes {'all' if axes is None else axes}; expected one")
    at.no_effect("noop_with_empty_axes")
    return x, axes[0], at.flag("keepdims", True)


def reduce_mean(at: Step) -> Value:
    return at.line.mean(*_reduced(at, 18), at.name)


def reduce_sum(at: Step) -> Value:
    return at.line.sum(*_reduced(at, 13), at.name)


def reduce_sum_square(at: Step) -> Value:
    x, axis, kept = _reduced(at, 18)
    return at.line.sum(at.line.power(x, 2, at.name), axis, kept, at.name)


def reduce_l2(at: Step) -> Value:
    return at.line.sqrt(reduce_sum_square(at), at.name)


def transpose(at: Step) -> Value:
    x = at.value(0)
    return at.line.transpose(x, at.options("perm", int) or range(x.ndim)[::-1], at.name)


def squeeze(at: Step) -> Value:
    x, axes = at.value(0), axes_of(at, 1, 13)
    if axes is None:
        return at.line.squeeze(x, None, at.name)
    for axis in sorted({axis % max(x.ndim, 1) for axis in axes}, reverse=True):
        x = at.line.squeeze(x, axis, at.name)
    return x


def unsqueeze(at: Step) -> Value:
    x, axes = at.value(0), axes_of(at, 1, 13) or []
    for axis in sorted({axis % (x.ndim + len(axes)) for axis in axes}):
        x = at.line.unsqueeze(x, axis, at.name)
    return x


def reshape(at: Step) -> Value:
    x = at.value(0)
    shape = (at.options("shape", int) or []) if at.version < 5 else sizes_of(at, 1)
    at.no_effect("consumed_inputs")
    if not at.flag("allowzero"):
        if any(n == 0 for n in shape[x.ndim :]):
            raise at.refuse(f"keeps an axis that an array of shape {x.shape} has not")
        shape = [x.size(i) if n == 0 else n for i, n in enumerate(shape)]
    return at.line.reshape(x, shape, at.name)


def flatten(at: Step) -> Value:
    x = at.value(0)
    axis = at.option("axis", 1)
    axis += x.ndim if axis < 0 else 0
    if not 0 <= axis <= x.ndim:
        raise at.refuse(f"flattens from axis {axis} of an array of {x.ndim}; expected one it has")
    if axis == x.ndim:
        return at.line.unsqueeze(at.line.flatten(x, 0, -1, at.name), 1, at.name)
    x = at.line.flatten(x, axis, -1, at.name)
    return at.line.flatten(x, 0, axis - 1, at.name) if axis else at.line.unsqueeze(x, 0, at.name)


def cut(at: Step) -> Value:
    x = at.value(0)
    for axis, start, stop, step in bounds_of(at):
        end = None if step < 0 and stop < -(2**31) else stop
        x = at.line.slice(x, axis, start, end, step, at.name)
    return x


def split(at: Step) -> list[Value]:
    x, axis = at.value(0), at.option("axis", 0)
    count = len(at.node.outputs)
    parts = at.options("split", int) if at.version < 13 else None
    if at.version >= 13 and at.has(1):
        parts = at.integers(1)
    size = x.shape[axis] if -x.ndim <= axis < x.ndim else None
    even = at.option("num_outputs", count) == count and size and size % count == 0
    if parts is None and size and even:
        parts = [size // count] * count
    if size is None or parts is None or sum(parts) != size or len(parts) != count or min(parts) < 1:
        raise at.refuse(
            f"splits axis {axis} of an array of shape {x.shape} into {parts or count}; expected "
            f"even parts, or sizes that make up a known one"
        )
    ends = np.cumsum(parts).tolist()
    return [
        at.line.slice(x, axis, end - part, end, 1, at.name)
        for part, end in zip(parts, ends, strict=True)
    ]


def concat(at: Step) -> Value:
    values = [at.either(index) for index in range(len(at.inputs))]
    return at.line.concat(values, at.option("axis", 1), at.name)


def identity(at: Step) -> Value:
    return at.line.identity(at.value(0), at.name)


def dropout(at: Step) -> list[Value | None]:
    at.no_effect("ratio", "seed", "is_test", "consumed_inputs")
    if at.has(2) and at.scalar(2):
        raise at.refuse("is in training mode; expected an export for inference")
    if at.gives(1):
        raise at.refuse("gives its mask; expected its output alone")
    at.notes.append(f"{at.node.label} has no effect at inference and was left out")
    return [at.value(0), None]


def cast(at: Step) -> Value:
    """Between floats, or between integers, it changes no number that the model has."""
    x = at.value(0)
    at.no_effect("saturate", "round_mode")
    code = at.option("to", "") if at.version < 6 else at.option("to", 1)
    kind = INTEGERS if at.line.is_integer(x) else FLOATS
    if code not in kind and str(code).lower() not in [f"{name}" for name in kind.values()]:
        raise at.refuse(
            f"casts to data type {code}; expected one of {', '.join(kind.values())}, as the array "
            f"is"
        )
    at.notes.append(f"{at.node.label} has no effect here and was left out")
    return x


def shape(at: Step) -> Array:
    x = at.value(0)
    start, end = at.option("start", 0), at.option("end", x.ndim)
    return plain([x.size(axis) for axis in range(x.ndim)][start:end])


def expand(at: Step) -> Value:
    return at.line.expand(at.value(0), sizes_of(at, 1), at.name)


# What an operator gives where some of what it reads is computed.
OPERATORS: Mapping[str, Callable[[Step], Known | Sequence[Known]]] = {
    "Abs": function("abs"),
    "Add": add,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Clip": clip,
    "Concat": concat,
    "Conv": convolution,
    "Div": div,
    "Dropout": dropout,
    "Elu": function("elu", ("alpha", 1.0)),
    "Erf": function("erf"),
    "Expand": expand,
    "Flatten": flatten,
    "GRU": recurrent,
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "HardSigmoid": function("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "Identity": identity,
    "LSTM": recurrent,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": function("leaky_relu", ("alpha", 0.01)),
    "LogSoftmax": softmax,
    "MatMul": matmul,
    "Mul": mul,
    "Neg": negate,
    "OneHot": one_hot,
    "PRelu": prelu,
    "Pad": pad,
    "Pow": power,
    "RNN": recurrent,
    "ReduceL2": reduce_l2,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
    "Relu": function("relu"),
    "Reshape": reshape,
    "Shape": shape,
    "Sigmoid": function("sigmoid"),
    "Slice": cut,
    "Softmax": softmax,
    "Softplus": function("softplus"),
    "Softsign": function("softsign"),
    "Split": split,
    "Sqrt": sqrt,
    "Squeeze": squeeze,
    "Sub": sub,
    "Swish": swish,
    "Tanh": function("tanh"),
    "ThresholdedRelu": function("thresholded_relu", ("alpha", 1.0)),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
