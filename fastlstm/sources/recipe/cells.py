"""The tensors of one layer of a recipe, as they lie in the file, put into the model's form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.state_dict import Tensor, listing, to_array
from fastlstm.sources.recipe.entries import CELLS, Entry, Recipe, Stacked
from fastlstm.sources.recipe.places import Names, Place

__all__ = ["Found"]

Copy = tuple[int, int]
Array = npt.NDArray[Any]

_NORMS = {"norm_weight": "weight_norm"} | {
    f"norm_{key}_{kind}": f"{kind}_norm_{suffix}"
    for key, suffix in (("input", "ih"), ("hidden", "hh"), ("cell", "c"))
    for kind in ("weight", "bias")
}


class Found:
    """A layer that is there: its names are checked at once, its shapes by :meth:`check`.

    Parameters
    ----------
    recipe : Recipe
    entry : Entry
    names : Names
    others : mapping of str to object
        What stands among the tensors that is none.
    place : Place
    dtype : {"float32", "float64"}

    Raises
    ------
    ConvertError
        If a tensor is missing.
    """

    def __init__(
        self,
        recipe: Recipe,
        entry: Entry,
        names: Names,
        others: Mapping[str, object],
        place: Place,
        dtype: str,
    ) -> None:
        self.recipe, self.entry, self._names, self.place = recipe, entry, names, place
        self.dtype = dtype
        self.notes: list[str] = []
        self.why = ""
        self.copies = place.copies(lambda name: names.find(name) is not None)
        for copy in self.copies:
            self.check_names(copy, others)
        self.hidden = self.inputs = self.h_size = 0

    def check_names(self, copy: Copy, others: Mapping[str, object]) -> None:
        missing = [name for name in self.place.names(copy) if self._names.find(name) is None]
        if not missing:
            return
        if missing[0] in others:
            raise self.refused(
                f"{missing[0]!r:.200} is {others[missing[0]]!r:.100}; expected a tensor, one of "
                f"{self.entry.label}"
            )
        shown = ", ".join(repr(name)[:200] for name in missing[:20])
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise self.refused(
            f"{self.entry.label} lacks {shown}{more}. Tensors seen:\n"
            f"{listing(self._names.tensors.values())}"
        )

    def sources(self) -> list[Tensor]:
        """The tensors in the file that it is made of."""
        tensors = [self.find(name) for copy in self.copies for name in self.place.names(copy)]
        return [self._names.tensors[tensor.name] for tensor in tensors]

    def find(self, name: str) -> Tensor:
        tensor = self._names.find(name)
        assert tensor is not None  # its name was checked
        return tensor

    def refused(self, why: str) -> ConvertError:
        return ConvertError(f"recipe {self.recipe.name!r:.200}: {why}")

    # --- what becomes of them

    def layer(self) -> spec.Layer | None:
        """The layer of these shapes, called "block"; None if it is for ``layers=`` to say.

        Raises
        ------
        ConvertError
            If a shape is wrong.
        """
        entry, tensors = self.entry, self.entry.tensors
        if entry.kind not in CELLS:
            if entry.kind not in ("linear", "embedding"):
                self.check_axes()
                return None
            rows, columns = self.oriented(tensors["weight"][0], (0, 0))
            self.why = f"the outputs of {self.place.full(tensors['weight'][0], (0, 0))!r:.200}"
            if entry.kind == "embedding":
                return spec.Embedding("block", rows, columns)
            self.check_stack("bias", (0, 0), rows, 0)
            return spec.Linear("block", columns, rows, bias=bool(tensors["bias"]))
        self.hidden, self.h_size, self.inputs = self.sizes()
        self.why = (
            f"as the first weights tell input size {self.inputs} and hidden size {self.hidden}"
        )
        for copy in self.copies:
            for _, key, _, rows, columns in self.wanted(copy):
                self.check_stack(key, copy, rows, columns)
        options = dict(entry.options or {})
        if self.h_size != self.hidden or tensors.get("projection"):
            options["proj_size"] = self.h_size
        try:
            return CELLS[entry.kind](
                "block",
                self.inputs,
                self.hidden,
                self.copies[-1][0] + 1,
                self.has_bias,
                self.copies[-1][1] == 1,
                **options,
            )
        except ValueError as error:
            why = str(error).removeprefix("layer 'block': ")
            raise self.refused(f"{entry.label}: {why}") from None

    def arrays(self) -> dict[str, Array]:
        """The tensors of the layer by suffix, once its shapes were checked; fills the notes."""
        if self.entry.kind not in CELLS:
            rows, columns = (0, 0) if self.layer() is None else self.oriented(
                self.entry.tensors["weight"][0], (0, 0)
            )  # fmt: skip
            return {
                key: self.made(key, key, (0, 0), "", rows, columns * (key == "weight"))
                if rows
                else self.moved(key)
                for key, stack in self.entry.tensors.items()
                if stack
            }
        made: dict[str, Array] = {}
        for copy in self.copies:
            end = f"_l{copy[0]}{'_reverse' if copy[1] else ''}"
            for suffix, key, gates, rows, columns in self.wanted(copy):
                if suffix != "weight":
                    made[suffix + end] = self.made(suffix + end, key, copy, gates, rows, columns)
                    continue
                names = f"weight_ih{end}", f"weight_hh{end}"
                whole = self.made(" and ".join(names), key, copy, gates, rows, columns)
                first = self.entry.concatenated == "xh"
                cut = columns - self.h_size if first else self.h_size
                halves = (whole[:, :cut], whole[:, cut:])[:: 1 if first else -1]
                made |= zip(names, map(np.ascontiguousarray, halves), strict=True)
        return made | self.states()

    @property
    def gates(self) -> str:
        return self.entry.gates

    @property
    def has_bias(self) -> bool:
        keys = ("bias", "input_bias", "hidden_bias")
        return bool(self.entry.forget_bias) or any(self.entry.tensors.get(key) for key in keys)

    def wanted(self, copy: Copy) -> Iterator[tuple[str, str, str, int, int]]:
        """(suffix, key, gates, rows of each, columns) of every tensor of a copy."""
        tensors, gates, H = self.entry.tensors, self.gates, self.hidden
        directions = self.copies[-1][1] + 1
        inputs = self.inputs if copy[0] == 0 else self.h_size * directions
        if self.entry.concatenated:
            yield "weight", "weight", gates, H, inputs + self.h_size
        else:
            # The hidden weights are judged first: as their gates are square, they tell the most.
            yield "weight_hh", "hidden_weight", gates, H, self.h_size
            yield "weight_ih", "input_weight", gates, H, inputs
        if self.has_bias:
            first = "bias" if "bias" in tensors else "input_bias"
            yield "bias_ih", first, gates, H, 0
            yield "bias_hh", "hidden_bias", gates, H, 0
        if "projection" in tensors:
            yield "weight_hr", "projection", "", self.h_size, H
        if "peephole" in tensors:
            yield "weight_peephole", "peephole", gates.replace("g", ""), H, 0
        for key, suffix in _NORMS.items():
            if key in tensors:
                yield suffix, key, "" if "cell" in key else gates, H, 0

    def states(self) -> dict[str, Array]:
        """The states that a sequence starts from: (N * D, size) of each."""
        made: dict[str, Array] = {}
        if not (self.entry.options or {}).get("initial_state"):
            return made
        count = len(self.copies)
        for name, size in (("h", self.h_size), ("c", self.hidden)):
            key = f"initial_state.{name}"
            if key not in self.entry.tensors:
                continue
            made[f"{name}_0"] = np.zeros((count, size), self.dtype)
            for part in self.entry.tensors[key]:
                each = len(part.names) > 1 or "{" in part.names[0]
                rows = [self.state(part, copy, 1, size) for copy in self.copies] if each else [
                    self.state(part, (0, 0), count, size)
                ]  # fmt: skip
                made[f"{name}_0"] = np.concatenate(rows)
                self.notes.append(self.note(f"{name}_0", [part], self.copies[0], 0))
        return made

    def state(self, part: Stacked, copy: Copy, count: int, size: int) -> Array:
        tensor = self.find(self.place.full(part, copy))
        shapes = [(count, size), (count, 1, size), *[(size,), (size, 1)] * (count == 1)]
        if tensor.shape not in shapes:
            raise self.refused(
                f"{self.said(part, copy)} has shape {tensor.shape}; expected {shapes[0]}, the "
                f"state of {count} layer{'s' * (count > 1)}"
            )
        return to_array(tensor, self.dtype).reshape(count, size)

    def sizes(self) -> tuple[int, int, int]:
        """Hidden size, size of h, and input size, which the first weights tell."""
        tensors, first = self.entry.tensors, (0, 0)
        h_size = 0
        if "projection" in tensors:
            h_size = self.oriented(tensors["projection"][0], first)[0]
        if self.entry.concatenated:
            part = tensors["weight"][0]
            rows, columns = self.oriented(part, first)
            hidden = rows // max(1, len(part.gates))
            if columns <= (h_size or hidden):
                raise self.refused(
                    f"{self.said(part, first)} has {columns} inputs; expected more than "
                    f"{h_size or hidden}, the hidden size, since it multiplies x and h side by side"
                )
            return hidden, h_size or hidden, columns - (h_size or hidden)
        part = tensors["hidden_weight"][0]
        rows, hidden = self.oriented(part, first)
        _, columns = self.oriented(tensors["input_weight"][0], first)
        if h_size:
            return rows // max(1, len(part.gates)), h_size, columns
        return hidden, hidden, columns

    def oriented(self, part: Stacked, copy: Copy) -> tuple[int, int]:
        """(outputs, inputs) of a weight."""
        tensor = self.find(self.place.full(part, copy))
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise self.refused(
                f"{self.said(part, copy)} has shape {tensor.shape}; expected 2 dimensions, none "
                f"of them 0"
            )
        rows, columns = tensor.shape[:: -1 if self.entry.transposed else 1]
        return rows, columns

    def check_axes(self) -> None:
        """Refuse tensors of a word of ``layers=`` that have not as many axes as its own."""
        kernel = re.fullmatch(r"conv\w*(\d)d(\(.*)?", self.entry.kind)
        for key, part in (
            (key, part) for key, stack in self.entry.tensors.items() for part in stack
        ):
            tensor = self.find(self.place.full(part, (0, 0)))
            axes = 2 + int(kernel[1]) if kernel and key == "weight" else 1
            if len(tensor.shape) != axes or 0 in tensor.shape:
                raise self.refused(
                    f"{self.said(part, (0, 0))} has shape {tensor.shape}; expected {axes} "
                    f"dimension{'s' * (axes > 1)}, none of them 0"
                )

    def moved(self, key: str) -> Array:
        """A tensor of a layer that ``layers=`` has a word for: as it is, or its axes reversed."""
        (part,) = self.entry.tensors[key]
        tensor = self.find(self.place.full(part, (0, 0)))
        array = to_array(tensor, self.dtype)
        self.notes.append(self.note(key, [part], (0, 0), array.ndim - 1))
        return np.ascontiguousarray(array.T) if self.entry.transposed else array

    def made(self, suffix: str, key: str, copy: Copy, gates: str, rows: int, columns: int) -> Array:
        """One weight (G * rows, columns), or vector (G * rows,) where columns is 0."""
        stack = self.entry.tensors.get(key, ())
        each = gates or ("",)
        blocks: dict[str, Array] = dict.fromkeys(each, np.zeros(rows, self.dtype))
        for part in (part for part in stack if part.names):
            array = to_array(self.find(self.place.full(part, copy)), self.dtype)
            array = array.reshape(-1) if columns == 0 else array
            if columns and self.entry.transposed:
                array = array.T
            of = part.gates or ("",)
            blocks |= zip(of, np.split(array, len(of)), strict=True)
        for gate in self.entry.negated if gates else ():
            # 1 - sigmoid(a) is sigmoid(-a), so what makes 1 - z is what makes z, negated.
            blocks[gate] = -blocks[gate]
        if columns and self.entry.cudnn:
            blocks = {
                gate: (block.T if self.entry.transposed else block).reshape(rows, columns)
                for gate, block in blocks.items()
            }
        note = self.note(suffix, stack, copy, columns) if stack else f"{suffix} zero"
        if self.entry.forget_bias and suffix.startswith("bias_ih"):
            blocks["f"] = blocks["f"] + self.entry.forget_bias
            note += f", {self.entry.forget_bias:g} added to its gate f"
        self.notes.append(note)
        return np.ascontiguousarray(np.concatenate([blocks[gate] for gate in each]))

    def check_stack(self, key: str, copy: Copy, rows: int, columns: int) -> None:
        """Refuse a weight that is not (gates * rows, columns), or, without columns, a vector."""
        for part in self.entry.tensors.get(key, ()):
            if part.names:
                self.check_shape(key, part, copy, rows, columns)

    def check_shape(self, key: str, part: Stacked, copy: Copy, rows: int, columns: int) -> None:
        shape, gates = self.find(self.place.full(part, copy)).shape, max(1, len(part.gates))
        rows *= gates
        if columns == 0:
            allowed: list[tuple[int, ...]] = [(rows,), (1, rows), (rows, 1)]
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
        if shape == (2 * rows,) and key == "bias" and self.gates:
            hint = (
                "; it is as CuDNN's cells of Keras have it, of two biases, whose kernels lie "
                "otherwise too: recipe='keras-cudnn' reads both"
            )
        raise self.refused(
            f"{self.said(part, copy)} has shape {shape}; expected {allowed[0]}, {self.why}{hint}"
        )

    def said(self, part: Stacked, copy: Copy) -> str:
        gates = f"gate{'s' * (len(part.gates) > 1)} {part.gates} of " if part.gates else ""
        return f"tensor {self.place.full(part, copy)!r:.200} ({gates}{self.entry.label})"

    def note(self, suffix: str, stack: Sequence[Stacked], copy: Copy, columns: int) -> str:
        """What a tensor was made of."""
        names = [repr(self.place.full(p, copy))[:200] if p.names else "zeros" for p in stack]
        said = "".join(part.gates for part in stack)
        gates = "".join(gate for gate in self.gates if gate in said)
        how = [", transposed"] if columns and self.entry.transposed else []
        how += [" from CuDNN's order in memory"] * bool(columns and self.entry.cudnn)
        if said != gates:
            how.append(f", its gates {said} put in the order {gates}")
        if self.entry.negated and said:
            how.append(f", {self.entry.negated} negated")
        return f"{suffix} from {', '.join(names)}{''.join(how)}"
