"""The same network in fastlstm and its peers, as functions of no arguments to be timed.

Every peer runs the very same weights on the same number of threads, in the fastest way of calling
it that its documentation gives for inputs in NumPy arrays, and what it returns is compared before
anything is timed. A step carries its state, a whole sequence starts from zero.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from cases import Case
from onnx_model import onnx_model
from timing import Call

import fastlstm

NAMES = ("fastlstm", "onnxruntime", "OpenVINO", "torch nn", "torch cell")

# Distributions whose versions a comparison records.
PACKAGES = ("numpy", "scipy", "torch", "onnxruntime", "openvino")

CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}
STACKS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}

# Largest difference between two float32 peers, relative to outputs of size one.
AGREE = 2e-5

# Calls compared where the state is carried from one to the next.
STEPS_COMPARED = 3


def missing() -> dict[str, str]:
    """Peers that this environment lacks, and what to install for them."""
    needs = {"onnxruntime": ("onnx", "onnxruntime"), "OpenVINO": ("onnx", "openvino")}
    return {
        name: f"pip install {' '.join(modules)}"
        for name, modules in needs.items()
        if any(importlib.util.find_spec(module) is None for module in modules)
    }


def onnxruntime_session(data: bytes, threads: int) -> Any:
    """A session of an ONNX model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def session_run_call(data: bytes, x: np.ndarray, carried: bool, threads: int) -> Call:
    """Run an ONNX model of :mod:`onnx_model` on `x` by ``session.run``, from arrays to arrays."""
    session = onnxruntime_session(data, threads)
    first, *states = session.get_inputs()
    feeds = {node.name: np.zeros(node.shape, np.float32) for node in states} | {first.name: x}
    names = [node.name for node in states]

    def run() -> np.ndarray:
        y, *after = session.run(None, feeds)
        if carried:
            feeds.update(zip(names, after, strict=True))
        return y

    return run


def onnxruntime_call(data: bytes, x: np.ndarray, carried: bool, threads: int) -> Call:
    """Run an ONNX model of :mod:`onnx_model` on `x`, read where it lies at every call.

    Inputs and outputs are bound once (I/O binding), so that a call copies and allocates nothing;
    two bindings in turn let each step read the state that the one before it wrote.
    """
    import onnxruntime

    session = onnxruntime_session(data, threads)

    def values(nodes: Any) -> list[Any]:
        zeros = [np.zeros(node.shape, np.float32) for node in nodes]
        return [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in zeros]

    first, *states = session.get_inputs()
    last, *states_out = session.get_outputs()
    given = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    (made,), even, odd = values([last]), values(states), values(states)
    bindings = []
    for before, after in ((even, odd), (odd, even)):
        binding = session.io_binding()
        binding.bind_ortvalue_input(first.name, given)
        binding.bind_ortvalue_output(last.name, made)
        for node, value in zip(states, before, strict=True):
            binding.bind_ortvalue_input(node.name, value)
        for node, value in zip(states_out, after, strict=True):
            binding.bind_ortvalue_output(node.name, value)
        bindings.append(binding)
    run, y = session.run_with_iobinding, made.numpy()
    following = itertools.cycle(bindings if carried else bindings[:1]).__next__
    kept = given, made, even, odd  # a binding keeps none of the memory it is given
    return lambda: (run(following()), y, kept)[1]


def openvino_call(data: bytes, x: np.ndarray, carried: bool, threads: int) -> Call:
    """Run an ONNX model of :mod:`onnx_model` on `x`, read where it lies at every call.

    One infer request with tensors that share memory with the arrays. A state that is carried is
    kept by the compiled model itself (``MakeStateful``), which is faster than copying it.
    """
    import openvino
    from openvino.passes import MakeStateful, Manager

    core = openvino.Core()
    model = core.read_model(data)
    states = [port.any_name for port in model.inputs[1:]]
    if carried:
        manager = Manager()
        manager.register_pass(MakeStateful({name: f"{name}_out" for name in states}))
        manager.run_passes(model)
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    inputs = {"x": x}
    if not carried:
        inputs |= {p.any_name: np.zeros(list(p.shape), np.float32) for p in model.inputs[1:]}
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    y, infer = request.get_tensor("y").data, request.infer
    # A tensor does not keep the array alive whose memory it shares.
    return lambda: (infer(share_outputs=True), y, inputs)[1]


def fastlstm_call(case: Case, module: torch.nn.Module, x: np.ndarray, threads: int) -> Call:
    """One step or sequence of a stream, which keeps its state."""
    model = fastlstm.from_torch(module, threads=threads)
    stream = model.stream(None if case.B == 1 else case.B)
    rows = x if case.B > 1 else x[:, 0]
    given = rows if case.T else rows[0]
    advance = stream.run if case.T else stream.step
    out = np.empty((*given.shape[:-1], case.H), np.float32)
    return lambda: advance(given, out=out)


