"""Equal numbers of rows are told from each other by the terms that they come of."""

from __future__ import annotations

import pytest

from fastlstm.spec import Count, Term

THINNED = [(), (Term(1, -1, 2),), (Term(1, 0, 3),), (Term(1, 1, 2), Term(3), Term(1, 0, 2))]


@pytest.mark.parametrize("before", THINNED, ids=str)
@pytest.mark.parametrize("times", [2, 3, 6])
def test_rows_repeated_and_thinned_by_as_many_are_as_many_as_before(before, times):
    count = Count()
    for term in before:
        count = count.then(term)
    for missing in range(times):
        again = count.then(Term(times)).then(Term(1, times - 1 - missing, times))
        assert all(again(T) == count(T) for T in range(40))
        assert again == count
    halves = count.then(Term(times)).then(Term(1, 0, 2 * times))
    assert halves == count.then(Term(1, 0, 2))
    assert all(halves(T) == count(T) // 2 for T in range(40))
