"""Layers of one step: the reference's equations equal torch's, or are written out anew."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from one_layer import EXAMPLES, draw, forward, graph_of, in_pieces, inputs_of

from fastlstm import reference, spec

torch = pytest.importorskip("torch")
F = torch.nn.functional


MOVEMENTS = {
    "slice": lambda x: x[1:, ::2, -3:],
    "flip": lambda x: x[:, ::-1, ::-1],
    "transpose": lambda x: x.transpose(2, 0, 1),
    "swap": lambda x: x.swapaxes(0, 2),
    "reshape": lambda x: x.reshape(5, 6),
    "flatten": lambda x: x.ravel(),
    "one number": lambda x: x[1, 2, 3],
    "expand": lambda x: np.broadcast_to(x[:, :1], (2, 6, x.shape[2])),
    "new axis": lambda x: x[:, None, :, :, None],
    "repeat": lambda x: np.repeat(x, 3, axis=1),
    "tile": lambda x: np.tile(x, (1, 2, 2)),
    "roll": lambda x: np.roll(x, 2, axis=2),
    "reflect": lambda x: np.pad(x, [(0, 0), (2, 1), (3, 4)], mode="reflect"),
    "replicate": lambda x: np.pad(x, [(1, 1), (2, 0), (3, 1)], mode="edge"),
    "circular": lambda x: np.pad(x, [(0, 0), (1, 2), (2, 2)], mode="wrap"),
    "split": lambda x: np.split(x, 5, axis=2)[3],
    "unfold": lambda x: np.lib.stride_tricks.sliding_window_view(x, 3, axis=2)[:, :, ::2],
    "shuffle": lambda x: x.reshape(2, 3, 5, 1).transpose(1, 0, 3, 2).reshape(6, 5),
    "diagonal": lambda x: np.diagonal(x, axis1=1, axis2=2),
    "take": lambda x: x[[1, 0, 1], [2, 2, 0]],
    "triangle": lambda x: x[:, *np.tril_indices(3, m=5)],
}

TORCH_OPERATIONS = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "power": torch.pow,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "where": lambda c, a, b: torch.where(c != 0, a, b),
}

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, -2.5, 1e-310, 1e308, math.inf, -math.inf, math.nan]

TORCH_FUNCTIONS = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": lambda x: F.softplus(x, threshold=800),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a: F.elu(x, a),
    "leaky_relu": lambda x, a: F.leaky_relu(x, a),
    "thresholded_relu": lambda x, a: F.threshold(x, a, 0.0),
    "hard_sigmoid": lambda x, a, b: torch.clamp(a * x + b, 0, 1),
    "scaled_tanh": lambda x, a, b: a * torch.tanh(b * x),
    "clip": lambda x, a, b: torch.clamp(x, a, b),
    "abs": torch.abs,
    "sign": torch.sign,
    "floor": torch.floor,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
}

# Where torch gives NaN of an infinite number, though there is a limit.
LIMITS = {
    "softsign": {math.inf: 1.0, -math.inf: -1.0},
    "silu": {-math.inf: 0.0},
    "gelu": {-math.inf: 0.0},
    "gelu_tanh": {-math.inf: 0.0},
}

PARAMETERS = [(0.3, 0.7), (1.0, 2.0), (-0.5, 0.25), (0.0, 0.0)]

REDUCTIONS = {
    "sum": lambda x, axes, keepdim: x.sum(axes, keepdim),
    "mean": lambda x, axes, keepdim: x.mean(axes, keepdim),
    "max": lambda x, axes, keepdim: torch.amax(x, axes, keepdim),
    "min": lambda x, axes, keepdim: torch.amin(x, axes, keepdim),
    "l2": lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim),
}

AXES = [axes for n in (1, 2, 3) for axes in itertools.combinations((-1, -2, -3), n)]


def assert_same(actual, expected, tolerance=1e-12, note=""):
    if isinstance(expected, torch.Tensor):
        expected = expected.numpy()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=str(note))


class TestExamples:
    """Whatever the layer: every dtype, every chunking."""

    def test_every_kind_is_there(self):
        assert {example.layer.kind for example in EXAMPLES.values()} == set(spec.KINDS)

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_float32_stays_float32(self, name, rng):
        example = EXAMPLES[name]
        graph = graph_of(example.layer, example.shapes, example.held, example.tokens)
        if not example.shapes:  # a constant runs beside an input of every step
            graph = spec.Graph([spec.Input("x0", (1,))], graph.nodes, graph.outputs)
        tensors, inputs = draw(graph, rng), inputs_of(graph, 9, 2, rng)
        exact = reference.forward(graph, tensors, inputs)["y"]
        y = reference.forward(graph, tensors, inputs, dtype=np.float32)["y"]
        assert exact.dtype == np.float64
        assert y.dtype == np.float32
        assert y.shape == exact.shape
        assert_same(y, exact, 1e-4)
        if spec.check(graph).looks_ahead:
            return
        held = {i.name: inputs[i.name] for i in graph.inputs if i.held}
        moving = {name: x for name, x in inputs.items() if name not in held}
        stream = reference.Stream(graph, tensors, 2, held=held, dtype=np.float32)
        pieces = [stream.run({name: x[:4] for name, x in moving.items()})["y"]]
        pieces += [stream.run({name: x[4:] for name, x in moving.items()})["y"]]
        pieces += [stream.flush()["y"]]
        assert {piece.dtype for piece in pieces} == {np.dtype(np.float32)}
        for suffix, state in stream.state.items():
            assert state.dtype == (np.int64 if suffix.endswith("count") else np.float32), suffix

    @pytest.mark.parametrize("name", [n for n, e in EXAMPLES.items() if e.shapes])
    @pytest.mark.parametrize("T", [1, 2, 13])
    def test_pieces_of_a_stream_are_the_whole(self, name, T, rng):
        example = EXAMPLES[name]
        graph = graph_of(example.layer, example.shapes, example.held, example.tokens)
        facts = spec.check(graph)
        tensors, inputs = draw(graph, rng), inputs_of(graph, T, 3, rng)
        whole = reference.forward(graph, tensors, inputs)["y"]
        row = facts.rows["n"]
        if facts.looks_ahead:
            with pytest.raises(ValueError, match="cannot be streamed: layer 'n'"):
                in_pieces(graph, tensors, inputs, rng)
            return
        pieces = in_pieces(graph, tensors, inputs, rng)["y"]
        if row.folded:
            pieces = pieces[-1:]
        assert whole.shape == (1 if row.folded else row.timing.rows(T), 3, *row.shape)
        assert_same(pieces, whole)

    def test_a_held_value_is_of_the_whole_batch(self, rng):
        graph = spec.Graph(
            [spec.Input("x", (2,)), spec.Input("k", (2,), held=True)],
            [spec.Constant("c", (2,))(), spec.Arithmetic("sum", "add")("c", "k")],
            {"constant": "c", "sum": "sum", "k": "k"},
        )
        c, k = rng.standard_normal(2), rng.standard_normal((3, 2))
        y = reference.forward(graph, {"c": c}, {"x": np.zeros((4, 3, 2)), "k": k})
        assert_same(y["constant"], np.broadcast_to(c, (1, 3, 2)))
        assert_same(y["sum"], (c + k)[None])
        assert_same(y["k"], k[None])


class TestMatrices:
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("positions", [(), (4,), (2, 4)])
    def test_linear(self, bias, positions, rng):
        layer = spec.Linear("n", 3, 5, bias)
        x = rng.standard_normal((6, 2, *positions, 3))
        w = draw(graph_of(layer, [x.shape[2:]]), rng)
        t = {name: torch.from_numpy(value) for name, value in w.items()}
        expected = F.linear(torch.from_numpy(x), t["n.weight"], t.get("n.bias"))
        assert_same(forward(layer, w, x), expected)

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize(
        ("some", "others"), [((), ()), ((4,), ()), ((), (4,)), ((2, 1), (3,)), ((3,), (3,))]
    )
    def test_matmul(self, transposed, some, others, rng):
        a = rng.standard_normal((5, 2, *some, 3, 4))
        b = rng.standard_normal((5, 2, *others, *((6, 4) if transposed else (4, 6))))
        y = forward(spec.MatMul("n", transposed=transposed), {}, a, b)
        for t, n in np.ndindex(5, 2):
            second = torch.from_numpy(b[t, n])
            second = second.mT if transposed else second
            assert_same(y[t, n], torch.matmul(torch.from_numpy(a[t, n]), second))

    @pytest.mark.parametrize(
        ("first", "second"), [((4,), (4,)), ((4,), (4, 3)), ((3, 4), (4,)), ((2, 3, 4), (4,))]
    )
    def test_matmul_of_a_row_or_a_column(self, first, second, rng):
        a, b = rng.standard_normal((5, 2, *first)), rng.standard_normal((5, 2, *second))
        y = forward(spec.MatMul("n"), {}, a, b)
        for t, n in np.ndindex(5, 2):
            expected = torch.matmul(torch.from_numpy(a[t, n]), torch.from_numpy(b[t, n]))
            assert y[t, n].shape == expected.shape
            assert_same(y[t, n], expected)

    def test_matmul_with_a_held_matrix(self, rng):
        a, b = rng.standard_normal((5, 2, 3, 4)), rng.standard_normal((2, 4, 6))
        assert_same(forward(spec.MatMul("n"), {}, a, b, held={1}), a @ b)

    @pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
    def test_embedding_and_one_hot(self, shape, rng):
        x = rng.integers(0, 7, (5, 2, *shape))
        w = {"n.weight": rng.standard_normal((7, 4))}
        expected = F.embedding(torch.from_numpy(x), torch.from_numpy(w["n.weight"]))
        assert_same(forward(spec.Embedding("n", 7, 4), w, x, tokens=7), expected)
        expected = F.one_hot(torch.from_numpy(x), 7)
        y = forward(spec.OneHot("n", 7), {}, x, tokens=7)
        assert_same(y, expected)

    def test_a_row_of_very_many_classes_takes_no_square_of_them(self):
        n = 2**20
        y = forward(spec.OneHot("n", n), {}, np.array([[n - 1]]), tokens=n)
        assert y.shape == (1, 1, n)
        assert y.sum() == y[0, 0, -1] == 1

    @pytest.mark.parametrize("x", [np.array([[7]]), np.array([[-1]]), np.array([[1.0]])])
    def test_what_is_no_token_is_refused(self, x):
        with pytest.raises(ValueError, match=r"input 'x0' .*integers from 0 to 6"):
            forward(spec.OneHot("n", 7), {}, x, tokens=7)


class TestIndex:
    """Any movement by NumPy of an array of places moves the numbers the same way."""

    @pytest.mark.parametrize("name", MOVEMENTS)
    def test_movement(self, name, rng):
        moved = MOVEMENTS[name]
        x = rng.standard_normal((4, 2, 2, 3, 5))
        y = forward(spec.Index.of("n", moved(np.arange(30).reshape(2, 3, 5))), {}, x)
        for t, n in np.ndindex(4, 2):
            np.testing.assert_array_equal(y[t, n], moved(x[t, n]))

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant"])
    def test_padding_as_torch_pads(self, mode, rng):
        x = rng.standard_normal((4, 2, 3, 6))
        numpys = {"replicate": "edge", "circular": "wrap"}.get(mode, mode)
        fill = {"constant_values": -1} if mode == "constant" else {}
        places = np.pad(np.arange(18).reshape(3, 6), [(0, 0), (2, 4)], mode=numpys, **fill)
        y = forward(spec.Index.of("n", places, 0.25), {}, x)
        value = {"value": 0.25} if mode == "constant" else {}
        expected = F.pad(torch.from_numpy(x).reshape(8, 3, 6), (2, 4), mode=mode, **value)
        np.testing.assert_array_equal(y, expected.reshape(4, 2, 3, 12).numpy())

    def test_unfold_as_torch_unfolds(self, rng):
        x = rng.standard_normal((4, 2, 3, 6))
        places = torch.arange(18).reshape(3, 6).unfold(1, 3, 2).numpy()
        expected = torch.from_numpy(x).unfold(3, 3, 2).numpy()
        np.testing.assert_array_equal(forward(spec.Index.of("n", places), {}, x), expected)

    @pytest.mark.parametrize("held", [(), (0,), (1,), (0, 2)])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_concatenation(self, axis, held, rng):
        shapes = [(2, 3), (2, 1), (2, 4)] if axis else [(1, 3), (2, 3), (4, 3)]
        sizes = [math.prod(shape) for shape in shapes]
        firsts = itertools.accumulate([0, *sizes])
        places = [np.arange(at, at + n) for at, n in zip(firsts, sizes, strict=False)]
        places = np.concatenate([p.reshape(s) for p, s in zip(places, shapes, strict=True)], axis)
        xs = [
            rng.standard_normal((2, *s) if i in held else (5, 2, *s)) for i, s in enumerate(shapes)
        ]
        y = forward(spec.Index.of("n", places), {}, *xs, held=held)
        wide = [np.broadcast_to(x, (5, *x.shape)) if i in held else x for i, x in enumerate(xs)]
        np.testing.assert_array_equal(y, np.concatenate(wide, axis + 2))

    def test_places_come_back(self, rng):
        for _ in range(200):
            shape = tuple(rng.integers(1, 5, rng.integers(0, 4)))
            places = rng.integers(-1, 12, shape)
            layer = spec.Index.of("n", places)
            assert layer.shape == shape
            assert layer.places() == places.ravel().tolist(), places

    def test_a_straight_run_is_one(self):
        assert spec.Index.of("n", np.arange(3, 1000)).runs == ((3, 1, 997),)
        assert spec.Index.of("n", np.arange(1000)[::-3]).runs == ((999, -3, 334),)
        assert spec.Index.of("n", np.full((4, 4), -1)).runs == ((-1, 0, 16),)


class TestArithmetic:
    def test_every_operation_is_there(self):
        assert set(TORCH_OPERATIONS) == set(spec.OPERATIONS)

    @pytest.mark.parametrize("operation", spec.OPERATIONS)
    def test_operation(self, operation, rng):
        """Axes of steps broadcast from the last, whatever time and the batch are."""
        n = spec.OPERATIONS[operation]
        for shapes in [
            [(3,)] * n,
            [(2, 3), (3,), (1,)][:n],
            [(), (2, 3), (2, 1)][:n],
            [(4, 1, 3), (2, 1), (1, 1, 1)][:n],
        ]:
            for held in [(), (0,), (n - 1,)]:
                xs = [
                    rng.integers(-2, 3, (2, *s) if i in held else (5, 2, *s)).astype(float)
                    for i, s in enumerate(shapes)
                ]
                y = forward(spec.Arithmetic("n", operation), {}, *xs, held=held)
                for t, b in np.ndindex(5, 2):
                    now = [x[b] if i in held else x[t, b] for i, x in enumerate(xs)]
                    expected = TORCH_OPERATIONS[operation](
                        *map(torch.from_numpy, map(np.asarray, now))
                    )
                    np.testing.assert_array_equal(y[t, b], expected.numpy(), err_msg=str(shapes))

    @pytest.mark.parametrize("operation", spec.OPERATIONS)
    def test_special_numbers(self, operation):
        n = spec.OPERATIONS[operation]
        values = np.array(list(itertools.product(SPECIAL, repeat=n))).T
        xs = [v.reshape(-1, 1, 1) for v in values]
        y = forward(spec.Arithmetic("n", operation), {}, *xs).ravel()
        expected = TORCH_OPERATIONS[operation](*map(torch.from_numpy, values)).double().numpy()
        np.testing.assert_allclose(y, expected, rtol=1e-15, atol=0)
        if operation not in ("minimum", "maximum"):  # of zeros of two signs, either will do
            there = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(y)[there], np.signbit(expected)[there])


class TestFunctions:
    """Every function of one number; of an infinite one it is the limit, where there is one."""

    def test_every_function_is_there(self):
        assert set(TORCH_FUNCTIONS) == set(spec.PARAMETERS)

    def _texts(self, name):
        n = len(spec.PARAMETERS[name])
        return {str(spec.Function(name, *p[:n])): p[:n] for p in (PARAMETERS if n else [()])}

    @pytest.mark.parametrize("name", spec.PARAMETERS)
    def test_numbers(self, name, rng):
        x = rng.standard_normal((50, 3, 4)) * 10.0 ** rng.integers(-4, 3, (50, 3, 4))
        for text, values in self._texts(name).items():
            y = forward(spec.Activation("n", text), {}, x)
            expected = TORCH_FUNCTIONS[name](torch.from_numpy(x), *values).numpy()
            # torch's gelu multiplies by 1 + erf, which cancels far below zero.
            atol = 1e-14 if name.startswith("gelu") else 1e-300
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=atol, err_msg=text)

    @pytest.mark.parametrize("name", spec.PARAMETERS)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_special_numbers(self, name, dtype):
        tiny = float(np.finfo(dtype).smallest_subnormal)
        huge = float(np.finfo(dtype).max)
        special = [0.0, -0.0, tiny, -tiny, 1e3 * tiny, huge, -huge, math.inf, -math.inf, math.nan]
        x = np.array(special, dtype)
        for text, values in self._texts(name).items():
            y = forward(spec.Activation("n", text), {}, x.reshape(-1, 1, 1), dtype=dtype).ravel()
            assert y.dtype == dtype
            # In float64: torch's own float32 overflows on the way to the largest numbers.
            expected = TORCH_FUNCTIONS[name](torch.from_numpy(x).double(), *values).numpy()
            for given, limit in LIMITS.get(name, {}).items():
                at = special.index(given)
                assert math.isnan(expected[at]) or expected[at] == limit, "torch has it now"
                expected[at] = limit
            with np.errstate(over="ignore"):
                expected = expected.astype(dtype)
            if name in ("sin", "cos"):  # the argument's reduction is a library's own
                finite = np.abs(x) < 1e30
                assert np.isnan(y[np.isinf(x)]).all()
                y, expected = y[finite], expected[finite]
            rtol = 1e-6 if dtype == np.float32 else 1e-12
            np.testing.assert_allclose(y, expected, rtol=rtol, atol=2 * tiny, err_msg=text)

    @pytest.mark.parametrize(
        "name",
        ["tanh", "softsign", "silu", "gelu", "gelu_tanh", "sin", "sqrt", "floor", "reciprocal"],
    )
    def test_the_sign_of_zero_stays(self, name):
        y = forward(spec.Activation("n", name), {}, np.array([0.0, -0.0]).reshape(2, 1, 1))
        assert np.signbit(y).ravel().tolist() == [False, True]

    def test_gelu_far_below_zero_does_not_cancel(self):
        x = np.array([-8.0, -20.0, -37.0])
        y = forward(spec.Activation("n", "gelu"), {}, x.reshape(3, 1, 1)).ravel()
        expected = [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x]
        np.testing.assert_allclose(y, expected, rtol=1e-14)
        assert (y < 0).all()


class TestSoftmaxAndReduce:
    @pytest.mark.parametrize("log", [False, True])
    @pytest.mark.parametrize("axis", [-1, -2, -3])
    def test_softmax(self, log, axis, rng):
        x = rng.standard_normal((4, 2, 3, 4, 5)) * 30
        x[0, 0, 0, 0, 0] = -math.inf
        x[1] = 1e300
        x[2, 0, 0] = math.nan
        y = forward(spec.Softmax("n", axis=axis, log=log), {}, x)
        function = F.log_softmax if log else F.softmax
        assert_same(y, function(torch.from_numpy(x), dim=axis))

    @pytest.mark.parametrize("keepdim", [False, True])
    @pytest.mark.parametrize("axes", AXES)
    @pytest.mark.parametrize("function", REDUCTIONS)
    def test_reduce(self, function, axes, keepdim, rng):
        x = rng.standard_normal((4, 2, 3, 4, 5))
        x[0, 0, 0, 0, 0], x[1, 1, 1, 1, 1] = math.inf, math.nan
        x[2] = 0
        layer = spec.Reduce("n", function, axes=axes, keepdim=keepdim)
        expected = REDUCTIONS[function](torch.from_numpy(x), axes, keepdim)
        y = forward(layer, {}, x)
        assert y.shape == tuple(expected.shape)
        assert_same(y, expected)

    def test_a_norm_of_huge_or_tiny_numbers(self):
        x = np.array([[3e200, 4e200], [3e-200, 4e-200], [5e-324, 0], [0, 0]]).reshape(4, 1, 2)
        y = forward(spec.Reduce("n", "l2"), {}, x).ravel()
        np.testing.assert_allclose(y, [5e200, 5e-200, 5e-324, 0], rtol=1e-15)


class TestNorms:
    """Normalisations of one step, rows of the batch and steps each on their own."""

    def _check(self, layer, module, x, rng, flat):
        w = draw(graph_of(layer, [x.shape[2:]]), rng)
        module = module.double().eval()
        named = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
        with torch.no_grad():
            for suffix, name in layer.names().items():
                named[suffix].copy_(torch.from_numpy(w[name]))
            expected = module(torch.from_numpy(flat(x)))
        assert_same(forward(layer, w, x), expected.reshape(x.shape), 1e-11)

    @pytest.mark.parametrize(("affine", "bias"), [(False, False), (True, False), (True, True)])
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_layer_norm(self, axes, affine, bias, rng):
        x = 5 + 3 * rng.standard_normal((4, 2, 2, 3, 4))
        shape = x.shape[-axes:]
        layer = spec.LayerNorm("n", shape, 1e-3, affine, bias)
        module = torch.nn.LayerNorm(shape, 1e-3, affine, bias)
        self._check(layer, module, x, rng, lambda x: x)

    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_rms_norm(self, axes, affine, rng):
        x = 5 + 3 * rng.standard_normal((4, 2, 2, 3, 4))
        shape = x.shape[-axes:]
        layer = spec.RMSNorm("n", shape, 1e-3, affine)
        self._check(layer, torch.nn.RMSNorm(shape, 1e-3, affine), x, rng, lambda x: x)

    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize(
        ("axes", "groups"),  # torch refuses to normalise single numbers
        [(axes, n) for axes in [(), (5,), (2, 3)] for n in (1, 2, 3, 6) if axes or n < 6],
    )
    def test_group_norm(self, axes, groups, affine, rng):
        x = 5 + 3 * rng.standard_normal((4, 2, 6, *axes))
        layer = spec.GroupNorm("n", groups, 6, 1e-3, affine)
        module = torch.nn.GroupNorm(groups, 6, 1e-3, affine)
        self._check(layer, module, x, rng, lambda x: x.reshape(8, *x.shape[2:]))

    @pytest.mark.parametrize("axes", [(5,), (2, 3)])
    def test_instance_norm_is_a_group_norm(self, axes, rng):
        x = 5 + 3 * rng.standard_normal((4, 2, 6, *axes))
        layer = spec.GroupNorm("n", 6, 6, 1e-3)
        module = {1: torch.nn.InstanceNorm1d, 2: torch.nn.InstanceNorm2d}[len(axes)]
        module = module(6, 1e-3, affine=True)
        self._check(layer, module, x, rng, lambda x: x.reshape(8, *x.shape[2:]))

    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("axis", [0, -1])
    @pytest.mark.parametrize("axes", [(), (5,), (2, 3)])
    def test_batch_norm(self, axes, axis, affine, rng):
        x = 5 + 3 * rng.standard_normal((4, 2, 6, *axes))
        if axis:
            x = np.moveaxis(x, 2, -1)
        layer = spec.BatchNorm("n", 6, 1e-3, affine, axis=axis)
        w = draw(graph_of(layer, [x.shape[2:]]), rng)
        t = {name: torch.from_numpy(value) for name, value in w.items()}
        moved = torch.from_numpy(np.moveaxis(x, -1, 2) if axis else x)
        expected = F.batch_norm(
            moved.reshape(8, *moved.shape[2:]),
            *(t["n.running_mean"], t["n.running_var"], t.get("n.weight"), t.get("n.bias")),
            eps=1e-3,
        ).reshape(moved.shape)
        expected = np.moveaxis(expected.numpy(), 2, -1) if axis else expected
        assert_same(forward(layer, w, x), expected)

    def test_equal_numbers_are_normalised_to_zero(self):
        x = np.full((1, 1, 7), 0.1) * 1e8
        layer = spec.LayerNorm("n", (7,), 1e-5, False, False)
        assert_same(forward(layer, {}, x), np.zeros((1, 1, 7)), 1e-4)
