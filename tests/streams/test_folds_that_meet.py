"""Folds of values with unlike numbers of rows meet at the end of a sequence."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import reference, spec


@pytest.mark.parametrize("reads", [("few", "all"), ("all", "few")], ids=str)
@pytest.mark.parametrize("T", [0, 1, 2, 9])
def test_the_last_rows_of_folds_meet(T, reads, rng):
    nodes = [
        spec.Node(spec.Slice("some", start=1, step=3), ("x",)),
        spec.Node(spec.Fold("few", "sum"), ("some",)),
        spec.Node(spec.Fold("all", "max"), ("x",)),
        spec.Node(spec.Arithmetic("both", "add"), reads),
        spec.Node(spec.Arithmetic("again", "add"), ("both", "few")),
    ]
    graph = spec.Graph([spec.Input("x", (2,))], nodes, {"y": "again"})
    x = rng.normal(size=(T, 3, 2))
    whole = reference.forward(graph, {}, {"x": x})["y"]
    for name in ("both", "again"):
        rows = spec.check(graph).rows[name].timing.rows(T)
        assert min(rows, 1) == len(whole) == (T >= 2)
    if len(whole):
        np.testing.assert_allclose(whole[0], 2 * x[1::3].sum(axis=0) + x.max(axis=0), rtol=1e-12)
    y = reference.Stream(graph, {}, 3).finish({"x": x})["y"]
    np.testing.assert_allclose(y[-1:], whole, rtol=1e-12)
