"""fastlstm serve over WebSocket, as the websockets package sees it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from processes import PATIENCE, inputs_for, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


def address(server: Any, model: str, asked: str = "") -> str:
    return f"ws://{server.address}/v2/models/{model}/stream{asked}"


@contextmanager
def streaming(
    server: Any, model: str, asked: str = "", **options: Any
) -> Iterator[tuple[ClientConnection, dict[str, Any]]]:
    """A connection, and its hello."""
    options = {"max_size": None, "open_timeout": PATIENCE, "proxy": None} | options
    with connect(address(server, model, asked), **options) as connection:
        yield connection, json.loads(connection.recv(PATIENCE))


def send(connection: ClientConnection, x: np.ndarray, *shape: int) -> np.ndarray:
    """The answer to a frame."""
    connection.send(x.tobytes())
    answer = connection.recv(PATIENCE)
    assert isinstance(answer, bytes)
    return np.frombuffer(answer, np.float32).reshape(-1, *shape)


def refused(server: Any, model: str, asked: str = "", **options: Any) -> tuple[int, str]:
    """Code and reason with which a connection is closed."""
    with (
        pytest.raises(ConnectionClosed) as found,
        streaming(server, model, asked, **options),
    ):
        pytest.fail("there was a hello")
    assert found.value.rcvd is not None
    return found.value.rcvd.code, found.value.rcvd.reason


class TestStreams:
    def test_hello(self, server):
        with streaming(server, "frames") as (_, hello):
            assert hello["input"] == {"datatype": "FP32", "shape": [2, 5]}
            assert hello["output"] == {"datatype": "FP32", "shape": [4, 5]}
            assert (hello["model"], hello["steps"], hello["max_steps"]) == ("frames", 0, 4096)
            assert len(hello["session"]) >= 20

    @pytest.mark.parametrize("name", ["plain", "words", "late", "frames"])
    def test_blocks_of_any_length(self, server, models, name, rng):
        model = models[name]
        (x,) = inputs_for(model, rng, 40).values()
        shape = next(iter(model.outputs.values()))
        stream = model.stream()
        with streaming(server, name) as (connection, _):
            first = 0
            while first < 40:
                last = first + int(rng.integers(0, 9))
                found = send(connection, x[first:last], *shape)
                assert found.tobytes() == stream.run(x[first:last]).tobytes()
                first = last

    @pytest.mark.parametrize("name", ["plain", "late"])
    @pytest.mark.parametrize("steps", [0, 9])
    def test_the_rows_that_are_due_at_the_end(self, server, models, name, steps, rng):
        (x,) = inputs_for(models[name], rng, steps).values()
        whole, _ = models[name](x)
        found = []
        with streaming(server, name) as (connection, hello):
            if steps:
                found.append(send(connection, x, whole.shape[1]).tobytes())
            connection.send("end")
            found.append(connection.recv(PATIENCE))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(PATIENCE)
        assert b"".join(found) == whole.tobytes()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
        assert refused(server, name, f"?session={hello['session']}")[0] == 1008

    def test_many_at_once(self, server, models, rng):
        """Frames that are sent before the others are answered."""
        stream = models["plain"].stream()
        x = rng.standard_normal((200, 3, 6)).astype(np.float32)
        with streaming(server, "plain") as (connection, _):
            for block in x:
                connection.send(block.tobytes())
            for block in x:
                assert connection.recv(PATIENCE) == stream.run(block).tobytes()

    def test_a_connection_that_broke_is_gone_on_with(self, server, models, rng):
        x = rng.standard_normal((10, 6)).astype(np.float32)
        stream = models["plain"].stream()
        with streaming(server, "plain") as (connection, hello):
            assert send(connection, x[:4], 5).tobytes() == stream.run(x[:4]).tobytes()
            session = hello["session"]
            assert refused(server, "plain", f"?session={session}") == (
                1013,
                "this session has a connection",
            )
            connection.socket.close()
        with streaming(server, "plain", f"?session={session}") as (connection, hello):
            assert (hello["session"], hello["steps"]) == (session, 4)
            assert send(connection, x[4:], 5).tobytes() == stream.run(x[4:]).tobytes()
        # It was closed: it has ended.
        code, reason = refused(server, "plain", f"?session={session}")
        assert code == 1008
        assert "no such session" in reason

    def test_a_session_is_a_sequence(self, server, models, rng):
        """Which other protocols can go on with, by its name."""
        grpc = pytest.importorskip("tritonclient.grpc")
        x = rng.standard_normal((2, 6)).astype(np.float32)
        stream = models["plain"].stream()
        given = grpc.InferInput("x", [2, 6], "FP32")
        given.set_data_from_numpy(x)
        with (
            streaming(server, "plain") as (connection, hello),
            grpc.InferenceServerClient(server.grpc) as client,
        ):
            assert send(connection, x, 5).tobytes() == stream.run(x).tobytes()
            found = client.infer("plain", [given], sequence_id=hello["session"])
            assert found.as_numpy("y").tobytes() == stream.run(x).tobytes()
            assert send(connection, x, 5).tobytes() == stream.run(x).tobytes()


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "asked", "code", "text"),
        [
            ("another", "", 1008, "no model 'another'"),
            ("several", "", 1007, "a frame is rows of one"),
            ("plain", "?session=none", 1008, "no such session"),
            ("plain", "?" + "a=1&" * 9, 1007, "asks for too much"),
        ],
    )
    def test_at_the_beginning(self, server, model, asked, code, text):
        found = refused(server, model, asked)
        assert found[0] == code
        assert text in found[1]

    @pytest.mark.parametrize(
        ("frame", "code", "text"),
        [
            ("text", 1007, "a text frame"),
            (b"123", 1007, "a frame of 3 bytes; expected a multiple of 24"),
            (bytes(24 * 4097), 1007, "4097 steps; expected at most 4096"),
        ],
    )
    def test_frames(self, server, models, frame, code, text, rng):
        """They end the connection, not the stream."""
        x = rng.standard_normal((3, 6)).astype(np.float32)
        stream = models["plain"].stream()
        with streaming(server, "plain") as (connection, hello):
            send(connection, x, 5)
            stream.run(x)
            connection.send(frame)
            with pytest.raises(ConnectionClosed) as found:
                connection.recv(PATIENCE)
        assert found.value.rcvd is not None
        assert found.value.rcvd.code == code
        assert text in found.value.rcvd.reason
        with streaming(server, "plain", f"?session={hello['session']}") as (connection, hello):
            assert hello["steps"] == 3
            assert send(connection, x, 5).tobytes() == stream.run(x).tobytes()

    def test_a_token_out_of_range(self, server):
        with streaming(server, "words") as (connection, _):
            connection.send(np.array([3, 7]).tobytes())
            with pytest.raises(ConnectionClosed) as found:
                connection.recv(PATIENCE)
        assert found.value.rcvd is not None
        assert found.value.rcvd.code == 1007

    def test_the_page_of_another_site(self, server):
        code, reason = refused(server, "plain", origin="https://example.org")
        assert code == 1008
        assert "https://example.org" in reason
        with streaming(server, "plain", origin=server.http):
            pass


def test_tokens_and_sites(paths):
    token = "a-token-of-24-characters"
    options = ("--origin", "https://example.org/")
    with serving({"plain": paths["plain"]}, *options, FASTLSTM_TOKEN=token) as server:
        assert refused(server, "plain")[0] == 1008
        assert refused(server, "plain", "?token=wrong")[0] == 1008
        bearer = {"authorization": f"Bearer {token}"}
        with streaming(server, "plain", additional_headers=bearer):
            pass
        with streaming(server, "plain", f"?token={token}", origin="https://example.org"):
            pass
        server.end()
        assert token not in server.errors


def test_limits_of_time_and_number(paths, rng):
    options = ("--patience", "4", "--idle", "5", "--max-clients", "8", "--max-message", "240")
    with serving({"plain": paths["plain"]}, *options) as server:
        with (
            streaming(server, "plain") as (connection, _),
            pytest.raises(ConnectionClosed) as found,
        ):
            connection.recv(PATIENCE)  # without a frame, it takes nobody's place for long
        assert found.value.rcvd is not None
        assert found.value.rcvd.reason == "no frame after the hello"
        with streaming(server, "plain") as (connection, _):
            send(connection, np.zeros((10, 6), np.float32), 5)
            with pytest.raises(ConnectionClosed) as found:
                connection.recv(PATIENCE)
        assert found.value.rcvd is not None
        assert found.value.rcvd.code == 1001
        assert "the sequence has ended" in found.value.rcvd.reason
        with streaming(server, "plain") as (connection, _):
            connection.send(bytes(241))
            with pytest.raises(ConnectionClosed) as found:
                connection.recv(PATIENCE)
        assert found.value.rcvd is not None
        assert found.value.rcvd.code == 1009


def test_fragments_without_end(server, rng):
    """Empty ones, which no limit of bytes stops."""
    with streaming(server, "plain") as (connection, _):
        with contextlib.suppress(ConnectionClosed):
            connection.send((b"" for _ in range(2000)), text=False)
        with pytest.raises(ConnectionClosed):
            connection.recv(PATIENCE)
