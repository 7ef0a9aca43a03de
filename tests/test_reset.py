"""Rows that start anew within a sequence: ``reset=`` of a Model's call, ``Stream.reset(rows)``.

What lies between two resets of a row gives the bits that it gives alone, from where each sequence
starts, whatever the other rows of the batch do.
"""

from __future__ import annotations

import itertools
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain.lower import lowered
from models import (
    CELLS,
    LANES,
    ChainFile,
    build,
    by_turns,
    chain_of,
    every_kind,
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
from fastlstm.spec import check as check_graph

State = dict[str, np.ndarray]


def kinds(L: int) -> dict[str, tuple[spec.Layer, ...]]:
    """Models whose rows can start anew: of every kind of layer, and PyTorch's plain cells."""
    H = 2 * L + 3
    found = {cell: (recurrent(cell, L + 1, H, num_layers=2),) for cell in CELLS}
    found["projected"] = (recurrent("lstm", 5, H, num_layers=2, proj_size=L + 2),)
    found["classifier"] = (
        spec.Embedding("e", 9, 4),
        recurrent("gru", 4, H),
        spec.Linear("out", H, 9),
        spec.Activation("p", "softmax", 9),
    )
    found["one_hot"] = (spec.OneHot("o", 9), recurrent("lstm", 9, H))
    found["linear"] = (spec.Linear("a", 3, H), spec.Activation("f", "softmax", H))
    return found | {n: layers for n, layers in every_kind(L).items() if not refusal(layers)}


def refusal(layers: tuple[spec.Layer, ...]) -> str:
    """The reason for which rows of a model cannot start anew."""
    if check_graph(lowered(layers)).looks_ahead:
        return "so that steps before a reset would see those behind it"
    if any(layer.pools for layer in layers):
        return "this model pools over time"
    if spec.delay(layers) or spec.step_stride(layers) > 1:
        return "this model does not give an output for every step"
    return ""


ALL = tuple(kinds(1))
EVERY_KIND = pytest.mark.parametrize(("kind", "isa"), by_turns(ALL))
REFUSED = tuple(name for name, layers in every_kind(1).items() if refusal(layers))


def pieces(reset: np.ndarray, length: int) -> list[tuple[int, int]]:
    """(first step, end) of what the resets (T,) of a row cut its steps into."""
    starts = [t for t in range(length) if t == 0 or reset[t]]
    return list(itertools.pairwise([*starts, length]))


def row_in_pieces(
    model: Model, x: np.ndarray, start: State, reset: np.ndarray, length: int
) -> tuple[np.ndarray, State]:
    """One row (T, ...), a call for each piece: y (T, O), zero behind the end, and the state."""
    y, state = np.zeros((len(x), model.output_size), model.dtype), start
    for t, end in pieces(reset, length):
        y[t:end], state = model(x[t:end], model.initial_state() if reset[t] else state)
    return y, state


def check(
    model: Model,
    x: np.ndarray,
    start: State | None,
    reset: np.ndarray,
    lengths: np.ndarray | None = None,
) -> None:
    """Each row is that row alone, in pieces."""
    T, B = x.shape[:2]
    y, after = model(x, start, lengths=lengths, reset=reset)
    assert y.shape == (T, B, model.output_size)
    start = model.initial_state(B) if start is None else start
    for b, length in enumerate([T] * B if lengths is None else lengths.tolist()):
        alone, alone_after = row_in_pieces(model, x[:, b], row_of(start, b), reset[:, b], length)
        assert_same_bits(y[:, b], alone)
        assert_same_state(row_of(after, b), alone_after)


def masks(rng: np.random.Generator, T: int, B: int) -> list[np.ndarray]:
    """Random ones from few resets to many, and the simplest."""
    found = [rng.random((T, B)) < share for share in (0.05, 0.3, 0.8)]
    first, one_row = np.zeros((2, T, B), bool)
    first[0], one_row[T // 2, B // 2] = True, True
    return [*found, first, one_row, np.ones((T, B), bool)]


class TestPieces:
    @EVERY_KIND
    def test_each_gives_the_bits_it_gives_alone(self, isa, kind, rng):
        """From the start or a state, with lengths or without: in turn."""
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        ways = itertools.cycle(itertools.product((False, True), repeat=2))
        for T, B in ((9, 1), (8, 7), (17, 3)):
            x = input_for(model, rng, T, B)
            for reset in masks(rng, T, B):
                starts, ends = next(ways)
                start = state_for(model, rng, B) if starts else None
                check(model, x, start, reset, rng.integers(0, T + 1, B) if ends else None)

    @EVERY_KIND
    def test_as_a_stream_that_is_reset(self, isa, kind, rng):
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        T, B = 13, 6
        x, start = input_for(model, rng, T, B), state_for(model, rng, B)
        for reset in masks(rng, T, B):
            y, after = model(x, start, reset=reset)
            stream = model.stream(B)
            stream.state = start
            for x_t, y_t, rows in zip(x, y, reset, strict=True):
                stream.reset(rows)
                assert_same_bits(stream.step(x_t), y_t)
            assert_same_state(stream.state, after)

    @pytest.mark.parametrize("kind", ALL)
    def test_as_in_the_reference(self, kind, rng):
        dtype = (np.float32, np.float64)[ALL.index(kind) % 2]
        file = model_file(kinds(4)[kind], rng, dtype)
        model, T, B = Model(file), 10, 5
        x, start = input_for(model, rng, T, B), state_for(model, rng, B)
        lengths = np.array([10, 0, 5, 9, 1])
        bound = (50 if "norm" in kind else 1) * (4e-6 if dtype == np.float32 else 1e-13)
        for reset in masks(rng, T, B)[1:5]:
            y, after = model(x, start, lengths=lengths, reset=reset)
            for b, length in enumerate(lengths):
                expected, state = by_reference(
                    file, x[:, b : b + 1], {n: a[:, b : b + 1] for n, a in start.items()},
                    reset[:length, b],
                )  # fmt: skip
                np.testing.assert_allclose(y[:length, b], expected, rtol=bound, atol=bound)
                assert not y[length:, b].any()
                found = {name: array[:, b : b + 1] for name, array in after.items()}
                assert_state_is_near(found, state, bound)

    @pytest.mark.parametrize("kind", ["lstm", "gru", "norm_product", "causal", "classifier"])
    def test_long_sequences(self, isa, kind, rng):
        """Resets and ends in any of the engine's chunks."""
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x, reset = input_for(model, rng, 1500, 4), rng.random((1500, 4)) < 0.002
        check(model, x, None, reset, np.array([1500, 0, 700, 1234]))

    @pytest.mark.parametrize("kind", ["lstm", "causal", "learned_start", "residual", "projected"])
    def test_several_threads(self, isa, kind, rng, monkeypatch):
        monkeypatch.setattr(processors, "available", lambda: 4)
        file = model_file(kinds(3 * LANES[isa])[kind], rng)
        for threads in (2, 3):
            model = Model(file, isa=isa, threads=threads, reproducible=True)
            for B in (1, 13):
                x, reset = input_for(model, rng, 30, B), rng.random((30, B)) < 0.1
                check(model, x, None, reset, rng.integers(0, 31, B))


def by_reference(
    file: ChainFile, x: np.ndarray, state: State, reset: np.ndarray
) -> tuple[np.ndarray, State]:
    """One row (T, 1, ...) in float64, a piece at a time, up to the end that `reset` has."""
    y = np.zeros((len(reset), file.layers[-1].output_size))
    for t, end in pieces(reset, len(reset)):
        piece, state = in_numpy(file, x[t:end], None if reset[t] else state)
        y[t:end] = piece[:, 0]
    return y, state


class TestWhatAResetMeans:
    @pytest.mark.parametrize("reproducible", [True, False])
    @EVERY_KIND
    def test_none_at_all_is_a_plain_call(self, isa, kind, reproducible, rng):
        """To the bit also where a BLAS computes long input projections, of the scalar kernel."""
        isa = isa if reproducible else "scalar"
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=reproducible)
        x, start = input_for(model, rng, 70, 5), state_for(model, rng, 5)
        none = np.zeros((70, 5), bool)
        for lengths in (None, np.array([70, 0, 30, 1, 69])):
            y, after = model(x, start, lengths=lengths)
            got, got_after = model(x, start, lengths=lengths, reset=none)
            assert_same_bits(got, y)
            assert_same_state(got_after, after)

    @EVERY_KIND
    def test_at_the_first_step_the_state_given_is_forgotten(self, isa, kind, rng):
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x, reset = input_for(model, rng, 6, 3), np.zeros((6, 3), bool)
        reset[0] = True
        start = state_for(model, rng, 3)
        for name, array in start.items():
            if not name.endswith(".count"):
                array[...] = np.nan
        y, after = model(x, start, reset=reset)
        expected, expected_after = model(x)
        assert_same_bits(y, expected)
        assert_same_state(after, expected_after)

    def test_at_every_step_nothing_is_remembered(self, isa, rng):
        model = build(kinds(LANES[isa])["learned_start"], rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 6, 3)
        y, after = model(x, state_for(model, rng, 3), reset=np.ones((6, 3), bool))
        for t in range(6):
            alone, alone_after = model(x[t : t + 1])
            assert_same_bits(y[t : t + 1], alone)
        assert_same_state(after, alone_after)

    def test_a_learned_start_is_where_it_goes(self, rng):
        """Not zero: the two differ."""
        model = build(kinds(4)["learned_start"], rng, reproducible=True)
        assert any(array.any() for array in model.initial_state().values())
        x, reset = input_for(model, rng, 4), np.array([False, False, True, False])
        y, _ = model(x, reset=reset)
        zeros = {name: np.zeros_like(array) for name, array in model.initial_state().items()}
        assert_same_bits(y[2:], model(x[2:])[0])
        assert not np.array_equal(y[2:], model(x[2:], zeros)[0])

    @pytest.mark.parametrize("kind", [k for k in ALL if not kinds(1)[k][0].takes_tokens])
    def test_what_is_not_finite_ends_with_it(self, kind, rng):
        model = build(kinds(4)[kind], rng, reproducible=True)
        x, reset = input_for(model, rng, 9, 3), np.zeros((9, 3), bool)
        reset[5, 1] = True
        y, after = model(x, reset=reset)
        x[2:5, 1] = np.nan
        got, got_after = model(x, reset=reset)
        assert_same_bits(np.delete(got, 1, 1), np.delete(y, 1, 1))
        assert_same_bits(got[5:, 1], y[5:, 1])
        assert_same_bits(got[:2, 1], y[:2, 1])
        assert_same_state(got_after, after)

    def test_behind_the_end_of_a_row_there_is_none(self, rng):
        model = build(kinds(4)["lstm"], rng, reproducible=True)
        x, start = input_for(model, rng, 8, 3), state_for(model, rng, 3)
        lengths, reset = np.array([0, 3, 8]), np.zeros((8, 3), bool)
        y, after = model(x, start, lengths=lengths)
        for b, length in enumerate(lengths):
            reset[length:, b] = True
        got, got_after = model(x, start, lengths=lengths, reset=reset)
        assert_same_bits(got, y)
        assert_same_state(got_after, after)

    def test_with_a_blas_to_rounding(self, isa, rng):
        model = build(recurrent("gru", 40, 30), rng, isa=isa)
        exact = Model(model._file(), isa=isa, reproducible=True)
        x, reset = input_for(model, rng, 200, 4), rng.random((200, 4)) < 0.01
        y, after = model(x, reset=reset)
        expected, expected_after = exact(x, reset=reset)
        np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6)
        np.testing.assert_allclose(after["rnn.h"], expected_after["rnn.h"], rtol=0, atol=4e-6)


