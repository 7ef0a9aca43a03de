"""What was found by those who tried to break fastlstm serve."""

from __future__ import annotations

import grpc
import numpy as np
from processes import PATIENCE
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
