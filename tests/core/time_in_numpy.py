"""Operations over time, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm.plan import operations as op

Array = Any
Call = Any  # of program_in_numpy


def window(call: Call, w: op.Window) -> None:
    x, reach = call.get(w.x), w.dilation * (w.size - 1)
    kept = reach + w.ahead
    n = call.count(w.rows, 1) if w.rows >= 0 else kept

    def given(rows: int) -> int:
        due = (rows - w.ahead + w.before - reach - 1 + w.stride) // w.stride
        return max(0, due) if rows else 0

    end = n + len(x)
    start, stop = given(n), given(end)
    if call.ending and end:
        assert w.rows >= 0 or not w.behind
        stop = max(start, given(end + w.behind))
    if kept:
        x = np.concatenate([call.ring(w.ring, kept, x.shape[-1], w.position), x])
        call.keep(w.ring, x[len(x) - kept :], w.position, end - n)
    if w.rows >= 0:  # from some number on, only what is left of a stride matters
        enough = kept + abs(w.before) + abs(w.behind) + w.stride
        call.set_count(w.rows, 1, end if end < enough else enough + (end - enough) % w.stride)
    seen = np.arange(start, stop)[:, None] * w.stride - w.before + w.dilation * np.arange(w.size)
    real, at = (seen >= 0) & (seen < end), seen - (n - kept)
    assert (at[real] >= 0).all(), "a window sees what is not kept"
    y = x[np.where(real, at, 0)] if len(x) else call.of.arrays.zeros((*at.shape, *x.shape[1:]))
    y = np.where(real[..., None, None], y, x.dtype.type(w.fill))  # (T', size, B, count)
    call.put_new(w.y, np.moveaxis(y, 1, 2))


def delay(call: Call, d: op.Delay) -> None:
    x = call.get(d.x)
    joined = np.concatenate([call.ring(d.ring, d.steps, x.shape[-1], d.position), x])
    call.keep(d.ring, joined[len(x) :], d.position, len(x))
    call.put(d.y, joined[: len(x)])


def recall(call: Call, r: op.Recall) -> None:
    count = call.of.program.values[r.y].count
    call.put(r.y, call.ring(r.ring, r.steps, count, r.position)[:1])


def remember(call: Call, r: op.Remember) -> None:
    x = call.get(r.x)
    rows = call.ring(r.ring, r.steps, x.shape[-1], r.position)
    x = np.broadcast_to(x, (1, *rows.shape[1:]))
    call.keep(r.ring, np.concatenate([rows[1:], x]), r.position, 1)


def spread(call: Call, s: op.Spread) -> None:
    x, count = call.get(s.x), call.of.program.values[s.y].count
    at = np.arange(s.times)[:, None] * s.stride + np.arange(count)
    y = np.moveaxis(x[..., at], 2, 1)  # (T, times, B, count)
    call.put_new(s.y, y.reshape(-1, *y.shape[2:]))


def so_far(call: Call, one: Any, n: int, rows: Array, advance: Callable[[int, int], Array]) -> None:
    """What all rows so far give, n of them before: after each, or at the end of a whole sequence.

    advance : function of the number of a row, and how many there are with it
    """
    made = [advance(t, n + t + 1) for t in range(len(rows))]
    n += len(rows)
    if one.rows >= 0:
        call.set_count(one.rows, 2, n)
    if one.folded and call.whole:
        made = [advance(-1, n)] if call.ending and n else []
    empty = call.of.arrays.zeros((0, len(call.state), call.of.program.values[one.y].count))
    call.put_new(one.y, np.stack(made) if made else empty.astype(call.of.dtype))


def fold(call: Call, f: op.Fold) -> None:
    x = call.get(f.x)
    count = x.shape[-1]
    total = call.state[:, f.total : f.total + count] if f.total >= 0 else None
    rest = call.state[:, f.rest : f.rest + count] if f.rest >= 0 else 0

    def advance(t: int, n: int) -> Array:
        if t < 0:
            return total + rest
        if total is None:
            return x[t]
        if f.fold == "last" or (n == 1 and f.rows >= 0):
            total[...] = x[t]
        elif f.fold in ("max", "min"):
            total[...] = {"max": np.maximum, "min": np.minimum}[f.fold](total, x[t])
        elif f.fold != "first":
            more = x[t] + rest if f.fold == "sum" else (x[t] - total + rest * (n - 1)) / n
            new = total + more
            if f.rest >= 0:
                part = new - total
                rest[...] = (total - (new - part)) + (more - part)
            total[...] = new
        return total + rest

    so_far(call, f, call.count(f.rows, 2) if f.rows >= 0 else 0, x, advance)


def attention(call: Call, a: op.Attention) -> None:
    steps = np.broadcast_shapes(*(call.get(v).shape[:2] for v in (a.scores, a.values)))
    scores, values = (
        np.broadcast_to(x, (*steps, x.shape[-1])) for x in map(call.get, (a.scores, a.values))
    )
    B, S, V = len(call.state), scores.shape[-1], call.of.program.values[a.y].count
    score_of, value_of = (
        np.arange(V) if at is None else at for at in map(call.of.list, (a.score_of, a.value_of))
    )
    largest, weight, total = (
        call.state[:, at : at + size] for at, size in ((a.largest, S), (a.weight, S), (a.total, V))
    )

    def advance(t: int, n: int) -> Array:
        if t >= 0:
            before = np.full((B, S), -np.inf, scores.dtype) if n == 1 and a.rows >= 0 else largest
            new = np.maximum(before, scores[t])
            # Rows of minus infinity have no weight, also before any other has come.
            base = np.where(np.isneginf(new), 0, new)
            fade, own = np.exp(before - base), np.exp(scores[t] - base)
            weight[...] = fade * weight + own
            total[...] = fade[:, score_of] * total + own[:, score_of] * values[t][:, value_of]
            largest[...] = new
        return total / weight[:, score_of]

    so_far(call, a, call.count(a.rows, 2) if a.rows >= 0 else 0, scores, advance)


def meet(call: Call, m: op.Meet) -> None:
    lists = call.of.program.lists
    capacities, joined = lists[m.capacities], []
    reads = list(zip(lists[m.reads], capacities, lists[m.queues], strict=True))
    for i, (number, capacity, queue) in enumerate(reads):
        x = call.get(number)
        if capacity:
            waiting = call.count(m.heads + 2 * i + 1, 1)
            ring = call.ring(queue, capacity, x.shape[-1], m.heads + 2 * i)
            x = np.concatenate([ring[:waiting], x])
        joined.append(x)
    n = min(map(len, joined))
    for i, (y, x) in enumerate(zip(lists[m.ys], joined, strict=True)):
        _, capacity, queue = reads[i]
        left = x[n:]
        assert len(left) <= capacity or call.ending, "more rows wait than there is room for"
        left = left[:capacity]  # at the end no other row comes, also of a fold that had none
        if capacity:
            room = np.zeros((capacity - len(left), *x.shape[1:]), x.dtype)
            call.keep(queue, np.concatenate([left, room]), m.heads + 2 * i, n)
            call.set_count(m.heads + 2 * i + 1, 1, len(left))
        call.put_new(y, x[:n])


def start(call: Call, s: op.Start) -> None:
    x = call.get(s.x)
    call.state[:, s.offset : s.offset + x.shape[-1]] = x[0]
