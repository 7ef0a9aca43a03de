"""What every source makes: a graph, its tensors, how the source is called, and a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.signature import BATCH, TIME, Argument, Call
from fastlstm.sources.pytorch.state_dict import Tensor

__all__ = [
    "BATCH",
    "TIME",
    "Argument",
    "Call",
    "Conversion",
    "chosen_vocabulary",
    "conversions",
    "joined",
]


@dataclass(frozen=True, eq=False)
class Conversion:
    """A model read from somewhere.

    Parameters
    ----------
    graph : spec.Graph
        Checked.
    tensors : dict of str to array
        Exactly those the graph asks for, each with its shape, all of one dtype, C-contiguous, not
        shared with the source.
    report : tuple of str
        Sentences on what each layer was made of, what was converted, left out or taken on the
        caller's word.
    vocabulary : tuple of str, or None
        The string of each token, in order; only of a model that takes tokens.
    call : Call, or None
        How the source is called, where it can be.
    """

    graph: spec.Graph
    tensors: dict[str, npt.NDArray[Any]]
    report: tuple[str, ...]
    vocabulary: tuple[str, ...] | None = None
    call: Call | None = None


def conversions(tensors: Iterable[Tensor], dtype: str) -> list[str]:
    """A line for each dtype that was converted to the model's, with the names of its tensors."""
    bits = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
    names: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.dtype != dtype:
            names.setdefault(tensor.dtype, []).append(tensor.name)
    return [
        f"{'widened' if bits[stored] < bits[dtype] else 'narrowed'} from {stored} to {dtype}: "
        f"{joined(these)}"
        for stored, these in names.items()
    ]


def joined(names: Sequence[str], most: int = 20) -> str:
    """Names in a line, no more than `most` of them."""
    # Names may come from a hostile file and end up on a terminal.
    shown = [name[:200] if name.isprintable() else repr(name)[:200] for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def chosen_vocabulary(
    given: Sequence[str] | None, found: tuple[str, tuple[str, ...]] | None, graph: spec.Graph
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The vocabulary of the model, and a note where it came from or why there is none."""
    tokens = next((one.tokens for one in graph.inputs if not one.held), 0)
    takes = f"the model takes {tokens or 'no'} tokens"
    if given is not None:
        if len(set(given)) != len(given):
            raise ConvertError(
                f"vocabulary holds {len(given)} strings, but only {len(set(given))} different "
                f"ones; expected no string twice"
            )
        if len(given) != tokens:
            raise ConvertError(
                f"vocabulary has {len(given)} strings, but {takes}; expected one string for each "
                f"token" + ("" if tokens else ", and layers= beginning with one_hot or embedding")
            )
        return tuple(given), (f"a vocabulary of {len(given)} strings was taken on your word",)
    if found is None:
        return None, ()
    key, strings = found
    if len(strings) != tokens:
        why = f"it has {len(strings)} strings, and {takes}"
        return None, (f"{key!r} of the checkpoint was left out: {why}",)
    return strings, (f"a vocabulary of {len(strings)} strings was read from {key!r}",)
