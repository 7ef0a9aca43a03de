"""The order in which the nodes of a graph run: one after another, and those on loops together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastlstm.spec.layer import Node
from fastlstm.spec.time import Delay

__all__ = ["Group", "groups_of", "needed"]


class Group(NamedTuple):
    """Nodes that run together: one, or those on loops through each other, row by row.

    Parameters
    ----------
    nodes : tuple of Node
        In the order in which they run.
    loops : bool
        Whether a row of one of them depends on an earlier row of its own.
    """

    nodes: tuple[Node, ...]
    loops: bool


def groups_of(nodes: Sequence[Node]) -> tuple[Group, ...]:
    """Nodes in an order in which they can run; those on loops together.

    Tarjan's strongly connected components (https://doi.org/10.1137/0201010), which come out in the
    order of what they read, without recursion.

    Raises
    ------
    ValueError
        If a loop has no delay.
    """
    by_name = {node.name: node for node in nodes}
    groups: list[Group] = []
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: list[str] = []
    waiting: set[str] = set()
    for root in by_name:
        if root in number:
            continue
        path = [(root, iter(by_name[root].reads))]
        number[root] = low[root] = len(number)
        open_.append(root)
        waiting.add(root)
        while path:
            name, reads = path[-1]
            for read in reads:
                if read not in by_name:
                    continue
                if read not in number:
                    number[read] = low[read] = len(number)
                    open_.append(read)
                    waiting.add(read)
                    path.append((read, iter(by_name[read].reads)))
                    break
                if read in waiting:
                    low[name] = min(low[name], number[read])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[name])
                if low[name] == number[name]:
                    inside: list[str] = []
                    while not inside or inside[-1] != name:
                        inside.append(open_.pop())
                        waiting.discard(inside[-1])
                    loops = len(inside) > 1 or name in by_name[name].reads
                    groups.append(Group(_order([by_name[n] for n in inside]), loops))
    return tuple(groups)


def needed(groups: Sequence[Group], outputs: Iterable[str]) -> tuple[Group, ...]:
    """Those of some groups, each behind what it reads, that the values `outputs` depend on."""
    wanted, kept = set(outputs), list[Group]()
    for group in reversed(groups):
        # The nodes of a loop depend on each other: one that is needed needs them all.
        if any(node.name in wanted for node in group.nodes):
            wanted.update(name for node in group.nodes for name in node.reads)
            kept.append(group)
    return tuple(reversed(kept))


def _order(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Nodes of one group in an order in which each follows what it reads, but for delays.

    A delay gives a row before it reads the one of the same step.
    """
    inside = {node.name for node in nodes}
    waits = {
        node.name: set() if isinstance(node.layer, Delay) else inside & set(node.reads)
        for node in nodes
    }
    readers: dict[str, list[str]] = {}
    for name, reads in waits.items():
        for read in reads:
            readers.setdefault(read, []).append(name)
    by_name = {node.name: node for node in nodes}
    ready = sorted(name for name, reads in waits.items() if not reads)
    order: list[Node] = []
    while ready:
        name = ready.pop()
        order.append(by_name[name])
        for reader in readers.get(name, ()):
            waits[reader].discard(name)
            if not waits[reader]:
                ready.append(reader)
    if len(order) < len(nodes):
        stuck = sorted(name for name, reads in waits.items() if reads)
        raise ValueError(
            f"layers {', '.join(map(repr, stuck[:5]))} read each other's row of the same step; "
            f"expected a delay on the loop"
        )
    return tuple(order)
