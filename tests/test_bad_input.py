"""Wrong arguments are refused with a message that helps; odd but right ones change no number.

Every message is to name what was given, what was expected and the likely fix. Every array that is
accepted gives the same bits as a plain contiguous copy of it. Wrong states are in test_stream.py,
damaged files in test_format.py and test_checkpoint.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from models import (
    CELLS,
    ISAS,
    KINDS,
    LANES,
    build,
    every_kind,
    input_for,
    model_file,
    recurrent,
    state_for,
    torch_forward,
)
from ways import in_numpy

import fastlstm
from fastlstm import Model

I, H = 5, 19  # noqa: E741

# How an input reaches a model, and the leading axes it has then
CALLS: dict[str, tuple[Callable[[Model, Any], np.ndarray], tuple[int, ...]]] = {
    "model": (lambda model, x: model(x)[0], (4,)),
    "model batched": (lambda model, x: model(x)[0], (4, 3)),
    "model batch first": (lambda model, x: model(x, batch_first=True)[0], (4, 3)),
    "step": (lambda model, x: model.stream().step(x), ()),
    "step batched": (lambda model, x: model.stream(3).step(x), (3,)),
    "run": (lambda model, x: model.stream().run(x), (4,)),
    "run batched": (lambda model, x: model.stream(3).run(x), (4, 3)),
}


@pytest.fixture(params=CALLS)
def call(request) -> Callable[[Model, Any], np.ndarray]:
    function, leading = CALLS[request.param]
    function.leading = leading
    return function


@pytest.fixture
def model(rng) -> Model:
    return build(recurrent("lstm", I, H), rng, reproducible=True)


@pytest.fixture
def tokens_model(rng) -> Model:
    layers = (spec.Embedding("e", 11, I), recurrent("gru", I, H))
    return build(layers, rng, reproducible=True)


class TestWrongInput:
    @pytest.mark.parametrize(
        "dtype",
        ["f8", "f2", "i4", "i8", "u1", "?", "c8", "O", "S4", "U4", "M8[s]", "m8[s]", "V4",
         [("x", "f4")], "g"],
    )  # fmt: skip
    def test_dtype(self, model, call, dtype):
        x = np.zeros((*call.leading, I), dtype)
        with pytest.raises(TypeError) as error:
            call(model, x)
        assert str(x.dtype) in str(error.value)
        assert "float32" in str(error.value)
        assert "x.astype(np.float32)" in str(error.value)

    def test_dtype_of_a_float64_model(self, call, rng):
        model = build(recurrent("gru", I, H), rng, np.float64)
        with pytest.raises(TypeError, match=r"float32.*float64.*x\.astype\(np\.float64\)"):
            call(model, np.zeros((*call.leading, I), np.float32))

    def test_byte_order(self, model, call, rng):
        x = input_for(model, rng, *call.leading).astype(np.dtype("f4").newbyteorder())
        with pytest.raises(TypeError, match=r">f4.*byte order.*x\.astype\(np\.float32\)"):
            call(model, x)

    @pytest.mark.parametrize(
        ("x", "name"),
        [
            (None, "NoneType"),
            ([0.0] * I, "list"),
            ((0.0,) * I, "tuple"),
            ([[0.0] * I] * 4, "list"),
            (1.5, "float"),
            (3, "int"),
            (np.float32(1), "numpy.float32"),
            ("x", "str"),
            (b"\0" * 4 * I, "bytes"),
            (bytearray(4 * I), "bytearray"),
        ],
    )
    def test_not_an_array(self, model, call, x, name):
        with pytest.raises(TypeError, match=rf"{name}.*NumPy array of float32.*np\.asarray"):
            call(model, x)

    def test_a_mapping_without_the_input(self, model, call):
        with pytest.raises(ValueError, match="x has 'x'; expected exactly 'input': 'input' is mis"):
            call(model, {"x": 1})

    def test_torch_tensor(self, model, call):
        torch = pytest.importorskip("torch", reason="passes a tensor")
        with pytest.raises(TypeError, match=r"torch\.Tensor of float64; expected float32"):
            call(model, torch.zeros((*call.leading, I), dtype=torch.float64))

    def test_masked_array(self, model, call):
        x = np.ma.masked_array(np.zeros((*call.leading, I), "f4"), mask=False)
        with pytest.raises(TypeError, match=r"MaskedArray.*NumPy array"):
            call(model, x)

    @pytest.mark.parametrize(
        "change",
        [
            lambda leading: (*leading, I - 1),
            lambda leading: (*leading, I + 1),
            lambda leading: (*leading, 0),
            lambda leading: (*leading, 1),
            lambda leading: (2, 2, 2, *leading, I),
            lambda leading: (*leading, I, 1),
            lambda leading: (),
        ],
    )
    def test_shape(self, model, call, change):
        shape = change(call.leading)
        with pytest.raises(ValueError, match="x has shape") as error:
            call(model, np.zeros(shape, "f4"))
        assert re.search(rf"{re.escape(str(shape))}; expected \(.*{I},?\)", str(error.value))

    @pytest.mark.parametrize("rows", [0, 1, 2, 4])
    def test_batch_of_another_size(self, model, rows):
        stream = model.stream(3)
        with pytest.raises(ValueError, match=rf"\({rows}, {I}\); expected \(3, {I}\)"):
            stream.step(np.zeros((rows, I), "f4"))
        with pytest.raises(ValueError, match=rf"\(4, {rows}, {I}\); expected \(T, 3, {I}\)"):
            stream.run(np.zeros((4, rows, I), "f4"))

    def test_batch_for_an_unbatched_stream_and_the_reverse(self, model):
        with pytest.raises(ValueError, match=rf"\(1, {I}\); expected \({I},\)"):
            model.stream().step(np.zeros((1, I), "f4"))
        with pytest.raises(ValueError, match=rf"\({I},\); expected \(1, {I}\)"):
            model.stream(1).step(np.zeros(I, "f4"))

    def test_unbatched_state_for_a_batch_and_the_reverse(self, model, rng):
        single, batched = (state_for(model, rng, b) for b in (None, 3))
        with pytest.raises(ValueError, match=r"\(1, 19\); expected \(1, 3, 19\)"):
            model(input_for(model, rng, 2, 3), single)
        with pytest.raises(ValueError, match=r"\(1, 3, 19\); expected \(1, 19\)"):
            model(input_for(model, rng, 2), batched)
        with pytest.raises(ValueError, match=r"\(1, 3, 19\); expected \(1, 2, 19\)"):
            model(input_for(model, rng, 3, 2), batched)

    def test_a_shape_too_large_for_any_memory(self, model):
        x = np.broadcast_to(np.zeros(I, "f4"), (2**50, I))
        for attempt in (lambda: model(x), lambda: model.stream().run(x)):
            with pytest.raises(MemoryError):
                attempt()

    @pytest.mark.parametrize("name", ["step", "run"])
    def test_arguments_unknown_missing_or_not_by_name(self, model, name):
        method, x = getattr(model.stream(), name), np.zeros((4, I)[name == "step" :], "f4")
        for args, kwargs in (((), {}), ((x, x), {}), ((x,), {"output": x})):
            with pytest.raises(TypeError):
                method(*args, **kwargs)

    @settings(max_examples=150)
    @given(
        shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        dtype=st.sampled_from(["f4", ">f4", "f8", "f2", "i8", "?", "O"]),
        which=st.sampled_from(sorted(CALLS)),
    )
    @example((4, 3, I), "f4", "model batched")
    @example((3, I), "f4", "step batched")
    def test_anything_is_right_or_refused(self, shape, dtype, which):
        function, leading = CALLS[which]
        model = build(recurrent("gru", I, H), np.random.default_rng(1))
        x = np.zeros(shape, dtype)
        free = {"model": (None,), "model batched": (None, None), "run": (None,)}
        free |= {"model batch first": (None, None), "run batched": (None, 3)}
        expected = [(*free.get(which, leading), I)]
        if which.startswith("model"):
            expected = [(None, I), (None, None, I)]
        fits = any(
            len(e) == len(shape) and all(a in (None, b) for a, b in zip(e, shape, strict=True))
            for e in expected
        )
        if fits and dtype == "f4":
            assert function(model, x).shape == (*shape[:-1], H)
        else:
            with pytest.raises((TypeError, ValueError)) as error:
                function(model, x)
            given_, wanted = (str(shape), f"{I}") if dtype == "f4" else (str(x.dtype), "float32")
            assert given_ in str(error.value)
            assert wanted in str(error.value)


class TestEmpty:
    @pytest.mark.parametrize("cell", CELLS)
    def test_no_steps(self, isa, cell, rng):
        for options in ({}, {"bidirectional": True, "num_layers": 2}):
            model = build(recurrent(cell, I, H, **options), rng, isa=isa)
            for batch in (None, 1, 4):
                rows = () if batch is None else (batch,)
                state = state_for(model, rng, batch)
                y, after = model(np.zeros((0, *rows, I), "f4"), state)
                assert y.shape == (0, *rows, model.output_size)
                assert y.dtype == np.float32
                assert all(np.array_equal(after[n], a) for n, a in state.items())
                _, after = model(np.zeros((0, *rows, I), "f4"))
                assert all(not a.any() and a.shape == state[n].shape for n, a in after.items())
            y, _ = model(np.zeros((4, 0, I), "f4"), batch_first=True)
            assert y.shape == (4, 0, model.output_size)

    @pytest.mark.parametrize("batch", [None, 3])
    def test_no_steps_of_a_stream(self, model, rng, batch):
        stream, rows = model.stream(batch), () if batch is None else (batch,)
        stream.state = state = state_for(model, rng, batch)
        x, out = np.zeros((0, *rows, I), "f4"), np.zeros((0, *rows, H), "f4")
        assert stream.run(x).shape == out.shape
        assert stream.run(x, out=out) is out
        assert all(np.array_equal(stream.state[n], a) for n, a in state.items())
        assert stream.isa_of_last_step is None

    def test_no_rows(self, model):
        y, state = model(np.zeros((4, 0, I), "f4"))
        assert y.shape == (4, 0, H)
        assert {n: a.shape for n, a in state.items()} == {"rnn.h": (1, 0, H), "rnn.c": (1, 0, H)}

    def test_no_rows_carry_on(self, model):
        x = np.zeros((4, 0, I), "f4")
        _, state = model(x)
        y, again = model(x, state)
        assert y.shape == (4, 0, H)
        assert {n: a.shape for n, a in again.items()} == {"rnn.h": (1, 0, H), "rnn.c": (1, 0, H)}

    def test_initial_state_of_no_rows(self, model):
        shapes = {n: a.shape for n, a in model.initial_state(0).items()}
        assert shapes == {"rnn.h": (1, 0, H), "rnn.c": (1, 0, H)}

    def test_no_tokens(self, tokens_model):
        for shape in ((0,), (0, 3), (3, 0)):
            y, _ = tokens_model(np.zeros(shape, int))
            assert y.shape == (*shape, H)
        assert tokens_model.stream().run(np.zeros(0, int)).shape == (0, H)


def misaligned(x: np.ndarray) -> np.ndarray:
    memory = np.zeros(x.nbytes + 1, np.uint8)
    odd = memory[1:].view(x.dtype).reshape(x.shape)
    odd[...] = x
    assert not odd.flags.aligned
    return odd


def memory_mapped(x: np.ndarray, path) -> np.memmap:
    mapped = np.memmap(path, x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    return mapped


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


class Subclass(np.ndarray):
    """An array class of a user's."""


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second number": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "every second row": lambda x: np.repeat(x, 2, 0)[::2],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "backwards in time": lambda x: x[::-1].copy()[::-1],
    "Fortran": np.asfortranarray,
    "axes swapped": lambda x: x.swapaxes(0, -1).copy().swapaxes(0, -1),
    "inside a larger one": lambda x: np.pad(x, 1)[(slice(1, -1),) * x.ndim],
    "misaligned": misaligned,
    "read only": read_only,
    "subclass": lambda x: x.view(Subclass),
    "recarray": lambda x: x.view(np.recarray),
    "a new axis taken away": lambda x: x[..., None].copy()[..., 0],
    "strides of one-sized axes": lambda x: np.lib.stride_tricks.as_strided(
        x.copy(), strides=tuple(4 if n == 1 else s for n, s in zip(x.shape, x.strides, strict=True))
    ),
}


