"""A builder of nothing: each operation is computed at once, so that a program gives numbers.

It shows that a program is followed as it is meant, whatever a graph is made of it: the places of a
value are places in a list of numbers, which grows by what each operation computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from fastlstm.reference.functions import apply
from fastlstm.sources.arrays import Value
from fastlstm.spec.functions import parse

FUNCTIONS = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "power": np.power,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "where": lambda c, x, y: np.where(c != 0, x, y),
}
COMPARISONS = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}


class NumericBuilder:
    """The interface of :class:`fastlstm.sources.arrays.Builder`, on float64."""

    def __init__(self) -> None:
        self.numbers = np.zeros(0)
        self.names: dict[int, str] = {}
        self.notes: dict[str, None] = {}
        self.last_states: list[np.ndarray] = []
        self._kept: list[Any] = []

    def value(self, array: Any, kind: str = "float") -> Value:
        array = np.asarray(array, np.float64)
        begin = len(self.numbers)
        self.numbers = np.append(self.numbers, array.ravel())
        return Value(np.arange(begin, begin + array.size).reshape(array.shape), kind)

    def of(self, x: Any) -> np.ndarray:
        """The numbers of an array, of a constant too."""
        if not isinstance(x, Value):
            return np.asarray(x)
        return np.where(x.places == -1, 0, self.numbers[x.places]) if x.places.size else x.places

    def _made(self, array: Any, *of: Any, kind: str = "float") -> Any:
        return self.value(array, kind) if any(isinstance(x, Value) for x in of) else array

    @contextlib.contextmanager
    def at(self, name: str, label: str = "") -> Iterator[None]:
        yield

    def name(self, array: Any, name: str) -> Any:
        self.names[id(array)] = name
        self._kept.append(array)
        return array

    def derived(self, array: Any, how: str, function: Callable[..., Any]) -> Any:
        return function(array)

    def note(self, text: str) -> None:
        self.notes[text] = None

    def move(self, function: Callable[..., Any], *arrays: Any) -> Any:
        values = [x for x in arrays if isinstance(x, Value)]
        if not values:
            return function(*arrays)
        kinds = {x.kind for x in values}
        kind = kinds.pop() if len(kinds) == 1 else "float"
        moved = function(*(x.places if isinstance(x, Value) else self.value(x).places
                           for x in arrays))  # fmt: skip
        if isinstance(moved, list | tuple):
            return [Value(one, kind) for one in moved]
        return Value(moved, kind)

    def activation(self, function: str, x: Any) -> Any:
        with np.errstate(all="ignore"):
            made = apply(parse(function), self.of(x).astype(np.float64))
        return self._made(made, x)

    def arithmetic(self, operation: str, *xs: Any) -> Any:
        with np.errstate(all="ignore"):
            made = FUNCTIONS[operation](*(self.of(x).astype(np.float64) for x in xs))
        return self._made(made, *xs, kind="bool" if operation in COMPARISONS else "float")

    def linear(self, x: Value, weight: Any, bias: Any) -> Value:
        made = self.of(x) @ weight.astype(np.float64).T
        return self.value(made if bias is None else made + bias)

    def matmul(self, x: Any, y: Any) -> Any:
        return self._made(np.matmul(self.of(x).astype(float), self.of(y).astype(float)), x, y)

    def _torch(self, function: Callable[..., Any], x: Value, *arrays: Any, **options: Any) -> Value:
        given = [None if a is None else torch.tensor(np.array(self.of(a), np.float64))
                 for a in (x, *arrays)]  # fmt: skip
        return self.value(function(*given, **options).numpy())

    def convolution(
        self,
        x: Value,
        weight: Any,
        bias: Any,
        stride: Sequence[int],
        dilation: Sequence[int],
        padding: Sequence[tuple[int, int]],
        groups: int,
        transposed: bool = False,
        output_padding: Sequence[int] = (),
    ) -> Value:
        n = weight.ndim - 2
        if transposed:
            function = (F.conv_transpose1d, F.conv_transpose2d)[n - 1]
            return self._torch(function, x, weight, bias, stride=stride, dilation=dilation,
                               padding=[p for p, _ in padding], groups=groups,
                               output_padding=output_padding)  # fmt: skip
        sides = [side for pair in reversed(padding) for side in pair]
        padded = self.value(F.pad(torch.tensor(self.of(x)), sides).numpy())
        function = (F.conv1d, F.conv2d)[n - 1]
        return self._torch(
            function, padded, weight, bias, stride=stride, dilation=dilation, groups=groups
        )

    def pool(
        self,
        x: Value,
        what: str,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        count_include_pad: bool = True,
        ceil: bool = False,
    ) -> Value:
        assert not ceil
        n, pad = len(kernel), [p for p, _ in padding]
        if what == "max":
            function = (F.max_pool1d, F.max_pool2d)[n - 1]
            return self._torch(function, x, kernel_size=tuple(kernel), stride=tuple(stride),
                               padding=tuple(pad), dilation=tuple(dilation))  # fmt: skip
        function = (F.avg_pool1d, F.avg_pool2d)[n - 1]
        return self._torch(function, x, kernel_size=tuple(kernel), stride=tuple(stride),
                           padding=tuple(pad), count_include_pad=count_include_pad)  # fmt: skip

    def reduce(self, what: str, x: Value, axes: Sequence[int], keepdim: bool) -> Value:
        array, axis = self.of(x), tuple(axes)
        if what == "l2":
            return self.value(np.sqrt(np.square(array).sum(axis, keepdims=keepdim)))
        return self.value(getattr(np, what)(array, axis, keepdims=keepdim))

    def softmax(self, x: Value, axis: int, log: bool = False) -> Value:
        return self._torch(torch.log_softmax if log else torch.softmax, x, dim=axis)

    def cumulative(self, what: str, x: Value, axis: int) -> Value:
        return self.value({"sum": np.cumsum, "prod": np.cumprod}[what](self.of(x), axis))

    def layer_norm(self, x: Value, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
        return self._torch(
            lambda x, w, b: F.layer_norm(x, tuple(shape), w, b, eps), x, weight, bias
        )

    def rms_norm(self, x: Value, shape: Sequence[int], weight: Any, eps: float) -> Any:
        return self._torch(lambda x, w: F.rms_norm(x, tuple(shape), w, eps), x, weight)

    def batch_norm(self, x: Value, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Any:
        return self._torch(
            lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, eps=eps), x, weight, bias, mean, var
        )

    def group_norm(self, x: Value, groups: int, weight: Any, bias: Any, eps: float) -> Any:
        return self._torch(lambda x, w, b: F.group_norm(x, groups, w, b, eps), x, weight, bias)

    def embedding(self, tokens: Value, weight: Any) -> Value:
        assert tokens.kind == "int"
        return self.value(np.asarray(weight)[self.of(tokens).astype(int)])

    def one_hot(self, tokens: Value, n: int) -> Value:
        return self.value(np.eye(n)[self.of(tokens).astype(int)], "int")

    def recurrent(
        self,
        cell: str,
        x: Any,
        layers: Sequence[Sequence[dict[str, Any]]],
        h_0: Any,
        c_0: Any,
        batch_first: bool,
        nonlinearity: str = "tanh",
    ) -> Any:
        first = layers[0][0]
        cls = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell]
        options: dict[str, Any] = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
        if "weight_hr" in first:
            options["proj_size"] = first["weight_hr"].shape[0]
        gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
        module = cls(
            first["weight_ih"].shape[1],
            first["weight_ih"].shape[0] // gates,
            len(layers),
            bias="bias_ih" in first,
            batch_first=batch_first,
            bidirectional=len(layers[0]) == 2,
            dtype=torch.float64,
            **options,
        )
        weights = {
            f"{suffix}_l{n}{'_reverse' * d}": torch.tensor(np.array(array, np.float64))
            for n, layer in enumerate(layers)
            for d, direction in enumerate(layer)
            for suffix, array in direction.items()
        }
        module.load_state_dict(weights)
        given = [torch.tensor(self.of(s).astype(float)) for s in (h_0, c_0) if s is not None]
        with torch.no_grad():
            y, state = module(torch.tensor(self.of(x).astype(float)),
                              tuple(given) if cell == "lstm" else given[0])  # fmt: skip
        made = [self.value(s.numpy()) for s in (y, *(state if cell == "lstm" else [state]))]
        return (*made, None)[:3]
