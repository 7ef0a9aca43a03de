"""Rows of a batch that are shorter than others: ``lengths=`` of a Model's call.

Every row gives the bits that it gives alone, its output is zero behind its end, and its state is
that after its last step; what lies in `x` behind an end is not looked at.
"""

from __future__ import annotations

from typing import Any

import chain as spec
import numpy as np
import pytest
from models import (
    KINDS,
    LANES,
    build,
    by_turns,
    chain_of,
    every_model,
    input_for,
    model_file,
    recurrent,
    state_for,
)
from ways import (
    assert_same_bits,
    assert_same_state,
    assert_state_is_near,
    in_numpy,
    row_of,
    rows_of,
)

from fastlstm import Model, _engine, processors

ALL = tuple(every_model(1))
EVERY_MODEL = pytest.mark.parametrize(("kind", "isa"), by_turns(ALL))


def too_short(model: Model, length: int) -> bool:
    """Whether a row of so many steps gives no row to pool."""
    return model.pools_over_time and spec.output_steps(chain_of(model), length) == 0


def check_rows(model: Model, x: np.ndarray, start: Any, lengths: np.ndarray) -> None:
    """Each row of a batch is that row alone."""
    y, after = model(x, start, lengths=lengths)
    start = model.initial_state(x.shape[1]) if start is None else start
    rows = rows_of(model, y)
    for b, length in enumerate(lengths):
        if length == 0:
            assert_same_state(row_of(after, b), row_of(start, b))
        if too_short(model, length):
            assert not rows[b].any()
            continue  # alone it would be refused
        alone, alone_after = model(x[:length, b], row_of(start, b))
        assert_same_state(row_of(after, b), alone_after)
        if model.pools_over_time:
            assert_same_bits(rows[b], alone)
        else:
            assert_same_bits(rows[b][: len(alone)], alone)
            assert not rows[b][len(alone) :].any()