class TestLayouts:
    """Arrays whose memory is laid out in another way are taken as what they hold."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_of_features(self, model, call, layout, rng):
        x = input_for(model, rng, *call.leading)
        expected = call(model, x)
        odd = LAYOUTS[layout](x)
        assert np.array_equal(odd, x)
        assert np.array_equal(call(model, odd), expected)
        assert np.array_equal(odd, x), "the input was changed"

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_of_one_feature(self, call, layout, rng):
        model = build(recurrent("gru", 1, H), rng, reproducible=True)
        x = input_for(model, rng, *call.leading)
        assert np.array_equal(call(model, LAYOUTS[layout](x)), call(model, x))

    def test_one_feature_by_a_new_axis(self, call, rng):
        """x[:, None] is how most people make (T, 1) of (T,); that axis has a stride of 0."""
        model = build(recurrent("gru", 1, H), rng, reproducible=True)
        x = input_for(model, rng, *call.leading)
        assert np.array_equal(call(model, x[..., 0][..., None]), call(model, x))

    @pytest.mark.parametrize("layout", [n for n in LAYOUTS if n != "strides of one-sized axes"])
    def test_of_tokens(self, tokens_model, call, layout, rng):
        tokens = input_for(tokens_model, rng, *call.leading)
        if tokens.ndim:
            expected = call(tokens_model, tokens)
            assert np.array_equal(call(tokens_model, LAYOUTS[layout](tokens)), expected)

    @pytest.mark.parametrize("cell", CELLS)
    def test_broadcast(self, isa, cell, rng):
        """Rows that all lie at the same place."""
        model = build(recurrent(cell, I, H), rng, isa=isa, reproducible=True)
        x = np.broadcast_to(input_for(model, rng, 6, 1), (6, 4, I))
        y, _ = model(x)
        assert np.array_equal(y, model(x.copy())[0])
        assert np.array_equal(y, np.broadcast_to(y[:, :1], y.shape))

    def test_memory_mapped(self, model, call, rng, tmp_path):
        x = input_for(model, rng, *call.leading)
        mapped = memory_mapped(x, tmp_path / "x")
        assert np.array_equal(call(model, mapped), call(model, x))

    def test_matrix_is_right_or_refused(self, model, rng):
        """A subclass that can never have one or three axes."""
        x = input_for(model, rng, 4)
        with pytest.warns(PendingDeprecationWarning):
            odd = np.matrix(x)
        for function in (lambda x: model(x)[0], model.stream().run):
            try:
                y = function(odd)
            except (TypeError, ValueError) as error:
                assert "matrix" in str(error) or "NumPy array" in str(error)  # noqa: PT017
            else:
                assert y.shape == (4, H)

    def test_non_native_twice_is_native(self, model, rng):
        x = input_for(model, rng, 4)
        same = x.astype(x.dtype.newbyteorder()).astype(x.dtype.newbyteorder("="))
        assert np.array_equal(model(same)[0], model(x)[0])

    @settings(max_examples=60)
    @given(data=st.data())
    def test_any_strides(self, data):
        """Slices of a larger array, chosen by hypothesis: starts, steps, order of the axes."""
        rng = np.random.default_rng(data.draw(st.integers(0, 999)))
        features = data.draw(st.sampled_from([1, I]))
        model = build(recurrent("rnn_tanh", features, H), rng, reproducible=True)
        shape = (data.draw(st.integers(0, 4)), data.draw(st.integers(1, 4)), features)
        order = data.draw(st.permutations(range(3)))
        steps = [data.draw(st.sampled_from([1, 2, -1, -3])) for _ in shape]
        large = rng.standard_normal([7 + n * 3 for n in shape]).astype(np.float32)
        cut = []
        for n, step in zip(shape, steps, strict=True):
            first = 1 if step > 0 else 2 + (n - 1) * -step
            indices = range(first, first + n * step, step) if n else range(0)
            stop = None if n and indices[-1] + step < 0 else (first + n * step if n else first)
            cut.append(slice(first, stop, step))
        x = large[tuple(cut)]
        assert x.shape == shape
        x = x.transpose(order).copy().transpose(np.argsort(order)) if order[0] else x
        plain = np.ascontiguousarray(x).copy()
        assert np.array_equal(model(x)[0], model(plain)[0])
        assert np.array_equal(model.stream(shape[1]).run(x), model(plain)[0])
        first = model(x.swapaxes(0, 1), batch_first=True)[0]
        assert np.array_equal(first, model(plain)[0].swapaxes(0, 1))


class TestOut:
    @pytest.fixture(params=["step", "step batched", "run", "run batched"])
    def way(self, request, model, rng):
        """(method that takes x and out, an input, the shape out must have)."""
        name, _, batched = request.param.partition(" ")
        stream = model.stream(3 if batched else None)
        leading = (4,)[name == "step" :] + ((3,) if batched else ())
        x = input_for(model, rng, *leading)

        def method(x: np.ndarray, out: Any) -> np.ndarray:
            stream.reset()
            return getattr(stream, name)(x, out=out)

        return method, x, (*leading, H)

    def test_is_filled_and_returned(self, way):
        method, x, shape = way
        out = np.full(shape, np.nan, "f4")
        assert method(x, out) is out
        assert np.array_equal(out, method(x, None))

    def test_nothing_beyond_it_is_written(self, way):
        method, x, shape = way
        size = math.prod(shape)
        for shift in range(8):  # every alignment to a vector, and numbers on both sides
            memory = np.full(size + 40, 7, "f4")
            method(x, memory[16 + shift : 16 + shift + size].reshape(shape))
            assert (memory[: 16 + shift] == 7).all()
            assert (memory[16 + shift + size :] == 7).all()

    @pytest.mark.parametrize("dtype", ["f8", "f2", "i4", "?", "O", ">f4"])
    def test_dtype(self, way, dtype):
        method, x, shape = way
        out = np.zeros(shape, dtype)
        with pytest.raises(TypeError, match=r"out has dtype .*; expected float32") as error:
            method(x, out)
        assert out.dtype.str in str(error.value)

    @pytest.mark.parametrize("out", [3, [0.0] * H, "out", b"", (np.zeros(H, "f4"),)])
    def test_not_an_array(self, way, out):
        method, x, _ = way
        with pytest.raises(TypeError, match=rf"{type(out).__name__}; expected a .*NumPy array"):
            method(x, out)

    def test_shape(self, way):
        method, x, shape = way
        last = shape[-1]
        for wrong in (
            (*shape[:-1], last - 1), (*shape[:-1], last + 1), (*shape, 1), (1, *shape),
            shape[:-1], (), (math.prod(shape) + 1,), (*shape[:-1], 0),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="out has shape") as error:
                method(x, np.zeros(wrong, "f4"))
            assert f"{wrong}; expected {shape}" in str(error.value)

    def test_read_only(self, way):
        method, x, shape = way
        out = read_only(np.zeros(shape, "f4"))
        with pytest.raises(ValueError, match=r"out must be writeable.*np\.empty"):
            method(x, out)
        assert not out.any()

    def test_not_contiguous(self, way):
        method, x, shape = way
        outs = [
            np.zeros((*shape[:-1], 2 * shape[-1]), "f4")[..., ::2],
            np.zeros(shape, "f4")[..., ::-1],
            misaligned(np.zeros(shape, "f4")),
        ]
        if len(shape) > 1:
            outs += [np.asfortranarray(np.zeros(shape, "f4")), np.zeros(shape, "f4")[::-1]]
        for out in outs:
            with pytest.raises(ValueError, match="aligned and C-contiguous"):
                method(x, out)
            assert not out.any()

    def test_masked(self, way):
        """Writing below a mask would leave the new numbers hidden."""
        method, x, shape = way
        out = np.ma.masked_array(np.zeros(shape, "f4"), mask=True)
        with pytest.raises(TypeError, match=r"out is a .*MaskedArray; expected a .*NumPy array"):
            method(x, out)

    def test_memory_mapped(self, way, tmp_path):
        method, x, shape = way
        out = memory_mapped(np.zeros(shape, "f4"), tmp_path / "out")
        assert method(x, out) is out
        assert np.array_equal(out, method(x, None))

    def test_sharing_memory_with_x(self, way):
        """Any offset at which they overlap is refused; next to each other they may lie."""
        method, x, shape = way
        n, m = x.size, math.prod(shape)
        expected = method(x, None)
        for offset in range(-m, n + 1):
            memory = np.zeros(2 * m + n + 2, "f4")
            inside = memory[m : m + n].reshape(x.shape)
            inside[...] = x
            out = memory[m + offset : 2 * m + offset].reshape(shape)
            if np.shares_memory(inside, out):
                with pytest.raises(ValueError, match=r"out shares memory with x.*of its own"):
                    method(inside, out)
                assert np.array_equal(inside, x)
            else:
                assert np.array_equal(method(inside, out), expected)

    def test_the_same_array(self, rng):
        model = build(recurrent("rnn_relu", H, H), rng)
        x = input_for(model, rng)
        kept = x.copy()
        with pytest.raises(ValueError, match="shares memory"):
            model.stream().step(x, out=x)
        assert np.array_equal(x, kept)

    def test_between_the_numbers_of_x(self, rng):
        """A strided x that out lies within is copied first: refused or right, never wrong."""
        model = build(recurrent("rnn_tanh", 6, 6), rng, reproducible=True)
        memory = rng.standard_normal(12).astype("f4")
        x = memory[::2]
        expected = model.stream().step(x.copy())
        try:
            y = model.stream().step(x, out=memory[:6]).copy()
        except ValueError:
            return
        assert np.array_equal(y, expected)

    def test_sharing_memory_with_tokens(self, tokens_model):
        memory = np.zeros(3 * H, "f4")
        tokens = memory[:6].view(np.int64)
        for stream, name in ((tokens_model.stream(3), "step"), (tokens_model.stream(), "run")):
            with pytest.raises(ValueError, match="shares memory"):
                getattr(stream, name)(tokens, out=memory.reshape(3, H))

    def test_state_is_unchanged_by_a_refused_call(self, way, model, rng):
        stream = model.stream()
        stream.state = state = state_for(model, rng, None)
        for out in (np.zeros(H, "f8"), np.zeros(H + 1, "f4"), 3):
            with pytest.raises((TypeError, ValueError)):
                stream.step(input_for(model, rng), out=out)
        assert all(np.array_equal(stream.state[n], a) for n, a in state.items())


class TestTokens:
    @pytest.mark.parametrize("wrong", [11, 12, -1, -11, 2**31, 2**63 - 1, -(2**63)])
    def test_out_of_range(self, tokens_model, call, wrong):
        tokens = np.zeros(call.leading, np.int64)
        tokens[(-1,) * tokens.ndim] = wrong
        with pytest.raises(ValueError, match=rf"token {wrong} .*tokens 0 to 10"):
            call(tokens_model, tokens)

    def test_message_says_where(self, tokens_model):
        tokens = np.zeros((4, 3), int)
        tokens[2, 1] = 11
        with pytest.raises(ValueError, match=r"token 11 at index \(2, 1\) is out of range"):
            tokens_model(tokens)

    @pytest.mark.parametrize("wrong", [11, 2**32 + 1, 2**63, 2**63 + 1, 2**64 - 1])
    def test_unsigned_beyond_range(self, tokens_model, call, wrong):
        tokens = np.zeros(call.leading, np.uint64)
        tokens[(-1,) * tokens.ndim] = wrong
        with pytest.raises(ValueError, match=rf"token {wrong} .*tokens 0 to 10"):
            call(tokens_model, tokens)

    @pytest.mark.parametrize("wrong", [11, -1, 2**63, 2**64, 2**70, -(2**63) - 1, -(2**70)])
    def test_python_integer_out_of_range(self, tokens_model, wrong):
        with pytest.raises(ValueError, match=rf"{wrong}.*tokens 0 to 10"):
            tokens_model.stream().step(wrong)

    @pytest.mark.parametrize("dtype", ["f4", "f8", "?", "c8", "O", "U1", "M8[s]"])
    def test_dtype(self, tokens_model, call, dtype):
        tokens = np.zeros(call.leading, dtype)
        with pytest.raises(TypeError, match=r"this model takes tokens: expected integers") as error:
            call(tokens_model, tokens)
        assert str(tokens.dtype) in str(error.value)

    @pytest.mark.parametrize(
        "wrong", [None, True, False, np.True_, 1.0, np.float32(1), "a", b"a", [1], (1,), {1}]
    )
    def test_not_a_token(self, tokens_model, wrong):
        stream = tokens_model.stream()
        for function in (stream.step, stream.run, tokens_model):
            with pytest.raises(TypeError, match="this model takes tokens") as error:
                function(wrong)
            assert type(wrong).__name__ in str(error.value)

    def test_masked(self, tokens_model):
        with pytest.raises(TypeError, match="MaskedArray"):
            tokens_model(np.ma.masked_array([1, 2], mask=[0, 1]))

    @pytest.mark.parametrize("shape", [(), (1,), (2,), (4,), (3, 1), (1, 3)])
    def test_shape_of_a_step(self, tokens_model, shape):
        tokens = np.zeros(shape, int)
        with pytest.raises(ValueError, match=rf"{re.escape(str(shape))}; expected \(3,\)"):
            tokens_model.stream(3).step(tokens)
        if shape:
            with pytest.raises(ValueError, match=rf"{re.escape(str(shape))}; expected \(\)"):
                tokens_model.stream().step(tokens)

    def test_features_for_a_token_model(self, tokens_model):
        with pytest.raises(TypeError, match=r"float32.*takes tokens"):
            tokens_model(np.zeros((4, 11), "f4"))

    def test_nothing_is_stepped_if_one_token_is_wrong(self, tokens_model):
        stream = tokens_model.stream(3)
        stream.step(np.array([1, 2, 3]))
        before = stream.state["rnn.h"]
        for function, tokens in ((stream.step, [1, 2, 11]), (stream.run, [[1, 2, 3], [1, -1, 3]])):
            with pytest.raises(ValueError, match="out of range"):
                function(np.array(tokens))
        assert np.array_equal(stream.state["rnn.h"], before)


def same_kind(a: np.ndarray, b: np.ndarray) -> bool:
    """NaN, infinity and its sign at the same places."""
    return all(np.array_equal(f(a), f(b)) for f in (np.isnan, np.isposinf, np.isneginf))


# Not the largest finite numbers: where sums overflow, their order decides between infinity and NaN.
NOT_FINITE = [np.nan, np.inf, -np.inf]


class TestNotFinite:
    """NaN and infinity go where torch's go, in every cell, on every instruction set."""

    @staticmethod
    def poisoned(model: Model, rng: np.random.Generator, value: float):
        """Inputs and states, each with the value at one place."""
        T, B = 4, 3
        for where in ("x", *model.initial_state(B)):
            for _ in range(3):
                x, state = input_for(model, rng, T, B), state_for(model, rng, B)
                array = x if where == "x" else state[where]
                array[tuple(rng.integers(n) for n in array.shape)] = value
                yield x, state

    @pytest.mark.parametrize("value", NOT_FINITE)
    @pytest.mark.parametrize("cell", CELLS)
    def test_as_in_torch(self, isa, cell, value, rng):
        pytest.importorskip("torch", reason="compares with torch itself")
        options = [{}, {"num_layers": 2, "bidirectional": True}]
        options += [{"proj_size": 3}] if cell == "lstm" else []
        for option in options:
            file = model_file(recurrent(cell, I, H, **option), rng)
            model = Model(file, isa=isa)
            for x, state in self.poisoned(model, rng, value):
                y, after = model(x, state)
                expected, expected_after = torch_forward(file.layers, file.tensors, x, state)
                assert same_kind(y, expected)
                assert all(same_kind(after[n], a) for n, a in expected_after.items())

    @pytest.mark.parametrize("value", NOT_FINITE)
    @pytest.mark.parametrize("cell", CELLS)
    def test_as_in_reference(self, isa, cell, value, rng):
        file = model_file(recurrent(cell, I, H, num_layers=2), rng)
        model = Model(file, isa=isa)
        for x, state in self.poisoned(model, rng, value):
            y, after = model(x, state)
            expected, expected_after = reference.forward(file.layers, file.tensors, x, state)
            assert same_kind(y, expected)
            assert all(same_kind(after[n], a) for n, a in expected_after.items())

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_as_in_reference(self, isa, kind, rng):
        file = model_file(every_kind(LANES[isa])[kind], rng)
        model = Model(file, isa=isa)
        if model.takes_tokens:
            return
        for value in NOT_FINITE:
            for _ in range(3):
                x = input_for(model, rng, 9, 3)
                x[tuple(rng.integers(n) for n in x.shape)] = value
                y, after = model(x)
                expected, expected_after = in_numpy(file, x)
                assert same_kind(y, expected)
                for name, array in expected_after.items():
                    if name.rpartition(".")[2] not in ("count", "total"):
                        assert same_kind(after[name], array)

    @pytest.mark.parametrize("value", NOT_FINITE)
    @pytest.mark.parametrize("cell", CELLS)
    def test_in_float64(self, cell, value, rng):
        file = model_file(recurrent(cell, I, H), rng, np.float64)
        model = Model(file)
        for x, state in self.poisoned(model, rng, value):
            y, _ = model(x, state)
            expected, _ = reference.forward(file.layers, file.tensors, x, state)
            assert same_kind(y, expected)

    @pytest.mark.parametrize("cell", CELLS)
    def test_in_weights(self, isa, cell, rng):
        for value in NOT_FINITE:
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                file = model_file(recurrent(cell, I, H), rng)
                weight = file.tensors[f"rnn.{name}"]
                weight[tuple(rng.integers(n) for n in weight.shape)] = value
                model = Model(file, isa=isa)
                x, state = input_for(model, rng, 3, 2), state_for(model, rng, 2)
                y, _ = model(x, state)
                expected, _ = reference.forward(file.layers, file.tensors, x, state)
                assert same_kind(y, expected)

    @pytest.mark.parametrize("value", NOT_FINITE)
    def test_linear(self, isa, value, rng):
        file = model_file(spec.Linear("a", I, H), rng)
        model = Model(file, isa=isa)
        x = input_for(model, rng, 7, 3)
        x[rng.integers(7), rng.integers(3), rng.integers(I)] = value
        expected, _ = reference.forward(file.layers, file.tensors, x)
        assert same_kind(model(x)[0], expected)

    def test_infinite_cell_state_and_a_closed_gate(self, isa, rng):
        """sigmoid(-95) is denormal and flushed to zero, where torch keeps 4e-42: 0 * inf = NaN."""
        file = model_file(recurrent("lstm", 1, 1), rng)
        for name, array in file.tensors.items():
            array[...] = 0
            if name == "rnn.bias_ih_l0":
                array[1] = -95  # the forget gate
        state = {"rnn.h": np.zeros((1, 1, 1), "f4"), "rnn.c": np.full((1, 1, 1), np.inf, "f4")}
        x = np.zeros((1, 1, 1), "f4")
        _, after = Model(file, isa=isa)(x, state)
        assert np.isnan(after["rnn.c"]).all()

    def test_a_stream_recovers_after_reset(self, isa, rng):
        model = build(recurrent("lstm", I, H), rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 3)
        expected, _ = model(x)
        stream = model.stream()
        stream.step(np.full(I, np.nan, "f4"))
        assert np.isnan(stream.step(x[0])).all()
        stream.reset()
        assert np.array_equal(stream.run(x), expected)


