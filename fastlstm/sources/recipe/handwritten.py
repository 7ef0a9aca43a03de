"""Cells written by hand: their tensors, as a recipe tells them, become PyTorch's.

What a recipe names is replaced in the state dict by the tensors that PyTorch's layer of that kind
would have, and the order of its layers becomes words of ``layers=``. From there on a hand-written
cell is one like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.blocks import Known
from fastlstm.sources.pytorch.module import Told
from fastlstm.sources.pytorch.order import Word
from fastlstm.sources.pytorch.state_dict import StateDict, Tensor, listing, to_array
from fastlstm.sources.recipe import Entry, Recipe, Stacked

__all__ = ["Translation", "translate"]

_GATES = {"lstm": spec.LSTM.gates, "gru": spec.GRU.gates}  # of the others, one without a name


@dataclass(frozen=True, slots=True)
class Translation:
    """A state dict in PyTorch's names, what is told of it, and the tensors it was made of."""

    found: StateDict
    told: Told
    sources: tuple[Tensor, ...]


def translate(
    recipe: Recipe, found: StateDict, told: Told, ignored: frozenset[str], dtype: str
) -> Translation:
    """Replace the tensors that a recipe names by those of PyTorch's layers.

    Parameters
    ----------
    recipe : Recipe
    found : StateDict
        The model's own tensors; those that the recipe does not name stay as they are.
    told : Told
        What modules tell.
    ignored : frozenset of str
        Names that no layer may use.
    dtype : {"float32", "float64"}
        What the new tensors are made in.

    Raises
    ------
    ConvertError
        If a tensor is missing, is there twice, is ignored, cannot be read or has a wrong shape.
    """
    layers = [
        _Layer(recipe, entry, found, dtype) if entry.tensors else None for entry in recipe.entries
    ]
    used = {tensor.name: tensor for layer in layers if layer for tensor in layer.sources()}
    for name in used:
        if name in ignored:
            raise ConvertError(
                f"ignore= matches {name!r:.200}, which recipe {recipe.name!r:.200} makes a layer "
                f"of; expected patterns of unused tensors only"
            )
    tensors = {name: tensor for name, tensor in found.tensors.items() if name not in used}
    taken = {name.rpartition(".")[0] for name in tensors}
    known, words, notes = dict(told.known), [], []
    for entry, layer in zip(recipe.entries, layers, strict=True):
        if layer is None:
            words.append(Word(entry.kind))
            continue
        path = _new_path(layer, taken)
        taken.add(path)
        known[path] = Known(entry.kind, entry.nonlinearity, options=entry.options)
        words.append(Word(entry.kind, path))
        for suffix, array in layer.arrays():
            name = f"{path}.{suffix}"
            tensors[name] = Tensor(name, array.shape, array.dtype.name, array)
        notes += [f"{path!r:.200}: {note}" for note in layer.notes]
    what = f" ({recipe.description})" if recipe.description else ""
    kinds = ", ".join(entry.kind for entry in recipe.entries)
    notes.insert(0, f"recipe {recipe.name!r}{what} was taken on your word: {kinds}")
    return Translation(
        replace(found, tensors=tensors),
        Told(known, tuple(words), "", (*told.notes, *notes)),
        tuple(used.values()),
    )


def _new_path(layer: _Layer, taken: set[str]) -> str:
    """A path for a layer's new tensors, unlike those taken.

    It is the name the recipe gives, or where the tensors were found, if nothing else lies there,
    or else their kind below that.
    """
    entry, old = layer.entry, layer.path
    own = {tensor.name for tensor in layer.sources()}
    if entry.name is not None:
        wanted = entry.name
    elif old and own.issuperset(n for n in layer.found.tensors if n.startswith(f"{old}.")):
        wanted = old
    else:
        wanted = f"{old}.{entry.kind}".removeprefix(".")
    path, number = wanted, 1
    while path in taken:
        number += 1
        path = f"{wanted}_{number}"
    return path


