"""How many rows a value has: terms, counts and timings against the rows that there really are."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from one_layer import draw

from fastlstm import reference, spec
from fastlstm.spec import Count, Term, Timing

N = 61


def changing(rng, name="n", channels=2):
    """A random layer that changes the number of rows (channels,), or when a stream has them."""
    kind = rng.integers(0, 7)
    size, stride, dilation = map(int, rng.integers(1, 4, 3))
    reach = dilation * (size - 1)
    padding = tuple(map(int, rng.integers(0, reach + 1, 2)))
    sliding = {
        "stride": (stride,),
        "dilation": (dilation,),
        "padding": (padding,),
        "over_time": True,
    }
    if kind == 0:
        return spec.Slice(name, start=size - 1, end=int(rng.integers(0, 3)), step=stride)
    if kind == 1:
        return spec.Repeat(name, stride)
    if kind == 2:
        return spec.Convolution(name, channels, channels, (size,), **sliding)
    if kind == 3:
        extra = (int(rng.integers(0, stride)),)
        return spec.Convolution(
            *(name, channels, channels, (size,)), transposed=True, output_padding=extra, **sliding
        )
    if kind == 4:
        sliding["padding"] = (tuple(min(p, size - 1) for p in padding),)
        return spec.Pooling(name, "max", (size,), **sliding)
    if kind == 5:
        return spec.Fold(name, "max", cumulative=True)
    return spec.Delay(name, (channels,), size)


def terms_of(layers):
    return [layer.terms[0] for layer in layers]


class TestTerms:
    def test_two_as_one_are_the_two_in_turn(self, rng):
        for _ in range(3000):
            one, other = (t for _ in range(2) for t in changing(rng).terms[:1])
            merged = one.then(other)
            for n in range(N):
                through = n
                for term in merged:
                    through = term(through)
                assert through == other(one(n)), (one, other, n)

    def test_the_least_gives_as_many_and_none_below_does(self, rng):
        for _ in range(1000):
            term = changing(rng).terms[int(rng.integers(0, 2))]
            for rows in range(1, 12):
                least = term.least(rows)
                assert term(least) >= rows, (term, rows)
                assert all(term(n) < rows for n in range(least)), (term, rows)

    def test_no_rows_of_none(self, rng):
        assert all(term(0) == 0 for _ in range(300) for term in changing(rng).terms)


class TestCounts:
    def test_many_in_turn(self, rng):
        for _ in range(1500):
            terms = terms_of(changing(rng) for _ in range(int(rng.integers(1, 8))))
            count = Count()
            for term in terms:
                count = count.then(term)
            for n in range(N):
                rows = n
                for term in terms:
                    rows = term(rows)
                assert count(n) == rows, (terms, count, n)
            for rows in (1, 2, 5):
                least = count.least(rows)
                assert count(least) >= rows, (terms, rows)
                assert all(count(n) < rows for n in range(min(least, 200))), (terms, rows)
            rate = math.prod(Fraction(t.factor, t.divisor) for t in terms)
            assert count.rate == (rate.numerator, rate.denominator)
            assert str(count.rate) == str(rate)

    def test_equal_numbers_of_rows_compare_equal(self):
        """Down, up and down again has the rows of the first way down."""
        down, up = Term(1, 1, 2), Term(2)
        once = Count().then(down)
        again = once.then(up).then(down)
        assert again == once
        assert again.then(up) == once.then(up)
        assert Count().then(up).then(down) == Count()
        assert Count().then(Term(3)).then(Term(1, 2, 3)) == Count()

    @pytest.mark.parametrize("depth", [1, 2, 4])
    def test_levels_of_halving_and_doubling_are_two_terms(self, depth):
        count = Count()
        for _ in range(depth):
            count = count.then(Term(1, 0, 2))
        for _ in range(depth):
            count = count.then(Term(2))
        assert len(count.terms) == 2
        assert count.rate == (1, 1)


def steps_of(graph, tensors, T, rng):
    """Rows of a stream after each of T steps, those after its end, and those of the whole."""
    x = rng.standard_normal((T, 1, 2))
    stream = reference.Stream(graph, tensors)
    made = [len(stream.run({"input": x[t : t + 1]})["output"]) for t in range(T)]
    after = list(itertools.accumulate(made, initial=0))
    rows = [after[-1] + len(stream.flush()["output"])]
    rows += [len(reference.forward(graph, tensors, {"input": x})["output"])]
    return after, rows


class TestRealRows:
    def _check(self, graph, rng):
        timing = spec.check(graph).rows[graph.outputs["output"]].timing
        tensors = draw(graph, rng)
        T = 25
        after, rows = steps_of(graph, tensors, T, rng)
        assert after == [timing.after(n) for n in range(T + 1)], graph
        assert rows == [timing.rows(T)] * 2, graph
        first = next((n for n, have in enumerate(after) if have), None)
        assert timing.delay == first - 1 if first is not None else timing.delay >= T, graph
        for short in range(8):
            _, rows = steps_of(graph, tensors, short, rng)
            assert rows == [timing.rows(short)] * 2, (graph, short)

    def test_chains(self, rng):
        for _ in range(60):
            layers = [changing(rng, f"n{i}") for i in range(int(rng.integers(1, 5)))]
            self._check(spec.Graph.chain(layers, shape=(2,)), rng)

    def test_branches_that_meet(self, rng):
        met = 0
        while met < 60:
            branches = [
                [changing(rng, f"{b}{i}") for i in range(int(rng.integers(1, 3)))] for b in "ab"
            ]
            last = [spec.Arithmetic("met", "add")(*(branch[-1].name for branch in branches))]
            nodes = []
            for branch in branches:
                nodes += [
                    layer(before)
                    for layer, before in zip(
                        branch, ["input", *(layer.name for layer in branch)], strict=False
                    )
                ]
            tail = [changing(rng, "tail")("met")]
            graph = spec.Graph([spec.Input("input", (2,))], nodes + last + tail, {"output": "tail"})
            counts = [Count(), Count()]
            for b, branch in enumerate(branches):
                for layer in branch:
                    counts[b] = counts[b].then(layer.terms[0])
            if any(counts[0](n) != counts[1](n) for n in range(N)):
                with pytest.raises(ValueError, match="rows of the same index meet"):
                    spec.check(graph)
                continue
            met += 1
            self._check(graph, rng)

    def test_a_unet_over_time(self, rng):
        """Down twice and up twice, with the way back down beside the way up."""
        conv = {"over_time": True, "stride": (2,), "padding": ((1, 0),)}
        up = {"over_time": True, "stride": (2,), "transposed": True}
        graph = spec.Graph(
            [spec.Input("input", (2,))],
            [
                spec.Convolution("d1", 2, 2, (2,), **conv)("input"),
                spec.Convolution("d2", 2, 2, (2,), **conv)("d1"),
                spec.Convolution("u2", 2, 2, (2,), **up)("d2"),
                spec.Convolution("d3", 2, 2, (2,), **conv)("u2"),
                spec.Arithmetic("skip", "add")("d2", "d3"),
                spec.Slice("late", end=1)("skip"),
            ],
            {"output": "late"},
        )
        assert len(spec.check(graph).rows["late"].timing.rows.terms) == 1
        self._check(graph, rng)


class TestTimings:
    def test_what_never_has_more_stands_for_the_others(self):
        one, other = Term(1, -2), Term(1, -5)
        early, late = Timing().then(spec.timing.SAME, one), Timing().then(spec.timing.SAME, other)
        both = early.meet(late)
        assert both.ready == late.ready == late.meet(early).ready
        assert [both.after(n) for n in range(8)] == [0, 0, 0, 0, 0, 0, 1, 2]
        assert both.rows == Count()
        assert both.delay == 5

    def test_behind_a_change_of_rate_too(self):
        base = Timing().then(Term(1, 0, 2), Term(1, 0, 2)).then(Term(2), Term(2))
        early = base.then(spec.timing.SAME, Term(1, -1))
        late = base.then(spec.timing.SAME, Term(1, -3))
        assert early.meet(late).ready == late.ready

    def test_the_least_of_those_that_take_turns(self):
        whole = Term(1, 0, 2), Term(2)
        before = Timing().then(whole[0], Term(1, -2, 2)).then(whole[1], Term(2))
        behind = Timing().then(whole[0], whole[0]).then(whole[1], Term(2, -1))
        both = before.meet(behind)
        assert len(both.ready) == 2
        assert [both.after(n) for n in range(N)] == [
            min(before.after(n), behind.after(n)) for n in range(N)
        ]
