"""What a client asks of a model and what it is answered, in no protocol's words."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

__all__ = ["STATE", "Answer", "Kind", "Name", "Request", "RequestError", "checked_name"]

Array = npt.NDArray[Any]
Name = int | str  # of a sequence, as its client calls it; 5 and "5" are two

# The tensor in which a client keeps the state itself: the bytes of pool.dumps.
STATE = "stream_state"

# Parameters of a request that are looked at.
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")

MOST_NAME = 256  # characters of a sequence's name


class Kind(enum.Enum):
    """Why a request is refused; each protocol has a code of its own for it."""

    INVALID = "invalid"  # it does not fit the model, and never will
    UNKNOWN = "unknown"  # there is no such model or sequence
    FULL = "full"  # too much is going on; later it may fit
    STOPPING = "stopping"
    UNAUTHORISED = "unauthorised"
    FAILED = "failed"  # it was run, and something went wrong


class RequestError(Exception):
    """A request that is not answered, in words for the client."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(slots=True)
class Request:
    """A block of steps of one sequence.

    Parameters
    ----------
    inputs : mapping of str to array (T, ...)
        Rows of each input; of one that is held for a sequence, its only row, when it starts.
    sequence : int or str, optional
        Without one, the request is a sequence of its own.
    start, end : bool
        Whether the sequence starts, or ends, with it.
    state : bytes, optional
        What a request without a sequence goes on from.
    outputs : collection of str
        Names of those that are wanted; all if there are none.
    """

    inputs: Mapping[str, Array]
    sequence: Name | None = None
    start: bool = False
    end: bool = False
    state: bytes | None = None
    outputs: tuple[str, ...] = ()


@dataclass(slots=True)
class Answer:
    """What a request gave.

    Parameters
    ----------
    outputs : dict of str to array (T', ...)
    steps : int
        That the sequence has made, up to those of the request.
    state : bytes, optional
        Where a request without a sequence has arrived.
    """

    outputs: dict[str, Array] = field(default_factory=dict)
    steps: int = 0
    state: bytes | None = None


def checked_name(given: Name) -> Name:
    """A sequence's name that may be remembered."""
    if isinstance(given, str) and len(given) > MOST_NAME:
        raise RequestError(
            Kind.INVALID,
            f"sequence_id has {len(given)} characters; expected at most {MOST_NAME}, or an integer",
        )
    if isinstance(given, str) and not given.isascii():
        try:
            given.encode()
        except UnicodeEncodeError as error:
            raise RequestError(Kind.INVALID, f"sequence_id is no text: {error.reason}") from None
    if isinstance(given, int) and not -(2**63) <= given < 2**63:
        raise RequestError(
            Kind.INVALID,
            f"sequence_id has {given.bit_length()} bits; expected a signed integer of 64",
        )
    return given


def check_parameters(of: str, given: Iterable[str], known: tuple[str, ...] = ()) -> None:
    """Refuse parameters that would not do what they ask for."""
    others = [name for name in given if name not in known]
    if others:
        raise RequestError(
            Kind.INVALID,
            f"{of:.200} has parameter {others[0]!r:.80}, which does nothing here; expected "
            f"{', '.join(known) or 'none'}",
        )
