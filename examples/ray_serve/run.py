"""Serve a model by Ray on this machine until Ctrl-C: ``python run.py model.safetensors``."""

from __future__ import annotations

import argparse
import os
import signal

import ray
import replicas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=9000)
    given = parser.parse_args()
    ray.init(num_cpus=2, namespace="streams", include_dashboard=False, log_to_driver=False)
    replicas.start(os.path.abspath(given.model), given.replicas, given.port)
    print(f"gRPC on 127.0.0.1:{given.port}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        ray.shutdown()


if __name__ == "__main__":
    main()
