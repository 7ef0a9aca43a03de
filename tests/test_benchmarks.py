"""The benchmarks run, and count what they say they count; nothing here depends on a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_builds import ROOT

torch = pytest.importorskip("torch")

FOLDER = ROOT / "benchmarks"

builds_c = pytest.mark.skipif(
    not shutil.which("cc") or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="there is no C compiler, or no headers of this Python",
)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the folder can be imported by their names."""
    monkeypatch.syspath_prepend(str(FOLDER))


def run(script: str, tmp_path: Path, *words: str) -> dict[str, Any]:
    """What a script of the folder writes with --json."""
    to = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / script), *words, "--json", str(to)]
    paths = os.environ["PYTHONPATH"], str(FOLDER)  # the package that the tests see
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(to.read_text(encoding="utf-8"))
    return found


@pytest.mark.usefixtures("modules")
class TestParts:
    @pytest.mark.parametrize("name", ["LSTM_A", "LSTM_B", "LSTM_C"])
    def test_parameters_of_a_shape(self, name):
        from trading import SHAPES

        shape = SHAPES[name]
        biases = 4 * shape.H * shape.layers + 1
        assert shape.weights + biases == shape.parameters

    def test_network_of_other_sizes_is_refused(self):
        import dataclasses

        from trading import SHAPES, network

        with pytest.raises(AssertionError, match="160901 parameters, not the benchmark's 160902"):
            network(dataclasses.replace(SHAPES["LSTM_A"], parameters=160_902))

    def test_work(self):
        from cases import Case, Work

        step = Case("gru", 10, 20, layers=2)
        assert step.work() == Work(4 * 3 * 20 * 70, 1, 3 * 20 * 70)
        assert step.work(weight_bytes=1) == Work(3 * 20 * 70, 1, 3 * 20 * 70)
        prepared = step.work(2, weight_bytes=2, prepared=True)
        assert prepared.working_set == 3 * 20 * 70
        assert prepared.working_set * prepared.readings == pytest.approx(3 * 20 * 30)
        sequence = Case("lstm", 10, 20, layers=2, T=5, B=3).work(weight_bytes=2)
        assert sequence == Work(2 * 4 * 20 * 20, 10, 3 * 5 * 4 * 20 * 70)

    def test_a_clock_of_its_own(self):
        from timing import Timed, interleaved

        told = Timed(lambda: 7000, times=2, own_clock=True)
        assert interleaved({"told": told}, turns=3)["told"] == pytest.approx([3.5] * 3)

    def test_ratios_are_of_the_same_turns(self):
        from precision import ratios

        found = ratios({"ours": [1.0, 2.0, 4.0], "other": [3.0, 6.0, 12.0]}, "ours", ["other"])
        assert found["other"]["p25"] == found["other"]["p75"] == 3

    def test_integers_of_onnx_are_those_of_the_weights(self, rng):
        pytest.importorskip("onnx")
        from onnx_model import quantized

        matrix = rng.standard_normal((12, 5)).astype(np.float32)
        stored = quantized("W", matrix)
        assert stored["W"].dtype == np.int8
        again = stored["W"][0].T * stored["W_scale"][0][:, None]
        assert np.all(np.abs(again - matrix) <= stored["W_scale"][0][:, None] * 0.501)


@builds_c
def test_ticks_of_a_trading_network(tmp_path):
    words = ("--shapes", "LSTM_A", "--threads", "1", "--ticks", "40")
    found = run("trading.py", tmp_path, *words)
    assert [row["precision"] for row in found["rows"]] == ["float32", "float16", "bfloat16", "int8"]
    for row in found["rows"]:
        assert set(row["microseconds"]) == {
            f"{what} {where}"
            for what, where in [
                *(
                    (what, where)
                    for what in ("step", "prepared")
                    for where in ("in C", "from Python")
                ),
                ("window", "in C"),
            ]
        }
        assert all(0 < f["p50"] <= f["p99"] <= f["max"] for f in row["microseconds"].values())


@builds_c
def test_precisions_beside_peers(tmp_path):
    found = run("precision.py", tmp_path, "--turns", "1", "--only", "gru I=128 H=128 step")
    (row,) = found["rows"]
    assert {"torch float32", "fastlstm int8", "fastlstm float16, prepared, in C"} <= set(
        row["microseconds"]
    )
    assert "onnxruntime int8" in row["left_out"]
    assert set(row["times"]["fastlstm int8"]) >= {"torch float32", "fastlstm float32"}


def test_errors_of_fewer_bits(tmp_path):
    found = run("errors.py", tmp_path, "--steps", "100", "--sizes", "128")
    for row in found["rows"]:
        off = {name: figures["rms"] for name, figures in row["difference"].items()}
        assert 0 < off["fastlstm float32"] < off["fastlstm float16"] < off["fastlstm bfloat16"]
        assert off["fastlstm bfloat16"] < off["fastlstm int8"] < 1e-2


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="the server and its clients need a core each",
)
class TestLoad:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        for package in ("grpc", "tritonclient.grpc", "uvicorn", "uvloop", "prometheus_client"):
            pytest.importorskip(package, reason="of pip install 'fastlstm[serve]'")

    def test_what_a_message_costs(self, tmp_path):
        words = ["--streams", "3", "--steps-per-message", "2", "--seconds", "0.1"]
        rows = run("load.py", tmp_path, "--cost", *words)["rows"]
        assert [row["protocol"] for row in rows] == ["grpc", "unary", "websocket"]
        for row in rows:
            assert (row["lost"], row["wrong"]) == (0, 0)
            assert row["batch"] >= 1
            costs = [row[f"{what}_microseconds"] for what in ("server", "echo", "model")]
            assert min(costs) > 0
            assert row["ratio"] == costs[0] / (costs[1] + costs[2])

    def test_memory_over_sessions(self, tmp_path):
        (row,) = run("load.py", tmp_path, "--sessions", "200", "--protocol", "grpc")["rows"]
        assert row["sessions"] == 200
        assert min(row["bytes_before"], row["bytes_after"]) > 2**20
