"""Sequences of different lengths: lists of arrays, and torch's PackedSequence in its modules.

Each gives the bits that it gives alone; what would be padding is not computed.
"""

from __future__ import annotations

import warnings
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import (
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
from ways import assert_same_bits, assert_same_state, row_of, rows_of

import fastlstm
from fastlstm import Model, processors

I, H = 5, 9  # noqa: E741


ALL = tuple(every_model(1))
EVERY_MODEL = pytest.mark.parametrize(("kind", "isa"), by_turns(ALL))


def sequences_for(model: Model, rng: np.random.Generator, *lengths: int) -> list[np.ndarray]:
    return [input_for(model, rng, length) for length in lengths]


def start_for(model: Model, rng: np.random.Generator, B: int) -> dict[str, np.ndarray]:
    """A random state, of a model that pools one from which every row still makes the same rows."""
    state = state_for(model, rng, B)
    for array in state.values():
        if array.dtype == np.int64 and model.pools_over_time:
            array[...] = 0
    return state


def check(model: Model, x: Any, start: Any = None) -> None:
    """Each sequence of a list is that sequence alone."""
    ys, after = model(x, start)
    assert isinstance(ys, list)
    assert len(ys) == len(x)
    start = model.initial_state(len(x)) if start is None else start
    for b, (one, y) in enumerate(zip(x, ys, strict=True)):
        if model.pools_over_time and spec.output_steps(chain_of(model), len(one)) == 0:
            assert y.shape == (model.output_size,)
            assert not y.any()
            continue  # alone it would be refused
        alone, alone_after = model(one, row_of(start, b))
        assert_same_bits(y, alone)
        assert_same_state(row_of(after, b), alone_after)


class TestLists:
    @EVERY_MODEL
    def test_each_is_that_sequence_alone(self, isa, kind, rng):
        model = build(every_model(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        for lengths in ((9,), (3, 0, 11, 1, 7, 11, 5), rng.integers(0, 24, 8), (1, 2, 6, 30)):
            x = sequences_for(model, rng, *lengths)
            check(model, x)
            check(model, tuple(x), start_for(model, rng, len(x)))

    @EVERY_MODEL
    def test_as_a_padded_batch(self, isa, kind, rng):
        model = build(every_model(LANES[isa])[kind], rng, isa=isa)
        lengths = np.array([9, 0, 12, 5, 8])
        x, start = input_for(model, rng, 12, 5), start_for(model, rng, 5)
        y, after = model(x, start, lengths=lengths)
        listed = [x[:n, b] for b, n in enumerate(lengths)]
        got, got_after = model(listed, start)
        assert_same_state(got_after, after)
        for row, one in zip(rows_of(model, y), got, strict=True):
            if model.pools_over_time:
                assert_same_bits(one, row)
            else:
                assert_same_bits(one, row[: len(one)])
                assert not row[len(one) :].any()

    @pytest.mark.parametrize("kind", ["lstm", "delayed", "classifier", "mean", "looks_ahead"])
    def test_float64(self, kind, rng):
        model = build(every_model(1)[kind], rng, np.float64, reproducible=True)
        x = sequences_for(model, rng, 3, 17, 0, 8)
        check(model, x)
        check(model, x, start_for(model, rng, 4))

    @pytest.mark.parametrize("kind", ["lstm", "gru_both", "last", "classifier"])
    def test_several_threads(self, isa, kind, rng, monkeypatch):
        monkeypatch.setattr(processors, "available", lambda: 4)
        file = model_file(every_model(3 * LANES[isa])[kind], rng)
        for threads in (2, 3):
            model = Model(file, isa=isa, threads=threads, reproducible=True)
            check(model, sequences_for(model, rng, *rng.integers(0, 40, 13)))
            check(model, sequences_for(model, rng, 40))

    def test_with_a_blas_to_rounding(self, isa, rng):
        model = build(recurrent("gru", 40, 30), rng, isa=isa)
        x = sequences_for(model, rng, 200, 31, 90)
        for one, y in zip(x, model(x)[0], strict=True):
            np.testing.assert_allclose(y, model(one)[0], rtol=0, atol=4e-6)

    def test_the_state_carries_all_of_them_on(self, isa, rng):
        model = build(recurrent("lstm", 4, 9, num_layers=2), rng, isa=isa, reproducible=True)
        x = sequences_for(model, rng, 12, 3, 7, 20)
        cuts = [5, 0, 7, 13]
        first, state = model([one[:n] for one, n in zip(x, cuts, strict=True)])
        second, state = model([one[n:] for one, n in zip(x, cuts, strict=True)], state)
        expected, after = model(x)
        for y, a, b in zip(expected, first, second, strict=True):
            assert_same_bits(np.concatenate([a, b]), y)
        assert_same_state(state, after)

    @pytest.mark.parametrize("kind", ["lstm", "lstm_both", "mean", "classifier", "delayed"])
    def test_each_has_memory_of_its_own(self, kind, rng):
        """One that is kept does not keep the others, nor what padded them."""
        model = build(every_model(4)[kind], rng)
        for lengths in ((30,), (30, 7, 30, 0)):
            for y in model(sequences_for(model, rng, *lengths))[0]:
                assert y.base is None
                assert y.flags.owndata
                assert y.flags.c_contiguous
                assert y.flags.writeable

    @pytest.mark.parametrize("kind", ["lstm", "lstm_both", "mean", "classifier", "delayed"])
    def test_of_none(self, kind, rng):
        model = build(every_model(4)[kind], rng)
        for x in ([], ()):
            for start in (None, model.initial_state(0)):
                y, after = model(x, start)
                assert y == []
                assert_same_state(after, model.initial_state(0))

    @pytest.mark.parametrize("kind", ["lstm", "lstm_both", "classifier", "delayed", "looks_ahead"])
    def test_of_no_step(self, kind, rng):
        model = build(every_model(4)[kind], rng)
        start = state_for(model, rng, 3)
        for array in start.values():
            if array.dtype == np.int64:
                array[...] = 3  # steps, behind which something may be due
        y, after = model(sequences_for(model, rng, 0, 0, 0), start)
        due = 0
        if not model.looks_ahead:
            stream = model.stream(3)
            stream.state = start
            due = len(stream.flush())
        assert (due > 0) == (kind == "looks_ahead")
        assert [one.shape for one in y] == [(due, model.output_size)] * 3
        assert_same_state(after, start)

    def test_arrays_as_they_lie(self, rng):
        model = build(recurrent("gru", 3, 4), rng)
        x = sequences_for(model, rng, 6, 2, 4)
        expected, _ = model(x)
        wide = np.zeros((12, 6), np.float32)
        wide[::2, ::2] = x[0]
        backwards = np.asfortranarray(x[2])
        x[1].flags.writeable = False
        given = [wide[::2, ::2], x[1], backwards]
        kept = [one.tobytes() for one in given]
        for y, other in zip(model(given)[0], expected, strict=True):
            assert_same_bits(y, other)
        assert [one.tobytes() for one in given] == kept

    def test_the_same_array_several_times(self, rng):
        model = build(recurrent("gru", 3, 4), rng)
        (x,) = sequences_for(model, rng, 6)
        a, b, c = model([x, x[:2], x])[0]
        assert_same_bits(a, c)
        assert_same_bits(a[:2], b)

    def test_tokens_of_any_integers(self, isa, rng):
        model = build(every_model(LANES[isa])["classifier"], rng, isa=isa)
        x = sequences_for(model, rng, 4, 9, 1)
        expected, _ = model(x)
        got, _ = model([x[0].astype(np.uint8), x[1].astype(">i2"), x[2].astype(np.uint64)])
        for y, other in zip(got, expected, strict=True):
            assert_same_bits(y, other)

    def test_the_start_is_not_changed(self, rng):
        model = build(recurrent("lstm", 3, 4), rng)
        start = state_for(model, rng, 2)
        kept = {name: array.copy() for name, array in start.items()}
        model(sequences_for(model, rng, 3, 5), start)
        assert_same_state(start, kept)

    def test_one_that_is_not_finite_does_not_reach_the_others(self, rng):
        model = build(recurrent("gru", 3, 4, bidirectional=True), rng)
        x = sequences_for(model, rng, 5, 9, 3)
        expected, _ = model(x)
        x[1][4] = np.nan
        got, _ = model(x)
        assert np.isnan(got[1]).any()
        for b in (0, 2):
            assert_same_bits(got[b], expected[b])


class TestWrongLists:
    @pytest.fixture
    def model(self, rng) -> Model:
        return build(recurrent("gru", 3, 4), rng)

    @pytest.fixture
    def tokens(self, rng) -> Model:
        return build((spec.Embedding("e", 7, 3), recurrent("gru", 3, 4)), rng)

    X = (np.zeros((5, 3), np.float32), np.zeros((2, 3), np.float32))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lengths": [5, 2]},
             "lengths is an option of a batch in one array; each sequence of a list has its own"),
            ({"batch_first": True},
             "batch_first is an option of a batch in one array; the sequences of a list have no "
             "batch axis"),
            ({"reset": np.zeros((5, 2), bool)},
             "reset is an option of a batch in one array; the sequences of a list end at different "
             "steps; cut them where they start anew, or pad them into one array and give lengths="),
        ],
    )  # fmt: skip
    def test_options_of_a_batch(self, model, options, message):
        for x in (self.X, list(self.X), []):
            with pytest.raises(TypeError) as error:
                model(x, **options)
            assert str(error.value) == message

    @pytest.mark.parametrize("x", [[1.0, 2.0], [[1.0, 2.0, 3.0]], ([0.0] * 3,), [None], ["a"]])
    def test_numbers_are_no_sequences(self, model, x):
        with pytest.raises(TypeError) as error:
            model(x)
        assert str(error.value) == (
            f"x is a {type(x).__name__}; expected a NumPy array of float32 and shape (T, 3); "
            f"pass np.asarray(x, dtype=np.float32)"
        )

    @pytest.mark.parametrize("x", [[1, 2], (3,), [[1, 2], [3]], [np.int64(3)]])
    def test_nor_are_tokens(self, tokens, x):
        with pytest.raises(TypeError) as error:
            tokens(x)
        assert str(error.value) == (
            f"x is a {type(x).__name__}; this model takes tokens: expected integers of shape (T,); "
            f"pass np.asarray(x, dtype=np.int64)"
        )

    @pytest.mark.parametrize("x", [iter(X), {1.0}])
    def test_nor_are_other_collections(self, model, x):
        with pytest.raises(TypeError, match=r"^x is a \w+; expected a NumPy array of float32"):
            model(x)

    def test_nor_is_a_mapping(self, model):
        with pytest.raises(
            ValueError, match="x has 'a', 'b'; expected exactly 'input': 'a' is unkn"
        ):
            model(dict.fromkeys("ab", self.X[0]))

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            (np.zeros((4, 2), np.float32), ValueError, "x has shape (4, 2); expected (T, 3)"),
            (np.zeros(3, np.float32), ValueError, "x has shape (3,); expected (T, 3)"),
            (np.zeros((4, 1, 3), np.float32), ValueError, "x has shape (4, 1, 3); expected (T, 3)"),
            (np.zeros((4, 3)), TypeError,
             "x has dtype float64; expected float32, which the model computes in; "
             "pass x.astype(np.float32)"),
            ([[0.0, 0.0, 0.0]], TypeError,
             "x is a list; expected a NumPy array of float32 and shape (T, 3); "
             "pass np.asarray(x, dtype=np.float32)"),
            (None, TypeError,
             "x is a NoneType; expected a NumPy array of float32 and shape (T, 3); "
             "pass np.asarray(x, dtype=np.float32)"),
        ],
    )  # fmt: skip
    def test_the_wrong_one_is_named(self, model, wrong, error, message):
        with pytest.raises(error) as raised:
            model([*self.X, wrong])
        assert str(raised.value) == f"sequence 2 of the list: {message}"

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            (np.array([3, 7]), ValueError,
             "token 7 at index (1) is out of range; the model knows tokens 0 to 6"),
            (np.array([-1]), ValueError,
             "token -1 at index (0) is out of range; the model knows tokens 0 to 6"),
            (np.array([[1]]), ValueError, "x has shape (1, 1); expected (T,)"),
            (3, ValueError, "x has shape (); expected (T,)"),
            (np.array([1.0]), TypeError,
             "x has dtype float64; this model takes tokens: expected integers of shape (T,); "
             "pass x.astype(np.int64)"),
        ],
    )  # fmt: skip
    def test_wrong_tokens(self, tokens, wrong, error, message):
        with pytest.raises(error) as raised:
            tokens([np.array([0, 6]), wrong])
        assert str(raised.value) == f"sequence 1 of the list: {message}"

    def test_state_of_another_batch(self, model):
        for B in (1, 3):
            with pytest.raises(ValueError, match=rf"has shape \(1, {B}, 4\); expected \(1, 2, 4\)"):
                model(self.X, model.initial_state(B))
        with pytest.raises(ValueError, match=r"has shape \(1, 4\); expected \(1, 2, 4\)"):
            model(self.X, model.initial_state())

    def test_nothing_to_pool(self, rng):
        model = build(every_model(1)["mean"], rng)
        with pytest.raises(ValueError, match="x has 0 steps, of which this model makes no row"):
            model(sequences_for(model, rng, 0, 0))

    def test_streams_take_none(self, model):
        with pytest.raises(TypeError, match="x is a tuple; expected a NumPy array"):
            model.stream().run(self.X)


