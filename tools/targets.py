"""The folder of C that ``fastlstm export`` writes, built and run on machines of other kinds.

    python tools/targets.py                  every target
    python tools/targets.py windows wasm     some of them

A model with a convolution, an LSTM, a GRU and a dense layer is exported, for boards specialised,
built for each target with the folder's own Makefile, and given 256 rows there. What it gives is
compared with the model in float64, and, where the engine promises the same bits, with this
machine's. A line a target says what was done, or which compiler or emulator is missing: the exit
status is 1 if a target failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm

Array = npt.NDArray[Any]

HERE = Path(__file__).resolve().parent
VECTORS = ("avx512", "avx2", "neon")  # whose bits are the same, and a fused lane's too
ROWS = 256
BOUND = 5e-6  # of an output, which is a tanh, beside float64


@dataclass(frozen=True)
class Target:
    """A kind of machine.

    Parameters
    ----------
    compiler : tuple of str
        The command.
    flags : str
        What it is told beside the Makefile's flags.
    kernels : str
        Those that are built, for the Makefile.
    runner : tuple of str
        What runs the program; ("",): this machine; (): nothing here does.
    bits : str
        Whose bits the numbers have: "vectors", "scalar" as of this machine, or "" if none are
        promised.
    board : bool
        Whether there is no operating system.
    """

    compiler: tuple[str, ...]
    flags: str
    kernels: str
    runner: tuple[str, ...] = ()
    bits: str = ""
    board: bool = False


ZIG = (sys.executable, "-m", "ziglang", "cc", "-target")
BOARD = (
    *("qemu-system-arm", "-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=0"),
    *("-semihosting-config", "enable=on,target=native"),
)
THUMB = "-mthumb -mfloat-abi=hard -ffunction-sections -fdata-sections"

TARGETS = {
    "windows": Target(("x86_64-w64-mingw32-gcc",), "-static", "avx2 scalar", ("wine",), "vectors"),
    "wasm": Target(
        ("clang", "--target=wasm32-wasi"),
        "-msimd128",
        "simd128",
        ("node", "--no-warnings", str(HERE / "wasi.mjs")),
    ),
    "aarch64": Target(("aarch64-linux-gnu-gcc",), "-static", "neon", ("qemu-aarch64",), "vectors"),
    "armv7": Target(
        ("arm-linux-gnueabihf-gcc",), "-static -mfpu=vfpv4", "fused", ("qemu-arm",), "vectors"
    ),
    "old x86": Target(
        ("x86_64-linux-gnu-gcc",),
        "-static",
        "avx2 scalar",
        ("qemu-x86_64", "-cpu", "Nehalem"),
        "scalar",
    ),
    "musl": Target((*ZIG, "x86_64-linux-musl"), "", "avx2 scalar", ("",), "vectors"),
    "macos": Target((*ZIG, "aarch64-macos"), "", "neon"),
    "macos x86": Target((*ZIG, "x86_64-macos"), "", "avx2 scalar"),
    "cortex-m4": Target(
        ("arm-none-eabi-gcc",),
        f"-mcpu=cortex-m4 -mfpu=fpv4-sp-d16 {THUMB}",
        "fused",
        (*BOARD, "-M", "mps2-an386"),
        "vectors",
        board=True,
    ),
    "cortex-m7": Target(
        ("arm-none-eabi-gcc",),
        f"-mcpu=cortex-m7 -mfpu=fpv5-sp-d16 {THUMB}",
        "fused",
        (*BOARD, "-M", "mps2-an500"),
        "vectors",
        board=True,
    ),
}


class MissingError(Exception):
    """What a target needs and this machine lacks."""


class FailedError(Exception):
    """What went wrong."""


def call(
    command: Sequence[object], folder: Path, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder and keep what it prints; FailedError if it fails."""
    words = [str(word) for word in command]
    # An emulator of Windows says much, and asks for what it could do without.
    environment = os.environ | {"WINEDEBUG": "-all", "DISPLAY": ""}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, timeout=900, check=False, **options
    )
    if done.returncode:
        said = (done.stderr or done.stdout)[-600:].decode(errors="replace")
        raise FailedError(f"{words[0]} ended with {done.returncode}: {said}")
    return done


