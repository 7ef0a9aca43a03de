"""LSTM, GRU, RNN and their cells: torch's constructor, names and call, on NumPy arrays."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing
import warnings

import numpy as np
import pytest
from chain import reference
from models import chain_of, random_tensors, recurrent

import fastlstm

STACKS = ("LSTM", "GRU", "RNN")
MODULES = (*STACKS, *(f"{name}Cell" for name in STACKS))
OPTIONS = [
    {},
    {"num_layers": 3, "dropout": 0.3},
    {"bias": False},
    {"bidirectional": True, "num_layers": 2},
    {"batch_first": True},
    {"batch_first": True, "bidirectional": True, "bias": False},
]
CASES = [(name, options) for name in STACKS for options in OPTIONS]
CASES += [("LSTM", o | {"proj_size": 4}) for o in OPTIONS]
CASES += [("RNN", o | {"nonlinearity": "relu"}) for o in OPTIONS[:4]]
I, H = 5, 9  # noqa: E741


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="compares with torch's own modules")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield torch


def pair(torch, name: str, *args, seed: int = 3, **options):
    """torch's module and ours with its weights."""
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, name)(*args, **options).eval()
    ours = getattr(fastlstm, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def weights(name: str, rng: np.random.Generator, **options) -> dict[str, np.ndarray]:
    cell = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[name.removesuffix("Cell")]
    tensors = random_tensors([recurrent(cell, I, H, **options)], rng)
    suffix = "_l0" if name.endswith("Cell") else ""
    return {n.removeprefix("rnn.").removesuffix(suffix): a for n, a in tensors.items()}


def assert_same(ours, theirs) -> None:
    """Same nesting of tuples, same shapes, same numbers."""
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple)
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
        return
    assert isinstance(ours, np.ndarray)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-6)


def random_hx(torch, module, name: str, leading: tuple[int, ...], rng):
    """A state as torch wants it, twice: arrays and tensors."""
    sizes = [getattr(module, "proj_size", 0) or H, H][: 2 if name.startswith("LSTM") else 1]
    arrays = [rng.standard_normal((*leading, size)).astype(np.float32) for size in sizes]
    tensors = [torch.from_numpy(a) for a in arrays]
    return (tuple(arrays), tuple(tensors)) if len(arrays) > 1 else (arrays[0], tensors[0])


