"""Recurrent stacks -> cells.

The rows of the input come first in a cell's panels, then those of ``h``. Tokens in front of a cell,
one-hot or embedded, need no such rows: the product of every token is made here, once, and the
kernel looks it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from fastlstm import chain as spec
from fastlstm.pack.panels import (
    Array,
    Panels,
    aligned_zeros,
    fill,
    groups_of,
    pack_matrix,
    pack_vector,
    padded,
    read,
    read_matrices,
)

__all__ = ["Cell", "Layout", "Variant", "pack_cell", "packed_size", "read_cell"]


class Variant(SimpleNamespace):
    """What makes a cell another than PyTorch's: ``fl_variant``; its fields by keyword."""

    functions: list[spec.Function]
    h_bias: Array
    clip: float = 0.0
    cell_clip: float = 0.0
    norm: str = ""
    eps: float = 0.0
    coupled: bool = False
    bias: Array | None = None
    peepholes: Sequence[Array | None] = (None, None, None)
    norm_x: Sequence[Array | None] = (None, None)
    norm_h: Sequence[Array | None] = (None, None)
    norm_c: Sequence[Array | None] = (None, None)
    norm_gate: Array | None = None
    reset_gates: Panels | None = None
    reset_candidate: Panels | None = None


class Cell(SimpleNamespace):
    """One direction of one layer of a stack, its fields by keyword; offsets count elements of a
    state or output row.
    """

    gates: Panels
    input_rows: int
    hidden_size: int
    h_size: int
    function: spec.Function
    y_offset: int
    h_offset: int = 0
    c_offset: int = 0
    projection: Panels | None = None
    variant: Variant | None = None
    bias_n: Array | None = None
    table: Array | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Layout:
    """Panels of a cell, vectors and units of each, and how many gates those vectors are."""

    panels: int
    groups: int
    units: int
    gates: int

    @classmethod
    def of(cls, layer: spec.Recurrent, lanes: int) -> Layout:
        H, gates = layer.hidden_size, layer.gate_count
        if gates > 1:
            return cls(-(-H // lanes), gates, lanes, gates)
        groups = groups_of(H, lanes)
        return cls(-(-H // (groups * lanes)), groups, groups * lanes, 1)

    def vector(self, values: Array) -> Array:
        """One value for every unit of every gate, (P, G, L)."""
        return pack_vector(values, self.panels, self.groups, self.units, self.gates)

    def of_one_gate(self, values: Array) -> Array:
        """One value for every unit of a cell with gates, (P, 1, L)."""
        return pack_vector(values, self.panels, 1, self.units, 1)


def _resets_before(layer: spec.Recurrent) -> bool:
    return isinstance(layer, spec.GRU) and not layer.reset_after


def packed_size(layer: spec.Recurrent, lanes: int) -> int:
    """Elements of the weights and biases of a stack once packed."""
    at, total = Layout.of(layer, lanes), 0
    for _, input_size in layer.sizes():
        total += at.panels * at.groups * lanes * (input_size + layer.h_size + 1)
        total += layer.hidden_size * padded(layer.projection, lanes)
    return total


def _sum(a: Array, b: Array) -> Array:
    """One rounding instead of PyTorch's two."""
    total: Array = (a.astype(np.float64) + b).astype(a.dtype)
    return total


def _own_panels(matrix: Array, gates: int, at: Layout, bias: Array | None = None) -> Panels:
    """A matrix (gates * H, K) for some of the gates of a cell."""
    weights = aligned_zeros((at.panels, matrix.shape[1], gates, at.units), matrix.dtype)
    fill(weights, matrix, 0, at.units, gates)
    if bias is None:
        bias = np.zeros(len(matrix), matrix.dtype)
    return Panels.of(weights, Layout(at.panels, gates, at.units, gates).vector(bias))


def _pack_variant(
    layer: spec.LSTM | spec.GRU, get: Mapping[str, Array], suffix: str, at: Layout, direction: int
) -> Variant:
    """The biases in `get` are there, of zeros if the layer has none."""
    H, b_hh = layer.hidden_size, get["bias_hh" + suffix]
    functions = layer.functions(direction)
    zeros = np.zeros(layer.gate_count * H, b_hh.dtype)
    if isinstance(layer, spec.GRU):
        h_bias = at.vector(np.append(zeros[: 2 * H], b_hh[2 * H :]))
        made = Variant(functions=functions, h_bias=h_bias, clip=layer.clip)
        if _resets_before(layer):
            w_hh = get["weight_hh" + suffix]
            made.reset_gates = _own_panels(w_hh[: 2 * H], 2, at)
            made.reset_candidate = _own_panels(w_hh[2 * H :], 1, at, b_hh[2 * H :])
            made.h_bias = made.reset_gates.bias
        return made
    made = Variant(
        functions=functions,
        h_bias=at.vector(zeros),
        clip=layer.clip,
        cell_clip=layer.cell_clip,
        norm=layer.layer_norm,
        eps=layer.layer_norm_eps,
        coupled=layer.coupled,
    )
    if layer.peepholes:
        parts = list(map(at.of_one_gate, get["weight_peephole" + suffix].reshape(-1, H)))
        made.peepholes = [parts[0], None if layer.coupled else parts[1], parts[-1]]
    if layer.layer_norm:
        made.bias = at.vector(_sum(get["bias_ih" + suffix], b_hh))
    if layer.layer_norm == "gate":
        made.norm_gate = at.vector(get["weight_norm" + suffix])
    if layer.layer_norm == "product":
        made.norm_x, made.norm_h = (
            [at.vector(get[f"{what}_norm_{of}{suffix}"]) for what in ("weight", "bias")]
            for of in ("ih", "hh")
        )
        made.norm_c = [at.of_one_gate(get[f"{w}_norm_c{suffix}"]) for w in ("weight", "bias")]
    return made


def pack_cell(
    layer: spec.Recurrent,
    get: Mapping[str, Array],
    suffix: str,
    input_size: int,
    lanes: int,
    products: Array | None,
) -> Cell:
    """`products` (gates * H, V): what stands for the input's rows, if the input is tokens."""
    w_ih, w_hh = get["weight_ih" + suffix], get["weight_hh" + suffix]
    at, H = Layout.of(layer, lanes), layer.hidden_size
    direction = int(suffix.endswith("_reverse"))
    zeros = np.zeros(at.gates * H, w_ih.dtype)
    get = {f"bias_ih{suffix}": zeros, f"bias_hh{suffix}": zeros} | dict(get)
    b_ih, b_hh = get["bias_ih" + suffix], get["bias_hh" + suffix]
    rows = input_size if products is None else 0
    own_h = 0 if _resets_before(layer) else layer.h_size
    weights = aligned_zeros((at.panels, rows + own_h, at.groups, lanes), w_ih.dtype)
    if rows:
        fill(weights, w_ih, 0, at.units, at.gates)
    if own_h:
        fill(weights, w_hh, rows, at.units, at.gates)
    bias = _sum(b_ih, b_hh)
    if isinstance(layer, spec.GRU):
        bias[2 * H :] = b_ih[2 * H :]
    if isinstance(layer, spec.LSTM) and layer.layer_norm:
        bias = zeros
    cell = Cell(
        gates=Panels.of(weights, at.vector(bias)),
        input_rows=rows,
        hidden_size=H,
        h_size=layer.h_size,
        function=layer.functions(direction)[0],
        y_offset=layer.h_size if direction else 0,
    )
    if isinstance(layer, spec.LSTM | spec.GRU) and not layer.is_plain:
        cell.variant = _pack_variant(layer, get, suffix, at, direction)
    elif isinstance(layer, spec.GRU):
        cell.bias_n = at.of_one_gate(b_hh[2 * H :])
    if products is not None:
        cell.table = aligned_zeros((products.shape[1], at.panels, at.groups, lanes), w_ih.dtype)
        fill(cell.table.transpose(1, 0, 2, 3), products, 0, at.units, at.gates)
    if layer.projection:
        cell.projection = pack_matrix([get["weight_hr" + suffix]], lanes)
    return cell


def read_cell(
    layer: spec.Recurrent, cell: Cell, suffix: str, input_size: int, lanes: int
) -> dict[str, Array]:
    """The matrices of a cell; what a table was made of only if it is the weights themselves."""
    at, found = Layout.of(layer, lanes), {}
    w, shape = cell.gates.weights, (at.units, at.gates, layer.hidden_size)
    if cell.input_rows:
        found["weight_ih" + suffix] = read(w, 0, input_size, *shape)
    elif cell.table is not None:
        products = cell.table.transpose(1, 0, 2, 3)
        found["weight_ih" + suffix] = read(products, 0, len(cell.table), *shape)
    if cell.variant and cell.variant.reset_gates and cell.variant.reset_candidate:
        parts = [
            read(panels.weights, 0, layer.h_size, at.units, gates, layer.hidden_size)
            for panels, gates in ((cell.variant.reset_gates, 2), (cell.variant.reset_candidate, 1))
        ]
        found["weight_hh" + suffix] = np.concatenate(parts)
    else:
        found["weight_hh" + suffix] = read(w, cell.input_rows, layer.h_size, *shape)
    if cell.projection:
        (found["weight_hr" + suffix],) = read_matrices(cell.projection, layer.h_size, lanes)
    return found
