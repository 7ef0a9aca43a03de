"""``examples/ray_serve``: a stream is where its last answer left it, in whichever replica.

Ray itself is not started: replicas here are objects of one process that share a store.
``python examples/ray_serve/killed.py MODEL`` kills one of Ray's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import example_programs
import numpy as np
import pytest

import fastlstm

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")
pytest.importorskip("tritonclient.grpc", reason="it serves what '.[serve]' serves")

T, I = 3, 5  # noqa: E741


class Called:
    """A method of an actor, as it is called."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    async def remote(self, *given: Any) -> Any:
        await asyncio.sleep(0)
        return self.method(*given)


class RayContext:
    """What Ray hands over with a request."""

    code = details = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


class Cluster:
    """Two replicas of a model, and the store of their streams."""

    def __init__(self, path: str) -> None:
        import replicas
        import store

        self.replicas, self.path, self.store = replicas, path, store.Store(3600.0)
        self.get, self.put = Called(self.store.get), Called(self.store.put)
        self.two = [self.new(), self.new()]
        self.context = RayContext()

    def new(self) -> Any:
        """A replica that has no stream."""
        return self.replicas.Replica(self.path, self)

    def request(self, x: np.ndarray, id: str = "", **parameters: bool) -> Any:
        """The rows (T, I) of sequence 7."""
        request = self.replicas.messages.ModelInferRequest(model_name="model", id=id)
        request.inputs.add(name="input", datatype="FP32", shape=x.shape)
        request.raw_input_contents.append(x.tobytes())
        request.parameters["sequence_id"].int64_param = 7
        for name, value in parameters.items():
            request.parameters[name].bool_param = value
        return request

    async def step(self, which: int, x: np.ndarray, id: str = "", **parameters: bool) -> bytes:
        """What one of the two answers."""
        self.context = RayContext()
        request = self.request(x, id, **parameters)
        answer = await self.two[which].ModelInfer(request, self.context)
        return bytes(answer.raw_output_contents[0])

    async def refusal(self, which: int, x: np.ndarray, id: str = "") -> str:
        """The status that a request is refused with."""
        with pytest.raises(self.replicas.RefusedError):
            await self.step(which, x, id)
        return str(self.context.code.name)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rng: np.random.Generator) -> Cluster:
    monkeypatch.syspath_prepend(str(example_programs.EXAMPLES / "ray_serve"))
    shapes = {"weight_ih_l0": (76, I), "weight_hh_l0": (76, 19)}
    shapes |= {"bias_ih_l0": (76,), "bias_hh_l0": (76,)}
    weights = {name: rng.uniform(-0.3, 0.3, shape) for name, shape in shapes.items()}
    fastlstm.convert(weights, tmp_path / "model.safetensors")
    return Cluster(str(tmp_path / "model.safetensors"))


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((12, T, I), np.float32)


def alone(cluster: Cluster, x: np.ndarray) -> list[bytes]:
    """What one stream gives for each block."""
    stream = cluster.two[0].served.model.stream()
    return [stream.run(block).tobytes() for block in x]


def test_a_stream_that_goes_to_and_fro(
    cluster: Cluster, x: np.ndarray, rng: np.random.Generator
) -> None:
    async def test() -> None:
        got = [await cluster.step(0, x[0], sequence_start=True)]
        got += [await cluster.step(int(rng.integers(2)), block) for block in x[1:6]]
        cluster.two = [cluster.new(), cluster.new()]  # both died
        got += [await cluster.step(int(rng.integers(2)), block) for block in x[6:-1]]
        got.append(await cluster.step(0, x[-1], sequence_end=True))
        assert got == alone(cluster, x)
        assert await cluster.refusal(0, x[0]) == "NOT_FOUND"
        assert await cluster.refusal(1, x[0]) == "NOT_FOUND"

    asyncio.run(test())


def test_asked_again(cluster: Cluster, x: np.ndarray) -> None:
    """What was answered, also of the start and the end, is answered again without a step."""

    async def test() -> None:
        ways = [{"sequence_start": True}, {}, {"sequence_end": True}]
        for number, (block, way) in enumerate(zip(x, ways, strict=False)):
            for which in (0, 0, 1, 1):
                answer = await cluster.step(which, block, f"request {number}", **way)
                assert answer == alone(cluster, x)[number]
        assert cluster.store.changes == 3

    asyncio.run(test())


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("then", [0, 1])
def test_a_store_that_is_gone_for_a_time(
    cluster: Cluster, x: np.ndarray, kept: bool, then: int
) -> None:
    """Whether it had kept the step or not: asked again, a request steps once."""
    from ray.exceptions import RayActorError

    def gone(*given: Any) -> None:
        if kept:
            cluster.store.put(*given)
        raise RayActorError

    async def test() -> None:
        first = await cluster.step(0, x[0], "a", sequence_start=True)
        cluster.put = Called(gone)
        assert await cluster.refusal(0, x[1], "b") == "UNAVAILABLE"
        cluster.put = Called(cluster.store.put)
        got = [first, await cluster.step(then, x[1], "b"), await cluster.step(0, x[2], "c")]
        assert got == alone(cluster, x[:3])

    asyncio.run(test())


def test_a_replica_that_has_what_is_past(cluster: Cluster, x: np.ndarray) -> None:
    """One steps a stream that the other one has started anew."""

    async def test() -> None:
        await cluster.step(0, x[0], sequence_start=True)
        await cluster.step(0, x[1])
        got = [await cluster.step(1, x[2], sequence_start=True), await cluster.step(0, x[3])]
        assert got == alone(cluster, x[2:4])

    asyncio.run(test())


def test_requests_of_one_stream_at_once(cluster: Cluster, x: np.ndarray) -> None:
    """In two replicas at a time: each is a step, one after another."""

    async def test() -> None:
        await cluster.step(0, x[0], sequence_start=True)
        got = await asyncio.gather(*(cluster.step(n % 2, x[0]) for n in range(8)))
        assert sorted(got) == sorted(alone(cluster, x[[0] * 9])[1:])

    asyncio.run(test())


def test_a_call_of_many_requests(cluster: Cluster, x: np.ndarray) -> None:
    """A request that is refused leaves the call open."""

    async def requests() -> AsyncIterator[Any]:
        yield cluster.request(x[0])
        yield cluster.request(x[0], sequence_start=True)
        yield cluster.request(x[1])

    async def test() -> None:
        calls = cluster.two[0].ModelStreamInfer(requests(), RayContext())
        refused, *answers = [answer async for answer in calls]
        assert "its first request needs sequence_start" in refused.error_message
        got = [answer.infer_response.raw_output_contents[0] for answer in answers]
        assert got == alone(cluster, x[:2])

    asyncio.run(test())


def test_what_is_idle_is_forgotten(
    cluster: Cluster, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a replica that is full, and goes on with it when it is asked; by the store for good."""

    async def test() -> None:
        got = [await cluster.step(0, x[0], sequence_start=True)]
        monkeypatch.setattr(cluster.replicas, "STREAMS", 1)
        cluster.two[0].served.idle = 0.0
        cluster.two[0].make_room()
        assert not cluster.two[0].served.sequences
        assert not cluster.two[0].here
        got.append(await cluster.step(0, x[1]))
        assert got == alone(cluster, x[:2])
        cluster.store.idle = -1.0
        assert await cluster.refusal(1, x[2]) == "NOT_FOUND"

    asyncio.run(test())
