"""One output for a whole sequence."""

from __future__ import annotations

from typing import ClassVar

from chain.layer import SameSize, layer_kind

__all__ = ["Pool"]

# A mean counts its steps in two digits, which float32 holds exactly; from the largest such number
# on it forgets what lies further back.
COUNT_BASE = 2**24


@layer_kind
class Pool(SameSize):
    """Of a whole sequence one row; of a stream, after each step, what it would be if it ended.

    `function` is ``"last"``, the row of the last step; ``"mean"``, the mean of all rows; or
    ``"final"``, which follows a bidirectional layer and takes the state that each direction ended
    with: the first half of the last row and the second half of the first (``h_n`` of PyTorch).

    A mean keeps twice the digits of its rows: in its state, ``mean[0]`` is the mean, ``mean[1]``
    what rounding took from it, and ``count[0] + COUNT_BASE * count[1]`` the rows it is made of.
    """

    function: str
    size: int
    kind: ClassVar[str] = "pool"
    pools: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.function not in ("last", "mean", "final"):
            raise self._refused("function", "'last', 'mean' or 'final'")

    @property
    def looks_ahead(self) -> str:
        return "takes what two directions ended with" if self.function == "final" else ""

    def steps(self, T: int) -> int:
        return min(T, 1)

    def state(self) -> dict[str, tuple[int, int]]:
        if self.function != "mean":
            return {}
        return {f"{self.name}.mean": (2, self.size), f"{self.name}.count": (2, 1)}

    def counts(self) -> dict[str, int]:
        return {name: COUNT_BASE for name in self.state() if name.endswith(".count")}
