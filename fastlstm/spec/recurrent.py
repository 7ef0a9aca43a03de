"""Recurrent stacks: LSTM, GRU and RNN in PyTorch's form, and their variants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, field
from typing import ClassVar

from fastlstm.spec import functions
from fastlstm.spec.frozen import extra, frozen
from fastlstm.spec.layer import Layer
from fastlstm.spec.row import Row, Shape

__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]

LSTM_ACTIVATIONS = ("sigmoid", "tanh", "tanh")
GRU_ACTIVATIONS = ("sigmoid", "tanh")


@frozen
class Recurrent(Layer):
    """What LSTM, GRU and RNN share: a stack of ``num_layers`` layers in one or two directions.

    It reads rows of `input_size` features; axes before the features are positions, which share the
    weights. Gate blocks are stacked along the first axis of every weight and bias in PyTorch's
    order, given by ``gates``.

    Parameters
    ----------
    along : {"time", "positions"}
        Along time, from step to step, with a state for each position; or along the last axis
        before the features, starting anew in each step.
    reverse : bool
        Whether the one direction there is runs from the last step or position to the first.
    initial_state : {"", "learned", "given"}
        What it starts from: zero; the tensors ``h_0`` (N * D, O) and, of an LSTM, ``c_0``
        (N * D, H), for every position; or the last values that it reads, one for each state, of
        the shape of that state. Those of a recurrence along time are held.
    hold : bool
        Whether it reads, after its input, a mask of one number for each row or for each position:
        where that is 0, the states stay, and the output is that of the step or position before,
        zero before the first (Keras's Masking).
    clip : float
        If not 0, a bound of the input of every activation within the cell (ONNX).
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    _: KW_ONLY
    along: str = extra(default="time")
    reverse: bool = extra(default=False)
    initial_state: str = extra(default="")
    hold: bool = extra(default=False)
    clip: float = extra(default=0.0)
    gates: ClassVar[str]
    has_cell_state: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reverse and self.bidirectional:
            raise self._refused("reverse", "false where bidirectional is true")
        if self.along not in ("time", "positions"):
            raise self._refused("along", "'time' or 'positions'")
        if self.initial_state not in ("", "learned", "given"):
            raise self._refused("initial_state", "'', 'learned' or 'given'")

    def _canonical(self, field: str, names: tuple[str, ...]) -> None:
        """Check a tuple of functions: one for each name, or for each direction one for each."""
        given, n = getattr(self, field), len(names)
        if not isinstance(given, tuple) or len(given) not in (n, n * self.directions):
            raise self._refused(field, f"{n} functions, {', '.join(names)}")
        try:
            texts = tuple(map(functions.canonical, given))
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {field}: {error}") from None
        object.__setattr__(self, field, texts[:n] if texts[n:] == texts[:n] else texts)

    def _of_direction(self, texts: tuple[str, ...], n: int, d: int) -> list[functions.Function]:
        return [functions.parse(text) for text in (texts[d * n : (d + 1) * n] or texts)]

    @property
    def directions(self) -> int:
        """``D``: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def projection(self) -> int:
        """LSTM ``proj_size``; 0 where h is not projected."""
        return 0

    @property
    def h_size(self) -> int:
        """Size of ``h`` in one direction: ``proj_size`` if there is one, else ``hidden_size``."""
        return self.projection or self.hidden_size

    @property
    def depth(self) -> int:
        """``N * D``: states of each kind."""
        return self.num_layers * self.directions

    @property
    def input_sizes(self) -> list[int]:
        """Features that each layer of the stack reads."""
        return [self.input_size] + [self.h_size * self.directions] * (self.num_layers - 1)

    @property
    def output_size(self) -> int:
        """Features of a row that it gives."""
        return self.h_size * self.directions

    @property
    def input_shape(self) -> Shape:
        """The axes of a row that it takes where there are no positions."""
        return (self.input_size,)

    @property
    def over_time(self) -> bool:
        return self.along == "time"

    @property
    def looks_ahead(self) -> str:
        if self.bidirectional and self.over_time:
            return "is bidirectional: its backward direction starts at the last step"
        if self.reverse and self.over_time:
            return "runs backwards: it starts at the last step"
        return ""

    @property
    def starts(self) -> int:
        given = self.over_time and self.initial_state == "given"
        return (1 + self.has_cell_state) * given

    def output(self, reads: Sequence[Row]) -> Shape:
        names = ["rows", *["a mask"] * self.hold]
        if self.initial_state == "given":
            names += ["the initial h", *["the initial c"] * self.has_cell_state]
        self._reads(reads, *names)
        shape = reads[0].shape
        if len(shape) < 1 + (self.along == "positions") or shape[-1] != self.input_size:
            axes = "(..., positions, " if self.along == "positions" else "(..., "
            raise ValueError(f"it takes rows {axes}{self.input_size}), and is given {reads[0]}")
        if self.hold and reads[1].shape not in ((1,), (*shape[:-1], 1)):
            raise ValueError(f"its mask has rows of {reads[1]}; expected one number, or one each")
        given = reads[1 + self.hold :]
        for row, size in zip(given, self._state_sizes().values(), strict=bool(given)):
            each = (*self._positions(shape), size)
            if self.depth > 1 or row.shape != each:
                self._takes(row, (self.depth, *each))
        return (*shape[:-1], self.output_size)

    def _positions(self, shape: Shape) -> Shape:
        """The axes of positions that each have a state of their own, of rows of a shape."""
        return shape[:-1] if self.over_time else shape[:-2]

    def _state_sizes(self) -> dict[str, int]:
        return {"h": self.h_size} | ({"c": self.hidden_size} if self.has_cell_state else {})

    def functions(self, direction: int) -> list[functions.Function]:
        """The activations of a direction, in the order of ``activations`` (one for an RNN)."""
        raise NotImplementedError

    @property
    def gate_count(self) -> int:
        """``G``: gate blocks in every weight and bias."""
        return len(self.gates)

    def sizes(self) -> list[tuple[str, int]]:
        """(tensor suffix such as ``_l1_reverse``, input size) per layer and direction, in order."""
        return [
            (f"_l{n}{reverse}", size)
            for n, size in enumerate(self.input_sizes)
            for reverse in ("", "_reverse")[: self.directions]
        ]

    def _variant_tensors(self) -> dict[str, int]:
        """Beginning of the name -> size, of the vectors that a variant adds to each direction."""
        return {}

    def tensors(self) -> dict[str, Shape]:
        rows = self.gate_count * self.hidden_size
        shapes: dict[str, Shape] = {}
        for suffix, input_size in self.sizes():
            shapes[f"weight_ih{suffix}"] = (rows, input_size)
            shapes[f"weight_hh{suffix}"] = (rows, self.h_size)
            if self.bias:
                shapes[f"bias_ih{suffix}"] = (rows,)
                shapes[f"bias_hh{suffix}"] = (rows,)
            if self.projection:
                shapes[f"weight_hr{suffix}"] = (self.projection, self.hidden_size)
            for vector, size in self._variant_tensors().items():
                shapes[f"{vector}{suffix}"] = (size,)
        if self.initial_state == "learned":
            shapes |= {f"{s}_0": (self.depth, size) for s, size in self._state_sizes().items()}
        return shapes

    def matrices(self) -> dict[str, int]:
        kinds = ("weight_ih", "weight_hh", *["weight_hr"] * bool(self.projection))
        return {f"{kind}{suffix}": 0 for suffix, _ in self.sizes() for kind in kinds}

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        if not self.over_time:
            return {}
        positions = self._positions(reads[0].shape)
        sizes = self._state_sizes() | ({"y": self.h_size} if self.hold else {})
        return {suffix: (self.depth, *positions, size) for suffix, size in sizes.items()}

    def initial(self) -> dict[str, str]:
        learned = self.initial_state == "learned" and self.over_time
        return {suffix: f"{suffix}_0" for suffix in self._state_sizes()} if learned else {}

    def work(self, reads: Sequence[Row]) -> int:
        rows, H = self.gate_count * self.hidden_size, self.hidden_size
        each = sum(rows * (size + self.h_size) + self.projection * H for _, size in self.sizes())
        return each * math.prod(reads[0].shape[:-1])


@frozen
class LSTM(Recurrent):
    """``torch.nn.LSTM``; with ``proj_size``, h is projected (https://arxiv.org/abs/1402.1128).

    Its variants, in the order in which a step computes them, with ``z = W_ih x + W_hh h + b``:

    * `layer_norm` ``"product"``: both products are normalised over all gates at once, then get
      their biases, and the new c is normalised too (the LayerNormLSTMCell of TensorFlow Addons, and
      of PyTorch's benchmark of custom LSTMs). ``"gate"``: each gate is normalised over its units
      before its bias is added (TensorFlow Lite). Both with `layer_norm_eps` beneath the root.
    * `peepholes`: i and f see the c before, o sees the new one, each through a diagonal, stacked in
      ``weight_peephole`` in the order i f o (https://doi.org/10.1162/153244303768966139).
    * `clip` bounds the input of every activation.
    * `activations`: of the gates, of the candidate, of c on its way to h.
    * `coupled`: f = 1 - i, and there is no gate f in any tensor.
    * `cell_clip`, if not 0, bounds the new c.

    With `cell_output` a row that it gives is h of each direction and then c of each, c being the
    state itself where a mask holds it.
    """

    proj_size: int = field(default=0, metadata={"least": 0})
    activations: tuple[str, ...] = extra(default=LSTM_ACTIVATIONS)
    peepholes: bool = extra(default=False)
    coupled: bool = extra(default=False)
    cell_clip: float = extra(default=0.0)
    cell_output: bool = extra(default=False)
    layer_norm: str = extra(default="")
    layer_norm_eps: float = extra(default=1e-5)
    kind: ClassVar[str] = "lstm"
    gates: ClassVar[str] = "ifgo"
    has_cell_state: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proj_size >= self.hidden_size:
            raise self._refused("proj_size", f"less than hidden_size, which is {self.hidden_size}")
        if self.layer_norm not in ("", "product", "gate"):
            raise self._refused("layer_norm", "'', 'product' or 'gate'")
        self._canonical("activations", ("of the gates", "of the candidate", "of c"))

    @property
    def projection(self) -> int:
        return self.proj_size

    @property
    def output_size(self) -> int:
        """Features of a row that it gives."""
        return self.directions * (self.h_size + self.hidden_size * self.cell_output)

    @property
    def gate_count(self) -> int:
        return 3 if self.coupled else 4

    def functions(self, direction: int) -> list[functions.Function]:
        return self._of_direction(self.activations, 3, direction)

    def _variant_tensors(self) -> dict[str, int]:
        H, rows = self.hidden_size, self.gate_count * self.hidden_size
        vectors: dict[str, int] = {}
        if self.peepholes:
            vectors["weight_peephole"] = rows - H
        if self.layer_norm == "gate":
            vectors["weight_norm"] = rows
        if self.layer_norm == "product":
            for what, size in (("ih", rows), ("hh", rows), ("c", H)):
                vectors |= {f"weight_norm_{what}": size, f"bias_norm_{what}": size}
        return vectors


@frozen
class GRU(Recurrent):
    """``torch.nn.GRU``: the reset gate is applied after the recurrent product.

    Without `reset_after` it is applied before: n = tanh(W_in x + b_in + W_hn (r * h) + b_hn), the
    form of the paper (https://arxiv.org/abs/1406.1078) and ONNX's ``linear_before_reset=0``.
    `activations`: of the gates, of the candidate.
    """

    reset_after: bool = extra(default=True)
    activations: tuple[str, ...] = extra(default=GRU_ACTIVATIONS)
    kind: ClassVar[str] = "gru"
    gates: ClassVar[str] = "rzn"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._canonical("activations", ("of the gates", "of the candidate"))

    def functions(self, direction: int) -> list[functions.Function]:
        return self._of_direction(self.activations, 2, direction)


@frozen
class RNN(Recurrent):
    """``torch.nn.RNN``: an Elman network with tanh or relu, or any function of a single number.

    `nonlinearity_reverse`, if not empty, is that of the backward direction.
    """

    nonlinearity: str = "tanh"
    nonlinearity_reverse: str = extra(default="")
    kind: ClassVar[str] = "rnn"
    gates: ClassVar[str] = "h"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nonlinearity", "nonlinearity_reverse"):
            text = getattr(self, name)
            if name == "nonlinearity_reverse" and text == "":
                continue
            try:
                text = functions.canonical(text)
            except ValueError as error:
                raise ValueError(f"layer {self.name!r}: {name}: {error}") from None
            object.__setattr__(self, name, text)
        if self.nonlinearity_reverse == self.nonlinearity or not self.bidirectional:
            object.__setattr__(self, "nonlinearity_reverse", "")

    def functions(self, direction: int) -> list[functions.Function]:
        text = self.nonlinearity_reverse if direction else ""
        return [functions.parse(text or self.nonlinearity)]
