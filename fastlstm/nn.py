"""LSTM, GRU, RNN and their cells with PyTorch's constructor and call, over Model.

NumPy in, NumPy out, but that a stack also takes torch's PackedSequence, and then answers in tensors
as torch does. A module has no weights until :meth:`load_state_dict` gives it some: this is an
inference engine, and random ones would only hide a forgotten call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import sequences, spec
from fastlstm.arrays import offered
from fastlstm.conversion import from_torch
from fastlstm.errors import ConvertError
from fastlstm.model import Model

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

Array = npt.NDArray[Any]

NAME = "rnn"  # of the one layer of the model inside


class _Module:
    """What modules and cells share: options, weights, and the model made of both."""

    _layer: spec.Recurrent
    _dtype: str
    _model: Model | None = None
    _suffix = ""

    def __init__(self, layer: spec.Recurrent, dtype: npt.DTypeLike) -> None:
        self._layer = layer
        self._dtype = np.dtype(dtype).name
        if self._dtype not in ("float32", "float64"):
            raise TypeError(f"dtype is {dtype!r}; expected float32 or float64")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the weights of a PyTorch module of the same options.

        Parameters
        ----------
        state_dict : mapping of str to array or torch tensor
            PyTorch's names, such as ``weight_ih_l0``; all of them and no others. float16, bfloat16
            and float64 are converted to the module's dtype.

        Raises
        ------
        ConvertError
            If a name is missing or unknown, or the weights are those of another kind or size.
        """
        model = from_torch(
            state_dict,
            nonlinearity=getattr(self._layer, "nonlinearity", None),
            dtype=self._dtype,
        )
        (given,) = model.layers
        named = dataclasses.replace(given, name=NAME, weights="", tensor_names=())
        if named != self._layer:
            raise ConvertError(
                f"the state dict is that of {given.describe()}; this module is "
                f"{self._layer.describe()}"
            )
        self._model = model

    def state_dict(self) -> dict[str, Array]:
        """The weights under PyTorch's names."""
        tensors = self.model.tensors
        return {
            suffix.removesuffix(self._suffix): np.asarray(tensors[name])
            for suffix, name in self.model.layers[0].names().items()
        }

    @property
    def model(self) -> Model:
        """The model inside.

        Raises
        ------
        RuntimeError
            If no weights have been loaded yet.
        """
        if self._model is None:
            raise RuntimeError(
                f"this {type(self).__name__} has no weights yet; call load_state_dict first"
            )
        return self._model

    def _state(self, hx: Any) -> dict[str, Any] | None:
        """PyTorch's state argument, h or (h, c), under the names of the model's state."""
        if hx is None:
            return None
        names = [f"{self.model.layers[0].name}.{s}" for s in "hc"[: 1 + self._layer.has_cell_state]]
        arrays = hx if self._layer.has_cell_state else (hx,)
        if not isinstance(arrays, tuple | list) or len(arrays) != len(names):
            raise TypeError(f"hx is a {type(hx).__qualname__}; expected a tuple (h, c) of arrays")
        return dict(zip(names, arrays, strict=True))

    def _hx(self, arrays: Iterable[Any]) -> Any:
        """The inverse of :meth:`_state`, of arrays in the model's order: h first."""
        return tuple(arrays) if self._layer.has_cell_state else next(iter(arrays))

    def eval(self) -> _Module:
        """Return self: there is no other mode, dropout has no effect at inference."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._layer.describe().removeprefix(self._layer.kind)}"


class _Stack(_Module):
    """A whole stack over a sequence; the state is PyTorch's h_0 or (h_0, c_0)."""

    def __init__(self, layer: spec.Recurrent, batch_first: bool, dropout: float, dtype: Any):
        super().__init__(layer, dtype)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout!r}; expected a probability")
        self.input_size = layer.input_size
        self.hidden_size = layer.hidden_size
        self.num_layers = layer.num_layers
        self.bias = layer.bias
        self.bidirectional = layer.bidirectional
        self.batch_first = batch_first
        self.dropout = dropout

    def __call__(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Run a whole sequence.

        Parameters
        ----------
        input : array (T, I) or (T, B, I), (B, T, I) with `batch_first`; or PackedSequence
            A ``torch.nn.utils.rnn.PackedSequence`` of tensors of the module's dtype on the CPU,
            however it was packed. No step is computed for what would be its padding.
        hx : array (N * D, B, H), or for LSTM (h_0 (N * D, B, O), c_0 (N * D, B, H)), optional
            Where to start from; zeros if not given. Without the B axis if `input` is unbatched.
            With a PackedSequence arrays or tensors, in the order of the batch before it was packed.

        Returns
        -------
        output : array (T, B, D * O), laid out as `input`; or PackedSequence
        h_n, or (h_n, c_n) : like `hx`
            Of a PackedSequence all are tensors; they have no gradient.

        Raises
        ------
        TypeError
            If an array or tensor is of another dtype, or a tensor is not on the CPU.
        ValueError
            If a shape does not fit, or the parts of a PackedSequence do not fit each other.
        """
        if sequences.is_packed(input):
            return self._run_packed(input, self._state(hx))
        if isinstance(input, list | tuple):
            raise TypeError(
                f"input is a {type(input).__qualname__}; expected a NumPy array or a "
                f"PackedSequence; sequences of different lengths in a list go to the attribute "
                f"model of this {type(self).__name__}"
            )
        output, state = self.model(input, self._state(hx), batch_first=self.batch_first)
        return output, self._hx(state.values())

    def _run_packed(self, packed: Any, start: dict[str, Any] | None) -> tuple[Any, Any]:
        """A PackedSequence, as the rows of a batch in the order they had before it was packed."""
        import torch

        numbers = _numbers_of(packed.data, "input", self._dtype)
        if numbers.ndim != 2 or numbers.shape[1] != self.input_size:
            raise ValueError(
                f"input has data of shape {numbers.shape}; expected (steps of all sequences, "
                f"{self.input_size})"
            )
        rows, steps = _places(packed)
        lengths = np.bincount(rows)
        x = np.empty((len(lengths), int(lengths.max()), self.input_size), self._dtype)
        x[rows, steps] = numbers
        if start is not None:
            start = {
                name: _numbers_of(given, f"hx ({name[-1]})", self._dtype)
                if isinstance(given, torch.Tensor)
                else given
                for name, given in start.items()
            }
        y, state = self.model(x, start, lengths=lengths, batch_first=True)
        output = type(packed)(torch.from_numpy(y[rows, steps]), *packed[1:])
        return output, self._hx(map(torch.from_numpy, state.values()))


def _numbers_of(tensor: Any, name: str, dtype: str) -> Array:
    """The array that a torch tensor on the CPU is, without a copy."""
    if tensor.device.type != "cpu":
        raise TypeError(f"{name} is on the device {tensor.device}; expected the CPU; use its cpu()")
    if str(tensor.dtype) != f"torch.{dtype}":
        raise TypeError(
            f"{name} is of {tensor.dtype}; expected torch.{dtype}, which this module computes in; "
            f"use its to(torch.{dtype})"
        )
    array: Array = tensor.detach().numpy()
    return array


def _places(packed: Any) -> tuple[Array, Array]:
    """(row of the batch before it was packed, step) of each row of a PackedSequence's data."""
    sizes = packed.batch_sizes.numpy()
    count = len(packed.data)
    # How many sequences have each step; they are in order, from the longest to the shortest.
    fits = sizes.ndim == 1 and sizes.size > 0 and sizes[-1] > 0 and sizes[0] <= count
    if not (fits and (np.diff(sizes) <= 0).all() and sizes.sum() == count):
        raise ValueError(
            f"input has batch_sizes {sizes.tolist()!s:.80} for {count} rows of data; expected one "
            f"for each step, from the most to the fewest, that add up to them"
        )
    steps = np.repeat(np.arange(len(sizes)), sizes)
    rows: Array = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if packed.sorted_indices is None:
        return rows, steps
    order = packed.sorted_indices.numpy()
    if not np.array_equal(np.sort(order), np.arange(sizes[0])):
        raise ValueError(
            f"input has sorted_indices {order.tolist()!s:.80}; expected each of 0 to "
            f"{sizes[0] - 1} once, the sequences of the batch"
        )
    return order[rows], steps


class LSTM(_Stack):
    """``torch.nn.LSTM``: same constructor, same names, same call, NumPy arrays.

    Parameters
    ----------
    input_size, hidden_size : int
    num_layers : int, default 1
    bias : bool, default True
    batch_first : bool, default False
        Whether batched input and output are (B, T, features).
    dropout : float, default 0
        Accepted; no effect at inference.
    bidirectional : bool, default False
    proj_size : int, default 0
        Size h is projected to; 0 for none.
    dtype : dtype, default float32
        float32 or float64.

    Examples
    --------
    >>> lstm = fastlstm.LSTM(10, 20, num_layers=2)
    >>> lstm.load_state_dict(torch_lstm.state_dict())
    >>> output, (h_n, c_n) = lstm(x)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        layer = spec.LSTM(
            NAME,
            input_size,
            hidden_size,
            num_layers,
            bias,
            bidirectional,
            proj_size,
        )
        super().__init__(layer, batch_first, dropout, dtype)
        self.proj_size = proj_size


class GRU(_Stack):
    """``torch.nn.GRU``; parameters as for :class:`LSTM`, without `proj_size`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        layer = spec.GRU(NAME, input_size, hidden_size, num_layers, bias, bidirectional)
        super().__init__(layer, batch_first, dropout, dtype)


class RNN(_Stack):
    """``torch.nn.RNN``; parameters as for :class:`GRU`, and `nonlinearity` ("tanh" or "relu")."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        layer = spec.RNN(
            NAME,
            input_size,
            hidden_size,
            num_layers,
            bias,
            bidirectional,
            _checked(nonlinearity),
        )
        super().__init__(layer, batch_first, dropout, dtype)
        self.nonlinearity = nonlinearity


def _checked(nonlinearity: str) -> str:
    """One of the two that ``torch.nn.RNN`` knows."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity is {nonlinearity!r:.80}; expected 'tanh' or 'relu'")
    return nonlinearity


