"""A stream as bytes: of every kind of model, on every kernel, whole or refused."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from models import STREAMING, build, every_kind, input_for, model_file, recurrent

import fastlstm
from fastlstm import FormatError, Model, spec
from fastlstm.format import ModelFile

OVERHEAD = 68
LSTM = recurrent("lstm", 5, 7)


def state_bytes(stream: Any) -> int:
    return sum(array.nbytes for array in stream.state.values())


@pytest.fixture(params=STREAMING)
def file(request: pytest.FixtureRequest, rng: np.random.Generator) -> Any:
    """A model of every kind that streams."""
    return model_file(every_kind(4)[request.param], rng)


class TestRoundTrips:
    def test_between_streams_and_pools(self, file, rng):
        model = Model(file)
        x = input_for(model, rng, 23)
        stream, pool = model.stream(), model.pool()
        slot = pool.open()
        assert stream.run(x[:9]).tobytes() == pool.run(slot, x[:9]).tobytes()
        data = stream.dumps()
        assert data == pool.dumps(slot)
        assert len(data) == OVERHEAD + state_bytes(stream)
        rest = stream.run(x[9:]).tobytes()
        other, opened = model.stream(), pool.loads(data)
        other.loads(memoryview(data))
        assert other.steps == pool.steps(opened) == 9
        assert other.run(x[9:]).tobytes() == rest
        assert pool.run(opened, x[9:]).tobytes() == rest
        assert pool.steps(slot) == 9
        assert other.dumps() == stream.dumps() == pool.dumps(opened)

    def test_on_another_kernel(self, file, rng, isa):
        model, other = Model(file), Model(file, isa=isa)
        x = input_for(model, rng, 11)
        stream, expected = model.stream(), other.stream()
        stream.run(x)
        expected.state = stream.state
        found = other.stream()
        found.loads(stream.dumps())
        assert found.dumps()[:-16] == stream.dumps()[:-16]
        assert found.run(x).tobytes() == expected.run(x).tobytes()

    def test_of_a_batch(self, file, rng):
        model = Model(file)
        x = input_for(model, rng, 12, 3)
        stream = model.stream(3)
        stream.run(x[:7])
        other = model.stream(3)
        other.loads(stream.dumps())
        assert other.run(x[7:]).tobytes() == stream.run(x[7:]).tobytes()
        for size in (None, 1, 2, 4):
            with pytest.raises(FormatError, match="the stream's bytes have 3 rows; expected"):
                model.stream(size).loads(stream.dumps())
        with pytest.raises(FormatError, match="3 rows; expected no axis of rows"):
            model.pool().loads(stream.dumps())

    def test_in_float64(self, rng):
        model = build(LSTM, rng, np.float64)
        stream = model.stream()
        stream.run(input_for(model, rng, 5))
        other = model.stream()
        other.loads(stream.dumps())
        assert other.dumps() == stream.dumps()


def test_what_is_held_goes_with_it(rng):
    graph = spec.Graph(
        (spec.Input("x", (3,)), spec.Input("gain", (3,), held=True)),
        (
            spec.Node(spec.Activation("bounded", "tanh"), ("gain",)),
            spec.Node(spec.Arithmetic("scaled", "multiply"), ("x", "bounded")),
            spec.Node(spec.Fold("y", "sum", cumulative=True), ("scaled",)),
        ),
        {"y": "y"},
    )
    model = Model(ModelFile(graph, {}))
    x, gain = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3), 3))
    pool = model.pool()
    slot = pool.open(held={"gain": gain})
    pool.run(slot, x)
    other = pool.loads(pool.dumps(slot))
    assert pool.run(other, x).tobytes() == pool.run(slot, x).tobytes()


def test_arrays_are_sorted_by_name(rng):
    """Whatever order the plan has them in."""
    model = build(every_kind(4)["delayed"], rng)
    stream = model.stream()
    stream.run(input_for(model, rng, 7))
    state = stream.state
    assert list(state) != sorted(state)
    arrays = b"".join(
        state[name].astype(state[name].dtype.newbyteorder("<")).tobytes() for name in sorted(state)
    )
    data = stream.dumps()
    assert data[52:-16] == arrays
    assert data[:20] == struct.pack("<4sHHIq", b"flst", 1, 4, 0, 7)
    assert data[20:52].hex() == model.fingerprint


class TestRefusals:
    @pytest.fixture
    def model(self, rng) -> fastlstm.Model:
        return build(LSTM, rng)

    @pytest.fixture
    def data(self, model, rng) -> bytes:
        stream = model.stream()
        stream.run(input_for(model, rng, 5))
        return stream.dumps()

    def refuse(self, model: Model, data: Any, text: str = "stream") -> None:
        stream, pool = model.stream(), model.pool(2)
        before = stream.dumps()
        for loads in (stream.loads, pool.loads):
            with pytest.raises(FormatError, match=text):
                loads(data)
        assert stream.dumps() == before
        assert len(pool) == 0

    def test_every_bit(self, model, data):
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            self.refuse(model, changed)

    def test_every_length(self, model, data):
        for size in range(len(data)):
            self.refuse(model, data[:size])
        self.refuse(model, data + b"\0")

    def test_random_bytes(self, model, data, rng):
        for size in rng.integers(0, 2 * len(data), 300):
            self.refuse(model, rng.bytes(size))
            self.refuse(model, data[:4] + rng.bytes(size))

    def test_of_another_model(self, data, rng):
        self.refuse(build(LSTM, rng), data, "another model")

    def sealed(self, data: bytes, at: int, kind: str, value: int) -> bytes:
        """With another field, and a digest that is right."""
        import hashlib

        content = bytearray(data[:-16])
        struct.pack_into(kind, content, at, value)
        return bytes(content) + hashlib.blake2b(content, digest_size=16).digest()

    def test_other_sizes(self, model, data):
        """Of arrays, with a digest that is right."""
        import hashlib

        for content in (data[:52], data[:-20], data[:-16] + bytes(4)):
            digest = hashlib.blake2b(content, digest_size=16).digest()
            self.refuse(model, content + digest, f"are {len(content) + 16} long; expected 124")

    @pytest.mark.parametrize(
        ("at", "kind", "value", "text"),
        [
            (4, "<H", 2, "version 2; expected 1"),
            (6, "<H", 8, "real numbers of 8 bytes; expected 4"),
            (8, "<I", 2**32 - 1, "4294967295 rows; expected no axis of rows"),
            (12, "<q", -1, "has made -1 steps"),
        ],
    )
    def test_fields(self, model, data, at, kind, value, text):
        self.refuse(model, self.sealed(data, at, kind, value), text)

    def test_a_count_that_no_state_has(self, rng):
        """Of a model whose state counts steps."""
        model = build(every_kind(4)["delayed"], rng)
        stream = model.stream()
        stream.run(input_for(model, rng, 7))
        state = stream.state
        at, counts = 52, 0
        for name in sorted(state):
            if state[name].dtype == np.int64:
                counts += 1
                for value in (-1, -(2**63)):
                    changed = self.sealed(stream.dumps(), at, "<q", value)
                    self.refuse(model, changed, "no stream can")
            at += state[name].nbytes
        assert counts == 1

    @pytest.mark.parametrize(
        "data", ["text", None, 5, [1, 2], np.zeros(9, "M8[s]"), memoryview(bytes(200))[::2]]
    )
    def test_other_types(self, model, data):
        with pytest.raises(TypeError, match="expected the bytes of a stream"):
            model.stream().loads(data)
        with pytest.raises(TypeError, match="expected the bytes of a stream"):
            model.pool().loads(data)

    def test_slots(self, model):
        pool = model.pool(1)
        data = pool.dumps(pool.open())
        with pytest.raises(RuntimeError):
            pool.loads(data)
        with pytest.raises(TypeError, match="expected the number of one stream"):
            pool.dumps(pool.slots)
        with pytest.raises(ValueError, match="open"):
            pool.dumps(12345)


def test_a_prepared_stream_forgets_what_was_made(rng):
    model = build(LSTM, rng)
    x = input_for(model, rng, 4)
    stream, other = model.stream(), model.stream()
    stream.run(x)
    other.prepare()
    other.loads(stream.dumps())
    assert other.step(x[0]).tobytes() == stream.step(x[0]).tobytes()


@pytest.mark.parametrize("kind", STREAMING)
def test_rows_that_are_due_at_the_end(kind, rng):
    """pool.flush is that of a stream in the same state."""
    model = build(every_kind(4)[kind], rng)
    x = input_for(model, rng, 13)
    stream, pool = model.stream(), model.pool()
    slot = pool.open()
    for n in (0, 1, 5, 7):
        stream.run(x[:n])
        pool.run(slot, x[:n])
        before = pool.dumps(slot)
        due, found = stream.flush(), pool.flush(slot)
        assert found.shape == due.shape
        assert found.tobytes() == due.tobytes()
        assert pool.dumps(slot) == before
    with pytest.raises(TypeError, match="expected the number of one stream"):
        pool.flush(pool.slots)