class TestLikeTorch:
    @pytest.mark.parametrize(("name", "options"), CASES)
    @pytest.mark.parametrize("batch", [None, 1, 4])
    def test_stack(self, torch, rng, name, options, batch):
        theirs, ours = pair(torch, name, I, H, **options)
        rows = () if batch is None else (batch,)
        shape = (*rows, 7, I) if options.get("batch_first") else (7, *rows, I)
        x = rng.standard_normal(shape).astype(np.float32)
        assert_same(ours(x), theirs(torch.from_numpy(x)))
        depth = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        hx, hx_torch = random_hx(torch, theirs, name, (depth, *rows), rng)
        assert_same(ours(x, hx), theirs(torch.from_numpy(x), hx_torch))
        assert_same(ours(x, hx=hx), theirs(torch.from_numpy(x), hx=hx_torch))
        assert_same(ours(input=x), theirs(input=torch.from_numpy(x)))

    @pytest.mark.parametrize("name", [f"{name}Cell" for name in STACKS])
    @pytest.mark.parametrize("batch", [None, 1, 4])
    def test_cell(self, torch, rng, name, batch):
        for options in ({}, {"bias": False}):
            theirs, ours = pair(torch, name, I, H, **options)
            rows = () if batch is None else (batch,)
            x = rng.standard_normal((*rows, I)).astype(np.float32)
            assert_same(ours(x), theirs(torch.from_numpy(x)))
            hx, hx_torch = random_hx(torch, theirs, name, rows, rng)
            assert_same(ours(x, hx), theirs(torch.from_numpy(x), hx_torch))

    def test_relu_cell(self, torch, rng):
        theirs, ours = pair(torch, "RNNCell", I, H, nonlinearity="relu")
        x = rng.standard_normal((3, I)).astype(np.float32)
        assert_same(ours(x), theirs(torch.from_numpy(x)))

    @pytest.mark.parametrize("name", STACKS)
    def test_output_is_the_start_of_the_next_call(self, torch, rng, name):
        theirs, ours = pair(torch, name, I, H, num_layers=2)
        x = rng.standard_normal((8, 3, I)).astype(np.float32)
        _, hx = ours(x[:5])
        assert_same(ours(x[5:], hx)[0], theirs(torch.from_numpy(x))[0][5:])

    @pytest.mark.parametrize("name", MODULES)
    def test_state_dict_round_trip(self, torch, name):
        theirs, ours = pair(torch, name, I, H)
        mine, expected = ours.state_dict(), theirs.state_dict()
        assert list(mine) == list(expected)
        for key, array in mine.items():
            assert np.array_equal(array, expected[key].numpy())
        again = getattr(torch.nn, name)(I, H)
        again.load_state_dict({k: torch.from_numpy(a) for k, a in mine.items()})
        ours.load_state_dict(mine)
        assert all(np.array_equal(ours.state_dict()[k], a) for k, a in mine.items())

    @pytest.mark.parametrize(("name", "options"), CASES)
    def test_state_dict_names(self, torch, name, options):
        theirs, ours = pair(torch, name, I, H, **options)
        assert {k: a.shape for k, a in ours.state_dict().items()} == {
            k: tuple(t.shape) for k, t in theirs.state_dict().items()
        }

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_other_dtypes_are_converted(self, torch, rng, dtype):
        theirs = torch.nn.GRU(I, H).to(getattr(torch, dtype))
        ours = fastlstm.GRU(I, H)
        ours.load_state_dict(theirs.state_dict())
        x = rng.standard_normal((7, I)).astype(np.float32)
        assert_same(ours(x), theirs.float()(torch.from_numpy(x)))

    def test_float64(self, torch, rng):
        theirs = torch.nn.LSTM(I, H, dtype=torch.float64)
        ours = fastlstm.LSTM(I, H, dtype=np.float64)
        ours.load_state_dict(theirs.state_dict())
        x = rng.standard_normal((7, 2, I))
        y, (h, c) = ours(x)
        expected, (h_torch, c_torch) = theirs(torch.from_numpy(x))
        for a, b in ((y, expected), (h, h_torch), (c, c_torch)):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-14)

    def test_does_not_share_memory_with_the_module(self, torch, rng):
        theirs, ours = pair(torch, "LSTM", I, H)
        x = rng.standard_normal((7, I)).astype(np.float32)
        before = ours(x)[0]
        for parameter in theirs.parameters():
            parameter.zero_()
        assert np.array_equal(ours(x)[0], before)


def torch_signature(cls) -> dict[str, inspect.Parameter]:
    """Of the constructor, which torch's stacks only declare as an overload."""
    overloads = typing.get_overloads(cls.__init__)
    return dict(inspect.signature(overloads[0] if overloads else cls.__init__).parameters)


