"""The table of ATen operators, each against torch's own."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from numeric_builder import NumericBuilder

from fastlstm.errors import ConvertError
from fastlstm.sources import aten

torch = pytest.importorskip("torch")

INF = float("inf")
RANDOM = torch.Generator().manual_seed(20261130)


def x(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=RANDOM)


def above(*shape):
    return x(*shape).abs() + 0.5


def whole(*numbers):
    return torch.tensor(numbers)


# Operator -> arguments of calls of it. Arrays of floats and of bools are inputs, those of whole
# numbers constants.
CALLS = {
    "view": [(x(2, 6), [3, 4]), (x(2, 6), [-1, 3])],
    "reshape": [(x(2, 6).t(), [3, 4])],
    "flatten": [(x(2, 3, 4), 1), (x(2, 3, 4),)],
    "unflatten": [(x(2, 6), 1, [2, 3])],
    "transpose": [(x(2, 3, 4), -1, 0)],
    "permute": [(x(2, 3, 4), [2, 0, 1])],
    "t": [(x(2, 3),)],
    "movedim": [(x(2, 3, 4), [0], [2])],
    "unsqueeze": [(x(2, 3), -1), (x(2, 3), 0)],
    "squeeze": [(x(2, 1, 1),), (x(2, 1), 1), (x(2, 1, 1), [1, 2]), (x(2, 3), 1)],
    "expand": [(x(2, 1), [4, 2, 3]), (x(2, 1), [-1, 3])],
    "select": [(x(2, 3), 1, -1)],
    "slice": [(x(5, 3), 0, 1, None, 2), (x(5, 3), 1, 0, 9223372036854775807), (x(2, 4), -1, -2)],
    "narrow": [(x(5, 3), 0, -2, 2)],
    "split": [(x(5, 3), 2), (x(5, 3), [4, 1])],
    "split_with_sizes": [(x(5, 3), [1, 4])],
    "chunk": [(x(2, 8), 4, 1), (x(2, 5), 2, 1)],
    "tensor_split": [(x(7, 2), 3), (x(7, 2), [2, 5])],
    "unbind": [(x(2, 3), 1)],
    "unfold": [(x(2, 7), 1, 3, 2)],
    "diagonal": [(x(3, 3),)],
    "clone": [(x(2, 3),)],
    "cat": [([x(2, 3), x(2, 1)], 1), ([x(2, 3), torch.ones(2, 3).double()],)],
    "stack": [([x(2, 3), x(2, 3)], -1)],
    "hstack": [([x(2, 3), x(2, 1)],)],
    "vstack": [([x(3), x(3)],)],
    "column_stack": [([x(3), x(3, 2)],)],
    "flip": [(x(2, 3), [1])],
    "roll": [(x(2, 5), [2], [1]), (x(2, 5), [1])],
    "repeat": [(x(2, 3), [2, 1, 2])],
    "tile": [(x(2, 3), [2])],
    "repeat_interleave": [(x(2, 3), 2, 1)],
    "constant_pad_nd": [(x(2, 3), [1, 2]), (x(2, 3), [1, 0, 0, 1], 0.5), (x(2, 5), [-1, -2])],
    "pad": [(x(2, 3, 4), [1, 2], "reflect"), (x(2, 3, 4), [1, 2], "replicate"),
            (x(2, 3, 4), [1, 2], "circular"), (x(2, 4), [1, 1], "constant", 2.0)],
    "reflection_pad1d": [(x(2, 5), [2, 1])],
    "replication_pad2d": [(x(1, 2, 5, 4), [2, 1, 1, 0])],
    "index": [(x(3, 4), [None, whole(0, 2)]), (x(3, 4), [whole(1, 1)])],
    "index_select": [(x(3, 4), 1, whole(3, 0))],
    "gather": [(x(3, 4), 1, torch.tensor([[0, 3], [1, 1]]))],
    "take": [(x(3, 4), whole(5, 0))],
    "masked_fill": [(x(2, 3), torch.tensor([[True, False, True]]), 0.0),
                    (x(2, 3), torch.tensor([[True, False, True]]), 2.5)],
    "tril": [(x(3, 3),), (x(3, 3), -1)],
    "triu": [(x(3, 3), 1)],
    "diag_embed": [(x(2, 3),)],
    "index_put": [(x(3, 4), [None, whole(0, 2)], x(3, 2))],
    "select_scatter": [(x(3, 4), x(3), 1, 2)],
    "slice_scatter": [(x(5, 4), x(2, 4), 0, 1, 3)],
    "scatter": [(x(3, 4), 1, torch.tensor([[0], [1], [3]]), x(3, 1)),
                (x(3, 4), 1, torch.tensor([[0], [1], [3]]), 1.5)],
    "im2col": [(x(1, 2, 5, 6), [2, 3], [1, 1], [1, 0], [1, 2])],
    "pixel_shuffle": [(x(1, 8, 2, 3), 2)],
    "upsample_nearest1d": [(x(1, 2, 3), [6]), (x(1, 2, 3), None, [2.0])],
    "upsample_nearest2d": [(x(1, 2, 3, 2), [6, 2])],
    "add": [(x(2, 3), x(3)), (x(2, 3), 2.0), (x(2, 3), x(2, 3), {"alpha": 3})],
    "sub": [(x(2, 3), x(2, 1), {"alpha": 2})],
    "rsub": [(x(2, 3), 1.0)],
    "mul": [(x(2, 3), -1.0)],
    "div": [(x(2, 3), above(3)), (x(2, 3), 0.3, {"rounding_mode": "floor"}),
            (x(2, 3), 0.3, {"rounding_mode": "trunc"})],
    "floor_divide": [(x(2, 3), 0.4)],
    "remainder": [(x(2, 3), 0.4), (x(2, 3), -0.4)],
    "fmod": [(x(2, 3), 0.4)],
    "pow": [(x(2, 3), 2), (x(2, 3), 3), (above(2, 3), 0.5), (above(2, 3), x(3)), (2.0, x(3))],
    "neg": [(x(2, 3),)],
    "minimum": [(x(2, 3), x(3))],
    "maximum": [(x(2, 3), x(3))],
    "clamp": [(x(2, 3), 0.0), (x(2, 3), -0.5, 0.5), (x(2, 3), None, 0.1)],
    "clamp_min": [(x(2, 3), 0.1)],
    "lerp": [(x(3), x(3), 0.3)],
    "addcmul": [(x(3), x(3), x(3), {"value": 0.5})],
    "addcdiv": [(x(3), x(3), above(3))],
    "eq": [(x(3).round(), 0.0)],
    "ne": [(x(3).round(), 0.0)],
    "lt": [(x(3), x(3))],
    "ge": [(x(3), 0.0)],
    "where": [(x(3) > 0, x(3), x(3)), (x(3) > 0, x(3), torch.zeros(()).double())],
    "logical_not": [(x(3) > 0,)],
    "logical_and": [(x(3) > 0, x(3) > 0)],
    "logical_or": [(x(3) > 0, x(3) > 0)],
    "bitwise_xor": [(x(3) > 0, x(3) > 0)],
    "floor": [(x(3) * 3,)],
    "ceil": [(x(3) * 3,)],
    "trunc": [(x(3) * 3,)],
    "frac": [(x(3) * 3,)],
    "linear": [(x(2, 3), x(4, 3), x(4))],
    "matmul": [(x(2, 3), x(3, 4)), (x(3), x(3)), (x(2, 3), x(3)), (x(3), x(2, 3, 4)),
               (x(2, 2, 3), x(2, 3, 4))],
    "mm": [(x(2, 3), x(3, 4))],
    "bmm": [(x(2, 2, 3), x(2, 3, 4))],
    "addmm": [(x(4), x(2, 3), x(3, 4)), (x(2, 4), x(2, 3), x(3, 4), {"beta": 2, "alpha": 0.5})],
    "addmv": [(x(2), x(2, 3), x(3))],
    "baddbmm": [(x(2, 2, 4), x(2, 2, 3), x(2, 3, 4))],
    "outer": [(x(2), x(3))],
    "bilinear": [(x(5, 2), x(5, 3), x(4, 2, 3), x(4))],
    "einsum": [("bti,oi->bto", [x(2, 3, 4), x(5, 4)]), ("bhqd,bhkd->bhqk", [x(2, 2, 3, 4)] * 2),
               ("i,j->ij", [x(2), x(3)]), ("bij->bi", [x(2, 3, 4)]), ("...ij,jk", [x(2, 3, 4),
               x(4, 5)]), ("bi,bij,bj->b", [x(2, 3), x(2, 3, 4), x(2, 4)])],
    **{name: [(x(2, 3),)] for name in (
        "relu", "tanh", "sigmoid", "silu", "abs", "sign", "square", "exp", "sin", "cos", "gelu",
        "relu6", "hardtanh", "hardsigmoid", "hardswish", "leaky_relu", "elu", "selu", "celu",
        "softplus", "log_sigmoid", "mish", "softshrink", "hardshrink", "exp2", "expm1", "tan",
        "sinh", "cosh")},
    **{name: [(above(2, 3),)] for name in (
        "sqrt", "reciprocal", "log", "rsqrt", "log1p", "log2", "log10")},
    "celu_": [(x(2, 3), 0.7)],
    "prelu": [(x(2, 3, 4), x(3)), (x(2, 3), x(1))],
    "glu": [(x(2, 6), 1)],
    "threshold": [(x(2, 3), 0.1, 20.0)],
    "logit": [(above(3) / 9, 0.2)],
    "softmax": [(x(2, 3, 4), 1)],
    "_softmax": [(x(2, 3), -1, False)],
    "log_softmax": [(x(2, 3), 0)],
    "dropout": [(x(2, 3), 0.5, False)],
    "scaled_dot_product_attention": [(x(2, 2, 3, 4),) * 3,
        (*(x(2, 2, 3, 4),) * 3, None, 0.0, True), (*(x(2, 3, 4),) * 3, x(3, 3))],
    "mean": [(x(2, 3),), (x(2, 3), [1], True)],
    "sum": [(x(2, 3), [0]), (x(2, 3),)],
    "amax": [(x(2, 3), [1])],
    "amin": [(x(2, 3), [-1], True)],
    "max": [(x(2, 3),), (x(2, 3), x(2, 3))],
    "norm": [(x(2, 3), 2.0, [1], True), (x(2, 3), 1.0, [1])],
    "linalg_vector_norm": [(x(2, 3), 2, [1]), (x(2, 3), INF, [1]), (x(2, 3), 3, [1], True)],
    "frobenius_norm": [(x(2, 3), [1])],
    "var": [(x(2, 3), [1]), (x(2, 3), [1], False, True), (x(2, 3), [1], {"correction": 0}),
            (x(2, 3), False), (x(2, 3),)],
    "std": [(x(2, 3), [1], True)],
    "var_mean": [(x(2, 3), [1], {"correction": 0, "keepdim": True})],
    "logsumexp": [(x(2, 3), [1])],
    "prod": [(x(2, 3), 1)],
    "cumsum": [(x(2, 3), 1)],
    "conv1d": [(x(2, 4, 7), x(6, 2, 3), x(6), [2], [1], [1], 2), (x(2, 4, 7), x(6, 4, 2), None,
               [1], "same"), (x(4, 7), x(6, 4, 2))],
    "conv2d": [(x(2, 3, 6, 5), x(4, 3, 3, 2), x(4), [1, 2], [1, 0])],
    "conv_transpose1d": [(x(2, 4, 5), x(4, 3, 3), x(3), [2], [1], [1])],
    "convolution": [(x(2, 4, 7), x(6, 4, 3), x(6), [1], [0], [2], False, [0], 1)],
    "max_pool1d": [(x(2, 3, 7), [3], [2], [1])],
    "max_pool2d": [(x(2, 3, 6, 7), [2, 3])],
    "avg_pool1d": [(x(2, 3, 7), [3], [2], [1], False, False)],
    "avg_pool2d": [(x(2, 3, 6, 8), [2], [], [0], False, True, 3)],
    "adaptive_avg_pool1d": [(x(2, 3, 7), [1]), (x(2, 3, 7), [3])],
    "adaptive_avg_pool2d": [(x(2, 3, 7, 6), [1, 2])],
    "layer_norm": [(x(2, 3), [3], x(3), x(3), 1e-3)],
    "rms_norm": [(x(2, 3), [3], x(3), 1e-3)],
    "batch_norm": [(x(2, 3, 4), x(3), x(3), x(3), above(3), False, 0.1, 1e-5, True)],
    "group_norm": [(x(2, 6, 4), 3, x(6), x(6), 1e-5)],
    "instance_norm": [(x(2, 3, 4), x(3), x(3), None, None, True, 0.1, 1e-5, True)],
    "embedding": [(x(7, 3), torch.tensor([[1, 6], [0, 0]]))],
    "zeros_like": [(x(2, 3),)],
    "new_zeros": [(x(2, 3), [4])],
    "full_like": [(x(2, 3), 1.5)],
    "lstm_cell": [(x(2, 3), [x(2, 4), x(2, 4)], x(16, 3), x(16, 4), x(16), x(16))],
    "gru_cell": [(x(2, 3), x(2, 4), x(12, 3), x(12, 4), x(12), x(12)), (x(2, 3), x(2, 4),
                 x(12, 3), x(12, 4))],
    "rnn_relu_cell": [(x(2, 3), x(2, 4), x(4, 3), x(4, 4), x(4), x(4))],
    "lstm": [(x(5, 2, 3), [x(1, 2, 4)] * 2, [x(16, 3), x(16, 4), x(16), x(16)], True, 1, 0.0,
              False, False, False),
             (x(2, 5, 3), [x(4, 2, 4)] * 2, [x(16, 3), x(16, 4)] * 2 + [x(16, 8), x(16, 4)] * 2,
              False, 2, 0.0, False, True, True),
             (x(5, 2, 3), [x(1, 2, 2), x(1, 2, 4)], [x(16, 3), x(16, 2), x(16), x(16), x(2, 4)],
              True, 1, 0.0, False, False, False)],
    "gru": [(x(5, 2, 3), x(2, 2, 4), [x(12, 3), x(12, 4), x(12), x(12)] * 2, True, 1, 0.3, False,
             True, False)],
    "rnn_relu": [(x(5, 2, 3), x(1, 2, 4), [x(4, 3), x(4, 4), x(4), x(4)], True, 1, 0.0, False,
                  False, False)],
}  # fmt: skip

# Which arguments behind the first are constants of the model, whatever they hold.
WEIGHTS = {"linear", "conv1d", "conv2d", "conv_transpose1d", "convolution", "layer_norm", "gru",
           "rms_norm", "batch_norm", "group_norm", "instance_norm", "lstm_cell", "gru_cell", "lstm",
           "rnn_relu_cell", "rnn_relu", "prelu", "bilinear"}  # fmt: skip


class Run:
    """One run of operators on numbers, beside torch's own."""

    def __init__(self):
        self.builder = NumericBuilder()
        self.aten = aten.Aten(self.builder)

    def put(self, value, constant=False):
        if isinstance(value, list):
            return [self.put(item, constant) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        if constant or value.dtype == torch.int64:
            return value.numpy()
        return self.builder.value(value.numpy(), "float" if value.is_floating_point() else "bool")

    def got(self, value):
        if isinstance(value, list | tuple):
            return [self.got(item) for item in value]
        return self.builder.of(self.aten.current(value))


def assert_same(got, expected):
    if isinstance(expected, list | tuple):
        assert len(got) >= len(expected)
        for mine, theirs in zip(got, expected, strict=False):
            assert_same(mine, theirs)
        return
    assert np.shape(got) == tuple(expected.shape)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-9, atol=1e-12)


