"""Every cell and option computes what torch computes, as exactly as torch does.

Against three truths: the float64 reference, torch itself where it is installed, and outputs that
torch once gave (``tests/data/golden.npz``, by ``tools/make_golden.py``). Every instruction set of
the machine is forced in turn.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import (
    CELLS,
    ISAS,
    LANES,
    ChainFile,
    build,
    chain_of,
    input_for,
    model_file,
    recurrent,
    state_for,
    torch_forward,
)

from fastlstm import Model

HERE = Path(__file__).resolve().parent

# Largest float32 error of these short sequences, relative to outputs of at most about 1, over ten
# times what is seen; a wrong lane, gate or weight shows as 1e-2.
TOLERANCE = 4e-6

# "float64" stands for a model in float64, whose kernel is the plain one.
ENGINES = [*ISAS, "float64"]


def engine_model(file: ChainFile, engine: str) -> Model:
    return Model(file, isa=None if engine == "float64" else engine)


def dtype_of(engine: str) -> Any:
    return np.float64 if engine == "float64" else np.float32


def assert_close(y: np.ndarray, expected: np.ndarray) -> None:
    assert y.shape == expected.shape
    tolerance = TOLERANCE if y.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


def assert_all_close(
    got: tuple[np.ndarray, dict[str, np.ndarray]], expected: tuple[np.ndarray, dict]
) -> None:
    assert_close(got[0], expected[0])
    assert list(got[1]) == list(expected[1])
    for name, array in got[1].items():
        assert_close(array, expected[1][name])


def sizes(engine: str) -> list[int]:
    """Around the edges of this kernel's vectors."""
    L = LANES.get(engine, 1)
    return sorted({1, max(L - 1, 1), L, L + 1, 2 * L + 3})


def pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Each of the values with itself, and with one that is not next to it."""
    far = (len(values) + 1) // 2
    rolled = (*values[far:], *values[:far])
    return sorted({*zip(values, values, strict=True), *zip(values, rolled, strict=True)})


# Every kernel's sizes, as one list of parameters: (engine, I, H).
EDGES = [(e, *pair) for e in ENGINES for pair in pairs(sizes(e))]
TS, BS = (0, 1, 2, 17), (1, 2, 5, 17)
SHAPES = ((0, 2), (1, 17), (2, 1), (17, 5))

OPTIONS: dict[str, dict[str, Any]] = {
    "two_layers": {"num_layers": 2},
    "three_layers": {"num_layers": 3},
    "no_bias": {"bias": False},
    "both_ways": {"bidirectional": True},
    "both_ways_deep_no_bias": {"bidirectional": True, "num_layers": 3, "bias": False},
    "proj": {"proj_size": 3},
    "proj_wide": {"proj_size": 17, "num_layers": 2},
    "proj_both_ways": {"proj_size": 5, "num_layers": 2, "bidirectional": True, "bias": False},
}


def cells_with(option: str) -> list[str]:
    return ["lstm"] if option.startswith("proj") else list(CELLS)


OPTION_CASES = [(cell, option) for option in OPTIONS for cell in cells_with(option)]


class TestAgainstReference:
    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize(("engine", "I", "H"), EDGES)
    def test_sizes_around_lane_edges(self, rng, cell, engine, I, H):  # noqa: E741
        file = model_file(recurrent(cell, I, H), rng, dtype_of(engine))
        model = engine_model(file, engine)
        x, start = input_for(model, rng, TS[-1], BS[-1]), state_for(model, rng, BS[-1])
        # One direction only, so that every shorter sequence is the beginning of the longest.
        y, _ = reference.forward(file.layers, file.tensors, x, start)
        for B in BS:
            state = {n: a[:, :B].copy() for n, a in start.items()}
            for T in TS:
                got, after = model(x[:T, :B], state)
                assert_close(got, y[:T, :B])
                h = after["rnn.h"][0]
                assert np.array_equal(h, got[-1] if T else state["rnn.h"][0])

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize(("cell", "option"), OPTION_CASES)
    def test_options(self, rng, cell, option, engine):
        L = LANES.get(engine, 1)
        layer = recurrent(cell, L + 1, 2 * L + 19, **OPTIONS[option])
        file = model_file(layer, rng, dtype_of(engine))
        model = engine_model(file, engine)
        for T, B in SHAPES:
            x, state = input_for(model, rng, T, B), state_for(model, rng, B)
            expected = reference.forward(file.layers, file.tensors, x, state)
            assert_all_close(model(x, state), expected)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_layers_around_a_cell(self, rng, engine):
        L = LANES.get(engine, 1)
        widths = (1, L, 3 * L + 1, 4 * L, 5 * L + 2, 9 * L + 1)
        for before, after in pairs(widths):
            layers = (
                spec.Embedding("e", 7, before),
                spec.Linear("in", before, after, bias=bool(after % 2)),
                spec.Activation("t", "tanh", after),
                recurrent("gru", after, L + 1),
                spec.Linear("out", L + 1, before),
                spec.Activation("p", "softmax", before),
            )
            file = model_file(layers, rng, dtype_of(engine))
            model = engine_model(file, engine)
            x = input_for(model, rng, 9, 4)
            assert_all_close(model(x), reference.forward(layers, file.tensors, x))

    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("engine", ENGINES)
    def test_one_hot_input(self, rng, cell, engine):
        for before in ((), (spec.Linear("in", 9, 6),)):
            width = 6 if before else 9
            layers = (spec.OneHot("o", 9), *before, recurrent(cell, width, 19, num_layers=2))
            file = model_file(layers, rng, dtype_of(engine))
            model = engine_model(file, engine)
            x = input_for(model, rng, 9, 4)
            assert_all_close(model(x), reference.forward(layers, file.tensors, x))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_long_sequence_with_many_rows(self, rng, engine):
        """Longer than the engine's own pieces of a sequence, and with a state that matters."""
        for cell in CELLS:
            file = model_file(recurrent(cell, 5, 70), rng, dtype_of(engine))
            model = engine_model(file, engine)
            for T, B in ((320, 3), (8, 100)):
                x, state = input_for(model, rng, T, B), state_for(model, rng, B)
                assert_all_close(
                    model(x, state), reference.forward(file.layers, file.tensors, x, state)
                )


