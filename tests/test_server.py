"""tools/serve.py as its clients see it: a process, over TCP.

The clients here write the protocol byte by byte, as its documentation has it, and compare every
answer, bit for bit, with what a single stream gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import build, input_for, recurrent

import fastlstm
from fastlstm import Model

TOOL = Path(__file__).resolve().parents[1] / "tools" / "serve.py"
NEW = bytes(16)
END = 2**64 - 1
PATIENCE = 60  # seconds for whatever must happen

SECOND = "a second connection: this session has a client"


class RefusedError(Exception):
    """What the server says before it closes a connection."""


class Client:
    """A connection, its session, and the single stream that its answers are compared with."""

    def __init__(
        self, port: int, model: Model, *, session: bytes = NEW, stream: Any = None, receive: int = 0
    ) -> None:
        self.model, self.stream = model, stream or model.stream()
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if receive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        try:
            self.socket.connect(("127.0.0.1", port))
            self.socket.sendall(struct.pack("<4sI16s", b"flst", 1, session))
            self.count()
            (self.steps,) = struct.unpack("<Q", self.read(8))
            *self.sizes, self.session = struct.unpack("<5I16s", self.read(36))
        except BaseException:
            self.socket.close()
            raise

    def read(self, size: int) -> bytes:
        found = self.socket.recv(size, socket.MSG_WAITALL) if size else b""
        if len(found) < size:
            raise EOFError("the server closed the connection")
        return found

    def count(self) -> int:
        """The number that each frame of the server begins with."""
        (count,) = struct.unpack("<Q", self.read(8))
        if count == END:
            text = self.read(*struct.unpack("<Q", self.read(8))).decode()
            assert self.socket.recv(1) == b""
            raise RefusedError(text)
        return count

    def send(self, x: np.ndarray) -> None:
        self.socket.sendall(struct.pack("<Q", len(x)) + x.tobytes())

    def answer(self) -> bytes:
        return self.read(self.count() * self.model.output_size * self.model.dtype.itemsize)

    def ask(self, x: np.ndarray) -> None:
        """Send a message; the answer must be right."""
        self.send(x)
        self.check(x)

    def check(self, x: np.ndarray) -> None:
        assert self.answer() == self.stream.run(x).tobytes()

    def goodbye(self) -> None:
        self.socket.sendall(struct.pack("<Q", END))
        assert self.socket.recv(1) == b""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()


class Served:
    """A running server."""

    def __init__(self, model: Model, path: Path, *options: Any) -> None:
        self.model = model
        self.process = subprocess.Popen(
            [sys.executable, str(TOOL), str(path), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        found = re.fullmatch(rf"serving {re.escape(str(path))} on port (\d+)(.*)\n", line)
        assert found, line + self.process.stderr.read()
        self.port, self.restored = int(found[1]), found[2]

    def client(self, **options: Any) -> Client:
        return Client(self.port, self.model, **options)

    def signalled(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Exit status, and standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def stop(self) -> tuple[int, str]:
        self.signalled()
        return self.ended()


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    return build((recurrent("lstm", 5, 19, "lstm"), spec.Linear("head", 19, 3)), rng)


@pytest.fixture(scope="module")
def path(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model.save(path)
    return path


@contextlib.contextmanager
def serving(model: Model, path: Path, *options: Any) -> Iterator[Served]:
    served = Served(model, path, *options)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.communicate()


@pytest.fixture(scope="module")
def served(model: Model, path: Path) -> Iterator[Served]:
    """A server for the tests that need nothing special; it must outlive them all."""
    with serving(model, path, "--max-message", 64) as served:
        yield served
        code, errors = served.stop()
        assert code == 0, errors
        assert "Traceback" not in errors


@pytest.fixture
def bystander(served: Served, rng: np.random.Generator) -> Iterator[Callable[[], None]]:
    """Asks for a few steps and checks them; also when the test is over."""
    with served.client() as client:

        def goes_on() -> None:
            client.ask(input_for(client.model, rng, 3))

        goes_on()
        yield goes_on
        goes_on()
        client.goodbye()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def resumed(served: Served, client: Client) -> Client:
    """A new connection to a client's session, as soon as the server has seen the old one end."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return served.client(session=client.session, stream=client.stream)
        except RefusedError as refusal:
            if str(refusal) != SECOND or time.monotonic() > end:
                raise


