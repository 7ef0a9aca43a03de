"""The check of a graph: what is known of every value, and the order in which the nodes run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastlstm.spec.graph import Graph
from fastlstm.spec.groups import Group, groups_of, needed
from fastlstm.spec.layer import MAX_AXES, MAX_SIZE, Layer, Node, check_name
from fastlstm.spec.row import Row, Shape
from fastlstm.spec.time import Delay
from fastlstm.spec.timing import SAME, Rate, Timing

__all__ = ["Facts", "check", "check_tensors"]

# What a file of a few bytes may ask for where no tensor bounds it.
MAX_NODES = 2**12
MAX_VALUES = 2**6  # inputs, and outputs
MAX_DEPTH = 2**12  # layers of all stacks together, each direction one
MAX_READS = 2**10  # of one node
MAX_ALL_READS = 2**16
MAX_TENSORS = 2**14
MAX_NAMES = 2**20  # characters of the names of all tensors
MAX_ROW = 2**20  # numbers in a row
MAX_NUMBERS = 2**26  # in the rows of all layers, which a plan may look at one by one
MAX_STATE = 2**24  # numbers in the state of a stream
MAX_RATE = 2**16  # rows for each step, and steps for each row
MAX_TERMS = 2**4  # that tell the number of rows, one after another
MAX_WAITS = 2**4  # numbers of rows of a stream, the least of which is there
MAX_COMPARISONS = 2**16  # of those numbers, to tell the least of them
MAX_WORK = 2**36  # multiply-adds for each step


class Facts(NamedTuple):
    """What :func:`check` finds out.

    Parameters
    ----------
    rows : mapping of str to Row
        Of every input and every layer, by name.
    groups : tuple of Group
        The nodes that some output depends on, in an order in which they can run. The others, whose
        rows nobody sees, are no part of what runs: they have no state, and make no work.
    tensors : mapping of str to tuple of int
        Full name -> shape of every tensor that a layer names, whether it runs or not, in the order
        of the nodes: a file holds them all.
    state : mapping of str to tuple of int
        Full name -> shape of every array of a stream's state. The batch stands behind the first
        axis.
    queues : mapping of str to tuple of int
        Name of each node in `groups` -> for each value that it reads, the most rows that wait,
        between the steps of a stream, for those of the same index of the others: 0 where none
        does. A value that a node, or the nodes of a group, read again waits once, for the first of
        these reads. The numbers are bounds, reached where rows are behind no change of rate that
        a later one follows.
    work : int
        Multiply-adds for each step.
    looks_ahead : str
        Why the graph cannot be streamed, as ``layer 'name' ...``; "" if it can.
    """

    rows: Mapping[str, Row]
    groups: tuple[Group, ...]
    tensors: Mapping[str, Shape]
    state: Mapping[str, Shape]
    queues: Mapping[str, tuple[int, ...]]
    work: int
    looks_ahead: str


def check(graph: Graph) -> Facts:
    """Derive the size, axes, rate and delay of every value, and check that they fit.

    Raises
    ------
    ValueError
        Naming the first node that does not fit, what it was given and what it takes.
    """
    _check_names(graph)
    rows: dict[str, Row] = {}
    for given in graph.inputs:
        timing = None if given.held else Timing()
        rows[given.name] = _bounded(f"input {given.name!r}", Row(given.shape, given.tokens, timing))
    groups, comparisons = groups_of(graph.nodes), 0
    for group in groups:
        comparisons += _comparisons(group, rows)
        if comparisons > MAX_COMPARISONS:
            raise ValueError(
                f"rows meet up to layer {group.nodes[0].name!r} that wait for others of so many "
                f"delays that {comparisons} comparisons tell how many there are; at most "
                f"{MAX_COMPARISONS} are supported"
            )
        if group.loops:
            _check_loop(group, rows)
        else:
            (node,) = group.nodes
            rows[node.name] = _row_of(node, rows)
    groups = needed(groups, graph.outputs.values())
    running = [node for group in groups for node in group.nodes]
    if (work := _work(running, rows)) > MAX_WORK:
        raise ValueError(
            f"a step would take {work} multiply-adds; at most {MAX_WORK} are supported"
        )
    if (numbers := sum(rows[node.name].size for node in running)) > MAX_NUMBERS:
        raise ValueError(
            f"the rows of all layers would be {numbers} numbers; at most {MAX_NUMBERS} are "
            f"supported"
        )
    tensors = _tensors(graph)
    state: dict[str, Shape] = {}
    for node in running:
        for suffix, shape in node.layer.state([rows[name] for name in node.reads]).items():
            state[f"{node.name}.{suffix}"] = shape
    queues = {name: rows_ for group in groups for name, rows_ in _queues(group, rows).items()}
    waiting = sum(
        count * rows[name].size
        for node in running
        for count, name in zip(queues[node.name], node.reads, strict=True)
    )
    if (total := waiting + sum(map(math.prod, state.values()))) > MAX_STATE:
        parts = f", {waiting} of them in rows that wait for others" if waiting else ""
        raise ValueError(
            f"the state of one stream would be {total} numbers{parts}; at most {MAX_STATE} are "
            f"supported"
        )
    ahead = next(filter(None, (rows[name].looks_ahead for name in graph.outputs.values())), "")
    return Facts(rows, groups, tensors, state, queues, work, ahead)


def check_tensors(facts: Facts, shapes: Mapping[str, Shape]) -> None:
    """Check that the tensors are exactly those that the layers need, each with its shape.

    Parameters
    ----------
    facts : Facts
        What :func:`check` found out of the graph.
    shapes : mapping of str to tuple of int
        The shape of every tensor there is.

    Raises
    ------
    ValueError
        Naming the tensor that is missing, left over or of the wrong shape.
    """
    for name, shape in facts.tensors.items():
        if name not in shapes:
            raise ValueError(f"tensor {name!r} of shape {shape} is missing")
        if tuple(shapes[name]) != shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(shapes[name])}; the layers ask for {shape}"
            )
    for name in shapes:
        if name not in facts.tensors:
            raise ValueError(f"tensor {name!r:.200} belongs to no layer")


def _check_names(graph: Graph) -> None:
    depth = sum(getattr(node.layer, "depth", 1) for node in graph.nodes)
    for what, count, most in (
        ("nodes", len(graph.nodes), MAX_NODES),
        ("layers, those of stacks and their directions too", depth, MAX_DEPTH),
        ("inputs", len(graph.inputs), MAX_VALUES),
        ("outputs", len(graph.outputs), MAX_VALUES),
    ):
        if not 1 <= count <= most:
            raise ValueError(f"the graph has {count} {what}; expected from 1 to {most}")
    if (total := sum(len(node.reads) for node in graph.nodes)) > MAX_ALL_READS:
        raise ValueError(
            f"the layers read {total} values in all; at most {MAX_ALL_READS} are supported"
        )
    seen: set[str] = set()
    for name in [i.name for i in graph.inputs] + [node.name for node in graph.nodes]:
        if name in seen:
            raise ValueError(f"two inputs or layers are called {name!r}; names must be unique")
        seen.add(name)
    for node in graph.nodes:
        if len(node.reads) > MAX_READS:
            raise ValueError(
                f"layer {node.name!r} reads {len(node.reads)} values; at most {MAX_READS} are "
                f"supported"
            )
        for name in node.reads:
            if name not in seen:
                raise ValueError(f"layer {node.name!r} reads {name!r:.80}, which nothing is called")
    for name, value in graph.outputs.items():
        check_name("output", name)
        if value not in seen:
            raise ValueError(f"output {name!r} is {value!r:.80}, which nothing is called")


def _failed(node: Node, reads: Sequence[Row], error: object) -> ValueError:
    given = ", ".join(f"{name!r} ({row})" for name, row in zip(node.reads[:8], reads, strict=False))
    given += f" and {len(node.reads) - 8} more" if len(node.reads) > 8 else ""
    return ValueError(
        f"layer {node.name!r} ({node.layer.kind}), which reads {given or 'nothing'}: {error}"
    )


def _row_of(node: Node, rows: Mapping[str, Row]) -> Row:
    """The row of a node whose reads are known."""
    reads = [rows[name] for name in node.reads]
    try:
        return _bounded("its output", _derived(node.layer, reads))
    except ValueError as error:
        raise _failed(node, reads, error) from None


def _derived(layer: Layer, reads: Sequence[Row]) -> Row:
    if not layer.takes_tokens and any(row.tokens for row in reads):
        raise ValueError("it takes numbers, and is given tokens; put an embedding before it")
    beside, starts = list(reads), list[Row]()
    if layer.starts:
        beside, starts = list(reads[: -layer.starts]), list(reads[-layer.starts :])
    if any(row.folded for row in starts):
        raise ValueError(
            "it would start from a single row of a whole sequence, which is known only at the end "
            "of that sequence; expected a held value: make what folds the first sequence and what "
            "starts from its row two models, and give the one's row to the other as an input with "
            "held=True"
        )
    if any(not row.held for row in starts):
        raise ValueError(
            "what a sequence starts from must be held for all of it; expected an input with "
            "held=True or what is computed of such"
        )
    shape = layer.output(reads)
    tokens = max((row.tokens for row in reads), default=0) if layer.keeps_tokens else 0
    moving = [row for row in beside if not row.held]
    if not moving:
        if layer.over_time:
            raise ValueError("it goes over time, and is given no rows that change with it")
        return Row(shape, tokens)
    if layer.over_time and any(row.folded for row in moving):
        raise ValueError("it goes over time, and is given a single row of a whole sequence")
    folded = {row.folded for row in moving}
    if len(folded) > 1:
        raise ValueError(
            "it meets a single row of a whole sequence with rows of every step; expected a fold "
            "with cumulative=True"
        )
    timing, ahead = _meet(moving)
    if layer.looks_ahead:
        ahead = ahead or f"layer {layer.name!r} {layer.looks_ahead}"
    whole, stream = layer.terms
    if (whole, stream) != (SAME, SAME):
        timing = timing.then(whole, stream)
    return Row(shape, tokens, timing, folded.pop() or layer.folds, ahead)


def _meet(moving: Sequence[Row]) -> tuple[Timing, str]:
    """The timing of rows of the same index, and why they need the end of the sequence."""
    ahead = next((row.looks_ahead for row in moving if row.looks_ahead), "")
    timing = moving[0].timing
    assert timing is not None
    for row in {row.timing: row for row in moving}.values():
        assert row.timing is not None
        if row.timing.rows != timing.rows:
            if not row.folded:
                raise ValueError(
                    f"rows of the same index meet, but of {T} steps the values have "
                    f"{' and '.join(str(r.timing.rows(T)) for r in moving if r.timing)} rows"
                    if (T := _differ(timing, row.timing))
                    else "rows of the same index meet, but the values do not have as many rows"
                )
            ahead = ahead or "two folds meet that have another number of rows behind them"
        # Of unlike folds there is a row when there is one of each: as of the one that is later.
        earlier, later = sorted((row.timing, timing), key=lambda timing: timing.rows.least())
        timing = later.meet(earlier)
        if len(timing.ready) > MAX_WAITS:
            raise ValueError(
                f"rows of the same index meet, which wait for more than {MAX_WAITS} values of "
                f"other delays before and behind changes of rate"
            )
    return timing, ahead


def _differ(a: Timing, b: Timing) -> int:
    """The smallest number of steps, up to a thousand, at which the numbers of rows differ; or 0."""
    return next((T for T in range(1, 1001) if a.rows(T) != b.rows(T)), 0)


def _bounded(what: str, row: Row) -> Row:
    """The row, if a stream of it can be paid for."""
    if len(row.shape) > MAX_AXES:
        raise ValueError(f"{what} has {len(row.shape)} axes; at most {MAX_AXES} are supported")
    if not all(1 <= size <= MAX_SIZE for size in row.shape) or row.size > MAX_ROW:
        raise ValueError(f"{what} has rows of {row}; from 1 to {MAX_ROW} numbers are supported")
    if row.timing and len(row.timing.rows.terms) > MAX_TERMS:
        raise ValueError(
            f"{what} has rows behind more than {MAX_TERMS} changes of rate that no single one "
            f"stands for"
        )
    if row.timing is None:
        return row
    rate = row.timing.rate
    if rate.rows > MAX_RATE * rate.steps or rate.steps > MAX_RATE * rate.rows:
        raise ValueError(
            f"{what} has {rate} rows for each step; at most {MAX_RATE}, or one in as "
            f"many steps, are supported"
        )
    return row


def _check_loop(group: Group, rows: dict[str, Row]) -> None:
    """Fill in the rows of nodes on loops: all of them have as many rows as what the loops read."""
    inside = {node.name for node in group.nodes}
    outside = [rows[name] for node in group.nodes for name in node.reads if name not in inside]
    moving = [row for row in outside if not row.held]
    names = ", ".join(map(repr, sorted(inside)[:5]))
    if not moving or any(row.folded for row in moving):
        raise ValueError(
            f"the loop through {names} reads no rows of every step; expected some, which tell how "
            f"many rows it has"
        )
    try:
        timing, ahead = _meet(moving)
    except ValueError as error:
        raise ValueError(f"the loop through {names}: {error}") from None
    for node in group.nodes:
        if isinstance(node.layer, Delay):
            rows[node.name] = Row(node.layer.shape, 0, timing, False, ahead)
    for node in group.nodes:
        layer = node.layer
        if layer.folds or layer.looks_ahead or layer.terms != (SAME, SAME):
            raise ValueError(
                f"layer {node.name!r} ({layer.kind}) is on a loop, and does not give one row, at "
                f"once, for each that it reads"
            )
        if not isinstance(layer, Delay):
            row = _row_of(node, rows)
            rows[node.name] = row._replace(timing=timing, looks_ahead=ahead)
    for node in group.nodes:
        if isinstance(node.layer, Delay):
            row = _row_of(node, rows)
            rows[node.name] = row._replace(timing=timing, looks_ahead=ahead)


def _comparisons(group: Group, rows: Mapping[str, Row]) -> int:
    """At most how many pairs of counts are compared where the rows that a group reads meet."""
    read = (rows.get(name) for node in group.nodes for name in node.reads)
    ready = {row.timing.ready for row in read if row and row.timing}
    if len(ready) < 2:
        return 0
    most = min(len(frozenset().union(*ready)), 2 * MAX_WAITS)
    return most * sum(map(len, ready))


def _queues(group: Group, rows: Mapping[str, Row]) -> dict[str, tuple[int, ...]]:
    """Of each node of a group, the rows of each of its reads that wait for those of the others."""
    inside = {node.name for node in group.nodes}
    outside = {name: rows[name] for node in group.nodes for name in node.reads}
    moving = {n: row for n, row in outside.items() if n not in inside and not row.held}
    waiting = dict.fromkeys(outside, 0)
    if len(moving) > 1 and not rows[group.nodes[0].name].looks_ahead:
        met, _ = _meet(list(moving.values()))
        waiting |= {n: row.timing.waiting(met) for n, row in moving.items() if row.timing}
    # Each number is taken out by the first read of the value, and 0 left to the others.
    return {node.name: tuple(waiting.pop(name, 0) for name in node.reads) for node in group.nodes}


def _work(nodes: Sequence[Node], rows: Mapping[str, Row]) -> int:
    """Multiply-adds that the nodes take for each step, rounded up."""
    total, steps = 0, 1
    for node in nodes:
        row = rows[node.name]
        rate = row.timing.rate if row.timing else Rate(1, 1)
        # A number that is moved or made by a function is as good as one multiply-add.
        own = rate.rows * (node.layer.work([rows[name] for name in node.reads]) + row.size)
        common = math.lcm(steps, rate.steps)
        total = total * (common // steps) + own * (common // rate.steps)
        steps = common
    return -(-total // steps)


def _tensors(graph: Graph) -> dict[str, Shape]:
    """Every tensor's full name and shape; layers that share one ask for the same shape."""
    tensors: dict[str, Shape] = {}
    own: dict[str, str] = {}  # of each tensor: the first layer that names it
    characters = 0
    for node in graph.nodes:
        shapes = node.layer.tensors()
        # The depth of a stack alone decides how many names a layer has: they are counted before
        # they are made. Those of all layers have no other bound than that on the depth of all.
        prefix = len(node.layer.weights or node.name) + 1
        _check_count(node, len(shapes), sum(prefix + len(suffix) for suffix in shapes))
        for suffix, name in node.layer.names().items():
            shape = shapes[suffix]
            if name not in tensors:
                tensors[name], own[name] = shape, node.name
                characters += len(name)
            elif tensors[name] != shape:
                raise ValueError(
                    f"layers {own[name]!r} and {node.name!r} share tensor {name!r}, but ask for "
                    f"shapes {tensors[name]} and {shape}"
                )
        _check_count(node, len(tensors), characters)
    return tensors


def _check_count(node: Node, count: int, characters: int) -> None:
    if count > MAX_TENSORS or characters > MAX_NAMES:
        raise ValueError(
            f"the layers up to {node.name!r} have {count} tensors, whose names are {characters} "
            f"characters long; at most {MAX_TENSORS} tensors, and {MAX_NAMES} characters, are "
            f"supported"
        )
