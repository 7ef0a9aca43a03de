"""A child of fork(): what no other thread was using goes on, and the rest says that it is dead.

Whatever the parent was doing as it forked, the child never waits for a thread that is not there,
and never says for ever that such a thread is using something.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

BEGIN = """
    import asyncio, os, signal, sys, threading, time, warnings
    import numpy as np
    from fastlstm import batching, processors
    import chain as spec
    from models import build, input_for, recurrent

    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    processors.available = lambda: 2
    rng = np.random.default_rng(3)

    def fork(child):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            good = False
            try:
                good = child()
            finally:
                os._exit(0 if good else 1)
        return os.waitpid(pid, 0)[1]

    def refused(call):
        try:
            call()
        except RuntimeError as error:
            return "as this process was forked" in str(error) and "make another" in str(error)
        return False
"""


@pytest.mark.thread_unsafe(reason="starts processes")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestForks:
    @pytest.mark.parametrize("threads", [1, 2])
    def test_amid_calls_of_other_threads(self, threads: int, python: Callable[..., str]) -> None:
        """Calls without the GIL, long enough to be met; the parent's go on undisturbed."""
        python(
            BEGIN
            + f"""
    model = build(recurrent("lstm", 4, 300), rng, threads={threads})
    x = input_for(model, rng, 3000)
    y = model.stream().run(x)
    stream, pool, idle = model.stream(), model.pool(4), model.stream()
    slot = pool.open()
    stop, rounds = threading.Event(), [0, 0]

    def work(n, reset, run):
        while not stop.is_set():
            try:
                reset()
                rounds[n] += np.array_equal(run(x), y)
            except RuntimeError:  # the other thread was just asking
                time.sleep(0.001)

    def in_use(call):
        try:
            call()
        except RuntimeError:
            return True
        return False

    def child():
        dead = refused(lambda: stream.state) and refused(lambda: pool.get_state(slot))
        dead = dead and refused(stream.reset) and refused(lambda: pool.step(slot, x[0]))
        other = model.pool(2)
        return dead and all(np.array_equal(run(x[:200]), y[:200]) for run in (
            idle.run, model.stream().run, lambda x: other.run(other.open(), x)))

    others = [
        threading.Thread(target=work, args=(0, stream.reset, stream.run)),
        threading.Thread(target=work, args=(
            1, lambda: pool.reset(slot), lambda x: pool.run(slot, x))),
    ]
    for other in others:
        other.start()
    met = 0
    for _ in range(400):
        time.sleep(0.005)
        # Most of their time is within the calls; where it was not, nothing is to be seen.
        if in_use(lambda: stream.state) and in_use(lambda: pool.slots):
            met += fork(child) == 0
        if met == 3:
            break
    assert met == 3, met
    stop.set()
    for other in others:
        other.join()
    assert all(rounds)
    stream.reset()
    assert np.array_equal(stream.run(x), y)
    """
        )

    def test_a_child_of_a_child(self, python: Callable[..., str]) -> None:
        python(
            BEGIN
            + """
    model = build(recurrent("gru", 3, 8), rng, threads=2)
    stream, x = model.stream(), input_for(model, rng, 20)
    y = model.stream().run(x)
    stream.run(x[:5])
    def grandchild():
        return np.array_equal(stream.run(x[5:]), y[5:])
    def child():
        return fork(grandchild) == 0 and grandchild()
    assert fork(child) == 0
    assert grandchild()
    """
        )

    def test_the_requests_of_the_parents_loop(self, python: Callable[..., str]) -> None:
        """They are the parent's: the child's loop has the pool to itself."""
        python(
            BEGIN
            + """
    model = build(recurrent("gru", 3, 8), rng)
    pool, x = model.pool(4), input_for(model, rng)
    slot = pool.open()
    expected = model.stream().step(x)
    async def ask():
        return await pool.step_async(slot, x)
    def child():
        assert batching._claiming.acquire(blocking=False)
        batching._claiming.release()
        # In a thread, since this one's loop is the parent's.
        found = []
        thread = threading.Thread(target=lambda: found.append(asyncio.run(ask())))
        thread.start()
        thread.join()
        return np.array_equal(found[0], expected)
    async def main():
        answer = pool.submit(slot, x)
        with batching._claiming:  # as another thread may have it
            ended = fork(child)
        assert ended == 0, ended
        return await answer
    assert np.array_equal(asyncio.run(main()), expected)
    """
        )
