"""Cells that are not quite PyTorch's: each against its equations, written out in torch.

The reference is held to torch's float64, every kernel to the reference, and promise 1 to the same
bits in every way a sequence can be run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import (
    ISAS,
    LANES,
    ChainFile,
    build,
    by_reference,
    chain_of,
    input_for,
    model_file,
    recurrent,
    rounding,
    state_for,
    torch_function,
)
from test_cells import pairs
from ways import assert_every_way_agrees, assert_same_bits, assert_same_state

from fastlstm import Model

ENGINES = [*ISAS, "float64"]

# Every function of a single number, with parameters that matter for numbers of about one.
FUNCTIONS = (
    *("relu", "tanh", "sigmoid", "softsign", "softplus", "silu", "gelu", "gelu_tanh"),
    *("affine(0.5, 0.1)", "elu(0.7)", "leaky_relu(0.1)", "thresholded_relu(0.3)"),
    *("hard_sigmoid(0.2, 0.5)", "scaled_tanh(1.2, 0.6)", "hardtanh(-0.5, 0.7)"),
)
ODD = ("hard_sigmoid(0.2, 0.5)", "softsign", "scaled_tanh(1.7, 0.6)")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "peepholes": ("lstm", {"peepholes": True}),
    "coupled": ("lstm", {"coupled": True}),
    "coupled_peepholes": ("lstm", {"coupled": True, "peepholes": True}),
    "clip": ("lstm", {"clip": 0.5}),
    "cell_clip": ("lstm", {"cell_clip": 0.2}),
    "activations": ("lstm", {"activations": ODD}),
    "norm_product": ("lstm", {"layer_norm": "product"}),
    "norm_gate": ("lstm", {"layer_norm": "gate", "layer_norm_eps": 1e-3}),
    "everything_product": (
        "lstm",
        {"layer_norm": "product", "peepholes": True, "clip": 0.9, "cell_clip": 0.8,
         "activations": ODD},
    ),
    "everything_gate": (
        "lstm",
        {"layer_norm": "gate", "peepholes": True, "coupled": True, "clip": 0.9, "cell_clip": 0.8,
         "activations": ODD},
    ),
    "coupled_product": ("lstm", {"layer_norm": "product", "coupled": True}),
    "before": ("gru", {"reset_after": False}),
    "before_odd": ("gru", {"reset_after": False, "clip": 0.5, "activations": ODD[:2]}),
    "after_odd": ("gru", {"clip": 0.5, "activations": ODD[1:]}),
    "rnn_odd": ("rnn", {"nonlinearity": "softsign", "clip": 0.4}),
}  # fmt: skip

STACKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 3},
    "no_bias": {"bias": False},
    "both_ways": {"bidirectional": True, "num_layers": 2},
    "projected": {"proj_size": 5, "num_layers": 2},
    "everything": {"proj_size": 3, "num_layers": 2, "bidirectional": True, "bias": False,
                   "initial_state": True},
    "reverse": {"reverse": True, "num_layers": 2},
    "learned": {"initial_state": True, "num_layers": 2},
}  # fmt: skip


def in_turn(stacks: Collection[str], others: Sequence[str]) -> list[tuple[str, str, str]]:
    """Every variant with every stack, by others in turn: each of them meets all of both."""
    return [
        (variant, stack, others[(i + j) % len(others)])
        for i, variant in enumerate(VARIANTS)
        for j, stack in enumerate(stacks)
    ]


def layer_of(variant: str, inputs: int, hidden: int, **options: Any) -> spec.Recurrent:
    kind, own = VARIANTS[variant]
    cls = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}[kind]
    if kind != "lstm":
        options.pop("proj_size", None)
    return cls("rnn", inputs, hidden, **own, **options)


# The same, written out in torch

Tensors = Mapping[str, Any]


def torch_lstm(layer: spec.LSTM, d: int, w: Tensors, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """A step; with `layer_norm` "product" LayerNormLSTMCell of PyTorch's custom_lstms.py."""
    import torch

    H, G = layer.hidden_size, layer.gate_count
    of_gates, of_candidate, of_c = (torch_function(str(f)) for f in layer.functions(d))

    def norm(v: Any, weight: Any, bias: Any = None) -> Any:
        return torch.nn.functional.layer_norm(v, v.shape[-1:], weight, bias, layer.layer_norm_eps)

    def bounded(v: Any) -> Any:
        return v.clamp(-layer.clip, layer.clip) if layer.clip else v

    from_x, from_h = torch.mm(x, w["weight_ih"].t()), torch.mm(h, w["weight_hh"].t())
    if layer.layer_norm == "product":
        from_x = norm(from_x, w["weight_norm_ih"], w["bias_norm_ih"])
        from_h = norm(from_h, w["weight_norm_hh"], w["bias_norm_hh"])
    bias = w["bias_ih"] + w["bias_hh"] if layer.bias else torch.zeros(G * H, dtype=x.dtype)
    gates, biases = list((from_x + from_h).chunk(G, 1)), bias.chunk(G)
    scales = w["weight_norm"].chunk(G) if layer.layer_norm == "gate" else [None] * G
    peepholes = list(w["weight_peephole"].chunk(G - 1)) if layer.peepholes else [0.0] * (G - 1)

    def gate(number: int, peephole: Any, seen: Any) -> Any:
        z = gates[number] + peephole * seen
        if layer.layer_norm == "gate":
            z = norm(z, scales[number])
        return bounded(z + biases[number])

    i = of_gates(gate(0, peepholes[0], c))
    f = 1 - i if layer.coupled else of_gates(gate(1, peepholes[1], c))
    g = of_candidate(gate(G - 2, 0.0, c))
    c = f * c + i * g
    if layer.layer_norm == "product":
        c = norm(c, w["weight_norm_c"], w["bias_norm_c"])
    if layer.cell_clip:
        c = c.clamp(-layer.cell_clip, layer.cell_clip)
    o = of_gates(gate(G - 1, peepholes[-1], c))
    h = o * of_c(bounded(c))
    return (torch.mm(h, w["weight_hr"].t()) if layer.proj_size else h), c


