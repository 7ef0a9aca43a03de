"""Tokens a second of small token models, one stream and 32: ``python benchmarks/tokens.py``.

Every token is the likeliest one after the token before it, so each step waits for the last. Peers
do what their users do: torch's functional.one_hot or Embedding, then LSTM and Linear; a Gather from
an identity or an embedding matrix in the ONNX model. Everything is timed in one process, in turns,
after the logits of the first steps were compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx_model import onnx_model
from peers import (
    NAMES,
    PACKAGES,
    STEPS_COMPARED,
    agreeing,
    missing,
    onnxruntime_call,
    openvino_call,
)
from timing import (
    Call,
    Timed,
    cores,
    interleaved,
    machine,
    machine_line,
    summary,
    three_digits,
    write_json,
)

import fastlstm

HIDDEN_SIZE = 256


class OneHotModel(torch.nn.Module):
    """One-hot tokens, one LSTM layer, one linear layer: the shape of the demo's model."""

    words = "one_hot, lstm, linear"

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.lstm = torch.nn.LSTM(vocabulary, HIDDEN_SIZE)
        self.linear = torch.nn.Linear(HIDDEN_SIZE, vocabulary)

    def table(self) -> np.ndarray:
        """The row that stands for each token, (V, I)."""
        return np.eye(self.vocabulary, dtype=np.float32)

    def forward(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        x = torch.nn.functional.one_hot(tokens, self.vocabulary).float()
        y, state = self.lstm(x, state)
        return self.linear(y), state


class EmbeddingModel(torch.nn.Module):
    """Embedded tokens, one LSTM layer, one linear layer."""

    words = "embedding, lstm, linear"

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.lstm = torch.nn.LSTM(width, HIDDEN_SIZE)
        self.linear = torch.nn.Linear(HIDDEN_SIZE, vocabulary)

    def table(self) -> np.ndarray:
        """The row that stands for each token, (V, I)."""
        return self.embedding.weight.detach().numpy()

    def forward(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        y, state = self.lstm(self.embedding(tokens), state)
        return self.linear(y), state


TokenModel = OneHotModel | EmbeddingModel


@dataclass(frozen=True)
class Job:
    """A model and how many streams of it step together."""

    name: str
    make: Callable[[], TokenModel]
    B: int


JOBS = [
    Job(name, make, B)
    for B in (1, 32)
    for name, make in (
        ("one-hot 28, LSTM 256, linear 28", lambda: OneHotModel(28)),
        ("embedding 100 x 64, LSTM 256, linear 100", lambda: EmbeddingModel(100, 64)),
    )
]


def torch_call(model: TokenModel, B: int) -> Call:
    tokens, state = torch.zeros((1, B), dtype=torch.int64), None

    def run() -> torch.Tensor:
        nonlocal tokens, state
        with torch.inference_mode():
            logits, state = model(tokens, state)
            tokens = logits.argmax(-1)
        return logits

    return run


def fastlstm_call(model: TokenModel, B: int, threads: int) -> Call:
    stream = fastlstm.from_torch(model, threads=threads, layers=model.words).stream(
        None if B == 1 else B
    )
    vocabulary = len(model.table())
    tokens: Any = 0 if B == 1 else np.zeros(B, np.int64)
    logits = np.empty((vocabulary,) if B == 1 else (B, vocabulary), np.float32)

    def run() -> np.ndarray:
        nonlocal tokens
        stream.step(tokens, out=logits)
        tokens = logits.argmax(-1)
        return logits

    return run


def runtime_call(
    make: Callable[[bytes, np.ndarray, bool, int], Call], model: TokenModel, B: int, threads: int
) -> Call:
    """A call of onnxruntime or OpenVINO that writes the next tokens where it reads them."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.lstm.state_dict().items()}
    linear = model.linear.weight.detach().numpy(), model.linear.bias.detach().numpy()
    data = onnx_model("lstm", weights, 1, B, table=model.table(), linear=linear)
    tokens = np.zeros((1, B), np.int64)
    step = make(data, tokens, True, threads)

    def run() -> np.ndarray:
        logits = step()
        logits.argmax(-1, out=tokens)
        return logits

    return run


def makers(job: Job, threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name of each peer, and a function that makes its call; torch, the measure, first."""
    torch.manual_seed(0)
    model = job.make().eval()
    yield "torch nn", lambda: torch_call(model, job.B)
    yield "fastlstm", lambda: fastlstm_call(model, job.B, threads)
    yield "onnxruntime", lambda: runtime_call(onnxruntime_call, model, job.B, threads)
    yield "OpenVINO", lambda: runtime_call(openvino_call, model, job.B, threads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of every peer (default 1)")
    parser.add_argument("--turns", type=int, help="turns of each peer (default: by --seconds)")
    parser.add_argument("--seconds", type=float, default=10, help="of a model (default 10)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    threads = arguments.threads
    if not 1 <= threads <= cores():
        parser.error(f"--threads is {threads}; this process may run on {cores()} core(s)")
    torch.set_num_threads(threads)
    isa = fastlstm.from_torch(torch.nn.LSTM(1, 16)).isa
    about = machine(PACKAGES, isa=isa, threads=threads)
    print(machine_line(about))
    for name, remedy in missing().items():
        print(f"without {name}: not installed ({remedy})")
    print("tokens a second of all streams together: median [quartiles]\n")
    rows = []
    for job in JOBS:
        calls, left_out = agreeing(makers(job, threads), STEPS_COMPARED)
        jobs = {name: Timed(call, job.B) for name, call in calls.items()}
        figures = interleaved(
            jobs, turns=arguments.turns, seconds=arguments.seconds, threads=threads
        )
        found = {k: summary([1e6 / us for us in values]) for k, values in figures.items()}
        row = {"model": job.name, "streams": job.B, "tokens_per_second": found}
        rows.append(row | {"left_out": left_out})
        print(f"{job.name}, {job.B} stream{'s' if job.B > 1 else ''}")
        for name in (name for name in NAMES if name in found):
            p25, median, p75 = (three_digits(found[name][k]) for k in ("p25", "median", "p75"))
            times = found["fastlstm"]["median"] / found[name]["median"]
            beside = "" if name == "fastlstm" else f"   fastlstm makes {times:.2f} times as many"
            print(f"    {name:12} {median:>8} [{p25} {p75}]{beside}")
        for name, reason in left_out.items():
            print(f"    without {name}: {reason}")
    if arguments.json:
        write_json(arguments.json, {"machine": about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
