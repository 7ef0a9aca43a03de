"""Read a ``.pt2`` file of ``torch.export.save``: its graph, followed without torch.

The graph is one of operators of ATen, which drive the one builder of graphs. Buffers that it
changes are the state that a stream carries, and so are inputs that it gives back.
"""

from __future__ import annotations

from fastlstm.sources.aten.forward import convert
from fastlstm.sources.conversion import Conversion
from fastlstm.sources.exported.archive import Source, is_exported, read_exported
from fastlstm.sources.exported.program import ExportedForward

__all__ = ["is_exported", "read"]


def read(source: Source, dtype: str = "float32") -> Conversion:
    """Read an exported program.

    Parameters
    ----------
    source : path or binary file
        What ``torch.export.save`` wrote.
    dtype : {"float32", "float64"}
        What the model is stored in.

    Raises
    ------
    ConvertError
        If the file is damaged, or the program computes what no graph can; the message names the
        operator.
    OSError
        If the file cannot be read.
    """
    forward = ExportedForward(read_exported(source))
    return convert(forward, "the graph of the exported program was followed", dtype)
