"""Time-series models: predictions fed back as input.

Dimension letters: ``T`` time, ``B`` batch, ``I`` input, ``N`` steps of the forecast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import _engine
from fastlstm.arrays import offered
from fastlstm.model import Model

__all__ = ["check_forecasts", "forecast"]

Array = npt.NDArray[Any]


def check_forecasts(model: Model) -> None:
    """Check that a model's output can be its next input.

    Raises
    ------
    ValueError
        If it takes tokens or gives another number of features than it takes.
    """
    if model.takes_tokens:
        raise ValueError(
            "this model takes tokens, not features; expected a time-series model. "
            "fastlstm.generate continues tokens"
        )
    if model.output_size != model.input_size:
        raise ValueError(
            f"this model takes {model.input_size} features a step and gives {model.output_size}; "
            f"to feed its predictions back, it must give as many as it takes: is its last layer "
            f"missing?"
        )


def forecast(model: Model, history: Array, steps: int) -> Array:
    """Continue a time series: feed a model its history, then its own predictions.

    Parameters
    ----------
    model : Model
        One whose output is a prediction of its next input, so that both have the same size.
    history : array (T, I) or (T, B, I) of the model's dtype
        At least one step.
    steps : int
        Steps to predict.

    Returns
    -------
    array (N, I) or (N, B, I)
        The predictions: the first is made from the history alone, each other one from those
        before it too.

    Raises
    ------
    TypeError
        If `history` is not an array of the model's dtype.
    ValueError
        If `history` is empty or of another shape, `steps` is less than 1, the model does not
        predict its own input, step for step, or it is bidirectional.
    """
    check_forecasts(model)
    steps = _engine.as_count("steps", steps, 1)
    history = offered("history", history)
    shape = np.asarray(history).shape if isinstance(history, np.ndarray) else ()
    stream = model.stream(shape[1] if len(shape) == 3 else None)
    fitted = stream.run(history)
    if not shape[0]:
        raise ValueError("the history has no steps; expected at least one to continue from")
    row = fitted[-1] if fitted.shape == shape else None
    predictions = np.empty((steps, *shape[1:]), model.dtype)
    for n in range(steps):
        if row is None:
            raise ValueError(
                "this model does not give one prediction for every step: it pools or strides over "
                "time; expected one output row a step"
            )
        predictions[n] = row
        if n + 1 < steps:
            row = stream.step(predictions[n])
    return predictions
