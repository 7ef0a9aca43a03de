"""How a source is called: what its arguments and outputs are, and where time and the batch lie."""

from __future__ import annotations

import json
from dataclasses import dataclass

__all__ = ["BATCH", "TIME", "Argument", "Call"]

BATCH, TIME = "batch", "time"
ROLES = ("rows", "state", "constant", "lengths")


@dataclass(frozen=True)
class Argument:
    """An array that a source is given, or gives.

    Parameters
    ----------
    name : str
        As the source calls it; of what a function returns, its place, as ``"[1][0]"``.
    axes : tuple of "batch", "time" or int
        What each axis is; the size of those that are part of a row.
    role : str
        ``"rows"``: an input or output of the graph, `value`; ``"state"``: what the next call is
        given, `value` being the argument, or the output, at the other end; ``"constant"``: the same
        in every call, as the conversion was told, `value` being that as JSON text; ``"lengths"``.
    value : str
    """

    name: str
    axes: tuple[str | int, ...]
    role: str = "rows"
    value: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.axes))})"


@dataclass(frozen=True)
class Call:
    """How a source is called: what its arguments and outputs are.

    A source without an axis of time computes one step a call.
    """

    arguments: tuple[Argument, ...]
    outputs: tuple[Argument, ...]

    def to_json(self) -> str:
        """As a note of a model file keeps it."""
        return json.dumps(
            {
                side: [[a.name, list(a.axes), a.role, a.value] for a in getattr(self, side)]
                for side in ("arguments", "outputs")
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Call:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        ValueError
            If the text, which is of a file that may be anyone's, is something else.
        """
        try:
            sides = json.loads(text)
            return cls(*(tuple(map(_argument, sides[side])) for side in ("arguments", "outputs")))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"the note on how the source is called is damaged: {error}") from None

    def __str__(self) -> str:
        return ", ".join(map(str, self.arguments))


def _argument(entry: list[object]) -> Argument:
    name, axes, role, value = entry
    sound = isinstance(name, str) and isinstance(value, str) and role in ROLES
    if not sound or not isinstance(axes, list):
        raise ValueError(f"an argument is {entry!r:.80}")
    for axis in axes:
        if axis not in (BATCH, TIME) and (type(axis) is not int or not 0 <= axis < 2**31):
            raise ValueError(f"an axis is {axis!r:.80}")
    return Argument(str(name), tuple(axes), str(role), str(value))
