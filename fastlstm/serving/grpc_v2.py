"""The Open Inference Protocol over gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
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


class _Asked:
    """A request of a stream, which is queued or refused."""

    __slots__ = ("began", "pending", "refusal", "request", "served")

    served: Served
    pending: Pending

    def __init__(self, request: Any) -> None:
        self.request, self.began = request, time.perf_counter()
        self.refusal: RequestError | None = None

    @property
    def is_done(self) -> bool:
        return self.refusal is not None or self.pending.is_done


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
        for name in vars(GRPCInferenceServiceServicer):
            if not name.startswith("_") and name not in vars(Servicer):
                setattr(self, name, self._lacking(name))

    def _lacking(self, name: str) -> Any:
        """The handler of a call of the protocol that is not answered here."""

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{name} is not served; docs/serving.md lists what is",
            )

        return refuse

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
        await self._check(context)
        response = messages.ModelInferResponse()
        try:
            served, pending = self._submit(request)
            _fill(response, served, await pending.answer(), request.id)
        except RequestError as refusal:
            await self._abort(context, refusal)
        self._counters[served.name].answered("grpc", pending.made, time.perf_counter() - began)
        return response

    async def ModelStreamInfer(self, requests: Any, context: Any) -> None:
        """Answers in the order of the requests, which are queued as they arrive.

        Requests of one sequence run in their order; those of many share calls of their pool.
        """
        await self._check(context)
        queued: deque[_Asked] = deque()
        done, room = asyncio.Event(), asyncio.Event()
        reader = asyncio.create_task(self._read(context, queued, done.set, room))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        reader.add_done_callback(lambda _: done.set())
        try:
            while queued or not reader.done():
                if not queued or not queued[0].is_done:
                    done.clear()
                    await done.wait()
                    continue
                asked = queued.popleft()
                room.set()
                await context.write(await self._answered(asked))
        finally:
            reader.cancel()
        if not self._repository.is_ready:
            await self._abort(context, RequestError(Kind.STOPPING, "the server is stopping"))
        try:
            reader.result()
        except DecodeError:
            await self._abort(
                context, RequestError(Kind.INVALID, "a message is no ModelInferRequest")
            )

    async def _read(
        self, context: Any, queued: deque[_Asked], done: Callable[[], None], room: asyncio.Event
    ) -> None:
        """Queue the requests of a stream, no more than some ahead of their answers."""
        read, eof = context.read, grpc.aio.EOF
        while (request := await read()) is not eof:
            asked = _Asked(request)
            try:
                asked.served, asked.pending = self._submit(request)
                asked.pending.on_done = done
            except RequestError as refusal:
                asked.refusal = refusal
                done()
            queued.append(asked)
            while len(queued) >= MOST_AHEAD:
                room.clear()
                await room.wait()

    async def _answered(self, asked: _Asked) -> Any:
        """The answer to a request that is done, or why there is none."""
        response = messages.ModelStreamInferResponse()
        infer, request = response.infer_response, asked.request
        try:
            if asked.refusal is not None:
                raise asked.refusal
            _fill(infer, asked.served, await asked.pending.answer(), request.id)
        except RequestError as refusal:
            self._refuse(refusal)
            response.error_message = str(refusal)
            infer.id, infer.model_name = request.id, request.model_name
        else:
            took = time.perf_counter() - asked.began
            self._counters[asked.served.name].answered("grpc", asked.pending.made, took)
        return response

    def stop(self) -> None:
        """Read no more of any stream; what is queued is answered."""
        for reader in self._readers:
            reader.cancel()

    def _submit(self, request: Any) -> tuple[Served, Pending]:
        served = self._repository.find(request.model_name, request.model_version)
        return served, served.submit(_request(served, request))

    def _refuse(self, refusal: RequestError) -> None:
        self._metrics.refused(refusal.kind)
        log.warning("refused over gRPC", extra={"fields": {"why": str(refusal)}})

    async def _check(self, context: Any) -> None:
        if self._access.is_open:
            return
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


def _chosen(given: Any) -> Any:
    """The value of a parameter, None without one."""
    choice = given.WhichOneof("parameter_choice")
    return None if choice is None else getattr(given, choice)


def _value(given: dict[str, Any], name: str, kind: type | tuple[type, ...], otherwise: Any) -> Any:
    """One of a request's parameters, which must be of a kind."""
    value = given.get(name, otherwise)
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
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(
            Kind.INVALID,
            f"raw_input_contents has {len(raw)} tensors; expected {len(message.inputs)}, as inputs",
        )
    inputs: dict[str, Array] = {}
    for i, given in enumerate(message.inputs):
        name = given.name
        tensor = served.tensor_in(name)
        if given.parameters:
            check_parameters(f"input {name}", given.parameters)
        if name in inputs:
            raise RequestError(Kind.INVALID, f"input {name!r:.200} is given twice")
        datatype, shape = given.datatype, given.shape[:]
        if raw:
            if given.HasField("contents"):
                raise RequestError(
                    Kind.INVALID, f"input {name!r} is given as contents and as raw_input_contents"
                )
            array = as_array(tensor, datatype, shape, raw[i])
        else:
            numbers = getattr(given.contents, CONTENTS[tensor.datatype])
            array = from_numbers(tensor, datatype, shape, numbers)
        inputs[name] = array
    request = Request(inputs)
    if STATE in inputs and served.keeps_state:
        request.state = inputs.pop(STATE).tobytes()
    if parameters := message.parameters:
        check_parameters("the request", parameters, SEQUENCE)
        values = {name: _chosen(parameters[name]) for name in parameters}
        request.sequence = _value(values, "sequence_id", (int, str), 0) or None
        request.start = _value(values, "sequence_start", bool, False)
        request.end = _value(values, "sequence_end", bool, False)
    if message.outputs:
        for output in message.outputs:
            check_parameters(f"output {output.name}", output.parameters)
        request.outputs = tuple(output.name for output in message.outputs)
    return request


def _fill(response: Any, served: Served, answer: Answer, name: str) -> None:
    """Put an answer into a message."""
    response.model_name, response.model_version, response.id = served.name, VERSION, name
    response.parameters["sequence_steps"].int64_param = answer.steps
    for output, array in answer.outputs.items():
        datatype = served.outputs[output].datatype
        response.outputs.add(name=output, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(as_bytes(array))
    if answer.state is not None:
        response.outputs.add(name=STATE, datatype="UINT8", shape=[len(answer.state)])
        response.raw_output_contents.append(answer.state)
