"""What a request costs: ``python cost.py 127.0.0.1:8001`` (fastlstm serve), or :9000 (run.py)."""

from __future__ import annotations

import argparse
import time

import numpy as np
import tritonclient.grpc as triton


def milliseconds(client: triton.InferenceServerClient, steps: int, requests: int) -> np.ndarray:
    """What each request of one sequence took, one after the other."""
    told = client.get_model_metadata("model")
    x = np.zeros((steps, *told.inputs[0].shape[1:]), np.float32)
    tensor = triton.InferInput(told.inputs[0].name, x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    took = []
    for number in range(requests):
        start = time.perf_counter()
        client.infer(
            "model",
            [tensor],
            sequence_id=1,
            sequence_start=number == 0,
            headers={"session_id": "1"},
        )
        took.append(1e3 * (time.perf_counter() - start))
    return np.array(took[requests // 10 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--requests", type=int, default=500)
    given = parser.parse_args()
    client = triton.InferenceServerClient(given.address)
    for steps in given.steps:
        p50, p99 = np.percentile(milliseconds(client, steps, given.requests), [50, 99])
        print(f"{steps} steps a request: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


if __name__ == "__main__":
    main()