# Around the edges of a block of a sum (16 and 32 inputs) and of a part of one (a quarter or half).
WIDE_INPUTS = [8, 16, 31, 32, 33, 40, 63, 64, 65, 96, 100, 128, 160]


@pytest.mark.parametrize("cell", CELLS)
class TestParts:
    """A long sequence is cut into chunks and parts, whose input products are made together."""

    @pytest.mark.parametrize("I", WIDE_INPUTS)
    def test_same_bits_as_step_by_step(self, rng, cell, isa, I):  # noqa: E741
        """Every step by itself is the same computation: the reference sees the first of them."""
        sizes = ((1, 600), (17, 300), (40, 130), (130, 60))
        first = WIDE_INPUTS.index(I) % 2
        for H, T in sizes[first::2]:
            model = build(recurrent(cell, I, H), rng, isa=isa, reproducible=True)
            x, state = input_for(model, rng, T), state_for(model, rng, None)
            whole, stepped = model.stream(), model.stream()
            whole.state = stepped.state = state
            y = whole.run(x)
            assert np.array_equal(y, [stepped.step(x_t) for x_t in x]), (H, T)
            rows = {name: array[:, None] for name, array in state.items()}
            assert_close(y[:40, None], reference_of(model, x[:40, None], rows))

    @pytest.mark.parametrize(
        ("I", "H", "T", "B"), [(33, 17, 310, 1), (64, 40, 129, 1), (100, 40, 50, 3)]
    )
    def test_both_directions_of_a_stack(self, rng, cell, isa, I, H, T, B):  # noqa: E741
        options = {"num_layers": 2, "bidirectional": True}
        if cell == "lstm":
            options["proj_size"] = 9
        model = build(recurrent(cell, I, H, **options), rng, isa=isa)
        x = input_for(model, rng, T, B)
        assert_close(model(x)[0], reference_of(model, x))


