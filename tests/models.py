"""Random models for the tests, and the same models in torch.

Nothing here is under test. Weights are drawn as ``torch.nn`` draws them, uniform within
``1 / sqrt(hidden_size)``, so that errors measured here are those of real models.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import Model, _engine, spec
from fastlstm.format import ModelFile

LANES = dict(_engine.kernels(4))
"""Lanes of every float32 kernel that this machine can run, best first."""

ISAS = list(LANES)

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def recurrent(
    cell: str, input_size: int, hidden_size: int, name: str = "rnn", **options: Any
) -> spec.Recurrent:
    """The layer of one of CELLS."""
    kind, _, nonlinearity = cell.partition("_")
    if kind == "rnn":
        options["nonlinearity"] = nonlinearity
    cls = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}[kind]
    return cls(name, input_size, hidden_size, **options)


def random_tensors(
    layers: Sequence[spec.Layer], rng: np.random.Generator, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    tensors = {}
    for layer in layers:
        bound = getattr(layer, "hidden_size", layer.input_size) ** -0.5
        for name, shape in layer.tensors().items():
            limit = 1.0 if isinstance(layer, spec.Embedding) else bound
            tensors[name] = rng.uniform(-limit, limit, shape).astype(dtype)
    return tensors


def model_file(
    layers: Sequence[spec.Layer] | spec.Layer,
    rng: np.random.Generator | None = None,
    dtype: Any = np.float32,
) -> ModelFile:
    """A model of random weights, as a file would hold it; without weights no rng is needed."""
    layers = (layers,) if isinstance(layers, spec.Layer) else tuple(layers)
    spec.check_layers(layers)
    return ModelFile(layers, random_tensors(layers, rng, dtype) if rng else {})


def build(
    layers: Sequence[spec.Layer] | spec.Layer,
    rng: np.random.Generator | None = None,
    dtype: Any = np.float32,
    **options: Any,
) -> Model:
    """A model of random weights; options are those of Model: isa, reproducible."""
    return Model(model_file(layers, rng, dtype), **options)


def input_for(model: Model, rng: np.random.Generator, *leading: int) -> np.ndarray:
    """Random input of shape ``(*leading, I)``, or tokens of shape ``leading``."""
    if model.takes_tokens:
        return rng.integers(0, model.input_size, leading)
    return rng.standard_normal((*leading, model.input_size)).astype(model.dtype)


def state_for(model: Model, rng: np.random.Generator, batch: int | None) -> dict[str, np.ndarray]:
    zeros = model.zero_state(batch)
    return {n: rng.uniform(-1, 1, a.shape).astype(a.dtype) for n, a in zeros.items()}


# The same in torch, which must be installed for what follows


def torch_module(layer: spec.Layer, tensors: Mapping[str, np.ndarray], dtype: Any = None) -> Any:
    """The ``torch.nn`` module of a layer, with its weights, in eval mode."""
    import torch

    if isinstance(layer, spec.Recurrent):
        options = {n: getattr(layer, n) for n in ("num_layers", "bias", "bidirectional")}
        if layer.projection:
            options["proj_size"] = layer.projection
        if isinstance(layer, spec.RNN):
            options["nonlinearity"] = layer.nonlinearity
        cls = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[layer.kind]
        module = cls(layer.input_size, layer.hidden_size, **options)
    elif isinstance(layer, spec.Linear):
        module = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias)
    elif isinstance(layer, spec.Embedding):
        module = torch.nn.Embedding(layer.num_embeddings, layer.embedding_dim)
    elif isinstance(layer, spec.Activation):
        classes = {
            "relu": torch.nn.ReLU,
            "tanh": torch.nn.Tanh,
            "sigmoid": torch.nn.Sigmoid,
            "softmax": lambda: torch.nn.Softmax(-1),
            "log_softmax": lambda: torch.nn.LogSoftmax(-1),
        }
        module = classes[layer.function]()
    else:
        raise TypeError(layer.kind)
    own = {n: torch.from_numpy(np.array(tensors[n])) for n in layer.tensors()}
    if own:
        module = module.to(dtype or next(iter(own.values())).dtype)
    module.load_state_dict({n.removeprefix(layer.name + "."): t for n, t in own.items()})
    return module.eval()


def torch_forward(
    layers: Sequence[spec.Layer],
    tensors: Mapping[str, np.ndarray],
    x: np.ndarray,
    state: Mapping[str, np.ndarray] | None = None,
    dtype: str | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What torch gives for ``model(x, state)``: x (T, B, I) or (T, I), or tokens."""
    import torch

    real = getattr(torch, dtype) if dtype else None
    after: dict[str, np.ndarray] = {}
    value = torch.from_numpy(np.array(x))
    if real and value.is_floating_point():
        value = value.to(real)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        for layer in layers:
            if isinstance(layer, spec.OneHot):
                value = torch.nn.functional.one_hot(value, layer.num_classes)
                value = value.to(real or torch.float32)
                continue
            module = torch_module(layer, tensors, real)
            if not isinstance(layer, spec.Recurrent):
                value = module(value)
                continue
            hx = None
            names = list(layer.state())
            if state is not None:
                arrays = [torch.from_numpy(np.array(state[n])).to(value.dtype) for n in names]
                hx = tuple(arrays) if layer.has_cell_state else arrays[0]
            value, hx = module(value, hx)
            hx = hx if isinstance(hx, tuple) else (hx,)
            after |= {n: h.numpy() for n, h in zip(names, hx, strict=True)}
    return value.numpy(), after
