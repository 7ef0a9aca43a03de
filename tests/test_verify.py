"""fastlstm.verify: what it compares, how it judges, and what it says of live modules and files."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain as spec
import numpy as np
import pytest
from chain import reference
from chain.lower import lowered
from hypothesis import given
from hypothesis import strategies as st
from models import KINDS, ChainFile, build, chain_of, every_kind, model_file, recurrent

import fastlstm
from fastlstm import Model, cli
from fastlstm.spec import check
from fastlstm.verification import Verification, deviation, random_input, trial, verify
from fastlstm.verification.comparison import RESTART_STEPS, compare, cut
from fastlstm.verification.errors import Deviation, Errors, errors_of
from fastlstm.verification.evaluations import drawn, equations, sequences, stepwise

ENGINE = ("engine, sequences", "engine, step by step")


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with torch itself")


def worst(found: Verification, name: str, comparison: int = 0) -> float:
    return found.judged[comparison].errors[name].worst.error


def failures(found: Verification) -> list[str]:
    return [verdict.text for verdict in found.verdicts if not verdict.passed]


# Layers in torch: the yardstick


FUNCTIONS = [
    *(name for name in spec.ACTIVATIONS),
    *("affine(0.5, 0.1)", "elu(0.7)", "leaky_relu(0.1)", "thresholded_relu(0.3)"),
    *("hard_sigmoid(0.2, 0.5)", "scaled_tanh(1.2, 0.6)", "hardtanh(-0.5, 0.7)"),
]


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_in_torch(rng: np.random.Generator, function: str, dtype: Any) -> None:
    model = build((spec.Linear("a", 7, 40), spec.Activation("f", function, 40)), rng, dtype)
    found = verify(model, steps=20, batch_size=2)
    assert found.agrees
    assert found.yardstick_name == "torch"
    # A wrong translation would show as an error of the yardstick, and make the model chaotic.
    assert not found.diverges


LAYERS: dict[str, tuple[spec.Layer, ...]] = {
    "tokens": (
        spec.OneHot("a", 9),
        spec.LSTM("b", 9, 8, num_layers=2, bias=False, proj_size=3),
        spec.Activation("c", "log_softmax", 3),
    ),
    "bidirectional": (
        spec.Embedding("a", 9, 4),
        spec.GRU("b", 4, 5, bidirectional=True, num_layers=2),
        spec.Pool("c", "final", 10),
    ),
    "backwards": (spec.RNN("a", 3, 5, reverse=True, nonlinearity="relu"),),
    "learned start": (spec.LSTM("a", 3, 5, initial_state=True, num_layers=2),),
    "convolutions": (
        spec.Conv1d("a", 4, 6, 3, 2, 2, 2, padding_left=1),
        spec.Conv1d("b", 6, 6, 2, bias=False),
        spec.GRU("c", 6, 5),
    ),
    "stride alone": (spec.Conv1d("a", 4, 6, 1, 3), spec.LSTM("b", 6, 5)),
    "looks ahead": (spec.Conv1d("a", 4, 6, 3, padding_left=1, padding_right=1),),
    "delayed pool": (
        spec.Conv1d("a", 4, 6, 4, 2),
        spec.GRU("b", 6, 5),
        spec.Pool("c", "mean", 5),
        spec.Linear("d", 5, 2),
    ),
    "last": (spec.GRU("b", 4, 5), spec.Pool("c", "last", 5)),
    "frames": (
        spec.FrameConv1d("a", 2, 4, 3, 2, width=6, padding_left=1, padding_mode="reflect"),
        spec.BatchNorm1d("b", 4, width=3),
        spec.PReLU("c", 12, 4),
        spec.CombineHalves("d", "magnitude", 4, width=3),
        spec.FrameConv1d("e", 2, 2, 2, width=3, padding_right=2, padding_mode="replicate"),
        spec.FrameConv1d("f", 2, 2, 2, width=4, padding_right=2, groups=2, dilation=2),
        spec.RNN("g", 8, 5),
    ),
    "features": (
        spec.Scale("a", 6),
        spec.LayerNorm("b", 6, bias=False),
        spec.CombineHalves("c", "glu", 6),
        spec.PReLU("d", 3),
        spec.BatchNorm1d("e", 3, affine=False),
        spec.LayerNorm("f", 3, elementwise_affine=False, bias=False),
        spec.Residual("g", (spec.Linear("h", 3, 3),)),
        spec.Residual("i", (spec.GRU("j", 3, 3),), "input_first"),
        spec.CombineHalves("k", "product", 6),
        spec.Residual("l", (spec.Conv1d("m", 3, 5, 3, padding_left=2),), "output_first"),
        spec.CombineHalves("n", "average", 8),
        spec.CombineHalves("o", "sum", 4),
    ),
}


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", LAYERS)
def test_every_layer_in_torch(rng: np.random.Generator, which: str, dtype: Any) -> None:
    model = build(LAYERS[which], rng, dtype)
    found = verify(model, steps=50, batch_size=3)
    assert found.agrees
    assert found.yardstick_name == "torch"
    assert not found.diverges
    assert worst(found, found.yardstick) <= found.floor(found.drift, found.yardstick)
    streams = not model.looks_ahead
    assert found.drift.starts == ("carried" if streams else "anew")
    assert (ENGINE[1] in found.drift.errors) == streams
    if which == "convolutions":
        assert found.drift.outputs == spec.output_steps(chain_of(model), 50) == 23
        assert found.drift.errors[ENGINE[0]].steps.tolist() == [*range(model.delay, 50, 2)]


STREAMING = [which for which, layers in LAYERS.items() if not check(lowered(layers)).looks_ahead]


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("which", STREAMING)
def test_torch_takes_the_states_of_a_model(rng: np.random.Generator, which: str) -> None:
    """As it does for a chaotic model, at every restart."""
    from fastlstm.verification.torch_equations import TorchStream

    model = build(LAYERS[which], rng)
    runs = {
        "torch": equations(model.graph, model.tensors, model.dtype, TorchStream),
        "e": sequences(model),
    }
    runs["s"] = stepwise(model) or pytest.fail("it streams")
    exactly = equations(model.graph, model.tensors, np.float64)
    for starts in ("restarted", "carried"):
        calls = cut(model, 60, 3, starts, longest=RESTART_STEPS)
        x = drawn(model, (sum(calls), 3), 5)
        (found,) = compare(model, exactly, runs, "torch", x, calls, starts)
        assert found.outputs
        for errors in found.errors.values():
            assert errors.worst.error < 1e-5 * found.scale


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(rng: np.random.Generator, kind: str) -> None:
    model = build(every_kind(16)[kind], rng)
    found = verify(model, steps=40, batch_size=2)
    assert found.agrees, found


MISSING = {
    "rnn_tanh": spec.RNN("a", 3, 5, nonlinearity="softplus"),
    "two": spec.RNN("a", 3, 5, bidirectional=True, nonlinearity_reverse="relu"),
    "peepholes": spec.LSTM("a", 3, 5, peepholes=True),
    "reset": spec.GRU("a", 3, 5, reset_after=False),
    "within": spec.Residual("r", (spec.LSTM("a", 3, 3, clip=1.0),)),
}


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("which", MISSING)
def test_says_which_layer_torch_lacks(rng: np.random.Generator, which: str) -> None:
    layer = MISSING[which]
    inner = layer.layers[0] if isinstance(layer, spec.Residual) else layer
    found = verify(build(layer, rng), steps=30)
    assert found.agrees
    assert (found.yardstick_name, found.most_ratio) == ("NumPy", 4.0)
    assert found.notes[0] == (
        f"torch has not a layer like 'a': {inner.describe()}; NumPy in the model's precision is "
        f"the yardstick"
    )


def test_without_torch(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = verify(build(recurrent("lstm", 3, 5), rng), steps=30)
    assert found.agrees
    assert found.yardstick == "NumPy, float32"
    assert found.notes == (
        "torch is not installed: NumPy in the model's precision is the yardstick",
    )


# How it judges


def test_says_where(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Model.__call__

    def wrong(model: Model, x: np.ndarray, state: Any = None) -> Any:
        y, state = true(model, x, state)
        if len(y) == 128:
            y[5, 2, 1] += 0.5  # the fourth call starts at step 1 + 2 + 17
        return y, state

    model = build((recurrent("lstm", 5, 19), spec.Linear("head", 19, 3)), rng)
    monkeypatch.setattr(Model, "__call__", wrong)
    found = verify(model, steps=200, batch_size=3)
    where = found.drift.errors[ENGINE[0]].worst
    assert (where.step, where.row, where.feature) == (25, 2, 1)
    assert where.error == found.error == pytest.approx(0.5, abs=1e-3)
    limit = found.limit(found.drift, ENGINE[0])
    (text,) = failures(found)
    assert text == (
        f"the engine is off by {where.error:.2e} at step 25, row 2, feature 1, more than "
        f"{limit:.2e}"
    )
    assert str(found).startswith(f"FAILED: {text}\nnot compared: ")
    assert "\n200 steps, batch of 3, " in str(found)
    assert found.outcome == "differs"
    assert worst(found, ENGINE[1]) <= limit


def chaotic(rng: np.random.Generator, dtype: Any = np.float32) -> Model:
    """A model that lets a difference of rounding grow to its own size within a hundred steps."""
    file = model_file(recurrent("rnn_tanh", 3, 40), rng, dtype)
    return Model(ChainFile(file.layers, {n: 12 * t for n, t in file.tensors.items()}))


def corrupt(monkeypatch: pytest.MonkeyPatch, name: str, factor: float = 1.01) -> None:
    """Let models tell other weights than those they run with."""
    true = Model.tensors.fget
    assert true is not None

    def tensors(model: Model) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = true(model)
        return found | {name: found[name] * np.float32(factor)}

    monkeypatch.setattr(Model, "tensors", property(tensors))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("installed", ["torch", "no torch"])
def test_a_chaotic_model(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, installed: str, dtype: Any
) -> None:
    if installed == "torch":
        pytest.importorskip("torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
    model = chaotic(rng, dtype)
    found = verify(model, steps=300)
    assert found.agrees
    assert found.diverges
    assert found.exact_in == ("float64" if dtype == np.float32 else "extended precision")
    assert found.drift.errors[ENGINE[0]].worst.error > 0.5
    assert [c.starts for c in found.judged] == ["restarted"]
    assert found.judged[0].steps == 300
    assert max(found.judged[0].calls) == RESTART_STEPS
    corrupt(monkeypatch, "rnn.weight_hh_l0")
    assert not verify(model, steps=300).agrees


def test_a_lost_state_shows_where_rounding_accumulates(
    torch: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a few steps from the exact state it would not."""
    file = model_file(recurrent("rnn_relu", 3, 4), rng)
    file.tensors["rnn.weight_hh_l0"][:] = np.eye(4)
    file.tensors["rnn.bias_ih_l0"][:] = 0.7
    model = Model(file)
    right = verify(model, steps=900, tolerance=1e-8)
    assert right.agrees
    assert right.diverges
    true = Model.__call__

    def forgetful(model: Model, x: np.ndarray, state: Any = None) -> Any:
        return true(model, x, state if len(x) <= RESTART_STEPS else None)

    monkeypatch.setattr(Model, "__call__", forgetful)
    (text,) = failures(verify(model, steps=900, tolerance=1e-8))
    assert text.startswith("the engine is off by ")


