"""Programs of one recurrent layer, and what the reference makes of the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.program import Program
from fastlstm.reference.recurrent import stack

__all__ = ["Recurrence"]

Array = Any


@dataclass(frozen=True)
class Recurrence:
    """A layer of one or two directions, and the rows that it reads.

    Parameters
    ----------
    layer : spec.Recurrent
        With ``num_layers`` 1; learned or given initial states only along positions.
    positions, steps : int
        Of a row: those that have a state each, and, along positions, those it goes along.
    mask : str
        "", "one" number for a row, or one for "each" of its positions and steps.
    tokens : int
        If not 0, x is as many tokens, which stand for columns of the input's matrix; or, with
        `embedded`, for rows of a table.
    """

    layer: spec.Recurrent
    positions: int = 1
    steps: int = 1
    mask: str = ""
    tokens: int = 0
    embedded: bool = False

    @property
    def along(self) -> bool:
        return self.layer.along == "positions"

    @property
    def states(self) -> dict[str, int]:
        sizes = {"h": self.layer.h_size}
        sizes |= {"c": self.layer.hidden_size} if self.layer.has_cell_state else {}
        return sizes | ({"y": self.layer.h_size} if self.mask else {})

    def weights(self, rng: np.random.Generator) -> dict[str, Array]:
        """Its tensors, of numbers that are floats."""
        made = {}
        for name, shape in self.layer.tensors().items():
            scale = 1.5 * max(1, shape[-1] if len(shape) > 1 else 4) ** -0.5
            offset = 1.0 if "weight_norm" in name else 0.0
            made[name] = _floats(rng.uniform(-scale, scale, shape) + offset)
        if self.embedded:
            made["table"] = _floats(rng.uniform(-1, 1, (self.tokens, self.layer.input_size)))
        return made

    def inputs(self, rng: np.random.Generator, T: int, B: int) -> list[Array]:
        """x, the mask and the initial states that it reads, each (T, B, count)."""
        each = self.positions * self.steps
        x: Array = _floats(rng.normal(size=(T, B, each * self.layer.input_size)))
        if self.tokens:
            x = rng.integers(self.tokens, size=(T, B, each))
        made = [x]
        if self.mask:
            numbers = rng.integers(-1, 2, size=(T, B, each if self.mask == "each" else 1))
            made.append(numbers.astype(float))
        for _ in range(self.layer.directions):
            for size in list(self.states.values())[: len(self.states) - bool(self.mask)]:
                if self.layer.initial_state == "given":
                    made.append(_floats(rng.normal(size=(T, B, self.positions * size))))
        return made

    def program(self, w: dict[str, Array]) -> tuple[Program, list[Array]]:
        """The program, and its tensors; x is input 0, and y (positions, steps, width) output 0."""
        p, layer = Program(), self.layer
        p.looks_ahead = int(not self.along and (layer.reverse or layer.bidirectional))
        each = self.positions * self.steps
        numbers = {name: p.tensor(tensor.size, name) for name, tensor in w.items()}

        def read(count: int, tokens: int = 0) -> int:
            p.inputs.append(p.value(count, 0, "input", len(p.inputs), tokens))
            return p.inputs[-1]

        x = read(each if self.tokens else each * layer.input_size, self.tokens)
        mask = read(each if self.mask == "each" else 1) if self.mask else op.NONE
        p.outputs.append(p.value(each * layer.output_size, 0, "output", 0))
        for d, (suffix, _) in enumerate(layer.sizes()):
            fields = self._matrices(p, numbers, suffix) | self._biases(p, w, numbers, suffix)
            fields |= {f"function_{n}": f for n, f in enumerate(layer.functions(d))}
            if isinstance(layer, spec.LSTM):
                fields |= self._of_lstm(p, numbers, suffix)
                if layer.cell_output:
                    fields["c_column"] = layer.directions * layer.h_size + d * layer.hidden_size
            if isinstance(layer, spec.GRU):
                fields["reset_after"] = int(layer.reset_after)
            for state, size in self.states.items():
                if not self.along:
                    fields["held" if state == "y" else state] = p.state_size
                    p.state_size += self.positions * size
                elif layer.initial_state == "given" and state != "y":
                    fields[f"start_{state}"] = read(self.positions * size)
                elif layer.initial_state == "learned" and state != "y":
                    fields[f"{state}_0"] = p.vector_of(numbers[f"{state}_0"], d * size, size)
            p.add(
                op.Recurrent(
                    cell=layer.kind,
                    x=x,
                    y=p.outputs[0],
                    mask=mask,
                    input_size=layer.input_size,
                    hidden_size=layer.hidden_size,
                    h_size=layer.h_size,
                    positions=self.positions,
                    steps=self.steps,
                    width=layer.output_size,
                    h_column=d * layer.h_size,
                    along_positions=int(self.along),
                    reverse=int(layer.reverse or d == 1),
                    clip=layer.clip,
                    **fields,
                )
            )
        return p, list(w.values())

    def _matrices(self, p: Program, numbers: dict[str, int], suffix: str) -> dict[str, Any]:
        layer = self.layer
        rows = layer.gate_count * layer.hidden_size
        made = {
            "input": p.matrix_of(numbers["weight_ih" + suffix], rows, layer.input_size),
            "hidden": p.matrix_of(numbers["weight_hh" + suffix], rows, layer.h_size),
        }
        if self.embedded:
            made["table"] = p.matrix_of(numbers["table"], self.tokens, layer.input_size)
        if layer.projection:
            shape = layer.h_size, layer.hidden_size
            made["projection"] = p.matrix_of(numbers["weight_hr" + suffix], *shape)
        return made

    def _biases(
        self, p: Program, w: dict[str, Array], numbers: dict[str, int], suffix: str
    ) -> dict[str, int]:
        """Both in one vector; that of a GRU's product of h in gate n stays apart."""
        if not self.layer.bias:
            return {}
        H, total = self.layer.hidden_size, w["bias_ih" + suffix] + w["bias_hh" + suffix]
        if not isinstance(self.layer, spec.GRU):
            return {"bias": p.vector(total)}
        total[2 * H :] = w["bias_ih" + suffix][2 * H :]
        h_bias = p.vector_of(numbers["bias_hh" + suffix], 2 * H, H)
        return {"bias": p.vector(total), "h_bias": h_bias}

    def _of_lstm(self, p: Program, numbers: dict[str, int], suffix: str) -> dict[str, Any]:
        layer = self.layer
        assert isinstance(layer, spec.LSTM)
        H, norm = layer.hidden_size, layer.layer_norm
        rows = layer.gate_count * H
        made: dict[str, Any] = {"cell_clip": layer.cell_clip, "coupled": int(layer.coupled)}
        vectors = {"peepholes": ("weight_peephole", rows - H)} if layer.peepholes else {}
        if norm:
            made |= {"norm": norm, "eps": layer.layer_norm_eps}
        if norm == "gate":
            vectors["norm_x_weight"] = "weight_norm", rows
        if norm == "product":
            for field, of, count in (("x", "ih", rows), ("h", "hh", rows), ("c", "c", H)):
                for what in ("weight", "bias"):
                    vectors[f"norm_{field}_{what}"] = f"{what}_norm_{of}", count
        return made | {
            field: p.vector_of(numbers[name + suffix], 0, count)
            for field, (name, count) in vectors.items()
        }

    def expected(self, w: dict[str, Array], inputs: list[Array]) -> tuple[Array, dict[str, Array]]:
        """y (T, B, count of y), and, along time, the states afterwards (D, B, P, size)."""
        layer, (x, *rest) = self.layer, inputs
        T, B, P, S = *x.shape[:2], self.positions, self.steps
        if self.tokens:
            rows = w["table"] if self.embedded else np.eye(self.tokens)
            x = rows[x]
        x = x.reshape(T, B, P, S, layer.input_size)
        mask = None
        if self.mask:
            mask = np.broadcast_to(rest.pop(0), (T, B, P * S)).reshape(T, B, P, S, 1)
        D, beside = layer.directions, (T, B, P) if self.along else (B, P)
        state = {s: np.zeros((D, *beside, size)) for s, size in self.states.items()}
        for d in range(D):
            for name in state.keys() - {"y"}:
                if layer.initial_state == "learned":
                    state[name][d] = w[name + "_0"][d]
            for name in [name for name in state if name != "y"]:
                if layer.initial_state == "given":
                    state[name][d] = rest.pop(0).reshape(*beside, -1)
        first = np.moveaxis(x, 3, 0) if self.along else x[:, :, :, 0]
        if mask is not None:
            mask = np.moveaxis(mask, 3, 0) if self.along else mask[:, :, :, 0]
        y = stack(layer, w, first, mask, state)
        y = np.moveaxis(y, 0, 3) if self.along else y
        count = P * S * layer.output_size
        return y.reshape(T, B, count), {} if self.along else state

    def states_as_lying(self, states: dict[str, Array]) -> Array:
        """States of :meth:`expected` as the program lays them out: (B, state_size)."""
        rows = [
            states[name][d].reshape(states[name].shape[1], -1)
            for d in range(self.layer.directions)
            for name in self.states
        ]
        return np.concatenate(rows, axis=-1)


def _floats(numbers: Array) -> Array:
    """The same, as a float can hold them."""
    return np.asarray(numbers, np.float32).astype(np.float64)
