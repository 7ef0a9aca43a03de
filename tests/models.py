"""Random models for the tests, and the same models in torch.

Nothing here is under test. Weights are drawn as ``torch.nn`` draws them, uniform within
``1 / sqrt(hidden_size)``, so that errors measured here are those of real models.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import chain as spec
import numpy as np
from chain import reference
from chain.lower import lowered, raised

from fastlstm import Model, _engine
from fastlstm.format import ModelFile
from fastlstm.spec import check

LANES = dict(_engine.kernels(4, of_floats=True))
"""Lanes of every kernel for floats that this machine can run, best first."""

ISAS = list(LANES)


def by_turns(values: Iterable[Any]) -> list[tuple[Any, str]]:
    """Each of the values with a kernel of this machine: for what no kernel does by itself."""
    return [(value, ISAS[number % len(ISAS)]) for number, value in enumerate(values)]


class ChainFile(ModelFile):
    """What a file holds of a model that is a chain of layers."""

    def __init__(
        self,
        layers: Sequence[spec.Layer],
        tensors: dict[str, np.ndarray],
        self_check: tuple[np.ndarray, np.ndarray] | None = None,
        vocabulary: tuple[str, ...] | None = None,
        source: Mapping[str, str] | None = None,
    ) -> None:
        spec.check_layers(tuple(layers))
        graph = lowered(tuple(layers))
        check = None
        if self_check is not None:
            check = ({graph.inputs[0].name: self_check[0]}, {"output": self_check[1]})
        super().__init__(graph, tensors, check, vocabulary, dict(source or {}))

    @property
    def layers(self) -> tuple[spec.Layer, ...]:
        return raised(self.graph)


def chain_of(model: Any) -> tuple[spec.Layer, ...]:
    """The chain of layers that a model is."""
    return raised(model.graph)


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


def every_kind(L: int) -> dict[str, tuple[spec.Layer, ...]]:
    """Models of every kind of layer that is not PyTorch's plain cell.

    The sizes of most have full vectors and a remainder for L lanes.
    """
    H, M = 2 * L + 3, L + 2
    odd = ("hard_sigmoid(0.2, 0.5)", "softsign", "scaled_tanh(1.7, 0.6)")
    frame = spec.FrameConv1d(
        "conv", 2, 6, 3, 2, width=2 * M, padding_left=1, padding_right=2, padding_mode="reflect"
    )
    width = frame.out_width
    again = spec.FrameConv1d("again", 3, M, 3, dilation=2, width=width, padding_left=2)
    return {
        "peepholes": (spec.LSTM("a", L + 1, H, 2, peepholes=True),),
        "coupled": (
            spec.LSTM(
                "a", 3, H, 2, False, proj_size=M, coupled=True, peepholes=True, cell_clip=0.4
            ),
        ),
        "clipped": (spec.LSTM("a", 3, H, clip=0.7, cell_clip=0.3, activations=odd),),
        "norm_product": (spec.LSTM("a", L + 1, H, 2, layer_norm="product", cell_clip=0.9),),
        "norm_gate": (spec.LSTM("a", 5, H, layer_norm="gate", peepholes=True, clip=1.5),),
        "learned_start": (spec.LSTM("a", 3, H, 2, proj_size=M, initial_state=True),),
        "gru_before": (spec.GRU("a", L + 1, H, 2, reset_after=False),),
        "gru_odd": (
            spec.GRU("a", 5, H, bias=False, clip=0.8, activations=odd[:2], initial_state=True),
        ),
        "rnn_odd": (spec.RNN("a", 5, 5 * L + 1, nonlinearity="elu(0.7)", clip=0.6),),
        "one_hot_norm": (spec.OneHot("o", 7), spec.LSTM("a", 7, H, layer_norm="product")),
        "embedding_before": (spec.Embedding("e", 7, 4), spec.GRU("a", 4, H, reset_after=False)),
        "both_ways": (
            spec.LSTM(
                *("a", 3, H, 2, True, True),
                activations=(*odd, "sigmoid", "tanh", "relu"),
                peepholes=True,
                initial_state=True,
            ),
            spec.Pool("last", "final", 2 * H),
            spec.Linear("out", 2 * H, 5),
        ),
        "backwards": (spec.GRU("a", 3, H, 2, reverse=True, reset_after=False),),
        "causal": (spec.Conv1d("a", 3, H, 4, dilation=2, padding_left=6), spec.GRU("b", H, 5)),
        "delayed": (
            spec.Conv1d("a", M, H, 3, stride=2, dilation=2),
            spec.Activation("f", "relu", H),
            spec.LSTM("b", H, L),
        ),
        "grouped": (
            spec.Conv1d("a", 6, 3 * M, 3, groups=3, padding_left=1, bias=False),
            spec.BatchNorm1d("n", 3 * M),
            spec.Activation("f", "silu", 3 * M),
            spec.Conv1d("b", 3 * M, 2 * L + 2, 2, stride=3, groups=1),
        ),
        "depthwise": (
            spec.Conv1d("a", H, H, 5, groups=H, padding_left=4),
            spec.BatchNorm1d("n", H, affine=False),
            spec.Activation("f", "hardtanh(-0.5, 0.7)", H),
            spec.Linear("out", H, 4),
        ),
        "looks_ahead": (
            spec.Conv1d("a", 3, H, 5, stride=2, padding_left=2, padding_right=2),
            spec.RNN("b", H, 5),
        ),
        "frames": (
            frame,
            spec.BatchNorm1d("n", 6, width=width),
            spec.PReLU("p", 6 * width, 6),
            spec.CombineHalves("h", "magnitude", 6, width=width),
            again,
            spec.Activation("f", "relu", M * again.out_width),
            spec.LSTM("b", M * again.out_width, L),
            spec.Activation("g", "gelu", L),
            spec.Linear("out", L, 1),
            spec.Activation("s", "sigmoid", 1),
        ),
        "features": (
            spec.Scale("a", H),
            spec.LayerNorm("b", H),
            spec.PReLU("c", H),
            spec.Linear("d", H, 2 * H),
            spec.CombineHalves("e", "glu", 2 * H),
            spec.BatchNorm1d("f", H),
            spec.LayerNorm("g", H, bias=False),
            spec.Activation("h", "log_softmax", H),
        ),
        "residual": (
            spec.Linear("in", 3, H),
            spec.Residual(
                "r",
                (
                    spec.LayerNorm("n", H, elementwise_affine=False, bias=False),
                    spec.Residual("s", (spec.GRU("a", H, L + 1),), "output_first"),
                    spec.Conv1d("c", H + L + 1, H, 2, padding_left=1),
                ),
            ),
            spec.Residual("t", (spec.RNN("b", H, 3),), "input_first"),
        ),
        "mean": (
            spec.LSTM("a", 3, H, peepholes=True),
            spec.Pool("p", "mean", H),
            spec.LayerNorm("n", H),
            spec.Linear("out", H, 4),
        ),
        "last": (
            spec.Conv1d("c", 3, M, 3, stride=2, padding_left=2),
            spec.GRU("a", M, H),
            spec.Pool("p", "last", H),
        ),
    }


KINDS = tuple(every_kind(1))

STREAMING = tuple(
    name for name, layers in every_kind(1).items() if not check(lowered(layers)).looks_ahead
)


def every_model(L: int) -> dict[str, tuple[spec.Layer, ...]]:
    """Those of :func:`every_kind`, PyTorch's plain cells, and models of whole sequences only."""
    H = 2 * L + 3
    found = dict(every_kind(L))
    for cell in CELLS:
        found[cell] = (recurrent(cell, L + 1, H, num_layers=2),)
        found[f"{cell}_both"] = (recurrent(cell, 3, H, num_layers=2, bidirectional=True),)
    found["projected"] = (recurrent("lstm", 5, H, num_layers=2, proj_size=L + 2),)
    found["classifier"] = (
        spec.Embedding("e", 9, 4),
        recurrent("gru", 4, H, bidirectional=True),
        spec.Linear("out", 2 * H, 9),
        spec.Activation("p", "softmax", 9),
    )
    found["lookup"] = (spec.Embedding("e", 9, H),)
    found["one_hot_linear"] = (spec.OneHot("o", 9), spec.Linear("a", 9, H))
    found["tokens_pooled"] = (
        spec.OneHot("o", 9),
        recurrent("lstm", 9, H),
        spec.Pool("p", "last", H),
    )
    found["linear"] = (spec.Linear("a", 3, H), spec.Activation("f", "softmax", H))
    found["pooled_both_mean"] = (
        recurrent("gru", 3, L, bidirectional=True),
        spec.Pool("p", "mean", 2 * L),
    )
    found["ahead_then_pool"] = (
        spec.Conv1d("c", 3, L + 1, 3, padding_left=1, padding_right=1),
        recurrent("lstm", L + 1, H, reverse=True),
        spec.Pool("p", "last", H),
    )
    found["residual_ahead"] = (
        spec.Residual("r", (recurrent("gru", 4, 2, bidirectional=True), spec.Scale("s", 4))),
    )
    return found


