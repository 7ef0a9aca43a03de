"""Models in fewer bytes on the command line, and how far off they are said to be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from quantised import float32_model

import fastlstm
from fastlstm import spec
from fastlstm.cli import main
from fastlstm.verification import verify

CHAIN = spec.Graph.chain([spec.LSTM("l", 6, 24), spec.Linear("o", 24, 5)])


@pytest.fixture
def files(tmp_path, rng, capsys):
    """A model and, quantised by the command, that in int8."""
    float32_model(CHAIN, rng).save(tmp_path / "m")
    code = main(["quantize", str(tmp_path / "m"), str(tmp_path / "q"), "--precision", "int8"])
    assert code == 0
    said = capsys.readouterr().out
    assert "int8: 'l', 'o'" in said
    assert "1,000 steps of random inputs" in said
    return str(tmp_path / "m"), str(tmp_path / "q")


def facts(capsys, *words):
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_quantize_by_layers(files, tmp_path, capsys):
    words = ["--precision", "l=int8", "--precision", "o=float16"]
    _, found = facts(capsys, "quantize", files[0], str(tmp_path / "r"), *words)
    assert found["precision"] == {"l": "int8", "o": "float16"}
    assert found["bytes"] < found["bytes_before"]
    assert found["measured"]["outputs"]["output"]["largest"] > 0
    assert fastlstm.load(tmp_path / "r").precision == found["precision"]


def test_quantize_to_an_error(files, tmp_path, rng, capsys):
    np.savez(tmp_path / "x.npz", input=rng.standard_normal((50, 6)))
    words = ["--target-error", "1", "--calibrate", str(tmp_path / "x.npz")]
    _, found = facts(capsys, "quantize", files[0], str(tmp_path / "r"), *words)
    assert found["measured"]["steps"] == 50
    assert found["measured"]["calibrated"]


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ([], "expected --precision"),
        (["--precision", "int8", "--precision", "l=int8"], "expected one for all layers"),
        (["--precision", "x=int8"], "no layer with a matrix"),
        (["--precision", "int4"], "'int4'"),
        (["--precision", "int8", "--target-error", "0.1"], "target_error"),
    ],
)
def test_quantize_refuses(words, phrase, files, tmp_path, capsys):
    assert main(["quantize", files[0], str(tmp_path / "r"), *words]) == 2
    assert phrase in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_quantize_does_not_write_over_the_model(files, capsys):
    assert main(["quantize", files[0], files[0], "--precision", "int8"]) == 2
    assert "another destination" in capsys.readouterr().err


def test_info(files, capsys):
    assert main(["info", files[1]]) == 0
    said = capsys.readouterr().out
    assert "int8: 'l', 'o'" in said
    assert "output, float32" in said
    _, found = facts(capsys, "info", files[1])
    assert found["precision"] == {"l": "int8", "o": "int8"}
    assert found["measured"]["steps"] == 1000
    _, found = facts(capsys, "info", files[0])
    assert found["precision"] == {"l": "float32", "o": "float32"}
    assert found["measured"] is None


def test_convert(tmp_path, rng, capsys):
    weights = {name.partition(".")[2]: w for name, w in float32_model(CHAIN, rng).tensors.items()}
    lstm = {name: w for name, w in weights.items() if name.endswith("_l0")}
    np.savez(tmp_path / "w.npz", **lstm)
    words = [str(tmp_path / "w.npz"), str(tmp_path / "c"), "--precision", "float16"]
    _, found = facts(capsys, "convert", *words)
    assert {*found["precision"].values()} == {"float16"}
    assert found["measured"]["steps"] == 1000


def test_verify_against_the_model_it_was_made_of(files, capsys):
    pytest.importorskip("torch")
    words = ["--against", files[0], "--steps", "600"]
    code, found = facts(capsys, "verify", files[1], *words)
    assert code == 3  # what the model was made of is no original
    assert all(verdict["passed"] for verdict in found["verdicts"])
    assert found["weights"] == ""
    (errors,) = [one["evaluations"] for one in found["quantised"]]
    assert set(errors) == {"this model", "float32", "torch, dynamic int8"}
    assert errors["float32"]["error"] < 1e-5 < errors["this model"]["error"]
    assert main(["verify", files[1], *words]) == 3
    assert "weights before they were quantised" in capsys.readouterr().out


def test_verify_finds_other_weights(files, tmp_path, rng, capsys):
    other = float32_model(CHAIN, np.random.default_rng(9))
    other.save(tmp_path / "other")
    code, found = facts(
        capsys, "verify", files[1], "--against", str(tmp_path / "other"), "--steps", "50"
    )
    assert code == 1
    assert "not the source's, quantised" in found["weights"]


def test_verify_alone_passes(files, capsys):
    code, found = facts(capsys, "verify", files[1], "--steps", "600")
    assert code == 3
    assert all(verdict["passed"] for verdict in found["verdicts"])
    assert found["quantised"] == []


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_verify_of_halves_is_as_strict_as_of_float32(precision, rng):
    model = fastlstm.quantize(float32_model(CHAIN, rng), precision)
    found = verify(model, steps=300)
    assert found.agrees
    assert found.limit(found.judged[0], "engine, sequences") < 1e-4


@pytest.mark.parametrize("precision", spec.PRECISIONS[1:])
def test_verify_against_a_live_module_passes(precision):
    """What the model was made of is as far off as was measured, and somewhat more."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.LSTM(16, 32)
    plain = fastlstm.from_torch(module)
    found = verify(fastlstm.quantize(plain, precision), module, unquantised=plain, steps=3000)
    assert found.passed, str(found)
    assert found.quantised
    with torch.no_grad():
        module.weight_hh_l0[3, 4] += 2
    assert not verify(fastlstm.quantize(plain, precision), module, steps=300).agrees