def torch_gru(layer: spec.GRU, d: int, w: Tensors, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """A step; without `reset_after` ONNX's linear_before_reset=0."""
    import torch

    H = layer.hidden_size
    of_gates, of_candidate = (torch_function(str(f)) for f in layer.functions(d))
    none = torch.zeros(3 * H, dtype=x.dtype)
    b_x, b_h = (w.get(name, none) for name in ("bias_ih", "bias_hh"))

    def bounded(v: Any) -> Any:
        return v.clamp(-layer.clip, layer.clip) if layer.clip else v

    def gate(number: int, before: Any) -> Any:
        rows = slice(number * H, (number + 1) * H)
        return torch.nn.functional.linear(before, w["weight_hh"][rows], b_h[rows])

    r_x, z_x, n_x = torch.nn.functional.linear(x, w["weight_ih"], b_x).chunk(3, 1)
    r, z = (of_gates(bounded(v + gate(k, h))) for k, v in ((0, r_x), (1, z_x)))
    n = n_x + (r * gate(2, h) if layer.reset_after else gate(2, r * h))
    return (1 - z) * of_candidate(bounded(n)) + z * h, c


def torch_rnn(layer: spec.RNN, d: int, w: Tensors, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    (function,) = layer.functions(d)
    z = x @ w["weight_ih"].t() + h @ w["weight_hh"].t()
    if layer.bias:
        z = z + w["bias_ih"] + w["bias_hh"]
    return torch_function(str(function))(z.clamp(-layer.clip, layer.clip) if layer.clip else z), c


def torch_stack(
    layer: spec.Recurrent,
    tensors: Mapping[str, np.ndarray],
    x: np.ndarray,
    state: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A stack of cells over a sequence (T, B, I)."""
    import torch

    step = {"lstm": torch_lstm, "gru": torch_gru, "rnn": torch_rnn}[layer.kind]
    given_state = {n: torch.zeros(d, x.shape[1], s) for n, (d, s) in layer.state().items()}
    for name, tensor in layer.initial().items():
        given_state[name] = torch.from_numpy(tensors[tensor])[:, None].expand(-1, x.shape[1], -1)
    given_state |= {n: torch.from_numpy(a) for n, a in (state or {}).items()}
    given_state = {n: list(a.to(torch.float64)) for n, a in given_state.items()}
    hs = given_state["rnn.h"]
    cs = given_state.get("rnn.c", [None] * len(hs))
    value = list(torch.from_numpy(x).to(torch.float64))
    depth = 0
    for n in range(layer.num_layers):
        outputs = []
        for d in range(layer.directions):
            suffix = f"_l{n}" + "_reverse" * d
            w = {
                name.removeprefix("rnn.").removesuffix(suffix): torch.from_numpy(a)
                for name, a in tensors.items()
                if name.endswith(suffix)
            }
            backwards = d == 1 or layer.reverse
            found = []
            for x_t in value[::-1] if backwards else value:
                hs[depth], cs[depth] = step(layer, d, w, x_t, hs[depth], cs[depth])
                found.append(hs[depth])
            outputs.append(found[::-1] if backwards else found)
            depth += 1
        value = [torch.cat(both, 1) for both in zip(*outputs, strict=True)]
    after = {n: torch.stack(list(a)).numpy() for n, a in given_state.items()}
    return torch.stack(value).numpy(), after


def assert_close(
    got: tuple[np.ndarray, Mapping], expected: tuple[np.ndarray, Mapping], bound: float
) -> None:
    assert got[0].shape == expected[0].shape
    np.testing.assert_allclose(got[0], expected[0], rtol=bound, atol=bound)
    assert list(got[1]) == list(expected[1])
    for name, array in got[1].items():
        np.testing.assert_allclose(array, expected[1][name], rtol=bound, atol=bound, err_msg=name)


class TestReference:
    """The reference is these equations, to 12 digits in float64."""

    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch", reason="computes with torch")

    @pytest.mark.parametrize("stack", STACKS)
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_variant(self, variant, stack, rng):
        layer = layer_of(variant, 4, 7, **STACKS[stack])
        file = model_file(layer, rng, np.float64)
        model = Model(file)
        x = rng.standard_normal((4, 3, 4))
        for state in (None, state_for(model, rng, 3)):
            expected = torch_stack(layer, file.tensors, x, state)
            assert_close(reference.forward([layer], file.tensors, x, state), expected, 1e-12)
            assert_close(model(x, state), expected, 1e-12)

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_every_function(self, function, rng):
        for layer in with_function(function, 4, 6):
            file = model_file(layer, rng, np.float64)
            x = 2 * rng.standard_normal((5, 3, 4))
            expected = torch_stack(layer, file.tensors, x)
            assert_close(reference.forward([layer], file.tensors, x), expected, 1e-12)

    def test_a_cell_of_pytorch_s_benchmark(self, torch, rng):
        """LayerNormLSTMCell, with modules for its normalisations: no bias but theirs."""
        layer = spec.LSTM("rnn", 3, 5, bias=False, layer_norm="product")
        file = model_file(layer, rng, np.float64)
        w = {n.removeprefix("rnn.").removesuffix("_l0"): torch.from_numpy(a)
             for n, a in file.tensors.items()}  # fmt: skip
        norms = {}
        for name, size in (("ih", 20), ("hh", 20), ("c", 5)):
            norms[name] = torch.nn.LayerNorm(size).double()
            values = {"weight": w[f"weight_norm_{name}"], "bias": w[f"bias_norm_{name}"]}
            norms[name].load_state_dict(values)
        x = rng.standard_normal((6, 2, 3))
        y, _ = reference.forward([layer], file.tensors, x)
        h = c = torch.zeros(2, 5, dtype=torch.float64)
        with torch.no_grad():
            for x_t, y_t in zip(torch.from_numpy(x), y, strict=True):
                of_x = norms["ih"](torch.mm(x_t, w["weight_ih"].t()))
                of_h = norms["hh"](torch.mm(h, w["weight_hh"].t()))
                i, f, g, o = (of_x + of_h).chunk(4, 1)
                c = norms["c"](f.sigmoid() * c + i.sigmoid() * g.tanh())
                h = o.sigmoid() * c.tanh()
                np.testing.assert_allclose(y_t, h.numpy(), rtol=0, atol=1e-12)


def with_function(function: str, inputs: int, hidden: int) -> list[spec.Recurrent]:
    """Cells with a function at each place that can have one."""
    lstm = [("sigmoid", "tanh", "tanh")] * 3
    places = [(*one[:n], function, *one[n + 1 :]) for n, one in enumerate(lstm)]
    cells: list[spec.Recurrent] = [
        spec.LSTM("rnn", inputs, hidden, activations=place) for place in places
    ]
    for place in ((function, "tanh"), ("sigmoid", function)):
        for after in (True, False):
            cells.append(spec.GRU("rnn", inputs, hidden, reset_after=after, activations=place))
    return [*cells, spec.RNN("rnn", inputs, hidden, nonlinearity=function)]


def bound_of(layer: spec.Recurrent, dtype: Any) -> float:
    """What is nearly constant is normalised to what rounding left of it."""
    factor = 50 if getattr(layer, "layer_norm", "") else 1
    return factor * (4e-6 if dtype == np.float32 else 1e-13)


def engine_model(file: ChainFile, engine: str, **options: Any) -> Model:
    return Model(file, isa=None if engine == "float64" else engine, **options)


EVERY_ENGINE = pytest.mark.parametrize("engine", ENGINES)


class TestEngine:
    def check(self, layers: Any, engine: str, rng, *shapes: tuple[int, int]) -> None:
        dtype = np.float64 if engine == "float64" else np.float32
        file = model_file(layers, rng, dtype)
        model = engine_model(file, engine)
        bound = max(bound_of(layer, dtype) for layer in file.layers)
        for T, B in shapes:
            x, state = input_for(model, rng, T, B), state_for(model, rng, B)
            expected = reference.forward(file.layers, file.tensors, x, state)
            assert_close(model(x, state), expected, bound)

    @EVERY_ENGINE
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_sizes_around_lane_edges(self, engine, variant, rng):
        L = LANES.get(engine, 1)
        edges = sorted({1, max(L - 1, 1), L, L + 1, 2 * L + 3})
        for I, H in pairs(edges):  # noqa: E741
            if "product" in variant and H == 1:
                continue  # one number less its mean is nothing but rounding
            self.check(layer_of(variant, I, H), engine, rng, (3, 2), (1, 7))

    @pytest.mark.parametrize(("variant", "stack", "engine"), in_turn(STACKS, ENGINES))
    def test_stacks(self, engine, variant, stack, rng):
        H = 2 * LANES.get(engine, 1) + 6
        layer = layer_of(variant, 5, H, **STACKS[stack])
        self.check(layer, engine, rng, (0, 1), (7, 1), (4, 5))

    @EVERY_ENGINE
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_tokens_in_front(self, engine, variant, rng):
        H = LANES.get(engine, 1) + 3
        for first, stack in (
            (spec.OneHot("o", 9), {"num_layers": 2}),
            (spec.Embedding("e", 9, 4), {"bidirectional": True, "bias": False}),
        ):
            layer = layer_of(variant, first.output_size, H, **stack)
            self.check((first, layer), engine, rng, (6, 3))

    @EVERY_ENGINE
    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_every_function(self, engine, function, rng):
        for layer in with_function(function, 4, LANES.get(engine, 1) + 2):
            self.check(layer, engine, rng, (5, 3))

    @EVERY_ENGINE
    def test_long_sequences(self, engine, rng):
        for variant in VARIANTS:
            # The error of a cell that is normalised grows with every step.
            T = 25 if "norm" in variant or "product" in variant else 150
            self.check(layer_of(variant, 9, 40), engine, rng, (T, 2))


class TestSameBits:
    """Promise 1."""

    @pytest.mark.parametrize(
        ("variant", "stack", "isa"),
        in_turn(["plain", "projected", "learned", "everything", "reverse"], ISAS),
    )
    def test_every_way_agrees(self, isa, variant, stack, rng):
        layer = layer_of(variant, LANES[isa] + 1, 2 * LANES[isa] + 4, **STACKS[stack])
        model = build(layer, rng, isa=isa, reproducible=True)
        assert_every_way_agrees(model, rng, 7, (1, 7))

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_long_sequences_in_pieces(self, isa, variant, rng):
        """Longer than a chunk, whose input projections are made together."""
        model = build(layer_of(variant, 33, 17), rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 700)
        y, after = model(x)
        stream = model.stream()
        cuts = [0, 1, 3, 300, 301, 700]
        assert_same_bits(np.concatenate([stream.run(x[a:b]) for a, b in zip(cuts, cuts[1:])]), y)  # noqa: B905, RUF007
        assert_same_state(stream.state, after)

    @pytest.mark.parametrize("variant", ["peepholes", "norm_gate", "before"])
    def test_in_float64(self, variant, rng):
        model = build(layer_of(variant, 5, 7, num_layers=2), rng, np.float64, reproducible=True)
        assert_every_way_agrees(model, rng)


class TestRounding:
    """Promise 2, where torch has no such layer: at most twice the error of the reference itself.

    Kernels for vectors give the same bits (``test_same_bits.py``): the best stands for them all.
    """

    @pytest.mark.parametrize("isa", dict.fromkeys([ISAS[0], "scalar"]))
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_against_the_reference_in_float32(self, isa, variant):
        ratio = rounding((layer_of(variant, 40, 64),), isa, by_reference)
        assert ratio <= 2, f"{ratio:.2f} times the reference's error"


class TestInitialState:
    LAYER = spec.LSTM("rnn", 3, 5, 2, proj_size=2, initial_state=True)

    @pytest.fixture
    def model(self, rng) -> Model:
        layers = (self.LAYER, spec.GRU("g", 2, 4), spec.GRU("k", 4, 3, initial_state=True))
        return build(layers, rng, reproducible=True)

    def test_is_what_was_learned(self, model):
        tensors = model.tensors
        for batch in (None, 1, 3):
            state = model.initial_state(batch)
            stream = model.stream(batch).state
            assert list(state) == ["rnn.h", "rnn.c", "g.h", "k.h"]
            for name, array in state.items():
                learned = tensors.get(f"{name}_0", np.zeros((1, 4), np.float32))
                for b in range(batch or 1):
                    row = array if batch is None else array[:, b]
                    assert_same_bits(row, learned)
                assert_same_bits(stream[name], array)

    def test_starts_calls_and_streams(self, model, rng):
        x = input_for(model, rng, 6, 2)
        y, after = model(x)
        again, _ = model(x, model.initial_state(2))
        assert_same_bits(again, y)
        expected, _ = reference.forward(chain_of(model), model.tensors, x)
        np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6)
        stream = model.stream(2)
        for _ in range(2):
            assert_same_bits(stream.run(x), y)
            assert_same_state(stream.state, after)
            stream.reset()
            assert_same_state(stream.state, model.initial_state(2))
        zeros = {n: np.zeros_like(a) for n, a in after.items()}
        assert not np.array_equal(model(x, zeros)[0], y)
        stream.state = zeros
        assert_same_bits(stream.run(x), model(x, zeros)[0])

    def test_of_rows_that_have_no_step(self, model):
        x = np.zeros((0, 3, 3), np.float32)
        assert_same_state(model(x)[1], model.initial_state(3))
        x = np.zeros((4, 3, 3), np.float32)
        _, state = model(x, lengths=np.zeros(3, int))
        assert_same_state(state, model.initial_state(3))

    def test_is_not_changed_by_running(self, model, rng):
        before = model.initial_state(2)
        stream = model.stream(2)
        stream.run(input_for(model, rng, 5, 2))
        handed_out = model.initial_state(2)
        for array in handed_out.values():
            array[...] = 7
        assert_same_state(model.initial_state(2), before)
        assert_same_state(model.stream(2).state, before)


class TestDirections:
    """A backward direction is the cell on the reversed sequence, whatever its functions."""

    CELLS = (
        (spec.LSTM, {"activations": (*ODD, "sigmoid", "tanh", "relu"), "peepholes": True}),
        (spec.GRU, {"activations": (*ODD[:2], "sigmoid", "tanh"), "reset_after": False}),
        (spec.RNN, {"nonlinearity": "relu", "nonlinearity_reverse": "softsign"}),
    )

    @pytest.mark.parametrize(("cls", "options"), CELLS)
    def test_functions_of_each(self, isa, cls, options, rng):
        H = LANES[isa] + 1
        both = cls("rnn", 3, H, bidirectional=True, **options)
        file = model_file(both, rng)
        x = rng.standard_normal((9, 2, 3)).astype(np.float32)
        y, state = Model(file, isa=isa, reproducible=True)(x)
        for d, suffix in enumerate(("_l0", "_l0_reverse")):
            own = {n.removesuffix("_reverse"): a for n, a in file.tensors.items()
                   if n.endswith(suffix)}  # fmt: skip
            one = {k: v for k, v in options.items() if not isinstance(v, tuple | str)}
            texts = [str(f) for f in both.functions(d)]
            one["nonlinearity" if cls is spec.RNN else "activations"] = (
                texts[0] if cls is spec.RNN else tuple(texts)
            )
            for layer, flip in (
                (cls("rnn", 3, H, **one), -1 if d else 1),
                (cls("rnn", 3, H, reverse=bool(d), **one), 1),
            ):
                model = Model(ChainFile((layer,), own), isa=isa, reproducible=True)
                alone, after = model(np.ascontiguousarray(x[::flip]))
                assert_same_bits(alone[::flip], y[..., d * H : (d + 1) * H])
                for name, array in after.items():
                    assert_same_bits(array[0], state[name][d])

    def test_reverse_does_not_stream_and_says_why(self, rng):
        model = build(recurrent("gru", 3, 4, reverse=True), rng)
        message = (
            "layer 'rnn' runs backwards: it starts at the last step, so there is no output before "
            r"the whole sequence is known; call model\(x\) with whole sequences instead"
        )
        with pytest.raises(ValueError, match=f"^{message}$"):
            model.stream()

    def test_reverse_of_a_long_sequence(self, isa, rng):
        """A whole sequence passes through it at once, however long."""
        layers = (recurrent("gru", 3, 5, reverse=True), recurrent("lstm", 5, 4, "second"))
        model = build(layers, rng, isa=isa, reproducible=True)
        x = input_for(model, rng, 3000)
        y, _ = model(x)
        first = ChainFile(layers[:1], {n: a for n, a in model.tensors.items() if "rnn" in n})
        middle, _ = Model(first, isa=isa, reproducible=True)(x)
        rest = {n: a for n, a in model.tensors.items() if "second" in n}
        second = Model(ChainFile(layers[1:], rest), isa=isa, reproducible=True)
        assert_same_bits(second(middle)[0], y)


class TestExtremes:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_large_inputs_stay_finite(self, isa, variant, rng):
        layer = layer_of(variant, 3, LANES[isa] + 1)
        model = build(layer, rng, isa=isa)
        for scale in (1e2, 1e10):
            y, state = model((input_for(model, rng, 5, 3) * scale).astype(np.float32))
            assert all(np.isfinite(a).all() for a in (y, *state.values()))

    def test_clip_bounds_what_functions_see(self, isa, rng):
        """An identity as every function shows it: |h| cannot be beyond the products of bounds."""
        same = "affine(1.0, 0.0)"
        layer = spec.LSTM("rnn", 3, 19, clip=0.5, cell_clip=0.25, activations=(same,) * 3)
        model = build(layer, rng, isa=isa)
        y, state = model(100 * input_for(model, rng, 9, 3))
        assert np.abs(state["rnn.c"]).max() == 0.25
        assert np.abs(y).max() == 0.125

    def test_coupled_gates_add_up_to_one(self, isa, rng):
        """A cell whose candidate is always one moves towards it and never beyond."""
        functions = ("sigmoid", "affine(0.0, 1.0)", "tanh")
        layer = spec.LSTM("rnn", 3, 19, coupled=True, activations=functions)
        model = build(layer, rng, isa=isa)
        _, state = model(input_for(model, rng, 200, 2))
        np.testing.assert_allclose(state["rnn.c"], 1, rtol=1e-6)

    @pytest.mark.parametrize("norm", ["product", "gate"])
    def test_what_does_not_vary_is_normalised_to_nothing(self, isa, norm, rng):
        """A hidden size of one, and weights of zero: only weights and biases remain."""
        for H in (1, LANES[isa] + 1):
            file = model_file(spec.LSTM("rnn", 3, H, layer_norm=norm), rng)
            for name, array in file.tensors.items():
                if "weight_ih" in name or "weight_hh" in name:
                    array[...] = 0
            x = rng.standard_normal((4, 2, 3)).astype(np.float32)
            expected = reference.forward(file.layers, file.tensors, x)
            assert_close(Model(file, isa=isa)(x), expected, 4e-6)
