"""Recurrent operators: whole sequences of torch.nn.LSTM, GRU and RNN, and one step of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import SizeError
from fastlstm.sources.aten.table import (
    Array,
    Builder,
    Operand,
    Value,
    operator,
    rank_of,
    shape_of,
)
from fastlstm.sources.aten.views import squeeze, unsqueeze

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def _layers(
    params: Sequence[Operand], has_biases: bool, layers: int, bidirectional: bool, projected: bool
) -> list[list[dict[str, Array]]]:
    """Of each layer and direction, the weights by torch's names, from their flat list."""
    names = [*NAMES[: 4 if has_biases else 2], *NAMES[4:][: int(projected)]]
    directions = 2 if bidirectional else 1
    if len(params) != len(names) * layers * directions:
        raise ConvertError(
            f"{len(params)} weights of {layers} layers of {directions} directions; expected "
            f"{', '.join(names)} of each"
        )
    if any(isinstance(p, Value) for p in params):
        raise ConvertError("the weights of a recurrence are computed from the input; expected "
                           "weights of the model")  # fmt: skip
    parts = [
        dict(zip(names, params[n : n + len(names)], strict=True))
        for n in range(0, len(params), len(names))
    ]
    return [parts[n * directions : (n + 1) * directions] for n in range(layers)]


def run(
    b: Builder,
    cell: str,
    x: Operand,
    states: Sequence[Operand],
    params: Sequence[Operand],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    **options: str,
) -> tuple[Operand, ...]:
    """A whole recurrence: its output, and the states after the last step."""
    if train and dropout > 0 and num_layers > 1:
        raise ConvertError(
            f"dropout({dropout:g}) between the layers is on, which draws random numbers; save the "
            f"model after .eval()"
        )
    hidden = shape_of(params[1])[0] // {"lstm": 4, "gru": 3, "rnn": 1}[cell]
    projected = cell == "lstm" and shape_of(states[0])[-1] != shape_of(states[1])[-1]
    layers = _layers(params, has_biases, num_layers, bidirectional, projected)
    _check_sizes(x, layers[0][0], [states[-1]], hidden)
    batched = rank_of(x) == 3
    if not batched:  # (T, I) and states (layers, H)
        x = unsqueeze(b, x, 0 if batch_first else 1)
        states = [unsqueeze(b, s, 1) for s in states]
    made: tuple[Any, ...] = b.recurrent(
        cell,
        x,
        layers=layers,
        h_0=states[0],
        c_0=states[1] if cell == "lstm" else None,
        batch_first=batch_first,
        **options,
    )
    if not batched:
        made = (squeeze(b, made[0], 0 if batch_first else 1), *(squeeze(b, s, 1) for s in made[1:]))
    return made if cell == "lstm" else made[:2]


def _check_sizes(x: Operand, one: dict[str, Array], states: Sequence[Operand], hidden: int) -> None:
    needed, got = shape_of(one["weight_ih"])[1], shape_of(x)[-1]
    if got != needed:
        raise SizeError(f"rows of {got} numbers, and weights for {needed}", got, needed)
    for state in states:
        if shape_of(state)[-1] != hidden:
            text = f"a state of {shape_of(state)[-1]} numbers, and weights for {hidden}"
            raise SizeError(text, shape_of(state)[-1], hidden)


@operator()
def lstm(
    b: Builder,
    input: Operand,
    hx: Sequence[Operand],
    params: Any,
    has_biases: Any,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> tuple[Operand, ...]:
    if not isinstance(hx, list | tuple):  # lstm.data(data, batch_sizes, hx, params, ...)
        raise ConvertError("a packed sequence is run; expected a padded array")
    biases: bool = has_biases
    made = run(
        b, "lstm", input, hx, params, biases, num_layers, dropout, train, bidirectional, batch_first
    )
    return _whole(b, made)


def _whole(b: Builder, made: tuple[Operand, ...]) -> tuple[Operand, ...]:
    """What a whole recurrence gives, the last states of which are known as such."""
    b.last_states += [state.places for state in made[1:] if isinstance(state, Value)]
    return made


def _without_cell_state(name: str, cell: str, **options: str) -> None:
    def apply(
        b: Builder,
        input: Operand,
        hx: Operand,
        params: Any,
        has_biases: Any,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool = False,
    ) -> tuple[Operand, ...]:
        if not isinstance(params, list | tuple) or isinstance(has_biases, list | tuple):
            raise ConvertError("a packed sequence is run; expected a padded array")
        made = run(
            b, cell, input, [hx], params, has_biases, num_layers, dropout, train, bidirectional,
            batch_first, **options,
        )  # fmt: skip
        return _whole(b, made)

    operator(name)(apply)


_without_cell_state("gru", "gru")
_without_cell_state("rnn_tanh", "rnn", nonlinearity="tanh")
_without_cell_state("rnn_relu", "rnn", nonlinearity="relu")


# Cells


def step(
    b: Builder,
    cell: str,
    x: Operand,
    states: Sequence[Operand],
    weights: Sequence[Operand | None],
    **options: str,
) -> list[Operand]:
    """One step of a cell: the states after it, each (B, H), or (H,) of a step without a batch."""
    batched = rank_of(x) == 2
    if not batched:
        x, states = unsqueeze(b, x, 0), [unsqueeze(b, s, 0) for s in states]
    params = [w for w in weights if w is not None]
    sequence, given = unsqueeze(b, x, 0), [unsqueeze(b, s, 0) for s in states]
    biases = len(params) == 4
    made = run(b, cell, sequence, given, params, biases, 1, 0.0, False, False, False, **options)
    after = [squeeze(b, s, 0) for s in made[1:]]
    return after if batched else [squeeze(b, s, 0) for s in after]


@operator()
def lstm_cell(
    b: Builder,
    input: Operand,
    hx: Sequence[Operand],
    w_ih: Operand,
    w_hh: Operand,
    b_ih: Operand | None = None,
    b_hh: Operand | None = None,
) -> tuple[Operand, ...]:
    return tuple(step(b, "lstm", input, hx, (w_ih, w_hh, b_ih, b_hh)))


def _cell(name: str, cell: str, **options: str) -> None:
    def apply(
        b: Builder,
        input: Operand,
        hx: Operand,
        w_ih: Operand,
        w_hh: Operand,
        b_ih: Operand | None = None,
        b_hh: Operand | None = None,
    ) -> Operand:
        return step(b, cell, input, [hx], (w_ih, w_hh, b_ih, b_hh), **options)[0]

    operator(name)(apply)


_cell("gru_cell", "gru")
_cell("rnn_tanh_cell", "rnn", nonlinearity="tanh")
_cell("rnn_relu_cell", "rnn", nonlinearity="relu")
