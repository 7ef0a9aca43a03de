"""A speech enhancer, ``gtcrn/gtcrn.onnx``: a frame of a spectrum a call, and three caches.

The caches are the last frames that the convolutions over time see, and the states of the GRUs over
time: six that weigh channels (``tra``), four that run from frame to frame for each frequency
(``inter``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
from onnx_program import Program

from fastlstm import spec

__all__ = ["CACHES", "enhancer"]

CACHES = {name: f"{name}_out" for name in ("conv_cache", "tra_cache", "inter_cache")}


def enhancer(
    path: Path, *, recognised: bool, caches: bool = False
) -> tuple[spec.Graph, dict[str, npt.NDArray[Any]]]:
    """The enhancer as a graph: from ``mix`` to ``enh``, and the caches after each frame."""
    outputs = ["enh", *(CACHES.values() if caches else ())]
    return Program(path, CACHES).graph(outputs, recognised=recognised)
