"""The words that ``layers=`` may hold: their parameters, what each does, and which takes weights.

The manual's tables and the messages are made of this one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastlstm import spec

__all__ = ["KINDS", "OPERATIONS", "Kind", "split", "value_of"]

MAX_NESTING = 16  # of values in parentheses within each other


class Kind(NamedTuple):
    """What a word is.

    Parameters
    ----------
    signature : str
        Its name and parameters as the manual shows them: those without a value must be given, and
        one that begins with ``*`` stands for any number of values.
    says : str
        What it does, for the manual.
    weights : str
        ``"layer"`` if it takes the tensors of a layer, whose path stands behind a colon;
        ``"tensor"`` if it may take one tensor, by its name; else "".
    of_each : bool
        Whether it makes of each number another one, so that a row keeps its axes.
    means : str
        The words that it is short for, parameters in braces; "" if it is none.
    """

    signature: str
    says: str
    weights: str = ""
    of_each: bool = False
    means: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        """Name of each parameter -> what it is where it is left out; ``...`` if it must be said."""
        return dict(_parameters(self.signature))


@functools.cache
def _parameters(signature: str) -> Mapping[str, Any]:
    made: dict[str, Any] = {}
    for part in split(signature.partition("(")[2].removesuffix(")")):
        name, equals, text = part.partition("=")
        made[name.strip()] = value_of(text) if equals else ...
    return made


def _functions() -> dict[str, Kind]:
    """The functions of one number, with PyTorch's defaults where it has them."""
    defaults: dict[str, tuple[float, ...]] = {
        "elu": (1.0,),
        "leaky_relu": (0.01,),
        "hard_sigmoid": (1 / 6, 0.5),
        "clip": (),
    }
    made = {}
    for name, parameters in spec.PARAMETERS.items():
        values: Sequence[Any] = defaults.get(name) or [...] * len(parameters)
        each = [p if v is ... else f"{p}={v!r}" for p, v in zip(parameters, values, strict=True)]
        inside = f"({', '.join(each)})" if each else ""
        made[name] = Kind(name + inside, _FUNCTIONS[name], of_each=True)
    return made


_FUNCTIONS = {
    "relu": "`max(x, 0)`",
    "tanh": "the hyperbolic tangent",
    "sigmoid": "`1 / (1 + exp(-x))`",
    "softsign": "`x / (1 + abs(x))`",
    "softplus": "`log(1 + exp(x))`",
    "silu": "`x * sigmoid(x)`, also called swish",
    "gelu": "`x` times the normal distribution's function, exact",
    "gelu_tanh": 'what PyTorch calls `approximate="tanh"`',
    "affine": "`alpha * x + beta`",
    "elu": "`x` above 0, else `alpha * (exp(x) - 1)`",
    "leaky_relu": "`x` above 0, else `alpha * x`; PyTorch calls alpha negative_slope",
    "thresholded_relu": "`x` above alpha, else 0",
    "hard_sigmoid": "`alpha * x + beta` between 0 and 1; Keras 2 and ONNX have 0.2 and 0.5",
    "scaled_tanh": "`alpha * tanh(beta * x)`",
    "clip": "no less than min and no more than max",
    "abs": "without its sign",
    "sign": "-1, 0 or 1",
    "floor": "the integer below",
    "sqrt": "the square root",
    "square": "`x * x`",
    "reciprocal": "`1 / x`",
    "exp": "the exponential function",
    "log": "the natural logarithm",
    "sin": "the sine",
    "cos": "the cosine",
}

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # as torch.nn.SELU has them
_SHORT = {
    "relu6": Kind("relu6", "`clip(0, 6)`", "", True, "clip(0, 6)"),
    "hardtanh": Kind(
        "hardtanh(min=-1.0, max=1.0)", "`clip` with PyTorch's defaults", "", True,
        "clip({min}, {max})",
    ),
    "hardswish": Kind(
        "hardswish", "`x * hard_sigmoid(x)`", "", True, "[ | hard_sigmoid], multiply"
    ),
    "mish": Kind("mish", "`x * tanh(softplus(x))`", "", True, "[ | softplus, tanh], multiply"),
    "selu": Kind(
        "selu", "a scaled `elu`, with the constants of PyTorch", "", True,
        f"elu({_SELU_ALPHA!r}), affine({_SELU_SCALE!r}, 0)",
    ),
    "logsigmoid": Kind(
        "logsigmoid", "`-softplus(-x)`", "", True, "affine(-1, 0), softplus, affine(-1, 0)"
    ),
    "tanhshrink": Kind("tanhshrink", "`x - tanh(x)`", "", True, "[ | tanh], subtract"),
    "softshrink": Kind(
        "softshrink(lambd=0.5)", "`x` less what is between -lambd and lambd", "", True,
        "[ | clip(-{lambd}, {lambd})], subtract",
    ),
    "softmin": Kind(
        "softmin(dim=-1)", "`softmax(-x)`", "", True, "affine(-1, 0), softmax({dim})"
    ),
    "l2_normalize": Kind(
        "l2_normalize(dim=-1, eps=1e-12)",
        "divided by its length, or by eps where it is shorter: `torch.nn.functional.normalize`", "",
        True, "[ | reduce(l2, {dim}, true), maximum({eps})], divide",
    ),
}  # fmt: skip

