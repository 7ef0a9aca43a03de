"""Read the small TOML file that a recipe is, or one of those that come with the package."""

from __future__ import annotations

import importlib.resources
import os
import re
import stat
import tomllib
from collections.abc import Iterable

from fastlstm.errors import ConvertError
from fastlstm.sources.recipe.entries import Entry, Recipe
from fastlstm.sources.recipe.table import Table

__all__ = ["built_in_recipes", "parse", "read_recipe"]

MAX_BYTES = 2**16
MAX_LAYERS = 256
MAX_PARTS = 32
"""Of a dotted key: what a reader of TOML keeps of one grows with their square."""

# Strings and comments, whose dots are no keys'; a key in quotation marks is a string, too. What is
# not closed goes on to the end, and nothing is looked at twice.
_TEXTS = re.compile(
    r"""
    "{3} (?: [^"\\] | \\. | "(?!"") )*+ (?: "{3} )?
    | '{3} (?: [^'] | '(?!'') )*+ (?: '{3} )?
    | " (?: [^"\\\n] | \\. )*+ "?
    | ' [^'\n]*+ '?
    | \# [^\n]*+
    """,
    re.DOTALL | re.VERBOSE,
)
_LONG_KEY = re.compile(rf"(?<![\w-]) (?: [\w-]++ [ \t]*+ \. [ \t]*+ ){{{MAX_PARTS}}}", re.VERBOSE)


def built_in_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = importlib.resources.files("fastlstm.sources.recipe") / "built_in"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name[-5:] == ".toml")


def read_recipe(recipe: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    recipe : str or path
        The name of a built-in one, or the path of a file: a path-like, or a string that ends in
        ``.toml`` or has a separator in it.

    Raises
    ------
    ConvertError
        If there is no such built-in recipe, or a file is not a recipe; the message names the key.
    OSError
        If a file cannot be read.
    """
    text = os.fspath(recipe)
    if not isinstance(recipe, str) or text.endswith(".toml") or {"/", os.sep} & {*text}:
        return parse(_read_file(text), text)
    if text not in built_in_recipes():
        raise ConvertError(
            f"there is no recipe {text!r:.100}; expected one of {', '.join(built_in_recipes())}, "
            f"or the path of a file that ends in .toml"
        )
    file = importlib.resources.files("fastlstm.sources.recipe") / "built_in" / f"{text}.toml"
    return parse(file.read_bytes(), text)


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        data = file.read(MAX_BYTES + 1) if is_file else b""
    if not is_file or len(data) > MAX_BYTES:
        raise ConvertError(
            f"recipe {path!r:.200} is no regular file of at most {MAX_BYTES} bytes; expected a "
            f"small TOML file"
        )
    return data


def parse(data: bytes, name: str) -> Recipe:
    """Read the text of a recipe; errors are those of :func:`read_recipe`."""
    try:
        try:
            text = data.decode()
            has_long_key = _LONG_KEY.search(_TEXTS.sub("t", text)) is not None
            document = {} if has_long_key else tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConvertError(f"it is not TOML: {error}") from None
        if has_long_key:
            raise ConvertError(f"a key has more than {MAX_PARTS} parts; expected few")
        if unknown := sorted(document.keys() - {"description", "layer", "ordered"}):
            raise ConvertError(
                f"unknown key {unknown[0]!r:.100}; expected description, ordered and [[layer]] "
                f"tables"
            )
        description, ordered = document.get("description", ""), document.get("ordered", True)
        if not isinstance(description, str):
            raise ConvertError(f"description is {description!r:.100}; expected a string")
        if not isinstance(ordered, bool):
            raise ConvertError(f"ordered is {ordered!r:.100}; expected true or false")
        tables = document.get("layer")
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConvertError("there is no [[layer]]; expected one such table for each layer")
        if len(tables) > MAX_LAYERS:
            raise ConvertError(f"it has {len(tables)} layers; at most {MAX_LAYERS} are read")
        entries = tuple(Table(number, table).entry() for number, table in enumerate(tables, 1))
        _check_names(entries, ordered)
    except ConvertError as error:
        raise ConvertError(f"recipe {name!r:.200}: {error}") from None
    return Recipe(name, description, entries, ordered)


def _check_names(entries: Iterable[Entry], ordered: bool) -> None:
    """No tensor is named twice; of a recipe without order, not twice in one layer."""
    seen: dict[str, str] = {}
    named = False
    for entry in entries:
        if not ordered:
            if not entry.tensors:
                raise ConvertError(
                    f"{entry.label} names no tensor, and ordered is false; expected the kinds of "
                    f"layers that have some: layers= says what lies between"
                )
            seen = {}
        for key, stack in entry.tensors.items():
            for name in (name for part in stack for template in part.names
                         for name in _filled(template, entry)):  # fmt: skip
                if name in seen:
                    raise ConvertError(
                        f"tensor {name!r:.100} is named twice, in {seen[name]} and in {key} of "
                        f"{entry.label}; expected a tensor of its own for each"
                    )
                seen[name] = f"{key} of {entry.label}"
                named = True
    if not named:
        raise ConvertError("no layer names a tensor; expected at least one that does")


def _filled(template: str, entry: Entry) -> set[str]:
    """The names that a template stands for, as far as the recipe tells."""
    return {
        template.replace("{direction}", direction).replace("{layer}", layer)
        for direction in entry.directions or ("{direction}",)
        for layer in entry.layers or ("{layer}",)
    }
