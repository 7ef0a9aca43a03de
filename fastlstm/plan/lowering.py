"""From a graph to a program."""

from __future__ import annotations

from fastlstm import spec
from fastlstm.plan import recurrent, rows, sliding, time
from fastlstm.plan.emission import emitted
from fastlstm.plan.planner import Lower, Planner
from fastlstm.plan.program import Program
from fastlstm.reduced import Tensors

__all__ = ["LOWERS", "plan"]

LOWERS: dict[type[spec.Layer], Lower] = {
    **rows.LOWERS,
    **time.LOWERS,
    **sliding.LOWERS,
    **recurrent.LOWERS,
}


def plan(graph: spec.Graph, tensors: Tensors, facts: spec.Facts | None = None) -> Program:
    """Plan a graph once, for any number of streams, chunks and instruction sets.

    Parameters
    ----------
    graph : spec.Graph
    tensors : mapping of str to array or Reduced
        Its tensors. What is derived of them is derived in float64; the others lie beside the
        program, in the order of its ``tensor_names``, as they are stored.
    facts : spec.Facts, optional
        What ``spec.check`` finds of the graph, if it was asked already.

    Raises
    ------
    ValueError
        If the graph does not fit together.
    """
    planner = Planner(graph, spec.check(graph) if facts is None else facts, tensors, LOWERS)
    planner.lower()
    return emitted(planner)