OPERATIONS = {
    "add": "the sum",
    "subtract": "the first less the second",
    "multiply": "the product; `scale` is the same word",
    "divide": "the first by the second",
    "power": "the first to the power of the second",
    "minimum": "the lesser",
    "maximum": "the greater",
    "equal": "1 where they are equal, else 0",
    "not_equal": "1 where they differ, else 0",
    "less": "1 where the first is less, else 0",
    "less_equal": "1 where the first is not greater, else 0",
    "greater": "1 where the first is greater, else 0",
    "greater_equal": "1 where the first is not less, else 0",
}
_FOLDS = {
    "first": "the first row of a sequence",
    "last": "the last row of a sequence",
    "sum": "the sum over time",
    "mean": "the mean over time",
    "max": "the largest over time, number by number",
    "min": "the smallest over time, number by number",
}
_CONV, _TRANSPOSED = (
    "(stride=1, padding=0, dilation=1, groups=1)",
    "(stride=1, padding=0, output_padding=0, groups=1, dilation=1)",
)
_MAX, _AVERAGE = (
    "(kernel_size, stride=kernel_size, padding=0, dilation=1)",
    "(kernel_size, stride=kernel_size, padding=0, count_include_pad=true)",
)


def _each(texts: dict[str, tuple[str, str]], weights: str = "") -> dict[str, Kind]:
    return {n: Kind(n + inside, says, weights) for n, (inside, says) in texts.items()}


def _sliding(name: str, inside: str, says: str, axes: str, weights: str = "") -> dict[str, Kind]:
    return {f"{name}{n}d": Kind(f"{name}{n}d{inside}", says.format(n), weights) for n in axes}


