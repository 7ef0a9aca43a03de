"""The clients of docs/serving.md run as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from c_builds import ROOT
from processes import PATIENCE, Server, serving

import fastlstm

PAGE = ROOT / "docs" / "serving.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that serves what the page says: a model of six features and two outputs, converted."""
    rows = {"lstm.weight_ih_l0": (12, 6), "lstm.weight_hh_l0": (12, 3), "head.weight": (2, 3)}
    rows |= {"lstm.bias_ih_l0": (12,), "lstm.bias_hh_l0": (12,), "head.bias": (2,)}
    weights = {name: np.full(shape, 0.1, np.float32) for name, shape in rows.items()}
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    fastlstm.convert(weights, path, layers="lstm, linear")
    with serving({"model": path}) as server:
        yield server


def blocks(language: str) -> list[str]:
    """Those that name an address."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in found if "127.0.0.1" in block]


def addressed(block: str, server: Server) -> str:
    """To this server, whose ports are free ones."""
    found = block.replace("127.0.0.1:8000", server.address).replace("127.0.0.1:8001", server.grpc)
    assert found != block
    return found


def run(*command: str, **options: object) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", [0, 1])
def test_python(server, number):
    found = blocks("python")
    assert len(found) == 2
    said = run(sys.executable, "-c", addressed(found[number], server))
    assert said == ["(5, 2) (5, 2)\n", "(5, 2) 0\n"][number]


def test_curl(server):
    if not shutil.which("curl"):
        pytest.skip("curl is not there")
    (block,) = blocks("sh")
    found = json.loads(run("sh", "-c", addressed(block, server)))
    assert found["outputs"][0]["shape"] == [2, 2]
    assert found["parameters"] == {"sequence_steps": 2}


def test_javascript(server, tmp_path: Path):
    node = shutil.which("node")
    script = tmp_path / "client.mjs"
    (block,) = blocks("javascript")
    script.write_text(addressed(block, server))
    for options in ([], ["--experimental-websocket"]):
        command = [node or "node", *options]
        with_sockets = [*command, "-e", "if (!globalThis.WebSocket) process.exit(1)"]
        if node and subprocess.run(with_sockets, capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("Node with WebSocket is not there")
    said = run(*command, "--no-warnings", str(script))
    assert re.fullmatch(r"session [\w-]{20,}\nrows 5\n", said)
