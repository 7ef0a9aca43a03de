"""One builder of graphs by array operations, which every array program drives.

A traced module, a TorchScript archive, an exported or ONNX graph: each says matmul, conv, slice,
cat, lstm of arrays that have axes, and no word about which of them is time. The arrays here hold
:mod:`.places` in place of numbers, so that a movement is NumPy's own; an operation that computes
something finds out what its axes are, reads the rows it needs, and adds a node to the graph.
:func:`follow` runs a program so, as often as it takes to find out what its inputs are.
"""

from __future__ import annotations

from fastlstm.sources.arrays.core import ShortError, SizeError, Value
from fastlstm.sources.arrays.matrices import Matrices
from fastlstm.sources.arrays.recurrent import Recurrences
from fastlstm.sources.arrays.sliding import Sliding

__all__ = ["Builder", "ShortError", "SizeError", "Value"]


class Builder(Matrices, Sliding, Recurrences):
    """Operations on arrays, each of which adds to a graph."""
