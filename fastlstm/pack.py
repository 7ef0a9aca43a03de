"""Tensors -> the layout the kernels want, and back.

A weight matrix is cut into panels. A panel holds ``G`` vectors of ``L`` outputs for every input
row, ``(P, K, G, L)``, zero padded and 64-byte aligned, so that a kernel reads it once, in order,
with full vectors. For LSTM and GRU the ``G`` vectors are the gates of the same ``L`` hidden units;
for RNN and Linear they are ``G`` neighbouring groups of outputs. The rows of the input come first,
then those of ``h``.

Tokens in front of a cell, one-hot or embedded, need no such rows: the product of every token is
made here, once, and the kernel looks it up.

The field names of the dataclasses are those of the structs in ``kernels/fastlstm.h``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec

__all__ = ["PackedLayer", "PackedModel", "pack", "packed_size", "unpack"]

Array = npt.NDArray[Any]

ALIGNMENT = 64  # bytes: a cache line, and one AVX-512 vector
MOST_GROUPS = 4  # vectors of outputs in one panel: what the kernels have accumulators for

# The products of an Embedding's tokens come on top of its weights: they are made if they take no
# more than this, or than this part of the model.
FREE_TABLE_BYTES = 4 * 2**20
MOST_TABLE = 0.1


@dataclass
class Panels:
    """A matrix: ``weights`` (P, K, G, L) and ``bias`` (P, G, L)."""

    weights: Array
    bias: Array


@dataclass
class Cell:
    """One direction of one layer of a stack; offsets count elements of a state or output row."""

    gates: Panels
    input_rows: int
    hidden_size: int
    h_size: int
    h_offset: int
    c_offset: int
    y_offset: int
    projection: Panels | None = None
    bias_n: Array | None = None
    table: Array | None = None


@dataclass
class PackedLayer:
    """What the engine turns into one ``fl_layer``."""

    kind: str
    input_size: int
    output_size: int
    function: str = "identity"
    table: Array | None = None
    linear: Panels | None = None
    cells: list[Cell] = field(default_factory=list)


@dataclass
class PackedModel:
    """Layers for the engine, and the tensors that cannot be recovered from them, as they were.

    A stack of N layers is N packed layers; tokens are folded into the layer behind them, an
    Embedding's only if the table is small. The biases of a cell are added to each other when
    packed, so ``kept`` holds the two of them, and what a table was computed from.
    """

    layers: list[PackedLayer]
    kept: dict[str, Array]
    state_size: int
    takes_tokens: bool
    dtype: np.dtype[Any]
    lanes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all packed arrays."""
        return sum(array.nbytes for layer in self.layers for array in _arrays(layer))


def _arrays(layer: PackedLayer) -> list[Array]:
    panels = [layer.linear, *(p for cell in layer.cells for p in (cell.gates, cell.projection))]
    found = [array for p in panels if p for array in (p.weights, p.bias)]
    found += [a for cell in layer.cells for a in (cell.bias_n, cell.table) if a is not None]
    return found if layer.table is None else [*found, layer.table]


