"""The forward of a live module as a program of arrays: recorded anew for each size of inputs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder, Value
from fastlstm.sources.aten import Ragged
from fastlstm.sources.aten.forward import Input, Ran, Zeros, flat
from fastlstm.sources.conversion import BATCH, TIME
from fastlstm.sources.live import inputs
from fastlstm.sources.live.inputs import B, Given, arguments
from fastlstm.sources.live.states import State, nested, states_of
from fastlstm.sources.live.subject import Subject
from fastlstm.sources.live.watch import line_of, tensors_in
from fastlstm.sources.torchscript.archive import read_archive
from fastlstm.sources.torchscript.program import ScriptForward

__all__ = ["LiveForward"]

Array = npt.NDArray[Any]
SizesOf = Mapping[str, tuple[int, ...]]

# Code that is no forward of a user's: torch's own, and the one that is recorded here.
_INNER = re.compile(r"[/\\\\]torch[/\\\\]|sources[/\\\\]live[/\\\\]forward\.py$")


@dataclass(frozen=True, eq=False)
class _Record:
    """A forward that was recorded, and what torch knows of where each operator was called."""

    script: ScriptForward
    traced: Any


class LiveForward:
    """The forward of a module, as :class:`~fastlstm.sources.aten.forward.Forward` has it.

    Parameters
    ----------
    subject : Subject
    given : Given
        What it takes.

    Raises
    ------
    ConvertError
        If no record can have what it does.
    """

    def __init__(self, subject: Subject, given: Given) -> None:
        self.subject, self.given = subject, given
        first = arguments(subject, given, given.sizes)
        returned = subject.watched(first)
        self.states: tuple[State, ...] = states_of(
            subject, first, arguments(subject, given, _larger(given))
        )
        self._starts = {place: s for state in self.states for place, s in state.starts.items()}
        self.inputs = tuple(
            Input(one.place, one.shape, one.kind, state=one.state, axes=_axes(one))
            for one in given.arrays
            if one.kind != "lengths"
        )
        self.outputs = tuple(place or "output" for place, _ in flat(returned))
        for place, value in flat(returned):
            if not [*tensors_in(value)]:
                raise ConvertError(
                    f"forward returns {value!r:.60} as {place or 'its output'}; expected arrays"
                )
        self.attributes: dict[str, Any] = dict(self._starts)
        self.dtypes: dict[int, str] = {}
        self._recorded: dict[Any, _Record] = {}

    def may_write(self) -> Mapping[str, Array | Zeros]:
        """By path, arrays that a call changes."""
        return self._starts

    def __call__(
        self, builder: Builder, given: Mapping[str, Any], states: Mapping[str, Any]
    ) -> Ran:
        """Follow it once, with these inputs and what these attributes hold."""
        first = self.given.arrays[0]
        rows = dict(zip(first.pattern, given[first.place].shape, strict=True)).get("b", 1)
        values: dict[str, Any] = {}
        for one in self.given.arrays:
            ragged = one.kind == "lengths"
            values[one.place] = Ragged("lengths", rows) if ragged else _own(given[one.place])
        for place, start in self._starts.items():
            if place not in states and isinstance(start, Zeros):
                raise ConvertError(f"attribute {place!r:.200} is no state")
            values[place] = _own(states.get(place, start))
        record = self._record(
            {
                place: (value.size,) if isinstance(value, Ragged) else tuple(value.shape)
                for place, value in values.items()
            }
        )
        names = [one.name for one in record.script.inputs]
        try:
            ran = record.script(builder, dict(zip(names, values.values(), strict=True)), {})
        except ConvertError as error:
            _place(error, record.traced)
            raise
        returned = [*ran.returned.values()]
        count = len(returned) - len(self._starts)
        if count != len(self.outputs):
            raise ConvertError(
                f"it gives {len(self.outputs)} arrays of one size of its inputs, and {count} of "
                f"another"
            )
        outputs = ["" if place == "output" else place for place in self.outputs]
        return Ran(
            dict(zip(outputs, returned, strict=False)),
            dict(zip(self._starts, returned[count:], strict=True)),
        )

    def _record(self, sizes: SizesOf) -> _Record:
        """The record of forward for arrays of these sizes, states behind the arguments."""
        key = tuple(sizes.items())
        if key not in self._recorded:
            made = self._recorded[key] = self._recorded_anew(sizes)
            self.dtypes.update(made.script.dtypes)
        return self._recorded[key]

    def _recorded_anew(self, sizes: SizesOf) -> _Record:
        import torch

        subject, module = self.subject, self.subject.module
        given = arguments(subject, self.given, sizes)
        dtypes = [dtype for state in self.states for dtype in state.dtypes]
        held = [
            torch.zeros(sizes[place], dtype=dtype)
            if isinstance(start, Zeros)
            else torch.from_numpy(np.array(start))
            for (place, start), dtype in zip(self._starts.items(), dtypes, strict=True)
        ]
        own = module.forward

        def forward(*arrays: Any) -> Any:
            """The forward of arrays alone, each state given and given back as one of them."""
            left = iter(arrays)
            named = {
                name: tuple(next(left) for _ in places) if isinstance(places, tuple) else next(left)
                for name, places in self.given.nested.items()
            }
            for state in self.states:
                subject.put(state.path, nested(state.nest, lambda: next(left)))
            returned = [tensor for _, tensor in flat(own(**named))]
            kept = [t for state in self.states for t in tensors_in(subject.get(state.path))]
            return (*returned, *kept)

        with subject.as_it_was(), torch.no_grad():
            vars(module)["forward"] = forward
            try:
                trace: Any = torch.jit.trace
                traced = trace(module, (*tensors_in(given), *held), check_trace=False)
                archive = io.BytesIO(traced.save_to_buffer())
            except ConvertError:
                raise
            except Exception as error:  # of whatever a forward does
                text = " ".join(str(error).split())
                raise ConvertError(
                    f"it cannot be recorded: {type(error).__name__}: {text[:300]}"
                ) from error
        return _Record(ScriptForward(read_archive(archive)), traced)


def _own(value: Any) -> Any:
    """An array that may be written into."""
    return Value(value.places.copy(), value.kind) if isinstance(value, Value) else value


def _axes(one: inputs.Array) -> tuple[str | int, ...]:
    """What the axes of an array are that was tried."""
    letters: dict[str, str] = {"b": BATCH, "t": TIME}
    return tuple(
        letters.get(letter, size) for letter, size in zip(one.pattern, one.tried, strict=True)
    )


def _larger(given: Given) -> dict[str, tuple[int, ...]]:
    """The sizes of one more row of the batch."""
    return {
        one.place: tuple(
            size + 1 if open_ is None and size == B else size
            for open_, size in zip(one.shape, one.tried, strict=True)
        )
        for one in given.arrays
    }


def _place(error: ConvertError, traced: Any) -> None:
    """Have an error name the line of the module's own code, in place of that of the record."""
    operator, nth = getattr(error, "operator", ""), getattr(error, "nth", 0)
    nodes = [n for n in traced.inlined_graph.nodes() if n.kind() == f"aten::{operator}"]
    text = re.sub(r" \(in the line .*\)$", "", str(error), flags=re.DOTALL)
    if 0 < nth <= len(nodes):
        for place in nodes[nth - 1].sourceRange().split("\n"):
            found = re.fullmatch(r"(.*)\((\d+)\): (.*)", place)
            if found and not _INNER.search(found[1]):
                text += line_of("", found[1], int(found[2]))
                break
    error.args = (text,)
    error.line = error.line or "recorded"  # type: ignore[attr-defined]