class TestPadding:
    """What lies behind the end of a row costs nothing: nobody looks there."""

    GUARDED = """
        import ctypes, mmap, sys
        import numpy as np
        from models import model_file, recurrent
        from fastlstm import Model, _engine
        import chain as spec

        isa, *kinds = sys.argv[1:]
        PAGE, SIZE = mmap.PAGESIZE, 64
        STEPS = PAGE // (4 * SIZE)  # of a page
        LAYERS = {
            "lstm": recurrent("lstm", SIZE, SIZE),
            "both": recurrent("gru", SIZE, SIZE // 2, num_layers=2, bidirectional=True),
            "norm": spec.LSTM("a", SIZE, SIZE, layer_norm="product"),
            "linear": spec.Linear("a", SIZE, SIZE),
            "causal": spec.Conv1d("a", SIZE, SIZE, 3, padding_left=2),
            "ahead": spec.Conv1d("a", SIZE, SIZE, 3, padding_left=1, padding_right=1),
        }
        rng = np.random.default_rng(7)
        pages = np.array([1, 4, 0, 3, 1, 2, 4])
        lengths, T, B = pages * STEPS, 4 * STEPS, len(pages)

        def guarded(fill):
            '''(B, T, SIZE) in memory whose pages behind the end of a row cannot be touched.'''
            block = mmap.mmap(-1, B * 4 * PAGE)
            array = np.frombuffer(block, np.float32).reshape(B, T, SIZE)
            array[...] = fill
            protect = ctypes.CDLL(None, use_errno=True).mprotect
            for row, n in zip(array, pages):
                if n < 4:
                    at = ctypes.c_void_p(row.ctypes.data + int(n) * PAGE)
                    assert protect(at, ctypes.c_size_t(int(4 - n) * PAGE), 0) == 0
            return array

        for kind in kinds:
            print(kind, file=sys.stderr, flush=True)  # which it was that killed
            file = model_file(LAYERS[kind], rng)
            model, exact = (Model(file, isa=isa, reproducible=exact) for exact in (False, True))
            x, y = guarded(rng.standard_normal((B, T, SIZE))), guarded(0)
            block = model.start_block(B, [])
            network, steps = model._network, lengths.astype(np.intp)
            (made,) = _engine.count_rows(network, block, T, steps, whole=True)
            _engine.run_whole(network, [x.swapaxes(0, 1)], [y.swapaxes(0, 1)], block, steps)
            got, _ = model(x, lengths=lengths, batch_first=True)
            for b, n in enumerate(lengths):
                alone, _ = exact(x[b, :n])
                assert np.array_equal(y[b, :made[b]], alone[:made[b]])
                assert np.array_equal(got[b, :n], alone)
                assert not got[b, n:].any()
            print(kind, flush=True)
    """

    def test_its_memory_is_not_touched(self, isa, python):
        """Neither that of x nor that of y: a process that reads or writes it is killed."""
        kinds = ["lstm", "both", "norm", "linear", "causal", "ahead"]
        assert python(self.GUARDED, isa, *kinds).split() == kinds

    def test_the_guard_would_kill(self, python):
        with pytest.raises(AssertionError, match="exit code -11"):
            python(
                self.GUARDED.replace("block, steps)\n", "block, None)\n"),
                "scalar",
                "causal",
            )

    def test_whatever_it_holds(self, isa, rng, monkeypatch):
        """Of a list: the memory that pads it is that of an array that was never filled."""
        model = build(recurrent("lstm", 3, 9), rng, isa=isa, reproducible=True)
        x = sequences_for(model, rng, 4, 9, 0, 1)
        expected, after = model(x)
        fill = np.full
        monkeypatch.setattr(np, "empty", lambda shape, dtype: fill(shape, np.nan, dtype))
        got, got_after = model(x)
        monkeypatch.undo()
        assert_same_state(got_after, after)
        for a, b in zip(got, expected, strict=True):
            assert_same_bits(a, b)


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="packs sequences with torch, and compares")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield torch


