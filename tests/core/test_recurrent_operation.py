"""The operation `recurrent`, run by the core, equals the reference's equations in float64.

Every cell and variant, along time and along positions, runs at once, in random pieces, each row of
the batch alone, in rows of unlike lengths and on several threads, on every kernel there is: no bit
may change, and those of the kernels for vectors are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from programs import BUILDS, Case, Driver, driver_of
from recurrences import Recurrence

from fastlstm import spec

SAME_BITS = ("avx512", "avx2", "neon", "fused")
CELLS = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}

# Sizes of input and state: one number, below, at and above the lanes of every kernel and the blocks
# of a sum, inputs that are projected beforehand and such that are not.
SIZES = [(1, 1), (3, 16), (7, 17), (8, 15), (33, 40), (40, 33), (70, 64)]

OF_LSTM: dict[str, dict[str, Any]] = {
    "projected": {"proj_size": 5},
    "peepholes": {"peepholes": True},
    "coupled": {"coupled": True},
    "coupled_peepholes": {"coupled": True, "peepholes": True},
    "norm_product": {"layer_norm": "product"},
    "norm_gate": {"layer_norm": "gate"},
    "clip": {"clip": 0.7},
    "cell_clip": {"cell_clip": 0.3},
    "activations": {"activations": ("hard_sigmoid(0.2, 0.5)", "softsign", "relu")},
    "cell_output": {"cell_output": True},
    "all": {
        **{"proj_size": 7, "peepholes": True, "layer_norm": "product", "clip": 1.0},
        **{"cell_clip": 0.8, "cell_output": True},
    },
}
OF_GRU: dict[str, dict[str, Any]] = {
    "resets_before": {"reset_after": False},
    "resets_before_clip": {"reset_after": False, "clip": 0.5},
    "activations": {"activations": ("hard_sigmoid(0.2, 0.5)", "relu")},
    "clip": {"clip": 0.5},
}
OF_RNN: dict[str, dict[str, Any]] = {
    "relu": {"nonlinearity": "relu"},
    "elu_clip": {"nonlinearity": "elu(0.7)", "clip": 0.4},
}
VARIANTS = {"lstm": OF_LSTM, "gru": OF_GRU, "rnn": OF_RNN}


def layer(kind: str, *sizes: int, **options: Any) -> spec.Recurrent:
    return CELLS[kind](kind, *sizes, **options)


def plain(kind: str) -> dict[str, Recurrence]:
    """PyTorch's cell of a kind, in every place where one can be."""
    along = {"along": "positions"}

    def of(*sizes: int, **options: Any) -> spec.Recurrent:
        return layer(kind, *sizes, **options)

    made = {f"{size}_to_{H}": Recurrence(of(size, H)) for size, H in SIZES}
    made |= {
        "no_bias": Recurrence(of(9, 17, bias=False)),
        "positions": Recurrence(of(5, 11), positions=50),
        "reverse": Recurrence(of(12, 17, reverse=True), positions=3),
        "both_ways": Recurrence(of(40, 33, bidirectional=True)),
        "along": Recurrence(of(12, 17, **along), positions=2, steps=5),
        "along_many": Recurrence(of(12, 17, **along), positions=50, steps=3),
        "along_one": Recurrence(of(33, 17, **along), steps=41),
        "along_back": Recurrence(of(12, 17, reverse=True, **along), positions=2, steps=5),
        "tokens": Recurrence(of(9, 17), tokens=9),
        "tokens_along": Recurrence(of(9, 17, **along), positions=2, steps=4, tokens=9),
        "embedded": Recurrence(of(6, 17, bidirectional=True), tokens=9, embedded=True),
    }
    for start in ("learned", "given"):
        both = of(12, 17, bidirectional=True, initial_state=start, **along)
        made[f"along_both_ways_{start}"] = Recurrence(both, positions=2, steps=5)
    for mask in ("one", "each"):
        both = of(33, 17, bidirectional=True, hold=True)
        given = of(12, 17, bidirectional=True, hold=True, initial_state="given", **along)
        made[f"masked_{mask}"] = Recurrence(of(33, 17, hold=True), positions=3, mask=mask)
        made[f"masked_both_ways_{mask}"] = Recurrence(both, mask=mask)
        made[f"masked_along_{mask}"] = Recurrence(given, positions=2, steps=5, mask=mask)
    return made


