"""What a forward keeps in its module from one call to the next, and from what it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.aten.forward import Zeros, flat
from fastlstm.sources.live.subject import Subject
from fastlstm.sources.live.watch import tensors_in

__all__ = ["State", "nested", "states_of"]

Array = npt.NDArray[Any]
Arguments = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class State:
    """An attribute of a module that the next call reads as this one left it.

    Parameters
    ----------
    path : str
    nest : object
        Its tensors, nested as they are after a call.
    starts : dict of str to array or Zeros
        What each tensor holds before the first call, by its place.
    """

    path: str
    nest: Any
    starts: dict[str, Array | Zeros]

    @property
    def dtypes(self) -> list[Any]:
        """The dtypes of its tensors, in order."""
        return [tensor.dtype for _, tensor in flat(self.nest)]


def nested(nest: Any, made: Callable[[], Any]) -> Any:
    """A nest with other tensors, made one after the other."""
    import torch

    if isinstance(nest, torch.Tensor):
        return made()
    if isinstance(nest, dict):
        return {key: nested(value, made) for key, value in nest.items()}
    if isinstance(nest, list | tuple):
        items = [nested(item, made) for item in nest]
        if isinstance(nest, tuple) and hasattr(nest, "_fields"):
            return type(nest)(*items)
        return type(nest)(items) if isinstance(nest, list | tuple) else items
    return nest


def states_of(subject: Subject, given: Arguments, larger: Arguments) -> tuple[State, ...]:
    """What forward keeps and reads again.

    Parameters
    ----------
    subject : Subject
    given : mapping of str to object
        What forward is called with.
    larger : mapping of str to object
        The same, of one more row of the batch.

    Raises
    ------
    ConvertError
        If what it keeps grows, or starts from what only code makes.
    """
    with subject.as_it_was():
        before = _frozen(subject.held())
        first = _frozen(subject.call(given))
        after = _frozen(subject.held())
        changed = [path for path in after if not _same(before.get(path), after[path])]
        if gone := [path for path in before if path not in after]:
            raise ConvertError(f"forward takes attribute {gone[0]!r:.200} away")
        if not changed:
            return ()
        subject.call(given)
        again = _frozen(subject.held())
    for path in again:
        now, next_ = after.get(path), again[path]
        if not _alike(now, next_):
            raise ConvertError(
                f"forward changes attribute {path!r:.200} with every call, from {_shown(now)} to "
                f"{_shown(next_)}; expected states that are arrays, each of one shape"
            )
    found = []
    for path in changed:
        if _has_arrays(after[path]) and _is_read(subject, path, given, first, after):
            starts = dict(_starts(subject, path, before.get(path), given, larger, first, after))
            found.append(State(path, after[path], starts))
    return tuple(found)


def _has_arrays(nest: Any) -> bool:
    return next(tensors_in(nest), None) is not None


def _is_read(
    subject: Subject, path: str, given: Arguments, first: Any, after: Mapping[str, Any]
) -> bool:
    """Whether anything that forward gives or keeps depends on what an attribute was before."""
    with subject.as_it_was():
        subject.put(path, _filled(after[path], float("nan")))
        try:
            other = _frozen(subject.call(given))
        except Exception:  # of whatever forward does with it
            return True
        if not all(t.dtype.is_floating_point for t in tensors_in(after[path])):
            return True
        return not (_same(other, first) and _same(_frozen(subject.held()), after))


def _starts(
    subject: Subject,
    path: str,
    before: Any,
    given: Arguments,
    larger: Arguments,
    first: Any,
    after: Mapping[str, Any],
) -> Iterator[tuple[str, Array | Zeros]]:
    """Of each tensor of a state, by its place: what it holds before the first call, or zeros.

    What is no array before the first call counts as zeros, if the first call does the same from
    those.
    """
    places = dict(flat(after[path], path))
    own = dict(flat(before, path)) if _has_arrays(before) else {}
    if [*own] == [*places] and all(own[p].shape == places[p].shape for p in own):
        for place, tensor in own.items():
            yield place, tensor.numpy()
        return
    with subject.as_it_was():
        subject.put(path, _filled(after[path], 0.0))
        zero = _same(_frozen(subject.call(given)), first)
        zero = zero and _same(_frozen(subject.held()[path]), after[path])
    if not zero:
        raise ConvertError(
            f"attribute {path!r:.200} is {_shown(before)} before the first call, which then starts "
            f"from other than zeros; expected a buffer that holds what a stream starts from"
        )
    with subject.as_it_was():
        subject.call(larger)
        grown = dict(flat(subject.held()[path], path))
    for place, tensor in places.items():
        sizes = zip(tensor.shape, grown[place].shape, strict=True)
        yield place, Zeros(tuple(one if one == other else None for one, other in sizes))


def _filled(nest: Any, value: float) -> Any:
    """A nest whose real numbers are all this, and whose others are 0."""
    import torch

    tensors = tensors_in(nest)

    def made() -> Any:
        tensor = next(tensors)
        return torch.full_like(tensor, value if tensor.dtype.is_floating_point else 0)

    return nested(nest, made)


def _frozen(value: Any) -> Any:
    """A nest as it is now: tensors copied, and all that is neither plain nor a nest as its type."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_frozen, value))
    if isinstance(value, list | tuple):
        return type(value)([_frozen(item) for item in value])
    if value is None or isinstance(value, int | float | str | type):
        return value
    return type(value)


def _same(one: Any, other: Any) -> bool:
    """Whether two nests hold the same numbers."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        same = (one == other) | ((one != one) & (other != other))
        return bool(same.all())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    return type(one) is type(other) and bool(_frozen(one) == _frozen(other))


def _alike(one: Any, other: Any) -> bool:
    """Whether two nests are the same, their tensors' numbers aside."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return _same(one, other)


def _shown(value: Any) -> str:
    """What an attribute is, in a few words."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"an array {tuple(value.shape)}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.60}"
