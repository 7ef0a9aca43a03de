"""What a recipe says, read and checked: its layers, and what each is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastlstm import spec

__all__ = ["CELLS", "GATES", "Entry", "Recipe", "Stacked"]

CELLS: dict[str, type[spec.Recurrent]] = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}
GATES = {"lstm": spec.LSTM.gates, "gru": spec.GRU.gates}  # an RNN has one, without a name


@dataclass(frozen=True, slots=True)
class Stacked:
    """A tensor and the gates stacked in it.

    Parameters
    ----------
    gates : str
        "" where there is one.
    names : tuple of str
        One name; or one for each layer of a stack and direction; none for zeros.
    """

    gates: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One layer of a recipe.

    Parameters
    ----------
    label : str
        What it is called in messages.
    kind : str
        "lstm", "gru", "rnn", "linear", "embedding", or any words of ``layers=``.
    name : str or None
        What the layer is to be called.
    tensors : dict of str to tuple of Stacked
        By key, what each weight, bias and state is made of; empty for zeros.
    transposed : bool
    concatenated : str
        "xh" or "hx" if ``weight`` is both weights of a cell, else "".
    directions : tuple of str
        What stands for ``{direction}``, none or two.
    layers : tuple of str
        What stands for ``{layer}``; consecutive numbers if it is empty.
    bidirectional : bool
        Whether there are two directions whose names are listed.
    negated : str
        The gate that is one minus PyTorch's, "" if none is.
    forget_bias : float
        What the code adds to the forget gate's bias.
    cudnn : bool
        Whether the matrix of each gate lies in memory as CuDNN has it: (outputs, inputs), whatever
        its shape says.
    options : dict of str to object
        Fields of the layer in :mod:`fastlstm.spec` that weights do not tell.
    nonlinearity : str or None
        Of an RNN, if it is told.
    """

    label: str
    kind: str
    name: str | None
    tensors: dict[str, tuple[Stacked, ...]]
    transposed: bool = False
    concatenated: str = ""
    directions: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    bidirectional: bool = False
    negated: str = ""
    forget_bias: float = 0.0
    cudnn: bool = False
    options: dict[str, Any] | None = None
    nonlinearity: str | None = None

    @property
    def gates(self) -> str:
        """Gates in the order of the model's tensors; "" where there is one."""
        gates = GATES.get(self.kind, "")
        return gates.replace("f", "") if (self.options or {}).get("coupled") else gates


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: what it is called, what it says it is for, and its layers.

    They stand in the order in which they run; or, if not `ordered`, each is a kind of layer that
    is there as often as its tensors are.
    """

    name: str
    description: str
    entries: tuple[Entry, ...]
    ordered: bool = True
