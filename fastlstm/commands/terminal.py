"""What the commands show: plain text into a pipe, rich on a terminal, JSON for programs.

The one place that knows rich. Without it everything is still shown, only plainer.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Page", "byte_count", "open_page", "printable", "progress", "write_json"]

Advance = Callable[[int], None]


def printable(text: str, keep: str = "\n") -> str:
    """`text` with control characters spelled out, but for those in `keep`.

    Names and notes come from files that may be anyone's; on a terminal, an escape sequence in one
    could rewrite what was shown before it.
    """
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


class Page:
    """Plain text on standard output.

    Headings, pairs of a label and a value, tables, free text and the verdict of a check.
    """

    def heading(self, text: str) -> None:
        print(f"\n{printable(text)}")

    def text(self, text: str) -> None:
        print(printable(text))

    def verdict(self, passed: bool, text: str) -> None:
        print(f"{'ok' if passed else 'FAILED'}: {printable(text)}")

    def pairs(self, values: Mapping[str, str]) -> None:
        width = max(map(len, values), default=0)
        for label, value in values.items():
            lines = printable(value).split("\n")
            print(f"{label.ljust(width)}  {lines[0]}".rstrip())
            for line in lines[1:]:
                print(f"{'':{width}}  {line}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
        """Rows under column titles; `right` lists the titles, one word each, that align right."""
        cells = [list(columns), *([printable(cell, keep="") for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        sides = [str.rjust if title in right.split() else str.ljust for title in columns]
        for row in cells:
            parts = zip(sides, row, widths, strict=True)
            print("  ".join(side(cell, width) for side, cell, width in parts).rstrip())


class _RichPage(Page):
    """The same through rich, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        # Text objects, not markup: a name such as "[red]" is shown as it is.
        self._console, self._table, self._text = Console(highlight=False), Table, Text

    def heading(self, text: str) -> None:
        self._console.print()
        self._console.print(self._text(printable(text), style="bold cyan"))

    def text(self, text: str) -> None:
        self._console.print(self._text(printable(text)))

    def verdict(self, passed: bool, text: str) -> None:
        # Where the terminal has neither mark, both would be "?".
        marks = ("ok: ", "FAILED: ") if self._console.options.ascii_only else ("✓ ", "✗ ")
        mark = (marks[0], "bold green") if passed else (marks[1], "bold red")
        self._console.print(self._text.assemble(mark, printable(text)))

    def pairs(self, values: Mapping[str, str]) -> None:
        grid = self._table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, value in values.items():
            grid.add_row(label, self._text(printable(value)))
        self._console.print(grid)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
        table = self._table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for title in columns:
            at_right = title in right.split()
            table.add_column(
                title,
                justify="right" if at_right else "left",
                no_wrap=at_right,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(self._text(printable(cell, keep="")) for cell in row))
        self._console.print(table)


def open_page() -> Page:
    """A page on standard output: through rich on a terminal that has it, else plain."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            return _RichPage()
    return Page()


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """A bar on standard error while something runs, if that is a terminal and rich is there.

    Yields
    ------
    advance : callable of int
        To be told of every few of the `total` steps.
    """
    bar: Any = None
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
    if bar is None:
        yield lambda steps: None
        return
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


def write_json(facts: Mapping[str, Any]) -> None:
    """One JSON object on standard output; a number that is not finite becomes null."""
    print(json.dumps(_jsonable(facts), indent=2, allow_nan=False))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def byte_count(size: int) -> str:
    """A number of bytes, in full and rounded."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size:,} bytes ({size / unit:.1f} {name})"
    return f"{size} bytes"
