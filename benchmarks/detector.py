"""A whole voice-activity detector: ``python benchmarks/detector.py``.

A step takes a frame of 576 samples: padding by reflection, a spectrum by convolution, its
magnitude, four convolutions, an LSTM of 128 units, and the probability that somebody speaks. The
network has random weights and the shape of those in use. It is built in torch and exported to ONNX
with its state passed in and out; fastlstm converts that file, the peers run it. Outputs are
compared first, then everything is timed in turns, on one thread.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Work
from floor import Floor, bound
from peers import PACKAGES, STEPS_COMPARED, agreeing, onnxruntime_call, openvino_call
from timing import (
    Call,
    Timed,
    interleaved,
    machine,
    machine_line,
    summary,
    three_digits,
    write_json,
)

import fastlstm

SAMPLES, PADDING = 576, 64
BINS, KERNEL, STRIDE = 129, 256, 128
CONVOLUTIONS = ((BINS, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
HIDDEN_SIZE = 128


class Detector(torch.nn.Module):
    """Frames (T, 576) and a state -> probabilities (T, 1, 1) and the new state."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = torch.nn.Conv1d(1, 2 * BINS, KERNEL, STRIDE, bias=False)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(inputs, outputs, 3, stride, padding=1)
            for inputs, outputs, stride in CONVOLUTIONS
        )
        self.lstm = torch.nn.LSTM(HIDDEN_SIZE, HIDDEN_SIZE)
        self.linear = torch.nn.Linear(HIDDEN_SIZE, 1)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = torch.nn.functional.pad(x.unsqueeze(1), (0, PADDING), mode="reflect")
        x = self.spectrum(x)
        x = torch.sqrt(x[:, :BINS] ** 2 + x[:, BINS:] ** 2)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        y, (h, c) = self.lstm(x.squeeze(-1).unsqueeze(1), (h, c))
        return torch.sigmoid(self.linear(torch.relu(y))), h, c


def work(T: int) -> Work:
    """Weights that are ever multiplied by anything but padding, and the multiply-adds of T steps.

    The frame is 4 columns wide behind the spectrum, then 4, 2, 1 and 1.
    """
    spectrum = 2 * BINS * KERNEL
    taps = (3, 3, 2, 1)  # of three, those that meet a column
    touched = [k * i * o for k, (i, o, _) in zip(taps, CONVOLUTIONS, strict=True)]
    # Products with the zeros at the edges of a frame left out.
    columns = (10 / 3, 5 / 3, 1, 1)
    lstm = 8 * HIDDEN_SIZE * HIDDEN_SIZE
    sums = 4 * spectrum + sum(n * w for n, w in zip(columns, touched, strict=True)) + lstm
    weights = 4 * (spectrum + sum(touched) + lstm)
    return Work(weights, 1 if T == 1 else T / 24, T * sums)


def exported(module: Detector, T: int) -> bytes:
    """The module as an ONNX file that takes T frames."""
    state = torch.zeros(1, 1, HIDDEN_SIZE)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this way of exporting is the older one
        torch.onnx.export(
            module,
            (torch.zeros(T, SAMPLES), state, state),
            file,
            dynamo=False,
            input_names=["x", "h", "c"],
            output_names=["y", "h_out", "c_out"],
        )
    return file.getvalue()


def torch_call(module: Detector, x: np.ndarray, carried: bool) -> Call:
    tensor, state = torch.from_numpy(x), [torch.zeros(1, 1, HIDDEN_SIZE)] * 2

    def run() -> torch.Tensor:
        with torch.inference_mode():
            y, *after = module(tensor, *state)
        if carried:
            state[:] = after
        return y

    return run


def session_call(data: bytes, x: np.ndarray, carried: bool) -> Call:
    """onnxruntime as most programs call it: with arrays, by ``session.run``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    state = {name: np.zeros((1, 1, HIDDEN_SIZE), np.float32) for name in ("h", "c")}

    def run() -> np.ndarray:
        y, h, c = session.run(None, {"x": x, **state})
        if carried:
            state.update(h=h, c=c)
        return y

    return run


def fastlstm_call(data: bytes, x: np.ndarray, carried: bool) -> Call:
    """A stream of the converted file; a sequence starts from zero."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "detector.onnx"
        source.write_bytes(data)
        model = fastlstm.convert(source, Path(folder) / "detector.safetensors")
    if not carried:
        return lambda: model(x)[0]
    stream, out = model.stream(), np.empty(1, np.float32)
    return lambda: stream.step(x[0], out=out)


def makers(module: Detector, T: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name of each peer, and a function that makes its call; torch, the measure, first."""
    x = np.random.default_rng(0).standard_normal((T, SAMPLES), dtype=np.float32)
    data, carried = exported(module, T), T == 1
    yield "torch nn", lambda: torch_call(module, x, carried)
    yield "fastlstm", lambda: fastlstm_call(data, x, carried)
    yield "onnxruntime", lambda: onnxruntime_call(data, x, carried, 1)
    yield "session.run", lambda: session_call(data, x, carried)
    yield "OpenVINO", lambda: openvino_call(data, x, carried, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="a comparison (default 6)")
    parser.add_argument("--length", type=int, default=100, help="of the sequence (default 100)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, floor, about = Detector().eval(), Floor(), machine(PACKAGES)
    print(machine_line(about))
    found: dict[str, Any] = {"machine": about, "microseconds_a_step": {}}
    for T in (1, arguments.length):
        calls, left_out = agreeing(makers(module, T), STEPS_COMPARED if T == 1 else 1)
        jobs = {name: Timed(call, T) for name, call in calls.items()}
        floors = {f"floor: {name}": job for name, job in floor.jobs(work(T)).items()}
        figures = interleaved(jobs | floors, seconds=arguments.seconds)
        medians = {name: summary(micros) for name, micros in figures.items() if name in jobs}
        least = bound(
            work(T),
            {name: summary(figures[f"floor: {name}"])["median"] for name in floor.jobs(work(T))},
        )
        print("\none step" if T == 1 else f"\na step of a sequence of {T}")
        ours = medians["fastlstm"]["median"]
        for name, times in medians.items():
            print(
                f"  {name:<12} {three_digits(times['median']):>6} us "
                f"({three_digits(times['p25'])} to {three_digits(times['p75'])})"
                f"  {times['median'] / ours:6.2f} x fastlstm"
            )
        print(f"  floor        {three_digits(least.microseconds / T):>6} us ({least.name})")
        for name, why in left_out.items():
            print(f"  {name}: left out: {why}")
        found["microseconds_a_step"][str(T)] = medians | {"floor": least.microseconds / T}
    if arguments.json:
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
