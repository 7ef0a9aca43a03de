"""ONNX models, and its recurrent operators drawn at random with the equations they are to follow.

Nothing here is under test. The equations are those of https://onnx.ai/onnx/operators/onnx__LSTM.html
(GRU, RNN), written once more in float64, with ONNX's own layouts and orders of gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray

NEWEST = 22


def graph(
    nodes: Sequence[Any],
    x: Sequence[Any] = ("T", "B", 6),
    constants: dict[str, Array] | None = None,
    *,
    version: int = NEWEST,
    kind: int = TensorProto.FLOAT,
    inputs: Sequence[tuple[str, Sequence[Any]]] = (),
    outputs: Sequence[str] = ("y",),
) -> Any:
    """A model from x to y; a node is (operator, inputs, outputs, attributes), _ for no input."""
    made = [
        helper.make_node(
            op, read.replace("_", "").split(" "), given.split(), name=f"{op.lower()}_{i}", **options
        )
        for i, (op, read, given, options) in enumerate(nodes)
    ]
    proto = helper.make_graph(
        made,
        "graph",
        [
            helper.make_tensor_value_info("x", kind, x),
            *(helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opset = [helper.make_opsetid("", version)]
    return helper.make_model(proto, opset_imports=opset, ir_version=10)


def floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.uniform(-0.9, 0.9, shape).astype(np.float32)


# --- recurrent operators

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
COUNT = {"LSTM": 3, "GRU": 2, "RNN": 1}  # of functions
DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

# How many of alpha and beta a function takes, and its defaults.
PARAMETERS = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "Softsign": (),
    "Softplus": (),
    "Affine": (np.nan, np.nan),
    "LeakyRelu": (0.01,),
    "ThresholdedRelu": (1.0,),
    "ScaledTanh": (np.nan, np.nan),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0,),
}
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a: np.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda x, a: np.where(x > a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a: np.where(x > 0, x, a * (np.exp(np.minimum(x, 0)) - 1)),
}


@dataclass
class Operator:
    """A node of one operator, and the arrays it reads by their names in the specification."""

    op: str
    arrays: dict[str, Array]
    attributes: dict[str, Any] = field(default_factory=dict)
    version: int = 22

    @property
    def directions(self) -> int:
        return len(self.arrays["W"])

    @property
    def batch_first(self) -> bool:
        return self.attributes.get("layout", 0) == 1

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("Y", "Y_h", "Y_c") if self.op == "LSTM" else ("Y", "Y_h")

    def model(
        self, fed: tuple[str, ...] = ("X",), outputs: tuple[str, ...] | None = None
    ) -> onnx.ModelProto:
        """A model of the one node; arrays that are not `fed` are stored in it."""
        outputs = self.outputs if outputs is None else outputs
        names = [name if name in self.arrays else "" for name in INPUTS]
        if self.op != "LSTM":
            names = names[:6]
        while not names[-1]:
            names.pop()
        given = [name if name in outputs else "" for name in self.outputs]
        node = helper.make_node(self.op, names, given, name="cell", **self.attributes)
        open_axes = {"X": 3, "sequence_lens": 1, "initial_h": 3, "initial_c": 3}
        kinds = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in self.arrays.items()}
        shapes = {name: list(self.arrays[name].shape) for name in fed}
        for name in fed:
            for axis in range(open_axes[name]):
                known = axis == 2 or (axis == int(self.batch_first) and name.startswith("initial"))
                if not known:
                    shapes[name][axis] = f"{name}_{axis}"
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in fed],
            [helper.make_tensor_value_info(name, kinds["X"], None) for name in outputs],
            [
                numpy_helper.from_array(array, name)
                for name, array in self.arrays.items()
                if name not in fed
            ],
        )
        opset = [helper.make_opsetid("", self.version)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10)

    def evaluate(self) -> dict[str, Array]:
        """Y, Y_h and Y_c in float64."""
        a = {name: np.asarray(array, np.float64) for name, array in self.arrays.items()}
        x = a["X"].transpose(1, 0, 2) if self.batch_first else a["X"]
        T, B, _ = x.shape
        D, H = self.directions, a["R"].shape[2]
        shape = (D, B, H)
        states = {}
        for which in "hc":
            start = a.get(f"initial_{which}", np.zeros((B, D, H) if self.batch_first else shape))
            states[which] = (start.transpose(1, 0, 2) if self.batch_first else start).copy()
        lengths = self.arrays.get("sequence_lens", np.full(B, T))
        y = np.zeros((T, D, B, H))
        functions = self._functions()
        for d in range(D):
            backwards = d == 1 or self.attributes.get("direction") == "reverse"
            cell = _Cell(self, a, d, functions[d])
            for b in range(B):
                h, c = states["h"][d, b], states["c"][d, b]
                for t in range(lengths[b])[:: -1 if backwards else 1]:
                    h, c = cell.step(x[t, b], h, c)
                    y[t, d, b] = h
                states["h"][d, b], states["c"][d, b] = h, c
        made = {"Y": y, "Y_h": states["h"], "Y_c": states["c"]}
        if self.batch_first:
            made = {"Y": y.transpose(2, 0, 1, 3)} | {
                f"Y_{which}": state.transpose(1, 0, 2) for which, state in states.items()
            }
        return {name: made[name] for name in self.outputs}

    def _functions(self) -> list[list[Callable[[Array], Array]]]:
        """By direction; alpha and beta are consumed in order by the functions that take them."""
        names = self.attributes.get("activations", DEFAULT[self.op] * self.directions)
        alphas = list(self.attributes.get("activation_alpha", ()))
        betas = list(self.attributes.get("activation_beta", ()))
        made = []
        for name in names:
            (spelling,) = [known for known in PARAMETERS if known.lower() == name.lower()]
            values = [
                given.pop(0) if given else default
                for given, default in zip((alphas, betas), PARAMETERS[spelling], strict=False)
            ]
            clip = self.attributes.get("clip")
            made.append(
                lambda x, f=FUNCTIONS[spelling], v=values, clip=clip: f(
                    x if clip is None else np.clip(x, -clip, clip), *v
                )
            )
        n = COUNT[self.op]
        return [made[d * n : (d + 1) * n] for d in range(self.directions)]


class _Cell:
    def __init__(
        self, operator: Operator, a: dict[str, Array], d: int, functions: list[Callable[..., Array]]
    ) -> None:
        H = a["R"].shape[2]
        rows = GATES[operator.op] * H
        self.W, self.R = a["W"][d], a["R"][d]
        biases = a["B"][d] if "B" in a else np.zeros(2 * rows)
        self.Wb, self.Rb = biases[:rows], biases[rows:]
        self.P = a["P"][d] if "P" in a else np.zeros(3 * H)
        self.functions = functions
        self.H = H
        self.op = operator.op
        self.coupled = operator.attributes.get("input_forget", 0)
        self.linear_before_reset = operator.attributes.get("linear_before_reset", 0)

    def step(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        H, f = self.H, self.functions
        of_x, of_h = self.W @ x + self.Wb, self.R @ h + self.Rb
        if self.op == "RNN":
            return f[0](of_x + of_h), c
        if self.op == "GRU":
            z, r = (f[0](of_x[k : k + H] + of_h[k : k + H]) for k in (0, H))
            if self.linear_before_reset:
                n = f[1](of_x[2 * H :] + r * of_h[2 * H :])
            else:
                n = f[1](of_x[2 * H :] + self.R[2 * H :] @ (r * h) + self.Rb[2 * H :])
            return (1 - z) * n + z * h, c
        i, o, g, n = np.split(of_x + of_h, 4)
        p_i, p_o, p_f = np.split(self.P, 3)
        i = f[0](i + p_i * c)
        forget = 1 - i if self.coupled else f[0](g + p_f * c)
        c = forget * c + i * f[1](n)
        return f[0](o + p_o * c) * f[2](c), c


def draw(rng: np.random.Generator, op: str, **fixed: Any) -> Operator:
    """An operator with attributes and optional inputs drawn at random, but for those fixed.

    `fixed` can hold direction, layout, bias, lengths, start, peepholes, clip, activations, coupled,
    reset_after, and in without_defaults functions whose alpha is always there.
    """

    def choose(name: str, *choices: Any) -> Any:
        drawn = choices[rng.integers(len(choices))]
        return fixed.get(name, drawn)

    T, B, I, H = (int(rng.integers(low, 7)) for low in (2, 1, 1, 2))  # noqa: E741
    direction = choose("direction", "forward", "reverse", "bidirectional")
    D = 1 + (direction == "bidirectional")
    G = GATES[op]
    layout = choose("layout", 0, 0, 1)

    def array(*shape: int) -> Array:
        return rng.uniform(-0.8, 0.8, shape).astype(np.float32)

    def placed(state: Array) -> Array:
        return np.ascontiguousarray(state.transpose(1, 0, 2)) if layout else state

    x = rng.standard_normal((B, T, I) if layout else (T, B, I)).astype(np.float32)
    arrays = {"X": x, "W": array(D, G * H, I), "R": array(D, G * H, H)}
    if choose("bias", True, True, False):
        arrays["B"] = array(D, 2 * G * H)
    if choose("lengths", False, True):
        arrays["sequence_lens"] = rng.integers(1, T + 1, B).astype(np.int32)
    if choose("start", False, True):
        arrays["initial_h"] = placed(array(D, B, H))
        if op == "LSTM":
            arrays["initial_c"] = placed(array(D, B, H))
    if op == "LSTM" and choose("peepholes", False, True):
        arrays["P"] = array(D, 3 * H)
    attributes: dict[str, Any] = {"hidden_size": H, "direction": direction}
    if layout:
        attributes["layout"] = 1
    if clip := choose("clip", None, 0.25, 1.5):
        attributes["clip"] = clip
    if choose("activations", False, True):
        attributes |= _activations(rng, op, D, fixed.get("without_defaults", ()))
    if op == "LSTM" and choose("coupled", 0, 1):
        attributes["input_forget"] = 1
    if op == "GRU" and choose("reset_after", 0, 1):
        attributes["linear_before_reset"] = 1
    return Operator(op, arrays, attributes)


def _activations(
    rng: np.random.Generator, op: str, directions: int, without_defaults: tuple[str, ...]
) -> dict[str, Any]:
    """Functions with their alpha and beta, or without the last ones where there are defaults."""
    gates = ("Sigmoid", "HardSigmoid", "hardsigmoid")
    others = ("Tanh", "tanh", "Relu", "Softsign", "LeakyRelu", "Elu", "ScaledTanh", "Affine")
    others = (*others, "ThresholdedRelu", "Softplus", "Sigmoid")
    names: list[str] = []
    for _ in range(directions):
        first = () if op == "RNN" else (gates[rng.integers(len(gates))],)
        names += [*first, *rng.choice(others, COUNT[op] - len(first)).tolist()]
    alphas: list[float] = []
    betas: list[float] = []
    for name in names:
        (spelling,) = [known for known in PARAMETERS if known.lower() == name.lower()]
        for given, _ in zip((alphas, betas), PARAMETERS[spelling], strict=False):
            given.append(round(float(rng.uniform(0.1, 0.6)), 3))
    if not {"ScaledTanh", "Affine", *without_defaults} & set(names):
        alphas = alphas[: rng.integers(len(alphas) + 1)]
        betas = betas[: rng.integers(len(betas) + 1)]
    made: dict[str, Any] = {"activations": names}
    if alphas:
        made["activation_alpha"] = alphas
    if betas:
        made["activation_beta"] = betas
    return made
