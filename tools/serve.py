"""Serve a converted model to many clients, a stream each: ``python tools/serve.py MODEL``.

What arrives in one turn of the event loop is one batch of one pool, whoever sent it; a stream's
numbers do not depend on who else is in it. A session outlives its connection, until it has made no
step for ``--idle`` seconds, and with ``--state FILE`` also the server: SIGTERM or SIGINT answers
every message that has arrived whole, writes all streams to the file and ends; the next start goes
on from there. Its steps are counted, so that a client knows where to go on after a disconnection.

The protocol, over TCP, little endian; a real is a float32, or a float64 for a model of those:

    client hello    4 bytes "flst"; uint32 version, 1; 16 bytes session, zeros for a new one
    server welcome  uint64 0; uint64 steps the session has made; uint32 I; uint32 O; uint32 bytes of
                    a real; uint32 1 if the input is tokens, else 0; uint32 most steps of a message;
                    16 bytes session, to come back with, and to keep secret
    client message  uint64 T, at least 1; T * I reals, or T int64 tokens
    server answer   uint64 T'; T' * O reals: one answer for each message, in order; T' is T but for
                    models with strided or delayed convolutions
    client goodbye  uint64 2^64 - 1: the session ends, the server closes the connection
    server error    uint64 2^64 - 1; uint64 n; n bytes of UTF-8: the server closes the connection;
                    the session is kept, unless the text says that it has ended

A session has one connection at a time. A message that is not whole when its connection ends is not
made; of one that was not answered, the steps in the next welcome tell whether it was.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hashlib
import os
import resource
import secrets
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm

MAGIC, VERSION, END = b"flst", 1, 2**64 - 1
FORMAT = b"fastlstm sessions 1\n"
HELLO = struct.Struct("<4sI16s")
WELCOME = struct.Struct("<QQ5I16s")
COUNT = struct.Struct("<Q")
SESSION = struct.Struct("<16sq")
NEW = bytes(16)

RECEIVED = 2**18  # bytes taken from a connection at a time
HELLO_SECONDS = 10.0
LINGER_SECONDS = 2.0  # in which a client may read the last that was sent to it
SPARE_FILES = 64  # beside those of clients


class Session:
    """A stream, and the client that is connected to it, if one is."""

    __slots__ = ("client", "name", "slot")

    def __init__(self, name: bytes, slot: int) -> None:
        self.name, self.slot = name, slot
        self.client: Client | None = None


class Client(asyncio.BufferedProtocol):
    """A connection: cuts what it receives into messages, of which one at a time is in a batch."""

    __slots__ = (
        *("busy", "ended", "inbox", "message", "paused", "refused", "server", "session", "since"),
        *("timer", "transport"),
    )
    message: np.ndarray
    since: float  # of the loop's clock, when it was welcome
    timer: asyncio.TimerHandle
    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server, self.inbox = server, bytearray()
        self.session: Session | None = None
        self.busy = self.ended = self.paused = self.refused = False

    def connection_made(self, transport: Any) -> None:
        server, self.transport = self.server, transport
        transport.set_write_buffer_limits(high=server.most_unread)
        keep_asking(transport.get_extra_info("socket"), server.idle / 8)
        self.timer = server.loop.call_later(
            server.hello_seconds, self.refuse, "no hello", f"for {server.hello_seconds:g} seconds"
        )
        if len(server.clients) >= server.pool.capacity:
            self.refuse("the server is full", f"it takes {server.pool.capacity} clients")
        server.clients.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.server.received

    def buffer_updated(self, nbytes: int) -> None:
        if self.refused:
            return
        self.inbox += self.server.received[:nbytes]
        if not self.busy:
            self.advance()
        elif len(self.inbox) >= self.server.largest:
            self.paused = True
            self.transport.pause_reading()

    def advance(self) -> None:
        """Hand in the next message, if it is whole."""
        server, inbox = self.server, self.inbox
        if (self.session is None and not self.greet()) or len(inbox) < COUNT.size:
            return
        (steps,) = COUNT.unpack_from(inbox)
        if not 1 <= steps <= server.most_steps:
            if steps == END and self.session is not None:
                server.end(self.session)
                return self.close()
            most = f"expected 1 to {server.most_steps}"
            return self.refuse("a message of no such length", f"{steps} steps; {most}")
        end = COUNT.size + steps * server.step_bytes
        if len(inbox) < end:
            return
        if len(inbox) == end:
            self.inbox = bytearray()  # the message keeps the old one
        else:
            inbox = inbox[:end]
            del self.inbox[:end]
        self.message = np.ndarray((steps, *server.features), server.dtype, inbox, COUNT.size)
        if (
            server.model.takes_tokens
            and self.message.view(np.uint64).max() >= server.model.input_size
        ):
            most = server.model.input_size - 1
            return self.refuse("a token out of range", f"expected 0 to {most}")
        server.hand_in(self)

    def greet(self) -> bool:
        """Answer the hello, if it is whole and right."""
        server, inbox = self.server, self.inbox
        if not MAGIC.startswith(inbox[: len(MAGIC)]):
            self.refuse("not this protocol", f"expected {MAGIC!r}, got {bytes(inbox[:4])!r}")
        elif len(inbox) >= HELLO.size:
            _, version, name = HELLO.unpack_from(inbox)
            del inbox[: HELLO.size]
            if version == VERSION:
                server.join(self, name)
            else:
                self.refuse("another version", f"{version} of the protocol; expected {VERSION}")
        return self.session is not None

    def answer(self, y: np.ndarray) -> None:
        """Send the answer to the message, and go on with what has arrived meanwhile."""
        self.busy = False
        self.transport.write(COUNT.pack(len(y)) + y.data)
        if self.inbox:
            self.advance()
        if self.paused and len(self.inbox) < self.server.largest:
            self.paused = False
            self.transport.resume_reading()
        if self.ended and not self.busy:
            self.close()

    def eof_received(self) -> bool:
        self.ended = True
        return self.busy  # stay open until all is answered

    def pause_writing(self) -> None:
        self.server.log("does not read its answers", f"{self.server.most_unread} bytes wait")
        self.transport.abort()

    def refuse(self, kind: str, what: str) -> None:
        """Disconnect a client that did wrong, and log it."""
        self.server.log(kind, what)
        self.dismiss(f"{kind}: {what}")

    def dismiss(self, why: str) -> None:
        """Say why, and close; what else arrives is dropped, so that the reason can be read."""
        text = why.encode()
        self.transport.write(COUNT.pack(END) + COUNT.pack(len(text)) + text)
        self.refused = True
        self.leave()
        self.transport.resume_reading()
        with contextlib.suppress(OSError):  # it has gone
            self.transport.write_eof()

    def close(self) -> None:
        """Close the connection behind the last answer."""
        self.leave()
        self.transport.close()

    def leave(self) -> None:
        """Part with the session, which is kept; a message that is not answered yet is not made."""
        self.timer.cancel()
        self.timer = self.server.loop.call_later(LINGER_SECONDS, self.transport.abort)
        if self.session is not None:
            self.session.client = None
            self.session = None

    def connection_lost(self, exception: Exception | None) -> None:
        self.leave()
        self.timer.cancel()
        self.server.clients.discard(self)


def keep_asking(connection: socket.socket, seconds: float) -> None:
    """Notice within five times that long if the other machine has gone without a word.

    Its session could not be gone on with before.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    whole = min(max(round(seconds), 1), 3600)
    for option, value in (
        (socket.TCP_KEEPIDLE, whole), (socket.TCP_KEEPINTVL, whole), (socket.TCP_KEEPCNT, 4)
    ):  # fmt: skip
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Server:
    """One pool, its sessions and their clients.

    Parameters
    ----------
    model : fastlstm.Model
    max_clients : int
        Sessions, connected or kept; connections too.
    most_steps : int
        Of a message. A client's memory is bounded by this: one message and 256 KB received, four
        answers that it has not read.
    most_messages : int
        Of a batch.
    idle : float
        Seconds without a step after which a session ends.
    """

    def __init__(
        self, model: Any, max_clients: int, most_steps: int, most_messages: int, idle: float
    ) -> None:
        self.model, self.pool = model, model.pool(capacity=max_clients)
        self.most_steps, self.most_messages, self.idle = most_steps, most_messages, idle
        self.hello_seconds = min(HELLO_SECONDS, idle)
        self.features = () if model.takes_tokens else (model.input_size,)
        self.dtype = np.dtype(np.int64) if model.takes_tokens else model.dtype
        self.step_bytes = self.dtype.itemsize * (1 if model.takes_tokens else model.input_size)
        self.largest = COUNT.size + most_steps * self.step_bytes
        self.most_unread = 4 * (COUNT.size + most_steps * model.output_size * model.dtype.itemsize)
        self.received = memoryview(bytearray(RECEIVED))
        self.sessions: dict[bytes, Session] = {}
        self.clients: set[Client] = set()
        self.arrived: list[Client] = []
        self.logged: collections.Counter[str] = collections.Counter()
        self.batches = self.messages = self.steps = 0
        self.loop = asyncio.get_running_loop()

    def log(self, kind: str, what: str) -> None:
        """Only the first of each kind: clients can cause any number, which disconnect() tells."""
        self.logged[kind] += 1
        if self.logged[kind] == 1:
            print(f"a client is disconnected, {kind}: {what}", file=sys.stderr, flush=True)

    def join(self, client: Client, name: bytes) -> None:
        """Connect a client with a new session or with its own."""
        session = self.sessions.get(name)
        if name == NEW:
            if len(self.sessions) >= self.pool.capacity:
                most = f"it keeps {self.pool.capacity} sessions"
                return client.refuse("the server is full", most)
            session = Session(secrets.token_bytes(len(NEW)), self.pool.open())
            self.sessions[session.name] = session
        elif session is None:
            return client.refuse("no such session", "it has ended, or is of another server")
        elif session.client is not None:
            return client.refuse("a second connection", "this session has a client")
        client.timer.cancel()
        client.since = self.loop.time()
        client.session, session.client = session, client
        steps, model = self.pool.steps(session.slot), self.model
        sizes = (model.input_size, model.output_size, model.dtype.itemsize, model.takes_tokens)
        client.transport.write(WELCOME.pack(0, steps, *sizes, self.most_steps, session.name))

    def end(self, session: Session) -> None:
        """Close a session's stream."""
        self.pool.close(session.slot)
        del self.sessions[session.name]

    def hand_in(self, client: Client) -> None:
        """Put a client's message into the batch of the next turn."""
        client.busy = True
        self.arrived.append(client)
        if len(self.arrived) == 1:
            self.loop.call_soon(self.run)

    def run(self) -> None:
        """Make the steps of what has arrived, and answer."""
        turn, self.arrived = self.arrived, []
        for first in range(0, len(turn), self.most_messages):
            # Without those who have gone: another client may go on with their session.
            some = turn[first : first + self.most_messages]
            batch = [(client, client.session.slot) for client in some if client.session]
            x = [client.message for client, _ in batch]
            try:
                answers = self.pool.run([slot for _, slot in batch], x)
            except MemoryError:
                for client, _ in batch:
                    client.refuse("out of memory", "the message was not run")
                continue
            self.batches, self.messages = self.batches + 1, self.messages + len(batch)
            for (client, _), y in zip(batch, answers, strict=True):
                self.steps += len(client.message)
                client.answer(y)

    def sweep(self) -> None:
        """End the sessions that have made no step for too long."""
        idle, now = set(self.pool.idle(self.idle).tolist()), self.loop.time()
        for session in [s for s in self.sessions.values() if s.slot in idle]:
            if client := session.client:
                if client.busy or now - client.since < self.idle:
                    continue
                why = f"no message for {self.idle:g} seconds, the session has ended"
                client.refuse("idle", why)
            self.end(session)
        self.loop.call_later(self.idle / 8, self.sweep)

    def tell(self, seconds: float) -> None:
        """Print what was done, every so many seconds."""
        each = self.messages / max(self.batches, 1)
        print(
            f"{len(self.clients)} clients, {len(self.sessions)} sessions, "
            f"{self.steps / seconds:.0f} steps/s, {each:.1f} messages a batch",
            flush=True,
        )
        self.batches = self.messages = self.steps = 0
        self.loop.call_later(seconds, self.tell, seconds)

    def finish(self) -> None:
        """Answer every message that has arrived whole."""
        while self.arrived:
            self.run()

    async def disconnect(self) -> None:
        """Disconnect everybody; then say how many were refused."""
        for client in list(self.clients):
            if not client.refused:
                client.dismiss("the server is stopping; go on later with this session")
        while self.clients:
            await asyncio.sleep(0.01)
        for kind, times in self.logged.items():
            print(f"{times} disconnected: {kind}", file=sys.stderr)

    def save(self, path: Path) -> None:
        """Write all sessions to a file, whole or not at all; an older one is replaced.

        Names and states are one file, so that they cannot be of different moments: a line that
        names the format, SHA-256 of all that follows, the number of sessions, name and slot of
        each, and then the file that ``pool.save`` writes.
        """
        table = [SESSION.pack(session.name, session.slot) for session in self.sessions.values()]
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            states = b""
            if table:
                self.pool.save(Path(folder, "pool"))
                states = Path(folder, "pool").read_bytes()
            content = b"".join([COUNT.pack(len(table)), *table, states])
            whole = Path(folder, "sessions")
            with open(whole, "xb") as file:
                os.fchmod(file.fileno(), 0o600)  # who knows a session can take it over
                file.write(FORMAT + hashlib.sha256(content).digest() + content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, path)

    def restore(self, path: Path) -> None:
        """Open the sessions of a file that :meth:`save` wrote.

        Raises
        ------
        FormatError
            If it is damaged, not such a file, or of another model.
        ValueError
            If it holds more sessions than the pool takes.
        """
        data = path.read_bytes()
        begin = len(FORMAT) + hashlib.sha256().digest_size
        digest, content = data[len(FORMAT) : begin], data[begin:]
        if not data.startswith(FORMAT):
            raise fastlstm.FormatError(f"{path}: these are not sessions that this server saved")
        if hashlib.sha256(content).digest() != digest:
            raise fastlstm.FormatError(f"{path}: the file is damaged or was cut short")
        (count,) = COUNT.unpack_from(content)
        if count > (most := self.pool.capacity):
            raise ValueError(f"{path}: {count} sessions; expected at most {most}, --max-clients")
        end = COUNT.size + count * SESSION.size
        table = dict(SESSION.iter_unpack(content[COUNT.size : end]))
        slots: dict[int, int] = {}
        if table:
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "pool").write_bytes(content[end:])
                try:
                    slots = self.pool.load(Path(folder, "pool"))
                except fastlstm.FormatError as error:
                    raise fastlstm.FormatError(f"{path}: {error}") from error
        if slots.keys() != set(table.values()):
            raise fastlstm.FormatError(f"{path}: a session has no state, or a state no session")
        self.sessions = {name: Session(name, slots[slot]) for name, slot in table.items()}


