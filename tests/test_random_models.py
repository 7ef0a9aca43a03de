"""Models of random layers in random order against the reference: what nobody thought of.

Every kind of layer, with options drawn at random, on every instruction set, as whole sequences, as
streams in blocks of random sizes, and as padded batches. A failure names the seed of its model.
"""

from __future__ import annotations

from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from conftest import SEED
from models import ChainFile
from ways import assert_same_bits, assert_same_state

from fastlstm import Model, _engine

ISAS = [name for name, _ in _engine.kernels(4, of_floats=True)]

FUNCTIONS = (
    *("relu", "tanh", "sigmoid", "softsign", "softplus", "silu", "gelu", "gelu_tanh"),
    *("affine(0.5, 0.1)", "elu(0.7)", "leaky_relu(0.1)", "thresholded_relu(0.3)"),
    *("hard_sigmoid(0.2, 0.5)", "scaled_tanh(1.2, 0.6)", "hardtanh(-0.5, 0.7)"),
)
VOCABULARY = 11

# A model whose own float32 reference strays so far from float64 is chaotic, and proves nothing.
MOST_DRIFT = 1e-3
LARGEST = 1e3


class Draw:
    """Draws the layers of a model."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"l{self.count}"

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def size(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def functions(self, n: int) -> tuple[str, ...]:
        return tuple(map(str, self.rng.choice(FUNCTIONS, n)))

    def lstm(self, size: int) -> spec.LSTM:
        H, both = self.size(2, 40), self.chance(0.2)
        plain = ("sigmoid", "tanh", "tanh")
        return spec.LSTM(
            self.name(),
            size,
            H,
            self.size(1, 2),
            self.chance(0.8),
            both,
            self.size(1, H - 1) if self.chance(0.3) else 0,
            reverse=not both and self.chance(0.1),
            peepholes=self.chance(0.5),
            coupled=self.chance(0.3),
            clip=1.5 if self.chance(0.3) else 0.0,
            cell_clip=0.4 if self.chance(0.3) else 0.0,
            layer_norm=str(self.rng.choice(["", "", "gate", "product"])),
            initial_state=self.chance(0.3),
            activations=plain if self.chance(0.5) else self.functions(6 if both else 3),
        )

    def gru(self, size: int) -> spec.GRU:
        return spec.GRU(
            self.name(),
            size,
            self.size(2, 40),
            self.size(1, 2),
            self.chance(0.8),
            self.chance(0.2),
            reset_after=self.chance(0.4),
            clip=1.5 if self.chance(0.3) else 0.0,
            activations=("sigmoid", "tanh") if self.chance(0.5) else self.functions(2),
            initial_state=self.chance(0.3),
        )

    def convolution(self, size: int, inside: bool) -> spec.Conv1d:
        """Over time; inside a residual it gives one output for each step."""
        groups = int(self.rng.choice([g for g in (1, 1, 2, 4) if size % g == 0]))
        outputs = groups * self.size(1, 20)
        if self.chance(0.2):
            groups = outputs = size
        K, dilation = self.size(1, 5), self.size(1, 3)
        reach = dilation * (K - 1)
        right = self.size(0, reach) if self.chance(0.2) else 0
        left = reach - right if inside or self.chance(0.5) else self.size(0, reach)
        return spec.Conv1d(
            self.name(),
            size,
            outputs,
            K,
            1 if inside else self.size(1, 3),
            dilation,
            groups,
            self.chance(0.7),
            padding_left=left,
            padding_right=right,
        )

    def frames(self, size: int) -> list[spec.Layer]:
        """A convolution within the frame, and what may follow it."""
        channels = int(self.rng.choice([c for c in range(1, size + 1) if size % c == 0]))
        width, groups = size // channels, 2 if channels % 2 == 0 and self.chance(0.3) else 1
        outputs = groups * self.size(1, 20)
        if self.chance(0.2):
            groups = outputs = channels
        mode = str(self.rng.choice(["zeros", "zeros", "reflect", "replicate"]))
        most = width - 1 if mode == "reflect" else 3
        left, right = self.size(0, min(3, most)), self.size(0, min(3, most))
        K, dilation = self.size(1, 4), self.size(1, 2)
        if width + left + right <= dilation * (K - 1):
            K = 1
        made = spec.FrameConv1d(
            self.name(),
            channels,
            outputs,
            K,
            self.size(1, 2),
            dilation,
            groups,
            self.chance(0.7),
            width=width,
            padding_left=left,
            padding_right=right,
            padding_mode=mode,
        )
        layers: list[spec.Layer] = [made]
        if self.chance(0.4):
            layers.append(spec.BatchNorm1d(self.name(), outputs, width=made.out_width))
        if self.chance(0.5):
            layers.append(spec.Activation(self.name(), *self.functions(1), made.output_size))
        if self.chance(0.3):
            layers.append(spec.PReLU(self.name(), made.output_size, outputs))
        if outputs % 2 == 0 and self.chance(0.6):
            how = str(self.rng.choice(["magnitude", "glu", "product", "sum", "average"]))
            layers.append(spec.CombineHalves(self.name(), how, outputs, width=made.out_width))
        return layers

    def residual(self, size: int) -> list[spec.Layer]:
        layers: list[spec.Layer] = []
        for _ in range(self.size(1, 2)):
            layers += self.layer(layers[-1].output_size if layers else size, inside=True)
        combine = str(self.rng.choice(["add", "input_first", "output_first"]))
        if combine == "add" and layers[-1].output_size != size:
            layers.append(spec.Linear(self.name(), layers[-1].output_size, size))
        return [spec.Residual(self.name(), tuple(layers), combine)]

    def layer(self, size: int, inside: bool = False) -> list[spec.Layer]:
        """A layer that reads so many features, or a few that belong together."""
        kind = self.size(0, 11 if inside else 12)
        affine = self.chance(0.7)
        if kind == 10 or kind == 11:
            return self.frames(size)
        if kind == 12:
            return self.residual(size)
        rowwise = ("softmax",) if self.chance(0.5) else ("log_softmax",)
        made: list[Any] = [
            lambda: self.lstm(size),
            lambda: self.gru(size),
            lambda: spec.RNN(
                self.name(), size, self.size(1, 40), nonlinearity=self.functions(1)[0]
            ),
            lambda: spec.Linear(self.name(), size, self.size(1, 70), affine),
            lambda: spec.Activation(
                self.name(), *(self.functions(1) if self.chance(0.8) else rowwise), size
            ),
            lambda: spec.LayerNorm(
                self.name(), size, elementwise_affine=affine, bias=affine and self.chance(0.7)
            ),
            lambda: spec.BatchNorm1d(self.name(), size, affine=affine),
            lambda: spec.PReLU(self.name(), size, 1 if affine else size),
            lambda: spec.Scale(self.name(), size),
            lambda: self.convolution(size, inside),
        ]
        return [made[kind]()]

    def model(self) -> tuple[spec.Layer, ...]:
        layers: list[spec.Layer] = []
        size = self.size(1, 40)
        if self.chance(0.15):
            layers = [spec.Embedding(self.name(), VOCABULARY, size)]
            if self.chance(0.5):
                layers = [spec.OneHot(self.name(), VOCABULARY)]
                layers.append(self.lstm(VOCABULARY) if self.chance(0.5) else self.gru(VOCABULARY))
                size = layers[-1].output_size
        for _ in range(self.size(1, 4)):
            layers += self.layer(size)
            size = layers[-1].output_size
            if size > 400:
                layers.append(spec.Linear(self.name(), size, 20))
                size = 20
        if self.chance(0.3):
            last = layers[-1]
            final = isinstance(last, spec.Recurrent) and last.bidirectional and self.chance(0.7)
            how = "final" if final else str(self.rng.choice(["last", "mean"]))
            layers.append(spec.Pool(self.name(), how, size))
            if self.chance(0.6):
                layers.append(spec.Linear(self.name(), size, 5))
        return tuple(layers)


def tensors_of(
    layers: tuple[spec.Layer, ...], rng: np.random.Generator, dtype: type
) -> dict[str, np.ndarray]:
    tensors = {}
    for layer in layers:
        for name, shape in layer.tensors().items():
            scale = 1 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
            array = rng.standard_normal(shape) * scale
            if "running_var" in name:
                array = array**2 + 0.5
            tensors[name] = (array + ("weight_norm" in name)).astype(dtype)
    return tensors


def drift(one: Any, other: Any) -> float:
    """The largest difference of two runs, of the output or of a recurrence's state."""
    names = [name for name in one[1] if name.endswith((".h", ".c"))]
    pairs = [(one[0], other[0]), *((one[1][name], other[1][name]) for name in names)]
    return max(float(np.abs(a - b).max(initial=0)) for a, b in pairs)


