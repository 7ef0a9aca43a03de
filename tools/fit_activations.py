"""Derive the constants of exp in kernels/vec.h, and measure sigmoid and tanh over the floats.

The kernels compute ``exp(x) = 2^n (1 + p)`` with ``n = round(x / ln 2)``, ``r = x - n ln 2`` and
``p = expm1(r) = r + r^2 q(r)``, where q is a polynomial of degree 4; for ``exp(k x)``, with k a
power of two, they scale the constants printed here by powers of k, which is exact. Here q is the
one that leaves the least largest relative error of expm1, its coefficients being float32 (a
weighted Chebyshev approximation by Lawson's iteration: C. L. Lawson, *Contributions to the Theory
of Linear Least Maximum Approximations*, 1961). ln 2 is cut in two so that n times the first part
is exact (W. J. Cody and W. Waite, *Software Manual for the Elementary Functions*, 1980).

Then the kernels this package was built with are run, on every instruction set of this machine, over
every 997th float32 or, with ``--exhaustive``, over all 2^32 of them, and compared with float64.

    python tools/fit_activations.py [--exhaustive]
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm

Array = npt.NDArray[Any]

LN2 = Fraction("0.693147180559945309417232121458176568075500134360255254120680009")
DEGREE = 4
# 1 / ln 2 and its product with x are rounded to float32 before n is found, which takes r a little
# beyond ln(2) / 2: by 88 times 2^-24, twice, at most.
REACH = float(LN2 / 2) + 88 * 2.0**-23
BITS_OF_N = 7  # |n| <= 127

BOUND = 2.5  # ulp: the nearest float32 is within 0.5, and 2 more are allowed
STRIDE = 997
CHUNK = 2**22
WIDTH = 64  # features of the model that is run, a multiple of every kernel's lanes


def fit(grid_size: int = 2001, rounds: int = 400) -> tuple[list[np.float32], float]:
    """q's coefficients, constant first, and the largest relative error of expm1 they leave.

    The coefficients are rounded one after the other, the constant first, which weighs most; those
    that are left are fitted again each time and make up for it.
    """
    r = REACH * np.cos(np.linspace(0, np.pi, grid_size))
    exact = np.sum([r**k / factorial(k + 2) for k in range(20)], axis=0)  # (expm1(r) - r) / r^2
    relative = r / (1 + r * exact)  # r^2 / expm1(r): an error of q to one of expm1
    powers = r[:, None] ** np.arange(DEGREE + 1) * relative[:, None]
    rounded: list[np.float32] = []
    while len(rounded) <= DEGREE:
        known = len(rounded)
        target = exact * relative - powers[:, :known] @ np.array(rounded, np.float64)
        rounded.append(np.float32(_least_maximum(powers[:, known:], target, rounds)[0]))
    left = powers @ np.array(rounded, np.float64) - exact * relative
    return rounded, float(np.abs(left).max())


def _least_maximum(columns: Array, target: Array, rounds: int) -> Array:
    """Lawson: least squares, again and again, each point's weight multiplied by its error."""
    weights: Array = np.full(len(target), 1 / len(target))
    found: Array
    for _ in range(rounds):
        root = np.sqrt(weights)
        found, *_ = np.linalg.lstsq(columns * root[:, None], target * root, rcond=None)
        weights *= np.abs(columns @ found - target)
        weights /= weights.sum()
    return found


def split_ln2() -> tuple[np.float32, np.float32]:
    """ln 2 as two floats; the first has so few bits that its product with n is exact."""
    scale = 2 ** (24 - BITS_OF_N)  # ln 2 lies in [1/2, 1)
    high = Fraction(round(LN2 * scale), scale)
    return np.float32(high), np.float32(LN2 - high)


def print_constants() -> None:
    def c(value: Any) -> str:
        return f"{np.float32(value):.9g}f"

    q, error = fit()
    high, low = split_ln2()
    print(f"/* largest relative error of expm1 before rounding: {error * 2**24:.3f} * 2^-24 */")
    print(f"1 / ln 2: {c(1 / LN2)}, -ln 2: {c(-high)} {c(-low)}")
    print(f"q, highest power first: {' '.join(c(value) for value in q[::-1])}")


@dataclass
class Worst:
    """The largest error seen: in ulp, at which input, given and true value."""

    ulp: float = 0.0
    x: float = 0.0
    y: float = 0.0
    exact: float = 0.0

    def see(self, x: Array, y: Array, exact: Array) -> None:
        """Take an array of results into account; NaN must stay NaN, a denormal may become zero."""
        _, exponent = np.frexp(exact)
        exponent[exact == 0] = -125
        ulp = np.abs(y - exact) / np.ldexp(1.0, np.maximum(exponent, -125) - 24)
        ulp[(np.abs(exact) < 2.0**-126) & (y == 0)] = 0
        ulp[np.isnan(exact) & np.isnan(y)] = 0
        ulp[np.isnan(ulp)] = np.inf  # one of the two is NaN
        i = int(ulp.argmax())
        if ulp[i] > self.ulp:
            self.ulp, self.x, self.y, self.exact = (float(a[i]) for a in (ulp, x, y, exact))


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    y: Array = np.where(x < 0, e, 1.0) / (1 + e)
    return y


EXACT: dict[str, Callable[[Array], Array]] = {"sigmoid": sigmoid, "tanh": np.tanh}
ISAS = ("avx512", "avx2", "neon", "scalar")


def run(function: str, isa: str, x: Array) -> Array:
    """`function` of every element, by the kernel for `isa`; ValueError where there is none here.

    An embedding hands the kernel any bits there are; a linear layer would compute with them first.
    """
    os.environ["FASTLSTM_ISA"] = isa
    table = {"embedding.weight": x.reshape(-1, WIDTH)}
    model = fastlstm.from_torch(table, layers=f"embedding, {function}")
    assert model.isa == isa
    return model(np.arange(model.input_size))[0].reshape(-1)


def available() -> list[str]:
    """The instruction sets this machine can run."""
    found = []
    for isa in ISAS:
        with contextlib.suppress(ValueError):
            run("tanh", isa, np.zeros(WIDTH, np.float32))
            found.append(isa)
    return found


def measure(stride: int) -> dict[tuple[str, str], Worst]:
    """The largest errors over every `stride`-th float32, infinities and NaN included."""
    isas = available()
    worst = {(function, isa): Worst() for function in EXACT for isa in isas}
    for first in range(0, 2**32, CHUNK * stride):
        bits = np.arange(first, min(first + CHUNK * stride, 2**32), stride, dtype=np.uint64)
        x = np.resize(bits, -(-len(bits) // WIDTH) * WIDTH).astype(np.uint32).view(np.float32)
        wide = x.astype(np.float64)
        for function, exact in EXACT.items():
            true = exact(wide)
            for isa in isas:
                worst[function, isa].see(x, run(function, isa, x), true)
        if sys.stderr.isatty():
            print(f"\r{bits[-1] / 2**32:.1%}", end="", file=sys.stderr, flush=True)
    return worst


def main() -> int:
    """Print the constants and the errors; 1 if an error is over the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exhaustive", action="store_true", help="every float32: takes minutes")
    stride = 1 if parser.parse_args().exhaustive else STRIDE
    print_constants()
    with np.errstate(all="ignore"):
        worst = measure(stride)
    print(f"\nlargest error over every {stride}. float32, in ulp; bound {BOUND}")
    for (function, isa), w in worst.items():
        print(f"{function:8s} {isa:8s} {w.ulp:6.4f} at x = {w.x!r}: {w.y!r}, true {w.exact!r}")
    return int(max(w.ulp for w in worst.values()) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