def reference_of(
    model: Model, x: np.ndarray, state: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    return reference.forward(chain_of(model), model.tensors, x, state)[0]


class TestAgainstTorch:
    """Of one kernel and of float64: every kernel equals the reference, and that equals torch
    (``test_reference.py``)."""

    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch", reason="compares with torch itself")

    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("engine", ENGINES[-2:])
    def test_sizes_around_lane_edges(self, rng, cell, engine):
        for I, H in pairs(sizes(engine)):  # noqa: E741
            file = model_file(recurrent(cell, I, H), rng, dtype_of(engine))
            model = engine_model(file, engine)
            for T, B in ((1, 1), (2, 17), (17, 5)):
                x, state = input_for(model, rng, T, B), state_for(model, rng, B)
                expected = torch_forward(file.layers, file.tensors, x, state)
                assert_all_close(model(x, state), expected)

    @pytest.mark.parametrize("engine", ENGINES[-2:])
    @pytest.mark.parametrize(("cell", "option"), OPTION_CASES)
    def test_options(self, rng, cell, option, engine):
        file = model_file(recurrent(cell, 5, 19, **OPTIONS[option]), rng, dtype_of(engine))
        model = engine_model(file, engine)
        for T, B in SHAPES[1:]:
            x, state = input_for(model, rng, T, B), state_for(model, rng, B)
            assert_all_close(model(x, state), torch_forward(file.layers, file.tensors, x, state))
            assert_all_close(model(x), torch_forward(file.layers, file.tensors, x))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_unbatched(self, rng, engine):
        for cell in CELLS:
            layer = recurrent(cell, 5, 19, num_layers=2, bidirectional=True)
            file = model_file(layer, rng, dtype_of(engine))
            model = engine_model(file, engine)
            x, state = input_for(model, rng, 7), state_for(model, rng, None)
            assert_all_close(model(x, state), torch_forward(file.layers, file.tensors, x, state))

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("function", spec.ACTIVATIONS)
    def test_activations(self, rng, function, engine):
        for size in (*sizes(engine), 100):
            layers = (spec.Linear("in", 3, size), spec.Activation("f", function, size))
            file = model_file(layers, rng, dtype_of(engine))
            x = 8 * input_for(engine_model(file, engine), rng, 40, 3)
            got = engine_model(file, engine)(x)
            assert_all_close(got, torch_forward(layers, file.tensors, x))


# What torch recorded


@functools.cache
def tool() -> ModuleType:
    """``tools/make_golden.py``, which draws a case's weights and input again."""
    path = HERE.parent / "tools" / "make_golden.py"
    made = importlib.util.spec_from_file_location("make_golden", path)
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


@functools.cache
def golden() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(HERE / "data" / "golden.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("notes").tobytes()), arrays


def drawn(name: str, entries: list[dict], T: int, B: int) -> tuple[np.ndarray, ChainFile]:
    layers = tuple(spec.layer_from_dict(entry) for entry in entries)
    shapes = {n: shape for layer in layers for n, shape in layer.tensors().items()}
    x = tool().draw_input(name, entries[0], T, B)
    return x, ChainFile(layers, tool().draw(name, entries, shapes))


def recorded(name: str, bits: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    prefix = f"{name}/{bits}/"
    found = {n.removeprefix(prefix): a for n, a in golden()[1].items() if n.startswith(prefix)}
    return found.pop("y"), found


SMALL = sorted(golden()[0]["small"])
LONG = sorted(golden()[0]["long"])


class TestAgainstRecords:
    def test_records_are_those_of_the_tool(self):
        notes, _ = golden()
        assert {n: case["layers"] for n, case in notes["small"].items()} == tool().small_cases()
        assert {n: case["layer"] for n, case in notes["long"].items()} == tool().long_cases()
        assert (HERE / "data" / "golden.npz").stat().st_size < 200_000

    @pytest.mark.parametrize("name", SMALL)
    def test_outputs_and_states(self, isa, name):
        case = golden()[0]["small"][name]
        x, file = drawn(name, case["layers"], tool().T, tool().B)
        assert tool().checksum(x, file.tensors) == case["checksum"], "other weights were drawn"
        assert_all_close(Model(file, isa=isa)(x), recorded(name, 32))
        assert_all_close(Model(file, isa=isa)(x), recorded(name, 64))

    @pytest.mark.parametrize("name", SMALL)
    def test_outputs_and_states_in_float64(self, name):
        x, file = drawn(name, golden()[0]["small"][name]["layers"], tool().T, tool().B)
        wide = ChainFile(file.layers, {n: a.astype(np.float64) for n, a in file.tensors.items()})
        x = x if file.layers[0].takes_tokens else x.astype(np.float64)
        assert_all_close(Model(wide)(x), recorded(name, 64))

    @pytest.mark.parametrize("name", SMALL)
    def test_reference(self, name):
        x, file = drawn(name, golden()[0]["small"][name]["layers"], tool().T, tool().B)
        assert_all_close(reference.forward(file.layers, file.tensors, x), recorded(name, 64))

    def test_torch_still_gives_them(self):
        pytest.importorskip("torch", reason="asks torch for the records again")
        for name in SMALL:
            x, file = drawn(name, golden()[0]["small"][name]["layers"], tool().T, tool().B)
            assert_all_close(torch_forward(file.layers, file.tensors, x), recorded(name, 32))


class TestRounding:
    """Promise 2: the largest float32 error is at most 1.5 times torch's own.

    The error of a model is its largest difference from the float64 reference over 32 steps of 8
    rows, 16000 numbers at H = 64. In one model the largest is chance, for torch as for the engine:
    their ratio varies by a half. So it is the median of seven models' ratios that is held to 1.5.

    Kernels for vectors give the same bits (``test_same_bits.py``): the best stands for them all.
    """

    FACTOR = 1.5

    @staticmethod
    def draws(name: str) -> list[tuple[np.ndarray, ChainFile]]:
        """(input, model) of every draw of weights."""
        case, found = golden()[0]["long"][name], []
        for seed, checksum in enumerate(case["checksums"]):
            shape = tool().LONG_T, tool().LONG_B
            x, file = drawn(f"{name} {seed}", [case["layer"]], *shape)
            assert tool().checksum(x, file.tensors) == checksum, "other weights were drawn"
            found.append((x, file))
        return found

    @classmethod
    @functools.cache
    def models(cls, name: str) -> list[tuple[np.ndarray, ChainFile, np.ndarray]]:
        """The same, and the float64 output of each."""
        return [
            (x, file, reference.forward(file.layers, file.tensors, x)[0])
            for x, file in cls.draws(name)
        ]

    @classmethod
    @functools.cache
    def errors_of_torch(cls, name: str) -> list[float]:
        """Of each draw, by the torch that is installed."""
        return [
            np.abs(torch_forward(f.layers, f.tensors, x)[0] - y).max()
            for x, f, y in cls.models(name)
        ]

    @pytest.mark.parametrize("isa", dict.fromkeys([ISAS[0], "scalar"]))
    @pytest.mark.parametrize("name", LONG)
    def test_against_recorded_errors(self, isa, name):
        """Of every draw; but scalar, which rounds products and sums apart, has 1.58 in one draw."""
        errors = [np.abs(Model(f, isa=isa)(x)[0] - y).max() for x, f, y in self.models(name)]
        ratios = np.divide(errors, golden()[0]["long"][name]["errors"])
        ratio = np.median(ratios) if isa == "scalar" else ratios.max()
        assert ratio <= self.FACTOR, f"{np.median(errors):.3g} is {ratio:.2f} times torch's error"

    @pytest.mark.parametrize("isa", dict.fromkeys([ISAS[0], "scalar"]))
    @pytest.mark.parametrize("name", LONG)
    def test_against_torch_here(self, isa, name):
        pytest.importorskip("torch", reason="measures the error of torch itself")
        errors = [np.abs(Model(f, isa=isa)(x)[0] - y).max() for x, f, y in self.models(name)]
        ratios = np.divide(errors, self.errors_of_torch(name))
        assert np.median(ratios) <= self.FACTOR, f"{np.median(ratios):.2f} times torch's error"


# Elementary functions


def dense_sample() -> np.ndarray:
    """Two million floats: every exponent of both signs, evenly in their bits, and specials."""
    bits = np.arange(0, 2**32, 2147, dtype=np.uint64).astype(np.uint32)
    special = np.array([0.0, -0.0, 1, -1, 87.33655, 88.0, 88.72284, 103.97, 9.01, 16.6, 0.625])
    edges = np.concatenate([special, -special, 2.0 ** np.arange(-126, 8)]).astype(np.float32)
    near = [edges, np.nextafter(edges, np.float32(9e9)), np.nextafter(edges, np.float32(-9e9))]
    infinite = np.array([np.inf, -np.inf, np.nan], np.float32)
    return np.concatenate([bits.view(np.float32), *near, infinite])


def stable_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x)))


