"""Window, delay, rate, fold and attention over time: the reference equals torch, or loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from one_layer import draw, forward, graph_of, in_pieces

from fastlstm import reference, spec

torch = pytest.importorskip("torch")

SHAPES = [(), (3,), (2, 3)]


def assert_same(actual, expected, note=""):
    if isinstance(expected, torch.Tensor):
        expected = expected.numpy()
    assert actual.shape == np.shape(expected), note
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12, err_msg=str(note))


def whole_and_pieces(layer, x, rng, w=None):
    y = forward(layer, w or {}, x)
    pieces = in_pieces(graph_of(layer, [x.shape[2:]]), w or {}, {"x0": x}, rng)["y"]
    folded = layer.folds and len(x)
    assert_same(pieces[-1:] if folded else pieces, y, layer)
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestRows:
    def test_window(self, shape, rng):
        for _ in range(40):
            size, stride, dilation = map(int, rng.integers(1, 5, 3))
            padding = int(rng.integers(0, dilation * (size - 1) + 1))
            layer = spec.Window("n", size, stride=stride, dilation=dilation, padding=padding)
            T = int(rng.integers(0, 20))
            x = rng.standard_normal((T, 2, *shape))
            rows = [*[np.zeros_like(x[0])] * padding, *x] if T else []
            expected = [
                np.stack([rows[at + dilation * k] for k in range(size)], axis=1)
                for at in range(0, len(rows) - dilation * (size - 1), stride)
            ]
            y = whole_and_pieces(layer, x, rng)
            assert_same(y, np.array(expected).reshape(-1, 2, size, *shape), layer)

    def test_a_window_is_torchs_unfold(self, shape, rng):
        x = rng.standard_normal((11, 2, *shape))
        unfolded = torch.from_numpy(x).unfold(0, 4, 3)  # (T', B, ..., 4)
        y = whole_and_pieces(spec.Window("n", 4, stride=3), x, rng)
        assert_same(y, unfolded.movedim(-1, 2))

    @pytest.mark.parametrize("steps", [1, 2, 5])
    def test_delay(self, shape, steps, rng):
        for T in (0, 1, 4, 9):
            x = rng.standard_normal((T, 2, *shape))
            layer = spec.Delay("n", shape, steps)
            zeros = np.zeros((steps, 2, *shape))
            assert_same(whole_and_pieces(layer, x, rng), np.concatenate([zeros, x])[:T])
            layer = spec.Delay("n", shape, steps, initial_state="learned")
            w = {"n.x_0": rng.standard_normal((steps, *shape))}
            first = np.repeat(w["n.x_0"][:, None], 2, axis=1)
            assert_same(whole_and_pieces(layer, x, rng, w), np.concatenate([first, x])[:T])
            layer = spec.Delay("n", shape, steps, initial_state="given")
            given = rng.standard_normal((2, steps, *shape))
            y = forward(layer, {}, x, given, held={1})
            assert_same(y, np.concatenate([given.swapaxes(0, 1), x])[:T])
            graph = graph_of(layer, [shape, (steps, *shape)], {1})
            assert_same(in_pieces(graph, {}, {"x0": x, "x1": given}, rng)["y"], y)

    def test_one_given_row_needs_no_axis_of_steps(self, shape, rng):
        x, given = rng.standard_normal((4, 2, *shape)), rng.standard_normal((2, *shape))
        layer = spec.Delay("n", shape, initial_state="given")
        y = forward(layer, {}, x, given, held={1})
        assert_same(y, np.concatenate([given[None], x[:3]]))

    def test_slice(self, shape, rng):
        for _ in range(40):
            start, end = map(int, rng.integers(0, 5, 2))
            layer = spec.Slice("n", start=start, end=end, step=int(rng.integers(1, 5)))
            x = rng.standard_normal((int(rng.integers(0, 15)), 2, *shape))
            expected = list(x)[start : max(len(x) - end, 0) : layer.step]
            y = whole_and_pieces(layer, x, rng)
            assert_same(y, np.array(expected).reshape(-1, 2, *shape), layer)

    @pytest.mark.parametrize("times", [1, 3])
    def test_repeat(self, shape, times, rng):
        x = rng.standard_normal((7, 2, *shape))
        expected = torch.repeat_interleave(torch.from_numpy(x), times, dim=0)
        assert_same(whole_and_pieces(spec.Repeat("n", times), x, rng), expected)

    @pytest.mark.parametrize("size", [1, 4])
    def test_spread(self, shape, size, rng):
        x = rng.standard_normal((7, 2, size, *shape))
        expected = [x[t, :, k] for t in range(7) for k in range(size)]
        assert_same(whole_and_pieces(spec.Spread("n", size), x, rng), expected)


FOLDS = {
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "max": lambda x: torch.amax(x, 0),
    "min": lambda x: torch.amin(x, 0),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestFold:
    @pytest.mark.parametrize("function", FOLDS)
    def test_of_a_whole_sequence(self, shape, function, rng):
        layer = spec.Fold("n", function)
        for T in (1, 2, 9):
            x = rng.standard_normal((T, 2, *shape)) - 5
            expected = FOLDS[function](torch.from_numpy(x))[None]
            assert_same(whole_and_pieces(layer, x, rng), expected, layer)

    @pytest.mark.parametrize("function", sorted(set(FOLDS) - {"last"}))
    def test_so_far(self, shape, function, rng):
        layer = spec.Fold("n", function, cumulative=True)
        for T in (0, 1, 9):
            x = rng.standard_normal((T, 2, *shape)) - 5
            rows = [FOLDS[function](torch.from_numpy(x[: t + 1])).numpy() for t in range(T)]
            expected = np.array(rows).reshape(T, 2, *shape)
            assert_same(whole_and_pieces(layer, x, rng), expected, layer)

    @pytest.mark.parametrize("function", FOLDS)
    def test_a_stream_tells_what_it_would_be_if_it_ended(self, shape, function, rng):
        layer = spec.Fold("n", function)
        x = rng.standard_normal((6, 2, *shape))
        stream = reference.Stream(graph_of(layer, [shape]), {}, 2)
        for t in range(6):
            (y,) = stream.run({"x0": x[t : t + 1]})["y"]
            assert_same(y[None], forward(layer, {}, x[: t + 1]), t)
        assert len(stream.flush()["y"]) == 0

    @pytest.mark.parametrize("function", FOLDS)
    def test_infinities_and_nan(self, shape, function, rng):
        x = rng.standard_normal((6, 2, *shape))
        x[2, 0], x[3, 1], x[4, 1] = math.inf, math.nan, -math.inf
        expected = FOLDS[function](torch.from_numpy(x))[None]
        assert_same(whole_and_pieces(spec.Fold("n", function), x, rng), expected)


def attended(scores, values, stop):
    """Softmax over the first rows, written out: scores and values (T, B, ...)."""
    scores = torch.from_numpy(scores[:stop])
    weights = torch.softmax(scores, dim=0)
    return (weights * torch.from_numpy(values[:stop])).sum(0).numpy()


AXES = [((), ()), ((), (3,)), ((2, 1), (2, 3)), ((3,), (2, 3)), ((2, 3), (3,))]


@pytest.mark.parametrize(("scores", "values"), AXES, ids=str)
class TestAttention:
    def _rows(self, scores, values, T, rng):
        n = max(len(scores), len(values))
        s = 5 * rng.standard_normal((T, 2, *scores))
        v = rng.standard_normal((T, 2, *values))
        wide = [
            x.reshape(T, 2, *(1,) * (n - x.ndim + 2), *axes)
            for x, axes in ((s, scores), (v, values))
        ]
        return s, v, wide

    def test_over_a_whole_sequence(self, scores, values, rng):
        s, v, wide = self._rows(scores, values, 7, rng)
        y = forward(spec.Attention("n"), {}, s, v)
        assert_same(y[0], attended(*wide, 7))
        graph = graph_of(spec.Attention("n"), [scores, values])
        pieces = in_pieces(graph, {}, {"x0": s, "x1": v}, rng)["y"]
        assert_same(pieces, [attended(*wide, t + 1) for t in range(7)])

    def test_so_far(self, scores, values, rng):
        s, v, wide = self._rows(scores, values, 7, rng)
        layer = spec.Attention("n", cumulative=True)
        expected = [attended(*wide, t + 1) for t in range(7)]
        assert_same(forward(layer, {}, s, v), expected)
        graph = graph_of(layer, [scores, values])
        assert_same(in_pieces(graph, {}, {"x0": s, "x1": v}, rng)["y"], expected)

    def test_huge_scores(self, scores, values, rng):
        s, v, wide = self._rows(scores, values, 7, rng)
        s *= 1e4
        wide[0] = s.reshape(wide[0].shape)
        graph = graph_of(spec.Attention("n"), [scores, values])
        pieces = in_pieces(graph, {}, {"x0": s, "x1": v}, rng)["y"]
        assert_same(pieces, [attended(*wide, t + 1) for t in range(7)])

    def test_rows_that_are_masked_by_minus_infinity(self, scores, values, rng):
        """No weight, whether they come first, between others, or last."""
        s, v, wide = self._rows(scores, values, 8, rng)
        for t in (0, 1, 4, 7):
            s[t] = -math.inf
        wide[0] = s.reshape(wide[0].shape)
        graph = graph_of(spec.Attention("n", cumulative=True), [scores, values])
        y = reference.forward(graph, {}, {"x0": s, "x1": v})["y"]
        expected = [attended(*wide, t + 1) for t in range(8)]
        assert np.isnan(expected[1]).all()  # as torch, of nothing but such rows
        assert not np.isnan(expected[2:]).any()
        assert_same(y, expected)
        assert_same(in_pieces(graph, {}, {"x0": s, "x1": v}, rng)["y"], expected)

    @pytest.mark.parametrize("held", [0, 1])
    def test_held_scores_or_values(self, scores, values, held, rng):
        s, v, wide = self._rows(scores, values, 5, rng)
        given = [s, v]
        given[held] = given[held][0]
        wide[held] = np.broadcast_to(wide[held][:1], wide[held].shape)
        y = forward(spec.Attention("n"), {}, *given, held={held})
        assert_same(y[0], attended(*(w.copy() for w in wide), 5))


class TestLoops:
    """A delay that reads a later value: any recurrence."""

    def test_an_rnn_written_as_a_loop(self, rng):
        graph = spec.Graph(
            [spec.Input("x", (3,)), spec.Input("h0", (4,), held=True)],
            [
                spec.Delay("before", (4,), initial_state="given")("h", "h0"),
                spec.Linear("ih", 3, 4)("x"),
                spec.Linear("hh", 4, 4)("before"),
                spec.Arithmetic("sum", "add")("ih", "hh"),
                spec.Activation("h", "tanh")("sum"),
            ],
            {"y": "h"},
        )
        w = draw(graph, rng)
        x, h0 = rng.standard_normal((6, 2, 3)), rng.standard_normal((2, 4))
        module = torch.nn.RNN(3, 4).double()
        with torch.no_grad():
            for name in ("ih", "hh"):
                getattr(module, f"weight_{name}_l0").copy_(torch.from_numpy(w[f"{name}.weight"]))
                getattr(module, f"bias_{name}_l0").copy_(torch.from_numpy(w[f"{name}.bias"]))
            expected, _ = module(torch.from_numpy(x), torch.from_numpy(h0)[None])
        inputs = {"x": x, "h0": h0}
        assert_same(reference.forward(graph, w, inputs)["y"], expected)
        assert_same(in_pieces(graph, w, inputs, rng)["y"], expected)

    def test_a_filter_of_two_delays(self, rng):
        """y[t] = x[t] - 0.5 y[t - 1] + 0.25 y[t - 3]."""
        graph = spec.Graph(
            [spec.Input("x", ())],
            [
                spec.Delay("one", ())("y"),
                spec.Delay("three", (), 3)("y"),
                spec.Activation("a", "affine(-0.5, 0)")("one"),
                spec.Activation("b", "affine(0.25, 0)")("three"),
                spec.Arithmetic("ab", "add")("a", "b"),
                spec.Arithmetic("y", "add")("x", "ab"),
            ],
            {"y": "y"},
        )
        x = rng.standard_normal((9, 2))
        y = []
        for t in range(9):
            one = y[t - 1] if t >= 1 else np.zeros(2)
            three = y[t - 3] if t >= 3 else np.zeros(2)
            y.append(x[t] - 0.5 * one + 0.25 * three)
        assert_same(reference.forward(graph, {}, {"x": x})["y"], y)
        assert_same(in_pieces(graph, {}, {"x": x}, rng)["y"], y)

    def test_a_recurrence_a_window_and_a_fold_on_a_loop(self, rng):
        """Layers over time that give a row for each can stand on one."""
        graph = spec.Graph(
            [spec.Input("x", (2,))],
            [
                spec.Delay("before", (2,), initial_state="learned")("out"),
                spec.Arithmetic("sum", "add")("x", "before"),
                spec.GRU("gru", 2, 3)("sum"),
                spec.Window("window", 2, padding=1)("gru"),
                spec.Index.of("flat", np.arange(6))("window"),
                spec.Fold("mean", "mean", cumulative=True)("flat"),
                spec.Linear("out", 6, 2)("mean"),
            ],
            {"y": "out"},
        )
        w, x = draw(graph, rng), rng.standard_normal((7, 1, 2))
        layers = {node.name: node.layer for node in graph.nodes}
        outs, sums = [], []
        for t in range(7):  # every step anew, from the first on
            before = outs[-1] if outs else w["before.x_0"]
            sums.append(x[t] + before)
            h = forward(layers["gru"], w, np.stack(sums))
            flat = [np.concatenate([h[i - 1] if i else 0 * h[0], h[i]], 1) for i in range(t + 1)]
            outs.append(np.mean(flat, axis=0) @ w["out.weight"].T + w["out.bias"])
        assert_same(reference.forward(graph, w, {"x": x})["y"], outs)
        assert_same(in_pieces(graph, w, {"x": x}, rng)["y"], outs)
