"""Kill a replica under its streams: they go on in another one, bit for bit, each step made once.

``python killed.py model.safetensors``
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import replicas
import tritonclient.grpc as triton
from ray import serve
from tritonclient.utils import InferenceServerException

import fastlstm

PORT = 9000
T = 5  # steps of a request


class Client:
    """One stream, with a session id that the router reads.

    Parameters
    ----------
    model : fastlstm.Model
        The one that is served.
    name : int
    """

    def __init__(self, model: fastlstm.Model, name: int) -> None:
        self.client = triton.InferenceServerClient(f"127.0.0.1:{PORT}")
        (self.input,), (self.output,) = model.inputs, model.outputs
        self.name = name
        self.homes: list[int] = []  # the processes that have answered
        self.errors: list[str] = []

    def step(self, number: int, x: np.ndarray) -> np.ndarray:
        """What the request of a number gives."""
        tensor = triton.InferInput(self.input, x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        answer = self.client.infer(
            "model",
            [tensor],
            request_id=str(number),  # asked again, it is answered again without a step
            sequence_id=self.name,
            sequence_start=number == 0,
            headers={"session_id": str(self.name)},
            client_timeout=20,
        )
        told = answer.get_response().parameters
        assert told["sequence_steps"].int64_param == T * (number + 1), "a step was made twice"
        self.homes.append(told["replica"].int64_param)
        return answer.as_numpy(self.output)

    def run(self, blocks: np.ndarray) -> np.ndarray:
        """What the stream gives for blocks (N, T, I), each asked for until it is answered."""
        made: list[np.ndarray] = []
        while len(made) < len(blocks):
            try:
                made.append(self.step(len(made), blocks[len(made)]))
            except InferenceServerException as error:
                if error.status() == "StatusCode.NOT_FOUND":
                    raise
                self.errors.append(f"{error.status()}: {error.message().splitlines()[0]}")
                time.sleep(0.2)
        return np.concatenate(made)


def refusal(client: Client, number: int, x: np.ndarray) -> str:
    """What a request is refused with."""
    try:
        client.step(number, x)
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    raise AssertionError("it was answered")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="of one input and one output of float32")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=100)
    given = parser.parse_args()
    path = os.path.abspath(given.model)
    model = fastlstm.load(path, reproducible=True)
    I, rng = model.input_size, np.random.default_rng(1)  # noqa: E741
    x = rng.standard_normal((given.streams, given.blocks, T, I), np.float32)
    expected = [model(one.reshape(-1, I))[0] for one in x]
    ray.init(num_cpus=2, namespace="streams", include_dashboard=False, log_to_driver=False)
    replicas.start(path, replicas=2, port=PORT)
    clients = [Client(model, 1 + i) for i in range(given.streams)]
    with ThreadPoolExecutor(given.streams) as threads:
        asked = [threads.submit(client.run, one) for client, one in zip(clients, x, strict=True)]
        while all(len(client.homes) < given.blocks // 2 for client in clients):
            time.sleep(0.01)
            if failed := [one for one in asked if one.done() and one.exception()]:
                failed[0].result()
        held = [set(client.homes) for client in clients]
        victim = min(held[0])
        os.kill(victim, signal.SIGKILL)
        got = [one.result() for one in asked]
    had = sum(victim in home for home in held)
    moved = sum(len(set(client.homes)) > 1 for client in clients)
    print(f"killed: process {victim}, which had {had} of {given.streams} streams")
    print(f"each stream in one process before: {all(len(home) == 1 for home in held)}")
    print(f"streams that went on in another process: {moved}")
    errors = [error for client in clients for error in client.errors]
    print(f"requests that were asked again: {len(errors)}", *sorted(set(errors)), sep="\n    ")
    same = all(y.tobytes() == e.tobytes() for y, e in zip(got, expected, strict=True))
    print("the same bits as in one process" if same else "NOT the same bits")
    print(f"a stream that never began: {refusal(Client(model, 1000), 1, x[0, 0])}")
    ray.kill(ray.get_actor("streams"))
    print(f"without the store: {refusal(clients[0], given.blocks, x[0, 0])}")
    serve.shutdown()
    ray.shutdown()
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
