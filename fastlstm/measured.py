"""What a model lost when its matrices were stored in fewer bytes, as it was measured then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Errors", "Measured"]

MAX_STEPS = 2**31 - 1


class Errors(NamedTuple):
    """Of one output, against the equations in float64 with the weights that were not reduced.

    Parameters
    ----------
    largest, rms : float
        Errors of the model with reduced tensors.
    float32_largest, float32_rms : float
        Those of the model that it was made of, in float32.
    size : float
        The largest exact number.
    """

    largest: float
    rms: float
    float32_largest: float
    float32_rms: float
    size: float


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Parameters
    ----------
    steps : int
        Of the sequence, each from the state that the last one left.
    calibrated : bool
        Whether its inputs were given; else they were random.
    outputs : mapping of str to Errors
    """

    steps: int
    calibrated: bool
    outputs: Mapping[str, Errors]

    def relative(self, least: float) -> float:
        """The largest error, relative to the largest number of its output, or to `least`."""
        return max(one.largest / max(least, one.size) for one in self.outputs.values())

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values."""
        outputs = {name: errors._asdict() for name, errors in self.outputs.items()}
        return {"steps": self.steps, "calibrated": self.calibrated, "outputs": outputs}

    @classmethod
    def from_dict(cls, entry: object, outputs: Mapping[str, str]) -> Measured:
        """The inverse of :meth:`to_dict`, strict.

        Raises
        ------
        ValueError
            If a field is missing, unknown, of the wrong type or out of range, or the outputs are
            not those of the graph, which are given.
        """
        if not isinstance(entry, dict) or entry.keys() != {"steps", "calibrated", "outputs"}:
            raise ValueError("'precision' does not have the fields steps, calibrated and outputs")
        steps, calibrated, found = entry["steps"], entry["calibrated"], entry["outputs"]
        if type(steps) is not int or not 1 <= steps <= MAX_STEPS or type(calibrated) is not bool:
            raise ValueError(f"'precision' has {steps!r:.40} steps, calibrated {calibrated!r:.40}")
        if not isinstance(found, dict) or found.keys() != outputs.keys():
            raise ValueError("'precision' has other outputs than the graph")
        return cls(steps, calibrated, {name: _errors(found[name]) for name in outputs})


def _errors(entry: object) -> Errors:
    if not isinstance(entry, dict) or entry.keys() != {*Errors._fields}:
        raise ValueError(
            f"errors in 'precision' do not have the fields {', '.join(Errors._fields)}"
        )
    for name, value in entry.items():
        if type(value) is not float or not 0 <= value < math.inf:
            raise ValueError(f"{name} in 'precision' is {value!r:.40}; expected a number from 0 on")
    return Errors(**entry)
