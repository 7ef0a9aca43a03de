"""Clients that mean harm, or are broken: they are cut, it is told, and the others do not notice."""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from processes import PATIENCE, Server, serving
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from websockets.sync.client import connect

MOST_BYTES = 2**17
ROWS = 4096  # as many as a frame may have

UPGRADE = (
    "GET /v2/models/{}/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

# HTTP/2: what a client begins with, settings that give each stream a window of no bytes.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_WINDOW = b"\0\0\6\4\0\0\0\0\0" + struct.pack(">HI", 4, 0)


@pytest.fixture(scope="module")
def server(paths) -> Iterator[Server]:
    """One that waits a second for slow clients, and takes small messages."""
    limits = ["--patience", "3", "--max-message", str(MOST_BYTES)]
    with serving({"plain": paths["plain"]}, *limits) as server:
        yield server
        assert server.process.poll() is None, server.end()
        server.end()
        assert len(server.errors) < 100_000
        told = {(line["event"], line.get("why", "")) for line in server.log()}
        assert ("disconnected", "does not read its answers") in told
        assert ("disconnected", "sends no whole request") in told


@pytest.fixture
def others(server, models, rng) -> Iterator[Callable[[], None]]:
    """Clients of other sequences, over WebSocket and gRPC, who go on with each call of it."""
    streams = [models["plain"].stream() for _ in range(2)]
    channel = grpc.insecure_channel(server.grpc)
    stub, name = GRPCInferenceServiceStub(channel), f"other {rng.integers(2**60)}"
    address = f"ws://{server.address}/v2/models/plain/stream"
    with channel, connect(address, proxy=None, open_timeout=PATIENCE) as connection:
        connection.recv(PATIENCE)

        def go_on() -> None:
            x = rng.standard_normal((2, 6)).astype(np.float32)
            connection.send(x.tobytes())
            assert connection.recv(PATIENCE) == streams[0].run(x).tobytes()
            given = message(x, name)
            given.parameters["sequence_start"].bool_param = not streams[1].steps
            answer = stub.ModelInfer(given, timeout=PATIENCE)
            assert answer.raw_output_contents[0] == streams[1].run(x).tobytes()

        go_on()
        yield go_on
        go_on()


def message(x: np.ndarray, name: str = "") -> messages.ModelInferRequest:
    found = messages.ModelInferRequest(model_name="plain", raw_input_contents=[x.tobytes()])
    found.inputs.add(name="x", datatype="FP32", shape=x.shape)
    if name:
        found.parameters["sequence_id"].string_param = name
    return found


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE)
    client.connect((host, int(port)))
    return client


def upgraded(server: Server) -> socket.socket:
    """A connection of WebSocket whose hello was read."""
    client = connected(server.address)
    client.sendall(UPGRADE.format("plain").encode())
    said = b""
    while b'"steps": 0}' not in said:
        said += client.recv(4096)
    return client


def frame(content: bytes, first: int = 0x82) -> bytes:
    """A frame of WebSocket, masked by zeros."""
    return struct.pack(">BBQ", first, 0x80 | 127, len(content)) + bytes(4) + content


def said_until_closed(client: socket.socket) -> bytes:
    """What a server says before it closes the connection."""
    said = b""
    try:
        while data := client.recv(2**16):
            said += data
    except ConnectionResetError:
        pass
    client.close()
    return said


def memory(server: Server) -> int:
    """Bytes that a server has in memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def test_who_does_not_read(server, others):
    """Over WebSocket: what is sent is taken until the system's buffers are full of answers."""
    client, asked = upgraded(server), frame(bytes(24 * ROWS))
    client.setblocking(False)
    deadline, unsent, cut = time.monotonic() + PATIENCE, b"", False
    while not cut and time.monotonic() < deadline:
        others()
        unsent = unsent or asked
        if select.select([], [client], [], 0.05)[1]:
            try:
                unsent = unsent[client.send(unsent) :]
            except ConnectionError:
                cut = True
    client.close()
    assert cut


