"""Nodes that no output depends on: the reference does not run them, whole or as a stream."""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import draw, in_pieces, inputs_of

from fastlstm import reference, spec
from fastlstm.reference import stream

INPUTS = [spec.Input("x", (3,)), spec.Input("k", (4,), held=True)]
NEEDED = [
    spec.Linear("in", 3, 4)("x"),
    spec.Arithmetic("sum", "add")("in", "before"),
    spec.Activation("out", "tanh")("sum"),
    spec.Delay("before", (4,), 2)("out"),
]
UNNEEDED = {
    "what looks ahead": [
        spec.GRU("both ways", 4, 4, bidirectional=True)("in"),
        spec.Linear("half", 8, 3)("both ways"),
    ],
    "a loop": [
        spec.LSTM("of a loop", 4, 4)("mixed"),
        spec.Delay("later", (4,))("of a loop"),
        spec.Arithmetic("mixed", "add")("later", "out"),
    ],
    "held values": [spec.Linear("style", 4, 5)("k"), spec.Softmax("softmax")("style")],
    "rows that wait": [
        spec.Convolution("late", 4, 4, (5,), over_time=True, padding=((2, 2),))("sum"),
        spec.Arithmetic("met", "add")("late", "out"),
        spec.Fold("most", "max")("met"),
    ],
}


@pytest.mark.parametrize("name", UNNEEDED)
def test_they_do_not_run(name, rng, monkeypatch):
    nodes = [*UNNEEDED[name], *NEEDED]
    graph = spec.Graph(INPUTS, nodes, {"y": "out"})
    tensors = draw(graph, rng)
    inputs = inputs_of(graph, 9, 2, rng)
    # Their tensors belong to the file, and would show in whatever they were used for.
    unneeded = {node.layer.kind for node in UNNEEDED[name]}
    for known in (stream.OVER_TIME, stream.WITHIN_STEP):
        for kind in [kind for kind in known if kind.kind in unneeded - {"linear", "arithmetic"}]:
            if kind is not spec.Delay:
                monkeypatch.delitem(known, kind)
    without = spec.Graph(INPUTS, NEEDED, {"y": "out"})
    expected = reference.forward(without, tensors, inputs)["y"]
    np.testing.assert_array_equal(reference.forward(graph, tensors, inputs)["y"], expected)
    np.testing.assert_array_equal(in_pieces(graph, tensors, inputs, rng)["y"], expected)
    made = reference.Stream(graph, tensors, 2, held={"k": inputs["k"]})
    assert set(made.state) == {"before.x"}
    needed = {full: tensors[full] for full in spec.check(without).tensors}
    np.testing.assert_array_equal(reference.forward(graph, needed, inputs)["y"], expected)


def test_a_node_that_does_not_fit_is_refused_all_the_same():
    nodes = [*NEEDED, spec.Linear("unread", 5, 5)("out")]
    with pytest.raises(ValueError, match="layer 'unread'"):
        spec.check(spec.Graph(INPUTS, nodes, {"y": "out"}))