def variants(kind: str) -> dict[str, Recurrence]:
    """Others, along time with a mask and along positions."""
    made = {}
    for name, options in VARIANTS[kind].items():
        over_time = layer(kind, 9, 37, hold=True, **options)
        both = layer(kind, 9, 37, bidirectional=True, along="positions", **options)
        made[name] = Recurrence(over_time, positions=2, mask="each")
        made[f"{name}_along"] = Recurrence(both, positions=2, steps=3)
    return made


RECURRENCES = {
    f"{kind}_{name}": recurrence
    for kind in CELLS
    for name, recurrence in (plain(kind) | variants(kind)).items()
}
# Sums of more products than one level has.
LONG = {
    "lstm_hidden": Recurrence(layer("lstm", 40, 1040, bias=False)),
    "gru_input": Recurrence(layer("gru", 1100, 5)),
    "rnn_input": Recurrence(layer("rnn", 2100, 20)),
    "rnn_hidden": Recurrence(layer("rnn", 4, 1030)),
}


class Numbers:
    """Numbers for a recurrence, what must come of them, and cases for the driver."""

    def __init__(self, of: Recurrence, rng: np.random.Generator, T: int, B: int) -> None:
        self.of, self.T, self.B = of, T, B
        self.w = of.weights(rng)
        self.inputs = of.inputs(rng, T, B)
        self.program, tensors = of.program(self.w)
        self.tensors = [tensor.astype(np.float32) for tensor in tensors]

    def begun(self, kernel: tuple[str, Any], B: int, threads: int = 1) -> Case:
        counts = [self.program.values[value].count for value in self.program.outputs]
        isa, dtype = kernel
        case = Case(self.program.to_bytes(), self.tensors, counts, dtype, isa, B, threads)
        case.begin()
        return case

    def case(
        self,
        kernel: tuple[str, Any],
        pieces: list[int],
        rows: slice = slice(None),
        threads: int = 1,
    ) -> Case:
        """The rows of the batch that are named, in pieces of so many steps."""
        first, end, _ = rows.indices(self.B)
        case, done = self.begun(kernel, end - first, threads), 0
        for n in pieces:
            given = [x[done : done + n, rows] for x in self.inputs]
            case.run(n, given, whole=bool(self.program.looks_ahead), batch_first=bool(done % 2))
            done += n
        case.state()
        return case

    def pieces(self, rng: np.random.Generator) -> list[int]:
        """Numbers of steps that make T, some of them none; one of a program that looks ahead."""
        if self.program.looks_ahead:
            return [self.T]
        cuts = np.sort(rng.integers(0, self.T + 1, size=rng.integers(1, 9)))
        return [int(n) for n in np.diff([0, *cuts, self.T])]


def answered(driver: Driver, cases: list[Case]) -> list[tuple[Any, Any]]:
    """Of each case y (T, B, count), and the state (B, state_size)."""
    made = []
    for case, answer in zip(cases, driver.run(cases), strict=True):
        assert answer.error == "ok", answer.message
        began, *calls, state = answer.calls
        assert began == "ok"
        assert all(call.error == "ok" for call in calls)
        rows = [np.concatenate([call.rows[0][b] for call in calls]) for b in range(case.batch)]
        made.append((rows, state))
    return made


def close(actual: Any, expected: Any, dtype: Any, more: float = 1.0) -> None:
    """Within what rounding makes of numbers of size 1, or of `more` times as much."""
    atol = 1e-12 if dtype == np.float64 else 4e-5 * more
    np.testing.assert_allclose(actual, expected, rtol=atol, atol=atol)


@pytest.fixture(scope="module")
def driver() -> Driver:
    return driver_of("plain")


