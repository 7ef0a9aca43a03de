"""One output for a whole sequence."""

from __future__ import annotations

from typing import ClassVar

from fastlstm.spec.layer import SameSize, layer_kind

__all__ = ["Pool"]

# A mean counts its steps as float32; from there on it forgets what lies further back than that.
MAX_COUNT = 2**24


@layer_kind
class Pool(SameSize):
    """Of a whole sequence one row; of a stream, after each step, what it would be if it ended.

    `function` is ``"last"``, the row of the last step; ``"mean"``, the mean of all rows; or
    ``"final"``, which follows a bidirectional layer and takes the state that each direction ended
    with: the first half of the last row and the second half of the first (``h_n`` of PyTorch).
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
        return {f"{self.name}.mean": (1, self.size), f"{self.name}.count": (1, 1)}

    def counts(self) -> dict[str, int]:
        return {name: MAX_COUNT + 1 for name in self.state() if name.endswith(".count")}