def _aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    itemsize = np.dtype(dtype).itemsize
    size = int(np.prod(shape, dtype=object))
    raw = np.zeros(size + ALIGNMENT // itemsize, dtype)
    first = -raw.ctypes.data % ALIGNMENT // itemsize
    return raw[first : first + size].reshape(shape)


def _groups(outputs: int, lanes: int) -> int:
    """Vectors a panel: as many as there are accumulators for, unless padding then costs a fifth."""
    vectors = -(-outputs // lanes)
    least = min(-(-vectors // g) * g for g in range(1, MOST_GROUPS + 1))
    return max(
        g for g in range(1, MOST_GROUPS + 1) if -(-vectors // g) * g <= max(least, vectors * 6 // 5)
    )


def _padded(outputs: int, lanes: int) -> int:
    """Outputs of a plain matrix once packed."""
    units = _groups(outputs, lanes) * lanes if outputs else 1
    return -(-outputs // units) * units


def _layout(layer: spec.Recurrent, lanes: int) -> tuple[int, int, int]:
    """(P, G, units a panel) of a cell's gates."""
    if len(layer.gates) > 1:
        return -(-layer.hidden_size // lanes), len(layer.gates), lanes
    groups = _groups(layer.hidden_size, lanes)
    return -(-layer.hidden_size // (groups * lanes)), groups, groups * lanes


def packed_size(layers: Sequence[spec.Layer], lanes: int) -> tuple[int, int]:
    """Weights of the layers as they are and as they would be packed, in elements.

    Where hidden sizes are far below the lanes of a kernel, the padding is many times the model.
    """
    plain = packed = 0
    for layer in layers:
        plain += sum(int(np.prod(s, dtype=object)) for s in layer.tensors().values())
        if isinstance(layer, spec.Recurrent):
            panels, groups, _ = _layout(layer, lanes)
            for _, input_size in layer.sizes():
                packed += panels * groups * lanes * (input_size + layer.h_size + 1)
                packed += layer.hidden_size * _padded(layer.projection, lanes)
        elif isinstance(layer, spec.Linear):
            packed += (layer.input_size + 1) * _padded(layer.output_size, lanes)
        elif isinstance(layer, spec.Embedding):
            packed += layer.input_size * layer.output_size
    return plain, packed


def _fill(panels: Array, matrix: Array, first_row: int, units: int, gates: int) -> None:
    """Put ``matrix`` (gates * H, K) into rows [first_row, first_row + K) of ``panels``."""
    K = matrix.shape[1]
    by_gate = matrix.reshape(gates, -1, K)
    for p, panel in enumerate(panels):
        block = by_gate[:, p * units : (p + 1) * units]
        rows = panel[first_row : first_row + K].reshape(K, gates, units)
        rows[:, :, : block.shape[1]] = block.transpose(2, 0, 1)


def _read(panels: Array, first_row: int, K: int, units: int, gates: int, outputs: int) -> Array:
    """The inverse of :func:`_fill`: (gates * outputs, K)."""
    rows = panels[:, first_row : first_row + K].reshape(len(panels), K, gates, units)
    by_gate = rows.transpose(2, 0, 3, 1).reshape(gates, -1, K)[:, :outputs]
    return np.ascontiguousarray(by_gate.reshape(gates * outputs, K))


def _pack_vector(bias: Array, panels: int, groups: int, units: int, gates: int) -> Array:
    packed = _aligned_zeros((panels, 1, groups, -(-units * gates // groups)), bias.dtype)
    _fill(packed, bias[:, None], 0, units, gates)
    return packed[:, 0]


def _pack_matrix(matrix: Array, bias: Array | None, lanes: int) -> Panels:
    """A plain (O, K) matrix, as Linear and the projection of h have it."""
    outputs, K = matrix.shape
    groups = _groups(outputs, lanes)
    units = groups * lanes
    panels = -(-outputs // units)
    weights = _aligned_zeros((panels, K, groups, lanes), matrix.dtype)
    _fill(weights, matrix, 0, units, 1)
    if bias is None:
        bias = np.zeros(outputs, matrix.dtype)
    return Panels(weights, _pack_vector(bias, panels, groups, units, 1))


def _sum(a: Array, b: Array) -> Array:
    """One rounding instead of PyTorch's two."""
    return (a.astype(np.float64) + b).astype(a.dtype)


def _product(w_ih: Array, embedding: Array) -> Array:
    """(gates * H, V): the input product of every row of an embedding (V, I), rounded once."""
    with np.errstate(invalid="ignore", over="ignore"):
        exact: Array = w_ih.astype(np.float64) @ embedding.T.astype(np.float64)
        return exact.astype(w_ih.dtype)


def _pack_cell(
    layer: spec.Recurrent,
    get: Mapping[str, Array],
    suffix: str,
    input_size: int,
    lanes: int,
    products: Array | None,
) -> Cell:
    """`products` (gates * H, V): what stands for the input's rows, if the input is tokens."""
    w_ih, w_hh = get["weight_ih" + suffix], get["weight_hh" + suffix]
    gates = len(layer.gates)
    panels, groups, units = _layout(layer, lanes)
    rows = input_size if products is None else 0
    weights = _aligned_zeros((panels, rows + layer.h_size, groups, lanes), w_ih.dtype)
    if rows:
        _fill(weights, w_ih, 0, units, gates)
    _fill(weights, w_hh, rows, units, gates)
    zeros = np.zeros(gates * layer.hidden_size, w_ih.dtype)
    b_ih, b_hh = get.get("bias_ih" + suffix, zeros), get.get("bias_hh" + suffix, zeros)
    bias, bias_n = _sum(b_ih, b_hh), None
    if isinstance(layer, spec.GRU):
        H = layer.hidden_size
        bias[2 * H :] = b_ih[2 * H :]
        bias_n = _pack_vector(b_hh[2 * H :], panels, 1, units, 1)
    packed_bias = _pack_vector(bias, panels, groups, units, gates)
    table = None
    if products is not None:
        table = _aligned_zeros((products.shape[1], panels, groups, lanes), w_ih.dtype)
        _fill(table.transpose(1, 0, 2, 3), products, 0, units, gates)
    projection = None
    if layer.projection:
        projection = _pack_matrix(get["weight_hr" + suffix], None, lanes)
    return Cell(
        gates=Panels(weights, packed_bias),
        input_rows=rows,
        hidden_size=layer.hidden_size,
        h_size=layer.h_size,
        h_offset=0,
        c_offset=0,
        y_offset=layer.h_size if suffix.endswith("_reverse") else 0,
        projection=projection,
        bias_n=bias_n,
        table=table,
    )


def _pack_stack(
    layer: spec.Recurrent,
    get: Mapping[str, Array],
    lanes: int,
    folds: bool,
    embedding: Array | None,
    state_offset: int,
) -> list[PackedLayer]:
    """State offsets: h of every depth, then c of every depth, as ``state()`` lists them.

    With `folds`, the tokens before this layer are folded into it; `embedding` (V, I) is the weight
    of their layer, None if they are one-hot.
    """
    function = layer.nonlinearity if isinstance(layer, spec.RNN) else "identity"
    c_first = state_offset + layer.num_layers * layer.directions * layer.h_size
    packed: list[PackedLayer] = []
    for depth, (suffix, input_size) in enumerate(layer.sizes()):
        n, direction = divmod(depth, layer.directions)
        products = None
        if folds and n == 0:
            products = get["weight_ih" + suffix]
            if embedding is not None:
                products = _product(products, embedding)
        if direction == 0:
            known = input_size if products is None else products.shape[1]
            packed.append(PackedLayer(layer.kind, known, layer.output_size, function))
        cell = _pack_cell(layer, get, suffix, input_size, lanes, products)
        cell.h_offset = state_offset + depth * layer.h_size
        cell.c_offset = c_first + depth * layer.hidden_size
        packed[-1].cells.append(cell)
    return packed


def pack(
    layers: Sequence[spec.Layer], tensors: Mapping[str, Array], lanes: int, dtype: npt.DTypeLike
) -> PackedModel:
    """Pack a model for kernels with vectors of `lanes` elements of `dtype`.

    Parameters
    ----------
    layers : sequence of spec.Layer
        Checked by ``spec.check_layers``.
    tensors : mapping of str to array
        Checked by ``spec.check_tensors``; all of `dtype`.
    lanes : int
        Lanes of the kernel that will run it.
    dtype : dtype
        float32 or float64.
    """
    model = PackedModel([], {}, 0, layers[0].takes_tokens, np.dtype(dtype), lanes)
    folded = _folded(layers, lanes, model.dtype)
    embedding = tensors.get(f"{folded.name}.weight") if folded else None
    for layer in layers:
        get = {name.removeprefix(layer.name + "."): tensors[name] for name in layer.tensors()}
        folds = folded is not None and layer is layers[1]
        if layer is folded:  # it is what the next layer's table is indexed by
            lost = list(get)
        elif isinstance(layer, spec.Recurrent):
            model.layers += _pack_stack(layer, get, lanes, folds, embedding, model.state_size)
            model.state_size += sum(depth * size for depth, size in layer.state().values())
            summed = folds and embedding is not None  # a table of sums does not tell the weights
            lost = [s for s in get if s.startswith(("bias", "weight_ih_l0")[: 1 + summed])]
        elif isinstance(layer, spec.Linear):
            packed = PackedLayer(layer.kind, layer.input_size, layer.output_size)
            if folds:
                packed.kind = "lookup"
                packed.table = np.ascontiguousarray(get["weight"].T + get.get("bias", 0))
            else:
                packed.linear = _pack_matrix(get["weight"], get.get("bias"), lanes)
            model.layers.append(packed)
            lost = list(get) if folds else [s for s in get if s == "bias"]
        elif isinstance(layer, spec.Embedding):
            table = np.array(get["weight"], order="C")  # the given tensors stay the caller's
            model.layers.append(
                PackedLayer("lookup", layer.input_size, layer.output_size, table=table)
            )
            lost = []
        else:
            assert isinstance(layer, spec.Activation)
            model.layers.append(
                PackedLayer(layer.kind, layer.input_size, layer.output_size, layer.function)
            )
            lost = []
        model.kept |= {f"{layer.name}.{s}": np.array(get[s]) for s in lost}
    return model


def _folded(
    layers: Sequence[spec.Layer], lanes: int, dtype: np.dtype[Any]
) -> spec.OneHot | spec.Embedding | None:
    """The first layer, if its tokens become the rows of a table of the second."""
    first = layers[0]
    if isinstance(first, spec.OneHot):
        return first
    if not isinstance(first, spec.Embedding) or len(layers) == 1:
        return None
    behind = layers[1]
    if not isinstance(behind, spec.Recurrent):
        return None
    panels, groups, _ = _layout(behind, lanes)
    table = first.input_size * panels * groups * lanes * behind.directions * dtype.itemsize
    weights = packed_size(layers, lanes)[0] * dtype.itemsize
    return first if table <= max(FREE_TABLE_BYTES, MOST_TABLE * weights) else None


def unpack(layers: Sequence[spec.Layer], model: PackedModel) -> dict[str, Array]:
    """The tensors `model` was packed from, bit for bit."""
    tensors: dict[str, Array] = {}
    packed = iter(model.layers)
    for layer in layers:
        found: dict[str, Array] = {}
        if isinstance(layer, spec.Recurrent):
            stack = [next(packed) for _ in range(layer.num_layers)]
            cells = [cell for one in stack for cell in one.cells]
            _, _, units = _layout(layer, model.lanes)
            for (suffix, input_size), cell in zip(layer.sizes(), cells, strict=True):
                w, shape = cell.gates.weights, (units, len(layer.gates), layer.hidden_size)
                rows = w.shape[1] - layer.h_size
                if rows:
                    found["weight_ih" + suffix] = _read(w, 0, input_size, *shape)
                elif isinstance(layers[0], spec.OneHot) and cell.table is not None:
                    products = cell.table.transpose(1, 0, 2, 3)
                    found["weight_ih" + suffix] = _read(products, 0, input_size, *shape)
                found["weight_hh" + suffix] = _read(w, rows, layer.h_size, *shape)
                if cell.projection:
                    w = cell.projection.weights
                    found["weight_hr" + suffix] = _read(
                        w, 0, layer.hidden_size, w.shape[2] * w.shape[3], 1, layer.h_size
                    )
        elif isinstance(layer, spec.Linear):
            linear = next(packed).linear
            if linear:
                w = linear.weights
                found["weight"] = _read(
                    w, 0, layer.input_size, w.shape[2] * w.shape[3], 1, layer.output_size
                )
        elif isinstance(layer, spec.Embedding):
            if f"{layer.name}.weight" not in model.kept:
                table = next(packed).table
                assert table is not None
                found["weight"] = table.copy()
        elif isinstance(layer, spec.Activation):
            next(packed)
        for name in layer.tensors():
            kept = name in model.kept
            tensors[name] = (
                model.kept[name].copy() if kept else found[name.removeprefix(layer.name + ".")]
            )
    return tensors
