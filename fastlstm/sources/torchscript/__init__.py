"""Read an archive of ``torch.jit.save``: its forward is followed, without torch, and never run.

What the archive's code computes of arrays drives the one builder of graphs. Buffers and attributes
that forward changes are the state that a stream carries, and so are arguments that it gives back.
"""

from __future__ import annotations

import io
import sys
from typing import Any, BinaryIO

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.forward import convert
from fastlstm.sources.conversion import Conversion
from fastlstm.sources.torchscript.archive import Source, is_archive, read_archive
from fastlstm.sources.torchscript.program import ScriptForward

__all__ = ["is_archive", "read", "saved"]


def saved(source: object) -> BinaryIO | None:
    """The archive that a scripted module in memory would be saved as; None of all else."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.jit.ScriptModule):
        return None
    try:
        return io.BytesIO(source.save_to_buffer())
    except RuntimeError as error:
        raise ConvertError(f"torch cannot save the scripted module: {error}") from None


def read(source: Source, dtype: str = "float32") -> Conversion:
    """Read an archive of TorchScript.

    Parameters
    ----------
    source : path or binary file
        What ``torch.jit.save`` wrote.
    dtype : {"float32", "float64"}
        What the model is stored in.

    Raises
    ------
    ConvertError
        If the file is damaged, or forward computes what no graph can; the message names the
        operator and the line.
    OSError
        If the file cannot be read.
    """
    forward = ScriptForward(read_archive(source))
    return convert(forward, "forward was followed in the code of the archive", dtype)
