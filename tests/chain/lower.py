"""A chain of layers as a graph of rows, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import chain
from chain.model import MAX_NESTING
from fastlstm import spec

__all__ = ["lowered", "raised"]

INPUT, OUTPUT = "input", "output"
PLACE = np.int32  # holds the number of any place: of two rows of the most numbers, and less memory


def lowered(layers: Sequence[chain.Layer]) -> spec.Graph:
    """The graph of a chain, of the same tensors under the same names.

    A layer that is several of the new vocabulary has names for them that begin with its own and a
    slash, which no layer of a chain has in its name.

    Parameters
    ----------
    layers : sequence of chain.Layer
        Checked by ``chain.check_layers``.
    """
    first = layers[0]
    size = first.input_size
    # A layer may be called as the input otherwise is.
    name = f"{INPUT}/" if any(layer.name == INPUT for layer in chain.walk(layers)) else INPUT
    given = spec.Input(name, (), tokens=size) if first.takes_tokens else spec.Input(name, (size,))
    made = _Lowering()
    last = made.row_of(layers, name, size)
    return spec.Graph((given,), tuple(made.nodes), {OUTPUT: last})


class _Lowering:
    def __init__(self) -> None:
        self.nodes: list[spec.Node] = []

    def add(self, layer: spec.Layer, *reads: str) -> str:
        self.nodes.append(spec.Node(layer, reads))
        return layer.name

    def row_of(self, layers: Sequence[chain.Layer], at: str, size: int) -> str:
        """Add layers behind the value `at`, of so many features; the name of the last one."""
        for layer in layers:
            at = self.layer(layer, at, size)
            size = layer.output_size
        return at

    def layer(self, layer: chain.Layer, at: str, size: int) -> str:
        if type(layer) in _DIRECT:
            return self.add(_direct(layer), at)
        return _SEVERAL[type(layer)](self, layer, at, size)

    def activation(self, layer: chain.Activation, at: str, size: int) -> str:
        if layer.function in ("softmax", "log_softmax"):
            return self.add(spec.Softmax(layer.name, log=layer.function == "log_softmax"), at)
        function = layer.function.replace("hardtanh(", "clip(")
        return self.add(spec.Activation(layer.name, function), at)

    def prelu(self, layer: chain.PReLU, at: str, size: int) -> str:
        # Where relu(x) is not 0, x is above 0 or NaN.
        name, n = layer.name, layer.num_parameters
        slope = self.constant(name, "weight", n)
        places = np.arange(n, dtype=PLACE).repeat(size // n)
        slope = self.add(spec.Index.of(f"{name}/slope", places), slope)
        above = self.add(spec.Activation(f"{name}/above", "relu"), at)
        below = self.add(spec.Arithmetic(f"{name}/below", "multiply"), slope, at)
        return self.add(spec.Arithmetic(name, "where"), above, at, below)

    def scale(self, layer: chain.Scale, at: str, size: int) -> str:
        name = layer.name
        weight, bias = self.constant(name, "weight", size), self.constant(name, "bias", size)
        scaled = self.add(spec.Arithmetic(f"{name}/scaled", "multiply"), at, weight)
        return self.add(spec.Arithmetic(name, "add"), scaled, bias)

    def constant(self, name: str, suffix: str, size: int) -> str:
        constant = spec.Constant(f"{name}/{suffix}", (size,), weights=f"{name}.{suffix}")
        return self.add(constant)

    def batch_norm(self, layer: chain.BatchNorm1d, at: str, size: int) -> str:
        if layer.width == 1:
            norm = spec.BatchNorm(layer.name, layer.num_features, layer.eps, layer.affine)
            return self.add(norm, at)
        frame = self.frame(f"{layer.name}/frame", (layer.num_features, layer.width), at)
        inner = spec.BatchNorm(
            f"{layer.name}/normalized",
            layer.num_features,
            layer.eps,
            layer.affine,
            weights=layer.name,
        )
        return self.flat(layer.name, size, self.add(inner, frame))

    def frame(self, name: str, shape: tuple[int, int], at: str) -> str:
        return self.add(
            spec.Index.of(name, np.arange(shape[0] * shape[1], dtype=PLACE).reshape(shape)), at
        )

    def flat(self, name: str, size: int, at: str) -> str:
        return self.add(spec.Index.of(name, np.arange(size, dtype=PLACE)), at)

    def frame_convolution(self, layer: chain.FrameConv1d, at: str, size: int) -> str:
        padding = ((layer.padding_left, layer.padding_right),)
        shape = (layer.in_channels, layer.width)
        if layer.padding_mode == "zeros":
            frame = self.frame(f"{layer.name}/frame", shape, at)
        else:
            mode: Any = {"reflect": "reflect", "replicate": "edge"}[layer.padding_mode]
            places = np.arange(size, dtype=PLACE).reshape(shape)
            places = np.pad(places, ((0, 0), *padding), mode=mode)
            frame = self.add(spec.Index.of(f"{layer.name}/frame", places), at)
            del places  # as large as a row
            padding = ((0, 0),)
        inner = _convolution(layer, f"{layer.name}/convolved", padding, weights=layer.name)
        return self.flat(layer.name, layer.output_size, self.add(inner, frame))

    def time_convolution(self, layer: chain.Conv1d, at: str, size: int) -> str:
        padding = ((layer.padding_left, layer.padding_right),)
        return self.add(_convolution(layer, layer.name, padding, over_time=True), at)

    def halves(self, layer: chain.CombineHalves, at: str, size: int) -> str:
        name, shape = layer.name, (2, layer.channels // 2, layer.width)
        places = np.arange(size, dtype=PLACE).reshape(shape)
        if layer.width > 1:
            return self.flat(name, size // 2, self.combined(layer, f"{name}/combined", at, places))
        return self.combined(layer, name, at, places[..., 0])

    def combined(self, layer: chain.CombineHalves, last: str, at: str, places: Any) -> str:
        name = layer.name
        first = self.add(spec.Index.of(f"{name}/first", places[0]), at)
        second = self.add(spec.Index.of(f"{name}/second", places[1]), at)
        if layer.function in ("sum", "product"):
            operation = {"sum": "add", "product": "multiply"}[layer.function]
            return self.add(spec.Arithmetic(last, operation), first, second)
        if layer.function == "average":
            total = self.add(spec.Arithmetic(f"{name}/total", "add"), first, second)
            return self.add(spec.Activation(last, "affine(0.5, 0.0)"), total)
        if layer.function == "glu":
            gate = self.add(spec.Activation(f"{name}/gate", "sigmoid"), second)
            return self.add(spec.Arithmetic(last, "multiply"), first, gate)
        squares = [
            self.add(spec.Activation(f"{name}/square_{i}", "square"), half)
            for i, half in enumerate((first, second))
        ]
        total = self.add(spec.Arithmetic(f"{name}/total", "add"), *squares)
        return self.add(spec.Activation(last, "sqrt"), total)

    def pool(self, layer: chain.Pool, at: str, size: int) -> str:
        if layer.function != "final":
            return self.add(spec.Fold(layer.name, layer.function), at)
        ends = [self.add(spec.Fold(f"{layer.name}/{end}", end), at) for end in ("last", "first")]
        half = size // 2
        places = np.arange(2 * size, dtype=PLACE).reshape(2, 2, half)[[0, 1], [0, 1]].ravel()
        return self.add(spec.Index.of(layer.name, places), *ends)

    def residual(self, layer: chain.Residual, at: str, size: int) -> str:
        last = self.row_of(layer.layers, at, size)
        if layer.combine == "add":
            return self.add(spec.Arithmetic(layer.name, "add"), at, last)
        reads = (at, last) if layer.combine == "input_first" else (last, at)
        return self.add(
            spec.Index.of(layer.name, np.arange(layer.output_size, dtype=PLACE)), *reads
        )


def _direct(layer: chain.Layer) -> spec.Layer:
    """A layer that has the same fields in both vocabularies, but for how states start."""
    options = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    if isinstance(layer, chain.Recurrent):
        options["initial_state"] = "learned" if layer.initial_state else ""
        for name, value in options.items():
            if "activations" in name or "nonlinearity" in name:
                texts = [value] if isinstance(value, str) else value
                new = [text.replace("hardtanh(", "clip(") for text in texts]
                options[name] = new[0] if isinstance(value, str) else tuple(new)
    if isinstance(layer, chain.LayerNorm):
        options["normalized_shape"] = (options.pop("size"),)
    made: spec.Layer = _DIRECT[type(layer)](**options)
    return made


def _convolution(
    layer: chain.Conv1d | chain.FrameConv1d, name: str, padding: Any, **options: Any
) -> spec.Convolution:
    return spec.Convolution(
        name,
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size,),
        layer.groups,
        layer.bias,
        stride=(layer.stride,),
        dilation=(layer.dilation,),
        padding=padding,
        **options,
    )


_DIRECT: dict[type[chain.Layer], type[spec.Layer]] = {
    chain.LSTM: spec.LSTM,
    chain.GRU: spec.GRU,
    chain.RNN: spec.RNN,
    chain.Linear: spec.Linear,
    chain.LayerNorm: spec.LayerNorm,
    chain.Embedding: spec.Embedding,
    chain.OneHot: spec.OneHot,
}
_SEVERAL: dict[type[chain.Layer], Callable[..., str]] = {
    chain.Activation: _Lowering.activation,
    chain.PReLU: _Lowering.prelu,
    chain.Scale: _Lowering.scale,
    chain.BatchNorm1d: _Lowering.batch_norm,
    chain.FrameConv1d: _Lowering.frame_convolution,
    chain.Conv1d: _Lowering.time_convolution,
    chain.CombineHalves: _Lowering.halves,
    chain.Pool: _Lowering.pool,
    chain.Residual: _Lowering.residual,
}


def raised(graph: spec.Graph, facts: spec.Facts | None = None) -> tuple[chain.Layer, ...]:
    """The chain that a graph was lowered from; `facts`, if given, are what its check found out.

    Raises
    ------
    ValueError
        If it is not the graph of a chain, which is all that today's engine runs.
    """
    try:
        layers = _Raising(graph, facts or spec.check(graph)).layers
        chain.check_layers(layers)
        if lowered(layers) == graph:
            return layers
    except (LookupError, AttributeError, TypeError, StopIteration) as error:
        raise ValueError(_NO_CHAIN) from error
    except ValueError as error:
        raise ValueError(f"{_NO_CHAIN} ({error})") from error
    raise ValueError(_NO_CHAIN)


_NO_CHAIN = "the graph is not a chain of layers, and this version of fastlstm runs only those"


class _Raising:
    """A guess at the layers, whose lowering shows whether it was right."""

    def __init__(self, graph: spec.Graph, facts: spec.Facts) -> None:
        self.rows, self.nodes = facts.rows, {node.name: node for node in graph.nodes}
        self.values = [graph.inputs[0].name]  # after each of the layers
        self.places = {self.values[0]: 0}  # of each of those values
        made: list[chain.Layer] = []
        nesting: list[int] = []  # of residual layers, in each of the layers
        for node in graph.nodes:
            layer, reads = node.layer, node.reads
            if "/" in node.name:
                continue  # a part of the layer behind it
            behind = sorted({self.places[value] for value in reads if value in self.places})
            if len(behind) == 2 and len(reads) == 2 and f"{node.name}/scaled" not in reads:
                at = behind[0]
                combine = "add" if isinstance(layer, spec.Arithmetic) else "input_first"
                if combine != "add" and reads[0] != self.values[at]:
                    combine = "output_first"
                # Before there are so many within each other that no stack holds what they call.
                nesting[at:] = [1 + max(nesting[at:], default=0)]
                if nesting[at] > MAX_NESTING:
                    raise ValueError(f"residual layers are nested more than {MAX_NESTING} deep")
                made[at:] = [chain.Residual(node.name, tuple(made[at:]), combine)]
                for value in self.values[at + 1 :]:
                    del self.places[value]
                self.values[at + 1 :] = []
            else:
                made.append(self.layer(node))
                nesting.append(0)
            self.places[node.name] = len(self.values)
            self.values.append(node.name)
        self.layers = tuple(made)

    def part(self, node: spec.Node, name: str) -> Any:
        return self.nodes[f"{node.name}/{name}"]

    def layer(self, node: spec.Node) -> chain.Layer:
        layer, name, reads = node.layer, node.name, [self.rows[read] for read in node.reads]
        for old, new in _DIRECT.items():
            if type(layer) is new:
                return self.direct(old, layer)
        if isinstance(layer, spec.Softmax):
            return chain.Activation(name, "log_softmax" * layer.log or "softmax", reads[0].size)
        if isinstance(layer, spec.Activation) and node.reads[0] in self.places:
            return chain.Activation(name, _hardtanh(layer.function), reads[0].size)
        if isinstance(layer, spec.BatchNorm):
            return chain.BatchNorm1d(name, layer.num_features, layer.eps, layer.affine)
        if isinstance(layer, spec.Convolution):
            return self.convolution(chain.Conv1d, name, layer)
        if isinstance(layer, spec.Fold):
            return chain.Pool(name, layer.function, reads[0].size)
        if f"{name}/slope" in self.nodes:
            slopes = self.rows[f"{name}/weight"].size
            return chain.PReLU(name, self.rows[name].size, slopes)
        if f"{name}/scaled" in self.nodes:
            return chain.Scale(name, self.rows[name].size)
        if f"{name}/normalized" in self.nodes:
            norm = self.part(node, "normalized").layer
            shape = self.rows[f"{name}/frame"].shape
            return chain.BatchNorm1d(name, shape[0], norm.eps, norm.affine, width=shape[1])
        if f"{name}/convolved" in self.nodes:
            return self.frame_convolution(node)
        if f"{name}/last" in self.nodes:
            return chain.Pool(name, "final", self.rows[f"{name}/last"].size)
        return self.halves(node)

    def direct(self, kind: type[chain.Layer], layer: spec.Layer) -> chain.Layer:
        names = {field.name for field in dataclasses.fields(kind)} - {"size"}
        options = {name: getattr(layer, name) for name in names}
        if isinstance(layer, spec.Recurrent):
            options["initial_state"] = layer.initial_state == "learned"
            for name, value in options.items():
                if "activations" in name or "nonlinearity" in name:
                    options[name] = (
                        _hardtanh(value) if isinstance(value, str) else tuple(map(_hardtanh, value))
                    )
        if isinstance(layer, spec.LayerNorm):
            (options["size"],) = layer.normalized_shape
        return kind(**options)

    def convolution(
        self,
        kind: type[chain.Conv1d] | type[chain.FrameConv1d],
        name: str,
        layer: spec.Convolution,
        **options: Any,
    ) -> chain.Layer:
        ((before, behind),) = layer.paddings
        return kind(
            name,
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size[0],
            layer.strides[0],
            layer.dilations[0],
            layer.groups,
            layer.bias,
            **({"padding_left": before, "padding_right": behind} | options),
        )

    def frame_convolution(self, node: spec.Node) -> chain.Layer:
        inner, frame = self.part(node, "convolved").layer, self.part(node, "frame")
        width = self.rows[frame.reads[0]].size // inner.in_channels
        count = frame.layer.shape[-1]
        if count == width:
            return self.convolution(chain.FrameConv1d, node.name, inner, width=width)
        row = _first_places(frame.layer, count)
        # Reflected, a row begins at the place that is as far from its start as there is padding;
        # replicated, its second number stands one behind the padding.
        second = int((row == 1).argmax())
        for mode, name, left in (
            ("reflect", "reflect", int(row[0])),
            ("edge", "replicate", max(second - 1, 0)),
        ):
            padding: Any = (left, count - width - left)
            if min(padding) < 0 or (mode == "reflect" and max(padding) >= width):
                continue
            if np.array_equal(np.pad(np.arange(width, dtype=PLACE), padding, mode=mode), row):  # type: ignore[call-overload]
                return self.convolution(
                    chain.FrameConv1d,
                    node.name,
                    inner,
                    width=width,
                    padding_left=left,
                    padding_right=padding[1],
                    padding_mode=name,
                )
        raise ValueError(_NO_CHAIN)

    def halves(self, node: spec.Node) -> chain.Layer:
        name, shape = node.name, self.rows[f"{node.name}/first"].shape
        if f"{name}/gate" in self.nodes:
            function = "glu"
        elif f"{name}/square_0" in self.nodes:
            function = "magnitude"
        elif f"{name}/total" in self.nodes:
            function = "average"
        else:
            last: Any = self.nodes.get(f"{name}/combined", node).layer
            function = {"add": "sum", "multiply": "product"}[last.operation]
        return chain.CombineHalves(name, function, 2 * shape[0], width=(*shape, 1)[1])


def _hardtanh(text: str) -> str:
    return text.replace("clip(", "hardtanh(")


def _first_places(index: spec.Index, n: int) -> Any:
    """The places of the first n numbers of its output, as an array."""
    parts = []
    for start, stride, count in index.runs:
        parts.append(start + stride * np.arange(min(n, count), dtype=PLACE))
        n -= len(parts[-1])
        if not n:
            break
    return np.concatenate(parts)
