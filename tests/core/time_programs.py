"""Programs of operations over time, put together by hand."""

from __future__ import annotations

import numpy as np

from fastlstm.plan import operations as op
from fastlstm.plan.program import Instruction, Program
from fastlstm.spec import Function

__all__ = ["PROGRAMS", "Made", "attends", "folds"]

NONE = op.NONE
WIDE = 4096  # numbers of a buffer of which a chunk has but 24 rows


class Made(Program):
    """A program put together by hand: what is read is given, what is made is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self._claims: list[tuple[int, int]] = []

    def given(self, count: int, *, line: int = 0) -> int:
        value = self.value(count, line, "input", len(self.inputs))
        self.inputs.append(value)
        return value

    def kept(self, count: int = 1) -> int:
        """Elements of the state, of which the first is returned."""
        self.state_size += count
        return self.state_size - count

    def line(self) -> int:
        self.lines += 1
        return self.lines - 1

    def buffer(self, count: int, line: int = 0) -> int:
        self.buffers += 1
        return self.value(count, line, "buffer", self.buffers - 1)

    def result(self, *values: int) -> Made:
        self.outputs += values
        return self

    def mapped(self, name: str, *reads: int, alpha: float = 0.0, beta: float = 0.0) -> int:
        """A function of numbers, number by number."""
        count, line = self.values[reads[0]].count, self.values[reads[0]].line
        y = self.buffer(count, line)
        code = self.code([Instruction(Function(name, alpha, beta), *range(len(reads)))])
        strides = self.list_of([1] * len(reads))
        self.add(op.Map(self.list_of(reads), y, self.list_of([count]), strides, code))
        return y

    def window(self, x: int, size: int, **fields: float) -> int:
        """A window, on a line of its own unless it keeps that of x."""
        f = {"stride": 1, "dilation": 1, "before": 0, "ahead": 0, "behind": 0, "fill": 0.0}
        f |= fields
        count, line = self.values[x].count, self.values[x].line
        kept = int(f["dilation"] * (size - 1) + f["ahead"])
        keeps = f["stride"] == 1 and f["before"] == kept and f["behind"] == 0
        rows = NONE if keeps else self.kept()
        ring, position = NONE, NONE
        if kept:
            ring, position = self.kept(kept * count), self.kept() if kept > 1 else NONE
            if keeps and f["fill"]:
                self.start(ring, self.vector([f["fill"]] * (kept * count)))
        y = self.buffer(size * count, line if keeps else self.line())
        names = ("stride", "dilation", "before", "ahead", "behind", "fill")
        self.add(op.Window(x, y, size, *(f[name] for name in names), ring, position, rows))
        return y

    def delay(self, x: int, steps: int) -> int:
        count, line = self.values[x].count, self.values[x].line
        ring, position = self.ring(steps, count)
        y = self.buffer(count, line)
        self.add(op.Delay(x, y, steps, ring, position))
        return y

    def ring(self, steps: int, count: int) -> tuple[int, int]:
        """One that begins with numbers that are not 0."""
        ring = self.kept(steps * count)
        self.start(ring, self.vector(np.linspace(-1.0, 2.0, steps * count)))
        return ring, self.kept() if steps > 1 else NONE

    def spread(self, x: int, times: int, stride: int, count: int) -> int:
        y = self.buffer(count, self.line())
        self.add(op.Spread(x, y, times, stride))
        return y

    def fold(self, x: int, fold: str, *, folded: bool, rest: bool = True) -> int:
        count, line = self.values[x].count, self.values[x].line
        total = self.kept(count)
        below = self.kept(count) if rest and fold in ("sum", "mean") else NONE
        y = self.buffer(count, self.line() if folded else line)
        self.add(op.Fold(x, y, fold, folded, total, below, self.kept(2)))
        return y

    def attention(self, scores: int, values: int, *, folded: bool, of=(None, None)) -> int:
        S, line = self.values[scores].count, self.values[scores].line
        V = self.values[values].count if of[0] is None else len(of[0])
        largest = self.kept(S)
        self.start(largest, self.vector([-np.inf] * S))
        lists = [NONE if at is None else self.list_of(at) for at in of]
        y = self.buffer(V, self.line() if folded else line)
        fields = (largest, self.kept(S), self.kept(V), self.kept(2))
        self.add(op.Attention(scores, values, y, folded, *lists, *fields))
        return y

    def meet(self, capacities: dict[int, int]) -> list[int]:
        """Values, and how many rows of each may wait."""
        line = self.line()
        ys = [self.buffer(self.values[x].count, line) for x in capacities]
        queues = [self.kept(c * self.values[x].count) if c else NONE for x, c in capacities.items()]
        heads = self.kept(2 * len(ys)) if any(capacities.values()) else NONE
        lists = map(self.list_of, (list(capacities), ys, capacities.values(), queues))
        self.add(op.Meet(*lists, heads))
        return ys

    def in_short_chunks(self) -> Made:
        """With a buffer of which little fits into a chunk."""
        y = self.buffer(WIDE)
        runs = self.list_of([0, 0, WIDE])
        self.operations.insert(self.held, op.Move(self.list_of(self.inputs[-1:]), y, runs, 0.0))
        return self

    def shared_by_threads(self) -> Made:
        """With a product that threads share, panel by panel or row by row."""
        x = self.inputs[-1]
        count = self.values[x].count
        y = self.buffer(800)
        tensor = self.vector(np.ones(800 * count))
        piece = op.Piece(0, 800, 0, count, NONE, self.vectors[tensor].first, count, 1)
        matrix = self.list_of([self.matrix(800, count, [piece])])
        self.add(
            op.Product(self.list_of([x]), y, matrix, NONE, NONE, NONE, op.IDENTITY, 1, count, NONE)
        )
        return self


def causal(p: Made, size: int, **fields: float) -> Made:
    dilation = fields.get("dilation", 1)
    return p.result(p.window(p.given(3), size, before=dilation * (size - 1), **fields))


def windows(p: Made, size: int, **fields: float) -> Made:
    return p.result(p.window(p.given(3), size, **fields))


def delays(p: Made, steps: int) -> Made:
    return p.result(p.delay(p.given(5), steps))


def spreads(p: Made, times: int, stride: int, count: int) -> Made:
    return p.result(p.spread(p.given(9), times, stride, count))


def folds(p: Made, fold: str, folded: bool, rest: bool = True) -> Made:
    return p.result(p.fold(p.given(21), fold, folded=folded, rest=rest))


def attends(p: Made, folded: bool) -> Made:
    return p.result(p.attention(p.given(19), p.given(19), folded=folded))


def attends_heads(p: Made, folded: bool) -> Made:
    """Two scores for five numbers each, of values in another order."""
    of = ([0] * 5 + [1] * 5, [9, 8, 7, 6, 5, 0, 1, 2, 3, 4])
    return p.result(p.attention(p.given(2), p.given(10), folded=folded, of=of))


def meets(p: Made) -> Made:
    """A path that looks ahead meets one that does not: rows of that wait."""
    x = p.given(2)
    y = p.window(x, 3, before=1, ahead=4, behind=5)
    z = p.window(x, 4, before=3)
    return p.result(*p.meet({y: 0, x: 5, z: 5}))


def meets_one(p: Made) -> Made:
    x = p.given(4)
    y = p.window(x, 2, before=0, behind=0)
    return p.result(*p.meet({x: 1, y: 0}))


def chain(p: Made) -> Made:
    """Fewer rows, more, fewer again, and one at the end."""
    x = p.window(p.given(2), 4, stride=3, before=1, ahead=2, behind=4)
    x = p.spread(x, 4, 2, 2)
    x = p.window(x, 2, stride=2, before=0, behind=1)
    return p.result(x, p.fold(x, "mean", folded=True))


def looped(p: Made, steps: int) -> Made:
    """y[t] = tanh(x[t] + y[t - steps]), a mean of the last three y and one of all of them."""
    x = p.given(6)
    ring, position = p.ring(steps, 6)
    before = p.buffer(6)
    loop = len(p.operations)
    p.add(op.Recall(before, steps, ring, position))
    y = p.mapped("tanh", p.mapped("add", x, before))
    p.add(op.Remember(y, steps, ring, position))
    three, mean = p.window(y, 3, before=2), p.fold(y, "mean", folded=False)
    p.operations.insert(loop, op.Loop(len(p.operations) - loop))
    return p.result(y, three, mean)


def held(p: Made) -> Made:
    """A knob turns into a held value and the first row of a delay; another is read all the time."""
    knob, x = p.given(3, line=-1), p.given(3)
    p.buffers += 1
    doubled = p.value(3, -1, "buffer", 0)
    code = p.code([Instruction(Function("affine", 2.0, 1.0), 0)])
    one, three = p.list_of([1]), p.list_of([3])
    p.add(op.Map(p.list_of([knob]), doubled, three, one, code))
    kept = p.value(3, -1, "state", p.kept(3))
    p.add(op.Map(p.list_of([doubled]), kept, three, one, code))
    ring = p.kept(3)
    p.add(op.Start(doubled, ring))
    p.held = 3
    y = p.buffer(3)
    p.add(op.Delay(x, y, 1, ring, NONE))
    z = p.buffer(3)
    add = p.code([Instruction(Function("add"), 0, 1)])
    p.add(op.Map(p.list_of([y, kept]), z, three, p.list_of([1, 1]), add))
    return p.result(z, kept)


PROGRAMS = {
    "causal": lambda p: causal(p, 5),
    "causal_dilated": lambda p: causal(p, 3, dilation=4),
    "causal_filled": lambda p: causal(p, 2, fill=-np.inf),
    "one": lambda p: causal(p, 1),
    "valid": lambda p: windows(p, 4),
    "valid_dilated": lambda p: windows(p, 3, dilation=2, stride=2),
    "strided": lambda p: windows(p, 3, stride=5, before=2),
    "padded_both": lambda p: windows(p, 5, before=2, ahead=2, behind=2, fill=1.5),
    "ahead_only": lambda p: windows(p, 1, ahead=3, before=3, behind=3),
    "padded_far": lambda p: windows(p, 3, before=7, behind=6, stride=2, fill=-np.inf),
    "begins_later": lambda p: windows(p, 1, before=-4, stride=3),
    "ends_early": lambda p: windows(p, 1, before=-1, ahead=2),
    "ends_earlier": lambda p: windows(p, 2, stride=2, ahead=3, behind=1),
    "rate_over_a_row": lambda p: windows(p, 2, stride=7, dilation=3, before=1, behind=9),
    "delay": lambda p: delays(p, 1),
    "delay_long": lambda p: delays(p, 30),
    "spread": lambda p: spreads(p, 3, 3, 3),
    "spread_overlapping": lambda p: spreads(p, 4, 2, 3),
    "repeat": lambda p: spreads(p, 5, 0, 9),
    **{
        f"{fold}{'_folded' * folded}": lambda p, fold=fold, folded=folded: folds(p, fold, folded)
        for fold in ("first", "last", "sum", "mean", "max", "min")
        for folded in (False, True)
    },
    "sum_plain": lambda p: folds(p, "sum", False, rest=False),
    "attention": lambda p: attends(p, False),
    "attention_folded": lambda p: attends(p, True),
    "attention_heads": lambda p: attends_heads(p, False),
    "attention_heads_folded": lambda p: attends_heads(p, True),
    "meet": meets,
    "meet_one": meets_one,
    "chain": chain,
    "loop": lambda p: looped(p, 1),
    "loop_long": lambda p: looped(p, 4),
    "held": held,
}
