"""A model -> packed layers in a row, and back.

Each packed layer reads rows from one place and writes them to another: the input, the output, or a
buffer. Buffers are taken in turn; one that a residual layer still wants is left alone meanwhile.
What follows a matrix and only touches its outputs, a batch normalisation or a function of single
numbers, becomes a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import chain as spec
from fastlstm.pack import cells
from fastlstm.pack.layers import (
    INPUT,
    OUTPUT,
    PackedLayer,
    convolution_size,
    pack_convolution,
    read_convolution,
    scale_and_shift,
    touched_taps,
)
from fastlstm.pack.panels import Array, pack_matrix, padded, read_matrices

__all__ = ["PackedModel", "pack", "packed_size", "unpack"]

# The products of an Embedding's tokens come on top of its weights: they are made if they take no
# more than this, or than this part of the model.
FREE_TABLE_BYTES = 4 * 2**20
MOST_TABLE = 0.1

FIRST_BUFFER, POOLED = 2, 7  # FL_BUFFERS; a pool's row stays while other layers run

ROWWISE = ("softmax", "log_softmax")

Frame = tuple[int, int]  # channels and width


@dataclass(eq=False, repr=False)
class PackedModel:
    """Layers for the engine, and the tensors that cannot be recovered from them, as they were.

    A stack of N layers is N packed layers; tokens are folded into the layer behind them, an
    Embedding's only if the table is small. The biases of a cell are added to each other when
    packed, so ``kept`` holds the two of them, and what a table was computed from.
    """

    takes_tokens: bool
    dtype: np.dtype[Any]
    lanes: int
    layers: list[PackedLayer] = field(default_factory=list)
    of_layer: dict[str, list[PackedLayer]] = field(default_factory=dict)
    kept: dict[str, Array] = field(default_factory=dict)
    initial: Array = field(default_factory=lambda: np.zeros(0))
    state_size: int = 0
    looks_ahead: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all packed arrays."""
        return sum(array.nbytes for layer in self.layers for array in layer.arrays())


def packed_size(layers: Sequence[spec.Layer], lanes: int) -> tuple[int, int]:
    """Weights of the layers as they are and as they would be packed, in elements.

    Where hidden sizes are far below the lanes of a kernel, the padding is many times the model.
    """
    plain = packed = 0
    for layer in spec.walk(layers):
        if isinstance(layer, spec.Residual):
            continue
        own = sum(int(np.prod(s, dtype=object)) for s in layer.tensors().values())
        plain += own
        if isinstance(layer, spec.Recurrent):
            packed += cells.packed_size(layer, lanes)
        elif isinstance(layer, spec.Linear):
            packed += (layer.input_size + 1) * padded(layer.output_size, lanes)
        elif isinstance(layer, spec.Conv1d | spec.FrameConv1d):
            packed += convolution_size(layer, lanes)
        else:
            packed += own
    return plain, packed