class TestElementaryFunctions:
    """Sigmoid and tanh: at most 2 ulp beyond the correctly rounded value, so 2.5 from the true."""

    TINY = float(np.finfo(np.float32).tiny)

    @pytest.mark.parametrize(
        ("function", "truth"), [("tanh", np.tanh), ("sigmoid", stable_sigmoid)]
    )
    def test_error_in_ulp(self, isa, function, truth):
        size = 1003  # full vectors of every kernel, and a remainder
        x = dense_sample()
        x = np.concatenate([x, np.zeros(-len(x) % size, np.float32)])
        model = build(spec.Activation("f", function, size), isa=isa)
        y = model(x.reshape(-1, size))[0].ravel()
        assert np.array_equal(np.isnan(y), np.isnan(x))
        x, y = x[~np.isnan(x)].astype(np.float64), y[~np.isnan(x)]
        expected = truth(x)
        ulp = np.spacing(np.maximum(np.abs(expected), self.TINY).astype(np.float32))
        error = np.abs(y - expected) / ulp
        # Denormal outputs may be flushed to zero, and so may what rounds to one.
        flushed = (y == 0) & (np.abs(expected) < self.TINY * (1 + 2.0**-21))
        assert np.isfinite(y).all()
        error[flushed] = 0
        worst = int(error.argmax())
        assert error[worst] <= 2.5, f"{error[worst]:.2f} ulp at x = {x[worst]!r}"
        assert np.abs(y).max() <= 1
        if function == "tanh":  # odd, also in the sign of zero
            assert np.array_equal(np.signbit(y), np.signbit(x))

    @pytest.mark.parametrize("function", ["tanh", "sigmoid"])
    def test_in_float64(self, function):
        rng = np.random.default_rng(3)
        x = np.concatenate([rng.standard_normal(20000) * s for s in (1e-9, 1, 30)])
        layers = (spec.Linear("one", 1, 1, bias=False), spec.Activation("f", function, 1))
        model = Model(ChainFile(layers, {"one.weight": np.ones((1, 1))}))
        truth = {"tanh": np.tanh, "sigmoid": stable_sigmoid}[function](x)
        y = model(x.reshape(-1, 1))[0][:, 0]
        np.testing.assert_allclose(y, truth, rtol=1e-15, atol=0)

    @pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
    def test_cells_saturate(self, isa, cell, rng):
        """Gates far outside the range where exp is finite leave nothing but clean 0 and 1."""
        file = model_file(recurrent(cell, 3, 19), rng)
        model = Model(file, isa=isa)
        for scale in (1e2, 1e4, 1e20, 1e37):
            x = (input_for(model, rng, 5, 3) * scale).astype(np.float32)
            y, state = model(x)
            assert all(np.isfinite(a).all() for a in (y, *state.values()))
            assert np.abs(y).max() <= 1
            # Where a gate happens to be near zero, its error is that of numbers of size `scale`.
            expected, _ = reference.forward(file.layers, file.tensors, x)
            assert np.median(np.abs(y - expected)) < 1e-6

    @pytest.mark.parametrize("function", spec.ACTIVATIONS)
    def test_alone_or_in_a_vector(self, isa, function, rng):
        """An elementwise function knows nothing of its lane, nor of its neighbours."""
        if "softmax" in function:
            pytest.skip("softmax is not elementwise")
        L = LANES[isa]
        x = np.concatenate([rng.standard_normal(4 * L) * 5, [np.nan, np.inf, -np.inf, -0.0, 1e-40]])
        x = x.astype(np.float32)
        together = build(spec.Activation("f", function, len(x)), isa=isa)(x[None])[0][0]
        alone = build(spec.Activation("f", function, 1), isa=isa)(x.reshape(-1, 1))[0][:, 0]
        assert np.array_equal(together, alone, equal_nan=True)
        assert np.array_equal(np.signbit(together), np.signbit(alone))


