"""The pictures of the commands' ``--plot``; the one place that knows matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.commands.cells import Timed
from fastlstm.commands.latency import Latency
from fastlstm.verification import BLOCKS, ENGINE, Verification

__all__ = [
    "MISSING",
    "is_available",
    "save_cells",
    "save_drift",
    "save_forecast",
    "save_latency",
]

Array = npt.NDArray[Any]

MISSING = "--plot needs matplotlib; install it with: pip install 'fastlstm[cli]'"

BLUE, GREY, LIGHT, ORANGE, GREEN = "#1f5fa8", "#555555", "#bbbbbb", "#c8501e", "#4d8a4d"
LIGHT_BLUE, RED = "#9dbfe0", "#b02020"
KINDS = {"RNN": LIGHT_BLUE, "GRU": "#4f8cc4", "LSTM": BLUE}

# Color and width of the engine's errors in a verification.
DRIFT_STYLES = dict(zip(ENGINE, ((BLUE, 3.5), (LIGHT_BLUE, 1.5)), strict=True))

# A forecast is drawn with as much of the series before it as this many times itself, but at least
# so many rows; and of the first columns only.
HISTORY_SHARE, LEAST_HISTORY, MOST_COLUMNS = 4, 60, 6


def is_available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def save_latency(path: str, latency: Latency, *, title: str, subtitle: str) -> None:
    """Draw how step times are distributed, and up to which time each share of them lies.

    Parameters
    ----------
    path : str
        A .png, .svg or .pdf file.
    latency : Latency
        Of single steps.
    title, subtitle : str
        What was measured, and where.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If matplotlib does not know the format that its ending names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    times = np.sort(latency.nanoseconds) / 1000
    n = len(times)
    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.6))

    low, high = max(times[0], 1e-3) * 0.85, times[-1] * 1.4
    bins = np.geomspace(low, high, 90)
    left.hist(times, bins=bins, orientation="horizontal", color=BLUE, log=True)
    left.set_xlim(left=0.7)
    left.set_xlabel("steps (log scale)")
    left.set_ylabel("time of one step, microseconds (log scale)")
    left.set_title("distribution", loc="left", fontsize=10, color=GREY)

    # Rank k of n leaves the share (n - k) / n of steps above it; on a log axis of that share the
    # rare slow steps, which a mean hides, get as much room as the common ones.
    above = (n - np.arange(n)) / n
    right.step(above, times, where="post", color=BLUE, linewidth=1.8)
    right.set_xscale("log")
    right.set_xlim(1.0, 0.8 / n)
    shares = [0.5, *(10.0**-k for k in range(1, 9) if 10.0**-k >= 1 / n)]
    right.xaxis.set_major_locator(FixedLocator(shares))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * (1 - share):.8g}%"))
    right.set_xlabel("share of steps at most this slow")
    right.set_title("percentiles", loc="left", fontsize=10, color=GREY)
    for name, value in latency.microseconds().items():
        share = 1 / n if name == "max" else 1 - float(name[1:]) / 100
        share = max(share, 1 / n)
        right.plot(share, value, "o", color=BLUE, markersize=5)
        right.annotate(
            f"{name}  {value:,.0f} µs" if value >= 100 else f"{name}  {value:.3g} µs",
            (share, value),
            xytext=(-6, 7),
            textcoords="offset points",
            ha="right" if share < 0.4 else "left",
            fontsize=9,
        )

    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(True, linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(subtitle, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path)


def save_cells(
    path: str, groups: Mapping[str, Sequence[Timed]], *, title: str, subtitle: str
) -> None:
    """Draw the times of groups of cells side by side: of a single step, and within a sequence.

    Parameters
    ----------
    path : str
        A .png, .svg or .pdf file.
    groups : mapping of str to sequence of Timed
        By what is equal in each.
    title, subtitle : str
        What was measured, and where.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If matplotlib does not know the format that its ending names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    panels: dict[str, Callable[[Timed], float]] = {
        "one step: stream.step(x, out=y)": lambda timed: timed.step_us,
        "a step of a sequence: model(x)": lambda timed: timed.sequence_step_us,
    }
    for axes, (what, time_of) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        ticks: dict[float, str] = {}
        at = 0.0
        for group, cells in groups.items():
            axes.text(
                at + (len(cells) - 1) / 2,
                1.0,
                group,
                ha="center",
                va="top",
                color=GREY,
                transform=axes.get_xaxis_transform(),
            )
            for timed in cells:
                bar = axes.bar(at, time_of(timed), width=0.8, color=KINDS[timed.cell.kind])
                axes.bar_label(bar, fmt="%.2f µs", fontsize=9, padding=2)
                size = f"H = {timed.cell.hidden_size}\n{timed.cell.parameters:,}"
                ticks[at] = f"{timed.cell.kind}\n{size}"
                at += 1
            at += 0.8
        axes.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
        axes.set_xlabel("kind, hidden size, parameters")
        axes.set_ylabel("microseconds, median")
        axes.set_title(what, loc="left", fontsize=10, color=GREY)
        axes.margins(y=0.2)
        axes.tick_params(axis="x", length=0)
        axes.grid(True, axis="y", linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(subtitle, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path)


def save_forecast(
    path: str,
    history: Array,
    fitted: Array,
    forecast: Array,
    *,
    names: Sequence[str],
    title: str,
) -> None:
    """Draw the end of a series, the predictions made over it, and its forecast.

    Parameters
    ----------
    path : str
        A .png, .svg or .pdf file.
    history : array (T, I)
    fitted : array (T - 1, I)
        Row t is the prediction of row t + 1 of the history.
    forecast : array (N, I)
        Of rows T and on.
    names : sequence of str
        Of the columns.
    title : str

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If matplotlib does not know the format that its ending names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    T, N = len(history), len(forecast)
    first = max(0, T - max(HISTORY_SHARE * N, LEAST_HISTORY))
    drawn = min(len(names), MOST_COLUMNS)
    figure = Figure(figsize=(10, 1.6 + 2.4 * drawn), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", parse_math=False)
    panels = figure.subplots(drawn, 1, sharex=True, squeeze=False)[:, 0]
    rows = np.arange(first, T)
    predicted = rows[rows > 0]  # row 0 has no prediction
    # The forecast starts where the series ends.
    ahead = np.concatenate([history[-1:], forecast])
    for column, axes in enumerate(panels):
        axes.axvline(T - 1, color=GREY, linewidth=0.8, linestyle=":")
        axes.plot(rows, history[first:, column], color=LIGHT, linewidth=3, label="series")
        axes.plot(
            predicted,
            fitted[predicted - 1, column],
            color=BLUE,
            linewidth=1,
            label="one step ahead",
        )
        axes.plot(
            np.arange(T - 1, T + N), ahead[:, column], color=ORANGE, linewidth=1.6, label="forecast"
        )
        axes.set_ylabel(f"{names[column]:.40}", parse_math=False)
        axes.margins(x=0.01)
        axes.grid(True, linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, ncols=3, frameon=False)
    panels[-1].set_xlabel("row")
    subtitle = f"rows {first:,} to {T - 1:,} of the series, {N:,} steps of forecast"
    if drawn < len(names):
        subtitle += f"; the first {drawn} of {len(names)} columns"
    figure.supxlabel(subtitle, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path)


def save_drift(path: str, found: Verification, *, title: str, subtitle: str) -> None:
    """Draw the errors of every evaluation along the sequence, and what passes.

    Parameters
    ----------
    path : str
        A .png, .svg or .pdf file.
    found : Verification
    title, subtitle : str
        What was compared, and how.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If matplotlib does not know the format that its ending names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", parse_math=False)
    axes = figure.subplots()
    drift = found.drift
    others = iter((ORANGE, GREEN))
    for name, errors in drift.errors.items():
        # The engine's two ways mostly give the same bits: the one is seen within the other.
        color, width = DRIFT_STYLES.get(name) or (GREY, 1.5)
        if name in found.sources:
            color = next(others)
        blocks = errors.blocks(BLOCKS)
        for values, label, line, thickness in (
            (blocks.largest, name, "-", width),
            (blocks.rms, None, ":", 1.5),
        ):
            shown = np.where((values > 0) & np.isfinite(values), values, np.nan)
            axes.plot(blocks.steps, shown, line, color=color, linewidth=thickness, label=label)
    measure = drift.errors[found.yardstick].worst.error
    bounds = {
        "tolerance": found.floor(drift, found.yardstick),
        f"{found.most_ratio:g} times the largest of {found.yardstick}": found.most_ratio * measure,
    }
    for label, bound in bounds.items():
        if bound > 0:
            axes.axhline(bound, color=RED, linewidth=0.9, linestyle="--")
            axes.annotate(
                label,
                (1, bound),
                xycoords=axes.get_yaxis_transform(),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=RED,
            )
    if drift.outputs:
        axes.set_yscale("log")
    else:
        axes.text(0.5, 0.5, "nothing to compare", ha="center", transform=axes.transAxes)
    axes.set_xlabel("step")
    axes.set_ylabel("absolute error (log scale)")
    axes.set_title(
        f"solid: the largest of each of {len(blocks.steps)} stretches; dotted: their rms",
        loc="left",
        fontsize=10,
        color=GREY,
    )
    axes.margins(x=0.01)
    axes.grid(True, linewidth=0.4, color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, ncols=3, frameon=False)
    figure.supxlabel(subtitle, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path)
