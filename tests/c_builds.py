"""Programs of C that tests build and run: compilers, sanitizers, another architecture.

Nothing here is under test. What a build needs and this machine lacks is a reason to skip, which
names it; a compiler that warns is a failure.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "fastlstm" / "core"
DRIVERS = ROOT / "tests" / "core"

KERNELS = (
    *("avx512amx", "avx512vnni", "avx512", "avxvnni", "avx2", "neondot", "neon"),
    *("simd128", "fused", "scalar", "scalar64"),
)

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wpedantic", "-Wshadow", "-Wmissing-prototypes"]
FLAGS = ["-std=c11", "-ffp-contract=off", *WARNINGS, f"-I{CORE}"]

# A trial needs a thread to tell whether a sanitizer works.
TRIAL = """
#if !defined(NO_THREADS)
#include <pthread.h>
static void *nothing(void *given) { return given; }
int main(void) {
    pthread_t thread;
    return pthread_create(&thread, 0, nothing, 0) || pthread_join(thread, 0);
}
#else
#include <math.h>
int main(int argc, char **argv) { return sin(argc) > 1 || !argv; }
#endif
"""


@dataclass(frozen=True)
class Build:
    """A compiler, its flags, and commands one of which can run the program.

    Parameters
    ----------
    compiler : str
    flags : tuple of str
    runners : tuple of tuple of str
    threads : bool
        Whether there are any.
    kernels : tuple of str
        Those that there are, best first, as far as the sources are the core's; (): all of them.
    """

    compiler: str
    flags: tuple[str, ...]
    runners: tuple[tuple[str, ...], ...] = ((),)
    threads: bool = True
    kernels: tuple[str, ...] = ()

    def all_flags(self) -> tuple[str, ...]:
        """What every file is compiled with, and the program linked."""
        kernels = "".join(f"&fl_{name}," for name in self.kernels)
        return (
            *(("-pthread",) if self.threads else ("-DNO_THREADS",)),
            *((f"-DFL_KERNELS={kernels}",) if kernels else ()),
            *self.flags,
        )

    def has(self, source: Path) -> bool:
        """Whether a source is part of it."""
        return source.stem not in KERNELS or not self.kernels or source.stem in self.kernels


OPTIMIZED = Build("cc", ("-O3",))
CLANG = Build("clang", ("-O3",))
# Without -g, with which the instrumented kernels take half as long again to compile: a report names
# the function and the address; compile by hand with it for the line.
ADDRESS_FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Its shadow memory lies at addresses that an operating system may give to something else unless
# told not to. -Wno-tsan: it knows no fences, but here they order only what is atomic.
THREADS = Build("cc", ("-O1", "-g", "-fsanitize=thread", "-Wno-tsan"), ((), ("setarch", "-R")))
AARCH64 = Build("aarch64-linux-gnu-gcc", ("-O3", "-static"), (("qemu-aarch64",),))
ARM = Build("arm-linux-gnueabihf-gcc", ("-O3", "-static", "-mfpu=vfpv4"), (("qemu-arm",),))
# What runs on the processor of this machine, whose system may have no libraries of 32 bits.
I686_LIBRARIES = "/usr/i686-linux-gnu/lib"
I686 = Build(
    "i686-linux-gnu-gcc",
    (
        *("-O3", "-msse2", "-mfpmath=sse", "-Wno-psabi"),
        f"-Wl,--dynamic-linker={I686_LIBRARIES}/ld-linux.so.2,-rpath,{I686_LIBRARIES}",
    ),
)
WINDOWS = Build("x86_64-w64-mingw32-gcc", ("-O3", "-static"), (("wine",),))
WASM = Build(
    "clang",
    ("-O3", "--target=wasm32-wasi", "-msimd128"),
    (("node", "--no-warnings", str(ROOT / "tools" / "wasi.mjs")),),
    threads=False,
)


def call(command: Sequence[object], timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it prints."""
    words = [str(word) for word in command]
    quiet = os.environ | {"WINEDEBUG": "-all"}  # of what wine itself would like to have
    return subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, check=False, env=quiet
    )


def _named(program: Path) -> Path:
    """What a linker made of the name that it was given."""
    return program if program.exists() else program.with_suffix(".exe")


class Programs:
    """The builds of one program, each compiled when first asked for.

    Parameters
    ----------
    builds : dict of str to Build
    sources : sequence of path
    folder : path
        Where they are put. Of processes that share it, one compiles and the others wait.
    defines : sequence of str
        More flags, of every build.
    """

    def __init__(
        self,
        builds: dict[str, Build],
        sources: Sequence[Path],
        folder: Path,
        defines: Sequence[str] = (),
    ) -> None:
        self._builds, self._sources, self._defines = builds, sources, defines
        self._folder = folder
        self._made: dict[str, list[str] | str] = {}

    def command(self, name: str) -> list[str]:
        """What runs the program of a build; skips the test that asks if it cannot be had."""
        if name not in self._made:
            folder = self._folder / name
            folder.mkdir(exist_ok=True)
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                told = folder / "command.json"
                if not told.exists():
                    made = self._make(self._builds[name], folder)
                    told.write_text(json.dumps(made), encoding="utf-8")
                self._made[name] = json.loads(told.read_text(encoding="utf-8"))
        made = self._made[name]
        if isinstance(made, str):
            pytest.skip(made)
        return made

    def _make(self, build: Build, folder: Path) -> list[str] | str:
        """The command, or why there is none."""
        if not shutil.which(build.compiler):
            return f"{build.compiler} is not installed"
        runner = _runner(build, folder)
        if isinstance(runner, str):
            return f"{build.compiler} {' '.join(build.flags)} does not work here: {runner}"

        def compile_one(source: Path) -> Path:
            to = folder / f"{source.stem}.o"
            flags = (*FLAGS, *self._defines, *build.all_flags())
            made = call([build.compiler, *flags, "-c", source, "-o", to])
            assert made.returncode == 0, made.stderr
            assert not made.stderr
            return to

        sources = [source for source in self._sources if build.has(source)]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sources))
        program = folder / "program"
        linked = call([build.compiler, *build.all_flags(), *objects, "-lm", "-o", program])
        assert linked.returncode == 0, linked.stderr
        return [*runner, str(_named(program))]


def _runner(build: Build, folder: Path) -> tuple[str, ...] | str:
    """What programs of this build must be run by, or why they cannot be built or run."""
    source, program = folder / "trial.c", folder / "trial"
    source.write_text(TRIAL, encoding="utf-8")
    tried = call([build.compiler, *build.all_flags(), source, "-lm", "-o", program])
    why = tried.stderr[-200:]
    for runner in build.runners if tried.returncode == 0 else ():
        if runner and not shutil.which(runner[0]):
            why = f"{runner[0]} is not installed"
            continue
        tried = call([*runner, _named(program)])
        if tried.returncode == 0:
            return runner
        why = tried.stderr[-200:]
    return why