class TestAnswers:
    def test_welcome(self, served, model):
        with served.client() as a, served.client() as b:
            assert a.sizes == b.sizes == [5, 3, 4, False, 64]
            assert a.steps == b.steps == 0
            assert len({a.session, b.session, NEW}) == 3
            assert a.session != b.session

    @pytest.mark.parametrize("kind", ["tokens", "float64", "strided", "delayed"])
    def test_kinds_of_models(self, kind, tmp_path, rng):
        layers, dtype = (recurrent("gru", 3, 7, "gru"),), np.float32
        if kind == "tokens":
            layers = (spec.Embedding("embedding", 11, 3), *layers)
        elif kind == "float64":
            dtype = np.float64
        elif kind == "strided":
            layers = (*layers, spec.Conv1d("conv", 7, 2, 2, stride=3))
        else:
            layers = (spec.Conv1d("conv", 3, 3, 9), *layers)
        model, path = build(layers, rng, dtype), tmp_path / "model.safetensors"
        model.save(path)
        with serving(model, path) as served, served.client() as a, served.client() as b:
            size = np.dtype(dtype).itemsize
            tokens = kind == "tokens"
            assert a.sizes == [11 if tokens else 3, model.output_size, size, tokens, 256]
            for T in (1, 1, 7, 2, 30, 1):
                for client in (a, b):
                    client.ask(input_for(model, rng, T))
            if tokens:
                b.send(np.array([10, 0, 11]))
                with pytest.raises(RefusedError, match=r"^a token out of range: expected 0 to 10$"):
                    b.answer()
                a.send(np.array([-1]))
                with pytest.raises(RefusedError, match=r"^a token out of range: expected 0 to 10$"):
                    a.answer()

    def test_many_clients_interleaved(self, served, model, rng):
        """Some with several messages on the way; in any order of sending and reading."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(served.client()) for _ in range(24)]
            waiting = [[] for _ in clients]
            for _ in range(600):
                i = int(rng.integers(len(clients)))
                if waiting[i] and rng.random() < 0.5:
                    clients[i].check(waiting[i].pop(0))
                else:
                    waiting[i].append(input_for(model, rng, int(rng.integers(1, 9))))
                    clients[i].send(waiting[i][-1])
            for client, rest in zip(clients, waiting, strict=True):
                for x in rest:
                    client.check(x)
                client.goodbye()

    def test_joining_leaving_and_coming_back(self, served, model, rng):
        here, away = [], []
        for _ in range(300):
            kind = rng.choice(["join", "ask", "ask", "ask", "vanish", "come back", "leave"])
            if kind == "join" or not here:
                here.append(served.client())
                continue
            client = here[rng.integers(len(here))]
            if kind == "ask":
                client.ask(input_for(model, rng, int(rng.integers(1, 20))))
            elif kind == "leave":
                here.remove(client)
                client.goodbye()
            elif kind == "vanish":
                here.remove(client)
                away.append((client, client.stream))
                client.socket.close()
            elif away:
                gone, _ = away.pop(int(rng.integers(len(away))))
                here.append(resumed(served, gone))
        for client in here:
            client.ask(input_for(model, rng, 2))
            client.goodbye()
        for gone, _ in away:
            resumed(served, gone).goodbye()

    def test_in_pieces(self, served, model, rng, bystander):
        """A hello and messages that arrive byte by byte, and two in one piece."""
        x = [input_for(model, rng, T) for T in (2, 1, 3)]
        hello = struct.pack("<4sI16s", b"flst", 1, NEW)
        messages = [struct.pack("<Q", len(one)) + one.tobytes() for one in x]
        stream = model.stream()
        with socket.create_connection(("127.0.0.1", served.port), PATIENCE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for i in range(len(hello + messages[0])):
                connection.sendall((hello + messages[0])[i : i + 1])
            connection.sendall(messages[1] + messages[2])
            connection.recv(52, socket.MSG_WAITALL)
            for one in x:
                y = stream.run(one)
                expected = struct.pack("<Q", len(y)) + y.tobytes()
                assert connection.recv(len(expected), socket.MSG_WAITALL) == expected
                bystander()

    def test_nan_stays_in_its_stream(self, served, model, rng, bystander):
        with served.client() as client:
            x = input_for(model, rng, 4)
            x[1, 2] = np.nan
            client.send(x)
            bystander()
            y = np.frombuffer(client.answer(), np.float32).reshape(4, 3)
            assert np.isfinite(y[0]).all()
            assert np.isnan(y[1:]).all()

    def test_half_closed(self, served, model, rng):
        """A client that will send no more is answered everything, and its session is kept."""
        with served.client() as client:
            x = [input_for(model, rng, 2) for _ in range(200)]
            message = [struct.pack("<Q", 2) + one.tobytes() for one in x]
            client.socket.sendall(b"".join(message))
            client.socket.shutdown(socket.SHUT_WR)
            for one in x:
                client.check(one)
            assert client.socket.recv(1) == b""
            with resumed(served, client) as again:
                assert again.steps == 400
                again.ask(x[0])


class TestSessions:
    def test_are_kept_without_a_client(self, served, model, rng, bystander):
        with served.client() as client:
            client.ask(input_for(model, rng, 7))
        bystander()
        with resumed(served, client) as again:
            assert again.session == client.session
            assert again.steps == 7
            again.ask(input_for(model, rng, 2))

    def test_a_second_connection_is_refused(self, served, model, rng):
        with served.client() as client:
            with pytest.raises(RefusedError, match=f"^{SECOND}$"):
                served.client(session=client.session)
            client.ask(input_for(model, rng, 2))

    def test_goodbye_ends_one_at_once(self, served, model, rng):
        client = served.client()
        client.ask(input_for(model, rng, 2))
        client.goodbye()
        with pytest.raises(
            RefusedError, match=r"^no such session: it has ended, or is of another s"
        ):
            served.client(session=client.session)

    def test_disconnected_in_the_middle_of_a_message(self, served, model, rng, bystander):
        with served.client() as client:
            client.ask(input_for(model, rng, 3))
            message = struct.pack("<Q", 9) + input_for(model, rng, 9).tobytes()
            client.socket.sendall(message[: len(message) // 2])
        bystander()
        with resumed(served, client) as again:
            assert again.steps == 3
            again.ask(input_for(model, rng, 5))

    def test_disconnected_before_the_answer(self, served, model, rng, bystander):
        """The steps in the welcome tell whether the message was made."""
        made = set()
        for _ in range(20):
            with served.client() as client:
                client.ask(input_for(model, rng, 3))
                x = input_for(model, rng, 9)
                client.send(x)
                client.socket.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )  # closed by a reset
            bystander()
            with resumed(served, client) as again:
                made.add(again.steps)
                if again.steps == 12:
                    again.stream.run(x)
                again.ask(input_for(model, rng, 5))
                again.goodbye()
        assert made <= {3, 12}


class TestGarbage:
    @pytest.mark.parametrize(
        ("sent", "text"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "not this protocol: expected b'flst', got b'GET '"),
            (b"\0", "not this protocol: expected b'flst', got b'\\x00'"),
            (b"flst\2\0\0\0" + NEW, "another version: 2 of the protocol; expected 1"),
            (
                b"flst\1\0\0\0" + b"x" * 16,
                "no such session: it has ended, or is of another server",
            ),
        ],
    )
    def test_hello(self, served, bystander, sent, text):
        with socket.create_connection(("127.0.0.1", served.port), PATIENCE) as connection:
            connection.sendall(sent)
            said = connection.recv(1000, socket.MSG_WAITALL)
        assert said == struct.pack("<QQ", END, len(text)) + text.encode()

    @pytest.mark.parametrize("steps", [0, 65, 2**32, 2**63, END - 1])
    def test_length(self, served, model, rng, bystander, steps):
        """The reason can be read, whatever else was on its way."""
        with served.client() as client:
            x = input_for(model, rng, 64)
            message = struct.pack("<Q", 64) + x.tobytes()
            client.socket.sendall(message + struct.pack("<Q", steps) + bytes(10_000_000))
            client.check(x)
            text = f"^a message of no such length: {steps} steps; expected 1 to 64$"
            with pytest.raises(RefusedError, match=text):
                client.answer()
        with resumed(served, client) as again:
            again.ask(input_for(model, rng, 2))

    def test_fuzz(self, served, model, rng, bystander):
        """Bytes drawn at random, behind nothing, a hello, or a hello and a message."""
        hello = struct.pack("<4sI16s", b"flst", 1, NEW)
        for i in range(200):
            start = (b"", hello, hello + struct.pack("<Q", 1) + bytes(20))[i % 3]
            garbage = bytearray(rng.bytes(int(rng.integers(1, 2000))))
            for _ in range(int(rng.integers(3))):  # a length that could be one
                at = int(rng.integers(len(garbage)))
                garbage[at : at + 8] = struct.pack("<Q", int(rng.integers(100)))
            with (
                socket.create_connection(("127.0.0.1", served.port), PATIENCE) as connection,
                contextlib.suppress(ConnectionError),
            ):
                connection.sendall(start + garbage)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            if i % 20 == 0:
                bystander()


def talk_on(client: Client, x: np.ndarray, meanwhile: Callable[[], None]) -> None:
    """Send and never read."""
    for _ in range(1000):
        client.send(x)
        meanwhile()


class TestLimits:
    def test_too_fast(self, served, model, rng, bystander):
        """Far more than the server buffers: it reads on when it has answered."""
        with served.client() as client:
            x = input_for(model, rng, 64)
            message, answers = struct.pack("<Q", 64) + x.tobytes(), 3000
            left, got, size = memoryview(message * answers), 0, answers * (8 + 64 * 12)
            found = bytearray()
            client.socket.setblocking(False)
            while len(found) < size:
                readable, writable, _ = select.select(
                    [client.socket], [client.socket] if left else [], [], PATIENCE
                )
                assert readable or writable
                if writable:
                    left = left[client.socket.send(left) :]
                if readable:
                    found += client.socket.recv(2**16)
                got += 1
                if got % 200 == 0:
                    bystander()
            for i in range(answers):
                y = client.stream.run(x)
                begin = i * (8 + y.nbytes)
                assert found[begin : begin + 8 + y.nbytes] == struct.pack("<Q", 64) + y.tobytes()

    def test_a_client_that_never_reads(self, tmp_path, rng):
        model = build((recurrent("gru", 3, 8, "gru"), spec.Linear("head", 8, 512)), rng)
        model.save(tmp_path / "model.safetensors")
        with serving(model, tmp_path / "model.safetensors") as served, served.client() as other:
            with served.client(receive=4096) as client:
                x = input_for(model, rng, 256)
                with pytest.raises(ConnectionError):
                    talk_on(client, x, lambda: other.ask(input_for(model, rng, 1)))
            with resumed(served, client) as again:
                assert again.steps % 256 == 0
                for _ in range(again.steps // 256):
                    again.stream.run(x)
                again.ask(input_for(model, rng, 2))
            other.ask(input_for(model, rng, 2))
            code, errors = served.stop()
            assert code == 0
            assert "does not read its answers: 2097184 bytes wait" in errors

    def test_clients(self, model, path, rng):
        with serving(model, path, "--max-clients", 2) as served:
            with served.client() as a, served.client() as b:
                for _ in range(3):
                    with pytest.raises(
                        RefusedError, match=r"^the server is full: it takes 2 clients$"
                    ):
                        served.client()
                b.ask(input_for(model, rng, 2))
            with pytest.raises(RefusedError, match=r"^the server is full: it keeps 2 sessions$"):
                wait_for_room(served)
            resumed(served, a).goodbye()
            with served.client() as c, resumed(served, b) as again:
                c.ask(input_for(model, rng, 2))
                again.ask(input_for(model, rng, 2))
            code, errors = served.stop()
            assert code == 0
            lines = errors.splitlines()
            assert (
                lines.count("a client is disconnected, the server is full: it takes 2 clients") == 1
            )

    def test_no_hello(self, model, path, rng):
        with (
            serving(model, path, "--idle", 0.5) as served,
            socket.create_connection(("127.0.0.1", served.port), PATIENCE) as connection,
        ):
            connection.sendall(b"fl")
            text = "no hello: for 0.5 seconds"
            expected = struct.pack("<QQ", END, len(text)) + text.encode()
            assert connection.recv(1000, socket.MSG_WAITALL) == expected

    def test_idle(self, model, path, rng):
        """Ends sessions, with a client and without, but not one that makes steps."""
        with (
            serving(model, path, "--idle", 2) as served,
            served.client() as active,
            served.client() as silent,
            served.client() as gone,
        ):
            gone.ask(input_for(model, rng, 1))
            gone.socket.close()
            silent.ask(input_for(model, rng, 1))
            end = time.monotonic() + PATIENCE
            while not select.select([silent.socket], [], [], 0.01)[0]:
                active.ask(input_for(model, rng, 1))
                assert time.monotonic() < end
            text = r"^idle: no message for 2 seconds, the session has ended$"
            with pytest.raises(RefusedError, match=text):
                silent.answer()
            active.ask(input_for(model, rng, 1))
            for client in (silent, gone):
                with pytest.raises(RefusedError, match=r"^no such session: it has ended"):
                    served.client(session=client.session)
                active.ask(input_for(model, rng, 1))


def wait_for_room(served: Served) -> None:
    """Connect until the server does not refuse for its clients' number, and try to stay."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            served.client().goodbye()
        except RefusedError as refusal:
            if "clients" not in str(refusal):
                raise


