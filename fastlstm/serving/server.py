"""One process that serves models: what is started, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import grpc
import uvicorn
from starlette.responses import Response
from starlette.routing import Route, Router, WebSocketRoute

import fastlstm
from fastlstm.serving import grpc_v2
from fastlstm.serving.access import Access
from fastlstm.serving.connections import limited
from fastlstm.serving.http_v2 import Endpoints, not_found
from fastlstm.serving.metrics import Metrics
from fastlstm.serving.repository import Repository
from fastlstm.serving.served import Served
from fastlstm.serving.store import Store
from fastlstm.serving.websocket import Sockets

__all__ = ["Addresses", "Options", "serve"]

SPARE_FILES = 128  # beside those of clients
GRACE_SECONDS = 5.0  # for what is under way when the server stops

log = logging.getLogger("fastlstm.serving")


@dataclass(frozen=True)
class Options:
    """How a server serves; the defaults are those of ``fastlstm serve``.

    Parameters
    ----------
    host : str
    http_port, grpc_port : int
        0 takes a free one.
    most_streams, most_pending, most_steps, most_batch : int
        Of each model, as :class:`fastlstm.serving.served.Served` has them.
    most_bytes : int
        Of a message.
    most_clients : int
        Connections over HTTP and WebSocket, and calls over gRPC, at once.
    idle : float
        Seconds without a step after which a sequence ends.
    patience : float
        Seconds that a client is waited for: for its request, and for reading its answers.
    state : str, optional
        The file that keeps sequences over a restart.
    certificate, key : str, optional
        Files in PEM, for TLS.
    access : Access
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    most_streams: int = 4096
    most_pending: int = 4096
    most_steps: int = 4096
    most_batch: int = 256
    most_bytes: int = 2**20
    most_clients: int = 4096
    idle: float = 60.0
    patience: float = 10.0
    state: str | None = None
    certificate: str | None = None
    key: str | None = None
    access: Access = field(default_factory=Access)


@dataclass(frozen=True)
class Addresses:
    """Where a server is reached."""

    http: str
    grpc: str


