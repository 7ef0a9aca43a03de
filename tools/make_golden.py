"""Record what torch computes, so that the tests mean something where torch is not installed.

Writes ``tests/data/golden.npz``: for every small case torch's outputs and final states in float32
and in float64, and for every long one the largest errors of torch's float32 against its float64.
Weights and inputs are not stored: they are drawn again from the case's seed, by NumPy's legacy
generator, whose numbers never change, and a checksum tells if they did.

    python tools/make_golden.py [FILE]

Shapes: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``O`` output.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden.npz"

T, B = 6, 2  # of a small case
LONG_T, LONG_B, LONG_SEEDS = 32, 8, 7

Layer = Mapping[str, Any]
Arrays = dict[str, np.ndarray]


def recurrent(kind: str, I: int, H: int, name: str = "rnn", **options: Any) -> Layer:  # noqa: E741
    common = {"num_layers": 1, "bias": True, "bidirectional": False}
    own = {"lstm": {"proj_size": 0}, "gru": {}, "rnn": {"nonlinearity": "tanh"}}[kind]
    sizes = {"kind": kind, "name": name, "input_size": I, "hidden_size": H}
    return sizes | common | own | options


def activation(function: str, size: int) -> Layer:
    return {"kind": "activation", "name": function, "function": function, "size": size}


def linear(I: int, O: int, name: str = "out", bias: bool = True) -> Layer:  # noqa: E741
    sizes = {"in_features": I, "out_features": O}
    return {"kind": "linear", "name": name, "bias": bias} | sizes


CELLS = {
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "rnn_tanh": ("rnn", {}),
    "rnn_relu": ("rnn", {"nonlinearity": "relu"}),
}


def small_cases() -> dict[str, Sequence[Layer]]:
    """Name -> layers."""
    cases: dict[str, Sequence[Layer]] = {}
    for cell, (kind, options) in CELLS.items():
        cases[cell] = [recurrent(kind, 9, 17, **options)]
        cases[f"{cell}_one"] = [recurrent(kind, 1, 1, **options)]
        cases[f"{cell}_stack"] = [recurrent(kind, 5, 8, num_layers=3, bias=False, **options)]
        both = options | {"bidirectional": True}
        cases[f"{cell}_both_ways"] = [recurrent(kind, 3, 9, num_layers=2, **both)]
    cases["lstm_proj"] = [recurrent("lstm", 6, 19, num_layers=2, proj_size=7)]
    both = {"bidirectional": True, "proj_size": 3, "bias": False}
    cases["lstm_proj_both_ways"] = [recurrent("lstm", 4, 9, num_layers=2, **both)]
    for function in ("relu", "tanh", "sigmoid", "softmax", "log_softmax"):
        cases[function] = [linear(7, 20), activation(function, 20)]
    cases["linear"] = [linear(7, 33, bias=False)]
    cases["classifier"] = [
        {"kind": "embedding", "name": "e", "num_embeddings": 12, "embedding_dim": 5},
        recurrent("gru", 5, 10, "encoder"),
        recurrent("lstm", 10, 9, "rnn", num_layers=2),
        linear(9, 12),
        activation("log_softmax", 12),
    ]
    return cases


def long_cases() -> dict[str, Layer]:
    """Name -> the one layer, run over a long sequence to see its rounding errors."""
    sizes = ((16, 16), (1, 64), (40, 128), (128, 128), (256, 256))
    return {
        f"{cell}_{I}_{H}": recurrent(kind, I, H, **options)
        for cell, (kind, options) in CELLS.items()
        for I, H in sizes  # noqa: E741
    }


def draw(name: str, layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """The weights of a case: uniform, as torch draws them, in the order of ``shapes``."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    sizes = {la["name"]: la.get("hidden_size", la.get("in_features", 1)) for la in layers}
    bounds = {tensor: sizes[tensor.rpartition(".")[0]] ** -0.5 for tensor in shapes}
    return {
        tensor: ((2 * random.random_sample(shape) - 1) * bounds[tensor]).astype(np.float32)
        for tensor, shape in shapes.items()
    }