class TestConstructor:
    @pytest.mark.parametrize("name", MODULES)
    def test_positions_and_defaults_are_torchs(self, torch, name):
        theirs = torch_signature(getattr(torch.nn, name))
        theirs = {n: p for n, p in theirs.items() if n not in ("self", "device", "dtype")}
        ours = inspect.signature(getattr(fastlstm, name)).parameters
        assert [n for n in ours if n != "dtype"] == list(theirs)
        for parameter, expected in theirs.items():
            assert ours[parameter].default == expected.default
            assert ours[parameter].kind == inspect.Parameter.POSITIONAL_OR_KEYWORD

    @pytest.mark.parametrize("name", MODULES)
    def test_dtype_comes_by_name_only(self, name):
        """In torch device comes before it: a third party's positional dtype would be misread."""
        dtype = inspect.signature(getattr(fastlstm, name)).parameters["dtype"]
        assert dtype.kind == inspect.Parameter.KEYWORD_ONLY

    def test_all_by_position(self, torch, rng):
        arguments = {
            "LSTM": (I, H, 2, False, True, 0.1, True, 4),
            "GRU": (I, H, 2, False, True, 0.1, True),
            "RNN": (I, H, 2, "relu", False, True, 0.1, True),
            "LSTMCell": (I, H, False),
            "GRUCell": (I, H, False),
            "RNNCell": (I, H, False, "relu"),
        }
        for name, args in arguments.items():
            with warnings.catch_warnings():
                theirs, ours = pair(torch, name, *args)
            names = [n for n in torch_signature(type(theirs)) if n != "self"][: len(args)]
            for attribute in names:
                assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
            x = rng.standard_normal((3, 4, I)[name.endswith("Cell") :]).astype(np.float32)
            assert_same(ours(x), theirs(torch.from_numpy(x)))

    @pytest.mark.parametrize(
        ("name", "options", "match"),
        [
            ("LSTM", {"num_layers": 0}, "num_layers is 0"),
            ("LSTM", {"proj_size": H}, "proj_size is 9; expected less than hidden_size"),
            ("LSTM", {"proj_size": -1}, "proj_size is -1"),
            ("LSTM", {"bias": 1}, "bias is 1; expected true or false"),
            ("GRU", {"dropout": 1.5}, r"dropout is 1\.5; expected a probability"),
            ("GRU", {"dropout": float("nan")}, "dropout is nan"),
            ("RNN", {"nonlinearity": "sigmoid"}, "nonlinearity is 'sigmoid'.*'tanh' or 'relu'"),
            ("RNN", {"bidirectional": 2}, "bidirectional is 2"),
        ],
    )
    def test_wrong_options(self, name, options, match):
        with pytest.raises(ValueError, match=match):
            getattr(fastlstm, name)(I, H, **options)

    @pytest.mark.parametrize("sizes", [(0, H), (I, 0), (-1, H), (I, 2.0), ("5", H), (True, H)])
    @pytest.mark.parametrize("name", MODULES)
    def test_wrong_sizes(self, name, sizes):
        expected = r"(input|hidden)_size is .*expected an integer"
        with pytest.raises((TypeError, ValueError), match=expected):
            getattr(fastlstm, name)(*sizes)

    @pytest.mark.parametrize("name", MODULES)
    def test_unknown_options(self, name):
        with pytest.raises(TypeError, match="hidden"):
            getattr(fastlstm, name)(I, H, hidden=3)

    def test_sizes_of_numpy(self):
        """np.int64 is what a size read from an array is."""
        module = fastlstm.LSTM(np.int64(I), np.int32(H))
        assert (module.input_size, module.hidden_size) == (I, H)

    @pytest.mark.parametrize("dtype", ["float16", np.int32, "complex64", "nonsense"])
    def test_wrong_dtype(self, dtype):
        with pytest.raises(TypeError, match=r"expected float32 or float64|not understood"):
            fastlstm.LSTM(I, H, dtype=dtype)

    @pytest.mark.parametrize("name", MODULES)
    def test_repr_tells_the_options(self, name):
        text = repr(getattr(fastlstm, name)(I, H, bias=False))
        assert text.startswith(f"{name}(")
        for part in (f"input_size={I}", f"hidden_size={H}", "bias=False"):
            assert part in text


