"""Recipes: which tensor of a cell written by hand is which gate, in a small TOML file.

A recipe lists layers in the order in which they run. Here is one of each kind of entry::

    description = "A character model: LSTM, gates of x and of h apart, row vectors (x @ W)"

    [[layer]]
    kind = "one_hot"            # what takes no tensors is said by its kind alone

    [[layer]]
    kind = "lstm"
    input_weight = { i = "W_xi", f = "W_xf", g = "W_xc", o = "W_xo" }
    hidden_weight = { ifgo = "W_h" }                  # stacked in this order in one tensor
    bias = { i = "b_i", f = "b_f", g = 0, o = "b_o" } # 0 is a zero; bias = 0 are no biases at all
    transposed = true           # x @ W: its weights are (inputs, outputs), not (outputs, inputs)

    [[layer]]
    kind = "linear"
    weight = "W_hq"
    bias = "b_q"
    transposed = true

Kinds are the words of ``layers=``. A table from gates to tensors names every gate once; gates
stacked in one tensor are written together, in their order: ``i f g o`` are an LSTM's input, forget,
candidate and output, ``r z n`` a GRU's reset, update and candidate. Where there is only one, as in
an RNN, the table is left out: ``input_weight = "W_xh"``. Further keys of recurrent layers:

* ``weight`` instead of ``input_weight`` and ``hidden_weight``, with ``concatenated = "xh"`` or
  ``"hx"``: one matrix multiplies x and h side by side, in this order.
* ``input_bias`` and ``hidden_bias`` instead of ``bias``, where there are two.
* ``{layer}`` within the names of a stack stands for 0, 1, ... as far as there are tensors, and
  ``{direction}`` for one of ``directions = ["forward", "backward"]``, the second where it is there.
* ``reset_after`` of a GRU: true if r multiplies the product with h, as in PyTorch, false if it
  multiplies h before the product.
* ``z_multiplies`` of a GRU: ``"h"`` if the new state is ``z * h + (1 - z) * n``, as in PyTorch,
  ``"n"`` if it is ``z * n + (1 - z) * h``.
* ``nonlinearity`` of an RNN; without it, the caller's is taken.
* ``activations`` of an LSTM or GRU, where they are not the usual ones.
* ``name``: what the layer is called in the model.

Names are as in the source, less a dotted path before them that a layer's tensors share. What the
recipe does not name is left to ``layers=``, as ever. The built-in recipes are in ``built_in/``.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlstm import chain as spec
from fastlstm.errors import ConvertError

__all__ = ["Entry", "Recipe", "Stacked", "built_in_recipes", "read_recipe"]

MAX_BYTES = 2**16
MAX_NAME = 500
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

_CELLS: dict[str, type[spec.Recurrent]] = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}
_GATES = {
    "lstm": "i (input), f (forget), g (candidate), o (output)",
    "gru": "r (reset), z (update), n (candidate)",
}
_WITHOUT_TENSORS = ("one_hot", *spec.ACTIVATIONS)
_KINDS = ("embedding", *_CELLS, "linear", *_WITHOUT_TENSORS)

_CELL_KEYS = {
    *("input_weight", "hidden_weight", "weight", "concatenated"),
    *("bias", "input_bias", "hidden_bias", "transposed", "directions"),
}
_KEYS = {
    "embedding": {"weight"},
    "linear": {"weight", "bias", "transposed"},
    "lstm": _CELL_KEYS | {"activations"},
    "gru": _CELL_KEYS | {"activations", "reset_after", "z_multiplies"},
    "rnn": _CELL_KEYS | {"nonlinearity"},
}
_NEEDED = {
    "embedding": ("weight",),
    "linear": ("weight", "bias"),
    "gru": ("reset_after", "z_multiplies"),
}


@dataclass(frozen=True, slots=True)
class Stacked:
    """A tensor and the gates stacked in it, "" where there is one; no name stands for zeros."""

    gates: str
    name: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One layer of a recipe.

    Parameters
    ----------
    label : str
        What it is called in messages.
    kind : str
        A word of ``layers=``.
    name : str or None
        What the layer is to be called.
    tensors : dict of str to tuple of Stacked
        By key, what each weight and bias is made of; empty for a bias that is not there.
    transposed : bool
    concatenated : str
        "xh" or "hx" if ``weight`` is both weights of a cell, else "".
    directions : tuple of str
        What stands for ``{direction}``, none or two.
    negated : str
        The gate that is one minus PyTorch's, "" if none is.
    options : dict of str to object
        Fields of the layer in :mod:`fastlstm.chain` that weights do not tell.
    nonlinearity : str or None
        Of an RNN, if it is told.
    """

    label: str
    kind: str
    name: str | None
    tensors: dict[str, tuple[Stacked, ...]]
    transposed: bool
    concatenated: str
    directions: tuple[str, ...]
    negated: str
    options: dict[str, Any]
    nonlinearity: str | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: what it is called, what it says it is for, and its layers in order."""

    name: str
    description: str
    entries: tuple[Entry, ...]


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
        description = document.get("description", "")
        tables = document.get("layer")
        if unknown := sorted(document.keys() - {"description", "layer"}):
            raise ConvertError(
                f"unknown key {unknown[0]!r:.100}; expected description and [[layer]] tables"
            )
        if not isinstance(description, str):
            raise ConvertError(f"description is {description!r:.100}; expected a string")
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConvertError("there is no [[layer]]; expected one such table for each layer")
        entries = tuple(_Table(number, table).entry() for number, table in enumerate(tables, 1))
        _check_names(entries)
    except ConvertError as error:
        raise ConvertError(f"recipe {name!r:.200}: {error}") from None
    return Recipe(name, description, entries)


def _check_names(entries: Iterable[Entry]) -> None:
    """No tensor is named twice."""
    seen: dict[str, str] = {}
    for entry in entries:
        for key, stack in entry.tensors.items():
            for name in (part.name for part in stack if part.name is not None):
                if name in seen:
                    raise ConvertError(
                        f"tensor {name!r:.100} is named twice, in {seen[name]} and in {key} of "
                        f"{entry.label}; expected a tensor of its own for each"
                    )
                seen[name] = f"{key} of {entry.label}"
    if not seen:
        raise ConvertError("no layer names a tensor; expected at least one that does")


class _Table:
    """One ``[[layer]]`` table, and what it says."""

    def __init__(self, number: int, table: Mapping[str, Any]) -> None:
        self.table = table
        self.label = f"layer {number}"
        kind = self.text("kind", _KINDS)
        if kind is None:
            raise ConvertError(f"{self.label} has no kind; expected one of {', '.join(_KINDS)}")
        self.kind = kind
        self.label += f" ({kind})"
        self.gates = _CELLS[kind].gates if kind in _GATES else ""

    def entry(self) -> Entry:
        keys = {"kind", "name"} | _KEYS.get(self.kind, set())
        if unknown := sorted(self.table.keys() - keys):
            raise self.refused(
                f"unknown key {unknown[0]!r:.100}", f"keys out of {', '.join(sorted(keys))}"
            )
        for key in _NEEDED.get(self.kind, ()):
            self.need(key)
        tensors = self.tensors()
        options = {
            key: self.table[key] for key in ("reset_after", "activations") if key in self.table
        }
        nonlinearity = self.text("nonlinearity")
        directions = tuple(self.strings("directions", 2))
        self.check_placeholders(tensors, directions)
        if self.kind in _CELLS:
            self.check_options(options | ({"nonlinearity": nonlinearity} if nonlinearity else {}))
        return Entry(
            self.label,
            self.kind,
            self.text("name"),
            tensors,
            self.boolean("transposed"),
            self.text("concatenated", ("xh", "hx")) or "",
            directions,
            "z" if self.text("z_multiplies", ("h", "n")) == "n" else "",
            options,
            nonlinearity,
        )

    def tensors(self) -> dict[str, tuple[Stacked, ...]]:
        if self.kind in _WITHOUT_TENSORS:
            return {}
        if self.kind not in _CELLS:
            return {key: self.stack(key) for key in _NEEDED[self.kind]}
        joined = self.one_of(("weight", "concatenated"), ("input_weight", "hidden_weight"))
        if self.table.get("reset_after") is True and "bias" in self.table:
            raise self.refused(
                "bias does not tell on which side of r the bias of n is, which matters where "
                "reset_after is true",
                "input_bias and hidden_bias, one of which may be 0",
            )
        biases = self.one_of(("bias",), ("input_bias", "hidden_bias"))
        weights = tuple(key for key in joined if key != "concatenated")
        return {key: self.stack(key) for key in (*weights, *biases)}

    def one_of(self, one: Sequence[str], other: Sequence[str]) -> Sequence[str]:
        """The keys of the one way in which something is said, all of which must be there."""
        ways = [way for way in (one, other) if any(key in self.table for key in way)]
        if len(ways) != 1:
            raise self.refused(
                "both ways are said" if ways else f"{other[0]} is missing",
                f"either {' and '.join(one)}, or {' and '.join(other)}",
            )
        for key in ways[0]:
            self.need(key)
        return ways[0]

    def stack(self, key: str) -> tuple[Stacked, ...]:
        """What a weight or bias is made of."""
        value = self.table[key]
        if key.endswith("bias") and type(value) is int and value == 0:
            return ()
        if not self.gates:
            return (Stacked("", self.tensor_name(key, value)),)
        if not isinstance(value, dict):
            each = ", ".join(f'{gate} = "..."' for gate in self.gates)
            raise self.refused(
                f"{key} is {value!r:.100}",
                f"a table from gates to tensors, {{ {each} }}, or stacked, "
                f'{{ {self.gates} = "..." }}',
            )
        said = [gate for gates in value for gate in gates or ("",)]
        for gate in said:
            known = gate in tuple(self.gates)
            if not known or said.count(gate) > 1:
                how = "twice" if known else "which is unknown"
                raise self.refused(
                    f"{key} has gate {gate!r}, {how}", f"each once of {_GATES[self.kind]}"
                )
        if missing := [gate for gate in self.gates if gate not in said]:
            raise self.refused(
                f"gate {missing[0]!r} is missing in {key}", f"each of {_GATES[self.kind]}"
            )
        stack = tuple(
            Stacked(
                gates,
                None
                if key.endswith("bias") and type(name) is int and name == 0
                else self.tensor_name(f"{key}.{gates}", name),
            )
            for gates, name in value.items()
        )
        return stack if any(part.name is not None for part in stack) else ()

    def tensor_name(self, key: str, value: object) -> str:
        if isinstance(value, str) and 0 < len(value) <= MAX_NAME:
            return value
        zero = ", or 0 for zeros" if "bias" in key else ""
        raise self.refused(f"{key} is {value!r:.100}", f"the name of a tensor{zero}")

    def check_placeholders(
        self, tensors: Mapping[str, Sequence[Stacked]], directions: Sequence[str]
    ) -> None:
        names = [part.name for stack in tensors.values() for part in stack if part.name]
        for mark in ("{layer}", "{direction}") if self.kind in _CELLS else ():
            having = [name for name in names if mark in name]
            if having and len(having) < len(names):
                lacking = next(name for name in names if mark not in name)
                raise self.refused(
                    f"tensor {having[0]!r:.100} has {mark} in its name, but {lacking!r:.100} not",
                    "it in all names of a layer or in none",
                )
            if mark == "{direction}" and bool(having) != bool(directions):
                raise self.refused(
                    "directions and {direction} in the names go together", "both or neither"
                )

    def check_options(self, options: Mapping[str, Any]) -> None:
        try:
            _CELLS[self.kind]("layer", 1, 1, **options)
        except ValueError as error:
            why = str(error).removeprefix("layer 'layer': ")
            raise ConvertError(f"{self.label}: {why}") from None

    def need(self, key: str) -> None:
        if key not in self.table:
            zero = "; no bias is said as 0" if key.endswith("bias") else ""
            raise ConvertError(f"{self.label}: {key} is missing{zero}")

    def text(self, key: str, choices: Sequence[str] = ()) -> str | None:
        value = self.table.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or (choices and value not in choices):
            raise self.refused(
                f"{key} is {value!r:.100}",
                f"one of {', '.join(choices)}" if choices else "a string of some length",
            )
        return value

    def boolean(self, key: str) -> bool:
        value = self.table.get(key, False)
        if type(value) is not bool:
            raise self.refused(f"{key} is {value!r:.100}", "true or false")
        return value

    def strings(self, key: str, count: int) -> list[str]:
        value: list[str] = self.table.get(key, [])
        if key in self.table and not (
            isinstance(value, list)
            and all(isinstance(text, str) for text in value)
            and len(set(value)) == len(value) == count
        ):
            raise self.refused(f"{key} is {value!r:.100}", f"a list of {count} different strings")
        return value

    def refused(self, what: str, expected: str) -> ConvertError:
        return ConvertError(f"{self.label}: {what}; expected {expected}")
