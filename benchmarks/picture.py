"""What ``compare.py`` found, drawn: ``python benchmarks/picture.py results.json FILE.png``.

One group of bars a case, one colour a peer, on a logarithmic axis of microseconds; a black line
across the group marks the floor of the machine. The figure in parentheses is the best peer's median
over fastlstm's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timing import three_digits

COLOURS = {
    "fastlstm": "#d1351b",
    "onnxruntime": "#3a6ea5",
    "OpenVINO": "#78a5cf",
    "torch nn": "#8c8c8c",
    "torch cell": "#c4c4c4",
}

GROUP = 0.84  # of the distance between two cases


def label(row: Mapping[str, Any]) -> str:
    """A case in short: what an axis has room for."""
    sizes = f"{row['kind'].upper()} {row['I']}→{row['H']}"
    layers = f" {row['layers']} layers" if row["layers"] > 1 else ""
    steps = f" T={row['T']}" if row["T"] else ""
    rows = f" B={row['B']}" if row["B"] > 1 else ""
    return sizes + layers + steps + rows


def duration(microseconds: float, _position: int = 0) -> str:
    """A time in the largest unit that it has one of; powers of ten, the ticks, without decimals."""
    units = ((1e6, "s"), (1e3, "ms"), (1, "µs"), (1e-3, "ns"))
    size, unit = next((u for u in units if microseconds >= u[0]), units[-1])
    value = microseconds / size
    return f"{value:g} {unit}" if value in (1, 10, 100) else f"{three_digits(value)} {unit}"


def draw_panel(axes: Any, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Bars of some cases, from the top down."""
    figures = [times["median"] for row in rows for times in row["microseconds"].values()]
    figures += [row["floor"]["microseconds"] for row in rows if "floor" in row]
    least = 10 ** math.floor(math.log10(min(figures)))
    for n, row in enumerate(rows):
        shown = [name for name in COLOURS if name in row["microseconds"]]
        height = GROUP / len(shown)
        for k, name in enumerate(shown):
            median = row["microseconds"][name]["median"]
            y = n - GROUP / 2 + (k + 0.5) * height
            axes.barh(y, median - least, height, left=least, color=COLOURS[name])
            if name == "fastlstm":
                text = f" {duration(median)} ({row['times_best_peer']:.2f})"
                axes.text(median, y, text, va="center", fontsize=7.5, color=COLOURS[name])
        if "floor" in row:
            floor = row["floor"]["microseconds"]
            axes.plot([floor, floor], [n - GROUP / 2, n + GROUP / 2], color="black", linewidth=1.4)
    axes.set_xscale("log")
    axes.set_xlim(least, max(figures) * 3)
    axes.xaxis.set_major_formatter(duration)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time of a call, median, logarithmic", fontsize=9)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw the cases of one run.

    Parameters
    ----------
    found : mapping
        What ``compare.py --json`` wrote.
    path : Path
        Of the picture; its suffix chooses the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panels = [
        ("One step", [row for row in found["rows"] if not row["T"]]),
        ("Whole sequence", [row for row in found["rows"] if row["T"]]),
    ]
    panels = [(title, rows) for title, rows in panels if rows]
    most = max(len(rows) for _, rows in panels)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(6.2 * len(panels), 1.5 + 0.5 * most), squeeze=False
    )
    for panel, (title, rows) in zip(axes[0], panels, strict=True):
        draw_panel(panel, rows, title)
    used = {name for row in found["rows"] for name in row["microseconds"]}
    marks: list[Any] = [Patch(color=c, label=name) for name, c in COLOURS.items() if name in used]
    if any("floor" in row for row in found["rows"]):
        marks.append(Line2D([], [], color="black", linewidth=1.4, label="floor of the machine"))
    about = found["machine"]
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    figure.text(
        0.01,
        0.006,
        "figures: median of fastlstm (best peer / fastlstm)\u2003"
        f"{about['processor']}, {about['isa']}, {threads}",
        fontsize=9,
    )
    figure.legend(handles=marks, loc="upper left", ncols=len(marks), frameon=False, fontsize=10)
    figure.tight_layout(rect=(0, 0.015, 1, 1 - 0.4 / figure.get_figheight()))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what compare.py --json wrote")
    parser.add_argument("picture", type=Path, help="the file to draw")
    arguments = parser.parse_args()
    draw(json.loads(arguments.results.read_text(encoding="utf-8")), arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