def hear_out(client: Client, x: list[np.ndarray]) -> tuple[int, str]:
    """Check the answers that still come; how many, and why there are no more."""
    for heard, one in enumerate(x):
        try:
            client.check(one)
        except RefusedError as refusal:
            return heard, str(refusal)
    raise AssertionError("everything was answered")


@pytest.fixture(scope="module")
def sessions(model: Model, path: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a server saved of three."""
    state, rng = tmp_path_factory.mktemp("sessions") / "sessions", np.random.default_rng(1)
    with serving(model, path, "--state", state) as served:
        for _ in range(3):
            with served.client() as client:
                client.ask(input_for(model, rng, 5))
        assert served.stop()[0] == 0
    assert state.stat().st_mode & 0o777 == 0o600
    return state.read_bytes()


class TestState:
    def test_stopped_under_load(self, model, path, tmp_path, rng):
        """All that was answered was made, all that was made is saved, and goes on from there."""
        state = tmp_path / "sessions"
        with serving(model, path, "--state", state, "--max-batch", 5) as served:
            first, *clients = [served.client() for _ in range(13)]
            first.goodbye()  # so that the numbers of slots change
            x = [[input_for(model, rng, int(n)) for n in rng.integers(1, 60, 400)] for _ in clients]
            sent, heard = [0] * len(clients), [0] * len(clients)
            for client in clients:
                client.socket.settimeout(PATIENCE)
            for turn in range(150):
                for i, client in enumerate(clients):
                    client.send(x[i][sent[i]])
                    sent[i] += 1
                    if turn > i:
                        client.check(x[i][heard[i]])
                        heard[i] += 1
                if turn == 100:
                    served.signalled()
                    break
            for i, client in enumerate(clients):
                more, why = hear_out(client, x[i][heard[i] :])
                heard[i] += more
                assert why == "the server is stopping; go on later with this session"
                client.socket.close()
            assert served.ended() == (0, "")
        with serving(model, path, "--state", state) as served:
            assert served.restored == ", 12 sessions restored"
            for i, client in enumerate(clients):
                with resumed(served, client) as again:
                    assert again.steps == sum(map(len, x[i][: heard[i]]))
                    again.ask(x[i][heard[i]])
                    heard[i] += 1
            served.signalled(signal.SIGINT)
            assert served.ended() == (0, "")
        with serving(model, path, "--state", state) as served:
            for i, client in enumerate(clients):
                with resumed(served, client) as again:
                    assert again.steps == sum(map(len, x[i][: heard[i]]))
                    again.ask(x[i][heard[i]])
                    again.goodbye()
            with served.client() as new:
                assert new.steps == 0
                new.goodbye()
            assert served.stop()[0] == 0
        with serving(model, path, "--state", state) as served:
            assert served.restored == ""
        assert os.listdir(tmp_path) == ["sessions"]

    @pytest.fixture
    def saved(self, sessions: bytes, tmp_path: Path) -> Path:
        """A file of three sessions."""
        state = tmp_path / "sessions"
        state.write_bytes(sessions)
        return state

    def refused(self, path: Path, state: Path, *options: Any) -> str:
        """What a server says that does not start for its file of sessions."""
        content = state.read_bytes()
        done = subprocess.run(
            [sys.executable, str(TOOL), str(path), "--state", str(state), *map(str, options)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert state.read_bytes() == content
        return done.stderr

    def test_damaged_file(self, saved, path):
        saved.write_bytes(saved.read_bytes()[:-1])
        assert self.refused(path, saved) == f"{saved}: the file is damaged or was cut short\n"
        saved.write_bytes(b"")
        foreign = f"{saved}: these are not sessions that this server saved\n"
        assert self.refused(path, saved) == foreign

    def test_any_damage(self, saved, path, model, rng, tool):
        """Every way of cutting it, and a bit anywhere; and a file of something else."""
        content, target = saved.read_bytes(), saved.with_name("damaged")

        async def restored(data: bytes, message: str = "") -> int:
            target.write_bytes(data)
            server = tool.Server(model, 8, 64, 64, 60.0)
            try:
                server.restore(target)
            except fastlstm.FormatError as error:
                assert len(server.pool) == 0
                said = str(error)
            else:
                said = ""
            assert message in said
            return len(server.sessions)

        assert asyncio.run(restored(content)) == 3
        foreign = "these are not sessions that this server saved"
        assert asyncio.run(restored(path.read_bytes(), foreign)) == 0
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 16
        assert asyncio.run(restored(bytes(flipped), "damaged or was cut short")) == 0
        for size in range(0, len(content), 7):
            assert asyncio.run(restored(content[:size])) == 0
        for at in [*range(200), *rng.integers(len(content), size=100)]:
            flipped = bytearray(content)
            flipped[at] ^= 1 << rng.integers(8)
            assert asyncio.run(restored(bytes(flipped))) == 0

    def test_of_another_model(self, saved, tmp_path, rng):
        other = tmp_path / "other.safetensors"
        build((recurrent("lstm", 5, 19, "lstm"), spec.Linear("head", 19, 3)), rng).save(other)
        errors = self.refused(other, saved)
        assert errors.startswith(f"{saved}: ")
        assert "of another model" in errors
        assert "Traceback" not in errors

    def test_more_sessions_than_places(self, saved, path):
        errors = self.refused(path, saved, "--max-clients", 2)
        assert errors == f"{saved}: 3 sessions; expected at most 2, --max-clients\n"

    def test_a_place_that_cannot_be_written(self, model, path, tmp_path):
        missing = tmp_path / "missing" / "sessions"
        command = [sys.executable, str(TOOL), str(path), "--state", str(missing)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 2
        assert done.stderr == f"{missing.parent}: no folder to write the state to\n"
        missing.parent.mkdir()
        with serving(model, path, "--state", missing) as served, served.client() as client:
            missing.parent.rmdir()
            served.signalled()
            with pytest.raises(RefusedError, match=r"^the server is stopping; go on later"):
                client.answer()
            code, errors = served.ended()
            assert code == 2
            assert "No such file or directory" in errors
            assert "Traceback" not in errors


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/serve.py as a module."""
    found = importlib.util.spec_from_file_location("serve", TOOL)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (["--max-clients", "0"], "0; expected at least 1"),
            (["--max-message", "-3"], "-3; expected at least 1"),
            (["--idle", "nan"], "nan; expected a positive number"),
        ],
    )
    def test_options(self, path, tool, options, text, capsys):
        with pytest.raises(SystemExit) as exit_:
            tool.main([str(path), *options])
        assert exit_.value.code == 2
        assert text in capsys.readouterr().err

    def test_a_model_that_cannot_be_served(self, tmp_path, tool, rng, capsys):
        missing = tmp_path / "missing"
        assert tool.main([str(missing)]) == 2
        assert "No such file or directory" in capsys.readouterr().err
        both = tmp_path / "both.safetensors"
        build((recurrent("gru", 3, 4, "gru", bidirectional=True),), rng).save(both)
        assert tool.main([str(both)]) == 2
        assert "call model(x) with whole sequences instead" in capsys.readouterr().err

    def test_port_in_use(self, served, path, tool, capsys):
        assert tool.main([str(path), "--port", str(served.port)]) == 2
        assert "address already in use" in capsys.readouterr().err

    def test_stats(self, model, path, rng):
        with serving(model, path, "--stats", 0.2) as served, served.client() as client:
            client.ask(input_for(model, rng, 4))
            wait_for(
                lambda: re.fullmatch(
                    r"1 clients, 1 sessions, \d+ steps/s, 1\.0 messages a batch\n",
                    served.process.stdout.readline(),
                )
            )


