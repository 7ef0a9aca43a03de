"""What the kind of a recurrent cell costs: RNN, GRU and LSTM, of equal size and of equal weight.

Dimension letters: ``T`` time, ``I`` input, ``H`` hidden, ``G`` gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import fastlstm
from fastlstm import Model
from fastlstm.commands.latency import Latency, time_sequences, time_steps
from fastlstm.verification import random_input

__all__ = [
    "GATES",
    "ROUNDS",
    "ROWS",
    "Cell",
    "Timed",
    "equal_hidden_size",
    "equal_parameters",
    "time_cells",
]

# Blocks of H rows in each cell's weights, in the order of cost.
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}

# Each cell is measured so many times, in turns with the others: a machine that slows down for a
# while slows them all down.
ROUNDS = 8

# Rows of input that steps go round: few, so that they do not take the weights' place in a cache.
ROWS = 16


@dataclass(frozen=True)
class Cell:
    """One layer of one kind, one direction, with the biases of PyTorch."""

    kind: str
    input_size: int
    hidden_size: int

    @property
    def parameters(self) -> int:
        """``G H (I + H + 2)``."""
        return GATES[self.kind] * self.hidden_size * (self.input_size + self.hidden_size + 2)

    def build(self, isa: str | None, threads: int) -> Model:
        """The layer with random weights, uniform within 1 / sqrt(H) as PyTorch draws them."""
        rng = np.random.default_rng(0)
        rows, bound = GATES[self.kind] * self.hidden_size, self.hidden_size**-0.5
        shapes = {
            "weight_ih_l0": (rows, self.input_size),
            "weight_hh_l0": (rows, self.hidden_size),
            "bias_ih_l0": (rows,),
            "bias_hh_l0": (rows,),
        }
        weights = {
            f"cell.{name}": rng.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in shapes.items()
        }
        nonlinearity = "tanh" if self.kind == "RNN" else None
        return fastlstm.from_torch(weights, nonlinearity=nonlinearity, isa=isa, threads=threads)


@dataclass(frozen=True, eq=False)
class Timed:
    """A cell and its times.

    Parameters
    ----------
    cell : Cell
    step : Latency
        Of ``stream.step``, one row.
    sequence : Latency
        Of ``model(x)``.
    length : int
        Steps of x.
    isa : str
        What it ran on.
    """

    cell: Cell
    step: Latency
    sequence: Latency
    length: int
    isa: str

    @property
    def step_us(self) -> float:
        """Median of a step."""
        return self.step.microseconds()["p50"]

    @property
    def sequence_step_us(self) -> float:
        """Median of a step of a whole sequence."""
        return self.sequence.microseconds()["p50"] / self.length


def equal_hidden_size(input_size: int, hidden_size: int) -> list[Cell]:
    """A cell of each kind with the hidden size given."""
    return [Cell(kind, input_size, hidden_size) for kind in GATES]


def equal_parameters(input_size: int, hidden_size: int) -> list[Cell]:
    """The LSTM of the hidden size given, and each other cell of the size that comes nearest to it.

    Nearest in parameters, which grow with H, so it is one of two sizes.
    """
    wanted = Cell("LSTM", input_size, hidden_size).parameters
    found = []
    for kind, gates in GATES.items():
        # The largest H of at most as many: H**2 + (I + 2) H <= wanted / G.
        most, linear = wanted // gates, input_size + 2
        below = max(1, (math.isqrt(linear**2 + 4 * most) - linear) // 2)
        sizes = [Cell(kind, input_size, below), Cell(kind, input_size, below + 1)]
        found.append(min(sizes, key=lambda cell: abs(cell.parameters - wanted)))
    return found


def time_cells(
    cells: Sequence[Cell],
    *,
    steps: int,
    length: int,
    seconds: float,
    isa: str | None,
    threads: int,
) -> list[Timed]:
    """Time each cell, one row, in turns with the others.

    Parameters
    ----------
    cells : sequence of Cell
    steps : int
        Single steps of each to time.
    length : int
        Of a whole sequence.
    seconds : float
        At most so long for the steps of each, and half of it for its sequences.
    isa : str or None
    threads : int
    """
    models = [cell.build(isa, threads) for cell in cells]
    inputs = [random_input(model, (max(ROWS, length),), seed=0) for model in models]
    single: list[list[Latency]] = [[] for _ in cells]
    whole: list[list[Latency]] = [[] for _ in cells]
    for _ in range(ROUNDS):
        for model, x, step_times, sequence_times in zip(models, inputs, single, whole, strict=True):
            step_times.append(
                time_steps(
                    model, x[:ROWS], steps=math.ceil(steps / ROUNDS), seconds=seconds / ROUNDS
                )
            )
            sequence_times.append(time_sequences(model, x[:length], seconds=seconds / 2 / ROUNDS))
    return [
        Timed(cell, _together(step_times), _together(sequence_times), length, model.isa)
        for cell, model, step_times, sequence_times in zip(
            cells, models, single, whole, strict=True
        )
    ]


def _together(times: Sequence[Latency]) -> Latency:
    return Latency(np.concatenate([latency.nanoseconds for latency in times]))