EACH = [
    pytest.param(name, call, id=f"{name}-{n}")
    for name, calls in CALLS.items()
    for n, call in enumerate(calls)
]


@pytest.mark.parametrize(("name", "call"), EACH)
def test_as_torch(name, call):
    args, named = (call[:-1], call[-1]) if isinstance(call[-1], dict) else (call, {})
    fresh = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    expected = getattr(torch.ops.aten, name)(*fresh, **named)
    run = Run()
    given = [
        run.put(a, name in WEIGHTS and n > 0 and not (name in _STATES and n == 1))
        for n, a in enumerate(args)
    ]
    if name == "embedding":
        given = [args[0].numpy(), run.builder.value(args[1].numpy(), "int")]
    assert_same(run.got(run.aten(name, given, named)), expected)


_STATES = {"lstm", "gru", "rnn_relu", "lstm_cell", "gru_cell", "rnn_relu_cell", "bilinear"}


@pytest.mark.parametrize(("name", "call"), EACH)
def test_of_constants(name, call):
    """What does not depend on the input is computed when it is converted."""
    if name in _STATES or name in WEIGHTS or "pool" in name or "softmax" in name:
        pytest.skip("a layer")
    args, named = (call[:-1], call[-1]) if isinstance(call[-1], dict) else (call, {})
    if name == "scaled_dot_product_attention":
        pytest.skip("has a softmax")
    fresh = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    expected = getattr(torch.ops.aten, name)(*fresh, **named)
    run = Run()
    got = run.aten(name, [run.put(a, True) for a in args], named)
    assert not isinstance(got, aten.Value)
    assert_same(run.got(got), expected)