def test_a_model_of_nan(rng: np.random.Generator) -> None:
    file = model_file(recurrent("gru", 3, 5), rng)
    file.tensors["rnn.bias_ih_l0"][:] = np.nan
    found = verify(Model(file), steps=5)
    assert failures(found) == ["the outputs are not finite from the first step: nothing to compare"]
    assert found.drift.outputs == 0
    json.dumps(found.facts())


def test_stops_where_float32_overflows(rng: np.random.Generator) -> None:
    file = model_file(recurrent("rnn_relu", 3, 5), rng)
    for tensor in file.tensors.values():
        np.copyto(tensor, np.abs(tensor) * 100)
    found = verify(Model(file), steps=60, batch_size=1)
    assert 0 < found.judged[0].outputs < 60
    assert found.agrees


def test_nan_is_infinitely_off() -> None:
    exact = np.zeros((2, 1, 2))
    y = np.array([[[0, 0]], [[np.nan, 1]]], np.float32)
    assert deviation(y, exact) == Deviation(np.inf, 1, 0, 0)
    with pytest.raises(ValueError, match=r"^an output has shape \(1, 1, 2\); expected \(2, 1, 2\)"):
        errors_of(y[:1], exact, np.arange(1))


def test_drift_of_an_integrator(torch: Any, rng: np.random.Generator) -> None:
    """Its sum grows, and with it the rounding of every addition."""
    file = model_file(recurrent("rnn_relu", 3, 4), rng)
    file.tensors["rnn.weight_hh_l0"][:] = np.eye(4)
    file.tensors["rnn.weight_ih_l0"][:] *= 0.1
    file.tensors["rnn.bias_ih_l0"][:] = 0.7
    found = verify(Model(file), steps=900)
    assert found.agrees
    for name in (*ENGINE, "torch, float32"):
        errors = found.drift.errors[name]
        first, middle, last = errors.thirds
        assert first < middle < last
        assert errors.growth == last / first > 1.5
        assert errors.grows
    still = verify(build(recurrent("gru", 3, 9), rng), steps=900)
    assert [errors.grows for errors in still.drift.errors.values()] == [False] * 3
    assert (
        verify(build(recurrent("gru", 3, 9), rng), steps=90).drift.errors[ENGINE[0]].grows is None
    )


