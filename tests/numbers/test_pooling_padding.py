"""Poolings whose kernels see padding: of short axes and sequences, as torch, or refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from one_layer import forward, graph_of, in_pieces

from fastlstm import spec

torch = pytest.importorskip("torch")
F = torch.nn.functional


def places_of(layer, axis, size):
    """What each place of a kernel along one axis sees of positions 0 to size - 1."""
    (before, behind), stride = layer.paddings[axis], layer.strides[axis]
    reach, dilation = layer.reaches[axis], layer.dilations[axis]
    return [
        [at for at in range(begin, begin + reach + 1, dilation) if 0 <= at < size]
        for begin in range(-before, size + behind - reach, stride)
    ]


def drawn(rng, dilation, *, padding=None):
    """Options of one axis: padding of any two sizes that a pooling takes, or as torch's."""
    k, s, d = int(rng.integers(1, 6)), int(rng.integers(1, 5)), int(rng.integers(1, dilation + 1))
    reach = d * (k - 1)
    if padding == "torch":
        before = behind = int(rng.integers(0, min(k // 2, reach) + 1))
    else:
        before, behind = (int(p) for p in rng.integers(0, reach + 1, 2))
    return {"kernel_size": k, "stride": s, "dilation": d, "padding": (before, behind)}


def pooling(function, *axes, **options):
    of_all = {name: tuple(axis[name] for axis in axes) for name in axes[0]}
    return spec.Pooling("n", function, **of_all, **options)


def streamed(layer, x, rng):
    """Rows of a whole sequence x (T, B, C, *axes) by the reference, which a stream of it equals."""
    y = forward(layer, {}, x)
    graph = graph_of(layer, [x.shape[2:]])
    timing = spec.check(graph).rows["n"].timing
    assert len(y) == timing.rows(len(x)), layer
    np.testing.assert_allclose(in_pieces(graph, {}, {"x0": x}, rng)["y"], y, err_msg=str(layer))
    return y


class TestOverTime:
    def test_torchs_maximum_of_few_steps(self, rng):
        """Also where torch gives minus infinity, as it has seen padding only."""
        blind = compared = 0
        for _ in range(900):
            T, options = int(rng.integers(0, 9)), drawn(rng, 5, padding="torch")
            layer = pooling("max", options, over_time=True)
            x = rng.standard_normal((T, 2, 3))
            y = streamed(layer, x, rng)
            if not len(y):
                continue
            k, s, d, (padding, _) = options.values()
            expected = F.max_pool1d(torch.from_numpy(x).permute(1, 2, 0), k, s, padding, d)
            np.testing.assert_array_equal(y, expected.permute(2, 0, 1).numpy(), err_msg=str(layer))
            blind, compared = blind + bool(np.isneginf(y).any()), compared + 1
        assert compared > 200
        assert blind > 0

    @pytest.mark.parametrize("count_include_pad", [False, True])
    def test_torchs_average_of_few_steps(self, count_include_pad, rng):
        compared = 0
        for _ in range(400):
            T, options = int(rng.integers(0, 7)), drawn(rng, 1)
            k, s, _, (padding, _) = options.values()
            padding = min(padding, k // 2)
            options["padding"] = (padding, padding)
            layer = pooling("average", options, over_time=True, count_include_pad=count_include_pad)
            x = rng.standard_normal((T, 2, 3))
            y = streamed(layer, x, rng)
            assert np.isfinite(y).all(), layer
            if not len(y):
                continue
            expected = F.avg_pool1d(
                *(torch.from_numpy(x).permute(1, 2, 0), k, s, padding),
                count_include_pad=count_include_pad,
            )
            np.testing.assert_allclose(
                *(y, expected.permute(2, 0, 1).numpy()), rtol=1e-12, atol=1e-12, err_msg=str(layer)
            )
            compared += 1
        assert compared > 100

    @pytest.mark.parametrize(
        ("function", "counted"), [("max", True), ("average", True), ("average", False)]
    )
    def test_of_nothing_but_padding(self, function, counted, rng):
        """A maximum is minus infinity; an average that of the padding, or of no numbers."""
        nothing = {"max": -math.inf, "average": 0.0 if counted else math.nan}[function]
        blind = 0
        for _ in range(200):
            layer = pooling(function, drawn(rng, 5), over_time=True, count_include_pad=counted)
            T = int(rng.integers(1, 10))
            x = rng.standard_normal((T, 1, 1)) - 3
            y = streamed(layer, x, rng)[:, 0, 0]
            for value, seen in zip(y, places_of(layer, 0, T), strict=True):
                if not seen:
                    np.testing.assert_equal(value, nothing)
                    blind += 1
                    continue
                numbers = x[seen, 0, 0]
                count = layer.kernel_size[0] if counted else len(seen)
                expected = numbers.max() if function == "max" else numbers.sum() / count
                assert value == pytest.approx(expected), (layer, T)
        assert blind > 10

    def test_only_a_sequence_shorter_than_the_dilation_has_such_places(self, rng):
        for _ in range(300):
            layer = pooling("max", drawn(rng, 6), over_time=True)
            for T in range(layer.dilations[0], 14):
                assert all(places_of(layer, 0, T)), (layer, T)


class TestWithinStep:
    def test_places_that_see_padding_only_are_refused(self, rng):
        """And no others: each axis by itself, and all of them together."""
        refused = taken = 0
        for _ in range(3000):
            n = int(rng.integers(1, 3))
            over_time = n > 1 and bool(rng.integers(0, 2))
            layer = pooling("max", *(drawn(rng, 7) for _ in range(n)), over_time=over_time)
            sizes = [int(size) for size in rng.integers(1, 8, n - over_time)]
            seen = [places_of(layer, axis, s) for axis, s in enumerate(sizes, int(over_time))]
            if not all(seen):
                with pytest.raises(ValueError, match="kernel does not fit"):
                    layer.of_row((2, *sizes))
            elif all(map(all, seen)):
                assert layer.of_row((2, *sizes)) == (2, *map(len, seen))
                taken += 1
            else:
                axis = next(axis for axis in seen if not all(axis))
                wrong = sum(not place for place in axis)
                with pytest.raises(ValueError, match=f"at {wrong} of {len(axis)} places"):
                    layer.of_row((2, *sizes))
                refused += 1
        assert refused > 100
        assert taken > 1000

    def test_torchs_own_kernel_that_sees_nothing(self):
        """torch gives minus infinity at such a place, which a layer within a step refuses."""
        y = F.max_pool1d(torch.zeros(1, 1, 2), 2, 1, 1, 3)
        assert y.shape == (1, 1, 1)
        assert torch.isneginf(y).all()
        layer = spec.Pooling("n", "max", (2,), dilation=(3,), padding=((1, 1),))
        with pytest.raises(
            ValueError, match=r"at 1 of 1 places .* dilation, 3, steps over an axis of 2"
        ):
            spec.check(graph_of(layer, [(1, 2)]))

    def test_padding_may_be_as_wide_as_what_a_kernel_reaches_over(self, rng):
        """torch takes half of the kernel's size at most; more than that has to be put there."""
        x = rng.standard_normal((1, 1, 2, 9))
        layer = spec.Pooling("n", "max", (3,), dilation=(4,), padding=((8, 4),))
        padded = F.pad(torch.from_numpy(x[0]), (8, 4), value=-math.inf)
        expected = F.max_pool1d(padded, 3, 1, 0, 4)
        np.testing.assert_array_equal(forward(layer, {}, x)[0], expected.numpy())

    def test_large_options_are_judged_at_once(self):
        """Whatever numbers a file has: the time does not grow with the places."""
        for size, stride, dilation in itertools.product((1, 2**19), (1, 2**31 - 1), (2**20, 2**30)):
            layer = spec.Pooling(
                *("n", "max", (3,)),
                stride=(stride,),
                dilation=(dilation,),
                padding=((dilation, dilation),),
            )
            assert layer.of_row((1, size)) == (1, 1 if stride > size else size)
            wider = spec.Pooling(
                *("n", "max", (3,)), dilation=(dilation,), padding=((dilation + 1, dilation),)
            )
            with pytest.raises(ValueError, match="sees nothing but padding"):
                wider.of_row((1, size))
