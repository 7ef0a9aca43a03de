"""One ``[[layer]]`` table of a recipe, and what it says; ``docs/recipes.md`` has every key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.words import KINDS, parse
from fastlstm.sources.recipe.entries import CELLS, GATES, Entry, Stacked

__all__ = ["KEYS", "Table"]

MAX_NAME = 500
MAX_COPIES = 256

_SAID = {
    "lstm": "i (input), f (forget), g (candidate), o (output)",
    "gru": "r (reset), z (update), n (candidate)",
}
_CELL = {
    *("input_weight", "hidden_weight", "weight", "concatenated", "transposed", "bias"),
    *("input_bias", "hidden_bias", "directions", "bidirectional", "layers", "reverse", "clip"),
    *("initial_state", "cudnn"),
}
# Tensors of the two kinds of normalisation -> the gates that each has: all, or none.
_NORMS = {
    "gate": {"norm_weight": True},
    "product": {
        **dict.fromkeys(("norm_input_weight", "norm_input_bias"), True),
        **dict.fromkeys(("norm_hidden_weight", "norm_hidden_bias"), True),
        **dict.fromkeys(("norm_cell_weight", "norm_cell_bias"), False),
    },
}
_NORM_KEYS = {key for keys in _NORMS.values() for key in keys}
KEYS: dict[str, set[str]] = {
    "embedding": {"weight"},
    "linear": {"weight", "bias", "transposed"},
    "lstm": _CELL
    | {"activations", "peephole", "projection", "coupled", "cell_clip", "forget_bias"}
    | {"layer_norm", "layer_norm_eps", *_NORM_KEYS},
    "gru": _CELL | {"activations", "reset_after", "z_multiplies"},
    "rnn": _CELL | {"nonlinearity"},
}
"""Keys of the kinds whose gates and matrices can be laid out in any way."""
_OTHER_KEYS = {"weight", "bias", "running_mean", "running_var", "transposed"}
_NEEDED = {
    "embedding": ("weight",),
    "linear": ("weight", "bias"),
    "gru": ("reset_after", "z_multiplies"),
}
_OPTIONS = (
    *("reset_after", "activations", "coupled", "clip", "cell_clip", "reverse"),
    *("layer_norm", "layer_norm_eps"),
)


class Table:
    """A table, and the entry it makes.

    Parameters
    ----------
    number : int
        Its place in the recipe, from 1.
    table : mapping of str to object
        As TOML has it.
    """

    def __init__(self, number: int, table: Mapping[str, Any]) -> None:
        self.table = table
        self.label = f"layer {number}"
        kind = self.text("kind")
        if kind is None:
            raise ConvertError(
                f"{self.label} has no kind; expected one of {', '.join(KEYS)}, or a word of layers="
            )
        self.kind = kind
        self.keys = {"kind", "name"} | KEYS.get(kind, set())
        if kind not in KEYS:
            try:
                words = parse(kind)
            except ConvertError as error:
                raise ConvertError(f"{self.label}: kind is {kind!r:.100}: {error}") from None
            if len(words) == 1 and words[0].is_word and KINDS[words[0].kind].weights == "layer":
                self.keys |= _OTHER_KEYS
        self.label += f" ({kind:.100})"
        self.gates = GATES.get(kind, "")

    def entry(self) -> Entry:
        """What the table says; ConvertError, naming the key, if it is none."""
        if unknown := sorted(self.table.keys() - self.keys):
            raise self.refused(
                f"unknown key {unknown[0]!r:.100}", f"keys out of {', '.join(sorted(self.keys))}"
            )
        for key in _NEEDED.get(self.kind, ()):
            self.need(key)
        if self.boolean("coupled"):
            self.gates = self.gates.replace("f", "")
        tensors = dict(self.tensors())
        if tensors and not any(tensors.values()):
            raise self.refused("all of its tensors are 0", "the name of one")
        directions = tuple(self.strings("directions", 2))
        layers = tuple(self.strings("layers"))
        self.check_placeholders(tensors, directions, layers)
        options = {key: self.table[key] for key in _OPTIONS if key in self.table}
        if "peephole" in tensors:
            options["peepholes"] = True
        if any(key.startswith("initial_state") for key in tensors):
            options["initial_state"] = "learned"
        nonlinearity = self.text("nonlinearity")
        both = self.boolean("bidirectional")
        if self.kind in CELLS:
            self.check_options(
                options | ({"nonlinearity": nonlinearity} if nonlinearity else {}),
                both or bool(directions),
            )
        return Entry(
            self.label,
            self.kind,
            self.text("name"),
            tensors,
            self.boolean("transposed"),
            self.text("concatenated", ("xh", "hx")) or "",
            directions,
            layers,
            both,
            "z" if self.update() == "n" else "",
            self.forget_bias(),
            self.boolean("cudnn"),
            options,
            nonlinearity,
        )

    def update(self) -> str | None:
        """What the update gate multiplies."""
        multiplies = self.text("z_multiplies", ("h", "n"))
        if multiplies == "n" and not _mirrors(self.table.get("activations", ["sigmoid"])):
            raise self.refused(
                "z_multiplies is 'n'",
                "'h' with these activations: 1 - z is what makes z, negated, of sigmoid and of "
                "hard_sigmoid(..., 0.5) only",
            )
        return multiplies

    def forget_bias(self) -> float:
        value = self.table.get("forget_bias", 0.0)
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise self.refused(f"forget_bias is {value!r:.100}", "a number")
        if value and self.table.get("coupled"):
            raise self.refused("forget_bias of a coupled cell", "none: it has no gate f")
        return float(value)

    # --- what it is made of

    def tensors(self) -> Iterator[tuple[str, tuple[Stacked, ...]]]:
        if self.kind not in CELLS:
            keys = _NEEDED.get(self.kind) or [key for key in self.table if key in _OTHER_KEYS]
            for key in keys:
                if key != "transposed":
                    yield key, self.stack(key)
            return
        joined = self.one_of(("weight", "concatenated"), ("input_weight", "hidden_weight"))
        if self.table.get("reset_after") is True and "bias" in self.table:
            raise self.refused(
                "bias does not tell on which side of r the bias of n is, which matters where "
                "reset_after is true",
                "input_bias and hidden_bias, one of which may be 0",
            )
        biases = self.one_of(("bias",), ("input_bias", "hidden_bias"))
        for key in (*(key for key in joined if key != "concatenated"), *biases):
            yield key, self.stack(key)
        if "peephole" in self.table:
            yield "peephole", self.stack("peephole", self.gates.replace("g", ""))
        if "projection" in self.table:
            yield "projection", self.stack("projection", "")
        yield from self.norms()
        yield from self.states()

    def norms(self) -> Iterator[tuple[str, tuple[Stacked, ...]]]:
        kind = self.text("layer_norm", tuple(_NORMS))
        wanted = _NORMS[kind] if kind else {}
        for key in sorted(_NORM_KEYS & self.table.keys()):
            if key not in wanted:
                need = f"layer_norm, {', '.join(map(repr, _NORMS))}, to say that"
                raise self.refused(f"{key} with layer_norm {kind!r}", need)
        for key, gates in wanted.items():
            self.need(key)
            yield key, self.stack(key, self.gates if gates else "")

    def states(self) -> Iterator[tuple[str, tuple[Stacked, ...]]]:
        if "initial_state" not in self.table:
            return
        value = self.table["initial_state"]
        names = ("h", "c") if self.kind == "lstm" else ("h",)
        if not isinstance(value, dict) or set(value) != set(names):
            each = ", ".join(f'{name} = "..."' for name in names)
            raise self.refused(
                f"initial_state is {value!r:.100}",
                f"{{ {each} }}, the name of a tensor each, or 0 for zeros",
            )
        for name in names:
            zero = type(value[name]) is int and value[name] == 0
            found = () if zero else self.tensor_names(f"initial_state.{name}", value[name])
            yield f"initial_state.{name}", (Stacked("", found),) if found else ()

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

    def stack(self, key: str, gates: str | None = None) -> tuple[Stacked, ...]:
        """What a weight or bias of these gates is made of."""
        value, gates = self.table[key], self.gates if gates is None else gates
        if self.is_zero(key, value):
            return ()
        if not gates:
            return (Stacked("", self.tensor_names(key, value)),)
        if not isinstance(value, dict):
            each = ", ".join(f'{gate} = "..."' for gate in gates)
            raise self.refused(
                f"{key} is {value!r:.100}",
                f'a table from gates to tensors, {{ {each} }}, or stacked, {{ {gates} = "..." }}',
            )
        all_of = "each" if gates == self.gates else f"of {', '.join(gates)} each"
        said = [gate for names in value for gate in names or ("",)]
        for gate in said:
            known = gate in tuple(gates)
            if not known or said.count(gate) > 1:
                how = "twice" if known else "which is unknown"
                raise self.refused(
                    f"{key} has gate {gate!r}, {how}", f"{all_of} once of {_SAID[self.kind]}"
                )
        if missing := [gate for gate in gates if gate not in said]:
            raise self.refused(
                f"gate {missing[0]!r} is missing in {key}", f"{all_of} of {_SAID[self.kind]}"
            )
        stack = tuple(
            Stacked(of, () if self.is_zero(key, name) else self.tensor_names(f"{key}.{of}", name))
            for of, name in value.items()
        )
        return stack if any(part.names for part in stack) else ()

    def is_zero(self, key: str, value: object) -> bool:
        return key in ("bias", "input_bias", "hidden_bias") and type(value) is int and value == 0

    def tensor_names(self, key: str, value: object) -> tuple[str, ...]:
        """The name of a tensor, or a list of one for each layer of a stack and direction."""
        names = tuple(value) if isinstance(value, list) and self.kind in CELLS else (value,)
        if 0 < len(names) <= MAX_COPIES and all(
            isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names
        ):
            return names
        zero = ", or 0 for zeros" if "bias" in key or key.startswith("initial") else ""
        raise self.refused(f"{key} is {value!r:.100}", f"the name of a tensor{zero}")

    # --- what goes together

    def check_placeholders(
        self,
        tensors: Mapping[str, Sequence[Stacked]],
        directions: Sequence[str],
        layers: Sequence[str],
    ) -> None:
        if self.kind not in CELLS:
            return
        parts = [part.names for stack in tensors.values() for part in stack if part.names]
        states = [
            part.names
            for key, stack in tensors.items()
            if key.startswith("initial_state")
            for part in stack
        ]
        lists = [names for names in parts if len(names) > 1]
        both = self.boolean("bidirectional")
        if both and directions:
            raise self.refused("both directions and bidirectional are said", "one of them")
        if both and not lists:
            raise self.refused(
                "bidirectional is true",
                "lists of names, one for each direction, or directions instead",
            )
        for names in parts if lists else ():
            if len(names) != len(lists[0]) and not (len(names) == 1 and names in states):
                raise self.refused(
                    f"there are {len(lists[0])} names in a list and {len(names)} in another",
                    "as many in each, one for each layer of the stack and direction",
                )
        if lists and (len(lists[0]) % (1 + both) or directions or layers):
            raise self.refused(
                f"there are lists of {len(lists[0])} names",
                "two for each layer, as bidirectional is true"
                if both
                else "no directions and no layers beside them",
            )
        for mark, given in (("{layer}", layers), ("{direction}", directions)):
            having = [names[0] for names in parts if mark in names[0]]
            lacking = [n[0] for n in parts if mark not in n[0] and n not in states]
            if having and lacking:
                raise self.refused(
                    f"tensor {having[0]!r:.100} has {mark} in its name, but {lacking[0]!r:.100} "
                    f"not",
                    "it in all names of a layer or in none",
                )
            if (given and not having) or (mark == "{direction}" and having and not given):
                key = "directions" if mark == "{direction}" else "layers"
                raise self.refused(f"{key} and {mark} in the names go together", "both or neither")

    def check_options(self, options: Mapping[str, Any], both: bool) -> None:
        try:
            CELLS[self.kind]("layer", 1, 1, bidirectional=both, **options)
        except ValueError as error:
            why = str(error).removeprefix("layer 'layer': ")
            raise ConvertError(f"{self.label}: {why}") from None

    def need(self, key: str) -> None:
        if key not in self.table:
            zero = "; no bias is said as 0" if key.endswith("bias") and "norm" not in key else ""
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

    def strings(self, key: str, count: int = 0) -> list[str]:
        value: Any = self.table.get(key, [])
        if key in self.table and not (
            isinstance(value, list)
            and all(isinstance(text, str) for text in value)
            and len(set(value)) == len(value)
            and (len(value) == count or (not count and 0 < len(value) <= MAX_COPIES))
        ):
            of = f"{count} " if count else ""
            raise self.refused(f"{key} is {value!r:.100}", f"a list of {of}different strings")
        return list(value)

    def refused(self, what: str, expected: str) -> ConvertError:
        return ConvertError(f"{self.label}: {what}; expected {expected}")


def _mirrors(activations: object) -> bool:
    """Whether one minus the function of the gates is that function of the negated number."""
    if not isinstance(activations, list) or not activations:
        return True  # wrong, and refused with its own message
    text = str(activations[0]).replace(" ", "")
    return text == "sigmoid" or (text.startswith("hard_sigmoid(") and text.endswith(",0.5)"))