class TestWeights:
    @pytest.mark.parametrize("name", MODULES)
    def test_without_weights(self, name):
        module = getattr(fastlstm, name)(I, H)
        x = np.zeros((3, I), np.float32)
        for attempt in (lambda: module(x), module.state_dict, lambda: module.model):
            with pytest.raises(RuntimeError, match=rf"{name} has no weights.*load_state_dict"):
                attempt()

    @pytest.mark.parametrize("name", MODULES)
    @pytest.mark.parametrize(
        "change",
        [
            lambda w: dict(list(w.items())[1:]),
            lambda w: dict(list(w.items())[:-1]),
            lambda w: w | {"weight_xx": np.zeros(3, np.float32)},
            lambda w: w | {"fc.weight": np.zeros((3, 3), np.float32)},
            lambda w: {k: a[:-1] for k, a in w.items()},
            lambda w: {},
        ],
    )
    def test_missing_unknown_or_misshapen(self, name, change, rng):
        module = getattr(fastlstm, name)(I, H)
        with pytest.raises(fastlstm.ConvertError):
            module.load_state_dict(change(weights(name, rng)))

    @pytest.mark.parametrize(
        ("theirs", "ours", "options"),
        [
            ("LSTM", "GRU", {}),
            ("GRU", "LSTM", {}),
            ("LSTM", "RNN", {}),
            ("LSTM", "LSTM", {"hidden_size": H + 1}),
            ("LSTM", "LSTM", {"input_size": I + 1}),
            ("LSTM", "LSTM", {"num_layers": 2}),
            ("LSTM", "LSTM", {"bias": False}),
            ("LSTM", "LSTM", {"bidirectional": True}),
            ("LSTM", "LSTM", {"proj_size": 3}),
        ],
    )
    def test_of_another_module(self, theirs, ours, options, rng):
        sizes = {"input_size": I, "hidden_size": H}
        module = getattr(fastlstm, ours)(**(sizes | options))
        with pytest.raises(fastlstm.ConvertError) as error:
            module.load_state_dict(weights(theirs, rng))
        message = str(error.value)
        if theirs != "LSTM" or ours != "RNN":  # there, that a nonlinearity was given is said first
            assert "this module is" in message
            for name in options:
                assert name in message

    def test_failed_load_keeps_the_weights(self, rng):
        module = fastlstm.GRU(I, H)
        module.load_state_dict(weights("GRU", rng))
        x = rng.standard_normal((3, I)).astype(np.float32)
        before = module(x)[0]
        with pytest.raises(fastlstm.ConvertError):
            module.load_state_dict(weights("LSTM", rng))
        assert np.array_equal(module(x)[0], before)

    @pytest.mark.parametrize("wrong", [None, 3, "weights.pt", [1, 2]])
    def test_not_a_mapping(self, wrong):
        with pytest.raises((TypeError, fastlstm.ConvertError, OSError)):
            fastlstm.GRU(I, H).load_state_dict(wrong)

    @pytest.mark.parametrize("name", MODULES)
    def test_plain_arrays(self, name, rng):
        """No torch needed: a mapping of arrays, in any order."""
        module, given_ = getattr(fastlstm, name)(I, H), weights(name, rng)
        module.load_state_dict(dict(reversed(given_.items())))
        assert list(module.state_dict()) == list(given_)
        for key, array in module.state_dict().items():
            assert np.array_equal(array, given_[key])

    @pytest.mark.parametrize("name", MODULES)
    def test_against_reference(self, name, rng):
        """The same equations without torch, so that this file means something alone."""
        module, given_ = getattr(fastlstm, name)(I, H), weights(name, rng)
        module.load_state_dict(given_)
        layer = chain_of(module.model)[0]
        x = rng.standard_normal((1, 3, I)).astype(np.float32)
        y, _ = reference.forward([layer], module.model.tensors, x)
        got = module(x[0] if name.endswith("Cell") else x)
        got = got[0] if isinstance(got, tuple) else got
        np.testing.assert_allclose(got, y[0] if name.endswith("Cell") else y, rtol=0, atol=2e-6)

    @pytest.mark.parametrize("name", MODULES)
    def test_eval_pickle_and_copy(self, name, rng):
        module = getattr(fastlstm, name)(I, H)
        module.load_state_dict(weights(name, rng))
        assert module.eval() is module
        x = rng.standard_normal((3, I)).astype(np.float32)
        expected = module(x)
        for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            got = twin(x)
            np.testing.assert_equal(got, expected)


