"""The Open Inference Protocol over HTTP: JSON, and tensors as bytes behind it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.websockets import WebSocketClose

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
from fastlstm.serving.served import Served
from fastlstm.serving.tensors import Tensor, as_array, as_bytes, from_numbers

__all__ = ["STATUS", "Endpoints", "not_found"]

STATUS = {
    Kind.INVALID: 400,
    Kind.UNKNOWN: 404,
    Kind.FULL: 429,
    Kind.STOPPING: 503,
    Kind.UNAUTHORISED: 401,
    Kind.FAILED: 500,
}

JSON_BYTES = "inference-header-content-length"  # of a body whose rest is tensors

log = logging.getLogger("fastlstm.serving")

Handler = Callable[[HttpRequest], Awaitable[Response]]


class Endpoints:
    """The routes of ``/v2`` and ``/metrics``.

    Parameters
    ----------
    repository : Repository
    access : Access
    metrics : Metrics
    most_bytes : int
        Of a request's body.
    """

    def __init__(
        self, repository: Repository, access: Access, metrics: Metrics, most_bytes: int
    ) -> None:
        self._repository, self._access, self._metrics = repository, access, metrics
        self._most_bytes = most_bytes
        self._counters = {name: metrics.of(name) for name in repository.served}

    def routes(self) -> list[Route]:
        """Health is open to everybody, the rest is for those with the token."""
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        checked = self._checked
        return [
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2", checked(self._metadata)),
            Route("/v2/repository/index", checked(self._index), methods=["POST"]),
            Route("/metrics", checked(self._scraped)),
            *(Route(path, checked(self._model_metadata)) for path in (model, version)),
            *(Route(f"{path}/ready", checked(self._model_ready)) for path in (model, version)),
            *(
                Route(f"{path}/infer", checked(self._infer), methods=["POST"])
                for path in (model, version)
            ),
        ]

    def _checked(self, handler: Handler) -> Handler:
        """A handler whose refusals are answers."""

        async def answer(request: HttpRequest) -> Response:
            try:
                headers = request.headers
                self._access.check(headers.get("authorization"))
                self._access.check_site(headers.get("origin"), headers.get("host"))
                return await handler(request)
            except RequestError as refusal:
                self._metrics.refused(refusal.kind)
                log.warning("refused over HTTP", extra={"fields": {"why": str(refusal)}})
                return _refused(refusal)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it

        return answer

    async def _live(self, request: HttpRequest) -> Response:
        return Response()

    async def _ready(self, request: HttpRequest) -> Response:
        return Response(status_code=200 if self._repository.is_ready else 503)

    async def _metadata(self, request: HttpRequest) -> Response:
        return _json(self._repository.metadata())

    async def _index(self, request: HttpRequest) -> Response:
        body = await self._body(request)
        asked = _parts(body, None)[0] if body else {}
        check_parameters("the request", asked, ("ready",))
        return _json(self._repository.index(_field(asked, "ready", bool, False)))

    async def _scraped(self, request: HttpRequest) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4")

    async def _model_metadata(self, request: HttpRequest) -> Response:
        return _json(self._repository.model_metadata(*_asked(request)))

    async def _model_ready(self, request: HttpRequest) -> Response:
        stopping = self._repository.find(*_asked(request)).stopping
        return Response(status_code=503 if stopping else 200)

    async def _infer(self, request: HttpRequest) -> Response:
        began = time.perf_counter()
        served = self._repository.find(*_asked(request))
        document, binary = _parts(await self._body(request), request.headers.get(JSON_BYTES))
        asked = _Asked(served, document, binary)
        pending = served.submit(asked.request)
        response = asked.response(await pending.answer())
        took = time.perf_counter() - began
        self._counters[served.name].answered("http", pending.made, took)
        return response

    async def _body(self, request: HttpRequest) -> bytes:
        """A request's body, read no further than it may be long."""
        if encoding := request.headers.get("content-encoding"):
            raise RequestError(
                Kind.INVALID, f"content-encoding is {encoding:.80}; expected none: it is not read"
            )
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self._most_bytes:
                raise RequestError(
                    Kind.INVALID,
                    f"the body is longer than {self._most_bytes} bytes (--max-message)",
                )
            chunks.append(chunk)
        return b"".join(chunks)


async def not_found(scope: Any, receive: Any, send: Any) -> None:
    """Answer what asks for a path that is not there."""
    if scope["type"] == "websocket":
        await WebSocketClose()(scope, receive, send)
        return
    text = f"there is nothing at {scope['path'][:200]!r}; docs/serving.md lists what is served"
    await _refused(RequestError(Kind.UNKNOWN, text))(scope, receive, send)


