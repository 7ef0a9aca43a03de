"""The Open Inference Protocol over gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from fastlstm.serving.access import Access
from fastlstm.serving.metrics import Metrics
from fastlstm.serving.repository import VERSION, Repository
from fastlstm.serving.requests import (
    SEQUENCE,
    STATE,
    Answer,
    Array,
    Kind,
    Request,
    RequestError,
    check_parameters,
)
from fastlstm.serving.served import Pending, Served
from fastlstm.serving.tensors import as_array, as_bytes, from_numbers

__all__ = ["Servicer", "add_to_server"]

STATUS = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.UNKNOWN: grpc.StatusCode.NOT_FOUND,
    Kind.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.STOPPING: grpc.StatusCode.UNAVAILABLE,
    Kind.UNAUTHORISED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.FAILED: grpc.StatusCode.INTERNAL,
}

# Where a message keeps the numbers of a tensor that is not sent as bytes.
CONTENTS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
}

MOST_AHEAD = 32  # requests of one stream that are queued before the first is answered

add_to_server = add_GRPCInferenceServiceServicer_to_server
log = logging.getLogger("fastlstm.serving")


class Servicer(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers the calls of one server.

    Parameters
    ----------
    repository : Repository
    access : Access
    metrics : Metrics
    """

    def __init__(self, repository: Repository, access: Access, metrics: Metrics) -> None:
        self._repository, self._access, self._metrics = repository, access, metrics
        self._counters = {name: metrics.of(name) for name in repository.served}
        self._readers: set[asyncio.Task[None]] = set()

    # Names of the protocol.
    # ruff: noqa: N802

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=self._repository.is_ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            ready = not self._repository.find(request.name, request.version).stopping
        except RequestError:
            ready = False
        return messages.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        await self._check(context)
        return messages.ServerMetadataResponse(**self._repository.metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._check(context)
        try:
            found = self._repository.model_metadata(request.name, request.version)
        except RequestError as refusal:
            await self._abort(context, refusal)
        return messages.ModelMetadataResponse(**found)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        await self._check(context)
        if request.repository_name:
            text = f"there is no repository {request.repository_name!r:.200}; expected no name"
            await self._abort(context, RequestError(Kind.UNKNOWN, text))
        index = messages.RepositoryIndexResponse.ModelIndex
        models = [index(**entry) for entry in self._repository.index(request.ready)]
        return messages.RepositoryIndexResponse(models=models)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        began = time.perf_counter()
        try:
            self._access.check(_authorization(context))
            served, pending = self._submit(request)
            answer = await pending.answer()
        except RequestError as refusal:
            await self._abort(context, refusal)
        response = _response(served, answer, request.id)
        self._count(served, began, pending)
        return response

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """Answers in the order of the requests, which are queued as they arrive.

        Requests of one sequence run in their order; those of many share calls of their pool.
        """
        await self._check(context)
        queued: deque[tuple[Any, float, Served | None, Pending | RequestError]] = deque()
        arrived, room = asyncio.Event(), asyncio.Event()
        reader = asyncio.create_task(self._read(requests, queued, arrived, room))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        reader.add_done_callback(lambda done: arrived.set())
        try:
            while True:
                while not queued and not reader.done():
                    arrived.clear()
                    await arrived.wait()
                if not queued:
                    break
                request, began, served, pending = queued.popleft()
                room.set()
                try:
                    if served is None or isinstance(pending, RequestError):
                        raise pending  # type: ignore[misc]
                    answer = await pending.answer()
                except RequestError as refusal:
                    self._refuse(refusal)
                    response = messages.ModelStreamInferResponse(error_message=str(refusal))
                    response.infer_response.id = request.id
                    response.infer_response.model_name = request.model_name
                    yield response
                    continue
                response = messages.ModelStreamInferResponse(
                    infer_response=_response(served, answer, request.id)
                )
                self._count(served, began, pending)
                yield response
        finally:
            reader.cancel()
        if not self._repository.is_ready:
            await self._abort(context, RequestError(Kind.STOPPING, "the server is stopping"))

    async def _read(
        self,
        requests: AsyncIterator[Any],
        queued: deque[Any],
        arrived: asyncio.Event,
        room: asyncio.Event,
    ) -> None:
        """Queue the requests of a stream, no more than some ahead of their answers."""
        async for request in requests:
            began = time.perf_counter()
            try:
                queued.append((request, began, *self._submit(request)))
            except RequestError as refusal:
                queued.append((request, began, None, refusal))
            arrived.set()
            while len(queued) >= MOST_AHEAD:
                room.clear()
                await room.wait()

    def stop(self) -> None:
        """Read no more of any stream; what is queued is answered."""
        for reader in self._readers:
            reader.cancel()

    def _submit(self, request: Any) -> tuple[Served, Pending]:
        served = self._repository.find(request.model_name, request.model_version)
        return served, served.submit(_request(served, request))

    def _count(self, served: Served, began: float, pending: Pending) -> None:
        counters = self._counters[served.name]
        counters.steps(pending.made)
        counters.seconds["grpc"](time.perf_counter() - began)

    def _refuse(self, refusal: RequestError) -> None:
        self._metrics.refused(refusal.kind)
        log.warning("refused over gRPC", extra={"fields": {"why": str(refusal)}})

    async def _check(self, context: Any) -> None:
        try:
            self._access.check(_authorization(context))
        except RequestError as refusal:
            await self._abort(context, refusal)

    async def _abort(self, context: Any, refusal: RequestError) -> None:
        self._refuse(refusal)
        await context.abort(STATUS[refusal.kind], str(refusal))


def _authorization(context: Any) -> str | bytes | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            found: str | bytes = value
            return found
    return None


def _parameter(parameters: Any, name: str, kind: type | tuple[type, ...], otherwise: Any) -> Any:
    """One of a request's, which must be of a kind."""
    if name not in parameters:
        return otherwise
    given = parameters[name]
    value = getattr(given, given.WhichOneof("parameter_choice") or "", otherwise)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise RequestError(Kind.INVALID, f"parameter {name} is {value!r:.80}, of another kind")
    return value


def _request(served: Served, message: Any) -> Request:
    """A request of the protocol, in ours.

    Raises
    ------
    RequestError
        If it does not fit the model.
    """
    parameters, raw = message.parameters, message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(
            Kind.INVALID,
            f"raw_input_contents has {len(raw)} tensors; expected {len(message.inputs)}, as inputs",
        )
    inputs: dict[str, Array] = {}
    for i, given in enumerate(message.inputs):
        tensor = served.tensor_in(given.name)
        check_parameters(f"input {given.name}", given.parameters)
        if given.name in inputs:
            raise RequestError(Kind.INVALID, f"input {given.name!r:.200} is given twice")
        if raw:
            array = as_array(tensor, given.datatype, given.shape, raw[i])
        else:
            numbers = getattr(given.contents, CONTENTS[tensor.datatype])
            array = from_numbers(tensor, given.datatype, given.shape, numbers)
        inputs[given.name] = array
    state = inputs.pop(STATE, None) if served.keeps_state else None
    sequence = start = end = None
    if parameters:
        check_parameters("the request", parameters, SEQUENCE)
        sequence = _parameter(parameters, "sequence_id", (int, str), None) or None
        start = _parameter(parameters, "sequence_start", bool, False)
        end = _parameter(parameters, "sequence_end", bool, False)
    for output in message.outputs:
        check_parameters(f"output {output.name}", output.parameters)
    return Request(
        inputs,
        sequence,
        bool(start),
        bool(end),
        None if state is None else state.tobytes(),
        tuple(output.name for output in message.outputs),
    )


def _response(served: Served, answer: Answer, name: str) -> Any:
    response = messages.ModelInferResponse(model_name=served.name, model_version=VERSION, id=name)
    response.parameters["sequence_steps"].int64_param = answer.steps
    for output, array in answer.outputs.items():
        response.outputs.add(
            name=output, datatype=served.outputs[output].datatype, shape=array.shape
        )
        response.raw_output_contents.append(as_bytes(array))
    if answer.state is not None:
        response.outputs.add(name=STATE, datatype="UINT8", shape=[len(answer.state)])
        response.raw_output_contents.append(answer.state)
    return response