class Sent:
    """A transport and its socket, which keep what they are told."""

    def __init__(self) -> None:
        self.written = b""
        self.is_reading, self.is_closed = True, False
        self.options: dict[tuple[int, int], int] = {}

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> Sent:
        assert name == "socket"
        return self

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options[level, option] = value

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    abort = close


class TestInside:
    """What a client cannot see, or cannot have happen at will."""

    @pytest.fixture
    def server(self, tool, model):
        """Its loop does not run: a turn is a call of ``server.run``."""

        async def made() -> Any:
            return tool.Server(model, 8, 64, 2, 10.0)

        with contextlib.closing(asyncio.new_event_loop()) as loop:
            yield loop.run_until_complete(made())

    def join(self, tool: ModuleType, server: Any, session: bytes = NEW) -> Any:
        client = tool.Client(server)
        client.connection_made(Sent())
        self.receive(client, struct.pack("<4sI16s", b"flst", 1, session))
        return client

    def receive(self, client: Any, data: bytes) -> None:
        buffer = client.get_buffer(-1)
        buffer[: len(data)] = data
        client.buffer_updated(len(data))

    def message(self, x: np.ndarray) -> bytes:
        return struct.pack("<Q", len(x)) + x.tobytes()

    def test_a_batch_is_what_arrived_in_a_turn(self, tool, server, model, rng):
        """In batches of two, of which each client has one message."""
        clients = [self.join(tool, server) for _ in range(5)]
        x = [input_for(model, rng, T) for T in (1, 3, 2, 4, 1)]
        for client, one in zip(clients, x, strict=True):
            client.transport.written = b""
            self.receive(client, self.message(one) * 2)
        server.run()
        assert (server.batches, server.messages, server.steps) == (3, 5, 11)
        server.run()
        assert (server.batches, server.messages, server.steps) == (6, 10, 22)
        server.run()
        assert server.messages == 10
        for client, one in zip(clients, x, strict=True):
            stream = model.stream()
            assert client.transport.written == b"".join(
                self.message(stream.run(one)) for _ in range(2)
            )

    def test_gone_before_the_batch(self, tool, server, model, rng):
        """Its steps are not made, and its session is free for the next connection."""
        client, other = self.join(tool, server), self.join(tool, server)
        x, session = input_for(model, rng, 3), client.session
        self.receive(client, self.message(x))
        self.receive(other, self.message(x))
        client.connection_lost(None)
        again = self.join(tool, server, session.name)
        self.receive(again, self.message(x))
        server.run()
        assert server.pool.steps(session.slot) == 3
        assert len(server.clients) == 2
        expected = self.message(model.stream().run(x))
        assert again.transport.written[52:] == other.transport.written[52:] == expected
        assert client.transport.written[52:] == b""

    def test_what_is_buffered_is_bounded(self, tool, server, model, rng):
        client = self.join(tool, server)
        message = self.message(input_for(model, rng, 64))
        while client.transport.is_reading:
            self.receive(client, message)
            assert len(client.inbox) < server.largest + len(server.received)
        assert len(client.inbox) >= server.largest == len(message)
        assert client.transport.high == 4 * (8 + 64 * 3 * 4)
        while not client.transport.is_reading:
            server.run()
        assert len(client.inbox) < server.largest

    def test_the_last_messages_are_answered(self, tool, server, model, rng):
        """All that are whole; not the one that is not."""
        client = self.join(tool, server)
        x = input_for(model, rng, 5)
        self.receive(client, self.message(x) * 7 + self.message(x)[:-1])
        server.finish()
        assert server.steps == server.pool.steps(client.session.slot) == 35

    def test_half_closed(self, tool, server, model, rng):
        """Stays open until the last answer."""
        client = self.join(tool, server)
        self.receive(client, self.message(input_for(model, rng, 1)) * 2)
        assert client.eof_received()
        server.run()
        assert not client.transport.is_closed
        server.run()
        assert client.transport.is_closed
        assert len(client.transport.written) == 52 + 2 * (8 + 12)
        assert not self.join(tool, server).eof_received()

    def test_who_is_idle(self, tool, server, model, rng):
        """Neither who has just come back, nor whose message is in the next batch."""
        gone, silent, late, back = (self.join(tool, server) for _ in range(4))
        sessions = [client.session for client in (gone, silent, late, back)]
        for client in (silent, late):
            client.since -= server.idle
        for client in (gone, back):
            client.connection_lost(None)
        back = self.join(tool, server, sessions[3].name)
        self.receive(late, self.message(input_for(model, rng, 1)))
        pool = server.pool

        class AllIdle:
            def idle(self, seconds: float) -> np.ndarray:
                assert seconds == server.idle
                return pool.slots

            def __getattr__(self, name: str) -> Any:
                return getattr(pool, name)

        server.pool = AllIdle()
        server.sweep()
        assert list(server.sessions.values()) == sessions[2:]
        assert set(pool.slots.tolist()) == {session.slot for session in sessions[2:]}
        assert silent.transport.written.endswith(b"the session has ended")
        server.run()
        assert late.transport.written[52:60] == struct.pack("<Q", 1)

    def test_a_machine_that_vanishes_is_noticed(self, tool, server):
        assert self.join(tool, server).transport.options == {
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 1,
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 1,
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
        }
