"""Streams over WebSocket: one a connection, binary frames of rows in and out."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from fastlstm.serving.access import Access
from fastlstm.serving.metrics import Metrics
from fastlstm.serving.repository import Repository
from fastlstm.serving.requests import Kind, Request, RequestError
from fastlstm.serving.served import Served
from fastlstm.serving.tensors import as_bytes

__all__ = ["Sockets"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# RFC 6455 and the registry of close codes.
ENDED, GOING_AWAY, RESTART, LATER = 1000, 1001, 1012, 1013
CODES = {
    Kind.INVALID: 1007,
    Kind.UNKNOWN: 1008,
    Kind.FULL: LATER,
    Kind.STOPPING: RESTART,
    Kind.UNAUTHORISED: 1008,
    Kind.FAILED: 1011,
}
END = "end"  # what a client says to have the rows that are still due
MOST_REASON = 123  # bytes of a close frame's text

log = logging.getLogger("fastlstm.serving")


class Sockets:
    """The endpoint ``/v2/models/{model}/stream``, an ASGI application.

    The hello is a JSON object: ``model``, ``input`` and ``output`` (datatype, shape of a row),
    ``max_steps`` of a frame, ``session``, ``steps`` that it has made. Each binary frame of T rows
    is answered by one of T' rows, and the text ``end`` by the rows that are still due, with which
    the stream ends. A connection that ends with code 1000 or 1001 ends its stream too; one that
    breaks leaves it for ``?session=`` of a new connection, until it is idle for too long.

    Parameters
    ----------
    repository : Repository
    access : Access
    metrics : Metrics
    hello_seconds : float
        In which the first frame must come.
    """

    def __init__(
        self, repository: Repository, access: Access, metrics: Metrics, hello_seconds: float
    ) -> None:
        self.repository, self.access, self.metrics = repository, access, metrics
        self.hello_seconds = hello_seconds
        self.counters = {name: metrics.of(name) for name in repository.served}
        self.connections: set[Connection] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        connection = Connection(self, scope, receive, send)
        await receive()  # websocket.connect
        self.connections.add(connection)
        self.metrics.connected()
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            self.metrics.gone()

    async def stop(self, seconds: float) -> None:
        """Answer what is under way, and close every connection, whose stream is kept.

        Those that have not ended after so many seconds, as of clients that do not read, are left.
        """
        end = asyncio.get_running_loop().time() + seconds
        for connection in tuple(self.connections):
            connection.leave(
                RESTART, "the server is stopping; go on with ?session= when it is back"
            )
        while self.connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)


class Connection:
    """One client."""

    def __init__(self, sockets: Sockets, scope: Message, receive: Receive, send: Send) -> None:
        self._sockets, self._scope, self._receive, self._send = sockets, scope, receive, send
        self._task: asyncio.Task[Any] | None = None
        self._waits = False
        self._why: tuple[int, str] | None = None

    async def run(self) -> None:
        """Speak with the client until one of the two has had enough."""
        self._task = asyncio.current_task()
        await self._send({"type": "websocket.accept"})  # a client reads why only of an open one
        try:
            served, name, steps = self._greet()
        except RequestError as refusal:
            await self._refuse(refusal)
            return
        ended = False
        try:
            await self._say_hello(served, name, steps)
            ended = await self._stream(served, name, started=steps is not None)
        except RequestError as refusal:
            await self._refuse(refusal)
        except asyncio.CancelledError:
            if self._why is None:
                raise
            await self._close(*self._why)
        finally:
            sequence = served.sequences.get(name)
            if sequence is not None and sequence.leave == self._idle:
                sequence.leave = None
                if ended:
                    served.end(name)

    def _greet(self) -> tuple[Served, str, int | None]:
        """The model, the session's name, and the steps that it has made if it is an old one."""
        scope = self._scope
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        try:
            asked = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=8)
        except ValueError as error:
            raise RequestError(Kind.INVALID, f"the address asks for too much: {error}") from None
        sockets = self._sockets
        token = asked.get("token")  # browsers send no header of ours with a WebSocket
        sockets.access.check(
            headers.get("authorization") or (f"Bearer {token[0]}" if token else None)
        )
        sockets.access.check_site(headers.get("origin"), headers.get("host"))
        served = sockets.repository.find(scope["path_params"]["model"])
        if served.stopping:
            raise RequestError(Kind.STOPPING, "the server is stopping")
        if len(served.inputs) != 1 or len(served.outputs) != 1:
            raise RequestError(
                Kind.INVALID,
                f"model {served.name!r} has inputs {', '.join(served.inputs)} and outputs "
                f"{', '.join(served.outputs)}; a frame is rows of one: use gRPC or HTTP",
            )
        if "session" not in asked:
            return served, secrets.token_urlsafe(16), None
        name = asked["session"][0]
        sequence = served.sequences.get(name)
        if sequence is None:
            raise RequestError(Kind.UNKNOWN, "there is no such session: it has ended, or was idle")
        if sequence.leave is not None:
            raise RequestError(Kind.FULL, "this session has a connection")
        sequence.leave = self._idle
        return served, name, sequence.steps

    async def _say_hello(self, served: Served, name: str, steps: int | None) -> None:
        (taken,), (given,) = served.inputs.values(), served.outputs.values()
        hello = {
            "model": served.name,
            "input": {"datatype": taken.datatype, "shape": list(taken.row)},
            "output": {"datatype": given.datatype, "shape": list(given.row)},
            "max_steps": served.most_steps,
            "session": name,
            "steps": steps or 0,
        }
        await self._send({"type": "websocket.send", "text": json.dumps(hello)})

    async def _stream(self, served: Served, name: str, started: bool) -> bool:
        """Answer frames until the client goes; whether it meant to end its stream."""
        (tensor,) = served.inputs.values()
        answered = self._sockets.counters[served.name].answered
        receive, send, clock = self._receive, self._send, time.perf_counter
        timer = None
        if not started:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(
                self._sockets.hello_seconds, self.leave, GOING_AWAY, "no frame after the hello"
            )
        try:
            while True:
                self._waits = True
                if self._why is not None:
                    await self._close(*self._why)
                    return False
                message = await receive()
                self._waits = False
                began = clock()
                if message["type"] == "websocket.disconnect":
                    return message.get("code") in (ENDED, GOING_AWAY)
                data = message.get("bytes")
                end = data is None and message.get("text") == END
                if data is None and not end:
                    raise RequestError(
                        Kind.INVALID, f"a text frame; expected binary frames of rows, or {END!r}"
                    )
                data = data or b""
                steps, rest = divmod(len(data), tensor.row_bytes)
                if rest:
                    raise RequestError(
                        Kind.INVALID,
                        f"a frame of {len(data)} bytes; expected a multiple of {tensor.row_bytes}",
                    )
                x = np.frombuffer(data, tensor.dtype).reshape(steps, *tensor.row)
                pending = served.submit(Request({tensor.name: x}, name, not started, end))
                if not started and not end:
                    served.sequences[name].leave = self._idle
                    started = True
                    if timer is not None:
                        timer.cancel()
                (y,) = (await pending.answer()).outputs.values()
                await send({"type": "websocket.send", "bytes": as_bytes(y)})
                answered("websocket", steps, clock() - began)
                if end:
                    await self._close(ENDED, "")
                    return False
        finally:
            if timer is not None:
                timer.cancel()

    def _idle(self, why: str) -> None:
        self.leave(GOING_AWAY, why)

    def leave(self, code: int, why: str) -> None:
        """Close the connection, behind the answer that is under way."""
        self._why = code, why
        if self._waits and self._task is not None:
            self._task.cancel()

    async def _refuse(self, refusal: RequestError) -> None:
        self._sockets.metrics.refused(refusal.kind)
        log.warning("refused over WebSocket", extra={"fields": {"why": str(refusal)}})
        await self._close(CODES[refusal.kind], str(refusal))

    async def _close(self, code: int, why: str) -> None:
        reason = why.encode()[:MOST_REASON].decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": code, "reason": reason})
