"""Promise 1: on one instruction set a stream's numbers depend on its input and on nothing else.

Steps one by one, blocks of any sizes, any batch around a row, a state saved, copied or set on the
way: all give the same bits as the whole sequence in one call, of a model that is reproducible; of
one that may use a BLAS, the same numbers but for rounding. Then the rules of use of a Stream.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import threading

import chain as spec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    ISAS,
    LANES,
    STREAMING,
    ChainFile,
    build,
    every_kind,
    input_for,
    model_file,
    recurrent,
    state_for,
)
from ways import assert_same_bits, assert_same_state

import fastlstm

TOKEN_DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


def layers_of(name: str, L: int) -> tuple[spec.Layer, ...]:
    """Models whose every stage has full vectors and a remainder for L lanes."""
    H = 2 * L + 3
    stacks = {
        "lstm": (recurrent("lstm", L + 1, H),),
        "lstm_stack": (recurrent("lstm", 3, H, num_layers=3, bias=False),),
        "lstm_proj": (recurrent("lstm", 5, H, num_layers=2, proj_size=L + 2),),
        "gru": (recurrent("gru", L + 1, H),),
        "gru_stack": (recurrent("gru", 3, H, num_layers=2),),
        "rnn_tanh": (recurrent("rnn_tanh", L + 1, 5 * L + 1),),
        "rnn_relu": (recurrent("rnn_relu", L + 1, H, num_layers=2),),
        "linear": (spec.Linear("a", L + 1, 6 * L + 1), spec.Activation("f", "tanh", 6 * L + 1)),
        "classifier": (
            spec.Linear("in", 4, H),
            spec.Activation("act", "relu", H),
            recurrent("gru", H, L + 1, "r1"),
            recurrent("lstm", L + 1, L, "r2"),
            spec.Linear("out", L, 2 * L + 1),
            spec.Activation("p", "log_softmax", 2 * L + 1),
        ),
        "embedding": (
            spec.Embedding("e", 11, L + 1),
            recurrent("lstm", L + 1, H),
            spec.Linear("out", H, 11),
            spec.Activation("p", "softmax", 11),
        ),
        "one_hot": (spec.OneHot("o", 11), recurrent("gru", 11, H), spec.Linear("out", H, 11)),
    }
    return stacks[name]


MODELS = (
    *("lstm", "lstm_stack", "lstm_proj", "gru", "gru_stack", "rnn_tanh", "rnn_relu"),
    *("linear", "classifier", "embedding", "one_hot"),
)


def exact(layers, rng, dtype=np.float32, isa=None) -> fastlstm.Model:
    """A model that promises the same bits, however it is run."""
    return build(layers, rng, dtype, isa=isa, reproducible=True)


@pytest.fixture(params=MODELS)
def model(request, isa, rng) -> fastlstm.Model:
    return exact(layers_of(request.param, LANES[isa]), rng, isa=isa)


class TestSameBits:
    """One sequence, every way of running it."""

    @pytest.mark.parametrize("batch", [None, 1, 2, 5, 7, 17])
    def test_step_by_step(self, model, rng, batch):
        x = input_for(model, rng, 9, *([] if batch is None else [batch]))
        y, state = model(x)
        stream = model.stream(batch)
        out = np.full(y.shape[1:], np.nan, y.dtype)
        for t in range(len(x)):
            if t % 2:
                assert stream.step(x[t], out=out) is out
                assert_same_bits(out, y[t])
            else:
                assert_same_bits(stream.step(x[t]), y[t])
            assert stream.isa_of_last_step == model.isa
        assert_same_state(stream.state, state)

    @pytest.mark.parametrize("B", [2, 3, 4, 5, 6, 7, 13, 17])
    def test_a_row_does_not_know_its_batch(self, model, rng, B):
        x = input_for(model, rng, 6, B)
        start = state_for(model, rng, B)
        y, after = model(x, start)
        stream = model.stream(B)
        stream.state = start
        assert_same_bits(stream.run(x), y)
        for b in range(B):
            alone = {n: a[:, b].copy() for n, a in start.items()}
            y_b, after_b = model(x[:, b], alone)
            assert_same_bits(y[:, b], y_b)
            assert_same_state({n: a[:, b] for n, a in after.items()}, after_b)
            one, one_after = model(x[:, b : b + 1], {n: a[:, None] for n, a in alone.items()})
            assert_same_bits(one[:, 0], y_b)
            assert_same_state({n: a[:, 0] for n, a in one_after.items()}, after_b)

    def test_a_row_does_not_know_the_others_not_even_nan(self, model, rng):
        if model.takes_tokens:
            pytest.skip("a token cannot be NaN")
        x = input_for(model, rng, 6, 7)
        y, after = model(x)
        for b in (0, 3, 6):
            others = np.full_like(x, np.nan)
            others[:, b] = x[:, b]
            y_b, after_b = model(others)
            assert_same_bits(y_b[:, b], y[:, b])
            assert_same_state(
                {n: a[:, b] for n, a in after_b.items()}, {n: a[:, b] for n, a in after.items()}
            )

    def test_long_sequence_in_pieces_of_every_scale(self, model, rng):
        # Longer than what is projected at once, so that the engine itself cuts it.
        x = input_for(model, rng, 3000)
        y, state = model(x)
        stream = model.stream()
        cuts = [0, 1, 2, 10, 11, 500, 2047, 2048, 2999, 3000]
        pieces = [stream.run(x[a:b]) for a, b in itertools.pairwise(cuts)]
        assert_same_bits(np.concatenate(pieces), y)
        assert_same_state(stream.state, state)

    def test_batch_first_is_only_a_layout(self, model, rng):
        x = input_for(model, rng, 6, 5)
        y, state = model(x)
        y_first, state_first = model(np.ascontiguousarray(x.swapaxes(0, 1)), batch_first=True)
        assert_same_bits(y_first.swapaxes(0, 1), y)
        assert_same_state(state_first, state)

    def test_state_carries_a_sequence_on(self, model, rng):
        x = input_for(model, rng, 9, 3)
        y, state = model(x)
        y_1, state_1 = model(x[:4])
        kept = copy.deepcopy(state_1)
        y_2, state_2 = model(x[4:], state_1)
        assert_same_state(state_1, kept)
        assert not any(np.shares_memory(state_1[n], state_2[n]) for n in state)
        assert_same_bits(np.concatenate([y_1, y_2]), y)
        assert_same_state(state_2, state)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25)
@given(data=st.data())
def test_any_program_of_steps_runs_and_copies(isa, tmp_path, data):
    """Hypothesis writes a program for a stream; whatever it does, its outputs stay the same."""
    name = data.draw(st.sampled_from((*MODELS, *STREAMING)), "model")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    B = data.draw(st.sampled_from([None, 1, 2, 6, 7]), "batch")
    layers = every_kind(LANES[isa]).get(name) or layers_of(name, LANES[isa])
    model = exact(layers, rng, isa=isa)
    T = 25
    x = input_for(model, rng, T, *([] if B is None else [B]))
    y, state = model(x)
    first = model.stream(B)
    rows = first.run(x)
    whole = rows[-1] if model.pools_over_time else np.concatenate([rows, first.flush()])
    assert_same_bits(whole, y)
    stream, t, found = model.stream(B), 0, []
    while t < T:
        does = data.draw(
            st.sampled_from(["step", "run", "save", "state", "clone", "pickle", "aside", "model"])
        )
        if does == "step":
            y_t = stream.step(x[t])
            found += [] if y_t is None else [y_t]
            t += 1
        elif does == "run":
            n = data.draw(st.integers(0, T - t))
            found += list(stream.run(x[t : t + n]))
            t += n
        elif does == "save":
            stream.save(tmp_path / "state")
            stream = model.stream(B)
            stream.load(tmp_path / "state")
        elif does == "state":
            kept = stream.state
            stream.run(x[:2])
            stream.state = kept
        elif does == "clone":
            twin = stream.clone()
            stream.run(x[:3])  # must not reach the twin
            stream = twin
        elif does == "pickle":
            stream = pickle.loads(pickle.dumps(stream))
            assert stream.model.isa == isa
        elif does == "aside":
            model(x)  # the model's scratch memory is not the stream's
            assert_same_bits(model.stream(B).run(x), rows)
        elif not model.pools_over_time:  # which want at least one row to pool
            y_t, new_state = model(x[t : t + 1], stream.state)
            stream.state = new_state
            # Without those that a call gives as if the sequence ended here.
            found += list(y_t[: len(y_t) - len(stream.flush())])
            t += 1
    assert_same_bits(np.stack(found), rows)
    assert_same_state(stream.state, state)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_relu"])
def test_float64_streams_too(cell, rng):
    model = exact(recurrent(cell, 5, 7, num_layers=2), rng, np.float64)
    x = input_for(model, rng, 12, 3)
    y, state = model(x)
    stream = model.stream(3)
    assert_same_bits(np.stack([stream.step(x_t) for x_t in x[:5]]), y[:5])
    assert_same_bits(stream.run(x[5:]), y[5:])
    assert_same_state(stream.state, state)
    assert stream.isa_of_last_step == "scalar"


class TestWithBlas:
    """Without ``reproducible`` a long sequence may be projected by a BLAS; nothing else may be."""

    TOLERANCE = 2e-6

    @pytest.mark.parametrize("batch", [None, 1, 5, 17])
    def test_sequences_agree_to_rounding(self, request, isa, rng, batch):
        for name in MODELS:
            file = model_file(layers_of(name, LANES[isa]), rng)
            free, fixed = (fastlstm.Model(file, isa=isa, reproducible=r) for r in (False, True))
            assert (free.reproducible, fixed.reproducible) == (False, True)
            x = input_for(free, rng, 300, *([] if batch is None else [batch]))
            y, state = free(x)
            expected, expected_state = fixed(x)
            size = np.abs(expected).max()
            np.testing.assert_allclose(y, expected, rtol=0, atol=self.TOLERANCE * max(1, size))
            for n in state:
                np.testing.assert_allclose(
                    state[n], expected_state[n], rtol=0, atol=self.TOLERANCE * max(1, size)
                )

    def test_steps_are_the_same_bits_in_any_batch(self, isa, rng):
        for name in MODELS:
            file = model_file(layers_of(name, LANES[isa]), rng)
            free, fixed = (fastlstm.Model(file, isa=isa, reproducible=r) for r in (False, True))
            x = input_for(free, rng, 4, 33)
            stream, expected = free.stream(33), fixed(x)[0]
            assert_same_bits(np.stack([stream.step(x_t) for x_t in x]), expected)


class TestBidirectional:
    def test_refuses_to_stream_and_says_why(self, rng):
        model = exact(recurrent("lstm", 3, 4, bidirectional=True), rng)
        with pytest.raises(ValueError, match=r"'rnn' is bidirectional.*last step.*model\(x\)"):
            model.stream()
        with pytest.raises(ValueError, match="bidirectional"):
            fastlstm.Stream(model, 3)

    @pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
    def test_a_row_does_not_know_its_batch(self, isa, cell, rng):
        L = LANES[isa]
        model = exact(recurrent(cell, 3, L + 1, num_layers=2, bidirectional=True), rng, isa=isa)
        x = input_for(model, rng, 11, 7)
        start = state_for(model, rng, 7)
        y, after = model(x, start)
        for b in range(7):
            y_b, after_b = model(x[:, b], {n: a[:, b].copy() for n, a in start.items()})
            assert_same_bits(y[:, b], y_b)
            assert_same_state({n: a[:, b] for n, a in after.items()}, after_b)

    def test_long_sequence(self, isa, rng):
        """Longer than what is projected at once: the first steps alone still are a prefix."""
        model = exact(recurrent("gru", 3, LANES[isa] + 1, bidirectional=True), rng, isa=isa)
        x = input_for(model, rng, 3000)
        y, _ = model(x)
        H = model.layers[0].hidden_size
        assert_same_bits(model(x[:100])[0][:, :H], y[:100, :H])
        assert_same_bits(model(x[-100:])[0][:, H:], y[-100:, H:])


class TestState:
    def test_starts_at_zero_with_the_documented_names_and_shapes(self, rng):
        model = exact(
            (recurrent("lstm", 3, 8, "a", num_layers=2, proj_size=5), recurrent("gru", 5, 4, "b")),
            rng,
        )
        shapes = {"a.h": (2, 5), "a.c": (2, 8), "b.h": (1, 4)}
        assert {n: a.shape for n, a in model.stream().state.items()} == shapes
        batched = {n: (s[0], 3, s[1]) for n, s in shapes.items()}
        for state in (model.stream(3).state, model.initial_state(3)):
            assert {n: a.shape for n, a in state.items()} == batched
            assert all(a.dtype == np.float32 and not a.any() for a in state.values())

    def test_is_a_copy(self, rng):
        model = exact(recurrent("lstm", 3, 4), rng)
        stream = model.stream()
        x = input_for(model, rng)
        y = stream.step(x).copy()
        for array in stream.state.values():
            array[:] = 9
        stream.reset()
        assert_same_bits(stream.step(x), y)

    def test_set_is_a_copy(self, rng):
        model = exact(recurrent("gru", 3, 4), rng)
        stream, given_state = model.stream(2), state_for(model, rng, 2)
        stream.state = given_state
        kept = copy.deepcopy(given_state)
        given_state["rnn.h"][:] = 9
        assert_same_state(stream.state, kept)

    @pytest.mark.parametrize("batch", [None, 1, 4])
    def test_round_trip(self, model, rng, batch, tmp_path):
        stream, other = model.stream(batch), model.stream(batch)
        state = state_for(model, rng, batch)
        stream.state = state
        assert_same_state(stream.state, state)
        stream.save(tmp_path / "s")
        other.load(tmp_path / "s")
        assert_same_state(other.state, state)
        stream.reset()
        assert not any(a.any() for a in stream.state.values())
        assert_same_state(other.state, state)

    def test_strided_arrays_are_taken(self, rng):
        model = exact(recurrent("lstm", 3, 4, num_layers=2), rng)
        state = state_for(model, rng, 5)
        stream = model.stream(5)
        stream.state = {
            n: np.repeat(a, 2, axis=-1)[:, ::-1][:, ::-1, ::2] for n, a in state.items()
        }
        assert_same_state(stream.state, state)
        stream.state = {n: np.asfortranarray(a) for n, a in state.items()}
        assert_same_state(stream.state, state)

    def test_order_of_the_names_does_not_matter(self, rng):
        model = exact(recurrent("lstm", 3, 4), rng)
        stream, state = model.stream(), state_for(model, rng, None)
        stream.state = dict(reversed(state.items()))
        assert_same_state(stream.state, state)

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            (lambda s: {"rnn.h": s["rnn.h"]}, ValueError, r"'rnn\.h'.*'rnn\.h', 'rnn\.c'"),
            (lambda s: s | {"rnn.x": s["rnn.h"]}, ValueError, r"'rnn\.x'"),
            (lambda s: {}, ValueError, r"none.*'rnn\.h', 'rnn\.c'"),
            (
                lambda s: {f"lstm.{k[-1]}": a for k, a in s.items()},
                ValueError,
                r"'lstm\.h', 'lstm\.c'.*'rnn\.h', 'rnn\.c'.*belongs to the model that made it",
            ),
            (
                lambda s: s | {"rnn.h": s["rnn.h"][:, :1]},
                ValueError,
                r"'rnn\.h' has shape \(2, 1, 4\); expected \(2, 3, 4\)",
            ),
            (lambda s: s | {"rnn.c": s["rnn.c"][:, 0]}, ValueError, r"'rnn\.c' has shape \(2, 4\)"),
            (lambda s: s | {"rnn.c": np.zeros((2, 3, 5), "f4")}, ValueError, r"\(2, 3, 5\)"),
            (
                lambda s: s | {"rnn.h": np.float32(0)},
                TypeError,
                r"'rnn\.h' is .*float32.*NumPy array",
            ),
            (lambda s: s | {"rnn.h": s["rnn.h"].astype("f8")}, TypeError, "float64.*float32"),
            (lambda s: s | {"rnn.h": s["rnn.h"].astype(">f4")}, TypeError, ">f4.*float32"),
            (lambda s: s | {"rnn.h": s["rnn.h"].tolist()}, TypeError, "list.*NumPy array"),
            (lambda s: s | {"rnn.h": None}, TypeError, "NoneType.*NumPy array"),
            (lambda s: tuple(s.values()), TypeError, r"tuple.*mapping.*'rnn\.h', 'rnn\.c'"),
            (lambda s: s["rnn.h"], TypeError, "ndarray.*mapping"),
            (lambda s: None, TypeError, "NoneType.*mapping"),
        ],
    )
    def test_wrong_state_is_refused_and_changes_nothing(self, rng, change, error, match):
        model = exact(recurrent("lstm", 3, 4, num_layers=2), rng)
        stream, state = model.stream(3), state_for(model, rng, 3)
        stream.state = state
        wrong = change(copy.deepcopy(state))
        with pytest.raises(error, match=match):
            stream.state = wrong
        assert_same_state(stream.state, state)
        if wrong is not None:  # for a call, None means zeros
            with pytest.raises(error, match=match):
                model(input_for(model, rng, 2, 3), wrong)

    def test_masked_state_is_refused_or_its_mask_respected(self, rng):
        """A masked array's hidden numbers must not become part of a state unsaid."""
        model = exact(recurrent("gru", 3, 4), rng)
        stream = model.stream()
        masked = np.ma.masked_array(np.full((1, 4), 7, "f4"), mask=[[0, 1, 0, 0]])
        with pytest.raises(TypeError, match="mask"):
            stream.state = {"rnn.h": masked}

    def test_stateless_model(self, rng):
        model = exact(spec.Linear("out", 3, 2), rng)
        stream = model.stream(2)
        assert stream.state == {}
        stream.state = {}
        x = input_for(model, rng, 2)
        assert_same_bits(stream.clone().step(x), model(x[None])[0][0])


