"""Derive the constants of the functions in core/activations.h and core/functions.h, and measure
them.

The kernels compute ``exp(x) = 2^n (1 + p)`` with ``n = round(x / ln 2)``, ``r = x - n ln 2`` and
``p = expm1(r) = r + r^2 q(r)``, where q is a polynomial of degree 4; for ``exp(k x)``, with k a
power of two, they scale the constants printed here by powers of k, which is exact. Here q is the
one that leaves the least largest relative error of expm1, its coefficients being float32 (a
weighted Chebyshev approximation by Lawson's iteration: C. L. Lawson, *Contributions to the Theory
of Linear Least Maximum Approximations*, 1961). ln 2 is cut in two so that n times the first part
is exact (W. J. Cody and W. Waite, *Software Manual for the Elementary Functions*, 1980); where n
is small one float is near enough.

``log1p(x) = x + x^2 q(x)``, for x from 0 to 1, has such a polynomial of degree 8. The normal
distribution is ``Phi(-a) = exp(-a^2 / 2) p(a) / q(a)`` with polynomials of degrees 4 and 5. That
``p - q f`` is least, relative to q f, is linear in the coefficients where the q divided by is that
of the round before (H. L. Loeb, *Algorithms for Chebyshev Approximations Using the Ratio of Linear
Forms*, 1960).

``log(1 + f)`` is ``f - f^2 / 2 + f^3 q(f)``, and for a power, where more of it is needed, ``2 t +
2 t^3 p(t^2)`` with ``t = f / (2 + f)``; ``sin(r) = r + r^3 s(r^2)`` and ``cos(r) = 1 - r^2 / 2 +
r^4 c(r^2)``. pi / 2 is a sum of three floats, and 2 / pi is printed bit by bit.

Then tests/core/functions_driver.c is compiled for every instruction set of this machine and run,
all functions or those that are named, over every 997th float32 or, with ``--exhaustive``, over all
2^32 of them, and compared with float64.

    python tools/fit_activations.py [--exhaustive] [FUNCTION...]
"""

import argparse
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = [f"-I{ROOT / 'fastlstm' / folder}" for folder in ("core",)]
DRIVER = ROOT / "tests" / "core" / "functions_driver.c"

