"""The command: every subcommand as a page and as JSON, its exit codes, messages and files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import ChainFile, build, model_file, random_tensors, recurrent

import fastlstm
from fastlstm import Model, cli
from fastlstm.commands import (
    cells,
    demonstration,
    latency,
    machine,
    plot,
    terminal,
)
from fastlstm.verification import random_input

VOCABULARY = ("<unk>", " ", *"abcdefgh", "ab", "abc")
V = len(VOCABULARY)
FAST = ("--steps", "40", "--length", "20", "--seconds", "0.05")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def runs(*argv: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in argv])
        return (code, *capsys.readouterr())

    return runs


@pytest.fixture
def features(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A model file: features in, features out."""
    layers = (recurrent("lstm", 5, 19, "lstm"), spec.Linear("head", 19, 3))
    build(layers, rng).save(tmp_path / "features.safetensors")
    return tmp_path / "features.safetensors"


def token_file(rng: np.random.Generator, *last: spec.Layer, scale: float = 4) -> ChainFile:
    """A token model with a vocabulary; its logits are far enough apart to tell tokens."""
    layers = (
        spec.Embedding("embedding", V, 7),
        recurrent("gru", 7, 11, "gru"),
        spec.Linear("head", 11, V),
        *last,
    )
    tensors = {name: scale * tensor for name, tensor in random_tensors(layers, rng).items()}
    return ChainFile(layers, tensors, vocabulary=VOCABULARY)