class TestSavedState:
    def test_of_another_model_is_refused(self, rng, tmp_path):
        layer = recurrent("lstm", 3, 4)
        one, other = exact(layer, rng), exact(layer, rng)
        stream = other.stream()
        stream.state = state = state_for(other, rng, None)
        one.stream().save(tmp_path / "s")
        with pytest.raises(fastlstm.FormatError, match=r"another model.*this model"):
            stream.load(tmp_path / "s")
        assert_same_state(stream.state, state)

    def test_of_another_batch_is_refused(self, rng, tmp_path):
        model = exact(recurrent("lstm", 3, 4), rng)
        model.stream(3).save(tmp_path / "s")
        with pytest.raises(ValueError, match=r"\(1, 3, 4\); expected \(1, 2, 4\)"):
            model.stream(2).load(tmp_path / "s")
        with pytest.raises(ValueError, match=r"\(1, 3, 4\); expected \(1, 4\)"):
            model.stream().load(tmp_path / "s")

    def test_of_another_instruction_set_is_taken(self, rng, tmp_path):
        file = model_file(recurrent("gru", 3, 19), rng)
        models = [fastlstm.Model(file, isa=isa) for isa in ISAS]
        stream = models[0].stream()
        stream.run(input_for(models[0], rng, 5))
        stream.save(tmp_path / "s")
        for model in models:
            other = model.stream()
            other.load(tmp_path / "s")
            assert_same_state(other.state, stream.state)

    def test_keeps_nan_and_infinity(self, rng, tmp_path):
        model = exact(recurrent("gru", 3, 4), rng)
        stream, other = model.stream(), model.stream()
        stream.state = {"rnn.h": np.array([[np.nan, np.inf, -np.inf, -0.0]], "f4")}
        stream.save(tmp_path / "s")
        other.load(tmp_path / "s")
        assert_same_state(other.state, stream.state)