class _Asked:
    """A request of the protocol, and how its answer is wanted.

    Raises
    ------
    RequestError
        If it does not fit the model.
    """

    def __init__(self, served: Served, document: dict[str, Any], binary: memoryview) -> None:
        self._served = served
        self._name = _field(document, "id", str, "")
        parameters = _field(document, "parameters", dict, {})
        check_parameters("the request", parameters, (*SEQUENCE, "binary_data_output"))
        self._all_binary = _field(parameters, "binary_data_output", bool, False)
        self._binary: dict[str, bool] = {}
        for output in _objects(document, "outputs"):
            settings = _field(output, "parameters", dict, {})
            name = _field(output, "name", str, None)
            check_parameters(f"output {name}", settings, ("binary_data",))
            self._binary[name] = _field(settings, "binary_data", bool, self._all_binary)
        inputs = _arrays(served, _objects(document, "inputs"), binary)
        state = inputs.pop(STATE, None) if served.keeps_state else None
        self.request = Request(
            inputs,
            _field(parameters, "sequence_id", (int, str), None) or None,
            _field(parameters, "sequence_start", bool, False),
            _field(parameters, "sequence_end", bool, False),
            None if state is None else state.tobytes(),
            tuple(self._binary),
        )

    def response(self, answer: Answer) -> Response:
        """The answer as it was asked for."""
        described: list[dict[str, Any]] = []
        binary: list[bytes] = []
        for name, array in answer.outputs.items():
            self._add(self._served.outputs[name], array.shape, array, described, binary)
        if answer.state is not None:
            state = answer.state
            self._add(self._served.state, (len(state),), state, described, binary)
        head: dict[str, Any] = {
            "model_name": self._served.name,
            "model_version": VERSION,
            "parameters": {"sequence_steps": answer.steps},
            "outputs": described,
        }
        if self._name:
            head["id"] = self._name
        return _json(head, binary)

    def _add(
        self,
        tensor: Tensor,
        shape: tuple[int, ...],
        numbers: Array | bytes,
        described: list[dict[str, Any]],
        binary: list[bytes],
    ) -> None:
        entry = tensor.to_dict() | {"shape": list(shape)}
        if self._binary.get(tensor.name, self._all_binary):
            data = numbers if isinstance(numbers, bytes) else as_bytes(numbers)
            entry["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            entry["data"] = (
                list(numbers) if isinstance(numbers, bytes) else numbers.ravel().tolist()
            )
        described.append(entry)


def _asked(request: HttpRequest) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _parts(body: bytes, header: str | None) -> tuple[dict[str, Any], memoryview]:
    """A body's JSON, and the bytes behind it."""
    size = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 16 and int(header) <= size):
            raise RequestError(
                Kind.INVALID,
                f"{JSON_BYTES} is {header:.80}; expected the bytes of the JSON, at most {size}",
            )
        size = int(header)
    try:
        document = json.loads(body[:size])
    except (ValueError, RecursionError) as error:
        raise RequestError(Kind.INVALID, f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise RequestError(Kind.INVALID, "the body is not a JSON object")
    return document, memoryview(body)[size:]


def _field(
    given: Mapping[str, Any], name: str, kind: type | tuple[type, ...], otherwise: Any
) -> Any:
    """A field of a JSON object, which must be of a kind."""
    if name not in given:
        if otherwise is None and kind is str:
            raise RequestError(Kind.INVALID, f"{name!r} is missing")
        return otherwise
    value = given[name]
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise RequestError(Kind.INVALID, f"{name!r} is {value!r:.80}, of another kind")
    return value


def _objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _field(document, name, list, [])
    if not all(isinstance(entry, dict) for entry in found):
        raise RequestError(Kind.INVALID, f"{name!r} holds what is no object")
    return found


def _arrays(served: Served, given: list[dict[str, Any]], binary: memoryview) -> dict[str, Array]:
    """The inputs, those in JSON and those among the bytes behind it."""
    found: dict[str, Array] = {}
    taken = 0
    for entry in given:
        name = _field(entry, "name", str, None)
        tensor = served.tensor_in(name)
        if name in found:
            raise RequestError(Kind.INVALID, f"input {name!r:.200} is given twice")
        datatype, shape = _field(entry, "datatype", str, None), _field(entry, "shape", list, [])
        if not all(type(n) is int for n in shape):
            raise RequestError(Kind.INVALID, f"the shape of input {name!r} is {str(shape)[:80]}")
        settings = _field(entry, "parameters", dict, {})
        check_parameters(f"input {name}", settings, ("binary_data_size",))
        size = _field(settings, "binary_data_size", int, -1)
        if size >= 0 and "data" in entry:
            raise RequestError(Kind.INVALID, f"input {name!r} has data and binary_data_size")
        if size >= 0:
            found[name] = as_array(tensor, datatype, shape, binary[taken : taken + size])
            taken += size
        elif "data" in entry:
            found[name] = from_numbers(tensor, datatype, shape, entry["data"])
        else:
            raise RequestError(
                Kind.INVALID, f"input {name!r} has neither data nor binary_data_size"
            )
    if taken != len(binary):
        raise RequestError(
            Kind.INVALID, f"{len(binary)} bytes follow the JSON; the inputs take {taken} of them"
        )
    return found


def _json(document: Any, binary: list[bytes] | None = None) -> Response:
    try:
        head = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        names = [
            entry["name"]
            for entry in document["outputs"]
            if not all(map(math.isfinite, entry.get("data", ())))
        ]
        raise RequestError(
            Kind.FAILED,
            f"output {', '.join(names)} has numbers that are not finite, which JSON cannot say; "
            f"the steps were made: ask for binary_data",
        ) from None
    if not binary:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *binary]),
        media_type="application/octet-stream",
        headers={JSON_BYTES: str(len(head))},
    )


def _refused(refusal: RequestError) -> Response:
    response = _json({"error": str(refusal)})
    response.status_code = STATUS[refusal.kind]
    if refusal.kind is Kind.UNAUTHORISED:
        response.headers["www-authenticate"] = "Bearer"
    if refusal.kind in (Kind.FULL, Kind.STOPPING):
        response.headers["retry-after"] = "1"
    return response
