"""The functions of ``core/functions.h``, on every instruction set, against NumPy in float64.

``tests/core/functions_driver.c`` is compiled once for each. What is true of a function, and how
near the kernels come, is in the table that ``tools/fit_activations.py`` measures by.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from c_builds import (
    AARCH64,
    ADDRESS_FLAGS,
    ARM,
    CLANG,
    DRIVERS,
    OPTIMIZED,
    ROOT,
    WASM,
    Build,
    Programs,
)

from fastlstm import _engine


def load_tool() -> Any:
    """``tools/fit_activations.py``, as a module."""
    path = ROOT / "tools" / "fit_activations.py"
    made = importlib.util.spec_from_file_location("fit_activations", path)
    module = importlib.util.module_from_spec(made)
    sys.modules[made.name] = module  # its dataclasses look themselves up there
    made.loader.exec_module(module)
    return module


TOOL = load_tool()
FUNCTIONS = TOOL.FUNCTIONS
HERE = {name for name, _ in _engine.kernels(4)}
NEON = OPTIMIZED if platform.machine() == "aarch64" else AARCH64
COMPILERS = {"neon": NEON, "simd128": WASM}


def with_flags(like: Build, *flags: str) -> Build:
    return dataclasses.replace(like, flags=(*like.flags, *flags))


BUILDS = {
    **{isa: with_flags(COMPILERS.get(isa, OPTIMIZED), *f) for isa, f in TOOL.FLAGS.items()},
    **{
        f"{isa} by clang": with_flags(CLANG, *f)
        for isa, f in TOOL.FLAGS.items()
        if isa not in COMPILERS
    },
    "fused on 32-bit Arm": with_flags(ARM, "-DFL_FUSED"),
    # The conversion of a number that an integer cannot hold is no part of the other two.
    "scalar with sanitizers": Build(
        "cc", ("-O1", *ADDRESS_FLAGS, "-fsanitize=float-cast-overflow")
    ),
}
# WebAssembly has no mode that makes zeros of them.
KEEP_DENORMALS = ("simd128",)
DOUBLE = with_flags(OPTIMIZED, "-DFL_SCALAR64")

# Where functions have cases and constants change sides, beside the ends of float32.
EDGES = [
    *(0.0, 1e-45, 1e-40, 1.1754944e-38, 2.4e-38, 1e-30, 1e-8, 0.3465735, 0.34657362, 0.7, 1.0, 1.3),
    *(2.5, 9.99, 10.0, 13.1, 13.27, 13.28, 13.29, 20.0, 87.3, 87.4, 88.0, 88.8, 89.0, 91.9, 93.4),
    *(93.6, 94.0, 103.0, 104.0, 200.0, 745.0, 1e10, 1e20, 1e30, 3.4028235e38, np.inf, np.nan),
    *(0.70710677, 0.7071068, 1.4142135, 1.4142137, 0.99999994, 1.0000001, 88.72283, 88.72284),
    *(0.7853981, 0.7853982, 1.5707963, 1.5707964, 3.1415927, 102943.7, 131071.99, 131072.0),
    *(131072.02, 16367173.0 * 2**72, 1.2e8, 2.0, 3.0, 8388607.5, 8388608.0, 16777216.0),
]


def is_denormal(x: np.ndarray) -> Any:
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)


@functools.cache
def sample(dtype: Any, size: int = 200_003) -> np.ndarray:
    """Floats of every size, many near one, and all that is odd: not a whole number of vectors."""
    rng = np.random.default_rng(3)
    bits = np.linspace(0, 2**32 - 1, size // 2).astype(np.uint32)
    near = rng.standard_normal(size - len(bits)) * rng.choice([0.1, 3.0, 30.0], size - len(bits))
    x = np.concatenate([EDGES, np.negative(EDGES), near]).astype(np.float32)
    with np.errstate(invalid="ignore"):  # some NaN signal
        made = np.concatenate([bits.view(np.float32), x]).astype(dtype)
    made.flags.writeable = False  # it is every test's
    return made


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """What runs the driver of a build, if there is a processor to do so."""
    sources, folder = ([DRIVERS / "functions_driver.c"], tmp_path_factory.mktemp("functions"))
    programs = Programs({**BUILDS, "double": DOUBLE}, sources, folder)

    def of(name: str) -> list[str]:
        isa = name.partition(" ")[0]
        fused = name == isa == "fused" and platform.machine() == "x86_64"
        needed = "avx2" if fused else isa
        if needed in ("avx512", "avx2") and needed not in HERE:
            pytest.skip(f"this processor has no {needed}")
        return programs.command(name)

    return of


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("build", BUILDS)
def test_every_float_kernel_is_as_near_as_was_measured(
    build: str, function: str, command: Callable[[str], list[str]]
) -> None:
    x, worst = sample(np.float32), TOOL.Worst()
    if build in KEEP_DENORMALS:
        x = x[~is_denormal(x)]
    y = TOOL.run(command(build), function, x)
    with np.errstate(all="ignore"):
        worst.see(FUNCTIONS[function], x, y)
    assert worst.ulp <= FUNCTIONS[function].bound, worst
    # In another lane, and in a vector that is not full.
    np.testing.assert_array_equal(TOOL.run(command(build), function, x[-7:]), y[-7:])
    np.testing.assert_array_equal(TOOL.run(command(build), function, x[5:]), y[5:])


@pytest.mark.long
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("isa", TOOL.ISAS.get(platform.machine(), ("scalar",)))
def test_no_float_is_further_off(
    isa: str, function: str, command: Callable[[str], list[str]]
) -> None:
    with np.errstate(all="ignore"):
        worst = TOOL.measure(command(isa), function, 1)
    assert worst.ulp <= FUNCTIONS[function].bound, worst


# Where an exponential leaves the normal numbers, every float of a few thousand.
ENDS = [np.float32(end) for end in (-88.72284, -88.37626, -87.33654, 88.37626, 88.02969, 13.28)]


@pytest.mark.parametrize("other", ["avx512", "neon", "fused", "fused on 32-bit Arm"])
@pytest.mark.parametrize("function", [*FUNCTIONS, "relu"])
def test_every_instruction_set_gives_the_same_bits(
    function: str, other: str, command: Callable[[str], list[str]]
) -> None:
    """Promise 0: as AVX2 does; of a NaN only that it is one."""
    near = [(end.view(np.int32) + np.arange(-2000, 2000, dtype=np.int32)) for end in ENDS]
    x = np.concatenate([sample(np.float32, 400_003), np.concatenate(near).view(np.float32)])
    y, expected = (run_function(command(isa), function, x) for isa in (other, "avx2"))
    differ = y.view(np.uint32) != expected.view(np.uint32)
    differ &= ~(np.isnan(y) & np.isnan(expected))
    first = [a[differ][:3].tolist() for a in (x, y, expected)]
    assert not differ.any(), f"{other}, {differ.sum()} numbers: {first}"


def run_function(command: list[str], function: str, x: np.ndarray) -> np.ndarray:
    if function in FUNCTIONS:
        return np.asarray(TOOL.run(command, function, x))
    done = subprocess.run([*command, function, "0", "0"], input=x.tobytes(), stdout=-1, check=True)
    return np.frombuffer(done.stdout, x.dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_double_kernel_is_within_1e_12(
    function: str, command: Callable[[str], list[str]]
) -> None:
    x, exact = sample(np.float64), FUNCTIONS[function]
    y = TOOL.run(command("double"), function, x)
    with np.errstate(all="ignore"):
        expected = exact.exact(x, *exact.arguments())
        # A factor that is denormal counts as zero, also where the product is not.
        bound = 1e-12 * np.abs(exact.scale(x, expected)) + 64 * np.finfo(np.float64).tiny
        near = np.abs(y - expected) <= bound
    near |= (y == expected) | (np.isnan(y) & np.isnan(expected))
    assert near.all(), (x[~near][0], y[~near][0], expected[~near][0])


@pytest.mark.parametrize("build", ["double", *BUILDS])
@pytest.mark.parametrize(
    ("function", "below", "above"),
    [
        ("sigmoid", 0, 1),
        ("tanh", -1, 1),
        ("elu", -float(np.float32(1.67326)), np.inf),
        ("softplus", 0, np.inf),
        ("softsign", -1, 1),
        ("silu", 0, np.inf),
        ("gelu", 0, np.inf),
        ("gelu_tanh", 0, np.inf),
        ("sqrt", np.nan, np.inf),
        ("leaky_relu", -np.inf, np.inf),
        ("thresholded_relu", 0, np.inf),
        ("affine", -np.inf, np.inf),
        ("hard_sigmoid", 0, 1),
        ("clip", -float(np.float32(0.7)), float(np.float32(1.3))),
        ("scaled_tanh", -float(np.float32(1.7159)), float(np.float32(1.7159))),
        ("abs", np.inf, np.inf),
        ("floor", -np.inf, np.inf),
        ("square", np.inf, np.inf),
        ("reciprocal", -0.0, 0.0),
        ("exp", 0, np.inf),
        ("log", np.nan, np.inf),
        ("sin", np.nan, np.nan),
        ("cos", np.nan, np.nan),
        ("power_of", np.inf, 0),
    ],
)
def test_infinity_gives_the_limit_and_nan_gives_nan(
    function: str, below: float, above: float, build: str, command: Callable[[str], list[str]]
) -> None:
    dtype = np.float64 if build == "double" else np.float32
    y = run_function(command(build), function, np.array([-np.inf, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(y, np.array([below, above, np.nan], dtype))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_double_kernel_is_what_torch_computes(
    function: str, command: Callable[[str], list[str]]
) -> None:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    a, b = (*FUNCTIONS[function].arguments(), 0.0, 0.0)[:2]
    of = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "expm1": lambda x: torch.expm1(x.clamp(max=0)),
        "elu": lambda x: f.elu(x, a),
        "softplus": lambda x: f.softplus(x, threshold=1e3),  # beyond, torch takes x itself
        "softsign": f.softsign,
        "silu": f.silu,
        "gelu": f.gelu,
        "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"),
        "sqrt": torch.sqrt,
        "leaky_relu": lambda x: f.leaky_relu(x, a),
        "thresholded_relu": lambda x: f.threshold(x, a, 0.0),
        "affine": lambda x: a * x + b,
        "hard_sigmoid": lambda x: (a * x + b).clamp(0, 1),
        "clip": lambda x: x.clamp(a, b),
        "scaled_tanh": lambda x: a * torch.tanh(b * x),
        "floor": torch.floor,
        "sign": torch.sign,
        "reciprocal": torch.reciprocal,
        "exp": torch.exp,
        "log": torch.log,
        "sin": torch.sin,
        "cos": torch.cos,
        "power": lambda x: x**a,
        "power_of": lambda x: a**x,
    }
    x = np.random.default_rng(4).uniform(-30, 30, 10_001)
    y = TOOL.run(command("double"), function, x)
    expected = of[function](torch.from_numpy(x)).numpy()
    # Where gelu is near zero, torch takes a tanh that is near -1 from 1.
    np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-14)


# Zeros, ones, integers, odd and even, and what is no integer, of every size.
NUMBERS = np.array(
    [
        *(0.0, 1.0, 2.0, 3.0, 4.0, 0.5, 1.5, 0.99, 7.0, 8388607.0, 8388608.0, 16777215.0),
        *(16777216.0, 4194303.5, 1e10, 1e-10, 1e38, 1.2e-38, np.inf),
    ],
    np.float32,
)
NUMBERS = np.array([*NUMBERS, *-NUMBERS, np.nan], np.float32)
OF_TWO = {
    **{"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide},
    **{"power": np.power, "minimum": np.minimum, "maximum": np.maximum, "equal": np.equal},
    **{"not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal},
    **{"greater": np.greater, "greater_equal": np.greater_equal},
}


def of_two(command: list[str], function: str, x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    words = [*command, function, "each", "3"]
    done = subprocess.run(words, input=x.tobytes() + alpha.tobytes(), stdout=-1, check=True)
    return np.frombuffer(done.stdout, x.dtype)


@pytest.mark.parametrize("build", ["double", *BUILDS])
@pytest.mark.parametrize("function", OF_TWO)
def test_functions_of_two_numbers_have_the_limits_of_numpy(
    function: str, build: str, command: Callable[[str], list[str]]
) -> None:
    dtype = np.float64 if build == "double" else np.float32
    x, alpha = (np.ravel(a).astype(dtype) for a in np.meshgrid(NUMBERS, NUMBERS))
    y, swapped = (
        of_two(command(build), name, *arguments)
        for name, arguments in ((function, (x, alpha)), (f"{function}_of", (alpha, x)))
    )
    np.testing.assert_array_equal(swapped, y)
    with np.errstate(all="ignore"):
        expected = OF_TWO[function](x.astype(np.float64), alpha.astype(np.float64)).astype(dtype)
    expected[is_denormal(expected)] *= 0
    if build in KEEP_DENORMALS:
        y = np.where(is_denormal(y), np.copysign(0, y), y)
    np.testing.assert_allclose(y, expected, 4 * np.finfo(dtype).eps)
    if function == "power":
        known = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(y[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("build", ["double", *BUILDS])
def test_where_takes_the_third_number_only_where_the_first_is_zero(
    build: str, command: Callable[[str], list[str]]
) -> None:
    x = NUMBERS.astype(np.float64 if build == "double" else np.float32)
    y = of_two(command(build), "where", x, np.full_like(x, 2))
    np.testing.assert_array_equal(y, np.where(x != 0, 2, 3))


@pytest.mark.parametrize("other", ["avx512", "neon", "fused", "fused on 32-bit Arm"])
@pytest.mark.parametrize("function", OF_TWO)
def test_every_instruction_set_gives_the_same_bits_of_two_numbers(
    function: str, other: str, command: Callable[[str], list[str]]
) -> None:
    rng = np.random.default_rng(5)
    near, far = np.exp(rng.normal(0, 1, 20_003)), sample(np.float32, 20_003)
    with np.errstate(invalid="ignore"):  # some NaN signal
        x, alpha = (np.concatenate([near, far]).astype(np.float32) for _ in range(2))
    rng.shuffle(alpha)
    alpha[::3] = -alpha[::3]
    y, expected = (of_two(command(isa), function, x, alpha) for isa in (other, "avx2"))
    differ = y.view(np.uint32) != expected.view(np.uint32)
    differ &= ~(np.isnan(y) & np.isnan(expected))
    assert not differ.any(), [a[differ][:3].tolist() for a in (x, alpha, y, expected)]


def test_powers_of_ordinary_numbers_are_within_4_ulp(command: Callable[[str], list[str]]) -> None:
    rng = np.random.default_rng(6)
    x = np.exp(rng.normal(0, 2, 60_000)).astype(np.float32)
    alpha = (rng.uniform(-88, 88, len(x)) / np.log(x)).astype(np.float32)  # ends of the floats
    worst = TOOL.Worst()
    for build in ("avx2", "scalar"):
        y = of_two(command(build), "power", x, alpha)
        worst.see(TOOL.Function(lambda x: np.power(x, alpha.astype(np.float64)), 4), x, y)
        assert worst.ulp <= 4, worst