def torch_call(case: Case, module: torch.nn.Module, x: np.ndarray) -> Call:
    """The stack's own call, in inference mode."""
    tensor, carried, carries = torch.from_numpy(x), None, not case.T

    def run() -> torch.Tensor:
        nonlocal carried
        with torch.inference_mode():
            y, after = module(tensor, carried)
        if carries:
            carried = after
        return y

    return run


def torch_int8(module: torch.nn.Module) -> torch.nn.Module:
    """The stack with torch's dynamic int8: weights in 8 bits, activations in 7 as it runs.

    Raises
    ------
    AttributeError
        If this torch has it no more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        inside = torch.nn.ModuleList([module])
        made = torch.ao.quantization.quantize_dynamic(inside, {type(module)}, dtype=torch.qint8)
    (stack,) = made
    return stack


def torch_cell_call(case: Case, module: torch.nn.Module, x: np.ndarray) -> Call:
    """One step of the cell with the stack's weights, in inference mode."""
    cell = CELLS[case.kind](case.I, case.H).eval()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items()})
    tensor, hidden, pair = torch.from_numpy(x[0]), None, case.kind == "lstm"

    def run() -> torch.Tensor:
        nonlocal hidden
        with torch.inference_mode():
            hidden = cell(tensor, hidden)
        return hidden[0] if pair else hidden

    return run


def makers(case: Case, threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name of each peer, and a function that makes its call; torch's stack, the measure, first."""
    torch.manual_seed(0)
    module = STACKS[case.kind](case.I, case.H, case.layers).eval()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((max(case.T, 1), case.B, case.I), dtype=np.float32)
    carried = not case.T

    def data() -> bytes:
        weights = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
        return onnx_model(case.kind, weights, max(case.T, 1), case.B)

    yield "torch nn", lambda: torch_call(case, module, x)
    yield "fastlstm", lambda: fastlstm_call(case, module, x, threads)
    yield "onnxruntime", lambda: onnxruntime_call(data(), x, carried, threads)
    yield "OpenVINO", lambda: openvino_call(data(), x, carried, threads)
    if carried and case.layers == 1:
        yield "torch cell", lambda: torch_cell_call(case, module, x)


def outputs(call: Call, calls: int) -> np.ndarray:
    """What so many calls return, one after the other, in a row."""
    return np.concatenate([np.asarray(call()).ravel().copy() for _ in range(calls)])


def agreeing(
    makers: Iterable[tuple[str, Callable[[], Call]]],
    calls: int,
    within: Mapping[str, float] = MappingProxyType({}),
) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls that give the same outputs as the first one.

    Parameters
    ----------
    makers : iterator of (str, function)
        Name and maker of each peer, the one to agree with first.
    calls : int
        How many calls to compare.
    within : mapping of str to float
        The largest difference of a peer that computes with fewer bits, by its name.

    Returns
    -------
    calls : dict of str to function
        The calls to be timed, in the order of `NAMES`, then any others.
    left_out : dict of str to str
        Peers that failed or disagree, and how.

    Raises
    ------
    AssertionError
        If fastlstm disagrees, in whatever way it computes.
    """
    found: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    absent = missing()
    expected = None
    for name, make in makers:
        if name in absent:
            continue
        try:
            call = make()
            given = outputs(call, calls)
        except Exception as error:
            if expected is None or name.startswith("fastlstm"):
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.200}"
            continue
        if expected is None:
            expected = given
        difference = float(np.abs(given - expected).max()) / max(1.0, float(abs(expected).max()))
        if difference <= within.get(name, AGREE):
            found[name] = call
        elif name.startswith("fastlstm"):
            raise AssertionError(f"{name} differs from torch by {difference:.1e}")
        else:
            left_out[name] = f"differs from torch by {difference:.1e}"
    in_order = dict.fromkeys((*NAMES, *found))
    return {name: found[name] for name in in_order if name in found}, left_out


def checked(case: Case, threads: int = 1) -> tuple[dict[str, Call], dict[str, str]]:
    """Name -> call to be timed of the peers that agree with torch, and why others are left out.

    Sets the number of threads of torch.

    Raises
    ------
    AssertionError
        If fastlstm disagrees with torch by more than float32 rounding explains.
    """
    torch.set_num_threads(threads)
    try:
        return agreeing(makers(case, threads), 1 if case.T else STEPS_COMPARED)
    except AssertionError as error:
        raise AssertionError(f"{case}: {error}") from None
