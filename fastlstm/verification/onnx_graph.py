"""An ONNX file, run by onnxruntime, beside the model that was made of it.

Of its inputs one is the data; those that an output of the same type and shape gives back are
states, matched in order, which go from call to call and are zero at first; an integer input of one
dimension holds the lengths of the rows.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.model import Model
from fastlstm.verification.arrangement import Arrangement, fitting, nearest
from fastlstm.verification.evaluations import (
    Run,
    pieces_of_whole,
    random_input,
    steps_to_output,
    waits_for_end,
)

__all__ = ["MISSING", "OnnxGraph", "open_graph"]

Array = npt.NDArray[Any]
State = Mapping[str, Array]

MISSING = "running an ONNX file needs onnxruntime; install it with: pip install onnxruntime"

# Rows and, beyond those that it needs for an output, steps of the input that tells the axes apart,
# where the graph leaves them open.
ROWS, STEPS = 3, 7
SEED = 20261121

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


@dataclass(frozen=True)
class Port:
    """An input or output: None or a name for each size that is open."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(DTYPES[self.type])

    @property
    def is_integer(self) -> bool:
        return self.dtype.kind == "i"

    def may_be(self, other: Port) -> bool:
        """Whether an array can be both."""
        return (
            self.type == other.type
            and len(self.shape) == len(other.shape)
            and all(
                a == b or not isinstance(a, int) or not isinstance(b, int)
                for a, b in zip(self.shape, other.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name!r:.80} {self.type.removeprefix('tensor(').removesuffix(')')} ({sizes})"


@dataclass(frozen=True)
class Reading:
    """One way to understand a graph: which input is the data, and how it lies."""

    data: Port
    order: str
    features: tuple[int, ...]

    def size_of(self, axis: str) -> int | str | None:
        """Of "t" or "b" in the data; 1 where there is no such axis."""
        return self.data.shape[self.order_of_axes.index(axis)] if axis in self.order else 1

    @property
    def order_of_axes(self) -> str:
        """`order`, an "f" for each axis of the features."""
        return self.order.replace("f", "f" * len(self.features))

    def fixed(self, axis: str) -> int | None:
        size = self.size_of(axis)
        return size if isinstance(size, int) else None


class OnnxGraph:
    """A graph whose inputs are understood: a `Source`."""

    def __init__(self, session: Any, name: str, model: Model, reading: Reading) -> None:
        self.name = name
        self.notes: list[str] = []
        self.batch_size, self.length = reading.fixed("b"), reading.fixed("t")
        self.dtype = model.dtype
        self._session, self._reading = session, reading
        self._model = model
        self._outputs = _ports(session.get_outputs())
        others = [port for port in _ports(session.get_inputs()) if port != reading.data]
        self._lengths = [port for port in others if port.is_integer and len(port.shape) == 1]
        self._others = [port for port in others if port not in self._lengths]
        self._given_back: dict[str, int] = {}
        self.arrangement = Arrangement(reading.order, reading.features)

    def settle(self, arrangement: Arrangement) -> None:
        """Take the output from there; the others may be states."""
        self.arrangement = arrangement
        self.notes.append(f"input {self._reading.data} was given as ({arrangement})")
        free = [n for n in range(len(self._outputs)) if n != arrangement.output]
        for port in self._others:
            given = next((n for n in free if port.may_be(self._outputs[n])), None)
            if given is None:
                self.notes.append(
                    f"input {port} is neither data nor a state that an output gives back: it was "
                    f"given zeros"
                )
            else:
                free.remove(given)
                self._given_back[port.name] = given
        self.dtype = self._outputs[arrangement.output].dtype
        for port in self._lengths:
            self.notes.append(f"input {port} was given the steps of each row, the same for all")

    @property
    def chains(self) -> bool:
        # What it has read of a mean is no state of a graph.
        layers = self._model.layers
        means = any(isinstance(layer, spec.Pool) and layer.function == "mean" for layer in layers)
        return self.length is None or (bool(self._given_back) and not means)

    @property
    def carries(self) -> bool:
        if self._model.looks_ahead or self._model.pools_over_time:
            return False
        # A call of a graph that keeps states pads each of its pieces.
        if self._given_back and waits_for_end(self._model):
            return False
        return self.length is None or bool(self._given_back)

    def run(self, x: Array, state: Any, whole: bool = True) -> tuple[Array, Any]:
        length = self.length or len(x)
        rows = []
        for at in range(0, len(x), length):
            outputs = self.call(x[at : at + length], state)
            rows.append(self.arrangement.rows(outputs, self._model.output_size))
            state = {name: outputs[n] for name, n in self._given_back.items()}
        if self._model.pools_over_time:
            rows = rows[-1:]
        return np.concatenate(rows), state

    def call(self, x: Array, state: State | None) -> list[Array]:
        """All outputs of one call of the graph."""
        data = self._reading.data
        feed = {data.name: self.arrangement.arrange(x).astype(data.dtype)}
        for port in self._lengths:
            feed[port.name] = np.full(x.shape[1], len(x), port.dtype)
        for port in self._others:
            kept = state.get(port.name) if state else None
            feed[port.name] = self._zeros(port, x.shape[1]) if kept is None else kept
        return [np.asarray(y) for y in self._session.run(None, feed)]

    def _zeros(self, port: Port, batch_size: int) -> Array:
        batch = self._reading.size_of("b")
        open_sizes = [size for size in port.shape if not isinstance(size, int)]
        shape = []
        for size in port.shape:
            if isinstance(size, int):
                shape.append(size)
            elif size == batch or len(open_sizes) == 1:
                shape.append(batch_size)
            else:
                raise ValueError(
                    f"input {port} has several sizes that the file leaves open; expected at most "
                    f"that of the batch"
                )
        return np.zeros(shape, port.dtype)

    def carry(self, x: Array) -> Run:
        if self._given_back:
            return self.run
        return pieces_of_whole(self._model, self.run(x, None)[0])


def open_graph(path: str | os.PathLike[str], model: Model, exactly: Run) -> OnnxGraph:
    """The graph of a file that computes what the model does, or comes nearest to it.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If onnxruntime is missing or cannot load it, or no input and output fit the model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(MISSING) from None
    with open(path, "rb"):
        pass  # onnxruntime's message for a missing file is its own
    name = Path(path).name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = model.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is fatal; everything else is raised
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no base class of their own
        raise ValueError(f"onnxruntime cannot load {name!r:.200}: {error}") from None
    inputs, outputs = _ports(session.get_inputs()), _ports(session.get_outputs())
    for port in (*inputs, *outputs):
        if port.type not in DTYPES:
            raise ValueError(
                f"{name!r:.200} has {port}; expected tensors of float, double, int32 or int64"
            )
    found: list[tuple[float, Arrangement, OnnxGraph]] = []
    refusals: list[str] = []
    for reading in _readings(inputs, model):
        graph = OnnxGraph(session, "onnxruntime", model, reading)
        steps = graph.length or STEPS + steps_to_output(model)
        x = random_input(model, (steps, graph.batch_size or ROWS), SEED)
        exact, _ = exactly(x, None)
        try:
            y = graph.call(x, None)
        except Exception as error:  # whatever a wrong shape makes it raise
            refusals.append(f"{reading.data.name!r:.80} as ({graph.arrangement}): {error!s:.200}")
            continue
        fits = [
            (error, arrangement, graph)
            for error, arrangement in fitting(reading.order, reading.features, y, exact)
            if outputs[arrangement.output].type in ("tensor(float)", "tensor(double)")
        ]
        if not fits:
            shapes = ", ".join(str(array.shape) for array in y)
            refusals.append(f"{reading.data.name!r:.80} as ({graph.arrangement}): gives {shapes}")
        found += fits
    if not found:
        takes = "tokens" if model.takes_tokens else f"{model.input_size} features"
        raise ValueError(
            f"{name!r:.200} cannot be compared: the model takes {takes} a step and gives "
            f"{model.output_size} features; the graph takes {', '.join(map(str, inputs))} and "
            f"gives {', '.join(map(str, outputs))}"
            + "".join(f"\n  {refusal}" for refusal in refusals[:10])
        )
    arrangement, graph = nearest(found)
    graph.settle(arrangement)
    return graph


def _ports(entries: Sequence[Any]) -> list[Port]:
    return [Port(entry.name, entry.type, tuple(entry.shape)) for entry in entries]


def _readings(inputs: Sequence[Port], model: Model) -> Iterator[Reading]:
    """The ways in which a graph may take the model's input."""
    for port in inputs:
        if port.is_integer != model.takes_tokens:
            continue
        axes: list[int | None] = [*range(len(port.shape)), None]
        for time, batch in itertools.product(axes, axes):
            if time is not None and time == batch:
                continue
            features = _features(port.shape, {time, batch}, model)
            letters = {time: "t", batch: "b"}
            axes_named = "".join(letters.get(n, "f") for n in range(len(port.shape)))
            order = re.sub("f+", "f", axes_named)
            if features is not None and order.count("f") <= 1:
                yield Reading(port, order, features)


def _features(
    shape: tuple[int | str | None, ...], taken: set[int | None], model: Model
) -> tuple[int, ...] | None:
    """The shape of a step's features, on the axes that are not taken; None if they do not fit."""
    sizes = [size for n, size in enumerate(shape) if n not in taken]
    known = math.prod(size for size in sizes if isinstance(size, int))
    wanted = 1 if model.takes_tokens else model.input_size
    if known == 0 or wanted % known:
        return None
    left = wanted // known
    open_sizes = [size for size in sizes if not isinstance(size, int)]
    if len(open_sizes) > 1 or (not open_sizes and left != 1):
        return None
    return tuple(size if isinstance(size, int) else left for size in sizes)
