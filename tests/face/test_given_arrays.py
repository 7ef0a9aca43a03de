"""What offers an array is taken wherever one is; paths are text, bytes, paths or open files."""

from __future__ import annotations

import array
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import Model, spec
from fastlstm.format import ModelFile


class Dlpack:
    """What speaks DLPack and nothing else."""

    def __init__(self, inner: np.ndarray) -> None:
        self.inner = inner

    def __dlpack__(self, **options: Any) -> Any:
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.inner.__dlpack_device__()


class Offering:
    """What has ``__array__``, as objects of pandas have."""

    def __init__(self, inner: np.ndarray) -> None:
        self.inner = inner

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.inner, dtype)


def tensor(x: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(x.copy())


def trained_tensor(x: np.ndarray) -> Any:
    given = tensor(x)
    return given.requires_grad_() if x.dtype.kind == "f" else given


WAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": Offering,
    "dlpack": Dlpack,
    "memoryview": memoryview,
    "tensor": tensor,
    "tensor with a gradient": trained_tensor,
}


def of(layers: list[spec.Layer], rng: np.random.Generator, **options: Any) -> Model:
    graph = spec.Graph.chain(layers, **options)
    shapes = spec.check(graph).tensors
    drawn = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}
    return Model(ModelFile(graph, drawn))


@pytest.fixture
def model(rng: np.random.Generator) -> Model:
    return of([spec.LSTM("lstm", 4, 6)], rng)


@pytest.mark.parametrize("way", WAYS)
def test_everywhere(model: Model, rng: np.random.Generator, way: str) -> None:
    give = WAYS[way]
    x = rng.standard_normal((7, 2, 4)).astype(np.float32)
    y, state = model(x)
    assert np.array_equal(model(give(x))[0], y)
    assert np.array_equal(model({"input": give(x)})[0], y)
    assert np.array_equal(model(give(x[:, 0].copy()))[0], model(x[:, 0].copy())[0])
    given = {name: give(part) for name, part in state.items()}
    assert np.array_equal(model(give(x), given)[0], model(x, state)[0])
    some = [x[:, 0].copy(), x[:5, 1].copy()]
    for made, expected in zip(model([give(one) for one in some])[0], model(some)[0], strict=True):
        assert np.array_equal(made, expected)
    mask = np.zeros((7, 2), bool)
    mask[3] = True
    assert np.array_equal(model(x, reset=give(mask))[0], model(x, reset=mask)[0])
    lengths = np.array([7, 3])
    assert np.array_equal(model(x, lengths=give(lengths))[0], model(x, lengths=lengths)[0])

    stream = model.stream(batch_size=2)
    assert np.array_equal(np.stack([stream.step(give(row)) for row in x]), y)
    stream.reset(give(np.array([True, False])))
    stream.state = given
    assert np.array_equal(stream.run(give(x)), model(x, state)[0])

    pool = model.pool(2)
    slots = np.array([pool.open(), pool.open()])
    assert np.array_equal(pool.step(slots, give(x[0])), y[0])
    assert np.array_equal(pool.run(slots, give(x[1:])), y[1:])


@pytest.mark.parametrize("way", WAYS)
def test_tokens(rng: np.random.Generator, way: str) -> None:
    model = of([spec.Embedding("e", 9, 4), spec.GRU("gru", 4, 9), spec.Linear("o", 9, 9)], rng)
    tokens = rng.integers(0, 9, 12)
    give = WAYS[way]
    assert np.array_equal(model(give(tokens))[0], model(tokens)[0])
    steps = model.stream(batch_size=12)
    assert np.array_equal(steps.step(give(tokens)), model(tokens[None])[0][0])
    assert fastlstm.perplexity(model, give(tokens)) == fastlstm.perplexity(model, tokens)


@pytest.mark.parametrize("way", WAYS)
def test_held_inputs_and_forecasts(rng: np.random.Generator, way: str) -> None:
    nodes = [spec.Arithmetic("y", "multiply")("x", "knob")]
    graph = spec.Graph(
        [spec.Input("x", (3,)), spec.Input("knob", (3,), held=True)], nodes, {"y": "y"}
    )
    model, give = Model(ModelFile(graph, {})), WAYS[way]
    x, knob = (rng.standard_normal(s).astype(np.float32) for s in ((5, 3), 3))
    made, _ = model({"x": give(x), "knob": give(knob)})
    assert np.array_equal(made, x * knob)
    assert np.array_equal(model.stream(held={"knob": give(knob)}).run(give(x)), x * knob)
    walker = of([spec.GRU("g", 3, 3)], rng)
    assert np.array_equal(fastlstm.forecast(walker, give(x), 4), fastlstm.forecast(walker, x, 4))


