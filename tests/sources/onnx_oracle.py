"""What onnxruntime gives for an ONNX model, and what the graph gives that it was converted to.

Nothing here is under test. The graph is run by the NumPy reference in float64, and by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastlstm import Model, reference
from fastlstm.format import ModelFile
from fastlstm.signature import TIME
from fastlstm.sources import Conversion, read
from fastlstm.verification.program import arranged, rows_in

__all__ = ["agree", "forward", "runtime"]

Array = npt.NDArray[Any]

STEPS, ROWS = 9, 3


def runtime(model: Any, **inputs: Array) -> dict[str, Array]:
    """All outputs of one call of onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def forward(made: Conversion, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the graph gives for rows (T, B, *shape), and (B, *shape) of what is held."""
    return dict(reference.forward(made.graph, made.tensors, inputs, dtype=np.float64))


def agree(
    model: Any,
    rng: np.random.Generator,
    *,
    steps: int = STEPS,
    rows: int = ROWS,
    scale: float = 1.0,
    given: Mapping[str, Array] | None = None,
    **options: Any,
) -> Conversion:
    """Convert a model and compare: each output, of random inputs, whole or one step a call.

    Parameters
    ----------
    steps, rows : int
        Where the model leaves them open.
    given : mapping of str to array, optional
        Constants, by the names of inputs.
    **options
        Of :func:`fastlstm.sources.read`.
    """
    made = read(model, **options)
    assert made.call is not None
    arguments = [a for a in made.call.arguments if a.role == "rows"]
    ports = {i.name: _shape(i) for i in model.graph.input}
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    for axis, name in ((TIME, "steps"), ("batch", "rows")):
        for a in arguments:
            if axis in a.axes and (size := ports[a.name][a.axes.index(axis)]):
                steps, rows = (size, rows) if name == "steps" else (steps, size)
    if not any("batch" in a.axes for a in arguments):
        rows = 1
    x: dict[str, Array] = {}
    for a in arguments:
        row = next(i for i in made.graph.inputs if i.name == a.value)
        lead = (rows,) if row.held else (steps, rows)
        if row.tokens:
            x[a.value] = rng.integers(0, row.tokens, (*lead, *row.shape))
        else:
            x[a.value] = (scale * rng.standard_normal((*lead, *row.shape))).astype(np.float32)
    timed = any(TIME in a.axes for a in arguments)
    fed = {name: array.astype(_dtype(kinds[name])) for name, array in (given or {}).items()}
    fed |= {
        a.name: np.zeros([rows if n == "batch" else n for n in a.axes], np.float32)
        for a in made.call.arguments
        if a.role == "state"
    }
    states = {a.name: a.value for a in made.call.arguments if a.role == "state"}
    held = {i.name for i in made.graph.inputs if i.held}
    parts: list[dict[str, Array]] = []
    for t in range(1 if timed else steps):
        call = {
            a.name: arranged(
                x[a.value] if timed or a.value in held else x[a.value][t : t + 1],
                a,
                a.value in held,
            ).astype(_dtype(kinds[a.name]))
            for a in arguments
        }
        outputs = runtime(model, **call, **fed)
        fed |= {name: outputs[output] for name, output in states.items()}
        parts.append(
            {
                a.value: rows_in(outputs[a.name], a, _row(made, a.value), rows)
                for a in made.call.outputs
                if a.role == "rows"
            }
        )
    expected = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    engine = Model(ModelFile(made.graph, made.tensors))
    y, _ = engine(x if len(x) > 1 or held else next(iter(x.values())))
    by_engine = y if isinstance(y, dict) else {next(iter(made.graph.outputs)): y}
    by_reference = forward(made, x)
    assert expected.keys() == by_reference.keys() == by_engine.keys()
    for name, wanted in expected.items():
        for got, tolerance in ((by_reference[name], 2e-5), (by_engine[name], 1e-4)):
            largest = max(np.abs(wanted).max(), 1e-3)
            np.testing.assert_allclose(
                np.reshape(got, wanted.shape), wanted, rtol=0, atol=tolerance * largest
            )
    return made


def _shape(port: Any) -> list[int]:
    return [dim.dim_value for dim in port.type.tensor_type.shape.dim]


def _dtype(code: int) -> Any:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(code)


def _row(made: Conversion, name: str) -> Any:
    from fastlstm import spec

    return spec.check(made.graph).rows[made.graph.outputs[name]]
