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

__all__ = ["check_forecasts", "fitted", "forecast"]

Array = npt.NDArray[Any]


def check_forecasts(model: Model) -> None:
    """Check that a model's output can be its next input.

    Raises
    ------
    ValueError
        If it takes tokens or several inputs, or gives another number of features than it takes.
    """
    if len(model.inputs) > 1 or len(model.outputs) > 1:
        raise ValueError(
            f"this model reads {', '.join(map(repr, model.inputs))} and gives "
            f"{', '.join(map(repr, model.outputs))}; expected one input, and one output that can "
            f"be the next"
        )
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


# Windows that are run at once, in numbers.
MOST_NUMBERS = 2**22


def forecast(model: Model, history: Array, steps: int, *, window: int | None = None) -> Array:
    """Continue a time series: feed a model its history, then its own predictions.

    Parameters
    ----------
    model : Model
        One whose output is a prediction of its next input, so that both have the same size.
    history : array (T, I) or (T, B, I) of the model's dtype
        At least one step.
    steps : int
        Steps to predict.
    window : int, optional
        Of a model that was trained on windows of so many steps: each prediction is made of the last
        `window` rows alone, as a sequence of their own. Without it the state goes on from the first
        row of the history, as in training on whole sequences.

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
    if window is not None:
        return _by_windows(model, history, steps, _engine.as_count("window", window, 1))
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
                "time; expected one output row a step, or the window of steps that it was trained "
                "on"
            )
        predictions[n] = row
        if n + 1 < steps:
            row = stream.step(predictions[n])
    return predictions


def fitted(model: Model, history: Array, window: int | None = None) -> Array:
    """The predictions that a model makes of the rows of a series from those before each.

    Parameters
    ----------
    model : Model
    history : array (T, I)
    window : int, optional
        As of :func:`forecast`.

    Returns
    -------
    array (T - 1, I), or with `window` (T - window, I)
        The last one is that of the last row.
    """
    if window is None:
        made: Array = model.stream().run(history)[:-1]
        return made
    windows = np.lib.stride_tricks.sliding_window_view(history, window, axis=0)[:-1]
    at_once = max(1, MOST_NUMBERS // max(1, window * model.input_size))
    parts = [np.empty((0, model.output_size), model.dtype)]
    for first in range(0, len(windows), at_once):
        rows = np.ascontiguousarray(windows[first : first + at_once].transpose(2, 0, 1))
        parts.append(_last(model, rows))
    return np.concatenate(parts)


def _by_windows(model: Model, history: Array, steps: int, window: int) -> Array:
    known = history
    model(known[:1])  # for its errors, of another dtype or shape
    if len(known) < window:
        raise ValueError(
            f"the history has {len(known)} steps; expected at least {window}, one window of them"
        )
    known = np.asarray(known)[-window:]
    batched = known.ndim == 3
    predictions = np.empty((steps, *known.shape[1:]), model.dtype)
    for n in range(steps):
        row = _last(model, known if batched else known[:, None])
        predictions[n] = row if batched else row[0]
        known = np.concatenate([known[1:], predictions[n : n + 1]])
    return predictions


def _last(model: Model, rows: Array) -> Array:
    """The prediction (B, I) behind rows (T, B, I) that are sequences of their own."""
    y, _ = model(rows)
    if model.pools_over_time:
        return y
    if not len(y):
        raise ValueError(
            f"this model gives no row for a window of {len(rows)} steps; expected the window that "
            f"it was trained on"
        )
    last: Array = y[-1]
    return last
