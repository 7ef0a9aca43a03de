"""Which arrays a forward takes: those of the usual axes, with the sizes that its layers name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.forward import STATE_NAME
from fastlstm.sources.live.subject import Subject

__all__ = ["Array", "Given", "Sizes", "arguments", "candidates"]

Sizes = tuple[int | None, ...]

B, T = 2, 11  # sizes that are tried of the batch and of time
LONGER = (75, 600)  # of time, for kernels that are longer
MOST_SIZES = 1024  # of features that nothing names
MOST_STEPS = 128  # of windows of a fixed length
MOST_TRIES = 20_000
MOST_ALIKE = 12  # ways of giving other arguments that all fail for one reason: that of the first
MOST_WAYS = 100  # in which the arguments beside the first can be given

# Axes that are tried, the most usual first: b the batch, t time, f features.
_REAL = (
    "btf",
    "tbf",
    "bft",
    "bf",
    "tf",
    "bt",
    "b1f",
    "bf1",
    "1bf",
    "b1t",
    "btf1",
    "b1tf",
    "f",
    "t",
)
_TOKENS = ("bt", "tb", "t", "b")

_LENGTHS = re.compile(r"(?:.*_)?(?:len|lens|lengths?|seq_?lens?|x_?lens?|sizes)(?:_.*)?", re.I)
_STATEFUL = {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"}


@dataclass(frozen=True)
class Array:
    """An array that forward is given.

    Parameters
    ----------
    place : str
        In the arguments, as ``"hx[0]"``.
    shape : tuple of int or None
        None for each axis that can be of any size: the batch and time.
    tried : tuple of int
        The sizes that it was tried with.
    pattern : str
        What each axis was tried as: b the batch, t time, f features, 1 none of them.
    kind : {"float", "int", "lengths"}
    state : bool
        Whether it can be what the call before returned.
    """

    place: str
    shape: Sizes
    tried: tuple[int, ...]
    pattern: str
    kind: str = "float"
    state: bool = False

    @property
    def axes(self) -> dict[str, int]:
        """The sizes that each axis was tried with, by its letter."""
        return dict(zip(self.pattern, self.tried, strict=True))


@dataclass(frozen=True)
class Given:
    """What forward is given.

    Parameters
    ----------
    arrays : tuple of Array
        In the order of the arguments.
    nested : dict of str to object
        Argument -> the place of its array, or a tuple of them.
    """

    arrays: tuple[Array, ...]
    nested: dict[str, Any]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The sizes that each array was tried with, by its place."""
        return {one.place: one.tried for one in self.arrays}

    def is_whole(self, subject: Subject) -> bool:
        """Whether every argument that can be given is."""
        return all(name in self.nested for name in subject.optional)


