"""Models in fewer bytes, and their files taken apart.

Nothing here is under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from one_layer import draw
from sealing import seal

import fastlstm
from fastlstm import spec
from fastlstm.format import ModelFile
from fastlstm.measured import Errors, Measured
from fastlstm.reduced import Reduced

__all__ = [
    "GRAPH",
    "MEASURED",
    "float32_model",
    "in_precision",
    "model_file",
    "parts_of",
    "put_together",
    "weights",
]

# An embedding, a recurrence and a linear layer.
GRAPH = spec.Graph.chain(
    [spec.Embedding("e", 11, 6), spec.LSTM("l", 6, 8), spec.Linear("o", 8, 5)],
)

MEASURED = Measured(10, False, {"output": Errors(0.01, 0.001, 1e-7, 1e-8, 1.5)})


def weights(graph: spec.Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As torch draws them, for hidden sizes near these."""
    return {name: (0.4 * w).astype(np.float32) for name, w in draw(graph, rng).items()}


def in_precision(
    graph: spec.Graph, tensors: Mapping[str, Any], scheme: str | Mapping[str, str]
) -> dict[str, Any]:
    """The tensors, those of layers that a scheme names in that precision, where they can be."""
    made = {name: np.asarray(w, np.float32) for name, w in tensors.items()}
    for one in spec.stored(graph, spec.check(graph).tensors):
        kind = scheme if isinstance(scheme, str) else scheme.get(one.layers[0], "float32")
        if kind != "float32" and kind not in one.refused:
            made |= {name: Reduced.of(made[name], kind, axis) for name, axis in one.axes.items()}
    return made


def model_file(rng: np.random.Generator, scheme: str | Mapping[str, str] = "int8") -> ModelFile:
    """What a file holds of such a model."""
    return ModelFile(GRAPH, in_precision(GRAPH, weights(GRAPH, rng), scheme), measured=MEASURED)


def float32_model(graph: spec.Graph, rng: np.random.Generator, **options: Any) -> fastlstm.Model:
    """A model of random weights."""
    return fastlstm.Model(ModelFile(graph, weights(graph, rng)), **options)


def parts_of(data: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """The document, the entries and the bytes of the tensors of a file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header.pop("__metadata__")["fastlstm"])
    body = data[8 + length :]
    return document, header, {n: body[slice(*e["data_offsets"])] for n, e in header.items()}


def put_together(
    document: dict[str, Any], entries: dict[str, Any], contents: dict[str, bytes]
) -> bytes:
    """The inverse, with a digest that is right."""
    document = {"sha256": "0" * 64} | {k: v for k, v in document.items() if k != "sha256"}
    header: dict[str, Any] = {
        "__metadata__": {"fastlstm": json.dumps(document, separators=(",", ":"))}
    }
    begin = 0
    for name, content in contents.items():
        end = begin + len(content)
        header[name] = entries[name] | {"data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return seal(len(text).to_bytes(8, "little") + text + b"".join(contents.values()))
