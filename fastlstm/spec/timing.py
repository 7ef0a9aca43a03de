"""How many rows a value has: of a whole sequence, and after so many steps of a stream.

Every layer that changes the number of rows does it by one :class:`Term`, so the number of rows of
any value is a few integers, and two values can be asked whether their rows meet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["SAME", "Count", "Rate", "Term", "Timing"]


class Rate(NamedTuple):
    """Rows for steps, in lowest terms; rates are compared by cross products."""

    rows: int
    steps: int

    def __str__(self) -> str:
        return f"{self.rows}/{self.steps}" if self.steps > 1 else f"{self.rows}"


class Term(NamedTuple):
    """``n -> max(0, (factor * n + offset) // divisor)``, and no row at all below `first`.

    Parameters
    ----------
    factor, offset, divisor : int
        `factor` and `divisor` are at least 1.
    first : int
        Rows to read before the first is made, at least 1; a sequence of no rows gives none.
    """

    factor: int = 1
    offset: int = 0
    divisor: int = 1
    first: int = 1

    def __call__(self, n: int) -> int:
        return max(0, (self.factor * n + self.offset) // self.divisor) if n >= self.first else 0

    def least(self, rows: int) -> int:
        """The smallest n that gives at least `rows`, which is at least 1."""
        return max(self.first, -((self.offset - rows * self.divisor) // self.factor))

    def then(self, after: Term) -> tuple[Term, ...]:
        """The two one after the other, as one term where that is possible."""
        if self.divisor == 1:
            factor, divisor = self.factor * after.factor, after.divisor
            offset = after.factor * self.offset + after.offset
        elif after.factor == 1:  # floor(floor(a / b) / c) is floor(a / (b * c))
            factor, divisor = self.factor, self.divisor * after.divisor
            offset = self.offset + self.divisor * after.offset
        else:
            return (self, after)
        common = math.gcd(factor, divisor)
        merged = Term(factor // common, offset // common, divisor // common)
        first = max(self.least(after.least(1)), 1)
        return (Term(merged.factor, merged.offset, merged.divisor, max(first, merged.least(1))),)


SAME = Term()


class Count(NamedTuple):
    """A number of rows as a function of the number of steps: terms, one after another."""

    terms: tuple[Term, ...] = (SAME,)

    def __call__(self, steps: int) -> int:
        for term in self.terms:
            steps = term(steps)
        return steps

    def then(self, term: Term) -> Count:
        """Another term behind these, in as few as can be: equal numbers of rows compare equal."""
        before, last = list(self.terms), term
        while before and len(merged := before[-1].then(last)) == 1:
            before.pop()
            (last,) = merged
        return Count((*before, last))

    def least(self, rows: int = 1) -> int:
        """The smallest number of steps that gives at least `rows`, which is at least 1."""
        for term in reversed(self.terms):
            rows = term.least(rows)
        return rows

    def lead(self, other: Count) -> int:
        """A bound on how many rows more than `other` there are after any number of steps.

        The two are of as many rows of a whole sequence: their terms have the same factors and
        divisors. The bound is reached where each has one term.
        """
        # As long as the other has no row; the first that it has is that of its least steps.
        first = self(other.least() - 1)
        # From there on, if this one has a row too, no term of either is bounded from below, and
        # with x = y + lead, x // d - y // d is at most lead / d, rounded up.
        lead = 0
        for one, two in zip(self.terms, other.terms, strict=True):
            lead = -((two.offset - one.offset - one.factor * lead) // one.divisor)
        return max(first, lead)

    @property
    def burst(self) -> int:
        """A bound on the rows that one more step gives: 2, of every other row given twice."""
        rows = 1
        for term in self.terms:
            some = -(-term.factor * rows // term.divisor)
            rows = max(some, term(term.first + rows - 1))  # from none to those of the first
        return rows

    @property
    def rate(self) -> Rate:
        """Rows for each step, in the long run."""
        rows = math.prod(term.factor for term in self.terms)
        steps = math.prod(term.divisor for term in self.terms)
        common = math.gcd(rows, steps)
        return Rate(rows // common, steps // common)


class Timing(NamedTuple):
    """The number of rows of a value.

    Parameters
    ----------
    rows : Count
        Of a whole sequence.
    ready : frozenset of Count
        Of a stream after so many steps: the least of them. It is smaller than `rows` where a row
        waits for later ones.
    """

    rows: Count = Count()
    ready: frozenset[Count] = frozenset({Count()})

    def after(self, steps: int) -> int:
        """Rows that a stream has given after so many steps."""
        return min(count(steps) for count in self.ready)

    @property
    def delay(self) -> int:
        """Steps that a stream reads before the one that gives its first row."""
        return max(count.least() for count in self.ready) - 1

    @property
    def burst(self) -> int:
        """A bound on the rows that a stream gives in one step."""
        return max(count.burst for count in self.ready)

    @property
    def rate(self) -> Rate:
        """Rows for each step, in the long run."""
        return self.rows.rate

    def then(self, whole: Term, stream: Term) -> Timing:
        """Of what a layer makes of these rows: of all, and of so many of them in a stream."""
        return Timing(self.rows.then(whole), frozenset(c.then(stream) for c in self.ready))

    def meet(self, other: Timing) -> Timing:
        """Of rows that wait for those of the same index of another value with as many rows."""
        if other.ready <= self.ready:
            return self
        # Of one timing, no count stands for another: only those of the two are compared.
        ready = _least(self.ready, other.ready) | _least(other.ready, self.ready)
        return Timing(self.rows, frozenset(ready))

    def waiting(self, met: Timing) -> int:
        """A bound on the rows of a stream that wait between its steps for those they meet.

        Parameters
        ----------
        met : Timing
            Of these rows, and of others of as many rows of a whole sequence, met.
        """
        if met.ready == self.ready:
            return 0
        return max(min(own.lead(other) for own in self.ready) for other in met.ready)


def _least(counts: frozenset[Count], others: frozenset[Count]) -> set[Count]:
    """Those of some counts that no other one stands for, as it is never more."""
    return {
        count
        for count in counts
        if not any(other != count and _never_more(other, count) for other in others)
    }


def _never_more(a: Count, b: Count) -> bool:
    """Whether a is at most b everywhere, as far as their terms show."""
    return len(a.terms) == len(b.terms) and all(
        (one.factor, one.divisor) == (other.factor, other.divisor)
        and one.offset <= other.offset
        and one.first >= other.first
        for one, other in zip(a.terms, b.terms, strict=True)
    )
