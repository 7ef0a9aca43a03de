"""Store: where each stream is after its last answer, for replicas that may die."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

Name = int | str  # of a sequence, as its client calls it


class Kept(NamedTuple):
    """What a stream has become, and the answer that tells.

    Parameters
    ----------
    version : int
        No other change of any stream has it.
    stream : bytes or None
        None of one that has ended, whose last answer is still known.
    request : str
        The id of the request that was answered, which may be asked again.
    answer : bytes
    """

    version: int
    stream: bytes | None
    request: str
    answer: bytes


class Store:
    """What replicas have answered: an actor of its own, as they come and go.

    A change names the version that it follows, so that of two replicas that have one stream, as
    while the router learns of a new one, only one goes on with it.

    Parameters
    ----------
    idle : float
        Seconds after which a stream that nobody steps is forgotten.
    """

    def __init__(self, idle: float) -> None:
        self.idle, self.changes = idle, 0
        self.kept: OrderedDict[Name, tuple[float, Kept]] = OrderedDict()  # the oldest first

    def get(self, name: Name) -> Kept | None:
        """What is known of a stream."""
        self._forget()
        return self.kept[name][1] if name in self.kept else None

    def put(
        self, name: Name, follows: int | None, stream: bytes | None, request: str, answer: bytes
    ) -> Kept | None:
        """Keep what a stream has become.

        Parameters
        ----------
        follows : int or None
            The version that was stepped; None for a stream that starts anew, whatever was before.

        Returns
        -------
        Kept or None
            None if another has changed the stream meanwhile, and it stays as it is.
        """
        known = self.get(name)
        if follows is not None and (known is None or known.version != follows):
            return None
        self.changes += 1
        made = Kept(self.changes, stream, request, answer)
        self.kept[name] = time.monotonic(), made
        self.kept.move_to_end(name)
        return made

    def _forget(self) -> None:
        before = time.monotonic() - self.idle
        while self.kept and next(iter(self.kept.values()))[0] < before:
            self.kept.popitem(last=False)