class TestArguments:
    @pytest.fixture
    def model(self, rng) -> Model:
        return build(recurrent("gru", 3, 4), rng, reproducible=True)

    X = np.zeros((5, 2, 3), np.float32)

    @pytest.mark.parametrize("kind", ["lstm", "classifier"])
    def test_unbatched(self, isa, kind, rng):
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x, start = input_for(model, rng, 12), state_for(model, rng, None)
        for reset in (rng.random(12) < 0.3, np.zeros(12, bool), np.ones(12, bool)):
            y, after = model(x, start, reset=reset)
            expected, expected_after = row_in_pieces(model, x, start, reset, 12)
            assert_same_bits(y, expected)
            assert_same_state(after, expected_after)

    @pytest.mark.parametrize("kind", ["lstm", "classifier"])
    def test_batch_first(self, isa, kind, rng):
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x, reset = input_for(model, rng, 12, 4), rng.random((12, 4)) < 0.3
        lengths = np.array([12, 0, 7, 11])
        y, after = model(x, lengths=lengths, reset=reset)
        first = np.ascontiguousarray(x.swapaxes(0, 1))
        got, got_after = model(first, lengths=lengths, reset=reset.T, batch_first=True)
        assert_same_bits(got, rows_of(model, y))
        assert_same_state(got_after, after)

    def test_masks_as_they_lie(self, model, rng):
        """Of any layout, read-only, and whatever bytes stand for true."""
        x, reset = input_for(model, rng, 6, 4), rng.random((6, 4)) < 0.4
        y, _ = model(x, reset=reset)
        bytes_ = np.where(reset, rng.integers(1, 256, reset.shape), 0).astype(np.uint8)
        assert bytes_.max() > 1
        wide = np.zeros((12, 8), bool)
        wide[::2, ::2] = reset
        for mask in (
            np.frombuffer(bytes_.tobytes(), np.bool_).reshape(reset.shape),
            np.asfortranarray(reset),
            wide[::2, ::2],
            reset[::-1][::-1],
        ):
            kept = mask.tobytes()
            mask.flags.writeable = False
            assert_same_bits(model(x, reset=mask)[0], y)
            assert mask.tobytes() == kept

    def test_of_no_step_and_no_row(self, model, rng):
        start = state_for(model, rng, 2)
        y, after = model(self.X[:0], start, reset=np.zeros((0, 2), bool))
        assert y.shape == (0, 2, 4)
        assert_same_state(after, start)
        y, after = model(self.X[:, :0], reset=np.zeros((5, 0), bool))
        assert (y.shape, after["rnn.h"].shape) == ((5, 0, 4), (1, 0, 4))

    def test_arguments_are_not_changed(self, model, rng):
        x, start = input_for(model, rng, 5, 2), state_for(model, rng, 2)
        kept, kept_start = x.copy(), {name: a.copy() for name, a in start.items()}
        model(x, start, reset=np.ones((5, 2), bool))
        assert_same_bits(x, kept)
        assert_same_state(start, kept_start)

    @pytest.mark.parametrize(
        ("reset", "message"),
        [
            (np.zeros((2, 5), bool), "reset has shape (2, 5); expected (5, 2)"),
            (np.zeros(5, bool), "reset has shape (5,); expected (5, 2)"),
            (np.zeros((5, 2, 1), bool), "reset has shape (5, 2, 1); expected (5, 2)"),
            (np.array(True), "reset has shape (); expected (5, 2)"),
        ],
    )
    def test_wrong_shapes(self, model, reset, message):
        with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
            model(self.X, reset=reset)
        assert str(error.value) == message

    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8, np.float32, object])
    def test_numbers_are_no_mask(self, model, dtype):
        with pytest.raises(TypeError) as error:
            model(self.X, reset=np.zeros((5, 2), dtype))
        assert str(error.value) == (
            f"reset has dtype {np.dtype(dtype)}; expected a boolean array of shape (5, 2): numbers "
            f"could be a mask, or the rows that it selects"
        )

    @pytest.mark.parametrize(
        ("reset", "kind"),
        [
            ([[True, False]] * 5, "list"),
            (True, "bool"),
            (0, "int"),
            ("reset", "str"),
            (np.True_, "numpy.bool"),
        ],
    )
    def test_other_things_are_no_mask(self, model, reset, kind):
        with pytest.raises(TypeError) as error:
            model(self.X, reset=reset)
        assert str(error.value) == (
            f"reset is a {kind}; expected a boolean array of shape (5, 2)"
        )  # fmt: skip

    def test_masked_masks(self, model):
        with pytest.raises(TypeError, match=r"reset is a numpy\.ma.*; expected a NumPy array"):
            model(self.X, reset=np.ma.zeros((5, 2), bool))

    def test_of_an_unbatched_sequence(self, model):
        with pytest.raises(ValueError, match=r"^reset has shape \(5, 1\); expected \(5,\)$"):
            model(self.X[:, 0], reset=np.zeros((5, 1), bool))

    def test_only_by_name(self, model):
        with pytest.raises(TypeError, match="positional"):
            model(self.X, None, np.zeros((5, 2), bool))

    def test_nothing_has_run_when_it_raises(self, model):
        start = model.initial_state(2)
        with pytest.raises(ValueError, match="lengths holds 6"):
            model(self.X, start, reset=np.zeros((5, 2), bool), lengths=[6, 1])
        assert not start["rnn.h"].any()

    @pytest.mark.parametrize("kind", REFUSED)
    def test_models_whose_rows_cannot(self, kind, rng):
        model = build(every_kind(4)[kind], rng)
        x = input_for(model, rng, 12, 2)
        why = refusal(chain_of(model))
        for given, reset in ((x, np.zeros((12, 2), bool)), (x[:, 0], np.zeros(12, bool))):
            with pytest.raises(ValueError) as error:  # noqa: PT011, the message is compared
                model(given, reset=reset)
            message = str(error.value)
            assert message.startswith(f"reset cannot be used: {model.looks_ahead}")
            assert why in message
            assert message.endswith(
                "give what lies between resets as sequences of their own: model([x0, x1, ...])"
            )

    def test_some_of_each_reason_are_tried(self):
        assert len({refusal(every_kind(1)[kind]) for kind in REFUSED}) == 3
        assert {"causal", "depthwise", "frames", "residual"} <= set(ALL)

    def test_the_engine_checks_them_too(self, model, rng):
        """Its own border: whatever reaches it must not make it read beyond an array."""
        block, y = np.zeros((2, 4), np.float32), np.zeros((5, 2, 4), np.float32)
        right = np.zeros((5, 2), np.uint8)
        _engine.run_whole(model._network, [self.X], [y], block, None, right)
        for wrong in (right[1:], right[:, 1:], right[0], right.astype(bool), np.asfortranarray(
            right), np.zeros((5, 4), np.uint8)[:, ::2]):  # fmt: skip
            with pytest.raises(ValueError, match="resets do not fit"):
                _engine.run_whole(model._network, [self.X], [y], block, None, wrong)
        for kind in REFUSED:
            other = build(every_kind(4)[kind], rng)
            x = input_for(other, rng, 12, 2)
            rows, reset = other.start_block(2, []), np.zeros((12, 2), np.uint8)
            steps = _engine.count_rows(other._network, rows, 12, whole=True).max()
            into = np.zeros((steps, 2, other.output_size), np.float32)
            _engine.run_whole(other._network, [x], [into], rows.copy())
            with pytest.raises(ValueError, match="resets do not fit"):
                _engine.run_whole(other._network, [x], [into], rows, None, reset)