@pytest.mark.parametrize("name", RECURRENCES)
class TestEach:
    """One layer of every form."""

    def test_reference(self, driver, rng, name):
        """y and the states after a sequence are the reference's, on every kernel."""
        numbers = Numbers(RECURRENCES[name], rng, T=23, B=3)
        y, states = numbers.of.expected(numbers.w, numbers.inputs)
        kernels = driver.kernels()
        cases = [numbers.case(kernel, [numbers.T]) for kernel in kernels]
        for kernel, (rows, state) in zip(kernels, answered(driver, cases), strict=True):
            close(np.stack(rows, axis=1), y, kernel[1])
            if states:
                close(state, numbers.of.states_as_lying(states), kernel[1])

    def test_bits(self, driver, rng, name):
        """Pieces, the company of a batch and threads change no bit, nor do lanes.

        Threads by one kernel in turn.
        """
        numbers = Numbers(RECURRENCES[name], rng, T=31, B=7)
        bits, kernels = [], driver.kernels()
        shared = kernels[list(RECURRENCES).index(name) % len(kernels)]
        for kernel in kernels:
            several, more = (2, 3) if kernel == shared else (1, 1)
            at_once = numbers.case(kernel, [numbers.T])
            others = [
                (numbers.case(kernel, numbers.pieces(rng)), 0),
                (numbers.case(kernel, numbers.pieces(rng), threads=several), 0),
                (numbers.case(kernel, numbers.pieces(rng), slice(0, 1), threads=more), 0),
                (numbers.case(kernel, numbers.pieces(rng), slice(1, 3)), 1),
                (numbers.case(kernel, numbers.pieces(rng), slice(6, 7)), 6),
            ]
            (rows, state), *made = answered(driver, [at_once, *(case for case, _ in others)])
            for (_, first), (own, own_state) in zip(others, made, strict=True):
                for b, row in enumerate(own):
                    np.testing.assert_array_equal(row, rows[first + b])
                    np.testing.assert_array_equal(own_state[b], state[first + b])
            if kernel[0] in SAME_BITS:
                bits.append(rows)
        for rows in bits[1:]:
            np.testing.assert_array_equal(rows, bits[0])

    def test_lengths(self, driver, rng, name):
        """Rows of unlike lengths, and of unlike ages, each give what they give alone."""
        numbers = Numbers(RECURRENCES[name], rng, T=40, B=4)
        parts = [[7, 0, 18, 11], [12, 21, 0, 1]]
        if numbers.program.looks_ahead:
            parts = [[23, 0, 1, 40]]
        lengths = np.sum(parts, axis=0)
        for kernel in driver.kernels():
            together, done = numbers.begun(kernel, 4), np.zeros(4, int)
            for part in parts:
                given = [np.zeros((max(part), *x.shape[1:]), x.dtype) for x in numbers.inputs]
                for to, x in zip(given, numbers.inputs, strict=True):
                    for b, n in enumerate(part):
                        to[:n, b] = x[done[b] : done[b] + n, b]
                whole = bool(numbers.program.looks_ahead)
                together.run(max(part), given, lengths=part, whole=whole)
                done += part
            together.state()
            alone = [numbers.case(kernel, [int(n)], slice(b, b + 1)) for b, n in enumerate(lengths)]
            (rows, state), *made = answered(driver, [together, *alone])
            for b, ((own,), own_state) in enumerate(made):
                np.testing.assert_array_equal(rows[b], own)
                np.testing.assert_array_equal(state[b], own_state[0])


def test_nothing_is_read_or_written_elsewhere(rng):
    """A sanitizer watches some of every form."""
    driver = driver_of("address")
    for name in list(RECURRENCES)[::5]:
        numbers = Numbers(RECURRENCES[name], rng, T=7, B=3)
        for kernel in driver.kernels():
            answered(driver, [numbers.case(kernel, numbers.pieces(rng), threads=2)])


@pytest.mark.skipif("neon" not in BUILDS, reason="NEON is one of the other kernels here")
def test_neon_gives_the_same_bits(rng):
    """As a kernel for vectors that this processor has, of some of every form."""
    driver, emulated = driver_of("plain"), driver_of("neon")
    here = next((kernel for kernel in driver.kernels() if kernel[0] in SAME_BITS), None)
    if here is None:
        pytest.skip("this processor has no kernel for vectors")
    for name in list(RECURRENCES)[::4]:
        numbers = Numbers(RECURRENCES[name], rng, T=9, B=3)
        ((rows, _),) = answered(driver, [numbers.case(here, [numbers.T])])
        ((others, _),) = answered(emulated, [numbers.case(("neon", np.float32), [numbers.T])])
        for y, other in zip(rows, others, strict=True):
            np.testing.assert_array_equal(y, other, err_msg=name)


@pytest.mark.parametrize("name", LONG)
def test_long_sums(driver, rng, name):
    """Sums of several levels, made at once, beside one another and row by row."""
    numbers = Numbers(LONG[name], rng, T=9, B=4)
    y, _ = numbers.of.expected(numbers.w, numbers.inputs)
    bits = []
    for kernel in driver.kernels():
        cases = [
            numbers.case(kernel, [numbers.T]),
            numbers.case(kernel, [4, 1, 4], slice(0, 1)),
            numbers.case(kernel, [numbers.T], slice(0, 1), threads=2),
        ]
        (rows, _), *made = answered(driver, cases)
        close(np.stack(rows, axis=1), y, kernel[1], more=4)
        for (own,), _ in made:
            np.testing.assert_array_equal(own, rows[0])
        if kernel[0] in SAME_BITS:
            bits.append(rows)
    for rows in bits[1:]:
        np.testing.assert_array_equal(rows, bits[0])
