"""What a call copies of its inputs lives until it has read them.

The C library overwrites memory as it is freed, where it is told to.
"""

from __future__ import annotations

import platform

import pytest

STEPS = """
    import numpy as np
    from models import build, recurrent, spec

    rng = np.random.default_rng(1)
    features = build(recurrent("lstm", 3000, 16), rng)
    tokens = build((spec.Embedding("e", 50, 8), recurrent("gru", 8, 16)), rng)
    dense = rng.standard_normal((2000, 3000)).astype(np.float32)

    def same(model, x, as_given):
        '''Of a stream, a pool and whole calls: arrays that must be copied, and those that are.'''
        for batch in (None, 1, 1000):
            n = 1 if batch is None else batch
            rows = x[0] if batch is None else x[:n]
            out = np.empty((*(() if batch is None else (n,)), model.output_size), np.float32)
            expected = model.stream(batch).step(rows)
            assert np.array_equal(model.stream(batch).step(as_given(rows), out=out), expected)
            pool = model.pool(1000)
            slots = pool.open() if batch is None else np.array([pool.open() for _ in range(n)])
            assert np.array_equal(pool.step(slots, as_given(rows), out=out), expected)
            blocks = rows[None]
            expected = model(blocks)[0]
            assert np.array_equal(model(as_given(blocks))[0], expected)
            assert np.array_equal(model.stream(batch).run(as_given(blocks)), expected)
            pool = model.pool(1000)
            slots = pool.open() if batch is None else np.array([pool.open() for _ in range(n)])
            assert np.array_equal(pool.run(slots, as_given(blocks)), expected)

    same(features, dense, lambda x: np.repeat(x, 2, axis=-1)[..., ::2])
    same(tokens, rng.integers(0, 50, 2000), lambda x: np.asarray(x, np.int32)[()])
    print("same")
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc overwrites what is freed")
def test_they_live_as_long_as_the_call(python):
    assert python(STEPS, MALLOC_PERTURB_="165") == "same\n"
