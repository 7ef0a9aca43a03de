"""The rules of the house (DESIGN.md, section 2): imports, names, symbols, and the README's code."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastlstm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastlstm"
CORE = PACKAGE / "core"

PYTHON = sorted(PACKAGE.rglob("*.py"))
CYTHON = [PACKAGE / "_engine.pyx", *sorted((PACKAGE / "engine").glob("*.pxi"))]
INCLUDE = PACKAGE / "include"
C_FILES = sorted([*CORE.glob("*.c"), *CORE.glob("*.h"), *INCLUDE.iterdir()])

# Modules of ours that a file may import; a folder stands for all files in it, and may import its
# own. "public" are the names in fastlstm.__all__.
MAY_IMPORT = {
    "errors": set(),
    "spec": set(),
    "reduced": set(),
    "reference": {"spec", "reduced"},
    "plan": {"spec", "reference", "reduced"},
    "signature": set(),
    "durable": set(),
    "identity": set(),
    "document": set(),
    "container": {"errors", "document", "durable", "identity"},
    "measured": set(),
    "stored": {"spec", "container", "reduced"},
    "format": {
        *("spec", "errors", "container", "document", "identity", "measured", "reduced", "stored"),
    },
    "options": {"errors"},
    "sources": {"spec", "reference", "errors", "signature", "options"},
    "sources/exported/archive": {"spec", "errors", "document"},
    "sources/exported/program": {"spec", "errors", "document"},
    "sources/pytorch/reader": {
        *("spec", "reference", "errors", "signature", "container", "format"),
    },
    "processors": set(),
    "arrays": {"_engine"},
    "paths": set(),
    "packed": {"spec", "reduced", "plan", "processors", "arrays", "_engine"},
    "sequences": {"packed", "arrays", "_engine"},
    "stream_bytes": {"packed", "errors"},
    "stream": {"packed", "arrays", "paths", "format", "stream_bytes", "_engine"},
    "pool": {"packed", "paths", "format", "batching", "stream_bytes", "_engine"},
    "batching": {"_engine"},
    "self_check": {"spec", "reference", "format", "measured", "reduced"},
    "summary": {"spec"},
    "model": {
        *("spec", "format", "packed", "_engine", "stream", "pool", "sequences"),
        *("self_check", "summary", "paths", "reduced", "stored"),
    },
    "loading": {"format", "model", "paths", "quantisation"},
    "calibration": {
        *("spec", "reference", "format", "measured", "reduced", "self_check", "model", "paths"),
    },
    "quantisation": {"spec", "calibration", "model"},
    "conversion": {
        *("spec", "errors", "format", "model", "options", "paths", "sources", "quantisation"),
    },
    "exporting": {"public", "spec", "plan", "model", "reduced", "_engine"},
    "headers": set(),
    "nn": {"spec", "arrays", "conversion", "errors", "model", "sequences"},
    "tokens": {"spec", "arrays", "model", "stream"},
    "generation": {"model", "tokens", "_engine"},
    "forecasting": {"arrays", "model", "_engine"},
    "verification": {"spec", "reference", "format", "model", "reduced", "signature", "stored"},
    "__init__": {
        *("conversion", "errors", "model", "nn", "stream", "tokens", "generation", "forecasting"),
        *("exporting", "headers", "loading", "pool", "quantisation", "verification"),
    },
    "cli": {"commands", "public"},
    "__main__": {"cli"},
    "serving": {"public"},
    "commands": {
        "serving",
        *("public", "reference", "processors", "tokens", "forecasting", "verification", "_engine"),
    },
    "gpu": {"spec", "plan"},
}
FOR_TYPES_ONLY = {"batching": {"pool"}}

# Packages of others that a file may import at its top, beside NumPy and the standard library, and
# those that it may import within a function, so that importing fastlstm does without them.
THIRD_PARTY = {
    "gpu": {"cupy"},
    "serving": {
        *("grpc", "google", "tritonclient", "uvicorn", "starlette", "websockets"),
        "prometheus_client",
    },
}
WITHIN_FUNCTIONS = {
    "commands": {"rich", "matplotlib", "torch", "scipy", "onnxruntime", "importlib", "uvloop"},
    "sources": {"torch", "onnx", "h5py"},
    "verification": {"torch", "onnx", "onnxruntime", "keras", "h5py"},
    "model": {"cupy"},
    "nn": {"torch"},
}
NO_NUMPY = {"spec", "document", "durable", "identity", "__init__", "__main__", "cli"}


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def rule(table: dict[str, set[str]], name: str) -> set[str] | None:
    return table.get(name, table.get(name.partition("/")[0] if "/" in name else name))


def imports(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...], bool, bool]]:
    """(module, names taken from it, within a function, only for types) of every import."""

    def walk(node: ast.AST, inside: bool, typing: bool):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, (), inside, typing
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "an import is relative; write the package's name"
                yield child.module, tuple(a.name for a in child.names), inside, typing
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, inside or function, typing or guard)

    yield from walk(tree, False, False)


def ours(module: str, names: tuple[str, ...]) -> set[str]:
    """What an import takes of fastlstm: its modules, or "public"."""
    top, _, rest = module.partition(".")
    assert top == "fastlstm"
    if rest:
        return {rest.partition(".")[0]}
    if not names:
        return {"public"}
    modules = {p.stem for p in PACKAGE.iterdir()} | {"_engine"}
    public = {*fastlstm.__all__, "__version__"}
    return {"public" if name in public or name not in modules else name for name in names}


@pytest.mark.parametrize("path", PYTHON, ids=module_name)
class TestPythonImports:
    def test_of_ours(self, path):
        name = module_name(path)
        allowed = rule(MAY_IMPORT, name)
        assert allowed is not None, f"{name} is not in DESIGN.md's table, nor in this test's"
        folder = name.partition("/")[0] if "/" in name else None
        for module, names, _, typing in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if module.partition(".")[0] != "fastlstm":
                continue
            extra = FOR_TYPES_ONLY.get(name, set()) if typing else set()
            wrong = ours(module, names) - allowed - extra - {folder}
            assert not wrong, f"{name} imports {wrong} of ours; it may import {allowed}"

    def test_of_others(self, path):
        name = module_name(path)
        own = set(sys.stdlib_module_names) | {"fastlstm", "__future__"}
        own |= set() if name.partition("/")[0] in NO_NUMPY else {"numpy"}
        top = own | (rule(THIRD_PARTY, name) or set())
        inside = top | (rule(WITHIN_FUNCTIONS, name) or set())
        for module, _, within, typing in imports(ast.parse(path.read_text(encoding="utf-8"))):
            allowed = inside if within or typing else top
            where = "within a function" if within else "at its top"
            assert module.partition(".")[0] in allowed, f"{name} imports {module} {where}"

    def test_has_a_docstring_and_annotations(self, path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), "what the file is for, in a sentence"


class TestCythonImports:
    def test_engine_imports_no_module_of_ours(self):
        text = "".join(path.read_text(encoding="utf-8") for path in CYTHON)
        # These two are no modules: they declare, for Cython, what headers do for C.
        others = re.sub(r"^from fastlstm(\.core)? cimport ", "", text, flags=re.MULTILINE)
        found = re.findall(r"^\s*(?:from|import|cimport)\s+([\w.]+)", others, re.MULTILINE)
        tops = {module.partition(".")[0] for module in found}
        packages = {"libc", "posix", "numpy", "cpython", "cython", "scipy"}
        assert tops <= packages | {"collections", "os", "threading"}
        extern = re.compile(r'cdef extern from "([^"]+)"')
        assert set(extern.findall(text)) == {"Python.h", "stdlib.h"}
        declared = {
            path.name: set(extern.findall(path.read_text(encoding="utf-8")))
            for path in PACKAGE.glob("*.pxd")
        }
        assert declared == {
            "__init__.pxd": {"fastlstm_api.h"},
            "core.pxd": {"core/model.h", "core/source.h", "core/system.h"},
        }

    def test_scipy_is_imported_within_a_function(self):
        lines = [line for path in CYTHON for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if re.search(r"\b(from|import)\s+scipy", line):
                assert line.startswith("    "), line


# What a program in C is given, and what serves elsewhere, which no public name makes.
PROGRAMS = {
    "step.py": {"fastlstm.plan.lowering": {"plan"}, "fastlstm": {"spec"}},
    "trained.py": {"fastlstm.format": {"ModelFile"}},
    "replicas.py": {
        "fastlstm.serving.access": {"Access"},
        "fastlstm.serving.grpc_v2": {"Servicer"},
        "fastlstm.serving.metrics": {"Metrics"},
        "fastlstm.serving.repository": {"Repository"},
        "fastlstm.serving.served": {"Served"},
    },
}


@pytest.mark.parametrize("folder", ["tools", "benchmarks", "examples"])
def test_tools_benchmarks_and_examples_use_public_names(folder):
    public = {*fastlstm.__all__, "__version__"}
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for module, names, _, _ in imports(tree):
            if module.partition(".")[0] == "fastlstm":
                if set(names) <= PROGRAMS.get(path.name, {}).get(module, set()):
                    continue
                assert module == "fastlstm", f"{path.name} imports {module}"
                assert set(names) <= public, f"{path.name} imports {set(names) - public}"
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "fastlstm"
            ):
                assert node.attr in public, f"{path.name} uses fastlstm.{node.attr}"


# What a file of the core may include, of the system and of ours. A header that is not here includes
# nothing: it is a part of kernel.h, which says in which order they build on one another.
MEMORY, MESSAGES = {"string.h"}, {"stdarg.h", "stdio.h", "string.h"}
INCLUDES = {
    "fastlstm.h": {"stddef.h", "stdint.h"},
    "program.h": {"stddef.h", "stdint.h", "fastlstm.h", "operations.h"},
    "lines.h": {"stddef.h", "program.h"},
    "model.h": {"lines.h", "program.h"},
    "arena.h": {"stddef.h", "stdint.h"},
    "pack.h": {"arena.h", "model.h"},
    "check.h": {"arena.h", "model.h"},
    "call.h": {"stddef.h", "stdint.h", "model.h"},
    "scratch.h": {"stddef.h", "stdint.h", "lines.h", "model.h"},
    "vec.h": {
        *("float.h", "math.h", "stddef.h", "stdint.h", "string.h"),
        *("immintrin.h", "arm_neon.h", "wasm_simd128.h", "halves.h"),
    },
    "halves.h": {"stdint.h", "string.h"},
    "kernel.h": {
        *("call.h", "scratch.h", "vec.h", "ranks.h", "view.h", "activations.h", "functions.h"),
        *("panels.h", "multiply.h", "cells.h", "rows.h", "maps.h", "reductions.h", "norms.h"),
        *("products.h", "variants.h", "prepare.h", "recurrent.h", "over_time.h", "folds.h"),
        *("run.h", "vec_int8.h", "sum_int8.h", "sum_tiles.h", "stored.h"),
    },
    "checksum.h": {"stddef.h", "stdint.h"},
    "file.c": {*MEMORY, "check.h", "checksum.h"},
    "program.c": {*MEMORY, "check.h", "checksum.h"},
    "check.c": {*MESSAGES, "check.h"},
    "check_rows.c": {"check.h"},
    "check_recurrent.c": {*MEMORY, "check.h"},
    "check_time.c": {"check.h"},
    "vocabulary.c": {"check.h", "text.h"},
    "text.h": {"stddef.h", "stdint.h", "model.h"},
    "text.c": {*MEMORY, "text.h"},
    "source.h": {"model.h", "text.h"},
    "source.c": {*MEMORY, "call.h", "check.h", "source.h"},
    "source_packed.c": {"source.h"},
    "lines.c": {*MEMORY, "lines.h"},
    "model.c": {*MESSAGES, "pack.h", "source.h"},
    "matrices.c": {*MEMORY, "float.h", "math.h", "halves.h", "pack.h"},
    "pack_cells.c": {*MEMORY, "pack.h"},
    "pack_rows.c": {*MEMORY, "pack.h"},
    "state.c": {*MEMORY, "model.h"},
    "dispatch.c": {*MEMORY, "cpuid.h", "sys/auxv.h", "model.h"},
    "calls.c": {*MEMORY, "arena.h", "call.h"},
    "stream.c": {*MEMORY, "arena.h", "call.h", "checksum.h"},
    "cut.c": {*MEMORY, "call.h", "scratch.h"},
    "system.h": {"stddef.h", "stdint.h", "pthread.h"},
    "system.c": {
        *("errno.h", "sched.h", "signal.h", "stdatomic.h", "time.h", "unistd.h"),
        *("malloc.h", "process.h", "windows.h"),
        *(*MEMORY, "stdlib.h", "system.h"),
    },
    "team.h": {"stddef.h", "fastlstm.h"},
    "team.c": {*MEMORY, "stdalign.h", "stdatomic.h", "stdint.h", "system.h", "team.h"},
    "host.h": {"fastlstm.h", "team.h"},
    "host.c": {*MEMORY, "stdio.h", "stdlib.h", "host.h", "system.h"},
    "fastlstm_api.h": {"Python.h", "../core/fastlstm.h", "../core/host.h"},
}
PER_INSTRUCTION_SET = {
    *("scalar.c", "scalar64.c", "fused.c", "avx2.c", "avxvnni.c", "avx512.c", "avx512vnni.c"),
    *("avx512amx.c", "neon.c", "neondot.c", "simd128.c"),
}

NAME_INTRINSICS = {"vec.h", "vec_int8.h", "sum_tiles.h"}

INTRINSIC = re.compile(
    r"\b(_mm\d*_\w+|_tile_\w+|__m(?:64|128|256|512)\w*|__mmask\d+"  # x86
    r"|v[a-z0-9]+q_(?:lane_|n_)?[fsu](?:8|16|32|64)|float(?:32|64)x\d\w*|u?int\d+x\d+_t"  # NEON
    r"|wasm_\w+|v128_t"  # WebAssembly
    r"|__builtin_(?:ia32|neon|aarch64|wasm)_\w+)\b"
)


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", C_FILES, ids=lambda p: p.name)
class TestC:
    def test_includes(self, path):
        found = set(re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8")))
        if path.name in PER_INSTRUCTION_SET:
            assert found == {"kernel.h"}
        else:
            assert found <= INCLUDES.get(path.name, set())

    def test_only_three_files_name_an_intrinsic(self, path):
        found = {
            m[0] for m in INTRINSIC.finditer(without_comments(path.read_text(encoding="utf-8")))
        }
        assert bool(found) == (path.name in NAME_INTRINSICS), found

    def test_an_instruction_set_is_about_ten_lines(self, path):
        if path.name in PER_INSTRUCTION_SET:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 22

    def test_says_what_it_is(self, path):
        assert path.read_text(encoding="utf-8").startswith(f"/* {path.name} - ")


def test_intrinsics_would_be_seen():
    for text in ("_mm512_loadu_ps(p)", "__m256 a;", "vld1q_f32(p)", "float32x4_t a;", "__mmask16",
                 "vfmaq_f32(a, b, c)", "vst1q_f32", "__builtin_ia32_pause()", "v128_t a;",
                 "wasm_f32x4_add(a, b)"):  # fmt: skip
        assert INTRINSIC.search(text), text
    for text in ("v_load(p)", "v_fma(a, b, c)", "vec a;", "value_f32", "fl_plan"):
        assert not INTRINSIC.search(text), text


def test_every_pointer_declares_its_shape():
    """In the structs that a caller fills or reads, but for text and functions."""
    text = (CORE / "fastlstm.h").read_text(encoding="utf-8")
    structs = re.findall(r"typedef struct \{(.*?)\n\} (\w+);", text, re.DOTALL)
    assert len(structs) >= 6
    for body, name in structs:
        for line in re.sub(r"\(\*\w+\)\([^;]*;", ";", body).splitlines():
            member = line.partition("/*")[0]
            if "*" in member and "char" not in member:
                assert "/*" in line, f"{name}: {line.strip()} does not say what it points to"


# Symbols


def compiler() -> str:
    found = shutil.which("cc")
    if found is None or shutil.which("nm") is None:
        pytest.skip("needs a C compiler and nm")
    return found


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[Path, str]:
    """Every file of the core, compiled, and what the compiler says of it."""
    cc, folder = compiler(), tmp_path_factory.mktemp("objects")
    told = {}
    for source in sorted(CORE.glob("*.c")):
        target = folder / f"{source.stem}.o"
        # As setup.py does, but without optimisation, which could hide a call in a loop or make one.
        flags = [
            "-std=gnu11",
            "-O0",
            "-ffp-contract=off",
            "-fno-builtin-printf",
            "-Wall",
            "-Wextra",
        ]
        command = [cc, *flags, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told[target] = done.stderr
    return told


@pytest.fixture(scope="module")
def symbols(objects) -> dict[str, list[tuple[str, str]]]:
    """(type, name) of every global symbol of every file of the core."""
    found = {}
    for target in objects:
        listed = subprocess.run(
            ["nm", "-g", str(target)], check=True, capture_output=True, text=True
        ).stdout
        found[f"{target.stem}.c"] = [
            tuple(line.split()[-2:]) for line in listed.splitlines() if line
        ]
    return found


# What compilers add on their own, and functions without state, allocation or output.
MAY_CALL = {
    *(
        "memcpy",
        "memset",
        "memmove",
        "memcmp",
        "memchr",
        "strcmp",
        "__stack_chk_fail",
        "_GLOBAL_OFFSET_TABLE_",
    ),
    *(
        f"{name}{real}"
        for name in (
            "sin",
            "cos",
            "pow",
            "exp",
            "expm1",
            "log",
            "log1p",
            "tanh",
            "erfc",
            "sqrt",
            "fabs",
            "copysign",
            "floor",
            "fma",
        )
        for real in ("", "f")
    ),
}

# Beside those, two files put together what a message says, and two are for programs that have an
# operating system: what reads files, and all that a team wants of a system.
MAY_ALSO_CALL = {
    "check.c": {"snprintf", "vsnprintf"},
    "model.c": {"vsnprintf"},
    "host.c": {
        *("snprintf", "fopen", "fread", "fseek", "ftell", "fclose"),
    },
    "team.c": {"__aarch64_cas8_acq"},  # the compiler's atomics there
    "system.c": {
        *("aligned_alloc", "free", "clock_gettime", "sysconf", "__popcountdi2"),
        *(f"sched_{f}" for f in ("yield", "getcpu", "getaffinity", "setaffinity")),
        *("pthread_self", "pthread_setaffinity_np", "sigfillset", "sigdelset"),
        *(f"pthread_{f}" for f in ("atfork", "once", "create", "join", "sigmask", "setname_np")),
        *(f"pthread_attr_{f}" for f in ("init", "destroy", "setstacksize")),
        *(f"pthread_mutex_{f}" for f in ("init", "destroy", "lock", "unlock")),
        *(f"pthread_cond_{f}" for f in ("init", "destroy", "signal", "wait")),
        "__aarch64_ldadd8_acq_rel",
    },
}


class TestSymbols:
    def test_every_exported_one_is_ours(self, symbols):
        for source, found in symbols.items():
            exported = {name for kind, name in found if kind not in "UwW"}
            assert all(name.startswith("fl_") for name in exported), f"{source}: {exported}"
        everything = {name for found in symbols.values() for kind, name in found if kind != "U"}
        assert {"fl_find", "fl_kernels", "fl_program_init", "fl_run", "fl_scalar"} <= everything
        assert {f"fl_team_{f}" for f in ("new", "free", "take", "run", "barrier")} <= everything

    def test_nothing_else_is_called(self, symbols):
        """No allocation but that of programs that ask for it, no printing, no abort, no Python."""
        for source, found in symbols.items():
            called = {name for kind, name in found if kind in "UwW"}
            foreign = {name for name in called if not name.startswith("fl_")} - MAY_CALL
            foreign -= MAY_ALSO_CALL.get(source, set())
            assert not foreign, f"{source} calls {foreign}"

    def test_no_warnings(self, objects):
        for target, told in objects.items():
            assert told == "", target.stem

    def test_of_the_built_extension(self):
        """What other libraries in the process could run into."""
        from fastlstm import _engine

        if shutil.which("nm") is None:
            pytest.skip("needs nm")
        done = subprocess.run(
            ["nm", "-D", "--defined-only", _engine.__file__],
            check=True,
            capture_output=True,
            text=True,
        )
        names = {line.split()[-1] for line in done.stdout.splitlines()}
        allowed = {"_init", "_fini", "__bss_start", "_edata", "_end"}  # of the linker
        allowed |= {"__pyx_module_is_main_fastlstm___engine"}  # of Cython
        assert {n for n in names - allowed if not n.startswith(("fl_", "PyInit_"))} == set()
        assert "PyInit__engine" in names


# Files


def test_no_file_is_called_by_what_it_does_not_say():
    for path in [p for folder in ("fastlstm", "tests", "tools", "benchmarks", "examples")
                 for p in (ROOT / folder).rglob("*.*")]:  # fmt: skip
        words = set(re.split(r"[_\W]+", path.stem.lower()))
        assert not words & {"util", "utils", "common", "helper", "helpers", "misc", "ctx"}, path


def test_project_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == fastlstm.__version__
    names = [re.match(r"[\w-]+", text)[0] for text in project["dependencies"]]
    assert names == ["numpy", "scipy"]
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "BSD-3-Clause"


def test_setup_has_no_instruction_set_flags():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert not re.search(r"-m(arch|tune|avx|fma|cpu)|ffast-math|/arch", text)
    assert "-ffp-contract=off" in text  # or results would depend on which loop computed them


def test_setup_refuses_windows(monkeypatch):
    """With what works there, before what it is built with is imported."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"no Python package for Windows.*WSL.*mingw-w64"):
        runpy.run_path(str(ROOT / "setup.py"))


# README

README = ROOT / "README.md"


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
class TestReadme:
    def blocks(self) -> list[str]:
        return re.findall(
            r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )

    def test_python_runs(self, tmp_path, monkeypatch):
        """All blocks in order, as one program, in an empty folder."""
        blocks = self.blocks()
        assert blocks, "README.md shows no Python"
        if any(re.search(r"^\s*(import|from) torch", block, re.MULTILINE) for block in blocks):
            pytest.importorskip("torch", reason="the README's Python uses torch")
        monkeypatch.chdir(tmp_path)
        names: dict[str, object] = {"__name__": "__main__"}
        for number, block in enumerate(blocks):
            exec(compile(block, f"README.md, Python block {number + 1}", "exec"), names)

    def test_tables_are_what_was_measured(self):
        command = [sys.executable, str(ROOT / "tools" / "benchmark_table.py"), "--check"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_commands_exist(self):
        """Every ``fastlstm <command>`` that it names is one."""
        from fastlstm import cli

        text = README.read_text(encoding="utf-8")
        named = set(re.findall(r"\bfastlstm (\w[\w-]*)", " ".join(re.findall(r"`[^`]+`", text))))
        assert named <= {*cli.COMMANDS, "import"}, named
