"""What a model reads, computes and gives, as a table: text, or HTML in a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from fastlstm import spec

__all__ = ["Summary"]

COLUMNS = ("name", "layer", "reads", "row", "rate", "delay", "parameters")
AT_RIGHT = {"parameters"}
MOST_CHARS = 100  # of a cell


class Summary:
    """The inputs, nodes and outputs of a graph, a line each.

    As a string it is a table of text, and in a notebook one of HTML.

    Parameters
    ----------
    title : str
        What stands above the table.
    graph : spec.Graph
    facts : spec.Facts
        Those of the graph.

    Attributes
    ----------
    title : str
    columns : tuple of str
    rows : list of tuple of str
        As many as COLUMNS each: inputs as they are given, nodes in the order in which they run,
        outputs.
    parameters : int
        Numbers in the tensors of the graph, each once.
    """

    def __init__(self, title: str, graph: spec.Graph, facts: spec.Facts) -> None:
        self.title = title
        self.columns = COLUMNS
        self.parameters = sum(map(math.prod, facts.tensors.values()))
        self.rows = list(_lines(graph, facts))

    def __repr__(self) -> str:
        lines = [COLUMNS, *self.rows]
        widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
        text = [self.title, ""]
        for line in lines:
            cells = [
                cell.rjust(width) if name in AT_RIGHT else cell.ljust(width)
                for name, cell, width in zip(COLUMNS, line, widths, strict=True)
            ]
            text.append("  ".join(cells).rstrip())
        return "\n".join([*text, "", f"{self.parameters:,} parameters"])

    def _repr_html_(self) -> str:
        def row(tag: str, cells: tuple[str, ...]) -> str:
            made = []
            for name, cell in zip(COLUMNS, cells, strict=True):
                side = "right" if name in AT_RIGHT else "left"
                text = html.escape(cell)
                made.append(f'<{tag} style="text-align: {side}">{text}</{tag}>')
            return f"<tr>{''.join(made)}</tr>"

        head, body = row("th", COLUMNS), "".join(row("td", cells) for cells in self.rows)
        return (
            f"<table><caption>{html.escape(self.title)}, {self.parameters:,} parameters</caption>"
            f"<thead>{head}</thead><tbody>{body}</tbody></table>"
        )


def _lines(graph: spec.Graph, facts: spec.Facts) -> Iterator[tuple[str, ...]]:
    for given in graph.inputs:
        yield given.name, "input", "", *_row(facts.rows[given.name]), ""
    for group in facts.groups:
        for node in group.nodes:
            size = sum(math.prod(facts.tensors[name]) for name in node.layer.names().values())
            reads = ", ".join(node.reads)
            row = _row(facts.rows[node.name])
            yield node.name, _clipped(node.layer.describe()), _clipped(reads), *row, f"{size:,}"
    for name, value in graph.outputs.items():
        yield name, "output", value, *_row(facts.rows[value]), ""


def _clipped(text: str) -> str:
    """A cell that leaves room for the others: an index may tell thousands of numbers."""
    return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 1]}…"


def _row(row: spec.Row) -> tuple[str, str, str]:
    """The shape of a row, how many there are for a step, and the steps before the first."""
    shape = f"({', '.join(map(str, row.shape))}{',' * (len(row.shape) == 1)})"
    if row.tokens:
        shape += f" of {row.tokens} tokens"
    if row.timing is None:
        return shape, "held", ""
    if row.looks_ahead:
        return shape, "one a sequence" if row.folded else str(row.timing.rate), "whole sequences"
    delay = str(row.timing.delay) if row.timing.delay else ""
    return shape, "one a sequence" if row.folded else str(row.timing.rate), delay
