"""Products of matrices, norms, and the rows that tokens stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays.core import Operand, SizeError, Value
from fastlstm.sources.arrays.elementwise import Elementwise

__all__ = ["Matrices"]

Array = npt.NDArray[Any]


class Matrices(Elementwise):
    """The part of :class:`~fastlstm.sources.arrays.Builder` for matrices and norms."""

    def linear(self, x: Operand, weight: Operand, bias: Operand | None = None) -> Any:
        """``x W^T + b``: `weight` (O, I), `bias` (O,)."""
        if isinstance(weight, Value) or isinstance(bias, Value):
            made = self.matmul(x, self.move(lambda a: np.swapaxes(a, -1, -2), weight))
            return made if bias is None else self.arithmetic("add", made, bias)
        if not isinstance(x, Value):
            product = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
            return product if bias is None else product + bias
        O, I = weight.shape  # noqa: E741
        if not x.ndim or x.shape[-1] != I:
            got = x.shape[-1] if x.ndim else 1
            raise SizeError(f"a matrix of {I} columns is given {x.shape}", got, I)
        tensors = {"weight": weight} | ({} if bias is None else {"bias": bias.reshape(-1)})
        if bias is not None and bias.ndim != 1:
            tensors["bias"] = self.derived(bias, "flat", lambda b: b.reshape(-1))
        layer = spec.Linear(self.layer_name, I, O, bias is not None)
        return self.layer(layer, [x.places], tensors, core=1, gives=(O,))

    def matmul(self, a: Operand, c: Operand) -> Any:
        """The product of the matrices in the last two axes (``torch.matmul``)."""
        if not isinstance(a, Value) and not isinstance(c, Value):
            return np.matmul(np.asarray(a, np.float64), np.asarray(c, np.float64))
        if isinstance(a, Value) and not isinstance(c, Value) and c.ndim <= 2:
            if c.ndim == 1:
                made = self.linear(a, self.derived(c, "row", lambda w: w.reshape(1, -1)))
                return self.move(lambda p: p[..., 0], made)
            return self.linear(a, self.derived(c, "transposed", lambda w: w.T))
        if isinstance(c, Value) and not isinstance(a, Value) and a.ndim == 2 and c.ndim >= 2:
            turned = self.move(lambda p: np.swapaxes(p, -1, -2), c)
            made = self.linear(turned, a)
            return self.move(lambda p: np.swapaxes(p, -1, -2), made)
        return self._product(a, c)

    def _product(self, a: Operand, c: Operand) -> Any:
        """A product of two arrays of which both depend on the inputs, or one is a stack."""
        first, second = self.places(a), self.places(c)
        if not first.ndim or not second.ndim:
            raise ConvertError("a number has no matrix product")
        row, column = first.ndim == 1, second.ndim == 1
        if row:
            first = first[None]
        if column:
            second = second[:, None]
        ndim = max(first.ndim, second.ndim)
        first, second = (p.reshape((1,) * (ndim - p.ndim) + p.shape) for p in (first, second))
        n, k, p = first.shape[-2], first.shape[-1], second.shape[-1]
        if second.shape[-2] != k:
            raise SizeError(
                f"matrices of {n} x {k} and {second.shape[-2]} x {p} have no product",
                k,
                second.shape[-2],
            )
        made = self.attended(first, second)
        if made is None:
            made = self._of_matrices(first, second)
        if row:
            made = self.move(lambda q: q[..., 0, :], made)
        if column:
            made = self.move(lambda q: q[..., 0], made)
        return made

    def _of_matrices(self, first: Array, second: Array) -> Value:
        """A product of matrices of each step; rows of the first may be steps of their own."""
        layer = spec.MatMul(self.layer_name)
        p = second.shape[-1]
        rows = self.frame([first], core=1).axes[-1]
        if any(part.kind != "row" for part in rows):
            arrays = [first[..., None, :], second[..., None, :, :]]
            made = self.layer(layer, arrays, core=2, gives=(1, p))
            return self.move(lambda q: q[..., 0, :], made)  # type: ignore[no-any-return]
        return self.layer(layer, [first, second], core=2, gives=(first.shape[-2], p))

    # Norms

    def layer_norm(
        self,
        x: Operand,
        shape: Sequence[int],
        weight: Array | None = None,
        bias: Array | None = None,
        eps: float = 1e-5,
    ) -> Any:
        """``torch.nn.functional.layer_norm`` over the last axes."""
        if not isinstance(x, Value):
            array = np.asarray(x, np.float64)
            over = tuple(range(-len(shape), 0))
            centred = array - array.mean(axis=over, keepdims=True)
            normed = centred / np.sqrt(np.square(centred).mean(axis=over, keepdims=True) + eps)
            return normed * (1.0 if weight is None else weight) + (0.0 if bias is None else bias)
        self._ends(x, shape)
        tensors = _there(weight=weight, bias=bias)
        if weight is None and bias is not None:
            weight = self.derived(bias, "ones", np.ones_like)
            tensors = {"weight": weight, "bias": bias}
        layer = spec.LayerNorm(
            self.layer_name, tuple(shape), eps, weight is not None, bias is not None
        )
        return self.layer(layer, [x.places], tensors, core=len(shape), gives=tuple(shape))

    def rms_norm(
        self, x: Operand, shape: Sequence[int], weight: Array | None = None, eps: float = 1e-5
    ) -> Any:
        """``torch.nn.functional.rms_norm`` over the last axes."""
        self._ends(x, shape)
        layer = spec.RMSNorm(self.layer_name, tuple(shape), eps, weight is not None)
        tensors = _there(weight=weight)
        return self.layer(layer, [x.places], tensors, core=len(shape), gives=tuple(shape))

    def _ends(self, x: Value, shape: Sequence[int]) -> None:
        if x.shape[-len(shape) :] != tuple(shape):
            raise SizeError(f"a norm of {tuple(shape)} is given {x.shape}", x.shape[-1], shape[-1])

    def batch_norm(
        self,
        x: Operand,
        weight: Array | None,
        bias: Array | None,
        mean: Array,
        variance: Array,
        eps: float = 1e-5,
    ) -> Any:
        """A batch norm in evaluation of (N, C, ...): by its running statistics."""
        C = len(mean)
        channels = x.shape[1] if x.ndim > 1 else 0
        if channels != C:
            raise SizeError(f"a norm of {C} channels is given {x.shape}", channels, C)
        if (weight is None) != (bias is None):
            like = weight if weight is not None else bias
            assert like is not None
            weight = self.derived(like, "ones", np.ones_like) if weight is None else weight
            bias = self.derived(like, "zeros", np.zeros_like) if bias is None else bias
        tensors = _there(weight=weight, bias=bias, running_mean=mean, running_var=variance)
        layer = spec.BatchNorm(self.layer_name, C, eps, weight is not None, axis=-1)
        last = self.move(lambda p: np.moveaxis(p, 1, -1), x)
        made = self.layer(layer, [last.places], tensors, core=1, gives=(C,))
        return self.move(lambda p: np.moveaxis(p, -1, 1), made)

    def group_norm(
        self,
        x: Operand,
        groups: int,
        weight: Array | None = None,
        bias: Array | None = None,
        eps: float = 1e-5,
    ) -> Any:
        """``torch.nn.functional.group_norm`` of (N, C, positions ...), none of these time."""
        core = x.ndim - 1
        layer = spec.GroupNorm(self.layer_name, groups, x.shape[1], eps, weight is not None)
        tensors = _there(weight=weight, bias=bias)
        return self.layer(layer, [x.places], tensors, core=core, gives=x.shape[1:])

    # Tokens

    def embedding(self, tokens: Operand, weight: Array) -> Any:
        """Row i of a table (N, F) for each token i."""
        if not isinstance(tokens, Value):
            return weight[np.asarray(tokens)]
        layer = spec.Embedding(self.layer_name, *weight.shape)
        return self._of_tokens(layer, tokens, {"weight": weight}, weight.shape[1])

    def one_hot(self, tokens: Operand, classes: int) -> Any:
        """Zeros, and a one at place i for each token i."""
        if not isinstance(tokens, Value):
            return np.eye(classes)[np.asarray(tokens)]
        return self._of_tokens(spec.OneHot(self.layer_name, classes), tokens, {}, classes)

    def _of_tokens(
        self, layer: spec.Embedding | spec.OneHot, tokens: Value, tensors: Any, width: int
    ) -> Value:
        if tokens.kind == "float":
            raise ConvertError("tokens are looked up in a table, and are given as real numbers")
        self.rows.tokens(tokens.places, layer.input_tokens)
        return self.layer(layer, [tokens.places], tensors, gives=(width,))


def _there(**tensors: Array | None) -> dict[str, Array]:
    return {suffix: array for suffix, array in tensors.items() if array is not None}