def draw_input(name: str, first: Layer, T: int = T, B: int = B) -> np.ndarray:
    """The input of a case: float32 (T, B, I), or int64 (T, B) of tokens."""
    random = np.random.RandomState(zlib.crc32(b"input of " + name.encode()))
    if first["kind"] == "embedding":
        return random.randint(0, first["num_embeddings"], (T, B)).astype(np.int64)
    I = first.get("input_size", first.get("in_features"))  # noqa: E741
    return random.standard_normal((T, B, I)).astype(np.float32)


def checksum(x: np.ndarray, tensors: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the input and the weights, of the same bytes on every machine."""
    total = zlib.crc32(x.astype(x.dtype.newbyteorder("<")).tobytes())
    for tensor, array in tensors.items():
        total = zlib.crc32(tensor.encode() + array.astype("<f4").tobytes(), total)
    return total


def make_module(layer: Layer) -> Any:
    """The module of ``torch.nn`` that a layer describes."""
    import torch

    kind = layer["kind"]
    if kind == "activation":
        classes = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        classes |= {"softmax": "Softmax", "log_softmax": "LogSoftmax"}
        dim = [-1] if "softmax" in layer["function"] else []
        return getattr(torch.nn, classes[layer["function"]])(*dim)
    names = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "linear": "Linear"}
    options = {k: v for k, v in layer.items() if k not in ("kind", "name")}
    return getattr(torch.nn, names.get(kind, "Embedding"))(**options)


def run_torch(
    layers: Sequence[Layer], tensors: Arrays, x: np.ndarray, double: bool
) -> tuple[np.ndarray, Arrays]:
    """Output (T, B, O) and final states of a model in torch, in float32 or float64."""
    import torch

    real = torch.float64 if double else torch.float32
    value, states = torch.from_numpy(x), {}
    value = value if layers[0]["kind"] == "embedding" else value.to(real)
    with torch.no_grad():
        for layer in layers:
            module, prefix = make_module(layer), f"{layer['name']}."
            own = {n: torch.from_numpy(a) for n, a in tensors.items() if n.startswith(prefix)}
            module.load_state_dict({n.removeprefix(prefix): t for n, t in own.items()})
            value = module.to(real).eval()(value)
            if isinstance(value, tuple):
                value, state = value
                parts = state if isinstance(state, tuple) else (state,)
                names = (f"{prefix}{letter}" for letter in "hc")
                states |= dict(zip(names, (part.numpy() for part in parts), strict=False))
    return value.numpy(), states


def shapes_of(layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer['name']}.{name}": tuple(tensor.shape)
        for layer in layers
        for name, tensor in make_module(layer).state_dict().items()
    }


def record() -> tuple[dict[str, Any], Arrays]:
    """What goes into the file: notes, as JSON values, and arrays."""
    import torch

    notes: dict[str, Any] = {"torch": torch.__version__, "small": {}, "long": {}}
    arrays: Arrays = {}
    for name, layers in small_cases().items():
        tensors, x = draw(name, layers, shapes_of(layers)), draw_input(name, layers[0])
        notes["small"][name] = {"layers": layers, "checksum": checksum(x, tensors)}
        for double in (False, True):
            y, states = run_torch(layers, tensors, x, double)
            bits = 64 if double else 32
            arrays |= {f"{name}/{bits}/{k}": a for k, a in ({"y": y} | states).items()}
    for name, layer in long_cases().items():
        sums, errors = [], []
        for seed in range(LONG_SEEDS):
            case = f"{name} {seed}"
            tensors = draw(case, [layer], shapes_of([layer]))
            x = draw_input(case, layer, LONG_T, LONG_B)
            y32, y64 = (run_torch([layer], tensors, x, double)[0] for double in (False, True))
            sums.append(checksum(x, tensors))
            errors.append(float(np.abs(y32 - y64).max()))
        notes["long"][name] = {"layer": layer, "checksums": sums, "errors": errors}
    return notes, arrays


def main(path: Path = FILE) -> None:
    notes, arrays = record()
    text = np.frombuffer(json.dumps(notes, sort_keys=True).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, notes=text, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size} bytes, torch {notes['torch']}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