OPTIONS = [
    {},
    {"num_layers": 2},
    {"bidirectional": True, "num_layers": 2},
    {"batch_first": True, "bias": False},
]
CASES = [(name, options) for name in ("LSTM", "GRU", "RNN") for options in OPTIONS]
CASES += [("LSTM", o | {"proj_size": 4}) for o in OPTIONS]
CASES += [("RNN", o | {"nonlinearity": "relu"}) for o in OPTIONS]


def pair(torch, name: str, dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """torch's module and ours with its weights."""
    torch.manual_seed(3)
    theirs = getattr(torch.nn, name)(I, H, dtype=getattr(torch, dtype), **options).eval()
    ours = getattr(fastlstm, name)(I, H, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def pack(torch, rng, lengths, dtype: str = "float32", **options: Any) -> Any:
    arrays = [rng.standard_normal((n, I)).astype(dtype) for n in lengths]
    tensors = [torch.from_numpy(array) for array in arrays]
    return torch.nn.utils.rnn.pack_sequence(tensors, **options)


def random_hx(torch, module, B: int, rng, dtype: str = "float32") -> tuple[Any, Any]:
    """A state as torch wants it, twice: arrays and tensors."""
    depth = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [getattr(module, "proj_size", 0) or H]
    sizes += [H] if isinstance(module, torch.nn.LSTM) else []
    arrays = [rng.standard_normal((depth, B, size)).astype(dtype) for size in sizes]
    tensors = [torch.from_numpy(array) for array in arrays]
    return (tuple(arrays), tuple(tensors)) if len(arrays) > 1 else (arrays[0], tensors[0])


def assert_close(ours: Any, theirs: Any, atol: float = 2e-6) -> None:
    """The same kind of thing, tensors in the same places, with the same numbers."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, atol)
    elif theirs is not None:
        assert (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device)
        assert ours.is_contiguous()
        np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=0, atol=atol)


SORTED, UNSORTED = [7, 5, 5, 2, 1], [2, 7, 1, 5, 5]


class TestPackedSequence:
    @pytest.mark.parametrize(("name", "options"), CASES)
    @pytest.mark.parametrize("lengths", [SORTED, UNSORTED, [4], [3, 3, 3]])
    def test_like_torch(self, torch, rng, name, options, lengths):
        theirs, ours = pair(torch, name, **options)
        in_order = lengths == sorted(lengths, reverse=True)
        for enforce_sorted in (True, False) if in_order else (False,):
            packed = pack(torch, rng, lengths, enforce_sorted=enforce_sorted)
            hx, hx_torch = random_hx(torch, theirs, len(lengths), rng)
            with torch.no_grad():
                assert_close(ours(packed), theirs(packed))
                expected = theirs(packed, hx_torch)
                assert_close(ours(packed, hx), expected)
                assert_close(ours(packed, hx=hx_torch), expected)

    @pytest.mark.parametrize(("name", "options"), CASES)
    def test_float64(self, torch, rng, name, options):
        theirs, ours = pair(torch, name, "float64", **options)
        packed = pack(torch, rng, UNSORTED, "float64", enforce_sorted=False)
        hx, hx_torch = random_hx(torch, theirs, 5, rng, "float64")
        with torch.no_grad():
            expected = theirs(packed, hx_torch)
        for start in (hx, hx_torch):
            assert_close(ours(packed, start), expected, 1e-14)

    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
    def test_bits_are_those_of_each_alone(self, torch, rng, name, bidirectional):
        theirs, ours = pair(torch, name, num_layers=2, bidirectional=bidirectional)
        hx, _ = random_hx(torch, theirs, 5, rng)
        for lengths, in_order in ((SORTED, True), (UNSORTED, False)):
            packed = pack(torch, rng, lengths, enforce_sorted=in_order)
            output, state = ours(packed, hx)
            several = isinstance(state, tuple)
            sequences = torch.nn.utils.rnn.unpack_sequence(packed)
            outputs = torch.nn.utils.rnn.unpack_sequence(output)
            for b, (x, y) in enumerate(zip(sequences, outputs, strict=True)):
                row = tuple(a[:, b] for a in hx) if several else hx[:, b]
                alone, alone_state = ours(x.numpy(), row)
                assert_same_bits(y.numpy(), alone)
                for got, expected in zip(
                    state if several else [state],
                    alone_state if several else [alone_state],
                    strict=True,
                ):
                    assert_same_bits(got[:, b].numpy(), expected)

    @pytest.mark.parametrize("batch_first", [False, True])
    def test_of_a_padded_batch_and_back(self, torch, rng, batch_first):
        """However it was packed, and whatever the module's batch_first."""
        x = rng.standard_normal((5, 7, I) if batch_first else (7, 5, I)).astype(np.float32)
        rnn = torch.nn.utils.rnn
        for module_has in (False, True):
            theirs, ours = pair(torch, "GRU", batch_first=module_has)
            packed = rnn.pack_padded_sequence(
                torch.from_numpy(x), UNSORTED, batch_first, enforce_sorted=False
            )
            with torch.no_grad():
                expected, h = theirs(packed)
            got, h_n = ours(packed)
            assert_close(h_n, h)
            padded = [rnn.pad_packed_sequence(y, batch_first)[0] for y in (got, expected)]
            assert_close(*padded)

    def test_the_state_is_the_start_of_the_next_call(self, torch, rng):
        theirs, ours = pair(torch, "LSTM", num_layers=2)
        first = pack(torch, rng, UNSORTED, enforce_sorted=False)
        second = pack(torch, rng, SORTED[::-1], enforce_sorted=False)
        with torch.no_grad():
            expected = theirs(second, theirs(first)[1])
        assert_close(ours(second, ours(first)[1]), expected)

    def test_the_answer_has_memory_of_its_own(self, torch, rng):
        theirs, ours = pair(torch, "GRU")
        packed = pack(torch, rng, SORTED)
        kept = packed.data.clone()
        hx, hx_torch = random_hx(torch, theirs, 5, rng)
        output, h_n = ours(packed, hx_torch)
        again, _ = ours(packed, hx_torch)
        output.data.zero_()
        h_n.zero_()
        assert torch.equal(packed.data, kept)
        assert np.array_equal(hx_torch.numpy(), hx)
        assert_close(ours(packed, hx_torch)[0], again)

    def test_of_tensors_with_a_gradient(self, torch, rng):
        theirs, ours = pair(torch, "LSTM")
        packed = pack(torch, rng, UNSORTED, enforce_sorted=False)
        with torch.no_grad():
            expected = theirs(packed)
        packed.data.requires_grad_()
        h, c = (torch.zeros(1, 5, H, requires_grad=True) for _ in range(2))
        output, (h_n, c_n) = ours(packed, (h, c))
        assert_close((output, (h_n, c_n)), expected)
        assert not any(t.requires_grad for t in (output.data, h_n, c_n))

    def test_data_that_does_not_lie_in_order(self, torch, rng):
        _, ours = pair(torch, "GRU")
        packed = pack(torch, rng, SORTED)
        wide = torch.zeros(len(packed.data), 2 * I)
        wide[:, ::2] = packed.data
        strided = packed._replace(data=wide[:, ::2])
        assert not strided.data.is_contiguous()
        assert_close(ours(strided)[0], ours(packed)[0])

    def test_arrays_still_give_arrays(self, torch, rng):
        _, ours = pair(torch, "LSTM")
        y, (h, c) = ours(rng.standard_normal((4, 2, I)).astype(np.float32))
        assert all(type(a) is np.ndarray for a in (y, h, c))

    def test_torch_is_not_imported_for_anything_else(self, python):
        code = """
            import sys
            import numpy as np
            import fastlstm

            gru = fastlstm.GRU(2, 3)
            gru.load_state_dict({
                "weight_ih_l0": np.ones((9, 2), "f4"), "weight_hh_l0": np.ones((9, 3), "f4"),
                "bias_ih_l0": np.ones(9, "f4"), "bias_hh_l0": np.ones(9, "f4"),
            })
            gru(np.ones((4, 2), "f4"))
            gru.model([np.ones((4, 2), "f4"), np.ones((1, 2), "f4")])
            print("torch" in sys.modules)
        """
        assert python(code) == "False\n"


class TestWrongPackedSequences:
    @pytest.fixture
    def gru(self, torch):
        return pair(torch, "GRU")[1]

    @pytest.fixture
    def packed(self, torch, rng):
        return pack(torch, rng, UNSORTED, enforce_sorted=False)

    def test_a_model_names_who_takes_it(self, gru, packed):
        with pytest.raises(TypeError) as error:
            gru.model(packed)
        assert str(error.value) == (
            "x is a PackedSequence; expected NumPy arrays: call fastlstm.LSTM, GRU or RNN with it, "
            "or give a padded batch with lengths="
        )

    def test_cells_and_streams_take_none(self, torch, gru, packed):
        cell = fastlstm.GRUCell(I, H)
        with pytest.raises(TypeError, match="input is a PackedSequence; expected a NumPy array"):
            cell(packed)
        with pytest.raises(TypeError, match="PackedSequence; expected a NumPy array of float32"):
            gru.model.stream().run(packed)

    def test_modules_take_no_lists(self, gru):
        for x in ([np.zeros((3, I), "f4")], (np.zeros((3, I), "f4"),)):
            with pytest.raises(TypeError) as error:
                gru(x)
            assert str(error.value) == (
                f"input is a {type(x).__name__}; expected a NumPy array or a PackedSequence; "
                f"sequences of different lengths in a list go to the attribute model of this GRU"
            )
            assert len(gru.model(x)[0]) == 1

    def test_without_weights(self, packed):
        with pytest.raises(RuntimeError, match="GRU has no weights yet; call load_state_dict"):
            fastlstm.GRU(I, H)(packed)

    @pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int64", "complex64"])
    def test_of_another_dtype(self, torch, gru, packed, dtype):
        with pytest.raises(TypeError) as error:
            gru(packed.to(getattr(torch, dtype)))
        assert str(error.value) == (
            f"input is of torch.{dtype}; expected torch.float32, which this module computes in; "
            f"use its to(torch.float32)"
        )
        h = torch.zeros(1, 5, H, dtype=getattr(torch, dtype))
        with pytest.raises(TypeError) as error:
            gru(packed, h)
        assert str(error.value) == (
            f"hx (h) is of torch.{dtype}; expected torch.float32, which this module computes in; "
            f"use its to(torch.float32)"
        )

    def test_on_another_device(self, torch, gru, packed):
        """The device that every torch has beside the CPU stands for all others."""
        with pytest.raises(TypeError) as error:
            gru(packed._replace(data=packed.data.to("meta")))
        expected = "input is on the device meta; expected the CPU; use its cpu()"
        assert str(error.value) == expected
        with pytest.raises(TypeError) as error:
            gru(packed, torch.zeros(1, 5, H, device="meta"))
        expected = "hx (h) is on the device meta; expected the CPU; use its cpu()"
        assert str(error.value) == expected

    def test_of_other_features(self, torch, gru, packed):
        for data in (packed.data[:, 1:], packed.data[:, 0], packed.data[..., None]):
            with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
                gru(packed._replace(data=data))
            shape = tuple(data.shape)
            expected = f"input has data of shape {shape}; expected (steps of all sequences, {I})"
            assert str(error.value) == expected

    @pytest.mark.parametrize(
        "sizes",
        [
            [], [19], [21], [5, 4, 3, 3, 3, 1], [5, 4, 3, 3, 3, 1, 2], [4, 5, 3, 3, 3, 1, 1],
            [5, 4, 3, 3, 3, 1, 1, 0], [10, 10, 0], [10, 11, -1], [2**62, 2**62, 2**62, 2**62, 20],
            [[5, 4, 3, 3, 3, 1, 1]],
        ],
    )  # fmt: skip
    def test_batch_sizes_that_do_not_fit(self, torch, gru, packed, sizes):
        assert len(packed.data) == 20
        given = torch.tensor(sizes, dtype=torch.int64)
        wrong = packed._replace(batch_sizes=given, sorted_indices=None, unsorted_indices=None)
        with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
            gru(wrong)
        assert str(error.value) == (
            f"input has batch_sizes {sizes!s:.80} for 20 rows of data; expected one for each step, "
            f"from the most to the fewest, that add up to them"
        )

    @pytest.mark.parametrize(
        "order", [[], [0, 1, 2, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1], [0, 0, 1, 2, 3], [[0] * 5]]
    )
    def test_indices_that_do_not_fit(self, torch, gru, packed, order):
        wrong = packed._replace(sorted_indices=torch.tensor(order, dtype=torch.int64))
        with pytest.raises(ValueError) as error:  # noqa: PT011, the whole message is compared
            gru(wrong)
        assert str(error.value) == (
            f"input has sorted_indices {order}; expected each of 0 to 4 once, the sequences of the "
            f"batch"
        )

    def test_wrong_states(self, torch, gru, packed):
        for B in (1, 4, 6):
            for h in (torch.zeros(1, B, H), np.zeros((1, B, H), "f4")):
                with pytest.raises(ValueError, match=rf"\(1, {B}, 9\); expected \(1, 5, 9\)"):
                    gru(packed, h)
        with pytest.raises(ValueError, match=r"has shape \(1, 9\); expected \(1, 5, 9\)"):
            gru(packed, torch.zeros(1, H))
        with pytest.raises(TypeError, match="is a list; expected a plain NumPy array"):
            gru(packed, [0.0] * H)
        lstm = pair(torch, "LSTM")[1]
        with pytest.raises(TypeError, match=r"hx is a Tensor; expected a tuple \(h, c\)"):
            lstm(packed, torch.zeros(1, 5, H))
