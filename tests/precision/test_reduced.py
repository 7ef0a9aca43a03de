"""Tensors in fewer bytes, and which tensors of a graph can be."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import spec
from fastlstm.reduced import Reduced, same


def chain(*layers: spec.Layer, **options) -> spec.Graph:
    return spec.Graph.chain(layers, **options)


def stored(graph: spec.Graph) -> list[spec.Stored]:
    return spec.stored(graph, spec.check(graph).tensors)


class TestInt8:
    def test_each_output_has_a_scale_of_its_own(self, rng):
        w = rng.standard_normal((5, 7)).astype(np.float32)
        made = Reduced.of(w, "int8")
        np.testing.assert_array_equal(made.scale, np.abs(w).max(axis=1) / np.float32(127))
        np.testing.assert_array_equal(np.abs(made.numbers).max(axis=1), 127)
        off = np.abs(made.widened() - w)
        assert (off <= 0.5001 * made.scale[:, None]).all()

    def test_of_another_axis(self, rng):
        w = rng.standard_normal((4, 3, 2)).astype(np.float32)
        made = Reduced.of(w, "int8", 1)
        swapped = Reduced.of(np.moveaxis(w, 1, 0), "int8")
        np.testing.assert_array_equal(made.scale, swapped.scale)
        np.testing.assert_array_equal(made.numbers, np.moveaxis(swapped.numbers, 0, 1))
        np.testing.assert_array_equal(made.widened(), np.moveaxis(swapped.widened(), 0, 1))

    def test_halves_are_rounded_to_even(self):
        made = Reduced.of(np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32), "int8")
        assert made.numbers.tolist() == [[127, 0, 2, 2, 0, -2]]

    def test_zeros_have_a_scale(self):
        made = Reduced.of(np.zeros((2, 3), np.float32), "int8")
        assert made.scale.tolist() == [1, 1]
        assert not made.widened().any()

    def test_the_smallest_numbers_have_a_normal_scale(self):
        w = np.full((1, 2), np.finfo(np.float32).smallest_subnormal)
        made = Reduced.of(w, "int8")
        assert made.scale[0] >= np.finfo(np.float32).tiny

    def test_an_array_of_them_is_what_they_stand_for(self, rng):
        made = Reduced.of(rng.standard_normal((2, 3)).astype(np.float32), "int8")
        np.testing.assert_array_equal(np.asarray(made), made.widened())
        assert np.asarray(made, np.float32).dtype == np.float32
        assert made.nbytes == 6 + 2 * 4

    @pytest.mark.parametrize(
        ("numbers", "scale", "phrase"),
        [
            (np.array([[-128]], np.int8), np.ones(1, np.float32), "-128"),
            (np.ones((1, 1), np.int8), None, "no scales"),
            (np.ones((1, 1), np.int8), np.ones(1), "no scales of float32"),
            (np.ones((1, 1), np.int8), np.ones(2, np.float32), "shape"),
            (np.ones((1, 1), np.int8), np.zeros(1, np.float32), "positive"),
            (np.ones((1, 1), np.int8), np.full(1, np.nan, np.float32), "positive"),
            (np.ones((1, 1), np.int8), np.full(1, np.inf, np.float32), "positive"),
            (np.ones((1, 1), np.int8), np.full(1, 1e-40, np.float32), "normal"),
            (np.ones((1, 1), np.uint8), np.ones(1, np.float32), "uint8"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, numbers, scale, phrase):
        with pytest.raises(ValueError, match=phrase):
            Reduced("int8", numbers, scale)


class TestHalves:
    def test_float16(self, rng):
        w = rng.standard_normal((3, 4)).astype(np.float32)
        np.testing.assert_array_equal(
            Reduced.of(w, "float16").widened(), w.astype(np.float16).astype(np.float64)
        )

    def test_bfloat16_is_the_nearest_half_to_even(self, rng):
        w = rng.standard_normal(4096).astype(np.float32).reshape(1, -1)
        bits = w.view(np.uint32) & np.uint32(0xFFFF0000)
        below = bits.view(np.float32).astype(np.float64)
        above = (bits + np.uint32(0x10000)).view(np.float32).astype(np.float64)
        made = Reduced.of(w, "bfloat16").widened()
        nearest = np.where(np.abs(w - below) < np.abs(w - above), below, above)
        ties = np.abs(w - below) == np.abs(w - above)
        np.testing.assert_array_equal(made[~ties], nearest[~ties])
        tie = np.array([[0x3F808000, 0x3F818000]], np.uint32).view(np.float32)
        assert Reduced.of(tie, "bfloat16").numbers.tolist() == [[0x3F80, 0x3F82]]

    @pytest.mark.parametrize("precision", ["float16", "bfloat16"])
    def test_too_large_numbers_are_refused(self, precision):
        with pytest.raises(ValueError, match=f"too large for {precision}"):
            Reduced.of(np.array([[3.4e38]], np.float32), precision)

    def test_scales_are_refused(self):
        with pytest.raises(ValueError, match="has none"):
            Reduced("float16", np.ones((1, 1), np.float16), np.ones(1, np.float32))


@pytest.mark.parametrize("precision", spec.PRECISIONS[1:])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(precision, bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        Reduced.of(np.array([[1, bad]], np.float32), precision)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="int4"):
        Reduced("int4", np.ones((1, 1), np.int8))


def test_same(rng):
    w = rng.standard_normal((2, 3)).astype(np.float32)
    a, b = Reduced.of(w, "int8"), Reduced.of(w, "int8")
    assert same(a, b)
    assert same(w, w.copy())
    assert not same(a, w)
    assert not same(a, Reduced.of(w, "float16"))
    assert not same(a, Reduced.of(w * 2, "int8"))
    assert not same(a, Reduced.of(-w, "int8"))


class TestOfAGraph:
    def test_matrices_and_their_outputs(self):
        graph = chain(
            spec.Convolution("c", 4, 6, (3,), 2, over_time=True),
            spec.LSTM("l", 6, 5, 2, proj_size=2, peepholes=True),
            spec.Linear("o", 2, 3),
        )
        found = stored(graph)
        assert [one.layers for one in found] == [("c",), ("l",), ("o",)]
        assert found[0].axes == {"c.weight": 0}
        kinds = ("weight_ih", "weight_hh", "weight_hr")
        assert set(found[1].axes) == {f"l.{kind}_l{n}" for n in (0, 1) for kind in kinds}
        assert found[2].axes == {"o.weight": 0}
        assert not any(one.refused for one in found)

    def test_a_depthwise_kernel_is_no_matrix(self):
        graph = chain(spec.Convolution("c", 4, 4, (3,), 4, over_time=True))
        assert stored(graph) == []

    def test_outputs_of_a_transposed_kernel_are_its_second_axis(self):
        graph = chain(spec.Convolution("c", 4, 6, (3,), transposed=True, over_time=True))
        (one,) = stored(graph)
        assert one.axes == {"c.weight": 1}
        assert not one.refused

    def test_what_sums_over_too_much_is_not_int8(self):
        wide = spec.MAX_INT8_WIDTH + 1
        graph = chain(spec.Linear("o", wide, 1))
        (one,) = stored(graph)
        assert set(one.refused) == {"int8"}
        assert str(wide) in one.refused["int8"]
        assert not stored(chain(spec.Linear("o", wide - 1, 1)))[0].refused

    def test_layers_that_share_a_matrix_are_stored_alike(self):
        tied = (("weight", "e.weight"),)
        graph = chain(
            spec.Embedding("e", 9, 4),
            spec.GRU("g", 4, 4),
            spec.Linear("o", 4, 9, bias=False, tensor_names=tied),
        )
        found = stored(graph)
        assert [set(one.layers) for one in found] == [{"e", "o"}, {"g"}]
        assert not found[0].refused

    def test_a_matrix_that_is_used_otherwise_too_stays_as_it_is(self):
        graph = spec.Graph(
            [spec.Input("x", (4,))],
            [
                spec.Linear("o", 4, 3, bias=False)("x"),
                spec.Constant("k", (3, 4), tensor_names=(("value", "o.weight"),))(),
                spec.MatMul("m")("k", "x"),
            ],
            {"y": "o", "z": "m"},
        )
        (one,) = stored(graph)
        assert set(one.refused) == set(spec.PRECISIONS[1:])
        assert "'o' and 'k'" in one.refused["int8"]

    def test_check_precisions(self):
        known = stored(chain(spec.LSTM("l", 3, 4), spec.Linear("o", 4, 2)))
        both = dict.fromkeys(("l.weight_ih_l0", "l.weight_hh_l0"), "int8")
        assert spec.check_precisions(known, both) == {"l": "int8", "o": "float32"}
        with pytest.raises(ValueError, match="float32 and int8; expected one precision"):
            spec.check_precisions(known, {"l.weight_ih_l0": "int8"})
        with pytest.raises(ValueError, match=r"'o.bias' is int8, and is no matrix"):
            spec.check_precisions(known, {"o.bias": "int8"})

    def test_thousands_of_layers_of_one_tensor(self):
        """It takes the time that so many layers take, not that of all pairs of them."""
        tied = (("weight", "w"),)
        layers = [spec.Linear(f"l{i}", 1, 1, False, tensor_names=tied) for i in range(4000)]
        (one,) = stored(chain(*layers))
        assert len(one.layers) == 4000
