"""fastlstm serve over HTTP: JSON by hand, and tritonclient's tensors as bytes."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from processes import PATIENCE, inputs_for, serving

from fastlstm.serving.repository import Repository

Values = dict[str, np.ndarray]


def ask(
    server: Any, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.http}{path}",
        data=data,
        headers={name.replace("_", "-"): text for name, text in headers.items()},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as found:
            return found.status, dict(found.headers), found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def in_json(values: Values) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": "INT64" if array.dtype.kind == "i" else "FP32",
            "shape": list(array.shape),
            "data": array.ravel().tolist(),
        }
        for name, array in values.items()
    ]


def infer(server: Any, model: str, values: Values, **fields: Any) -> dict[str, Any]:
    body = {"inputs": in_json(values)} | fields
    status, _, answer = ask(server, f"/v2/models/{model}/infer", body)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    return found


def arrays(answer: dict[str, Any]) -> Values:
    return {
        output["name"]: np.array(output["data"], np.float32).reshape(output["shape"])
        for output in answer["outputs"]
    }


class TestServer:
    def test_health(self, server):
        for path in ("live", "ready"):
            assert ask(server, f"/v2/health/{path}")[0] == 200
        assert ask(server, "/v2/models/plain/ready")[0] == 200
        assert ask(server, "/v2/models/plain/versions/1/ready")[0] == 200
        assert ask(server, "/v2/models/another/ready")[0] == 404

    def test_metadata(self, server):
        status, headers, body = ask(server, "/v2")
        assert (status, headers["content-type"]) == (200, "application/json")
        assert json.loads(body)["name"] == "fastlstm"
        found = json.loads(ask(server, "/v2/models/frames")[2])
        assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2, 5]}]

    def test_index(self, server, models):
        """Of tritonclient, without a body, and by hand."""
        everything = [{"name": n, "version": "1", "state": "READY"} for n in models]
        for body in (b"", b"{}", {"ready": True}):
            status, _, answer = ask(server, "/v2/repository/index", body)
            assert (status, json.loads(answer)) == (200, everything)
        for wrong in ({"ready": 1}, {"read": True}, [True], b"{"):
            assert ask(server, "/v2/repository/index", wrong)[0] == 400

    def test_index_while_it_stops(self):
        models = [SimpleNamespace(name=name, stopping=name == "b") for name in "ab"]
        repository = Repository(models)
        assert [one["state"] for one in repository.index()] == ["READY", "UNAVAILABLE"]
        assert [one["name"] for one in repository.index(ready=True)] == ["a"]

    def test_another_path(self, server):
        status, _, body = ask(server, "/v2/models/plain/config")
        assert status == 404
        assert "nothing at '/v2/models/plain/config'" in json.loads(body)["error"]
        assert ask(server, "/v2/models/plain/infer")[0] == 405


@pytest.mark.parametrize("name", ["plain", "words", "several", "late", "frames"])
def test_a_whole_sequence(server, models, name, rng):
    """Numbers pass through JSON with all their bits."""
    values = inputs_for(models[name], rng, 7)
    y, _ = models[name](values if len(values) > 1 else next(iter(values.values())))
    expected = y if isinstance(y, dict) else {"y": y}
    answer = infer(server, name, values, id="seven")
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", name, "1")
    found = arrays(answer)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].tobytes() == np.ascontiguousarray(array).tobytes()


def test_a_sequence_and_nested_numbers(server, models, rng):
    x = rng.standard_normal((9, 6)).astype(np.float32)
    stream = models["plain"].stream()
    for first, last in ((0, 2), (2, 9)):
        body = {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [last - first, 6],
                    "data": x[first:last].tolist(),
                }
            ],
            "parameters": {"sequence_id": "http", "sequence_start": first == 0},
        }
        answer = json.loads(ask(server, "/v2/models/plain/infer", body)[2])
        assert answer["parameters"] == {"sequence_steps": last}
        assert arrays(answer)["y"].tobytes() == stream.run(x[first:last]).tobytes()


def test_the_state_in_the_hands_of_the_client(server, models, rng):
    """As numbers of JSON: an array of bytes."""
    x = rng.standard_normal((6, 6)).astype(np.float32)
    outputs = [{"name": "y"}, {"name": "stream_state"}]
    first = infer(server, "plain", {"x": x[:4]}, outputs=outputs)
    state = first["outputs"][1]
    assert state["datatype"] == "UINT8"
    given = [*in_json({"x": x[4:]}), state]
    second = json.loads(ask(server, "/v2/models/plain/infer", {"inputs": given})[2])
    stream = models["plain"].stream()
    stream.run(x[:4])
    assert np.float32(second["outputs"][0]["data"]).tobytes() == stream.run(x[4:]).tobytes()
    state["data"][20] ^= 1
    status, _, body = ask(server, "/v2/models/plain/infer", {"inputs": given})
    assert status == 400, body


class TestBinary:
    def test_as_tritonclient_sends_it(self, server, models, rng):
        pytest.importorskip("geventhttpclient", reason="of tritonclient[http]")
        from tritonclient import http as triton

        x = rng.standard_normal((5, 6)).astype(np.float32)
        given = triton.InferInput("x", [5, 6], "FP32")
        given.set_data_from_numpy(x)
        with triton.InferenceServerClient(server.address) as client:
            found = client.infer("plain", [given], sequence_id=12, sequence_start=True)
        assert found.as_numpy("y").tobytes() == models["plain"](x)[0].tobytes()

    def test_by_hand(self, server, models, rng):
        values = inputs_for(models["several"], rng, 3)
        head: dict[str, Any] = {"inputs": [], "parameters": {"binary_data_output": True}}
        head["outputs"] = [{"name": "y"}, {"name": "state", "parameters": {"binary_data": False}}]
        for entry in in_json(values):
            del entry["data"]
            size = values[entry["name"]].nbytes
            head["inputs"].append(entry | {"parameters": {"binary_data_size": size}})
        text = json.dumps(head).encode()
        body = text + b"".join(array.tobytes() for array in values.values())
        status, headers, answer = ask(
            server,
            "/v2/models/several/infer",
            body,
            inference_header_content_length=str(len(text)),
        )
        assert status == 200, answer
        size = int(headers["inference-header-content-length"])
        y, state = json.loads(answer[:size])["outputs"]
        expected, _ = models["several"](values)
        assert answer[size:] == expected["y"].tobytes()
        assert y["parameters"] == {"binary_data_size": expected["y"].nbytes}
        assert np.float32(state["data"]).tobytes() == expected["state"].tobytes()

    @pytest.mark.parametrize(
        ("header", "size", "text"),
        [
            ("x", 24, "expected the bytes of the JSON"),
            ("-1", 24, "expected the bytes of the JSON"),
            ("99999999", 24, "expected the bytes of the JSON"),
            (None, 23, "has 23 bytes; expected 24"),
            (None, 25, "24 bytes follow the JSON; the inputs take 25"),
            (None, 2**70, "24 bytes follow the JSON"),
        ],
    )
    def test_sizes_that_do_not_fit(self, server, header, size, text):
        entry = {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, 6],
            "parameters": {"binary_data_size": size},
        }
        head = json.dumps({"inputs": [entry]}).encode()
        given = str(len(head)) if header is None else header
        status, _, body = ask(
            server,
            "/v2/models/plain/infer",
            head + bytes(24),
            inference_header_content_length=given,
        )
        assert status == 400
        assert text in json.loads(body)["error"]


X = {"name": "x", "datatype": "FP32", "shape": [1, 6], "data": [0.0] * 6}

REFUSED: dict[str, tuple[Any, int, str]] = {
    "nothing": (b"", 400, "not JSON"),
    "no JSON": (b"{", 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "not JSON"),
    "a list": ([], 400, "not a JSON object"),
    "inputs of another kind": ({"inputs": 3}, 400, "'inputs' is 3"),
    "inputs of no objects": ({"inputs": [3]}, 400, "holds what is no object"),
    "no name": ({"inputs": [{}]}, 400, "'name' is missing"),
    "no data": ({"inputs": [{k: X[k] for k in X if k != "data"}]}, 400, "neither data nor"),
    "data twice": (
        {"inputs": [X | {"parameters": {"binary_data_size": 24}}]},
        400,
        "has data and binary_data_size",
    ),
    "words": ({"inputs": [X | {"data": ["a"] * 6}]}, 400, "do not fit"),
    "nulls": ({"inputs": [X | {"data": [None] * 6}]}, 400, "do not fit"),
    "truths": ({"inputs": [X | {"data": [True] * 6}]}, 400, "do not fit"),
    "too few": ({"inputs": [X | {"data": [0.0] * 5}]}, 400, "do not fit"),
    "ragged": ({"inputs": [X | {"data": [[0.0] * 5, [0.0]]}]}, 400, "do not fit"),
    "nested in another way": ({"inputs": [X | {"data": [[0.0]] * 6}]}, 400, "do not fit"),
    "a large number": ({"inputs": [X | {"data": [10**400] * 6}]}, 400, "do not fit"),
    "a shape of words": ({"inputs": [X | {"shape": ["1", 6]}]}, 400, "the shape of input 'x'"),
    "a shape of truths": ({"inputs": [X | {"shape": [True, 6]}]}, 400, "the shape of input 'x'"),
    "another input": ({"inputs": [X | {"name": "z"}]}, 400, "no input 'z'"),
    "twice": ({"inputs": [X, X]}, 400, "given twice"),
    "a name of another kind": (
        {"inputs": [X], "parameters": {"sequence_id": 1.5}},
        400,
        "'sequence_id' is 1.5",
    ),
    "a flag of another kind": (
        {"inputs": [X], "parameters": {"sequence_id": 1, "sequence_start": 1}},
        400,
        "'sequence_start' is 1",
    ),
    "an unknown sequence": (
        {"inputs": [X], "parameters": {"sequence_id": "gone"}},
        404,
        "no sequence 'gone'",
    ),
    "a classification": (
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
        400,
        "parameter 'classification', which does nothing here",
    ),
    "shared memory": (
        {"inputs": [X | {"parameters": {"shared_memory_region": "r"}}]},
        400,
        "parameter 'shared_memory_region', which does nothing here",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize("what", REFUSED)
    def test_is_told(self, server, what):
        body, status, text = REFUSED[what]
        found, headers, answer = ask(server, "/v2/models/plain/infer", body)
        assert (found, headers["content-type"]) == (status, "application/json")
        assert text in json.loads(answer)["error"]

    def test_compressed(self, server):
        found = ask(server, "/v2/models/plain/infer", b"", content_encoding="gzip")
        assert found[0] == 400
        assert "content-encoding" in json.loads(found[2])["error"]

    def test_numbers_that_json_cannot_say(self, server):
        """The steps are made, as the answer says; bytes say every number."""
        x = X | {"data": [float("nan")] * 6}
        body: dict[str, Any] = {
            "inputs": [x],
            "parameters": {"sequence_id": "nan", "sequence_start": True},
        }
        status, _, answer = ask(server, "/v2/models/plain/infer", body)
        assert status == 500
        assert "output y has numbers that are not finite" in json.loads(answer)["error"]
        body["parameters"] = {"sequence_id": "nan", "binary_data_output": True}
        status, headers, answer = ask(server, "/v2/models/plain/infer", body)
        head = int(headers["inference-header-content-length"])
        assert json.loads(answer[:head])["parameters"]["sequence_steps"] == 2
        assert np.isnan(struct.unpack("<5f", answer[head:])).all()

    def test_a_page_of_another_site(self, server):
        body = {"inputs": [X]}
        own = f"http://{server.address}"
        assert ask(server, "/v2/models/plain/infer", body, origin=own)[0] == 200
        assert ask(server, "/v2/models/plain/infer", body, origin="https://example.org")[0] == 401
        # A site whose name resolves to this machine.
        rebound = {"origin": "http://example.org:8000", "host": "example.org:8000"}
        assert ask(server, "/v2/models/plain/infer", body, **rebound)[0] == 401


def test_metrics(server, models, rng):
    """Streams, steps, times, batches and refusals, of each model."""
    x = rng.standard_normal((3, 6)).astype(np.float32)

    def read() -> dict[str, float]:
        status, headers, body = ask(server, "/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (one.rpartition(" ") for one in lines)}

    before = read()
    infer(server, "plain", {"x": x}, parameters={"sequence_id": "m", "sequence_start": True})
    ask(server, "/v2/models/plain/infer", {"inputs": []})
    after = read()

    def more(name: str) -> float:
        return after[name] - before[name]

    assert more('fastlstm_steps_total{model="plain"}') == 3
    assert more('fastlstm_streams{model="plain"}') == 1
    assert more('fastlstm_request_seconds_count{model="plain",protocol="http"}') == 1
    assert more('fastlstm_batch_requests_sum{model="plain"}') == 1
    assert more('fastlstm_refusals_total{kind="invalid"}') == 1


def test_a_token(paths):
    token = "a-token-of-24-characters"
    with serving({"plain": paths["plain"]}, FASTLSTM_TOKEN=token) as server:
        body = {"inputs": [X]}
        path = "/v2/models/plain/infer"
        assert ask(server, "/v2/health/ready")[0] == 200
        for wrong in ({}, {"authorization": token}, {"authorization": f"Bearer {token}x"}):
            for at, given in (("/v2", None), ("/metrics", None), (path, body)):
                status, headers, answer = ask(server, at, given, **wrong)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert token not in answer.decode()
        assert ask(server, path, body, authorization=f"Bearer {token}")[0] == 200
        # The page of a site whose name resolves to this machine cannot know the token.
        site = {"origin": f"http://{server.address}", "authorization": f"Bearer {token}"}
        assert ask(server, path, body, **site)[0] == 200


def test_limits(paths):
    options = ("--max-streams", "2", "--max-message", "4096", "--max-steps", "10")
    with serving({"plain": paths["plain"]}, *options) as server:
        path = "/v2/models/plain/infer"

        def start(name: int) -> int:
            parameters = {"sequence_id": name, "sequence_start": True}
            status, headers, _ = ask(server, path, {"inputs": [X], "parameters": parameters})
            assert ("retry-after" in headers) == (status == 429)
            return status

        assert [start(1), start(2), start(3)] == [200, 200, 429]
        assert [start(1), start(2)] == [200, 200]  # anew
        assert ask(server, path, {"inputs": [X]})[0] == 429  # a sequence of its own
        ends = {"sequence_id": 1, "sequence_end": True}
        assert ask(server, path, {"inputs": [X], "parameters": ends})[0] == 200
        assert start(3) == 200
        assert ask(server, path, b"x" * 4097)[0] == 400
        long = X | {"shape": [11, 6], "data": [0.0] * 66}
        assert "at most 10" in json.loads(ask(server, path, {"inputs": [long]})[2])["error"]


def test_a_head_without_end(server):
    """It is cut off; a long one that ends is answered."""
    host, port = server.address.split(":")
    for size, answered in ((30_000, True), (10_000_000, False)):
        with socket.create_connection((host, int(port)), PATIENCE) as connection:
            sent = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nmany: " + b"y" * size
            received = b""
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent + b"\r\n\r\n")
                received = connection.recv(100)
        assert received.startswith(b"HTTP/1.1 200") is answered
