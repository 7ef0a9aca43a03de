"""The networks that are measured, and the least work that each of them takes."""

from __future__ import annotations

import dataclasses

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one core has to do at least for one call.

    Parameters
    ----------
    working_set : int
        Bytes it reads again and again.
    readings : float
        How often it reads them; below 1 if it reads a part of them.
    multiply_adds : float
        How many it makes.
    """

    working_set: int
    readings: float
    multiply_adds: float


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its input: T = 0 is one streaming step with carried state.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    I, H, layers : int
        Input size, hidden size, layers of the stack.
    T, B : int
        Steps of a whole sequence (0 for a single step) and batch rows.
    """

    kind: str
    I: int  # noqa: E741
    H: int
    layers: int = 1
    T: int = 0
    B: int = 1

    def __str__(self) -> str:
        layers = f" {self.layers} layers" if self.layers > 1 else ""
        length = f" T={self.T}" if self.T else " step"
        return f"{self.kind} I={self.I} H={self.H}{layers}{length} B={self.B}"

    @property
    def recurrent_weights(self) -> int:
        """Weights of one layer that meet its own last output."""
        return GATES[self.kind] * self.H * self.H

    @property
    def input_weights(self) -> int:
        """Weights of all layers that meet an input."""
        return GATES[self.kind] * self.H * (self.I + (self.layers - 1) * self.H)

    @property
    def weights(self) -> int:
        """Weights of all layers."""
        return self.input_weights + self.layers * self.recurrent_weights

    def work(self, threads: int = 1, weight_bytes: int = 4, prepared: bool = False) -> Work:
        """The least that each of `threads` cores has to do, which share the weights evenly.

        A step reads every weight once, for all rows together; one that is prepared only those that
        meet an input, from where all of them are kept. A sequence reads at least the recurrent
        weights in every step, one layer after the other, since the input's product can be made for
        many steps at once and a layer can finish before the next one starts.
        """
        made = self.B * max(self.T, 1) * self.weights / threads
        if self.T:
            recurrent = weight_bytes * self.recurrent_weights // threads
            return Work(recurrent, self.T * self.layers, made)
        share = self.input_weights / self.weights if prepared else 1
        return Work(weight_bytes * self.weights // threads, share, made * share)


STEPS = [
    Case("lstm", 1, 16),
    Case("lstm", 1, 40),
    Case("lstm", 40, 128),
    Case("lstm", 128, 128),
    Case("lstm", 256, 256),
    Case("lstm", 40, 256, layers=3),
    Case("lstm", 40, 384),
    Case("lstm", 512, 512),
]

SEQUENCES = [
    Case("lstm", 1, 40, T=1000),
    Case("lstm", 40, 128, T=100),
    Case("lstm", 128, 128, T=1000),
    Case("lstm", 256, 256, T=100),
    Case("lstm", 512, 512, layers=2, T=100),
    Case("lstm", 128, 128, T=100, B=32),
    Case("lstm", 256, 256, T=100, B=32),
    Case("lstm", 512, 512, T=35, B=32),
    Case("lstm", 1024, 1024, T=35, B=64),
]

for _kind in ("gru", "rnn"):
    STEPS += [
        Case(_kind, 40, 128),
        Case(_kind, 128, 128),
        Case(_kind, 256, 256),
        Case(_kind, 40, 256, layers=3),
    ]
    SEQUENCES += [
        Case(_kind, 40, 128, T=100),
        Case(_kind, 128, 128, T=1000),
        Case(_kind, 256, 256, T=100),
        Case(_kind, 128, 128, T=100, B=32),
        Case(_kind, 256, 256, T=100, B=32),
    ]

CASES = [*STEPS, *SEQUENCES]
