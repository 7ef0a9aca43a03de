"""Every way in which a model can run a sequence: promise 1, in one place.

Steps one by one, blocks of any sizes, any batch around a row, a state saved, copied or set on the
way: all give the same bits as the whole sequence in one call, of a model that is reproducible.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from models import ChainFile, input_for, state_for

from fastlstm import Model, reference

State = Mapping[str, np.ndarray]


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    size = {4: np.uint32, 8: np.uint64}[got.itemsize]
    bits = [np.ascontiguousarray(a).view(size) for a in (got, expected)]
    differ = np.argwhere(bits[0] != bits[1])
    assert not len(differ), f"{len(differ)} of {got.size} numbers differ, first at {differ[0]}"


def assert_same_state(got: State, expected: State) -> None:
    assert list(got) == list(expected)
    for name in got:
        assert_same_bits(got[name], expected[name])


def row_of(state: State, b: int) -> dict[str, np.ndarray]:
    return {name: array[:, b].copy() for name, array in state.items()}


def rows_of(model: Model, y: np.ndarray) -> np.ndarray:
    """The output of a call with its rows in front: (B, T', O), of a model that pools (B, O)."""
    return y if model.pools_over_time else y.swapaxes(0, 1)


def in_numpy(
    file: ChainFile | Model, x: np.ndarray, start: State | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sequences (T, B, ...) by the reference in float64: (T', B, O) or (B, O), and the state.

    They start from a state of the engine's, whose means are sums here.
    """
    stream = reference.Stream(file.graph, file.tensors, x.shape[1])
    known = {n: a for n, a in (start or {}).items() if n in stream.state}
    for node in file.graph.nodes:
        if (
            getattr(node.layer, "function", "") == "mean"
            and (total := f"{node.name}.total") in known
        ):
            known[total] = known[total] * known[f"{node.name}.count"][..., None]
    for name, array in known.items():
        stream.state[name] = array.astype(stream.state[name].dtype)
    inputs = {file.graph.inputs[0].name: x}
    if stream.facts.looks_ahead:
        rows = stream.finish(inputs)["output"]
    else:
        rows = stream.run(inputs)["output"]
        rows = np.concatenate([rows, stream.flush()["output"]])
    if stream.facts.rows[file.graph.outputs["output"]].folded:
        rows = rows[-1] if len(rows) else np.zeros(rows.shape[1:])
    return rows, {name: stream.state[name] for name in stream.facts.state}


def assert_state_is_near(got: State, expected: State, bound: float) -> None:
    """Of states that the reference has made: all but what counts and folds, each in its own way."""
    for name, array in expected.items():
        if name.rpartition(".")[2] not in ("count", "total"):
            np.testing.assert_allclose(got[name], array, rtol=bound, atol=bound)


def assert_every_way_agrees(
    model: Model, rng: np.random.Generator, T: int = 11, batches: tuple[int, ...] = (1, 2, 5, 7)
) -> None:
    """Run random sequences from random states in every way there is."""
    assert model.reproducible
    for B in batches:
        x, start = input_for(model, rng, T, B), state_for(model, rng, B)
        y, after = model(x, start)
        assert_rows_do_not_know_each_other(model, rng, x, start)
        first, first_after = model(np.ascontiguousarray(x.swapaxes(0, 1)), start, batch_first=True)
        assert_same_bits(first, rows_of(model, y))
        assert_same_state(first_after, after)
        if model.looks_ahead:
            continue
        for batch in (B, None):
            if batch is None:
                x, start = x[:, 0], row_of(start, 0)
                y, after = model(x, start)
            stream = model.stream(batch)
            stream.state = start
            rows = stream.run(x)
            assert_same_state(stream.state, after)
            if model.pools_over_time:
                assert_same_bits(rows[-1], y)
            else:
                assert_same_bits(np.concatenate([rows, stream.flush()]), y)
            assert_steps_agree(model, x, start, rows, after, batch)
            assert_blocks_agree(model, rng, x, start, rows, after, batch)


def assert_rows_do_not_know_each_other(
    model: Model, rng: np.random.Generator, x: np.ndarray, start: State
) -> None:
    """Alone, in another order and beside rows that are not finite, each gives the same bits."""
    B = x.shape[1]
    y, after = model(x, start)
    rows, order = rows_of(model, y), rng.permutation(B)
    other, other_after = model(x[:, order], {n: a[:, order] for n, a in start.items()})
    assert_same_bits(rows_of(model, other), rows[order])
    assert_same_state(other_after, {n: a[:, order] for n, a in after.items()})
    for b in {0, B // 2, B - 1}:
        alone, alone_after = model(x[:, b], row_of(start, b))
        assert_same_bits(alone, rows[b])
        assert_same_state(alone_after, row_of(after, b))
        if not model.takes_tokens:
            beside = np.full_like(x, np.nan)
            beside[:, b] = x[:, b]
            among, among_after = model(beside, start)
            assert_same_bits(rows_of(model, among)[b], rows[b])
            assert_same_state(row_of(among_after, b), row_of(after, b))


def assert_steps_agree(
    model: Model, x: np.ndarray, start: State, rows: np.ndarray, after: State, batch: int | None
) -> None:
    """One step at a time; one that gives no row returns None and leaves `out` alone."""
    stream, n = model.stream(batch), 0
    stream.state = start
    for t, x_t in enumerate(x):
        out = np.full(rows.shape[1:], 7, rows.dtype) if t % 2 else None
        y_t = stream.step(x_t, out=out)
        if y_t is None:
            assert out is None or (out == 7).all()
            continue
        assert out is None or y_t is out
        assert_same_bits(y_t, rows[n])
        n += 1
    assert n == len(rows)
    assert_same_state(stream.state, after)


def assert_blocks_agree(
    model: Model,
    rng: np.random.Generator,
    x: np.ndarray,
    start: State,
    rows: np.ndarray,
    after: State,
    batch: int | None,
    folder: Path | None = None,
) -> None:
    """Blocks of random sizes; between them the state moves to another stream in some way."""
    stream, t, found = model.stream(batch), 0, []
    stream.state = start
    while t < len(x):
        n = int(rng.integers(0, 5))
        found.append(stream.run(x[t : t + n]))
        t += n
        how = rng.choice(["stay", "state", "clone", "pickle", "save"])
        before, moved = stream, stream
        if how == "state":
            moved = model.stream(batch)
            moved.state = before.state
        elif how == "clone":
            moved = before.clone()
        elif how == "pickle":
            moved = pickle.loads(pickle.dumps(before))
        elif how == "save" and folder:
            before.save(folder / "state")
            moved = model.stream(batch)
            moved.load(folder / "state")
        if moved is not before:
            before.reset()
        stream = moved
    assert_same_bits(np.concatenate(found), rows)
    assert_same_state(stream.state, after)
