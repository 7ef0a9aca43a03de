"""``examples/scoring``: sequences in tables, scored by engines as in one process."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import example_programs
import numpy as np
import pytest

import fastlstm

pd = pytest.importorskip("pandas", reason="the examples of scoring are of pandas, not installed")
pytest.importorskip("pyarrow", reason="the examples of scoring read Parquet by pyarrow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and 600 sequences of 0 to 50 steps in 7 files."""
    made = tmp_path_factory.mktemp("scoring") / "sample"
    sizes = ("--sequences", 600, "--longest", 50, "--files", 7, "--size", 5, 19)
    example_programs.run("scoring/sample.py", made, *sizes)
    return made


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that users copy."""
    monkeypatch.syspath_prepend(str(example_programs.EXAMPLES / "scoring"))
    import score

    score.again.cache_clear()
    return score


class TestScore:
    def test_bits_of_single_sequences(self, score: Any, folder: Path) -> None:
        scorer = score.Score(folder / "model.safetensors")
        table = pd.read_parquet(folder / "sequences")
        scored = scorer(table)
        assert list(scored) == ["id", "x", "y"]
        assert "y" not in table
        assert {len(x) for x in table["x"]} >= {0, 5 * 50}
        for x, y in zip(table["x"], scored["y"], strict=True):
            alone, _ = scorer.model(x.reshape(-1, 5))
            assert y.tobytes() == alone.tobytes()

    def test_an_empty_table(self, score: Any, folder: Path) -> None:
        table = pd.read_parquet(folder / "sequences" / "part-000.parquet")[:0]
        assert list(score.Score(folder / "model.safetensors")(table)) == ["id", "x", "y"]

    def test_a_model_for_each_process(self, score: Any, folder: Path) -> None:
        """Two tasks of a process have one, and what is sent to them is small."""
        sent = pickle.dumps(score.Score(folder / "model.safetensors"))
        assert len(sent) < 500
        assert pickle.loads(sent) is pickle.loads(sent)

    def test_another_model_on_another_machine(
        self, score: Any, folder: Path, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        path = tmp_path / "model.safetensors"
        model = fastlstm.load(folder / "model.safetensors")
        model.save(path)
        sent = pickle.dumps(score.Score(path))
        weights = {"weight": rng.standard_normal((2, 5)), "bias": np.zeros(2)}
        fastlstm.convert(weights, path, layers="linear")
        with pytest.raises(ValueError, match="another model on this machine; expected a copy"):
            pickle.loads(sent)

    def test_several_inputs(self, score: Any, tmp_path: Path) -> None:
        from fastlstm import spec
        from fastlstm.format import ModelFile

        inputs = [spec.Input("a", (2,)), spec.Input("b", (2,))]
        nodes = [spec.Arithmetic("sum", "add")("a", "b")]
        graph = spec.Graph(inputs=inputs, nodes=nodes, outputs={"y": "sum"})
        fastlstm.Model(ModelFile(graph, {})).save(tmp_path / "sum.safetensors")
        with pytest.raises(ValueError, match="several inputs or outputs; expected a model with"):
            score.Score(tmp_path / "sum.safetensors")


def test_ray_and_an_actor_that_is_killed(folder: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install '.[ray]'")
    told = example_programs.run("scoring/compare.py", folder, "ray", "--kill")
    assert "one process: 600 sequences" in told
    assert "killed: process " in told
    assert "the same rows and the same bits" in told


def test_dask(folder: Path) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed: pip install '.[dask]'")
    told = example_programs.run("scoring/compare.py", folder, "dask")
    assert "the same rows and the same bits" in told
