"""Random graphs of rows: every kind of layer with every option, in every way that rows meet.

:func:`random_graph` grows a graph from its inputs. Each step adds a layer of a random kind, or a
pattern that uniform choice would seldom make: branches with as many rows that a stream has at
different times, a loop, a layer that shares the weights of an earlier one. What a step reads is
chosen among all values that fit; an index gives them the axes that the layer takes. No step is
tried and thrown away.

The numbers stay of a size that float32 can tell apart. Every value carries the interval that its
numbers lie in, so that a logarithm, a root or a quotient is taken only of what is positive, and
what grows is made small again. Loops are contracting. What jumps (a comparison, a floor, the mask
of a hold) reads only numbers that are computed without rounding: inputs and tables have odd
multiples of 1/8, thresholds multiples of 1/4.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.reference.functions import apply
from fastlstm.reference.rows import OPERATIONS

__all__ = ["features", "random_graph", "random_inputs", "text"]

MOST = 48  # numbers in a row that a layer reads
LARGE = 8.0  # what a layer with weights may be given
LONGEST = 64  # rows that a sum over time is thought to have
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
JUMPS = ("sign", "floor", "thresholded_relu")
OF_POSITIVE = ("sqrt", "log", "reciprocal")
# Of slopes of at most about 1, so that recurrences with small weights forget.
GATES = ("sigmoid", "hard_sigmoid(0.2, 0.5)", "hard_sigmoid(0.25, 0.5)", "clip(0.1, 0.9)")
SMOOTH = (
    *("tanh", "softsign", "scaled_tanh(1.5, 0.6)", "sin", "cos", "clip(-1.0, 1.5)", "sigmoid"),
    *("relu", "leaky_relu(0.1)", "elu(0.7)", "softplus", "silu", "gelu", "gelu_tanh", "abs"),
    *("affine(0.8, 0.1)", "hard_sigmoid(0.2, 0.5)"),
)

Shape = tuple[int, ...]


@dataclasses.dataclass
class Value:
    """A value of the graph, and what is known of its numbers.

    Parameters
    ----------
    name : str
    row : spec.Row
    low, high : float
        The interval of its numbers; that of a sum over time, or of what a recurrence makes with
        functions without bounds, is a guess.
    exact : bool
        Whether no number of it is rounded, whoever computes it.
    """

    name: str
    row: spec.Row
    low: float
    high: float
    exact: bool = False

    @property
    def bound(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def shape(self) -> Shape:
        return self.row.shape


def random_graph(rng: np.random.Generator) -> tuple[spec.Graph, dict[str, np.ndarray]]:
    """A graph of up to about 25 nodes, and its tensors, of numbers that float32 has too."""
    growth = _Growth(rng)
    size = int(rng.integers(3, 18))
    while len(growth.nodes) < size:
        growth.step()
    return growth.graph(), growth.tensors


def random_inputs(
    rng: np.random.Generator, graph: spec.Graph, T: int, B: int
) -> dict[str, np.ndarray]:
    """Of every input: tokens, or odd multiples of 1/8 below 2; (T, B, ...), held ones (B, ...)."""
    inputs = {}
    for given in graph.inputs:
        shape = (B, *given.shape) if given.held else (T, B, *given.shape)
        inputs[given.name] = (
            rng.integers(0, given.tokens, shape) if given.tokens else _odd_eighths(rng, shape)
        )
    return inputs


def _odd_eighths(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.integers(-8, 8, shape) / 4 + 1 / 8


class _Growth:
    """A graph that grows; every method that gives a value adds what it needs for it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.inputs: list[spec.Input] = []
        self.nodes: list[tuple[spec.Layer, list[str]]] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.values: dict[str, Value] = {}
        self.loop: list[Value] = []  # what a loop that is not closed yet may read of each step
        self.ahead = self.chance(0.25)  # whether something may need the end of the sequence
        self.kinds: dict[str, Callable[[], Value]] = {
            "lstm": lambda: self.recurrent(spec.LSTM),
            "gru": lambda: self.recurrent(spec.GRU),
            "rnn": lambda: self.recurrent(spec.RNN),
            "constant": self.constant,
            "embedding": lambda: self.token_row(spec.Embedding),
            "linear": self.linear,
            "matmul": self.matmul,
            "one_hot": lambda: self.token_row(spec.OneHot),
            "convolution": lambda: self.sliding(spec.Convolution),
            "pooling": lambda: self.sliding(spec.Pooling),
            "index": self.index,
            "activation": self.activation,
            "arithmetic": self.arithmetic,
            "reduce": self.reduce,
            "softmax": self.softmax,
            "batch_norm": self.batch_norm,
            "group_norm": self.group_norm,
            "layer_norm": self.layer_norm,
            "rms_norm": self.rms_norm,
            "attention": self.attention,
            "delay": self.delay,
            "fold": self.fold,
            "repeat": lambda: self.raised(self.moving(), self.raise_by(self.moving())),
            "slice": self.slice,
            "spread": self.spread,
            "window": self.window,
        }
        self.plant()

    # Chance

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, among: Sequence[Any]) -> Any:
        return among[int(self.rng.integers(len(among)))]

    def size(self, most: int, least: int = 1) -> int:
        return int(self.rng.integers(least, max(least, most) + 1))

    def some(self, kinds: Sequence[tuple[float, Any]]) -> Any:
        weights = np.array([weight for weight, _ in kinds])
        return kinds[int(self.rng.choice(len(kinds), p=weights / weights.sum()))][1]

    def axes(self, ndim: int, most: int = MOST) -> Shape:
        """Axes of so many numbers at most."""
        shape: list[int] = []
        for _ in range(ndim):
            shape.append(self.size(min(4 if ndim > 1 else 8, most // math.prod(shape))))
        return tuple(shape)

    # The graph

    def plant(self) -> None:
        for number in range(self.some([(5, 1), (3, 2), (1, 3)])):
            self.plant_one(f"x{number}", held=False)
        for number in range(self.some([(5, 0), (3, 1), (2, 2)])):
            self.plant_one(f"s{number}", held=True)

    def plant_one(self, name: str, held: bool) -> None:
        if self.chance(0.3):
            shape = self.pick([(), (), (), (2,), (3, 2)])
            given = spec.Input(name, shape, tokens=self.size(7, 2), held=held)
        else:
            shape = self.axes(self.some([(1, 0), (5, 1), (3, 2), (2, 3)]), 24)
            given = spec.Input(name, shape, held=held)
        self.inputs.append(given)
        row = spec.Row(shape, given.tokens, None if held else spec.Timing())
        self.values[name] = value = Value(name, row, -2.0, 2.0, True)
        if given.tokens:
            self.token_row(self.pick([spec.Embedding, spec.OneHot]), value)

    def step(self) -> None:
        """Add a layer, or a pattern of some."""
        # Of kinds with many options or functions, more.
        often = ["activation"] * 3 + ["arithmetic"] * 2 + ["lstm", "gru", "rnn", "convolution"]
        kind = self.pick([*self.kinds, *often])
        self.some(
            [
                (0.67, self.kinds[kind]),
                (0.05, self.heads),
                (0.10, self.branches),
                (0.07, self.close_loop),
                (0.09, self.again),
                (0.02, self.unequal_folds),
            ]
        )()

    def graph(self) -> spec.Graph:
        read = {name for _, reads in self.nodes for name in reads}
        unread = [layer.name for layer, _ in self.nodes if layer.name not in read]
        if len(unread) > 1 and self.chance(0.3):
            unread.remove(self.pick(unread))  # it is computed for nobody
        if not unread or self.chance(0.1):
            unread.append(self.nodes[-1][0].name)
        chosen = unread + [self.pick(list(self.values)) for _ in range(self.size(2, 0))]
        return self.so_far({f"y{number}": name for number, name in enumerate(chosen)})

    def so_far(self, outputs: dict[str, str]) -> spec.Graph:
        nodes = [spec.Node(layer, tuple(reads)) for layer, reads in self.nodes]
        return spec.Graph(tuple(self.inputs), tuple(nodes), outputs)

    def name(self, kind: str) -> str:
        prefix = "net." if self.chance(0.1) else ""
        return f"{prefix}{kind}{len(self.nodes)}"

    def add(self, layer: spec.Layer, *reads: Value, **tensors: np.ndarray) -> Value:
        """A node; tensors that are not given, and are not those of an earlier one, are drawn."""
        if layer.tensors() and not layer.weights and self.chance(0.1):
            suffix = self.pick(list(layer.tensors()))
            options = layer.to_dict() | {"tensor_names": [[suffix, f"of/{layer.name}:{suffix}"]]}
            layer = spec.layer_from_dict(options)
        self.draw(layer, **tensors)
        self.nodes.append((layer, [value.name for value in reads]))
        low, high, exact = self.interval(layer, reads)
        value = self.values[layer.name] = Value(layer.name, spec.Row(()), low, high, exact)
        if self.loop:
            timing = None if all(r.row.held for r in reads) else self.loop[0].row.timing
            value.row = spec.Row(layer.output([r.row for r in reads]), 0, timing)
        else:
            self.settle()
        return value

    def draw(self, layer: spec.Layer, **tensors: np.ndarray) -> None:
        """Have the tensors of a layer, those that are given or drawn ones."""
        shapes = layer.tensors()
        for suffix, name in layer.names().items():
            if name not in self.tensors:
                drawn = tensors.get(suffix)
                drawn = self.tensor(layer, suffix, shapes[suffix]) if drawn is None else drawn
                self.tensors[name] = drawn.astype(np.float32).astype(np.float64)

    def settle(self) -> None:
        """Have every row as the check finds it."""
        last = self.nodes[-1][0].name
        for name, row in spec.check(self.so_far({"y": last})).rows.items():
            self.values[name].row = row

    def tensor(self, layer: spec.Layer, suffix: str, shape: Shape) -> np.ndarray:
        rng = self.rng
        if isinstance(layer, spec.Embedding):
            return _odd_eighths(rng, shape)
        if suffix == "running_var":
            return rng.uniform(0.5, 1.5, shape)
        norms = (spec.LayerNorm, spec.RMSNorm, spec.GroupNorm, spec.BatchNorm)
        if (isinstance(layer, norms) and suffix == "weight") or suffix.startswith("weight_norm"):
            return rng.uniform(0.6, 1.4, shape)
        if len(shape) == 1 or suffix.endswith("_0") or isinstance(layer, norms):
            return rng.uniform(-0.5, 0.5, shape)
        fan = math.prod(shape[1:])
        if isinstance(layer, spec.Convolution) and layer.transposed:
            fan = shape[0] // layer.groups * math.prod(shape[2:])
        drawn = rng.uniform(-1, 1, shape) * math.sqrt(3 / fan)
        if suffix.startswith("weight_hh") or self.loop:
            total = np.abs(drawn).sum(axis=tuple(range(1, len(shape))), keepdims=True)
            drawn *= 0.6 / np.maximum(total, 0.6)
        return drawn

    def interval(self, layer: spec.Layer, reads: Sequence[Value]) -> tuple[float, float, bool]:
        """The interval of the numbers that a layer gives, and whether they are exact."""
        w = {suffix: self.tensors[name] for suffix, name in layer.names().items()}
        if isinstance(layer, spec.OneHot):
            return 0, 1, True
        if isinstance(layer, spec.Constant | spec.Embedding):
            (table,) = w.values()
            return table.min(), table.max(), bool((table * 8 == np.round(table * 8)).all())
        low, high = min(r.low for r in reads), max(r.high for r in reads)
        bound, exact, n = (
            max(r.bound for r in reads),
            all(r.exact for r in reads),
            reads[0].row.size,
        )
        if isinstance(layer, spec.Index):
            fill = [layer.fill] if layer.fills else []
            return min([low, *fill]), max([high, *fill]), exact and layer.fill * 8 % 1 == 0
        if isinstance(layer, spec.Slice | spec.Repeat | spec.Spread):
            return low, high, exact
        if isinstance(layer, spec.Window | spec.Pooling | spec.Delay):  # zeros before the first
            same = isinstance(layer, spec.Window) or getattr(layer, "function", "") == "max"
            same = same or (isinstance(layer, spec.Delay) and not layer.initial_state)
            return min(low, 0), max(high, 0), exact and same and not self.loop
        if isinstance(layer, spec.Fold):
            if layer.function == "sum":
                return min(low, LONGEST * low), max(high, LONGEST * high), exact
            return low, high, exact and layer.function != "mean"
        if isinstance(layer, spec.Activation):
            function = spec.parse_function(layer.function)
            y = apply(function, np.linspace(low, high, 257))
            return y.min(), y.max(), exact and function.name in ("relu", "abs", "sign", "floor")
        if isinstance(layer, spec.Arithmetic):
            return self.interval_of_operation(layer.operation, reads)
        if isinstance(layer, spec.Softmax):
            return (low - high - math.log(n), 0, False) if layer.log else (0, 1, False)
        if isinstance(layer, spec.Reduce):
            if layer.function in ("sum", "l2"):
                return (-n * bound if layer.function == "sum" else 0), n * bound, False
            return low, high, exact and layer.function != "mean"
        if isinstance(layer, spec.Attention):
            return reads[1].low, reads[1].high, False
        if isinstance(layer, spec.Recurrent):
            usual = getattr(layer, "activations", ("",))[0] == "sigmoid"
            usual &= set(getattr(layer, "activations", ())[1:]) == {"tanh"}
            bound = 1.0 if usual and layer.output_size == layer.hidden_size else 4.0
        elif isinstance(layer, spec.MatMul):
            bound = reads[0].bound * reads[1].bound * reads[0].shape[-1]
        elif isinstance(layer, spec.Linear | spec.Convolution):
            weight = np.abs(w["weight"])
            if isinstance(layer, spec.Convolution) and layer.transposed:
                weight = weight.reshape(layer.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
                total = weight.sum(axis=tuple(range(2, weight.ndim))).max()
            else:
                total = weight.sum(axis=tuple(range(1, weight.ndim))).max()
            bound = total * bound + 0.5
        else:  # norms
            if isinstance(layer, spec.BatchNorm):
                bound = (bound + 0.5) * math.sqrt(2)
            else:
                bound = min(math.sqrt(n), bound / math.sqrt(layer.eps))
            bound = bound * 1.4 + 0.5
        return -bound, bound, False

    def interval_of_operation(
        self, operation: str, reads: Sequence[Value]
    ) -> tuple[float, float, bool]:
        exact = all(r.exact for r in reads)
        if operation in COMPARISONS:
            return 0, 1, exact
        if operation == "where":
            a, b = reads[1:]
            return min(a.low, b.low), max(a.high, b.high), exact
        a, b = reads
        ends = [
            OPERATIONS[operation](*ends)
            for ends in itertools.product(*((r.low, r.high) for r in reads))
        ]
        exact = exact and operation in ("add", "subtract", "minimum", "maximum")
        return float(min(ends)), float(max(ends)), exact

    # What to read

    def numbers(self) -> list[Value]:
        return [v for v in self.values.values() if not v.row.tokens]

    def one(self, among: Sequence[Value], most: int = MOST) -> Value:
        """One of some values, sooner one that nothing reads yet; of so many numbers at most."""
        read = {name for _, reads in self.nodes for name in reads}
        unread = [v for v in among if v.name not in read]
        chosen: Value = self.pick(unread if unread and self.chance(0.5) else among)
        if chosen.row.size > most:
            chosen = self.fit(chosen, (self.size(8),))
        return chosen

    def any(self, most: int = MOST) -> Value:
        return self.one(self.numbers(), most)

    def moving(self, most: int = MOST) -> Value:
        """A value with a row for every step, or at another rate."""
        return self.one([v for v in self.numbers() if not v.row.held and not v.row.folded], most)

    def meeting(self, value: Value) -> list[Value]:
        """The values that a layer can read beside one, itself among them."""
        held = [v for v in self.numbers() if v.row.held]
        if self.loop:
            return self.loop + held
        if value.row.held:
            return self.numbers()
        assert value.row.timing is not None
        return held + [
            v
            for v in self.numbers()
            if v.row.timing
            and v.row.folded == value.row.folded
            and (v.row.timing.rows == value.row.timing.rows or (v.row.folded and self.ahead))
        ]

    def beside(self, value: Value, most: int = MOST) -> Value:
        """Another value that meets one; sooner one of each step."""
        others = [v for v in self.meeting(value) if v is not value]
        of_steps = [v for v in others if not v.row.held]
        if of_steps and self.chance(0.7):
            return self.one(of_steps, most)
        return self.one(others or [value], most)

    def fit(self, value: Value, shape: Shape) -> Value:
        """The numbers of a value in other axes, moved, left out or filled up."""
        if value.shape == shape:
            return value
        return self.moved([value], shape)

    def moved(self, values: Sequence[Value], shape: Shape) -> Value:
        """The numbers of some values in axes of their own."""
        total, n = sum(v.row.size for v in values), math.prod(shape)
        at = np.arange(total)
        if self.chance(0.2):
            at = at[::-1]
        if self.chance(0.1):
            at = self.rng.permutation(at)
        if n > total:
            short = n - total
            before = self.size(short, 0)
            fills = not any(v.row.tokens for v in values)
            way = self.pick(["resize", "repeat", "edge", *["constant"] * (2 * fills)])
            if way == "resize":
                at = np.resize(at, n)
            elif way == "repeat":
                at = np.repeat(at, -(-n // total))[:n]
            elif way == "edge":
                at = np.pad(at, (before, short - before), mode="edge")
            else:
                at = np.pad(at, (before, short - before), constant_values=spec.FILL)
        elif n < total:
            step = self.size(total // n)
            start = self.size(total - step * (n - 1) - 1, 0)
            at = at[start : start + step * (n - 1) + 1 : step]
        places = at.reshape(shape[::-1]).T if self.chance(0.3) else at.reshape(shape)
        fill = self.pick([0.0, 0.0, 1.25, -0.5])
        layer = spec.Index.of(self.name("index"), places, fill=fill)
        return self.add(layer if layer.fills else dataclasses.replace(layer, fill=0.0), *values)

    def shaped(self, value: Value, ndim: int, most: int = 24) -> Value:
        """A value with so many axes: as it is, or moved."""
        if len(value.shape) == ndim and value.row.size <= most:
            return value
        return self.fit(value, self.axes(ndim, most))

    def tame(self, value: Value, most: float = LARGE) -> Value:
        """A value whose numbers are not above a bound."""
        if value.bound <= most:
            return value
        way = self.pick(["tanh", "clip", "softsign", "scaled_tanh", "affine", "norm"])
        if way == "norm" and value.row.size > 1 and value.shape and most >= LARGE and not self.loop:
            return self.pick([self.layer_norm, self.rms_norm])(value)
        if way == "affine" and value.bound < 100 * most:
            function = f"affine({0.9 * most / value.bound}, 0.0)"
        elif way == "clip":
            function = f"clip({-most}, {most})"
        elif way == "scaled_tanh":
            function = f"scaled_tanh({most}, {1 / most})"
        else:
            function = "softsign" if way == "softsign" else "tanh"
        return self.add(spec.Activation(self.name("tame"), function), value)

    def positive(self, value: Value) -> Value:
        """A value whose numbers are at least 1/10."""
        if value.low >= 0.1:
            return value
        value = self.tame(value, 2.0)
        first, shift = self.pick(
            [
                *(("exp", 0), ("abs", 0.5), ("sigmoid", 0.25), ("cos", 1.5), ("softplus", 0.2)),
                *(("square", 0.25), ("relu", 0.125)),
            ]
        )
        value = self.add(spec.Activation(self.name("above"), first), value)
        if not shift:
            return value
        return self.add(spec.Activation(self.name("above"), f"affine(1.0, {shift})"), value)

    def truth(self, like: Value, shape: Shape) -> Value:
        """A value of zeros and ones that meets one, computed without rounding."""
        exact = [v for v in self.meeting(like) if v.exact and not v.row.held]
        if not exact or self.chance(0.1):
            drawn = self.rng.integers(0, 2, shape).astype(float)
            return self.add(spec.Constant(self.name("truth"), shape), value=drawn)
        return self.compared(self.fit(self.one(exact), shape))

    def compared(self, value: Value) -> Value:
        """An exact value against another, or against thresholds."""
        others = [v for v in self.meeting(value) if v.exact and v is not value]
        if others and self.chance(0.4):
            other = self.fit(self.one(others), value.shape)
        else:
            drawn = self.rng.integers(-5, 6, self.below(value.shape)) / 4
            other = self.add(spec.Constant(self.name("threshold"), drawn.shape), value=drawn)
        reads = [value, other] if self.chance(0.7) else [other, value]
        operation = self.pick(COMPARISONS)
        return self.add(spec.Arithmetic(self.name(operation), operation), *reads)

    def held(self, shape: Shape) -> Value:
        """A held value of some axes, often a computed one."""
        if self.chance(0.25) and len(self.inputs) < 8:
            given = spec.Input(f"from{len(self.inputs)}", shape, held=True)
            self.inputs.append(given)
            row = spec.Row(shape)
            self.values[given.name] = value = Value(given.name, row, -2.0, 2.0, True)
            return value
        known = [v for v in self.numbers() if v.row.held]
        if not known or self.chance(0.2):
            drawn = self.rng.uniform(-1, 1, shape)
            value = self.add(spec.Constant(self.name("start"), shape), value=drawn)
        else:
            value = self.one(known)
            if self.chance(0.5):
                value = self.linear(value, min(math.prod(shape), 8))
        if self.chance(0.3):
            value = self.add(spec.Activation(self.name("start"), "tanh"), value)
        return self.fit(self.tame(value, 2.0), shape)

    def below(self, shape: Shape) -> Shape:
        """Axes that broadcast to some."""
        axes = [1 if self.chance(0.25) else size for size in shape]
        return tuple(axes[self.size(len(axes), 0) :] if axes and self.chance(0.25) else axes)

    # Layers of one step

    def constant(self) -> Value:
        shape = self.axes(self.size(3, 0), 24)
        drawn = (
            self.rng.uniform(-1.5, 1.5, shape)
            if self.chance(0.5)
            else _odd_eighths(self.rng, shape)
        )
        return self.add(spec.Constant(self.name("constant"), shape), value=np.asarray(drawn))

    def token_row(self, cls: type[spec.Layer], value: Value | None = None) -> Value:
        tokens = [v for v in self.values.values() if v.row.tokens]
        if not tokens:
            return self.activation()
        value = value or self.pick(tokens)
        if self.chance(0.3):
            value = self.moved([value], self.pick([(), (2,), (3,), (2, 2)]))
        most = max(1, 32 // value.row.size)
        if cls is spec.OneHot:
            return self.add(spec.OneHot(self.name("one_hot"), value.row.tokens), value)
        embedding = spec.Embedding(
            self.name("embedding"), value.row.tokens, self.size(min(6, most))
        )
        return self.add(embedding, value)

    def linear(self, value: Value | None = None, out: int = 0) -> Value:
        value = self.tame(value or self.any())
        if not value.shape:
            value = self.fit(value, (self.size(3),))
        out = out or self.size(min(8, 64 // math.prod(value.shape[:-1])))
        layer = spec.Linear(self.name("linear"), value.shape[-1], out, bias=self.chance(0.7))
        return self.add(layer, value)

    def matmul(self, value: Value | None = None, other: Value | None = None) -> Value:
        value = value or self.any()
        other = other or self.beside(value)
        (n, k, m), transposed = (self.size(4) for _ in range(3)), self.chance(0.4)
        one = (*self.pick([(), (), (2,), (1,)]), n, k) if self.chance(0.8) else (k,)
        another = (*self.pick([(), (), (2,)]), *((m, k) if transposed else (k, m)))
        if not transposed and self.chance(0.2):
            another = (k,)
        reads = [self.tame(self.fit(v, s), 3.0) for v, s in ((value, one), (other, another))]
        return self.add(spec.MatMul(self.name("matmul"), transposed=transposed), *reads)

    def index(self) -> Value:
        values = [self.any(32)]
        for _ in range(self.size(2, 0)):
            moving = [v for v in values if not v.row.held]
            values.append(self.beside([*values, *moving][-1], 32))
        if sum(v.row.size for v in values) <= MOST and self.chance(0.5):
            return self.moved(values, (sum(v.row.size for v in values),))
        return self.moved(values, self.axes(self.size(4, 0)))

    def activation(self, value: Value | None = None) -> Value:
        name = self.pick([*spec.PARAMETERS, *OF_POSITIVE, *JUMPS])
        value = value or self.any()
        if name in JUMPS and not value.exact:
            exact = [v for v in self.meeting(value) if v.exact]
            if not exact:
                name = "tanh"
            else:
                value = self.one(exact)
        if name in OF_POSITIVE:
            value = self.positive(value)
        if name == "exp":
            value = self.tame(value, 3.0)
        if name in ("square", "sin", "cos", "gelu_tanh"):
            value = self.tame(value, 6.0)
        parameters = {
            "affine": [-0.7, 0.3],
            "elu": [0.8],
            "leaky_relu": [self.pick([0.01, -0.3])],
            "thresholded_relu": [0.5],
            "hard_sigmoid": [0.2, 0.5],
            "scaled_tanh": [1.7, 0.66],
            "clip": [-0.75, 1.25],
        }.get(name, [])
        function = f"{name}({', '.join(map(str, parameters))})" if parameters else name
        return self.add(spec.Activation(self.name(name), function), value)

    def arithmetic(self, value: Value | None = None, other: Value | None = None) -> Value:
        operation = self.pick(list(spec.OPERATIONS))
        value = value or self.any()
        if operation in COMPARISONS:
            exact = [v for v in self.numbers() if v.exact and v.shape]
            if exact and other is None:
                return self.compared(self.one(exact))
            operation = "add"
        other = other or self.beside(value)
        if operation == "where":
            third = self.beside(value) if self.chance(0.5) else other
            choice = self.truth(value if not value.row.held else other, self.below(value.shape))
            reads = [choice, value, self.fit(other, value.shape)]
            if third is not other and third in self.meeting(other):
                reads[1] = self.fit(third, self.below(value.shape))
            return self.add(spec.Arithmetic(self.name("where"), "where"), *reads)
        reads = [value, self.fit(other, self.below(value.shape))]
        if self.chance(0.3):
            reads = reads[::-1]
        if operation == "multiply":
            reads = [self.tame(v, 4.0) for v in reads]
        if operation == "divide":
            reads[1] = self.positive(reads[1])
        if operation == "power":
            reads = [self.tame(self.positive(reads[0]), 4.0), self.tame(reads[1], 2.0)]
            reads[0] = self.positive(reads[0])
        return self.add(spec.Arithmetic(self.name(operation), operation), *reads)

    def with_axes(self, value: Value | None = None) -> Value:
        value = value or self.any()
        return value if value.shape else self.fit(value, (self.size(4),))

    def softmax(self) -> Value:
        value = self.tame(self.with_axes())
        axis = -self.size(len(value.shape))
        layer = spec.Softmax(self.name("softmax"), axis=axis, log=self.chance(0.4))
        return self.add(layer, value)

    def reduce(self) -> Value:
        value = self.with_axes()
        n = len(value.shape)
        axes = self.rng.permutation(np.arange(-n, 0))[: self.size(n)].tolist()
        function = self.pick(["sum", "mean", "max", "min", "l2"])
        keepdim = self.chance(0.4)
        layer = spec.Reduce(self.name(function), function, axes=tuple(axes), keepdim=keepdim)
        return self.add(layer, value)

    def eps(self) -> float:
        return float(self.pick([1e-5, 1e-3, 0.1]))

    def layer_norm(self, value: Value | None = None) -> Value:
        value = self.with_axes(value)
        shape, affine = value.shape[-self.size(len(value.shape)) :], self.chance(0.7)
        bias = affine and self.chance(0.7)
        return self.add(spec.LayerNorm(self.name("norm"), shape, self.eps(), affine, bias), value)

    def rms_norm(self, value: Value | None = None) -> Value:
        value = self.with_axes(value)
        shape = value.shape[-self.size(len(value.shape)) :]
        return self.add(spec.RMSNorm(self.name("norm"), shape, self.eps(), self.chance(0.7)), value)

    def group_norm(self) -> Value:
        value = self.with_axes()
        C = value.shape[0]
        groups = self.pick([n for n in range(1, C + 1) if C % n == 0])
        layer = spec.GroupNorm(self.name("norm"), groups, C, self.eps(), self.chance(0.7))
        return self.add(layer, value)

    def batch_norm(self, value: Value | None = None) -> Value:
        value = self.tame(self.with_axes(value))
        axis, affine = self.pick([0, -1]), self.chance(0.7)
        C = value.shape[axis]
        return self.add(spec.BatchNorm(self.name("norm"), C, self.eps(), affine, axis=axis), value)

    # Recurrences

    def recurrent(self, cls: type[spec.Recurrent], value: Value | None = None) -> Value:
        along = "positions" if self.chance(0.3) else "time"
        over_time = along == "time"
        value = value or (self.moving() if over_time else self.any())
        ndim = self.size(2) + (not over_time)
        if over_time and len(value.shape) in (1, 2, 3) and value.row.size <= 24:
            ndim = len(value.shape)
        value = self.tame(self.shaped(value, ndim, 18))
        H = self.size(4)
        way = (
            self.some([(6, ""), (2, "both"), (1, "reverse")])
            if not over_time or (self.ahead and not self.loop)
            else ""
        )
        options: dict[str, Any] = {
            "along": along,
            "bias": self.chance(0.8),
            "num_layers": self.some([(5, 1), (2, 2)]),
            "bidirectional": way == "both",
            "reverse": way == "reverse",
            "initial_state": self.some([(4, ""), (2, "learned"), (4, "given")]),
            "hold": self.chance(0.3),
            "clip": self.pick([0.0, 0.0, 0.0, 1.5]),
        }
        D = 2 if way == "both" else 1
        sides = D if self.chance(0.5) else 1
        if cls is spec.LSTM:
            options["proj_size"] = self.size(H - 1) if H > 1 and self.chance(0.3) else 0
            options["layer_norm"] = self.some([(4, ""), (1, "product"), (1, "gate")])
            options["layer_norm_eps"] = self.eps() if options["layer_norm"] else 1e-5
            options |= {name: self.chance(0.25) for name in ("peepholes", "coupled")}
            options["cell_clip"] = self.pick([0.0, 0.0, 0.0, 0.8])
            options["cell_output"] = self.chance(0.2)
            if self.chance(0.3):
                options["activations"] = tuple(
                    self.pick(names) for _ in range(sides) for names in (GATES, SMOOTH, SMOOTH)
                )
        elif cls is spec.GRU:
            options["reset_after"] = self.chance(0.6)
            if self.chance(0.3):
                options["activations"] = tuple(
                    self.pick(names) for _ in range(sides) for names in (GATES, SMOOTH)
                )
        else:
            options["nonlinearity"] = self.pick(["tanh", "relu", *SMOOTH])
            if D == 2 and self.chance(0.5):
                options["nonlinearity_reverse"] = self.pick(SMOOTH)
        name = self.name(cls.kind)
        layer = cls(name, value.shape[-1], H, **options)
        reads = [value]
        if layer.hold:
            mask = (1,) if self.chance(0.5) else (*value.shape[:-1], 1)
            reads.append(self.truth(value, mask))
        if layer.initial_state == "given":
            before = value.shape[:-1] if over_time else value.shape[:-2]
            for size in (layer.h_size, H)[: 1 + layer.has_cell_state]:
                shape = (layer.depth, *before, size)
                if over_time or self.chance(0.5):
                    reads.append(self.held(shape))
                else:
                    reads.append(self.tame(self.fit(self.beside(value), shape), 2.0))
        return self.add(dataclasses.replace(layer, name=self.name(cls.kind)), *reads)

    # Kernels

    def sliding(self, cls: type[spec.Sliding]) -> Value:
        """A convolution or pooling; those of the patterns are over time."""
        if self.chance(0.3):
            value = self.moving()
            if cls is spec.Convolution and self.chance(0.3):
                return self.transposed(value, self.raise_by(value), self.size(2, -1))
            missing = self.some([(4, 0), (1, -1), (1, 1), (1, 2), (1, -2)])
            return self.kernel(cls, value, missing, self.thin_by(value))
        return self.over_positions(cls)

    def over_positions(self, cls: type[spec.Sliding]) -> Value:
        n = self.some([(3, 1), (3, 2), (1, 3)])
        value = self.tame(self.shaped(self.any(), n + 1))
        options: dict[str, Any] = {}
        if cls is spec.Convolution:
            options["transposed"] = self.chance(0.3)
        options |= self.of_positions(cls, value.shape[1:], options.get("transposed", False))
        return self.add(self.slider(cls, value, options), value)

    def of_positions(
        self, cls: type[spec.Sliding], sizes: Shape, transposed: bool = False
    ) -> dict[str, Any]:
        """The options of a kernel over positions, one for each axis."""
        kernel, strides, dilations, paddings, more = [], [], [], [], []
        for size in sizes:
            k, s, d = self.size(3), self.some([(3, 1), (2, 2), (1, 3)]), self.some([(3, 1), (1, 2)])
            if d > size:
                d = 1
            most = k - 1 if cls is spec.Pooling else 2
            padding = (self.size(most, 0), self.size(most, 0)) if self.chance(0.5) else (0, 0)
            if transposed:
                s = min(s, 2)
                reach = d * (k - 1)
                if size * s + reach + 1 - s - sum(padding) < 1:
                    padding = (0, 0)
                more.append(self.size(s - 1, 0))
            elif size + sum(padding) - d * (k - 1) < 1:
                k, d, padding = min(k, size), 1, (0, 0)
            for of_all, one in zip(
                (kernel, strides, dilations, paddings), (k, s, d, padding), strict=True
            ):
                of_all.append(one)
        options: dict[str, Any] = {
            "kernel_size": kernel,
            "stride": strides,
            "dilation": dilations,
            "padding": paddings,
        }
        return options | ({"output_padding": more} if transposed else {})

    def slider(
        self, cls: type[spec.Sliding], value: Value, options: dict[str, Any]
    ) -> spec.Sliding:
        """The layer of some options, its channels drawn."""
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        C = value.shape[0]
        if cls is spec.Pooling:
            function = self.pick(["max", "average"])
            if function == "average":
                options["count_include_pad"] = self.chance(0.5)
            return spec.Pooling(self.name("pool"), function, **options)
        groups = self.pick([n for n in range(1, C + 1) if C % n == 0])
        options |= {"groups": groups, "bias": self.chance(0.7)}
        layer = spec.Convolution(self.name("conv"), C, groups, **options)
        times = max(1, min(3, 64 // math.prod(layer.output([value.row]))))
        return dataclasses.replace(layer, out_channels=groups * self.size(times))

    def over_time(self, value: Value, cls: type[spec.Sliding]) -> tuple[Value, dict[str, Any]]:
        """A value that a kernel over time can read, and the options of its axes of positions."""
        n = self.some([(4, 1), (2, 2), (1, 3)])
        value = self.tame(self.shaped(value, n, 18))
        if n == 1:
            empty: list[Any] = []
            options: dict[str, Any] = {
                "kernel_size": empty,
                "stride": empty,
                "dilation": empty,
                "padding": empty,
            }
            return value, options
        return value, self.of_positions(cls, value.shape[1:])

    def kernel(self, cls: type[spec.Sliding], value: Value, missing: int, stride: int) -> Value:
        """A kernel over time: (T - missing) / stride rows, rounded up."""
        value, options = self.over_time(value, cls)
        fits = []
        for k, d in itertools.product((1, 2, 3, 4), (1, 2)):
            reach = d * (k - 1)
            padding = reach - missing
            # A dilated pooling that is padded might see nothing but padding of a short sequence.
            sees = cls is spec.Convolution or d == 1 or padding == 0
            if 0 <= padding <= 2 * reach and (k > 1 or d == 1) and sees:
                fits.append((k, d, reach, padding))
        k, d, reach, padding = self.pick(fits)
        before = self.size(min(reach, padding), max(0, padding - reach))
        sides = (before, padding - before)
        first = {"kernel_size": k, "stride": stride, "dilation": d, "padding": sides}
        options |= {name: [one, *options[name]] for name, one in first.items()}
        return self.add(self.slider(cls, value, options | {"over_time": True}), value)

    def transposed(self, value: Value, stride: int, tail: int) -> Value:
        """A transposed kernel over time: ``stride * T + tail`` rows."""
        value, options = self.over_time(value, spec.Convolution)
        n = len(value.shape) - 1
        more = options.pop("output_padding", [0] * n)
        fits = []
        for k, d, extra in itertools.product((1, 2, 3, 4), (1, 2), range(stride)):
            reach = d * (k - 1)
            cut = reach + 1 - stride + extra - tail
            if 0 <= cut <= 2 * reach:
                fits.append((k, d, reach, cut, extra))
        k, d, reach, cut, extra = self.pick(fits)
        before = self.size(min(reach, cut), max(0, cut - reach))
        first = {
            "kernel_size": k,
            "stride": stride,
            "dilation": d,
            "padding": (before, cut - before),
        }
        if n:  # as they are for a kernel that is not transposed, positions could all be cut off
            options["padding"] = [(0, 0)] * n
            options["stride"] = [min(s, 2) for s in options["stride"]]
        options |= {name: [one, *options[name]] for name, one in first.items()}
        options |= {"output_padding": [extra, *more], "over_time": True, "transposed": True}
        return self.add(self.slider(spec.Convolution, value, options), value)

    # Time

    def rate(self, value: Value) -> Fraction:
        assert value.row.timing is not None
        return Fraction(*value.row.timing.rate)

    def raise_by(self, value: Value) -> int:
        return self.size(max(1, min(3, int(4 / self.rate(value)))))

    def thin_by(self, value: Value) -> int:
        return self.size(max(1, min(3, int(6 * self.rate(value)))))

    def window(
        self, value: Value | None = None, missing: int | None = None, stride: int = 0
    ) -> Value:
        value = value or self.moving(12)
        if value.row.size > 12:
            value = self.fit(value, (self.size(6),))
        if len(value.shape) > 4:
            value = self.fit(value, (value.row.size,))
        missing = self.some([(3, 0), (1, 1), (1, 2)]) if missing is None else missing
        stride = stride or self.thin_by(value)
        fits = [
            (k, d)
            for k, d in itertools.product((1, 2, 3, 4), (1, 2))
            if d * (k - 1) >= missing and (k > 1 or d == 1)
        ]
        k, d = self.pick(fits)
        padding = d * (k - 1) - missing
        layer = spec.Window(self.name("window"), k, stride=stride, dilation=d, padding=padding)
        return self.add(layer, value)

    def slice(self, value: Value | None = None, missing: int | None = None, step: int = 0) -> Value:
        value = value or self.moving()
        missing = self.size(3, 0) if missing is None else missing
        end = self.size(missing, 0)
        step = step or self.thin_by(value)
        layer = spec.Slice(self.name("slice"), start=missing - end, end=end, step=step)
        return self.add(layer, value)

    def spread(self, value: Value | None = None, size: int = 0) -> Value:
        value = value or self.moving()
        size = size or self.raise_by(value)
        if value.shape[:1] != (size,):
            value = self.fit(value, (size, *self.axes(self.size(2, 0), 12)))
        return self.add(spec.Spread(self.name("spread"), size), value)

    def raised(self, value: Value, times: int) -> Value:
        """``times`` rows for each, in one of several ways."""
        way = self.pick(["repeat", "spread", "transposed"])
        if way == "spread":
            return self.spread(value, times)
        if way == "transposed":
            return self.transposed(value, times, 0)
        return self.add(spec.Repeat(self.name("repeat"), times), value)

    def thinned(self, value: Value, missing: int, stride: int) -> Value:
        """(T - missing) / stride rows, rounded up, in one of several ways."""
        ways = ["convolution", "convolution", "pooling"]
        if missing >= 0:
            ways += ["slice", "slice", "window"]
        if (missing, stride) == (0, 1):
            ways += ["as it is", "delay", "lstm", "round trip", "fold", "round trip"]
        way = self.pick(ways)
        if way == "slice":
            return self.slice(value, missing, stride)
        if way == "window":
            return self.window(value, missing, stride)
        if way == "as it is":
            return value
        if way == "delay":
            return self.delay(value)
        if way == "lstm":
            flat = self.fit(self.tame(value), (self.size(6),))
            return self.add(spec.LSTM(self.name("lstm"), *flat.shape, self.size(4)), flat)
        if way == "fold":
            return self.fold(value, cumulative=True)
        if way == "round trip":
            times = max(2, self.raise_by(value))
            return self.thinned(self.raised(value, times), self.size(times - 1, 0), times)
        cls = spec.Pooling if way == "pooling" else spec.Convolution
        return self.kernel(cls, value, missing, stride)

    def delay(self, value: Value | None = None) -> Value:
        value = value or self.moving(16)
        if value.row.size > 16 or len(value.shape) > 4:
            value = self.fit(value, (self.size(8),))
        steps = self.size(3)
        start = self.some([(3, ""), (1, "learned"), (1, "given")])
        kept = value.shape if steps == 1 and self.chance(0.5) else (steps, *value.shape)
        starts = [self.held(kept)] if start == "given" else []
        layer = spec.Delay(self.name("delay"), value.shape, steps, initial_state=start)
        return self.add(layer, value, *starts)

    def fold(self, value: Value | None = None, cumulative: bool | None = None) -> Value:
        value = value or self.moving()
        cumulative = self.chance(0.6) if cumulative is None else cumulative
        functions = ["first", "sum", "mean", "max", "min", *["last"] * (not cumulative)]
        function = self.pick(functions)
        return self.add(spec.Fold(self.name(function), function, cumulative=cumulative), value)

    def attention(self, value: Value | None = None, other: Value | None = None) -> Value:
        value = value or self.moving()
        other = self.beside(value) if other is None else other
        scores, values = (value, other) if self.chance(0.5) else (other, value)
        scores = self.tame(self.fit(scores, self.below(values.shape)), 6.0)
        layer = spec.Attention(self.name("attention"), cumulative=self.chance(0.6))
        return self.add(layer, scores, values)

    # Patterns

    def join(self, values: Sequence[Value]) -> Value:
        """One value of two or three."""
        if len(values) > 2 or self.chance(0.3):
            return self.moved(values, self.axes(self.size(2), 24))
        one, other = values
        ways: list[Callable[[Value, Value], Value]] = [
            self.arithmetic,
            self.arithmetic,
            self.matmul,
        ]
        if not one.row.folded:
            ways.append(self.attention)
        return self.pick(ways)(one, other)

    def branches(self) -> Value:
        """Two or three ways from one value that have as many rows, and where they meet."""
        value = self.moving(24)
        count = self.some([(3, 2), (1, 3)])
        if self.chance(0.15) and self.rate(value) > Fraction(1, 3):
            value = self.raised(self.thinned(value, 0, 2), self.pick([2, 3]))
        if self.chance(0.25):
            times = self.raise_by(value)
            arms = [self.raised(value, times) for _ in range(count)]
            if self.chance(0.4):
                arms = [self.thinned(arm, self.size(times - 1, 0), times) for arm in arms]
        else:
            missing = self.some([(6, 0), (1, 1), (1, 2), (1, 3), (1, -1), (1, -2)])
            stride = self.thin_by(value) if self.chance(0.3) else 1
            arms = [self.thinned(value, missing, stride) for _ in range(count)]
        if self.chance(0.1):
            arms = [self.fold(arm, cumulative=False) for arm in arms]
        return self.join(arms)

    def heads(self) -> Value:
        """Several matrices of one row, what may follow each of them, and where they meet."""
        value = self.tame(self.moving(24))
        value = value if value.shape else self.fit(value, (1,))
        made, out = [], self.size(8)
        for _ in range(self.some([(3, 2), (1, 3)])):
            head = self.linear(value, out if self.chance(0.6) else 0)
            if self.chance(0.2):
                head = self.batch_norm(head)
            if self.chance(0.4):
                function = self.pick(["sigmoid", "tanh", "relu"])
                head = self.add(spec.Activation(self.name(function), function), head)
            made.append(head)
        if self.chance(0.3):
            made[0] = self.add(spec.Softmax(self.name("softmax")), made[0])
        return self.join(made)

    def unequal_folds(self) -> Value:
        """Folds of values with unlike numbers of rows, and where they meet, at the end only."""
        if not self.ahead:
            return self.fold()
        value = self.moving(24)
        arms = [self.thinned(value, 0, 2), self.thinned(value, self.size(1, 0), 1)]
        return self.join([self.fold(arm, cumulative=False) for arm in arms])

    def again(self) -> Value:
        """An earlier layer, on other rows, with the same weights."""
        if not self.nodes:
            return self.linear()
        everything = self.so_far({layer.name: layer.name for layer, _ in self.nodes})
        groups = spec.check(everything).groups
        looping = {node.name for group in groups if group.loops for node in group.nodes}
        known = [
            (layer, reads)
            for layer, reads in self.nodes
            if layer.tensors() and layer.name not in looping
        ]
        if not known:
            return self.linear()
        layer, names = self.pick(known)
        weights = layer.weights or layer.name
        reads = [self.values[name] for name in names]
        if reads and not reads[0].row.tokens:
            first = reads[0]
            if len(reads) == 1:
                value = self.moving() if layer.over_time else self.any()
                if layer.over_time and not Fraction(1, 4) <= self.rate(value) <= 2:
                    value = first
            else:
                value = self.one([v for v in self.meeting(first) if v.row.held == first.row.held])
            reads[0] = self.fit(self.tame(value), first.shape)
        return self.add(
            dataclasses.replace(layer, name=self.name(layer.kind), weights=weights), *reads
        )

    def close_loop(self) -> Value:
        """A loop through one to three delays, contracting."""
        x = self.tame(self.shaped(self.moving(16), 1, 8), 4.0)
        outside = [x]
        if self.chance(0.3):
            other = self.beside(x, 8)
            outside.append(self.tame(self.fit(other, (self.size(4),)), 4.0))
        delays, made = [], []
        drawn = []
        for _ in range(self.some([(3, 1), (2, 2), (1, 3)])):
            shape, steps = self.axes(self.some([(4, 1), (1, 2)]), 6), self.size(3)
            start = self.some([(3, ""), (1, "learned"), (1, "given")])
            starts = [self.held((steps, *shape))] if start == "given" else []
            drawn.append((shape, steps, start, starts))
        self.loop = [v for v in outside if not v.row.held]
        for shape, steps, start, starts in drawn:
            layer = spec.Delay(self.name("delay"), shape, steps, initial_state=start)
            self.draw(layer)
            # It reads what the loop makes; until there is some, anything of this shape.
            self.nodes.append((layer, ["", *[v.name for v in starts]]))
            row = spec.Row(shape, 0, x.row.timing)
            delays.append(Value(layer.name, row, -4.0, 4.0))
            made.append(self.nodes[-1])
            self.values[layer.name] = delays[-1]
        self.loop += delays
        value = self.body(x, delays, outside)
        for number, (layer, reads) in enumerate(made):
            behind = number and self.chance(0.3)  # the delay before it
            reads[0] = self.fit(delays[number - 1] if behind else value, layer.shape).name
        self.loop = []
        self.settle()
        return value

    def body(self, x: Value, delays: Sequence[Value], outside: Sequence[Value]) -> Value:
        """What the delays of a loop read: of slopes below 1 in what they give."""
        everything = [*outside, *delays]
        way = self.pick(
            [
                *("linear", "lstm", "gru", "rnn", "arithmetic", "arithmetic", "convolution"),
                *("window", "fold", "attention", "norm"),
            ]
        )
        if way == "arithmetic":
            value = delays[0]
            for other in [*delays[1:], x]:
                shape = value.shape
                factor = self.add(
                    spec.Constant(self.name("factor"), shape),
                    value=self.rng.uniform(-0.7, 0.7, shape),
                )
                value = self.add(spec.Arithmetic(self.name("multiply"), "multiply"), value, factor)
                operation = (
                    self.pick(["minimum", "maximum"])
                    if other is not x
                    else self.pick(["add", "subtract", "minimum", "maximum"])
                )
                other = self.fit(other, shape)
                value = self.add(spec.Arithmetic(self.name(operation), operation), value, other)
            return value
        total = sum(v.row.size for v in everything)
        value = self.moved(everything, (total,))
        if way in ("lstm", "gru", "rnn"):
            cls = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}[way]
            value = self.recurrent_of_loop(cls, value)
        elif way == "convolution":
            d = self.size(2)
            layer = spec.Convolution(
                self.name("conv"),
                total,
                self.size(5),
                2,
                dilation=d,
                padding=((d, 0),),
                over_time=True,
            )
            value = self.add(layer, value)
        elif way == "window":
            value = self.fit(value, (self.size(6),))
            value = self.add(spec.Window(self.name("window"), 3, padding=2), value)
        elif way == "fold":
            function = self.pick(["first", "mean", "max", "min"])
            value = self.add(spec.Fold(self.name(function), function, cumulative=True), value)
        elif way == "attention":
            scores = self.add(spec.Linear(self.name("linear"), total, self.pick([1, total])), value)
            value = self.add(spec.Attention(self.name("attention"), cumulative=True), scores, value)
            value = self.add(spec.Activation(self.name("less"), "affine(0.3, 0.0)"), value)
        elif way == "norm":
            value = self.add(spec.RMSNorm(self.name("norm"), value.shape, 1.0), value)
        value = self.add(spec.Linear(self.name("linear"), value.shape[-1], self.size(5)), value)
        if self.chance(0.6):
            function = self.pick(["tanh", "softsign", "clip(-1.0, 1.0)", "sin", "relu"])
            value = self.add(spec.Activation(self.name("state"), function), value)
        return value

    def recurrent_of_loop(self, cls: type[spec.Recurrent], value: Value) -> Value:
        options: dict[str, Any] = {"num_layers": self.size(2), "hold": self.chance(0.3)}
        options["initial_state"] = self.pick(["", "learned"])
        reads = [value, *([self.truth(value, (1,))] if options["hold"] else [])]
        layer = cls(self.name(cls.kind), *value.shape, self.size(4), **options)
        return self.add(layer, *reads)


def text(graph: spec.Graph) -> str:
    """A graph as a list of its inputs, nodes and outputs, in the order in which they run."""
    facts = spec.check(graph)

    def row(name: str) -> str:
        known = facts.rows[name]
        if known.timing is None:
            return f"{known}, held"
        rows = f"{known.timing.rows(24)} of 24 steps, {known.timing.after(24)} in a stream"
        return f"{known}, {'folded of ' * known.folded}{rows}"

    lines = [f"{given.name}: {row(given.name)}" for given in graph.inputs]
    for group in facts.groups:
        for node in group.nodes:
            mark = "loop " if group.loops else ""
            reads = ", ".join(node.reads)
            lines.append(
                f"{mark}{node.name} = {node.layer.describe()} of {reads}: {row(node.name)}"
            )
    ran = {node.name for group in facts.groups for node in group.nodes}
    lines += [f"{node.name} does not run" for node in graph.nodes if node.name not in ran]
    return "\n".join([*lines, *(f"{name} is {value}" for name, value in graph.outputs.items())])


def features(graph: spec.Graph) -> set[str]:
    """What occurs in a graph: kinds, values of options, functions, and ways in which rows meet."""
    facts, found = spec.check(graph), set[str]()
    rows = facts.rows
    held = [i for i in graph.inputs if i.held]
    moving = [i for i in graph.inputs if not i.held]
    found |= {"several inputs"} if len(moving) > 1 else set()
    found |= {"several held inputs"} if len(held) > 1 else set()
    found |= {"several outputs"} if len(graph.outputs) > 1 else set()
    for given in graph.inputs:
        kind = "held" if given.held else "moving"
        found.add(f"{kind} {'tokens' if given.tokens else 'input'} of {len(given.shape)} axes")
    for value in graph.outputs.values():
        found.add("output held" if rows[value].held else "output of steps")
        found |= {"output folded"} if rows[value].folded else set()
    read = {name for node in graph.nodes for name in node.reads} | set(graph.outputs.values())
    if any(node.name not in read for node in graph.nodes):
        found.add("node that nobody reads")
    names = [name for node in graph.nodes for name in node.layer.names().values()]
    found |= {"shared weights"} if len(set(names)) < len(names) else set()
    found.add("cannot be streamed" if facts.looks_ahead else "can be streamed")
    for group in facts.groups:
        if group.loops:
            delays = sum(isinstance(node.layer, spec.Delay) for node in group.nodes)
            found.add(f"loop of {min(delays, 3)} delays")
            found |= {f"loop with {node.layer.kind}" for node in group.nodes}
    for node in graph.nodes:
        found |= _of_layer(node.layer)
        found |= _of_reads(node, rows, {given.name for given in graph.inputs})
    return found


def _of_layer(layer: spec.Layer) -> set[str]:
    """Its kind, which options are not the default, and which texts and functions they are."""
    found = {layer.kind}
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.type == "bool":
            found.add(f"{layer.kind}.{field.name} is {value}")
        elif field.default is not dataclasses.MISSING and value != field.default:
            found.add(f"{layer.kind}.{field.name}")
        if field.type == "str" and field.name not in ("name", "weights"):
            found.add(f"{layer.kind}.{field.name} is {value.split('(')[0]}")
    return found


def _of_reads(node: spec.Node, rows: Mapping[str, spec.Row], inputs: set[str]) -> set[str]:
    """How the rows that a node reads meet."""
    found, layer = set[str](), node.layer
    reads = [rows[name] for name in node.reads]
    timings = [row.timing for row in reads if row.timing]
    made = rows[node.name]
    found |= {"three meet"} if len(timings) > 2 else set()
    found |= {"held row meets rows of steps"} if 0 < len(timings) < len(reads) else set()
    found |= {"held row computed"} if reads and not timings else set()
    if len({timing.ready for timing in timings}) > 1:
        found.add("unequal delays meet")
        found |= {"unequal delays meet at another rate"} if timings[0].rate != (1, 1) else set()
        found |= {"folds of unequal delays meet"} if reads[0].folded else set()
    if len({timing.rows for timing in timings}) > 1:
        found.add("folds of unequal rows meet")
    if made.timing and timings:
        rate = Fraction(*made.timing.rate) / Fraction(*timings[0].rate)
        if rate != 1:
            found.add(f"rate {'raised' if rate > 1 else 'lowered'} by {layer.kind}")
        if len(made.timing.ready) > 1:
            found.add("now one delay is the longer one, now another")
    if any(row.folded for row in reads):
        found.add("layer behind a fold")
    if layer.starts:
        given = "an input" if node.reads[-1] in inputs else "what is computed"
        found.add(f"{layer.kind} starts from {given}")
    if isinstance(layer, spec.Recurrent) and layer.over_time and len(reads[0].shape) > 1:
        found.add("recurrence over positions")
    if isinstance(layer, spec.Recurrent) and layer.hold:
        mask = (
            "a constant" if reads[1].held else "one number" if reads[1].size == 1 else "positions"
        )
        found.add(f"hold by {mask}")
    if isinstance(layer, spec.LSTM | spec.GRU) and len(layer.activations) > 3 - (
        layer.kind == "gru"
    ):
        found.add(f"{layer.kind}.activations of each direction")
    if isinstance(layer, spec.Sliding):
        over, n = "time and " * layer.over_time, len(layer.kernel_size) - layer.over_time
        found.add(f"{layer.kind} over {over}{n} axes")
    return found