class TestCall:
    @pytest.fixture
    def lstm(self, rng):
        module = fastlstm.LSTM(I, H)
        module.load_state_dict(weights("LSTM", rng))
        return module

    @pytest.fixture
    def gru(self, rng):
        module = fastlstm.GRU(I, H)
        module.load_state_dict(weights("GRU", rng))
        return module

    @pytest.mark.parametrize("hx", [3, "h", {"h": 1}, np.zeros((2, 1, H), "f4")])
    def test_lstm_state_is_a_pair(self, lstm, hx):
        with pytest.raises(TypeError, match=r"expected a tuple \(h, c\) of arrays"):
            lstm(np.zeros((3, I), "f4"), hx)

    def test_lstm_state_of_one_or_three(self, lstm):
        h = np.zeros((1, H), "f4")
        for hx in ((h,), (h, h, h), ()):
            with pytest.raises(TypeError, match="expected a tuple"):
                lstm(np.zeros((3, I), "f4"), hx)

    def test_wrong_shapes(self, lstm, gru):
        h = np.zeros((1, H), "f4")
        with pytest.raises(ValueError, match=r"\(1, 9\); expected \(1, 2, 9\)"):
            gru(np.zeros((3, 2, I), "f4"), h)
        with pytest.raises(ValueError, match=r"\(1, 8\); expected \(1, 9\)"):
            lstm(np.zeros((3, I), "f4"), (h, h[:, 1:]))
        with pytest.raises(ValueError, match=r"\(3, 4\); expected \(T, 5\)"):
            gru(np.zeros((3, I - 1), "f4"))

    def test_wrong_types(self, lstm, gru):
        h = np.zeros((1, H), "f4")
        with pytest.raises(TypeError, match=r"float64.*float32"):
            gru(np.zeros((3, I)))
        with pytest.raises(TypeError, match=r"float64.*float32"):
            gru(np.zeros((3, I), "f4"), h.astype("f8"))
        with pytest.raises(TypeError, match="NumPy array"):
            gru([[0.0] * I])
        with pytest.raises(TypeError, match="NumPy array"):
            lstm(np.zeros((3, I), "f4"), (h, None))

    @pytest.mark.parametrize("name", [f"{name}Cell" for name in STACKS])
    def test_cells_refuse_what_torchs_refuse(self, name, rng):
        cell = getattr(fastlstm, name)(I, H)
        cell.load_state_dict(weights(name, rng))
        for shape in ((), (2, 3, I)):
            with pytest.raises(ValueError, match=r"expected \(I,\) or \(B, I\)"):
                cell(np.zeros(shape, "f4"))
        with pytest.raises(TypeError, match="expected a NumPy array"):
            cell([0.0] * I)
        hx = np.zeros((2, H), "f4")
        with pytest.raises(ValueError, match="has shape"):
            cell(np.zeros((3, I), "f4"), (hx, hx) if name == "LSTMCell" else hx)
        with pytest.raises(TypeError, match="float64"):
            cell(np.zeros((3, I)))

    def test_state_is_not_changed(self, lstm, rng):
        hx = tuple(rng.standard_normal((1, H)).astype("f4") for _ in range(2))
        kept = [a.copy() for a in hx]
        lstm(rng.standard_normal((3, I)).astype("f4"), hx)
        assert all(np.array_equal(a, b) for a, b in zip(hx, kept, strict=True))

    def test_streams_through_its_model(self, lstm, rng):
        x = rng.standard_normal((6, I)).astype("f4")
        y, (h, c) = lstm(x)
        stream = lstm.model.stream()
        assert np.array_equal(np.stack([stream.step(x_t) for x_t in x]), y)
        state = list(stream.state.values())
        assert np.array_equal(state[0], h)
        assert np.array_equal(state[1], c)