class TestDenormals:
    def test_tiny_inputs_are_right_or_zero(self, isa, rng):
        file = model_file(recurrent("gru", I, H), rng)
        x = (input_for(Model(file), rng, 6, 3) * 1e-39).astype(np.float32)
        y, _ = Model(file, isa=isa)(x)
        expected, _ = reference.forward(file.layers, file.tensors, np.zeros_like(x))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)

    def test_mode_of_the_caller_is_restored(self, isa, rng):
        """Importing and running change no process state: denormals are still denormal after it."""
        tiny, half = np.float32(1e-40), np.float32(0.5)
        model = build(recurrent("lstm", I, H), rng, isa=isa)
        stream = model.stream()
        calls = (
            lambda: stream.step(input_for(model, rng)),
            lambda: stream.run(input_for(model, rng, 40)),
            lambda: model(input_for(model, rng, 40, 3)),
        )
        for function in calls:
            function()
            assert tiny * half > 0
            assert np.full(64, tiny).sum() > 0
            with pytest.raises(TypeError):
                stream.step(None)
            assert tiny * half > 0


GUARDED = """
    import ctypes, mmap, sys
    import numpy as np
    from models import CELLS, LANES, build, every_kind, input_for, recurrent, spec

    PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)

    class Guarded:
        '''Memory with a page on either side that must not be touched.'''
        def __init__(self, pages):
            self.size, self.map = pages * PAGE, mmap.mmap(-1, (pages + 2) * PAGE)
            first = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
            for page in (first, first + self.size + PAGE):
                assert libc.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
        def array(self, like, at_end):
            first = PAGE + (self.size - like.nbytes if at_end else 0)
            a = np.frombuffer(self.map, like.dtype, like.size, first).reshape(like.shape)
            a[...] = like
            return a

    rng, isa = np.random.default_rng(1), sys.argv[1]
    L = LANES[isa]
    inputs, outputs = Guarded(8), Guarded(8)
    if "escape" in sys.argv:
        outputs.array(np.zeros(1, "f4"), True)
        ctypes.memset(inputs.array(np.zeros(1, "f4"), True).ctypes.data + 4, 0, 4)
    for size in (1, 2, L - 1, L, L + 1, 2 * L + 3, 4 * L + 1):
        if size < 1:
            continue
        models = [(recurrent(c, size, size),) for c in CELLS]
        models += [(recurrent("lstm", size, size + 1, proj_size=size),)]
        models += [(spec.Linear("a", size, size), spec.Activation("s", f, size))
                   for f in ("softmax", "tanh")]
        models += [(spec.Embedding("e", 5, size), recurrent("gru", size, size))]
        models += [(spec.Embedding("e", 5, size),)]
        models += list(every_kind(size).values()) if size in (1, L) else []
        for layers in models:
            model = build(layers, rng, isa=isa)
            for B in (1, 2, 7):
                for at_end in (False, True):
                    stream = None if model.looks_ahead else model.stream(B)
                    for T in (None, 1, 7):
                        leading = (B,) if T is None else (T, B)
                        x = inputs.array(input_for(model, rng, *leading), at_end)
                        shape = (*leading, model.output_size)
                        if stream and T:
                            shape = (len(stream.clone().run(x)), *shape[1:])
                        out = outputs.array(np.zeros(shape, "f4"), at_end)
                        if stream:
                            (stream.step if T is None else stream.run)(x, out=out)
                            assert np.isfinite(out).all()
                        if T == 7:
                            model(x)
                            model(x, lengths=rng.integers(0, T + 1, B))
    print("inside")
"""


