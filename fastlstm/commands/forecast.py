"""``fastlstm forecast``: a time series continued by a model that predicts its next step."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm import forecasting
from fastlstm.commands import plot, terminal
from fastlstm.commands.arguments import add_model, load_model, positive
from fastlstm.commands.series import check_ending, continued, read_series, write_series

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "continue a time series with a model of its next step"

Array = npt.NDArray[Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Feed a time series to a model that predicts its next step, then feed the predictions back "
        "as input. The error of one step is that of the predictions over the series itself."
    )
    add_model(parser)
    parser.add_argument(
        "--input",
        metavar="FILE",
        required=True,
        help="the series: a .csv file, a row a step, its first line may be a header, and a column "
        "of no numbers is taken for dates; or a .npy file of an array (T, I)",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        action="append",
        default=[],
        help="a column of the .csv file that the model takes, by name or number, from 1 on; may be "
        "given again, in the model's order (default: all but that of dates)",
    )
    parser.add_argument(
        "--window",
        type=positive,
        help="of a model that was trained on windows of so many steps: each prediction is made of "
        "the last so many rows alone",
    )
    parser.add_argument(
        "--steps", type=positive, default=100, help="to predict (default %(default)s)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write the forecast there, as .csv or .npy"
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw the series, the predictions over it, the forecast"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the error of one step and the forecast; write and draw it if asked."""
    source, output = arguments.input, arguments.output
    if output is not None:
        check_ending(output, "--output")
        with contextlib.suppress(OSError):
            if os.path.samefile(source, output):
                raise ValueError(f"{output!r} is the series itself; expected another --output")
    if arguments.plot and not plot.is_available():
        raise ValueError(plot.MISSING)
    model = load_model(arguments)
    forecasting.check_forecasts(model)
    series = read_series(source, model.input_size, model.dtype, arguments.column)
    history = series.values
    columns = [f"x{i}" for i in range(model.input_size)]
    forecast = fastlstm.forecast(model, history, arguments.steps, window=arguments.window)
    dates = None if series.dates is None else continued(series.dates, len(forecast))
    # The last is the prediction of the last row, and the first that of row `begin`.
    fitted = forecasting.fitted(model, history, arguments.window)
    begin = len(history) - len(fitted)
    for what, predictions in (("prediction", fitted), ("forecast", forecast)):
        lost = np.flatnonzero(~np.isfinite(predictions).all(axis=1))
        if lost.size:
            raise ValueError(
                f"{what} number {lost[0] + 1} holds NaN or infinity; expected finite numbers. Is "
                f"the series scaled as it was for the model's training?"
            )
    rmse = _rmse(fitted - history[begin:])
    # The yardstick: a model that has learned anything does better than the last row again.
    repeat_rmse = _rmse(history[begin - 1 : -1] - history[begin:])
    if output is not None:
        write_series(output, forecast, series.names, dates, series.date_name)
    if arguments.plot:
        plot.save_forecast(
            arguments.plot,
            history,
            np.concatenate([np.full((begin - 1, fitted.shape[1]), np.nan), fitted]),
            forecast,
            names=[terminal.printable(name, keep="") for name in series.names or columns],
            title=f"{Path(source).name} continued by {Path(arguments.model).name}",
        )
    if arguments.json:
        terminal.write_json(
            {
                "model": arguments.model,
                "isa": model.isa,
                "input": source,
                "rows": len(history),
                "names": series.names,
                "window": arguments.window,
                "dates": dates,
                "one_step_rmse": rmse,
                "repeat_rmse": repeat_rmse,
                "forecast": forecast.tolist(),
                "output": output,
                "plot": arguments.plot,
            }
        )
        return 0
    page = terminal.open_page()
    page.heading("one step ahead over the series: root of the mean squared error")
    page.table(
        ("column", "name", "model", "repeating"),
        [
            (column, name, f"{error:.4g}", f"{repeated:.4g}")
            for column, name, error, repeated in zip(
                columns,
                series.names or [""] * len(columns),
                rmse,
                repeat_rmse,
                strict=True,
            )
        ],
        right="model repeating",
    )
    page.text("(repeating: of predicting each row to be the one before it)")
    if series.dates is not None:
        called = repr(series.date_name) if series.date_name else "of no numbers"
        page.text(f"(the column {called} was taken for dates, from {series.dates[0]} to "
                  f"{series.dates[-1]})")  # fmt: skip
        if dates is None:
            page.text("(they are not equally far apart, or not in ISO 8601: the forecast has none)")
    page.heading(f"forecast: {len(forecast):,} steps after row {len(history) - 1:,}")
    # Names are of any length, and anyone's; the titles of a table are its own.
    given = ["date"] if dates is not None else []
    page.table(
        ("row", *given, *columns),
        [
            (str(len(history) + n), *([] if dates is None else [dates[n]]),
             *(f"{value:.6g}" for value in values))
            for n, values in enumerate(forecast)
        ],
        right=" ".join(("row", *columns)),
    )  # fmt: skip
    written = [path for path in (output, arguments.plot) if path]
    if written:
        page.text("")
        page.verdict(True, f"wrote {', '.join(written)}")
    return 0


def _rmse(differences: Array) -> list[float]:
    """Of each column of (T, I); NaN if there are no rows."""
    if not len(differences):
        return [math.nan] * differences.shape[1]
    with np.errstate(over="ignore"):
        squares = np.square(differences, dtype=np.float64).mean(axis=0)
    return [math.sqrt(mean) for mean in squares]
