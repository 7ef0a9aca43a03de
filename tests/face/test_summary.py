"""What a model tells of itself: a summary, a line, and the command about any graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastlstm import Model, cli, spec, verify
from fastlstm.format import ModelFile


@pytest.fixture
def model(rng: np.random.Generator) -> Model:
    graph = spec.Graph(
        inputs=[spec.Input("audio", (4,)), spec.Input("<knob>", (1,), held=True)],
        nodes=[
            spec.GRU("gru", 4, 8)("audio"),
            spec.Linear("gain", 1, 8)("<knob>"),
            spec.Arithmetic("scaled", "multiply")("gru", "gain"),
            spec.Convolution("slow", 8, 2, (3,), over_time=True, stride=(2,))("scaled"),
        ],
        outputs={"y": "scaled", "level": "slow"},
    )
    shapes = spec.check(graph).tensors
    tensors = {n: rng.uniform(-0.3, 0.3, s).astype(np.float32) for n, s in shapes.items()}
    return Model(ModelFile(graph, tensors))


def test_summary_tells_rows_rates_and_delays(model: Model) -> None:
    summary = model.summary()
    rows = {row[0]: row[2:] for row in summary.rows}
    assert rows["audio"] == ("", "(4,)", "1", "", "")
    assert rows["<knob>"] == ("", "(1,)", "held", "", "")
    assert rows["slow"] == ("scaled", "(2,)", "1/2", "2", "50")
    assert rows["level"] == ("slow", "(2,)", "1/2", "2", "")
    assert summary.parameters == sum(tensor.size for tensor in model.tensors.values())
    text, page = str(summary), summary._repr_html_()
    assert len(text.splitlines()) == len(summary.rows) + 5
    assert "&lt;knob&gt;" in page
    assert "<knob>" not in page
    assert page.count("<tr>") == len(summary.rows) + 1
    assert "\n" not in repr(model)


def test_info_and_bench_of_several_inputs(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "m")
    model.save(path)
    assert cli.main(["info", path]) == 0
    shown = capsys.readouterr().out
    assert "<knob>: 1 features, held for a sequence" in shown
    assert "level: 2 features, one for every 2 steps, the first after 3 steps" in shown
    assert cli.main(["info", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["inputs"]] == ["audio", "<knob>"]
    assert {one["name"]: one["rate"] for one in told["outputs"]} == {"y": "1", "level": "1/2"}
    short = ["--steps", "20", "--length", "20", "--seconds", "0.01", "--json"]
    assert cli.main(["bench", path, *short]) == 0
    assert json.loads(capsys.readouterr().out)["step"]["steps"] >= 1


def test_verify_runs_every_output(model: Model) -> None:
    found = verify(model, steps=60)
    assert found.agrees
    assert found.outcome == "not compared"
    assert {one.output for one in found.drifts} == set(model.outputs)


def test_verify_runs_a_loop(rng: np.random.Generator) -> None:
    nodes = [
        spec.Delay("before", (3,))("sum"),
        spec.Arithmetic("sum", "add")("x", "before"),
        spec.Activation("y", "tanh")("sum"),
    ]
    graph = spec.Graph([spec.Input("x", (3,))], nodes, {"out": "y"})
    found = verify(Model(ModelFile(graph, {})), steps=50)
    assert found.agrees
    assert found.yardstick_name == "torch" or "torch is not installed" in found.notes[0]