def pack(
    layers: Sequence[spec.Layer],
    tensors: Mapping[str, Array],
    lanes: int,
    dtype: npt.DTypeLike,
    *,
    constant: bool = False,
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
    constant : bool, default False
        Whether nobody ever writes to the tensors: what is needed just as it is given is then not
        copied. Else they stay the caller's.
    """
    model = PackedModel(layers[0].takes_tokens, np.dtype(dtype), lanes)
    model.looks_ahead = bool(spec.looks_ahead(layers))
    packer = _Packer(model, tensors, constant)
    packer.folded = _folded(layers, model.dtype)
    with np.errstate(all="ignore"):  # numbers that are not finite stay what they are
        packer.chain(layers)
        packer.plain_frame()
    model.layers[-1].to = OUTPUT
    model.initial = np.zeros(model.state_size, model.dtype)
    starts = {tensor for layer in layers for tensor in layer.initial().values()}
    at = 0
    for layer in layers:
        initial = layer.initial()
        for name, (depth, size) in layer.state().items():
            if name in initial:
                model.initial[at : at + depth * size] = tensors[initial[name]].reshape(-1)
            at += depth * size
    model.kept |= {name: packer.own(tensors[name]) for name in starts}
    return model


def _folded(
    layers: Sequence[spec.Layer], dtype: np.dtype[Any]
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
    # Not those of panels: the answer must not depend on the lanes, as a table is rounded otherwise.
    columns = behind.gate_count * behind.hidden_size * behind.directions
    weights = packed_size(layers, 1)[0] * dtype.itemsize
    table = first.input_size * columns * dtype.itemsize
    return first if table <= max(FREE_TABLE_BYTES, MOST_TABLE * weights) else None


class _Packer:
    """Packs layers in their order, and keeps what the next one must know."""

    def __init__(self, model: PackedModel, tensors: Mapping[str, Array], constant: bool) -> None:
        self.model, self.tensors, self.constant = model, tensors, constant
        self.folded: spec.OneHot | spec.Embedding | None = None
        self.at = INPUT  # where the rows are now
        self.held: list[int] = []  # buffers that a residual layer will read
        self.frame: Frame | None = None  # if the rows are a frame's positions, one after the other

    def chain(self, layers: Sequence[spec.Layer]) -> None:
        position = 0
        while position < len(layers):
            layer = layers[position]
            position += 1
            if isinstance(layer, spec.Linear | spec.Conv1d | spec.FrameConv1d):
                position += self.matrix(layer, layers[position : position + 2])
            elif layer is not self.folded:
                self.one(layer)
            else:
                self.keep(layer, self.get(layer))

    def get(self, layer: spec.Layer) -> dict[str, Array]:
        return {name.removeprefix(layer.name + "."): self.tensors[name] for name in layer.tensors()}

    def own(self, given: Array) -> Array:
        """A given array as the packed model may hold it for good."""
        return np.asarray(given, order="C") if self.constant else np.array(given, order="C")

    def keep(self, layer: spec.Layer, suffixes: Any) -> None:
        """These tensors of a layer cannot be read from what is packed of it."""
        for suffix in suffixes:
            name = f"{layer.name}.{suffix}"
            self.model.kept[name] = self.own(self.tensors[name])

    def add(self, packed: PackedLayer, frame: Frame | None = None) -> None:
        """Put a layer behind the others; its output is a frame with positions in a row, or not."""
        packed.source = self.at
        free = [
            buffer
            for buffer in range(FIRST_BUFFER, POOLED)
            if buffer != self.at and buffer not in self.held
        ]
        self.at = packed.to = POOLED if packed.kind == "pool" else free[0]
        self.frame = frame if frame and min(frame) > 1 else None
        self.model.layers.append(packed)

    def plain_frame(self) -> None:
        """Have the rows as PyTorch has them, channel by channel."""
        if self.frame:
            channels, width = self.frame
            size = channels * width
            self.add(PackedLayer("transpose", size, size, positions=channels))

    def positions_in_row(self, frame: Frame) -> None:
        if self.frame == frame or min(frame) == 1:
            if self.frame != frame:
                self.plain_frame()
            return
        self.plain_frame()
        channels, width = frame
        size = channels * width
        self.add(PackedLayer("transpose", size, size, positions=width), frame)

    def arranged(self, vector: Array) -> Array:
        """A number for each feature, in the order in which the rows are."""
        if self.frame is not None:
            vector = vector.reshape(self.frame).T.reshape(-1)
        return self.own(vector)

    def matrix(
        self, layer: spec.Linear | spec.Conv1d | spec.FrameConv1d, behind: Sequence[spec.Layer]
    ) -> int:
        """Pack a matrix with as many of the layers behind it as can be a part of it."""
        get, taken, frame = self.get(layer), 0, None
        scale = shift = None
        function: spec.Function | None = None
        width = layer.out_width if isinstance(layer, spec.FrameConv1d) else 1
        norm = behind[0] if behind else None
        folds = self.folded is not None and isinstance(self.folded, spec.OneHot)
        folds = folds and not self.model.layers
        if isinstance(norm, spec.BatchNorm1d) and norm.width == width and not folds:
            scale, shift = scale_and_shift(norm, self.get(norm), get.get("bias"))
            self.keep(norm, self.get(norm))
            taken = 1
        bias = get.get("bias") if scale is None else None
        after = behind[taken] if len(behind) > taken else None
        if isinstance(after, spec.Activation) and after.function not in ROWWISE and not folds:
            function = spec.parse_function(after.function)
            taken += 1
        if isinstance(layer, spec.Linear):
            self.plain_frame()
            packed = PackedLayer(layer.kind, layer.input_size, layer.output_size)
            if folds:
                packed.kind = "lookup"
                packed.table = np.ascontiguousarray(get["weight"].T + get.get("bias", 0))
                self.keep(layer, get)
            else:
                packed.linear = pack_matrix([get["weight"]], self.model.lanes, bias, scale, shift)
        else:
            if isinstance(layer, spec.FrameConv1d):
                self.positions_in_row((layer.in_channels, layer.width))
                frame = (layer.out_channels, layer.out_width)
            else:
                self.plain_frame()
            packed = pack_convolution(layer, get["weight"], self.model.lanes, bias, scale, shift)
            if touched_taps(layer) != (0, layer.kernel_size):
                self.keep(layer, ["weight"])
            self.place_convolution(layer, packed)
        self.keep(layer, [suffix for suffix in get if suffix == "bias"])
        if function:
            packed.function = function
        self.model.of_layer[layer.name] = [packed]
        self.add(packed, frame)
        return taken

    def place_convolution(self, layer: spec.Conv1d | spec.FrameConv1d, packed: PackedLayer) -> None:
        """Where its last inputs and its count are in a stream's state."""
        made = packed.convolution
        assert made is not None
        for name, (depth, size) in layer.state().items():
            if name.endswith(".count"):
                made.count_offset, made.has_count = self.model.state_size, True
            else:
                made.x_offset = self.model.state_size
            self.model.state_size += depth * size

    def one(self, layer: spec.Layer) -> None:
        """Pack a layer that stands for itself."""
        get, size = self.get(layer), layer.input_size
        packed = PackedLayer(layer.kind, size, layer.output_size)
        if isinstance(layer, spec.Residual):
            self.residual(layer)
            return
        if isinstance(layer, spec.Recurrent):
            self.plain_frame()
            self.stack(layer, get)
            return
        frame = self.frame
        if isinstance(layer, spec.Embedding):
            packed.kind = "lookup"
            packed.table = self.own(get["weight"])
        elif isinstance(layer, spec.Activation):
            packed.function = spec.parse_function(layer.function)
            if layer.function in ROWWISE:
                self.plain_frame()
                frame = None
        elif isinstance(layer, spec.PReLU):
            each = size // layer.num_parameters
            packed.weight = self.arranged(get["weight"].repeat(each))
            self.keep(layer, get)
        elif isinstance(layer, spec.Scale | spec.BatchNorm1d):
            packed.kind = "scale"
            if isinstance(layer, spec.BatchNorm1d):
                scale, shift = (v.repeat(layer.width) for v in scale_and_shift(layer, get))
            else:
                scale, shift = get["weight"], get["bias"]
            packed.weight, packed.bias = self.arranged(scale), self.arranged(shift)
            self.keep(layer, get)
        elif isinstance(layer, spec.CombineHalves):
            packed.kind, packed.combination = "halves", layer.function
            if self.frame == (layer.channels, layer.width):
                packed.positions = layer.width
                frame = (layer.channels // 2, layer.width)
            else:
                self.plain_frame()
                frame = None
        elif isinstance(layer, spec.LayerNorm):
            self.plain_frame()
            frame, packed.eps = None, layer.eps
            packed.weight, packed.bias = (
                self.own(get[name]) if name in get else None for name in ("weight", "bias")
            )
            self.keep(layer, get)
        else:
            assert isinstance(layer, spec.Pool)
            self.plain_frame()
            frame, packed.pooling = None, layer.function
            packed.state_offset = self.model.state_size
            packed.count_bound = max(layer.counts().values(), default=0)
            self.model.state_size += sum(n * m for n, m in layer.state().values())
        self.model.of_layer[layer.name] = [packed]
        self.add(packed, frame)

    def residual(self, layer: spec.Residual) -> None:
        self.plain_frame()
        beside = self.at
        self.held.append(beside)
        self.chain(layer.layers)
        self.plain_frame()
        kind = "add" if layer.combine == "add" else "concat"
        packed = PackedLayer(kind, layer.layers[-1].output_size, layer.output_size)
        packed.beside, packed.x_first = beside, layer.combine == "output_first"
        self.add(packed)
        self.held.pop()

    def stack(self, layer: spec.Recurrent, get: Mapping[str, Array]) -> None:
        """State offsets: h of every depth, then c of every depth, as ``state()`` lists them."""
        model, lanes = self.model, self.model.lanes
        folds = self.folded is not None and not model.layers
        embedding = (
            self.tensors[f"{self.folded.name}.weight"]
            if folds and isinstance(self.folded, spec.Embedding)
            else None
        )
        h_first = model.state_size
        c_first = h_first + layer.num_layers * layer.directions * layer.h_size
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
                packed.append(PackedLayer(layer.kind, known, layer.output_size))
                packed[-1].reverse, packed[-1].clip = layer.reverse, layer.clip
                self.add(packed[-1])
            cell = cells.pack_cell(layer, get, suffix, input_size, lanes, products)
            cell.h_offset = h_first + depth * layer.h_size
            cell.c_offset = c_first + depth * layer.hidden_size
            packed[-1].cells.append(cell)
        model.of_layer[layer.name] = packed
        model.state_size += sum(depth * size for depth, size in layer.state().values())
        plain = ("weight_hh", "weight_hr", "weight_ih")
        if embedding is not None:  # a table of sums does not tell the weights
            self.keep(layer, [s for s in get if s.startswith("weight_ih_l0")])
        self.keep(layer, [s for s in get if not s.startswith(plain)])


def _product(w_ih: Array, embedding: Array) -> Array:
    """(gates * H, V): the input product of every row of an embedding (V, I), rounded once.

    The bits of floats are the same with any BLAS, which adds in an order of its own: each factor is
    a sum of parts so short that no sum of their products needs rounding (Ozaki, Ogita, Oishi and
    Rump 2012, Numerical Algorithms 59). What lies 2**40 below the largest of a row is left out.
    """
    ours, theirs = (a.astype(np.float64) for a in (w_ih, embedding))
    if w_ih.dtype == np.float64:
        plain: Array = ours @ theirs.T
        return plain
    bits = (53 - (w_ih.shape[1] - 1).bit_length()) // 2
    (a, a_rest), (b, b_rest) = (_short_parts(m, bits) for m in (ours, theirs))
    exact: Array = a @ b.T + ((a @ b_rest.T + a_rest @ b.T) + a_rest @ b_rest.T)
    odd = ~np.isfinite(exact)  # of what is not finite there are no parts
    if odd.any():
        exact = np.where(odd, ours @ theirs.T, exact)
    return exact.astype(w_ih.dtype)


def _short_parts(x: Array, bits: int) -> tuple[Array, Array]:
    """Two parts of x (rows, I), float64: integers of so many bits, times a number for each row."""
    _, exponent = np.frexp(np.abs(x).max(axis=1, keepdims=True, initial=0.0))
    parts = []
    for _ in range(2):
        shift = np.ldexp(1.5, exponent + 52 - bits)
        part = (x + shift) - shift
        parts.append(part)
        x, exponent = x - part, exponent - bits
    return parts[0], parts[1]


def unpack(layers: Sequence[spec.Layer], model: PackedModel) -> dict[str, Array]:
    """The tensors `model` was packed from, bit for bit."""
    tensors: dict[str, Array] = {}
    for layer in spec.walk(layers):
        if isinstance(layer, spec.Residual):
            continue
        found: dict[str, Array] = {}
        packed = model.of_layer.get(layer.name, [])
        if isinstance(layer, spec.Recurrent):
            in_order = [cell for one in packed for cell in one.cells]
            for (suffix, input_size), cell in zip(layer.sizes(), in_order, strict=True):
                found |= cells.read_cell(layer, cell, suffix, input_size, model.lanes)
        elif isinstance(layer, spec.Linear) and packed[0].linear:
            (found["weight"],) = read_matrices(packed[0].linear, layer.output_size, model.lanes)
        elif isinstance(layer, spec.Conv1d | spec.FrameConv1d):
            if f"{layer.name}.weight" not in model.kept:
                found["weight"] = read_convolution(packed[0], model.lanes)
        elif isinstance(layer, spec.Embedding) and packed:
            assert packed[0].table is not None
            found["weight"] = packed[0].table.copy()
        for name in layer.tensors():
            kept = name in model.kept
            tensors[name] = (
                model.kept[name].copy() if kept else found[name.removeprefix(layer.name + ".")]
            )
    return tensors
