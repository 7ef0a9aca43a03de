"""How many rows a value has: of a whole sequence, and after so many steps of a stream.

Every layer that changes the number of rows does it by one :class:`Term`, so the number of rows of
any value is a few integers, and two values can be asked whether their rows meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["SAME", "Count", "Term", "Timing"]


@dataclass(frozen=True)
class Term:
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


@dataclass(frozen=True)
class Count:
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

    @property
    def rate(self) -> Fraction:
        """Rows for each step, in the long run."""
        return math.prod((Fraction(t.factor, t.divisor) for t in self.terms), start=Fraction(1))


@dataclass(frozen=True)
class Timing:
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
    def rate(self) -> Fraction:
        """Rows for each step, in the long run."""
        return self.rows.rate

    def then(self, whole: Term, stream: Term) -> Timing:
        """Of what a layer makes of these rows: of all, and of so many of them in a stream."""
        return Timing(self.rows.then(whole), frozenset(c.then(stream) for c in self.ready))

    def meet(self, other: Timing) -> Timing:
        """Of rows that wait for those of the same index of another value with as many rows."""
        if other.ready <= self.ready:
            return self
        ready = self.ready | other.ready
        least = {
            count
            for count in ready
            if not any(count != later and _never_more(later, count) for later in ready)
        }
        return Timing(self.rows, frozenset(least))


def _never_more(a: Count, b: Count) -> bool:
    """Whether a is at most b everywhere, as far as their terms show."""
    return len(a.terms) == len(b.terms) and all(
        (one.factor, one.divisor) == (other.factor, other.divisor)
        and one.offset <= other.offset
        and one.first >= other.first
        for one, other in zip(a.terms, b.terms, strict=True)
    )
