"""How far off a model's numbers are, against torch and a float64 evaluation of its weights.

Dimension letters: ``T`` time, ``B`` batch, ``I`` input, ``O`` output.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import Model, reference
from fastlstm.commands.inputs import is_bidirectional, random_input

__all__ = [
    "TOLERANCE",
    "Deviation",
    "Verification",
    "default_steps",
    "deviation",
    "verify",
]

Array = npt.NDArray[Any]
State = Mapping[str, Array]
# x (T, B, I) or tokens (T, B), state or None -> y (T, B, O), state
Run = Callable[[Array, State | None], tuple[Array, State]]
Advance = Callable[[int], None]

# The engine's largest error may be so many times the yardstick's. Against torch, this is promise 2.
# NumPy's tanh, exp and sums are slower and more exact: torch's errors are up to 2.7 times NumPy's.
MOST_RATIO = {"torch": 1.5, "NumPy": 4.0}

# Of the largest output: a well-behaved model stays ten times below it, a wrong weight, gate
# or state far above, and below it a ratio of two errors says more about luck than about engines.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# Lengths of the calls that a verification is cut into; the last goes on until the end.
CALLS = (1, 2, 17, 128, 256, 512)

# Steps between restarts for a chaotic model (see verify): few, so that the error of the first has
# not grown by much more in one evaluation than in another when the last is judged.
RESTART_STEPS = 4

# Weights times steps that the float64 reference gets through in a few seconds.
REFERENCE_WORK = 4e9


@dataclass(frozen=True)
class Deviation:
    """The largest absolute error of an output (T, B, O), and its indices in it."""

    error: float
    step: int
    row: int
    feature: int


def deviation(y: Array, exact: Array) -> Deviation:
    """Compare an output with the exact one, both (T, B, O); NaN and infinity are infinitely off."""
    error = np.full(y.shape, np.inf)
    np.subtract(y, exact, out=error, where=np.isfinite(y), dtype=np.float64)
    error = np.abs(error)
    step, row, feature = (int(i) for i in np.unravel_index(error.argmax(), error.shape))
    return Deviation(float(error[step, row, feature]), step, row, feature)


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found; errors are absolute, against a float64 evaluation.

    Attributes
    ----------
    yardstick_name : str
        Whose own error is the measure: "torch", or "NumPy" where there is no torch.
    most_ratio : float
        How many times that the engine's may be.
    steps, batch_size : int
        What was compared: the steps before the yardstick left the range of the dtype.
    scale : float
        The largest output.
    tolerance : float
        Error allowed in any case, relative to `scale`.
    sequence, stepwise, yardstick : Deviation
        Of the engine in whole-sequence calls, of the engine step by step (None if the model is
        bidirectional), and of the yardstick.
    restart_steps : int or None
        Steps after which the state was taken from the float64 evaluation again; None if never.
    """

    yardstick_name: str
    most_ratio: float
    steps: int
    batch_size: int
    scale: float
    tolerance: float
    sequence: Deviation
    stepwise: Deviation | None
    yardstick: Deviation
    restart_steps: int | None

    @property
    def error(self) -> float:
        """The engine's largest error."""
        return max(self.sequence.error, self.stepwise.error if self.stepwise else 0.0)

    @property
    def ratio(self) -> float:
        """The engine's largest error over the yardstick's; promise 2 is about torch's."""
        return self.error / self.yardstick.error if self.yardstick.error else float("nan")

    @property
    def floor(self) -> float:
        """The error that is allowed whatever the yardstick's."""
        return self.tolerance * self.scale

    @property
    def limit(self) -> float:
        """The largest error that passes."""
        return max(self.most_ratio * self.yardstick.error, self.floor)

    @property
    def passed(self) -> bool:
        return self.steps > 0 and self.error <= self.limit


