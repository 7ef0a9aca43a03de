"""Weights that Keras saves alone, by the Keras that is installed: its recipe reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_models import keras_or_skip
from trained import assert_close

from fastlstm import reference
from fastlstm.errors import ConvertError
from fastlstm.sources import read

CELLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "lstm": [("LSTM", {}), ("LSTM", {})],
    "gru": [("GRU", {}), ("GRU", {"reset_after": False})],
    "rnn": [("SimpleRNN", {})],
}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")
@pytest.mark.parametrize("kind", CELLS)
def test_weights_alone(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    keras = keras_or_skip()
    layers = [
        getattr(keras.layers, name)(4, return_sequences=True, **more) for name, more in CELLS[kind]
    ]
    model = keras.Sequential([keras.Input((None, 3)), *layers, keras.layers.Dense(2)])
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(rng.uniform(-1, 1, weight.shape))
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    x = rng.standard_normal((1, 20, 3)).astype("f4")
    y = keras.ops.convert_to_numpy(model(x))
    words = ", ".join([kind] * len(layers)) + ", linear"  # sizes tell their order
    made = read(path, recipe="keras3", layers=words)
    got = reference.forward(made.graph, made.tensors, {"input": x.swapaxes(0, 1)})["output"]
    assert_close(got, y.swapaxes(0, 1), 1e-5)
    with pytest.raises(ConvertError, match=r"recipe='keras3': weights that Keras 3 saved alone"):
        read(path)
