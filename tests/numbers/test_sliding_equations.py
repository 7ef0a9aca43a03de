"""Kernels within a step and over time: the reference equals torch with time as an axis."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from one_layer import draw, forward, graph_of, in_pieces

from fastlstm import reference, spec

torch = pytest.importorskip("torch")
F = torch.nn.functional

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
DRAWS = 12

# Axes that the kernel moves over, and whether the first of them is time.
PLACES = [(1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]


def assert_same(actual, expected, note):
    if isinstance(expected, torch.Tensor):
        expected = expected.numpy()
    assert actual.shape == tuple(expected.shape), note
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11, err_msg=str(note))


def as_torch(x, over_time):
    """Rows (T, B, C, *axes) as torch has them: (B, C, T, *axes), or (T * B, C, *axes)."""
    return torch.from_numpy(np.moveaxis(x, 0, 2) if over_time else x.reshape(-1, *x.shape[2:]))


def as_rows(y, x, over_time):
    """The inverse for the output of rows x."""
    y = y.numpy()
    return np.moveaxis(y, 2, 0) if over_time else y.reshape(*x.shape[:2], *y.shape[1:])


def padded(x, padding, value=0.0):
    """x with so much before and behind each of its last axes."""
    return F.pad(x, list(itertools.chain(*reversed(padding))), value=value)


def drawn(rng, n, most=3):
    return tuple(map(int, rng.integers(1, most + 1, n)))


def convolution(rng, n, over_time):
    """A random convolution over n axes, and the sizes of rows that it takes."""
    groups = int(rng.integers(1, 4))
    kernel, stride, dilation = drawn(rng, n), drawn(rng, n), drawn(rng, n)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple((int(rng.integers(0, r + 1)), int(rng.integers(0, r + 1))) for r in reach)
    if not over_time and rng.random() < 0.3:  # within a step, there may be more than a kernel sees
        padding = tuple((a + 2, b + 1) for a, b in padding)
    layer = spec.Convolution(
        *("n", groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3)), kernel, groups),
        bool(rng.integers(0, 2)),
        stride=stride,
        dilation=dilation,
        padding=padding,
        over_time=over_time,
    )
    axes = [r + int(rng.integers(1, 5)) for r in reach[over_time:]]
    return layer, (layer.in_channels, *axes)


def transposed(rng, n, over_time):
    """A random transposed convolution over n axes, and the sizes of rows that it takes."""
    groups = int(rng.integers(1, 3))
    kernel, stride, dilation = drawn(rng, n, 4), drawn(rng, n), drawn(rng, n)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple((int(rng.integers(0, r + 1)), int(rng.integers(0, r + 1))) for r in reach)
    layer = spec.Convolution(
        *("n", groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3)), kernel, groups),
        bool(rng.integers(0, 2)),
        stride=stride,
        dilation=dilation,
        padding=padding,
        over_time=over_time,
        transposed=True,
        output_padding=tuple(int(rng.integers(0, s)) for s in stride),
    )
    axes = [sum(p) + int(rng.integers(1, 5)) for p in padding[over_time:]]
    return layer, (layer.in_channels, *axes)


def whole_and_pieces(layer, w, x, rng):
    y = forward(layer, w, x)
    graph = graph_of(layer, [x.shape[2:]])
    assert y.shape[2:] == spec.check(graph).rows["n"].shape
    np.testing.assert_allclose(
        in_pieces(graph, w, {"x0": x}, rng)["y"], y, rtol=1e-11, atol=1e-11, err_msg=str(layer)
    )
    return y


@pytest.mark.parametrize(("n", "over_time"), PLACES)
class TestConvolution:
    def test_plain(self, n, over_time, rng):
        for _ in range(DRAWS):
            layer, shape = convolution(rng, n, over_time)
            w = draw(graph_of(layer, [shape]), rng)
            T = layer.reaches[0] + int(rng.integers(1, 8)) if over_time else 3
            x = rng.standard_normal((T, 2, *shape))
            t = {name: torch.from_numpy(value) for name, value in w.items()}
            expected = CONVOLUTIONS[n](
                padded(as_torch(x, over_time), layer.paddings),
                *(t["n.weight"], t.get("n.bias"), layer.strides, 0, layer.dilations, layer.groups),
            )
            y = whole_and_pieces(layer, w, x, rng)
            assert_same(y, as_rows(expected, x, over_time), layer)

    def test_padded_by_torch(self, n, over_time, rng):
        w = {"n.weight": rng.standard_normal((4, 2, *(3,) * n)), "n.bias": rng.standard_normal(4)}
        layer = spec.Convolution(
            *("n", 2, 4, (3,) * n), padding=((1, 1),) * n, stride=(2,) * n, over_time=over_time
        )
        x = rng.standard_normal((6, 2, 2, *(5,) * (n - over_time)))
        t = {name: torch.from_numpy(value) for name, value in w.items()}
        expected = CONVOLUTIONS[n](
            as_torch(x, over_time), t["n.weight"], t["n.bias"], stride=2, padding=1
        )
        assert_same(whole_and_pieces(layer, w, x, rng), as_rows(expected, x, over_time), layer)

    def test_transposed(self, n, over_time, rng):
        for _ in range(DRAWS):
            layer, shape = transposed(rng, n, over_time)
            w = draw(graph_of(layer, [shape]), rng)
            T = sum(layer.paddings[0]) + int(rng.integers(1, 7)) if over_time else 3
            x = rng.standard_normal((T, 2, *shape))
            t = {name: torch.from_numpy(value) for name, value in w.items()}
            full = TRANSPOSED[n](
                *(as_torch(x, over_time), t["n.weight"], t.get("n.bias"), layer.strides, 0),
                *(layer.output_paddings, layer.groups, layer.dilations),
            )
            kept = [
                slice(before, size - behind)
                for (before, behind), size in zip(layer.paddings, full.shape[2:], strict=True)
            ]
            expected = full[(slice(None), slice(None), *kept)]
            y = whole_and_pieces(layer, w, x, rng)
            assert_same(y, as_rows(expected, x, over_time), layer)

    def test_transposed_and_cut_by_torch(self, n, over_time, rng):
        w = {"n.weight": rng.standard_normal((4, 2, *(4,) * n)), "n.bias": rng.standard_normal(2)}
        layer = spec.Convolution(
            *("n", 4, 2, (4,) * n),
            stride=(2,) * n,
            padding=((2, 2),) * n,
            output_padding=(1,) * n,
            transposed=True,
            over_time=over_time,
        )
        x = rng.standard_normal((6, 2, 4, *(5,) * (n - over_time)))
        t = {name: torch.from_numpy(value) for name, value in w.items()}
        expected = TRANSPOSED[n](
            as_torch(x, over_time), t["n.weight"], t["n.bias"], 2, padding=2, output_padding=1
        )
        assert_same(whole_and_pieces(layer, w, x, rng), as_rows(expected, x, over_time), layer)


def pooled(layer, x):
    """A pooling of x (N, C, *axes), place by place."""
    n, strides, dilations = len(layer.kernel_size), layer.strides, layer.dilations
    sizes = [
        (size + sum(padding) - reach - 1) // stride + 1
        for size, padding, reach, stride in zip(
            x.shape[2:], layer.paddings, layer.reaches, strides, strict=True
        )
    ]
    y = np.empty((*x.shape[:2], *sizes))
    for place in np.ndindex(*sizes):
        seen = []
        for tap in np.ndindex(*layer.kernel_size):
            at = tuple(
                place[i] * strides[i] + tap[i] * dilations[i] - layer.paddings[i][0]
                for i in range(n)
            )
            if all(0 <= at[i] < x.shape[2 + i] for i in range(n)):
                seen.append(x[(slice(None), slice(None), *at)])
        if layer.function == "max":
            value = np.max(seen, axis=0) if seen else np.full(x.shape[:2], -math.inf)
        else:
            count = math.prod(layer.kernel_size) if layer.count_include_pad else len(seen)
            value = np.sum(seen, axis=0) / count if seen else np.full(x.shape[:2], math.nan)
        y[(slice(None), slice(None), *place)] = value
    return y


def pooling(rng, n, over_time, function):
    kernel, stride, dilation = drawn(rng, n), drawn(rng, n), drawn(rng, n, 2)
    padding = tuple(
        (int(rng.integers(0, k)), int(rng.integers(0, k)) if over_time or i else 0)
        for i, k in enumerate(kernel)
    )
    layer = spec.Pooling(
        *("n", function, kernel),
        stride=stride,
        dilation=dilation,
        padding=padding,
        over_time=over_time,
        count_include_pad=function == "max" or bool(rng.integers(0, 2)),
    )
    axes = [r + int(rng.integers(1, 5)) for r in layer.reaches[over_time:]]
    return layer, (2, *axes)


@pytest.mark.parametrize(("n", "over_time"), PLACES)
class TestPooling:
    @pytest.mark.parametrize("function", ["max", "average"])
    def test_written_out(self, n, over_time, function, rng):
        for _ in range(DRAWS):
            layer, shape = pooling(rng, n, over_time, function)
            T = layer.reaches[0] + int(rng.integers(1, 8)) if over_time else 2
            x = rng.standard_normal((T, 2, *shape)) - 3  # a padding of zeros would be the largest
            expected = pooled(layer, as_torch(x, over_time).numpy())
            y = whole_and_pieces(layer, {}, x, rng)
            assert_same(y, as_rows(torch.from_numpy(expected), x, over_time), layer)

    @pytest.mark.parametrize("padding", [0, 1])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_torchs_maximum(self, n, over_time, dilation, stride, padding, rng):
        layer = spec.Pooling(
            *("n", "max", (3,) * n),
            stride=(stride,) * n,
            dilation=(dilation,) * n,
            padding=((padding, padding),) * n,
            over_time=over_time,
        )
        x = rng.standard_normal((7, 2, 2, *(6,) * (n - over_time)))
        function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
        expected = function(as_torch(x, over_time), 3, stride, padding, dilation)
        assert_same(whole_and_pieces(layer, {}, x, rng), as_rows(expected, x, over_time), layer)

    @pytest.mark.parametrize("padding", [0, 1])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("count_include_pad", [False, True])
    def test_torchs_average(self, n, over_time, count_include_pad, stride, padding, rng):
        layer = spec.Pooling(
            *("n", "average", (3,) * n),
            stride=(stride,) * n,
            padding=((padding, padding),) * n,
            over_time=over_time,
            count_include_pad=count_include_pad,
        )
        x = rng.standard_normal((7, 2, 2, *(6,) * (n - over_time)))
        function = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[n]
        expected = function(
            as_torch(x, over_time), 3, stride, padding, count_include_pad=count_include_pad
        )
        assert_same(whole_and_pieces(layer, {}, x, rng), as_rows(expected, x, over_time), layer)


class TestFewSteps:
    """Sequences so short that a kernel has no place, or sees more padding than steps."""

    @pytest.mark.parametrize("kind", ["plain", "transposed", "pooling"])
    @pytest.mark.parametrize("n", [1, 2])
    def test_every_length(self, kind, n, rng):
        for _ in range(40):
            if kind == "pooling":
                layer, shape = pooling(rng, n, True, str(rng.choice(["max", "average"])))
            else:
                layer, shape = {"plain": convolution, "transposed": transposed}[kind](rng, n, True)
            graph = graph_of(layer, [shape])
            timing = spec.check(graph).rows["n"].timing
            w = draw(graph, rng)
            for T in range(8):
                x = rng.standard_normal((T, 1, *shape))
                y = reference.forward(graph, w, {"x0": x})["y"]
                assert len(y) == timing.rows(T), (layer, T)
                pieces = in_pieces(graph, w, {"x0": x}, rng)["y"]
                np.testing.assert_allclose(pieces, y, rtol=1e-11, atol=1e-11, err_msg=str(layer))
