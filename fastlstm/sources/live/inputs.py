"""Which arrays a forward takes: those of the usual axes, with the sizes that its layers name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.live.subject import Subject

__all__ = ["Given", "candidates"]

B, T = 2, 11  # sizes that are tried of the batch and of time
MOST_SIZES = 1024

# Axes that are tried, the most usual first: b the batch, t time, f features.
_REAL = ("btf", "tbf", "bft", "bf", "tf", "bt", "b1f", "bf1", "1bf", "b1t", "btf1", "b1tf", "f", "t")
_TOKENS = ("bt", "tb", "t", "b")


@dataclass(frozen=True)
class Given:
    """What forward is given.

    Parameters
    ----------
    shapes : dict of str to tuple of (int or None)
        Of each array, by its place in the arguments: None for the batch and for time.
    kinds : dict of str to str
        Those that are integers.
    nested : dict of str to object
        Argument -> the places of its arrays: a name, or a tuple of them.
    sizes : dict of str to tuple of int
        The sizes that it was tried with.
    """

    shapes: dict[str, tuple[int | None, ...]]
    kinds: dict[str, str] = field(default_factory=dict)
    nested: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def is_whole(self, subject: Subject) -> bool:
        """Whether every argument that can be given is."""
        return all(name in self.nested for name in subject.optional)


def candidates(subject: Subject, input_size: int | None) -> Iterator[Given]:
    """What forward takes, of all that is tried, without an error.

    Raises
    ------
    ConvertError
        If the numbers of an input decide what it computes.
    """
    open_: list[Given] = []
    for others in _others(subject):
        for given in _firsts(subject, input_size, others):
            if input_size is None and _takes_any(subject, given):
                open_.append(given)  # an axis of any size is no axis of features
            else:
                yield given
    yield from open_


def _firsts(subject: Subject, input_size: int | None, others: tuple[str, ...]) -> Iterator[Given]:
    name = subject.needed[0] if subject.needed else "input"
    tokens = _has(subject, "Embedding", "EmbeddingBag")
    kinds: tuple[tuple[str, tuple[str, ...]], ...] = (("float", _REAL), ("int", _TOKENS))
    sizes = [input_size] if input_size else _sizes(subject)
    for kind, patterns in kinds[::-1] if tokens else kinds:
        for pattern in patterns:
            free = kind == "float" and "f" in pattern
            for size in sizes if free else [0]:
                for given in _given(subject, name, pattern, size, kind, others):
                    if _runs(subject, given):
                        yield given
    if input_size is None:
        yield from _searched(subject, name, others)


def _searched(subject: Subject, name: str, others: tuple[str, ...]) -> Iterator[Given]:
    """Sizes of features that no layer names, if one alone is taken."""
    for pattern in ("btf", "bf"):
        taken = []
        for size in range(1, MOST_SIZES):
            for given in _given(subject, name, pattern, size, "float", others):
                if _runs(subject, given):
                    taken.append(given)
            if len(taken) > 1:
                break
        if len(taken) == 1:
            yield taken[0]


def _has(subject: Subject, *kinds: str) -> bool:
    return any(type(part).__name__ in kinds for part in subject.module.modules())


def _sizes(subject: Subject) -> list[int]:
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
    return [size for size in found if 0 < size]


def _others(subject: Subject) -> Iterator[tuple[str, ...]]:
    """The arguments that are given beside the first."""
    needed = tuple(subject.needed[1:])
    yield needed
    for name in subject.optional:
        yield (*needed, name)
    if len(subject.optional) > 1:
        yield (*needed, *subject.optional)


def _given(
    subject: Subject, name: str, pattern: str, size: int, kind: str, others: tuple[str, ...]
) -> Iterator[Given]:
    """The first argument of a pattern, and each way in which the others can be states."""
    known = {"b": B, "t": T, "f": size, "1": 1}
    open_ = {"b": None, "t": None, "f": size, "1": 1}
    shapes = {name: tuple(open_[letter] for letter in pattern)}
    sizes = {name: tuple(known[letter] for letter in pattern)}
    kinds = {name: kind}
    if not others:
        yield Given(shapes, kinds, {name: name}, sizes)
        return
    batch = "b" in pattern
    for ways in itertools.product(*([*_states(subject, other, batch)] for other in others)):
        every = [one for way in ways for one in way[1]]
        yield Given(
            shapes | {place: shape for place, shape, _ in every},
            kinds,
            {name: name} | {other: way[0] for other, way in zip(others, ways, strict=True)},
            sizes | {place: tried for place, _, tried in every},
        )


def _states(subject: Subject, name: str, batch: bool) -> Iterator[tuple[Any, list[Any]]]:
    """An argument as the states of a recurrent layer: a tensor, or one for h and one for c."""
    seen: set[Any] = set()
    for part in subject.module.modules():
        kind = type(part).__name__
        H = getattr(part, "hidden_size", None)
        if type(H) is not int or kind not in _STATEFUL:
            continue
        h = getattr(part, "proj_size", 0) or H
        depth = getattr(part, "num_layers", 1) * (1 + bool(getattr(part, "bidirectional", False)))
        shapes = [(None, h), (None, H)] if kind.endswith("Cell") else [(depth, None, h), (depth, None, H)]
        if not batch:
            shapes = [tuple(n for n in s if n is not None) for s in shapes]  # type: ignore[misc]
        pair = kind.startswith("LSTM")
        key = (pair, *shapes)
        if key in seen:
            continue
        seen.add(key)
        if pair:
            places = (f"{name}[0]", f"{name}[1]")
            yield places, [(p, s, _tried(s)) for p, s in zip(places, shapes, strict=True)]
        yield name, [(name, shapes[0], _tried(shapes[0]))]
    yield name, [(name, (None,), (B,))]


_STATEFUL = {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"}


def _tried(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(B if n is None else n for n in shape)


def _takes_any(subject: Subject, given: Given) -> bool:
    """Whether the features of the first argument can be more."""
    name = next(iter(given.shapes))
    shape, sizes = given.shapes[name], given.sizes[name]
    features = [n for n, size in enumerate(shape) if size not in (None, 1)]
    features = features or [n for n, size in enumerate(shape) if size == 1][-1:]
    if given.kinds.get(name) == "int" or not features or None not in shape:
        return False
    more = tuple(s + 7 * (n == features[0]) for n, s in enumerate(sizes))
    return _runs(subject, Given(given.shapes, given.kinds, given.nested, given.sizes | {name: more}))


def _runs(subject: Subject, given: Given) -> bool:
    """Whether forward takes it."""
    from fastlstm.sources.live.forward import arguments

    try:
        subject.run(arguments(subject, given, given.sizes))
    except ConvertError:
        raise
    except Exception as error:  # of whatever a forward does with what it does not take
        subject.errors[f"{type(error).__name__}: {str(error)[:120]}"] = None
        return False
    return True
