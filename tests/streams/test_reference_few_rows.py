"""The reference's stream on pieces of no rows, and of layers over time that keep no state."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastlstm import reference, spec

LAYERS = {
    "index": (spec.Index.of("layer", np.arange(12).reshape(3, 4)), (12,)),
    "group_norm": (spec.GroupNorm("layer", 2, 4), (4, 3)),
    "grouped": (spec.Convolution("layer", 4, 2, (3,), 2, padding=((1, 1),)), (4, 5)),
    "transposed": (spec.Convolution("layer", 4, 2, (3,), 2, transposed=True), (4, 5)),
    "pointwise": (spec.Convolution("layer", 4, 3, (1,), over_time=True), (4,)),
    "gru": (spec.GRU("layer", 4, 3, bidirectional=True, along="positions"), (5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_pieces_of_no_rows(name: str, rng: np.random.Generator) -> None:
    layer, shape = LAYERS[name]
    graph = spec.Graph.chain([layer], shape=shape)
    tensors = {n: rng.standard_normal(s) for n, s in spec.check(graph).tensors.items()}
    x = rng.standard_normal((7, 2, *shape))
    whole = reference.forward(graph, tensors, {"input": x})["output"]
    assert len(whole) == 7
    stream = reference.Stream(graph, tensors, 2)
    cuts = [0, 0, 1, 1, 4, 7, 7]
    pieces = [
        stream.run({"input": x[start:stop]})["output"] for start, stop in itertools.pairwise(cuts)
    ]
    pieces.append(stream.flush()["output"])
    assert [len(piece) for piece in pieces] == [0, 1, 0, 3, 3, 0, 0]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-12, atol=1e-12)