class TestStream:
    @EVERY_KIND
    def test_rows_start_anew_and_the_others_go_on(self, isa, kind, rng):
        model = build(kinds(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        stream, start = model.stream(5), state_for(model, rng, 5)
        for mask in ([0, 0, 0, 0, 0], [1, 0, 0, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]):
            rows = np.array(mask, bool)
            stream.state = start
            stream.reset(rows)
            after, first = stream.state, model.initial_state(5)
            for b in range(5):
                assert_same_state(row_of(after, b), row_of(first if rows[b] else start, b))

    def test_all_rows_are_the_whole_stream(self, rng):
        model = build(kinds(4)["learned_start"], rng)
        one, other = model.stream(3), model.stream(3)
        for stream in (one, other):
            stream.state = state_for(model, rng, 3)
        one.reset()
        other.reset(np.ones(3, bool))
        assert_same_state(one.state, other.state)
        assert_same_state(one.state, model.initial_state(3))

    def test_masks_as_they_lie(self, rng):
        model = build(kinds(4)["gru"], rng)
        stream, start = model.stream(4), state_for(model, rng, 4)
        rows = np.array([True, False, True, False])
        for mask in (
            np.frombuffer(bytes([2, 0, 255, 0]), np.bool_),
            np.repeat(rows, 2)[::2],
            rows[::-1][::-1],
        ):
            stream.state = start
            stream.reset(mask)
            after = stream.state
            for b in range(4):
                expected = row_of(model.initial_state(4) if rows[b] else start, b)
                assert_same_state(row_of(after, b), expected)

    @pytest.mark.parametrize(
        ("rows", "error", "message"),
        [
            ([True, False, True], TypeError,
             "rows is a list; expected a boolean array of shape (3,)"),
            ((True, False, True), TypeError,
             "rows is a tuple; expected a boolean array of shape (3,)"),
            (1, TypeError, "rows is a int; expected a boolean array of shape (3,)"),
            (True, TypeError, "rows is a bool; expected a boolean array of shape (3,)"),
            (np.array([0, 2]), TypeError,
             "rows has dtype int64; expected a boolean array of shape (3,): numbers could be a "
             "mask, or the rows that it selects"),
            (np.array([1, 0, 1], np.uint8), TypeError,
             "rows has dtype uint8; expected a boolean array of shape (3,): numbers could be a "
             "mask, or the rows that it selects"),
            (np.array([True, False]), ValueError, "rows has shape (2,); expected (3,)"),
            (np.ones((3, 1), bool), ValueError, "rows has shape (3, 1); expected (3,)"),
            (np.array(True), ValueError, "rows has shape (); expected (3,)"),
        ],
    )  # fmt: skip
    def test_wrong_rows_are_refused_and_change_nothing(self, rng, rows, error, message):
        model = build(kinds(4)["lstm"], rng)
        stream, start = model.stream(3), state_for(model, rng, 3)
        stream.state = start
        with pytest.raises(error) as raised:
            stream.reset(rows)
        assert str(raised.value) == message
        assert_same_state(stream.state, start)

    def test_an_unbatched_stream_has_no_rows(self, rng):
        model = build(kinds(4)["lstm"], rng)
        stream, start = model.stream(), state_for(model, rng, None)
        stream.state = start
        for rows in (np.array([True]), np.array(True), [True]):
            with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
                stream.reset(rows)
            expected = "rows are those of a batch; this stream has none: call reset()"
            assert str(error.value) == expected
        assert_same_state(stream.state, start)
        stream.reset()
        assert_same_state(stream.state, model.initial_state())

    @pytest.mark.parametrize("kind", ["delayed", "grouped", "last"])
    def test_rows_that_must_stay_in_step(self, kind, rng):
        model = build(every_kind(4)[kind], rng)
        stream = model.stream(2)
        stream.run(input_for(model, rng, 7, 2))
        before = stream.state
        with pytest.raises(ValueError, match=r"does not give an output for every step.*reset\(\)"):
            stream.reset(np.array([True, False]))
        assert_same_state(stream.state, before)
        stream.reset()
        assert_same_state(stream.state, model.initial_state(2))

    def test_rows_of_a_mean(self, isa, rng):
        """It pools over time, but each row of a stream has a count of its own."""
        model = build(every_kind(LANES[isa])["mean"], rng, isa=isa, reproducible=True)
        x, stream = input_for(model, rng, 9, 2), model.stream(2)
        stream.run(x[:5])
        stream.reset(np.array([False, True]))
        y: Any = stream.run(x[5:])[-1]
        assert_same_bits(y[0], model(x[:, 0])[0])
        assert_same_bits(y[1], model(x[5:, 1])[0])
