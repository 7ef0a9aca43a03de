"""fastlstm serve over gRPC, as tritonclient sees it."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from processes import PATIENCE, inputs_for
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

import fastlstm

DATATYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}

Values = dict[str, np.ndarray]


@pytest.fixture
def client(server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def tensors(values: Values) -> list[triton.InferInput]:
    found = []
    for name, array in values.items():
        tensor = triton.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def infer(client: Any, model: str, values: Values, *outputs: str, **options: Any) -> Any:
    wanted = [triton.InferRequestedOutput(name) for name in outputs] or None
    return client.infer(model, tensors(values), outputs=wanted, client_timeout=PATIENCE, **options)


def arrays(result: Any) -> Values:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def assert_same(found: Values, expected: Values) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()


def expected(model: fastlstm.Model, values: Values) -> Values:
    """What a whole sequence gives."""
    only = len(values) == 1
    y, _ = model(next(iter(values.values())) if only else values)
    return y if isinstance(y, dict) else {next(iter(model.outputs)): y}


class Steps:
    """A stream of a model, fed by mappings."""

    def __init__(self, model: fastlstm.Model, held: Values) -> None:
        self.stream, self.names = model.stream(held=held or None), list(model.outputs)

    def run(self, values: Values) -> Values:
        y = self.stream.run(values if len(values) > 1 else next(iter(values.values())))
        return y if isinstance(y, dict) else {self.names[0]: y}


class TestServer:
    def test_it_is_there(self, client, models):
        assert client.is_server_live()
        assert client.is_server_ready()
        for name in models:
            assert client.is_model_ready(name)
        assert not client.is_model_ready("another")
        assert not client.is_model_ready("plain", "2")

    def test_it_says_what_it_is(self, client):
        found = client.get_server_metadata(as_json=True)
        assert found["name"] == "fastlstm"
        assert found["version"] == fastlstm.__version__
        assert "sequence" in found["extensions"]

    def test_it_says_what_models_take_and_give(self, client, models):
        found = client.get_model_metadata("several", as_json=True)
        assert found["versions"] == ["1"]
        assert found["inputs"] == [
            {"name": "x", "datatype": "FP32", "shape": ["-1", "6"]},
            {"name": "ids", "datatype": "INT64", "shape": ["-1"]},
            {"name": "knobs", "datatype": "FP32", "shape": ["6"]},
        ]
        assert [output["name"] for output in found["outputs"]] == ["state", "y"]

    def test_it_says_which_models_it_has(self, client, server, models):
        found = client.get_model_repository_index(as_json=True)["models"]
        assert found == [{"name": name, "version": "1", "state": "READY"} for name in models]
        with grpc.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="no repository 'other'"):
                stub.RepositoryIndex(messages.RepositoryIndexRequest(repository_name="other"))

    def test_what_is_not_served(self, client):
        for ask in (client.get_model_config, client.get_inference_statistics):
            with pytest.raises(InferenceServerException, match="is not served") as found:
                ask("plain")
            assert "UNIMPLEMENTED" in found.value.status()


@pytest.mark.parametrize("name", ["plain", "words", "several", "late", "frames"])
class TestModels:
    def test_a_whole_sequence(self, client, models, name, rng):
        values = inputs_for(models[name], rng, 9)
        assert_same(arrays(infer(client, name, values)), expected(models[name], values))

    def test_a_sequence_in_blocks(self, client, models, name, rng):
        model = models[name]
        held = {given.name for given in model.graph.inputs if given.held}
        values = inputs_for(model, rng, 12)
        kept = {key: values.pop(key) for key in held}
        whole = expected(model, values | kept)
        steps = Steps(model, kept)
        found: list[Values] = []
        cuts = [0, 1, 6, 6, 9, 12]
        for first, last in itertools.pairwise(cuts):
            block = {key: array[first:last] for key, array in values.items()}
            result = infer(
                client,
                name,
                block | (kept if first == 0 else {}),
                sequence_id=41,
                sequence_start=first == 0,
                sequence_end=last == 12,
            )
            found.append(arrays(result))
            assert result.get_response().parameters["sequence_steps"].int64_param == last
            if last < 12:
                assert_same(found[-1], steps.run(block))
        joined = {key: np.concatenate([one[key] for one in found]) for key in whole}
        assert_same(joined, whole)

    def test_the_state_in_the_hands_of_the_client(self, client, models, name, rng):
        model = models[name]
        held = {given.name for given in model.graph.inputs if given.held}
        values = inputs_for(model, rng, 10)
        kept = {key: values.pop(key) for key in held}
        steps = Steps(model, kept)
        outputs = [*model.outputs, "stream_state"]
        state: Values = {}
        for first, last in ((0, 3), (3, 4), (4, 10)):
            block = {key: array[first:last] for key, array in values.items()}
            given = block | (state or kept)
            result = arrays(infer(client, name, given, *(outputs if not state else ())))
            state = {"stream_state": result.pop("stream_state")}
            assert_same(result, steps.run(block))


class TestSequences:
    def test_many_interleaved_by_numbers_and_words(self, client, models, rng):
        model = models["plain"]
        streams: dict[int | str, Any] = {}
        for turn in range(60):
            name: int | str = [3, "3", 7, "a", "b"][int(rng.integers(5))]
            start = name not in streams or rng.random() < 0.1
            if start:
                streams[name] = model.stream()
            x = rng.standard_normal((int(rng.integers(1, 5)), 6)).astype(np.float32)
            end = rng.random() < 0.1
            found = infer(
                client,
                "plain",
                {"x": x},
                sequence_id=name,
                sequence_start=start,
                sequence_end=end,
            )
            assert found.as_numpy("y").tobytes() == streams[name].run(x).tobytes(), turn
            if end:
                del streams[name]

    def test_one_that_ended_is_unknown(self, client, rng):
        x = {"x": rng.standard_normal((1, 6)).astype(np.float32)}
        infer(client, "plain", x, sequence_id="once", sequence_start=True, sequence_end=True)
        with pytest.raises(InferenceServerException, match="no sequence 'once'") as found:
            infer(client, "plain", x, sequence_id="once")
        assert "NOT_FOUND" in found.value.status()

    def test_the_same_name_in_two_models(self, client, models, rng):
        x = {"x": rng.standard_normal((4, 6)).astype(np.float32)}
        for name in ("plain", "late"):
            infer(client, name, x, sequence_id=77, sequence_start=True)
        found = infer(client, "plain", x, sequence_id=77, sequence_end=True)
        steps = Steps(models["plain"], {})
        steps.run(x)
        assert_same(arrays(found), steps.run(x))


class TestStream:
    """ModelStreamInfer."""

    def ask(self, client: Any, requests: list[tuple[str, Values, dict[str, Any]]]) -> list[Any]:
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error or result))
        for number, (name, values, options) in enumerate(requests):
            client.async_stream_infer(name, tensors(values), request_id=str(number), **options)
        found = [answers.get(timeout=PATIENCE) for _ in requests]
        client.stop_stream()
        return found

    def test_many_sequences_in_one_stream(self, client, models, rng):
        """Asked for without waiting for an answer; each gets its own, in its order."""
        model = models["plain"]
        streams = {number: model.stream() for number in range(1, 9)}
        requests, wanted = [], []
        for turn in range(120):
            number = turn % 8 + 1
            x = rng.standard_normal((turn % 3 + 1, 6)).astype(np.float32)
            requests.append(
                ("plain", {"x": x}, {"sequence_id": number, "sequence_start": turn < 8})
            )
            wanted.append(streams[number].run(x))
        found = self.ask(client, requests)
        for number, (result, y) in enumerate(zip(found, wanted, strict=True)):
            assert result.get_response().id == str(number)
            assert result.as_numpy("y").tobytes() == y.tobytes()

    def test_a_refused_request_leaves_the_others(self, client, models, rng):
        x = rng.standard_normal((2, 6)).astype(np.float32)
        first = ("plain", {"x": x}, {"sequence_id": 5, "sequence_start": True})
        wrong = ("plain", {"x": x[:, :5]}, {"sequence_id": 5})
        unknown = ("plain", {"x": x}, {"sequence_id": 66})
        last = ("plain", {"x": x}, {"sequence_id": 5, "sequence_end": True})
        found = self.ask(client, [first, wrong, unknown, last])
        stream = models["plain"].stream()
        assert found[0].as_numpy("y").tobytes() == stream.run(x).tobytes()
        assert "FP32 [2, 5]; expected FP32 [-1, 6]" in str(found[1])
        assert "no sequence 66" in str(found[2])
        assert found[3].as_numpy("y").tobytes() == stream.run(x).tobytes()


def stub(server: Any) -> Any:
    return GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc))


def message(**fields: Any) -> Any:
    """A request of the protocol, byte for byte as it is wanted."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 6]}
    given = {"model_name": "plain", "inputs": [x], "raw_input_contents": [bytes(24)]} | fields
    return messages.ModelInferRequest(**given)


