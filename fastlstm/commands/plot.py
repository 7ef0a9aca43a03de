"""The picture of ``fastlstm bench --plot``; the one place that knows matplotlib."""

from __future__ import annotations

import numpy as np

from fastlstm.commands.latency import Latency

__all__ = ["MISSING", "is_available", "save_latency"]

MISSING = "--plot needs matplotlib; install it with: pip install 'fastlstm[cli]'"

BLUE, GREY = "#1f5fa8", "#555555"


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