@pytest.mark.parametrize("way", WAYS)
def test_modules(rng: np.random.Generator, way: str) -> None:
    shapes = {"weight_ih": (24, 4), "weight_hh": (24, 6), "bias_ih": (24,), "bias_hh": (24,)}
    weights = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}
    stack, cell, give = fastlstm.LSTM(4, 6), fastlstm.LSTMCell(4, 6), WAYS[way]
    stack.load_state_dict({f"{n}_l0": w for n, w in weights.items()})
    cell.load_state_dict(weights)
    x = rng.standard_normal((5, 2, 4)).astype(np.float32)
    y, (h, c) = stack(give(x))
    again, _ = stack(give(x), (give(h), give(c)))
    assert np.array_equal(again, stack(x, (h, c))[0])
    for row, expected in zip(x, y, strict=True):
        assert np.array_equal(cell(give(row))[0], cell(row)[0])
        assert expected.shape == (2, 6)
    assert np.array_equal(cell(x[0], (give(h[0]), give(c[0])))[0], cell(x[0], (h[0], c[0]))[0])


def test_one_axis_of_a_buffer(model: Model) -> None:
    row = array.array("f", [1, 2, 3, 4])
    assert np.array_equal(model.stream().step(row), model.stream().step(np.asarray(row)))


def test_pandas(model: Model, rng: np.random.Generator) -> None:
    pandas = pytest.importorskip("pandas")
    x = rng.standard_normal((7, 4)).astype(np.float32)
    assert np.array_equal(model(pandas.DataFrame(x))[0], model(x)[0])


def test_refused(model: Model) -> None:
    x = np.zeros((7, 4), np.float32)
    stream = model.stream()

    def refusal(given: Any, call: Callable[[Any], Any] = model) -> str:
        with pytest.raises(TypeError) as caught:
            call(given)
        return str(caught.value)

    assert "pass np.asarray(x, dtype=np.float32)" in refusal(x.tolist())
    assert "pass np.asarray(x, dtype=np.float32)" in refusal(x[0].tolist(), stream.step)
    masked = refusal(np.ma.masked_array(x))
    # Whoever turns it into an array would drop the mask.
    assert "x.filled(0.0)" in masked
    assert "asarray" not in masked
    assert "x.filled(0.0)" in refusal(np.ma.masked_array(x[0]), stream.step)
    told = refusal(Offering(x.astype(np.float64)))
    assert "Offering of float64; expected float32, which the model computes in" in told
    assert "pass np.asarray(x).astype(np.float32)" in told


def test_refused_tensors(model: Model) -> None:
    torch = pytest.importorskip("torch")
    for given, text in (
        (
            torch.zeros(7, 4, dtype=torch.float64, requires_grad=True),
            "np.asarray(x.detach()).astype",
        ),
        (torch.zeros(7, 4, device="meta"), "it is on the device meta: pass x.cpu()"),
        (torch.zeros(7, 4, dtype=torch.bfloat16), "NumPy has no bfloat16: pass x.float()"),
    ):
        with pytest.raises(TypeError) as caught:
            model(given)
        assert text in str(caught.value)


def as_bytes(path: Path) -> bytes:
    return os.fsencode(path)


@pytest.mark.parametrize("give", [str, as_bytes, Path])
def test_paths(model: Model, tmp_path: Path, give: Any) -> None:
    model.save(give(tmp_path / "m"))
    assert fastlstm.load(give(tmp_path / "m")).fingerprint == model.fingerprint
    assert fastlstm.load(give(tmp_path / "m"), mmap=True).fingerprint == model.fingerprint
    stream = model.stream()
    stream.save(give(tmp_path / "s"))
    stream.load(give(tmp_path / "s"))
    pool = model.pool(2)
    pool.open()
    pool.save(give(tmp_path / "p"))
    assert len(model.pool(2).load(give(tmp_path / "p"))) == 1
    np.savez(tmp_path / "w.npz", **{n.removeprefix("lstm."): t for n, t in model.tensors.items()})
    made = fastlstm.convert(give(tmp_path / "w.npz"), give(tmp_path / "c"))
    assert made.source["from"] == "w.npz"
    with pytest.raises(fastlstm.FormatError) as caught:
        fastlstm.load(give(tmp_path / "w.npz"))
    assert str(caught.value).startswith(str(tmp_path / "w.npz"))


def test_open_files(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    np.savez(tmp_path / "w.npz", **{n.removeprefix("lstm."): t for n, t in model.tensors.items()})
    with open(tmp_path / "w.npz", "rb") as file:
        made = fastlstm.from_torch(file)
    assert made.source["from"] == "w.npz"
    assert np.array_equal(made.tensors["lstm.weight_hh_l0"], model.tensors["lstm.weight_hh_l0"])
    with open(tmp_path / "m", "rb") as file:
        assert fastlstm.load(file).fingerprint == model.fingerprint
    memory = io.BytesIO((tmp_path / "m").read_bytes())
    assert fastlstm.load(memory).fingerprint == model.fingerprint
    with pytest.raises(TypeError, match=r"open\(path, 'rb'\)"):
        fastlstm.load(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="with mmap=True expected a path"):
        fastlstm.load(memory, mmap=True)
