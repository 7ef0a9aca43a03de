from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastlstm import Model

for package in ("grpc", "tritonclient.grpc", "uvicorn", "uvloop", "starlette", "prometheus_client"):
    pytest.importorskip(package, reason="of pip install 'fastlstm[serve]'")

from processes import Server, graphs, made, serving  # noqa: E402


@pytest.fixture(scope="session")
def models() -> dict[str, Model]:
    """Those that are served, by name."""
    rng = np.random.default_rng(11)
    return {name: made(graph, rng) for name, graph in graphs().items()}


@pytest.fixture(scope="session")
def paths(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Their files."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save(folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in models}


@pytest.fixture(scope="module")
def server(paths: dict[str, Path]) -> Iterator[Server]:
    """One that serves all of them, for all tests of a file."""
    with serving(paths) as server:
        yield server
        assert server.process.poll() is None, server.end()
