"""Random graphs as programs: the rows are those of the reference, whole and streamed.

The graphs are those of :mod:`random_graphs`, one a seed; a test that fails prints its graph and its
program.
"""

from __future__ import annotations

import numpy as np
import pytest
from planned import random_planned
from random_graphs import random_inputs, text

from fastlstm.plan import operations as op

SEEDS = range(250)


@pytest.fixture(params=SEEDS, ids="seed{}".format)
def seed(request):
    print(text(random_planned(request.param).graph))
    print(random_planned(request.param).program)
    return request.param


def lengths(planned):
    """Few steps, and so many that a stream has given some rows of every value."""
    timings = (row.timing for row in planned.facts.rows.values())
    return (0, 1, 2, max(timing.delay for timing in timings if timing) + 6)


def test_a_whole_sequence(seed):
    planned = random_planned(seed)
    for number, T in enumerate(lengths(planned), seed):  # one row and three, in turn
        B = (1, 3)[number % 2]
        rng = np.random.default_rng([seed, T, B])
        planned.check_whole(random_inputs(rng, planned.graph, T, B), B, rng)


def test_a_stream_in_pieces(seed):
    planned = random_planned(seed)
    if planned.facts.looks_ahead:
        return
    for T in lengths(planned):
        rng = np.random.default_rng([seed, T, 2])
        planned.check_streamed(random_inputs(rng, planned.graph, T, 2), 2, rng)


def test_every_operation_occurs():
    found = {type(one) for seed in SEEDS for one in random_planned(seed).program.operations}
    assert found == set(op.OPERATIONS.values())
