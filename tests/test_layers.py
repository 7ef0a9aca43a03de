"""Layers between cells: functions, normalisations, halves, residual blocks, pools over time.

Against torch, alone and folded into the matrix before; streaming and whole sequences agree.
"""

from __future__ import annotations

import itertools
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import (
    ISAS,
    KINDS,
    LANES,
    ChainFile,
    build,
    by_reference,
    by_torch,
    by_turns,
    chain_of,
    every_kind,
    input_for,
    model_file,
    reached_state,
    recurrent,
    rounding,
    torch_forward,
)
from ways import (
    assert_every_way_agrees,
    assert_same_bits,
    assert_same_state,
    assert_state_is_near,
    in_numpy,
)

from fastlstm import Model
from fastlstm.plan.lowering import plan

ENGINES = [*ISAS, "float64"]

FUNCTIONS = (
    *spec.ACTIVATIONS,
    *("affine(0.5, 0.1)", "elu(0.7)", "leaky_relu(0.1)", "leaky_relu(-2.0)"),
    *("thresholded_relu(0.3)", "thresholded_relu(-0.5)", "hard_sigmoid(0.2, 0.5)"),
    *("hard_sigmoid(-0.3, 0.4)", "scaled_tanh(1.7159, 0.66)", "scaled_tanh(-0.5, -2.0)"),
    *("hardtanh(-0.5, 0.7)", "hardtanh(0.0, 6.0)"),
)
ELEMENTWISE = tuple(f for f in FUNCTIONS if "softmax" not in f)


def features(size: int) -> dict[str, tuple[spec.Layer, ...]]:
    """Every layer that turns the features of a step into others, and what some become a part of."""
    linear = spec.Linear("in", 3, size)
    norm = spec.BatchNorm1d("n", size)
    found: dict[str, tuple[spec.Layer, ...]] = {
        "scale": (spec.Scale("a", size),),
        "layer_norm": (spec.LayerNorm("a", size),),
        "layer_norm_plain": (spec.LayerNorm("a", size, 1e-3, False, False),),
        "layer_norm_no_bias": (spec.LayerNorm("a", size, bias=False),),
        "batch_norm": (spec.BatchNorm1d("a", size),),
        "batch_norm_plain": (spec.BatchNorm1d("a", size, 1e-3, False),),
        "prelu": (spec.PReLU("a", size),),
        "prelu_each": (spec.PReLU("a", size, size),),
        "linear_norm": (linear, norm),
        "linear_norm_function": (linear, norm, spec.Activation("f", "elu(0.7)", size)),
        "linear_function": (linear, spec.Activation("f", "silu", size)),
        "linear_function_norm": (linear, spec.Activation("f", "tanh", size), norm),
        "linear_softmax": (linear, spec.Activation("f", "softmax", size)),
        "linear_norm_norm": (linear, norm, spec.BatchNorm1d("m", size, affine=False)),
        "no_bias_norm": (spec.Linear("in", 3, size, False), norm),
        "wide_norm": (spec.Linear("in", 3, 2 * size), spec.BatchNorm1d("n", 2, width=size)),
        "embedding_norm": (spec.Embedding("e", 7, size), norm),
        "embedding_linear_norm": (spec.Embedding("e", 7, 3), linear, norm),
        "one_hot_linear_norm": (
            spec.OneHot("o", 7),
            spec.Linear("in", 7, size),
            norm,
            spec.Activation("f", "relu", size),
        ),
        "cell_norm": (recurrent("gru", 3, size), norm, spec.LayerNorm("m", size)),
    }
    for function in ("sum", "product", "average", "magnitude", "glu"):
        found[function] = (spec.CombineHalves("a", function, 2 * size),)
        found[f"{function}_wide"] = (spec.CombineHalves("a", function, 4, width=size),)
    return found


def sizes(engine: str) -> list[int]:
    L = LANES.get(engine, 1)
    return sorted({1, max(L - 1, 1), L, L + 1, 2 * L + 3})


def bound_of(dtype: Any, name: str = "") -> float:
    """Of few numbers that happen to be near each other little is left but rounding."""
    return (50 if "norm" in name else 1) * (4e-6 if dtype == np.float32 else 1e-13)


def engine_model(file: ChainFile, engine: str, **options: Any) -> Model:
    return Model(file, isa=None if engine == "float64" else engine, **options)


