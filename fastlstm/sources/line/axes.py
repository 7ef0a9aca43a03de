"""What the axes of an array mean: time, batch or features, as far as that is known yet.

Whether the last axis of a convolution is time or the width of a frame shows only in what reads it
later. So an axis shares its :class:`Role` with the axes it was made of, and every operation narrows
down the roles of the axes it uses.

An axis of an array is a `Group`: the product of the axes it was merged of, none for one of size 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastlstm.errors import ConvertError

__all__ = [
    "ANY",
    "BATCH",
    "FEATURES",
    "POSITION",
    "TIME",
    "Axis",
    "Group",
    "Role",
    "Size",
    "leaves",
    "regroup",
    "settle",
    "significant",
    "size_of",
]

TIME = frozenset({"time"})
BATCH = frozenset({"batch"})
FEATURES = frozenset({"features"})
POSITION = TIME | BATCH
ANY = POSITION | FEATURES


class Role:
    """What an axis can still be, and what narrowed it down."""

    def __init__(self, possible: frozenset[str] = ANY) -> None:
        self.possible = possible
        self.is_length = False  # of what a convolution ran along
        self._uses: list[tuple[frozenset[str], str]] = []

    def settle(self, wanted: frozenset[str], name: str) -> None:
        """Keep only what is `wanted`, which the operation `name` asks for.

        Raises
        ------
        ConvertError
            If nothing is left, naming the two operations that disagree.
        """
        if self.possible & wanted:
            self.possible &= wanted
            self._uses.append((wanted, name))
            return
        against = [(len(use), use, by) for use, by in self._uses if not use & wanted]
        _, use, by = min(against, key=lambda one: one[0], default=(0, self.possible, ""))
        because = f"{by!r:.200} takes it" if by else "it can only be taken"
        raise ConvertError(
            f"{name!r:.200} takes an axis as {_words(wanted)}, but {because} as {_words(use)}; "
            f"expected each axis to be one of time, batch and features throughout"
        )

    def is_(self, role: frozenset[str]) -> bool:
        return self.possible <= role


def _words(role: frozenset[str]) -> str:
    return " or ".join(word for word in ("time", "batch", "features") if word in role)


class Axis:
    """One axis: its size, None where that is not known, and its role."""

    def __init__(self, size: int | None, role: Role) -> None:
        self.size = size
        self.role = role
        self.parts: tuple[Axis, Axis] | None = None
        self._half: Axis | None = None
        # As many positions as `_base` has, and `_more`.
        self._base, self._more = self, 0
        self._longer: dict[int, Axis] = {}

    def longer(self, n: int) -> Axis:
        """The axis with `n` positions more; the same one for the same length."""
        base, more = self._base, self._more + n
        if not more:
            return base
        if more not in base._longer:
            size = None if base.size is None else base.size + more
            other = Axis(size, base.role)
            other._base, other._more = base, more
            base._longer[more] = other
        return base._longer[more]

    def beyond(self, other: Axis) -> int | None:
        """How many positions it has more than another; None if that is not known."""
        return self._more - other._more if self._base is other._base else None

    def split(self, first: int) -> tuple[Axis, Axis]:
        """Two axes whose product, the first one outside, is this."""
        assert self.size is not None
        self.parts = Axis(first, self.role), Axis(self.size // first, self.role)
        return self.parts

    @property
    def half(self) -> Group:
        """What is left of the axis, of an even size, in each half of it."""
        assert self.size is not None
        if self.size == 2:
            return ()
        if self._half is None:
            self._half = Axis(self.size // 2, self.role)
        return (self._half,)


Group = tuple[Axis, ...]


def leaves(group: Iterable[Axis]) -> Group:
    """The axes that those of a group were split into."""
    found: list[Axis] = []
    for axis in group:
        found += leaves(axis.parts) if axis.parts else [axis]
    return tuple(found)


def significant(group: Iterable[Axis]) -> Group:
    """The leaves that are more than an axis of size 1."""
    return tuple(axis for axis in leaves(group) if axis.size != 1)


def size_of(group: Group) -> int | None:
    sizes = [axis.size for axis in group]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def settle(group: Iterable[Axis], wanted: frozenset[str], name: str) -> None:
    """Settle the roles of a group; one position alone can be anything."""
    for axis in significant(group):
        axis.role.settle(wanted, name)


@dataclass(frozen=True)
class Size:
    """A product of a number and of sizes that are not known."""

    number: int = 1
    unknown: tuple[Axis, ...] = ()

    @classmethod
    def of(cls, size: int | Size | Iterable[Axis]) -> Size:
        if isinstance(size, int | Size):
            return cls(size) if isinstance(size, int) else size
        axes = leaves(size)
        number = math.prod(axis.size for axis in axes if axis.size is not None)
        return cls(number, tuple(axis for axis in axes if axis.size is None))

    def __mul__(self, other: int | Size) -> Size:
        other = Size.of(other)
        return Size(self.number * other.number, self.unknown + other.unknown)

    __rmul__ = __mul__

    def __truediv__(self, other: int | Size) -> Size | None:
        """The other factor; None if `other` is none."""
        other = Size.of(other)
        left = Counter(self.unknown)
        left.subtract(Counter(other.unknown))
        if not other.number or self.number % other.number or any(n < 0 for n in left.values()):
            return None
        return Size(self.number // other.number, tuple(left.elements()))

    def __floordiv__(self, other: int | Size) -> Size:
        made = self / other
        if made is None:
            raise ValueError("a size that is not known is divided, perhaps with a remainder")
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and (self.number, Counter(self.unknown)) == (
            other.number,
            Counter(other.unknown),
        )

    def __hash__(self) -> int:
        return hash((self.number, frozenset(Counter(self.unknown).items())))


def regroup(groups: Sequence[Group], shape: Sequence[int | Size], name: str) -> list[Group]:
    """The groups of a reshaped array; -1 stands for whatever is left.

    Raises
    ------
    ConvertError
        If the numbers of elements differ or are not known to agree, or axes would be mixed.
    """
    wanted = [None if size == -1 else Size.of(size) for size in shape]
    refusal = ConvertError(
        f"{name!r:.200} reshapes {_shape_text([Size.of(group) for group in groups])} to "
        f"{_shape_text(wanted)}; expected axes to be merged or taken apart whole"
    )
    groups = list(map(leaves, groups))
    if None in wanted:
        known = math.prod((size for size in wanted if size is not None), start=Size())
        rest = Size.of(sum(groups, ())) / known
        if wanted.count(None) > 1 or rest is None:
            raise refusal
        wanted = [rest if size is None else size for size in wanted]
    # The axes that stay as they are, on the left and on the right.
    alike = [Size.of(group) == size for group, size in zip(groups, wanted, strict=False)]
    head = (*alike, False).index(False)
    groups, wanted, left_alone = groups[head:], wanted[head:], groups[:head]
    backwards = zip(groups[::-1], wanted[::-1], strict=False)
    tail = (*(Size.of(group) == size for group, size in backwards), False).index(False)
    right_alone = groups[len(groups) - tail :]
    queue = [axis for group in groups[: len(groups) - tail] for axis in group]
    made: list[Group] = []
    for size in wanted[: len(wanted) - tail]:
        taken: list[Axis] = []
        left = size
        if left == Size() and queue and queue[0].size == 1:
            taken.append(queue.pop(0))
        while left is not None and left != Size():
            if not queue:
                raise refusal
            axis = queue.pop(0)
            if axis.size == 1:
                taken.append(axis)
                continue
            rest = left / Size.of((axis,))
            if rest is None and axis.size and not left.unknown and left.number > 1:
                if axis.size % left.number:
                    raise refusal
                axis, behind = axis.split(left.number)
                queue.insert(0, behind)
                rest = Size()
            if rest is None:
                raise refusal
            taken.append(axis)
            left = rest
        made.append(tuple(taken))
    if significant(queue):
        raise refusal
    return [*left_alone, *made, *right_alone]


def _shape_text(sizes: Sequence[Size | None]) -> str:
    texts = ["?" if size is None or size.unknown else str(size.number) for size in sizes]
    return f"({', '.join(texts)}{',' * (len(texts) == 1)})"
