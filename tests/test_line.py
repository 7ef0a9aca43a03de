"""A line of operations: what its axes turn out to be, the layers it makes, and every refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastlstm import chain as spec
from fastlstm.chain import reference
from fastlstm.errors import ConvertError
from fastlstm.sources.line import Line, Made, Value

Array = np.ndarray


def weights(rng: np.random.Generator, *shape: int) -> Array:
    return rng.uniform(-0.7, 0.7, shape)


def run(made: Made, x: Array) -> Array:
    """Of x (T, B, features), or tokens (T, B), in float64."""
    return reference.forward(made.layers, made.tensors, x)[0]


def kinds(made: Made) -> list[str]:
    return [layer.kind for layer in made.layers]


def tensors_of(layer: spec.Recurrent, rng: np.random.Generator) -> dict[str, Array]:
    """By suffix."""
    shapes = layer.tensors().items()
    return {name.partition(".")[2]: weights(rng, *shape) for name, shape in shapes}


def lstm(
    line: Line, x: Value, rng: np.random.Generator, layer: spec.Recurrent, **options: Any
) -> tuple[Any, dict[str, Array]]:
    """A layer on the line, by default over axes (T, B, features), and its tensors by full name."""
    tensors = tensors_of(layer, rng)
    options = {"time_axis": 0, "batch_axis": 1, "name": layer.name} | options
    made = line.recurrent(x, layer, tensors, **options)
    return made, {f"{layer.name}.{suffix}": array for suffix, array in tensors.items()}


def convolve(x: Array, w: Array, padding: tuple[int, int], stride: int = 1) -> Array:
    """x (N, C, L) -> (N, O, L')."""
    x = np.pad(x, ((0, 0), (0, 0), padding))
    starts = range(0, x.shape[-1] - w.shape[-1] + 1, stride)
    windows = [np.einsum("ncl,ocl->no", x[..., s : s + w.shape[-1]], w) for s in starts]
    return np.stack(windows, axis=-1)


class TestConvolutions:
    """Along time, or within the frame of a step, as what reads them shows."""

    def test_to_the_output_it_runs_over_time(self, rng):
        w = weights(rng, 4, 3, 3)
        line = Line()
        made = line.finish(line.conv1d(line.input((None, 3, None)), w, None, name="conv"))
        assert made.layers == (spec.Conv1d("conv", 3, 4, 3, bias=False),)
        x = rng.standard_normal((2, 3, 9))
        expected = convolve(x, w, (0, 0)).transpose(2, 0, 1)
        np.testing.assert_allclose(run(made, x.transpose(2, 0, 1)), expected)

    def test_to_a_recurrent_layer_that_reads_its_channels(self, rng):
        line = Line()
        x = line.conv1d(line.input((None, 3, None)), weights(rng, 4, 3, 3), None, name="conv")
        made, _ = lstm(line, line.transpose(x, (2, 0, 1)), rng, spec.LSTM("lstm", 4, 5))
        assert kinds(line.finish(made.output)) == ["conv1d", "lstm"]

    def test_flattened_it_runs_within_a_frame(self, rng):
        w, v = weights(rng, 4, 1, 5), weights(rng, 2, 12)
        line = Line()
        x = line.unsqueeze(line.input((None, 11)), 1)
        x = line.conv1d(x, w, None, stride=4, padding=(1, 2), name="conv")
        assert x.shape == (None, 4, 3)
        made = line.finish(line.linear(line.flatten(x, 1), v, None, "head"))
        assert made.layers[0] == spec.FrameConv1d(
            "conv", 1, 4, 5, 4, bias=False, width=11, padding_left=1, padding_right=2
        )
        x = rng.standard_normal((6, 11))
        expected = convolve(x[:, None], w, (1, 2), 4).reshape(6, 12) @ v.T
        np.testing.assert_allclose(run(made, x[:, None])[:, 0], expected)

    def test_of_one_position_it_is_squeezed(self, rng):
        line = Line()
        x = line.conv1d(line.input((None, 3, 8)), weights(rng, 4, 3, 8), None, name="conv")
        assert x.shape == (None, 4, 1)
        made = line.finish(line.squeeze(x, -1))
        assert made.layers[0].output_size == 4
        assert kinds(made) == ["frame_conv1d"]

    def test_reflection_is_of_a_frame(self, rng):
        line = Line()
        x = line.pad(line.input((None, 3, 8)), 2, 1, "reflect", "pad")
        made = line.finish(line.conv1d(x, weights(rng, 4, 3, 3), None, name="conv"))
        (layer,) = made.layers
        assert isinstance(layer, spec.FrameConv1d)
        assert (layer.padding_left, layer.padding_right, layer.padding_mode) == (2, 1, "reflect")

    def test_pads_add_up(self, rng):
        line = Line()
        x = line.pad(line.pad(line.input((None, 3, None)), 2, 0, "zeros", "a"), 1, 0, "zeros", "b")
        x = line.conv1d(x, weights(rng, 4, 3, 5), None, padding=(1, 1), name="conv")
        (layer,) = line.finish(x).layers
        assert (layer.padding_left, layer.padding_right) == (4, 1)

    @pytest.mark.parametrize("known", [None, 9])
    def test_what_is_cut_off_behind_was_padding(self, known, rng):
        w = weights(rng, 3, 3, 3)
        line = Line()
        x = line.input((None, 3, known))
        y = line.conv1d(x, w, None, padding=(4, 4), dilation=2, name="conv")
        y = line.slice(line.slice(y, 2, 0, -3), 2, 0, -1)
        made = line.finish(line.add(line.activation(y, "relu", "relu"), x, "add"))
        (block,) = made.layers
        assert isinstance(block, spec.Residual)
        assert block.layers[0] == spec.Conv1d(
            "conv", 3, 3, 3, dilation=2, bias=False, padding_left=4
        )

    def test_what_is_cut_off_before_was_padding(self, rng):
        line = Line()
        y = line.conv1d(
            line.input((None, 3, None)), weights(rng, 3, 3, 3), None, padding=(2, 2), name="conv"
        )
        (layer,) = line.finish(line.pad(y, -2, -1, "zeros", "crop")).layers
        assert (layer.padding_left, layer.padding_right) == (0, 1)

    def test_frames_along_a_sequence(self, rng):
        """Time and batch merged for a convolution within each frame, and taken apart again."""
        w = weights(rng, 4, 1, 5)
        line = Line()
        x = line.input((None, None, 20))
        T, B = x.size(0), x.size(1)
        y = line.conv1d(line.reshape(x, [T * B, 1, 20]), w, None, stride=5, name="conv")
        y = line.reshape(y, [T, B, -1])
        made, tensors = lstm(line, y, rng, spec.LSTM("lstm", 16, 3))
        made = line.finish(made.output)
        assert kinds(made) == ["frame_conv1d", "lstm"]
        x = rng.standard_normal((7, 2, 20))
        frames = convolve(x.reshape(14, 1, 20), w, (0, 0), 5).reshape(7, 2, 16)
        expected, _ = reference.forward(made.layers[1:], tensors, frames)
        np.testing.assert_allclose(run(made, x), expected)

    def test_one_frame_a_step_or_a_sequence_of_them(self, rng):
        """The same layers of a graph that runs one step and one that runs them all."""
        w, tensors = weights(rng, 4, 1, 8), tensors_of(spec.LSTM("_", 4, 3), rng)

        def layers(sequence: bool) -> Made:
            line = Line()
            state = line.state_input((2, None, 3), "state")
            x = line.unsqueeze(line.input((None, 8)), 1)
            x = line.squeeze(line.conv1d(x, w, None, name="conv"), 2)
            x = line.unsqueeze(x, 1 if sequence else 0)
            made = line.recurrent(
                x,
                spec.LSTM("_", 4, 3),
                tensors,
                time_axis=0,
                batch_axis=1,
                name="lstm",
                h_0=line.slice(state, 0, 0, 1),
                c_0=line.slice(state, 0, 1, 2),
            )
            states = line.concat([made.h_n, made.c_n], 0, "states")
            return line.finish(
                line.squeeze(made.output, 1 if sequence else 0), state_outputs={"s": states}
            )

        one, many = layers(False), layers(True)
        assert one.layers == many.layers
        assert kinds(one) == ["frame_conv1d", "lstm"]


class TestRecurrent:
    @pytest.mark.parametrize("cls", [spec.LSTM, spec.GRU, spec.RNN])
    def test_in_any_order_of_axes(self, cls, rng):
        tensors = tensors_of(cls("_", 3, 4, 2), rng)
        made = []
        for order in ((0, 1, 2), (1, 0, 2)):
            line = Line()
            x = line.transpose(line.input((None, None, 3)), order)
            output = line.recurrent(
                x, cls("_", 3, 4, 2), tensors, time_axis=order[0], batch_axis=order[1], name="a"
            ).output
            made.append(line.finish(output))
        assert made[0].layers == made[1].layers == (cls("a", 3, 4, 2),)

    def test_without_a_batch(self, rng):
        line = Line()
        made, _ = lstm(line, line.input((None, 3)), rng, spec.GRU("gru", 3, 4), batch_axis=None)
        assert made.output.shape == (None, 4)
        assert made.h_n.shape == (1, 4)
        assert kinds(line.finish(line.squeeze(made.h_n, 0))) == ["gru", "pool"]

    def test_features_in_another_order(self, rng):
        """A transpose within a frame moves the columns of the weights."""
        line = Line()
        x = line.input((None, None, 2, 3), time=0)
        x = line.flatten(line.transpose(x, (0, 1, 3, 2)), 2)
        made, tensors = lstm(line, x, rng, spec.LSTM("lstm", 6, 4, bidirectional=True))
        made = line.finish(line.linear(made.output, weights(rng, 2, 8), None, "head"))
        x = rng.standard_normal((5, 2, 2, 3))
        swapped = x.transpose(0, 1, 3, 2).reshape(5, 2, 6)
        expected, _ = reference.forward(made.layers[:1], tensors, swapped)
        expected = expected @ made.tensors["head.weight"].T
        np.testing.assert_allclose(run(made, x.reshape(5, 2, 6)), expected)

    @pytest.mark.parametrize("how", ["select", "slice", "view", "both"])
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("depth", [1, 3])
    def test_last_states_as_features(self, depth, bidirectional, how, rng):
        D = 1 + bidirectional
        layer = spec.LSTM("lstm", 3, 4, depth, bidirectional=bidirectional)
        line = Line()
        made, _ = lstm(line, line.input((None, None, 3)), rng, layer)
        h_n = made.h_n
        if how == "slice":
            last = line.slice(h_n, 0, -D, None)
            rows = [line.select(last, 0, d) for d in range(D)]
        elif how == "view":
            last = line.reshape(h_n, [depth, D, h_n.size(1), 4])
            last = line.select(last, 0, depth - 1)
            rows = [line.select(last, 0, d) for d in range(D)]
        else:
            rows = [line.select(h_n, 0, d - D) for d in range(D)]
        if how == "both" and D == 2:
            stacked = line.slice(h_n, 0, -2, None)
            y = line.reshape(line.transpose(stacked, (1, 0, 2)), [h_n.size(1), 8])
        else:
            y = line.concat(rows, 1, "cat")
        assert y.shape == (None, 4 * D)
        made = line.finish(y)
        assert made.layers[1] == spec.Pool("lstm.h_n", "final" if D == 2 else "last", 4 * D)

    def test_last_row_of_two_directions(self, rng):
        line = Line()
        made, _ = lstm(
            line, line.input((None, None, 3)), rng, spec.GRU("gru", 3, 4, bidirectional=True)
        )
        assert line.finish(line.select(made.output, 0, -1, "last")).layers[1] == spec.Pool(
            "last", "last", 8
        )

    def test_ends_of_two_directions(self, rng):
        line = Line()
        made, _ = lstm(
            line, line.input((None, None, 3)), rng, spec.GRU("gru", 3, 4, bidirectional=True)
        )
        last, first = line.select(made.output, 0, -1), line.select(made.output, 0, 0)
        y = line.concat([line.slice(last, 1, 0, 4), line.slice(first, 1, 4, 8)], 1, "ends")
        assert line.finish(y).layers[1] == spec.Pool("ends", "final", 8)

    @pytest.mark.parametrize("function", ["sum", "product", "average"])
    @pytest.mark.parametrize("viewed", [False, True])
    def test_directions_merged(self, function, viewed, rng):
        line = Line()
        made, _ = lstm(
            line, line.input((None, None, 3)), rng, spec.GRU("gru", 3, 4, bidirectional=True)
        )
        y = made.output
        if viewed and function != "product":
            y = line.reshape(y, [y.size(0), y.size(1), 2, 4])
            merge = line.sum if function == "sum" else line.mean
            y = merge(y, 2, False, "merge")
        else:
            a, b = line.slice(y, 2, 0, 4), line.slice(y, 2, 4, 8)
            y = line.mul(a, b, "merge") if function == "product" else line.add(b, a, "merge")
            y = line.scale(y, 0.5, 0.0, "half") if function == "average" else y
        made = line.finish(y)
        x = rng.standard_normal((5, 2, 3))
        both = reference.forward(
            made.layers[:1], {n: made.tensors[n] for n in made.layers[0].tensors()}, x
        )[0]
        a, b = both[..., :4], both[..., 4:]
        expected = {"sum": a + b, "product": a * b, "average": (a + b) / 2}[function]
        np.testing.assert_allclose(run(made, x), expected)

    def test_learned_start(self, rng):
        line = Line()
        start = line.expand(line.constant(np.full((1, 1, 4), 0.5)), (1, None, 4), "expand")
        made, _ = lstm(line, line.input((None, None, 3)), rng, spec.LSTM("a", 3, 4), h_0=start)
        made = line.finish(made.output)
        assert made.layers[0].initial_state
        assert (made.tensors["a.h_0"] == 0.5).all()
        assert (made.tensors["a.c_0"] == 0).all()

    def test_zeros_are_where_it_starts_anyway(self, rng):
        line = Line()
        x = line.input((None, None, 3))
        zeros = line.zeros((1, x.size(1), 4))
        made, _ = lstm(line, x, rng, spec.LSTM("a", 3, 4), h_0=zeros, c_0=zeros)
        assert not line.finish(made.output).layers[0].initial_state

    def test_the_state_between_steps_can_be_read(self, rng):
        """Of one step, the last state is the output."""
        line = Line()
        state = line.state_input((1, None, 4), "h")
        made, _ = lstm(
            line, line.unsqueeze(line.input((None, 3)), 0), rng, spec.GRU("gru", 3, 4), h_0=state
        )
        made = line.finish(line.linear(made.h_n, weights(rng, 2, 4), None, "head"))
        assert kinds(made) == ["gru", "linear"]

    def test_lengths(self, rng):
        line = Line()
        lengths = line.lengths_input((None,))
        made, _ = lstm(
            line, line.input((None, None, 3)), rng, spec.LSTM("lstm", 3, 4), lengths=lengths
        )
        assert kinds(line.finish(line.select(made.h_n, 0, -1))) == ["lstm", "pool"]


class TestFormulas:
    """Layers that are written as several operations."""

    def features(self, size: int = 6) -> tuple[Line, Value]:
        line = Line()
        return line, line.input((None, None, size))

    def only(self, line: Line, y: Value, *layers: spec.Layer) -> None:
        assert line.finish(y).layers == layers

    def test_silu(self):
        line, x = self.features()
        self.only(
            line,
            line.mul(line.activation(x, "sigmoid", "s"), x, "m"),
            spec.Activation("m", "silu", 6),
        )

    def test_glu(self):
        line, x = self.features()
        a, b = line.slice(x, 2, 0, 3), line.slice(x, 2, 3, 6)
        y = line.mul(a, line.activation(b, "sigmoid", "s"), "glu")
        self.only(line, y, spec.CombineHalves("glu", "glu", 6))

    def test_softsign(self):
        line, x = self.features()
        y = line.div(x, line.scale(line.activation(x, "abs", "a"), 1, 1, "b"), "d")
        self.only(line, y, spec.Activation("d", "softsign", 6))

    @pytest.mark.parametrize("factor", ["last", "first", "within"])
    @pytest.mark.parametrize("scaled", [False, True])
    def test_gelu(self, factor, scaled):
        line, x = self.features()
        if scaled:
            x = line.scale(x, np.float32(3), np.float32(0.25), "scale")
        e = line.scale(x, np.float32(1 / math.sqrt(2)), 0, "d")
        e = line.scale(line.activation(e, "erf", "erf"), 1, 1, "plus")
        if factor == "last":
            y = line.scale(line.mul(x, e, "gelu"), 0.5, 0, "half")
        elif factor == "first":
            y = line.mul(line.scale(x, 0.5, 0, "half"), e, "gelu")
        else:
            y = line.mul(line.scale(e, 0.5, 0, "half"), x, "gelu")
        made = line.finish(y)
        assert made.layers[-1] == spec.Activation("gelu", "gelu", 6)
        assert kinds(made)[:-1] == ["scale"] * scaled

    @pytest.mark.parametrize("scaled", [False, True])
    def test_gelu_by_tanh(self, scaled):
        line, x = self.features()
        if scaled:
            x = line.scale(x, np.float32(3), np.float32(0.25), "scale")
        cube = line.mul(x, line.mul(x, x, "xx"), "xxx")
        inner = line.add(x, line.scale(cube, 0.044715, 0, "k"), "sum")
        t = line.activation(line.scale(inner, math.sqrt(2 / math.pi), 0, "b"), "tanh", "tanh")
        y = line.mul(line.scale(x, 0.5, 0, "half"), line.scale(t, 1, 1, "plus"), "gelu")
        made = line.finish(y)
        assert made.layers[-1] == spec.Activation("gelu", "gelu_tanh", 6)
        assert kinds(made)[:-1] == ["scale"] * scaled

    @pytest.mark.parametrize("how", ["halves", "squares", "axis"])
    def test_magnitude(self, how):
        line, x = self.features()
        if how == "axis":
            x = line.reshape(x, [x.size(0), x.size(1), 2, 3])
            y = line.sqrt(line.sum(line.power(x, 2, "p"), 2, False, "s"), "root")
            self.only(line, y, spec.CombineHalves("root", "magnitude", 2, width=3))
            return
        a, b = line.slice(x, 2, 0, 3), line.slice(x, 2, 3, 6)
        if how == "halves":
            a, b = line.power(a, 2, "p"), line.power(b, 2, "q")
        else:
            a, b = line.mul(a, a, "p"), line.mul(b, b, "q")
        y = line.power(line.add(a, b, "s"), 0.5, "root")
        self.only(line, y, spec.CombineHalves("root", "magnitude", 6))

    def test_layer_norm(self, rng):
        line, x = self.features()
        centred = line.sub(x, line.mean(x, 2, True, "m"), "c")
        variance = line.mean(line.power(centred, 2, "p"), -1, True, "v")
        y = line.div(centred, line.sqrt(line.scale(variance, 1, 1e-3, "e"), "r"), "norm")
        w, b = weights(rng, 6), weights(rng, 6)
        made = line.finish(line.scale(line.scale(y, w, 0, "w"), 1, b, "b"))
        assert made.layers == (spec.LayerNorm("norm", 6, 1e-3),)
        assert np.array_equal(made.tensors["norm.weight"], w)
        assert np.array_equal(made.tensors["norm.bias"], b)

    def test_scales_are_composed(self, rng):
        line, x = self.features()
        mean, deviation = weights(rng, 6), rng.uniform(1, 2, 6)
        y = line.div(line.sub(x, line.constant(mean), "s"), line.constant(deviation), "d")
        made = line.finish(y)
        assert kinds(made) == ["scale"]
        data = rng.standard_normal((4, 2, 6))
        np.testing.assert_allclose(run(made, data), (data - mean) / deviation)

    def test_a_bias_behind_a_linear_layer_is_its_own(self, rng):
        line, x = self.features()
        b = weights(rng, 2)
        made = line.finish(line.scale(line.linear(x, weights(rng, 2, 6), None, "fc"), 1, b, "b"))
        assert made.layers == (spec.Linear("fc", 6, 2),)
        assert np.array_equal(made.tensors["fc.bias"], b)

    def test_blocks(self, rng):
        line, x = self.features(4)
        y = line.linear(x, weights(rng, 4, 4), None, "a")
        y = line.add(line.linear(y, weights(rng, 4, 4), None, "b"), y, "inner")
        made = line.finish(line.concat([y, x], 2, "outer"))
        (outer,) = made.layers
        assert outer.combine == "output_first"
        assert [layer.name for layer in outer.layers] == ["a", "inner"]
        assert made.report[0] == (
            "layer 'outer': residual([linear(in_features=4, out_features=4, bias=False), "
            "residual([linear(in_features=4, out_features=4, bias=False)], combine=add)], "
            "combine=output_first), from 'outer'"
        )

    def test_names_are_legal_and_unique(self):
        line, x = self.features()
        for name in ("/a b/é", "/a b/é", "..."):
            x = line.activation(x, "relu", name)
        made = line.finish(x)
        assert [layer.name for layer in made.layers] == ["_a_b__", "_a_b___2", "layer"]
        assert made.became == {"/a b/é": "_a_b___2", "...": "layer"}


# --- refusals: what is done to an input of axes (T, B, 6), and what is said


def gru(line: Line, x: Value, size: int = 6, **options: Any) -> Any:
    layer = spec.GRU("_", size, 4, **options.pop("layer", {}))
    tensors = tensors_of(layer, np.random.default_rng(1))
    return line.recurrent(
        x, layer, tensors, **({"time_axis": 0, "batch_axis": 1, "name": "gru"} | options)
    )


def fc(line: Line, x: Value, size: int = 6, out: int = 6, name: str = "fc") -> Value:
    return line.linear(x, np.ones((out, size)), None, name)


def conv(line: Line, x: Value, **options: Any) -> Value:
    return line.conv1d(x, np.ones((4, 6, 3)), None, **({"name": "conv"} | options))


def turned(line: Line, x: Value) -> Value:
    return line.transpose(x, (1, 2, 0))


REFUSALS: dict[str, tuple[Callable[[Line, Value], Any], str]] = {
    "second input": (
        lambda line, x: line.input((3,)),
        "there are two inputs of data; expected one, and states",
    ),
    "features of a linear layer": (
        lambda line, x: fc(line, x, 5),
        "'fc' takes 5 features; the array of shape (None, None, 6) it is given has 6 along axis -1",
    ),
    "weight of a linear layer": (
        lambda line, x: line.linear(x, np.ones(6), None, "fc"),
        "'fc' has a weight of shape (6,); expected 2 axes, none of size 0",
    ),
    "features as time": (
        lambda line, x: gru(line, turned(line, fc(line, x))),
        "'gru' takes an axis as time or batch, but it can only be taken as features; expected each "
        "axis to be one of time, batch and features throughout",
    ),
    "time as features": (
        lambda line, x: fc(line, line.flatten(gru(line, x).output, 1), 4),
        "'flatten' takes an axis as features, but 'gru' takes it as batch; expected each axis to "
        "be one of time, batch and features throughout",
    ),
    "two times": (
        lambda line, x: gru(line, gru(line, x).output, 4, time_axis=1, batch_axis=0, name="two"),
        "'two' takes an axis as time, but 'gru' takes it as batch; expected each axis to be one of "
        "time, batch and features throughout",
    ),
    "tokens": (
        lambda line, x: line.embedding(x, np.ones((4, 2)), "embedding"),
        "'embedding' looks up what is no input of integers; expected the tokens that the model "
        "takes",
    ),
    "axes of a convolution": (
        lambda line, x: conv(line, line.unsqueeze(x, 0)),
        "'conv' is given an array of shape (1, None, None, 6); expected batch, channels and length",
    ),
    "channels of a convolution": (
        lambda line, x: conv(line, x),
        "'conv' takes 6 channels; the array of shape (None, None, 6) it is given has None of them "
        "along axis 1",
    ),
    "a kernel too long": (
        lambda line, x: line.conv1d(
            line.unsqueeze(line.linear(x, np.ones((2, 6)), None, "fc"), 2),
            np.ones((1, 1, 3)),
            None,
            name="conv",
        ),
        "'conv' is given an array of shape (None, None, 1, 2); expected batch, channels and length",
    ),
    "negative padding": (
        lambda line, x: conv(line, turned(line, x), padding=(-1, 0)),
        "'conv' has padding (-1, 0); expected at least 0",
    ),
    "padding twice": (
        lambda line, x: conv(
            line,
            line.pad(turned(line, x), 1, 1, "reflect", "pad"),
            padding=(1, 1),
        ),
        "'conv' pads by 'zeros' what 'pad' pads by 'reflect'; expected one of them",
    ),
    "padding of padding": (
        lambda line, x: line.pad(
            line.pad(turned(line, x), 1, 1, "zeros", "a"), 1, 1, "reflect", "b"
        ),
        "'b' pads what 'a' has padded; expected one of them",
    ),
    "mode of padding": (
        lambda line, x: line.pad(x, 1, 1, "wrap", "pad"),
        "'pad' pads by 'wrap'; expected zeros, reflect or replicate",
    ),
    "padding alone": (
        lambda line, x: line.pad(turned(line, x), 1, 1, "zeros", "pad"),
        "'pad' is no step of its own; expected a convolution right behind it",
    ),
    "reflection over time": (
        lambda line, x: conv(
            line, line.pad(line.transpose(gru(line, x).output, (1, 2, 0)), 1, 1, "reflect", "pad")
        ),
        "'pad' takes an axis as features, but 'gru' takes it as time; expected each axis to be one "
        "of time, batch and features throughout",
    ),
    "halves of time": (
        lambda line, x: line.slice(gru(line, x).output, 0, 2, None, 1, "cut"),
        "'cut' takes [2::1] along axis 0 of an array of shape (None, None, 4); expected the last "
        "step, one half of the channels, or all but what the padding of a convolution added",
    ),
    "some features": (
        lambda line, x: line.slice(fc(line, x), 2, 1, 3, 1, "cut"),
        "'cut' takes [1:3:1] along axis 2 of an array of shape (None, None, 6); expected the last "
        "step, one half of the channels, or all but what the padding of a convolution added",
    ),
    "every other step": (
        lambda line, x: line.slice(x, 0, None, None, 2, "cut"),
        "'cut' takes [::2] along axis 0 of an array of shape (None, None, 6); expected the last "
        "step, one half of the channels, or all but what the padding of a convolution added",
    ),
    "half alone": (
        lambda line, x: fc(line, line.slice(fc(line, x), 2, 0, 3, 1, "cut"), 3),
        "'cut' is no step of its own; expected both halves to be combined: added, multiplied, or "
        "as a magnitude",
    ),
    "first step": (
        lambda line, x: line.select(gru(line, x).output, 0, 0, "first"),
        "'first' is no step of its own; expected the backward half of it, beside the last row's "
        "forward half",
    ),
    "halves within a frame": (
        lambda line, x: _inner_halves(line, x),
        "'add' combines two halves of the inner axis of a frame; expected those of its channels",
    ),
    "other axis": (
        lambda line, x: line.select(x, 3, 0, "select"),
        "'select' works on axis 3 of an array of 3; expected one it has",
    ),
    "order of axes": (
        lambda line, x: line.transpose(x, (0, 1, 1), "turn"),
        "'turn' orders axes as (0, 1, 1); expected each of 3 once",
    ),
    "squeeze": (
        lambda line, x: line.squeeze(x, 2, "squeeze"),
        "'squeeze' squeezes axis 2 of an array of shape (None, None, 6); expected an axis of "
        "size 1",
    ),
    "unsqueeze": (
        lambda line, x: line.unsqueeze(x, 5, "unsqueeze"),
        "'unsqueeze' adds axis 5 to an array of 3; expected it among these",
    ),
    "expand": (
        lambda line, x: line.expand(x, (None, None, 7), "expand"),
        "'expand' expands an array of shape (None, None, 6); expected only a constant to be "
        "repeated",
    ),
    "reshape": (
        lambda line, x: line.reshape(x, [x.size(0), x.size(1), 5], "view"),
        "'view' reshapes (?, ?, 6) to (?, ?, 5); expected axes to be merged or taken apart whole",
    ),
    "reshape of two": (
        lambda line, x: line.reshape(x, [-1, -1, 6], "view"),
        "'view' reshapes (?, ?, 6) to (?, ?, 6); expected axes to be merged or taken apart whole",
    ),
    "reshape across": (
        lambda line, x: line.reshape(
            line.reshape(x, [x.size(0), x.size(1), 2, 3]), [-1, 3, 2], "v"
        ),
        "'v' reshapes (?, ?, 2, 3) to (?, 3, 2); expected axes to be merged or taken apart whole",
    ),
    "sum of sums": (
        lambda line, x: line.add(fc(line, x, name="a"), fc(line, x, name="b"), "add"),
        "'add' adds what 'a' and 'b' give; expected one of them to be the input of a block that "
        "ends with the other",
    ),
    "twice the same": (
        lambda line, x: line.add(x, x, "add"),
        "'add' adds what 'the input' and 'the input' give; expected one of them to be the input of "
        "a block that ends with the other",
    ),
    "three concatenated": (
        lambda line, x: line.concat([x, fc(line, x), x], 2, "cat"),
        "'cat' concatenates 3 arrays; expected two, a block's input and its output",
    ),
    "concatenated in time": (
        lambda line, x: (
            gru(line, line.concat([x, line.activation(x, "relu", "r")], 0, "cat")).output
        ),
        "'cat' concatenates along time or batch; expected features",
    ),
    "sum of shapes": (
        lambda line, x: line.add(x, fc(line, x, out=4), "add"),
        "'add' joins arrays of shapes (None, None, 6) and (None, None, 4); expected equal ones, of "
        "the same steps",
    ),
    "sum of other steps": (
        lambda line, x: line.add(x, line.transpose(x, (1, 0, 2)), "add"),
        "'add' joins arrays of shapes (None, None, 6) and (None, None, 6); expected equal ones, of "
        "the same steps",
    ),
    "concatenation of other steps": (
        lambda line, x: line.concat([x, line.transpose(fc(line, x), (1, 0, 2))], 2, "cat"),
        "'cat' joins arrays of shapes (None, None, 6) and (None, None, 6); expected equal ones, of "
        "the same steps, but for axis 2",
    ),
    "overlapping blocks": (
        lambda line, x: _overlapping(line, x),
        "a block begins within another and ends behind it; expected one within the other, or one "
        "behind the other",
    ),
    "blocks too deep": (
        lambda line, x: _nested(line, x, 6),
        "'add2' lies within 4 other blocks; expected fewer",
    ),
    "difference": (
        lambda line, x: line.sub(x, fc(line, x), "sub"),
        "'sub' subtracts two computed arrays; expected a constant",
    ),
    "product": (
        lambda line, x: line.mul(x, fc(line, x), "mul"),
        "'mul' multiplies two computed arrays; expected a constant, two halves of the channels, or "
        "a function such as silu, gelu or glu",
    ),
    "quotient": (
        lambda line, x: line.div(x, fc(line, x), "div"),
        "'div' divides by a computed array; expected a constant",
    ),
    "division by zero": (
        lambda line, x: line.div(x, line.constant(np.zeros(6)), "div"),
        "'div' divides by 0; expected another constant",
    ),
    "exponent": (
        lambda line, x: line.power(x, 1.5, "pow"),
        "'pow' has the exponent 1.5; expected 2, or 0.5",
    ),
    "square alone": (
        lambda line, x: line.power(x, 2, "pow"),
        "'pow' is no step of its own; expected the root of the squares of two halves, added",
    ),
    "root": (
        lambda line, x: line.sqrt(x, "root"),
        "'root' takes a root; expected the root of the squares of two halves, added",
    ),
    "erf": (
        lambda line, x: line.activation(x, "erf", "erf"),
        "'erf' is no step of its own; expected 0.5 * x * (1 + erf(x / sqrt(2)))",
    ),
    "sum over features": (
        lambda line, x: line.sum(fc(line, x), 2, False, "sum"),
        "'sum' sums along axis 2 of an array of shape (None, None, 6); expected an axis of size 2, "
        "that of two halves",
    ),
    "mean over features": (
        lambda line, x: line.mean(fc(line, x), 2, True, "mean"),
        "'mean' is no step of its own; expected a layer normalisation: (x - mean) / sqrt(mean of "
        "squares + eps)",
    ),
    "function": (
        lambda line, x: line.activation(x, "mish", "act"),
        "'act' makes no layer: layer 'act': function is 'mish'; expected one of relu, tanh, "
        "sigmoid, softsign, softplus, silu, gelu, gelu_tanh, affine, elu, leaky_relu, "
        "thresholded_relu, hard_sigmoid, scaled_tanh, hardtanh, softmax, log_softmax",
    ),
    "constant of another shape": (
        lambda line, x: line.scale(x, np.ones(5), 0.0, "scale"),
        "'scale' combines a constant of shape (5,) with an array of shape (None, None, 6); "
        "expected one that can be repeated to that shape",
    ),
    "constant over time": (
        lambda line, x: line.add(
            gru(line, x).output, line.constant(np.ones((7, 1, 4))), "positions"
        ),
        "'positions' combines a constant of shape (7, 1, 4) with an array of shape (None, None, "
        "4); expected one that can be repeated to that shape",
    ),
    "channels of a normalisation": (
        lambda line, x: line.batch_norm(x, np.ones(3), np.ones(3), None, None, 1e-5, "bn"),
        "'bn' has numbers for 3 channels; the array of shape (None, None, 6) it is given has None "
        "on axis 1",
    ),
    "tensors of a normalisation": (
        lambda line, x: line.batch_norm(x, np.ones(3), np.ones(2), None, None, 1e-5, "bn"),
        "'bn' has tensors of shapes (3,) and (2,); expected one number a channel",
    ),
    "shape of a normalisation": (
        lambda line, x: line.layer_norm(x, (5,), None, None, 1e-5, "ln"),
        "'ln' normalises (5,), the array it is given has shape (None, None, 6); expected its last "
        "axes",
    ),
    "numbers for each position": (
        lambda line, x: line.prelu(
            line.reshape(x, [x.size(0), x.size(1), 2, 3]), np.ones(3), "prelu", 3
        ),
        "'prelu' has a number for each position within a frame; expected one for each of its "
        "channels",
    ),
    "softmax over a part": (
        lambda line, x: line.activation(
            line.reshape(fc(line, x), [x.size(0), x.size(1), 2, 3]), "softmax", "softmax", 3
        ),
        "'softmax' reads features of shape (3,); expected it to read all features of a step, which "
        "are of shape (2, 3)",
    ),
    "turned frame": (
        lambda line, x: line.transpose(
            line.reshape(fc(line, x), [x.size(0), x.size(1), 2, 3]), (0, 1, 3, 2)
        ),
        "'the output' follows a transpose that changes the order of a step's features; expected "
        "that only before a linear or recurrent layer",
    ),
    "axes of a recurrent layer": (
        lambda line, x: gru(line, line.flatten(x, 0, 1)),
        "'gru' is given an array of shape (None, 6); expected time, features and batch",
    ),
    "merged time": (
        lambda line, x: gru(line, line.unsqueeze(line.flatten(x, 0, 1), 1)),
        "'gru' takes as time an axis that was merged of 2; expected one of them",
    ),
    "single step": (
        lambda line, x: gru(line, line.unsqueeze(line.flatten(x, 0, 1), 0)),
        "'gru' takes as batch an axis that was merged of 2; expected one of them",
    ),
    "single step without states": (
        lambda line, x: gru(line, line.unsqueeze(line.select(x, 0, -1), 0)),
        "'gru' runs over a single step, not over time, and its state is no input; expected a time "
        "axis, or states as inputs and outputs",
    ),
    "single step backwards": (
        lambda line, x: gru(
            line,
            line.unsqueeze(line.select(x, 0, -1), 0),
            h_0=line.state_input((1, None, 4)),
            layer={"reverse": True},
        ),
        "'gru' runs backwards over a single step; expected only forwards, as a stream runs",
    ),
    "cell state as features": (
        lambda line, x: line.select(lstm_of(line, x).c_n, 0, -1),
        "the cell state of 'lstm' is passed on as features; expected its h alone",
    ),
    "states of all layers": (
        lambda line, x: line.flatten(
            line.transpose(gru(line, x, layer={"num_layers": 2}).h_n, (1, 0, 2)), 1
        ),
        "'gru.h_n' is no step of its own; expected the state of its last layer alone, such as "
        "h_n[-1]",
    ),
    "state of the first layer": (
        lambda line, x: line.select(gru(line, x, layer={"num_layers": 2}).h_n, 0, 0, "first"),
        "'first' takes [0:1:1] along axis 0 of an array of shape (2, None, 4); expected the last "
        "step, one half of the channels, or all but what the padding of a convolution added",
    ),
    "last state of a reversed layer": (
        lambda line, x: gru(line, x, layer={"reverse": True}).h_n,
        "the last state of 'gru', which runs backwards, is that of the first step; expected its "
        "output, or a layer that runs forwards",
    ),
    "computed start": (
        lambda line, x: gru(
            line, x, h_0=line.unsqueeze(line.select(fc(line, x, out=4), 0, -1, "last"), 0)
        ),
        "'gru' starts from h_0 that 'last' computes; expected zeros, a constant or an input",
    ),
    "start of a cell": (
        lambda line, x: gru(line, x, c_0=line.zeros((1, None, 4))),
        "'gru' has no cell state; expected no c_0",
    ),
    "shared start": (
        lambda line, x: _shared_start(line, x),
        "'two.h' and 'gru.h' start from the same 'h'; expected a state for each",
    ),
    "state as features": (
        lambda line, x: line.state_input((1, None, 4), "h"),
        "'h' is no step of its own; expected a recurrent layer to start from it",
    ),
    "lengths that are none": (
        lambda line, x: gru(line, x, lengths=x),
        "'gru' computes its lengths; expected an input of them",
    ),
    "lengths of one": (
        lambda line, x: (
            gru(
                line, gru(line, x, lengths=line.lengths_input((None,))).output, 4, name="two"
            ).output
        ),
        "'gru', 'two' are given different lengths; expected all the same",
    ),
    "lengths and last row": (
        lambda line, x: line.select(
            gru(line, x, lengths=line.lengths_input((None,))).output, 0, -1, "last"
        ),
        "layer 'last' (pool) goes over what lies behind the lengths of the rows; expected "
        "recurrent layers, and their last state, alone",
    ),
    "nothing": (
        lambda line, x: x,
        "the output is the input itself; expected a layer between them",
    ),
    "constant output": (
        lambda line, x: line.constant(np.ones(3)),
        "'a constant' is not made of the input; expected one line from input to output",
    ),
    "layers that do not fit": (
        lambda line, x: gru(line, line.unsqueeze(line.select(gru(line, x).output, 0, -1), 1)),
        "'gru' takes 6 features; the array of shape (None, 1, 4) it is given has 4 along axis 2",
    ),
    "mean within a block": (
        lambda line, x: line.add(x, line.mean(gru_of_six(line, x), 0, True, "mean"), "add"),
        "'add' joins arrays of shapes (None, None, 6) and (1, None, 6); expected equal ones, of "
        "the same steps",
    ),
}


def lstm_of(line: Line, x: Value) -> Any:
    layer = spec.LSTM("lstm", 6, 4)
    tensors = tensors_of(layer, np.random.default_rng(1))
    return line.recurrent(x, layer, tensors, time_axis=0, batch_axis=1, name="lstm")


def gru_of_six(line: Line, x: Value) -> Value:
    layer = spec.GRU("gru", 6, 6)
    tensors = tensors_of(layer, np.random.default_rng(1))
    return line.recurrent(x, layer, tensors, time_axis=0, batch_axis=1, name="gru").output


def _inner_halves(line: Line, x: Value) -> Value:
    y = line.reshape(fc(line, x), [x.size(0), x.size(1), 3, 2])
    return line.add(line.slice(y, 3, 0, 1), line.slice(y, 3, 1, 2), "add")


def _overlapping(line: Line, x: Value) -> Value:
    a = fc(line, x, name="a")
    b = line.add(fc(line, a, name="b"), x, "one")
    return line.add(fc(line, b, name="c"), a, "two")


def _nested(line: Line, x: Value, depth: int) -> Value:
    inside = fc(line, x) if depth == 0 else _nested(line, fc(line, x, name=f"fc{depth}"), depth - 1)
    return line.add(inside, x, f"add{depth}")


def _shared_start(line: Line, x: Value) -> Value:
    state = line.state_input((1, None, 4), "h")
    y = gru(line, x, h_0=state).output
    return gru(line, y, 4, h_0=state, name="two").output


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    act, message = REFUSALS[case]
    line = Line()
    with pytest.raises(ConvertError) as caught:
        line.finish(act(line, line.input((None, None, 6))))
    assert str(caught.value) == message


class TestOtherRefusals:
    def test_no_input(self):
        line = Line()
        with pytest.raises(ConvertError) as caught:
            line.finish(line.zeros((3,)))
        assert str(caught.value) == "there is no input; expected one"

    def test_states_that_are_none(self, rng):
        line = Line()
        x = fc(line, line.input((None, None, 6)))
        with pytest.raises(ConvertError) as caught:
            line.finish(x, state_outputs={"other": x})
        assert str(caught.value) == (
            "output 'other' is computed by 'fc'; expected one output beside the last states of "
            "recurrent layers"
        )

    def test_too_many_axes(self, rng):
        line = Line()
        with pytest.raises(ConvertError) as caught:
            line.finish(fc(line, line.input((None, None, None, 6))))
        assert str(caught.value) == (
            "the input of shape (None, None, None, 6) has 3 axes that hold no features; expected "
            "time and batch, one each at most"
        )

    def test_what_no_model_is_made_of(self, rng):
        line = Line()
        tokens = line.input((None, None), tokens=True)
        with pytest.raises(ConvertError) as caught:
            line.finish(line.one_hot(tokens, 4, "one"))
        assert str(caught.value) == (
            "the layers make no model: layer 'one' (one_hot) must be followed by a linear or "
            "recurrent layer"
        )

    def test_what_no_layer_is(self, rng):
        line = Line()
        x = line.conv1d(
            line.input((None, 2, None)), np.ones((2, 2, 3)), None, padding=(3, 0), name="conv"
        )
        with pytest.raises(ConvertError) as caught:
            line.finish(x)
        assert str(caught.value) == (
            "'conv' makes no layer: layer 'conv': padding_left is 3; expected at most dilation * "
            "(kernel_size - 1), which is 2"
        )

    def test_frames_of_unknown_width(self, rng):
        line = Line()
        x = line.pad(line.input((None, 2, None)), 1, 1, "replicate", "pad")
        with pytest.raises(ConvertError) as caught:
            line.finish(line.conv1d(x, np.ones((2, 2, 3)), None, name="conv"))
        assert str(caught.value) == (
            "'conv' runs within a frame whose width is not known; expected a known one"
        )

    def test_features_of_unknown_size(self, rng):
        line = Line()
        with pytest.raises(ConvertError) as caught:
            line.finish(line.activation(line.input((None, None)), "relu", "relu"))
        assert str(caught.value) == (
            "the features of a step are of a size that is not known; expected only time and batch "
            "to be so"
        )

    def test_more_features_than_any_step_has(self, rng):
        line = Line()
        with pytest.raises(ConvertError) as caught:
            line.finish(line.scale(line.input((None, 2**31 - 1)), 2.0, 0.0, "scale"))
        assert str(caught.value) == (
            "a step has 2147483647 features; at most 4194304 are supported"
        )
        line = Line()
        n = 2**24
        x, w = line.input((None, 1, 2)), np.ones((1, 1, 2))
        x = line.conv1d(x, w, None, padding=(n, n), dilation=n, name="conv")
        with pytest.raises(ConvertError) as caught:
            line.finish(line.flatten(x, 1))
        assert str(caught.value) == (
            "'conv' turns 2 features into 16777218; at most 4194304 are supported"
        )

    def test_a_kernel_too_long(self, rng):
        line = Line()
        with pytest.raises(ConvertError) as caught:
            line.conv1d(line.input((None, 2, 4)), np.ones((2, 2, 3)), None, dilation=2, name="conv")
        assert str(caught.value) == (
            "'conv' runs over 4 positions and padding of 0; expected more than 4, to fill its "
            "kernel"
        )
