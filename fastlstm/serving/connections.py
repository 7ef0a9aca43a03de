"""Connections that are not waited for without end: uvicorn's, with limits it does not have."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

__all__ = ["limited"]

MOST_HEAD = 2**16  # bytes of a request before its body
MOST_FRAGMENTS = 1024  # of a WebSocket's message

log = logging.getLogger("fastlstm.serving")


def limited(
    most_clients: int, seconds: float
) -> tuple[type[HttpToolsProtocol], type[WebSocketsSansIOProtocol]]:
    """The protocols of HTTP and WebSocket, for so many clients together.

    Parameters
    ----------
    most_clients : int
        More are disconnected at once.
    seconds : float
        In which a request must have arrived whole, and in which a client must read something of
        what waits for it.
    """

    class Reader:
        """Cuts off a client that does not read, whose answers would wait for ever."""

        loop: asyncio.AbstractEventLoop
        transport: asyncio.Transport
        unread: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            self.unread = self.loop.call_later(seconds, self.cut, "does not read its answers")
            super().pause_writing()  # type: ignore[misc]

        def resume_writing(self) -> None:
            if self.unread is not None:
                self.unread.cancel()
            super().resume_writing()  # type: ignore[misc]

        def connection_lost(self, exc: Exception | None) -> None:
            if self.unread is not None:
                self.unread.cancel()
            super().connection_lost(exc)  # type: ignore[misc]

        def cut(self, why: str) -> None:
            log.warning("disconnected", extra={"fields": {"why": why}})
            self.transport.abort()

    class Socket(Reader, WebSocketsSansIOProtocol):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.handshake_initiated:  # all of it has come, and is none
                self.cut("an upgrade without a handshake")

        def handle_cont(self, event: Frame) -> None:
            if len(self.frames) >= MOST_FRAGMENTS:  # empty ones have no end by their size
                self.cut("a message of too many fragments")
                return
            super().handle_cont(event)

    class Http(Reader, HttpToolsProtocol):
        asked: asyncio.TimerHandle | None = None
        refused = False
        head: int | None = 0  # bytes of a request's head so far; None: it is whole

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= most_clients:
                self.refused, self.transport = True, transport
                self.cut("too many clients")
                return
            super().connection_made(transport)
            self.wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self.arrived()
            if not self.refused:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.refused:
                return
            super().data_received(data)
            if self.head is not None:
                self.head += len(data)
                if self.head > MOST_HEAD:
                    self.refused = True
                    self.cut("a request's head is too long")

        def on_message_begin(self) -> None:
            if self.asked is None:
                self.wait()
            self.head = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.head = None
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self.arrived()
            super().on_message_complete()

        def handle_websocket_upgrade(self) -> None:
            self.arrived()
            super().handle_websocket_upgrade()

        def wait(self) -> None:
            self.asked = self.loop.call_later(seconds, self.cut, "sends no whole request")

        def arrived(self) -> None:
            if self.asked is not None:
                self.asked.cancel()
                self.asked = None

    return Http, Socket
