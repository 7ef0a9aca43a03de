"""Lowering of the recurrent stacks: an operation for each layer and direction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.planner import Lower, Planner
from fastlstm.plan.view import Block, Matrix, Numbers, Places, Step, Stored, View
from fastlstm.spec import FILL

__all__ = ["LOWERS"]

# A row that is read as it lies may have so many numbers more, as a part of those that are needed.
MOST_UNUSED = 0.25

# The products of all tokens of an embedding are made in advance if they are no more than so many
# numbers, or than this part of those of all tensors: at a step one of them is looked up then.
FREE_TABLE = 2**20
MOST_TABLE = 0.1


class _Stack:
    """A recurrent layer that is being lowered.

    Parameters
    ----------
    planner : Planner
    layer : spec.Recurrent
    x : View
        What it reads of each step.
    beside : list of View
        The mask, if it holds, and the states it begins with, if they are given.
    """

    def __init__(
        self, planner: Planner, layer: spec.Recurrent, x: View, beside: list[View]
    ) -> None:
        self.planner, self.layer = planner, layer
        along = layer.along == "positions"
        self.steps = x.shape[-2] if along else 1
        self.positions = math.prod(x.shape[:-1]) // self.steps
        self.line = max(view.line for view in (x, *beside))
        self.fields: dict[str, Any] = {
            "cell": layer.kind,
            "hidden_size": layer.hidden_size,
            "h_size": layer.h_size,
            "positions": self.positions,
            "steps": self.steps,
            "along_positions": int(along),
            "clip": layer.clip,
        }
        if layer.hold:
            self.fields["mask"] = planner.in_order(beside[0])
        self.given = dict(zip(("h", "c"), beside[layer.hold :], strict=False))
        if layer.over_time:
            self._begin()

    def _begin(self) -> None:
        """Have the states of a stream start from the vectors, or the held rows, there are."""
        planner, layer = self.planner, self.layer
        names = layer.names()
        for suffix, tensor in layer.initial().items():
            array, at = planner.array(names[tensor]), planner.offset(f"{layer.name}.{suffix}")
            size = array.shape[1]
            for depth, row in enumerate(array):
                for _ in range(self.positions):
                    planner.begin_with(at, Numbers(row, names[tensor], depth * size))
                    at += size
        for suffix, view in self.given.items():
            offset, row = planner.offset(f"{layer.name}.{suffix}"), planner.in_order(view)
            if row.numbers is not None:
                planner.begin_with(offset, row.numbers)
            else:
                planner.begin.append(Step(op.Start(row, offset)))

    def starts(self, depth: int) -> dict[str, Any]:
        """The fields that say where the states of a layer and direction are, or start."""
        planner, layer = self.planner, self.layer
        sizes = {"h": layer.h_size} | ({"c": layer.hidden_size} if layer.has_cell_state else {})
        fields: dict[str, Any] = {}
        for suffix, size in (sizes | ({"y": layer.h_size} if layer.hold else {})).items():
            if layer.over_time:
                offset = planner.offset(f"{layer.name}.{suffix}")
                field = "held" if suffix == "y" else suffix
                fields[field] = offset + depth * self.positions * size
            elif suffix in self.given:
                view = self.given[suffix]
                rows = view.places.reshape(layer.depth, self.positions * size)
                fields[f"start_{suffix}"] = planner.in_order(view.at(rows[depth]))
            elif suffix != "y" and layer.initial_state == "learned":
                name = layer.names()[f"{suffix}_0"]
                row = planner.array(name)[depth]
                fields[f"{suffix}_0"] = Numbers(row, name, depth * size)
        return fields

    def weights(self, depth: int, order: Places | None) -> dict[str, Any]:
        """The fields that are weights and functions of a layer and direction.

        `order` has the number of each column of what the first layer reads, or is None.
        """
        layer, array = self.layer, self.planner.array
        n, direction = divmod(depth, layer.directions)
        suffix, size = layer.sizes()[depth]
        H, rows = layer.hidden_size, layer.gate_count * layer.hidden_size
        names = {
            known.removesuffix(suffix): name
            for known, name in layer.names().items()
            if known.endswith(suffix)
        }
        matrix = Matrix.of(names["weight_ih"], rows, size)
        if n == 0 and order is not None:
            block = Block(0, rows, 0, len(order), names["weight_ih"], 0, size, 0, order)
            matrix = Matrix(rows, len(order), (block,))
        fields: dict[str, Any] = {
            "input_size": matrix.columns,
            "input": matrix,
            "hidden": Matrix.of(names["weight_hh"], rows, layer.h_size),
        }
        if layer.projection:
            fields["projection"] = Matrix.of(names["weight_hr"], layer.projection, H)
        if layer.bias:
            of_x, of_h = (array(names[f"bias_{s}"]).astype(np.float64) for s in ("ih", "hh"))
            total = of_x + of_h
            if layer.kind == "gru":  # the reset gate is between the two of n
                total[2 * H :] = of_x[2 * H :]
                name = names["bias_hh"]
                fields["h_bias"] = Numbers(array(name)[2 * H :], name, 2 * H)
            fields["bias"] = Numbers(total)
        for number, function in enumerate(layer.functions(direction)):
            fields[f"function_{number}"] = function
        vectors = {"peepholes": "weight_peephole", "norm_x_weight": "weight_norm"}
        if isinstance(layer, spec.LSTM):
            fields |= {"coupled": int(layer.coupled), "cell_clip": layer.cell_clip}
            fields |= {"norm": layer.layer_norm or "none", "eps": layer.layer_norm_eps}
            if layer.layer_norm == "product":
                for what, where in (("x", "ih"), ("h", "hh"), ("c", "c")):
                    for kind in ("weight", "bias"):
                        vectors[f"norm_{what}_{kind}"] = f"{kind}_norm_{where}"
        if isinstance(layer, spec.GRU):
            fields["reset_after"] = int(layer.reset_after)
        for field, tensor in vectors.items():
            if tensor in names:
                fields[field] = self.planner.vector(names[tensor])
        return fields

    def lower(self, x: View) -> View:
        """All layers, of which the first reads x."""
        layer, planner = self.layer, self.planner
        stored, order, table = self._first(x)
        for n in range(layer.num_layers):
            h_width = width = layer.directions * layer.h_size
            if n == layer.num_layers - 1:
                width = layer.output_size
            y = planner.store(self.positions * self.steps * width, self.line)
            made = []  # they follow one another: what they read is moved before
            for direction in range(layer.directions):
                depth = n * layer.directions + direction
                fields = self.fields | self.starts(depth) | self.weights(depth, order)
                if width > h_width:
                    fields["c_column"] = h_width + direction * layer.hidden_size
                if n == 0 and table:
                    fields["table"] = table
                made.append(
                    op.Recurrent(
                        **fields,
                        x=stored,
                        y=y,
                        width=width,
                        h_column=direction * layer.h_size,
                        reverse=int(layer.reverse or direction == 1),
                    )
                )
            for operation in made:
                planner.add(operation)
            stored = y
        return View.of(stored, (*x.shape[:-1], layer.output_size))

    def _first(self, x: View) -> tuple[Stored, Places | None, Matrix | None]:
        """What the first layer reads, the order of its columns, and the table of its tokens."""
        planner = self.planner
        if step := self._of_tokens(x):
            tokens, step.operation = step.operation, None
            return tokens.x, None, getattr(tokens, "table", None)
        if self.layer.over_time and x.line < self.line:  # a row for each step of what does not move
            beside = self.fields["mask"]
            x = View(
                (beside, *x.sources), np.where(x.places < 0, FILL, x.places + beside.count), x.fill
            )
        x = planner.filled_with_zeros(x).cut
        rows = x.places.reshape(-1, x.shape[-1])
        (source, *others), (count, size) = x.sources, rows.shape
        stride = source.count // count
        same = rows[0] + stride * np.arange(count)[:, None]
        read = rows[0][rows[0] >= 0]
        if (
            others
            or source.count != count * stride
            or stride > (1 + MOST_UNUSED) * size
            or not np.array_equal(rows, np.where(rows[0] < 0, FILL, same))
            or len(np.unique(read)) < len(read)
            or len(read) == 0
            or read.max() >= stride
            or (len(read) < stride and self._sees_all)
        ):
            return self._moved(x, rows)
        if np.array_equal(rows[0], np.arange(stride)):
            return source, None, None
        order = np.full(stride, FILL, np.int64)
        order[read] = np.flatnonzero(rows[0] >= 0)
        return source, order, None

    @property
    def _sees_all(self) -> bool:
        """Whether also what is multiplied with 0 counts: integers are scaled by the largest."""
        suffix, size = self.layer.sizes()[0]
        weight = Matrix.of(self.layer.names()[f"weight_ih{suffix}"], 1, size)
        return self.planner.stored(weight) == "int8"

    def _moved(self, x: View, rows: Places) -> tuple[Stored, Places | None, None]:
        """What a layer reads that does not lie as it must; its columns in runs that are longer."""
        order = np.argsort(rows[0], kind="stable")
        plain, sorted_ = ((np.diff(some, axis=1) == 1).sum() for some in (rows, rows[:, order]))
        if x.in_order or sorted_ <= plain:
            return self.planner.in_order(x), None, None
        return self.planner.move(x.at(rows[:, order])), order, None

    def _of_tokens(self, x: View) -> Step | None:
        """What makes rows of tokens, if the tokens themselves can be read instead.

        The rows of a one-hot code are columns of the matrix, and those of an embedding that is
        small have their products made in advance.
        """
        planner, layer = self.planner, self.layer
        step = planner.replaced(x, op.OneHot) or planner.replaced(x, op.Lookup)
        if step is None or not x.in_order:
            return None
        tokens = step.operation
        one_for_each = np.array_equal(tokens.places, np.arange(self.positions * self.steps))
        if not (one_for_each and tokens.x.count == len(tokens.places) and tokens.x.tokens):
            return None
        if isinstance(tokens, op.OneHot):
            return step if tokens.classes == layer.input_size else None
        if tokens.table.columns != layer.input_size:
            return None
        products = tokens.table.rows * layer.gate_count * layer.hidden_size * layer.directions
        weights = sum(map(np.size, planner.tensors.values()))
        return step if products <= max(FREE_TABLE, MOST_TABLE * weights) else None


def recurrent(planner: Planner, node: spec.Node, views: list[View]) -> View:
    layer: Any = node.layer
    return _Stack(planner, layer, views[0], views[1:]).lower(views[0])


LOWERS: dict[type[spec.Layer], Lower] = dict.fromkeys((spec.LSTM, spec.GRU, spec.RNN), recurrent)
