"""ONNX's operators that are layers: matrices, kernels, norms, reductions, tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.sources.arrays import Value
from fastlstm.sources.onnx.elementwise import apply, combine, scaled
from fastlstm.sources.onnx.recurrent import recurrent
from fastlstm.sources.onnx.step import Step, shape_of
from fastlstm.sources.onnx.tensors import Array

__all__ = ["LAYERS"]

Pairs = list[tuple[int, int]]


# Matrices


def gemm(at: Step) -> Any:
    alpha, beta = float(at.option("alpha")), float(at.option("beta"))
    at.no_effect("broadcast")
    a, b = at.any(0), at.any(1)
    if len(shape_of(a)) != 2 or len(shape_of(b)) != 2:
        raise at.refuse(
            f"multiplies arrays of shapes {shape_of(a)} and {shape_of(b)}; expected two matrices"
        )
    if at.flag("transA"):
        a = at.move(np.transpose, a)
    turned = at.flag("transB")
    bias = at.any(2) if at.has(2) else None
    if isinstance(b, Value):
        made = at.b.matmul(a, at.move(np.transpose, b) if turned else b)
        made = scaled(at, made, alpha) if alpha != 1 else made
        return made if bias is None else combine(at, "add", made, _scaled(at, bias, beta))
    weight = b if turned else at.b.derived(b, "turned", np.transpose)
    made = at.b.linear(a, _scaled(at, weight, alpha))
    return made if bias is None else combine(at, "add", made, _scaled(at, bias, beta))


def _scaled(at: Step, array: Any, factor: float) -> Any:
    if factor == 1:
        return array
    if isinstance(array, Value):
        return scaled(at, array, factor)
    return at.b.derived(array, f"times {factor!r}", lambda w: w * np.float64(factor))


def matmul(at: Step) -> Any:
    a, b = at.any(0), at.any(1)
    if not isinstance(b, Value):
        b = at.weight(1)
        while b.ndim > 2 and len(b) == 1 and b.ndim <= len(shape_of(a)):
            b = at.b.derived(b, "first", lambda w: w[0])
    if not isinstance(a, Value) and not isinstance(b, Value):
        a = at.weight(0)
        at.room([*a.shape[:-1], b.shape[-1]])
        return np.matmul(a, b)
    return at.b.matmul(a, b)


def einsum(at: Step) -> Any:
    """One operand, or two as one product of matrices."""
    text, arrays = at.option("equation").replace(" ", ""), at.all()
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    letters = "".join(terms)
    if not arrow:
        out = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    sizes: dict[str, int] = {}
    plain = letters.isalpha() and len(terms) == len(arrays) <= 2 and set(out) <= set(letters)
    for term, array in zip(terms, arrays, strict=False):
        plain = plain and len(set(term)) == len(term) == len(shape_of(array))
        sizes |= zip(term, shape_of(array), strict=False)
    if not plain or len(set(out)) < len(out):
        raise at.refuse(
            f"has the equation {text!r:.80}; expected one or two terms of letters, each once"
        )
    if len(arrays) == 1:
        return _permuted(at, _summed(at, arrays[0], terms[0], out), terms[0], out)
    a, b = terms
    gone_a = "".join(c for c in a if c not in b + out)
    gone_b = "".join(c for c in b if c not in a + out)
    first, second = _summed(at, arrays[0], a, b + out), _summed(at, arrays[1], b, a + out)
    a, b = (term.translate({ord(c): None for c in gone_a + gone_b}) for term in (a, b))
    shared = [c for c in a if c in b]
    batch, inner = [c for c in shared if c in out], [c for c in shared if c not in out]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]

    def whole(names: Sequence[str]) -> int:
        return math.prod(sizes[c] for c in names)

    lead = [sizes[c] for c in batch]
    x = _permuted(at, first, a, [*batch, *rows, *inner])
    x = at.move(lambda p: p.reshape(*lead, whole(rows), whole(inner)), x)
    y = _permuted(at, second, b, [*batch, *inner, *columns])
    y = at.move(lambda p: p.reshape(*lead, whole(inner), whole(columns)), y)
    made = at.b.matmul(x, y)
    ends = [sizes[c] for c in (*rows, *columns)]
    made = at.move(lambda p: p.reshape(*lead, *ends), made)
    return _permuted(at, made, [*batch, *rows, *columns], out)


def _summed(at: Step, x: Any, term: str, kept: str) -> Any:
    over = [n for n, c in enumerate(term) if c not in kept]
    return at.b.reduce("sum", x, over, False) if over else x


def _permuted(at: Step, x: Any, term: Sequence[str], out: Sequence[str]) -> Any:
    term = [c for c in term if c in out]
    return at.move(lambda p: np.transpose(p, [term.index(c) for c in out]), x)


# Kernels


def _sizes(at: Step, name: str, n: int, least: int = 1) -> list[int]:
    values = at.option(name) or [1] * n
    if len(values) != n or min(values) < least:
        raise at.refuse(f"has {name} {values[:8]}; expected {n} of at least {least}")
    return list(values)


def _padding(
    at: Step, sizes: Sequence[int], reaches: Sequence[int], strides: Sequence[int]
) -> Pairs:
    """What is padded before and behind each axis of a kernel that reaches over so many."""
    how, pads, n = at.option("auto_pad"), at.option("pads"), len(sizes)
    if how in ("NOTSET", "VALID"):
        pads = [0] * 2 * n if pads is None else pads
        if len(pads) != 2 * n or min(pads) < 0 or (how == "VALID" and any(pads)):
            raise at.refuse(f"has pads {pads[:8]}; expected {2 * n} of at least 0")
        return list(zip(pads[:n], pads[n:], strict=True))
    if how not in ("SAME_UPPER", "SAME_LOWER") or pads:
        raise at.refuse(f"has auto_pad {how!r:.40} and pads {pads}; expected one of them")
    made = []
    for size, reach, stride in zip(sizes, reaches, strides, strict=True):
        count = -(-size // stride)
        total = max((count - 1) * stride + reach + 1 - size, 0)
        less = total // 2
        made.append((less, total - less) if how == "SAME_UPPER" else (total - less, less))
    return made


def convolution(at: Step) -> Any:
    x, weight = at.any(0), at.weight(1)
    n = weight.ndim - 2
    sizes = shape_of(x)
    if n < 1 or len(sizes) != n + 2:
        raise at.refuse(
            f"has a weight of shape {weight.shape} and is given an array of {sizes}; expected as "
            f"many axes of each, at least 3"
        )
    _check_kernel(at, weight)
    strides, dilations = _sizes(at, "strides", n), _sizes(at, "dilations", n)
    transposed = at.node.op == "ConvTranspose"
    groups = at.option("group")
    bias = at.weight(2, 1) if at.has(2) else None
    out = weight.shape[1] * groups if transposed else len(weight)
    if groups < 1 or len(weight) % groups or (bias is not None and len(bias) != out):
        raise at.refuse(
            f"has {groups} groups and {len(weight)} channels; expected a divisor, and a bias for "
            f"each channel"
        )
    reaches = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    more: list[int] = []
    if transposed:
        padding, more = _cut_off(at, sizes[2:], reaches, strides)
    else:
        padding = _padding(at, sizes[2:], reaches, strides)
    return at.b.convolution(
        x,
        weight,
        bias,
        stride=strides,
        dilation=dilations,
        padding=padding,
        groups=groups,
        transposed=transposed,
        output_padding=more,
    )


def _check_kernel(at: Step, weight: Array) -> None:
    shape = at.option("kernel_shape")
    if shape is not None and tuple(shape) != weight.shape[2:]:
        raise at.refuse(
            f"has kernel_shape {shape[:8]} and a weight of shape {weight.shape}; expected the same "
            f"size"
        )


def _cut_off(
    at: Step, sizes: Sequence[int], reaches: Sequence[int], strides: Sequence[int]
) -> tuple[Pairs, list[int]]:
    """What a transposed kernel cuts off before and behind each axis, and what it adds behind."""
    n = len(sizes)
    more = at.option("output_padding") or [0] * n
    wanted, how = at.option("output_shape"), at.option("auto_pad")
    if wanted is None and how in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * s for size, s in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = at.option("pads") or [0] * 2 * n
        if len(pads) != 2 * n or min(pads) < 0 or len(more) != n:
            raise at.refuse(f"has pads {pads[:8]}; expected {2 * n} of at least 0")
        return list(zip(pads[:n], pads[n:], strict=True)), more
    at.no_effect("pads")
    made = []
    for size, s, reach, m, w in zip(sizes, strides, reaches, more, wanted[-n:], strict=True):
        total = max(s * (size - 1) + m + reach + 1 - w, 0)
        less, rest = total // 2, total - total // 2
        made.append((less, rest) if how == "SAME_UPPER" else (rest, less))
    return made, more


def pool(at: Step) -> Any:
    x = at.any(0)
    sizes = shape_of(x)[2:]
    n = len(sizes)
    if at.gives(1):
        raise at.refuse("gives the places of its maxima; expected its output alone")
    at.no_effect("storage_order")
    kernel = at.option("kernel_shape") or []
    if len(kernel) != n or min(kernel, default=0) < 1:
        raise at.refuse(f"has kernel_shape {kernel[:8]} for an array of {shape_of(x)}")
    largest = at.node.op == "MaxPool"
    strides = _sizes(at, "strides", n)
    dilated = at.version >= (10 if largest else 19)
    dilations = _sizes(at, "dilations", n) if dilated else [1] * n
    reaches = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    return at.b.pool(
        x,
        "max" if largest else "mean",
        kernel,
        stride=strides,
        dilation=dilations,
        padding=_padding(at, sizes, reaches, strides),
        count_include_pad=largest or (at.version >= 7 and at.flag("count_include_pad")),
        ceil=at.version >= 10 and at.flag("ceil_mode"),
    )


def global_pool(at: Step) -> Any:
    x = at.any(0)
    function = "max" if at.node.op == "GlobalMaxPool" else "mean"
    return at.b.reduce(function, x, range(2, len(shape_of(x))), True)


# Norms


def batch_normalization(at: Step) -> Any:
    at.no_effect("momentum", "consumed_inputs", "is_test")
    if at.version >= 14 and at.flag("training_mode"):
        raise at.refuse("is in training mode; expected an export for inference")
    if at.version < 9 and at.option("spatial") == 0:
        raise at.refuse("has numbers for each position (spatial=0); expected one for each channel")
    if any(at.gives(index) for index in range(1, 5)):
        raise at.refuse("gives its statistics; expected its output alone")
    scale, bias, mean, var = (at.weight(index, 1) for index in range(1, 5))
    return at.b.batch_norm(at.any(0), scale, bias, mean, var, float(at.option("epsilon")))


def _of_shape(at: Step, index: int, sizes: Sequence[int]) -> Array | None:
    """An input repeated to a shape; None if it is left out."""
    if not at.has(index):
        return None
    array = at.weight(index)
    if array.shape == tuple(sizes):
        return array
    try:
        return at.b.derived(array, f"to {tuple(sizes)}", lambda w: np.broadcast_to(w, sizes))
    except ValueError:
        raise at.refuse(f"has a scale or bias that does not fit {tuple(sizes)}") from None


def layer_normalization(at: Step) -> Any:
    at.no_effect("stash_type")
    if at.gives(1) or at.gives(2):
        raise at.refuse("gives its statistics; expected its output alone")
    x = at.any(0)
    axis = at.axis(at.option("axis"), len(shape_of(x)))
    sizes, eps = shape_of(x)[axis:], float(at.option("epsilon"))
    weight = _of_shape(at, 1, sizes)
    if at.node.op == "RMSNormalization":
        return at.b.rms_norm(x, sizes, weight, eps)
    return at.b.layer_norm(x, sizes, weight, _of_shape(at, 2, sizes), eps)


def instance_normalization(at: Step) -> Any:
    at.no_effect("consumed_inputs")
    weight, bias = at.weight(1, 1), at.weight(2, 1)
    return at.b.group_norm(at.any(0), len(weight), weight, bias, float(at.option("epsilon")))


def group_normalization(at: Step) -> Any:
    at.no_effect("stash_type")
    x, groups = at.any(0), at.option("num_groups")
    weight, bias = at.weight(1, 1), at.weight(2, 1)
    channels = shape_of(x)[1]
    if at.version < 21:  # a number for each group
        each = channels // max(groups, 1)
        weight, bias = (
            at.b.derived(w, f"each {each} times", lambda w: w.repeat(each)) for w in (weight, bias)
        )
    return at.b.group_norm(x, groups, weight, bias, float(at.option("epsilon")))


def lp_normalization(at: Step) -> Any:
    x, axis, p = at.any(0), at.option("axis"), at.option("p")
    norm = at.b.reduce("sum", apply(at, "abs", x), [axis], True) if p == 1 else None
    norm = at.b.reduce("l2", x, [axis], True) if norm is None else norm
    return combine(at, "divide", x, norm)


def softmax(at: Step) -> Any:
    x, axis = at.any(0), at.option("axis")
    sizes = shape_of(x)
    axis = at.axis(axis, len(sizes))
    log = at.node.op == "LogSoftmax"
    if at.version >= 13 or axis == len(sizes) - 1:
        return at.b.softmax(x, axis, log)
    # It took all axes from there on as one.
    flat = at.move(lambda p: p.reshape(*sizes[:axis], -1), x)
    return at.move(lambda p: p.reshape(sizes), at.b.softmax(flat, axis, log))


# Reductions


def _reduction(since: int) -> Callable[[Step], Any]:
    """A reduction whose axes are an input since a version."""

    def run(at: Step) -> Any:
        x, axes = at.any(0), at.axes(1, since)
        empty = at.flag("noop_with_empty_axes") if at.version >= since else False
        keep = at.option("keepdims") == 1
        if not axes:
            if empty:
                return x
            axes = list(range(len(shape_of(x))))
        if not isinstance(x, Value):
            over = tuple(axes)
            made = np.asarray(CONSTANT_REDUCTIONS[at.node.op](x, axis=over, keepdims=keep))
            return made.astype(x.dtype)
        return _reduced(at, at.node.op, x, [at.axis(a, x.ndim) for a in axes], keep)

    return run


CONSTANT_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL1": lambda x, **o: np.abs(x).sum(**o),
    "ReduceL2": lambda x, **o: np.sqrt(np.square(x).sum(**o)),
    "ReduceLogSum": lambda x, **o: np.log(x.sum(**o)),
    "ReduceLogSumExp": lambda x, **o: np.log(np.exp(x).sum(**o)),
    "ReduceMax": np.max,
    "ReduceMean": np.mean,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceSumSquare": lambda x, **o: np.square(x).sum(**o),
}
PLAIN = {"Max": "max", "Mean": "mean", "Min": "min", "Sum": "sum", "L2": "l2"}


def _reduced(at: Step, op: str, x: Value, axes: list[int], keep: bool) -> Any:
    how = op.removeprefix("Reduce")
    if how in PLAIN:
        return at.b.reduce(PLAIN[how], x, axes, keep)
    if how in ("L1", "SumSquare"):
        each = apply(at, "abs" if how == "L1" else "square", x)
        return at.b.reduce("sum", each, axes, keep)
    if how == "LogSum":
        return apply(at, "log", at.b.reduce("sum", x, axes, keep))
    if how == "LogSumExp":
        most = at.b.reduce("max", x, axes, True)
        total = at.b.reduce("sum", apply(at, "exp", combine(at, "subtract", x, most)), axes, True)
        made = combine(at, "add", apply(at, "log", total), most)
        return made if keep else at.move(lambda p: np.squeeze(p, tuple(axes)), made)
    raise at.refuse("is of an operator that no layer computes, and depends on an input")


def cumulative_sum(at: Step) -> Any:
    x, axis = at.any(0), at.axis(at.integer(1), len(shape_of(at.any(0))))
    if at.flag("exclusive") or at.flag("reverse"):
        raise at.refuse("is exclusive or runs backwards; expected neither")
    return at.b.cumulative("sum", x, axis)


# Tokens


def one_hot(at: Step) -> Any:
    tokens, depth, values = at.any(0), at.integer(1), at.constant(2)
    axis, ndim = at.option("axis"), len(shape_of(tokens))
    if values.tolist() != [0, 1] or axis not in (-1, ndim) or depth < 1:
        raise at.refuse(
            f"has the depth {depth}, the values {values.reshape(-1)[:4].tolist()} and axis "
            f"{axis}; expected a depth, [0, 1], and the last axis"
        )
    at.room([*shape_of(tokens), depth], tokens)
    return at.b.one_hot(tokens, depth)


LAYERS: Mapping[str, Callable[[Step], Any]] = {
    "AveragePool": pool,
    "BatchNormalization": batch_normalization,
    "Conv": convolution,
    "ConvTranspose": convolution,
    "CumSum": cumulative_sum,
    "Einsum": einsum,
    "GRU": recurrent,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LSTM": recurrent,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": softmax,
    "LpNormalization": lp_normalization,
    "MatMul": matmul,
    "MaxPool": pool,
    "OneHot": one_hot,
    "RMSNormalization": layer_normalization,
    "RNN": recurrent,
    "Softmax": softmax,
    **{name: _reduction(13 if name == "ReduceSum" else 18) for name in CONSTANT_REDUCTIONS},
}
