"""ATen, torch's library of array operators, as operations of the one builder of graphs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays.core import check_size
from fastlstm.sources.aten import (  # noqa: F401  (each enters its operators in the table)
    arithmetic,
    creation,
    functions,
    layers,
    matrices,
    movement,
    recurrent,
    views,
)
from fastlstm.sources.aten.memory import Memory
from fastlstm.sources.aten.ragged import Ragged
from fastlstm.sources.aten.ragged import apply as ragged
from fastlstm.sources.aten.reductions import Unknown
from fastlstm.sources.aten.table import OPERATORS, Builder, Value, is_array, shape_of

__all__ = ["OPERATORS", "SHARES_MEMORY", "Aten", "Memory", "Ragged", "Unknown"]

# They change the shape of the array that they are called on, and not its numbers.
_RESHAPES_IN_PLACE = {
    *("unsqueeze_", "squeeze_", "t_", "transpose_", "resize_", "swapaxes_", "as_strided_", "set_"),
}
# They give an array for which torch promises that it is, or may be, the one that was given.
_MAY_BE_SAME = {"contiguous", "reshape", "flatten", "to", "type_as", "ravel", "atleast_1d"}


class Aten:
    """Runs operators by name, in one run of a program.

    Parameters
    ----------
    builder : Builder
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.memory = Memory()
        self._views: dict[Any, tuple[Any, Any]] = {}
        self._calls: Counter[str] = Counter()

    def __call__(self, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """What an operator gives.

        Parameters
        ----------
        name : str
            Of ATen, with the closing ``_`` of one that writes into its first argument.
        args, named : sequence, mapping
            Its arguments: arrays, numbers, strings, lists and None.

        Raises
        ------
        ConvertError
            If the operator is not known, or not of these arguments; the message begins with `name`,
            and the error's `operator` and `nth` tell which call of it that was.
        """
        self._calls[name] += 1
        try:
            return self._run(name, args, named)
        except ConvertError as error:
            if not getattr(error, "operator", None):
                error.args = (f"{name}: {error}",)
                error.operator, error.nth = name, self._calls[name]  # type: ignore[attr-defined]
            raise
        except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError,
                OverflowError, KeyError) as error:  # fmt: skip
            refused = ConvertError(f"{name} of {described([*args, *named.values()])}: {error}")
            refused.operator, refused.nth = name, self._calls[name]  # type: ignore[attr-defined]
            raise refused from error

    def _run(self, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        if name in _RESHAPES_IN_PLACE:
            raise ConvertError(f"it reshapes an array in place; write x = x.{name[:-1]}(...)")
        args = [self.current(x) for x in args]
        named = {key: self.current(x) for key, x in named.items()}
        if any(isinstance(x, Ragged) for x in _items([*args, *named.values()])):
            return ragged(self.builder, name, args, named)
        function = OPERATORS.get(name)
        if function is not None and name in SHARES_MEMORY and _is_view_of_constant(args, named):
            # The same view of a weight is one array, as often as it is taken: so it stays one.
            key = (name, id(args[0]), repr(args[1:]), repr(named))
            if key not in self._views:
                self._views[key] = (args[0], function(self.builder, *args, **named))
            return self._views[key][1]
        if function is not None:
            made = function(self.builder, *args, **named)
            return self._checked(made, [*args, *named.values()], name)
        function = OPERATORS.get(name.removesuffix("_")) if name.endswith("_") else None
        if function is None:
            raise ConvertError("this operator of torch is not supported")
        return self.memory.write(self.builder, args[0], function(self.builder, *args, **named))

    def current(self, x: Any) -> Any:
        """An argument as it is now, with what was written into arrays."""
        if isinstance(x, Unknown):
            raise ConvertError(f"{x.what} is not supported")
        if isinstance(x, list | tuple):
            return [self.current(item) for item in x]
        return self.memory.current(x)

    def _checked(self, made: Any, given: Sequence[Any], name: str) -> Any:
        """A result, of bounded size; an array of its own where the builder gave the argument."""
        for one in made if isinstance(made, list | tuple) else (made,):
            if is_array(one):
                check_size(shape_of(one))
        if isinstance(made, Value) and name not in SHARES_MEMORY:
            same = any(
                made is x or (isinstance(x, Value) and made.places is x.places) for x in given
            )
            if same or not made.places.flags.writeable:
                return Value(made.places.copy(), made.kind)
        return np.asarray(made) if isinstance(made, np.generic) else made


def _items(values: Iterable[Any]) -> Iterator[Any]:
    """Values, and those in lists of them."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _is_view_of_constant(args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    others = (*args[1:], *named.values())
    return bool(args) and isinstance(args[0], np.ndarray) and not any(map(is_array, others))


def _shares() -> set[str]:
    """Operators whose result is, or may be, the memory of their argument."""
    return {
        name for name, function in OPERATORS.items() if function.__module__ == views.__name__
    } | _MAY_BE_SAME


SHARES_MEMORY = _shares()


def described(values: Iterable[Any]) -> str:
    """Arguments in a few words."""
    words = []
    for value in values:
        if is_array(value):
            words.append(f"an array {shape_of(value)}")
        elif isinstance(value, int | float | bool | None):
            words.append(repr(value))
        else:
            words.append(re.sub(r"\s+", " ", f"{value!r:.60}" if isinstance(value, str) else
                                f"a {type(value).__name__}"))  # fmt: skip
    return ", ".join(words[:8]) or "nothing"


Operator = Callable[..., Any]
