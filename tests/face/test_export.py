"""``fastlstm export``: folders of C that build without a warning, and run the model bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import c_builds
import numpy as np
import pytest
from exported import build, engine, small_model
from test_several_values import file_of

import fastlstm
from fastlstm import Model, cli, spec
from fastlstm.format import ModelFile

X = spec.Input("x", (3,))
IDS = spec.Input("ids", (), tokens=7)
KNOBS = spec.Input("knobs", (3,), held=True)


def made(*nodes: tuple[spec.Layer, tuple[str, ...]]) -> tuple[spec.Node, ...]:
    return tuple(spec.Node(layer, reads) for layer, reads in nodes)


GRAPHS = {
    "single": spec.Graph(
        (X,),
        made((spec.LSTM("rnn", 3, 19), ("x",)), (spec.Linear("out", 19, 2), ("rnn",))),
        {"y": "out"},
    ),
    "tokens": spec.Graph(
        (IDS,),
        made((spec.Embedding("table", 7, 5), ("ids",)), (spec.GRU("rnn", 5, 9), ("table",))),
        {"y": "rnn"},
    ),
    "a row every other step, some late": spec.Graph(
        (X,),
        made(
            (spec.Convolution("conv", 3, 4, (3,), stride=(2,), over_time=True), ("x",)),
            (spec.RNN("rnn", 4, 5), ("conv",)),
        ),
        {"y": "rnn"},
    ),
    "several inputs and outputs, of which some are held": spec.Graph(
        (X, KNOBS, IDS),
        made(
            (spec.Arithmetic("both", "multiply"), ("x", "knobs")),
            (spec.Embedding("table", 7, 3), ("ids",)),
            (spec.Arithmetic("sum", "add"), ("both", "table")),
            (spec.GRU("rnn", 3, 6), ("sum",)),
            (spec.Convolution("conv", 6, 2, (2,), stride=(2,), over_time=True), ("rnn",)),
        ),
        {"state": "rnn", "y": "conv", "twice": "both"},
    ),
    "a mean of all steps so far": spec.Graph(
        (X,), made((spec.LSTM("rnn", 3, 4), ("x",)), (spec.Fold("mean", "mean"), ("rnn",))),
        {"y": "mean"},
    ),
}  # fmt: skip


def model_of(graph: spec.Graph, rng: np.random.Generator) -> Model:
    return Model(file_of(graph, rng), reproducible=True)


def inputs_of(graph: spec.Graph, T: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    given = {}
    for one in graph.inputs:
        shape = one.shape if one.held else (T, *one.shape)
        given[one.name] = (
            rng.integers(0, one.tokens, shape)
            if one.tokens
            else rng.normal(0, 1, shape).astype(np.float32)
        )
    return given


def program_input(graph: spec.Graph, inputs: dict[str, np.ndarray], T: int) -> bytes:
    """What ``run`` reads: held rows, then a row of each other input, step after step."""
    rows = [inputs[one.name].tobytes() for one in graph.inputs if one.held]
    moving = [inputs[one.name] for one in graph.inputs if not one.held]
    rows += [x[t].tobytes() for t in range(T) for x in moving]
    return b"".join(rows)


def expected_output(model: Model, inputs: dict[str, np.ndarray], T: int) -> bytes:
    """The rows of each step, output by output, and those that are due at the end."""
    held = {i.name: inputs[i.name] for i in model.graph.inputs if i.held}
    moving = {name: x for name, x in inputs.items() if name not in held}
    single = next(iter(moving)) if len(moving) == 1 else ""
    stream = model.stream(held=held or None)
    given = []
    for t in range(T):
        x: Any = {name: a[t : t + 1] for name, a in moving.items()}
        given.append(stream.run(x[single] if single and not held else x))
    given.append(stream.flush())
    rows = [y if isinstance(y, dict) else {"": y} for y in given]
    return b"".join(np.ascontiguousarray(y).tobytes() for one in rows for y in one.values())


def played(command: list[str], given: bytes) -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("name", GRAPHS)
def test_run_gives_the_numbers_of_the_model(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    model, T = model_of(GRAPHS[name], rng), 151
    inputs = inputs_of(model.graph, T, rng)
    output = played(build(model, tmp_path / "c"), program_input(model.graph, inputs, T))
    assert output == expected_output(model, inputs, T)
    if name == "single":
        y, _ = model(inputs["x"])
        assert output == y.tobytes()


@pytest.mark.parametrize("precision", spec.PRECISIONS[1:])
def test_a_model_in_fewer_bytes(precision: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """The same bits, and a file about as much smaller."""
    plain = Model(file_of(spec.Graph.chain([spec.LSTM("n", 40, 60)]), rng), reproducible=True)
    model = fastlstm.quantize(plain, precision)
    x = rng.normal(0, 1, (50, 40)).astype(np.float32)
    command = build(model, tmp_path / "c", apart=True)
    file = tmp_path / "c" / "model.flm"
    assert played([*command, str(file)], x.tobytes()) == model(x)[0].tobytes()
    fastlstm.export(plain, tmp_path / "plain", apart=True)
    part = file.stat().st_size / (tmp_path / "plain" / "model.flm").stat().st_size
    assert part < (0.35 if precision == "int8" else 0.6)


def test_the_model_beside_the_sources(tmp_path: Path, rng: np.random.Generator) -> None:
    model = small_model()
    command = build(model, tmp_path / "c", apart=True)
    assert not (tmp_path / "c" / "model.c").exists()
    x = rng.normal(0, 1, (100, 1)).astype(np.float32)
    file = tmp_path / "c" / "model.flm"
    assert played([*command, str(file)], x.tobytes()) == model(x)[0].tobytes()
    without = subprocess.run(command, capture_output=True, check=False)
    assert (without.returncode, b"model.flm" in without.stderr) == (1, True)
    file.write_bytes(file.read_bytes()[:-1])
    cut = subprocess.run([*command, str(file)], capture_output=True, check=False)
    assert (cut.returncode, b"cut off" in cut.stderr) == (1, True)
    absent = subprocess.run([*command, "no/file"], capture_output=True, check=False)
    assert (absent.returncode, b"cannot be read" in absent.stderr) == (1, True)


def test_input_that_ends_within_a_row(tmp_path: Path, rng: np.random.Generator) -> None:
    graph = GRAPHS["several inputs and outputs, of which some are held"]
    model, T = model_of(graph, rng), 2
    command = build(model, tmp_path / "c")
    given = program_input(graph, inputs_of(graph, T, rng), T)
    for bytes_given, says in ((0, b"held"), (5, b"held"), (len(given) - 8, b"within a row")):
        done = subprocess.run(command, input=given[:bytes_given], capture_output=True, check=False)
        assert (done.returncode, says in done.stderr) == (1, True), done.stderr


def test_one_file_for_one_processor(tmp_path: Path, rng: np.random.Generator) -> None:
    """``fastlstm.c`` alone is the engine for what the flags say; the bits are the library's."""
    model = model_of(GRAPHS["single"], rng)
    fastlstm.export(model, tmp_path)
    engine()  # or skips
    sources = [tmp_path / name for name in ("run.c", "model.c", "fastlstm.c", "fastlstm_host.c")]
    program = tmp_path / "program"
    flags = ["-std=c11", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    tried = c_builds.call(["cc", "-march=native", "-E", "-x", "c", "/dev/null"])
    native = ["-march=native"] if tried.returncode == 0 else []
    made = c_builds.call(["cc", *flags, *native, *sources, "-lm", "-pthread", "-o", program])
    assert made.returncode == 0, made.stderr
    T, inputs = 70, inputs_of(model.graph, 70, rng)
    output = played([str(program)], program_input(model.graph, inputs, T))
    macros = c_builds.call(["cc", *native, "-dM", "-E", "-x", "c", "/dev/null"]).stdout
    isa = next(
        (
            name
            for name, macro in (("avx512", "AVX512VL"), ("avx2", "AVX2"), ("neon", "aarch64"))
            if f"__{macro}__" in macros
        ),
        "scalar",
    )
    same = Model(ModelFile(model.graph, dict(model.tensors)), isa=isa, reproducible=True)
    assert output == expected_output(same, inputs, T)


def test_the_headers_are_cpp(tmp_path: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("c++ is not installed")
    fastlstm.export(small_model(), tmp_path)
    source = tmp_path / "user.cpp"
    source.write_text(
        '#include "fastlstm_host.h"\n#include "fastlstm.h"\n#include "model.h"\n'
        "int main() {\n    fl_loaded loaded;\n    fl_model_config how = fl_model_config();\n"
        "    how.struct_size = sizeof how;\n"
        "    return fl_load_bytes(MODEL, MODEL_BYTES, &how, &loaded, nullptr, 0);\n}\n"
    )
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    done = c_builds.call(["c++", *flags, source])
    assert done.returncode == 0, done.stderr


def test_a_model_without_its_tensors_is_refused(tmp_path: Path) -> None:
    file, model = tmp_path / "m.safetensors", small_model()
    model.save(file)
    with pytest.raises(RuntimeError, match="keep"):
        fastlstm.export(fastlstm.load(file, keep=False), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_readme_tells_of_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    """Whatever the names are, a row of the table is a row."""
    odd = {"x": 'a|b "c"', "ids": "`ids`", "knobs": "``", "state": "é\\", "y": "%s", "twice": " "}
    graph = GRAPHS["several inputs and outputs, of which some are held"]
    renamed = spec.Graph(
        tuple(spec.Input(odd[i.name], i.shape, tokens=i.tokens, held=i.held) for i in graph.inputs),
        tuple(spec.Node(n.layer, tuple(odd.get(r, r) for r in n.reads)) for n in graph.nodes),
        {odd[name]: value for name, value in graph.outputs.items()},
    )
    fastlstm.export(model_of(renamed, rng), tmp_path)
    lines = (tmp_path / "README.md").read_text("utf-8").splitlines()
    first = lines.index("|---|---|---|---|") + 1
    table = lines[first : first + 6]
    assert [line.replace("\\|", "").count("|") for line in table] == [5] * 6
    assert table == [
        '| input `a\\|b "c"` | 3 | float32 | each step |',
        "| input ``` `` ``` | 3 | float32 | once, before the first step |",
        "| input `` `ids` `` | 1 | int64 tokens below 7 | each step |",
        "| output `é\\` | 6 | float32 | a row for each step |",
        "| output `%s` | 2 | float32 | 1 row for 2 steps, 1 step late |",
        "| output `   ` | 3 | float32 | a row for each step |",
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "m.safetensors", tmp_path / "a folder"
    small_model().save(file)
    assert cli.main(["export", str(file), str(folder), "--apart"]) == 0
    assert f"make -C '{folder}'" in capsys.readouterr().out
    assert sorted(os.listdir(folder))[-1] == "run.c"
    assert (folder / "model.flm").exists()
    assert cli.main(["export", str(file), str(tmp_path / "b"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["build"], "model.c" in told["files"]) == (f"make -C {tmp_path / 'b'}", True)
