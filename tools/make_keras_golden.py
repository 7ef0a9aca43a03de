"""Record what Keras saves and computes, for the tests where it is not installed.

Writes every case into ``tests/data/keras``: the model as ``<case>_<version>.keras`` or ``.h5``, and
into ``golden_<version>.npz`` an input and what Keras computes from it in float32. To be run twice,
with TensorFlow 2.15, which has Keras 2 as ``tensorflow.keras``, and with Keras 3:

    python tools/make_keras_golden.py [FOLDER]

Shapes: ``B`` batch, ``T`` time, ``I`` input.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "keras"
B, T, I = 2, 6, 3  # noqa: E741


def import_keras() -> tuple[Any, str]:
    """Keras 2 of TensorFlow if that is what is installed, or Keras 3, and its version."""
    try:
        from tensorflow import keras
    except ImportError:
        import keras
    version = getattr(keras, "__version__", None)
    if version is None:
        from keras.src import __version__ as version
    return keras, version


def tokens(keras: Any) -> Any:
    """Text: both directions, all three forms of a cell, a probability for each token."""
    la = keras.layers
    model = keras.Sequential(
        [
            la.Embedding(7, 3),
            la.Bidirectional(
                la.LSTM(2, return_sequences=True, recurrent_activation="hard_sigmoid", dropout=0.1),
                merge_mode="sum",
            ),
            la.Dropout(0.1),
            la.GRU(3, return_sequences=True),
            la.GRU(2, return_sequences=True, reset_after=False, activation="softsign"),
            la.LSTM(3, return_sequences=True, use_bias=False),
            la.TimeDistributed(la.Dense(7, activation="softmax")),
        ]
    )
    model.build((None, None))
    return model


def features(keras: Any) -> Any:
    """Measurements: normalised, convolved, one number for the whole sequence."""
    la = keras.layers
    return keras.Sequential(
        [
            keras.Input((None, I)),
            la.Normalization(mean=[0.5, -1.0, 2.0], variance=[4.0, 0.25, 1.0]),
            la.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu"),
            la.BatchNormalization(scale=False),
            la.LayerNormalization(center=False),
            la.Conv1D(4, 2, strides=2, groups=2),
            la.Bidirectional(la.GRU(2)),
            la.Dense(3),
            la.LeakyReLU(0.1),
            la.Dense(1, activation="gelu"),
        ]
    )


def functional(keras: Any) -> Any:
    """A functional model that is one line of layers."""
    la = keras.layers
    x = first = keras.Input((T, I))
    x = la.SimpleRNN(4, return_sequences=True, stateful=False)(x)
    x = la.PReLU(shared_axes=[1])(x)
    x = la.Rescaling(2.0, offset=-0.5)(x)
    x = la.LSTM(2, return_sequences=True, activation="elu")(x)
    x = la.GlobalAveragePooling1D()(x)
    return keras.Model(first, la.ReLU(max_value=6.0)(la.Dense(3)(x)))


CASES = {
    "tokens": (tokens, "h5"),
    "features": (features, "keras"),
    "functional": (functional, "h5"),
}
CASES |= {"functional_zip": (functional, "keras")}


def main(folder: Path = FOLDER) -> None:
    keras, version = import_keras()
    folder.mkdir(parents=True, exist_ok=True)
    major, arrays = version.partition(".")[0], {}
    for case, (build, suffix) in CASES.items():
        keras.backend.clear_session()
        model = build(keras)
        random = np.random.RandomState(zlib.crc32(case.encode()))
        model.set_weights([draw(random, weight) for weight in model.weights])
        shape = (B, T) if case == "tokens" else (B, T, I)
        x = random.randint(0, 7, shape) if case == "tokens" else random.standard_normal(shape)
        x = x.astype(np.int64 if case == "tokens" else np.float32)
        arrays |= {f"{case}.x": x, f"{case}.y": model.predict(x, verbose=0)}
        model.save(folder / f"{case}_{major}.{suffix}")
    np.savez_compressed(folder / f"golden_{major}.npz", **arrays)
    print(f"{folder}: {', '.join(CASES)} of Keras {version}")


def draw(random: np.random.RandomState, weight: Any) -> np.ndarray:
    """Random values of the shape of a weight, positive for a variance."""
    values = random.standard_normal(tuple(weight.shape)) * 0.5
    if "variance" in getattr(weight, "path", weight.name):
        values = np.abs(values) + 0.1
    return values.astype(np.float32)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
