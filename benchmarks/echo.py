"""The floor of fastlstm serve: servers by the same libraries that have no model.

``python benchmarks/echo.py ANSWER`` answers every message, over gRPC by the stubs of tritonclient
and over WebSocket by an ASGI application, with so many bytes of zeros, and does nothing else.
``--ws`` and ``--loop`` choose other parts of uvicorn, to compare them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import uvicorn
import uvloop
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

MOST_CLIENTS = 8192


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers over gRPC."""

    # Names of the protocol.
    # ruff: noqa: N802

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        return messages.ModelInferResponse(raw_output_contents=[self._answer])

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        async for _ in requests:
            response = messages.ModelInferResponse(raw_output_contents=[self._answer])
            yield messages.ModelStreamInferResponse(infer_response=response)


def application(answer: bytes) -> Any:
    """Answers over WebSocket, which begin with a hello."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "{}"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": answer})

    return app


class Uvicorn(uvicorn.Server):
    """Leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(answer: bytes, websockets: Any) -> None:
    grpc_server = grpc.aio.server(maximum_concurrent_rpcs=MOST_CLIENTS)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(answer), grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application(answer),
        http="httptools",
        ws=websockets,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=MOST_CLIENTS,
    )
    addresses = {
        "http": f"http://127.0.0.1:{listener.getsockname()[1]}",
        "grpc": f"127.0.0.1:{port}",
    }
    print(json.dumps(addresses), flush=True)
    await Uvicorn(config).serve([listener])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answer", type=int, help="bytes of an answer")
    parser.add_argument("--ws", default="websockets-sansio", help="of uvicorn")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    given = parser.parse_args()
    loop = uvloop.new_event_loop if given.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(serve(bytes(given.answer), given.ws))


if __name__ == "__main__":
    main()
