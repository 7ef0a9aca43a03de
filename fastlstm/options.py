"""What a source does not tell: the options of whatever converts one, in one place."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, get_type_hints

from fastlstm.errors import ConvertError

__all__ = ["DEFAULTS", "Options", "complete", "taking_options"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Options of a conversion; :func:`fastlstm.convert` says what each is."""

    layers: str | Sequence[str] | None
    prefix: str | None
    nonlinearity: str | None
    ignore: str | Sequence[str]
    dtype: str
    vocabulary: Sequence[str] | None
    recipe: str | bytes | os.PathLike[Any] | None
    input_size: int | None
    inputs: Mapping[str, Any] | None


DEFAULTS: Options = {
    "layers": None,
    "prefix": None,
    "nonlinearity": None,
    "ignore": (),
    "dtype": "float32",
    "vocabulary": None,
    "recipe": None,
    "input_size": None,
    "inputs": None,
}


def taking_options(function: Function) -> Function:
    """Have a function that passes options on tell them in its signature."""
    own = inspect.signature(function)
    hints = get_type_hints(Options)
    kinds = inspect.Parameter
    passed = [
        kinds(name, kinds.KEYWORD_ONLY, default=default, annotation=hints[name])
        for name, default in DEFAULTS.items()
    ]
    kept = [p for p in own.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    ordered = [p for p in kept if p.kind is not kinds.KEYWORD_ONLY] + passed
    ordered += [p for p in kept if p.kind is kinds.KEYWORD_ONLY]
    function.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]
    return function


def complete(options: Options) -> Options:
    """Options with the defaults of those that are not given.

    Raises
    ------
    ConvertError
        If one is none of the words that it can be.
    TypeError
        If one is unknown, or of another type.
    """
    for name in options:
        if name not in DEFAULTS:
            raise TypeError(
                f"{name!r:.80} is no option of a conversion; expected some of {', '.join(DEFAULTS)}"
            )
    given: Options = {**DEFAULTS, **options}
    layers, ignore, vocabulary = given["layers"], given["ignore"], given["vocabulary"]
    if layers is not None and not _strings(layers):
        raise TypeError(f"layers is {layers!r:.100}; expected a string or a sequence of strings")
    if given["prefix"] is not None and not isinstance(given["prefix"], str):
        raise TypeError(f"prefix is {given['prefix']!r:.100}; expected a string")
    if not _strings(ignore):
        raise TypeError(f"ignore is {ignore!r:.100}; expected a pattern or a sequence of patterns")
    if vocabulary is not None and (isinstance(vocabulary, str) or not _strings(vocabulary)):
        raise TypeError(f"vocabulary is {vocabulary!r:.100}; expected a sequence of strings")
    if not isinstance(recipe := given["recipe"], str | bytes | os.PathLike | None):
        raise TypeError(f"recipe is {recipe!r:.100}; expected a name or the path of a TOML file")
    size = given["input_size"]
    if size is not None and (type(size) is not int or size < 1):
        raise TypeError(f"input_size is {size!r:.100}; expected a positive integer")
    for name, words in (("nonlinearity", (None, "tanh", "relu")), ("dtype", _DTYPES)):
        if (word := given[name]) not in words:  # type: ignore[literal-required]
            expected = " or ".join(repr(w) for w in words if w is not None)
            raise ConvertError(f"{name} is {word!r:.100}; expected {expected}")
    if recipe is not None:
        given["recipe"] = os.fsdecode(recipe)
    given["inputs"] = given["inputs"] or None
    return given


_DTYPES = ("float32", "float64")


def _strings(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(item, str) for item in value)