@pytest.fixture
def tokens(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A token model's file."""
    Model(token_file(rng)).save(tmp_path / "tokens.safetensors")
    return tmp_path / "tokens.safetensors"


@pytest.fixture
def bidirectional(tmp_path: Path, rng: np.random.Generator) -> Path:
    layers = (recurrent("lstm", 4, 6, "lstm", bidirectional=True),)
    build(layers, rng).save(tmp_path / "bidirectional.safetensors")
    return tmp_path / "bidirectional.safetensors"


def corrupt(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let models tell other weights than those they run with."""
    true = Model.tensors.fget
    assert true is not None

    def tensors(model: Model) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = true(model)
        return found | {name: found[name] * np.float32(1.01)}

    monkeypatch.setattr(Model, "tensors", property(tensors))


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for name in [*sys.modules, *packages]:
        if name.partition(".")[0] in packages:
            monkeypatch.setitem(sys.modules, name, None)


# The command as such


def test_module_and_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"fastlstm {fastlstm.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for name in (
        *("convert", "info", "verify", "bench", "demo", "generate", "perplexity", "forecast"),
        "doctor",
    ):
        assert name in cli.COMMANDS
        assert f"\n    {name} " in shown or f"\n    {name}\n" in shown


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["info"],
        ["verify", "m", "--steps", "0"],
        ["verify", "m", "--steps", "many"],
        ["verify", "m", "--tolerance", "nan"],
        ["verify", "m", "--seconds", "-1"],
        ["verify", "m", "--tol", "1"],
        ["generate", "m"],
        ["generate", "m", "--prompt", "a", "--tokens", "1"],
        ["generate", "m", "--tokens", "1,x"],
        ["generate", "m", "--tokens", "1,-2"],
        ["generate", "m", "--prompt", "a", "--temperature", "-1"],
        ["generate", "m", "--prompt", "a", "--temperature", "inf"],
        ["generate", "m", "--prompt", "a", "--top-k", "0"],
        ["generate", "m", "--prompt", "a", "--top-p", "nan"],
        ["perplexity", "m"],
        ["perplexity", "m", "--text", "a", "--tokens", "1,2"],
        ["forecast", "m"],
        ["forecast", "m", "--input", "a.csv", "--steps", "0"],
        ["bench", "--compare-cells", "--hidden-size", "0"],
    ],
)
def test_bad_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "error: " in capsys.readouterr().err


def test_errors_are_one_message_and_exit_code_2(run: Any, features: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    damaged = tmp_path / "damaged"
    damaged.write_bytes(features.read_bytes()[:-1])
    for argv, message in (
        (("info", missing), "No such file or directory"),
        (("info", tmp_path), "this is a folder"),
        (("info", damaged), "damaged"),
        (("info", features, "--isa", "sse9"), "there is no such instruction set"),
        (("convert", damaged, tmp_path / "new"), "damaged"),
        (("convert", features, tmp_path / "new"), "a file of fastlstm's own"),
        (("convert", missing, tmp_path / "new"), "No such file or directory"),
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("fastlstm: error: ")
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_interrupt(run: Any, features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS["info"], "run", interrupted)
    assert run("info", features) == (130, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes of this kind")
def test_a_reader_that_goes_away_is_no_error(features: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fastlstm", "info", str(features)]
    with open(write, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert done.stderr == b""
    assert done.returncode == 141


def test_another_encoding_is_no_error(features: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", "bench", str(features), *FAST],
        capture_output=True,
        env=environment,
        check=True,
    )
    assert b" ?s" in done.stdout


# On a terminal


def on_terminal(*argv: Any, **environment: str) -> str:
    """What a terminal of 100 columns shows."""
    primary, secondary = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "fastlstm", *map(str, argv)],
        stdout=secondary,
        stderr=secondary,
        env=os.environ | {"COLUMNS": "100", "TERM": "xterm-256color"} | environment,
    )
    os.close(secondary)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux tells that the other side is closed
        while chunk := os.read(primary, 65536):
            shown += chunk
    os.close(primary)
    assert done.wait() == 0, shown.decode()
    return shown.decode()


def test_rich_is_used_on_a_terminal_only(run: Any) -> None:
    pytest.importorskip("rich")
    shown = on_terminal("doctor", PYTHONIOENCODING="utf-8")
    assert "\x1b[" in shown
    assert "✓" in shown
    shown = on_terminal("doctor", PYTHONIOENCODING="ascii")
    assert "\x1b[" in shown
    assert "ok: " in shown
    assert "?" not in shown.partition("self-test")[2]
    code, out, _ = run("doctor")
    assert code == 0
    assert out.isascii()


def test_a_terminal_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    page = terminal.open_page()
    assert type(page) is terminal.Page
    with terminal.progress("working", 2) as advance:
        advance(1)
    page.table(("name", "size"), [("a", "1"), ("bb", "1000")], right="size")
    page.pairs({"one": "1\n2", "three": "3"})
    page.verdict(False, "wrong")
    assert capsys.readouterr() == (
        "name  size\na        1\nbb    1000\none    1\n       2\nthree  3\nFAILED: wrong\n",
        "",
    )


def test_progress_and_page_through_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.progress("working", 2) as advance:
        advance(2)
    page = terminal.open_page()
    page.heading("[red]title")
    page.table(("name",), [("[bold]x\x1b[2J",)])
    page.pairs({"label": "[/]value"})
    page.text("text")
    page.verdict(True, "fine")
    shown = screen.getvalue()
    # Markup of others is text, and their escape sequences are spelled out.
    for part in ("working", "[red]title", r"[bold]x\x1b[2J", "[/]value", "text", "✓", "fine"):
        assert part in shown


def test_printable() -> None:
    assert terminal.printable("a\x1b]0;b\x07\r\nc\té") == "a\\x1b]0;b\\x07\\r\nc\\té"


def test_numbers_that_are_not_finite_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": ({"d": None},)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [{"d": None}]}


# convert


@pytest.fixture
def checkpoint(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Tensors of a token model as another program would save them."""
    from safetensors.numpy import save_file

    save_file(token_file(rng).tensors, tmp_path / "checkpoint.safetensors")
    return tmp_path / "checkpoint.safetensors"


LAYERS = ("--layers", "embedding, gru, linear")


def test_convert(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    to = tmp_path / "model.safetensors"
    to.write_bytes(b"old")
    code, out, err = run("convert", checkpoint, to, *LAYERS)
    assert (code, err) == (0, "")
    assert "layer 'gru': gru(input_size=7" in out
    assert f"wrote {to}: {to.stat().st_size:,} bytes" in out
    assert fastlstm.load(to).dtype == np.float32

    code, out, _ = run("convert", checkpoint, to, *LAYERS, "--dtype", "float64", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["bytes"] == to.stat().st_size
    assert [layer["kind"] for layer in told["graph"]["nodes"]] == ["embedding", "gru", "linear"]
    assert any("widened" in line for line in told["report"])
    assert fastlstm.load(to).dtype == np.float64


def test_convert_options_reach_the_converter(run: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {
        f"net.rnn.{n}": np.ones((3, 3), np.float32) for n in ("weight_ih_l0", "weight_hh_l0")
    }
    save_file(tensors | {"net.extra": np.ones(2, np.float32)}, tmp_path / "a")
    to = tmp_path / "b"
    options = (
        "--prefix",
        "net",
        "--nonlinearity",
        "relu",
        "--ignore",
        "no*",
        "--ignore",
        "net.ext*",
    )
    code, _, err = run("convert", tmp_path / "a", to, *options)
    assert code == 2
    assert "matches no tensor" in err
    code, out, err = run("convert", tmp_path / "a", to, *options[:4], *options[6:])
    assert (code, err) == (0, "")
    assert "extra" in out
    (layer,) = fastlstm.load(to).layers
    assert getattr(layer, "nonlinearity", None) == "relu"


def test_convert_vocabulary(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    to = tmp_path / "model.safetensors"
    lines = tmp_path / "vocabulary.txt"
    lines.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    assert run("convert", checkpoint, to, *LAYERS, "--vocabulary", lines)[0] == 0
    assert fastlstm.load(to).vocabulary == VOCABULARY
    listed = tmp_path / "vocabulary.json"
    listed.write_text(json.dumps(["\n", *VOCABULARY[1:]]), encoding="utf-8")
    assert run("convert", checkpoint, to, *LAYERS, "--vocabulary", listed)[0] == 0
    assert fastlstm.load(to).vocabulary == ("\n", *VOCABULARY[1:])
    before = to.read_bytes()
    for text in ('{"a": 1}', "[1, 2]", "[", '["a"]'):
        listed.write_text(text, encoding="utf-8")
        code, _, err = run("convert", checkpoint, to, *LAYERS, "--vocabulary", listed)
        assert code == 2
        assert "vocabulary" in err
    assert to.read_bytes() == before


def test_convert_does_not_overwrite_its_source(run: Any, checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    code, _, err = run("convert", checkpoint, checkpoint, *LAYERS)
    assert code == 2
    assert "is the source itself" in err
    assert checkpoint.read_bytes() == before


# info


def test_info(run: Any, tokens: Path) -> None:
    code, out, err = run("info", tokens)
    assert (code, err) == (0, "")
    parameters = V * 7 + 3 * 11 * (7 + 11 + 2) + V * 12
    for part in (
        "gru(input_size=7",
        f"{parameters:,}",
        f"tokens 0 to {V - 1}",
        "float32",
        "44 bytes of state",
        "12 strings: '<unk>', ' ', 'a'",
    ):
        assert part in out
    code, out, _ = run("info", tokens, "--json", "--isa", "scalar")
    told = json.loads(out)
    assert code == 0
    assert told["parameters"] == parameters == sum(node["parameters"] for node in told["nodes"])
    assert told["isa"] == "scalar"
    assert told["state_bytes"] == 44
    assert told["vocabulary"] == list(VOCABULARY)
    assert told["file_bytes"] == tokens.stat().st_size
    assert told["streams"]


def test_info_of_a_bidirectional_model(run: Any, bidirectional: Path) -> None:
    assert "cannot be: layer 'lstm' is bidirectional" in run("info", bidirectional)[1]


# verify


@pytest.mark.parametrize("which", ["features", "tokens", "bidirectional"])
def test_verify(run: Any, which: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torch")
    path = request.getfixturevalue(which)
    code, out, err = run("verify", path, "--steps", "60", "--batch", "2", "--json")
    assert (code, err) == (3, "")
    told = json.loads(out)
    assert (told["outcome"], told["passed"]) == ("not compared", False)
    assert set(told["compared"].values()) == {"not compared"}
    assert (told["yardstick_name"], told["against"], told["plot"]) == ("torch", None, None)
    (comparison,) = told["comparisons"]
    assert (comparison["outputs_compared"], comparison["batch_size"]) == (60, 2)
    engine = comparison["evaluations"]["engine, sequences"]
    assert 0 < engine["error"] <= engine["limit"] < 1e-4 * comparison["scale"]
    streams = which != "bidirectional"
    assert ("engine, step by step" in comparison["evaluations"]) == streams
    code, out, _ = run("verify", path, "--steps", "400")
    assert code == 3
    assert "ok: the engine is off by at most " in out
    last, ways = out.splitlines()[-2:]
    assert last.startswith("not compared: the weights, order of the layers, functions and numbers")
    assert "--module FILE.py:CLASS --against CHECKPOINT" in ways
    assert ("drift: rms error of each third of 400 outputs" in out) == streams
    assert ("whole sequences only, each from its start" in out) != streams


def test_verify_without_torch(run: Any, features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    code, out, _ = run("verify", features, "--steps", "30", "--json")
    told = json.loads(out)
    assert (code, told["yardstick_name"]) == (3, "NumPy")
    assert told["comparisons"][0]["evaluations"]["NumPy, float32"]["error"] > 0


@pytest.mark.parametrize("name", ["lstm.weight_hh_l0", "lstm.bias_ih_l0", "head.weight"])
def test_verify_fails_on_other_weights(
    run: Any, features: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    corrupt(monkeypatch, name)
    code, out, _ = run("verify", features, "--steps", "40")
    assert code == 1
    assert "FAILED: the engine is off by" in out
    code, out, _ = run("verify", features, "--steps", "40", "--json")
    told = json.loads(out)
    assert (code, told["passed"]) == (1, False)
    engine = told["comparisons"][0]["evaluations"]["engine, sequences"]
    assert engine["error"] > engine["limit"]
    code, _, _ = run("verify", features, "--steps", "40", "--tolerance", "1")
    assert code == 3


def test_verify_fails_on_a_file_whose_self_check_does(
    run: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    file = model_file(recurrent("gru", 3, 5), rng)
    x = np.ones((4, 3), np.float32)
    wrong = ChainFile(file.layers, file.tensors, self_check=(x, np.full((4, 5), 0.9)))
    Model(wrong).save(tmp_path / "m")
    code, out, _ = run("verify", tmp_path / "m", "--steps", "5")
    assert code == 1
    assert "FAILED: the model does not give the output that its file records" in out
    code, out, _ = run("verify", tmp_path / "m", "--steps", "5", "--json")
    told = json.loads(out)
    assert (code, told["passed"], told["verdicts"][0]["passed"]) == (1, False, True)
    assert told["self_check"].startswith("the self-check failed")
    assert run("info", tmp_path / "m")[0] == 2


def test_verify_a_model_of_nan(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    file = model_file(recurrent("gru", 3, 5), rng)
    file.tensors["rnn.bias_ih_l0"][:] = np.nan
    Model(file).save(tmp_path / "m")
    pytest.importorskip("matplotlib")
    code, out, _ = run("verify", tmp_path / "m", "--steps", "5", "--plot", tmp_path / "m.png")
    assert code == 1
    assert "not finite from the first step" in out
    assert is_png(tmp_path / "m.png")
    code, out, _ = run("verify", tmp_path / "m", "--steps", "5", "--json")
    assert (code, json.loads(out)["comparisons"][0]["outputs_compared"]) == (1, 0)


def test_verify_a_chaotic_model(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    file = model_file(recurrent("rnn_tanh", 3, 40), rng)
    Model(ChainFile(file.layers, {n: 12 * t for n, t in file.tensors.items()})).save(tmp_path / "m")
    code, out, _ = run("verify", tmp_path / "m", "--steps", "300")
    assert code == 3
    assert "300 random steps, 4 rows, exact state every 4 steps" in out
    assert "(rounding alone takes " in out


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_verify_draws(
    run: Any, features: Path, bidirectional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    for path in (features, bidirectional):
        code, out, _ = run("verify", path, "--steps", "50", "--plot", tmp_path / "v.png")
        assert code == 3
        assert f"wrote {tmp_path / 'v.png'}" in out
        assert is_png(tmp_path / "v.png")
        (tmp_path / "v.png").unlink()
    without(monkeypatch, "matplotlib")
    code, _, err = run("verify", features, "--plot", tmp_path / "v.png")
    assert (code, err) == (2, f"fastlstm: error: {plot.MISSING}\n")


def test_verify_against_a_checkpoint(
    run: Any, features: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    tensors = {n: torch.tensor(t) for n, t in fastlstm.load(features).tensors.items()}
    torch.save(tensors, tmp_path / "m.pt")
    steps = ("--steps", "40", "--layers", "lstm, linear:head")
    code, out, _ = run("verify", features, "--against", tmp_path / "m.pt", *steps)
    assert code == 3
    assert "not compared: the order of the layers, functions and numbers: " in out
    assert "ok: the weights are the source's, bit for bit" in out
    tensors["head.weight"][0, 0] += 1
    torch.save(tensors, tmp_path / "m.pt")
    code, out, _ = run("verify", features, "--against", tmp_path / "m.pt", *steps)
    assert code == 1
    assert "ok: the engine is off by" in out
    assert "FAILED: source, float64 is off by " in out
    assert (
        "FAILED: 1 of 6 tensors are not the source's: 'head.weight' in 1 of 57, by up to 1" in out
    )
    code, out, _ = run("verify", features, "--against", tmp_path / "m.pt", *steps, "--json")
    told = json.loads(out)
    assert (code, told["against"]) == (1, str(tmp_path / "m.pt"))
    assert "source, float64" in told["drift"][0]["evaluations"]
    code, _, err = run("verify", features, "--against", tmp_path / "m.pt")
    assert code == 2
    assert "layers=" in err


def test_verify_options_of_a_source(run: Any, features: Path) -> None:
    code, _, err = run("verify", features, "--prefix", "model")
    assert (code, err) == (
        2,
        "fastlstm: error: --prefix is of a SOURCE that is converted again; expected it with "
        "--against and a checkpoint\n",
    )


# bench


def test_bench(run: Any, features: Path, tokens: Path) -> None:
    for path in (features, tokens):
        code, out, err = run("bench", path, *FAST)
        assert (code, err) == (0, "")
        for part in ("p50", "p99", "p99.9", "max", "40 times", "steps per second", "the clock"):
            assert part in out
        code, out, _ = run("bench", path, *FAST, "--json")
        told = json.loads(out)
        assert code == 0
        step = told["step"]
        assert 0 < step["p50_us"] <= step["p99_us"] <= step["p99.9_us"] <= step["max_us"]
        assert step["steps"] == 40
        assert told["sequence"]["length"] == 20
        assert told["sequence"]["runs"] >= 3
        assert told["cpu"] == machine.cpu_name()
    told = json.loads(run("bench", features, *FAST, "--threads", 2, "--json")[1])
    assert told["threads"] == 2
    with pytest.raises(SystemExit):
        run("bench", features, "--threads", 0)


def test_bench_of_a_bidirectional_model(run: Any, bidirectional: Path, tmp_path: Path) -> None:
    code, out, _ = run("bench", bidirectional, *FAST)
    assert code == 0
    assert "There is no step" in out
    assert json.loads(run("bench", bidirectional, *FAST, "--json")[1])["step"] is None
    code, _, err = run("bench", bidirectional, *FAST, "--plot", tmp_path / "a.png")
    assert code == 2
    assert "bidirectional" in err


def test_bench_stops_after_the_time_given(features: Path) -> None:
    model = fastlstm.load(features)
    x = random_input(model, (4,), seed=0)
    took = latency.time_steps(model, x, steps=10**6, seconds=0)
    assert 1 <= len(took.nanoseconds) < 10**6


def test_times_are_measured_ones() -> None:
    took = latency.Latency(np.arange(1, 1001)[::-1] * 1000)
    assert took.microseconds() == {"p50": 501, "p99": 991, "p99.9": 1000, "max": 1000}


def test_time_steps_keeps_the_outputs(features: Path) -> None:
    model = fastlstm.load(features)
    x = random_input(model, (30,), seed=0)
    y = np.empty((30, model.output_size), np.float32)
    latency.time_steps(model, x, steps=30, y=y)
    np.testing.assert_array_equal(y, model.stream().run(x))


def test_plot(run: Any, features: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "times.png"
    code, out, err = run("bench", features, *FAST, "--plot", picture)
    assert (code, err) == (0, "")
    assert f"wrote {picture}" in out
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000
    assert run("bench", features, *FAST, "--plot", tmp_path / "no" / "a.png")[0] == 2
    code, _, err = run("bench", features, *FAST, "--plot", tmp_path / "a.unknown")
    assert code == 2
    assert "unknown" in err


def test_plot_of_one_step(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot.save_latency(
        str(tmp_path / "a.png"), latency.Latency(np.array([900])), title="one", subtitle=""
    )
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_plot_without_matplotlib(
    run: Any, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "matplotlib")
    code, out, err = run("bench", features, *FAST, "--plot", tmp_path / "a.png")
    assert (code, out) == (2, "")
    assert "pip install 'fastlstm[cli]'" in err
    assert not (tmp_path / "a.png").exists()
    assert run("bench", features, *FAST)[0] == 0


def test_cells_of_equal_parameters() -> None:
    sizes = {cell.kind: cell.hidden_size for cell in cells.equal_parameters(40, 128)}
    assert sizes == {"RNN": 275, "GRU": 151, "LSTM": 128}
    for input_size in (1, 2, 7, 40, 300):
        for hidden_size in (1, 2, 3, 16, 100, 1000):
            wanted = 4 * hidden_size * (input_size + hidden_size + 2)
            found = cells.equal_parameters(input_size, hidden_size)
            assert [cell.kind for cell in found] == ["RNN", "GRU", "LSTM"]
            assert found[-1] == cells.Cell("LSTM", input_size, hidden_size)
            for cell in found:
                off = abs(cell.parameters - wanted)
                for other in (cell.hidden_size - 1, cell.hidden_size + 1):
                    beside = cells.Cell(cell.kind, input_size, other)
                    assert other == 0 or off <= abs(beside.parameters - wanted)


@pytest.mark.parametrize("kind", cells.GATES)
def test_cells_are_built_as_told(kind: str) -> None:
    cell = cells.Cell(kind, 5, 19)
    model = cell.build(isa="scalar", threads=2)
    (layer,) = model.layers
    assert layer.kind == kind.lower()
    assert (model.input_size, model.output_size) == (5, 19)
    assert (model.isa, model.threads) == ("scalar", 2)
    assert sum(tensor.size for tensor in model.tensors.values()) == cell.parameters
    assert model.check() < 1e-4


def test_compare_cells(run: Any) -> None:
    argv = ("bench", "--compare-cells", *FAST, "--input-size", "4", "--hidden-size", "16")
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    for part in ("equal hidden size", "equal parameters", "RNN", "GRU", "LSTM", "the clock"):
        assert part in out
    code, out, _ = run(*argv, "--json", "--isa", "scalar")
    told = json.loads(out)
    assert code == 0
    same, fair = told["groups"]["equal hidden size"], told["groups"]["equal parameters"]
    for group in (same, fair):
        assert [one["cell"] for one in group] == ["RNN", "GRU", "LSTM"]
        assert group[-1]["step_of_lstm"] == group[-1]["sequence_of_lstm"] == 1
        for one in group:
            assert one["isa"] == "scalar"
            assert 0 < one["step"]["p50_us"] <= one["step"]["p99_us"]
            assert one["step"]["steps"] == 40
            assert one["sequence"]["runs"] >= 3 * cells.ROUNDS
            assert one["sequence"]["step_us"] > 0
    assert [one["hidden_size"] for one in same] == [16, 16, 16]
    assert same[-1] == fair[-1]  # measured once
    assert told["length"] == 20


def test_compare_cells_plot(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    argv = ("bench", "--compare-cells", *FAST, "--input-size", "4", "--hidden-size", "16")
    picture = tmp_path / "cells.png"
    code, out, err = run(*argv, "--plot", picture)
    assert (code, err) == (0, "")
    assert f"wrote {picture}" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_bench_takes_a_model_or_compares_cells(run: Any, features: Path) -> None:
    for argv, message in (
        ((), "expected either a MODEL or --compare-cells; neither is given"),
        (
            (features, "--compare-cells"),
            "expected either a MODEL or --compare-cells; both are given",
        ),
        (
            (features, "--input-size", 4),
            "--input-size is of --compare-cells; a MODEL has its own sizes",
        ),
        (
            (features, "--hidden-size", 4),
            "--hidden-size is of --compare-cells; a MODEL has its own sizes",
        ),
    ):
        assert run("bench", *argv) == (2, "", f"fastlstm: error: {message}\n")


# generate


def test_generate(run: Any, tokens: Path) -> None:
    argv = ("generate", tokens, "--prompt", "abc a", "--length", "40")
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert out.startswith("abc a")
    assert run(*argv, "--seed", "0") == (code, out, err)
    assert run(*argv, "--seed", "1")[1] != out
    (told,) = json.loads(run(*argv, "--json")[1])["continuations"]
    assert told["prompt"] == "abc a"
    assert told["prompt_tokens"] == [VOCABULARY.index(s) for s in ("abc", " ", "a")]
    assert len(told["tokens"]) == 40
    assert not told["stopped"]
    assert told["text"] == "".join(VOCABULARY[t] for t in told["tokens"])
    assert out == "abc a" + told["text"] + "\n"


def test_generate_streams_on_a_terminal(run: Any, tokens: Path) -> None:
    argv = ("generate", tokens, "--prompt", "abc", "--length", "12")
    assert on_terminal(*argv).replace("\r", "") == run(*argv)[1]


def test_generate_greedily(run: Any, tokens: Path) -> None:
    model = fastlstm.load(tokens)
    expected = [3, 5]
    for _ in range(15):
        y, _ = model(np.array(expected))
        expected.append(int(y[-1].argmax()))
    argv = ("generate", tokens, "--tokens", "3,5", "--length", "15", "--temperature", "0", "--json")
    assert json.loads(run(*argv)[1])["continuations"][0]["tokens"] == expected[2:]


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_generate_from_probabilities(
    run: Any, tmp_path: Path, rng: np.random.Generator, function: str
) -> None:
    file = token_file(rng, scale=2)
    last = spec.Activation("last", function, V)
    Model(file).save(tmp_path / "logits")
    Model(ChainFile((*file.layers, last), file.tensors, vocabulary=VOCABULARY)).save(tmp_path / "p")
    texts = [
        run("generate", tmp_path / name, "--prompt", "ab", "--temperature", "0.9")[1]
        for name in ("logits", "p")
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_generate_options_reach_the_library(run: Any, tokens: Path) -> None:
    model = fastlstm.load(tokens)
    options: dict[str, Any] = {"length": 40, "temperature": 1.5, "top_k": 7, "top_p": 0.8}
    argv = ("--length", 40, "--temperature", 1.5, "--top-k", 7, "--top-p", 0.8, "--seed", 3)
    text = fastlstm.generate(model, "abc", **options, seed=3)
    assert run("generate", tokens, "--prompt", "abc", *argv)[1] == f"abc{text}\n"
    stop = next(string for string in VOCABULARY if string in text[9:])
    stopped = fastlstm.generate(model, "abc", **options, seed=3, stop=stop)
    assert len(stopped) < len(text)
    argv = (*argv, "--stop", stop)
    assert run("generate", tokens, "--prompt", "abc", *argv)[1] == f"abc{stopped}\n"
    told = json.loads(run("generate", tokens, "--prompt", "abc", *argv, "--json")[1])
    assert told["continuations"][0]["stopped"]
    assert (told["top_k"], told["top_p"], told["stop"]) == (7, 0.8, stop)


def test_generate_a_batch(run: Any, tokens: Path) -> None:
    prompts = ("abc a", "h", "abc a")
    argv = ("generate", tokens, "--length", "20", "--seed", "2")
    given = [part for prompt in prompts for part in ("--prompt", prompt)]
    expected = fastlstm.generate(fastlstm.load(tokens), prompts, length=20, temperature=0.7, seed=2)
    code, out, err = run(*argv, *given)
    assert (code, err) == (0, "")
    assert out == "".join(
        f"\nprompt {n} of 3\n{prompt}{text}\n"
        for n, (prompt, text) in enumerate(zip(prompts, expected, strict=True), 1)
    )
    told = json.loads(run(*argv, *given, "--json")[1])["continuations"]
    assert [one["text"] for one in told] == expected
    assert [one["prompt"] for one in told] == list(prompts)
    for one in told:
        # Alone, with the seed it tells, a prompt gives the same.
        alone = ("--prompt", one["prompt"], "--seed", one["seed"], "--length", 20, "--json")
        assert json.loads(run("generate", tokens, *alone)[1])["continuations"] == [one]
    told = json.loads(run(*argv, "--tokens", "1,2", "--tokens", "3", "--json")[1])
    assert [one["prompt_tokens"] for one in told["continuations"]] == [[1, 2], [3]]
    assert [one["prompt"] for one in told["continuations"]] == [None, None]


def test_unknown_characters(run: Any, tokens: Path) -> None:
    code, out, err = run("generate", tokens, "--prompt", "aZ\x1bZ", "--length", "3")
    assert code == 0
    assert out.startswith("a<unk><unk><unk>")
    assert err == "fastlstm: note: not in the vocabulary, read as '<unk>': 'Z', '\\x1b'\n"


def test_generate_refuses(
    run: Any, features: Path, tokens: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    embedding, gru = spec.Embedding("e", V, 4), recurrent("gru", 4, V, "gru")
    bidirectional = recurrent("gru", 4, 4, "gru", bidirectional=True)
    for name, layers in {
        "sizes": (embedding, recurrent("gru", 4, 5)),
        "end": (embedding, gru),
        "tanh": (embedding, gru, spec.Linear("l", V, V), spec.Activation("t", "tanh", V)),
        "bidirectional": (embedding, bidirectional, spec.Linear("l", 8, V)),
        "plain": (embedding, gru, spec.Linear("l", V, V)),
    }.items():
        build(layers, rng).save(tmp_path / name)
    broken = token_file(rng)
    broken.tensors["head.bias"][2] = np.nan
    Model(broken).save(tmp_path / "nan")
    for path, prompt, message in (
        (features, ("--tokens", "1"), "takes 5 features a step, not tokens"),
        (tmp_path / "sizes", ("--tokens", "1"), "knows 12 tokens and gives 5 features"),
        (tmp_path / "end", ("--tokens", "1"), "ends in gru"),
        (tmp_path / "tanh", ("--tokens", "1"), "ends in activation"),
        (tmp_path / "bidirectional", ("--tokens", "1"), "bidirectional"),
        (tmp_path / "plain", ("--prompt", "a"), "no vocabulary"),
        (tmp_path / "nan", ("--prompt", "a"), "NaN"),
        (tokens, ("--prompt", ""), "prompts[0] is empty; expected at least one token"),
        (tokens, ("--tokens", "12"), "token 12 at index 0 of prompts[0] is out of range"),
        (tokens, ("--prompt", "a", "--top-p", "1.5"), "top_p is 1.5"),
        (tokens, ("--prompt", "a", "--stop", "zz"), "stop is 'zz'"),
        (
            tmp_path / "plain",
            ("--tokens", "1", "--stop", "a"),
            "--stop is 'a', and this model has no vocabulary; expected the number of a token",
        ),
    ):
        code, out, err = run("generate", path, *prompt)
        assert (code, out) == (2, "")
        assert message in err
    code, out, _ = run("generate", tmp_path / "plain", "--tokens", "1,2", "--length", "4")
    assert code == 0
    shown = [int(token) for token in out.split()]
    assert shown[:2] == [1, 2]
    assert len(shown) == 6


def test_generate_tokens_up_to_a_token(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    file = token_file(rng)
    Model(ChainFile(file.layers, file.tensors)).save(tmp_path / "plain")
    argv = ("generate", tmp_path / "plain", "--tokens", "1,2", "--length", "20")
    whole = run(*argv)[1].split()
    n = whole.index(whole[9], 2)
    assert run(*argv, "--stop", whole[9])[1].split() == whole[:n]


# perplexity


def test_perplexity(run: Any, tokens: Path, tmp_path: Path) -> None:
    model = fastlstm.load(tokens)
    for name, text in {"one": "abc ab h", "two": "gab" * 30}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    expected = [fastlstm.perplexity(model, "abc ab h"), fastlstm.perplexity(model, "gab" * 30)]
    code, out, err = run("perplexity", tokens, "--text", tmp_path / "one")
    assert (code, err) == (0, "")
    name, *numbers = out.split("\n")[1].rsplit(maxsplit=3)
    assert name == str(tmp_path / "one")
    assert numbers == ["4", f"{expected[0]:.4f}", f"{np.log2(expected[0]):.4f}"]
    assert "all together" not in out
    argv = ("perplexity", tokens, "--text", tmp_path / "one", "--text", tmp_path / "two")
    assert "all together" in run(*argv)[1]
    told = json.loads(run(*argv, "--json")[1])
    assert [one["perplexity"] for one in told["texts"]] == expected
    assert [one["predicted"] for one in told["texts"]] == [4, 59]
    both = fastlstm.perplexity(model, ["abc ab h", "gab" * 30])
    assert told["perplexity"] == pytest.approx(both, rel=1e-12)
    assert told["bits_per_token"] == pytest.approx(np.log2(both), rel=1e-12)
    told = json.loads(run("perplexity", tokens, "--tokens", "11,1,10,1,9", "--json")[1])
    assert told["perplexity"] == expected[0] == told["texts"][0]["perplexity"]
    assert told["texts"][0]["text"] is None


def test_perplexity_reads_a_file_as_it_is(run: Any, tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("aé\r\nb".encode())
    code, out, err = run("perplexity", tokens, "--text", tmp_path / "a", "--json")
    assert code == 0
    assert json.loads(out)["predicted"] == 4
    assert err == "fastlstm: note: not in the vocabulary, read as '<unk>': 'é', '\\r', '\\n'\n"


def test_perplexity_refuses(
    run: Any, features: Path, tokens: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "latin1").write_bytes("aé".encode("latin1"))
    (tmp_path / "empty").write_text("", encoding="utf-8")
    file = token_file(rng)
    Model(ChainFile(file.layers, file.tensors)).save(tmp_path / "plain")
    for path, given, message in (
        (features, ("--tokens", "1,2"), "takes 5 features a step, not tokens"),
        (tmp_path / "plain", ("--text", tmp_path / "empty"), "no vocabulary to read --text with"),
        (tokens, ("--text", tmp_path / "latin1"), "latin1' is not UTF-8 text: "),
        (tokens, ("--text", tmp_path / "missing"), "No such file or directory"),
        (
            tokens,
            ("--text", tmp_path / "empty"),
            f"{tmp_path / 'empty'} holds fewer than two tokens; expected more, for the first has "
            f"no prediction",
        ),
        (tokens, ("--tokens", "1,2", "--tokens", "3"), "--tokens number 2 holds fewer than two"),
        (tokens, ("--tokens", "1,12"), "token 12 at index 1 of the text is out of range"),
    ):
        code, out, err = run("perplexity", path, *given)
        assert (code, out) == (2, "")
        assert message in err


# forecast


@pytest.fixture
def series(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """A time-series model's file, and a series of 30 rows."""
    layers = (recurrent("lstm", 2, 9), spec.Linear("head", 9, 2))
    build(layers, rng).save(tmp_path / "model.safetensors")
    np.save(tmp_path / "series.npy", rng.standard_normal((30, 2)))
    return tmp_path / "model.safetensors", tmp_path / "series.npy"


def test_forecast(run: Any, series: tuple[Path, Path], tmp_path: Path) -> None:
    path, given = series
    model, history = fastlstm.load(path), np.load(given).astype(np.float32)
    expected = fastlstm.forecast(model, history, 7)
    output = tmp_path / "forecast.npy"
    argv = ("forecast", path, "--input", given, "--steps", 7)
    code, out, err = run(*argv, "--output", output)
    assert (code, err) == (0, "")
    assert out.endswith(f"ok: wrote {output}\n")
    np.testing.assert_array_equal(np.load(output), expected)
    shown = out[out.index("\nrow ") :].split("\n")[2:9]
    assert [line.split() for line in shown] == [
        [str(30 + n), *(f"{value:.6g}" for value in row)] for n, row in enumerate(expected)
    ]
    told = json.loads(run(*argv, "--json")[1])
    np.testing.assert_array_equal(np.array(told["forecast"], np.float32), expected)
    predicted = model(history)[0].astype(np.float64)
    rmse = np.sqrt(((predicted[:-1] - history[1:]) ** 2).mean(axis=0))
    np.testing.assert_allclose(told["one_step_rmse"], rmse, rtol=1e-5)
    repeated = np.sqrt((np.diff(history.astype(np.float64), axis=0) ** 2).mean(axis=0))
    np.testing.assert_allclose(told["repeat_rmse"], repeated, rtol=1e-5)
    assert told["rows"] == 30
    assert told["names"] is None


def test_forecast_of_csv(run: Any, series: tuple[Path, Path], tmp_path: Path) -> None:
    path, given = series
    same, output = tmp_path / "same.csv", tmp_path / "forecast.csv"
    lines = [",".join(map(repr, row)) for row in np.load(given).tolist()]
    same.write_text("\n".join(["flow,[red]\x1b[2J", *lines]), encoding="utf-8")
    argv = ("--steps", 3, "--output", output)
    code, out, _ = run("forecast", path, "--input", same, *argv)
    assert code == 0
    assert "\x1b" not in out
    assert r"[red]\x1b[2J" in out
    told = json.loads(run("forecast", path, "--input", given, "--steps", 3, "--json")[1])
    header, *rows = output.read_text(encoding="utf-8").splitlines()
    assert header == "flow,[red]\x1b[2J"
    found = np.array([[float(cell) for cell in row.split(",")] for row in rows], np.float32)
    np.testing.assert_array_equal(found, np.array(told["forecast"], np.float32))


def test_forecast_from_one_row(run: Any, series: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "one.csv").write_text("1,2\n", encoding="utf-8")
    argv = ("forecast", series[0], "--input", tmp_path / "one.csv", "--steps", 1)
    code, out, err = run(*argv, "--plot", tmp_path / "one.png")
    assert (code, err) == (0, "")
    assert "nan" in out
    told = json.loads(run(*argv, "--json")[1])
    assert told["one_step_rmse"] == [None, None]
    assert len(told["forecast"]) == 1


@pytest.mark.parametrize("columns", [1, 9])
def test_forecast_plot(run: Any, tmp_path: Path, rng: np.random.Generator, columns: int) -> None:
    pytest.importorskip("matplotlib")
    layers = (recurrent("gru", columns, 6), spec.Linear("head", 6, columns))
    build(layers, rng).save(tmp_path / "m")
    names = ",".join(["$\\frac$ \x01", *"abcdefgh"][:columns])
    np.savetxt(
        tmp_path / "a.csv", rng.standard_normal((200, columns)), delimiter=",", header=names,
        comments="",
    )  # fmt: skip
    picture = tmp_path / "a.png"
    argv = ("forecast", tmp_path / "m", "--input", tmp_path / "a.csv", "--steps", 20)
    code, out, err = run(*argv, "--plot", picture)
    assert (code, err) == (0, "")
    assert f"wrote {picture}" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_forecast_refuses(
    run: Any,
    features: Path,
    tokens: Path,
    series: tuple[Path, Path],
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    path, given = series
    growing = model_file((spec.Linear("head", 2, 2),), rng)
    growing.tensors["head.weight"][:] = 1e30
    Model(growing).save(tmp_path / "growing")
    before = given.read_bytes()
    for model, options, message in (
        (tokens, (), "this model takes tokens, not features"),
        (features, (), "this model takes 5 features a step and gives 3"),
        (path, ("--input", tmp_path / "a.txt"), "expected a file that ends in .csv or .npy"),
        (path, ("--input", tmp_path / "a.csv"), "No such file or directory"),
        (path, ("--output", tmp_path / "a.txt"), "expected a file that ends in .csv or .npy"),
        (path, ("--output", given), "is the series itself; expected another --output"),
        (
            tmp_path / "growing",
            (),
            "forecast number 2 holds NaN or infinity; expected finite numbers. Is the series "
            "scaled as it was for the model's training?",
        ),
    ):
        code, out, err = run("forecast", model, "--input", given, *options)
        assert (code, out) == (2, "")
        assert message in err
    assert given.read_bytes() == before
    assert not (tmp_path / "a.txt").exists()


def test_forecast_plot_without_matplotlib(
    run: Any, series: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "matplotlib")
    argv = ("forecast", series[0], "--input", series[1])
    code, out, err = run(*argv, "--plot", tmp_path / "a.png", "--output", tmp_path / "a.csv")
    assert (code, out) == (2, "")
    assert "pip install 'fastlstm[cli]'" in err
    assert not (tmp_path / "a.csv").exists()
    assert run(*argv)[0] == 0


# demo


def test_demo_as_shipped(run: Any, tmp_path: Path) -> None:
    code, out, err = run("demo", "--output-dir", tmp_path / "new" / "folder", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["passed"]
    assert f"{told['perplexity']:.4f}" == f"{told['torch_perplexity']:.4f}"
    assert told["perplexity"] < 10
    assert told["logits_error"] <= told["logits_limit"]
    assert len(told["generated"]) >= 300
    assert fastlstm.load(tmp_path / "new" / "folder" / "model.safetensors").input_size == 28


@pytest.fixture
def demo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo's files, which the command takes for its own."""
    folder = tmp_path / "demo"
    shutil.copytree(demonstration.files(), folder)
    monkeypatch.setattr(demonstration, "files", lambda: folder)
    return folder


def change_recorded(folder: Path, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / demonstration.RECORDED) as recorded:
        arrays = {name: changes.get(name, np.array)(recorded[name]) for name in recorded.files}
    np.savez(folder / demonstration.RECORDED, **arrays)


def test_demo_page_leaves_nothing(
    run: Any, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    assert "removed at the end" in out
    assert list((tmp_path / "temporary").iterdir()) == []
    for part in ("Convert", "Verify", "Stream", "Generate", "perplexity", "tokens per second"):
        assert part in out
    assert "FAILED" not in out


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("perplexity", lambda p: p + 1.5e-4),
        ("logits", lambda y: y + np.float32(0.01) * (np.arange(y.size).reshape(y.shape) == 99)),
    ],
)
def test_demo_fails_where_torch_differs(
    run: Any, demo_folder: Path, name: str, change: Any
) -> None:
    change_recorded(demo_folder, **{name: change})
    code, out, _ = run("demo")
    assert code == 1
    assert out.count("FAILED: ") == 1
    code, out, _ = run("demo", "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)


def test_demo_with_broken_files(run: Any, demo_folder: Path) -> None:
    change_recorded(demo_folder, tokens=lambda t: t[::-1].copy())
    code, _, err = run("demo")
    assert code == 2
    assert "differ" in err
    (demo_folder / demonstration.CHECKPOINT).unlink()
    code, _, err = run("demo")
    assert code == 2
    assert "No such file" in err


# doctor


def test_doctor(run: Any) -> None:
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    for part in ("processor", "scalar", "BLAS", "numpy", "self-test", "ok: "):
        assert part in out
    code, out, _ = run("doctor", "--json")
    told = json.loads(out)
    assert code == 0
    found = told["instruction_sets"]["found"]
    assert [test["isa"] for test in told["self_test"]] == [*found, "scalar"]
    assert all(test["passed"] and test["ran"] == test["isa"] for test in told["self_test"])
    assert told["versions"]["numpy"] == np.__version__
    assert told["blas"]["found"]
    assert told["allowed_cpus"] >= 1


def test_doctor_finds_a_wrong_kernel(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch, "gru.weight_hh_l0")
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAILED: scalar, float32" in out


def test_doctor_says_what_is_forced(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTLSTM_ISA", "scalar")
    told = json.loads(run("doctor", "--json")[1])
    assert told["instruction_sets"]["chosen"] == told["instruction_sets"]["forced"] == "scalar"
    monkeypatch.setenv("FASTLSTM_ISA", "nonsense")
    code, out, err = run("doctor")
    assert (code, err) == (1, "")
    assert "not found" in out
    assert os.environ["FASTLSTM_ISA"] == "nonsense"


def test_doctor_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "scipy")
    told = machine.blas()
    assert not told["found"]
    assert "scipy" in told["reason"]