def test_thirds_and_blocks() -> None:
    rms = np.repeat([1.0, 2.0, 3.0], 200)
    where = np.zeros(600, int)
    errors = Errors(np.arange(600) * 2, rms * 10, rms, where, where)
    assert errors.thirds == (1, 2, 3)
    assert (errors.growth, errors.grows) == (3, True)
    assert errors.total_rms == pytest.approx(math.sqrt(14 / 3))
    blocks = errors.blocks(100)
    assert len(blocks.steps) == 100
    assert blocks.steps[[0, -1]].tolist() == [10, 1198]
    assert blocks.largest[[0, -1]].tolist() == [10, 30]
    assert len(errors.first(7).blocks(100).steps) == 7
    nothing = errors.first(0)
    assert math.isnan(nothing.worst.error)
    assert (nothing.grows, len(nothing.blocks(100).steps)) == (None, 0)


@given(
    which=st.sampled_from(sorted(LAYERS)),
    steps=st.integers(1, 3000),
    starts=st.sampled_from(["carried", "restarted", "anew"]),
    unit=st.integers(1, 9),
    longest=st.none() | st.just(4),
)
def test_calls(which: str, steps: int, starts: Any, unit: int, longest: int | None) -> None:
    model = build(LAYERS[which], np.random.default_rng(0))
    calls = cut(model, steps, 3, starts, unit=unit, longest=longest)
    assert calls
    assert all(call > 0 and call % unit == 0 for call in calls)
    least = spec.delay(chain_of(model)) + model.step_stride
    assert abs(sum(calls) - steps) <= unit + least + 1
    if model.pools_over_time:
        outputs = [spec.output_steps(chain_of(model), call) for call in calls]
        assert starts == "carried" or min(outputs) == 1
    if longest:
        assert max(calls) <= max(longest, least) + unit