def test_writing_is_seen_by_every_view():
    run = Run()
    a = x(3, 4)
    v = run.put(a)
    rows = run.aten("select", [v, 1, 2], {})
    run.aten("add_", [rows, 1.0], {})
    turned = run.aten("t", [v], {})
    a[:, 2] += 1
    assert_same(run.got(turned), a.t())


def test_writing_the_input_into_zeros_makes_all_views_depend_on_it():
    run = Run()
    made = run.aten("zeros", [[3, 2, 4]], {"dtype": 7})
    a = x(2, 4)
    before = run.aten("select", [made, 0, 1], {})
    run.aten("copy_", [before, run.put(a)], {})
    run.aten("mul_", [run.aten("slice", [made, 2, 0, 2], {}), 3.0], {})
    expected = torch.zeros(3, 2, 4, dtype=torch.float64)
    expected[1] = a
    expected[..., :2] *= 3
    assert_same(run.got(made), expected)
    assert_same(run.got(run.aten("permute", [made, [2, 0, 1]], {})), expected.permute(2, 0, 1))


def test_a_weight_is_never_written_to():
    run = Run()
    weight = np.ones((2, 3))
    run.aten("fill_", [weight, 2.0], {})
    run.aten("copy_", [run.aten("select", [weight, 0, 1], {}), run.put(x(3))], {})
    assert (weight == 1).all()
    assert (run.got(weight)[0] == 2).all()


