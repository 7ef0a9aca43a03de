"""Where the tensors that a recipe names lie: below a path, in a stack of any numbers."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.state_dict import Tensor
from fastlstm.sources.recipe.entries import Entry, Stacked

__all__ = ["Names", "Place", "first_number", "places"]

# What ends a path before a name. Those of MXNet and Paddle end with "_"; "." and "/" go before it.
_FIRM, _LOOSE = "./", "_"
_PART = re.compile(r"(.+)\[(\d{1,4})(?:/(\d{1,4}))?\]", re.DOTALL)


class Names:
    """Tensors by the names that recipes call them.

    TensorFlow's names end with ``:0``, with which a recipe may dispense. A name that ends with
    ``[k]`` is entry k, along the first axis, of the tensor that is called so without it, and one
    that ends with ``[k/n]`` part k of n equal ones.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self._starts = sorted(tensors)
        self._ends = sorted(name[::-1] for name in tensors)

    def ending(self, text: str) -> Iterator[str]:
        """Names in the file that end with a text."""
        wanted = text[::-1]
        for at in range(bisect.bisect_left(self._ends, wanted), len(self._ends)):
            if not self._ends[at].startswith(wanted):
                return
            yield self._ends[at][::-1]

    def beginning(self, path: str) -> int:
        """How many names in the file begin with a path, which is not empty."""
        behind = path[:-1] + chr(ord(path[-1]) + 1)
        return bisect.bisect_left(self._starts, behind) - bisect.bisect_left(self._starts, path)

    def forms(self, name: str) -> tuple[str, ...]:
        """Names in the file that a name of a recipe may stand for."""
        part = _PART.fullmatch(name)
        plain = [name, part[1]] if part else [name]
        return tuple(f for form in plain for f in (form, f"{form}:0"))

    def find(self, name: str) -> Tensor | None:
        """The tensor of a name, or the part of one; its name is that in the file."""
        part = _PART.fullmatch(name)
        for form in (name, f"{name}:0"):
            if form in self.tensors:
                return self.tensors[form]
        whole = self.find(part[1]) if part and not _PART.fullmatch(part[1]) else None
        if part is None or whole is None or not whole.shape:
            return None
        k, n, rows = int(part[2]), int(part[3] or 0), whole.shape[0]
        if n and k < n and rows % n == 0:
            size = rows // n
            value = whole.value[k * size : (k + 1) * size]
            return replace(whole, shape=(size, *whole.shape[1:]), value=value)
        if n or k >= rows:
            return None
        return replace(whole, shape=whole.shape[1:], value=whole.value[k])


class Place:
    """One place where an entry's tensors are, and the names of each copy of the layer there.

    Parameters
    ----------
    entry : Entry
    path : str
        What stands before every name, with the mark that ends it.
    first : int
        The number of the first layer of a stack, which stands for ``{layer}``.
    """

    def __init__(self, entry: Entry, path: str = "", first: int = 0) -> None:
        self.entry, self.path, self.first = entry, path, first

    @property
    def name(self) -> str:
        """The path without the mark that ends it."""
        return self.path.rstrip(_FIRM + _LOOSE)

    def full(self, part: Stacked, copy: tuple[int, int]) -> str:
        """The full name of a tensor of a copy: (number within the stack, direction)."""
        number, direction = copy
        directions = 1 + self.entry.bidirectional
        name = part.names[number * directions + direction if len(part.names) > 1 else 0]
        layers = self.entry.layers
        layer = layers[number] if layers else str(self.first + number)
        name = name.replace("{layer}", layer)
        if self.entry.directions:
            name = name.replace("{direction}", self.entry.directions[direction])
        return self.path + name

    def names(self, copy: tuple[int, int] = (0, 0)) -> list[str]:
        """Full names of the tensors of one copy."""
        return list(
            dict.fromkeys(self.full(p, copy) for s in self.entry.tensors.values() for p in s
                          if p.names)
        )  # fmt: skip

    def copies(self, is_there: Callable[[str], bool]) -> list[tuple[int, int]]:
        """(number, direction) of each layer of the stack, in PyTorch's order."""
        entry = self.entry
        parts = [part for stack in entry.tensors.values() for part in stack if part.names]

        def any_there(copy: tuple[int, int]) -> bool:
            moving = [p for p in parts if any("{" in name for name in p.names)]
            return any(is_there(self.full(part, copy)) for part in moving)

        both = entry.bidirectional or (bool(entry.directions) and any_there((0, 1)))
        listed = max(len(part.names) for part in parts) // (1 + entry.bidirectional)
        depth = len(entry.layers) or listed
        if not entry.layers and any("{layer}" in part.names[0] for part in parts):
            while any_there((depth, 0)):
                depth += 1
        return [(n, d) for n in range(depth) for d in range(1 + both)]


def first_number(entry: Entry, names: Iterable[str]) -> int:
    """The smallest number that ``{layer}`` is in the names there are; 0 if it is in none."""
    templates = (p.names[0] for stack in entry.tensors.values() for p in stack if p.names)
    template = next((name for name in templates if "{layer}" in name), None)
    if template is None or entry.layers:
        return 0
    if entry.directions:
        template = template.replace("{direction}", entry.directions[0])
    first, *others = map(re.escape, _PART.sub(r"\1", template).split("{layer}"))
    text = rf"(?:^|(?<=[./_])){first}(?P<n>0|[1-9]\d{{0,5}}){'(?P=n)'.join(others)}(?::0)?$"
    numbers = (int(match["n"]) for name in names if (match := re.search(text, name)))
    return min(numbers, default=0)


def places(names: Names, wanted: Iterable[str]) -> dict[str, set[str]]:
    """What stands before the names that end with those wanted, and which of them are there."""
    found: dict[str, set[str]] = {}
    for name in wanted:
        for form in names.forms(name):
            if form in names.tensors:
                found.setdefault("", set()).add(name)
            for mark in _FIRM + _LOOSE:
                for full in names.ending(mark + form):
                    found.setdefault(full[: len(full) - len(form)], set()).add(name)
    return found


def paths(names: Names, wanted: Sequence[str], most: int) -> list[str]:
    """Paths, "" or ending firmly, below which all of the names wanted are.

    Raises
    ------
    ConvertError
        If the first of them is there more than `most` times.
    """
    starts: list[str] = []
    for form in names.forms(wanted[0]):
        starts += [""] * (form in names.tensors)
        for mark in _FIRM:
            ends = itertools.islice(names.ending(mark + form), most + 1)
            starts += [full[: len(full) - len(form)] for full in ends]
    if len(starts) > most:
        raise ConvertError(
            f"a tensor is called {wanted[0]!r:.200} at more than {most} places; expected those of "
            f"a model: choose a part with prefix="
        )
    # An entry of "lstm_cell/kernel" is not what "basic_lstm_cell/kernel" is, so "_" ends no path.
    return [
        start
        for start in dict.fromkeys(starts)
        if all(names.find(start + name) is not None for name in wanted)
    ]


def best(found: Mapping[str, Collection[str]], wanted: Collection[str]) -> list[str]:
    """The places where all are, those with a path that ends firmly if there are any."""
    whole = [start for start, names in found.items() if len(names) == len(wanted)]
    if "" in whole:
        return [""]
    return [start for start in whole if start[-1] in _FIRM] or whole