def test_a_slow_reference_has_a_shorter_sequence(rng: np.random.Generator) -> None:
    model = build(recurrent("lstm", 3, 5), rng)
    found = verify(model, steps=500, seconds=0)
    assert found.agrees
    assert found.drift.steps == 16
    assert re.fullmatch(
        r"16 steps instead of 500: the exact evaluation takes about [\d.e-]+ ms for one, and has "
        r"0 seconds",
        found.notes[-1],
    )


def test_a_wide_source_has_a_shorter_sequence(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model_file((recurrent("gru", 3, 5), spec.Linear("wide", 5, 64)), rng)
    other = Model(ChainFile((*file.layers, spec.Activation("f", "relu", 64)), file.tensors))
    monkeypatch.setattr(trial, "MOST_NUMBERS", 4 * 64 * 50)
    found = verify(Model(file), other, steps=80)
    assert found.drift.steps == 50
    assert found.notes[-1] == (
        "50 steps instead of 80: the outputs of a whole sequence are kept in memory, 12,800 "
        "numbers at most"
    )
    assert not found.agrees


def test_facts_are_json(rng: np.random.Generator) -> None:
    facts = json.loads(json.dumps(verify(build(recurrent("lstm", 3, 5), rng), steps=250).facts()))
    assert facts["outcome"] == "not compared"
    assert not facts["passed"]
    (comparison,) = facts["comparisons"]
    assert (comparison["steps"], comparison["starts"]) == (250, "carried")
    assert set(ENGINE) < set(comparison["evaluations"])
    (drift,) = facts["drift"]
    course = drift["evaluations"][ENGINE[0]]
    assert len(course["largest"]) == len(course["rms"]) == len(course["last_steps"]) == 100
    assert max(course["largest"]) == comparison["evaluations"][ENGINE[0]]["error"]
    assert len(course["rms_of_thirds"]) == 3


def test_refuses_what_is_no_source(rng: np.random.Generator, tmp_path: Path) -> None:
    model = build(recurrent("lstm", 3, 5), rng)
    with pytest.raises(TypeError) as caught:
        verify(model, 3)
    assert str(caught.value) == (
        "against is a int; expected a torch.nn.Module, the path of a file that can be run (.onnx, "
        "TorchScript, .pt2, .keras) or another Model"
    )
    (tmp_path / "model.pt").write_bytes(b"no archive")
    with pytest.raises(
        ValueError, match="cannot be run: it holds weights and no program"
    ) as refused:
        verify(model, tmp_path / "model.pt")
    assert "verify(model, recorded=path) compares numbers" in str(refused.value)


# Against another model


def test_against_the_same_weights(rng: np.random.Generator) -> None:
    file = model_file((recurrent("lstm", 3, 5), spec.Linear("head", 5, 2)), rng)
    found = verify(Model(file), Model(file), steps=30)
    assert found.agrees
    assert [verdict.text for verdict in found.verdicts][1:] == [
        "the weights are the source's, bit for bit"
    ]
    assert found.sources == ()


def test_against_other_weights(rng: np.random.Generator) -> None:
    file = model_file((recurrent("lstm", 3, 5), spec.Linear("head", 5, 2)), rng)
    tensors = {name: array.copy() for name, array in file.tensors.items()}
    tensors["head.weight"][1, 3] += 0.25
    tensors["rnn.bias_hh_l0"][:2] += 0.5
    found = verify(Model(file), Model(ChainFile(file.layers, tensors)), steps=30)
    wrong, weights = failures(found)
    assert wrong.startswith("source, float64 is off by ")
    assert weights == (
        "2 of 6 tensors are not the source's: 'rnn.bias_hh_l0' in 2 of 20, by up to 0.5; "
        "'head.weight' in 1 of 10, by up to 0.25"
    )
    assert found.ratio < 1.5  # the engine itself is right


def test_a_bit_that_no_output_shows_is_found(rng: np.random.Generator) -> None:
    file = model_file((spec.Embedding("e", 4000, 3), recurrent("gru", 3, 5)), rng)
    tensors = {name: array.copy() for name, array in file.tensors.items()}
    tensors["e.weight"][3999, 1] = np.nextafter(tensors["e.weight"][3999, 1], np.float32(9))
    found = verify(Model(file), Model(ChainFile(file.layers, tensors)), steps=20)
    (text,) = failures(found)
    assert text.startswith("1 of 5 tensors are not the source's: 'e.weight' in 1 of 12,000, by up")


def test_against_other_layers(rng: np.random.Generator) -> None:
    file = model_file(recurrent("lstm", 3, 5), rng)
    twice = np.full(5, 2, np.float32), np.zeros(5, np.float32)
    scaled = {"s.weight": twice[0] / 2, "s.bias": twice[1]}
    same = Model(ChainFile((*file.layers, spec.Scale("s", 5)), file.tensors | scaled))
    found = verify(same, Model(file), steps=30)
    assert found.agrees
    assert found.weights is None
    assert found.sources == ("source, float64",)
    assert "the source has other layers: their numbers are compared" in found.notes[0]
    other = Model(ChainFile(chain_of(same), same.tensors | {"s.weight": twice[0]}))
    assert not verify(other, Model(file), steps=30).agrees


def test_against_other_sizes(rng: np.random.Generator) -> None:
    with pytest.raises(
        ValueError, match=r"^the model and its source do not take and give the same"
    ):
        verify(build(recurrent("gru", 3, 5), rng), build(recurrent("gru", 4, 5), rng))


# Against a live module


Made = tuple[Any, Model]


def lstm_model(torch: Any, module: Any, layers: str = "lstm, linear") -> Model:
    return fastlstm.from_torch(module.state_dict(), layers=layers)


def classes(torch: Any) -> dict[str, Callable[[], Made]]:
    """Modules with forwards of their own, and the models they are."""
    nn = torch.nn

    class Tagger(nn.Module):
        def __init__(self, how: str = "batch first") -> None:
            super().__init__()
            self.how = how
            self.lstm = nn.LSTM(3, 7, batch_first=how != "time first")
            self.linear = nn.Linear(7, 2)

        def forward(self, x: Any, state: Any = None) -> Any:
            if self.how == "channels":
                x = x.transpose(1, 2)
            if self.how == "unbatched":
                assert x.dim() == 2
            if self.how == "zeros":
                state = (torch.zeros(1, len(x), 7), torch.zeros(1, len(x), 7))
            y, state = self.lstm(x, state)
            y = self.linear(y)
            if self.how == "dict":
                return {"state": state, "logits": y}
            if self.how == "float32":
                y = y.double() @ torch.eye(2, dtype=torch.float32).to(y.dtype)
            return (y.mT if self.how == "channels" else y), state

    class Step(nn.Module):
        """A character a call."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru = nn.Embedding(9, 4), nn.GRU(4, 5, 2)
            self.linear = nn.Linear(5, 9)

        def forward(self, token: Any, hidden: Any) -> Any:
            y, hidden = self.gru(self.embedding(token)[None], hidden)
            return self.linear(y[0]), hidden

    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTMCell(3, 4), nn.GRUCell(4, 5)

        def forward(self, x: Any, first: Any, second: Any) -> Any:
            first = self.lstm(x, first)
            second = self.gru(first[0], second)
            return second, (first, second)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 7, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.lstm(x)[0][:, -1]

    def tagger(how: str) -> Callable[[], Made]:
        def made() -> Made:
            module = Tagger(how)
            return module, lstm_model(torch, module)

        return made

    def last() -> Made:
        module = Last()
        model = lstm_model(torch, module, "lstm")
        layers = (*chain_of(model), spec.Pool("pool", "last", 7))
        return module, Model(ChainFile(layers, model.tensors))

    def step() -> Made:
        module = Step()
        return module, lstm_model(torch, module, "embedding, gru, linear")

    def cells() -> Made:
        module = Cells()
        return module, lstm_model(torch, module, "lstm, gru")

    hows = ("batch first", "time first", "channels", "unbatched", "zeros", "dict")
    return {how: tagger(how) for how in hows} | {"last": last, "step": step, "cells": cells}


GIVEN = {
    "batch first": "x (batch, time, 3)",
    "time first": "x (time, batch, 3)",
    "channels": "x (batch, 3, time)",
    "unbatched": "x (time, 3)",
    "zeros": "x (batch, time, 3)",
    "dict": "x (batch, time, 3)",
    "last": "x (batch, time, 3)",
    "step": "token (batch), hidden (2, batch, 5)",
    "cells": "x (batch, 3), first[0] (batch, 4), first[1] (batch, 4), second (batch, 5)",
}


@pytest.mark.parametrize("which", GIVEN)
def test_against_a_live_module(torch: Any, which: str) -> None:
    torch.manual_seed(31)
    module, model = classes(torch)[which]()
    before = copy.deepcopy(module.state_dict())
    found = verify(model, module, steps=60)
    assert found.agrees, found
    assert found.sources == ("module, float32", "module, float64")
    assert found.outcome == "ok"
    assert set(found.compared.values()) == {"by the outputs of the module, run by torch"}
    assert found.notes[0] == (f"the original was called with {GIVEN[which]}, which was worked out")
    assert worst(found, "module, float64", -1) < 1e-14
    assert found.drift.batch_size == (1 if which == "unbatched" else 4)
    # One that pools does not carry on, so that it was given whole sequences beside.
    assert [c.starts for c in found.judged] == ["carried", "anew"][: 1 + (which == "last")]
    assert module.training
    assert torch.get_default_dtype() == torch.float32
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("which", ["batch first", "step", "cells", "last"])
def test_a_module_that_is_another(torch: Any, which: str) -> None:
    torch.manual_seed(31)
    module, model = classes(torch)[which]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter[0] += 0.1
    found = verify(model, module, steps=60)
    assert [text.partition(" is off by ")[0] for text in failures(found)] == [
        "module, float32",
        "module, float64",
    ]


def test_a_plain_lstm_and_a_sequential(torch: Any) -> None:
    torch.manual_seed(31)
    lstm = torch.nn.LSTM(3, 7, num_layers=2, proj_size=4)
    model = fastlstm.from_torch(lstm)
    assert verify(model, lstm, steps=40).agrees
    sequential = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model = fastlstm.from_torch(sequential, dtype="float64")
    found = verify(model, sequential, steps=40)
    assert found.agrees
    assert found.sources == ("module, float64",)


def test_a_module_that_looks_ahead(torch: Any) -> None:
    torch.manual_seed(31)
    module = torch.nn.GRU(3, 7, bidirectional=True)
    found = verify(fastlstm.from_torch(module), module, steps=300)
    assert found.agrees
    assert [c.starts for c in found.judged] == ["anew"]
    assert max(found.drift.calls) == 152  # of 300, after 1 + 2 + 17 + 128
    assert found.notes[-1].startswith(
        "whole sequences only, each from its start, and no steps: layer 'gru' is bidirectional"
    )


def test_a_chaotic_module(torch: Any, rng: np.random.Generator) -> None:
    model = chaotic(rng)
    module = torch.nn.RNN(3, 40)
    module.load_state_dict(
        {n.removeprefix("rnn."): torch.tensor(t) for n, t in model.tensors.items()}
    )
    found = verify(model, module, steps=300)
    assert found.agrees
    assert [c.starts for c in found.judged] == ["restarted", "anew"]
    assert "module, float32" in found.judged[1].errors
    with torch.no_grad():
        module.weight_hh_l0 += 0.01
    assert len(failures(verify(model, module, steps=300))) == 2


def test_a_module_that_does_not_run_in_float64(torch: Any) -> None:
    class Stubborn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            return self.linear(x) @ torch.eye(3, dtype=torch.float32)

    module = Stubborn()
    found = verify(fastlstm.from_torch(module.state_dict(), layers="linear"), module, steps=9)
    assert found.agrees
    assert found.sources == ("module, float32",)
    assert found.notes[1].startswith("the module does not run in float64: ")


def test_a_module_that_takes_something_else(torch: Any, rng: np.random.Generator) -> None:
    model = build(recurrent("gru", 3, 5), rng)
    with pytest.raises(ValueError, match=r"^no way was found") as caught:
        verify(model, torch.nn.Linear(3, 7))
    assert str(caught.value).startswith(
        "no way was found to call module, float32 in which it gives what the model does, 'output' "
        "of 5 a step:\n  called with input (batch, time, 3), it gives (3, 8, 7)\n"
    )

    class Cached(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = torch.nn.GRU(3, 5)
            self.cache = self.gru.weight_ih_l0 * 2

    with pytest.raises(ValueError, match=r"^the module cannot be copied: Only Tensors created"):
        verify(model, Cached())


# Against an ONNX file


def onnx_file(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    T: int | str = "T",
    B: int | str = "B",
    states: bool = True,
    batch_first: bool = False,
    lengths: bool = False,
    table: np.ndarray | None = None,
    unused: bool = False,
) -> Path:
    """An LSTM in ONNX, of PyTorch's weights; its states are inputs and outputs."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    H = tensors["rnn.weight_hh_l0"].shape[1]

    def reordered(array: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])

    bias = np.concatenate([reordered(tensors[f"rnn.bias_{part}_l0"]) for part in ("ih", "hh")])
    stored = {
        "W": reordered(tensors["rnn.weight_ih_l0"])[None],
        "R": reordered(tensors["rnn.weight_hh_l0"])[None],
        "bias": bias[None],
        "axis": np.array([1], np.int64),
    }
    size = tensors["rnn.weight_ih_l0"].shape[1]
    nodes, x = [], "x"
    sizes = [B, T] if batch_first else [T, B]
    inputs = [helper.make_tensor_value_info("x", kinds.FLOAT, [*sizes, size])]
    if table is not None:
        stored["table"] = table
        inputs = [helper.make_tensor_value_info("x", kinds.INT64, sizes)]
        nodes.append(helper.make_node("Gather", ["table", "x"], ["rows"]))
        x = "rows"
    if batch_first:
        nodes.append(helper.make_node("Transpose", [x], ["by_time"], perm=[1, 0, 2]))
        x = "by_time"
    outputs = [helper.make_tensor_value_info("y", kinds.FLOAT, [*sizes, H])]
    for name, target in (("h", inputs), ("c", inputs), ("h_n", outputs), ("c_n", outputs)):
        if states:
            target.append(helper.make_tensor_value_info(name, kinds.FLOAT, [1, B, H]))
    if lengths:
        inputs.append(helper.make_tensor_value_info("lengths", kinds.INT32, [B]))
    if unused:
        inputs.append(helper.make_tensor_value_info("rate", kinds.INT64, []))
    given = ["lengths" if lengths else "", *(("h", "c") if states else ())]
    nodes += [
        helper.make_node(
            "LSTM",
            [x, "W", "R", "bias", *given],
            ["directions", *(("h_n", "c_n") if states else ())],
            hidden_size=H,
        ),
        helper.make_node("Squeeze", ["directions", "axis"], ["by_time_y" if batch_first else "y"]),
    ]
    if batch_first:
        nodes.append(helper.make_node("Transpose", ["by_time_y"], ["y"], perm=[1, 0, 2]))
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, initializers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path
    )
    return path


