"""What becomes of sequences when fastlstm serve is stopped, and when it is killed, under load."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from processes import PATIENCE, Server, serving
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from fastlstm import Model, Stream

K = 3  # steps of a request

Ask = Callable[[np.ndarray], bytes]


def request(x: np.ndarray, name: int, starts: bool) -> Any:
    found = messages.ModelInferRequest(model_name="plain", raw_input_contents=[x.tobytes()])
    found.inputs.add(name="x", datatype="FP32", shape=x.shape)
    found.parameters["sequence_id"].int64_param = name
    found.parameters["sequence_start"].bool_param = starts
    return found


class Client:
    """One sequence, and the stream that it must equal.

    Parameters
    ----------
    model : Model
    name : int
    """

    def __init__(self, model: Model, name: int) -> None:
        self.stream: Stream = model.stream()
        self.name, self.blocks = name, 0
        self.rng = np.random.default_rng(name)
        self.wrong = ""

    @contextlib.contextmanager
    def asking(self, server: Server) -> Iterator[Ask]:
        """What asks for a block, as long as the server answers."""
        raise NotImplementedError
        yield

    def ask(self, ask: Ask) -> None:
        """Ask for the next block, and compare."""
        x = self.rng.standard_normal((K, 6)).astype(np.float32)
        answer = ask(x)
        assert answer == self.stream.run(x).tobytes()
        self.blocks += 1

    def run(self, server: Server) -> None:
        """Ask until there is no answer; what was not answered is asked again later."""
        try:
            with self.asking(server) as ask:
                while True:
                    before = self.rng.bit_generator.state
                    self.ask(ask)
        except (grpc.RpcError, ConnectionClosed, OSError):
            self.rng.bit_generator.state = before
        except BaseException as error:
            self.wrong = repr(error)


class Unary(Client):
    @contextlib.contextmanager
    def asking(self, server: Server) -> Iterator[Ask]:
        with grpc.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)

            def ask(x: np.ndarray) -> bytes:
                asked = request(x, self.name, not self.blocks)
                answer = stub.ModelInfer(asked, timeout=PATIENCE)
                assert answer.parameters["sequence_steps"].int64_param == K * (self.blocks + 1)
                found: bytes = answer.raw_output_contents[0]
                return found

            yield ask


class Streaming(Client):
    """Over one call."""

    @contextlib.contextmanager
    def asking(self, server: Server) -> Iterator[Ask]:
        told: list[Any] = []
        more = threading.Semaphore(0)

        def requests() -> Iterator[Any]:
            while True:
                more.acquire()
                if not told:
                    return
                yield told.pop()

        with grpc.insecure_channel(server.grpc) as channel:
            answers = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())

            def ask(x: np.ndarray) -> bytes:
                told.append(request(x, self.name, not self.blocks))
                more.release()
                answer = next(answers)
                if answer.error_message:
                    raise ConnectionError(answer.error_message)
                found: bytes = answer.infer_response.raw_output_contents[0]
                return found

            try:
                yield ask
            finally:
                more.release()


class WebSocket(Client):
    session = ""

    @contextlib.contextmanager
    def asking(self, server: Server) -> Iterator[Ask]:
        asked = f"?session={self.session}" if self.blocks else ""
        address = f"ws://{server.address}/v2/models/plain/stream{asked}"
        with connect(address, proxy=None, open_timeout=PATIENCE) as connection:
            hello = json.loads(connection.recv(PATIENCE))
            assert hello["steps"] == K * self.blocks
            self.session = hello["session"]

            def ask(x: np.ndarray) -> bytes:
                connection.send(x.tobytes())
                answer = connection.recv(PATIENCE)
                assert isinstance(answer, bytes)
                return answer

            yield ask
            connection.socket.close()  # broken, not closed: the session is gone on with


def load(server: Server, clients: list[Client], number: signal.Signals) -> None:
    """Have clients ask, and send a signal in the midst of it."""
    before = [client.blocks for client in clients]
    threads = [threading.Thread(target=client.run, args=[server]) for client in clients]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while any(client.blocks < n + 20 for client, n in zip(clients, before, strict=True)):
        assert time.monotonic() < deadline, [client.wrong for client in clients]
        time.sleep(0.01)
    server.process.send_signal(number)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert [client.wrong for client in clients] == [""] * len(clients)
    server.end()


@pytest.fixture
def clients(models: dict[str, Model]) -> list[Client]:
    kinds = [Unary, Streaming, WebSocket] * 3
    return [kind(models["plain"], name) for name, kind in enumerate(kinds, 1)]


def test_stopped_and_killed(paths, clients, tmp_path):
    """Stopped, all sequences go on where they were; killed, all are refused, none comes back."""
    models, state = {"plain": paths["plain"]}, ["--state", str(tmp_path / "sequences.db")]
    with serving(models, *state) as server:
        load(server, clients, signal.SIGTERM)
        assert server.process.returncode == 0
        kept = [line for line in server.log() if line["event"] == "kept"]
        assert [line["sequences"] for line in kept] == [len(clients)]
    with serving(models, *state) as server:
        assert server.restored == len(clients)
        load(server, clients, signal.SIGKILL)
    with serving(models, *state) as server:
        assert server.restored == 0
        for client in clients:
            refused = pytest.raises((grpc.RpcError, ConnectionClosed, ConnectionError))
            with refused as found, client.asking(server) as ask:
                client.ask(ask)
            assert "no such session" in str(found.value) or "no sequence" in str(found.value)