def inputs(*given: dict[str, Any]) -> dict[str, Any]:
    x = {"name": "x", "datatype": "FP32", "shape": [1, 6]}
    return {"inputs": [x | one for one in given]}


REFUSED = {
    "no such model": ({"model_name": "\x1b[31mred"}, "NOT_FOUND", "no model '\\x1b[31mred'"),
    "no such version": ({"model_version": "3"}, "NOT_FOUND", "no version '3'"),
    "no input": ({"inputs": [], "raw_input_contents": []}, "INVALID_ARGUMENT", "'x' is missing"),
    "another input": (inputs({"name": "z"}), "INVALID_ARGUMENT", "no input 'z'; expected x"),
    "twice": (
        inputs({}, {}) | {"raw_input_contents": [bytes(24)] * 2},
        "INVALID_ARGUMENT",
        "given twice",
    ),
    "another type": (inputs({"datatype": "FP64"}), "INVALID_ARGUMENT", "expected FP32 [-1, 6]"),
    "an unknown type": (inputs({"datatype": "BF16"}), "INVALID_ARGUMENT", "expected FP32"),
    "other axes": (inputs({"shape": [6]}), "INVALID_ARGUMENT", "expected FP32 [-1, 6]"),
    "many axes": (inputs({"shape": [1] * 5000}), "INVALID_ARGUMENT", "expected FP32 [-1, 6]"),
    "a negative size": (inputs({"shape": [-1, 6]}), "INVALID_ARGUMENT", "expected FP32 [-1, 6]"),
    "a giant": (inputs({"shape": [2**62, 6]}), "INVALID_ARGUMENT", "has 24 bytes; expected"),
    "bytes": ({"raw_input_contents": [bytes(23)]}, "INVALID_ARGUMENT", "has 23 bytes; expected 24"),
    "bytes of two": (
        {"raw_input_contents": [bytes(24)] * 2},
        "INVALID_ARGUMENT",
        "raw_input_contents has 2 tensors; expected 1",
    ),
    "numbers twice": (
        inputs({"contents": {"fp32_contents": [0.0] * 6}}),
        "INVALID_ARGUMENT",
        "as contents and as raw_input_contents",
    ),
    "too many steps": (
        inputs({"shape": [4097, 6]}) | {"raw_input_contents": [bytes(4097 * 24)]},
        "INVALID_ARGUMENT",
        "4097 steps; expected at most 4096",
    ),
    "another output": (
        {"outputs": [{"name": "z"}]},
        "INVALID_ARGUMENT",
        "no output 'z'; expected y",
    ),
    "an unknown parameter": (
        {"parameters": {"priority": {"int64_param": 1}}},
        "INVALID_ARGUMENT",
        "parameter 'priority', which does nothing here",
    ),
    "a start without a name": (
        {"parameters": {"sequence_start": {"bool_param": True}}},
        "INVALID_ARGUMENT",
        "need a sequence_id",
    ),
    "a parameter of another kind": (
        {"parameters": {"sequence_id": {"bool_param": True}}},
        "INVALID_ARGUMENT",
        "sequence_id is True",
    ),
    "a long name": (
        {
            "parameters": {
                "sequence_id": {"string_param": "n" * 257},
                "sequence_start": {"bool_param": True},
            }
        },
        "INVALID_ARGUMENT",
        "257 characters; expected at most 256",
    ),
    "a large number": (
        {
            "parameters": {
                "sequence_id": {"uint64_param": 2**64 - 1},
                "sequence_start": {"bool_param": True},
            }
        },
        "INVALID_ARGUMENT",
        "64 bits",
    ),
    "a state that is none": (
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 6]},
                {"name": "stream_state", "datatype": "UINT8", "shape": [5]},
            ],
            "raw_input_contents": [bytes(24), b"state"],
        },
        "INVALID_ARGUMENT",
        "",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize("what", REFUSED)
    def test_is_told(self, server, what):
        fields, status, text = REFUSED[what]
        with pytest.raises(grpc.RpcError) as found:
            stub(server).ModelInfer(message(**fields), timeout=PATIENCE)
        assert found.value.code().name == status
        assert text in found.value.details()

    def test_a_token_out_of_range(self, client):
        with pytest.raises(InferenceServerException, match="7") as found:
            infer(client, "words", {"ids": np.array([0, 7])})
        assert "INVALID_ARGUMENT" in found.value.status()

    def test_held_rows_in_the_middle(self, client, models, rng):
        values = inputs_for(models["several"], rng, 2)
        infer(client, "several", values, sequence_id=9, sequence_start=True)
        with pytest.raises(InferenceServerException, match="knobs is held for a whole sequence"):
            infer(client, "several", values, sequence_id=9)
        del values["knobs"]
        infer(client, "several", values, sequence_id=9)
        with pytest.raises(InferenceServerException, match="'knobs' is missing"):
            infer(client, "several", values, sequence_id=10, sequence_start=True)
        with pytest.raises(InferenceServerException, match="no sequence 10"):
            infer(client, "several", values, sequence_id=10)

    def test_held_rows_beside_a_state_that_has_them(self, client, models, rng):
        values = inputs_for(models["several"], rng, 2)
        found = arrays(infer(client, "several", values, "y", "stream_state"))
        given = values | {"stream_state": found["stream_state"]}
        with pytest.raises(InferenceServerException, match="knobs is in stream_state"):
            infer(client, "several", given)

    def test_a_refused_start_leaves_the_sequence_that_was(self, client, models, rng):
        x = rng.standard_normal((3, 6)).astype(np.float32)
        infer(client, "plain", {"x": x}, sequence_id="s", sequence_start=True)
        with pytest.raises(InferenceServerException, match="expected FP32"):
            infer(client, "plain", {"x": x[:, :3]}, sequence_id="s", sequence_start=True)
        stream = models["plain"].stream()
        stream.run(x)
        found = infer(client, "plain", {"x": x}, sequence_id="s", sequence_end=True)
        assert found.as_numpy("y").tobytes() == stream.run(x).tobytes()

    def test_numbers_of_a_message(self, server, models, rng):
        """Not as bytes but one by one, as the protocol has it too."""
        x = rng.standard_normal((2, 6)).astype(np.float32)
        one = {
            "name": "x",
            "datatype": "FP32",
            "shape": [2, 6],
            "contents": {"fp32_contents": x.ravel().tolist()},
        }
        given = message(inputs=[one], raw_input_contents=[])
        found = stub(server).ModelInfer(given, timeout=PATIENCE)
        assert found.raw_output_contents[0] == models["plain"](x)[0].tobytes()
        one["contents"] = {"fp32_contents": [0.0] * 11}
        with pytest.raises(grpc.RpcError, match="expected 12"):
            stub(server).ModelInfer(message(inputs=[one], raw_input_contents=[]), timeout=PATIENCE)
