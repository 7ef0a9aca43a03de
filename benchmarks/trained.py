"""Trained models of others as streams beside onnxruntime: ``python benchmarks/trained.py FOLDER``.

Each is an ONNX program that takes its states as inputs and gives the next ones. onnxruntime calls
it once a step, with arrays (``session.run``) and with inputs and outputs bound to memory once
(``io_binding``); fastlstm steps a stream of the same graph, whose equality the tests show
(``tests/sources``). One thread, in turns: read the ratios.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from timing import Timed, interleaved, machine, machine_line, summary, three_digits, write_json

from fastlstm import Model
from fastlstm.format import ModelFile

# Where the graphs of these programs are written out.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sources"))

import dtln_enhancer
import gtcrn_enhancer
import silero_vad


class Program(NamedTuple):
    """A file, its graph, inputs that are fixed, and which output is each state's next."""

    file: str
    graph: Callable[[Path], tuple[Any, Mapping[str, np.ndarray]]]
    fixed: Mapping[str, np.ndarray]
    states: Mapping[str, str]


PROGRAMS = {
    "silero": Program(
        "silero/silero_vad_16k_op15.onnx",
        silero_vad.of_windows,
        {"sr": np.array(16000)},
        {"state": "stateN"},
    ),
    "gtcrn": Program(
        "gtcrn/gtcrn.onnx",
        lambda path: gtcrn_enhancer.enhancer(path, recognised=True),
        {},
        gtcrn_enhancer.CACHES,
    ),
    "dtln": Program(
        "dtln/model_2.onnx", dtln_enhancer.recognised, {}, {"input_5": "tf_op_layer_stack_5"}
    ),
}


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def shapes_of(session: Any) -> dict[str, list[int]]:
    """The shape of each input; what is not fixed is one."""
    return {
        given.name: [n if isinstance(n, int) else 1 for n in given.shape]
        for given in session.get_inputs()
    }


def calls_of(program: Program, path: Path) -> dict[str, Callable[[], Any]]:
    """A step of each way, all of the same numbers."""
    graph, tensors = program.graph(path)
    model = Model(ModelFile(graph, {n: np.asarray(a, np.float32) for n, a in tensors.items()}))
    held = {i.name: np.zeros(i.shape, np.float32) for i in graph.inputs if i.held}
    stream = model.stream(held=held)
    session = session_of(path)
    shapes = shapes_of(session)
    (data,) = set(shapes) - set(program.fixed) - set(program.states)
    (port,) = [i.name for i in graph.inputs if not i.held]
    x = 0.3 * np.random.default_rng(1).standard_normal(model.inputs[port]).astype(np.float32)
    shape = shapes[data]
    if np.prod(shape) != x.size:  # the samples of a call are free
        shape = [1, x.size]
    feeds = {data: x.reshape(shape), **program.fixed}
    feeds |= {name: np.zeros(shapes[name], np.float32) for name in program.states}
    names = [given.name for given in session.get_outputs()]
    follows = {name: names.index(output) for name, output in program.states.items()}

    def run() -> None:
        made = session.run(names, feeds)
        for name, number in follows.items():
            feeds[name] = made[number]

    # Two bindings, each of which reads the states that the other wrote.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(a) for name, a in feeds.items()}
    made = [
        [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in session.run(names, feeds)]
        for _ in range(2)
    ]
    bindings = [session.io_binding() for _ in range(2)]
    for turn, binding in enumerate(bindings):
        for name, value in values.items():
            given = made[1 - turn][follows[name]] if name in follows else value
            binding.bind_ortvalue_input(name, given)
        for name, value in zip(names, made[turn], strict=True):
            binding.bind_ortvalue_output(name, value)

    def run_bound() -> None:
        session.run_with_iobinding(bindings[0])
        session.run_with_iobinding(bindings[1])

    return {
        "fastlstm": lambda: stream.step(x),
        "session.run": run,
        "io_binding": run_bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the programs lie")
    parser.add_argument("--seconds", type=float, default=10, help="for each of them")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rows = []
    for name, program in PROGRAMS.items():
        calls = calls_of(program, arguments.folder / program.file)
        jobs = {way: Timed(call, 2 if way == "io_binding" else 1) for way, call in calls.items()}
        figures = interleaved(jobs, seconds=arguments.seconds)
        found = {way: summary(values) for way, values in figures.items()}
        ours = found["fastlstm"]["median"]
        rows.append({"program": name, "microseconds": found})
        others = ", ".join(
            f"{way} {three_digits(times['median'])} ({times['median'] / ours:.2f} times)"
            for way, times in found.items()
            if way != "fastlstm"
        )
        print(f"{name}: fastlstm {three_digits(ours)} us a step; {others}", flush=True)
    print(machine_line(machine()))
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