class TestRows:
    @EVERY_MODEL
    def test_each_is_that_row_alone(self, isa, kind, rng):
        model = build(every_model(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        for T, B in ((9, 1), (9, 7), (23, 3)):
            x = input_for(model, rng, T, B)
            check_rows(model, x, None, rng.integers(0, T + 1, B))
            check_rows(model, x, None, rng.permutation(np.linspace(0, T, B).astype(int)))
            state = state_for(model, rng, B)
            for array in state.values():  # of what is folded nothing, so that a row tells its steps
                if array.dtype == np.int64 and model.pools_over_time:
                    array[...] = 0
            check_rows(model, x, state, rng.integers(0, T + 1, B))

    @EVERY_MODEL
    def test_all_of_full_length_are_as_without(self, isa, kind, rng):
        model = build(every_model(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 11, 4)
        y, after = model(x)
        got, got_after = model(x, lengths=np.full(4, 11))
        assert_same_bits(got, y)
        assert_same_state(got_after, after)

    @EVERY_MODEL
    def test_what_lies_behind_an_end_is_not_looked_at(self, isa, kind, rng):
        model = build(every_model(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x, lengths = input_for(model, rng, 12, 5), np.array([0, 12, 7, 1, 10])
        y, after = model(x, lengths=lengths)
        other = x.copy()
        for b, length in enumerate(lengths):
            other[length:, b] = 0 if model.takes_tokens else np.nan
        got, got_after = model(other, lengths=lengths)
        assert_same_bits(got, y)
        assert_same_state(got_after, after)
        assert all(np.isfinite(a).all() for a in (got, *got_after.values()))

    @pytest.mark.parametrize("kind", ALL)
    def test_as_in_the_reference(self, kind, rng):
        for dtype in (np.float32, np.float64):
            file = model_file(every_model(4)[kind], rng, dtype)
            model = Model(file)
            x, lengths = input_for(model, rng, 10, 6), np.array([10, 0, 5, 9, 1, 7])
            y, after = model(x, lengths=lengths)
            bound = (50 if "norm" in kind else 1) * (4e-6 if model.dtype == np.float32 else 1e-13)
            for b, length in enumerate(lengths):
                if length == 0:
                    continue
                expected, expected_after = in_numpy(file, x[:length, b : b + 1])
                got = y[b : b + 1] if model.pools_over_time else y[: len(expected), b : b + 1]
                np.testing.assert_allclose(got, expected, rtol=bound, atol=bound)
                found = {name: array[:, b : b + 1] for name, array in after.items()}
                assert_state_is_near(found, expected_after, bound)

    def test_batch_first_is_only_a_layout(self, rng):
        for kind in ("lstm", "classifier", "mean", "delayed"):
            model = build(every_model(4)[kind], rng)
            x, lengths = input_for(model, rng, 12, 4), np.array([12, 5, 9, 8])
            y, after = model(x, lengths=lengths)
            first = np.ascontiguousarray(x.swapaxes(0, 1))
            got, got_after = model(first, lengths=lengths, batch_first=True)
            assert_same_bits(got, rows_of(model, y))
            assert_same_state(got_after, after)

    @pytest.mark.parametrize(
        "kind", ["lstm", "gru_both", "norm_product", "causal", "mean", "frames"]
    )
    def test_long_sequences(self, isa, kind, rng):
        """Rows that end in any of the engine's chunks."""
        model = build(every_model(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 1500, 5)
        check_rows(model, x, None, np.array([1500, 0, 1, 700, 1234]))

    def test_as_packed_sequences_of_torch(self, isa, rng):
        """``pack_padded_sequence`` of two layers and directions: y, its padding, and h_n."""
        torch = pytest.importorskip("torch", reason="compares with torch itself")
        for cell, cls in (("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)):
            file = model_file(recurrent(cell, 5, 19, num_layers=2, bidirectional=True), rng)
            module = cls(5, 19, num_layers=2, bidirectional=True)
            module.load_state_dict(
                {n.removeprefix("rnn."): torch.from_numpy(a) for n, a in file.tensors.items()}
            )
            x, lengths = rng.standard_normal((9, 4, 5)).astype(np.float32), [3, 9, 1, 6]
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                torch.from_numpy(x), lengths, enforce_sorted=False
            )
            with torch.no_grad():
                output, hx = module(packed)
            expected, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
            y, state = Model(file, isa=isa)(x, lengths=np.array(lengths))
            np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=4e-6)
            hx = hx if isinstance(hx, tuple) else (hx,)
            for array, h in zip(state.values(), hx, strict=True):
                np.testing.assert_allclose(array, h.numpy(), rtol=0, atol=4e-6)


class TestThreads:
    """The same bits from several threads, each with rows or panels of its own."""

    LARGE = (
        ("lstm", (recurrent("lstm", 40, 160, num_layers=2, proj_size=100),)),
        ("both", (recurrent("gru", 72, 130, bidirectional=True), spec.Pool("p", "final", 260))),
        ("norm", (spec.LSTM("a", 40, 160, layer_norm="product", peepholes=True),)),
        ("before", (spec.GRU("a", 96, 160, reset_after=False), spec.Linear("b", 160, 300))),
        (
            "convolution",
            (
                spec.Conv1d("a", 64, 160, 5, 2, padding_left=2),
                spec.Residual("r", (recurrent("gru", 160, 160),)),
                spec.Pool("p", "mean", 160),
            ),
        ),
        ("tokens", (spec.Embedding("e", 30, 64), recurrent("gru", 64, 160))),
    )

    @pytest.mark.parametrize(("name", "layers"), LARGE, ids=[name for name, _ in LARGE])
    def test_same_bits(self, isa, name, layers, rng, monkeypatch):
        monkeypatch.setattr(processors, "available", lambda: 4)
        file = model_file(layers, rng)
        one, *several = (
            Model(file, isa=isa, threads=n, reproducible=True) for n in (1, 2, 3)
        )  # fmt: skip
        for B in (1, 3, 13):
            x, lengths = input_for(one, rng, 40, B), rng.integers(5, 41, B)
            lengths[0] = 40 if B == 1 else 0
            y, after = one(x, lengths=lengths)
            check_rows(one, x, None, lengths)
            for model in several:
                got, got_after = model(x, lengths=lengths)
                assert_same_bits(got, y)
                assert_same_state(got_after, after)


class TestCarryingOn:
    @pytest.mark.parametrize("kind", ["lstm", "gru_before", "causal", "mean", "depthwise"])
    def test_rows_go_on_where_each_ended(self, isa, kind, rng):
        model = build(every_model(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x, lengths = input_for(model, rng, 20, 4), np.array([0, 3, 8, 12])
        _, state = model(x, lengths=lengths)
        rest = np.stack([np.roll(x[:, b], -lengths[b], 0) for b in range(4)], 1)
        y, after = model(rest[:8], state)
        for b, length in enumerate(lengths):
            _, before = (
                model(x[:length, b]) if length else (None, row_of(model.initial_state(4), b))
            )
            alone, alone_after = model(x[length : length + 8, b], before)
            assert_same_bits(rows_of(model, y)[b], alone)
            assert_same_state(row_of(after, b), alone_after)

    def test_not_where_rows_are_then_in_different_phases(self, rng):
        """A strided convolution would give the rows outputs at different steps."""
        model = build(spec.Conv1d("c", 3, 4, 2, 2), rng)
        x = input_for(model, rng, 9, 2)
        y, state = model(x, lengths=np.array([4, 7]))
        assert y.shape == (3, 2, 4)  # the rows of the one with the most
        with pytest.raises(ValueError, match="rows that have read different numbers of steps"):
            model(x, state)
        model(x[:, 0], row_of(state, 0))
        model(x[:, 1], row_of(state, 1))


class TestArguments:
    @pytest.fixture
    def model(self, rng) -> Model:
        return build(recurrent("gru", 3, 4), rng)

    X = np.zeros((5, 2, 3), np.float32)

    @pytest.mark.parametrize(
        "dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
    )
    def test_any_integers(self, model, dtype, rng):
        x = input_for(model, rng, 5, 2)
        y, _ = model(x, lengths=np.array([3, 5]))
        for given_lengths in (
            np.array([3, 5], dtype),
            np.array([3, 5], np.dtype(dtype).newbyteorder()),
            np.array([3, 9, 5, 9], dtype)[::2],
            [dtype(3), dtype(5)],
        ):
            assert_same_bits(model(x, lengths=given_lengths)[0], y)

    def test_lists_tuples_and_no_rows(self, model, rng):
        x = input_for(model, rng, 5, 2)
        y, _ = model(x, lengths=np.array([3, 5]))
        for given_lengths in ([3, 5], (3, 5)):
            assert_same_bits(model(x, lengths=given_lengths)[0], y)
        y, _ = model(np.zeros((5, 0, 3), np.float32), lengths=np.zeros(0, int))
        assert y.shape == (5, 0, 4)
        y, state = model(np.zeros((0, 2, 3), np.float32), lengths=[0, 0])
        assert (y.shape, state["rnn.h"].any()) == ((0, 2, 4), False)

    def test_are_not_changed(self, model, rng):
        lengths = np.array([3, 5])
        lengths.flags.writeable = False
        model(input_for(model, rng, 5, 2), lengths=lengths)
        assert lengths.tolist() == [3, 5]

    @pytest.mark.parametrize(
        ("lengths", "message"),
        [
            ([6, 1], "lengths holds 6; expected 0 to 5, the steps of x"),
            ([1, -1], "lengths holds -1; expected 0 to 5, the steps of x"),
            (np.array([2**63, 1], np.uint64),
             "lengths holds 9223372036854775808; expected 0 to 5, the steps of x"),
            ([1], "lengths has shape (1,); expected (2,)"),
            ([1, 2, 3], "lengths has shape (3,); expected (2,)"),
            (3, "lengths has shape (); expected (2,)"),
            ([[1, 2]], "lengths has shape (1, 2); expected (2,)"),
        ],
    )  # fmt: skip
    def test_wrong_values(self, model, lengths, message):
        with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
            model(self.X, lengths=lengths)
        assert str(error.value) == message

    @pytest.mark.parametrize(
        ("lengths", "dtype"),
        [
            ([1.0, 2.0], "float64"),
            ([True, False], "bool"),
            (["1", "2"], "<U1"),
            ([None, 1], "object"),
        ],
    )
    def test_wrong_types(self, model, lengths, dtype):
        with pytest.raises(TypeError) as error:
            model(self.X, lengths=lengths)
        expected = f"lengths is of dtype {dtype}; expected integers of shape (2,)"
        assert str(error.value) == expected

    def test_of_an_unbatched_sequence(self, model):
        with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
            model(self.X[:, 0], lengths=[3])
        expected = "lengths are those of the rows of a batch; x has no batch axis"
        assert str(error.value) == expected

    def test_only_by_name(self, model):
        with pytest.raises(TypeError, match="positional"):
            model(self.X, None, [1, 2])

    def test_the_engine_checks_them_too(self, model):
        """Its own border: whatever reaches it must not make it read beyond an array."""
        x, block = self.X, np.zeros((2, 4), np.float32)
        y = np.zeros((5, 2, 4), np.float32)
        for wrong in ([6, 1], [-1, 1], [1], [[1, 2]]):
            with pytest.raises(ValueError, match="lengths do not fit x"):
                _engine.run_whole(model._network, [x], [y], block, np.array(wrong, np.intp))
        with pytest.raises(ValueError, match="lengths do not fit x"):
            _engine.run_whole(model._network, [x], [y], block, np.array([1, 2], np.int32))

    @pytest.mark.parametrize("kind", ["lstm", "both_ways"])
    def test_states_of_rows_without_a_step(self, isa, kind, rng):
        model = build(every_model(LANES[isa])[kind], rng, isa=isa)
        x, state = input_for(model, rng, 6, 3), state_for(model, rng, 3)
        for array in state.values():  # nothing is folded yet
            if array.dtype == np.int64:
                array[...] = 0
        y, after = model(x, state, lengths=[0, 6, 0])
        for b in (0, 2):
            assert not rows_of(model, y)[b].any()
            assert_same_state(row_of(after, b), row_of(state, b))


def test_every_kind_is_tried():
    assert set(KINDS) <= set(ALL)