class TestMaking:
    @pytest.mark.parametrize("size", [0, -1, -(2**63)])
    def test_batch_size_below_one(self, rng, size):
        model = exact(recurrent("gru", 3, 4), rng)
        with pytest.raises(ValueError, match=rf"batch_size is {size}; expected at least 1"):
            model.stream(size)

    @pytest.mark.parametrize("size", [2.0, "2", True, np.bool_(True), (2,), np.array([2])])
    def test_batch_size_of_a_wrong_type(self, rng, size):
        model = exact(recurrent("gru", 3, 4), rng)
        with pytest.raises(TypeError, match=r"batch_size is .*expected an integer"):
            model.stream(size)

    @pytest.mark.parametrize("size", [2**50, 2**61, 2**62, 2**63 - 1])
    def test_more_rows_than_there_is_memory_for(self, rng, size):
        model = exact(recurrent("gru", 3, 4), rng)
        with pytest.raises(MemoryError):
            model.stream(size)

    @pytest.mark.parametrize("size", [2**63, -(2**63) - 1, 2**100])
    def test_batch_size_beyond_any_index(self, rng, size):
        model = exact(recurrent("gru", 3, 4), rng)
        with pytest.raises((ValueError, MemoryError), match=str(size)):
            model.stream(size)

    def test_numpy_integers_are_integers(self, rng):
        model = exact(recurrent("gru", 3, 4), rng)
        x = input_for(model, rng, 2)
        y = model.stream(np.int64(2)).step(x)
        assert_same_bits(y, model.stream(2).step(x))

    def test_network_is_read_only(self, rng):
        stream = exact(recurrent("gru", 3, 4), rng).stream()
        for name in ("network", "batch_size", "isa_of_last_step", "model"):
            with pytest.raises(AttributeError):
                setattr(stream, name, None)

    def test_isa_of_last_step_is_none_before_the_first(self, isa, rng):
        stream = exact(recurrent("gru", 3, 4), rng, isa=isa).stream()
        assert stream.isa_of_last_step is None
        stream.run(np.zeros((2, 3), "f4"))
        assert stream.isa_of_last_step == isa

    def test_repr_names_model_and_batch(self, rng):
        model = exact(recurrent("gru", 3, 4), rng)
        assert repr(model) in repr(model.stream())
        assert "batch_size=3" in repr(model.stream(3))

    def test_outlives_its_model(self, rng):
        model = exact(recurrent("gru", 3, 4), rng)
        x = input_for(model, rng, 5)
        y, _ = model(x)
        stream = model.stream()
        del model
        assert_same_bits(stream.run(x), y)