def test_who_does_not_read_over_grpc(server, others):
    """A client that gives its calls no window: an answer waits for it, and nobody else."""
    client = connected(server.grpc)
    headers = (
        *((":method", "POST"), (":scheme", "http"), (":authority", "x")),
        (":path", "/inference.GRPCInferenceService/ModelStreamInfer"),
        *(("content-type", "application/grpc"), ("te", "trailers")),
    )
    block = b"".join(
        b"\0" + b"".join(bytes([len(word)]) + word.encode() for word in pair) for pair in headers
    )
    asked = message(np.zeros((2, 6), np.float32)).SerializeToString()
    asked = struct.pack(">BI", 0, len(asked)) + asked
    client.sendall(
        PREFACE
        + NO_WINDOW
        + struct.pack(">IBI", len(block) << 8 | 1, 4, 1)
        + block
        + struct.pack(">IBI", len(asked) << 8, 0, 1)
        + asked
    )
    for _ in range(10):
        others()
    client.close()


def test_who_says_nothing(server, others):
    """Connections without a request are closed, on each address."""
    silent = [connected(address) for address in (server.address, server.grpc) for _ in range(20)]
    half = connected(server.address)
    half.sendall(b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    others()
    for client in (*silent, half):
        said_until_closed(client)


def test_who_goes_without_a_word(server, others):
    """Connections that are reset in the midst of a frame, or behind one that is being answered."""
    for part in (frame(bytes(24 * 50)), frame(bytes(24 * 50))[:100]):
        for _ in range(10):
            client = upgraded(server)
            client.sendall(part)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
    others()


def test_garbage(server, others, rng):
    clients = []
    for _ in range(60):
        for address in (server.address, server.grpc):
            client = connected(address)
            client.sendall(rng.bytes(int(rng.integers(1, 400))))
            clients.append(client)
        client = connected(server.grpc)
        client.sendall(PREFACE + NO_WINDOW + rng.bytes(200))
        clients.append(client)
    others()
    for client in clients:
        said_until_closed(client)


@pytest.mark.parametrize("first", [0x83, 0xF2, 0x80, 0x02])
def test_garbage_frames(server, others, first, rng):
    """Opcodes that are none, reserved bits, a continuation of nothing, a frame never finished."""
    client = upgraded(server)
    client.sendall(frame(rng.bytes(24), first) + frame(rng.bytes(24)))
    others()
    said_until_closed(client)


def test_garbage_messages(server, others, rng):
    """Bytes that are no message, in a call that is one."""
    with grpc.insecure_channel(server.grpc) as channel:
        path = "/inference.GRPCInferenceService/"
        for _ in range(20):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(path + "ModelInfer")(b"\xff" + rng.bytes(50), timeout=PATIENCE)
            given = iter([b"\xff" + rng.bytes(50)])
            answers = channel.stream_stream(path + "ModelStreamInfer")(given, timeout=PATIENCE)
            with pytest.raises(grpc.RpcError) as found:
                next(answers)
            assert found.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    others()


def test_giants(server, others):
    """Messages larger than the limit are refused before they have arrived."""
    before = memory(server)
    for _ in range(20):
        client = upgraded(server)
        client.sendall(struct.pack(">BBQ", 0x82, 0x80 | 127, 2**40) + bytes(2000))
        assert struct.pack(">H", 1009) in said_until_closed(client)
    waiting = [connected(server.address) for _ in range(20)]
    for client in waiting:
        client.sendall(
            b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n"
            b"\r\n{"
        )
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(20):
            with pytest.raises(grpc.RpcError) as found:
                stub.ModelInfer(message(np.zeros((MOST_BYTES, 6), np.float32)), timeout=PATIENCE)
            assert found.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    others()
    for client in waiting:
        said_until_closed(client)
    assert memory(server) < before + 2**25


def test_memory_over_many_sequences(server):
    """What a sequence leaves behind when it has ended."""
    x = np.zeros((1, 6), np.float32)

    def begin_and_end(count: int) -> int:
        for _ in range(count // 100):
            asked = [message(x, f"{n}") for n in range(100)]
            for one in asked:
                one.parameters["sequence_start"].bool_param = True
                one.parameters["sequence_end"].bool_param = True
            assert all(not answer.error_message for answer in stub.ModelStreamInfer(iter(asked)))
        return memory(server)

    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        before = begin_and_end(2000)
        assert begin_and_end(4000) < before + 2**22  # 4000 of 1 KB more, if each left as much
