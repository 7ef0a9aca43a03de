"""Models of several inputs and outputs, of rows with axes, and of more or fewer rows than steps.

Calls, streams and pools of them are held against the reference of graphs: on graphs by hand, each
of which has one thing that a chain of layers has not, and on random ones.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_graphs import random_graph, random_inputs
from ways import assert_same_bits, assert_same_state

from fastlstm import Model, Stream, reference, spec
from fastlstm.format import ModelFile

Values = dict[str, np.ndarray]


def made(*nodes: tuple[spec.Layer, tuple[str, ...]]) -> tuple[spec.Node, ...]:
    return tuple(spec.Node(layer, reads) for layer, reads in nodes)


def graphs() -> dict[str, spec.Graph]:
    """Graphs by hand, each of which has something of its own."""
    x, ids = spec.Input("x", (6,)), spec.Input("ids", (), tokens=7)
    knobs = spec.Input("knobs", (6,), held=True)
    embedded = (spec.Embedding("table", 7, 6), ("ids",))
    recurrent = (spec.GRU("rnn", 6, 5), ("sum",))
    return {
        "tokens beside features": spec.Graph(
            (x, ids),
            made(embedded, (spec.Arithmetic("sum", "add"), ("x", "table")), recurrent),
            {"y": "rnn"},
        ),
        "held": spec.Graph(
            (x, knobs),
            made((spec.Arithmetic("sum", "multiply"), ("x", "knobs")), recurrent),
            {"y": "rnn"},
        ),
        "several outputs": spec.Graph(
            (x, ids, knobs),
            made(
                embedded,
                (spec.Arithmetic("both", "add"), ("x", "table")),
                (spec.Arithmetic("sum", "multiply"), ("both", "knobs")),
                recurrent,
                (spec.Linear("out", 5, 3), ("rnn",)),
            ),
            {"state": "rnn", "y": "out"},
        ),
        "axes": spec.Graph(
            (spec.Input("image", (2, 5)),),
            made(
                (spec.Convolution("conv", 2, 4, (3,), padding=((1, 1),)), ("image",)),
                (spec.Activation("act", "tanh"), ("conv",)),
            ),
            {"map": "act", "raw": "conv"},
        ),
        "fewer rows": spec.Graph(
            (x, spec.Input("z", (5,))),
            made(
                (spec.Convolution("conv", 6, 5, (3,), stride=(2,), over_time=True), ("x",)),
                (spec.GRU("rnn", 5, 4), ("conv",)),
                (spec.RNN("every", 5, 3), ("z",)),
            ),
            {"some": "rnn", "all": "every"},
        ),
        "more rows": spec.Graph(
            (x,),
            made((spec.Repeat("twice", 2), ("x",)), (spec.GRU("rnn", 6, 4), ("twice",))),
            {"y": "rnn", "x": "x"},
        ),
        "late": spec.Graph(
            (x, ids),
            made(
                (spec.Convolution("conv", 6, 6, (3,), padding=((1, 1),), over_time=True), ("x",)),
                embedded,
                (spec.Arithmetic("sum", "add"), ("conv", "table")),
                recurrent,
            ),
            {"y": "rnn", "now": "table"},
        ),
        "two rows every other step": spec.Graph(
            (x,),
            made((spec.Convolution("conv", 6, 3, (2,), stride=(2,), over_time=True), ("x",)),
                 (spec.Repeat("twice", 2), ("conv",))),
            {"y": "twice"},
        ),
    }  # fmt: skip


BY_HAND = tuple(graphs())
RANDOM = range(24)


def file_of(graph: spec.Graph, rng: np.random.Generator, dtype: Any = np.float32) -> ModelFile:
    tensors = {
        name: rng.uniform(-0.6, 0.6, shape).astype(dtype)
        for name, shape in spec.check(graph).tensors.items()
    }
    return ModelFile(graph, tensors)


def random_file(seed: int) -> ModelFile:
    """A random graph that can be streamed, with float32 tensors."""
    rng = np.random.default_rng(7000 + seed)
    while True:
        graph, tensors = random_graph(rng)
        facts = spec.check(graph)
        if not facts.looks_ahead and any(not given.held for given in graph.inputs):
            return ModelFile(graph, {n: a.astype(np.float32) for n, a in tensors.items()})


def file_named(name: str | int, rng: np.random.Generator) -> ModelFile:
    return random_file(name) if isinstance(name, int) else file_of(graphs()[name], rng)


def inputs_for(model: Model, rng: np.random.Generator, T: int, B: int) -> tuple[Values, Values]:
    """Random inputs: those of every step (T, B, ...), and those held (B, ...)."""
    given = {
        name: x if x.dtype == np.int64 else x.astype(model.dtype)
        for name, x in random_inputs(rng, model.graph, T, B).items()
    }
    held = {i.name for i in model.graph.inputs if i.held}
    return (
        {name: x for name, x in given.items() if name not in held},
        {name: given[name] for name in held},
    )


def named(model: Model, y: Any) -> Values:
    """Outputs by name, also of a model with one."""
    names = list(model.graph.outputs)
    if len(names) == 1:
        return {names[0]: y}
    assert list(y) == names
    return dict(y)


def row(values: Mapping[str, np.ndarray], b: Any, axis: int = 1) -> Values:
    return {name: np.array(a.take(b, axis), order="C") for name, a in values.items()}


def block(values: Values, first: int, end: int) -> Values:
    return {name: a[first:end] for name, a in values.items()}


def assert_near(got: Values, expected: Values, folded: Mapping[str, bool]) -> None:
    for name, array in expected.items():
        truth = array[-1] if folded[name] else array
        scale = max(1.0, float(np.abs(truth[np.isfinite(truth)]).max(initial=0)))
        np.testing.assert_allclose(got[name], truth, rtol=2e-4, atol=2e-4 * scale)


def folds(model: Model) -> dict[str, bool]:
    """Of each output whether a whole sequence has one row of it: it is folded, or held."""
    rows = {n: model.facts.rows[v] for n, v in model.graph.outputs.items()}
    return {n: row.folded or row.held for n, row in rows.items()}


def held_ones(model: Model) -> list[str]:
    """The outputs that are known before the first step."""
    return [n for n, v in model.graph.outputs.items() if model.facts.rows[v].held]


@pytest.mark.parametrize("name", [*BY_HAND, *RANDOM])
class TestAsInTheReference:
    def test_whole_sequences(self, name: str | int, rng: np.random.Generator) -> None:
        file = file_named(name, rng)
        model = Model(file)
        x, held = inputs_for(model, rng, 17, 3)
        y, _ = model({**x, **held})
        expected = reference.forward(file.graph, file.tensors, {**x, **held})
        assert_near(named(model, y), expected, folds(model))

    def test_streams(self, name: str | int, rng: np.random.Generator) -> None:
        """Blocks of any sizes, then the rows that are due at the end."""
        file = file_named(name, rng)
        model = Model(file)
        x, held = inputs_for(model, rng, 17, 3)
        truth = reference.Stream(file.graph, file.tensors, 3, held=held)
        stream = model.stream(3, held=held)
        for first, end in ((0, 1), (1, 9), (9, 9), (9, 17)):
            part = block(x, first, end)
            expected = truth.run(part)
            got = named(model, stream.run(part))
            for output in held_ones(model) if first == end else ():
                assert len(got.pop(output)) == 0  # its row is one of every call that makes a step
                del expected[output]
            assert_near(got, expected, dict.fromkeys(expected, False))
        assert_near(named(model, stream.flush()), truth.flush(), dict.fromkeys(folds(model), False))
        assert stream.steps == 17


@pytest.mark.parametrize("name", [*BY_HAND, *RANDOM])
class TestSameBits:
    """Promise 1 for whatever a model has: no way of running it changes a bit."""

    @pytest.fixture
    def model(self, name: str | int, rng: np.random.Generator) -> Model:
        return Model(file_named(name, rng), reproducible=True)

    def test_steps_of_a_stream(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 13, 2)
        rows = named(model, model.stream(2, held=held).run(x))
        steps = {port.name: port.step_rows for port in model._network.outputs}
        stream, at = model.stream(2, held=held), dict.fromkeys(rows, 0)
        for t in range(13):
            now = row(x, t, 0)
            if 0 in steps.values():
                with pytest.raises(ValueError, match="whole number of rows for a step"):
                    stream.step(now)
                stream.run(block(x, t, t + 1))
                continue
            for output, y in named(model, stream.step(now)).items():
                if output in held_ones(model):
                    assert_same_bits(y, rows[output][0])
                    at[output] = 1
                    continue
                n = 0 if y is None else 1 if steps[output] == 1 else len(y)
                if n:
                    expected = rows[output][at[output] : at[output] + n]
                    assert_same_bits(y, expected[0] if steps[output] == 1 else expected)
                at[output] += n
        if 0 not in steps.values():
            assert at == {output: len(y) for output, y in rows.items()}

    def test_rows_alone(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 12, 4)
        rows = named(model, model.stream(4, held=held).run(x))
        for b in range(4):
            stream = model.stream(held=row(held, b, 0))
            got = named(model, stream.run(row(x, b)))
            for output in rows:
                assert_same_bits(got[output], np.ascontiguousarray(rows[output][:, b]))

    def test_states(self, model: Model, rng: np.random.Generator, tmp_path: Path) -> None:
        """Clones, pickles, files and states that are assigned go on to the bit."""
        x, held = inputs_for(model, rng, 20, 2)
        stream = model.stream(2, held=held)
        stream.run(block(x, 0, 11))
        state = stream.state
        stream.save(tmp_path / "state")
        other = model.stream(2, held={n: np.zeros_like(a) for n, a in held.items()})
        loaded = model.stream(2, held={n: np.zeros_like(a) for n, a in held.items()})
        other.state = state
        loaded.load(tmp_path / "state")
        ways: list[Stream] = [stream.clone(), pickle.loads(pickle.dumps(stream)), other, loaded]
        rest = block(x, 11, 20)
        expected, due = named(model, stream.run(rest)), named(model, stream.flush())
        for way in ways:
            assert_same_state(way.state, state)
            got = named(model, way.run(rest))
            for output, y in expected.items():
                assert_same_bits(got[output], y)
                assert_same_bits(named(model, way.flush())[output], due[output])
            assert_same_state(way.state, stream.state)

    def test_calls_that_carry_on(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 20, 2)
        stream = model.stream(2, held=held)
        stream.run(block(x, 0, 11))
        y, after = model(block(x, 11, 20), stream.state)
        again, _ = model({**block(x, 11, 20), **held}, stream.state)
        rows, due = named(model, stream.run(block(x, 11, 20))), named(model, stream.flush())
        for output, folded in folds(model).items():
            expected = rows[output][-1] if folded else np.concatenate([rows[output], due[output]])
            assert_same_bits(named(model, y)[output], expected)
            assert_same_bits(named(model, again)[output], expected)
        assert_same_state(after, stream.state)

    def test_lengths(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 14, 4)
        lengths = np.array([14, 3, 9, 14])
        y, after = model({**x, **held}, lengths=lengths)
        for b, n in enumerate(lengths.tolist()):
            try:
                one, alone = model({**row(block(x, 0, n), b), **row(held, b, 0)})
            except ValueError as error:
                assert "makes no row" in str(error)  # noqa: PT017
                continue
            assert_same_state(row(after, b), alone)
            for output, folded in folds(model).items():
                got, expected = named(model, y)[output], named(model, one)[output]
                if folded:
                    assert_same_bits(got[b], expected)
                else:
                    assert_same_bits(got[: len(expected), b], expected)
                    assert not got[len(expected) :, b].any()

    def test_pools(self, model: Model, rng: np.random.Generator, tmp_path: Path) -> None:
        x, held = inputs_for(model, rng, 15, 5)
        pool = model.pool(3, 3)
        slots = np.array([pool.open(held=row(held, b, 0)) for b in range(5)])
        streams = [model.stream(held=row(held, b, 0)) for b in range(5)]
        lengths = np.array([4, 0, 7, 2, 7])
        y = named(model, pool.run(slots, block(x, 0, 7), lengths))
        for b, n in enumerate(lengths.tolist()):
            for output, one in named(model, streams[b].run(row(block(x, 0, n), b))).items():
                assert_same_bits(y[output][: len(one), b], one)
                if n or output not in held_ones(model):
                    assert not y[output][len(one) :, b].any()
            assert_same_state(pool.get_state(int(slots[b])), streams[b].state)
        pool.save(tmp_path / "pool")
        twin, renamed = model.pool(), pickle.loads(pickle.dumps(pool))
        numbers = twin.load(tmp_path / "pool")
        order = rng.permutation(5)
        now = row(row(x, 7, 0), order, 0)
        if any(port.step_rows != 1 for port in model._network.outputs):
            with pytest.raises(ValueError, match="expected run of a block of steps"):
                pool.step(slots[order], now)
            return
        gives = {output: pool.output_steps(slots[order], output=output) for output in folds(model)}
        made = [
            named(model, pool.step(slots[order], now)),
            named(model, renamed.step(slots[order], now)),
            named(model, twin.step(np.array([numbers[int(s)] for s in slots[order]]), now)),
        ]
        for i, b in enumerate(order):
            for output, one in named(model, streams[b].step(row(row(x, 7, 0), b, 0))).items():
                for y in made:
                    assert gives[output][i] == (one is not None)
                    assert_same_bits(
                        y[output][i], np.zeros_like(y[output][i]) if one is None else one
                    )

    def test_requests(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 9, 3)
        pool = model.pool()
        slots = [pool.open(held=row(held, b, 0)) for b in range(3)]
        streams = [model.stream(held=row(held, b, 0)) for b in range(3)]
        several = any(port.step_rows == 0 for port in model._network.outputs)

        async def ask() -> list[Any]:
            asked = [pool.submit(slot, row(block(x, 0, 4), b)) for b, slot in enumerate(slots)]
            if not several:
                asked += [pool.submit(s, row(row(x, 4, 0), b, 0)) for b, s in enumerate(slots)]
            return await asyncio.gather(*asked)

        answers = asyncio.run(ask())
        for b, stream in enumerate(streams):
            expected = named(model, stream.run(row(block(x, 0, 4), b)))
            for output, y in expected.items():
                assert_same_bits(named(model, answers[b])[output], y)
            if several:
                continue
            for output, y in named(model, stream.step(row(row(x, 4, 0), b, 0))).items():
                got = named(model, answers[3 + b])[output]
                assert (got is None) == (y is None)
                if y is not None:
                    assert_same_bits(got, y)


class TestOut:
    @pytest.fixture
    def model(self, rng: np.random.Generator) -> Model:
        return Model(file_of(graphs()["several outputs"], rng), reproducible=True)

    def test_some_or_all(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 6, 2)
        expected = model.stream(2, held=held).run(x)
        for names in ((), ("y",), ("state", "y")):
            out = {n: np.full_like(expected[n], 7) for n in names}
            y = model.stream(2, held=held).run(x, out=out)
            assert list(y) == ["state", "y"]
            for output, array in y.items():
                assert (array is out[output]) if output in out else (output not in names)
                assert_same_bits(array, expected[output])

    def test_refused(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 6, 2)
        stream = model.stream(2, held=held)
        pool = model.pool()
        slots = [pool.open(held=row(held, b, 0)) for b in range(2)]
        y, state = np.zeros((6, 2, 3), np.float32), np.zeros((6, 2, 5), np.float32)
        both = np.zeros(6 * 2 * 5 + 12, np.float32)
        shared = {"state": both[:60].reshape(6, 2, 5), "y": both[36:72].reshape(6, 2, 3)}
        for out, error, message in (
            (
                y,
                TypeError,
                "out is a numpy.ndarray; this model has several outputs: expected a map",
            ),
            ({"z": y}, ValueError, "out has 'z', which is no output"),
            ({"y": state}, ValueError, r"out\['y'\] has shape \(6, 2, 5\); expected \(6, 2, 3\)"),
            ({"y": y.astype("f8")}, TypeError, r"out\['y'\] has dtype <f8; expected float32"),
            (shared, ValueError, r"out\['y'\] shares memory with another of them"),
        ):
            for call in (
                lambda out=out: stream.run(x, out=out),
                lambda out=out: pool.run(slots, x, out=out),
            ):
                with pytest.raises(error, match=message):
                    call()
        over = {"y": x["x"].reshape(-1)[:36].reshape(6, 2, 3)}
        with pytest.raises(ValueError, match=r"out\['y'\] shares memory with x"):
            stream.run(x, out=over)
        assert stream.steps == 0
        assert pool.steps(slots).tolist() == [0, 0]


class TestHeld:
    @pytest.fixture
    def model(self, rng: np.random.Generator) -> Model:
        return Model(file_of(graphs()["held"], rng), reproducible=True)

    def test_other_rows_after_a_reset(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 6, 3)
        _, other = inputs_for(model, rng, 6, 3)
        first, second = (model.stream(3, held=h).run(x["x"]) for h in (held, other))
        stream = model.stream(3, held=held)
        stream.run(x["x"])
        stream.reset(held=other)
        assert_same_bits(stream.run(x["x"]), second)
        stream.reset()
        assert_same_bits(stream.run(x["x"]), second)
        stream.reset(np.array([True, False, True]), held=held)
        y = stream.run(x["x"])
        assert_same_bits(y[:, [0, 2]], first[:, [0, 2]])
        assert not np.array_equal(y[:, 1], second[:, 1])  # it went on
        stream.reset()
        assert_same_bits(stream.run(x["x"])[:, [0, 2]], first[:, [0, 2]])
        pool = model.pool()
        slots = [pool.open(held=row(held, b, 0)) for b in range(3)]
        pool.run(slots, x["x"])
        pool.reset(slots, held=other)
        assert_same_bits(pool.run(slots, x["x"]), second)

    def test_refused(self, model: Model, rng: np.random.Generator) -> None:
        x, held = inputs_for(model, rng, 6, 3)
        knobs = held["knobs"]
        pool = model.pool()
        slot = pool.open(held={"knobs": knobs[0]})
        stream = model.stream(3, held=held)
        state = stream.state
        calls: dict[str, tuple[Any, type[Exception], str]] = {
            "missing": (lambda: model.stream(3), ValueError,
                        "held has nothing; expected exactly 'knobs': 'knobs' is missing"),
            "unknown": (lambda: model.stream(3, held={**held, "z": knobs}), ValueError,
                        "'z' is unknown"),
            "no mapping": (lambda: model.stream(3, held=knobs), TypeError,
                           "held is a numpy.ndarray"),
            "shape": (lambda: model.stream(2, held=held), ValueError,
                      r"'knobs' has shape \(3, 6\); expected \(2, 6\)"),
            "dtype": (lambda: model.stream(3, held={"knobs": knobs.astype("f8")}), TypeError,
                      "'knobs' has dtype float64; expected float32"),
            "of a pool": (lambda: pool.open(), ValueError, "'knobs' is missing"),
            "of a reset": (lambda: pool.reset(slot), ValueError, "'knobs' is missing"),
            "with a state": (lambda: pool.open({}, held=held), TypeError, "expected no held="),
            "in a step": (lambda: stream.step({**row(x, 0, 0), **held}), ValueError,
                          "'knobs' is unknown"),
            "not in a call": (lambda: model(x["x"]), ValueError, "x lacks 'knobs'"),
            "other than the state": (
                lambda: model({**x, "knobs": knobs + 1}, state), ValueError,
                "x has other rows of what is held for a sequence than the state"),
        }  # fmt: skip
        for call, error, message in calls.values():
            with pytest.raises(error, match=message):
                call()
        assert (stream.steps, len(pool)) == (0, 1)

    def test_not_kept(self, model: Model, rng: np.random.Generator) -> None:
        """What a caller gave may change: a stream has its own copy."""
        x, held = inputs_for(model, rng, 6, 3)
        stream = model.stream(3, held=held)
        y = stream.run(x["x"])
        held["knobs"][...] = 9
        stream.reset()
        assert_same_bits(stream.run(x["x"]), y)


class TestInputs:
    def test_refused(self, rng: np.random.Generator) -> None:
        model = Model(file_of(graphs()["tokens beside features"], rng))
        x, _ = inputs_for(model, rng, 6, 2)
        stream, pool = model.stream(2), model.pool()
        slots = [pool.open(), pool.open()]
        wrong: list[tuple[Any, type[Exception], str]] = [
            (x["x"], TypeError, "x is a numpy.ndarray; expected a "
                                "mapping to arrays of 'x', 'ids'"),
            ({"x": x["x"]}, ValueError, "x has 'x'; expected exactly 'x', 'ids': 'ids' is missing"),
            ({**x, "z": 1}, ValueError, "expected exactly 'x', 'ids': 'z' is unknown"),
            ({**x, "ids": x["ids"] + 7}, ValueError, "out of range; the model knows tokens 0 to 6"),
            ({**x, "ids": x["x"]}, TypeError, "'ids' has dtype float32; this model takes tokens"),
            ({**x, "x": x["x"].astype("f8")}, TypeError, "'x' has dtype float64; expected float32"),
            ({**x, "ids": x["ids"][:5]}, ValueError,
             r"'ids' has shape \(5, 2\); expected \(6, 2\)"),
            ({**x, "ids": x["ids"][:, :1]}, ValueError, r"'ids' has shape \(6, 1\); expected"),
        ]  # fmt: skip
        for given, error, message in wrong:
            for call in (model, stream.run, lambda x: pool.run(slots, x)):
                with pytest.raises(error, match=message):
                    call(given)
        with pytest.raises(TypeError, match="x is a list, which is for a model of one input"):
            model([x["x"], x["x"]])
        with pytest.raises(TypeError, match="x is a list, which is for a model of one input"):
            pool.run(slots, [x["x"], x["x"]])
        assert stream.steps == 0
        assert pool.steps(slots).tolist() == [0, 0]

    def test_of_requests(self, rng: np.random.Generator) -> None:
        model = Model(file_of(graphs()["tokens beside features"], rng))
        x, _ = inputs_for(model, rng, 6, 1)
        one = row(x, 0)
        pool = model.pool()
        slot = pool.open()

        async def ask(given: Any) -> None:
            await pool.run_async(slot, given)

        for given, error, message in (
            (one["x"], TypeError, "expected a mapping to arrays of 'x', 'ids'"),
            (
                {**one, "ids": one["ids"][:5]},
                ValueError,
                r"'ids' has shape \(5,\); expected \(6,\)",
            ),
        ):
            with pytest.raises(error, match=message):
                asyncio.run(ask(given))
        assert pool.steps(slot) == 0


def test_all_kinds_are_tried() -> None:
    """Random graphs with what makes several values hard: held ones, several, more and less rows."""
    found = [random_file(seed).graph for seed in RANDOM]
    assert sum(len(graph.inputs) > 1 for graph in found) > 5
    assert sum(len(graph.outputs) > 1 for graph in found) > 5
    assert sum(any(given.held for given in graph.inputs) for graph in found) > 2
    facts = [spec.check(graph) for graph in found]
    timings = [
        f.rows[v].timing for g, f in zip(found, facts, strict=True) for v in g.outputs.values()
    ]
    assert any(t and t.rate.rows > t.rate.steps for t in timings)
    assert any(t and t.rate.rows < t.rate.steps for t in timings)
    assert any(t and t.delay for t in timings)
