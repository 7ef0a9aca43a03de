"""Random graphs: a whole sequence, and a stream of it in any pieces, give the same rows.

The graphs are those of :mod:`random_graphs`, one a seed; a test that fails prints its graph.

In float32 the outputs of 600 seeds differed from those in float64, relative to the largest number
of each, by 1e-7 at the median, by 6e-7 at the 99th percentile, and by 9e-6 at most.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json

import numpy as np
import pytest
from random_graphs import features, random_graph, random_inputs, text

from fastlstm import reference, spec

SEEDS = range(100)


@functools.cache
def grown(seed):
    """The graph of a seed, its tensors, and what is known of it."""
    graph, tensors = random_graph(np.random.default_rng(seed))
    return graph, tensors, spec.check(graph)


@pytest.fixture(params=SEEDS, ids="seed{}".format)
def seed(request):
    print(text(grown(request.param)[0]))
    return request.param


def drawn(seed, T, B):
    return random_inputs(np.random.default_rng([seed, T, B]), grown(seed)[0], T, B)


def longest(facts):
    """Steps after which a stream has given some rows of every value."""
    return max(row.timing.delay for row in facts.rows.values() if row.timing) + 6


def parted(graph, inputs):
    """The inputs of each step, and those that are held."""
    held = {i.name for i in graph.inputs if i.held}
    return (
        {name: x for name, x in inputs.items() if name not in held},
        {name: x for name, x in inputs.items() if name in held},
    )


def cut(moving, start, stop):
    return {name: x[start:stop] for name, x in moving.items()}


def new_stream(graph, tensors, inputs, B):
    return reference.Stream(graph, tensors, B, held=parted(graph, inputs)[1])


def pieces(rng, T):
    """Where a sequence is cut: some pieces are empty, some a single step."""
    at = [0]
    while at[-1] < T:
        at.append(min(T, at[-1] + int(rng.choice([0, 1, 1, 2, 3, 7]))))
    return list(zip(at, [*at[1:], T], strict=True))


def together(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_same(graph, facts, streamed, whole):
    """Rows of a stream and of a whole sequence; of a fold and a held value, the last there is."""
    for name, value in graph.outputs.items():
        y, exact, row = streamed[name], whole[name], facts.rows[value]
        if row.folded or row.held:
            y = y[-1:]
        assert y.shape == exact.shape, f"{name} is {value}"
        check_close(y, exact, f"{name} is {value}")


def check_close(y, exact, what):
    assert np.isfinite(exact).all(), what
    size = np.abs(exact).max(initial=1)
    np.testing.assert_allclose(y, exact, rtol=1e-7, atol=1e-9 * size, err_msg=what)


def test_a_stream_in_pieces_gives_the_rows_of_the_whole(seed):
    graph, tensors, facts = grown(seed)
    B = 1 + 2 * (seed % 2)
    rng = np.random.default_rng([seed, B])
    for T in (0, 1, 2, longest(facts)):
        inputs = drawn(seed, T, B)
        moving, _ = parted(graph, inputs)
        whole = reference.forward(graph, tensors, inputs)
        stream = new_stream(graph, tensors, inputs, B)
        if facts.looks_ahead:
            with pytest.raises(ValueError, match=r"cannot be streamed: .*(layer|folds)"):
                stream.run(moving)
            check_same(graph, facts, stream.finish(moving), whole)
            continue
        parts = [stream.run(cut(moving, *piece)) for piece in pieces(rng, T)]
        check_same(graph, facts, together([*parts, stream.flush()]), whole)


def test_the_numbers_of_rows_are_those_that_the_check_foretells(seed):
    graph, tensors, facts = grown(seed)
    for T in (0, 1, 2, longest(facts)):
        inputs = drawn(seed, T, 1)
        moving, _ = parted(graph, inputs)
        whole = reference.forward(graph, tensors, inputs)
        given = dict.fromkeys(graph.outputs, 0)
        stream = None if facts.looks_ahead else new_stream(graph, tensors, inputs, 1)
        for t in range(T if stream else 0):
            for name, y in stream.run(cut(moving, t, t + 1)).items():
                given[name] += len(y)
                timing = facts.rows[graph.outputs[name]].timing
                assert timing is None or given[name] == timing.after(t + 1), name
        for name, value in graph.outputs.items():
            row = facts.rows[value]
            rows = row.timing.rows(T) if row.timing else 1
            assert whole[name].shape == (min(rows, 1) if row.folded else rows, 1, *row.shape), name
            if stream and row.timing:
                assert given[name] + len(stream.flush()[name]) == rows, name


def test_a_state_that_is_put_into_another_stream_goes_on(seed):
    graph, tensors, facts = grown(seed)
    if facts.looks_ahead:
        return
    rng, B, T = np.random.default_rng(seed), 2, longest(facts)
    inputs = drawn(seed, T, B)
    moving, _ = parted(graph, inputs)
    stream = new_stream(graph, tensors, inputs, B)
    at = int(rng.integers(0, T + 1))
    stream.run(cut(moving, 0, at))
    for name, shape in facts.state.items():
        assert stream.state[name].shape == (shape[0], B, *shape[1:])
    other = new_stream(graph, tensors, inputs, B)
    other.state = copy.deepcopy(stream.state)
    for one, another in zip(
        (stream.run(cut(moving, at, T)), stream.flush()),
        (other.run(cut(moving, at, T)), other.flush()),
        strict=True,
    ):
        for name, y in one.items():
            check_close(another[name], y, name)


def test_a_flush_at_any_time_changes_nothing(seed):
    graph, tensors, facts = grown(seed)
    if facts.looks_ahead:
        return
    rng, T = np.random.default_rng(seed), longest(facts)
    inputs = drawn(seed, T, 1)
    moving, _ = parted(graph, inputs)
    stream = new_stream(graph, tensors, inputs, 1)
    parts, end = [], int(rng.integers(0, T + 1))
    for start, stop in pieces(rng, T):
        parts.append(stream.run(cut(moving, start, stop)))
        before = copy.deepcopy(stream.state)
        due = stream.flush()
        assert before.keys() == stream.state.keys()
        for name, kept in before.items():
            np.testing.assert_array_equal(stream.state[name], kept)
        if stop >= end > start:  # what was flushed is the end of a sequence that ends there
            shorter = {**inputs, **cut(moving, 0, stop)}
            whole = reference.forward(graph, tensors, shorter)
            check_same(graph, facts, together([*parts, due]), whole)
    whole = reference.forward(graph, tensors, inputs)
    check_same(graph, facts, together([*parts, stream.flush()]), whole)


def test_rows_of_a_batch_do_not_see_each_other(seed):
    graph, tensors, facts = grown(seed)
    B, T = 3, longest(facts)
    inputs = drawn(seed, T, B)
    moving, held = parted(graph, inputs)
    whole = reference.forward(graph, tensors, inputs)
    for b in range(B):
        alone = {name: x[:, b : b + 1] for name, x in moving.items()}
        alone |= {name: x[b : b + 1] for name, x in held.items()}
        for name, y in reference.forward(graph, tensors, alone).items():
            check_close(y[:, 0], whole[name][:, b], name)


def test_a_graph_of_nodes_in_another_order_is_the_same(seed):
    graph, tensors, facts = grown(seed)
    order = np.random.default_rng(seed).permutation(len(graph.nodes))
    other = spec.Graph(graph.inputs, [graph.nodes[i] for i in order], graph.outputs)
    known = spec.check(other)
    assert (known.rows, known.tensors, known.state, known.work, bool(known.looks_ahead)) == (
        facts.rows,
        facts.tensors,
        facts.state,
        facts.work,
        bool(facts.looks_ahead),
    )
    inputs = drawn(seed, longest(facts), 1)
    whole = reference.forward(graph, tensors, inputs)
    for name, y in reference.forward(other, tensors, inputs).items():
        check_close(y, whole[name], name)


def test_a_graph_of_json_values_is_equal(seed):
    graph, tensors, facts = grown(seed)
    again = spec.Graph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert again.to_dict() == graph.to_dict()
    assert spec.check(again) == facts
    spec.check_tensors(facts, {name: tensor.shape for name, tensor in tensors.items()})


def test_float32_is_close_to_float64():
    errors = []
    for seed in SEEDS:
        graph, tensors, _ = grown(seed)
        inputs = drawn(seed, 12, 2)
        exact = reference.forward(graph, tensors, inputs)
        single = reference.forward(graph, tensors, inputs, dtype=np.float32)
        error = 0.0
        for name, y in exact.items():
            size = max(1e-3, float(np.abs(y).max(initial=0)))
            error = max(error, np.abs(single[name] - y).max(initial=0) / size)
        errors.append(error)
    far = [(seed, error) for seed, error in zip(SEEDS, errors, strict=True) if not error < 1e-3]
    assert len(far) <= len(errors) // 100, far


TEXTS = {
    **{f"{kind}.along": ("time", "positions") for kind in ("lstm", "gru", "rnn")},
    **{
        f"{kind}.initial_state": ("", "learned", "given")
        for kind in ("lstm", "gru", "rnn", "delay")
    },
    "lstm.layer_norm": ("", "product", "gate"),
    "pooling.function": ("max", "average"),
    "activation.function": tuple(spec.PARAMETERS),
    "arithmetic.operation": tuple(spec.OPERATIONS),
    "reduce.function": ("sum", "mean", "max", "min", "l2"),
    "fold.function": ("first", "last", "sum", "mean", "max", "min"),
}
WAYS = {
    *("several inputs", "several held inputs", "several outputs", "node that nobody reads"),
    *("output held", "output of steps", "output folded", "shared weights"),
    *("can be streamed", "cannot be streamed"),
    *("held row meets rows of steps", "held row computed", "layer behind a fold", "three meet"),
    *("unequal delays meet", "unequal delays meet at another rate"),
    *("now one delay is the longer one, now another",),
    *("folds of unequal delays meet", "folds of unequal rows meet"),
    *("recurrence over positions", "hold by a constant", "hold by one number", "hold by positions"),
    *(f"{kind}.activations of each direction" for kind in ("lstm", "gru")),
    *(f"{kind} starts from what is computed" for kind in ("lstm", "gru", "rnn", "delay")),
    *(f"{kind} starts from an input" for kind in ("lstm", "gru", "rnn", "delay")),
    *(f"{kind} {what}" for kind in ("moving", "held") for what in ("tokens of 0 axes",)),
    *(f"{kind} input of {n} axes" for kind in ("moving", "held") for n in range(4)),
    *(f"rate raised by {kind}" for kind in ("convolution", "repeat", "spread")),
    *(f"rate lowered by {kind}" for kind in ("convolution", "pooling", "slice", "window")),
    *(f"loop of {n} delays" for n in (1, 2, 3)),
    *(f"loop with {kind}" for kind in ("lstm", "gru", "rnn", "linear", "arithmetic", "index")),
    *(f"loop with {kind}" for kind in ("convolution", "window", "fold", "attention", "rms_norm")),
    *(f"{kind} over {n} axes" for kind in ("convolution", "pooling") for n in (1, 2, 3)),
    *(f"{kind} over time and {n} axes" for kind in ("convolution", "pooling") for n in (0, 1, 2)),
}


def every_option():
    """Of every kind: each field other than its default, both values of a switch, every text."""
    for kind, cls in spec.KINDS.items():
        yield kind
        for field in dataclasses.fields(cls):
            if field.name == "name" or (
                field.name in ("weights", "tensor_names") and cls.tensors is spec.Layer.tensors
            ):
                continue
            if field.type == "bool":
                yield from (f"{kind}.{field.name} is {value}" for value in (True, False))
            elif field.default is not dataclasses.MISSING:
                yield f"{kind}.{field.name}"
            yield from (
                f"{kind}.{field.name} is {t}" for t in TEXTS.get(f"{kind}.{field.name}", ())
            )


def test_everything_that_a_graph_can_have_occurs():
    missing = set(every_option()) | WAYS
    for seed in range(800):
        missing -= features(grown(seed)[0])
        if not missing:
            break
    assert not sorted(missing)
