"""Clients of fastlstm serve that cost next to nothing: hand-made frames on raw sockets.

Libraries for clients take as long for a message as the server does, so that one core of them could
not tell what a server holds. Here all bytes of a message but its numbers are made beforehand, and
of an answer only the frames' headers are read (RFC 6455 for WebSocket, RFC 9113 for HTTP/2).
"""

from __future__ import annotations

import base64
import socket
import struct
from collections import deque
from collections.abc import Iterator

import numpy as np
from tritonclient.grpc import service_pb2 as messages

__all__ = ["MODEL", "PROTOCOLS", "Connection", "Grpc", "Unary", "WebSocket"]

MODEL = "lstm"  # what the servers of a load call their model

READ = 2**18  # bytes of one read


class Connection:
    """A socket of one or several clients.

    Parameters
    ----------
    address : str
        "host:port" of the server.
    first : int
        Number of the first client; each has one of its own, by which its sequence is called.
    clients : int
    """

    server = "grpc"  # which of a server's addresses is meant

    def __init__(self, address: str, first: int, clients: int) -> None:
        host, _, port = address.rpartition(":")
        self.first, self.clients = first, clients
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""  # of a frame that has not arrived whole

    @staticmethod
    def message(rows: np.ndarray, name: str) -> bytes:
        """What is said of rows (T, I) of the input of that name."""
        raise NotImplementedError

    @staticmethod
    def answer(rows: bytes) -> bytes:
        """What an answer of these rows ends with."""
        raise NotImplementedError

    def greet(self) -> None:
        """Hear what comes before the first answer; nothing is waited for from now on."""
        self.socket.setblocking(False)

    def say(self, client: int, message: bytes, ends: bool) -> bool:
        """Send one, maybe the last; False if the system or the server takes no more."""
        raise NotImplementedError

    def hear(self) -> Iterator[tuple[int, bytes]]:
        """Clients of whom an answer has arrived, and the answer."""
        raise NotImplementedError

    def leave(self) -> None:
        """End the streams."""
        self.socket.close()

    def _send(self, data: bytes) -> bool:
        try:
            return self.socket.send(data) == len(data)
        except BlockingIOError:
            return False

    def _read(self) -> bytes:
        data = self.socket.recv(READ)
        if not data:
            raise ConnectionError("the server has closed a connection")
        return self._rest + data if self._rest else data


