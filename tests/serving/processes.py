"""fastlstm serve as a process, and models to serve."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm import Model, spec
from fastlstm.format import ModelFile

PATIENCE = 60  # seconds for whatever must happen


def graphs() -> dict[str, spec.Graph]:
    """Models, each of which needs something of its own of a server."""
    x, ids = spec.Input("x", (6,)), spec.Input("ids", (), tokens=7)
    knobs = spec.Input("knobs", (6,), held=True)

    def graph(inputs: tuple[spec.Input, ...], outputs: dict[str, str], *nodes: Any) -> spec.Graph:
        return spec.Graph(inputs, tuple(spec.Node(*node) for node in nodes), outputs)

    lstm = (spec.LSTM("lstm", 6, 5), ("x",))
    table = (spec.Embedding("table", 7, 6), ("ids",))
    return {
        "plain": graph((x,), {"y": "lstm"}, lstm),
        "words": graph((ids,), {"y": "rnn"}, table, (spec.GRU("rnn", 6, 7), ("table",))),
        "several": graph(
            (x, ids, knobs),
            {"state": "rnn", "y": "out"},
            table,
            (spec.Arithmetic("both", "add"), ("x", "table")),
            (spec.Arithmetic("sum", "multiply"), ("both", "knobs")),
            (spec.GRU("rnn", 6, 5), ("sum",)),
            (spec.Linear("out", 5, 3), ("rnn",)),
        ),
        "late": graph(
            (x,),
            {"y": "rnn"},
            (spec.Convolution("conv", 6, 6, (3,), padding=((1, 1),), over_time=True), ("x",)),
            (spec.GRU("rnn", 6, 4), ("conv",)),
        ),
        "frames": graph(
            (spec.Input("x", (2, 5)),),
            {"y": "conv"},
            (spec.Convolution("conv", 2, 4, (3,), padding=((1, 1),)), ("x",)),
        ),
    }


def made(graph: spec.Graph, rng: np.random.Generator) -> Model:
    """A model of random weights."""
    tensors = {
        name: rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        for name, shape in spec.check(graph).tensors.items()
    }
    return Model(ModelFile(graph, tensors))


def inputs_for(model: Model, rng: np.random.Generator, steps: int) -> dict[str, np.ndarray]:
    """Random rows of each input, and the row of each that is held."""
    found = {}
    for given in model.graph.inputs:
        shape = given.shape if given.held else (steps, *given.shape)
        found[given.name] = (
            rng.integers(0, given.tokens, shape)
            if given.tokens
            else rng.standard_normal(shape).astype(np.float32)
        )
    return found


class Server:
    """A running server, and what it printed.

    Parameters
    ----------
    models : mapping of str to path
    options : str
        More of the command's.
    environment : str
        Variables to set.
    """

    def __init__(self, models: dict[str, Path], *options: str, **environment: str) -> None:
        words = [f"{name}={path}" for name, path in models.items()]
        command = [sys.executable, "-m", "fastlstm", "serve", *words, "--json", *options]
        if "--http-port" not in options:
            command += ["--http-port", "0", "--grpc-port", "0"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.errors = ""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        said = self.process.stdout.readline() if ready else ""
        if not said:
            raise RuntimeError(self.end(signal.SIGKILL))
        told = json.loads(said)
        self.http, self.grpc, self.restored = told["http"], told["grpc"], told["restored"]
        self.address = self.http.partition("://")[2]

    def end(self, number: int = signal.SIGTERM) -> str:
        """Stop it by a signal; what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=PATIENCE)
        self.errors += errors
        return self.errors

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log, when it has ended."""
        return [json.loads(line) for line in self.errors.splitlines() if line.startswith("{")]


@contextlib.contextmanager
def serving(models: dict[str, Path], *options: str, **environment: str) -> Iterator[Server]:
    """A server for the time of a block."""
    server = Server(models, *options, **environment)
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)