@pytest.fixture
def lstm(rng: np.random.Generator) -> Model:
    return build(recurrent("lstm", 3, 5), rng)


VARIANTS: dict[str, dict[str, Any]] = {
    "open": {},
    "a step a call": {"T": 1, "B": 1},
    "a fixed length": {"T": 8, "B": 2},
    "a fixed length, no state": {"T": 8, "states": False},
    "batch first, no state": {"batch_first": True, "states": False},
    "with lengths": {"lengths": True},
    "with an input too many": {"unused": True},
}


@pytest.mark.parametrize("which", VARIANTS)
def test_against_an_onnx_file(lstm: Model, tmp_path: Path, which: str) -> None:
    pytest.importorskip("onnxruntime")
    options = VARIANTS[which]
    path = onnx_file(tmp_path / "lstm.onnx", lstm.tensors, **options)
    found = verify(lstm, path, steps=160)
    assert found.agrees, found
    assert found.sources == ("onnxruntime",)
    assert found.drift.batch_size == options.get("B", 4)
    assert found.outcome == "ok"
    assert found.original == "lstm.onnx, run by onnxruntime"
    assert found.notes[0].startswith("the original was called with x (")
    last = found.judged[-1]
    assert "onnxruntime" in last.errors
    if which == "a fixed length, no state":
        assert [c.starts for c in found.judged] == ["carried", "anew"]
        assert set(last.calls) == {8}
    else:
        assert [c.starts for c in found.judged] == ["carried"]
        assert (
            set(last.calls) <= {8 * n for n in range(1, 99)}
            or "T" not in options
            or (options["T"] == 1)
        )
    assert found.notes[1:] == {
        "with an input too many": (
            "its input rate () is neither data nor a state that it gives back: it was given zeros",
        ),
    }.get(which, ())