class Export:
    """The exported model, and what it gives.

    Parameters
    ----------
    folder : path
        Where all of it is put.
    optimization : str
        The compilers' -O.
    """

    def __init__(self, folder: Path, optimization: str) -> None:
        self.folder, self.optimization = folder, optimization
        source = folder / "model.json"
        source.write_text(json.dumps(layers(np.random.default_rng(15))), encoding="utf-8")
        path = folder / "model.safetensors"
        self.x = np.random.default_rng(16).standard_normal((ROWS, 1)).astype(np.float32)
        exact = fastlstm.convert(str(source), path, dtype="float64")
        self.exact = exact(self.x.astype(np.float64))[0]
        model = fastlstm.convert(str(source), path)
        self.bits = {
            "vectors": model(self.x)[0] if model.isa in VECTORS else None,
            "scalar": fastlstm.load(path, isa="scalar", reproducible=True)(self.x)[0],
        }
        fastlstm.export(model, folder / "exported")
        fastlstm.export(model, folder / "specialised", specialise=True, isa="fused", name="model")

    def check(self, target: Target, y: Array) -> str:
        """What the rows are; FailedError if they are not what they must be."""
        if y.size != self.exact.size:
            raise FailedError(f"{y.size} numbers; expected {self.exact.size}")
        error = float(np.abs(y - self.exact.ravel()).max())
        if not error <= BOUND:
            raise FailedError(f"{error:.2g} beside float64; expected {BOUND:g}")
        expected = self.bits.get(target.bits)
        if expected is None:
            return f"{ROWS} rows, {error:.1e} beside float64"
        if y.tobytes() != expected.tobytes():
            differ = np.count_nonzero(y != expected.ravel())
            raise FailedError(f"other bits than this machine's {target.bits}: {differ} numbers")
        whose = "those of AVX2, AVX-512 and NEON" if target.bits == "vectors" else "the scalar ones"
        return f"{ROWS} rows, {error:.1e} beside float64, bits {whose}"

    def build(self, target: Target, folder: Path) -> None:
        """Make the program `run`, or of a board the specialised model."""
        shutil.copytree(self.folder / ("specialised" if target.board else "exported"), folder)
        settings = {
            "CC": " ".join(target.compiler),
            "CFLAGS": f"{self.optimization} {target.flags}",
            "KERNELS": target.kernels,
        }
        wanted = "model.o" if target.board else "run"
        call(("make", "-s", *(f"{k}={v}" for k, v in settings.items()), wanted), folder)

    def run(self, target: Target) -> str:
        """What was done, in words. Raises MissingError or FailedError."""
        require(target)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        folder /= "target"
        self.build(target, folder)
        if not target.runner:
            return "compiled and linked only: nothing here runs it"
        if target.board:
            return self.run_on_board(target, folder)
        program = next(path for path in (folder / "run.exe", folder / "run") if path.exists())
        runner = [word for word in target.runner if word]
        done = call((*runner, program), folder, input=self.x.tobytes())
        return f"ran: {self.check(target, np.frombuffer(done.stdout, np.float32))}"

    def run_on_board(self, target: Target, folder: Path) -> str:
        """The same where there is no operating system, with what it takes."""
        rows = ", ".join(f"{{{number.hex()}f}}" for number in self.x.ravel().tolist())
        text = f"enum {{ ROWS = {ROWS} }};\nstatic const float INPUT[ROWS][1] = {{{rows}}};\n"
        (folder / "input.h").write_text(text, encoding="utf-8")
        board = HERE / "cortex_m"
        flags = (self.optimization, *target.flags.split(), "-std=c11", "-Wall", "-Wextra", "-I.")
        made = (board / "steps.c", "model.o", "-o", "steps.elf")
        link = (
            "-nostartfiles",
            "--specs=nano.specs",
            "-Wl,--gc-sections",
            "-T",
            board / "memory.ld",
        )
        call((*target.compiler, *flags, *link, *made), folder)
        done = call((*target.runner, "-kernel", "steps.elf"), folder)
        said = (done.stdout + done.stderr).decode()
        told = dict(re.findall(r"^(instructions|stream) (\d+)$", said, re.MULTILINE))
        bits = re.findall(r"^(\d+)$", said, re.MULTILINE)
        if "FAILED" in said or len(told) < 2:
            raise FailedError(said[-300:])
        text = self.check(target, np.array(bits, np.uint64).astype(np.uint32).view(np.float32))
        sizes = call(("arm-none-eabi-size", "steps.elf"), folder).stdout.decode()
        flash, data, _ = map(int, sizes.splitlines()[1].split()[:3])
        return (
            f"ran: {text}; {int(told['instructions']):,} instructions a step, "
            f"{flash + data - self.x.nbytes:,} bytes of flash, {told['stream']} of RAM a stream"
        )


def layers(rng: np.random.Generator) -> dict[str, Any]:
    """A model as RTNeural writes them, with weights drawn at random."""

    def draw(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).tolist()

    C, H, U = 8, 16, 12
    made = [
        {
            "type": "conv1d",
            "activation": "tanh",
            "shape": [None, None, C],
            "kernel_size": [3],
            "dilation": [2],
            "groups": 1,
            "weights": [draw(3, 1, C), draw(C)],
        },
        {
            "type": "lstm",
            "activation": "",
            "shape": [None, None, H],
            "weights": [draw(C, 4 * H), draw(H, 4 * H), draw(4 * H)],
        },
        {
            "type": "gru",
            "activation": "",
            "shape": [None, None, U],
            "weights": [draw(H, 3 * U), draw(U, 3 * U), draw(2, 3 * U)],
        },
        {
            "type": "dense",
            "activation": "tanh",
            "shape": [None, None, 1],
            "weights": [draw(U, 1), draw(1)],
        },
    ]
    return {"in_shape": [None, None, 1], "layers": made}


def require(target: Target) -> None:
    """Raises MissingError where a target cannot be built or run, with the reason."""
    needed = ["make", target.compiler[0]]
    needed += ["arm-none-eabi-size"] if target.board else []
    needed += [target.runner[0]] if target.runner and target.runner[0] else []
    for program in needed:
        if not shutil.which(program):
            raise MissingError(f"{program} is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "trial.c").write_text("#include <math.h>\nint main(void) { return 0; }\n")
        link = ("-nostartfiles", "-c") if target.board else ()
        flags = (*target.flags.split(), *link, "trial.c", "-o", "trial")
        try:
            call((*target.compiler, *flags), folder)
        except FailedError as error:
            raise MissingError(f"{' '.join(target.compiler)} does not work here: {error}") from None


def outcome(export: Export, name: str) -> str:
    """What came of a target, in a line."""
    try:
        return export.run(TARGETS[name])
    except MissingError as missing:
        return f"skipped: {' '.join(str(missing).split())[:200]}"
    except FailedError as failed:
        return f"FAILED: {failed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="target", help=", ".join(TARGETS))
    parser.add_argument("-O", dest="optimization", default="2", help="the compilers' (default 2)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; expected {', '.join(TARGETS)}")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        export = Export(Path(folder), f"-O{arguments.optimization}")
        for name in arguments.names or TARGETS:
            came = outcome(export, name)
            failed |= came.startswith("FAILED")
            print(f"{name:10} {came}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
