"""Recurrent stacks: LSTM, GRU and RNN in PyTorch's form, and their variants."""

from __future__ import annotations

from dataclasses import KW_ONLY, field
from typing import ClassVar

from chain import functions
from chain.layer import Layer, extra, layer_kind

__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]

LSTM_ACTIVATIONS = ("sigmoid", "tanh", "tanh")
GRU_ACTIVATIONS = ("sigmoid", "tanh")


@layer_kind
class Recurrent(Layer):
    """What LSTM, GRU and RNN share: a stack of ``num_layers`` layers in one or two directions.

    Gate blocks are stacked along the first axis of every weight and bias in PyTorch's order, given
    by ``gates``. With `reverse`, the one direction there is runs from the last step to the first.
    With `initial_state`, a sequence starts from the tensors ``h_0`` (N * D, O) and, of an LSTM,
    ``c_0`` (N * D, H), instead of from zero. `clip`, if not 0, bounds the input of every activation
    within the cell (ONNX).
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    _: KW_ONLY
    reverse: bool = extra(default=False)
    initial_state: bool = extra(default=False)
    clip: float = extra(default=0.0)
    gates: ClassVar[str]
    has_cell_state: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reverse and self.bidirectional:
            raise self._refused("reverse", "false where bidirectional is true")

    def _canonical(self, field: str, names: tuple[str, ...]) -> None:
        """Check a tuple of functions: one for each name, or for each direction one for each."""
        given, n = getattr(self, field), len(names)
        if not isinstance(given, tuple) or len(given) not in (n, n * self.directions):
            raise self._refused(field, f"{n} functions, {', '.join(names)}")
        try:
            texts = tuple(map(functions.canonical, given))
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {field}: {error}") from None
        if rowwise := [text for text in texts if text in functions.ROWWISE]:
            raise ValueError(
                f"layer {self.name!r}: {field} holds {rowwise[0]!r}; expected functions of a "
                f"single number"
            )
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
    def output_size(self) -> int:
        return self.h_size * self.directions

    @property
    def looks_ahead(self) -> str:
        if self.bidirectional:
            return "is bidirectional: its backward direction starts at the last step"
        return "runs backwards: it starts at the last step" if self.reverse else ""

    @property
    def is_plain(self) -> bool:
        """Whether it computes what PyTorch's layer of this name does."""
        return self.clip == 0

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
            (f"_l{n}{reverse}", self.input_size if n == 0 else self.output_size)
            for n in range(self.num_layers)
            for reverse in ("", "_reverse")[: self.directions]
        ]

    def _variant_tensors(self) -> dict[str, int]:
        """Beginning of the name -> size, of the vectors that a variant adds to each direction."""
        return {}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        rows = self.gate_count * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for suffix, input_size in self.sizes():
            shapes[f"{self.name}.weight_ih{suffix}"] = (rows, input_size)
            shapes[f"{self.name}.weight_hh{suffix}"] = (rows, self.h_size)
            if self.bias:
                shapes[f"{self.name}.bias_ih{suffix}"] = (rows,)
                shapes[f"{self.name}.bias_hh{suffix}"] = (rows,)
            if self.projection:
                shapes[f"{self.name}.weight_hr{suffix}"] = (self.projection, self.hidden_size)
            for vector, size in self._variant_tensors().items():
                shapes[f"{self.name}.{vector}{suffix}"] = (size,)
        if self.initial_state:
            for name, shape in self.state().items():
                shapes[f"{name}_0"] = shape
        return shapes

    def state(self) -> dict[str, tuple[int, int]]:
        depth = self.num_layers * self.directions
        shapes = {f"{self.name}.h": (depth, self.h_size)}
        if self.has_cell_state:
            shapes[f"{self.name}.c"] = (depth, self.hidden_size)
        return shapes

    def initial(self) -> dict[str, str]:
        return {name: f"{name}_0" for name in self.state()} if self.initial_state else {}


@layer_kind
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
    """

    proj_size: int = field(default=0, metadata={"least": 0})
    activations: tuple[str, ...] = extra(default=LSTM_ACTIVATIONS)
    peepholes: bool = extra(default=False)
    coupled: bool = extra(default=False)
    cell_clip: float = extra(default=0.0)
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
    def gate_count(self) -> int:
        return 3 if self.coupled else 4

    @property
    def is_plain(self) -> bool:
        return (
            super().is_plain
            and self.activations == LSTM_ACTIVATIONS
            and not (self.peepholes or self.coupled or self.cell_clip or self.layer_norm)
        )

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


@layer_kind
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

    @property
    def is_plain(self) -> bool:
        return super().is_plain and self.reset_after and self.activations == GRU_ACTIVATIONS

    def functions(self, direction: int) -> list[functions.Function]:
        return self._of_direction(self.activations, 2, direction)


@layer_kind
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
            except ValueError:
                text = None
            if text is None or text in functions.ROWWISE:
                raise self._refused(name, "'tanh', 'relu' or another function of a single number")
            object.__setattr__(self, name, text)
        if self.nonlinearity_reverse == self.nonlinearity or not self.bidirectional:
            object.__setattr__(self, "nonlinearity_reverse", "")

    def functions(self, direction: int) -> list[functions.Function]:
        text = self.nonlinearity_reverse if direction else ""
        return [functions.parse(text or self.nonlinearity)]
