"""Layers of Keras whose kernels slide over steps or positions: convolutions and poolings.

The conventions are Keras's own (keras/src/layers): channels last, kernels (positions, inputs,
outputs). A graph has the channels first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.keras.builder import (
    FIXED,
    Array,
    Axes,
    Builder,
    Site,
    Value,
    WholeSequenceError,
    shown,
)

__all__ = ["SLIDING"]

Pairs = tuple[tuple[int, int], ...]


class _Kernel(NamedTuple):
    """How a kernel lies on its input: one of each for each axis that it moves over."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pairs

    def steps(self, steps: int | None) -> int | None:
        """Rows that it makes of so many, over time."""
        if steps is None:
            return None
        left = steps + sum(self.padding[0]) - self.dilation[0] * (self.size[0] - 1)
        return max(0, (left - 1) // self.stride[0] + 1)


def _input(model: Builder, site: Site) -> tuple[Value, int]:
    """Its input (..., channels), and the number of axes that the kernel moves over."""
    value = site.value
    axes = next(n for n in (1, 2, 3) if f"{n}D" in site.entry.class_name)
    site.options.must_be("data_format", "channels_last", ": (steps, features)")
    if len(value.axes) != axes + 1:
        raise ConvertError(
            f"{site.what} reads {shown(value.axes)}; expected {axes + 1} axes, the last of them "
            f"features"
        )
    if value.timed:
        model.in_order(site, value)
    return value.but(value.name, mask=None), axes


def _kernel(
    model: Builder, site: Site, value: Value, size: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Value, _Kernel]:
    """The options of a kernel, and the input with what padding the kernel does not make."""
    options, axes = site.options, len(size)
    dilation = options.sizes("dilation_rate", axes, 1)
    padding = options.take("padding")
    names = ["valid", "same"] + ["causal"] * (site.entry.class_name in _CAUSAL)
    if padding not in names:
        raise options.refused("padding", padding, f"one of {', '.join(names)}")
    before: Pairs = ((0, 0),) * axes
    if any(value.padding):
        reach = dilation[0] * (size[0] - 1)
        if padding == "valid" and max(value.padding) <= reach:
            before = (value.padding, *before[1:])
        else:
            value = model.padded(value)
    value = value.but(value.name, padding=(0, 0), mask=None)
    sizes = [value.steps if n is None else n for n in value.axes[:axes]]
    pads: list[tuple[int, int]] = []
    for at, n in enumerate(sizes):
        reach, step = dilation[at] * (size[at] - 1), stride[at]
        if padding == "causal":
            pads.append((reach, 0))
        elif padding == "valid":
            pads.append(before[at])
        elif step == 1:
            pads.append((reach // 2, reach - reach // 2))
        elif n is None:
            raise WholeSequenceError(
                f"{site.what}: padding is 'same' with strides={step}, and what that puts on each "
                f"side depends on the number of steps; {FIXED}"
            )
        else:
            total = max((-(-n // step) - 1) * step + reach + 1 - n, 0)
            pads.append((total // 2, total - total // 2))
            if value.timed and not at:
                model.notes.append(
                    f"{site.what} pads as for sequences of {n} steps, which the file tells: this "
                    f"model is for those"
                )
    return value, _Kernel(size, stride, dilation, tuple(pads))


_CAUSAL = ("Conv1D", "SeparableConv1D", "DepthwiseConv1D")


def _slid(
    model: Builder,
    site: Site,
    value: Value,
    name: str,
    make: Callable[[str, tuple[int, ...]], spec.Layer],
    steps: int | None,
    **tensors: Array,
) -> Value:
    """Put the channels first, apply a layer, and put them last again.

    `make` gets a name for the layer, and a kernel of 1 for each axis that it does not move over.
    """
    # Positions that a layer is applied to are axes on which the kernel is 1.
    whole = dataclasses.replace(value, axes=(None,) * value.timed + value.row, lead=())
    n = len(whole.own)
    first = model.transposed(f"{name}.first", whole, [n - 1, *range(n - 1)])
    layer = make(model.unique(name), (1,) * len(value.lead))
    made = model.add(layer, first, **tensors)
    (row,) = {layer.output([spec.Row(first.own, 0, None)])}
    last = model.transposed(f"{name}.last", first.of_row(made, row, steps=steps), [*range(1, n), 0])
    return dataclasses.replace(
        last,
        lead=value.lead,
        axes=(None,) * value.timed + last.own[len(value.lead) :],
    )


def _convolved(
    model: Builder,
    site: Site,
    value: Value,
    kernel: _Kernel,
    name: str,
    tensors: str,
    weight: Array,
    bias: Array | None,
    groups: int = 1,
) -> Value:
    """A convolution whose weights (outputs, inputs / groups, positions) are given."""

    def make(name: str, ones: tuple[int, ...]) -> spec.Layer:
        return spec.Convolution(
            *(name, value.own[-1], len(weight), (*ones, *kernel.size), groups, bias is not None),
            stride=(*ones, *kernel.stride),
            dilation=(*ones, *kernel.dilation),
            padding=(*((0, 0) for _ in ones), *kernel.padding),
            over_time=value.timed,
            weights=tensors,
        )

    n = len(value.lead)
    weight = weight.reshape(*weight.shape[:2], *(1,) * n, *weight.shape[2:])
    steps = kernel.steps(value.steps)
    given = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return _slid(model, site, value, name, make, steps, **given)


def _convolution(model: Builder, site: Site) -> Value:
    options, (value, axes) = site.options, _input(model, site)
    filters, size = options.size("filters"), options.sizes("kernel_size", axes)
    value, kernel = _kernel(model, site, value, size, options.sizes("strides", axes, 1))
    groups, bias = options.size("groups", 1), options.flag("use_bias")
    shapes: dict[str, Axes] = {"kernel": (*size, value.own[-1] // groups, filters)}
    arrays = site.take(shapes | ({"bias": (filters,)} if bias else {}))
    weight = arrays["kernel"].transpose(axes + 1, axes, *range(axes))
    made = _convolved(
        *(model, site, value, kernel, site.name, site.tensors, weight, arrays.get("bias"), groups)
    )
    return model.activate(f"{site.name}.activation", made, options.activation())


def _depthwise(array: Array) -> Array:
    """Weights (positions, inputs, multiplier) as (inputs * multiplier, 1, positions)."""
    *size, inputs, each = array.shape
    n = len(size)
    return array.transpose(n, n + 1, *range(n)).reshape(inputs * each, 1, *size)


def _depthwise_convolution(model: Builder, site: Site) -> Value:
    options, (value, axes) = site.options, _input(model, site)
    each, size = options.size("depth_multiplier"), options.sizes("kernel_size", axes)
    value, kernel = _kernel(model, site, value, size, options.sizes("strides", axes, 1))
    inputs, bias = value.own[-1], options.flag("use_bias")
    shapes: dict[str, Axes] = {"(depthwise_)?kernel": (*size, inputs, each)}
    weight, *biases = site.take(shapes | ({"bias": (inputs * each,)} if bias else {})).values()
    options.take("filters", None), options.take("groups", None)  # of its base class
    made = _convolved(
        *(model, site, value, kernel, site.name, site.tensors, _depthwise(weight)),
        *(biases[0] if biases else None, inputs),
    )
    return model.activate(f"{site.name}.activation", made, options.activation())


def _separable_convolution(model: Builder, site: Site) -> Value:
    """A kernel for each channel, and a product of the channels at each position."""
    options, (value, axes) = site.options, _input(model, site)
    each, size = options.size("depth_multiplier"), options.sizes("kernel_size", axes)
    filters, bias = options.size("filters"), options.flag("use_bias")
    options.take("groups", None)  # of its base class
    value, kernel = _kernel(model, site, value, size, options.sizes("strides", axes, 1))
    inputs = value.own[-1]
    shapes: dict[str, Axes] = {
        "depthwise_kernel": (*size, inputs, each),
        "pointwise_kernel": (*(1,) * axes, inputs * each, filters),
    }
    arrays = site.take(shapes | ({"bias": (filters,)} if bias else {}))
    weight = _depthwise(arrays["depthwise_kernel"])
    name, tensors = f"{site.name}.depthwise", f"{site.tensors}.depthwise"
    inner = _convolved(model, site, value, kernel, name, tensors, weight, None, inputs)
    given = {"bias": arrays["bias"]} if bias else {}
    layer = spec.Linear(
        *(model.unique(site.name), inputs * each, filters, bias), weights=site.tensors
    )
    pointwise = arrays["pointwise_kernel"].reshape(inputs * each, filters).T
    made = inner.of_row(
        model.add(layer, inner, weight=pointwise, **given), (*inner.own[:-1], filters)
    )
    return model.activate(f"{site.name}.activation", made, options.activation())


def _transposed_convolution(model: Builder, site: Site) -> Value:
    """As the gradient of a convolution that pads 'same' or not at all (TensorFlow's)."""
    options, (value, axes) = site.options, _input(model, site)
    value = model.padded(value)
    filters, size = options.size("filters"), options.sizes("kernel_size", axes)
    strides, dilations = options.sizes("strides", axes, 1), options.sizes("dilation_rate", axes, 1)
    bias, padding = options.flag("use_bias"), options.take("padding")
    if padding not in ("valid", "same"):
        raise options.refused("padding", padding, "'valid' or 'same'")
    if options.take("output_padding", None) is not None:
        raise options.refused("output_padding", site.entry.config["output_padding"], "none")
    options.take("groups", None)  # of its base class
    pads, behind = [], []
    for k, stride, dilation in zip(size, strides, dilations, strict=True):
        over = dilation * (k - 1) + 1 - stride
        cut = max(over, 0) if padding == "same" else 0
        pads.append((cut // 2, cut - cut // 2))
        behind.append(max(-over, 0))
    arrays = site.take(
        {"kernel": (*size, filters, value.own[-1])} | ({"bias": (filters,)} if bias else {})
    )
    weight = arrays.pop("kernel").transpose(axes + 1, axes, *range(axes))
    n = len(value.lead)

    def make(name: str, ones: tuple[int, ...]) -> spec.Layer:
        return spec.Convolution(
            *(name, value.own[-1], filters, (*ones, *size), 1, bias),
            stride=(*ones, *strides),
            dilation=(*ones, *dilations),
            padding=(*((0, 0) for _ in ones), *pads),
            output_padding=(*(0 for _ in ones), *behind),
            transposed=True,
            over_time=value.timed,
            weights=site.tensors,
        )

    steps = value.steps
    if steps is not None:
        steps = steps * strides[0] + dilations[0] * (size[0] - 1) + 1 - strides[0] + behind[0]
        steps -= sum(pads[0])
    weight = weight.reshape(*weight.shape[:2], *(1,) * n, *size)
    made = _slid(model, site, value, site.name, make, steps, weight=weight, **arrays)
    return model.activate(f"{site.name}.activation", made, options.activation())


def _pooling(model: Builder, site: Site) -> Value:
    options, (value, axes) = site.options, _input(model, site)
    size = options.sizes("pool_size", axes)
    stride = options.sizes("strides", axes, None) if options.has("strides") else size
    options.take("strides", None)
    average = site.entry.class_name.startswith("Average")
    value, kernel = _kernel(model, site, model.padded(value), size, stride)

    def make(name: str, ones: tuple[int, ...]) -> spec.Layer:
        return spec.Pooling(
            *(name, "average" if average else "max", (*ones, *size)),
            stride=(*ones, *kernel.stride),
            padding=(*((0, 0) for _ in ones), *kernel.padding),
            over_time=value.timed,
            count_include_pad=not average,
        )

    return _slid(model, site, value, site.name, make, kernel.steps(value.steps))


def _global_pooling(model: Builder, site: Site) -> Value:
    mask = site.value.mask
    value, axes = _input(model, dataclasses.replace(site, inputs=[_any_order(site.value)]))
    value = model.padded(value)
    keep = site.options.flag("keepdims", False)
    average = "Average" in site.entry.class_name
    function = "mean" if average else "max"
    if average and mask and axes == 1:
        weighted = model.arithmetic(f"{site.name}.counted", "multiply", value, mask.value)
        total = model.folded(f"{site.name}.total", "sum", weighted)
        count = model.folded(f"{site.name}.count", "sum", mask.value)
        made = model.arithmetic(site.name, "divide", total, count)
    else:
        made = value
        if over := tuple(range(-axes - 1 + value.timed, -1)):
            name = model.unique(f"{site.name}.positions" if value.timed else site.name)
            model.add(spec.Reduce(name, function, axes=over), value)
            made = value.of_row(name, value.own[-1:])
        if value.timed:
            made = model.folded(site.name, function, made)
    if keep:
        made = model.reshaped(f"{site.name}.axes", made, (*(1,) * axes, *made.own))
    return made


def _any_order(value: Value) -> Value:
    return dataclasses.replace(value, backwards=False)


SLIDING: dict[str, Callable[[Builder, Site], Value]] = {
    **{f"Conv{n}D": _convolution for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _transposed_convolution for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _depthwise_convolution for n in (1, 2)},
    **{f"SeparableConv{n}D": _separable_convolution for n in (1, 2)},
    **{f"{kind}Pooling{n}D": _pooling for n in (1, 2, 3) for kind in ("Max", "Average")},
    **{f"Global{k}Pooling{n}D": _global_pooling for n in (1, 2, 3) for k in ("Max", "Average")},
}
