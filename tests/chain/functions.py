"""Functions of one number, and the softmaxes: their names, parameters and text.

A function is written as its name, with the values of its parameters if it has any:
``"tanh"``, ``"leaky_relu(0.01)"``, ``"hard_sigmoid(0.2, 0.5)"``. Parameters are never left out:
their defaults differ between PyTorch, ONNX and the versions of Keras.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = ["ACTIVATIONS", "PARAMETERS", "ROWWISE", "Function", "canonical", "parse"]

# Name -> parameters. hardtanh takes its bounds; the others are the ONNX operators of these names,
# whose alpha and beta they take, and torch.nn.functional's gelu (exact, and approximate="tanh").
PARAMETERS: dict[str, tuple[str, ...]] = {
    "relu": (),
    "tanh": (),
    "sigmoid": (),
    "softsign": (),
    "softplus": (),
    "silu": (),
    "gelu": (),
    "gelu_tanh": (),
    "affine": ("alpha", "beta"),
    "elu": ("alpha",),
    "leaky_relu": ("alpha",),
    "thresholded_relu": ("alpha",),
    "hard_sigmoid": ("alpha", "beta"),
    "scaled_tanh": ("alpha", "beta"),
    "hardtanh": ("min_val", "max_val"),
    "softmax": (),
    "log_softmax": (),
}

# Functions of a whole row of features.
ROWWISE = ("softmax", "log_softmax")

ACTIVATIONS = tuple(name for name, parameters in PARAMETERS.items() if not parameters)

_TEXT = re.compile(r"\s*([a-z_]{1,40})\s*(?:\(([^()]{0,200})\)\s*)?")


class Function(NamedTuple):
    """A function by name, with the values of its parameters; 0 for those it has not."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def __str__(self) -> str:
        values = (self.alpha, self.beta)[: len(PARAMETERS[self.name])]
        return f"{self.name}({', '.join(map(repr, values))})" if values else self.name


def parse(text: object) -> Function:
    """Read a function's text.

    Raises
    ------
    ValueError
        If the name is unknown, or the parameters are not the finite numbers it takes.
    """
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    name = match[1] if match else None
    if match is None or name not in PARAMETERS:
        raise ValueError(f"function is {text!r:.80}; expected one of {', '.join(PARAMETERS)}")
    wanted = PARAMETERS[name]
    try:
        values = [float(part) for part in match[2].split(",")] if match[2] else []
    except ValueError:
        values = [math.nan]
    if len(values) != len(wanted) or not all(map(math.isfinite, values)):
        expected = f"{name}({', '.join(wanted)}), finite numbers" if wanted else f"{name} alone"
        raise ValueError(f"function is {text!r:.80}; expected {expected}")
    return Function(name, *values)


def canonical(text: object) -> str:
    """The one spelling of a function's text; errors are those of :func:`parse`."""
    return str(parse(text))
