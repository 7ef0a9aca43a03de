"""What there is on this machine: processor, instruction sets, BLAS, versions; a self-test."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm import Model, _engine, from_torch, load, reference

__all__ = [
    "SelfTest",
    "blas",
    "cache_sizes",
    "cpu_name",
    "instruction_sets",
    "platform_name",
    "self_test",
    "versions",
]

PACKAGES = ("fastlstm", "numpy", "scipy", "torch", "rich", "matplotlib")


def cpu_name() -> str:
    """The processor's own name for itself, or its architecture where it does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def platform_name() -> str:
    """Operating system and architecture."""
    return f"{platform.system()} {platform.release()}, {platform.machine()}"


def cache_sizes() -> dict[str, str]:
    """Caches of the first processor, such as ``{"L1 data": "32K", "L2": "1024K"}``, as Linux tells.

    Empty where it does not.
    """
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size")
            )
        except OSError:
            continue
        found[f"L{level}" if kind == "Unified" else f"L{level} {kind.lower()}"] = size
    return found


def blas() -> dict[str, Any]:
    """The BLAS behind SciPy, which the engine may use for long sequences.

    Returns
    -------
    dict
        ``found``; if so ``library``, the ``integers`` of its interface ("32-bit" or "64-bit") and
        ``signature``, else the ``reason``.
    """
    try:
        scipy = importlib.import_module("scipy")
        cython_blas = importlib.import_module("scipy.linalg.cython_blas")
    except ImportError as error:
        return {"found": False, "reason": f"scipy cannot be imported: {error}"}
    capsule = getattr(cython_blas, "__pyx_capi__", {}).get("sgemm")
    if capsule is None:
        return {"found": False, "reason": f"scipy {scipy.__version__} exports no sgemm"}
    # A capsule's name is in its repr alone, between quotes.
    signature = repr(capsule).split('"')[1] if '"' in repr(capsule) else repr(capsule)
    try:
        built = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        library = f"{built['name']} {built['version']}"
    except (KeyError, TypeError):
        library = "unknown"
    first_integer = signature.split(",")[2].strip() if signature.count(",") > 2 else ""
    return {
        "found": True,
        "library": library,
        "integers": "32-bit" if first_integer == "int *" else "64-bit",
        "signature": signature,
    }


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that has a part in this; None if not installed."""
    # It costs a command that has no use for it a fifth of its start.
    import importlib.metadata

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if found["fastlstm"] is None:  # a checkout that was never installed
        from fastlstm import __version__

        found["fastlstm"] = __version__
    return found


def instruction_sets() -> dict[str, Any]:
    """Kernels ``built`` for this architecture, ``found`` usable here (best first) and ``chosen``.

    ``forced`` is what FASTLSTM_ISA asks for, or None; ``chosen`` is None if that cannot be had. A
    model far smaller than the vectors of the best one may still be given another.
    """
    found = [name for name, _ in _engine.kernels()]
    forced = os.environ.get("FASTLSTM_ISA") or None
    chosen = forced if forced in found else None
    return {
        "built": _engine.known_isas(),
        "found": found,
        "forced": forced,
        "chosen": found[0] if forced is None else chosen,
    }


@dataclass(frozen=True)
class SelfTest:
    """One kernel against the float64 reference: its error, relative to the largest output."""

    isa: str
    dtype: str
    error: float
    ran: str | None
    """The kernel that ran, by its own word."""

    @property
    def passed(self) -> bool:
        return self.ran == self.isa and self.error <= SELF_TEST_TOLERANCE[self.dtype]


# The errors of its random model are ten times smaller on every kernel.
SELF_TEST_TOLERANCE = {"float32": 1e-5, "float64": 1e-13}

SELF_TEST_LAYERS = "lstm, gru, rnn, linear"
SELF_TEST_SIZES = {"lstm": (19, 37, 4), "gru": (37, 21, 3), "rnn": (21, 33, 1)}


def self_test() -> list[SelfTest]:
    """Run a small random model of every kind of cell on every kernel there is.

    It goes the whole way: converted, written, loaded for the kernel, run and streamed.
    """
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return rng.uniform(-0.4, 0.4, shape)

    tensors = {"linear.weight": weights(5, 33), "linear.bias": weights(5)}
    for name, (input_size, hidden_size, gates) in SELF_TEST_SIZES.items():
        rows = gates * hidden_size
        tensors[f"{name}.weight_ih_l0"] = weights(rows, input_size)
        tensors[f"{name}.weight_hh_l0"] = weights(rows, hidden_size)
        tensors[f"{name}.bias_ih_l0"] = weights(rows)
        tensors[f"{name}.bias_hh_l0"] = weights(rows)
    results = []
    with tempfile.TemporaryDirectory() as folder, _unforced():
        for dtype in ("float32", "float64"):
            path = Path(folder, f"{dtype}.safetensors")
            model = from_torch(tensors, layers=SELF_TEST_LAYERS, nonlinearity="tanh", dtype=dtype)
            model.save(path)
            for isa, _ in _engine.kernels(np.dtype(dtype).itemsize):
                results.append(_test(load(path, isa=isa, check=False)))
    return results


@contextlib.contextmanager
def _unforced() -> Iterator[None]:
    """Without FASTLSTM_ISA, which may be what is wrong and must not stop the diagnosis."""
    forced = os.environ.pop("FASTLSTM_ISA", None)
    try:
        yield
    finally:
        if forced is not None:
            os.environ["FASTLSTM_ISA"] = forced


def _test(model: Model) -> SelfTest:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 3, model.input_size)).astype(model.dtype)
    (name,) = model.inputs
    (exact,) = reference.forward(model.graph, model.tensors, {name: x}).values()
    stream = model.stream(batch_size=3)
    errors = [np.abs(y - exact).max() for y in (model(x)[0], stream.run(x))]
    # Python's max() can lose a NaN; NumPy's keeps it, and NaN is not within any tolerance.
    error = float(np.max(errors) / np.abs(exact).max())
    return SelfTest(model.isa, model.dtype.name, error, stream.isa_of_last_step)
