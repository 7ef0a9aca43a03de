"""What was found by those who tried to break fastlstm serve."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from processes import PATIENCE, Server, serving
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub


def test_no_answer_of_a_stream_overtakes_what_it_says(server, models, rng):
    """Steps, late rows and state are known a turn of the loop after the rows: none goes before."""
    requests, x = [], rng.standard_normal((32, 5, 6)).astype(np.float32)
    for name, outputs in (("late", ["y"]), ("plain", ["y", "stream_state"])):
        for rows in x:
            request = messages.ModelInferRequest(model_name=name)
            request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
            request.raw_input_contents.append(rows.tobytes())
            for output in outputs:
                request.outputs.add(name=output)
            requests.append(request)
    expected = [models["late"](rows)[0].tobytes() for rows in x]
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(10):
            answers = list(stub.ModelStreamInfer(iter(requests), timeout=PATIENCE))
            assert not any(answer.error_message for answer in answers)
            found = [answer.infer_response for answer in answers]
            assert {one.parameters["sequence_steps"].int64_param for one in found} == {5}
            assert [one.raw_output_contents[0] for one in found[:32]] == expected
            assert {len(one.outputs) for one in found[32:]} == {2}


def post(server: Server, body: str, **headers: str) -> int:
    """The status of a request for steps of the plain model."""
    request = urllib.request.Request(
        f"{server.http}/v2/models/plain/infer", data=body.encode(), headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def started(name: str) -> str:
    """A request that starts a sequence, whose name is JSON."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 6], "data": [0.5] * 6}
    head = f'{{"inputs": [{json.dumps(x)}], "parameters": {{"sequence_id": {name}, '
    return head + '"sequence_start": true}}'


def test_a_name_that_no_file_can_hold_loses_nobody_elses_sequences(paths, tmp_path):
    state = ("--state", str(tmp_path / "state"))
    with serving({"plain": paths["plain"]}, *state) as server:
        assert post(server, started('"kept"')) == 200
        assert post(server, started('"\\udfff"')) == 400
        server.end()
        assert server.process.returncode == 0
    with serving({"plain": paths["plain"]}, *state) as server:
        assert server.restored == 1


def test_sequences_for_which_there_is_no_room(paths, tmp_path):
    """Of one model, however many another one has room for."""
    state = ("--state", str(tmp_path / "state"))
    models = {name: paths[name] for name in ("plain", "late")}
    with serving(models, *state) as server:
        for number in range(5):
            assert post(server, started(str(number + 1))) == 200
        server.end()
    with pytest.raises(RuntimeError, match="more than 4 sequences of model 'plain'; raise --max"):
        Server(models, *state, "--max-streams", "4")
    with serving(models, *state, "--max-streams", "5") as server:
        assert server.restored == 5


def test_an_origin_that_is_no_address(server):
    assert post(server, started("99"), origin="http://[") == 401


@pytest.mark.parametrize(
    "more", ["content-length: 5\r\n\r\nhello", f"many: {'y' * 20_000}\r\n\r\n"]
)
def test_an_upgrade_without_a_handshake_is_cut(server, more):
    host, port = server.address.split(":")
    head = "GET /v2/models/plain/stream HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n"
    head += "connection: upgrade\r\nsec-websocket-version: 13\r\n"
    head += "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    with (
        socket.create_connection((host, int(port)), PATIENCE) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall((head + more).encode())
        while data := connection.recv(65536):
            assert b" 101 " not in data.split(b"\r\n")[0]


def test_a_client_that_does_not_read_does_not_hold_up_a_stop(paths):
    """Though it would be waited for much longer."""
    with serving({"plain": paths["plain"]}, "--patience", "1000") as server:
        host, port = server.address.split(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.settimeout(1)
            connection.sendall(
                b"GET /v2/models/plain/stream HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n"
                b"connection: upgrade\r\nsec-websocket-version: 13\r\n"
                b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            rows = bytes(24 * 1000)
            frame = b"\x82\xfe" + struct.pack(">H", len(rows)) + bytes(4) + rows
            with contextlib.suppress(TimeoutError):
                while True:
                    connection.sendall(frame)
            server.end()
        assert server.process.returncode == 0
