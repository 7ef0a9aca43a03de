"""An example of each word of ``layers=``, as the manual has it, and the same in torch or NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastlstm.sources.pytorch.kinds import KINDS, OPERATIONS

__all__ = ["Example", "examples", "random_tensors"]

Tensors = dict[str, tuple[int, ...]]


class Example(NamedTuple):
    """Words, the shapes of the tensors they run over, a row of the input, and what is right.

    `right` is given x (T, B, *row) and the tensors by name, in torch's float64, and torch's
    functions; it gives (T', B, *row).
    """

    words: str
    tensors: Tensors
    row: tuple[int, ...]
    right: Callable[[Any, Any, Any], Any]
    tokens: int = 0


FC: Tensors = {"fc.weight": (4, 4), "fc.bias": (4,)}
BEFORE = "linear:fc, "


def linear(x: Any, w: Any, f: Any, name: str = "fc") -> Any:
    return f.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def after(word: str, right: Callable[[Any, Any], Any], row: tuple[int, ...] = (4,)) -> Example:
    """A word without weights behind a Linear of 4 features."""
    return Example(BEFORE + word, FC, row, lambda x, w, f: right(linear(x, w, f), f))


def cell(gates: int, prefix: str = "rnn") -> Tensors:
    return {
        f"{prefix}.weight_ih_l0": (gates * 4, 4),
        f"{prefix}.weight_hh_l0": (gates * 4, 4),
        f"{prefix}.bias_ih_l0": (gates * 4,),
        f"{prefix}.bias_hh_l0": (gates * 4,),
    }


def recurrent(name: str, **options: Any) -> Callable[[Any, Any, Any], Any]:
    """torch's own module with the tensors of rnn, run over time."""

    def right(x: Any, w: Any, f: Any) -> Any:
        import torch

        module = getattr(torch.nn, name)(4, 4, **options).double()
        module.load_state_dict({n.removeprefix("rnn."): v for n, v in w.items()})
        return module(x)[0].detach()

    return right


def kernel(name: str, **options: Any) -> Callable[[Any, Any, Any], Any]:
    """A kernel over time, of rows of channels."""

    def right(x: Any, w: Any, f: Any) -> Any:
        over = x.movedim(0, -1)  # (B, C, T)
        own = [w["conv.weight"], w["conv.bias"]] if "conv.weight" in w else []
        return getattr(f, name)(over, *own, **options).movedim(-1, 0)

    return right


def within(right: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """The same of each step: (T, B, C, ...) as (T * B, C, ...)."""
    return lambda x, w, f: right(x.flatten(0, 1), w, f).unflatten(0, x.shape[:2])


CONV: Tensors = {"conv.weight": (4, 3, 3), "conv.bias": (4,)}
NORM: Tensors = {"norm.weight": (4,), "norm.bias": (4,)}
BATCH: Tensors = NORM | {"norm.running_mean": (4,), "norm.running_var": (4,)}

_PLAIN = {
    **dict.fromkeys(("relu", "tanh", "sigmoid", "softsign", "softplus", "silu", "gelu", "elu"), ""),
    **dict.fromkeys(("hardswish", "mish", "selu", "logsigmoid", "tanhshrink", "relu6"), ""),
    **dict.fromkeys(("leaky_relu", "hardtanh", "softshrink"), ""),
    **dict.fromkeys(("abs", "sign", "floor", "square", "reciprocal", "exp", "sin", "cos"), "torch"),
}


def _functions() -> dict[str, Example]:
    import torch

    made = {
        name: after(name, lambda y, f, n=name, here=here: getattr(torch if here else f, n)(y))
        for name, here in _PLAIN.items()
    }
    return made | {
        "elu": after("elu(0.5)", lambda y, f: f.elu(y, 0.5)),
        "gelu_tanh": after("gelu_tanh", lambda y, f: f.gelu(y, approximate="tanh")),
        "affine": after("affine(2.0, 1.0)", lambda y, f: 2 * y + 1),
        "thresholded_relu": after("thresholded_relu(0.5)", lambda y, f: f.threshold(y, 0.5, 0)),
        "hard_sigmoid": after("hard_sigmoid(0.2, 0.5)", lambda y, f: (0.2 * y + 0.5).clip(0, 1)),
        "scaled_tanh": after("scaled_tanh(1.7, 0.6)", lambda y, f: 1.7 * (0.6 * y).tanh()),
        "clip": after("clip(-1, 6)", lambda y, f: y.clip(-1, 6)),
        "sqrt": after("square, sqrt", lambda y, f: y.square().sqrt()),
        "log": after("square, log", lambda y, f: y.square().log()),
        "softmin": after("softmin", lambda y, f: f.softmin(y, -1)),
        "l2_normalize": after("l2_normalize", lambda y, f: f.normalize(y, dim=-1)),
        "softmax": after("softmax", lambda y, f: y.softmax(-1)),
        "log_softmax": after("log_softmax", lambda y, f: y.log_softmax(-1)),
        "glu": after("glu", lambda y, f: f.glu(y, -1)),
    }


def _operations() -> dict[str, Example]:
    import torch

    names = {"power": "pow", "less": "lt", "greater": "gt", "equal": "eq", "not_equal": "ne",
             "less_equal": "le", "greater_equal": "ge"}  # fmt: skip
    made = {}
    for name in OPERATIONS:
        of = getattr(torch, names.get(name, name))
        made[name] = Example(
            f"[linear:fc, square | identity], {name}", FC, (4,),
            lambda x, w, f, of=of: of(linear(x, w, f).square(), x).double(),
        )  # fmt: skip
    # In three ways: by a number, by a tensor, and of branches.
    made["multiply"] = Example(
        "multiply:in_scale, linear:fc, multiply(20.0)", FC | {"in_scale": (1, 1, 4)}, (4,),
        lambda x, w, f: 20 * linear(x * w["in_scale"], w, f),
    )  # fmt: skip
    made["subtract"] = Example(
        "subtract:mean, divide:std, linear:fc", FC | {"mean": (4,), "std": (4,)}, (4,),
        lambda x, w, f: linear((x - w["mean"]) / w["std"], w, f),
    )  # fmt: skip
    made["add"] = Example(
        "[linear:fc | features(0, 1)], add", FC, (4,), lambda x, w, f: linear(x, w, f) + x[..., :1]
    )
    made["where"] = Example(
        "input(4), [less(0) | linear:fc | identity], where", FC, (4,),
        lambda x, w, f: torch.where(x < 0, linear(x, w, f), x),
    )  # fmt: skip
    return made


def _others() -> dict[str, Example]:
    import torch

    positions = "input(3, 8), "
    return {
        "input": Example(
            positions + "conv1d:conv, flatten", CONV, (3, 8),
            within(lambda x, w, f: f.conv1d(x, w["conv.weight"], w["conv.bias"]).flatten(1)),
        ),
        "one_hot": Example(
            "one_hot, linear:fc", FC, (),
            lambda x, w, f: linear(f.one_hot(x, 4).double(), w, f), 4,
        ),
        "embedding": Example(
            "embedding:table, linear:fc", FC | {"table.weight": (7, 4)}, (),
            lambda x, w, f: linear(f.embedding(x, w["table.weight"]), w, f), 7,
        ),
        "lstm": Example("lstm:rnn", cell(4), (4,), recurrent("LSTM")),
        "gru": Example("gru:rnn", cell(3), (4,), recurrent("GRU")),
        "rnn": Example("rnn(relu):rnn", cell(1), (4,), recurrent("RNN", nonlinearity="relu")),
        "linear": Example("linear:fc", FC, (4,), lambda x, w, f: linear(x, w, f)),
        "conv1d": Example(
            "conv1d(padding=causal, dilation=2):conv", CONV, (3,),
            lambda x, w, f: kernel("conv1d", dilation=2, padding=4)(x, w, f)[:-4],
        ),
        "conv2d": Example(
            "input(3, 8, 6), conv2d(stride=2, padding=(1, 0)):conv",
            {"conv.weight": (4, 3, 3, 2), "conv.bias": (4,)}, (3, 8, 6),
            within(lambda x, w, f: f.conv2d(
                x, w["conv.weight"], w["conv.bias"], stride=2, padding=(1, 0))),
        ),
        "conv3d": Example(
            "input(1, 3, 4, 5), conv3d:conv", {"conv.weight": (2, 1, 2, 2, 2), "conv.bias": (2,)},
            (1, 3, 4, 5), within(lambda x, w, f: f.conv3d(x, w["conv.weight"], w["conv.bias"])),
        ),
        "conv_transpose1d": Example(
            "conv_transpose1d(stride=2):conv", {"conv.weight": (3, 4, 3), "conv.bias": (4,)}, (3,),
            kernel("conv_transpose1d", stride=2),
        ),
        "conv_transpose2d": Example(
            "input(3, 4, 5), conv_transpose2d(stride=2, padding=1, output_padding=1):conv",
            {"conv.weight": (3, 4, 3, 3), "conv.bias": (4,)}, (3, 4, 5),
            within(lambda x, w, f: f.conv_transpose2d(
                x, w["conv.weight"], w["conv.bias"], stride=2, padding=1, output_padding=1)),
        ),
        "conv_transpose3d": Example(
            "input(2, 2, 3, 4), conv_transpose3d:conv",
            {"conv.weight": (2, 3, 2, 2, 2), "conv.bias": (3,)}, (2, 2, 3, 4),
            within(lambda x, w, f: f.conv_transpose3d(x, w["conv.weight"], w["conv.bias"])),
        ),
        "max_pool3d": Example(
            "input(1, 3, 4, 5), conv3d:conv, max_pool3d((1, 2, 2))",
            {"conv.weight": (2, 1, 2, 2, 2), "conv.bias": (2,)}, (1, 3, 4, 5),
            within(lambda x, w, f: f.max_pool3d(
                f.conv3d(x, w["conv.weight"], w["conv.bias"]), (1, 2, 2))),
        ),
        "avg_pool3d": Example(
            "input(1, 3, 4, 5), conv3d:conv, avg_pool3d(2, stride=1)",
            {"conv.weight": (2, 1, 2, 2, 2), "conv.bias": (2,)}, (1, 3, 4, 5),
            within(lambda x, w, f: f.avg_pool3d(
                f.conv3d(x, w["conv.weight"], w["conv.bias"]), 2, stride=1)),
        ),
        "max_pool1d": Example(
            "conv1d:conv, max_pool1d(2)", CONV, (3,),
            lambda x, w, f: f.max_pool1d(
                f.conv1d(x.movedim(0, -1), w["conv.weight"], w["conv.bias"]), 2).movedim(-1, 0),
        ),
        "max_pool2d": Example(
            "input(3, 8, 6), conv2d:conv, max_pool2d(2, stride=1)",
            {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)}, (3, 8, 6),
            within(lambda x, w, f: f.max_pool2d(
                f.conv2d(x, w["conv.weight"], w["conv.bias"]), 2, stride=1)),
        ),
        "avg_pool1d": Example(
            positions + "conv1d:conv, avg_pool1d(3, padding=1, count_include_pad=false)", CONV,
            (3, 8),
            within(lambda x, w, f: f.avg_pool1d(
                f.conv1d(x, w["conv.weight"], w["conv.bias"]), 3, padding=1,
                count_include_pad=False)),
        ),
        "avg_pool2d": Example(
            "input(3, 8, 6), conv2d:conv, avg_pool2d((2, 1))",
            {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)}, (3, 8, 6),
            within(lambda x, w, f: f.avg_pool2d(
                f.conv2d(x, w["conv.weight"], w["conv.bias"]), (2, 1))),
        ),
        "batch_norm": Example(
            "batch_norm(eps=0.001):norm", BATCH, (4,),
            lambda x, w, f: f.batch_norm(
                x.flatten(0, 1), w["norm.running_mean"], w["norm.running_var"], w["norm.weight"],
                w["norm.bias"], eps=0.001).unflatten(0, x.shape[:2]),
        ),
        "layer_norm": Example(
            "layer_norm:norm", NORM, (4,),
            lambda x, w, f: f.layer_norm(x, (4,), w["norm.weight"], w["norm.bias"]),
        ),
        "group_norm": Example(
            "input(4, 5), group_norm(2):norm", NORM, (4, 5),
            within(lambda x, w, f: f.group_norm(x, 2, w["norm.weight"], w["norm.bias"])),
        ),
        "instance_norm": Example(
            "input(4, 4), linear:fc, instance_norm", FC, (4, 4),
            within(lambda x, w, f: f.instance_norm(linear(x, w, f))),
        ),
        "rms_norm": Example(
            "rms_norm(eps=1e-06):norm", {"norm.weight": (4,)}, (4,),
            lambda x, w, f: f.rms_norm(x, (4,), w["norm.weight"], eps=1e-6),
        ),
        "prelu": Example(
            BEFORE + "prelu:slope", FC | {"slope.weight": (4,)}, (4,),
            lambda x, w, f: torch.where(
                (y := linear(x, w, f)) > 0, y, y * w["slope.weight"]),
        ),
        "matmul": Example(
            "input(2, 4), [linear:fc | permute(1, 0)], matmul", FC, (2, 4),
            lambda x, w, f: linear(x, w, f) @ x.mT,
        ),
        "concatenate": Example(
            "[linear:fc | identity], concatenate", FC, (4,),
            lambda x, w, f: torch.cat((linear(x, w, f), x), -1),
        ),
        "constant": Example(
            "[linear:fc | constant:bias], concatenate", FC | {"bias": (2,)}, (4,),
            lambda x, w, f: torch.cat((linear(x, w, f), w["bias"].expand(*x.shape[:2], 2)), -1),
        ),
        "reduce": Example(
            "input(2, 4), linear:fc, reduce(mean, dim=(-2, -1))", FC, (2, 4),
            lambda x, w, f: linear(x, w, f).mean((-2, -1)),
        ),
        "flatten": Example(
            "input(2, 4), linear:fc, flatten", FC, (2, 4),
            lambda x, w, f: linear(x, w, f).flatten(2),
        ),
        "reshape": after("reshape(2, 2)", lambda y, f: y.unflatten(-1, (2, 2))),
        "permute": Example(
            "input(2, 4), linear:fc, permute(1, 0)", FC, (2, 4),
            lambda x, w, f: linear(x, w, f).mT,
        ),
        "features": after("features(1, 3)", lambda y, f: y[..., 1:3]),
        "flip": after("flip", lambda y, f: y.flip(-1)),
        "pad": after(
            "pad(2, 1, mode=reflect)",
            lambda y, f: f.pad(y, (2, 1), mode="reflect"),
        ),
        "first": after("first", lambda y, f: y[:1]),
        "last": after("last", lambda y, f: y[-1:]),
        "sum": after("sum", lambda y, f: y.sum(0, keepdim=True)),
        "mean": after("mean", lambda y, f: y.mean(0, keepdim=True)),
        "max": after("max", lambda y, f: y.amax(0, keepdim=True)),
        "min": after("min(cumulative=true)", lambda y, f: y.cummin(0).values),
        "final": Example(
            "lstm:rnn, final",
            cell(4) | {f"{name}_reverse": shape for name, shape in cell(4).items()}, (4,),
            lambda x, w, f: (
                y := recurrent("LSTM", bidirectional=True)(x, w, f)
            )[-1:].where(torch.arange(8) < 4, y[:1]),
        ),
        "attention": Example(
            "[linear:score | identity], attention", {"score.weight": (1, 4), "score.bias": (1,)},
            (4,),
            lambda x, w, f: (linear(x, w, f, "score").softmax(0) * x).sum(0, keepdim=True),
        ),
        "delay": after("delay(2)", lambda y, f: torch.cat((torch.zeros_like(y[:2]), y[:-2]))),
        "window": after(
            "window(3, padding=2)",
            lambda y, f: torch.cat((torch.zeros_like(y[:2]), y)).unfold(0, 3, 1).movedim(-1, 2),
        ),
        "steps": after("steps(start=1, end=2, step=2)", lambda y, f: y[1:-2:2]),
        "repeat": after("repeat(2)", lambda y, f: y.repeat_interleave(2, 0)),
        "spread": Example(
            "input(2, 4), linear:fc, spread", FC, (2, 4),
            lambda x, w, f: linear(x, w, f).movedim(2, 1).flatten(0, 1),
        ),
        "dropout": after("dropout(0.2)", lambda y, f: y),
        "identity": after("identity", lambda y, f: y),
    }  # fmt: skip


def examples() -> dict[str, Example]:
    """The examples, in the order of the words; torch is imported."""
    found = _functions() | _operations() | _others()
    return {word: found[word] for word in KINDS}


def random_tensors(example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """Numbers for its tensors; variances and deviations are positive."""
    return {
        name: rng.uniform(0.5, 1.5, shape)
        if name.endswith(("running_var", "std"))
        else rng.standard_normal(shape)
        for name, shape in example.tensors.items()
    }
