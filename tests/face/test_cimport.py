"""Extension modules of others: `cimport fastlstm`, fastlstm_api.h, and the example package."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import fastlstm

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "cython_package"
PACKAGE = Path(fastlstm.__file__).parent
HEADER = Path(fastlstm.get_include()) / "fastlstm_api.h"

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wpedantic", "-Wshadow"]
LANGUAGES = {"c": ("cc", "-std=c11"), "c++": ("c++", "-std=c++11")}

# What each of these programs in Python begins with: a model, and what it gives.
BEGINNING = """
    import ctypes, gc, re, struct, sys
    import numpy as np
    from models import build
    import chain as spec
    import fastlstm
    from fastlstm import _engine

    def refused(kind, words, call, *given):
        try:
            call(*given)
        except kind as error:
            assert re.search(words, str(error)), error
        else:
            raise AssertionError(words)

    rng = np.random.default_rng(3)
    layers = spec.LSTM("a", 7, 19, 2, initial_state=True), spec.Linear("b", 19, 5)
    model = build(layers, rng, reproducible=True)
    x = rng.standard_normal((50, 7)).astype(np.float32)
    expected = model(x)[0]
    y = np.full_like(expected, np.nan)
"""


def has_what_builds(*programs: str) -> None:
    """Skip where an extension module cannot be compiled."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip("the headers of this Python are not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the example package in it, built and installed as its README says."""
    has_what_builds("cc")
    for module in ("pip", "setuptools", "Cython"):
        try:
            importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{module} is not installed")
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")
    flags = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, "--target", "site", "./source"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "CFLAGS": "-O1 -g0"},  # or the compiler takes longer than all tests
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "site"


@pytest.fixture(scope="module", params=LANGUAGES)
def folder_of_module(request, tmp_path_factory) -> Path:
    """A folder with tests/face/module_in_c.c in it, compiled as one language or the other."""
    compiler, standard = LANGUAGES[request.param]
    has_what_builds(compiler)
    folder = tmp_path_factory.mktemp("module")
    include = [f"-I{fastlstm.get_include()}", "-isystem", sysconfig.get_path("include")]
    source = ["-x", request.param, str(Path(__file__).with_name("module_in_c.c"))]
    target = folder / f"module_in_c{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [compiler, standard, *WARNINGS, "-fPIC", "-shared", *include, *source]
    done = subprocess.run(
        [*command, "-o", str(target)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return folder


def within(python: Callable[..., str], folder: Path, code: str) -> str:
    """Run code behind BEGINNING, with the modules of a folder."""
    return python(f"{BEGINNING}\n    sys.path.insert(0, {str(folder)!r})\n{code}")


class TestExample:
    @pytest.mark.parametrize("isa", [None, "scalar"])
    def test_its_own_comparison(self, site, python, isa):
        """The last command of its README."""
        path = EXAMPLE / "compare.py"
        code = (
            f"import sys, runpy; sys.path.insert(0, {str(site)!r}); runpy.run_path({str(path)!r})"
        )
        assert "the same bits as model(x)" in python(code)

    def test_bits_of_the_model(self, site, python):
        within(
            python,
            site,
            """
    import watching
    for isa, _ in _engine.kernels(4):
        model = build(layers, np.random.default_rng(4), isa=isa, reproducible=True)
        expected = model(x)[0]
        watch = watching.Watch(model)
        assert watch.run(x[:20], y[:20]) == 20
        assert watch.run(x[20:], y[20:]) == 30
        assert y.tobytes() == expected.tobytes()
        limit = float(np.sort(expected[:, 0])[-3])
        watch.reset()
        t = 1 + int(np.argmax(expected[:, 0] > np.float32(limit)))
        y[:] = np.nan
        assert watch.run(x, y, limit) == t
        assert np.array_equal(y[:t], expected[:t])
        assert np.isnan(y[t:]).all()
    """,
        )

    def test_bad_arguments(self, site, python):
        within(
            python,
            site,
            r"""
    import watching
    watch = watching.Watch(model)
    refused(ValueError, r"expected \(T, 7\) and \(T, 5\)", watch.run, x[:, :6].copy(), y)
    refused(ValueError, r"expected \(T, 7\) and \(T, 5\)", watch.run, x, y[1:])
    refused(TypeError, "given a Stream; expected a fastlstm.Model", watching.Watch, model.stream())
    refused(TypeError, "fl_hold was given a NoneType", watching.Watch, None)
    wide = build(layers, rng, dtype="float64")
    refused(ValueError, "expected a model that reads float32", watching.Watch, wide)
    strided = watching.Watch(build((spec.Conv1d("a", 7, 5, 3, stride=2),), rng))
    refused(ValueError, "no row of one output for each step", strided.run, x, y)
    """,
        )

    def test_what_is_held_outlives_the_model_and_its_weights(self, site, python):
        """Streams in C go on with the weights they have, of a model that is gone or has others."""
        within(
            python,
            site,
            """
    import watching
    other = build(layers, rng, reproducible=True)
    other.save("other")
    old, gone = watching.Watch(model), watching.Watch(build(layers, np.random.default_rng(3),
                                                            reproducible=True))
    old.run(x[:20], y[:20])
    fastlstm.load("other", into=model, keep=False)
    gc.collect()
    # In the memory of what was freed, if anything was.
    taken = [np.full(model.nbytes // 4, np.nan, np.float32) for _ in range(100)]
    assert not np.array_equal(model(x)[0], expected)
    old.run(x[20:], y[20:])
    assert np.array_equal(y, expected)
    new = watching.Watch(model)
    new.run(x, y)
    assert np.array_equal(y, other(x)[0])
    same = build(layers, np.random.default_rng(3), reproducible=True)
    gone.run(x, y)
    assert np.array_equal(y, same(x)[0])
    """,
        )


class TestModuleInC:
    def test_runs_blocks_on_a_team_and_from_a_state(self, folder_of_module, python):
        within(
            python,
            folder_of_module,
            """
    import module_in_c
    module_in_c.do_import()
    held = module_in_c.do_hold(model)
    assert module_in_c.isa_of(held) == model.isa
    for threads in (1, 2):
        y[:] = np.nan
        module_in_c.run(held, held, x, y, threads)
        assert np.array_equal(y, expected)
    ahead = module_in_c.do_hold(build((spec.LSTM("a", 7, 5, bidirectional=True),), rng))
    refused(ValueError, "more memory", module_in_c.run, ahead, ahead, x, y, 1)  # than 8 steps take
    """,
        )

    def test_a_state_belongs_to_its_weights(self, folder_of_module, python):
        within(
            python,
            folder_of_module,
            """
    import module_in_c
    module_in_c.do_import()
    build(layers, rng).save("other")
    before = module_in_c.do_hold(model)
    fastlstm.load("other", into=model)
    after = module_in_c.do_hold(model)
    module_in_c.run(before, before, x, y, 1)
    assert np.array_equal(y, expected)
    module_in_c.run(after, after, x, y, 1)
    assert np.array_equal(y, model(x)[0])
    refused(ValueError, "of another model", module_in_c.run, before, after, x, y, 1)
    """,
        )

    def test_an_import_that_was_forgotten(self, folder_of_module, python):
        within(
            python,
            folder_of_module,
            """
    import module_in_c
    for call in (module_in_c.do_hold, module_in_c.isa_of):
        refused(RuntimeError, "was not called; expected it once", call, model)
    """,
        )

    def test_what_is_no_model(self, folder_of_module, python):
        within(
            python,
            folder_of_module,
            """
    import module_in_c
    module_in_c.do_import()
    hold, isa_of = module_in_c.do_hold, module_in_c.isa_of
    refused(TypeError, "fl_hold was given a module; expected a fastlstm.Model", hold, fastlstm)
    refused(TypeError, "fl_hold was given a Network", hold, model._network)
    refused(TypeError, "fl_model_of was given a Model; expected what fl_hold", isa_of, model)
    refused(TypeError, "fl_model_of was given a PyCapsule", isa_of, _engine._C_API)
    """,
        )

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ("struct.pack('@Ni', 1 << 20, 1 << 20)", "version 1048576 .* for version 1:"),
            ("struct.pack('@Ni', 100, 1)", "has 100 bytes .* a newer one, which has [0-9]+:"),
            ("None", "has no functions for C; expected one at least as new"),
            ("'something else'", "has no functions for C; expected one at least as new"),
        ],
        ids=["another version", "older", "before there was one", "not a capsule"],
    )
    def test_an_installed_fastlstm_of_another_version(self, folder_of_module, python, table, words):
        within(
            python,
            folder_of_module,
            f"""
    import module_in_c
    table = {table}
    del _engine._C_API
    if isinstance(table, bytes):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
        _engine._C_API = new(table, b"fastlstm._engine._C_API", None)
    elif table is not None:
        _engine._C_API = table
    refused(ImportError, {words!r}, module_in_c.do_import)
    """,
        )


def functions_of(header: str) -> set[str]:
    """Names of the functions that a header of the core declares."""
    text = (PACKAGE / "core" / header).read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    while re.search(r"\{[^{}]*;[^{}]*\}", text):  # what structs have
        text = re.sub(r"(struct|union)\b[^{};]*\{[^{}]*\}", "", text)
        text = text.replace('extern "C" {', "")
    return set(re.findall(r"\b(fl_\w+)\((?!\*)[^;{}]*\);", text))


class TestDeclarations:
    """One list: that of the headers."""

    def public(self) -> set[str]:
        core, host = functions_of("fastlstm.h"), functions_of("host.h")
        assert len(core) >= 38
        assert {"fl_step", "fl_begin"} <= core
        assert {"fl_load", "fl_stream_new"} <= host
        # Of team.h, what a program calls.
        return core | host | {"fl_team_new", "fl_team_free", "fl_team_threads"}

    def test_the_table_has_every_function(self):
        text = HEADER.read_text(encoding="utf-8")
        listed = re.findall(r"\bF\((fl_\w+)\)", text)
        assert len(listed) == len(set(listed))
        assert set(listed) == self.public()
        named = re.findall(r"^#define (fl_\w+) \(fl_table->(\w+)\)$", text, re.MULTILINE)
        assert [name for name, _ in named] == [member for _, member in named] == listed

    def test_cython_has_every_function_and_constant(self):
        text = (PACKAGE / "__init__.pxd").read_text(encoding="utf-8")
        block = text.partition('cdef extern from "fastlstm_api.h" nogil:\n')[2]
        assert set(re.findall(r"^    [\w *]*\b\**(fl_\w+)\(", block, re.MULTILINE)) == self.public()
        for header in ("fastlstm.h", "host.h"):
            found = (PACKAGE / "core" / header).read_text(encoding="utf-8")
            found = re.sub(r"/\*.*?\*/", "", found, flags=re.DOTALL)
            constants = set(re.findall(r"\bFL_[A-Z0-9_]+\b", found)) - {"FL_HOST_H"}
            assert constants <= set(re.findall(r"\bFL_[A-Z0-9_]+\b", text))


def test_get_include():
    folder = Path(fastlstm.get_include())
    assert isinstance(fastlstm.get_include(), str)
    assert [path.name for path in folder.iterdir()] == ["fastlstm_api.h"]
