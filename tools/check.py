"""The one command of the house: build in place, lint, types, C warnings, tests.

    python tools/check.py               everything
    python tools/check.py lint types    some steps: build, lint, types, c, rules, tests, parallel

The steps run in that order whatever comes of the ones before; `rules` is a part of `tests` and runs
only if named. A check whose tool is missing fails, unless it is one of the optional compilers. The
exit status is 1 if a check failed.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
C_FLAGS = (
    *("-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wpedantic"),
    *("-Wshadow", "-Wmissing-prototypes", "-Wstrict-prototypes"),
)

# Tests whose every one also runs in four threads at once, by pytest-run-parallel.
IN_FOUR_THREADS = ("tests/test_concurrency.py", "tests/test_stream.py")


@dataclass(frozen=True)
class Check:
    """One row of the summary: a command, and what to install if it is not there.

    Parameters
    ----------
    step : str
        The step it belongs to.
    name : str
        What the summary calls it.
    command : tuple of str
        What to run.
    module : str
        A Python module the command needs; "" if its first word is a program of its own.
    install : str
        Where the tool comes from.
    optional : bool
        Whether it may be missing.
    folder : str
        Where to run it: by default in the root of the repository.
    """

    step: str
    name: str
    command: tuple[str, ...]
    module: str = ""
    install: str = "pip install '.[dev]'"
    optional: bool = False
    folder: str = str(ROOT)

    def is_missing(self) -> bool:
        if self.module:
            return importlib.util.find_spec(self.module.partition(".")[0]) is None
        return shutil.which(self.command[0]) is None

    def run(self) -> str:
        """Run it, and say what came of it; only "passed" and "skipped: ..." are good."""
        print(f"\n== {self.step}: {self.name}", flush=True)
        if self.is_missing():
            kind = "skipped" if self.optional else "FAILED"
            return f"{kind}: {self.module or self.command[0]} is missing; {self.install}"
        # A tool may call another of the same environment by name, as cython-lint does pycodestyle.
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        environment = os.environ | {"PATH": path}
        done = subprocess.run(self.command, cwd=self.folder, env=environment, check=False)
        return f"FAILED: exit status {done.returncode}" if done.returncode else "passed"


def python(step: str, module: str, *arguments: str, name: str = "") -> Check:
    return Check(step, name or module, (sys.executable, "-m", module, *arguments), module)


def compiler(program: str, packages: str, objects: str) -> Check:
    """Every C file; the object files go to the folder `objects`, where the compiler runs."""
    sources = [*(ROOT / "fastlstm/core").glob("*.c"), *(ROOT / "tests/core").glob("*.c")]
    include = f"-I{ROOT / 'fastlstm/core'}"
    command = (program, *C_FLAGS, include, "-c", *map(str, sorted(sources)))
    install = f"apt-get install {packages}"
    return Check("c", program, command, "", install, optional=program != "cc", folder=objects)


def checks(objects: str) -> list[Check]:
    build = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    return [
        Check("build", "extension in place", build, "Cython"),
        python("lint", "ruff", "check", ".", name="ruff check"),
        python("lint", "ruff", "format", "--check", ".", name="ruff format"),
        python("lint", "cython_lint.cython_lint", "fastlstm", "examples", name="cython-lint"),
        python("types", "mypy"),
        compiler("cc", "gcc libc6-dev", objects),
        compiler("clang", "clang", objects),
        compiler("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross", objects),
        python("rules", "pytest", "tests/test_rules.py", name="rules of the house"),
        python("tests", "pytest", "-n", "2", "--dist", "loadfile"),
        python("parallel", "pytest", "--parallel-threads=4", *IN_FOUR_THREADS, name="in 4 threads"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    with tempfile.TemporaryDirectory() as objects:
        known = checks(objects)
        steps = list(dict.fromkeys(check.step for check in known))
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("steps", nargs="*", metavar="step", help=", ".join(steps))
        wanted = parser.parse_args(arguments).steps or [s for s in steps if s != "rules"]
        if unknown := set(wanted) - set(steps):
            parser.error(f"no step {', '.join(sorted(unknown))}; expected {', '.join(steps)}")
        rows = []
        for check in known:
            if check.step in wanted:
                start = time.perf_counter()
                outcome = check.run()
                rows.append((check, time.perf_counter() - start, outcome))
    print()
    for check, seconds, outcome in rows:
        print(f"{check.step:8} {check.name:22} {seconds:6.1f} s  {outcome}")
    return int(any(outcome.startswith("FAILED") for _, _, outcome in rows))


if __name__ == "__main__":
    sys.exit(main())