def test_verify_says_what_torch_has_not(rng):
    pytest.importorskip("torch")
    graph = spec.Graph.chain([spec.RNN("r", 3, 4)])
    model = float32_model(graph, rng)
    found = verify(fastlstm.quantize(model, "int8"), model, steps=50)
    assert set(found.quantised[0].errors) == {"this model", "float32"}
    assert any("torch has none of a layer like 'r'" in note for note in found.notes)


@pytest.mark.parametrize("kind", [spec.LSTM, spec.GRU])
def test_errors_are_at_most_half_of_those_of_torchs_dynamic_int8(kind, rng):
    """The median over draws of the ratio of two rms errors, the state carried on."""
    pytest.importorskip("torch")
    ratios = []
    for _ in range(3):
        model = float32_model(spec.Graph.chain([kind("n", 64, 64)]), rng)
        torch_sized = {name: w / np.float32(0.4 * 8) for name, w in model.tensors.items()}
        model = model.like(fastlstm.format.ModelFile(model.graph, torch_sized))
        found = verify(fastlstm.quantize(model, "int8"), model, steps=300, batch_size=2)
        errors = found.quantised[0].errors
        ratios.append(errors["this model"].total_rms / errors["torch, dynamic int8"].total_rms)
    assert np.median(ratios) <= 0.5, ratios


def test_perplexity(tmp_path, rng, capsys):
    embedded = [spec.Embedding("e", 11, 6), spec.LSTM("l", 6, 8), spec.Linear("o", 8, 11)]
    model = float32_model(spec.Graph.chain(embedded), rng)
    fastlstm.quantize(model, "int8").save(tmp_path / "q")
    words = ["--tokens", "1,2,3,4,5,6,7,8,9,10"]
    _, found = facts(capsys, "perplexity", str(tmp_path / "q"), *words)
    exact = fastlstm.perplexity(model, [*range(1, 11)])
    assert found["perplexity"] == pytest.approx(exact, rel=0.02)
    assert found["perplexity"] != exact