class TestMemory:
    """Kernels read and write full vectors; what lies beyond an array may be nobody's."""

    def test_nothing_outside_an_array_is_touched(self, python, isa):
        assert python(GUARDED, isa) == "inside\n"

    def test_the_guard_guards(self, python):
        with pytest.raises(AssertionError, match="exit code -"):
            python(GUARDED, ISAS[0], "escape")

    @pytest.mark.parametrize("size", [2**60, 2**61, 2**61 + 1, 2**62, 2**63 - 1])
    def test_too_many_rows_of_a_model_without_state(self, python, size):
        """A size that wraps around must not be allocated: the rows would be written beyond it."""
        code = f"""
            import numpy as np
            from models import build, spec
            model = build(spec.Linear("a", 2, 1), np.random.default_rng(1))
            try:
                model.stream({size})
            except (MemoryError, ValueError) as error:
                print("refused")
        """
        assert python(code) == "refused\n"


class TestLayerNames:
    def test_state_of_another_model(self, rng):
        """The names and shapes of both are in the message."""
        one = build(recurrent("lstm", I, H, "encoder"), rng)
        other = build(recurrent("gru", I, H, "decoder"), rng)
        _, state = one(input_for(one, rng, 3))
        with pytest.raises(ValueError, match=r"'encoder\.h', 'encoder\.c'.*'decoder\.h'.*made it"):
            other(input_for(other, rng, 3), state)

    def test_state_of_another_size(self, rng):
        one, other = (build(recurrent("gru", I, h), rng) for h in (3, 4))
        _, state = one(input_for(one, rng, 3))
        with pytest.raises(ValueError, match=r"'rnn\.h' has shape \(1, 3\); expected \(1, 4\)"):
            other(input_for(other, rng, 3), state)

    def test_state_of_another_dtype(self, rng):
        one, other = (build(recurrent("gru", I, 3), rng, d) for d in (np.float32, np.float64))
        _, state = one(input_for(one, rng, 3))
        with pytest.raises(TypeError, match=r"float32; expected .*float64"):
            other(input_for(other, rng, 3), state)


def test_every_error_pickles():
    import pickle

    for error in (fastlstm.FormatError("text"), fastlstm.ConvertError("text")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), "text")
        assert isinstance(again, ValueError)