def test_a_result_that_is_its_argument_does_not_share_it():
    run = Run()
    a = x(3)
    v = run.put(a)
    kept = run.aten("clone", [v], {})
    run.aten("zero_", [kept], {})
    assert_same(run.got(v), a)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("rand", [[2]], "rand: .*random"),
        ("dropout", [x(2), 0.5, True], r"dropout: .*\.eval\(\)"),
        ("bernoulli", [x(2)], "random"),
        ("uniform_", [x(2)], "random"),
        ("sort", [x(2)], "order"),
        ("unsqueeze_", [x(2), 0], r"x = x\.unsqueeze"),
        ("fft_rfft", [x(2)], "fft_rfft: this operator of torch is not supported"),
        ("item", [x(1)], "number of the input"),
        ("view", [x(2, 3), [4, 2]], "shape"),
        ("batch_norm", [x(2, 3), None, None, None, None, True, 0.1, 1e-5, True], "training"),
        ("zeros", [[1 << 40]], "numbers"),
        ("softmax", [x(2, 3), 7], "axis 7"),
        ("linear", [x(2, 3)], "linear"),
    ],
)
def test_refusals_name_the_operator(name, args, message):
    run = Run()
    with pytest.raises(ConvertError, match=message):
        run.aten(name, [run.put(a) for a in args], {})


def test_where_a_maximum_is_may_not_be_used():
    run = Run()
    values, where = run.aten("max", [run.put(x(2, 3)), 1], {})
    assert run.got(values).shape == (2,)
    with pytest.raises(ConvertError, match="where the max"):
        run.aten("add", [where, 1], {})


def test_arguments_have_the_names_of_the_schemas():
    """Programs name arguments by torch's schemas, so that the table has to as well."""
    wrong = {}
    for name, function in aten.OPERATORS.items():
        packet = getattr(torch.ops.aten, name, None)
        takes = inspect.signature(function).parameters
        loose = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in takes.values())
        if packet is None or loose:
            continue
        known = [set(list(takes)[1:])]
        schemas = [getattr(packet, o)._schema for o in packet.overloads()]
        named = [{a.name for a in s.arguments if not a.is_out} for s in schemas]
        # Each operator has to take the arguments of one overload at least, but for those that say
        # where an array is to lie.
        where = {"dtype", "layout", "device", "pin_memory", "memory_format", "generator", "names"}
        if not any(one - where <= known[0] for one in named):
            wrong[name] = min((one - where - known[0] for one in named), key=len)
    assert wrong == {}, wrong