async def serve(model: fastlstm.Model, given: argparse.Namespace) -> int:
    """Serve until a signal comes; the exit status."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    server = Server(model, given.max_clients, given.max_message, given.max_batch, given.idle)
    if given.state and not os.access(given.state.parent, os.W_OK):
        raise PermissionError(f"{given.state.parent}: no folder to write the state to")
    if given.state and given.state.exists():
        server.restore(given.state)
    listener = await loop.create_server(
        lambda: Client(server), given.host, given.port, backlog=given.max_clients
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server.sweep()
    if given.stats:
        loop.call_later(given.stats, server.tell, given.stats)
    port = listener.sockets[0].getsockname()[1]
    restored = f", {len(server.sessions)} sessions restored" if server.sessions else ""
    print(f"serving {given.model} on port {port}{restored}", flush=True)
    await stop.wait()
    listener.close()
    server.finish()
    try:
        if given.state:
            server.save(given.state)
    finally:
        await server.disconnect()
    return 0


def allow_files(count: int) -> None:
    """Allow this process so many open files: each client is one."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (now, most) and most < count:
        raise ValueError(
            f"{count} files are too many, the system allows {most}: lower --max-clients, or raise "
            f"the limit with ulimit -n"
        )
    if now != resource.RLIM_INFINITY and now < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}; expected at least 1")
    return number


def seconds(text: str) -> float:
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text}; expected a positive number")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", help="what fastlstm.convert wrote")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0, the default, takes a free one and prints it")
    add("--threads", type=positive, default=1, help="that a batch may use")
    add("--max-clients", type=positive, default=1024, help="sessions, connected or not")
    add("--max-message", type=positive, default=256, help="steps of a message")
    add("--max-batch", type=positive, default=32, help="messages of a batch")
    add("--idle", type=seconds, default=60.0, help="seconds without a step that end a session")
    add("--state", type=Path, help="the file that sessions are restored from and saved to")
    add("--stats", type=seconds, help="print what is done every so many seconds")
    given = parser.parse_args(arguments)
    try:
        allow_files(given.max_clients + SPARE_FILES)
        return asyncio.run(serve(fastlstm.load(given.model, threads=given.threads), given))
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