class TestTokens:
    @pytest.fixture(params=["embedding", "one_hot"])
    def model(self, request, isa, rng):
        return exact(layers_of(request.param, LANES[isa]), rng, isa=isa)

    def test_one_hot_is_the_dense_input(self, isa, rng):
        """Folding a one-hot input into a table changes the numbers by rounding only."""
        L = LANES[isa]
        for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            layer = recurrent(cell, 11, L + 3, num_layers=2)
            dense = model_file(layer, rng)
            folded = ChainFile((spec.OneHot("o", 11), layer), dense.tensors)
            tokens = rng.integers(0, 11, (9, 3))
            y, _ = fastlstm.Model(folded, isa=isa)(tokens)
            expected, _ = fastlstm.Model(dense, isa=isa)(np.eye(11, dtype="f4")[tokens])
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", TOKEN_DTYPES)
    def test_every_kind_of_integer(self, model, rng, dtype):
        tokens = rng.integers(0, 11, 8)
        y, _ = model(tokens)
        stream = model.stream()
        for t, token in enumerate(tokens.tolist()):
            stream.reset()
            stream.run(tokens[:t])
            for given_token in (token, dtype(token), np.array(token, dtype)):
                assert_same_bits(stream.clone().step(given_token), y[t])
        assert_same_bits(model(tokens.astype(dtype))[0], y)
        swapped = tokens.astype(np.dtype(dtype).newbyteorder())
        assert_same_bits(model(swapped)[0], y)

    def test_an_integer_enum(self, model):
        import enum

        class Letter(enum.IntEnum):
            A = 3

        assert_same_bits(model.stream().step(Letter.A), model.stream().step(3))

    @pytest.mark.parametrize("dtype", TOKEN_DTYPES)
    def test_batches(self, model, rng, dtype):
        tokens = rng.integers(0, 11, (8, 5)).astype(dtype)
        y, _ = model(tokens)
        stream = model.stream(5)
        assert_same_bits(np.stack([stream.step(row) for row in tokens[:4]]), y[:4])
        assert_same_bits(stream.run(tokens[4:]), y[4:])

    def test_first_and_last_token(self, model):
        for token in (0, 10):
            assert_same_bits(model.stream().step(token), model(np.array([token]))[0][0])