def default_steps(model: Model) -> int:
    """2000, or as many as the float64 reference gets through in a few seconds."""
    weights = sum(math.prod(shape) for layer in model.layers for shape in layer.tensors().values())
    return min(2000, max(64, int(REFERENCE_WORK // max(weights, 1))))


def verify(
    model: Model,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    tolerance: float | None = None,
    advance: Advance = lambda steps: None,
) -> Verification:
    """Compare the engine with a float64 evaluation of the same weights, over a random sequence.

    The sequence is run in calls of different lengths, the state carried from one to the next, and
    once more through a stream, step by step. An independent evaluation in the model's own dtype,
    torch if it is installed and NumPy otherwise, does the same and is the yardstick: some models
    magnify rounding more than others, and the error that counts is what the engine adds to what
    the arithmetic itself must lose. The engine passes with at most 1.5 times torch's error (4
    times NumPy's), or with `tolerance` times the largest output, whichever is larger.

    A chaotic model magnifies rounding exponentially: after some hundred steps every float32
    evaluation is on a trajectory of its own, all are as far from the exact one as they can be, and
    the ratio of two errors is chance. So where the yardstick itself is above the tolerance, all of
    them are run again, from the float64 evaluation's state every 4 steps, and judged by that.

    Parameters
    ----------
    model : Model
    steps, batch_size : int
        Of the random sequence.
    seed : int
        Of its numbers.
    tolerance : float, optional
        By default 1e-5 for float32, 1e-12 for float64.
    advance : callable of int, optional
        Told of every step that one of the three evaluations has done, ``3 * steps`` in all.
    """
    x = random_input(model, (steps, batch_size), seed)
    tensors = model.tensors
    equations = partial(reference.forward, model.layers, tensors)
    exactly: Run = equations
    if importlib.util.find_spec("torch"):
        name, yardstick = "torch", _torch_run(model, tensors)
    else:
        name, yardstick = "NumPy", partial(equations, dtype=model.dtype)
    if tolerance is None:
        tolerance = TOLERANCE[model.dtype.name]

    def compared(calls: Sequence[int], advance: Advance, restart: bool) -> Verification:
        exact, states = _chain(exactly, x, calls, advance)
        starts = [_rounded(state, model.dtype) for state in states] if restart else None
        measured, _ = _chain(yardstick, x, calls, advance, starts)
        y, _ = _chain(model, x, calls, advance, starts)
        finite = np.isfinite(exact).all(axis=(1, 2)) & np.isfinite(measured).all(axis=(1, 2))
        end = steps if finite.all() else int(finite.argmin())
        exact = exact[:end]
        stepwise = _step_by_step(model, x, calls, starts)
        nothing = Deviation(float("nan"), 0, 0, 0)
        return Verification(
            yardstick_name=name,
            most_ratio=MOST_RATIO[name],
            steps=end,
            batch_size=batch_size,
            scale=float(np.abs(exact).max(initial=0.0)),
            tolerance=tolerance,
            sequence=deviation(y[:end], exact) if end else nothing,
            stepwise=None if stepwise is None or not end else deviation(stepwise[:end], exact),
            yardstick=deviation(measured[:end], exact) if end else nothing,
            restart_steps=RESTART_STEPS if restart else None,
        )

    result = compared(_cut(steps, CALLS), advance, restart=False)
    if result.yardstick.error > result.floor:
        result = compared(_cut(steps, (RESTART_STEPS,)), lambda steps: None, restart=True)
    return result


def _cut(steps: int, lengths: Sequence[int]) -> list[int]:
    """`steps` as a sum of `lengths`, the last of them repeated."""
    calls: list[int] = []
    while steps > 0:
        calls.append(min(steps, lengths[min(len(calls), len(lengths) - 1)]))
        steps -= calls[-1]
    return calls


def _chain(
    run: Run,
    x: Array,
    calls: Sequence[int],
    advance: Advance,
    starts: Sequence[State | None] | None = None,
) -> tuple[Array, list[State | None]]:
    """One call after the other, from the state that the last one left or from `starts`.

    Returns
    -------
    y : array (T, B, O)
    states : list
        What each call started from.
    """
    outputs, states, at = [], [], 0
    state: State | None = None
    for number, length in enumerate(calls):
        if starts is not None:
            state = starts[number]
        states.append(state)
        y, state = run(x[at : at + length], state)
        outputs.append(y)
        at += length
        advance(length)
    return np.concatenate(outputs), states


def _rounded(state: State | None, dtype: np.dtype[Any]) -> State | None:
    with np.errstate(over="ignore"):
        return None if state is None else {name: a.astype(dtype) for name, a in state.items()}


def _step_by_step(
    model: Model, x: Array, calls: Sequence[int], starts: Sequence[State | None] | None
) -> Array | None:
    """The outputs (T, B, O) of a stream; None if the model cannot stream."""
    if is_bidirectional(model):
        return None
    stream = model.stream(batch_size=x.shape[1])
    y = np.empty((*x.shape[:2], model.output_size), model.dtype)
    at = 0
    for number, length in enumerate(calls):
        start = None if starts is None else starts[number]
        if start is not None:
            stream.state = start
        for t in range(at, at + length):
            stream.step(x[t], out=y[t])
        at += length
    return y


def _torch_run(model: Model, tensors: Mapping[str, Array]) -> Run:
    """torch's evaluation of the same weights in the model's dtype."""
    import torch
    from torch.nn import functional

    dtype = getattr(torch, model.dtype.name)

    def module_of(layer: Any) -> Any:
        """A torch module, or a function of one tensor."""
        if layer.kind == "one_hot":
            return lambda x: functional.one_hot(x, layer.num_classes).to(dtype)
        if layer.kind == "activation":
            if "softmax" in layer.function:
                return partial(getattr(torch, layer.function), dim=-1)
            return getattr(torch, layer.function)
        options = {k: v for k, v in layer.to_dict().items() if k not in ("kind", "name")}
        kinds: dict[str, Any] = {
            "embedding": torch.nn.Embedding,
            "linear": torch.nn.Linear,
            "lstm": torch.nn.LSTM,
            "gru": torch.nn.GRU,
            "rnn": torch.nn.RNN,
        }
        module = kinds[layer.kind](**options, dtype=dtype)
        prefix = f"{layer.name}."
        weights = {n.removeprefix(prefix): torch.tensor(tensors[n]) for n in layer.tensors()}
        module.load_state_dict(weights)
        return module

    modules = [(layer, module_of(layer)) for layer in model.layers]

    def run(x: Array, state: State | None) -> tuple[Array, State]:
        value: Any = torch.tensor(x)
        after: dict[str, Array] = {}
        with torch.inference_mode(), warnings.catch_warnings():
            # It says that it takes a slower way, which is no news to who waits for its numbers.
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            for layer, module in modules:
                names = list(layer.state())
                if not names:
                    value = module(value)
                    continue
                hx: Any = None
                if state is not None:
                    hx = tuple(torch.tensor(state[name]) for name in names)
                    hx = hx if len(names) > 1 else hx[0]
                value, hx = module(value, hx)
                arrays = hx if len(names) > 1 else (hx,)
                after |= {n: a.numpy() for n, a in zip(names, arrays, strict=True)}
            return value.numpy(), after

    return run
