"""The demo: a trained PyTorch checkpoint converted, verified and streamed, against what torch said.

The files in ``fastlstm/demo`` were written by ``tools/train_demo.py``.
"""

from __future__ import annotations

import importlib.resources
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastlstm import Model, convert, generate
from fastlstm.commands.latency import Latency, time_steps
from fastlstm.tokens import negative_log_likelihood, tokenise
from fastlstm.verification import TOLERANCE, Deviation, deviation

__all__ = ["Demonstration", "files", "run"]

CHECKPOINT, PASSAGE, RECORDED = "timemachine.pt", "passage.txt", "recorded.npz"
LAYERS = "one_hot, lstm, linear"

# Perplexity is printed to four decimals: this is half of the last one.
PERPLEXITY_TOLERANCE = 0.5e-4

PROMPT, LENGTH, TEMPERATURE, SEED = "the time traveller ", 300, 0.6, 0


def files() -> Path:
    """The folder of the demo's files, as shipped."""
    return Path(str(importlib.resources.files("fastlstm"))) / "demo"


@dataclass(frozen=True, eq=False)
class Demonstration:
    """What the demo did and measured.

    Attributes
    ----------
    checkpoint, written : Path
        What was read and what was written.
    model : Model
    convert_seconds : float
    torch_version : str
        Of the torch that recorded the expected numbers.
    logits : Deviation
        Of the engine from the first recorded logits.
    logits_compared : int
        Steps of them.
    logits_limit : float
        The largest deviation that passes.
    passage : str
        The text that was streamed.
    perplexity, torch_perplexity : float
        Of the passage: measured here, and recorded.
    latency : Latency
        Of each step over the passage.
    prompt, generated : str
    """

    checkpoint: Path
    written: Path
    model: Model
    convert_seconds: float
    torch_version: str
    logits: Deviation
    logits_compared: int
    logits_limit: float
    passage: str
    perplexity: float
    torch_perplexity: float
    latency: Latency
    prompt: str
    generated: str

    @property
    def logits_agree(self) -> bool:
        return self.logits.error <= self.logits_limit

    @property
    def perplexity_agrees(self) -> bool:
        return abs(self.perplexity - self.torch_perplexity) <= PERPLEXITY_TOLERANCE

    @property
    def passed(self) -> bool:
        return self.logits_agree and self.perplexity_agrees

    @property
    def tokens_per_second(self) -> float:
        return 1e9 / float(self.latency.nanoseconds.mean())


def run(folder: Path, output_dir: Path) -> Demonstration:
    """Convert the checkpoint in `folder` into `output_dir`, and try the model on the passage.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ValueError
        If the passage and the recorded tokens are not the same text.
    """
    passage = (folder / PASSAGE).read_text(encoding="ascii")
    with np.load(folder / RECORDED) as recorded:
        tokens = recorded["tokens"]
        expected = recorded["logits"]
        torch_perplexity = float(recorded["perplexity"])
        torch_version = str(recorded["torch_version"])

    written = output_dir / "model.safetensors"
    began = time.perf_counter()
    model = convert(folder / CHECKPOINT, written, layers=LAYERS)
    convert_seconds = time.perf_counter() - began
    if tokenise(passage, model.vocabulary or ())[0] != tokens.tolist():
        raise ValueError(f"{PASSAGE} and the tokens in {RECORDED} differ; make both again")

    logits, _ = model(tokens[: len(expected)])
    logits_deviation = deviation(logits[:, None], expected[:, None].astype(np.float64))

    streamed = np.empty((len(tokens), model.output_size), model.dtype)
    latency = time_steps(model, tokens, steps=len(tokens), y=streamed)
    nats = negative_log_likelihood(model, streamed[:-1], tokens[1:])
    return Demonstration(
        checkpoint=folder / CHECKPOINT,
        written=written,
        model=model,
        convert_seconds=convert_seconds,
        torch_version=torch_version,
        logits=logits_deviation,
        logits_compared=len(expected),
        logits_limit=TOLERANCE["float32"] * float(np.abs(expected).max()),
        passage=passage,
        perplexity=math.exp(nats / (len(tokens) - 1)),
        torch_perplexity=torch_perplexity,
        latency=latency,
        prompt=PROMPT,
        generated=generate(model, PROMPT, length=LENGTH, temperature=TEMPERATURE, seed=SEED),
    )