def dtype_of(engine: str) -> Any:
    return np.float64 if engine == "float64" else np.float32


class TestReference:
    """The truth is torch's, to 12 digits in float64."""

    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch", reason="compares with torch itself")

    def check(self, layers: tuple[spec.Layer, ...], rng: np.random.Generator, scale: float = 1):
        file = model_file(layers, rng, np.float64)
        x = rng.integers(0, 7, (6, 3)) if layers[0].takes_tokens else (
            scale * rng.standard_normal((6, 3, layers[0].input_size)))  # fmt: skip
        y, _ = reference.forward(layers, file.tensors, x)
        expected, _ = torch_forward(layers, file.tensors, x, dtype="float64")
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", features(1))
    def test_features(self, name, rng):
        for size in (1, 2, 9):
            if not ("norm" in name and size == 1):
                self.check(features(size)[name], rng)

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_functions(self, function, rng):
        for scale in (0.1, 1, 30):
            self.check((spec.Activation("f", function, 9),), rng, scale)

    @pytest.mark.parametrize("combine", ["add", "input_first", "output_first"])
    def test_residual(self, combine, rng):
        inner = (recurrent("lstm", 5, 4), spec.Linear("l", 4, 5))
        self.check((spec.Residual("r", inner, combine),), rng)
        nested = (spec.LayerNorm("n", 5), spec.Residual("s", inner, combine))
        last = spec.Linear("m", nested[1].output_size, 5)
        self.check((spec.Residual("r", (*nested, last), "add"),), rng)
        conv = spec.Conv1d("c", 5, 5, 3, padding_left=2)
        self.check((spec.Residual("r", (conv, spec.Activation("f", "relu", 5)), combine),), rng)

    @pytest.mark.parametrize("function", ["last", "mean", "final"])
    def test_pools(self, function, rng):
        layers = (recurrent("gru", 3, 4, bidirectional=True), spec.Pool("p", function, 8))
        self.check((*layers, spec.Linear("out", 8, 2)), rng)

    def test_final_is_what_both_directions_ended_with(self, torch, rng):
        """``torch.cat([h_n[-2], h_n[-1]], 1)``, as is written behind bidirectional layers."""
        layers = (recurrent("lstm", 3, 4, num_layers=2, bidirectional=True),
                  spec.Pool("p", "final", 8))  # fmt: skip
        file = model_file(layers, rng, np.float64)
        x = rng.standard_normal((6, 2, 3))
        _, state = torch_forward(layers[:1], file.tensors, x)
        expected = np.concatenate([state["rnn.h"][-2], state["rnn.h"][-1]], axis=1)
        np.testing.assert_allclose(Model(file)(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
class TestEngine:
    def check(self, layers: Any, engine: str, rng, name: str = "", scale: float = 1) -> None:
        dtype = dtype_of(engine)
        if engine == "float64" and not any(layer.tensors() for layer in layers):
            layers = (spec.Scale("one", layers[0].input_size), *layers)  # a dtype is its tensors'
        file = model_file(layers, rng, dtype)
        model = engine_model(file, engine)
        x = input_for(model, rng, 6, 3)
        x = x if model.takes_tokens else (scale * x).astype(dtype)
        state = reached_state(model, rng, 3)
        y, after = model(x, state)
        truth, after_it = in_numpy(file, x, state)
        bound = bound_of(dtype, name)
        assert y.shape == truth.shape
        size = np.maximum(1, np.abs(truth).max())
        np.testing.assert_allclose(y, truth, rtol=bound, atol=bound * size, err_msg=str(layers))
        if not model.looks_ahead:
            assert_state_is_near(after, after_it, bound)

    @pytest.mark.parametrize("name", features(1))
    def test_features(self, engine, name, rng):
        for size in sizes(engine):
            if not ("layer_norm" in name and size == 1):
                self.check(features(size)[name], engine, rng, name)

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_functions(self, engine, function, rng):
        """Alone, behind a matrix, behind a convolution, behind one of single channels."""
        for size, scale in zip(sizes(engine), itertools.cycle((10, 1))):
            f = spec.Activation("f", function, size)
            self.check((f,), engine, rng, scale=scale)
            if function in ELEMENTWISE:
                self.check((spec.Linear("a", 3, size), f), engine, rng)
        size = LANES.get(engine, 1) + 2
        f = spec.Activation("f", function, size)
        for groups in (1, size):
            conv = spec.Conv1d("a", size, size, 2, groups=groups, padding_left=1)
            self.check((conv, f), engine, rng)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind(self, engine, kind, rng):
        for L in sorted({1, 5, LANES.get(engine, 1)}):
            if not ("norm" in kind and L == 1):
                self.check(every_kind(L)[kind], engine, rng, kind)

    def test_many_features(self, engine, rng):
        """Longer than a block of a sum, and wider than all vectors of a panel."""
        for size in (500, 1031):
            for name in ("layer_norm", "batch_norm", "prelu_each", "magnitude", "linear_norm"):
                self.check(features(size)[name], engine, rng, name)
            self.check((spec.Activation("f", "softmax", size),), engine, rng)

    def test_residual_blocks_within_each_other(self, engine, rng):
        H = LANES.get(engine, 1) + 1
        block = spec.Residual("b", (recurrent("gru", H, H),))
        wide = spec.Residual("c", (block, spec.Scale("d", H)), "output_first")
        for layers in (
            (wide,),
            (spec.Linear("in", 2, H), wide, spec.Linear("out", 2 * H, 3)),
            (wide, spec.Residual("e", (recurrent("rnn_tanh", 2 * H, 3, "f"),), "input_first")),
            (spec.Embedding("in", 9, H), wide),
            (recurrent("lstm", 3, H, "in"), wide, recurrent("gru", 2 * H, 2, "out")),
            (spec.Residual("z", (spec.Activation("y", "relu", H),)),),
            (spec.Residual("z", (spec.Activation("y", "softmax", H),), "input_first"),),
            (
                spec.Residual(
                    "z",
                    (spec.PReLU("y", H), spec.LayerNorm("x", H)),
                ),
                wide,
            ),
        ):
            self.check(layers, engine, rng, "norm")

    @pytest.mark.parametrize("function", ["last", "mean"])
    def test_pools(self, engine, function, rng):
        H = LANES.get(engine, 1) + 1
        pool = spec.Pool("p", function, H)
        for before in ((), (spec.Linear("a", 3, H),), (recurrent("lstm", 3, H, num_layers=2),)):
            for behind in (
                (),
                (spec.LayerNorm("n", H), spec.Linear("b", H, 5)),
                (spec.Residual("r", (spec.Scale("s", H),), "output_first"),),
            ):
                self.check((*before, pool, *behind), engine, rng, "norm")


class TestFolding:
    """What follows a matrix and only touches its outputs is not run as a layer of its own."""

    @pytest.mark.parametrize(
        ("layers", "kinds"),
        [
            (("linear", "norm", "relu"), ["product"]),
            (("linear", "relu", "norm"), ["product", "map"]),
            (("linear", "softmax"), ["product", "softmax"]),
            (("linear", "norm", "norm"), ["product"]),
            (("conv", "norm", "relu"), ["window", "product"]),
            (("conv", "relu"), ["window", "product"]),
            (("frame", "frame norm", "relu"), ["product", "move"]),
            (("gru", "norm", "relu"), ["recurrent", "map"]),
        ],
    )
    def test_operations_of_a_program(self, layers, kinds, rng):
        made = {
            "linear": lambda n: spec.Linear(n, 6, 6),
            "conv": lambda n: spec.Conv1d(n, 6, 6, 2),
            "frame": lambda n: spec.FrameConv1d(n, 2, 2, 2, width=3, padding_left=1),
            "gru": lambda n: spec.GRU(n, 6, 6),
            "norm": lambda n: spec.BatchNorm1d(n, 6),
            "frame norm": lambda n: spec.BatchNorm1d(n, 2, width=3),
            "relu": lambda n: spec.Activation(n, "relu", 6),
            "softmax": lambda n: spec.Activation(n, "softmax", 6),
        }
        model = tuple(made[name](f"l{i}") for i, name in enumerate(layers))
        file = model_file(model, rng)
        program = plan(file.graph, file.tensors)
        assert [type(one).__name__.lower() for one in program.operations] == kinds

    def test_a_folded_norm_is_as_exact_as_torch_s(self, isa, rng):
        """Large means and small variances, as of features that nobody has scaled."""
        pytest.importorskip("torch", reason="measures the error of torch itself")
        layers = (spec.Linear("a", 8, 40), spec.BatchNorm1d("n", 40))
        worse = []
        for _ in range(7):
            file = model_file(layers, rng)
            file.tensors["n.running_mean"][:] = rng.uniform(-30, 30, 40)
            file.tensors["n.running_var"][:] = rng.uniform(0.01, 0.1, 40)
            file.tensors["a.bias"][:] = file.tensors["n.running_mean"]
            x = rng.standard_normal((20, 4, 8)).astype(np.float32)
            truth, _ = reference.forward(layers, file.tensors, x)
            own = np.abs(Model(file, isa=isa)(x)[0] - truth).max()
            worse.append(own / np.abs(by_torch(file, x) - truth).max())
        assert np.median(worse) <= 1.5


class TestRounding:
    """Promise 2."""

    MODELS = (
        *("scale", "layer_norm", "batch_norm", "prelu_each", "linear_norm_function"),
        *("magnitude", "glu", "cell_norm", "linear_softmax"),
    )

    @pytest.mark.parametrize("name", MODELS)
    def test_of_features_against_torch_here(self, isa, name):
        pytest.importorskip("torch", reason="measures the error of torch itself")
        ratio = rounding(features(64)[name], isa, by_torch)
        assert ratio <= 1.5, f"{ratio:.2f} times torch's error"

    @pytest.mark.parametrize("kind", ["features", "residual", "causal"])
    def test_of_whole_models_against_torch_here(self, isa, kind):
        pytest.importorskip("torch", reason="measures the error of torch itself")
        ratio = rounding(every_kind(16)[kind], isa, by_torch)
        assert ratio <= 1.5, f"{ratio:.2f} times torch's error"

    def test_of_a_mean_against_the_reference(self, isa):
        """Both go on from step to step, where torch adds all up."""
        layers = (spec.Linear("a", 8, 64), spec.Pool("p", "mean", 64))
        assert rounding(layers, isa, by_reference) <= 2


class TestSameBits:
    """Promise 1."""

    @pytest.mark.parametrize(("kind", "isa"), by_turns(KINDS))
    def test_of_every_kind(self, isa, kind, rng, tmp_path):
        model = build(every_kind(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        assert_every_way_agrees(model, rng)

    @pytest.mark.parametrize(("kind", "isa"), by_turns(KINDS))
    def test_of_long_sequences(self, isa, kind, rng):
        """Longer than a chunk, in pieces of every scale."""
        model = build(every_kind(LANES[isa])[kind], rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 1500, 2)
        y, after = model(x)
        alone, alone_after = model(x[:, 1])
        assert_same_bits(alone, y[1] if model.pools_over_time else y[:, 1])
        assert_same_state(alone_after, {n: a[:, 1] for n, a in after.items()})
        if spec.looks_ahead(chain_of(model)):
            return
        stream, cuts = model.stream(2), [0, 1, 2, 10, 700, 701, 1500]
        pieces = [stream.run(x[a:b]) for a, b in itertools.pairwise(cuts)]
        rows = np.concatenate(pieces)
        assert_same_bits(rows[-1] if model.pools_over_time else rows, y)
        assert_same_state(stream.state, after)

    @pytest.mark.parametrize("kind", ["causal", "delayed", "frames", "residual", "mean", "last"])
    def test_in_float64(self, kind, rng):
        model = build(every_kind(2)[kind], rng, np.float64, reproducible=True)
        assert_every_way_agrees(model, rng)


class TestPools:
    def test_shapes(self, rng):
        layers = (recurrent("gru", 3, 4), spec.Pool("p", "mean", 4), spec.Linear("out", 4, 2))
        model = build(layers, rng)
        assert model.pools_over_time
        assert not build(layers[0], rng).pools_over_time
        x = input_for(model, rng, 6, 5)
        y, _ = model(x)
        assert y.shape == (5, 2)
        assert model(x[:, 0])[0].shape == (2,)
        first, _ = model(np.ascontiguousarray(x.swapaxes(0, 1)), batch_first=True)
        assert_same_bits(first, y)
        assert model.stream(5).run(x).shape == (6, 5, 2)
        assert model(np.zeros((4, 0, 3), np.float32))[0].shape == (0, 2)

    @pytest.mark.parametrize("function", ["last", "mean"])
    def test_a_stream_gives_what_a_sequence_that_ended_here_would(self, isa, function, rng):
        layers = (recurrent("gru", 3, 19), spec.Pool("p", function, 19), spec.Linear("o", 19, 2))
        model = build(layers, rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 9, 2)
        stream = model.stream(2)
        for t in range(9):
            y, after = model(x[: t + 1])
            assert_same_bits(stream.step(x[t]), y)
            assert_same_state(stream.state, after)

    def test_a_mean_goes_on_from_call_to_call(self, isa, rng):
        model = build((spec.Scale("a", 19), spec.Pool("p", "mean", 19)), rng, isa=isa)
        x = input_for(model, rng, 12, 2)
        _, state = model(x[:5])
        assert state["p.count"].tolist() == [[5, 5]]
        y, state = model(x[5:], state)
        assert_same_bits(y, model(x)[0])
        assert_same_bits(state["p.total"][0], y)

    @pytest.mark.parametrize("count", [-1, 2**48, 2**62])
    def test_other_counts_are_refused(self, count, rng):
        model = build((spec.Scale("a", 3), spec.Pool("p", "mean", 3)), rng)
        state = model.initial_state(2)
        state["p.count"][0, 1] = count
        message = rf"^state 'p\.count' holds {count}; expected a count of steps that a state"
        with pytest.raises(ValueError, match=message):
            model(input_for(model, rng, 4, 2), state)
        stream = model.stream(2)
        with pytest.raises(ValueError, match=message):
            stream.state = state
        assert not stream.state["p.count"].any()

    def test_rows_may_have_read_different_numbers_of_steps(self, isa, rng):
        model = build((spec.Scale("a", 3), spec.Pool("p", "mean", 3)), rng, isa=isa)
        state, x = model.initial_state(3), input_for(model, rng, 5, 3)
        state["p.count"][0] = [0, 4, 100]
        state["p.total"][0] = 2
        y, after = model(x, state)
        assert after["p.count"].tolist() == [[5, 9, 105]]
        sums = x.sum(0) * model.tensors["a.weight"] + 5 * model.tensors["a.bias"]
        counts = np.array([[0], [4], [100]])
        np.testing.assert_allclose(y, (sums + 2 * counts) / (counts + 5), rtol=0, atol=4e-6)

    @pytest.mark.parametrize("function", ["last", "mean", "final"])
    def test_no_steps(self, function, rng):
        layers = (recurrent("gru", 3, 4, bidirectional=True), spec.Pool("p", function, 8))
        model = build(layers, rng)
        message = "^x has 0 steps, of which this model makes no row to pool; expected at least 1$"
        for shape in ((0, 3), (0, 2, 3)):
            with pytest.raises(ValueError, match=message):
                model(np.zeros(shape, np.float32))

    def test_a_sequence_too_short_for_the_convolution_before(self, rng):
        """Nothing is left to pool; a stream just gives nothing yet."""
        conv = spec.Conv1d("c", 3, 4, 3, 2, 2)
        model = build((conv, spec.Pool("p", "mean", 4)), rng)
        message = "^x has 4 steps, of which this model makes no row to pool; expected at least 5$"
        for shape in ((4, 3), (4, 2, 3)):
            with pytest.raises(ValueError, match=message):
                model(np.zeros(shape, np.float32))
        stream, x = model.stream(), input_for(model, rng, 9)
        assert [stream.step(x_t) is not None for x_t in x] == [False] * 4 + [True, False] * 2 + [
            True
        ]
        # What goes on from a state pools the rows before it, too, whether or not one is added.
        y, state = model(x[:5])
        assert_same_bits(model(x[:0], state)[0], y)
        assert_same_bits(model(x[:1], state)[0], y)
        assert_same_bits(model(x[5:7], state)[0], model(x[:7])[0])

    def test_final_does_not_stream_and_says_why(self, rng):
        both = recurrent("gru", 3, 4, bidirectional=True)
        model = build((both, spec.Pool("p", "final", 8)), rng)
        with pytest.raises(ValueError, match=r"^layer .rnn. is bidirectional: its"):
            model.stream()