class TestThreads:
    def test_a_stream_in_use_raises_and_stays_whole(self, rng):
        # A step of this model takes about a millisecond, so the run a third of a second, and the
        # GIL is free meanwhile.
        big = exact(recurrent("lstm", 512, 1024), rng)
        x_step, block = input_for(big, rng), input_for(big, rng, 300)
        stream, twin = big.stream(), big.stream()
        stream.step(x_step)
        results = []

        def work() -> None:
            while not results:  # until the stream is not just being read
                with contextlib.suppress(RuntimeError):
                    results.append(stream.run(block))

        worker = threading.Thread(target=work)
        worker.start()
        refused = None
        while refused is None and not results:
            try:
                _ = stream.state
            except RuntimeError as error:
                refused = error
        assert refused is not None, "the worker was never met at work"
        attempts = (
            lambda: stream.step(x_step),
            lambda: stream.run(block[:1]),
            lambda: stream.state,
            lambda: setattr(stream, "state", twin.state),
            stream.reset,
            stream.clone,
            lambda: pickle.dumps(stream),
            lambda: copy.copy(stream),
        )
        for attempt in attempts:
            assert not results, "the worker finished too early; give it a longer block"
            with pytest.raises(RuntimeError, match="in use by another thread"):
                attempt()
        worker.join()
        assert "stream.clone()" in str(refused)
        twin.step(x_step)
        assert_same_bits(results[0], twin.run(block))
        assert_same_state(stream.state, twin.state)
        assert_same_bits(stream.step(x_step), twin.step(x_step))

    def test_a_stream_is_free_again_after_an_error(self, rng):
        model = exact(recurrent("lstm", 3, 4), rng)
        stream, x = model.stream(), input_for(model, rng)
        for wrong in (None, x[:2], x.astype("f8")):
            for call in (stream.step, stream.run):
                with pytest.raises((TypeError, ValueError)):
                    call(wrong)
            with pytest.raises((TypeError, ValueError)):
                stream.step(x, out=wrong if wrong is not None else 3)
            with pytest.raises((TypeError, ValueError)):
                stream.state = {"rnn.h": wrong}
        assert not any(a.any() for a in stream.state.values())
        assert_same_bits(stream.step(x), model(x[None])[0][0])

    @pytest.mark.parametrize("name", ["lstm_stack", "classifier", "embedding"])
    def test_a_model_is_shared(self, name, isa, rng):
        model = exact(layers_of(name, LANES[isa]), rng, isa=isa)
        xs = [input_for(model, rng, 400) for _ in range(4)]
        expected = [model(x) for x in xs]
        barrier, wrong = threading.Barrier(4), []

        def work(i):
            barrier.wait()
            for _ in range(3):
                y, state = model(xs[i])
                stream = model.stream()
                stepped = np.stack([stream.step(x_t) for x_t in xs[i][:50]])
                ran = stream.run(xs[i][50:])
                same = (
                    np.array_equal(y, expected[i][0]),
                    np.array_equal(np.concatenate([stepped, ran]), expected[i][0]),
                    all(np.array_equal(stream.state[n], a) for n, a in state.items()),
                    all(np.array_equal(expected[i][1][n], a) for n, a in state.items()),
                )
                if not all(same):
                    wrong.append((i, same))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
