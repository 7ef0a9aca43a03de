"""What a verification found, and whether the model passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastlstm.verification.comparison import RESTART_STEPS, Comparison
from fastlstm.verification.errors import Errors

__all__ = ["ENGINE", "MOST_RATIO", "TOLERANCE", "Verdict", "Verification"]

Outcome = Literal["ok", "differs", "not compared"]

# The engine's evaluations, by name.
ENGINE = ("engine, sequences", "engine, step by step")

# The engine's largest error may be so many times the yardstick's. Against torch, this is promise 2.
# NumPy's tanh, exp and sums are slower and more exact: torch's errors are up to 2.7 times NumPy's.
MOST_RATIO = {"torch": 1.5, "NumPy": 4.0}

# And that of a source, whose arithmetic is not ours to promise anything about.
MOST_SOURCE_RATIO = 10.0

# The largest of many errors grows with their number: over ten times the steps, and of other inputs,
# it may be so many times what was measured when a model was quantised.
MOST_LOST_RATIO = 4.0

# Where rounding alone takes every evaluation off the exact trajectory, the errors at the end of it
# are chance, but not by so much: a state that is lost shows here, and not within a few steps.
MOST_DRIFT_RATIO = 100.0

# Of the largest output: a well-behaved model stays ten times below it, a wrong weight, gate
# or state far above, and below it a ratio of two errors says more about luck than about engines.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# Stretches of the sequence whose errors are told and drawn.
BLOCKS = 100


@dataclass(frozen=True)
class Verdict:
    """A sentence on one thing that was checked."""

    passed: bool
    text: str


# What a model and what it was made of can differ in.
ASPECTS = ("weights", "order of the layers", "functions", "numbers")

NOT_COMPARED = "not compared"

# Of what was not verified at conversion, what running the original does not show either: the text
# of tokens, and other lengths than the one that a program was made for.
UNSEEN = ("vocabulary", "was made for sequences of")


@dataclass(frozen=True, eq=False)
class Verification:
    """What :func:`fastlstm.verify` found; errors are absolute, against the exact evaluation.

    Attributes
    ----------
    drifts : tuple of Comparison
        Of each output, over the whole sequence, each evaluation carrying its own state on.
    judged : tuple of Comparison
        What the verdicts are about: `drifts`, or the sequences from the exact state that take their
        place where one diverges, those for the sources that could not follow them, and recorded
        numbers.
    exact_in : str
        What the equations were evaluated in: "float64" or "extended precision".
    yardstick_name : str
        Whose own error is the measure of the engine's: "torch", or "NumPy" where torch is not
        installed or lacks a layer.
    tolerance : float or None
        As given: error allowed in any case, relative to the largest output.
    dtypes : dict of str to numpy.dtype
        What each evaluation computes in.
    sources : tuple of str
        The evaluations that the model was said to come from.
    weights : str or None
        How the model's weights differ from those of another one; "" if in no bit, None if they were
        not compared bit by bit.
    original : str
        What the model was made of and was run beside it, or recorded, in words; "" if nothing was.
    left_out : tuple of str
        Outputs that it does not give.
    on_word : tuple of str
        What the conversion took on its caller's word, as its report says.
    notes : tuple of str
        What was shortened, and why, and how the original was called.
    quantised : tuple of Comparison
        Of each output of a model in fewer bytes, against the float64 equations with the weights
        that it was made of, where these were given: errors of it, of float32, and of torch's
        dynamic int8. They are told, not judged.
    lost : float
        The largest error that was measured when the model was quantised, relative to the largest
        output: what it was made of is not nearer than that.
    """

    drifts: tuple[Comparison, ...]
    judged: tuple[Comparison, ...]
    exact_in: str
    yardstick_name: str
    yardstick: str
    tolerance: float | None
    dtypes: Mapping[str, np.dtype[Any]]
    sources: tuple[str, ...]
    weights: str | None
    original: str
    left_out: tuple[str, ...]
    on_word: tuple[str, ...]
    notes: tuple[str, ...]
    quantised: tuple[Comparison, ...] = ()
    lost: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """ "ok" only if the original was run, and nothing differs or was left out."""
        if not self.agrees:
            return "differs"
        return "not compared" if self.not_compared else "ok"

    @property
    def passed(self) -> bool:
        """Whether the outcome is "ok"."""
        return self.outcome == "ok"

    @property
    def agrees(self) -> bool:
        """Whether nothing differs of what was compared: the engine, with what the model says."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def compared(self) -> dict[str, str]:
        """How each of ASPECTS was compared with what the model was made of, or that it was not."""
        found = dict.fromkeys(
            ASPECTS, f"by the outputs of {self.original}" if self.original else NOT_COMPARED
        )
        if self.weights is not None:
            found["weights"] = "bit for bit" + ", quantised" * bool(self.quantised)
        return found

    @property
    def not_compared(self) -> tuple[str, ...]:
        """What nothing was compared with, in sentences; none if all was."""
        left = [aspect for aspect, how in self.compared.items() if how == NOT_COMPARED]
        found = []
        if left:
            *some, last = left
            named = f"{', '.join(some)} and {last}" if some else last
            found.append(
                f"the {named}: what the model was made of was not run, so that nothing tells "
                f"whether they are its own"
            )
        return (
            *found,
            *(f"output {name!r}, which {self.original} lacks" for name in self.left_out),
        )

    @property
    def said(self) -> str:
        """What was compared with the original, in a sentence."""
        return f"compared by the outputs with {self.original}: {', '.join(ASPECTS)}"

    @property
    def not_verified(self) -> tuple[str, ...]:
        """What was taken on the caller's word and is in none of the numbers that were compared."""
        if not self.original:
            return self.on_word
        return tuple(line for line in self.on_word if any(word in line for word in UNSEEN))

    @property
    def drift(self) -> Comparison:
        """Of the output in which the engine is furthest off, for its size."""

        def off(comparison: Comparison) -> float:
            return _engine_error(comparison) / (comparison.scale or 1.0)

        return max(self.drifts, key=off)

    @property
    def diverges(self) -> bool:
        """Whether rounding alone takes every evaluation off the exact trajectory."""
        return self.judged[0] not in self.drifts

    @property
    def most_ratio(self) -> float:
        """How many times the yardstick's error the engine's may be."""
        return MOST_RATIO[self.yardstick_name]

    @property
    def error(self) -> float:
        """The engine's largest, where it is judged."""
        return max(_engine_error(comparison) for comparison in self.judged)

    @property
    def ratio(self) -> float:
        """The engine's largest error over the yardstick's; NaN if that made none."""
        first = self.judged[: len(self.drifts)]
        measures = [comparison.errors[self.yardstick].worst.error for comparison in first]
        ratios = [
            _engine_error(comparison) / measure
            for comparison, measure in zip(first, measures, strict=True)
            if measure
        ]
        return max(ratios, default=math.nan)

    def floor(self, comparison: Comparison, name: str) -> float:
        """The error that is allowed whatever the yardstick's."""
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = TOLERANCE[self.dtypes[name].name]
        return tolerance * comparison.scale

    def limit(self, comparison: Comparison, name: str) -> float:
        """The largest error with which an evaluation passes."""
        measure = comparison.errors[self.yardstick].worst.error
        ratio = self.most_ratio
        if self.diverges and comparison in self.drifts:
            ratio = MOST_DRIFT_RATIO
        elif name in self.sources:
            eps = [float(np.finfo(self.dtypes[one]).eps) for one in (name, self.yardstick)]
            ratio = MOST_SOURCE_RATIO * max(1.0, eps[0] / eps[1])
        lost = MOST_LOST_RATIO * self.lost * comparison.scale * (name in self.sources)
        return max(ratio * measure, self.floor(comparison, name), lost)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One for the engine, one for each source, one for the weights."""
        return tuple(self._verdicts())

    def _verdicts(self) -> Iterator[Verdict]:
        if not all(comparison.outputs for comparison in self.judged):
            why = "the outputs are not finite from the first step: nothing to compare"
            yield Verdict(False, why)
            return
        yield self._verdict("the engine", ENGINE)
        for name in self.sources:
            yield self._verdict(name, (name,))
        if self.weights is not None:
            as_source = ", quantised" * bool(self.quantised)
            text = self.weights or f"the weights are the source's{as_source}, bit for bit"
            yield Verdict(not self.weights, text)

    def _verdict(self, called: str, names: Sequence[str]) -> Verdict:
        """The worst of these evaluations, where it is furthest beyond its limit."""
        found = [
            (errors.worst.error, self.limit(comparison, name), errors, comparison.output)
            for comparison in dict.fromkeys((*self.judged, *self.drifts))
            for name, errors in comparison.errors.items()
            if name in names
        ]
        over = [one for one in found if not one[0] <= one[1]]
        if not over:
            most = max(c.errors[n].worst.error for c in self.judged for n in names if n in c.errors)
            return Verdict(True, f"{called} is off by at most {most:.2e}")
        error, limit, errors, output = max(
            over, key=lambda one: one[0] / one[1] if one[1] else math.inf
        )
        worst = errors.worst
        where = f"at step {worst.step:,}, row {worst.row}, feature {worst.feature}"
        where += f" of {output!r}" if len(self.drifts) > 1 else ""
        if error == math.inf:
            return Verdict(False, f"{called} has no row, or no finite number, {where}")
        return Verdict(False, f"{called} is off by {error:.2e} {where}, more than {limit:.2e}")

    def facts(self) -> dict[str, Any]:
        """Everything as JSON values; numbers that are not finite are still among them."""
        return {
            "outcome": self.outcome,
            "passed": self.passed,
            "compared": self.compared,
            "not_compared": list(self.not_compared),
            "not_verified": list(self.not_verified),
            "original": self.original,
            "verdicts": [vars(verdict) for verdict in self.verdicts],
            "exact_in": self.exact_in,
            "yardstick_name": self.yardstick_name,
            "ratio": self.ratio,
            "most_ratio": self.most_ratio,
            "diverges": self.diverges,
            "comparisons": [self._comparison_facts(comparison) for comparison in self.judged],
            "drift": [self._drift_facts(comparison) for comparison in self.drifts],
            "quantised": [
                {"output": one.output, "steps": one.steps, "scale": one.scale}
                | {
                    "evaluations": {
                        name: {"error": errors.worst.error, "rms": errors.total_rms}
                        for name, errors in one.errors.items()
                    }
                }
                for one in self.quantised
            ],
            "weights": self.weights,
            "notes": list(self.notes),
        }

    def _comparison_facts(self, comparison: Comparison) -> dict[str, Any]:
        return {
            "output": comparison.output,
            "starts": comparison.starts,
            "restart_steps": RESTART_STEPS if comparison.starts == "restarted" else None,
            "steps": comparison.steps,
            "outputs_compared": comparison.outputs,
            "batch_size": comparison.batch_size,
            "scale": comparison.scale,
            "evaluations": {
                name: vars(errors.worst)
                | {"rms": errors.total_rms}
                | {"limit": None if name == self.yardstick else self.limit(comparison, name)}
                for name, errors in comparison.errors.items()
            },
        }

    def _drift_facts(self, comparison: Comparison) -> dict[str, Any]:
        return {
            "output": comparison.output,
            "starts": comparison.starts,
            "steps": comparison.steps,
            "outputs_compared": comparison.outputs,
            "batch_size": comparison.batch_size,
            "scale": comparison.scale,
            "evaluations": {name: _course(errors) for name, errors in comparison.errors.items()},
        }

    def __str__(self) -> str:
        lines = [f"{'ok' if v.passed else 'FAILED'}: {v.text}" for v in self.verdicts]
        lines += [f"ok: {self.said}"] if self.passed else []
        lines += [f"not compared: {text}" for text in self.not_compared]
        lines += [f"not verified: {text}" for text in self.not_verified]
        ratio = "" if math.isnan(self.ratio) else f"{self.ratio:.2f} times {self.yardstick}'s error"
        about = f"{self.drift.steps:,} steps, batch of {self.drift.batch_size}"
        return "\n".join([*lines, ", ".join(filter(None, [about, ratio])), *self.notes])


def _engine_error(comparison: Comparison) -> float:
    """The larger of the engine's two."""
    errors = comparison.errors
    return max(errors[name].worst.error for name in ENGINE if name in errors)


def _course(errors: Errors) -> dict[str, Any]:
    blocks = errors.blocks(BLOCKS)
    return {
        "rms_of_thirds": list(errors.thirds),
        "growth": errors.growth,
        "grows": errors.grows,
        "last_steps": blocks.steps.tolist(),
        "largest": blocks.largest.tolist(),
        "rms": blocks.rms.tolist(),
    }
