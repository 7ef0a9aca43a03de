"""Packing loses nothing: tensors come back bit for bit, padding is zero, arrays are aligned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CELLS, every_kind, random_tensors, recurrent

from fastlstm import chain as spec
from fastlstm import pack
from fastlstm.pack import PackedLayer, PackedModel, cells, panels
from fastlstm.pack import model as pack_model
from fastlstm.pack.layers import touched_taps

LANES = (1, 4, 8, 16)


def stacks(L: int) -> dict[str, tuple[spec.Layer, ...]]:
    found: dict[str, tuple[spec.Layer, ...]] = {}
    for cell in CELLS:
        for I, H in ((1, 1), (L + 1, L), (2, max(L - 1, 1)), (L, 2 * L + 3)):  # noqa: E741
            found[f"{cell} {I} {H}"] = (recurrent(cell, I, H),)
        options = {"num_layers": 3, "bidirectional": True}
        found[f"{cell} deep"] = (recurrent(cell, 3, L + 2, **options),)
        found[f"{cell} deep no bias"] = (recurrent(cell, 3, L + 2, bias=False, **options),)
        found[f"{cell} one hot"] = (spec.OneHot("o", 6), recurrent(cell, 6, L + 1, num_layers=2))
        found[f"{cell} one hot no bias"] = (spec.OneHot("o", 6), recurrent(cell, 6, 3, bias=False))
        found[f"{cell} embedding"] = (spec.Embedding("e", 6, 4), recurrent(cell, 4, L, **options))
    projections = {"num_layers": 2, "bidirectional": True, "proj_size": 2}
    found["lstm projected"] = (recurrent("lstm", 3, 2 * L + 3, **projections),)
    for outputs in (1, L, 3 * L + 1, 4 * L, 5 * L, 9 * L + 2):
        found[f"linear {outputs}"] = (spec.Linear("a", 3, outputs),)
        found[f"linear {outputs} no bias"] = (spec.Linear("a", 3, outputs, bias=False),)
    found["one hot linear"] = (spec.OneHot("o", 6), spec.Linear("a", 6, 5))
    found["one hot linear no bias"] = (spec.OneHot("o", 6), spec.Linear("a", 6, 5, bias=False))
    found["everything"] = (
        spec.Embedding("e.x", 6, 5),
        spec.Linear("in", 5, L),
        spec.Activation("t", "tanh", L),
        recurrent("gru", L, 7, "encoder.rnn"),
        recurrent("lstm", 7, L + 1, "rnn", num_layers=2),
        spec.Linear("out", L + 1, 6),
        spec.Activation("p", "softmax", 6),
    )
    return found | every_kind(L)


CASES = [(lanes, name) for lanes in LANES for name in stacks(lanes)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].replace(' ', '_')}")
def case(request, rng):
    lanes, name = request.param
    layers = stacks(lanes)[name]
    spec.check_layers(layers)
    return layers, random_tensors(layers, rng), lanes


def arrays(model: PackedModel) -> list[np.ndarray]:
    return [array for layer in model.layers for array in layer.arrays()]


def matrices(layer: PackedLayer) -> list[pack.Panels]:
    parts = [layer.linear, *(p for cell in layer.cells for p in (cell.gates, cell.projection))]
    variants = [cell.variant for cell in layer.cells if cell.variant]
    parts += [p for v in variants for p in (v.reset_gates, v.reset_candidate)]
    return [part for part in parts if part is not None]


def vectors(part: pack.Panels) -> int:
    """Vectors of outputs of a matrix, and of the others of its shape behind it."""
    return ((part.panels - 1) * part.groups + part.last_groups if part.panels else 0) * part.copies


class TestEveryModel:
    def test_comes_back_bit_for_bit(self, case):
        layers, tensors, lanes = case
        for dtype in (np.float32, np.float64):
            given_ = {n: a.astype(dtype) for n, a in tensors.items()}
            for a in given_.values():  # bits that arithmetic would change
                a.flat[0] = -0.0
                a.flat[-1] = 1e-42 if dtype == np.float32 else 5e-324
            back = pack.unpack(layers, pack.pack(layers, given_, lanes, dtype))
            assert list(back) == list(given_)
            for name, array in back.items():
                assert array.dtype == dtype
                assert array.shape == given_[name].shape
                assert array.tobytes() == given_[name].tobytes(), name

    def test_keeps_nan_payloads(self, case):
        layers, tensors, lanes = case
        quiet = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000], np.uint32)
        for array in tensors.values():
            array.flat[:4] = quiet.view(np.float32)[: array.size]
        back = pack.unpack(layers, pack.pack(layers, tensors, lanes, np.float32))
        for name, array in back.items():
            assert array.tobytes() == tensors[name].tobytes(), name

    def test_arrays_are_aligned_contiguous_and_whole(self, case):
        layers, tensors, lanes = case
        model = pack.pack(layers, tensors, lanes, np.float32)
        assert model.nbytes == sum(a.nbytes for a in arrays(model))
        for layer in model.layers:
            for part in matrices(layer):
                assert part.weights.size == 0 or part.weights.ctypes.data % panels.ALIGNMENT == 0
                assert part.weights.size == vectors(part) * part.inputs * lanes
                for vector in (part.bias, part.scale, part.shift):
                    assert vector is None or vector.size in (vectors(part) * lanes, 0) or (
                        part.panels == 0)  # fmt: skip
                assert 1 <= part.last_groups <= part.groups <= panels.MOST_GROUPS
        for array in arrays(model):
            assert array.flags.c_contiguous
            assert array.dtype == np.float32

    def test_every_weight_is_there_once_and_the_rest_is_zero(self, case):
        """All weights one: what panels sum to is the weights' number, so padding holds nothing."""
        layers, tensors, lanes = case
        ones = {n: np.ones_like(a) for n, a in tensors.items()}
        model = pack.pack(layers, ones, lanes, np.float32)
        total = 0
        for layer in model.layers:
            for part in matrices(layer):
                assert set(np.unique(part.weights)) <= {0, 1}
                total += part.weights.sum()
            if layer.convolution and layer.convolution.depthwise:
                total += layer.weight.sum()
        expected = sum(
            a.size for n, a in ones.items() if a.ndim > 1 and not n.endswith(("h_0", "c_0"))
        )
        for layer in spec.walk(layers):  # taps that meet nothing but zeros are left out
            if isinstance(layer, spec.FrameConv1d):
                first, end = touched_taps(layer)
                size = ones[f"{layer.name}.weight"].size
                expected -= size // layer.kernel_size * (layer.kernel_size - (end - first))
        # Tokens are looked up in tables.
        first = layers[0]
        if first.takes_tokens:
            behind = layers[1].name if len(layers) > 1 else ""
            tables = [f"{first.name}.weight", f"{behind}.weight_ih_l0"]
            if isinstance(first, spec.OneHot):
                tables += [f"{behind}.weight"] * isinstance(layers[1], spec.Linear)
            elif not isinstance(layers[1], spec.Recurrent):
                tables = tables[:1]
            expected -= sum(a.size for n, a in ones.items() if n.startswith(tuple(tables)))
        assert total == expected

    def test_vectors_are_zero_in_the_padding(self, case):
        layers, tensors, lanes = case
        ones = {n: np.ones_like(a) for n, a in tensors.items()}
        model = pack.pack(layers, ones, lanes, np.float32)
        for layer in model.layers:
            for cell in layer.cells:
                H, gates = cell.hidden_size, cell.gates.bias
                units = lanes * (gates.shape[1] if layer.kind == "rnn" else 1)
                assert gates.shape[0] == -(-H // units)
                found = [gates, cell.bias_n]
                if v := cell.variant:
                    found += [v.h_bias, v.bias, *v.norm_x, *v.norm_h, v.norm_gate]
                    found += [*v.peepholes, *v.norm_c]
                for vector in found:
                    if vector is not None:
                        rows = 1 if layer.kind == "rnn" else vector.shape[1]
                        flat = vector.reshape(-1, rows, units).transpose(1, 0, 2)
                        assert not flat.reshape(rows, -1)[:, H:].any()
            if layer.linear and layer.linear.panels:
                part, outputs = layer.linear, layer.output_size
                if layer.convolution:
                    outputs = layer.convolution.out_channels // layer.convolution.groups
                for vector in (part.bias, part.scale, part.shift):
                    if vector is not None:
                        assert not vector.reshape(part.copies, -1)[:, outputs:].any()

    def test_state_offsets_tile_the_state(self, case):
        layers, tensors, lanes = case
        model = pack.pack(layers, tensors, lanes, np.float32)
        spans = []
        for layer in model.layers:
            for cell in layer.cells:
                spans.append((cell.h_offset, cell.h_size))
                if layer.kind == "lstm":
                    spans.append((cell.c_offset, cell.hidden_size))
            if made := layer.convolution:
                spans.append((made.x_offset, made.reach * made.channels * made.has_count))
                spans.append((made.count_offset, int(made.has_count)))
            if layer.pooling == "mean":
                spans.append((layer.state_offset, 2 * layer.input_size + 2))
        end = 0
        for first, size in sorted(span for span in spans if span[1]):
            assert first == end
            end = first + size
        assert end == model.state_size == model.initial.size
        assert end == sum(n * m for layer in layers for n, m in layer.state().values())

    def test_packed_size_is_what_packing_takes(self, case):
        layers, tensors, lanes = case
        plain, packed = pack.packed_size(layers, lanes)
        assert plain == sum(a.size for a in tensors.values())
        model = pack.pack(layers, tensors, lanes, np.float32)
        held = sum(a.size for a in arrays(model))
        # It may count less than a bias, never more than a panel too little; nor does it count the
        # vectors of variants.
        vectors = sum(a.size for n, a in tensors.items() if a.ndim == 1 and "_norm" in n)
        assert packed <= held * 1.35 + 64 * lanes
        assert held <= packed * 1.35 + 64 * lanes + 2 * vectors

    def test_does_not_share_memory_with_the_tensors(self, case):
        layers, tensors, lanes = case
        kept = {n: a.copy() for n, a in tensors.items()}
        model = pack.pack(layers, tensors, lanes, np.float32)
        before = [a.copy() for a in arrays(model)]
        for array in tensors.values():
            array[...] = 9
        assert all(np.array_equal(a, b) for a, b in zip(arrays(model), before, strict=True))
        for name, array in pack.unpack(layers, model).items():
            assert np.array_equal(array, kept[name]), name


class TestLayout:
    def test_gates_of_a_unit_lie_together(self):
        """(P, K, G, L): panel p, lane l is hidden unit p * L + l, gates in torch's order."""
        layer, L = recurrent("lstm", 3, 5), 4
        tensors = {n: np.zeros(s, np.float32) for n, s in layer.tensors().items()}
        tensors["rnn.weight_ih_l0"][:] = np.arange(20)[:, None] + np.arange(3) / 10
        tensors["rnn.weight_hh_l0"][:] = 100 + np.arange(20)[:, None] + np.arange(5) / 10
        weights = pack.pack((layer,), tensors, L, np.float32).layers[0].cells[0].gates.weights
        assert weights.shape == (2, 3 + 5, 4, L)
        for gate, unit, k in itertools.product(range(4), range(5), range(8)):
            expected = gate * 5 + unit + (k / 10 if k < 3 else 100 + (k - 3) / 10)
            assert weights[unit // L, k, gate, unit % L] == np.float32(expected)

    def test_gru_keeps_the_bias_inside_the_reset_apart(self):
        layer = recurrent("gru", 1, 2)
        tensors = {n: np.zeros(s, np.float32) for n, s in layer.tensors().items()}
        tensors["rnn.bias_ih_l0"][:] = [1, 2, 3, 4, 5, 6]
        tensors["rnn.bias_hh_l0"][:] = [10, 20, 30, 40, 50, 60]
        cell = pack.pack((layer,), tensors, 4, np.float32).layers[0].cells[0]
        assert cell.gates.bias.tolist() == [[[11, 22, 0, 0], [33, 44, 0, 0], [5, 6, 0, 0]]]
        assert cell.bias_n.reshape(-1).tolist() == [50, 60, 0, 0]

    def test_sum_of_biases_is_rounded_once(self):
        layer = recurrent("rnn_tanh", 1, 1)
        a, b = np.float32(1.0000001), np.float32(2.9802322e-08)
        tensors = {n: np.zeros(s, np.float32) for n, s in layer.tensors().items()}
        tensors["rnn.bias_ih_l0"][:], tensors["rnn.bias_hh_l0"][:] = a, b
        cell = pack.pack((layer,), tensors, 1, np.float32).layers[0].cells[0]
        assert cell.gates.bias.item() == np.float32(np.float64(a) + np.float64(b))

    @settings(max_examples=200)
    @given(outputs=st.integers(1, 5000), lanes=st.sampled_from(LANES))
    def test_padding_of_a_matrix_is_bounded(self, outputs, lanes):
        """To whole vectors; of a cell without gates, whose panels are all alike, by a fifth."""
        needed = -(-outputs // lanes)
        assert panels.padded(outputs, lanes) == needed * lanes
        layer = spec.RNN("a", 1, outputs)
        at = cells.Layout.of(layer, lanes)
        assert needed <= at.panels * at.groups <= max(needed, needed * 6 // 5)


class TestTokens:
    """Tokens before a recurrent layer: a step reads its recurrent weights and a row of a table."""

    H, V, I = 24, 7, 5  # noqa: E741

    @pytest.mark.parametrize("lanes", LANES)
    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("embedded", [False, True])
    def test_table_is_the_input_product(self, embedded, cell, lanes, rng):
        first = spec.Embedding("e", self.V, self.I) if embedded else spec.OneHot("o", self.V)
        layer = recurrent(cell, first.output_size, self.H, bidirectional=True)
        tensors = random_tensors((first, layer), rng)
        model = pack.pack((first, layer), tensors, lanes, np.float32)
        assert [one.kind for one in model.layers] == [layer.kind]
        assert model.layers[0].input_size == self.V
        gates = len(layer.gates)
        for suffix, packed in zip(("_l0", "_l0_reverse"), model.layers[0].cells, strict=True):
            assert packed.input_rows == 0
            assert packed.gates.weights.shape[1] == self.H  # no rows for the input
            w = tensors[f"rnn.weight_ih{suffix}"].astype(np.float64)
            expected = w @ (tensors["e.weight"].T if embedded else np.eye(self.V))
            count = packed.table.shape[1]
            rows = packed.table.reshape(self.V, count, gates, -1).transpose(0, 2, 1, 3)
            rows = rows.reshape(self.V, gates, -1)[:, :, : self.H].reshape(self.V, -1)
            assert np.array_equal(rows, expected.T.astype(np.float32))

    def test_a_large_table_is_not_made(self, monkeypatch, rng):
        layers = (spec.Embedding("e", 50, 3), recurrent("lstm", 3, 8))
        tensors = random_tensors(layers, rng)
        assert len(pack.pack(layers, tensors, 8, np.float32).layers) == 1
        monkeypatch.setattr(pack_model, "FREE_TABLE_BYTES", 1000)
        model = pack.pack(layers, tensors, 8, np.float32)
        assert [one.kind for one in model.layers] == ["lookup", "lstm"]
        assert np.array_equal(pack.unpack(layers, model)["e.weight"], tensors["e.weight"])

    def test_one_hot_weights_are_held_once(self, rng):
        """The table is the weights; what is kept beside it is the biases."""
        layers = (spec.OneHot("o", 100), recurrent("lstm", 100, 8, num_layers=2))
        model = pack.pack(layers, random_tensors(layers, rng), 8, np.float32)
        assert all("bias" in name for name in model.kept)