# What a compiler must be told for vec.h alone, which the kernels' files tell it themselves.
FLAGS = {
    "avx512": ("-DFL_AVX512", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")), "-mfma"),
    "avx2": ("-DFL_AVX2", "-mavx2", "-mfma"),
    "neon": ("-DFL_NEON",),
    "fused": ("-DFL_FUSED", *(("-mfma",) if platform.machine() == "x86_64" else ())),
    "simd128": ("-DFL_SIMD128",),
    "scalar": (),
}
ISAS = {
    "x86_64": ("avx512", "avx2", "fused", "scalar"),
    "aarch64": ("neon", "fused", "scalar"),
}

LN2 = Fraction("0.693147180559945309417232121458176568075500134360255254120680009")
PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
# 1 / ln 2 and its product with x are rounded to float32 before n is found, which takes r a little
# beyond ln(2) / 2: by 88 times 2^-24, twice, at most (of silu, by 94 where it ends).
REACH = float(LN2 / 2) + 88 * 2.0**-23
BITS_OF_N = 8  # |n| <= 135
FARTHEST = 13.3  # a little beyond the end of gelu
# Likewise, 2 / pi and its product with x, below 2^17.
QUARTER = float(PI / 4) + 2**17 * 2.0**-24

LEAST = 2.0**-126  # normal float32
BEYOND = 2.0**128 - 2.0**103  # float32 rounds it to infinity

STRIDE = 997
CHUNK = 2**22


# Constants


def fit_expm1(degree: int = 4) -> tuple[list[np.float32], float]:
    """q's coefficients, constant first, and the largest relative error of expm1 they leave."""
    r = REACH * chebyshev(-1, 1)
    exact = np.sum([r**k / factorial(k + 2) for k in range(20)], axis=0)  # (expm1(r) - r) / r^2
    relative = r / (1 + r * exact)  # r^2 / expm1(r): an error of q to one of expm1
    return round_in_turn(r[:, None] ** np.arange(degree + 1) * relative[:, None], exact * relative)


def fit_log1p(degree: int = 8) -> tuple[list[np.float32], float]:
    """q's coefficients, constant first, and the largest relative error of log1p they leave."""
    x = chebyshev(0, 1)
    near, far = np.minimum(x, 0.1), np.maximum(x, 0.1)
    series = np.sum([-((-near) ** k) / (k + 2) for k in range(20)], axis=0)
    exact = np.where(x < 0.1, series, (np.log1p(far) - far) / far**2)  # (log1p(x) - x) / x^2
    relative = x / (1 + x * exact)  # x^2 / log1p(x)
    return round_in_turn(x[:, None] ** np.arange(degree + 1) * relative[:, None], exact * relative)


def fit_normal(
    degree: int = 4, loops: int = 12
) -> tuple[list[np.float32], list[np.float32], float]:
    """The coefficients of p and of q, constant first, and the largest relative error of p / q.

    p has the degree that is given and q one more, with constant 1.
    """
    a = FARTHEST * chebyshev(0, 1) ** 2
    exact = special.erfcx(a / np.sqrt(2)) / 2
    above = a[:, None] ** np.arange(degree + 1) / exact[:, None]
    below = a[:, None] ** np.arange(1, degree + 2)
    columns, q = np.hstack([above, -below]), np.ones(len(a))
    for _ in range(loops):
        found = least_maximum(columns / q[:, None], 1 / q)
        q = 1 + below @ found[degree + 1 :]
    rounded, error = round_in_turn(columns / q[:, None], 1 / q)
    return rounded[: degree + 1], [np.float32(1), *rounded[degree + 1 :]], error


def fit_log(degree: int = 7) -> tuple[list[np.float32], float]:
    """q's coefficients, constant first, and the largest relative error of log(1 + f) they leave."""
    f = chebyshev(np.sqrt(0.5) - 1, np.sqrt(2) - 1)
    near, far = np.where(np.abs(f) < 0.1, f, 0), np.where(np.abs(f) < 0.1, 0.1, f)
    series = np.sum([(-near) ** k / (k + 3) for k in range(30)], axis=0)
    exact = np.where(near == f, series, (np.log1p(far) - far + far**2 / 2) / far**3)
    relative = f**2 / (1 - f / 2 + f**2 * exact)  # f^3 / log(1 + f)
    return round_in_turn(f[:, None] ** np.arange(degree + 1) * relative[:, None], exact * relative)


def fit_atanh(degree: int = 3) -> tuple[list[np.float32], float]:
    """p's coefficients, constant first, and the largest relative error of atanh they leave."""
    square = ((3 - np.sqrt(8)) * chebyshev(0, 1)) ** 2  # t is (m - 1) / (m + 1), m up to sqrt(2)
    exact = np.sum([square**k / (2 * k + 3) for k in range(20)], axis=0)
    relative = square / (1 + square * exact)
    columns = square[:, None] ** np.arange(degree + 1)
    return round_in_turn(columns * relative[:, None], exact * relative)


def fit_sine(degree: int = 2) -> tuple[list[np.float32], float]:
    """s's coefficients, constant first, and the largest relative error of sin(r) they leave."""
    square = (QUARTER * chebyshev(0, 1)) ** 2
    exact = np.sum(
        [(-1.0) ** (k + 1) * square**k / factorial(2 * k + 3) for k in range(12)], axis=0
    )
    relative = square / (1 + square * exact)
    columns = square[:, None] ** np.arange(degree + 1)
    return round_in_turn(columns * relative[:, None], exact * relative)


def fit_cosine(degree: int = 2) -> tuple[list[np.float32], float]:
    """c's coefficients, constant first, and the largest relative error of cos(r) they leave."""
    square = (QUARTER * chebyshev(0, 1)) ** 2
    exact = np.sum([(-1.0) ** k * square**k / factorial(2 * k + 4) for k in range(12)], axis=0)
    relative = square**2 / (1 - square / 2 + square**2 * exact)
    columns = square[:, None] ** np.arange(degree + 1)
    return round_in_turn(columns * relative[:, None], exact * relative)


def chebyshev(least: float, most: float, size: int = 2001) -> Array:
    """Points from the largest to the least, close together at both ends."""
    points: Array = least + (most - least) * (1 + np.cos(np.linspace(0, np.pi, size))) / 2
    return points


def round_in_turn(columns: Array, target: Array) -> tuple[list[np.float32], float]:
    """The float32 combination of the columns nearest to the target, and its largest error.

    The coefficients are rounded one after the other, the first first, which weighs most; those that
    are left are fitted again each time and make up for it.
    """
    rounded: list[np.float32] = []
    for known in range(columns.shape[1]):
        left = target - columns[:, :known] @ np.array(rounded, np.float64)
        rounded.append(np.float32(least_maximum(columns[:, known:], left)[0]))
    return rounded, float(np.abs(columns @ np.array(rounded, np.float64) - target).max())


def least_maximum(columns: Array, target: Array, rounds: int = 400) -> Array:
    """Lawson: least squares, again and again, each point's weight multiplied by its error."""
    size = np.linalg.norm(columns, axis=0)
    weights: Array = np.full(len(target), 1 / len(target))
    found: Array
    for _ in range(rounds):
        root = np.sqrt(weights)
        found, *_ = np.linalg.lstsq(columns / size * root[:, None], target * root, rcond=None)
        weights *= np.abs(columns / size @ found - target)
        weights /= weights.sum()
    found /= size
    return found


def split_ln2() -> tuple[np.float32, np.float32]:
    """ln 2 as two floats; the first has so few bits that its product with n is exact."""
    scale = 2 ** (24 - BITS_OF_N)  # ln 2 lies in [1/2, 1)
    high = Fraction(round(LN2 * scale), scale)
    return np.float32(high), np.float32(LN2 - high)


def split_half_pi() -> tuple[np.float32, ...]:
    """pi / 2 as three floats."""
    parts: list[np.float32] = []
    for _ in range(3):
        parts.append(np.float32(PI / 2 - sum(Fraction(float(part)) for part in parts)))
    return tuple(parts)


def print_constants() -> None:
    def c(*values: Any) -> str:
        return " ".join(f"{np.float32(value):.9g}f" for value in values)

    def error_of(function: str, error: float) -> str:
        of = f"largest relative error of {function} before rounding"
        return f"/* {of}: {error * 2**24:.3f} * 2^-24 */"

    q, error = fit_expm1()
    high, low = split_ln2()
    print(error_of("expm1", error))
    print(f"1 / ln 2: {c(1 / LN2)}, -ln 2: {c(-high, -low)}, in one part {c(-LN2)}")
    print(f"q, highest power first: {c(*q[::-1])}")
    q, error = fit_log1p()
    print(error_of("log1p", error))
    print(f"q, highest power first: {c(*q[::-1])}")
    p, q, error = fit_normal()
    print(error_of("Phi", error))
    print(f"p, highest power first: {c(*p[::-1])}")
    print(f"q, highest power first: {c(*q[::-1])}")
    for name, of, fit in [
        *(("log", "q", fit_log), ("atanh", "p", fit_atanh)),
        *(("sine", "s", fit_sine), ("cosine", "c", fit_cosine)),
    ]:
        coefficients, error = fit()
        print(error_of(name, error))
        print(f"{of}, highest power first: {c(*coefficients[::-1])}")
    print(f"2 / pi: {c(2 / PI)}, -pi / 2: {c(*(-part for part in split_half_pi()))}")
    print(f"pi / 2 times 2^-62: {float(PI / 2**63)!r}")
    bits = int(2 / PI * 2**224)
    print("2 / pi:", *(f"{bits >> shift & 0xFFFFFFFF:#x}" for shift in range(192, -32, -32)))


# Functions


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    y: Array = np.where(x < 0, e, 1.0) / (1 + e)
    return y


def elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def softplus(x: Array) -> Array:
    y: Array = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y


def softsign(x: Array) -> Array:
    finite = np.clip(x, -1e300, 1e300)
    y: Array = finite / (1 + np.abs(finite))
    return y


def silu(x: Array) -> Array:
    return np.maximum(x, -1e3) * sigmoid(x)


def gelu(x: Array) -> Array:
    y: Array = np.maximum(x, -1e3) * special.ndtr(x)
    return y


def gelu_tanh(x: Array) -> Array:
    return np.maximum(x, -1e3) * sigmoid(doubled_argument(x))


def power_of(x: Array, base: float) -> Array:
    return np.power(base, x)


def doubled_argument(x: Array) -> Array:
    """Of the tanh in gelu_tanh."""
    z: Array = np.sqrt(8 / np.pi) * (x * (1 + 0.044715 * x * x))
    return z


def scaled_tanh(x: Array, alpha: float, beta: float) -> Array:
    y: Array = alpha * np.tanh(beta * x)
    return y


@dataclass(frozen=True)
class Function:
    """What is true of a function, and how near the float kernels come.

    Parameters
    ----------
    exact : function
        Of x, and of alpha and beta if the function has them, in float64.
    bound : float
        The largest error allowed, in ulp: the nearest float32 is within 0.5.
    parameters : tuple of float
        alpha and beta, as far as the function has them.
    scale : function
        Of x, and of the exact y: what the ulp are of, if not of y.
    """

    exact: Callable[..., Array]
    bound: float
    parameters: tuple[float, ...] = ()
    scale: Callable[[Array, Array], Array] = lambda x, y: y

    def arguments(self) -> tuple[float, ...]:
        """alpha and beta as every kernel is given them: they are floats."""
        return tuple(float(np.float32(value)) for value in self.parameters)


FUNCTIONS = {
    "sigmoid": Function(sigmoid, 2.5),
    "tanh": Function(np.tanh, 2.5),
    "expm1": Function(lambda x: np.expm1(np.minimum(x, 0)), 2),
    "elu": Function(elu, 2.5, (1.67326,)),
    "softplus": Function(softplus, 2.5),
    "softsign": Function(softsign, 2),
    "silu": Function(silu, 3.5),
    "gelu": Function(gelu, 3.5, (), lambda x, y: np.where(x < 0, 2 * y, y)),
    # Where it is far below zero, exp magnifies the error of the argument.
    "gelu_tanh": Function(
        gelu_tanh, 3, (), lambda x, y: y * (1 + np.maximum(-doubled_argument(x), 0))
    ),
    "sqrt": Function(np.sqrt, 0.5),
    "leaky_relu": Function(lambda x, alpha: np.where(x > 0, x, alpha * x), 0.5, (0.01,)),
    "thresholded_relu": Function(lambda x, alpha: np.where(x <= alpha, 0, x), 0, (0.7,)),
    # Its terms may cancel.
    "affine": Function(lambda x, a, b: a * x + b, 1, (1.7, -0.3), lambda x, y: np.abs(y) + 0.3),
    "hard_sigmoid": Function(
        lambda x, a, b: np.clip(a * x + b, 0, 1), 0.5, (0.2, 0.5), lambda x, y: np.ones_like(y)
    ),
    "clip": Function(np.clip, 0, (-0.7, 1.3)),
    "scaled_tanh": Function(scaled_tanh, 5, (1.7159, 0.6667)),
    "floor": Function(np.floor, 0),
    "sign": Function(lambda x: (x > 0).astype(np.float64) - (x < 0), 0),
    "reciprocal": Function(lambda x: 1 / x, 0.5),
    "exp": Function(np.exp, 2.5),
    "log": Function(np.log, 2.5),
    "sin": Function(np.sin, 2.5),
    "cos": Function(np.cos, 2.5),
    "power": Function(np.power, 4, (2.37,)),
    "power_of": Function(power_of, 4, (0.83,)),
}


# Measurements


@dataclass
class Worst:
    """The largest error seen: in ulp, at which input, given and true value."""

    ulp: float = 0.0
    x: float = 0.0
    y: float = 0.0
    exact: float = 0.0

    def see(self, function: Function, x: Array, y: Array) -> None:
        """Take an array of results into account, both float32.

        NaN must stay NaN. What is less than the least normal number counts as zero, in the course
        of a function too, which may double it: so a result below twice that may be off by as much.
        """
        wide = np.where(np.abs(x) < LEAST, np.copysign(0, x), x).astype(np.float64)
        exact = function.exact(wide, *function.arguments())
        exact = np.where(np.abs(exact) >= BEYOND, np.copysign(np.inf, exact), exact)
        _, exponent = np.frexp(function.scale(wide, exact))
        error = np.abs(y - exact)
        ulp = error / np.ldexp(1.0, np.maximum(exponent, -125) - 24)
        ulp[(np.abs(exact) < 2 * LEAST) & (error < 2 * LEAST)] = 0
        ulp[(y == exact) | (np.isnan(exact) & np.isnan(y))] = 0
        ulp[np.isnan(ulp)] = np.inf  # one of the two is NaN
        i = int(ulp.argmax())
        if ulp[i] > self.ulp:
            self.ulp, self.x, self.y, self.exact = (float(a[i]) for a in (ulp, x, y, exact))


def run(command: Sequence[object], name: str, x: Array) -> Array:
    """A function of every element of x, by the driver that the command starts."""
    parameters = (*FUNCTIONS[name].arguments(), 0.0, 0.0)[:2]
    words = [*map(str, command), name, *map(repr, parameters)]
    done = subprocess.run(words, input=x.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, x.dtype)


def build(isa: str, folder: Path) -> Path | None:
    """The driver, or None if this processor cannot run it."""
    program = folder / isa
    flags = ["-std=c11", "-O3", "-ffp-contract=off", *FLAGS[isa], *INCLUDE]
    subprocess.run(["cc", *flags, DRIVER, "-lm", "-o", program], check=True)
    try:
        run([program], "tanh", np.zeros(64, np.float32))
    except subprocess.CalledProcessError as error:
        if error.returncode != -signal.SIGILL:
            raise
        return None
    return program


def measure(command: Sequence[object], name: str, stride: int) -> Worst:
    """The largest error over every `stride`-th float32, infinities and NaN included."""
    worst = Worst()
    for first in range(0, 2**32, CHUNK * stride):
        bits = np.arange(first, min(first + CHUNK * stride, 2**32), stride, dtype=np.uint64)
        x = bits.astype(np.uint32).view(np.float32)
        worst.see(FUNCTIONS[name], x, run(command, name, x))
    return worst


def main() -> int:
    """Print the constants and the errors; 1 if an error is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exhaustive", action="store_true", help="every float32: takes hours")
    parser.add_argument("names", nargs="*", metavar="function", help=", ".join(FUNCTIONS))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FUNCTIONS):
        parser.error(f"no function {', '.join(sorted(unknown))}; expected {', '.join(FUNCTIONS)}")
    stride = 1 if arguments.exhaustive else STRIDE
    print_constants()
    print(f"\nlargest error over every {stride}. float32, in ulp")
    over = False
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        programs = {isa: build(isa, Path(folder)) for isa in ISAS[platform.machine()]}
        for name, (isa, program) in product(arguments.names or FUNCTIONS, programs.items()):
            if program is None:
                continue
            w, bound = measure([program], name, stride), FUNCTIONS[name].bound
            print(
                f"{name:16s} {isa:8s} {w.ulp:6.4f}, bound {bound}, at x = {w.x!r}: {w.y!r}, "
                f"true {w.exact!r}",
                flush=True,
            )
            over |= w.ulp > bound
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