class WebSocket(Connection):
    """One stream; messages and answers are binary frames."""

    server = "http"

    def __init__(self, address: str, first: int, clients: int) -> None:
        if clients != 1:
            raise ValueError(f"{clients} clients share a connection; WebSocket has one on each")
        super().__init__(address, first, clients)
        key = base64.b64encode(struct.pack(">QQ", 0, first)).decode()
        self.socket.sendall(
            f"GET /v2/models/{MODEL}/stream HTTP/1.1\r\nHost: {address}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    @staticmethod
    def message(rows: np.ndarray, name: str) -> bytes:
        whole, size = WebSocket.answer(rows.tobytes()), rows.nbytes
        head = bytes([whole[0], whole[1] | 0x80]) + whole[2:-size]
        return head + bytes(4) + whole[-size:]  # a masking key of zeros leaves them as they are

    @staticmethod
    def answer(rows: bytes) -> bytes:
        size = len(rows)
        if size < 126:
            return struct.pack(">BB", 0x82, size) + rows
        if size < 2**16:
            return struct.pack(">BBH", 0x82, 126, size) + rows
        return struct.pack(">BBQ", 0x82, 127, size) + rows

    def greet(self) -> None:
        said = b""
        while b"\r\n\r\n" not in said:
            said += self._read()
        head, _, self._rest = said.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise ConnectionError(f"the server does not take a client: {head[:200]!r}")
        greeted = False
        while not greeted:
            data, self._rest = (self._rest, b"") if self._rest else (self._read(), b"")
            greeted = any(opcode == 1 for opcode, _ in self._frames(data))
        super().greet()

    def say(self, client: int, message: bytes, ends: bool) -> bool:
        return self._send(message)

    def hear(self) -> Iterator[tuple[int, bytes]]:
        for opcode, whole in self._frames(self._read()):
            if opcode == 2:
                yield self.first, whole
            elif opcode == 8:
                raise ConnectionError(f"the server has closed a stream: {whole[4:]!r}")
            elif opcode == 9:
                self._send(bytes([0x8A, 0x80 | whole[1]]) + bytes(4) + whole[2:])

    def _frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Opcodes, and the bytes of the whole frames."""
        at, length = 0, len(data)
        while length - at >= 2:
            size, start = data[at + 1], at + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                size = int.from_bytes(data[at + 2 : start], "big")
            if length < start + size:
                break
            opcode, whole = data[at] & 15, data[at : start + size]
            at = start + size
            yield opcode, whole
        self._rest = data[at:]

    def leave(self) -> None:
        self._send(b"\x88\x82" + bytes(4) + struct.pack(">H", 1000))
        super().leave()


# Kinds and flags of frames of HTTP/2.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4

INITIAL_WINDOW_SIZE = 4  # the setting
FIRST_WINDOW, MOST_WINDOW = 2**16 - 1, 2**31 - 1
MOST_FRAME = 2**14


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(content) << 8 | kind, flags, stream) + content


class Grpc(Connection):
    """Streams of ModelStreamInfer, a call each."""

    method = "ModelStreamInfer"
    last = 0  # flags of a message

    def __init__(self, address: str, first: int, clients: int) -> None:
        super().__init__(address, first, clients)
        self._address = address
        # What the server still takes: altogether, of a new call, of each call.
        self._room, self._room_of_calls = FIRST_WINDOW, FIRST_WINDOW
        self._rooms: dict[int, int] = {}
        self._callers: dict[int, int] = {}
        self._parts: dict[int, bytes] = {}  # of answers that have not arrived whole
        self._made = 0  # calls
        self._settled = False
        self._call_of = [0] * clients
        self._begun = [False] * clients
        self._goes_on = [_sequence(first + client) for client in range(clients)]
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, MOST_WINDOW))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MOST_WINDOW - FIRST_WINDOW))
        )

    @staticmethod
    def message(rows: np.ndarray, name: str) -> bytes:
        request = messages.ModelInferRequest(model_name=MODEL)
        request.inputs.add(name=name, datatype="FP32", shape=rows.shape)
        request.raw_input_contents.append(rows.tobytes())
        found: bytes = request.SerializeToString()
        return found

    @staticmethod
    def answer(rows: bytes) -> bytes:
        found: bytes = messages.ModelInferResponse(raw_output_contents=[rows]).SerializeToString()
        return found  # the last field of a message

    def greet(self) -> None:
        while not self._settled:
            for _ in self.hear():
                raise ConnectionError("the server answers before it is asked")
        super().greet()

    def say(self, client: int, message: bytes, ends: bool) -> bool:
        call, opening = self._call_of[client], b""
        if not call:
            call, opening = self._call(client)
            self._call_of[client] = call
        return self._say(call, opening, self._fields(client, ends) + message)

    def _fields(self, client: int, ends: bool) -> bytes:
        """Those of a message that tell of its sequence."""
        starts, self._begun[client] = not self._begun[client], True
        if starts or ends:
            return _sequence(self.first + client, starts, ends)
        return self._goes_on[client]

    def _call(self, client: int) -> tuple[int, bytes]:
        """A new call: its stream of HTTP/2, and the frame that opens it."""
        call = 2 * self._made + 1
        self._made += 1
        self._rooms[call], self._callers[call] = self._room_of_calls, client
        headers = (
            *((":method", "POST"), (":scheme", "http")),
            (":path", f"/inference.GRPCInferenceService/{self.method}"),
            (":authority", self._address),
            *(("content-type", "application/grpc"), ("te", "trailers")),
        )
        if call == 1:
            # The server remembers them from now on (RFC 7541, 6.2.1), as libraries have it do.
            block = b"".join(
                b"\x40" + b"".join(bytes([len(word)]) + word.encode() for word in pair)
                for pair in headers
            )
        else:
            block = bytes(0x80 | 62 + i for i in reversed(range(len(headers))))
        return call, frame(HEADERS, END_HEADERS, call, block)

    def _say(self, call: int, opening: bytes, message: bytes) -> bool:
        content = struct.pack(">BI", 0, len(message)) + message
        self._room -= len(content)
        self._rooms[call] -= len(content)
        if self._room < 0 or self._rooms[call] < 0:
            return False
        if len(content) <= MOST_FRAME:
            return self._send(opening + frame(DATA, self.last, call, content))
        cuts = range(0, len(content), MOST_FRAME)
        return self._send(
            opening
            + b"".join(
                frame(DATA, self.last * (at == cuts[-1]), call, content[at : at + MOST_FRAME])
                for at in cuts
            )
        )

    def hear(self) -> Iterator[tuple[int, bytes]]:
        data, at = self._read(), 0
        while len(data) - at >= 9:
            word, flags, stream = struct.unpack_from(">IBI", data, at)
            end = at + 9 + (word >> 8)
            if len(data) < end:
                break
            kind, content = word & 255, data[at + 9 : end]
            at = end
            if kind == DATA:
                yield from self._answers(stream, content)
            elif kind != HEADERS:
                self._manage(kind, flags, stream, content)
            if flags & END_STREAM and kind in (DATA, HEADERS):
                self._ended(stream, content)
        self._rest = data[at:]

    def _answers(self, stream: int, content: bytes) -> Iterator[tuple[int, bytes]]:
        content = self._parts.pop(stream, b"") + content
        while len(content) >= 5 and len(content) >= (
            end := 5 + int.from_bytes(content[1:5], "big")
        ):
            yield self.first + self._callers[stream], content[5:end]
            content = content[end:]
        if content:
            self._parts[stream] = content

    def _manage(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(content, "big")
            if not stream:
                self._room += more
            elif stream in self._rooms:
                self._rooms[stream] += more
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", content):
                if name == INITIAL_WINDOW_SIZE:
                    more, self._room_of_calls = value - self._room_of_calls, value
                    for call in self._rooms:
                        self._rooms[call] += more
            self._settled = self._send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._send(frame(PING, ACK, 0, content))
        elif kind in (RST_STREAM, GOAWAY):
            raise ConnectionError(f"the server has ended a call: {content!r}")

    def _ended(self, stream: int, content: bytes) -> None:
        raise ConnectionError(f"the server has ended a call: {content!r}")


class Unary(Grpc):
    """Calls of ModelInfer: each message is one, behind the answer to the last one."""

    method = "ModelInfer"
    last = END_STREAM

    def __init__(self, address: str, first: int, clients: int) -> None:
        super().__init__(address, first, clients)
        self._unsaid: list[deque[bytes]] = [deque() for _ in range(clients)]
        self._answered: set[int] = set()

    def say(self, client: int, message: bytes, ends: bool) -> bool:
        message = self._fields(client, ends) + message
        if self._call_of[client]:
            self._unsaid[client].append(message)
            return True
        return self._ask(client, message)

    def _ask(self, client: int, message: bytes) -> bool:
        self._call_of[client], opening = self._call(client)
        return self._say(self._call_of[client], opening, message)

    def _answers(self, stream: int, content: bytes) -> Iterator[tuple[int, bytes]]:
        for client, answer in super()._answers(stream, content):
            self._answered.add(stream)
            yield client, answer

    def _ended(self, stream: int, content: bytes) -> None:
        if stream not in self._answered:
            raise ConnectionError(f"the server has refused a call: {content!r}")
        self._answered.discard(stream)
        client = self._callers.pop(stream)
        del self._rooms[stream]
        self._call_of[client] = 0
        if self._unsaid[client] and not self._ask(client, self._unsaid[client].popleft()):
            raise ConnectionError("the server takes no more")


def _sequence(number: int, starts: bool = False, ends: bool = False) -> bytes:
    """The fields of a request that say of which sequence it is; the others are put behind."""
    request = messages.ModelInferRequest()
    request.parameters["sequence_id"].int64_param = number + 1  # 0 would be none
    for name, value in (("sequence_start", starts), ("sequence_end", ends)):
        if value:
            request.parameters[name].bool_param = True
    found: bytes = request.SerializeToString()
    return found


PROTOCOLS: dict[str, type[Connection]] = {"grpc": Grpc, "unary": Unary, "websocket": WebSocket}