def run_at_random(model: Model, x: np.ndarray, rng: np.random.Generator) -> Any:
    """A stream's rows, of steps and blocks of random sizes, and its state after them."""
    stream, rows, t = model.stream(x.shape[1]), [], 0
    while t < len(x):
        if rng.random() < 0.5:
            row = stream.step(np.ascontiguousarray(x[t]))
            rows += [] if row is None else [row[None]]
            t += 1
        else:
            block = x[t : t + int(rng.integers(0, 9))]
            rows.append(stream.run(block))
            t += len(block)
    return np.concatenate(rows) if rows else stream.run(x[:0]), stream.state


@pytest.mark.parametrize("seed", range(SEED, SEED + 150))
def test_a_random_model(seed):
    rng = np.random.default_rng(seed)
    dtype = np.float32 if rng.random() < 0.8 else np.float64
    layers = Draw(rng).model()
    spec.check_layers(layers)
    tensors = tensors_of(layers, rng, dtype)
    T, B = int(rng.integers(1, 60)), int(rng.integers(1, 9))
    if layers[0].takes_tokens:
        x = rng.integers(0, VOCABULARY, (T, B))
    else:
        x = rng.standard_normal((T, B, layers[0].input_size)).astype(dtype)
    lengths = rng.integers(0, T + 1, B)
    truths, limits = [], []
    for options in ({}, {"lengths": lengths}, {"streaming": True}):
        if options.get("streaming") and spec.looks_ahead(layers):
            continue
        exact = reference.forward(layers, tensors, x, **options)
        rounded = reference.forward(layers, tensors, x, dtype=np.float32, **options)
        largest = max(float(np.abs(a).max(initial=0)) for a in (exact[0], *exact[1].values()))
        if not largest < LARGEST or not drift(exact, rounded) < MOST_DRIFT:
            pytest.skip("its numbers grow, or follow from rounding")
        truths.append(exact)
        limits.append(1e-7 if dtype == np.float64 else max(2e-5, 30 * drift(exact, rounded)))
    if not tensors:
        pytest.skip("a model without tensors is one of float32")
    for isa in ISAS if dtype == np.float32 else [None]:
        model = Model(ChainFile(layers, tensors), isa=isa, reproducible=True)
        assert all(np.array_equal(a, tensors[name]) for name, a in model.tensors.items())
        if model.pools_over_time and not len(truths[0][0]):
            with pytest.raises(ValueError, match="of which this model makes no row to pool"):
                model(x)
            continue
        calls = [model(x), model(x, lengths=lengths)]
        if len(truths) > 2:
            calls.append(run_at_random(model, x, rng))
            assert_same_state(calls[2][1], calls[0][1])
            if not model.pools_over_time:
                assert_same_bits(calls[2][0], calls[0][0])
            b = int(rng.integers(0, B))
            alone = model.stream().run(np.ascontiguousarray(x[:, b]))
            assert_same_bits(alone, np.ascontiguousarray(calls[2][0][:, b]))
        for n, (call, truth) in enumerate(zip(calls, truths, strict=True)):
            rows = truth[0][0] if model.pools_over_time and n < 2 else truth[0]
            if n == 1 and not model.pools_over_time:  # as many as the longest row gives
                rows, behind = rows[: len(call[0])], rows[len(call[0]) :]
                assert not behind.any()
            assert call[0].shape == rows.shape
            assert drift((rows, truth[1]), call) <= limits[n], f"{isa}, call {n}"
        two = Model(ChainFile(layers, tensors), isa=isa, reproducible=True, threads=2)(x)
        assert_same_bits(two[0], calls[0][0])
        assert_same_state(two[1], calls[0][1])