KINDS: dict[str, Kind] = {
    **_each(
        {
            "input": ("(*sizes)", "what a step of the input is, where the first layer does not "
                      "tell: `input(1, 80, 80)` are 1 channel of 80 x 80"),
            "one_hot": ("(size=the next layer's)", "a token as a row of zeros with a one"),
        }
    ),
    **_each(
        {
            "embedding": ("", "a token's row of a table"),
            "lstm": ("(reverse=false)", "`nn.LSTM` or `nn.LSTMCell`"),
            "gru": ("(reset_after=true, reverse=false)", "`nn.GRU` or `nn.GRUCell`"),
            "rnn": ("(nonlinearity=what the source tells, reverse=false)",
                    "`nn.RNN` or `nn.RNNCell`: `rnn(tanh)` or `rnn(relu)`"),
            "linear": ("", "`nn.Linear`, over the last axis of a row"),
        },
        "layer",
    ),
    **_sliding("conv", _CONV, "`nn.Conv{}d`", "123", "layer"),
    **_sliding("conv_transpose", _TRANSPOSED, "`nn.ConvTranspose{}d`", "123", "layer"),
    **_sliding("max_pool", _MAX, "`nn.MaxPool{}d`", "123"),
    **_sliding("avg_pool", _AVERAGE, "`nn.AvgPool{}d`", "123"),
    **_each(
        {
            "batch_norm": ("(eps=1e-05)", "`nn.BatchNorm1d` and its kin, by running statistics"),
            "layer_norm": ("(eps=1e-05, affine=true)", "`nn.LayerNorm`"),
            "group_norm": ("(num_groups, eps=1e-05, affine=true)", "`nn.GroupNorm`"),
            "instance_norm": ("(eps=1e-05, affine=false)", "`nn.InstanceNorm1d` and its kin, over "
                              "the positions of a step"),
            "rms_norm": ("(eps, affine=true)", "`nn.RMSNorm`; PyTorch's own eps is that of the "
                         "dtype, 1.1920929e-07 of float32"),
            "prelu": ("", "`nn.PReLU`"),
        },
        "layer",
    ),
    **_functions(),
    **_SHORT,
    **_each(
        {
            "softmax": ("(dim=-1)", "`nn.Softmax`"),
            "log_softmax": ("(dim=-1)", "`nn.LogSoftmax`"),
            "glu": ("(dim=-1)", "`nn.GLU`: the first half times the sigmoid of the second"),
        }
    ),
    **{n: Kind(f"{n}(value)", says, "tensor") for n, says in OPERATIONS.items()},
    **_each(
        {
            "where": ("", "of three branches: the second where the first is not 0, else the third"),
            "matmul": ("(transposed=false)", "`torch.matmul` of two branches"),
            "concatenate": ("(dim=-1)", "branches beside each other: `torch.cat`"),
        }
    ),
    "constant": Kind("constant", "the row that a tensor is, at every step", "tensor"),
    **_each(
        {
            "reduce": ("(function, dim=-1, keepdim=false)", "`sum`, `mean`, `max`, `min` or `l2` "
                       "over axes of a step"),
            "flatten": ("", "`nn.Flatten`: a row of one axis"),
            "reshape": ("(*sizes)", "a row of other axes, its numbers in the same order"),
            "permute": ("(*axes)", "the axes of a row in another order, counted from 0"),
            "features": ("(start, stop)", "numbers of the last axis: `x[..., start:stop]`"),
            "flip": ("", "the last axis from its end"),
            "pad": (
                "(before, behind, dim=-1, mode=constant, value=0)",
                "numbers put around an axis of a step; `mode` is `constant`, `reflect`, "
                "`replicate` or `circular`",
            ),
        }
    ),
    **{
        n: Kind(n + "(cumulative=false)" * (n != "last"), says) for n, says in _FOLDS.items()
    },
    **_each(
        {
            "final": ("", "the last row of the forward direction and the first of the backward "
                      "one, as `h_n` of a bidirectional layer has them"),
            "attention": ("(cumulative=false)", "of two branches, scores and values: the sum of "
                          "softmax(scores) * values over time"),
            "delay": ("(steps=1)", "the row of some steps before, zeros at first"),
            "window": ("(size, stride=1, dilation=1, padding=0)", "the last rows as one"),
            "steps": ("(start=0, end=0, step=1)", "some of the rows: `x[start : len(x) - end : "
                      "step]`"),
            "repeat": ("(times)", "each row several times"),
            "spread": ("", "the first axis of a row becomes time"),
            "dropout": ("(p=0.5)", "no effect at inference"),
            "identity": ("", "no effect"),
        }
    ),
}  # fmt: skip


def split(text: str) -> list[str]:
    """Parts between the commas of a text that are in no parenthesis."""
    parts, depth, begin = [], 0, 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            parts.append(text[begin:at])
            begin = at + 1
    return [*parts, text[begin:]] if text.strip() else []


def value_of(text: str) -> Any:
    """What a text stands for: a number, true or false, a tuple in parentheses, or itself."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")") and text.count("(") <= MAX_NESTING:
        return tuple(value_of(part) for part in split(text[1:-1]) if part.strip())
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d{1,12}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][+-]?\d{1,3})?", text):
        return float(text)
    return text