class TestNotFinite:
    """NaN where torch has NaN, infinities where torch has them; see also test_bad_input.py."""

    VALUES = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 3e38, -3e38, 100], np.float32)

    @staticmethod
    def expected(layer: spec.Activation, x: np.ndarray) -> np.ndarray:
        """What torch gives; of infinity the limit, where torch has 0 * inf or inf / inf."""
        if layer.function not in ("softsign", "softplus", "silu", "gelu", "gelu_tanh"):
            return torch_forward([layer], {}, x)[0]
        # Within float32 torch also overflows on the way to what is finite.
        y = torch_forward([layer], {}, x, dtype="float64")[0]
        limit = np.sign(x) if layer.function == "softsign" else np.maximum(x, 0)
        return np.where(np.isinf(x), limit, y)

    @pytest.mark.parametrize("function", spec.ACTIVATIONS)
    def test_activations(self, isa, function):
        pytest.importorskip("torch", reason="compares with torch itself")
        for size in (1, 2, 3):
            rows = np.array(list(itertools.product(self.VALUES, repeat=size)), np.float32)
            # Behind full vectors of zeros as well, so that remainders and full vectors are tried.
            padded = np.zeros((len(rows), 2 * LANES[isa] + size), np.float32)
            padded[:, -size:] = rows
            for x in (rows, padded, padded[:, ::-1].copy()):
                layer = spec.Activation("f", function, x.shape[1])
                y = build(layer, isa=isa)(x)[0]
                np.testing.assert_allclose(y, self.expected(layer, x), rtol=1e-6, atol=1e-37)

    @pytest.mark.parametrize("function", spec.ACTIVATIONS)
    def test_activations_against_reference(self, isa, function):
        for size in (1, 2, 3):
            x = np.array(list(itertools.product(self.VALUES, repeat=size)), np.float32)
            layer = spec.Activation("f", function, size)
            expected, _ = reference.forward([layer], {}, x[:, None])
            with np.errstate(over="ignore"):  # -6e38 is finite in float64 only
                expected = expected[:, 0].astype(np.float32)
            y = build(layer, isa=isa)(x)[0]
            np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-37)
