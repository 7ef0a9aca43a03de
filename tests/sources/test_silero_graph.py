"""Voice activity as a graph equals onnxruntime, call by call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import ROUNDING, Array, assert_close, check_graph, run_by_onnx, trained

pytest.importorskip("onnx")

from silero_vad import CONTEXT, NEW, of_new_samples, of_samples, of_windows

CALLS = 200


@pytest.fixture
def path() -> Path:
    return trained("silero/silero_vad_16k_op15.onnx")


def noise(rng: np.random.Generator, B: int) -> Array:
    """White noise of 200 calls, (T, B, 512)."""
    return 0.3 * rng.standard_normal((CALLS, B, NEW))


def sounds(rng: np.random.Generator, B: int) -> Array:
    """Silence, hum, noise and sung vowels in turns of 0.4 seconds, (T, B, 512) at 16 kHz."""
    time = np.arange(CALLS * NEW) / 16000
    turn = (time / 0.4).astype(int)
    rows = []
    for _ in range(B):
        pitch = rng.uniform(90, 220) * (1 + 0.03 * np.sin(2 * np.pi * 5 * time))
        phase = 2 * np.pi * np.cumsum(pitch) / 16000
        formants = rng.uniform((300, 900, 2200), (800, 1800, 3000))
        vowel = sum(
            np.exp(-(((k * pitch[:, None] - formants) / 150) ** 2)).sum(axis=1) * np.sin(k * phase)
            for k in range(1, 30)
        ) * (1.2 + np.sin(2 * np.pi * 3 * time))
        hum = np.sin(2 * np.pi * 50 * time) + 0.3 * np.sin(2 * np.pi * 1000 * time)
        kinds = np.stack([np.zeros_like(time), 0.3 * hum, 0.05 * rng.standard_normal(time.shape)])
        kinds = np.concatenate([kinds, 0.2 * vowel[None]])
        rows.append(kinds[rng.integers(0, 4, turn[-1] + 1)[turn], np.arange(len(time))])
    return np.stack(rows, axis=1).reshape(CALLS, NEW, B).swapaxes(1, 2)


SIGNALS = pytest.mark.parametrize("signal", [noise, sounds])


def windows(new: Array) -> Array:
    """(T, B, 512) as the program is given it, (T, B, 576): zeros before the first."""
    before = np.concatenate([np.zeros_like(new[:1]), new[:-1]])[:, :, -CONTEXT:]
    return np.concatenate([before, new], axis=-1)


def by_onnx(path: Path, x: Array, state: Array) -> tuple[Array, Array]:
    """Windows (T, B, 576) from a state (2, B, 128): voice (T, B, 1), and the last state."""
    runs = run_by_onnx(path, {"input": x}, {"state": ("stateN", state)}, sr=np.array(16000))
    return runs["output"], runs["stateN"][-1]


@SIGNALS
def test_of_windows(path: Path, signal: Any, rng: np.random.Generator) -> None:
    """A row is the 576 samples of a call; a sequence starts from any state."""
    x = windows(signal(rng, 2)).astype(np.float32)
    state = rng.uniform(-1, 1, (2, 2, 128)).astype(np.float32)
    voice, last = by_onnx(path, x, state)
    graph, tensors = of_windows(path)
    held = {"state": state.swapaxes(0, 1)}
    states = check_graph(graph, tensors, {"input": x}, {"output": voice}, rng, held)
    _check_states(states, last)


@SIGNALS
def test_of_new_samples(path: Path, signal: Any, rng: np.random.Generator) -> None:
    """A row is the 512 new samples of a call; the context is a part of the state."""
    new = signal(rng, 2).astype(np.float32)
    voice, last = by_onnx(path, windows(new), np.zeros((2, 2, 128), np.float32))
    graph, tensors = of_new_samples(path)
    states = check_graph(graph, tensors, {"input": new}, {"output": voice}, rng)
    _check_states(states, last)
    for state in states.values():
        assert np.array_equal(state["context.x"][0], new[-1, :, -CONTEXT:])


@SIGNALS
def test_of_samples(path: Path, signal: Any, rng: np.random.Generator) -> None:
    """A row is one sample; a stream in any pieces gives a row when 512 more have come."""
    new = signal(rng, 2).astype(np.float32)
    voice, last = by_onnx(path, windows(new), np.zeros((2, 2, 128), np.float32))
    graph, tensors = of_samples(path)
    samples = new.swapaxes(1, 2).reshape(CALLS * NEW, 2)
    states = check_graph(graph, tensors, {"input": samples}, {"output": voice}, rng)
    _check_states(states, last)


def test_sounds_are_told_apart(path: Path, rng: np.random.Generator) -> None:
    """The signal is one on which the model has something to say."""
    x = windows(sounds(rng, 2)).astype(np.float32)
    voice, _ = by_onnx(path, x, np.zeros((2, 2, 128), np.float32))
    assert voice.max() > 0.5 > 0.1 > voice.min()


def _check_states(states: Any, last: Array) -> None:
    for state in states.values():
        assert_close(state["model.decoder.rnn.h"], last[:1], ROUNDING)
        assert_close(state["model.decoder.rnn.c"], last[1:], ROUNDING)