def random_tensors(
    layers: Sequence[spec.Layer], rng: np.random.Generator, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    tensors = {}
    for layer in spec.walk(layers):
        if isinstance(layer, spec.Residual):
            continue
        inputs = layer.input_size
        if isinstance(layer, spec.Conv1d | spec.FrameConv1d):
            inputs = layer.in_channels // layer.groups * layer.kernel_size
        limit = 1.0 if layer.takes_tokens else getattr(layer, "hidden_size", inputs) ** -0.5
        factors = isinstance(layer, spec.Scale | spec.LayerNorm | spec.BatchNorm1d)
        for name, shape in layer.tensors().items():
            suffix = name.removeprefix(f"{layer.name}.")
            positive = suffix == "running_var" or suffix.startswith("weight_norm")
            positive |= suffix == "weight" and factors
            low, high = (0.5, 1.5) if positive else (-limit, limit)
            tensors[name] = rng.uniform(low, high, shape).astype(dtype)
    return tensors


def model_file(
    layers: Sequence[spec.Layer] | spec.Layer,
    rng: np.random.Generator | None = None,
    dtype: Any = np.float32,
) -> ChainFile:
    """A model of random weights, as a file would hold it; without weights no rng is needed."""
    layers = (layers,) if isinstance(layers, spec.Layer) else tuple(layers)
    spec.check_layers(layers)
    return ChainFile(layers, random_tensors(layers, rng, dtype) if rng else {})


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
    """A random state; of steps, all rows have read as many."""
    zeros = model.initial_state(batch)
    state = {n: rng.uniform(-1, 1, a.shape).astype(a.dtype) for n, a in zeros.items()}
    for name, array in zeros.items():
        if array.dtype == np.int64:
            state[name][...] = rng.integers(4)
    return state


def reached_state(model: Model, rng: np.random.Generator, batch: int) -> Any:
    """A state that a stream has after a few random steps; None of a model that has none."""
    if model.looks_ahead:
        return None
    stream = model.stream(batch)
    stream.run(input_for(model, rng, int(rng.integers(9)), batch))
    return stream.state


Evaluation = Callable[[ChainFile, np.ndarray], np.ndarray]


@functools.cache
def _drawn(
    layers: tuple[spec.Layer, ...], other: Evaluation
) -> list[tuple[ChainFile, np.ndarray, np.ndarray, float]]:
    """Seven models with an input, the float64 output, and the largest error of another way."""
    rng, found = np.random.default_rng(7), []
    for _ in range(7):
        file = model_file(layers, rng)
        tokens = layers[0].takes_tokens
        x = rng.integers(0, 7, (24, 8)) if tokens else rng.standard_normal(
            (24, 8, layers[0].input_size)).astype(np.float32)  # fmt: skip
        truth, _ = reference.forward(file.layers, file.tensors, x)
        found.append((file, x, truth, float(np.abs(other(file, x) - truth).max())))
    return found


def rounding(layers: tuple[spec.Layer, ...], isa: str, other: Evaluation) -> float:
    """Promise 2: the engine's largest error, in largest errors of another evaluation in float32.

    Against float64, over a sequence. In one model the largest error is chance: it is the median of
    the ratios of seven models, the same for every kernel.
    """
    ratios = []
    for file, x, truth, others in _drawn(layers, other):
        ratios.append(np.abs(Model(file, isa=isa)(x)[0] - truth).max() / others)
    return float(np.median(ratios))


def by_reference(file: ChainFile, x: np.ndarray) -> np.ndarray:
    """What the reference gives in float32."""
    return reference.forward(file.layers, file.tensors, x, dtype=np.float32)[0]


def by_torch(file: ChainFile, x: np.ndarray) -> np.ndarray:
    return torch_forward(file.layers, file.tensors, x)[0]


# The same in torch, which must be installed for what follows


def torch_function(text: str) -> Callable[[Any], Any]:
    """A function of :mod:`chain.functions`."""
    import torch

    functional = torch.nn.functional
    function = spec.parse_function(text)
    a, b = function.alpha, function.beta
    return {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softsign": functional.softsign,
        # Beyond its threshold torch leaves the logarithm out; at 20, its own, that is 2e-9.
        "softplus": functools.partial(functional.softplus, threshold=40),
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
        "affine": lambda x: a * x + b,
        "elu": lambda x: functional.elu(x, a),
        "leaky_relu": lambda x: functional.leaky_relu(x, a),
        "thresholded_relu": lambda x: functional.threshold(x, a, 0.0),
        "hard_sigmoid": lambda x: (a * x + b).clamp(0, 1),
        "scaled_tanh": lambda x: a * torch.tanh(b * x),
        "hardtanh": lambda x: functional.hardtanh(x, a, b),
        "softmax": lambda x: x.softmax(-1),
        "log_softmax": lambda x: x.log_softmax(-1),
    }[function.name]


def torch_module(layer: spec.Layer, tensors: Mapping[str, np.ndarray], dtype: Any = None) -> Any:
    """The ``torch.nn`` module of a layer, with its weights, in eval mode."""
    import torch

    if isinstance(layer, spec.Recurrent):
        if not layer.is_plain or layer.reverse or layer.initial_state:
            raise TypeError(f"{layer.describe()} is not PyTorch's")
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
    elif isinstance(layer, spec.LayerNorm):
        affine = {"elementwise_affine": layer.elementwise_affine, "bias": layer.bias}
        module = torch.nn.LayerNorm(layer.size, layer.eps, **affine)
    elif isinstance(layer, spec.BatchNorm1d):
        module = torch.nn.BatchNorm1d(layer.num_features, layer.eps, affine=layer.affine)
    elif isinstance(layer, spec.PReLU):
        module = torch.nn.PReLU(layer.num_parameters)
    elif isinstance(layer, spec.Conv1d | spec.FrameConv1d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        options = {n: getattr(layer, n) for n in (*names, "bias")}
        module = torch.nn.Conv1d(**options)
    else:
        raise TypeError(layer.kind)
    own = {n: torch.from_numpy(np.array(tensors[n])) for n in layer.tensors()}
    if own:
        module = module.to(dtype or next(iter(own.values())).dtype)
    state_dict = {n.removeprefix(layer.name + "."): t for n, t in own.items()}
    module.load_state_dict(state_dict, strict=not isinstance(layer, spec.BatchNorm1d))
    return module.eval()


def torch_layer(layer: spec.Layer, tensors: Mapping[str, np.ndarray], x: Any) -> Any:
    """What torch gives for one layer without a state, of x (T, B, I) or (..., I)."""
    import torch

    functional = torch.nn.functional

    def framed(channels: int) -> Any:
        return x.reshape(-1, channels, x.shape[-1] // channels)

    def flat(y: Any) -> Any:
        return y.reshape(*x.shape[:-1], -1)

    if isinstance(layer, spec.OneHot):
        return functional.one_hot(x, layer.num_classes).to(torch.get_default_dtype())
    if isinstance(layer, spec.Activation):
        return torch_function(layer.function)(x)
    if isinstance(layer, spec.Scale):
        weight, bias = (torch.from_numpy(np.array(tensors[n])).to(x) for n in layer.tensors())
        return x * weight + bias
    if isinstance(layer, spec.CombineHalves):
        a, b = framed(layer.channels).chunk(2, 1)
        y = {
            "sum": a + b,
            "product": a * b,
            "average": (a + b) / 2,
            "magnitude": (a**2 + b**2).sqrt(),
            "glu": functional.glu(framed(layer.channels), 1),
        }
        return flat(y[layer.function])
    if isinstance(layer, spec.Pool):
        half = layer.size // 2
        pooled = {
            "last": x[-1],
            "mean": x.mean(0),
            "final": torch.cat([x[-1, ..., :half], x[0, ..., half:]], -1),
        }
        return pooled[layer.function][None]
    module = torch_module(layer, tensors, x.dtype if x.is_floating_point() else None)
    if isinstance(layer, spec.BatchNorm1d):
        return flat(module(framed(layer.num_features)))
    if isinstance(layer, spec.PReLU):
        return flat(module(framed(layer.num_parameters)))
    if isinstance(layer, spec.FrameConv1d):
        mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
        padding = (layer.padding_left, layer.padding_right)
        return flat(module(functional.pad(framed(layer.in_channels), padding, mode)))
    if isinstance(layer, spec.Conv1d):
        padding = (layer.padding_left, layer.padding_right)
        return module(functional.pad(x.permute(1, 2, 0), padding)).permute(2, 0, 1)
    return module(x)


def torch_forward(
    layers: Sequence[spec.Layer],
    tensors: Mapping[str, np.ndarray],
    x: np.ndarray,
    state: Mapping[str, np.ndarray] | None = None,
    dtype: str | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What torch gives for ``model(x, state)``: x (T, B, I) or (T, I), or tokens.

    Of convolutions and pools, for whole sequences: they start from nothing and keep no state.
    A pool leaves one row of its axis T.
    """
    import torch

    real = getattr(torch, dtype) if dtype else None
    after: dict[str, np.ndarray] = {}
    value = torch.from_numpy(np.array(x))
    if real and value.is_floating_point():
        value = value.to(real)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        for layer in layers:
            if isinstance(layer, spec.Residual):
                inner, _ = torch_forward(layer.layers, tensors, value.numpy(), state, dtype)
                both = [value, torch.from_numpy(inner)]
                value = sum(both) if layer.combine == "add" else torch.cat(
                    both[:: 1 if layer.combine == "input_first" else -1], -1)  # fmt: skip
                continue
            if not isinstance(layer, spec.Recurrent):
                value = torch_layer(layer, tensors, value)
                if isinstance(layer, spec.OneHot | spec.Embedding):
                    value = value.to(real or value.dtype)
                continue
            hx = None
            names = list(layer.state())
            if state is not None:
                arrays = [torch.from_numpy(np.array(state[n])).to(value.dtype) for n in names]
                hx = tuple(arrays) if layer.has_cell_state else arrays[0]
            value, hx = torch_module(layer, tensors, real)(value, hx)
            hx = hx if isinstance(hx, tuple) else (hx,)
            after |= {n: h.numpy() for n, h in zip(names, hx, strict=True)}
    return value.numpy(), after
