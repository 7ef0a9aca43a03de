"""Models of Keras, saved in both formats, read, and run beside Keras: not under test."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastlstm
from fastlstm import reference
from fastlstm.sources.conversion import Argument, Conversion
from fastlstm.sources.keras import read

Array = npt.NDArray[Any]


def keras_or_skip() -> Any:
    """Keras with torch beneath it, or a skip."""
    pytest.importorskip("h5py", reason="Keras files are HDF5")
    if "KERAS_BACKEND" not in os.environ:
        pytest.importorskip("torch", reason="what Keras computes with here")
        os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras", reason="writes the files")


def randomise(model: Any, rng: np.random.Generator) -> None:
    """Give a model random weights; statistics are positive where they are variances."""
    for weight in model.weights:
        if "seed" in weight.path or "count" in weight.path.split("/")[-1]:
            continue
        values = rng.standard_normal(weight.shape) * 0.4
        weight.assign(np.abs(values) + 0.1 if "variance" in weight.path else values)


def saved(model: Any, folder: Path) -> list[Path]:
    """The model in an .h5 and a .keras file."""
    paths = [folder / "model.h5", folder / "model.keras"]
    for path in paths:
        with contextlib.redirect_stderr(io.StringIO()):  # it warns of .h5 files
            model.save(path)
    return paths


def of_keras(model: Any, inputs: Any) -> list[Array]:
    """All that Keras makes of an input or several, as float64."""
    import keras

    made = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(y).astype(np.float64) for y in made]


def rows(x: Array, argument: Argument) -> Array:
    """An input of Keras as rows (T, B, ...), or (B, ...) if it has no time."""
    assert argument.axes[0] == "batch"
    if "time" in argument.axes:
        assert argument.axes.index("time") == 1
        return x.swapaxes(0, 1)
    return x


def given_rows(made: Conversion, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the graph reads, of what Keras is given by name."""
    assert made.call is not None
    held = {given.name: given.held for given in made.graph.inputs}
    given = {}
    for argument in made.call.arguments:
        if argument.role == "rows":
            x = rows(inputs[argument.name], argument)
            alone = "time" not in argument.axes and not held[argument.value]
            given[argument.value] = x[None] if alone else x
    return given


def of_graph(made: Conversion, inputs: Mapping[str, Array], dtype: Any = np.float64) -> list[Array]:
    """What the graph makes of what Keras is given by name, in the layout and order of Keras."""
    y = reference.forward(made.graph, made.tensors, given_rows(made, inputs), dtype=dtype)
    assert made.call is not None
    return [
        y[a.value].swapaxes(0, 1) if "time" in a.axes else y[a.value][-1]
        for a in made.call.outputs
        if a.role == "rows"
    ]


def of_engine(path: Path, made: Conversion, inputs: Mapping[str, Array], **options: Any) -> Any:
    """The same by the engine."""
    model = fastlstm.from_torch(path, **options)
    given = {
        name: x.astype(model.dtype) if x.dtype.kind == "f" else x
        for name, x in given_rows(made, inputs).items()
    }
    y, _ = model(given if len(given) > 1 else next(iter(given.values())))
    y = y if isinstance(y, dict) else {"output": y}
    assert made.call is not None
    for a in made.call.outputs:
        if a.role == "rows":
            folded = model.facts.rows[model.graph.outputs[a.value]].folded
            out = y[a.value]
            yield out.swapaxes(0, 1) if "time" in a.axes else out if folded else out[-1]


def check(
    model: Any,
    folder: Path,
    rng: np.random.Generator,
    inputs: Any = None,
    tolerance: float = 1e-5,
    weights: bool = True,
    **options: Any,
) -> Conversion:
    """Check that both files of a model compute what it does, also in the engine.

    Returns what the second one became.

    `inputs` are an array, or a list or mapping of arrays as the model takes them; by default
    random ones of 2 rows of 7 steps.
    """
    import keras

    if weights:
        randomise(model, rng)
    if inputs is None:
        drawn = [
            rng.standard_normal([n or 7 for n in (tensor.shape[0] or 2, *tensor.shape[1:])])
            for tensor in model.inputs
        ]
        inputs = [x.astype(np.float32) for x in drawn]
        inputs = inputs[0] if len(inputs) == 1 else inputs
    expected = of_keras(model, inputs)
    listed = list(inputs.values()) if isinstance(inputs, dict) else keras.tree.flatten(inputs)
    made = None
    for path in saved(model, folder):
        made = read(path, **options)
        assert made.call is not None
        names = list(inputs) if isinstance(inputs, dict) else [a.name for a in made.call.arguments]
        given = dict(zip(names, listed, strict=True))
        got = of_graph(made, given)
        by_engine = list(of_engine(path, made, given, **options))
        assert len(got) == len(by_engine) == len(expected)
        for one, two, other in zip(got, by_engine, expected, strict=True):
            assert one.shape == two.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=path.name)
            np.testing.assert_allclose(two, other, rtol=0, atol=5 * tolerance, err_msg="engine")
    assert made is not None
    return made
