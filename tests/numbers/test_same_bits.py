"""Promise 0: AVX2 and AVX-512 give the same bits, whatever the model and however it is run.

``test_random_graphs_c.py`` compares NEON with both, by emulation, ``test_functions_c.py`` every
function of one number, and ``test_programs_c.py`` the products of tokens, which no kernel makes.
The scalar kernel has no fused multiply-add, and rounds as it does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import (
    KINDS,
    STREAMING,
    ChainFile,
    build,
    chain_of,
    every_kind,
    every_model,
    input_for,
    state_for,
)
from test_random_models import SEED, VOCABULARY, Draw, tensors_of
from ways import assert_same_bits, assert_same_state, row_of

import fastlstm
from fastlstm import Model, _engine
from fastlstm.errors import ConvertError
from fastlstm.format import ModelFile

HERE = [name for name, _ in _engine.kernels(4, of_floats=True) if name != "scalar"]

pytestmark = pytest.mark.skipif(
    len(HERE) < 2, reason=f"needs two instruction sets of more than one lane; here: {HERE}"
)

Array = np.ndarray
Result = tuple[Any, ...]


def models(file: ChainFile) -> list[Model]:
    return [Model(file, isa=isa, reproducible=True) for isa in HERE]


def assert_same(results: list[Result]) -> None:
    """The same arrays and states; of a NaN only that it is one."""

    def plain(a: Array) -> Array:
        return np.where(np.isnan(a), np.nan, a).astype(a.dtype)

    first, *others = results
    for other in others:
        for a, b in zip(first, other, strict=True):
            if isinstance(a, dict):
                assert_same_state(
                    {n: plain(v) for n, v in b.items()}, {n: plain(v) for n, v in a.items()}
                )
            elif a is None or isinstance(a, tuple | list):
                assert type(a) is type(b)
                assert_same([tuple(a or ()), tuple(b or ())])
            else:
                assert_same_bits(plain(b), plain(a))


def every_way(model: Model, x: Array, state: dict[str, Array], lengths: Array) -> Iterator[Any]:
    """Whole, of various lengths, and as a stream step by step, in blocks and in a pool."""
    yield model(x, state)
    fresh = state
    if model.pools_over_time:  # every row from its start, where rows may not differ
        counts = [name for name, a in state.items() if a.dtype == np.int64]
        fresh = {n: np.zeros_like(a) if n in counts else a for n, a in state.items()}
    yield model(x, fresh, lengths=lengths)
    if spec.looks_ahead(chain_of(model)):
        return
    B = x.shape[1]
    stream = model.stream(B)
    stream.state = state
    yield tuple(stream.step(np.ascontiguousarray(x_t)) for x_t in x[:5])
    yield stream.run(x[5:8]), stream.run(x[8:]), stream.state
    pool = model.pool()
    slots = [pool.open(row_of(state, b)) for b in range(B)]
    yield (pool.step(slots[::-1], np.ascontiguousarray(x[0, ::-1])),)
    yield pool.run(slots, x[1:], lengths // 2), pool.get_state(slots)


def assert_every_way_is_the_same(
    file: ChainFile, rng: np.random.Generator, T: int, batches: tuple[int, ...]
) -> None:
    made = models(file)
    for B in batches:
        x, state = input_for(made[0], rng, T, B), state_for(made[0], rng, B)
        lengths = rng.integers(1, T + 1, B)
        for results in zip(*(every_way(m, x, state, lengths) for m in made), strict=True):
            assert_same([r if isinstance(r, tuple) else (r,) for r in results])


# Around 8 and 16 lanes, and where the sum over a row has a tail.
@pytest.mark.parametrize("size", [1, 7, 8, 16, 17, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind: str, size: int, rng: np.random.Generator) -> None:
    model = build(every_kind(size)[kind], rng)
    assert_every_way_is_the_same(model_file_of(model), rng, 13, (1, 3))


def model_file_of(model: Model) -> ChainFile:
    return ChainFile(chain_of(model), model.tensors)


@pytest.mark.parametrize("kind", every_model(1))
def test_every_model_in_batches_of_all_sizes(kind: str, rng: np.random.Generator) -> None:
    model = build(every_model(9)[kind], rng)
    assert_every_way_is_the_same(model_file_of(model), rng, 11, (*range(1, 10), 15, 16, 17))


@pytest.mark.parametrize("kind", STREAMING)
def test_of_a_size_that_a_cache_does_not_hold(kind: str, rng: np.random.Generator) -> None:
    """Chunks, parts and what is projected on the side differ between instruction sets."""
    layers = every_kind(67)[kind]
    model = build(layers, rng)
    x = input_for(model, rng, 150, 1)
    assert_same([m(x) for m in models(model_file_of(model))])


@pytest.mark.parametrize("seed", range(SEED, SEED + 150))
def test_a_random_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = Draw(rng).model()
    tensors = tensors_of(layers, rng, np.float32)
    if not tensors:
        pytest.skip("a model without tensors has nothing to round")
    T, B = int(rng.integers(1, 40)), int(rng.integers(1, 18))
    if layers[0].takes_tokens:
        x: Array = rng.integers(0, VOCABULARY, (T, B))
    else:
        x = rng.standard_normal((T, B, layers[0].input_size)).astype(np.float32)
    made = models(ChainFile(layers, tensors))
    if made[0].pools_over_time and not spec.output_steps(layers, T):
        pytest.skip("there is nothing to pool")
    lengths = rng.integers(0, T + 1, B)
    assert_same([m(x) for m in made])
    assert_same([m(x, lengths=lengths) for m in made])
    if not spec.looks_ahead(layers):
        streams = [m.stream(B) for m in made]
        assert_same([(s.run(x[: T // 2]), s.run(x[T // 2 :]), s.state) for s in streams])


def test_the_modules_of_the_zoo(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="the modules are torch's")
    from torch_zoo import CASES

    torch.manual_seed(23)
    seen = 0
    for name, case in CASES.items():
        if case.states:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how sure a conversion is, is tested elsewhere
            try:
                made = fastlstm.from_torch(case.make().eval())
            except ConvertError:
                continue
        x = case.rows(case.input())
        x = x if case.tokens else x.astype(np.float32)
        x = x if case.tokens else x.reshape(*x.shape[:2], *made.graph.inputs[0].shape)
        file = ModelFile(made.graph, made.tensors)
        results = [Model(file, isa=isa, reproducible=True)(x) for isa in HERE]
        try:
            assert_same(results)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_random_onnx_operators(op: str, rng: np.random.Generator) -> None:
    pytest.importorskip("onnx")
    from onnx_zoo import draw

    from fastlstm.sources.onnx import read

    seen = 0
    for _ in range(120):
        try:
            # Lengths are told to the model itself, and a start of each row is none of its own.
            read_from = read(draw(rng, op, lengths=False, start=False).model())
        except ConvertError:
            continue
        file = ModelFile(read_from.graph, read_from.tensors)
        made = [Model(file, isa=isa, reproducible=True) for isa in HERE]
        x = input_for(made[0], rng, 9, 5)
        assert_same([m(x) for m in made])
        seen += 1
    assert seen > 10


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38, 1e30, 1e-42, -1e-42, -0.0])
def test_of_odd_numbers(odd: float, rng: np.random.Generator) -> None:
    for size in (5, 19):
        for kind, layers in every_kind(size).items():
            model = build(layers, rng)
            if model.takes_tokens:
                continue
            x = input_for(model, rng, 9, 3)
            x[3, 0], x[4, 1, 0], x[5, 2, -1] = odd, odd, odd
            results = [m(x) for m in models(model_file_of(model))]
            try:
                assert_same(results)
            except AssertionError as error:
                raise AssertionError(f"{kind} of {size}: {error}") from error
