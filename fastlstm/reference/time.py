"""Equations of window, delay, rate and fold: of a whole sequence, and of a stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastlstm import spec
from fastlstm.reference.functions import Array
from fastlstm.reference.over_time import OverTime, State, read_before, side_by_side

__all__ = [
    "AttentionOverTime",
    "DelayOverTime",
    "FoldOverTime",
    "RepeatOverTime",
    "SliceOverTime",
    "SpreadOverTime",
    "WindowOverTime",
]


class WindowOverTime(OverTime):
    layer: spec.Window

    def _windows(self, padded: Array, starts: Sequence[int]) -> Array:
        taps = self.layer.dilation * np.arange(self.layer.size)
        made = [padded[start + taps].swapaxes(0, 1) for start in starts]
        shape = (0, padded.shape[1], self.layer.size, *padded.shape[2:])
        return np.stack(made) if made else np.zeros(shape, padded.dtype)

    def whole(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        layer = self.layer
        zeros = np.zeros((layer.padding, *x.shape[1:]), x.dtype)
        rows = layer.terms[0](len(x))
        return self._windows(
            np.concatenate([zeros, x]), range(0, rows * layer.stride, layer.stride)
        )

    def run(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        layer, joined = self.layer, x
        # Where the number of steps before does not matter, it is taken to be that of the rows kept.
        n = read_before(state) if "count" in state else layer.reach
        if "x" in state:
            joined = np.concatenate([state["x"], x])
            state["x"] = joined[len(x) :]
        if "count" in state:
            state["count"] = state["count"] + len(x)
        rows = range(layer.terms[1](n), layer.terms[1](n + len(x)))
        first = n - layer.reach  # the number of the first row of `joined`
        return self._windows(joined, [j * layer.stride - layer.padding - first for j in rows])


class DelayOverTime(OverTime):
    layer: spec.Delay

    def start(self, B: int, given: Sequence[Array]) -> State:
        state = super().start(B, given)
        if self.layer.initial_state == "learned":
            state["x"][...] = self.w["x_0"][:, None]
        if given:
            state["x"][...] = given[0][0].reshape(B, *self.layer.kept).swapaxes(0, 1)
        return state

    def run(self, state: State, *xs: Array) -> Array:
        joined = np.concatenate([state["x"], xs[0]])
        state["x"] = joined[len(xs[0]) :]
        return joined[: len(xs[0])]

    def give(self, state: State) -> Array:
        """The row of the next step, before that step's row is read."""
        return state["x"][:1]

    def take(self, state: State, x: Array) -> None:
        """Read the row of the step whose row was given."""
        state["x"] = np.concatenate([state["x"][1:], x])


class SliceOverTime(OverTime):
    layer: spec.Slice

    def whole(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        return x[self.layer.start : max(0, len(x) - self.layer.end) : self.layer.step]

    def run(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        if not state:
            return x
        layer, n = self.layer, read_before(state)
        joined = np.concatenate([state["x"], x]) if "x" in state else x
        if "x" in state:
            state["x"] = joined[len(x) :]
        state["count"] = state["count"] + len(x)
        first = n - layer.end  # the number of the first row of `joined`
        rows = range(layer.terms[1](n), layer.terms[1](n + len(x)))
        return joined[[layer.start + j * layer.step - first for j in rows]]


class RepeatOverTime(OverTime):
    layer: spec.Repeat

    def run(self, state: State, *xs: Array) -> Array:
        return np.repeat(xs[0], self.layer.times, axis=0)


class SpreadOverTime(OverTime):
    layer: spec.Spread

    def run(self, state: State, *xs: Array) -> Array:
        moved = xs[0].swapaxes(1, 2)  # (T, n, B, ...)
        return moved.reshape(-1, *moved.shape[2:])


class FoldOverTime(OverTime):
    layer: spec.Fold

    def _so_far(self, x: Array) -> Array:
        """After each row, the fold of it and all before it."""
        function = self.layer.function
        if function == "mean":
            counts = np.arange(1, len(x) + 1, dtype=x.dtype)
            y: Array = np.cumsum(x, axis=0) / counts.reshape(-1, *(1,) * (x.ndim - 1))
            return y
        if function in ("first", "last"):
            return np.broadcast_to(x[:1], x.shape) if function == "first" else x
        functions = {"sum": np.add, "max": np.maximum, "min": np.minimum}
        z: Array = functions[function].accumulate(x, axis=0)
        return z

    def whole(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        if self.layer.cumulative or not len(x):
            return self._so_far(x)
        if self.layer.function in ("first", "last"):
            return x[:1] if self.layer.function == "first" else x[-1:]
        function = getattr(np, self.layer.function)
        y: Array = function(x, axis=0, keepdims=True)
        return y

    def run(self, state: State, *xs: Array) -> Array:
        (x,) = xs
        if self.layer.function == "last":
            return x
        y = np.empty_like(x)
        combine = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}
        for t, row in enumerate(x):
            total = state["total"][0]
            if "count" in state and not read_before(state):
                total = row
            elif self.layer.function != "first":
                total = combine[self.layer.function](total, row)
            state["total"] = total[None]
            if "count" in state:
                state["count"] = state["count"] + 1
            y[t] = total / state["count"][0, 0] if self.layer.function == "mean" else total
        return y


class AttentionOverTime(OverTime):
    layer: spec.Attention

    def start(self, B: int, given: Sequence[Array]) -> State:
        state = super().start(B, given)
        state["largest"][...] = -np.inf
        return state

    def whole(self, state: State, *xs: Array) -> Array:
        scores, values = side_by_side(*xs)
        if not len(scores):
            return scores * values

        def attended(stop: int) -> Array:
            weight = np.exp(scores[:stop] - scores[:stop].max(axis=0))
            y: Array = (weight * values[:stop]).sum(axis=0) / weight.sum(axis=0)
            return y

        stops = range(1, len(scores) + 1) if self.layer.cumulative else [len(scores)]
        return np.stack([attended(stop) for stop in stops])

    def run(self, state: State, *xs: Array) -> Array:
        scores, values = side_by_side(*xs)
        y = np.empty_like(scores * values)
        for t, (score, value) in enumerate(zip(scores, values, strict=True)):
            before = state["largest"][0].reshape(score.shape)
            largest = np.maximum(before, score)
            # Rows of minus infinity have no weight, also before any other has come.
            base = np.where(np.isneginf(largest), 0, largest)
            fade, weight = np.exp(before - base), np.exp(score - base)
            weights = fade * state["weight"][0].reshape(score.shape) + weight
            total = fade * state["total"][0] + weight * value
            state["largest"] = largest.reshape(state["largest"].shape)
            state["weight"] = weights.reshape(state["weight"].shape)
            state["total"] = total[None]
            y[t] = total / weights
        return y
