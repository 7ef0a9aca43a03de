"""What each kind of layer adds to a step: ``python benchmarks/layers.py``.

An LSTM of 128 units steps alone and with one more layer in front of it or behind it, in turns. What
the layer adds is printed beside its floor: the time that this machine takes to read its weights
once from the cache that holds the model, or to make its multiply-adds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Work
from floor import Floor, bound
from timing import Call, Timed, interleaved, machine, machine_line, summary, write_json
from torch import nn

import fastlstm

SIZE = 128
LSTM_BYTES = 4 * 8 * SIZE * SIZE


class Magnitude(nn.Module):
    """The magnitudes of a spectrum of one column."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x[..., : SIZE // 2] ** 2 + x[..., SIZE // 2 :] ** 2)


class Causal(nn.Module):
    """A convolution over time that sees no later step."""

    def __init__(self, kernel_size: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.padding = dilation * (kernel_size - 1)
        self.convolution = nn.Conv1d(SIZE, SIZE, kernel_size, dilation=dilation, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x.transpose(1, 2), (self.padding, 0))
        return self.convolution(x).transpose(1, 2)


class Residual(nn.Module):
    """A layer whose output is added to its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Chain(nn.Module):
    """Layers before an LSTM, and layers behind it; input (B, T, 128)."""

    def __init__(self, before: nn.Module | None, behind: nn.Module | None) -> None:
        super().__init__()
        self.before, self.behind = before, behind
        self.lstm = nn.LSTM(SIZE, SIZE, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.before is not None:
            x = self.before(x)
        y, _ = self.lstm(x)
        return y if self.behind is None else self.behind(y)


@dataclass(frozen=True)
class Added:
    """A layer to add, and the weights it reads."""

    make: Callable[[], nn.Module]
    weights: int = 0
    in_front: bool = False


ADDED = {
    "relu": Added(nn.ReLU),
    "tanh": Added(nn.Tanh),
    "gelu": Added(nn.GELU),
    "softmax": Added(lambda: nn.Softmax(-1)),
    "prelu": Added(nn.PReLU),
    "layer norm": Added(lambda: nn.LayerNorm(SIZE), 2 * SIZE),
    "magnitude": Added(Magnitude),
    "linear 128 to 1": Added(lambda: nn.Linear(SIZE, 1), SIZE),
    "linear 128 to 128": Added(lambda: nn.Linear(SIZE, SIZE), SIZE * SIZE),
    "linear 128 to 128, relu": Added(
        lambda: nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU()), SIZE * SIZE
    ),
    "linear 128 to 1000": Added(lambda: nn.Linear(SIZE, 1000), SIZE * 1000),
    "residual linear": Added(lambda: Residual(nn.Linear(SIZE, SIZE)), SIZE * SIZE),
    "causal convolution, kernel 3": Added(lambda: Causal(3, 1, 1), 3 * SIZE * SIZE, True),
    "the same, dilation 64": Added(lambda: Causal(3, 64, 1), 3 * SIZE * SIZE, True),
    "the same, 128 groups": Added(lambda: Causal(3, 1, SIZE), 3 * SIZE, True),
}


def step(before: nn.Module | None, behind: nn.Module | None) -> Call:
    """A step of the LSTM with these layers."""
    torch.manual_seed(0)
    stream = fastlstm.from_torch(Chain(before, behind).eval()).stream()
    x = np.random.default_rng(0).standard_normal(SIZE, dtype=np.float32)
    out = np.empty(stream.model.output_size, np.float32)
    return lambda: stream.step(x, out=out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="a layer (default 2)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    floor, about = Floor(), machine(("numpy", "torch"))
    print(machine_line(about))
    print(f"\nnanoseconds that a layer adds to a step of an LSTM of {SIZE}")
    found: dict[str, Any] = {"machine": about, "nanoseconds": {}}
    for name, added in ADDED.items():
        front, behind = (added.make(), None) if added.in_front else (None, added.make())
        total = LSTM_BYTES + 4 * added.weights
        jobs = {"alone": Timed(step(None, None)), "with": Timed(step(front, behind))}
        jobs |= floor.jobs(Work(total, 1, added.weights))
        micros = {
            k: summary(v)["median"] for k, v in interleaved(jobs, seconds=arguments.seconds).items()
        }
        adds = 1000 * (micros["with"] - micros["alone"])
        share = Work(total, 4 * added.weights / total, added.weights)
        least = 1000 * bound(share, micros).microseconds
        found["nanoseconds"][name] = {"added": adds, "floor": least}
        print(f"  {name:<30} {adds:7.0f}   floor {least:6.0f}   beyond it {adds - least:6.0f}")
    if arguments.json:
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
