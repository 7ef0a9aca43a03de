"""Layers that have weights, and kernels that move over a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.blocks import Block, at
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.making import Making, MisfitError, Source, Value

__all__ = ["MAKERS"]


def _of_weights(m: Making) -> Value:
    """The layer of a block, with what the word says of it."""
    block, said = m.weights.block, m.settings()
    if block is None:
        return _MAKERS_WITHOUT[m.word.kind](m, said)
    layer = block.layer(m.word.kind)
    assert layer is not None
    options = dict(block.known.options) if block.known else {}
    if "eps" in said:
        options["eps"] = said["eps"]
    if dict(m.word.given).get("affine") is False:
        raise MisfitError("its affine is false, and there are weights of it")
    if isinstance(layer, spec.Convolution):
        options |= _kernel(m, layer, said)
    elif isinstance(layer, spec.Recurrent):
        options = {"reverse": said["reverse"]} | options
        if isinstance(layer, spec.RNN):
            options["nonlinearity"] = _nonlinearity(m, block, said)
        if isinstance(layer, spec.GRU):
            options.setdefault("reset_after", said["reset_after"])
    elif isinstance(layer, spec.GroupNorm) and m.word.kind == "group_norm":
        options["num_groups"] = said["num_groups"]
    if isinstance(layer, spec.GroupNorm):
        _check_positions(m)
    own = dataclasses.replace(layer, name=m.name, weights=m.weights.shared, **options)
    if not m.weights.shared:
        for suffix, full in own.names().items():
            m.sources[full] = Source(block.tensors[suffix], tuple(own.tensors()[suffix]))
    return m.add(own, m.value)


def _check_positions(m: Making) -> None:
    """Refuse a norm over time: of one number, there is nothing to normalise."""
    if m.word.kind == "instance_norm" and len(m.shape) < 2:
        raise ConvertError(
            f"layers= has {str(m.word)!r:.100} where a step is {m.value.row} without positions: it "
            f"would go over all steps of a sequence, which no layer does"
        )


def _nonlinearity(m: Making, block: Block, said: dict[str, Any]) -> str:
    told = block.known.nonlinearity if block.known else None
    word = dict(m.word.given).get("nonlinearity")
    for option, value in (("nonlinearity", m.nonlinearity), ("layers", word)):
        if told and value not in (None, told):
            raise ConvertError(
                f"{option}={value!r} was given, but the RNN {at(block.path)} has {told!r}; leave "
                f"{option}= out"
            )
    if word and m.nonlinearity not in (None, word):
        raise ConvertError(
            f"nonlinearity={m.nonlinearity!r} was given, but layers= says {m.word}; expected one "
            f"of them"
        )
    chosen = told or word or m.nonlinearity
    if chosen is None:
        raise ConvertError(
            f"the weights {at(block.path)} are an RNN's and do not tell its nonlinearity; give "
            f"nonlinearity='tanh' (PyTorch's default) or nonlinearity='relu'"
        )
    return str(chosen)


def _per_axis(value: Any, n: int, name: str) -> tuple[Any, ...]:
    """A parameter of a kernel as one value an axis."""
    values = value if isinstance(value, tuple) else (value,) * n
    if len(values) != n:
        raise ConvertError(
            f"layers= says {name}={value!r:.80} of a kernel of {n} axes; expected one value, or {n}"
        )
    return values


def _paddings(
    padding: Any, reaches: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """What stands before and behind each axis."""
    made = []
    for each, reach, stride in zip(
        _per_axis(padding, len(reaches), "padding"), reaches, strides, strict=True
    ):
        if each == "same" and stride > 1:
            raise ConvertError(
                f"layers= says padding=same of a kernel whose stride is {stride}; PyTorch has it "
                f"for a stride of 1 only: say how much stands before and behind, ((1, 2),)"
            )
        match each:
            case "same":
                made.append((reach // 2, reach - reach // 2))
            case "causal":
                made.append((reach, 0))
            case "valid":
                made.append((0, 0))
            case (before, behind):
                made.append((before, behind))
            case int():
                made.append((each, each))
            case _:
                raise ConvertError(f"layers= says padding={padding!r:.80}; expected numbers")
    return tuple(made)


def _over_time(m: Making, n: int) -> bool:
    """Whether a kernel of n axes moves over time, as it has an axis more than a row has positions.

    Raises
    ------
    MisfitError
        If a row has other axes.
    """
    if len(m.shape) not in (n, n + 1):
        raise MisfitError(
            f"it moves over {n} axes beside that of the channels, one of which may be time, and is "
            f"given {m.value.row}"
        )
    return len(m.shape) == n


def _kernel(m: Making, layer: spec.Convolution, said: dict[str, Any]) -> dict[str, Any]:
    n = len(layer.kernel_size)
    stride, dilation = (_per_axis(said[name], n, name) for name in ("stride", "dilation"))
    reaches = [d * (k - 1) for d, k in zip(dilation, layer.kernel_size, strict=True)]
    options: dict[str, Any] = {
        "groups": said["groups"],
        "stride": stride,
        "dilation": dilation,
        "padding": _paddings(said["padding"], reaches, (1,) * n if layer.transposed else stride),
        "over_time": _over_time(m, n),
    }
    if layer.transposed:
        per_group = layer.out_channels // layer.groups
        options["out_channels"] = per_group * said["groups"]
        if (extra := _per_axis(said["output_padding"], n, "output_padding")) != (0,) * n:
            options["output_padding"] = extra
    else:
        options["in_channels"] = layer.in_channels * said["groups"]
        if m.shape[0] != options["in_channels"] and m.shape[0] % layer.in_channels == 0:
            raise MisfitError(
                f"its weights are for {options['in_channels']} channels, and it is given "
                f"{m.value.row}; groups={m.shape[0] // layer.in_channels} would fit"
            )
    return options


def _prelu(m: Making) -> Value:
    block = m.weights.block
    assert block is not None
    tensor, n = block.tensors["weight"], block.tensors["weight"].shape[0]
    if n not in (1, *m.shape[:1]):
        raise MisfitError(f"it has {n} slopes, and is given {m.value.row}")
    full = f"{m.weights.shared or m.name}.weight"
    axes = (n, *(1,) * (len(m.shape) - 1))
    slope = m.add(spec.Constant(f"{m.name}/slope", axes, weights=full))
    m.sources[full] = Source(tensor, axes)
    # Where relu(x) is not 0, x is above 0 or NaN.
    above = m.add(spec.Activation(f"{m.name}/above", "relu"), m.value)
    below = m.add(spec.Arithmetic(f"{m.name}/below", "multiply"), slope, m.value)
    return m.add(spec.Arithmetic(m.name, "where"), above, m.value, below)


def _norm_without(m: Making, said: dict[str, Any]) -> Value:
    """A norm that has no weights."""
    if not m.shape:
        raise MisfitError(f"it takes rows of numbers, and is given {m.value.row}")
    layer: spec.Layer
    if m.word.kind == "layer_norm":
        layer = spec.LayerNorm(m.name, m.shape[-1:], said["eps"], False, False)
    elif m.word.kind == "rms_norm":
        layer = spec.RMSNorm(m.name, m.shape[-1:], said["eps"], False)
    else:
        _check_positions(m)
        groups = said.get("num_groups", m.shape[0])
        layer = spec.GroupNorm(m.name, groups, m.shape[0], said["eps"], False)
    return m.add(layer, m.value)


_MAKERS_WITHOUT: dict[str, Callable[[Making, dict[str, Any]], Value]] = dict.fromkeys(
    ("layer_norm", "rms_norm", "group_norm", "instance_norm"), _norm_without
)


def _pooling(m: Making) -> Value:
    said, n = m.settings(), int(m.word.kind[-2])
    kernel = _per_axis(said["kernel_size"], n, "kernel_size")
    strides = said["stride"] if said["stride"] != "kernel_size" else kernel
    stride = _per_axis(strides, n, "stride")
    dilation = _per_axis(said.get("dilation", 1), n, "dilation")
    reaches = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    layer = spec.Pooling(
        m.name,
        {"max": "max", "avg": "average"}[m.word.kind[:3]],
        kernel,
        stride=stride,
        dilation=dilation,
        padding=_paddings(said["padding"], reaches, stride),
        over_time=_over_time(m, n),
        count_include_pad=said.get("count_include_pad", True),
    )
    return m.add(layer, m.value)


MAKERS: dict[str, Callable[[Making], Value]] = {
    **{word: _of_weights for word, kind in KINDS.items() if kind.weights == "layer"},
    **{word: _pooling for word in KINDS if "_pool" in word},
    "prelu": _prelu,
}
