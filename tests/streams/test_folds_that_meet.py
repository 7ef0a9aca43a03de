"""Folds of values with unlike numbers of rows meet at the end of a sequence."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import reference, spec


@pytest.mark.parametrize("T", [0, 1, 2, 9])
def test_the_last_rows_of_folds_meet(T, rng):
    nodes = [
        spec.Node(spec.Slice("some", step=3), ("x",)),
        spec.Node(spec.Fold("few", "sum"), ("some",)),
        spec.Node(spec.Fold("all", "max"), ("x",)),
        spec.Node(spec.Arithmetic("both", "add"), ("few", "all")),
        spec.Node(spec.Arithmetic("again", "add"), ("both", "few")),
    ]
    graph = spec.Graph([spec.Input("x", (2,))], nodes, {"y": "again"})
    x = rng.normal(size=(T, 3, 2))
    whole = reference.forward(graph, {}, {"x": x})["y"]
    if T:
        np.testing.assert_allclose(whole[0], 2 * x[::3].sum(axis=0) + x.max(axis=0), rtol=1e-12)
    y = reference.Stream(graph, {}, 3).finish({"x": x})["y"]
    np.testing.assert_allclose(y[-1:], whole, rtol=1e-12)
