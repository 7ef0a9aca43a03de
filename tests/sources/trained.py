"""Really trained models of others: where they lie, and how the reference runs their graphs.

They are no part of the project. They are looked for in the folder that the environment variable
FASTLSTM_MODELS names, else in ``../shared/models`` beside the checkout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastlstm import reference, spec

ROOT = Path(__file__).resolve().parents[2]

Array = npt.NDArray[Any]

# Float32 against a float32 program of others, and float64 against it: by the largest value.
ROUNDING = 1e-4


def trained(name: str) -> Path:
    """The path of a model, as ``"dtln/model_2.onnx"``; where it is absent, the test is skipped."""
    folder = Path(os.environ.get("FASTLSTM_MODELS") or ROOT.parent / "shared" / "models")
    if not (path := folder / name).is_file():
        pytest.skip(f"no {name} in {folder}; FASTLSTM_MODELS names the folder of trained models")
    return path


def in_pieces(
    stream: reference.Stream, inputs: Mapping[str, Array], rng: np.random.Generator
) -> Any:
    """What a stream gives for inputs (T, B, *shape) in pieces of random lengths, and its flush."""
    T = len(next(iter(inputs.values())))
    cuts = np.cumsum(np.exp(rng.uniform(0, np.log(T / 4), T)).astype(int) - 1)  # some are empty
    made = [
        stream.run({name: x[start:stop] for name, x in inputs.items()})
        for start, stop in zip([0, *cuts[cuts < T]], [*cuts[cuts < T], T], strict=True)
    ]
    made.append(stream.flush())
    return {name: np.concatenate([part[name] for part in made]) for name in made[0]}


def assert_close(got: Array, expected: Array, tolerance: float) -> None:
    """Within a tolerance of the largest value expected."""
    assert got.shape == expected.shape
    largest = np.abs(expected).max()
    assert largest > 0
    error = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max() / largest
    assert error <= tolerance, f"off by {error:.2g} of the largest value"


def check_graph(
    graph: spec.Graph,
    tensors: Mapping[str, Array],
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    rng: np.random.Generator,
    held: Mapping[str, Array] | None = None,
) -> dict[np.dtype[Any], dict[str, Array]]:
    """Run a graph whole and in pieces, in float64 and float32, against what is expected of it.

    Parameters
    ----------
    inputs : mapping of str to array (T, B, *shape)
    expected : mapping of str to array (T, B, *shape)
        Of every output: what the model's own program gives.
    held : mapping of str to array (B, *shape), optional

    Returns
    -------
    dict of dtype to dict of str to array
        The state of each stream at the end.
    """
    facts = spec.check(graph)
    spec.check_tensors(facts, {name: tensor.shape for name, tensor in tensors.items()})
    again = spec.Graph.from_dict(graph.to_dict())
    assert again == graph
    assert not facts.looks_ahead
    B = next(iter(inputs.values())).shape[1]
    states = {}
    for dtype, rounding in ((np.dtype(np.float64), 1e-12), (np.dtype(np.float32), ROUNDING)):
        whole = reference.forward(graph, tensors, {**inputs, **(held or {})}, dtype=dtype)
        stream = reference.Stream(graph, tensors, B, held=held, dtype=dtype)
        pieces = in_pieces(stream, inputs, rng)
        assert whole.keys() == pieces.keys() == expected.keys()
        for name, y in expected.items():
            assert whole[name].dtype == pieces[name].dtype == dtype
            assert_close(whole[name], y, ROUNDING)
            assert_close(pieces[name], y, ROUNDING)
            assert_close(pieces[name], whole[name], rounding)
        states[dtype] = stream.state
    return states


def run_by_onnx(
    path: Path, inputs: Mapping[str, Array], states: Mapping[str, tuple[str, Array]], **fixed: Array
) -> dict[str, Array]:
    """Run an ONNX program in onnxruntime, call by call.

    Parameters
    ----------
    inputs : mapping of str to array (T, ...)
        What each call is given.
    states : mapping of str to (str, array)
        Input -> the output that is the input of the next call, and what the first call is given.
    **fixed : array
        What is the same in each call.

    Returns
    -------
    dict of str to array (T, ...)
        All outputs of each call.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    now = {name: value for name, (_, value) in states.items()}
    calls = []
    for t in range(len(next(iter(inputs.values())))):
        given = {name: x[t] for name, x in inputs.items()} | now | fixed
        calls.append(dict(zip(names, session.run(names, given), strict=True)))
        now = {name: calls[-1][output] for name, (output, _) in states.items()}
    return {name: np.stack([call[name] for call in calls]) for name in names}