class _Uvicorn(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    models: dict[str, fastlstm.Model],
    options: Options,
    started: Callable[[Addresses, int], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then answer what has arrived, keep all sequences and return.

    Parameters
    ----------
    models : dict of str to fastlstm.Model
    options : Options
    started : callable
        Told where, and how many sequences were restored, once clients may come.

    Raises
    ------
    OSError
        If an address is taken or a file cannot be read.
    ValueError
        If a file does not hold what it should, or a limit of the system is too low.
    """
    _allow_files(options.most_clients + SPARE_FILES)
    metrics = Metrics()
    served = [_served(name, model, options, metrics) for name, model in models.items()]
    repository = Repository(served)
    tls = _Tls.of(options)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(options.host, options.http_port))
        store = None if options.state is None else Store(options.state)
        if store is not None:
            stack.callback(store.close)
        servicer = grpc_v2.Servicer(repository, options.access, metrics)
        grpc_server, grpc_port = _grpc_server(servicer, options, tls)
        http_server, sockets = _http_server(repository, metrics, options, tls)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
            stack.callback(loop.remove_signal_handler, number)
        restored = 0 if store is None else _restore(store, repository, options)
        http_task: asyncio.Task[None] | None = None
        try:
            await grpc_server.start()
            http_task = asyncio.create_task(http_server.serve([listener]))
            sweeper = asyncio.create_task(_sweep(served, options.idle / 8))
            scheme = "http" if tls is None else "https"
            started(
                Addresses(
                    f"{scheme}://{_address(options.host, listener.getsockname()[1])}",
                    _address(options.host, grpc_port),
                ),
                restored,
            )
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({stopped, http_task, sweeper}, return_when=asyncio.FIRST_COMPLETED)
            for task in (http_task, sweeper):
                if task.done():  # never, but for a defect: say so, and still keep the sequences
                    task.result()
            sweeper.cancel()
        finally:
            for one in served:
                one.stopping = True
            servicer.stop()
            await asyncio.gather(grpc_server.stop(GRACE_SECONDS), sockets.stop(GRACE_SECONDS))
            http_server.should_exit = True
            if http_task is not None:
                await asyncio.wait({http_task})
            if store is not None:
                count = store.put(
                    (one.name, name, data) for one in served for name, data in one.saved()
                )
                log.info("kept", extra={"fields": {"sequences": count, "file": options.state}})


def _served(name: str, model: fastlstm.Model, options: Options, metrics: Metrics) -> Served:
    counters = metrics.of(name)
    served = Served(
        name,
        model,
        most_streams=options.most_streams,
        most_pending=options.most_pending,
        most_steps=options.most_steps,
        most_batch=options.most_batch,
        idle=options.idle,
        on_batch=counters.requests.add,
    )
    counters.streams = lambda: len(served.pool)
    return served


def _restore(store: Store, repository: Repository, options: Options) -> int:
    """Go on with the sequences of a file; it holds none of them any more then."""
    most = options.most_streams * len(repository.served)

    def check(found: list[tuple[str, Any, bytes]]) -> None:
        for model, name, stream in found:
            if model not in repository.served:
                raise ValueError(
                    f"{options.state!r} holds sequences of model {model!r:.200}, which is not "
                    f"served; serve it under this name, or give another file"
                )
            served = repository.served[model]
            if len(served.sequences) >= options.most_streams:
                raise ValueError(
                    f"{options.state!r} holds more than {options.most_streams} sequences of model "
                    f"{model!r}; raise --max-streams"
                )
            try:
                served.restore(name, stream)
            except ValueError as error:
                raise ValueError(
                    f"{options.state!r} holds sequence {name!r:.80} of model {model!r}, which does "
                    f"not go on: {error}; serve the file that it ran on, or give another --state"
                ) from error

    return store.take(most, check)


async def _sweep(served: list[Served], seconds: float) -> None:
    """Now and then end the sequences that are idle."""
    while True:
        await asyncio.sleep(seconds)
        for one in served:
            if ended := one.sweep():
                log.info("idle", extra={"fields": {"model": one.name, "ended": ended}})


@dataclass(frozen=True)
class _Tls:
    """A certificate and its key."""

    certificate: bytes
    key: bytes

    @classmethod
    def of(cls, options: Options) -> _Tls | None:
        if options.certificate is None or options.key is None:
            return None
        found = []
        for path in (options.certificate, options.key):
            with open(path, "rb") as file:
                found.append(file.read())
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                options.certificate, options.key
            )
        except ssl.SSLError as error:
            raise ValueError(
                f"{options.certificate!r} and {options.key!r} are no certificate and its key in "
                f"PEM: {error}"
            ) from None
        return cls(*found)


def _grpc_server(
    servicer: grpc_v2.Servicer, options: Options, tls: _Tls | None
) -> tuple[grpc.aio.Server, int]:
    """A gRPC server that listens, and its port."""
    server = grpc.aio.server(
        maximum_concurrent_rpcs=options.most_clients,
        options=[
            ("grpc.max_receive_message_length", options.most_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server is told that the port is taken
            ("grpc.server_handshake_timeout_ms", int(1000 * options.patience)),
            ("grpc.max_connection_idle_ms", 60_000),  # a client connects again by itself
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ],
    )
    grpc_v2.add_to_server(servicer, server)
    address = _address(options.host, options.grpc_port)
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([(tls.key, tls.certificate)])
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(
            f"cannot listen on {address} for gRPC; is the port taken? Expected a free --grpc-port, "
            f"or 0, and a --host of this machine"
        ) from error
    return server, port


def _http_server(
    repository: Repository, metrics: Metrics, options: Options, tls: _Tls | None
) -> tuple[_Uvicorn, Sockets]:
    """A server of HTTP and WebSocket that is not started yet."""
    sockets = Sockets(repository, options.access, metrics, options.patience)
    endpoints = Endpoints(repository, options.access, metrics, options.most_bytes)
    app = Router(  # not Starlette, whose layers wrap each message of a WebSocket
        routes=[
            *endpoints.routes(),
            WebSocketRoute("/v2/models/{model}/stream", sockets),
            *_pages(),
        ],
        default=not_found,
    )
    http, websocket = limited(options.most_clients, options.patience)
    config = uvicorn.Config(
        app,
        http=http,
        ws=websocket,
        ws_max_size=options.most_bytes,
        ws_per_message_deflate=False,  # numbers do not shrink
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=options.most_clients,
        timeout_graceful_shutdown=int(GRACE_SECONDS),
        ssl_certfile=options.certificate if tls else None,
        ssl_keyfile=options.key if tls else None,
    )
    return _Uvicorn(config), sockets


PAGE_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


def _pages() -> list[Route]:
    """The page that streams, whose parts are read once."""
    folder = resources.files("fastlstm.serving") / "page"
    routes = []
    for file in folder.iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        kind = PAGE_TYPES[os.path.splitext(file.name)[1]]
        routes.append(Route(path, _page(file.read_bytes(), kind)))
    return routes


def _page(content: bytes, kind: str) -> Callable[[Any], Any]:
    headers = {
        # The page runs what came with it, and speaks to its own server.
        "content-security-policy": "default-src 'self'; connect-src 'self' ws: wss:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }

    async def page(request: Any) -> Response:
        return Response(content, media_type=kind, headers=headers)

    return page


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        text = f"cannot listen on {_address(host, port)} for HTTP: {error.strerror or error}"
        raise OSError(text) from None


def _allow_files(count: int) -> None:
    """Allow this process so many open files: each client is one."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now == resource.RLIM_INFINITY or now >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
    except (ValueError, OSError, OverflowError):
        raise ValueError(
            f"{count} files are too many, the system allows {most}: lower --max-clients, or raise "
            f"the limit with ulimit -n"
        ) from None