class _Cell(_Module):
    """One step; the state is h, or (h, c) for LSTM."""

    _suffix = "_l0"

    def __init__(self, layer: spec.Recurrent, dtype: npt.DTypeLike) -> None:
        super().__init__(layer, dtype)
        self.input_size = layer.input_size
        self.hidden_size = layer.hidden_size
        self.bias = layer.bias

    def __call__(self, input: Array, hx: Any = None) -> Any:
        """Run one step.

        Parameters
        ----------
        input : array (I,) or (B, I)
        hx : array (H,) or (B, H), or for LSTMCell a tuple (h, c) of them, optional
            Zeros if not given.

        Returns
        -------
        h, or (h, c) : like `hx`
        """
        input = offered("input", input)
        if not isinstance(input, np.ndarray):
            raise TypeError(f"input is a {type(input).__qualname__}; expected a NumPy array")
        if input.ndim not in (1, 2):
            raise ValueError(f"input has shape {input.shape}; expected (I,) or (B, I)")
        state = self._state(hx)
        if state is not None:
            state = {
                name: np.asarray(offered(f"hx ({name[-1]})", array))[None]
                for name, array in state.items()
            }
        _, state = self.model(input[None], state)
        return self._hx(array[0] for array in state.values())


class LSTMCell(_Cell):
    """``torch.nn.LSTMCell``: ``h, c = cell(x, (h, c))``.

    Parameters
    ----------
    input_size, hidden_size : int
    bias : bool, default True
    dtype : dtype, default float32
        float32 or float64.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(spec.LSTM(NAME, input_size, hidden_size, bias=bias), dtype)


class GRUCell(_Cell):
    """``torch.nn.GRUCell``: ``h = cell(x, h)``; parameters as for :class:`LSTMCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(spec.GRU(NAME, input_size, hidden_size, bias=bias), dtype)


class RNNCell(_Cell):
    """``torch.nn.RNNCell``: ``h = cell(x, h)``; as :class:`GRUCell`, and `nonlinearity`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        known = _checked(nonlinearity)
        layer = spec.RNN(NAME, input_size, hidden_size, bias=bias, nonlinearity=known)
        super().__init__(layer, dtype)
        self.nonlinearity = nonlinearity