def arguments(
    subject: Subject, given: Given, sizes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict[str, Any]:
    """Random arrays of these sizes, as forward takes them; integers and states are 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def made(one: Array) -> Any:
        shape = sizes[one.place]
        if one.kind == "lengths":
            # All rows are as long as can be: the lengths of others, the model is told when it runs.
            return torch.full(shape, _steps(given, sizes), dtype=torch.int64)
        if one.kind == "int":
            return torch.zeros(shape, dtype=torch.int64)
        return torch.randn(shape, generator=generator, dtype=subject.dtype)

    arrays = {one.place: made(one) for one in given.arrays}
    return {
        name: tuple(arrays[place] for place in places)
        if isinstance(places, tuple)
        else arrays[places]
        for name, places in given.nested.items()
    }


def _steps(given: Given, sizes: Mapping[str, tuple[int, ...]]) -> int:
    """How many steps the first array has."""
    first = given.arrays[0]
    return sizes[first.place][first.pattern.index("t")]


def candidates(
    subject: Subject, input_size: int | None, shapes: Mapping[str, Sizes]
) -> Iterator[Given]:
    """What forward takes, of all that is tried, without an error.

    Parameters
    ----------
    subject : Subject
    input_size : int, optional
        Features of a step.
    shapes : mapping of str to tuple of (int or None)
        Of arguments, as they were said.
    """
    search = _Search(subject, input_size, shapes)
    needed = tuple(subject.needed[1:])
    firsts: dict[Array, None] = {}
    for given in search.found(needed):
        firsts[given.arrays[0]] = None
        yield given
    more = [(name,) for name in subject.optional]
    for names in [*more, *([tuple(subject.optional)] if len(more) > 1 else [])]:
        others = (*needed, *names)
        yield from search.taken(firsts, others) if firsts else search.found(others)


class _Search:
    """Tries what a forward takes."""

    def __init__(
        self, subject: Subject, input_size: int | None, shapes: Mapping[str, Sizes]
    ) -> None:
        self.subject, self.input_size, self.shapes = subject, input_size, shapes
        self.features = [input_size] if input_size else _features(subject)
        self.tries, self.reason = 0, ""
        self._known_ways: dict[Any, list[Any]] = {}
        unknown = [n for n in shapes if n not in (*subject.needed, *subject.optional)]
        if unknown:
            raise ConvertError(
                f"inputs= names {unknown[0]!r:.80}, and forward takes "
                f"{', '.join((*subject.needed, *subject.optional)):.200}"
            )
        kinds = {type(part).__name__ for part in subject.module.modules()}
        self.tokens = bool(kinds & {"Embedding", "EmbeddingBag"})

    def held(self) -> Iterator[tuple[int, int]]:
        """Rows of batches that arrays of the modules were made for, and steps."""
        held = {n for t in self.subject.module.buffers() for n in t.shape[:2]}
        held |= {n for v in self.subject.held().values() for n in getattr(v, "shape", ())[:2]}
        yield from ((n, T) for n in sorted(held) if 2 < n < 512)

    def found(self, others: tuple[str, ...]) -> Iterator[Given]:
        """What forward takes, of the first sizes of the batch and of time that it takes at all."""
        found = False
        for rows, steps in ((B, T), (1, T), *((B, n) for n in LONGER), *self.held()):
            if found and (rows, steps) != (1, T):
                return
            for given in self.taken(self._firsts(rows, steps), others):
                found = True
                yield given
        if not self.shapes:
            yield from self._sizes(others)

    def taken(self, firsts: Iterable[Array], others: tuple[str, ...]) -> Iterator[Given]:
        """What forward takes; last, what it would take with any features."""
        any_size: list[Given] = []
        for first in firsts:
            reasons: list[str] = []
            for given in self._with(first, others):
                if not self._runs(given):
                    reasons = [r for r in reasons if r == self.reason] + [self.reason]
                    if len(reasons) == MOST_ALIKE:
                        break
                    continue
                if not self.shapes and self._takes_longer(given):
                    continue
                if self.input_size is None and not self.shapes and self._takes_any(given):
                    any_size.append(given)
                else:
                    yield given
        yield from any_size

    def _sizes(self, others: tuple[str, ...]) -> Iterator[Given]:
        """Sizes that no layer names: of features, and of windows of a fixed length."""
        name, steps = self._name, range(2, MOST_STEPS)
        searches: list[Iterable[Array]] = []
        if self.input_size is None:
            sizes = range(1, MOST_SIZES)
            searches += [[_array(name, p, n, B, T) for n in sizes] for p in ("btf", "bf")]
        for pattern, size in itertools.product(("btf", "bft", "tbf"), self.features):
            searches.append([_array(name, pattern, size, B, n, fixed=True) for n in steps])
        for firsts in searches:
            found = [*self._only(firsts, others)]
            yield from found
            if found:
                return

    def _only(self, firsts: Iterable[Array], others: tuple[str, ...]) -> Iterator[Given]:
        """What forward takes, if that is one size alone."""
        found: dict[Array, list[Given]] = {}
        for first in firsts:
            for given in self._with(first, others):
                if self._runs(given):
                    found.setdefault(first, []).append(given)
            if len(found) > 1:
                return
        for taken in found.values():
            yield from taken

    @property
    def _name(self) -> str:
        return self.subject.needed[0] if self.subject.needed else "input"

    def _firsts(self, rows: int, steps: int) -> Iterator[Array]:
        """The first argument."""
        name = self._name
        kinds: tuple[tuple[str, tuple[str, ...]], ...] = (("float", _REAL), ("int", _TOKENS))
        for kind, patterns in kinds[::-1] if self.tokens else kinds:
            if name in self.shapes:
                yield _said(name, self.shapes[name], rows, steps, kind)
                continue
            for pattern in patterns:
                for size in self.features if "f" in pattern else [0]:
                    if rows == B or "b" in pattern:
                        yield _array(name, pattern, size, rows, steps, kind)

    def _with(self, first: Array, others: tuple[str, ...]) -> Iterator[Given]:
        """The first argument, and each way in which the others can be given."""
        if not others:
            yield Given((first,), {first.place: first.place})
            return
        axes = first.axes
        key = (others, axes.get("b"), axes.get("t"), first.pattern[:2] == "tb")
        if key not in self._known_ways:
            ways = [[*self._ways(name, first)] for name in others]
            # Arguments of a kind are tried together first: all of them states, or all rows.
            alike = [
                [[way for way in own if way[1][0].state == state] for own in ways]
                for state in (True, False)
            ]
            products = (itertools.product(*own) for own in (*alike, ways))
            self._known_ways[key] = [*itertools.islice(itertools.chain(*products), MOST_WAYS)]
        for way in self._known_ways[key]:
            nested = {first.place: first.place}
            nested |= {name: nest for name, (nest, _) in zip(others, way, strict=True)}
            yield Given((first, *(one for _, arrays in way for one in arrays)), nested)

    def _ways(self, name: str, first: Array) -> Iterator[tuple[Any, list[Array]]]:
        """An argument beside the first: states, lengths, or other rows."""
        axes = first.axes
        rows, steps = axes.get("b", B), axes.get("t", 0)
        if name in self.shapes:
            yield name, [_said(name, self.shapes[name], rows, steps or T, "float")]
            return
        ways = [self._states(name, rows, "b" in axes), self._rows(name, first, rows, steps)]
        if steps and _LENGTHS.fullmatch(name):
            yield name, [Array(name, (None,), (rows,), "b", "lengths")]
        yield from itertools.chain(*(ways if STATE_NAME.fullmatch(name) else ways[::-1]))

    def _rows(
        self, name: str, first: Array, rows: int, steps: int
    ) -> Iterator[tuple[Any, list[Array]]]:
        """Other rows, of the steps of the first argument or held for all of them."""
        axes = "".join(axis for axis in first.pattern if axis in "bt")
        batch = axes.replace("t", "")
        patterns = (f"{axes}f", axes, f"{axes}1", f"{batch}f", batch)
        for pattern in dict.fromkeys(p for p in patterns if p):
            for size in self.features if "f" in pattern else [0]:
                yield name, [_array(name, pattern, size, rows, steps)]
        for pattern in dict.fromkeys(p for p in (axes, batch) if p):
            yield name, [_array(name, pattern, 0, rows, steps, "int")]

    def _states(self, name: str, rows: int, batched: bool) -> Iterator[tuple[Any, list[Array]]]:
        """The states of a recurrent layer: an array, or one for h and one for c."""
        seen: set[Any] = set()
        for part in self.subject.module.modules():
            size = getattr(part, "hidden_size", None)
            own = next((c.__name__ for c in type(part).__mro__ if c.__name__ in _STATEFUL), "")
            if type(size) is not int or not own:
                continue
            h = getattr(part, "proj_size", 0) or size
            directions = 2 if getattr(part, "bidirectional", False) else 1
            depth = getattr(part, "num_layers", 1) * directions
            lead: Sizes = () if own.endswith("Cell") else (depth,)
            batch: Sizes = (None,) if batched else ()
            shapes = [(*lead, *batch, n) for n in (h, size)]
            key = (own.startswith("LSTM"), *shapes)
            if key in seen:
                continue
            seen.add(key)
            if own.startswith("LSTM"):
                places = (f"{name}[0]", f"{name}[1]")
                yield places, [_state(p, s, rows) for p, s in zip(places, shapes, strict=True)]
            yield name, [_state(name, shapes[0], rows)]

    def _takes_longer(self, given: Given) -> bool:
        """Whether an axis of one can be longer: then it is time, or the batch, of a run too short.

        A loop over a single step shows nothing of what it hands on.
        """
        first = given.arrays[0]
        letters = zip(first.tried, first.pattern, strict=True)
        longer = tuple(T if n == 1 and letter in "1b" else n for n, letter in letters)
        if longer == first.tried:
            return False
        more = Array(first.place, first.shape, longer, first.pattern, first.kind)
        return self._runs(Given((more, *given.arrays[1:]), given.nested))

    def _takes_any(self, given: Given) -> bool:
        """Whether the features of the first argument can be more."""
        first = given.arrays[0]
        axes = [n for n, size in enumerate(first.shape) if size not in (None, 1)]
        axes = axes or [n for n, size in enumerate(first.shape) if size == 1][-1:]
        if first.kind == "int" or not axes or None not in first.shape:
            return False
        more = tuple(s + 7 * (n == axes[0]) for n, s in enumerate(first.tried))
        wider = Array(first.place, first.shape, more, first.pattern, first.kind)
        return self._runs(Given((wider, *given.arrays[1:]), given.nested))

    def _runs(self, given: Given) -> bool:
        """Whether forward takes it."""
        self.tries += 1
        if self.tries > MOST_TRIES:
            return False
        try:
            self.subject.run(arguments(self.subject, given, given.sizes))
        except ConvertError:
            raise
        except Exception as error:  # of whatever a forward does with what it does not take
            self.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            self.subject.errors[self.reason] = None
            return False
        return True


def _array(
    place: str,
    pattern: str,
    size: int,
    rows: int,
    steps: int,
    kind: str = "float",
    *,
    fixed: bool = False,
) -> Array:
    """An array of the axes of a pattern."""
    tried = {"b": rows, "t": steps, "f": size, "1": 1}
    open_ = {"b": None if rows == B else rows, "t": steps if fixed else None, "f": size, "1": 1}
    return Array(
        place,
        tuple(open_[axis] for axis in pattern),
        tuple(tried[axis] for axis in pattern),
        pattern,
        kind,
    )


def _said(place: str, shape: Sizes, rows: int, steps: int, kind: str) -> Array:
    """An array of a shape that was said: the first axis that is open is the batch."""
    letters = itertools.chain("b", itertools.repeat("t"))
    pattern = "".join(next(letters) if size is None else "f1"[size == 1] for size in shape)
    sizes = {"b": rows, "t": steps}
    tried = tuple(sizes.get(axis, size or 0) for axis, size in zip(pattern, shape, strict=True))
    return Array(place, shape, tried, pattern, kind)


def _state(place: str, shape: Sizes, rows: int) -> Array:
    own = tuple(rows if rows != B and size is None else size for size in shape)
    tried = tuple(rows if n is None else n for n in shape)
    return Array(place, own, tried, "".join("b" if n is None else "f" for n in shape), state=True)


def _features(subject: Subject) -> list[int]:
    """Features that layers take, in the order of the layers."""
    found: dict[int, None] = {}
    for part in subject.module.modules():
        for name in ("input_size", "in_features", "in_channels", "num_features", "num_channels"):
            if type(size := getattr(part, name, None)) is int:
                found[size] = None
        shape = getattr(part, "normalized_shape", None)
        if isinstance(shape, tuple) and shape:
            found[int(shape[-1])] = None
    for parameter in subject.module.parameters():
        if parameter.ndim:
            found[int(parameter.shape[-1])] = None
    return [size for size in found if size > 0]
