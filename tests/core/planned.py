"""A planned graph beside the reference: the same rows of every call of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from program_in_numpy import NumPyProgram

from fastlstm import spec
from fastlstm.plan.lowering import plan
from fastlstm.plan.program import Program

__all__ = ["Planned", "moved_numbers"]

Array = Any
Inputs = Mapping[str, Array]


class Planned:
    """A graph as a program in NumPy.

    Rows are compared number by number; each may differ by `rounding` of itself and of the largest
    of its output.
    """

    def __init__(
        self, graph: spec.Graph, tensors: Inputs, *, dtype: Any = np.float64, rounding: float = 1e-9
    ) -> None:
        self.graph, self.tensors, self.facts = graph, tensors, spec.check(graph)
        self.dtype, self.rounding = dtype, rounding
        self.program = Program.from_bytes(plan(graph, tensors, self.facts).to_bytes())
        self.program.__dict__ |= {
            name: value
            for name, value in plan(graph, tensors, self.facts).__dict__.items()
            if name.endswith("_names")
        }
        self.run = NumPyProgram(
            self.program, [tensors[name] for name in self.program.tensor_names], dtype
        )