@pytest.mark.parametrize("which", ["open", "a step a call", "a fixed length, no state"])
@pytest.mark.parametrize("name", ["rnn.weight_hh_l0", "rnn.bias_ih_l0"])
def test_an_onnx_file_of_other_weights(lstm: Model, tmp_path: Path, which: str, name: str) -> None:
    pytest.importorskip("onnxruntime")
    other = lstm.tensors | {name: lstm.tensors[name] * np.float32(1.01)}
    path = onnx_file(tmp_path / "lstm.onnx", other, **VARIANTS[which])
    found = verify(lstm, path, steps=160)
    (text,) = failures(found)
    assert text.startswith("onnxruntime is off by ")
    assert found.ratio < 1.5 or found.error < found.floor(found.drift, ENGINE[0])


def test_an_onnx_file_that_forgets_its_state(lstm: Model, tmp_path: Path) -> None:
    """Only a sequence of several calls tells."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = onnx_file(tmp_path / "lstm.onnx", lstm.tensors, T=1)
    model = onnx.load(path)
    model.graph.node[0].input[6] = model.graph.node[0].input[5]  # c starts from h
    onnx.save(model, path)
    assert failures(verify(lstm, path, steps=40))[0].startswith("onnxruntime is off by ")


def test_an_onnx_file_of_tokens(rng: np.random.Generator, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = build((spec.Embedding("e", 9, 3), recurrent("lstm", 3, 5)), rng)
    table = model.tensors["e.weight"]
    path = onnx_file(tmp_path / "lstm.onnx", model.tensors, batch_first=True, table=table)
    found = verify(model, path, steps=60)
    assert found.agrees
    (note,) = found.notes
    assert note.startswith("the original was called with x (batch, time), h (1, batch, 5), c (1, ")


def test_an_onnx_file_has_its_own_batch(lstm: Model, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = onnx_file(tmp_path / "lstm.onnx", lstm.tensors, B=2)
    assert verify(lstm, path, steps=20, batch_size=2).agrees
    with pytest.raises(ValueError, match=r"^batch_size is 3") as caught:
        verify(lstm, path, batch_size=3)
    assert str(caught.value) == (
        "batch_size is 3; expected 2, the only one that onnxruntime takes here"
    )


def test_refused_onnx_files(
    lstm: Model, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    path = onnx_file(tmp_path / "lstm.onnx", lstm.tensors)
    other = build(recurrent("lstm", 4, 5), rng)
    with pytest.raises(
        ValueError, match=r"^no way was found to call onnxruntime in which it gives "
    ):
        verify(other, path)
    with pytest.raises(FileNotFoundError):
        verify(lstm, tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ValueError, match=r"^onnxruntime cannot load 'bad.onnx': "):
        verify(lstm, tmp_path / "bad.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="onnxruntime") as caught:
        verify(lstm, path)
    assert str(caught.value) == (
        "running an ONNX file needs onnxruntime; install it with: pip install onnxruntime"
    )


def test_the_reference_is_the_truth(rng: np.random.Generator) -> None:
    """What everything is compared with is :mod:`chain.reference`, in float64."""
    model = build(recurrent("gru", 3, 5), rng)
    x = random_input(model, (9, 2), 0)
    y, _ = equations(model.graph, model.tensors, np.float64)({"input": x}, None)
    expected, _ = reference.forward(chain_of(model), model.tensors, x)
    assert np.array_equal(y["output"], expected)


def test_the_command_against_an_onnx_file(
    lstm: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    lstm.save(tmp_path / "m")
    path = onnx_file(tmp_path / "lstm.onnx", lstm.tensors, B=1)
    command = ["verify", str(tmp_path / "m"), "--against", str(path), "--steps", "400"]
    assert cli.main([*command, "--plot", str(tmp_path / "v.svg")]) == 0
    out = capsys.readouterr().out
    assert "400 random steps, 1 row, state carried on" in out
    assert "ok: onnxruntime is off by at most " in out
    assert "the original was called with x (time, batch, 3), h (1, 1, 5), c (1, 1, 5)" in out
    drawn = (tmp_path / "v.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn
    onnx_file(path, lstm.tensors | {"rnn.bias_hh_l0": lstm.tensors["rnn.bias_hh_l0"] * 2}, B=1)
    assert cli.main(command) == 1
    assert "FAILED: onnxruntime is off by " in capsys.readouterr().out
