"""``load(path, into=model)``: the weights of a model that streams and pools hold are replaced."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref

import chain as spec
import numpy as np
import pytest
from models import ISAS, build, model_file, recurrent

import fastlstm
from fastlstm import Model

LAYERS = (
    spec.LSTM("a", 7, 19, 2, initial_state=True),
    spec.Conv1d("b", 19, 5, 3, padding_left=2),
)


@pytest.fixture
def path(tmp_path, rng):
    """The file of a model of the same layers as :func:`model`, with other weights."""
    path = tmp_path / "trained further.fastlstm"
    Model(model_file(LAYERS, rng)).save(path)
    return path


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("keep", [True, False])
def test_streams_and_pools_go_on_in_their_states(path, rng, isa, keep):
    model = build(LAYERS, rng, isa=isa, reproducible=True)
    x = rng.standard_normal((20, 4, 7)).astype(np.float32)
    stream, pool = model.stream(4), model.pool()
    slots = np.array([pool.open() for _ in range(4)])
    for x_t in x[:10]:
        assert np.array_equal(stream.step(x_t), pool.step(slots, x_t))
    before = stream.state

    assert fastlstm.load(path, keep=keep, into=model) is model
    new = fastlstm.load(path, isa=isa, reproducible=True)
    assert all(np.array_equal(stream.state[name], before[name]) for name in before)
    expected = new.stream(4)
    expected.state = before
    for x_t in x[10:15]:
        y = expected.step(x_t)
        assert np.array_equal(stream.step(x_t), y)
        assert np.array_equal(pool.step(slots, x_t), y)
    y = expected.run(x[15:])
    assert np.array_equal(stream.run(x[15:]), y)
    assert np.array_equal(pool.run(slots, x[15:]), y)

    # What starts now starts where the new weights say.
    assert np.array_equal(model(x)[0], new(x)[0])
    assert np.array_equal(model.stream(4).run(x), new.stream(4).run(x))
    stream.reset()
    pool.reset(slots)
    y = new.stream(4).run(x)
    assert np.array_equal(stream.run(x), y)
    assert np.array_equal(pool.run(slots, x), y)


def test_the_model_is_the_one_of_the_file(path, rng, tmp_path):
    model = build(LAYERS, rng)
    assert model.fingerprint
    fastlstm.load(path, into=model)
    new = fastlstm.load(path)
    assert model.fingerprint == new.fingerprint
    assert model.source == new.source
    assert all(np.array_equal(model.tensors[name], array) for name, array in new.tensors.items())
    assert pickle.loads(pickle.dumps(model)).fingerprint == new.fingerprint
    model.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    model.check()


def test_a_saved_state_belongs_to_the_weights_that_it_was_saved_with(path, rng, tmp_path):
    model = build(LAYERS, rng)
    stream = model.stream()
    stream.save(tmp_path / "state")
    fastlstm.load(path, into=model)
    with pytest.raises(fastlstm.FormatError, match="of another model"):
        stream.load(tmp_path / "state")
    stream.save(tmp_path / "state")
    stream.load(tmp_path / "state")


def test_what_does_not_fit_changes_nothing(path, rng, tmp_path):
    model = build(LAYERS, rng)
    fingerprint, x = model.fingerprint, rng.standard_normal((5, 7)).astype(np.float32)
    y = model(x)[0]
    wider = (spec.LSTM("a", 7, 20, 2, initial_state=True), spec.Conv1d("b", 20, 5, 3))
    for name, layers, dtype, expected in [
        ("wider", wider, np.float32, "another graph, which differs in node 'a"),
        ("more", (*LAYERS, spec.Activation("c", "relu", 5)), np.float32, "differs in its outputs"),
        ("double", LAYERS, np.float64, "the weights are float64; expected float32"),
    ]:
        other = tmp_path / name
        Model(model_file(layers, rng, dtype)).save(other)
        with pytest.raises(ValueError, match=expected):
            fastlstm.load(other, into=model)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-8])
    with pytest.raises(fastlstm.FormatError):
        fastlstm.load(tmp_path / "cut", into=model)
    with pytest.raises(TypeError, match="those of the model that is given as into"):
        fastlstm.load(path, isa="scalar", into=model)
    with pytest.raises(TypeError, match="into is a Stream; expected a Model"):
        fastlstm.load(path, into=model.stream())
    assert model.fingerprint == fingerprint
    assert np.array_equal(model(x)[0], y)


def test_calls_that_run_meanwhile_are_of_the_old_weights_or_of_the_new(tmp_path, rng):
    """No call mixes them, and none reads weights that are gone."""
    layers = (recurrent("lstm", 16, 200),)  # each step releases the GIL
    models = [Model(model_file(layers, rng)) for _ in range(2)]
    for number, model in enumerate(models):
        model.save(tmp_path / str(number))
    x = rng.standard_normal((40, 16)).astype(np.float32)
    expected = [model(x)[0] for model in models]
    model = fastlstm.load(tmp_path / "0")
    wrong, calls = [], [0, 0]
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            y = model(x)[0]
            same = [np.array_equal(y, of) for of in expected]
            if not any(same):
                wrong.append(y)
            calls[same.index(True) if any(same) else 0] += 1

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(30):
        fastlstm.load(tmp_path / str(1 - number % 2), check=False, into=model)
    while min(calls) == 0 and any(thread.is_alive() for thread in threads):
        fastlstm.load(tmp_path / str(calls.index(min(calls))), check=False, into=model)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(calls) > 0


def test_the_old_weights_are_given_back(tmp_path, rng):
    """Once all that ran with them has run again."""
    for number in range(2):
        Model(model_file(LAYERS, rng)).save(tmp_path / str(number))
    model = fastlstm.load(tmp_path / "0")
    x = rng.standard_normal((5, 3, 7)).astype(np.float32)
    stream, pool = model.stream(3), model.pool()
    slots = np.array([pool.open() for _ in range(3)])

    def call() -> None:
        model(x)
        stream.run(x)
        stream.step(x[0])
        pool.step(slots, x[0])

    call()
    old = [weakref.ref(array) for array in model._tensors.values()]
    fastlstm.load(tmp_path / "1", into=model)
    assert any(array() is not None for array in old)  # the stream has not run since
    call()
    gc.collect()
    assert all(array() is None for array in old)