class _Layer:
    """One layer of a recipe, found among the tensors: its path and sizes, and then its arrays."""

    def __init__(self, recipe: Recipe, entry: Entry, found: StateDict, dtype: str) -> None:
        self.recipe, self.entry, self.found, self.dtype = recipe, entry, found, dtype
        self.gates = _GATES.get(entry.kind, "")
        self.notes: list[str] = []
        self.why = ""
        self.path = self.locate()
        self.copies = list(self.all_copies())
        for copy in self.copies:
            self.check_names(copy)

    # --- which tensors

    def names(self, number: int = 0, direction: int = 0) -> list[str]:
        """Full names of the tensors of one layer of a stack, in one direction."""
        parts = (part for stack in self.entry.tensors.values() for part in stack)
        return [self.full(part.name, number, direction) for part in parts if part.name]

    def full(self, name: str, number: int, direction: int) -> str:
        name = name.replace("{layer}", str(number))
        if self.entry.directions:
            name = name.replace("{direction}", self.entry.directions[direction])
        return f"{self.path}.{name}" if self.path else name

    def locate(self) -> str:
        """The one dotted path below which the first layer's tensors lie, "" where they are bare."""
        self.path = ""
        wanted = set(self.names())
        if wanted <= self.found.tensors.keys():
            return ""
        below: dict[str, set[str]] = {}
        for name in self.found.tensors:
            path, _, rest = name.partition(".")
            while rest:
                if rest in wanted:
                    below.setdefault(path, set()).add(rest)
                step, _, rest = rest.partition(".")
                path += f".{step}"
        whole = [path for path, names in below.items() if names == wanted]
        if len(whole) > 1:
            raise self.refused(
                f"the tensors of {self.entry.label} are there more than once, at "
                f"{', '.join(map(repr, whole[:20]))}; expected one of them: choose it with prefix="
            )
        # Where some are missing, the place with the most tells best which.
        some = max(below, key=lambda path: len(below[path]), default="")
        bare = wanted & self.found.tensors.keys()
        return whole[0] if whole else some if len(below.get(some, ())) > len(bare) else ""

    def all_copies(self) -> Iterable[tuple[int, int]]:
        """(number, direction) of each layer of the stack, in PyTorch's order."""

        def is_there(number: int, direction: int) -> bool:
            return any(name in self.found.tensors for name in self.names(number, direction))

        both = bool(self.entry.directions) and is_there(0, 1)
        depth = 1
        if "{layer}" in self.some_name:
            while is_there(depth, 0):
                depth += 1
        return [(n, d) for n in range(depth) for d in range(1 + both)]

    @property
    def some_name(self) -> str:
        return next(p.name for stack in self.entry.tensors.values() for p in stack if p.name)

    def check_names(self, copy: tuple[int, int]) -> None:
        missing = [name for name in self.names(*copy) if name not in self.found.tensors]
        if not missing:
            return
        if missing[0] in self.found.others:
            raise self.refused(
                f"{missing[0]!r:.200} is {self.found.others[missing[0]]!r:.100}; expected a "
                f"tensor, one of {self.entry.label}"
            )
        shown = ", ".join(repr(name)[:200] for name in missing[:20])
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise self.refused(
            f"{self.entry.label} lacks {shown}{more}. Tensors seen:\n"
            f"{listing(self.found.tensors.values())}"
        )

    def sources(self) -> list[Tensor]:
        return [self.found.tensors[name] for copy in self.copies for name in self.names(*copy)]

    def refused(self, why: str) -> ConvertError:
        return ConvertError(f"recipe {self.recipe.name!r:.200}: {why}")

    # --- what becomes of them

    def arrays(self) -> Iterable[tuple[str, npt.NDArray[Any]]]:
        """The new tensors, by their PyTorch names without the path; fills the notes."""
        if self.entry.kind in ("linear", "embedding"):
            return self.affine()
        return self.cell()

    def affine(self) -> Iterable[tuple[str, npt.NDArray[Any]]]:
        (weight,) = self.entry.tensors["weight"]
        rows, columns = self.oriented(weight, (0, 0))
        self.why = f"the outputs of {self.full(weight.name or '', 0, 0)!r:.200}"
        yield "weight", self.made("weight", "weight", (0, 0), rows, columns)
        if self.entry.tensors.get("bias"):
            yield "bias", self.made("bias", "bias", (0, 0), rows, 0)

    def cell(self) -> Iterable[tuple[str, npt.NDArray[Any]]]:
        hidden, columns = self.sizes()
        self.why = f"as the first weights tell input size {columns} and hidden size {hidden}"
        directions = self.copies[-1][1] + 1
        for number, direction in self.copies:
            copy = (number, direction)
            end = f"_l{number}{'_reverse' if direction else ''}"
            input_size = columns if number == 0 else hidden * directions
            yield from self.weights(copy, end, hidden, input_size)
            yield from self.biases(copy, end, hidden)

    def sizes(self) -> tuple[int, int]:
        """Hidden and input size, which the first weights tell."""
        tensors, first = self.entry.tensors, (0, 0)
        if self.entry.concatenated:
            part = tensors["weight"][0]
            rows, columns = self.oriented(part, first)
            hidden = rows // max(1, len(part.gates))
            if columns <= hidden:
                raise self.refused(
                    f"{self.said(part, first)} has {columns} inputs; expected more than "
                    f"{hidden}, the hidden size, since it multiplies x and h side by side"
                )
            return hidden, columns - hidden
        _, hidden = self.oriented(tensors["hidden_weight"][0], first)
        _, columns = self.oriented(tensors["input_weight"][0], first)
        return hidden, columns

    def weights(
        self, copy: tuple[int, int], end: str, hidden: int, input_size: int
    ) -> Iterable[tuple[str, npt.NDArray[Any]]]:
        if not self.entry.concatenated:
            # The hidden weights are judged first: as their gates are square, they tell the most.
            for part in self.entry.tensors["hidden_weight"]:
                self.check_shape("hidden_weight", part, copy, hidden, hidden)
            for suffix, key, columns in (
                (f"weight_ih{end}", "input_weight", input_size),
                (f"weight_hh{end}", "hidden_weight", hidden),
            ):
                yield suffix, self.made(suffix, key, copy, hidden, columns)
            return
        suffixes = [f"weight_ih{end}", f"weight_hh{end}"]
        whole = self.made(" and ".join(suffixes), "weight", copy, hidden, input_size + hidden)
        cut = input_size if self.entry.concatenated == "xh" else hidden
        halves = [whole[:, :cut], whole[:, cut:]]
        yield from zip(
            suffixes, halves if self.entry.concatenated == "xh" else halves[::-1], strict=True
        )

    def biases(
        self, copy: tuple[int, int], end: str, hidden: int
    ) -> Iterable[tuple[str, npt.NDArray[Any]]]:
        given = {key: stack for key, stack in self.entry.tensors.items() if key.endswith("bias")}
        if not any(given.values()):
            return
        sides = {"bias_ih": ("bias", "input_bias"), "bias_hh": ("hidden_bias",)}
        for side, keys in sides.items():
            suffix = f"{side}{end}"
            key = next((key for key in keys if given.get(key)), None)
            if key is not None:
                yield suffix, self.made(suffix, key, copy, hidden, 0)
            else:
                self.notes.append(f"{suffix} zero")
                yield suffix, np.zeros(hidden * max(1, len(self.gates)), self.dtype)

    def oriented(self, part: Stacked, copy: tuple[int, int]) -> tuple[int, int]:
        """(outputs, inputs) of a weight."""
        tensor = self.tensor(part, copy)
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise self.refused(
                f"{self.said(part, copy)} has shape {tensor.shape}; expected 2 dimensions, none "
                f"of them 0"
            )
        rows, columns = tensor.shape[:: -1 if self.entry.transposed else 1]
        return rows, columns

    def tensor(self, part: Stacked, copy: tuple[int, int]) -> Tensor:
        return self.found.tensors[self.full(part.name or "", *copy)]

    def made(
        self, suffix: str, key: str, copy: tuple[int, int], rows: int, columns: int
    ) -> npt.NDArray[Any]:
        """One weight (G * rows, columns), or bias (G * rows,) where columns is 0."""
        stack = self.entry.tensors[key]
        blocks: dict[str, npt.NDArray[Any]] = {}
        for part in stack:
            count = max(1, len(part.gates))
            if part.name is None:
                array = np.zeros(count * rows, self.dtype)
            else:
                self.check_shape(key, part, copy, rows, columns)
                array = to_array(self.tensor(part, copy), self.dtype)
                if columns == 0:
                    array = array.reshape(-1)
                elif self.entry.transposed:
                    array = array.T
            blocks |= zip(part.gates or ("",), np.split(array, count), strict=True)
        for gate in self.entry.negated:
            # 1 - sigmoid(a) is sigmoid(-a), so what makes 1 - z is what makes z, negated.
            blocks[gate] = -blocks[gate]
        self.notes.append(self.note(suffix, stack, copy, columns))
        return np.ascontiguousarray(np.concatenate([blocks[g] for g in self.gates or ("",)]))

    def check_shape(
        self, key: str, part: Stacked, copy: tuple[int, int], rows: int, columns: int
    ) -> None:
        """Refuse a weight that is not (gates * rows, columns), or, without columns, a bias."""
        shape, gates = self.tensor(part, copy).shape, max(1, len(part.gates))
        rows *= gates
        if columns == 0:
            allowed = [(rows,), (1, rows), (rows, 1)]
        else:
            allowed = [(columns, rows) if self.entry.transposed else (rows, columns)]
        if shape in allowed:
            return
        hint = ""
        if columns and len(shape) == 2:
            outputs, inputs = shape[:: 1 if self.entry.transposed else -1]
            fitting = {"hidden_weight": gates * inputs, "input_weight": rows}
            if outputs == fitting.get(key):
                other_way = str(not self.entry.transposed).lower()
                hint = f"; it would fit with transposed = {other_way}"
        raise self.refused(
            f"{self.said(part, copy)} has shape {shape}; expected {allowed[0]}, {self.why}{hint}"
        )

    def said(self, part: Stacked, copy: tuple[int, int]) -> str:
        gates = f"gate{'s' * (len(part.gates) > 1)} {part.gates} of " if part.gates else ""
        return f"tensor {self.full(part.name or '', *copy)!r:.200} ({gates}{self.entry.label})"

    def note(
        self, suffix: str, stack: Iterable[Stacked], copy: tuple[int, int], columns: int
    ) -> str:
        """What a tensor was made of."""
        names = [repr(self.full(p.name, *copy))[:200] if p.name else "zeros" for p in stack]
        said = "".join(part.gates for part in stack)
        how = [", transposed"] if columns and self.entry.transposed else []
        if said != self.gates:
            how.append(f", its gates {said} put in the order {self.gates}")
        if self.entry.negated:
            how.append(f", {self.entry.negated} negated")
        return f"{suffix} from {', '.join(names)}{''.join(how)}"
