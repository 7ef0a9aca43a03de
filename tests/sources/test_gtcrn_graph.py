"""A speech enhancer as a graph, in two forms, equals onnxruntime, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trained import Array, assert_close, check_graph, run_by_onnx, trained

from fastlstm import reference, spec

pytest.importorskip("onnx")

from gtcrn_enhancer import CACHES, enhancer

FRAMES = 80
SHAPES = {
    "conv_cache": (2, 1, 16, 16, 33),
    "tra_cache": (2, 3, 1, 1, 16),
    "inter_cache": (2, 1, 33, 16),
}


@pytest.fixture
def path() -> Path:
    return trained("gtcrn/gtcrn.onnx")


def random_frames(rng: np.random.Generator) -> Array:
    return rng.standard_normal((FRAMES, 257, 2))


def spectrum(rng: np.random.Generator) -> Array:
    """Silence, then noise and tones that come and go, at 16 kHz: frames (T, 257, 2)."""
    n = np.arange(256 * (FRAMES + 1))
    tone = np.sin(2 * np.pi * rng.uniform(100, 4000) * n / 16000)
    speech = 0.3 * tone * (np.sin(2 * np.pi * 3 * n / 16000) > 0)
    samples = np.where(n < 256 * 10, 0, speech + 0.05 * rng.standard_normal(n.shape))
    window = np.sqrt(np.hanning(513)[:-1])
    frames = np.stack([samples[256 * t : 256 * t + 512] for t in range(FRAMES)])
    made = np.fft.rfft(window * frames)
    return np.stack([made.real, made.imag], axis=-1)


def by_onnx(path: Path, mix: Array) -> dict[str, Array]:
    """Frames (T, B, 1, 257, 1, 2) through the program, which takes one signal a call.

    Returns
    -------
    dict of str to array (T, B, *shape)
        What is enhanced, and the caches after each frame.
    """
    start = {name: (CACHES[name], np.zeros(shape, np.float32)) for name, shape in SHAPES.items()}
    runs = [run_by_onnx(path, {"mix": mix[:, row]}, start) for row in range(mix.shape[1])]
    return {name: np.stack([run[name] for run in runs], axis=1) for name in runs[0]}


def mix_of(signal: Callable[[np.random.Generator], Array], rng: np.random.Generator) -> Array:
    """Frames of two signals, (T, 2, 1, 257, 1, 2)."""
    signals = np.stack([signal(rng) for _ in range(2)], axis=1)
    return signals[:, :, None, :, None].astype(np.float32)


def test_recognised(path: Path, rng: np.random.Generator) -> None:
    """The caches are states of kernels over time and of GRUs along time, and nothing else."""
    graph, tensors = enhancer(path, recognised=True)
    facts = spec.check(graph)
    assert not any(group.loops for group in facts.groups)
    kinds = {node.name: node.layer.kind for node in graph.nodes}
    assert {kinds[name.rpartition(".")[0]] for name in facts.state} == {"convolution", "gru"}
    numbers = sum(map(math.prod, facts.state.values()))
    assert numbers == sum(map(math.prod, SHAPES.values()))
    mix = mix_of(spectrum, rng)
    expected = {"enh": by_onnx(path, mix)["enh"]}
    check_graph(graph, tensors, {"mix": mix}, expected, rng)


@pytest.mark.parametrize("recognised", [False, True])
def test_caches(path: Path, rng: np.random.Generator, recognised: bool) -> None:
    """As the file has it, the caches go round a loop; recognised, they are rows and delays."""
    graph, tensors = enhancer(path, recognised=recognised, caches=True)
    loops = [group for group in spec.check(graph).groups if group.loops]
    assert len(loops) == (not recognised)
    mix = mix_of(random_frames, rng)[:20]  # the caches have 16 frames
    check_graph(graph, tensors, {"mix": mix}, by_onnx(path, mix), rng)


def test_both_forms_are_one_model(path: Path, rng: np.random.Generator) -> None:
    """In float64 they differ by rounding only."""
    forms = [enhancer(path, recognised=recognised) for recognised in (False, True)]
    mix = mix_of(spectrum, rng)[:30]
    one, other = (reference.forward(*form, {"mix": mix})["enh"] for form in forms)
    assert_close(one, other, 1e-12)
