"""Live streams behind Ray Serve: the servicer of ``fastlstm serve`` in each replica.

A stream lives in the replica that the router chooses by its session id. Before a step is answered,
what the stream has become is in the store; a replica that does not have a stream, as the one that
had it died, takes it from there. So the router decides how fast an answer is, and not what it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig, gRPCOptions
from store import Kept, Name, Store
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

import fastlstm
from fastlstm.serving.access import Access
from fastlstm.serving.grpc_v2 import Servicer
from fastlstm.serving.metrics import Metrics
from fastlstm.serving.repository import Repository
from fastlstm.serving.served import Served

# Ray pickles a request on its way to a replica, and tritonclient's messages call their module this.
sys.modules.setdefault("grpc_service_pb2", messages)
add_to_server = add_GRPCInferenceServiceServicer_to_server  # Ray finds it here, by its name

STREAMS = 4096  # that a replica holds at once
HELD, KEPT = 60.0, 3600.0  # seconds without a step, for a stream in a replica and in the store


class RefusedError(Exception):
    """Ends a call whose status is set."""


class Context:
    """What the servicer asks of gRPC, of what Ray gives a replica."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def invocation_metadata(self) -> Any:
        return self.given.invocation_metadata()

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.given.set_code(code)
        self.given.set_details(details)
        raise RefusedError(details)


def sequence_of(request: Any) -> tuple[Name | None, bool]:
    """The name of a request's sequence, if it has one, and whether it starts with it."""
    given = request.parameters
    if "sequence_id" not in given:
        return None, False
    kind = given["sequence_id"].WhichOneof("parameter_choice")
    name = getattr(given["sequence_id"], kind) if kind else None
    return name or None, "sequence_start" in given and given["sequence_start"].bool_param


class Replica:
    """One of the processes that hold streams.

    Parameters
    ----------
    path : str
        Of the model, which has to lie there on each machine.
    store : actor handle of Store
    """

    def __init__(self, path: str, store: Any) -> None:
        model = fastlstm.load(path, mmap=True, reproducible=True)
        limits = {"most_streams": STREAMS, "most_pending": 4096, "most_steps": 4096}
        self.served = Served("model", model, **limits, most_batch=256, idle=HELD)
        self.servicer = Servicer(Repository([self.served]), Access(), Metrics())
        self.store = store
        self.here: dict[Name, Kept] = {}  # what the store has of the streams that are here
        self.turns: weakref.WeakValueDictionary[Name, asyncio.Lock] = weakref.WeakValueDictionary()

    # Names of the protocol; Ray hands its context over under this name.
    # ruff: noqa: N802

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:
        return await self.servicer.ServerLive(request, Context(grpc_context))

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:
        return await self.servicer.ServerReady(request, Context(grpc_context))

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:
        return await self.servicer.ServerMetadata(request, Context(grpc_context))

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:
        return await self.servicer.ModelReady(request, Context(grpc_context))

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:
        return await self.servicer.ModelMetadata(request, Context(grpc_context))

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:
        return await self.infer(request, Context(grpc_context))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], grpc_context: Any
    ) -> AsyncIterator[Any]:
        """Answers one request after the other; an error leaves the call open."""
        async for request in requests:
            answer = messages.ModelStreamInferResponse()
            try:
                answer.infer_response.CopyFrom(await self.infer(request, Context(grpc_context)))
            except RefusedError as refusal:
                answer.error_message = str(refusal)
                answer.infer_response.id = request.id
            yield answer

    async def infer(self, request: Any, context: Context) -> Any:
        """Answer a request when the store has what its stream has become."""
        name, starts = sequence_of(request)
        if name is None:
            return await self.servicer.ModelInfer(request, context)
        async with self.turns.setdefault(name, asyncio.Lock()):
            while True:
                try:
                    answer = await self.stepped(name, starts, request, context)
                except RayActorError as error:
                    self.drop(name)
                    text = f"the store of streams does not answer: {type(error).__name__}"
                    await context.abort(grpc.StatusCode.UNAVAILABLE, text)
                except BaseException:
                    self.drop(name)  # what the store has goes on, and what it has not never was
                    raise
                if answer is not None:
                    return answer
                self.drop(name)

    async def stepped(self, name: Name, starts: bool, request: Any, context: Context) -> Any:
        """The answer; None if the stream here was not what the store has, and nothing is kept."""
        if name not in self.here:
            self.make_room()
        known = self.here.get(name) or await self.store.get.remote(name)
        if known is not None and known.request and known.request == request.id:
            return messages.ModelInferResponse.FromString(known.answer)
        if known is not None and known.stream is not None and name not in self.here and not starts:
            self.served.restore(name, known.stream)
        answer = await self.servicer.ModelInfer(request, context)
        answer.parameters["replica"].int64_param = os.getpid()
        sequence = self.served.sequences.get(name)
        stream = None if sequence is None else self.served.pool.dumps(sequence.slot)
        follows = None if starts else known.version
        made = request.id, answer.SerializeToString()
        kept = await self.store.put.remote(name, follows, stream, *made)
        if kept is None:
            return None
        if sequence is None:
            self.here.pop(name, None)
        else:
            self.here[name] = kept
        return answer

    def make_room(self) -> None:
        """Forget the streams that are idle, where all places are taken: the store has them."""
        if len(self.served.sequences) >= STREAMS:
            self.served.sweep()
            live = self.served.sequences
            self.here = {name: kept for name, kept in self.here.items() if name in live}

    def drop(self, name: Name) -> None:
        """Forget a stream that is here."""
        self.served.end(name)
        self.here.pop(name, None)


def start(path: str, replicas: int, port: int) -> None:
    """Serve a model over gRPC, on a port of every machine of the cluster that has a replica."""
    options = gRPCOptions(port=port, grpc_servicer_functions=["replicas.add_to_server"])
    serve.start(grpc_options=options)
    kind = ray.remote(num_cpus=0)(Store)
    store = kind.options(name="streams", lifetime="detached", get_if_exists=True).remote(KEPT)
    router = RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
    )
    deployment = serve.deployment(Replica).options(
        num_replicas=replicas,
        max_ongoing_requests=STREAMS,
        request_router_config=router,
        ray_actor_options={"num_cpus": 0.5},
    )
    serve.run(deployment.bind(path, store), name="streams")
